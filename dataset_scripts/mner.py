"""MNER corpora as Hugging Face data sets: text files, a folder of images and files of visual contexts, row by row."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets
from huggingface_hub import CommitInfo

from dataset_scripts.conll import (
    TaggedPost,
    entity_types,
    is_invisible,
    read_posts,
    read_tags,
)
from dataset_scripts.context_files import check_context_file, read_contexts
from dataset_scripts.sample_posts import SAMPLE_POSTS
from modeling_ita.configuration_ita import TagScheme
from modeling_ita.image_file import UnreadableImage, image_sha256, is_blank, open_image, plain_fingerprint
from modeling_ita.whole_files import write_text

SPLIT_FILES = {
    "train": ("train.txt",),
    "validation": ("valid.txt", "validation.txt", "val.txt", "dev.txt"),
    "test": ("test.txt",),
}
IMAGE_STATES = ("present", "missing", "unreadable", "blank")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".jpe")
REPORT_FILE = "report.json"
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
    """Where a corpus lies and how its tags are read. All paths are local.

    Attributes:
        name: `sample_posts` (the embedded corpus), `twitter2015`, `twitter2017`, `snap` or `conll` (any tag set).
        data_dir: folder with the text files: `train.txt`, `valid.txt` (or `validation`, `val`, `dev`), `test.txt`.
            Only the splits that are there are built.
        images_dir: folder with the images, `<id>.jpg` (or another of `IMAGE_SUFFIXES`); None for text only.
        context_files: visual contexts, JSONL or Parquet with one row an id: `{"id": …, "<kind>": [str, …], …,
            "source": {"<kind>": who made it}}`. Several files are merged by id. None given: those that the corpus
            brings (`sample_posts`), or no contexts.
        types: entity types in the order of the labels; None collects them, sorted, from the training file.
        other_as_misc: whether the type OTHER (Twitter-15's name) becomes MISC; if not, the file's name is kept.
        ids_required: whether every post needs an `IMGID:` line; if not, posts without one are numbered.
    """

    images_dir: str | None = None
    context_files: Sequence[str] = ()
    types: Sequence[str] | None = None
    other_as_misc: bool = True
    ids_required: bool = True

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """The name of the cached data set: it changes when a setting, a text, a context or an image changes."""
        if self.data_files is not None:
            raise ValueError("MnerDataset takes data_dir=FOLDER, not data_files")
        if self.name == "sample_posts" and self.data_dir != str(SAMPLE_POSTS):
            way_out = f"for {self.data_dir!r} choose config_name='twitter2017', 'conll' or another"
            raise ValueError(f"the configuration 'sample_posts' brings its own folder; {way_out}")
        features = custom_features.to_dict() if custom_features is not None else None
        made_from = json.dumps([self.fingerprint(), features], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"

    def fingerprint(self) -> dict[str, Any]:
        """The settings and all that is read, as JSON values: texts and contexts by sha256, images by size and time."""
        stats = [(path, os.stat(path)) for path in self.image_files()]
        return {
            "settings": [self.types, self.other_as_misc, self.ids_required],
            "texts": {split: [str(path), file_sha256(path)] for split, path in self.text_files().items()},
            "contexts": [[str(path), file_sha256(path)] for path in self.context_paths()],
            "images": [[path, status.st_size, status.st_mtime_ns] for path, status in stats],
        }

    def text_files(self) -> dict[str, Path]:
        """The text files that are there, by split.

        Raises:
            ValueError: the folder is missing or holds none of them, or two of them name one split.
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
            ValueError: one is missing, or is neither JSONL nor Parquet.
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


class Verdict(NamedTuple):
    """What the examination of a post's image says.

    Attributes:
        state: one of `IMAGE_STATES`.
        sha256: of the file, if the image is present.
        reason: why it cannot be read, if it is unreadable.
        fingerprint: of a picture of mostly one colour, by which its copies are told (`plain_fingerprint`).
    """

    state: str
    sha256: str = ""
    reason: str = ""
    fingerprint: str = ""


class MnerDataset(datasets.GeneratorBasedBuilder):
    """Posts with tags, image and visual context; all that is lost or repaired on the way is counted in `report`.

    ```python
    builder = MnerDataset(config_name="twitter2017", data_dir="twitter2017", images_dir="twitter2017/images",
                          context_files=["captions.jsonl", "knowledge.jsonl"])
    builder.download_and_prepare()
    dataset = builder.as_dataset()             # or builder.as_streaming_dataset(), without download_and_prepare()
    labels = dataset["train"].features["tags"].feature.names
    ```

    Rows are `{"id": str, "words": [str], "tags": [int], "image": PIL image or None, "context": dict or None}`;
    `VisualContext.from_dict` reads the context. An image that is missing, unreadable or blank is None, never a
    placeholder (method §7). `num_proc` in `download_and_prepare` is the number of threads that examine images, by
    default one a core. Arguments are those of `MnerConfig` and of `datasets.DatasetBuilder`; nothing is downloaded.

    Raises:
        ValueError: a folder or file is missing or malformed. The message names the place and what was expected.
    """

    # Raise the version whenever the same files are to give other rows: cached data sets are told apart by it.
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = MnerConfig
    BUILDER_CONFIGS: ClassVar[list[MnerConfig]] = [
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
    ]
    DEFAULT_CONFIG_NAME = "sample_posts"
    config: MnerConfig

    @property
    def report(self) -> dict[str, Any]:
        """What was read, lost and repaired, as JSON values; the same fresh, from the cache and in streaming.

        `data` has the sha256 of every text and context file and the name under which it is `known_as`;
        `contexts_without_post` counts ids of context files that no post has; `splits` has by split:

        - `posts`, `words`, `entities` (by type);
        - `posts_empty` (left out), `posts_without_id` (numbered, in a file that has ids), `ids_repeated` (`x#2` …),
          `tags_repaired`, `words_invisible` (kept), `carriage_returns` and `byte_order_marks` (dropped);
        - `images`: posts whose image is `present`, `missing`, `unreadable` or `blank`, and `shared`, those of the
          present ones whose file is byte for byte that of another post;
        - `contexts`: posts whose context is `present`, `empty` or `missing`.

        In streaming, images that no row has asked for yet are examined first.
        """
        saved = Path(self._output_dir, REPORT_FILE)
        if saved.is_file():
            return json.loads(saved.read_text(encoding="utf-8"))
        return self._make_report()

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        *,
        license: str | None = None,
        language: str | None = None,
        i_have_the_rights: bool = False,
        checksums_only: bool = False,
        revision: str | None = None,
        token: str | None = None,
    ) -> CommitInfo:
        """Put the corpus on the Hub in one commit: posts with their images, contexts, and a card.

        The arguments, and what is refused, are those of `dataset_scripts.push_dataset.push_dataset`.
        """
        from dataset_scripts.push_dataset import push_dataset  # it imports this module

        return push_dataset(
            self,
            repo_id,
            private,
            license=license,
            language=language,
            i_have_the_rights=i_have_the_rights,
            checksums_only=checksums_only,
            revision=revision,
            token=token,
        )

    def _info(self) -> datasets.DatasetInfo:
        self._fingerprint = self.config.fingerprint()
        self._contexts = read_contexts(self.config.context_paths())
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._text_counts: dict[str, dict[str, Any]] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._renamed_types = {"OTHER": "MISC"} if self.config.other_as_misc else {}
        self._scheme = self._tag_scheme()
        self._contexts_without_post = set(self._contexts)
        self._kinds = sorted({kind for context in self._contexts.values() for kind in context.kinds})
        strings = datasets.List(datasets.Value("string"))
        context = {**dict.fromkeys(self._kinds, strings), "provenance": datasets.Json()}
        features = {
            "id": datasets.Value("string"),
            "words": strings,
            "tags": datasets.List(datasets.ClassLabel(names=list(self._scheme.labels))),
            "image": datasets.Image(),
            "context": context if self._contexts else datasets.Value("null"),
        }
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager: object) -> list[datasets.SplitGenerator]:
        if self.config.fingerprint() != self._fingerprint:
            raise ValueError("the corpus has changed since this builder was made: make a new MnerDataset")
        images = images_by_id(self.config.image_files())
        splits = {split: self._read_split(split, path, images) for split, path in self.config.text_files().items()}
        self._rows = {split: rows for split, (rows, _) in splits.items()}
        self._text_counts = {split: counts for split, (_, counts) in splits.items()}
        rows = [row for split_rows in self._rows.values() for row in split_rows]
        if self.config.images_dir is not None and not any(row["image"] for row in rows):
            expected = f"expected files such as {rows[0]['id']}.jpg; images_dir=None reads text only"
            raise ValueError(f"{self.config.images_dir} holds no image of any post ({expected})")
        if self._contexts and not any(row["context"] for row in rows):
            ids = f"they have ids such as {next(iter(self._contexts))!r}, the posts such as {rows[0]['id']!r}"
            raise ValueError(f"no id in the context files is a post's id ({ids})")
        return [datasets.SplitGenerator(name=split, gen_kwargs={"rows": self._rows[split]}) for split in self._rows]

    def _prepare_split(
        self, split_generator: datasets.SplitGenerator, num_proc: int | None = None, **kwargs: Any
    ) -> None:
        paths = {row["image"] for row in split_generator.gen_kwargs["rows"] if row["image"]}
        self._verdicts.update(examine_images(paths - self._verdicts.keys(), num_proc))
        super()._prepare_split(split_generator, **kwargs)

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in rows:
            present = self._examine(row["image"]).state == "present"
            yield row["id"], {**row, "image": row["image"] if present else None}

    def _save_info(self) -> None:
        super()._save_info()
        report = json.dumps(self._make_report(), indent=2, ensure_ascii=False)
        write_text(Path(self._output_dir, REPORT_FILE), report)

    def _tag_scheme(self) -> TagScheme:
        types = self.config.types
        if types is None:
            path = self.config.text_files().get("train")
            if path is None:
                raise ValueError(f"{self.config.data_dir} has no train.txt to collect types from: give types=[…]")
            posts, _ = read_posts(path.read_bytes(), str(path), ids_required=self.config.ids_required)
            types = entity_types(posts, str(path))
        return TagScheme.from_types(dict.fromkeys(self._renamed_types.get(t, t) for t in types))

    def _read_split(
        self, split: str, path: Path, images: Mapping[str, str]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        required = self.config.ids_required
        posts, passed_over = read_posts(path.read_bytes(), str(path), ids_required=required, numbered_as=split)
        tagged = read_tags(posts, str(path), self._scheme, self._renamed_types)
        self._contexts_without_post -= {post.image_id for post in posts}
        rows = [
            {
                "id": post.id,
                "words": post.words,
                "tags": tag_ids,
                "image": images.get(post.image_id),
                "context": self._context_row(post.image_id),
            }
            for post, tag_ids, _, _ in tagged
        ]
        return rows, text_counts(tagged, passed_over, self._scheme)

    def _context_row(self, post_id: str) -> dict[str, Any] | None:
        context = self._contexts.get(post_id)
        if context is None:
            return None
        return {**{kind: context.kinds.get(kind, []) for kind in self._kinds}, "provenance": context.provenance}

    def _examine(self, path: str | None) -> Verdict:
        if path is None:
            return Verdict("missing")
        if path not in self._verdicts:
            self._verdicts[path] = examine_image(path)
        return self._verdicts[path]

    def _make_report(self) -> dict[str, Any]:
        if not self._rows:
            self._split_generators(None)
        verdicts = {split: [self._examine(row["image"]) for row in rows] for split, rows in self._rows.items()}
        copies = Counter(verdict.sha256 for split in verdicts.values() for verdict in split)
        splits = {}
        for split, rows in self._rows.items():
            images = {state: sum(verdict.state == state for verdict in verdicts[split]) for state in IMAGE_STATES}
            images["shared"] = sum(v.state == "present" and copies[v.sha256] > 1 for v in verdicts[split])
            given = [row["context"] for row in rows if row["context"] is not None]
            present = sum(any(context[kind] for kind in self._kinds) for context in given)
            contexts = {"present": present, "empty": len(given) - present, "missing": len(rows) - len(given)}
            splits[split] = {**self._text_counts[split], "images": images, "contexts": contexts}
        files = [*self._fingerprint["texts"].values(), *self._fingerprint["contexts"]]
        return {
            "configuration": self.config.name,
            "data": {path: {"sha256": sha, "known_as": KNOWN_FILES.get(sha, "unknown")} for path, sha in files},
            "contexts_without_post": len(self._contexts_without_post),
            "splits": splits,
        }


def text_counts(tagged: Sequence[TaggedPost], passed_over: Mapping[str, int], scheme: TagScheme) -> dict[str, Any]:
    """What a split's text holds, as in `MnerDataset.report`: from the posts, and what `read_posts` passed over."""
    entities = Counter(entity.type for post in tagged for entity in post.entities)
    return {
        "posts": len(tagged),
        "words": sum(len(post.words) for post, _, _, _ in tagged),
        "entities": {entity_type: entities[entity_type] for entity_type in scheme.types},
        **passed_over,
        "tags_repaired": sum(post.repaired for post in tagged),
        "words_invisible": sum(is_invisible(word) for post, _, _, _ in tagged for word in post.words),
    }


def images_by_id(images: Sequence[str]) -> dict[str, str]:
    """Image files by the ids that find them: the file's name, and the name without its suffix (`.jpg` goes first)."""
    found: dict[str, str] = {}
    for suffix in IMAGE_SUFFIXES:
        for path in images:
            name = os.path.basename(path)
            if name.lower().endswith(suffix):
                found.setdefault(name, path)
                found.setdefault(name[: -len(suffix)], path)
    return found


def examine_image(path: str) -> Verdict:
    """Whether an image file opens and shows anything."""
    try:
        image = open_image(path)
        if is_blank(image):
            return Verdict("blank")
        return Verdict("present", image_sha256(path), fingerprint=plain_fingerprint(image) or "")
    except (UnreadableImage, OSError) as error:
        return Verdict("unreadable", reason=str(error))


def examine_images(paths: Iterable[str], threads: int | None = None) -> dict[str, Verdict]:
    """The verdict on every image file; `threads` decode them, by default one a core."""
    # Decoding releases the GIL, so that threads are enough and the verdicts stay in this process.
    paths = sorted(paths)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        verdicts = pool.map(examine_image, paths)
        shown = datasets.utils.tqdm(verdicts, "Examining images", total=len(paths), disable=not paths)
        return dict(zip(paths, shown, strict=True))


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
    """The sha256 of a text file, by which `KNOWN_FILES` knows it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
