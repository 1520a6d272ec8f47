"""Checks of the images of a corpus and of their visual contexts."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dataset_scripts.audits.audit_corpus import Corpus, Finding, counted, fault_place
from dataset_scripts.corpus.conll import Post, quote
from modeling_ita.image_file import FORMATS, image_name
from modeling_ita.visual_context import OBJECT_TAGS, VisualContext

MANY_POSTS = 5
"""From this many different images on, a string that stands for each of them is reported as a placeholder's."""
SENTENCE = 3
"""Strings of fewer words may well recur: `man`, `stop sign`."""
_FETCH = "fetch the images again if there are any; such posts are read without visual context"
_USELESS = (
    ("missing", "whose image is not in the folder", _FETCH),
    ("unreadable", "whose image cannot be read", _FETCH),
    ("blank", "whose image is of one colour", _FETCH),
    (
        "placeholder",
        "whose image is a placeholder: one picture of mostly one colour, saved several times",
        "look at them and remove the files, so that the posts are read without visual context",
    ),
)


def image_findings(corpus: Corpus) -> Iterator[Finding]:
    """Yield all findings about the images and the visual contexts."""
    for part in (_images, _image_files, _contexts, _captions):
        yield from part(corpus)


# --- images ----------------------------------------------------------------------------------------------------------


def _images(corpus: Corpus) -> Iterator[Finding]:
    if corpus.images_dir is None:
        return
    if corpus.image_files is None:
        message = f"there is no folder {corpus.images_dir} with the images"
        advice = "give it as --images_dir, or --images_dir none for a corpus of text only"
        yield Finding("images_folder", "error", 1, message, advice)
        return
    by_state: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for split, (post, _, _, _) in corpus:
        verdict, paths = corpus.verdict(post), corpus.paths(post)
        path = next((path for path in paths if corpus.verdicts[path] is verdict), None)
        more = {} if path is None else {"image": os.path.basename(path)}
        if verdict.reason and path is not None:
            more["problem"] = verdict.reason.removeprefix(f"cannot read {image_name(path)}: ")
        state = "placeholder" if corpus.shows_placeholder(post) else verdict.state
        by_state[state].append(corpus.place(split, post, **more))
    total = sum(map(len, by_state.values()))
    if total and len(by_state["missing"]) == total:
        expected = f"(expected files such as {by_state['missing'][0]['id']}.jpg)"
        message = f"{corpus.images_dir} holds no image of any post {expected}"
        yield Finding("images_all_missing", "error", total, message, "give the right folder as --images_dir")
        by_state["missing"] = []
    for state, what, advice in _USELESS:
        posts = by_state[state]
        if posts:
            message = f"{counted(len(posts), 'post')} of {total:,} {what}"
            yield Finding(f"images_{state}", "warning", len(posts), message, advice, examples=posts)


def _image_files(corpus: Corpus) -> Iterator[Finding]:
    unused = [{"file": os.path.basename(path)} for path in corpus.image_files or () if path not in corpus.verdicts]
    if unused:
        message = f"{counted(len(unused), 'image')} that no post asks for"
        yield Finding("images_unused", "note", len(unused), message, "nothing, or remove them", examples=unused)
    wrong = [
        {"file": os.path.basename(path), "format": found}
        for path, found in ((path, _format(path)) for path in _present(corpus))
        if Image.registered_extensions().get(Path(path).suffix.lower()) != found
    ]
    if wrong:
        message = f"{counted(len(wrong), 'image')} whose format differs from the suffix"
        advice = "nothing: the content decides here; other readers may refuse them"
        yield Finding("images_suffix", "note", len(wrong), message, advice, examples=wrong)
    copies: dict[str, list[str]] = defaultdict(list)
    for path in _present(corpus):
        copies[corpus.verdicts[path].sha256].append(os.path.basename(path))
    groups = sorted((names for names in copies.values() if len(names) > 1), key=len, reverse=True)
    if groups:
        examples = [{"file": names[0], "count": len(names), "also": names[1:]} for names in groups]
        count = sum(map(len, groups))
        message = (
            f"{counted(count, 'image file')} byte for byte the same as another, in {counted(len(groups), 'group')}"
        )
        advice = "look at the largest groups: one picture under many ids is a placeholder, to be removed"
        yield Finding("images_duplicate", "warning", count, message, advice, examples=examples)


