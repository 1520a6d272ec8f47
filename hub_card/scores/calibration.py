"""How far entity scores can be trusted: calibration, temperature scaling and selective prediction.

Everything here is a function of the predicted entities of a split: `scores`, numbers in [0, 1] of shape `(E,)`, each
the model's posterior probability of a span and its type, and `correct`, booleans `(E,)`, whether the entity is in the
gold. Missed entities have no score and are not counted here. Up to rounding, results do not depend on the order of the
entities, even with ties. Undefined results, such as the calibration of no entities, are `None`: 0 would read as
perfect.

- **Calibration** asks whether a fraction p of the entities with score p is correct: `reliability`,
  `expected_calibration_error` (Naeini et al., 2015; Guo et al., 2017), `brier` (Brier, 1950), `log_loss`.
- **Temperature scaling** improves it (Guo et al., 2017, section 4.2). A model temperature divides the CRF's emissions
  and transitions, and all posteriors are recomputed: `fit_temperature` finds it for any negative log-likelihood. A
  score temperature needs no model: `fit_score_temperature`, `scale_scores`. Fit either on the validation split.
- **Selection** keeps the entities with a score of at least some threshold: `risk_coverage` and `aurc` (Geifman and
  El-Yaniv, 2017), `threshold_for_precision`. `auroc` measures how well any number predicts errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Binning = Literal["width", "mass"]

# Single-precision scores reach 0 and 1, where the logit is infinite; this is about float32's last step below 1.
CLIP = 1e-7


class Bin(NamedTuple):
    """The entities whose scores are in (low, high]; the first bin includes its lower end.

    Attributes:
        low: lower end.
        high: upper end.
        entities: number of entities.
        score: mean score, `None` in an empty bin.
        accuracy: fraction of correct entities, `None` in an empty bin.
    """

    low: float
    high: float
    entities: int
    score: float | None
    accuracy: float | None


class RiskCoverage(NamedTuple):
    """Coverage and risk at every distinct score, from the highest to the lowest; arrays `(D,)`.

    Attributes:
        coverage: fraction of entities kept, rising to 1.
        risk: fraction of the kept entities that are wrong: 1 − precision.
        threshold: the lowest score that is kept; entities with equal scores are kept together.
    """

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray


class OperatingPoint(NamedTuple):
    """What a threshold keeps.

    Attributes:
        threshold: entities with at least this score are kept; 0 keeps all.
        precision: fraction of the kept entities that are correct.
        recall_kept: fraction of the correct entities that are kept. Multiply by the recall of the whole output to get
            the recall at this threshold.
        coverage: fraction of all entities that are kept.
    """

    threshold: float
    precision: float
    recall_kept: float
    coverage: float


def reliability(scores: ArrayLike, correct: ArrayLike, bins: int = 10, binning: Binning = "width") -> list[Bin]:
    """The reliability table: mean score and accuracy of the entities, bin by bin.

    Args:
        scores: the scores, `(E,)`.
        correct: whether the gold has the entity, `(E,)`.
        bins: number of bins.
        binning: `"width"`: bins of equal width, empty ones included. `"mass"`: bins with about equally many
            entities; equal scores share a bin, so there may be fewer bins than requested, and none is empty.

    Returns:
        Contiguous bins from 0 to 1. With `"mass"` and no entities, an empty result.

    Raises:
        ValueError: `bins` is not positive, `binning` is unknown, or the arrays are invalid (see `brier`).
    """
    if bins < 1:
        raise ValueError(f"bins is {bins} (expected at least 1)")
    if binning not in ("width", "mass"):
        raise ValueError(f"no binning is called {binning!r} (expected width, mass)")
    scores, correct = _pairs(scores, correct)
    if binning == "mass" and not len(scores):
        return []
    inner = np.arange(1, bins) / bins
    if binning == "mass":
        last = -(-len(scores) * np.arange(1, bins) // bins) - 1  # index of the last entity of each bin but the last
        inner = np.unique(np.sort(scores)[last])
        inner = inner[inner < scores.max()]  # a bin above the maximum would be empty
    place = np.searchsorted(inner, scores)  # inner[place - 1] < score ≤ inner[place]
    counts = np.bincount(place, minlength=len(inner) + 1)
    score_sums = np.bincount(place, scores, minlength=len(inner) + 1)
    correct_sums = np.bincount(place, correct, minlength=len(inner) + 1)
    lows, highs = [0.0, *inner.tolist()], [*inner.tolist(), 1.0]
    return [
        Bin(low, high, int(n), float(total / n) if n else None, float(right / n) if n else None)
        for low, high, n, total, right in zip(lows, highs, counts, score_sums, correct_sums, strict=True)
    ]


def expected_calibration_error(
    scores: ArrayLike, correct: ArrayLike, bins: int = 10, binning: Binning = "width"
) -> float | None:
    """Mean distance between score and accuracy over the bins of `reliability`, weighted by the entities in each.

    This is the ECE of equation 3 in Guo et al. (2017). It depends on the bins, so report them with it. Returns a
    fraction, or `None` for no entities; arguments and errors are those of `reliability`.
    """
    table = reliability(scores, correct, bins, binning)
    filled = [(n, score, accuracy) for _, _, n, score, accuracy in table if score is not None and accuracy is not None]
    if not filled:
        return None
    return sum(n * abs(score - accuracy) for n, score, accuracy in filled) / sum(n for n, _, _ in filled)


def brier(scores: ArrayLike, correct: ArrayLike) -> float | None:
    """Mean squared distance of the scores from 1 for correct entities, from 0 for wrong ones (Brier, 1950).

    Args:
        scores: the scores, `(E,)`.
        correct: whether the gold has the entity, booleans or 0 and 1, `(E,)`.

    Returns:
        A number in [0, 1], or `None` for no entities.

    Raises:
        ValueError: the arrays do not both have the shape `(E,)`, a score is outside [0, 1], or `correct` holds
            values other than 0 and 1; the message names the first such entity.
    """
    scores, correct = _pairs(scores, correct)
    return float(np.mean((scores - correct) ** 2)) if len(scores) else None


def log_loss(scores: ArrayLike, correct: ArrayLike) -> float | None:
    """Mean negative log-likelihood of the entities being correct or wrong, in nats.

    Scores are clipped to `CLIP` away from 0 and 1, so that a wrong entity with score 1 costs about 16 nats instead of
    infinitely many. Returns `None` for no entities; errors are those of `brier`.
    """
    scores, correct = _pairs(scores, correct)
    if not len(scores):
        return None
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    return float(-np.mean(np.where(correct, np.log(clipped), np.log1p(-clipped))))


def fit_temperature(
    nll: Callable[[float], float], low: float = 0.25, high: float = 8.0, tolerance: float = 1e-3
) -> float:
    """The temperature with the smallest negative log-likelihood.

    The negative log-likelihood of a log-linear model, a softmax or a CRF, is convex in 1 / T. It thus has a
    single minimum, which golden-section search on log T (Kiefer, 1953) finds. T = 1 and both ends are tried too, so
    the result is never worse than no temperature, is 1 where the temperature makes no difference, and is exactly
    `low` or `high` where the minimum lies outside.

    Args:
        nll: the negative log-likelihood of the validation split at a temperature, up to a constant and a factor. It
            is called about 20 times, never twice at the same temperature.
        low: the smallest temperature to try.
        high: the largest temperature to try.
        tolerance: relative precision of the result.

    Returns:
        The temperature.

    Raises:
        ValueError: not 0 < low < high, `tolerance` is not positive, or `nll` returned a number that is not finite;
            the message names the temperature.
    """
    if not 0 < low < high < math.inf or not tolerance > 0:
        raise ValueError(f"low is {low}, high {high}, tolerance {tolerance} (expected 0 < low < high, 0 < tolerance)")
    tried: dict[float, float] = {}

    def value(temperature: float) -> float:
        if temperature not in tried:
            tried[temperature] = float(nll(temperature))
            if not math.isfinite(tried[temperature]):
                raise ValueError(f"the NLL at temperature {temperature:g} is {tried[temperature]} (expected a number)")
        return tried[temperature]

    for temperature in (min(max(1.0, low), high), low, high):
        value(temperature)
    golden = (math.sqrt(5) - 1) / 2
    left, right = math.log(low), math.log(high)
    lower, upper = right - golden * (right - left), left + golden * (right - left)
    while right - left > tolerance:
        if value(math.exp(lower)) <= value(math.exp(upper)):
            right, upper = upper, lower
            lower = right - golden * (right - left)
        else:
            left, lower = lower, upper
            upper = left + golden * (right - left)
    return min(tried, key=tried.__getitem__)  # ties: the first one tried


def scale_scores(scores: ArrayLike, temperature: float) -> np.ndarray:
    """Scale scores by a temperature: sigmoid(logit(p) / T), which is Platt scaling with a slope and no offset.

    T > 1 moves scores towards ½, T < 1 away from it. Their order does not change, nor does any score cross ½. This is
    not the model's posterior at that temperature, which takes a new forward–backward pass.

    Args:
        scores: the scores, `(E,)`; clipped to `CLIP` away from 0 and 1, where the logit is infinite.
        temperature: T, positive.

    Returns:
        The scaled scores, double precision `(E,)`.

    Raises:
        ValueError: `temperature` is not positive and finite, or `scores` is invalid (see `brier`).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature} (expected a positive number)")
    clipped = np.clip(_numbers(scores, "scores", unit=True), CLIP, 1 - CLIP)
    logits = np.log(clipped) - np.log1p(-clipped)
    return np.exp(-np.logaddexp(0.0, -logits / temperature))


