"""What reading the text in images costs: RapidOCR called image by image, and `RapidOcr`.

    python benchmarks/ocr.py
    python benchmarks/ocr.py dataset_scripts/sample_posts/images my_photos --limit 60

For every folder:

- `stages`: where the time of either goes on one core, in milliseconds an image;
- `one core`: images/s of `RapidOcr`, from files to contexts, against RapidOCR's own call on one image after the other;
  the character error rate between their texts (edits, in characters of the latter's), and lines lost and added;
- `two cores`: images/s of two threads against one, eight images a call, as the pipeline calls it.

Contenders take turns; start-up is left out. Ratios are the median of those of the rounds. Nothing of the texts is
printed. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs where the project is not installed

from modeling_ita.context_builder import VisualContextBuilder
from modeling_ita.image_file import image_sha256, is_blank, open_image, plain_fingerprint, read_image_file
from modeling_ita.ocr import RapidOcr, TextLine, strings_in_order, without_strip

SAMPLE_POSTS = Path(__file__).parents[1] / "dataset_scripts" / "sample_posts" / "images"
AT_ONCE = 8  # images a call, as in the pipeline
BARS = {"one core": 1.3, "character error rate": 0.02, "two cores": 1.6}


class ImageByImage(RapidOcr):
    """RapidOCR's own call, with the same settings."""

    def _load(self) -> Any:
        return self._import("rapidocr").RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.text_score": 0.0,
                "Global.max_side_len": self.max_side,
                "Det.limit_type": "min",
                "Det.limit_side_len": self.min_side,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def _read(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        return [strings_in_order(self._lines(without_strip(image)), self.min_score) for image in images]

    def _lines(self, image: Image.Image) -> list[TextLine]:
        if max(image.size) > self.max_side:
            image = image.copy()
            image.thumbnail((self.max_side, self.max_side))
        found = self._engine(image)
        if not found.txts:
            return []
        return [TextLine.between(*line) for line in zip(found.txts, found.scores, found.boxes, strict=True)]


def read_files(aligner: RapidOcr, files: Sequence[Path]) -> list[list[str]]:
    """The lines of every file, which are opened and read in groups of eight."""
    builder = VisualContextBuilder(ocr=aligner)
    groups = [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
    return [context.ocr for group in groups for context in builder(group)]


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def edits(before: str, after: str) -> int:
    """How many characters to insert, delete or replace to get from one text to the other."""
    row = list(range(len(after) + 1))
    for number, letter in enumerate(before, 1):
        last, row[0] = row[0], number
        for place, other in enumerate(after, 1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (letter != other))
    return row[-1]


def compare(before: list[list[str]], after: list[list[str]]) -> tuple[float, int, int]:
    """The character error rate, and how many lines more and fewer there are, image by image."""
    texts = [("\n".join(old), "\n".join(new)) for old, new in zip(before, after, strict=True)]
    wrong = sum(edits(old, new) for old, new in texts)
    more = [len(new) - len(old) for old, new in zip(before, after, strict=True)]
    length = max(1, sum(len(old) for old, _ in texts))
    return wrong / length, sum(max(0, n) for n in more), sum(max(0, -n) for n in more)


class Clock:
    """Adds up the time spent in functions that it replaces."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._replaced: list[tuple[Any, str, Any]] = []

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Replaces a method by one that adds its time to a stage."""
        function = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[stage] += time.perf_counter() - began

        self._replaced.append((owner, name, function))
        setattr(owner, name, watched)

    def release(self) -> None:
        """Puts the methods back."""
        for owner, name, function in reversed(self._replaced):
            setattr(owner, name, function)
        self._replaced.clear()


def stages(aligner: RapidOcr, files: Sequence[Path]) -> dict[str, float]:
    """Milliseconds an image of every stage, with one thread."""
    clock = Clock()
    engine = aligner._engine
    parts = {"detector": engine.text_det, "classifier": engine.text_cls, "recogniser": engine.text_rec}
    for name, part in parts.items():
        clock.watch(part.session.session, "run", f"{name}: model")
        clock.watch(part, "postprocess_op", f"{name}: result")
        if hasattr(part, "resize_norm_img"):
            clock.watch(part, "resize_norm_img", f"{name}: resizing")
    clock.watch(engine, "load_img", "image to array")
    clock.watch(engine, "crop_text_regions", "cutting lines out")
    began = time.perf_counter()
    for path in files:
        steps: list[tuple[str, Callable[[Any], Any]]] = [
            ("file: read", read_image_file),
            ("file: sha256", image_sha256),
            ("file: open_image", open_image),
            ("file: is_blank", is_blank),
            ("file: plain_fingerprint", plain_fingerprint),
        ]
        content: Any = path
        for stage, step in steps:
            start = time.perf_counter()
            result = step(content)
            clock.seconds[stage] += time.perf_counter() - start
            if stage in ("file: read", "file: open_image"):
                content = result
        aligner([content])
    total = time.perf_counter() - began
    clock.release()
    clock.seconds["other"] = total - sum(clock.seconds.values())
    clock.seconds["all"] = total
    return {stage: 1000 * seconds / len(files) for stage, seconds in clock.seconds.items()}


def measure(files: Sequence[Path], contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round; they take turns."""
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            took[name].append(timed(run))
    return took


def with_threads(threads: int, run: Callable[[], Any]) -> Any:
    """The result of a call in which torch, and so aligner and builder, may use so many threads."""
    torch.set_num_threads(threads)
    try:
        return run()
    finally:
        torch.set_num_threads(1)


def report(folder: Path, files: Sequence[Path], before: RapidOcr, after: RapidOcr, rounds: int) -> list[str]:
    """Prints the figures of one folder, and returns the bars that it misses."""
    old, new = read_files(before, files), read_files(after, files)
    print(f"\n{folder}: {len(files)} images, {sum(map(len, old))} lines")
    tables = {"before": stages(before, files), "after": stages(after, files)}
    print(f"{'stage, ms an image':28}{'before':>9}{'after':>9}")
    for stage in sorted(tables["before"], key=lambda name: (name == "all", -tables["before"][name])):
        print(f"{stage:28}{tables['before'][stage]:9.1f}{tables['after'].get(stage, 0.0):9.1f}")

    took = measure(
        files, {"before": lambda: read_files(before, files), "after": lambda: read_files(after, files)}, rounds
    )
    ratio = statistics.median(old / new for old, new in zip(took["before"], took["after"], strict=True))
    rate, added, lost = compare(old, new)
    speed = {name: len(files) / statistics.median(seconds) for name, seconds in took.items()}
    print(
        f"one core   {speed['before']:.2f} -> {speed['after']:.2f} images/s, {ratio:.2f} x (bar {BARS['one core']}); "
        f"character error rate {rate:.2%} (bar {BARS['character error rate']:.0%}); "
        f"lines lost {lost}, added {added}"
    )
    threads = {n: lambda n=n: with_threads(n, lambda: read_files(after, files)) for n in (1, 2)}
    assert threads[2]() == new, "two threads read another text than one"
    took = measure(files, {str(n): run for n, run in threads.items()}, rounds)
    two = statistics.median(one / both for one, both in zip(took["1"], took["2"], strict=True))
    print(
        f"two cores  {len(files) / statistics.median(took['2']):.2f} images/s, {two:.2f} x (bar {BARS['two cores']})"
    )
    return [
        name
        for name, missed in {
            "one core": ratio < BARS["one core"],
            "character error rate": rate > BARS["character error rate"],
            "two cores": two < BARS["two cores"],
        }.items()
        if missed
    ]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[SAMPLE_POSTS], help="folders of images")
    parser.add_argument("--limit", type=int, default=60, help="images a folder")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    before, after = ImageByImage(), RapidOcr()
    blank = Image.new("RGB", (64, 64))
    # The first to start also imports the packages.
    print(f"start-up: before {timed(lambda: before([blank])):.2f} s, after {timed(lambda: after([blank])):.2f} s")
    missed = []
    for folder in args.folders:
        files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
        missed += [f"{folder}: {bar}" for bar in report(folder, files[: args.limit], before, after, args.rounds)]
    print("\n" + (f"missed: {', '.join(missed)}" if missed else "all bars met"))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
