"""The image gate: its curve and its fit against every subset that a threshold can read."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hub_card.predictions.image_gate import (
    CURVE_POINTS,
    INTERVAL_POINTS,
    TOLERANCE,
    GatedPosts,
    fit_image_gate,
    gate_steps,
    image_gate_report,
    point_at,
)
from hub_card.scores.intervals import Counts, bootstrap_f1

# least confidence, has an image, gold, (predicted, correct) without the image and with it
Row = tuple[float, bool, int, tuple[int, int], tuple[int, int]]


def gated(rows: Sequence[Row]) -> GatedPosts:
    gold = np.array([row[2] for row in rows])
    alone, seen = (
        Counts(gold, np.array([row[side][0] for row in rows]), np.array([row[side][1] for row in rows]))
        for side in (3, 4)
    )
    return GatedPosts(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), alone, seen)


def some_rows(seed: int, posts: int, levels: int, bias: float = 0.0) -> list[Row]:
    """Random posts; with few `levels` many have the same least confidence, and some are completely sure."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for _ in range(posts):
        gold = rng.randint(0, 3)
        sides = []
        for help in (0.0, bias):
            correct = sum(rng.random() < 0.6 + help for _ in range(gold))
            sides.append((correct + rng.randint(0, 1), correct))
        rows.append((rng.randint(0, levels) / levels, rng.random() < 0.8, gold, sides[0], sides[1]))
    return rows


def f1_at(rows: Sequence[Row], threshold: float | None) -> tuple[int, float]:
    """Images read and F1 of a threshold, None reading all: as a pipeline would do it, post by post."""
    read = gold = predicted = correct = 0
    for unsure, has_image, of_gold, alone, seen in rows:
        is_read = has_image and (threshold is None or unsure > threshold)
        read, gold = read + is_read, gold + of_gold
        predicted, correct = predicted + (seen if is_read else alone)[0], correct + (seen if is_read else alone)[1]
    return read, 2 * correct / (gold + predicted) if correct else 0.0


