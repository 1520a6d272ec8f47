"""What is labelled: the rows of files, of standard input or of a data set, numbered from 0 and read in any range."""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import os
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from dataset_scripts.contexts.image_sources import holds_images, image_content
from dataset_scripts.labelling.rows import Rows, RowStream, widened
from dataset_scripts.labelling.text_files import (
    DELIMITERS,
    JSON_SUFFIXES,
    STEP,
    Row,
    TextIndex,
    csv_rows,
    index_csv,
    index_json,
    json_column,
    json_rows,
)
from modeling_ita.plain_text import one_line

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
FORMATS = "CSV, TSV, JSON lines (each also with .gz, .zst or .bz2) or Parquet"
SAVED = ("state.json", "dataset_dict.json")  # of what `save_to_disk` wrote
SUFFIXES = (*DELIMITERS, *JSON_SUFFIXES, ".parquet")
AT_ONCE = 64  # rows read of a file at a time; they may hold the bytes of pictures
_CHANGED = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")


def open_files(inputs: Sequence[str], encoding: str = "utf-8", limit: int | None = None) -> FileSource:
    """The rows of files, one after the other.

    Args:
        inputs: files, folders or patterns, on any file system that fsspec knows.
        encoding: the encoding of text files.
        limit: read only the first `limit` rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is of another format, its header cannot be read, all are empty, or the encoding is unknown.
    """
    try:
        is_known = "\n,\t{}".encode(codecs.lookup(encoding).name) == b"\n,\t{}"
    except (LookupError, UnicodeError):
        is_known = False
    if not is_known:
        raise ValueError(f"encoding {encoding!r} is none that contains ASCII (expected utf-8, latin-1, cp1252 …)")
    parts = [_open_part(url, encoding) for given in inputs for url in _files_of(given)]
    return FileSource(parts, limit)


def spool(stream: Any, file: Path) -> None:
    """Copy a stream, which can be read once, into a file, which can be read by several processes."""
    with file.open("wb") as copy:
        shutil.copyfileobj(stream, copy)


class FileSource:
    """The rows of several files, one after the other, with the columns of all of them."""

    def __init__(self, parts: Sequence[_Part], limit: int | None = None) -> None:
        self.parts = list(parts)
        types: dict[str, pa.DataType] = {}
        for part in self.parts:
            for name, type_ in part.columns.items():
                before = types.setdefault(name, type_)
                both = _common(before, type_)
                if both is None:
                    raise ValueError(
                        f"the column {name!r} is {type_} in {part.url} and {before} in a file before it "
                        "(expected the same: label them one by one)"
                    )
                types[name] = both
        whole = sum(part.rows for part in self.parts)
        if not types:
            why = "no line is a JSON object (expected one in every line)" if whole else "there are no columns (empty)"
            raise ValueError(f"{', '.join(part.url for part in self.parts):.300}: {why}")
        self.schema = pa.schema([(name, pa.string() if pa.types.is_null(t) else t) for name, t in types.items()])
        self.count = whole if limit is None else min(limit, whole)
        self.notes = [f"{part.url} is empty" for part in self.parts if not part.rows]
        self._open: _Part | None = None

    def fingerprint(self) -> dict[str, Any]:
        """See `Source`."""
        return {"files": [part.fingerprint() for part in self.parts], "rows": self.count}

    def digest(self) -> dict[str, Any]:
        """The sha256 of the files, instead of their names and dates."""
        return {"sha256": [_sha256(part.url) for part in self.parts], "rows": self.count}

    def read(self, start: int, stop: int, columns: Sequence[str], batch_size: int) -> Iterator[Rows]:
        """See `Source`."""
        first = 0
        schema = pa.schema([self.schema.field(name) for name in columns])
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.rows)
            if low < high:
                if self._open is not None and self._open is not part:
                    self._open.close()  # of thousands of files, one is open
                self._open = part
                for rows in part.read(low, high, [name for name in columns if name in part.columns], batch_size):
                    yield Rows(widened(rows.table, schema, len(rows.faults)), rows.faults, part.folder, rows.raw)
            first += part.rows


