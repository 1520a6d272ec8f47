"""The signature of a score: one line that pins what was measured.

`ita-mner-f1|data:twitter2017-umt@a7d9e172|split:test|view:I+T|scheme:lenient|types:LOC,MISC,ORG,PER|gold:1351|
posts:723|repair:0|lost:0|v:0.1.0`, as sacreBLEU does it for translation: two F1 with the same signature were measured
alike, and where two signatures differ, `Signature.differences` says whether the scores may stand side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import quote, unquote

NAME = "ita-mner-f1"
_KEYS = ("data", "split", "view", "scheme", "types", "gold", "posts", "repair", "lost", "v")
_LEFT_OUT = {"split", "view"}  # where they are not known, or where a line stands for several
_EXPECTED = f"{NAME}|data:NAME@SHA256|split:…|view:…|scheme:…|types:…|gold:…|posts:…|repair:…|lost:…|v:…"


class Differences(NamedTuple):
    """What two signatures differ in, in words.

    Attributes:
        incomparable: why the two scores do not measure the same thing; empty for comparable ones.
        different: what else differs: what is compared (the view, words lost), or what should not matter (the version).
    """

    incomparable: list[str]
    different: list[str]


@dataclass(frozen=True)
class Signature:
    """What a score was measured on, and how.

    Attributes:
        checksum: the first 8 hexadecimal digits of the sha256 of the file with the gold tags.
        known_as: the name of that file's published corpus; None for a file that is not known. The checksum decides.
        split: the split that the file is; None if not known.
        view: what the model saw (`T`, `I+T`, `wrong_image` …); None in a line that stands for several views.
        scheme: the reading of the tags, `lenient` or `strict`.
        types: the entity types in the gold, sorted.
        gold: how many gold entities this reading finds.
        posts: how many posts were measured.
        repairs: how many gold tags were not well-formed in the file and were repaired before the measurement.
        lost: how many gold entities (lenient) the model never saw whole; they count as missed.
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
        """The signature that a line spells; `str` gives the line back.

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
        """What keeps this score and another from being compared, and what is merely different, in words.

        Data are the same if their checksums are, whatever they are called. A split or view that is not known differs
        from nothing.
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
    """The lines to print under a table of scores: views measured alike share one, which leaves the view out.

    Returns:
        One line for each reading of the tags whose views agree in all else, one for each view where they do not; in
        the order of the signatures.
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
