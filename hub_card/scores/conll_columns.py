"""Reads gold and predicted tags from two files in CoNLL columns and checks that they align line by line.

A line holds a word and its columns; the tag is the last column. Columns are separated by TABs, or by spaces in a line
without a TAB. Blank lines separate posts. An optional `IMGID:<id>` line begins a post; `-DOCSTART-` lines are skipped
(conlleval counts them as words in its accuracy). Only newlines end a line: U+00A0, U+0085 and the like occur as words
in these corpora.
"""

from __future__ import annotations

import codecs
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from hub_card.scores.scores import is_tag

ID_PREFIX = "IMGID:"
DOCUMENT_START = "-DOCSTART-"


@dataclass
class ColumnPost:
    """A post from a column file.

    Attributes:
        line: the number of its first line, from 1; this is the id's line if there is one.
        id: its id, if it has one.
        words: the first column.
        tags: the last column.
        lines: the line number of each word.
    """

    line: int
    id: str | None = None
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def read_columns(path: str | os.PathLike[str]) -> list[ColumnPost]:
    """Read the posts of a column file. Posts without words are skipped.

    Raises:
        ValueError: a line is not UTF-8, or lacks a word or a tag; the message names the file and line.
        OSError: the file cannot be read.
    """
    posts: list[ColumnPost] = []
    post: ColumnPost | None = None
    for number, line in _lines(path):
        given_id = line.removeprefix(ID_PREFIX).strip() if line.startswith(ID_PREFIX) and "\t" not in line else None
        columns = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        if not line.strip("\t ") or columns[0] == DOCUMENT_START:
            post = None
            continue
        if post is None or given_id is not None:
            post = ColumnPost(number, given_id)
            posts.append(post)
        if given_id is not None:
            continue
        word, tag = columns[0], columns[-1].strip(" ")
        if len(columns) == 1 or not tag:
            raise ValueError(f"{path}, line {number}: {_quoted(word)} has no tag (expected word<TAB>tag)")
        if not word:
            raise ValueError(f"{path}, line {number}: the tag {_quoted(tag)} has no word (expected word<TAB>tag)")
        if not is_tag(tag):
            expected = "expected O, B-X, I-X, E-X or S-X in the last column"
            raise ValueError(f"{path}, line {number}: {_quoted(tag)} is not a tag ({expected})")
        post.words.append(word)
        post.tags.append(tag)
        post.lines.append(number)
    return [post for post in posts if post.words]


def read_pair(
    gold: str | os.PathLike[str], predicted: str | os.PathLike[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Read the tags of the same posts from two files, aligned word by word.

    Args:
        gold: the file with the gold tags.
        predicted: the file with the predicted tags: the same words in the same order. Ids may be missing on one side.

    Returns:
        The gold and the predicted tags, one list per post.

    Raises:
        ValueError: a line is malformed, a post is in only one file, or posts differ in id, length or a word. The
            message names both files and lines.
        OSError: a file cannot be read.
    """
    posts, others = read_columns(gold), read_columns(predicted)
    _check_ids(gold, posts, predicted, others)
    for post, other in zip_longest(posts, others):
        if post is None or other is None:
            here, there, alone = (gold, predicted, post) if other is None else (predicted, gold, other)
            raise ValueError(f"{here}, line {alone.line}: {_named(alone)} is not in {there} (which ends before it)")
        for i, (word, other_word) in enumerate(zip_longest(post.words, other.words)):
            if word != other_word:
                raise ValueError(
                    f"{_place(gold, post, i)}, but {_place(predicted, other, i)} (expected the same words)"
                )
    return [post.tags for post in posts], [post.tags for post in others]


def _check_ids(
    gold: str | os.PathLike[str],
    posts: list[ColumnPost],
    predicted: str | os.PathLike[str],
    others: list[ColumnPost],
) -> None:
    """If both files give an id for every post, reject posts in only one file, and a different order."""
    if not all(post.id for post in posts + others):
        return
    for here, mine, there, theirs in ((gold, posts, predicted, others), (predicted, others, gold, posts)):
        left = Counter(post.id for post in theirs)
        for post in mine:
            if not left[post.id]:
                raise ValueError(f"{here}, line {post.line}: {_named(post)} is not in {there}")
            left[post.id] -= 1
    for post, other in zip(posts, others, strict=True):
        if post.id != other.id:
            raise ValueError(
                f"{gold}, line {post.line}: {_named(post)}, but {predicted}, line {other.line}: {_named(other)} "
                "(expected the posts in the same order)"
            )


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    for number, content in enumerate(Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            yield number, content.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"the byte 0x{content[error.start]:02x} is not UTF-8 (expected UTF-8 text)"
            raise ValueError(f"{path}, line {number}: {problem}") from error


def _place(path: str | os.PathLike[str], post: ColumnPost, word: int) -> str:
    if word < len(post.words):
        return f"{path}, line {post.lines[word]}: {_quoted(post.words[word])}"
    return f"{path}, line {post.lines[-1] + 1}: the end of the post"


def _named(post: ColumnPost) -> str:
    return f"the post {_quoted(post.id)}" if post.id else f"the post that begins {_quoted(' '.join(post.words[:5]))}"


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else text[:59] + "…", ensure_ascii=False)
