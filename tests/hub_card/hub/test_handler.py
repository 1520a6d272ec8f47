"""The endpoint's handler: what it answers, what it refuses and how, and that it runs in a folder of its own."""

from __future__ import annotations

import base64
import copy
import json
import logging
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stranger import run_stranger
from tiny_mgcmt import make_model
from transformers import BertTokenizer, ConvNextImageProcessorPil
from transformers.dynamic_module_utils import get_imports

from hub_card.hub import handler as handler_module
from hub_card.hub.exported_folder import export_model
from hub_card.hub.handler import EndpointHandler
from modeling_ita import (
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    MgcmtForTokenClassification,
    MgcmtProcessor,
    VisualContextBuilder,
)

POST = "Phoenix Suns tonight, Obama in Paris 😀"
OTHER = "the dog in the stadium"
CONTEXT = {"captions": ["a man in the stadium"], "ocr": ["NBA"]}


class ReadsSize:
    """An aligner that reads an image's size, and fails on images of 90 pixels' width."""

    identity: dict[str, Any] = {"model": "size", "revision": None, "settings": {}}

    def __call__(self, images: Any) -> list[list[tuple[str, float]]]:
        if any(image.width == 90 for image in images):
            raise RuntimeError(POST)
        return [[(f"width {image.width}", 1.0)] for image in images]


