"""One folder that loads anywhere: weights, configuration, processor, the code that they need, card, handler.

python -m hub_card.export push outputs/quickstart/model you/ita
python -m hub_card.export space outputs/quickstart/model outputs/space
python -m hub_card.export onnx outputs/quickstart/model outputs/onnx --int8
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

import modeling_ita
from hub_card import handler
from hub_card.requirements import requirements
from modeling_ita import (
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    MgcmtForTokenClassification,
    MgcmtProcessor,
)
from modeling_ita.command_line import command, print_text
from modeling_ita.whole_files import written_folder
from modeling_ita.word_neighbours import TENSORS_FILE, WORDS_FILE

# By the configuration's `model_type`.
AUTO_MAPS = {
    system: {
        "AutoConfig": f"configuration_{system}.{name}Config",
        "AutoModelForTokenClassification": f"modeling_{system}.{name}ForTokenClassification",
        "AutoProcessor": f"processing_{system}.{name}Processor",
    }
    for system, name in (("ita", "Ita"), ("mgcmt", "Mgcmt"))
}
_PIPELINE: dict[str, Any] = {"impl": "pipeline_ita.ItaPipeline", "pt": ["AutoModelForTokenClassification"]}
# transformers looks the task up as it was typed, so the alias needs an entry of its own.
CUSTOM_PIPELINES = {"token-classification": _PIPELINE, "ner": _PIPELINE}
Examples: TypeAlias = Literal["none", "isolated", "here"]
"""Where the snippets of a card run, see `hub_card.card.write_card`."""
EVAL_RESULTS_FILES = {system: f".eval_results/{system}.yaml" for system in AUTO_MAPS}


def export_model(
    model: ItaForTokenClassification | MgcmtForTokenClassification,
    processor: ItaProcessor | MgcmtProcessor,
    folder: str | Path,
    report: Mapping[str, Any] | None = None,
    *,
    examples: Examples = "none",
) -> Path:
    """Writes a folder that is ready for the Hub.

    With `trust_remote_code=True` it needs nothing but torch and transformers (and, for images, a package that reads
    them): `pipeline("token-classification", model=folder, trust_remote_code=True)`. Where this package is imported,
    `AutoModelForTokenClassification`, `AutoProcessor` and `AutoConfig` take its code and ask for no trust.

    The folder is written beside its place and moved there when it is complete.

    Args:
        model: the model.
        processor: its processor.
        folder: where to write: a new or empty folder, or an earlier export, which is replaced.
        report: the report of its training, for the card; without one the card has no results.
        examples: where the card's snippets run, so that it shows what they print: `"none"`, nowhere; `"isolated"`, in
            a process without network and secrets; `"here"`, in this process, as `train.py` does with the model that
            it has just trained, and nobody should with a model of somebody else.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists and is no earlier export, or one with further files in it.
    """
    from hub_card.card import write_card  # it draws and scores, for which a push has no use

    # What not every export has.
    optional = {".eval_results", "report.png", TENSORS_FILE, WORDS_FILE}
    optional |= {file.name for system in AUTO_MAPS for file in code_files(system)}
    with written_folder(folder, "export", _is_earlier, optional) as staging:
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


def code_files(model_type: str = "ita") -> list[Path]:
    """The modules that a checkpoint needs: those that it names, and what they import from beside them.

    Args:
        model_type: that of the model's configuration, `"ita"` or `"mgcmt"`.
    """
    package = Path(modeling_ita.__file__).parent
    named = [*AUTO_MAPS[model_type].values(), str(_PIPELINE["impl"])]
    entries = [package / f"{name.partition('.')[0]}.py" for name in named]
    return sorted({*entries, *(Path(file) for entry in entries for file in get_relative_import_files(entry))})


def unpushed_id(model_type: str) -> str:
    """What the card calls a model of this type until it is pushed."""
    return f"you/{model_type}"


def weights_tag(folder: str | Path) -> str:
    """The tag that names these very weights on the Hub, by their sha256: what the card's snippets pin.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors: it is no exported folder")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"weights-{digest.hexdigest()[:8]}"


def _write(
    model: ItaForTokenClassification | MgcmtForTokenClassification,
    processor: ItaProcessor | MgcmtProcessor,
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


def _is_earlier(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and str(_PIPELINE["impl"]) in config.read_text(encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _save(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON as transformers does, so that loading and saving again changes nothing."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def command_line() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m hub_card.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="put an exported folder on the Hub, in one commit")
    push.add_argument("folder", help="the exported folder")
    push.add_argument("repository", help="its name on the Hub, you/name; made if it is not there")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--branch", help="the branch to commit to, made if it is not there; default: main")
    push.add_argument("--message", help="the commit's message")
    space = commands.add_parser("space", help="write a Space, a page on which to try the model")
    space.add_argument("model", help="the model on the Hub, you/name, or an exported folder")
    space.add_argument("output", help="the folder to write")
    space.add_argument("--revision", help="the model's branch, tag or commit; default: main")
    onnx = commands.add_parser("onnx", help="write the model for ONNX Runtime")
    onnx.add_argument("model", help="the model on the Hub, you/name, or an exported folder")
    onnx.add_argument("output", help="the folder to write")
    onnx.add_argument("--int8", action="store_true", help="with weights of 8 bits: smaller, and faster on CPUs")
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    args = command_line().parse_args(arguments)
    logging.disable_progress_bar()
    # Each command has packages of its own, of which the others know nothing.
    if args.command == "push":
        from hub_card.push import push_model, push_text

        pushed = push_model(
            args.folder, args.repository, args.private or None, branch=args.branch, message=args.message
        )
        print_text(push_text(pushed))
    elif args.command == "space":
        from hub_card.space.space_folder import write_space

        print_text(write_space(args.model, args.output, args.revision))
    else:
        from hub_card.onnx_export import onnx_command

        print_text("\n".join(onnx_command(args.model, args.output, args.int8)))


if __name__ == "__main__":
    sys.exit(main())
