from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_images import deflated, encoded, png, write_hostile_images
from PIL import Image, ImageDraw, ImageFont

from dataset_scripts.contexts.placeholders import placeholder_groups
from modeling_ita import image_file
from modeling_ita.image_file import (
    UnreadableImage,
    image_sha256,
    is_blank,
    open_image,
    plain_fingerprint,
    read_image_file,
)

RED, BLUE = (220, 20, 30), (10, 40, 200)


def drawn(
    text: str, letters: int = 26, size: tuple[int, int] = (256, 192), ground: Any = (246, 240, 222)
) -> Image.Image:
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).text((16, 40), text, font=ImageFont.load_default(letters), fill=(40, 30, 90))
    return image


def two_colours(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def assert_close(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], within: int = 40) -> None:
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    assert all(abs(a - b) <= within for a, b in zip(found, colour, strict=True)), (found, colour)


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
        bomb.write_bytes(png((20_000, 20_000), bits=1, pixels=deflated(20_000 * 2_501)))
        large = png((8_100, 8_100), bits=1, pixels=deflated(8_100 * 1_014))
        decoded: list[Any] = []
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
        with pytest.raises(UnreadableImage, match=r"cannot read '.*bomb\.png': .*400000000 pixels"):
            open_image(bomb)
        with pytest.raises(UnreadableImage, match="8,100 × 8,100 pixels are more than max_pixels = 50,000,000"):
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

    @pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
    def test_large_images_are_reduced(self, image_format: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        image = open_image(encoded(two_colours((6_000, 1_001)), image_format, exif=exif))
        assert image.size == (427, 2560)
        assert_close(image, (200, 1_200), RED)
        assert_close(image, (200, 1_360), BLUE)
        assert open_image(encoded(two_colours((2_560, 40)), image_format)).size == (2_560, 40)
        assert open_image(encoded(two_colours((900, 600)), image_format), max_side=300).size == (300, 200)
        given = two_colours((3_000, 30))
        assert open_image(given).size == (2_560, 26)
        assert given.size == (3_000, 30)

    def test_reducing_misses_no_strip(self) -> None:
        """The strips of a large image lie seamlessly one under the other, whatever the factor."""
        height = 9_001
        ramp = Image.linear_gradient("L").resize((900, height))
        for mode in ("L", "RGBA", "P", "I;16"):
            image = (ramp.convert("I") if mode == "I;16" else ramp).convert(mode)
            reduced = open_image(image, max_side=1_000).convert("L")
            assert reduced.size == (100, 1_000)
            rows = [reduced.getpixel((50, row)) for row in range(1_000)]
            assert all(abs(value - row * 255 / 999) <= 3 for row, value in enumerate(rows)), mode  # type: ignore[operator]

    def test_webp_has_a_bound_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image_file, "MAX_WEBP_PIXELS", 2_399)
        assert open_image(encoded(two_colours(), "PNG")).size == (60, 40)
        with pytest.raises(UnreadableImage, match="max_pixels = 2,399"):
            open_image(encoded(two_colours(), "WEBP"))

    def test_given_image_is_not_shared(self) -> None:
        given = two_colours()
        opened = open_image(given)
        opened.paste("white", (0, 0, 60, 40))
        assert given.getpixel((0, 0)) == RED

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "PA", "RGBa", "RGBX", "YCbCr", "HSV", "CMYK", "I", "F"])
    def test_modes_of_pil(self, mode: str) -> None:
        through = {"La": "LA", "PA": "P", "RGBa": "RGBA", "HSV": "RGB"}.get(mode)
        image = two_colours().convert(through) if through else two_colours()
        opened = open_image(image.convert(mode))
        assert (opened.mode, opened.size) == ("RGB", (60, 40))
        assert opened.getpixel((10, 20)) != opened.getpixel((50, 20)) or mode == "1"

    @pytest.mark.parametrize(
        ("orientation", "size", "red"),
        [
            (1, (60, 40), (5, 20)),
            (2, (60, 40), (55, 20)),
            (3, (60, 40), (55, 20)),
            (4, (60, 40), (5, 20)),
            (5, (40, 60), (20, 5)),
            (6, (40, 60), (20, 5)),
            (7, (40, 60), (20, 55)),
            (8, (40, 60), (20, 55)),
            (9, (60, 40), (5, 20)),
        ],
    )
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_all_orientations(
        self, image_format: str, orientation: int, size: tuple[int, int], red: tuple[int, int]
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = open_image(encoded(two_colours(), image_format, exif=exif))
        assert image.size == size
        assert_close(image, red, RED)

    def test_messages_are_the_same_for_the_same_bytes(self) -> None:
        causes = []
        for _ in range(2):
            with pytest.raises(UnreadableImage) as error:
                open_image(b"not an image" + bytes(99))
            causes.append(str(error.value.__cause__))
        assert causes == ["it is none of JPEG, PNG, GIF, WEBP, BMP, TIFF"] * 2

    def test_large_images_are_decoded_one_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image_file, "STRIP_PIXELS", 1_000)
        at_work, most = [], []
        load = Image.Image.load

        def slow(image: Image.Image) -> Any:
            at_work.append(image)
            most.append(len(at_work))
            time.sleep(0.01)
            at_work.pop()
            return load(image)

        class Slow(Image.Image):
            load = slow

        def opened() -> None:
            image = Slow()
            image.__dict__.update(two_colours().__dict__)
            open_image(image)

        threads = [threading.Thread(target=opened) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(most) >= 4 and max(most) == 1

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore")
    def test_a_fork_does_not_wait_for_the_parents_threads(self) -> None:
        with image_file._large_images:
            child = os.fork()
            if child == 0:
                os._exit(0 if image_file._large_images.acquire(timeout=5) else 1)
            assert os.waitpid(child, 0)[1] == 0


class TestReadImageFile:
    def test_reads(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        assert read_image_file(tmp_path / "a") == read_image_file(str(tmp_path / "a")) == b"abc"

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_image_file(tmp_path / "absent")
        with pytest.raises(OSError, match="not a regular file"):
            read_image_file(tmp_path)
        with pytest.raises(ValueError, match="no URL is fetched"):
            read_image_file("https://x.org/a.jpg")


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
    few_letters = drawn("ok", letters=12)
    for picture in (few_letters, two_colours(), Image.linear_gradient("L"), Image.effect_noise((99, 99), 60)):
        assert not is_blank(picture)


def test_blank_is_decided_over_the_whole_picture() -> None:
    page = Image.new("RGB", (2_560, 2_560), "white")
    assert is_blank(page)
    mark = page.copy()
    mark.paste("black", (2_000, 2_500, 2_040, 2_540))  # 1,600 of the 1,310 pixels that may differ
    assert not is_blank(mark)
    speck = page.copy()
    speck.paste("black", (2_000, 2_500, 2_036, 2_536))
    assert is_blank(speck)
    halves = page.copy()
    halves.paste("black", (0, 1_280, 2_560, 2_560))
    assert not is_blank(halves)


PLACEHOLDERS: dict[str, Callable[[], Image.Image]] = {
    "text": lambda: drawn("Image not found", 40, (640, 480), (221, 221, 221)),
    "other text": lambda: drawn("No photo", 40, (640, 480), (221, 221, 221)),
    "text on white": lambda: drawn("This image is no longer available", 20, (600, 300), "white"),
    "logo": lambda: logo("ellipse", (220, 30, 30)),
    "other logo": lambda: logo("rectangle", (20, 90, 200)),
    "third logo": lambda: logo("line", (0, 0, 0)),
}


def logo(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (500, 500), "white")
    options: dict[str, Any] = {"width": 14} if shape == "line" else {}
    getattr(ImageDraw.Draw(image), shape)((190, 210, 320, 300), fill=colour, **options)
    return image


class TestPlainFingerprint:
    @pytest.mark.parametrize("name", PLACEHOLDERS)
    def test_copies_are_one_placeholder_and_the_others_are_not(self, name: str) -> None:
        image = PLACEHOLDERS[name]()
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        copies = [
            image,
            open_image(encoded(image, "PNG")),
            open_image(encoded(image, "JPEG", quality=60)),
            open_image(encoded(image, "JPEG", quality=90)),
            open_image(encoded(image, "WEBP", quality=80)),
            half,
            open_image(encoded(half, "JPEG", quality=75)),
        ]
        others = [make() for other, make in PLACEHOLDERS.items() if other != name]
        photograph = Image.effect_noise((300, 200), 90).convert("RGB")
        prints = [plain_fingerprint(picture) or "" for picture in [photograph, *copies, *others]]
        assert placeholder_groups(prints, len(copies)) == [list(range(1, 1 + len(copies)))]
        assert placeholder_groups(prints, 2) == [list(range(1, 1 + len(copies)))]
        assert placeholder_groups(prints, len(copies) + 1) == placeholder_groups(prints, 0) == []

    def test_many_sentences_on_white_are_no_placeholder(self) -> None:
        draw = random.Random(0)
        words = [
            "Obama",
            "won",
            "in",
            "Ohio",
            "Messi",
            "is",
            "leaving",
            "Phoenix",
            "tonight",
            "the",
            "breaking",
            "sun",
        ]
        prints = []
        for _ in range(120):
            text = " ".join(draw.choices(words, k=draw.randint(3, 5)))
            font = ImageFont.load_default(32)
            quote = Image.new("RGB", (600, 315), "white")
            pen = ImageDraw.Draw(quote)
            pen.text((300 - pen.textlength(text, font) / 2, 140), text, fill="black", font=font)
            prints.append(plain_fingerprint(quote) or "")
        assert all(prints)
        assert placeholder_groups(prints) == []
        assert placeholder_groups([*prints, *prints[:1] * 9]) == [[0, *range(120, 129)]]

    def test_photographs_have_none(self) -> None:
        noise = Image.effect_noise((300, 200), 90).convert("RGB")
        sand = Image.effect_noise((2_000, 1_500), 40).convert("RGB")
        for picture in (
            sand,
            two_colours(),
            noise,
            Image.linear_gradient("L").convert("RGB"),
            Image.effect_mandelbrot((200, 200), (-2, -1.5, 1, 1.5), 50).convert("RGB"),
        ):
            assert plain_fingerprint(picture) is None

    @pytest.mark.parametrize("size", [(1, 1), (1, 2_000), (2_000, 1), (7, 3)])
    def test_odd_sizes(self, size: tuple[int, int]) -> None:
        assert plain_fingerprint(Image.new("RGB", size, "red"))


def test_hostile_images(tmp_path: Path) -> None:
    """Each is opened or refused as it should be; `test_build_visual_context` watches the memory."""
    expected = write_hostile_images(tmp_path, large=False)
    assert len(expected) >= 95
    for name, state in expected.items():
        try:
            image = open_image(tmp_path / name)
            found = "blank" if is_blank(image) else "readable"
            assert image.mode == "RGB" and max(image.size) <= image_file.MAX_SIDE
        except UnreadableImage:
            found = "unreadable"
        assert found == state, name
