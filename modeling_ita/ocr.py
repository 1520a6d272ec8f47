"""Optical character recognition: lines of text, their reading order, and the OCR packages that read them."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from zipfile import BadZipFile

import torch
from PIL import Image

from .aligner_settings import FLAG, MAX_PATH, SHARE, Setting, check_settings, integer, text, texts
from .image_file import in_threads

MAX_RATIO = 8
MAX_LINES = 100  # RapidOCR reads at most so many, 25 ms each on one core; more would not fit into a post's context
WIDTH_STEP = 32  # pixels; widths of lines are rounded up to multiples of it
SURE = 0.8  # a narrow line that is read with less confidence is read a second time
PIXELS_AT_ONCE = 3_500_000  # in RapidOCR's detector, which takes about 250 bytes a pixel

logger = logging.getLogger(__name__)


class TextLine(NamedTuple):
    """A line of text that an OCR engine found: text, confidence in [0, 1], and its box in pixels."""

    text: str
    score: float
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def between(cls, text: str, score: float, corners: Iterable[Sequence[float]]) -> TextLine:
        """A line whose box is the axis-aligned bounding box of some corners, each `(x, y)`."""
        xs, ys = zip(*((float(x), float(y)) for x, y in corners), strict=True)
        return cls(text, float(score), min(xs), min(ys), max(xs), max(ys))


def reading_order(lines: Sequence[TextLine]) -> list[TextLine]:
    """Sorts lines from top to bottom, and from left to right within a row.

    Two lines share a row if the vertical distance of their centers is less than half the height of the smaller one.
    """
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=lambda line: line.top + line.bottom):
        if rows and _same_row(rows[-1][0], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.left)]


def _same_row(first: TextLine, second: TextLine) -> bool:
    middles = abs(first.top + first.bottom - second.top - second.bottom) / 2
    return middles < min(first.bottom - first.top, second.bottom - second.top) / 2


def strings_in_order(lines: Sequence[TextLine], min_score: float) -> list[tuple[str, float]]:
    """The output of an OCR aligner for one image: non-empty lines with at least `min_score`, in reading order."""
    lines = [line for line in lines if line.text.strip() and line.score >= min_score]
    return [(line.text.strip(), line.score) for line in reading_order(lines)]


def without_strip(image: Image.Image) -> Image.Image:
    """The image itself, or padded with black if one side is more than 8 times the other.

    Detectors scale images by the shorter side: a strip of 8 × 1280 pixels would take half a minute.
    """
    size = (max(image.width, image.height // MAX_RATIO), max(image.height, image.width // MAX_RATIO))
    if size == image.size:
        return image
    board = Image.new("RGB", size)
    board.paste(image)
    return board


class OcrEngine:
    """Base class of the OCR aligners that use a package. The engine is loaded at the first image.

    Subclasses define `name`, `install` and `rules`, and implement how the engine is loaded and called.

    Args:
        settings: the subclass's settings; each becomes an attribute.

    Attributes:
        rules: by name, the allowed values of settings that affect the lines. Checkpoints save and may set these.
        local: by name, the allowed values of settings that depend on the machine. Checkpoints never set these.

    Raises:
        ValueError: a setting violates `rules`.
    """

    name: str
    install: str
    rules: Mapping[str, Setting]
    local: Mapping[str, Setting] = {}
    min_score: float

    def __init__(self, **settings: Any) -> None:
        check_settings(settings, {**self.rules, **self.local})
        vars(self).update(settings)
        self._engine: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect the lines. Excludes those that only affect the speed."""
        return {name: getattr(self, name) for name in self.rules}

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version (None if the engine is not installed) and settings."""
        return {"model": self.name, "revision": self._version(), "settings": self.settings}

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """Returns the lines of text of every RGB image with their confidence, in reading order.

        Raises:
            ImportError: the engine's package is not installed; the message gives the command that installs it.
        """
        if self._engine is None:
            self._engine = self._load()
        return self._read(images)

    def __getstate__(self) -> dict[str, Any]:
        """The settings without the engine, which can be neither pickled nor copied. It is reloaded when needed."""
        return {**self.__dict__, "_engine": None}

    def _read(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        return [strings_in_order(self._find(without_strip(image)), self.min_score) for image in images]

    def _version(self) -> str | None:
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def _load(self) -> Any:
        raise NotImplementedError

    def _find(self, image: Image.Image) -> list[TextLine]:
        raise NotImplementedError

    def _import(self, package: str) -> Any:
        try:
            return importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"reading the text in images with {self.name} needs: {self.install} ({error})"
            ) from error


class RapidOcr(OcrEngine):
    """OCR by RapidOCR: PP-OCR's detector and recogniser in onnxruntime, with the weights inside the wheel.

    Every line is read by itself, in its own width. Its text therefore depends neither on the other lines and images
    of a call nor on the number of threads.

    Args:
        min_score: minimum confidence, in [0, 1], of a line.
        min_side: images whose shorter side has fewer pixels are enlarged to this for the detector. Larger values find
            smaller letters in small images; run time grows quadratically.
        max_side: images whose longer side has more pixels are reduced to this.
        threads: how many images, and then lines, are processed at a time, each on one core. Default: as many as torch
            uses (`torch.set_num_threads`, `OMP_NUM_THREADS`).
    """

    name = "rapidocr"
    install = 'pip install "rapidocr" onnxruntime'
    # At the upper limits the worst image takes about 3 GB and 20 seconds on one core.
    rules = {"min_score": SHARE, "min_side": integer(1, 1280), "max_side": integer(1, 4096)}
    local = {"threads": integer(1, 256).or_none()}
    min_side: int
    max_side: int
    threads: int | None

    def __init__(
        self, min_score: float = 0.6, min_side: int = 320, max_side: int = 1280, threads: int | None = None
    ) -> None:
        super().__init__(min_score=min_score, min_side=min_side, max_side=max_side, threads=threads)

    def _load(self) -> Any:
        self._import("onnxruntime")
        engine = self._import("rapidocr").RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.max_side_len": self.max_side,
                "Global.use_rec": False,  # `_recognize` does it
                "Det.limit_type": "min",
                "Det.limit_side_len": self.min_side,
                # Sessions without threads of their own may be called by several threads, and outlive a fork.
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                # Without the arena, the system hands out and takes back the memory of every layer: a quarter slower.
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
            }
        )
        detect = engine.detect_and_crop
        engine.detect_and_crop = lambda image, record: _largest(*detect(image, record))
        numpy = self._import("numpy")
        black = numpy.zeros((64, 64, 3), "uint8")
        engine.run_ocr_steps(black, {})  # loads the detector
        engine.recognize_txt([black])  # loads the recogniser
        # As lists they would become doubles, and so would the pixels.
        engine.text_det.mean, engine.text_det.std = (
            numpy.float32(value) for value in (engine.text_det.mean, engine.text_det.std)
        )
        return engine

    def _read(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        threads = self.threads or torch.get_num_threads()
        images = [without_strip(image) for image in images]
        at_once = int(PIXELS_AT_ONCE // max(map(self._pixels, images), default=1))
        found = in_threads(self._detect, images, max(1, min(threads, at_once)), self._pixels)
        pieces = [piece for image in found for piece, _ in image]
        # Lines of all images together: one page of text among photographs keeps all threads busy.
        read = iter(in_threads(self._recognize, pieces, threads, lambda piece: piece.shape[1] / piece.shape[0]))
        return [
            strings_in_order([TextLine.between(*next(read), box) for _, box in image], self.min_score)
            for image in found
        ]

    def _pixels(self, image: Image.Image) -> float:
        """How many pixels of an image the detector sees."""
        scale = min(1, self.max_side / max(image.size))
        scale *= max(1, self.min_side / (min(image.size) * scale))
        return image.width * image.height * scale**2

    def _detect(self, image: Image.Image) -> list[tuple[Any, Any]]:
        """The lines of an image: each cut out and turned upright, as an array, and its corners.

        The corners are those in the image that the detector saw. Its scale and margin do not affect the reading order.
        """
        if max(image.size) > self.max_side:
            image = image.copy()
            image.thumbnail((self.max_side, self.max_side))
        array, record = self._engine.preprocess_img(self._engine.load_img(image))
        # The classifier of upside-down lines sees every line: the recogniser reads many of them with confidence
        # whichever way they are turned, so that its score cannot tell whether the classifier is needed.
        found, turned, _, _ = self._engine.run_ocr_steps(array, record)
        if found.boxes is None:
            return []
        return list(zip(turned.img_list, found.boxes, strict=True))

    def _recognize(self, piece: Any) -> tuple[str, float]:
        """The text and confidence of a line.

        The recogniser's time grows with the width, and RapidOCR pads narrow lines to 320 pixels. What remains unsure
        without the padding is read once more with it.
        """
        recognizer = self._engine.text_rec
        _, height, usual = recognizer.rec_image_shape
        width = math.ceil(height * piece.shape[1] / piece.shape[0] / WIDTH_STEP) * WIDTH_STEP
        text, score = _read_line(recognizer, piece, width)
        if score < max(SURE, self.min_score) and width < usual:
            text, score = _read_line(recognizer, piece, usual)
        return text, score


def _read_line(recognizer: Any, piece: Any, width: int) -> tuple[str, float]:
    """Calls RapidOCR's recogniser on one line, padded to a width in pixels."""
    # Half a pixel more, because the width is computed from the ratio and rounded down.
    pixels = recognizer.resize_norm_img(piece, (width + 0.5) / recognizer.rec_image_shape[1])
    lines, _ = recognizer.postprocess_op(recognizer.session(pixels[None]))
    return lines[0]


