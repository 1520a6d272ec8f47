"""Rows of files and data sets: every format and compression gives the same rows, in any range and any process."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_scripts.labelling import sources, text_files
from dataset_scripts.labelling.rows import Source
from dataset_scripts.labelling.sources import DatasetSource, FileSource, is_remote, open_files, spool

ROWS = [{"id": str(n), "text": f"post {n}, ü\n{'x' * (n % 7)}"} for n in range(50)]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sources, text_files):
        monkeypatch.setattr(module, "STEP", 4)
    monkeypatch.setattr(sources, "AT_ONCE", 3)


def rows_of(source: Source, start: int = 0, stop: int | None = None, size: int = 8) -> list[dict[str, Any]]:
    """The rows of a range; batches are full, whatever was read before."""
    stop = source.count if stop is None else stop
    batches = list(source.read(start, stop, source.schema.names, size))
    lengths = [len(batch.faults) for batch in batches]
    assert sum(lengths) == stop - start
    if isinstance(source, DatasetSource) or len(source.parts) == 1:  # type: ignore[attr-defined]
        assert all(length == size for length in lengths[:-1])
    for batch in batches:
        assert batch.table.schema == source.schema
        assert len(batch.table) == len(batch.faults)
    return [row for batch in batches for row in batch.table.to_pylist()]


def as_csv(rows: Sequence[dict[str, Any]], delimiter: str = ",") -> bytes:
    made = io.StringIO(newline="")
    writer = csv.DictWriter(made, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return made.getvalue().encode()


def as_json(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), made, row_group_size=7)
    return made.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "a.csv": lambda: as_csv(ROWS),
    "a.TSV": lambda: as_csv(ROWS, "\t"),
    "a.tab": lambda: as_csv(ROWS, "\t"),
    "a.jsonl": lambda: as_json(ROWS),
    "a.ndjson": lambda: as_json(ROWS),
    "a.parquet": lambda: as_parquet(ROWS),
    "a.csv.gz": lambda: gzip.compress(as_csv(ROWS)[:300]) + gzip.compress(as_csv(ROWS)[300:]),
    "a.jsonl.zst": lambda: pa.compress(as_json(ROWS), "zstd", asbytes=True),
    "a.tsv.bz2": lambda: bz2.compress(as_csv(ROWS, "\t")),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_in_any_range(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name]())
    source = open_files([str(tmp_path / name)])
    assert (source.count, source.schema.names, source.notes) == (50, ["id", "text"], [])
    assert rows_of(source) == ROWS
    check_ranges(source)
    assert open_files([str(tmp_path / name)], limit=9).count == 9
    assert rows_of(open_files([str(tmp_path / name)], limit=9)) == ROWS[:9]


def check_ranges(source: Source, expected: Sequence[dict[str, Any]] = ROWS) -> None:
    """Forward, backward, at random, broken off, interleaved and from pickled copies: always the same rows."""
    chance = random.Random(0)
    size = source.count
    ranges = [(start, min(start + 6, size)) for start in range(0, size, 6)]
    ranges += ranges[::-1] + [tuple(sorted(chance.choices(range(size + 1), k=2))) for _ in range(30)]  # type: ignore[misc]
    for start, stop in ranges:
        assert rows_of(source, start, stop, chance.choice([1, 4, 100])) == expected[start:stop]
    names = source.schema.names
    next(source.read(3, size, names, 2))
    first, second = source.read(0, size, names, 5), pickle.loads(pickle.dumps(source)).read(10, size, names, 5)
    third = source.read(10, size, names, 5)
    found: list[list[dict[str, Any]]] = [[], [], []]
    for _ in range(4):
        for rows, stream in zip(found, (first, second, third), strict=True):
            rows += next(stream).table.to_pylist()
    assert found == [list(expected[:20]), list(expected[10:30]), list(expected[10:30])]
    only = [batch.table.column_names for batch in source.read(0, 5, names[1:2], 5)]
    assert only == [names[1:2]]
    assert rows_of(source, 5, 9) == expected[5:9]


def test_parquet_is_read_once_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(ROWS))
    source, opened = open_files([str(tmp_path / "a.parquet")]), []
    original = sources._parquet_file
    monkeypatch.setattr(sources, "_parquet_file", lambda *given: opened.append(given) or original(*given))
    assert [row for start in range(0, 50, 5) for row in rows_of(source, start, start + 5)] == ROWS
    assert len(opened) == 1


def test_files_of_other_columns(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("id,text\n1,a\n2,b\n")
    (tmp_path / "2.csv").write_text("text,image,id\nc,c.png,3\n")
    (tmp_path / "3.tsv").write_text("")
    (tmp_path / "4.jsonl").write_text('{"image": null, "likes": 1}\nno json\n{"image": null, "likes": 1.5}\n')
    (tmp_path / "5.jsonl").write_text('{"likes": null}\n')
    pq.write_table(pa.table({"other": [1, 2]}), tmp_path / "6.parquet")
    (tmp_path / "7.csv").write_text("id\n")
    (tmp_path / "notes.txt").write_text("no table")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "8.csv").write_text("id\n9\n")
    source = open_files([str(tmp_path)])
    assert source.schema == pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("image", pa.string()),
            ("likes", pa.float64()),
            ("other", pa.int64()),
        ]
    )
    assert source.notes == [f"{tmp_path / name} is empty" for name in ("3.tsv", "7.csv")]
    assert [tuple(row.values()) for row in rows_of(source)] == [
        ("1", "a", None, None, None), ("2", "b", None, None, None), ("3", "c", "c.png", None, None),
        (None, None, None, 1.0, None), (None, None, None, None, None), (None, None, None, 1.5, None),
        (None, None, None, None, None), (None, None, None, None, 1), (None, None, None, None, 2),
    ]  # fmt: skip
    batches = list(source.read(0, source.count, ["text", "id"], 2))
    assert [fault is None for batch in batches for fault in batch.faults] == [True] * 4 + [False] + [True] * 4
    assert {batch.folder for batch in batches} == {str(tmp_path)}
    assert [batch.table.column_names for batch in batches] == [["text", "id"]] * len(batches)
    assert rows_of(open_files([f"{tmp_path}/[12].csv"])) == rows_of(
        open_files([f"{tmp_path}/1.csv", f"{tmp_path}/2.csv"])
    )
    assert rows_of(pickle.loads(pickle.dumps(source)), 2, 5) == rows_of(source, 2, 5)


def test_only_one_file_stays_open(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n:02d}.csv").write_text("id\n1\n2\n3\n")
    source, before = open_files([str(tmp_path)]), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc") else 0
    for start in range(0, 90, 3):
        list(source.read(start + 1, start + 2, ["id"], 2))
    assert sum("_stream" in vars(part) for part in source.parts) <= 1
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_what_json_holds_is_labelled_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ["a", "b"]}\n{"text": 1}\n{}\n{"text": "c"}\n')
    batch = next(open_files([str(tmp_path / "a.jsonl")]).read(0, 4, ["text"], 4))
    assert batch.values("text") == [["a", "b"], 1, None, "c"]
    assert batch.table["text"].to_pylist() == ['["a", "b"]', "1", None, '"c"']


def test_pictures_in_parquet(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {
            "image": {"bytes": bytes([n]), "path": None},
            "images": [{"bytes": b"a", "path": f"{n}"}] * (n % 3),
            "text": "a",
        }
        for n in range(20)
    ]
    schema = pa.schema([("image", struct), ("images", pa.list_(struct)), ("text", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet", row_group_size=6)
    source = open_files([str(tmp_path / "a.parquet")])
    assert source.schema == schema
    assert rows_of(source, 4, 15) == rows[4:15]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv.gz", gzip.compress(os.urandom(5000))[:3000], r"a\.csv\.gz cannot be unpacked: Truncated"),
        ("a.jsonl.zst", b"no zstd at all", r"a\.jsonl\.zst cannot be unpacked"),
        ("a.parquet", b"no parquet", r"a\.parquet is not a Parquet file"),
        ("a.parquet", as_parquet(ROWS)[:-9], r"a\.parquet is not a Parquet file"),
        ("a.txt", b"text\n", r"a\.txt ends in no known suffix \(expected .*\.jsonl"),
        ("a.csv", b"", r"a\.csv: there are no columns"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), r"a\.csv\.gz: there are no columns"),
        ("a.json", b"[1,\n2]", r"a\.json: no line is a JSON object"),
    ],
)  # fmt: skip
def test_files_that_are_no_table(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        open_files([str(tmp_path / name)])


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for given in (tmp_path / "none.csv", tmp_path, tmp_path / "*.csv", "memory://none-of-these/*.csv"):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            open_files([str(given)])
    (tmp_path / "a.csv").write_text("id\n1\n")
    (tmp_path / "b.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"'id' is int64 in .*b\.jsonl and string in a file before it"):
        open_files([str(tmp_path)])
    for encoding in ("utf-16", "none", "hex"):
        with pytest.raises(ValueError, match=f"encoding '{encoding}' is none that contains ASCII"):
            open_files([str(tmp_path / "a.csv")], encoding)


def test_other_file_systems() -> None:
    fs = fsspec.filesystem("memory")
    for name in FILES:
        fs.pipe_file(f"/posts-of-test/deep/{name.lower()}", FILES[name]())
    fs.pipe_file("/posts-of-test/.job/part.json", b"{}")
    try:
        for name in FILES:
            source = open_files([f"memory://posts-of-test/deep/{name.lower()}"])
            check_ranges(source)
            assert next(source.read(0, 1, ["text"], 1)).folder == "memory://posts-of-test/deep"
            before = source.fingerprint()
            fs.pipe_file(f"/posts-of-test/deep/{name.lower()}", FILES[name]())
            assert open_files([f"memory://posts-of-test/deep/{name.lower()}"]).fingerprint() != before
        for given in ("memory://posts-of-test", "memory://posts-of-test/", "memory://posts-of-test/deep/a.*"):
            parts = open_files([given]).parts
            assert [part.url for part in parts] == [
                f"memory://posts-of-test/deep/{n}" for n in sorted(map(str.lower, FILES))
            ]
        fs.pipe_file("/of-test.csv", b"id\n1\n")
        assert open_files(["memory://of-test.csv"]).parts[0].folder == "memory://"
    finally:
        fs.rm("/posts-of-test", recursive=True)
        fs.rm("/of-test.csv")


def test_a_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id\n1\n")
    first, digest = open_files([str(file)]).fingerprint(), open_files([str(file)]).digest()
    assert first == open_files([str(file)]).fingerprint() == json.loads(json.dumps(first))
    os.utime(file, (1, 1))
    assert open_files([str(file)]).fingerprint() != first
    assert open_files([str(file)]).digest() == digest
    file.write_text("id\n2\n")
    assert open_files([str(file)]).digest() != digest
    assert open_files([str(file)], limit=0).fingerprint() != open_files([str(file)]).fingerprint()


def test_standard_input_is_kept_in_a_file(tmp_path: Path) -> None:
    spool(io.BytesIO(as_json(ROWS)), tmp_path / "in.jsonl")
    source = open_files([str(tmp_path / "in.jsonl")])
    source.parts[0].base = "/elsewhere"
    assert rows_of(source) == ROWS
    assert next(source.read(0, 1, ["id"], 1)).folder == "/elsewhere"
    assert [is_remote(url) for url in ("s3://a/b", "a/b", "C:/a", "/a://b")] == [True, False, False, False]


# --- data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["parquet", "csv", "jsonl", "saved", "saved splits"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A data set, as files or as `save_to_disk` writes it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = datasets.Dataset.from_list(ROWS)
    place = tmp_path / "set"
    if request.param == "saved":
        data.save_to_disk(place)
    elif request.param == "saved splits":
        datasets.DatasetDict({"test": data, "train": data.select([0])}).save_to_disk(place)
    else:
        place.mkdir()
        write = {"parquet": data.to_parquet, "csv": data.to_csv, "jsonl": data.to_json}[request.param]
        write(str(place / f"test.{request.param}"))
    yield str(place)


def test_data_sets(folder: str) -> None:
    source = DatasetSource(folder, None, "test")
    assert source.count == 50
    expected = rows_of(source)
    assert [str(row["id"]) for row in expected] == [row["id"] for row in ROWS]
    assert [row["text"] for row in expected] == [row["text"] for row in ROWS]
    check_ranges(source, expected)
    limited = DatasetSource(folder, None, "test", limit=7)
    assert rows_of(limited) == expected[:7]
    assert limited.fingerprint() != source.fingerprint() == DatasetSource(folder, None, "test").fingerprint()


def test_data_sets_that_are_not_there(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "test.parquet"))
    for place, split in ((str(tmp_path), "validation"), (str(tmp_path / "none"), "test")):
        with pytest.raises(ValueError, match=f"the data set '{place}' cannot be read: "):
            DatasetSource(place, None, split)


def test_pictures_of_data_sets_are_not_decoded(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = datasets.Features({"image": datasets.Image(), "images": datasets.List(datasets.Image())})
    damaged = {"bytes": b"no image", "path": "a.png"}
    rows = {"image": [damaged, None], "images": [[damaged, damaged], []]}
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "train.parquet"))
    source = DatasetSource(str(tmp_path), None, "train")
    assert source.schema == pa.schema([("image", struct), ("images", pa.list_(struct))])
    assert rows_of(source) == [{"image": damaged, "images": [damaged] * 2}, {"image": None, "images": []}]


def test_a_data_set_that_ends_early(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "train.parquet"))
    source = DatasetSource(str(tmp_path), None, "train")
    source.count = 60
    with pytest.raises(ValueError, match=r"ends at row 50 \(expected 60\)"):
        rows_of(source)
    assert isinstance(open_files([str(tmp_path)]), FileSource)
