"""The Space: what the page says of a post, its image and its context, and the folder that it runs from."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image
from tiny_mgcmt import make_model
from transformers import BertTokenizer, ConvNextImageProcessorPil
from transformers.dynamic_module_utils import get_imports

from hub_card.export import main
from hub_card.hub.exported_folder import export_model
from hub_card.space import app
from hub_card.space.space_folder import SHORT_DESCRIPTION, write_space
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, MgcmtProcessor, VisualContextBuilder

POST = "Phoenix Suns tonight, Obama in Paris 😀"
RECIPES = {
    "captions": {"model": "some/captioner"},
    "ocr": {"model": "rapidocr", "revision": "3.10.0", "settings": {"min_side": 320}},
    "mood": {"model": "my_code:mood"},
}


@pytest.fixture(scope="module")
def pipe(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> ItaPipeline:
    return ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")


@pytest.fixture
def reading_pipe(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> ItaPipeline:
    """A pipeline that reads "NBA" off every image that is wider than high, and nothing off others."""
    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    pipe.context_builder = VisualContextBuilder(ocr=lambda images: [["NBA"] * (i.width > i.height) for i in images])
    return pipe


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return picture(tmp_path / "image.png", (64, 48))


def picture(file: Path, size: tuple[int, int]) -> Path:
    image = Image.new("RGB", size, "white")
    image.paste("black", (8, 8, 30, 30))
    image.save(file)
    return file


def entity(word: str, entity_type: str, score: float, start: int = 0) -> dict[str, Any]:
    return {"entity_group": entity_type, "score": score, "word": word, "start": start, "end": start + len(word)}


def assert_same(entities: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal, with scores equal within 1e-4."""
    assert [{**e, "score": 0} for e in entities] == [{**e, "score": 0} for e in expected]
    assert [e["score"] for e in entities] == pytest.approx([e["score"] for e in expected], abs=1e-4)


# --- both views ------------------------------------------------------------------------------------------------------


def test_a_post_is_labelled_alone_and_with_its_image(reading_pipe: ItaPipeline, image: Path) -> None:
    labelled = app.label(reading_pipe, POST, image)
    assert_same(labelled.alone, reading_pipe(POST))
    assert labelled.together is not None and labelled.context is not None
    assert_same(labelled.together, reading_pipe({"text": POST, "image": str(image)}))
    assert labelled.together != labelled.alone
    assert labelled.context["ocr"] == ["NBA"]
    assert not labelled.notice


def test_a_context_spares_the_image(reading_pipe: ItaPipeline) -> None:
    context = {"captions": ["a man in the stadium"]}
    labelled = app.label(reading_pipe, POST, "no/such/file.png", context)
    assert labelled.context == {**context, "provenance": {}}
    assert_same(labelled.together or [], reading_pipe({"text": POST, "context": context}))


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        (b"no image at all", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        ((64, 64), "No context was found"),
        ((8, 8), "is blank"),
        (None, "no longer available"),
    ],
)
def test_an_image_that_says_nothing_costs_the_image_and_not_the_post(
    reading_pipe: ItaPipeline, tmp_path: Path, content: Any, notice: str
) -> None:
    file = tmp_path / "image.png"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        picture(file, content)
    labelled = app.label(reading_pipe, POST, file)
    assert labelled == app.Labelled(POST, reading_pipe(POST), None, None, labelled.notice)
    assert notice in labelled.notice
    assert labelled.notice in app.as_html(labelled, {})


def test_a_post_with_several_images(reading_pipe: ItaPipeline, image: Path, tmp_path: Path) -> None:
    blank, missing = picture(tmp_path / "blank.png", (8, 8)), tmp_path / "none.png"
    reading_pipe.context_builder = VisualContextBuilder(ocr=lambda images: [[f"{i.width} wide"] for i in images])
    second = picture(tmp_path / "second.png", (90, 64))
    labelled = app.label(reading_pipe, POST, [image, blank, second, missing])
    assert labelled.context is not None and labelled.context["ocr"] == ["64 wide", "90 wide"]
    assert_same(labelled.together or [], reading_pipe({"text": POST, "context": {"ocr": ["64 wide", "90 wide"]}}))
    assert labelled.notice == f"Image 2: {app.UNSEEN['blank']} Image 4: {app.UNSEEN['missing']}"
    assert app.label(reading_pipe, POST, [image]) == app.label(reading_pipe, POST, image)
    assert app.label(reading_pipe, POST, [missing, missing]).notice == app.UNSEEN["missing"]
    assert app.images_of(None, None) is None and app.images_of(None, ["a"]) == app.images_of("a", []) == "a"
    with pytest.raises(app.Refused, match=r"The post has 5 images; the limit is 4\."):
        app.images_of("a", ["b"] * 4)


