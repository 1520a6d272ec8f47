"""What strangers say stays text: in Markdown, in metadata, in pages, in Python; and nothing of a checkpoint runs."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tiny_mgcmt import make_model
from transformers import ConvNextImageProcessorPil

from hub_card.card.card import make_card, write_card
from hub_card.card.card_examples import run_examples, snippets
from hub_card.card.hub_names import check_repository, check_revision
from hub_card.card.requirements import requirements
from hub_card.export import main
from hub_card.hub.exported_folder import export_model
from hub_card.hub.push import push_model
from hub_card.space.space_folder import write_space
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, MgcmtProcessor
from modeling_ita.markup import block, code, front_matter, html_page, html_picture, md, python_source
from modeling_ita.plain_text import plain_text

KIND = 'a":[],**(open({!r}, "w") and {{}} or {{}}),"b'


@pytest.fixture(scope="module")
def attack() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "attacks" / "templates.py"
    spec = importlib.util.spec_from_file_location("attack_on_templates", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pipe(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> ItaPipeline:
    return ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")


def test_documents_of_hostile_strings_are_those_of_harmless_ones(
    attack: ModuleType, pipe: ItaPipeline, tmp_path: Path
) -> None:
    results = attack.attack_documents(pipe, tmp_path, [101, 102])
    assert len(results) == 2 * 11
    assert [result for result in results if result.fault] == []


def test_the_attack_sees_what_is_not_escaped(
    attack: ModuleType, pipe: ItaPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling_ita.markup.md", lambda value: value)
    for module in ("modeling_ita.markup", "hub_card.report.report_page", "dataset_scripts.contexts.context_preview"):
        monkeypatch.setattr(f"{module}.html_text", plain_text)
    faults = {
        result.what.partition(",")[0] for result in attack.attack_documents(pipe, tmp_path, [101]) if result.fault
    }
    assert {"model card", "report page", "contexts page", "data set card"} <= faults


@pytest.mark.parametrize(
    "place",
    ["context_kinds-0", "separate_kinds-2", "kind-of-context_builder-0", "settings-1", "entity-type-0", "attention-3",
     "auto_map-0", "auto_map-of-processor-0", "auto_map-of-tokenizer-0", "own-code-0"],
)  # fmt: skip
def test_code_in_a_checkpoint_does_not_run(
    attack: ModuleType, place: str, folders: dict[str, Path], sentinel: Path
) -> None:
    results = attack.attack_checkpoint(place, folders[place], sentinel, ("export", "space"))
    assert [result.fault for result in results] == ["", ""]


def test_code_in_a_checkpoint_does_not_run_on_the_way_to_onnx(
    attack: ModuleType, folders: dict[str, Path], sentinel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folders["context_kinds-0"].with_name("onnx")
    assert main(["onnx", str(folders["context_kinds-0"]), str(out)]) == 2
    assert "cannot be the name of a kind of visual context" in capsys.readouterr().err
    assert not out.exists() and not sentinel.exists()


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sentinel") / "ran"


@pytest.fixture(scope="module")
def folders(
    attack: ModuleType,
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    sentinel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("hostile")
    exported = export_model(tiny_model, tiny_processor, place / "model")
    return {folder.name: folder for _, folder in attack.hostile_folders(exported, place / "folders", sentinel)}


# --- snippets --------------------------------------------------------------------------------------------------------

STRINGS = [
    KIND.format("x"), '"', "'", '"""', "\\", "\\\\\"", "\n", "\r\n", "{", "}", "{0}", "{{x}}", "%s", "\u2028",
    "\u202e", "\ud800", "\x00", "\x1b[31m", "😀", "#", "x" * 5000, "", "中文",
]  # fmt: skip


@pytest.mark.parametrize("text", STRINGS)
def test_a_string_is_its_literal(text: str) -> None:
    value = {text: [text, {text: text}]}
    assert ast.literal_eval(python_source(value)) == value
    assert len(python_source(text).splitlines()) == 1


@pytest.mark.parametrize("text", STRINGS)
def test_snippets_of_hostile_names_are_those_of_harmless_ones(
    attack: ModuleType, pipe: ItaPipeline, tiny_encoder: str, tiny_vision_encoder: str, text: str
) -> None:
    def trees(named: str) -> list[str]:
        ita = ItaPipeline(model=pipe.model, processor=pipe.processor, device="cpu")
        ita.processor = type("Processor", (), {"context_kinds": [named], "context_builder": None})()
        mgcmt: Any = type("Pipe", (), {"model": pipe.model, "processor": None})()
        made = {"context_kinds": ["object_tags"], "context_builder": None, "object_labels": [named]}
        mgcmt.processor = type("Processor", (), made)()
        sources = [*snippets(ita, named, named).values(), *snippets(mgcmt, named, named).values()]
        return [attack.without_strings(source) for source in sources]

    assert trees(text) == trees("harmless")


def test_a_hostile_kind_runs_nothing(pipe: ItaPipeline, tmp_path: Path) -> None:
    kind = KIND.format(str(tmp_path / "ran"))
    pipe.processor.context_kinds, kept = [kind], pipe.processor.context_kinds
    try:
        with pytest.raises(ValueError, match="cannot be the name of a kind"):
            run_examples(pipe, "you/ita", "main")
        assert make_card(model_id="you/ita", revision="main", pipe=pipe).text
    finally:
        pipe.processor.context_kinds = kept
    assert not (tmp_path / "ran").exists()


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ita", "a/b/c", 'a/b"', "a/b\n", "a/ b", "../b", "a/b--c", "a/<img>", "-a/b", "ä/b"])
def test_what_is_no_repository_is_refused(pipe: ItaPipeline, tmp_path: Path, name: str) -> None:
    for call in (
        lambda: check_repository(name),
        lambda: make_card(model_id=name, revision="main", pipe=pipe),
        lambda: write_space(name, tmp_path / "space", processor_config={}),
    ):
        with pytest.raises(ValueError, match=r"name of a repository|[Rr]epo.id|neither a folder nor"):
            call()


