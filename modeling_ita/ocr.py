"""Optical characters: the engines that read the text in an image, behind one interface."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any, NamedTuple
from zipfile import BadZipFile

import torch
from PIL import Image


class TextLine(NamedTuple):
    """A line of text that an OCR engine found: text, confidence in [0, 1], and its box in pixels."""

    text: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


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


class OcrEngine:
    """What the OCR aligners share: one engine, loaded when the first image comes, and lines in reading order.

    Subclasses give `name`, `install` and `settings`, and say how the engine is loaded and asked.

    Args:
        min_score: lowest confidence, in [0, 1], of a line that is kept.
    """

    kind = "ocr"
    name: str
    install: str

    def __init__(self, min_score: float) -> None:
        self.min_score = min_score
        self._engine: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide about the lines; those that only decide about speed are left out."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """Model, version of the package (None if it is not installed) and settings."""
        try:
            revision = importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            revision = None
        return {"model": self.name, "revision": revision, "settings": self.settings}

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
        # Detectors enlarge by the shorter side: a strip of 8 × 1280 pixels would keep one busy for half a minute.
        size = (max(image.width, image.height // 8), max(image.height, image.width // 8))
        if size != image.size:
            strip, image = image, Image.new("RGB", size)
            image.paste(strip)
        lines = [line for line in self._find(image) if line.score >= self.min_score]
        return [(line.text, line.score) for line in reading_order(lines)]

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

    def __init__(
        self, min_score: float = 0.6, min_side: int = 320, max_side: int = 1280, threads: int | None = None
    ) -> None:
        super().__init__(min_score)
        self.min_side = min_side
        self.max_side = max_side
        self.threads = threads

    @property
    def settings(self) -> dict[str, Any]:
        """`min_score`, `min_side` and `max_side`."""
        return {"min_score": self.min_score, "min_side": self.min_side, "max_side": self.max_side}

    def _load(self) -> Any:
        self._import("onnxruntime")
        return self._import("rapidocr").RapidOCR(
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

    def _find(self, image: Image.Image) -> list[TextLine]:
        if max(image.size) > self.max_side:
            image = image.copy()
            image.thumbnail((self.max_side, self.max_side))
        found = self._engine(image)
        if not found.txts:
            return []
        return [_text_line(*line) for line in zip(found.txts, found.scores, found.boxes, strict=True)]


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

    def __init__(
        self,
        languages: Sequence[str] = ("en",),
        min_score: float = 0.4,
        model_storage_directory: str | None = None,
        gpu: bool | None = None,
    ) -> None:
        super().__init__(min_score)
        if isinstance(languages, str):
            raise ValueError(f"languages must be a list of codes, got one string: write [{languages!r}]")
        self.languages = list(languages)
        self.model_storage_directory = model_storage_directory
        self.gpu = gpu

    @property
    def settings(self) -> dict[str, Any]:
        """`languages` and `min_score`."""
        return {"languages": self.languages, "min_score": self.min_score}

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
        return [_text_line(text, score, box) for box, text, score in self._engine.readtext(blue_green_red)]


def _text_line(text: str, score: float, corners: Any) -> TextLine:
    xs, ys = [float(x) for x, _ in corners], [float(y) for _, y in corners]
    return TextLine(text, float(score), min(xs), min(ys), max(xs), max(ys))


OCR_ENGINES: dict[str, type[RapidOcr] | type[EasyOcr]] = {"rapidocr": RapidOcr, "easyocr": EasyOcr}


def ocr_by_name(name: str, **settings: Any) -> RapidOcr | EasyOcr:
    """The OCR aligner of this name, `"rapidocr"` or `"easyocr"`, with its own settings.

    Raises:
        ValueError: there is no OCR aligner of this name.
    """
    if name not in OCR_ENGINES:
        raise ValueError(
            f"unknown OCR {name!r} (expected {' or '.join(map(repr, OCR_ENGINES))}, or an aligner object)"
        )
    return OCR_ENGINES[name](**settings)
