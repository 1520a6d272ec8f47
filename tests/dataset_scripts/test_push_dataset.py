"""A corpus on its way to the Hub and back, with the unmodified clients; what is refused; checksums that verify."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard
from loopback_hub import LoopbackHub, run_client
from PIL import Image, ImageDraw

from dataset_scripts.corpus.corpus_config import WITHOUT_LICENCE
from dataset_scripts.hub.checksums import Difference, checksum_dataset, compare_checksums
from dataset_scripts.hub.dataset_card import merged_card, size_category
from dataset_scripts.hub.hub_dataset import check_licence
from dataset_scripts.mner import MnerDataset
from modeling_ita.visual_context import VisualContext

POSTS = {
    "train": "IMGID:1\nPhoenix\tB-LOC\ntonight\tO\n\nIMGID:1\nSuns\tI-ORG\n\nIMGID:2\nIda\tB-PER\n\nIMGID:3\n!\tO\n",
    "valid": "IMGID:4\nBern\tB-LOC\n\nIMGID:5\nNilo\tB-PER\n",
    "test": "IMGID:6\nBasel\tB-LOC\n\u200b\tO\n",
}
CONTEXTS = [
    {"id": "1", "captions": ["a red box"], "source": {"captions": "scene"}},
    {"id": "6", "captions": ["a ball", "a dot"], "source": {"captions": "scene"}},
    {"id": "3", "captions": [], "source": {"captions": "scene"}},
]

# Everything that is pushed, in one process, for the imports take longer than all the rest.
PUSH = """
import hashlib, json, os, shutil, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
import datasets
from huggingface_hub import DatasetCard, HfApi
from dataset_scripts import push_dataset
from dataset_scripts.corpus.corpus_config import KNOWN_FILES
from dataset_scripts.hub import hub_dataset
from dataset_scripts.mner import MnerDataset

datasets.disable_progress_bars()
root = Path(sys.argv[1])
corpus, api, said = root / "corpus", HfApi(), {}

def builder(name="conll", **settings):
    folders = {"data_dir": str(corpus), "images_dir": str(corpus / "images")}
    return MnerDataset(config_name=name, cache_dir=str(root / "cache"), **folders, **settings)

def command(name, *arguments):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        code = push_dataset.main([*map(str, arguments)])
    said[name] = [code, out.getvalue() + errors.getvalue()]

def refused(name, function, *arguments, **settings):
    try:
        function(*arguments, **settings)
    except (ValueError, OSError) as error:
        said[name] = f"{type(error).__name__}: {error}"

other = datasets.Dataset.from_dict({"id": ["9"]})
other.push_to_hub("me/posts", "gold", set_default=True, private=True)
hub_dataset.SHARD_BYTES = 200
contexts = [str(corpus / "contexts.jsonl")]
builder(context_files=contexts).push_to_hub("me/posts", private=True, license="cc-by-4.0", language="en")
hub_dataset.SHARD_BYTES = 500_000_000
api.create_tag("me/posts", tag="first", repo_type="dataset")
card = DatasetCard.load("me/posts")
card.data["tags"] = ["mine"]
card.data["license"] = "cc0-1.0"
card.text = card.text.replace("# posts", "# Our posts") + "\\n## Thanks\\n\\nTo all.\\n"
card.push_to_hub("me/posts")
command("checksums", corpus, "me/sums", "--checksums_only")
command("same", corpus, "me/sums", "--verify")
command("checksums of text", corpus, "me/text-sums", "--checksums_only", "--images_dir", "none")
command("same text", corpus, "me/text-sums", "--verify")

text = (corpus / "train.txt").read_text()
(corpus / "train.txt").write_text(text.replace("tonight", "today") + "\\nIMGID:7\\nnew\\tO\\n")
(corpus / "valid.txt").write_text((corpus / "valid.txt").read_text().replace("IMGID:5", "IMGID:55"))
(corpus / "images" / "6.jpg").write_bytes((corpus / "images" / "1.png").read_bytes())
(corpus / "images" / "4.png").unlink()
command("changed", corpus, "me/sums", "--verify")
command("changed, text only", corpus, "me/sums", "--verify", "--images_dir", "none")

upload = HfApi.preupload_lfs_files
def killed(*arguments, **settings):
    upload(*arguments, **settings)
    raise KeyboardInterrupt
HfApi.preupload_lfs_files = killed
before = api.repo_info("me/posts", repo_type="dataset").sha
try:
    builder(context_files=contexts).push_to_hub("me/posts")
