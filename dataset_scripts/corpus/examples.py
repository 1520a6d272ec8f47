"""Training examples, and their order in an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_ita.data_collator import Example
from modeling_ita.image_file import pictures_of
from modeling_ita.tag_scheme import TagScheme
from modeling_ita.visual_context import VisualContext


def read_examples(
    rows: datasets.Dataset, given: TagScheme, scheme: TagScheme, *, with_images: bool = False
) -> list[Example]:
    """The posts of a split, with tags converted from the corpus' scheme to the model's.

    Args:
        rows: the split.
        given: the corpus' tag set.
        scheme: the model's tag set.
        with_images: whether the model uses images; they are referenced here, not opened. A post with several has a
            list.
    """
    wanted = ["id", "words", "tags", "context", *(["image"] if with_images else [])]
    rows = rows.select_columns([column for column in wanted if column in rows.column_names])
    if "image" in rows.column_names:
        rows = rows.cast_column("image", undecoded(rows.features["image"]))
    examples = []
    for row in rows:
        tags = scheme.encode(given.spans(row["tags"]), len(row["words"]))
        context = VisualContext.from_dict(row.get("context") or {})
        sources = [file.get("bytes") or file.get("path") for file in pictures_of(row.get("image")) if file]
        image = sources if len(sources) > 1 else sources[0] if sources else None
        examples.append(Example(row["id"], row["words"], tags, context, image))
    return examples


def undecoded(feature: Any) -> Any:
    """The feature of a column of images, or of lists of images, whose rows hold the files instead of opening them."""
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return type(feature)(datasets.Image(decode=False))
    return datasets.Image(decode=False)


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every post once, posts of similar length together, batches of nearly equal size.

    Depends only on its arguments, so training can resume mid-epoch without replaying it.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = get_length_grouped_indices(list(lengths), batch_size, generator=generator)
    batches = [chunk.tolist() for chunk in torch.tensor(order).tensor_split(-(-len(order) // batch_size))]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
