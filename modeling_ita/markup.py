"""Escapes untrusted text for Markdown, HTML and Python: its words are kept, and none of them act as markup.

Every value is escaped, except text that this project composed itself and marked as `Markdown`.
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

# Characters with a meaning in Markdown, in tables too (`|`), and in its dialects (`~`, `$`, autolinked text). An
# underscore within a word is not markup.
_MARKUP = re.compile(r"[\\`*\[\]|~$<>]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|@(?=\w)", re.IGNORECASE)
# Older dialects ignore a backslash before these, and treat them as HTML.
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# A heading, a list or a rule at the beginning of a line.
_OPENING = re.compile(r"(?:#{1,6}|[-+=]+|\d{1,9}[.)])(?=\s|$)")
# Characters that change the direction of the following text, so that it reads as something else.
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Characters that a code span cannot contain, at least in a table or between the comments that mark a part of a card.
_NOT_CODE = re.compile(r"[`|\\<>&]")
_PICTURE = re.compile(r"data:image/[a-z+.-]+;base64,[A-Za-z0-9+/=]+")
_LONGEST = 100_000  # characters per value


class Markdown(str):
    """Text that is already Markdown: `md` and templates do not escape it."""

    __slots__ = ()


class Source(str):
    """Text that is already Python: `python_source` does not change it."""

    __slots__ = ()


def md(value: Any) -> Markdown:
    """Escapes a value for Markdown, on one line, so that it shows as plain text anywhere in a line or table."""
    if isinstance(value, Markdown):
        return value
    text = _shown(value)
    opening = _OPENING.match(text)
    escaped = _MARKUP.sub(lambda found: _ENTITIES.get(found.group(), f"\\{found.group()}"), text)
    if opening:  # contains nothing that was escaped; the backslash goes before its last character
        escaped = f"{escaped[: opening.end() - 1]}\\{escaped[opening.end() - 1 :]}"
    return Markdown(escaped)


def code(value: Any) -> Markdown:
    """A value as a code span, or as plain text if it contains characters that are unsafe in a code span."""
    text = _shown(value)
    return Markdown(f"`{text}`") if text and not _NOT_CODE.search(text) else md(text)


def block(text: Any, language: str = "") -> Markdown:
    """Text as a code block, in a fence longer than any run of backticks in the text."""
    text = _TURNING.sub("\ufffd", plain_text(text)).rstrip("\n")
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markdown(f"{marks}{language}\n{text}\n{marks}")


def listed(parts: Sequence[Markdown], last: str = " and ") -> Markdown:
    """Joins parts: `a`, or `a and b`, or `a, b and c`; empty for no parts."""
    *others, end = parts or [Markdown()]
    return Markdown(f"{', '.join(others)}{last}{end}" if others else end)


def front_matter(data: Mapping[str, Any]) -> Markdown:
    """Metadata as YAML front matter of a card: every string is on one line, and none can end the block."""
    return Markdown(yaml_text(dict(data)).strip())


def yaml_text(value: Any) -> str:
    """JSON values as YAML, in which every string is one line without control characters."""
    return yaml.safe_dump(_lines(value), sort_keys=False, allow_unicode=True, width=float("inf"))


def render(template: Path, metadata: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Renders a card from a template, in which `card_data` is the metadata.

    Every value is escaped by `md`; the filters `code` and `block` render a value as code.

    Args:
        template: the template file, one of the project's own.
        metadata: the card's metadata, see `front_matter`.
        values: the template's values by name, nested to any depth.
    """
    # Undefined values are empty: `{{ }}` writes nothing for them.
    environment = jinja2.Environment(
        autoescape=False,  # escapes HTML, which this is not
        finalize=lambda value: "" if value is None or isinstance(value, jinja2.Undefined) else md(value),
    )
    environment.filters |= {"code": code, "block": block}
    made = environment.from_string(template.read_text(encoding="utf-8"))
    return made.render(**values, card_data=front_matter(metadata))


def html_text(value: Any) -> str:
    """Escapes a value for HTML text or a quoted attribute."""
    return html.escape(plain_text(value))


def html_picture(uri: str) -> str:
    """The data URI of an embedded picture; empty for any other address, which the browser would load."""
    return uri if _PICTURE.fullmatch(uri) else ""


def html_page(title: str, style: str, body: str, script: str = "") -> str:
    """A self-contained page that forbids the browser to load or run anything from elsewhere.

    Args:
        title: the title, as plain text.
        style: the project's own CSS.
        body: HTML, whose values were escaped by `html_text`.
        script: the project's own JavaScript, allowed by its hash; no other script runs.
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
    """A value as a Python literal: strings in double quotes, with invisible characters escaped.

    Args:
        value: a string, or lists and dictionaries of strings; `Source` is not changed.

    Raises:
        TypeError: the value is of any other type.
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
