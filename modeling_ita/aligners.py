"""The aligner protocol, aligners by name, and profiles of aligners that work well together."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any, Protocol, TypeAlias

from PIL import Image

from .aligner_settings import REVISION, Recipe, check_names, check_settings, read_recipe
from .captioner import Captioner
from .object_tagger import ObjectTagger
from .ocr import EasyOcr, OcrEngine, RapidOcr, Tesseract
from .ocr_checkpoints import Florence2Ocr, PpOcr, checkpoint_ocr
from .plain_text import shown
from .pretrained_aligner import PretrainedAligner
from .visual_context import OBJECT_TAGS, OCR

logger = logging.getLogger(__name__)

MAX_STRING = 10_000  # characters
ROUNDING = 0.01  # tolerance for scores outside [0, 1], which half precision produces
PACKAGES: dict[str, type[RapidOcr] | type[EasyOcr] | type[Tesseract]] = {
    engine.name: engine for engine in (RapidOcr, EasyOcr, Tesseract)
}
CHECKPOINTS: dict[str, type[PpOcr] | type[Florence2Ocr]] = {"pp-ocr": PpOcr, "florence2": Florence2Ocr}
OCR_NAMES = (*PACKAGES, *CHECKPOINTS)
_RECIPE_KEYS = {*Recipe._fields}
OWN_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # module:name

PROFILES: dict[str, dict[str, Any]] = {
    # A few seconds per image on two cores.
    "cpu": {
        "object_tags": {"model": "PekingU/rtdetr_v2_r18vd"},
        "captions": {"model": "Salesforce/blip-image-captioning-base"},
        "ocr": {"model": "rapidocr"},
    },
    # Objects of 365 classes with attributes, and five captions, as in ITA.
    "gpu": {
        "object_tags": {
            "model": "ustc-community/dfine-xlarge-obj365",
            "settings": {"attributes": {"model": "openai/clip-vit-large-patch14"}},
        },
        "captions": {"model": "Salesforce/blip-image-captioning-large", "settings": {"dtype": "float16"}},
        "ocr": {"model": "easyocr"},
    },
    # One model for all three kinds.
    "florence2": {
        "object_tags": {
            "model": "florence-community/Florence-2-base",
            "settings": {"task": "<DENSE_REGION_CAPTION>"},
        },
        "captions": {"model": "florence-community/Florence-2-base"},
        "ocr": {"model": "florence2"},
    },
}
"""Named sets of aligners, by kind, in the form that `VisualContextBuilder` takes."""

Scored: TypeAlias = list[tuple[str, float]]


class Aligner(Protocol):
    """Turns images into strings. Any object with these two members is an aligner; its keyword names the kind.

    `identity` holds `model`, `revision` and `settings` (JSON values): everything that affects the strings, and nothing
    else. Aligners with equal identities must return equal strings for equal images.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """`{"model": …, "revision": …, "settings": {…}}`."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """For each RGB image, its strings with scores in [0, 1], ordered by confidence or position."""
        ...


class FunctionAligner:
    """An aligner made from a function that takes a list of RGB images.

    For each image, the function returns a list of strings or of `(string, score)` pairs, one string, or None.

    The revision of a plain function is a hash of its source: if the function changes, it is another aligner. Closures,
    partial functions and callable objects depend on state that the source does not show. They get a new revision every
    time, so their earlier strings are never read from a store. Give them an `identity` to change that.

    Args:
        function: the function.
        settings: keyword arguments passed to it.
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
        """Calls the function on the images."""
        return self.function(images, **self.settings)


def make_aligner(kind: str, aligner: Any, device: Any = None) -> Any:
    """Creates the aligner of a kind from any form that `VisualContextBuilder` takes.

    Raises:
        ValueError: the name, a key or a setting is unknown, or a setting is out of range.
        ImportError: a custom module cannot be imported, or does not define the name.
    """
    if aligner is None:
        return None
    with naming(kind):
        if isinstance(aligner, (str, Mapping)):
            recipe = read_recipe(aligner)
            if OWN_CODE.fullmatch(recipe.model):
                return _checked(_own_aligner(recipe))
            made_by = _aligner_class(kind, recipe)
            names = [*made_by.rules, *made_by.local, *(["model"] if CHECKPOINTS.get(recipe.model) is made_by else [])]
            check_names(made_by.__name__, recipe.settings, names)
            return _checked(_instance(made_by, recipe, device))
        if callable(aligner):
            return _checked(aligner if hasattr(aligner, "identity") else FunctionAligner(aligner))
        raise ValueError(f"an aligner is a name, a dictionary, an object or a function, got {shown(aligner)}")


def saved_aligner(kind: str, recipe: Recipe, device: Any) -> Any:
    """Creates an aligner that a checkpoint names. The checkpoint may be untrusted, so only saved settings are allowed.

    Raises:
        ValueError: the aligner is custom code, or one of its settings is unknown, never saved or out of range.
        OSError: the checkpoint of an OCR aligner can be neither found nor downloaded.
    """
    model = recipe.model
    if OWN_CODE.fullmatch(model):
        raise ValueError(
            f"the contexts of the kind {kind!r} were made by {model}, which is custom code: use "
            f"VisualContextBuilder.from_dict(…, {kind}={model!r}) if you have it and trust it, otherwise "
            f"{kind}=None; assign the builder to pipe.context_builder to use it in a pipeline"
        )
    with naming(kind):
        made_by = _aligner_class(kind, recipe)
        for name in recipe.settings:
            if name not in made_by.rules:
                raise ValueError(
                    f"a checkpoint cannot give the setting {shown(name)} of {made_by.__name__} (it may give "
                    f"{', '.join(made_by.rules)}): if you want it, use VisualContextBuilder.from_dict(…, "
                    f"{kind}={made_by.__name__}(…))"
                )
        return _checked(_instance(made_by, recipe, device))


