"""The image as text: visual contexts, the aligners that read them off an image, and the builder that runs them.

An *aligner* turns a batch of images into strings of one *kind*: object tags (the paper's local alignment), captions
(global alignment) or the characters in the image (optical character alignment). A `VisualContext` holds those
strings and tells where they came from; it is all that the model ever sees of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from PIL import Image

from .image_file import MAX_PIXELS, ImageSource, UnreadableImage, image_name, image_sha256, is_blank, open_image
from .ocr import ocr_by_name

logger = logging.getLogger(__name__)

OBJECT_TAGS, CAPTIONS, OCR = "object_tags", "captions", "ocr"
NOT_KINDS = ("id", "source", "provenance")


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
            if not isinstance(origin, Mapping):
                raise ValueError(
                    f"the provenance of {kind!r} must be a dictionary such as {{'model': …}}, got {origin!r}"
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
        names models by kind; `provenance` gives dictionaries by kind and goes before it. A visual context is taken as
        it is, also one made by another copy of this module (a checkpoint's code stands beside the installed package).

        Raises:
            ValueError: a kind is not a list of strings, or `source` or `provenance` is not a dictionary by kind.
        """
        if isinstance(row, cls):
            return row
        if hasattr(row, "to_dict"):
            row = row.to_dict()
        if not isinstance(row, Mapping):
            raise ValueError(f'a visual context is a dictionary such as {{"captions": ["a dog"]}}, got {row!r}')
        provenance: dict[str, dict[str, Any]] = {}
        for key in ("source", "provenance"):
            origins = row.get(key) or {}
            if not isinstance(origins, Mapping):
                raise ValueError(
                    f"{key!r} must be a dictionary by kind such as {{'captions': 'BLIP-2'}}, got {origins!r}"
                )
            for kind, origin in origins.items():
                if origin is not None:
                    provenance[kind] = {"model": origin} if isinstance(origin, str) else origin
        kinds = {kind: strings for kind, strings in row.items() if kind not in NOT_KINDS and strings is not None}
        return cls(kinds, provenance)

    def to_dict(self) -> dict[str, Any]:
        """The context as JSON values: `{"<kind>": [str, …], …, "provenance": {"<kind>": {…}}}`."""
        return {**{kind: list(strings) for kind, strings in self.kinds.items()}, "provenance": dict(self.provenance)}


def _clean(kind: Any, strings: Any) -> list[str]:
    if not isinstance(kind, str) or not kind.strip() or kind in NOT_KINDS:
        raise ValueError(f"{kind!r} cannot be the name of a kind of visual context")
    if isinstance(strings, str):
        raise ValueError(f"the kind {kind!r} must be a list of strings, got one string: write [{strings!r}]")
    if not isinstance(strings, (list, tuple)):
        raise ValueError(f"the kind {kind!r} must be a list of strings, got {strings!r}")
    wrong = [string for string in strings if not isinstance(string, str)]
    if wrong:
        raise ValueError(f"the kind {kind!r} must be a list of strings, one of them is {wrong[0]!r}")
    return [text for text in (" ".join(string.split()) for string in strings) if text]


