"""Bootstrap intervals and paired differences against naive loops, known cases and simulated truth."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import hub_card.scores.intervals
from hub_card.scores.intervals import (
    SCORES,
    Counts,
    Difference,
    Interval,
    bootstrap_difference,
    bootstrap_f1,
    bootstrap_scores,
    post_counts,
)
from hub_card.scores.scores import Scoring, score_tags

READINGS: tuple[Scoring, ...] = ("lenient", "strict")
GOLD = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], [], ["B-ORG", "O", "B-PER"], ["O"]]
PREDICTED = [["B-PER", "I-PER", "O"], ["O", "I-LOC"], [], ["B-ORG", "O", "O"], ["B-PER"]]


def tagged(seed: int, posts: int = 40, prefixes: str = "BI") -> list[list[str]]:
    rng = random.Random(seed)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC"))]
    return [[rng.choice(tags) for _ in range(length % 7)] for length in range(posts)]


def blend(gold: list[list[str]], seed: int, kept: float = 0.8) -> list[list[str]]:
    rng = random.Random(seed)
    return [[tag if rng.random() < kept else rng.choice(["O", "B-PER", "I-LOC"]) for tag in post] for post in gold]


def simulated(rng: np.random.Generator, posts: int, recall: float = 0.7, spurious: float = 0.3) -> Counts:
    gold = rng.poisson(1.2, posts)
    correct = rng.binomial(gold, recall)
    return Counts(gold, correct + rng.poisson(spurious, posts), correct)


def reordered(counts: Counts, order: np.ndarray) -> Counts:
    return Counts(counts.gold[order], counts.predicted[order], counts.correct[order])


def draws_of(rows: list[tuple[int, ...]], resamples: int, seed: int) -> list[list[tuple[int, ...]]]:
    """The same draws as lists of posts: how often each profile occurs is the documented call of the generator."""
    profiles = sorted(set(rows))
    times = np.random.default_rng(seed).multinomial(
        len(rows), [rows.count(profile) / len(rows) for profile in profiles], size=resamples
    )
    return [[p for p, n in zip(profiles, draw, strict=True) for _ in range(n)] for draw in times]


def naive_score(score: str, gold: int, predicted: int, correct: int) -> float:
    if score == "precision":
        return correct / predicted if predicted else 0.0
    if score == "recall":
        return correct / gold if gold else 0.0
    return 2 * correct / (gold + predicted) if gold + predicted else 0.0


def naive_quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
@pytest.mark.parametrize("scoring", READINGS)
def test_the_counts_of_all_posts_are_those_of_score_tags(scoring: Scoring, prefixes: str) -> None:
    gold = tagged(1, prefixes=prefixes)
    predicted = blend(gold, 2)
    counts = post_counts(gold, predicted, scoring)
    scores = score_tags(gold, predicted)[scoring]
    assert len(counts) == len(gold)
    assert counts.correct.sum() == scores["correct"] > 0
    assert counts.gold.sum() == scores["gold"]
    assert counts.predicted.sum() == scores["predicted"]


def test_counts_by_hand() -> None:
    counts = post_counts(GOLD, PREDICTED)
    assert counts.gold.tolist() == [1, 1, 0, 2, 0]
    assert counts.predicted.tolist() == [1, 1, 0, 1, 1]
    assert counts.correct.tolist() == [1, 1, 0, 1, 0]
    assert post_counts(GOLD, PREDICTED, "strict").correct.tolist() == [1, 0, 0, 1, 0]
    for whole in (["S-PER"], ["B-PER", "E-PER"]):
        assert post_counts([whole], [["O"] * len(whole)], "strict").gold.tolist() == [1]
        assert post_counts([["O"] * len(whole)], [whole], "strict").predicted.tolist() == [1]


def test_what_the_model_never_saw_counts_as_missed() -> None:
    short = post_counts([["B-PER", "I-PER", "B-LOC"]], [["B-PER", "I-PER"]])
    assert (short.gold[0], short.predicted[0], short.correct[0]) == (2, 1, 1)
    cut = post_counts([["B-PER", "I-PER", "B-LOC"]], [["B-PER"]])
    assert (cut.gold[0], cut.predicted[0], cut.correct[0]) == (2, 1, 0)


def test_posts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 predicted posts for 2 reference posts"):
        post_counts([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="post 1: 2 predicted tags for 1 words"):
        post_counts([["O"], ["O"]], [["O"], ["O", "O"]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([1], [1], [1, 1]), r"expected \(posts,\)"),
        (([[1]], [[1]], [[1]]), r"expected \(posts,\)"),
        (([1.0], [1], [1]), "counts.gold holds float64"),
        (([1, 1], [1, 1], [1, 2]), "post 1: 2 correct of 1 gold and 1 predicted"),
        (([1, 1], [1, 0], [1, 1]), "post 1: 1 correct of 1 gold and 0 predicted"),
        (([1], [1], [-1]), "post 0: -1 correct"),
    ],
)
def test_impossible_counts_are_refused(arrays: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Counts(*arrays)


def test_intervals_equal_a_naive_loop_over_the_same_draws() -> None:
    gold = tagged(3)
    counts = post_counts(gold, blend(gold, 4))
    rows = [tuple(row) for row in np.stack([counts.gold, counts.predicted, counts.correct], axis=1).tolist()]
    draws = [[sum(column) for column in zip(*draw, strict=True)] for draw in draws_of(rows, 300, seed=7)]
    got = bootstrap_scores(counts, resamples=300, seed=7, level=0.9)
    for score in SCORES:
        values = [naive_score(score, *totals) for totals in draws]
        assert got[score] == pytest.approx((naive_quantile(values, 0.05), naive_quantile(values, 0.95)), abs=1e-12)
    assert bootstrap_f1(counts, 300, 7, 0.9) == got["f1"]


@pytest.mark.parametrize("score", SCORES)
def test_differences_equal_a_naive_loop_over_the_same_draws(score: Any) -> None:
    gold = tagged(5)
    one, two = post_counts(gold, blend(gold, 6, 0.85)), post_counts(gold, blend(gold, 7, 0.8))
    columns = (one.gold, one.predicted, one.correct, two.predicted, two.correct)
    rows = [tuple(row) for row in np.stack(columns, axis=1).tolist()]

    def difference(draw: list[tuple[int, ...]]) -> float:
        g, p, c, other_p, other_c = (sum(column) for column in zip(*draw, strict=True))
        return naive_score(score, g, p, c) - naive_score(score, g, other_p, other_c)

    measured = difference(rows)
    values = [difference(draw) for draw in draws_of(rows, 300, seed=8)]
    as_far = sum(abs(value - measured) > abs(measured) - 1e-9 for value in values)
    got = bootstrap_difference(one, two, score, resamples=300, seed=8)
    assert measured != 0
    assert got.difference == pytest.approx(measured, abs=1e-12)
    assert (got.low, got.high) == pytest.approx((naive_quantile(values, 0.025), naive_quantile(values, 0.975)))
    assert got.p_value == (1 + as_far) / 301


def test_drawing_profiles_is_drawing_posts() -> None:
    """The interval agrees with a bootstrap that draws the posts one by one, up to the noise of the draws."""
    counts = simulated(np.random.default_rng(0), 120)
    picked = np.random.default_rng(1).integers(0, 120, size=(8000, 120))
    f1s = 2 * counts.correct[picked].sum(1) / (counts.gold[picked].sum(1) + counts.predicted[picked].sum(1))
    assert bootstrap_f1(counts, 8000) == pytest.approx(tuple(np.quantile(f1s, [0.025, 0.975])), abs=0.004)


def test_the_same_seed_gives_the_same_interval_in_any_order_of_posts() -> None:
    rng = np.random.default_rng(2)
    one, order = simulated(rng, 200), rng.permutation(200)
    two = Counts(one.gold, one.gold, one.correct)
    moved, moved_two = reordered(one, order), reordered(two, order)
    assert bootstrap_scores(one, 500, seed=3) == bootstrap_scores(moved, 500, seed=3)
    assert bootstrap_difference(one, two, resamples=500) == bootstrap_difference(moved, moved_two, resamples=500)
    assert bootstrap_f1(one, 500, seed=3) != bootstrap_f1(one, 500, seed=4)


@pytest.mark.parametrize("chunk", [1, 1000, 7000])
def test_the_size_of_the_chunks_does_not_show(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    counts = simulated(np.random.default_rng(4), 200)
    whole = bootstrap_scores(counts, 499)
    monkeypatch.setattr(hub_card.scores.intervals, "CHUNK", chunk)
    assert bootstrap_scores(counts, 499) == whole


def test_the_score_lies_within_and_a_higher_level_is_wider() -> None:
    counts = simulated(np.random.default_rng(5), 300)
    f1 = 2 * counts.correct.sum() / (counts.gold.sum() + counts.predicted.sum())
    narrow, wide = bootstrap_f1(counts, 2000, level=0.5), bootstrap_f1(counts, 2000, level=0.99)
    assert wide.low < narrow.low < f1 < narrow.high < wide.high


def test_four_times_the_posts_halve_the_interval() -> None:
    counts = simulated(np.random.default_rng(6), 200)
    more = reordered(counts, np.tile(np.arange(200), 4))
    few, many = bootstrap_f1(counts, 4000), bootstrap_f1(more, 4000)
    assert (many.high - many.low) / (few.high - few.low) == pytest.approx(0.5, abs=0.05)


def test_the_interval_covers_the_true_f1() -> None:
    """Of simulated test sets of known F1, about 95 % have it in their interval."""
    rng = np.random.default_rng(7)
    truth = 2 * 0.7 * 1.2 / (1.2 + 0.7 * 1.2 + 0.3)
    intervals = [bootstrap_f1(simulated(rng, 250), 400) for _ in range(300)]
    covered = np.mean([low < truth < high for low, high in intervals])
    assert 0.91 < covered < 0.98


def test_equally_good_systems_are_seldom_told_apart() -> None:
    """p < 0.1 in about a tenth of simulated comparisons without a difference."""
    rng = np.random.default_rng(8)
    found = []
    for _ in range(300):
        gold = rng.poisson(1.2, 200)
        right = [rng.binomial(gold, 0.7) for _ in range(2)]
        one, two = (Counts(gold, correct + rng.poisson(0.3, 200), correct) for correct in right)
        found.append(bootstrap_difference(one, two, resamples=300).p_value < 0.1)
    assert 0.05 < np.mean(found) < 0.16


def test_identical_systems_do_not_differ() -> None:
    counts = simulated(np.random.default_rng(9), 100)
    for score in SCORES:
        assert bootstrap_difference(counts, counts, score, resamples=200) == Difference(0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_is_found_and_changes_sign_with_the_sides() -> None:
    rng = np.random.default_rng(10)
    gold = rng.poisson(1.2, 500)
    good, bad = (Counts(gold, gold, rng.binomial(gold, share)) for share in (0.8, 0.6))
    one, other = bootstrap_difference(good, bad, resamples=999), bootstrap_difference(bad, good, resamples=999)
    assert one.difference == pytest.approx(0.2, abs=0.05)
    assert one.low > 0
    assert one.p_value == other.p_value == 0.001
    assert other.difference == -one.difference
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=0.02)


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    """Two systems that nearly agree differ by much less than either is unsure of."""
    counts = simulated(np.random.default_rng(11), 300)
    worse = Counts(counts.gold, counts.predicted, np.maximum(counts.correct - (np.arange(300) % 60 == 0), 0))
    alone, paired = bootstrap_f1(counts, 1000), bootstrap_difference(counts, worse, resamples=1000)
    assert paired.difference > 0
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_one_flipped_tag_and_one_dropped_post_move_the_numbers() -> None:
    gold = tagged(12)
    predicted = blend(gold, 13)
    base = post_counts(gold, predicted)
    intervals = bootstrap_scores(base, 500)

    flipped = [list(post) for post in predicted]
    post = next(i for i, tags in enumerate(gold) if tags == predicted[i] and tags[:1] == ["B-PER"])
    flipped[post][0] = "B-LOC"
    changed = post_counts(gold, flipped)
    assert (changed.gold == base.gold).all()
    assert bootstrap_scores(changed, 500) != intervals
    moved = bootstrap_difference(base, changed, resamples=500)
    assert moved.difference > 0
    assert moved.p_value > 0.05
    assert moved.high > moved.low

    assert bootstrap_f1(post_counts(gold[:-1], predicted[:-1]), 500) != intervals["f1"]


def test_edges() -> None:
    nothing = Counts(np.array([]), np.array([]), np.array([]))
    assert set(bootstrap_scores(nothing, 50).values()) == {Interval(0.0, 0.0)}
    assert bootstrap_difference(nothing, nothing, resamples=50) == Difference(0.0, 0.0, 0.0, 1.0)
    assert len(post_counts([], [])) == 0

    silent = Counts(np.array([1, 2, 0]), np.array([0, 0, 0]), np.array([0, 0, 0]))
    assert set(bootstrap_scores(silent, 50).values()) == {Interval(0.0, 0.0)}

    # Some draws have only posts where nothing was predicted: their precision is 0.
    rare = Counts(np.array([1, 1, 1]), np.array([1, 0, 0]), np.array([1, 0, 0]))
    assert bootstrap_scores(rare, 200)["precision"] == Interval(0.0, 1.0)

    one = Counts(np.array([2]), np.array([3]), np.array([1]))
    assert bootstrap_scores(one, 50) == {
        "precision": pytest.approx((1 / 3, 1 / 3)),
        "recall": Interval(0.5, 0.5),
        "f1": pytest.approx((0.4, 0.4)),
    }
    two = Counts(np.array([2]), np.array([2]), np.array([2]))
    only = bootstrap_difference(two, one, resamples=99)
    assert only[:3] == pytest.approx((0.6, 0.6, 0.6))
    assert only.p_value == 0.01


def test_different_posts_are_not_compared() -> None:
    counts = Counts(np.array([1, 2]), np.array([1, 2]), np.array([1, 1]))
    with pytest.raises(ValueError, match="2 posts against 1"):
        bootstrap_difference(counts, reordered(counts, np.array([0])))
    with pytest.raises(ValueError, match="post 0: 1 gold entities against 2"):
        bootstrap_difference(counts, reordered(counts, np.array([1, 0])))
    unknown: Any = "accuracy"
    with pytest.raises(ValueError, match="no score is called 'accuracy'"):
        bootstrap_difference(counts, counts, unknown)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_f1(counts, 0)
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap_f1(counts, level=95)
