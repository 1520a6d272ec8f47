"""What `ita-mner label` costs beside its pipeline, how it grows with workers and rows, and what the image gate saves.

    python benchmarks/label.py
    python benchmarks/label.py --only workers ray
    python benchmarks/label.py --only gate --model MODEL --data_dir DIR --context_files DIR/visual_context.jsonl
    python benchmarks/label.py --only cost --images FOLDER --gated_share 0.3

- `text`: posts/s of the job (reading a CSV, labelling, writing Parquet) against `ItaPipeline` on the same posts as
  lists; text only, one process, one thread. They take turns shard by shard, on a model that is loaded already; CPU
  time. The second figure is wall time, which includes waiting for the disk.
- `workers`: posts/s of two processes against one, one thread each. Start-up is left out: the clock runs from when
  every process has done its first shard until one has nothing left to do.
- `ray`: the same for two actors of Ray against one.
- `pictures`: a hundred posts with pictures through `ItaPipeline` with two threads against one, by the clock.
- `memory`: resident memory of the whole command after 10,000 rows, and the most it takes afterwards, over 500,000
  short posts; a tiny model.
- `gate`: a trained model on a corpus with contexts: the gate is fitted on validation, then both splits tell how many
  contexts must be read for an F1 within 0.3 of reading all, and what the fitted gate gives. Needs `--model`.
- `cost`: a table of core-hours for a hundred million posts with one picture each, from CPU seconds measured here:
  pictures always read, read by a gate, never read. No store.

But for `memory` and `gate`, the model is MiniLM-L6 with random heads, and the posts are random draws from the sample
corpus. A ratio is the median of the rounds' ratios. A worker that shares its core with another program is slower, so
`workers` and `ray` also print the share of its core that a worker got: a bar missed with less than 0.95 says little.
The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it also runs where the project is not installed
# Processes that are started from here find it there.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import torch  # noqa: E402
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer  # noqa: E402
from transformers.utils import logging  # noqa: E402

from dataset_scripts.labelling.columns import PostColumns  # noqa: E402
from dataset_scripts.labelling.engines import in_processes, on_ray  # noqa: E402
from dataset_scripts.labelling.labeller import PostLabeller  # noqa: E402
from dataset_scripts.labelling.shards import Output, Shard, ShardLabeller  # noqa: E402
from dataset_scripts.labelling.sources import open_files  # noqa: E402
from dataset_scripts.sample_posts import SAMPLE_POSTS  # noqa: E402
from dataset_scripts.sample_posts.corpus import read_posts  # noqa: E402
from hub_card.hub.exported_folder import export_model  # noqa: E402
from modeling_ita import (  # noqa: E402
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    TagScheme,
    VisualContextBuilder,
)
from modeling_ita.model_loading import load_model  # noqa: E402
from modeling_ita.packaged_encoder import MINILM, encoder_folder  # noqa: E402

PARTS = ("text", "workers", "ray", "pictures", "memory", "gate", "cost")
BARS = {"text": 0.95, "workers": 1.9, "ray": 1.7, "pictures": 1.6, "memory": 100.0, "gate": 0.30}
LABELS = TagScheme.from_types(["PER", "LOC", "ORG", "MISC"]).labels
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
SETTLED = 10_000  # rows after which memory is measured
POSTS = 100_000_000


def draw_posts(count: int, seed: int = 0) -> list[str]:
    """Random draws from the sample corpus, one or two of its posts each."""
    corpus = [" ".join(post.words) for split in read_posts(SAMPLE_POSTS / "posts.yaml").values() for post in split]
    draw = random.Random(seed)
    return [" ".join(draw.choices(corpus, k=draw.choice((1, 2)))) for _ in range(count)]


def write_csv(file: Path, columns: dict[str, Sequence[Any]]) -> Path:
    """Writes a CSV file of these columns."""
    with file.open("w", encoding="utf-8", newline="") as content:
        rows = csv.writer(content)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return file


def save_model(folder: Path, encoder: str, tokenizer: Any, reads_text_in_images: bool = False) -> str:
    """A model with random heads, as an exported folder."""
    builder = VisualContextBuilder(ocr="rapidocr").to_dict() if reads_text_in_images else None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ItaForTokenClassification.from_text_encoder(encoder, LABELS)
    return str(export_model(model, ItaProcessor(tokenizer, context_builder=builder), folder))


def save_minilm(folder: Path, reads_text_in_images: bool = False) -> str:
    """A model over MiniLM-L6 with random heads."""
    encoder = encoder_folder(MINILM)
    return save_model(folder, encoder, AutoTokenizer.from_pretrained(encoder), reads_text_in_images)


def save_tiny(folder: Path) -> str:
    """A model over a random BERT of two layers that reads letters."""
    letters = [letter for letter in string.printable if not letter.isspace()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={piece: n for n, piece in enumerate(vocabulary)}, model_max_length=512)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    return save_model(folder / "model", str(folder / "encoder"), tokenizer)


def shards_of(rows: int, size: int) -> list[Shard]:
    """Rows in shards of a size."""
    return [Shard(n, start, min(start + size, rows)) for n, start in enumerate(range(0, rows, size))]


class Task(NamedTuple):
    """CPU seconds and wall seconds of a call, and what it returned."""

    cpu: float
    wall: float
    result: Any


def timed(call: Callable[[], Any]) -> Task:
    """Runs it, and measures this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return Task(time.process_time() - cpu, time.perf_counter() - wall, result)


