from __future__ import annotations

import json
import pickle
import random
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from dataset_scripts.contexts.image_sources import corpus_images as images_of_corpus
from dataset_scripts.contexts.image_sources import dataset_images
from dataset_scripts.corpus import corpus_config, corpus_images
from dataset_scripts.corpus.conll import entity_types, image_names, is_invisible, names_several, read_posts, read_tags
from dataset_scripts.corpus.corpus_config import MnerConfig
from dataset_scripts.corpus.examples import read_examples
from dataset_scripts.hub.checksums import checksum_dataset, compare_checksums
from dataset_scripts.hub.hub_dataset import _write_configuration
from dataset_scripts.mner import MnerDataset
from modeling_ita.tag_scheme import TagScheme
from modeling_ita.visual_context import VisualContext

BIO = TagScheme.from_types(["PER", "LOC", "ORG", "MISC"])
TRAIN = "IMGID:a\nPhoenix\tB-LOC\ntonight\tO\n\nIMGID:b\nAda\tB-PER\nLovelace\tI-PER\n\n"
TEST = "IMGID:c\nhello\tO\n\n"


@pytest.fixture(autouse=True)
def quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.txt").write_text(TRAIN, encoding="utf-8")
    (folder / "test.txt").write_text(TEST, encoding="utf-8")
    return folder


@pytest.fixture
def make(tmp_path: Path, corpus: Path) -> Callable[..., MnerDataset]:
    """A builder over the corpus folder, not yet prepared."""

    def make_builder(config_name: str = "twitter2017", **arguments: Any) -> MnerDataset:
        arguments = {"data_dir": str(corpus), "cache_dir": str(tmp_path / "cache"), **arguments}
        return MnerDataset(config_name=config_name, **arguments)

    return make_builder


def built(builder: MnerDataset) -> datasets.DatasetDict:
    builder.download_and_prepare()
    return builder.as_dataset()


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    noise = random.Random(seed).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(path)
    return path


def plain(rows: Any) -> list[dict[str, Any]]:
    """Rows with images as their size and pixels, which compare by value."""
    return [{**row, "image": row["image"] and (row["image"].size, row["image"].tobytes())} for row in rows]


