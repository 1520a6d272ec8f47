from __future__ import annotations

import io
import json
import random
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from dataset_scripts.audit import audit, format_text, main
from dataset_scripts.audits import audit_corpus
from dataset_scripts.audits.audit_text import normalised
from dataset_scripts.corpus.conll import CorpusFault, read_posts, read_tags
from dataset_scripts.corpus.corpus_config import MnerConfig
from hub_card.evaluation import read_entities
from modeling_ita.tag_scheme import TagScheme

TYPES = ("PER", "LOC", "ORG", "MISC")
BIO = TagScheme.from_types(TYPES)
SPLITS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def post(post_id: str, *lines: str) -> str:
    return "\n".join([f"IMGID:{post_id}", *lines, "", ""])


def text(post_id: str, words: str, tag: str = "O") -> str:
    return post(post_id, *(f"{word}\t{tag}" for word in words.split()))


def picture(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3)).save(path)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two posts in every split, with an image each and nothing wrong."""
    folder = tmp_path / "corpus"
    (folder / "images").mkdir(parents=True)
    for seed, split in enumerate(SPLITS):
        posts = [post(f"{split}{i}", f"Name{split}{i}\tB-PER", "Jr\tI-PER", "says\tO", f"hi{i}\tO") for i in range(2)]
        (folder / f"{split}.txt").write_text("".join(posts), encoding="utf-8")
        for i in range(2):
            picture(folder / "images" / f"{split}{i}.png", 2 * seed + i)
    return folder


def add(corpus: Path, split: str, *posts: str, images: bool = True) -> None:
    path = corpus / f"{split}.txt"
    path.write_text(path.read_text() + "".join(posts), encoding="utf-8", newline="")
    if images:
        for data in posts:
            image = corpus / "images" / f"{data.partition(chr(10))[0].removeprefix('IMGID:').strip()}.png"
            if not image.exists():
                picture(image, zlib.crc32(image.name.encode()))


def config(corpus: Path, **settings: Any) -> MnerConfig:
    settings = {"types": TYPES, "images_dir": str(corpus / "images"), **settings}
    return MnerConfig(name="conll", data_dir=str(corpus), other_as_misc=False, ids_required=False, **settings)


def findings(corpus: Path, **settings: Any) -> dict[str, Any]:
    """The findings by check; of several of one check, the one named last."""
    return {finding["check"]: finding for finding in audit(config(corpus, **settings))["findings"]}


def places(finding: dict[str, Any]) -> list[tuple[str, int]]:
    return [(example["file"], example.get("line", 0)) for example in finding["examples"]]


# --- reading on ------------------------------------------------------------------------------------------------------


def test_reading_goes_on_after_every_bad_line() -> None:
    lines = ["x\tO", "", "IMGID:", "y\tO", "", "IMGID:1", "a\tB-PER", "b", "c\tX\tI-PER", "\tO", "d\t", "caf\xe9\tO"]
    faults: list[CorpusFault] = []
    posts, counts = read_posts("\n".join(lines).encode("latin-1"), "x.txt", faults=faults)
    assert [fault.line for fault in faults] == [1, 3, 8, 9, 10, 11, 12]
    assert all(str(fault).startswith(f"x.txt, line {fault.line}: ") for fault in faults)
    assert [(post.id, post.words) for post in posts] == [
        ("post-1", ["x"]),
        ("post-2", ["y"]),
        ("1", ["a", "b", "c", "\ufffd", "d", "caf\ufffd"]),
    ]
    assert posts[2].tags == ["B-PER", "O", "I-PER", "O", "O", "O"]
    assert posts[2].first_line == 7 and not any(counts.values())
    with pytest.raises(CorpusFault, match=str(faults[0]).replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")):
        read_posts("\n".join(lines).encode("latin-1"), "x.txt")


def test_an_empty_file_is_a_fault_without_a_line() -> None:
    faults: list[CorpusFault] = []
    assert read_posts(b"", "x.txt", faults=faults)[0] == []
    assert [(fault.line, str(fault)[:18]) for fault in faults] == [(None, "x.txt holds no pos")]


@pytest.mark.parametrize("tags_of", [TYPES[:2], ("PER",)])
@pytest.mark.parametrize("bioes", [False, True])
def test_strict_entities_are_those_of_seqeval(tags_of: Sequence[str], bioes: bool) -> None:
    generator = random.Random(2)
    tags = ["O", *(f"{prefix}-{kind}" for kind in tags_of for prefix in ("BIES" if bioes else "BI"))]
    rows = [generator.choices(tags, k=generator.randint(1, 7)) for _ in range(300)]
    data = "".join(post(str(i), *(f"w\t{tag}" for tag in row)) for i, row in enumerate(rows)).encode()
    tagged = read_tags(read_posts(data, "x.txt")[0], "x.txt", BIO)
    for scoring, ours in (
        ("lenient", [post.entities for post in tagged]),
        ("strict", [post.strict_entities for post in tagged]),
    ):
        expected = read_entities(rows, scoring, bioes=bioes)  # type: ignore[arg-type]
        if not (bioes and scoring == "lenient"):  # seqeval's lenient reading of E- and S- is its own
            assert [len(row) for row in ours] == [len(row) for row in expected], scoring


# --- a clean corpus --------------------------------------------------------------------------------------------------


def test_a_clean_corpus_has_no_findings(corpus: Path) -> None:
    assert audit(config(corpus))["findings"] == []
    assert audit(config(corpus, types=None))["findings"] == []


def test_the_report_has_its_documented_shape(corpus: Path) -> None:
    add(corpus, "train", post("x", "a\tI-PER", "\u200d\tO"), images=False)
    report = audit(config(corpus))
    assert json.loads(json.dumps(report)) == report
    assert list(report) == ["corpus", "dataset", "types", "types_given", "files", "splits", "counts", "findings"]
    assert report["types"] == list(TYPES) and report["types_given"] is True
    assert list(report["files"]) == ["train.txt", "valid.txt", "test.txt"]
    assert report["files"]["valid.txt"].keys() == {"split", "path", "sha256", "known_as"}
    assert report["files"]["valid.txt"]["split"] == "validation"
    assert report["splits"]["train"] == {
        "posts": 3,
        "words": 10,
        "entities": {"PER": 3, "LOC": 0, "ORG": 0, "MISC": 0},
        "posts_empty": 0,
        "posts_without_id": 0,
        "ids_repeated": 0,
        "carriage_returns": 0,
        "byte_order_marks": 0,
        "tags_repaired": 1,
        "words_invisible": 1,
        "entities_lenient": 3,
        "entities_strict": 2,
        "images": {"present": 2, "missing": 1, "unreadable": 0, "blank": 0},
        "contexts": None,
    }
    keys = {"check", "severity", "count", "message", "advice", "splits", "examples"}
    assert all(finding.keys() == keys for finding in report["findings"])
    assert report["counts"] == {"error": 0, "warning": 2, "note": 1}
    assert [finding["severity"] for finding in report["findings"]] == ["warning", "warning", "note"]


# --- every fault, alone ----------------------------------------------------------------------------------------------


def broken_image(corpus: Path) -> None:
    whole = picture(corpus / "images" / "train0.png", 0, (200, 200))
    whole.write_bytes(whole.read_bytes()[:5000])


def empty_split(corpus: Path) -> None:
    (corpus / "test.txt").write_text("\n")
    for i in range(2):
        (corpus / "images" / f"test{i}.png").unlink()


def wrong_suffix(corpus: Path) -> None:
    (corpus / "images" / "train0.png").rename(corpus / "images" / "train0.jpg")


def prefixed(path: Path, prefix: bytes) -> None:
    path.write_bytes(prefix + path.read_bytes())


FAULTS: dict[str, tuple[Callable[[Path], Any], str, int, str]] = {
    # check: what makes it, its severity, its count, a file of its first example
    "malformed_lines": (lambda c: add(c, "valid", post("x", "Rome", "a b c", "a\tb\tO")), "error", 3, "valid.txt"),
    "split_empty": (empty_split, "error", 1, "test.txt"),
    "unknown_tags": (lambda c: add(c, "test", text("x", "so it goes", "B-PRE")), "error", 3, "test.txt"),
    "broken_tags": (lambda c: add(c, "test", text("x", "so it goes", "I-LOC")), "warning", 1, "test.txt"),
    "invisible_words": (lambda c: add(c, "test", post("x", "\u200d\tO", "y\tO")), "note", 1, "test.txt"),
    "empty_posts": (lambda c: add(c, "train", post("x"), images=False), "warning", 1, "train.txt"),
    "carriage_returns": (lambda c: add(c, "train", post("x", "y\tO\r", "z\tO\r")), "warning", 2, "train.txt"),
    "byte_order_marks": (lambda c: prefixed(c / "train.txt", b"\xef\xbb\xbf"), "warning", 1, "train.txt"),
    "duplicates_exact": (lambda c: add(c, "train", text("x", "a b"), text("y", "a b")), "warning", 1, "train.txt"),
    "duplicates_near": (lambda c: add(c, "train", text("x", "a b"), text("y", "A b")), "warning", 1, "train.txt"),
    "images_missing": (lambda c: (c / "images" / "train0.png").unlink(), "warning", 1, "train.txt"),
    "images_unreadable": (broken_image, "warning", 1, "train.txt"),
    "images_blank": (
        lambda c: Image.new("RGB", (30, 30), "white").save(c / "images" / "test1.png"), "warning", 1, "test.txt"
    ),
    "images_duplicate": (
        lambda c: shutil.copy(c / "images" / "test1.png", c / "images" / "test0.png"), "warning", 2, "test0.png"
    ),
    "images_unused": (lambda c: picture(c / "images" / "z.png", 9), "note", 1, "z.png"),
    "images_suffix": (wrong_suffix, "note", 1, "train0.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_is_found_and_nothing_else(corpus: Path, check: str) -> None:
    make, severity, count, file = FAULTS[check]
    make(corpus)
    found = findings(corpus)
    assert list(found) == [check]
    assert (found[check]["severity"], found[check]["count"]) == (severity, count)
    assert found[check]["message"] and found[check]["advice"]
    assert found[check]["examples"][0]["file"] == file


def test_every_malformed_line_is_listed(corpus: Path) -> None:
    add(corpus, "train", *(post(f"x{i}", "Chicago", "ok\tO", "a\tb\tO") for i in range(40)))
    add(corpus, "test", "stray\tO\n\n", images=False)
    finding = findings(corpus)["malformed_lines"]
    first = (corpus / "train.txt").read_text().split("\n").index("Chicago") + 1
    expected = [("train.txt", first + 5 * i + j) for i in range(40) for j in (0, 2)]
    assert places(finding) == [*expected, ("test.txt", 13)]
    assert finding["examples"][0]["problem"] == '"Chicago" has no tag (expected token<TAB>tag)'
    assert "stands below no id" in finding["examples"][-1]["problem"]


def test_posts_without_any_ids_are_a_corpus_too(corpus: Path) -> None:
    for split in SPLITS:
        (corpus / f"{split}.txt").write_text(f"{split}\tB-PER\n\nhello\tO\n{split}\tO\n")
    assert findings(corpus, images_dir=None) == {}


def test_unknown_tags_are_told_by_tag(corpus: Path) -> None:
    add(corpus, "train", text("x", "so it goes", "B-PRE"), text("y", "on and on and on", "b-PER"))
    add(corpus, "test", text("z", "again", "B-PRE"))
    finding = findings(corpus)["unknown_tags"]
    assert [(e["tag"], e["count"], e["nearest"]) for e in finding["examples"]] == [
        ("b-PER", 5, "B-PER"),
        ("B-PRE", 4, "B-PER"),
    ]
    assert finding["count"] == 9
    assert finding["examples"][1]["places"][:2] == ["train.txt:14", "train.txt:15"]
    assert finding["examples"][1]["places"][3] == "test.txt:14"


def test_types_that_are_not_given_are_those_of_the_training_file(corpus: Path) -> None:
    add(corpus, "test", text("z", "again", "B-XYZ"))
    assert findings(corpus, types=None)["unknown_tags"]["count"] == 1
    (corpus / "train.txt").unlink()
    found = findings(corpus, types=None)
    assert "unknown_tags" not in found and found["split_missing"]["severity"] == "error"


def test_a_misspelt_type_in_the_training_file_is_noticed(corpus: Path) -> None:
    add(corpus, "train", *(text(f"x{i}", f"a{i} b{i}", "B-LOC") for i in range(80)))
    assert findings(corpus, types=None) == {}
    add(corpus, "train", text("y", "misspelt", "B-LCO"))
    found = findings(corpus, types=None)
    assert list(found) == ["types_alike"] and "LCO (1 entity) looks like LOC" in found["types_alike"]["message"]
    assert list(findings(corpus)) == ["unknown_tags"]


def test_broken_tags_tell_what_scorers_count(corpus: Path) -> None:
    add(corpus, "train", post("x", "a\tI-PER", "b\tI-PER", "c\tO", "d\tB-LOC", "e\tI-ORG"))
    finding = findings(corpus)["broken_tags"]
    assert places(finding) == [("train.txt", 14), ("train.txt", 18)]
    assert [(e["tag"], e["read_as"]) for e in finding["examples"]] == [("I-PER", "B-PER"), ("I-ORG", "B-ORG")]
    assert "train 2" in finding["message"] and "count 9 entities, strict ones 7" in finding["message"]


def test_ids_of_several_posts(corpus: Path) -> None:
    add(corpus, "train", text("x", "one text"), text("x", "another text"))
    add(corpus, "test", text("train0", "a third"))
    found = findings(corpus)
    assert found.keys() == {"ids_repeated", "ids_ambiguous", "overlap_images"}
    assert [e["id"] for e in found["ids_repeated"]["examples"]] == ["x#2"]
    assert [(e["id"], e["also"]) for e in found["ids_ambiguous"]["examples"]] == [
        ("train0", ["test.txt:14"]),
        ("x", ["train.txt:18"]),
    ]


# --- overlaps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Hello  World", "hello world"),
        ("look https://t.co/AbC here", "look here"),
        ("look http : //t.co/AbC", "look"),
        ("look t.co/x www.x.org pic.twitter.com/x", "look"),
        ("look https:…", "look"),
        ("RT @user: Hello", "hello"),
        ("RT @ user : RT @other: Hello", "hello"),
        ("RT user : Hello", "hello"),
        ("rt @user hello", "hello"),
        ("RT good luck : you", "rt good luck : you"),
        ("smart @user : x", "smart @user : x"),
        ("art.co/x", "art.co/x"),
        ("https://t.co/x", ""),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
    ],
)
def test_normalisation(words: str, expected: str) -> None:
    assert normalised(words.split()) == expected
    assert normalised([words]) == expected


@pytest.mark.parametrize(
    ("first", "second", "tag", "severity"),
    [
        ("train", "test", "B-PER", "error"),
        ("valid", "test", "B-PER", "error"),
        ("train", "valid", "B-PER", "warning"),
        ("train", "test", "O", "warning"),
    ],
)
def test_exact_overlap(corpus: Path, first: str, second: str, tag: str, severity: str) -> None:
    add(corpus, first, text("x", "the same words", tag))
    add(corpus, second, text("y", "the same words"), text("z", "the same words", tag))
    report = audit(config(corpus))
    overlap, *others = [finding for finding in report["findings"] if finding["check"] == "overlap_exact"]
    assert not others and (overlap["severity"], overlap["count"]) == (severity, 2)
    assert overlap["splits"] == [{"valid": "validation"}.get(split, split) for split in (first, second)]
    assert overlap["examples"][0] == {
        "file": f"{second}.txt",
        "line": 14,
        "id": "y",
        "text": '"the same words"',
        "also": [f"{first}.txt:14"],
    }
    assert {f["check"] for f in report["findings"]} == {"overlap_exact", "duplicates_exact"}
    assert "2 with another image" in overlap["message"]


def test_near_overlap_leaves_out_exact_ones_and_posts_of_nothing(corpus: Path) -> None:
    add(corpus, "train", text("a", "RT @x : Some WORDS https://t.co/1", "B-PER"), text("b", "http://t.co/1"))
    add(corpus, "test", text("c", "some words"), text("d", "http://t.co/2"))
    found = findings(corpus)
    assert list(found) == ["overlap_near"] and found["overlap_near"]["severity"] == "warning"
    assert places(found["overlap_near"]) == [("test.txt", 14)]
    add(corpus, "test", text("e", "RT @x : Some WORDS https://t.co/1", "B-PER"))
    found = findings(corpus)
    assert places(found["overlap_exact"]) == [("test.txt", 21)]
    assert places(found["overlap_near"]) == [("test.txt", 14)]


def test_image_overlap_is_by_content_and_knows_no_blanks(corpus: Path) -> None:
    images = corpus / "images"
    shutil.copy(images / "train0.png", images / "test1.png")
    found = findings(corpus)
    assert found.keys() == {"overlap_images", "images_duplicate"}
    assert found["overlap_images"]["examples"][0]["also"] == ["train.txt:2"]
    for name in ("train0", "test1"):
        Image.new("RGB", (30, 30), "black").save(images / f"{name}.png")
    assert list(findings(corpus)) == ["images_blank"]


# --- images ----------------------------------------------------------------------------------------------------------


def test_a_corpus_without_its_images(corpus: Path) -> None:
    for image in (corpus / "images").iterdir():
        image.rename(image.with_name(f"other-{image.name}"))
    found = findings(corpus)
    assert found.keys() == {"images_all_missing", "images_unused"}
    assert (
        found["images_all_missing"]["severity"] == "error" and "train0.jpg" in found["images_all_missing"]["message"]
    )
    shutil.rmtree(corpus / "images")
    found = findings(corpus)
    assert list(found) == ["images_folder"] and found["images_folder"]["severity"] == "error"
    assert findings(corpus, images_dir=None) == {}


def test_why_an_image_cannot_be_read(corpus: Path) -> None:
    (corpus / "images" / "train0.png").write_text("<html>404</html>")
    (example,) = findings(corpus)["images_unreadable"]["examples"]
    assert example["image"] == "train0.png" and example["problem"].startswith("it is none of JPEG, PNG")


def test_groups_of_copies_come_largest_first(corpus: Path) -> None:
    images = corpus / "images"
    shutil.copy(images / "train0.png", images / "train1.png")
    for name in ("valid1", "test0", "test1"):
        shutil.copy(images / "valid0.png", images / f"{name}.png")
    groups = findings(corpus)["images_duplicate"]["examples"]
    assert [group["count"] for group in groups] == [4, 2]
    assert "in 2 groups" in findings(corpus)["images_duplicate"]["message"]


def test_one_plain_picture_under_many_ids_is_a_placeholder(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Image.new("RGB", (200, 160), "lightgrey")
    plain.paste("black", (60, 70, 140, 90))
    names = [f"{split}{number}" for split in SPLITS for number in range(2)]
    for number, name in enumerate(names[:-1]):
        plain.resize((150 + 20 * number, 120 + 16 * number)).save(corpus / "images" / f"{name}.png")
    monkeypatch.setattr("dataset_scripts.audits.audit_corpus.COPIES", len(names))
    assert findings(corpus) == {}
    plain.save(corpus / "images" / f"{names[-1]}.png")
    rows = corpus / "c.jsonl"
    rows.write_text("".join(json.dumps({"id": f"{s}{i}", "ocr": ["x"]}) + "\n" for s in SPLITS for i in range(2)))
    found = findings(corpus, context_files=[str(rows)])
    assert found.keys() == {"images_placeholder", "contexts_of_nothing"}
    assert found["images_placeholder"]["count"] == found["contexts_of_nothing"]["count"] == len(names)


# --- contexts --------------------------------------------------------------------------------------------------------


def contexts(corpus: Path, rows: Sequence[dict[str, Any] | str]) -> dict[str, Any]:
    path = corpus / "contexts.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return findings(corpus, context_files=[str(path)])


def test_contexts_and_posts_find_each_other(corpus: Path) -> None:
    ids = [f"{split}{i}" for split in SPLITS for i in range(2)]
    complete = [{"id": post_id, "captions": [f"the picture of {post_id}"]} for post_id in ids]
    assert contexts(corpus, complete) == {}
    found = contexts(corpus, [*complete[1:], {"id": "nobody", "ocr": ["x"]}])
    assert found.keys() == {"contexts_missing", "contexts_without_post"}
    assert found["contexts_missing"]["examples"][0]["id"] == "train0"
    assert found["contexts_without_post"]["examples"] == [{"id": "nobody"}]
    (corpus / "images" / "train0.png").unlink()
    assert contexts(corpus, complete[1:]).keys() == {"images_missing"}
    found = contexts(corpus, [{"id": "nobody", "ocr": ["x"]}])
    assert found["contexts_all_missing"]["severity"] == "error"


def test_every_malformed_row_of_context_is_listed(corpus: Path) -> None:
    rows = [{"id": f"{split}{i}", "captions": [f"picture {split} {i}"]} for split in SPLITS for i in range(2)]
    found = contexts(corpus, [*rows, "{", {"captions": ["x"]}, {"id": "a", "ocr": "x"}, rows[0]])
    assert list(found) == ["contexts_malformed"] and found["contexts_malformed"]["severity"] == "error"
    assert [example["line"] for example in found["contexts_malformed"]["examples"]] == [7, 8, 9, 10]


def test_a_sentence_that_stands_for_many_images(corpus: Path) -> None:
    ids = [f"{split}{i}" for split in SPLITS for i in range(2)]
    sentence = {"captions": ["no photo available", "red sign"], "object_tags": ["a man in red"]}
    rows = [{"id": post_id, **sentence} for post_id in ids]
    (example,) = contexts(corpus, rows)["contexts_repeated"]["examples"]
    assert example == {"kind": "captions", "count": 6, "text": '"no photo available"'}
    assert contexts(corpus, [*rows[:4], *({"id": post_id} for post_id in ids[4:])]) == {}
    for name in ids[1:]:  # one image, one caption
        shutil.copy(corpus / "images" / "train0.png", corpus / "images" / f"{name}.png")
    assert "contexts_repeated" not in contexts(corpus, rows)


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_of_published_sets(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = {name: file["sha256"] for name, file in audit(config(corpus))["files"].items()}

    def known(**names: str) -> dict[str, Any]:
        monkeypatch.setattr(audit_corpus, "KNOWN_FILES", {sha256[f"{s}.txt"]: name for s, name in names.items()})
        return findings(corpus)

    assert known(train="set train", valid="set valid", test="set test") == {}
    assert known(train="set train", valid="set valid").keys() == {"files_altered"}
    mixed = known(train="set train", valid="set valid", test="other test")
    assert list(mixed) == ["files_mixed"] and mixed["files_mixed"]["severity"] == "error"
    moved = known(train="set train", valid="set test", test="set valid")
    assert list(moved) == ["files_moved"] and moved["files_moved"]["severity"] == "error"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_sample_posts_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample_posts"]) == 0
    written = capsys.readouterr().out
    assert "sample_posts train" in written
    assert written.rstrip().split("\n")[-1].startswith("fit for training: 0 errors, ")


@pytest.mark.parametrize(("fail_on", "code"), [("error", 0), ("warning", 1), ("never", 0)])
def test_exit_codes_of_warnings(corpus: Path, fail_on: str, code: int) -> None:
    add(corpus, "test", text("x", "so it goes", "I-LOC"))
    assert main([str(corpus), "--fail_on", fail_on, "--dataset", "twitter2017"]) == code


def test_exit_codes_of_errors_notes_and_nothing(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(corpus), "--fail_on", "warning", "--dataset", "twitter2017"]) == 0
    add(corpus, "test", post("x", "\u200d\tO", "y\tO"))
    assert main([str(corpus), "--fail_on", "warning", "--types", *TYPES]) == 0
    assert main([str(corpus), "--types", "LOC"]) == 1
    assert main([str(corpus), "--types", "LOC", "--fail_on", "never"]) == 0
    shutil.rmtree(corpus / "images")
    assert main([str(corpus)]) == 1
    assert main([str(corpus), "--images_dir", "none"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/where"], "there is no folder /no/where"),
        (["{corpus}/images"], "holds no split"),
        (["{corpus}", "--context_files", "/no/where.jsonl"], "there is no context file /no/where.jsonl"),
        (["{corpus}", "--json", "{corpus}/test.txt/a.json"], "test.txt"),
        (["sample_posts", "--dataset", "twitter2018"], "invalid choice"),
    ],
)
def test_unusable_input_exits_with_2(
    corpus: Path, arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.format(corpus=corpus) for argument in arguments]
    try:
        code: object = main(arguments)
    except SystemExit as error:  # argparse's own
        code = error.code
    assert code == 2
    written = capsys.readouterr()
    assert message in written.err and not written.out


def test_json_in_a_file_or_in_place_of_the_text(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(corpus, "train", *(text(f"x{i}", f"a{i} b", "I-LOC") for i in range(9)))
    arguments = [str(corpus), "--types", *TYPES, "--json"]
    assert main([*arguments, str(tmp_path / "audit.json"), "--examples", "2"]) == 0
    written = capsys.readouterr().out
    report = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert written == format_text(report, 2) + "\n"
    assert len(report["findings"][0]["examples"]) == 9 and "… and 7 more" in written
    assert main([*arguments, "-"]) == 0
    assert json.load(io.StringIO(capsys.readouterr().out)) == report


def test_five_thousand_posts_take_seconds(tmp_path: Path) -> None:
    generator = random.Random(4)
    vocabulary = [f"w{i}" for i in range(5000)]
    for split, size in (("train", 3400), ("valid", 800), ("test", 800)):
        lines = (text(f"{split}{i}", " ".join(generator.choices(vocabulary, k=16))) for i in range(size))
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    start = time.perf_counter()
    assert findings(tmp_path, images_dir=None) == {}
    assert time.perf_counter() - start < 8  # 1 s on an idle core


def test_posts_with_several_images(corpus: Path) -> None:
    picture(corpus / "images" / "second.png", 77)
    Image.new("RGB", (50, 50), "white").save(corpus / "images" / "white.png")
    add(corpus, "train", text("second train0", "Hello Ada"), text("white gone", "Hello Bob"), images=False)
    add(corpus, "test", text("gone2,second", "Hello Eve"), images=False)
    contexts = [{"id": name, "ocr": ["A"]} for name in ("train0", "train1", "valid0", "valid1", "test0", "test1")]
    file = corpus / "contexts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*contexts, {"id": "white", "ocr": ["B"]}]))
    found = findings(corpus, context_files=[str(file)])
    assert found["images_blank"]["count"] == 1 and found["images_blank"]["examples"][0]["image"] == "white.png"
    assert not found.keys() & {"images_missing", "images_unused", "contexts_without_post"}  # one image is enough
    assert [row["id"] for row in found["contexts_missing"]["examples"]] == ["gone2,second"]
    assert [row["id"] for row in found["contexts_of_nothing"]["examples"]] == ["white gone"]
    report = audit(config(corpus, context_files=[str(file)]))
    assert report["splits"]["train"]["images"] == {"present": 3, "missing": 0, "unreadable": 0, "blank": 1}
    assert report["splits"]["test"]["contexts"] == {"present": 2, "empty": 0, "missing": 1}
