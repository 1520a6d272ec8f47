"""Configuration of ITA: the text encoder, the tag set and what its sequences mean, the losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec, strict

from .checkpoint_files import CONFIG, check_labels, check_settings, reading
from .names import check_name

OUTSIDE = "O"
_PREFIXES = {"bio": "BI", "bioes": "BIES"}


class Span(NamedTuple):
    """An entity as words: `type`, first word `start`, and `end`, one past the last word."""

    type: str
    start: int
    end: int


class TagScheme:
    """A tag set in BIO or BIOES, and the reading of its sequences as entities.

    The reading is the lenient one of CoNLL's scorer and of seqeval's default mode, which gives a meaning to every
    sequence: a tag continues the entity of the tag before it if both have the same type, the earlier one is `B-` or
    `I-` and the later one `I-` or `E-`; any other tag but `O` begins an entity. On well-formed sequences it is the
    strict reading.

    Args:
        labels: the tags in the order of their ids: `O`, and `B-X`, `I-X` (also `E-X`, `S-X` in BIOES) for every
            entity type X.

    Attributes:
        labels: the tags, as given.
        types: the entity types, in order of first appearance.
        name: `"bio"` or `"bioes"`.

    Raises:
        ValueError: `O` is missing, a tag stands twice or has no known prefix, or a type lacks one of its tags or has
            no usable name (see `check_name`).
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"the tag {twice!r} stands twice in the tag set {list(self.labels)}")
        if OUTSIDE not in self.labels:
            raise ValueError(f"the tag set {list(self.labels)} has no 'O' (expected O, B-PER, I-PER, …)")
        parts = [label.partition("-")[::2] for label in self.labels]
        self._prefixes = [prefix for prefix, _ in parts]
        self._types = [entity_type for _, entity_type in parts]
        self.types = tuple(dict.fromkeys(t for t in self._types if t))
        self.name = "bioes" if set(self._prefixes) & set("ES") else "bio"
        for label, prefix, entity_type in zip(self.labels, self._prefixes, self._types, strict=True):
            if label != OUTSIDE and (prefix not in tuple("BIES") or not entity_type):
                raise ValueError(f"the tag {label!r} is not of the form O, B-X, I-X, E-X or S-X")
        for entity_type in self.types:
            check_name("an entity type", entity_type)
        missing = [f"{p}-{t}" for t in self.types for p in _PREFIXES[self.name] if f"{p}-{t}" not in self.labels]
        if missing:
            raise ValueError(f"the {self.name.upper()} tag set {list(self.labels)} lacks {', '.join(missing)}")
        self.label2id = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def from_types(cls, types: Iterable[str], name: str = "bio") -> TagScheme:
        """The tag set of these entity types in the scheme `name` (`"bio"` or `"bioes"`), `O` first."""
        if name not in _PREFIXES:
            raise ValueError(f"unknown tag scheme {name!r} (expected 'bio' or 'bioes')")
        return cls([OUTSIDE, *(f"{prefix}-{t}" for t in types for prefix in _PREFIXES[name])])

    def __len__(self) -> int:
        return len(self.labels)

    def continues(self, previous: int, current: int) -> bool:
        """Whether the tag `current` goes on with the entity of the tag `previous` right before it."""
        return (
            self._types[previous] == self._types[current]
            and self._prefixes[previous] in ("B", "I")
            and self._prefixes[current] in ("I", "E")
        )

    def allows(self, previous: int | None, current: int | None) -> bool:
        """Whether `current` may follow `previous` in a well-formed sequence; None is the post's start or end."""
        open_before = previous is not None and self._prefixes[previous] in ("B", "I")
        inside = current is not None and self._prefixes[current] in ("I", "E")
        if inside:
            return previous is not None and current is not None and self.continues(previous, current)
        return not (self.name == "bioes" and open_before)

    def continuation_matrix(self, device: torch.device | str | None = None) -> torch.Tensor:
        """`continues` as a boolean tensor `(C, C)`, [previous, current]."""
        tags = range(len(self))
        return torch.tensor([[self.continues(i, j) for j in tags] for i in tags], device=device)

    def allowed_matrix(self, device: torch.device | str | None = None) -> torch.Tensor:
        """`allows` as a boolean tensor `(C + 1, C + 1)`, [previous, current]: last row start, last column end."""
        tags: list[int | None] = [*range(len(self)), None]
        return torch.tensor([[self.allows(i, j) for j in tags] for i in tags], device=device)

    def type_ids(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The entity type of every tag as an index into `types`, −1 for `O`: `(C,)`, int64."""
        ids = [self.types.index(t) if t else -1 for t in self._types]
        return torch.tensor(ids, dtype=torch.long, device=device)

    def spans(self, tags: Sequence[int]) -> list[Span]:
        """The entities that a sequence of tag ids spells, left to right."""
        spans: list[Span] = []
        start: int | None = None
        for i, tag in enumerate(tags):
            if start is not None and not self.continues(tags[i - 1], tag):
                spans.append(Span(self._types[tags[start]], start, i))
                start = None
            if start is None and self._types[tag]:
                start = i
        if start is not None:
            spans.append(Span(self._types[tags[start]], start, len(tags)))
        return spans

    def encode(self, spans: Iterable[Span], length: int) -> list[int]:
        """The one well-formed sequence of tag ids, `length` words long, that spells these entities.

        `scheme.encode(scheme.spans(tags), len(tags))` repairs a sequence (an `I-` with no `B-` before it becomes
        `B-`); with the spans of another scheme it converts.

        Raises:
            ValueError: a span lies outside the words or overlaps another, or its type is not in the tag set.
        """
        tags = [self.label2id[OUTSIDE]] * length
        taken = 0
        for span in sorted(spans, key=lambda span: span.start):
            if not taken <= span.start < span.end <= length:
                raise ValueError(f"{span} overlaps another entity or lies outside the post's {length} words")
            if span.type not in self.types:
                raise ValueError(f"the tag set has no type {span.type!r} (it has {', '.join(self.types)})")
            taken = span.end
            for i in range(span.start, span.end):
                tags[i] = self.label2id[f"{self._prefix(i, span)}-{span.type}"]
        return tags

    def _prefix(self, word: int, span: Span) -> str:
        first, last = word == span.start, word == span.end - 1
        if self.name == "bioes" and last:
            return "S" if first else "E"
        return "B" if first else "I"


# Raised by one when the weights or settings of a checkpoint change their names or their meaning.
CHECKPOINT_FORMAT = 1

DEFAULT_TYPES = ("PER", "LOC", "ORG", "MISC")

# Weights of L_T, L_I+T and L_CVA, and the temperature of CVA.
LOSS_PRESETS = {
    "paper": {"text_loss_weight": 1.0, "cross_loss_weight": 1.0, "cva_loss_weight": 1.0, "cva_temperature": 1.0},
    "code": {"text_loss_weight": 1.0, "cross_loss_weight": 0.5, "cva_loss_weight": 0.5, "cva_temperature": 4.0},
}


def check_format(found: int, known: int) -> None:
    """Refuses a checkpoint whose names or meanings this version does not know.

    Raises:
        ValueError: the checkpoint's format is later than the known one.
    """
    if found > known:
        raise ValueError(
            f"this checkpoint is of format {found}, and the installed ita-mner knows formats up to {known}: "
            "pip install --upgrade ita-mner, or leave the package out and load with trust_remote_code=True, which "
            "takes the checkpoint's own code"
        )


class CheckedConfig(PreTrainedConfig):
    """A configuration that looks at the settings in a file before anything is made of them."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Reads a checkpoint's settings; the arguments are those of `PreTrainedConfig.from_pretrained`.

        Raises:
            OSError: there are none.
            ValueError: they are malformed; the message names the file.
        """
        with reading(pretrained_model_name_or_path, CONFIG):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Makes a configuration of settings as JSON has them.

        Raises:
            ValueError: a setting is of the wrong type or out of range, or asks for code from elsewhere.
        """
        place = kwargs.get("name_or_path") or "the settings"  # the Auto classes tell it
        with reading(place, CONFIG if "name_or_path" in kwargs else ""):
            check_settings(config_dict)
            check_labels(config_dict.get("id2label"))
            return super().from_dict(config_dict, **kwargs)


def check_number(name: str, value: float, expected: str, is_right: bool) -> None:
    """Refuses a number of a configuration that is not finite or not what is expected of it.

    Raises:
        ValueError: it is not; the message names it.
    """
    if not (math.isfinite(value) and is_right):
        raise ValueError(f"{name} is {value} (expected {expected})")


@strict
class ItaConfig(CheckedConfig):
    """What an `ItaForTokenClassification` is made of.

    How a post and its visual context become one input (the kinds of context and their order, separators, window) is
    the processor's affair and lives in `processor_config.json`.

    Args:
        text_config: configuration of the text encoder, any that `AutoModel` builds an encoder from. Default: BERT.
        id2label: the tag set, BIO or BIOES, `{0: "O", 1: "B-PER", …}`. Default: BIO of PER, LOC, ORG, MISC.
        constraints: where transitions that break the tag scheme get zero probability: `"none"` (the original),
            `"decode"` (only when the best tags are sought) or `"always"` (in the losses and posteriors too).
        word_dropout: probability in training that a word's vector is zeroed as a whole, without rescaling the rest.
        loss_preset: fills the weights and the temperature that are not given: `"paper"` (1, 1, 1; τ = 1) or `"code"`
            (1, 0.5, 0.5; τ = 4, the released code's values for Twitter-15 and SNAP; it has τ = 2 for Twitter-17).
        text_loss_weight: weight of L_T, the negative log-likelihood of the tags in the textual view.
        cross_loss_weight: weight of L_I+T, the same in the cross-modal view.
        cva_loss_weight: weight of L_CVA, the cross-view alignment; 0 leaves it out.
        cva_temperature: temperature τ of both views' posteriors in L_CVA.
        score_temperature: temperature at which entities are scored, fitted on validation data after training; the
            entities themselves, the losses and the logits do not depend on it.
        cls_token_id: id of the piece before the post; needed only for inputs without `word_positions`.
        sep_token_id: id of the separator after the post; needed only for inputs without `word_positions`.
        checkpoint_format: what the names of weights and settings are those of, `CHECKPOINT_FORMAT` in a new model. A
            checkpoint that has none is of the first format.

    Raises:
        ValueError: the tag set is no BIO or BIOES tag set, a number is out of range, or the checkpoint was made by a
            version of this package that is too new for this one.
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
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    tie_word_embeddings: bool = False
    checkpoint_format: int | None = None  # None, so that it is always among the settings that are saved

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

    @property
    def tag_scheme(self) -> TagScheme:
        """The tag set, `id2label`, as a `TagScheme`."""
        return TagScheme([label for _, label in sorted((self.id2label or {}).items())])
