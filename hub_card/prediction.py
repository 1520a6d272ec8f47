"""The tags a model gives to the posts of a split, over all processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from modeling_ita.modeling_ita import ItaForTokenClassification
from modeling_ita.processing_ita import ItaProcessor
from modeling_ita.visual_context import VisualContext


def predict_tags(
    accelerator: Accelerator,
    model: ItaForTokenClassification,
    processor: ItaProcessor,
    posts: Sequence[Sequence[str]],
    contexts: Sequence[VisualContext] | None,
    batch_size: int,
) -> tuple[list[list[str]], Counter[str]]:
    """The best tags of every post, on view T or, with contexts, on view I+T; and what the processor counted."""
    model.eval()
    labels = model.config.tag_scheme.labels
    order = sorted(range(len(posts)), key=lambda i: len(posts[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    found: list[tuple[int, list[str]]] = []
    counts: Counter[str] = Counter()
    for indices in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = processor(
            [posts[i] for i in indices],
            None if contexts is None else [contexts[i] for i in indices],
            views="T" if contexts is None else "I+T",
            is_split_into_words=True,
        ).to(accelerator.device)
        counts += batch.counts
        with torch.inference_mode():
            output = model(**batch)
        tags = model.decode_tags(output.emissions, batch["word_positions"] >= 0)
        found += [(i, [labels[tag] for tag in row]) for i, row in zip(indices, tags, strict=True)]
    by_post = dict(gather_object(found))
    return [by_post[i] for i in range(len(posts))], sum(gather_object([counts]), Counter())
