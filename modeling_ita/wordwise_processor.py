"""A post becomes words, tokens and windows, and what a model finds becomes characters again."""

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
_KNOWN_WORDS = 100_000  # words whose pieces are remembered, unless they are longer than
_KNOWN_LENGTH = 32  # characters, or
_KNOWN_PIECES = 16  # pieces, so that no post can fill the memory


@dataclass(frozen=True)
class Entity:
    """A named entity of a post.

    Attributes:
        type: the entity type, such as `PER`.
        score: posterior probability that exactly these words form this entity.
        word: the entity as it stands in the post, `text[start:end]`.
        start: first character in the post's string.
        end: one past the last character.
        word_start: first word.
        word_end: one past the last word.
    """

    type: str
    score: float
    word: str
    start: int
    end: int
    word_start: int
    word_end: int


class PostBatch(BatchFeature):
    """Tensors for `ItaForTokenClassification.forward`, and beside them what the posts were.

    Attributes:
        texts: the posts as strings; posts given as words are joined by spaces.
        words: the words of every post, with their characters in its text.
        counts: what was lost or replaced in this batch: `words`, `empty_posts`, `unknown_words` (no piece, the
            unknown token in their place), `shortened_words` (more pieces than the window holds), `windowed_posts`,
            `contexts`, `contexts_cut`, `context_pieces_cut`.
        row_posts: the post of every row, `R` numbers.
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
    """What the processors of all systems share: posts to words, words to pieces one by one, and spans back to posts.

    Args:
        parts: the tokenizer, and what else the processor is made of.
        max_length: length of the encoder's window in pieces. Default: the tokenizer's `model_max_length`, at most 512.
        window_overlap: pieces that neighbouring windows of a long post share, at most half a window.
        context_builder: settings of the `VisualContextBuilder` that makes the context of an image, if it has none.

    Raises:
        ValueError: the tokenizer lacks a separator or an unknown token, a length is out of range, or a kind has no
            usable name.
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
                f"{name} has no separator or no unknown token, and {type(self).__name__} needs both: "
                f"{TOKENIZER_CONFIG} names them"
            )
        self.max_length = min(int(longest), 512) if max_length is None else max_length
        self.window_overlap = window_overlap
        self.context_builder = context_builder
        check_integer("max_length", self.max_length, 8, "pieces")
        check_integer("window_overlap", window_overlap, 0, "pieces")
        if context_builder is not None:
            check_recipes(context_builder)
        self._pieces: dict[str, list[int]] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a processor; the arguments are those of `ProcessorMixin.from_pretrained`.

        Raises:
            OSError: a file is missing.
            ValueError: a file is broken, or holds a setting of the wrong type or out of range; the message names it.
        """
        name = pretrained_model_name_or_path
        with reading(name, PROCESSOR):
            folder = folder_of(name, kwargs, PROCESSOR, TOKENIZER_CONFIG, TOKENIZER)
            if folder is not None:
                check_processor_files(folder)
            processor = super().from_pretrained(name, *args, **kwargs)
        with reading(name, TOKENIZER):  # some vocabularies load, and fail at the first word that they do not have
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
        """Entities with characters of the caller's own strings, from the model's `decode_entities`.

        Args:
            spans: the spans of words of every post with their scores.
            batch: the batch that was decoded.
        """
        return [
            [_entity(span, score, text, words) for span, score in row]
            for row, text, words in zip(spans, batch.texts, batch.words, strict=True)
        ]

    def check_model(self, config: Any) -> None:
        """Refuses the settings of a model that does not take what is made here.

        Args:
            config: the model's configuration.

        Raises:
            ValueError: the tokenizer is that of another encoder, which has more entries.
        """
        embedded, last = config.text_config.vocab_size, max(self.tokenizer.get_vocab().values(), default=0)
        if last >= embedded:
            raise ValueError(
                f"the tokenizer has an entry {last:,}, and the model's encoder embeds {embedded:,}: tokenizer.json is "
                "another model's"
            )

    def for_prediction(
        self, posts: Sequence[Any], contexts: Sequence[VisualContext | None], is_split_into_words: bool = False
    ) -> PostBatch:
        """The batch of these posts in the one view that says most about them, for `word_emissions`.

        It lacks what `word_tensors` and `image_tensors` add pass by pass.
        """
        raise NotImplementedError

    def word_tensors(self, posts: Sequence[Sequence[Word]], counts: Counter[str]) -> dict[str, torch.Tensor]:
        """What a model is given of words beside their pieces, `(B, N, …)` each; most are given nothing."""
        return {}

    def image_tensors(self, images: Sequence[Any], counts: Counter[str] | None = None) -> dict[str, torch.Tensor]:
        """What a model that looks at the images themselves is given of them; others are given nothing."""
        return {}

    def _read(self, posts: Any, is_split_into_words: bool) -> tuple[list[str], list[list[Word]], Counter[str]]:
        """The posts as strings, their words, and how many there are."""
        texts, words = _read_posts(posts, is_split_into_words)
        return texts, words, Counter(words=sum(map(len, words)), empty_posts=sum(not post for post in words))

    def _pieces_of(self, posts: list[list[Word]], counts: Counter[str]) -> list[list[list[int]]]:
        """The pieces of every word, looked up one by one so that no word can be lost or shift the next."""
        wanted = {word.text for post in posts for word in post}
        known = {text: found for text in wanted if (found := self._pieces.get(text)) is not None}
        new = [text for text in wanted if text not in known]
        # The space before it makes every tokenizer see a word inside a sentence.
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
            self._pieces = {}  # another thread goes on with the old ones
        self._pieces.update(islice(short.items(), _KNOWN_WORDS))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Half a surrogate pair, as a cut emoji leaves in JSON, is no character to a tokenizer: it becomes "?".
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        # verbose=False: what is longer than the window is cut or windowed here, and counted
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def _post_rows(
        self, posts: list[list[list[int]]], counts: Counter[str]
    ) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[int]]:
        """Rows `[CLS] words [SEP]`, for every word its position and row, and for every row its post."""
        rows: list[list[int]] = []
        owners: list[int] = []
        positions, word_rows = [], []
        opening = self.tokenizer.cls_token_id
        for b, post in enumerate(posts):
            offsets = [0, *accumulate(map(len, post))]  # pieces before word n
            overlap = min(self.window_overlap, self.max_length // 2)  # more would move a window by a word
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
        """Where the words are; their rows too, if a post has several."""
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
    """What was given beside the posts, one for each, None where there is none.

    Args:
        given: one of the `single` types, an iterable of these and None, or None.
        posts: how many posts there are.
        what: what is given, for the message: `"contexts"`.
        single: the types of one.

    Raises:
        ValueError: it is not one for each post.
    """
    if given is None:
        return [None] * posts
    each = [given] if isinstance(given, single) else list(given)
    if len(each) != posts:
        raise ValueError(f"{posts} posts but {len(each)} {what} (expected one for each post, None for none)")
    return each


def _checked(labels: Sequence[Sequence[int]], words: list[list[Word]]) -> list[list[int]]:
    if len(labels) != len(words):
        raise ValueError(f"{len(words)} posts but labels of {len(labels)}")
    for number, (tags, post) in enumerate(zip(labels, words, strict=True)):
        if len(tags) != len(post):
            raise ValueError(f"post {number} has {len(post)} words but {len(tags)} labels")
    return [list(tags) for tags in labels]


def _windows(offsets: list[int], budget: int, overlap: int) -> list[tuple[int, int]]:
    """Ranges of words that hold at most `budget` pieces each and overlap by at most `overlap` pieces."""
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
    """For every word the window in which it is furthest from an edge that cuts the post."""
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
    """A word of a post, `text[start:end]` of the post's own string."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Splits a post as Twitter-15, Twitter-17 and SNAP are split.

    `@` and `#` stand apart from the name behind them, as does other punctuation; URLs, decimal numbers, dotted
    abbreviations (`U.S.`) and emoticons stay whole; combining marks, skin tones, variation selectors, joined emoji
    and flags stay with what they modify.
    """
    places: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if places and places[-1][1] == start and _belongs_together(text, *places[-1], start):
            start, _ = places.pop()
        places.append((start, end))
    return [Word(text[start:end], start, end) for start, end in places]


def _belongs_together(text: str, start: int, end: int, after: int) -> bool:
    """Whether what begins at `after` goes on with the word `text[start:end]` right before it."""
    first, last, following = text[start], text[end - 1], text[after]
    if _extends(following) or last == _ZERO_WIDTH_JOINER:
        return True
    if _is_flag_half(following):
        return end - start == 1 and _is_flag_half(first)
    # a script whose vowel signs are marks goes on with letters behind the mark
    return first.isalnum() and unicodedata.category(last).startswith("M") and following.isalnum()


def _extends(character: str) -> bool:
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    is_tag = "\U000e0020" <= character <= "\U000e007f"  # the region letters of sub-national flags
    return is_skin_tone or is_tag or character == _ZERO_WIDTH_JOINER or unicodedata.category(character).startswith("M")


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
