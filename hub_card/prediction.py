"""What a model predicts for posts: emissions, tags, scored entities; on one process or on all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from modeling_ita.configuration_ita import Span
from modeling_ita.modeling_ita import ItaForTokenClassification
from modeling_ita.processing_ita import ItaProcessor
from modeling_ita.visual_context import VisualContext

DECODED_AT_ONCE = 256  # posts


class Prediction(NamedTuple):
    """What the model says of one post: its tags, and its entities with their scores at each temperature asked for."""

    tags: list[str]
    entities: dict[Span, list[float]]


@torch.inference_mode()
def read_posts(
    model: ItaForTokenClassification,
    processor: ItaProcessor,
    posts: Sequence[Sequence[str]],
    contexts: Sequence[VisualContext] | None,
    batch_size: int = 32,
    progress: str | None = None,
) -> tuple[list[torch.Tensor], Counter[str]]:
    """The emissions of every post's words, `(n, C)` each, and what the processor counted."""
    model.eval()
    order = sorted(range(len(posts)), key=lambda i: len(posts[i]))
    emissions: list[torch.Tensor] = [torch.empty(0, len(model.config.tag_scheme.labels))] * len(posts)
    counts: Counter[str] = Counter()
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, progress, unit="batch", disable=None if progress else True, leave=False):
        indices = order[start : start + batch_size]
        batch = processor(
            [posts[i] for i in indices],
            None if contexts is None else [contexts[i] for i in indices],
            views="T" if contexts is None else "I+T",
            is_split_into_words=True,
        ).to(model.device)
        counts += batch.counts
        found = model(**batch).emissions.float().cpu()
        for i, row in zip(indices, found, strict=True):
            emissions[i] = row[: len(posts[i])].clone()
    return emissions, counts


@torch.inference_mode()
def decode(
    model: ItaForTokenClassification, emissions: Sequence[torch.Tensor], temperatures: Sequence[float] = (1.0,)
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


def padded_batches(
    emissions: Sequence[torch.Tensor], device: torch.device, size: int = DECODED_AT_ONCE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Emissions of posts in their order, padded, `(B, N, C)`, with the mask of their words, `(B, N)`."""
    for start in range(0, len(emissions), size):
        rows = emissions[start : start + size]
        lengths = torch.tensor([len(row) for row in rows])
        padded = pad_sequence(list(rows), batch_first=True)  # (B, N, C)
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]  # (B, N)
        yield padded.to(device), mask.to(device)


def predict_tags(
    accelerator: Accelerator,
    model: ItaForTokenClassification,
    processor: ItaProcessor,
    posts: Sequence[Sequence[str]],
    contexts: Sequence[VisualContext] | None,
    batch_size: int,
) -> tuple[list[list[str]], Counter[str]]:
    """The best tags of every post, on view T or, with contexts, on view I+T, by all processes together.

    Returns:
        The tags, and what the processor counted.
    """
    mine = sorted(range(len(posts)), key=lambda i: len(posts[i]))[
        accelerator.process_index :: accelerator.num_processes
    ]
    emissions, counts = read_posts(
        model,
        processor,
        [posts[i] for i in mine],
        None if contexts is None else [contexts[i] for i in mine],
        batch_size,
    )
    found = [(i, prediction.tags) for i, prediction in zip(mine, decode(model, emissions, ()), strict=True)]
    by_post = dict(gather_object(found))
    return [by_post[i] for i in range(len(posts))], sum(gather_object([counts]), Counter())
