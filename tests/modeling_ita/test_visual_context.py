from __future__ import annotations

import json
import types
from typing import Any

import pytest
from PIL import Image

from modeling_ita.visual_context import VisualContext


class TestVisualContext:
    def test_kinds_are_data(self) -> None:
        context = VisualContext({"knowledge": ["Phoenix is a  team\n here", " \t"], "captions": ["a dog", "the dog"]})
        assert context.kinds == {"knowledge": ["Phoenix is a team here"], "captions": ["a dog", "the dog"]}
        assert (context.captions, context.ocr, context.object_tags) == (["a dog", "the dog"], [], [])
        assert context

    @pytest.mark.parametrize("kinds", [{}, {"ocr": []}, {"ocr": [""], "captions": ["  ", "\u00a0\n"]}])
    def test_context_without_text_is_false(self, kinds: dict[str, list[str]]) -> None:
        assert not VisualContext(kinds)
        assert VisualContext(kinds) == VisualContext()

    def test_equality_is_by_value(self) -> None:
        one = VisualContext({"ocr": ["A"], "captions": ["b"]}, {"ocr": {"model": "x"}})
        assert one == VisualContext({"captions": ["b"], "ocr": [" A "]}, {"ocr": {"model": "x"}})
        assert one != VisualContext({"captions": ["b"], "ocr": ["A"]}, {"ocr": {"model": "y"}})
        assert one != VisualContext({"captions": ["b"], "ocr": ["B"]}, {"ocr": {"model": "x"}})

    def test_contexts_of_several_images_follow_one_another_kind_by_kind(self) -> None:
        first = VisualContext({"ocr": ["A"], "captions": ["b"]}, {"ocr": {"model": "x", "image_sha256": "1"}})
        second = VisualContext(
            {"mood": ["c"], "ocr": ["D"]},
            {"ocr": {"model": "x", "image_sha256": "2"}, "captions": {"model": "y", "image_sha256": "2"}},
        )
        joined = VisualContext.joined([first, second])
        assert joined.kinds == {"ocr": ["A", "D"], "captions": ["b"], "mood": ["c"]}
        assert joined.provenance["ocr"] == {"model": "x", "image_sha256": ["1", "2"]}
        assert joined.provenance["captions"] == {"model": "y", "image_sha256": ["2"]}
        assert VisualContext.joined([first]) is first
        assert VisualContext.joined([]) == VisualContext()
        assert VisualContext.joined([VisualContext({}, {"ocr": {"model": "x"}})] * 2).provenance["ocr"] == {
            "model": "x"
        }

    def test_does_not_share_the_callers_lists(self) -> None:
        strings, origin = ["A"], {"model": "x"}
        context = VisualContext({"ocr": strings}, {"ocr": origin})
        strings.append("B")
        origin["model"] = "y"
        assert context == VisualContext({"ocr": ["A"]}, {"ocr": {"model": "x"}})
        with pytest.raises(AttributeError):
            context.kinds = {}  # type: ignore[misc]

    def test_row_of_a_file(self) -> None:
        row = {
            "id": "17_06_1",
            "object_tags": [],
            "captions": ["a dog"],
            "ocr": None,
            "mood": ["calm"],
            "source": {"captions": "BLIP-2", "mood": "me"},
            "provenance": {"mood": {"model": "me", "date": "2026-01-01"}, "ocr": None},
        }
        assert VisualContext.from_dict(row) == VisualContext(
            {"captions": ["a dog"], "mood": ["calm"]},
            {"captions": {"model": "BLIP-2"}, "mood": {"model": "me", "date": "2026-01-01"}},
        )

    def test_json_round_trip(self) -> None:
        context = VisualContext(
            {"ocr": ["Zürich HB", "出口"], "knowledge": ["x"]}, {"ocr": {"model": "m", "settings": {"min_score": 0.5}}}
        )
        assert VisualContext.from_dict(json.loads(json.dumps(context.to_dict()))) == context
        assert VisualContext.from_dict(VisualContext().to_dict()) == VisualContext()

    def test_a_context_is_a_row(self) -> None:
        context = VisualContext({"ocr": ["A"]})
        assert VisualContext.from_dict(context) is context
        of_another_copy = types.SimpleNamespace(to_dict=context.to_dict)
        assert VisualContext.from_dict(of_another_copy) == context  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"captions": "a dog"}, r"'captions' must be a list of strings, got one string: write \['a dog'\]"),
            ({"captions": {"0": "a dog"}}, "'captions' must be a list of strings, got {'0'"),
            ({"captions": ["a dog", 3]}, "'captions' must be a list of strings, one of them is 3"),
            ({"captions": [None]}, "'captions' must be a list of strings, one of them is None"),
            ({"": ["a"]}, "'' cannot be the name"),
            ({"captions": ["a dog"], "source": "BLIP-2"}, "'source' must be a dictionary by kind"),
            ({"provenance": {"captions": ["BLIP-2"]}}, "provenance of 'captions' must be a dictionary"),
            (["a dog"], "a visual context is a dictionary"),
        ],
    )
    def test_other_shapes_are_refused_by_name(self, row: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VisualContext.from_dict(row)


RED, BLUE = (220, 20, 30), (10, 40, 200)


def two_colours(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image
