"""Configuration of a corpus: its location, how to read it, and which published corpus it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from dataset_scripts.corpus.context_files import check_context_file
from dataset_scripts.corpus.corpus_images import IMAGE_SUFFIXES
from dataset_scripts.sample_posts import SAMPLE_POSTS

SPLIT_FILES = {
    "train": ("train.txt",),
    "validation": ("valid.txt", "validation.txt", "val.txt", "dev.txt"),
    "test": ("test.txt",),
}
KNOWN_FILES = {
    "801e149e8635b19d66b4ec1212c329be340ada501b35c5fa55455fb6f53633be": "twitter2017-umt train",
    "41b5db90cb32059c14c2c3ccd50845fb77f1e3d3e4f7d0c210a61bc507d8a73e": "twitter2017-umt valid",
    "a7d9e172ae85bd3e35276eb2b01ce223321bdc92a47b234e24305d72e7a05243": "twitter2017-umt test",
    "4c4511ab5eeb49dd94949bdb3301144c9ccc1e59618554afe64f10040df9337c": "sample_posts train",
    "4140f24859ee313358d65cb96fdd72e539a46c294eac637a45b3a39b808d2027": "sample_posts valid",
    "dafe42cae8975fd98b08d0f963caa57dc68f9157ea3c40a3b881d4ccc450bc2e": "sample_posts test",
}
"""Published text files by sha256. "Twitter-17" is the name of two data sets and Twitter-15 has two sets of labels."""
WITHOUT_LICENCE = ("twitter2015", "twitter2017", "snap")
"""Corpora that nobody was given the right to pass on: configurations, and how their names in `KNOWN_FILES` begin."""


@dataclass
class MnerConfig(datasets.BuilderConfig):
    """The location of a corpus and how to read its tags. All paths are local.

    Attributes:
        name: `sample_posts` (the embedded corpus), `twitter2015`, `twitter2017`, `snap` or `conll` (any tag set).
        data_dir: folder with the text files: `train.txt`, `valid.txt` (or `validation`, `val`, `dev`), `test.txt`.
            Only the splits that exist are built.
        images_dir: folder with the images, `<id>.jpg` (or another of `IMAGE_SUFFIXES`); None: text only.
        context_files: visual contexts, JSONL or Parquet with one row per id: `{"id": …, "<kind>": [str, …], …,
            "source": {"<kind>": who made it}}`. Several files are merged by id. Default: the files that come with the
            corpus (`sample_posts`), otherwise no contexts.
        types: entity types in label order; None collects them from the training file, sorted.
        other_as_misc: whether to rename the type OTHER (used by Twitter-15) to MISC; if not, it is kept.
        ids_required: whether every post needs an `IMGID:` line; if not, posts without one are numbered.
    """

    images_dir: str | None = None
    context_files: Sequence[str] = ()
    types: Sequence[str] | None = None
    other_as_misc: bool = True
    ids_required: bool = True

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """The name of the cached data set. It changes when a setting, a text, a context or an image changes."""
        if self.data_files is not None:
            raise ValueError("MnerDataset takes data_dir=FOLDER, not data_files")
        if self.name == "sample_posts" and self.data_dir != str(SAMPLE_POSTS):
            way_out = f"for {self.data_dir!r} choose config_name='twitter2017', 'conll' or another"
            raise ValueError(f"the configuration 'sample_posts' brings its own folder; {way_out}")
        features = custom_features.to_dict() if custom_features is not None else None
        made_from = json.dumps([self.fingerprint(), features], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"

    def fingerprint(self) -> dict[str, Any]:
        """The settings and inputs, as JSON values: texts and contexts by sha256, images by size and mtime."""
        stats = [(path, os.stat(path)) for path in self.image_files()]
        return {
            "settings": [self.types, self.other_as_misc, self.ids_required],
            "texts": {split: [str(path), file_sha256(path)] for split, path in self.text_files().items()},
            "contexts": [[str(path), file_sha256(path)] for path in self.context_paths()],
            "images": [[path, status.st_size, status.st_mtime_ns] for path, status in stats],
        }

    def text_files(self) -> dict[str, Path]:
        """The existing text files, by split.

        Raises:
            ValueError: the folder is missing or holds no text file, or two files belong to the same split.
        """
        wanted = ", ".join(name for names in SPLIT_FILES.values() for name in names)
        if self.data_dir is None:
            raise ValueError(f"the configuration {self.name!r} needs data_dir=FOLDER, a folder with any of {wanted}")
        folder = _local_folder("data_dir", self.data_dir, f"give a folder with any of {wanted}")
        found: dict[str, Path] = {}
        for split, names in SPLIT_FILES.items():
            for path in (folder / name for name in names if (folder / name).is_file()):
                if found.setdefault(split, path) != path:
                    raise ValueError(f"{found[split]} and {path} both name the split {split!r}: remove one")
        if not found:
            raise ValueError(f"{folder} holds no split (looked for {wanted})")
        return found

    def context_paths(self) -> list[Path]:
        """The context files.

        Raises:
            ValueError: a file is missing, or is neither JSONL nor Parquet.
        """
        given = [self.context_files] if isinstance(self.context_files, (str, os.PathLike)) else self.context_files
        if not given and self.name == "sample_posts":
            given = [str(SAMPLE_POSTS / "scenes.jsonl")]
        paths = [Path(_local(path)) for path in given]
        for path in paths:
            check_context_file(path)
        return paths

    def image_files(self) -> list[str]:
        """The absolute paths of the images in the folder, sorted by name.

        Raises:
            ValueError: the folder is missing.
        """
        if self.images_dir is None:
            return []
        folder = _local_folder("images_dir", self.images_dir, "give the folder with <id>.jpg, or None for text only")
        with os.scandir(os.path.abspath(folder)) as entries:
            return sorted(e.path for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(e))


def _local(path: str | os.PathLike[str]) -> str:
    if re.match(r"[a-zA-Z][\w+.-]+://", os.fspath(path)):
        raise ValueError(f"{path} is a URL: download it and give the local path")
    return os.path.expanduser(path)


def _local_folder(name: str, path: str | os.PathLike[str], way_out: str) -> Path:
    folder = Path(_local(path))
    if not folder.is_dir():
        raise ValueError(f"{name}: there is no folder {folder} ({way_out})")
    return folder


def file_sha256(path: Path) -> str:
    """The sha256 of a text file, as listed in `KNOWN_FILES`."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Raise the version whenever the same files yield different rows: the cache is keyed by it.
VERSION = datasets.Version("1.1.0")
CONFIGS = {
    config.name: config
    for config in (
        MnerConfig(
            name="sample_posts",
            version=VERSION,
            data_dir=str(SAMPLE_POSTS),
            images_dir=str(SAMPLE_POSTS / "images"),
            types=("PER", "LOC", "ORG", "MISC"),
        ),
        MnerConfig(name="twitter2015", version=VERSION, types=("PER", "LOC", "ORG", "OTHER")),
        MnerConfig(name="twitter2017", version=VERSION, types=("PER", "LOC", "ORG", "MISC")),
        MnerConfig(name="snap", version=VERSION, types=("PER", "LOC", "ORG", "MISC")),
        MnerConfig(name="conll", version=VERSION, other_as_misc=False, ids_required=False),
    )
}
"""The corpora that are known, by name, and `conll`, any other one."""
