"""Validates names of Hub repositories and revisions, for cards, Spaces and calls."""

from __future__ import annotations

import re

from huggingface_hub.utils import validate_repo_id

# The subset of git's branch and tag names with no special meaning in YAML, Markdown or a shell.
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,199}")


def check_repository(name: str) -> str:
    """The name itself, if it is a valid repository name, `owner/name`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(name, str) or name.count("/") != 1 or not re.fullmatch(r"[A-Za-z0-9_./-]+", name):
        raise ValueError(f"{name!r} is not the name of a repository on the Hub (expected owner/name)")
    validate_repo_id(name)
    return name


def check_revision(name: str) -> str:
    """The name itself, if it is a valid branch, tag or commit.

    Raises:
        ValueError: it is not.
    """
    is_one = isinstance(name, str) and _REVISION.fullmatch(name) and not re.search(r"\.\.|//|/\.|[/.]$|\.lock$", name)
    if not is_one:
        raise ValueError(f"{name!r} is not a revision (expected a branch, tag or commit: letters, digits and _.+/-)")
    return name