def test_what_is_missing_to_read_images_is_said(pipe: ItaPipeline, reading_pipe: ItaPipeline, image: Path) -> None:
    assert "has no aligners to read images" in app.label(pipe, POST, image).notice

    def not_installed(images: list[Image.Image]) -> list[list[str]]:
        raise ImportError("rapidocr is not installed: pip install rapidocr")

    reading_pipe.context_builder = VisualContextBuilder(ocr=not_installed)
    labelled = app.label(reading_pipe, POST, image)
    assert "pip install rapidocr" in labelled.notice
    assert labelled.alone == reading_pipe(POST)


@pytest.mark.parametrize("post", ["", " \n", None])
def test_an_empty_post_is_refused(post: str | None) -> None:
    with pytest.raises(app.Refused, match="The post is empty"):
        app.check(post)


def test_what_is_too_long_is_refused() -> None:
    app.check("a" * 5000, ["b" * 2500] * 2)
    with pytest.raises(app.Refused, match=r"The post has 5,001 characters; the limit is 5,000"):
        app.check("a" * 5001)
    with pytest.raises(app.Refused, match="The text about the image has 5,001"):
        app.check("a", ["b" * 2500, "c" * 2501])


# --- a model that looks at the image itself --------------------------------------------------------------------------

OBJECTS = {"object_tags": ["dog", "car"]}


def mgcmt(encoder: str, **settings: Any) -> ItaPipeline:
    """The pipeline of an MGCMT that knows two classes of objects and names no aligners."""
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    processor = MgcmtProcessor(BertTokenizer.from_pretrained(encoder), images, ["car", "dog"])
    return ItaPipeline(model=make_model(**settings), processor=processor, device="cpu")


@pytest.fixture(scope="module")
def looking_pipe(tiny_encoder: str) -> ItaPipeline:
    return mgcmt(tiny_encoder)


def test_a_model_that_looks_gets_the_image_with_and_without_objects(looking_pipe: ItaPipeline, image: Path) -> None:
    with_image = {"text": POST, "image": str(image)}
    seen = app.label(looking_pipe, POST, image)
    assert_same(seen.alone, looking_pipe(POST))
    assert_same(seen.together or [], looking_pipe(with_image))
    assert (seen.context, seen.notice) == (None, "")
    both = app.label(looking_pipe, POST, image, OBJECTS)
    assert_same(both.together or [], looking_pipe(with_image | {"context": OBJECTS}))
    assert both.context == {**OBJECTS, "provenance": {}}
    told = app.label(looking_pipe, POST, None, OBJECTS)
    assert_same(told.together or [], looking_pipe({"text": POST, "context": OBJECTS}))
    views = [seen.alone, seen.together, both.together, told.together]
    assert len({tuple(round(e["score"], 3) for e in view or []) for view in views}) == 4


@pytest.mark.parametrize(
    ("content", "notice"),
    [(b"\x89PNG\r\n\x1a\n", "cannot be read"), ((8, 8), "is blank"), (None, "no longer available")],
)
def test_an_image_that_a_looking_model_cannot_see_is_told(
    looking_pipe: ItaPipeline, tmp_path: Path, content: Any, notice: str
) -> None:
    file = tmp_path / "image.png"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        picture(file, content)
    labelled = app.label(looking_pipe, POST, file)
    assert labelled == app.Labelled(POST, looking_pipe(POST), None, None, labelled.notice)
    told = app.label(looking_pipe, POST, file, OBJECTS)
    assert_same(told.together or [], looking_pipe({"text": POST, "context": OBJECTS}))
    for each in (labelled, told):
        assert notice in each.notice
        assert each.notice in app.as_html(each, {})


