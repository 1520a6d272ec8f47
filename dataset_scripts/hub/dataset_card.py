"""Data set cards for the Hub: contents of a corpus, its known noise, how to load it, its licence."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from modeling_ita.markup import Markdown, code, listed, md, python_source, render
from modeling_ita.visual_context import VisualContext

TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
LOAD_CHECKSUMS = """\
import hashlib

from datasets import load_dataset

checksums = load_dataset({repo_id}, "checksums", split="train")
words = ["your", "copy's", "words"]
matches = hashlib.sha256("\\n".join(words).encode("utf-8")).hexdigest() == checksums[0]["words_sha256"]
"""
LOAD_POSTS = """\
from datasets import load_dataset

posts = load_dataset({repo_id})
labels = posts[{split}].features["tags"].feature.names

post = posts[{split}][0]
tagged = [(word, labels[tag]) for word, tag in zip(post["words"], post["tags"])]
image = post["image"]  # a PIL image, or None; a list of images if posts have several
"""
LOAD_CONTEXTS = """\
contexts = {{row["id"]: row for row in load_dataset({repo_id}, "visual_context", split="train")}}
context = contexts.get(post["id"])  # what the image says as text, or None
"""
CARD_TABLE = """| kind | model | revision | settings | images with text | strings |
|---|---|---|---|---|---|
"""
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
"""The Hub's names of sizes, by the number of rows that is too large for them."""

TWEETS = "Tweets with their pictures. The posts and the pictures belong to their authors."
ORIGINS = {
    "sample_posts": "The sample posts of ITA-MNER: short posts in the manner of social media with drawn pictures, "
    "all the project's own. No post was taken from anywhere and no real person is meant. It is a teaching piece and "
    "a test bed, not a benchmark.",
    "twitter2015": f"Twitter-15 (Zhang et al., Adaptive Co-attention Network for Named Entity Recognition in Tweets, "
    f"AAAI 2018). {TWEETS}",
    "twitter2017": f"Twitter-17 in the split of UMT (Yu et al., Improving Multimodal Named Entity Recognition via "
    f"Entity Span Detection with Unified Multimodal Transformer, ACL 2020; the posts are those of Lu et al., Visual "
    f"Attention Model for Name Tagging in Multimodal Social Media, ACL 2018). {TWEETS}",
    "snap": f"The SNAP corpus (Lu et al., Visual Attention Model for Name Tagging in Multimodal Social Media, ACL "
    f"2018), which is also called Twitter-17. {TWEETS}",
}
"""Where a corpus comes from, by its configuration of `MnerDataset`, with which its names in `KNOWN_FILES` begin."""

LICENCES = {"sample_posts": "apache-2.0"}
"""The Hub's name of a corpus' licence."""
FIGURES = {"posts": "posts", "words": "words"}
IMAGE_FIGURES = {
    "present": "images",
    "missing": "images missing",
    "unreadable": "images unreadable",
    "blank": "images blank",
    "shared": "images that are byte for byte those of another post",
}
NOISE = {
    "tags_repaired": "tags repaired (an `I-` that continued no entity became `B-`)",
    "words_invisible": "words that show nothing (kept)",
    "posts_empty": "ids without a post (left out)",
    "posts_without_id": "posts below no id, in a file that has ids: a blank line inside a post makes one (numbered)",
    "ids_repeated": "posts with the id of another (kept as `x#2`)",
    "carriage_returns": "carriage returns (dropped)",
    "byte_order_marks": "byte order marks (dropped)",
}


