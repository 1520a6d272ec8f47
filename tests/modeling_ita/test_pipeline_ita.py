"""`ItaPipeline`: what goes in, what comes out, in which order, and what is refused."""

from __future__ import annotations

import copy
import io
import itertools
import json
import logging
import random
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from dataset_scripts.contexts.context_store import ContextStore
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, VisualContext, VisualContextBuilder
from modeling_ita.image_file import image_sha256
from modeling_ita.pipeline_ita import LOOK_AHEAD

TEXT = "😀 Phoenix 𝔘 tonight, 👍🏽 Obama @bob #NBA in Paris"
NAMES = ["Phoenix", "Obama", "tonight", "in", "the", "stadium", "Paris", "dog", "@bob", "sign", "😀"]


@pytest.fixture
def pipe(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> ItaPipeline:
    return ItaPipeline(model=tiny_model, processor=copy.copy(tiny_processor), device="cpu")


@pytest.fixture
def seeing_pipe(pipe: ItaPipeline) -> ItaPipeline:
    """Reads images by `ReadsColours`."""
    pipe.context_builder = VisualContextBuilder(ocr=ReadsColours())
    return pipe


class ReadsColours:
    """An aligner that reads a picture as the colour of its first pixel, and remembers how many it was shown."""

    identity: dict[str, Any] = {"model": "colours", "revision": None, "settings": {}}

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        self.batches.append(len(images))
        return [[(" ".join(map(str, image.getpixel((0, 0)))), 1.0)] for image in images]  # type: ignore[arg-type]


def picture(colour: str | tuple[int, int, int] = "red") -> Image.Image:
    image = Image.new("RGB", (32, 32), colour)
    image.paste("white", (8, 8, 24, 24))
    return image


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def random_posts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(NAMES, k=draw.choice((0, 1, 3, 8, 20)))) for _ in range(count)]


def assert_same(results: Any, expected: Any) -> None:
    """Equal, with scores equal within 1e-4."""
    assert len(results) == len(expected)
    for got, wanted in zip(results, expected, strict=True):
        assert [{**e, "score": 0} for e in got] == [{**e, "score": 0} for e in wanted]
        assert [e["score"] for e in got] == pytest.approx([e["score"] for e in wanted], abs=1e-4)


# --- what comes out --------------------------------------------------------------------------------------------------


def test_entities_are_json_with_offsets_of_the_callers_own_string(pipe: ItaPipeline) -> None:
    entities = pipe(TEXT)
    assert {"Phoenix", "Paris"} <= {word for e in entities for word in e["word"].split()}
    for entity in entities:
        assert list(entity) == ["entity_group", "score", "word", "start", "end"]
        assert entity["word"] == TEXT[entity["start"] : entity["end"]]
        assert type(entity["score"]) is float
        assert 0 < entity["score"] <= 1
    assert json.loads(json.dumps(entities)) == entities


def test_score_is_the_exact_posterior_of_the_span(pipe: ItaPipeline, tiny_model: ItaForTokenClassification) -> None:
    post = "Phoenix Suns tonight Obama"
    with torch.no_grad():
        emissions = tiny_model(**pipe.processor(post)).emissions[0].double()  # (N, C)
    crf, scheme = tiny_model.crf, tiny_model.config.tag_scheme
    paths = torch.tensor(list(itertools.product(range(len(scheme)), repeat=len(emissions))))  # (C^N, N)
    scores = crf.start_transitions[paths[:, 0]].double() + crf.end_transitions[paths[:, -1]]
    scores = scores + emissions[range(4), paths].sum(1) + crf.transitions[paths[:, :-1], paths[:, 1:]].sum(1)
    probabilities = scores.softmax(0).tolist()
    readings = [scheme.spans(path) for path in paths.tolist()]

    words = pipe.processor(post).words[0]
    entities = pipe(post)
    assert entities
    for entity in entities:
        first = next(i for i, word in enumerate(words) if word.start == entity["start"])
        last = next(i for i, word in enumerate(words) if word.end == entity["end"])
        span = (entity["entity_group"], first, last + 1)
        expected = sum(p for p, spans in zip(probabilities, readings, strict=True) if span in spans)
        assert entity["score"] == pytest.approx(expected, abs=1e-5)