class Aligner(Protocol):
    """What turns images into strings of one kind. Any object with these three members is one.

    `identity` holds `model`, `revision` and `settings` (JSON values): all that decides about the strings, and nothing
    else, so that equal identities give equal strings for equal images.
    """

    @property
    def kind(self) -> str:
        """The kind of context that it makes."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """`{"model": …, "revision": …, "settings": {…}}`."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """For every RGB image its strings with scores in [0, 1], best or first one first."""
        ...


class VisualContextBuilder:
    """Images → visual contexts, by up to one aligner for each kind.

    An image that is missing, cannot be read or is blank gets an empty context, never a placeholder's description.

    Args:
        ocr: aligner of the kind `"ocr"`: `"rapidocr"`, `"easyocr"`, a dictionary `{"model": name, "settings": {…}}` as
            `to_dict` writes it, an object, or None.
        captioner: aligner of the kind `"captions"`, or None.
        object_tagger: aligner of the kind `"object_tags"`, or None.
        others: aligners of further kinds.
        max_pixels: an image with more pixels counts as unreadable.

    Attributes:
        aligners: the aligners in the order of their kinds: object tags, captions, OCR, others.
        counts: images seen since the builder was made: `images` in all, each of them one of `built` (its context
            holds text), `empty` (nothing found), `missing` (None), `unreadable` and `blank`.

    Raises:
        ValueError: a name is unknown, an aligner makes another kind than its place says, or two make the same.
    """

    def __init__(
        self,
        ocr: str | Mapping[str, Any] | Aligner | None = "rapidocr",
        captioner: Mapping[str, Any] | Aligner | None = None,
        object_tagger: Mapping[str, Any] | Aligner | None = None,
        others: Sequence[Mapping[str, Any] | Aligner] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.ocr = _aligner("ocr", ocr, OCR)
        self.captioner = _aligner("captioner", captioner, CAPTIONS)
        self.object_tagger = _aligner("object_tagger", object_tagger, OBJECT_TAGS)
        self.others = [_aligner("others", other) for other in others]
        self.max_pixels = max_pixels
        self.aligners = [a for a in (self.object_tagger, self.captioner, self.ocr, *self.others) if a is not None]
        kinds = [aligner.kind for aligner in self.aligners]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"two aligners make the same kind of context: {kinds}")
        self.counts = dict.fromkeys(("images", "built", "empty", "missing", "unreadable", "blank"), 0)

    def __call__(self, images: Sequence[ImageSource | None]) -> list[VisualContext]:
        """The context of every image of a batch; None is a missing image.

        Raises:
            ImportError: an aligner's package is not installed.
            ValueError: an image is given as a URL, or an aligner does not return one list for every image.
        """
        opened = [self._open(source) for source in images]
        readable = [image for image in opened if image is not None]
        strings: list[dict[str, list[str]]] = [{} for _ in readable]
        for aligner in self.aligners:
            found = aligner(readable)
            if len(found) != len(readable):
                raise ValueError(f"the aligner of {aligner.kind!r} gave {len(found)} lists for {len(readable)} images")
            for kinds, scored in zip(strings, found, strict=True):
                kinds[aligner.kind] = [text for text, _ in scored]
        rows = iter(strings)
        return [
            VisualContext() if source is None or image is None else self._context(next(rows), source)
            for source, image in zip(images, opened, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, for `from_dict`; of every aligner its model and settings."""
        return {
            "ocr": _recipe(self.ocr),
            "captioner": _recipe(self.captioner),
            "object_tagger": _recipe(self.object_tagger),
            "others": [_recipe(other) for other in self.others],
            "max_pixels": self.max_pixels,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], **aligners: Any) -> VisualContextBuilder:
        """The builder that `to_dict` described; `aligners` go before the saved ones (`captioner=…`, `ocr=None`).

        Raises:
            ValueError: a saved aligner is not one that can be made by its name.
        """
        return cls(**{**saved, **aligners})

    def _open(self, source: ImageSource | None) -> Image.Image | None:
        self.counts["images"] += 1
        if source is None:
            self.counts["missing"] += 1
            return None
        try:
            image = open_image(source, self.max_pixels)
        except UnreadableImage as error:
            self.counts["unreadable"] += 1
            logger.warning("no visual context: %s", error)
            return None
        if is_blank(image):
            self.counts["blank"] += 1
            logger.warning("no visual context: %s is blank", image_name(source))
            return None
        return image

    def _context(self, kinds: dict[str, list[str]], source: ImageSource) -> VisualContext:
        made = {"image_sha256": image_sha256(source), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        context = VisualContext(kinds, {aligner.kind: {**aligner.identity, **made} for aligner in self.aligners})
        self.counts["built" if context else "empty"] += 1
        return context


def _aligner(place: str, aligner: Any, kind: str | None = None) -> Any:
    if isinstance(aligner, str):
        aligner = {"model": aligner}
    if isinstance(aligner, Mapping):
        if place != "ocr":
            raise ValueError(
                f"an aligner cannot be made from the name {aligner.get('model')!r} here: pass the object ({place}=…)"
            )
        aligner = ocr_by_name(aligner["model"], **aligner.get("settings", {}))
    if aligner is not None and kind not in (None, aligner.kind):
        raise ValueError(
            f"{place}= takes an aligner of the kind {kind!r}, got one of {aligner.kind!r}: pass it in others="
        )
    return aligner


def _recipe(aligner: Aligner | None) -> dict[str, Any] | None:
    return None if aligner is None else {key: aligner.identity[key] for key in ("model", "settings")}
