"""Pushes an exported folder to the Hub: one commit, and a tag that identifies its weights."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError

from hub_card.card.eval_results import EVAL_RESULTS_FILES
from hub_card.card.hub_names import check_repository, check_revision
from hub_card.hub.model_files import AUTO_MAPS, is_exported, unpushed_id, weights_tag
from modeling_ita.checkpoint_files import check_model_files, check_processor_files, read_object
from modeling_ita.word_neighbours import WORDS_FILE

# Files of an earlier push that would conflict with the new ones; all other files in the repository stay.
STALE = ("*.py", "*.safetensors", "*.safetensors.index.json", WORDS_FILE, *EVAL_RESULTS_FILES.values())


class Pushed(NamedTuple):
    """Where a model was pushed: `repository`, the `commit` id, and the `tag` that identifies its weights."""

    repository: str
    commit: str
    tag: str


def open_repository(repository: str, private: bool | None = None) -> None:
    """Creates the repository if needed. Called before training, it shows early whether you have write access.

    Args:
        repository: `owner/name`.
        private: whether a new repository is private; None is the owner's default.

    Raises:
        OSError: the Hub cannot be reached, or refuses.
        ValueError: the Hub does not accept the name.
    """
    check_repository(repository)
    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
    except HTTPError as error:
        raise OSError(
            f"{repository} cannot be written to (hf auth login, or the variable HF_TOKEN, says who you are): {error}"
        ) from error


def push_model(
    folder: str | Path,
    repository: str,
    private: bool | None = None,
    *,
    branch: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Pushes an exported folder to the Hub in one commit, and tags the commit by its weights.

    The card shows how to load the model by its name on the Hub. Code and weights of an earlier push that the folder
    lacks are removed in the same commit. An existing tag does not move, so what users have pinned does not change.
    After an interruption, the same call continues with the missing files.

    Args:
        folder: what `export_model` wrote.
        repository: `owner/name`; created if it does not exist.
        private: whether a new repository is private; None is the owner's default.
        branch: the branch to commit to, created from main if it does not exist. Default: main.
        message: the commit's message.

    Raises:
        ValueError: the folder is not an export, or the Hub does not accept the name.
        OSError: the Hub cannot be reached, or refuses.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if not is_exported(folder):
        raise ValueError(f"{folder} is not an exported folder (train.py leaves one in OUTPUT/model)")
    system = read_object(config).get("model_type")
    if system not in AUTO_MAPS:
        raise ValueError(f"{config} names the model_type {system!r:.80} (expected {' or '.join(AUTO_MAPS)})")
    if branch:
        check_revision(branch)
    check_model_files(folder)
    check_processor_files(folder)
    tag = weights_tag(folder)
    open_repository(repository, private)
    api = HfApi()
    try:
        if branch:
            api.create_branch(repository, branch=branch, exist_ok=True)
        added = list(_additions(folder, repository, system))
        names = {operation.path_in_repo for operation in added}
        there = set(api.list_repo_files(repository, revision=branch)) - names
        stale = [CommitOperationDelete(name) for name in sorted(there) if any(fnmatch(name, kind) for kind in STALE)]
        commit = api.create_commit(
            repository, [*added, *stale], commit_message=message or f"Add {tag} with code and card", revision=branch
        )
        api.create_tag(repository, tag=tag, revision=commit.oid, exist_ok=True)
    except HTTPError as error:
        raise OSError(
            f"{folder} could not be pushed to {repository} (nothing of it is lost; the same command goes on): {error}"
        ) from error
    return Pushed(repository, commit.oid, tag)


def push_text(pushed: Pushed) -> str:
    """Instructions for using a pushed model."""
    return (
        f"{pushed.repository} is at commit {pushed.commit}, tag {pushed.tag}\n\n"
        f'pipeline("token-classification", model="{pushed.repository}", revision="{pushed.commit}", '
        "trust_remote_code=True)"
    )


def _additions(folder: Path, repository: str, model_type: str) -> Iterator[CommitOperationAdd]:
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        if any(part in (".git", ".cache", "__pycache__") for part in file.relative_to(folder).parts):
            continue
        content: str | bytes = str(file)
        if name == "README.md":
            content = file.read_text(encoding="utf-8").replace(unpushed_id(model_type), repository).encode()
        yield CommitOperationAdd(name, content)
