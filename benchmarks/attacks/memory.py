"""What the dearest requests within the handler's limits take: memory above idle, and CPU time on one core.

    python benchmarks/attacks/memory.py

Each request goes to a handler in a process of its own, on one thread, with a model of MiniLM's size and a random head;
images are read by rapidocr, or looked at by an MGCMT with a ResNet-50. Idle is the handler that has answered one small
request of the same sort, so that the model and the reader of images are loaded. The peak is the process's resident
memory while it parses and answers the request, less that.

A request holds if it takes at most 1 GiB and 20 CPU-seconds, and no input is answered with status 500. The exit status
is 1 if one did not hold.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import random
import re
import resource
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoTokenizer, ConvNextImageProcessorPil, ResNetConfig
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs where the project is not installed

from hub_card.hub.exported_folder import export_model
from hub_card.hub.handler import EndpointHandler, Limits
from modeling_ita import (
    ItaForTokenClassification,
    ItaProcessor,
    MgcmtForTokenClassification,
    MgcmtProcessor,
    TagScheme,
)
from modeling_ita.packaged_encoder import MINILM, encoder_folder

GIB = 2**30
CPU_SECONDS = 20
LIMITS = Limits()


class Taken(NamedTuple):
    """What a request took: bytes above idle, CPU-seconds, and how many inputs were answered with each status."""

    memory: int
    seconds: float
    statuses: dict[int, int]


def make_models(folder: Path) -> None:
    """Exports an ITA that reads images by rapidocr, and an MGCMT that looks at them."""
    torch.manual_seed(0)
    encoder = encoder_folder(MINILM)
    labels = TagScheme.from_types(["PER", "LOC", "ORG", "MISC"]).labels
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    ita = ItaForTokenClassification.from_text_encoder(encoder, labels)
    torch.nn.init.normal_(ita.classifier.weight, std=0.7)
    export_model(ita, ItaProcessor(tokenizer, context_builder={"ocr": {"model": "rapidocr"}}), folder / "ita")
    mgcmt = MgcmtForTokenClassification.from_encoders(encoder, labels, ResNetConfig(), train_vision=True)
    images = ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=1.0)
    export_model(mgcmt, MgcmtProcessor(tokenizer, images, ["dog", "car"]), folder / "mgcmt")


def page(size: tuple[int, int], height: int) -> Image.Image:
    """A page full of words of so many pixels' height, each a line of its own to whoever looks for lines."""
    draw = random.Random(0)
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(height)
    for top in range(0, size[1], int(height * 1.6)):
        left = 0
        while left < size[0]:
            word = "".join(draw.choices(string.ascii_letters, k=draw.randint(2, 4)))
            pen.text((left, top), word, font=font, fill="black")
            left += int(height * (0.62 * len(word) + 2.5))
    return image


def encoded(image: Image.Image, form: str, **options: Any) -> str:
    """An image's file in base64."""
    stream = BytesIO()
    image.save(stream, form, **options)
    return base64.b64encode(stream.getvalue()).decode()