def test_objects_that_are_found_stand_beside_the_image(tiny_encoder: str, image: Path) -> None:
    pipe = mgcmt(tiny_encoder)
    pipe.context_builder = VisualContextBuilder(object_tags=lambda images: [["dog"]] * len(images))
    found = app.label(pipe, POST, image)
    assert found.context is not None and found.context["object_tags"] == ["dog"]
    assert_same(found.together or [], pipe({"text": POST, "image": str(image), "context": {"object_tags": ["dog"]}}))

    def not_installed(images: list[Image.Image]) -> list[list[str]]:
        raise ImportError("a detector is not installed")

    for objects, notice in (
        (lambda images: [[]] * len(images), "No context was found"),
        (not_installed, "not installed"),
    ):
        pipe.context_builder = VisualContextBuilder(object_tags=objects)
        labelled = app.label(pipe, POST, image)
        assert labelled.context is None and notice in labelled.notice
        assert labelled.notice in app.as_html(labelled, {})
        assert_same(labelled.together or [], mgcmt(tiny_encoder)({"text": POST, "image": str(image)}))


@pytest.mark.parametrize(
    ("fusion", "kinds", "notice"),
    [
        ("regions", [], ""),
        ("objects", ["object_tags"], "has no aligners to read images"),
        ("none", [], "does not use images"),
    ],
)
def test_the_page_offers_what_the_model_takes(
    tiny_encoder: str, image: Path, fusion: str, kinds: list[str], notice: str
) -> None:
    pipe = mgcmt(tiny_encoder, visual_fusion=fusion)
    assert app.kinds_of(pipe) == kinds
    labelled = app.label(pipe, POST, image)
    assert notice in labelled.notice and bool(notice) == bool(labelled.notice)
    assert (labelled.together is None) == (fusion != "regions")
    components = [component["props"] for component in app.build_page(pipe).get_config_file()["components"]]
    boxes = {str(props.get("elem_id")) for props in components}
    assert {box for box in boxes if box.startswith("kind-")} == {f"kind-{kind}" for kind in kinds}


