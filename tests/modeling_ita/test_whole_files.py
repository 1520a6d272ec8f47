from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from dataset_scripts.corpus.context_files import write_contexts
from modeling_ita import whole_files
from modeling_ita.visual_context import VisualContext
from modeling_ita.whole_files import (
    ABANDONED,
    claimed_folder,
    remove_if_dead,
    remove_leftovers,
    working_folder,
    write_text,
    written_file,
    written_folder,
)

# The module alone, which starts in a moment.
START = f"import sys; sys.path.insert(0, {str(Path(whole_files.__file__).parent)!r}); from whole_files import *\n"
WRITE_FILES = """
n = 0
print("begins", flush=True)
while True:
    n += 1
    write_text(sys.argv[1], "[" + f"{n}, " * 20_000 + f"{n}]")
"""
WRITE_FOLDERS = """
n = 0
print("begins", flush=True)
while True:
    n += 1
    with written_folder(sys.argv[1], "export", lambda _: True) as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text(f"{n}" * 1000)
"""
HOLD = "with written_file(sys.argv[1]) as part:\n    part.write_text('half'); print(part, flush=True); input()\n"


def started(code: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", START + code, *map(str, arguments)], **pipes, **options)


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def replace_folder(folder: Path, **files: str) -> None:
    with written_folder(folder, "export", lambda there: (there / "a").is_file()) as part:
        for name, text in files.items():
            (part / name).write_text(text)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file of this process may become larger: as on a full disk, a write fails somewhere in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("code", [WRITE_FILES, WRITE_FOLDERS])
def test_a_killed_writer_leaves_the_old_or_the_new_and_the_next_one_tidies_up(tmp_path: Path, code: str) -> None:
    target, draw, half = tmp_path / "out", random.Random(0), 0
    for _ in range(8):
        process = started(code, target)
        assert process.stdout and process.stdout.readline() == "begins\n"
        time.sleep(draw.random() * 0.05)
        deadline = time.monotonic() + 10
        while not (target.exists() and list(tmp_path.glob(".out.*"))) and time.monotonic() < deadline:
            pass
        time.sleep(draw.random() * 0.005)
        killed(process)
        half += len(list(tmp_path.iterdir())) - 1
        if target.is_dir():
            assert len({file.read_text() for file in target.iterdir()}) == 1 and len(list(target.iterdir())) == 3
        else:
            assert len(set(json.loads(target.read_text()))) == 1
    assert half  # some were stopped in the middle
    remove_leftovers(target)
    assert list(tmp_path.iterdir()) == [target]


def test_many_writers_of_one_place(tmp_path: Path) -> None:
    target, errors = tmp_path / "out.json", []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                write_text(target, json.dumps([number, turn] * 500))
                assert len(set(map(tuple, np.reshape(json.loads(target.read_text()), (-1, 2)).tolist()))) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and list(tmp_path.iterdir()) == [target]


def test_many_writers_of_one_folder(tmp_path: Path) -> None:
    errors = []

    def work(number: int) -> None:
        try:
            for turn in range(8):
                replace_folder(tmp_path / "out", a=f"{number} {turn}", b=f"{number} {turn}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out" / "b").read_text()


@pytest.mark.parametrize("write", [write_text, lambda place, text: replace_folder(place, a=text, b=text)])
def test_an_interrupt_at_any_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, str], None]
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the time it takes tells nothing here
    target = tmp_path / "out"
    write(target, "old")
    step = 0
    while True:
        step += 1
        lines = iter(range(step))

        def interrupt(frame: FrameType, event: str, _: Any, lines: Iterator[int] = lines) -> Any:
            if frame.f_code.co_filename != whole_files.__file__:
                return None
            if event == "line" and next(lines, None) is None:
                raise KeyboardInterrupt
            return interrupt

        sys.settrace(interrupt)
        try:
            write(target, "new")
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        texts = {file.read_text() for file in target.iterdir()} if target.is_dir() else {target.read_text()}
        assert texts in ({"old"}, {"new"}), step
        write(target, "old")
        assert list(tmp_path.iterdir()) == [target], step
    assert step > 50


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    process = started(HOLD, target)
    assert process.stdout and process.stdin
    part = Path(process.stdout.readline().strip())
    write_text(target, "another's")
    assert part.read_text() == "half" and not remove_if_dead(part.parent)
    process.communicate("go on\n")
    assert target.read_text() == "half" and list(tmp_path.iterdir()) == [target]