def test_every_word_can_be_had_with_the_marginal_of_its_tag(
    pipe: ItaPipeline, tiny_model: ItaForTokenClassification
) -> None:
    words = pipe(TEXT, aggregation_strategy="none", ignore_labels=[])
    batch = pipe.processor(TEXT)
    with torch.no_grad():
        outputs = tiny_model(**batch)
    tags = tiny_model.decode_tags(outputs.emissions, batch["word_positions"] >= 0)[0]
    assert list(words[0]) == ["entity", "score", "index", "word", "start", "end"]
    assert [w["word"] for w in words] == [TEXT[w["start"] : w["end"]] for w in words]
    assert [w["index"] for w in words] == list(range(len(tags)))
    assert [w["entity"] for w in words] == [tiny_model.config.tag_scheme.labels[tag] for tag in tags]
    marginals = [outputs.logits[0, n, tag].exp().item() for n, tag in enumerate(tags)]
    assert [w["score"] for w in words] == pytest.approx(marginals, abs=1e-6)
    assert json.loads(json.dumps(words)) == words


def test_ignored_labels_are_left_out_and_o_is_by_default(pipe: ItaPipeline) -> None:
    posts = random_posts(20)
    words = [w for post in pipe(posts, aggregation_strategy="none", ignore_labels=[]) for w in post]
    tagged = [w for post in pipe(posts, aggregation_strategy="none") for w in post]
    assert tagged == [w for w in words if w["entity"] != "O"] != words
    entities = [e for post in pipe(posts) for e in post]
    kept = [e for post in pipe(posts, ignore_labels=["PER"]) for e in post]
    assert kept == [e for e in entities if e["entity_group"] != "PER"] != entities


