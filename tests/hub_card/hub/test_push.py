"""The whole trip of a model: pushed with the unmodified clients, loaded where nothing of this project is installed."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import demo_hub
import pytest
import torch
from loopback_hub import ROOT, LoopbackHub, run_client
from PIL import Image, ImageDraw, ImageFont
from stranger import run_stranger

from hub_card.hub.exported_folder import export_model
from hub_card.hub.model_files import unpushed_id, weights_tag
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor

POST = "Phoenix Suns tonight, Obama in Paris 😀"
CONTEXT = {"captions": ["a man in the stadium"], "ocr": ["NBA"]}

PUSH = """
import contextlib, io, json, sys
from huggingface_hub import HfApi
from hub_card.export import main
from hub_card.hub.push import push_model

first, second, images = sys.argv[1:]
pushed = [push_model(first, "me/ita", private=True), push_model(second, "me/ita")]
HfApi().upload_file(repo_id="me/ita", path_in_repo="notes.txt", path_or_fileobj=b"mine")
HfApi().upload_file(repo_id="me/ita", path_in_repo="stale.py", path_or_fileobj=b"import nothing")
pushed.append(push_model(second, "me/ita", message="Again"))
pushed.append(push_model(first, "me/ita", branch="trial"))
assert main(["push", first, "me/open"]) == 0
refused = []
for folder, repository in ((first, "you/ita"), (images, "me/ita"), (first, "a/b/c")):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(["push", folder, repository]) == 2
    refused.append(said.getvalue())
print("PUSHED" + json.dumps([pushed, refused]))
"""

LOAD = """
import json, sys
from transformers import AutoModelForTokenClassification, pipeline
from transformers.utils import logging

logging.disable_progress_bar()
post, context, image, commit, tag = sys.argv[1:]

def label(model="me/ita", **settings):
    pipe = pipeline("token-classification", model=model, trust_remote_code=True, device="cpu", **settings)
    posts = [post, {"text": post, "context": json.loads(context)}, {"text": post, "image": image}]
    return [pipe(item, return_context=True) for item in posts]

def refused(function, *arguments, **settings):
    try:
        function(*arguments, **settings)
    except (OSError, ValueError) as error:
        return str(error)

found = {
    "commit": label(revision=commit),
    "tag": label(revision=tag),
    "main": label(),
    "trial": label(revision="trial"),
    "open": label("me/open", token=False),
    "refused": [
        refused(label, token=False),
        refused(label, revision="weights-00000000"),
        refused(AutoModelForTokenClassification.from_pretrained, "me/open", trust_remote_code=False),
    ],
    "imported": sorted({name.partition(".")[0] for name in sys.modules} & {"hub_card", "modeling_ita", "train"}),
}
print("FOUND" + json.dumps(found))
"""

AGAIN_OFFLINE = """
import json, sys
from transformers import pipeline

pipe = pipeline("ner", model="me/ita", revision=sys.argv[1], trust_remote_code=True, device="cpu")
print("FOUND" + json.dumps(pipe(sys.argv[2])))
"""

INSTALLED = """
import json, sys
from transformers import AutoConfig, AutoModelForTokenClassification, AutoProcessor
import modeling_ita

model = AutoModelForTokenClassification.from_pretrained("me/ita", revision=sys.argv[1])
processor = AutoProcessor.from_pretrained("me/ita", revision=sys.argv[1])
assert type(model) is modeling_ita.ItaForTokenClassification and type(processor) is modeling_ita.ItaProcessor
print("FOUND" + json.dumps(modeling_ita.ItaPipeline(model=model, processor=processor, device="cpu")(sys.argv[2])))
"""

TRAIN = """
import json, sys
from pathlib import Path
import datasets
import train

corpus, encoder, output = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = Path(output, "cache")
flags = ["--dataset", "conll", "--data_dir", corpus, "--encoder", encoder, "--num_epochs", "1", "--push_to_hub"]
train.main([*flags, "--output_dir", output + "/run", "--hub_model_id", "me/run", "--hub_private_repo"])
try:
    train.main([*flags, "--output_dir", output + "/refused", "--hub_model_id", "you/run"])
