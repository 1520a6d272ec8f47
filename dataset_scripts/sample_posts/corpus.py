"""Reads the sample corpus from its source, `posts.yaml`, and renders the content of its files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SPLITS = ("train", "valid", "test")
TYPES = ("PER", "LOC", "ORG", "MISC")
DECIDED_BY = ("ocr", "captions", "object_tags", "post", "usage")
"""What can tell the types of a post's names: a kind of visual context, the post's own words, or the usual reading."""

_PART = re.compile(r"\[([^\]]+)\](\S+)|(\S+)")
_KEYS = {"id", "post", "decided_by", "scene", "lettering", "captions", "object_tags"}


@dataclass(frozen=True)
class SamplePost:
    """One post and its picture.

    Attributes:
        id: the post's name; its picture is `images/<id>.png` or `.jpg`.
        words: the words.
        tags: one BIO tag per word.
        decided_by: one of `DECIDED_BY`.
        scene: the drawing function's name, None for a post with no picture.
        lettering: the lines of text in the picture.
        captions: captions that a captioner would give, best first.
        object_tags: objects that a tagger would find, most confident first.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    decided_by: str
    scene: str | None = None
    lettering: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    object_tags: tuple[str, ...] = ()

    @property
    def entities(self) -> list[tuple[str, str]]:
        """The names with their types, left to right."""
        found: list[tuple[str, str]] = []
        for word, tag in zip(self.words, self.tags, strict=True):
            if tag.startswith("B-"):
                found.append((word, tag[2:]))
            elif tag.startswith("I-"):
                found[-1] = (f"{found[-1][0]} {word}", tag[2:])
        return found

    @property
    def picture_names_it(self) -> bool:
        """Whether one of the post's names appears in the picture or its caption."""
        shown = " ".join((*self.lettering, *self.captions)).lower()
        return any(re.search(rf"\b{re.escape(name.lower())}\b", shown) for name, _ in self.entities)


def read_posts(path: Path) -> dict[str, list[SamplePost]]:
    """Read the posts of every split, in file order.

    Args:
        path: `posts.yaml`; the top of the file explains the entries.

    Raises:
        ValueError: an entry has an unknown key, entity type or `decided_by`, or an id is repeated.
    """
    entries: dict[str, list[dict[str, Any]]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    corpus = {split: [_read_entry(entry, path) for entry in entries[split]] for split in SPLITS}
    ids = Counter(post.id for posts in corpus.values() for post in posts)
    if twice := [name for name, count in ids.items() if count > 1]:
        raise ValueError(f"{path.name}: the id {twice[0]!r} stands {ids[twice[0]]} times")
    return corpus


def _read_entry(entry: dict[str, Any], path: Path) -> SamplePost:
    where = f"{path.name}, post {entry.get('id', entry)!r}"
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"{where}: unknown key {min(unknown)!r} (expected {', '.join(sorted(_KEYS))})")
    if entry["decided_by"] not in DECIDED_BY:
        raise ValueError(f"{where}: decided_by is {entry['decided_by']!r} (expected {', '.join(DECIDED_BY)})")
    words: list[str] = []
    tags: list[str] = []
    for name, entity_type, word in _PART.findall(entry["post"]):
        if name and entity_type not in TYPES:
            raise ValueError(f"{where}: [{name}] has the type {entity_type!r} (expected {', '.join(TYPES)})")
        entity = name.split()
        words += entity or [word]
        tags += [f"{'I' if i else 'B'}-{entity_type}" for i in range(len(entity))] or ["O"]
    kinds = {kind: tuple(entry.get(kind, ())) for kind in ("lettering", "captions", "object_tags")}
    return SamplePost(entry["id"], tuple(words), tuple(tags), entry["decided_by"], entry.get("scene"), **kinds)


def to_conll(posts: Sequence[SamplePost]) -> str:
    """Format the posts as a Twitter-17 file: `IMGID:<id>`, `word<TAB>tag` lines, a blank line."""
    blocks = []
    for post in posts:
        rows = [f"{word}\t{tag}" for word, tag in zip(post.words, post.tags, strict=True)]
        blocks.append("\n".join([f"IMGID:{post.id}", *rows]) + "\n")
    return "\n".join(blocks)


def to_scenes(posts: Sequence[SamplePost]) -> str:
    """The pictures' captions and object tags as JSON lines, one row per post with a picture."""
    rows = [
        {
            "id": post.id,
            "object_tags": post.object_tags,
            "captions": post.captions,
            "source": {"object_tags": "scene", "captions": "scene"},
        }
        for post in posts
        if post.scene
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def statistics(corpus: dict[str, list[SamplePost]], blank_scenes: Sequence[str]) -> str:
    """The corpus statistics: a Markdown table with one column per split.

    Args:
        corpus: the posts by split.
        blank_scenes: the scenes that carry no information about any post.
    """
    columns = [dict(_figures(posts, blank_scenes)) for posts in corpus.values()]
    lines = [f"| | {' | '.join(corpus)} |", f"|---|{'---:|' * len(corpus)}"]
    lines += [f"| {name} | {' | '.join(str(column[name]) for column in columns)} |" for name in columns[0]]
    return "\n".join(lines) + "\n"


def _figures(posts: Sequence[SamplePost], blank_scenes: Sequence[str]) -> Iterator[tuple[str, int]]:
    entities = [entity for post in posts for entity in post.entities]
    readings: dict[str, set[str]] = {}
    for name, entity_type in entities:
        readings.setdefault(name.lower(), set()).add(entity_type)
    blank = [post for post in posts if post.scene in blank_scenes]
    telling = [post for post in posts if post.scene and post.scene not in blank_scenes]
    unrelated = [post for post in telling if post.decided_by in ("post", "usage") and not post.picture_names_it]
    yield "posts", len(posts)
    yield "words", sum(len(post.words) for post in posts)
    yield "entities", len(entities)
    for entity_type in TYPES:
        yield f"entities {entity_type}", sum(found == entity_type for _, found in entities)
    yield "entities of 2 or 3 words", sum(" " in name for name, _ in entities)
    yield "different names", len(readings)
    yield "names with 2 or more types", sum(len(types) > 1 for types in readings.values())
    for decider in DECIDED_BY:
        yield f"posts decided by `{decider}`", sum(post.decided_by == decider for post in posts)
    yield "posts with no name", sum(not post.entities for post in posts)
    yield "posts with 2 names", sum(len(post.entities) == 2 for post in posts)
    yield "pictures", len(blank) + len(telling)
    yield "pictures that say nothing", len(blank)
    yield "pictures about something else", len(unrelated)
    yield "posts with no picture", len(posts) - len(blank) - len(telling)