def plain(side: int, mode: str = "RGB") -> Image.Image:
    """A large picture that is not blank, and small as a file."""
    image = Image.new(mode, (side, side), "white")
    image.paste("black", (0, 0, side // 2, side // 3))
    return image


def words_of(characters: str, count: int, seed: int = 0) -> str:
    """So many random words of four letters."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(characters, k=4)) for _ in range(count))


def texts(make: Callable[[int], Any], count: int = LIMITS.inputs, **parameters: Any) -> dict[str, Any]:
    """A request of posts by number."""
    return {"inputs": [make(n) for n in range(count)], "parameters": parameters}


def pictures(image: str, count: int = LIMITS.images) -> dict[str, Any]:
    """A request of posts with one image."""
    return texts(lambda n: {"text": f"Phoenix {n}", "image": image}, count)


def full(image: str) -> dict[str, Any]:
    """As many images as there may be, and as much text."""
    filled = texts(lambda n: words_of(string.ascii_lowercase, 40, n), LIMITS.inputs - LIMITS.images)
    return {"inputs": [*pictures(image)["inputs"], *filled["inputs"]]}


LETTERS, KANJI = string.ascii_lowercase, "東京大阪名古屋札幌福岡神戸"
REQUESTS: dict[str, Callable[[], dict[str, Any]]] = {
    "empty words, one post": lambda: texts(lambda _: [""] * LIMITS.words, 1, is_split_into_words=True),
    "empty words, many posts": lambda: texts(lambda _: [""] * 1500, is_split_into_words=True, batch_size=128),
    "one letter a word": lambda: texts(lambda n: list(LETTERS * 60), is_split_into_words=True, batch_size=128),
    "dots, 16 posts": lambda: texts(lambda _: "." * LIMITS.characters, 16),
    "dots, every word shown": lambda: texts(
        lambda _: "." * 120, batch_size=128, aggregation_strategy="none", ignore_labels=[], return_context=True
    ),
    "kanji": lambda: texts(lambda n: (KANJI[n % 13 :] + KANJI) * 60, batch_size=128),
    "combining marks": lambda: texts(lambda _: "a" + "\u0301" * (LIMITS.characters - 1), 20),
    "one long word": lambda: texts(lambda n: f"{n}" + "x" * (LIMITS.characters - 5), 20),
    "one long post": lambda: texts(lambda _: words_of(LETTERS, 1999), 1),
    "128 posts of 128 tokens": lambda: texts(lambda n: words_of(LETTERS, 42, n), batch_size=128),
    "contexts that fill the window": lambda: texts(
        lambda n: {"text": "Phoenix", "context": {"captions": [words_of(LETTERS, 150, n)]}}, batch_size=128
    ),
    "contexts of many strings": lambda: texts(
        lambda n: {"text": "Phoenix", "context": {"captions": ["a"] * 300, "ocr": ["b"] * 5}}, return_context=True
    ),
    "contexts of many kinds": lambda: texts(
        lambda n: {"text": "Phoenix", "context": {f"k{k}": ["a"] for k in range(120)}}, return_context=True
    ),
    "pages of small letters": lambda: pictures(encoded(page((1280, 1280), 16), "PNG")),
    "photographs of noise": lambda: pictures(
        encoded(Image.effect_noise((1280, 1280), 90).convert("RGB"), "JPEG", quality=80)
    ),
    "PNG at the pixel limit": lambda: pictures(encoded(plain(5000), "PNG")),
    "transparent PNG at the limit": lambda: pictures(encoded(plain(5000, "RGBA"), "PNG")),
    "WebP at the pixel limit": lambda: pictures(encoded(plain(5000), "WEBP")),
    "TIFF at the pixel limit": lambda: pictures(encoded(plain(5000), "TIFF", compression="tiff_deflate")),
    "BMP at the byte limit": lambda: pictures(encoded(page((1850, 1850), 16), "BMP")),
    "images and text at once": lambda: full(encoded(page((1280, 1280), 16), "PNG")),
    "looked at: noise": lambda: pictures(encoded(Image.effect_noise((2000, 2000), 90).convert("RGB"), "JPEG")),
    "looked at: PNG at the limit": lambda: pictures(encoded(plain(5000), "PNG")),
    "looked at: images and text": lambda: full(encoded(page((1280, 1280), 16), "PNG")),
    "looked at: one long post": lambda: texts(
        lambda _: {"text": words_of(LETTERS, 1999), "image": encoded(page((640, 640), 16), "PNG")}, 1
    ),
}


def resident(field: str) -> int:
    """Resident memory of this process in bytes: now (`VmRSS`) or at its peak (`VmHWM`)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, folder: str) -> Taken:
    """Answers one of the requests in this process."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    written = json.dumps(REQUESTS[name]())
    is_looked_at = name.startswith("looked at")
    handler = EndpointHandler(str(Path(folder) / ("mgcmt" if is_looked_at else "ita")))
    handler(pictures(encoded(page((200, 100), 20), "PNG"), 1) if '"image"' in written else {"inputs": "Phoenix"})
    idle = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    begin = time.process_time()
    answer = handler(json.loads(written))
    seconds = time.process_time() - begin
    parts = [part.get("error") if isinstance(part, dict) else None for part in answer]
    return Taken(
        resident("VmHWM") - idle, seconds, dict(Counter(200 if part is None else part["status"] for part in parts))
    )


def main() -> int:
    """Prints the table; returns 1 if a request did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="requests whose name holds this (default: all)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = [name for name in REQUESTS if args.only in name]
    print(f"{'request':<32} {'MiB above idle':>15} {'CPU-s':>7}  answers by status")
    held = 0
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder))
        for name in names:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                taken = pool.apply(measure, (name, folder))
            is_held = taken.memory <= GIB and taken.seconds <= CPU_SECONDS and 500 not in taken.statuses
            held += is_held
            shown = ", ".join(f"{status}: {count}" for status, count in sorted(taken.statuses.items()))
            mark = "" if is_held else "  FAILED"
            print(f"{name:<32} {taken.memory / 2**20:>15,.0f} {taken.seconds:>7.1f}  {shown}{mark}", flush=True)
    print(f"tried {len(names)}, held {held}, failed {len(names) - held}")
    return int(held < len(names))


if __name__ == "__main__":
    sys.exit(main())
