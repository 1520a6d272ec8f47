"""`PostLabeller` and pictures: what becomes of each, which are read, and from where."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import hostile_images
import pytest
from label_models import SizeReader, export_reading, plain, sized, use, values
from PIL import Image

from dataset_scripts.labelling.labeller import PostLabeller
from hub_card.hub.exported_folder import export_model
from modeling_ita import ItaForTokenClassification, ItaProcessor

POSTS = ["Phoenix Suns tonight", "Obama in Paris", "", "a red car at the stadium", "NBA London"]


@pytest.fixture(scope="module")
def model(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return str(export_model(tiny_model, tiny_processor, tmp_path_factory.mktemp("label") / "model"))


@pytest.fixture(scope="module")
def reading(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A model that names a way to read pictures."""
    return export_reading(tiny_model, tiny_processor, tmp_path_factory.mktemp("label") / "reading")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> SizeReader:
    """What reads pictures for every pipeline."""
    return use(SizeReader(), monkeypatch)


def test_every_state_of_a_picture(reading: str, reader: SizeReader, tmp_path: Path) -> None:
    good = sized(50, tmp_path)
    (tmp_path / "cut.png").write_bytes(sized(50)[:-30])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (64, 64)).save(tmp_path / "blank.png")
    (tmp_path / "enormous.png").write_bytes(hostile_images.png((20_000, 20_000)))
    cases: list[tuple[Any, str]] = [
        (None, "none"), ("", "none"), ([], "none"), (["", None], "none"), (good, "read"), (tmp_path / good, "read"),
        (str(tmp_path / good), "read"), (sized(51), "read"), (bytearray(sized(51)), "read"),
        (memoryview(sized(51)), "read"), (Image.open(BytesIO(sized(52))), "read"),
        ({"bytes": sized(53), "path": None}, "read"), ({"bytes": None, "path": good}, "read"),
        ({"bytes": None, "path": None}, "missing"), ({}, "missing"), ("none.png", "missing"), ("a\x00b", "missing"),
        ("~\x00", "missing"), ("~\ud800", "missing"), ("x" * 5000, "missing"), (".", "missing"),
        ("cut.png", "unreadable"), ("text.png", "unreadable"), ("empty.png", "unreadable"),
        (b"\x00\xff", "unreadable"),
        ("enormous.png", "unreadable"), ("blank.png", "blank"), ("https://x.org/a.png", "unreadable"),
        ("data:image/png;base64,AAAA", "unreadable"), (3, "unreadable"), ([[good]], "unreadable"),
        ([good, "50.png"], "read"), (["none.png", good, "https://x.org"], "read"),
        (["none.png", "text.png"], "unreadable"),
        (["blank.png", "none.png"], "blank"), (["https://x.org", "blank.png"], "unreadable"),
        (sized(66), "unreadable"),
        (["none.png", sized(66)], "unreadable"),
    ]  # fmt: skip
    labeller = PostLabeller(reading, image_column="image", images_dir=str(tmp_path))
    found = labeller({"text": ["Obama in Paris"] * len(cases), "image": [case for case, _ in cases]})
    assert found["image_state"] == [state for _, state in cases]
    assert found["error"] == [None] * len(cases)
    expected = plain(labeller.pipe, ["Obama in Paris"])[0]
    for (_, state), entities in zip(cases, found["entities"], strict=True):
        assert state == "read" or values([entities])[0] == expected
    assert labeller.images > 0
    assert labeller.seconds["images"] > 0
    again = PostLabeller(reading, image_column="image", images_dir=str(tmp_path))
    assert again.label(["a"], [good], folder="/elsewhere").states == ["read"]
    again.images_dir = None
    assert again.label(["a"], [good], folder=str(tmp_path)).states == ["read"]
    faults = again.label(["a"] * 2, ["https://x.org/a", sized(66)]).faults
    assert [" is a URL" in str(faults[0]), faults[1]] == [True, "the reader failed"]


def test_pictures_that_are_not_read(reading: str, model: str, reader: SizeReader, tmp_path: Path) -> None:
    labeller = PostLabeller(reading, image_column="image", images_dir=str(tmp_path), read_images="never")
    found = labeller({"text": POSTS, "image": [sized(50), "none.png", None, 3, []]})
    assert found["image_state"] == ["skipped", "skipped", "none", "skipped", "none"]
    assert reader.seen == []
    with pytest.raises(ValueError, match="needs an image_gate"):
        PostLabeller(reading, image_column="image", read_images="unsure").load()
    assert PostLabeller(model, read_images="unsure")({"text": ["a"]})["error"] == [None]
    for gate, states in ((1.0, ["skipped"] * 5), (0.0, ["read", "read", "skipped", "read", "read"])):
        labeller = PostLabeller(reading, image_column="image", read_images="unsure", image_gate=gate)
        images = [sized(60 + n) if n < 6 else None for n in range(5)]
        assert labeller({"text": POSTS, "image": images})["image_state"] == states
    given = PostLabeller(reading, image_column="image", context_column="context")
    assert given({"text": ["a"], "image": [sized(50)], "context": ['{"ocr": ["b"]}']})["image_state"] == ["skipped"]


def test_contexts_of_this_job_count_as_read(reading: str, reader: SizeReader, tmp_path: Path) -> None:
    made: dict[str, Any] = {"image_column": "image", "store": str(tmp_path / "store")}
    batch = {"text": ["a", "b"], "image": [sized(50), sized(50)]}
    first = PostLabeller(reading, **made)
    assert [first(batch)["image_state"] for _ in range(2)] == [["read"] * 2] * 2
    assert PostLabeller(reading, **made, since=0)(batch)["image_state"] == ["read"] * 2
    assert PostLabeller(reading, **made, since=2**33)(batch)["image_state"] == ["stored"] * 2
    assert reader.seen.count(50) == 1


def test_pictures_of_another_file_system(reading: str, reader: SizeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/labeller-test/inside/a.png", sized(50))
    fs.pipe_file("/labeller-test/secret.png", sized(51))
    try:
        labeller = PostLabeller(reading, image_column="image", images_dir="memory://labeller-test/inside")
        paths = [
            "a.png",
            "./b/../a.png",
            "none.png",
            "../secret.png",
            "b/../../secret.png",
            "/labeller-test/secret.png",
        ]
        found = labeller.label(["a"] * 7, [*paths, sized(52)])
        assert found.states == ["read", "read", "missing", *["unreadable"] * 3, "read"]
        assert all("is not inside memory://" in str(fault) for fault in found.faults[3:6])
        monkeypatch.setattr("dataset_scripts.labelling.labeller.MAX_BYTES", 10)
        assert "is larger than" in str(labeller.label(["a"], ["a.png"]).faults[0])
        monkeypatch.setattr(type(fs), "info", lambda *_: (_ for _ in ()).throw(RuntimeError("down")))
        assert labeller.label(["a"], ["a.png"]).faults == ["down"]
    finally:
        monkeypatch.undo()
        fs.rm("/labeller-test", recursive=True)


def test_a_reader_that_is_not_installed(reading: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    batch = {"text": POSTS, "image": [None] * 5}
    with pytest.raises(ImportError, match="pip install"):
        PostLabeller(reading, image_column="image")(batch)
    assert PostLabeller(reading, image_column="image", read_images="never")(batch)["error"] == [None] * 5
    with pytest.raises(ValueError, match="names no way to read images"):
        PostLabeller(model, image_column="image")(batch)
    assert json.dumps(PostLabeller(reading)(batch))
