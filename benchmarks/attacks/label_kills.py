"""Kills `ita-mner label` with SIGKILL again and again, then lets it finish: the rows are those of one never killed.

    python benchmarks/attacks/label_kills.py
    python benchmarks/attacks/label_kills.py --model MODEL --input posts.csv --images_dir FOLDER

The job has two workers and a store; the whole process group is killed: while it starts, while rows are labelled and
pictures read, when a shard is finished, and while a file is written. One job is killed twenty times and then finished;
another, with a store of its own, never. Every kill counts as an attempt, and it holds if

- every shard that is there is byte for byte that of the uninterrupted job,
- the shards that were there before are untouched,
- no picture was read that an earlier run had put into the store, and none twice by one run.

Then the job is finished, and run once more. The first holds if all shards are those of the uninterrupted job (one
sha256 over them), nothing half written is left, and every reading beyond one a picture was in flight at a kill; the
second if it reads nothing and changes no file. The last attempt compares the entities with those of `ItaPipeline`.

Readings are counted in the workers: each appends to a log which pictures it begins to read, and which are in the
store; the uninterrupted job is the plain command. Rows and pictures are those of the sample posts, and the model is
MiniLM-L6 with random heads and an OCR engine, unless they are named.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from modeling_ita.context_builder import EXAMINATION, ExaminedImage, VisualContextBuilder  # noqa: E402

LOG, RUN = "LABEL_KILLS_LOG", "LABEL_KILLS_RUN"
PATIENCE = 3600  # seconds for one run
WORKERS = 2
IMAGES_AT_ONCE = 8  # that a worker reads
PHASES = ("starting", "labelling", "a shard is finished", "writing", "finishing", "nothing to do", "entities")
SAMPLE_SPLITS = ("train", "valid", "test")


# --- in the processes that are killed --------------------------------------------------------------------------------


def log_readings(log: str, run: str) -> None:
    """Has every process of a job append which pictures it reads, and which it has put into the store."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    read, add = VisualContextBuilder._run, VisualContextBuilder._add

    def note(what: str, images: Sequence[str]) -> None:
        # One write a note: the lines of several processes do not mix, and none is cut by a kill.
        os.write(file, "".join(f"{run} {os.getpid()} {what} {image}\n" for image in images).encode())

    def noted_read(self: Any, kind: str, aligner: Any, images: Sequence[ExaminedImage]) -> Any:
        note("reads", [f"{image.sha256}/{kind}" for image in images])
        return read(self, kind, aligner, images)

    def noted_add(self: Any, kind: str, found: Any) -> Any:
        added = add(self, kind, found)
        if kind != EXAMINATION:
            note("kept", [f"{sha256}/{kind}" for sha256 in found])
        return added

    VisualContextBuilder._run = noted_read  # type: ignore[method-assign]
    VisualContextBuilder._add = noted_add  # type: ignore[method-assign]


if LOG in os.environ:  # a worker imports this file too, as every program that starts processes in this way
    log_readings(os.environ[LOG], os.environ[RUN])


