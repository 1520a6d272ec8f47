from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from modeling_ita.aligners import PROFILES, FunctionAligner, make_aligner, scored_strings
from modeling_ita.context_builder import Alignment, VisualContextBuilder
from modeling_ita.image_file import image_sha256
from modeling_ita.ocr import EasyOcr, RapidOcr
from modeling_ita.visual_context import EXAMINATION, VisualContext


def two_colours(size: tuple[int, int] = (60, 40), colour: str = "navy") -> Image.Image:
    image = Image.new("RGB", size, "gold")
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2, size[1]), fill=colour)
    return image


class Stub:
    """An aligner that says the size of every image."""

    def __init__(
        self, name: str = "stub", lines: Callable[[Image.Image], Any] = lambda image: [(str(image.size), 0.5)]
    ) -> None:
        self.identity = {"model": name, "revision": "7", "settings": {"beams": 5}}
        self.lines = lines
        self.batches: list[int] = []

    def __call__(self, images: Sequence[Image.Image]) -> Any:
        self.batches.append(len(images))
        return [self.lines(image) for image in images]


class Memory:
    """A store in memory with the one method that a store must have; `add` comes with `Diary`."""

    def __init__(self) -> None:
        self.rows: dict[Any, Alignment] = {}

    def look_up(self, image_sha256: str, kind: str, identity: Mapping[str, Any]) -> Alignment | None:
        return self.rows.get((image_sha256, kind, json.dumps(identity, sort_keys=True)))


class Diary(Memory):
    def add(self, kind: str, alignments: Mapping[str, Alignment]) -> None:
        for key, alignment in alignments.items():
            identity = {name: alignment.origin[name] for name in ("model", "revision", "settings")}
            self.rows[key, kind, json.dumps(identity, sort_keys=True)] = alignment


def test_every_keyword_is_a_kind() -> None:
    builder = VisualContextBuilder(captions=Stub("a"), mood=Stub("b"), ocr=None)
    (context,) = builder([two_colours()])
    assert context.kinds == {"captions": ["(60, 40)"], "mood": ["(60, 40)"]}
    assert list(builder.aligners) == ["captions", "mood"]
    assert VisualContextBuilder(**{"my-kind.2": Stub()})([two_colours()])[0].kinds == {"my-kind.2": ["(60, 40)"]}
    assert VisualContextBuilder()([two_colours()]) == [VisualContext()]


@pytest.mark.parametrize(
    "kind", ["id", "provenance", "source", EXAMINATION, " ", "my kind", ".x", "a" * 61, 'a":[]', "a/b"]
)
def test_what_cannot_be_a_kind_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a kind"):
        VisualContextBuilder(**{kind: Stub()})


def test_images_without_context_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.jpg").write_text("?")
    Image.new("RGB", (50, 50), "grey").save(tmp_path / "blank.png")
    stub = Stub(lines=lambda image: [] if image.width == 20 else [str(image.size)])
    builder = VisualContextBuilder(ocr=stub, max_pixels=10_000)
    images = [
        None,
        two_colours((60, 40)),
        tmp_path / "broken.jpg",
        tmp_path / "blank.png",
        tmp_path / "absent.png",
        two_colours((20, 20)),
        two_colours((101, 100)),
        two_colours((30, 20)),
        two_colours((300, 15)),
    ]
    with caplog.at_level(logging.WARNING):
        contexts = builder(images)
    assert [context.ocr for context in contexts] == [[], ["(60, 40)"], [], [], [], [], [], ["(30, 20)"], []]
    assert builder.counts == {"images": 9, "built": 3, "stored": 0, "missing": 2, "unreadable": 2, "blank": 2}
    assert stub.batches == [3]
    for name in ("broken.jpg", "blank.png", "absent.png", "size=101x100", "size=300x15"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert [bool(context.provenance) for context in contexts] == [i in (1, 5, 7) for i in range(9)]
    builder([None])
    assert builder.counts["missing"] == 3
    assert builder([]) == []


def test_files_are_examined_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(60 + n, 40) for n in range(6)]
    for size in sizes:
        two_colours(size).save(tmp_path / f"{size[0]}.png")
    files = [tmp_path / f"{width}.png" for width, _ in sizes]
    sources = [files[0], None, *files[1:3], two_colours((90, 40)), tmp_path / "absent.png", files[3].read_bytes()]
    builder = VisualContextBuilder(ocr=Stub())
    examine = builder.examine
    used: dict[str, set[int]] = {"files": set(), "pictures": set()}

    def noted(source: Any) -> Any:
        used["pictures" if isinstance(source, Image.Image) else "files"].add(threading.get_ident())
        return examine(source)

    monkeypatch.setattr(builder, "examine", noted)
    found = {}
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        used["files"].clear()
        found[threads] = [context.kinds.get("ocr") for context in builder(sources)]
        assert (used["files"] == {threading.get_ident()}) == (threads == 1)
        assert used["pictures"] == {threading.get_ident()}  # one by one, because they may share a file
    read = [["(60, 40)"], None, ["(61, 40)"], ["(62, 40)"], ["(90, 40)"], None, ["(63, 40)"]]
    assert found == {1: read, 3: read}


