"""Stores aligner outputs by image content, so that nothing is computed twice.

```
STORE/<kind>/<model>-<hash of the identity>/<rows>-<sha256 of the file>.parquet
```

Every file is a shard that pandas or `datasets` opens: `load_dataset("parquet", data_files="STORE/ocr/*/*.parquet")`.
A shard in which a single bit has changed does not match its name and is not read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_ita.context_builder import Alignment
from modeling_ita.whole_files import ABANDONED, remove_if_dead, written_file

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("image_sha256", pa.string()),
        ("kind", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("settings", pa.string()),  # JSON
        ("strings", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("date", pa.string()),  # UTC, ISO 8601
    ]
)
SMALL_SHARDS = 32  # this many shards of one size are merged into one of the next
SIZES = (256, 8192)  # rows; upper bounds of the first and second shard size; larger shards are never merged
MEMORY = 256 * 2**20  # bytes of shards cached for look-ups, per aligner
ROW_BITS = 24
CLOCK_TICK = 2 * 10**9  # ns
SET_ASIDE = ".damaged"  # suffix for the name of a damaged shard


class DamagedShard(ValueError):
    """A shard whose content is not what was written; the message says why."""


class ContextStore:
    """A content-addressed folder of alignments, keyed by the image's sha256 and the aligner's identity.

    Any number of processes and machines can read and write it at once, without a server or locks. `add` writes one new
    shard, under a temporary name until it is complete and on disk, so a killed process loses only the rows it was
    writing. Small shards are merged when there are many. The merged shard is written before the old ones are deleted,
    and rows that exist twice meanwhile are read once.

    A shard whose content is not what was written is reported in a warning, renamed (`….damaged`) and ignored, so that
    its images are aligned again. If the folder is not writable, the store can still be read. New rows are then kept in
    this object only, and a warning says so once.

    Args:
        folder: the folder of the shards; created when the first one is written.
        read_only: whether to refuse `add` and `compact`.

    Attributes:
        damaged: the shards found damaged.
        not_kept: the number of rows that could not be written.

    Raises:
        ValueError: the folder is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], read_only: bool = False) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{folder} is a file (expected the folder of a store)")
        self.read_only = read_only
        self._tables: dict[tuple[str, str], _Table] = {}
        self._any_revision: dict[tuple[str, str], tuple[int, list[_Table]]] = {}
        self.damaged: list[Path] = []
        self.not_kept = 0
        self._lock = threading.RLock()

    def look_up(self, image_sha256: str, kind: str, identity: Mapping[str, Any]) -> Alignment | None:
        """The output of this aligner for this image, even if written by another process; None if there is none.

        Args:
            image_sha256: see `modeling_ita.image_file.image_sha256`.
            kind: the kind of context.
            identity: the aligner's identity; a revision of None matches any.

        Raises:
            OSError: a shard cannot be read.
        """
        with self._lock:
            for table in self._tables_of(kind, identity):
                found = table.look_up(image_sha256)
                if found is not None:
                    return found
        return None

    def add(self, kind: str, alignments: Mapping[str, Alignment]) -> None:
        """Write the outputs of one aligner, by the image's sha256, as one shard.

        Raises:
            PermissionError: the store was opened to be read only.
            OSError: the disk is full, or fails; the message names the shard.
        """
        self._check_writable()
        if not alignments:
            return
        with self._lock:
            identity = next(iter(alignments.values())).origin
            table = self._table(kind, identity)
            try:
                table.add(alignments)
            except OSError as error:
                if not _is_refusal(error):
                    raise
                table.keep(alignments)
                if not self.not_kept:
                    logger.warning("%s (the store can only be read: what is new is not kept)", error)
                self.not_kept += len(alignments)

    def compact(self) -> None:
        """Merge all small shards, of any process, and remove incomplete files left by killed processes.

        Shards of version 0.1 have no checksum and get one. Does nothing if the folder is not writable.

        Raises:
            PermissionError: the store was opened to be read only.
            OSError: the disk is full, or fails; the message names the shard.
        """
        self._check_writable()
        with self._lock:
            for kind, identity in self.aligners():
                try:
                    self._table(kind, identity).compact()
                except OSError as error:
                    if not _is_refusal(error):
                        raise
            for records in self.folder.glob(".run-*"):  # of version 0.1, which does not mark those it still writes
                if time.time() - records.stat().st_mtime > ABANDONED:
                    remove_if_dead(records)

    def set_aside(self) -> set[Path]:
        """All shards ever set aside in this folder, by any process, and those in `damaged`."""
        return {*self.folder.glob(f"*/*/*.parquet{SET_ASIDE}"), *self.damaged}

    def aligners(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and identity of every aligner with stored outputs, sorted by folder name."""
        return [(unquote(folder.parent.name), identity) for folder, identity in self._folders()]

    def rows(self, kind: str, identity: Mapping[str, Any]) -> int:
        """The number of images with an output of this aligner."""
        with self._lock:
            return len(set().union(*(table.keys() for table in self._tables_of(kind, identity))))

    def _check_writable(self) -> None:
        if self.read_only:
            raise PermissionError(f"the store {self.folder} was opened to be read only")

    def _tables_of(self, kind: str, identity: Mapping[str, Any]) -> list[_Table]:
        if identity.get("revision") is not None:
            return [self._table(kind, identity)]
        key = (kind, _key(identity))
        stamp = _changed_at(self.folder / quote(kind, safe=""))
        if self._any_revision.get(key, (-1, []))[0] != stamp:
            alike = [found for _, found in self._folders(kind) if _key({**found, "revision": None}) == key[1]]
            tables = [self._table(kind, found) for found in alike]
            self._any_revision[key] = (stamp, tables)
        return self._any_revision[key][1]

    def _table(self, kind: str, identity: Mapping[str, Any]) -> _Table:
        key = (kind, _key(identity))
        if key not in self._tables:
            folder = self.folder / quote(kind, safe="") / _folder_name(identity)
            self._tables[key] = _Table(folder, kind, identity, self._set_aside)
            self._any_revision.clear()
        return self._tables[key]

    def _folders(self, kind: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
        for folder in sorted(self.folder.glob(f"{'*' if kind is None else quote(kind, safe='')}/*/")):
            for shard in sorted(path for path in folder.glob("*.parquet") if _SHARD.fullmatch(path.name)):
                try:
                    yield folder, _identity(shard)
                    break
                except FileNotFoundError:  # another process has just merged it
                    continue
                except DamagedShard as error:
                    self._set_aside(shard, error)

    def _set_aside(self, shard: Path, error: DamagedShard) -> None:
        """Warn of a damaged shard, once, and rename it so that no process reads it."""
        place = shard.with_name(shard.name + SET_ASIDE)
        try:
            os.replace(shard, place)
        except FileNotFoundError:  # another process has renamed it
            return
        except OSError as refusal:
            if not _is_refusal(refusal):
                raise
            place = shard
        if place not in self.damaged:
            self.damaged.append(place)
            logger.warning("%s is damaged (%s): it is passed over, and its images are aligned again", place, error)


# Version 0.1: 32 random digits. Now: the first 40 digits of the file's sha256.
_SHARD = re.compile(r"\d{6,}-([0-9a-f]{32}|[0-9a-f]{40})\.parquet")


class _Table:
    """The shards of one aligner."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        identity: Mapping[str, Any],
        set_aside: Callable[[Path, DamagedShard], None],
    ) -> None:
        self.folder = folder
        self.kind = kind
        self.identity = {name: identity.get(name) for name in ("model", "revision", "settings")}
        self._set_aside = set_aside
        self._unwritten: dict[str, Alignment] = {}
        self._passed_over: set[str] = set()  # damaged shards that could not be renamed
        self._names: list[str] = []  # of all shards seen so far, even deleted ones
        self._rows: dict[bytes, int] = {}  # digest of an image: shard's number and row, packed to save memory
        self._shards: set[str] = set()
        self._own: set[str] = set()
        self._held: OrderedDict[str, pa.Table] = OrderedDict()
        self._seen_at = -1

    def look_up(self, image_sha256: str) -> Alignment | None:
        if image_sha256 in self._unwritten:
            return self._unwritten[image_sha256]
        digest = bytes.fromhex(image_sha256)
        if digest not in self._rows:
            self._refresh()
        while digest in self._rows:
            place = self._rows[digest]
            shard, row = self._names[place >> ROW_BITS], place & (1 << ROW_BITS) - 1
            try:
                table = self._hold(shard)
            except DamagedShard as error:
                self._drop(shard, error)
                continue
            except FileNotFoundError:  # another process has merged it
                self._forget(shard)
                self._seen_at = -1
                self._refresh()
                if self._rows.get(digest) == place:  # the file was removed by hand
                    del self._rows[digest]
                continue
            strings, scores, date = (table.column(name)[row].as_py() for name in ("strings", "scores", "date"))
            return Alignment(strings, scores, {**self.identity, "date": date})
        return None

    def keys(self) -> set[bytes]:
        self._refresh()
        return {*self._rows, *map(bytes.fromhex, self._unwritten)}

    def keep(self, alignments: Mapping[str, Alignment]) -> None:
        """Keep in memory what cannot be written."""
        self._unwritten.update(alignments)

    def add(self, alignments: Mapping[str, Alignment]) -> None:
        count = len(alignments)
        columns = {
            "image_sha256": list(alignments),
            "kind": [self.kind] * count,
            "model": [self.identity["model"]] * count,
            "revision": [self.identity["revision"]] * count,
            "settings": [json.dumps(self.identity["settings"], sort_keys=True)] * count,
            "strings": [alignment.strings for alignment in alignments.values()],
            "scores": [alignment.scores for alignment in alignments.values()],
            "date": [alignment.origin["date"] for alignment in alignments.values()],
        }
        self._write(pa.table(columns, SCHEMA))
        for smaller, size in zip((0, *SIZES), SIZES, strict=False):
            alike = [shard for shard in self._own if smaller <= _rows_in(shard) < size]
            if len(alike) >= SMALL_SHARDS:
                self._merge(alike)

    def compact(self) -> None:
        self._refresh()
        small = [shard for shard in self._shards if _rows_in(shard) < SIZES[-1]]
        if len(small) > 1:
            self._merge(small)
        for shard in [shard for shard in self._shards if _checksum(shard) is None]:
            self._merge([shard])
        for path in self.folder.glob(".*.tmp"):
            remove_if_dead(path)

    def _merge(self, shards: list[str]) -> None:
        tables, gone = [], set(shards)
        for shard in sorted(shards):
            try:
                tables.append(_read(self.folder / shard))
            except FileNotFoundError:  # another process has merged it; the merged shard has its rows
                continue
            except DamagedShard as error:
                self._drop(shard, error)
        if tables:
            rows = pa.concat_tables(tables)
            place = {key: row for row, key in enumerate(rows["image_sha256"].to_pylist())}
            gone.discard(self._write(rows.take(sorted(place.values())), durable=True))  # before the others are deleted
        for shard in gone:
            (self.folder / shard).unlink(missing_ok=True)
            self._forget(shard)

    def _write(self, table: pa.Table, durable: bool = False) -> str:
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)  # for other readers
        content = buffer.getvalue()
        shard = f"{table.num_rows:06d}-{_digest(content)}.parquet"
        with written_file(self.folder / shard, durable) as part, part.open("wb") as file:
            file.write(content)
        self._own.add(shard)
        self._index(shard, table)
        return shard

    def _drop(self, shard: str, error: DamagedShard) -> None:
        self._set_aside(self.folder / shard, error)
        if (self.folder / shard).exists():
            self._passed_over.add(shard)
        self._forget(shard)
        self._rows = {key: place for key, place in self._rows.items() if self._names[place >> ROW_BITS] != shard}

    def _refresh(self) -> None:
        """Pick up the shards that other processes have written or merged."""
        changed_at = _changed_at(self.folder)
        if changed_at in (0, self._seen_at):
            return
        present = {name for name in os.listdir(self.folder) if _SHARD.fullmatch(name)}
        for shard in self._shards - present:
            self._forget(shard)
        for shard in sorted(present - self._shards - self._passed_over):
            try:
                self._index(shard, _read(self.folder / shard, ["image_sha256"]))
            except FileNotFoundError:
                continue
            except DamagedShard as error:
                self._drop(shard, error)
        self._seen_at = changed_at

    def _index(self, shard: str, table: pa.Table) -> None:
        number = len(self._names)
        self._names.append(shard)
        self._shards.add(shard)
        for row, key in enumerate(table["image_sha256"].to_pylist()):
            self._rows[bytes.fromhex(key)] = number << ROW_BITS | row

    def _forget(self, shard: str) -> None:
        """Drop a deleted shard; its rows are in the shard it was merged into."""
        self._shards.discard(shard)
        self._own.discard(shard)
        self._held.pop(shard, None)

    def _hold(self, shard: str) -> pa.Table:
        if shard not in self._held:
            columns = ["strings", "scores", "date"]
            self._held[shard] = _read(self.folder / shard, columns).combine_chunks()
            while len(self._held) > 1 and sum(table.nbytes for table in self._held.values()) > MEMORY:
                self._held.popitem(last=False)
        self._held.move_to_end(shard)
        return self._held[shard]