def test_a_fork_neither_keeps_the_lock_nor_tidies_up(tmp_path: Path) -> None:
    code = """
import os, time
with claimed_folder("claim", ""), written_file("out.txt") as part:
    part.write_text("half")
    if not os.fork():
        print("forked", flush=True)
        if sys.argv[1] == "end": sys.exit()
        time.sleep(20)
    os.wait() if sys.argv[1] == "end" else time.sleep(20)
"""
    process = started(code, "end", cwd=tmp_path)
    process.communicate()
    assert process.returncode == 0 and (tmp_path / "out.txt").read_text() == "half"
    process = started(code, "sleep", cwd=tmp_path, start_new_session=True)
    assert process.stdout and process.stdout.readline() == "forked\n"
    with (
        pytest.raises(BlockingIOError, match=r"at work in .*claim: wait for it"),
        claimed_folder(tmp_path / "claim", "wait for it"),
    ):
        pass
    process.kill()
    process.wait()
    with claimed_folder(tmp_path / "claim", "wait for it"):  # the fork is still alive
        write_text(tmp_path / "out.txt", "next")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claim", "out.txt"]


def test_a_claim_ends_with_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            claimed_folder(tmp_path / "new", "wait"),
            pytest.raises(BlockingIOError),
            claimed_folder(tmp_path / "new", "wait"),
        ):
            pass


def half_written(target: Path, machine: str | None = None, age: float = 0) -> Path:
    """What a process that is dead has left beside a place; of another machine, if it is given."""
    process = started(HOLD, target)
    assert process.stdout
    folder = Path(process.stdout.readline().strip()).parent
    killed(process)
    if machine:
        folder = folder.rename(folder.with_name(folder.name[:-36] + machine + folder.name[-28:]))
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


def test_what_another_machine_began_goes_by_its_age(tmp_path: Path) -> None:
    fresh = half_written(tmp_path / "out", "0" * 8)
    old = half_written(tmp_path / "out", "1" * 8, ABANDONED + 60)
    remove_leftovers(tmp_path / "out")
    assert fresh.exists() and not old.exists()


def test_without_locks_all_goes_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = half_written(tmp_path / "other", age=ABANDONED + 60)
    fresh = half_written(tmp_path / "out")
    old = old.rename(old.with_name(old.name.replace("other", "out")))
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "fcntl", None)
        write_text(tmp_path / "out", "whole")
        assert fresh.exists() and not old.exists() and (tmp_path / "out").read_text() == "whole"
        with claimed_folder(tmp_path / "claim", ""), claimed_folder(tmp_path / "claim", ""):
            pass
    remove_leftovers(tmp_path / "out")
    assert not fresh.exists()


def test_what_version_0_1_left_goes(tmp_path: Path) -> None:
    left = tmp_path / f".model.{'ab' * 16}"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    other = tmp_path / ".model.notes.tmp"
    other.mkdir()
    replace_folder(tmp_path / "model", a="1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.notes.tmp", "model"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), written_file(tmp_path / "out") as part:
        part.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), written_folder(tmp_path / "folder", "export", lambda _: True) as part:
        (part / "a").write_text("half")
        raise ZeroDivisionError
    with written_file(tmp_path / "out"):
        pass  # nothing was written
    assert (tmp_path / "out").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def write_figure(place: Path) -> None:
    figure = Figure(figsize=(8, 8), dpi=200)
    figure.add_subplot().imshow(np.random.default_rng(0).random((500, 500)))
    with written_file(place) as part:
        figure.savefig(part)


def write_tensors(place: Path) -> None:
    with written_file(place) as part:
        save_file({"x": torch.randn(500, 500)}, part)


def write_text_file(place: Path) -> None:
    write_text(place, "x" * 10**6)


def write_parquet(place: Path) -> None:
    write_contexts(place, {str(n): VisualContext({"captions": [os.urandom(50).hex()]}) for n in range(2000)})


