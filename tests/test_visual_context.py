from __future__ import annotations

import copy
import hashlib
import json
import logging
import pickle
import struct
import sys
import types
import urllib.error
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from modeling_ita.image_file import UnreadableImage, image_sha256, is_blank, open_image
from modeling_ita.ocr import EasyOcr, RapidOcr, TextLine, ocr_by_name, reading_order
from modeling_ita.visual_context import VisualContext, VisualContextBuilder


def drawn(*lines: tuple[int, int, str], size: tuple[int, int] = (256, 192), letters: int = 26) -> Image.Image:
    image = Image.new("RGB", size, (246, 240, 222))
    draw = ImageDraw.Draw(image)
    for x, y, text in lines:
        draw.text((x, y), text, font=ImageFont.load_default(letters), fill=(40, 30, 90))
    return image


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def rapidocr() -> RapidOcr:
    return RapidOcr(threads=1)


class Stub:
    """An aligner that says the size of every image."""

    def __init__(self, kind: str, lines: Callable[[Image.Image], list[str]] = lambda image: [str(image.size)]) -> None:
        self.kind = kind
        self.identity = {"model": f"stub-{kind}", "revision": "7", "settings": {"beams": 5}}
        self.lines = lines
        self.batches: list[int] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        self.batches.append(len(images))
        return [[(line, 1.0) for line in self.lines(image)] for image in images]