def test_what_is_written_above_the_boxes_is_true(
    looking_pipe: ItaPipeline, pipe: ItaPipeline, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.about_context(pipe) == app.CONTEXT
    assert "does not detect objects itself" in app.about_context(looking_pipe) and "car, dog" in app.about_context(
        looking_pipe
    )
    monkeypatch.setattr(looking_pipe.processor, "context_builder", {"object_tags": {"model": "some/detector"}})
    assert "does not detect objects itself" not in app.about_context(looking_pipe)
    assert "reads the image itself" in app.about_context(looking_pipe)
    blind = app.about_context(mgcmt(tiny_encoder, visual_fusion="objects"))
    assert "reads the image itself" not in blind and "all that the model knows about it" in blind


def test_a_space_for_a_model_that_looks(looking_pipe: ItaPipeline, tmp_path: Path) -> None:
    looking_pipe.processor.save_pretrained(tmp_path / "model")
    main(["space", str(tmp_path / "model"), str(tmp_path / "space")])
    readme = " ".join((tmp_path / "space" / "README.md").read_text(encoding="utf-8").split())
    assert "also takes the objects in the picture" in readme and "in place of the picture" not in readme
    assert "`/relabel` a post, its image and the objects in it;" in readme


# --- what the image changed ------------------------------------------------------------------------------------------


def test_every_change_is_told_in_words() -> None:
    alone = [
        entity("Suns", "ORG", 0.5, 8),
        entity("Obama", "PER", 0.9, 20),
        entity("Paris", "LOC", 0.4, 30),
        entity("NBA", "ORG", 0.8, 40),
        entity("London", "LOC", 0.6, 50),
    ]
    together = [
        entity("Phoenix Suns", "ORG", 0.7, 0),
        entity("Obama", "PER", 0.903, 20),
        entity("Paris", "PER", 0.6, 30),
        entity("NBA", "ORG", 0.2, 40),
        entity("Chicago", "TEAM", 0.9, 60),
    ]
    found = app.changes(alone, together)
    assert [change.what for change in found] == ["other words", "same", "other type", "score", "gone", "new"]
    told = [app.in_words(change) for change in found]
    assert "“Suns”" in told[0] and "“Phoenix Suns”" in told[0]
    assert "with the same score" in told[1]
    assert told[2] == "“Paris” is <b>a person (PER)</b> with the image; without it, it was a place (LOC)."
    assert "less confident" in told[3]
    assert "gone" in told[4] and "a place (LOC)" in told[4]
    assert "new" in told[5] and "TEAM" in told[5]


def test_one_entity_answers_to_one_other_only() -> None:
    parts = [entity("Phoenix", "LOC", 0.5, 0), entity("Suns", "ORG", 0.5, 8)]
    whole = [entity("Phoenix Suns", "ORG", 0.7, 0)]
    assert [change.what for change in app.changes(parts, whole)] == ["other words", "gone"]
    assert [change.what for change in app.changes(whole, parts)] == ["other words", "new"]
    assert [change.what for change in app.changes(parts, parts)] == ["same", "same"]


def test_a_post_cannot_write_html() -> None:
    hostile = [entity("<img src=x>", "<b>", 0.5)]
    for together in (None, hostile, []):
        html = app.as_html(app.Labelled("<img src=x>", hostile, together, None, "<script>"), {})
        assert "<img" not in html and "<b>" not in html.replace("<b>gone</b>", "") and "<script>" not in html
        assert "&lt;img src=x&gt;" in html


def test_a_type_has_one_colour() -> None:
    colours = app.type_colours(["O", "B-PER", "I-PER", "B-team", "B-show", "I-show", "B-LOC"])
    assert list(colours) == ["PER", "team", "show", "LOC"]
    assert len(set(colours.values())) == 4
    assert app.type_colours(["B-LOC"])["LOC"] == colours["LOC"]


# --- the folder of a Space -------------------------------------------------------------------------------------------


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_folder_is_a_space(tmp_path: Path) -> None:
    folder = write_space("you/ita", tmp_path / "space", processor_config={"context_builder": RECIPES})
    card = front_matter(folder)
    assert card["sdk"] == "gradio" and card["sdk_version"] and card["python_version"]
    assert (folder / card["app_file"]).is_file()
    assert card["models"] == ["you/ita", "some/captioner"]
    assert card["preload_from_hub"] == ["you/ita"]
    assert card["license"] == "apache-2.0"
    assert card["short_description"] == SHORT_DESCRIPTION and len(SHORT_DESCRIPTION) <= 60
    requirements = (folder / "requirements.txt").read_text().split()
    assert "rapidocr==3.10.0" in requirements and "torchvision" in requirements
    assert not any("my_code" in line for line in requirements)
    assert not (folder / "packages.txt").exists()
    assert app.model_of(folder) == ("you/ita", None)
    for row in json.loads((folder / "examples" / "posts.json").read_text(encoding="utf-8")):
        app.check(row["post"])
        Image.open(folder / "examples" / row["image"]).load()


def test_an_earlier_space_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    commit = "0123456789" * 4
    for config in ({"context_builder": {"ocr": "tesseract"}}, {"context_builder": None}):
        write_space("you/ita", tmp_path / "space", commit, processor_config=config)
        has_tesseract = "pytesseract" in (tmp_path / "space" / "requirements.txt").read_text()
        assert has_tesseract == bool(config["context_builder"]) == (tmp_path / "space" / "packages.txt").exists()
    assert front_matter(tmp_path / "space")["preload_from_hub"][0].split()[::2] == ["you/ita", commit]
    assert app.model_of(tmp_path / "space") == ("you/ita", commit)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="no earlier Space"):
        write_space("you/ita", tmp_path / "other", processor_config={})
    with pytest.raises(ValueError, match="expected owner/name"):
        write_space("ita", tmp_path / "new", processor_config={})


def test_a_folder_makes_a_page_for_this_machine(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps({"context_builder": {"ocr": "easyocr"}}))
    folder = write_space(str(tmp_path / "model"), tmp_path / "space")
    assert app.model_of(folder) == (str(tmp_path / "model"), None)
    assert "easyocr>=1.7.2,<2" in (folder / "requirements.txt").read_text().split()
    assert not {"models", "preload_from_hub"} & front_matter(folder).keys()
    assert str(tmp_path) not in (folder / "README.md").read_text(encoding="utf-8")


def test_the_page_imports_nothing_of_the_project() -> None:
    assert app.__file__ is not None
    assert set(get_imports(app.__file__)) <= {*sys.stdlib_module_names, "gradio", "transformers"}
    tree = ast.parse(Path(app.__file__).read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}"])
def test_a_space_without_a_model_says_what_to_do(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match=r"--model FOLDER_OR_NAME.*model\.json"):
        app.model_of(tmp_path)


