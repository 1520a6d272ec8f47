"""Bootstrap over posts: confidence intervals for one system, and paired tests for two on the same posts.

A test set is a sample of all possible posts. The bootstrap (Efron, 1979; Efron and Tibshirani, 1993, chapter 13)
resamples the test set with replacement, as many posts as it has, thousands of times, and scores each sample. The
middle 95 % of these scores are the percentile interval. Two systems are compared on the same samples (Koehn, 2004;
Berg-Kirkpatrick, Burkett and Klein, 2012): posts that are hard tend to be hard for both, which cancels in the
difference. Posts are drawn instead of entities, because the entities of a post are not independent.

A score depends on a post only through its counts of gold, predicted and correct entities, so posts with the same
counts, the same *profile*, are interchangeable. How often each profile occurs in a draw of P posts is multinomial, so
profiles are drawn instead of posts. The distribution is the same at a hundredth of the cost, because a test set has
only a few dozen profiles. The draws are `rng.multinomial(P, posts_with_profile / P, size=resamples)`, profiles in
lexicographic order, from `numpy.random.default_rng(seed)`: the same seed gives the same interval, whatever the order
of the posts.

These intervals measure the choice of posts only. The variance over training seeds is separate (`mean_and_sd`). A
paired comparison of two systems with several seeds each, which would combine both sources of variance, is not
implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from hub_card.scores.scores import Scoring, TagSequences, read_entities

Score = Literal["f1", "precision", "recall"]

SCORES: tuple[Score, ...] = ("precision", "recall", "f1")

# Numbers per chunk of draws: 16 MiB, whatever the number of posts and resamples.
CHUNK = 2**21


class Interval(NamedTuple):
    """A percentile interval of a score, both ends fractions in [0, 1]."""

    low: float
    high: float


class Difference(NamedTuple):
    """The difference of two scores on the same posts, in fractions: positive where the first is better.

    Attributes:
        difference: the first system's score minus the second's, on the original posts.
        low: lower end of the percentile interval of the difference.
        high: its upper end.
        p_value: the probability of a difference at least this large, of either sign, from the choice of posts alone
            if both are equally good; two-sided, at least 1 / (resamples + 1).
    """

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Counts:
    """Entities per post, the sufficient statistic of micro precision, recall and F1.

    Attributes:
        gold: number of gold entities in every post, integers `(P,)`.
        predicted: number of predicted entities in every post, integers `(P,)`.
        correct: number that match in type and span, integers `(P,)`.

    Raises:
        ValueError: the arrays are not integers of the same shape `(P,)`, or a post has a negative count or more
            correct entities than gold or predicted ones; the message names the first such post.
    """

    gold: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray

    def __post_init__(self) -> None:
        for name in ("gold", "predicted", "correct"):
            array = np.asarray(getattr(self, name))
            if array.size and array.dtype.kind not in "iu":
                raise ValueError(f"counts.{name} holds {array.dtype} (expected integers)")
            object.__setattr__(self, name, array.astype(np.int64))
        shapes = [array.shape for array in (self.gold, self.predicted, self.correct)]
        if len(set(shapes)) > 1 or self.gold.ndim != 1:
            raise ValueError(f"gold, predicted, correct have the shapes {shapes} (expected (posts,) for all three)")
        wrong = (self.correct < 0) | (self.correct > self.gold) | (self.correct > self.predicted)
        if wrong.any():
            post = int(wrong.argmax())
            raise ValueError(
                f"post {post}: {self.correct[post]} correct of {self.gold[post]} gold and {self.predicted[post]}"
                " predicted entities (expected 0 ≤ correct ≤ gold, predicted)"
            )

    def __len__(self) -> int:
        return len(self.gold)


def post_counts(references: TagSequences, predictions: TagSequences, scoring: Scoring = "lenient") -> Counts:
    """Count the entities of every post, as `score_tags` reads them.

    Args:
        references: the gold tags of every post, for all of its words.
        predictions: the predicted tags of the same posts. A prediction may be shorter than its post, as in
            `score_views`: what the model never saw counts as missed.
        scoring: `"lenient"` or `"strict"`; strict is IOBES if an `E-` or `S-` tag occurs on either side, else IOB2.

    Returns:
        The counts of all posts, in order; their sums are the counts of `score_tags`.

    Raises:
        ValueError: the numbers of posts differ, or a prediction is longer than its post; the message names the post.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(predictions)} predicted posts for {len(references)} reference posts")
    for post, (gold, predicted) in enumerate(zip(references, predictions, strict=True)):
        if len(predicted) > len(gold):
            raise ValueError(f"post {post}: {len(predicted)} predicted tags for {len(gold)} words")
    bioes = any(tag.startswith(("E-", "S-")) for side in (references, predictions) for post in side for tag in post)
    found, given = read_entities(predictions, scoring, bioes), read_entities(references, scoring, bioes)
    return Counts(
        gold=np.array([len(post) for post in given], dtype=np.int64),
        predicted=np.array([len(post) for post in found], dtype=np.int64),
        correct=np.array([len(g & p) for g, p in zip(given, found, strict=True)], dtype=np.int64),
    )


