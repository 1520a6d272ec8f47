"""What the unmodified clients make of the project's data sets and checkpoints, through a Hub on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_hub import LoopbackHub, run_client
from PIL import Image
from tiny_checkpoints import TinyCheckpoints, pictures

from dataset_scripts.corpus.context_files import read_contexts
from modeling_ita.captioner import Captioner
from modeling_ita.visual_context import VisualContext

WIDTHS = """
def widths(images):
    return [[f"“width” {image.width}"] * (image.width != 44) for image in images]
"""

# Everything that is pushed, in one process, for the imports take longer than all the rest.
BUILD = """
import contextlib, io, json, sys
from pathlib import Path
import datasets
from huggingface_hub import DatasetCard, HfApi
from PIL import Image
from dataset_scripts.build_visual_context import main

root = Path(sys.argv[1])
fixed = ["--aligner", "ocr=width_reader:widths", "--store", str(root / "store")]

def build(images, output, *arguments):
    assert main([*images, *fixed, "--output", str(root / output), *arguments]) == 0

corpus = [str(root / "corpus")]
datasets.Dataset.from_dict({"id": ["a", "b"], "tags": [["B-LOC"], ["O"]]}).push_to_hub("me/corpus", "gold")
build(corpus, "first.jsonl", "--push_to_hub", "me/contexts", "--private", "true")
build(corpus, "first.jsonl", "--push_to_hub", "me/corpus")

HfApi().create_tag("me/contexts", tag="first", repo_type="dataset")
card = DatasetCard.load("me/contexts")
card.text = card.text.replace("# Visual contexts", "# My photos")
card.push_to_hub("me/contexts")
(root / "70.png").replace(root / "corpus" / "images" / "no-image.png")
(root / "scenes.jsonl").write_text('{"id": "a", "captions": ["a box"], "source": {"captions": "scene"}}')
for repository in ("me/contexts", "me/corpus"):
    build(corpus, "second.jsonl", "--merge", str(root / "scenes.jsonl"), "--push_to_hub", repository)

photo = [str(root / "corpus" / "images" / "a.png"), None, Image.open(root / "60.png")]
photos = {"key": ["x", "y", "z"], "photo": photo}
features = datasets.Features({"key": datasets.Value("string"), "photo": datasets.Image()})
datasets.Dataset.from_dict(photos, features).push_to_hub("me/photos")
build(["--dataset", "me/photos", "--id_column", "key"], "photos.jsonl")

said = []
for endpoint, repository in ((datasets.config.HF_ENDPOINT, "you/contexts"), ("http://127.0.0.1:9", "me/contexts")):
    datasets.config.HF_ENDPOINT = endpoint  # nobody listens at the second one
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert main([*corpus, *fixed, "--output", str(root / "refused.jsonl"), "--push_to_hub", repository]) == 2
    said.append(errors.getvalue().splitlines()[-1])
(root / "refused.json").write_text(json.dumps(said))
"""

LOAD = """
import json, sys
import datasets
datasets.disable_progress_bars()

def rows(*arguments, **settings):
    return datasets.load_dataset(*arguments, split="train", **settings).to_list()

try:
    rows("me/contexts", token=False)
except datasets.exceptions.DatasetNotFoundError as error:
    loaded = {"anonymous": str(error)}
loaded["first"] = rows("me/contexts", "visual_context", revision="first")
loaded["second"] = rows("me/contexts", "visual_context")
loaded["default"] = rows("me/contexts")
loaded["gold"] = rows("me/corpus", "gold")
loaded["beside gold"] = rows("me/corpus", "visual_context")
loaded["configurations"] = datasets.get_dataset_config_names("me/corpus")
print(json.dumps(loaded))
"""


PUSH_CHECKPOINT = """
import sys
from huggingface_hub import HfApi

api = HfApi()
api.create_repo("me/blip", private=True)
api.upload_folder(repo_id="me/blip", folder_path=sys.argv[1])
api.create_branch("me/blip", branch="v1")
"""

CAPTION = """
import importlib, json, os, sys
from contextlib import suppress

for name in ("torch", "torchvision", "scipy.optimize"):  # they know of no Hub and take most of the time
    with suppress(ImportError):
        importlib.import_module(name)

def caption():
    from PIL import Image
    from modeling_ita.captioner import Captioner

    captioner = Captioner("me/blip", revision="v1", num_captions=2, max_new_tokens=5, device="cpu")
    captions = captioner([Image.open(path).convert("RGB") for path in sys.argv[1:]])
    print(json.dumps({"identity": captioner.identity, "captions": captions}))

def caption_and_move():
    caption()
    from huggingface_hub import HfApi

    HfApi().upload_file(repo_id="me/blip", path_or_fileobj=b"Moved.", path_in_repo="README.md", revision="v1")
    caption()

