"""The pipeline: posts, alone or with an image or a visual context, to named entities."""

# Every pipeline narrows the placeholders of the base class, flags and signatures alike.
# mypy: disable-error-code="override, assignment"

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

from .context_builder import ContextStore, ExaminedImage, VisualContextBuilder
from .entity_tagger import IMAGES_AT_ONCE, NOT_FINITE, NotFiniteError, attention_of, decoding_batches, word_emissions
from .image_file import ImageSource, UnreadableImage, is_blank, open_image
from .plain_text import shown
from .visual_context import VisualContext

BATCH_SIZE = 32  # posts
LOOK_AHEAD = 16  # batches whose posts are sorted by length together; nothing beyond them is held
READ_AHEAD = 2**20  # characters of these posts, each counted as long as the longest

_STRATEGIES = ("none", "simple", "first", "average", "max")

ReadImages = Literal["always", "unsure", "never"]
READ_IMAGES: tuple[ReadImages, ...] = ("always", "unsure", "never")
IMAGE_STATES = ("none", "read", "stored", "skipped", "missing", "unreadable", "blank")
"""What became of a post's images. Of several images, the first of these states that any of them has counts:
`read`, `stored`, `unreadable`, `blank`, `missing`."""


class _Post(NamedTuple):
    """One input: the post, its images, and the visual context that was given."""

    content: str | list[str]
    images: tuple[ImageSource, ...] = ()
    context: VisualContext | None = None


class _Seen(NamedTuple):
    """What takes part of a post's images: a context for each (or the given one), and those the model looks at."""

    contexts: list[VisualContext]
    images: list[ImageSource]
    state: str


