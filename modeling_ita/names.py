"""What may be a name: of a kind of context, of an entity type, of a class of objects."""

from __future__ import annotations

import unicodedata
from typing import Any

from .plain_text import shown

MAX_NAME = 60  # characters
MAX_LABEL = 100


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
        raise ValueError(
            f"{shown(name)} cannot be the name of {what} (expected 1 to {MAX_NAME} letters, digits, '_', '-' and '.', "
            "no '.' in front)"
        )
    return name


def check_label(what: str, label: Any) -> str:
    """The label itself, if it is one: words of any script on one line, such as `sports ball` or `cat's toy (red)`.

    Args:
        what: what it is the label of, for the message: `"a class of objects"`.
        label: the label.

    Raises:
        ValueError: it is no string, is empty or longer than `MAX_LABEL` characters, or holds a line break or a
            character that is not shown.
    """
    if not isinstance(label, str) or not 0 < len(label.strip()) <= len(label) <= MAX_LABEL or not _is_shown(label):
        raise ValueError(
            f"{shown(label)} cannot be the label of {what} (expected words on one line, at most {MAX_LABEL} "
            "characters, none of them a control character)"
        )
    return label


def _is_shown(text: str) -> bool:
    # Joiners show nothing themselves, and are part of words of many scripts.
    return all(c in "\u200c\u200d" or unicodedata.category(c)[0] != "C" for c in text) and len(text.splitlines()) == 1


def _fits(character: str) -> bool:
    return character in "_-." or unicodedata.category(character)[0] in "LMN"
