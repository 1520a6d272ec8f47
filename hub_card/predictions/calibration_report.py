"""The calibration of a split's posts, view by view, as `report.json` stores it: before and after the temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

from hub_card.scores.calibration import (
    aurc,
    auroc,
    brier,
    expected_calibration_error,
    reliability,
    risk_coverage,
    threshold_for_precision,
)
from hub_card.scores.errors import EvaluatedPost

# The precisions for which the report offers a threshold.
PRECISIONS = (0.8, 0.9, 0.95)
CURVE_POINTS = 200


class PrecisionPoint(TypedDict):
    """The threshold that reaches a target precision, and what it keeps; None if no threshold reaches it."""

    precision: float
    threshold: float | None
    recall_kept: float | None
    coverage: float | None


class ViewCalibration(TypedDict):
    """The calibration of one view; lists of two are [before, after] temperature scaling."""

    entities: int
    ece: list[float | None]
    brier: list[float | None]
    reliability: list[list[dict[str, Any]]]
    risk_coverage: dict[str, list[float]]
    aurc: float | None
    operating_points: list[PrecisionPoint]


class Calibration(TypedDict):
    """The calibration of a split, as returned by `calibration_report`; the temperature is absent if unknown."""

    temperature: float | None
    views: dict[str, ViewCalibration]
    disagreement: dict[str, Any]


def calibration_report(
    before: Sequence[EvaluatedPost], after: Sequence[EvaluatedPost], temperature: float
) -> Calibration:
    """Measure the calibration of a split's entity scores, before and after temperature scaling.

    A temperature changes only scores, not predictions: `before` and `after` must hold the same posts, in the same
    order, with the same gold and predicted entities. Up to rounding, the order of the posts does not matter.

    Args:
        before: the posts with the scores at temperature 1.
        after: the posts with the scores at the fitted temperature, which users see.
        temperature: the fitted temperature.

    Returns:
        Plain JSON values; None for what is undefined, for instance without entities:

        - `temperature`;
        - `views`: for each view, `entities`, their number; `ece`, `brier` and `reliability` (ten bins of equal width,
          each a dictionary of `low`, `high`, `entities`, `score`, `accuracy`), each as [before, after]; and, for the
          scores after temperature scaling, the curve `risk_coverage`, its area `aurc`, and `operating_points`, a
          threshold for each of `PRECISIONS`. The thresholds are chosen on these same posts: use those of valid;
        - `disagreement`: `auroc`, how well the text alone finds the errors of the view I+T. An entity that I+T
          predicts gets the value 1 − its score in the view T after temperature scaling, or 1 if T does not predict it.
          It is an error if it is not in the gold. `entities` is their number, 0 if the posts lack one of the views.

    Raises:
        ValueError: `temperature` is not positive and finite, the posts do not pair up, or do not all have
            the same views; the message names the post.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature} (expected a positive number)")
    _check(before, after)
    views = list(after[0].views) if after else []
    return {
        "temperature": float(temperature),
        "views": {view: _view(before, after, view) for view in views},
        "disagreement": _disagreement(after if {"T", "I+T"} <= set(views) else []),
    }


def _check(before: Sequence[EvaluatedPost], after: Sequence[EvaluatedPost]) -> None:
    if len(before) != len(after):
        raise ValueError(f"{len(after)} posts after the temperature for {len(before)} posts before it")
    for first, second in zip(before, after, strict=True):
        if first.id != second.id:
            raise ValueError(f"post {second.id!r} after the temperature stands where {first.id!r} stood before it")
        if first.gold != second.gold:
            raise ValueError(f"post {first.id!r} has other gold entities after the temperature than before it")
        for post in (first, second):
            if post.views.keys() != before[0].views.keys():
                raise ValueError(
                    f"post {post.id!r} has the views {sorted(post.views)} (expected {sorted(before[0].views)}, "
                    f"as in post {before[0].id!r})"
                )
        for view in first.views:
            changed = first.views[view].keys() ^ second.views[view].keys()
            if changed:
                raise ValueError(
                    f"post {first.id!r}, view {view!r}: {min(changed)} is predicted only before or only after the "
                    "temperature (expected the same entities with other scores)"
                )


def _scored(posts: Sequence[EvaluatedPost], view: str) -> tuple[list[float], list[bool]]:
    """The scores of all entities that the view predicts, and whether each is in the gold."""
    entities = [(score, span in post.gold) for post in posts for span, score in post.views[view].items()]
    return [score for score, _ in entities], [correct for _, correct in entities]


def _view(before: Sequence[EvaluatedPost], after: Sequence[EvaluatedPost], view: str) -> ViewCalibration:
    both = [_scored(before, view), _scored(after, view)]
    scores, correct = both[1]
    curve = risk_coverage(scores, correct)
    return {
        "entities": len(scores),
        "ece": [expected_calibration_error(*pairs) for pairs in both],
        "brier": [brier(*pairs) for pairs in both],
        "reliability": [[row._asdict() for row in reliability(*pairs)] for pairs in both],
        "risk_coverage": {"coverage": _thinned(curve.coverage.tolist()), "risk": _thinned(curve.risk.tolist())},
        "aurc": aurc(scores, correct),
        "operating_points": [_operating_point(scores, correct, precision) for precision in PRECISIONS],
    }


def _thinned(points: list[float]) -> list[float]:
    """At most `CURVE_POINTS` of the points, including the first and the last."""
    if len(points) <= CURVE_POINTS:
        return points
    return [points[round(n * (len(points) - 1) / (CURVE_POINTS - 1))] for n in range(CURVE_POINTS)]


def _operating_point(scores: Sequence[float], correct: Sequence[bool], precision: float) -> PrecisionPoint:
    point = threshold_for_precision(scores, correct, precision)
    return {
        "precision": precision,
        "threshold": point.threshold if point else None,
        "recall_kept": point.recall_kept if point else None,
        "coverage": point.coverage if point else None,
    }


def _disagreement(posts: Sequence[EvaluatedPost]) -> dict[str, Any]:
    entities = [
        (1 - post.views["T"].get(span, 0.0), span not in post.gold) for post in posts for span in post.views["I+T"]
    ]
    return {
        "auroc": auroc([signal for signal, _ in entities], [error for _, error in entities]),
        "entities": len(entities),
    }
