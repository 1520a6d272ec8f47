"""`PostLabeller`: every kind of batch, every kind of fault, and no row costs another."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from label_models import SizeReader, export_reading, plain, sized, use, values

from dataset_scripts.labelling.labeller import ENTITY, PostLabeller
from hub_card.hub.exported_folder import export_model
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor

POSTS = ["Phoenix Suns tonight", "Obama in Paris", "", "a red car at the stadium", "NBA London"]


@pytest.fixture(scope="module")
def model(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return str(export_model(tiny_model, tiny_processor, tmp_path_factory.mktemp("label") / "model"))


@pytest.fixture(scope="module")
def reading(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A model that names a way to read pictures."""
    return export_reading(tiny_model, tiny_processor, tmp_path_factory.mktemp("label") / "reading")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> SizeReader:
    """What reads pictures for every pipeline."""
    return use(SizeReader(), monkeypatch)


# --- kinds of batches ------------------------------------------------------------------------------------------------


def test_a_dictionary_of_lists(model: str) -> None:
    labeller = PostLabeller(model)
    batch = {"id": [3, 1, 2, 0, 4], "text": POSTS, "caption": [None] * 5}
    found = labeller(batch)
    assert list(found) == ["id", "text", "caption", "entities", "image_state", "error"]
    assert values(found["entities"]) == plain(labeller.pipe, POSTS)
    assert sum(map(len, found["entities"])) > 3
    assert found["image_state"] == ["none"] * 5
    assert found["error"] == [None] * 5
    assert list(batch) == ["id", "text", "caption"]
    assert labeller({"text": []}) == {"text": [], "entities": [], "image_state": [], "error": []}
    words = [["Phoenix", "Suns"], [], ["Obama"]]
    found = PostLabeller(model)({"n": [1, 2, 3], "tokens": words})
    assert values(found["entities"]) == plain(labeller.pipe, words, is_split_into_words=True)
    for entities, row in zip(found["entities"], words, strict=True):
        assert all(" ".join(row)[entity["start"] : entity["end"]] == entity["text"] for entity in entities)


def test_tables_of_arrow(model: str) -> None:
    labeller = PostLabeller(model, return_context=True, context_column="given")
    table = pa.table(
        {"text": POSTS, "given": ['{"ocr": ["Obama 40 stadium"]}', None, "", None, None], "error": [1] * 5}
    )
    found = labeller(table)
    assert found.column_names == ["text", "given", "error", "entities", "image_state", "context"]
    assert found.schema.field("entities").type == pa.list_(ENTITY)
    assert found["error"].to_pylist() == [None] * 5
    assert found["context"].to_pylist()[0]["ocr"] == ["Obama 40 stadium"]
    assert found["context"].to_pylist()[1:] == [None] * 4
    assert values(found["entities"].to_pylist())[1:] == plain(labeller.pipe, POSTS[1:])
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert labeller(chunked).to_pylist() == found.to_pylist()
    assert labeller(table.to_batches()[0]).to_pylist() == found.to_pylist()
    empty = labeller(table.slice(0, 0))
    assert (len(empty), empty.schema) == (0, found.schema)