# --- text ------------------------------------------------------------------------------------------------------------


def measure_text(scratch: Path, posts: int, rows_per_shard: int, rounds: int) -> float:
    """Share of the pipeline's posts/s that the job reaches, reading and writing included."""
    texts = draw_posts(posts)
    file = write_csv(scratch / "posts.csv", {"id": range(posts), "text": texts})
    labeller = PostLabeller(save_minilm(scratch / "model"), text_column="text", device="cpu", threads=1)
    labeller.load()
    times: dict[str, list[tuple[float, float]]] = {"ItaPipeline": [], "label": []}
    for number in range(rounds + 1):
        opened = timed(lambda: open_files([str(file)]))
        output = Output(str(scratch / f"labelled-{number}"))
        work = ShardLabeller(opened.result, labeller, PostColumns("text", id="id"), ["id", "text"], [], output)
        spent = {"ItaPipeline": [0.0, 0.0], "label": [opened.cpu, opened.wall]}
        for shard in shards_of(posts, rows_per_shard):
            rows = texts[shard.start : shard.stop]
            turns: list[tuple[str, Callable[[], Any]]] = [
                ("ItaPipeline", lambda rows=rows: labeller.pipe(rows, batch_size=labeller.batch_size)),  # type: ignore[misc]
                ("label", lambda work=work, shard=shard: work(shard)),  # type: ignore[misc]
            ]
            # Who comes first changes, so that neither always finds the caches warm.
            for name, turn in turns if (shard.number + number) % 2 else turns[::-1]:
                done = timed(turn)
                spent[name][0] += done.cpu
                spent[name][1] += done.wall
        if number:  # the first round warms up
            for name, (cpu, wall) in spent.items():
                times[name].append((cpu, wall))
    print(f"text: {posts:,} posts, shards of {rows_per_shard:,}, one thread, median of {rounds} rounds")
    print(f"{'':<14}{'posts/s (CPU)':>15}{'posts/s (wall)':>16}")
    for name, rows_of in times.items():
        cpu, wall = (posts / statistics.median(one[side] for one in rows_of) for side in (0, 1))
        print(f"{name:<14}{cpu:15.0f}{wall:16.0f}")
    ratios = [
        statistics.median(p[side] / j[side] for p, j in zip(times["ItaPipeline"], times["label"], strict=True))
        for side in (0, 1)
    ]
    print(f"label reaches {ratios[0]:.3f} of the pipeline by CPU time, {ratios[1]:.3f} by wall time")
    return ratios[0]


