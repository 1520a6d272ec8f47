"""What the endpoint's handler refuses to spend on a request, and that no request makes it fail."""

from __future__ import annotations

import base64
import itertools
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attacks import attack
from PIL import Image

from hub_card.hub import handler as handler_module
from hub_card.hub.exported_folder import export_model
from hub_card.hub.handler import EndpointHandler
from modeling_ita import ItaForTokenClassification, ItaProcessor, VisualContextBuilder

POST = "Phoenix Suns tonight, Obama in Paris"
HALF = "\ud83d"  # of a surrogate pair


def encoded(width: int = 64, ink: str = "black") -> str:
    image = Image.new("RGB", (width, 48), "white")
    image.paste(ink, (8, 8, 32, 32))
    content = BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@pytest.fixture(scope="module")
def loaded(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> EndpointHandler:
    folder = export_model(tiny_model, tiny_processor, tmp_path_factory.mktemp("endpoint") / "model")
    handler = EndpointHandler(str(folder))
    handler.pipe.context_builder = VisualContextBuilder(ocr=lambda images: [[f"width {i.width}"] for i in images])
    return handler


@pytest.fixture
def handler(loaded: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> EndpointHandler:
    monkeypatch.setattr(loaded, "limits", loaded.limits)  # put back, whatever a test sets
    return loaded


def ask(handler: EndpointHandler, inputs: Any, **parameters: Any) -> Any:
    answer = handler({"inputs": inputs, "parameters": parameters})
    return json.loads(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode())


def said(answers: list[Any]) -> list[str]:
    """Of every input the message of its error, with its status; empty if there is none."""
    errors = [answer.get("error") if isinstance(answer, dict) else None for answer in answers]
    return ["" if error is None else f"{error['status']}: {error['message']}" for error in errors]


def limit(handler: EndpointHandler, **limits: int) -> None:
    handler.limits = handler.limits._replace(**limits)


def test_words_of_a_post(handler: EndpointHandler) -> None:
    few, many = said(ask(handler, [[""] * 5000, [""] * 5001], is_split_into_words=True))
    assert few == ""
    assert many == "413: the post has 5,001 words (expected at most 5,000)"


def test_characters_of_all_inputs_together(handler: EndpointHandler) -> None:
    limit(handler, total_characters=62)
    context = {"captions": ["a dog"]}  # 23 characters as JSON
    answers = said(ask(handler, [POST, {"text": "Obama", "context": context}, {"text": "", "context": context}, "in"]))
    assert answers[0] == answers[2] == answers[3] == ""
    expected = "413: with this input the request has 64 characters (expected at most 62): send it in another request"
    assert answers[1] == expected
    assert said(ask(handler, [["a"] * 30, [""] * 3], is_split_into_words=True))[1].startswith("413: ")
    assert said(ask(handler, [POST * 2]))[0] == "413: the input has 72 characters (expected at most 62)"


def test_tokens_of_all_inputs_together(handler: EndpointHandler) -> None:
    limit(handler, tokens=20)
    letters = "a " * 8  # and two of the model's own
    answers = said(ask(handler, [letters, letters, "a", "", letters]))
    assert answers[:2] == ["", ""] and all(answer.startswith("413: ") for answer in answers[2:])
    assert answers[2].startswith("413: with this input the request has 23 tokens (expected at most 20)")
    assert said(ask(handler, ["a " * 19, "a"])) == ["413: the input has 21 tokens (expected at most 20)", ""]
    context = {"captions": ["a a a a a a a a a a a a"]}
    assert said(ask(handler, [{"text": letters, "context": context}])) != [""]


def test_images_of_all_inputs_together(handler: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"text": POST, "image": encoded()}
    size = len(base64.b64decode(image["image"]))
    given = {**image, "context": {"ocr": ["NBA"]}}  # with a context, nobody looks at the image
    for limits, what in (
        ({"images": 2}, "3 images"),
        ({"total_image_bytes": 2 * size}, "image bytes"),
        ({"total_image_pixels": 2 * 64 * 48}, "9,216 image pixels"),
    ):
        with monkeypatch.context() as within:
            within.setattr(handler, "limits", handler.limits._replace(**limits))
            answers = said(ask(handler, [image, image, image, given, POST]))
        assert [bool(answer) for answer in answers] == [False, False, True, False, False]
        assert answers[2].startswith("413: ") and what in answers[2]


def test_images_take_so_much_time_and_no_more(handler: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow, fast in (("monotonic", "process_time"), ("process_time", "monotonic")):
        # seconds: both are looked at when the images begin, and before each of them
        clocks = {slow: itertools.count(0, 3).__next__, fast: itertools.count(0, 100).__next__}
        monkeypatch.setattr(handler_module, "time", SimpleNamespace(**clocks))
        _check_late(handler)


def _check_late(handler: EndpointHandler) -> None:
    image = {"text": POST, "image": encoded()}
    answers = said(ask(handler, [image, POST, image, image, POST]))
    assert answers[:3] == ["", "", ""] and answers[4] == ""
    assert answers[3] == "413: the images of this request took more than 6 s: send this one in another request"


def test_what_was_sent_is_not_sent_back(handler: EndpointHandler, caplog: pytest.LogCaptureFixture) -> None:
    long = "k" * 100_000
    for request in (
        {"inputs": POST, long: 1},
        {"inputs": {"text": POST, long: 1}},
        {"inputs": POST, "parameters": {long: 1}},
        {"inputs": POST, "parameters": {"aggregation_strategy": long}},
        {"inputs": POST, "parameters": {"batch_size": 10**5000}},
        {"inputs": POST, "parameters": {"min_score": 10**5000}},
        {"inputs": POST, "parameters": {None: 1}},
        {"inputs": POST, "parameters": {"ignore_labels": ["O"] * 1000}},
        {"inputs": {"text": POST, "context": {"captions": long[:9000]}}},
        {"inputs": {"text": POST, "context": {long[:9000]: ["a"]}}},
        {"inputs": {"text": POST, "context": {"captions": {"\x1b[2J": HALF}}}},
    ):
        error = json.loads(json.dumps(handler(request), ensure_ascii=False).encode())["error"]
        assert error["status"] in (400, 413)
        assert len(error["message"]) <= 500 and "\x1b" not in error["message"]
    assert "kkk" not in caplog.text


@pytest.mark.parametrize(
    "context",
    [
        {"captions": ["a"], "provenance": "{"},
        {"captions": ["a"], "provenance": '{"captions": {"score": NaN}}'},
        {"captions": ["a"], "provenance": '{"captions": {"score": 1e999}}'},
        {"captions": ["a"], "provenance": "[" * 9000},
        {"captions": ["a"], "provenance": ["BLIP"]},
        {"captions": ["a"], "provenance": {"captions": 3}},
        {"captions": ["a"], "provenance": {"captions": [{"model": "BLIP"}]}},
        {"captions": ["a"], "provenance": {"captions": {"score": float("nan")}}},
        {"captions": ["a"], "provenance": {"captions": {"score": 10**5000}}},
        {"captions": ["a"], "source": [["BLIP"]]},
        {"captions": ["a"], "source": {"captions": 3}},
        {"captions": b"a"},
        {"captions": ["a"], "": ["b"]},
    ],
)
def test_a_malformed_context_costs_its_input_only(handler: EndpointHandler, context: dict[str, Any]) -> None:
    answers = said(ask(handler, [POST, {"text": POST, "context": context}, POST], return_context=True))
    assert [answer[:4] for answer in answers] == ["", "400:", ""]


def test_deep_nesting(handler: EndpointHandler) -> None:
    deep: Any = "dog"
    for _ in range(20_000):
        deep = [deep]
    bad = [deep, {"text": deep}, {"text": POST, "context": {"captions": deep}}, {"text": POST, "image": deep}]
    bad.append({"text": POST, "context": {"captions": ["a"], "provenance": {"captions": {"settings": deep}}}})
    assert [answer[:4] for answer in said(ask(handler, [*bad, POST]))] == ["400:"] * 5 + [""]
    for request in (deep, {"inputs": POST, "parameters": deep}, {"inputs": POST, "parameters": {"min_score": deep}}):
        assert handler(request)["error"]["status"] == 400


def test_halves_of_surrogate_pairs_are_answered_as_what_stands_for_no_character(handler: EndpointHandler) -> None:
    post = f"Phoenix {HALF}Obama{HALF} Paris"
    context = {"captions": [f"a {HALF}"], "provenance": json.dumps({"captions": {"model": HALF}})}
    answer = ask(handler, {"text": post, "context": context}, return_context=True)
    for entity in answer["entities"]:
        assert entity["word"] == post.replace(HALF, "\ufffd")[entity["start"] : entity["end"]]
    assert answer["context"] == {"captions": ["a \ufffd"], "provenance": {"captions": {"model": "\ufffd"}}}
    assert ask(handler, [["Phoenix", HALF]], is_split_into_words=True)


def test_numbers_that_are_none_cost_their_input_only(handler: EndpointHandler, tiny_processor: ItaProcessor) -> None:
    vector = handler.pipe.model.get_input_embeddings().weight.data[
        tiny_processor.tokenizer.convert_tokens_to_ids("Chicago")
    ]
    before = vector.clone()
    vector.fill_(float("nan"))
    answers = said(ask(handler, [POST, "the Chicago game", "London"]))
    vector.copy_(before)
    assert answers[0] == answers[2] == ""
    assert answers[1].startswith("500: the model gave scores that are not finite numbers")


def test_a_stream_of_hostile_requests(handler: EndpointHandler, tmp_path: Path) -> None:
    attacks = attack("hostile_requests")
    statuses, failures = attacks.attack(handler, 150, 1, attacks.image_files(tmp_path))
    assert failures == []
    assert statuses[200] > 50 and statuses[400] > 50


def test_a_stream_of_hostile_inputs_to_the_pipeline_itself(handler: EndpointHandler, tmp_path: Path) -> None:
    attacks = attack("hostile_inputs")
    ended, failures = attacks.attack(handler.pipe, 150, 1, attacks.image_files(tmp_path), tmp_path)
    assert failures == []
    assert ended["answered"] > 30 and ended["ValueError"] > 10 and ended["TypeError"] > 10
