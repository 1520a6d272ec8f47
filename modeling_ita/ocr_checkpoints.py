"""Optical character recognition by checkpoints of transformers: PP-OCR and Florence-2."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoModelForObjectDetection, PretrainedConfig

from .aligner_settings import MODEL, REVISION, SHARE, check_settings
from .generation import BEAMS, FAMILIES, NEW_TOKENS, florence_answer, generate
from .ocr import TextLine, strings_in_order, without_strip
from .plain_text import one_line
from .pretrained_aligner import DTYPE, PretrainedAligner

PP_OCR_RECOGNIZER = "PaddlePaddle/PP-OCRv6_small_rec_safetensors"
PP_OCR_DETECTOR = "PaddlePaddle/PP-OCRv6_small_det_safetensors"
FLORENCE_2 = "florence-community/Florence-2-base"
PP_OCR_NEEDS = "reading the text in images with pp-ocr needs: pip install torchvision opencv-python-headless"


class TextDetector(PretrainedAligner):
    """PP-OCR's detector, which locates the lines of text in an image. The first half of `PpOcr`."""

    auto_class = AutoModelForObjectDetection
    takes = "a text detector of PP-OCR"
    processor_class = AutoImageProcessor

    @torch.inference_mode()
    def boxes(self, image: Image.Image) -> list[list[list[float]]]:
        """The corners `[x, y]` of every line in pixels: top left, top right, bottom right, bottom left."""
        model, processor = self.checkpoint.model, self.checkpoint.processor
        inputs = processor(image, return_tensors="pt")
        found = model(inputs["pixel_values"].to(model.device, model.dtype))
        # The post-processing uses numpy, which has no bfloat16.
        found.last_hidden_state = found.last_hidden_state.float()
        return processor.post_process_object_detection(found, target_sizes=inputs["target_sizes"])[0]["boxes"].tolist()


class PpOcr(PretrainedAligner):
    """OCR by PP-OCR in transformers: a detector finds the lines, a recogniser reads each.

    Args:
        model: checkpoint of the recogniser, a repository on the Hub or a local folder.
        revision: branch, tag or commit of the recogniser.
        detector: checkpoint of the detector.
        detector_revision: branch, tag or commit of the detector.
        min_score: minimum confidence, in [0, 1], of a line: the mean over its characters.
        dtype: type of the weights of both, see `PretrainedAligner`.
        device: where both run. Default: an accelerator if there is one.

    Raises:
        ImportError: the installed transformers has no PP-OCR.
        ValueError: a setting violates `rules`.
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
        """The identity, with the names or paths from which both checkpoints can be loaded again."""
        return {**super().recipe, "settings": {**self.identity["settings"], "detector": self.detector.model}}

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """Returns the lines of text of every RGB image with their confidence, in reading order.

        Raises:
            ImportError: torchvision or OpenCV is not installed; the message gives the command that installs it.
            OSError: a checkpoint is not available locally and cannot be downloaded.
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
        # One by one, because the processor stretches all lines of a batch to the size of the widest.
        model, processor = self.checkpoint.model, self.checkpoint.processor
        pixels = processor(line, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        found = processor.post_process_text_recognition(model(pixels))[0]
        return found["text"], found["score"] if found["text"] else 0.0  # the mean over no characters is NaN


def cut_out(image: Image.Image, corners: Sequence[Sequence[float]]) -> Image.Image:
    """Cuts the region between four corners out of an image and straightens it.

    A region taller than 1.5 × its width is rotated by 90°, because its text is vertical.

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
    """OCR by Florence-2's task "OCR with region": one generated answer contains all lines with their boxes.

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository.
        min_score: minimum score, in [0, 1], of a line. All lines of an image share one score: the geometric mean of
            the generated answer's token probabilities.
        num_beams: beam width; 1 is greedy decoding.
        max_new_tokens: maximum length of the answer in tokens. Each line takes eight for its box in addition to those
            of its text. Longer answers are truncated.
        dtype: type of the weights, see `PretrainedAligner`.
        device: where the model runs. Default: an accelerator if there is one.

    Raises:
        ValueError: a setting violates `rules`.
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
        """Returns the lines of text of every RGB image with the answer's probability, in reading order.

        Raises:
            OSError: the checkpoint is not available locally and cannot be downloaded.
            ValueError: the checkpoint is not Florence-2.
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
    """The OCR aligner class for a checkpoint, chosen by the `model_type` of its configuration.

    Raises:
        ValueError: the name is neither a folder nor of the form owner/name, or the checkpoint is not an OCR model.
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
