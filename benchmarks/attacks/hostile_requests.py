"""Requests that nobody should send, against the endpoint's handler: none may raise, none may be the server's fault.

    python benchmarks/attacks/hostile_requests.py

A seeded stream of requests goes to one handler with a small random model. A request starts as a good one and is then
broken at random places: wrong types, huge and infinite numbers, deep nesting, halves of surrogate pairs, malformed
provenance, noise for images, hostile image files. Most travel as JSON, some of it with duplicate keys and numbers that
are none; the others are Python values that JSON could not carry. A request holds if its answer

- comes at all, is JSON in UTF-8, and has one place for each input;
- has no status 500, and no message of more than 500 characters;
- left no more than 2,000 characters in the log.

Every 500 requests a good one must still get the answer it got at first. The images are read by a function in the
place of an OCR engine. The exit status is 1 if a request did not hold.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs where the project is not installed
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from hostile_images import write_hostile_images

from hub_card.hub.exported_folder import export_model
from hub_card.hub.handler import EndpointHandler
from modeling_ita import ItaForTokenClassification, ItaProcessor, TagScheme, VisualContextBuilder
from modeling_ita.packaged_encoder import MINILM, encoder_folder

WORDS = [
    "Phoenix", "Suns", "tonight,", "Obama", "in", "Paris", "😀", "#NBA", "@bob", "9.30",
    "U.S.", "http://example.org", "東京", "कि", "naïve",
]  # fmt: skip
KINDS = ("object_tags", "captions", "ocr", "knowledge", "provenance", "source", "id", "image", "a.b", "")
GOOD = {"inputs": {"text": "Phoenix Suns tonight, Obama in Paris", "context": {"captions": ["a game"]}}}
LOGGED = 2000  # characters


def nested(depth: int, kind: str) -> Any:
    """Lists or objects inside each other."""
    value: Any = "dog"
    for _ in range(depth):
        value = [value] if kind == "list" else {"captions": value}
    return value


def make_handler(folder: Path) -> EndpointHandler:
    """A handler with a small random model whose images are read by a function."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder(MINILM))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    labels = TagScheme.from_types(["PER", "LOC", "ORG", "MISC"]).labels
    model = ItaForTokenClassification.from_text_encoder(str(folder / "encoder"), labels)
    torch.nn.init.normal_(model.classifier.weight, std=0.7)
    export_model(model, ItaProcessor(tokenizer), folder / "model")
    handler = EndpointHandler(str(folder / "model"))
    handler.pipe.context_builder = VisualContextBuilder(ocr=lambda images: [[f"width {i.width}"] for i in images])
    return handler


