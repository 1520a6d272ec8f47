"""One folder that loads anywhere: weights, configuration, processor, and the code that they need."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

import modeling_ita
from modeling_ita import ItaForTokenClassification, ItaProcessor

AUTO_MAP = {
    "AutoConfig": "configuration_ita.ItaConfig",
    "AutoModelForTokenClassification": "modeling_ita.ItaForTokenClassification",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_ita.ItaProcessor"}
_PIPELINE = {"impl": "pipeline_ita.ItaPipeline", "pt": ["AutoModelForTokenClassification"]}
# transformers looks the task up as it was typed, so the alias needs an entry of its own.
CUSTOM_PIPELINES = {"token-classification": _PIPELINE, "ner": _PIPELINE}


def export_model(model: ItaForTokenClassification, processor: ItaProcessor, folder: str | Path) -> Path:
    """Writes a folder that is ready for the Hub.

    With `trust_remote_code=True` it needs nothing but torch and transformers (and, for images, a package that reads
    them): `pipeline("token-classification", model=folder, trust_remote_code=True)`. Where this package is imported,
    `AutoModelForTokenClassification`, `AutoProcessor` and `AutoConfig` take its code and ask for no trust.

    The folder is written beside its place and moved there when it is complete.

    Args:
        model: the model.
        processor: its processor.
        folder: where to write: a new or empty folder, or an earlier export, which is replaced.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists and is no earlier export, or one with further files in it.
    """
    target = Path(folder).resolve()
    if target.exists() and not _is_replaceable(target):
        raise FileExistsError(f"{folder} exists and is no earlier export: choose another, or remove it")
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    staging.mkdir(parents=True)
    try:
        _write(model, processor, staging)
        _replace(target, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Path(folder)


def code_files() -> list[Path]:
    """The modules that a checkpoint needs: those that it names, and what they import from beside them."""
    package = Path(modeling_ita.__file__).parent
    named = {*AUTO_MAP.values(), *PROCESSOR_AUTO_MAP.values(), _PIPELINE["impl"]}
    entries = [package / f"{str(name).partition('.')[0]}.py" for name in named]
    return sorted({*entries, *(Path(file) for entry in entries for file in get_relative_import_files(entry))})


def _write(model: ItaForTokenClassification, processor: ItaProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in code_files():
        shutil.copyfile(file, folder / file.name)
    # Set here and not by register_for_auto_class, which would change the classes of the running program.
    config = _read(folder / "config.json") | {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    _save(folder / "config.json", config)
    _save(folder / "processor_config.json", _read(folder / "processor_config.json") | {"auto_map": PROCESSOR_AUTO_MAP})
    tokenizer = _read(folder / "tokenizer_config.json")
    if tokenizer.pop("auto_map", None):  # left by a processor of a checkpoint's own code: AutoTokenizer asks for trust
        _save(folder / "tokenizer_config.json", tokenizer)


def _is_replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    config = folder / "config.json"
    is_export = config.is_file() and str(_PIPELINE["impl"]) in config.read_text(encoding="utf-8")
    return is_export or not any(folder.iterdir())


def _replace(target: Path, staging: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    others = sorted({file.name for file in target.iterdir()} - {file.name for file in staging.iterdir()})
    if others:
        raise FileExistsError(f"{target} holds {', '.join(others)} besides an earlier export: move them first")
    earlier = target.with_name(f"{staging.name}.earlier")
    target.rename(earlier)
    staging.rename(target)
    shutil.rmtree(earlier)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _save(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON as transformers does, so that loading and saving again changes nothing."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