class ItaPipeline(Pipeline):
    """Named entities of posts: `pipeline("token-classification", model=…, trust_remote_code=True)`, or `"ner"`.

    An input is a string, or a dictionary `{"text": …}` with, if there is one, an `"image"` (a path, a file's bytes or
    a PIL image, or a list of these if the post has several) and a `"context"` (a `VisualContext` or a dictionary such
    as `{"captions": ["a dog"]}`); neither is needed. With `is_split_into_words=True` an input is a list of words or a
    dictionary with `"words"`. The context of an image is looked up in `context_store`, and made live by the aligners
    that the processor names (`context_builder`), loaded when the first image needs them; assign
    `pipe.context_builder` to have it made by others. An explicit context takes precedence. The contexts of several
    images follow one another, kind by kind, in the order of the images.

    To ITA an image is its context. MGCMT looks at the image itself (`{"text", "image"}`), and takes the
    objects in it from the context (`{"text", "context": {"object_tags": ["dog"]}}`, or all three); without a context
    and without aligners no object takes part. Its images are opened batch by batch, one at a time; if one cannot be
    read, or is blank, the post is labelled without it.

    Reading an image costs a hundred times as much as labelling the post. With `read_images="unsure"` every post is
    labelled alone first, and its image is read only if the model is unsure of its answer: if one minus the exact
    posterior of the best tag sequence exceeds `image_gate`. Whether a context is in the store changes nothing.

    A single input gives one result, a list or tuple gives a list, and any other iterable, such as a generator, a
    dataset or a `KeyDataset`, gives an iterator, in the order of the inputs. Posts of similar
    length share a batch: lists and iterables alike are read `LOOK_AHEAD` batches at a time.

    A result is what transformers' own class returns: a list of
    `{"entity_group", "score", "word", "start", "end"}`, `word` being characters `start` to `end` of the post's string
    (words joined by spaces, if it came as words). `score` is the exact posterior probability that these words form
    this entity.

    Args:
        is_split_into_words: whether the posts come as lists of words.
        aggregation_strategy: `"none"` gives one `{"entity", "score", "index", "word", "start", "end"}` a word instead:
            its tag in the best sequence, the posterior probability of that tag, and its number among the post's words,
            from 0. All others (`"simple"`, the default, `"first"`, `"average"`, `"max"`) give the same entities,
            because a word has one tag.
        ignore_labels: entity types, or tags, that are left out. Default: `["O"]`.
        min_score: leaves out entities (or words) with a lower score. Default: 0. A report's operating points give the
            threshold for a wanted precision.
        read_images: `"always"` (default), `"unsure"`, or `"never"`. An explicit context takes part in every mode.
        image_gate: the gate of `"unsure"`, a probability. Default: the configuration's, which was fitted on validation
            data.
        return_context: whether a result is `{"entities": [...], "context": {...}}`, with the strings by kind that
            took part and their provenance; the context is None if none was given or made.
        return_image_state: whether a result is `{"entities": [...], "image_state": …}`, with one of `IMAGE_STATES`:
            `none` (no image), `read`, `stored` (all its contexts were in the store), `skipped` (a context was given,
            or `read_images` left it out), `missing`, `unreadable` or `blank`. Together with `return_context` all three
            keys are there.
        batch_size: maximum number of posts, or windows of long posts, in one pass through the encoder. Default: 32.
            A pass never holds more than 8,192 tokens.
        context_store: contexts that are known already: any object with `look_up(image_sha256, kind, identity)`, see
            `ContextStore`. What is made live is added to it, if it has a method `add`.
        num_workers: ignored; accepted because the built-in class takes it.

    Raises:
        TypeError: an input is not one of the above; the message says which.
        ValueError: a dictionary has wrong keys, an image is a URL or comes without a way to read it, or the gate is
            asked for and the checkpoint has none.
        FileNotFoundError: there is no image file of this name.
        ImportError: the package that reads images is not installed; the message gives the command.
        FloatingPointError: the model gave numbers that are not finite; the message says for which input.
    """

    model: Any
    processor: Any
    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, context_store: ContextStore | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_store = context_store
        if self.processor is None:
            raise ValueError("ItaPipeline needs a processor (ItaPipeline(model=…, processor=…))")
        self.processor.check_model(self.model.config)
        self.model.eval()
        # transformers hands the model's dtype on to the tokenizer, which could not be saved with it.
        self.processor.tokenizer.init_kwargs.pop("dtype", None)

    @cached_property
    def context_builder(self) -> VisualContextBuilder:
        """What makes the context of an image: from the processor's `context_builder`, when the first image comes."""
        settings = self.processor.context_builder
        if settings is None:
            raise ValueError(
                "an image came without a context, and this checkpoint names no way to read images (context_builder in "
                'processor_config.json): give the context, {"text": …, "context": {"captions": […]}}, or assign '
                "pipe.context_builder"
            )
        return VisualContextBuilder.from_dict(settings, store=self.context_store, device=self.device)

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, num_workers: int | None = None, **parameters: Any
    ) -> Any:
        """Labels one post or many; arguments override those of the constructor."""
        given = self._sanitize_parameters(**parameters)
        made = (self._preprocess_params, self._forward_params, self._postprocess_params)
        steps = [{**before, **now} for before, now in zip(made, given, strict=True)]
        if batch_size is None:
            batch_size = self._batch_size or BATCH_SIZE
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size} (expected 1 or more)")
        if _is_single(inputs, steps[0].get("is_split_into_words", False)):
            return next(self._stream(iter([inputs]), 1, *steps))
        results = self._stream(_each(inputs), batch_size, *steps)
        return list(results) if isinstance(inputs, (list, tuple)) else results

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves model and processor, and the code if it came with the checkpoint, to be loaded as they were.

        `hub_card.export` makes a folder for the Hub from a model that was trained with the installed package.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if self.model.is_remote_code():
            custom_object_save(self, save_directory)

    def _sanitize_parameters(
        self,
        is_split_into_words: bool | None = None,
        aggregation_strategy: str | None = None,
        ignore_labels: Sequence[str] | None = None,
        min_score: float | None = None,
        return_context: bool | None = None,
        read_images: ReadImages | None = None,
        image_gate: float | None = None,
        return_image_state: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if aggregation_strategy is not None and aggregation_strategy not in _STRATEGIES:
            raise ValueError(
                f"unknown aggregation_strategy {shown(aggregation_strategy)} "
                f"(expected one of {', '.join(_STRATEGIES)})"
            )
        if min_score is not None and not 0 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score} (expected a probability)")
        if read_images is not None and read_images not in READ_IMAGES:
            raise ValueError(f"unknown read_images {shown(read_images)} (expected one of {', '.join(READ_IMAGES)})")
        if image_gate is not None and not 0 <= image_gate <= 1:
            raise ValueError(f"image_gate is {image_gate} (expected a probability)")
        by_word = None if aggregation_strategy is None else aggregation_strategy == "none"
        steps: tuple[dict[str, Any], ...] = (
            {
                "is_split_into_words": is_split_into_words,
                "read_images": read_images,
                "image_gate": image_gate,
                "with_states": return_image_state,
            },
            {"by_word": by_word},
            {
                "ignore_labels": ignore_labels,
                "min_score": min_score,
                "return_context": return_context,
                "return_image_state": return_image_state,
            },
        )
        reading, decoding, writing = ({k: v for k, v in step.items() if v is not None} for step in steps)
        return reading, decoding, writing

    def _stream(
        self,
        inputs: Iterator[Any],
        batch_size: int,
        reading: dict[str, Any],
        decoding: dict[str, Any],
        writing: dict[str, Any],
    ) -> Iterator[Any]:
        first = 0
        for window in _windows(inputs, LOOK_AHEAD * batch_size):
            model_inputs = self.preprocess(window, first=first, **reading)
            outputs = self.forward(model_inputs, batch_size=batch_size, **decoding)
            unsure = [n for n in outputs["held"] if outputs["least_confidence"][n] > outputs["gate"]]
            if unsure:
                self._look_again(outputs, unsure, batch_size=batch_size, **decoding)
            yield from self.postprocess(outputs, **writing)
            first += len(window)

    def _look_again(self, outputs: dict[str, Any], unsure: list[int], **forward_params: Any) -> None:
        """Reads the images of these posts and labels them again, in `outputs`."""
        again = self._inputs(
            [outputs["posts"][n] for n in unsure],
            [outputs["numbers"][n] for n in unsure],
            outputs["is_split_into_words"],
            with_states=outputs["with_states"],
        )
        found = self.forward(again, **forward_params)
        for key in ("tags" if "tags" in outputs else "spans", "contexts", "states"):
            for n, value in zip(unsure, found[key], strict=True):
                outputs[key][n] = value

    def count_tokens(self, inputs: Sequence[Any], is_split_into_words: bool = False) -> list[int]:
        """How many tokens the encoder reads of every input, windows and contexts included: what it costs.

        Args:
            inputs: as in a call, without images that have no context.
            is_split_into_words: whether the posts come as lists of words.
        """
        batch = self.preprocess(inputs, is_split_into_words)["batch"]
        counts = [0] * len(inputs)
        for post, tokens in zip(batch.row_posts, attention_of(batch).sum(1).tolist(), strict=True):
            counts[post] += tokens
        return counts

    def preprocess(
        self,
        inputs: Sequence[Any],
        is_split_into_words: bool = False,
        first: int = 0,
        read_images: ReadImages = "always",
        image_gate: float | None = None,
        with_states: bool = False,
    ) -> dict[str, Any]:
        """Reads inputs, number `first` and following: `{"batch", "contexts", "images", "states", "held", …}`.

        The batch is the processor's; there is a context, a list of images and a state for every input, or None. Images
        that the model looks at are not opened yet. `held` are the posts whose images wait for the gate.
        """
        gate = self._gate(image_gate) if read_images == "unsure" else 1.0
        looks = self.model.sees_images
        posts = [_read(item, number, is_split_into_words, looks) for number, item in enumerate(inputs, first)]
        numbers = list(range(first, first + len(posts)))
        made = self._inputs(posts, numbers, is_split_into_words, read_images == "always", with_states)
        if read_images == "unsure":
            made["held"] = [n for n, post in enumerate(posts) if post.images and (looks or post.context is None)]
        return {**made, "gate": gate}

    def _gate(self, image_gate: float | None) -> float:
        gate = getattr(self.model.config, "image_gate", None) if image_gate is None else image_gate
        if gate is None:
            raise ValueError(
                'read_images="unsure" needs an image_gate, and this checkpoint has none: pass image_gate=0.2, or fit '
                "it on validation posts with pictures (ita-mner evaluate MODEL --update_config)"
            )
        return gate

    def _inputs(
        self,
        posts: list[_Post],
        numbers: list[int],
        is_split_into_words: bool,
        reads: bool = True,
        with_states: bool = False,
    ) -> dict[str, Any]:
        """What the model labels these posts from; their images take part if they are to be read."""
        seen = self._look(posts, reads, with_states)
        contexts = [VisualContext.joined(one.contexts) if one.contexts else None for one in seen]
        return {
            "batch": self.processor.for_prediction([post.content for post in posts], contexts, is_split_into_words),
            "contexts": contexts,
            "images": [one.images[0] if len(one.images) == 1 else one.images or None for one in seen],
            "states": [one.state for one in seen],
            "posts": posts,
            "numbers": numbers,
            "held": [],
            "is_split_into_words": is_split_into_words,
            "with_states": with_states,
        }

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> dict[str, Any]:
        """Runs the model on what `preprocess` made, on the pipeline's device, without gradients.

        Raises:
            FloatingPointError: the model gave numbers that are not finite; the message says for which input.
        """
        try:
            with self.device_placement(), torch.inference_mode():
                return self._forward(model_inputs, **forward_params)
        except NotFiniteError as error:
            if error.post is None:
                raise
            place = f"input {model_inputs['numbers'][error.post]}"
            raise FloatingPointError(f"{place}: the model gave {NOT_FINITE}") from None

    def _forward(
        self, model_inputs: dict[str, Any], by_word: bool = False, batch_size: int = BATCH_SIZE
    ) -> dict[str, Any]:
        batch = model_inputs["batch"]
        images = model_inputs["images"] if self.model.sees_images else None
        emissions = word_emissions(self.model, self.processor, batch, images, batch_size)
        decode = self.model.decode_scored_tags if by_word else self.model.decode_entities
        decoded: list[Any] = [[] for _ in emissions]
        least_confidence, held = [0.0] * len(emissions), set(model_inputs["held"])
        for posts, padded, is_word in decoding_batches(emissions):
            for post, found in zip(posts, decode(padded, is_word), strict=True):
                decoded[post] = found
            if not held.isdisjoint(posts):
                for post, unsure in zip(posts, self.model.least_confidence(padded, is_word), strict=True):
                    least_confidence[post] = unsure
        return {**model_inputs, "tags" if by_word else "spans": decoded, "least_confidence": least_confidence}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        ignore_labels: Sequence[str] = ("O",),
        min_score: float = 0.0,
        return_context: bool = False,
        return_image_state: bool = False,
    ) -> list[Any]:
        """The results of what `forward` returned, one for each input."""
        read = self._tagged_words if "tags" in model_outputs else self._entities
        results = [
            [found for found in row if found["score"] >= min_score]
            for row in read(model_outputs, frozenset(ignore_labels))
        ]
        if not return_context and not return_image_state:
            return results
        wrapped: list[dict[str, Any]] = [{"entities": row} for row in results]
        for n, result in enumerate(wrapped):
            if return_context:
                result["context"] = self._used(model_outputs["contexts"][n])
            if return_image_state:
                result["image_state"] = model_outputs["states"][n]
        return wrapped

    def _entities(self, model_outputs: dict[str, Any], ignored: frozenset[str]) -> list[list[dict[str, Any]]]:
        posts = self.processor.post_process_entities(model_outputs["spans"], model_outputs["batch"])
        return [
            [
                {"entity_group": e.type, "score": e.score, "word": e.word, "start": e.start, "end": e.end}
                for e in entities
                if e.type not in ignored
            ]
            for entities in posts
        ]

    def _tagged_words(self, model_outputs: dict[str, Any], ignored: frozenset[str]) -> list[list[dict[str, Any]]]:
        label = self.model.config.tag_scheme.labels
        return [
            [
                {"entity": label[tag], "score": score, "index": n, "word": w.text, "start": w.start, "end": w.end}
                for n, (w, (tag, score)) in enumerate(zip(words, tags, strict=True))
                if label[tag] not in ignored
            ]
            for words, tags in zip(model_outputs["batch"].words, model_outputs["tags"], strict=True)
        ]

    def _used(self, context: VisualContext | None) -> dict[str, Any] | None:
        """The kinds of the context that the processor lets take part."""
        if context is None:
            return None
        named = self.processor.context_kinds
        kinds = {kind: context.kinds[kind] for kind in named if kind in context.kinds}
        return VisualContext(kinds, {k: context.provenance[k] for k in named if k in context.provenance}).to_dict()

    def _look(self, posts: Sequence[_Post], reads: bool, with_states: bool) -> list[_Seen]:
        """What takes part of the images of every post: nothing that is not to be read, and no more than is needed."""
        looks = self.model.sees_images
        seen = [
            _Seen([] if post.context is None else [post.context], [], "skipped" if post.images else "none")
            for post in posts
        ]
        if not reads:
            return seen
        builds = not looks or self.processor.context_builder is not None or "context_builder" in vars(self)
        pictured = [n for n, post in enumerate(posts) if post.images and (looks or post.context is None)]
        readings: dict[int, list[ExaminedImage]] = {n: [] for n in pictured if posts[n].context is None}
        if builds:
            each = [(n, image) for n in readings for image in posts[n].images]
            for start in range(0, len(each), IMAGES_AT_ONCE):
                chunk = each[start : start + IMAGES_AT_ONCE]
                for (n, _), image in zip(chunk, self.context_builder.read([image for _, image in chunk]), strict=True):
                    readings[n].append(image)
        for n in pictured:
            images = list(posts[n].images) if looks else []
            contexts = seen[n].contexts
            if found := readings.get(n):
                contexts = [image.context(self.context_builder.aligners) for image in found]
                state = _foremost(_state(image) for image in found)
            else:
                state = _foremost(map(_looked_at, images)) if with_states else "read"
            seen[n] = _Seen(contexts, images, state)
        return seen


