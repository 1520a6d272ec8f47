"""The checkpoints of a training run. Only a complete and intact checkpoint is resumed.

A checkpoint is a folder `checkpoint_N`. It holds what `Accelerator.save_state` writes, the best weights so far in
`best`, and `manifest.json` with size and sha256 of every file. It is written under a temporary name and then renamed;
older ones are removed only after that. Checkpoints of version 0.1 have neither manifest nor `best`; they are resumed
if their files load.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, load
from safetensors import safe_open

from .command_line import MISUSE
from .plain_text import one_line
from .whole_files import remove_if_dead, working_folder, written_folder

MANIFEST = "manifest.json"
BEST = "best"
WEIGHTS = "model.safetensors"
RANDOM_STATES = "random_states_{}.pkl"  # of every process
# In every checkpoint, even of version 0.1; the last two are the schedule and the `Progress`.
REQUIRED = (
    WEIGHTS,
    "optimizer.bin",
    RANDOM_STATES.format(0),
    "custom_checkpoint_0.pkl",
    "custom_checkpoint_1.pkl",
)


class Progress:
    """How far a run has come: what a checkpoint holds besides weights, optimizer and random states."""

    def __init__(self) -> None:
        self.step = 0
        self.best = -1.0
        self.sums: dict[str, float] = {}
        self.history: dict[str, list[dict[str, Any]]] = {"steps": [], "evaluations": []}

    def state_dict(self) -> dict[str, Any]:
        """For `Accelerator.save_state`."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For `Accelerator.load_state`."""
        vars(self).update(state)


