"""MGCMT's way to the Hub: exported, pushed, loaded where neither this project nor torchvision is installed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_repository import Repository
from huggingface_hub import CommitOperationAdd, ModelCard
from loopback_hub import LoopbackHub
from stranger import run_stranger
from tiny_mgcmt import make_model, picture
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoProcessor,
    BertTokenizer,
    ConvNextImageProcessorPil,
)
from transformers.dynamic_module_utils import get_imports

import hub_card.hub.push
import train
from hub_card.card.card import make_card, write_card
from hub_card.card.card_examples import run_examples
from hub_card.hub.exported_folder import export_model
from hub_card.hub.model_files import code_files
from hub_card.predictions.evaluate_model import evaluate_model
from hub_card.report.report import make_report
from modeling_ita import (
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    MgcmtConfig,
    MgcmtForTokenClassification,
    MgcmtProcessor,
    VisualContextBuilder,
    WordNeighbours,
)
from modeling_ita.visual_context import VisualContext

POST = "Phoenix Suns tonight, Obama in Paris 😀"
CONTEXT = {"object_tags": ["red car", "dog"]}


@pytest.fixture(scope="module")
def model() -> MgcmtForTokenClassification:
    return make_model()


@pytest.fixture(scope="module")
def processor(tiny_encoder: str) -> MgcmtProcessor:
    words = ["Phoenix", "Suns", "Paris", "game", "dog"]
    table = WordNeighbours(words, torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), 2)
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    return MgcmtProcessor(BertTokenizer.from_pretrained(tiny_encoder), images, ["car", "dog"], word_neighbours=table)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "noise.png"
    picture(0, (90, 60)).save(path)
    return path


@pytest.fixture(scope="module")
def exported(
    model: MgcmtForTokenClassification, processor: MgcmtProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return export_model(model, processor, tmp_path_factory.mktemp("hub") / "mgcmt", examples="here")


def inputs(image: Path) -> list[Any]:
    return [
        POST,
        {"text": POST, "image": str(image)},
        {"text": POST, "context": CONTEXT},
        {"text": POST, "image": str(image), "context": CONTEXT},
    ]


def expected(model: MgcmtForTokenClassification, processor: MgcmtProcessor, image: Path) -> Any:
    """What the pipeline gives in this process."""
    found = ItaPipeline(model=model, processor=processor, device="cpu")(inputs(image))
    assert any(found) and len({json.dumps(entities) for entities in found}) == 4
    return found


def assert_same(results: Any, wanted: Any) -> None:
    """Equal, with scores equal within 1e-4."""
    for got, entities in zip(results, wanted, strict=True):
        assert [{**e, "score": 0} for e in got] == [{**e, "score": 0} for e in entities]
        assert [e["score"] for e in got] == pytest.approx([e["score"] for e in entities], abs=1e-4)


def test_the_folder_holds_the_code_of_this_model(exported: Path) -> None:
    code = {file.name for file in code_files("mgcmt")}
    own = {"configuration_mgcmt.py", "modeling_mgcmt.py", "processing_mgcmt.py", "pipeline_ita.py"}
    assert own | {"word_neighbours.py", "crf.py", "image_file.py"} <= code
    assert {file.name for file in exported.glob("*.py")} == code | {"handler.py"}
    assert own & {file.name for file in code_files()} == {"pipeline_ita.py"}
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_mgcmt.MgcmtConfig",
        "AutoModelForTokenClassification": "modeling_mgcmt.MgcmtForTokenClassification",
    }
    assert config["custom_pipelines"].keys() == {"token-classification", "ner"}
    processor = json.loads((exported / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_mgcmt.MgcmtProcessor"}
    assert processor["image_processor"]["size"] == {"shortest_edge": 32}
    assert "auto_map" not in json.loads((exported / "tokenizer_config.json").read_text())


def test_the_code_imports_torch_transformers_and_pil_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "PIL"}
    for file in code_files("mgcmt"):
        assert set(get_imports(file)) <= allowed, file.name


def test_it_loads_with_the_package_and_no_trust(
    exported: Path, model: MgcmtForTokenClassification, processor: MgcmtProcessor, image: Path
) -> None:
    assert type(AutoConfig.from_pretrained(exported)) is MgcmtConfig
    loaded = AutoModelForTokenClassification.from_pretrained(exported)
    assert type(loaded) is MgcmtForTokenClassification
    reading = AutoProcessor.from_pretrained(exported)
    assert type(reading) is MgcmtProcessor
    assert_same(
        ItaPipeline(model=loaded, processor=reading, device="cpu")(inputs(image)), expected(model, processor, image)
    )


def test_saving_what_was_loaded_changes_nothing(exported: Path, tmp_path: Path) -> None:
    source = exported
    for folder in (tmp_path / "once", tmp_path / "twice"):
        AutoModelForTokenClassification.from_pretrained(source).save_pretrained(folder)
        AutoProcessor.from_pretrained(source).save_pretrained(folder)
        source = folder
    once, twice = (
        {file.name: file.read_bytes() for file in folder.iterdir()} for folder in (tmp_path / "once", source)
    )
    assert once == twice
    for name in ("model.safetensors", "word_neighbours.safetensors", "word_neighbours.json", "tokenizer.json"):
        assert once[name] == (exported / name).read_bytes(), name
    settings = json.loads(once["processor_config.json"])
    entry = {"auto_map": {"AutoProcessor": "processing_mgcmt.MgcmtProcessor"}}
    assert settings | entry == json.loads((exported / "processor_config.json").read_text())


def test_one_system_is_not_taken_for_the_other(exported: Path) -> None:
    with pytest.raises(ValueError, match="is a checkpoint of 'mgcmt', and ItaForTokenClassification takes 'ita'"):
        ItaForTokenClassification.from_pretrained(exported)


def test_one_system_replaces_the_other(
    model: MgcmtForTokenClassification,
    processor: MgcmtProcessor,
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
) -> None:
    export_model(model, processor, tmp_path / "model")
    export_model(tiny_model, tiny_processor, tmp_path / "model")
    assert not list((tmp_path / "model").glob("*mgcmt*")) + list((tmp_path / "model").glob("word_neighbours*"))


# --- the card --------------------------------------------------------------------------------------------------------


@dataclass
class Post:
    id: str
    words: list[str]
    tags: list[int]
    context: VisualContext
    image: Any = None


@pytest.fixture(scope="module")
def report(model: MgcmtForTokenClassification, processor: MgcmtProcessor, image: Path) -> dict[str, Any]:
    """A report such as train.py makes it, of a model that was not trained."""
    tags, picture = VisualContext({"object_tags": ["car"]}), str(image)
    posts = [Post("1", ["Phoenix", "tonight"], [1, 0], tags, picture), Post("2", ["in", "Paris"], [0, 3], tags)]
    evaluation = evaluate_model(model, processor, {"train": posts, "validation": posts, "test": posts})
    processed = evaluation.fields.pop("counts")
    flags = "--model mgcmt --output_dir x --encoder bert-base-cased --word_neighbours /home/someone/neighbours"
    arguments = train.parse_arguments(flags.split())
    split = {"posts": 2, "words": 4, "entities": {"PER": 1, "LOC": 1}, "contexts": {"present": 2}}
    return make_report(
        name="tiny",
        **evaluation.fields,
        counts={"corpus": {"splits": {"train": split, "test": split}}, "processor": processed},
        data={},
        command="python train.py",
        history={
            "evaluations": [{"epoch": n, "I+T": f1, "best": f1 > 0.2} for n, f1 in ((1, 0.3), (2, 0.4), (3, 0.2))]
        },
        config={k: v for part in arguments for k, v in asdict(part).items()} | {"model": {"model_type": "mgcmt"}},
        config_defaults=train.defaults(arguments),
        aligners={kind: {"model": f"a/{kind}"} for kind in ("object_tags", "captions")},
    )


def report_of(report: dict[str, Any], *kinds: str, **config: Any) -> dict[str, Any]:
    """The report as it would be of a model that takes these kinds, `image` being the image itself."""
    ablation = {split: {kind: scored[kind] for kind in kinds} for split, scored in report["ablation"].items()}
    return report | {"ablation": ablation, "config": report["config"] | config}


def pipe_of(processor: MgcmtProcessor, labels: Sequence[str] = (), **settings: Any) -> ItaPipeline:
    """The pipeline on a model of these settings."""
    table = processor.word_neighbours
    made = MgcmtProcessor(processor.tokenizer, processor.image_processor, labels, word_neighbours=table)
    return ItaPipeline(model=make_model(**settings), processor=made, device="cpu")


def card_of(pipe: ItaPipeline, report: dict[str, Any] | None = None) -> ModelCard:
    named: dict[str, Any] = {"model_id": "you/mgcmt", "revision": "weights-1a2b3c4d", "pipe": pipe}
    examples = run_examples(pipe, named["model_id"], named["revision"])
    return make_card(**named, report=report, examples=examples)


def plain(card: ModelCard) -> str:
    """The words of a card, wherever its lines end."""
    return " ".join(card.text.split())


def blocks_run(card: str, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The Python blocks of a card, each after it printed what stands below it."""
    monkeypatch.setattr("transformers.pipeline", load)
    blocks = re.findall(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    assert len(blocks) == card.count("```python")
    names: dict[str, Any] = {}
    for code, shown in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, names)
        assert said.getvalue() == shown
    return [code for code, _ in blocks]


