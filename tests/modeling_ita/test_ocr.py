from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
import types
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModelForObjectDetection

from modeling_ita import ocr
from modeling_ita.aligners import OCR_NAMES, ocr_by_name
from modeling_ita.ocr import EasyOcr, RapidOcr, Tesseract, TextLine, reading_order, strings_in_order, without_strip
from modeling_ita.ocr_checkpoints import PP_OCR_DETECTOR, PP_OCR_RECOGNIZER, Florence2Ocr, PpOcr, cut_out

RED, BLUE = (220, 20, 30), (10, 40, 200)


def drawn(*lines: tuple[int, int, str], size: tuple[int, int] = (256, 192), letters: int = 26) -> Image.Image:
    image = Image.new("RGB", size, (246, 240, 222))
    draw = ImageDraw.Draw(image)
    for x, y, text in lines:
        draw.text((x, y), text, font=ImageFont.load_default(letters), fill=(40, 30, 90))
    return image


def two_colours(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


@pytest.fixture(scope="session")
def rapidocr() -> RapidOcr:
    return RapidOcr(threads=1)


def line(text: str, left: float, top: float, height: float = 20, score: float = 0.9) -> TextLine:
    return TextLine(text, score, left, top, left + 10 * len(text), top + height)


def test_reading_order() -> None:
    rows = [
        [line("GATE", 10, 12), line("12", 120, 8), line("A", 200, 15, height=12)],
        [line("Berlin", 12, 44), line("08:15", 125, 50)],
        [line("TALL", 0, 70, height=60), line("beside", 90, 92)],
    ]
    shuffled = [rows[1][1], rows[2][1], rows[0][2], rows[0][0], rows[2][0], rows[1][0], rows[0][1]]
    assert reading_order(shuffled) == [line for row in rows for line in row]
    assert reading_order([]) == []


def test_of_too_many_lines_the_largest_are_read(
    rapidocr: RapidOcr, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = drawn((10, 5, "MENU"), (10, 50, "SOUP"), (10, 95, "CAKE"), (10, 140, "RESTAURANT"))
    assert [text for text, _ in rapidocr([page])[0]] == ["MENU", "SOUP", "CAKE", "RESTAURANT"]
    monkeypatch.setattr(ocr, "MAX_LINES", 1)
    assert [text for text, _ in rapidocr([page])[0]] == ["RESTAURANT"]
    assert "an image has 4 lines of text: the 1 largest are read" in caplog.text


def test_strings_in_order() -> None:
    lines = [line("low", 0, 90, score=0.2), line(" last ", 0, 60), line("first", 0, 0), line("  ", 0, 30)]
    assert strings_in_order([*lines, line("none", 0, 0, score=float("nan"))], 0.5) == [("first", 0.9), ("last", 0.9)]


def test_strips_are_put_on_black() -> None:
    strip = without_strip(two_colours((800, 10)))
    assert (strip.size, strip.getpixel((5, 5)), strip.getpixel((5, 50))) == ((800, 100), RED, (0, 0, 0))
    assert without_strip(two_colours((10, 800))).size == (100, 800)
    image = two_colours((80, 10))
    assert without_strip(image) is image


def _reads(aligner: RapidOcr, images: list[Image.Image], expected: Any) -> None:
    """Exits with 1 unless these images have these lines; runs in a process of its own."""
    sys.exit(aligner(images) != expected)


class TestRapidOcr:
    def test_reads_drawn_text(self, rapidocr: RapidOcr) -> None:
        sign = drawn((16, 20, "PHOENIX"), (16, 70, "Harbor Books"))
        small = drawn((16, 30, "Rosa Marquez tonight"), letters=12)
        nothing = Image.linear_gradient("L").convert("RGB")
        found = rapidocr([sign, small, nothing])
        assert [[text for text, _ in lines] for lines in found] == [
            ["PHOENIX", "Harbor Books"],
            ["Rosa Marquez tonight"],
            [],
        ]
        assert all(0.6 <= score <= 1 for lines in found for _, score in lines)

    def test_neighbours_and_threads_change_nothing(self, rapidocr: RapidOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        images = [
            drawn((16, 20, "PHOENIX"), (16, 70, "Harbor Books"), (16, 120, "A1")),
            Image.new("RGB", (90, 90), "navy"),
            drawn((30, 150, "MIDNIGHT"), size=(500, 400), letters=70),
            Image.linear_gradient("L").resize((300, 9)).convert("RGB"),
            drawn((5, 20, "one long line that is wider than others, in small letters"), size=(400, 60), letters=14),
            drawn((16, 20, "PHOENIX")).rotate(90, expand=True),
        ]
        one_by_one = [rapidocr([image])[0] for image in images]
        texts = [[text for text, _ in lines] for lines in one_by_one]
        assert texts[0] == ["PHOENIX", "Harbor Books", "A1"]
        assert texts[1:4] == [[], ["MIDNIGHT"], []]
        assert rapidocr(images) == one_by_one
        assert rapidocr(images[::-1]) == one_by_one[::-1]
        used = set()
        read_line = ocr._read_line

        def noted(*piece: Any) -> Any:
            used.add(threading.get_ident())
            return read_line(*piece)

        monkeypatch.setattr(ocr, "_read_line", noted)
        monkeypatch.setattr(rapidocr, "threads", 3)
        assert rapidocr(images) == one_by_one
        assert used and threading.get_ident() not in used
        monkeypatch.setattr(rapidocr, "threads", None)
        for threads in (1, 2):
            used.clear()
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert rapidocr(images[:1]) == one_by_one[:1]
            assert used and (used == {threading.get_ident()}) == (threads == 1)

    def test_memory_bounds_the_images_at_a_time(self, rapidocr: RapidOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def in_order(function: Any, items: Any, threads: int, cost: Any) -> Any:
            asked.append(threads)
            return [function(item) for item in items]

        monkeypatch.setattr(ocr, "in_threads", in_order)
        monkeypatch.setattr(rapidocr, "threads", 8)
        monkeypatch.setattr(ocr, "PIXELS_AT_ONCE", 3 * 320 * 427)
        rapidocr([drawn(), drawn(size=(256, 192))])  # enlarged to 320 × 427
        assert asked == [3, 8]
        monkeypatch.setattr(ocr, "PIXELS_AT_ONCE", 10)
        rapidocr([drawn()])
        assert asked[2] == 1
        assert rapidocr([]) == []

    @pytest.mark.parametrize("turn", [90, 180, 270])
    def test_turned_text(self, rapidocr: RapidOcr, turn: int) -> None:
        sign = drawn((16, 20, "PHOENIX"), (16, 70, "Harbor Books")).rotate(turn, expand=True)
        assert sorted(text for text, _ in rapidocr([sign])[0]) == ["Harbor Books", "PHOENIX"]

    def test_unsure_narrow_lines_are_read_again_with_padding(
        self, rapidocr: RapidOcr, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        widths: list[int] = []
        scores = {"PHOENIX": 0.7}

        def read_line(recognizer: Any, piece: Any, width: int) -> tuple[str, float]:
            widths.append(width)
            return ("padded", 0.9) if width == 320 else ("narrow", scores["PHOENIX"])

        monkeypatch.setattr(ocr, "_read_line", read_line)
        sign = drawn((16, 20, "PHOENIX"))
        assert rapidocr([sign]) == [[("padded", 0.9)]]
        assert widths[0] % 32 == 0 and widths[0] < 320 and widths[1:] == [320]
        scores["PHOENIX"] = 0.85
        widths.clear()
        assert rapidocr([sign]) == [[("narrow", 0.85)]]
        assert len(widths) == 1
        monkeypatch.setattr(rapidocr, "min_score", 0.88)  # unsure is also what a higher threshold would drop
        assert rapidocr([sign]) == [[("padded", 0.9)]]
        widths.clear()
        rapidocr([drawn((5, 20, "one long line that is wider"), size=(500, 60))])
        assert len(widths) == 1 and widths[0] > 320

    @pytest.mark.parametrize("threads", [1, 2])
    def test_an_image_that_cannot_be_read_is_an_error(
        self, rapidocr: RapidOcr, threads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rapidocr, "threads", threads)
        steps = rapidocr._engine.run_ocr_steps

        def run_ocr_steps(array: Any, record: Any) -> Any:
            if array.shape[1] in (111, 222):
                raise RuntimeError(f"image of width {array.shape[1]}")
            return steps(array, record)

        monkeypatch.setattr(rapidocr._engine, "run_ocr_steps", run_ocr_steps)
        images = [drawn((16, 20, "PHOENIX")), drawn(size=(111, 90)), drawn(size=(222, 190))]
        with pytest.raises(RuntimeError, match="width 111"):
            rapidocr(images)
        assert [text for text, _ in rapidocr(images[:1])[0]] == ["PHOENIX"]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    def test_a_forked_process_reads_too(self, rapidocr: RapidOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rapidocr, "threads", 2)
        images = [drawn((16, 20, "PHOENIX")), drawn((16, 20, "Harbor Books"))]
        expected = rapidocr(images)
        process = multiprocessing.get_context("fork").Process(target=_reads, args=(rapidocr, images, expected))
        process.start()
        process.join(60)
        process.kill()
        assert process.exitcode == 0

    def test_columns_are_read_row_by_row(self, rapidocr: RapidOcr) -> None:
        board = drawn(
            (250, 24, "Gate"), (20, 80, "Lisbon"), (20, 20, "Flight"), (250, 76, "B14"), size=(360, 140), letters=28
        )
        assert [text for text, _ in rapidocr([board])[0]] == ["Flight", "Gate", "Lisbon", "B14"]

    def test_threshold(self, rapidocr: RapidOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        assert len(rapidocr([drawn((16, 20, "PHOENIX"))])[0]) == 1
        monkeypatch.setattr(rapidocr, "min_score", 1.01)
        assert rapidocr([drawn((16, 20, "PHOENIX"))]) == [[]]

    @pytest.mark.parametrize("size", [(1, 900), (1400, 9), (7, 7)])
    def test_strips_and_specks(self, rapidocr: RapidOcr, size: tuple[int, int]) -> None:
        assert rapidocr([Image.linear_gradient("L").resize(size).convert("RGB")]) == [[]]

    def test_large_image(self, rapidocr: RapidOcr) -> None:
        poster = drawn((300, 500, "MIDNIGHT"), size=(2400, 1800), letters=300)
        assert [text for text, _ in rapidocr([poster])[0]] == ["MIDNIGHT"]

    def test_engine_is_loaded_once_and_not_copied(self, rapidocr: RapidOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []

        class Engine:
            def __init__(self, params: dict[str, Any]) -> None:
                made.append(params)

                self.text_det = types.SimpleNamespace(mean=[0.5], std=[0.5])

            def load_img(self, image: Image.Image) -> Any:
                return image

            def preprocess_img(self, image: Any) -> Any:
                return image, {}

            def detect_and_crop(self, image: Any, record: Any) -> Any:
                raise NotImplementedError

            def run_ocr_steps(self, image: Any, record: Any) -> Any:
                return types.SimpleNamespace(boxes=None), None, None, []

            def recognize_txt(self, pieces: Any) -> None:
                pass

        aligner = RapidOcr(threads=3, min_side=111)
        monkeypatch.setitem(sys.modules, "rapidocr", types.SimpleNamespace(RapidOCR=Engine))
        assert not made
        assert [aligner([drawn()]) for _ in range(2)] == [[[]], [[]]]
        assert len(made) == 1
        assert made[0]["EngineConfig.onnxruntime.intra_op_num_threads"] == 1
        assert made[0]["Det.limit_side_len"] == 111
        rapidocr([drawn()])
        for clone in (pickle.loads(pickle.dumps(rapidocr)), copy.deepcopy(rapidocr)):
            assert clone.identity == rapidocr.identity

    def test_identity(self) -> None:
        identity = RapidOcr().identity
        assert identity == json.loads(json.dumps(identity)) == RapidOcr(threads=7).identity
        assert identity["model"] == "rapidocr"
        assert identity["revision"]
        assert identity != RapidOcr(min_score=0.9).identity != RapidOcr(min_score=0.9, min_side=640).identity

    @pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
    def test_missing_package(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match='pip install "rapidocr" onnxruntime'):
            RapidOcr()([drawn((9, 9, "text"))])


class FakeEasyOcr(types.ModuleType):
    """Stands for the package: a reader that finds the same two lines in whatever it is shown."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__("easyocr")
        self.readers: list[dict[str, Any]] = []
        self.shown: list[Any] = []
        self.failure = failure

    def Reader(self, languages: list[str], **options: Any) -> FakeEasyOcr:
        if self.failure:
            raise self.failure
        self.readers.append({"languages": languages, **options})
        return self

    def readtext(self, image: Any) -> list[Any]:
        self.shown.append(image)
        right = ([[90, 12], [150, 10], [150, 30], [90, 32]], "HB", 0.41)
        left = ([[5, 11], [80, 11], [80, 31], [5, 31]], "Zürich", 0.93)
        return [right, left, ([[0, 50], [9, 50], [9, 60], [0, 60]], "~", 0.2)]


class TestEasyOcr:
    def test_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = FakeEasyOcr()
        monkeypatch.setitem(sys.modules, "easyocr", package)
        aligner = EasyOcr(["de", "fr"], model_storage_directory="weights", gpu=False)
        assert not package.readers
        lines = [("Zürich", 0.93), ("HB", 0.41)]
        assert aligner([two_colours((200, 80)), two_colours((200, 80))]) == [lines, lines]
        expected = {"languages": ["de", "fr"], "gpu": False, "model_storage_directory": "weights", "verbose": False}
        assert package.readers == [expected]
        assert package.shown[0].shape == (80, 200, 3)
        assert tuple(package.shown[0][40, 10]) == RED[::-1]
        assert EasyOcr(min_score=0.1, gpu=False)([two_colours((200, 80))])[0][-1] == ("~", 0.2)

    def test_identity(self) -> None:
        assert EasyOcr(["de"], gpu=True, model_storage_directory="weights").identity == EasyOcr(("de",)).identity
        assert EasyOcr(["de"]).identity["settings"] == {"languages": ["de"], "min_score": 0.4}
        assert EasyOcr(["de"]).identity != EasyOcr(["fr"]).identity
        with pytest.raises(ValueError, match=r"write \['en'\]"):
            EasyOcr("en")

    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "easyocr", None)
        with pytest.raises(ImportError, match="pip install easyocr torchvision"):
            EasyOcr()([drawn()])

    @pytest.mark.parametrize("failure", [urllib.error.URLError("no network"), AssertionError("MD5 hash mismatch")])
    def test_weights_out_of_reach(self, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "easyocr", FakeEasyOcr(failure))
        with pytest.raises(OSError, match=r"no weights for en in here .*model_storage_directory=…") as raised:
            EasyOcr(model_storage_directory="here")([drawn()])
        assert raised.value.__cause__ is failure


class FakeTesseract(types.ModuleType):
    """Stands for pytesseract: two lines of words, with the rows of pages and blocks that the program gives too."""

    def __init__(self, failure: BaseException | None = None) -> None:
        super().__init__("pytesseract")
        self.failure = failure
        self.asked: list[dict[str, Any]] = []

    def get_tesseract_version(self) -> str:
        if self.failure:
            raise self.failure
        return "5.9.1"

    def get_languages(self) -> list[str]:
        if self.failure:
            raise self.failure
        return ["chi_sim", "deu", "eng", "osd"]

    def image_to_data(self, image: Image.Image, **options: Any) -> dict[str, list[Any]]:
        self.asked.append({"size": image.size, **options})
        rows = [  # block, paragraph, line, confidence, text, left, top, width, height
            (1, 0, 0, "-1", "", 0, 0, 200, 80),
            (1, 1, 1, 90.0, "Zürich", 100, 40, 60, 12),
            (1, 1, 1, 70.0, "HB", 164, 41, 20, 12),
            (2, 1, 1, 96, "Gleis", 10, 8, 50, 12),
            (2, 1, 1, 95, " ", 62, 8, 5, 12),
            (2, 1, 2, 12, "~", 10, 60, 5, 12),
        ]
        names = ("block_num", "par_num", "line_num", "conf", "text", "left", "top", "width", "height")
        return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


class TestTesseract:
    def test_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = FakeTesseract()
        monkeypatch.setitem(sys.modules, "pytesseract", package)
        aligner = Tesseract(["deu", "eng"], layout=6, min_side=80)
        assert not package.asked
        lines = aligner([two_colours((200, 40)), two_colours((200, 80)), two_colours((160, 8))])
        assert lines == [[("Gleis", 0.96), ("Zürich HB", pytest.approx(0.8))]] * 3
        expected = {"lang": "deu+eng", "config": "--psm 6", "output_type": "dict"}
        assert package.asked == [{"size": size, **expected} for size in ((400, 80), (200, 80), (640, 80))]
        assert Tesseract(min_score=0.1)([two_colours()])[0][-1] == ("~", 0.12)

    def test_identity(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pytesseract", FakeTesseract())
        identity = Tesseract(("deu",)).identity
        assert identity["revision"] == "5.9.1"
        assert identity == json.loads(json.dumps(identity)) == Tesseract(["deu"]).identity
        assert identity != Tesseract(["eng"]).identity != Tesseract(layout=3).identity
        with pytest.raises(ValueError, match=r"write \['eng'\]"):
            Tesseract("eng")

    @pytest.mark.parametrize(
        "failure", [FileNotFoundError("tesseract is not in your PATH"), SystemExit("odd version")]
    )
    def test_missing_program(self, failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pytesseract", FakeTesseract(failure))
        assert Tesseract().identity["revision"] is None
        if isinstance(failure, OSError):
            with pytest.raises(OSError, match="apt-get install tesseract-ocr") as raised:
                Tesseract()([drawn()])
            assert raised.value.__cause__ is failure

    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pytesseract", None)
        assert Tesseract().identity["revision"] is None
        with pytest.raises(ImportError, match="pip install pytesseract"):
            Tesseract()([drawn()])

    def test_missing_language(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pytesseract", FakeTesseract())
        message = (
            r"no language 'fra', 'chi_tra' \(installed: chi_sim, deu, eng, osd\): .*ocr-fra tesseract-ocr-chi-tra"
        )
        with pytest.raises(ValueError, match=message):
            Tesseract(["eng", "fra", "chi_tra"])([drawn()])
        assert Tesseract(["script/Latin"])([drawn()])

    @pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")
    def test_reads_drawn_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("pytesseract")
        monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
        board = drawn((16, 20, "PHOENIX"), (16, 70, "Harbor Books"))
        found = Tesseract()([board, Image.linear_gradient("L").convert("RGB"), two_colours((7, 7))])
        assert [[text for text, _ in lines] for lines in found] == [["PHOENIX", "Harbor Books"], [], []]
        assert all(0.5 <= score <= 1 for _, score in found[0])
        assert Tesseract().identity["revision"][0].isdigit()


STAGES = [[[3, 8, 8, 1, False]], *([[3, 8, 8, stride, False]] for stride in ([2, 1], [1, 2], [2, 1], [2, 1]))]
LETTERS = ["blank", *"abcdefg", " "]


def tiny_backbone(stages: list[Any]) -> dict[str, Any]:
    return {
        "model_type": "pp_lcnet_v3", "block_configs": stages, "stem_channels": 8, "reduction": 2, "divisor": 4,
        "out_features": ["stage2", "stage3", "stage4", "stage5"], "conv_symmetric_num": 1,
    }  # fmt: skip


@pytest.fixture(scope="session")
def pp_ocr_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The folders of a random recogniser of a few letters, and of a random detector."""
    pytest.importorskip("torchvision")
    recognizer, detector = (tmp_path_factory.mktemp(name) for name in ("recognizer", "detector"))
    squares = [[[3, 8, 8, 1, False]], *([[3, 8, 8, 2, False]] for _ in range(4))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config: Any = transformers.PPOCRV5MobileRecConfig(
            backbone_config=tiny_backbone(STAGES), hidden_size=8, depth=1, num_attention_heads=2,
            head_out_channels=len(LETTERS),
        )  # fmt: skip
        model = transformers.AutoModelForTextRecognition.from_config(config)
        model.head.head.weight.data.normal_(std=9)
        model.head.head.bias.data[0] = -100  # never the blank
        model.save_pretrained(recognizer)
        config = transformers.PPOCRV5MobileDetConfig(
            backbone_config=tiny_backbone(squares), neck_out_channels=16, layer_list_out_channels=[4] * 4, reduction=2
        )
        AutoModelForObjectDetection.from_config(config).save_pretrained(detector)
    letters: Any = transformers.PPOCRV5ServerRecImageProcessor
    letters(character_list=LETTERS).save_pretrained(recognizer)
    transformers.PPOCRV5ServerDetImageProcessor().save_pretrained(detector)
    return str(recognizer), str(detector)


class BrightDetector(torch.nn.Module):
    """Stands for a trained detector's model: text is where the picture is red."""

    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, pixels: torch.Tensor) -> Any:
        red = pixels[:, 2:] > pixels[:, :1] + 1  # the processor gives blue first
        return types.SimpleNamespace(last_hidden_state=red.to(torch.bfloat16))


@pytest.mark.skipif(not hasattr(transformers, "PPOCRV5MobileRecConfig"), reason="this transformers has no PP-OCR")
class TestPpOcr:
    @pytest.fixture
    def aligner(self, pp_ocr_folders: tuple[str, str]) -> PpOcr:
        recognizer, detector = pp_ocr_folders
        return PpOcr(recognizer, detector=detector, min_score=0.0, device="cpu")

    def test_detects(self, aligner: PpOcr) -> None:
        pytest.importorskip("cv2")
        aligner.detector.checkpoint.model = BrightDetector()
        image = Image.new("RGB", (400, 300), "navy")
        image.paste("red", (40, 50, 240, 80))
        image.paste("red", (300, 100, 330, 280))
        boxes = sorted(aligner.detector.boxes(image))
        assert len(boxes) == 2
        for corners, box in zip(boxes, [(40, 50, 240, 80), (300, 100, 330, 280)], strict=True):
            found = TextLine.between("", 1, corners)[2:]
            assert all(abs(a - b) < 32 for a, b in zip(found, box, strict=True)), found
            assert found[0] < box[0] and found[3] > box[3]  # the margin that PP-OCR adds
        assert aligner.detector.boxes(Image.new("RGB", (400, 300), "navy")) == []

    def test_reads(self, aligner: PpOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes = [[[150, 60], [190, 60], [190, 80], [150, 80]], [[10, 8], [90, 12], [89, 32], [9, 28]]]
        monkeypatch.setattr(aligner.detector, "boxes", lambda image: boxes if image.width == 200 else [])
        images = tiny_checkpoints.pictures(3)
        images = [images[0].resize((200, 100)), images[1].resize((100, 90)), images[2].resize((200, 100))]
        found = aligner(images)
        assert [len(lines) for lines in found] == [2, 0, 2]
        assert all(set(text) <= set("".join(LETTERS[1:])) and 0 < score <= 1 for row in found for text, score in row)
        assert found == [aligner([image])[0] for image in images]
        assert found[0][1] == aligner._recognize(cut_out(images[0], boxes[0]))
        aligner.min_score = 1.01
        assert aligner(images) == [[], [], []]

    def test_nothing_but_blanks(self, aligner: PpOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        blank = torch.zeros(1, 4, len(LETTERS))
        blank[..., 0] = 1
        monkeypatch.setattr(
            aligner.checkpoint.model, "forward", lambda pixels: types.SimpleNamespace(last_hidden_state=blank)
        )
        assert aligner._recognize(two_colours()) == ("", 0.0)

    def test_random_detector_runs(self, aligner: PpOcr) -> None:
        pytest.importorskip("cv2")
        assert [type(row) for row in aligner([two_colours((90, 64)), two_colours((900, 9))])] == [list, list]

    def test_identity_names_both_checkpoints(
        self, pp_ocr_folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recognizer, detector = (Path(folder) for folder in pp_ocr_folders)
        identity = PpOcr(str(recognizer), detector=str(detector)).identity
        assert identity["model"] == recognizer.name
        assert identity["settings"]["detector"] == detector.name
        assert len(identity["revision"]) == len(identity["settings"]["detector_revision"]) == 64
        assert identity["revision"] != identity["settings"]["detector_revision"]
        assert identity == json.loads(json.dumps(identity))
        assert identity != PpOcr(str(recognizer), detector=str(detector), min_score=0.1).identity
        monkeypatch.chdir(recognizer.parent)
        again = ocr_by_name(identity["model"], identity["revision"], **identity["settings"])
        assert isinstance(again, PpOcr)
        assert again.identity == identity

    def test_repositories(self) -> None:
        sha, other = "a" * 40, "b" * 40
        aligner = ocr_by_name("pp-ocr", sha, detector_revision=other)
        assert isinstance(aligner, PpOcr)
        assert (aligner.identity["model"], aligner.identity["revision"]) == (PP_OCR_RECOGNIZER, sha)
        assert aligner.identity["settings"]["detector"] == PP_OCR_DETECTOR
        assert aligner.identity["settings"]["detector_revision"] == other

    def test_shared_and_pickled(self, aligner: PpOcr, pp_ocr_folders: tuple[str, str]) -> None:
        again = PpOcr(pp_ocr_folders[0], detector=pp_ocr_folders[1], min_score=0.9, device="cpu")
        assert again.checkpoint is aligner.checkpoint
        assert again.detector.checkpoint is aligner.detector.checkpoint
        assert pickle.loads(pickle.dumps(aligner)).identity == aligner.identity

    def test_wrong_checkpoints(self, pp_ocr_folders: tuple[str, str]) -> None:
        _, detector = pp_ocr_folders
        with pytest.raises(ValueError, match="needs a text recogniser of PP-OCR"):
            PpOcr(detector, detector=detector, device="cpu")._recognize(two_colours())
        with pytest.raises(ValueError, match="name the recogniser, and this one as detector="):
            ocr_by_name(detector)

    def test_missing_packages(self, aligner: PpOcr, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(image: Image.Image) -> None:
            raise ImportError("no cv2")

        monkeypatch.setattr(aligner.detector, "boxes", missing)
        with pytest.raises(ImportError, match="pip install torchvision opencv-python-headless"):
            aligner([two_colours()])

    def test_old_transformers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transformers, "AutoModelForTextRecognition", None)
        with pytest.raises(ImportError, match="pip install --upgrade transformers"):
            PpOcr()


@pytest.mark.parametrize("angle", [0, 20, -35])
def test_cut_out_turned_lines(angle: int) -> None:
    line = two_colours((120, 30))
    image = Image.new("RGB", (300, 300), "white")
    image.paste(line, (90, 135))
    turned = image.rotate(angle, Image.Resampling.BICUBIC)
    turn = torch.tensor(angle).deg2rad()
    cos, sin = float(turn.cos()), float(turn.sin())
    offsets = [(-60, -15), (60, -15), (60, 15), (-60, 15)]
    corners = [(150 + x * cos + y * sin, 150 - x * sin + y * cos) for x, y in offsets]
    piece = cut_out(turned, corners)
    assert piece.size == (120, 30)
    for place, colour in (((10, 15), RED), ((110, 15), BLUE)):
        assert all(abs(a - b) < 12 for a, b in zip(piece.getpixel(place), colour, strict=True))  # type: ignore[arg-type]


def test_cut_out_lays_columns_down() -> None:
    image = two_colours((60, 40)).transpose(Image.Transpose.ROTATE_270)  # the red end is on top
    piece = cut_out(image, [(0, 0), (40, 0), (40, 60), (0, 60)])
    assert piece.size == (60, 40)
    assert cut_out(image, [(5, 5), (5, 5), (5, 5), (5, 5)]).size == (1, 1)


@pytest.fixture(scope="session")
def florence_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Florence-2 which writes two lines with their boxes, the lower one first."""
    folder = tmp_path_factory.mktemp("florence")
    lower = [100, 600, 400, 610, 401, 700, 101, 701]
    upper = [102, 110, 900, 111, 901, 200, 103, 201]
    places = ["".join(f"<loc_{number}>" for number in box) for box in (lower, upper)]
    tiny_checkpoints.florence2(folder, writes=f" red street{places[0]} blue sign{places[1]}")
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["post_processor_config"]["ocr"] = {}
    path.write_text(json.dumps(config))
    return str(folder)


class TestFlorence2Ocr:
    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_reads(self, florence_folder: str, num_beams: int) -> None:
        aligner = Florence2Ocr(florence_folder, num_beams=num_beams, min_score=0, max_new_tokens=32, device="cpu")
        images = tiny_checkpoints.pictures(2)
        found = aligner(images)
        assert [[text for text, _ in lines] for lines in found] == [["blue sign", "red street"]] * 2
        assert all(0 < score <= 1 and score == lines[0][1] for lines in found for _, score in lines)
        alone = [aligner([image])[0] for image in images]
        for rows in zip(found, alone, strict=True):
            assert [score for _, score in rows[0]] == pytest.approx([score for _, score in rows[1]], abs=1e-5)
        assert aligner([]) == []
        aligner.min_score = 1.01
        assert aligner(images) == [[], []]

    def test_half_a_box_is_no_line(self, florence_folder: str) -> None:
        aligner = Florence2Ocr(florence_folder, num_beams=1, min_score=0, max_new_tokens=17, device="cpu")
        assert [text for text, _ in aligner(tiny_checkpoints.pictures(1))[0]] == ["red street"]

    def test_real_answers(self, florence_folder: str) -> None:
        """Answers as the released models write them, with the boxes in thousandths of the sides."""
        aligner = Florence2Ocr(florence_folder, device="cpu")
        tokenizer = aligner.checkpoint.processor.tokenizer
        tokens = tokenizer(
            "</s><s> sign<loc_20><loc_500><loc_300><loc_500><loc_300><loc_560><loc_20><loc_560> a dog"
            "<loc_400><loc_90><loc_700><loc_90><loc_700><loc_160><loc_400><loc_160> the<loc_20><loc_100><loc_300>"
            "<loc_100><loc_300><loc_150><loc_20><loc_150></s><pad><pad>",
            add_special_tokens=False,
        )["input_ids"]
        found = aligner._lines(Image.new("RGB", (640, 480)), tokens, 0.75)
        assert [text.replace("<unk>", "sign") for text, _ in found] == ["the", "a dog", "sign"]
        assert {score for _, score in found} == {0.75}

    def test_identity_round_trip(self, florence_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        identity = Florence2Ocr(florence_folder, num_beams=2, min_score=0.5).identity
        assert identity == json.loads(json.dumps(identity))
        monkeypatch.chdir(Path(florence_folder).parent)
        again = ocr_by_name(identity["model"], identity["revision"], **identity["settings"])
        assert isinstance(again, Florence2Ocr)
        assert again.identity == identity
        by_engine = ocr_by_name("florence2", model=florence_folder, num_beams=2, min_score=0.5)
        assert by_engine.identity == identity

    def test_another_checkpoint(self, tmp_path: Path) -> None:
        tiny_checkpoints.blip(tmp_path)
        with pytest.raises(ValueError, match="of the type 'blip': Florence2Ocr needs Florence-2"):
            Florence2Ocr(str(tmp_path), device="cpu")(tiny_checkpoints.pictures(1))
        with pytest.raises(ValueError, match="its model_type is 'blip'"):
            ocr_by_name(str(tmp_path))


class TestByName:
    @pytest.mark.parametrize(
        "aligner",
        [RapidOcr(min_score=0.3, min_side=640), EasyOcr(["fr"], min_score=0.1), Tesseract(["deu"], layout=6)],
        ids=["rapidocr", "easyocr", "tesseract"],
    )
    def test_identity_round_trip(self, aligner: Any) -> None:
        identity = json.loads(json.dumps(aligner.identity))
        assert ocr_by_name(identity["model"], **identity["settings"]).identity == identity
        assert ocr_by_name(identity["model"], identity["revision"], **identity["settings"]).identity == identity

    def test_names(self) -> None:
        assert OCR_NAMES == ("rapidocr", "easyocr", "tesseract", "pp-ocr", "florence2")
        for name, kind in zip(OCR_NAMES, (RapidOcr, EasyOcr, Tesseract, PpOcr, Florence2Ocr), strict=True):
            assert type(ocr_by_name(name)) is kind

    def test_unknown_name(self) -> None:
        with pytest.raises(
            ValueError, match=r"unknown OCR 'tesserakt' \(expected 'rapidocr', .*'florence2', .*owner/name"
        ):
            ocr_by_name("tesserakt")
        with pytest.raises(OSError):
            ocr_by_name("someone/not-on-this-machine")

    def test_another_version_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            ocr_by_name("rapidocr", RapidOcr().identity["revision"])
            assert not caplog.records
            ocr_by_name("rapidocr", "0.1")
        assert "version 0.1 was requested" in caplog.text


def test_engines_have_no_kind() -> None:
    assert not hasattr(RapidOcr(), "kind")
