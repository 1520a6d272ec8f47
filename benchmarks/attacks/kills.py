"""Kills training at every kind of moment, resumes it, and compares what it leaves with an uninterrupted run's.

    python benchmarks/attacks/kills.py

An uninterrupted run counts every step, every evaluation and everything it does to a file of its folder. Then runs are
killed at moments spread over all phases, some of them with a half-written file, and resumed by the same command; every
eighth is stopped by Ctrl-C instead, every seventh is killed a second time. What a resumed run leaves must be what the
uninterrupted one left: report.json, report.html, report.png and the model byte for byte (but for the date), no
left-over, no checkpoint too many; and no checkpoint may have been found damaged on the way.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

import train  # noqa: E402
from modeling_ita.training_checkpoints import Checkpoints  # noqa: E402

PRELOADED = (
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.resnet.modeling_resnet",
    "transformers.models.convnext.image_processing_pil_convnext",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
)
PATIENCE = 300  # seconds for one run
KEPT = 1  # checkpoints: with the least that can be kept nothing may be lost
NAMES = ["Phoenix", "Paris", "London", "Chicago"]
PHASES = (
    "start",
    "steps",
    "evaluation of an epoch",
    "best weights",
    "checkpoint: files",
    "checkpoint: to disk",
    "checkpoint: rename",
    "checkpoint: old ones go",
    "final evaluation",
    "report.json",
    "export",
    "picture and page",
)
# What a phase is entered by.
ENTRIES: tuple[tuple[Any, str, str], ...] = (
    (train.Trainer, "_step", "steps"),
    (train.Trainer, "_evaluate", "evaluation of an epoch"),
    (train, "written_model", "best weights"),
    (Checkpoints, "save", "checkpoint: files"),
    (Checkpoints, "_remove_old", "checkpoint: old ones go"),
    (train, "evaluate_model", "final evaluation"),
    (train, "write_report", "report.json"),
    (train, "export_model", "export"),
    (train, "training_figure", "picture and page"),
    (train, "write_page", "picture and page"),
)
FILE_EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")


class Stop(NamedTuple):
    """When a run is stopped, counted in events, and how."""

    at: int
    by: signal.Signals = signal.SIGKILL


class Done(NamedTuple):
    """What a run left: its exit status (negative: the signal), what it said, and the phases of its events."""

    status: int
    said: str
    phases: list[str]


# --- in the process that is killed -----------------------------------------------------------------------------------


class Watch:
    """Counts what a run does, and stops it at one of these events."""

    def __init__(self, folder: Path, stop: Stop | None) -> None:
        self.folder, self.stop, self.phase = str(folder), stop, "start"
        self.phases: list[str] = []
        sys.addaudithook(self._audit)
        for owner, name, phase in ENTRIES:
            setattr(owner, name, self._entering(getattr(owner, name), phase))
        torch.save = self._torn(torch.save, 1)
        for module in ("accelerate.utils.other", "transformers.modeling_utils"):
            library: Any = importlib.import_module(module)
            library.safe_save_file = self._torn(library.safe_save_file, 1)
        os.fsync = self._before(os.fsync)

    def event(self, what: str) -> None:
        """One more event; may not return."""
        phase = self.phase
        if phase == "checkpoint: files" and what in ("fsync", "os.chmod"):
            phase = "checkpoint: to disk"
        elif phase == "checkpoint: files" and what == "os.rename":
            phase = "checkpoint: rename"
        self.phases.append(phase)
        if self.stop is not None and len(self.phases) == self.stop.at:
            os.kill(os.getpid(), self.stop.by)

    def _audit(self, what: str, given: tuple[Any, ...]) -> None:
        if what not in FILE_EVENTS or (what == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        relative = what in ("os.remove", "os.rmdir") and given[1] != -1  # as a folder's removal names what it holds
        if relative or str(given[0]).startswith(self.folder):
            self.event(what)

    def _entering(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @wraps(function)
        def entered(*args: Any, **kwargs: Any) -> Any:
            outer, self.phase = self.phase, phase
            try:
                self.event("entry")
                made = function(*args, **kwargs)
            finally:
                self.phase = outer
            return self._block(made, phase) if hasattr(made, "__enter__") else made

        return entered

    @contextmanager
    def _block(self, block: Any, phase: str) -> Iterator[Any]:
        outer, self.phase = self.phase, phase
        try:
            with block as given:
                yield given
        finally:
            self.phase = outer

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def after_event(*args: Any) -> Any:
            self.event(function.__name__)
            return function(*args)

        return after_event

    def _torn(self, function: Callable[..., Any], place: int) -> Callable[..., Any]:
        """A function that writes a file; where it is the event, half of the file is there."""

        @wraps(function)
        def torn(*args: Any, **kwargs: Any) -> Any:
            done = function(*args, **kwargs)
            if self.stop is not None and len(self.phases) + 1 == self.stop.at and self.stop.by == signal.SIGKILL:
                os.truncate(args[place], os.path.getsize(args[place]) // 2)
            self.event("write")
            return done

        return torn


def run_train(folder: Path, arguments: Sequence[str], stop: Stop | None = None) -> Done:
    """Trains in a process of its own that works in this folder."""
    folder.mkdir(exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.chdir(folder)
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", encoding="utf-8") for stream in (1, 2))
            importlib.import_module("datasets").config.HF_DATASETS_CACHE = str(folder / "cache")
            watch = Watch(folder, stop)
            status = train.run(arguments)
            Path("phases.json").write_text(json.dumps(watch.phases))
            sys.stderr.flush()
        finally:
            os._exit(status)
    deadline = time.monotonic() + PATIENCE
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Done(-1, f"not at an end after {PATIENCE} s", [])
        time.sleep(0.02)
    phases = folder / "phases.json"
    said = (folder / "err").read_text(encoding="utf-8", errors="replace")
    return Done(os.waitstatus_to_exitcode(ended[1]), said, json.loads(phases.read_text()) if phases.is_file() else [])


# --- the runs --------------------------------------------------------------------------------------------------------


def write_inputs(folder: Path) -> None:
    """A corpus of small posts with captions, objects and pictures, and a tiny random BERT."""
    from PIL import Image
    from transformers import BertConfig, BertModel, BertTokenizer

    corpus = folder / "corpus"
    (corpus / "images").mkdir(parents=True)
    contexts = []
    for split, posts in (("train", 24), ("valid", 8), ("test", 8)):
        lines = []
        for i in range(posts):
            tag, caption = (("ORG", "game"), ("LOC", "stadium"))[i % 2]
            words = [NAMES[i // 2 % 4], *["tonight"] * (1 + i % 3)]
            lines += [f"IMGID:{split}{i}", f"{words[0]}\tB-{tag}", *(f"{word}\tO" for word in words[1:]), ""]
            contexts.append({"id": f"{split}{i}", "captions": [caption], "object_tags": ["red car"]})
            noise = random.Random(f"{split}{i}").randbytes(3 * 24 * 24)
            Image.frombytes("RGB", (24, 24), noise).save(corpus / "images" / f"{split}{i}.png")
        (corpus / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    (corpus / "contexts.jsonl").write_text("\n".join(map(json.dumps, contexts)), encoding="utf-8")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NAMES, "tonight", "game", "stadium", "red", "car"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=64)
    tokenizer.save_pretrained(folder / "encoder")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(pieces), intermediate_size=64, **sizes)
    BertModel(config).save_pretrained(folder / "encoder")


def flags(inputs: Path, system: str) -> list[str]:
    """The command line of all runs of a system."""
    corpus = inputs / "corpus"
    common = [
        *("--dataset", "conll", "--data_dir", str(corpus), "--context_files", str(corpus / "contexts.jsonl")),
        *("--encoder", str(inputs / "encoder"), "--output_dir", "run", "--num_epochs", "3", "--batch_size", "6"),
        *("--save_steps", "3", "--save_total_limit", str(KEPT), "--logging_steps", "1"),
        *("--resume_from_checkpoint", "last"),
    ]
    if system == "ita":
        return [*common, "--learning_rate", "3e-3"]
    images = ["--images_dir", str(corpus / "images"), "--vision_encoder", "from_scratch", "--train_vision", "true"]
    return ["--model", "mgcmt", *common, *images, "--learning_rate", "1e-3"]


def left(folder: Path) -> dict[str, Any]:
    """What a run has left, without the date."""
    run = folder / "run"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    date = report.pop("created")
    found: dict[str, Any] = {"report.json": report}
    for file in sorted([*run.glob("report.*"), *(run / "model").rglob("*"), *(run / "best").rglob("*")]):
        if file.is_file() and file.name != "report.json":
            content = file.read_bytes().replace(date.encode(), b"DATE")
            found[str(file.relative_to(run))] = hashlib.sha256(content).hexdigest(), oct(file.stat().st_mode)
    found["folder"] = sorted(file.name for file in run.iterdir())
    found["checkpoints"] = sorted(re.sub(r"\d+", "N", file.name) for file in (run / "checkpoints").iterdir())
    return found


def faults(reference: dict[str, Any], folder: Path, stops: list[tuple[Stop, Done]], last: Done) -> Iterator[str]:
    """What is wrong with a run that was stopped and resumed."""
    for number, (stop, done) in enumerate(stops):
        if number > 0 and done.status == 0:
            continue  # what was left to do had fewer events
        if stop.by == signal.SIGINT:
            lines = done.said.strip().split("\n")
            if done.status != 130 or "Traceback" in done.said or not lines[-1].startswith("interrupted"):
                yield f"Ctrl-C ended with status {done.status} and {lines[-1]!r}"
        elif done.status != -stop.by:
            yield f"ended with status {done.status} before it was stopped: {done.said[-300:]!r}"
        if "is skipped" in done.said:
            yield f"a checkpoint was damaged: {done.said[-300:]!r}"
    if last.status != 0:
        yield f"the resumed run ended with status {last.status}: {last.said[-500:]!r}"
        return
    if "is skipped" in last.said:
        yield f"a checkpoint was damaged: {last.said[-300:]!r}"
    now = left(folder)
    for name in sorted(reference.keys() | now.keys()):
        if reference.get(name) != now.get(name):
            yield f"{name} differs"


def chosen_events(phases: list[str], kills: int) -> list[int]:
    """Events to stop at, the same number of every phase, spread evenly over it."""
    events = defaultdict(list)
    for number, phase in enumerate(phases, 1):
        events[phase].append(number)
    shares = Counter(list(dict.fromkeys(p for p in PHASES if p in events))[i % len(events)] for i in range(kills))
    return sorted(
        events[phase][(2 * i + 1) * len(events[phase]) // (2 * share)]
        for phase, share in shares.items()
        for i in range(share)
    )


def main() -> int:
    """Prints the table by phase; returns 1 if a run did not resume to the same report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=48, help="runs of ITA that are killed (default: %(default)s)")
    parser.add_argument("--mgcmt", type=int, default=12, help="runs of MGCMT (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the second kills (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    for module in PRELOADED:
        importlib.import_module(module)
    chance = random.Random(args.seed)
    tried, held = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        write_inputs(Path(place, "inputs"))
        for system, kills in (("ita", args.kills), ("mgcmt", args.mgcmt)):
            command = flags(Path(place, "inputs"), system)
            whole = run_train(Path(place, system), command)
            if whole.status != 0:
                print(f"the uninterrupted run of {system} ended with status {whole.status}: {whole.said[-3000:]}")
                return 1
            reference = left(Path(place, system))
            for number, event in enumerate(chosen_events(whole.phases, kills)):
                folder = Path(place, f"{system}-{number}")
                stops = [Stop(event, signal.SIGINT if number % 8 == 7 else signal.SIGKILL)]
                if number % 7 == 6:
                    stops.append(Stop(chance.randrange(1, len(whole.phases))))
                ended = [(stop, run_train(folder, command, stop)) for stop in stops]
                wrong = list(faults(reference, folder, ended, run_train(folder, command)))
                phase = whole.phases[event - 1]
                tried[phase] += 1
                held[phase] += not wrong
                for fault in wrong:
                    print(f"{system}, {phase}, event {event} of {len(whole.phases)}, {stops}: {fault}", flush=True)
    print(f"{'phase':<26}{'tried':>6}{'held':>6}{'failed':>8}")
    for phase in PHASES:
        print(f"{phase:<26}{tried[phase]:>6}{held[phase]:>6}{tried[phase] - held[phase]:>8}")
    failed = tried.total() - held.total()
    print(f"tried {tried.total()}, held {held.total()}, failed {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
