"""Files and folders that are whole or not there at all, whatever stops the process that writes them.

What is written stands beside its place under a name of its own until it is complete and on disk, and then takes the
place in one step. While it is written its process holds a lock on it, which the system lets go of when the process
dies: so the next one that writes to the same place knows what nobody is writing any more, and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: left-overs go by their age, and a folder cannot be claimed
    fcntl = None

ABANDONED = 24 * 3600  # seconds after which what cannot be locked has nobody who writes it
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# As safetensors, pyarrow and torch say it, which raise errors of their own.
_SAID = re.compile(r"os error (28|122|27|5|30)\b|No space left|[Qq]uota exceeded|file write failed|File too large")


@contextmanager
def written_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the path of a new file to write, and puts it in its place if nothing goes wrong.

    A file that was there before keeps its permissions; a new one gets those of the umask. A link is followed. Of a
    place that is no regular file (`/dev/stdout`, a pipe) the path itself is given. Where the block removes the new
    file, the place stays as it is.

    Args:
        path: the place; its folder is made if it is not there.

    Raises:
        OSError: the file cannot be written; the message names the place.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder (expected a file)", str(path))
        yield target
        return
    with _named(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        part, lock = _started(target, is_folder=False)
    try:
        with _named(path):
            mode = stat.S_IMODE(target.stat().st_mode if target.exists() else os.fstat(lock).st_mode)
            yield part
            if part.exists():
                os.chmod(part, mode)  # a library may have put another file of its own in its place
                _sync(part)
                os.replace(part, target)
                _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, as a whole or not at all (see `written_file`)."""
    with written_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


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
    with _named(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        part, lock = _started(target, is_folder=True)
    try:
        with _named(folder):
            yield part
            _settle(part)
            _replace(target, part, what, optional)
            _sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


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
    file = target / ".lock"
    made = [place for place in (target, *target.parents) if not place.exists()]
    while True:
        with _named(folder):
            try:
                target.mkdir(parents=True, exist_ok=True)
                lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # another process has just removed the folder that it made
                continue
        if _lock(lock) is False:
            os.close(lock)
            raise BlockingIOError(f"another process is at work in {folder}: {why}")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(file)):
                break
        os.close(lock)  # it was removed before it was locked: by the process that had it
    try:
        yield
    finally:
        with suppress(OSError):  # while it is locked: who has opened it meanwhile sees that it is gone
            file.unlink()
            for place in made:
                place.rmdir()  # not if something is in it
        os.close(lock)


def remove_leftovers(target: str | os.PathLike[str]) -> None:
    """Removes what processes that are dead have left half written beside this place."""
    target = Path(target)
    half = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{32}(\.tmp|\.earlier)?")
    with suppress(OSError):
        for path in [path for path in target.parent.iterdir() if half.fullmatch(path.name)]:
            if path.name.endswith(".earlier") and not target.exists():
                path.rename(target)  # stopped between two renames: what was there comes back
            else:
                remove_if_dead(path)


def remove_if_dead(path: Path) -> bool:
    """Removes a file or folder that a process was writing, unless that process is alive; whether it did."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        locked = _lock(lock)
        if locked is False or (locked is None and time.time() - os.fstat(lock).st_mtime < ABANDONED):
            return False
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        return not path.exists()
    finally:
        os.close(lock)


def _started(target: Path, is_folder: bool) -> tuple[Path, int]:
    """A new file or folder beside the place, and the lock on it."""
    while True:
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        if is_folder:
            part.mkdir()
        else:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            lock = os.open(part, os.O_RDONLY)
        except FileNotFoundError:
            continue
        # Between being made and being locked it looked abandoned, and may have been removed.
        if _lock(lock) is not False and part.exists():
            return part, lock
        os.close(lock)


def _lock(descriptor: int) -> bool | None:
    """Whether this process has the lock now; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # a file system that has none
        return None


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
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError if path.is_dir() else PermissionError):  # some file systems sync no folders
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(target: Path, part: Path, what: str, optional: Collection[str]) -> None:
    if target.exists():
        mine = {file.name for file in part.iterdir()}
        others = sorted({file.name for file in target.iterdir()} - mine - {*optional})
        if others:
            raise FileExistsError(f"{target} holds {', '.join(others)} besides an earlier {what}: move them first")
        if _exchange(target, part):
            return  # the earlier one stands in the other's place now, and goes with it
        earlier = part.with_suffix(".earlier")
        target.rename(earlier)
        part.rename(target)
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        part.rename(target)


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
        if (isinstance(error, OSError) and error.errno in _DISK_FULL) or _SAID.search(str(error)):
            raise OSError(f"{os.fspath(path)} cannot be written: {error}") from error
        if isinstance(error, PermissionError) and ".tmp" in str(error.filename):
            raise PermissionError(error.errno, error.strerror, os.fspath(path)) from error
        raise