def huge_png(path: Path, side: int = 20_000) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pack = zlib.compressobj(1)
    row = bytes(1 + side // 8)
    pixels = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


# --- text files ------------------------------------------------------------------------------------------------------


def test_any_words_survive_a_file() -> None:
    generator = random.Random(1)
    letters = ["a", "É", "\u00a0", "\u0085", "\u2028", "\u200d", "\ufe0f", "\x0b", "\x1c", "\x00", " ", "😀", "IMGID:"]
    posts = [
        ["".join(generator.choices(letters, k=generator.randint(1, 3))) for _ in range(generator.randint(1, 6))]
        for _ in range(200)
    ]
    lines = [[f"IMGID:{i}", *(f"{word}\tO" for word in words), ""] for i, words in enumerate(posts)]
    data = "\n".join(line for post in lines for line in post).encode()
    read, counts = read_posts(data, "x.txt")
    assert [(post.id, post.words) for post in read] == [(str(i), words) for i, words in enumerate(posts)]
    assert not any(counts.values())


@pytest.mark.parametrize(
    ("word", "invisible"),
    [
        *(
            (word, True)
            for word in ["\ufe0f", "\u200d", "\u200b", "\u00ad", "\u00a0", "\u0085", "\x92", "\u200d\ufe0f"]
        ),
        *((word, False) for word in ["a", "😀", "☂\ufe0f", ".", "\u0301", "\u00a0x"]),
    ],
)
def test_invisible_words(word: str, invisible: bool) -> None:
    assert is_invisible(word) is invisible


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["IMGID:1", "Chicago"], r'x.txt, line 2: "Chicago" has no tag \(expected token<TAB>tag\)'),
        (["IMGID:1", "a\tO", "Chicago\t"], r'line 3: "Chicago" has no tag \(expected token<TAB>tag\)'),
        (["IMGID:1", "EU NNP B-ORG"], r'line 2: "EU NNP B-ORG" has no tag'),
        (["IMGID:1", "a\tO", "\u00a0"], r"line 3: .* has no tag"),
        (["IMGID:1", "EU\tNNP\tB-ORG"], r'line 2: "EU\\tNNP\\tB-ORG" has 3 columns \(expected token<TAB>tag\)'),
        (["IMGID:1", "\tO"], r'line 2: the tag "O" has no token'),
        (["IMGID: ", "a\tO"], r"line 1: .* names no post \(expected IMGID:<id>\)"),
        (["a\tO"], r'line 1: "a\\tO" stands below no id \(expected IMGID:<id>'),
        (["IMGID:1", "a\tO", "", "b\tO"], r'line 4: "b\\tO" stands below no id'),
        (["IMGID:1", "", ""], "x.txt holds no post"),
        ([], "x.txt holds no post"),
        (["IMGID:1", "x" * 1000], r'line 2: "x{59}…" has no tag'),
    ],
)
def test_malformed_lines_are_named(lines: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_posts("\n".join(lines).encode(), "x.txt")


def test_bytes_that_are_not_utf8_are_named() -> None:
    with pytest.raises(ValueError, match=r"x.txt, line 3: the byte 0xe9 is not UTF-8"):
        read_posts("IMGID:1\na\tO\ncafé\tO\n".encode("latin-1"), "x.txt")


def test_what_is_passed_over_is_counted() -> None:
    data = b"\xef\xbb\xbfIMGID:1\r\na\tO\r\n\r\nIMGID:2\r\n\n\n\nIMGID:1\nb\tO\nIMGID:1\nc\tO"
    posts, counts = read_posts(data, "x.txt")
    assert [(post.id, post.image_id, post.words) for post in posts] == [
        ("1", "1", ["a"]),
        ("1#2", "1", ["b"]),
        ("1#3", "1", ["c"]),
    ]
    expected = {
        "posts_empty": 1,
        "posts_without_id": 0,
        "ids_repeated": 2,
        "carriage_returns": 4,
        "byte_order_marks": 1,
    }
    assert counts == expected


def test_posts_without_ids_are_numbered() -> None:
    data = b"a\tO\n\n\nIMGID:x\nb\tO\n\nc\tO\n"
    posts, counts = read_posts(data, "x.txt", ids_required=False, numbered_as="test")
    assert [(post.id, post.words) for post in posts] == [("test-1", ["a"]), ("x", ["b"]), ("test-3", ["c"])]
    assert counts["posts_without_id"] == 2  # one of them by a blank line inside the post x
    _, counts = read_posts(b"a\tO\n\nb\tO\n", "x.txt", ids_required=False)
    assert counts["posts_without_id"] == 0


def test_ids_are_unique_whatever_they_are() -> None:
    posts, _ = read_posts("\n".join(f"IMGID:{i}\na\tO" for i in ("x#2", "x", "x", "x")).encode(), "x.txt")
    assert [(post.id, post.image_id) for post in posts] == [("x#2", "x#2"), ("x", "x"), ("x#3", "x"), ("x#4", "x")]


def test_types_that_cannot_be_names() -> None:
    posts, _ = read_posts(b"IMGID:x\na\tB-PER\nb\tB-<b>\n", "x.txt")
    with pytest.raises(ValueError, match=r"x.txt, line 3: the tag \"B-<b>\": '<b>' cannot be the name"):
        entity_types(posts, "x.txt")


@pytest.mark.parametrize(
    ("given", "expected", "repaired"),
    [
        ("O I-PER I-PER O", "O B-PER I-PER O", 1),
        ("B-PER I-LOC I-LOC", "B-PER B-LOC I-LOC", 1),
        ("B-PER B-PER I-PER", "B-PER B-PER I-PER", 0),
        ("S-PER B-LOC I-LOC E-LOC", "B-PER B-LOC I-LOC I-LOC", 0),
        ("E-PER O I-LOC E-LOC", "B-PER O B-LOC I-LOC", 2),
        ("B-OTHER I-MISC I-OTHER", "B-MISC I-MISC I-MISC", 0),
    ],
)
def test_tags_are_repaired_and_counted(given: str, expected: str, repaired: int) -> None:
    tags = given.split()
    data = "\n".join(["IMGID:1", *(f"w\t{tag}" for tag in tags)]).encode()
    (tagged,) = read_tags(read_posts(data, "x.txt")[0], "x.txt", BIO, {"OTHER": "MISC"})
    assert [BIO.labels[tag] for tag in tagged.tag_ids] == expected.split()
    assert tagged.repaired == repaired
    assert tagged.entities == BIO.spans(tagged.tag_ids)


@pytest.mark.parametrize(
    ("tag", "nearest"), [("B-PRE", "B-PER"), ("b-LOC", "B-LOC"), ("B-OTHR", "B-OTHER"), ("B_ORG", "B-ORG"), ("0", "O")]
)
def test_unknown_tags_are_named_with_the_nearest(tag: str, nearest: str) -> None:
    posts, _ = read_posts(f"IMGID:1\na\tO\n\nIMGID:2\nb\tO\nc\t{tag}\n".encode(), "x.txt")
    types = "PER, LOC, ORG, MISC, OTHER"
    with pytest.raises(ValueError, match=f'x.txt, line 6: unknown tag "{tag}" .*{types}; the nearest is {nearest}'):
        read_tags(posts, "x.txt", BIO, {"OTHER": "MISC"})


@pytest.mark.parametrize("tag", ["PER", "B-", "X-PER", "OO", "-PER"])
def test_collected_types_need_tags(tag: str) -> None:
    posts, _ = read_posts(f"IMGID:1\na\tO\nb\t{tag}\n".encode(), "x.txt")
    with pytest.raises(ValueError, match=f'x.txt, line 3: unknown tag "{tag}"'):
        entity_types(posts, "x.txt")


# --- the data set ----------------------------------------------------------------------------------------------------


def test_rows_and_features(make: Callable[..., MnerDataset], corpus: Path) -> None:
    pixels = Image.open(picture(corpus / "a.png")).tobytes()
    context = jsonl(corpus / "c.jsonl", {"id": "a", "captions": ["a bird"], "source": {"captions": "BLIP"}})
    dataset = built(make(images_dir=str(corpus), context_files=[context]))
    assert dataset.num_rows == {"train": 2, "test": 1}
    assert dataset["train"].features["tags"].feature.names == list(BIO.labels)
    first, second = plain(dataset["train"])
    assert first == {
        "id": "a",
        "words": ["Phoenix", "tonight"],
        "tags": [BIO.label2id["B-LOC"], 0],
        "image": ((40, 30), pixels),
        "context": {"captions": ["a bird"], "provenance": {"captions": {"model": "BLIP"}}},
    }
    assert second == {"id": "b", "words": ["Ada", "Lovelace"], "tags": [1, 2], "image": None, "context": None}
    assert VisualContext.from_dict(first["context"]).captions == ["a bird"]


def test_the_report_counts_the_text(make: Callable[..., MnerDataset], corpus: Path) -> None:
    text = "IMGID:a\nX\tI-PER\n\ufe0f\tO\n\u00a0\tB-OTHER\n\nIMGID:e\n\nIMGID:a\r\nY\tB-LOC\n"
    (corpus / "dev.txt").write_bytes(text.encode())
    builder = make()
    assert built(builder)["validation"]["words"] == [["X", "\ufe0f", "\u00a0"], ["Y"]]
    assert builder.report["splits"]["validation"] == {
        "posts": 2,
        "words": 4,
        "entities": {"PER": 1, "LOC": 1, "ORG": 0, "MISC": 1},
        "posts_empty": 1,
        "posts_without_id": 0,
        "ids_repeated": 1,
        "carriage_returns": 1,
        "byte_order_marks": 0,
        "tags_repaired": 1,
        "words_invisible": 2,
        "images": {"present": 0, "missing": 2, "unreadable": 0, "blank": 0, "shared": 0},
        "contexts": {"present": 0, "empty": 0, "missing": 2},
    }


@pytest.mark.parametrize(
    ("config_name", "other_as_misc", "last_type"),
    [
        ("twitter2015", None, "MISC"),
        ("twitter2015", False, "OTHER"),
        ("conll", None, "OTHER"),
        ("conll", True, "MISC"),
    ],
)
def test_other_and_misc(
    make: Callable[..., MnerDataset], corpus: Path, config_name: str, other_as_misc: bool | None, last_type: str
) -> None:
    (corpus / "train.txt").write_text("IMGID:1\nX\tB-OTHER\nY\tB-PER\n")
    builder = make(config_name, types=None, other_as_misc=other_as_misc)
    train = built(builder)["train"]
    tags = train.features["tags"].feature
    assert tags.int2str(train[0]["tags"]) == [f"B-{last_type}", "B-PER"]
    assert builder.report["splits"]["train"]["entities"][last_type] == 1


def test_conll_collects_its_types_from_the_training_file(make: Callable[..., MnerDataset], corpus: Path) -> None:
    (corpus / "train.txt").write_text("a\tB-river\n\nb\tI-city\nc\tO\n")
    labels = ["O", "B-city", "I-city", "B-river", "I-river"]
    dataset = built(make("conll"))
    assert dataset["train"].features["tags"].feature.names == labels
    assert dataset["train"]["id"] == ["train-1", "train-2"]
    (corpus / "train.txt").write_text("b\tI-city\nc\tO\n\na\tB-river\n")
    assert make("conll").info.features["tags"].feature.names == labels
    assert make("conll", types=["river", "sea", "city"]).info.features["tags"].feature.names[1::2] == [
        "B-river",
        "B-sea",
        "B-city",
    ]
    (corpus / "test.txt").write_text("a\tB-cty\n")
    with pytest.raises(ValueError, match=r"test.txt, line 1: unknown tag .*city, river; the nearest is B-city"):
        make("conll").download_and_prepare()
    (corpus / "train.txt").unlink()
    with pytest.raises(ValueError, match=r"has no train.txt to collect types from: give types=\[…\]"):
        make("conll")


def test_bad_text_is_refused_before_anything_is_built(make: Callable[..., MnerDataset], corpus: Path) -> None:
    (corpus / "test.txt").write_text("IMGID:1\nChicago\n")
    expected = r"corpus.test.txt, line 2: \"Chicago\" has no tag"
    with pytest.raises(ValueError, match=expected):
        make().download_and_prepare()
    with pytest.raises(ValueError, match=expected):
        make().as_streaming_dataset()
    with pytest.raises(ValueError, match=expected):
        _ = make().report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_dir": None}, "'twitter2017' needs data_dir=FOLDER, a folder with any of train.txt, valid.txt"),
        ({"data_dir": "/no/where"}, "data_dir: there is no folder /no/where .*train.txt"),
        ({"data_dir": "hf://datasets/x"}, "hf://datasets/x is a URL: download it"),
        (
            {"images_dir": "/no/where"},
            r"images_dir: there is no folder /no/where \(give the folder .* or None for text",
        ),
        ({"images_dir": "https://x.org/y"}, "https://x.org/y is a URL"),
        ({"context_files": ["/no/where.jsonl"]}, "there is no context file /no/where.jsonl"),
        ({"context_files": ["/no/where.txt"]}, "/no/where.txt is neither .jsonl nor .parquet"),
        (
            {"config_name": "sample_posts"},
            "'sample_posts' brings its own folder; for .* choose config_name=",
        ),
        ({"config_name": "twitter2016"}, "'twitter2016' not found. Available: .*twitter2017"),
    ],
)
def test_wrong_places_are_named(make: Callable[..., MnerDataset], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_splits_by_their_usual_names(make: Callable[..., MnerDataset], corpus: Path, tmp_path: Path) -> None:
    (corpus / "train.txt").rename(corpus / "val.txt")
    assert list(built(make())) == ["validation", "test"]
    (corpus / "dev.txt").write_text(TEST)
    with pytest.raises(ValueError, match=r"val.txt and .*dev.txt both name the split 'validation'"):
        make()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError, match=r"empty holds no split \(looked for train.txt, valid.txt, .*dev.txt, test.txt"
    ):
        make(data_dir=str(empty))


