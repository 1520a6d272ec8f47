"""Visual contexts: the image as text.

An *aligner* turns a batch of images into strings of one *kind*: object tags (the paper's local alignment), captions
(global alignment), text in the image (optical character alignment), or any kind that the user adds. A `VisualContext`
holds these strings and records where they came from. ITA sees nothing else of an image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

from .plain_text import check_name, shown

OBJECT_TAGS = "object_tags"
CAPTIONS = "captions"
OCR = "ocr"


EXAMINATION = "image"  # where a store records the result of opening an image; not a kind of context
NOT_KINDS = ("id", "source", "provenance", EXAMINATION)
PER_IMAGE = "strings_per_image"  # in the provenance of the object tags of several images


@dataclass(frozen=True)
class VisualContext:
    """An image as text (method §2): strings by kind, and their provenance.

    Runs of white space become single spaces. Empty strings and kinds without strings are dropped. Two contexts are
    equal if they hold the same strings from the same sources.

    Args:
        kinds: strings by kind, ordered by confidence or position: `"object_tags"`, `"captions"`, `"ocr"` or a name of
            your own (`"knowledge"`).
        provenance: by kind, how its strings were created: `model`, `revision`, `settings`, `image_sha256` (see
            `image_sha256`; a list if there are several images), `strings_per_image` (see `joined`) and `date` (UTC,
            ISO 8601). All are optional: `{"model": "scene"}` is enough. A kind with a provenance but without strings
            was searched for and not found.

    Raises:
        ValueError: the name of a kind is invalid, a kind holds anything but strings, or a provenance is not a
            dictionary.
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
        """Object tags, most confident first; attributes precede the noun."""
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
        """Reads a context from a row such as `{"id": …, "captions": ["a dog"], "source": {"captions": "BLIP-2"}}`.

        `id` is ignored, `source` maps kinds to model names, and `provenance` maps kinds to dictionaries (or is such a
        mapping as JSON); `provenance` takes precedence over `source`. Every other key is a kind, whose value may be
        None. A `VisualContext` is returned as it is. One from another copy of this module is converted: a checkpoint's
        own code may be loaded next to the installed package.

        Raises:
            ValueError: a kind is not a list of strings, or `source` or `provenance` does not map kinds to origins.
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

    @classmethod
    def joined(cls, contexts: Iterable[VisualContext]) -> VisualContext:
        """The context of several images of one post: their strings follow one another, kind by kind, in this order.

        In the provenance of a kind, which is that of the first image, `image_sha256` lists all images that were read.
        That of the object tags also says how many there are of each image, `strings_per_image`, because a model may
        take only the first ones of each.
        """
        given = list(contexts)
        if len(given) == 1:
            return given[0]
        kinds: dict[str, list[str]] = {}
        provenance: dict[str, dict[str, Any]] = {}
        for context in given:
            for kind, strings in context.kinds.items():
                kinds[kind] = kinds.get(kind, []) + strings
            for kind, origin in context.provenance.items():
                before = provenance.setdefault(kind, {**origin, "image_sha256": []})
                if origin.get("image_sha256") is not None:
                    before["image_sha256"] = [*before["image_sha256"], origin["image_sha256"]]
        if OBJECT_TAGS in kinds:
            sizes = [len(strings) for context in given for strings in context.by_image(OBJECT_TAGS)]
            provenance.setdefault(OBJECT_TAGS, {})[PER_IMAGE] = sizes
        return cls(kinds, {kind: _without_empty(origin) for kind, origin in provenance.items()})

    def by_image(self, kind: str) -> list[list[str]]:
        """The strings of a kind, one list for each image; a single list where the images are not told apart."""
        strings = self.kinds.get(kind, [])
        sizes = self.provenance.get(kind, {}).get(PER_IMAGE)
        if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
            return [strings]
        ends = list(accumulate(sizes, initial=0))
        if ends[-1] != len(strings):  # the strings were changed afterwards
            return [strings]
        return [strings[start:end] for start, end in pairwise(ends)]

    def to_dict(self) -> dict[str, Any]:
        """The context as JSON values: `{"<kind>": [str, …], …, "provenance": {"<kind>": {…}}}`."""
        return {**{kind: list(strings) for kind, strings in self.kinds.items()}, "provenance": dict(self.provenance)}


PostContext: TypeAlias = VisualContext | Mapping[str, Any] | Sequence[VisualContext | Mapping[str, Any] | None] | None
"""What is said of a post's images: one context, a list with one per image, or None."""


def contexts_of(given: PostContext) -> list[VisualContext]:
    """The contexts of one post, given none (None), one, or a list with one per image, None where there is none.

    Raises:
        ValueError: a context is neither a `VisualContext` nor a mapping that `VisualContext.from_dict` accepts.
    """
    if given is None:
        return []
    each: Sequence[Any] = given if isinstance(given, (list, tuple)) else [given]
    return [VisualContext() if one is None else VisualContext.from_dict(one) for one in each]


def _without_empty(origin: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in origin.items() if key != "image_sha256" or value}


def check_kind(kind: Any) -> str:
    """Returns the name of a kind of context if it is valid: it is used as a column, a store's folder and a JSON key.

    Raises:
        ValueError: the name is invalid (see `check_name`), or reserved for another key of a context row.
    """
    if kind in NOT_KINDS:
        raise ValueError(f"{kind!r} cannot be the name of a kind of visual context: this name is reserved")
    return check_name("a kind of visual context", kind)


def _json_values(provenance: Any) -> Any:
    """A provenance, parsed if it is JSON text, as in a Parquet column; other values could not be saved again."""
    try:
        value = json.loads(provenance) if isinstance(provenance, str) else provenance
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"'provenance' must consist of JSON values: {error}") from None
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
    """For each kind, the aligner recorded in most contexts: its `model`, and `revision` and `settings` if recorded."""
    made: dict[str, Counter[str]] = {}
    for context in contexts:
        for kind, origin in context.provenance.items():
            if "model" in origin:
                aligner = {key: origin[key] for key in ("model", "revision", "settings") if key in origin}
                made.setdefault(kind, Counter())[json.dumps(aligner, sort_keys=True)] += 1
    # The JSON parser of datasets is off by one bit: 0.6 becomes 0.6000000000000001, which would be another setting.
    return {
        kind: json.loads(counts.most_common(1)[0][0], parse_float=lambda digits: float(f"{float(digits):.15g}"))
        for kind, counts in made.items()
    }


def named_aligners(recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Selects the `recorded_aligners` that can be run again, in the form that `VisualContextBuilder` takes.

    Leaves out kinds for which only a model name is recorded.
    """
    return {kind: dict(made) for kind, made in recorded.items() if made.keys() == {"model", "revision", "settings"}}