def test_frames_of_pandas_one_after_the_other(model: str) -> None:
    labeller = PostLabeller(model, text_column="text", context_column="given")
    frame = pd.DataFrame({"text": POSTS, "n": pd.array([1, None, 3, 4, 5], dtype="Int64"), "given": [None] * 5})
    frame.loc[1, "text"] = None
    frame.index = pd.Index(range(7, 12))

    def map_in_pandas(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for one in frames:
            yield labeller(one)

    found = pd.concat(map_in_pandas(frame.iloc[start : start + 2] for start in range(0, 5, 2)))
    assert list(found.index) == list(frame.index)
    assert found["n"].dtype == frame["n"].dtype
    assert values(found["entities"])[2:] == plain(labeller.pipe, POSTS[2:])
    assert [isinstance(error, str) for error in found["error"]] == [False, True, False, False, False]
    mixed = labeller(pd.DataFrame({"text": ["Obama", 3, ["Obama", "Suns"], np.nan, pd.NA], "given": [np.nan] * 5}))
    assert [isinstance(error, str) for error in mixed["error"]] == [False, True, False, True, True]


def test_arrays_of_numpy(model: str, reading: str, reader: SizeReader) -> None:
    labeller = PostLabeller(reading, image_column="image", context_column="context", return_context=True)
    images, contexts = np.empty(5, object), np.empty(5, object)
    images[:4] = [sized(50), {"bytes": sized(51), "path": None}, np.array([sized(52), sized(53)], object), np.nan]
    images[4] = np.zeros((4, 4, 3), np.uint8)
    contexts[3] = {"ocr": np.array(["NBA"], object), "captions": None}
    found = labeller({"text": np.array(POSTS, object), "image": images, "context": contexts})
    assert found["image_state"] == ["read", "read", "read", "none", "unreadable"]
    assert found["error"] == [None] * 5
    assert found["context"][3] == {"ocr": ["NBA"]}
    words = np.empty(2, object)
    words[:] = [np.array(["Phoenix", "Suns"]), np.array(["Obama"])]
    found = PostLabeller(model)({"words": words})
    assert values(found["entities"]) == plain(labeller.pipe, [list(w) for w in words], is_split_into_words=True)


def test_datasets_map(model: str, reading: str, reader: SizeReader, tmp_path: Path) -> None:
    damaged = {"bytes": b"no image", "path": None}
    posts = ["Obama", *[""] * 10, None, "Suns"]
    rows = {"text": posts, "image": [{"bytes": sized(50), "path": None}, *[damaged] * 12]}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    data = datasets.Dataset.from_dict(rows, features)
    labeller = PostLabeller(reading, image_column="image")
    options: dict[str, Any] = {"batched": True, "batch_size": 4, "writer_batch_size": 4, "load_from_cache_file": False}
    table = data.with_format("arrow").map(labeller, **options).with_format(None)
    for made in (table, data.map(labeller, **options)):
        assert made.features["image"] == datasets.Image()
        assert made.features["entities"] == datasets.List(datasets.Features.from_arrow_schema(pa.schema(ENTITY)))
        assert made["image_state"] == ["read", *["unreadable"] * 10, "none", "unreadable"]
        assert [error is None for error in made["error"]] == [post is not None for post in posts]
        assert values(made["entities"])[-1:] == plain(labeller.pipe, ["Suns"])
        assert made.cast_column("image", datasets.Image(decode=False))[1]["image"] == damaged


def test_what_is_no_batch(model: str) -> None:
    with pytest.raises(TypeError, match="the batch is of type list"):
        PostLabeller(model)([{"text": "a"}])
    for batch in ({"a": ["b"]}, pa.table({"a": ["b"]}), pd.DataFrame({"a": ["b"]})):
        for column in ("text_column", "image_column", "context_column"):
            named: Any = {"text_column": "a", column: "none of them"}
            with pytest.raises(ValueError, match=r"no column 'none of them' \(the columns are a"):
                PostLabeller(model, **named)(batch)


@pytest.mark.parametrize(
    "wrong", [{"read_images": "often"}, {"image_gate": 2.0}, {"min_score": -1.0}, {"batch_size": 0}]
)
def test_wrong_settings_are_no_fault_of_a_row(model: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PostLabeller(model, **wrong)({"text": ["a"]})


def test_it_is_pickled_without_what_it_loaded(model: str) -> None:
    labeller = PostLabeller(model, min_score=0.3)
    before = pickle.dumps(labeller)
    found = labeller({"text": POSTS})
    assert labeller.seconds["posts"] > 0
    after = pickle.dumps(labeller)
    assert after == before  # `datasets.map` finds what it has made before
    assert len(after) < 2000
    for content in (before, after):
        assert pickle.loads(content)({"text": POSTS}) == found
    assert values(found["entities"]) == plain(labeller.pipe, POSTS, min_score=0.3)
    assert found != PostLabeller(model)({"text": POSTS})


# --- faults ----------------------------------------------------------------------------------------------------------


def test_every_fault_of_a_text_costs_its_row(model: str) -> None:
    texts: list[Any] = [
        None, 3, 2.5, True, b"bytes", ["a", 3], ["a", None], [["a"]], {"text": "a"}, ["Obama", "Suns"], [], "",
        " \n", f"{'y' * 124} " * 800, "x" * 100_000, "a\x00b", "\ud83d Obama", "\u202e\u2028\x85", ["a b", ""],
    ]  # fmt: skip
    labeller = PostLabeller(model, text_column="text")
    mixed = [row for text in texts for row in (text, "Obama in Paris")]
    found = labeller({"text": mixed})
    assert all(values([row]) == plain(labeller.pipe, ["Obama in Paris"]) for row in found["entities"][1::2])
    assert found["error"][1::2] == [None] * len(texts)
    errors = found["error"][::2]
    assert all(isinstance(error, str) and "\n" not in error and error for error in errors[:9])
    assert errors[9:18] == [None] * 9
    assert all(not row for row, error in zip(found["entities"], found["error"], strict=True) if error)
    assert len(labeller.added_columns(labeller.label(mixed))["error"]) == len(mixed)


def test_faults_of_a_context(model: str) -> None:
    wrong: list[Any] = [
        "nonsense",
        "[1]",
        3,
        '{"ocr": "x"}',
        '{"ocr": [1]}',
        "[" * 100_000,
        {"a/b": ["c"]},
        [1],
        b"{}",
    ]
    right: list[Any] = [None, "", {}, {"ocr": ["NBA"]}, '{"ocr": ["\\ud83d"]}', {"ocr": None}, {"weird": ["x"]},
                        {"ocr": ["a"], "provenance": {"ocr": "somebody"}}]  # fmt: skip
    labeller = PostLabeller(model, context_column="context", return_context=True)
    found = labeller.label(["Obama"] * (len(wrong) + len(right)), None, wrong + right)
    assert all(error and "\n" not in error for error in found.errors[: len(wrong)])
    assert found.errors[len(wrong) :] == [None] * len(right)
    assert labeller.added_columns(found)["context"].to_pylist()[len(wrong) + 4]["ocr"] == ["\ufffd"]


def test_a_model_that_fails_for_one_row(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labeller = PostLabeller(model)
    expected = plain(labeller.pipe, POSTS)
    original = ItaPipeline.forward

    def forward(self: Any, inputs: Any, **settings: Any) -> Any:
        if any("Paris" in post.content for post in inputs["posts"]):
            raise FloatingPointError(f"input 0: {'much ' * 200}\ntoo much")
        return original(self, inputs, **settings)

    monkeypatch.setattr(ItaPipeline, "forward", forward)
    found = labeller({"text": POSTS})
    assert values(found["entities"]) == [*expected[:1], [], *expected[2:]]
    assert [error is None for error in found["error"]] == [True, False, True, True, True]
    assert found["error"][1].startswith("much much")
    assert len(found["error"][1]) <= 300


@pytest.mark.parametrize(
    ("error", "match"), [(ImportError("pip install x"), "pip install x"), (OSError(28, "full"), "full")]
)
def test_what_no_row_is_to_blame_for_is_raised(
    model: str, error: Exception, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(ItaPipeline, "preprocess", fail)
    with pytest.raises(type(error), match=match):
        PostLabeller(model)({"text": POSTS})
