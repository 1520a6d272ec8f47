"""Evaluates a trained model for a report: four views, ablations, calibration and errors, post by post.

The model sees every post with its own image, with none, with another post's image and with a blank one. Ablations
remove each kind of context in turn, and the image itself. One temperature for the entity scores is fitted on the
validation split.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from hub_card.predictions.calibration_report import Calibration, calibration_report
from hub_card.predictions.prediction import Prediction, Visual, decode, padded_batches, read_images, read_posts
from hub_card.scores.calibration import fit_temperature
from hub_card.scores.errors import ErrorAnalysis, EvaluatedPost, analyse, surface_forms
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
        fields: `scores`, `ablation`, `errors`, `calibration` (split by split) and `counts` (of the processor).
        posts: by split, all posts with the entities of all views, scored at the fitted temperature.
        temperature: the fitted temperature; 1 without a validation split.
    """

    fields: dict[str, dict[str, Any]]
    posts: dict[str, list[EvaluatedPost]]
    temperature: float


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
        name: {} for name in ("scores", "ablation", "errors", "calibration", "counts")
    }
    names = {name for post in splits.get("train", ()) for name in surface_forms(post.words, _gold(model, post))}
    evaluated: dict[str, list[EvaluatedPost]] = {}
    temperature = 1.0
    for split in [name for name in ("validation", "test") if name in splits]:
        read = ReadSplit(model, processor, split, splits[split], batch_size)
        if split == "validation":
            temperature = read.fitted_temperature()
        found = read.evaluation(temperature, names)
        evaluated[split] = found.posts
        for name, of_split in fields.items():
            of_split[split] = getattr(found, name)
    return Evaluation(fields, evaluated, temperature)


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

    def evaluation(self, temperature: float, train_surfaces: Collection[str]) -> SplitEvaluation:
        """Evaluate the split.

        Args:
            temperature: temperature of the entity scores.
            train_surfaces: the surface forms of training entities, see `analyse`.
        """
        predictions = {view: decode(self.model, rows, (1.0, temperature)) for view, rows in self.emissions.items()}
        labels = self.model.config.tag_scheme.labels
        tags = [[labels[tag] for tag in post.tags] for post in self.posts]
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
