"""Checksums of a corpus: owners of a copy can verify it, and the corpus itself is not published."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import datasets

from dataset_scripts.corpus.examples import undecoded
from modeling_ita.image_file import image_sha256, pictures_of

CHECKSUMS = "checksums"
"""The configuration's name on the Hub; its one split has the posts of all splits."""

FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("id", "split", "words_sha256", "image_sha256")}
    | {"num_words": datasets.Value("int32")}
)


class Difference(NamedTuple):
    """A difference between two copies of a corpus: a post of a split, and what differs in it."""

    split: str
    id: str
    what: str


def words_sha256(words: list[str]) -> str:
    """The sha256 of a post's words, joined by newlines, in UTF-8. No word holds a newline."""
    return hashlib.sha256("\n".join(words).encode("utf-8")).hexdigest()


def checksum_dataset(posts: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """One row per post: `id`, `split`, `words_sha256`, `image_sha256` (null if it has no image) and `num_words`.

    If a post has several images, `image_sha256` lists those of all, separated by blanks.

    Args:
        posts: the rows of `MnerDataset`, by split.

    Raises:
        OSError: an image can no longer be read.
    """
    return datasets.Dataset.from_list(list(_rows(posts)), FEATURES)


def compare_checksums(here: datasets.Dataset, there: datasets.Dataset, images: bool = True) -> list[Difference]:
    """Compare checksums. Differences are in the order of the published rows; posts found only locally come last.

    Args:
        here: the checksums of your own copy, see `checksum_dataset`.
        there: the published checksums.
        images: whether to compare images.
    """
    own = {(row["split"], row["id"]): row for row in here}
    differences = []
    for row in there:
        key = (row["split"], row["id"])
        mine = own.pop(key, None)
        if mine is None:
            differences.append(Difference(*key, "the post is missing here"))
            continue
        if mine["words_sha256"] != row["words_sha256"]:
            lengths = (
                "" if mine["num_words"] == row["num_words"] else f" ({mine['num_words']}, not {row['num_words']})"
            )
            differences.append(Difference(*key, f"the words differ{lengths}"))
        if images and mine["image_sha256"] != row["image_sha256"]:
            what = "the image differs"
            if mine["image_sha256"] is None:
                what = "the image is missing, unreadable or blank here"
            elif row["image_sha256"] is None:
                what = "there is an image here only"
            differences.append(Difference(*key, what))
    return [*differences, *(Difference(*key, "the post is here only") for key in own)]


def _rows(posts: Mapping[str, datasets.Dataset]) -> Iterator[dict[str, Any]]:
    for split, rows in posts.items():
        files = rows.select_columns(["id", "words", "image"])
        files = files.cast_column("image", undecoded(files.features["image"]))
        for row in files:
            yield {
                "id": row["id"],
                "split": str(split),
                "words_sha256": words_sha256(row["words"]),
                "image_sha256": " ".join(_file_sha256(image["path"]) for image in pictures_of(row["image"])) or None,
                "num_words": len(row["words"]),
            }


def _file_sha256(path: str) -> str:
    try:
        return image_sha256(path)
    except OSError as error:
        raise OSError(f"{path}, which was there when the corpus was prepared: {error}") from error
