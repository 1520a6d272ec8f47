"""Exports a self-contained folder: weights, configuration, processor, code, card and handler."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub_card.card.card import Examples
from hub_card.card.requirements import requirements
from hub_card.hub import handler
from hub_card.hub.model_files import AUTO_MAPS, CUSTOM_PIPELINES, code_files, is_exported, unpushed_id, weights_tag
from modeling_ita import ItaPipeline
from modeling_ita.entity_tagger import EntityTagger
from modeling_ita.whole_files import written_folder
from modeling_ita.word_neighbours import TENSORS_FILE, WORDS_FILE
from modeling_ita.wordwise_processor import WordwiseProcessor


def export_model(
    model: EntityTagger,
    processor: WordwiseProcessor,
    folder: str | Path,
    report: Mapping[str, Any] | None = None,
    *,
    examples: Examples = "none",
) -> Path:
    """Writes a folder that is ready for the Hub.

    With `trust_remote_code=True` it needs only torch and transformers (and, for images, a package that reads
    them): `pipeline("token-classification", model=folder, trust_remote_code=True)`. Where this package is imported,
    `AutoModelForTokenClassification`, `AutoProcessor` and `AutoConfig` use its code and need no trust.

    The folder is written to a temporary place and moved when it is complete.

    Args:
        model: the model.
        processor: its processor.
        folder: where to write: a new or empty folder, or an earlier export, which is replaced.
        report: the report of its training, for the card; without one the card has no results.
        examples: where the card's snippets run, so that it shows what they print: `"none"`, nowhere; `"isolated"`, in
            a process without network and secrets; `"here"`, in this process, as `train.py` does with the model that
            it has just trained. Do not use this for somebody else's model.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists and is not an earlier export, or holds other files too.
    """
    from hub_card.card.card import write_card  # imports plotting and scoring, which a push does not need

    # Files that not every export has.
    optional = {".eval_results", "report.png", TENSORS_FILE, WORDS_FILE}
    optional |= {file.name for system in AUTO_MAPS for file in code_files(system)}
    with written_folder(folder, "export", is_exported, optional) as staging:
        _write(model, processor, staging)
        pipe = ItaPipeline(model=model, processor=processor, device=model.device)
        write_card(
            staging,
            model_id=unpushed_id(model.config.model_type),
            revision=weights_tag(staging),
            pipe=pipe,
            report=report,
            examples=examples,
        )
    return Path(folder)


def _write(
    model: EntityTagger,
    processor: WordwiseProcessor,
    folder: Path,
) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in (*code_files(model.config.model_type), Path(handler.__file__)):
        shutil.copyfile(file, folder / file.name)
    (folder / "requirements.txt").write_text(
        "\n".join(requirements(processor.context_builder)) + "\n", encoding="utf-8"
    )
    # Set here and not by register_for_auto_class, which would change the classes of the running program.
    names = dict(AUTO_MAPS[model.config.model_type])
    of_processor = {"auto_map": {"AutoProcessor": names.pop("AutoProcessor")}}
    config = _read(folder / "config.json") | {"auto_map": names, "custom_pipelines": CUSTOM_PIPELINES}
    _save(folder / "config.json", config)
    _save(folder / "processor_config.json", _read(folder / "processor_config.json") | of_processor)
    tokenizer = _read(folder / "tokenizer_config.json")
    if tokenizer.pop("auto_map", None):  # left by a processor of a checkpoint's own code: AutoTokenizer asks for trust
        _save(folder / "tokenizer_config.json", tokenizer)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _save(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON in the format of transformers, so that loading and saving again changes nothing."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
