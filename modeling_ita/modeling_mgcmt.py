"""MGCMT: a post, the regions of its image and the objects in it, through twelve attention blocks to a CRF."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .checkpoint_files import reading
from .configuration_mgcmt import MgcmtConfig
from .crf import LinearChainCRF
from .entity_tagger import EntityTagger, check_encoder, first_pieces, without_pooler
from .tag_scheme import OUTSIDE, TagScheme

PADDING_OBJECT = 0  # the class that pads the list of objects
SPANS = TagScheme(["O", "B-SPAN", "I-SPAN"])  # the auxiliary tags (§3)


@dataclass
class MgcmtOutput(ModelOutput):
    """What `MgcmtForTokenClassification` returns (B posts, N words, C tags).

    Args:
        loss: `main_loss` and the weighted `aux_loss`; present if labels were given.
        logits: `(B, N, C)`, log posterior marginals of the main CRF. Their softmax is the posterior itself.
        emissions: `(B, N, C)`, the tag scores that the main CRF saw, in float32.
        main_loss: negative log-likelihood of the tags, mean over posts.
        aux_loss: negative log-likelihood of the span tags (O, B, I), mean over posts.
        hidden_states: those of the text encoder, if requested.
        attentions: those of the text encoder, if requested.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    emissions: torch.Tensor | None = None
    main_loss: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class AttentionBlock(nn.Module):
    """One complete post-norm BERT layer: a stream attends to another one or to itself, and is the residual.

    Args:
        config: gives the width d, the number of heads, the dropout and the attention implementation.
    """

    def __init__(self, config: MgcmtConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.config = config
        self.query, self.key, self.value, self.dense = (nn.Linear(d, d) for _ in range(4))
        self.attention_norm = nn.LayerNorm(d, eps=1e-12)
        self.intermediate, self.output = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.output_norm = nn.LayerNorm(d, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, stream: torch.Tensor, other: torch.Tensor, other_mask: torch.Tensor) -> torch.Tensor:
        """Returns the stream after it has attended to the other one, `(R, Q, d)`.

        Args:
            stream: `(R, Q, d)`.
            other: `(R, K, d)`.
            other_mask: `(R, K)`, boolean, true where attention is allowed. A row without any true position is attended
                to as a whole: callers fill such a row with copies of one vector, so that the output is a learned
                constant and never NaN.
        """
        mask = other_mask | ~other_mask.any(1, keepdim=True)  # (R, K)
        q, k, v = (self._heads(x) for x in (self.query(stream), self.key(other), self.value(other)))
        attended = self._attend(q, k, v, mask[:, None, None])  # (R, heads, Q, d / heads)
        attended = self.dense(attended.transpose(1, 2).flatten(2))  # (R, Q, d)
        stream = self.attention_norm(stream + self.dropout(attended))
        wide = nn.functional.gelu(self.intermediate(stream))  # (R, Q, 4d)
        return self.output_norm(stream + self.dropout(self.output(wide)))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.config.num_attention_heads, -1)).transpose(1, 2)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        dropout = self.dropout.p if self.training else 0.0
        if self.config._attn_implementation != "eager":
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        scores = (q @ k.transpose(2, 3)).float() / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1).to(v.dtype)
        return nn.functional.dropout(weights, dropout) @ v


class SemanticAugmentation(nn.Module):
    """Adds the nearest neighbours of each word to its first subword (§2)."""

    def __init__(self, config: MgcmtConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.fusion = config.aug_fusion
        self.projection = nn.Linear(config.augmentation_size, d)
        self.gate = nn.Linear(2 * d, d) if self.fusion == "gate" else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: torch.Tensor, augmentation: torch.Tensor) -> torch.Tensor:
        """Returns the tokens with their augmentation.

        Args:
            hidden: `(R, L, d)`.
            augmentation: `(R, L, a)`, the weighted mean of a word's neighbours; or `(R, L, m, a)`, the neighbours
                themselves, for `aug_fusion="attention"`. Zeros where there is none.
        """
        projected = self.projection(augmentation.to(hidden.dtype))  # (R, L, d) or (R, L, m, d)
        if self.fusion == "attention":
            scores = (projected @ hidden[..., None])[..., 0] / math.sqrt(hidden.shape[-1])  # (R, L, m)
            # A position without neighbours has the same vector m times, so its weights do not matter.
            is_neighbour = augmentation.abs().sum(-1) > 0
            scores = scores.masked_fill(~is_neighbour & is_neighbour.any(-1, keepdim=True), -math.inf)
            projected = (scores.softmax(-1)[..., None, :] @ projected)[..., 0, :]
        if self.gate is None:
            return self.dropout(hidden + projected)
        gate = self.gate(torch.cat([hidden, projected], -1)).sigmoid()
        return self.dropout(gate * hidden + (1 - gate) * projected)


