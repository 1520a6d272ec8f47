"""Image files: opened safely, identified by their content, and checked for being blank."""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from itertools import accumulate
from operator import sub
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from PIL import Image, ImageChops, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
MAX_WEBP_PIXELS = 25_000_000  # the WebP decoder holds four copies
MAX_BYTES = 100 * 2**20
MAX_SIDE = 2560  # pixels; no aligner uses more
STRIP_PIXELS = 4_000_000
MIN_SIDE = 16  # pixels; smaller images show nothing that can be named
SAMPLE = 128  # pixels per side; enough to see that a picture is not a single colour
MARGIN = 16  # of 255; the noise that JPEG adds to a single colour

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by its EXIF orientation."""

Item = TypeVar("Item")
Result = TypeVar("Result")
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image


class UnreadableImage(ValueError):
    """Raised for an image that cannot or must not be opened; the message names the image and the reason."""


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> Image.Image:
    """Opens an image as upright RGB: EXIF orientation applied, transparency over white, first frame if animated.

    The format (JPEG, PNG, GIF, WebP, BMP, TIFF) is detected from the content, not from the file name. The size is read
    from the header, so that a decompression bomb is rejected before it is decoded. Threads that open large images at
    the same time wait for each other, so that together they take less than 1 GiB, whatever the files contain.

    Args:
        source: a path, a file's bytes, or a PIL image.
        max_pixels: maximum number of pixels (width × height) to decode; for WebP never more than 25 million.
        max_side: images whose longer side has more pixels are reduced to this.

    Raises:
        UnreadableImage: the file does not exist, is larger than 100 MiB or `max_pixels`, is truncated or is not an
            image.
        ValueError: the source is a URL. Nothing is ever fetched.
        TypeError: the source is of any other type.
    """
    _check_local(source)
    try:
        if isinstance(source, Image.Image):
            image = _checked(source, max_pixels)
        else:
            content = source if isinstance(source, bytes) else read_image_file(source)
            image = _identified(content)
            _checked(image, min(max_pixels, MAX_WEBP_PIXELS) if image.format == "WEBP" else max_pixels)
            _check_tiles(image, max_pixels)
        with _turn(image):
            size = _size_within(image.size, max_side)
            drafted = image is not source and image.draft(None, size)  # JPEG can be decoded at 1/2, 1/4 or 1/8
            image.load()
            return _upright(_rgb(image, size if drafted else _size_within(image.size, max_side)), image)
    except MemoryError:
        raise  # caused by the machine, not by the image
    except Exception as error:  # decoders may raise anything on damaged or hostile files
        raise UnreadableImage(f"cannot read {image_name(source)}: {error}") from error


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """Reads the bytes of an image file.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file is not a regular file, is larger than 100 MiB, or cannot be read.
        ValueError: the path is a URL.
    """
    _check_local(path)
    file = Path(path)
    if not file.is_file():  # reading a pipe or a device might never end
        if file.exists():
            raise OSError("it is not a regular file")
        raise FileNotFoundError("there is no such file")
    if file.stat().st_size > MAX_BYTES:
        raise OSError(f"the file is larger than {MAX_BYTES // 2**20} MiB")
    return file.read_bytes()


def image_sha256(source: ImageSource) -> str:
    """The sha256 that identifies an image: of the file's bytes, or of a PIL image's size and RGB pixels.

    Raises:
        OSError: the file cannot be read.
        ValueError: the source is a URL.
        TypeError: the source is neither a path nor bytes nor a PIL image.
    """
    _check_local(source)
    if isinstance(source, Image.Image):
        digest = hashlib.sha256(f"{source.size} ".encode())
        convert = _conversion(source)
        for strip in _strips(source):
            digest.update(convert(strip).tobytes())
        return digest.hexdigest()
    return hashlib.sha256(source if isinstance(source, bytes) else read_image_file(source)).hexdigest()


def is_blank(image: Image.Image) -> bool:
    """Whether an image is a single colour or too small. Captioners hallucinate when shown such a placeholder.

    An image is a single colour if all but 1 in 5,000 values of every channel lie within ±16 of one value, which covers
    JPEG noise. It is too small if its shorter side has fewer than `MIN_SIDE` pixels.
    """
    if min(image.size) < MIN_SIDE:
        return True
    few = image.width * image.height / 5000
    total = [0] * 768
    convert = _conversion(image)
    if min(image.size) > SAMPLE:
        sample = convert(image.resize((SAMPLE, SAMPLE), Image.Resampling.NEAREST))
        if any(_fewest_outside(channel) > few for channel in _channels(sample.histogram())):
            return False  # these pixels alone are too many, whatever the others are
    for strip in _strips(image, 2**19):
        total = [a + b for a, b in zip(total, convert(strip).histogram(), strict=True)]
        channels = _channels(total)
        # Already too many values differ, whatever the other strips contain. Most images stop here at the first strip.
        if any(_fewest_outside(channel) > few for channel in channels):
            return False
    return all(_outside(channel, channel.index(max(channel))) <= few for channel in channels)


def _outside(histogram: list[int], centre: int) -> int:
    return sum(histogram) - sum(histogram[max(0, centre - MARGIN) : centre + MARGIN + 1])


def _fewest_outside(histogram: list[int]) -> int:
    """How many values are further than the margin from the value that has the most values around it."""
    below = [0] * MARGIN + list(accumulate(histogram, initial=0)) + [sum(histogram)] * MARGIN
    return below[-1] - max(map(sub, below[2 * MARGIN + 1 :], below))


def plain_fingerprint(image: Image.Image) -> str | None:
    """A thumbnail of an image that is mostly one colour, which identifies copies of a placeholder.

    Archives contain the same "no longer available" image under many names, resized and recompressed. Two such images
    are copies if their thumbnails are nearly equal (see `dataset_scripts.contexts.placeholders`).

    Args:
        image: RGB image.

    Returns:
        The shape of the image and 32 × 32 brightness values, in hexadecimal digits; None if less than 90 % of the
        pixels lie within ±16 of one colour in every channel.
    """
    small = image.resize(_size_within(image.size, SAMPLE), Image.Resampling.NEAREST)  # means would smooth noise away
    ground = [channel.index(max(channel)) for channel in _channels(small.histogram())]
    bands = ImageChops.difference(small, Image.new("RGB", small.size, tuple(ground))).split()
    distances = ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2])
    if sum(distances.histogram()[: MARGIN + 1]) < 0.9 * small.width * small.height:
        return None
    shape = max(0, min(255, 128 + round(8 * math.log2(image.width / image.height))))
    return f"{shape:02x}{image.convert('L').resize((32, 32), Image.Resampling.BOX).tobytes().hex()}"


def pictures_of(image: Any) -> list[Any]:
    """The pictures of one post, given none (None), one, or several (a list or tuple).

    A picture of a list may itself be None; it keeps its place.
    """
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]


def in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
    cost: Callable[[Item], float] | None = None,
) -> list[Result]:
    """Calls a function on every item, several at the same time, and returns the results in the order of the items.

    The threads end with the call, so that a process forked later has no part of them.

    Args:
        function: pays only if it releases the GIL, as decoders and numerical libraries do.
        items: its arguments.
        threads: how many items at a time; 1: no thread is started.
        cost: what an item takes, in any unit. The costliest start first, so that no thread ends long after the others.

    Raises:
        Exception: what `function` raised at the first item, in their order, at which it raised. Items that have not
            started by then are left out.
    """
    if threads < 2 or len(items) < 2:
        return [function(item) for item in items]
    order = list(range(len(items)))
    if cost is not None:
        costs = [cost(item) for item in items]
        order.sort(key=lambda n: -costs[n])
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        futures = {n: pool.submit(function, items[n]) for n in order}
        try:
            return [futures[n].result() for n in range(len(items))]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _channels(histogram: list[int]) -> list[list[int]]:
    return [histogram[start : start + 256] for start in (0, 256, 512)]


def _check_local(source: ImageSource) -> None:
    if not isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        raise TypeError(f"an image is a path, bytes or a PIL image, got {type(source).__name__}")
    if isinstance(source, (str, os.PathLike)) and re.match(r"data:|[a-zA-Z][\w+.-]+:/", os.fspath(source)):
        raise ValueError(
            f"{image_name(source)} is a URL, and no URL is fetched: download the image first and pass its path"
        )


def image_name(source: ImageSource) -> str:
    """What to call an image in a message."""
    if isinstance(source, bytes):
        return f"the image of {len(source):,} bytes"
    return repr(source) if isinstance(source, Image.Image) else f"{os.fspath(source)!r:.200}"


def _identified(content: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:  # its message names an address in memory
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None


def _checked(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width:,} × {height:,} pixels are more than max_pixels = {max_pixels:,}")
    return image


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
    """Rejects a TIFF with huge tiles: TIFFs are decoded tile by tile, and a small image may declare a huge tile."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag) or 0 for tag in (322, 323))  # TileWidth, TileLength
    if width * height > max_pixels:
        raise ValueError(f"tiles of {width:,} × {height:,} pixels are more than max_pixels = {max_pixels:,}")