except KeyboardInterrupt:
    said["unchanged"] = before == api.repo_info("me/posts", repo_type="dataset").sha
HfApi.preupload_lfs_files = upload
builder(context_files=contexts).push_to_hub("me/posts")
command("branch", corpus, "me/posts", "--revision", "draft", "--language", "de")

corpus_file = corpus / "test.txt"
KNOWN_FILES[hashlib.sha256(corpus_file.read_bytes()).hexdigest()] = "twitter2017-umt test"
command("known file", corpus, "me/tweets")
refused("known name", builder("snap").push_to_hub, "me/tweets")
said["not made"] = not api.repo_exists("me/tweets", repo_type="dataset")
command("with rights", corpus, "me/rights", "--i_have_the_rights", "--private")
command("only checksums", "twitter2017", "me/rights-sums", "--data_dir", corpus, "--checksums_only")
KNOWN_FILES.popitem()

command("forbidden", corpus, "you/posts")
command("public", corpus, "me/sums", "--private")
command("no checksums", corpus, "me/nothing", "--verify")
command("two places", "mine", "me/posts", "--data_dir", corpus)
os.environ.pop("HF_TOKEN")
command("no token", corpus, "me/more")
datasets.config.HF_ENDPOINT = "http://127.0.0.1:9"  # nobody listens there
command("unreachable", corpus, "me/posts")
(root / "said.json").write_text(json.dumps(said))
"""

LOAD = """
import base64, json, re, sys
import datasets
from huggingface_hub import DatasetCard
datasets.disable_progress_bars()

def rows(posts):
    loaded = {}
    for split, part in posts.items():
        loaded[split] = part.cast_column("image", datasets.Image(decode=False)).to_list()
        for row in loaded[split]:
            if row["image"]:
                row["image"]["bytes"] = base64.b64encode(row["image"]["bytes"]).decode()
    return loaded

try:
    datasets.load_dataset("me/posts", token=False)
except datasets.exceptions.DatasetNotFoundError as error:
    said = {"anonymous": str(error)}
first = datasets.load_dataset("me/posts", revision="first")
said["features"] = {name: repr(feature) for name, feature in first["train"].features.items()}
said["first"], said["second"] = rows(first), rows(datasets.load_dataset("me/posts"))
said["contexts"] = datasets.load_dataset("me/posts", "visual_context", split="train", revision="first").to_list()
said["gold"] = datasets.load_dataset("me/posts", "gold", split="train").to_list()
said["checksums"] = datasets.load_dataset("me/sums", split="train").to_list()
card = DatasetCard.load("me/posts")
for checked in (card, DatasetCard.load("me/sums")):
    checked.validate()
    names = {}
    exec("\\n".join(re.findall("```python\\n(.*?)```", checked.text, re.DOTALL)), names)
    said[checked.data.pretty_name] = {name: repr(names.get(name)) for name in ("tagged", "context", "matches")}
said["image"] = first["train"][0]["image"].size
print(json.dumps(said))
"""


def picture(colour: str, format: str) -> bytes:
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).rectangle((5, 5, 40, 30), fill=colour)
    buffer = BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def write_corpus(folder: Path) -> dict[str, bytes]:
    """A corpus with all sorts of noise; returns its images by name."""
    blank = BytesIO()
    Image.new("RGB", (60, 40), "white").save(blank, "PNG")
    images = {
        "1.png": picture("red", "PNG"),
        "2.jpg": picture("red", "JPEG")[:200],
        "3.png": blank.getvalue(),
        "4.png": picture("blue", "PNG"),
        "6.jpg": picture("navy", "JPEG"),
    }
    (folder / "images").mkdir(parents=True)
    for name, content in images.items():
        (folder / "images" / name).write_bytes(content)
    for split, text in POSTS.items():
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    (folder / "contexts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CONTEXTS), encoding="utf-8")
    return images


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return write_corpus(tmp_path_factory.getbasetemp() / "pushed" / "corpus")


@pytest.fixture(scope="module")
def said(hub: LoopbackHub, images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the pushes said; the Hub has them then."""
    root = tmp_path_factory.getbasetemp() / "pushed"
    run_client(["-c", PUSH, str(root)], hub.environment(root / "home"))
    return json.loads((root / "said.json").read_text())


