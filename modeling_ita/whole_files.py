"""Atomic writes: files and folders are complete or absent, even if the process that writes them is interrupted.

Output is written to a temporary folder beside its target until it is complete and on disk, then moved into place in
one step. The writing process holds a lock in that folder, which the system releases when the process dies. So the next
process that writes to the same target can tell which leftovers are abandoned, and removes them.

Where locks do not work across machines, or not at all (some network file systems, Windows), leftovers of another
machine and those that cannot be locked are removed only after a day without changes, as their process may be alive.
Where there are no locks, `claimed_folder` never raises `BlockingIOError`.
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

ABANDONED = 24 * 3600  # seconds after which what cannot be locked counts as abandoned
LOCK = ".lock"
_EARLIER = ".earlier"
_LONGEST = 200  # bytes of a name that can be part of another one; most systems allow 255
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# The messages of safetensors, pyarrow and torch, which raise errors of their own.
_SAID = re.compile(r"os error (28|122|27|5|30)\b|No space left|[Qq]uota exceeded|file write failed|File too large")
_held: weakref.WeakSet[FileIO] = weakref.WeakSet()


@contextmanager
def written_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to, and moves the file to its target if the block succeeds.

    The temporary file has the target's name, so that libraries see its suffix. An existing file keeps its permissions;
    a new one gets those of the umask. Links are followed. If the target is not a regular file (`/dev/stdout`, a pipe),
    its own path is yielded. If the block writes no file, the target is not changed.

    Args:
        path: the target; its folder is created if it does not exist.
        durable: whether the file is certain to survive a power cut in the next seconds. If not, a power cut may leave
            the target as it was.

    Raises:
        OSError: the file cannot be written; the message names the target.
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
    r"""Writes a text file in UTF-8, completely or not at all (see `written_file`).

    A lone surrogate, which UTF-8 cannot encode, is written as an escape, `\ud83d`: in JSON that is the same string.
    """
    with written_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


@contextmanager
def written_folder(
    folder: str | os.PathLike[str], what: str, is_earlier: Callable[[Path], bool], optional: Collection[str] = ()
) -> Iterator[Path]:
    """Yields a temporary folder to write to, and moves it to its target if the block succeeds.

    Its files get the permissions of the umask, whatever permissions the libraries that write them choose.

    Args:
        folder: the target: new, empty, or an earlier version, which is replaced.
        what: what is written, for error messages: `"export"`.
        is_earlier: whether the folder at the target is an earlier version.
        optional: files that an earlier version may contain and the new one may lack.

    Raises:
        FileExistsError: the target is something else, or an earlier version with additional files.
        OSError: the folder cannot be written; the message names the target.
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
    """Yields a new temporary folder, which is removed when the block ends.

    Folders that dead processes left there are removed first.

    Args:
        beside: the path beside which the folder is created, and after which it is named. It need not exist.
        mode: the folder's permissions, before the umask.
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
    """Reserves a folder for this process until the block ends or the process dies, however it dies.

    Args:
        folder: the folder; created if it does not exist, and removed again if the block leaves it empty.
        why: the end of the error message for the second process: what to do instead.

    Raises:
        BlockingIOError: another process has reserved the folder.
    """
    target = Path(os.path.abspath(folder))
    made = [place for place in (target, *target.parents) if not place.exists()]
    while True:
        with _named(folder):
            try:
                target.mkdir(parents=True, exist_ok=True)
                lock, is_free = _lock(target)
            except FileNotFoundError:  # another process has just removed the folder that it created
                continue
        if is_free is False:
            lock.close()
            raise BlockingIOError(f"another process is at work in {folder}: {why}")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(target / LOCK)):
                break
        lock.close()  # removed before it was locked, by the process that had reserved it
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == process:  # and not one that was forked in between
            with suppress(OSError):  # while locked: a process that has opened it meanwhile sees that it is gone
                (target / LOCK).unlink()
                for place in made:
                    place.rmdir()  # only if empty
        lock.close()


def remove_leftovers(target: str | os.PathLike[str]) -> None:
    """Removes what dead processes left half written beside this target.

    If one died while it exchanged two folders, the earlier one is restored first.
    """
    target = Path(target)
    # Names without a suffix are those of version 0.1.
    left = re.compile(re.escape(f".{_stem(target)}.") + r"[0-9a-f]{32}(\.tmp)?")
    with suppress(OSError):
        for entry in [entry for entry in os.scandir(target.parent) if left.fullmatch(entry.name)]:
            remove_if_dead(Path(entry.path), target)


def remove_if_dead(path: Path, target: Path | None = None) -> bool:
    """Removes a file or folder that a process was writing, unless that process may be alive; returns whether it did.

    Args:
        path: a folder that its process locks (`claimed_folder`, `working_folder`); an unlocked folder counts as
            abandoned. Files are judged by their age. What belongs to another user is kept.
        target: where to restore an earlier folder.
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
                earlier.rename(target)  # the process died between two renames
            if fcntl is None:
                lock.close()  # Windows cannot remove an open file
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
        # Between creation and locking it looks abandoned, and may be removed.
        with suppress(FileNotFoundError):
            lock, is_free = _lock(folder)
            if is_free is not False and folder.exists():
                return folder, lock
            lock.close()


def _lock(folder: Path) -> tuple[FileIO, bool | None]:
    """The lock file of a folder, and whether this process holds the lock; None where there are no locks.

    Closing the file releases the lock, also when the file is garbage-collected after an interruption.
    """
    # A file opened for writing, not the folder itself: NFS can lock nothing else.
    lock = FileIO(folder / LOCK, "a")
    _held.add(lock)
    if fcntl is None:
        return lock, None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock, True
    except BlockingIOError:
        return lock, False
    except OSError:  # a file system without locks
        return lock, None


def _let_go() -> None:
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):  # the lock is the parent's, and lasts while any process has the file open
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
    """Gives everything in a folder the permissions of the umask, and flushes it to disk."""
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
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows syncs only writable files
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno in _DISK_FULL:  # some systems cannot open or sync folders
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
            return  # the earlier folder is now at the temporary path, and is removed with it
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
    """Raises ENOTEMPTY as FileExistsError: systems differ in the error for a folder that has just appeared."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(error.errno, error.strerror, error.filename) from error
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step, where the system supports it; returns whether it did."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
    except (AttributeError, OSError, TypeError):  # another system, another C library
        return False


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that nothing more can be written, whatever is written."""
    number = error.errno if isinstance(error, OSError) else None
    return number in _DISK_FULL or (number is None and _SAID.search(str(error)) is not None)


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes disk errors name the target that could not be written."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            named = OSError(f"{os.fspath(path)} cannot be written: {error}")
            named.errno = getattr(error, "errno", None)
            raise named from error
        if isinstance(error, OSError) and re.search(r"\.[0-9a-f]{32}\.tmp", str(error.filename)):
            raise OSError(
                error.errno, error.strerror, os.fspath(path)
            ) from error  # the subclass that belongs to errno
        raise
