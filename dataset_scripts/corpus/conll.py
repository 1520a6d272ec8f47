"""Reads posts in CoNLL format, as used by the Twitter corpora.

A post is an `IMGID:<id>` line, then `token<TAB>tag` lines, then a blank line. A post with several images names all of
them: `IMGID:<id> <id>`, see `image_names`. Files are split only at newlines and TABs: in these corpora U+00A0, U+0085
and the like are tokens.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from modeling_ita.plain_text import check_name
from modeling_ita.tag_scheme import OUTSIDE, Span, TagScheme

ID_PREFIX = "IMGID:"
LINE_FORMAT = "token<TAB>tag"
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}


class CorpusFault(ValueError):
    """A fault in a file of a corpus, reported as `train.txt, line 214: "Chicago" has no tag (expected token<TAB>tag)`.

    Readers raise the first fault, or, given a list as `faults`, collect all faults in it and go on.

    Attributes:
        file: the name of the file in messages.
        line: the line number, from 1; None for the file as a whole.
        problem: what is wrong, and what was expected.
        unit: what `line` counts: `line`, or `row` in a file without lines.
    """

    def __init__(self, file: str, line: int | None, problem: str, unit: str = "line") -> None:
        super().__init__(f"{file} {problem}" if line is None else f"{file}, {unit} {line}: {problem}")
        self.file, self.line, self.problem, self.unit = file, line, problem, unit


class UnknownTag(CorpusFault):
    """A `tag` that is not in the tag set; `nearest` is the closest one that is."""

    def __init__(self, file: str, line: int, tag: str, reading: TagScheme, rename: Mapping[str, str]) -> None:
        self.tag = tag
        self.nearest = _nearest(tag, (*reading.labels, *(f"{prefix}-{old}" for old in rename for prefix in "BI")))
        types = ", ".join([*reading.types, *rename])
        expected = f"expected O, B-X or I-X with X one of {types}; the nearest is {self.nearest}"
        super().__init__(file, line, f"unknown tag {quote(tag)} ({expected})")


def found(fault: CorpusFault, faults: list[CorpusFault] | None, cause: Exception | None = None) -> None:
    """Append a fault to the list, or raise it if there is no list."""
    if faults is None:
        raise fault from cause
    faults.append(fault)


class Post(NamedTuple):
    """A post as written in its file.

    Attributes:
        id: the post's name, unique in its file.
        image_id: the id in the file, by which its image and context are found (`image_names` takes the names of
            several from it); differs from `id` if several posts in the file have the same id.
        words: the tokens.
        tags: one tag per token.
        first_line: the line number of the first token; the others follow, one per line.
    """

    id: str
    image_id: str
    words: list[str]
    tags: list[str]
    first_line: int


class TaggedPost(NamedTuple):
    """A post with its repaired tags, as ids of a tag scheme, and the entities they encode.

    Attributes:
        post: the post as written in its file.
        tag_ids: one well-formed tag per token.
        entities: the entities under the lenient reading.
        repairs: positions in the post of the tokens whose tags were not well-formed.
    """

    post: Post
    tag_ids: list[int]
    entities: list[Span]
    repairs: list[int]

    @property
    def repaired(self) -> int:
        """How many tags were not well-formed."""
        return len(self.repairs)

    @property
    def strict_entities(self) -> list[Span]:
        """The entities that are well-formed as written in the file: those that a strict scorer counts."""
        return [entity for entity in self.entities if not any(entity.start <= i < entity.end for i in self.repairs)]


def read_posts(
    data: bytes,
    name: str,
    *,
    ids_required: bool = True,
    numbered_as: str = "post",
    faults: list[CorpusFault] | None = None,
) -> tuple[list[Post], Counter[str]]:
    """Read the posts of one file.

    The line `IMGID:17_1 17_2` is above a post with two images, see `image_names`; its id is the whole.

    Posts with a repeated id are kept: the second post with the id `x` gets the id `x#2`. An `IMGID:` line with no
    token below it is skipped. Both are counted.

    With `faults`, nothing is raised: every fault is appended to that list and reading continues. A malformed line
    stays a token of its post, so that the tokens after it keep their line numbers. Its first column becomes the token
    and its last one the tag (`O` for no tag, U+FFFD for no token). Posts without an id, or with an empty one, are
    numbered as if ids were not required. Bytes that are not UTF-8 become U+FFFD.

    Args:
        data: the file's bytes.
        name: the file's name in error messages.
        ids_required: whether every post needs an `IMGID:` line; if not, posts without one are numbered.
        numbered_as: prefix for the ids of numbered posts, as in `train-17` for the 17th post.
        faults: list that collects all faults; None raises the first one.

    Returns:
        The posts, and counts of what was skipped or changed: `posts_empty`, `posts_without_id` (only in a file with
        ids; a blank line inside a post causes one), `ids_repeated`, `carriage_returns` (Windows line endings) and
        `byte_order_marks`.

    Raises:
        CorpusFault: the file is empty or not UTF-8, a line is malformed, or a token has no id above it. The message
            names the file, the line and what was expected.
    """
    counts = Counter(posts_empty=0, posts_without_id=0, ids_repeated=0, carriage_returns=0, byte_order_marks=0)
    posts: list[Post] = []
    ids: Counter[str] = Counter()
    taken: set[str] = set()
    post: Post | None = None
    for number, line in _lines(data, name, counts, faults):
        if not line:
            post = None
            continue
        given_id = _post_id(line)
        if post is None or given_id is not None:
            if given_id == "":
                found(CorpusFault(name, number, f"{quote(line)} names no post (expected {ID_PREFIX}<id>)"), faults)
            elif given_id is None and ids_required:
                problem = f"{quote(line)} stands below no id (expected {ID_PREFIX}<id> above a post)"
                found(CorpusFault(name, number, problem), faults)
            image_id = given_id or f"{numbered_as}-{len(posts) + 1}"
            ids[image_id] += 1
            counts["ids_repeated"] += ids[image_id] > 1
            unique_id = image_id if ids[image_id] == 1 else f"{image_id}#{ids[image_id]}"
            while unique_id in taken:  # `x#2` may be another post's own id
                ids[image_id] += 1
                unique_id = f"{image_id}#{ids[image_id]}"
            taken.add(unique_id)
            counts["posts_without_id"] += not given_id and not ids_required  # where ids are required, this is a fault
            post = Post(unique_id, image_id, [], [], number + (given_id is not None))
            posts.append(post)
        if given_id is None:
            word, tag = _columns(line, name, number, faults)
            post.words.append(word)
            post.tags.append(tag)
    with_words = [post for post in posts if post.words]
    if not with_words:
        problem = f"holds no post (expected {ID_PREFIX}<id>, then a line {LINE_FORMAT} for every word)"
        found(CorpusFault(name, None, problem), faults)
    counts["posts_empty"] = len(posts) - len(with_words)
    if counts["posts_without_id"] == len(posts):
        counts["posts_without_id"] = 0  # the file has no ids at all
    return with_words, counts


def read_tags(
    posts: Sequence[Post],
    name: str,
    scheme: TagScheme,
    rename: Mapping[str, str] | None = None,
    faults: list[CorpusFault] | None = None,
) -> list[TaggedPost]:
    """Read the tags of one file's posts, in BIO or BIOES, into `scheme`.

    An `I-` or `E-` tag that does not continue an entity starts a new one: it becomes `B-` (or `S-`).

    Args:
        posts: the posts of one file.
        name: the file's name in error messages.
        scheme: the target tag set.
        rename: entity types of the file that have another name in `scheme`.
        faults: list that collects all unknown tags, which are then read as `O`; None raises the first one.

    Returns:
        The posts in order, each with the positions of its repaired tags.

    Raises:
        UnknownTag: a tag is not in the tag set. The message names file, line, tag set and the nearest tag.
    """
    rename = rename or {}
    written_in = "bioes" if any(tag[:2] in ("E-", "S-") for post in posts for tag in post.tags) else "bio"
    reading = TagScheme.from_types(scheme.types, written_in)
    tagged = []
    for post in posts:
        tag_ids = []
        for number, tag in enumerate(post.tags, start=post.first_line):
            prefix, dash, entity_type = tag.partition("-")
            tag_id = reading.label2id.get(prefix + dash + rename.get(entity_type, entity_type))
            if tag_id is None:
                found(UnknownTag(name, number, tag, reading, rename), faults)
                tag_id = reading.label2id[OUTSIDE]
            tag_ids.append(tag_id)
        entities = reading.spans(tag_ids)
        well_formed = reading.encode(entities, len(tag_ids))
        repairs = [i for i, pair in enumerate(zip(tag_ids, well_formed, strict=True)) if pair[0] != pair[1]]
        tagged.append(TaggedPost(post, scheme.encode(entities, len(tag_ids)), entities, repairs))
    return tagged


def entity_types(posts: Sequence[Post], name: str, faults: list[CorpusFault] | None = None) -> list[str]:
    """The entity types in the posts of one file, sorted, so that they do not depend on line order.

    With `faults`, a tag that has no type is appended to that list and skipped.

    Raises:
        CorpusFault: a tag is neither `O` nor a BIO or BIOES prefix with a type. The message names file and line.
    """
    types = set()
    for post in posts:
        for number, tag in enumerate(post.tags, start=post.first_line):
            prefix, _, entity_type = tag.partition("-")
            if prefix in tuple("BIES") and entity_type:
                if entity_type in types:
                    continue
                try:
                    types.add(check_name("an entity type", entity_type))
                except ValueError as error:
                    found(CorpusFault(name, number, f"the tag {quote(tag)}: {error}"), faults, error)
            elif tag != "O":
                found(CorpusFault(name, number, f"unknown tag {quote(tag)} (expected O, B-X or I-X)"), faults)
    return sorted(types)


def image_names(image_id: str, known: Container[str]) -> list[str]:
    """The names of a post's images in the id of its `IMGID:` line: `17_1 17_2`, with blanks or commas between them.

    An id may itself contain blanks or commas. It is therefore taken apart only if the whole is not the name of an
    image or context, and one of its parts is.

    Args:
        image_id: the id.
        known: the names of all images and contexts.
    """
    if image_id in known:
        return [image_id]
    names = list(dict.fromkeys(filter(None, re.split(r"[\s,]+", image_id))))
    return names if any(name in known for name in names) else [image_id]


def names_several(data: bytes, known: Container[str]) -> bool:
    """Whether a post of a file has several images, see `image_names`; malformed lines are left to `read_posts`."""
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    ids = (_post_id(line.decode("utf-8", "replace")) for line in lines if line.startswith(ID_PREFIX.encode()))
    return any(len(image_names(given, known)) > 1 for given in ids if given)


def is_invisible(word: str) -> bool:
    """Whether a word has no visible character: only blanks, control and format characters, variation selectors."""
    return all(
        unicodedata.category(character) in _INVISIBLE_CATEGORIES
        or 0xFE00 <= ord(character) <= 0xFE0F
        or 0xE0100 <= ord(character) <= 0xE01EF
        for character in word
    )


def quote(text: str) -> str:
    """A part of a file for an error message: in double quotes, control characters escaped, long text shortened."""
    return json.dumps(text if len(text) <= 60 else text[:59] + "…", ensure_ascii=False)


@lru_cache  # a file with one wrong tag usually repeats it a thousand times
def _nearest(tag: str, known: tuple[str, ...]) -> str:
    upper_case = {label.upper(): label for label in known}
    return upper_case[difflib.get_close_matches(tag.upper(), upper_case, n=1, cutoff=0)[0]]


def _lines(
    data: bytes, name: str, counts: Counter[str], faults: list[CorpusFault] | None
) -> Iterator[tuple[int, str]]:
    if data.startswith(codecs.BOM_UTF8):
        counts["byte_order_marks"] += 1
        data = data.removeprefix(codecs.BOM_UTF8)
    for number, content in enumerate(data.split(b"\n"), start=1):
        try:
            line = content.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"the byte 0x{content[error.start]:02x} is not UTF-8 (expected UTF-8 text)"
            found(CorpusFault(name, number, problem), faults, error)
            line = content.decode("utf-8", errors="replace")
        counts["carriage_returns"] += line.endswith("\r")
        yield number, line.removesuffix("\r")


def _post_id(line: str) -> str | None:
    if not line.startswith(ID_PREFIX) or "\t" in line:
        return None
    return line.removeprefix(ID_PREFIX).strip()


def _columns(line: str, name: str, number: int, faults: list[CorpusFault] | None) -> tuple[str, str]:
    columns = line.split("\t")
    word, tag = columns[0], columns[-1]
    if len(columns) == 1 or not tag:
        problem = f"{quote(word)} has no tag"
    elif len(columns) > 2:
        problem = f"{quote(line)} has {len(columns)} columns"
    elif not word:
        problem = f"the tag {quote(tag)} has no token"
    else:
        return word, tag
    found(CorpusFault(name, number, f"{problem} (expected {LINE_FORMAT})"), faults)
    return word or "\ufffd", tag if len(columns) > 1 and tag else OUTSIDE


def text_counts(tagged: Sequence[TaggedPost], passed_over: Mapping[str, int], scheme: TagScheme) -> dict[str, Any]:
    """The text counts of a split, as in `MnerDataset.report`: from its posts and the counts of `read_posts`."""
    entities = Counter(entity.type for post in tagged for entity in post.entities)
    return {
        "posts": len(tagged),
        "words": sum(len(post.words) for post, _, _, _ in tagged),
        "entities": {entity_type: entities[entity_type] for entity_type in scheme.types},
        **passed_over,
        "tags_repaired": sum(post.repaired for post in tagged),
        "words_invisible": sum(is_invisible(word) for post, _, _, _ in tagged for word in post.words),
    }
