"""Configuration of ITA: text encoder, tag set and losses."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec, strict

from .configuration_tagger import (
    CHECKPOINT_FORMAT,
    DEFAULT_TYPES,
    CheckedConfig,
    check_format,
    check_gate,
    check_number,
)
from .tag_scheme import TagScheme

# Weights of L_T, L_I+T and L_CVA, and the temperature of CVA.
LOSS_PRESETS = {
    "paper": {"text_loss_weight": 1.0, "cross_loss_weight": 1.0, "cva_loss_weight": 1.0, "cva_temperature": 1.0},
    "code": {"text_loss_weight": 1.0, "cross_loss_weight": 0.5, "cva_loss_weight": 0.5, "cva_temperature": 4.0},
}


@strict
class ItaConfig(CheckedConfig):
    """Configuration of an `ItaForTokenClassification`.

    The layout of the input (kinds of context and their order, separators, window) belongs to the processor and is
    stored in `processor_config.json`.

    Args:
        text_config: configuration of the text encoder; any that `AutoModel` supports. Default: BERT.
        id2label: the tag set, BIO or BIOES, `{0: "O", 1: "B-PER", …}`. Default: BIO of PER, LOC, ORG, MISC.
        constraints: where transitions that violate the tag scheme get zero probability: `"none"` (as in the
            original), `"decode"` (only in Viterbi decoding) or `"always"` (also in losses and posteriors).
        word_dropout: probability in training of zeroing a word's whole vector, without rescaling the rest.
        loss_preset: default for the loss weights and the temperature: `"paper"` (1, 1, 1; τ = 1) or `"code"`
            (1, 0.5, 0.5; τ = 4, the released code's values for Twitter-15 and SNAP; it uses τ = 2 for Twitter-17).
        text_loss_weight: weight of L_T, the negative log-likelihood of the tags in the textual view.
        cross_loss_weight: weight of L_I+T, the same in the cross-modal view.
        cva_loss_weight: weight of L_CVA, the cross-view alignment; 0 disables it.
        cva_temperature: temperature τ of both views' posteriors in L_CVA.
        score_temperature: temperature of entity scores, fitted on validation data after training. It does not affect
            the entities themselves, the losses or the logits.
        image_gate: with `read_images="unsure"`, the pipeline reads the image of a post only if the least confidence of
            the post alone (`least_confidence`) exceeds this. Fitted on validation data after training; None: not
            fitted.
        cls_token_id: id of the token before the post; needed only for inputs without `word_positions`.
        sep_token_id: id of the separator after the post; needed only for inputs without `word_positions`.
        checkpoint_format: version of the checkpoint format. Default: `CHECKPOINT_FORMAT`. A checkpoint without it has
            the first format.

    Raises:
        ValueError: `id2label` is not a BIO or BIOES tag set, a number is out of range, or the checkpoint's format is
            newer than this package.
    """

    model_type = "ita"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}
    keys_to_ignore_at_inference = [
        "emissions", "cross_logits", "cross_emissions", "hidden_states", "attentions",
        "text_loss", "cross_loss", "cva_loss",
    ]  # fmt: skip

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    constraints: Literal["none", "decode", "always"] = "none"
    word_dropout: float = 0.1
    loss_preset: Literal["paper", "code"] = "paper"
    text_loss_weight: float | None = None
    cross_loss_weight: float | None = None
    cva_loss_weight: float | None = None
    cva_temperature: float | None = None
    score_temperature: float = 1.0
    image_gate: float | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    tie_word_embeddings: bool = False
    checkpoint_format: int | None = None  # None, so that the value is always saved

    def __post_init__(self, **kwargs: Any) -> None:
        if self.checkpoint_format is None:
            self.checkpoint_format = CHECKPOINT_FORMAT
        check_format(self.checkpoint_format, CHECKPOINT_FORMAT)
        if self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(TagScheme.from_types(DEFAULT_TYPES).labels))
        for name, value in LOSS_PRESETS[self.loss_preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__(**kwargs)
        self.label2id = dict(self.tag_scheme.label2id)
        self._check()

    def _check(self) -> None:
        check_number("word_dropout", self.word_dropout, "0 ≤ word_dropout < 1", 0 <= self.word_dropout < 1)
        for name in LOSS_PRESETS[self.loss_preset]:
            value = getattr(self, name)
            check_number(name, value, "a number ≥ 0", value >= 0)
        for name in ("cva_temperature", "score_temperature"):
            value = getattr(self, name)
            check_number(name, value, "a temperature > 0", value > 0)
        check_gate(self.image_gate)

    @property
    def tag_scheme(self) -> TagScheme:
        """The tag set, `id2label`, as a `TagScheme`."""
        return TagScheme([label for _, label in sorted((self.id2label or {}).items())])
