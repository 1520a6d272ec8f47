"""The exported folder: what is in it, that it loads by both routes, and the command that labels a post with it."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stranger import run_stranger
from transformers import AutoConfig, AutoModelForTokenClassification, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_imports
from transformers.utils import logging

import modeling_ita
from hub_card import predict
from hub_card.card.requirements import BASE, OF_CHECKPOINTS, OF_ENGINES, requirements, system_packages
from hub_card.hub.exported_folder import export_model
from hub_card.hub.model_files import code_files
from modeling_ita import ItaConfig, ItaForTokenClassification, ItaPipeline, ItaProcessor, VisualContextBuilder
from modeling_ita.configuration_tagger import CHECKPOINT_FORMAT

ROOT = Path(modeling_ita.__file__).parents[1]

POST = "Phoenix Suns tonight, Obama in Paris 😀"
CONTEXT = {"captions": ["a man in the stadium"], "ocr": ["NBA"]}


@pytest.fixture(autouse=True)
def talkative() -> Iterator[None]:
    """The command silences transformers; what it found it shall leave."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def exported(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return export_model(tiny_model, tiny_processor, tmp_path_factory.mktemp("hub") / "my-model.v1")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same(entities: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal, with scores equal within 1e-4."""
    assert [{**e, "score": 0} for e in entities] == [{**e, "score": 0} for e in expected]
    assert [e["score"] for e in entities] == pytest.approx([e["score"] for e in expected], abs=1e-4)


# --- what is in the folder -------------------------------------------------------------------------------------------


def test_the_folder_holds_what_is_needed_and_no_more(exported: Path) -> None:
    code = {file.name for file in code_files()}
    files = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    files |= {"README.md", "handler.py", "requirements.txt"}
    assert {file.name for file in exported.iterdir()} == code | files
    assert {"configuration_ita.py", "modeling_ita.py", "processing_ita.py", "pipeline_ita.py", "crf.py"} <= code
    assert "__init__.py" not in code
    assert len(code | files | {"report.png", "ita.yaml"}) <= 32  # what a report adds
    assert os.listdir(exported.parent) == [exported.name]


