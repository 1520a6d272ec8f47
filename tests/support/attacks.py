"""The attacks of `benchmarks/attacks`, of which tests run a few rounds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def attack(name: str) -> ModuleType:
    """The module of an attack."""
    path = Path(__file__).parents[2] / "benchmarks" / "attacks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"attack_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
