"""Makes untrusted text safe for a terminal, a file or a page."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from typing import Any

MAX_NAME = 60  # characters
MAX_LABEL = 100


def plain_text(value: Any) -> str:
    """A value as text with control characters and lone surrogates replaced by U+FFFD. Surrogate pairs are joined.

    Line feeds, carriage returns and tabs stay. A terminal would interpret the other control characters: an escape
    sequence in a file name or in OCR text could hide or rewrite lines.
    """
    text = str(value).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text)


def one_line(value: Any, most: int = 1000) -> str:
    """A value as one line of plain text: whitespace is collapsed, and the text cut to `most` characters."""
    line = " ".join(plain_text(value).split())
    return line if len(line) <= most else f"{line[: most - 2]} …"


def shown(value: Any) -> str:
    """The shortened `repr` of a value for a message; the value may be of any size and nested to any depth."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 80
    try:
        return short.repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python prints
        return f"a value of the type {type(value).__name__}"


def check_name(what: str, name: Any) -> str:
    """Returns a valid name: letters and digits of any script, `_`, `-` and `.`, without a leading dot.

    Such a name is safe in a path, in Markdown, in HTML and in a line of code, whoever chose it.

    Args:
        what: what it is the name of, for error messages: `"a kind of visual context"`.
        name: the name.

    Raises:
        ValueError: it is not a string, is empty or longer than `MAX_NAME` characters, or contains other characters.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or name[0] == "." or not all(map(_fits, name)):
        raise ValueError(
            f"{shown(name)} cannot be the name of {what} (expected 1 to {MAX_NAME} letters, digits, '_', '-' and '.', "
            "no '.' in front)"
        )
    return name


def check_label(what: str, label: Any) -> str:
    """Returns a valid label: words of any script on one line, such as `sports ball` or `cat's toy (red)`.

    Args:
        what: what it is the label of, for error messages: `"a class of objects"`.
        label: the label.

    Raises:
        ValueError: it is not a string, is empty or longer than `MAX_LABEL` characters, or contains a line break or an
            invisible character.
    """
    if not isinstance(label, str) or not 0 < len(label.strip()) <= len(label) <= MAX_LABEL or not _is_shown(label):
        raise ValueError(
            f"{shown(label)} cannot be the label of {what} (expected words on one line, at most {MAX_LABEL} "
            "characters, none of them a control character)"
        )
    return label


def _is_shown(text: str) -> bool:
    # Joiners are invisible, but part of words in many scripts.
    return all(c in "\u200c\u200d" or unicodedata.category(c)[0] != "C" for c in text) and len(text.splitlines()) == 1


def _fits(character: str) -> bool:
    return character in "_-." or unicodedata.category(character)[0] in "LMN"
