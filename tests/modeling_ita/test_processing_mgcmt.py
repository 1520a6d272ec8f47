"""`MgcmtProcessor` and the pipeline on it: tensors, masks, counts, what is saved, what is refused."""

from __future__ import annotations

import io
import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_mgcmt import make_model, picture
from transformers import BertTokenizer, CLIPImageProcessor, CLIPImageProcessorPil, ConvNextImageProcessorPil

from modeling_ita import ItaPipeline, MgcmtForTokenClassification, MgcmtProcessor, VisualContextBuilder, WordNeighbours

LABELS = ["car", "traffic light", "dog", "hot dog"]
WORDS = ["Phoenix", "Suns", "Chicago", "game", "dog", "car"]
POST = "Phoenix Suns tonight, Obama in Paris"
TAGS = ["dog", "red traffic light", "unicorn", "Dog", "hot dog"]


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def table() -> WordNeighbours:
    return WordNeighbours(WORDS, torch.randn(len(WORDS), 6, generator=torch.Generator().manual_seed(0)), 2)


def make_processor(encoder: str, **settings: Any) -> MgcmtProcessor:
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    made: dict[str, Any] = {"object_labels": LABELS, "num_objects": 3, "word_neighbours": table()}
    return MgcmtProcessor(BertTokenizer.from_pretrained(encoder), images, **made | settings)


@pytest.fixture
def processor(tiny_encoder: str) -> MgcmtProcessor:
    return make_processor(tiny_encoder)


@pytest.fixture(scope="module")
def model() -> MgcmtForTokenClassification:
    return make_model(num_object_classes=5)


# --- text ------------------------------------------------------------------------------------------------------------


def test_posts_are_laid_out_as_for_ita(processor: MgcmtProcessor, tiny_processor: Any) -> None:
    posts, labels = [POST, "", "Paris"], [[1, 2, 0, 0, 1, 0, 3], [], [3]]
    batch, expected = processor(posts, labels=labels), tiny_processor(posts, labels=labels)
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
    assert batch.texts == expected.texts and batch.words == expected.words
    assert {name: batch.counts[name] for name in expected.counts} == expected.counts
    assert batch["has_image"].tolist() == [False] * 3
    assert batch["object_ids"].tolist() == [[0, 0, 0]] * 3
    assert "pixel_values" not in batch and "row_posts" not in batch


def test_rows_of_a_long_post_tell_their_post(tiny_encoder: str) -> None:
    processor = make_processor(tiny_encoder, max_length=16, window_overlap=6)
    long = [string.ascii_letters[n] for n in range(40)]
    batch = processor([["Paris"], long, ["dog"]], is_split_into_words=True)
    owners = batch["row_posts"]
    assert len(owners) == len(batch["input_ids"]) > 3
    assert owners.tolist() == sorted(owners.tolist()) and set(owners.tolist()) == {0, 1, 2}
    is_word = batch["word_positions"] >= 0
    posts = torch.arange(3)[:, None].expand_as(is_word)
    assert torch.equal(owners[batch["word_rows"]][is_word], posts[is_word])
    found = batch["input_ids"][batch["word_rows"][1], batch["word_positions"][1]]
    assert processor.tokenizer.convert_ids_to_tokens(found.tolist()) == long


def test_every_word_has_its_neighbours_and_strangers_are_counted(processor: MgcmtProcessor) -> None:
    batch = processor([["Phoenix", "zzz", "game"], ["CAR"], []], is_split_into_words=True)
    expected = table().look_up(["Phoenix", "game", "CAR"])
    assert batch["augmentation"].shape == (3, 3, 6)
    assert torch.equal(batch["augmentation"][[0, 0, 1], [0, 2, 0]], expected.mean)
    assert not batch["augmentation"][0, 1].any() and not batch["augmentation"][1:, 1:].any()
    assert batch.counts["unaugmented_words"] == 1


def test_for_attention_every_neighbour_is_given(tiny_encoder: str) -> None:
    batch = make_processor(tiny_encoder, augmentation="vectors")(["dog Phoenix"])
    assert torch.equal(batch["augmentation"][0], table().look_up(["dog", "Phoenix"]).vectors)
    assert make_model(aug_fusion="attention")(**batch).logits.isfinite().all()


def test_without_a_table_nothing_is_augmented(tiny_encoder: str) -> None:
    batch = make_processor(tiny_encoder, word_neighbours=None)([POST])
    assert "augmentation" not in batch and "unaugmented_words" not in batch.counts


# --- objects ---------------------------------------------------------------------------------------------------------


