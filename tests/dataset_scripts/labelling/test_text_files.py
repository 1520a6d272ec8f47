"""Rows of CSV, TSV and JSON lines: Python's `csv` and `json` are the reference, and a broken row costs only itself."""

from __future__ import annotations

import csv
import io
import json
import random
from typing import Any

import pyarrow as pa
import pytest

from dataset_scripts.labelling import text_files
from dataset_scripts.labelling.text_files import (
    Row,
    TextIndex,
    csv_rows,
    index_csv,
    index_json,
    json_column,
    json_rows,
)

PIECES = [
    "Obama",
    " ",
    ",",
    "\t",
    '"',
    "\n",
    "\r\n",
    "",
    "ü",
    "😀",
    "\u2028",
    "\x85",
    "\x0c",
    "'",
    "\\",
    "{",
    "x" * 300,
]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "STEP", 3)


def buffered(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content), 64)  # type: ignore[arg-type]


def read_csv(content: bytes, delimiter: str = ",", encoding: str = "utf-8") -> tuple[TextIndex, list[Row]]:
    """The index and the rows; those read from each of its places are the same."""
    index = index_csv(buffered(content), "posts.csv", delimiter, encoding)
    found = list(csv_rows(buffered(content), len(index.columns), delimiter, encoding))
    assert len(found) == index.rows
    assert index.starts == [position for position, _ in found[:: text_files.STEP]]
    for n, start in enumerate(index.starts[1:], 1):
        file = buffered(content)
        file.seek(start)
        assert list(csv_rows(file, len(index.columns), delimiter, encoding, start)) == found[n * text_files.STEP :]
    return index, [row for _, row in found]


def read_json(content: bytes) -> tuple[TextIndex, list[Row]]:
    index = index_json(buffered(content), "utf-8")
    found = list(json_rows(buffered(content), "utf-8"))
    assert len(found) == index.rows
    for n, start in enumerate(index.starts[1:], 1):
        file = buffered(content)
        file.seek(start)
        assert list(json_rows(file, "utf-8", start)) == found[n * text_files.STEP :]
    return index, [row for _, row in found]


# --- CSV and TSV -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_csv_writes_is_read(delimiter: str, end: str) -> None:
    chance = random.Random(f"{delimiter}{end}")
    for case in range(40):
        columns = chance.randint(1, 4)
        rows = [
            ["".join(chance.choices(PIECES, k=chance.randint(0, 5))) for _ in range(columns)]
            for _ in range(chance.randint(0, 12))
        ]
        made = io.StringIO(newline="")
        names = [f"column {n}" for n in range(columns)]
        csv.writer(made, delimiter=delimiter, lineterminator=end).writerows([names, *rows])
        text = made.getvalue()
        if case % 3 == 1:
            text = text.removesuffix(end)
        content = text.encode()
        if case % 3 == 2:  # a byte order mark and blank lines
            content = b"\xef\xbb\xbf" + end.encode() + content + end.encode() * 3
        index, found = read_csv(content, delimiter)
        assert list(index.columns) == names
        assert found == [Row(row) for row in rows]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b"\r\n"])
def test_a_file_without_a_header_has_no_columns(content: bytes) -> None:
    assert read_csv(content) == (TextIndex({}, frozenset(), 0, []), [])


def test_a_header_and_no_row() -> None:
    for content in (b"id,text", b"id,text\n", b'"id","text"\r\n\r\n'):
        index, rows = read_csv(content)
        assert (list(index.columns), rows) == (["id", "text"], [])


def test_a_column_without_a_name_gets_the_one_of_pandas() -> None:
    index, rows = read_csv(b",text,\n0,a,\n")
    assert list(index.columns) == ["Unnamed: 0", "text", "Unnamed: 2"]
    assert rows == [Row(["0", "a", ""])]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"text,text\na,b\n", "the column 'text' is there twice"),
        (b",\na,b\n", "no column has a name"),
        (b'te"xt,"id\na,b\n', "a quotation mark is not closed"),
        (b"te\xffxt\na\n", "bytes that are not of the file's encoding"),
        (b"text\ra\rb\r", "a carriage return outside quotation marks"),
    ],
)
def test_a_header_that_names_no_columns(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=f"posts.csv, line 1: {problem}"):
        read_csv(content)


