"""The image gate: how many images must be read, from the posts of a split that was labelled with and without them.

Reading images is what costs. A gated pipeline labels every post alone, and reads its image only if the textual view
is unsure of its answer: if the least confidence, one minus the exact posterior of the best tag sequence, exceeds a
threshold. The curve of a split is the F1 of all its posts against the share of images read, the most unsure first.

Posts without an image or context are always labelled alone and do not count in the share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np

from hub_card.scores.intervals import Counts, bootstrap_f1

TOLERANCE = 0.003  # how much F1 the gate may give up compared with reading all images
CURVE_POINTS = 101
INTERVAL_POINTS = 21
READS_NONE = 1.0  # no least confidence exceeds it
READS_MOST = 0.0  # every one exceeds it, except those of exactly 0
_ROUNDING = 1e-12


class GatePoint(TypedDict):
    """A point of the curve.

    Attributes:
        share: the share of images read, of all posts that have one.
        threshold: images of posts whose least confidence exceeds it are read. None: no threshold reads all of them,
            because the textual view is completely sure of a post; `read_images="always"` does.
        f1: lenient F1 of all posts.
        low: the lower end of its 95 % interval over posts; None if it was not computed, as for most points of a curve.
        high: the upper end.
    """

    share: float
    threshold: float | None
    f1: float
    low: float | None
    high: float | None


class ImageGate(TypedDict):
    """What reading images is worth on a split, and what the gate makes of it.

    Attributes:
        posts: number of posts.
        images: number of posts with an image or a context, of which the shares are.
        threshold: the fitted threshold, `image_gate` in the configuration.
        is_worth_it: whether F1 with all images exceeds F1 with none.
        none: no image read.
        chosen: what the fitted threshold reads. On the split that it was fitted on, the share is the smallest whose
            F1 is at most `TOLERANCE` below that of reading all.
        all: all images read.
        curve: at most `CURVE_POINTS` points from none to all, in the order of the share.
    """

    posts: int
    images: int
    threshold: float
    is_worth_it: bool
    none: GatePoint
    chosen: GatePoint
    all: GatePoint
    curve: list[GatePoint]


@dataclass(frozen=True, eq=False)
class GatedPosts:
    """The posts of a split, as the gate sees them.

    Attributes:
        least_confidence: how unsure the textual view is of every post, in [0, 1], `(P,)`.
        has_image: whether a post has something to read, an image or a context, `(P,)`.
        alone: the entities of every post in the textual view (T).
        seen: those of the view with the image (I+T).

    Raises:
        ValueError: the numbers of posts or their gold entities differ, or a least confidence is not a probability; the
            message names the post.
    """

    least_confidence: np.ndarray
    has_image: np.ndarray
    alone: Counts
    seen: Counts

    def __post_init__(self) -> None:
        object.__setattr__(self, "least_confidence", np.asarray(self.least_confidence, dtype=float))
        object.__setattr__(self, "has_image", np.asarray(self.has_image, dtype=bool))
        sizes = [len(part) for part in (self.least_confidence, self.has_image, self.alone, self.seen)]
        if len(set(sizes)) > 1:
            raise ValueError(f"least_confidence, has_image, alone, seen have {sizes} posts (expected the same number)")
        if (wrong := ~((self.least_confidence >= 0) & (self.least_confidence <= 1))).any():
            post = int(wrong.argmax())
            raise ValueError(f"post {post}: least confidence is {self.least_confidence[post]} (expected 0 to 1)")
        if (other := self.alone.gold != self.seen.gold).any():
            raise ValueError(f"post {int(other.argmax())} has other gold entities with its image than without")

    def __len__(self) -> int:
        return len(self.alone)

    def read_at(self, threshold: float) -> np.ndarray:
        """Whether each image is read at a threshold, `(P,)`."""
        return self.has_image & (self.least_confidence > threshold)

    def counts(self, is_read: np.ndarray) -> Counts:
        """The entities of every post if these images are read."""
        return Counts(
            gold=self.alone.gold,
            predicted=np.where(is_read, self.seen.predicted, self.alone.predicted),
            correct=np.where(is_read, self.seen.correct, self.alone.correct),
        )


class GateStep(NamedTuple):
    """One of the answers that a split's gate can give: the number of images read, the threshold, and the F1."""

    images_read: int
    threshold: float | None
    f1: float