class TestVisualContext:
    def test_kinds_are_data(self) -> None:
        context = VisualContext({"knowledge": ["Phoenix is a  team\n here", " \t"], "captions": ["a dog", "the dog"]})
        assert context.kinds == {"knowledge": ["Phoenix is a team here"], "captions": ["a dog", "the dog"]}
        assert (context.captions, context.ocr, context.object_tags) == (["a dog", "the dog"], [], [])
        assert context

    @pytest.mark.parametrize("kinds", [{}, {"ocr": []}, {"ocr": [""], "captions": ["  ", "\u00a0\n"]}])
    def test_context_without_text_is_false(self, kinds: dict[str, list[str]]) -> None:
        assert not VisualContext(kinds)
        assert VisualContext(kinds) == VisualContext()

    def test_equality_is_by_value(self) -> None:
        one = VisualContext({"ocr": ["A"], "captions": ["b"]}, {"ocr": {"model": "x"}})
        assert one == VisualContext({"captions": ["b"], "ocr": [" A "]}, {"ocr": {"model": "x"}})
        assert one != VisualContext({"captions": ["b"], "ocr": ["A"]}, {"ocr": {"model": "y"}})
        assert one != VisualContext({"captions": ["b"], "ocr": ["B"]}, {"ocr": {"model": "x"}})

    def test_does_not_share_the_callers_lists(self) -> None:
        strings, origin = ["A"], {"model": "x"}
        context = VisualContext({"ocr": strings}, {"ocr": origin})
        strings.append("B")
        origin["model"] = "y"
        assert context == VisualContext({"ocr": ["A"]}, {"ocr": {"model": "x"}})
        with pytest.raises(AttributeError):
            context.kinds = {}  # type: ignore[misc]

    def test_row_of_a_file(self) -> None:
        row = {
            "id": "17_06_1",
            "object_tags": [],
            "captions": ["a dog"],
            "ocr": None,
            "mood": ["calm"],
            "source": {"captions": "BLIP-2", "mood": "me"},
            "provenance": {"mood": {"model": "me", "date": "2026-01-01"}, "ocr": None},
        }
        assert VisualContext.from_dict(row) == VisualContext(
            {"captions": ["a dog"], "mood": ["calm"]},
            {"captions": {"model": "BLIP-2"}, "mood": {"model": "me", "date": "2026-01-01"}},
        )

    def test_json_round_trip(self) -> None:
        context = VisualContext(
            {"ocr": ["Zürich HB", "出口"], "knowledge": ["x"]}, {"ocr": {"model": "m", "settings": {"min_score": 0.5}}}
        )
        assert VisualContext.from_dict(json.loads(json.dumps(context.to_dict()))) == context
        assert VisualContext.from_dict(VisualContext().to_dict()) == VisualContext()

    def test_a_context_is_a_row(self) -> None:
        context = VisualContext({"ocr": ["A"]})
        assert VisualContext.from_dict(context) is context
        of_another_copy = types.SimpleNamespace(to_dict=context.to_dict)
        assert VisualContext.from_dict(of_another_copy) == context  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"captions": "a dog"}, r"'captions' must be a list of strings, got one string: write \['a dog'\]"),
            ({"captions": {"0": "a dog"}}, "'captions' must be a list of strings, got {'0'"),
            ({"captions": ["a dog", 3]}, "'captions' must be a list of strings, one of them is 3"),
            ({"captions": [None]}, "'captions' must be a list of strings, one of them is None"),
            ({"": ["a"]}, "'' cannot be the name"),
            ({"captions": ["a dog"], "source": "BLIP-2"}, "'source' must be a dictionary by kind"),
            ({"provenance": {"captions": ["BLIP-2"]}}, "provenance of 'captions' must be a dictionary"),
            (["a dog"], "a visual context is a dictionary"),
        ],
    )
    def test_other_shapes_are_refused_by_name(self, row: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VisualContext.from_dict(row)


RED, BLUE = (220, 20, 30), (10, 40, 200)


def two_colours(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def assert_close(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], within: int = 40) -> None:
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    assert all(abs(a - b) <= within for a, b in zip(found, colour, strict=True)), (found, colour)


def big_png(side: int) -> bytes:
    """A complete 1-bit PNG of side × side black pixels in some 60 kB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    squeeze = zlib.compressobj()
    row = b"\0" * (1 + side // 8)
    pixels = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class TestOpenImage:
    @pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
    def test_formats_whatever_the_name_says(self, tmp_path: Path, image_format: str) -> None:
        path = tmp_path / "picture.jpg"
        path.write_bytes(encoded(two_colours(), image_format))
        for source in (path, str(path), path.read_bytes()):
            image = open_image(source)
            assert (image.mode, image.size) == ("RGB", (60, 40))
            assert_close(image, (10, 20), RED)
            assert_close(image, (50, 20), BLUE)

    def test_pil_image_stays_as_it_was(self) -> None:
        given = two_colours().convert("P")
        assert open_image(given).mode == "RGB"
        assert given.mode == "P"

    def test_first_frame_of_an_animation(self) -> None:
        frames = [Image.new("RGB", (30, 30), BLUE), Image.new("RGB", (30, 30), "white")]
        data = encoded(two_colours((30, 30)), "GIF", save_all=True, append_images=frames)
        assert_close(open_image(data), (5, 5), RED)

    def test_cmyk(self) -> None:
        image = open_image(encoded(two_colours().convert("CMYK"), "JPEG"))
        assert_close(image, (10, 20), RED)
        assert_close(image, (50, 20), BLUE)

    @pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
    @pytest.mark.parametrize("white", [4095, 65535])
    def test_sixteen_bits(self, image_format: str, white: int) -> None:
        deep = Image.new("I;16", (30, 20), 700)
        deep.paste(white, (15, 0, 30, 20))
        image = open_image(encoded(deep, image_format))
        assert image.getpixel((3, 3)) == (0, 0, 0)
        assert image.getpixel((20, 3)) == (255, 255, 255)

    def test_transparency_lies_over_white(self) -> None:
        alpha = Image.new("L", (60, 40), 255)
        alpha.paste(0, (30, 0, 60, 40))
        clear = two_colours()
        clear.putalpha(alpha)
        palette = two_colours().quantize(2)
        blue = palette.getpixel((50, 20))
        for data in (encoded(clear, "PNG"), encoded(clear, "WEBP"), encoded(palette, "PNG", transparency=blue)):
            image = open_image(data)
            assert_close(image, (10, 20), RED)
            assert_close(image, (50, 20), (255, 255, 255), within=2)

    def test_exif_orientation(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: left becomes top
        image = open_image(encoded(two_colours(), "JPEG", exif=exif))
        assert image.size == (40, 60)
        assert_close(image, (20, 10), RED)
        assert_close(image, (20, 50), BLUE)

    def test_size_is_checked_before_decoding(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bomb = tmp_path / "bomb.png"
        bomb.write_bytes(big_png(20_000))
        large = big_png(8_100)
        decoded: list[Any] = []
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
        with pytest.raises(UnreadableImage, match=r"cannot read '.*bomb\.png': .*400000000 pixels"):
            open_image(bomb)
        with pytest.raises(UnreadableImage, match="8,100 × 8,100 pixels are more than max_pixels = 64,000,000"):
            open_image(large)
        with pytest.raises(UnreadableImage, match="max_pixels = 2,399"):
            open_image(encoded(two_colours(), "PNG"), max_pixels=2_399)
        with pytest.raises(UnreadableImage, match="max_pixels = 2,399"):
            open_image(two_colours(), max_pixels=2_399)
        assert not decoded

    def test_max_pixels_is_allowed(self) -> None:
        assert open_image(encoded(two_colours(), "PNG"), max_pixels=2_400).size == (60, 40)

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP"])
    def test_truncated(self, image_format: str) -> None:
        noise = Image.effect_noise((120, 80), 90).convert("RGB")
        data = encoded(noise, image_format)
        assert open_image(data).size == (120, 80)
        with pytest.raises(UnreadableImage, match=f"cannot read the image of {len(data) // 2:,} bytes"):
            open_image(data[: len(data) // 2])

    def test_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("not a picture at all")
        (tmp_path / "script.eps").write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        )
        (tmp_path / "folder.jpg").mkdir()
        for name, reason in {
            "empty.jpg": "none of JPEG",
            "text.jpg": "none of JPEG",
            "script.eps": "none of JPEG",
            "folder.jpg": "not a regular file",
            "absent.jpg": "no such file",
        }.items():
            with pytest.raises(UnreadableImage, match=rf"{name}': .*{reason}"):
                open_image(tmp_path / name)

    def test_large_files_are_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "large.png"
        with path.open("wb") as file:
            file.truncate(100 * 2**20 + 1)
        with pytest.raises(UnreadableImage, match="larger than 100 MiB"):
            open_image(path)

    @pytest.mark.parametrize(
        "url", ["http://x.org/a.jpg", "HTTPS://x.org/a.jpg", "file:///a.jpg", "s3://b/a", "data:image/png;base64,AA"]
    )
    def test_no_url_is_fetched(self, url: str) -> None:
        with pytest.raises(ValueError, match="no URL is fetched: download the image first") as refused:
            open_image(url)
        assert not isinstance(refused.value, UnreadableImage)

    @pytest.mark.parametrize("source", [None, 3, ["a.jpg"]])
    def test_other_types(self, source: Any) -> None:
        with pytest.raises(TypeError, match="a path, bytes or a PIL image"):
            open_image(source)


def test_image_sha256(tmp_path: Path) -> None:
    data = encoded(two_colours(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert image_sha256(tmp_path / "a.png") == image_sha256(data) == hashlib.sha256(data).hexdigest()
    assert image_sha256(two_colours()) == image_sha256(two_colours())
    different = [two_colours(), two_colours((40, 60)), Image.new("RGB", (60, 40)), two_colours().convert("P")]
    different += [Image.new("P", (60, 40)), Image.new("L", (60, 40), 7)]
    different[4].putpalette([9, 9, 9])
    assert len({image_sha256(image) for image in different}) == len(different)


def test_blank_images() -> None:
    grey = Image.new("RGB", (320, 240), (128, 130, 127))
    noisy = Image.blend(grey, Image.effect_noise((320, 240), 20).convert("RGB"), 0.1)
    for blank in (grey, noisy, open_image(encoded(noisy, "JPEG", quality=20)), Image.new("RGB", (1, 1))):
        assert is_blank(blank)
    few_letters = drawn((10, 10, "ok"), letters=12)
    for picture in (few_letters, two_colours(), Image.linear_gradient("L"), Image.effect_noise((99, 99), 60)):
        assert not is_blank(picture)


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

            def __call__(self, image: Image.Image) -> Any:
                return types.SimpleNamespace(txts=None)

        aligner = RapidOcr(threads=3, min_side=111)
        monkeypatch.setitem(sys.modules, "rapidocr", types.SimpleNamespace(RapidOCR=Engine))
        assert not made
        assert [aligner([drawn()]) for _ in range(2)] == [[[]], [[]]]
        assert len(made) == 1
        assert made[0]["EngineConfig.onnxruntime.intra_op_num_threads"] == 3
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
            VisualContextBuilder("rapidocr")([drawn((9, 9, "text"))])


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


def test_ocr_by_name() -> None:
    assert ocr_by_name("rapidocr", min_score=0.3).identity["settings"]["min_score"] == 0.3
    assert ocr_by_name("easyocr", languages=["fr"]).identity["settings"]["languages"] == ["fr"]
    with pytest.raises(ValueError, match=r"unknown OCR 'tesseract' .*'rapidocr' or 'easyocr'"):
        ocr_by_name("tesseract")


class TestBuilder:
    def test_reads_live(self, rapidocr: RapidOcr) -> None:
        builder = VisualContextBuilder(rapidocr)
        (context,) = builder([encoded(drawn((16, 20, "PHOENIX")), "PNG")])
        assert context.ocr == ["PHOENIX"]
        assert context.kinds.keys() == {"ocr"}

    @pytest.mark.parametrize("absent", ["ocr", "captioner", "object_tagger"])
    def test_any_of_the_three_may_be_missing(self, absent: str) -> None:
        aligners: dict[str, Any] = {
            "ocr": Stub("ocr"),
            "captioner": Stub("captions"),
            "object_tagger": Stub("object_tags"),
        }
        made = {aligner.kind for place, aligner in aligners.items() if place != absent}
        aligners[absent] = None
        (context,) = VisualContextBuilder(**aligners)([two_colours()])
        assert context.kinds == {kind: ["(60, 40)"] for kind in made}
        assert context.provenance.keys() == made

    def test_no_aligner_at_all(self) -> None:
        assert VisualContextBuilder(ocr=None)([two_colours()]) == [VisualContext()]

    def test_order_of_the_kinds(self) -> None:
        builder = VisualContextBuilder(Stub("ocr"), Stub("captions"), Stub("object_tags"), [Stub("mood"), Stub("age")])
        assert [aligner.kind for aligner in builder.aligners] == ["object_tags", "captions", "ocr", "mood", "age"]
        assert list(builder([two_colours()])[0].kinds) == ["object_tags", "captions", "ocr", "mood", "age"]

    def test_images_without_context_are_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "broken.jpg").write_text("?")
        (tmp_path / "blank.png").write_bytes(encoded(Image.new("RGB", (50, 50), "grey"), "PNG"))
        stub = Stub("ocr", lambda image: [] if image.width == 10 else [str(image.size)])
        builder = VisualContextBuilder(stub, max_pixels=10_000)
        images = [
            None,
            two_colours((60, 40)),
            tmp_path / "broken.jpg",
            tmp_path / "blank.png",
            tmp_path / "absent.png",
            two_colours((10, 10)),
            two_colours((101, 100)),
            two_colours((30, 20)),
        ]
        with caplog.at_level(logging.WARNING):
            contexts = builder(images)
        assert [context.ocr for context in contexts] == [[], ["(60, 40)"], [], [], [], [], [], ["(30, 20)"]]
        assert builder.counts == {"images": 8, "built": 2, "empty": 1, "missing": 1, "unreadable": 3, "blank": 1}
        assert stub.batches == [3]
        for name in ("broken.jpg", "blank.png", "absent.png", "size=101x100"):
            assert sum(name in record.getMessage() for record in caplog.records) == 1
        assert [bool(context.provenance) for context in contexts] == [i in (1, 5, 7) for i in range(8)]
        builder([None])
        assert builder.counts["missing"] == 2
        assert builder([]) == []

    def test_url_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no URL is fetched"):
            VisualContextBuilder(Stub("ocr"))(["https://x.org/a.jpg"])

    def test_provenance(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(encoded(two_colours(), "PNG"))
        by_path, by_bytes = VisualContextBuilder(Stub("ocr"), Stub("captions"))([path, path.read_bytes()])
        for kind in ("ocr", "captions"):
            made = dict(by_path.provenance[kind])
            assert made.pop("date")[10:] > "T" and made.pop("image_sha256") == image_sha256(path)
            assert made == {"model": f"stub-{kind}", "revision": "7", "settings": {"beams": 5}}
        assert by_bytes.provenance["ocr"]["image_sha256"] == image_sha256(path)
        assert VisualContext.from_dict(json.loads(json.dumps(by_path.to_dict()))) == by_path

    def test_settings_round_trip(self) -> None:
        builder = VisualContextBuilder(EasyOcr(["de"], min_score=0.7), max_pixels=10**6)
        saved = json.loads(json.dumps(builder.to_dict()))
        again = VisualContextBuilder.from_dict(saved)
        assert again.to_dict() == saved
        assert again.ocr.identity == EasyOcr(["de"], min_score=0.7).identity
        assert again.max_pixels == 10**6
        assert VisualContextBuilder.from_dict(VisualContextBuilder(None).to_dict()).aligners == []

    def test_settings_of_an_aligner_of_ones_own(self) -> None:
        saved = VisualContextBuilder(captioner=Stub("captions")).to_dict()
        with pytest.raises(ValueError, match=r"from the name 'stub-captions' here: pass the object \(captioner=…\)"):
            VisualContextBuilder.from_dict(saved)
        captioner = Stub("captions")
        assert VisualContextBuilder.from_dict(saved, captioner=captioner).captioner is captioner

    def test_unfit_aligners(self) -> None:
        with pytest.raises(ValueError, match="unknown OCR 'tesseract'"):
            VisualContextBuilder("tesseract")
        with pytest.raises(ValueError, match="ocr= takes an aligner of the kind 'ocr', got one of 'captions'"):
            VisualContextBuilder(Stub("captions"))
        with pytest.raises(ValueError, match="the same kind"):
            VisualContextBuilder(Stub("ocr"), others=[Stub("ocr")])

        class Short(Stub):
            def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
                return super().__call__(images[1:])

        with pytest.raises(ValueError, match="aligner of 'ocr' gave 1 lists for 2 images"):
            VisualContextBuilder(Short("ocr"))([two_colours(), two_colours()])
