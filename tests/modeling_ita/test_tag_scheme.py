"""`TagScheme` against seqeval's reading of all short sequences, and its own laws."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from modeling_ita.tag_scheme import Span, TagScheme

BIO, BIOES = (TagScheme.from_types(["PER", "LOC"], name) for name in ("bio", "bioes"))
both_schemes = pytest.mark.parametrize("scheme", [BIO, BIOES], ids=["bio", "bioes"])


def all_sequences(scheme: TagScheme) -> list[tuple[int, ...]]:
    return [tags for length in range(5) for tags in itertools.product(range(len(scheme)), repeat=length)]


def well_formed(scheme: TagScheme, tags: tuple[int, ...]) -> bool:
    return not tags or all(scheme.allows(i, j) for i, j in zip((None, *tags), (*tags, None), strict=True))


# ------------------------------------------------------------------------------------------------------- the reading


@both_schemes
def test_reading_is_seqevals_lenient_one(scheme):
    for tags in all_sequences(scheme):
        # seqeval's ends are inclusive
        expected = [Span(kind, start, end + 1) for kind, start, end in get_entities([scheme.labels[i] for i in tags])]
        assert scheme.spans(tags) == expected, tags


@pytest.mark.parametrize(("scheme", "strict"), [(BIO, IOB2), (BIOES, IOBES)], ids=["bio", "bioes"])
def test_reading_of_well_formed_sequences_is_the_strict_one(scheme, strict):
    sequences = [tags for tags in all_sequences(scheme) if well_formed(scheme, tags)]
    readings = Entities([[scheme.labels[i] for i in tags] for tags in sequences], strict).entities
    for tags, entities in zip(sequences, readings, strict=True):
        assert scheme.spans(tags) == [Span(entity.tag, entity.start, entity.end) for entity in entities], tags


def test_reading_of_orphans():
    def read(*labels: str) -> list[Span]:
        return BIO.spans([BIO.label2id[label] for label in labels])

    assert read("O", "I-PER", "I-PER") == [("PER", 1, 3)]
    assert read("B-PER", "I-LOC") == [("PER", 0, 1), ("LOC", 1, 2)]
    assert read("B-PER", "B-PER", "O", "I-LOC") == [("PER", 0, 1), ("PER", 1, 2), ("LOC", 3, 4)]
    assert read() == read("O", "O") == []


# ----------------------------------------------------------------------------------------------------------- writing


@both_schemes
def test_writing_repairs_and_changes_nothing_else(scheme):
    for tags in all_sequences(scheme):
        spans = scheme.spans(tags)
        repaired = tuple(scheme.encode(spans, len(tags)))
        assert scheme.spans(repaired) == spans
        assert well_formed(scheme, repaired)
        # what `allows` allows is exactly what `encode` can write
        assert (repaired == tags) == well_formed(scheme, tags), tags


def test_conversion_keeps_the_entities():
    for tags in all_sequences(BIOES):
        spans = BIOES.spans(tags)
        in_bio = BIO.encode(spans, len(tags))
        assert BIO.spans(in_bio) == spans
        assert BIOES.encode(BIO.spans(in_bio), len(tags)) == BIOES.encode(spans, len(tags))


def test_writing_does_not_depend_on_the_order_of_the_spans():
    spans = [Span("LOC", 3, 4), Span("PER", 0, 2), Span("PER", 4, 7)]
    expected = ["B-PER", "E-PER", "O", "S-LOC", "B-PER", "I-PER", "E-PER", "O"]
    for order in itertools.permutations(spans):
        assert [BIOES.labels[i] for i in BIOES.encode(order, 8)] == expected


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span("PER", 0, 2), Span("LOC", 1, 3)], r"type='LOC', start=1, end=3.*overlaps"),
        ([Span("PER", 0, 4)], "outside the post's 3 words"),
        ([Span("PER", -1, 1)], "outside the post's 3 words"),
        ([Span("PER", 1, 1)], r"start=1, end=1"),
        ([Span("ORG", 0, 1)], r"no type 'ORG' \(it has PER, LOC\)"),
    ],
)
def test_impossible_spans_are_named(spans, message):
    with pytest.raises(ValueError, match=message):
        BIO.encode(spans, 3)


# ----------------------------------------------------------------------------------------------------------- the set


def test_labels_keep_their_ids():
    scheme = TagScheme(["I-LOC", "O", "B-creative-work", "B-LOC", "I-creative-work"])
    assert scheme.name == "bio"
    assert scheme.types == ("LOC", "creative-work")
    assert scheme.label2id == {"I-LOC": 0, "O": 1, "B-creative-work": 2, "B-LOC": 3, "I-creative-work": 4}
    assert scheme.type_ids().tolist() == [0, -1, 1, 0, 1]
    assert scheme.encode([Span("creative-work", 0, 2)], 3) == [2, 4, 1]
    assert pickle.loads(pickle.dumps(scheme)).labels == scheme.labels


def test_labels_from_types():
    assert BIO.labels == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert TagScheme.from_types(["PER"], "bioes").labels == ("O", "B-PER", "I-PER", "E-PER", "S-PER")
    assert TagScheme.from_types([]).spans([0, 0]) == []
    with pytest.raises(ValueError, match=r"'iob1' \(expected 'bio' or 'bioes'\)"):
        TagScheme.from_types(["PER"], "iob1")


@both_schemes
def test_matrices_hold_the_answers(scheme):
    tags = len(scheme)
    continues, allowed = scheme.continuation_matrix(), scheme.allowed_matrix()
    assert (continues.shape, allowed.shape) == ((tags, tags), (tags + 1, tags + 1))
    assert continues.dtype == allowed.dtype == torch.bool
    assert all(continues[i, j] == scheme.continues(i, j) for i in range(tags) for j in range(tags))
    outer = [*range(tags), None]
    for (i, before), (j, after) in itertools.product(enumerate(outer), repeat=2):
        assert allowed[i, j] == scheme.allows(before, after)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["O", "B-PER", "I-PER", "O"], "'O' stands twice"),
        (["B-PER", "I-PER"], "has no 'O'"),
        (["O", "B-PER"], "BIO tag set.*lacks I-PER"),
        (["O", "B-PER", "I-PER", "I-LOC"], "lacks B-LOC"),
        (["O", "B-PER", "I-PER", "E-PER"], "BIOES tag set.*lacks S-PER"),
        (["O", "B-PER", "I-PER", "U-PER"], "'U-PER' is not of the form"),
        (["O", "PER"], "'PER' is not of the form"),
        (["O", "B-", "I-"], "'B-' is not of the form"),
    ],
)
def test_impossible_tag_sets_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        TagScheme(labels)
