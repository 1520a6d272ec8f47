"""What aligners said of images, kept by the image's content: nothing is worked out twice.

```
STORE/<kind>/<model>-<hash of the identity>/<rows>-<unique>.parquet
```

Every file is a shard that pandas or `datasets` opens: `load_dataset("parquet", data_files="STORE/ocr/*/*.parquet")`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_ita.visual_context import Alignment

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
SMALL_SHARDS = 32  # so many shards of one size are merged into one of the next
SIZES = (256, 8192)  # rows below which a shard is of the first and of the second size; larger ones stay as they are
MEMORY = 256 * 2**20  # bytes of shards that are held for look-ups, for each aligner
ROW_BITS = 24
CLOCK_TICK = 2 * 10**9  # ns
ABANDONED = 24 * 3600  # seconds after which a half-written file has nobody who writes it


class ContextStore:
    """A folder of alignments, content-addressed: sha256 of the image's bytes × identity of the aligner.

    Any number of processes and machines may read and write it at once; there is no server and no lock. `add` writes
    one new shard, under a temporary name until it is whole and on disk, so that a killed process loses what it had in
    flight and nothing else. Shards that have become many are merged; the merged shard is there before they go, and a
    row that stands twice for a moment is read once.

    Args:
        folder: where the shards lie; made when the first is written.
        read_only: refuse `add` and `compact`.

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
        self._lock = threading.RLock()

    def look_up(self, image_sha256: str, kind: str, identity: Mapping[str, Any]) -> Alignment | None:
        """What this aligner said of this image, also by the hand of another process; None if it has not seen it.

        Args:
            image_sha256: see `modeling_ita.image_file.image_sha256`.
            kind: the kind of context.
            identity: the aligner's; a revision None stands for any.

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
        """Write what one aligner said, by the image's sha256, as one shard.

        Raises:
            PermissionError: the store was opened to be read only.
            OSError: the shard cannot be written.
        """
        self._check_writable()
        if not alignments:
            return
        with self._lock:
            identity = next(iter(alignments.values())).origin
            self._table(kind, identity).add(alignments)

    def compact(self) -> None:
        """Merge all small shards, of whichever process, and remove what killed processes left half written.

        Raises:
            PermissionError: the store was opened to be read only.
        """
        self._check_writable()
        with self._lock:
            for kind, identity in self.aligners():
                self._table(kind, identity).compact()

    def aligners(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and identity of every aligner that has said something, sorted by the folder's name."""
        return [(unquote(folder.parent.name), identity) for folder, identity in self._folders()]

    def rows(self, kind: str, identity: Mapping[str, Any]) -> int:
        """Of how many images this aligner has spoken."""
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
            name = re.sub(r"[^\w.-]+", "-", str(identity["model"]).rpartition("/")[2])[:40]
            folder = self.folder / quote(kind, safe="") / f"{name}-{hashlib.sha256(key[1].encode()).hexdigest()[:16]}"
            self._tables[key] = _Table(folder, kind, identity)
            self._any_revision.clear()
        return self._tables[key]

    def _folders(self, kind: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
        for folder in sorted(self.folder.glob(f"{'*' if kind is None else quote(kind, safe='')}/*/")):
            for shard in sorted(path for path in folder.glob("*.parquet") if _SHARD.fullmatch(path.name)):
                with suppress(FileNotFoundError):  # another process merged it just now
                    row = _read(shard, ["model", "revision", "settings"]).slice(0, 1).to_pylist()[0]
                    yield folder, {**row, "settings": json.loads(row["settings"])}
                    break


_SHARD = re.compile(r"\d{6,}-[0-9a-f]{32}\.parquet")


class _Table:
    """The shards of one aligner."""

    def __init__(self, folder: Path, kind: str, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.kind = kind
        self.identity = {name: identity.get(name) for name in ("model", "revision", "settings")}
        self._names: list[str] = []  # of all shards there ever were
        self._rows: dict[bytes, int] = {}  # digest of an image: shard's number and row, packed to save memory
        self._shards: set[str] = set()
        self._own: set[str] = set()
        self._held: OrderedDict[str, pa.Table] = OrderedDict()
        self._seen_at = -1

    def look_up(self, image_sha256: str) -> Alignment | None:
        digest = bytes.fromhex(image_sha256)
        if digest not in self._rows:
            self._refresh()
        while digest in self._rows:
            place = self._rows[digest]
            shard, row = self._names[place >> ROW_BITS], place & (1 << ROW_BITS) - 1
            try:
                table = self._hold(shard)
            except FileNotFoundError:  # another process has merged it
                self._forget(shard)
                self._seen_at = -1
                self._refresh()
                if self._rows[digest] == place:  # it was removed by hand
                    del self._rows[digest]
                continue
            strings, scores, date = (table.column(name)[row].as_py() for name in ("strings", "scores", "date"))
            return Alignment(strings, scores, {**self.identity, "date": date})
        return None

    def keys(self) -> set[bytes]:
        self._refresh()
        return set(self._rows)

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
        for path in self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()

    def _merge(self, shards: list[str]) -> None:
        tables = []
        for shard in sorted(shards):
            with suppress(FileNotFoundError):  # another process has merged it, and its rows are in that shard
                tables.append(_read(self.folder / shard))
        if tables:
            rows = pa.concat_tables(tables)
            place = {key: row for row, key in enumerate(rows["image_sha256"].to_pylist())}
            self._write(rows.take(sorted(place.values())))
        for shard in shards:
            (self.folder / shard).unlink(missing_ok=True)
            self._forget(shard)

    def _write(self, table: pa.Table) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = f"{table.num_rows:06d}-{uuid.uuid4().hex}.parquet"
        temporary = self.folder / f".{shard}.tmp"
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.folder / shard)
        self._own.add(shard)
        self._index(shard, table)

    def _refresh(self) -> None:
        """See the shards that other processes have written or merged."""
        changed_at = _changed_at(self.folder)
        if changed_at in (0, self._seen_at):
            return
        present = {name for name in os.listdir(self.folder) if _SHARD.fullmatch(name)}
        for shard in self._shards - present:
            self._forget(shard)
        for shard in sorted(present - self._shards):
            with suppress(FileNotFoundError):
                self._index(shard, _read(self.folder / shard, ["image_sha256"]))
        self._seen_at = changed_at

    def _index(self, shard: str, table: pa.Table) -> None:
        number = len(self._names)
        self._names.append(shard)
        self._shards.add(shard)
        for row, key in enumerate(table["image_sha256"].to_pylist()):
            self._rows[bytes.fromhex(key)] = number << ROW_BITS | row

    def _forget(self, shard: str) -> None:
        """Drop a shard that is gone; its rows stand in the one into which it was merged."""
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
    try:
        with pq.ParquetFile(shard) as file:
            return file.read(columns, use_threads=False)  # threads cost more than they save on files this small
    except pa.ArrowInvalid as error:
        raise OSError(f"{shard} is damaged ({error}): remove it, and its images are aligned again") from error


def _changed_at(folder: Path) -> int:
    """When a folder's list of files last changed, in ns; 0 if there is none, and another value each time just after.

    A clock ticks too slowly to tell a change of just now from the next one.
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
