"""Turns a post, its image and the objects in it into the tensors of MGCMT."""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils.hub import cached_file

from .checkpoint_files import PLACE, check_integer, check_list, reading
from .image_file import ImageSource, UnreadableImage, image_name, is_blank, open_image, pictures_of
from .modeling_mgcmt import PADDING_OBJECT
from .plain_text import check_label
from .visual_context import OBJECT_TAGS, PostContext, VisualContext, contexts_of
from .word_neighbours import TENSORS_FILE, WORDS_FILE, WordNeighbours
from .wordwise_processor import PostBatch, Word, WordwiseProcessor, one_each, side_by_side

logger = logging.getLogger(__name__)

MAX_OBJECTS = 1_000

Picture: TypeAlias = ImageSource | torch.Tensor | None
PostImage: TypeAlias = Picture | Sequence[Picture]


class MgcmtBatch(PostBatch):
    """Tensors for `MgcmtForTokenClassification.forward`, together with the posts they came from.

    Attributes:
        texts: the posts as strings; posts given as words are joined by spaces.
        words: the words of every post, with their character offsets in its text.
        counts: what was lost or replaced in this batch. Text, as in `PostBatch`: `words`, `empty_posts`,
            `unknown_words`, `shortened_words`, `windowed_posts`. Augmentation: `unaugmented_words`, which have no
            neighbours. Objects: `objects` (used), `unknown_objects` (their class is not in `object_labels`),
            `objects_cut` (beyond `num_objects` of an image). Images: `images` (used), `missing_images` (the file does
            not exist), `unreadable_images`, `blank_images`; an image that is None counts as none of these. Every image
            of a post is counted.
    """