WRITERS = {"a.txt": write_text_file, "a.safetensors": write_tensors, "a.png": write_figure, "a.parquet": write_parquet}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_place(tmp_path: Path, name: str) -> None:
    place = tmp_path / "there" / name
    with small_disk(30_000), pytest.raises(OSError, match=rf"there/{name} cannot be written: .*[Tt]oo large"):
        WRITERS[name](place)
    assert not list(place.parent.iterdir())
    WRITERS[name](place)
    assert list(place.parent.iterdir()) == [place] and place.stat().st_size > 30_000


def test_a_disk_that_is_full_when_it_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "out", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"out cannot be written: .*No space left") as raised:
            write_text(tmp_path / "out", "new")
    assert raised.value.errno == errno.ENOSPC
    assert (tmp_path / "out").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: Any, **__: Any) -> None:
        if self.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(PermissionError, match=r"Permission denied: '[^']*/out'"):
        write_text(tmp_path / "out", "x")


def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for name, write in WRITERS.items():
            write(tmp_path / name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o640, name
        with written_folder(tmp_path / "model", "export", lambda _: True) as part:
            save_file({"x": torch.zeros(1)}, part / "model.safetensors")
        assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
        os.chmod(tmp_path / "a.txt", 0o444)
        os.chmod(tmp_path / "model", 0o770)
        write_text(tmp_path / "a.txt", "again")
        replace_folder(tmp_path / "folder", a="1")
        os.chmod(tmp_path / "folder", 0o770)
        replace_folder(tmp_path / "folder", a="2")
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o444
        assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o770
        with working_folder(tmp_path / "work") as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()
    finally:
        os.umask(before)


def test_odd_places(tmp_path: Path) -> None:
    long = tmp_path / ("ü" * 125 + ".json")  # 255 bytes
    write_text(long, "1")
    write_text(tmp_path / os.fsdecode(b"a\xff.txt"), "1")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    write_text(tmp_path / "link", "through")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_text() == "through"
    with pytest.raises(IsADirectoryError, match="real"):
        write_text(tmp_path / "real", "1")
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=write_text, args=(tmp_path / "pipe", "piped"))
    thread.start()
    assert (tmp_path / "pipe").read_text() == "piped"
    thread.join()
    assert not list(tmp_path.rglob(".*"))
    process = started("write_text('/dev/stdout', 'said')")
    assert process.communicate()[0] == "said"
    with (tmp_path / "said").open("w") as file:
        subprocess.run([sys.executable, "-c", START + "write_text('said', 'x')"], stdout=file, cwd=tmp_path)
    assert (tmp_path / "said").read_text() == "x"


def test_text_that_has_no_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "out.json", json.dumps(["\ud83d", "\ud83d\ude00 ü"], ensure_ascii=False))
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == ["\ud83d", "😀 ü"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folders_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    folder = tmp_path / "out"
    replace_folder(folder, a="1", b="1")
    replace_folder(folder, a="2", b="2")
    assert sorted((file.name, file.read_text()) for file in folder.iterdir()) == [("a", "2"), ("b", "2")]
    (folder / "mine").write_text("notes")
    with pytest.raises(FileExistsError, match="holds mine besides an earlier export"):
        replace_folder(folder, a="3", b="3")
    (folder / "a").unlink()
    with pytest.raises(FileExistsError, match="is no earlier export: choose another"):
        replace_folder(folder, a="3", b="3")
    assert (folder / "mine").read_text() == "notes" and list(tmp_path.iterdir()) == [folder]


def test_an_exchange_that_was_stopped_in_the_middle_is_undone(tmp_path: Path) -> None:
    left = half_written(tmp_path / "out")
    replace_folder(left / ".earlier", a="old")
    replace_folder(tmp_path / "out", a="new")
    assert (tmp_path / "out" / "a").read_text() == "new" and list(tmp_path.iterdir()) == [tmp_path / "out"]
    left = half_written(tmp_path / "other")
    replace_folder(left / ".earlier", a="old")
    remove_leftovers(tmp_path / "other")
    assert (tmp_path / "other" / "a").read_text() == "old"


def test_what_somebody_removed_is_not_taken_for_written(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"removed it while it was written.*out"),
        written_file(tmp_path / "out") as part,
    ):
        (part.parent / ".lock").unlink()
        part.parent.rmdir()
