"""`ObjectTagger` and `AttributeTagger`: for every architecture the objects that the model itself finds, and what of
them is kept."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from tiny_checkpoints import DETECTORS, LABELS, TinyCheckpoints, pictures
from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection, AutoProcessor
from transformers import AutoModelForZeroShotObjectDetection as AutoModelForZeroShot

from modeling_ita.captioner import Captioner
from modeling_ita.object_tagger import ATTRIBUTES, AttributeTagger, ObjectTagger

TAGS = ["car", "dog", "traffic light"]
FIXED = ("rt_detr_v2", "d_fine", "detr")
OPEN = ("owlv2", "owlvit", "grounding_dino", "mm_grounding_dino")
WRITES = (
    " dog<loc_100><loc_200><loc_500><loc_999> traffic light<loc_0><loc_1><loc_2><loc_3> red car<loc_10><loc_20>"
    + ("<loc_300><loc_400><loc_11><loc_21><loc_301><loc_401>")
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    return TinyCheckpoints(tmp_path_factory.mktemp("detectors"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


IN_USE: dict[str, ObjectTagger] = {}  # so that their checkpoints are loaded once


def tagger(tiny: TinyCheckpoints, name: str, **settings: Any) -> ObjectTagger:
    tags = {"tags": TAGS} if name in OPEN else {}
    made = ObjectTagger(tiny(name), **{"min_score": 0.0, "device": "cpu", **tags, **settings})
    if name in DETECTORS and not settings:
        IN_USE.setdefault(name, made)
    return made


def expected_objects(name: str, folder: str, image: Image.Image) -> list[tuple[str, float, list[float]]]:
    """Objects by the model's raw outputs: (label, score, box in pixels), most confident first."""
    width, height = image.size
    with torch.no_grad():
        if name in OPEN:
            model, processor = AutoModelForZeroShot.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
            text = [[f"a photo of a {tag}" for tag in TAGS]] if "owl" in name else "car. dog. traffic light."
            inputs = processor(images=image, text=text, return_tensors="pt")
        else:
            model = AutoModelForObjectDetection.from_pretrained(folder)
            processor = AutoImageProcessor.from_pretrained(folder)
            inputs = processor(images=image, return_tensors="pt")
        outputs = model.eval()(**inputs)
    logits = outputs.logits[0]
    x, y, w, h = outputs.pred_boxes[0].unbind(-1)
    side_x, side_y = (max(image.size),) * 2 if name == "owlv2" else (width, height)  # OWLv2 pads to a square
    boxes = torch.stack([(x - w / 2) * side_x, (y - h / 2) * side_y, (x + w / 2) * side_x, (y + h / 2) * side_y], -1)
    if name in ("rt_detr_v2", "d_fine"):  # the best pairs of a query and a class
        scores, places = logits.sigmoid().flatten().topk(len(logits))
        queries, classes = places // len(LABELS), places % len(LABELS)
        names = [LABELS[int(c)] for c in classes]
    elif "dino" in name:  # [CLS] car . dog . traffic light . [SEP]
        scores = logits.sigmoid().amax(-1)
        queries = torch.arange(len(logits))
        words = ["car", "dog", "traffic light", "traffic light"]
        names = [words[int(place)] for place in logits[:, [1, 3, 5, 6]].argmax(-1)]
    else:
        scores, classes = (logits.softmax(-1)[:, :-1] if name == "detr" else logits.sigmoid()).max(-1)
        queries = torch.arange(len(logits))
        names = [(TAGS if "owl" in name else LABELS)[int(c)] for c in classes]
    rows = zip(names, scores.tolist(), boxes[queries].tolist(), strict=True)
    return sorted((row for row in rows if row[0] != "N/A"), key=lambda row: -row[1])


