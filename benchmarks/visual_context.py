"""What building visual contexts costs beside the models, and what the store holds out.

    python benchmarks/visual_context.py
    python benchmarks/visual_context.py --only kill

- `look-ups`: known images looked up in a store, in random order, after hashing;
- `memory`: growth of the process while 50,000 rows are written;
- `bare model`: images/s of a captioner from files to the store (reading, hashing, opening, beams, writing) against its
  model called with the same batches of pictures that are open already; a tiny BLIP and one of 60 M parameters, random
  weights, one thread of torch; they take turns;
- `processes`: images/s of OCR by two processes of one thread each, against one such process, start-up left out;
- `kill`: a build of 500 images by two processes is killed with SIGKILL twenty times; then every row is readable, and
  none but the images in flight was looked at twice.

The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs where the project is not installed

from dataset_scripts.contexts.align_images import align_images
from dataset_scripts.contexts.context_store import ContextStore
from dataset_scripts.contexts.image_sources import file_images
from modeling_ita import Captioner, VisualContextBuilder
from modeling_ita.context_builder import Alignment
from modeling_ita.image_file import open_image

ROOT = Path(__file__).parents[1]
BARS = {"look-ups": 20_000, "memory": 32, "tiny": 0.95, "mid-size": 0.95, "processes": 1.7}
ORIGIN = {"model": "benchmark", "revision": "1", "settings": {}}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "near", "an", "old", "red", "house"]


def draw_images(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> list[Path]:
    """Photographs of a kind: noise, shapes and a few words; JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    paths: list[Path] = []
    for number in range(count):
        image = Image.effect_noise(size, 60).convert("RGB")
        pen = ImageDraw.Draw(image)
        for _ in range(8):
            x, y = draw.randrange(size[0]), draw.randrange(size[1])
            box = (x, y, x + draw.randrange(30, 200), y + draw.randrange(30, 150))
            pen.rectangle(box, fill=tuple(draw.randrange(256) for _ in range(3)))
        text = f"{draw.choice(WORDS)} {number}"
        pen.rectangle((0, size[1] - 80, 60 + 26 * len(text), size[1]), fill="white")
        pen.text((20, size[1] - 65), text, font=ImageFont.load_default(40), fill="black")
        paths.append(folder / f"{number:04}.jpg")
        image.save(paths[-1], quality=85)
    return paths


def rows(start: int, count: int) -> dict[str, Alignment]:
    """Rows as five captions make them."""
    origin = {**ORIGIN, "date": "2026-01-01T00:00:00+00:00"}
    return {
        hashlib.sha256(str(number).encode()).hexdigest(): Alignment(
            [" ".join([*WORDS[k:], str(number)]) for k in range(5)], [0.5] * 5, origin
        )
        for number in range(start, start + count)
    }


def resident() -> float:
    """MiB of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def measure_store(folder: Path) -> dict[str, float]:
    """Look-ups per second, and MiB by which the process grows while 50,000 rows are written."""
    writer = ContextStore(folder)
    for start in range(0, 4_000, 16):  # what arrow and the allocator take once
        writer.add("captions", rows(10**6 + start, 16))
    before = resident()
    for start in range(0, 50_000, 16):
        writer.add("captions", rows(start, 16))
    grown = resident() - before
    writer.compact()
    store = ContextStore(folder)
    keys = list(rows(0, 50_000))
    asked = random.Random(0).choices(keys, k=100_000)
    store.look_up(asked[0], "captions", ORIGIN)
    began = time.perf_counter()
    found = sum(store.look_up(key, "captions", ORIGIN) is not None for key in asked)
    took = time.perf_counter() - began
    assert found == len(asked)
    return {"look-ups": len(asked) / took, "memory": grown}


def save_blip(folder: Path, width: int, layers: int, size: int) -> str:
    """A BLIP with random weights and a vocabulary of words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *WORDS, *(f"word{n}" for n in range(1000))]
    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary)})
    common = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
    }
    text = {
        **common,
        "vocab_size": len(vocabulary),
        "bos_token_id": 4,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 64,
        "encoder_hidden_size": width,
    }
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config={**common, "image_size": size, "patch_size": 16})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": size, "width": size}), tokenizer).save_pretrained(folder)
    return str(folder)


def measure_captioner(model: str, images: Path, scratch: Path, batch_size: int, rounds: int) -> tuple[float, float]:
    """Images per second of the bare model, and the ratio that the whole build reaches of it."""
    captioner = Captioner(model, num_captions=5, max_new_tokens=20, device="cpu")
    paths = sorted(images.iterdir())
    pictures = [open_image(path) for path in paths]
    model_, processor = captioner.checkpoint.model, captioner.checkpoint.processor

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            inputs = processor(images=batch, text=[""] * len(batch), return_tensors="pt")
            model_.generate(**inputs, num_beams=5, num_return_sequences=5, max_new_tokens=20)

    def whole(number: int) -> None:
        builder = VisualContextBuilder(captions=captioner, store=ContextStore(scratch / str(number)))
        align_images(file_images(str(images)), builder, scratch / str(number), batch_size=batch_size, workers=1)

    bare()
    # The fastest turn of each: what else the machine does can only slow a turn down.
    turns = [(seconds(bare), seconds(partial(whole, number))) for number in range(rounds)]
    alone, all_of_it = (min(times) for times in zip(*turns, strict=True))
    return len(paths) / alone, alone / all_of_it


