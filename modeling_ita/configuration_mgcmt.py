"""Configuration of MGCMT: text and vision encoders, tag set and visual streams."""

from __future__ import annotations

from typing import Any, Literal, cast

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec, strict

from .configuration_tagger import DEFAULT_TYPES, CheckedConfig, check_format, check_gate, check_number
from .tag_scheme import TagScheme

# Incremented when weights or settings of a checkpoint change their names or meaning.
CHECKPOINT_FORMAT = 1


@strict
class MgcmtConfig(CheckedConfig):
    """Configuration of an `MgcmtForTokenClassification` (method sections in brackets).

    Args:
        text_config: configuration of the text encoder; any that `AutoModel` supports. Default: BERT. All layers above
            the encoder use its hidden size, d.
        vision_config: configuration of the vision encoder, whose last feature map provides the regions; any whose
            `last_hidden_state` is `(B, channels, height, width)`. None: the model takes region features only.
        id2label: the tag set, BIO or BIOES. Default: BIO of PER, LOC, ORG, MISC.
        constraints: where transitions that violate the tag scheme get zero probability, as in `ItaConfig`.
        visual_fusion: the visual streams: `"both"`, `"regions"` (coarse), `"objects"` (fine) or `"none"`.
        aug_fusion: how a word's neighbours are merged (§2): `"add"`, `"gate"`, `"attention"` (over the neighbours,
            with the word's own vector as the query), or `"none"`.
        augmentation_size: dimensions of the neighbours' vectors.
        region_size: channels of a region's features. Default: those of the vision encoder, or 2048.
        num_regions: regions per image, 49 for a 7 × 7 feature map.
        num_object_classes: rows of the object embedding table; class 0 is padding.
        train_vision: whether the vision encoder is fine-tuned; if not, it stays frozen and in evaluation mode.
        num_attention_heads: heads of the blocks above the encoders. Default: the text encoder's.
        hidden_dropout: dropout in the blocks and after the augmentation.
        fusion_dropout: dropout before the two visual streams are fused.
        aux_loss_weight: weight of the auxiliary CRF over span tags (§3).
        score_temperature: temperature of entity scores, as in `ItaConfig`.
        image_gate: as in `ItaConfig`.
        checkpoint_format: as in `ItaConfig`.

    Raises:
        ValueError: `id2label` is not a BIO or BIOES tag set, a number is out of range, or the checkpoint's format is
            newer than this package.
    """

    model_type = "mgcmt"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", optional=True),
    }
    keys_to_ignore_at_inference = ["emissions", "hidden_states", "attentions", "main_loss", "aux_loss"]

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    constraints: Literal["none", "decode", "always"] = "none"
    visual_fusion: Literal["both", "regions", "objects", "none"] = "both"
    aug_fusion: Literal["add", "gate", "attention", "none"] = "add"
    augmentation_size: int = 200
    region_size: int | None = None
    num_regions: int = 49
    num_object_classes: int = 85
    train_vision: bool = False
    num_attention_heads: int | None = None
    hidden_dropout: float = 0.1
    fusion_dropout: float = 0.5
    aux_loss_weight: float = 0.5
    score_temperature: float = 1.0
    image_gate: float | None = None
    tie_word_embeddings: bool = False
    checkpoint_format: int | None = None  # None, so that the value is always saved

    def __post_init__(self, **kwargs: Any) -> None:
        if self.checkpoint_format is None:
            self.checkpoint_format = CHECKPOINT_FORMAT
        check_format(self.checkpoint_format, CHECKPOINT_FORMAT)
        if self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(TagScheme.from_types(DEFAULT_TYPES).labels))
        super().__post_init__(**kwargs)
        self.label2id = dict(self.tag_scheme.label2id)
        if self.region_size is None:
            self.region_size = 2048 if self.vision_config is None else _channels(self.vision_config)
        if self.num_attention_heads is None:
            self.num_attention_heads = self.text_config.num_attention_heads  # type: ignore[union-attr]
        self._check()

    def _check(self) -> None:
        for name in ("hidden_dropout", "fusion_dropout"):
            value = getattr(self, name)
            check_number(name, value, f"0 ≤ {name} < 1", 0 <= value < 1)
        for name in ("augmentation_size", "region_size", "num_regions", "num_object_classes", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} (expected 1 or more)")
        if self.hidden_size % cast(int, self.num_attention_heads):
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, which does not divide the hidden size "
                f"{self.hidden_size}"
            )
        check_number("aux_loss_weight", self.aux_loss_weight, "a number ≥ 0", self.aux_loss_weight >= 0)
        check_number("score_temperature", self.score_temperature, "a temperature > 0", self.score_temperature > 0)
        check_gate(self.image_gate)
        if self.train_vision and self.vision_config is None:
            raise ValueError("train_vision is True, but vision_config is None: there is no vision encoder to train")

    @property
    def hidden_size(self) -> int:
        """d, the hidden size of the text encoder and of all layers above it."""
        return cast(PreTrainedConfig, self.text_config).hidden_size

    @property
    def tag_scheme(self) -> TagScheme:
        """The tag set, `id2label`, as a `TagScheme`."""
        return TagScheme([label for _, label in sorted((self.id2label or {}).items())])


def _channels(vision_config: Any) -> int:
    sizes = getattr(vision_config, "hidden_sizes", None)
    return sizes[-1] if sizes else vision_config.hidden_size
