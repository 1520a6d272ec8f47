from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from modeling_ita.training_checkpoints import Checkpoints, restore_best


class State:
    """What stands for the schedule and the progress of a run."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class Run:
    """A model of 64 KB that can be saved; `saved` numbers its checkpoints by its step."""

    def __init__(self, folder: Path, limit: int = 2) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.model, self.schedule, self.progress = torch.nn.Linear(128, 128), State(), State()
        optimizer = self.accelerator.prepare(torch.optim.AdamW(self.accelerator.prepare(self.model).parameters()))
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        self.model(torch.ones(1, 128)).sum().backward()
        optimizer.step()
        self.checkpoints, self.best = Checkpoints(folder / "checkpoints", limit), folder / "best"

    def saved(self, times: int = 1) -> None:
        for _ in range(times):
            self.progress.step += 1
            self.best.mkdir(exist_ok=True)
            (self.best / "config.json").write_text(f"{{}}{self.progress.step}")
            (self.best / "model.safetensors").unlink(missing_ok=True)
            (self.best / "model.safetensors").write_bytes(EMPTY + b" " * self.progress.step)
            self.checkpoints.save(self.accelerator, self.best)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.folder.iterdir())

    def load(self, checkpoint: Path | None) -> int:
        assert checkpoint is not None
        self.checkpoints.load(self.accelerator, checkpoint)
        return self.progress.step


EMPTY = (2).to_bytes(8, "little") + b"{}"
Damage = Callable[[Path], object]


def truncated(name: str) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def flipped(name: str) -> Damage:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated weights": (truncated("model.safetensors"), r"model\.safetensors is damaged: [\d,]+ of [\d,]+ bytes"),
    "bit of the optimizer": (flipped("optimizer.bin"), r"optimizer\.bin is not the file that was written"),
    "exchanged random state": (
        lambda folder: shutil.copy(folder.with_name("checkpoint_0") / "random_states_0.pkl", folder),
        r"random_states_0\.pkl is not the file that was written",
    ),
    "no progress": (
        lambda folder: (folder / "custom_checkpoint_1.pkl").unlink(),
        r"custom_checkpoint_1\.pkl is missing",
    ),
    "no best weights": (lambda folder: shutil.rmtree(folder / "best"), r"best/config\.json is missing"),
    "half a manifest": (truncated("manifest.json"), r"manifest\.json is damaged"),
    "another manifest": (lambda folder: (folder / "manifest.json").write_text("[3]"), r"manifest\.json is damaged"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_skipped_or_refused_by_name(
    damage: Damage, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.saved()
    torch.rand(1)
    run.saved()
    damage(run.checkpoints.folder / "checkpoint_1")
    chosen = run.checkpoints.to_resume("last")
    assert re.fullmatch(rf"\S+checkpoint_1 is skipped: \S+{said}.*\n", capsys.readouterr().err)
    assert run.load(chosen) == 1
    with pytest.raises((ValueError, OSError), match=said):
        run.checkpoints.to_resume(str(run.checkpoints.folder / "checkpoint_1"))
    run.checkpoints.to_resume("last")
    run.saved()
    assert run.names() == ["checkpoint_0", "checkpoint_2"]  # numbered on, and the damaged one is the first to go


def test_all_damaged_is_a_new_start_and_an_empty_folder_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    assert run.checkpoints.to_resume("last") is None and not run.checkpoints.folder.exists()
    run.saved(2)
    for number in (0, 1):
        truncated("optimizer.bin")(run.checkpoints.folder / f"checkpoint_{number}")
    assert run.checkpoints.to_resume("last") is None
    assert capsys.readouterr().err.count("is skipped") == 2
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        run.checkpoints.to_resume("nowhere")


def test_going_on_from_an_earlier_one_leaves_the_later_ones_behind(tmp_path: Path) -> None:
    run = Run(tmp_path, limit=4)
    run.saved(4)
    assert run.load(run.checkpoints.to_resume(str(run.checkpoints.folder / "checkpoint_1"))) == 2
    run.saved(2)
    assert run.names() == ["checkpoint_0", "checkpoint_1", "checkpoint_4", "checkpoint_5"]
    assert run.load(run.checkpoints.to_resume("last")) == 4


def test_what_a_stopped_run_could_not_remove_goes_when_it_is_resumed(tmp_path: Path) -> None:
    Run(tmp_path, limit=9).saved(4)
    run = Run(tmp_path, limit=2)
    truncated("optimizer.bin")(run.checkpoints.folder / "checkpoint_3")
    assert run.load(run.checkpoints.to_resume("last")) == 3
    assert run.names() == ["checkpoint_1", "checkpoint_2", "checkpoint_3"]


def test_best_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, limit=3)
    run.saved(3)
    restore_best(run.checkpoints.folder / "checkpoint_1", run.best)
    assert (run.best / "config.json").read_text() == "{}2"
    assert (run.best / "model.safetensors").read_bytes() == EMPTY + b"  "
    elsewhere = tmp_path / "other" / "best"
    restore_best(run.checkpoints.folder / "checkpoint_2", elsewhere)
    assert (elsewhere / "config.json").read_text() == "{}3"


@pytest.mark.parametrize("function", ["torch.save", "os.fsync", "os.rename", "modeling_ita.whole_files._settle"])
def test_a_stop_while_the_only_checkpoint_is_replaced_loses_nothing(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    run = Run(tmp_path, limit=1)
    run.saved()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(function, killed)
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # nobody cleans up after a kill
        run.saved()
    assert run.load(run.checkpoints.to_resume("last")) in (1, 2)
    assert not capsys.readouterr().err
    assert len(run.names()) == 1  # what was half written is gone
    run.saved()
    assert len(run.names()) == 1


def test_a_full_disk_names_the_checkpoint_and_keeps_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path, limit=1)
    run.saved()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, most))
    try:
        with pytest.raises(OSError, match=r"checkpoint_1 cannot be written: .*(too large|write failed)"):
            run.saved()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert run.names() == ["checkpoint_0"]
    assert run.load(run.checkpoints.to_resume("last")) == 1


def as_version_0_1(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "best")


def test_checkpoints_of_version_0_1_are_resumed_and_say_what_they_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, limit=3)
    run.saved(3)
    for folder in run.checkpoints.numbered().values():
        as_version_0_1(folder)
    truncated("random_states_0.pkl")(run.checkpoints.folder / "checkpoint_2")
    chosen = run.checkpoints.to_resume("last")
    assert run.load(chosen) == 2
    said = capsys.readouterr().err
    assert "checkpoint_2 is skipped" in said and "random_states_0.pkl is damaged" in said
    assert "checkpoint_1 carries no checksums" in said
    assert chosen is not None
    restore_best(chosen, run.best)
    assert (run.best / "config.json").read_text() == "{}3"  # the run's own
    torch.save({"torch_manual_seed": [1]}, chosen / "random_states_0.pkl")
    with pytest.raises(ValueError, match=r"random_states_0\.pkl is not a random state"):
        run.load(run.checkpoints.to_resume(str(chosen)))
    shutil.rmtree(run.best)
    with pytest.raises(FileNotFoundError, match="best is missing"):
        restore_best(chosen, run.best)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    run = Run(tmp_path)
    run.saved()
    checkpoint = run.checkpoints.folder / "checkpoint_0"
    as_version_0_1(checkpoint)
    for write in (torch.save, lambda state, file: file.write_bytes(pickle.dumps(state, 2))):
        for name in ("custom_checkpoint_1.pkl", "random_states_0.pkl", "optimizer.bin"):
            before = (checkpoint / name).read_bytes()
            write({"step": Code()}, checkpoint / name)
            with pytest.raises(ValueError, match=rf"{re.escape(name)} is damaged"):
                run.checkpoints.to_resume(str(checkpoint))
            (checkpoint / name).write_bytes(before)
    assert not (tmp_path / "ran").exists()
    assert run.checkpoints.to_resume("last") == checkpoint


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run = Run(tmp_path)
        run.saved()
    finally:
        os.umask(before)
    files = [path for path in run.checkpoints.folder.rglob("*") if path.is_file()]
    manifest = json.loads((run.checkpoints.folder / "checkpoint_0" / "manifest.json").read_text(encoding="utf-8"))
    assert len(files) == len(manifest["files"]) + 1 == 8
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}
