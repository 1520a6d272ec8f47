"""All that a report says of a trained model: four views, ablations, calibration, errors, post by post.

The model is given every post with its right image, with none, with another post's and with a blank one, and once
without each kind of context and without the image itself. One temperature for the scores of entities is fitted on the
validation split.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from hub_card.predictions.calibration_report import calibration_report
from hub_card.predictions.prediction import Prediction, Visual, decode, padded_batches, read_images, read_posts
from hub_card.scores.calibration import fit_temperature
from hub_card.scores.errors import EvaluatedPost, analyse, surface_forms
from hub_card.scores.scores import score_views
from hub_card.scores.views import IMAGE, VIEWS
from modeling_ita.entity_tagger import EntityTagger
from modeling_ita.tag_scheme import Span
from modeling_ita.visual_context import VisualContext
from modeling_ita.wordwise_processor import WordwiseProcessor

WRONG_IMAGE_SEED = 0  # every evaluation shuffles the images alike, so that their controls compare


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
        """What its image says."""
        ...

    @property
    def image(self) -> Any:
        """The image, as the processor of a model that looks takes it; None for none, and for other models."""
        ...


class Evaluation(NamedTuple):
    """The fields that an evaluation adds to a report, and the posts of every split.

    Attributes:
        fields: `scores`, `ablation`, `errors`, `calibration` (split by split) and `counts` (of the processor).
        posts: by split, every post with the entities of all views, scored at the fitted temperature.
        temperature: the fitted temperature; 1 without a validation split.
    """

    fields: dict[str, dict[str, Any]]
    posts: dict[str, list[EvaluatedPost]]
    temperature: float


def shuffled(visuals: Sequence[Visual], seed: int) -> list[Visual]:
    """Every image, with its context, at another post's place: the control `wrong_image`."""
    ring = list(range(len(visuals)))
    random.Random(seed).shuffle(ring)
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [visuals[following[i]] for i in range(len(visuals))]


def visuals_of_view(view: str, visuals: Sequence[Visual]) -> list[Visual]:
    """What a model is given of images in a view.

    A blank image says nothing, and is read as such (method §7): what a model makes of it is what it makes of no image.

    Raises:
        ValueError: there is no such view.
    """
    if view in ("T", "blank_image"):
        return [Visual()] * len(visuals)
    if view == "I+T":
        return list(visuals)
    if view == "wrong_image":
        return shuffled(visuals, WRONG_IMAGE_SEED)
    raise ValueError(f"unknown view {view!r} (expected one of {', '.join(VIEWS)})")


def without_kind(visual: Visual, kind: str) -> Visual:
    """What is given of an image without one kind of its context, or without the `IMAGE` itself."""
    if kind == IMAGE:
        return visual._replace(image=None)
    context = visual.context
    kinds = {k: strings for k, strings in context.kinds.items() if k != kind}
    return visual._replace(context=VisualContext(kinds, context.provenance))


def kinds_present(processor: WordwiseProcessor, posts: Sequence[TaggedPost]) -> list[str]:
    """The kinds of context that take part, and that any of the posts has; the `IMAGE` itself likewise."""
    kinds = [kind for kind in processor.context_kinds if any(kind in post.context.kinds for post in posts)]
    return kinds + [IMAGE] * any(post.image is not None for post in posts)


@torch.inference_mode()
def fit_score_temperature(
    model: EntityTagger, emissions: Sequence[torch.Tensor], tags: Sequence[Sequence[int]]
) -> float:
    """The temperature at which the gold tag sequences are most likely (Guo et al., 2017, for a CRF).

    Args:
        model: whose CRF it is.
        emissions: of posts that the model was not trained on.
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
        splits: `validation` and `test`, or one of them, and `train`, of which only the names of entities are taken.
        batch_size: posts in a batch.
    """
    fields: dict[str, dict[str, Any]] = {
        name: {} for name in ("scores", "ablation", "errors", "calibration", "counts")
    }
    labels = model.config.tag_scheme.labels
    names = {name for post in splits.get("train", ()) for name in surface_forms(post.words, _gold(model, post))}
    evaluated: dict[str, list[EvaluatedPost]] = {}
    temperature = 1.0
    for split in [name for name in ("validation", "test") if name in splits]:
        posts = splits[split]
        words, visuals = [list(post.words) for post in posts], [Visual(post.context, post.image) for post in posts]
        if model.sees_images:
            seen = read_images(
                model, processor, [post.image for post in posts], batch_size, progress=f"{split}, images"
            )
            visuals = [visual._replace(image=image) for visual, image in zip(visuals, seen, strict=True)]
        tags = [[labels[tag] for tag in post.tags] for post in posts]
        emissions, fields["counts"][split] = {}, {}
        for view in VIEWS:
            given = visuals_of_view(view, visuals)
            emissions[view], counts = read_posts(model, processor, words, given, batch_size, f"{split}, {view}")
            fields["counts"][split][view] = dict(counts)
        if split == "validation":
            gold = [post.tags for post in posts]
            temperature = fit_score_temperature(model, [*emissions["T"], *emissions["I+T"]], [*gold, *gold])
        predictions = {view: decode(model, rows, (1.0, temperature)) for view, rows in emissions.items()}
        fields["scores"][split] = score_views(tags, {v: [p.tags for p in rows] for v, rows in predictions.items()})
        kinds = kinds_present(processor, posts)
        ablated = {}
        for kind in kinds:
            reduced = [without_kind(visual, kind) for visual in visuals]
            rows, _ = read_posts(model, processor, words, reduced, batch_size, f"{split}, without {kind}")
            ablated[kind] = [prediction.tags for prediction in decode(model, rows)]
        fields["ablation"][split] = score_views(tags, ablated)
        before, after = (_evaluated(model, posts, predictions, kinds, at) for at in (0, 1))
        evaluated[split] = after
        fields["errors"][split] = {view: analyse(after, view, names) for view in VIEWS}
        fields["calibration"][split] = calibration_report(before, after, temperature)
    return Evaluation(fields, evaluated, temperature)


def _gold(model: EntityTagger, post: TaggedPost) -> frozenset[Span]:
    return frozenset(model.config.tag_scheme.spans(list(post.tags)))


def _evaluated(
    model: EntityTagger,
    posts: Sequence[TaggedPost],
    predictions: Mapping[str, Sequence[Prediction]],
    kinds: Sequence[str],
    at: int,
) -> list[EvaluatedPost]:
    return [
        EvaluatedPost(
            id=post.id,
            words=tuple(post.words),
            gold=_gold(model, post),
            views={
                view: {span: scores[at] for span, scores in rows[number].entities.items()}
                for view, rows in predictions.items()
            },
            context={kind: list(post.context.kinds[kind]) for kind in kinds if kind in post.context.kinds},
        )
        for number, post in enumerate(posts)
    ]