class MgcmtProcessor(WordwiseProcessor):
    """Prepares posts, images and objects as the input of MGCMT (method sections 1 and 2).

    Posts are tokenized as by `ItaProcessor`: word by word, and in windows if they are long. Images are opened safely
    (see `open_image`), then resized and cropped by the image processor. An image that is missing, unreadable or blank
    is masked and counted, without a replacement.

    Args:
        tokenizer: the text encoder's.
        image_processor: the vision encoder's, in its PIL variant, so that pixels are the same with and without
            torchvision: `AutoImageProcessor.from_pretrained(…, backend="pil")`.
        object_labels: the object classes that the model knows; the first one has id 1, 0 is padding. None: objects are
            not used.
        num_objects: K, the maximum number of objects per image: the first ones of its `object_tags`. A post with
            several images has K for each.
        word_neighbours: the table that augments words. None: words are not augmented.
        augmentation: what the model gets of a word's neighbours: their weighted `"mean"`, or the `"vectors"`
            themselves, for `aug_fusion="attention"`.
        max_length: window size in tokens; longer posts span several windows. Default: the tokenizer's
            `model_max_length`, at most 512.
        window_overlap: tokens that neighbouring windows of a long post share, at most half a window.
        context_builder: settings of the `VisualContextBuilder` that detects objects for posts without `object_tags`.

    Raises:
        ValueError: the tokenizer lacks a separator or an unknown token, a length is out of range, an object label is
            unusable (see `check_label`) or a duplicate, or the image processor needs torchvision.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        object_labels: Sequence[str] = (),
        num_objects: int = 5,
        word_neighbours: WordNeighbours | None = None,
        augmentation: Literal["mean", "vectors"] = "mean",
        max_length: int | None = None,
        window_overlap: int = 256,
        context_builder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            image_processor,
            max_length=max_length,
            window_overlap=window_overlap,
            context_builder=context_builder,
        )
        if getattr(image_processor, "backend", "pil") != "pil":
            raise ValueError(
                f"image_processor is a {type(image_processor).__name__}, which needs torchvision wherever the model "
                'goes (AutoImageProcessor.from_pretrained(…, backend="pil") gives the one that does not)'
            )
        check_integer("num_objects", num_objects, 1)
        if num_objects > MAX_OBJECTS:
            raise ValueError(f"num_objects is {num_objects:,} (expected at most {MAX_OBJECTS:,})")
        if augmentation not in ("mean", "vectors"):
            raise ValueError(f"unknown augmentation {augmentation!r} (expected 'mean' or 'vectors')")
        self.object_labels = [
            check_label("a class of objects", label) for label in check_list("object_labels", object_labels)
        ]
        self.num_objects = num_objects
        self.word_neighbours = word_neighbours
        self.augmentation = augmentation
        self._object_ids = {_folded(label): n for n, label in enumerate(self.object_labels, PADDING_OBJECT + 1)}
        if len(self._object_ids) < len(self.object_labels):
            raise ValueError(f"an object label stands twice in {self.object_labels}")

    @property
    def context_kinds(self) -> Sequence[str]:  # type: ignore[override]
        """The kinds of context in use: the objects, if there are `object_labels`."""
        return [OBJECT_TAGS] if self.object_labels else []

    @property
    def model_input_names(self) -> list[str]:
        """The names of all tensors that a batch can contain."""
        text = ["input_ids", "attention_mask", "word_positions", "word_rows", "row_posts", "augmentation"]
        return [*text, "pixel_values", "region_features", "has_image", "object_ids"]

    def __call__(
        self,
        posts: str | Sequence[str] | Sequence[Sequence[str]],
        contexts: Sequence[PostContext] | PostContext = None,
        images: Sequence[PostImage] | PostImage = None,
        *,
        is_split_into_words: bool = False,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> MgcmtBatch:
        """Makes one batch, padded to its longest row.

        Args:
            posts: a post or a list of posts; with `is_split_into_words` a list of words or a list of such lists.
            contexts: the visual context of every post, `VisualContext` or a mapping that `VisualContext.from_dict`
                takes, None where there is none. Its `object_tags` are used, most confident first; attributes before
                the class ("red car") are ignored. The context of several images is a list of contexts, one per image,
                or what `VisualContext.joined` made of them.
            images: the image of every post, None where there is none: a path, a file's bytes, a PIL image, or a tensor
                that is used as it is: pixels `(3, height, width)` as `image_tensors` returns them, or region features
                `(regions, region_size)`. A single tensor holds those of all posts. A post with several images has a
                list of these, even if it is the only post: `[[first, second]]`.
            is_split_into_words: whether the posts are already split.
            labels: the tag ids of every post's words.

        Returns:
            `input_ids`, `attention_mask` `(R, L)`; `word_positions` `(B, N)`, −1 on padding; `word_rows` `(B, N)` and
            `row_posts` `(R,)` if a post needed several windows; `augmentation` `(B, N, a)`, or `(B, N, m, a)` for the
            `"vectors"`, if there is a table; `object_ids` `(B, K)`; `has_image` `(B,)` and, if any post has an image,
            `pixel_values` `(B, 3, height, width)` or `region_features` `(B, regions, region_size)`; `labels` `(B, N)`,
            −100 on padding, if given. If a post has several images, at most M, then `object_ids` is `(B, K × M)`,
            `has_image` `(B, M)`, `pixel_values` `(B, M, 3, height, width)` and `region_features`
            `(B, M, regions, region_size)`.

        Raises:
            ValueError: an argument does not have one item per post, a post has not as many labels as words, an image
                is a URL, or the images' tensors differ in kind or size.
            TypeError: a post is not a string (or not a list of strings), or an image is of an unsupported type.
        """
        batch = self.for_prediction(posts, contexts, is_split_into_words)
        pictures = one_each(images, len(batch.texts), "images", (str, os.PathLike, bytes, Image.Image))
        if len(batch.row_posts) > len(batch.texts):
            batch["row_posts"] = torch.tensor(batch.row_posts)
        batch.update(self.word_tensors(batch.words, batch.counts))
        batch.update(self.image_tensors(pictures, batch.counts))
        batch.update(self._labels(labels, batch.words))
        return batch

    def for_prediction(self, posts: Any, contexts: Any = None, is_split_into_words: bool = False) -> MgcmtBatch:
        """Like a call, but without the tensors that `word_tensors` and `image_tensors` add."""
        texts, words, counts = self._read(posts, is_split_into_words)
        given = one_each(contexts, len(texts), "contexts", (VisualContext, Mapping))
        rows, positions, word_rows, owners = self._post_rows(self._pieces_of(words, counts), counts)
        data = self._view(rows) | self._word_places(positions, word_rows if len(rows) > len(texts) else None)
        data["object_ids"] = self._objects(given, counts)
        return MgcmtBatch(data, texts, words, counts, owners)

    def word_tensors(self, posts: Sequence[Sequence[Word]], counts: Counter[str]) -> dict[str, torch.Tensor]:
        """`augmentation` `(B, N, a)`, or `(B, N, m, a)` for the `"vectors"`, if there is a table."""
        table = self.word_neighbours
        return {} if table is None else {"augmentation": self._augmentation(table, posts, counts)}

    def image_tensors(
        self, images: Sequence[PostImage], counts: Counter[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """`has_image` `(B,)` and, if any image is usable, `pixel_values` `(B, 3, height, width)`.

        One image is open at a time. If the images are region features, `region_features`
        `(B, regions, region_size)` replaces `pixel_values`. If a post has several images, all these tensors have one
        more dimension after the first: M, the largest number of images of a post.

        Args:
            images: one per post as in a call, or a list of several; None where there is none.
            counts: the counter to which the images are added, as in a batch.

        Raises:
            ValueError: an image is a URL, or the images' tensors differ in kind or size.
            TypeError: an image is neither a path nor bytes nor a PIL image nor a tensor.
        """
        counts = Counter() if counts is None else counts
        each = [
            [None if picture is None else self._tensor(picture, post, counts) for picture in pictures_of(image)]
            for post, image in enumerate(images)
        ]
        shapes = {tuple(one.shape) for post in each for one in post if one is not None}
        if len(shapes) > 1:
            sizes = " and ".join(map(str, sorted(shapes, key=str)))
            raise ValueError(
                f"the images have the sizes {sizes}: the image processor must crop (do_center_crop, crop_size), and "
                "region features are of as many regions in every image"
            )
        has_image, stacked = side_by_side(each)
        if stacked is None:
            return {"has_image": has_image}
        is_pixels = len(shapes.pop()) == 3
        return {"has_image": has_image, "pixel_values" if is_pixels else "region_features": stacked}

    def check_model(self, config: Any) -> None:
        """Rejects the configuration of a model that does not fit this processor.

        Args:
            config: an `MgcmtConfig`.

        Raises:
            ValueError: the object table is too small, or the augmentation differs in size or form.
        """
        super().check_model(config)
        if len(self.object_labels) >= config.num_object_classes:
            raise ValueError(
                f"{len(self.object_labels)} object_labels and padding do not fit the model's "
                f"num_object_classes = {config.num_object_classes}"
            )
        if self.word_neighbours is None or config.aug_fusion == "none":
            return
        if self.word_neighbours.size != config.augmentation_size:
            raise ValueError(
                f"the word neighbours' vectors have {self.word_neighbours.size} dimensions, and the model's "
                f"augmentation_size is {config.augmentation_size}"
            )
        if (self.augmentation == "vectors") != (config.aug_fusion == "attention"):
            raise ValueError(
                f"augmentation is {self.augmentation!r}, and the model's aug_fusion {config.aug_fusion!r} "
                "('attention' takes 'vectors', and the others the 'mean')"
            )

    def _augmentation(
        self, table: WordNeighbours, posts: Sequence[Sequence[Word]], counts: Counter[str]
    ) -> torch.Tensor:
        found = table.look_up([word.text for post in posts for word in post])
        counts["unaugmented_words"] += int(found.unknown.sum())
        flat = getattr(found, self.augmentation)  # (words, …)
        sizes = list(map(len, posts))
        made = flat.new_zeros(len(posts), max(sizes, default=0), *flat.shape[1:])
        is_word = torch.arange(made.shape[1]) < torch.tensor(sizes).reshape(-1, 1)  # (B, N)
        made[is_word] = flat
        return made

    def _objects(self, contexts: Sequence[PostContext], counts: Counter[str]) -> torch.Tensor:
        """The classes of every post's objects, `(B, K)`; `(B, K × M)` if a post has the objects of M images."""
        posts = [
            [tags for context in contexts_of(given) for tags in context.by_image(OBJECT_TAGS)] for given in contexts
        ]
        made = torch.full((len(posts), max([1, *map(len, posts)]), self.num_objects), PADDING_OBJECT)  # (B, M, K)
        for post, images in enumerate(posts):
            for image, tags in enumerate(images):
                known = [found for tag in tags if (found := self._object_id(tag)) is not None]
                kept = known[: self.num_objects]
                made[post, image, : len(kept)] = torch.tensor(kept, dtype=torch.long)
                counts["unknown_objects"] += len(tags) - len(known)
                counts["objects_cut"] += len(known) - len(kept)
                counts["objects"] += len(kept)
        return made.flatten(1)  # (B, K * M)

    def _object_id(self, tag: str) -> int | None:
        """The class of the longest label that the tag equals or ends with: "red traffic light" → "traffic light"."""
        words = _folded(tag).split()
        endings = (" ".join(words[start:]) for start in range(len(words)))
        return next((self._object_ids[ending] for ending in endings if ending in self._object_ids), None)

    def _tensor(self, source: ImageSource | torch.Tensor, post: int, counts: Counter[str]) -> torch.Tensor | None:
        """An image as input of the vision encoder, `(3, height, width)`; None if it is missing or unusable."""
        if isinstance(source, torch.Tensor):
            if source.dim() not in (2, 3):
                raise ValueError(
                    f"post {post}: its image is a tensor {tuple(source.shape)} (expected pixels (3, height, width) or "
                    "region features (regions, region_size))"
                )
            counts["images"] += 1
            return source.float()
        try:
            picture = open_image(source)
        except UnreadableImage as error:
            is_missing = isinstance(error.__cause__, FileNotFoundError)
            counts["missing_images" if is_missing else "unreadable_images"] += 1
            logger.warning("no image: %s", error)
            return None
        except (TypeError, ValueError) as error:
            raise type(error)(f"post {post}: {error}") from None
        if is_blank(picture):
            counts["blank_images"] += 1
            logger.warning("no image: %s is blank", image_name(source))
            return None
        counts["images"] += 1
        return self.image_processor(images=picture, return_tensors="pt")["pixel_values"][0]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; the table of word neighbours is given by its file name."""
        bare = copy.copy(self)
        bare.word_neighbours = None  # the table is large, and serialization would copy it
        table = None if self.word_neighbours is None else TENSORS_FILE
        return super(MgcmtProcessor, bare).to_dict() | {"word_neighbours": table}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Saves the settings, the tokenizer and the table of word neighbours."""
        if self.word_neighbours is not None:
            self.word_neighbours.save_pretrained(Path(save_directory))
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        name = pretrained_model_name_or_path
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", name, **kwargs)
        if processor_dict is not None and processor_dict.get("word_neighbours") is not None:
            place = {key: kwargs[key] for key in PLACE if key in kwargs}
            files = [cached_file(name, file, **place) for file in (TENSORS_FILE, WORDS_FILE)]
            if processor_dict["word_neighbours"] != TENSORS_FILE:
                raise ValueError(
                    f"word_neighbours is {processor_dict['word_neighbours']!r:.60} (expected the file's name)"
                )
            processor_dict["word_neighbours"] = WordNeighbours.from_pretrained(Path(str(files[0])).parent, tokenizer)
        # By default, the torchvision backend would be used where installed, whose pixels differ.
        with reading(name, "preprocessor_config.json"):
            return [tokenizer, AutoImageProcessor.from_pretrained(name, **kwargs | {"backend": "pil"})]


def _folded(label: str) -> str:
    return " ".join(label.lower().split())
