"""The house: no import runs in a circle or against the order, however deep in a function it stands."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import modeling_ita
from modeling_ita import entity_tagger, modeling_mgcmt

ROOT = Path(modeling_ita.__file__).parents[1]
ROOMS = ("modeling_ita", "dataset_scripts", "hub_card")
RANK = {"scores": 0, "predictions": 1, "report": 2, "card": 3, "hub": 4, "onnx": 5, "space": 5}


def files(root: Path) -> dict[str, Path]:
    """Every module of the tree by its name."""
    paths = [path for room in ROOMS for path in (root / room).rglob("*.py")] + [root / "train.py"]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if path.exists()
    }


def imports(root: Path) -> dict[str, set[str]]:
    """What every module imports of the project, function bodies included."""
    modules = files(root)
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                named = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
            else:
                continue
            for target in named:
                while target and target not in modules:
                    target = target.rpartition(".")[0]
                if target and target != name:
                    graph[name].add(target)
    return graph


def folder_of(module: str, modules: dict[str, Path]) -> str:
    return module if modules[module].name == "__init__.py" else module.rpartition(".")[0]


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


GRAPH = imports(ROOT)


def test_no_circle_between_files() -> None:
    # A package names its modules, which is no way back: they import each other, not the package.
    assert circle(GRAPH) == []


def test_no_circle_between_folders() -> None:
    modules = files(ROOT)
    folders: dict[str, set[str]] = defaultdict(set)
    for name, targets in GRAPH.items():
        here = folder_of(name, modules)
        folders[here] |= {folder_of(target, modules) for target in targets} - {here}
    assert circle(folders) == []


def test_the_rooms_keep_their_order() -> None:
    for name, targets in GRAPH.items():
        rooms = {target.partition(".")[0] for target in targets} - {name.partition(".")[0]}
        is_run = name.count(".") == 1  # what one runs stands on top of its room, and may use both
        if name.startswith("modeling_ita"):
            assert not rooms, name
        elif name != "train" and not is_run:
            assert rooms <= {"modeling_ita"}, name
        assert "train" not in rooms, name


def test_the_shelves_of_hub_card_keep_their_order() -> None:
    rank = {f"hub_card.{shelf}": number for shelf, number in RANK.items()}
    for name, targets in GRAPH.items():
        here = name.rpartition(".")[0]
        if here not in rank:
            continue
        for target in targets - {"hub_card"}:
            there = target.rpartition(".")[0]
            if there.startswith("hub_card"):
                assert there == here or rank[there] < rank[here], f"{name} imports {target}"


def test_the_systems_are_siblings() -> None:
    parts = ("configuration", "modeling", "processing")
    ita, mgcmt = ({f"modeling_ita.{part}_{system}" for part in parts} for system in ("ita", "mgcmt"))
    for first, second in ((ita, mgcmt), (mgcmt, ita)):
        seen, waiting = set(), list(first)
        while waiting:
            seen.add(name := waiting.pop())
            waiting += GRAPH[name] - seen - {"modeling_ita"}
        assert not seen & second
    assert issubclass(modeling_mgcmt.MgcmtForTokenClassification, entity_tagger.EntityTagger)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import hub_card.b", "import hub_card.a"),
        ("def f():\n    from hub_card import b", "def f():\n    from hub_card.a import f"),
        ("from .b import g", "class G:\n    def g(self):\n        from . import a"),
    ],
)
def test_a_circle_is_found(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "hub_card").mkdir()
    (tmp_path / "hub_card" / "__init__.py").touch()
    (tmp_path / "hub_card" / "a.py").write_text(first)
    (tmp_path / "hub_card" / "b.py").write_text(second)
    assert {"hub_card.a", "hub_card.b"} <= set(circle(imports(tmp_path)))