# --- in the process that kills ---------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A job: the arguments of the command, but for its places, its output, its store and the log of its readings."""

    arguments: list[str]
    output: Path
    store: Path
    log: Path

    def start(self, run: int | None) -> subprocess.Popen[bytes]:
        """Starts it in a process group of its own; None: the plain command, without a log."""
        command = [sys.executable, __file__, "--job"] if run is not None else [sys.executable, "-m"]
        command += [] if run is not None else ["dataset_scripts.label"]
        command += [*self.arguments, "--output", str(self.output), "--store", str(self.store)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        if run is not None:
            environment |= {LOG: str(self.log), RUN: str(run)}
        with self.log.with_suffix(".said").open("ab") as said:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, run: int | None) -> None:
        """Runs it to its end."""
        process = self.start(run)
        try:
            status = process.wait(PATIENCE)
        finally:
            kill(process)
        if status not in (0, 1):  # 1: a row could not be labelled
            said = self.log.with_suffix(".said").read_text(errors="replace")
            raise RuntimeError(f"the job ended with status {status}: {said[-3000:]}")

    def shards(self) -> dict[str, Path]:
        """The shards that are there, by name."""
        return {path.name: path for path in sorted(self.output.glob("part-*")) if path.is_file()}

    def done(self) -> int:
        """Shards finished and readings begun."""
        return len(self.shards()) + self.readings()

    def readings(self) -> int:
        """Readings begun so far."""
        return self.log.read_bytes().count(b" reads ") if self.log.exists() else 0


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and its workers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def wait_for(process: subprocess.Popen[bytes], phase: str, job: Job, units: int, patience: float) -> bool:
    """Waits for a moment of a phase; False if the job has ended before."""
    began = time.monotonic()
    shards, target = len(job.shards()), job.done() + units
    while process.poll() is None and time.monotonic() - began < (patience if phase == "starting" else PATIENCE):
        if phase == "labelling" and job.done() >= target:
            return True
        if phase == "a shard is finished" and len(job.shards()) > shards and job.done() >= target:
            return True
        if phase == "writing" and job.done() >= target and is_writing(job.output):
            return True
        time.sleep(0.001)
    return process.poll() is None


def is_writing(output: Path) -> bool:
    """Whether a shard, or what it counts, is half written."""
    return any(output.glob(".part-*/*.parquet")) or any(output.glob(".job/.part-*"))


def kept_pictures(store: Path) -> set[str]:
    """The pictures in a store, with the kind of context."""
    import pyarrow.parquet as pq

    rows = [row for path in store.glob("*/*/*.parquet") for row in pq.read_table(path).to_pylist()]
    return {f"{row['image_sha256']}/{row['kind']}" for row in rows if row["kind"] != EXAMINATION}


def sha256(path: Path) -> str:
    """The checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def over_all(shards: dict[str, Path]) -> str:
    """One sha256 over all shards, in order."""
    return hashlib.sha256("".join(f"{name} {sha256(path)}\n" for name, path in shards.items()).encode()).hexdigest()


def stamps(job: Job) -> dict[str, tuple[int, int]]:
    """When every finished shard was written, and its place on the disk."""
    return {name: (path.stat().st_mtime_ns, path.stat().st_ino) for name, path in job.shards().items()}


class Reading(NamedTuple):
    """A line of the log: the run, the process, whether it `reads` or has `kept`, and the picture with its kind."""

    run: int
    process: str
    what: str
    picture: str


def readings_of(log: Path) -> list[Reading]:
    """The lines of a log."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Reading(int(run), *rest) for run, *rest in (line.split(" ", 3) for line in lines)]


def read_again(lines: Sequence[Reading]) -> dict[int, list[str]]:
    """By run, what is wrong with its readings: pictures that an earlier run had kept, or read twice by this run."""
    kept: dict[str, int] = {}
    begun: Counter[tuple[int, str, str]] = Counter()
    wrong: defaultdict[int, list[str]] = defaultdict(list)
    for line in lines:
        if line.what == "kept":
            kept.setdefault(line.picture, line.run)
            continue
        if kept.get(line.picture, line.run) < line.run:
            wrong[line.run].append(f"{line.picture} was in the store since run {kept[line.picture]}")
        begun[line.run, line.process, line.picture] += 1
        if begun[line.run, line.process, line.picture] == 2:
            wrong[line.run].append(f"{line.picture} was read twice by one process")
    return wrong


def in_flight(lines: Sequence[Reading]) -> int:
    """Readings that never came to an end."""
    open_: Counter[tuple[int, str, str]] = Counter()
    for line in lines:
        open_[line.run, line.process, line.picture] += 1 if line.what == "reads" else -1
    return sum(count for count in open_.values() if count > 0)


