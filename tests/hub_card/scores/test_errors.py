"""The errors of a model: the pairing against an exhaustive search, the counts by hand and under changes."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hub_card.scores.errors import KINDS, EvaluatedPost, analyse, match, surface_forms
from hub_card.scores.scores import score_tags
from modeling_ita.tag_scheme import Span, TagScheme

PER, LOC = Span("PER", 0, 2), Span("LOC", 3, 4)
TYPES = ("LOC", "ORG", "PER")
Pairs = tuple[tuple[Span, Span], ...]


def random_spans(rng: random.Random, words: int = 8, overlapping: bool = False) -> frozenset[Span]:
    spans: set[Span] = set()
    start = 0
    while start < words and len(spans) < 4:
        start = rng.randrange(words) if overlapping else start + rng.randrange(3)
        end = start + 1 + rng.randrange(3)
        if end > words:
            break
        spans.add(Span(rng.choice(TYPES), start, end))
        start = end
    return frozenset(spans)


def one_to_one(gold: list[Span], predicted: frozenset[Span]) -> Iterator[Pairs]:
    """Every way to pair some of the gold entities with predicted ones that share a word."""
    if not gold:
        yield ()
        return
    first, *rest = gold
    yield from one_to_one(rest, predicted)
    for p in predicted:
        if set(range(first.start, first.end)) & set(range(p.start, p.end)):
            for others in one_to_one(rest, predicted - {p}):
                yield (first, p), *others


def round_of(g: Span, p: Span) -> int:
    return 2 * (g[1:] != p[1:]) + (g.type != p.type)


def rank(pairs: Pairs) -> list[tuple[Any, ...]]:
    """The pairs as the rule takes them, best first; a choice that has one more pair comes before one that stops."""
    ranks = []
    for g, p in pairs:
        shared = len(set(range(g.start, g.end)) & set(range(p.start, p.end)))
        ranks.append((round_of(g, p), -shared, (g.start, g.end, g.type), (p.start, p.end, p.type)))
    return [*sorted(ranks), (99,)]


def post(gold: Collection[Span], views: dict[str, Collection[Span]] | None = None, **fields: Any) -> EvaluatedPost:
    predictions = {"T": {}, "I+T": {}} if views is None else {v: dict.fromkeys(s, 0.5) for v, s in views.items()}
    values: dict[str, Any] = {"id": "p", "words": tuple("abcdefgh"), "context": {}} | fields
    return EvaluatedPost(gold=frozenset(gold), views=predictions, **values)


def random_posts(seed: int, posts: int = 30) -> list[EvaluatedPost]:
    rng = random.Random(seed)
    made = []
    for i in range(posts):
        gold = random_spans(rng)
        views = {view: gold if rng.random() < 0.3 else random_spans(rng) for view in ("T", "I+T")}
        context = {kind: ["x"] * rng.randrange(2) for kind in ("captions", "ocr")}
        words = tuple(rng.choice("aAbB") for _ in range(8))
        made.append(post(gold, views, id=str(i), words=words, context=context))
    return made


@pytest.mark.parametrize(
    ("gold", "predicted", "kind"),
    [
        (PER, PER, "correct"),
        (PER, Span("LOC", 0, 2), "type"),
        (PER, Span("PER", 1, 4), "boundary"),
        (PER, Span("LOC", 1, 4), "boundary_and_type"),
    ],
)
def test_kinds_of_pairs(gold: Span, predicted: Span, kind: str) -> None:
    assert match({gold}, {predicted}) == [(gold, predicted, kind)]


def test_entities_that_share_no_word_are_missed_and_spurious() -> None:
    neighbour = Span("PER", 2, 3)
    assert match({PER}, {neighbour}) == [(PER, None, "missed"), (None, neighbour, "spurious")]
    assert match(set(), set()) == []


def test_two_predictions_for_one_entity_leave_one_spurious() -> None:
    gold, long, short = Span("PER", 0, 5), Span("PER", 2, 5), Span("PER", 0, 2)
    assert match({gold}, {short, long}) == [(None, short, "spurious"), (gold, long, "boundary")]


def test_the_type_counts_more_than_the_overlap() -> None:
    gold, long, short = Span("PER", 0, 5), Span("LOC", 1, 5), Span("PER", 0, 1)
    assert (gold, short, "boundary") in match({gold}, {short, long})


def test_a_tie_goes_to_the_left() -> None:
    gold, left, right = Span("PER", 0, 4), Span("PER", 0, 2), Span("PER", 2, 4)
    assert match({gold}, {right, left})[0] == (gold, left, "boundary")
    assert match({right, left}, {gold}) == [(left, gold, "boundary"), (right, None, "missed")]


@pytest.mark.parametrize("overlapping", [False, True])
def test_the_pairing_is_the_best_of_all(overlapping: bool) -> None:
    rng = random.Random(3)
    kinds = ("correct", "type", "boundary", "boundary_and_type")
    for _ in range(150):
        gold, predicted = (random_spans(rng, overlapping=overlapping) for _ in range(2))
        best = min(one_to_one(sorted(gold), predicted), key=rank)
        found = match(gold, predicted)
        pairs = {(g, p) for g, p, _ in found if g and p}
        assert pairs == set(best)
        assert all(kind == kinds[round_of(g, p)] for g, p, kind in found if g and p)
        assert {g for g, p, kind in found if kind == "missed" and p is None} == gold - {g for g, _ in best}
        assert {p for g, p, kind in found if kind == "spurious" and g is None} == predicted - {p for _, p in best}
        assert found == match(sorted(gold, reverse=True), sorted(predicted, key=hash))


def test_the_two_sides_are_alike() -> None:
    """Of entities that do not overlap, exchanging gold and prediction exchanges missed and spurious."""
    rng = random.Random(4)
    exchanged = {"missed": "spurious", "spurious": "missed"}
    for _ in range(200):
        gold, predicted = random_spans(rng), random_spans(rng)
        back = {(p, g, exchanged.get(kind, kind)) for g, p, kind in match(predicted, gold)}
        assert set(match(gold, predicted)) == back


def test_analysis_by_hand() -> None:
    posts = [
        post({PER, LOC}, {"T": {PER}, "I+T": {PER, Span("ORG", 3, 4)}}, context={"captions": ["a dog"], "ocr": []}),
        post({PER}, {"T": {Span("PER", 0, 1)}, "I+T": {Span("PER", 0, 1)}}, words=("Ann", "Lee", "x")),
        post({LOC}, {"T": {Span("PER", 6, 7)}, "I+T": {Span("PER", 6, 7)}}, context={"captions": []}),
    ]
    assert analyse(posts, "I+T", {"A B", "D"}) == {
        "kinds": {"correct": 1, "boundary": 1, "type": 1, "boundary_and_type": 0, "missed": 1, "spurious": 1},
        "by_type": {
            "LOC": dict.fromkeys(KINDS, 0) | {"type": 1, "missed": 1},
            "ORG": dict.fromkeys(KINDS, 0),
            "PER": dict.fromkeys(KINDS, 0) | {"correct": 1, "boundary": 1, "spurious": 1},
        },
        "confusion": {
            "LOC": {"LOC": 0, "ORG": 1, "PER": 0, "O": 1},
            "ORG": {"LOC": 0, "ORG": 0, "PER": 0, "O": 0},
            "PER": {"LOC": 0, "ORG": 0, "PER": 2, "O": 0},
            "O": {"LOC": 0, "ORG": 0, "PER": 1, "O": 0},
        },
        "surface": {
            "seen": {"gold": 3, "correct": 1, "recall": 1 / 3},
            "unseen": {"gold": 1, "correct": 0, "recall": 0.0},
        },
        "context": {
            "captions": {
                "with": {"gold": 2, "predicted": 2, "correct": 1, "f1": 0.5},
                "without": {"gold": 2, "predicted": 2, "correct": 0, "f1": 0.0},
            },
            "ocr": {
                "with": {"gold": 0, "predicted": 0, "correct": 0, "f1": 0.0},
                "without": {"gold": 4, "predicted": 4, "correct": 1, "f1": 0.25},
            },
        },
        "agreement": {
            "agree": {"gold": 2, "predicted": 2, "correct": 0, "f1": 0.0},
            "disagree": {"gold": 2, "predicted": 2, "correct": 1, "f1": 0.5},
        },
    }


@pytest.mark.parametrize("view", ["T", "I+T"])
def test_the_counts_add_up_and_equal_the_scores(view: str) -> None:
    posts = random_posts(1)
    found = analyse(posts, view, {"a b", "a"})
    scheme = TagScheme.from_types(TYPES)
    tags = [
        [[scheme.labels[i] for i in scheme.encode(spans, 8)] for spans in side]
        for side in ([p.gold for p in posts], [p.views[view] for p in posts])
    ]
    scores = score_tags(*tags)["lenient"]
    kinds = found["kinds"]
    paired = sum(kinds[kind] for kind in KINDS[:4])
    assert kinds["correct"] == scores["correct"] > 0
    assert paired + kinds["missed"] == scores["gold"]
    assert paired + kinds["spurious"] == scores["predicted"]
    assert all(sum(found["by_type"][t][kind] for t in found["by_type"]) == kinds[kind] for kind in KINDS)
    rows, names = found["confusion"], [*TYPES, "O"]
    for name in TYPES:
        assert sum(rows[name].values()) == scores["types"][name]["gold"]
        assert sum(rows[row][name] for row in names) == scores["types"][name]["predicted"]
    assert rows["O"]["O"] == 0
    assert sum(rows["O"].values()) == kinds["spurious"]
    assert sum(rows[row]["O"] for row in names) == kinds["missed"]
    for halves in (found["agreement"], *found["context"].values()):
        for key in ("gold", "predicted", "correct"):
            assert sum(half[key] for half in halves.values()) == scores[key]
    assert sum(group["correct"] for group in found["surface"].values()) == scores["correct"]
    assert json.loads(json.dumps(found)) == found


def test_the_order_of_posts_views_and_kinds_makes_no_difference() -> None:
    posts = random_posts(2)
    turned = [
        replace(
            p,
            views={view: dict(reversed(spans.items())) for view, spans in reversed(p.views.items())},
            context=dict(reversed(p.context.items())),
        )
        for p in reversed(posts)
    ]
    assert json.dumps(analyse(posts, "I+T", ["a"])) == json.dumps(analyse(turned, "I+T", ["A"]))


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({Span("LOC", 0, 2), LOC}, "type"),
        ({Span("PER", 0, 1), LOC}, "boundary"),
        ({Span("LOC", 0, 1), LOC}, "boundary_and_type"),
        ({LOC}, "missed"),
        ({PER, LOC, Span("ORG", 6, 8)}, "spurious"),
    ],
)
def test_one_changed_entity_moves_the_counts(changed: set[Span], kind: str) -> None:
    both = {"T": {PER, LOC}, "I+T": {PER, LOC}}
    right = analyse([post({PER, LOC}, both, context={"ocr": ["x"]})], "I+T", {"a b"})
    wrong = analyse([post({PER, LOC}, both | {"I+T": changed}, context={"ocr": ["x"]})], "I+T", {"a b"})
    correct = 2 - (kind != "spurious")
    assert right["kinds"] == dict.fromkeys(KINDS, 0) | {"correct": 2}
    assert wrong["kinds"] == dict.fromkeys(KINDS, 0) | {"correct": correct, kind: 1}
    assert wrong["surface"]["seen"]["correct"] == correct - 1
    assert wrong["surface"]["unseen"] == right["surface"]["unseen"]
    assert wrong["context"]["ocr"]["with"]["f1"] < right["context"]["ocr"]["with"]["f1"] == 1
    assert (wrong["confusion"] == right["confusion"]) == (kind == "boundary")
    assert right["agreement"]["agree"]["gold"] == wrong["agreement"]["disagree"]["gold"] == 2


def test_a_dropped_post_takes_its_entities_along() -> None:
    posts = random_posts(5)
    whole, without, alone = (analyse(some, "I+T", {"a"}) for some in (posts, posts[1:], posts[:1]))
    assert alone["kinds"] != dict.fromkeys(KINDS, 0)
    assert {kind: whole["kinds"][kind] - alone["kinds"][kind] for kind in KINDS} == without["kinds"]


def test_another_view_changes_only_the_agreement() -> None:
    agreeing, other = post({PER}, {"T": {PER}, "I+T": {PER}}), post({PER}, {"T": {LOC}, "I+T": {PER}})
    first, second = (analyse([p], "I+T", set()) for p in (agreeing, other))
    assert first.pop("agreement") != second.pop("agreement")
    assert first == second


def test_surface_forms_are_folded_and_have_no_type() -> None:
    assert surface_forms(["New", "YORK", "in", "Straße"], {Span("LOC", 0, 2), Span("PER", 3, 4)}) == {
        "new york",
        "strasse",
    }
    assert surface_forms([], set()) == set()
    found = analyse([post({PER}, words=("NEW", "York"))], "T", surface_forms(["new", "york"], {Span("LOC", 0, 2)}))
    assert found["surface"]["seen"]["gold"] == 1


def test_no_posts_and_a_single_view() -> None:
    nothing = analyse([], "T", set())
    assert nothing["kinds"] == dict.fromkeys(KINDS, 0)
    assert nothing["confusion"] == {"O": {"O": 0}}
    single = analyse([post({PER}, {"T": {PER}})], "T", set())
    assert single["agreement"] == nothing["agreement"]
    assert nothing["agreement"]["agree"] == {"gold": 0, "predicted": 0, "correct": 0, "f1": 0.0}


def test_errors_name_the_post() -> None:
    with pytest.raises(ValueError, match=r"post 'p' has no view 'wrong_image' \(it has T, I\+T\)"):
        analyse([post({PER})], "wrong_image", set())
    with pytest.raises(
        ValueError, match=r"post 'p': Span\(type='PER', start=0, end=2\) lies outside the post's 1 words"
    ):
        analyse([post({PER}, words=("a",))], "T", set())
    with pytest.raises(ValueError, match="lies outside"):
        surface_forms(["a"], {PER})