def gate_steps(posts: GatedPosts) -> list[GateStep]:
    """Every distinct choice of images that a threshold can make, from none to all.

    Posts with the same least confidence are read together. A threshold lies halfway between the least confidence of
    the last post that is read and of the first that is not: labelled in another batch, a post's may differ in the
    last bits.

    Returns:
        The steps, in the order of the number of images read; empty if no post has an image. If the textual view is
        completely sure of a post with an image, no threshold reads all: that of the last step is None.
    """
    values, group = np.unique(posts.least_confidence[posts.has_image], return_inverse=True)  # ascending
    if not len(values):
        return []

    def read_after(change: np.ndarray) -> list[int]:
        """The sums over the images read, for every step."""
        return [0, *np.bincount(group, change[posts.has_image], len(values))[::-1].cumsum().astype(int).tolist()]

    images = read_after(np.ones(len(posts)))
    predicted = read_after(posts.seen.predicted - posts.alone.predicted)
    correct = read_after(posts.seen.correct - posts.alone.correct)
    gold = int(posts.alone.gold.sum())
    alone = int(posts.alone.predicted.sum()), int(posts.alone.correct.sum())
    most = READS_MOST if values[0] > 0 else None
    between = [_halfway(*pair) for pair in zip(values[:-1].tolist(), values[1:].tolist(), strict=True)]
    return [
        GateStep(read, threshold, _f1(gold, alone[0] + more, alone[1] + right))
        for read, threshold, more, right in zip(
            images, [READS_NONE, *between[::-1], most], predicted, correct, strict=True
        )
    ]


def fit_image_gate(posts: GatedPosts) -> float | None:
    """The threshold that reads the fewest images whose F1 is at most `TOLERANCE` below that of reading all.

    Args:
        posts: posts that the model was not trained on.

    Returns:
        The threshold: 1 if no image needs to be read, 0 if all do. None if no post has an image.
    """
    steps = gate_steps(posts)
    if not steps:
        return None
    enough = steps[-1].f1 - TOLERANCE - _ROUNDING
    reachable = (step.threshold for step in steps if step.threshold is not None and step.f1 >= enough)
    return next(reachable, READS_MOST)


def image_gate_report(posts: GatedPosts, threshold: float | None) -> ImageGate | None:
    """The curve of a split, and what a threshold makes of it, as `report.json` stores it.

    Args:
        posts: the posts of the split.
        threshold: the threshold that `fit_image_gate` found on the validation split.

    Returns:
        Plain JSON values; None without a threshold, or if no post of the split has an image.
    """
    steps = gate_steps(posts)
    if threshold is None or not steps:
        return None
    images = steps[-1].images_read
    shares = np.array([step.images_read / images for step in steps])
    drawn, measured = _spread(shares, CURVE_POINTS), set(_spread(shares, INTERVAL_POINTS))
    chosen = int(posts.read_at(threshold).sum())
    at = next(number for number, step in enumerate(steps) if step.images_read == chosen)
    measured.add(at)
    points = {number: _point(posts, steps[number], images, number in measured) for number in {*drawn, at}}
    return {
        "posts": len(posts),
        "images": images,
        "threshold": threshold,
        "is_worth_it": steps[-1].f1 > steps[0].f1,
        "none": points[0],
        "chosen": {**points[at], "threshold": threshold},
        "all": points[len(steps) - 1],
        "curve": [points[number] for number in drawn],
    }


def point_at(curve: Sequence[GatePoint], share: float) -> GatePoint:
    """The point of a curve whose share is nearest, among those with an interval if there are any."""
    measured = [point for point in curve if point["low"] is not None]
    return min(measured or curve, key=lambda point: abs(point["share"] - share))


def _halfway(low: float, high: float) -> float:
    middle = (low + high) / 2
    return middle if middle < high else low  # neighbouring floats have nothing between them


def _f1(gold: int, predicted: int, correct: int) -> float:
    return 2 * correct / (gold + predicted) if correct else 0.0


def _spread(shares: np.ndarray, most: int) -> list[int]:
    """At most this many of the steps, spread evenly over the shares; includes the first and the last."""
    nearest = {int(np.abs(shares - n / (most - 1)).argmin()) for n in range(most)}
    return sorted(nearest)


def _point(posts: GatedPosts, step: GateStep, images: int, with_interval: bool) -> GatePoint:
    low = high = None
    if with_interval:
        threshold = -math.inf if step.threshold is None else step.threshold
        low, high = bootstrap_f1(posts.counts(posts.read_at(threshold)))
    return {
        "share": step.images_read / images,
        "threshold": step.threshold,
        "f1": step.f1,
        "low": low,
        "high": high,
    }