FAULTS = [
    ("1", "1 fields (expected 2)", ["1", None]),
    ("1,a,b", "3 fields (expected 2)", ["1", "a"]),
    ('1,"a', "a quotation mark is not closed", ["1", '"a']),
    ("1,a\rb", "a carriage return outside quotation marks", ["1", "a\rb"]),
    ("1,a\udcffb", "bytes that are not of the file's encoding (--encoding names another)", ["1", "a\ufffdb"]),
    ("1,a\udced\udca0\udcbd", "bytes that are not of the file's encoding (--encoding names another)", None),
]


@pytest.mark.parametrize(("line", "fault", "values"), FAULTS)
@pytest.mark.parametrize("place", [0, 1, 5, 12])
@pytest.mark.parametrize("others", [["7,plain"], ['7,"in, quotes"'], ['7,"two\nlines"']])
def test_a_malformed_row_costs_itself(
    line: str, fault: str, values: list[Any] | None, place: int, others: list[str]
) -> None:
    lines = others * 12
    lines.insert(place, line)
    content = "\n".join(["id,text", *lines]).encode("utf-8", "surrogateescape")
    _, rows = read_csv(content)
    whole = next(csv.reader(io.StringIO(others[0])))
    assert [row for n, row in enumerate(rows) if n != place] == [Row(whole)] * 12
    assert rows[place].fault == fault
    assert values is None or rows[place].values == values


def test_quotation_marks_that_are_not_closed_do_not_pair_up() -> None:
    _, rows = read_csv(b'id\ttext\n1\t"never closed\n2\tplain\n3\t"quoted" and more\n4\t"last\n5\tend\n', "\t")
    assert [row.values for row in rows] == [
        ["1", '"never closed'], ["2", "plain"], ["3", "quoted and more"], ["4", '"last'], ["5", "end"],
    ]  # fmt: skip
    assert [row.fault is None for row in rows] == [False, True, True, False, True]


def test_nul_and_other_control_characters_are_text() -> None:
    assert read_csv(b"text\na\x00b\x1b\x0b\n")[1] == [Row(["a\x00b\x1b\x0b"])]


def test_long_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_csv(b"text\n" + b"y" * 100_000 + b"\nz\n")[1] == [Row(["y" * 100_000]), Row(["z"])]
    monkeypatch.setattr(text_files, "MAX_LINE", 64)
    long = b"y" * 150
    _, rows = read_csv(
        b"id,text\n1," + long + b"\n2,b\n" + b'3,"' + long + b"\n4,d\n" + b'5,"e\n6,' + long + b"\n7,g\n8,h"
    )
    assert [row.values[0] for row in rows] == list("12345678")
    assert [row.fault is not None for row in rows] == [True, False, True, False, True, True, False, False]
    assert "longer than" in str(rows[0].fault)
    assert [row.values[1] for row in rows if not row.fault] == ["b", "d", "g", "h"]
    _, rows = read_csv(b'id,text\n1,"' + b"b\n,x" * 100 + b'"\n3,c\n')  # no record of so many lines is held
    assert rows[0].fault == "a quotation mark is not closed"
    assert rows[-1] == Row(["3", "c"])
    assert len(rows) == 102


def test_encodings() -> None:
    assert read_csv("text\nMünchen €".encode("cp1252"), encoding="cp1252")[1] == [Row(["München €"])]
    assert read_csv("text\n東京,".encode("shift_jis"), "\t", "shift_jis")[1] == [Row(["東京,"])]
    assert read_csv("text\nMünchen".encode("cp1252"))[1][0].fault is not None


def test_garbage_is_rows_with_faults_or_no_table() -> None:
    chance = random.Random(0)
    alphabet = [b'"', b",", b"\n", b"\r", b"\x00", b"a", b"\xff", b"\xc3\xa9", b"{", b"}", b'"a":', b" "]
    for _ in range(400):
        content = b"".join(chance.choices(alphabet, k=chance.randint(0, 60)))
        _, rows = read_csv(b"a,b\n" + content)
        assert all(row.fault or len(row.values) == 2 for row in rows)
        if b'"' not in content:
            assert len(rows) == sum(bool(line.strip(b"\r")) for line in content.split(b"\n"))
        try:
            read_csv(content)
        except ValueError as error:
            assert "posts.csv, line 1: " in str(error)
        _, objects = read_json(content)
        assert len(objects) == sum(bool(line.strip()) for line in content.split(b"\n"))


