"""The notebooks of the documentation run offline; the push of the second one goes to a Hub on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from loopback_hub import ROOT, LoopbackHub
from nbclient import NotebookClient

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def run(name: str, folder: Path, environment: dict[str, str]) -> str:
    """All that the cells of a notebook print and show, run in a folder of their own."""
    notebook: Any = nbformat.read(FOLDER / name, as_version=4)
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})
    settings = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1"}
    client.execute(env={**environment, **settings})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_a_post_and_two_pictures(tmp_path: Path) -> None:
    said = run("a_post_and_two_pictures.ipynb", tmp_path, {**os.environ, "HF_HUB_OFFLINE": "1"})
    assert re.search(r"the dentist's sign +\[\('Alexandria', 'PER', 0\.[6-9]", said), said
    assert re.search(r"the cinema's sign +\[\('Alexandria', 'MISC', 0\.[6-9]", said), said
    alone = re.search(r"the post alone +\[\('Alexandria', '\w+', (0\.\d+)\)", said)
    assert alone and float(alone[1]) < 0.7, said


def test_your_corpus_to_a_pushed_model(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        said = run("your_corpus_to_a_pushed_model.ipynb", tmp_path, hub.environment(tmp_path / "home"))
        files = set(hub.repositories["models/me/ita-from-a-notebook"].at("main").files)
    assert {"model.safetensors", "config.json", "handler.py", "README.md", "modeling_ita.py"} <= files
    assert "me/ita-from-a-notebook is at commit" in said
    assert "28 images" in said and "'wrong_image'" in said and "'entity_group'" in said
    assert (tmp_path / "my_run" / "report.html").is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_output_is_kept(name: str) -> None:
    notebook: Any = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
