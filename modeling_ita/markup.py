"""Text of strangers as a part of Markdown, of a page or of Python: its words are kept, and none of them act as markup.

Every value is escaped; only what this project composed itself, and marked as `Markdown`, stays as it is.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from .plain_text import one_line, plain_text

# What Markdown makes something of, in tables too (`|`), and what dialects add (`~`, `$`, links made of bare text). An
# underscore within a word is not markup.
_MARKUP = re.compile(r"[\\`*\[\]|~$<>]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|@(?=\w)", re.IGNORECASE)
# Older dialects let a backslash before these stand, and take them for HTML all the same.
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# A title, a list or a rule at the beginning of a line.
_OPENING = re.compile(r"(?:#{1,6}|[-+=]+|\d{1,9}[.)])(?=\s|$)")
# What turns the direction of the text behind it, so that it reads as something else.
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
# What a span of code cannot hold, or not within a table, or not between the comments that mark a part of a card.
_NOT_CODE = re.compile(r"[`|\\<>&]")
_PICTURE = re.compile(r"data:image/[a-z+.-]+;base64,[A-Za-z0-9+/=]+")
_LONGEST = 100_000  # characters of a value


class Markdown(str):
    """Text that is Markdown already: `md` and templates leave it as it is."""

    __slots__ = ()


class Source(str):
    """Text that is Python already: `python_source` leaves it as it is."""

    __slots__ = ()


def md(value: Any) -> Markdown:
    """A value as Markdown that shows it and does nothing else, on one line, wherever in a line or table it stands."""
    if isinstance(value, Markdown):
        return value
    text = _shown(value)
    opening = _OPENING.match(text)
    escaped = _MARKUP.sub(lambda found: _ENTITIES.get(found.group(), f"\\{found.group()}"), text)
    if opening:  # it holds nothing that was escaped: the backslash stands before its last character
        escaped = f"{escaped[: opening.end() - 1]}\\{escaped[opening.end() - 1 :]}"
    return Markdown(escaped)


def code(value: Any) -> Markdown:
    """A value as a span of code; as plain text if it holds what such a span cannot hold everywhere."""
    text = _shown(value)
    return Markdown(f"`{text}`") if text and not _NOT_CODE.search(text) else md(text)


def block(text: Any, language: str = "") -> Markdown:
    """Text as a block of code, in a fence longer than any row of backticks in it."""
    text = _TURNING.sub("\ufffd", plain_text(text)).rstrip("\n")
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markdown(f"{marks}{language}\n{text}\n{marks}")


def listed(parts: Sequence[Markdown], last: str = " and ") -> Markdown:
    """Parts in a row: `a`, or `a and b`, or `a, b and c`; nothing for none."""
    *others, end = parts or [Markdown()]
    return Markdown(f"{', '.join(others)}{last}{end}" if others else end)


def front_matter(data: Mapping[str, Any]) -> Markdown:
    """Metadata as the YAML at the head of a card: every string in them is one line, and none can end the block."""
    return Markdown(yaml_text(dict(data)).strip())


def yaml_text(value: Any) -> str:
    """JSON values as YAML, in which every string is one line without control characters."""
    return yaml.safe_dump(_lines(value), sort_keys=False, allow_unicode=True, width=float("inf"))


def render(template: Path, metadata: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """A card of a template, in which `card_data` is the metadata.

    Every value goes through `md` when it is written; the filters `code` and `block` make code of one.

    Args:
        template: the file, which is the project's own.
        metadata: the card's metadata, see `front_matter`.
        values: the values of the template by their names, to any depth.
    """
    # What is not there is nothing, and `{{ }}` of it writes nothing.
    environment = jinja2.Environment(
        autoescape=False,  # of HTML, which this is not
        finalize=lambda value: "" if value is None or isinstance(value, jinja2.Undefined) else md(value),
    )
    environment.filters |= {"code": code, "block": block}
    made = environment.from_string(template.read_text(encoding="utf-8"))
    return made.render(**values, card_data=front_matter(metadata))


def html_text(value: Any) -> str:
    """A value as text of an HTML page, or of an attribute in quotes."""
    return html.escape(plain_text(value))


def html_picture(uri: str) -> str:
    """The address of a picture that is within the page itself; empty for any other, which would be loaded."""
    return uri if _PICTURE.fullmatch(uri) else ""


def html_page(title: str, style: str, body: str, script: str = "") -> str:
    """A page that needs no network, and forbids the browser to load or run anything that is not in it.

    Args:
        title: the title, as plain text.
        style: CSS of the project's own.
        body: HTML, in which values were made `html_text`.
        script: JavaScript of the project's own, which its hash allows; no other runs.
    """
    hashed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashed}"
    policy += "; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html_text(title)}</title>
<style>{style}</style></head>
<body>{body}
{f"<script>{script}</script>" if script else ""}</body></html>
"""


def python_source(value: Any) -> Source:
    """A value as the Python that makes it again: strings in double quotes, and escaped what cannot be seen.

    Args:
        value: a string, or lists and dictionaries of strings; `Source` is left as it is.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, str):
        return Source(f'"{"".join(map(_escaped, value))}"')
    if isinstance(value, Mapping):
        return Source(f"{{{', '.join(f'{python_source(key)}: {python_source(of)}' for key, of in value.items())}}}")
    if isinstance(value, (list, tuple)):
        return Source(f"[{', '.join(map(python_source, value))}]")
    raise TypeError(f"a {type(value).__name__} cannot be written as Python (expected strings, lists, dictionaries)")


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _shown(value: Any) -> str:
    return _TURNING.sub("\ufffd", one_line(value, most=_LONGEST))


def _lines(value: Any) -> Any:
    """JSON values with every string on one line and free of control characters."""
    if isinstance(value, Mapping):
        return {_lines(key): _lines(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lines(of) for of in value]
    return _shown(value) if isinstance(value, str) else value