# --- workers and Ray -------------------------------------------------------------------------------------------------


@dataclass
class TimedShards(ShardLabeller):
    """A `ShardLabeller` that also counts when and where every shard was labelled."""

    def __call__(self, shard: Shard, careful: bool = False) -> dict[str, Any]:
        """Label and write a shard; the counts have `process`, `began`, `ended` (one clock) and `cpu` seconds."""
        self.labeller.load()
        began, cpu = time.monotonic(), time.process_time()
        counts = super().__call__(shard, careful)
        spent = {"cpu": time.process_time() - cpu, "began": began, "ended": time.monotonic()}
        return {**counts, "process": os.getpid(), **spent}


class Pace(NamedTuple):
    """What workers did while all of them were at work.

    Attributes:
        rate: posts/s.
        cpu: CPU seconds for a thousand posts.
        cores: share of its core that a worker had.
        wall: seconds that were measured.
    """

    rate: float
    cpu: float
    cores: float
    wall: float


def pace_of(found: Sequence[dict[str, Any]], workers: int) -> Pace:
    """The pace between the moment when every worker has done its first shard and the first one's last moment.

    Raises:
        ValueError: there was no such time.
    """
    by_process: dict[int, list[dict[str, Any]]] = {}
    for counts in found:
        by_process.setdefault(counts["process"], []).append(counts)
    start = max(min(one["ended"] for one in own) for own in by_process.values())
    stop = min(max(one["ended"] for one in own) for own in by_process.values())
    if len(by_process) != workers or stop <= start:
        shards = ", ".join(str(len(own)) for own in by_process.values())
        raise ValueError(f"{len(by_process)} of {workers} workers did {shards} shards (more --posts keep all busy)")
    posts = cpu = 0.0
    for counts in found:
        inside = min(stop, counts["ended"]) - max(start, counts["began"])
        share = max(0.0, inside) / (counts["ended"] - counts["began"])
        posts += share * counts["rows"]
        cpu += share * counts["cpu"]
    return Pace(posts / (stop - start), 1000 * cpu / posts, cpu / (stop - start) / workers, stop - start)


def measure_workers(scratch: Path, posts: int, rows_per_shard: int, rounds: int, engine: str) -> float:
    """How much faster two workers are than one."""
    file = write_csv(scratch / "posts.csv", {"id": range(posts), "text": draw_posts(posts)})
    model = save_minilm(scratch / "model")
    source, shards = open_files([str(file)]), shards_of(posts, rows_per_shard)
    paces: dict[int, list[Pace]] = {1: [], 2: []}

    def run(workers: int, number: int) -> None:
        labeller = PostLabeller(model, text_column="text", device="cpu", threads=1)
        output = Output(str(scratch / f"labelled-{workers}-{number}"))
        work = TimedShards(source, labeller, PostColumns("text", id="id"), ["id", "text"], [], output)
        if engine == "ray":
            found = list(on_ray(work, shards, lambda rows, images: None, workers))
        else:
            found = list(in_processes(work, shards, lambda rows, images: None, workers))
        assert sum(counts["rows"] for counts in found) == posts
        paces[workers].append(pace_of(found, workers))

    for number in range(rounds):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            run(workers, number)
    title = "ray" if engine == "ray" else "workers"
    print(f"{title}: {posts:,} posts, shards of {rows_per_shard}, one thread each, median of {rounds} rounds")
    print(f"{'workers':>7}{'posts/s':>9}{'CPU s for 1,000':>17}{'share of a core':>17}{'seconds':>9}")
    for workers, rows in paces.items():
        rate, cpu, cores, wall = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{workers:>7}{rate:9.0f}{cpu:17.2f}{cores:17.2f}{wall:9.1f}")
    ratios = [two.rate / one.rate for one, two in zip(paces[1], paces[2], strict=True)]
    least = min(pace.cores for rows in paces.values() for pace in rows)
    print(
        f"two reach {statistics.median(ratios):.2f} × one (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; "
        f"a worker had at least {least:.2f} of its core)"
    )
    return statistics.median(ratios)