@pytest.mark.parametrize(
    "name", ["", "a b", 'a"', "a\nb", "main\n", "-rf", "a..b", "a//b", "/a", "a/", "a.lock", "<b>", "x" * 300]
)
def test_what_is_no_revision_is_refused(pipe: ItaPipeline, tmp_path: Path, name: str) -> None:
    for call in (
        lambda: check_revision(name),
        lambda: write_card(tmp_path, model_id="a/b", revision=name, pipe=pipe),
        lambda: write_space("a/b", tmp_path / "space", name, processor_config={}),
    ):
        with pytest.raises(ValueError, match="is not a revision"):
            call()


def test_names_that_are_ones() -> None:
    for name in ("a/b", "some-one/ita.v2_x", "A1/B"):
        assert check_repository(name) == name
    for name in ("main", "weights-1a2b3c4d", "v1.0+x", "refs/pr/1", "0" * 40):
        assert check_revision(name) == name


def test_a_folder_of_another_type_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "<b>", "x": "pipeline_ita.ItaPipeline"}')
    with pytest.raises(ValueError, match=r"names the model_type '<b>' \(expected ita or mgcmt\)"):
        push_model(tmp_path, "me/x")


@pytest.mark.parametrize("label", ["", " ", "a\nb", "a\x1b[31m", "\u202ea", "a\u2028b", "\ud800", "x" * 101, 7, None])
def test_an_object_label_is_words(tiny_processor: ItaProcessor, tiny_vision_encoder: str, label: Any) -> None:
    images = ConvNextImageProcessorPil.from_pretrained(tiny_vision_encoder)
    made = MgcmtProcessor(tiny_processor.tokenizer, images, ["sports ball", "cat's toy (red)", "گربه\u200cها"])
    assert made.object_labels[0] == "sports ball" and make_model() is not None
    with pytest.raises(ValueError, match="cannot be the label of a class of objects"):
        MgcmtProcessor(tiny_processor.tokenizer, images, ["car", label])


def test_the_kinds_of_a_context_builder_are_names(tiny_processor: ItaProcessor) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a kind"):
        ItaProcessor(tiny_processor.tokenizer, context_builder={'a": 1': "rapidocr"})
    made = ItaProcessor(tiny_processor.tokenizer, context_builder={"ocr": "rapidocr", "max_pixels": 1_000_000})
    assert made.context_builder == {"ocr": "rapidocr", "max_pixels": 1_000_000}


@pytest.mark.parametrize(
    "revision",
    ["3.1\n--index-url=http://evil.example", "3.1 --pre", "3.1;x", "@ file:///x", "3.1,<4", "*", 3.1, None, "٣.١"],
)
def test_requirements_are_names_and_versions(revision: Any) -> None:
    plain = requirements({"ocr": "rapidocr"})
    assert requirements({"ocr": {"model": "rapidocr", "revision": revision}}) == plain
    assert "rapidocr==3.1.0rc1" in requirements({"ocr": {"model": "rapidocr", "revision": "3.1.0rc1"}})
    assert "evil" not in " ".join(requirements({"a": {"model": "--index-url=http://evil.example"}, "b": "x @ evil"}))


@pytest.mark.parametrize(
    "builder", [["rapidocr"], {"ocr": ["rapidocr"]}, {"ocr": {"model": 7}}, {"ocr": {}}, {"ocr": None}]
)
def test_what_is_no_context_builder_is_refused(builder: Any) -> None:
    with pytest.raises(ValueError, match="context_builder"):
        requirements(builder)


# --- Markdown, metadata, pages ---------------------------------------------------------------------------------------


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("object_tags", "you/ita", "3e-05", "-0.5", "U.S. (2020): 50 %", "“Phoenix” – ünïcödé 😀", "0.1, 2"):
        assert md(text) == text
    assert md(md("a*b")) == md("a*b") == "a\\*b"
    assert code("a*b") == "`a*b`" and code("a`b") == "a\\`b" and code("") == ""
    assert block("x\n```\ny", "text") == "````text\nx\n```\ny\n````"


def test_metadata_are_strings_of_one_line() -> None:
    dumped = front_matter({"license": "a\n---\nb: c", "tags": ["null", "1e3", "\ud800"], "n": 0.5})
    assert yaml.safe_load(dumped) == {"license": "a --- b: c", "tags": ["null", "1e3", "\ufffd"], "n": 0.5}
    assert "\n---" not in dumped


def test_a_page_loads_and_runs_nothing_of_others() -> None:
    page = html_page("<b>", "p {}", "<p>x</p>")
    assert "script-src 'none'" in page and "default-src 'none'" in page and "base-uri 'none'" in page
    assert "<title>&lt;b&gt;</title>" in page
    assert html_picture("data:image/png;base64,AA==") == "data:image/png;base64,AA=="
    for address in (
        "https://example.org/x.png",
        'data:image/png;base64,AA" onerror="x',
        "javascript:x",
        "data:text/html,x",
    ):
        assert html_picture(address) == ""
