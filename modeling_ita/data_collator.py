"""Turns dataset rows into batches of a model, for `Trainer` or a custom training loop."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from .processing_ita import ItaProcessor
from .processing_mgcmt import MgcmtProcessor
from .visual_context import PostContext, VisualContext, contexts_of

Picture: TypeAlias = str | bytes | torch.Tensor | None


@dataclass(frozen=True)
class Example:
    """A training post: its words, their tag ids, its visual context, and its image if the model looks at images.

    The image is a path, the bytes of a file, or the tensor made from it; a list of these if the post has several. The
    context is then that of all images, as `VisualContext.joined` makes it.
    """

    id: str
    words: list[str]
    tags: list[int]
    context: VisualContext
    image: Picture | Sequence[Picture] = None


Splits = dict[str, list[Example]]  # the posts of a corpus by split: train, validation, test


class MnerDataCollator:
    """Turns dataset rows into one batch of tensors, for `Trainer` and `DataLoader`; the layout depends on the system.

    A row is a mapping as `MnerDataset` yields it: `words`; `tags` or `labels`, the tag ids of these words in the
    model's tag set; `context`, anything that `VisualContext.from_dict` takes; and `image`, anything that the processor
    takes. If a post has several images, `image` is a list, and `context` a list with one per image, or the joined one.
    Context and image may be None or missing. Other keys are ignored. If no row has tags, the batch holds no labels.

    By default `Trainer` drops the columns that `forward` does not name; prevent it with
    `TrainingArguments(remove_unused_columns=False)`.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The arguments of the model's `forward` for these rows, `word_positions` first.

        Raises:
            ValueError: a row has no words, an unusable context, or tags that are not one id per word; or only some
                rows have tags. The message names the row by its position in the batch and its id.
        """
        posts: list[list[str]] = []
        contexts: list[PostContext] = []
        labels: list[list[int] | None] = []
        for number, row in enumerate(features):
            try:
                posts.append(_row_words(row))
                contexts.append(contexts_of(row.get("context") or None))
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
        self, posts: list[list[str]], contexts: list[PostContext], images: list[Any], labels: list[list[int]] | None
    ) -> Mapping[str, torch.Tensor]:
        raise NotImplementedError


class ItaDataCollator(MnerDataCollator):
    """Batches of ITA, which sees an image through its context.

    Args:
        processor: the `ItaProcessor`.
        views: the views in the batch: `"both"` for training, `"T"` or `"I+T"` for evaluation.

    Raises:
        ValueError: `views` is unknown.
    """

    def __init__(self, processor: ItaProcessor, views: Literal["both", "T", "I+T"] = "both") -> None:
        if views not in ("both", "T", "I+T"):
            raise ValueError(f"unknown views {views!r} (expected 'both', 'T' or 'I+T')")
        self.processor = processor
        self.views = views

    def _batch(
        self, posts: list[list[str]], contexts: list[PostContext], images: list[Any], labels: list[list[int]] | None
    ) -> Mapping[str, torch.Tensor]:
        return self.processor(posts, contexts, views=self.views, is_split_into_words=True, labels=labels)


class MgcmtDataCollator(MnerDataCollator):
    """Batches of MGCMT, which sees the image, or a tensor made from it, and the objects named in its context.

    Args:
        processor: the `MgcmtProcessor`.
    """

    def __init__(self, processor: MgcmtProcessor) -> None:
        self.processor = processor

    def _batch(
        self, posts: list[list[str]], contexts: list[PostContext], images: list[Any], labels: list[list[int]] | None
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
