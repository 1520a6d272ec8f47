"""Checks of the text of a corpus: lines, tags, words, ids, copies between splits, files."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from dataset_scripts.audits.audit_corpus import Corpus, Finding, counted, fault_place
from dataset_scripts.corpus.conll import Post, UnknownTag, is_invisible, quote
from dataset_scripts.corpus.corpus_config import SPLIT_FILES

_URL = re.compile(r"https?\s?:(?:\s?//\S*|\S*)|(?:\bwww\.|\bt\.co/|\bpic\.twitter\.com/)\S*")
_RETWEET = re.compile(r"(?:rt\s*(?:@\s?\w+\s*:?|\w+\s*:)\s*)+")
_PASSED_OVER = (
    ("posts_empty", "empty_posts", "post", "without a word, left out on reading", "remove the ids, or add the words"),
    (
        "carriage_returns",
        "carriage_returns",
        "line",
        "with Windows line ends, which other readers take for a part of the tag",
        "convert to newlines; the file's sha256 changes",
    ),
    (
        "byte_order_marks",
        "byte_order_marks",
        "file",
        "with a byte order mark, which other readers take for a part of the first line",
        "save as UTF-8 without it; the file's sha256 changes",
    ),
)
_ALIKE = "but for URLs, RT @user:, case and spaces"


def normalised(words: Iterable[str]) -> str:
    """Normalise a post's text for comparison: no URLs, no leading `RT @user:`, lower case, single spaces.

    Also removes the tokenised forms of both, as in `RT user :` and `http : //t.co/x`.
    """
    text = " ".join(_URL.sub(" ", " ".join(words).casefold()).split())
    return _RETWEET.sub("", text, count=1) if _RETWEET.match(text) else text


def text_findings(corpus: Corpus) -> Iterator[Finding]:
    """Yield all findings about the text files."""
    for part in (_lines, _tags, _types_alike, _words, _ids, _overlaps, _duplicates, _checksums):
        yield from part(corpus)


# --- lines, tags, words, ids -----------------------------------------------------------------------------------------


def _lines(corpus: Corpus) -> Iterator[Finding]:
    for split in [split for split in SPLIT_FILES if split not in corpus.files]:
        severity = "error" if split == "train" else "warning"
        names = " or ".join(SPLIT_FILES[split])
        yield Finding("split_missing", severity, 1, f"there is no split {split}", f"add {names}", (split,))
    empty = [{"file": fault.file, "problem": fault.problem} for fault in corpus.faults if fault.line is None]
    lines = [fault_place(fault) for fault in corpus.faults if fault.line is not None]
    if empty:
        message = f"{counted(len(empty), 'file')} without any post"
        yield Finding("split_empty", "error", len(empty), message, "fill or remove", examples=empty)
    if lines:
        yield Finding(
            "malformed_lines",
            "error",
            len(lines),
            f"{counted(len(lines), 'malformed line')}: the corpus cannot be read",
            "correct every line to token<TAB>tag, IMGID:<id> or nothing, in UTF-8",
            examples=lines,
        )


def _tags(corpus: Corpus) -> Iterator[Finding]:
    by_tag: dict[str, list[UnknownTag]] = defaultdict(list)
    for fault in corpus.unknown_tags:
        by_tag[fault.tag].append(fault)
    if by_tag:
        most_first = sorted(by_tag.items(), key=lambda item: -len(item[1]))
        examples = [
            {
                "file": faults[0].file,
                "line": faults[0].line,
                "tag": tag,
                "count": len(faults),
                "nearest": faults[0].nearest,
                "places": [f"{fault.file}:{fault.line}" for fault in faults],
            }
            for tag, faults in most_first
        ]
        count = len(corpus.unknown_tags)
        message = (
            f"{counted(count, 'tag')} outside the tag set ({', '.join(corpus.scheme.types)}), {len(by_tag)} different"
        )
        yield Finding(
            "unknown_tags", "error", count, message, "correct them, or name the types in --types", (), examples
        )
    broken = [
        {**corpus.place(split, post.post), "line": post.post.first_line + i, "tag": post.post.tags[i],
         "read_as": corpus.scheme.labels[post.tag_ids[i]]}
        for split, post in corpus for i in post.repairs
    ]  # fmt: skip
    if broken:
        lenient = sum(len(post.entities) for _, post in corpus)
        strict = sum(len(post.strict_entities) for _, post in corpus)
        yield Finding(
            "broken_tags",
            "warning",
            len(broken),
            f"{counted(len(broken), 'tag')} continuing no entity ({_by_split(corpus, 'tags_repaired')}): lenient "
            f"scorers (CoNLL, seqeval's default) count {lenient:,} entities, strict ones {strict:,}",
            "nothing if MnerDataset reads it (it repairs them, as the lenient scorers do); say which scorer was used",
            examples=broken,
        )


def _types_alike(corpus: Corpus) -> Iterator[Finding]:
    """Types that look like misspellings of others. Checked only if no tag set was given."""
    entities = Counter(entity.type for _, post in corpus for entity in post.entities)
    rare = [kind for kind, count in entities.items() if count * 100 < entities.total() and not corpus.types_given]
    for kind in sorted(rare):
        others = {other.upper(): other for other in entities if other not in rare}
        for near in difflib.get_close_matches(kind.upper(), others, n=1):
            known = others[near]
            message = f"the type {kind} ({counted(entities[kind], 'entity')}) looks like {known} ({entities[known]:,})"
            advice = "name the types in --types to have every tag checked against them"
            yield Finding("types_alike", "warning", entities[kind], message, advice)


def _words(corpus: Corpus) -> Iterator[Finding]:
    invisible = [
        {**corpus.place(split, post), "line": post.first_line + i, "word": ascii(word)}
        for split, (post, _, _, _) in corpus
        for i, word in enumerate(post.words)
        if is_invisible(word)
    ]
    if invisible:
        yield Finding(
            "invisible_words",
            "note",
            len(invisible),
            f"{counted(len(invisible), 'word')} showing nothing ({_by_split(corpus, 'words_invisible')}): tokenizers "
            "give no piece for them, and labels paired by piece shift",
            "nothing if ItaProcessor reads it (it feeds the unknown token in their place)",
            examples=invisible,
        )
    for what, check, unit, meaning, advice in _PASSED_OVER:
        where = {split: counts[what] for split, counts in corpus.counts.items() if counts[what]}
        if where:
            examples = [{"file": corpus.files[split], "count": number} for split, number in where.items()]
            message = f"{counted(sum(where.values()), unit)} {meaning}"
            yield Finding(check, "warning", sum(where.values()), message, advice, tuple(where), examples)


def _ids(corpus: Corpus) -> Iterator[Finding]:
    repeated = [corpus.place(s, post) for s, (post, _, _, _) in corpus if post.id != post.image_id]
    if repeated:
        message = f"{counted(len(repeated), 'post')} under an id that an earlier post of the split has"
        advice = "remove the copies, or give them ids of their own; they are read as x#2, with the image of x"
        yield Finding("ids_repeated", "warning", len(repeated), message, advice, examples=repeated)
    by_id: dict[str, list[tuple[str, Post]]] = defaultdict(list)
    for split, (post, _, _, _) in corpus:
        by_id[post.image_id].append((split, post))
    ambiguous = [
        corpus.place(*group[0], also=_places(corpus, group[1:]))
        for group in by_id.values()
        if len({tuple(post.words) for _, post in group}) > 1
    ]
    if ambiguous:
        message = f"{counted(len(ambiguous), 'id')} standing over posts with different texts"
        advice = "find out which text the image belongs to; all of them get the same image and context"
        yield Finding("ids_ambiguous", "warning", len(ambiguous), message, advice, examples=ambiguous)


# --- overlaps and copies ---------------------------------------------------------------------------------------------


def _overlaps(corpus: Corpus) -> Iterator[Finding]:
    for first, second in combinations(corpus.files, 2):
        exact = _shared(corpus, first, second, _words_of)
        same = {copy.post.id for copy in exact}
        near = [copy for copy in _shared(corpus, first, second, _text_of) if copy.post.id not in same]
        lies = "the score of the test" if second == "test" else "the choice of the best epoch"
        advice = f"remove them from {first}: {lies} rewards what was learnt by heart"
        for check, copies, how in (("overlap_exact", exact, "word for word"), ("overlap_near", near, _ALIKE)):
            if copies:
                # F1 counts entities: a post without any that is in both splits hardly changes the score.
                moved = check == "overlap_exact" and second == "test" and any(copy.entities for copy in copies)
                message = f"{counted(len(copies), 'post')} of {second} standing in {first}, {how} ({_about(copies)})"
                examples = [copy.place(corpus) for copy in copies]
                severity = "error" if moved else "warning"
                yield Finding(check, severity, len(copies), message, advice, (first, second), examples)
        pictures = _shared(corpus, first, second, lambda post: _picture(corpus, post))
        if pictures and corpus.image_files is not None:
            message = f"{counted(len(pictures), 'post')} of {second} with an image of {first}"
            advice = f"remove them from {first}, or say so beside the scores"
            examples = [copy.place(corpus) for copy in pictures]
            yield Finding("overlap_images", "warning", len(pictures), message, advice, (first, second), examples)


def _duplicates(corpus: Corpus) -> Iterator[Finding]:
    for split, posts in corpus.posts.items():
        by_words: dict[Hashable, list[Post]] = defaultdict(list)
        by_text: dict[Hashable, list[Post]] = defaultdict(list)
        exact, near = [], []
        for post, _, entities, _ in posts:
            same, alike = by_words[_words_of(post)], by_text[_text_of(post)]
            if same:
                exact.append(_copy(corpus, split, post, len(entities), split, same))
            elif alike and _text_of(post):
                near.append(_copy(corpus, split, post, len(entities), split, alike))
            same.append(post)
            alike.append(post)
        for check, copies, how in (("duplicates_exact", exact, "word for word"), ("duplicates_near", near, _ALIKE)):
            if copies:
                count = counted(len(copies), "post")
                message = f"{count} of {split} repeating an earlier one of it, {how} ({_about(copies)})"
                advice = "remove them, or know that they count several times; posts made in pairs are meant so"
                examples = [copy.place(corpus) for copy in copies]
                yield Finding(check, "warning", len(copies), message, advice, (split,), examples)


class _Copy(NamedTuple):
    """A post, and the posts that it repeats."""

    split: str
    post: Post
    entities: int
    others: list[str]
    other_tags: bool
    other_image: bool

    def place(self, corpus: Corpus) -> dict[str, Any]:
        return corpus.place(self.split, self.post, text=quote(" ".join(self.post.words)), also=self.others)


def _copy(corpus: Corpus, split: str, post: Post, entities: int, of: str, others: Sequence[Post]) -> _Copy:
    sha256, hashes = corpus.verdict(post).sha256, [corpus.verdict(other).sha256 for other in others]
    return _Copy(
        split,
        post,
        entities,
        _places(corpus, ((of, other) for other in others)),
        all(other.tags != post.tags for other in others),
        all(sha256 and theirs and theirs != sha256 for theirs in hashes),
    )


def _shared(corpus: Corpus, first: str, second: str, key: Callable[[Post], Hashable]) -> list[_Copy]:
    """The posts of the second split that share a key with posts of the first."""
    known: dict[Hashable, list[Post]] = defaultdict(list)
    for post, _, _, _ in corpus.posts[first]:
        known[key(post)].append(post)
    posts = [(post, entities, key(post)) for post, _, entities, _ in corpus.posts[second]]
    return [
        _copy(corpus, second, post, len(entities), first, known[its_key])
        for post, entities, its_key in posts
        if its_key and its_key in known
    ]


def _about(copies: Sequence[_Copy]) -> str:
    numbers = {
        "with entities": sum(copy.entities > 0 for copy in copies),
        "with other tags": sum(copy.other_tags for copy in copies),
        "with another image": sum(copy.other_image for copy in copies),
    }
    return ", ".join(f"{number:,} {what}" for what, number in numbers.items() if number) or "none with entities"


def _words_of(post: Post) -> Hashable:
    return tuple(post.words)


def _text_of(post: Post) -> Hashable:
    return normalised(post.words)


def _picture(corpus: Corpus, post: Post) -> str | None:
    """A key that identifies a post's image; None if it is blank, unreadable or a placeholder."""
    verdict = corpus.verdict(post)
    if corpus.shows_placeholder(post):
        return None
    return {"present": verdict.sha256, "missing": f"id {post.image_id}"}.get(verdict.state)


