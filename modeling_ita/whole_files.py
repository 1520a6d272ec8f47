"""Files and folders that are whole or not there at all, whatever stops the process that writes them.

What is written stands beside its place, in a folder of its own, until it is complete and on disk, and then takes the
place in one step. Its process holds a lock in that folder, which the system lets go of when the process dies: so the
next one that writes to the same place knows what nobody is writing any more, and removes it.

Where locks reach no further than one machine, or there are none (some network file systems, Windows), nothing is
taken from a process that may be alive: what another machine began, and what cannot be locked, goes when nothing in it
has changed for a day. Where there are none, `claimed_folder` refuses nobody.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ABANDONED = 24 * 3600  # seconds after which what cannot be locked has nobody who writes it
LOCK = ".lock"
_EARLIER = ".earlier"
_LONGEST = 200  # bytes of a name that can be part of another one; most systems allow 255
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# As safetensors, pyarrow and torch say it, which raise errors of their own.
_SAID = re.compile(r"os error (28|122|27|5|30)\b|No space left|[Qq]uota exceeded|file write failed|File too large")
_held: weakref.WeakSet[FileIO] = weakref.WeakSet()


@contextmanager
def written_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Gives the path of a new file to write, and puts it in its place if nothing goes wrong.

    It has the name of the place, so that a library sees its suffix. A file that was there before keeps its
    permissions; a new one gets those of the umask. A link is followed. Of a place that is not a regular file
    (`/dev/stdout`, a pipe) the path itself is given. Where the block leaves no file, the place stays as it is.

    Args:
        path: the place; its folder is made if it is not there.
        durable: whether the file survives a power cut of the next seconds. If not, one may leave the place as it was.

    Raises:
        OSError: the file cannot be written; the message names the place.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder (expected a file)", str(path))
    if _is_stream(path):
        yield Path(path)
        return
    with _named(path), working_folder(target, 0o777) as folder:
        part = folder / target.name
        new_mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
        yield part
        if part.exists():
            os.chmod(part, new_mode | stat.S_IRUSR | stat.S_IWUSR)
            _sync(part)
            os.chmod(part, _mode(target, new_mode))
            os.replace(part, target)
            if durable:
                _sync(target.parent)
        elif not folder.exists():
            raise FileNotFoundError(errno.ENOENT, "somebody removed it while it was written", str(path))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Writes a text file in UTF-8, as a whole or not at all (see `written_file`).

    Half of a surrogate pair, which has no UTF-8, is written as an escape, `\ud83d`: in JSON that is the same string.
    """
    with written_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


@contextmanager
def written_folder(
    folder: str | os.PathLike[str], what: str, is_earlier: Callable[[Path], bool], optional: Collection[str] = ()
) -> Iterator[Path]:
    """Gives a new folder to write to, and puts it in its place if nothing goes wrong.

    Its files get the permissions of the umask, whatever the libraries that write them think of.

    Args:
        folder: the place: new, empty, or holding an earlier one, which is replaced.
        what: what is written, for the message: `"export"`.
        is_earlier: whether the folder at the place is an earlier one.
        optional: what an earlier one may hold and the new one lack.

    Raises:
        FileExistsError: something else is there, or an earlier one with further files in it.
        OSError: the folder cannot be written; the message names the place.
    """
    target = Path(folder).resolve()
    if target.exists() and not (target.is_dir() and (is_earlier(target) or not any(target.iterdir()))):
        raise FileExistsError(f"{folder} exists and is no earlier {what}: choose another, or remove it")
    with _named(folder), working_folder(target, 0o777) as place:
        part = place / target.name
        part.mkdir()
        yield part
        _settle(part)
        _replace(target, part, what, optional)
        _sync(target.parent)


@contextmanager
def working_folder(beside: str | os.PathLike[str], mode: int = 0o700) -> Iterator[Path]:
    """Gives a new folder for what is needed no longer than the block runs; it is removed in the end.

    Those that dead processes left there are removed first.

    Args:
        beside: a path whose folder it lies in, and after which it is named; nothing needs to be there.
        mode: its permissions, less those of the umask.
    """
    beside = Path(beside)
    beside.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(beside)
    process = os.getpid()
    folder, lock = _started(beside, mode)
    try:
        yield folder
    finally:
        if os.getpid() == process:  # and not one that was forked in between
            lock.close()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def claimed_folder(folder: str | os.PathLike[str], why: str) -> Iterator[None]:
    """Keeps a folder for this process until the block ends or the process dies, however it dies.

    Args:
        folder: the folder; made if it is not there, and removed again if the block leaves nothing in it.
        why: the end of the message to whoever comes second: what to do instead.

    Raises:
        BlockingIOError: another process has it.
    """
    target = Path(os.path.abspath(folder))
    made = [place for place in (target, *target.parents) if not place.exists()]
    while True:
        with _named(folder):
            try:
                target.mkdir(parents=True, exist_ok=True)
                lock, is_free = _lock(target)
            except FileNotFoundError:  # another process has just removed the folder that it made
                continue
        if is_free is False:
            lock.close()
            raise BlockingIOError(f"another process is at work in {folder}: {why}")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(target / LOCK)):
                break
        lock.close()  # it was removed before it was locked: by the process that had it
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == process:  # and not one that was forked in between
            with suppress(OSError):  # while it is locked: who has opened it meanwhile sees that it is gone
                (target / LOCK).unlink()
                for place in made:
                    place.rmdir()  # not if something is in it
        lock.close()


