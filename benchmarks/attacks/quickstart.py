"""Interrupts `make quickstart` by Ctrl-C again and again, lets it finish, and compares it with an uninterrupted one.

    python benchmarks/attacks/quickstart.py
    python benchmarks/attacks/quickstart.py --moments 3 --epochs 3

One output folder is worked on by `make quickstart` until it is interrupted, and then by the next one, at moments
spread over what there is to do; a build of contexts, steps, an evaluation, an export are all hit. After the last
interruption it runs to its end. The F1 of T, I+T and wrong image must be those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VIEWS = ("T", "I+T", "wrong_image")
PATIENCE = 3600  # seconds for one run


class Ended(NamedTuple):
    """How a run of `make` ended: its exit status, how long it took, what it said, and whether it was interrupted."""

    status: int
    seconds: float
    said: str
    interrupted: bool


def makefile(epochs: int | None) -> Path:
    """The project's Makefile, or a copy whose quickstart trains for other epochs."""
    if epochs is None:
        return ROOT / "Makefile"
    text, times = re.subn(r"--num_epochs \d+", f"--num_epochs {epochs}", (ROOT / "Makefile").read_text("utf-8"))
    if times != 1:
        raise SystemExit("the Makefile's quickstart does not say --num_epochs once")
    with tempfile.NamedTemporaryFile("w", suffix=".mk", delete=False, encoding="utf-8") as copy:
        copy.write(text)
    return Path(copy.name)


def quickstart(file: Path, output: Path, after: float | None = None) -> Ended:
    """Runs `make quickstart`, and sends its processes what Ctrl-C sends after so many seconds."""
    command = ["make", "--no-print-directory", "-f", str(file), "quickstart", f"OUTPUT={output}"]
    # Nothing is installed: the Python that runs this has all that is needed.
    command += [f"BIN={Path(sys.executable).parent}", "-o", ".venv/.installed"]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        interrupted = False
        try:
            process.wait(PATIENCE if after is None else after)
        except subprocess.TimeoutExpired:
            interrupted = True
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return Ended(process.returncode, time.monotonic() - start, said.read(), interrupted)


def figures(output: Path) -> dict[str, float]:
    """Lenient F1 on test by view."""
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return {view: report["scores"]["test"][view]["lenient"]["f1"] for view in VIEWS}


def phase(said: str) -> str:
    """What a run was at, from what it printed."""
    commands = said.count("train.py "), said.count("hub_card.predict ")
    if commands[1]:
        return "prediction"
    if not commands[0]:
        return "contexts"
    if "training: 100%" in said:
        return "evaluation and export"
    return "training" if "training:" in said else "start of training"


def main() -> int:
    """Prints a line for every interruption; returns 1 if the figures differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10, help="interruptions (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="epochs of the training; default: those of the Makefile")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    file, chance, held = makefile(args.epochs), random.Random(args.seed), 0
    place = Path(tempfile.mkdtemp())
    try:
        whole = quickstart(file, place / "whole")
        if whole.status != 0:
            print(f"make quickstart ended with status {whole.status}:\n{whole.said[-3000:]}")
            return 1
        expected = figures(place / "whole")
        again = quickstart(file, place / "whole")  # with nothing left to train: what every run takes at the least
        idle = min(again.seconds, whole.seconds)
        print(f"uninterrupted: {whole.seconds:.0f} s, again {again.seconds:.0f} s, {expected}", flush=True)
        work, times, is_done = (whole.seconds - idle) / args.moments, 0, False
        while times < args.moments:
            # Half of them early enough to hit what a run begins with, half late enough to get somewhere.
            late = idle / 2 + 2 * work * chance.uniform(0.7, 1.3)
            is_late = times % 2 and not is_done
            ended = quickstart(file, place / "parts", late if is_late else idle * chance.uniform(0.1, 1.0))
            if not ended.interrupted and ended.status != 0:
                print(f"ended with status {ended.status}:\n{ended.said[-3000:]}")
                return 1
            if not ended.interrupted:
                idle, is_done = min(idle, ended.seconds), True
                print(f"at its end after {ended.seconds:.1f} s: once more", flush=True)
                continue
            times += 1
            at = phase(ended.said)
            said = "interrupted; --resume_from_checkpoint last" in ended.said
            good = ended.status != 0 and (said or at != "training")
            held += good
            print(f"Ctrl-C after {ended.seconds:.1f} s, {at}: make's status is {ended.status}", flush=True)
            if not good:
                print(ended.said[-2000:])
        last = quickstart(file, place / "parts")
        if last.status != 0:
            print(f"the last run ended with status {last.status}:\n{last.said[-3000:]}")
        found = figures(place / "parts") if last.status == 0 else {}
        print(f"interrupted {args.moments} times: {found}")
        same = found == expected
        held += same
        print(f"tried {args.moments + 1}, held {held}, failed {args.moments + 1 - held}")
        return int(held < args.moments + 1)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if args.epochs is not None:
            file.unlink()


if __name__ == "__main__":
    sys.exit(main())
