"""Rows as they are read: a batch of them, what gives them, and a stream from which ranges are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa


@dataclass
class Rows:
    """Rows read from a source.

    Attributes:
        table: the rows.
        faults: what is wrong with each of them, None where nothing is.
        folder: where relative paths of images lead; None if they lead nowhere.
        raw: by column, the values as they were, where they differ from those of the table.
    """

    table: pa.Table
    faults: list[str | None]
    folder: str | None = None
    raw: dict[str, list[Any]] = field(default_factory=dict)

    def values(self, column: str) -> list[Any]:
        """The values of a column."""
        return self.raw[column] if column in self.raw else self.table[column].to_pylist()


class Source(Protocol):
    """Rows that are read in any range, by any process: a source can be pickled.

    Attributes:
        schema: the columns.
        count: the number of rows.
        notes: what the user should know: files that are empty.
    """

    schema: pa.Schema
    count: int
    notes: list[str]

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the rows, as JSON values: their files with sizes and dates."""
        ...

    def read(self, start: int, stop: int, columns: Sequence[str], batch_size: int) -> Iterator[Rows]:
        """Yields the rows from `start` up to `stop`, at most `batch_size` at a time.

        Args:
            start: the first row.
            stop: one past the last row.
            columns: the columns that are needed.
            batch_size: maximum number of rows of a batch.
        """
        ...


class RowStream:
    """Tables, or lists of rows, that follow one another, from which rows are taken in ascending order.

    Args:
        pieces: the tables or lists.
        place: the number of their first row.
        columns: the columns that they have.
    """

    def __init__(self, pieces: Iterator[Any], place: int = 0, columns: Sequence[str] = ()) -> None:
        self._pieces = pieces
        self._left: Any = None
        self.place, self.columns = place, columns

    def take(self, start: int, stop: int, most: int) -> Iterator[Any]:
        """Yields the rows from `start` up to `stop`, `most` at a time, wherever the pieces end.

        Those before `start` are passed over.
        """
        held: list[Any] = []
        count = 0
        while self.place < stop:
            piece = next(self._pieces, None) if self._left is None else self._left
            if piece is None:
                break
            first = min(max(start - self.place, 0), len(piece))
            last = min(len(piece), first + most - count, stop - self.place)
            self._left = piece[last:] if last < len(piece) else None
            self.place += last
            if first < last:
                held.append(piece[first:last])
                count += last - first
            if count == most:
                yield joined(held)
                held, count = [], 0
        if held:
            yield joined(held)

    def close(self) -> None:
        """Close the file."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


def joined(pieces: list[Any]) -> Any:
    """Tables, or lists, as one."""
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], pa.Table):
        return pa.concat_tables(pieces, promote_options="permissive")
    return [row for piece in pieces for row in piece]


def widened(table: pa.Table, schema: pa.Schema, rows: int) -> pa.Table:
    """The table with all columns of the schema and their types; a column that it lacks is null."""
    columns = []
    for field_ in schema:
        column = table[field_.name] if field_.name in table.column_names else pa.nulls(rows, pa.null())
        columns.append(column if column.type == field_.type else column.cast(field_.type, safe=False))
    return pa.table(columns, schema=schema)