def test_the_entries_name_the_classes(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    processor = json.loads((exported / "processor_config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_ita.ItaConfig",
        "AutoModelForTokenClassification": "modeling_ita.ItaForTokenClassification",
    }
    assert processor["auto_map"] == {"AutoProcessor": "processing_ita.ItaProcessor"}
    entry = {"impl": "pipeline_ita.ItaPipeline", "pt": ["AutoModelForTokenClassification"]}
    assert config["custom_pipelines"] == {"token-classification": entry, "ner": entry}
    assert "auto_map" not in json.loads((exported / "tokenizer_config.json").read_text())


def test_nothing_tells_where_the_encoder_lay(exported: Path, tiny_encoder: str) -> None:
    for file in (*exported.glob("*.json"), exported / "README.md"):
        assert tiny_encoder not in file.read_text()


def test_the_code_imports_torch_transformers_and_pil_only(exported: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "PIL"}
    for file in exported.glob("*.py"):
        assert set(get_imports(file)) <= allowed, file.name


@pytest.mark.parametrize(
    ("builder", "lines"),
    [
        (None, []),
        (VisualContextBuilder(ocr="tesseract").to_dict() | {"knowledge": "my_code:read"}, ["pytesseract>=0.3.13"]),
        (
            {"ocr": {"model": "rapidocr", "revision": "3.10.0", "settings": {}}},
            ["rapidocr==3.10.0", "onnxruntime>=1.24.1,<2"],
        ),
        (
            {"ocr": {"model": "tesseract", "revision": "5.3.0"}, "captions": "microsoft/git-base"},
            ["pytesseract>=0.3.13", *OF_CHECKPOINTS],
        ),
        ({"ocr": "pp-ocr", "captions": {"model": "a/b"}}, [*OF_ENGINES["pp-ocr"], "num2words>=0.5.13"]),
    ],
)
def test_requirements_are_those_of_the_aligners(builder: dict[str, Any] | None, lines: list[str]) -> None:
    assert requirements(builder) == [*BASE, *lines]


def test_tesseract_is_a_program_too() -> None:
    assert system_packages({"ocr": {"model": "tesseract", "revision": "5.3.0"}}) == ["tesseract-ocr"]
    assert system_packages({"ocr": "rapidocr"}) == system_packages(None) == []


def test_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(BASE) <= set(project["dependencies"])
    extras = project["optional-dependencies"]
    assert {name: tuple(extras[name]) for name in OF_ENGINES} == OF_ENGINES
    assert tuple(extras["vlm"]) == OF_CHECKPOINTS


# --- writing ---------------------------------------------------------------------------------------------------------


def test_an_earlier_export_is_replaced_and_an_empty_folder_filled(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert export_model(tiny_model, tiny_processor, str(folder)) == folder
    (folder / "model.safetensors").write_bytes(b"old")
    export_model(tiny_model, tiny_processor, folder)
    assert contents(folder) == contents(exported)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("stranger", ["report.json", ".git"])
def test_nothing_else_is_overwritten(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path, stranger: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / stranger).touch()
    with pytest.raises(FileExistsError, match="other exists and is no earlier export"):
        export_model(tiny_model, tiny_processor, tmp_path / "other")
    export_model(tiny_model, tiny_processor, tmp_path / "model")
    (tmp_path / "model" / stranger).touch()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=stranger):
        export_model(tiny_model, tiny_processor, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["model", "other"]


def test_what_fails_halfway_leaves_the_earlier_export(
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export_model(tiny_model, tiny_processor, tmp_path / "model")
    before = contents(tmp_path / "model")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ItaProcessor, "save_pretrained", stop)
    for folder in ("model", "new"):
        with pytest.raises(KeyboardInterrupt):
            export_model(tiny_model, tiny_processor, tmp_path / folder)
    assert contents(tmp_path / "model") == before
    assert os.listdir(tmp_path) == ["model"]


def test_an_export_leaves_no_trace_in_the_program(
    exported: Path, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    assert exported.exists()
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    for file in tmp_path.glob("*.json"):
        assert "auto_map" not in file.read_text()
    assert pickle.loads(pickle.dumps(tiny_model.config)).to_dict() == tiny_model.config.to_dict()
    assert pickle.loads(pickle.dumps(tiny_processor)).context_kinds == tiny_processor.context_kinds


# --- loading with the package installed ------------------------------------------------------------------------------


def test_it_loads_with_the_package_and_no_trust(exported: Path, tiny_model: ItaForTokenClassification) -> None:
    assert type(AutoConfig.from_pretrained(exported)) is ItaConfig
    assert type(AutoProcessor.from_pretrained(exported)) is ItaProcessor
    model = AutoModelForTokenClassification.from_pretrained(exported)
    assert type(model) is ItaForTokenClassification
    for name, weights in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weights), name
    task: Any
    for task in ("ner", "token-classification"):
        assert type(pipeline(task, model=str(exported), pipeline_class=ItaPipeline)) is ItaPipeline


def test_saving_what_was_loaded_changes_no_byte(exported: Path, tmp_path: Path) -> None:
    source = exported
    for folder in (tmp_path / "once", tmp_path / "twice"):
        AutoModelForTokenClassification.from_pretrained(source).save_pretrained(folder)
        AutoProcessor.from_pretrained(source).save_pretrained(folder)
        source = folder
    once, expected = contents(tmp_path / "once"), contents(exported)
    assert once == contents(tmp_path / "twice")
    # transformers drops the entry that names a processor's code when it loads without that code.
    processor = {"auto_map": {"AutoProcessor": "processing_ita.ItaProcessor"}} | json.loads(
        once["processor_config.json"]
    )
    assert processor == json.loads(expected.pop("processor_config.json"))
    assert expected == {name: once.get(name, content) for name, content in expected.items()}
    assert set(once) >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_a_pipeline_saves_all_that_it_was_made_of(exported: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pipeline_class": ItaPipeline, "device": "cpu"}
    pipe = pipeline("token-classification", model=str(exported), dtype=torch.bfloat16, **options)
    pipe.save_pretrained(tmp_path)
    again = pipeline("token-classification", model=str(tmp_path), **options)
    assert again.dtype == torch.bfloat16
    assert again(POST) == pipe(POST)
    assert contents(tmp_path)["tokenizer_config.json"] == contents(exported)["tokenizer_config.json"]


def test_a_tag_set_that_does_not_fit_is_an_error(exported: Path) -> None:
    with pytest.raises(ValueError, match=r"tag set .* has no 'O'"):
        AutoModelForTokenClassification.from_pretrained(exported, num_labels=5)
    with pytest.raises(ValueError, match="lacks I-PER"):
        AutoModelForTokenClassification.from_pretrained(exported, id2label={0: "O", 1: "B-PER"})
    with pytest.raises(ValueError, match=r"classifier\.weight is \(9, 32\), and config\.json makes it \(3, 32\)"):
        AutoModelForTokenClassification.from_pretrained(exported, id2label={0: "O", 1: "B-PER", 2: "I-PER"})


# --- checkpoints of other versions -----------------------------------------------------------------------------------

# What version 0.1.0 wrote before checkpoints had a format.
EARLIER_CONFIG = {
    "architectures": ["ItaForTokenClassification"],
    "cls_token_id": 2,
    "constraints": "none",
    "cross_loss_weight": 1.0,
    "cva_loss_weight": 1.0,
    "cva_temperature": 1.0,
    "dtype": "float32",
    "loss_preset": "paper",
    "model_type": "ita",
    "sep_token_id": 3,
    "text_loss_weight": 1.0,
    "transformers_version": "5.23.0",
    "word_dropout": 0.1,
}


def test_a_checkpoint_of_an_earlier_version_loads(
    exported: Path, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "earlier")
    config = json.loads((exported / "config.json").read_text())
    assert config["checkpoint_format"] == 1
    earlier = EARLIER_CONFIG | {key: config[key] for key in ("text_config", "id2label", "label2id")}
    (tmp_path / "earlier" / "config.json").write_text(json.dumps(earlier))
    processor = {"processor_class": "ItaProcessor", "context_builder": {"ocr": "rapidocr"}}
    (tmp_path / "earlier" / "processor_config.json").write_text(json.dumps(processor))
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "earlier")
    pipe = ItaPipeline(model=model, processor=AutoProcessor.from_pretrained(tmp_path / "earlier"), device="cpu")
    assert_same(pipe(POST), ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")(POST))
    assert list(pipe.context_builder.aligners) == ["ocr"]


def test_a_checkpoint_of_a_later_version_says_what_to_do(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "later")
    config = json.loads((exported / "config.json").read_text()) | {"checkpoint_format": 2}
    (tmp_path / "later" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is of format 2, .* knows formats up to 1: pip install --upgrade ita-mner"):
        AutoModelForTokenClassification.from_pretrained(tmp_path / "later")


def test_a_format_is_these_weights_and_these_settings(tiny_model: ItaForTokenClassification, exported: Path) -> None:
    """Whoever changes one of these names raises CHECKPOINT_FORMAT, and says how the earlier format is read."""
    assert CHECKPOINT_FORMAT == 1
    own = sorted(name for name in tiny_model.state_dict() if not name.startswith("encoder."))
    assert own == [
        "classifier.bias", "classifier.weight",
        "crf.end_transitions", "crf.start_transitions", "crf.transitions",
    ]  # fmt: skip
    config = json.loads((exported / "config.json").read_text())
    assert set(config) >= set(EARLIER_CONFIG) - {"cva_temperature"}
    processor = json.loads((exported / "processor_config.json").read_text())
    assert set(processor) == {
        "auto_map", "context_builder", "context_kinds", "max_context_length", "max_length", "processor_class",
        "segment_ids", "separate_kinds", "window_overlap",
    }  # fmt: skip


# --- loading where nothing of this project can be imported -----------------------------------------------------------

STRANGER = """
import json, sys
from transformers import AutoTokenizer, pipeline

folder, again, post, context, image = sys.argv[1:]
pipe = pipeline("ner", model=folder, trust_remote_code=True, device="cpu")
found = {
    "ner": pipe(post),
    "words": pipe([post.split()], is_split_into_words=True),
    "batch": list(pipe({"text": text} for text in [post, "", post])),
    "context": pipe({"text": post, "context": json.loads(context)}, return_context=True),
}
found["imported"] = [name for name in ("rapidocr", "easyocr", "onnxruntime", "cv2") if name in sys.modules]
if image:
    pipe.processor.context_builder = {"ocr": "rapidocr"}
    found["image"] = pipe({"text": post, "image": image}, return_context=True)
pipe.save_pretrained(again)
pipe = pipeline("token-classification", model=again, trust_remote_code=True, device="cpu")
found["again"] = pipe(post)
found["module"] = type(pipe).__module__
found["tokenizer"] = type(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)).__name__
print("FOUND" + json.dumps(found))
"""


def test_it_works_for_a_stranger(
    exported: Path, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    image = ""
    if all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime")):
        image = str(tmp_path / "image.png")
        picture = Image.new("RGB", (200, 80), "white")
        picture.paste("black", (20, 20, 60, 60))
        picture.save(image)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [exported, tmp_path / "again", POST, json.dumps(CONTEXT), image]
    said = run_stranger(STRANGER, arguments, environment, tmp_path)
    found = json.loads(said.rpartition("FOUND")[2])

    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    assert_same(found["ner"], pipe(POST))
    assert_same(found["again"], found["ner"])
    assert_same(found["words"][0], pipe([POST.split()], is_split_into_words=True)[0])
    assert [len(entities) for entities in found["batch"]] == [len(found["ner"]), 0, len(found["ner"])]
    expected = pipe({"text": POST, "context": CONTEXT}, return_context=True)
    assert_same(found["context"]["entities"], expected["entities"])
    assert found["context"]["context"] == expected["context"]
    assert found["module"].startswith("transformers_modules.")
    assert found["imported"] == []
    assert found["tokenizer"] == type(tiny_processor.tokenizer).__name__
    if image:
        assert found["image"]["context"]["provenance"]["ocr"]["model"] == "rapidocr"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_shows_what_contexts_change(
    exported: Path, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, capsys: Any
) -> None:
    other = {"captions": ["dog " * 30]}
    assert predict.main([str(exported), POST, "--context", json.dumps(CONTEXT), "--context", json.dumps(other)]) == 0
    shown = capsys.readouterr().out
    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    for entity in pipe(POST):
        assert f"{entity['word']} " in shown
        assert f"{entity['score']:.3f}" in shown
    for entity in pipe({"text": POST, "context": CONTEXT}):
        assert f"{entity['score']:.3f}" in shown
    assert "captions: a man in the stadium" in shown
    assert "ocr: NBA" in shown
    column = shown[shown.index("view") :].index("type")
    rows = [line for line in shown.splitlines() if line.startswith(("the post alone", "context")) and ": " not in line]
    assert len(rows) >= len(pipe(POST))
    assert all(row[column:].startswith((*tiny_model.config.tag_scheme.types, "–")) for row in rows)


def test_changes_against_the_post_alone_are_named() -> None:
    post = "Phoenix tonight Paris"

    def entity(kind: str, start: int, end: int) -> dict[str, Any]:
        return {"entity_group": kind, "score": 0.5, "word": post[start:end], "start": start, "end": end}

    views = [
        predict.View(predict.ALONE, [entity("LOC", 0, 7), entity("LOC", 8, 15)], None),
        predict.View("suns.png", [entity("ORG", 0, 7), entity("LOC", 16, 21)], {"ocr": ["SUNS"], "provenance": {}}),
        predict.View("blank.png", [], {"provenance": {}}),
    ]
    lines = [line.split() for line in predict.report(post, views).splitlines()]
    assert ["suns.png", "Phoenix", "ORG", "0.500", "was", "LOC"] in lines
    assert ["suns.png", "Paris", "LOC", "0.500", "new"] in lines
    assert ["suns.png", "tonight", "–", "was", "LOC"] in lines
    assert ["suns.png", "ocr:", "SUNS"] in lines
    assert ["blank.png", "(nothing)"] in lines
    assert predict.report("a", [predict.View(predict.ALONE, [], None)]).endswith("(none)")


def test_the_command_reads_images(exported: Path, tmp_path: Path) -> None:
    class ReadsSize:
        identity: dict[str, Any] = {"model": "size", "revision": None, "settings": {}}

        def __call__(self, images: Any) -> list[list[tuple[str, float]]]:
            return [[(f"width {image.width}", 1.0)] for image in images]

    Image.effect_noise((48, 48), 80).save(tmp_path / "a.png")
    pipe: Any = pipeline("token-classification", model=str(exported), pipeline_class=ItaPipeline, device="cpu")
    pipe.context_builder = VisualContextBuilder(ocr=ReadsSize())
    views = predict.label(pipe, POST, [str(tmp_path / "a.png")])
    assert [view.name for view in views] == [predict.ALONE, str(tmp_path / "a.png")]
    assert "ocr: width 48" in predict.report(POST, views)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "no/such.png"], "no image file 'no/such.png'"),
        (["--image", "https://example.org/a.png"], "is a URL"),
        (["--context", '{"captions": "a man"}'], "must be a list of strings"),
    ],
)
def test_the_command_says_what_is_wrong(exported: Path, arguments: list[str], message: str, capsys: Any) -> None:
    assert predict.main([str(exported), POST, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_takes_json_only(exported: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        predict.main([str(exported), POST, "--context", "a man"])
    assert "--context takes JSON" in capsys.readouterr().err


def test_public_names_are_there() -> None:
    assert all(hasattr(modeling_ita, name) for name in modeling_ita.__all__)
    assert type(AutoConfig.for_model("ita")) is ItaConfig
