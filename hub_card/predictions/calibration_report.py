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
    """The threshold that reaches a wanted precision, and what is kept with it; None where nothing reaches it."""

    precision: float
    threshold: float | None
    recall_kept: float | None
    coverage: float | None


class ViewCalibration(TypedDict):
    """What the scores of one view are worth; lists of two are [before, after] the temperature."""

    entities: int
    ece: list[float | None]
    brier: list[float | None]
    reliability: list[list[dict[str, Any]]]
    risk_coverage: dict[str, list[float]]
    aurc: float | None
    operating_points: list[PrecisionPoint]


class Calibration(TypedDict):
    """What the scores of a split are worth, as `calibration_report` gives it; no temperature where it is not known."""

    temperature: float | None
    views: dict[str, ViewCalibration]
    disagreement: dict[str, Any]


def calibration_report(
    before: Sequence[EvaluatedPost], after: Sequence[EvaluatedPost], temperature: float
) -> Calibration:
    """What the entity scores of a split are worth, before and after the temperature.

    A temperature changes no prediction, only the scores: both hold the same posts, in the same order, with the same
    gold and predicted entities. The order of the posts makes no difference but for rounding.

    Args:
        before: the posts with the scores at temperature 1.
        after: the posts with the scores at the fitted temperature, the ones that users get.
        temperature: the fitted temperature.

    Returns:
        Plain JSON values, None where something is undefined, for no entities for instance:

        - `temperature`;
        - `views`: for each view, `entities`, their number; `ece`, `brier` and `reliability` (ten bins of equal width,
          each a dictionary of `low`, `high`, `entities`, `score`, `accuracy`), each as [before, after]; and, of the
          scores after the temperature, the curve `risk_coverage`, its area `aurc`, and `operating_points`, a
          threshold for each of `PRECISIONS`. The thresholds are chosen on these very posts: take them from valid;
        - `disagreement`: `auroc`, how well the text alone finds the errors of the view I+T. An entity that I+T
          predicts is suspect by 1 − its score in the view T after the temperature, by 1 where T does not predict it,
          and an error if it is not in the gold; `entities` is their number, 0 if the posts lack one of the views.

    Raises:
        ValueError: `temperature` is not positive and finite, the posts do not pair up, or not all of them hold the
            same views; the post is named.
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
    """The scores of all entities that the view predicts, and whether they are in the gold."""
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
    """At most `CURVE_POINTS` of the points, the first and the last among them."""
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
