"""Reads rows of CSV, TSV and JSON lines, one by one: a row that is malformed costs that row and no other."""

from __future__ import annotations

import csv
import io
import json
import re
from codecs import BOM_UTF8
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from modeling_ita.plain_text import one_line

MAX_LINE = 16 * 2**20  # bytes; no row is longer
STEP = 1024  # rows between two places that a reader can jump to
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_UNDECODED = re.compile("[\udc80-\udcff]")


class Row(NamedTuple):
    """A row as it stands in a file: its values, None where it has none, and what is wrong with it."""

    values: list[Any]
    fault: str | None = None


class TextIndex(NamedTuple):
    """What one pass over a text file finds.

    Attributes:
        columns: its columns, with the type of their values.
        as_json: those whose values are kept as JSON text.
        rows: the number of rows.
        starts: where every `STEP`th row begins, in bytes after decompression.
    """

    columns: dict[str, pa.DataType]
    as_json: frozenset[str]
    rows: int
    starts: list[int]


class Lines:
    """The lines of a binary file, decoded one by one. The lines of the current record can be put back.

    Args:
        file: the file, at the beginning of a line.
        encoding: its encoding, a superset of ASCII. Bytes that it does not know become lone surrogates.
        position: the file's position, in bytes. A byte order mark at 0 is left out.
    """

    def __init__(self, file: io.BufferedReader, encoding: str, position: int = 0) -> None:
        self._file, self._encoding = file, encoding
        self._taken: list[tuple[bytes, int]] = []  # lines, and the bytes beyond `MAX_LINE` that were passed over
        self._pending: deque[tuple[bytes, int]] = deque()
        self._size = 0
        self.position = position
        self.ended = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if self._size > MAX_LINE:  # only a quotation mark that is not closed makes a record of so many lines
            raise csv.Error("the row is too long")
        line, passed = self._pending.popleft() if self._pending else self._next_line()
        if not line:
            self.ended = True
            raise StopIteration
        is_first = self.position == 0
        self.position += len(line) + passed
        line = line.removeprefix(BOM_UTF8) if is_first else line
        self._taken.append((line, passed))
        self._size += len(line)
        return self._decoded(line)

    def __len__(self) -> int:
        """The number of lines of the record so far."""
        return len(self._taken)

    @property
    def is_cut(self) -> bool:
        """Whether a line of the record was longer than `MAX_LINE`."""
        return any(passed for _, passed in self._taken)

    @property
    def texts(self) -> list[str]:
        """The lines of the record."""
        return [self._decoded(line) for line, _ in self._taken]

    def begin(self) -> None:
        """Begin a record."""
        self._taken, self._size, self.ended = [], 0, False

    def put_back(self) -> None:
        """Put back all lines of the record but the first."""
        back = self._taken[1:]
        self._pending.extendleft(reversed(back))
        self.position -= sum(len(line) + passed for line, passed in back)
        del self._taken[1:]

    def _decoded(self, line: bytes) -> str:
        return line.decode(self._encoding, "surrogateescape")

    def _next_line(self) -> tuple[bytes, int]:
        line, passed = self._file.readline(MAX_LINE), 0
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while rest := self._file.readline(MAX_LINE):
                passed += len(rest)
                if rest.endswith(b"\n"):
                    break
        return line, passed


def csv_rows(
    file: io.BufferedReader, columns: int, delimiter: str, encoding: str, position: int = 0
) -> Iterator[tuple[int, Row]]:
    """Yields the position and the content of every row of a CSV or TSV file; blank lines are none.

    Args:
        file: the file, at `position`: 0, or the beginning of a row.
        columns: the number of columns. A row of more or fewer fields is a fault.
        delimiter: what separates the fields.
        encoding: the file's encoding.
        position: where the file stands.
    """
    lines = Lines(file, encoding, position)
    if not position:
        next(_csv_rows(lines, delimiter, None), None)  # the header
    return _csv_rows(lines, delimiter, columns)


def json_rows(file: io.BufferedReader, encoding: str, position: int = 0) -> Iterator[tuple[int, Row]]:
    """Yields the position and the content of every row of a file of JSON lines; blank lines are none.

    A row's only value is a dictionary; None if the line is malformed.
    """
    lines = Lines(file, encoding, position)
    while True:
        lines.begin()
        start = lines.position
        line = next(lines, None)
        if line is None:
            return
        if line.strip():
            yield start, _json_row(line, lines.is_cut)


def index_csv(file: io.BufferedReader, name: str, delimiter: str, encoding: str) -> TextIndex:
    """Finds the columns of a CSV or TSV file, which are all text, and counts its rows. An empty file has no columns.

    Raises:
        ValueError: the first line cannot name columns.
    """
    lines = Lines(file, encoding)
    header = next(_csv_rows(lines, delimiter, None), None)
    names = [] if header is None else [str(value).strip() for value in header[1].values]
    # The index that pandas writes in front has no name: it gets the one that pandas gives it.
    columns = [name or f"Unnamed: {n}" for n, name in enumerate(names)]
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if header is not None and (header[1].fault or twice or not any(names)):
        problem = header[1].fault or (f"the column {twice[0]!r} is there twice" if twice else "no column has a name")
        raise ValueError(f"{name}, line 1: {one_line(problem)} (expected the names of the columns)")
    rows, starts = 0, []
    for start, _ in _csv_rows(lines, delimiter, len(columns)):
        if rows % STEP == 0:
            starts.append(start)
        rows += 1
    return TextIndex(dict.fromkeys(columns, pa.string()), frozenset(), rows, starts)


