"""Optical characters: lines of text, their order, and what reads them: packages and checkpoints of transformers."""

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
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoModelForObjectDetection, PretrainedConfig

from .aligner_settings import (
    FLAG,
    MAX_PATH,
    MODEL,
    REVISION,
    SHARE,
    Setting,
    check_settings,
    integer,
    text,
    texts,
)
from .captioner import BEAMS, DTYPE, FAMILIES, NEW_TOKENS, PretrainedAligner, florence_answer, generate
from .plain_text import one_line

MAX_RATIO = 8
MAX_LINES = 100  # that RapidOCR reads of an image, at 25 ms each on one core: more would not fit behind a post

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
        """The line whose box is the upright one around some corners, each `(x, y)`."""
        xs, ys = zip(*((float(x), float(y)) for x, y in corners), strict=True)
        return cls(text, float(score), min(xs), min(ys), max(xs), max(ys))


def reading_order(lines: Sequence[TextLine]) -> list[TextLine]:
    """Lines from top to bottom, those of one row from left to right.

    Two lines are of one row if their middles are less than half the smaller one's height apart.
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
    """What an OCR aligner gives for one image: the lines with text and at least `min_score`, in reading order."""
    lines = [line for line in lines if line.text.strip() and line.score >= min_score]
    return [(line.text.strip(), line.score) for line in reading_order(lines)]


def without_strip(image: Image.Image) -> Image.Image:
    """The image itself, or on black if one side is more than 8 times the other.

    Detectors enlarge by the shorter side: a strip of 8 × 1280 pixels would keep one busy for half a minute.
    """
    size = (max(image.width, image.height // MAX_RATIO), max(image.height, image.width // MAX_RATIO))
    if size == image.size:
        return image
    board = Image.new("RGB", size)
    board.paste(image)
    return board


class OcrEngine:
    """What the OCR aligners on packages share: one engine, loaded when the first image comes.

    Subclasses give `name`, `install` and `rules`, and say how the engine is loaded and asked.

    Args:
        settings: what the subclass takes; each becomes an attribute.

    Attributes:
        rules: by name, what the settings that affect the lines may be; a checkpoint saves these, and may name these.
        local: by name, what the settings that depend on the machine may be; a checkpoint never gives them.

    Raises:
        ValueError: a setting is not what `rules` say.
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
        """For every RGB image its lines of text with their confidence, in reading order.

        Raises:
            ImportError: the engine's package is not installed; the message gives the command.
        """
        if self._engine is None:
            self._engine = self._load()
        return [self._read(image) for image in images]

    def __getstate__(self) -> dict[str, Any]:
        """The settings without the engine: it can be neither pickled nor copied, and is loaded again when needed."""
        return {**self.__dict__, "_engine": None}

    def _read(self, image: Image.Image) -> list[tuple[str, float]]:
        return strings_in_order(self._find(without_strip(image)), self.min_score)

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

    Args:
        min_score: lowest confidence, in [0, 1], of a line that is kept.
        min_side: an image whose shorter side has fewer pixels is enlarged to this for the detector. Larger values find
            smaller letters in small pictures, and the time grows with the square.
        max_side: an image whose longer side has more pixels is reduced to this.
        threads: threads of onnxruntime; None takes as many as torch uses (`torch.set_num_threads`, `OMP_NUM_THREADS`).
    """

    name = "rapidocr"
    install = 'pip install "rapidocr" onnxruntime'
    # At the upper ends the worst image takes some 3 GB, and some 20 seconds of a core.
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
                "Global.text_score": 0.0,
                "Global.max_side_len": self.max_side,
                "Det.limit_type": "min",
                "Det.limit_side_len": self.min_side,
                "EngineConfig.onnxruntime.intra_op_num_threads": self.threads or torch.get_num_threads(),
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        detect = engine.detect_and_crop
        engine.detect_and_crop = lambda image, record: _largest(*detect(image, record))
        return engine

    def _find(self, image: Image.Image) -> list[TextLine]:
        if max(image.size) > self.max_side:
            image = image.copy()
            image.thumbnail((self.max_side, self.max_side))
        found = self._engine(image)
        if not found.txts:
            return []
        return [TextLine.between(*line) for line in zip(found.txts, found.scores, found.boxes, strict=True)]


def _largest(pieces: list[Any], found: Any) -> tuple[list[Any], Any]:
    """What RapidOCR's detector found, `MAX_LINES` lines of it at most."""
    if len(pieces) > MAX_LINES:
        logger.warning("an image has %s lines of text: the %s largest are read", f"{len(pieces):,}", MAX_LINES)
        by_size = sorted(range(len(pieces)), key=lambda n: -pieces[n].shape[0] * pieces[n].shape[1])
        kept = sorted(by_size[:MAX_LINES])
        pieces = [pieces[n] for n in kept]
        found.boxes = found.boxes[kept]
        found.scores = [found.scores[n] for n in kept]
    return pieces, found