def dataset_card(
    repo_id: str,
    report: Mapping[str, Any],
    labels: Iterable[str] = (),
    contexts: Iterable[VisualContext] = (),
    *,
    part: str = "posts",
    license: str | None = None,
    language: str | None = None,
    i_have_the_rights: bool = False,
) -> DatasetCard:
    """The card of a corpus, or of its checksums.

    What the report, the contexts and the caller say is inserted as text and never becomes Markdown, HTML, a
    link, or a key of the metadata.

    Args:
        repo_id: the data set's repository on the Hub, which the code examples load.
        report: see `MnerDataset.report`. Of its paths, only the file names appear in the card.
        labels: the tag set, in order.
        contexts: the visual contexts pushed with the posts.
        part: `posts` or `checksums`.
        license: the Hub's identifier of a licence. Default: that of the corpus, or `unknown`.
        language: code of the posts' language. Default: English for the corpora known by name, otherwise unset.
        i_have_the_rights: whether the uploader declares to have the rights.
    """
    splits = report["splits"]
    known_as = [file["known_as"] for file in report["data"].values()]
    corpus = next((name for name in ORIGINS if any(known.startswith(name) for known in known_as)), None)
    corpus = corpus or report["configuration"]
    note = "See `license` in the metadata above; `unknown` is one that nobody has stated."
    if part == "checksums":
        note = "Checksums are facts about files; they give nobody a right to the posts or to the images."
    elif i_have_the_rights:
        note += " Whoever pushed this says that they have the right to pass it on."
    if part == "posts":
        license = license or LICENCES.get(report["configuration"])
    posts = sum(counts["posts"] for counts in splits.values())
    data = DatasetCardData(
        pretty_name=repo_id.rpartition("/")[2],
        license=license or "unknown",
        language=language or ("en" if corpus in ORIGINS else None),
        task_categories=["token-classification"],
        task_ids=["named-entity-recognition"],
        size_categories=[size_category(posts)],
        tags=["multimodal", "mner", "named-entity-recognition", "checksums" if part == "checksums" else "image"],
    )
    kinds = context_counts(contexts)
    example = LOAD_CHECKSUMS if part == "checksums" else LOAD_POSTS + LOAD_CONTEXTS * bool(kinds)
    labels = list(labels)
    values = {
        "part": Markdown(part),
        "title": data.pretty_name,
        "origin": Markdown(ORIGINS.get(corpus, "Where it comes from is not stated.")),
        "example": example.format(repo_id=python_source(repo_id), split=python_source(next(iter(splits)))),
        "verify": f"python -m dataset_scripts.push_dataset FOLDER {repo_id} --verify",
        "types": list(dict.fromkeys(label[2:] for label in labels if label[1:2] == "-")),
        "labels": listed([code(label) for label in labels], ", "),
        "contexts": list(kinds),
        "aligners": aligner_table(kinds),
        "splits": list(splits),
        "figures": _figures(splits),
        "noise": {Markdown(name): [counts.get(key, 0) for counts in splits.values()] for key, name in NOISE.items()},
        "files": [{"name": Path(path).name, **file} for path, file in report["data"].items()],
        "licence_note": Markdown(note),
    }
    return DatasetCard(render(TEMPLATE, data.to_dict(), values))


def merged_card(before: str, card: DatasetCard, part: str) -> DatasetCard:
    """Merge a new card into the one on the Hub: text written by people stays, the generated part is replaced.

    Args:
        before: the text of the card on the Hub, or an empty string.
        card: the new card, from `dataset_card`.
        part: which part the new card describes.

    Raises:
        ValueError: the metadata of the card on the Hub cannot be read.
    """
    if not before.strip():
        return card
    try:
        merged = DatasetCard(before)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of the README.md on the Hub cannot be read, mend it there: {error}") from error
    for key, value in card.data.to_dict().items():
        if key == "size_categories" or merged.data.get(key) in (None, [], "unknown"):
            merged.data[key] = value
    block = re.compile(rf"<!-- {part}: .*?<!-- end of {part} -->", re.DOTALL)
    new = block.search(card.text)
    assert new is not None, "the template has the marks of its part"
    if block.search(merged.text):
        merged.text = block.sub(lambda _: new.group(), merged.text)
    elif merged.text.strip():
        merged.text = f"{card.text.rstrip()}\n\n{merged.text.lstrip()}"
    else:
        merged.text = card.text
    return merged


def aligner_table(kinds: Mapping[str, Mapping[str, Any]]) -> Markdown:
    """The card's table of aligners: per kind, `with_text`, `strings` and the `aligner`."""
    rows = (
        f"| {md(kind)} | {md(count['aligner']['model'])} | {md(count['aligner']['revision'])} | "
        f"{code(json.dumps(count['aligner']['settings']))} | {count['with_text']} | {count['strings']} |\n"
        for kind, count in kinds.items()
    )
    return Markdown(CARD_TABLE + "".join(rows))


def context_counts(contexts: Iterable[VisualContext]) -> dict[str, dict[str, Any]]:
    """Per kind, the number of contexts with text, the number of strings, and the aligner that made most of them."""
    counts: dict[str, Counter[str]] = {}
    aligners: dict[str, Counter[str]] = {}
    for context in contexts:
        for kind in context.kinds | context.provenance:
            strings, origin = context.kinds.get(kind, []), context.provenance.get(kind, {})
            counts.setdefault(kind, Counter()).update(with_text=bool(strings), strings=len(strings))
            aligner = {"model": "unknown", "revision": "unknown", "settings": {}}
            aligner |= {key: origin[key] for key in aligner if key in origin}
            aligners.setdefault(kind, Counter())[json.dumps(aligner)] += 1
    return {
        kind: {**count, "aligner": json.loads(aligners[kind].most_common(1)[0][0])} for kind, count in counts.items()
    }


def size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    return next((name for too_many, name in SIZES.items() if rows < too_many), "n>1M")


def _figures(splits: Mapping[str, Any]) -> dict[str, list[int]]:
    """The figures of all splits, by what they count."""
    entities = {
        f"entities {entity_type}": entity_type for split in splits.values() for entity_type in split["entities"]
    }
    return {
        **{name: [split[key] for split in splits.values()] for key, name in FIGURES.items()},
        "entities": [sum(split["entities"].values()) for split in splits.values()],
        **{name: [split["entities"][key] for split in splits.values()] for name, key in entities.items()},
        **{name: [split["images"][key] for split in splits.values()] for key, name in IMAGE_FIGURES.items()},
        "visual contexts": [split["contexts"]["present"] for split in splits.values()],
    }
