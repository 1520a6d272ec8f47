"""Inputs that nobody should give, to the pipeline itself: entities in their places, or one line that names the input.

    python benchmarks/attacks/hostile_inputs.py

The inputs are those of `hostile_requests.py` before they become JSON, and what Python can hold besides: images as
bytes, paths of all sorts and PIL images that are closed or cannot be decoded; generators, tuples and sets of inputs;
parameters of the wrong type. A call holds if it

- returns one result for each input, whose every word stands in the post where the entity says, with a score in [0, 1];
- or raises a `TypeError`, `ValueError` or `FileNotFoundError` of at most 1,000 characters.

Every 500 calls a good post must still get the entities it got at first. The exit status is 1 if a call did not hold.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parent))

from hostile_requests import Requests, image_files, make_handler

from hub_card.hub.handler import PARAMETERS

POST = "Phoenix Suns tonight, Obama in Paris"
REFUSED = (TypeError, ValueError, FileNotFoundError)
MESSAGE = 1000  # characters


class Inputs:
    """The stream of calls, `(inputs, parameters)`; every draw comes from one seed."""

    def __init__(self, seed: int, files: list[bytes], folder: Path) -> None:
        self.draw = random.Random(seed)
        self.requests = iter(Requests(seed, files))
        self.folder = folder
        (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (folder / "good.png").write_bytes(files[0])

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for request in self.requests:
            is_request = isinstance(request, Mapping)
            inputs = request.get("inputs") if is_request else request
            parameters = request.get("parameters") if is_request else {}
            names = parameters if isinstance(parameters, Mapping) else {}
            # Of a name that it does not know, however long, Python itself says so.
            yield self._inputs(inputs), {name: of for name, of in names.items() if name in PARAMETERS}

    def _inputs(self, inputs: Any) -> Any:
        if isinstance(inputs, list):
            made = [self._input(item) for item in inputs]
            form = self.draw.choice(("list", "list", "tuple", "generator"))
            return tuple(made) if form == "tuple" else (item for item in made) if form == "generator" else made
        return self._input(inputs)

    def _input(self, item: Any) -> Any:
        if isinstance(item, dict) and "image" in item:
            return {**item, "image": self._image(item["image"])}
        return item

    def _image(self, image: Any) -> Any:
        if not isinstance(image, str) or self.draw.random() < 0.1:
            return image
        try:
            content = base64.b64decode(image.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            return image
        return self.draw.choice((self._bytes, self._path, self._opened))(content)

    def _bytes(self, content: bytes) -> bytes:
        return content

    def _path(self, content: bytes) -> Any:
        names = ("good.png", "damaged.png", "absent.png", ".", "x" * 300, "a\0b", "\udcff.png")
        path = self.draw.choice((*(self.folder / name for name in names), Path("/dev/zero"), "~", ""))
        return str(path) if self.draw.random() < 0.5 else path

    def _opened(self, content: bytes) -> Any:
        try:
            image = Image.open(BytesIO(content))
        except Exception:  # whatever the file makes Pillow raise: the bytes are as good
            return content
        if self.draw.random() < 0.3:
            image.close()
        return image


def check(results: Any, inputs: Any, parameters: Mapping[str, Any]) -> None:
    """Checks what a call returned.

    Raises:
        AssertionError: an entity is not where it says, or there are not as many results as inputs.
    """
    split = parameters.get("is_split_into_words", False)
    is_many = isinstance(inputs, (list, tuple)) and not (split and inputs and isinstance(inputs[0], str))
    rows, posts = (results, inputs) if is_many else ([results], [inputs])
    assert len(rows) == len(posts), f"{len(rows)} results for {len(posts)} inputs"
    for row, post in zip(rows, posts, strict=True):
        content: Any = post.get("words" if split else "text") if isinstance(post, Mapping) else post
        text = " ".join(content) if split else content
        for found in row["entities"] if isinstance(row, dict) else row:
            assert found["word"] == text[found["start"] : found["end"]], f"{found} is not in its place"
            assert 0 <= found["score"] <= 1, f"{found} has no probability"


def attack(pipe: Any, count: int, seed: int, files: list[bytes], folder: Path) -> tuple[Counter[str], list[str]]:
    """Makes so many calls.

    Returns:
        How many ended how, and what went wrong.
    """
    first = pipe(POST)
    ended: Counter[str] = Counter()
    failures = []
    for number, (inputs, parameters) in zip(range(1, count + 1), Inputs(seed, files, folder), strict=False):
        try:
            results = pipe(inputs, **parameters)
            if isinstance(results, Iterator):
                results = list(results)
            else:
                check(results, inputs, parameters)
            assert number % 500 or pipe(POST) == first, "a good post no longer gets its entities"
            ended["answered"] += 1
        except REFUSED as error:
            ended[type(error).__name__] += 1
            if len(str(error)) > MESSAGE:
                failures.append(
                    f"call {number}: {len(str(error)):,} characters: {type(error).__name__}: {error!s:.200}"
                )
        except Exception as error:
            failures.append(f"call {number}: {type(error).__name__}: {error!s:.300}")
    return ended, failures


def main() -> int:
    """Prints how the calls ended and the failures; returns 1 if a call did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5_000, help="number of calls (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the stream (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "images")
        place.mkdir()
        files = image_files(place)
        ended, failures = attack(make_handler(Path(folder)).pipe, args.calls, args.seed, files, place)
    for how, number in sorted(ended.items()):
        print(f"{how:<20}{number:>7,}")
    print(*failures[:20], sep="\n", end="\n" if failures else "")
    print(f"tried {args.calls:,}, held {args.calls - len(failures):,}, failed {len(failures):,}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