def test_objects_are_classes_in_the_given_order(processor: MgcmtProcessor) -> None:
    contexts = [{"object_tags": TAGS}, None, {"captions": ["a dog"]}, {"object_tags": ["old  Hot DOG"]}]
    batch = processor([POST] * 4, contexts)
    assert batch["object_ids"].tolist() == [[3, 2, 3], [0, 0, 0], [0, 0, 0], [4, 0, 0]]
    counts = {name: batch.counts[name] for name in ("objects", "unknown_objects", "objects_cut")}
    assert counts == {"objects": 4, "unknown_objects": 1, "objects_cut": 1}


def test_a_label_is_whole_words(processor: MgcmtProcessor) -> None:
    batch = processor(["a"], {"object_tags": ["watchdog", "light", "dog house"]})
    assert not batch["object_ids"].any() and batch.counts["unknown_objects"] == 3


# --- images ----------------------------------------------------------------------------------------------------------


def test_an_image_may_be_a_path_bytes_or_a_picture(processor: MgcmtProcessor, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    sources: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(picture()), picture()]
    batch = processor(["a"] * 4, images=sources)
    expected = processor.image_processor(images=picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected.expand(4, 3, 32, 32))
    assert batch["has_image"].tolist() == [True] * 4 and batch.counts["images"] == 4
    assert torch.equal(processor("a", images=picture())["pixel_values"], expected)


def test_pixels_are_rgb_and_the_centre(processor: MgcmtProcessor) -> None:
    stripes = Image.new("RGB", (128, 32), "blue")
    stripes.paste("red", (32, 0, 96, 32))  # the outer quarters are cut off
    pixels = processor("a", images=stripes)["pixel_values"][0]
    assert (pixels[0] > 0.9).all() and (pixels[1:] < -0.9).all()


def test_images_that_show_nothing_are_masked_and_counted(processor: MgcmtProcessor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no image at all")
    blank = Image.new("RGB", (64, 64), "white")
    sources: list[Any] = [
        tmp_path / "none.png",
        tmp_path / "text.png",
        blank,
        None,
        picture(),
        encoded(picture())[:200],
    ]
    batch = processor(["a"] * 6, images=sources)
    assert batch["has_image"].tolist() == [False, False, False, False, True, False]
    assert not batch["pixel_values"][~batch["has_image"]].any()
    counts = {name: n for name, n in batch.counts.items() if "image" in name}
    assert counts == {"missing_images": 1, "unreadable_images": 2, "blank_images": 1, "images": 1}
    nothing = processor(["a"] * 2, images=[None, blank])
    assert "pixel_values" not in nothing and not nothing["has_image"].any()


def test_region_features_are_taken_as_they_are(processor: MgcmtProcessor, model: MgcmtForTokenClassification) -> None:
    features = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0))
    batch = processor(["a", "Paris"], images=features)
    assert torch.equal(batch["region_features"], features) and batch["has_image"].all()
    batch = processor(["a", "Paris"], images=[None, features[1]])
    assert torch.equal(batch["region_features"][1], features[1]) and batch["has_image"].tolist() == [False, True]
    assert model(**batch).logits.isfinite().all()
    assert "region_features" not in processor(["a"], images=[None])


def test_pixels_made_before_stand_for_the_image(processor: MgcmtProcessor) -> None:
    pixels = processor.image_tensors([picture()])["pixel_values"]
    batch = processor(["a", "Paris"], images=[None, pixels[0]])
    assert torch.equal(batch["pixel_values"][1], pixels[0]) and batch["has_image"].tolist() == [False, True]
    assert batch.counts["images"] == 1


def test_a_batch_equals_its_posts_one_by_one(tiny_encoder: str, model: MgcmtForTokenClassification) -> None:
    processor = make_processor(tiny_encoder, max_length=16, window_overlap=6)
    posts = [POST, "Paris", "", " ".join(string.ascii_letters), "dog"]
    contexts = [None, {"object_tags": TAGS}, None, {"object_tags": ["car"]}, None]
    images = [picture(), None, picture(1), picture(2), None]
    batch = processor(posts, contexts, images)
    with torch.no_grad():
        together = model(**batch).emissions
        for n, post in enumerate(posts):
            words = len(batch.words[n])
            if words:
                alone = model(**processor([post], [contexts[n]], [images[n]])).emissions[0]
                torch.testing.assert_close(together[n, :words], alone, atol=1e-4, rtol=1e-4)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(tiny_encoder: str, tmp_path: Path) -> None:
    images = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor = MgcmtProcessor(
        BertTokenizer.from_pretrained(tiny_encoder),
        images,
        LABELS,
        num_objects=2,
        word_neighbours=table(),
        augmentation="vectors",
        max_length=64,
        context_builder={"object_tags": "facebook/detr-resnet-50"},
    )
    processor.save_pretrained(tmp_path / "first")
    loaded = MgcmtProcessor.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert "processor_config.json" in files and "preprocessor_config.json" not in files
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    assert type(loaded.image_processor) is CLIPImageProcessorPil  # also where torchvision is installed
    batches = [p([POST], {"object_tags": TAGS}, picture()) for p in (processor, loaded)]
    assert batches[0].keys() == batches[1].keys() >= {"augmentation", "pixel_values", "object_ids"}
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert loaded.context_builder == processor.context_builder and loaded.max_length == 64