except OSError as error:
    print("REFUSED" + json.dumps([str(error), Path(output, "refused").exists()]))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "arena.png"
    picture = Image.new("RGB", (320, 160), "white")
    ImageDraw.Draw(picture).text((20, 60), "NBA Suns", font=ImageFont.load_default(40), fill="black")
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def models(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Path, ItaPipeline]]:
    """Two exported models with their pipelines; the weights of the second are larger than 10 MB."""
    processor = copy.deepcopy(tiny_processor)
    processor.context_builder = {"ocr": "rapidocr"}
    other = copy.deepcopy(tiny_model)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.nn.init.normal_(other.classifier.weight, std=0.7)
        other.encoder.resize_token_embeddings(90_000, mean_resizing=False)
    folder = tmp_path_factory.mktemp("models")
    found = []
    for name, model in {"first": tiny_model, "second": other}.items():
        pipe = ItaPipeline(model=model, processor=processor, device="cpu")
        found.append((export_model(model, processor, folder / name), pipe))
    assert (folder / "second" / "model.safetensors").stat().st_size > 10_000_000
    return found


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, models: list[tuple[Path, ItaPipeline]], image: Path, tmp_path_factory: Any) -> Any:
    """What four pushes returned, and three refused ones said."""
    arguments = [str(folder) for folder, _ in models]
    environment = hub.environment(tmp_path_factory.mktemp("pusher"))
    said = run_client(["-c", PUSH, *arguments, str(image.parent)], environment)
    return json.loads(said.rpartition("PUSHED")[2])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def loaded(hub: LoopbackHub, pushed: Any, home: Path, image: Path) -> dict[str, Any]:
    """What a stranger gets from the Hub."""
    (_, commit, tag), *_ = pushed[0]
    arguments = [POST, json.dumps(CONTEXT), image, commit, tag]
    return json.loads(run_stranger(LOAD, arguments, hub.environment(home)).rpartition("FOUND")[2])


