"""Evaluates a trained model for a report: four views, ablations, calibration and errors, post by post.

The model sees every post with its own image, with none, with another post's image and with a blank one. Ablations
remove each kind of context in turn, and the image itself. One temperature for the entity scores and the image gate are
fitted on the validation split.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from hub_card.predictions.calibration_report import Calibration, calibration_report
from hub_card.predictions.image_gate import GatedPosts, fit_image_gate, image_gate_report
from hub_card.predictions.prediction import (
    Prediction,
    Visual,
    decode,
    least_confidence,
    padded_batches,
    read_images,
    read_posts,
)
from hub_card.scores.calibration import fit_temperature
from hub_card.scores.errors import ErrorAnalysis, EvaluatedPost, analyse, surface_forms
from hub_card.scores.intervals import Counts
from hub_card.scores.scores import ViewReport, score_views
from hub_card.scores.views import IMAGE, MAIN_VIEWS, VIEWS
from modeling_ita.entity_tagger import EntityTagger
from modeling_ita.tag_scheme import Span
from modeling_ita.visual_context import VisualContext
from modeling_ita.wordwise_processor import WordwiseProcessor

WRONG_IMAGE_SEED = 0  # all evaluations shuffle images in the same way, so that controls are comparable


class TaggedPost(Protocol):
    """A post of a split: its id, its words, the ids of their gold tags in the model's tag set, context and image."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def words(self) -> Sequence[str]:
        """Its words."""
        ...

    @property
    def tags(self) -> Sequence[int]:
        """The ids of their gold tags."""
        ...

    @property
    def context(self) -> VisualContext:
        """The visual context of its image."""
        ...

    @property
    def image(self) -> Any:
        """The image, as the processor takes it; None if there is none, or if the model does not take pictures."""
        ...


class Evaluation(NamedTuple):
    """The fields that an evaluation adds to a report, and the posts of every split.

    Attributes:
        fields: `scores`, `ablation`, `errors`, `calibration`, `image_gate` (split by split) and `counts` (of the
            processor). `image_gate` lacks splits without an image or context, and all splits without a fitted gate.
        posts: by split, all posts with the entities of all views, scored at the fitted temperature.
        temperature: the fitted temperature; 1 without a validation split.
        image_gate: the fitted threshold of the image gate; None without a validation split, or if no post of it has an
            image or context.
    """

    fields: dict[str, dict[str, Any]]
    posts: dict[str, list[EvaluatedPost]]
    temperature: float
    image_gate: float | None = None


def shuffled(visuals: Sequence[Visual], seed: int) -> list[Visual]:
    """Give every image, with its context, to another post: the control `wrong_image`."""
    ring = list(range(len(visuals)))
    random.Random(seed).shuffle(ring)
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [visuals[following[i]] for i in range(len(visuals))]


def visuals_of_view(view: str, visuals: Sequence[Visual]) -> list[Visual]:
    """The visual input of a model in a view.

    A blank image carries no information, so it is treated as no image (method §7).

    Raises:
        ValueError: the view is unknown.
    """
    if view in ("T", "blank_image"):
        return [Visual()] * len(visuals)
    if view == "I+T":
        return list(visuals)
    if view == "wrong_image":
        return shuffled(visuals, WRONG_IMAGE_SEED)
    raise ValueError(f"unknown view {view!r} (expected one of {', '.join(VIEWS)})")


def without_kind(visual: Visual, kind: str) -> Visual:
    """The visual input without one kind of context, or without the `IMAGE` itself."""
    if kind == IMAGE:
        return visual._replace(image=None)
    context = visual.context
    kinds = {k: strings for k, strings in context.kinds.items() if k != kind}
    return visual._replace(context=VisualContext(kinds, context.provenance))


def kinds_present(processor: WordwiseProcessor, posts: Sequence[TaggedPost]) -> list[str]:
    """The kinds of context that the model uses and that occur in any post; includes `IMAGE` under the same rule."""
    kinds = [kind for kind in processor.context_kinds if any(kind in post.context.kinds for post in posts)]
    return kinds + [IMAGE] * any(post.image is not None for post in posts)