@pytest.fixture(scope="module")
def loaded(hub: LoopbackHub, said: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `load_dataset` gives in another process, whose cache is empty and which has nothing of ours."""
    return json.loads(run_client(["-c", LOAD], hub.environment(tmp_path_factory.mktemp("home"))).splitlines()[-1])


def metadata(card: bytes) -> dict[str, Any]:
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_all_is_one_commit(hub: LoopbackHub, said: dict[str, Any]) -> None:
    repository = hub.repositories["datasets/me/posts"]
    assert next(commit["title"] for commit in repository.history("first")) == "Upload default, visual_context"
    before = repository.commits[repository.at("first").parent or ""].files
    shards = {"train": 2, "validation": 1, "test": 1}
    assert repository.at("first").files.keys() - before.keys() == {
        "visual_context/train-00000-of-00001.parquet",
        *(f"data/{split}-{n:05d}-of-{count:05d}.parquet" for split, count in shards.items() for n in range(count)),
    }


def test_private_and_typed(hub: LoopbackHub, loaded: dict[str, Any]) -> None:
    assert hub.repositories["datasets/me/posts"].private
    assert "doesn't exist on the Hub or cannot be accessed" in loaded["anonymous"]
    assert loaded["features"] == {
        "id": "Value('string')",
        "words": "List(Value('string'))",
        "tags": "List(ClassLabel(names=['O', 'B-LOC', 'I-LOC', 'B-ORG', 'I-ORG', 'B-PER', 'I-PER']))",
        "image": "Image(mode=None, decode=True)",
    }


def test_rows_and_images_are_those_of_the_corpus(images: dict[str, bytes], loaded: dict[str, Any]) -> None:
    rows = {row["id"]: row for split in ("train", "validation", "test") for row in loaded["first"][split]}
    assert {key: row["words"] for key, row in rows.items()} == {
        "1": ["Phoenix", "tonight"], "1#2": ["Suns"], "2": ["Ida"], "3": ["!"], "4": ["Bern"], "5": ["Nilo"],
        "6": ["Basel", "\u200b"],
    }  # fmt: skip
    assert [rows[key]["tags"] for key in ("1", "1#2", "2")] == [[1, 0], [3], [5]]
    embedded = {key: row["image"] and (row["image"]["path"], row["image"]["bytes"]) for key, row in rows.items()}
    names = {"1": "1.png", "1#2": "1.png", "4": "4.png", "6": "6.jpg"}
    whole = {key: (name, b64encode(images[name]).decode()) for key, name in names.items()}
    assert embedded == whole | {"2": None, "3": None, "5": None}  # unreadable, blank, missing
    assert loaded["image"] == [60, 40]


def test_contexts_are_joined_by_the_id_of_the_post(loaded: dict[str, Any]) -> None:
    given = {row["id"]: VisualContext.from_dict(row) for row in CONTEXTS}
    pushed = {row["id"]: VisualContext.from_dict(row) for row in loaded["contexts"]}
    assert pushed == {"1": given["1"], "1#2": given["1"], "3": given["3"], "6": given["6"]}


def test_nothing_of_this_machine_is_pushed(hub: LoopbackHub, said: dict[str, Any]) -> None:
    files = hub.repositories["datasets/me/posts"].at("main").files
    assert [path for path, file in files.items() if b"/corpus" in file.content] == []


def test_a_second_push_replaces_the_rows(hub: LoopbackHub, loaded: dict[str, Any]) -> None:
    second = loaded["second"]
    assert [row["id"] for row in second["train"]] == ["1", "1#2", "2", "3", "7"]
    assert second["train"][0]["words"] == ["Phoenix", "today"]
    assert second["validation"][0]["image"] is None  # its file had gone
    files = [path for path in hub.repositories["datasets/me/posts"].at("main").files if path.startswith("data/train")]
    assert files == ["data/train-00000-of-00001.parquet"]


def test_an_interrupted_push_changes_nothing_and_is_gone_on_with(hub: LoopbackHub, said: dict[str, Any]) -> None:
    assert said["unchanged"]
    sent = Counter(asked for asked in hub.requests if asked.startswith("PUT /lfs/"))
    test_file = hub.repositories["datasets/me/posts"].at("main").files["data/test-00000-of-00001.parquet"]
    assert sent[f"PUT /lfs/{test_file.sha256}"] == 1 and max(sent.values()) == 1


def test_what_others_wrote_stays(hub: LoopbackHub, loaded: dict[str, Any]) -> None:
    assert loaded["gold"] == [{"id": "9"}]
    card = hub.read("datasets/me/posts", "README.md").decode()
    data = metadata(card.encode())
    assert data["tags"] == ["mine"] and data["license"] == "cc0-1.0" and data["language"] == "en"
    assert [config["config_name"] for config in data["configs"]] == ["default", "gold", "visual_context"]
    assert "# Our posts" in card and card.endswith("\n## Thanks\n\nTo all.\n")
    assert "| posts | 5 | 2 | 1 |" in card and "| posts | 4 | 2 | 1 |" not in card


def test_the_card_says_what_the_corpus_holds(hub: LoopbackHub, said: dict[str, Any]) -> None:
    card = hub.read("datasets/me/posts", "README.md", "first").decode()
    data = metadata(card.encode())
    assert data["license"] == "cc-by-4.0" and data["language"] == "en" and data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["token-classification"] and "multimodal" in data["tags"]
    files = {config["config_name"]: config["data_files"] for config in data["configs"]}
    splits = ("train", "validation", "test")
    assert files["default"] == [{"split": split, "path": f"data/{split}-*"} for split in splits]
    assert files["visual_context"] == [{"split": "train", "path": "visual_context/train-*"}]
    infos = {info["config_name"]: info for info in data["dataset_info"]}
    assert [split["num_examples"] for split in infos["default"]["splits"]] == [4, 2, 1]
    for row in (
        "| posts | 4 | 2 | 1 |",
        "| words | 5 | 2 | 2 |",
        "| entities LOC | 1 | 1 | 1 |",
        "| entities PER | 1 | 1 | 0 |",
        "| images | 2 | 1 | 1 |",
        "| images missing | 0 | 1 | 0 |",
        "| images unreadable | 1 | 0 | 0 |",
        "| images blank | 1 | 0 | 0 |",
        "| images that are byte for byte those of another post | 2 | 0 | 0 |",
        "| visual contexts | 2 | 0 | 1 |",
        "| tags repaired (an `I-` that continued no entity became `B-`) | 1 | 0 | 0 |",
        "| words that show nothing (kept) | 0 | 0 | 1 |",
        "| posts with the id of another (kept as `x#2`) | 1 | 0 | 0 |",
        "| captions | scene | unknown | `{}` | 3 | 4 |",
    ):
        assert f"\n{row}\n" in card, row


def test_the_code_in_the_card_runs(loaded: dict[str, Any]) -> None:
    assert loaded["posts"]["tagged"] == "[('Phoenix', 'B-LOC'), ('today', 'O')]"
    assert "'captions': ['a red box']" in loaded["posts"]["context"]
    assert loaded["sums"]["matches"] == "False"


def test_a_branch(hub: LoopbackHub, said: dict[str, Any]) -> None:
    assert said["branch"][0] == 0
    draft, main = (hub.read("datasets/me/posts", "README.md", at) for at in ("draft", "main"))
    assert (metadata(draft)["language"], metadata(main)["language"]) == ("de", "en")


def test_a_corpus_without_a_licence_is_refused(hub: LoopbackHub, said: dict[str, Any]) -> None:
    code, text = said["known file"]
    assert code == 2 and "test.txt is twitter2017-umt test, which has no licence" in text
    assert "--checksums_only" in text and "--i_have_the_rights" in text
    assert said["known name"].startswith("ValueError: ") and "is snap, which has no licence" in said["known name"]
    assert said["not made"]
    assert said["with rights"][0] == 0 and hub.repositories["datasets/me/rights"].private
    card = hub.read("datasets/me/rights", "README.md")
    assert metadata(card)["license"] == "unknown" and b"says that they have the right to pass it on" in card


@pytest.mark.parametrize("name", WITHOUT_LICENCE)
def test_known_names_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(POSTS["test"], encoding="utf-8")
    with pytest.raises(ValueError, match=rf"test\.txt is {name}, which has no licence"):
        check_licence(MnerDataset(config_name=name, data_dir=str(tmp_path), cache_dir=str(tmp_path)).config)


def test_checksums_hold_no_text(hub: LoopbackHub, images: dict[str, bytes], loaded: dict[str, Any]) -> None:
    rows = {(row["split"], row["id"]): row for row in loaded["checksums"]}
    assert rows["train", "1"] == {
        "id": "1",
        "split": "train",
        "words_sha256": hashlib.sha256(b"Phoenix\ntonight").hexdigest(),
        "image_sha256": hashlib.sha256(images["1.png"]).hexdigest(),
        "num_words": 2,
    }
    assert rows["train", "2"]["image_sha256"] is None and len(rows) == 7
    for key in ("datasets/me/sums", "datasets/me/rights-sums"):
        files = hub.repositories[key].at("main").files
        assert files.keys() == {".gitattributes", "README.md", "checksums/train-00000-of-00001.parquet"}
        assert not any(word in file.content for file in files.values() for word in (b"Phoenix", b"B-LOC", b"red box"))


def test_verify_names_what_differs(said: dict[str, Any]) -> None:
    assert said["same"] == [0, "the corpus is that of me/sums\n"]
    assert said["same text"] == [0, "the corpus is that of me/text-sums\n"]
    code, text = said["changed"]
    assert code == 1 and [line.strip() for line in text.splitlines() if line.startswith("    ")] == [
        "train, 1: the words differ",
        "validation, 4: the image is missing, unreadable or blank here",
        "validation, 5: the post is missing here",
        "test, 6: the image differs",
        "train, 7: the post is here only",
        "validation, 55: the post is here only",
    ]
    code, text = said["changed, text only"]
    assert code == 1 and "the words differ" in text and "image" not in text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("forbidden", "you/posts could not be pushed (take a name under your own account, and a token that may write"),
        ("no token", "me/more could not be pushed (log in with `hf auth login`, or set HF_TOKEN to a token that may"),
        ("unreachable", "me/posts could not be pushed (nothing there was changed: run this again): "),
        ("public", "me/sums is public: make it private in its settings, or choose another name"),
        ("no checksums", "the checksums of me/nothing cannot be loaded (expected a data set with the configuration"),
        ("two places", "'mine' is not a known corpus (sample_posts, twitter2015, twitter2017, snap, conll)"),
    ],
)
def test_refusals_are_told_in_one_line(said: dict[str, Any], name: str, told: str) -> None:
    code, text = said[name]
    assert code == 2 and text.startswith(f"error: {told}") and text.count("\n") == 1


def test_checksums_tell_copies_apart(tmp_path: Path) -> None:
    features = datasets.Features(
        {"id": datasets.Value("string"), "words": datasets.List(datasets.Value("string")), "image": datasets.Image()}
    )

    def checksums(**posts: tuple[list[str], str | None]) -> datasets.Dataset:
        rows = [{"id": key, "words": words, "image": image} for key, (words, image) in posts.items()]
        return checksum_dataset({"test": datasets.Dataset.from_list(rows, features)})

    image = tmp_path / "a.png"
    image.write_bytes(picture("red", "PNG"))
    there = checksums(a=(["one", "two"], str(image)), b=(["x"], None))
    here = checksums(a=(["one two"], str(image)), b=(["x"], str(image)))
    assert compare_checksums(there, there) == []
    assert compare_checksums(here, there, images=False) == [Difference("test", "a", "the words differ (1, not 2)")]
    assert compare_checksums(here, there)[1:] == [Difference("test", "b", "there is an image here only")]
    image.unlink()
    with pytest.raises(OSError, match=r"a\.png, which was there when the corpus was prepared: there is no such file"):
        checksums(a=(["x"], str(image)))


def test_a_part_of_a_card_stands_beside_others() -> None:
    card = DatasetCard("---\nlicense: unknown\ntags: [a]\n---\n# T\n<!-- posts: new -->\n1\n<!-- end of posts -->\n")
    assert str(merged_card("", card, "posts")) == str(card)
    merged = merged_card("---\nlicense: mit\n---\n# Visual contexts\n", card, "posts")
    assert merged.data.to_dict() == {"license": "mit", "tags": ["a"]}
    assert merged.text == "# T\n<!-- posts: new -->\n1\n<!-- end of posts -->\n\n# Visual contexts\n"
    newer = DatasetCard(str(card).replace("\n1\n", "\n2\n"))
    again = merged_card(str(merged), newer, "posts")
    assert again.text == merged.text.replace("\n1\n", "\n2\n")
    with pytest.raises(ValueError, match=r"the metadata of the README\.md on the Hub cannot be read, mend it there"):
        merged_card("---\nlicense: [\n---\n", card, "posts")


def test_size_categories() -> None:
    assert [size_category(rows) for rows in (999, 1000, 99_999, 10**6)] == ["n<1K", "1K<n<10K", "10K<n<100K", "n>1M"]
