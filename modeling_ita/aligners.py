"""Aligners, which turn images into strings: what one is, and how it is had by name, by function or by profile."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import logging
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, Protocol, TypeAlias

from PIL import Image

from .captioner import Captioner
from .object_tagger import ObjectTagger
from .ocr import EasyOcr, RapidOcr, Tesseract
from .ocr_transformers import Florence2Ocr, PpOcr, ocr_from_checkpoint
from .pretrained import PretrainedAligner

logger = logging.getLogger(__name__)

OBJECT_TAGS, CAPTIONS, OCR = "object_tags", "captions", "ocr"
PACKAGES: dict[str, type[RapidOcr] | type[EasyOcr] | type[Tesseract]] = {
    engine.name: engine for engine in (RapidOcr, EasyOcr, Tesseract)
}
CHECKPOINTS: dict[str, type[PpOcr] | type[Florence2Ocr]] = {"pp-ocr": PpOcr, "florence2": Florence2Ocr}
OCR_NAMES = (*PACKAGES, *CHECKPOINTS)
_RECIPE_KEYS = {"model", "revision", "settings"}
OWN_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # module:name

PROFILES: dict[str, dict[str, Any]] = {
    # A few seconds an image on two cores.
    "cpu": {
        "object_tags": {"model": "PekingU/rtdetr_v2_r18vd"},
        "captions": {"model": "Salesforce/blip-image-captioning-base"},
        "ocr": {"model": "rapidocr"},
    },
    # Objects of 365 classes with their attributes, five captions, as ITA has them.
    "gpu": {
        "object_tags": {
            "model": "ustc-community/dfine-xlarge-obj365",
            "settings": {"attributes": {"model": "openai/clip-vit-large-patch14"}},
        },
        "captions": {"model": "Salesforce/blip-image-captioning-large", "settings": {"dtype": "float16"}},
        "ocr": {"model": "easyocr"},
    },
    # One model reads all three.
    "florence2": {
        "object_tags": {
            "model": "florence-community/Florence-2-base",
            "settings": {"task": "<DENSE_REGION_CAPTION>"},
        },
        "captions": {"model": "florence-community/Florence-2-base"},
        "ocr": {"model": "florence2"},
    },
}
"""Sets of aligners that go together, by kind, as `VisualContextBuilder` takes them."""

Scored: TypeAlias = list[tuple[str, float]]


class Aligner(Protocol):
    """What turns images into strings. Any object with these two members is one; its place names the kind it makes.

    `identity` holds `model`, `revision` and `settings` (JSON values): all that decides about the strings, and nothing
    else, so that equal identities give equal strings for equal images.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """`{"model": …, "revision": …, "settings": {…}}`."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """For every RGB image its strings with scores in [0, 1], best or first one first."""
        ...


class FunctionAligner:
    """A function from a list of RGB images to the strings of each, as an aligner.

    For an image the function gives a list of strings or of `(string, score)`, one string, or None.

    A plain function's source stands for the revision: a changed function is another aligner. What else its strings
    may depend on (closures, partial functions, objects that can be called) is nowhere written down, so such a one has
    a new revision every time, and nothing that it said before is taken from a store; give it an `identity` to change
    that.

    Args:
        function: the function.
        settings: keyword arguments with which it is called.
    """

    def __init__(self, function: Callable[..., Any], settings: Mapping[str, Any] | None = None) -> None:
        self.function = function
        self.settings = dict(settings or {})
        self.revision = uuid.uuid4().hex
        if inspect.isfunction(function) and not function.__closure__:
            with suppress(OSError, TypeError):  # typed at a prompt
                self.revision = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """`module:function`, its revision and the settings."""
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        model = f"{named.__module__}:{named.__qualname__}"
        return {"model": model, "revision": self.revision, "settings": self.settings}

    def __call__(self, images: Sequence[Image.Image]) -> Any:
        """What the function gives for the images."""
        return self.function(images, **self.settings)


def make_aligner(kind: str, aligner: Any, device: Any = None) -> Any:
    """The aligner of a kind, from all that `VisualContextBuilder` takes.

    Raises:
        ValueError: the name, a key or a setting is unknown.
        ImportError: a module of the user's own cannot be imported, or lacks the name.
    """
    if isinstance(aligner, str):
        aligner = {"model": aligner}
    if isinstance(aligner, Mapping):
        if not isinstance(aligner.get("model"), str) or not aligner.keys() <= _RECIPE_KEYS:
            raise ValueError(
                f"{kind}: an aligner is {{'model': name, 'revision': …, 'settings': {{…}}}}, got {dict(aligner)!r}"
            )
        try:
            return _checked(kind, _named_aligner(kind, device, **aligner))
        except (TypeError, RuntimeError) as error:  # an unknown setting, an unknown device
            raise ValueError(f"{kind}: {error}") from error
    if aligner is None:
        return None
    if callable(aligner):
        return _checked(kind, aligner if hasattr(aligner, "identity") else FunctionAligner(aligner))
    raise ValueError(f"{kind}: an aligner is a name, a dictionary, an object or a function, got {aligner!r}")


def _checked(kind: str, aligner: Any) -> Any:
    """The aligner, if its identity can be a key. Those on checkpoints are not asked, which may need the network."""
    if not isinstance(aligner, PretrainedAligner):
        identity = aligner.identity
        if not isinstance(identity, Mapping) or not identity.keys() >= _RECIPE_KEYS:
            raise ValueError(f"{kind}: an aligner's identity holds model, revision and settings, got {identity!r}")
        try:
            json.dumps(dict(identity))
        except TypeError as error:
            raise ValueError(f"{kind}: an aligner's identity holds JSON values: {error}") from error
    return aligner


def _named_aligner(
    kind: str, device: Any, model: str, revision: str | None = None, settings: Mapping[str, Any] | None = None
) -> Any:
    settings = dict(settings or {})
    if OWN_CODE.fullmatch(model):
        module, _, name = model.partition(":")
        try:
            own = attrgetter(name)(importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise ImportError(f"{kind}: {model} cannot be had ({error}): is its folder on PYTHONPATH?") from error
        if isinstance(own, type):
            own = own(**settings)
        return own if hasattr(own, "identity") else FunctionAligner(own, settings)
    if kind == OCR and model in PACKAGES:
        return ocr_by_name(model, revision, **settings)
    make = ocr_by_name if kind == OCR else ObjectTagger if kind == OBJECT_TAGS else Captioner
    return make(model, revision, **{"device": device, **settings})


def ocr_by_name(
    name: str, revision: str | None = None, **settings: Any
) -> RapidOcr | EasyOcr | Tesseract | PpOcr | Florence2Ocr:
    """The OCR aligner of this name with its own settings; an aligner's `identity` holds all that it takes.

    Args:
        name: an engine, one of `OCR_NAMES`; or a checkpoint of PP-OCR's recogniser or of Florence-2, as a repository
            `"owner/name"` or a folder. The engines `"pp-ocr"` and `"florence2"` take it as the setting `model`.
        revision: of a checkpoint, its branch, tag or commit. Of a package, the version that made earlier strings: if
            another one is installed, a warning says so.
        settings: the keyword arguments of the aligner.

    Raises:
        ValueError: the name is neither an engine's nor that of a checkpoint that reads text.
        OSError: the checkpoint's configuration cannot be read.
    """
    if name in CHECKPOINTS:
        return CHECKPOINTS[name](revision=revision, **settings)
    if name in PACKAGES:
        engine = PACKAGES[name](**settings)
        installed = engine.identity["revision"] if revision else None
        if installed != revision:
            logger.warning("%s: version %s was asked for, %s is installed", name, revision, installed)
        return engine
    try:
        return ocr_from_checkpoint(name, revision, **settings)
    except ValueError as error:
        raise ValueError(
            f"unknown OCR {name!r} (expected {', '.join(map(repr, OCR_NAMES))}, a checkpoint, or an aligner object): "
            f"{error}"
        ) from error


def scored_strings(kind: str, row: Any) -> Scored:
    """What an aligner gave for an image, as strings with scores: white space folded, empty strings dropped.

    Raises:
        ValueError: it holds anything but strings, or strings with scores.
    """
    row = [] if row is None else [row] if isinstance(row, str) else row
    if not isinstance(row, (list, tuple)):
        raise ValueError(f"the aligner of {kind!r} gave {row!r} for an image (expected a list)")
    scored = []
    for item in row:
        pair = (item, 1.0) if isinstance(item, str) else item
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"the aligner of {kind!r} gave {item!r} (expected strings, or (string, score) pairs)")
        text, score = pair
        # Half a surrogate pair, as a cut emoji leaves in JSON, is no character and could not be written.
        text = " ".join(text.encode("utf-8", "replace").decode().split())
        if text:
            scored.append((text, float(score)))
    return scored
