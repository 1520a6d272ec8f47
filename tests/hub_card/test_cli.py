"""`ita-mner`: its words, that nothing is imported before it is needed, and the wheel that brings it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import modeling_ita
from hub_card import cli

ROOT = Path(modeling_ita.__file__).parents[1]
# The paths that the README of version 0.1 names.
DOCUMENTED = [
    "train.py",
    "hub_card/space/app.py",
    "dataset_scripts.audit",
    "dataset_scripts.augmentation",
    "dataset_scripts.build_visual_context",
    "dataset_scripts.label",
    "dataset_scripts.push_dataset",
    "dataset_scripts.sample_posts.draw",
    "hub_card.convert_mgcmt",
    "hub_card.evaluation",
    "hub_card.export",
    "hub_card.predict",
]
WORDS = [
    *("train", "audit", "contexts", "neighbours", "evaluate", "score", "compare", "table", "label", "predict"),
    *("push", "push-dataset", "space", "export", "onnx", "convert-mgcmt"),
]
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_every_word_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert list(cli.COMMANDS) == WORDS
    for word in WORDS:
        assert f"\n  {word} " in said
    assert max(map(len, said.splitlines())) <= 110


@pytest.mark.parametrize("word", [word for word in WORDS if word != "train"])
def test_every_word_tells_what_it_takes(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([word, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ita-mner {word} ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "usage:"), (["trian"], "did you mean train?"), (["\x1b[2J"], "`ita-mner --help` lists them")],
)
def test_misuse(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    found = capsys.readouterr()
    assert said in found.err and not found.out and "\x1b" not in found.err


@pytest.mark.parametrize("word", ["audit", "score", "predict", "table"])
def test_an_input_that_is_not_there(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"score": ["a", "b"], "predict": ["nowhere/model", "a post"]}.get(word, [str(tmp_path / "none")])
    assert cli.main([word, *arguments]) == 2
    found = capsys.readouterr().err.strip().splitlines()
    assert found[-1].startswith("error: ") and not any(line.startswith("Traceback") for line in found)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from hub_card import cli; cli.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not imported & {"torch", "transformers", "datasets", "numpy", "modeling_ita", "dataset_scripts"}


@pytest.mark.parametrize("path", DOCUMENTED)
def test_documented_paths_stay(path: str) -> None:
    if path.endswith(".py"):
        assert (ROOT / path).is_file()
        return
    spec = importlib.util.find_spec(path)
    assert spec is not None and spec.origin is not None
    assert '__name__ == "__main__"' in Path(spec.origin).read_text(encoding="utf-8")


def test_documented_imports_stay() -> None:
    from dataset_scripts.context_store import ContextStore
    from dataset_scripts.contexts import context_store
    from hub_card.onnx import onnx_model
    from hub_card.onnx_model import OnnxItaForTokenClassification

    assert ContextStore is context_store.ContextStore
    assert OnnxItaForTokenClassification is onnx_model.OnnxItaForTokenClassification


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the project, so that the build leaves nothing in it."""
    copy = tmp_path_factory.mktemp("source") / "project"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "__pycache__", "tests")
    )
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", copy / "dist", copy]
    subprocess.run([sys.executable, *map(str, build)], check=True, capture_output=True)
    return next((copy / "dist").glob("*.whl"))


def base_dependencies(wheel: Path) -> list[importlib.metadata.Distribution]:
    """The installed distributions that the package without its extras needs, and those that these need."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    lines = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    waiting = [Requirement(line.partition(": ")[2]) for line in lines]
    found: dict[str, importlib.metadata.Distribution] = {}
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(requirement.name)
        for needed in map(Requirement, found[name].requires or ()):
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return list(found.values())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with the wheel, and links to the base dependencies of this one."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, symlinks=True, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    for distribution in base_dependencies(wheel):
        for top in {Path(file).parts[0] for file in distribution.files or () if not str(file).startswith("..")}:
            there = Path(str(distribution.locate_file(top)))
            if there.exists() and not (site / top).exists():
                (site / top).symlink_to(there)
    python = home / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *map(str, install)], check=True, capture_output=True)
    return home / "bin"


def test_the_wheel_holds_the_rooms_and_the_door(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"modeling_ita", "dataset_scripts", "hub_card", "ita_mner"}
    assert {name for name in names if name.startswith("ita_mner/")} == {"ita_mner/train.py", "ita_mner/py.typed"}
    assert {f"{room}/py.typed" for room in ("modeling_ita", "dataset_scripts", "hub_card")} <= names
    tracked = [path for room in ("modeling_ita", "dataset_scripts", "hub_card") for path in (ROOT / room).rglob("*")]
    missing = {str(p.relative_to(ROOT)) for p in tracked if p.is_file() and "__pycache__" not in p.parts} - names
    assert not missing


def test_the_wheel_works_in_a_fresh_environment(installed: Path, tiny_encoder: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [str(installed / "ita-mner"), *arguments]
        environment = {key: value for key, value in OFFLINE.items() if key != "PYTHONPATH"} | {
            "HF_HOME": str(tmp_path / "hf")
        }
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    assert "convert-mgcmt" in run("--help")
    assert run("train", "--help").startswith("usage: ita-mner train ")
    (tmp_path / "corpus").mkdir()
    post = "IMGID:{}\nPhoenix\tB-LOC\ntonight\tO\n\n"
    for split, posts in (("train", 8), ("valid", 4), ("test", 4)):
        text = "".join(post.format(f"{split}{n}") for n in range(posts))
        (tmp_path / "corpus" / f"{split}.txt").write_text(text)
    settings = ["--dataset", "conll", "--data_dir", "corpus", "--encoder", tiny_encoder, "--num_epochs", "1"]
    assert "report.json" in run("train", *settings, "--output_dir", "out", "--context_builder", "none")
    assert "Phoenix" in run("predict", "out/model", "Phoenix tonight")
