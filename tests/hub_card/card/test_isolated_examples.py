"""The snippets of other people's models run in a process that has no network, no secrets and no time to waste."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hub_card.card import isolated_examples
from hub_card.card.card_examples import run_examples, snippets
from hub_card.card.isolated_examples import NotRun, isolated_outputs
from hub_card.hub.exported_folder import export_model
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor


@pytest.fixture(scope="module")
def folder(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return export_model(tiny_model, tiny_processor, tmp_path_factory.mktemp("isolated") / "model")


def test_the_card_shows_what_the_process_printed(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    exported = export_model(tiny_model, tiny_processor, tmp_path / "model", examples="isolated")
    card = (exported / "README.md").read_text(encoding="utf-8")
    revision = re.findall(r'revision="(weights-[0-9a-f]{8})"', card)[0]
    for example in run_examples(pipe, "you/ita", revision).values():
        assert f"```python\n{example.code}\n```\n\n```text\n{example.output}\n```" in card
    assert "printed when this card was made" in " ".join(card.split())


def test_by_default_nothing_runs(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, folder: Path
) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    revision = re.findall(r'revision="(weights-[0-9a-f]{8})"', card)[0]
    assert card.count("```python\n") == len(snippets(pipe, "you/ita", revision)) == 5
    assert "```text" not in card and "none of them was run" in " ".join(card.split())


def test_who_takes_too_long_is_stopped(
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(NotRun, match=r"more than 0\.2 seconds"):
        isolated_outputs(folder, "you/ita", "main", time_limit=0.2)
    monkeypatch.setattr("hub_card.card.card.isolated_outputs", lambda *_: isolated_outputs(folder, "a/b", "c", 0.2))
    exported = export_model(tiny_model, tiny_processor, tmp_path / "model", examples="isolated")
    assert "none of them was run" in " ".join((exported / "README.md").read_text(encoding="utf-8").split())
    assert "more than 0.2 seconds" in caplog.text


def test_a_folder_that_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_examples, "__file__", str(tmp_path / "process.py"))
    (tmp_path / "process.py").write_text("raise OSError('no weights')")
    with pytest.raises(NotRun, match="status 1: OSError: no weights"):
        isolated_outputs(tmp_path, "you/ita", "main")
    (tmp_path / "process.py").write_text("print('done')")
    with pytest.raises(NotRun, match="status 0"):
        isolated_outputs(tmp_path, "you/ita", "main")


# What code would find that had broken out of the snippets, in the process as it is when the snippets run.
PROBE = """
import json, os, socket, subprocess, sys
from pathlib import Path

source = open({file!r}).read().partition("def _main")[0]
module = {{"__name__": "process", "__file__": {file!r}}}
exec(compile(source, {file!r}, "exec"), module)
asked = json.loads(sys.stdin.buffer.read())
module["_limit"](asked["seconds"], asked["memory"])
module["_close_network"]()
found = {{}}
for name, call in {{
    "connect": lambda: socket.create_connection(("127.0.0.1", {port}), 2),
    "resolve": lambda: socket.getaddrinfo("localhost", 80),
    "large": lambda: Path("large").write_bytes(bytes(module["FILE_SIZE"] + 1)),
}}.items():
    try:
        call()
        found[name] = "done"
    except OSError as error:
        found[name] = type(error).__name__
child = "import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
found["child"] = str(subprocess.run([sys.executable, "-c", child], capture_output=True).returncode)
found["namespace"] = os.readlink("/proc/self/ns/net") if os.path.exists("/proc/self/ns/net") else ""
found["environment"] = " ".join(sorted(os.environ))
found["values"] = " ".join(os.environ.values())
found["home"] = " ".join(os.listdir(os.path.expanduser("~")))
open(asked["answer"], "w").write(json.dumps({{name: (value, False) for name, value in found.items()}}))
"""


def test_there_is_no_network_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = isolated_examples.__file__
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "HTTPS_PROXY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a-secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "process.py").write_text(PROBE.format(file=file, port=server.getsockname()[1]))
        monkeypatch.setattr(isolated_examples, "__file__", str(tmp_path / "process.py"))
        found = {name: value for name, (value, _) in isolated_outputs(tmp_path, "you/ita", "main").items()}
    assert found["connect"] == found["resolve"] == "PermissionError"
    assert found["large"] == "OSError"  # the limit on a file
    assert "secret" not in found["values"] and not re.search(r"TOKEN\b|KEY|PROXY", found["environment"])
    assert found["home"] in ("", "large")
    if found["namespace"] != (os.readlink("/proc/self/ns/net") if found["namespace"] else ""):
        assert found["child"] != "0"  # what it starts has none either
    else:
        assert not _has_namespaces(), "the kernel gives namespaces, and the process has none"


def _has_namespaces() -> bool:
    tried = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    return sys.platform == "linux" and subprocess.run([sys.executable, "-c", tried]).returncode == 0
