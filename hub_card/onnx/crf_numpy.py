"""The linear-chain CRF's decoding and posteriors in numpy, for models that run without torch's kernels.

Its results match `modeling_ita.LinearChainCRF`, whose module explains the border tag: a (C + 1)-th tag that stands for
everything outside a post and fills the padding, so that every row is a chain of the same length. D is C + 1
throughout. Messages are float64 logarithms, accurate for any scores. Viterbi takes the same steps in the same dtype as
the original, so that ties break in the same way. Loops run over words, never over posts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modeling_ita import TagScheme

# The score of impossible events; finite, so that neither 0 × score nor a difference of two scores is NaN.
FORBIDDEN = -1e30


class _Chain(NamedTuple):
    """A batch with the border tag, in the layout that the scans need."""

    words: NDArray  # (D, N, B), relative to each word's best score
    scores: NDArray  # (D, D), [from, to]
    offset: NDArray  # (B,), to add back to a post's score


class NumpyCrf:
    """Posteriors and best sequences of tags, in batches of posts.

    All methods take `emissions` `(B, N, C)`, floating, and `mask` `(B, N)`, boolean, true on a prefix of every row:
    the post's words. What `emissions` holds elsewhere is never read. Results are float64 for float64 emissions and
    float32 for all others.

    Args:
        transitions: the score of one tag after another, `(C, C)`, [from, to].
        start_transitions: the score of a tag at the first word, `(C,)`.
        end_transitions: the score of a tag at the last word, `(C,)`.
        scheme: the tag set.
        constraints: where the transitions that the scheme does not allow have probability zero: nowhere (`"none"`), in
            `decode` (`"decode"`), or in every method (`"always"`).

    Raises:
        ValueError: `constraints` is unknown, or the scores do not match the scheme's number of tags.
    """

    def __init__(
        self,
        transitions: NDArray,
        start_transitions: NDArray,
        end_transitions: NDArray,
        scheme: TagScheme,
        constraints: str = "none",
    ) -> None:
        if constraints not in ("none", "decode", "always"):
            raise ValueError(f"unknown constraints {constraints!r} (expected 'none', 'decode' or 'always')")
        count = len(scheme)
        for name, scores, shape in (
            ("transitions", transitions, (count, count)),
            ("start_transitions", start_transitions, (count,)),
            ("end_transitions", end_transitions, (count,)),
        ):
            if scores.shape != shape:
                raise ValueError(f"{name} are {scores.shape} (expected {shape}, one for each tag of the scheme)")
        self.num_tags = count
        self.scheme = scheme
        self.constraints = constraints
        self._scores = np.zeros((count + 1, count + 1), np.float32)
        self._scores[:-1, :-1], self._scores[-1, :-1], self._scores[:-1, -1] = (
            transitions,
            start_transitions,
            end_transitions,
        )
        tags: list[int | None] = [*range(count), None]
        self._forbidden = np.array([[not scheme.allows(before, after) for after in tags] for before in tags])
        self._forbidden[-1, -1] = False  # padding follows padding
        self._continues = np.zeros((count + 1, count + 1), bool)
        self._continues[:-1, :-1] = [[scheme.continues(i, j) for j in range(count)] for i in range(count)]
        self._tags_of_type = np.array(
            [[tag for tag, label in enumerate(scheme.labels) if label[2:] == kind] for kind in scheme.types], np.int64
        ).reshape(len(scheme.types), -1)

    def decode(self, emissions: NDArray, mask: NDArray) -> tuple[NDArray, NDArray]:
        """The best tag sequence of every post (Viterbi).

        Returns:
            Its tag ids, int64 `(B, N)`, −1 on padding, and its score, `(B,)`.

        Raises:
            ValueError: the shapes do not fit.
        """
        words, scores, offset = self._chain(emissions, mask, self.constraints != "none")
        path, total = _viterbi(words, scores)
        return np.where(mask, path, -1), total + offset

    def best_log_posterior(self, emissions: NDArray, mask: NDArray) -> NDArray:
        """Log p of every post's best tag sequence, `(B,)`, at most 0; 0 without words.

        Raises:
            ValueError: the shapes do not fit.
        """
        words, scores, _ = self._chain(emissions, mask, self.constraints != "none")
        _, best = _viterbi(words.astype(np.float64), scores.astype(np.float64))
        chain = self._chain(emissions, mask, self.constraints == "always")
        words, scores = chain.words.astype(np.float64), chain.scores.astype(np.float64)
        if not words.shape[1]:
            return np.zeros(len(mask), chain.words.dtype)
        whole = _log_sum_exp((words + sum(_log_messages(words, scores)))[:, 0], 0)  # log Z (B,)
        return np.minimum(best - whole, 0).astype(chain.words.dtype)

    def log_marginals(self, emissions: NDArray, mask: NDArray) -> NDArray:
        """Log p(y_t = y) for every word and tag (forward–backward), accurate as logarithms however small.

        Returns:
            `(B, N, C)`. Tags that constraints rule out stand at about −1e30. Padding holds the uniform distribution.

        Raises:
            ValueError: the shapes do not fit.
        """
        chain = self._chain(emissions, mask, self.constraints == "always")
        words, scores = chain.words.astype(np.float64), chain.scores.astype(np.float64)
        marginals = _log_softmax(words + sum(_log_messages(words, scores)), 0)[:-1].transpose(2, 1, 0)
        marginals = np.where(mask[..., None], marginals, -math.log(self.num_tags))
        return marginals.astype(chain.words.dtype)

    def span_log_probability(
        self, emissions: NDArray, mask: NDArray, spans: NDArray, temperature: float = 1.0
    ) -> NDArray:
        """Log p that a post's tags spell exactly this entity: these words, no more and no fewer, of this type.

        Args:
            emissions: `(B, N, C)`.
            mask: boolean `(B, N)`.
            spans: int64 `(S, 4)`, each row's [post in the batch, first word, one past the last word, index of the type
                in `scheme.types`].
            temperature: divides all scores, including transitions; above 1 it flattens the distribution.

        Returns:
            `(S,)`.

        Raises:
            ValueError: the shapes do not fit, or a span lies outside its post or has no such type.
        """
        chain = self._chain(emissions, mask, self.constraints == "always", temperature)
        self._check_spans(spans, mask)
        if not len(spans):
            return np.zeros(0, chain.words.dtype)
        words, scores = chain.words.astype(np.float64), chain.scores.astype(np.float64)
        post, start, end, kind = spans.T
        tags = self._tags_of_type[kind]  # (S, K)

        forward, backward = _log_messages(words, scores)
        border = np.broadcast_to(_border(scores)[:, None, None], (len(scores), 1, len(mask)))
        left = np.concatenate([border, words + forward], 1)  # (D, N + 1, B), log p(y_t | words ≤ t), t = −1 … N − 1
        right = np.concatenate([words + backward, border], 1)  # (D, N + 1, B), the same from the right, t = 0 … N
        whole = (words + forward + backward)[:, start, post].T  # (S, D)
        first = np.take_along_axis(_log_softmax(whole, 1), tags, 1)  # (S, K)
        before = _log_softmax(left[:, start, post].T[:, None] + scores.T[tags], -1)  # (S, K, D), y_t to y_{t-1}
        total = first + _log_sum_exp(np.where(self._continues.T[tags], FORBIDDEN, before), -1)
        # The longest spans come first, so that those which go on are a prefix: the work is one step a word of a span.
        order = np.argsort(start - end, kind="stable")
        lengths, post, start, tags, total = (end - start)[order], post[order], start[order], tags[order], total[order]
        closed, longer = np.empty(len(spans)), len(spans)
        for length, ending in enumerate(np.bincount(lengths).tolist()[1:], 1):
            post, start, tags, total = post[:longer], start[:longer], tags[:longer], total[:longer]
            after = _log_softmax(
                right[:, start + length, post].T[:, None] + scores[tags], -1
            )  # (S', K, D), to y_{t+1}
            longer -= ending
            ended = np.where(self._continues[tags[longer:]], FORBIDDEN, after[longer:])
            closed[order[longer : longer + ending]] = _log_sum_exp(total[longer:] + _log_sum_exp(ended, -1), -1)
            going, stays = (
                tags[:longer],
                self._continues[tags[:longer, :, None], tags[:longer, None, :]],
            )  # (S'', K, K)
            step = np.take_along_axis(after[:longer], np.broadcast_to(going[:, None, :], stays.shape), 2)
            total = _log_sum_exp(total[:longer, :, None] + np.where(stays, step, FORBIDDEN), 1)
        return closed.astype(chain.words.dtype)

    def _chain(self, emissions: NDArray, mask: NDArray, constrained: bool, temperature: float = 1.0) -> _Chain:
        if (
            emissions.ndim != 3
            or emissions.shape[2] != self.num_tags
            or not np.issubdtype(emissions.dtype, np.floating)
        ):
            raise ValueError(
                f"emissions are {emissions.dtype} {emissions.shape} (expected floating (B, N, {self.num_tags}))"
            )
        if mask.shape != emissions.shape[:2] or mask.dtype != np.bool_:
            raise ValueError(f"mask is {mask.dtype} {mask.shape} (expected bool {emissions.shape[:2]})")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature} (expected a number > 0)")
        dtype = np.promote_types(emissions.dtype, np.float32)
        is_word = mask.T  # (N, B)
        words = np.empty((self.num_tags + 1, *is_word.shape), dtype)
        words[:-1] = np.where(is_word, emissions.transpose(2, 1, 0), FORBIDDEN)
        words[-1] = is_word * FORBIDDEN  # impossible at words and certain on padding
        peak = words.max(0)
        words -= peak
        scores = self._scores.astype(dtype)
        if temperature != 1:
            words, scores = words / dtype.type(temperature), scores / dtype.type(temperature)
        if constrained:
            scores = np.where(self._forbidden, dtype.type(FORBIDDEN), scores)
        return _Chain(words, scores, peak.sum(0))

    def _check_spans(self, spans: NDArray, mask: NDArray) -> None:
        if spans.ndim != 2 or spans.shape[1] != 4 or spans.dtype != np.int64:
            raise ValueError(f"spans are {spans.dtype} {spans.shape} (expected int64 (S, 4))")
        lengths = mask.sum(1)
        post, start, end, kind = spans.T
        outside = (post < 0) | (post >= len(lengths))
        length = lengths[np.where(outside, 0, post)] if len(lengths) else np.zeros_like(post)
        wrong = outside | (start < 0) | (start >= end) | (end > length) | (kind < 0) | (kind >= len(self.scheme.types))
        if wrong.any():
            number = int(wrong.argmax())
            span = "post {}, words {} to {}, type {}".format(*spans[number].tolist())
            raise ValueError(
                f"the span [{span}] is none of this batch (expected a post below {len(lengths)}, words within its "
                f"{int(length[number])}, a type below {len(self.scheme.types)})"
            )


def _border(scores: NDArray) -> NDArray:
    """The emissions outside a post, `(D,)`: the border tag is certain."""
    border = np.full(len(scores), FORBIDDEN, scores.dtype)
    border[-1] = 0
    return border


def _log_sum_exp(values: NDArray, axis: int) -> NDArray:
    peak = values.max(axis, keepdims=True)
    return np.log(np.exp(values - peak).sum(axis)) + peak.squeeze(axis)


def _log_softmax(values: NDArray, axis: int) -> NDArray:
    values = values - values.max(axis, keepdims=True)
    return values - np.log(np.exp(values).sum(axis, keepdims=True))


def _log_messages(words: NDArray, scores: NDArray) -> tuple[NDArray, NDArray]:
    """Log messages arriving at every word from the left and from the right, each `(D, N, B)`, in one scan."""
    sides = np.stack([words, words[:, ::-1]])  # (2, D, N, B)
    steps = np.stack([scores, scores.T])[..., None]  # (2, from, to, 1)
    arriving = np.empty_like(sides)
    arriving[:, :, :1] = steps[:, -1, :, None]
    for t in range(1, words.shape[1]):
        leaving = arriving[:, :, t - 1] + sides[:, :, t - 1]  # (2, D, B)
        arriving[:, :, t] = _log_sum_exp(leaving[:, :, None] + steps, 1)
    return arriving[0], arriving[1, :, ::-1]


def _viterbi(words: NDArray, scores: NDArray) -> tuple[NDArray, NDArray]:
    """The best path, `(B, N)`, and its score, `(B,)`: two scans that meet in the middle, then the path both ways."""
    tags, length, batch = words.shape
    if not length:
        return np.zeros((batch, 0), np.int64), np.zeros(batch, words.dtype)
    if length % 2:  # an even chain has a middle: add a word of padding
        words = np.concatenate([words, np.broadcast_to(_border(scores)[:, None, None], (tags, 1, batch))], 1)
    half = words.shape[1] // 2
    sides = np.stack([words[:, :half], words[:, half:][:, ::-1]])  # (2, D, N / 2, B)
    steps = np.stack([scores, scores.T])  # (2, from, to)
    best = np.empty((half, 2, tags, batch), words.dtype)
    best[0] = steps[:, -1, :, None] + sides[:, :, 0]
    for t in range(1, half):
        best[t] = (best[t - 1][:, :, None] + steps[..., None]).max(1) + sides[:, :, t]

    ways = (best[-1, 0][:, None] + scores[..., None] + best[-1, 1]).reshape(tags * tags, batch)
    meeting = ways.argmax(0)
    path = np.empty((half, 2, batch), np.int64)
    path[-1] = meeting // tags, meeting % tags
    into, direction = steps.transpose(0, 2, 1), np.arange(2)[:, None]  # (2, to, from)
    for t in reversed(range(half - 1)):
        path[t] = (into[direction, path[t + 1]] + best[t].transpose(0, 2, 1)).argmax(-1)  # (2, B, D) → (2, B)
    whole = np.concatenate([path[:, 0], path[::-1, 1]])  # (N, B)
    return whole[:length].T, ways.max(0)
