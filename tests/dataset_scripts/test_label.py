"""`ita-mner label`: every row comes out, in order, however the job is run, stopped and taken up again."""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from label_jobs import content, job, make_model, make_posts, rows_of, run

from dataset_scripts import label
from dataset_scripts.labelling import engines
from hub_card.predict import load
from modeling_ita import ItaForTokenClassification, ItaProcessor


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> str:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", tiny_model, tiny_processor)


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_posts(tmp_path_factory.mktemp("posts"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: str, posts: Path) -> Path:
    """The output of a job that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(*job(posts, model, folder)) == 0
    return folder / "out"


# --- what comes out --------------------------------------------------------------------------------------------------


def test_every_row_comes_out_in_order_as_the_pipeline_labels_it(whole: Path, model: str, posts: Path) -> None:
    rows = rows_of(whole)
    given = list(csv.DictReader(posts.open(encoding="utf-8")))
    assert [{name: row[name] for name in given[0]} for row in rows] == given
    pipe = load(model, "cpu")
    inputs = [
        {"text": row["text"], **({"image": str(posts.with_name(row["image"]))} if row["image"] else {})}
        for row in given
    ]
    for row, expected in zip(rows, pipe(inputs), strict=True):
        found = [{"entity_group": e["type"], "word": e["text"], "start": e["start"], "end": e["end"]}
                 for e in row["entities"]]  # fmt: skip
        assert found == [{key: value for key, value in e.items() if key != "score"} for e in expected]
        assert [e["score"] for e in row["entities"]] == pytest.approx([e["score"] for e in expected], abs=1e-5)
        assert row["image_state"] == ("read" if row["image"] else "none")
        assert row["error"] is None
    assert any(row["entities"] for row in rows)
    assert len(list(whole.glob("part-*"))) == 8
    assert len(load_dataset("parquet", data_files=str(whole / "*.parquet"), split="train")) == 60


def test_the_report(whole: Path, capsys: pytest.CaptureFixture[str], model: str, posts: Path, tmp_path: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert report["rows"] == 60 and report["failed"] == 0 and report["share_read"] == 1.0
    assert report["image_states"] == {
        "none": 55, "read": 5, "stored": 0, "skipped": 0, "missing": 0, "unreadable": 0, "blank": 0,
    }  # fmt: skip
    assert report["images_read"] == 4  # the picture of two posts is read once
    rows = rows_of(whole)
    by_type = [e["type"] for row in rows for e in row["entities"]]
    assert report["entities"] == {kind: by_type.count(kind) for kind in sorted(set(by_type))}
    assert report["cost"]["per_post"] > 0 and report["cost"]["per_image"] > 0
    before = content(whole), [file.stat().st_mtime_ns for file in sorted(whole.glob("part-*"))]
    assert run(*job(posts, model, whole.parent)) == 0
    said = capsys.readouterr()
    assert "nothing was left to do" in said.out and "text: the column 'text' (a guess" in said.err
    assert before == (content(whole), [file.stat().st_mtime_ns for file in sorted(whole.glob("part-*"))])


def test_json_lines_from_standard_input(
    model: str, posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"words": ["Phoenix", "tonight"], "id": 1, "place": {"x": 1}}, {"words": None, "id": 2}, "x"]
    text = "\n".join(json.dumps(line) for line in lines)
    arguments = ["-", "--model", model, "--output", tmp_path / "out", "--format", "jsonl", "--return_context"]
    for _ in range(2):  # the second time nothing is left to do
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run(*arguments) == 1  # finished with findings
    rows = [json.loads(line) for line in (tmp_path / "out" / "part-00000.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [1, 2, None]
    assert rows[0]["words"] == ["Phoenix", "tonight"] and json.loads(rows[0]["place"]) == {"x": 1}
    assert [row["error"] for row in rows] == [
        None, "the post has no text (None)", "the line is not a JSON object (expected {…})",
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "2 rows were not labelled" in said and "row 1 (2): the post has no text" in said
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"words": "other"}')))
    assert run(*arguments) == 2
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_bytes_of_pictures_are_written_only_if_asked_for(model: str, posts: Path, tmp_path: Path) -> None:
    picture = posts.with_name("0.png").read_bytes()
    table = pa.table({
        "text": ["Phoenix", "Obama", "Paris"],
        "image": [{"bytes": picture, "path": "0.png"}, None, {"bytes": b"garbage", "path": None}],
        "raw": [picture, b"", None],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "posts.parquet")
    arguments = [tmp_path / "posts.parquet", "--model", model, "--store", "none"]
    assert run(*arguments, "--output", tmp_path / "without") == 0
    rows = rows_of(tmp_path / "without")
    assert "raw" not in rows[0]
    assert [row["image"] for row in rows] == [{"bytes": None, "path": "0.png"}, None, {"bytes": None, "path": None}]
    assert [row["image_state"] for row in rows] == ["read", "none", "unreadable"]
    assert run(*arguments, "--output", tmp_path / "with", "--columns", "raw", "image") == 0
    assert [row["raw"] for row in rows_of(tmp_path / "with")] == [picture, b"", None]
    assert list(rows_of(tmp_path / "with")[0]) == ["raw", "image", "entities", "image_state", "error"]


def test_any_file_system(model: str, posts: Path, whole: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in posts.parent.iterdir():
        memory.put_file(str(file), f"/in/{file.name}")
    arguments = ["memory://in/*.csv", "--model", model, "--output", "memory://out", "--rows_per_shard", 8]
    assert run(*arguments, "--store", "none") == 0
    found = {file.rpartition("/")[2]: memory.cat_file(file) for file in memory.glob("/out/part-*.parquet")}
    assert found == content(whole)
    assert json.loads(memory.cat_file("/out/report.json"))["rows"] == 60
    memory.rm("/out", recursive=True)
    memory.rm("/in", recursive=True)


def test_a_data_set(model: str, posts: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_bytes(posts.read_bytes())
    out = tmp_path / "out"
    arguments = ["--dataset", folder, "--model", model, "--output", out, "--images_dir", posts.parent]
    assert run(*arguments, "--store", "none", "--limit", 20) == 1  # to datasets, no text is None
    rows = rows_of(out)
    assert [n for n, row in enumerate(rows) if row["error"]] == [0, 9, 18]
    assert [row["id"] for row in rows] == [f"p{n}" for n in range(20)]
    assert [[e["text"] for e in row["entities"]] for row in rows] == [
        [e["text"] for e in row["entities"]] for row in rows_of(whole)[:20]
    ]


def test_a_data_set_of_pictures(model: str, posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes(posts.with_name(name).read_bytes())
    lines = [{"file_name": name, "text": "Phoenix tonight"} for name in ("0.png", "1.png")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    arguments = ["--dataset", tmp_path / "set", "--model", model, "--store", "none"]
    assert run(*arguments, "--output", tmp_path / "out", "--return_context") == 0
    rows = rows_of(tmp_path / "out")
    assert [row["image_state"] for row in rows] == ["read", "read"]
    assert all(row["context"]["ocr"] for row in rows)
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    arguments[1] = tmp_path / "zipped"
    assert run(*arguments, "--output", tmp_path / "again") == 0
    assert [row["image_state"] for row in rows_of(tmp_path / "again")] == ["read", "read"]


# --- what decides about pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [0.0, 0.9, 1.0])
def test_the_gate_of_the_checkpoint(
    gate: float, model: str, posts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gated = tmp_path / "model"
    gated.mkdir()
    for file in Path(model).iterdir():
        (gated / file.name).write_bytes(file.read_bytes())
    config = json.loads((Path(model) / "config.json").read_text())
    (gated / "config.json").write_text(json.dumps(config | {"image_gate": gate}))
    assert run(*job(posts, str(gated), tmp_path, "unsure", "--read_images", "unsure")) == 0
    rows = rows_of(tmp_path / "unsure")
    states = [row["image_state"] for row in rows if row["image"] and row["text"]]
    pictured = [
        {"text": row["text"], "image": str(posts.with_name(row["image"]))}
        for row in rows
        if row["image"] and row["text"]
    ]
    expected = load(str(gated), "cpu")(pictured, read_images="unsure", return_image_state=True)
    assert states == [result["image_state"] for result in expected]
    if gate in (0.0, 1.0):
        assert set(states) == ({"skipped"} if gate else {"read"})
        capsys.readouterr()
        assert run(*job(posts, str(gated), tmp_path, "always")) == 0
        said = capsys.readouterr().err
        assert ("as good without the pictures" in said) == (gate == 1.0)
    assert run(*job(posts, str(gated), tmp_path, "never", "--read_images", "never")) == 0
    assert {row["image_state"] for row in rows_of(tmp_path / "never")} == {"none", "skipped"}
    assert not (tmp_path / "never-store").exists()


def test_a_checkpoint_without_a_gate(model: str, posts: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(*job(posts, model, tmp_path, "out", "--read_images", "unsure")) == 2
    assert "this checkpoint has none: pass image_gate" in capsys.readouterr().err
    assert run(*job(posts, model, tmp_path, "out", "--read_images", "unsure", "--overwrite", "--image_gate", "1")) == 0


# --- stopped, and taken up again -------------------------------------------------------------------------------------


def test_an_interrupted_job_goes_on(
    model: str, posts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = engines.in_this_process

    def stopped(work: Any, shards: Any, progress: Any) -> Iterator[Any]:
        for n, counts in enumerate(original(work, shards, progress)):
            if n == 3:
                raise KeyboardInterrupt
            yield counts

    monkeypatch.setattr(label, "in_this_process", stopped)
    assert run(*job(posts, model, tmp_path)) == 130
    monkeypatch.undo()
    out = tmp_path / "out"
    there = {name: (out / name).stat().st_mtime_ns for name in content(out)}
    assert len(there) == 4 and not (out / "report.json").exists()
    assert run(*job(posts, model, tmp_path)) == 0
    assert content(out) == content(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there
    report = json.loads((out / "report.json").read_text())
    assert report["images_read"] == 4 and report["cost"]["rows"] == 28


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--min_score", "0.5"], "settings min_score was 0.0 and is 0.5"),
        (["--limit", "3"], "rows was 60 and is 3"),
        (["--read_images", "never"], "read_images was 'always' and is 'never'"),
        (["--columns", "id"], "settings written was"),
    ],
)
def test_another_job_into_the_same_folder_is_refused(
    more: list[str], said: str, whole: Path, model: str, posts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(whole)
    assert run(*job(posts, model, whole.parent, "out", *more)) == 2
    error = capsys.readouterr().err
    assert said in error and "--overwrite" in error
    assert content(whole) == before


def test_another_input_or_model_is_refused_or_overwrites(
    model: str, posts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "posts.csv"
    mine.write_text("text\nPhoenix\nObama\n")
    assert run(*job(mine, model, tmp_path)) == 0
    mine.write_text("text\nPhoenix\nParis\nObama\n")
    assert run(*job(mine, model, tmp_path)) == 2
    assert "input files 1 bytes was 19 and is 25" in capsys.readouterr().err
    assert run(*job(mine, model, tmp_path, "out", "--overwrite")) == 0
    assert len(rows_of(tmp_path / "out")) == 3
    other = tmp_path / "model"
    other.mkdir()
    for file in Path(model).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert run(*job(mine, str(other), tmp_path)) == 2
    assert "model files config.json was" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    assert run(mine, "--model", model, "--output", tmp_path / "full") == 2
    assert "holds thesis.doc" in capsys.readouterr().err


# --- misuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--text_column", "tweet"], "there is no column 'tweet' (the columns are id (string), text (string), image"),
        (["--columns", "id", "none"], "--columns names 'none', which is no column"),
        (["--num_workers", "0"], "--num_workers is 0 (expected 1 or more)"),
        (["--min_score", "2"], "--min_score is 2.0 (expected a probability)"),
        (["--encoding", "utf-16"], "encoding 'utf-16' is none that contains ASCII"),
        (["--dataset", "x"], "what is to be labelled?"),
        (["--model", "no/model"], "no/model"),
    ],
)
def test_misuse_is_one_line(
    more: list[str], said: str, model: str, posts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*job(posts, model, tmp_path, "out", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not list((tmp_path / "out").glob("part-*"))


def test_inputs_that_cannot_be_read(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("text,entities\n")
    (tmp_path / "posts.doc").touch()
    out = ["--model", model, "--output", tmp_path / "out"]
    for name, said in (
        ("none.csv", "there is no such file"),
        ("empty.csv", "there are no columns (empty)"),
        ("posts.doc", "ends in no known suffix"),
        ("header.csv", "has a column 'entities' already"),
    ):
        assert run(tmp_path / name, *out) == 2
        assert said in capsys.readouterr().err
    assert run(tmp_path / "header.csv", *out, "--columns", "text") == 0  # no rows are no fault
    assert rows_of(tmp_path / "out") == []
    assert pq.read_schema(tmp_path / "out" / "part-00000.parquet").names == [
        "text", "entities", "image_state", "error",
    ]  # fmt: skip
