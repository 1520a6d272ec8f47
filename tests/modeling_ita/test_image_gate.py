"""`ItaPipeline(read_images=…)`: which images are read, what became of them, and posts with several."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_mgcmt import make_model, picture

from dataset_scripts.contexts.context_store import ContextStore
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, VisualContext, VisualContextBuilder

POSTS = ["Phoenix", "Obama in Paris", "the game tonight", "Suns at London", "a red car", "", "NBA Phoenix Suns"]


class Reader:
    """Reads a picture as the size of it, and remembers the sizes."""

    identity: dict[str, Any] = {"model": "sizes", "revision": "1", "settings": {}}

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        self.seen += [image.width for image in images]
        return [[(f"Obama {image.width} stadium", 1.0)] for image in images]


@pytest.fixture
def pipe(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> ItaPipeline:
    made = ItaPipeline(model=copy.copy(tiny_model), processor=copy.copy(tiny_processor), device="cpu")
    made.model.config = copy.deepcopy(tiny_model.config)
    made.context_builder = VisualContextBuilder(ocr=Reader())
    return made


def sized(width: int) -> Image.Image:
    return picture(width, (width, 40))


def posts_with_images() -> list[Any]:
    inputs: list[Any] = [{"text": post, "image": sized(40 + n)} for n, post in enumerate(POSTS)]
    inputs[3] = POSTS[3]
    return inputs


def unsureness(pipe: ItaPipeline) -> list[float]:
    """The least confidence of every post alone."""
    found = pipe.forward(pipe.preprocess(posts_with_images(), read_images="unsure", image_gate=0.0))
    return found["least_confidence"]


def test_only_images_of_unsure_posts_are_read(pipe: ItaPipeline) -> None:
    inputs = posts_with_images()
    unsure = unsureness(pipe)
    gate = sorted(unsure)[3]
    chosen = [n for n, value in enumerate(unsure) if value > gate and n != 3]
    assert 0 < len(chosen) < 6
    results = pipe(inputs, read_images="unsure", image_gate=gate, return_image_state=True, return_context=True)
    assert pipe.context_builder.aligners["ocr"].seen == [40 + n for n in chosen]  # and none twice
    alone, whole = pipe(POSTS), pipe(inputs)
    assert alone != whole
    for n, result in enumerate(results):
        expected = whole[n] if n in chosen else alone[n]
        assert [{**e, "score": 0} for e in result["entities"]] == [{**e, "score": 0} for e in expected]
        assert [e["score"] for e in result["entities"]] == pytest.approx([e["score"] for e in expected], abs=1e-5)
        assert result["image_state"] == ("read" if n in chosen else "none" if n == 3 else "skipped")
        assert (result["context"] is not None) == (n in chosen)


def test_the_ends_of_the_gate(pipe: ItaPipeline) -> None:
    inputs, reader = posts_with_images(), pipe.context_builder.aligners["ocr"]
    nothing = pipe(inputs, read_images="unsure", image_gate=1.0)
    assert nothing == pipe(inputs, read_images="never") == pipe(POSTS)
    assert reader.seen == []
    pipe(inputs, read_images="unsure", image_gate=0.0, batch_size=2)
    assert sorted(reader.seen) == [40, 41, 42, 44, 46]  # 45 is the post without words, which a picture cannot change


def test_the_gate_is_that_of_the_checkpoint(pipe: ItaPipeline) -> None:
    inputs = posts_with_images()
    with pytest.raises(ValueError, match=r"needs an image_gate, and this checkpoint has none: pass image_gate="):
        pipe(inputs, read_images="unsure")
    pipe.model.config.image_gate = sorted(unsureness(pipe))[3]
    assert pipe(inputs, read_images="unsure") == pipe(
        inputs, read_images="unsure", image_gate=pipe.model.config.image_gate
    )
    by_word = pipe(inputs, read_images="unsure", aggregation_strategy="none")
    assert by_word != pipe(POSTS, aggregation_strategy="none")
    for wrong in ({"read_images": "sometimes"}, {"image_gate": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
            pipe(inputs, **wrong)


def test_a_given_context_takes_part_whatever_the_mode(pipe: ItaPipeline) -> None:
    given = {"text": POSTS[1], "image": "not/there.png", "context": {"ocr": ["Obama 3 stadium"]}}
    expected = pipe({"text": POSTS[1], "context": given["context"]})
    for mode in ("always", "unsure", "never"):
        result = pipe(given, read_images=mode, image_gate=0.0, return_image_state=True)
        assert result == {"entities": expected, "image_state": "skipped"}


def test_states(pipe: ItaPipeline, tmp_path: Path) -> None:
    pipe.context_builder = VisualContextBuilder(ocr=Reader(), store=ContextStore(tmp_path / "store"))
    (tmp_path / "text.png").write_bytes(b"no image at all")
    images: list[Any] = [sized(50), tmp_path / "text.png", Image.new("RGB", (64, 64)), None, sized(50)]
    images += [[tmp_path / "text.png", sized(51)], [Image.new("RGB", (64, 64)), tmp_path / "text.png"], []]
    inputs = [{"text": "Phoenix", "image": image} for image in images]

    def states() -> list[str]:
        return [result["image_state"] for result in pipe(inputs, return_image_state=True)]

    assert states() == ["read", "unreadable", "blank", "none", "read", "read", "unreadable", "none"]
    assert states() == ["stored", "unreadable", "blank", "none", "stored", "stored", "unreadable", "none"]


def test_the_second_picture_decides(pipe: ItaPipeline) -> None:
    first, second = sized(40), sized(41)
    both = pipe({"text": POSTS[1], "image": [first, second]}, return_context=True)
    assert both["context"]["ocr"] == ["Obama 40 stadium", "Obama 41 stadium"]
    assert len(both["context"]["provenance"]["ocr"]["image_sha256"]) == 2
    joined = VisualContext({"ocr": ["Obama 40 stadium", "Obama 41 stadium"]})
    assert both["entities"] == pipe({"text": POSTS[1], "context": joined})
    assert both["entities"] != pipe({"text": POSTS[1], "image": [first, first]})
    assert pipe({"text": POSTS[1], "image": [first]}) == pipe({"text": POSTS[1], "image": first})
    with pytest.raises(FileNotFoundError, match="input 0: there is no image file 'none"):
        pipe({"text": "a", "image": [first, "none.png"]})


def test_a_model_that_looks_at_images(tiny_encoder: str) -> None:
    from transformers import BertTokenizer, ConvNextImageProcessorPil

    from modeling_ita import MgcmtProcessor

    processor = MgcmtProcessor(
        BertTokenizer.from_pretrained(tiny_encoder), ConvNextImageProcessorPil(size={"shortest_edge": 32})
    )
    pipe = ItaPipeline(model=make_model(), processor=processor, device="cpu")
    inputs: list[Any] = [{"text": post, "image": picture(n)} for n, post in enumerate(POSTS)]
    inputs[2]["image"] = Image.new("RGB", (64, 64))
    inputs[3]["image"] = b"no image"
    results = pipe(inputs, return_image_state=True)
    assert [result["image_state"] for result in results] == [*["read"] * 2, "blank", "unreadable", *["read"] * 3]
    unsure = pipe.forward(pipe.preprocess(inputs, read_images="unsure", image_gate=0.0))["least_confidence"]
    gate = sorted(unsure)[3]
    gated = pipe(inputs, read_images="unsure", image_gate=gate, return_image_state=True)
    words = pipe(inputs, read_images="unsure", image_gate=gate, aggregation_strategy="none", ignore_labels=[])
    always, never = (
        pipe(inputs, read_images=mode, aggregation_strategy="none", ignore_labels=[]) for mode in ("always", "never")
    )
    for n, result in enumerate(gated):
        assert (result["image_state"] == "skipped") == (unsure[n] <= gate)
        expected = always[n] if unsure[n] > gate else never[n]
        assert [word["score"] for word in words[n]] == pytest.approx([word["score"] for word in expected], abs=1e-5)
