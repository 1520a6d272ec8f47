"""Splits posts into words, tokens and windows, and maps predicted spans back to characters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from .checkpoint_files import (
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    broken_part,
    check_integer,
    check_processor_files,
    folder_of,
    reading,
)
from .context_builder import check_recipes
from .tag_scheme import Span
from .visual_context import VisualContext

IGNORED = -100  # the label of padding, as everywhere in transformers
# The cache of tokenized words is bounded, so that no post can fill the memory.
_KNOWN_WORDS = 100_000  # entries
_KNOWN_LENGTH = 32  # characters of a word; longer ones are not cached
_KNOWN_PIECES = 16  # tokens of a word; longer ones are not cached


@dataclass(frozen=True)
class Entity:
    """A named entity of a post.

    Attributes:
        type: the entity type, such as `PER`.
        score: posterior probability that exactly these words form this entity.
        word: the entity's text in the post, `text[start:end]`.
        start: index of the first character in the post.
        end: index one past the last character.
        word_start: index of the first word.
        word_end: index one past the last word.
    """

    type: str
    score: float
    word: str
    start: int
    end: int
    word_start: int
    word_end: int


class PostBatch(BatchFeature):
    """Tensors for `ItaForTokenClassification.forward`, together with the posts they were made from.

    Attributes:
        texts: the posts as strings; words of pre-split posts are joined by spaces.
        words: the words of every post, with their character offsets in its text.
        counts: how much of this batch was read, lost or replaced: `words`, `empty_posts`, `unknown_words` (the
            tokenizer returns nothing, the unknown token replaces them), `shortened_words` (more tokens than fit the
            window), `windowed_posts`, `contexts`, `contexts_cut`, `context_pieces_cut` (context tokens cut).
        row_posts: for each of the `R` rows, the index of its post.
    """

    texts: list[str]
    words: list[list[Word]]
    counts: Counter[str]
    row_posts: list[int]

    def __init__(
        self,
        data: dict[str, Any],
        texts: list[str],
        words: list[list[Word]],
        counts: Counter[str],
        row_posts: list[int],
    ) -> None:
        super().__init__(data)
        self.texts, self.words, self.counts, self.row_posts = texts, words, counts, row_posts


class WordwiseProcessor(ProcessorMixin):
    """Base class of the processors: splits posts into words, tokenizes each word alone, maps spans back to posts.

    Args:
        parts: the tokenizer and the processor's other parts.
        max_length: window size of the encoder in tokens. Default: the tokenizer's `model_max_length`, at most 512.
        window_overlap: tokens that consecutive windows of a long post share, at most half a window.
        context_builder: settings of the `VisualContextBuilder` that creates contexts for images that have none.

    Raises:
        ValueError: the tokenizer has no separator or no unknown token, a length is out of range, or the name of a
            kind is invalid.
    """

    context_kinds: Sequence[str]

    def __init__(
        self, *parts: Any, max_length: int | None, window_overlap: int, context_builder: dict[str, Any] | None
    ) -> None:
        super().__init__(*parts)
        longest = self.tokenizer.model_max_length
        check_integer("the tokenizer's model_max_length", longest, 1)
        if self.tokenizer.sep_token_id is None or self.tokenizer.unk_token_id is None:
            name = type(self.tokenizer).__name__
            raise ValueError(
                f"{type(self).__name__} needs a separator and an unknown token, and {name} lacks one of them: "
                f"set sep_token and unk_token in {TOKENIZER_CONFIG}"
            )
        self.max_length = min(int(longest), 512) if max_length is None else max_length
        self.window_overlap = window_overlap
        self.context_builder = context_builder
        check_integer("max_length", self.max_length, 8, "tokens")
        check_integer("window_overlap", window_overlap, 0, "tokens")
        if context_builder is not None:
            check_recipes(context_builder)
        self._pieces: dict[str, list[int]] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a processor; takes the same arguments as `ProcessorMixin.from_pretrained`.

        Raises:
            OSError: a file is missing.
            ValueError: a file is broken, or a setting in it has the wrong type or is out of range; the message names
                the file.
        """
        name = pretrained_model_name_or_path
        with reading(name, PROCESSOR):
            folder = folder_of(name, kwargs, PROCESSOR, TOKENIZER_CONFIG, TOKENIZER)
            if folder is not None:
                check_processor_files(folder)
            processor = super().from_pretrained(name, *args, **kwargs)
        with reading(name, TOKENIZER):  # some broken vocabularies load, and fail only at the first unknown word
            processor._encode([" \N{SNOWMAN}"])
        return processor

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: Any, subfolder: str = "", **kwargs: Any
    ) -> Any:
        folder = folder_of(pretrained_model_name_or_path, {"subfolder": subfolder})
        try:
            return super()._load_tokenizer_from_pretrained(
                sub_processor_type, pretrained_model_name_or_path, subfolder, **kwargs
            )
        except Exception:
            with reading(pretrained_model_name_or_path, "" if folder is None else broken_part(folder)):
                raise

    def post_process_entities(
        self, spans: Sequence[Sequence[tuple[Span, float]]], batch: PostBatch
    ) -> list[list[Entity]]:
        """Turns the word spans of the model's `decode_entities` into entities with character offsets.

        Args:
            spans: for every post, its word spans with their scores.
            batch: the batch that was decoded.

        Returns:
            For every post its entities; offsets count characters of the caller's own string.
        """
        return [
            [_entity(span, score, text, words) for span, score in row]
            for row, text, words in zip(spans, batch.texts, batch.words, strict=True)
        ]

    def check_model(self, config: Any) -> None:
        """Checks that a model accepts the output of this processor.

        Args:
            config: the model's configuration.

        Raises:
            ValueError: the tokenizer has token ids that the model's encoder does not embed.
        """
        embedded, last = config.text_config.vocab_size, max(self.tokenizer.get_vocab().values(), default=0)
        if last >= embedded:
            raise ValueError(
                f"the tokenizer has the token id {last:,}, but the model's encoder embeds only {embedded:,} tokens: "
                "tokenizer.json belongs to another model"
            )

    def for_prediction(
        self, posts: Sequence[Any], contexts: Sequence[VisualContext | None], is_split_into_words: bool = False
    ) -> PostBatch:
        """Creates the batch for `word_emissions`, in the one view that holds most about these posts.

        `word_tensors` and `image_tensors` add the remaining tensors, pass by pass.
        """
        raise NotImplementedError

    def word_tensors(self, posts: Sequence[Sequence[Word]], counts: Counter[str]) -> dict[str, torch.Tensor]:
        """Further inputs per word, `(B, N, …)` each, for models that take any. Default: none."""
        return {}

    def image_tensors(self, images: Sequence[Any], counts: Counter[str] | None = None) -> dict[str, torch.Tensor]:
        """Image inputs, for models that look at the images themselves. Default: none."""
        return {}

    def _read(self, posts: Any, is_split_into_words: bool) -> tuple[list[str], list[list[Word]], Counter[str]]:
        """The posts as strings, their words, and the counts of both."""
        texts, words = _read_posts(posts, is_split_into_words)
        return texts, words, Counter(words=sum(map(len, words)), empty_posts=sum(not post for post in words))

    def _pieces_of(self, posts: list[list[Word]], counts: Counter[str]) -> list[list[list[int]]]:
        """The tokens of every word; each word is tokenized alone, so that none can get lost or shift the next."""
        wanted = {word.text for post in posts for word in post}
        known = {text: found for text in wanted if (found := self._pieces.get(text)) is not None}
        new = [text for text in wanted if text not in known]
        # With a leading space, every tokenizer treats the word as one inside a sentence.
        encoded = dict(zip(new, self._encode([f" {text}" for text in new]), strict=True))
        self._remember(encoded)
        known |= encoded
        longest = self.max_length - 2
        pieces = []
        for post in posts:
            each = [known[word.text] for word in post]
            counts["unknown_words"] += sum(not word for word in each)
            counts["shortened_words"] += sum(len(word) > longest for word in each)
            pieces.append([word[:longest] or [self.tokenizer.unk_token_id] for word in each])
        return pieces

    def _remember(self, pieces: dict[str, list[int]]) -> None:
        short = {text: n for text, n in pieces.items() if len(text) <= _KNOWN_LENGTH and len(n) <= _KNOWN_PIECES}
        if len(self._pieces) + len(short) > _KNOWN_WORDS:
            self._pieces = {}  # a new dictionary, since another thread may still read the old one
        self._pieces.update(islice(short.items(), _KNOWN_WORDS))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Tokenizers refuse half a surrogate pair, which a truncated emoji leaves in JSON: it becomes "?".
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        # verbose=False: no warning about long texts, which are truncated or windowed here, and counted
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def _post_rows(
        self, posts: list[list[list[int]]], counts: Counter[str]
    ) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[int]]:
        """Rows `[CLS] words [SEP]`; the position and the row of every word; the post of every row."""
        rows: list[list[int]] = []
        owners: list[int] = []
        positions, word_rows = [], []
        opening = self.tokenizer.cls_token_id
        for b, post in enumerate(posts):
            offsets = [0, *accumulate(map(len, post))]  # tokens before word n
            overlap = min(self.window_overlap, self.max_length // 2)  # more would advance windows word by word
            windows = _windows(offsets, self.max_length - 2, overlap)
            counts["windowed_posts"] += len(windows) > 1
            best = _best_windows(windows, offsets)
            home = [len(rows) + index for index in best]
            places = [
                offsets[word] - offsets[windows[index][0]] + (opening is not None) for word, index in enumerate(best)
            ]
            for first, last in windows:
                inside = [piece for word in post[first:last] for piece in word]
                rows.append([*([] if opening is None else [opening]), *inside, self.tokenizer.sep_token_id])
                owners.append(b)
            positions.append(places)
            word_rows.append(home)
        return rows, positions, word_rows, owners

    def _view(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": _padded(rows, self.tokenizer.pad_token_id or 0),
            "attention_mask": _padded([[1] * len(row) for row in rows], 0),
        }

    def _word_places(self, positions: list[list[int]], rows: list[list[int]] | None) -> dict[str, torch.Tensor]:
        """The positions of the words; their rows too, if a post has several."""
        return {"word_positions": _padded(positions, -1)} | ({} if rows is None else {"word_rows": _padded(rows, 0)})

    def _labels(self, labels: Sequence[Sequence[int]] | None, words: list[list[Word]]) -> dict[str, torch.Tensor]:
        return {} if labels is None else {"labels": _padded(_checked(labels, words), IGNORED)}


def _read_posts(posts: Any, is_split_into_words: bool) -> tuple[list[str], list[list[Word]]]:
    if is_split_into_words:
        batch = [posts] if posts and all(isinstance(post, str) for post in posts) else posts
        for number, post in enumerate(batch):
            if isinstance(post, str) or not all(isinstance(word, str) for word in post):
                raise TypeError(
                    f"post {number} is not a list of words (is_split_into_words=True expects lists of strings)"
                )
        words = []
        for post in batch:
            starts = accumulate((len(word) + 1 for word in post), initial=0)
            words.append([Word(word, start, start + len(word)) for word, start in zip(post, starts, strict=False)])
        return [" ".join(post) for post in batch], words
    texts = [posts] if isinstance(posts, str) else list(posts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"post {number} is a {type(text).__name__}, not a string (lists of words: is_split_into_words=True)"
            )
    return texts, [split_words(text) for text in texts]


def one_each(given: Any, posts: int, what: str, single: tuple[type, ...]) -> list[Any]:
    """Lists what was given along with the posts, one item per post, None where there is none.

    Args:
        given: one item of a `single` type, an iterable of such items and None, or None.
        posts: number of posts.
        what: name of the items for the error message, such as `"contexts"`.
        single: the types of a single item.

    Raises:
        ValueError: the number of items differs from the number of posts.
    """
    if given is None:
        return [None] * posts
    each = [given] if isinstance(given, single) else list(given)
    if len(each) != posts:
        raise ValueError(f"{posts} posts but {len(each)} {what} (expected one per post, or None)")
    return each


def _checked(labels: Sequence[Sequence[int]], words: list[list[Word]]) -> list[list[int]]:
    if len(labels) != len(words):
        raise ValueError(f"{len(words)} posts but labels of {len(labels)}")
    for number, (tags, post) in enumerate(zip(labels, words, strict=True)):
        if len(tags) != len(post):
            raise ValueError(f"post {number} has {len(post)} words but {len(tags)} labels")
    return [list(tags) for tags in labels]


def _windows(offsets: list[int], budget: int, overlap: int) -> list[tuple[int, int]]:
    """Ranges of words with at most `budget` tokens each, which overlap by at most `overlap` tokens."""
    words = len(offsets) - 1
    windows = []
    first = 0
    while True:
        last = first
        while last < words and offsets[last + 1] - offsets[first] <= budget:
            last += 1
        windows.append((first, last))
        if last == words:
            return windows
        following = last
        while following - 1 > first and offsets[last] - offsets[following - 1] <= overlap:
            following -= 1
        first = following


def _best_windows(windows: list[tuple[int, int]], offsets: list[int]) -> list[int]:
    """For every word, the window in which it is furthest from an edge inside the post."""
    words = len(offsets) - 1

    def distance(index: int, word: int) -> float:
        first, last = windows[index]
        left = offsets[word] - offsets[first] if first else float("inf")
        right = offsets[last] - offsets[word + 1] if last < words else float("inf")
        return min(left, right)

    best, earliest = [], 0
    for word in range(words):
        while windows[earliest][1] <= word:
            earliest += 1
        latest = earliest
        while latest + 1 < len(windows) and windows[latest + 1][0] <= word:
            latest += 1
        best.append(max(range(earliest, latest + 1), key=lambda index: distance(index, word)))
    return best


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    if not rows:
        return torch.empty(0, 0, dtype=torch.long)
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=fill)


