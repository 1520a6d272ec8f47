"""Posts as they are trained on, and the order in which an epoch takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_ita.configuration_ita import TagScheme
from modeling_ita.visual_context import VisualContext


@dataclass(frozen=True)
class Example:
    """A post as it is trained on: its words, their tag ids, and its visual context."""

    id: str
    words: list[str]
    tags: list[int]
    context: VisualContext


def read_examples(rows: datasets.Dataset, given: TagScheme, scheme: TagScheme) -> list[Example]:
    """The posts of a split, their tags turned from the corpus' scheme into the model's."""
    examples = []
    for row in rows.select_columns([c for c in ("id", "words", "tags", "context") if c in rows.column_names]):
        tags = scheme.encode(given.spans(row["tags"]), len(row["words"]))
        context = VisualContext.from_dict(row.get("context") or {})
        examples.append(Example(row["id"], row["words"], tags, context))
    return examples


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every post once, neighbours in length together, all of nearly one size.

    A function of its arguments alone, so that training resumes in the middle of an epoch without replaying it.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = get_length_grouped_indices(list(lengths), batch_size, generator=generator)
    batches = [chunk.tolist() for chunk in torch.tensor(order).tensor_split(-(-len(order) // batch_size))]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
