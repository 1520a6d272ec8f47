"""The images of a corpus: which post has which, and whether it can be read."""

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
    """What the examination of a post's image says.

    Attributes:
        state: one of `IMAGE_STATES`.
        sha256: of the file, if the image is present.
        reason: why it cannot be read, if it is unreadable.
        fingerprint: of a picture of mostly one colour, by which its copies are told (`plain_fingerprint`).
    """

    state: str
    sha256: str = ""
    reason: str = ""
    fingerprint: str = ""


def images_by_id(images: Sequence[str]) -> dict[str, str]:
    """Image files by the ids that find them: the name, and the name without its suffix (`.jpg` takes precedence)."""
    found: dict[str, str] = {}
    for suffix in IMAGE_SUFFIXES:
        for path in images:
            name = os.path.basename(path)
            if name.lower().endswith(suffix):
                found.setdefault(name, path)
                found.setdefault(name[: -len(suffix)], path)
    return found


def examine_image(path: str) -> Verdict:
    """Whether an image file opens and shows anything."""
    try:
        image = open_image(path)
        if is_blank(image):
            return Verdict("blank")
        return Verdict("present", image_sha256(path), fingerprint=plain_fingerprint(image) or "")
    except (UnreadableImage, OSError) as error:
        return Verdict("unreadable", reason=str(error))


def examine_images(paths: Iterable[str], threads: int | None = None) -> dict[str, Verdict]:
    """The verdict on every image file; `threads` decode them, by default one a core."""
    # Decoding releases the GIL, so that threads are enough and the verdicts stay in this process.
    paths = sorted(paths)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        verdicts = pool.map(examine_image, paths)
        shown = datasets.utils.tqdm(verdicts, "Examining images", total=len(paths), disable=not paths)
        return dict(zip(paths, shown, strict=True))