def remove_leftovers(target: str | os.PathLike[str]) -> None:
    """Removes what processes that are dead have left half written beside this place.

    Where one was stopped while it exchanged two folders, the earlier one comes back first.
    """
    target = Path(target)
    # Without an ending: as version 0.1 named them.
    left = re.compile(re.escape(f".{_stem(target)}.") + r"[0-9a-f]{32}(\.tmp)?")
    with suppress(OSError):
        for entry in [entry for entry in os.scandir(target.parent) if left.fullmatch(entry.name)]:
            remove_if_dead(Path(entry.path), target)


def remove_if_dead(path: Path, target: Path | None = None) -> bool:
    """Removes a file or folder that a process was writing, unless that process may be alive; whether it did.

    Args:
        path: a folder that its process claims (`claimed_folder`, `working_folder`); one that nobody claims has nobody
            who writes it. Files go by their age, and what belongs to another user stays.
        target: the place of an earlier folder that is put back.
    """
    try:
        if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
            return False
        if path.is_symlink() or not path.is_dir():
            if not _is_old(path):
                return False
            path.unlink()
            return True
        is_elsewhere = path.suffix == ".tmp" and path.stem[-32:-24] != _MACHINE
        if is_elsewhere and not _is_old(path):
            return False
        lock, is_free = _lock(path)
        with lock:
            if is_free is False or (is_free is None and not _is_old(path)):
                return False
            earlier = path / _EARLIER
            if target is not None and earlier.exists() and not target.exists():
                earlier.rename(target)  # stopped between two renames
            if fcntl is None:
                lock.close()  # Windows removes no file that is open
            shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    except OSError:
        return False


def _stem(target: Path) -> str:
    name = os.fsencode(target.name)
    return target.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()[:32]


def _started(beside: Path, mode: int) -> tuple[Path, FileIO]:
    """A new folder, and the lock on it."""
    while True:
        folder = beside.with_name(f".{_stem(beside)}.{_MACHINE}{uuid.uuid4().hex[:24]}.tmp")
        folder.mkdir(mode)
        # Between being made and being locked it looks abandoned, and may be removed.
        with suppress(FileNotFoundError):
            lock, is_free = _lock(folder)
            if is_free is not False and folder.exists():
                return folder, lock
            lock.close()


def _lock(folder: Path) -> tuple[FileIO, bool | None]:
    """The file by which a folder is locked, and whether this process has it now; None where there are no locks.

    The lock goes when the file is closed, also by whatever collects what an interrupted function has left.
    """
    # Not the folder itself, and open to be written: over NFS nothing else can be locked.
    lock = FileIO(folder / LOCK, "a")
    _held.add(lock)
    if fcntl is None:
        return lock, None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock, True
    except BlockingIOError:
        return lock, False
    except OSError:  # a file system that has none
        return lock, None


def _let_go() -> None:
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):  # a lock lasts as long as any process has its file open, and is the parent's
    os.register_at_fork(after_in_child=_let_go)


def _is_old(path: Path) -> bool:
    times = [path.lstat().st_mtime]
    if path.is_dir():
        times += [entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(path)]
    return time.time() - max(times) > ABANDONED


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a place is not a regular file, or one that the process already writes to: `> report.json`."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return True
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            if stream is not None and os.path.samestat(status, os.fstat(stream.fileno())):
                return True
    return False


def _mode(target: Path, default: int) -> int:
    with suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    return default


def _settle(folder: Path) -> None:
    """Gives all that is in a folder the permissions of the umask, and has it on disk."""
    mode = stat.S_IMODE(folder.stat().st_mode)  # as mkdir made it
    for directory, _, files in os.walk(folder):
        for name in files:
            file = Path(directory, name)
            if not file.is_symlink():
                os.chmod(file, mode & 0o666)
                _sync(file)
        _sync(Path(directory))


def _sync(path: Path) -> None:
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows syncs what can be written
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno in _DISK_FULL:  # some systems open no folders, or sync none
            raise


def _replace(target: Path, part: Path, what: str, optional: Collection[str]) -> None:
    while True:
        if not target.exists():
            with suppress(FileExistsError), _not_empty_as_existing():
                part.rename(target)
                return
        mine = {file.name for file in part.iterdir()}
        others = sorted({file.name for file in target.iterdir()} - mine - {*optional})
        if others:
            raise FileExistsError(f"{target} holds {', '.join(others)} besides an earlier {what}: move them first")
        os.chmod(part, _mode(target, stat.S_IMODE(part.stat().st_mode)))
        if _exchange(target, part):
            return  # the earlier one stands in the other's place now, and goes with it
        earlier = part.with_name(_EARLIER)
        target.rename(earlier)
        try:
            part.rename(target)
        except BaseException:
            earlier.rename(target)
            raise
        return


@contextmanager
def _not_empty_as_existing() -> Iterator[None]:
    """Of a folder that somebody else has put there just now, systems say either."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(error.errno, error.strerror, error.filename) from error
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Has two folders change places in one step, where the system can."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
    except (AttributeError, OSError, TypeError):  # another system, another C library
        return False


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has an error of the disk name the place that could not be written."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _DISK_FULL or (number is None and _SAID.search(str(error))):
            named = OSError(f"{os.fspath(path)} cannot be written: {error}")
            named.errno = number
            raise named from error
        if isinstance(error, OSError) and re.search(r"\.[0-9a-f]{32}\.tmp", str(error.filename)):
            raise OSError(number, error.strerror, os.fspath(path)) from error  # of the class that the number has
        raise