def test_a_model_that_cannot_be_shown_is_refused(tiny_encoder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes no visual context"):
        app.load(tiny_encoder)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((OSError, ValueError), match=f"{tmp_path} cannot be loaded"):
        app.load(str(tmp_path))


def test_a_gpu_is_borrowed_where_gpus_are_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "spaces", None)
    assert app.on_gpu(len) is len
    monkeypatch.setattr(app, "spaces", SimpleNamespace(GPU=lambda function: lambda *given: ["gpu", function(*given)]))
    assert app.on_gpu(len)("abc") == ["gpu", 3]


# --- the running page ------------------------------------------------------------------------------------------------

# As a program that is started in a Space, where the project is not installed.
START = """
import runpy, sys
sys.path[:] = [place for place in sys.path if not place.startswith(sys.argv[1]) or "site-packages" in place]
for name in ("modeling_ita", "hub_card", "dataset_scripts"):
    sys.modules[name] = None  # importing it fails
sys.argv[:] = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def address(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where the page of the tiny model is served from the folder of a Space, by a process of its own."""
    root = tmp_path_factory.mktemp("space")
    model = export_model(tiny_model, tiny_processor, root / "model")
    space = write_space("you/ita", root / "space", processor_config={})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "HF_HOME": str(root / "cache"),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(root / "uploads"),
        "OMP_NUM_THREADS": "1",
    }
    with (root / "log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-c",
                START,
                Path(__file__).parents[3],
                space / "app.py",
                "--model",
                model,
                "--port",
                str(port),
            ],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert server.poll() is None, (root / "log").read_text()
                try:
                    urllib.request.urlopen(f"{address}/config").close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait()


def call(address: str, name: str, data: list[Any]) -> tuple[str, Any]:
    """What the page's interface for programs answers: the last event and its data."""
    request = urllib.request.Request(
        f"{address}/gradio_api/call/{name}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/{name}/{event}") as stream:
        event, data_line = stream.read().decode().strip().split("\n\n")[-1].split("\n")
    return event.removeprefix("event: "), json.loads(data_line.removeprefix("data: "))


def upload(address: str, content: bytes) -> dict[str, Any]:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, headers)) as answer:
        return {"path": json.load(answer)[0], "meta": {"_type": "gradio.FileData"}}


def test_the_page_labels_from_its_folder(address: str, pipe: ItaPipeline) -> None:
    event, (alone, together, changed, result, *_) = call(address, "relabel", [POST, "", "a man in the stadium", "NBA"])
    assert event == "complete"
    context = {"captions": ["a man in the stadium"], "ocr": ["NBA"]}
    assert_same(result["alone"], pipe(POST))
    assert_same(result["with_image"], pipe({"text": POST, "context": context}))
    assert result["context"] == {**context, "provenance": {}}
    for view, entities in ((alone, result["alone"]), (together, result["with_image"])):
        assert "".join(part["token"] for part in view) == POST
        marked = [(part["token"], part["class_or_confidence"]) for part in view if part["class_or_confidence"]]
        assert marked == [(e["word"], e["entity_group"]) for e in entities]
    assert "<table" in changed

    other = call(address, "relabel", [POST, "", "red car", ""])[1][3]
    assert_same(other["alone"], result["alone"])
    assert other["context"] == {"captions": ["red car"], "provenance": {}}
    assert_same(other["with_image"], pipe({"text": POST, "context": {"captions": ["red car"]}}))