def seconds(task: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


OCR_WORKER = """
import sys, time, torch
torch.set_num_threads(1)
from accelerate import PartialState
from dataset_scripts.contexts.align_images import align_images
from dataset_scripts.contexts.context_store import ContextStore
from dataset_scripts.contexts.image_sources import file_images
from modeling_ita import VisualContextBuilder
process = PartialState(cpu=True)
images, store, warm = sys.argv[1:]
builder = VisualContextBuilder(ocr={"model": "rapidocr", "settings": {"threads": 1}}, store=ContextStore(store))
list(builder([warm]))
process.wait_for_everyone()
start = time.perf_counter()
align_images(file_images(images), builder, store, workers=1, process=process)
if process.is_main_process:
    print("seconds", time.perf_counter() - start)
"""


def measure_processes(images: Path, scratch: Path, rounds: int) -> float:
    """How much faster two processes of one thread are than one, on OCR."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    draw_images(scratch / "warm", 1)

    def run(processes: int, number: int) -> float:
        script = scratch / "worker.py"
        script.write_text(OCR_WORKER)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        store = str(scratch / f"ocr-{processes}-{number}")
        command += [str(script), str(images), store, str(scratch / "warm" / "0000.jpg")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout.split("seconds")[1])

    return statistics.median(run(1, number) / run(2, number) for number in range(rounds))


SLOW_READER = """
import os, time

class SlowReader:
    identity = {"model": "slow", "revision": "1", "settings": {}}

    def __call__(self, images):
        time.sleep(0.01 * len(images))
        with open(os.environ["READER_LOG"], "a") as file:
            file.write("".join(f"{image.getpixel((1, 1))}\\n" for image in images))
        return [[str(image.getpixel((1, 1)))] for image in images]
"""


def measure_kills(scratch: Path, kills: int = 20, images: int = 500, batch_size: int = 4) -> dict[str, Any]:
    """Kills a build by two processes again and again, then finishes it and looks at what is there."""
    folder = scratch / "pictures"
    folder.mkdir()
    for number in range(images):
        picture = Image.new("RGB", (64, 48), (number % 256, number // 256, 7))
        picture.paste("white", (20, 10, 60, 40))
        picture.save(folder / f"{number:04}.png")
    (scratch / "slow_reader.py").write_text(SLOW_READER)
    log, store = scratch / "log", scratch / "store"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{scratch}",
        "READER_LOG": str(log),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["dataset_scripts.build_visual_context", "--images", str(folder), "--store", str(store)]
    command += ["--aligner", "ocr=slow_reader:SlowReader", "--batch_size", str(batch_size)]
    command += ["--output", str(scratch / "contexts.jsonl"), "--report", str(scratch / "report.json")]
    draw = random.Random(0)
    seen = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        # Killed while the aligners work: some images after the first one of this run.
        wanted, deadline = seen + draw.randrange(1, 3 * images // (2 * kills)), time.monotonic() + 120
        while lines_in(log) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        kill_all(process, environment["READER_LOG"])
        seen = lines_in(log)
    killed_at = seen
    subprocess.run(command, env=environment, check=True, capture_output=True)
    report = json.loads((scratch / "report.json").read_text())
    looked_at = Counter(log.read_text().split("\n")[:-1])
    context_rows = [json.loads(line) for line in (scratch / "contexts.jsonl").read_text().splitlines()]
    found = ContextStore(store)
    return {
        "images": len(context_rows),
        "complete": sum(bool(row.get("ocr")) for row in context_rows),
        "rows": found.rows("ocr", {"model": "slow", "revision": "1", "settings": {}}),
        "before the last run": killed_at,
        "looked at twice": sum(looked_at.values()) - images,
        "in flight at most": kills * 2 * batch_size,
        "readable": report["built"] + report["stored"],
    }


def kill_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """SIGKILL for the launcher and its workers at once; they live in sessions of their own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                ours = f"READER_LOG={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if ours:
                os.kill(int(entry.name), signal.SIGKILL)
    process.wait()


def lines_in(path: Path) -> int:
    """Lines of a file; 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> int:
    """Prints the figures; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["store", "bare", "processes", "kill"], help="only this part")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="images a batch (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    figures: dict[str, float] = {}
    missed = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if args.only in (None, "store"):
            figures |= measure_store(scratch / "rows")
        if args.only in (None, "bare"):
            draw_images(scratch / "photos", 320)
            for title, width, layers, size in (("tiny", 32, 2, 224), ("mid-size", 512, 8, 224)):
                model = save_blip(scratch / title, width, layers, size)
                (scratch / f"{title}-stores").mkdir()
                images = scratch / "photos"
                if title == "mid-size":
                    images = scratch / "few"
                    draw_images(images, 24)
                speed, figures[title] = measure_captioner(
                    model, images, scratch / f"{title}-stores", args.batch_size, args.rounds
                )
                print(f"{title} BLIP: {speed:.1f} images/s bare")
        if args.only in (None, "processes"):
            draw_images(scratch / "texts", 60)
            figures["processes"] = measure_processes(scratch / "texts", scratch, min(args.rounds, 3))
        for what, figure in figures.items():
            bar = BARS[what]
            met = figure <= bar if what == "memory" else figure >= bar
            missed += [] if met else [what]
            print(f"{what:<12} {figure:10,.2f}   bar {bar:,}: {'met' if met else 'NOT met'}")
        if args.only in (None, "kill"):
            (scratch / "kill").mkdir()
            found = measure_kills(scratch / "kill")
            sound = found["complete"] == found["rows"] == found["readable"] == found["images"]
            sound = sound and found["looked at twice"] <= found["in flight at most"]
            missed += [] if sound else ["kill"]
            print("kill         " + ", ".join(f"{what} {count}" for what, count in found.items()))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
