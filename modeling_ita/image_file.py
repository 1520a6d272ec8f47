"""Image files: opened safely, identified by their content, and looked at for being blank."""

from __future__ import annotations

import hashlib
import os
import re
from io import BytesIO
from pathlib import Path
from typing import TypeAlias, cast

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
MAX_BYTES = 100 * 2**20

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image


class UnreadableImage(ValueError):
    """An image that cannot be opened, or must not be; the message names it and the reason."""


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as RGB, upright: EXIF orientation applied, transparency over white, the first frame if animated.

    The content decides about the format (JPEG, PNG, GIF, WebP, BMP, TIFF), not the file's name. The size is taken
    from the header, so that a decompression bomb is refused before it is decoded.

    Args:
        source: a path, a file's bytes, or a PIL image.
        max_pixels: most pixels (width × height) that are decoded.

    Raises:
        UnreadableImage: there is no such file, it is larger than 100 MiB or `max_pixels`, truncated or no image.
        ValueError: the source is a URL. Nothing is ever fetched.
        TypeError: the source is something else altogether.
    """
    _check_local(source)
    try:
        if isinstance(source, Image.Image):
            return _rgb(ImageOps.exif_transpose(_checked(source, max_pixels)))
        image = _checked(Image.open(BytesIO(_bytes(source)), formats=FORMATS), max_pixels)
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"cannot read {image_name(source)}: it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders of damaged or hostile files raise whatever they like
        raise UnreadableImage(f"cannot read {image_name(source)}: {error}") from error


def image_sha256(source: ImageSource) -> str:
    """The sha256 that identifies an image: of the file's bytes, or of a PIL image's size and RGB pixels.

    Raises:
        OSError: the file cannot be read.
        ValueError: the source is a URL.
        TypeError: the source is neither a path nor bytes nor a PIL image.
    """
    _check_local(source)
    if isinstance(source, Image.Image):
        return hashlib.sha256(f"{source.size} ".encode() + _rgb(source).tobytes()).hexdigest()
    return hashlib.sha256(_bytes(source)).hexdigest()


def is_blank(image: Image.Image) -> bool:
    """Whether a picture is of one colour: all but 1 in 5,000 values of every channel lie within ±16 of one.

    The margin covers the noise of JPEG. A placeholder of this kind says nothing, and a captioner shown one invents.
    """
    channels = _rgb(image).histogram()
    few = image.width * image.height / 5000
    for histogram in (channels[:256], channels[256:512], channels[512:]):
        commonest = histogram.index(max(histogram))
        if sum(histogram) - sum(histogram[max(0, commonest - 16) : commonest + 17]) > few:
            return False
    return True


def _check_local(source: ImageSource) -> None:
    if not isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        raise TypeError(f"an image is a path, bytes or a PIL image, got {type(source).__name__}")
    if isinstance(source, (str, os.PathLike)) and re.match(r"data:|[a-zA-Z][\w+.-]+:/", os.fspath(source)):
        raise ValueError(
            f"{image_name(source)} is a URL, and no URL is fetched: download the image first and pass its path"
        )


def _bytes(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if not path.is_file():  # a pipe or a device would be read forever
        raise OSError("it is not a regular file" if path.exists() else "there is no such file")
    if path.stat().st_size > MAX_BYTES:
        raise OSError(f"the file is larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def image_name(source: ImageSource) -> str:
    """What to call an image in a message."""
    if isinstance(source, bytes):
        return f"the image of {len(source):,} bytes"
    return repr(source) if isinstance(source, Image.Image) else f"{os.fspath(source)!r:.200}"


def _checked(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width:,} × {height:,} pixels are more than max_pixels = {max_pixels:,}")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Deep greyscale has no agreed white (12 bits are stored in 16), so the values present span black to white.
        deep = image.convert("F") if image.mode in ("I", "I;16", "F") else image.convert("I").convert("F")
        low, high = cast("tuple[float, float]", deep.getextrema())
        scale = 255 / ((high - low) or 1)
        return deep.point(lambda value: value * scale - low * scale).convert("L").convert("RGB")
    if image.has_transparency_data:
        white, image = Image.new("RGB", image.size, "white"), image.convert("RGBA")
        white.paste(image, mask=image)
        return white
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