def in_its_own_process(function, **environment):
    if os.fork() == 0:
        os.environ.update(environment)
        sys.exit(function())
    assert os.wait()[1] == 0

in_its_own_process(caption_and_move)
in_its_own_process(caption, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="")
"""


USE = """
import json
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()
api.create_repo("me/files")
api.create_repo("me/files", exist_ok=True)
weights = b"\\0\\1" * 600
for path, content in {"a/b.txt": b"text", "c.safetensors": weights}.items():
    api.upload_file(repo_id="me/files", path_in_repo=path, path_or_fileobj=content)
api.create_tag("me/files", tag="full")
api.create_commit("me/files", [CommitOperationDelete("a/"), CommitOperationAdd("d.bin", weights)], commit_message="d")
with open(hf_hub_download("me/files", "d.bin"), "rb") as file:
    assert file.read() == weights

def refused(function, *arguments, **settings):
    try:
        function(*arguments, **settings)
    except HfHubHTTPError as error:
        return type(error).__name__

print(json.dumps({
    "files": [api.list_repo_files("me/files", revision=revision) for revision in ("full", "main")],
    "folder": [entry.path for entry in api.list_repo_tree("me/files", "a", revision="full")],
    "titles": [commit.title for commit in api.list_repo_commits("me/files")],
    "refused": [
        refused(api.model_info, "me/files", revision="v9"),
        refused(api.model_info, "me/nothing"),
        refused(hf_hub_download, "me/files", "a/b.txt"),
        refused(api.upload_file, repo_id="me/files", path_in_repo="x", path_or_fileobj=b"x", token="hf_bad"),
        refused(api.create_repo, "you/files"),
    ],
}))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def built(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which contexts were pushed, twice, with what was pushed as files."""
    root = tmp_path_factory.mktemp("built")
    images = root / "corpus" / "images"
    images.mkdir(parents=True)
    for name, width in {"a.png": 40, "b.png": 50, "c.png": 44, "../../60.png": 60, "../../70.png": 70}.items():
        image = Image.new("RGB", (width, 30), "white")
        image.paste("navy", (0, 0, 20, 20))
        image.save(images / name)
    (root / "corpus" / "train.txt").write_text("IMGID:a\nPhoenix\tB-LOC\n\nIMGID:b\n!\tO\n\nIMGID:no-image\n!\tO\n")
    (root / "corpus" / "test.txt").write_text("IMGID:c\n!\tO\n")
    (root / "width_reader.py").write_text(WIDTHS, encoding="utf-8")
    run_client(["-c", BUILD, str(root)], hub.environment(root / "home"), [root])
    return root


@pytest.fixture(scope="module")
def loaded(hub: LoopbackHub, built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `load_dataset` gives in another process, whose cache is empty."""
    return json.loads(run_client(["-c", LOAD], hub.environment(tmp_path_factory.mktemp("home"))).splitlines()[-1])


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return TinyCheckpoints(tmp_path_factory.mktemp("checkpoints"))("blip")


def contexts_of(rows: list[dict[str, Any]]) -> dict[str, VisualContext]:
    """The contexts by id in rows of the configuration `visual_context`, which have nothing of the posts."""
    contexts = {}
    for row in rows:
        assert row.keys() - {"captions"} == {"id", "ocr", "provenance"}
        kinds = {kind: row[kind] for kind in ("captions", "ocr") if row.get(kind)}
        contexts[row["id"]] = VisualContext(kinds, json.loads(row["provenance"]))
    return contexts


def test_the_hub_does_what_its_client_asks(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        used = json.loads(run_client(["-c", USE], hub.environment(tmp_path)))
    rules = ".gitattributes"
    assert used["files"] == [[rules, "a/b.txt", "c.safetensors"], [rules, "c.safetensors", "d.bin"]]
    assert used["folder"] == ["a/b.txt"] and used["titles"][::3] == ["d", "initial commit"]
    assert used["refused"] == [
        "RevisionNotFoundError",
        "RepositoryNotFoundError",
        "RemoteEntryNotFoundError",
        "HfHubHTTPError",
        "HfHubHTTPError",
    ]
    sent = [asked for asked in hub.requests if asked.startswith("PUT /lfs/")]
    assert len(sent) == 1  # the same content under another name is not sent again


def test_pushed_contexts_are_those_of_the_file(built: Path, loaded: dict[str, Any]) -> None:
    first = read_contexts([built / "first.jsonl"])
    assert {key: context.ocr for key, context in first.items()} == {
        "a": ["“width” 40"],
        "b": ["“width” 50"],
        "no-image": [],
        "c": [],
    }
    assert first["a"].provenance["ocr"]["model"] == first["c"].provenance["ocr"]["model"] == "width_reader:widths"
    assert list(contexts_of(loaded["first"]).items()) == list(first.items())


def test_a_second_push_replaces_the_rows(built: Path, loaded: dict[str, Any]) -> None:
    second = read_contexts([built / "second.jsonl"])
    assert second["a"].captions == ["a box"] and second["no-image"].ocr == ["“width” 70"]
    assert contexts_of(loaded["second"]) == contexts_of(loaded["default"]) == second


def test_a_private_repository_is_not_found_without_a_token(hub: LoopbackHub, loaded: dict[str, Any]) -> None:
    assert hub.repositories["datasets/me/contexts"].private
    assert "doesn't exist on the Hub or cannot be accessed" in loaded["anonymous"]


def test_other_configurations_stay(built: Path, loaded: dict[str, Any]) -> None:
    assert loaded["configurations"] == ["gold", "visual_context"]
    assert loaded["gold"] == [{"id": "a", "tags": ["B-LOC"]}, {"id": "b", "tags": ["O"]}]
    assert contexts_of(loaded["beside gold"]) == read_contexts([built / "second.jsonl"])


def test_the_card_keeps_what_people_wrote(hub: LoopbackHub, built: Path) -> None:
    first, second = (hub.read("datasets/me/contexts", "README.md", at).decode() for at in ("first", "main"))
    row = r"\n\| ocr \| width_reader:widths \| \w{16} \| `\{\}` \| (\d) \| (\d) \|\n\nCaptions"
    for card, names in ((first, ["id", "ocr", "provenance"]), (second, ["id", "captions", "ocr", "provenance"])):
        data = yaml.safe_load(card.split("---\n")[1])
        files = [{"split": "train", "path": "visual_context/train-*"}]
        assert data["configs"] == [{"config_name": "visual_context", "data_files": files}]
        assert [feature["name"] for feature in data["dataset_info"]["features"]] == names
        assert data["dataset_info"]["splits"][0]["num_examples"] == 4
    assert [found.groups() for found in map(re.compile(row).search, (first, second)) if found] == [
        ("2", "2"),
        ("3", "3"),
    ]
    assert "\n# Visual contexts\n" in first
    edited = first.split("---\n")[2].replace("# Visual contexts", "# My photos")
    assert second.split("---\n")[2] == edited.replace("| 2 | 2 |", "| 3 | 3 |")


def test_refusals_are_told(built: Path) -> None:
    forbidden, unreachable = json.loads((built / "refused.json").read_text())
    way_out = "(all is in the store: run this again)"
    assert forbidden.startswith(f"error: the contexts could not be pushed to you/contexts {way_out}: 403 Forbidden")
    assert unreachable.startswith(f"error: the contexts could not be pushed to me/contexts {way_out}: ")


def test_images_of_a_dataset_on_the_hub(hub: LoopbackHub, built: Path) -> None:
    contexts = read_contexts([built / "photos.jsonl"])
    assert {key: context.ocr for key, context in contexts.items()} == {
        "x": ["“width” 40"],
        "y": [],
        "z": ["“width” 60"],
    }
    assert any(
        f"GET /datasets/me/photos/resolve/{hub.repositories['datasets/me/photos'].at('main').oid}/data/" in asked
        for asked in hub.requests
    )


def test_checkpoints_on_the_hub(hub: LoopbackHub, blip: str, tmp_path: Path) -> None:
    images = [image.convert("RGB") for image in pictures(2)]
    paths = [str(tmp_path / f"{number}.png") for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    local = Captioner(blip, num_captions=2, max_new_tokens=5, device="cpu")(images)
    run_client(["-c", PUSH_CHECKPOINT, blip], hub.environment(tmp_path / "pusher"))
    pushed = hub.repositories["models/me/blip"].at("v1").oid
    said = run_client(["-c", CAPTION, *paths], hub.environment(tmp_path / "home"))
    online, moved, offline = map(json.loads, said.splitlines())
    assert online["identity"]["model"] == "me/blip" and online["identity"]["revision"] == pushed
    assert re.fullmatch("[0-9a-f]{40}", pushed)
    assert moved["identity"]["revision"] == hub.repositories["models/me/blip"].at("v1").oid != pushed
    assert offline["identity"] == moved["identity"] == online["identity"] | {"revision": moved["identity"]["revision"]}
    for captions in (online["captions"], moved["captions"], offline["captions"]):
        for one, other in zip(captions, local, strict=True):
            assert [text for text, _ in one] == [text for text, _ in other] != []
            assert [score for _, score in one] == pytest.approx([score for _, score in other])
