"""Scoring of files in CoNLL columns: against seqeval, against the counting of conlleval, and every mismatch."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import seqeval.metrics
from seqeval.scheme import IOB2, IOBES

from hub_card.evaluation import format_table, main, score_tags
from hub_card.report.score_files import score_files
from hub_card.scores.conll_columns import read_columns, read_pair

TYPES = ("PER", "LOC", "MY-TYPE")


def conlleval(references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, dict[str, int]]:
    """The counts of the CoNLL-2000 script, by the rules that it documents: it goes from word to word and knows of no
    spans. Between two words a chunk ends or begins by the pair of their prefixes, or because the type changes; a
    chunk is right if it began and ended on both sides at once, and had one type on both. Posts are parted by an `O`.
    """
    ends = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O")}
    begins = {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E")}
    gold, predicted, correct = Counter[str](), Counter[str](), Counter[str]()
    # (prefix, type) of the word before, on both sides
    before = [("O", ""), ("O", "")]
    alike = False  # whether a chunk is open that began on both sides at once, with one type
    for post, other in zip(references, predictions, strict=True):
        for tags in [*zip(post, other, strict=True), ("O", "O")]:
            now = [(prefix, kind) for prefix, _, kind in (tag.partition("-") for tag in tags)]
            end, begin = [], []
            for (old, old_type), (new, new_type) in zip(before, now, strict=True):
                end.append((old, new) in ends or (old != "O" and old_type != new_type))
                begin.append((old, new) in begins or (new != "O" and old_type != new_type))
            if alike and all(end) and before[0][1] == before[1][1]:
                correct[before[0][1]] += 1
                alike = False
            elif alike and (end[0] != end[1] or now[0][1] != now[1][1]):
                alike = False
            if all(begin) and now[0][1] == now[1][1]:
                alike = True
            gold[now[0][1]] += begin[0]
            predicted[now[1][1]] += begin[1]
            before = now
    kinds = sorted(kind for kind, n in (gold + predicted).items() if n)
    return {kind: {"gold": gold[kind], "predicted": predicted[kind], "correct": correct[kind]} for kind in kinds}


def our_counts(references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, dict[str, int]]:
    types: dict[str, Any] = dict(score_tags(references, predictions)["lenient"]["types"])
    return {kind: {key: of_type[key] for key in ("gold", "predicted", "correct")} for kind, of_type in types.items()}


def noise(rng: random.Random, prefixes: str, words: int) -> list[str]:
    """Any tags at all: `I-` and `E-` that continue nothing, types that change in the middle."""
    return rng.choices(["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in TYPES)], k=words)


def well_formed(rng: random.Random, scheme: str, words: int) -> list[str]:
    """Entities of one to three words, with or without `O` between them, spelt in a scheme."""
    tags: list[str] = []
    kind_before = None
    while len(tags) < words:
        if rng.random() < 0.4:
            tags.append("O")
            kind_before = None
            continue
        kind, length = rng.choice(TYPES), rng.randint(1, min(3, words - len(tags)))
        inner = ["I"] * length
        if scheme == "IOB2" or (scheme == "IOB1" and kind == kind_before):
            inner[0] = "B"
        if scheme == "IOE2":
            inner[-1] = "E"
        if scheme == "BIOES":
            inner = ["S"] if length == 1 else ["B", *["I"] * (length - 2), "E"]
        tags += [f"{prefix}-{kind}" for prefix in inner]
        kind_before = kind
    return tags


def half_right(rng: random.Random, gold: list[str], other: list[str]) -> list[str]:
    """`gold`, or from some word on `other`."""
    cut = rng.randint(0, len(gold)) if rng.random() < 0.7 else len(gold)
    return gold[:cut] + other[cut:]


def write(path: Path, posts: Sequence[Sequence[str]], separator: str = "\t", ids: bool = False) -> Path:
    lines = []
    for number, tags in enumerate(posts):
        lines += [f"IMGID:{number}"] * ids
        lines += [f"w{number}.{i}{separator}{tag}" for i, tag in enumerate(tags)] + [""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# Against conlleval and seqeval


@pytest.mark.parametrize("kind", ["BI", "I", "IE", "IOB1", "IOB2", "IOE2"])
def test_thousands_of_sequences_score_as_in_conlleval(kind: str) -> None:
    rng = random.Random(kind)
    make = well_formed if kind.startswith("IO") else noise
    found = 0
    for _ in range(1500):
        words = rng.randint(0, 9)
        gold = make(rng, kind, words)
        predicted = half_right(rng, gold, make(rng, kind, words))
        ours = our_counts([gold], [predicted])
        assert ours == conlleval([gold], [predicted]), (gold, predicted)
        found += sum(of_type["correct"] for of_type in ours.values())
    assert found > 500


def test_of_bioes_conlleval_knows_no_s_and_not_that_e_ends_before_b() -> None:
    """Where the two part, we are with seqeval."""
    for tags in (["S-PER", "S-PER"], ["B-PER", "E-PER", "B-PER", "E-PER"]):
        assert conlleval([tags], [tags])["PER"]["gold"] == 1
        assert our_counts([tags], [tags])["PER"]["gold"] == 2
        assert seqeval.metrics.classification_report([tags], [tags], output_dict=True)["PER"]["support"] == 2


@pytest.mark.parametrize(
    ("kind", "scheme"), [("BI", IOB2), ("IOB2", IOB2), ("BIES", IOBES), ("BIOES", IOBES), ("IOB1", IOB2)]
)
def test_files_score_as_in_seqeval_and_conlleval(kind: str, scheme: type, tmp_path: Path) -> None:
    rng = random.Random(kind)
    make = noise if kind in ("BI", "BIES") else well_formed
    gold = [make(rng, kind, rng.randint(1, 9)) for _ in range(300)]
    predicted = [half_right(rng, tags, make(rng, kind, len(tags))) for tags in gold]
    report = score_files(write(tmp_path / "gold", gold, ids=True), write(tmp_path / "predicted", predicted, " "))
    scored = report["scores"]["test"]["predicted"]
    modes: dict[str, dict[str, Any]] = {"lenient": {}, "strict": {"mode": "strict", "scheme": scheme}}
    for scoring, arguments in modes.items():
        for key in ("precision", "recall", "f1"):
            reference = getattr(seqeval.metrics, f"{key}_score")(gold, predicted, **arguments)
            assert scored[scoring][key] == pytest.approx(reference, abs=1e-12)
        by_type = seqeval.metrics.classification_report(gold, predicted, output_dict=True, **arguments)
        for name, of_type in scored[scoring]["types"].items():
            assert of_type["f1"] == pytest.approx(by_type[name]["f1-score"], abs=1e-12)
            assert of_type["gold"] == by_type[name]["support"]
    assert scored["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(gold, predicted))
    if "S" not in kind:
        counts = conlleval(gold, predicted)
        for key in ("gold", "predicted", "correct"):
            assert scored["lenient"][key] == sum(of_type[key] for of_type in counts.values())


def test_an_orphan_i_is_an_entity_for_lenient_only(tmp_path: Path) -> None:
    gold = write(tmp_path / "gold", [["O", "I-PER", "I-PER", "B-LOC"]])
    scored = score_files(gold, gold)["scores"]["test"]["predicted"]
    assert (scored["lenient"]["gold"], scored["strict"]["gold"]) == (2, 1)
    assert scored["lenient"]["f1"] == scored["strict"]["f1"] == 1.0


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "-DOCSTART- -X- O O\n\n", "IMGID:1\n"])
def test_empty_files_score_zero(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        main(["score", str(path), str(path)])
    output = capsys.readouterr().out
    assert "0 posts, 0 words" in output
    assert "|types:|gold:0|posts:0|" in output


# Reading


def test_columns_in_all_the_ways_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "posts.txt"
    path.write_bytes(
        "\ufeff-DOCSTART- -X- O O\r\n\r\n"
        "IMGID:7\r\nNew York\tNNP\tB-LOC\r\n\u00a0\tO\r\n\r\n"
        "IMGID:8\n"  # no word
        "IMGID:9\na  NN  O \n\u0085 O\nIMGID:10\nb\tI-MY-TYPE\n \t\nc O".encode()
    )
    posts = read_columns(path)
    assert [(post.id, post.words, post.tags, post.line, post.lines) for post in posts] == [
        ("7", ["New York", "\u00a0"], ["B-LOC", "O"], 3, [4, 5]),
        ("9", ["a", "\u0085"], ["O", "O"], 8, [9, 10]),
        ("10", ["b"], ["I-MY-TYPE"], 11, [12]),
        (None, ["c"], ["O"], 14, [14]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tO\nChicago\n", 'gold.txt, line 2: "Chicago" has no tag'),
        (b"a\tO\nChicago\t\n", 'gold.txt, line 2: "Chicago" has no tag'),
        (b"\tO\n", 'gold.txt, line 1: the tag "O" has no word'),
        (b"a\tO\n\nb X-PER", 'gold.txt, line 3: "X-PER" is not a tag (expected O, B-X'),
        (b"a\tB", 'gold.txt, line 1: "B" is not a tag'),
        (b"a\tO\n\xff\tO", "gold.txt, line 2: the byte 0xff is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gold.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        read_columns(path)
    assert message in str(refusal.value)


GOLD = "a\tO\nb\tB-PER\n\nc\tO\nd\tO\n"
GOLD_IDS = "IMGID:1\na\tO\n\nIMGID:2\nb\tO\n\nIMGID:3\nc\tO\n"


@pytest.mark.parametrize(
    ("gold", "predicted", "messages"),
    [
        # another word, a word too few, a word too many, a blank line too few
        (GOLD, GOLD.replace("d", "D"), ['gold.txt, line 5: "d"', 'predicted.txt, line 5: "D"']),
        (GOLD, "a O\n\nc O\nd O\n", ['gold.txt, line 2: "b"', "predicted.txt, line 2: the end of the post"]),
        (GOLD, GOLD + "e\tO\n", ["gold.txt, line 6: the end of the post", 'predicted.txt, line 6: "e"']),
        (GOLD, "a O\nb O\nc O\nd O\n", ["gold.txt, line 3: the end of the post", 'predicted.txt, line 3: "c"']),
        # a post on one side only
        (GOLD, "a\tO\nb\tO\n", ['gold.txt, line 4: the post that begins "c d" is not in', "predicted.txt"]),
        (GOLD, GOLD + "\ne\tO\n", ['predicted.txt, line 7: the post that begins "e" is not in', "gold.txt"]),
        (GOLD, "", ['gold.txt, line 1: the post that begins "a b" is not in']),
        ("", GOLD, ['predicted.txt, line 1: the post that begins "a b" is not in']),
        (GOLD_IDS, GOLD_IDS.replace("IMGID:2\nb\tO\n\n", ""), ['gold.txt, line 4: the post "2" is not in']),
        (GOLD_IDS.replace("IMGID:2\nb\tO\n\n", ""), GOLD_IDS, ['predicted.txt, line 4: the post "2" is not in']),
        (GOLD_IDS, GOLD_IDS + "\nIMGID:3\nc\tO\n", ['predicted.txt, line 10: the post "3" is not in']),
        # another order
        (
            "IMGID:1\na\tO\n\nIMGID:2\na\tO\n",
            "IMGID:2\na\tO\n\nIMGID:1\na\tO\n",
            ['gold.txt, line 1: the post "1"', 'predicted.txt, line 1: the post "2"', "in the same order"],
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_line(
    gold: str, predicted: str, messages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "gold.txt", tmp_path / "predicted.txt"]
    for path, content in zip(paths, (gold, predicted), strict=True):
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as refusal:
        read_pair(*paths)
    assert [message for message in messages if message not in str(refusal.value)] == []
    assert main(["score", *map(str, paths)]) == 2
    assert messages[0] in capsys.readouterr().err


def test_ids_may_be_missing_on_one_side(tmp_path: Path) -> None:
    tags = [["O", "B-PER"], ["B-LOC"]]
    with_ids, without = write(tmp_path / "a", tags, ids=True), write(tmp_path / "b", tags)
    assert read_pair(with_ids, without) == read_pair(without, with_ids) == (tags, tags)


# The command


def test_score_prints_both_readings_by_type_with_signatures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = write(tmp_path / "gold.txt", [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["B-PER"]])
    predicted = write(tmp_path / "predicted.txt", [["B-PER", "I-PER", "O"], ["O", "I-LOC"], ["O"]])
    main(["score", str(gold), str(predicted), "--view", "I+T"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 posts, 6 words; 66.67 % of the tags right"
    assert lines[2].split() == ["lenient", "P", "R", "F1", "gold", "predicted", "correct"]
    assert [line.split() for line in lines[4:7]] == [
        ["all", "100.00", "66.67", "80.00", "3", "2", "2"],
        ["LOC", "100.00", "100.00", "100.00", "1", "1", "1"],
        ["PER", "100.00", "50.00", "66.67", "2", "1", "1"],
    ]
    assert lines[7].startswith("F1 with its interval over posts: 80.0 [")
    checksum = hashlib.sha256(gold.read_bytes()).hexdigest()[:8]
    measured = f"ita-mner-f1|data:{checksum}|split:test|view:I+T|scheme:lenient|types:LOC,PER|gold:3|posts:3|repair:0|"
    assert lines[8].startswith(measured)
    assert [line.split() for line in lines[12:15]] == [
        ["all", "100.00", "33.33", "50.00", "3", "1", "1"],
        ["LOC", "0.00", "0.00", "0.00", "1", "0", "0"],
        ["PER", "100.00", "50.00", "66.67", "2", "1", "1"],
    ]
    assert lines[15].startswith(measured.replace("lenient", "strict"))


def test_json_is_a_report_for_table_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = write(tmp_path / "gold.txt", [["B-PER", "O"], ["B-LOC"]])
    predicted = write(tmp_path / "predicted.txt", [["B-PER", "O"], ["O"]])
    main(["score", str(gold), str(predicted), "--json"])
    output = capsys.readouterr().out
    report = json.loads(output)
    assert report["scores"]["test"]["predicted"]["post_counts"]["correct"] == [1, 0]
    assert format_table(report).startswith("test, in percent: 2 posts, 2 entities")
    path = tmp_path / "report.json"
    path.write_text(output, encoding="utf-8")
    main(["table", str(path)])
    assert "66.7 (1)" in capsys.readouterr().out
    main(["compare", str(path), str(path), "--view", "predicted"])
    assert "A − B: +0.0 [+0.0, +0.0], paired over 2 posts, p = 1.000" in capsys.readouterr().out