def picture(width: int = 64, form: str = "PNG", ink: str = "black") -> bytes:
    """An image's file; with white ink a blank one."""
    image = Image.new("RGB", (width, 48), "white")
    image.paste(ink, (8, 8, 32, 32))
    content = BytesIO()
    image.save(content, form)
    return content.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def folder(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An exported model that reads the text of images by rapidocr, with its handler."""
    processor = copy.copy(tiny_processor)
    processor.context_builder = {"ocr": {"model": "rapidocr"}}
    return export_model(tiny_model, processor, tmp_path_factory.mktemp("endpoint") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> EndpointHandler:
    return EndpointHandler(str(folder))


@pytest.fixture
def handler(loaded: EndpointHandler) -> Iterator[EndpointHandler]:
    """The handler, with an aligner that needs no engine."""
    loaded.pipe.context_builder = VisualContextBuilder(ocr=ReadsSize())
    limits = loaded.limits
    yield loaded
    loaded.limits = limits
    del loaded.pipe.context_builder


@pytest.fixture
def pipe(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> ItaPipeline:
    return ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")


def ask(handler: EndpointHandler, inputs: Any, **parameters: Any) -> Any:
    """The answer to a request that travels as JSON, both ways."""
    request = {"inputs": inputs} | ({"parameters": parameters} if parameters else {})
    return json.loads(json.dumps(handler(json.loads(json.dumps(request))), allow_nan=False))


def refused(answer: Any, status: int, message: str, place: int | None = 0) -> None:
    expected = {"status": status, "message": answer["error"]["message"]} | ({} if place is None else {"input": place})
    assert answer == {"error": expected}
    assert message in answer["error"]["message"]


def without_scores(entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**entity, "score": None} for entity in entities]


def assert_same(entities: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert without_scores(entities) == without_scores(expected)
    assert [e["score"] for e in entities] == pytest.approx([e["score"] for e in expected], abs=1e-5)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_one_input_and_a_list_of_them(handler: EndpointHandler, pipe: ItaPipeline) -> None:
    assert pipe(POST)
    assert_same(ask(handler, POST), pipe(POST))
    assert_same(ask(handler, {"text": POST}), pipe(POST))
    assert_same(ask(handler, {"text": POST, "image": None, "context": None}), pipe(POST))
    answers = ask(handler, [POST, {"text": OTHER, "context": CONTEXT}, ""])
    for answer, expected in zip(answers, pipe([POST, {"text": OTHER, "context": CONTEXT}, ""]), strict=True):
        assert_same(answer, expected)
    assert ask(handler, []) == []


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_an_image_in_base64_becomes_the_context(handler: EndpointHandler, pipe: ItaPipeline, form: str) -> None:
    image = encoded(picture(form=form))
    wrapped = "\n".join(image[start : start + 76] for start in range(0, len(image), 76))
    expected = pipe({"text": POST, "context": {"ocr": ["width 64"]}})
    for given in (image, wrapped, f"data:image/{form.lower()};base64,{image}"):
        answer = ask(handler, {"text": POST, "image": given}, return_context=True)
        assert_same(answer["entities"], expected)
        assert answer["context"]["ocr"] == ["width 64"]
        assert answer["context"]["provenance"]["ocr"]["model"] == "size"


def test_a_context_goes_before_an_image_and_a_blank_image_is_none(handler: EndpointHandler, pipe: ItaPipeline) -> None:
    both = {"text": POST, "image": "no image", "context": CONTEXT}
    assert_same(ask(handler, both), pipe({"text": POST, "context": CONTEXT}))
    assert_same(ask(handler, {"text": POST, "image": encoded(picture(ink="white"))}), pipe(POST))


def test_parameters_reach_the_pipeline(handler: EndpointHandler, pipe: ItaPipeline) -> None:
    scores = sorted(entity["score"] for entity in pipe(POST))
    least = scores[len(scores) // 2]
    assert len(ask(handler, POST, min_score=least)) < len(scores)
    assert_same(ask(handler, POST, min_score=least), pipe(POST, min_score=least))
    words = ask(handler, POST, aggregation_strategy="none", ignore_labels=[], batch_size=1)
    assert_same(words, pipe(POST, aggregation_strategy="none", ignore_labels=[]))
    kind = pipe(POST)[0]["entity_group"]
    assert all(entity["entity_group"] != kind for entity in ask(handler, POST, ignore_labels=[kind]))
    assert_same(ask(handler, POST, min_score=None), pipe(POST))


def test_posts_as_words(handler: EndpointHandler, pipe: ItaPipeline) -> None:
    words = POST.split()
    expected = pipe([words], is_split_into_words=True)[0]
    assert_same(ask(handler, words, is_split_into_words=True), expected)
    assert_same(ask(handler, [words], is_split_into_words=True)[0], expected)
    assert_same(ask(handler, {"words": words}, is_split_into_words=True), expected)
    refused(ask(handler, {"words": "Phoenix"}, is_split_into_words=True), 400, "'words' that is a list of strings")
    refused(ask(handler, {"text": POST}, is_split_into_words=True), 400, "unknown key 'text'")


# --- what is wrong with one input ------------------------------------------------------------------------------------


def test_one_bad_input_does_not_lose_the_others(handler: EndpointHandler, pipe: ItaPipeline) -> None:
    good = {"text": POST, "image": encoded(picture())}
    bad = [
        {"text": POST, "image": "https://example.org/a.png"},
        {"text": POST, "image": encoded(b"no image")},
        {"text": POST, "image": encoded(picture()[:-30])},
        {"text": POST, "image": encoded(picture(width=90))},
        {"text": POST, "context": {"captions": "a man"}},
        7,
    ]
    answers = ask(handler, [row for one in bad for row in (good, one)] + [POST])
    assert [row["error"]["status"] for row in answers[1::2]] == [400, 415, 422, 500, 400, 400]
    assert [row["error"]["input"] for row in answers[1::2]] == [1, 3, 5, 7, 9, 11]
    expected = pipe({"text": POST, "context": {"ocr": ["width 64"]}})
    for answer in answers[:-1:2]:
        assert_same(answer, expected)
    assert_same(answers[-1], pipe(POST))


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (7, 400, "no 'text' that is a string"),
        (None, 400, "no 'text' that is a string"),
        ([POST], 400, "no 'text' that is a string"),
        ({"text": 7}, 400, "no 'text' that is a string"),
        ({"image": "aGFsbG8="}, 400, "no 'text' that is a string"),
        ({"text": POST, "picture": "aGFsbG8="}, 400, "unknown key 'picture' (expected 'text', 'image', 'context')"),
        ({"text": POST, "context": ["a man"]}, 400, "the context is not an object"),
        ({"text": POST, "context": {"captions": "a man"}}, 400, "must be a list of strings"),
        ({"text": POST, "context": {"captions": ["dog " * 3000]}}, 413, "the context has 12,0"),
        ({"text": "a" * 10_001}, 413, "the post has 10,001 characters (expected at most 10,000)"),
        ({"text": POST, "image": 7}, 400, "the image is not a string"),
        ({"text": POST, "image": "https://example.org/a.png"}, 400, "is a URL, and URLs are not downloaded"),
        ({"text": POST, "image": "file:///etc/hostname"}, 400, "is a URL, and URLs are not downloaded"),
        ({"text": POST, "image": "C:\\pictures\\a.png"}, 400, "is a URL, and URLs are not downloaded"),
        ({"text": POST, "image": "data:image/png,abc"}, 400, "a data: URI without base64"),
        ({"text": POST, "image": "data:image/png;base64"}, 415, "format is not supported (expected JPEG"),
        ({"text": POST, "image": "no base64!"}, 400, "is not base64"),
        ({"text": POST, "image": "/pictures/ä.png"}, 400, "is not base64"),
        ({"text": POST, "image": encoded(b"hello")}, 415, "format is not supported (expected JPEG"),
        ({"text": POST, "image": ""}, 415, "format is not supported (expected JPEG"),
        (
            {"text": POST, "image": encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>")},
            415,
            "format is not supported (expected JPEG",
        ),
        ({"text": POST, "image": encoded(picture()[:-30])}, 422, "the image cannot be read: "),
        ({"text": POST, "image": encoded(picture(form="JPEG")[:400])}, 422, "the image cannot be read: "),
    ],
)
def test_a_bad_input_is_refused_by_name(handler: EndpointHandler, given: Any, status: int, message: str) -> None:
    refused(ask(handler, [given])[0], status, message)
    if not isinstance(given, list):
        refused(ask(handler, given), status, message)


def test_no_file_of_the_server_is_read(handler: EndpointHandler, tmp_path: Path) -> None:
    file = tmp_path / "abcd.png"
    file.write_bytes(picture())
    for path in (str(file), file.name, "abcd"):
        answer = ask(handler, {"text": POST, "image": path})
        assert answer["error"]["status"] in (400, 415)


def test_images_over_the_limits(handler: EndpointHandler) -> None:
    image = {"text": POST, "image": encoded(picture())}
    handler.limits = handler.limits._replace(image_pixels=64 * 48)
    assert isinstance(ask(handler, image), list)
    handler.limits = handler.limits._replace(image_pixels=64 * 48 - 1)
    refused(ask(handler, image), 413, "64 × 48 pixels (expected at most 3,071)")
    handler.limits = handler.limits._replace(image_pixels=10**6, image_bytes=len(picture()))
    assert isinstance(ask(handler, image), list)
    handler.limits = handler.limits._replace(image_bytes=len(picture()) - 1)
    refused(ask(handler, image), 413, "more than")
    handler.limits = handler.limits._replace(image_bytes=20)
    refused(ask(handler, image), 413, "more than 20 bytes")


def test_a_bomb_is_refused_before_it_is_decoded(handler: EndpointHandler) -> None:
    for side in (8_000, 20_000):  # above the limit, and above PIL's own
        header = b"IHDR" + struct.pack(">II", side, side) + picture()[24:29]
        bomb = picture()[:12] + header + struct.pack(">I", zlib.crc32(header)) + picture()[33:]
        refused(ask(handler, {"text": POST, "image": encoded(bomb)}), 413, "pixels")


def test_a_model_that_reads_no_images(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path, pipe: ItaPipeline
) -> None:
    handler = EndpointHandler(str(export_model(tiny_model, tiny_processor, tmp_path / "model")))
    first, second = ask(handler, [{"text": POST, "image": encoded(picture())}, POST])
    refused(first, 501, 'send a "context" instead')
    assert_same(second, pipe(POST))


def test_what_fails_is_told_and_logged_without_the_post(
    handler: EndpointHandler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    refused(ask(handler, {"text": POST, "image": encoded(picture(90))}), 500, "the server failed (RuntimeError)")
    assert "RuntimeError" in caplog.text
    forward = handler.pipe.forward

    def failing(model_inputs: Any, **given: Any) -> Any:
        if any(OTHER in text for text in model_inputs["batch"].texts):
            raise ValueError(OTHER)
        return forward(model_inputs, **given)

    monkeypatch.setattr(handler.pipe, "forward", failing)
    good, bad = ask(handler, [POST, OTHER])
    assert good
    refused(bad, 500, "the server failed (ValueError)", 1)
    ask(handler, [POST, "http://example.org", {"text": POST, "image": encoded(picture()[:-30])}, {"text": 7}])
    assert not any(word in caplog.text for word in ("Phoenix", "stadium", "example.org"))


# --- several images --------------------------------------------------------------------------------------------------


def test_the_contexts_of_several_images_follow_one_another(handler: EndpointHandler, pipe: ItaPipeline) -> None:
    several = [encoded(picture(70)), encoded(picture(ink="white")), encoded(picture(80))]
    answer = ask(handler, {"text": POST, "image": several}, return_context=True)
    assert answer["context"]["ocr"] == ["width 70", "width 80"]
    assert_same(answer["entities"], pipe({"text": POST, "context": {"ocr": ["width 70", "width 80"]}}))
    one, listed = ask(handler, [{"text": POST, "image": image} for image in (several[0], several[:1])])
    assert one == listed
    assert_same(ask(handler, {"text": POST, "image": []}), pipe(POST))


@pytest.mark.parametrize(
    ("second", "status", "message"),
    [
        (None, 400, "image 2 of 2: the image is not a string"),
        ("https://example.org/a.png", 400, "image 2 of 2: the image is a URL"),
        (encoded(b"hello"), 415, "image 2 of 2: the image format is not supported"),
        (encoded(picture()[:-30]), 422, "image 2 of 2: the image cannot be read"),
        (encoded(picture(90)), 500, "image 2 of 2: the server failed"),
    ],
)
def test_an_error_names_the_image(
    handler: EndpointHandler, pipe: ItaPipeline, second: str | None, status: int, message: str
) -> None:
    answers = ask(handler, [{"text": POST, "image": [encoded(picture()), second]}, POST])
    refused(answers[0], status, message)
    assert_same(answers[1], pipe(POST))


def test_the_limits_count_all_images_of_an_input(
    handler: EndpointHandler, pipe: ItaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"text": POST, "image": [encoded(picture())] * 2}
    size, area = len(picture()), 64 * 48
    for name, limit in (("images", 3), ("total_image_bytes", 3 * size), ("total_image_pixels", 3 * area)):
        monkeypatch.setattr(handler, "limits", handler.limits._replace(**{name: limit}))
        first, second, third = ask(handler, [two, two, {"text": POST, "image": encoded(picture())}])
        assert isinstance(first, list) and isinstance(third, list)  # the one that does not fit costs no other
        refused(second, 413, "with this input the request has", 1)
        refused(ask(handler, {"text": POST, "image": [encoded(picture())] * 9}), 413, "the input has ")
        monkeypatch.undo()
    monkeypatch.setattr(handler, "limits", handler.limits._replace(image_seconds=-1))
    refused(ask(handler, two), 413, "image 1 of 2: the images of this request took more than")


# --- a model that looks at the image itself --------------------------------------------------------------------------

OBJECTS = {"object_tags": ["dog", "car"]}


def mgcmt(model: MgcmtForTokenClassification, encoder: str) -> ItaPipeline:
    """The pipeline of an MGCMT that knows two classes of objects and names no aligners."""
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    processor = MgcmtProcessor(BertTokenizer.from_pretrained(encoder), images, ["car", "dog"])
    return ItaPipeline(model=model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def looking_pipe(tiny_encoder: str) -> ItaPipeline:
    return mgcmt(make_model(), tiny_encoder)


@pytest.fixture(scope="module")
def looking_folder(looking_pipe: ItaPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(looking_pipe.model, looking_pipe.processor, tmp_path_factory.mktemp("looking") / "model")


@pytest.fixture(scope="module")
def looking(looking_folder: Path) -> EndpointHandler:
    return EndpointHandler(str(looking_folder))


def test_a_model_that_looks_is_shown_the_image(looking: EndpointHandler, looking_pipe: ItaPipeline) -> None:
    parts: list[dict[str, Any]] = [{}, {"image": picture()}, {"context": OBJECTS}]
    posts = [{"text": POST, **part} for part in [*parts, parts[1] | parts[2]]]
    expected = looking_pipe(posts, return_context=True)
    sent = [post | ({"image": encoded(post["image"])} if "image" in post else {}) for post in posts]
    for answers in (ask(looking, sent, return_context=True), [ask(looking, row, return_context=True) for row in sent]):
        for answer, row in zip(answers, expected, strict=True):
            assert_same(answer["entities"], row["entities"])
            assert answer["context"] == row["context"]
    scores = {tuple(round(entity["score"], 3) for entity in row["entities"]) for row in expected}
    assert len(scores) == 4
    assert expected[1]["context"] is None
    assert_same(ask(looking, {"text": POST, "image": encoded(picture(ink="white"))}), looking_pipe(POST))


@pytest.mark.parametrize("context", [{}, {"context": OBJECTS}])
def test_an_image_that_cannot_be_seen_is_an_error_and_costs_no_neighbour(
    looking: EndpointHandler, looking_pipe: ItaPipeline, context: dict[str, Any]
) -> None:
    good = {"text": POST, "image": encoded(picture()), **context}
    header = b"IHDR" + struct.pack(">II", 8_000, 8_000) + picture()[24:29]
    bomb = picture()[:12] + header + struct.pack(">I", zlib.crc32(header)) + picture()[33:]
    wrong = {
        400: ["https://example.org/a.png", "no base64!"],
        413: [encoded(bomb)],
        415: [encoded(b"no image")],
        422: [encoded(picture()[:-30]), encoded(picture(form="JPEG")[:400])],
    }
    bad = [(status, image) for status, images in wrong.items() for image in images]
    answers = ask(looking, [row for _, image in bad for row in (good, {"text": POST, "image": image, **context})])
    assert [(row["error"]["status"], row["error"]["input"]) for row in answers[1::2]] == [
        (status, 2 * n + 1) for n, (status, _) in enumerate(bad)
    ]
    assert all(row["error"]["message"].startswith("the image cannot be read: ") for row in answers[9::2])
    expected = looking_pipe({"text": POST, "image": picture(), **context})
    for answer in answers[::2]:
        assert_same(answer, expected)


def test_a_model_that_looks_is_shown_all_images(
    looking: EndpointHandler, looking_pipe: ItaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [picture(), picture(80, ink="red")]
    sent = {"text": POST, "image": [encoded(image) for image in several]}
    assert_same(ask(looking, sent), looking_pipe({"text": POST, "image": several}))
    assert_same(
        ask(looking, {**sent, "context": OBJECTS}), looking_pipe({"text": POST, "image": several, "context": OBJECTS})
    )
    refused(
        ask(looking, {**sent, "image": [sent["image"][0], encoded(picture()[:-30])]}),
        422,
        "image 2 of 2: the image cannot be read",
    )
    builder = VisualContextBuilder(
        object_tags=lambda images: [["dog"] * 6 if i.width == 64 else ["car"] for i in images]
    )
    for pipe in (looking.pipe, looking_pipe):
        monkeypatch.setitem(vars(pipe), "context_builder", builder)
    found = ask(looking, sent, return_context=True)
    assert found["context"]["object_tags"] == ["dog"] * 6 + ["car"]
    expected = looking_pipe({"text": POST, "image": several})
    assert_same(found["entities"], expected)  # five objects of each image: the car takes part
    cut = looking_pipe({"text": POST, "image": several, "context": {"object_tags": ["dog"] * 6 + ["car"]}})
    assert [e["score"] for e in cut] != pytest.approx([e["score"] for e in expected], abs=1e-4)


def test_objects_that_an_aligner_finds_stand_beside_the_image(
    looking: EndpointHandler, looking_pipe: ItaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finds_a_dog(images: Any) -> list[list[str]]:
        if any(image.width == 90 for image in images):
            raise RuntimeError(POST)
        return [["dog"] for _ in images]

    monkeypatch.setitem(vars(looking.pipe), "context_builder", VisualContextBuilder(object_tags=finds_a_dog))
    image, failing = encoded(picture()), encoded(picture(width=90))
    found, failed, given, damaged = ask(
        looking,
        [
            {"text": POST, "image": image},
            {"text": POST, "image": failing},
            {"text": POST, "image": failing, "context": {"object_tags": ["car"]}},
            {"text": POST, "image": encoded(picture()[:-30])},
        ],
    )
    assert_same(found, looking_pipe({"text": POST, "image": picture(), "context": {"object_tags": ["dog"]}}))
    refused(failed, 500, "the server failed (RuntimeError)", 1)
    assert_same(given, looking_pipe({"text": POST, "image": picture(90), "context": {"object_tags": ["car"]}}))
    refused(damaged, 422, "the image cannot be read: ", 3)


def test_aligners_that_do_not_run_here_are_no_silent_lack_of_objects(
    looking: EndpointHandler, looking_pipe: ItaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking.pipe.processor, "context_builder", {"object_tags": "my_code:objects"})
    both = {"text": POST, "image": encoded(picture()), "context": OBJECTS}
    answer, given = ask(looking, [{"text": POST, "image": encoded(picture())}, both])
    refused(answer, 501, 'send a "context" instead')
    assert_same(given, looking_pipe(both | {"image": picture()}))


def test_an_mgcmt_without_vision_is_answered_like_ita(tiny_encoder: str, tmp_path: Path) -> None:
    pipe = mgcmt(make_model(visual_fusion="objects"), tiny_encoder)
    blind = EndpointHandler(str(export_model(pipe.model, pipe.processor, tmp_path / "model")))
    image = {"text": POST, "image": encoded(picture())}
    answer, given, alone = ask(blind, [image, {"text": POST, "image": "no image", "context": OBJECTS}, POST])
    refused(answer, 501, 'send a "context" instead')
    assert_same(given, pipe({"text": POST, "context": OBJECTS}))
    assert_same(alone, pipe(POST))


# --- what is wrong with a request ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({}, 400, 'the request has no "inputs"'),
        ([POST], 400, 'the request has no "inputs"'),
        (POST, 400, 'the request has no "inputs"'),
        ({"inputs": POST, "options": {}}, 400, "the request has the unknown key 'options'"),
        ({"inputs": POST, "parameters": [1]}, 400, '"parameters" is not an object'),
        ({"inputs": POST, "parameters": {"stride": 3}}, 400, "\"parameters\" has the unknown key 'stride' (expected"),
        ({"inputs": POST, "parameters": {"context_store": {}}}, 400, "unknown key 'context_store'"),
        ({"inputs": POST, "parameters": {"min_score": "0.5"}}, 400, "'min_score' is not a number"),
        ({"inputs": POST, "parameters": {"min_score": True}}, 400, "'min_score' is not a number"),
        ({"inputs": POST, "parameters": {"min_score": 1.5}}, 400, "min_score is 1.5 (expected a probability)"),
        ({"inputs": POST, "parameters": {"min_score": float("nan")}}, 400, "min_score is nan"),
        ({"inputs": POST, "parameters": {"batch_size": 0}}, 400, "batch_size is 0 (expected 1 or more)"),
        ({"inputs": POST, "parameters": {"batch_size": 2.0}}, 400, "'batch_size' is not an integer"),
        ({"inputs": POST, "parameters": {"batch_size": 10**9}}, 413, "batch_size is 1,000,000,000"),
        ({"inputs": POST, "parameters": {"ignore_labels": "PER"}}, 400, "'ignore_labels' is not a list of strings"),
        ({"inputs": POST, "parameters": {"ignore_labels": [1]}}, 400, "'ignore_labels' is not a list of strings"),
        ({"inputs": POST, "parameters": {"return_context": 1}}, 400, "'return_context' is not true or false"),
        ({"inputs": POST, "parameters": {"aggregation_strategy": "best"}}, 400, "unknown aggregation_strategy 'best'"),
        ({"inputs": [POST] * 129}, 413, "129 inputs (expected at most 128)"),
    ],
)
def test_a_bad_request_is_answered_as_a_whole(
    handler: EndpointHandler, request_: Any, status: int, message: str
) -> None:
    refused(handler(request_), status, message, place=None)


def test_the_environment_sets_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITA_MAX_INPUTS", "2")
    monkeypatch.setenv("ITA_MAX_CHARACTERS", "5")
    limits = handler_module.Limits.from_environment()
    assert limits == handler_module.Limits(inputs=2, characters=5)
    for wrong in ("0", "-3", "many", ""):
        monkeypatch.setenv("ITA_MAX_IMAGE_BYTES", wrong)
        with pytest.raises(ValueError, match=r"ITA_MAX_IMAGE_BYTES is .* \(expected a positive integer\)"):
            EndpointHandler(str(folder))


# --- where nothing of this project can be imported -------------------------------------------------------------------

STRANGER = """
import base64, importlib.util, json, sys

sys.stderr = sys.stdout  # whatever is logged is read, too
found = []
for folder, requests in json.loads(sys.argv[1]).items():
    spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(folder)
    answers = [handler(request) for request in requests]
    found.append({"answers": answers, "module": type(handler.pipe).__module__})
print("FOUND" + json.dumps(found))
"""


def test_it_runs_in_a_folder_of_its_own(
    folder: Path, looking_folder: Path, tmp_path: Path, pipe: ItaPipeline, looking_pipe: ItaPipeline
) -> None:
    image = {"text": POST, "image": encoded(picture(ink="white"))}
    requests: list[dict[str, Any]] = [
        {"inputs": POST},
        {"inputs": [{"text": POST, "context": CONTEXT}, {"text": POST, "image": "https://example.org/a.png"}]},
        {"inputs": [image, {"text": POST, "image": encoded(picture()[:-30])}], "parameters": {"return_context": True}},
    ]
    both = [{"text": POST, "image": encoded(image), "context": OBJECTS} for image in (picture(), picture()[:-30])]
    asked = json.dumps({str(folder): requests, str(looking_folder): [{"inputs": both}]})
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    logged, _, said = run_stranger(STRANGER, [asked], environment, tmp_path).rpartition("FOUND")
    found, looking = json.loads(said)
    assert all(one["module"].startswith("transformers_modules.") for one in (found, looking))
    ((seen, unseen),) = looking["answers"]
    assert_same(seen, looking_pipe({"text": POST, "image": picture(), "context": OBJECTS}))
    refused(unseen, 422, "cannot be read", 1)
    alone, (with_context, url), (blank, damaged) = found["answers"]
    assert_same(alone, pipe(POST))
    assert_same(with_context, pipe({"text": POST, "context": CONTEXT}))
    refused(url, 400, "is a URL", 1)
    assert_same(blank["entities"], pipe(POST))
    assert blank["context"] == {"provenance": {}}
    refused(damaged, 422, "cannot be read", 1)
    assert "Phoenix" not in logged


def test_it_imports_torch_transformers_and_pil_only() -> None:
    assert set(get_imports(handler_module.__file__)) <= {*sys.stdlib_module_names, "torch", "transformers", "PIL"}