class Checkpoints:
    """The numbered checkpoints of a run.

    Args:
        folder: where they are written.
        limit: how many are kept. When a run resumes from an earlier checkpoint, the later ones are removed first.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self._left_behind: set[int] = set()

    def numbered(self) -> dict[int, Path]:
        """All checkpoints by number, intact or not."""
        found = {}
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if name := re.fullmatch(r"checkpoint_(0|[1-9][0-9]*)", path.name):
                    found[int(name[1])] = path
        return dict(sorted(found.items()))

    def to_resume(self, which: str) -> Path | None:
        """The checkpoint to resume from. Removes what dead processes have left half written.

        Args:
            which: a checkpoint's folder, or `"last"` for the newest intact one. Why others are skipped is printed to
                stderr.

        Returns:
            The checkpoint, or None if `"last"` finds none.

        Raises:
            FileNotFoundError: the named folder, or a file in it, is missing.
            ValueError: the named checkpoint is damaged; the message names the file.
        """
        for path in self.folder.glob(".checkpoint_*.tmp"):
            remove_if_dead(path)
        numbered = self.numbered()
        chosen = None
        if which == "last":
            for path in reversed(numbered.values()):
                try:
                    check(path)
                    chosen = path
                    break
                except (OSError, ValueError) as error:
                    print(one_line(f"{path} is skipped: {error}"), file=sys.stderr)
        else:
            chosen = Path(which)
            if not chosen.is_dir():
                raise FileNotFoundError(f"--resume_from_checkpoint {which} is not a folder (or: last)")
            check(chosen)
        at = max((n for n, path in numbered.items() if chosen and path.resolve() == chosen.resolve()), default=-1)
        self._left_behind = {number for number in numbered if number > at}
        if which == "last":  # the run may have been stopped before it removed them
            self._remove([number for number in numbered if number <= at][: -self.limit])
        return chosen

    def way_on(self) -> str:
        """Says what resuming from the last checkpoint does."""
        there = list(self.numbered().values())
        return f"goes on from {there[-1]}" if there else "starts again: there is no checkpoint yet"

    def load(self, accelerator: Accelerator, checkpoint: Path) -> None:
        """Loads a checkpoint that `to_resume` returned; warns on stderr if the run cannot continue exactly.

        Raises:
            ValueError: it does not fit the run, or its random state cannot be restored.
        """
        manifest = read_manifest(checkpoint)
        here = _devices(accelerator)
        there = here if manifest is None else str(manifest.get("devices"))
        other = "" if there == here else f"written by {there}, read by {here}"
        if accelerator.is_main_process and manifest is None:
            print(f"{checkpoint} carries no checksums: a change in its numbers would go unseen", file=sys.stderr)
        if accelerator.is_main_process and other:
            print(f"{checkpoint} was {other}: the numbers will not be those of one run", file=sys.stderr)
        try:
            accelerator.load_state(str(checkpoint))
        except Exception as error:
            why = f" ({other})" if other else ""
            raise ValueError(f"{checkpoint} cannot be loaded{why}: {one_line(error, 300)}") from error
        # Accelerate silently ignores a random state that it cannot set.
        file = checkpoint / RANDOM_STATES.format(accelerator.process_index)
        if file.is_file():
            state = load(str(file), map_location="cpu")
            drawn = state.get("torch_manual_seed") if isinstance(state, dict) else None
            if not isinstance(drawn, torch.Tensor) or not torch.equal(drawn, torch.get_rng_state()):
                raise ValueError(f"{file} is not a random state")
        elif not other:
            print(f"{file} is missing: this process draws new random numbers", file=sys.stderr)

    def save(self, accelerator: Accelerator, best: Path | None) -> None:
        """Writes the next checkpoint, then removes those above the limit. All processes call this.

        Args:
            accelerator: whose state is saved.
            best: the folder of the best weights so far, saved along with it; None if there are none yet.

        Raises:
            OSError: it cannot be written; the message names its path, and earlier checkpoints are untouched.
        """
        main = accelerator.is_main_process
        place = self.folder / f"checkpoint_{max(self.numbered(), default=-1) + 1}"
        with written_folder(place, "checkpoint", lambda _: False) if main else nullcontext() as folder:
            shared: list[Any] = [folder]
            broadcast_object_list(shared)  # one process makes the folder, all write to it
            accelerator.save_state(str(shared[0]))
            accelerator.wait_for_everyone()
            if folder is not None:
                if best is not None:
                    _copy_model(best, folder / BEST)
                _write_manifest(folder, _devices(accelerator))
        if main:
            self._remove_old()

    def _remove_old(self) -> None:
        self._remove(sorted(self.numbered(), key=lambda n: (n not in self._left_behind, n))[: -self.limit])

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            checkpoint = self.folder / f"checkpoint_{number}"
            with working_folder(checkpoint) as gone:
                checkpoint.rename(gone / checkpoint.name)  # in one step, whatever stops the removal


def on_main_process(process: PartialState, action: Callable[[], Any]) -> Any:
    """Runs an action on the main process and returns its result on all; if it raises, the others exit too."""
    got: list[Any] = [False, None]
    try:
        if process.is_main_process:
            got = [True, action()]
    finally:
        broadcast_object_list(got)
    if not got[0]:
        time.sleep(5)  # a launcher stops all when one ends: the main process says why first
        sys.exit(MISUSE)
    return got[1]


def check(checkpoint: Path) -> None:
    """Checks that all files of a checkpoint are present and unchanged, and that loading them runs no code.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, was replaced, or holds more than numbers.
    """
    manifest = read_manifest(checkpoint)
    files = {} if manifest is None else manifest["files"]
    for name in (*REQUIRED, *files):
        if not (checkpoint / name).is_file():
            raise FileNotFoundError(f"{checkpoint / name} is missing")
    for name, written in files.items():
        size = (checkpoint / name).stat().st_size
        if size != written["size"]:
            raise ValueError(f"{checkpoint / name} is damaged: {size:,} of {written['size']:,} bytes")
        if _sha256(checkpoint / name) != written["sha256"]:
            raise ValueError(f"{checkpoint / name} is not the file that was written: its sha256 differs")
    for file in sorted(checkpoint.iterdir()):
        try:
            if file.suffix in (".bin", ".pkl", ".pt"):
                # Read as numbers only, with nothing that a pickle could run; what has a checksum need not be read.
                load(str(file), map_location="cpu", mmap=bool(files))
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as weights:
                    weights.keys()
        except Exception as error:
            raise ValueError(f"{file} is damaged: {one_line(error, 200)}") from error


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None for one of version 0.1.

    Raises:
        ValueError: it is damaged.
    """
    file = checkpoint / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest["files"] = {
            str(name): {"size": int(written["size"]), "sha256": str(written["sha256"])}
            for name, written in manifest["files"].items()
        }
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error, 200)}") from error


def restore_best(checkpoint: Path, best: Path) -> None:
    """Restores the best weights of a checkpoint to the folder where its run keeps them, replacing later ones.

    A checkpoint of version 0.1 holds none: they are taken from the run's folder.

    Raises:
        FileNotFoundError: they are missing.
    """
    kept = checkpoint / BEST
    if read_manifest(checkpoint) is None:
        kept = checkpoint.resolve().parents[1] / BEST
    if not kept.is_dir():
        raise FileNotFoundError(f"{kept} is missing: the best weights so far")
    if kept != best.resolve():
        with written_model(best) as folder:
            _copy_model(kept, folder)


def written_model(folder: Path) -> AbstractContextManager[Path]:
    """A new folder for weights; it replaces the earlier one once it is complete."""
    return written_folder(folder, "model", lambda earlier: (earlier / "config.json").is_file())


def _copy_model(source: Path, target: Path) -> None:
    """Hard-links weights instead of copying them where possible: no file of weights is ever edited in place."""
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            if file.suffix == ".safetensors":
                try:
                    os.link(file, target / file.name)
                    continue
                except OSError:  # another file system, or one without links
                    pass
            shutil.copyfile(file, target / file.name)


def _devices(accelerator: Accelerator) -> str:
    return f"{accelerator.num_processes} x {accelerator.device.type}"


def _write_manifest(folder: Path, devices: str) -> None:
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    text = json.dumps({"devices": devices, "files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
