"""Text of strangers, as a terminal, a file or a page can take it."""

from __future__ import annotations

import re
import reprlib
from typing import Any


def plain_text(value: Any) -> str:
    """A value as text without control characters: surrogates that make a pair are joined, what is left is U+FFFD.

    Line feeds, carriage returns and tabs stay. A terminal obeys the others: an escape sequence in the name of a file,
    or among the characters read in an image, could hide lines or rewrite them.
    """
    text = str(value).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text)


def one_line(value: Any, most: int = 1000) -> str:
    """A value as one line of plain text: white space folded, and cut at so many characters."""
    line = " ".join(plain_text(value).split())
    return line if len(line) <= most else f"{line[: most - 2]} …"


def shown(value: Any) -> str:
    """A value for a message, as Python writes it, cut short: it may be of any size and nested to any depth."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 80
    try:
        return short.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return f"a value of the type {type(value).__name__}"