def side_by_side(posts: Sequence[Sequence[torch.Tensor | None]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pictures of B posts in one tensor, and which of them exist.

    Args:
        posts: by post, a tensor of the same shape for every picture, or None for one that cannot be used.

    Returns:
        If no post has more than one picture: whether a post has one `(B,)`, and the pictures `(B, …)`. Otherwise, with
        M pictures in the post that has most: which pictures exist `(B, M)`, and the pictures `(B, M, …)`. Zeros stand
        for pictures that do not exist. If none exists, the second tensor is None.
    """
    most = max([1, *map(len, posts)])
    rows = [[*post, *[None] * (most - len(post))] for post in posts]
    exists = torch.tensor([[one is not None for one in row] for row in rows], dtype=torch.bool).reshape(-1, most)
    shape = next((one.shape for row in rows for one in row if one is not None), None)
    if shape is None:
        return exists if most > 1 else exists[:, 0], None
    nothing = torch.zeros(shape)
    flat = torch.stack([nothing if one is None else one for row in rows for one in row])  # (B * M, …)
    return (exists, flat.unflatten(0, (-1, most))) if most > 1 else (exists[:, 0], flat)


def _entity(span: Span, score: float, text: str, words: list[Word]) -> Entity:
    start, end = words[span.start].start, words[span.end - 1].end
    return Entity(span.type, score, text[start:end], start, end, span.start, span.end)


_TOKEN = re.compile(
    r"""
      (?:https?://|www\.)\S*[^\s.,!?;:'")\]}…]   # a URL, without the punctuation that closes the sentence
    | (?:[^\W\d_]\.){2,}                          # U.S.  a.m.
    | \d+(?:[.,]\d+)+                             # 9.30  80,000
    | (?<!\w)[:;]-?[()DPp](?!\w)                  # :)  ;-P
    | \w+
    | \S                                          # everything else alone: @ # ' - … and each emoji
    """,
    re.VERBOSE,
)
_ZERO_WIDTH_JOINER = "\u200d"


class Word(NamedTuple):
    """A word of a post: `text`, which is characters `start` to `end` of the post's string."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Splits a post into words, following the conventions of Twitter-15, Twitter-17 and SNAP.

    `@`, `#` and other punctuation become words of their own. URLs, decimal numbers, dotted abbreviations (`U.S.`) and
    emoticons stay whole. Combining marks, skin tones, variation selectors, joined emoji and flags stay with the
    character that they modify.
    """
    places: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if places and places[-1][1] == start and _belongs_together(text, *places[-1], start):
            start, _ = places.pop()
        places.append((start, end))
    return [Word(text[start:end], start, end) for start, end in places]


def _belongs_together(text: str, start: int, end: int, after: int) -> bool:
    """Whether the match at `after` continues the word `text[start:end]` right before it."""
    first, last, following = text[start], text[end - 1], text[after]
    if _extends(following) or last == _ZERO_WIDTH_JOINER:
        return True
    if _is_flag_half(following):
        return end - start == 1 and _is_flag_half(first)
    # in scripts whose vowel signs are marks, letters after the mark continue the word
    return first.isalnum() and unicodedata.category(last).startswith("M") and following.isalnum()


def _extends(character: str) -> bool:
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    is_tag = "\U000e0020" <= character <= "\U000e007f"  # the region letters of sub-national flags
    return is_skin_tone or is_tag or character == _ZERO_WIDTH_JOINER or unicodedata.category(character).startswith("M")


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