def fit_score_temperature(scores: ArrayLike, correct: ArrayLike, low: float = 0.25, high: float = 8.0) -> float:
    """Find the temperature in [low, high] for `scale_scores` with the smallest `log_loss`.

    Args:
        scores: the scores of the validation split, `(E,)`.
        correct: whether the gold has the entity, `(E,)`.
        low: the smallest temperature to try.
        high: the largest temperature to try.

    Returns:
        The temperature. It is exactly `low` or `high` if the minimum lies outside; for instance `low` if all scores
        are on the right side of ½.

    Raises:
        ValueError: there are no entities, the arrays are invalid (see `brier`), or not 0 < low < high.
    """
    scores, correct = _pairs(scores, correct)
    if not len(scores):
        raise ValueError("a temperature cannot be fitted on no entities (expected some predicted on valid)")
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    margins = (np.log(clipped) - np.log1p(-clipped)) * np.where(correct, 1.0, -1.0)
    return fit_temperature(lambda t: float(np.logaddexp(0.0, -margins / t).mean()), low, high, tolerance=1e-6)


def risk_coverage(scores: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """The risk–coverage curve: the error rate of the entities that remain as a threshold drops the least certain.

    Args:
        scores: the scores, `(E,)`.
        correct: whether the gold has the entity, `(E,)`.

    Returns:
        A point for each of the D distinct scores; none if there are no entities.

    Raises:
        ValueError: the arrays are invalid (see `brier`).
    """
    scores, correct = _pairs(scores, correct)
    threshold, kept, right = _kept(scores, correct)
    return RiskCoverage(coverage=kept / max(len(scores), 1), risk=1 - right / kept, threshold=threshold)


def aurc(scores: ArrayLike, correct: ArrayLike) -> float | None:
    """Area under the risk–coverage curve: the mean risk of the best 1, 2, … E entities (Geifman and El-Yaniv, 2017).

    Lower is better; uninformative scores give the overall error rate. Entities with equal scores count as randomly
    ordered, and the result is the mean over all orders. Returns `None` for no entities; errors are those of `brier`.
    """
    scores, correct = _pairs(scores, correct)
    if not len(scores):
        return None
    _, kept, right = _kept(scores, correct)
    best = np.arange(1, len(scores) + 1)
    # Averaged over its orders, a tie's errors are spread evenly: interpolate between its ends.
    errors = np.interp(best, [0, *kept], [0, *(kept - right)])
    return float(np.mean(errors / best))


def threshold_for_precision(scores: ArrayLike, correct: ArrayLike, precision: float) -> OperatingPoint | None:
    """Find the smallest threshold at which the kept entities reach a target precision.

    Precision does not always rise with the threshold; this threshold keeps the most entities. The choice uses
    `correct`, so make it on the validation split, and expect slightly lower precision on other posts.

    Args:
        scores: the scores, `(E,)`.
        correct: whether the gold has the entity, `(E,)`.
        precision: the target precision, a fraction in (0, 1].

    Returns:
        The threshold and what it keeps, or `None` if no threshold reaches the precision. The threshold is 0 if all
        entities together are precise enough, otherwise one of the scores.

    Raises:
        ValueError: `precision` is not in (0, 1], or the arrays are invalid (see `brier`).
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision is {precision} (expected a fraction above 0, at most 1)")
    scores, correct = _pairs(scores, correct)
    threshold, kept, right = _kept(scores, correct)
    enough = np.flatnonzero(right / kept >= precision)
    if not len(enough):
        return None
    i = enough[-1]
    return OperatingPoint(
        threshold=float(threshold[i]) if kept[i] < len(scores) else 0.0,
        precision=float(right[i] / kept[i]),
        recall_kept=float(right[i] / right[-1]),
        coverage=float(kept[i] / len(scores)),
    )


def auroc(scores: ArrayLike, is_error: ArrayLike) -> float | None:
    """How well a number predicts errors: the probability that it is higher for an error than for a correct entity.

    This is the area under the ROC curve as a rank statistic (Mann and Whitney, 1947; Hanley and McNeil, 1982); a tie
    counts ½. A result of ½ is chance; 1 ranks all errors above everything else. Pass an entity's score p as 1 − p.

    Args:
        scores: any finite numbers, higher where an error is expected, `(E,)`.
        is_error: whether the entity is an error, booleans or 0 and 1, `(E,)`.

    Returns:
        A fraction, or `None` if there are no errors or only errors.

    Raises:
        ValueError: the shapes differ, a score is not finite, or `is_error` holds values other than 0 and 1.
    """
    numbers = _numbers(scores, "scores", unit=False)
    error = _booleans(is_error, "is_error", len(numbers))
    errors, others = int(error.sum()), int((~error).sum())
    if not errors or not others:
        return None
    _, place, ties = np.unique(numbers, return_inverse=True, return_counts=True)
    middle_ranks = np.cumsum(ties) - (ties - 1) / 2  # from 1; equal numbers share their mean rank
    successes = middle_ranks[place][error].sum() - errors * (errors + 1) / 2
    return float(successes / (errors * others))


def _kept(scores: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct score, highest first; the number of entities with at least that score; how many are correct."""
    values, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    right = np.bincount(place, correct, minlength=len(values))
    return values[::-1], np.cumsum(ties[::-1]), np.cumsum(right[::-1])


def _pairs(scores: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    numbers = _numbers(scores, "scores", unit=True)
    return numbers, _booleans(correct, "correct", len(numbers))


def _numbers(values: ArrayLike, name: str, unit: bool) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"{name} has the shape {numbers.shape} (expected (entities,))")
    good = (numbers >= 0) & (numbers <= 1) if unit else np.isfinite(numbers)
    if not good.all():
        i = int(good.argmin())
        wanted = "number in [0, 1]" if unit else "finite number"
        raise ValueError(f"{name}[{i}] is {float(numbers[i])} (expected a {wanted})")
    return numbers


def _booleans(values: ArrayLike, name: str, entities: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (entities,):
        raise ValueError(f"{name} has the shape {array.shape} for {entities} scores (expected ({entities},))")
    good = (array == 0) | (array == 1)
    if not good.all():
        i = int(good.argmin())
        raise ValueError(f"{name}[{i}] is {array[i]} (expected True or False)")
    return array.astype(bool)