class EasyOcr(OcrEngine):
    """OCR by EasyOCR: CRAFT and a CRNN in torch, for some eighty languages; the weights are downloaded at first use.

    Args:
        languages: EasyOCR's codes of the languages to read, such as `("en", "fr")`.
        min_score: lowest confidence, in [0, 1], of a line that is kept.
        model_storage_directory: folder of the weights; None is EasyOCR's own (`~/.EasyOCR/model`).
        gpu: run on the GPU; None does so if torch sees one.
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
        # A PIL image would be taken for a file: EasyOCR wants OpenCV's array, blue first.
        numpy = self._import("numpy")
        blue_green_red = numpy.ascontiguousarray(numpy.asarray(image)[:, :, ::-1])
        return [TextLine.between(text, score, box) for box, text, score in self._engine.readtext(blue_green_red)]


class Tesseract(OcrEngine):
    """OCR by the program Tesseract, through the package pytesseract; made for print, some hundred languages.

    Args:
        languages: Tesseract's codes of the languages to read, such as `("eng", "deu")`; all must be installed.
        min_score: lowest confidence, in [0, 1], of a line that is kept: the mean of its words'.
        layout: Tesseract's page segmentation mode: 11 looks for text anywhere, as in a photograph; 3 expects a page
            with columns, 6 one block of text.
        min_side: an image whose shorter side has fewer pixels is enlarged to this, four times at most: Tesseract wants
            capitals of some 30 pixels.
    """

    name = "tesseract"
    install = (
        "pip install pytesseract, and the program: apt-get install tesseract-ocr, or brew install tesseract, or "
        "conda install -c conda-forge tesseract"
    )
    # Languages and layout become options of a program: no space, no dash, no dot, no slash but that of a script.
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
        # The program reads, the package only calls it. It leaves with SystemExit if it cannot make out the version.
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
        # Scripts such as "script/Latin" are languages too, but the package does not list them.
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
            if float(words["conf"][word]) >= 0 and words["text"][word].strip():  # -1: a block or a line, no word
                lines.setdefault(place, []).append(word)
        return [_line_of_words(words, line) for line in lines.values()]


def _line_of_words(words: dict[str, list[Any]], line: list[int]) -> TextLine:
    text = " ".join(words["text"][word].strip() for word in line)
    score = sum(float(words["conf"][word]) for word in line) / len(line) / 100
    starts = [(words["left"][word], words["top"][word]) for word in line]
    ends = [(x + words["width"][word], y + words["height"][word]) for word, (x, y) in zip(line, starts, strict=True)]
    return TextLine.between(text, score, starts + ends)


PP_OCR_RECOGNIZER = "PaddlePaddle/PP-OCRv6_small_rec_safetensors"
PP_OCR_DETECTOR = "PaddlePaddle/PP-OCRv6_small_det_safetensors"
FLORENCE_2 = "florence-community/Florence-2-base"
PP_OCR_NEEDS = "reading the text in images with pp-ocr needs: pip install torchvision opencv-python-headless"


class TextDetector(PretrainedAligner):
    """PP-OCR's detector: where in an image the lines of text are. The first half of `PpOcr`."""

    auto_class = AutoModelForObjectDetection
    takes = "a text detector of PP-OCR"
    processor_class = AutoImageProcessor

    @torch.inference_mode()
    def boxes(self, image: Image.Image) -> list[list[list[float]]]:
        """For every line its corners `[x, y]` in pixels: top left, top right, bottom right, bottom left."""
        model, processor = self.checkpoint.model, self.checkpoint.processor
        inputs = processor(image, return_tensors="pt")
        found = model(inputs["pixel_values"].to(model.device, model.dtype))
        # The post-processing goes through numpy, which has no bfloat16.
        found.last_hidden_state = found.last_hidden_state.float()
        return processor.post_process_object_detection(found, target_sizes=inputs["target_sizes"])[0]["boxes"].tolist()


