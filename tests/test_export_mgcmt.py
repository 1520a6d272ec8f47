"""MGCMT's way to the Hub: exported, pushed, loaded where neither this project nor torchvision is installed."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_repository import Repository
from huggingface_hub import CommitOperationAdd
from loopback_hub import LoopbackHub
from PIL import Image
from stranger import run_stranger
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoProcessor,
    BertConfig,
    BertTokenizer,
    ConvNextImageProcessorPil,
    ResNetConfig,
)
from transformers.dynamic_module_utils import get_imports

import hub_card.push
from hub_card.export import code_files, export_model
from modeling_ita import (
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    MgcmtConfig,
    MgcmtForTokenClassification,
    MgcmtProcessor,
    WordNeighbours,
)

POST = "Phoenix Suns tonight, Obama in Paris 😀"
CONTEXT = {"object_tags": ["red car", "dog"]}
VISION: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [8, 12], "embedding_size": 4, "layer_type": "basic"}


def make_model(**settings: Any) -> MgcmtForTokenClassification:
    text = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=300)
    vision = ResNetConfig(**VISION, downsample_in_first_stage=True)
    made: dict[str, Any] = {"text_config": text, "vision_config": vision, "augmentation_size": 6, "num_regions": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MgcmtForTokenClassification(MgcmtConfig(**made | settings))
        for weights in model.parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.3)
    return model.eval()


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
    Image.frombytes("RGB", (90, 60), random.Random(0).randbytes(3 * 90 * 60)).save(path)
    return path


@pytest.fixture(scope="module")
def exported(
    model: MgcmtForTokenClassification, processor: MgcmtProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return export_model(model, processor, tmp_path_factory.mktemp("hub") / "mgcmt")


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


def test_the_card_is_about_this_model(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "MGCMT (Liu et al., 2022)" in card and "- mgcmt\n" in card and "object_tags" in card
    for wrong in ("no vision encoder", "caption", "OCR", "Wang et al.", "- ita\n", "It ends with an error", "Error:"):
        assert wrong not in card, wrong


@pytest.mark.parametrize("fusion", ["regions", "objects", "none"])
def test_an_ablation_claims_no_more_than_it_does(processor: MgcmtProcessor, tmp_path: Path, fusion: str) -> None:
    card = (export_model(make_model(visual_fusion=fusion), processor, tmp_path / "model") / "README.md").read_text()
    assert ("a vision encoder" in card) == (fusion == "regions")
    assert ("the picture of a post changes nothing" in card) == (fusion == "none")


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

    monkeypatch.setattr(hub_card.push, "HfApi", Hub)
    hub_card.push.push_model(exported, "me/model")
    assert repository == {file.name for file in exported.iterdir()} | {"notes.txt"}
    ita = export_model(tiny_model, tiny_processor, tmp_path / "ita")
    hub_card.push.push_model(ita, "me/model")
    assert repository == {file.name for file in ita.iterdir()} | {"notes.txt"}