def test_a_table_of_the_encoders_embeddings_comes_back(tiny_encoder: str, tmp_path: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(tiny_encoder)
    vectors = torch.randn(len(tokenizer), 6, generator=torch.Generator().manual_seed(0))
    processor = make_processor(tiny_encoder, word_neighbours=WordNeighbours.from_encoder(tokenizer, vectors))
    processor.save_pretrained(tmp_path)
    loaded = MgcmtProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded([POST])["augmentation"], processor([POST])["augmentation"])


def test_a_lost_table_is_an_error_and_none_is_none(
    tiny_encoder: str, processor: MgcmtProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path / "with")
    for file in (tmp_path / "with").glob("word_neighbours*"):
        file.unlink()
    with pytest.raises(OSError, match="word_neighbours"):
        MgcmtProcessor.from_pretrained(tmp_path / "with")
    make_processor(tiny_encoder, word_neighbours=None).save_pretrained(tmp_path / "without")
    assert MgcmtProcessor.from_pretrained(tmp_path / "without").word_neighbours is None
    assert not list((tmp_path / "without").glob("word_neighbours*"))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"posts": ["a", "b"], "contexts": [None]}, ValueError, "2 posts but 1 contexts"),
        ({"posts": ["a", "b"], "images": [None]}, ValueError, "2 posts but 1 images"),
        ({"posts": ["a", "b"], "images": [None, "https://example.org/a.png"]}, ValueError, "post 1: .*is a URL"),
        ({"posts": ["a", "b"], "images": [None, 3]}, TypeError, "post 1: .*got int"),
        ({"posts": ["a"], "images": [torch.zeros(4)]}, ValueError, r"post 0: its image is a tensor \(4,\)"),
        (
            {"posts": ["a", "b"], "images": [torch.zeros(4, 2), torch.zeros(3, 2)]},
            ValueError,
            r"sizes \(3, 2\) and \(4, 2\)",
        ),
        (
            {"posts": ["a", "b"], "images": [torch.zeros(4, 2), torch.zeros(3, 32, 32)]},
            ValueError,
            r"sizes \(3, 32, 32\) and \(4, 2\)",
        ),
        ({"posts": ["a b"], "labels": [[0]]}, ValueError, "post 0 has 2 words but 1 labels"),
        ({"posts": ["a", 3]}, TypeError, "post 1 is a int"),
    ],
)
def test_bad_input_is_refused_by_name(
    processor: MgcmtProcessor, call: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        processor(**call)


def test_images_of_different_sizes_are_refused(tiny_encoder: str) -> None:
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    processor = MgcmtProcessor(BertTokenizer.from_pretrained(tiny_encoder), images)
    with pytest.raises(ValueError, match=r"the images have the sizes .*must crop \(do_center_crop"):
        processor(["a", "b"], images=[picture(), picture(1, (40, 60))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_objects": 0}, "num_objects is 0"),
        ({"augmentation": "sum"}, "unknown augmentation 'sum'"),
        ({"object_labels": ["dog", "Dog"]}, "stands twice"),
        ({"object_labels": [" "]}, "cannot be the label"),
        ({"max_length": 4}, "max_length is 4"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_encoder: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_processor(tiny_encoder, **settings)


def test_an_image_processor_that_needs_torchvision_is_refused(tiny_encoder: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r'CLIPImageProcessor, which needs torchvision .*backend="pil"'):
        MgcmtProcessor(BertTokenizer.from_pretrained(tiny_encoder), CLIPImageProcessor())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_object_classes": 4}, "4 object_labels and padding do not fit .* = 4"),
        ({"augmentation_size": 7}, "have 6 dimensions, and the model's augmentation_size is 7"),
        ({"aug_fusion": "attention"}, "augmentation is 'mean', and the model's aug_fusion 'attention'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    processor: MgcmtProcessor, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ItaPipeline(model=make_model(**settings), processor=processor)


# --- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(model: MgcmtForTokenClassification, processor: MgcmtProcessor) -> ItaPipeline:
    return ItaPipeline(model=model, processor=processor, device="cpu")


def words_of(pipe: ItaPipeline, inputs: Any) -> Any:
    return pipe(inputs, aggregation_strategy="none", ignore_labels=[])


def assert_same(results: Any, expected: Any) -> None:
    assert len(results) == len(expected)
    for got, wanted in zip(results, expected, strict=True):
        assert [{**e, "score": 0} for e in got] == [{**e, "score": 0} for e in wanted]
        assert [e["score"] for e in got] == pytest.approx([e["score"] for e in wanted], abs=1e-4)


def test_the_pipeline_gives_what_the_model_says(pipe: ItaPipeline, model: MgcmtForTokenClassification) -> None:
    context = {"object_tags": TAGS}
    for given in ({"image": picture()}, {"context": context}, {"image": picture(), "context": context}, {}):
        batch = pipe.processor(POST, given.get("context"), given.get("image"))
        with torch.no_grad():
            outputs = model(**batch)
        tags = model.decode_tags(outputs.emissions, batch["word_positions"] >= 0)[0]
        found = words_of(pipe, {"text": POST, **given})
        assert [w["entity"] for w in found] == [model.config.tag_scheme.labels[tag] for tag in tags]
        expected = [outputs.logits[0, n, tag].exp().item() for n, tag in enumerate(tags)]
        assert [w["score"] for w in found] == pytest.approx(expected, abs=1e-5)
    scores = {
        words_of(pipe, {"text": POST, **given})[0]["score"]
        for given in ({}, {"image": picture()}, {"image": picture(1)}, {"context": context})
    }
    assert len(scores) == 4


def test_batches_change_nothing(tiny_encoder: str, model: MgcmtForTokenClassification) -> None:
    pipe = ItaPipeline(model=model, processor=make_processor(tiny_encoder, max_length=16, window_overlap=6))
    draw = random.Random(0)
    inputs: list[Any] = []
    for n in range(16):
        post: dict[str, Any] = {"text": " ".join(draw.choices(WORDS, k=draw.choice((0, 1, 5, 30))))}
        if n % 2:
            post["image"] = picture(n)
        if n % 3:
            post["context"] = {"object_tags": draw.choices(LABELS, k=2)}
        inputs.append(post)
    expected = [words_of(pipe, item) for item in inputs]
    assert_same(pipe(inputs, batch_size=5, aggregation_strategy="none", ignore_labels=[]), expected)
    steps = pipe.forward(pipe.preprocess(inputs), by_word=True)
    assert_same(pipe.postprocess(steps, ignore_labels=[]), expected)


def test_images_are_opened_batch_by_batch(pipe: ItaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    see = pipe.processor.image_tensors

    def watched(images: Any, counts: Any) -> Any:
        opened.append(sum(image is not None for image in images))
        return see(images, counts)

    monkeypatch.setattr(pipe.processor, "image_tensors", watched)
    pipe([{"text": "Phoenix", "image": picture(n)} for n in range(7)], batch_size=3)
    assert opened == [3, 3, 1]  # none while the posts are read


def test_objects_come_from_the_builder_that_the_checkpoint_names_or_is_given(pipe: ItaPipeline) -> None:
    looking = {"text": POST, "image": picture()}
    alone = pipe(looking, return_context=True)
    assert alone["context"] is None  # neither named nor given: no object, and no error
    pipe.context_builder = VisualContextBuilder(object_tags=lambda images: [["dog", "car"] for _ in images])
    found = pipe(looking, return_context=True, aggregation_strategy="none", ignore_labels=[])
    assert found["context"]["object_tags"] == ["dog", "car"]
    assert_same([found["entities"]], [words_of(pipe, {**looking, "context": {"object_tags": ["dog", "car"]}})])
    given = pipe({**looking, "context": {"object_tags": ["hat"], "captions": ["a man"]}}, return_context=True)
    assert given["context"] == {"object_tags": ["hat"], "provenance": {}}


def test_an_image_that_cannot_be_read_costs_the_image_only(pipe: ItaPipeline, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no image at all")
    blank = Image.new("RGB", (64, 64))
    results = words_of(pipe, [{"text": POST, "image": image} for image in (tmp_path / "text.png", blank, None)])
    assert_same(results, [words_of(pipe, POST)] * 3)
    with pytest.raises(FileNotFoundError, match=r"input 1: there is no image file 'none\.png'"):
        pipe(["a", {"text": "a", "image": "none.png", "context": {"object_tags": ["dog"]}}])


def test_a_model_that_does_not_look_needs_a_context(processor: MgcmtProcessor) -> None:
    pipe = ItaPipeline(model=make_model(visual_fusion="objects"), processor=processor, device="cpu")
    with pytest.raises(ValueError, match="names no way to read images"):
        pipe({"text": POST, "image": picture()})
    assert words_of(pipe, {"text": POST, "context": {"object_tags": ["dog"]}}) != words_of(pipe, POST)
