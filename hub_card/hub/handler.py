"""Request handler for Inference Endpoints: posts in JSON, alone or with an image, a context or both; entities out.

It is part of the model's folder and needs only that folder, torch, transformers, and the packages that the model uses
to read images. A request is `{"inputs": …, "parameters": {…}}`. An input is one of

    "Phoenix tonight!"
    {"text": "Phoenix tonight!", "image": "<the file in base64, or a data: URI>"}
    {"text": "Phoenix tonight!", "context": {"captions": ["a skyline at night"], "ocr": ["SUNS"]}}
    {"text": "Phoenix tonight!", "image": "…", "context": {"object_tags": ["person", "sports ball"]}}
    {"text": "Phoenix tonight!", "image": ["…", "…"]}        a post with several images

or a list of these. A single input returns its result; a list returns the list of results in the same order. A result
is the pipeline's output: a list of `{"entity_group", "score", "word", "start", "end"}`, or with `return_context` an
object with `entities` and `context`. With the parameter `is_split_into_words` a post is a list of words; in an object
its key is `"words"`.

The model's aligners build the context of an image; those of several images follow one another, kind by kind. An
explicit context takes precedence. ITA uses only the context, so it ignores the image if a context is given. MGCMT
always uses the image itself, and takes the objects from the context; if it has no aligners, an image without a context
is used without objects. (An MGCMT without a vision encoder uses only the context, as ITA does.)

**Errors** are JSON too: `{"error": {"status": 422, "message": "…", "input": 3}}`. An error in one input replaces
that input's result and carries the input's index (from 0); the other inputs are still answered. An error in the whole
request has no `input` and is the whole response. Inference Endpoints turn every exception into HTTP 400, so errors are
returned in the body. If an input has several images, its error says which one is meant (`image 2 of 3: …`), and the
limits count them all. `status` has its HTTP meaning:

    400  the request, an input, a parameter or a context is malformed; an image is a URL or is not base64
    413  a limit below is exceeded. Some limits apply to all inputs of a request together: inputs are answered in order
         as long as they fit, and each of the others returns this error: send it in another request
    415  an image is not a JPEG, PNG, GIF, WebP, BMP or TIFF
    422  an image has one of these formats but cannot be read: it is damaged or truncated. The sender expects the image
         to be used, so this is an error rather than a silent result for the post alone; a blank image is not an error
    500  the server failed, or the model produced values that are not finite
    501  the model needs the context of an image and has no aligners that can run here: send a context

Nothing is downloaded, and no file is read except the model's own: images must be sent in the request. Posts, contexts
and images are never logged.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import logging
import os
import re
import reprlib
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from transformers import pipeline

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
IMAGES_AT_ONCE = 8  # on an accelerator; decoded images take some 15 MB each
MESSAGE = 500  # characters of an error at most: what was sent is not sent back
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 100
PARAMETERS = {
    "aggregation_strategy": ((str,), "a string"),
    "batch_size": ((int,), "an integer"),
    "ignore_labels": ((list, tuple), "a list of strings"),
    "is_split_into_words": ((bool,), "true or false"),
    "min_score": ((int, float), "a number"),
    "return_context": ((bool,), "true or false"),
}


class Limits(NamedTuple):
    """Upper limits of a request. The environment variable next to each limit overrides it."""

    inputs: int = 128  # ITA_MAX_INPUTS
    characters: int = 10_000  # ITA_MAX_CHARACTERS, of a post, and of its context as JSON
    words: int = 5_000  # ITA_MAX_WORDS, of a post that comes as words, empty ones included
    image_bytes: int = 10 * 2**20  # ITA_MAX_IMAGE_BYTES, of the file, before base64
    image_pixels: int = 25_000_000  # ITA_MAX_IMAGE_PIXELS, width × height; the model's own reader has a limit too
    # of all inputs together:
    total_characters: int = 200_000  # ITA_MAX_TOTAL_CHARACTERS, of posts and contexts; a word's end counts as one
    tokens: int = 16_384  # ITA_MAX_TOKENS, of the encoder's input; tokens in the overlap of two windows count twice
    images: int = 16  # ITA_MAX_IMAGES
    total_image_bytes: int = 32 * 2**20  # ITA_MAX_TOTAL_IMAGE_BYTES
    total_image_pixels: int = 64_000_000  # ITA_MAX_TOTAL_IMAGE_PIXELS
    image_seconds: int = 6  # ITA_MAX_IMAGE_SECONDS, spent on images; an image in progress is finished

    @classmethod
    def from_environment(cls) -> Limits:
        """The default limits, overridden by environment variables.

        Raises:
            ValueError: a variable is not a positive integer.
        """
        given = {name: os.environ.get(f"ITA_MAX_{name.upper()}") for name in cls._fields}
        for name, value in given.items():
            if value is not None and not re.fullmatch(r"0*[1-9][0-9]*", value):
                raise ValueError(f"ITA_MAX_{name.upper()} is {value!r} (expected a positive integer)")
        return cls(**{name: int(value) for name, value in given.items() if value is not None})


class _Refused(Exception):
    """A request, or one of its inputs, that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        message = re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", _without_halves(message))
        super().__init__(message if len(message) <= MESSAGE else f"{message[: MESSAGE - 2]} …")
        self.status = status

    def of_image(self, place: int, images: int) -> _Refused:
        """The same error, which says which image of the input it is about, if there are several."""
        return self if images == 1 else _Refused(self.status, f"image {place + 1} of {images}: {self}")

    def to_dict(self, **place: int) -> dict[str, Any]:
        return {"error": {"status": self.status, "message": str(self), **place}}