@pytest.mark.parametrize("name", DETECTORS)
def test_objects_are_the_models_most_confident_first(tiny: TinyCheckpoints, name: str) -> None:
    image = pictures()[1]
    assert image.width > image.height
    [found] = tagger(tiny, name).detect([image])
    expected = expected_objects(name, tiny(name), image)
    assert len(found) == len(expected) > 2
    assert [o.label for o in found] == [label for label, _, _ in expected]
    assert [o.score for o in found] == pytest.approx([score for _, score, _ in expected], rel=1e-4)
    for one, (_, _, box) in zip(found, expected, strict=True):
        assert one[2:] == pytest.approx(box, rel=1e-3, abs=1e-2)
    assert "N/A" not in {o.label for o in found}


@pytest.mark.parametrize("name", DETECTORS)
def test_tags_are_the_objects_once_above_the_threshold(tiny: TinyCheckpoints, name: str) -> None:
    image = pictures()[2]
    [objects] = tagger(tiny, name).detect([image])
    pairs = [(o.label, o.score) for o in objects]
    assert tagger(tiny, name, duplicates=True, max_objects=99)([image]) == [pairs]
    assert tagger(tiny, name, duplicates=True, max_objects=2)([image]) == [pairs[:2]]
    unique: dict[str, float] = {}
    for label, score in pairs:
        unique.setdefault(label, score)
    assert tagger(tiny, name)([image]) == [list(unique.items())]
    assert tagger(tiny, name, max_objects=1)([image]) == [list(unique.items())[:1]]
    middle = pairs[len(pairs) // 2][1]
    kept = tagger(tiny, name, duplicates=True, max_objects=99, min_score=middle)([image])
    assert kept == [[(label, score) for label, score in pairs if score > middle]]
    assert tagger(tiny, name, min_score=1.0)([image]) == [[]]


@pytest.mark.parametrize("name", DETECTORS)
def test_batch_equals_one_by_one(tiny: TinyCheckpoints, name: str) -> None:
    images = pictures(4)
    aligner = tagger(tiny, name, duplicates=True, max_objects=99)
    together, alone = aligner.detect(images), [aligner.detect([image])[0] for image in images]
    for batched, single in zip(together, alone, strict=True):
        assert [o.label for o in batched] == [o.label for o in single]
        for one, other in zip(batched, single, strict=True):
            assert one[1:] == pytest.approx(other[1:], rel=1e-3, abs=1e-3)
    assert len({objects[0].score for objects in together}) > 2
    assert aligner([]) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_half_precision(tiny: TinyCheckpoints, name: str) -> None:
    aligner = tagger(tiny, name, dtype="bfloat16")
    strings = aligner(pictures())
    assert aligner.checkpoint.model.dtype == torch.bfloat16
    assert all(strings)
    assert all(0 <= score <= 1 and label in LABELS.values() for of_one in strings for label, score in of_one)


def test_tag_of_a_box_does_not_depend_on_the_threshold(tiny: TinyCheckpoints) -> None:
    [objects] = tagger(tiny, "grounding_dino").detect(pictures(1))
    for threshold in (0.1, objects[3].score):
        assert tagger(tiny, "grounding_dino", min_score=threshold).detect(pictures(1)) == [
            [found for found in objects if found.score > threshold]
        ]
    capital = tagger(tiny, "grounding_dino", tags=["Car", "U.S. dog", "Traffic  light"])
    assert {found.label for found in capital.detect(pictures(1))[0]} <= {"Car", "U.S. dog", "Traffic light"}


def test_more_tags_than_grounding_dino_reads_are_refused(tiny: TinyCheckpoints) -> None:
    with pytest.raises(
        ValueError, match=r"12 tags are 26 tokens, .*grounding_dino reads 24: give fewer, or take OWLv2"
    ):
        tagger(tiny, "grounding_dino", tags=["car"] * 12)(pictures(1))


def test_tags_are_for_open_vocabularies(tiny: TinyCheckpoints) -> None:
    for name in OPEN:
        with pytest.raises(ValueError, match=r"which finds what it is told to look for: pass tags=\['person', …\]"):
            tagger(tiny, name, tags=None)(pictures(1))
    for name in ("detr", "florence2"):
        with pytest.raises(ValueError, match=r"which has labels of its own: leave tags= out, .*OWLv2"):
            tagger(tiny, name, tags=["car"])(pictures(1))


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"tags": "car"}, r"tags is 'car' \(expected a list of 1 to 500 strings .*: write \['car'\]\)"),
        ({"tags": []}, r"tags is \[\] \(expected .* with letters in them"),
        ({"tags": ["car", "..."]}, "expected .* with letters in them"),
        ({"tags": ["car", "x" * 101]}, "expected .* of at most 100 characters"),
        ({"max_objects": 0}, r"max_objects is 0 \(expected an integer from 1 to 1,000\)"),
        ({"duplicates": 1}, r"duplicates is 1 \(expected True or False\)"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"task": "<CAPTION>"}, r"task is '<CAPTION>' \(expected '<OD>' or '<DENSE_REGION_CAPTION>', or None\)"),
        ({"attributes": 3}, r"attributes is 3 \(expected an AttributeTagger, or \{'model': name"),
        ({"attributes": {"models": "m"}}, r"attributes: an aligner is \{'model': name"),
        ({"attributes": {"model": "m", "settings": {"attributes": "red"}}}, r"attributes: attributes is .*\['red'\]"),
        ({"attributes": {"model": "m", "settings": {"device": "cpu"}}}, "attributes: .* no setting 'device'"),
    ):
        with pytest.raises(ValueError, match=message):
            ObjectTagger(**settings)


