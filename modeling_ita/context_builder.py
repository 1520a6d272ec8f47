"""Builds visual contexts from images: runs the aligners and caches their output in a store."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image

from .aligner_settings import Recipe, check_settings, integer, read_recipe
from .aligners import Aligner, Scored, make_aligner, naming, saved_aligner, scored_strings
from .image_file import (
    MAX_PIXELS,
    ImageSource,
    UnreadableImage,
    image_name,
    image_sha256,
    in_threads,
    is_blank,
    open_image,
    plain_fingerprint,
    read_image_file,
)
from .plain_text import shown
from .visual_context import EXAMINATION, VisualContext, check_kind

logger = logging.getLogger(__name__)
NOT_ALIGNERS = ("store", "device", "max_pixels")  # the other arguments of a `VisualContextBuilder`
MAX_ALIGNERS = 20  # in a checkpoint
BUILDER_RULES = {"max_pixels": integer(1, 200_000_000)}


class Alignment(NamedTuple):
    """The output of one aligner for one image.

    Attributes:
        strings: the strings, ordered by confidence or position.
        scores: their scores in [0, 1].
        origin: `model`, `revision`, `settings` and `date` (UTC, ISO 8601).
    """

    strings: list[str]
    scores: list[float]
    origin: dict[str, Any]


class ContextStore(Protocol):
    """A store of alignments by image and aligner: any object with `look_up`, and with `add` if it is writable."""

    def look_up(self, image_sha256: str, kind: str, identity: Mapping[str, Any]) -> Alignment | None:
        """The alignment of this image by this aligner, or None. A revision of None matches any revision."""
        ...


@dataclass
class ExaminedImage:
    """An image that was opened, or that need not be because its contexts are in the store.

    Attributes:
        name: its name in messages.
        sha256: see `image_sha256`; empty if there is no file.
        state: `readable`, `missing`, `unreadable` or `blank`.
        detail: why it is unreadable; for a picture of mostly one colour, its fingerprint (`plain_fingerprint`).
        picture: the RGB picture, if an aligner still has to process it.
        alignments: its alignments so far, by kind.
        is_new: whether it was opened for the first time.
        is_read: whether an aligner has processed it just now, rather than everything being in the store.
    """

    name: str
    sha256: str = ""
    state: str = "missing"
    detail: str = ""
    picture: Image.Image | None = None
    alignments: dict[str, Alignment] = field(default_factory=dict)
    is_new: bool = False
    is_read: bool = False

    def context(self, kinds: Iterable[str]) -> VisualContext:
        """The visual context made of the alignments of these kinds."""
        known = {kind: self.alignments[kind] for kind in kinds if kind in self.alignments}
        return VisualContext(
            {kind: alignment.strings for kind, alignment in known.items()},
            {kind: {**alignment.origin, "image_sha256": self.sha256} for kind, alignment in known.items()},
        )


class VisualContextBuilder:
    """Builds visual contexts from images, with one aligner per kind.

    ```python
    VisualContextBuilder(captions="Salesforce/blip-image-captioning-base", ocr="rapidocr")
    VisualContextBuilder(captions={"model": "microsoft/git-base", "settings": {"num_captions": 1}}, mood=my_function)
    ```

    An image that is missing, unreadable or blank (see `is_blank`) gets an empty context, never the description of a
    placeholder. The two steps of a call can also be run separately: `examine` opens an image and may run in several
    threads; `align` runs the aligners on a batch.

    Args:
        store: checked before any aligner runs. New alignments are added if it has a method `add` and is not
            `read_only`.
        max_pixels: images with more pixels count as unreadable; at most 200 million.
        device: device for aligners that run a checkpoint, unless their settings name one. None: an accelerator if
            there is one.
        aligners: one aligner per kind: its name, `{"model": name, "revision": …, "settings": {…}}`, an object (see
            `Aligner`), a function (see `FunctionAligner`), or None. A name is a checkpoint, `module:name` of your own
            class or function, or for `ocr` an engine (see `ocr_by_name`).

    Attributes:
        aligners: the aligners by kind.
        counts: images since the builder was created: `images` in total, each of them one of `built` (an aligner ran
            on it), `stored` (everything was in the store), `missing`, `unreadable` and `blank`.

    Raises:
        ValueError: a name, key or setting is unknown, a setting is out of range, or an aligner is not any of these.
    """

    def __init__(
        self,
        /,
        *,
        store: ContextStore | None = None,
        max_pixels: int = MAX_PIXELS,
        device: Any = None,
        **aligners: str | Mapping[str, Any] | Aligner | Callable[..., Any] | None,
    ) -> None:
        VisualContext({kind: [] for kind in aligners})  # refuses invalid names of kinds
        check_settings({"max_pixels": max_pixels}, BUILDER_RULES)
        made = {kind: make_aligner(kind, aligner, device) for kind, aligner in aligners.items()}
        self.aligners: dict[str, Aligner] = {kind: aligner for kind, aligner in made.items() if aligner is not None}
        self.store = store
        self.max_pixels = max_pixels
        self.counts = dict.fromkeys(("images", "built", "stored", "missing", "unreadable", "blank"), 0)

    def __call__(self, images: Sequence[ImageSource | None]) -> list[VisualContext]:
        """Builds the context of every image of a batch; None is a missing image.

        Raises:
            ImportError: an aligner's package is not installed.
            OSError: an aligner's checkpoint cannot be loaded.
            ValueError: an image is given as a URL, or an aligner does not return one list per image.
        """
        return [image.context(self.aligners) for image in self.read(images)]

    def read(self, images: Sequence[ImageSource | None]) -> list[ExaminedImage]:
        """Examines and aligns a batch of images, like a call; warns of those that get no context.

        Raises:
            As in a call.
        """
        examined = self.align(self._examine_all(images))
        for source, image in zip(images, examined, strict=True):
            if source is not None and image.state != "readable":
                why = image.detail and f": {image.detail}"
                logger.warning("no visual context: %s is %s%s", image.name, image.state, why)
        return examined

    def examine(self, source: ImageSource | None) -> ExaminedImage:
        """Look the image up in the store, and open it if an aligner still has to process it.

        Raises:
            ValueError: the image is given as a URL.
            TypeError: the image is not a path, bytes or a PIL image.
        """
        if source is None:
            return ExaminedImage("no image")
        image = ExaminedImage(image_name(source))
        try:
            content = read_image_file(source) if isinstance(source, (str, os.PathLike)) else source
        except FileNotFoundError:
            return image
        except OSError as error:
            image.state, image.detail = "unreadable", str(error)
            return image
        if isinstance(content, Image.Image) and content.width * content.height > self.max_pixels:
            image.state, image.detail = "unreadable", f"more than max_pixels = {self.max_pixels:,} pixels"
            return image
        try:
            image.sha256 = image_sha256(content)
        except MemoryError:
            raise
        except Exception as error:  # PIL decodes an image only now, and may raise anything
            if not isinstance(content, Image.Image):
                raise
            image.state, image.detail = "unreadable", str(error)
            return image
        known = self._look_up(EXAMINATION, image.sha256)
        if known is not None:
            image.state, image.detail = known.strings[0], "".join(known.strings[1:])
            if image.state == "readable":
                self._recall(image)
        if known is None or (image.state == "readable" and self._waiting(image)):
            self._open(image, content)
            image.is_new = known is None
        return image

    def align(self, images: Sequence[ExaminedImage]) -> list[ExaminedImage]:
        """Run each aligner on the images that it has not processed yet, and add the alignments to the store.

        Releases the pictures.

        Raises:
            ImportError: an aligner's package is not installed.
            OSError: an aligner's checkpoint cannot be loaded.
            ValueError: an aligner does not return one list of strings per image.
        """
        verdicts = {image.sha256: [image.state, image.detail] for image in images if image.is_new}
        self._add(EXAMINATION, {sha256: [(text, 1.0) for text in verdict] for sha256, verdict in verdicts.items()})
        waiting = {image.sha256: image for image in images if image.picture is not None}
        for image in waiting.values():
            self._recall(image)  # another process may have added it meanwhile
        built = {image.sha256 for image in waiting.values() if self._waiting(image)}
        all_built = frozenset(built)
        for kind, aligner in self.aligners.items():
            unseen = [image for image in waiting.values() if kind not in image.alignments]
            if unseen:
                found = self._run(kind, aligner, unseen)
                alignments = self._add(kind, {image.sha256: row for image, row in zip(unseen, found, strict=True)})
                for image in unseen:
                    image.alignments[kind] = alignments[image.sha256]
        for image in images:
            if image.picture is not None:
                image.alignments = waiting[image.sha256].alignments
                image.picture = None
            self.counts["images"] += 1
            image.is_read = image.sha256 in all_built
            if image.state == "readable":
                self.counts["built" if image.sha256 in built else "stored"] += 1
                built.discard(image.sha256)
            else:
                self.counts[image.state] += 1
        return list(images)

    def stored(self, image_sha256: str) -> ExaminedImage | None:
        """The stored state and alignments of an image examined earlier, or None if the store has none."""
        known = self._look_up(EXAMINATION, image_sha256)
        if known is None:
            return None
        image = ExaminedImage(image_sha256, image_sha256, known.strings[0], "".join(known.strings[1:]))
        self._recall(image)
        return image

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, for `from_dict`: each aligner's model, revision and settings, by kind."""
        recipes = {}
        for kind, aligner in self.aligners.items():
            recipe = getattr(aligner, "recipe", self.identities[kind])
            recipes[kind] = {key: recipe[key] for key in ("model", "revision", "settings")}
        return {**recipes, "max_pixels": self.max_pixels}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], /, **settings: Any) -> VisualContextBuilder:
        """Rebuilds the builder that `to_dict` saved; `settings` take precedence (`store=…`, `captions=None`).

        The saved settings may be untrusted. They can therefore hold only what `to_dict` writes: a model, its revision,
        and the settings that affect the strings, each within its range.

        Raises:
            ValueError: a saved aligner is custom code (a checkpoint must not cause an import), or one of its settings
                is unknown, never saved or out of range.
            OSError: the checkpoint of an OCR aligner can be neither found nor downloaded.
        """
        device = settings.get("device")
        made: dict[str, Any] = {
            kind: None if kind in settings else saved_aligner(kind, recipe, device)
            for kind, recipe in check_recipes(saved).items()
        }
        if "max_pixels" in saved:
            made["max_pixels"] = saved["max_pixels"]
        return cls(**{**made, **settings})

    @cached_property
    def identities(self) -> dict[str, dict[str, Any]]:
        """The identity of each aligner by kind; under `EXAMINATION`, the settings that decide what is readable."""
        examination = {"model": "examination", "revision": "1", "settings": {"max_pixels": self.max_pixels}}
        return {EXAMINATION: examination, **{kind: aligner.identity for kind, aligner in self.aligners.items()}}

    def _examine_all(self, images: Sequence[ImageSource | None]) -> list[ExaminedImage]:
        """Examine files in as many threads as torch uses; PIL images may share a file, and are examined one by one."""
        files = [n for n, source in enumerate(images) if source is not None and not isinstance(source, Image.Image)]
        examined = dict(
            zip(files, in_threads(self.examine, [images[n] for n in files], torch.get_num_threads()), strict=True)
        )
        return [examined[n] if n in examined else self.examine(source) for n, source in enumerate(images)]

    def _open(self, image: ExaminedImage, content: ImageSource) -> None:
        try:
            picture = open_image(content, self.max_pixels)
        except UnreadableImage as error:
            # The same bytes may have many names, so the stored reason omits the name.
            image.state, image.detail = "unreadable", str(error.__cause__ or error)
            return
        if is_blank(picture):
            image.state = "blank"
            return
        image.state, image.detail, image.picture = "readable", plain_fingerprint(picture) or "", picture

    def _run(self, kind: str, aligner: Aligner, images: Sequence[ExaminedImage]) -> list[Scored]:
        try:
            found = aligner([image.picture for image in images if image.picture is not None])
        except Exception as error:
            error.add_note(f"while the aligner of {kind!r} looked at {', '.join(image.name for image in images)}")
            raise
        if not isinstance(found, (list, tuple)) or len(found) != len(images):
            number = len(found) if isinstance(found, (list, tuple)) else repr(found)
            raise ValueError(f"the aligner of {kind!r} gave {number} lists for {len(images)} images")
        return [scored_strings(kind, row) for row in found]

    def _waiting(self, image: ExaminedImage) -> bool:
        return not self.aligners.keys() <= image.alignments.keys()

    def _recall(self, image: ExaminedImage) -> None:
        for kind in self.aligners.keys() - image.alignments.keys():
            found = self._look_up(kind, image.sha256)
            if found is not None:
                image.alignments[kind] = found

    def _look_up(self, kind: str, image_sha256: str) -> Alignment | None:
        if self.store is None:
            return None
        found = self.store.look_up(image_sha256, kind, self.identities[kind])
        return None if found is None else Alignment(*found)

    def _add(self, kind: str, found: Mapping[str, Scored]) -> dict[str, Alignment]:
        origin = {**self.identities[kind], "date": datetime.now(UTC).isoformat(timespec="seconds")}
        rows = {key: Alignment([text for text, _ in row], [s for _, s in row], origin) for key, row in found.items()}
        if rows and hasattr(self.store, "add") and not getattr(self.store, "read_only", False):
            self.store.add(kind, rows)  # type: ignore[union-attr]
        return rows


def check_recipes(saved: Any) -> dict[str, Recipe]:
    """Reads the recipes that `VisualContextBuilder.to_dict` saved, by kind. Checks only the form; loads nothing.

    Raises:
        ValueError: this is not a dictionary of recipes by kind, `max_pixels` is out of range, or there are too many
            kinds.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"context_builder is {shown(saved)} (expected {{kind: {{'model': name, …}}, …}})")
    recipes = {}
    for kind, recipe in saved.items():
        if kind == "max_pixels":
            check_settings({"max_pixels": recipe}, BUILDER_RULES)
            continue
        if kind in NOT_ALIGNERS:
            raise ValueError(f"{kind!r} is not a kind of context, nor a setting that a checkpoint can hold")
        with naming(check_kind(kind)):
            recipes[kind] = read_recipe(recipe)
    if len(recipes) > MAX_ALIGNERS:
        raise ValueError(f"context_builder names {len(recipes):,} aligners (expected at most {MAX_ALIGNERS})")
    return recipes
