"""What may be a name: of a kind of context, of an entity type."""

from __future__ import annotations

import unicodedata
from typing import Any

MAX_NAME = 60  # characters


def check_name(what: str, name: Any) -> str:
    """The name itself, if it is one: letters and digits of any script, `_`, `-` and `.`, no dot in front.

    Such a name can stand in a path, in Markdown, in HTML and in a line of code and mean nothing there but itself,
    whoever chose it.

    Args:
        what: what it is the name of, for the message: `"a kind of visual context"`.
        name: the name.

    Raises:
        ValueError: it is no string, is empty or longer than `MAX_NAME` characters, or holds something else.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or name[0] == "." or not all(map(_fits, name)):
        shown = f"{name!r:.80}"
        raise ValueError(
            f"{shown} cannot be the name of {what} (expected 1 to {MAX_NAME} letters, digits, '_', '-' and '.', "
            "no '.' in front)"
        )
    return name


def _fits(character: str) -> bool:
    return character in "_-." or unicodedata.category(character)[0] in "LMN"