class RegionProjection(nn.Linear):
    """Projects region features to the model's width.

    For a missing image only the bias remains. It is not initialized to zero, where the gradient of the layer norm that
    follows would vanish.
    """


class RegionStream(nn.Module):
    """The coarse stream: text attends to regions, and to regions that have attended to the text (§1)."""

    def __init__(self, config: MgcmtConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.projection, self.projection_v2 = (RegionProjection(cast(int, config.region_size), d) for _ in range(2))
        self.self_attention, self.self_attention_v2 = AttentionBlock(config), AttentionBlock(config)
        self.txt2img, self.img2txt, self.txt2txt = (AttentionBlock(config) for _ in range(3))
        self.gate = nn.Linear(2 * d, d)

    def forward(
        self, text: torch.Tensor, text_mask: torch.Tensor, regions: torch.Tensor, has_image: torch.Tensor
    ) -> torch.Tensor:
        """F1 `(R, L, d)`: the text after it has attended to the regions of all images, side by side.

        Args:
            text: `(R, L, d)`.
            text_mask: `(R, L)`, boolean.
            regions: `(R, M, 49, size)`, of M images per row.
            has_image: `(R, M)`, boolean, which of them exist; the regions of the others are masked.
        """
        mask = has_image[:, :, None].expand(regions.shape[:3]).flatten(1)  # (R, M * 49)
        regions = regions.flatten(1, 2).masked_fill(~mask[..., None], 0)  # (R, M * 49, size)
        first, second = self.projection(regions), self.projection_v2(regions)  # (R, M * 49, d)
        seen = self.txt2img(text, self.self_attention(first, first, mask), mask)  # M3 (R, L, d)
        told = self.img2txt(self.self_attention_v2(second, second, mask), text, text_mask)  # (R, M * 49, d)
        return _gated(self.gate, seen, self.txt2txt(text, told, mask))


class ObjectStream(nn.Module):
    """The fine stream: text attends to objects, and to objects that have attended to the text (§1)."""

    def __init__(self, config: MgcmtConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_object_classes, config.hidden_size)
        self.self_attention, self.self_attention_v2 = AttentionBlock(config), AttentionBlock(config)
        self.txt2obj, self.obj2txt, self.txt2obj_v2 = (AttentionBlock(config) for _ in range(3))
        self.gate = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(self, text: torch.Tensor, text_mask: torch.Tensor, object_ids: torch.Tensor) -> torch.Tensor:
        """F2 `(R, L, d)`, from text `(R, L, d)`, its mask and the class ids of the objects `(R, K)`, 0 on padding."""
        mask = object_ids != PADDING_OBJECT  # (R, K)
        objects = self.embedding(object_ids)  # (R, K, d)
        seen = self.txt2obj(text, self.self_attention(objects, objects, mask), mask)  # M5 (R, L, d)
        told = self.obj2txt(self.self_attention_v2(objects, objects, mask), text, text_mask)  # (R, K, d)
        return _gated(self.gate, self.txt2obj_v2(text, told, mask), seen)


class MgcmtForTokenClassification(EntityTagger):
    """MGCMT (Liu et al., 2022): fuses text, regions and objects at every token, with a CRF over the words."""

    config: MgcmtConfig
    config_class = MgcmtConfig
    base_model_prefix = "encoder"
    new_model = "from_encoders"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["classifier", "crf", "aux_classifier", "aux_crf"]
    _keep_in_fp32_modules = _keep_in_fp32_modules_strict

    def __init__(self, config: MgcmtConfig) -> None:
        super().__init__(config)
        scheme, d = config.tag_scheme, config.hidden_size
        config.label2id = dict(scheme.label2id)  # from_pretrained(…, id2label=…) leaves the checkpoint's label2id
        self.encoder = without_pooler(AutoModel.from_config(config.text_config))
        self.augmentation = None if config.aug_fusion == "none" else SemanticAugmentation(config)
        self.self_attention, self.self_attention_v2 = AttentionBlock(config), AttentionBlock(config)
        sees_regions, sees_objects = (config.visual_fusion in (name, "both") for name in ("regions", "objects"))
        self.vision = None
        if sees_regions and config.vision_config is not None:
            # The text's choice of attention does not concern a convolutional network, which may not offer one.
            self.vision = AutoModel.from_config(config.vision_config, attn_implementation="eager")
            self.vision.requires_grad_(config.train_vision)
        self.regions = RegionStream(config) if sees_regions else None
        self.objects = ObjectStream(config) if sees_objects else None
        streams = sees_regions + sees_objects
        self.visual_fusion = nn.Linear(streams * d, d) if streams else None
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)
        self.fusion = nn.Linear(2 * d if streams else d, d)
        self.classifier = nn.Linear(d, len(scheme))
        self.crf = LinearChainCRF(len(scheme), scheme=scheme, constraints=config.constraints)
        self.aux_classifier = nn.Linear(d, len(SPANS))
        self.aux_crf = LinearChainCRF(len(SPANS))
        self.post_init()

    @property
    def sees_images(self) -> bool:
        """Whether the model takes images as input: not with `visual_fusion="objects"` or `"none"`."""
        return self.vision is not None

    @classmethod
    def from_encoders(
        cls,
        text_encoder: str,
        labels: Sequence[str],
        vision_encoder: str | PreTrainedConfig | None = None,
        *,
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str | None = None,
        **config: Any,
    ) -> MgcmtForTokenClassification:
        """Builds a model on a pretrained text encoder and, optionally, a vision encoder. All other weights are new.

        Args:
            text_encoder: a Hub id or a folder, as `AutoModel.from_pretrained` takes it.
            labels: the tag set, `["O", "B-PER", "I-PER", …]`.
            vision_encoder: likewise; or a configuration, from which an untrained encoder is built, which needs
                `train_vision=True`; or None, for a model that takes region features or no images.
            dtype: type of the weights.
            attn_implementation: `"sdpa"`, `"eager"`, …. Default: the text encoder's own.
            **config: fields of `MgcmtConfig`. Default of `augmentation_size`: the size of the text encoder's
                embeddings, from which `WordNeighbours.from_encoder` builds a table.

        Raises:
            OSError: the encoder does not exist.
            ValueError: `labels` is not a BIO or BIOES tag set, or a field of the configuration is out of range.
        """
        with reading(text_encoder):
            check_encoder(text_encoder, {})
            text = AutoModel.from_pretrained(text_encoder, dtype=dtype, attn_implementation=attn_implementation)
        vision: Any = None
        if isinstance(vision_encoder, str):
            with reading(vision_encoder):
                check_encoder(vision_encoder, {})
                vision = AutoModel.from_pretrained(vision_encoder, dtype=dtype, attn_implementation="eager")
        vision_config: Any = vision_encoder if vision is None else vision.config
        configs = {"text_config": text.config, "vision_config": vision_config}
        settings = {name: made.to_dict() for name, made in configs.items() if made is not None}
        for made in settings.values():
            made.pop("_name_or_path", None)  # may be a local folder
        config.setdefault("augmentation_size", text.get_input_embeddings().weight.shape[1])
        id2label = dict(enumerate(TagScheme(labels).labels))
        model = cls._from_config(
            MgcmtConfig(id2label=id2label, dtype=text.dtype, **settings, **config),
            attn_implementation=text.config._attn_implementation,
        )
        model.encoder.load_state_dict(without_pooler(text).state_dict())
        if vision is not None and model.vision is not None:
            model.vision.load_state_dict(vision.state_dict())
        return model

    def train(self, mode: bool = True) -> MgcmtForTokenClassification:
        """Sets the mode, but a frozen vision encoder stays in evaluation mode, batch statistics included."""
        super().train(mode)
        if self.vision is not None and not self.config.train_vision:
            self.vision.eval()
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RegionProjection):
            init.normal_(module.weight, std=0.02)
            init.normal_(module.bias, std=0.02)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        word_positions: torch.Tensor | None = None,
        word_rows: torch.Tensor | None = None,
        row_posts: torch.Tensor | None = None,
        augmentation: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        has_image: torch.Tensor | None = None,
        object_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        emissions_only: bool = False,
        **kwargs: Any,
    ) -> MgcmtOutput:
        """Tags the words of B posts.

        Args:
            input_ids: `(R, L)`, the posts' tokens. R = B unless a post is longer than the window.
            attention_mask: `(R, L)`, 1 on tokens, 0 on padding. Default: all ones.
            token_type_ids: `(R, L)`, for encoders that have them.
            word_positions: `(B, N)`, position of each word's first subword in its row; −1 is padding.
            word_rows: `(B, N)`, the row of each word. Default: word (b, n) is in row b.
            row_posts: `(R,)`, the post of each row. Default: row b is post b's.
            augmentation: `(B, N, a)`, the mean of each word's neighbours, or `(B, N, m, a)`, the neighbours, see
                `SemanticAugmentation`. Default: no augmentation.
            pixel_values: `(B, 3, height, width)`, the images; rows of posts without an image are ignored. With up to M
                images per post: `(B, M, 3, height, width)`, where text attends to all M × 49 regions.
            region_features: `(B, 49, region_size)` or `(B, M, 49, region_size)`, instead of `pixel_values`.
            has_image: `(B,)`, boolean, whether a post has an image, or `(B, M)`, which of the M images it has.
                Default: all, if images are given.
            object_ids: `(B, K)`, the classes of the objects, most confident first, 0 on padding; with M images
                `(B, K × M)`, K for each. The order of objects does not matter. Default: no objects.
            labels: `(B, N)` tag ids, −100 on padding.
            emissions_only: whether to skip the logits, which need a scan of the CRF; only without labels.
            **kwargs: passed to the text encoder, such as `output_hidden_states`.

        Raises:
            ValueError: `word_positions` is missing, or images are given to a model without a vision encoder.
        """
        if word_positions is None:
            raise ValueError("word_positions are missing (MgcmtProcessor makes them)")
        posts = len(word_positions)
        if word_rows is None:
            word_rows = torch.arange(posts, device=input_ids.device)[:, None].expand_as(word_positions)
        if row_posts is None:
            row_posts = torch.arange(posts, device=input_ids.device)
        is_word = word_positions >= 0  # (B, N)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        is_piece = attention_mask.bool()  # (R, L)

        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **segments, **kwargs)
        hidden = encoded.last_hidden_state  # (R, L, d)
        if self.augmentation is not None:
            spread = self._at_first_pieces(augmentation, input_ids.shape, word_positions, word_rows)
            hidden = self.augmentation(hidden, spread)
        spans = self.self_attention(hidden, hidden, is_piece)
        text = self.self_attention_v2(hidden, hidden, is_piece)

        streams = []
        if self.regions is not None:
            regions, has_image = self._regions(pixel_values, region_features, has_image, posts, hidden)
            streams.append(self.regions(text, is_piece, regions[row_posts], has_image[row_posts]))
        if self.objects is not None:
            if object_ids is None:
                object_ids = torch.full((posts, 1), PADDING_OBJECT, device=input_ids.device)
            streams.append(self.objects(text, is_piece, object_ids[row_posts]))
        fused = text
        if self.visual_fusion is not None:
            visual = self.visual_fusion(self.fusion_dropout(torch.cat(streams, -1))).relu()  # (R, L, d)
            fused = torch.cat([text, visual], -1)
        fused = self.fusion(fused)  # Z (R, L, d)

        emissions = self._scores(self.classifier, first_pieces(fused, word_positions, word_rows))  # (B, N, C)
        if emissions_only and labels is None:
            return MgcmtOutput(emissions=emissions)
        losses = {}
        if labels is not None:
            tags = labels.clamp(min=0)
            aux_emissions = self._scores(self.aux_classifier, first_pieces(spans, word_positions, word_rows))
            span_tags = self._span_tags.to(tags.device)[tags]  # (B, N)
            losses["main_loss"] = -self.crf.log_likelihood(emissions, tags, is_word).mean()
            losses["aux_loss"] = -self.aux_crf.log_likelihood(aux_emissions, span_tags, is_word).mean()
            losses["loss"] = losses["main_loss"] + self.config.aux_loss_weight * losses["aux_loss"]
        return MgcmtOutput(
            **losses,
            logits=self.crf.log_marginals(emissions, is_word),
            emissions=emissions,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _at_first_pieces(
        self, augmentation: torch.Tensor | None, shape: torch.Size, positions: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Scatters values per word, `(B, N, …)`, to the words' first subwords, `(R, L, …)`; zeros elsewhere."""
        if augmentation is None:
            neighbours = (1,) if self.config.aug_fusion == "attention" else ()
            return torch.zeros((*shape, *neighbours, self.config.augmentation_size), device=positions.device)
        spread = augmentation.new_zeros((*shape, *augmentation.shape[2:]))
        is_word = positions >= 0
        spread[rows[is_word], positions[is_word]] = augmentation[is_word]
        return spread

    def region_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The vision encoder's features, `(B, regions, region_size)`, of images, `(B, 3, height, width)`.

        Raises:
            ValueError: the model has no vision encoder, or one that returns no feature map.
        """
        if self.vision is None:
            raise ValueError("pixel_values were given to a model without a vision encoder: give region_features")
        with torch.set_grad_enabled(self.config.train_vision and torch.is_grad_enabled()):
            channels = self.vision(pixel_values.to(self.vision.dtype)).last_hidden_state  # (B, size, rows, columns)
        if channels.dim() != 4:
            found = f"{type(self.vision).__name__} gives {tuple(channels.shape)}"
            raise ValueError(f"{found} (expected a feature map (images, channels, rows, columns), as of a ResNet)")
        return channels.flatten(2).transpose(1, 2)

    def _regions(
        self,
        pixel_values: torch.Tensor | None,
        region_features: torch.Tensor | None,
        has_image: torch.Tensor | None,
        posts: int,
        hidden: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The regions of every post's images, `(B, M, 49, region_size)`, and which images it has, `(B, M)`."""
        if region_features is not None and region_features.dim() == 3:
            region_features = region_features[:, None]
        if pixel_values is not None and pixel_values.dim() == 4:
            pixel_values = pixel_values[:, None]
        given = region_features if pixel_values is None else pixel_values
        if has_image is None:
            has_image = torch.full((posts, 1), given is not None, device=hidden.device)
        has_image = has_image.bool().reshape(posts, -1)  # (B, M) or (B, 1)
        if given is not None:
            has_image = has_image.expand(given.shape[:2])
        size = (*has_image.shape, self.config.num_regions, cast(int, self.config.region_size))
        if region_features is not None:
            return region_features.to(hidden.dtype), has_image
        if pixel_values is None or not has_image.any():
            return hidden.new_zeros(size), has_image
        # The encoder never sees the placeholder of a missing image, which would distort its batch statistics.
        seen = self.region_features(pixel_values[has_image]).to(hidden.dtype)
        return hidden.new_zeros((*has_image.shape, *seen.shape[1:])).index_put((has_image,), seen), has_image

    def _scores(self, classifier: nn.Linear, words: torch.Tensor) -> torch.Tensor:
        return classifier(words.to(classifier.weight.dtype)).float()

    @property
    def _span_tags(self) -> torch.Tensor:
        """The span tag of every tag, `(C,)`."""
        begins = {OUTSIDE: "O", "B": "B-SPAN", "S": "B-SPAN", "I": "I-SPAN", "E": "I-SPAN"}
        labels = [begins[label.partition("-")[0]] for label in self.config.tag_scheme.labels]
        return torch.tensor([SPANS.label2id[label] for label in labels])


def _gated(gate: nn.Linear, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """G ⊙ first + (1 − G) ⊙ second, where the gate G depends on both (§1)."""
    share = gate(torch.cat([first, second], -1)).sigmoid()
    return share * first + (1 - share) * second