# --- JSON lines ------------------------------------------------------------------------------------------------------


def test_what_json_writes_is_read() -> None:
    chance = random.Random(0)
    for case in range(40):
        rows: list[dict[str, Any]] = [
            {
                "text": "".join(chance.choices(PIECES, k=chance.randint(0, 5))),
                "n": chance.choice([1, 2.5, None, [], {}]),
            }
            for _ in range(chance.randint(0, 12))
        ]
        end = chance.choice(["\n", "\r\n", "\n\n"])
        text = "".join(json.dumps(row, ensure_ascii=case % 2 == 0) + end for row in rows)
        content = text.removesuffix(end if case % 3 else "").encode()
        _, found = read_json(b"\xef\xbb\xbf" + content if case % 5 == 0 else content)
        assert found == [Row([row]) for row in rows]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"text": "a"', "the line is not JSON: "),
        (b"[1]", "the line is not a JSON object"),
        (b'"text"', "the line is not a JSON object"),
        (b"null", "the line is not a JSON object"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the line is not JSON: it is nested too deeply"),
        (b'{"n": ' + b"1" * 10_000 + b"}", "the line is not JSON: "),
        (b'{"text": "\xff"}', "bytes that are not of the file's encoding"),
        (b'{"text": "' + b"y" * 300_000 + b'"}', "the line is longer than"),
        (b'{"text": "a\x00b"}', "the line is not JSON: Invalid control character"),
    ],
    ids=["cut", "list", "string", "null", "deep", "digits", "encoding", "long", "nul"],
)
def test_a_malformed_line_costs_itself(line: bytes, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE", 2**18)
    _, rows = read_json(b'{"text": "a"}\n' * 4 + line + b'\n{"text": "b"}\n{"text": "c"}')
    assert [row.values for row in rows] == [[{"text": "a"}]] * 4 + [[None]] + [[{"text": "b"}], [{"text": "c"}]]
    assert [row.fault is None for row in rows] == [True] * 4 + [False, True, True]
    assert str(rows[4].fault).startswith(fault)
    assert "\n" not in str(rows[4].fault)


COLUMNS: list[tuple[list[Any], pa.DataType, list[Any]]] = [
    (["a", None], pa.string(), ["a", None]),
    ([None, None], pa.null(), [None, None]),
    ([True, None], pa.bool_(), [True, None]),
    ([1, -(2**63)], pa.int64(), [1, -(2**63)]),
    ([2**63, 1], pa.string(), ["9223372036854775808", "1"]),
    ([2**62 + 1, 0.5], pa.float64(), [float(2**62), 0.5]),
    ([["a"], [], None, "b"], pa.list_(pa.string()), [["a"], [], None, ["b"]]),
    ([["a"], [1]], pa.string(), ['["a"]', "[1]"]),
    ([{"é": 1}, None, "x"], pa.string(), ['{"é": 1}', None, '"x"']),
    ([True, 1], pa.string(), ["true", "1"]),
    (["\ud83d\ude00", "\ud83d", "a"], pa.string(), ["😀", "\ufffd", "a"]),
    ([["\ud83d"]], pa.list_(pa.string()), [["\ufffd"]]),
    ([{"a": "\ud83d"}], pa.string(), ['{"a": "\ufffd"}']),
]


@pytest.mark.parametrize(("values", "type_", "kept"), COLUMNS)
def test_types_of_json(values: list[Any], type_: pa.DataType, kept: list[Any]) -> None:
    lines = [json.dumps({"k": value}) for value in values] + ["{}", "nonsense"]
    index, rows = read_json("\n".join(lines).encode())
    assert index.columns == {"k": type_}
    column = json_column([(row.values[0] or {}).get("k") for row in rows], type_, "k" in index.as_json)
    assert column.type == type_
    assert column.to_pylist() == [*kept, None, None]


def test_keys_that_are_there_twice_or_hold_surrogates() -> None:
    index, rows = read_json(b'{"text": "a", "text": "b", "\\ud83d": 1}')
    assert index.columns == {"text": pa.string(), "\ufffd": pa.int64()}
    assert rows == [Row([{"text": "b", "\ufffd": 1}])]
