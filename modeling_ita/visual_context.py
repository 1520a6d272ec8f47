"""The image as text: visual contexts, the aligners that read them off an image, and the builder that runs them.

An *aligner* turns a batch of images into strings of one *kind*: object tags (the paper's local alignment), captions
(global alignment), the characters in the image (optical character alignment), or any further kind of the user's own.
A `VisualContext` holds those strings and tells where they came from; it is all that the model ever sees of an image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .plain_text import check_name, shown

OBJECT_TAGS = "object_tags"
CAPTIONS = "captions"
OCR = "ocr"


EXAMINATION = "image"  # the name under which a store keeps what opening an image has shown; no kind of context
NOT_KINDS = ("id", "source", "provenance", EXAMINATION)


@dataclass(frozen=True)
class VisualContext:
    """What an image says, as text (method §2): strings by kind, and who wrote them.

    White space inside a string becomes single spaces; strings that are empty then are dropped, and so are kinds
    without strings. Two contexts are equal if they hold the same strings from the same sources.

    Args:
        kinds: strings by kind, best or first one first: `"object_tags"`, `"captions"`, `"ocr"` or any name of the
            user's own (`"knowledge"`).
        provenance: by kind, how its strings came about: `model`, `revision`, `settings`, `image_sha256` (see
            `image_sha256`) and `date` (UTC, ISO 8601), or less where less is known, such as `{"model": "scene"}`.
            A kind may stand here without strings: it was looked for and nothing was found.

    Raises:
        ValueError: a kind has no usable name or holds anything but strings, or a provenance is not a dictionary.
    """

    kinds: dict[str, list[str]] = field(default_factory=dict)
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check and normalise the strings."""
        cleaned = {kind: _clean(kind, strings) for kind, strings in self.kinds.items()}
        object.__setattr__(self, "kinds", {kind: strings for kind, strings in cleaned.items() if strings})
        for kind, origin in self.provenance.items():
            check_kind(kind)
            if not isinstance(origin, Mapping):
                raise ValueError(
                    f"the provenance of {kind!r} must be a dictionary such as {{'model': …}}, got {shown(origin)}"
                )
        object.__setattr__(self, "provenance", {kind: dict(origin) for kind, origin in self.provenance.items()})

    def __bool__(self) -> bool:
        """Whether any kind holds text."""
        return bool(self.kinds)

    @property
    def object_tags(self) -> list[str]:
        """Object tags with their attributes before the noun, most confident first."""
        return self.kinds.get(OBJECT_TAGS, [])

    @property
    def captions(self) -> list[str]:
        """Captions, best first."""
        return self.kinds.get(CAPTIONS, [])

    @property
    def ocr(self) -> list[str]:
        """Lines of text in the image, in reading order."""
        return self.kinds.get(OCR, [])

    @classmethod
    def from_dict(cls, row: Mapping[str, Any] | VisualContext) -> VisualContext:
        """The context in a row such as `{"id": …, "captions": ["a dog"], "source": {"captions": "BLIP-2"}}`.

        Every key but `id` (ignored), `source` and `provenance` is a kind; None is a kind without strings. `source`
        names models by kind; `provenance` gives dictionaries by kind, also as JSON, and goes before it. A visual
        context is taken as it is, also one made by another copy of this module (a checkpoint's code stands beside the
        installed package).

        Raises:
            ValueError: a kind is not a list of strings, or `source` or `provenance` is not a dictionary by kind.
        """
        if isinstance(row, cls):
            return row
        if hasattr(row, "to_dict"):
            row = row.to_dict()
        if not isinstance(row, Mapping):
            raise ValueError(f'a visual context is a dictionary such as {{"captions": ["a dog"]}}, got {shown(row)}')
        provenance: dict[str, dict[str, Any]] = {}
        for key in ("source", "provenance"):
            origins = row.get(key) or {}
            if key == "provenance":
                origins = _json_values(origins)
            if not isinstance(origins, Mapping):
                raise ValueError(
                    f"{key!r} must be a dictionary by kind such as {{'captions': 'BLIP-2'}}, got {shown(origins)}"
                )
            for kind, origin in origins.items():
                if origin is not None:
                    provenance[kind] = {"model": origin} if isinstance(origin, str) else origin
        kinds = {kind: strings for kind, strings in row.items() if kind not in NOT_KINDS and strings is not None}
        return cls(kinds, provenance)

    def to_dict(self) -> dict[str, Any]:
        """The context as JSON values: `{"<kind>": [str, …], …, "provenance": {"<kind>": {…}}}`."""
        return {**{kind: list(strings) for kind, strings in self.kinds.items()}, "provenance": dict(self.provenance)}


def check_kind(kind: Any) -> str:
    """The name of a kind of context itself, if it can be one: it names a column, a folder of a store, a JSON key.

    Raises:
        ValueError: it is no name (see `check_name`), or one that a row of contexts needs for something else.
    """
    if kind in NOT_KINDS:
        raise ValueError(f"{kind!r} cannot be the name of a kind of visual context: it has another meaning there")
    return check_name("a kind of visual context", kind)


def _json_values(provenance: Any) -> Any:
    """A provenance, also one that is JSON itself, as in a column of Parquet; nothing else could be written again."""
    try:
        value = json.loads(provenance) if isinstance(provenance, str) else provenance
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"'provenance' is not made of JSON values: {error}") from None
    return value


def _clean(kind: Any, strings: Any) -> list[str]:
    check_kind(kind)
    if isinstance(strings, str):
        raise ValueError(f"the kind {kind!r} must be a list of strings, got one string: write [{shown(strings)}]")
    if not isinstance(strings, (list, tuple)):
        raise ValueError(f"the kind {kind!r} must be a list of strings, got {shown(strings)}")
    wrong = [string for string in strings if not isinstance(string, str)]
    if wrong:
        raise ValueError(f"the kind {kind!r} must be a list of strings, one of them is {shown(wrong[0])}")
    return [text for text in (" ".join(string.split()) for string in strings) if text]


def recorded_aligners(contexts: Iterable[VisualContext]) -> dict[str, dict[str, Any]]:
    """By kind, what made most of the contexts, as far as they tell: `model`, or `revision` and `settings` too."""
    made: dict[str, Counter[str]] = {}
    for context in contexts:
        for kind, origin in context.provenance.items():
            if "model" in origin:
                aligner = {key: origin[key] for key in ("model", "revision", "settings") if key in origin}
                made.setdefault(kind, Counter())[json.dumps(aligner, sort_keys=True)] += 1
    # datasets reads JSON with a parser that is off by a bit: 0.6 comes back as 0.6000000000000001, another setting.
    return {
        kind: json.loads(counts.most_common(1)[0][0], parse_float=lambda digits: float(f"{float(digits):.15g}"))
        for kind, counts in made.items()
    }


def named_aligners(recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of `recorded_aligners` that can be asked again, as `VisualContextBuilder` takes them.

    Kinds of which nothing but a name is known are left out.
    """
    return {kind: dict(made) for kind, made in recorded.items() if made.keys() == {"model", "revision", "settings"}}