def write_sample(file: Path, rows: int | None) -> None:
    """The sample posts with their pictures."""
    from dataset_scripts.sample_posts import SAMPLE_POSTS
    from dataset_scripts.sample_posts.corpus import read_posts

    corpus = read_posts(SAMPLE_POSTS / "posts.yaml")
    pictures = {path.stem: path.name for path in (SAMPLE_POSTS / "images").iterdir()}
    posts = [post for split in SAMPLE_SPLITS for post in corpus[split]]
    with file.open("w", encoding="utf-8", newline="") as content:
        table = csv.writer(content)
        table.writerow(["id", "text", "image"])
        table.writerows([post.id, " ".join(post.words), pictures.get(post.id, "")] for post in posts[:rows])


def differs_from_pipeline(model: str, images_dir: Path, job: Job, batch_size: int) -> list[str]:
    """Rows whose entities are not those of `ItaPipeline` on the same rows, from the store of the job."""
    import pyarrow.parquet as pq

    from dataset_scripts.contexts.context_store import ContextStore
    from modeling_ita import ItaPipeline
    from modeling_ita.model_loading import load_model

    loaded, processor = load_model(model)
    store = ContextStore(job.store, read_only=True)
    pipe = ItaPipeline(model=loaded, processor=processor, device="cpu", context_store=store)
    rows = [row for path in job.shards().values() for row in pq.read_table(path).to_pylist()]
    items: list[dict[str, Any]] = []
    for row in rows:
        picture = images_dir / row["image"] if row["image"] else None
        items.append(
            {"text": row["text"], **({"image": str(picture)} if picture is not None and picture.is_file() else {})}
        )
    wrong = []
    for row, entities in zip(rows, pipe(items, batch_size=batch_size), strict=True):
        expected = [(e["entity_group"], e["word"], e["start"], e["end"]) for e in entities]
        found = [(e["type"], e["text"], e["start"], e["end"]) for e in row["entities"]]
        # The rounded scores depend on which posts share a batch, in the last digits.
        apart = [abs(e["score"] - f["score"]) for e, f in zip(entities, row["entities"], strict=False)]
        if expected != found or max(apart, default=0.0) > 1e-4:
            wrong.append(f"row {row['id']}: {len(found)} entities, the pipeline has {len(expected)}, or others")
    return wrong