class PpOcr(PretrainedAligner):
    """OCR by PP-OCR in transformers: a detector finds the lines, a recogniser reads each.

    Args:
        model: checkpoint of the recogniser: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the recogniser.
        detector: checkpoint of the detector.
        detector_revision: branch, tag or commit of the detector.
        min_score: lowest confidence, in [0, 1], of a line that is kept: the mean of its characters'.
        dtype: type of the weights of both, see `PretrainedAligner`.
        device: where both run; None is an accelerator if there is one.

    Raises:
        ImportError: the installed transformers has no PP-OCR.
        ValueError: a setting is not what `rules` say.
    """

    processor_class = AutoImageProcessor
    takes = "a text recogniser of PP-OCR"
    rules = {"detector": MODEL, "detector_revision": REVISION.or_none(), "min_score": SHARE, "dtype": DTYPE}

    def __init__(
        self,
        model: str = PP_OCR_RECOGNIZER,
        revision: str | None = None,
        detector: str = PP_OCR_DETECTOR,
        detector_revision: str | None = None,
        min_score: float = 0.6,
        dtype: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(model, revision, dtype, device)
        check_settings(
            {"detector": detector, "detector_revision": detector_revision, "min_score": min_score}, self.rules
        )
        self.auto_class = getattr(importlib.import_module("transformers"), "AutoModelForTextRecognition", None)
        if self.auto_class is None:
            raise ImportError("this version of transformers has no PP-OCR: pip install --upgrade transformers")
        self.detector = TextDetector(detector, detector_revision, dtype, device)
        self.min_score = min_score

    @property
    def settings(self) -> dict[str, Any]:
        """`detector`, `detector_revision` and `min_score`."""
        detector = self.detector.identity
        return {
            "detector": detector["model"],
            "detector_revision": detector["revision"],
            "min_score": self.min_score,
        }

    @property
    def recipe(self) -> dict[str, Any]:
        """The identity with the names under which both checkpoints are found again."""
        return {**super().recipe, "settings": {**self.identity["settings"], "detector": self.detector.model}}

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """For every RGB image its lines of text with their confidence, in reading order.

        Raises:
            ImportError: torchvision or OpenCV is not installed; the message gives the command.
            OSError: a checkpoint is neither on this machine nor to be downloaded.
        """
        try:
            return [self._read(without_strip(image)) for image in images]
        except ImportError as error:
            raise ImportError(f"{PP_OCR_NEEDS} ({error})") from error

    def _read(self, image: Image.Image) -> list[tuple[str, float]]:
        lines = []
        for corners in self.detector.boxes(image):
            text, score = self._recognize(cut_out(image, corners))
            lines.append(TextLine.between(text, score, corners))
        return strings_in_order(lines, self.min_score)

    @torch.inference_mode()
    def _recognize(self, line: Image.Image) -> tuple[str, float]:
        # One by one: the processor stretches all lines of a batch to the size of the widest.
        model, processor = self.checkpoint.model, self.checkpoint.processor
        pixels = processor(line, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        found = processor.post_process_text_recognition(model(pixels))[0]
        return found["text"], found["score"] if found["text"] else 0.0  # the mean over no character is not a number


def cut_out(image: Image.Image, corners: Sequence[Sequence[float]]) -> Image.Image:
    """The piece of an image between four corners, upright; one that is taller than 1.5 × its width is laid down.

    Args:
        image: RGB image.
        corners: `(x, y)` in pixels: top left, top right, bottom right, bottom left.
    """
    top_left, top_right, bottom_right, bottom_left = corners
    width = round(max(math.dist(top_left, top_right), math.dist(bottom_left, bottom_right), 1))
    height = round(max(math.dist(top_left, bottom_left), math.dist(top_right, bottom_right), 1))
    quad = (*top_left, *bottom_left, *bottom_right, *top_right)
    piece = image.transform((width, height), Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)
    return piece.transpose(Image.Transpose.ROTATE_90) if height >= 1.5 * width else piece


class Florence2Ocr(PretrainedAligner):
    """OCR by Florence-2, its task "OCR with region": one generated answer holds all lines with their boxes.

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository.
        min_score: lowest score, in [0, 1], of lines that are kept. All lines of an image share one: the probability
            of the generated answer, as the geometric mean over its tokens.
        num_beams: width of the beam; 1 is greedy decoding.
        max_new_tokens: longest answer, in tokens; a line takes eight for its box beside those of its text. What is
            beyond is lost.
        dtype: type of the weights, see `PretrainedAligner`.
        device: where the model runs; None is an accelerator if there is one.

    Raises:
        ValueError: a setting is not what `rules` say.
    """

    auto_class = AutoModelForImageTextToText
    takes = "Florence-2"
    task = "<OCR_WITH_REGION>"
    rules = {"min_score": SHARE, "num_beams": BEAMS, "max_new_tokens": NEW_TOKENS, "dtype": DTYPE}
    min_score: float
    num_beams: int
    max_new_tokens: int

    def __init__(
        self,
        model: str = FLORENCE_2,
        revision: str | None = None,
        min_score: float = 0.3,
        num_beams: int = 3,
        max_new_tokens: int = 512,
        dtype: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            model,
            revision,
            dtype,
            device,
            min_score=min_score,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """For every RGB image its lines of text with the answer's probability, in reading order.

        Raises:
            OSError: the checkpoint is neither on this machine nor to be downloaded.
            ValueError: it is not Florence-2.
        """
        if self.config.model_type != "florence2":
            raise ValueError(f"{self._what_it_is}: {self._what_it_takes}")
        if not images:
            return []
        answers = generate(
            self.checkpoint,
            FAMILIES["florence2"],
            images,
            self.task,
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
        )
        return [self._lines(image, *best) for image, (best,) in zip(images, answers, strict=True)]

    def _lines(self, image: Image.Image, tokens: list[int], score: float) -> list[tuple[str, float]]:
        found = florence_answer(self.checkpoint.processor, tokens, self.task, image)
        lines = [
            TextLine.between(text, score, zip(box[::2], box[1::2], strict=True))
            for text, box in zip(found["labels"], found["quad_boxes"], strict=True)
        ]
        return strings_in_order(lines, self.min_score)


def checkpoint_ocr(model: str, revision: str | None = None) -> type[PpOcr] | type[Florence2Ocr]:
    """The class of the OCR aligner on a checkpoint; its configuration's `model_type` says which.

    Raises:
        ValueError: the name is neither a folder nor of the form owner/name, or the checkpoint reads no text.
        OSError: the configuration can be neither found nor downloaded.
    """
    check_settings({"model": model, "revision": revision}, {"model": MODEL, "revision": REVISION.or_none()})
    folder = os.path.expanduser(model)
    if "/" not in model and not os.path.isdir(folder):  # a misspelt engine is not looked for on the Hub
        raise ValueError("there is no such folder, and a repository has the form owner/name")
    try:
        model_type = str(PretrainedConfig.get_config_dict(folder, revision=revision)[0].get("model_type", ""))
    except OSError as error:
        raise OSError(
            f"the configuration of {model} can be neither found nor downloaded: {one_line(error)}"
        ) from error
    if model_type == "florence2":
        return Florence2Ocr
    if model_type.startswith("pp_ocr") and model_type.endswith("_rec"):
        return PpOcr
    if model_type.startswith("pp_ocr") and model_type.endswith("_det"):
        raise ValueError("it is PP-OCR's detector: name the recogniser, and this one as detector=")
    raise ValueError(f"its model_type is {model_type!r:.80}, which is neither Florence-2 nor a recogniser of PP-OCR")
