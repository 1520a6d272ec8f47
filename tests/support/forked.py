"""Fresh Python processes that start fast: forks of one that has imported what knows of no Hub, cache or project.

Clients read where the Hub is when they are imported, so that each needs a process of its own; half of the time it
takes to start one goes to torch and its like, which read nothing of that sort.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

PRELOADED = (
    "torch", "torchvision", "numpy", "pandas", "pyarrow", "pyarrow.dataset", "PIL.Image", "scipy.stats",
    "scipy.optimize", "sklearn.metrics", "torch._dynamo", "yaml", "tokenizers", "safetensors.torch",
)  # fmt: skip
PATIENCE = 300  # seconds


class Done(NamedTuple):
    """What a process left: its exit status, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_python(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    path: Sequence[str | Path] = (),
    folder: str | Path | None = None,
) -> Done:
    """Run Python in a fresh process.

    Args:
        arguments: `["-c", code, …]` or `["-m", module, …]`.
        environment: its environment, whole.
        path: folders to import from, before all others.
        folder: where it runs; default: here.

    Raises:
        TimeoutError: it did not come to an end.
    """
    with tempfile.TemporaryDirectory() as said:
        asked = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "path": [str(place) for place in path],
            "folder": str(folder or Path.cwd()),
            "said": said,
        }
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], PATIENCE)[0]:
            server.kill()
            _server.cache_clear()
            raise TimeoutError(f"{arguments[:2]} has not come to an end after {PATIENCE} s")
        answer = server.stdout.readline()
        assert answer, "the process that forks others is gone"
        return Done(int(answer), *((Path(said, name).read_text(encoding="utf-8")) for name in ("out", "err")))


@cache
def _server() -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", __file__]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**environment, "OMP_NUM_THREADS": "1"}, **pipes)


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for module in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for line in requests:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(asked))
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        answers.flush()


def _run(asked: dict[str, Any]) -> int:
    """In the fork: become what was asked for; returns the exit status."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(asked["said"], name), os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", encoding="utf-8") for stream in (1, 2))
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.path[:0] = asked["path"]
    kind, what, *arguments = asked["arguments"]
    try:
        if kind == "-m":
            sys.argv = [what, *arguments]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments]
            main = types.ModuleType("__main__")
            sys.modules["__main__"] = main
            exec(compile(what, "<string>", "exec"), main.__dict__)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    # What a module prints when it is imported is no answer.
    to_client = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(sys.stdin, to_client)