def _state(image: ExaminedImage) -> str:
    return image.state if image.state != "readable" else "read" if image.is_read else "stored"


def _looked_at(image: ImageSource) -> str:
    """The state of an image that the model itself will open."""
    try:
        return "blank" if is_blank(open_image(image)) else "read"
    except UnreadableImage:
        return "unreadable"


def _foremost(states: Iterable[str]) -> str:
    """The state of a post's images, from those of the single ones."""
    order = ("read", "stored", "unreadable", "blank", "missing")
    return min(states, key=order.index)


def _is_single(inputs: Any, is_split_into_words: bool) -> bool:
    if is_split_into_words and isinstance(inputs, (list, tuple)):
        return bool(inputs) and isinstance(inputs[0], str)
    return isinstance(inputs, (str, Mapping))


def _each(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Iterable):
        return iter(inputs)
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # a map-style dataset of torch
        return (inputs[n] for n in range(len(inputs)))
    raise TypeError(
        f"the input is {_named(inputs)} (expected a string, a dictionary with 'text' and 'image' or 'context', or a "
        "list, generator or dataset of these)"
    )


def _windows(inputs: Iterator[Any], most: int) -> Iterator[list[Any]]:
    """The inputs in runs of at most so many; of fewer where, padded to the longest post, they would be too much."""
    window: list[Any] = []
    longest = 0
    for item in inputs:
        longest = max(longest, _length(item))
        if window and (len(window) + 1) * longest > READ_AHEAD:
            yield window
            window, longest = [], _length(item)
        window.append(item)
        if len(window) == most:
            yield window
            window, longest = [], 0
    if window:
        yield window