def test_checkpoints_that_find_nothing_are_refused(tiny: TinyCheckpoints) -> None:
    for name in ("text_model", "clip", "blip"):
        with pytest.raises(ValueError, match=r"a model of the type .*: ObjectTagger needs a detector .* in model="):
            tagger(tiny, name)(pictures(1))
    for name in ("text_model", "blip"):
        with pytest.raises(ValueError, match=r"a model of the type .*: AttributeTagger needs CLIP or SigLIP"):
            AttributeTagger(tiny(name), device="cpu")(pictures(1))


def test_florence_names_what_it_writes_in_its_order(tiny: TinyCheckpoints) -> None:
    folder = tiny("florence2", folder="writes", writes=WRITES)
    image = pictures()[1]
    width, height = image.size
    aligner = ObjectTagger(folder, device="cpu", min_score=0.999999, duplicates=True)
    [objects] = aligner.detect([image])
    assert [o.label for o in objects] == ["dog", "traffic light", "red car", "red car"]
    assert objects[0][2:] == tuple(int((place + 0.5) * side / 1000) for place, side in zip(
        (100, 200, 500, 999), (width, height, width, height), strict=True
    ))  # fmt: skip
    assert all(0 <= o.score <= 1 and o.score == objects[0].score for o in objects)
    assert [tag for tag, _ in aligner([image])[0]] == ["dog", "traffic light", "red car", "red car"]
    once = ObjectTagger(folder, device="cpu", task="<DENSE_REGION_CAPTION>", max_objects=3)
    assert [tag for tag, _ in once(pictures())[2]] == ["dog", "traffic light", "red car"]
    captioner = Captioner(folder, device="cpu")
    assert captioner.checkpoint is aligner.checkpoint