def test_a_url_is_an_error() -> None:
    with pytest.raises(ValueError, match="no URL is fetched"):
        VisualContextBuilder(ocr=Stub())(["https://x.org/a.jpg"])


def test_provenance(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    two_colours().save(path)
    builder = VisualContextBuilder(ocr=Stub("reader"), captions=Stub("teller"))
    by_path, by_bytes = builder([path, path.read_bytes()])
    for kind, model in (("ocr", "reader"), ("captions", "teller")):
        made = dict(by_path.provenance[kind])
        assert made.pop("date")[10:] > "T" and made.pop("image_sha256") == image_sha256(path)
        assert made == {"model": model, "revision": "7", "settings": {"beams": 5}}
    assert by_bytes == by_path
    assert VisualContext.from_dict(json.loads(json.dumps(by_path.to_dict()))) == by_path
    assert builder.counts["built"] == builder.counts["stored"] == 1  # one image, twice


def test_the_store_goes_first_and_what_is_new_is_added(tmp_path: Path) -> None:
    store, stub = Diary(), Stub()
    first = VisualContextBuilder(ocr=stub, store=store)([two_colours(), two_colours((50, 30)), two_colours()])
    assert stub.batches == [2]
    again = VisualContextBuilder(ocr=stub, store=store)
    assert again([two_colours(), two_colours((50, 30)), two_colours((70, 30))])[:2] == first[:2]
    assert stub.batches == [2, 1]
    assert (again.counts["stored"], again.counts["built"]) == (2, 1)


def test_another_captioner_leaves_the_ocr_as_it_is() -> None:
    store, ocr, teller = Diary(), Stub("ocr"), Stub("teller")
    VisualContextBuilder(ocr=ocr, captions=Stub("first"), store=store)([two_colours()])
    (context,) = VisualContextBuilder(ocr=ocr, captions=teller, store=store)([two_colours()])
    assert ocr.batches == teller.batches == [1]
    assert context.provenance["captions"]["model"] == "teller" and context.ocr == ["(60, 40)"]


def test_a_store_that_cannot_be_added_to_is_only_looked_up() -> None:
    filled, bare = Diary(), Memory()
    VisualContextBuilder(ocr=Stub(), store=filled)([two_colours()])
    bare.rows, stub = dict(filled.rows), Stub()
    builder = VisualContextBuilder(ocr=stub, store=bare)
    builder([two_colours(), two_colours((50, 30))])
    builder([two_colours((50, 30))])
    assert stub.batches == [1, 1] and bare.rows == filled.rows


def test_verdicts_are_kept_and_the_file_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.jpg").write_text("?")
    Image.new("RGB", (50, 50), "grey").save(tmp_path / "blank.png")
    two_colours().save(tmp_path / "good.png")
    images = [tmp_path / name for name in ("broken.jpg", "blank.png", "good.png")]
    store = Diary()
    first = VisualContextBuilder(ocr=Stub(), store=store)
    first(images)
    monkeypatch.setattr("modeling_ita.context_builder.open_image", None)
    again = VisualContextBuilder(ocr=Stub(), store=store)
    again(images)
    assert again.counts == {**first.counts, "built": 0, "stored": 1}
    known = [again.stored(image_sha256(path)) for path in images]
    assert [image and image.state for image in known] == ["unreadable", "blank", "readable"]
    assert known[0] is not None and "none of JPEG" in known[0].detail and str(tmp_path) not in known[0].detail
    assert again.stored("0" * 64) is None


def test_other_limits_are_another_examination() -> None:
    store = Diary()
    VisualContextBuilder(ocr=Stub(), store=store, max_pixels=100)([two_colours()])
    (context,) = VisualContextBuilder(ocr=Stub(), store=store)([two_colours()])
    assert context.ocr == ["(60, 40)"]


def test_functions_are_aligners() -> None:
    def shapes(images: Sequence[Image.Image], word: str = "wide") -> list[Any]:
        answers: list[Any] = [word, ["two ", " ", "three"], [("four", 0.25)], None]
        return answers[: len(images)]

    builder = VisualContextBuilder(shape=shapes)
    images = [two_colours((60 + n, 40)) for n in range(4)]
    assert [c.kinds.get("shape") for c in builder(images)] == [["wide"], ["two", "three"], ["four"], None]
    identity = builder.identities["shape"]
    assert identity["model"].endswith("shapes") and len(identity["revision"]) == 16

    def other(images: Sequence[Image.Image]) -> list[str]:
        return ["x"] * len(images)

    assert FunctionAligner(other).identity["revision"] != identity["revision"]
    assert FunctionAligner(shapes, {"word": "x"}).identity["settings"] == {"word": "x"}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_contexts.py").write_text(
        """
class Moods:
    def __init__(self, mood="happy"):
        self.identity = {"model": "my_contexts:Moods", "revision": "3", "settings": {"mood": mood}}

    def __call__(self, images):
        return [[(self.identity["settings"]["mood"], 0.9)] for _ in images]

def widths(images, unit="px"):
    return [f"{image.width} {unit}" for image in images]
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_contexts", None)


@pytest.mark.usefixtures("own_module")
def test_aligners_of_ones_own_by_name() -> None:
    builder = VisualContextBuilder(
        mood={"model": "my_contexts:Moods", "settings": {"mood": "sad"}},
        width={"model": "my_contexts:widths", "settings": {"unit": "pixels"}},
        plain="my_contexts:widths",
    )
    (context,) = builder([two_colours()])
    assert context.kinds == {"mood": ["sad"], "width": ["60 pixels"], "plain": ["60 px"]}
    again = VisualContextBuilder(**{k: v for k, v in builder.to_dict().items() if k != "max_pixels"})
    assert again.identities == builder.identities


@pytest.mark.usefixtures("own_module")
def test_a_checkpoint_cannot_have_code_imported() -> None:
    saved = VisualContextBuilder(mood="my_contexts:Moods", ocr="rapidocr").to_dict()
    sys.modules.pop("my_contexts")
    with pytest.raises(ValueError, match=r"'mood' were made by my_contexts:Moods.*mood='my_contexts:Moods'\)"):
        VisualContextBuilder.from_dict(saved)
    assert "my_contexts" not in sys.modules
    with pytest.raises(ValueError, match="os:system"):
        VisualContextBuilder.from_dict({"mood": "os:system"})
    assert list(VisualContextBuilder.from_dict(saved, mood=None).aligners) == ["ocr"]
    assert list(VisualContextBuilder.from_dict(saved, mood="my_contexts:Moods").aligners) == ["mood", "ocr"]


def test_settings_round_trip() -> None:
    builder = VisualContextBuilder(ocr=EasyOcr(["de"], min_score=0.7), max_pixels=10**6)
    saved = json.loads(json.dumps(builder.to_dict()))
    again = VisualContextBuilder.from_dict(saved)
    assert again.to_dict() == saved
    assert again.identities["ocr"] == EasyOcr(["de"], min_score=0.7).identity
    assert again.max_pixels == 10**6
    assert VisualContextBuilder.from_dict(VisualContextBuilder().to_dict()).aligners == {}
    stub = Stub()
    assert VisualContextBuilder.from_dict(saved, ocr=stub, store=Memory()).aligners == {"ocr": stub}


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_make_aligners_without_loading_anything(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    builder = VisualContextBuilder(**PROFILES[profile])
    assert list(builder.aligners) == ["object_tags", "captions", "ocr"]
    models = [builder.identities[kind]["model"] for kind in ("object_tags", "captions")]
    assert models == [PROFILES[profile][kind]["model"] for kind in ("object_tags", "captions")]
    saved = VisualContextBuilder.from_dict(PROFILES[profile])  # as training writes it into a checkpoint
    assert saved.identities == builder.identities


@pytest.mark.parametrize(
    ("aligner", "message"),
    [
        (3, "ocr: an aligner is a name, a dictionary, an object or a function, got 3"),
        ({"name": "rapidocr"}, r"ocr: an aligner is \{'model': name"),
        ({"model": "rapidocr", "min_score": 0.5}, r"ocr: an aligner is \{'model': name"),
        (
            {"model": "rapidocr", "settings": {"beams": 3}},
            r"ocr: RapidOcr has no setting 'beams' \(it has min_score, min_side, max_side, threads\)",
        ),
        ({"model": "rapidocr", "revision": "3\n4"}, "ocr: revision is '3.n4'"),
    ],
)
def test_unfit_aligners(aligner: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_aligner("ocr", aligner)


@pytest.mark.parametrize("name", ["no_such_module_x:f", "json:no_such_name"])
def test_code_that_is_not_there(name: str) -> None:
    with pytest.raises(ImportError, match=f"mood: {name} cannot be imported .* PYTHONPATH"):
        make_aligner("mood", name)


def test_known_names() -> None:
    assert isinstance(make_aligner("ocr", {"model": "rapidocr", "settings": {"min_score": 0.1}}), RapidOcr)
    assert make_aligner("ocr", None) is None
    assert make_aligner("captions", "some/model").model == "some/model"
    assert (
        make_aligner("knowledge", {"model": "some/vlm", "settings": {"prompt": "Why?"}}).settings["prompt"] == "Why?"
    )
    assert make_aligner("captions", "some/model", "cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images: [["a"]], "aligner of 'ocr' gave 1 lists for 2 images"),
        (lambda images: None, "aligner of 'ocr' gave None lists for 2 images"),
        (lambda images: [[3], [4]], "."),
        (lambda images: [[(3, 0.5)], []], r"aligner of 'ocr' gave \(3, 0.5\)"),
        (lambda images: [[("a", float("nan"))], []], r"gave the score nan \(expected a number from 0 to 1\)"),
        (lambda images: [[("a", 1.5)], []], "gave the score 1.5"),
        (lambda images: [[("a", None)], []], "gave the score None"),
    ],
)
def test_answers_that_are_none(answer: Callable[[Any], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        VisualContextBuilder(ocr=answer)([two_colours(), two_colours((50, 30))])


def test_scores_are_rounded_into_their_range_and_endless_strings_cut(caplog: pytest.LogCaptureFixture) -> None:
    answers = [("a", 1.001), ("b", -0.001), ("c" * 10_001, 0.5)]
    assert scored_strings("ocr", answers) == [("a", 1.0), ("b", 0.0), ("c" * 10_000, 0.5)]
    assert "the aligner of 'ocr' gave 10001 characters, cut at 10000" in caplog.text


def test_an_error_says_which_images_were_looked_at(tmp_path: Path) -> None:
    two_colours().save(tmp_path / "cause.png")

    def fails(images: Sequence[Image.Image]) -> list[str]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        VisualContextBuilder(ocr=fails)([tmp_path / "cause.png"])
    assert "aligner of 'ocr' looked at" in caught.value.__notes__[0] and "cause.png" in caught.value.__notes__[0]


def test_what_functions_hold_is_never_taken_for_what_others_hold() -> None:
    def say(images: Sequence[Image.Image], word: str = "") -> list[str]:
        return [word] * len(images)

    def saying(word: str) -> Callable[[Any], list[str]]:
        return lambda images: [word] * len(images)

    class Speaker:
        def __init__(self, word: str) -> None:
            self.word = word

        def __call__(self, images: Sequence[Image.Image]) -> list[str]:
            return [self.word] * len(images)

    for make in (lambda word: partial(say, word=word), saying, Speaker):
        store = Diary()
        said = [VisualContextBuilder(mood=make(word), store=store)([two_colours()])[0].kinds["mood"] for word in "ab"]
        assert said == [["a"], ["b"]]


def test_a_lack_of_memory_is_not_held_against_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two_colours().save(tmp_path / "a.png")
    store = Diary()
    with monkeypatch.context() as patch:
        patch.setattr("modeling_ita.image_file._rgb", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            VisualContextBuilder(ocr=Stub(), store=store)([tmp_path / "a.png"])
    assert VisualContextBuilder(ocr=Stub(), store=store)([tmp_path / "a.png"])[0].ocr == ["(60, 40)"]


def test_damaged_pil_images_are_unreadable_too(tmp_path: Path) -> None:
    two_colours((400, 300)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    builder = VisualContextBuilder(ocr=Stub(), max_pixels=400 * 300)
    images: list[Any] = [Image.open(tmp_path / "b.jpg"), Image.new("RGB", (0, 0)), two_colours((401, 300))]
    assert builder(images) == [VisualContext()] * 3
    assert builder.counts["unreadable"] + builder.counts["blank"] == 3


def test_a_read_only_store_is_not_added_to() -> None:
    store: Any = Diary()
    store.read_only = True
    assert VisualContextBuilder(ocr=Stub(), store=store)([two_colours()])[0].ocr == ["(60, 40)"]
    assert store.rows == {}


@pytest.mark.parametrize("kind", ["..", ".hidden", "k" * 61])
def test_kinds_that_are_no_folders_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a kind"):
        VisualContextBuilder(**{kind: Stub()})


@pytest.mark.parametrize("identity", [{"model": "x"}, {"model": "x", "revision": "1", "settings": {"a": {1}}}])
def test_identities_that_are_no_keys_are_refused(identity: dict[str, Any]) -> None:
    stub = Stub()
    stub.identity = identity
    with pytest.raises(ValueError, match=r"ocr: an aligner's identity must hold (model|JSON)"):
        VisualContextBuilder(ocr=stub)


def test_settings_that_are_not_saved_are_refused() -> None:
    for name in ("store", "device"):
        with pytest.raises(ValueError, match=f"{name!r} is not a kind"):
            VisualContextBuilder.from_dict({name: "os:system"})
