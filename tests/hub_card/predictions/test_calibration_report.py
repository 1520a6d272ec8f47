"""The calibration of posts: the right entities reach the right figures, and each figure moves when it should."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hub_card.predictions.calibration_report import PRECISIONS, calibration_report
from hub_card.scores.calibration import scale_scores
from hub_card.scores.errors import EvaluatedPost
from modeling_ita.tag_scheme import Span

VIEWS = ("T", "I+T", "wrong_image")
A, B, C = Span("PER", 0, 1), Span("LOC", 2, 3), Span("ORG", 4, 6)


def post(gold: set[Span], views: dict[str, dict[Span, float]], name: str = "p") -> EvaluatedPost:
    return EvaluatedPost(name, tuple("abcdefgh"), frozenset(gold), views, {})


def random_posts(seed: int, posts: int = 40) -> list[EvaluatedPost]:
    rng = random.Random(seed)
    made = []
    for i in range(posts):
        views = {v: {s: round(rng.random() ** 0.3, 2) for s in (A, B, C) if rng.random() < 0.7} for v in VIEWS}
        made.append(post({span for span in (A, B, C) if rng.random() < 0.6}, views, str(i)))
    return made


def cooled(posts: list[EvaluatedPost], temperature: float = 2.0) -> list[EvaluatedPost]:
    """The posts with the same entities and other scores."""

    def scaled(spans: dict[Span, float]) -> dict[Span, float]:
        return dict(zip(spans, scale_scores(list(spans.values()), temperature).tolist(), strict=True))

    return [replace(p, views={view: scaled(spans) for view, spans in p.views.items()}) for p in posts]


def flat(value: Any) -> list[Any]:
    """All leaves of a report, keys in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in (key, *flat(value[key]))]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