@pytest.fixture(scope="module")
def looking_address(looking_pipe: ItaPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page of a model that looks is served, by this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = app.build_page(looking_pipe)
        _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
        yield address.rstrip("/")
        page.close()


def test_the_page_shows_the_image_to_a_model_that_looks(
    looking_address: str, looking_pipe: ItaPipeline, image: Path
) -> None:
    sent = upload(looking_address, image.read_bytes())
    seen = {"text": POST, "image": image.read_bytes()}
    for name, given, expected in (
        ("label", [sent, ""], seen),
        ("label", [sent, "dog\n\ncar"], seen | {"context": OBJECTS}),
        ("relabel", [sent, "dog\ncar"], seen | {"context": OBJECTS}),
        ("relabel", [sent, ""], seen),
        ("relabel", [None, "dog\ncar"], {"text": POST, "context": OBJECTS}),
    ):
        event, (_, _, changed, result, *_) = call(looking_address, name, [POST, *given])
        assert event == "complete" and "<table" in changed
        assert_same(result["alone"], looking_pipe(POST))
        assert_same(result["with_image"], looking_pipe(expected))
        assert (result["context"] or {}).get("object_tags") == expected.get("context", {}).get("object_tags")
    damaged = call(looking_address, "label", [POST, upload(looking_address, b"no image"), "dog"])[1]
    assert "cannot be read" in damaged[2] and damaged[-1] == "dog"
    assert_same(damaged[3]["with_image"], looking_pipe({"text": POST, "context": {"object_tags": ["dog"]}}))


def test_the_page_takes_several_images(
    looking_address: str, looking_pipe: ItaPipeline, image: Path, tmp_path: Path
) -> None:
    second = picture(tmp_path / "second.png", (90, 64)).read_bytes()
    first = image.read_bytes()
    sent, other = upload(looking_address, first), upload(looking_address, second)
    both = {"text": POST, "image": [first, second]}
    for name, given, expected in (
        ("label_several", [sent, "", [other]], both),
        ("label_several", [sent, "dog\ncar", [other]], both | {"context": OBJECTS}),
        ("relabel_several", [sent, "dog\ncar", [other]], both | {"context": OBJECTS}),
        ("relabel_several", [None, "", [other]], {"text": POST, "image": second}),
        ("label_several", [sent, "", None], {"text": POST, "image": first}),
    ):
        event, answer = call(looking_address, name, [POST, *given])
        assert event == "complete"
        assert_same(answer[3]["with_image"], looking_pipe(expected))
    alone = looking_pipe({"text": POST, "image": first})
    assert [e["score"] for e in looking_pipe(both)] != pytest.approx([e["score"] for e in alone], abs=1e-4)
    event, error = call(looking_address, "label_several", [POST, sent, "", [other] * 4])
    assert event == "error" and "The post has 5 images" in error["error"]
    assert "The post has 5 images" in call(looking_address, "relabel_several", [POST, sent, "", [other] * 4])[1][2]


def test_the_page_has_messages_for_bad_input(address: str) -> None:
    event, error = call(address, "label", ["  ", None, "", "", ""])
    assert event == "error" and "The post is empty" in error["error"]
    event, error = call(address, "label", ["a" * 5001, None, "", "", ""])
    assert event == "error" and "5,001 characters" in error["error"]
    assert "The post is empty" in call(address, "relabel", ["", "", "", "x"])[1][2]
    event, (_, together, changed, result, *_) = call(
        address, "label", [POST, upload(address, b"no image"), "", "", ""]
    )
    assert event == "complete" and together is None and result["alone"]
    assert "has no aligners to read images" in changed


def test_what_is_no_text_and_no_image_is_answered_in_words(address: str) -> None:
    for post in ("Obama \ud83d in Paris", "Obama \x00 in Paris"):
        event, answer = call(address, "label", [post, None, None, None, None])
        assert event == "complete" and answer[3]["text"] == "Obama \ufffd in Paris"
    for url in ("data:image/png;base64,!!!", "data:image/png;base64,iVBORw0KGgo=", "data:,"):
        event, answer = call(address, "label", [POST, {"url": url}, "", None, ""])
        assert event == "complete" and "cannot be read" in answer[2] and answer[3]["alone"]


def test_a_fault_is_told_without_the_post(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(post: str) -> None:
        raise KeyError(post)

    with pytest.raises(app.gr.Error, match="an internal error occurred") as told:
        app.in_words_only(faulty)("my secret")
    assert "my secret" not in str(told.value) + caplog.text and "KeyError" in caplog.text


def test_of_a_quoted_traceback_the_last_line_is_told() -> None:
    quoted = (
        "Could not load:\n\nTraceback (most recent call last):\n  File x\nValueError: a/config.json is\x1b no JSON\n"
    )
    assert app.in_one_line(ValueError(quoted)) == "ValueError: a/config.json is\ufffd no JSON"


def test_nothing_is_fetched_from_elsewhere(address: str) -> None:
    for place in ("", "theme.css"):
        with urllib.request.urlopen(f"{address}/{place}") as answer:
            fetched = re.findall(
                r"""(?:src=|url\(|@import|<link[^>]*href=)\s*["']?(?:https?:)?//\S*""", answer.read().decode()
            )
        assert not fetched
    with urllib.request.urlopen(f"{address}/config") as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert not [sheet for sheet in config["stylesheets"] if "//" in sheet]
