"""A folder that is written beside its place and moved there when it is complete: never half, and nothing lost."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_folder(
    folder: str | Path, what: str, is_earlier: Callable[[Path], bool], optional: Collection[str] = ()
) -> Iterator[Path]:
    """Gives a new folder to write to, and puts it in its place if nothing goes wrong.

    Args:
        folder: the place: new, empty, or holding an earlier one, which is replaced.
        what: what is written, for the message: `"export"`.
        is_earlier: whether the folder at the place is an earlier one.
        optional: what an earlier one may hold and the new one lack.

    Raises:
        FileExistsError: something else is there, or an earlier one with further files in it.
    """
    target = Path(folder).resolve()
    if target.exists() and not (target.is_dir() and (is_earlier(target) or not any(target.iterdir()))):
        raise FileExistsError(f"{folder} exists and is no earlier {what}: choose another, or remove it")
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    staging.mkdir(parents=True)
    try:
        yield staging
        _replace(target, staging, what, optional)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(target: Path, staging: Path, what: str, optional: Collection[str]) -> None:
    if not target.exists():
        staging.rename(target)
        return
    others = sorted({file.name for file in target.iterdir()} - {file.name for file in staging.iterdir()} - {*optional})
    if others:
        raise FileExistsError(f"{target} holds {', '.join(others)} besides an earlier {what}: move them first")
    earlier = target.with_name(f"{staging.name}.earlier")
    target.rename(earlier)
    staging.rename(target)
    shutil.rmtree(earlier)
