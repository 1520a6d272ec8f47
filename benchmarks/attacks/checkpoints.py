"""Broken and hostile checkpoints, each by three routes: what is held is an error of one line, or the intact labels.

    python benchmarks/attacks/checkpoints.py

The routes: `installed`, the classes of the package; `trusted`, `pipeline(…, trust_remote_code=True)` in a process that
knows nothing of the project, which quotes the traceback of a model that does not load: its last line counts;
`predict`, the command. A checkpoint is held if it raises an OSError, ValueError or
ImportError of one line that names the file (a command: exit status 2 and that line), or labels a post exactly as the
intact one does; and if it takes less than 1 GiB and 60 seconds, connects to nothing, starts nothing, and opens nothing
in the folder beside it. With `trusted`, transformers reads config.json before any code of this package: what is raised
there is counted apart, and held to the rest. The hostile ones are not tried there: whoever trusts their code runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POST = "Phoenix Suns tonight, Obama in Paris"
PATIENCE = 60  # seconds
MEMORY = 2**30  # bytes above the process that waits
ROUTES = ("installed", "trusted", "predict")
REACHING = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.fork")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="part of the names of those to try")
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, options.warm)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    from broken_checkpoints import SENTINEL, broken, hostile

    tried = failed = 0
    before = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_checkpoints(folder)
        (folder / "work" / SENTINEL).mkdir(parents=True)
        for route in ROUTES:
            worker = Worker(route, folder)
            intact = {system: worker.ask(copy(folder, system)) for system in ("ita", "mgcmt")}
            assert all("labels" in answer for answer in intact.values()), intact
            harms = broken() + ([] if route == "trusted" else hostile())
            for harm in [harm for harm in harms if options.only in harm.name]:
                place = copy(folder, harm.system)
                harm.do(place)
                answer = worker.ask(place)
                tried += 1
                why = fault(answer, intact[harm.system], harm.file, route)
                before += bool(answer.get("before")) and not why
                if why:
                    failed += 1
                    print(f"FAILED  {route}: {harm.name}: {why}")
            worker.close()
    print(f"raised by transformers before this package's code was there: {before}")
    print(f"tried {tried}, held {tried - failed}, failed {failed}")
    return int(failed > 0)


def fault(answer: dict[str, Any], intact: dict[str, Any], file: str, route: str) -> str:
    """Why an answer is none that is held; empty if it is."""
    if answer.get("events"):
        return f"it reached out: {answer['events'][:3]}"
    if answer.get("memory", 0) > MEMORY:
        return f"it took {answer['memory'] / 2**20:,.0f} MiB"
    if "labels" in answer:
        return "" if answer["labels"] == intact["labels"] else f"it labels {answer['labels']!r:.200}"
    if "error" not in answer:
        return str(answer)[:300]
    said = answer["error"]
    if answer.get("before"):
        return ""
    if not answer["foreseen"]:
        return f"{answer['type']}: {said[:300]!r}"
    if len(said) > 1000 or "\n" in said.strip():
        return f"{len(said)} characters in {len(said.splitlines())} lines: {said[:200]!r}"
    return "" if file in said else f"{file} is not named: {said[:300]}"


def copy(folder: Path, system: str) -> Path:
    """A fresh copy of an intact checkpoint."""
    place = folder / "work" / "checkpoint"
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder / system, place))


def make_checkpoints(folder: Path) -> None:
    """The intact checkpoints of both systems, tiny and random."""
    import torch
    from transformers import BertConfig, BertTokenizer, ConvNextImageProcessorPil, ResNetConfig
    from transformers.utils import logging

    from hub_card.hub.exported_folder import export_model
    from modeling_ita import (
        ItaConfig,
        ItaForTokenClassification,
        ItaProcessor,
        MgcmtConfig,
        MgcmtForTokenClassification,
        MgcmtProcessor,
        WordNeighbours,
    )

    logging.disable_progress_bar()
    torch.manual_seed(0)
    characters = [c for c in string.printable if not c.isspace()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    tokenizer = BertTokenizer(
        vocab={piece: n for n, piece in enumerate(pieces)}, do_lower_case=False, model_max_length=512
    )
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    text = BertConfig(vocab_size=len(pieces), **sizes)
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    words = ["Phoenix", "Suns", "tonight", "Obama", "in", "Paris"]
    table = WordNeighbours(words, torch.randn(len(words), 6), 2)
    table.search(words)
    images = ConvNextImageProcessorPil(size={"shortest_edge": 16})
    made: list[tuple[Any, Any]] = [
        (ItaForTokenClassification(ItaConfig(text_config=text)), ItaProcessor(tokenizer)),
        (
            MgcmtForTokenClassification(
                MgcmtConfig(text_config=text, vision_config=vision, augmentation_size=6, num_regions=4)
            ),
            MgcmtProcessor(tokenizer, images, object_labels=["car", "dog"], word_neighbours=table),
        ),
    ]
    for model, processor in made:
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.7 if "classifier" in name else 0.3)
        export_model(model.eval(), processor, folder / model.config.model_type)


class Worker:
    """A process that forks one for every checkpoint."""

    def __init__(self, route: str, folder: Path) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, "-P", __file__, "--worker", route, "--warm", str(folder)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def ask(self, place: Path) -> dict[str, Any]:
        """What became of one checkpoint."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{place}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def work(route: str, warm: str) -> int:
    """Answers for every checkpoint that is named on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if route == "trusted":
        sys.meta_path.insert(0, Stranger())
    else:
        sys.path.insert(0, str(ROOT))
    import transformers
    import transformers.pipelines

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # What they import when they load is imported once, and not by every fork.
    for system in ("ita", "mgcmt"):
        with contextlib.redirect_stdout(io.StringIO()):
            label(route, os.path.join(warm, system))
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            with os.fdopen(writer, "w") as said:
                said.write(json.dumps(attempt(route, line.strip())))
                said.flush()
                os._exit(0)
        os.close(writer)
        answers.write(json.dumps(outcome(child, reader)) + "\n")
        answers.flush()
    return 0


class Stranger:
    """Keeps the project from being imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuses the project's packages."""
        if name.partition(".")[0] in ("modeling_ita", "hub_card", "dataset_scripts", "train"):
            raise ModuleNotFoundError(name)


