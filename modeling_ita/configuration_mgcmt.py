"""Configuration of MGCMT: the text and vision encoders, the tag set, which visual streams take part."""

from __future__ import annotations

from typing import Any, Literal, cast

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec, strict

from .configuration_tagger import DEFAULT_TYPES, CheckedConfig, check_format, check_number
from .tag_scheme import TagScheme

# Raised by one when the weights or settings of a checkpoint change their names or their meaning.
CHECKPOINT_FORMAT = 1


@strict
class MgcmtConfig(CheckedConfig):
    """What an `MgcmtForTokenClassification` is made of (method sections in brackets).

    Args:
        text_config: configuration of the text encoder, any that `AutoModel` builds an encoder from. Default: BERT.
            The hidden size of all that is above it, d, is the encoder's.
        vision_config: configuration of the vision encoder whose last feature map gives the regions, any whose
            `last_hidden_state` is `(B, channels, height, width)`. None: the model takes region features only.
        id2label: the tag set, BIO or BIOES. Default: BIO of PER, LOC, ORG, MISC.
        constraints: where transitions that break the tag scheme get zero probability, as in `ItaConfig`.
        visual_fusion: the visual streams: `"both"`, `"regions"` (coarse), `"objects"` (fine) or `"none"`.
        aug_fusion: how a word's neighbours enter (§2): `"add"`, `"gate"`, `"attention"` over the neighbours by the
            word's own vector, or `"none"`.
        augmentation_size: dimensions of the neighbours' vectors.
        region_size: channels of a region's features. Default: those of the vision encoder, or 2048.
        num_regions: regions of an image, 49 for a feature map of 7 × 7.
        num_object_classes: rows of the object table; class 0 is padding.
        train_vision: whether the vision encoder is trained along; if not, it stays frozen and in evaluation mode.
        num_attention_heads: heads of the blocks above the encoders. Default: the text encoder's.
        hidden_dropout: dropout in the blocks and behind the augmentation.
        fusion_dropout: dropout before the two visual streams are fused.
        aux_loss_weight: weight of the auxiliary CRF over span tags (§3).
        score_temperature: temperature at which entities are scored, as in `ItaConfig`.
        checkpoint_format: as in `ItaConfig`.

    Raises:
        ValueError: the tag set is no BIO or BIOES tag set, a number is out of range, or the checkpoint was made by a
            version of this package that is too new for this one.
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
    tie_word_embeddings: bool = False
    checkpoint_format: int | None = None  # None, so that it is always among the settings that are saved

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
        if self.train_vision and self.vision_config is None:
            raise ValueError("train_vision is set, and there is no vision_config to train")

    @property
    def hidden_size(self) -> int:
        """d, the text encoder's hidden size and that of everything above it."""
        return cast(PreTrainedConfig, self.text_config).hidden_size

    @property
    def tag_scheme(self) -> TagScheme:
        """The tag set, `id2label`, as a `TagScheme`."""
        return TagScheme([label for _, label in sorted((self.id2label or {}).items())])


def _channels(vision_config: Any) -> int:
    sizes = getattr(vision_config, "hidden_sizes", None)
    return sizes[-1] if sizes else vision_config.hidden_size