def _read(shard: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a shard's columns, after checking that its content is what was written.

    Raises:
        DamagedShard: it is not: a bit has changed, or the file is not a shard at all.
        OSError: the file cannot be read.
    """
    content = shard.read_bytes()
    checksum = _checksum(shard.name)
    if checksum is not None and _digest(content) != checksum:
        raise DamagedShard("it is not the file that its name gives the checksum of")
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise DamagedShard("its columns are not those of a store")
            table = file.read(columns, use_threads=False)  # threads cost more than they save on files this small
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise DamagedShard(" ".join(str(error).split())) from error
    problem = _problem(table, _rows_in(shard.name))
    if problem:
        raise DamagedShard(problem)
    return table


def _problem(table: pa.Table, rows: int) -> str:
    """Describe what is invalid in a shard; empty if nothing is."""
    if table.num_rows != rows:
        return f"it has {table.num_rows} rows, and {rows} by its name"
    if any(table[name].null_count for name in table.column_names if name != "revision"):
        return "a value is missing"
    columns = {name: table[name].to_pylist() for name in table.column_names if name in ("image_sha256", "scores")}
    if not all(key is not None and _SHA256.fullmatch(key) for key in columns.get("image_sha256", ())):
        return "an image's sha256 is none"
    scores = columns.get("scores", ())
    if not all(score is not None and math.isfinite(score) for row in scores for score in row):
        return "a score is not a number"
    if scores and pc.list_flatten(table["strings"]).null_count:
        return "a string is missing"
    if scores and pc.any(pc.not_equal(pc.list_value_length(table["strings"]), pc.list_value_length(table["scores"]))):
        return "there are not as many scores as strings"
    return ""


_SHA256 = re.compile("[0-9a-f]{64}")


def _identity(shard: Path) -> dict[str, Any]:
    """The identity of the aligner that made a shard, from its first row.

    Raises:
        DamagedShard: the shard is in the folder of another aligner.
    """
    table = _read(shard, ["model", "revision", "settings"])
    try:
        row = table.slice(0, 1).to_pylist()[0]
        identity = {**row, "settings": json.loads(row["settings"])}
        if _folder_name(identity) == shard.parent.name:
            return identity
    except (IndexError, TypeError, ValueError, RecursionError):
        pass
    raise DamagedShard("it lies in the folder of another aligner")


def _folder_name(identity: Mapping[str, Any]) -> str:
    name = re.sub(r"[^\w.-]+", "-", str(identity["model"]).rpartition("/")[2])[:40]
    return f"{name}-{hashlib.sha256(_key(identity).encode()).hexdigest()[:16]}"


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:40]


def _checksum(shard: str) -> str | None:
    """The checksum in a shard's name; None if version 0.1 wrote it."""
    digits = shard.partition("-")[2].removesuffix(".parquet")
    return digits if len(digits) == 40 else None


def _is_refusal(error: OSError) -> bool:
    """Whether an error means that a folder is read-only."""
    return isinstance(error, PermissionError) or error.errno == errno.EROFS


def _changed_at(folder: Path) -> int:
    """When a folder's list of files last changed, in ns; 0 if there is no folder.

    Just after a change, every call returns a different value: the clock ticks too slowly to tell one change from the
    next.
    """
    try:
        changed_at = folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
    now = time.time_ns()
    return changed_at if now - changed_at > CLOCK_TICK else now


def _key(identity: Mapping[str, Any]) -> str:
    return json.dumps([identity["model"], identity.get("revision"), identity.get("settings", {})], sort_keys=True)


def _rows_in(shard: str) -> int:
    return int(shard.partition("-")[0])
