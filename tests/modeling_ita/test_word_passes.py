"""Passes of bounded size through the model: the same numbers, whatever the posts; and numbers that are none."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_ita import WORDS
from tiny_mgcmt import make_model, picture
from transformers import BertTokenizer, ConvNextImageProcessorPil

from hub_card.predictions.prediction import Visual, read_posts
from modeling_ita import (
    ItaConfig,
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    MgcmtConfig,
    MgcmtForTokenClassification,
    MgcmtProcessor,
    VisualContext,
    WordNeighbours,
    entity_tagger,
)

WINDOWS: dict[str, Any] = {"max_length": 16, "window_overlap": 6}
NOT_FINITE = "scores that are not finite numbers"


def posts_of(lengths: list[int]) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


def watch_passes(model: torch.nn.Module) -> list[torch.Size]:
    """The shapes of what goes into the encoder from now on."""
    shapes: list[torch.Size] = []
    model.encoder.register_forward_pre_hook(  # type: ignore[union-attr, operator]
        lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    return shapes


@pytest.fixture
def model(tiny_model: ItaForTokenClassification) -> ItaForTokenClassification:
    return copy.deepcopy(tiny_model)


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_context", [False, True])
def test_small_passes_change_no_emission_of_ita(
    model: ItaForTokenClassification, tiny_encoder: str, with_context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder), **WINDOWS)
    posts = posts_of([3, 60, 0, 1, 25, 8, 3])
    contexts = [VisualContext({"captions": ["a man"]}) if with_context and n % 2 else None for n in range(len(posts))]
    batch = processor.for_prediction(posts, contexts)
    with torch.no_grad():
        expected = model(**batch).emissions
    shapes = watch_passes(model)
    for tokens, rows in ((40, 99), (10**6, 2), (1, 1)):
        monkeypatch.setattr(entity_tagger, "MAX_TOKENS", tokens)
        with torch.no_grad():
            found = entity_tagger.word_emissions(model, processor, batch, batch_size=rows)
        for row, wanted, words in zip(found, expected, batch.words, strict=True):
            torch.testing.assert_close(row, wanted[: len(words)], atol=1e-5, rtol=1e-5)
        assert all(r <= rows and (r == 1 or r * length <= tokens) for r, length in shapes)
        shapes.clear()


@pytest.mark.parametrize("fusion", ["both", "regions", "objects"])
def test_small_passes_change_no_emission_of_mgcmt(
    tiny_encoder: str, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(visual_fusion=fusion)
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    tokenizer = BertTokenizer.from_pretrained(tiny_encoder)
    neighbours = {"word_neighbours": _table(), "augmentation": "mean"}
    processor = MgcmtProcessor(tokenizer, images, ["dog", "car"], **WINDOWS, **neighbours)
    posts = posts_of([3, 60, 0, 1, 25, 8])
    pictures: list[Any] = [None, picture(1), picture(2), picture(3), None, picture(4)]
    contexts: list[Any] = [VisualContext({"object_tags": ["dog"]}) if n % 2 else None for n in range(len(posts))]
    with torch.no_grad():
        whole = processor(posts, contexts, pictures)
        expected = model(**whole).emissions
    opened: list[int] = []
    see = processor.image_tensors

    def watched(images: Any, counts: Any) -> Any:
        opened.extend(id(image) for image in images if image is not None)
        return see(images, counts)

    monkeypatch.setattr(processor, "image_tensors", watched)
    for tokens in (60, 10**6):
        monkeypatch.setattr(entity_tagger, "MAX_TOKENS", tokens)
        opened.clear()
        batch = processor.for_prediction(posts, contexts)
        with torch.no_grad():
            found = entity_tagger.word_emissions(model, processor, batch, pictures if model.vision else None)
        for row, wanted, words in zip(found, expected, batch.words, strict=True):
            torch.testing.assert_close(row, wanted[: len(words)], atol=1e-5, rtol=1e-5)
        assert len(opened) == len(set(opened)) == (3 if model.vision else 0)  # once, and none for the empty post
        assert batch.counts["unaugmented_words"] > 0


def _table() -> WordNeighbours:
    return WordNeighbours(WORDS[:8], torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), 2)


@pytest.mark.parametrize(
    ("posts", "split"),
    [
        ([[""] * 3000] * 3, True),
        (["." * 1500] * 4, False),
        (["a" + "\u0301" * 3000, "漢字" * 700], False),
        (["Phoenix"] * 700, False),
    ],
)
def test_no_request_makes_a_large_pass(
    model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    posts: list[Any],
    split: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = watch_passes(model)
    chains: list[torch.Size] = []
    decode = model.decode_entities
    monkeypatch.setattr(model, "decode_entities", lambda e, m: [chains.append(m.shape), decode(e, m)][1])  # type: ignore[func-returns-value]
    results = ItaPipeline(model=model, processor=tiny_processor, device="cpu")(
        posts, batch_size=10**6, is_split_into_words=split
    )
    assert len(results) == len(posts)
    assert shapes and max(rows * length for rows, length in shapes) <= entity_tagger.MAX_TOKENS
    assert max(rows for rows, _ in shapes) <= entity_tagger.MAX_ROWS
    assert chains and max(b * n for b, n in chains) <= entity_tagger.DECODED_WORDS


def test_long_posts_are_not_read_ahead_of(model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> None:
    taken: list[str] = []

    def posts() -> Any:
        for length in (5, 5, 2**20, 5):
            taken.append("." * length if length < 9 else "Phoenix" + " " * length)
            yield taken[-1]

    results = ItaPipeline(model=model, processor=tiny_processor, device="cpu")(posts())
    next(results)
    assert len(taken) == 3  # the third was seen to be long, and stays for the next window
    assert len(list(results)) == 3


def test_the_work_grows_with_the_post_and_not_with_its_square(tiny_encoder: str) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder), **WINDOWS)
    begin = time.process_time()
    batch = processor(
        [["a"] * 20_000], is_split_into_words=True
    )  # 2,500 windows: half a minute, if words looked at each
    assert len(batch.row_posts) > 1500 and len(processor("a" + "\u0301" * 100_000).words[0]) == 1
    assert time.process_time() - begin < 10


def test_what_is_remembered_of_words_is_bounded(tiny_encoder: str) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder))
    processor([["x" * 5000, "?" * 20, "Phoenix"]], is_split_into_words=True)
    assert list(processor._pieces) == ["Phoenix"]


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_an_error(
    model: ItaForTokenClassification, tiny_processor: ItaProcessor, number: float, tmp_path: Path
) -> None:
    piece = tiny_processor.tokenizer.convert_tokens_to_ids("Obama")
    with torch.no_grad():
        model.get_input_embeddings().weight[piece, 0] = number  # type: ignore[index, operator]
    pipe = ItaPipeline(model=model, processor=tiny_processor, device="cpu")
    assert pipe("Phoenix")  # the damage does not reach it
    for parameters in ({}, {"aggregation_strategy": "none"}):
        with pytest.raises(FloatingPointError, match=f"^input 40: the model gave {NOT_FINITE}"):
            list(pipe(iter(["Phoenix"] * 40 + ["Obama"]), batch_size=1, **parameters))
    with pytest.raises(FloatingPointError, match=f"^post 1: the model gave {NOT_FINITE}"):
        read_posts(model, tiny_processor, [["Phoenix"], ["in", "Obama"], ["the"] * 9], [Visual()] * 3, batch_size=2)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"the weight 'encoder.embeddings.word_embeddings.weight' would .*{NOT_FINITE}"
    ):
        ItaForTokenClassification.from_pretrained(tmp_path)


def test_a_crf_that_is_no_number_is_an_error(model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> None:
    with torch.no_grad():
        model.crf.transitions[0, 1] = float("nan")
    with pytest.raises(FloatingPointError, match=f"the CRF has {NOT_FINITE}"):
        ItaPipeline(model=model, processor=tiny_processor, device="cpu")("Phoenix")


def test_a_temperature_that_is_no_number_is_an_error(model: ItaForTokenClassification, tmp_path: Path) -> None:
    for number in (float("nan"), float("inf")):
        for config, name in (
            (ItaConfig, "cva_temperature"),
            (ItaConfig, "score_temperature"),
            (ItaConfig, "cva_loss_weight"),
            (MgcmtConfig, "score_temperature"),
            (MgcmtConfig, "aux_loss_weight"),
        ):
            with pytest.raises(ValueError, match=f"{name} is {number}"):
                config(**{name: number})
        emissions, mask = torch.zeros(1, 1, 9), torch.ones(1, 1, dtype=torch.bool)
        with pytest.raises(ValueError, match=f"temperature is {number}"):
            model.decode_entities(emissions, mask, number)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"score_temperature": float("nan")}))
    with pytest.raises(ValueError, match="score_temperature is nan"):
        ItaForTokenClassification.from_pretrained(tmp_path)


def test_region_features_that_are_no_numbers_cost_their_input_only(tiny_encoder: str) -> None:
    model: MgcmtForTokenClassification = make_model()
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    processor = MgcmtProcessor(BertTokenizer.from_pretrained(tiny_encoder), images)
    batch = processor.for_prediction(["Phoenix", "Obama"], None)
    features = [torch.ones(4, 12), torch.full((4, 12), float("nan"))]
    with torch.no_grad():
        assert len(entity_tagger.word_emissions(model, processor, batch, [features[0], None])) == 2
        with pytest.raises(FloatingPointError, match=r"^post 1: "):
            entity_tagger.word_emissions(model, processor, batch, features)


def test_a_checkpoint_with_a_damaged_crf_is_refused(model: ItaForTokenClassification, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["crf.transitions"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weight 'crf\.transitions'"):
        ItaForTokenClassification.from_pretrained(tmp_path)
