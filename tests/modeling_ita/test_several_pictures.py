"""Posts with several pictures: both models take them all, and the second picture decides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_ita import LABELS
from tiny_mgcmt import make_model, picture
from transformers import BertTokenizer, ConvNextImageProcessorPil

from hub_card.predictions.prediction import Visual, read_images, read_posts
from modeling_ita import (
    ItaDataCollator,
    ItaForTokenClassification,
    ItaProcessor,
    MgcmtDataCollator,
    MgcmtForTokenClassification,
    MgcmtProcessor,
    VisualContext,
    entity_tagger,
)
from modeling_ita.image_file import pictures_of
from modeling_ita.wordwise_processor import side_by_side

POST = "Phoenix tonight"
WHITE = Image.new("RGB", (32, 32), "white")


def stripes(value: int) -> Image.Image:
    """A picture of few, wide stripes, dark or light."""
    image = Image.new("L", (32, 32), value)
    image.paste(255 - value, (0, 0, 4, 32))
    return image.convert("RGB")


@pytest.fixture
def processor(tiny_encoder: str) -> MgcmtProcessor:
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    tokenizer = BertTokenizer.from_pretrained(tiny_encoder)
    return MgcmtProcessor(tokenizer, images, ["car", "dog", "man", "sign"], num_objects=2)


@pytest.fixture(scope="module")
def mgcmt() -> MgcmtForTokenClassification:
    return make_model()


def emissions(model: Any, processor: Any, posts: list[str], contexts: Any = None, images: Any = None) -> Any:
    """The emissions of every post's words."""
    with torch.no_grad():
        return entity_tagger.word_emissions(model, processor, processor.for_prediction(posts, contexts), images)


# --- pictures and contexts of a post ---------------------------------------------------------------------------------


def test_the_pictures_of_a_post() -> None:
    assert pictures_of(None) == pictures_of([]) == []
    assert pictures_of(b"file") == pictures_of([b"file"]) == pictures_of((b"file",)) == [b"file"]
    assert pictures_of(["a.png", None]) == ["a.png", None]


def test_pictures_stand_side_by_side() -> None:
    one, two = torch.ones(2, 3), torch.full((2, 3), 2.0)
    exists, values = side_by_side([[one], [], [None]])
    assert values is not None and exists.tolist() == [True, False, False] and values.shape == (3, 2, 3)
    exists, values = side_by_side([[None, two], [one], []])
    assert exists.tolist() == [[False, True], [True, False], [False, False]]
    assert values is not None and values.shape == (3, 2, 2, 3) and torch.equal(values[0, 1], two)
    assert values[0, 0].abs().max() == values[2].abs().max() == 0
    assert side_by_side([[None, None], []])[0].tolist() == [[False, False]] * 2 and side_by_side([[None]])[1] is None


def test_object_tags_tell_which_image_they_are_of() -> None:
    first, second = VisualContext({"object_tags": ["car", "dog"]}), VisualContext({"object_tags": ["man"]})
    joined = VisualContext.joined([first, VisualContext({"ocr": ["A"]}), second])
    assert joined.by_image("object_tags") == [["car", "dog"], [], ["man"]]
    assert VisualContext.from_dict(joined.to_dict()).by_image("object_tags") == joined.by_image("object_tags")
    assert VisualContext.joined([joined, first]).by_image("object_tags") == [
        ["car", "dog"],
        [],
        ["man"],
        ["car", "dog"],
    ]
    assert first.by_image("object_tags") == [["car", "dog"]] and joined.by_image("ocr") == [["A"]]
    for sizes in ([2, 2], ["2", "1"], [-1, 4], 3):  # the strings were changed afterwards, or this was written by hand
        changed = VisualContext(joined.kinds, {"object_tags": {"strings_per_image": sizes}})
        assert changed.by_image("object_tags") == [["car", "dog", "man"]]


# --- ITA -------------------------------------------------------------------------------------------------------------


def test_ita_reads_the_contexts_of_all_pictures_kind_by_kind(tiny_processor: ItaProcessor) -> None:
    first, second = {"captions": ["a man"], "ocr": ["SUNS"]}, {"object_tags": ["dog"], "captions": ["a red car"]}
    joined = {"object_tags": ["dog"], "captions": ["a man", "a red car"], "ocr": ["SUNS"]}
    several: Any = [[first, None, second], [first], None]
    expected = tiny_processor([POST] * 3, [joined, first, None])
    for batch in (
        tiny_processor([POST] * 3, several),
        ItaDataCollator(tiny_processor)([{"words": POST.split(), "context": context} for context in several]),
    ):
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    batch = tiny_processor.for_prediction([POST] * 3, several)
    assert torch.equal(batch["cross_input_ids"], expected["cross_input_ids"])
    assert "input_ids" in tiny_processor.for_prediction([POST], [[]])  # no picture: the view T
    assert "input_ids" in tiny_processor.for_prediction([POST], [[VisualContext(), None]])
    short = ItaProcessor(tiny_processor.tokenizer, max_context_length=6)
    counts = short.for_prediction([POST], [[first, second]]).counts
    assert counts["contexts_cut"] == 1
    assert counts["context_pieces_cut"] == short.for_prediction([POST], [joined]).counts["context_pieces_cut"] > 0


