"""The line that pins what was measured: written, read, and compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hub_card.scores.signature import Signature, shared_lines

LINE = (
    "ita-mner-f1|data:twitter2017-umt@a7d9e172|split:test|view:I+T|scheme:lenient|types:LOC,MISC,ORG,PER|gold:1351|"
    "posts:723|repair:0|lost:0|v:0.1.0"
)
SIGNATURE = Signature(
    checksum="a7d9e172",
    known_as="twitter2017-umt",
    split="test",
    view="I+T",
    scheme="lenient",
    types=("LOC", "MISC", "ORG", "PER"),
    gold=1351,
    posts=723,
    repairs=0,
    lost=0,
    version="0.1.0",
)


def test_a_signature_is_one_line_and_back() -> None:
    assert str(SIGNATURE) == LINE
    assert Signature.parse(LINE) == SIGNATURE
    assert Signature.parse(LINE + "\n") == SIGNATURE


@pytest.mark.parametrize(
    "changes",
    [
        {"known_as": None},
        {"split": None, "view": None},
        {"types": ()},
        {"types": ("Ort:Süd", "a,b", "c|d", "e@f%2C", "g h\u0085i")},
        {"known_as": "mine@home|v:2", "view": "no image", "split": "dev|1", "version": "1.0+local"},
    ],
)
def test_any_name_survives(changes: dict[str, Any]) -> None:
    signature = replace(SIGNATURE, **changes)
    assert Signature.parse(str(signature)) == signature
    assert len(str(signature).split()) == 1


def test_types_are_read_in_any_order() -> None:
    assert Signature.parse(LINE.replace("LOC,MISC,ORG,PER", "PER,LOC,ORG,MISC")) == SIGNATURE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "does not begin with ita-mner-f1"),
        ("nrefs:1|case:mixed", "does not begin with ita-mner-f1"),
        (LINE.replace("|gold:1351", ""), "it lacks gold"),
        (LINE.replace("a7d9e172", "a7d9"), "'a7d9' is not the first 8 digits of a sha256"),
        (LINE.replace("lenient", "exact"), "the scheme 'exact' is neither lenient nor strict"),
        (LINE.replace("posts:723", "posts:-1"), "posts '-1' is not a number"),
        (LINE + "|seed:1", "the field 'seed:1' is not known"),
        (LINE + "|gold:2", "the field 'gold:2' is there twice"),
        (LINE + "|v", "the field 'v' is"),
    ],
)
def test_what_is_no_signature_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match="is not a score signature") as refusal:
        Signature.parse(line)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checksum": "00000000", "known_as": None}, "other data: twitter2017-umt (a7d9e172) and 00000000"),
        ({"split": "validation"}, "another split: test and validation"),
        ({"scheme": "strict"}, "another reading of the tags: lenient and strict"),
        ({"types": ("LOC", "ORG")}, "other entity types: LOC, MISC, ORG, PER and LOC, ORG"),
        ({"types": ()}, "other entity types: LOC, MISC, ORG, PER and none"),
        ({"gold": 1349}, "another number of gold entities: 1,351 and 1,349"),
        ({"posts": 700}, "another number of posts: 723 and 700"),
        ({"repairs": 135}, "another number of repaired gold tags: 0 and 135"),
    ],
)
def test_what_makes_scores_incomparable(changes: dict[str, Any], words: str) -> None:
    assert SIGNATURE.differences(replace(SIGNATURE, **changes)) == ([words], [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"view": "T"}, "another view: I+T and T"),
        ({"lost": 2}, "gold entities that the model never saw: 0 and 2"),
        ({"version": "0.2.0"}, "another version of this package: 0.1.0 and 0.2.0"),
    ],
)
def test_what_is_merely_different(changes: dict[str, Any], words: str) -> None:
    assert SIGNATURE.differences(replace(SIGNATURE, **changes)) == ([], [words])


@pytest.mark.parametrize("changes", [{}, {"known_as": None}, {"split": None}, {"view": None}])
def test_what_is_no_difference(changes: dict[str, Any]) -> None:
    other = replace(SIGNATURE, **changes)
    assert SIGNATURE.differences(other) == other.differences(SIGNATURE) == ([], [])


def test_views_measured_alike_share_a_line() -> None:
    text, strict = replace(SIGNATURE, view="T"), replace(SIGNATURE, scheme="strict")
    assert shared_lines([SIGNATURE]) == shared_lines([SIGNATURE, SIGNATURE]) == [LINE]
    assert shared_lines([SIGNATURE, strict, text]) == [LINE.replace("|view:I+T", ""), str(strict)]
    cut = replace(text, lost=1)
    assert shared_lines([SIGNATURE, cut]) == [LINE, str(cut)]
    assert shared_lines([]) == []
