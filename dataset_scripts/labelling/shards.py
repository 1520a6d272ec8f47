"""What is written: shards of a fixed number of rows, each whole or absent, in a folder that knows its job.

```
OUT/part-00000.parquet  part-00001.parquet …    the rows, in order
OUT/report.json                                 when all are there
OUT/.job/job.json                               model, input and settings
OUT/.job/part-00000.json …                      what each shard counts
```
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from dataset_scripts.labelling.columns import PostColumns, has_bytes, without_bytes
from dataset_scripts.labelling.labeller import WINDOW, Labelled, PostLabeller
from dataset_scripts.labelling.rows import Rows, Source
from dataset_scripts.labelling.sources import is_remote
from modeling_ita.checkpoint_files import CONFIG, PROCESSOR, TOKENIZER, WEIGHTS, folder_of
from modeling_ita.plain_text import one_line, shown
from modeling_ita.whole_files import written_file

JOB, JOB_FILE = ".job", "job.json"
REPORT = "report.json"
ROWS_PER_SHARD = 2048
ROW_GROUP = 64 * 2**20  # bytes of rows held before they are written
WITH_BYTES = 64  # rows read at a time if they hold the bytes of pictures
EXAMPLES = 3
FORMATS = ("parquet", "jsonl")


class Shard(NamedTuple):
    """Rows `start` up to `stop` of a source, and the number of their shard."""

    number: int
    start: int
    stop: int


class Output:
    """The folder of a job, on any file system that fsspec knows."""

    def __init__(self, folder: str, format: str = "parquet") -> None:
        self.folder, self.format = folder.rstrip("/") or "/", format

    def name(self, number: int) -> str:
        """The file of a shard."""
        return f"part-{number:05d}.{self.format}"

    def finished(self) -> set[int]:
        """The numbers of the shards that are there, with their counts."""
        shards, counts = (
            {int(found[1]) for name in self.names(inside) if (found := re.fullmatch(rf"part-(\d+)\.{suffix}", name))}
            for inside, suffix in (("", self.format), (JOB, "json"))
        )
        return shards & counts

    def read_counts(self, number: int) -> dict[str, Any] | None:
        """The counts of a shard; None if it is not there."""
        return self.read(f"{JOB}/part-{number:05d}.json") if number in self.finished() else None

    def names(self, inside: str = "") -> list[str]:
        """The files in the folder, or in a folder inside it."""
        fs, path = url_to_fs(self._place(inside))
        if not fs.isdir(path):
            return []
        fs.invalidate_cache()
        return sorted(os.path.basename(name.rstrip("/")) for name in fs.ls(path, detail=False))

    def read(self, name: str) -> Any:
        """A JSON file of the folder; None if it is not there.

        Raises:
            ValueError: the file is damaged.
        """
        fs, path = url_to_fs(self._place(name))
        if not fs.isfile(path):
            return None
        try:
            return json.loads(fs.cat_file(path))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self._place(name)} is damaged: {one_line(error, 200)} (--overwrite begins anew)"
            ) from None

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder."""
        with self.written(name) as part:
            part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """Yields a local path to write to; the file is put in its place, whole, if the block succeeds."""
        place = self._place(name)
        if not is_remote(place):
            with written_file(place) as part:
                yield part
            return
        fs, path = url_to_fs(place)
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ita-label-") as folder:
            part = Path(folder, os.path.basename(name))
            yield part
            unfinished = f"{path.rpartition('/')[0]}/.{os.path.basename(name)}.tmp"
            fs.put_file(str(part), unfinished)
            fs.mv(unfinished, path)

    def clear(self) -> None:
        """Remove what earlier jobs wrote, and nothing else."""
        fs, _ = url_to_fs(self.folder)
        for name in self.names():
            if name == REPORT or (name.startswith("part-") and name.endswith(tuple(f".{one}" for one in FORMATS))):
                fs.rm_file(url_to_fs(self._place(name))[1])
        for name in self.names(JOB):
            fs.rm_file(url_to_fs(self._place(f"{JOB}/{name}"))[1])

    def _place(self, name: str) -> str:
        return f"{self.folder}/{name}" if name else self.folder


