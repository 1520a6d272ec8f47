"""Rows of a data set to batches of a model, for training with `Trainer` or a loop of one's own."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .processing_ita import ItaProcessor
from .processing_mgcmt import MgcmtProcessor
from .visual_context import VisualContext


@dataclass(frozen=True)
class Example:
    """A post as it is trained on: its words, their tag ids, its visual context, and its image if a model looks at it.

    The image is a path or a file's bytes, or the tensor that was made of it.
    """

    id: str
    words: list[str]
    tags: list[int]
    context: VisualContext
    image: str | bytes | torch.Tensor | None = None


Splits = dict[str, list[Example]]  # the posts of a corpus by split: train, validation, test


class MnerDataCollator:
    """Rows of a dataset → one batch of tensors, for `Trainer` and `DataLoader`; each system's has its own layout.

    A row is a mapping as `MnerDataset` gives it: `words`; `tags` or `labels`, the tag ids of these words in the
    model's tag set; `context`, whatever `VisualContext.from_dict` takes; and `image`, whatever the processor of a
    model that looks takes. Context and image may be None or left out. Other keys are ignored. Without tags in any row
    the batch holds no labels.

    `Trainer` drops the columns that `forward` does not name before they get here: give it
    `TrainingArguments(remove_unused_columns=False)`.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The arguments of the model's `forward` for these rows, `word_positions` first.

        Raises:
            ValueError: a row has no words, tags that are no ids or not one for each word, or an unusable context, or
                only some rows have tags; the row is named by its place in the batch and its id.
        """
        posts, contexts, labels = [], [], []
        for number, row in enumerate(features):
            try:
                posts.append(_row_words(row))
                contexts.append(VisualContext.from_dict(row.get("context") or {}))
                labels.append(_row_tags(row, len(posts[-1])))
                if (labels[-1] is None) != (labels[0] is None):
                    raise ValueError("some rows of the batch have tags, and some have none (expected all or none)")
            except ValueError as error:
                name = f"row {number}" + (f" (id {row['id']!r})" if "id" in row else "")
                raise ValueError(f"{name}: {error}") from None
        tags = [row for row in labels if row is not None]
        batch = self._batch(posts, contexts, [row.get("image") for row in features], tags or None)
        # Trainer counts the rows of the first tensor as posts, and a long post has several rows in the others.
        return {name: batch[name] for name in dict.fromkeys(["word_positions", *batch])}

    def _batch(
        self, posts: list[list[str]], contexts: list[VisualContext], images: list[Any], labels: list[list[int]] | None
    ) -> Mapping[str, torch.Tensor]:
        raise NotImplementedError


class ItaDataCollator(MnerDataCollator):
    """Batches of ITA, to which an image is its context.

    Args:
        processor: the `ItaProcessor`.
        views: the views of the batch: `"both"`, to train on, or `"T"` or `"I+T"`, to be evaluated.

    Raises:
        ValueError: `views` is unknown.
    """

    def __init__(self, processor: ItaProcessor, views: Literal["both", "T", "I+T"] = "both") -> None:
        if views not in ("both", "T", "I+T"):
            raise ValueError(f"unknown views {views!r} (expected 'both', 'T' or 'I+T')")
        self.processor = processor
        self.views = views

    def _batch(
        self, posts: list[list[str]], contexts: list[VisualContext], images: list[Any], labels: list[list[int]] | None
    ) -> Mapping[str, torch.Tensor]:
        return self.processor(posts, contexts, views=self.views, is_split_into_words=True, labels=labels)


class MgcmtDataCollator(MnerDataCollator):
    """Batches of MGCMT: an image, or what was made of it before, and the objects that its context names.

    Args:
        processor: the `MgcmtProcessor`.
    """

    def __init__(self, processor: MgcmtProcessor) -> None:
        self.processor = processor

    def _batch(
        self, posts: list[list[str]], contexts: list[VisualContext], images: list[Any], labels: list[list[int]] | None
    ) -> Mapping[str, torch.Tensor]:
        return self.processor(posts, contexts, images, is_split_into_words=True, labels=labels)


def _row_words(row: Mapping[str, Any]) -> list[str]:
    words = row.get("words")
    if words is None:
        raise ValueError(
            f"no 'words' among its keys {', '.join(map(repr, row)) or '(none)'} (Trainer keeps the column with "
            "TrainingArguments(remove_unused_columns=False))"
        )
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ValueError("'words' is not a list of strings")
    return list(words)


def _row_tags(row: Mapping[str, Any], words: int) -> list[int] | None:
    key = "labels" if row.get("labels") is not None else "tags"
    if row.get(key) is None:
        return None
    try:
        tags = [operator.index(tag) for tag in row[key]]
    except TypeError:
        raise ValueError(f"{key!r} are not tag ids, as model.config.label2id gives them") from None
    if len(tags) != words:
        raise ValueError(f"{len(tags)} {key} for {words} words (expected one each)")
    if min(tags, default=0) < 0:
        raise ValueError(f"{key!r} holds {min(tags)} (expected the tag of every word; padding is added here)")
    return tags