class DatasetSource:
    """The rows of any data set that `datasets.load_dataset` can load, streamed.

    Every process streams the set on its own and passes over the rows of the others.

    Args:
        name: a repository on the Hub or a local folder.
        configuration: the data set's configuration, if it has several.
        split: the split.
        limit: read only the first `limit` rows.

    Raises:
        ValueError: the data set or the split does not exist.
    """

    def __init__(self, name: str, configuration: str | None, split: str, limit: int | None = None) -> None:
        self._place = (name, configuration, split)
        rows = self._rows
        info = (rows.info.splits or {}).get(split) if rows.info else None
        first = next(iter(rows.with_format("arrow").iter(STEP)), None)
        self.schema = pa.schema([]) if first is None else first.schema.remove_metadata()
        if not self.schema.names:
            raise ValueError(f"the data set {name!r} has no rows in {split!r}")
        count = getattr(info, "num_examples", None)
        # A set that does not tell its size is counted first.
        self.count = sum(len(table) for table in rows.with_format("arrow").iter(STEP)) if count is None else count
        self.count = self.count if limit is None else min(limit, self.count)
        self.notes: list[str] = []

    @cached_property
    def _rows(self) -> Any:
        name, configuration, split = self._place
        try:
            if any(os.path.isfile(os.path.join(name, file)) for file in SAVED):
                saved = datasets.load_from_disk(name)
                rows = (saved[split] if isinstance(saved, datasets.DatasetDict) else saved).to_iterable_dataset()
            else:
                rows = datasets.load_dataset(name, configuration, split=split, streaming=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"the data set {name!r} cannot be read: {error}") from error
        for column, feature in (rows.features or {}).items():
            if holds_images(feature):  # read by open_image, under its limits
                plain = datasets.Image(decode=False)
                rows = rows.cast_column(column, plain if isinstance(feature, datasets.Image) else datasets.List(plain))
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """The settings without the open streams."""
        return {key: value for key, value in vars(self).items() if key not in ("_rows", "_stream")}

    def fingerprint(self) -> dict[str, Any]:
        """See `Source`."""
        name, configuration, split = self._place
        return {"dataset": name, "configuration": configuration, "split": split, "rows": self.count}

    def read(self, start: int, stop: int, columns: Sequence[str], batch_size: int) -> Iterator[Rows]:
        """See `Source`. Images in archives and in the set's own repository are read here."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        features = self._rows.features or {}
        images = [name for name in columns if holds_images(features.get(name))]
        folder = os.path.abspath(self._place[0]) if os.path.isdir(self._place[0]) else None
        for table in self._tables(start, stop, batch_size):
            made = widened(table, schema, len(table))
            raw = {name: [_with_content(value) for value in made[name].to_pylist()] for name in images}
            yield Rows(made, [None] * len(table), folder, raw)

    def _tables(self, start: int, stop: int, batch_size: int) -> Iterator[pa.Table]:
        stream = vars(self).pop("_stream", None)
        if stream is None or stream.place > start:
            stream = RowStream(iter(self._rows.with_format("arrow").iter(STEP)))
        try:
            yield from stream.take(start, stop, batch_size)
        except GeneratorExit:
            self._stream = stream
            raise
        if stream.place < stop:
            raise ValueError(f"the data set {self._place[0]!r} ends at row {stream.place:,} (expected {self.count:,})")
        self._stream = stream


@dataclass
class _Part:
    """One file of rows."""

    url: str
    format: str
    encoding: str
    rows: int = 0
    columns: dict[str, pa.DataType] = field(default_factory=dict)
    index: TextIndex | None = None
    row_groups: list[int] = field(default_factory=list)
    base: str | None = None  # where relative paths lead, if not to its folder

    @property
    def folder(self) -> str | None:
        if self.base is not None:
            return self.base
        if is_remote(self.url):
            return re.sub(r"(?<=[^:/])/[^/]*$|(?<=://)[^/]*$", "", self.url)
        return os.path.dirname(os.path.abspath(self.url))

    @property
    def compression(self) -> str | None:
        return COMPRESSIONS.get(os.path.splitext(self.url.lower())[1])

    def fingerprint(self) -> dict[str, Any]:
        fs, path = url_to_fs(self.url)
        info = fs.info(path)
        changed = next((info[key] for key in _CHANGED if info.get(key)), None)
        return {"file": self.url, "bytes": info.get("size"), "changed": None if changed is None else str(changed)}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_stream"}

    def read(self, start: int, stop: int, columns: Sequence[str], batch_size: int) -> Iterator[Rows]:
        """See `Source`. What reads on from there is kept, for the range that follows."""
        if self.format == ".parquet" and not columns:  # Arrow would read no rows
            for place in range(start, stop, batch_size):
                yield Rows(pa.table({}), [None] * min(batch_size, stop - place))
            return
        stream = self._stream_from(start, columns)
        try:
            for found in stream.take(start, stop, batch_size):
                yield self._rows(found, columns)
        except GeneratorExit:
            self._stream = stream
            raise
        self._stream = stream
        if stream.place >= self.rows:
            self.close()

    def close(self) -> None:
        """Close the file."""
        if (stream := vars(self).pop("_stream", None)) is not None:
            stream.close()

    def _stream_from(self, start: int, columns: Sequence[str]) -> RowStream:
        stream: RowStream | None = vars(self).pop("_stream", None)
        if self.format == ".parquet":
            starts = [0, *accumulate(self.row_groups)]
            group = bisect_right(starts, start) - 1
            if stream is None or stream.columns != columns or not starts[group] <= stream.place <= start:
                stream = RowStream(self._parquet_tables(group, columns), starts[group], columns)
            return stream
        assert self.index is not None
        step = 0 if self.compression else start // STEP  # what is compressed is read from its beginning
        if stream is None or not step * STEP <= stream.place <= start:
            stream = RowStream(self._row_lists(self.index.starts[step] if step else 0), step * STEP, columns)
        return stream

    def _rows(self, found: Any, columns: Sequence[str]) -> Rows:
        if self.format == ".parquet":
            return Rows(found, [None] * len(found))
        faults = [row.fault for row in found]
        if self.format in DELIMITERS:
            by_name = dict(zip(self.columns, zip(*(row.values for row in found), strict=True), strict=True))
            return Rows(pa.table({name: pa.array(by_name[name], pa.string()) for name in columns}), faults)
        assert self.index is not None
        objects = [row.values[0] or {} for row in found]
        raw = {name: [item.get(name) for item in objects] for name in columns}
        made = {name: json_column(raw[name], self.columns[name], name in self.index.as_json) for name in columns}
        return Rows(pa.table(made), faults, raw=raw)

    def _row_lists(self, position: int) -> Iterator[list[Row]]:
        """The rows of a text file from a position on, one by one."""
        with _binary(self.url) as file:
            if position:
                file.seek(position)
            if self.format in DELIMITERS:
                found = csv_rows(file, len(self.columns), DELIMITERS[self.format], self.encoding, position)
            else:
                found = json_rows(file, self.encoding, position)
            while batch := [row for _, row in islice(found, AT_ONCE)]:
                yield batch

    def _parquet_tables(self, group: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of a Parquet file from a row group on."""
        fs, path = url_to_fs(self.url)
        groups = list(range(group, len(self.row_groups)))
        with fs.open(path, "rb") as content, closing(_parquet_file(content, self.url)) as file:
            for batch in file.iter_batches(AT_ONCE, row_groups=groups, columns=list(columns)):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def _files_of(given: str) -> list[str]:
    """The files that an argument names: a file, a folder or a pattern."""
    if "://" not in given:
        path = os.path.expanduser(given)
        if os.path.isdir(path):
            found = sorted(str(file) for file in Path(path).rglob("*") if _is_input(file, Path(path)))
        elif os.path.isfile(path):
            found = [path]
        else:
            found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    else:
        fs, path = url_to_fs(given)
        place = given.rstrip("/").removesuffix(path.strip("/"))  # the protocol, and a host that paths do not name
        place = place if place.endswith("/") else f"{given.partition('://')[0]}://"
        if fs.isdir(path):
            found = [file for file in sorted(fs.find(path)) if _format(file) and "/." not in file.removeprefix(path)]
        elif fs.exists(path):
            found = [path]
        else:
            found = sorted(fs.glob(path))
        found = [file if "://" in file else f"{place}{file.lstrip('/')}" for file in found]
    if not found:
        raise FileNotFoundError(f"{given}: there is no such file (expected {FORMATS}: a file, a folder or a pattern)")
    return found