def test_by_hand() -> None:
    before = [
        post({A, B}, {"T": {A: 0.5}, "I+T": {A: 1.0, B: 0.8}}, "1"),
        post({B}, {"T": {A: 0.25}, "I+T": {A: 0.9, C: 0.3}}, "2"),
    ]
    after = [
        post({A, B}, {"T": {A: 0.4}, "I+T": {A: 0.9, B: 0.7}}, "1"),
        post({B}, {"T": {A: 0.5}, "I+T": {A: 0.6, C: 0.2}}, "2"),
    ]
    report = calibration_report(before, after, 2)
    assert report["temperature"] == 2.0
    assert list(report["views"]) == ["T", "I+T"]
    view = report["views"]["I+T"]
    assert view["entities"] == 4
    assert view["brier"] == pytest.approx([(0 + 0.04 + 0.81 + 0.09) / 4, (0.01 + 0.09 + 0.36 + 0.04) / 4])
    # before, 1.0 is alone in (0.9, 1], 0.9 in (0.8, 0.9]; 0.8 in (0.7, 0.8]; 0.3 in (0.2, 0.3].
    assert view["ece"] == pytest.approx([(0 + 0.9 + 0.2 + 0.3) / 4, (0.1 + 0.3 + 0.6 + 0.2) / 4])
    assert [sum(row["entities"] for row in table) for table in view["reliability"]] == [4, 4]
    last = view["reliability"][1][8]
    assert last == {"low": 0.8, "high": 0.9, "entities": 1, "score": 0.9, "accuracy": 1.0}
    assert view["risk_coverage"]["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert view["risk_coverage"]["risk"] == pytest.approx([0, 0, 1 / 3, 0.5])
    assert view["aurc"] == pytest.approx((1 / 3 + 0.5) / 4)
    kept = {"threshold": 0.7, "recall_kept": 1.0, "coverage": 0.5}
    assert view["operating_points"] == [{"precision": precision, **kept} for precision in (0.8, 0.9, 0.95)]
    # Suspicion 0.6 (right), 1 (right), 0.5 (wrong), 1 (wrong): wrong above right in 0 + 0 + 1 + ½ of 4 pairs.
    assert report["disagreement"] == {"auroc": pytest.approx(1.5 / 4), "entities": 4}


def test_equals_a_naive_loop() -> None:
    before = random_posts(1)
    after = cooled(before)
    report = calibration_report(before, after, 2.0)
    assert set(report["views"]) == set(VIEWS)
    for name, view in report["views"].items():
        for side, posts in enumerate((before, after)):
            pairs = [(score, span in p.gold) for p in posts for span, score in p.views[name].items()]
            assert view["entities"] == len(pairs)
            assert view["brier"][side] == pytest.approx(sum((s - c) ** 2 for s, c in pairs) / len(pairs))
            gap = 0.0
            for row in view["reliability"][side]:
                inside = [(s, c) for s, c in pairs if row["low"] < s <= row["high"] or s == row["low"] == 0]
                assert row["entities"] == len(inside)
                gap += abs(sum(s for s, _ in inside) - sum(c for _, c in inside))
            assert view["ece"][side] == pytest.approx(gap / len(pairs))
        for point in view["operating_points"]:
            kept = [(s, c) for s, c in pairs if point["threshold"] is not None and s >= point["threshold"]]
            if kept:
                assert sum(c for _, c in kept) / len(kept) >= point["precision"]
                assert point["coverage"] == len(kept) / len(pairs)
    signals = [
        (1 - p.views["T"][s] if s in p.views["T"] else 1.0, s not in p.gold) for p in after for s in p.views["I+T"]
    ]
    wrong, right = ([x for x, error in signals if error == side] for side in (True, False))
    wins = sum((x > y) + (x == y) / 2 for x in wrong for y in right)
    assert report["disagreement"]["auroc"] == pytest.approx(wins / len(wrong) / len(right))


def test_the_order_of_posts_views_and_entities_makes_no_difference() -> None:
    before = random_posts(2)
    after = cooled(before)

    def turned(posts: list[EvaluatedPost]) -> list[EvaluatedPost]:
        return [
            replace(p, views={view: dict(reversed(spans.items())) for view, spans in reversed(p.views.items())})
            for p in reversed(posts)
        ]

    one, other = (flat(calibration_report(*pair, 2.0)) for pair in ((before, after), (turned(before), turned(after))))
    assert len(one) == len(other)
    for x, y in zip(one, other, strict=True):
        assert x == (pytest.approx(y, abs=1e-12) if isinstance(y, float) else y)


def flip_type(p: EvaluatedPost) -> EvaluatedPost:
    return moved(p, Span("ORG", A.start, A.end))


def shift_boundary(p: EvaluatedPost) -> EvaluatedPost:
    return moved(p, Span(A.type, A.start, A.end + 1))


def moved(p: EvaluatedPost, span: Span) -> EvaluatedPost:
    spans = {span if s == A else s: score for s, score in p.views["I+T"].items()}
    return replace(p, views=p.views | {"I+T": spans})


@pytest.mark.parametrize("change", [flip_type, shift_boundary])
def test_one_wrong_entity_moves_its_view_only(change: Callable[[EvaluatedPost], EvaluatedPost]) -> None:
    before = random_posts(3)
    i = next(i for i, p in enumerate(before) if A in p.gold and p.views["I+T"].get(A, 0) > 0.7)
    altered = [change(p) if j == i else p for j, p in enumerate(before)]
    right, wrong = (calibration_report(posts, cooled(posts), 2.0) for posts in (before, altered))
    for key in ("ece", "brier", "reliability", "risk_coverage", "aurc"):
        assert right["views"]["I+T"][key] != wrong["views"]["I+T"][key]
    assert right["views"]["I+T"]["entities"] == wrong["views"]["I+T"]["entities"]
    assert right["views"]["I+T"]["aurc"] < wrong["views"]["I+T"]["aurc"]
    assert right["disagreement"]["auroc"] != wrong["disagreement"]["auroc"]
    for view in ("T", "wrong_image"):
        assert right["views"][view] == wrong["views"][view]


def test_a_dropped_post_and_a_missed_entity() -> None:
    before = random_posts(4)
    whole = calibration_report(before, cooled(before), 2.0)
    i = next(i for i, p in enumerate(before) if p.views["I+T"])
    fewer = before[:i] + before[i + 1 :]
    without = calibration_report(fewer, cooled(fewer), 2.0)
    dropped = len(before[i].views["I+T"])
    assert without["views"]["I+T"]["entities"] == whole["views"]["I+T"]["entities"] - dropped
    assert without["views"]["I+T"]["brier"] != whole["views"]["I+T"]["brier"]
    assert without["disagreement"]["entities"] == whole["disagreement"]["entities"] - dropped
    # An entity that nothing predicts has no score.
    missed = [replace(p, gold=p.gold | {Span("PER", 7, 8)}) for p in before]
    assert calibration_report(missed, cooled(missed), 2.0) == whole


def test_the_temperature_moves_what_is_after_it() -> None:
    before = random_posts(5)
    still, warm = calibration_report(before, before, 1.0), calibration_report(before, cooled(before), 2.0)
    for view in VIEWS:
        for key in ("ece", "brier", "reliability"):
            assert still["views"][view][key][0] == still["views"][view][key][1] == warm["views"][view][key][0]
            assert warm["views"][view][key][0] != warm["views"][view][key][1]
        # One temperature on all scores keeps their order.
        assert still["views"][view]["aurc"] == pytest.approx(warm["views"][view]["aurc"])


def test_what_is_undefined_is_none() -> None:
    assert calibration_report([], [], 1.0) == {
        "temperature": 1.0,
        "views": {},
        "disagreement": {"auroc": None, "entities": 0},
    }
    silent = [post({A}, {"T": {}, "I+T": {}})]
    report = calibration_report(silent, silent, 1.0)
    nothing = {"threshold": None, "recall_kept": None, "coverage": None}
    assert report["views"]["T"] == {
        "entities": 0,
        "ece": [None, None],
        "brier": [None, None],
        "reliability": report["views"]["I+T"]["reliability"],
        "risk_coverage": {"coverage": [], "risk": []},
        "aurc": None,
        "operating_points": [{"precision": precision, **nothing} for precision in PRECISIONS],
    }
    text = [post({A}, {"T": {A: 0.5}})]
    assert calibration_report(text, text, 1.0)["disagreement"] == {"auroc": None, "entities": 0}


def test_it_is_plain_json() -> None:
    posts = random_posts(6)
    report = calibration_report(posts, cooled(posts), 2.0)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ([], "0 posts after the temperature for 1 posts before it"),
        ([post({A}, {"T": {A: 0.5}}, "q")], "post 'q' after the temperature stands where 'p' stood"),
        ([post({B}, {"T": {A: 0.5}})], "post 'p' has other gold entities"),
        ([post({A}, {"I+T": {A: 0.5}})], r"post 'p' has the views \['I\+T'\] \(expected \['T'\], as in post 'p'\)"),
        ([post({A}, {"T": {A: 0.5, B: 0.5}})], r"post 'p', view 'T': Span\(type='LOC'.*only before or only after"),
    ],
)
def test_posts_that_do_not_pair_up(after: list[EvaluatedPost], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_report([post({A}, {"T": {A: 0.5}})], after, 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        calibration_report([], [], temperature)


def test_long_curves_are_thinned() -> None:
    draw = random.Random(0)
    posts = []
    for number in range(600):
        span = Span("PER", 0, 1)
        score = draw.random()
        gold = frozenset({span} if draw.random() < score else ())
        posts.append(EvaluatedPost(str(number), ("a",), gold, {"T": {span: score}}, {}))
    curve = calibration_report(posts, posts, 1.0)["views"]["T"]["risk_coverage"]
    assert len(curve["coverage"]) == len(curve["risk"]) == 200
    assert curve["coverage"] == sorted(curve["coverage"]) and curve["coverage"][-1] == 1
    assert curve["risk"][-1] == pytest.approx(sum(not post.gold for post in posts) / 600)
