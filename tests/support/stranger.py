"""A process on a machine on which nobody has heard of this project: only its dependencies can be imported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from forked import run_python

_BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_ita", "hub_card", "dataset_scripts", "train"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""


def run_stranger(
    code: str,
    arguments: Sequence[str | Path] = (),
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run code in a fresh process, in which importing anything of the project fails; returns what it printed.

    Args:
        code: the program.
        arguments: its `sys.argv[1:]`.
        environment: its environment; default: this process's, offline.
        folder: where it runs.

    Raises:
        AssertionError: it failed; the message is what it said.
    """
    given = environment or {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = run_python(["-c", _BLOCKED + code, *map(str, arguments)], given, folder=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