def _largest(pieces: list[Any], found: Any) -> tuple[list[Any], Any]:
    """The largest lines that RapidOCR's detector found, at most `MAX_LINES`."""
    if len(pieces) > MAX_LINES:
        logger.warning("an image has %s lines of text: the %s largest are read", f"{len(pieces):,}", MAX_LINES)
        by_size = sorted(range(len(pieces)), key=lambda n: -pieces[n].shape[0] * pieces[n].shape[1])
        kept = sorted(by_size[:MAX_LINES])
        pieces = [pieces[n] for n in kept]
        found.boxes = found.boxes[kept]
        found.scores = [found.scores[n] for n in kept]
    return pieces, found


class EasyOcr(OcrEngine):
    """OCR by EasyOCR: CRAFT and a CRNN in torch, for about eighty languages. The weights are downloaded at first use.

    Args:
        languages: EasyOCR's codes of the languages to read, such as `("en", "fr")`.
        min_score: minimum confidence, in [0, 1], of a line.
        model_storage_directory: folder of the weights. Default: EasyOCR's own (`~/.EasyOCR/model`).
        gpu: whether to run on the GPU. Default: if torch sees one.
    """

    name = "easyocr"
    install = "pip install easyocr torchvision"
    rules = {
        "languages": texts(20, "of EasyOCR's codes such as 'en'", re.compile(r"[a-z]{2,3}(_[a-z]{2,10})?").fullmatch),
        "min_score": SHARE,
    }
    local = {
        "model_storage_directory": Setting(
            "a folder", lambda value: isinstance(value, os.PathLike) or text(MAX_PATH).accepts(value)
        ).or_none(),
        "gpu": FLAG.or_none(),
    }
    languages: list[str]
    model_storage_directory: str | None
    gpu: bool | None

    def __init__(
        self,
        languages: Sequence[str] = ("en",),
        min_score: float = 0.4,
        model_storage_directory: str | None = None,
        gpu: bool | None = None,
    ) -> None:
        super().__init__(
            languages=languages, min_score=min_score, model_storage_directory=model_storage_directory, gpu=gpu
        )
        self.languages = list(languages)

    def _load(self) -> Any:
        reader = self._import("easyocr").Reader
        gpu = torch.cuda.is_available() if self.gpu is None else self.gpu
        try:
            return reader(self.languages, gpu=gpu, model_storage_directory=self.model_storage_directory, verbose=False)
        except (OSError, AssertionError, BadZipFile) as error:
            folder = self.model_storage_directory or "~/.EasyOCR/model"
            raise OSError(
                f"EasyOCR has no weights for {', '.join(self.languages)} in {folder} and could not download them "
                f"({error}): unpack the files of the detector and the language from "
                "https://www.jaided.ai/easyocr/modelhub into a folder and pass it as "
                "EasyOcr(model_storage_directory=…), or use 'rapidocr', which needs no download"
            ) from error

    def _find(self, image: Image.Image) -> list[TextLine]:
        # EasyOCR would treat a PIL image as a file: it expects OpenCV's array, in BGR order.
        numpy = self._import("numpy")
        blue_green_red = numpy.ascontiguousarray(numpy.asarray(image)[:, :, ::-1])
        return [TextLine.between(text, score, box) for box, text, score in self._engine.readtext(blue_green_red)]