def test_files_are_named_by_their_sha256(
    make: Callable[..., MnerDataset], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = make().report["data"][str(corpus / "train.txt")]
    assert train["known_as"] == "unknown"
    monkeypatch.setitem(corpus_config.KNOWN_FILES, train["sha256"], "a known file")
    data = make().report["data"]
    assert data[str(corpus / "train.txt")]["known_as"] == "a known file"
    assert data[str(corpus / "test.txt")]["known_as"] == "unknown"


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(corpus: Path) -> Path:
    """A folder with an image of every sort, and posts for them in train.txt."""
    folder = corpus / "images"
    folder.mkdir()
    picture(folder / "good.png", 1)
    picture(folder / "upper.JPG", 2)
    picture(folder / "copy1.png", 3)
    shutil.copy(folder / "copy1.png", folder / "copy2.png")
    Image.new("RGB", (50, 50), "white").save(folder / "blank.png")
    shutil.copy(folder / "blank.png", folder / "blank2.png")
    whole = picture(folder / "truncated.jpg", 4, (200, 200)).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    huge_png(folder / "huge.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    (folder / ".jpg").write_bytes(b"")
    ids = [path.stem for path in folder.iterdir() if path.name != ".jpg"]
    ids += ["upper.JPG", "../images/good", "none", "good"]
    (corpus / "train.txt").write_text("".join(f"IMGID:{i}\nw\tO\n\n" for i in sorted(ids)))
    return folder


def test_only_images_that_open_are_in_the_rows(make: Callable[..., MnerDataset], images: Path) -> None:
    builder = make(images_dir=str(images))
    train = built(builder)["train"]
    opened = {row["id"]: row["image"].size for row in train if row["image"] is not None}
    assert opened == dict.fromkeys(["good", "good#2", "upper", "upper.JPG", "copy1", "copy2"], (40, 30))
    counts = builder.report["splits"]["train"]["images"]
    # good and good#2, upper and upper.JPG, copy1 and copy2 share their files' bytes
    assert counts == {"present": 6, "missing": 4, "unreadable": 4, "blank": 2, "shared": 6}
    assert sum(counts.values()) - counts["shared"] == train.num_rows


def test_jpg_goes_before_other_suffixes(make: Callable[..., MnerDataset], corpus: Path) -> None:
    picture(corpus / "a.gif", 1, (11, 11))
    picture(corpus / "a.jpg", 2, (22, 22))
    assert built(make(images_dir=str(corpus)))["train"][0]["image"].size == (22, 22)


def test_a_folder_without_images_of_posts_is_refused(make: Callable[..., MnerDataset], corpus: Path) -> None:
    picture(corpus / "z.png")
    with pytest.raises(
        ValueError, match=r"holds no image of any post \(expected files such as a.jpg; images_dir=None"
    ):
        make(images_dir=str(corpus)).download_and_prepare()


# --- contexts --------------------------------------------------------------------------------------------------------


def test_contexts_of_several_files_are_merged_by_id(make: Callable[..., MnerDataset], corpus: Path) -> None:
    scenes = jsonl(
        corpus / "scenes.jsonl",
        {"id": "a", "captions": ["A\u2028b", "C"], "ocr": [], "source": {"captions": "scene", "ocr": None}},
        {"id": "b", "captions": None},
        {"id": "z", "captions": ["nobody's"]},
        {"id": "y", "captions": ["nobody's"]},
    )
    engine = {"model": "engine", "settings": {"min": 0.5}}
    ocr = jsonl(corpus / "ocr.jsonl", {"id": "a", "ocr": ["HELLO"], "provenance": {"ocr": engine}})
    facts = str(corpus / "facts.parquet")
    pq.write_table(pa.Table.from_pylist([{"id": "c", "facts": ["a fact"]}, {"id": "a", "facts": None}]), facts)
    builder = make(context_files=[scenes, ocr, facts])
    dataset = built(builder)
    a, b = dataset["train"]["context"]
    assert VisualContext.from_dict(a) == VisualContext(
        {"captions": ["A b", "C"], "ocr": ["HELLO"]}, {"captions": {"model": "scene"}, "ocr": engine}
    )
    assert b == {"captions": [], "facts": [], "ocr": [], "provenance": {}}
    assert VisualContext.from_dict(dataset["test"][0]["context"]) == VisualContext({"facts": ["a fact"]})
    report = builder.report
    assert report["contexts_without_post"] == 2
    assert report["splits"]["train"]["contexts"] == {"present": 1, "empty": 1, "missing": 0}
    assert report["splits"]["test"]["contexts"] == {"present": 1, "empty": 0, "missing": 0}
    assert {scenes, ocr, facts} < report["data"].keys()


def test_the_origin_of_a_kind_is_that_of_its_strings(make: Callable[..., MnerDataset], corpus: Path) -> None:
    text = jsonl(corpus / "1.jsonl", {"id": "a", "ocr": ["X"], "source": {"ocr": "found it"}})
    nothing = jsonl(corpus / "2.jsonl", {"id": "a", "ocr": [], "source": {"ocr": "found nothing"}})
    for files in ([text, nothing], [nothing, text]):
        context = built(make(context_files=files))["train"][0]["context"]
        assert context == {"ocr": ["X"], "provenance": {"ocr": {"model": "found it"}}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "captions": "one"}', r"line 2: the kind 'captions' must be a list of strings, got one string"),
        ('{"id": "a", "captions": [1]}', r"line 2: the kind 'captions' must be a list of strings, one of them is 1"),
        ('{"id": 7, "captions": ["x"]}', r"line 2: the row has no id that is a string \(expected {\"id\": \"…\""),
        ('{"captions": ["x"]}', "line 2: the row has no id"),
        ('["a"]', "line 2: the row has no id"),
        ("{'id': 'a'}", r"line 2: Expecting property name .*\(expected {\"id\""),
        ('{"id": "b", "captions": ["twice"]}', "line 2: 'b' already has the kind 'captions'"),
        ('{"id": "a", "source": "me"}', "line 2: 'source' must be a dictionary by kind"),
    ],
)
def test_bad_context_rows_are_named(make: Callable[..., MnerDataset], corpus: Path, line: str, message: str) -> None:
    path = corpus / "c.jsonl"
    path.write_text('{"id": "b", "captions": ["x"]}\n' + line)
    with pytest.raises(ValueError, match=f"c.jsonl, {message}"):
        make(context_files=[str(path)])


