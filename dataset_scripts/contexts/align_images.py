"""Runs the aligners over images, batch by batch, in one process or many, while threads examine the next images."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from dataset_scripts.contexts.image_sources import ImageSet
from modeling_ita.context_builder import ExaminedImage, VisualContextBuilder
from modeling_ita.image_file import ImageSource, UnreadableImage, open_image
from modeling_ita.whole_files import working_folder, write_text

WINDOW = 4  # batches; images are sorted by size within a window
MAX_HELD_PIXELS = 32_000_000  # in opened images waiting for an aligner; three bytes per pixel
THUMBNAIL = 280  # pixels


class Record(NamedTuple):
    """The outcome for one image.

    Attributes:
        number: its position in the input.
        id: its id.
        name: its name in messages.
        sha256: of its bytes; empty if there are none.
        state: `readable`, `missing`, `unreadable` or `blank`.
        detail: why it is unreadable, or the fingerprint of an image of mostly one colour.
        is_built: whether an aligner processed it in this run.
        thumbnail: a small JPEG as a data URI, if requested.
    """

    number: int
    id: str
    name: str
    sha256: str
    state: str
    detail: str
    is_built: bool
    thumbnail: str = ""


def align_images(
    images: ImageSet,
    builder: VisualContextBuilder,
    records: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    workers: int | None = None,
    limit: int | None = None,
    thumbnails: int = 0,
    process: PartialState | None = None,
) -> list[Record]:
    """Run every aligner on every image and save the results to the builder's store.

    Under `accelerate launch`, every process takes its share of the images, and all of them return together. An image
    stays in memory from the moment it is opened until its batch is done; at most a few batches, and at most
    `MAX_HELD_PIXELS`, are in memory at a time.

    Args:
        images: the images.
        builder: runs the aligners; its `counts` are those of this process.
        records: folder shared by all processes, where each writes its records. If it is not writable, the temporary
            folder is used, which only processes on one machine share.
        batch_size: images per aligner call; a batch holds images of similar size.
        workers: threads that read, hash and open images. Default: one per core, at most four.
        limit: process only the first `limit` images.
        thumbnails: make a thumbnail of the first `thumbnails` images.
        process: this process. Default: the only one.

    Returns:
        The records of all processes in input order; an empty list on all but the main process.

    Raises:
        ValueError: a number is less than 1; see also `VisualContextBuilder.align`.
        ImportError: an aligner's package is not installed.
        OSError: a checkpoint cannot be loaded, the store or the records cannot be written, or the folder of the
            records is not shared by all processes.
    """
    for setting, number in (("batch_size", batch_size), ("workers", workers), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{setting} is {number} (expected 1 or more)")
    rank, processes = (process.process_index, process.num_processes) if process else (0, 1)
    numbered = enumerate(islice(images.pairs, limit))
    total = images.count if limit is None or images.count is None else min(limit, images.count)
    share = None if total is None else len(range(rank, total, processes))
    pace = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file needs fewer lines
    name = "Aligning images" if processes == 1 else f"Aligning images (process 1 of {processes})"
    read = partial(_read, builder, thumbnails=thumbnails)
    found = []
    with tqdm(total=share, desc=name, unit="image", disable=rank > 0, mininterval=pace, smoothing=0.1) as progress:
        for record in _aligned(islice(numbered, rank, None, processes), read, builder, batch_size, workers):
            found.append(record)
            progress.update()
            progress.set_postfix({what: builder.counts[what] for what in ("built", "stored")}, refresh=False)
    if process and processes > 1:
        if getattr(builder.store, "not_kept", 0):
            raise OSError(f"the store beside {records} cannot be written, and several processes share what is in it")
        found = _gathered(found, Path(records), process)
    return sorted(found)


def _gathered(found: list[Record], parent: Path, process: PartialState) -> list[Record]:
    """The records of all processes, on the main one."""
    rank, processes = process.process_index, process.num_processes
    with ExitStack() as until_all_are_read:
        name = [""]
        if rank == 0:
            try:
                folder = until_all_are_read.enter_context(working_folder(parent / "run"))
            except OSError:  # a read-only store
                folder = until_all_are_read.enter_context(working_folder(Path(tempfile.gettempdir(), "ita-run")))
            name = [str(folder)]
        broadcast_object_list(name)
        write_text(Path(name[0], f"{rank}.jsonl"), "".join(json.dumps(record) + "\n" for record in found))
        process.wait_for_everyone()
        if rank:
            return []
        files = [folder / f"{number}.jsonl" for number in range(processes)]
        absent = [number for number, path in enumerate(files) if not path.exists()]
        if absent:
            raise OSError(
                f"{folder} lacks what the processes {absent} of {processes} did: the store must be one folder that "
                "all machines see"
            )
        return [Record(*json.loads(line)) for path in files for line in path.open(encoding="utf-8")]


class _Opened(NamedTuple):
    number: int
    id: str
    image: ExaminedImage
    thumbnail: str


def _read(
    builder: VisualContextBuilder, numbered: tuple[int, tuple[str, ImageSource | None]], thumbnails: int
) -> _Opened:
    number, (image_id, source) = numbered
    try:
        image = builder.examine(source)
    except (TypeError, ValueError) as error:  # a URL, or not an image at all
        image = ExaminedImage(image_id, state="unreadable", detail=str(error))
    thumbnail = _thumbnail(source) if number < thumbnails and image.state == "readable" else ""
    return _Opened(number, image_id, image, thumbnail)


def _thumbnail(source: Any) -> str:
    try:
        picture = open_image(source)
    except UnreadableImage:
        return ""
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _aligned(
    numbered: Iterable[tuple[int, tuple[str, ImageSource | None]]],
    read: Callable[[Any], _Opened],
    builder: VisualContextBuilder,
    batch_size: int,
    workers: int | None,
) -> Iterator[Record]:
    """Yield the record of every image when its batch is done."""
    window: list[_Opened] = []
    batches = 1  # the first window is small, so that the aligners can start at once
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        for opened in _ahead(pool, read, numbered, batch_size, lambda: sum(map(_pixels, window))):
            window.append(opened)
            waiting = sum(item.image.picture is not None for item in window)
            if waiting == batches * batch_size or len(window) == 16 * WINDOW * batch_size or _is_full(window):
                yield from _align(window, builder, batch_size)
                window.clear()
                batches = min(2 * batches, WINDOW)
        yield from _align(window, builder, batch_size)


def _ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[Any], _Opened],
    numbered: Iterable[tuple[int, tuple[str, ImageSource | None]]],
    batch_size: int,
    held_pixels: Callable[[], int],
) -> Iterator[_Opened]:
    """Yield the results of `read` in order, computed ahead in threads as far as memory allows."""
    futures: deque[Future[_Opened]] = deque()
    numbered = iter(numbered)
    exhausted = False
    while futures or not exhausted:
        while not exhausted and len(futures) < WINDOW * batch_size:
            done = sum(_pixels(future.result()) for future in futures if future.done())
            if futures and done + held_pixels() > MAX_HELD_PIXELS:
                break
            item = next(numbered, None)
            if item is None:
                exhausted = True
            else:
                futures.append(pool.submit(read, item))
        if futures:
            yield futures.popleft().result()


def _align(window: list[_Opened], builder: VisualContextBuilder, batch_size: int) -> Iterator[Record]:
    known = [opened for opened in window if opened.image.picture is None]
    unseen = sorted((opened for opened in window if opened.image.picture is not None), key=_pixels)
    for batch in (known, *(unseen[start : start + batch_size] for start in range(0, len(unseen), batch_size))):
        builder.align([opened.image for opened in batch])
        for number, image_id, image, thumbnail in batch:
            yield Record(
                number, image_id, image.name, image.sha256, image.state, image.detail, batch is not known, thumbnail
            )


def _pixels(opened: _Opened) -> int:
    picture = opened.image.picture
    return 0 if picture is None else picture.width * picture.height


def _is_full(window: list[_Opened]) -> bool:
    return sum(map(_pixels, window)) > MAX_HELD_PIXELS // 2