def expected(pipe: ItaPipeline, image: Path) -> list[dict[str, Any]]:
    posts = [POST, {"text": POST, "context": CONTEXT}, {"text": POST, "image": str(image)}]
    return [pipe(post, return_context=True) for post in posts]


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """The same entities, with scores within 1e-4, from the same contexts."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert [{**e, "score": 0} for e in one["entities"]] == [{**e, "score": 0} for e in other["entities"]]
        scores = [e["score"] for e in other["entities"]]
        assert [e["score"] for e in one["entities"]] == pytest.approx(scores, abs=1e-4)
        assert _without_date(one["context"]) == _without_date(other["context"])


def _without_date(context: dict[str, Any] | None) -> Any:
    return context and json.loads(re.sub(r'"date": "[^"]*"', '"date": ""', json.dumps(context)))


def test_a_push_is_one_commit_and_a_tag(hub: LoopbackHub, pushed: Any, models: list[tuple[Path, ItaPipeline]]) -> None:
    repository = hub.repositories["models/me/ita"]
    first, second, again, trial = pushed[0]
    assert [entry["title"] for entry in repository.history("main")][::-1] == [
        "initial commit",
        f"Add {first[2]} with code and card",
        f"Add {second[2]} with code and card",
        *["Upload notes.txt with huggingface_hub", "Upload stale.py with huggingface_hub", "Again"],
    ]
    assert [first[2], second[2]] == [weights_tag(folder) for folder, _ in models]
    assert repository.tags == {first[2]: first[1], second[2]: second[1]}  # no tag moves
    assert repository.branches["main"] == again[1] and repository.branches["trial"] == trial[1]


def test_the_repository_holds_the_folder(
    hub: LoopbackHub, pushed: Any, models: list[tuple[Path, ItaPipeline]]
) -> None:
    repository = hub.repositories["models/me/ita"]
    folder = models[1][0]
    local = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    there = repository.at("main").files
    assert there.keys() == {*local, ".gitattributes", "notes.txt"}  # stale.py is gone, what is no code stays
    for name, file in local.items():
        content = file.read_bytes()
        if name == "README.md":
            content = content.replace(unpushed_id("ita").encode(), b"me/ita")
        assert there[name].content == content, name
    card = there["README.md"].content.decode()
    assert unpushed_id("ita") not in card and f'revision="{pushed[0][1][2]}"' in card
    assert there["model.safetensors"].sha256 and repository.private
    assert not hub.repositories["models/me/open"].private


def test_a_stranger_gets_the_same_entities(
    loaded: dict[str, Any], models: list[tuple[Path, ItaPipeline]], image: Path
) -> None:
    first, second = (expected(pipe, image) for _, pipe in models)
    assert any(first[0]["entities"]) and first[0]["entities"] != second[0]["entities"]
    assert first[2]["context"]["ocr"]
    assert loaded["imported"] == []
    for place in ("commit", "tag", "trial", "open"):
        assert_same(loaded[place], first)
    assert_same(loaded["main"], second)


def test_what_a_stranger_may_not_have_is_told(loaded: dict[str, Any]) -> None:
    private, revision, trust = loaded["refused"]
    assert "Repository Not Found" in private
    assert "weights-00000000 is not a valid git identifier" in revision
    assert "trust_remote_code=True" in trust


def test_what_was_loaded_once_loads_offline(
    hub: LoopbackHub, pushed: Any, loaded: dict[str, Any], models: list[tuple[Path, ItaPipeline]], home: Path
) -> None:
    before = len(hub.requests)
    environment = hub.environment(home, token=None, offline=True)
    said = run_stranger(AGAIN_OFFLINE, [pushed[0][0][1], POST], environment)
    entities = json.loads(said.rpartition("FOUND")[2])
    assert_same([{"entities": entities, "context": None}], [{"entities": models[0][1](POST), "context": None}])
    assert len(hub.requests) == before


def test_with_the_package_no_trust_is_needed(
    hub: LoopbackHub, pushed: Any, loaded: dict[str, Any], models: list[tuple[Path, ItaPipeline]], home: Path
) -> None:
    said = run_client(["-c", INSTALLED, pushed[0][0][1], POST], hub.environment(home))
    entities = json.loads(said.rpartition("FOUND")[2])
    assert_same([{"entities": entities, "context": None}], [{"entities": models[0][1](POST), "context": None}])


def test_refused_pushes_say_why(pushed: Any) -> None:
    forbidden, no_export, no_name = pushed[1]
    assert forbidden.startswith("error: you/ita cannot be written to (hf auth login, or the variable HF_TOKEN")
    assert "403" in forbidden
    assert "is not an exported folder (train.py leaves one in OUTPUT/model)" in no_export
    assert no_name.startswith("error: ") and "a/b/c" in no_name


def test_training_pushes_what_it_made(hub: LoopbackHub, tiny_encoder: str, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        posts = [f"IMGID:{split}{i}\nPhoenix\tB-ORG\n{split}{i}\tO\n" for i in range(4)]
        (tmp_path / f"{split}.txt").write_text("\n".join(posts), encoding="utf-8")
    said = run_client(["-c", TRAIN, str(tmp_path), tiny_encoder, str(tmp_path)], hub.environment(tmp_path / "home"))
    repository = hub.repositories["models/me/run"]
    names = set(repository.at("main").files)
    folder = tmp_path / "run" / "model"
    assert names - {".gitattributes"} == {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert names >= {"README.md", ".eval_results/ita.yaml", "report.png", "handler.py"}
    assert len(names) - 1 <= 32 and repository.private
    assert f'model="me/run", revision="{repository.at("main").oid}"' in said
    card = hub.read("models/me/run", "README.md").decode()
    assert "ita-mner-f1|data:" in card and "me/run" in card
    refused, began = json.loads(said.rpartition("REFUSED")[2])
    assert refused.startswith("you/run cannot be written to") and not began  # before the training, not after it


def test_an_interrupted_push_goes_on(models: list[tuple[Path, ItaPipeline]], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models[1][0], folder)
    command = [sys.executable, "-m", "hub_card.export", "push", str(folder), "me/ita"]
    with LoopbackHub() as hub:
        hub.held = "POST /api/models/me/ita/commit"
        environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        push = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while not any(asked.startswith(hub.held) for asked in list(hub.requests)):
            assert push.poll() is None and time.monotonic() - started < 120
            time.sleep(0.05)
        push.kill()
        push.wait()
        hub.held = None
        repository = hub.repositories["models/me/ita"]
        assert len(repository.history("main")) == 1  # nothing half
        sent = [asked for asked in hub.requests if asked.startswith("PUT /lfs/")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert [asked for asked in hub.requests if asked.startswith("PUT /lfs/")] == sent != []  # not sent again
        assert f'revision="{repository.at("main").oid}"' in done.stdout
        assert repository.at("main").files["model.safetensors"].content == (folder / "model.safetensors").read_bytes()


def test_the_demonstration_shows_the_whole_trip(
    models: list[tuple[Path, ItaPipeline]], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pipe = models[0]
    assert demo_hub.main([str(folder), "--post", POST, "--image", str(image)]) == 0
    shown = capsys.readouterr().out
    for entity in pipe({"text": POST, "image": str(image)}):
        assert f"{entity['word']} " in shown
    assert f"{len([f for f in folder.rglob('*') if f.is_file()])} files" in shown
    assert "the same entities as from the folder" in shown
    assert "without a token" in shown
    assert os.sep + "me" not in shown
