"""Posts in columns of text, as the Twitter corpora write them.

An `IMGID:<id>` line, then `token<TAB>tag` lines, then a blank line. A file is cut at newlines and TABs and nowhere
else: in these corpora U+00A0, U+0085 and the like are tokens.
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from modeling_ita.tag_scheme import Span, TagScheme

ID_PREFIX = "IMGID:"
LINE_FORMAT = "token<TAB>tag"
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}


class Post(NamedTuple):
    """A post as its file spells it.

    Attributes:
        id: the post's name, unique in its file.
        image_id: the id in the file, by which its image and context are found; differs from `id` where one id stands
            over several posts.
        words: the tokens.
        tags: one tag a token.
        first_line: the number of the line with the first token; the others follow line by line.
    """

    id: str
    image_id: str
    words: list[str]
    tags: list[str]
    first_line: int


class TaggedPost(NamedTuple):
    """A post with its tags as ids of a tag scheme, repaired, and the entities that they spell."""

    post: Post
    tag_ids: list[int]
    entities: list[Span]
    repaired: int


def read_posts(
    data: bytes, name: str, *, ids_required: bool = True, numbered_as: str = "post"
) -> tuple[list[Post], Counter[str]]:
    """Read the posts of one file.

    An id that stands over several posts is kept: the second post with the id `x` gets the id `x#2`. An `IMGID:` line
    with no token below it is left out. Both are counted.

    Args:
        data: the file's bytes.
        name: what error messages call the file.
        ids_required: whether tokens need an `IMGID:` line above them; if not, posts without one are numbered.
        numbered_as: the ids of numbered posts begin with this, as in `train-17` for the 17th post.

    Returns:
        The posts, and how often something was passed over: `posts_empty`, `ids_repeated`, `carriage_returns` (Windows
        line ends) and `byte_order_marks`.

    Raises:
        ValueError: the file is empty or not UTF-8, a line is malformed, or tokens stand before any id. The message
            names file, line and what was expected.
    """
    counts = Counter(posts_empty=0, ids_repeated=0, carriage_returns=0, byte_order_marks=0)
    posts: list[Post] = []
    ids: Counter[str] = Counter()
    post: Post | None = None
    for number, line in _lines(data, name, counts):
        where = f"{name}, line {number}"
        if not line:
            post = None
            continue
        given_id = _post_id(line, where)
        if post is None or given_id is not None:
            if given_id is None and ids_required:
                raise ValueError(f"{where}: {quote(line)} stands below no id (expected {ID_PREFIX}<id> above a post)")
            image_id = given_id or f"{numbered_as}-{len(posts) + 1}"
            ids[image_id] += 1
            counts["ids_repeated"] += ids[image_id] > 1
            unique_id = image_id if ids[image_id] == 1 else f"{image_id}#{ids[image_id]}"
            post = Post(unique_id, image_id, [], [], number + (given_id is not None))
            posts.append(post)
        if given_id is None:
            word, tag = _columns(line, where)
            post.words.append(word)
            post.tags.append(tag)
    with_words = [post for post in posts if post.words]
    if not with_words:
        raise ValueError(f"{name} holds no post (expected {ID_PREFIX}<id>, then a line {LINE_FORMAT} for every word)")
    counts["posts_empty"] = len(posts) - len(with_words)
    return with_words, counts


def read_tags(
    posts: Sequence[Post], name: str, scheme: TagScheme, rename: Mapping[str, str] | None = None
) -> list[TaggedPost]:
    """Read the tags of one file's posts, in BIO or BIOES, into `scheme`.

    An `I-` or `E-` that continues no entity begins one: it becomes `B-` (or `S-`).

    Args:
        posts: the posts of one file.
        name: what error messages call the file.
        scheme: the tag set to write.
        rename: entity types of the file that have another name in `scheme`.

    Returns:
        The posts in their order, each with the number of its tags that were repaired.

    Raises:
        ValueError: a tag is not in the tag set. The message names file, line, tag set and the nearest tag.
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
                raise ValueError(f"{name}, line {number}: {_unknown_tag(tag, reading, rename)}")
            tag_ids.append(tag_id)
        entities = reading.spans(tag_ids)
        well_formed = reading.encode(entities, len(tag_ids))
        repaired = sum(before != after for before, after in zip(tag_ids, well_formed, strict=True))
        tagged.append(TaggedPost(post, scheme.encode(entities, len(tag_ids)), entities, repaired))
    return tagged


def entity_types(posts: Sequence[Post], name: str) -> list[str]:
    """The entity types in the posts of one file, sorted, so that they do not depend on the order of its lines.

    Raises:
        ValueError: a tag is neither `O` nor a prefix of BIO or BIOES with a type. The message names file and line.
    """
    types = set()
    for post in posts:
        for number, tag in enumerate(post.tags, start=post.first_line):
            prefix, _, entity_type = tag.partition("-")
            if prefix in tuple("BIES") and entity_type:
                types.add(entity_type)
            elif tag != "O":
                raise ValueError(f"{name}, line {number}: unknown tag {quote(tag)} (expected O, B-X or I-X)")
    return sorted(types)


def is_invisible(word: str) -> bool:
    """Whether a word shows nothing: blanks, control and format characters, variation selectors only."""
    return all(
        unicodedata.category(character) in _INVISIBLE_CATEGORIES
        or 0xFE00 <= ord(character) <= 0xFE0F
        or 0xE0100 <= ord(character) <= 0xE01EF
        for character in word
    )


def quote(text: str) -> str:
    """A piece of a file for an error message: in double quotes, control characters escaped, long text shortened."""
    return json.dumps(text if len(text) <= 60 else text[:59] + "…", ensure_ascii=False)


def _lines(data: bytes, name: str, counts: Counter[str]) -> Iterator[tuple[int, str]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(f"{name}, line {line}: the byte 0x{byte:02x} is not UTF-8 (expected UTF-8 text)") from error
    if text.startswith("\ufeff"):
        counts["byte_order_marks"] += 1
        text = text[1:]
    for number, content in enumerate(text.split("\n"), start=1):
        counts["carriage_returns"] += content.endswith("\r")
        yield number, content.removesuffix("\r")


def _post_id(line: str, where: str) -> str | None:
    if not line.startswith(ID_PREFIX) or "\t" in line:
        return None
    post_id = line.removeprefix(ID_PREFIX).strip()
    if not post_id:
        raise ValueError(f"{where}: {quote(line)} names no post (expected {ID_PREFIX}<id>)")
    return post_id


def _columns(line: str, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) == 1 or not columns[-1]:
        raise ValueError(f"{where}: {quote(columns[0])} has no tag (expected {LINE_FORMAT})")
    if len(columns) > 2:
        raise ValueError(f"{where}: {quote(line)} has {len(columns)} columns (expected {LINE_FORMAT})")
    word, tag = columns
    if not word:
        raise ValueError(f"{where}: the tag {quote(tag)} has no token (expected {LINE_FORMAT})")
    return word, tag


def _unknown_tag(tag: str, scheme: TagScheme, rename: Mapping[str, str]) -> str:
    known = [*scheme.labels, *(f"{prefix}-{old}" for old in rename for prefix in "BI")]
    upper_case = {label.upper(): label for label in known}
    nearest = upper_case[difflib.get_close_matches(tag.upper(), upper_case, n=1, cutoff=0)[0]]
    types = ", ".join([*scheme.types, *rename])
    return f"unknown tag {quote(tag)} (expected O, B-X or I-X with X one of {types}; the nearest is {nearest})"
