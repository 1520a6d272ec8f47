"""The contents of an exported folder: configuration entries, code, and the tag of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

import modeling_ita

# By the configuration's `model_type`.
AUTO_MAPS = {
    system: {
        "AutoConfig": f"configuration_{system}.{name}Config",
        "AutoModelForTokenClassification": f"modeling_{system}.{name}ForTokenClassification",
        "AutoProcessor": f"processing_{system}.{name}Processor",
    }
    for system, name in (("ita", "Ita"), ("mgcmt", "Mgcmt"))
}
PIPELINE: dict[str, Any] = {"impl": "pipeline_ita.ItaPipeline", "pt": ["AutoModelForTokenClassification"]}
# transformers looks up the task name as typed, so the alias needs its own entry.
CUSTOM_PIPELINES = {"token-classification": PIPELINE, "ner": PIPELINE}


def code_files(model_type: str = "ita") -> list[Path]:
    """The modules that a checkpoint needs: those that it names, and the sibling modules they import.

    Args:
        model_type: that of the model's configuration, `"ita"` or `"mgcmt"`.
    """
    package = Path(modeling_ita.__file__).parent
    named = [*AUTO_MAPS[model_type].values(), PIPELINE["impl"]]
    entries = [package / f"{name.partition('.')[0]}.py" for name in named]
    return sorted({*entries, *(Path(file) for entry in entries for file in get_relative_import_files(entry))})


def unpushed_id(model_type: str) -> str:
    """What the card calls a model of this type until it is pushed."""
    return f"you/{model_type}"


def weights_tag(folder: str | Path) -> str:
    """The Hub tag that identifies these weights by their SHA-256; the card's snippets pin it.

    Raises:
        FileNotFoundError: the folder has no weights.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors: it is not an exported folder")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"weights-{digest.hexdigest()[:8]}"


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported model: its configuration names the pipeline shipped with it."""
    config = Path(folder) / "config.json"
    return config.is_file() and PIPELINE["impl"] in config.read_text(encoding="utf-8", errors="replace")
