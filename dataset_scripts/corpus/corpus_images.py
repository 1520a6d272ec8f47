"""The images of a corpus: which image belongs to which post, and whether it can be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import datasets

from modeling_ita.image_file import UnreadableImage, image_sha256, is_blank, open_image, plain_fingerprint

IMAGE_STATES = ("present", "missing", "unreadable", "blank")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".jpe")


class Verdict(NamedTuple):
    """The result of examining a post's image.

    Attributes:
        state: one of `IMAGE_STATES`.
        sha256: of the file, if the image is present.
        reason: why it cannot be read, if it is unreadable.
        fingerprint: of an image of mostly one colour, used to recognise its copies (`plain_fingerprint`).
    """

    state: str
    sha256: str = ""
    reason: str = ""
    fingerprint: str = ""


def verdict_of_post(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a post, from those on its images: the first that is present, else unreadable, blank, missing."""
    order = ("present", "unreadable", "blank", "missing")
    return min(verdicts, key=lambda verdict: order.index(verdict.state))


def images_by_id(images: Sequence[str]) -> dict[str, str]:
    """Map ids to image files. An id is the file name, with or without its suffix (`.jpg` takes precedence)."""
    found: dict[str, str] = {}
    for suffix in IMAGE_SUFFIXES:
        for path in images:
            name = os.path.basename(path)
            if name.lower().endswith(suffix):
                found.setdefault(name, path)
                found.setdefault(name[: -len(suffix)], path)
    return found


def examine_image(path: str) -> Verdict:
    """Check whether an image file can be opened and is not blank."""
    try:
        image = open_image(path)
        if is_blank(image):
            return Verdict("blank")
        return Verdict("present", image_sha256(path), fingerprint=plain_fingerprint(image) or "")
    except (UnreadableImage, OSError) as error:
        return Verdict("unreadable", reason=str(error))


def examine_images(paths: Iterable[str], threads: int | None = None) -> dict[str, Verdict]:
    """Examine every image file, in `threads` threads (default: one per core)."""
    # Decoding releases the GIL, so threads are enough and the verdicts stay in this process.
    paths = sorted(paths)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        verdicts = pool.map(examine_image, paths)
        shown = datasets.utils.tqdm(verdicts, "Examining images", total=len(paths), disable=not paths)
        return dict(zip(paths, shown, strict=True))