@torch.inference_mode()
def fit_score_temperature(
    model: EntityTagger, emissions: Sequence[torch.Tensor], tags: Sequence[Sequence[int]]
) -> float:
    """The temperature at which the gold tag sequences are most likely (Guo et al., 2017, for a CRF).

    Args:
        model: the model with the CRF.
        emissions: emissions of posts that the model was not trained on.
        tags: the ids of their gold tags.
    """
    gold = [torch.tensor(list(row), dtype=torch.long) for row in tags]
    batches = list(padded_batches(emissions, model.device))
    size = len(batches[0][1]) if batches else 1
    targets = [
        torch.nn.utils.rnn.pad_sequence(gold[n * size : (n + 1) * size], batch_first=True).to(model.device)
        for n in range(len(batches))
    ]

    def nll(temperature: float) -> float:
        total = sum(
            float(-model.crf.log_likelihood(padded, target, mask, temperature).sum())
            for (padded, mask), target in zip(batches, targets, strict=True)
        )
        return total / max(len(gold), 1)

    return fit_temperature(nll)


def evaluate_model(
    model: EntityTagger,
    processor: WordwiseProcessor,
    splits: Mapping[str, Sequence[TaggedPost]],
    batch_size: int = 32,
) -> Evaluation:
    """Evaluate a model on the validation and the test split.

    Args:
        model: the model, on its device.
        processor: its processor.
        splits: `validation`, `test` or both, and `train`, from which only entity surface forms are used.
        batch_size: number of posts per batch.
    """
    fields: dict[str, dict[str, Any]] = {
        name: {} for name in ("scores", "ablation", "errors", "calibration", "image_gate", "counts")
    }
    names = {name for post in splits.get("train", ()) for name in surface_forms(post.words, _gold(model, post))}
    evaluated: dict[str, list[EvaluatedPost]] = {}
    temperature, image_gate = 1.0, None
    for split in [name for name in ("validation", "test") if name in splits]:
        read = ReadSplit(model, processor, split, splits[split], batch_size)
        if split == "validation":
            temperature = read.fitted_temperature()
        found = read.evaluation(temperature, names)
        evaluated[split] = found.posts
        gated = read.gated_posts(found.scores)
        if split == "validation":
            image_gate = fit_image_gate(gated)
        if (gate := image_gate_report(gated, image_gate)) is not None:
            fields["image_gate"][split] = dict(gate)
        for name in fields.keys() & SplitEvaluation._fields:
            fields[name][split] = getattr(found, name)
    return Evaluation(fields, evaluated, temperature, image_gate)


class SplitEvaluation(NamedTuple):
    """The evaluation of one split: one attribute per report field, and the posts."""

    scores: dict[str, ViewReport]
    ablation: dict[str, ViewReport]
    errors: dict[str, ErrorAnalysis]
    calibration: Calibration
    counts: dict[str, dict[str, int]]
    posts: list[EvaluatedPost]