def _shows_nothing(corpus: Corpus, post: Post) -> bool:
    return corpus.shows_placeholder(post) or corpus.verdict(post).state in ("unreadable", "blank")


def _present(corpus: Corpus) -> list[str]:
    return [path for path, verdict in corpus.verdicts.items() if verdict.state == "present"]


def _format(path: str) -> str | None:
    with Image.open(path, formats=FORMATS) as image:
        return "JPEG" if image.format == "MPO" else image.format  # a JPEG file with several images


# --- visual contexts -------------------------------------------------------------------------------------------------


def _contexts(corpus: Corpus) -> Iterator[Finding]:
    if corpus.context_faults:
        examples = [fault_place(fault) for fault in corpus.context_faults]
        message = f"{counted(len(examples), 'malformed row')} of context: they cannot be read"
        yield Finding("contexts_malformed", "error", len(examples), message, "correct every row", examples=examples)
    if corpus.contexts is None:
        return
    posts = [(split, post) for split, (post, _, _, _) in corpus]
    total = len(posts)
    without = [(split, post) for split, post in posts if corpus.contexts.keys().isdisjoint(corpus.names(post))]
    # A post whose image is known to be missing needs no context.
    looked_at = corpus.image_files is not None
    missing = [corpus.place(*at) for at in without if not looked_at or corpus.verdict(at[1]).state == "present"]
    if corpus.contexts and total and len(without) == total:
        ids = f"they have ids such as {next(iter(corpus.contexts))!r}, the posts such as {posts[0][1].image_id!r}"
        message = f"no id in the context files is a post's id ({ids})"
        yield Finding("contexts_all_missing", "error", total, message, "give the context files of this corpus")
    elif missing:
        which = "with an image, but without" if looked_at else "without"
        message = f"{counted(len(missing), 'post')} of {total:,} {which} a row of context"
        advice = "build the contexts of these posts; without one a post is read as text"
        yield Finding("contexts_missing", "warning", len(missing), message, advice, examples=missing)
    without_post = sorted(corpus.contexts.keys() - {name for _, post in posts for name in corpus.names(post)})
    if without_post:
        message = f"{counted(len(without_post), 'id')} of the context files that no post has"
        examples = [{"id": post_id} for post_id in without_post]
        yield Finding("contexts_without_post", "note", len(examples), message, "nothing", examples=examples)
    of_nothing = [
        corpus.place(split, post, image=corpus.verdict(post).state)
        for split, post in posts
        if any(map(corpus.contexts.get, corpus.names(post))) and _shows_nothing(corpus, post)
    ]
    if of_nothing:
        message = (
            f"{counted(len(of_nothing), 'post')} with a context of an image that is unreadable, blank or a placeholder"
        )
        advice = "build the contexts again: what is said of such an image is invented, or of another copy of it"
        yield Finding("contexts_of_nothing", "warning", len(of_nothing), message, advice, examples=of_nothing)


def _captions(corpus: Corpus) -> Iterator[Finding]:
    """Captions that many images share: a captioner gives every copy of a placeholder the same one (method §7)."""
    pictures: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in (name for _, (post, _, _, _) in corpus for name in corpus.names(post)):
        context = (corpus.contexts or {}).get(name, VisualContext())
        picture = corpus.verdict_on(name).sha256 or f"id {name}"
        for kind, strings in context.kinds.items():
            for text in strings if kind != OBJECT_TAGS else ():
                if len(text.split()) >= SENTENCE:
                    pictures[kind, text].add(picture)
    counts = {key: len(shown) for key, shown in pictures.items() if len(shown) >= MANY_POSTS}
    for kind in sorted({kind for kind, _ in counts}):
        same = sorted(
            ((count, text) for (of, text), count in counts.items() if of == kind), key=lambda c: (-c[0], c[1])
        )
        examples = [{"kind": kind, "count": count, "text": quote(text)} for count, text in same]
        most = same[0][0]
        message = (
            f"{counted(len(same), 'string')} of {kind} standing for {MANY_POSTS} images or more, one for {most:,}"
        )
        advice = (
            "look at the images of the most frequent ones; a caption of a placeholder is invented and to be removed"
        )
        yield Finding("contexts_repeated", "warning", len(same), message, advice, examples=examples)