def test_the_card_is_about_this_model(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (exported / "README.md").read_text()
    assert "MGCMT (Liu et al., 2022)" in card and "- mgcmt\n" in card and "object_tags" in card
    for wrong in ("no vision encoder", "caption", "OCR", "Wang et al.", "- ita\n", "It ends with an error", "Error:"):
        assert wrong not in card, wrong

    def load(*_: Any, **__: Any) -> ItaPipeline:
        loaded = AutoModelForTokenClassification.from_pretrained(exported)
        return ItaPipeline(model=loaded, processor=AutoProcessor.from_pretrained(exported), device="cpu")

    assert len(blocks_run(card, load, monkeypatch)) == 5


def test_a_card_with_picture_and_objects(
    processor: MgcmtProcessor, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipe_of(processor, ["car", "dog"])
    card = card_of(pipe, report)
    said = plain(card)
    assert "looks at its picture, and is told which objects are in it" in said
    assert "It knows 2 classes of objects" in said
    assert "The picture itself is looked at, but nothing here finds the objects in it." in said
    assert "trained and scored with `object_tags` from files" in said
    assert "| object_tags | `a/object_tags` |" in said and "a/captions" not in said
    assert "A blank image is masked" in said
    *_, batch, _ = blocks_run(card.text, lambda *_, **__: pipe, monkeypatch)
    assert '"image": image, "context": {"object_tags": ["car", "dog"]}}' in batch
    table = card.text.partition("### What the picture and the objects in it give")[2]
    rows = re.findall(r"^\| (image and|without) ([a-z_ ]+) \|", table, re.MULTILINE)
    assert rows == [("image and", "context"), ("without", "object_tags"), ("without", "the image itself")]
    assert (
        "objects of a class that the model does not know" not in said and "| posts with a visual context | 2 |" in said
    )
    assert "| words without neighbours, to which nothing is added | – | 2 |" in said  # train was not evaluated


def test_a_card_with_the_picture_alone(
    processor: MgcmtProcessor, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processor knows classes of objects that the model has no use for.
    pipe = pipe_of(processor, ["car", "dog"], visual_fusion="regions")
    card = card_of(pipe, report_of(report, "image"))
    said = plain(card)
    assert "and looks at its picture." in said and "a `context` changes nothing" in said
    for wrong in ("Mind the gap", "object_tags", "classes of objects", "or contexts", "a/captions", "etector"):
        assert wrong not in said, wrong
    assert "without the image itself" not in said  # that is the view T
    codes = blocks_run(card.text, lambda *_, **__: pipe, monkeypatch)
    assert len(codes) == 4 and '{"text": "Phoenix tonight!", "image": image},' in codes[2]


def test_a_card_with_objects_alone(
    processor: MgcmtProcessor, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipe_of(processor, ["car", "dog"], visual_fusion="objects")
    card = card_of(pipe, report_of(report, "object_tags"))
    said = plain(card)
    assert "told which objects are in its picture, at which it does not look itself" in said
    assert "Nothing here finds the objects in a picture." in said and "A picture cannot be given to it." in said
    assert "vision encoder" not in said and "faces and knows no people" in said and "the image itself" not in said
    codes = blocks_run(card.text, lambda *_, **__: pipe, monkeypatch)
    assert len(codes) == 4 and not any("ImageDraw" in code or '"image"' in code for code in codes)
    # With an aligner a picture can be given.
    pipe.processor.context_builder = {"object_tags": "a/detector"}
    pipe.context_builder = VisualContextBuilder(object_tags=lambda images: [["old car"] for _ in images])
    card = card_of(pipe, report_of(report, "object_tags"))
    codes = blocks_run(card.text, lambda *_, **__: pipe, monkeypatch)
    assert len(codes) == 5 and "found in it: {'object_tags': ['old car']}\n" in card.text
    assert "Mind the gap" not in card.text and "| object_tags | `a/detector` |" in card.text


def test_a_card_of_the_text_side_alone(
    processor: MgcmtProcessor, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipe_of(processor, visual_fusion="none")
    card = card_of(pipe, report_of(report))
    said = plain(card)
    assert "it takes no picture, and no context of one" in said and "No picture takes part" in said
    for wrong in ("its say", "vision encoder", "A wrong picture", "Mind the gap", "object_tags", "the right image"):
        assert wrong not in said, wrong
    assert "multimodal" not in card.data.tags and "mgcmt" in card.data.tags
    codes = blocks_run(card.text, lambda *_, **__: pipe, monkeypatch)
    assert len(codes) == 3 and not any("image" in code or "context" in code for code in codes)


def test_a_card_without_the_vision_encoder_says_so(processor: MgcmtProcessor) -> None:
    said = plain(card_of(pipe_of(processor, visual_fusion="regions", vision_config=None, region_size=12)))
    assert (
        "blind to pictures as it stands" in said and "(`region_features`), but no vision encoder comes with it" in said
    )
    assert "looks at its picture" not in said and "ImageDraw" not in said


@pytest.mark.parametrize(
    ("vision", "fusion", "trained", "base_model", "said"),
    [
        ("microsoft/resnet-152", "both", True, ["bert-base-cased", "microsoft/resnet-152"],
         "(`microsoft/resnet-152`, fine-tuned)"),
        ("from_scratch", "both", True, "bert-base-cased", "(resnet, trained from scratch)"),
        ("/home/someone/vision", "regions", False, "bert-base-cased", "(resnet, frozen)"),
        ("microsoft/resnet-152", "objects", False, "bert-base-cased", "encoder it started from, `bert-base-cased`,"),
    ],
)  # fmt: skip
def test_the_encoders_are_named(
    processor: MgcmtProcessor,
    report: dict[str, Any],
    vision: str,
    fusion: str,
    trained: bool,
    base_model: Any,
    said: str,
) -> None:
    pipe = pipe_of(processor, ["car"], visual_fusion=fusion, train_vision=trained)
    card = card_of(pipe, report_of(report, vision_encoder=vision, train_vision=trained))
    assert card.data.base_model == base_model and said in plain(card)
    assert card.data.get("base_model_relation") == ("finetune" if isinstance(base_model, list) else None)
    assert "/home/someone" not in card.content  # nor of the table of neighbours


def test_the_card_says_how_it_was_trained(processor: MgcmtProcessor, report: dict[str, Any]) -> None:
    said = plain(card_of(pipe_of(processor, aux_loss_weight=0.25), report))
    assert "and 0.25 times that of an auxiliary CRF" in said
    assert "Of 3 epochs the one with the best F1 of I+T on validation was kept: number 2." in said
    assert "| `word_neighbours` | neighbours | – |" in said


def test_the_scores_lie_under_the_name_of_the_system(
    processor: MgcmtProcessor, report: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / ".eval_results").mkdir()
    (tmp_path / ".eval_results" / "ita.yaml").touch()
    pipe = pipe_of(processor, visual_fusion="none")
    write_card(tmp_path, model_id="you/mgcmt", revision="main", pipe=pipe, report=report_of(report))
    assert [file.name for file in (tmp_path / ".eval_results").iterdir()] == ["mgcmt.yaml"]


# --- on the Hub ------------------------------------------------------------------------------------------------------


STRANGER = """
import importlib.util, json, sys

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.startswith("torchvision") else find_spec(name, *a)
sys.modules["torchvision"] = None

from transformers import pipeline
from transformers.utils import is_torchvision_available

source, again, inputs = sys.argv[1:]
assert not is_torchvision_available()
pipe = pipeline("ner", model=source, trust_remote_code=True, device="cpu")
found = [pipe(json.loads(inputs))]
pipe.save_pretrained(again)
found.append(pipeline("token-classification", model=again, trust_remote_code=True, device="cpu")(json.loads(inputs)))
print("FOUND" + json.dumps(found))
"""


def test_a_stranger_gets_the_same_from_the_hub(
    exported: Path,
    model: MgcmtForTokenClassification,
    processor: MgcmtProcessor,
    image: Path,
    tmp_path: Path,
) -> None:
    with LoopbackHub() as hub:
        hub.repositories["models/me/mgcmt"] = Repository("models/me/mgcmt")
        hub.commit("models/me/mgcmt", {file.name: file.read_bytes() for file in exported.iterdir()})
        arguments = ["me/mgcmt", str(tmp_path / "again"), json.dumps(inputs(image))]
        printed = run_stranger(STRANGER, arguments, hub.environment(tmp_path / "home"))
    for found in json.loads(printed.rpartition("FOUND")[2]):
        assert_same(found, expected(model, processor, image))


def test_a_push_leaves_no_table_of_an_earlier_model(
    exported: Path,
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository: set[str] = {"notes.txt"}

    class Hub:
        """The calls of `HfApi` that a push makes, on a set of names."""

        def create_repo(self, *_: Any, **__: Any) -> None: ...

        def create_tag(self, *_: Any, **__: Any) -> None: ...

        def list_repo_files(self, *_: Any, **__: Any) -> list[str]:
            return sorted(repository)

        def create_commit(self, _: str, operations: list[Any], **__: Any) -> Any:
            for operation in operations:
                added = isinstance(operation, CommitOperationAdd)
                (repository.add if added else repository.remove)(operation.path_in_repo)
            return SimpleNamespace(oid="0" * 40)

    monkeypatch.setattr(hub_card.hub.push, "HfApi", Hub)
    hub_card.hub.push.push_model(exported, "me/model")
    assert repository == {file.name for file in exported.iterdir()} | {"notes.txt"}
    ita = export_model(tiny_model, tiny_processor, tmp_path / "ita")
    hub_card.hub.push.push_model(ita, "me/model")
    assert repository == {file.name for file in ita.iterdir()} | {"notes.txt"}