class _Spent:
    """How much of the shared limits the inputs of a request have used so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits._asdict()
        self._taken: Counter[str] = Counter()

    def take(self, **amounts: int) -> None:
        """Counts an input's amounts; refuses the input, and counts nothing, if a limit would be exceeded."""
        for name, amount in amounts.items():
            total, limit = self._taken[name] + amount, self._limits[name]
            if total > limit:
                what = f"{name.removeprefix('total_').replace('_', ' ')} (expected at most {limit:,})"
                if amount > limit:
                    raise _Refused(413, f"the input has {amount:,} {what}")
                raise _Refused(413, f"with this input the request has {total:,} {what}: send it in another request")
        self._taken.update(amounts)


class EndpointHandler:
    """Answers requests with the model in one folder; the module docstring describes requests and responses.

    Args:
        path: the model's folder. Default: the folder of this file.

    Attributes:
        pipe: the pipeline.
        limits: the size limits, from the environment.

    Raises:
        ValueError: an environment variable is not a valid limit.
        OSError: the folder holds no model.
    """

    def __init__(self, path: str = "") -> None:
        self.limits = Limits.from_environment()
        self.pipe: Any = pipeline(
            "token-classification",
            model=path or os.path.dirname(os.path.abspath(__file__)),
            trust_remote_code=True,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        self._sees_images = bool(self.pipe.model.sees_images)
        self._turn = threading.Lock()  # endpoints call from several threads, and the model is one

    def __call__(self, data: Mapping[str, Any]) -> Any:
        """The response to one request, as JSON values; see the module docstring."""
        try:
            inputs, parameters = self._request(data)
            split = parameters.get("is_split_into_words", False)
            is_list = isinstance(inputs, (list, tuple)) and not (split and inputs and isinstance(inputs[0], str))
            items: Sequence[Any] = inputs if is_list else [inputs]
            if len(items) > self.limits.inputs:
                raise _Refused(413, f"{len(items):,} inputs (expected at most {self.limits.inputs:,})")
            with self._turn:
                results = self._answer(items, split, parameters)
        except Exception as error:
            return _failure(error).to_dict()
        answers = [row.to_dict(input=n) if isinstance(row, _Refused) else row for n, row in enumerate(results)]
        return answers if is_list else answers[0]

    def _request(self, data: Any) -> tuple[Any, dict[str, Any]]:
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise _Refused(400, 'the request has no "inputs" (expected {"inputs": …, "parameters": {…}})')
        _check_keys("the request", data, ("inputs", "parameters"))
        parameters = {} if data.get("parameters") is None else data["parameters"]
        if not isinstance(parameters, Mapping):
            raise _Refused(400, '"parameters" is not an object')
        _check_keys('"parameters"', parameters, tuple(PARAMETERS))
        given = {name: value for name, value in parameters.items() if value is not None}
        for name, value in given.items():
            types, expected = PARAMETERS[name]
            is_right = isinstance(value, types) and (bool in types or not isinstance(value, bool))
            if not is_right or (name == "ignore_labels" and not _is_list_of_strings(value)):
                raise _Refused(400, f"the parameter {name!r} is not {expected}")
        for name, size in (
            ("batch_size", given.get("batch_size", 0)),
            ("ignore_labels", len(given.get("ignore_labels", ()))),
        ):
            if size > self.limits.inputs:
                raise _Refused(413, f"{name} is {_shown(size)} (expected at most {self.limits.inputs:,})")
        try:
            self.pipe([], **given)  # checks values without labelling anything
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        return data["inputs"], given

    def _answer(self, items: Sequence[Any], split: bool, parameters: dict[str, Any]) -> list[Any]:
        """The result of every input, or why there is none."""
        spent = _Spent(self.limits)
        results: list[Any] = [_attempt(self._read, item, split, spent) for item in items]
        self._look_at_images(results)
        posts = [n for n, post in enumerate(results) if not isinstance(post, _Refused)]
        counts = _each(lambda chosen: self.pipe.count_tokens(chosen, split), [results[n] for n in posts])
        for n, count in zip(posts, counts, strict=True):
            refused = count if isinstance(count, _Refused) else _attempt(lambda count=count: spent.take(tokens=count))
            results[n] = refused or results[n]
        posts = [n for n in posts if not isinstance(results[n], _Refused)]
        found = _each(lambda chosen: self.pipe(chosen, **parameters), [results[n] for n in posts])
        for n, result in zip(posts, found, strict=True):
            results[n] = _with_plain_context(result) if isinstance(result, dict) else result
        return results

    def _look_at_images(self, results: list[Any]) -> None:
        """Gives the posts that have an image and need its context that context, or says why there is none."""
        pictured = [n for n, post in enumerate(results) if not isinstance(post, _Refused) and "image" in post]
        images = {n: _listed(results[n]["image"]) for n in pictured}
        contexts: dict[int, list[Any]] = {n: [] for n in pictured if "context" not in results[n]}
        places = [(n, place) for n in pictured for place in range(len(images[n]))]
        at_once = 1 if self.pipe.device.type == "cpu" else IMAGES_AT_ONCE
        begin = _clocks()
        for start in range(0, len(places), at_once):
            chunk = places[start : start + at_once]
            is_late = min(now - then for now, then in zip(_clocks(), begin, strict=True)) > self.limits.image_seconds
            for n, place in chunk:
                if not isinstance(results[n], _Refused):
                    refused = self._too_late() if is_late else _attempt(self._check_pixels, images[n][place])
                    results[n] = refused.of_image(place, len(images[n])) if refused else results[n]
            chunk = [(n, place) for n, place in chunk if not isinstance(results[n], _Refused) and n in contexts]
            found = _each(self._see, [images[n][place] for n, place in chunk])
            for (n, place), context in zip(chunk, found, strict=True):
                if not isinstance(context, _Refused):
                    contexts[n].append(context)
                elif not isinstance(results[n], _Refused):
                    results[n] = context.of_image(place, len(images[n]))
        for n, each in contexts.items():
            if not isinstance(results[n], _Refused):
                results[n] = {**results[n], "context": each[0] if len(each) == 1 else _joined(each)}

    def _too_late(self) -> _Refused:
        limit = self.limits.image_seconds
        return _Refused(
            413, f"the images of this request took more than {limit:,} s: send this one in another request"
        )

    def _read(self, item: Any, split: bool, spent: _Spent) -> dict[str, Any]:
        """An input as the pipeline takes it, its image as the file's bytes."""
        key = "words" if split else "text"
        post = dict(item) if isinstance(item, Mapping) else {key: item}
        _check_keys("the input", post, (key, "image", "context"))
        content: Any = post.get(key)
        if not (_is_list_of_strings(content) if split else isinstance(content, str)):
            raise _Refused(400, f"the input has no {key!r} that is {'a list of strings' if split else 'a string'}")
        if split and len(content) > self.limits.words:
            raise _Refused(413, f"the post has {len(content):,} words (expected at most {self.limits.words:,})")
        characters = sum(map(len, content))
        self._check_characters("the post", characters)
        post[key] = [_without_halves(word) for word in content] if split else _without_halves(content)
        context, image = post.pop("context", None), post.pop("image", None)
        characters += len(content) * split
        if context is not None:
            if not isinstance(context, Mapping):
                raise _Refused(400, 'the context is not an object such as {"captions": ["a dog"]}')
            written = _as_json(context)
            self._check_characters("the context", len(written))
            characters += len(written)
            post["context"] = json.loads(written)
        images = _listed(image) if self._sees_images or context is None else []
        spent.take(total_characters=characters, images=len(images))
        if not images:
            return post
        files: list[bytes] = []
        size = pixels = 0
        for place, one in enumerate(images):
            try:
                file, area = self._image(one)
            except _Refused as refused:
                raise refused.of_image(place, len(images)) from None
            files.append(file)
            size, pixels = size + len(file), pixels + area
            if size > self.limits.total_image_bytes:
                break  # refused below; the others would only take memory
        spent.take(total_image_bytes=size, total_image_pixels=pixels)
        return {**post, "image": files if len(files) > 1 else files[0]}

    def _check_characters(self, name: str, characters: int) -> None:
        if characters > self.limits.characters:
            raise _Refused(413, f"{name} has {characters:,} characters (expected at most {self.limits.characters:,})")

    def _image(self, image: Any) -> tuple[bytes, int]:
        """The bytes of an image file and its number of pixels, after checking its size and format."""
        if not isinstance(image, str):
            raise _Refused(400, "the image is not a string (expected the file in base64)")
        encoded = image
        if image.startswith("data:"):
            head, _, encoded = image.partition(",")
            if not head.endswith(";base64"):
                raise _Refused(400, "the image is a data: URI without base64 (expected data:image/png;base64,…)")
        elif re.match(r"[a-zA-Z][\w+.-]*:", image):
            raise _Refused(400, "the image is a URL, and URLs are not downloaded: send the file itself, in base64")
        too_large = f"the image has more than {self.limits.image_bytes:,} bytes"
        if len(encoded) > self.limits.image_bytes * 3 // 2 + 4:  # with line breaks
            raise _Refused(413, too_large)
        try:
            content = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError):
            raise _Refused(400, "the image is not base64 (paths are not read: send the file itself)") from None
        if len(content) > self.limits.image_bytes:
            raise _Refused(413, too_large)
        return content, self._pixels(content)

    def _pixels(self, content: bytes) -> int:
        try:
            with Image.open(BytesIO(content), formats=FORMATS) as picture:
                width, height = picture.size
        except UnidentifiedImageError:
            raise _Refused(415, f"the image format is not supported (expected {', '.join(FORMATS)})") from None
        except Image.DecompressionBombError:
            raise _Refused(413, f"the image has more than {self.limits.image_pixels:,} pixels") from None
        except Exception as error:  # a damaged header raises whatever it likes
            raise _Refused(422, f"the image cannot be read: {error}") from None
        if width * height > self.limits.image_pixels:
            raise _Refused(
                413, f"the image has {width:,} × {height:,} pixels (expected at most {self.limits.image_pixels:,})"
            )
        return width * height

    def _check_pixels(self, content: bytes) -> None:
        """Refuses an image that the pipeline would leave out: what the reader that came with the model cannot open."""
        if not self._sees_images:
            return  # the aligners' builder says so
        reader = importlib.import_module(".image_file", type(self.pipe).__module__.rpartition(".")[0])
        try:
            reader.open_image(content)
        except reader.UnreadableImage as error:
            raise _Refused(422, f"the image cannot be read: {error.__cause__ or error}") from None

    def _see(self, images: list[bytes]) -> list[Any]:
        """The context of every image, or why there is none; None where the model looks and names no aligners."""
        try:
            builder = self.pipe.context_builder
        except ValueError as error:
            if self.pipe.processor.context_builder is not None:  # it names a way, and not one that may be taken
                raise _Refused(501, f'this model cannot read images: send a "context" instead ({error})') from None
            if self._sees_images:
                return [None] * len(images)
            raise _Refused(501, 'this model has no aligners to read images: send a "context" instead') from None
        examined = builder.align([builder.examine(image) for image in images])
        return [
            _Refused(422, f"the image cannot be read: {image.detail}")
            if image.state == "unreadable"
            else image.context(builder.aligners)
            for image in examined
        ]


