"""The data collator: rows of a dataset to the tensors that the processor itself would make."""

from __future__ import annotations

import copy
from typing import Any, Literal

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BertTokenizer, ConvNextImageProcessorPil

from modeling_ita import (
    ItaDataCollator,
    ItaForTokenClassification,
    ItaProcessor,
    MgcmtDataCollator,
    MgcmtProcessor,
    VisualContext,
)

WORDS = [["Phoenix", "Suns", "tonight"], ["Obama", "in", "Paris", "😀"], ["the", "dog"]]
TAGS = [[1, 2, 0], [3, 0, 1, 0], [0, 0]]
CONTEXT = {"captions": ["a man in the stadium"], "ocr": ["NBA"], "provenance": {"ocr": {"model": "rapidocr"}}}
CONTEXTS = [CONTEXT, None, VisualContext({"object_tags": ["red car"]})]


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def assert_same(batch: dict[str, torch.Tensor], expected: Any) -> None:
    assert type(batch) is dict
    assert batch.keys() == dict(expected).keys()
    for name, tensor in batch.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("views", ["both", "T", "I+T"])
def test_it_equals_the_processors_own_call(tiny_processor: ItaProcessor, views: Literal["both", "T", "I+T"]) -> None:
    collate = ItaDataCollator(tiny_processor, views=views)
    expected = tiny_processor(WORDS, CONTEXTS, views=views, is_split_into_words=True, labels=TAGS)
    extra: dict[str, Any] = {"id": ["1", "2", "3"], "image": [None, object(), b"file"], "length": [3, 4, 2]}
    assert_same(collate(rows(words=WORDS, tags=TAGS, context=CONTEXTS, **extra)), expected)
    assert_same(collate(rows(words=WORDS, labels=TAGS, context=CONTEXTS)), expected)
    assert_same(collate(rows(words=WORDS, labels=TAGS, tags=[None] * 3, context=CONTEXTS)), expected)
    arrays = [np.array(tags) for tags in TAGS], [torch.tensor(tags) for tags in TAGS]
    for tags in arrays:
        assert_same(collate(rows(words=WORDS, tags=tags, context=CONTEXTS)), expected)


def test_a_model_that_looks_gets_the_images_too(tiny_encoder: str) -> None:
    images = ConvNextImageProcessorPil(size={"shortest_edge": 16})
    processor = MgcmtProcessor(BertTokenizer.from_pretrained(tiny_encoder), images, ["car", "dog"])
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    given = [None, picture, processor.image_tensors([picture])["pixel_values"][0]]
    batch = MgcmtDataCollator(processor)(rows(words=WORDS, tags=TAGS, context=CONTEXTS, image=given))
    assert_same(batch, processor(WORDS, CONTEXTS, given, is_split_into_words=True, labels=TAGS))
    assert batch["has_image"].tolist() == [False, True, True]
    assert torch.equal(batch["pixel_values"][1], batch["pixel_values"][2])
    assert batch["object_ids"][2].tolist() == [1, 0, 0, 0, 0]
    without = MgcmtDataCollator(processor)(rows(words=WORDS))
    assert "pixel_values" not in without and "labels" not in without and not without["has_image"].any()


def test_rows_without_context_and_without_tags(tiny_processor: ItaProcessor) -> None:
    collate = ItaDataCollator(tiny_processor)
    expected = tiny_processor(WORDS, views="both", is_split_into_words=True)
    assert_same(collate(rows(words=WORDS)), expected)
    assert_same(collate(rows(words=WORDS, context=[None, {}, {"captions": None}], tags=[None] * 3)), expected)
    assert not expected["has_context"].any()
    assert_same(
        collate([{"words": [], "tags": []}]), tiny_processor([[]], views="both", is_split_into_words=True, labels=[[]])
    )


def test_a_long_post_counts_as_one(tiny_processor: ItaProcessor, tiny_model: ItaForTokenClassification) -> None:
    processor = copy.copy(tiny_processor)
    processor.max_length, processor.window_overlap = 16, 4
    words, tags = [["Phoenix", "in"] * 20, ["dog"]], [[1, 0] * 20, [0]]
    batch = ItaDataCollator(processor)(rows(words=words, tags=tags))
    assert len(batch["input_ids"]) > 2
    assert next(iter(batch)) == "word_positions"
    assert len(batch["word_positions"]) == 2
    assert tiny_model(**batch).logits.shape[:2] == (2, 40)


def test_it_takes_what_the_dataset_gives(tiny_processor: ItaProcessor, tiny_model: ItaForTokenClassification) -> None:
    names = tiny_model.config.tag_scheme.labels
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "words": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=list(names))),
            "context": {"captions": datasets.List(datasets.Value("string")), "provenance": datasets.Json()},
        }
    )
    context = {"captions": ["a man"], "provenance": {"captions": {"model": "BLIP-2"}}}
    given = rows(id=["1", "2", "3"], words=WORDS, tags=TAGS, context=[context, None, context])
    dataset = datasets.Dataset.from_list(given, features=features)
    loader: Any = DataLoader(dataset, batch_size=2, collate_fn=ItaDataCollator(tiny_processor))
    batches = list(loader)
    first = tiny_processor(WORDS[:2], [context, None], views="both", is_split_into_words=True, labels=TAGS[:2])
    assert_same(batches[0], first)
    with torch.no_grad():
        assert all(torch.isfinite(tiny_model(**batch).loss) for batch in batches)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"words": None}, "no 'words' among its keys 'id', 'words', 'tags'"),
        ({"words": "Obama in Paris 😀"}, "'words' is not a list of strings"),
        ({"words": ["Obama", 7, "Paris", "😀"]}, "'words' is not a list of strings"),
        ({"tags": [3, 0, 1]}, "3 tags for 4 words (expected one each)"),
        ({"labels": [3, 0, 1, 0, 0]}, "5 labels for 4 words (expected one each)"),
        ({"tags": ["B-PER", "O", "B-LOC", "O"]}, "'tags' are not tag ids, as model.config.label2id gives them"),
        ({"tags": [3.0, 0.0, 1.0, 0.0]}, "'tags' are not tag ids"),
        ({"tags": [3, -100, 1, 0]}, "'tags' holds -100 (expected the tag of every word"),
        ({"tags": None}, "some rows of the batch have tags, and some have none"),
        ({"context": {"captions": "a man"}}, "the kind 'captions' must be a list of strings"),
        ({"context": "a man"}, "a visual context is a dictionary"),
    ],
)
def test_a_bad_row_is_named(tiny_processor: ItaProcessor, changed: dict[str, Any], message: str) -> None:
    given = rows(id=["a", "b", "c"], words=WORDS, tags=TAGS)
    given[1] |= changed
    with pytest.raises(ValueError, match="row 1") as error:
        ItaDataCollator(tiny_processor)(given)
    assert str(error.value).startswith("row 1 (id 'b'): ")
    assert message in str(error.value)


def test_what_trainer_drops_is_named(tiny_processor: ItaProcessor) -> None:
    with pytest.raises(ValueError, match=r"row 0: no 'words' .*remove_unused_columns=False"):
        ItaDataCollator(tiny_processor)([{"labels": [0]}])


def test_unknown_views_are_refused(tiny_processor: ItaProcessor) -> None:
    with pytest.raises(ValueError, match="unknown views 'text'"):
        ItaDataCollator(tiny_processor, views="text")  # type: ignore[arg-type]