class Tesseract(OcrEngine):
    """OCR by the program Tesseract, through the package pytesseract. Designed for print, about a hundred languages.

    Args:
        languages: Tesseract's codes of the languages to read, such as `("eng", "deu")`; all must be installed.
        min_score: minimum confidence, in [0, 1], of a line: the mean over its words.
        layout: Tesseract's page segmentation mode: 11 looks for text anywhere, as in a photograph; 3 expects a page
            with columns, 6 one block of text.
        min_side: images whose shorter side has fewer pixels are enlarged to this, at most four times, because
            Tesseract works best with capitals of about 30 pixels.
    """

    name = "tesseract"
    install = (
        "pip install pytesseract, and the program: apt-get install tesseract-ocr, or brew install tesseract, or "
        "conda install -c conda-forge tesseract"
    )
    # Languages and layout become options of a program: no spaces, dashes or dots, and no slash except in "script/…".
    rules = {
        "languages": texts(
            10,
            "of Tesseract's codes such as 'eng', 'chi_sim' or 'script/Latin'",
            re.compile(r"[A-Za-z]\w{1,19}|script/[A-Za-z]\w{1,39}", re.ASCII).fullmatch,
        ),
        "min_score": SHARE,
        "layout": integer(0, 13),
        "min_side": integer(1, 2048),
    }
    languages: list[str]
    layout: int
    min_side: int

    def __init__(
        self,
        languages: Sequence[str] = ("eng",),
        min_score: float = 0.5,
        layout: int = 11,
        min_side: int = 960,
    ) -> None:
        super().__init__(languages=languages, min_score=min_score, layout=layout, min_side=min_side)
        self.languages = list(languages)

    def _version(self) -> str | None:
        # The version is that of the program, which the package only calls. pytesseract raises SystemExit if it cannot
        # parse it.
        try:
            return str(importlib.import_module("pytesseract").get_tesseract_version())
        except (ImportError, OSError, SystemExit):
            return None

    def _load(self) -> Any:
        package = self._import("pytesseract")
        try:
            installed = package.get_languages()
        except OSError as error:
            raise OSError(f"reading the text in images with {self.name} needs: {self.install} ({error})") from error
        # Scripts such as "script/Latin" are also languages, but the package does not list them.
        absent = [code for code in self.languages if code not in installed and "/" not in code]
        if absent:
            raise ValueError(
                f"tesseract has no language {', '.join(map(repr, absent))} (installed: {', '.join(installed)}): "
                f"apt-get install {' '.join('tesseract-ocr-' + code.replace('_', '-') for code in absent)}"
            )
        return package

    def _find(self, image: Image.Image) -> list[TextLine]:
        factor = min(4.0, max(1.0, self.min_side / min(image.size)))
        if factor > 1:
            size = (round(image.width * factor), round(image.height * factor))
            image = image.resize(size, Image.Resampling.BICUBIC)
        words = self._engine.image_to_data(
            image, lang="+".join(self.languages), config=f"--psm {self.layout:d}", output_type="dict"
        )
        places = zip(words["block_num"], words["par_num"], words["line_num"], strict=True)
        lines: dict[tuple[int, int, int], list[int]] = {}
        for word, place in enumerate(places):
            if float(words["conf"][word]) >= 0 and words["text"][word].strip():  # -1: a block or a line, not a word
                lines.setdefault(place, []).append(word)
        return [_line_of_words(words, line) for line in lines.values()]


def _line_of_words(words: dict[str, list[Any]], line: list[int]) -> TextLine:
    text = " ".join(words["text"][word].strip() for word in line)
    score = sum(float(words["conf"][word]) for word in line) / len(line) / 100
    starts = [(words["left"][word], words["top"][word]) for word in line]
    ends = [(x + words["width"][word], y + words["height"][word]) for word, (x, y) in zip(line, starts, strict=True)]
    return TextLine.between(text, score, starts + ends)
