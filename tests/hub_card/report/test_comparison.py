"""Two reports side by side: what is compared, what is refused, and by how much they differ."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from hub_card.evaluation import main, make_report, score_views, write_report
from hub_card.report.comparison import compare_reports, format_comparison
from hub_card.scores.intervals import Interval, bootstrap_difference, post_counts

RNG = random.Random(0)
GOLD = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], [], ["B-ORG", "O", "B-PER"]] * 8
SHA256 = "a7d9e172" + 56 * "0"


def with_errors(share: float) -> list[list[str]]:
    return [[tag if RNG.random() > share else "O" for tag in post] for post in GOLD]


GOOD, FAIR, BAD = with_errors(0.1), with_errors(0.3), with_errors(0.5)


def report_of(
    name: str = "ITA",
    views: dict[str, list[list[str]]] | None = None,
    gold: list[list[str]] | None = None,
    split: str = "test",
    **file: Any,
) -> dict[str, Any]:
    return make_report(
        name=name,
        scores={split: score_views(gold or GOLD, views or {"T": FAIR, "I+T": GOOD})},
        counts={},
        data={"test.txt": {"sha256": SHA256}},
        command="",
        history={},
        config={},
        gold={split: {"sha256": SHA256, "known_as": "twitter2017-umt test", "repaired": 0} | file},  # type: ignore
    )


def old(report: dict[str, Any]) -> dict[str, Any]:
    """As the versions before this one wrote it."""
    scores = {
        split: {view: {k: v for k, v in scored.items() if k != "post_counts"} for view, scored in views.items()}
        for split, views in report["scores"].items()
    }
    return {key: value for key, value in report.items() if key != "signatures"} | {"scores": scores}


def test_difference_is_paired_over_posts() -> None:
    comparison = compare_reports(report_of(), report_of("text", {"I+T": BAD}))
    assert (comparison.incomparable, comparison.different) == ([], [])
    expected = bootstrap_difference(post_counts(GOLD, GOOD), post_counts(GOLD, BAD))
    assert comparison.difference == expected.difference > 0
    assert comparison.interval == Interval(expected.low, expected.high)
    assert (comparison.p_value, comparison.posts) == (expected.p_value, 32)


def test_difference_changes_its_sign_with_the_order_of_the_reports() -> None:
    first, second = report_of(), report_of("text", {"I+T": BAD})
    there, back = compare_reports(first, second), compare_reports(second, first)
    assert there.difference is not None and there.difference == -(back.difference or 0)


def test_views_of_one_report_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    write_report(report_of(), path)
    main(["compare", str(path), str(path), "--view", "I+T", "T"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:4]] == [["A", "ITA", "I+T"], ["B", "ITA", "T"]]
    assert lines[4:6] == ["comparable", "what differs: another view: I+T and T"]
    assert lines[6].startswith("A − B: +") and "paired over 32 posts, p " in lines[6]
    assert lines[7].startswith("ita-mner-f1|data:twitter2017-umt@a7d9e172|split:test|scheme:lenient|")
    assert len(lines) == 8


def test_one_flipped_tag_moves_the_difference_and_nothing_else_does() -> None:
    assert compare_reports(report_of(), report_of("again")).difference == 0.0
    flipped = [[*GOLD[0][:1], "O", "O"], *GOLD[1:]]
    comparison = compare_reports(report_of(views={"I+T": GOLD}), report_of(views={"I+T": flipped}))
    assert comparison.difference == pytest.approx(1 - 31 / 32)


def test_bio_and_bioes_gold_are_the_same_posts() -> None:
    bioes = [["B-PER", "E-PER", "O"], ["O", "S-LOC"], [], ["S-ORG", "O", "S-PER"]] * 8
    comparison = compare_reports(report_of(views={"I+T": GOLD}), report_of(gold=bioes, views={"I+T": bioes}))
    assert (comparison.incomparable, comparison.difference, comparison.posts) == ([], 0.0, 32)


INCOMPARABLE = {
    "data": (report_of(sha256="f" * 64, known_as="unknown"), "other data: twitter2017-umt (a7d9e172) and ffffffff"),
    "dropped": (report_of(gold=GOLD[:-1], views={"I+T": GOLD[:-1]}), "another number of posts: 32 and 31"),
    "repairs": (report_of(repaired=3), "another number of repaired gold tags: 0 and 3"),
    "order": (report_of(gold=GOLD[::-1], views={"I+T": GOLD[::-1]}), "another order of them"),
    "old": (old(report_of("before")), "the report 'before' has no signature: measure it again with this version"),
}


@pytest.mark.parametrize("case", INCOMPARABLE)
def test_what_is_not_comparable_has_no_difference_unless_forced(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, reason = INCOMPARABLE[case]
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path, report in zip(paths, (report_of(), other), strict=True):
        write_report(report, path)
    assert main(["compare", *paths]) == 1
    output = capsys.readouterr().out
    assert "\nnot comparable:\n- " in output and reason in output
    assert "A − B" not in output
    assert main(["compare", *paths, "--force"]) == 1
    output = capsys.readouterr().out
    assert reason in output and "A − B: " in output
    # The posts are the same ones, whatever the file is called: only then is there anything to pair.
    assert ("paired over 32 posts" in output) == (case in ("data", "repairs"))
    assert ("cannot be paired" in output) == (case not in ("data", "repairs"))


def test_other_splits_are_not_comparable() -> None:
    line = format_comparison(
        compare_reports(report_of(split="validation"), report_of(split="validation"), "validation")
    )
    assert "\ncomparable\n" in line
    first, second = report_of(), report_of(split="validation")
    second["scores"]["test"] = second["scores"]["validation"]
    second["signatures"]["test"] = second["signatures"]["validation"]
    assert compare_reports(first, second).incomparable == ["another split: test and validation"]


def test_two_old_reports_are_not_vouched_for() -> None:
    comparison = compare_reports(old(report_of("a")), old(report_of("b")))
    assert len(comparison.incomparable) == 2
    text = format_comparison(comparison)
    assert text.endswith("A: no signature\nB: no signature")
    assert "[" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "dev"], "the report 'ITA' has no scores on 'dev' (it has: test)"),
        (["--view", "blank"], "has no scores on 'test' in view 'blank' (it has: T, I+T)"),
        (["--view", "T", "I+T", "T"], "--view has 3 views"),
    ],
)
def test_command_line_refuses_by_name(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    write_report(report_of(), path)
    assert main(["compare", str(path), str(path), *arguments]) == 2
    assert message in capsys.readouterr().err