_large_images = threading.Lock()


def _renew_lock() -> None:
    global _large_images
    _large_images = threading.Lock()


if hasattr(os, "register_at_fork"):  # a process forked while another thread decodes would wait for it forever
    os.register_at_fork(after_in_child=_renew_lock)


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    return _large_images if image.width * image.height > STRIP_PIXELS else nullcontext()


def _size_within(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _strips(image: Image.Image, pixels: int = STRIP_PIXELS, multiple: int = 1) -> Iterator[Image.Image]:
    """Yields full-width strips of about `pixels` pixels, top to bottom; their heights are multiples of `multiple`."""
    rows = max(1, pixels // (image.width * multiple)) * multiple
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image as RGB, in its own size or a smaller one."""
    convert = _conversion(image)
    factor = max(image.size) // max(size)
    if factor > 1:  # by strips, so that there are never two full-size copies
        reduced = Image.new("RGB", (math.ceil(image.width / factor), math.ceil(image.height / factor)))
        top = 0
        for strip in _strips(image, multiple=factor):
            piece = convert(strip).reduce(factor)
            reduced.paste(piece, (0, top))
            top += piece.height
    else:
        reduced = convert(image)
        if reduced is image:  # the caller's, or one that holds on to the file's bytes
            reduced = image.copy()
    return reduced if reduced.size == size else reduced.resize(size, Image.Resampling.BICUBIC)


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The function that converts strips of this image to RGB."""
    if image.mode.startswith(("I", "F")):
        # Deep greyscale has no agreed white (12 bits are stored in 16), so the values present span black to white.
        values = [
            value for strip in _strips(image) for value in cast("tuple[float, ...]", _floats(strip).getextrema())
        ]
        if not all(map(math.isfinite, values)):
            raise ValueError("its values are not finite numbers")
        low, scale = min(values), 255 / ((max(values) - min(values)) or 1)
        return lambda strip: (
            _floats(strip).point(lambda value: value * scale - low * scale).convert("L").convert("RGB")
        )
    if image.has_transparency_data:
        return _over_white
    return lambda strip: strip if strip.mode == "RGB" else strip.convert("RGB")


def _floats(image: Image.Image) -> Image.Image:
    return image.convert("F") if image.mode in ("I", "I;16", "F") else image.convert("I").convert("F")


def _over_white(image: Image.Image) -> Image.Image:
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _upright(picture: Image.Image, original: Image.Image) -> Image.Image:
    try:
        orientation = original.getexif().get(0x0112)
    except Exception:  # damaged EXIF data may raise anything and are no reason to lose the image
        return picture
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture
