from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacks import attack

from dataset_scripts.contexts import context_store
from dataset_scripts.contexts.context_store import ContextStore
from modeling_ita.context_builder import Alignment

OCR = {"model": "reader", "revision": "1", "settings": {"min_score": 0.5}}


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def said(*strings: str, identity: dict[str, Any] = OCR) -> Alignment:
    scores = [1 / (n + 1) for n in range(len(strings))]
    return Alignment(list(strings), scores, {**identity, "date": "2026-01-02T03:04:05+00:00"})


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.parquet"))


def test_what_was_added_is_looked_up_by_any_store_on_the_folder(tmp_path: Path) -> None:
    store = ContextStore(tmp_path)
    assert store.look_up(sha(1), "ocr", OCR) is None
    store.add("ocr", {sha(1): said("OPEN", "24 h"), sha(2): said()})
    for reader in (store, ContextStore(tmp_path), ContextStore(tmp_path, read_only=True)):
        assert reader.look_up(sha(1), "ocr", OCR) == said("OPEN", "24 h")
        assert reader.look_up(sha(2), "ocr", OCR) == said()
        assert reader.look_up(sha(3), "ocr", OCR) is None
        assert reader.rows("ocr", OCR) == 2
        assert reader.aligners() == [("ocr", OCR)]


@pytest.mark.parametrize(
    "other",
    [{"model": "reader2"}, {"revision": "2"}, {"settings": {"min_score": 0.6}}, {"settings": {}}],
)
def test_another_model_revision_or_setting_is_another_aligner(tmp_path: Path, other: dict[str, Any]) -> None:
    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a")})
    assert store.look_up(sha(1), "ocr", {**OCR, **other}) is None
    assert store.look_up(sha(1), "captions", OCR) is None
    store.add("ocr", {sha(1): said("b", identity={**OCR, **other})})
    assert store.look_up(sha(1), "ocr", OCR) == said("a")
    assert store.look_up(sha(1), "ocr", {**OCR, **other}) == said("b", identity={**OCR, **other})


def test_an_unknown_revision_stands_for_any(tmp_path: Path) -> None:
    anything = {**OCR, "revision": None}
    store = ContextStore(tmp_path)
    assert store.look_up(sha(1), "ocr", anything) is None
    store.add("ocr", {sha(1): said("a")})
    assert store.look_up(sha(1), "ocr", anything) == said("a")
    assert store.look_up(sha(1), "ocr", {**anything, "settings": {}}) is None


def test_any_revision_sees_what_is_added_later(tmp_path: Path) -> None:
    anything = {**OCR, "revision": None}
    store, other = ContextStore(tmp_path), ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a")})
    assert store.look_up(sha(1), "ocr", anything) == said("a")
    for number, revision in ((2, "2"), (3, None)):
        newer = said("b", identity={**OCR, "revision": revision})
        other.add("ocr", {sha(number): newer})
        assert store.look_up(sha(number), "ocr", anything) == newer


def test_a_damaged_shard_is_named_and_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a")})
    (path,) = shards(tmp_path)
    (path.parent / "mine.parquet").write_bytes(path.read_bytes())  # of somebody else
    path.write_bytes(b"PAR1")
    again = ContextStore(tmp_path)
    assert again.look_up(sha(1), "ocr", OCR) is None
    assert f"{path.name}.damaged is damaged (it is not the file that its name" in caplog.text
    assert again.damaged == [path.with_name(f"{path.name}.damaged")] == list(again.set_aside())
    assert not path.exists() and again.damaged[0].read_bytes() == b"PAR1"
    again.add("ocr", {sha(1): said("a")})  # in the same second: the same shard
    again.compact()
    for reader in (store, again, ContextStore(tmp_path)):
        assert reader.look_up(sha(1), "ocr", OCR) == said("a") and reader.rows("ocr", OCR) == 1


def test_no_flipped_bit_is_read() -> None:
    assert attack("bit_flips").attack(60) == []


def old_shard(folder: Path, table: pa.Table | None = None, rows: int | None = None) -> Path:
    """A shard as version 0.1 wrote it, with the content of the one that is there or another."""
    (path,) = shards(folder)
    table = pq.read_table(path) if table is None else table
    path.unlink()
    old = path.with_name(f"{table.num_rows if rows is None else rows:06d}-{'ab' * 16}.parquet")
    pq.write_table(table, old, compression="zstd")
    return old


def test_shards_of_version_0_1_are_read_and_get_a_checksum(tmp_path: Path) -> None:
    ContextStore(tmp_path).add("ocr", {sha(1): said("a"), sha(2): said()})
    old = old_shard(tmp_path)
    store = ContextStore(tmp_path)
    assert store.look_up(sha(1), "ocr", OCR) == said("a") and store.aligners() == [("ocr", OCR)]
    store.compact()
    (new,) = shards(tmp_path)
    assert not old.exists() and len(new.name.partition("-")[2]) == 40 + len(".parquet")
    for reader in (store, ContextStore(tmp_path)):
        assert reader.look_up(sha(1), "ocr", OCR) == said("a") and reader.rows("ocr", OCR) == 2


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("image_sha256", ["x" * 64], "an image's sha256 is none"),
        ("image_sha256", [None], "a value is missing"),
        ("scores", [[float("nan")]], "a score is not a number"),
        ("scores", [[]], "not as many scores as strings"),
        ("strings", [[None]], "a string is missing"),
        ("strings", None, "columns are not those of a store"),
        ("model", ["another"], "in the folder of another aligner"),
        ("settings", ["[" * 100_000], "in the folder of another aligner"),
    ],
)
def test_what_cannot_be_so_in_a_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, values: Any, problem: str
) -> None:
    ContextStore(tmp_path).add("ocr", {sha(1): said("a")})
    table = pq.read_table(shards(tmp_path)[0])
    place = table.schema.get_field_index(column)
    table = (
        table.drop_columns([column])
        if values is None
        else table.set_column(place, table.schema.field(place), pa.array([*values], table.schema.field(place).type))
    )
    old = old_shard(tmp_path, table)
    store = ContextStore(tmp_path)
    assert store.aligners() == [] or store.look_up(sha(1), "ocr", OCR) is None
    assert problem in caplog.text and not old.exists() and len(store.damaged) == 1


def test_a_shard_of_other_length_than_its_name_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ContextStore(tmp_path).add("ocr", {sha(1): said("a")})
    old_shard(tmp_path, rows=2)
    assert ContextStore(tmp_path).look_up(sha(1), "ocr", OCR) is None
    assert "it has 1 rows, and 2 by its name" in caplog.text


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the folder `store` be one that may only be read, from the call on; root may write to any real one."""

    def refusing(name: str) -> Callable[..., Any]:
        allowed = getattr(os, name)

        def refuse(path: Any, *others: Any, **options: Any) -> Any:
            if str(tmp_path / "store") in os.fspath(path):
                raise OSError(errno.EROFS, "Read-only file system", os.fspath(path))
            return allowed(path, *others, **options)

        return refuse

    def start() -> None:
        for name in ("mkdir", "rename", "replace", "unlink"):
            monkeypatch.setattr(os, name, refusing(name))

    return start


def test_a_store_that_cannot_be_written_is_read(
    tmp_path: Path, read_only: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    writer = ContextStore(tmp_path / "store")
    writer.add("ocr", {sha(1): said("a")})
    writer.add("ocr", {sha(2): said("b")})
    damaged = next(path for path in shards(tmp_path / "store") if sha(2) in str(pq.read_table(path)["image_sha256"]))
    damaged.write_bytes(b"")
    before = sorted((tmp_path / "store").rglob("*"))
    read_only()
    store = ContextStore(tmp_path / "store")
    assert store.look_up(sha(1), "ocr", OCR) == said("a") and store.look_up(sha(2), "ocr", OCR) is None
    for number in (2, 3):
        store.add("ocr", {sha(number): said("new")})
        assert store.look_up(sha(number), "ocr", OCR) == said("new")
    assert store.rows("ocr", OCR) == 3 and store.not_kept == 2 and store.damaged == [damaged]
    store.compact()
    assert caplog.text.count("can only be read") == 1 and caplog.text.count("is damaged") == 1
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_a_full_disk_names_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a")})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"ocr/reader-\w+/000001-\w+.parquet cannot be written: .*No space left"):
            store.add("ocr", {sha(2): said("b")})
    assert store.look_up(sha(2), "ocr", OCR) is None and store.look_up(sha(1), "ocr", OCR) == said("a")
    assert len(list(shards(tmp_path)[0].parent.iterdir())) == 1


def test_merging_into_a_shard_that_is_there_loses_nothing(tmp_path: Path) -> None:
    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a"), sha(2): said("b")})
    store.add("ocr", {sha(1): said("a")})
    store.compact()
    assert ContextStore(tmp_path).rows("ocr", OCR) == 2


def test_kinds_and_models_may_have_any_name(tmp_path: Path) -> None:
    odd = {"model": "../a b/ü:c", "revision": "refs/pr/1", "settings": {"languages": ["日本"]}}
    store = ContextStore(tmp_path / "store")
    store.add("../my kind", {sha(1): said("x", identity=odd)})
    assert ContextStore(tmp_path / "store").look_up(sha(1), "../my kind", odd) == said("x", identity=odd)
    assert ContextStore(tmp_path / "store").aligners() == [("../my kind", odd)]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_shards_open_with_datasets(tmp_path: Path) -> None:
    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("OPEN")})
    store.add("ocr", {sha(2): said()})
    files = [str(path) for path in shards(tmp_path)]
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["image_sha256"]) == sorted([sha(1), sha(2)])
    row = next(row for row in rows if row["image_sha256"] == sha(1))
    assert row["strings"] == ["OPEN"] and row["scores"] == [1.0] and row["model"] == "reader"
    assert row["settings"] == '{"min_score": 0.5}' and row["kind"] == "ocr"


def test_two_stores_see_each_others_rows(tmp_path: Path) -> None:
    first, second = ContextStore(tmp_path), ContextStore(tmp_path)
    for number in range(0, 100, 2):
        first.add("ocr", {sha(number): said(str(number))})
        assert second.look_up(sha(number), "ocr", OCR) == said(str(number))
        second.add("ocr", {sha(number + 1): said(str(number + 1))})
        assert first.look_up(sha(number + 1), "ocr", OCR) == said(str(number + 1))


def test_many_shards_are_merged_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_store, "SIZES", (16, 64))
    monkeypatch.setattr(context_store, "SMALL_SHARDS", 4)
    writer, reader = ContextStore(tmp_path), ContextStore(tmp_path)
    for start in range(0, 600, 3):
        writer.add("ocr", {sha(number): said(str(number)) for number in range(start, start + 3)})
        assert reader.look_up(sha(start), "ocr", OCR) == said(str(start))
    assert len(shards(tmp_path)) < 20
    writer.compact()
    assert sum(pq.read_metadata(path).num_rows for path in shards(tmp_path)) == 600
    assert all(int(path.name.partition("-")[0]) == pq.read_metadata(path).num_rows for path in shards(tmp_path))
    for store in (writer, reader, ContextStore(tmp_path)):  # the reader knew shards that are gone
        assert [store.look_up(sha(n), "ocr", OCR) for n in range(600)] == [said(str(n)) for n in range(600)]


def test_compacting_joins_the_shards_of_all_and_rows_that_stand_twice(tmp_path: Path) -> None:
    first, second = ContextStore(tmp_path), ContextStore(tmp_path)
    first.add("ocr", {sha(1): said("a"), sha(2): said("b")})
    second.add("ocr", {sha(2): said("b"), sha(3): said("c")})
    first.compact()
    (path,) = shards(tmp_path)
    assert sorted(pq.read_table(path)["image_sha256"].to_pylist()) == sorted([sha(1), sha(2), sha(3)])
    assert second.look_up(sha(1), "ocr", OCR) == said("a")
    before = path.read_bytes()
    first.compact()
    assert shards(tmp_path) == [path] and path.read_bytes() == before


def test_shards_that_somebody_removed_are_forgotten(tmp_path: Path) -> None:
    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a")})
    other = ContextStore(tmp_path)
    assert other.rows("ocr", OCR) == 1
    for path in shards(tmp_path):
        path.unlink()
    assert other.look_up(sha(1), "ocr", OCR) is None
    store.add("ocr", {sha(1): said("b")})
    assert other.look_up(sha(1), "ocr", OCR) == said("b")


def test_half_written_files_are_passed_over_and_cleared_away_in_the_end(tmp_path: Path) -> None:
    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a")})
    folder = shards(tmp_path)[0].parent
    fresh, old = folder / ".000008-ab.parquet.tmp", folder / ".000008-cd.parquet.tmp"
    for path in (fresh, old):
        path.write_bytes(b"PAR1 half")
    os.utime(old, (0, 0))
    again = ContextStore(tmp_path)
    assert again.look_up(sha(1), "ocr", OCR) == said("a")
    again.compact()
    assert fresh.exists() and not old.exists()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ContextStore(tmp_path)
    store.add("ocr", {sha(1): said("a")})

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(context_store.pq, "write_table", full)
        with pytest.raises(OSError, match="no space left"):
            store.add("ocr", {sha(2): said("b")})
    assert store.look_up(sha(2), "ocr", OCR) is None
    assert ContextStore(tmp_path).look_up(sha(1), "ocr", OCR) == said("a")


def test_a_store_to_be_read_only_is_not_written(tmp_path: Path) -> None:
    store = ContextStore(tmp_path / "store", read_only=True)
    for write in (lambda: store.add("ocr", {sha(1): said("a")}), store.compact):
        with pytest.raises(PermissionError, match="read only"):
            write()
    assert not (tmp_path / "store").exists()


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file is a file \(expected the folder"):
        ContextStore(tmp_path / "file")


def test_memory_for_look_ups_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_store, "MEMORY", 1)
    store = ContextStore(tmp_path)
    for number in range(8):
        store.add("ocr", {sha(number): said(str(number))})
    for number in (0, 5, 0, 7, 5):
        assert store.look_up(sha(number), "ocr", OCR) == said(str(number))


def test_threads_share_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_store, "SMALL_SHARDS", 4)
    store = ContextStore(tmp_path)
    errors: list[BaseException] = []

    def work(offset: int) -> None:
        try:
            for number in range(offset, 120, 4):
                store.add("ocr", {sha(number): said(str(number))})
                assert store.look_up(sha(number), "ocr", OCR) == said(str(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert ContextStore(tmp_path).rows("ocr", OCR) == 120


WRITER = """
import sys
from dataset_scripts.contexts import context_store
from modeling_ita.context_builder import Alignment
context_store.SMALL_SHARDS = 4
store = context_store.ContextStore(sys.argv[1])
origin = {"model": "reader", "revision": "1", "settings": {"min_score": 0.5}, "date": ""}
print("ready", flush=True)
for number in range(int(sys.argv[2]), 10**6, 2):
    store.add("ocr", {f"{number:064x}": Alignment([str(number)], [1.0], origin)})
    print(number, flush=True)
"""


def test_killed_writers_lose_what_was_in_flight_and_nothing_else(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(n)], stdout=subprocess.PIPE, text=True)
        for n in (0, 1)
    ]
    written: list[list[int]] = []
    for number, writer in enumerate(writers):
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        lines = [int(writer.stdout.readline()) for _ in range(20 + 7 * number)]
        writer.kill()
        written.append(lines + [int(line) for line in writer.stdout.read().split("\n")[:-1]])
    store = ContextStore(tmp_path)
    for numbers in written:
        for number in numbers:
            found = store.look_up(f"{number:064x}", "ocr", OCR)
            assert found is not None and found.strings == [str(number)]
    in_flight = store.rows("ocr", OCR) - sum(map(len, written))
    assert 0 <= in_flight <= len(writers)
    store.compact()
    assert all(pq.read_table(path).num_rows for path in shards(tmp_path))
