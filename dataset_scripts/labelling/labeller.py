"""Labels a batch of rows: columns in, the same columns with the entities of every post out."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from fsspec.core import url_to_fs
from PIL import Image, ImageDraw

from dataset_scripts.contexts.context_store import ContextStore
from dataset_scripts.labelling.columns import choose_columns
from dataset_scripts.labelling.text_files import without_surrogates
from modeling_ita import ItaPipeline, VisualContext
from modeling_ita.image_file import MAX_BYTES
from modeling_ita.model_loading import load_model
from modeling_ita.pipeline_ita import BATCH_SIZE, LOOK_AHEAD, ReadImages
from modeling_ita.plain_text import one_line
from modeling_ita.whole_files import is_disk_full

ENTITY = pa.struct(
    [
        ("type", pa.string()),
        ("text", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("score", pa.float64()),
    ]
)
WINDOW = BATCH_SIZE * LOOK_AHEAD  # rows that share their batches
DIGITS = 6  # of a score; the rest depends on the machine
_PRECEDENCE = ("read", "stored", "skipped", "unreadable", "blank", "missing", "none")  # of several pictures
_URL = re.compile(r"data:|[a-zA-Z][\w+.-]+:/")


class Labelled(NamedTuple):
    """What a batch of posts became, each a list of as many items.

    Attributes:
        entities: the entities of every post, as dictionaries like `ENTITY`.
        states: what became of its pictures, see `IMAGE_STATES`.
        contexts: the strings by kind that took part; None if there are none.
        errors: why a post was not labelled, in one line; None if it was.
        faults: why its picture is unreadable; None if it is not.
    """

    entities: list[list[dict[str, Any]]]
    states: list[str]
    contexts: list[dict[str, list[str]] | None]
    errors: list[str | None]
    faults: list[str | None]


class PostLabeller:
    """Adds the entities of its post to every row of a batch of columns.

    A batch is a `dict` of lists (`datasets.map`, Ray Data), an Arrow table or a pandas data frame (Spark), and the
    result is of the same kind, with the columns `entities` (a list of `{"type", "text", "start", "end", "score"}`),
    `image_state` (see `IMAGE_STATES`), `error` (None, or why the post could not be labelled), and with
    `return_context` the `context`. A row that cannot be labelled has its error and no entities; it never costs another
    row. Offsets are characters of the text; words are joined by spaces.

    The model is loaded with the first batch. A labeller can be pickled, and is then loaded anew.

    ```python
    labeller = PostLabeller("you/ita", text_column="text", image_column="image")
    labelled = dataset.map(labeller, batched=True, batch_size=512)
    ```

    Prefer Arrow tables where there is a choice (Ray Data: `batch_format="pyarrow"`): their columns have a type even in
    a batch without any entity or error.

    Args:
        model: an exported folder, or a repository on the Hub. None of its code runs.
        text_column: the column of the posts, strings or lists of words. Default: guessed by its name.
        image_column: the column of their pictures: a path, the bytes of a file, `{"bytes", "path"}`, a PIL image, or a
            list of these. Default: none.
        context_column: the column of given contexts, dictionaries or JSON text. Default: none.
        images_dir: the folder of the pictures, on any file system that fsspec knows. A path that leads out of it is
            not read (`"/"` holds all of this machine). Default: the current folder.
        read_images: `"always"`, `"unsure"` or `"never"`, see `ItaPipeline`.
        image_gate: the gate of `"unsure"`. Default: the model's own.
        min_score: leaves out entities with a lower score.
        return_context: whether to add the column `context`.
        store: folder that keeps the contexts of pictures, see `ContextStore`. Default: none are kept.
        batch_size: posts in one pass through the encoder.
        device: `"cpu"`, `"cuda:0"` …. Default: an accelerator if there is one.
        threads: threads of torch in this process. Default: as many as it has.
        since: seconds since 1970; pictures whose contexts were made after it count as read, not as stored. Default:
            the first batch.

    Attributes:
        seconds: CPU seconds spent so far: `posts`, and `images`.
        images: the number of pictures read so far.
    """

    def __init__(
        self,
        model: str,
        *,
        text_column: str | None = None,
        image_column: str | None = None,
        context_column: str | None = None,
        images_dir: str | None = None,
        read_images: ReadImages = "always",
        image_gate: float | None = None,
        min_score: float = 0.0,
        return_context: bool = False,
        store: str | None = None,
        batch_size: int = BATCH_SIZE,
        device: str | None = None,
        threads: int | None = None,
        since: float | None = None,
    ) -> None:
        self.model = model
        self.text_column, self.image_column, self.context_column = text_column, image_column, context_column
        self.images_dir = images_dir
        self.read_images, self.image_gate = read_images, image_gate
        self.min_score, self.return_context = min_score, return_context
        self.store, self.batch_size, self.device, self.threads = store, batch_size, device, threads
        self.since = since
        self._began: float | None = None
        self.seconds = {"posts": 0.0, "images": 0.0}
        self.images = 0
        self.watch: Callable[[int], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The settings, without what is loaded."""
        kept = {key: value for key, value in vars(self).items() if key not in ("pipe", "watch")}
        return {**kept, "watch": None, "seconds": {"posts": 0.0, "images": 0.0}, "images": 0, "_began": None}

    @cached_property
    def pipe(self) -> ItaPipeline:
        """The pipeline, with the readers of pictures if there may be any.

        Raises:
            OSError: there is no such model, or a reader's weights are missing.
            ImportError: a reader's package is not installed.
            ValueError: the model is broken, names no way to read pictures or has no gate, or a setting is wrong.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model, processor = load_model(self.model)
        store = None if self.store is None else ContextStore(self.store)
        pipe = ItaPipeline(model=model, processor=processor, device=self.device, context_store=store)
        # What is wrong with the settings is no fault of a row.
        pipe._sanitize_parameters(min_score=self.min_score, read_images=self.read_images, image_gate=self.image_gate)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size} (expected 1 or more)")
        if self.image_column is not None and self.read_images != "never":
            if processor.context_builder is not None or not model.sees_images:
                pipe.context_builder = _Watched(pipe.context_builder, self)  # type: ignore[assignment]
            if self.read_images == "unsure":
                pipe._gate(self.image_gate)
        return pipe

    def load(self) -> None:
        """Loads the model now, and not with the first batch. Raises as `pipe` does."""
        _ = self.pipe

    @property
    def kinds(self) -> list[str]:
        """The kinds of context that can take part."""
        return list(self.pipe.processor.context_kinds)

    @property
    def added(self) -> pa.Schema:
        """The columns that are added."""
        fields: list[tuple[str, pa.DataType]] = [("entities", pa.list_(ENTITY)), ("image_state", pa.string())]
        if self.return_context:
            strings = pa.list_(pa.string())
            fields.append(("context", pa.struct([(kind, strings) for kind in self.kinds]) if self.kinds else strings))
        return pa.schema([*fields, ("error", pa.string())])

    def __call__(self, batch: Any) -> Any:
        """The batch with the new columns; a column of the same name is replaced.

        Raises:
            TypeError: the batch is no table.
            ValueError: there is no such column.
            OSError: the model, a reader's weights or the store cannot be used.
            ImportError: a reader's package is not installed.
        """
        batch = getattr(batch, "pa_table", batch)  # of `datasets.map`: no picture is decoded and encoded again
        if isinstance(batch, pa.RecordBatch):
            batch = pa.Table.from_batches([batch])
        if isinstance(batch, pa.Table):
            return self._labelled_table(batch)
        is_frame = type(batch).__module__.startswith("pandas")
        if not is_frame and not isinstance(batch, Mapping):
            raise TypeError(
                f"the batch is of type {type(batch).__name__} (expected a dictionary of lists, an Arrow table or a "
                "pandas data frame)"
            )
        text = _guessed(batch) if self.text_column is None else self.text_column
        for name in (text, self.image_column, self.context_column):
            if name is not None and name not in batch:
                raise ValueError(f"there is no column {name!r} (the columns are {', '.join(map(str, batch))})")
        images, contexts = (
            None if name is None else [_plain(value) for value in batch[name]]
            for name in (self.image_column, self.context_column)
        )
        found = self.label([_plain(value) for value in batch[text]], images, contexts)
        new: dict[str, Any] = {"entities": found.entities, "image_state": found.states, "error": found.errors}
        if self.return_context:
            new["context"] = found.contexts
        if is_frame:
            return batch.assign(**new)
        return {**batch, **new}

    def _labelled_table(self, table: pa.Table) -> pa.Table:
        columns, _ = choose_columns(
            table.schema, self.text_column, self.image_column or "none", self.context_column or "none", "none"
        )
        images, contexts = (
            None if name is None else table[name].to_pylist() for name in (columns.image, columns.context)
        )
        found = self.label(table[columns.text].to_pylist(), images, contexts)
        for name, column in self.added_columns(found).items():
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, column)
            else:
                table = table.append_column(name, column)
        return table

    def added_columns(self, found: Labelled) -> dict[str, pa.Array]:
        """The new columns as Arrow arrays."""
        values: dict[str, list[Any]] = {
            "entities": found.entities,
            "image_state": found.states,
            "context": found.contexts,
            "error": found.errors,
        }
        added = self.added
        return {name: pa.array(values[name], added.field(name).type) for name in added.names}

    def label(
        self,
        posts: Sequence[Any],
        images: Sequence[Any] | None = None,
        contexts: Sequence[Any] | None = None,
        faults: Sequence[str | None] | None = None,
        folder: str | None = None,
    ) -> Labelled:
        """Labels posts.

        Args:
            posts: the posts, strings or lists of words.
            images: the pictures of each, None where there is none.
            contexts: the given context of each, None where there is none.
            faults: why a row is not to be labelled; None where it is.
            folder: the folder of the pictures, if there is no `images_dir`.
        """
        started, before = time.process_time(), self.seconds["images"]
        count = len(posts)
        if self._began is None:
            self._began = datetime.now(UTC).timestamp() if self.since is None else self.since
        errors: list[str | None] = list(faults) if faults is not None else [None] * count
        found = Labelled([[] for _ in posts], ["none"] * count, [None] * count, errors, [None] * count)
        ready: dict[bool, list[tuple[int, dict[str, Any]]]] = {False: [], True: []}
        for n in range(count):
            image = None if images is None else images[n]
            context = None if contexts is None else contexts[n]
            if errors[n] is None:
                try:
                    words = _is_words(posts[n])
                    item: dict[str, Any] = {"words" if words else "text": posts[n]}
                    if context is not None and context != "":
                        item["context"] = _context(context)
                except (TypeError, ValueError) as error:
                    errors[n] = one_line(error, 300)
                else:
                    sources = self._sources(image, n, found, self.images_dir or folder)
                    if sources:
                        item["image"] = sources
                    ready[words].append((n, item))
        for words, chosen in ready.items():
            for start in range(0, len(chosen), WINDOW):
                self._run(chosen[start : start + WINDOW], words, found)
        self.seconds["posts"] += time.process_time() - started - (self.seconds["images"] - before)
        return found

    def _run(self, chosen: list[tuple[int, dict[str, Any]]], words: bool, found: Labelled) -> None:
        """Labels these posts, together or, if that fails, one by one."""
        pipe = self.pipe
        try:
            results = pipe(
                [item for _, item in chosen],
                is_split_into_words=words,
                batch_size=self.batch_size,
                read_images=self.read_images if any("image" in item for _, item in chosen) else "always",
                image_gate=self.image_gate,
                min_score=self.min_score,
                return_context=True,
                return_image_state=True,
            )
        except Exception as error:
            if isinstance(error, ImportError) or is_disk_full(error):
                raise
            if len(chosen) > 1:
                for one in chosen:
                    self._run([one], words, found)
                return
            n, item = chosen[0]
            message = re.sub(r"^(input|post) 0: ", "", one_line(error, 300))
            if "image" not in item:
                found.errors[n] = message or type(error).__name__
                return
            # The picture may be what cannot be labelled: the post can.
            found.states[n], found.faults[n] = "unreadable", message
            self._run([(n, {key: value for key, value in item.items() if key != "image"})], words, found)
            return
        for (n, item), result in zip(chosen, results, strict=True):
            found.entities[n] = [
                {
                    "type": entity["entity_group"],
                    "text": without_surrogates(entity["word"]),
                    "start": entity["start"],
                    "end": entity["end"],
                    "score": round(entity["score"], DIGITS),
                }
                for entity in result["entities"]
            ]
            context = result["context"]
            if context is not None:
                found.contexts[n] = {
                    kind: list(map(without_surrogates, strings))
                    for kind, strings in context.items()
                    if kind != "provenance"
                }
            if "image" in item:
                state = result["image_state"]
                if state == "stored" and self._is_new(context):
                    state = "read"
                found.states[n] = min(found.states[n], state, key=_PRECEDENCE.index)

    def _is_new(self, context: Mapping[str, Any] | None) -> bool:
        """Whether a context was made by this job, now or before it was interrupted."""
        dates = [origin["date"] for origin in (context or {}).get("provenance", {}).values() if origin.get("date")]
        return any(datetime.fromisoformat(date).timestamp() >= int(self._began or 0) for date in dates)

    def _sources(self, value: Any, n: int, found: Labelled, folder: str | None) -> list[Any]:
        """The pictures of a row that can be read; its state says what became of the others."""
        given = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        given = [item for item in given if item is not None and not (isinstance(item, str) and not item)]
        if given and self.read_images == "never":
            found.states[n] = "skipped"
            return []
        sources, states = [], []
        for item in given:
            source, state, fault = _source(item, folder)
            if state is None:
                sources.append(source)
            else:
                states.append(state)
                found.faults[n] = found.faults[n] or fault
        if states:
            found.states[n] = "unreadable" if "unreadable" in states else "missing"
        return sources


class _Watched:
    """A context builder whose time and pictures are counted."""

    def __init__(self, builder: Any, labeller: PostLabeller) -> None:
        self._builder, self._labeller = builder, labeller
        picture = Image.new("RGB", (64, 32), "white")
        ImageDraw.Draw(picture).rectangle((8, 8, 40, 20), fill="black")
        for aligner in builder.aligners.values():
            aligner([picture])  # what is not installed or not there is found now, and not at the first picture

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def read(self, images: Sequence[Any]) -> list[Any]:
        started = time.process_time()
        try:
            found = self._builder.read(images)
        finally:
            self._labeller.seconds["images"] += time.process_time() - started
        read = len({image.sha256 for image in found if image.is_read})
        self._labeller.images += read
        if self._labeller.watch is not None:
            self._labeller.watch(read)
        return found


def _is_words(post: Any) -> bool:
    """Whether a post is a list of words rather than a string."""
    if post is None:
        raise TypeError("the post has no text (None)")
    if isinstance(post, (list, tuple)) and all(isinstance(word, str) for word in post):
        return True
    if not isinstance(post, str):
        raise TypeError(f"the text is of type {type(post).__name__} (expected a string or a list of strings)")
    return False


def _context(value: Any) -> VisualContext:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the context is not JSON: {one_line(error, 200)}") from None
    return VisualContext.from_dict(value)


def _source(item: Any, folder: str | None) -> tuple[Any, str | None, str | None]:
    """A picture as the pipeline takes it; or its state, and why."""
    if isinstance(item, Mapping):
        item = item.get("bytes") or item.get("path")
        if not item:
            return None, "missing", None
    if isinstance(item, (bytearray, memoryview)):
        item = bytes(item)
    if isinstance(item, bytes):
        return item, None, None
    if isinstance(item, Image.Image):
        return item, None, None
    if not isinstance(item, (str, os.PathLike)):
        return None, "unreadable", f"a picture is of type {type(item).__name__} (expected a path or bytes)"
    path = os.fspath(item)
    if _URL.match(path):
        return None, "unreadable", f"{path!r:.100} is a URL, and no URL is fetched"
    if folder is not None and "://" in folder:
        return _remote(path, folder)
    # A table may come from a stranger, and what is read in a picture goes into the output.
    root = os.path.abspath(folder or "")
    place = os.path.normpath(os.path.join(root, path))
    if os.path.commonpath([root, place]) != root:
        return None, "unreadable", f"{path!r:.100} is not inside {root} (images_dir names another folder; / is all)"
    try:
        return (place, None, None) if os.path.isfile(place) else (None, "missing", None)
    except (OSError, ValueError):  # a name that no file can have
        return None, "missing", None


def _remote(path: str, folder: str) -> tuple[Any, str | None, str | None]:
    """A picture in a folder of another file system, which it cannot leave."""
    name = os.path.normpath(path)
    if name.startswith(("/", "..")):
        return None, "unreadable", f"{path!r:.100} is not inside {folder}"
    fs, root = url_to_fs(folder)
    place = f"{root.rstrip('/')}/{name}"
    try:
        content = fs.cat_file(place) if (fs.info(place).get("size") or 0) <= MAX_BYTES else None
    except FileNotFoundError:
        return None, "missing", None
    except ImportError:
        raise
    except Exception as error:  # every file system has errors of its own
        return None, "unreadable", one_line(error, 200) or type(error).__name__
    if content is None or len(content) > MAX_BYTES:
        return None, "unreadable", f"{path!r:.100} is larger than {MAX_BYTES // 2**20} MiB"
    return content, None, None


def _guessed(batch: Any) -> str:
    """The column of the posts, by its name; one that has no value at all in this batch may be it."""
    types = {}
    for name in batch:
        values = [value for value in map(_plain, batch[name]) if value is not None]
        if any(isinstance(value, str) for value in values) or not values:
            types[str(name)] = pa.string()
        else:
            is_words = any(isinstance(value, list) and value and isinstance(value[0], str) for value in values)
            types[str(name)] = pa.list_(pa.string()) if is_words else pa.null()
    return choose_columns(pa.schema(list(types.items())), None, "none", "none", "none")[0].text


def _plain(value: Any) -> Any:
    """A value of a batch as Python's own: what is an array of numpy, or how pandas says that there is none."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Image.Image)) or getattr(value, "ndim", 0) > 1:
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    is_none = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
    return None if is_none else value
