"""Calibration, temperatures and selection against naive loops, brute force and cases by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hub_card.scores.calibration import (
    CLIP,
    Bin,
    OperatingPoint,
    aurc,
    auroc,
    brier,
    expected_calibration_error,
    fit_score_temperature,
    fit_temperature,
    log_loss,
    reliability,
    risk_coverage,
    scale_scores,
    threshold_for_precision,
)

SCORES = [0.95, 0.9, 0.9, 0.6, 0.3]
CORRECT = [True, True, False, True, False]

Pairs = tuple[list[float], list[bool]]


def random_pairs(seed: int, entities: int = 60, digits: int = 2) -> Pairs:
    """Scores with ties, some at bin edges, correct about as often as they say."""
    rng = random.Random(seed)
    scores = [round(rng.random() ** 0.5, digits) for _ in range(entities)]
    return scores, [rng.random() < 0.8 * score for score in scores]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_reliability_by_hand() -> None:
    *first, last = reliability(SCORES, CORRECT, bins=4)
    assert first == [Bin(0.0, 0.25, 0, None, None), Bin(0.25, 0.5, 1, 0.3, 0.0), Bin(0.5, 0.75, 1, 0.6, 1.0)]
    assert last == pytest.approx((0.75, 1.0, 3, 2.75 / 3, 2 / 3))
    assert expected_calibration_error(SCORES, CORRECT, bins=4) == pytest.approx((0.3 + 0.4 + 0.75) / 5)


@pytest.mark.parametrize("bins", [1, 3, 7, 10, 15])
def test_reliability_and_ece_equal_a_naive_loop(bins: int) -> None:
    scores, correct = random_pairs(bins)
    table = reliability(scores, correct, bins)
    gap = 0.0
    for k in range(bins):
        low, high = k / bins, (k + 1) / bins
        members = [i for i, s in enumerate(scores) if low < s <= high or (k == 0 and s == 0)]
        assert (table[k].low, table[k].high, table[k].entities) == (low, high, len(members))
        if members:
            mean, share = (
                sum(scores[i] for i in members) / len(members),
                sum(correct[i] for i in members) / len(members),
            )
            assert (table[k].score, table[k].accuracy) == pytest.approx((mean, share))
            gap += len(members) / len(scores) * abs(mean - share)
    assert expected_calibration_error(scores, correct, bins) == pytest.approx(gap)


def test_a_score_at_an_edge_is_in_the_lower_bin() -> None:
    edges = [k / 10 for k in range(11)]
    table = reliability(edges, [True] * 11, bins=10)
    assert [row.entities for row in table] == [2, *[1] * 9]


@pytest.mark.parametrize("digits", [1, 2, 9])
@pytest.mark.parametrize("entities", [1, 4, 60, 61])
def test_bins_of_equal_mass(entities: int, digits: int) -> None:
    scores, correct = random_pairs(entities, entities, digits)
    table = reliability(scores, correct, bins=6, binning="mass")
    assert 1 <= len(table) <= 6
    assert table[0].low == 0
    assert table[-1].high == 1
    assert all(row.high == after.low for row, after in itertools.pairwise(table))
    assert sum(row.entities for row in table) == entities
    for row in table:
        members = [i for i, s in enumerate(scores) if row.low < s <= row.high or row.low == s == 0]
        assert row.entities == len(members) > 0
        assert row.score == pytest.approx(sum(scores[i] for i in members) / len(members))
        assert row.accuracy == pytest.approx(sum(correct[i] for i in members) / len(members))
    if len(set(scores)) == entities >= 6:
        assert {row.entities for row in table} <= {entities // 6, -(-entities // 6)}


def test_equal_scores_share_a_bin_of_equal_mass() -> None:
    assert reliability([0.5] * 7, [True] * 7, bins=3, binning="mass") == [Bin(0.0, 1.0, 7, 0.5, 1.0)]
    table = reliability([0.2, 0.7, 0.7, 0.7], [False, True, True, False], bins=2, binning="mass")
    assert [row.entities for row in table] == [4]
    table = reliability([0.2, 0.2, 0.2, 0.7], [False, True, True, False], bins=2, binning="mass")
    assert [(row.high, row.entities) for row in table] == [(0.2, 3), (1.0, 1)]


def test_calibrated_scores_have_a_small_ece_and_sure_ones_a_large() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    correct = rng.random(20_000) < scores
    for binning in ("width", "mass"):
        calibrated = expected_calibration_error(scores, correct, binning=binning)
        sure = expected_calibration_error(np.ones(20_000), correct, binning=binning)
        assert calibrated is not None
        assert calibrated < 0.015
        assert sure == pytest.approx(1 - correct.mean())


def test_brier_and_log_loss_equal_a_naive_loop() -> None:
    assert brier(SCORES, CORRECT) == pytest.approx((0.0025 + 0.01 + 0.81 + 0.16 + 0.09) / 5)
    assert log_loss([0.8, 0.4], [True, False]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    scores, correct = random_pairs(1)
    losses = [-math.log(s if c else 1 - s) for s, c in zip(scores, correct, strict=True) if 0 < s < 1]
    inside = [(s, c) for s, c in zip(scores, correct, strict=True) if 0 < s < 1]
    assert log_loss(*zip(*inside, strict=True)) == pytest.approx(sum(losses) / len(losses))


def test_sure_and_wrong_costs_much_but_not_infinitely_much() -> None:
    assert log_loss([1.0], [False]) == pytest.approx(-math.log(CLIP))
    assert log_loss([0.0], [True]) == pytest.approx(-math.log(CLIP))
    assert log_loss([1.0, 0.0], [True, False]) == pytest.approx(0, abs=2 * CLIP)


@pytest.mark.parametrize("best", [0.25, 0.4, 1.0, 1.7, 5.0, 8.0])
def test_a_temperature_is_found_in_about_twenty_calls(best: float) -> None:
    calls = []

    def nll(temperature: float) -> float:
        calls.append(temperature)
        return (math.log(temperature) - math.log(best)) ** 2

    assert fit_temperature(nll) == pytest.approx(best, rel=1e-3)
    assert len(calls) == len(set(calls)) <= 22
    assert all(0.25 <= temperature <= 8 for temperature in calls)


def test_a_temperature_beyond_the_range_is_its_end() -> None:
    assert fit_temperature(lambda t: t) == 0.25
    assert fit_temperature(lambda t: -t) == 8.0
    assert fit_temperature(lambda t: t, low=2, high=3) == 2
    assert fit_temperature(lambda t: 3.5) == 1.0


def test_the_temperature_of_a_softmax_equals_a_search_on_a_grid() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(400, 5))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=p) for p in chances])
    sure = 2.5 * logits

    def nll(temperature: float) -> float:
        scaled = sure / temperature
        return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(400), labels]).mean())

    fitted = fit_temperature(nll)
    grid = np.geomspace(0.25, 8, 2000)
    assert fitted == pytest.approx(grid[np.argmin([nll(t) for t in grid])], rel=4e-3)
    assert fitted == pytest.approx(2.5, rel=0.15)
    assert nll(fitted) < nll(1.0)


def test_what_is_no_temperature_search_is_refused() -> None:
    with pytest.raises(ValueError, match="the NLL at temperature 1 is nan"):
        fit_temperature(lambda t: math.nan)
    with pytest.raises(ValueError, match=r"the NLL at temperature 0.25 is inf"):
        fit_temperature(lambda t: math.inf if t < 1 else t)
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        fit_temperature(lambda t: t, low=0)
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        fit_temperature(lambda t: t, low=2, high=1)


def test_scaled_scores() -> None:
    scores = [0.02, 0.3, 0.5, 0.8, 0.999]
    for temperature in (0.5, 1.0, 3.0):
        expected = [sigmoid(logit(p) / temperature) for p in scores]
        scaled = scale_scores(scores, temperature)
        assert scaled.tolist() == pytest.approx(expected, rel=1e-12)
        assert (np.diff(scaled) > 0).all()
    assert scale_scores(scores, 1e9).tolist() == pytest.approx([0.5] * 5)
    assert scale_scores(scale_scores(scores, 2.0), 0.5).tolist() == pytest.approx(scores)
    with np.errstate(all="raise", under="ignore"):
        ends = scale_scores([0.0, 1.0], 0.01)
    assert ends.tolist() == pytest.approx([0, 1])
    assert scale_scores(np.array([0.0, 1.0], dtype=np.float32), 1.0).tolist() == pytest.approx([CLIP, 1 - CLIP])
    assert scale_scores([], 2.0).shape == (0,)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature is"):
        scale_scores([0.5], temperature)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.0])
def test_the_temperature_of_scores_is_found_again_and_mends_them(truth: float) -> None:
    rng = np.random.default_rng(2)
    chances = rng.beta(2, 1, 20_000)
    correct = rng.random(20_000) < chances
    scores = scale_scores(chances, 1 / truth)
    fitted = fit_score_temperature(scores, correct)
    assert fitted == pytest.approx(truth, rel=0.05)
    after = scale_scores(scores, fitted)
    losses = {t: log_loss(scale_scores(scores, t), correct) for t in (fitted, fitted * 1.02, fitted / 1.02, 1.0)}
    assert min(losses, key=lambda t: losses[t] or 0) == fitted
    if truth != 1:
        before_ece, after_ece = (expected_calibration_error(s, correct) or 0 for s in (scores, after))
        assert after_ece < before_ece / 3


def test_the_temperature_of_scores_that_are_all_right_is_the_end() -> None:
    assert fit_score_temperature([0.9, 0.8, 0.1], [True, True, False]) == 0.25
    assert fit_score_temperature([0.9, 0.8], [False, False], high=5.0) == 5.0
    assert fit_score_temperature([0.5, 0.5], [True, False]) == 1.0
    with pytest.raises(ValueError, match="on no entities"):
        fit_score_temperature([], [])


def test_risk_and_coverage_by_hand() -> None:
    curve = risk_coverage(SCORES, CORRECT)
    assert curve.threshold.tolist() == [0.95, 0.9, 0.6, 0.3]
    assert curve.coverage.tolist() == [0.2, 0.6, 0.8, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 1 / 4, 2 / 5])
    # The two of score 0.9 in either order: half an error among the first two.
    assert aurc(SCORES, CORRECT) == pytest.approx((0 + 0.5 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


@pytest.mark.parametrize("seed", range(4))
def test_risk_and_coverage_equal_a_naive_loop(seed: int) -> None:
    scores, correct = random_pairs(seed, digits=1)
    curve = risk_coverage(scores, correct)
    assert curve.threshold.tolist() == sorted(set(scores), reverse=True)
    for coverage, risk, threshold in zip(*curve, strict=True):
        kept = [c for s, c in zip(scores, correct, strict=True) if s >= threshold]
        assert coverage == pytest.approx(len(kept) / len(scores))
        assert risk == pytest.approx(kept.count(False) / len(kept))
    assert (np.diff(curve.coverage) > 0).all()
    assert curve.coverage[-1] == 1


@pytest.mark.parametrize("seed", range(6))
def test_aurc_is_the_mean_over_the_orders_of_ties(seed: int) -> None:
    scores, correct = random_pairs(seed, entities=6, digits=0 if seed % 2 else 1)
    areas = []
    for order in itertools.permutations(range(6)):
        ranked = sorted(order, key=lambda i: -scores[i])  # stable: ties stay in the order of the permutation
        errors = itertools.accumulate(not correct[i] for i in ranked)
        areas.append(sum(wrong / n for n, wrong in enumerate(errors, 1)) / 6)
    assert aurc(scores, correct) == pytest.approx(sum(areas) / len(areas))


def test_aurc_of_the_best_the_worst_and_the_useless_score() -> None:
    correct = [True] * 6 + [False] * 4
    best, worst = aurc(np.linspace(1, 0, 10), correct), aurc(np.linspace(0, 1, 10), correct)
    useless = aurc([0.5] * 10, correct)
    assert best is not None and useless is not None and worst is not None
    assert best < useless < worst
    assert useless == pytest.approx(0.4)
    assert aurc([0.3, 0.4], [True, True]) == 0
    assert aurc([0.3, 0.4], [False, False]) == 1


def test_a_threshold_by_hand() -> None:
    point = threshold_for_precision(SCORES, CORRECT, 0.7)
    assert point == OperatingPoint(threshold=0.6, precision=0.75, recall_kept=1.0, coverage=0.8)
    assert threshold_for_precision(SCORES, CORRECT, 0.6) == OperatingPoint(0.0, 0.6, 1.0, 1.0)
    sure = threshold_for_precision(SCORES, CORRECT, 1.0)
    assert sure == OperatingPoint(threshold=0.95, precision=1.0, recall_kept=1 / 3, coverage=0.2)
    assert threshold_for_precision([0.9, 0.8], [False, True], 0.9) is None
    assert threshold_for_precision([], [], 0.5) is None


@pytest.mark.parametrize("precision", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_thresholds_equal_a_naive_loop(seed: int, precision: float) -> None:
    scores, correct = random_pairs(seed)
    expected = None
    for threshold in sorted({0.0, *scores}):
        kept = [c for s, c in zip(scores, correct, strict=True) if s >= threshold]
        if sum(kept) / len(kept) >= precision:
            expected = (threshold, sum(kept) / len(kept), sum(kept) / sum(correct), len(kept) / len(scores))
            break
    assert threshold_for_precision(scores, correct, precision) == (pytest.approx(expected) if expected else None)


def test_more_precision_costs_more_entities() -> None:
    scores, correct = random_pairs(9, entities=400)
    points = [threshold_for_precision(scores, correct, p) for p in np.linspace(0.05, 1, 20)]
    reached = list(itertools.takewhile(lambda point: point is not None, points))
    assert len(reached) > 10
    assert all(point is None for point in points[len(reached) :])
    for before, after in itertools.pairwise(reached):
        assert before is not None and after is not None
        assert before.threshold <= after.threshold
        assert before.recall_kept >= after.recall_kept


@pytest.mark.parametrize("precision", [0.0, -0.1, 1.1, 90.0, math.nan])
def test_impossible_precisions_are_refused(precision: float) -> None:
    with pytest.raises(ValueError, match="precision is"):
        threshold_for_precision(SCORES, CORRECT, precision)


@pytest.mark.parametrize("digits", [0, 1, 9])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_equals_the_count_over_all_pairs(seed: int, digits: int) -> None:
    rng = random.Random(seed)
    signal = [round(rng.gauss(0, 2), digits) for _ in range(50)]
    error = [rng.random() < 0.4 for _ in signal]
    wins = [
        1.0 if wrong > right else 0.5 if wrong == right else 0.0
        for wrong, e in zip(signal, error, strict=True)
        if e
        for right, other in zip(signal, error, strict=True)
        if not other
    ]
    area = auroc(signal, error)
    assert area == pytest.approx(sum(wins) / len(wins))
    assert auroc([-s for s in signal], error) == pytest.approx(1 - sum(wins) / len(wins))
    assert auroc([math.exp(s) for s in signal], error) == area


def test_auroc_by_hand() -> None:
    assert auroc([3, 2, 1, 0], [1, 1, 0, 0]) == 1
    assert auroc([0, 1, 2, 3], [1, 1, 0, 0]) == 0
    assert auroc([7, 7, 7], [True, False, False]) == 0.5
    assert auroc([2, 1, 1], [True, True, False]) == 0.75
    assert auroc([1, 2], [True, True]) is None
    assert auroc([1, 2], [False, False]) is None
    assert auroc([], []) is None


def test_what_no_entities_are_worth_is_undefined() -> None:
    assert reliability([], [], bins=2) == [Bin(0.0, 0.5, 0, None, None), Bin(0.5, 1.0, 0, None, None)]
    assert reliability([], [], binning="mass") == []
    for measure in (expected_calibration_error, brier, log_loss, aurc):
        assert measure([], []) is None
    assert [part.tolist() for part in risk_coverage([], [])] == [[], [], []]


@pytest.mark.parametrize("correct", [True, False])
def test_entities_of_one_kind(correct: bool) -> None:
    """All right or all wrong: everything but the AUROC is defined."""
    scores = [0.2, 0.7, 0.7]
    labels = [correct] * 3
    assert risk_coverage(scores, labels).risk.tolist() == [float(not correct)] * 2
    assert aurc(scores, labels) == float(not correct)
    assert auroc(scores, [not c for c in labels]) is None
    assert (threshold_for_precision(scores, labels, 0.5) is None) is not correct
    assert expected_calibration_error(scores, labels) == pytest.approx(
        (0.8 + 2 * 0.3) / 3 if correct else (0.2 + 2 * 0.7) / 3
    )


@pytest.mark.parametrize(
    "measure",
    [
        reliability,
        lambda s, c: reliability(s, c, 5, "mass"),
        expected_calibration_error,
        brier,
        log_loss,
        fit_score_temperature,
        risk_coverage,
        aurc,
        lambda s, c: threshold_for_precision(s, c, 0.7),
        auroc,
    ],
)
def test_order_does_not_matter_and_one_label_does(measure: Callable[[Any, Any], Any]) -> None:
    def flat(result: Any) -> list[Any]:
        if isinstance(result, (list, tuple, np.ndarray)):
            return [number for part in result for number in flat(part)]
        return [-1 if result is None else result]

    scores, correct = random_pairs(14, entities=120)
    order = random.Random(15).sample(range(120), 120)
    base = flat(measure(scores, correct))
    assert flat(measure([scores[i] for i in order], [correct[i] for i in order])) == pytest.approx(base)
    top = max(range(120), key=lambda i: scores[i] * correct[i])
    assert flat(measure(scores, [c and i != top for i, c in enumerate(correct)])) != pytest.approx(base)
    assert flat(measure(np.array(scores), np.array(correct, dtype=np.int64))) == base


@pytest.mark.parametrize(
    ("scores", "correct", "message"),
    [
        ([0.5, 1.2], [True, True], r"scores\[1\] is 1.2 \(expected a number in \[0, 1\]\)"),
        ([0.5, math.nan], [True, True], r"scores\[1\] is nan"),
        ([-0.1], [True], r"scores\[0\] is -0.1"),
        ([0.5], [True, False], r"correct has the shape \(2,\) for 1 scores"),
        ([[0.5]], [[True]], r"scores has the shape \(1, 1\)"),
        ([0.5, 0.5], [1, 2], r"correct\[1\] is 2 \(expected True or False\)"),
        ([0.5], [0.5], r"correct\[0\] is 0.5"),
    ],
)
def test_what_is_no_score_is_refused(scores: Any, correct: Any, message: str) -> None:
    for measure in (reliability, expected_calibration_error, brier, log_loss, risk_coverage, aurc):
        with pytest.raises(ValueError, match=message):
            measure(scores, correct)


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="bins is 0"):
        reliability(SCORES, CORRECT, bins=0)
    unknown: Any = "height"
    with pytest.raises(ValueError, match="no binning is called 'height'"):
        expected_calibration_error(SCORES, CORRECT, binning=unknown)
    with pytest.raises(ValueError, match=r"scores\[0\] is inf \(expected a finite number\)"):
        auroc([math.inf, 1.0], [True, False])
    with pytest.raises(ValueError, match="is_error has the shape"):
        auroc([1.0], [])