# --- memory ----------------------------------------------------------------------------------------------------------


def measure_pictures(scratch: Path, folder: Path, limit: int, rounds: int) -> float:
    """Posts with pictures through the pipeline by two threads against one, taking turns, by wall time."""
    model, processor = load_model(save_minilm(scratch / "model", reads_text_in_images=True))
    pipe = ItaPipeline(model=model, processor=processor, device="cpu")
    images = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))[:limit]
    inputs = [{"text": post, "image": str(image)} for post, image in zip(draw_posts(len(images)), images, strict=True)]
    pipe(inputs[:8])
    ratios = []
    for number in range(rounds):
        spent = {}
        for threads in (1, 2) if number % 2 else (2, 1):
            torch.set_num_threads(threads)
            spent[threads] = timed(lambda: pipe(inputs))
        torch.set_num_threads(1)
        ratios.append(spent[1].wall / spent[2].wall)
        cpu = " and ".join(f"{spent[threads].cpu:.1f} s with {threads}" for threads in (1, 2))
        print(f"round {number}: {len(inputs)} posts, {ratios[-1]:.2f} × by two threads; CPU {cpu}", flush=True)
    return statistics.median(ratios)


def measure_memory(scratch: Path, rows: int) -> float:
    """MiB by which the command grows after the first 10,000 rows."""
    if rows <= 2 * SETTLED:
        raise ValueError(f"--rows is {rows} (expected more than {2 * SETTLED:,})")
    corpus = [" ".join(post.words[:6]) for split in read_posts(SAMPLE_POSTS / "posts.yaml").values() for post in split]
    draw = random.Random(0)
    file = write_csv(scratch / "posts.csv", {"id": range(rows), "text": draw.choices(corpus, k=rows)})
    output, size = scratch / "labelled", 2048
    command = [sys.executable, "-m", "dataset_scripts.label", str(file), "--model", save_tiny(scratch / "tiny")]
    command += ["--output", str(output), "--rows_per_shard", str(size), "--store", "none", "--device", "cpu"]
    samples: list[tuple[int, float]] = []  # rows in finished shards, MiB
    with (scratch / "said").open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            # Once the report is there, Python takes itself apart, which costs memory of its own.
            if (held := resident(process.pid)) and not (output / "report.json").exists():
                samples.append((min(rows, size * len(list(output.glob("part-*.parquet")))), held))
            time.sleep(0.1)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"the job ended with status {process.returncode}: {said.read()[-2000:]}")
    after = [(done, held) for done, held in samples if done >= SETTLED]
    first, most = after[0], max(after, key=lambda sample: sample[1])
    print(f"memory: {rows:,} rows, {len(samples):,} samples of the process that labels")
    between = [after[n * (len(after) - 1) // 8] for n in range(9)]
    for title, (done, held) in (("settled", first), *(("", one) for one in between[1:]), ("most", most)):
        print(f"{title:<8}{done:>9,} rows{held:9.1f} MiB")
    return most[1] - first[1]


def resident(process: int) -> float | None:
    """MiB of memory that a process holds; 0 when it has ended, None when it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except (OSError, IndexError):
        return None


# --- gate ------------------------------------------------------------------------------------------------------------


def measure_gate(model_folder: str, dataset: str, data_dir: str | None, context_files: list[str]) -> float:
    """The smallest share of the test contexts whose F1 is within 0.3 of reading all."""
    from transformers import AutoModelForTokenClassification, AutoProcessor

    from dataset_scripts.corpus.examples import read_examples
    from dataset_scripts.mner import MnerDataset
    from hub_card.predictions.evaluate_model import ReadSplit
    from hub_card.predictions.image_gate import TOLERANCE, fit_image_gate, gate_steps, image_gate_report, point_at

    folder = {"data_dir": data_dir} if data_dir else {}
    corpus = MnerDataset(config_name=dataset, context_files=context_files, **folder)
    corpus.download_and_prepare()
    splits = corpus.as_dataset()
    model = AutoModelForTokenClassification.from_pretrained(model_folder, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(model_folder, trust_remote_code=False)
    processor.check_model(model.config)
    given = TagScheme(splits["validation"].features["tags"].feature.names)
    threshold, needed = None, 1.0
    for split in ("validation", "test"):
        examples = read_examples(splits[split], given, model.config.tag_scheme, with_images=model.sees_images)
        posts = ReadSplit(model, processor, split, examples, 64).gated_posts()
        steps = gate_steps(posts)
        if not steps:
            raise ValueError(f"no {split} post has a context (--context_files names them)")
        if split == "validation":
            threshold = fit_image_gate(posts)
        report = image_gate_report(posts, threshold)
        assert report is not None
        enough = next(step for step in steps if step.f1 >= steps[-1].f1 - TOLERANCE - 1e-12)
        needed = enough.images_read / report["images"]
        print(f"gate, {split}: {report['posts']:,} posts, {report['images']:,} with a context")
        print(f"{'':<16}{'contexts read':>14}{'F1':>8}{'95 % interval':>20}")
        named = [(f"{share:.0%}", point_at(report["curve"], share)) for share in SHARES]
        for title, point in [*named, ("fitted gate", report["chosen"])]:
            between = "" if point["low"] is None else f"{100 * point['low']:.2f} to {100 * (point['high'] or 0):.2f}"
            print(f"{title:<16}{100 * point['share']:12.1f} %{100 * point['f1']:8.2f}{between:>20}")
        lost = 100 * (report["all"]["f1"] - report["chosen"]["f1"])
        print(f"threshold {threshold:.4g}: {lost:+.2f} F1 below reading all")
        print(f"smallest share within {100 * TOLERANCE:.1f} F1 of reading all: {100 * needed:.1f} %")
    return needed


# --- cost ------------------------------------------------------------------------------------------------------------


def measure_cost(scratch: Path, posts: int, folder: Path, limit: int, gated_share: float) -> None:
    """Prints the table of core-hours."""
    model = save_minilm(scratch / "model", reads_text_in_images=True)
    images = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    images = random.Random(0).sample(images, min(limit, len(images)))
    if not images:
        raise ValueError(f"{folder} holds no pictures (expected .jpg, .png or .webp files)")

    def spent(name: str, texts: list[str], pictures: list[Path]) -> tuple[float, float, float]:
        """CPU seconds a post (reading and writing included), the same of labelling alone, and a picture."""
        columns: dict[str, Sequence[Any]] = {"text": texts, **({"image": pictures} if pictures else {})}
        source = open_files([str(write_csv(scratch / f"{name}.csv", columns))])
        labeller = PostLabeller(
            model,
            text_column="text",
            image_column="image" if pictures else None,
            images_dir="/",
            device="cpu",
            threads=1,
        )
        roles = PostColumns("text", "image" if pictures else None)
        work = ShardLabeller(source, labeller, roles, list(columns), [], Output(str(scratch / name)))
        labeller.load()  # the first picture, too, is read before the clock runs
        labeller.label(texts[:32])
        done = timed(lambda: [work(shard) for shard in shards_of(len(texts), 2048)])
        counts = done.result
        read = sum(one["images_read"] for one in counts)
        seconds = {what: sum(one["seconds"][what] for one in counts) for what in ("posts", "images")}
        rest = done.cpu - seconds["images"]
        return rest / len(texts), seconds["posts"] / len(texts), seconds["images"] / read if read else 0.0

    texts = draw_posts(posts)
    text, alone, _ = spent("text", texts, [])
    _, with_context, picture = spent("pictures", texts[: len(images)], images)
    # Too few posts have pictures to see there what reading and writing cost.
    seen = text - alone + with_context
    ways = {
        "always": seen + picture,
        f"gated ({gated_share:.0%} read)": text + gated_share * (with_context + picture),
        "text only": text,
    }
    print(f"cost: CPU seconds measured on {posts:,} posts and {len(images)} pictures, one thread, no store")
    print(
        f"a post alone {text:.5f}, labelling it with its context {with_context:.5f}, reading a picture {picture:.3f}"
    )
    print(f"{'':<22}{'CPU s a post':>14}{f'core-hours for {POSTS:,} posts':>40}{'of always':>11}")
    for title, seconds in ways.items():
        share = seconds / ways["always"]
        print(f"{title:<22}{seconds:14.5f}{seconds * POSTS / 3600:40,.0f}{share:11.3f}")


# --- all -------------------------------------------------------------------------------------------------------------


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is removed in the end."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> int:
    """Prints the figures; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="only these parts; default: all")
    parser.add_argument("--posts", type=int, help="posts of text (4,096), workers and ray (10,240), cost (1,024)")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of memory (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of text, workers and ray (default: %(default)s)")
    parser.add_argument("--model", help="gate: an exported folder")
    parser.add_argument("--dataset", default="twitter2017", help="gate: a configuration of MnerDataset (%(default)s)")
    parser.add_argument("--data_dir", help="gate: folder with train.txt, valid.txt, test.txt")
    parser.add_argument("--context_files", nargs="+", default=[], help="gate: visual contexts, .jsonl or .parquet")
    parser.add_argument("--images", type=Path, default=SAMPLE_POSTS / "images", help="cost: a folder of pictures")
    parser.add_argument("--limit", type=int, default=60, help="cost: how many of them (default: %(default)s)")
    parser.add_argument("--gated_share", type=float, default=0.3, help="cost: share read (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parts = args.only or [part for part in PARTS if part != "gate" or args.model]
    if "gate" in parts and not args.model:
        parser.error("gate needs a trained model: --model FOLDER --data_dir DIR --context_files FILE …")
    figures: dict[str, float] = {}
    for part in parts:
        print(f"load before {part}: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        with scratch_folder() as scratch:
            if part == "text":
                figures[part] = measure_text(scratch, args.posts or 4096, 512, args.rounds)
            elif part in ("workers", "ray"):
                figures[part] = measure_workers(scratch, args.posts or 10_240, 256, args.rounds, part)
            elif part == "pictures":
                figures[part] = measure_pictures(scratch, args.images, max(args.limit, 100), args.rounds)
            elif part == "memory":
                figures[part] = measure_memory(scratch, args.rows)
            elif part == "gate":
                figures[part] = measure_gate(args.model, args.dataset, args.data_dir, args.context_files)
            else:
                measure_cost(scratch, args.posts or 1024, args.images, args.limit, args.gated_share)
        used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"CPU seconds so far: {sum(one.ru_utime + one.ru_stime for one in used):.0f}\n", flush=True)
    missed = []
    for what, figure in figures.items():
        met = figure <= BARS[what] if what in ("memory", "gate") else figure >= BARS[what]
        missed += [] if met else [what]
        sign = "≤" if what in ("memory", "gate") else "≥"
        print(f"{what:<10}{figure:9.3f}   bar {sign} {BARS[what]:g}{_UNITS[what]}: {'met' if met else 'NOT met'}")
    return int(bool(missed))


_UNITS = {
    "text": " of the pipeline's posts/s",
    "workers": " × one process",
    "ray": " × one actor",
    "pictures": " × one thread",
    "memory": " MiB",
    "gate": " of the test contexts within 0.3 F1 of all",
}


if __name__ == "__main__":
    sys.exit(main())