@contextmanager
def naming(kind: str) -> Iterator[None]:
    """Prefixes errors about an aligner with its kind."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{kind}: {error}") from error
    except (ValueError, TypeError, RuntimeError) as error:  # a setting; own code that does not take it; a device
        raise ValueError(f"{kind}: {error}") from error


def _checked(aligner: Any) -> Any:
    """Returns the aligner if its identity is valid. Skips checkpoints, whose identity may need the network."""
    if not isinstance(aligner, PretrainedAligner):
        identity = aligner.identity
        if not isinstance(identity, Mapping) or not identity.keys() >= _RECIPE_KEYS:
            raise ValueError(f"an aligner's identity must hold model, revision and settings, got {identity!r}")
        try:
            json.dumps(dict(identity))
        except TypeError as error:
            raise ValueError(f"an aligner's identity must hold JSON values: {error}") from error
    return aligner


def _own_aligner(recipe: Recipe) -> Any:
    module, _, name = recipe.model.partition(":")
    try:
        own = attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{recipe.model} cannot be imported ({error}): is its folder on PYTHONPATH?") from error
    if isinstance(own, type):
        own = own(**recipe.settings)
    return own if hasattr(own, "identity") else FunctionAligner(own, recipe.settings)


def _aligner_class(kind: str, recipe: Recipe) -> type[OcrEngine] | type[PretrainedAligner]:
    if kind == OCR:
        return _ocr_class(recipe.model, recipe.revision)
    return ObjectTagger if kind == OBJECT_TAGS else Captioner


def _instance(made_by: type[OcrEngine] | type[PretrainedAligner], recipe: Recipe, device: Any = None) -> Any:
    model, revision, settings = recipe
    if not issubclass(made_by, OcrEngine):
        named = {} if CHECKPOINTS.get(model) is made_by else {"model": model}
        return made_by(**{"device": device, **named, "revision": revision, **settings})
    check_settings({"revision": revision}, {"revision": REVISION.or_none()})
    engine = made_by(**settings)
    installed = engine.identity["revision"] if revision else None
    if installed != revision:
        logger.warning("%s: version %s was requested, but %s is installed", model, revision, installed)
    return engine


def _ocr_class(name: str, revision: str | None) -> type[OcrEngine] | type[PpOcr] | type[Florence2Ocr]:
    if name in OCR_NAMES:
        return {**PACKAGES, **CHECKPOINTS}[name]
    try:
        return checkpoint_ocr(name, revision)
    except ValueError as error:
        raise ValueError(
            f"unknown OCR {shown(name)} (expected {', '.join(map(repr, OCR_NAMES))}, a checkpoint, or an aligner "
            f"object): {error}"
        ) from error


def ocr_by_name(name: str, revision: str | None = None, **settings: Any) -> Any:
    """Creates an OCR aligner by name. The three fields of an aligner's `identity` are valid arguments.

    Args:
        name: an engine, one of `OCR_NAMES`; or a checkpoint of PP-OCR's recogniser or of Florence-2, as a repository
            `"owner/name"` or a folder. The engines `"pp-ocr"` and `"florence2"` take the checkpoint as their setting
            `model`.
        revision: for a checkpoint, its branch, tag or commit. For a package, the version that made earlier strings; a
            warning is logged if another version is installed.
        settings: keyword arguments of the aligner.

    Returns:
        A `RapidOcr`, `EasyOcr`, `Tesseract`, `PpOcr` or `Florence2Ocr`.

    Raises:
        ValueError: the name is neither an engine nor a checkpoint for OCR.
        OSError: the checkpoint's configuration cannot be read.
    """
    return _instance(_ocr_class(name, revision), Recipe(name, revision, settings))


def scored_strings(kind: str, row: Any) -> Scored:
    """Normalises an aligner's output for one image to strings with scores.

    Collapses white space, drops empty strings, and truncates strings to `MAX_STRING` characters with a warning.

    Raises:
        ValueError: an item is neither a string nor a `(string, score)` pair, or a score is not in [0, 1].
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
        # Half a surrogate pair, which a truncated emoji leaves in JSON, could not be written.
        text = " ".join(text.encode("utf-8", "replace").decode().split())
        if len(text) > MAX_STRING:
            logger.warning("the aligner of %r gave %s characters, cut at %s", kind, len(text), MAX_STRING)
            text = text[:MAX_STRING].rstrip()
        if text:
            scored.append((text, _share(kind, score)))
    return scored


def _share(kind: str, score: Any) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        share = float(score)
        if -ROUNDING <= share <= 1 + ROUNDING:  # NaN is not
            return min(1.0, max(0.0, share))
    raise ValueError(f"the aligner of {kind!r} gave the score {shown(score)} (expected a number from 0 to 1)")