def test_the_second_picture_decides_for_ita(tiny_processor: ItaProcessor, tiny_encoder: str) -> None:
    torch.manual_seed(0)
    model = ItaForTokenClassification.from_text_encoder(tiny_encoder, LABELS, word_dropout=0.0).eval()
    poster = {"captions": ["a man"]}
    contexts: Any = [[poster, {"captions": ["game"]}], [poster, {"captions": ["stadium sign"]}]]
    tags = [[5, 0], [3, 0]]  # ORG or LOC
    rows = [{"words": POST.split(), "context": c, "tags": t} for c, t in zip(contexts, tags, strict=True)]
    batch = ItaDataCollator(tiny_processor)(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(30):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = emissions(model, tiny_processor, [POST] * 2, contexts)
    assert model.decode_tags(torch.stack(found), torch.ones(2, 2, dtype=torch.bool)) == tags
    alone = emissions(model, tiny_processor, [POST] * 2, [contexts[0][:1], contexts[1][:1]])
    assert torch.equal(alone[0], alone[1])


# --- MGCMT -----------------------------------------------------------------------------------------------------------


def test_a_list_of_one_picture_changes_nothing(processor: MgcmtProcessor) -> None:
    images, contexts = [picture(1), None, picture(2)], [{"object_tags": ["dog"]}, None, {"object_tags": ["car"]}]
    expected = processor([POST] * 3, contexts, images)
    wrapped: Any = [[image] for image in images], [[context] for context in contexts]
    batch = processor([POST] * 3, wrapped[1], wrapped[0])
    assert batch.keys() == expected.keys() and batch.counts == expected.counts
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    assert batch["pixel_values"].shape == (3, 3, 32, 32) and batch["object_ids"].shape == (3, 2)


def test_all_pictures_and_their_objects_are_laid_out(processor: MgcmtProcessor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no image at all")
    images: Any = [[picture(1), tmp_path / "text.png", picture(2)], picture(3), [tmp_path / "none.png", WHITE], None]
    several = [{"object_tags": ["dog", "car", "man"]}, None, {"object_tags": ["hat", "sign"]}]
    contexts: Any = [several, {"object_tags": ["car"]}, [], None]
    batch = processor([POST] * 4, contexts, images)
    assert batch["has_image"].tolist() == [[True, False, True], [True, False, False], *[[False] * 3] * 2]
    assert batch["pixel_values"].shape == (4, 3, 3, 32, 32)
    assert torch.equal(batch["pixel_values"][0, 2], processor.image_tensors([picture(2)])["pixel_values"][0])
    assert batch["object_ids"].tolist() == [[2, 1, 0, 0, 4, 0], [1, 0, 0, 0, 0, 0], [0] * 6, [0] * 6]
    assert batch.counts["images"] == 3 and batch.counts["objects"] == 4
    assert batch.counts["objects_cut"] == batch.counts["unknown_objects"] == 1
    assert [batch.counts[f"{state}_images"] for state in ("missing", "unreadable", "blank")] == [1, 1, 1]
    joined = VisualContext.joined([VisualContext.from_dict(one or {}) for one in several])
    again = processor([POST] * 4, [joined.to_dict(), *contexts[1:]], images)
    assert torch.equal(again["object_ids"], batch["object_ids"])
    seen: Any = [[torch.ones(4, 12), torch.zeros(4, 12)], torch.ones(4, 12)]
    assert processor([POST] * 2, images=seen)["region_features"].shape == (2, 2, 4, 12)
    with pytest.raises(ValueError, match="the images have the sizes"):
        processor.image_tensors([[torch.ones(4, 12), torch.zeros(5, 12)]])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_order_of_pictures_and_the_gaps_between_them_do_not_matter(
    processor: MgcmtProcessor, mgcmt: MgcmtForTokenClassification, attention: str
) -> None:
    mgcmt.config._attn_implementation = attention
    a, b = picture(1), picture(2)
    dog, car = {"object_tags": ["dog"]}, {"object_tags": ["car"]}
    with torch.no_grad():
        both = mgcmt(**processor(POST, [[dog, car]], [[a, b]])).emissions
        for contexts, images in (([car, dog], [b, a]), ([None, dog, car], [None, a, WHITE, b])):
            torch.testing.assert_close(
                mgcmt(**processor(POST, [contexts], [images])).emissions, both, atol=1e-5, rtol=0
            )
        first = mgcmt(**processor(POST, [dog], [a])).emissions
        torch.testing.assert_close(mgcmt(**processor(POST, [[dog, None]], [[a, None]])).emissions, first)
        none = mgcmt(**processor(POST)).emissions
        torch.testing.assert_close(mgcmt(**processor(POST, None, [[WHITE, None]])).emissions, none)
        assert (both - first).abs().max() > 0.01 and (first - none).abs().max() > 0.01
    mgcmt.config._attn_implementation = "sdpa"


def test_what_is_batched_with_a_post_does_not_matter(
    processor: MgcmtProcessor, mgcmt: MgcmtForTokenClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(["Phoenix", "Suns", "in", "Chicago"] * 5)
    processor.max_length, processor.window_overlap = 16, 6
    posts = [POST, long, "", "Obama in Paris", "the dog", long]
    images: Any = [
        [picture(1), picture(2)],
        [picture(n) for n in range(3, 14)],
        picture(14),
        picture(15),
        None,
        [WHITE],
    ]
    contexts: Any = [None, [{"object_tags": ["dog", "man"]}, {"object_tags": ["car"]}], None, None, None, None]
    alone = [emissions(mgcmt, processor, [p], [c], [i])[0] for p, c, i in zip(posts, contexts, images, strict=True)]
    opened: Counter[int] = Counter()
    sizes: list[int] = []
    passes: list[tuple[int, int]] = []
    see, look = processor.image_tensors, mgcmt.region_features

    def watched(pictures: Any, counts: Any) -> Any:
        opened.update(id(one) for one in pictures if one is not None)
        return see(pictures, counts)

    monkeypatch.setattr(processor, "image_tensors", watched)
    monkeypatch.setattr(mgcmt, "region_features", lambda pixels: [sizes.append(len(pixels)), look(pixels)][1])  # type: ignore[func-returns-value]
    hook = mgcmt.regions.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, given: passes.append((len(given[0]), given[0].shape[1] + given[2].shape[1] * given[2].shape[2]))
    )
    with torch.no_grad():
        whole = mgcmt(**processor(posts, contexts, images)).emissions
    for tokens in (60, 200, 10**6):
        monkeypatch.setattr(entity_tagger, "MAX_TOKENS", tokens)
        for seen in (opened, sizes, passes):
            seen.clear()
        found = emissions(mgcmt, processor, posts, contexts, images)
        for row, wanted, padded in zip(found, alone, whole, strict=True):
            assert len(row) == len(wanted)
            if len(row):
                torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(row, padded[: len(row)], atol=1e-5, rtol=1e-5)
        assert set(opened.values()) == {1} and len(opened) == 15  # every picture once, that of the empty post never
        assert max(sizes) <= entity_tagger.IMAGES_AT_ONCE
        assert all(rows == 1 or rows * width <= tokens for rows, width in passes)  # regions of all pictures count
    hook.remove()


def test_pictures_are_prepared_once_and_shared_by_posts(
    processor: MgcmtProcessor, mgcmt: MgcmtForTokenClassification, tmp_path: Path
) -> None:
    files = [str(tmp_path / f"{n}.png") for n in range(3)]
    for n, file in enumerate(files):
        picture(n).save(file)
    missing = str(tmp_path / "none.png")
    images: Any = [[files[0], files[1]], files[0], None, [files[2]], [missing, files[1]], [missing, missing], []]
    for regions in (True, False):
        seen: Any = read_images(mgcmt, processor, images, regions=regions)
        assert [type(one) for one in seen] == [list, torch.Tensor, type(None), torch.Tensor, list, *[type(None)] * 2]
        assert torch.equal(seen[0][0], seen[1]) and torch.equal(seen[0][1], seen[4][1]) and seen[4][0] is None
        assert seen[1].shape == ((4, 12) if regions else (3, 32, 32))
        words = [POST.split()] * len(images)
        expected, _ = read_posts(mgcmt, processor, words, [Visual(image=image) for image in images])
        found, _ = read_posts(mgcmt, processor, words, [Visual(image=image) for image in seen])
        for row, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by", ["image", "objects"])
def test_the_second_picture_decides_for_mgcmt(processor: MgcmtProcessor, by: str) -> None:
    torch.manual_seed(0)
    fusion = {"visual_fusion": "regions" if by == "image" else "objects", "aug_fusion": "none"}
    model = make_model(train_vision=by == "image", hidden_dropout=0.0, fusion_dropout=0.0, **fusion).train()
    first, poster = picture(0), {"object_tags": ["man", "man"]}
    images: Any = [[first, stripes(0)], [first, stripes(230)]] if by == "image" else [None] * 2
    contexts: Any = [[poster, {"object_tags": ["dog"]}], [poster, {"object_tags": ["car"]}]]
    tags = [[5, 0], [3, 0]]  # ORG or LOC
    rows = [
        {"words": POST.split(), "image": image, "context": context, "tags": tag}
        for image, context, tag in zip(images, contexts, tags, strict=True)
    ]
    batch = MgcmtDataCollator(processor)(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    found = emissions(model, processor, [POST] * 2, contexts, images)
    assert model.decode_tags(torch.stack(found), torch.ones(2, 2, dtype=torch.bool)) == tags
    alone = emissions(model, processor, [POST] * 2, [c[:1] for c in contexts], [i and i[:1] for i in images])
    torch.testing.assert_close(alone[0], alone[1])