def _is_input(file: Path, folder: Path) -> bool:
    is_hidden = any(name.startswith(".") for name in file.relative_to(folder).parts)
    return not is_hidden and _format(str(file)) is not None and file.is_file()


def _format(url: str) -> str | None:
    stem, suffix = os.path.splitext(url.lower())
    suffix = os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix
    return suffix if suffix in SUFFIXES else None


def _open_part(url: str, encoding: str) -> _Part:
    format_ = _format(url)
    if format_ is None:
        raise ValueError(f"{url} ends in no known suffix (expected {FORMATS}: {', '.join(SUFFIXES)})")
    part = _Part(url, format_, encoding)
    fs, path = url_to_fs(url)
    if format_ == ".parquet":
        with fs.open(path, "rb") as content, closing(_parquet_file(content, url)) as file:
            schema = file.schema_arrow.remove_metadata()
            part.columns = dict(zip(schema.names, schema.types, strict=True))
            part.row_groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
            part.rows = sum(part.row_groups)
        return part
    if fs.info(path).get("size") == 0:
        return part
    try:
        with _binary(url) as file:
            if format_ in DELIMITERS:
                part.index = index_csv(file, url, DELIMITERS[format_], encoding)
            else:
                part.index = index_json(file, encoding)
    except (OSError, EOFError, pa.ArrowException) as error:
        if part.compression is None:
            raise
        raise ValueError(f"{url} cannot be unpacked: {one_line(error, 200)}") from error
    part.columns, part.rows = part.index.columns, part.index.rows
    return part


def _parquet_file(content: Any, url: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(content, pre_buffer=False, buffer_size=2**20)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{url} is not a Parquet file: {one_line(error, 200)}") from error


def _binary(url: str) -> io.BufferedReader:
    """A file's content, decompressed."""
    content: Any
    if is_remote(url):
        fs, path = url_to_fs(url)
        content = fs.open(path, "rb")
    else:
        content = open(url, "rb", buffering=2**20)  # noqa: SIM115
    compression = COMPRESSIONS.get(os.path.splitext(url.lower())[1])
    if compression is not None:
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(content, "r"), compression), 2**20)
    return content if isinstance(content, io.BufferedReader) else io.BufferedReader(content, 2**20)


def _sha256(file: str) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _with_content(value: Any) -> Any:
    """An image of a data set, or a list of them, as bytes or a path."""
    if isinstance(value, list):
        return [_with_content(item) for item in value]
    return None if value is None else image_content(value)


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both; None if there is none."""
    if one == other:
        return one
    both = [pa.schema([("column", type_)]) for type_ in (one, other)]
    try:
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def is_remote(url: str) -> bool:
    """Whether a path names a file system: `s3://…`."""
    return re.match(r"[a-zA-Z][\w+.-]*://", url) is not None
