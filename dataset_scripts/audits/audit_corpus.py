"""Reads a corpus despite its faults, and defines the form of a finding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset_scripts.contexts.placeholders import COPIES, placeholder_groups
from dataset_scripts.corpus.conll import (
    ID_PREFIX,
    CorpusFault,
    Post,
    TaggedPost,
    UnknownTag,
    entity_types,
    image_names,
    read_posts,
    read_tags,
    text_counts,
)
from dataset_scripts.corpus.context_files import read_contexts
from dataset_scripts.corpus.corpus_config import KNOWN_FILES, MnerConfig, file_sha256
from dataset_scripts.corpus.corpus_images import Verdict, examine_images, images_by_id, verdict_of_post
from modeling_ita.tag_scheme import TagScheme
from modeling_ita.visual_context import VisualContext

SEVERITIES = ("error", "warning", "note")
"""Errors stop a training or make its scores lie; warnings are noise or repaired on reading; notes are to be known."""


@dataclass(frozen=True)
class Finding:
    """A fault, and all places where it occurs.

    Attributes:
        check: the name of the fault.
        severity: one of `SEVERITIES`.
        count: how often it occurs.
        message: one sentence that describes it.
        advice: what to do about it.
        splits: the splits it concerns, if not the whole corpus.
        examples: all places, as JSON values: `file` and `line` if they apply, and what is wrong there.
    """

    check: str
    severity: str
    count: int
    message: str
    advice: str
    splits: tuple[str, ...] = ()
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Corpus:
    """A corpus as read, including everything that is wrong with it.

    Attributes:
        files: the name of the text file by split.
        known_as: by split, the published file that the text file is identical to, or `unknown`.
        posts: the posts by split, with their tags.
        scheme: the tag set.
        types_given: whether the tag set was given rather than collected from the posts.
        counts: the result of `text_counts`, by split.
        faults: malformed lines and files without posts.
        unknown_tags: tags that are not in the tag set.
        images_dir: folder of the images; None if they are not examined.
        image_files: the images in it; None if the folder does not exist.
        images: the image files by id.
        verdicts: the verdict on every image that a post refers to, by path.
        contexts: visual contexts by id; None if there are no context files.
        context_faults: malformed rows in the context files.
    """

    files: dict[str, str]
    known_as: dict[str, str]
    posts: dict[str, list[TaggedPost]]
    scheme: TagScheme
    types_given: bool
    counts: dict[str, dict[str, Any]]
    faults: list[CorpusFault] = field(default_factory=list)
    unknown_tags: list[UnknownTag] = field(default_factory=list)
    images_dir: str | None = None
    image_files: list[str] | None = None
    images: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    contexts: dict[str, VisualContext] | None = None
    context_faults: list[CorpusFault] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, TaggedPost]]:
        """All posts, each with its split."""
        return ((split, post) for split, posts in self.posts.items() for post in posts)

    def names(self, post: Post) -> list[str]:
        """The names of a post's images and contexts."""
        return image_names(post.image_id, self.known)

    @cached_property
    def known(self) -> set[str]:
        """The names of all images and contexts."""
        return {*self.images, *(self.contexts or ())}

    def paths(self, post: Post) -> list[str]:
        """The files of a post's images, as far as they exist."""
        return [self.images[name] for name in self.names(post) if name in self.images]

    def verdict(self, post: Post) -> Verdict:
        """The verdict on a post's image; of several, as `verdict_of_post` says."""
        return verdict_of_post([self.verdict_on(name) for name in self.names(post)])

    def verdict_on(self, name: str) -> Verdict:
        """The verdict on the image of this name."""
        return self.verdicts[self.images[name]] if name in self.images else Verdict("missing")

    def shows_placeholder(self, post: Post) -> bool:
        """Whether a post has images, and all are placeholders."""
        paths = self.paths(post)
        return bool(paths) and self.placeholders.issuperset(paths)

    @cached_property
    def placeholders(self) -> set[str]:
        """Image files that are copies of one image of mostly one colour, such as `No photo available`."""
        paths = list(self.verdicts)
        groups = placeholder_groups([self.verdicts[path].fingerprint for path in paths], COPIES)
        return {paths[place] for group in groups for place in group}

    def place(self, split: str, post: Post, **more: Any) -> dict[str, Any]:
        """The position of a post, for an example."""
        return {"file": self.files[split], "line": post.first_line, "id": post.id, **more}


def read_corpus(config: MnerConfig) -> Corpus:
    """Read a corpus despite its faults.

    Raises:
        ValueError: the folder does not exist or holds no split, or a context file does not exist.
    """
    paths = config.text_files()
    context_paths = config.context_paths()
    faults: list[CorpusFault] = []
    posts, passed_over = {}, {}
    for split, path in paths.items():
        # A post without an id among posts with ids is half a post, split by a blank line.
        data = path.read_bytes()
        required = config.ids_required or ID_PREFIX.encode() in data
        posts[split], passed_over[split] = read_posts(
            data, path.name, ids_required=required, numbered_as=split, faults=faults
        )
    rename = {"OTHER": "MISC"} if config.other_as_misc else {}
    scheme = TagScheme.from_types(dict.fromkeys(rename.get(t, t) for t in config.types or _collected_types(posts)))
    unknown: list[CorpusFault] = []
    tagged = {split: read_tags(posts[split], paths[split].name, scheme, rename, unknown) for split in posts}
    corpus = Corpus(
        files={split: path.name for split, path in paths.items()},
        known_as={split: KNOWN_FILES.get(file_sha256(path), "unknown") for split, path in paths.items()},
        posts=tagged,
        scheme=scheme,
        types_given=bool(config.types),
        counts={split: text_counts(tagged[split], passed_over[split], scheme) for split in tagged},
        faults=faults,
        unknown_tags=[fault for fault in unknown if isinstance(fault, UnknownTag)],
        images_dir=config.images_dir,
    )
    if config.images_dir is not None and Path(config.images_dir).expanduser().is_dir():
        corpus.image_files = config.image_files()
        corpus.images = images_by_id(corpus.image_files)
    if context_paths:
        corpus.contexts = read_contexts(context_paths, corpus.context_faults)
    corpus.verdicts = examine_images({path for _, post in corpus for path in corpus.paths(post.post)})
    return corpus


def fault_place(fault: CorpusFault) -> dict[str, Any]:
    """The position and problem of a fault, for an example."""
    return {"file": fault.file, fault.unit: fault.line, "problem": fault.problem}


def counted(count: int, noun: str) -> str:
    """`1 post`, `2 posts`, `3 entities`."""
    plural = noun.removesuffix("y") + "ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _collected_types(posts: dict[str, list[Post]]) -> list[str]:
    read = posts["train"] if posts.get("train") else [post for split in posts.values() for post in split]
    return entity_types(read, "", faults=[])