def test_useless_context_files_are_refused(make: Callable[..., MnerDataset], corpus: Path) -> None:
    (corpus / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.jsonl holds no context"):
        make(context_files=[str(corpus / "empty.jsonl")])
    (corpus / "bad.parquet").write_text("{}")
    with pytest.raises(ValueError, match=r"bad.parquet is not a Parquet file"):
        make(context_files=[str(corpus / "bad.parquet")])
    with pytest.raises(ValueError, match=r"no id in the context files is a post's id .*'zz', the posts such as 'a'"):
        built(make(context_files=[jsonl(corpus / "other.jsonl", {"id": "zz", "ocr": ["x"]})]))
    once = jsonl(corpus / "once.jsonl", {"id": "a", "ocr": ["x"]})
    with pytest.raises(ValueError, match=r"twice.jsonl, line 1: 'a' already has the kind 'ocr'"):
        make(context_files=[once, jsonl(corpus / "twice.jsonl", {"id": "a", "ocr": ["y"]})])


# --- ways to read it -------------------------------------------------------------------------------------------------


@pytest.fixture
def full(make: Callable[..., MnerDataset], corpus: Path, images: Path) -> Callable[[], MnerDataset]:
    """Builders over a corpus with images and contexts of every sort."""
    contexts = jsonl(
        corpus / "c.jsonl",
        {"id": "good", "captions": ["x"], "source": {"captions": "me"}},
        {"id": "huge", "ocr": ["y"]},
        {"id": "blank"},
    )
    return lambda: make(images_dir=str(images), context_files=[contexts])


def test_streaming_gives_the_same_rows_and_report(full: Callable[[], MnerDataset]) -> None:
    streamed, before = full(), full()
    expected_report = before.report  # nothing is built or read yet
    rows = {split: plain(rows) for split, rows in streamed.as_streaming_dataset().items()}
    assert streamed.report == expected_report
    builder = full()
    dataset = built(builder)
    assert rows == {split: plain(rows) for split, rows in dataset.items()}
    assert builder.report == expected_report
    assert any(row["image"] for row in rows["train"]) and any(row["context"] for row in rows["train"])


def test_streams_are_sharded_and_pickled(full: Callable[[], MnerDataset]) -> None:
    stream = full().as_streaming_dataset(split="train")
    rows = plain(stream)
    copy = pickle.loads(pickle.dumps(stream))
    assert plain(copy) == rows
    shards = [plain(copy.shard(2, i)) for i in range(2)]
    assert all(shards) and sorted(row["id"] for shard in shards for row in shard) == [row["id"] for row in rows]
    shuffled = plain(stream.shuffle(seed=3, buffer_size=2))
    assert shuffled != rows and sorted(shuffled, key=lambda row: row["id"]) == rows


def test_the_cache_is_used_again(full: Callable[[], MnerDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = full()
    rows, report = plain(built(fresh)["train"]), fresh.report
    assert json.loads(json.dumps(report)) == report

    def fail(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("dataset_scripts.mner.read_posts", fail)
    monkeypatch.setattr(corpus_images, "open_image", fail)
    cached = full()
    assert plain(built(cached)["train"]) == rows
    assert cached.report == report
    assert plain(full().as_dataset()["train"]) == rows


def test_the_cache_follows_every_file_and_setting(make: Callable[..., MnerDataset], corpus: Path) -> None:
    contexts = jsonl(corpus / "c.jsonl", {"id": "a", "ocr": ["x"]})
    picture(corpus / "a.png", 1)

    def builder(**arguments: Any) -> MnerDataset:
        return make(**{"images_dir": str(corpus), "context_files": [contexts], **arguments})

    first = plain(built(builder())["train"])
    seen = {builder().config_id}
    assert builder().config_id in seen

    (corpus / "train.txt").write_text(TRAIN.replace("tonight", "tomorrow"))
    assert built(builder())["train"][0]["words"] == ["Phoenix", "tomorrow"]
    seen.add(builder().config_id)
    jsonl(corpus / "c.jsonl", {"id": "a", "ocr": ["y"]})
    assert built(builder())["train"][0]["context"]["ocr"] == ["y"]
    seen.add(builder().config_id)
    picture(corpus / "a.png", 2)
    assert plain(built(builder())["train"])[0]["image"] != first[0]["image"]
    seen.add(builder().config_id)
    picture(corpus / "b.jpg", 3)
    assert built(builder())["train"][1]["image"] is not None
    seen.add(builder().config_id)
    for arguments in ({"types": ["LOC", "PER"]}, {"ids_required": False}, {"other_as_misc": False}):
        seen.add(builder(**arguments).config_id)
    assert len(seen) == 8


def test_a_corpus_that_changes_meanwhile_is_refused(make: Callable[..., MnerDataset], corpus: Path) -> None:
    builder = make()
    (corpus / "test.txt").write_text("IMGID:c\nbye\tO\n")
    with pytest.raises(ValueError, match="has changed since this builder was made"):
        builder.download_and_prepare()


def test_parquet_and_back(full: Callable[[], MnerDataset], images: Path, tmp_path: Path) -> None:
    builder, expected = full(), plain(built(full())["train"])
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    report = builder.report
    shutil.rmtree(images)
    (file,) = (tmp_path / "parquet").glob("*train*.parquet")
    read = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert plain(read) == expected
    assert read.features["tags"].feature.names == list(BIO.labels)
    assert report["splits"]["train"]["images"]["present"] == 6


def test_without_contexts_parquet_works_too(make: Callable[..., MnerDataset], tmp_path: Path) -> None:
    train = built(make())["train"]
    train.to_parquet(str(tmp_path / "train.parquet"))
    read = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read[:] == train[:] and train[0]["context"] is None


def test_num_proc_and_paths_change_nothing(full: Callable[[], MnerDataset], tmp_path: Path) -> None:
    expected = full().report
    builder = full()
    builder.download_and_prepare(num_proc=3)
    assert builder.report == expected
    config = builder.config
    paths = {"data_dir": Path(str(config.data_dir)), "images_dir": Path(str(config.images_dir))}
    same = MnerDataset(
        config_name="twitter2017", cache_dir=tmp_path / "other", context_files=Path(config.context_files[0]), **paths
    )
    assert plain(built(same)["train"]) == plain(builder.as_dataset()["train"])
    assert same.report == expected


def test_nothing_asks_the_network(full: Callable[[], MnerDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    builder = full()
    assert built(builder)["train"].num_rows == len(plain(builder.as_streaming_dataset(split="train")))


def test_the_sample_posts_are_the_default(tmp_path: Path) -> None:
    builder = MnerDataset(cache_dir=str(tmp_path))
    assert builder.config.name == "sample_posts"
    dataset = built(builder)
    assert list(dataset) == ["train", "validation", "test"]
    assert dataset["train"].features["tags"].feature.names == list(BIO.labels)
    report = builder.report
    assert report["contexts_without_post"] == 0
    texts = {Path(path).name: file["known_as"] for path, file in report["data"].items() if path.endswith(".txt")}
    assert texts == {f"{split}.txt": f"sample_posts {split}" for split in ("train", "valid", "test")}
    for split, counts in report["splits"].items():
        assert counts["images"]["unreadable"] == counts["images"]["blank"] == counts["tags_repaired"] == 0, split
        assert counts["images"]["present"] > 0 and counts["contexts"]["present"] > 0, split
    assert MnerDataset(cache_dir=str(tmp_path), context_files=[]).config_id == builder.config_id


def test_a_configuration_lists_what_it_reads(corpus: Path) -> None:
    picture(corpus / "b.png")
    picture(corpus / "a.jpg")
    config = MnerConfig(name="conll", data_dir=str(corpus), images_dir=str(corpus))
    assert config.text_files() == {"train": corpus / "train.txt", "test": corpus / "test.txt"}
    assert config.image_files() == [str(corpus / "a.jpg"), str(corpus / "b.png")]
    assert config.context_paths() == []


# --- several images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "known", "names"),
    [
        ("17_1 17_2", {"17_1", "17_2"}, ["17_1", "17_2"]),
        ("17_2,17_1", {"17_1", "17_2"}, ["17_2", "17_1"]),
        ("a, b   c,", {"b"}, ["a", "b", "c"]),  # the others are missing
        ("a b a", {"a", "b"}, ["a", "b"]),
        ("a a", {"a"}, ["a"]),
        ("my photo, 2020", {"my photo, 2020", "my"}, ["my photo, 2020"]),  # an image's own name
        ("my photo", {"other"}, ["my photo"]),
        ("my photo", set(), ["my photo"]),
        ("a", {"a"}, ["a"]),
        ("a", set(), ["a"]),
    ],
)
def test_an_id_is_taken_apart_only_where_images_say_so(given: str, known: set[str], names: list[str]) -> None:
    assert image_names(given, known) == names
    for lines in (f"IMGID:{given}\r\nw\tO\n", f"\ufeffIMGID: {given} \nw\tO\n"):
        assert names_several(lines.encode() + b"\xff\n", known) == (len(names) > 1)


@pytest.fixture
def several(make: Callable[..., MnerDataset], corpus: Path) -> Callable[[], MnerDataset]:
    """Builders over posts that name two images, one, and one whose name has a blank."""
    images = corpus / "images"
    images.mkdir()
    for seed, name in enumerate(("p1", "p2", "p3", "my p1")):
        picture(images / f"{name}.png", seed, (40 + seed, 30))
    shutil.copy(images / "p3.png", images / "p4.png")
    (images / "bad.png").write_bytes(b"no picture")
    ids = ["p2 p1", "p3", "my p1", "none,p4", "bad none", "none"]
    (corpus / "train.txt").write_text("".join(f"IMGID:{i}\nParis\tB-LOC\n\n" for i in ids))
    contexts = jsonl(
        corpus / "c.jsonl",
        {"id": "p1", "captions": ["one"], "object_tags": ["dog"]},
        {"id": "p2", "captions": ["two"], "object_tags": ["car", "man"]},
        {"id": "p3", "ocr": ["three"]},
        {"id": "p4", "ocr": ["four"]},
        {"id": "of nothing", "ocr": ["x"]},
    )
    return lambda: make(images_dir=str(images), context_files=[contexts])


def test_a_post_may_name_several_images(several: Callable[[], MnerDataset]) -> None:
    builder = several()
    dataset = built(builder)
    train = dataset["train"]
    assert train.features["image"] == dataset["test"].features["image"] == datasets.List(datasets.Image())
    assert train["id"] == ["p2 p1", "p3", "my p1", "none,p4", "bad none", "none"]
    assert [[image.width for image in row] for row in train["image"]] == [[41, 40], [42], [43], [42], [], []]
    assert dataset["test"][0]["image"] == [] and dataset["test"][0]["context"] is None
    contexts = [row and VisualContext.from_dict(row) for row in train["context"]]
    assert contexts[0].kinds == {"captions": ["two", "one"], "object_tags": ["car", "man", "dog"]}
    assert contexts[0].by_image("object_tags") == [["car", "man"], ["dog"]]
    assert [context and context.ocr for context in contexts[1:]] == [["three"], None, ["four"], None, None]
    report = builder.report
    assert report["splits"]["train"]["images"] == {
        "present": 4, "missing": 1, "unreadable": 1, "blank": 0, "shared": 2, "several": 3, "pictures": 5
    }  # fmt: skip
    assert report["splits"]["train"]["contexts"] == {"present": 3, "empty": 0, "missing": 3}
    assert report["contexts_without_post"] == 1
    assert several().report == report
    rows = [row["image"] for row in several().as_streaming_dataset()["train"]]
    assert [[image.size for image in row] for row in rows] == [[image.size for image in row] for row in train["image"]]


def test_examples_of_posts_with_several_images(several: Callable[[], MnerDataset]) -> None:
    train = built(several())["train"]
    examples = read_examples(train, BIO, BIO, with_images=True)
    assert [
        [Path(image).name for image in example.image] if isinstance(example.image, list) else example.image
        for example in examples
        if not isinstance(example.image, str)
    ] == [["p2.png", "p1.png"], None, None]
    assert [Path(e.image).name for e in examples if isinstance(e.image, str)] == ["p3.png", "my p1.png", "p4.png"]
    assert examples[0].context.captions == ["two", "one"]


def test_checksums_and_files_of_posts_with_several_images(several: Callable[[], MnerDataset], tmp_path: Path) -> None:
    dataset = built(several())
    checksums = checksum_dataset(dataset)
    hashes = [row["image_sha256"] and row["image_sha256"].split() for row in checksums]
    assert [row and len(row) for row in hashes] == [2, 1, 1, 1, None, None, None]
    assert not compare_checksums(checksums, checksum_dataset(built(several())))
    files = _write_configuration("default", dataset.remove_columns("context"), tmp_path / "out", DatasetCard(""))
    rows = datasets.load_dataset("parquet", data_files=str(files[0]), split="train", cache_dir=str(tmp_path / "again"))
    for name in ("p1", "p2", "p3", "p4", "my p1"):  # the files travel along
        (tmp_path / "corpus" / "images" / f"{name}.png").unlink()
    assert [[image.width for image in row] for row in rows["image"]] == [[41, 40], [42], [43], [42], [], []]


def test_image_sources_list_every_image(several: Callable[[], MnerDataset], corpus: Path, tmp_path: Path) -> None:
    found = images_of_corpus(str(corpus), str(corpus / "images"))
    pairs = {name: path and Path(str(path)).name for name, path in found.pairs}
    files = {name: f"{name}.png" for name in ("p2", "p1", "p3", "my p1", "p4", "bad")}
    assert pairs == {**files, "none": None, "c": None} and found.count == 8
    folder = corpus / "images"
    photos = [[str(folder / "p1.png"), str(folder / "p2.png")], [], [str(folder / "p3.png")]]
    columns = {"name": ["a", "b", "c"], "photos": photos}
    features = datasets.Features({"name": datasets.Value("string"), "photos": datasets.List(datasets.Image())})
    (tmp_path / "photos").mkdir()
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "photos" / "train.parquet")
    source = dataset_images(str(tmp_path / "photos"), id_column="name")
    found_there = [(name, image is not None) for name, image in source.pairs]
    assert found_there == [("a#1", True), ("a#2", True), ("b", False), ("c", True)]
    assert source.count is None