class Requests:
    """The stream of requests; every draw comes from one seed."""

    def __init__(self, seed: int, files: list[bytes]) -> None:
        self.draw = random.Random(seed)
        self.files = files

    def __iter__(self) -> Iterator[Any]:
        while True:
            request = self._good()
            for _ in range(self.draw.choice((0, 1, 1, 2, 3))):
                request = self._broken(request, self.draw.randrange(1, 6))
            if self.draw.random() < 0.7:
                try:
                    request = json.loads(self._as_json(request))
                except (TypeError, ValueError, RecursionError):  # is not JSON, and ends at the server
                    continue
            yield request

    def _text(self) -> str:
        return " ".join(self.draw.choices(WORDS, k=self.draw.randrange(12)))

    def _image(self) -> str:
        content = self.draw.choice(self.files)
        if self.draw.random() < 0.3:  # damage
            place = self.draw.randrange(len(content) + 1)
            content = content[:place] + self.draw.randbytes(self.draw.randrange(4)) + content[place + 2 :]
        return ("data:image/png;base64," if self.draw.random() < 0.2 else "") + base64.b64encode(content).decode()

    def _context(self) -> dict[str, Any]:
        kinds = self.draw.sample(KINDS[:4], self.draw.randrange(4))
        made: dict[str, Any] = {kind: [self._text() for _ in range(self.draw.randrange(4))] for kind in kinds}
        if self.draw.random() < 0.4:
            origin = {kind: {"model": "m", "settings": {"n": 1}} for kind in kinds}
            made["provenance"] = self.draw.choice((origin, json.dumps(origin)))
        if self.draw.random() < 0.2:
            made["source"] = dict.fromkeys(kinds, "BLIP")
        return made

    def _good(self) -> dict[str, Any]:
        split = self.draw.random() < 0.3
        parameters: dict[str, Any] = {"is_split_into_words": split} if split or self.draw.random() < 0.2 else {}
        values: dict[str, Callable[[], Any]] = {
            "aggregation_strategy": lambda: self.draw.choice(("none", "simple", "max")),
            "batch_size": lambda: self.draw.choice((1, 2, 128)),
            "ignore_labels": lambda: self.draw.choice(([], ["O"], ["PER", "LOC"], ["B-PER"])),
            "min_score": lambda: self.draw.random(),
            "return_context": lambda: self.draw.random() < 0.5,
        }
        parameters |= {name: make() for name, make in values.items() if self.draw.random() < 0.3}
        inputs = [self._input(split) for _ in range(self.draw.choice((1, 1, 2, 3)))]
        return {"inputs": inputs if self.draw.random() < 0.6 else inputs[0], "parameters": parameters}

    def _input(self, split: bool) -> Any:
        content: Any = self._text().split(" ") if split else self._text()
        if self.draw.random() < 0.3:
            return content
        post = {"words" if split else "text": content}
        if self.draw.random() < 0.5:
            post["context"] = self._context()
        if self.draw.random() < 0.3:
            post["image"] = self._image()
        return post

    def _hostile(self) -> Any:
        draw = self.draw
        return draw.choice(
            (
                lambda: draw.choice((None, True, False, 0, -1, 1, 0.5, 2**63, 10**400, 10**5000, -(10**5000), 1e308)),
                lambda: draw.choice((float("inf"), float("-inf"), float("nan"))),
                lambda: draw.choice(
                    ("", " ", "\0", "\ud800", "\udc00\ud83d", "a\ud83d", "\x1b[2J", "\u202e", "𝔘" * 40)
                ),
                lambda: draw.choice(
                    ("NaN", "null", "[]", '{"captions": NaN}', '{"captions": {"a": 1e999}}', "[" * 9999)
                ),
                lambda: draw.choice(
                    ("/etc/hostname", "file:///etc/hostname", "http://example.org", "data:,a", "data:")
                ),
                lambda: "".join(map(chr, draw.choices(range(0x3000), k=draw.randrange(30)))),
                lambda: draw.choice(("a", ".", "\u0301", "漢", "👍", " ", "\ud800")) * draw.choice((3, 300, 10_001)),
                lambda: [draw.choice(("", "a", None, 3, "\ud83d"))] * draw.choice((1, 50, 5001)),
                lambda: nested(draw.choice((3, 200, 900, 5000)), draw.choice(("list", "dict"))),
                lambda: {draw.choice(KINDS): self._hostile()},
                lambda: {"k" * draw.choice((60, 61, 20_000)): ["dog"]},
                lambda: base64.b64encode(draw.randbytes(draw.randrange(60))).decode(),
                lambda: [self._hostile() for _ in range(draw.randrange(4))],
                lambda: draw.choice(
                    (b"bytes", {1, 2}, (1, "a"), object(), 3j, {3: ["a"]}, {None: "a"}, {(1,): 2}, range(3))
                ),
            )
        )()

    def _broken(self, value: Any, depth: int) -> Any:
        """The value with something wrong at a random place, at most so deep."""
        if depth and isinstance(value, dict) and value and self.draw.random() < 0.9:
            key = self.draw.choice(list(value))
            changed = self.draw.random()
            if changed < 0.1:
                return {name: part for name, part in value.items() if name != key}
            if changed < 0.2:
                return {**value, self.draw.choice((*KINDS, "text", "words", "\ud800", "k" * 20_000)): self._hostile()}
            return {**value, key: self._broken(value[key], depth - 1)}
        if depth and isinstance(value, list) and value and self.draw.random() < 0.9:
            place = self.draw.randrange(len(value))
            return [*value[:place], self._broken(value[place], depth - 1), *value[place + 1 :]]
        return self._hostile()

    def _as_json(self, request: Any) -> str:
        written = json.dumps(request, ensure_ascii=self.draw.random() < 0.5)
        if self.draw.random() < 0.15:  # the same key twice
            written = written.replace('"text": ', '"text": 7, "text": ', 1).replace(
                '"captions": ', '"captions": 1, "captions": '
            )
        if self.draw.random() < 0.15:
            number = self.draw.choice(("NaN", "-Infinity", "1e400", "1" * 4000, "-0", "1e-400"))
            written = written.replace(self.draw.choice(("true", "1", '"m"', "[]", "null")), number, 1)
        return written