def index_json(file: io.BufferedReader, encoding: str) -> TextIndex:
    """Counts the rows of a file of JSON lines, and finds the type of every key's values.

    A key whose values are of several types, or nested, is kept as JSON text. One that has no values has the type null.
    """
    rows, starts = 0, []
    kinds: dict[str, set[str]] = {}
    for start, row in json_rows(file, encoding):
        if rows % STEP == 0:
            starts.append(start)
        rows += 1
        for key, value in (row.values[0] or {}).items():
            kinds.setdefault(key, set()).add(_kind(value))
    types = {key: _type(found - {"null"}) for key, found in kinds.items()}
    as_json = frozenset(key for key, type_ in types.items() if type_ is None)
    return TextIndex({key: type_ or pa.string() for key, type_ in types.items()}, as_json, rows, starts)


def json_column(values: list[Any], type_: pa.DataType, as_json: bool) -> pa.Array:
    """The values of a key as a column of the type that `index_json` found, or as JSON text."""
    if as_json:
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    elif pa.types.is_list(type_):
        values = [[value] if isinstance(value, str) else value for value in values]
        return pa.array([value and [without_surrogates(item) for item in value] for value in values], type_)
    if type_ == pa.string():
        values = [value if value is None else without_surrogates(value) for value in values]
    elif type_ == pa.float64():  # Arrow refuses integers beyond 2^53
        values = [value if value is None else float(value) for value in values]
    return pa.array(values, type_)


def _csv_rows(lines: Lines, delimiter: str, columns: int | None) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2 * MAX_LINE)
    while True:
        lines.begin()
        start = lines.position
        fault = None
        try:
            fields = next(csv.reader(lines, delimiter=delimiter))
        except StopIteration:
            return
        except csv.Error as error:
            is_return = "new-line" in str(error)
            fields, fault = [], "a carriage return outside quotation marks" if is_return else str(error)
        is_open = lines.ended and len(lines) > 0
        if fault is None and not is_open and not fields:
            continue  # a blank line
        # A quotation mark that is not closed swallows the rows after it, up to the next one: these are put back.
        is_several = len(lines) > 1 and (
            (columns is not None and len(fields) != columns) or not _is_strict(lines, delimiter)
        )
        if fault or is_open or is_several:
            fault = fault if fault and len(lines) == 1 else "a quotation mark is not closed"
            lines.put_back()
            fields = lines.texts[0].rstrip("\r\n").split(delimiter)
        elif lines.is_cut:
            fault = f"the row is longer than {MAX_LINE // 2**20} MiB"
        elif columns is not None and len(fields) != columns:
            fault = f"{len(fields):,} fields (expected {columns:,})"
        yield start, _checked(fields if columns is None else (fields + [None] * columns)[:columns], fault)


def _is_strict(lines: Lines, delimiter: str) -> bool:
    """Whether the quotation marks of a record stand where they may: around fields, doubled inside them."""
    try:
        next(csv.reader(lines.texts, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True


def _checked(fields: list[Any], fault: str | None) -> Row:
    """A row whose text can be written; bytes that are not of the encoding are a fault, and become U+FFFD."""
    cleaned: list[Any] = []
    for field in fields:
        if field is not None and not field.isascii() and (clean := without_surrogates(field)) != field:
            fault = fault or "bytes that are not of the file's encoding (--encoding names another)"
            field = clean
        cleaned.append(field)
    return Row(cleaned, fault)


def without_surrogates(text: str) -> str:
    """Text without lone surrogates, which no file in UTF-8 can hold; pairs of them are joined."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _json_row(line: str, is_cut: bool) -> Row:
    if is_cut:
        return Row([None], f"the line is longer than {MAX_LINE // 2**20} MiB")
    if _UNDECODED.search(line):
        return Row([None], "bytes that are not of the file's encoding (--encoding names another)")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error, 200)
        return Row([None], f"the line is not JSON: {said}")
    if not isinstance(value, dict):
        return Row([None], "the line is not a JSON object (expected {…})")
    return Row([{without_surrogates(key): item for key, item in value.items()}])


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "str"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "list"
    return "other"


def _type(kinds: set[str]) -> pa.DataType | None:
    """The type of a column of such values; None for JSON text."""
    if not kinds:
        return pa.null()
    if kinds == {"str"}:
        return pa.string()
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    if kinds <= {"int", "float"}:
        return pa.float64()
    if "list" in kinds and kinds <= {"list", "str"}:
        return pa.list_(pa.string())
    return None