def test_a_threshold_leaves_out_what_is_less_sure(pipe: ItaPipeline) -> None:
    posts = ["Phoenix tonight", TEXT, "the London Suns game"]
    for parameters in ({}, {"aggregation_strategy": "none"}):
        everything = pipe(posts, **parameters)
        scores = sorted(entity["score"] for post in everything for entity in post)
        middle = scores[len(scores) // 2]
        kept = [[entity for entity in post if entity["score"] >= middle] for post in everything]
        assert pipe(posts, min_score=middle, **parameters) == kept != everything
        assert pipe(posts, min_score=0.0, **parameters) == everything
    with pytest.raises(ValueError, match=r"min_score is 1.5 \(expected a probability\)"):
        pipe("Phoenix", min_score=1.5)


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_all_ways_of_grouping_are_one(pipe: ItaPipeline, strategy: str) -> None:
    assert pipe(TEXT, aggregation_strategy=strategy) == pipe(TEXT, aggregation_strategy="simple") == pipe(TEXT)


def test_parameters_of_the_pipeline_hold_until_the_call_says_otherwise(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, aggregation_strategy="none", batch_size=2)
    assert "entity" in pipe("Phoenix")[0]
    assert "entity_group" in pipe("Phoenix", aggregation_strategy="simple")[0]
    assert "entity" in pipe("Phoenix")[0]


def test_the_three_steps_make_up_the_call(pipe: ItaPipeline) -> None:
    posts = ["Phoenix", TEXT, "Obama in Paris"]
    assert_same(pipe.postprocess(pipe.forward(pipe.preprocess(posts))), pipe(posts))
    assert pipe.tokenizer is pipe.processor.tokenizer


# --- many posts ------------------------------------------------------------------------------------------------------


def test_batches_and_windows_change_nothing(pipe: ItaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    posts = random_posts(40)
    one_by_one = [pipe(post) for post in posts]
    assert_same(pipe(posts, batch_size=7), one_by_one)
    monkeypatch.setattr(sys.modules[ItaPipeline.__module__], "LOOK_AHEAD", 2)
    assert_same(pipe(posts, batch_size=3), one_by_one)
    assert_same(list(pipe(iter(posts), batch_size=3)), one_by_one)
    assert_same(pipe(tuple(posts)), one_by_one)


def test_iterables_are_read_a_few_batches_ahead_only(pipe: ItaPipeline) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"Phoenix {taken}"

    results = pipe(endless(), batch_size=2)
    assert taken == 0
    assert [len(next(results)) for _ in range(3)]
    assert taken == 2 * LOOK_AHEAD


def test_datasets_give_an_iterator(seeing_pipe: ItaPipeline) -> None:
    rows = Dataset.from_dict({"text": ["Phoenix tonight", "Obama"], "context": [None, {"captions": ["a man"]}]})
    expected = seeing_pipe([dict(row) for row in rows])
    results = seeing_pipe(rows)
    assert isinstance(results, Iterator)
    assert_same(list(results), expected)
    assert_same(list(seeing_pipe(KeyDataset(rows, "text"))), seeing_pipe(rows["text"][:]))


def test_empty_and_strange_posts(pipe: ItaPipeline) -> None:
    assert pipe("") == pipe(" \n") == pipe([]) == []
    assert pipe(["", ""], return_context=True) == [{"entities": [], "context": None}] * 2
    emoji = "👩‍👩‍👧🇫🇷 👍🏽"
    assert all(e["word"] == emoji[e["start"] : e["end"]] for e in pipe(emoji))
    long = " ".join(random.Random(0).choices(NAMES, k=2000))
    words, empty, short = pipe([long, "", "Phoenix"], aggregation_strategy="none", ignore_labels=[])
    assert "".join(w["word"] for w in words) == long.replace(" ", "")
    assert empty == []
    assert_same([short], [pipe("Phoenix", aggregation_strategy="none", ignore_labels=[])])


def test_posts_as_words(pipe: ItaPipeline) -> None:
    post = ["Phoenix", "Suns", "", "in", "New York", "😀"]
    joined = "Phoenix Suns  in New York 😀"
    words = pipe(post, is_split_into_words=True, aggregation_strategy="none", ignore_labels=[])
    assert [w["word"] for w in words] == post
    entities = pipe(post, is_split_into_words=True)
    assert entities
    assert all(e["word"] == joined[e["start"] : e["end"]] for e in entities)
    assert_same(pipe([post, ["Obama"]], is_split_into_words=True)[:1], [entities])
    assert_same([pipe({"words": post}, is_split_into_words=True)], [entities])
    assert_same(list(pipe(iter([post]), is_split_into_words=True)), [entities])


def test_other_types_of_weights_and_a_model_in_training(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    model = copy.deepcopy(tiny_model).bfloat16().train()
    pipe = ItaPipeline(model=model, processor=tiny_processor, device="cpu")
    assert json.dumps(pipe(TEXT)) == json.dumps(pipe(TEXT))
    assert not model.training


# --- images and contexts ---------------------------------------------------------------------------------------------


def test_a_given_context_makes_the_cross_modal_view(pipe: ItaPipeline, tiny_model: ItaForTokenClassification) -> None:
    context = {"captions": ["a man", "a dog"], "ocr": ["NBA"], "source": {"captions": "hand"}}
    batch = pipe.processor([TEXT], [context], views="I+T")
    with torch.no_grad():
        outputs = tiny_model(**batch)
    spans = tiny_model.decode_entities(outputs.emissions, batch["word_positions"] >= 0)
    expected = [(e.type, e.word) for e in pipe.processor.post_process_entities(spans, batch)[0]]
    results = [pipe({"text": TEXT, "context": c}) for c in (context, VisualContext.from_dict(context))]
    assert [(e["entity_group"], e["word"]) for e in results[0]] == expected
    assert results[0] == results[1] != pipe(TEXT)


def test_posts_with_and_without_context_share_a_batch(pipe: ItaPipeline) -> None:
    draw = random.Random(1)
    posts: list[Any] = random_posts(20)
    inputs = [
        {"text": post, "context": {"captions": draw.choices(NAMES, k=draw.randint(1, 200))}} if n % 3 else post
        for n, post in enumerate(posts)
    ]
    assert_same(pipe(inputs, batch_size=4), [pipe(item) for item in inputs])


def test_the_context_that_was_used_is_shown(pipe: ItaPipeline) -> None:
    context = {"captions": ["a man"], "knowledge": ["none of the processor's kinds"], "source": {"captions": "hand"}}
    shown, alone = pipe([{"text": TEXT, "context": context}, TEXT], return_context=True)
    assert shown["context"] == {"captions": ["a man"], "provenance": {"captions": {"model": "hand"}}}
    assert_same([shown["entities"], alone["entities"]], pipe([{"text": TEXT, "context": context}, TEXT]))
    assert alone["context"] is None
    assert json.loads(json.dumps(shown)) == shown


def test_an_image_may_be_a_path_bytes_or_a_picture(seeing_pipe: ItaPipeline, tmp_path: Path) -> None:
    picture("blue").save(tmp_path / "a.png")
    images = [str(tmp_path / "a.png"), tmp_path / "a.png", encoded(picture("blue")), picture("blue")]
    results = seeing_pipe([{"text": TEXT, "image": image} for image in images], return_context=True)
    assert [result["context"]["ocr"] for result in results] == [["0 0 255"]] * 4
    given = seeing_pipe({"text": TEXT, "context": {"ocr": ["0 0 255"]}})
    assert_same([result["entities"] for result in results], [given] * 4)


def test_images_are_read_in_batches_and_a_given_context_goes_first(seeing_pipe: ItaPipeline) -> None:
    inputs: list[Any] = [{"text": "Phoenix", "image": picture((255, 0, n))} for n in range(11)]
    inputs[4] = {"text": "Phoenix", "image": "no/such/file.png", "context": {"captions": ["a man"]}}
    inputs[5] = "Phoenix"
    inputs[6] = {"text": "Phoenix", "image": None, "context": None}
    results = seeing_pipe(inputs, return_context=True)
    assert seeing_pipe.context_builder.aligners["ocr"].batches == [8]
    assert results[4]["context"]["captions"] == ["a man"]
    assert results[5] == results[6] != results[0]
    assert [results[n]["context"]["ocr"] for n in (0, 10)] == [["255 0 0"], ["255 0 10"]]


def test_the_checkpoint_names_the_reader_and_text_alone_never_loads_it(pipe: ItaPipeline) -> None:
    pipe.processor.context_builder = {"ocr": {"model": "rapidocr", "settings": {"min_score": 0.25}}}
    pipe([TEXT, {"text": TEXT, "context": {"ocr": ["NBA"]}}])
    assert "context_builder" not in vars(pipe)
    assert pipe.context_builder.aligners["ocr"].min_score == 0.25
    assert pipe.context_builder is pipe.context_builder


def test_a_store_goes_before_the_aligners_and_their_packages(
    pipe: ItaPipeline,
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_image = image_sha256(encoded(picture("red")))

    class Store:
        """The one method that a store must have."""

        def look_up(self, image_sha256: str, kind: str, identity: dict[str, Any]) -> Any:
            origin = {"model": identity["model"], "revision": "3", "settings": {}, "date": "2026-01-01"}
            known = {"image": ["readable"], "ocr": ["NBA", "GAME 7"]}
            return (known[kind], [1.0] * len(known[kind]), origin) if image_sha256 == known_image else None

    monkeypatch.setitem(sys.modules, "rapidocr", None)
    reading: Any = pipeline(
        "token-classification",
        model=tiny_model,
        processor=copy.copy(tiny_processor),
        pipeline_class=ItaPipeline,
        context_store=Store(),
        device="cpu",
    )
    reading.processor.context_builder = {"ocr": "rapidocr"}
    result = reading({"text": TEXT, "image": encoded(picture("red"))}, return_context=True)
    assert result["context"]["ocr"] == ["NBA", "GAME 7"]
    assert result["context"]["provenance"]["ocr"]["revision"] == "3"
    assert result["entities"] == pipe({"text": TEXT, "context": {"ocr": ["NBA", "GAME 7"]}})
    with pytest.raises(ImportError, match="rapidocr"):
        reading({"text": TEXT, "image": encoded(picture("blue"))})


def test_what_is_built_live_is_added_to_the_store(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    store = ContextStore(tmp_path / "store")
    readers = []
    for _ in range(2):
        pipe = ItaPipeline(model=tiny_model, processor=copy.copy(tiny_processor), context_store=store, device="cpu")
        readers.append(ReadsColours())
        pipe.context_builder = VisualContextBuilder(ocr=readers[-1], store=pipe.context_store)
        result: Any = pipe({"text": TEXT, "image": encoded(picture("red"))}, return_context=True)
        assert result["context"]["ocr"] == ["255 0 0"]
    assert [reader.batches for reader in readers] == [[1], []]


def test_a_missing_package_is_an_error_with_the_command(pipe: ItaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, command in (("rapidocr", "pip install"), ("easyocr", "pip install easyocr")):
        monkeypatch.setitem(sys.modules, package, None)
        pipe.context_builder = VisualContextBuilder.from_dict({"ocr": package})
        with pytest.raises(ImportError, match=command):
            pipe({"text": TEXT, "image": picture()})


def test_an_image_without_a_reader_is_refused(pipe: ItaPipeline) -> None:
    with pytest.raises(ValueError, match=r"names no way to read images .*pipe\.context_builder"):
        pipe({"text": TEXT, "image": picture()})


def bomb() -> bytes:
    """A PNG that claims 20,000 × 20,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_damaged_images_are_named_and_cost_the_image_only(
    seeing_pipe: ItaPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    files = {
        "truncated.jpg": encoded(noise, "JPEG")[:1000],
        "bomb.png": bomb(),
        "blank.png": encoded(Image.new("RGB", (64, 64))),
        "text.png": b"no image at all",
        "empty.png": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        results = seeing_pipe(
            [{"text": TEXT, "image": tmp_path / name} for name in files], return_context=True, batch_size=2
        )
    assert all(name in caplog.text for name in files)
    assert_same([result["entities"] for result in results], [seeing_pipe(TEXT)] * len(files))
    assert [result["context"] for result in results] == [{"provenance": {}}] * len(files)
    assert seeing_pipe.context_builder.counts["unreadable"] == 4
    assert seeing_pipe.context_builder.counts["blank"] == 1


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ({"text": "a", "image": "no/such.png"}, FileNotFoundError, "input 2: there is no image file 'no/such.png'"),
        ({"text": "a", "image": "https://example.org/a.png"}, ValueError, "input 2: .*is a URL"),
        ({"text": "a", "image": "data:image/png;base64,AAAA"}, ValueError, "input 2: .*is a URL"),
        ({"text": "a", "image": 3}, TypeError, "input 2: .*got int"),
        ({"text": "a", "picture": "a.png"}, ValueError, r"input 2: the keys are 'text', 'picture' \(expected 'text'"),
        ({"image": "a.png"}, ValueError, "input 2: the keys are 'image'"),
        ({"words": ["a"]}, ValueError, "input 2: .*is_split_into_words=True takes 'words'"),
        ({"text": ["a"]}, TypeError, "input 2: the post is of type list .*is_split_into_words=True"),
        ({"text": "a", "context": "a man"}, ValueError, "input 2: a visual context is a dictionary"),
        ({"text": "a", "context": {"captions": "a man"}}, ValueError, r"input 2: .*write \['a man'\]"),
        (["a"], TypeError, "input 2: the post is of type list"),
        (None, TypeError, "input 2: the post is of type NoneType"),
        (b"a", TypeError, "input 2: the post is of type bytes"),
    ],
)
def test_wrong_inputs_are_refused_by_number(
    seeing_pipe: ItaPipeline, item: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        seeing_pipe(["Phoenix", {"text": "Obama"}, item])


def test_numbers_run_on_through_an_iterable(pipe: ItaPipeline) -> None:
    posts = ["Phoenix"] * 3 * LOOK_AHEAD
    with pytest.raises(TypeError, match=f"input {len(posts)}: "):
        list(pipe(itertools.chain(posts, [3]), batch_size=1))


def test_words_and_strings_are_not_mixed_up(pipe: ItaPipeline) -> None:
    with pytest.raises(TypeError, match="input 0: the post is of type str"):
        pipe("Phoenix tonight", is_split_into_words=True)
    with pytest.raises(TypeError, match=r"input 0: .*expects a list of strings"):
        pipe([["Phoenix", 3]], is_split_into_words=True)
    with pytest.raises(ValueError, match="input 0: the keys are 'text'"):
        pipe({"text": "Phoenix"}, is_split_into_words=True)


def test_wrong_arguments_are_refused(
    pipe: ItaPipeline, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    with pytest.raises(ValueError, match=r"unknown aggregation_strategy 'mean' .*none, simple"):
        pipe(TEXT, aggregation_strategy="mean")
    with pytest.raises(ValueError, match="batch_size is 0"):
        pipe([TEXT], batch_size=0)
    with pytest.raises(TypeError, match="the input is of type int"):
        pipe(3)
    with pytest.raises(ValueError, match="needs a processor"):
        ItaPipeline(model=tiny_model, tokenizer=tiny_processor.tokenizer)
