"""From tags to entity scores, view by view.

Everything here is a function of tag sequences; predictions are made elsewhere. seqeval reads entities from tags, in
both of the ways that the literature mixes:

- **lenient** (CoNLL's scorer, seqeval's default, what papers report): every tag sequence is valid, and an `I-` with
  nothing before it begins an entity;
- **strict** (seqeval's `mode="strict"`): only well-formed IOB2 or IOBES entities count.

All scores are fractions in [0, 1]; tables print them as percentages. An undefined ratio (nothing predicted, nothing
to find) is 0.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal, TypedDict

from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from modeling_ita.tag_scheme import OUTSIDE, Span

Scoring = Literal["lenient", "strict"]
TagSequences = Sequence[Sequence[str]]


class TypeScores(TypedDict):
    """Scores for one entity type: fractions in [0, 1], and the entity counts behind them."""

    precision: float
    recall: float
    f1: float
    gold: int
    predicted: int
    correct: int


class Scores(TypeScores):
    """Scores over all entities (micro average) and, in `types`, per entity type."""

    types: dict[str, TypeScores]


class PostCounts(TypedDict):
    """Lenient entity counts per post, from which F1 over any subset or resample of posts follows.

    The lists have one number per post. `sha256` (16 digits) hashes the posts' lengths and gold entities, in order. If
    two systems have the same hash, their counts belong to the same posts and can be paired. BIO and BIOES tags of the
    same entities give the same hash.
    """

    gold: list[int]
    predicted: list[int]
    correct: list[int]
    sha256: str


class ViewReport(TypedDict):
    """The scores of one view on one split.

    `accuracy` is the fraction of words with the correct tag. `lost_words` counts the words that the model never saw;
    `lost_entities` counts the gold entities (lenient) with such a word. They are part of the gold and count as missed.
    """

    posts: int
    words: int
    lost_words: int
    lost_entities: int
    accuracy: float
    lenient: Scores
    strict: Scores
    post_counts: PostCounts


def read_entities(tags: TagSequences, scoring: Scoring, bioes: bool = False) -> list[set[Span]]:
    """Read entities from tag sequences with seqeval.

    Args:
        tags: the tags of every post, one per word.
        scoring: `"lenient"` or `"strict"`.
        bioes: whether the strict scheme is IOBES instead of IOB2; the lenient one accepts all prefixes.

    Returns:
        One set of word spans per post; the end is exclusive.
    """
    if scoring == "lenient":  # seqeval's end is inclusive
        return [{Span(kind, start, last + 1) for kind, start, last in get_entities(list(post))} for post in tags]
    posts = Entities([list(post) for post in tags], IOBES if bioes else IOB2).entities
    return [{Span(entity.tag, entity.start, entity.end) for entity in post} for post in posts]


def score_tags(references: TagSequences, predictions: TagSequences) -> dict[Scoring, Scores]:
    """Entity scores of predicted tags, lenient and strict.

    The strict scheme is IOBES if an `E-` or `S-` tag occurs on either side, else IOB2.

    Args:
        references: the gold tags of every post, one per word.
        predictions: the predicted tags, aligned with the references.

    Returns:
        The scores under the keys `"lenient"` and `"strict"`.

    Raises:
        ValueError: the numbers of posts or of a post's tags differ, or a tag is invalid; the message names the post.
    """
    _check_tags(references, predictions)
    bioes = any(tag[0] in "ES" for post in chain(references, predictions) for tag in post)
    readings: tuple[Scoring, ...] = ("lenient", "strict")
    return {
        scoring: _score_entities(read_entities(references, scoring, bioes), read_entities(predictions, scoring, bioes))
        for scoring in readings
    }


def score_views(references: TagSequences, predictions: Mapping[str, TagSequences]) -> dict[str, ViewReport]:
    """Score every view on one split.

    Args:
        references: the gold tags of every post, for all of its words.
        predictions: for each view (`"T"`, `"I+T"`, `"wrong_image"`) the predicted tags of the same posts. A
            prediction may be shorter than its post: the model never saw the remaining words, which count as `O` and
            are reported as lost.

    Returns:
        A report for each view, in the order given.

    Raises:
        ValueError: the numbers of posts differ, a prediction is longer than its post, or a tag is invalid; the message
            names the view and the post.
    """
    reports = {}
    for view, predicted in predictions.items():
        try:
            reports[view] = _score_view(references, predicted)
        except ValueError as error:
            raise ValueError(f"view {view!r}, {error}") from error
    return reports


def _score_view(references: TagSequences, predictions: TagSequences) -> ViewReport:
    _check_posts(references, predictions)
    pairs = list(zip(references, predictions, strict=True))
    # Overlong predictions stay as they are; score_tags rejects them.
    padded = [[*predicted, *[OUTSIDE] * (len(gold) - len(predicted))] for gold, predicted in pairs]
    scores = score_tags(references, padded)
    gold_spans = read_entities(references, "lenient")
    entities = zip(gold_spans, predictions, strict=True)
    return ViewReport(
        posts=len(references),
        words=sum(map(len, references)),
        lost_words=sum(len(gold) - len(predicted) for gold, predicted in pairs),
        lost_entities=sum(span.end > len(predicted) for spans, predicted in entities for span in spans),
        accuracy=accuracy(references, padded),
        lenient=scores["lenient"],
        strict=scores["strict"],
        post_counts=_post_counts(references, gold_spans, read_entities(padded, "lenient")),
    )


def _post_counts(references: TagSequences, gold: Sequence[set[Span]], predicted: Sequence[set[Span]]) -> PostCounts:
    posts = [[len(tags), sorted(spans)] for tags, spans in zip(references, gold, strict=True)]
    return PostCounts(
        gold=[len(spans) for spans in gold],
        predicted=[len(spans) for spans in predicted],
        correct=[len(g & p) for g, p in zip(gold, predicted, strict=True)],
        sha256=hashlib.sha256(json.dumps(posts).encode()).hexdigest()[:16],
    )


def is_tag(tag: str) -> bool:
    """Whether this is a tag: `O`, or `B-`, `I-`, `E-` or `S-` and the name of a type."""
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-", "E-", "S-") and bool(tag[2:]))


def _check_posts(references: TagSequences, predictions: TagSequences) -> None:
    if len(references) != len(predictions):
        raise ValueError(f"{len(predictions)} predicted posts for {len(references)} reference posts")


def _check_tags(references: TagSequences, predictions: TagSequences) -> None:
    _check_posts(references, predictions)
    for post, (gold, predicted) in enumerate(zip(references, predictions, strict=True)):
        if len(gold) != len(predicted):
            raise ValueError(f"post {post}: {len(predicted)} predicted tags for {len(gold)} words (expected one each)")
        for side, tags in (("reference", gold), ("prediction", predicted)):
            for word, tag in enumerate(tags):
                if not is_tag(tag):
                    raise ValueError(
                        f"post {post}, word {word}, {side}: {tag!r} is not a tag (expected O, B-X, I-X, E-X or S-X)"
                    )


def accuracy(references: TagSequences, predictions: TagSequences) -> float:
    """The fraction of words with the correct tag; 0 without words."""
    gold, predicted = list(chain.from_iterable(references)), list(chain.from_iterable(predictions))
    return sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold) if gold else 0.0


def _score_entities(references: Sequence[set[Span]], predictions: Sequence[set[Span]]) -> Scores:
    gold = Counter(span.type for post in references for span in post)
    predicted = Counter(span.type for post in predictions for span in post)
    correct = Counter(span.type for g, p in zip(references, predictions, strict=True) for span in g & p)
    types = {t: ratios(gold[t], predicted[t], correct[t]) for t in sorted(gold | predicted)}
    return Scores(**ratios(gold.total(), predicted.total(), correct.total()), types=types)


def ratios(gold: int, predicted: int, correct: int) -> TypeScores:
    """Precision, recall and F1 from entity counts."""
    return TypeScores(
        precision=correct / predicted if predicted else 0.0,
        recall=correct / gold if gold else 0.0,
        f1=2 * correct / (gold + predicted) if correct else 0.0,
        gold=gold,
        predicted=predicted,
        correct=correct,
    )