@pytest.mark.parametrize("levels", [2, 7, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_every_subset_that_a_threshold_can_read_is_a_step(seed: int, levels: int) -> None:
    rows = some_rows(seed, 40, levels, bias=0.2)
    values = sorted({row[0] for row in rows if row[1]})
    expected = dict(f1_at(rows, threshold) for threshold in [*values, 0.0])
    expected |= dict([f1_at(rows, None)])
    steps = gate_steps(gated(rows))
    assert [step.images_read for step in steps] == sorted(expected)
    for step in steps:
        assert step.f1 == expected[step.images_read] == f1_at(rows, step.threshold)[1]
        assert f1_at(rows, step.threshold)[0] == step.images_read
    # A threshold is not at a value: the last bits of a least confidence do not decide.
    assert all(abs(step.threshold - value) > 1e-9 for step in steps[1:-1] if step.threshold for value in values)


@pytest.mark.parametrize("bias", [-0.2, 0.0, 0.3])
@pytest.mark.parametrize("levels", [2, 7, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_the_fit_reads_the_fewest_images_for_its_f1(seed: int, levels: int, bias: float) -> None:
    rows = some_rows(seed, 60, levels, bias)
    found = fit_image_gate(gated(rows))
    assert found is not None and 0 <= found <= 1
    every = f1_at(rows, None)[1]
    enough = [
        read
        for read, f1 in (f1_at(rows, threshold) for threshold in {1.0, 0.0, *(row[0] for row in rows)})
        if f1 >= every - TOLERANCE - 1e-12
    ]
    assert f1_at(rows, found)[0] == min(enough, default=f1_at(rows, 0.0)[0])


def test_a_gate_by_hand() -> None:
    better = ((1, 0), (1, 1))  # wrong without the image, right with it
    rows: list[Row] = [
        (0.9, True, 1, *better),
        (0.9, True, 1, *better),  # the same: read together
        (0.5, True, 1, (1, 1), (1, 1)),
        (0.1, True, 1, (1, 1), (1, 0)),  # the image misleads
        (0.95, False, 1, (1, 0), (1, 1)),  # no image: never read, whatever would come of it
    ]
    steps = gate_steps(gated(rows))
    assert [step.images_read for step in steps] == [0, 2, 3, 4]
    assert [step.threshold for step in steps] == pytest.approx([1.0, 0.7, 0.3, 0.0])
    assert [step.f1 for step in steps] == pytest.approx([0.4, 0.8, 0.8, 0.6])
    assert fit_image_gate(gated(rows)) == pytest.approx(0.7)
    report = image_gate_report(gated(rows), 0.7)
    assert report is not None
    assert (report["posts"], report["images"], report["is_worth_it"]) == (5, 4, True)
    assert [point["share"] for point in report["curve"]] == [0.0, 0.5, 0.75, 1.0]
    assert report["chosen"] == {**report["curve"][1], "threshold": 0.7}
    assert report["none"] == report["curve"][0] and report["all"] == report["curve"][-1]
    # Another split: the threshold decides, whatever it gives there.
    other = image_gate_report(gated(rows[2:]), 0.7)
    assert other is not None and other["chosen"]["share"] == 0 and other["chosen"]["f1"] == other["none"]["f1"]
    assert not other["is_worth_it"] and other["threshold"] == 0.7


def test_the_ends() -> None:
    right, wrong = (1, 1), (1, 0)
    # Worth nothing, or within the tolerance: no image is read.
    for seen in (right, wrong):
        assert fit_image_gate(gated([(0.5, True, 1, right, seen), (0.2, True, 1, right, right)])) == 1.0
    # The surest post needs its image: all are read.
    rows: list[Row] = [(0.5, True, 1, right, right), (1e-7, True, 1, wrong, right)]
    assert fit_image_gate(gated(rows)) == 0.0 and f1_at(rows, 0.0)[0] == 2
    # A completely sure post needs it: no threshold reads all, and the gate reads what it can.
    rows[1] = (0.0, True, 1, wrong, right)
    steps = gate_steps(gated(rows))
    assert [(step.images_read, step.threshold) for step in steps] == [(0, 1.0), (1, 0.25), (2, None)]
    assert fit_image_gate(gated(rows)) == 0.0
    report = image_gate_report(gated(rows), 0.0)
    assert report is not None and report["chosen"]["share"] == 0.5 and report["all"]["f1"] == 1.0
    assert report["chosen"]["f1"] == 0.5 and report["all"]["threshold"] is None
    # Neighbouring floats.
    low, high = 0.3, float(np.nextafter(0.3, 1))
    rows = [(high, True, 1, wrong, right), (low, True, 1, right, right)]
    assert f1_at(rows, fit_image_gate(gated(rows)))[0] == 1
    # A least confidence of exactly 1 is read only if something is.
    assert fit_image_gate(gated([(1.0, True, 1, right, right)])) == 1.0
    assert fit_image_gate(gated([(1.0, True, 1, wrong, right)])) == 0.0


@pytest.mark.parametrize("rows", [[], [(0.5, False, 1, (1, 0), (1, 1))]])
def test_without_images_there_is_no_gate(rows: list[Row]) -> None:
    posts = gated(rows)
    assert gate_steps(posts) == [] and fit_image_gate(posts) is None
    assert image_gate_report(posts, 0.5) is None
    assert image_gate_report(gated([(0.5, True, 1, (1, 0), (1, 1))]), None) is None


def test_a_curve_is_thinned_and_keeps_its_ends() -> None:
    rows = some_rows(1, 1_000, 10**9, bias=0.2)
    posts = gated(rows)
    threshold = fit_image_gate(posts)
    report = image_gate_report(posts, threshold)
    assert report is not None
    json.dumps(report, allow_nan=False)
    shares = [point["share"] for point in report["curve"]]
    assert len(shares) == CURVE_POINTS and shares == pytest.approx([n / 100 for n in range(101)], abs=1e-3)
    assert shares[0] == 0 and shares[-1] == 1
    measured = [point for point in report["curve"] if point["low"] is not None and point["high"] is not None]
    assert INTERVAL_POINTS <= len(measured) <= INTERVAL_POINTS + 1
    for point in [*measured, report["chosen"]]:
        assert f1_at(rows, point["threshold"])[1] == point["f1"]
        assert point["low"] < point["f1"] < point["high"]  # type: ignore[operator]
    assert (report["none"]["low"], report["none"]["high"]) == bootstrap_f1(posts.alone)
    is_read = posts.read_at(threshold or 0.0)
    assert (report["chosen"]["low"], report["chosen"]["high"]) == bootstrap_f1(posts.counts(is_read))
    assert report["chosen"]["share"] == is_read.sum() / posts.has_image.sum()
    assert point_at(report["curve"], 0.3)["share"] == pytest.approx(0.3, abs=1e-3)
    assert point_at(report["curve"], 0.32)["low"] is not None


def test_order_of_posts_is_irrelevant() -> None:
    rows = some_rows(3, 200, 50, bias=0.1)
    threshold = fit_image_gate(gated(rows))
    again = copy.copy(rows)
    random.Random(0).shuffle(again)
    assert fit_image_gate(gated(again)) == threshold
    assert image_gate_report(gated(again), threshold) == image_gate_report(gated(rows), threshold)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least_confidence": [0.5, float("nan")]}, "post 1: least confidence is nan"),
        ({"least_confidence": [-0.1, 0.5]}, "post 0: least confidence is -0.1"),
        ({"has_image": [True]}, r"have \[2, 1, 2, 2\] posts"),
        ({"seen": Counts(*np.array([[1, 2], [1, 1], [1, 1]]))}, "post 1 has other gold entities"),
    ],
)
def test_what_cannot_be_gated_is_refused(changes: dict[str, Any], message: str) -> None:
    counts = Counts(*np.ones((3, 2), dtype=np.int64))
    given = {"least_confidence": [0.5, 0.5], "has_image": [True, True], "alone": counts, "seen": counts}
    with pytest.raises(ValueError, match=message):
        GatedPosts(**{**given, **changes})
