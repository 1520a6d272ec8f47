"""From emissions to tags and scored entities: what a pipeline and a report ask of a model, and refuse."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .configuration_ita import Span
from .crf import LinearChainCRF

NOT_FINITE = "scores that are not finite numbers: a weight is damaged, or overflows in the model's type (float16?)"


class ScoredSpan(NamedTuple):
    """An entity as words, with `score`, the exact posterior probability that these words form this entity."""

    span: Span
    score: float


class NotFiniteError(FloatingPointError):
    """The model gave scores that are NaN or infinite; no tags follow from them.

    Args:
        post: the number of the first such post in its batch; None if it is the CRF itself.
    """

    def __init__(self, post: int | None = None) -> None:
        self.post = post
        place = "the CRF has" if post is None else f"post {post}: the model gave"
        super().__init__(f"{place} {NOT_FINITE}")


def check_finite(emissions: torch.Tensor, mask: torch.Tensor, *scores: torch.Tensor) -> None:
    """Refuses numbers that say nothing: the best tags of NaN would be a post without entities.

    Args:
        emissions: `(B, N, C)`.
        mask: `(B, N)`, boolean, true on words; what `emissions` hold elsewhere does not matter.
        scores: the CRF's, or what it made of the emissions, of any shape.

    Raises:
        NotFiniteError: one is NaN or infinite.
    """
    if not all(bool(score.isfinite().all()) for score in scores):
        raise NotFiniteError
    wrong = (~emissions.isfinite().all(-1) & mask).any(-1)  # (B,)
    if wrong.any():
        raise NotFiniteError(int(wrong.nonzero()[0]))


class EntityDecoding:
    """Decoding of a model with a `crf` and a `config` of tags: what `ItaPipeline` and the report ask of a model."""

    crf: LinearChainCRF
    config: Any

    def decode_tags(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        """The best tag sequence of every post (Viterbi).

        Args:
            emissions: `(B, N, C)`, from `ItaOutput`.
            mask: `(B, N)`, boolean, true on words: `word_positions >= 0`.

        Raises:
            NotFiniteError: an emission or a score of the CRF is NaN or infinite.
        """
        check_finite(emissions, mask, *self.crf.parameters())
        tags, _ = self.crf.decode(emissions, mask)  # (B, N)
        return [row[:length] for row, length in zip(tags.tolist(), mask.sum(1).tolist(), strict=True)]

    def decode_scored_tags(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[list[tuple[int, float]]]:
        """The best tag sequence of every post, each tag with its posterior at its word; the arguments are the same.

        Raises:
            NotFiniteError: an emission or a score of the CRF is NaN or infinite.
        """
        tags = self.decode_tags(emissions, mask)
        marginals = self.crf.log_marginals(emissions, mask)  # (B, N, C)
        return [_with_posterior(row, post) for row, post in zip(tags, marginals, strict=True)]

    def decode_entities(
        self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float | None = None
    ) -> list[list[ScoredSpan]]:
        """The entities of the best tag sequence of every post, each with its exact posterior.

        Args:
            emissions: `(B, N, C)`, from `ItaOutput`.
            mask: `(B, N)`, boolean, true on words: `word_positions >= 0`.
            temperature: at which the posterior is taken; default: the configuration's `score_temperature`.

        Raises:
            NotFiniteError: an emission, a score of the CRF or a posterior is NaN or infinite.
            ValueError: the temperature is not a number > 0.
        """
        temperature = self.config.score_temperature if temperature is None else temperature
        scheme = self.config.tag_scheme
        entities = [scheme.spans(tags) for tags in self.decode_tags(emissions, mask)]
        places = [(b, s.start, s.end, scheme.types.index(s.type)) for b, spans in enumerate(entities) for s in spans]
        spans = torch.tensor(places, dtype=torch.long, device=emissions.device).reshape(-1, 4)
        probabilities = self.crf.span_log_probability(emissions, mask, spans, temperature).exp()  # (S,)
        check_finite(emissions, mask, probabilities)
        scores = iter(probabilities.clamp(max=1).tolist())
        return [[ScoredSpan(span, next(scores)) for span in row] for row in entities]


def _with_posterior(tags: list[int], log_marginals: torch.Tensor) -> list[tuple[int, float]]:
    """The tags of one post with their posteriors, from log marginals `(N, C)`."""
    chosen = log_marginals[range(len(tags)), tags]  # (n,)
    return list(zip(tags, chosen.exp().clamp(max=1).tolist(), strict=True))
