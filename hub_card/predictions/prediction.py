"""Predicts emissions, tags and scored entities for posts, on one process or on all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from modeling_ita.entity_tagger import EntityTagger, NotFiniteError, word_emissions
from modeling_ita.image_file import pictures_of
from modeling_ita.tag_scheme import Span
from modeling_ita.visual_context import VisualContext
from modeling_ita.wordwise_processor import WordwiseProcessor

DECODED_AT_ONCE = 256  # posts


class Visual(NamedTuple):
    """The visual input that accompanies a post.

    Attributes:
        context: the visual context.
        image: the image, for models that take pictures, in any form that the processor takes; a list if the post has
            several; None if there is none.
    """

    context: VisualContext = VisualContext()
    image: Any = None


class Prediction(NamedTuple):
    """The prediction for one post: tags, and entities with their scores at each requested temperature."""

    tags: list[str]
    entities: dict[Span, list[float]]


@torch.inference_mode()
def read_images(
    model: Any,
    processor: WordwiseProcessor,
    images: Sequence[Any],
    batch_size: int = 32,
    *,
    regions: bool = True,
    progress: str | None = None,
) -> list[torch.Tensor | list[torch.Tensor | None] | None]:
    """Prepare images for a model that takes pictures, opening each file only once even if it occurs twice.

    Args:
        model: the model.
        processor: its processor.
        images: the image of every post, in any form that the processor takes, or a list of several; None if there is
            none.
        batch_size: images per batch of the vision encoder.
        regions: whether to run the vision encoder; otherwise only the pixels are prepared.
        progress: title of a progress bar. None: no bar.

    Returns:
        For every image, its region features `(49, region_size)` or pixels `(3, height, width)`; None if there is no
        image. For a post with several images, a list of these; None if none of them can be used.
    """
    model.eval()
    found: dict[Hashable, torch.Tensor | None] = {}
    posts = [pictures_of(image) for image in images]
    distinct = {_key(picture): picture for post in posts for picture in post if picture is not None}
    bar = tqdm(total=len(distinct), desc=progress, unit="image", disable=None if progress else True, leave=False)
    order = iter(distinct)
    while chosen := list(islice(order, batch_size)):
        tensors = processor.image_tensors([distinct[key] for key in chosen])
        seen = tensors.get("pixel_values", tensors.get("region_features"))
        if regions and "pixel_values" in tensors:
            seen = model.region_features(tensors["pixel_values"].to(model.device)).float().cpu()
        for number, (key, is_there) in enumerate(zip(chosen, tensors["has_image"].tolist(), strict=True)):
            found[key] = seen[number].clone() if is_there and seen is not None else None
        bar.update(len(chosen))
    bar.close()
    return [_given([found.get(_key(picture)) for picture in post]) for post in posts]


def _key(picture: Any) -> Hashable:
    return picture if isinstance(picture, (str, bytes)) else id(picture)


def _given(seen: list[torch.Tensor | None]) -> torch.Tensor | list[torch.Tensor | None] | None:
    """The images of a post as a processor takes them: None for no image, and one alone without a list."""
    if all(one is None for one in seen):
        return None
    return seen[0] if len(seen) == 1 else seen


@torch.inference_mode()
def read_posts(
    model: EntityTagger,
    processor: WordwiseProcessor,
    posts: Sequence[Sequence[str]],
    visuals: Sequence[Visual],
    batch_size: int = 32,
    progress: str | None = None,
) -> tuple[list[torch.Tensor], Counter[str]]:
    """The emissions of every post's words, `(n, C)` each, and what the processor counted.

    Raises:
        NotFiniteError: the model returned NaN or infinity for a word; the message gives the number of the post.
    """
    model.eval()
    order = sorted(range(len(posts)), key=lambda i: len(posts[i]))
    emissions: list[torch.Tensor] = [torch.empty(0, len(model.config.tag_scheme.labels))] * len(posts)
    counts: Counter[str] = Counter()
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, progress, unit="batch", disable=None if progress else True, leave=False):
        indices = order[start : start + batch_size]
        contexts = [visuals[i].context for i in indices]
        batch = processor.for_prediction([posts[i] for i in indices], contexts, is_split_into_words=True)
        images = [visuals[i].image for i in indices]
        try:
            found = word_emissions(model, processor, batch, images, batch_size)
        except NotFiniteError as error:
            raise NotFiniteError(indices[error.post or 0]) from None
        counts += batch.counts
        for i, row in zip(indices, found, strict=True):
            if len(row):
                emissions[i] = row.cpu()
    return emissions, counts


@torch.inference_mode()
def decode(
    model: EntityTagger, emissions: Sequence[torch.Tensor], temperatures: Sequence[float] = (1.0,)
) -> list[Prediction]:
    """The best tags of every post, and its entities with their scores at each temperature."""
    labels = model.config.tag_scheme.labels
    predictions = []
    for padded, mask in padded_batches(emissions, model.device):
        tags = model.decode_tags(padded, mask)
        scored = [model.decode_entities(padded, mask, temperature) for temperature in temperatures]
        for post, row in enumerate(tags):
            entities: dict[Span, list[float]] = {}
            for at_one in scored:
                for span, score in at_one[post]:
                    entities.setdefault(span, []).append(score)
            predictions.append(Prediction([labels[tag] for tag in row], entities))
    return predictions


@torch.inference_mode()
def least_confidence(model: EntityTagger, emissions: Sequence[torch.Tensor]) -> list[float]:
    """How unsure the model is of every post, in [0, 1] (`EntityDecoding.least_confidence`); 0 if it has no words."""
    found = [0.0] * len(emissions)
    with_words = [number for number, row in enumerate(emissions) if len(row)]
    batches = padded_batches([emissions[number] for number in with_words], model.device)
    values = [value for padded, mask in batches for value in model.least_confidence(padded, mask)]
    for number, value in zip(with_words, values, strict=True):
        found[number] = value
    return found


def padded_batches(
    emissions: Sequence[torch.Tensor], device: torch.device, size: int = DECODED_AT_ONCE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of padded emissions, `(B, N, C)`, in the order of the posts, with the mask of words, `(B, N)`."""
    for start in range(0, len(emissions), size):
        rows = emissions[start : start + size]
        lengths = torch.tensor([len(row) for row in rows])
        padded = pad_sequence(list(rows), batch_first=True)  # (B, N, C)
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]  # (B, N)
        yield padded.to(device), mask.to(device)


def predict_tags(
    accelerator: Accelerator,
    model: EntityTagger,
    processor: WordwiseProcessor,
    posts: Sequence[Sequence[str]],
    visuals: Sequence[Visual],
    batch_size: int,
) -> tuple[list[list[str]], Counter[str]]:
    """Predict the best tags of every post with its visual input, spread over all processes.

    Returns:
        The tags, and what the processor counted.
    """
    mine = sorted(range(len(posts)), key=lambda i: len(posts[i]))[
        accelerator.process_index :: accelerator.num_processes
    ]
    words, behind = [posts[i] for i in mine], [visuals[i] for i in mine]
    emissions, counts = read_posts(model, processor, words, behind, batch_size)
    found = [(i, prediction.tags) for i, prediction in zip(mine, decode(model, emissions, ()), strict=True)]
    by_post = dict(gather_object(found))
    return [by_post[i] for i in range(len(posts))], sum(gather_object([counts]), Counter())
