"""The ITA processor: turns posts and their visual contexts into the tensors of the two views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from .checkpoint_files import check_integer, check_list
from .visual_context import PostContext, VisualContext, check_kind, contexts_of
from .wordwise_processor import PostBatch, WordwiseProcessor, _padded, one_each


class ItaProcessor(WordwiseProcessor):
    """Builds the encoder's input from posts and visual contexts (method section 2).

    ```
    T    [CLS] w1 … wn [SEP]
    I+T  [CLS] w1 … wn [SEP] a1 o1 a2 o2 … [SEP] caption 1 [SEP] … [SEP] characters read [SEP]
    ```

    Args:
        tokenizer: the encoder's tokenizer.
        context_kinds: the kinds of context to use, in this order. Any kind of a `VisualContext` can be named; all
            other kinds are ignored.
        separate_kinds: the kinds whose strings each get their own segment. The strings of any other kind are joined
            into one segment.
        max_length: window size of the encoder in tokens. Default: the tokenizer's `model_max_length`, at most 512.
        window_overlap: tokens that consecutive windows of a long post share, at most half a window.
        max_context_length: maximum length of the context in tokens, separators included. Default: as many as fit.
        segment_ids: whether context tokens get segment id 1, for encoders that have segments. The original does not.
        context_builder: settings of the `VisualContextBuilder` that creates contexts for images that have none.

    Raises:
        ValueError: the tokenizer has no separator or no unknown token, a length is out of range, or the name of a
            kind is invalid.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_kinds: Sequence[str] = ("object_tags", "captions", "ocr"),
        separate_kinds: Sequence[str] = ("captions",),
        max_length: int | None = None,
        window_overlap: int = 256,
        max_context_length: int | None = None,
        segment_ids: bool = False,
        context_builder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            tokenizer, max_length=max_length, window_overlap=window_overlap, context_builder=context_builder
        )
        self.context_kinds = [check_kind(kind) for kind in check_list("context_kinds", context_kinds)]
        self.separate_kinds = [check_kind(kind) for kind in check_list("separate_kinds", separate_kinds)]
        if max_context_length is not None:
            check_integer("max_context_length", max_context_length, 0, "tokens")
        if not isinstance(segment_ids, bool):
            raise ValueError(f"segment_ids is {segment_ids!r:.60} (expected true or false)")
        self.max_context_length = max_context_length
        self.segment_ids = segment_ids

    @property
    def model_input_names(self) -> list[str]:
        """The names of the tensors in a batch with both views."""
        views = ["input_ids", "attention_mask", "cross_input_ids", "cross_attention_mask"]
        return [*views, "word_positions", "has_context"]

    def __call__(
        self,
        posts: str | Sequence[str] | Sequence[Sequence[str]],
        contexts: Sequence[PostContext] | PostContext = None,
        *,
        views: Literal["T", "I+T", "both"] | None = None,
        is_split_into_words: bool = False,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> PostBatch:
        """Creates one batch, padded to its longest row.

        Args:
            posts: one post or a list of posts; with `is_split_into_words`, a list of words or a list of such lists.
            contexts: one visual context per post: a `VisualContext`, a mapping that `VisualContext.from_dict`
                accepts, a list of these (one per image of the post, whose strings follow one another kind by kind), or
                None.
            views: `"T"` (input_ids), `"I+T"` (cross_input_ids) or `"both"`. Default: both if contexts are given,
                otherwise T.
            is_split_into_words: whether the posts are already split into words.
            labels: the tag ids of each post's words.

        Returns:
            `input_ids`, `attention_mask` `(R, L)` for view T; `cross_input_ids`, `cross_attention_mask` `(R, L')` and
            `has_context` `(B,)` for view I+T; `word_positions` `(B, N)`, −1 on padding; `word_rows` `(B, N)` if a post
            needs several windows; `labels` `(B, N)`, −100 on padding, if given.

        Raises:
            ValueError: the numbers of posts, contexts and labels differ, or a post has more or fewer labels than
                words.
            TypeError: a post is not a string (or not a list of strings).
        """
        texts, words, counts = self._read(posts, is_split_into_words)
        given = one_each(contexts, len(texts), "contexts", (VisualContext, Mapping))
        views = views or ("T" if contexts is None else "both")
        if views not in ("T", "I+T", "both"):
            raise ValueError(f"unknown views {views!r} (expected 'T', 'I+T' or 'both')")
        rows, positions, word_rows, owners = self._post_rows(self._pieces_of(words, counts), counts)
        data: dict[str, torch.Tensor] = {}
        if views != "I+T":
            data |= self._tensors(rows, [[] for _ in rows])
        if views != "T":
            segments = self._segments(given)
            # A post that spans several windows leaves no room for its context.
            rooms = {b: self.max_length - len(row) for b, row in zip(owners, rows, strict=True)}
            rooms |= {b: 0 for b, windows in Counter(owners).items() if windows > 1}
            tails = [self._fit(segments[b], rooms[b], counts) for b in range(len(texts))]
            cross = self._tensors(rows, [tails[b] for b in owners])
            data |= {f"cross_{name}": tensor for name, tensor in cross.items()}
            data["has_context"] = torch.tensor([bool(tail) for tail in tails], dtype=torch.bool)
        data |= self._word_places(positions, word_rows if len(rows) > len(texts) else None)
        data |= self._labels(labels, words)
        return PostBatch(data, texts, words, counts, owners)

    def for_prediction(
        self, posts: Sequence[Any], contexts: Sequence[PostContext], is_split_into_words: bool = False
    ) -> PostBatch:
        """Creates the batch of these posts in view I+T, or in view T if none of them has a context."""
        contexts = [VisualContext.joined(contexts_of(c)) if isinstance(c, (list, tuple)) else c for c in contexts]
        views: Literal["T", "I+T"] = "I+T" if any(contexts) else "T"
        return self(posts, contexts, views=views, is_split_into_words=is_split_into_words)

    def _segments(self, contexts: Sequence[PostContext]) -> list[list[list[int]]]:
        """The context of every post as segments of tokens, in the order in which they follow the post."""
        strings: list[list[str]] = []
        for context in contexts:
            kinds = VisualContext.joined(contexts_of(context)).kinds
            segments = []
            for kind in self.context_kinds:
                texts = list(kinds.get(kind, ()))
                segments += texts if kind in self.separate_kinds else [" ".join(texts)]
            strings.append([segment for segment in segments if segment])
        flat = [segment for segments in strings for segment in segments]
        encoded = iter(self._encode(flat))
        return [[pieces for _ in segments if (pieces := next(encoded))] for segments in strings]

    def _fit(self, segments: list[list[int]], room: int, counts: Counter[str]) -> list[int]:
        """The context tokens after the post, a separator after each segment, truncated to fit the room left."""
        separator = self.tokenizer.sep_token_id
        whole = [piece for segment in segments for piece in [*segment, separator]]
        room = room if self.max_context_length is None else min(room, self.max_context_length)
        counts["contexts"] += bool(whole)
        if len(whole) <= room:
            return whole
        kept = whole[: max(room - 1, 0)]
        if kept and kept[-1] != separator:
            kept.append(separator)
        counts["contexts_cut"] += 1
        counts["context_pieces_cut"] += len(whole) - len(kept)
        return kept

    def _tensors(self, rows: list[list[int]], tails: list[list[int]]) -> dict[str, torch.Tensor]:
        whole = [row + tail for row, tail in zip(rows, tails, strict=True)]
        tensors = self._view(whole)
        if self.segment_ids:
            segments = [[0] * len(row) + [1] * len(tail) for row, tail in zip(rows, tails, strict=True)]
            tensors["token_type_ids"] = _padded(segments, 0)
        return tensors