def check_job(output: Output, job: dict[str, Any]) -> dict[str, Any]:
    """Compare a job with the one that the folder holds, or note it down if it holds none.

    Args:
        output: the folder.
        job: `model`, `input` and `settings`, as JSON values.

    Returns:
        The job as noted down, with `started`, when it began.

    Raises:
        ValueError: the folder holds another job; the message names what differs.
        FileExistsError: the folder holds something else.
    """
    known = output.read(f"{JOB}/{JOB_FILE}")
    if known is None:
        others = [name for name in output.names() if not name.startswith(".")]
        if others:
            raise FileExistsError(
                f"{output.folder} holds {', '.join(others[:3])}: name another --output, or an empty folder"
            )
        output.write(f"{JOB}/{JOB_FILE}", job)
        return job
    differing = _differences(known, {**job, "started": known.get("started")})
    if differing:
        raise ValueError(
            f"{output.folder} holds the output of another job: {'; '.join(differing):.1000} (name another --output, "
            "or --overwrite it)"
        )
    return known


def model_fingerprint(model: str) -> dict[str, Any]:
    """What identifies a model: its name and the sha256 of its files."""
    folder = folder_of(model, {}, CONFIG, PROCESSOR, TOKENIZER, WEIGHTS)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    digests = {}
    for path in [*([folder / name for name in (CONFIG, PROCESSOR, TOKENIZER)] if folder else []), *files]:
        if path.is_file():
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": model, "files": digests}


@dataclass
class ShardLabeller:
    """Reads a shard, labels its rows, writes them, and says what it counted. Any process can run it.

    Args:
        source: the rows.
        labeller: what labels them.
        columns: which column holds what.
        kept: the columns that are written, beside the new ones.
        with_bytes: those of them whose bytes of pictures are written too.
        output: where they are written.
    """

    source: Source
    labeller: PostLabeller
    columns: PostColumns
    kept: Sequence[str]
    with_bytes: Sequence[str]
    output: Output
    watch: Any = field(default=None, repr=False)

    def __call__(self, shard: Shard, careful: bool = False) -> dict[str, Any]:
        """Label and write a shard; returns its counts, see `label_report`.

        Args:
            shard: the shard.
            careful: whether to label row by row, and to pass over the rows at which an earlier careful attempt died.
        """
        # Every picture that cannot be read is counted, and its row says so.
        logging.getLogger("modeling_ita.context_builder").setLevel(logging.ERROR)
        labeller, counts = self.labeller, _Counts(shard)
        if self.watch is not None:
            labeller.watch = lambda images: self.watch(0, images)
        roles = [self.columns.text, self.columns.image, self.columns.context]
        needed = list(dict.fromkeys([*self.kept, *(name for name in (*roles, self.columns.id) if name is not None)]))
        size = WITH_BYTES if any(has_bytes(self.source.schema.field(name).type) for name in needed) else WINDOW
        deadly = _Deadly(self.output, shard) if careful else None
        labeller.load()  # before the clock runs
        before, read_before = dict(labeller.seconds), labeller.images
        with self.output.written(self.output.name(shard.number)) as part:
            writer = _Writer(part, self.output.format)
            try:
                for rows in self.source.read(shard.start, shard.stop, needed, 1 if careful else size):
                    if deadly is not None:
                        deadly.begin(shard.start + counts.rows, rows)
                    values = [None if name is None else rows.values(name) for name in roles]
                    posts, images, contexts = values
                    found = labeller.label(posts or [], images, contexts, rows.faults, rows.folder)
                    counts.add(rows, found, self.columns)
                    writer.write(self._table(rows, found))
                    if self.watch is not None:
                        self.watch(len(rows.faults), 0)
                if counts.rows != shard.stop - shard.start:
                    raise ValueError(
                        f"the input has {counts.rows:,} rows from row {shard.start:,} on (expected "
                        f"{shard.stop - shard.start:,}): it has changed since the job began"
                    )
                writer.close(self._schema())
            finally:
                writer.abandon()
            counts.seconds = {name: labeller.seconds[name] - before[name] for name in before}
            counts.images = labeller.images - read_before
            # The counts come first: a shard that is there has them.
            self.output.write(f"{JOB}/part-{shard.number:05d}.json", counts.to_dict())
            if deadly is not None:
                deadly.end()
        return counts.to_dict()

    def _table(self, rows: Rows, found: Labelled) -> pa.Table:
        columns = {}
        for name in self.kept:
            column = rows.table[name]
            if name not in self.with_bytes and has_bytes(column.type):
                column = without_bytes(column)
            columns[name] = column
        return pa.table({**columns, **self.labeller.added_columns(found)}, schema=self._schema())

    def _schema(self) -> pa.Schema:
        kept = [self.source.schema.field(name) for name in self.kept]
        return pa.schema([*kept, *self.labeller.added])


