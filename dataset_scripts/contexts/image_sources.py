"""Image sources: a corpus of posts, a folder, a pattern or list of files, or any data set with images.

Each yields `(id, image)` pairs; the image is a path, the bytes of a file, or None if there is no image.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from datasets.utils.file_utils import xopen

from dataset_scripts.corpus.conll import image_names, read_posts
from dataset_scripts.corpus.corpus_config import CONFIGS, MnerConfig
from dataset_scripts.corpus.corpus_images import IMAGE_SUFFIXES, images_by_id
from dataset_scripts.corpus.examples import undecoded
from modeling_ita.image_file import MAX_BYTES, ImageSource, pictures_of

LIST_SUFFIXES = (".txt", ".lst", ".list")


@dataclass
class ImageSet:
    """Images with their ids.

    Attributes:
        pairs: returns a new iterator over `(id, image)`, which reads lazily.
        count: the number of images; None if it is not known beforehand.
        context_files: files with further kinds of context for the images.
    """

    pairs: Iterator[tuple[str, ImageSource | None]]
    count: int | None = None
    context_files: tuple[Path, ...] = ()


def corpus_images(corpus: str, images_dir: str | None = None) -> ImageSet:
    """The images of every post of a corpus, by the names in the post's `IMGID:` line (see `image_names`).

    Args:
        corpus: a folder with `train.txt`, `valid.txt`, `test.txt`, or `sample_posts`.
        images_dir: folder of the images. Default: `images` in the corpus' folder.

    Raises:
        ValueError: a folder is missing, all text files are missing, or a line is malformed.
    """
    if corpus == "sample_posts":
        sample = CONFIGS[corpus]
        config = replace(sample, images_dir=images_dir or sample.images_dir)
    else:
        config = MnerConfig(name="conll", data_dir=corpus, images_dir=images_dir or str(Path(corpus, "images")))
    by_id = images_by_id(config.image_files())
    posts = [post for path in config.text_files().values() for post in read_posts(path.read_bytes(), str(path))[0]]
    pairs = {name: by_id.get(name) for post in posts for name in image_names(post.image_id, by_id)}
    return ImageSet(iter(pairs.items()), len(pairs), tuple(config.context_paths()))


def file_images(files: str) -> ImageSet:
    r"""The images of a folder (and the folders in it), of a pattern such as `photos/*.jpg`, or of a list of files.

    An id is the file's path relative to the folder or to the fixed part of the pattern. The suffix is dropped if the
    ids stay unique. Bytes of a name that are not UTF-8 are escaped (`caf\xe9`), because ids are text.

    A list has one path per line, relative to the list's folder. A path that does not exist counts as a missing image.

    Raises:
        ValueError: the folder or file does not exist, or holds no image.
    """
    path = Path(files).expanduser()
    if path.is_dir():
        root = path
        found = sorted(
            Path(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
        )
    elif path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        root = path.parent
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{files} is not a list of files in UTF-8: {error}") from error
        found = [root / line.strip() for line in lines if line.strip()]
    elif path.is_file():
        root, found = path.parent, [path]
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        root = Path(os.path.commonpath([file.parent for file in found])) if found else path
    if not found:
        raise ValueError(
            f"{files}: there is no image (expected a folder, a pattern such as 'photos/*.jpg', or a list of files, "
            f"one path a line, that ends in {' or '.join(LIST_SUFFIXES)})"
        )
    found = list(dict.fromkeys(found))
    ids = [os.fsencode(os.path.relpath(file, root)).decode("utf-8", "backslashreplace") for file in found]
    stems = [os.path.splitext(name)[0] for name in ids]
    ids = stems if len(set(stems)) == len(set(ids)) else ids
    seen: Counter[str] = Counter()
    pairs = {}
    for name, file in zip(ids, found, strict=True):
        seen[name] += 1  # another file's name may equal the escaped one
        pairs[name if seen[name] == 1 else f"{name}#{seen[name]}"] = str(file)
    return ImageSet(iter(pairs.items()), len(pairs))


def dataset_images(
    name: str,
    configuration: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    id_column: str | None = None,
) -> ImageSet:
    """The images of any data set that `datasets.load_dataset` can load, streamed a few rows at a time.

    A column may hold lists of images. Those of a row with several have the ids `x#1`, `x#2`, … if the row's id is `x`.

    Args:
        name: a repository on the Hub or a local folder.
        configuration: the data set's configuration, if it has several.
        split: the split.
        image_column: the column of images, or of lists of images. Default: the only such column.
        id_column: the column of ids; None numbers the rows from 0.

    Raises:
        ValueError: the data set, split or column does not exist, or several columns hold images.
    """
    try:
        rows = datasets.load_dataset(name, configuration, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"the data set {name!r} cannot be read: {error}") from error
    features = rows.features or {}
    columns = [column for column, feature in features.items() if holds_images(feature)]
    if image_column is None:
        if len(columns) != 1:
            raise ValueError(f"{name} has {len(columns)} columns of images {columns}: name one (image_column)")
        image_column = columns[0]
    if features and image_column in features and image_column not in columns:
        raise ValueError(f"the column {image_column!r} of {name} holds no images, but {features[image_column]}")
    for column in (image_column, id_column):
        if column is not None and features and column not in features:
            raise ValueError(f"{name} has no column {column!r} (expected one of {', '.join(features)})")
    rows = rows.cast_column(
        image_column, undecoded(features.get(image_column))
    )  # read by open_image, under its limits
    kept = [image_column] if id_column is None else [image_column, id_column]

    def pairs() -> Iterator[tuple[str, ImageSource | None]]:
        for number, row in enumerate(rows.select_columns(kept)):
            key = number if id_column is None else row[id_column]
            if key is None:
                raise ValueError(f"row {number} of {name} has no id in the column {id_column!r}")
            images = pictures_of(row[image_column]) or [None]
            for place, image in enumerate(images, start=1):
                yield str(key) if len(images) == 1 else f"{key}#{place}", image_content(image or {})

    info = (rows.info.splits or {}).get(split) if rows.info else None
    is_one_each = isinstance(features.get(image_column), datasets.Image)
    return ImageSet(pairs(), info.num_examples if info and is_one_each else None)


def holds_images(feature: Any) -> bool:
    """Whether a column of a data set holds images, or lists of them."""
    is_list = isinstance(feature, (datasets.List, datasets.LargeList))
    return isinstance(feature.feature if is_list else feature, datasets.Image)


def image_content(image: dict[str, Any]) -> ImageSource | None:
    """The bytes or path of an image of a data set. Archive members and files of its own repository are read here."""
    content, path = image.get("bytes"), image.get("path")
    if content or not path:
        return content or None
    if re.match(r"(zip|tar|gzip|hf)://", path) and not re.search(r"::(?!hf://)\w+://", path):
        with xopen(path, "rb") as file:
            return file.read(MAX_BYTES)
    return path
