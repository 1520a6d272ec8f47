"""Base class of both models: text encoder and CRF, decoding of entities, and loading that checks the checkpoint.

A word's emissions depend only on its row: the window of the post that holds the word, with the post's image and
context. The model therefore processes a few rows at a time, whatever the number and length of the posts; decoding
joins the rows of a post again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .checkpoint_files import INDEX, WEIGHTS, check_model_files, check_parts, check_weights, folder_of, reading
from .crf import LinearChainCRF
from .image_file import pictures_of
from .tag_scheme import Span
from .wordwise_processor import PostBatch, WordwiseProcessor, side_by_side

NOT_FINITE = "scores that are not finite numbers: a weight is damaged, or overflows in the model's type (float16?)"
MAX_TOKENS = 8192  # per pass, padding included; every region of every image counts as one
MAX_ROWS = 256  # per pass
IMAGES_AT_ONCE = 8  # per pass of the vision encoder
DECODED_POSTS = 256  # per pass of the CRF, which also holds at most
DECODED_WORDS = 16_384  # words, padding included; a single post may have more


class ScoredSpan(NamedTuple):
    """An entity as a word span, with `score`, the exact posterior probability that these words form this entity."""

    span: Span
    score: float


class NotFiniteError(FloatingPointError):
    """The model's scores are NaN or infinite, so no tags can be decoded.

    Args:
        post: the index in the batch of the first such post; None if the CRF's own scores are not finite.
    """

    def __init__(self, post: int | None = None) -> None:
        self.post = post
        place = "the CRF has" if post is None else f"post {post}: the model gave"
        super().__init__(f"{place} {NOT_FINITE}")


def check_finite(emissions: torch.Tensor, mask: torch.Tensor, *scores: torch.Tensor) -> None:
    """Refuses scores that are not finite: decoding NaN would silently return a post without entities.

    Args:
        emissions: `(B, N, C)`.
        mask: `(B, N)`, boolean, true on words; emissions elsewhere are ignored.
        scores: parameters or outputs of the CRF, of any shape.

    Raises:
        NotFiniteError: a score is NaN or infinite.
    """
    if not all(bool(score.isfinite().all()) for score in scores):
        raise NotFiniteError
    wrong = (~emissions.isfinite().all(-1) & mask).any(-1)  # (B,)
    if wrong.any():
        raise NotFiniteError(int(wrong.nonzero()[0]))


class EntityDecoding:
    """Decoding for models with a `crf` and a `config` that has a tag set, as `ItaPipeline` and the report need it."""

    crf: LinearChainCRF
    config: Any

    def decode_tags(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        """Decodes the best tag sequence of every post (Viterbi).

        Args:
            emissions: `(B, N, C)`, from `ItaOutput`.
            mask: `(B, N)`, boolean, true on words: `word_positions >= 0`.

        Raises:
            NotFiniteError: an emission or a score of the CRF is NaN or infinite.
        """
        check_finite(emissions, mask, *self.crf.parameters())
        tags, _ = self.crf.decode(emissions, mask)  # (B, N)
        return [row[:length] for row, length in zip(tags.tolist(), mask.sum(1).tolist(), strict=True)]

    def decode_scored_tags(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[list[tuple[int, float]]]:
        """Decodes the best tag sequence of every post, each tag with its posterior. Arguments as in `decode_tags`.

        Raises:
            NotFiniteError: an emission or a score of the CRF is NaN or infinite.
        """
        tags = self.decode_tags(emissions, mask)
        marginals = self.crf.log_marginals(emissions, mask)  # (B, N, C)
        return [_with_posterior(row, post) for row, post in zip(tags, marginals, strict=True)]

    def least_confidence(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[float]:
        """How unsure the model is of every post: one minus the exact posterior of its best tag sequence.

        This is the least confidence of active learning (Culotta and McCallum, 2005), at temperature 1 whatever the
        `score_temperature`. Arguments as in `decode_tags`; every post has at least one word.

        Returns:
            For every post a number in [0, 1].

        Raises:
            NotFiniteError: an emission, a score of the CRF or a posterior is NaN or infinite.
        """
        check_finite(emissions, mask, *self.crf.parameters())
        tags, _ = self.crf.decode(emissions, mask)  # (B, N)
        log_posterior = self.crf.log_likelihood(emissions, tags, mask)  # (B,)
        check_finite(emissions, mask, log_posterior)
        return (-log_posterior.expm1()).clamp(0, 1).tolist()

    def decode_entities(
        self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float | None = None
    ) -> list[list[ScoredSpan]]:
        """Decodes the entities of every post's best tag sequence, each with its exact posterior.

        Args:
            emissions: `(B, N, C)`, from `ItaOutput`.
            mask: `(B, N)`, boolean, true on words: `word_positions >= 0`.
            temperature: temperature of the posterior. Default: the configuration's `score_temperature`.

        Raises:
            NotFiniteError: an emission, a score of the CRF or a posterior is NaN or infinite.
            ValueError: the temperature is not a number > 0.
        """
        temperature = self.config.score_temperature if temperature is None else temperature
        scheme = self.config.tag_scheme
        entities = [scheme.spans(tags) for tags in self.decode_tags(emissions, mask)]
        places = [(b, s.start, s.end, scheme.types.index(s.type)) for b, spans in enumerate(entities) for s in spans]
        spans = torch.tensor(places, dtype=torch.long, device=emissions.device).reshape(-1, 4)
        probabilities = self.crf.span_log_probability(emissions, mask, spans, temperature).exp()  # (S,)
        check_finite(emissions, mask, probabilities)
        scores = iter(probabilities.clamp(max=1).tolist())
        return [[ScoredSpan(span, next(scores)) for span in row] for row in entities]


def _with_posterior(tags: list[int], log_marginals: torch.Tensor) -> list[tuple[int, float]]:
    """Pairs the tags of one post with their posteriors, from log marginals `(N, C)`."""
    chosen = log_marginals[range(len(tags)), tags]  # (n,)
    return list(zip(tags, chosen.exp().clamp(max=1).tolist(), strict=True))


class EntityTagger(EntityDecoding, PreTrainedModel):
    """Base class of the models: a text encoder with a CRF on top; loading refuses incomplete checkpoints."""

    encoder: PreTrainedModel
    new_model = ""  # the class method that starts a new model from an encoder

    @property
    def sees_images(self) -> bool:
        """Whether the model takes images as input, and not only their visual contexts."""
        return False

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint of this model; takes the same arguments as `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: a file is missing.
            ValueError: a file is broken or holds settings that a checkpoint may not have (the message names it); a
                weight is NaN or infinite; the checkpoint belongs to another system; or it lacks weights. Missing
                weights are initialised at random only with `ignore_mismatched_sizes=True`.
        """
        with reading(name_or_path):
            cls._check_files(name_or_path, args, kwargs)
        with reading(name_or_path, WEIGHTS):
            loaded: Any = super().from_pretrained(name_or_path, *args, output_loading_info=True, **kwargs)
        model, found = loaded
        if found["missing_keys"] and not kwargs.get("ignore_mismatched_sizes"):
            missing = sorted(found["missing_keys"])
            raise ValueError(
                f"{name_or_path}: {WEIGHTS} lacks {len(missing)} weights of {cls.__name__}, such as {missing[0]!r}: "
                f"it is not a checkpoint of this model, or has another format. {cls.__name__}.{cls.new_model}("
                f"{str(name_or_path)!r}, labels) starts a new model from a text encoder"
            )
        known = cls.config_class.model_type  # type: ignore[union-attr]
        if model.config.model_type != known:  # one system's encoder, classifier and CRF fit the other's model
            raise ValueError(
                f"{name_or_path} is a checkpoint of {model.config.model_type!r}, and {cls.__name__} takes {known!r}: "
                "AutoModelForTokenClassification loads either"
            )
        wrong = next((name for name, weights in model.state_dict().items() if not _is_finite(weights)), None)
        if wrong is not None:
            raise ValueError(f"{name_or_path}: the weight {wrong!r} would give {NOT_FINITE}")
        return (model, found) if output_loading_info else model

    @classmethod
    def _check_files(cls, name_or_path: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuses files that are broken or belong to another model."""
        if any(kwargs.get(name) is not None for name in ("state_dict", "gguf_file", "variant")):
            return
        folder = folder_of(name_or_path, kwargs, "config.json", WEIGHTS, INDEX)
        if folder is None:
            return
        is_whole = os.path.isdir(name_or_path) or not (folder / INDEX).is_file()
        stored = check_model_files(folder, has_weights=is_whole)
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            changed = {name: kwargs[name] for name in ("id2label", "num_labels") if name in kwargs}
            config = cls.config_class.from_pretrained(folder, **changed)  # type: ignore[union-attr]
        is_fresh = bool(args or kwargs.get("ignore_mismatched_sizes"))
        if is_whole and not is_fresh and config.model_type == cls.config_class.model_type:  # type: ignore[union-attr]
            check_weights(cls, config, stored, os.fspath(name_or_path))

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's token embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the text encoder's token embeddings."""
        self.encoder.set_input_embeddings(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LinearChainCRF):
            for scores in module.parameters():
                init.uniform_(scores, -0.1, 0.1)
        else:
            super()._init_weights(module)


def check_encoder(name_or_path: Any, place: Mapping[str, Any]) -> None:
    """Checks the files of a pretrained encoder in a local folder; those of a Hub repository are left to its loader.

    Raises:
        OSError: a file is missing.
        ValueError: a file is broken; the message names it.
    """
    folder = folder_of(name_or_path, place)
    if folder is not None:
        has_safetensors = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
        check_model_files(folder, has_weights=has_safetensors)
        check_parts(folder)


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Removes the encoder's pooler: words are tagged from the last layer, so it would only enlarge checkpoints."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]
    return encoder


def _is_finite(weights: torch.Tensor) -> bool:
    """Whether all weights are finite. One-byte types, which quantizers use, cannot be checked and count as finite."""
    if not weights.is_floating_point() or weights.element_size() == 1 or weights.is_meta or not weights.numel():
        return True
    return all(map(math.isfinite, map(float, weights.aminmax())))  # NaN is passed on, and nothing is copied


def first_pieces(hidden: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Gathers the vector of each word's first subword: `(R, L, H)` → `(B, N, H)`."""
    if rows is None:
        rows = torch.arange(len(positions), device=positions.device)[:, None]
    return hidden[rows, positions.clamp(min=0)]


def word_emissions(
    model: Any,
    processor: WordwiseProcessor,
    batch: PostBatch,
    images: Sequence[Any] | None = None,
    batch_size: int = MAX_ROWS,
) -> list[torch.Tensor]:
    """Computes the emissions of every post's words.

    Posts of similar length share a pass. A pass never exceeds `MAX_TOKENS` and `MAX_ROWS`, whatever `batch_size` is.
    Images are opened only when a pass needs them.

    Args:
        model: an `EntityTagger`, or a callable with the same interface.
        processor: the processor that created the batch.
        batch: output of the processor's `for_prediction`.
        images: the image of each post, a list of several, or None, as the processor's `image_tensors` takes them; or
            None if no post has one.
        batch_size: maximum rows per pass: posts, or windows of long posts.

    Returns:
        For each post a tensor `(n, C)`, float32, on the model's device.

    Raises:
        NotFiniteError: an emission is NaN or infinite; the error's `post` names the post.
        ValueError: the images of two posts have different numbers of regions.
    """
    positions = batch["word_positions"]  # (B, N)
    post, _ = (positions >= 0).nonzero(as_tuple=True)  # (W,), of all words, post by post
    places = positions[positions >= 0]  # (W,)
    rows = batch["word_rows"][positions >= 0] if "word_rows" in batch else post  # (W,)
    by_row = rows.argsort(stable=True).split(rows.bincount(minlength=len(batch.row_posts)).tolist())  # R times (w,)
    words = [word for words in batch.words for word in words]
    regions = _Regions(model, processor, batch, images)
    found = torch.empty(0)
    for chosen in _passes(batch, [len(row) for row in by_row], min(batch_size, MAX_ROWS), regions.per_post):
        index = pad_sequence([by_row[row] for row in chosen], batch_first=True, padding_value=-1)  # (R', N')
        is_word = index >= 0
        owners = [batch.row_posts[row] for row in chosen]
        given = _view(batch, chosen) | regions.of(owners)
        given["word_positions"] = torch.where(is_word, places[index], -1)
        given |= processor.word_tensors([[words[n] for n in row if n >= 0] for row in index.tolist()], batch.counts)
        if "object_ids" in batch:
            given["object_ids"] = batch["object_ids"][owners]
        given = {name: tensor.to(model.device) for name, tensor in given.items()}
        emissions = model(**given, emissions_only=True).emissions.float()  # (R', N', C)
        inside = emissions[is_word.to(emissions.device)]  # (w', C)
        if not inside.isfinite().all():
            wrong = index[is_word][~inside.isfinite().all(-1).cpu()]
            raise NotFiniteError(int(post[wrong].min()))
        if not len(found):
            found = inside.new_empty(len(words), inside.shape[-1])
        found[index[is_word].to(found.device)] = inside
    return list(found.split([len(post) for post in batch.words])) if len(words) else [found] * len(batch.words)


def decoding_batches(emissions: Sequence[torch.Tensor]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Groups posts of similar length into batches for the CRF. Posts without words are skipped.

    Args:
        emissions: for each post, `(n, C)`.

    Yields:
        The indices of the posts, their emissions `(B, N, C)`, and the mask of their words `(B, N)`.
    """
    lengths = list(map(len, emissions))
    order = sorted((n for n, length in enumerate(lengths) if length), key=lengths.__getitem__, reverse=True)
    while order:
        size = min(DECODED_POSTS, max(1, DECODED_WORDS // lengths[order[0]]))
        posts, order = order[:size], order[size:]
        padded = pad_sequence([emissions[n] for n in posts], batch_first=True)
        words = torch.tensor([lengths[n] for n in posts])
        yield posts, padded, (torch.arange(padded.shape[1]) < words[:, None]).to(padded.device)


def attention_of(batch: PostBatch) -> torch.Tensor:
    """The attention mask of the batch's only view, `(R, L)`."""
    return batch["attention_mask"] if "attention_mask" in batch else batch["cross_attention_mask"]


def _passes(batch: PostBatch, words: list[int], most_rows: int, regions: list[int]) -> Iterator[list[int]]:
    """Groups rows with words by similar length, longest first, keeping the rows of a post together.

    Posts with most images come first, so that few rows are padded to the regions of others.

    Args:
        batch: the batch.
        words: number of words that each row tags.
        most_rows: maximum rows per group.
        regions: number of image regions of each post, which count like tokens.
    """
    more = [regions[post] for post in batch.row_posts]  # (R,)
    lengths = attention_of(batch).sum(1).tolist()  # (R,)
    longest = [0] * len(batch.texts)
    for row, post in enumerate(batch.row_posts):
        longest[post] = max(longest[post], lengths[row])
    order = sorted(
        (row for row, count in enumerate(words) if count), key=lambda row: (-more[row], -longest[batch.row_posts[row]])
    )
    rows: list[int] = []
    length = width = 0  # of the longest row, in tokens and in regions
    for row in order:
        length, width = max(length, lengths[row]), max(width, more[row])
        if rows and (len(rows) == most_rows or (len(rows) + 1) * (length + width) > MAX_TOKENS):
            yield rows
            rows, length, width = [], lengths[row], more[row]
        rows.append(row)
    if rows:
        yield rows


def _view(batch: PostBatch, rows: list[int]) -> dict[str, torch.Tensor]:
    """The tokens of these rows, padded to the longest of them."""
    length = int(attention_of(batch)[rows].sum(1).max())
    names = (name for name in batch if name.endswith(("input_ids", "attention_mask", "token_type_ids")))
    return {name: batch[name][rows, :length] for name in names}


class _Regions:
    """The region features of the posts' images, kept until all rows of a post have been processed."""

    def __init__(
        self, model: Any, processor: WordwiseProcessor, batch: PostBatch, images: Sequence[Any] | None
    ) -> None:
        self._model, self._processor, self._batch = model, processor, batch
        pictures = [[]] * len(batch.texts) if images is None else [pictures_of(image) for image in images]
        has_any = any(picture is not None for post in pictures for picture in post)
        self._pictures = pictures if has_any else []
        self._seen: dict[int, list[torch.Tensor | None]] = {}
        self.per_post = [max(1, len(post)) * model.config.num_regions if has_any else 0 for post in pictures]

    def of(self, posts: list[int]) -> dict[str, torch.Tensor]:
        """`has_image` `(R,)` and, if one has, `region_features` `(R, regions, size)`, for rows of these posts.

        If one of the posts has several images: `(R, M)` and `(R, M, regions, size)`, as `image_tensors` has them.
        """
        if not self._pictures:
            return {}
        self._seen = {post: self._seen[post] for post in posts if post in self._seen}
        new = list(dict.fromkeys(post for post in posts if post not in self._seen))
        self._seen |= {post: [None] * len(self._pictures[post]) for post in new}
        places = [(post, place) for post in new for place in range(len(self._pictures[post]))]
        for start in range(0, len(places), IMAGES_AT_ONCE):
            self._look_at(places[start : start + IMAGES_AT_ONCE])
        each = [self._seen[post] for post in posts]
        shapes = {tuple(one.shape) for post in each for one in post if one is not None}
        if len(shapes) > 1:
            raise ValueError(
                f"the images have regions of the sizes {' and '.join(map(str, sorted(shapes)))}: the image processor "
                "must crop (do_center_crop, crop_size)"
            )
        has_image, regions = side_by_side(each)
        return {"has_image": has_image} if regions is None else {"has_image": has_image, "region_features": regions}

    def _look_at(self, places: list[tuple[int, int]]) -> None:
        """Sees some pictures, each given by its post and its place there."""
        chosen = [self._pictures[post][place] for post, place in places]
        tensors = self._processor.image_tensors(chosen, self._batch.counts)
        exists = tensors["has_image"]
        if "region_features" in tensors:
            regions = tensors["region_features"][exists]
        elif "pixel_values" in tensors:
            regions = self._model.region_features(tensors["pixel_values"][exists].to(self._model.device)).float().cpu()
        else:
            return
        there = [at for at, is_there in zip(places, exists.tolist(), strict=True) if is_there]
        for (post, place), seen in zip(there, regions, strict=True):
            self._seen[post][place] = seen
