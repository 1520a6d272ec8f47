"""Splits a raw post into words as the tweet corpora do, every word with its place in the post."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

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
    words: list[Word] = []
    for match in _TOKEN.finditer(text):
        start = match.start()
        if words and words[-1].end == start and _belongs_together(words[-1].text, match.group()):
            start = words.pop().start
        words.append(Word(text[start : match.end()], start, match.end()))
    return words


def _belongs_together(before: str, after: str) -> bool:
    if _extends(after[0]) or before[-1] == _ZERO_WIDTH_JOINER:
        return True
    if _is_flag_half(after[0]):
        return len(before) == 1 and _is_flag_half(before)
    # a script whose vowel signs are marks goes on with letters behind the mark
    return before[0].isalnum() and unicodedata.category(before[-1]).startswith("M") and after[0].isalnum()


def _extends(character: str) -> bool:
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    is_tag = "\U000e0020" <= character <= "\U000e007f"  # the region letters of sub-national flags
    return is_skin_tone or is_tag or character == _ZERO_WIDTH_JOINER or unicodedata.category(character).startswith("M")


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