def main() -> int:
    """Prints the table by phase; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--model", help="an exported folder; default: random heads, made here")
    parser.add_argument("--input", type=Path, help="a CSV with the columns id, text, image; default: the sample posts")
    parser.add_argument("--images_dir", type=Path, help="where its pictures are; default: its folder")
    parser.add_argument("--limit", type=int, help="only so many of the sample posts")
    parser.add_argument("--rows_per_shard", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    tried, held = Counter[str](), Counter[str]()

    def attempt(phase: str, faults: Sequence[str]) -> None:
        tried[phase] += 1
        held[phase] += not faults
        for fault in list(faults)[:10]:
            print(f"{phase}: {fault}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model, file, images_dir = args.model, args.input, args.images_dir
        if model is None:
            from label import save_minilm

            model = save_minilm(place / "model", reads_text_in_images=True)
        if file is None:
            from dataset_scripts.sample_posts import SAMPLE_POSTS

            file, images_dir = place / "posts.csv", SAMPLE_POSTS / "images"
            write_sample(file, args.limit)
        images_dir = (images_dir or file.parent).resolve()
        arguments = [str(file), "--model", str(model), "--images_dir", str(images_dir), "--device", "cpu"]
        arguments += ["--num_workers", str(WORKERS), "--rows_per_shard", str(args.rows_per_shard)]
        arguments += ["--text_column", "text", "--image_column", "image", "--id_column", "id"]
        whole = Job(arguments, place / "whole", place / "whole-store", place / "whole.log")
        began = time.monotonic()
        whole.finish(None)
        took = time.monotonic() - began
        expected = {name: sha256(path) for name, path in whole.shards().items()}
        # The log of the uninterrupted job is empty; its report tells what there is to do.
        report = json.loads((whole.output / "report.json").read_text(encoding="utf-8"))
        pictures = report["images_read"]
        print(f"uninterrupted: {report['rows']:,} rows, {len(expected)} shards, {pictures} pictures, {took:.0f} s")

        chance = random.Random(args.seed)
        job = Job(arguments, place / "killed", place / "killed-store", place / "killed.log")
        before: dict[str, tuple[int, int]] = {}
        starting = max(2.0, 0.5 * took)  # while it starts, or a little later
        for number in range(args.kills):
            phase = PHASES[:4][number % 4]
            left = len(expected) + pictures - job.done()
            # Never so far that the job is done before the last kill.
            most = max(1, int(1.2 * left / (args.kills - number + 2)))
            process = job.start(number)
            try:
                alive = wait_for(process, phase, job, chance.randint(1, most), chance.uniform(0.2, min(starting, 12)))
                if alive:
                    time.sleep(chance.choice((0.0, chance.uniform(0, 0.02), chance.uniform(0, 0.3))))
            finally:
                kill(process)
            now = stamps(job)
            faults = [] if alive and process.returncode == -signal.SIGKILL else ["the job ended before it was killed"]
            faults += [f"{name} changed" for name, path in job.shards().items() if sha256(path) != expected.get(name)]
            faults += [f"{name} was touched" for name, stamp in before.items() if now.get(name) != stamp]
            faults += read_again(readings_of(job.log)).get(number, [])
            attempt(phase, faults)
            before = now
            print(f"kill {number + 1:>2}, {phase}: {len(now)} shards, {job.readings()} readings", flush=True)

        job.finish(args.kills)
        lines = readings_of(job.log)
        lost, read = in_flight(lines), sum(line.what == "reads" for line in lines)
        different = {line.picture for line in lines}
        # Two workers may come to the same picture at the same time.
        readers = {(line.run, line.picture, line.process) for line in lines if line.what == "reads"}
        at_once = len(readers) - len({(run, picture) for run, picture, _ in readers})
        sums = over_all(whole.shards()), over_all(job.shards())
        after = stamps(job)
        faults = [] if sums[0] == sums[1] else [f"the sha256 over the shards is {sums[1]}, and not {sums[0]}"]
        faults += [f"{name} was touched" for name, stamp in before.items() if after.get(name) != stamp]
        faults += read_again(lines).get(args.kills, [])
        faults += [f"half written: {path}" for path in job.output.rglob(".part-*")]
        if not different == kept_pictures(job.store) == kept_pictures(whole.store):
            faults.append(f"{len(different)} pictures were read, and {pictures} by the uninterrupted job, or others")
        if read - len(different) - at_once > lost or lost > args.kills * WORKERS * IMAGES_AT_ONCE:
            faults.append(f"{read} readings of {len(different)} pictures, of which {lost} were in flight at a kill")
        attempt("finishing", faults)
        print(
            f"finished: {len(before)} of {len(after)} shards were there; sha256 {sums[1][:9]}, expected {sums[0][:9]}"
        )
        print(
            f"{read} readings of {len(different)} pictures: {lost} were in flight at one of {args.kills} kills, "
            f"{at_once} by two workers at once"
        )

        files = {path: path.stat().st_mtime_ns for path in job.output.rglob("*") if path.is_file()}
        job.finish(args.kills + 1)
        again = {path: path.stat().st_mtime_ns for path in job.output.rglob("*") if path.is_file()}
        faults = [] if files == again else ["the second run changed files"]
        if any(line.run > args.kills for line in readings_of(job.log)):
            faults.append("the second run read pictures")
        attempt("nothing to do", faults)
        attempt("entities", differs_from_pipeline(str(model), images_dir, job, batch_size=32))
    print(f"{'phase':<22}{'tried':>6}{'held':>6}{'failed':>8}")
    for phase in PHASES:
        print(f"{phase:<22}{tried[phase]:>6}{held[phase]:>6}{tried[phase] - held[phase]:>8}")
    failed = tried.total() - held.total()
    print(f"tried {tried.total()}, held {held.total()}, failed {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        from dataset_scripts.label import main as label

        sys.exit(label(sys.argv[2:]))
    sys.exit(main())