class Logged(logging.Handler):
    """Counts what is logged."""

    characters = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Adds a record's characters."""
        self.characters += len(self.format(record))


def statuses(answer: Any, request: Any) -> list[int]:
    """The status of every input, or that of the request.

    Raises:
        ValueError: the answer is not of the form that the handler promises.
    """
    json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    if isinstance(answer, list) and not (answer and isinstance(answer[0], dict) and "start" in answer[0]):
        parts = answer
    else:
        parts = [answer]
    found = []
    for part in parts:
        error = part.get("error") if isinstance(part, dict) else None
        if error and not 0 < len(error["message"]) <= 500:
            raise ValueError(f"a message of {len(error['message'])} characters")
        found.append(error["status"] if error else 200)
    inputs, parameters = request["inputs"], request.get("parameters") or {}
    if isinstance(inputs, (list, tuple)) and "error" not in answer:
        is_one_post = parameters.get("is_split_into_words") and inputs and isinstance(inputs[0], str)
        if not is_one_post and len(answer) != len(inputs):
            raise ValueError(f"{len(answer)} answers to {len(inputs)} inputs")
    return found


def attack(handler: EndpointHandler, count: int, seed: int, files: list[bytes]) -> tuple[Counter[int], list[str]]:
    """Sends so many requests.

    Returns:
        How many answers had each status, and what went wrong.
    """
    logged = Logged()
    logging.getLogger().addHandler(logged)
    first = json.dumps(handler(GOOD))
    found: Counter[int] = Counter()
    failures = []
    for number, request in zip(range(1, count + 1), Requests(seed, files), strict=False):
        logged.characters = 0
        try:
            answer = handler(request)
            is_request = isinstance(request, dict) and "inputs" in request
            given = statuses(answer, request if is_request else {"inputs": None})
            if 500 in given:
                raise ValueError(f"status 500: {answer!r:.300}")
            if logged.characters > LOGGED:
                raise ValueError(f"{logged.characters} characters were logged")
            if number % 500 == 0 and json.dumps(handler(GOOD)) != first:
                raise ValueError("a good request is no longer answered as before")
            found.update(given)
        except Exception as error:
            failures.append(f"request {number}: {type(error).__name__}: {error!s:.300}")
    logging.getLogger().removeHandler(logged)
    return found, failures


def image_files(folder: Path) -> list[bytes]:
    """Small files: good images, hostile ones and no images."""
    made = []
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        stream = BytesIO()
        Image.effect_noise((40, 30), 90).convert("RGB").save(stream, form)
        made.append(stream.getvalue())
    hostile = write_hostile_images(folder, large=False)
    return made * 4 + [(folder / name).read_bytes()[:100_000] for name in sorted(hostile) if (folder / name).is_file()]


def main() -> int:
    """Prints statuses and failures; returns 1 if a request did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="number of requests (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the stream (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("hub_card.hub.handler").propagate = True
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        files = image_files(Path(folder) / "images")
        found, failures = attack(make_handler(Path(folder)), args.requests, args.seed, files)
    for status, count in sorted(found.items()):
        print(f"{status}  {count:>7,} answers")
    print(*failures[:20], sep="\n", end="\n" if failures else "")
    print(f"tried {args.requests:,}, held {args.requests - len(failures):,}, failed {len(failures):,}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