def outcome(child: int, reader: int) -> dict[str, Any]:
    """What a forked process said, or how it ended."""
    said, end = b"", time.monotonic() + PATIENCE
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            if not select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return {"hangs": f"after {PATIENCE} s"}
            part = pipe.read(2**16)
            if not part:
                break
            said += part
    status = os.waitpid(child, 0)[1]
    return json.loads(said) if said else {"died": os.waitstatus_to_exitcode(status)}


def attempt(route: str, place: str) -> dict[str, Any]:
    """Loads one checkpoint and labels a post, under guard."""
    events: list[str] = []
    outside = os.path.join(os.path.dirname(place), "outside")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        reaches = event in (
            "socket.connect",
            "socket.getaddrinfo",
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.fork",
        )
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            reaches = os.path.realpath(os.fsdecode(arguments[0])).startswith(outside)
        if reaches:
            events.append(f"{event} {arguments!r:.120}")
            raise PermissionError(f"{event} is not for a checkpoint")

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * MEMORY,) * 2)
    sys.addaudithook(hook)
    random.seed(0)
    answer: dict[str, Any] = {}
    err, out = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            answer["labels"] = label(route, place)
    except Refusal as refusal:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        answer |= {"error": err.getvalue(), "foreseen": refusal.args == (2,) and len(lines) == 1, "type": "status"}
    except BaseException as error:
        said = str(error)
        trace = "".join(traceback.format_exception(error))
        quoted = [line for line in said.splitlines() if line.partition(":")[0].endswith("Error")]
        answer |= {
            "error": quoted[-1] if quoted and "See the original errors" in said else said,
            "type": type(error).__name__,
            "foreseen": isinstance(error, (OSError, ValueError, ImportError)),
            "before": route == "trusted" and "transformers_modules" not in trace,
        }
    answer["labels"] = out.getvalue() if route == "predict" and "labels" in answer else answer.get("labels")
    if answer["labels"] is None:
        del answer["labels"]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - size
    return answer | {"events": events, "memory": used}


class Refusal(Exception):
    """A command that ended with this status."""


def label(route: str, place: str) -> Any:
    """What a checkpoint says of a post."""
    if route == "predict":
        from hub_card.predict import main as predict

        status = predict([place, POST, "--device", "cpu"])
        if status:
            raise Refusal(status)
        return ""
    if route == "trusted":
        from transformers import pipeline

        pipe: Any = pipeline("token-classification", model=place, trust_remote_code=True, device="cpu")
    else:
        from modeling_ita import (
            ItaForTokenClassification,
            ItaPipeline,
            ItaProcessor,
            MgcmtForTokenClassification,
            MgcmtProcessor,
        )

        is_mgcmt = os.path.exists(os.path.join(place, "modeling_mgcmt.py"))
        model_class: Any = MgcmtForTokenClassification if is_mgcmt else ItaForTokenClassification
        processor_class: Any = MgcmtProcessor if is_mgcmt else ItaProcessor
        model = model_class.from_pretrained(place)
        pipe = ItaPipeline(model=model, processor=processor_class.from_pretrained(place), device="cpu")
    return [{**entity, "score": round(entity["score"], 5)} for entity in pipe(POST)]


if __name__ == "__main__":
    sys.exit(main())