def _places(corpus: Corpus, posts: Iterable[tuple[str, Post]]) -> list[str]:
    return [f"{corpus.files[split]}:{post.first_line}" for split, post in posts]


def _checksums(corpus: Corpus) -> Iterator[Finding]:
    known = {split: name.rpartition(" ")[::2] for split, name in corpus.known_as.items()}
    examples = [{"file": corpus.files[split], "known_as": name} for split, name in corpus.known_as.items()]
    sets = sorted({name for name, _ in map(tuple, known.values()) if name})
    if len(sets) > 1:
        message = f"the files are of {len(sets)} published sets: {', '.join(sets)}"
        advice = "take all files from one set; its splits exclude each other, those of two sets do not"
        yield Finding("files_mixed", "error", len(sets), message, advice, tuple(known), examples)
    elif sets and not all(name for name, _ in known.values()):
        altered = tuple(split for split, (name, _) in known.items() if not name)
        files = ", ".join(corpus.files[split] for split in altered)
        message = f"{files} differ{'s' if len(altered) == 1 else ''} from the published {sets[0]}, the others do not"
        advice = f"restore the published files, or do not call it {sets[0]}"
        yield Finding("files_altered", "warning", len(altered), message, advice, altered, examples)
    moved = {split: part for split, (name, part) in known.items() if name and f"{part}.txt" not in SPLIT_FILES[split]}
    for split, part in moved.items():
        message = f"{corpus.files[split]} is the published {known[split][0]} {part}"
        advice = f"put it where {part} belongs"
        yield Finding("files_moved", "error", 1, message, advice, (split,), [{"file": corpus.files[split]}])


def _by_split(corpus: Corpus, what: str) -> str:
    return ", ".join(f"{split} {counts[what]:,}" for split, counts in corpus.counts.items() if counts[what])
