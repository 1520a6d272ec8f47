"""Runs the snippets of a model card in a separate process, for models made by somebody else.

Checkpoint strings enter the snippets as literals, and weights and settings are not code, so nothing from a checkpoint
should run in any process. Isolation is a second line of defence, in case a library that reads them has a bug.

What the process is given on every system: a fresh interpreter that ignores the variables and folders of the user's
Python (`-I`), an environment of a few named variables (no token, no key, no proxy), an empty folder as home and
working directory, Hugging Face's libraries offline, and a limit on wall-clock time, after which it and what it started
are killed. On Linux and macOS also limits on processor time and on the size of files, and on Linux one on memory.

Its network is switched off twice. On Linux, where the kernel lets users have namespaces, it and what it starts have no
network but a loopback of their own, and nothing undoes that. Everywhere Python's own sockets refuse names and
addresses, which code that is at work in the process could get around.

It is not a file-system sandbox: the process can read the files that its user can read, and write where the user can
write, up to the file size limit. It loads the folder with the installed package and trusts no code in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

TIME_LIMIT = 120.0  # seconds
MEMORY = 8 * 2**30  # bytes, in addition to four times the size of the folder
FILE_SIZE = 64 * 2**20  # bytes of a file that the process writes
LONGEST_OUTPUT = 20_000  # characters of a snippet's output that are kept
# Of the environment: where programs and libraries are, and how many threads they take.
KEPT = (
    "PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL", "TZ",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TESSDATA_PREFIX",
)  # fmt: skip


class NotRun(Exception):
    """The snippets did not finish; the message says why."""


def isolated_outputs(
    folder: str | os.PathLike[str], model_id: str, revision: str, time_limit: float = TIME_LIMIT
) -> dict[str, tuple[str, bool]]:
    """Run the snippets of an exported folder in a process without network and secrets, and return their output.

    Args:
        folder: the exported folder.
        model_id: the name that the snippets load the model by.
        revision: the revision that they pin.
        time_limit: seconds for everything, including loading.

    Returns:
        By snippet name, its output, and whether that ends with an error.

    Raises:
        NotRun: the process took too long or ended with an error.
    """
    folder = Path(folder).resolve()
    with tempfile.TemporaryDirectory(prefix="examples-", ignore_cleanup_errors=True) as place:
        home, said, answer = Path(place, "home"), Path(place, "said"), Path(place, "answer")
        home.mkdir()
        held = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        asked = {
            "path": [entry for entry in sys.path if entry and os.path.exists(entry)],
            "folder": str(folder),
            "model_id": model_id,
            "revision": revision,
            "answer": str(answer),
            "seconds": time_limit,
            "memory": MEMORY + 4 * held,
        }
        with said.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", __file__],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=home,
                env=_environment(home),
                start_new_session=True,
            )
            try:
                process.communicate(json.dumps(asked).encode(), timeout=time_limit)
            except subprocess.TimeoutExpired:
                raise NotRun(f"the snippets took more than {time_limit:g} seconds") from None
            finally:
                _kill(process)
        if process.returncode or not answer.is_file():
            with said.open("rb") as log:
                log.seek(max(0, said.stat().st_size - 2_000))
                why = log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise NotRun(f"the process of the snippets ended with status {process.returncode}: {why}")
        return _checked(answer)


def _environment(home: Path) -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE  # cached aligners are used

    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "TMPDIR": str(home),
        "TEMP": str(home),
        "HF_HOME": str(home),
        "HF_HUB_CACHE": HF_HUB_CACHE,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and its remaining children."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _checked(answer: Path) -> dict[str, tuple[str, bool]]:
    """Validates the answer: the process may have been compromised."""
    try:
        with answer.open("rb") as file:
            found: Any = json.loads(file.read(FILE_SIZE))
        return {str(name): (str(output)[:LONGEST_OUTPUT], failed is True) for name, (output, failed) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NotRun(f"the process of the snippets gave no answer: {error}") from error


# --- in the process of the snippets ----------------------------------------------------------------------------------


def _close_network() -> None:
    """Enters a namespace without network before anything is loaded, and disables Python's sockets."""
    if sys.platform == "linux":
        import ctypes

        new_user, new_network = 0x10000000, 0x40000000
        user, group = os.getuid(), os.getgid()
        with suppress(OSError, AttributeError):
            if ctypes.CDLL(None).unshare(new_user | new_network) == 0:
                # Keep the user and group ids, for libraries that ask.
                for file, line in (
                    ("setgroups", "deny"),
                    ("uid_map", f"{user} {user} 1"),
                    ("gid_map", f"{group} {group} 1"),
                ):
                    Path("/proc/self", file).write_text(line)
    refused = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"}

    def refuse(event: str, _: Any) -> None:
        if event in refused:
            raise PermissionError(f"{event}: there is no network for the snippets of a card")

    sys.addaudithook(refuse)


def _limit(seconds: float, memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    limits: Mapping[str, int] = {
        "RLIMIT_CPU": int(seconds * (os.cpu_count() or 1)) + 1,
        "RLIMIT_FSIZE": FILE_SIZE,
        "RLIMIT_CORE": 0,
        # Not the address space: libraries reserve far more than they use.
        **({"RLIMIT_DATA": memory} if sys.platform == "linux" else {}),
    }
    for name, limit in limits.items():
        kind = getattr(resource, name)
        _, most = resource.getrlimit(kind)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))


def _main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    _limit(asked["seconds"], asked["memory"])
    _close_network()
    sys.path[:] = asked["path"]

    from transformers import AutoModelForTokenClassification, AutoProcessor

    from hub_card.card.card_examples import run_examples
    from modeling_ita.pipeline_ita import ItaPipeline

    folder = asked["folder"]
    model = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    pipe = ItaPipeline(model=model, processor=processor, device="cpu")
    examples = run_examples(pipe, asked["model_id"], asked["revision"])
    found = {name: (example.output, example.failed) for name, example in examples.items()}
    Path(asked["answer"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _main()
