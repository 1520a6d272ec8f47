"""Writes a Space as a folder: the page for one model, with everything it needs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard, SpaceCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from hub_card.card.hub_names import check_repository, check_revision
from hub_card.card.requirements import recipes, requirements, system_packages
from modeling_ita.checkpoint_files import read_object
from modeling_ita.markup import render
from modeling_ita.whole_files import written_folder

HERE = Path(__file__).parent
PYTHON = "3.12"
TITLE = "The picture decides"
SHORT_DESCRIPTION = "Names in posts, read with the picture"  # the Hub takes 60 characters

COMMANDS = """\
pip install "gradio=={gradio}" -r requirements.txt
python app.py                       # the model named in model.json
python app.py --model my/folder     # any other model of this project
"""
_OPTIONAL = ("packages.txt", "__pycache__")


def write_space(
    model_id: str,
    folder: str | Path,
    revision: str | None = None,
    *,
    title: str = TITLE,
    processor_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a folder that can be uploaded as a Space, or run locally: `python FOLDER/app.py`.

    Args:
        model_id: the model's name on the Hub, `owner/name`; or an exported folder, for a page on this machine only.
        folder: where to write: a new or empty folder, or an earlier Space, whose files are replaced.
        revision: branch, tag or commit of the model. Default: its main branch, followed as it changes.
        title: the Space's title.
        processor_config: the content of the model's `processor_config.json`: it tells which packages read images, and
            whether the model reads them itself. Default: read from the folder, or downloaded from the Hub.

    Returns:
        The folder.

    Raises:
        ValueError: `model_id` is neither a folder nor of the form `owner/name`.
        FileExistsError: the folder holds other files.
        OSError: `processor_config` is not given and cannot be downloaded.
    """
    is_local = Path(model_id).is_dir()
    if is_local:
        model_id = str(Path(model_id).resolve())
    elif model_id.count("/") != 1:
        raise ValueError(f"{model_id!r} is neither a folder nor a model's name on the Hub (expected owner/name)")
    else:
        check_repository(model_id)
    if revision is not None:
        check_revision(revision)
    if processor_config is None:
        file = Path(model_id) / "processor_config.json" if is_local else _fetched(model_id, revision)
        processor_config = read_object(file)
    builder = processor_config.get("context_builder")

    with written_folder(folder, "Space", lambda there: (there / "model.json").is_file(), _OPTIONAL) as target:
        for name in ("app.py", "style.css"):
            shutil.copyfile(HERE / name, target / name)
        shutil.copytree(HERE / "examples", target / "examples")
        (target / "model.json").write_text(json.dumps({"model": model_id, "revision": revision}, indent=2) + "\n")
        _write_lines(target / "requirements.txt", requirements(builder))
        if programs := system_packages(builder):
            _write_lines(target / "packages.txt", programs)
        looks = "image_processor" in processor_config
        _card(None if is_local else model_id, revision, title, recipes(builder), looks).save(target / "README.md")
    return Path(folder)


def _fetched(model_id: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(model_id, "processor_config.json", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(
            f"{model_id} (revision {revision or 'main'}): its processor_config.json cannot be fetched; push the model "
            f"first, or give processor_config. {error}"
        ) from error


def _write_lines(file: Path, lines: list[str]) -> None:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _card(
    model_id: str | None, revision: str | None, title: str, aligners: list[dict[str, Any]], looks: bool
) -> SpaceCard:
    # A commit can be asked for of named files only.
    is_commit = revision is not None and re.fullmatch("[0-9a-f]{40}", revision)
    preloaded = f"{model_id} config.json,model.safetensors,tokenizer.json {revision}" if is_commit else model_id
    repositories = [recipe["model"] for recipe in aligners if _is_repository(recipe["model"])]
    data = SpaceCardData(
        title=title,
        emoji="🖼️",
        colorFrom="indigo",
        colorTo="purple",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=PYTHON,
        app_file="app.py",
        pinned=False,
        license="apache-2.0",
        short_description=SHORT_DESCRIPTION,
        models=list(dict.fromkeys([*([model_id] if model_id else []), *repositories])) or None,
        preload_from_hub=[preloaded] if preloaded else None,
        tags=["named-entity-recognition", "multimodal"],
    )
    values = {
        "title": title,
        "model_id": model_id,
        "looks": looks,
        "commands": COMMANDS.format(gradio=version("gradio")),
    }
    return SpaceCard(render(HERE / "README.md.jinja", data.to_dict(), values))


def _is_repository(name: str) -> bool:
    with suppress(ValueError):
        return bool(check_repository(name))
    return False