def test_florence_places_without_names_are_no_objects(tiny: TinyCheckpoints) -> None:
    folder = tiny("florence2", folder="nameless", writes="".join(f"<loc_{i}>" for i in range(6)))
    assert ObjectTagger(folder, device="cpu")(pictures(1)) == [[]]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_attributes_are_those_of_the_model(tiny: TinyCheckpoints, name: str) -> None:
    attributes, nouns, images = ["red", "blue", "wooden", "old"], ["car", "dog", "car"], pictures()
    aligner = AttributeTagger(tiny(name), attributes=attributes, max_attributes=3, min_score=0.0, device="cpu")
    found = aligner(images, nouns)
    model, processor = AutoModel.from_pretrained(tiny(name)).eval(), AutoProcessor.from_pretrained(tiny(name))
    for image, noun, pairs in zip(images, nouns, found, strict=True):
        things = [*(f"{attribute} {noun}" for attribute in attributes), noun]
        text = [f"a photo of {'an' if thing.startswith('old') else 'a'} {thing}" for thing in things]
        inputs = processor(images=image, text=text, padding="max_length", return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits_per_image[0]
        scores = (logits.sigmoid() if name == "siglip" else logits.softmax(-1))[:-1]
        best = scores.sort(descending=True)
        assert [attribute for attribute, _ in pairs] == [attributes[i] for i in best.indices[:3]]
        assert [score for _, score in pairs] == pytest.approx(best.values[:3].tolist(), rel=1e-3)
        threshold = float(best.values[:2].mean())
        few = AttributeTagger(tiny(name), attributes=attributes, max_attributes=3, min_score=threshold, device="cpu")
        assert [len(of_one) for of_one in few([image], [noun])] == [1]
    assert aligner(images[:1]) != aligner(images[:1], ["car"])
    assert aligner([]) == []


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_sentences_are_read_once_for_a_noun(tiny: TinyCheckpoints, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner = AttributeTagger(tiny(name), dtype="bfloat16", min_score=0.0, max_attributes=50, device="cpu")
    model = aligner.checkpoint.model
    calls = []
    read = model.get_text_features
    monkeypatch.setattr(
        model, "get_text_features", lambda **inputs: calls.append(len(inputs["input_ids"])) or read(**inputs)
    )
    first = aligner(pictures(), ["car", "dog", "car"])
    assert calls == [len(ATTRIBUTES) + 1] * 2
    assert aligner(pictures(), ["car", "dog", "car"]) == first
    assert len(calls) == 2
    assert all(len(of_one) == len(ATTRIBUTES) and 0 <= score <= 1 for of_one in first for _, score in of_one)
    assert pickle.loads(pickle.dumps(aligner))(pictures(), ["car", "dog", "car"]) == first


class Painter:
    """Stands in for an `AttributeTagger`: remembers the crops, and calls the first one red and the others blue."""

    identity = {"model": "painter", "revision": None, "settings": {}}

    def __init__(self) -> None:
        self.crops: list[Image.Image] = []
        self.nouns: list[str] = []

    def __call__(self, images: list[Image.Image], nouns: list[str]) -> list[list[tuple[str, float]]]:
        self.crops += images
        self.nouns += nouns
        return [[("red" if i == 0 else "blue", 0.9), ("old", 0.5)] for i in range(len(images))]


def boxes_found(tagger: ObjectTagger, monkeypatch: pytest.MonkeyPatch, boxes: list[list[float]]) -> None:
    """Let the detector find cars in these boxes."""
    result = {"scores": torch.linspace(0.9, 0.5, len(boxes)), "labels": torch.zeros(len(boxes), dtype=torch.long)}
    monkeypatch.setattr(
        type(tagger.checkpoint.processor),
        "post_process_object_detection",
        lambda *args, **kwargs: [{**result, "boxes": torch.tensor(boxes)}],
    )


def test_attributes_are_read_off_the_boxes(tiny: TinyCheckpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    painter, image = Painter(), pictures()[0]  # 48 × 40
    aligner = tagger(tiny, "rt_detr_v2", attributes=painter)
    boxes = [[10.4, 5.0, 30.6, 20.0], [0.0, 0.0, 40.0, 40.0], [-9.0, 20.0, 20.0, 99.0]]
    boxes_found(aligner, monkeypatch, boxes)
    [strings] = aligner([image])
    assert [text for text, _ in strings] == ["red old car", "blue old car"]
    assert [score for _, score in strings] == pytest.approx([0.9, 0.7])
    corners = [(10, 5, 31, 20), (0, 0, 40, 40), (0, 20, 20, 40)]
    assert [crop.tobytes() for crop in painter.crops] == [image.crop(box).tobytes() for box in corners]
    assert painter.nouns == ["car"] * 3


def test_boxes_that_show_nothing_have_no_attributes(tiny: TinyCheckpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = {"model": tiny("clip"), "settings": {"min_score": 0.0}}
    aligner = tagger(tiny, "rt_detr_v2", attributes=attributes, duplicates=True)
    nan, inf = float("nan"), float("inf")
    boxes = [
        [10.0, 10.0, 10.0, 30.0], [30.0, 10.0, 10.0, 30.0], [-50.0, -50.0, -10.0, -10.0], [100.0, 0.0, 200.0, 40.0],
        [nan, 0.0, 20.0, 20.0], [0.0, 0.0, inf, 20.0], [0.0, 0.0, 3.0, 3.0],
    ]  # fmt: skip
    boxes_found(aligner, monkeypatch, boxes)
    assert [text for text, _ in aligner(pictures(1))[0]] == ["car"] * 7
    boxes_found(aligner, monkeypatch, [[0.0, 0.0, 20.0, 20.0]])
    [(text, score)] = aligner(pictures(1))[0]
    assert text.removesuffix(" car") in ATTRIBUTES
    assert score == pytest.approx(0.9)


def test_identity_is_json_and_makes_the_same_tagger(tiny: TinyCheckpoints) -> None:
    settings = {"min_score": 0.1, "max_attributes": 2}
    attributes = {"model": tiny("clip"), "settings": settings}
    aligner = tagger(tiny, "detr", attributes=attributes, max_objects=4, dtype="float32")
    identity = aligner.identity
    assert json.loads(json.dumps(identity)) == identity
    of_attributes = AttributeTagger(tiny("clip"), **settings).identity
    assert identity["settings"] == {
        "min_score": 0.0, "max_objects": 4, "duplicates": False, "tags": None, "task": None, "dtype": "float32",
        "attributes": of_attributes,
    }  # fmt: skip
    assert of_attributes["settings"]["attributes"] == list(ATTRIBUTES)
    assert len(of_attributes["revision"]) == 64
    again = ObjectTagger(aligner.model, revision=identity["revision"], device="cpu", **identity["settings"])
    assert again.identity == identity
    assert tagger(tiny, "owlv2").identity["settings"]["tags"] == TAGS
    attribute_tagger = AttributeTagger(tiny("clip"), attributes=["red"], max_attributes=3, min_score=0.5)
    same = AttributeTagger(attribute_tagger.model, **attribute_tagger.identity["settings"])
    assert same.identity == attribute_tagger.identity


def test_identity_changes_with_the_weights_of_the_attributes(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("clip"), tmp_path / "clip"))
    before = tagger(tiny, "detr", attributes={"model": str(folder)}).identity
    with (folder / "model.safetensors").open("ab") as weights:
        weights.write(b" ")
    after = tagger(tiny, "detr", attributes={"model": str(folder)}).identity
    assert before["revision"] == after["revision"]
    assert before != after


def test_attributes_of_a_repository_are_named_by_commit(
    tiny: TinyCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--org--clip", "c0ffee0123" * 4
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny("clip"), repository / "snapshots" / commit)
    aligner = tagger(tiny, "rt_detr_v2", attributes={"model": "org/clip", "settings": {"min_score": 0.0}})
    identity = aligner.identity
    assert identity["settings"]["attributes"]["revision"] == commit
    again = ObjectTagger(aligner.model, device="cpu", **identity["settings"])
    assert again.identity == identity
    assert again(pictures()) == aligner(pictures())


def test_pickled_tagger_loads_its_checkpoints_again(tiny: TinyCheckpoints) -> None:
    attributes = {"model": tiny("clip"), "settings": {"min_score": 0.0}}
    aligner = tagger(tiny, "owlv2", attributes=attributes)
    strings = aligner(pictures())
    assert any(" " in text for of_one in strings for text, _ in of_one)
    pickled = pickle.dumps(aligner)
    assert len(pickled) < 20_000, "the weights are in it"
    assert pickle.loads(pickled)(pictures()) == strings
