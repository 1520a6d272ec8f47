"""The emissions of posts' words, in passes through the model that are bounded, however many posts there are or long.

What a model says of a word depends on the word's row alone: the window of the post in which it stands, with the post's
image and context. So rows are what is passed through the model, a few at a time, and posts come together again when
their tags are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .entity_decoding import NotFiniteError
from .processing_ita import ItaBatch, WordwiseProcessor

MAX_TOKENS = 8192  # of one pass, padding included; every region of an image counts as one
MAX_ROWS = 256  # of one pass
IMAGES_AT_ONCE = 8  # pass through the vision encoder together
DECODED_POSTS = 256  # pass through the CRF together, if they have no more words than this:
DECODED_WORDS = 16_384  # padding included; a single post may have more


def word_emissions(
    model: Any,
    processor: WordwiseProcessor,
    batch: ItaBatch,
    images: Sequence[Any] | None = None,
    batch_size: int = MAX_ROWS,
) -> list[torch.Tensor]:
    """The emissions of every post's words.

    Posts of similar length share a pass. A pass holds no more than `MAX_TOKENS` and `MAX_ROWS`, whatever `batch_size`
    says, and images are opened when their posts' turn comes.

    Args:
        model: an `EntityTagger`, or anything that is called like one.
        processor: what made the batch.
        batch: from the processor's `for_prediction`.
        images: one for each post as the processor's `image_tensors` takes them, None where there is none.
        batch_size: most rows in a pass: posts, or windows of long ones.

    Returns:
        For every post `(n, C)`, float32, on the model's device.

    Raises:
        NotFiniteError: the model gave NaN or infinity for a word; it knows the post.
        ValueError: the images of two posts have different numbers of regions.
    """
    positions = batch["word_positions"]  # (B, N)
    post, _ = (positions >= 0).nonzero(as_tuple=True)  # (W,), of all words, post by post
    places = positions[positions >= 0]  # (W,)
    rows = batch["word_rows"][positions >= 0] if "word_rows" in batch else post  # (W,)
    by_row = rows.argsort(stable=True).split(rows.bincount(minlength=len(batch.row_posts)).tolist())  # R times (w,)
    words = [word for words in batch.words for word in words]
    regions = _Regions(model, processor, batch, images)
    found = torch.empty(0)
    for chosen in _passes(batch, [len(row) for row in by_row], min(batch_size, MAX_ROWS), regions.per_row):
        index = pad_sequence([by_row[row] for row in chosen], batch_first=True, padding_value=-1)  # (R', N')
        is_word = index >= 0
        owners = [batch.row_posts[row] for row in chosen]
        given = _view(batch, chosen) | regions.of(owners)
        given["word_positions"] = torch.where(is_word, places[index], -1)
        given |= processor.word_tensors([[words[n] for n in row if n >= 0] for row in index.tolist()], batch.counts)
        if "object_ids" in batch:
            given["object_ids"] = batch["object_ids"][owners]
        given = {name: tensor.to(model.device) for name, tensor in given.items()}
        emissions = model(**given, emissions_only=True).emissions.float()  # (R', N', C)
        inside = emissions[is_word.to(emissions.device)]  # (w', C)
        if not inside.isfinite().all():
            wrong = index[is_word][~inside.isfinite().all(-1).cpu()]
            raise NotFiniteError(int(post[wrong].min()))
        if not len(found):
            found = inside.new_empty(len(words), inside.shape[-1])
        found[index[is_word].to(found.device)] = inside
    return list(found.split([len(post) for post in batch.words])) if len(words) else [found] * len(batch.words)


def decoding_batches(emissions: Sequence[torch.Tensor]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Posts of similar length, as many as pass through the CRF together; posts without words are in none.

    Args:
        emissions: of every post, `(n, C)`.

    Yields:
        The numbers of the posts, their emissions `(B, N, C)`, and the mask of their words `(B, N)`.
    """
    lengths = list(map(len, emissions))
    order = sorted((n for n, length in enumerate(lengths) if length), key=lengths.__getitem__, reverse=True)
    while order:
        size = min(DECODED_POSTS, max(1, DECODED_WORDS // lengths[order[0]]))
        posts, order = order[:size], order[size:]
        padded = pad_sequence([emissions[n] for n in posts], batch_first=True)
        words = torch.tensor([lengths[n] for n in posts])
        yield posts, padded, (torch.arange(padded.shape[1]) < words[:, None]).to(padded.device)


def attention_of(batch: ItaBatch) -> torch.Tensor:
    """The attention mask of the batch's one view, `(R, L)`."""
    return batch["attention_mask"] if "attention_mask" in batch else batch["cross_attention_mask"]


def _passes(batch: ItaBatch, words: list[int], most_rows: int, more: int) -> Iterator[list[int]]:
    """Rows with words in groups of similar length, the longest first, the rows of a post next to each other.

    Args:
        batch: the batch.
        words: how many words each row gives.
        most_rows: of a group.
        more: what a row takes beside its tokens.
    """
    lengths = attention_of(batch).sum(1).tolist()  # (R,)
    longest = [0] * len(batch.texts)
    for row, post in enumerate(batch.row_posts):
        longest[post] = max(longest[post], lengths[row])
    order = sorted((row for row, count in enumerate(words) if count), key=lambda row: -longest[batch.row_posts[row]])
    rows: list[int] = []
    width = 0
    for row in order:
        width = max(width, lengths[row] + more)
        if rows and (len(rows) == most_rows or (len(rows) + 1) * width > MAX_TOKENS):
            yield rows
            rows, width = [], lengths[row] + more
        rows.append(row)
    if rows:
        yield rows


def _view(batch: ItaBatch, rows: list[int]) -> dict[str, torch.Tensor]:
    """These rows of the batch's tokens, padded to their own longest."""
    length = int(attention_of(batch)[rows].sum(1).max())
    names = (name for name in batch if name.endswith(("input_ids", "attention_mask", "token_type_ids")))
    return {name: batch[name][rows, :length] for name in names}


class _Regions:
    """What a model that looks at images sees in those of the posts, kept as long as a post's rows pass."""

    def __init__(
        self, model: Any, processor: WordwiseProcessor, batch: ItaBatch, images: Sequence[Any] | None
    ) -> None:
        self._model, self._processor, self._batch = model, processor, batch
        self._images = [] if images is None or all(image is None for image in images) else images
        self._seen: dict[int, torch.Tensor | None] = {}
        self.per_row = model.config.num_regions if self._images else 0

    def of(self, posts: list[int]) -> dict[str, torch.Tensor]:
        """`has_image` `(R,)` and, if one has, `region_features` `(R, regions, size)`, for rows of these posts."""
        if not self._images:
            return {}
        self._seen = {post: self._seen[post] for post in posts if post in self._seen}
        new = list(dict.fromkeys(post for post in posts if post not in self._seen))
        for start in range(0, len(new), IMAGES_AT_ONCE):
            self._look_at(new[start : start + IMAGES_AT_ONCE])
        each = [self._seen[post] for post in posts]
        shapes = {tuple(one.shape) for one in each if one is not None}
        if len(shapes) > 1:
            raise ValueError(
                f"the images have regions of the sizes {' and '.join(map(str, sorted(shapes)))}: the image processor "
                "must crop (do_center_crop, crop_size)"
            )
        given = {"has_image": torch.tensor([one is not None for one in each])}
        for shape in shapes:
            nothing = torch.zeros(shape)
            given["region_features"] = torch.stack([nothing if one is None else one for one in each])
        return given

    def _look_at(self, posts: list[int]) -> None:
        tensors = self._processor.image_tensors([self._images[post] for post in posts], self._batch.counts)
        there = [post for post, is_there in zip(posts, tensors["has_image"].tolist(), strict=True) if is_there]
        self._seen |= dict.fromkeys(posts)
        if "region_features" in tensors:
            self._seen |= zip(there, tensors["region_features"][tensors["has_image"]], strict=True)
        elif there:
            pixels = tensors["pixel_values"][tensors["has_image"]].to(self._model.device)
            self._seen |= zip(there, self._model.region_features(pixels).float().cpu(), strict=True)
