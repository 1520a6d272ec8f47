"""Hostile and odd image files, each with what becomes of it: `"readable"`, `"unreadable"` or `"blank"`."""

from __future__ import annotations

import os
import struct
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps, TiffImagePlugin

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def picture(size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A sign in two colours, which is neither blank nor of one colour."""
    image = Image.new("RGB", size, (220, 20, 30))
    image.paste((10, 40, 200), (size[0] // 2, 0, *size))
    ImageDraw.Draw(image).text((8, 8), "PHOENIX", font=ImageFont.load_default(24), fill="white")
    return image


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size: tuple[int, int], bits: int = 8, colour: int = 0, pixels: bytes = b"", before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    return PNG_SIGNATURE + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def deflated(size: int) -> bytes:
    """A great many zeros, compressed; made by the block, to need no memory."""
    squeeze, block = zlib.compressobj(), bytes(2**20)
    pieces = [squeeze.compress(block[: min(2**20, size - start)]) for start in range(0, size, 2**20)]
    return b"".join(pieces) + squeeze.flush()


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A TIFF of one directory: number → (type, count, value), and `data` from byte 8 on."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def tiff_tags(width: int, height: int, length: int, compression: int = 1) -> dict[int, tuple[int, int, int]]:
    values = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: length}
    return {tag: (4, 1, value) for tag, value in values.items()}


def gradient(mode: str, size: tuple[int, int] = (160, 120)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


def with_orientation(orientation: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), "JPEG", exif=exif)


def with_nan(where: tuple[int, int]) -> bytes:
    image = gradient("F")
    image.putpixel(where, float("nan"))
    return encoded(image, "TIFF")


def truncated_files() -> dict[str, tuple[str, bytes]]:
    noise = Image.effect_noise((160, 120), 90).convert("RGB")
    files = {}
    for image_format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        data = encoded(noise, image_format)
        for share in (0.02, 0.5, 0.9):
            name = f"truncated-{share}.{image_format.lower()}"
            files[name] = ("unreadable", data[: max(3, int(share * len(data)))])
    return files


def bombs() -> dict[str, tuple[str, bytes]]:
    text = chunk(b"zTXt", b"Comment\0\0" + deflated(2**22))
    international = chunk(b"iTXt", b"Comment\0\1\0\0\0" + deflated(2**22))
    profile = chunk(b"iCCP", b"profile\0\0" + deflated(2**22))
    zeros = zlib.compress(bytes(121 * 160))
    tiles = tiff_tags(64, 64, 0, compression=8)
    del tiles[273], tiles[278], tiles[279]
    squeezed = deflated(9_000 * 9_000)
    tiles |= {322: (4, 1, 9_000), 323: (4, 1, 9_000), 324: (4, 1, 8), 325: (4, 1, len(squeezed))}
    return {
        "20000-squared.png": ("unreadable", png((20_000, 20_000), bits=1, pixels=deflated(20_000 * 2_501))),
        "claims-2-to-31.png": ("unreadable", png((2**31 - 1, 2**31 - 1), pixels=zeros)),
        "claims-no-pixels.png": ("unreadable", png((0, 0), pixels=zeros)),
        "more-pixels-than-claimed.png": ("blank", png((160, 120), pixels=deflated(2**22))),
        "text-bomb.png": ("unreadable", png((160, 120), pixels=zeros, before=text)),
        "international-text-bomb.png": ("unreadable", png((160, 120), pixels=zeros, before=international)),
        "profile-bomb.png": ("unreadable", png((160, 120), pixels=zeros, before=profile)),
        "huge-screen.gif": ("unreadable", b"GIF89a\xff\xff\xff\xff" + encoded(picture(), "GIF")[10:]),
        "claims-65500-squared.jpg": ("unreadable", claims_jpeg(encoded(picture(), "JPEG"), 65_500)),
        "claims-7000-squared.jpg": ("readable", claims_jpeg(encoded(picture(), "JPEG"), 6_999)),
        "claims-2-to-30.bmp": ("unreadable", claims_bmp(2**30)),
        "claims-7000-squared.bmp": ("unreadable", claims_bmp(7_000)),
        "strip-beyond-the-end.tif": ("unreadable", tiff(tiff_tags(160, 120, 2**31))),
        "rows-of-2-to-31.tif": ("unreadable", tiff({**tiff_tags(160, 120, 99), 278: (4, 1, 2**31)}, bytes(99))),
        "tag-of-4-gigabytes.tif": ("unreadable", tiff({**tiff_tags(160, 120, 9), 273: (4, 2**30, 8)}, bytes(9))),
        "claims-100000-squared.tif": ("unreadable", tiff(tiff_tags(100_000, 100_000, 9), bytes(9))),
        "huge-tile.tif": ("unreadable", tiff(tiles, squeezed)),
        "own-directory.tif": (
            "unreadable",
            b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 330, 4, 1, 8) + b"\x08\0\0\0",
        ),
    }


def claims_jpeg(data: bytes, side: int) -> bytes:
    """A small JPEG whose header claims another size; what is not there decodes as grey."""
    start = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data) + 5
    return data[:start] + struct.pack(">HH", side, side) + data[start + 4 :]


def claims_bmp(side: int) -> bytes:
    data = encoded(picture(), "BMP")
    return data[:18] + struct.pack("<ii", side, side) + data[26:]


def large_images() -> dict[str, tuple[str, bytes]]:
    """Images up to the limits, in the modes and formats that need the most memory."""

    def striped(bits: int, colour: int, row: bytes) -> bytes:
        squeeze = zlib.compressobj(1)
        pixels = b"".join(squeeze.compress(b"\0" + row) for _ in range(7_000)) + squeeze.flush()
        return png((7_000, 7_000), bits, colour, pixels)

    four = encoded(gradient("CMYK"), "JPEG", progressive=True)
    clear = Image.new("RGBA", (6_200, 4_000), (0, 9, 200, 99))
    return {
        "49-megapixels-16-bit.png": ("readable", striped(16, 0, bytes(7_000) + b"\x0f\xff" * 3_500)),
        "49-megapixels-rgba.png": ("readable", striped(8, 6, b"\0\x40\x80\xff" * 3_500 + b"\xff" * 14_000)),
        "49-megapixels-progressive.jpg": ("readable", claims_jpeg(four, 7_000)),
        "25-megapixels.webp": ("blank", encoded(clear, "WEBP", lossless=True, quality=0, method=0)),
    }


def odd_images() -> dict[str, tuple[str, bytes]]:
    image = picture()
    blue = image.quantize(4)
    frames = [Image.new("RGB", image.size, "green"), Image.new("RGB", image.size, "white")]
    animated: dict[str, Any] = {"save_all": True, "append_images": frames, "duration": 50}
    four = image.convert("CMYK")
    adobe = bytearray(encoded(ImageOps.invert(image).convert("CMYK"), "JPEG"))
    data = bytearray(encoded(image, "PNG"))
    data[data.index(b"IDAT") + 8] ^= 0xFF
    deep = gradient("I").point(lambda value: value * 256)
    sixteen = (b"\0" + b"\xff\0\0\0\0\0\xff\xff" * 80 + b"\0\0\xff\xff\0\0\xff\xff" * 80) * 120
    premultiplied = TiffImagePlugin.ImageFileDirectory_v2()
    premultiplied[338] = 1
    return {
        "orientation-0.jpg": ("readable", with_orientation(0)),
        **{f"orientation-{number}.jpg": ("readable", with_orientation(number)) for number in range(1, 9)},
        "orientation-77.jpg": ("readable", with_orientation(77)),
        "broken-exif.jpg": ("readable", encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")),
        "broken-profile.jpg": ("readable", encoded(image, "JPEG", icc_profile=b"\xff\0no profile" * 9)),
        "broken-profile.png": ("readable", encoded(image, "PNG", icc_profile=b"\xff\0no profile" * 9)),
        "cmyk.jpg": ("readable", encoded(four, "JPEG")),
        "cmyk-adobe.jpg": ("readable", bytes(adobe)),
        "cmyk.tif": ("readable", encoded(four, "TIFF")),
        "ycbcr.tif": ("readable", encoded(image.convert("YCbCr"), "TIFF", compression="tiff_deflate")),
        "palette-transparent.png": ("readable", encoded(blue, "PNG", transparency=1)),
        "palette-transparent.gif": ("readable", encoded(blue, "GIF", transparency=1)),
        "grey-and-alpha.png": ("readable", encoded(gradient("LA"), "PNG")),
        "premultiplied.tif": ("readable", encoded(image.convert("RGBA"), "TIFF", tiffinfo=premultiplied)),
        "clear.png": ("blank", encoded(Image.new("RGBA", (160, 120), (9, 9, 9, 0)), "PNG")),
        "16-bit.png": ("readable", encoded(deep.convert("I;16"), "PNG")),
        "16-bit.tif": ("readable", encoded(deep.convert("I;16"), "TIFF")),
        "16-bit-rgba.png": ("readable", png((160, 120), bits=16, colour=6, pixels=zlib.compress(sixteen))),
        "1-bit.png": ("readable", encoded(image.convert("1"), "PNG")),
        "float.tif": ("readable", encoded(gradient("F"), "TIFF")),
        "float-infinite.tif": ("unreadable", encoded(gradient("F").point(lambda value: value * 1e38 + 0), "TIFF")),
        "float-first-not-a-number.tif": ("unreadable", with_nan((0, 0))),
        "float-not-a-number.tif": ("readable", with_nan((80, 60))),
        "animated.gif": ("readable", encoded(image, "GIF", **animated)),
        "animated.webp": ("readable", encoded(image, "WEBP", **animated)),
        "animated.png": ("readable", encoded(image, "PNG", **animated)),
        "pages.tif": ("readable", encoded(image, "TIFF", save_all=True, append_images=frames)),
        "one-pixel.png": ("blank", encoded(Image.new("RGB", (1, 1), "red"), "PNG")),
        "column.png": ("blank", encoded(gradient("L", (1, 20_000)), "PNG")),
        "row.png": ("blank", encoded(gradient("L", (1, 20_000)).transpose(Image.Transpose.ROTATE_90), "PNG")),
        "png-inside.jpg": ("readable", encoded(image, "PNG")),
        "jpeg-inside.png": ("readable", encoded(image, "JPEG")),
        "text-after.jpg": ("readable", encoded(image, "JPEG") + b"<?php echo 1 ?>\0" * 99),
        "wrong-checksum.png": ("unreadable", bytes(data)),
        "chunk-of-2-gigabytes.png": ("unreadable", bytes(data[:33] + b"\x7f\xff\xff\xff" + data[37:])),
        "no-data.png": ("unreadable", bytes(data[:33]) + chunk(b"IEND", b"")),
        "blank.jpg": ("blank", encoded(Image.new("RGB", (640, 480), (221, 221, 221)), "JPEG", quality=20)),
    }


def no_images() -> dict[str, tuple[str, bytes]]:
    page = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>Not Found</body></html>"
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("a.png", encoded(picture(), "PNG"))
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"not a picture at all",
        "page.jpg": page,
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "archive.jpg": archive.getvalue(),
        "icon.ico": encoded(picture(), "ICO"),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "drawing.wmf": b"\xd7\xcd\xc6\x9a" + bytes(80),
        "zeros.png": bytes(5_000),
        "only-a-signature.png": PNG_SIGNATURE,
        "only-a-signature.jpg": b"\xff\xd8\xff",
        "only-a-signature.gif": b"GIF89a",
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40,
        "\u202egnp.jpg": b"\0\0text",
    }
    return {name: ("unreadable", data) for name, data in contents.items()}


def write_hostile_images(folder: Path, large: bool = True) -> dict[str, str]:
    """Write the files and return what becomes of each: file name → `"readable"`, `"unreadable"` or `"blank"`.

    Args:
        folder: where to write; it exists.
        large: also write the images of up to 50 million pixels, which take some seconds to make.
    """
    files = {**truncated_files(), **bombs(), **odd_images(), **no_images(), **(large_images() if large else {})}
    states = {}
    for name, (state, data) in files.items():
        (folder / name).write_bytes(data)
        states[name] = state
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(folder / "absent.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
        states["pipe.jpg"] = "unreadable"
    with (folder / "101-mebibytes.png").open("wb") as file:
        file.truncate(101 * 2**20)
    special = ("folder.jpg", "dangling.jpg", "loop.jpg", "101-mebibytes.png")
    return states | dict.fromkeys(special, "unreadable")


if __name__ == "__main__":
    print(len(write_hostile_images(Path(sys.argv[1]))), "files")
