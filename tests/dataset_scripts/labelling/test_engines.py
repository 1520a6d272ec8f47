"""Where shards are labelled: processes and actors that are killed, and a row that kills its process."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from deadly_labeller import DeadlyLabeller
from label_jobs import content, job, make_model, make_posts, rows_of, run

from dataset_scripts import label
from dataset_scripts.labelling import engines
from dataset_scripts.labelling.columns import PostColumns
from dataset_scripts.labelling.shards import Output, Shard, ShardLabeller
from dataset_scripts.labelling.sources import open_files
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


def test_a_job_whose_processes_are_killed_goes_on(model: str, posts: Path, whole: Path, tmp_path: Path) -> None:
    arguments, out = job(posts, model, tmp_path, "out", "--num_workers", 2), tmp_path / "out"
    process = engines._context().Process(target=run, args=arguments)
    process.start()
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*"))) < 2 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.join()
    _, still = psutil.wait_procs(children, 20)  # they do not outlive it
    assert still == []
    assert 2 <= len(content(out)) < 8
    assert run(*job(posts, model, tmp_path)) == 0  # by any number of processes
    assert content(out) == content(whole)
    assert json.loads((out / "report.json").read_text())["image_states"]["read"] == 5


def test_a_process_that_dies_is_replaced(
    model: str, posts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = engines.in_processes

    def killing(work: Any, shards: Any, progress: Any, workers: int) -> Iterator[Any]:
        for n, counts in enumerate(original(work, shards, progress, workers - 1)):
            if n == 0:
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            yield counts

    monkeypatch.setattr(label, "in_processes", killing)
    assert run(*job(posts, model, tmp_path, "out", "--num_workers", 2)) == 0
    assert content(tmp_path / "out") == content(whole)


def test_a_row_that_kills_its_process_costs_that_row(model: str, posts: Path, tmp_path: Path) -> None:
    source = open_files([str(posts)])
    labeller = DeadlyLabeller(model, text_column="text", threads=1)
    columns = PostColumns("text", None, None, "id")
    work = ShardLabeller(source, labeller, columns, ["id", "text"], [], Output(str(tmp_path / "out")))
    deadly = next(row["id"] for row in csv.DictReader(posts.open()) if row["text"].count(" ") > 3)
    labeller.deadly = next(row["text"] for row in csv.DictReader(posts.open()) if row["id"] == deadly)
    counts = list(engines.in_processes(work, [Shard(0, 0, 6), Shard(1, 6, 12)], lambda rows, images: None, 1))
    assert sum(one["rows"] for one in counts) == 12
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"p{n}" for n in range(12)]
    assert {row["id"]: row["error"] for row in rows if row["error"]} == {
        deadly: "the process died while it labelled this row"
    }
    assert any(row["entities"] for row in rows)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of Ray on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_ray_completes_every_row_once_though_an_actor_is_killed(
    cluster: None, model: str, posts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = engines.on_ray
    killed = []

    def killing(*given: Any) -> Iterator[Any]:
        for counts in original(*given):
            if not killed:
                actors = [p for p in psutil.process_iter(["cmdline"]) if "RayShards" in " ".join(p.info["cmdline"])]
                killed.extend(actors[:1])
                actors[0].kill()
            yield counts

    monkeypatch.setattr(label, "on_ray", killing)
    assert run(*job(posts, model, tmp_path, "out", "--engine", "ray", "--num_workers", 2)) == 0
    assert killed
    assert content(tmp_path / "out") == content(whole)


def test_the_documented_lines_for_ray(
    cluster: None, model: str, posts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(label.__file__).parents[1] / "docs" / "guides" / "label-posts.md"
    [block] = [
        b for b in re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) if "ray.data" in b
    ]
    block = block.replace('"outputs/quickstart/model"', repr(model)).replace("concurrency=2", "concurrency=1")
    block = block.replace('"/data/photos"', '"/"')
    images = [str(posts.with_name(row["image"])) if row["image"] else None for row in csv.DictReader(posts.open())]
    table = pa.table({"text": [row["text"] for row in rows_of(whole)], "image": images})
    pq.write_table(table, tmp_path / "posts.parquet")
    here = {name: str(tmp_path / name) for name in ("posts.parquet", "with_entities")}
    for name, path in here.items():
        block = block.replace(f'"{name}"', repr(path))
    exec(compile(block, "label-posts.md", "exec"), {})
    rows = [row for file in (tmp_path / "with_entities").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    expected = {(row["text"], bool(row["image"])): row for row in rows_of(whole)}
    assert len(rows) == 60
    for row in rows:
        known = expected[row["text"], bool(row["image"])]
        assert (row["image_state"], row["error"]) == (known["image_state"], None)
        if not row["image"]:
            assert [e["text"] for e in row["entities"]] == [e["text"] for e in known["entities"]]