def _clocks() -> tuple[float, float]:
    """Seconds by the clock and of the CPU; the fewer count, as a busy machine adds to one and threads to the other."""
    return time.monotonic(), time.process_time()


def _listed(image: Any) -> list[Any]:
    """The images of an input, given none, one or several."""
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]


def _joined(contexts: Sequence[Any]) -> Any:
    """The context of several images; None where the model looks and names no aligners."""
    made = [context for context in contexts if context is not None]
    return type(made[0]).joined(made) if made else None


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _check_keys(name: str, given: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise _Refused(
            400, f"{name} has the unknown key {_shown(unknown[0])} (expected {', '.join(map(repr, known))})"
        )


def _shown(value: Any) -> str:
    """A value as a message shows it, however large."""
    try:
        return f"{value:,}" if isinstance(value, int) else SHORT.repr(value)
    except ValueError:  # a number of thousands of digits
        return "too large a number"


def _without_halves(text: str) -> str:
    """A text without halves of surrogate pairs, as a cut emoji leaves in JSON: no answer could be sent with them."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", text)


def _as_json(context: Mapping[str, Any]) -> str:
    try:
        return _without_halves(json.dumps(context, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise _Refused(
            400, "the context holds a value that is not JSON, is nested too deeply, or holds NaN or infinity"
        ) from None


def _with_plain_context(result: dict[str, Any]) -> dict[str, Any]:
    """A result whose context was JSON within JSON, which may hold what JSON cannot."""
    context = result["context"]
    return {**result, "context": None if context is None else json.loads(_as_json(context))}


def _attempt(step: Callable[..., Any], *given: Any) -> Any:
    """What a step returns, or why it returns nothing."""
    try:
        return step(*given)
    except Exception as error:
        return _failure(error)


def _each(step: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    """A step over a batch; if that fails, over one after the other, so that one item does not cost the others."""
    try:
        return step(items)
    except Exception as error:
        if len(items) == 1:
            return [_failure(error)]
    return [result for item in items for result in _each(step, [item])]


def _failure(error: Exception) -> _Refused:
    if isinstance(error, _Refused):
        return error
    place, _, message = str(error).partition(": ")
    if isinstance(error, (TypeError, ValueError)) and place == "input 0":  # so the pipeline names what the caller did
        return _Refused(400, message)
    if isinstance(error, FloatingPointError):  # tells of the model, and nothing of the post
        logger.error("%s", error)
        return _Refused(500, message or str(error))
    # A message may quote the post. These two are of packages and files of the server, and tell what to install.
    message = f": {error}" if isinstance(error, (ImportError, OSError)) else ""
    logger.error("%s%s\n%s", type(error).__name__, message, "".join(traceback.format_tb(error.__traceback__)))
    return _Refused(500, f"the server failed ({type(error).__name__})")
