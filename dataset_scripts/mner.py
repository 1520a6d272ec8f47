"""Loads MNER corpora as Hugging Face data sets, from text files, a folder of images and visual context files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets

from dataset_scripts.corpus.conll import entity_types, image_names, names_several, read_posts, read_tags, text_counts
from dataset_scripts.corpus.context_files import read_contexts
from dataset_scripts.corpus.corpus_config import CONFIGS, KNOWN_FILES, VERSION, MnerConfig
from dataset_scripts.corpus.corpus_images import (
    IMAGE_STATES,
    Verdict,
    examine_image,
    examine_images,
    images_by_id,
    verdict_of_post,
)
from dataset_scripts.hub.hub_dataset import push_dataset
from modeling_ita.tag_scheme import TagScheme
from modeling_ita.visual_context import VisualContext
from modeling_ita.whole_files import write_text

REPORT_FILE = "report.json"


class MnerDataset(datasets.GeneratorBasedBuilder):
    """Posts with tags, image and visual context; `report` counts everything that was dropped or repaired.

    ```python
    builder = MnerDataset(config_name="twitter2017", data_dir="twitter2017", images_dir="twitter2017/images",
                          context_files=["captions.jsonl", "knowledge.jsonl"])
    builder.download_and_prepare()
    dataset = builder.as_dataset()             # or builder.as_streaming_dataset(), without download_and_prepare()
    labels = dataset["train"].features["tags"].feature.names
    ```

    Rows are `{"id": str, "words": [str], "tags": [int], "image": PIL image or None, "context": dict or None}`;
    `VisualContext.from_dict` reads the context. An image that is missing, unreadable or blank is None, never a
    placeholder (method §7). If some post of the corpus has several images (`IMGID:17_1 17_2`), the column `image` of
    all posts is a list, of those images that can be used, and `context` joins the contexts of a post's images (see
    `VisualContext.joined`). `num_proc` in `download_and_prepare` sets the number of threads that examine images
    (default: one per core). Takes the arguments of `MnerConfig` and `datasets.DatasetBuilder`. Nothing is downloaded.

    Raises:
        ValueError: a folder or file is missing or malformed. The message names the place and what was expected.
    """

    VERSION = VERSION
    BUILDER_CONFIG_CLASS = MnerConfig
    BUILDER_CONFIGS: ClassVar[list[MnerConfig]] = list(CONFIGS.values())
    DEFAULT_CONFIG_NAME = "sample_posts"
    config: MnerConfig

    @property
    def report(self) -> dict[str, Any]:
        """What was read, dropped and repaired, as JSON values. Identical for a fresh build, the cache and streaming.

        `data` has the sha256 of every text and context file, and the published file that it is `known_as`;
        `contexts_without_post` counts ids in the context files that match no post; `splits` has, per split:

        - `posts`, `words`, `entities` (by type);
        - `posts_empty` (skipped), `posts_without_id` (numbered; only in a file with ids), `ids_repeated` (`x#2` …),
          `tags_repaired`, `words_invisible` (kept), `carriage_returns` and `byte_order_marks` (dropped);
        - `images`: posts whose image is `present`, `missing`, `unreadable` or `blank`; and `shared`, the present
          images whose file is byte-identical to that of another post. A post with several images counts as present if
          one of them is, and else as unreadable, blank or missing, in this order; only if there are such posts,
          `several` counts them, and `pictures` the present images of all posts;
        - `contexts`: posts whose context is `present`, `empty` or `missing`.

        In streaming, images that have not been examined yet are examined first.
        """
        saved = Path(self._output_dir, REPORT_FILE)
        if saved.is_file():
            return json.loads(saved.read_text(encoding="utf-8"))
        return self._make_report()

    push_to_hub = push_dataset

    def _info(self) -> datasets.DatasetInfo:
        self._fingerprint = self.config.fingerprint()
        self._contexts = read_contexts(self.config.context_paths())
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._text_counts: dict[str, dict[str, Any]] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._renamed_types = {"OTHER": "MISC"} if self.config.other_as_misc else {}
        self._scheme = self._tag_scheme()
        self._contexts_without_post = set(self._contexts)
        known = self._known = {*self._contexts, *images_by_id(self.config.image_files())}
        self._several = any(names_several(path.read_bytes(), known) for path in self.config.text_files().values())
        self._kinds = sorted({kind for context in self._contexts.values() for kind in context.kinds})
        strings = datasets.List(datasets.Value("string"))
        context = {**dict.fromkeys(self._kinds, strings), "provenance": datasets.Json()}
        features = {
            "id": datasets.Value("string"),
            "words": strings,
            "tags": datasets.List(datasets.ClassLabel(names=list(self._scheme.labels))),
            "image": datasets.List(datasets.Image()) if self._several else datasets.Image(),
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
        if self.config.images_dir is not None and not any(path for row in rows for path in row["image"]):
            expected = f"expected files such as {rows[0]['id']}.jpg; images_dir=None reads text only"
            raise ValueError(f"{self.config.images_dir} holds no image of any post ({expected})")
        if self._contexts and not any(row["context"] for row in rows):
            ids = f"they have ids such as {next(iter(self._contexts))!r}, the posts such as {rows[0]['id']!r}"
            raise ValueError(f"no id in the context files is a post's id ({ids})")
        return [datasets.SplitGenerator(name=split, gen_kwargs={"rows": self._rows[split]}) for split in self._rows]

    def _prepare_split(
        self, split_generator: datasets.SplitGenerator, num_proc: int | None = None, **kwargs: Any
    ) -> None:
        paths = {path for row in split_generator.gen_kwargs["rows"] for path in row["image"] if path}
        self._verdicts.update(examine_images(paths - self._verdicts.keys(), num_proc))
        super()._prepare_split(split_generator, **kwargs)

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in rows:
            present = [path for path in row["image"] if self._examine(path).state == "present"]
            yield row["id"], {**row, "image": present if self._several else present[0] if present else None}

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
        names = {post.image_id: image_names(post.image_id, self._known) for post in posts}
        self._contexts_without_post -= {name for each in names.values() for name in each}
        rows = [
            {
                "id": post.id,
                "words": post.words,
                "tags": tag_ids,
                "image": [images.get(name) for name in names[post.image_id]],  # the paths, until they are examined
                "context": self._context_row(names[post.image_id]),
            }
            for post, tag_ids, _, _ in tagged
        ]
        return rows, text_counts(tagged, passed_over, self._scheme)

    def _context_row(self, names: list[str]) -> dict[str, Any] | None:
        if self._contexts.keys().isdisjoint(names):
            return None
        context = VisualContext.joined(self._contexts.get(name, VisualContext()) for name in names)
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
        examined = {
            split: [[self._examine(path) for path in row["image"]] for row in rows]
            for split, rows in self._rows.items()
        }
        copies = Counter(
            sha256 for rows in examined.values() for images in rows for sha256 in {image.sha256 for image in images}
        )
        splits = {}
        for split, rows in self._rows.items():
            states = Counter(verdict_of_post(images).state for images in examined[split])
            images = {state: states[state] for state in IMAGE_STATES}
            images["shared"] = sum(
                any(image.state == "present" and copies[image.sha256] > 1 for image in post)
                for post in examined[split]
            )
            if self._several:
                images["several"] = sum(len(post) > 1 for post in examined[split])
                images["pictures"] = sum(image.state == "present" for post in examined[split] for image in post)
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