class ReadSplit:
    """The emissions of a split in every view, before decoding. Each image is encoded only once.

    Attributes:
        emissions: by view, the emissions of every post.
        counts: by view, what the processor counted.
    """

    def __init__(
        self,
        model: EntityTagger,
        processor: WordwiseProcessor,
        name: str,
        posts: Sequence[TaggedPost],
        batch_size: int,
    ) -> None:
        self.model, self.processor, self.name = model, processor, name
        self.posts, self.batch_size = posts, batch_size
        self.visuals = [Visual(post.context, post.image) for post in posts]
        if model.sees_images:
            images = [post.image for post in posts]
            seen = read_images(model, processor, images, batch_size, progress=f"{name}, images")
            self.visuals = [visual._replace(image=image) for visual, image in zip(self.visuals, seen, strict=True)]
        self.emissions: dict[str, list[torch.Tensor]] = {}
        self.counts: dict[str, dict[str, int]] = {}
        for view in VIEWS:
            self.emissions[view], counts = self._read(visuals_of_view(view, self.visuals), view)
            self.counts[view] = dict(counts)

    def _read(self, visuals: Sequence[Visual], what: str) -> tuple[list[torch.Tensor], Counter[str]]:
        words = [list(post.words) for post in self.posts]
        return read_posts(self.model, self.processor, words, visuals, self.batch_size, f"{self.name}, {what}")

    def fitted_temperature(self) -> float:
        """The temperature that maximizes the likelihood of the gold tags over both views available to users."""
        emissions = [row for view in MAIN_VIEWS for row in self.emissions[view]]
        return fit_score_temperature(self.model, emissions, [post.tags for post in self.posts] * len(MAIN_VIEWS))

    def gated_posts(self, scores: Mapping[str, ViewReport] | None = None) -> GatedPosts:
        """The posts as the image gate sees them: what `fit_image_gate` and `image_gate_report` take.

        Args:
            scores: the scores of the views T and I+T, if they are known (`SplitEvaluation.scores`).
        """
        scores = self._scores(MAIN_VIEWS) if scores is None else scores
        alone, seen = (_counts(scores[view]) for view in MAIN_VIEWS)
        unsure, has_image = least_confidence(self.model, self.emissions["T"]), self._has_image()
        return GatedPosts(np.array(unsure), np.array(has_image), alone, seen)

    def _has_image(self) -> list[bool]:
        """Whether each post has an image or a context that the model takes, even if nothing was found in it."""
        # Not every MGCMT takes objects, whatever its processor knows.
        is_blind = getattr(self.model, "objects", True) is None
        kinds = set() if is_blind else {*self.processor.context_kinds}
        return [
            image is not None or not kinds.isdisjoint([*context.kinds, *context.provenance])
            for context, image in self.visuals
        ]

    def _scores(self, views: Sequence[str]) -> dict[str, ViewReport]:
        return score_views(
            self._gold_tags(),
            {view: [found.tags for found in decode(self.model, self.emissions[view], ())] for view in views},
        )

    def _gold_tags(self) -> list[list[str]]:
        labels = self.model.config.tag_scheme.labels
        return [[labels[tag] for tag in post.tags] for post in self.posts]

    def evaluation(self, temperature: float, train_surfaces: Collection[str]) -> SplitEvaluation:
        """Evaluate the split.

        Args:
            temperature: temperature of the entity scores.
            train_surfaces: the surface forms of training entities, see `analyse`.
        """
        predictions = {view: decode(self.model, rows, (1.0, temperature)) for view, rows in self.emissions.items()}
        tags = self._gold_tags()
        scores = score_views(tags, {view: [found.tags for found in rows] for view, rows in predictions.items()})
        kinds = kinds_present(self.processor, self.posts)
        ablation = score_views(tags, {kind: self._tags_without(kind) for kind in kinds})
        before, after = (self._evaluated(predictions, kinds, at) for at in (0, 1))
        return SplitEvaluation(
            scores=scores,
            ablation=ablation,
            errors={view: analyse(after, view, train_surfaces) for view in VIEWS},
            calibration=calibration_report(before, after, temperature),
            counts=self.counts,
            posts=after,
        )

    def _tags_without(self, kind: str) -> list[list[str]]:
        rows, _ = self._read([without_kind(visual, kind) for visual in self.visuals], f"without {kind}")
        return [prediction.tags for prediction in decode(self.model, rows)]

    def _evaluated(
        self, predictions: Mapping[str, Sequence[Prediction]], kinds: Sequence[str], at: int
    ) -> list[EvaluatedPost]:
        """The posts with the entities of every view, scored at one of the temperatures used for decoding."""
        return [
            EvaluatedPost(
                id=post.id,
                words=tuple(post.words),
                gold=_gold(self.model, post),
                views={
                    view: {span: scores[at] for span, scores in rows[number].entities.items()}
                    for view, rows in predictions.items()
                },
                context={kind: list(post.context.kinds[kind]) for kind in kinds if kind in post.context.kinds},
            )
            for number, post in enumerate(self.posts)
        ]


def _gold(model: EntityTagger, post: TaggedPost) -> frozenset[Span]:
    return frozenset(model.config.tag_scheme.spans(list(post.tags)))


def _counts(scored: ViewReport) -> Counts:
    counts = scored["post_counts"]
    return Counts(np.array(counts["gold"]), np.array(counts["predicted"]), np.array(counts["correct"]))