def bootstrap_scores(
    counts: Counts, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[Score, Interval]:
    """Percentile intervals of micro precision, recall and F1, all three from the same draws.

    An undefined ratio is 0, in a draw as in a score. So a system that predicts nothing has the interval [0, 0], and so
    does an empty test set. With a single post, all draws are the same: the zero-width interval is not a sign of
    certainty.

    Args:
        counts: the counts of all posts.
        resamples: number of draws.
        seed: seed of the random numbers.
        level: fraction of the draws within the interval.

    Returns:
        `{"precision": …, "recall": …, "f1": …}`.

    Raises:
        ValueError: `resamples` is not positive, or `level` is not between 0 and 1.
    """
    _check(resamples, level)
    gold, predicted, correct = _draw_totals([counts.gold, counts.predicted, counts.correct], resamples, seed)
    return {score: _interval(_score(score, gold, predicted, correct), level) for score in SCORES}


def bootstrap_f1(counts: Counts, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile interval of micro F1; see `bootstrap_scores`."""
    return bootstrap_scores(counts, resamples, seed, level)["f1"]


def bootstrap_difference(
    first: Counts,
    second: Counts,
    score: Score = "f1",
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare two systems, or two views of one, on the same posts: both are scored on the same draws.

    The p-value shifts the draws to a mean difference of zero. It is the fraction of draws whose difference d* is at
    least as far from the measured d as zero is, |d* − d| ≥ |d|, counting the measurement itself as one more draw
    (Davison and Hinkley, 1997, section 4.2). Berg-Kirkpatrick et al. count d* ≥ 2d, one side of this. The interval and
    the p-value use opposite tails of the draws, so they can disagree in borderline cases.

    Args:
        first: the counts of one system.
        second: the counts of the other, post by post as in `first`.
        score: the score to compare: `"f1"`, `"precision"` or `"recall"`.
        resamples: number of draws.
        seed: seed of the random numbers.
        level: fraction of the draws within the interval.

    Returns:
        The difference first − second, its interval and p-value. Systems with the same counts have the difference 0,
        the interval [0, 0] and p = 1; so do two systems on an empty test set.

    Raises:
        ValueError: the gold counts differ, so the two were not measured on the same posts (the message names the first
            difference); `score` is unknown; `resamples` is not positive; or `level` is not between 0 and 1.
    """
    _check(resamples, level)
    if score not in SCORES:
        raise ValueError(f"no score is called {score!r} (expected {', '.join(SCORES)})")
    if len(first) != len(second):
        raise ValueError(f"{len(first)} posts against {len(second)}: only scores of the same posts can be compared")
    if (other := first.gold != second.gold).any():
        post = int(other.argmax())
        raise ValueError(
            f"post {post}: {first.gold[post]} gold entities against {second.gold[post]}: these are not the same posts"
            " in the same order, or not the same gold"
        )
    columns = [first.gold, first.predicted, first.correct, second.predicted, second.correct]
    measured = float(_paired(score, [column.sum(keepdims=True) for column in columns])[0])
    draws = _paired(score, _draw_totals(columns, resamples, seed))
    # Rounding must not decide whether a draw at exactly the same distance counts.
    as_far = int((np.abs(draws - measured) >= abs(measured) - 1e-12).sum())
    return Difference(measured, *_interval(draws, level), p_value=(as_far + 1) / (resamples + 1))


def _check(resamples: int, level: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples} (expected at least 1)")
    if not 0 < level < 1:
        raise ValueError(f"level is {level} (expected a share between 0 and 1, such as 0.95)")


def _draw_totals(columns: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """The sums of every column `(P,)` over the posts of every draw, integers `(columns, resamples)`."""
    posts = len(columns[0])
    if not posts:
        return np.zeros((len(columns), resamples), dtype=np.int64)
    profiles, posts_with = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)  # (K, columns), (K,)
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(profiles))
    chunks = [
        rng.multinomial(posts, posts_with / posts, size=min(rows, resamples - start)) @ profiles
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(chunks).T


def _paired(score: Score, totals: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    gold, predicted, correct, other_predicted, other_correct = totals
    return _score(score, gold, predicted, correct) - _score(score, gold, other_predicted, other_correct)


def _score(score: Score, gold: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    whole = {"precision": predicted, "recall": gold, "f1": (gold + predicted) / 2}[score]
    return np.divide(correct, whole, out=np.zeros(correct.shape), where=whole > 0)


def _interval(draws: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