def _length(item: Any) -> int:
    """The characters of an input's post, an empty word counting as one; 0 for what will be refused."""
    if isinstance(item, Mapping):
        item = item.get("text", item.get("words"))
    if isinstance(item, (list, tuple)):
        return len(item) + sum(len(word) for word in item if isinstance(word, str))
    return len(item) if isinstance(item, str) else 0


def _read(item: Any, number: int, is_split_into_words: bool, looks: bool) -> _Post:
    try:
        if not isinstance(item, Mapping):
            return _Post(_content(item, is_split_into_words))
        key = "words" if is_split_into_words else "text"
        unknown = [name for name in item if name not in (key, "image", "context")]
        if unknown or key not in item:
            raise ValueError(
                f"the keys are {', '.join(map(repr, item)) or 'none':.200} (expected {key!r} and, where there is one, "
                "'image' or 'context'; is_split_into_words=True takes 'words', and False 'text')"
            )
        content, given, context = _content(item[key], is_split_into_words), item.get("image"), item.get("context")
        images = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if context is not None:
            context = VisualContext.from_dict(context)
        for image in images if looks or context is None else ():
            _check_image(image)
        return _Post(content, images, context)
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise type(error)(f"input {number}: {error}") from None


def _content(post: Any, is_split_into_words: bool) -> str | list[str]:
    if is_split_into_words:
        if not isinstance(post, (list, tuple)) or not all(isinstance(word, str) for word in post):
            raise TypeError(f"the post is {_named(post)} (is_split_into_words=True expects a list of strings)")
        return list(post)
    if not isinstance(post, str):
        raise TypeError(
            f"the post is {_named(post)} (expected a string; is_split_into_words=True takes lists of words)"
        )
    return post


def _named(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _check_image(image: Any) -> None:
    """Refuses what cannot be meant; a file that is there but damaged costs the image, not the post."""
    if isinstance(image, (bytes, Image.Image)) or (isinstance(image, (str, os.PathLike)) and os.path.isfile(image)):
        return
    with suppress(UnreadableImage):
        open_image(image)  # says what is wrong with a URL, or with what is not an image at all
    raise FileNotFoundError(f"there is no image file {os.fspath(image)!r:.200}")
