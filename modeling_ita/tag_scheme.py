"""Tags and spans: converts the entities of a post to one tag per word, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from .plain_text import check_name

OUTSIDE = "O"
_PREFIXES = {"bio": "BI", "bioes": "BIES"}


class Span(NamedTuple):
    """An entity as words: `type`, first word `start`, and `end`, one past the last word."""

    type: str
    start: int
    end: int


class TagScheme:
    """A tag set in BIO or BIOES, and how its sequences are decoded as entities.

    Decoding is lenient, as in CoNLL's scorer and in seqeval's default mode, and accepts every sequence: a tag
    continues the entity of the previous tag if both have the same type, the previous one is `B-` or `I-` and the
    current one `I-` or `E-`; any other tag except `O` begins an entity. For well-formed sequences this equals strict
    decoding.

    Args:
        labels: the tags in the order of their ids: `O`, and `B-X`, `I-X` (also `E-X`, `S-X` in BIOES) for every
            entity type X.

    Attributes:
        labels: the tags, as given.
        types: the entity types, in order of first appearance.
        name: `"bio"` or `"bioes"`.

    Raises:
        ValueError: `O` is missing, a tag is a duplicate or has no known prefix, or a type lacks one of its tags or has
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
        """Whether the tag `current` continues the entity of the tag `previous` right before it."""
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
        """The entities that a sequence of tag ids encodes, left to right."""
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
        """The well-formed sequence of tag ids, `length` words long, that encodes these entities.

        `scheme.encode(scheme.spans(tags), len(tags))` repairs a sequence (an `I-` with no `B-` before it becomes
        `B-`). Given the spans of another scheme, it converts between schemes.

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