class _Deadly:
    """The rows of a shard at which processes died: the one at work is noted down before its work begins."""

    def __init__(self, output: Output, shard: Shard) -> None:
        self._output, self._name = output, f"{JOB}/deadly-{shard.number:05d}.json"
        self._rows: list[int] = output.read(self._name) or []

    def begin(self, row: int, rows: Rows) -> None:
        if row in self._rows:
            rows.faults[0] = rows.faults[0] or "the process died while it labelled this row"
        else:
            self._output.write(self._name, [*self._rows, row])

    def end(self) -> None:
        self._output.write(self._name, self._rows)


class _Writer:
    """Writes tables to a file, a row group at a time."""

    def __init__(self, file: Path, format: str) -> None:
        self._file, self._format = file, format
        self._open: Any = None
        self._held: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._held.append(table)
        if sum(held.nbytes for held in self._held) > ROW_GROUP:
            self._flush(table.schema)

    def close(self, schema: pa.Schema) -> None:
        self._flush(schema)
        self._open.close()
        self._open = None

    def abandon(self) -> None:
        """Close the file of a shard that failed."""
        if self._open is not None:
            self._open.close()

    def _flush(self, schema: pa.Schema) -> None:
        if self._open is None:
            self._open = (
                pq.ParquetWriter(self._file, schema, compression="zstd")
                if self._format == "parquet"
                else self._file.open("w", encoding="utf-8", newline="\n")
            )
        if not self._held:
            return
        table, self._held = pa.concat_tables(self._held), []
        if self._format == "parquet":
            self._open.write_table(table)
            return
        for row in table.to_pylist():
            self._open.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


class _Counts:
    """What a shard counts."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.rows = self.failed = self.images = self.entities_in_posts = 0
        self.entities: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.errors: list[str] = []
        self.faults: list[str] = []
        self.seconds: dict[str, float] = {}

    def add(self, rows: Rows, found: Labelled, columns: PostColumns) -> None:
        ids = None if columns.id is None else rows.values(columns.id)
        for n, error in enumerate(found.errors):
            for reason, kept in ((error, self.errors), (found.faults[n], self.faults)):
                if reason is not None and len(kept) < EXAMPLES:
                    name = f"row {self.shard.start + self.rows + n:,}"
                    kept.append(f"{name}{'' if ids is None else f' ({one_line(ids[n], 60)})'}: {reason}")
        self.rows += len(found.errors)
        self.failed += sum(error is not None for error in found.errors)
        self.states.update(found.states)
        self.entities.update(entity["type"] for row in found.entities for entity in row)
        self.entities_in_posts += sum(bool(row) for row in found.entities)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "failed": self.failed,
            "entities": dict(sorted(self.entities.items())),
            "rows_with_entities": self.entities_in_posts,
            "image_states": dict(sorted(self.states.items())),
            "images_read": self.images,
            "errors": self.errors,
            "faults": self.faults,
            "seconds": self.seconds,
        }


def _differences(known: Any, job: Any, place: str = "") -> list[str]:
    """The places where two jobs differ, one line each."""
    if isinstance(known, dict) and isinstance(job, dict):
        keys = dict.fromkeys([*known, *job])
        return [line for key in keys for line in _differences(known.get(key), job.get(key), f"{place} {key}".strip())]
    if isinstance(known, list) and isinstance(job, list) and len(known) == len(job):
        return [
            line
            for n, (one, other) in enumerate(zip(known, job, strict=True))
            for line in _differences(one, other, f"{place} {n + 1}")
        ]
    return [] if known == job else [f"{place} was {shown(known)} and is {shown(job)}"]
