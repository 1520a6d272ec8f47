"""The signature of a score: one line that pins what was measured.

`ita-mner-f1|data:twitter2017-umt@a7d9e172|split:test|view:I+T|scheme:lenient|types:LOC,MISC,ORG,PER|gold:1351|
posts:723|repair:0|lost:0|v:0.1.0`, as sacreBLEU does for translation. Two F1 scores with the same signature were
measured in the same way. Where two signatures differ, `Signature.differences` says whether the scores are comparable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import quote, unquote

NAME = "ita-mner-f1"
_KEYS = ("data", "split", "view", "scheme", "types", "gold", "posts", "repair", "lost", "v")
_LEFT_OUT = {"split", "view"}  # omitted when unknown, or when one line stands for several views
_EXPECTED = f"{NAME}|data:NAME@SHA256|split:…|view:…|scheme:…|types:…|gold:…|posts:…|repair:…|lost:…|v:…"


class Differences(NamedTuple):
    """How two signatures differ, in words.

    Attributes:
        incomparable: why the two scores do not measure the same thing; empty if they are comparable.
        different: other differences: what is being compared (view, lost words), or what should not matter (version).
    """

    incomparable: list[str]
    different: list[str]


@dataclass(frozen=True)
class Signature:
    """What a score was measured on, and how.

    Attributes:
        checksum: the first 8 hexadecimal digits of the SHA-256 of the gold file.
        known_as: name of the published corpus that the file belongs to; None if unknown. The checksum alone counts.
        split: the split in the file; None if unknown.
        view: what the model saw (`T`, `I+T`, `wrong_image` …); None in a line that stands for several views.
        scheme: how tags are read, `lenient` or `strict`.
        types: the entity types in the gold, sorted.
        gold: number of gold entities under this scheme.
        posts: number of posts scored.
        repairs: number of ill-formed gold tags that were repaired before scoring.
        lost: number of gold entities (lenient) that the model never saw in full; they count as missed.
        version: the version of this package.
    """

    checksum: str
    known_as: str | None
    split: str | None
    view: str | None
    scheme: str
    types: tuple[str, ...]
    gold: int
    posts: int
    repairs: int
    lost: int
    version: str

    def __str__(self) -> str:
        values = {
            "data": (f"{_escape(self.known_as)}@" if self.known_as else "") + self.checksum,
            "split": self.split and _escape(self.split),
            "view": self.view and _escape(self.view),
            "scheme": self.scheme,
            "types": ",".join(map(_escape, self.types)),
            "gold": str(self.gold),
            "posts": str(self.posts),
            "repair": str(self.repairs),
            "lost": str(self.lost),
            "v": _escape(self.version),
        }
        return "|".join([NAME, *(f"{key}:{values[key]}" for key in _KEYS if values[key] is not None)])

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Parse a signature line; the inverse of `str`.

        Raises:
            ValueError: the line is not a signature; the message says what is wrong.
        """
        name, *fields = text.strip().split("|")
        if name != NAME:
            raise _no_signature(text, f"it does not begin with {NAME}|")
        values: dict[str, str] = {}
        for field in fields:
            key, colon, value = field.partition(":")
            if key not in _KEYS or not colon or key in values:
                raise _no_signature(text, f"the field {field!r} is {'there twice' if key in values else 'not known'}")
            values[key] = value
        missing = [key for key in _KEYS if key not in values and key not in _LEFT_OUT]
        if missing:
            raise _no_signature(text, f"it lacks {', '.join(missing)}")
        known_as, _, checksum = values["data"].rpartition("@")
        if not re.fullmatch("[0-9a-f]{8}", checksum):
            raise _no_signature(text, f"{checksum!r} is not the first 8 digits of a sha256")
        if values["scheme"] not in ("lenient", "strict"):
            raise _no_signature(text, f"the scheme {values['scheme']!r} is neither lenient nor strict")
        numbers = {key: values[key] for key in ("gold", "posts", "repair", "lost")}
        for key, number in numbers.items():
            if not re.fullmatch("[0-9]+", number):
                raise _no_signature(text, f"{key} {number!r} is not a number")
        return cls(
            checksum=checksum,
            known_as=unquote(known_as) or None,
            split=unquote(values["split"]) if "split" in values else None,
            view=unquote(values["view"]) if "view" in values else None,
            scheme=values["scheme"],
            types=tuple(sorted(unquote(kind) for kind in values["types"].split(",") if kind)),
            gold=int(numbers["gold"]),
            posts=int(numbers["posts"]),
            repairs=int(numbers["repair"]),
            lost=int(numbers["lost"]),
            version=unquote(values["v"]),
        )

    def differences(self, other: Signature) -> Differences:
        """Say why two scores are not comparable, if so, and what else differs.

        Data are the same if their checksums match, whatever their names. An unknown split or view matches any other.
        """
        incomparable, different = [], []
        if self.checksum != other.checksum:
            incomparable.append(f"other data: {self._data()} and {other._data()}")
        if self.split and other.split and self.split != other.split:
            incomparable.append(f"another split: {self.split} and {other.split}")
        if self.scheme != other.scheme:
            incomparable.append(f"another reading of the tags: {self.scheme} and {other.scheme}")
        if set(self.types) != set(other.types):
            first, second = (", ".join(sorted(set(kinds))) or "none" for kinds in (self.types, other.types))
            incomparable.append(f"other entity types: {first} and {second}")
        for what, mine, theirs in (
            ("gold entities", self.gold, other.gold),
            ("posts", self.posts, other.posts),
            ("repaired gold tags", self.repairs, other.repairs),
        ):
            if mine != theirs:
                incomparable.append(f"another number of {what}: {mine:,} and {theirs:,}")
        if self.view and other.view and self.view != other.view:
            different.append(f"another view: {self.view} and {other.view}")
        if self.lost != other.lost:
            different.append(f"gold entities that the model never saw: {self.lost:,} and {other.lost:,}")
        if self.version != other.version:
            different.append(f"another version of this package: {self.version} and {other.version}")
        return Differences(incomparable, different)

    def _data(self) -> str:
        return f"{self.known_as} ({self.checksum})" if self.known_as else self.checksum


def shared_lines(signatures: Iterable[Signature]) -> list[str]:
    """The lines to print under a table of scores; views measured in the same way share one line.

    Returns:
        For each scheme, one line without the view if its signatures differ only in the view, otherwise one line per
        view. The order is that of the signatures.
    """
    by_scheme: dict[str, dict[Signature, None]] = {}
    for signature in signatures:
        by_scheme.setdefault(signature.scheme, {})[signature] = None
    lines: list[str] = []
    for group in by_scheme.values():
        without_view = {replace(signature, view=None) for signature in group}
        lines += map(str, without_view if len(group) > 1 == len(without_view) else group)
    return lines


def _escape(text: str) -> str:
    return re.sub(r"[%|,@\s]", lambda found: quote(found[0], safe=""), text)


def _no_signature(text: str, why: str) -> ValueError:
    return ValueError(f"{text!r} is not a score signature: {why} (expected {_EXPECTED})")
