"""Error analysis: errors by kind, entity type, surface form, context and agreement between views.

Every gold and every predicted entity of a post gets one of six kinds. `match` pairs them one to one, in four rounds.
An entity paired in one round takes no part in later ones:

1. `correct`: same boundaries, same type;
2. `type`: same boundaries, another type;
3. `boundary`: same type, and at least one word in common;
4. `boundary_and_type`: another type, and at least one word in common.

Within a round, the pair with the most words in common comes first. Ties go to the pair whose gold entity comes first
(smaller start, then end, then type name), then to the one whose predicted entity does. Unpaired gold entities are
`missed`, unpaired predicted ones `spurious`. So correct + type + boundary + boundary_and_type + missed is the number
of gold entities; with spurious instead of missed, it is the number of predicted ones. F1 counts a pair of kinds 2 to 4
as one missed and one spurious entity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from modeling_ita.tag_scheme import OUTSIDE, Span

Kind = Literal["correct", "boundary", "type", "boundary_and_type", "missed", "spurious"]
Match = tuple[Span | None, Span | None, Kind]

KINDS: tuple[Kind, ...] = ("correct", "boundary", "type", "boundary_and_type", "missed", "spurious")


class ErrorAnalysis(TypedDict):
    """Error counts for one view, as returned by `analyse`."""

    kinds: dict[str, int]
    by_type: dict[str, dict[str, int]]
    confusion: dict[str, dict[str, int]]
    surface: dict[str, dict[str, Any]]
    context: dict[str, dict[str, dict[str, Any]]]
    agreement: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class EvaluatedPost:
    """A post with its gold entities and the predictions of each view.

    Attributes:
        id: the post's id within its split.
        words: all words of the post, including those that the model never saw.
        gold: the gold entities, as word spans.
        views: for each view (`"T"`, `"I+T"`, `"wrong_image"`, `"blank_image"`) the predicted entities, each with its
            score: the exact posterior of span and type, in [0, 1].
        context: for each kind of context, the strings that the view I+T read.
        thumbnail: the image as a data URI, or an empty value.
    """

    id: str
    words: tuple[str, ...]
    gold: frozenset[Span]
    views: dict[str, dict[Span, float]]
    context: dict[str, list[str]]
    thumbnail: str = ""


def match(gold: Collection[Span], predicted: Collection[Span]) -> list[Match]:
    """Pair the gold and predicted entities of a post one to one, and give the kind of each pair.

    Args:
        gold: the gold entities, without duplicates.
        predicted: the predicted entities, without duplicates.

    Returns:
        Triples `(gold entity, predicted entity, kind)`; a missed entity has None as the predicted one, a spurious
        entity None as the gold one. Each entity is in exactly one triple. Triples are sorted from left to right by
        gold entity, or by predicted entity where there is no gold one, whatever the order of the input.
    """
    free_gold, free_predicted = set(gold), set(predicted)
    matches: list[Match] = []
    for kind, _, g, p in sorted(_candidates(free_gold, free_predicted), key=_priority):
        if g in free_gold and p in free_predicted:
            free_gold.remove(g)
            free_predicted.remove(p)
            matches.append((g, p, kind))
    matches += [(g, None, "missed") for g in free_gold]
    matches += [(None, p, "spurious") for p in free_predicted]
    return sorted(matches, key=_place)


def surface_forms(words: Sequence[str], gold: Iterable[Span]) -> set[str]:
    """The surface forms of a post's entities: words joined by spaces and case-folded, without the type.

    The union over all training posts is the `train_surfaces` argument of `analyse`.

    Raises:
        ValueError: an entity lies outside the words.
    """
    return {_surface(words, span) for span in gold}


def analyse(posts: Sequence[EvaluatedPost], view: str, train_surfaces: Collection[str]) -> ErrorAnalysis:
    """Count the errors of one view. The order of the posts does not matter.

    Args:
        posts: the posts of a split.
        view: the view whose predictions are analysed.
        train_surfaces: the surface forms of the training entities (see `surface_forms`), in any case.

    Returns:
        Plain JSON values; undefined ratios are 0:

        - `kinds`: how often each of `KINDS` occurs;
        - `by_type`: the same for each type that occurs. A pair counts under the type of its gold entity, a spurious
          entity under its own, so the types add up to `kinds`;
        - `confusion`: how often a gold entity of a type (row) is paired with a predicted one of a type (column); `"O"`
          is the row of spurious entities and the column of missed ones. The diagonal counts `correct` and `boundary`;
        - `surface`: `gold`, `correct` and `recall`, once for gold entities whose surface form is in
          `train_surfaces` (`seen`) and once for the others (`unseen`);
        - `context`: for each kind of context, `gold`, `predicted`, `correct` and `f1`, once for posts with a string of
          this kind (`with`) and once for the others (`without`);
        - `agreement`: the same counts for posts where the views T and I+T predict the same entities (`agree`) and
          for posts where they do not (`disagree`). A post that lacks one of these views is in neither.

    Raises:
        ValueError: a post lacks the view, or a gold entity lies outside its words; the message names the post.
    """
    for post in posts:
        if view not in post.views:
            raise ValueError(f"post {post.id!r} has no view {view!r} (it has {', '.join(post.views) or 'none'})")
    matches = [found for post in posts for found in match(post.gold, post.views[view])]
    contexts = sorted({kind for post in posts for kind in post.context})
    both = [post for post in posts if {"T", "I+T"} <= post.views.keys()]
    return {
        "kinds": _kinds(matches),
        "by_type": _by_type(matches),
        "confusion": _confusion(matches),
        "surface": _by_surface(posts, view, train_surfaces),
        "context": {
            kind: {
                "with": _totals([post for post in posts if any(post.context.get(kind, []))], view),
                "without": _totals([post for post in posts if not any(post.context.get(kind, []))], view),
            }
            for kind in contexts
        },
        "agreement": {
            "agree": _totals([post for post in both if _agree(post)], view),
            "disagree": _totals([post for post in both if not _agree(post)], view),
        },
    }


_Candidate = tuple[Kind, int, Span, Span]
_ROUNDS: tuple[Kind, ...] = ("correct", "type", "boundary", "boundary_and_type")


def _candidates(gold: Iterable[Span], predicted: Collection[Span]) -> Iterable[_Candidate]:
    """All candidate pairs, each with its kind and the number of words in common."""
    for g in gold:
        for p in predicted:
            overlap = min(g.end, p.end) - max(g.start, p.start)
            if overlap > 0:
                yield _kind(g, p), overlap, g, p


def _kind(gold: Span, predicted: Span) -> Kind:
    if (gold.start, gold.end) == (predicted.start, predicted.end):
        return "correct" if gold.type == predicted.type else "type"
    return "boundary" if gold.type == predicted.type else "boundary_and_type"


def _priority(candidate: _Candidate) -> tuple[Any, ...]:
    kind, overlap, gold, predicted = candidate
    return _ROUNDS.index(kind), -overlap, _position(gold), _position(predicted)


def _position(span: Span) -> tuple[int, int, str]:
    return span.start, span.end, span.type


def _place(found: Match) -> tuple[Any, ...]:
    gold, predicted, _ = found
    span = gold or predicted
    assert span is not None
    return *_position(span), gold is None


def _type(span: Span | None) -> str:
    return span.type if span else OUTSIDE


def _kinds(matches: Sequence[Match]) -> dict[str, int]:
    return {kind: sum(found == kind for _, _, found in matches) for kind in KINDS}


def _types(matches: Sequence[Match]) -> list[str]:
    return sorted({span.type for *pair, _ in matches for span in pair if isinstance(span, Span)})


def _by_type(matches: Sequence[Match]) -> dict[str, dict[str, int]]:
    # A type may have neither a gold nor a spurious entity and still occur as the wrong type of a pair.
    return {
        name: _kinds(
            [(gold, predicted, kind) for gold, predicted, kind in matches if _type(gold or predicted) == name]
        )
        for name in _types(matches)
    }


def _confusion(matches: Sequence[Match]) -> dict[str, dict[str, int]]:
    names = [*_types(matches), OUTSIDE]
    table = {row: dict.fromkeys(names, 0) for row in names}
    for gold, predicted, _ in matches:
        table[_type(gold)][_type(predicted)] += 1
    return table


def _surface(words: Sequence[str], span: Span) -> str:
    if not 0 <= span.start < span.end <= len(words):
        raise ValueError(f"{span} lies outside the post's {len(words)} words")
    return " ".join(words[span.start : span.end]).casefold()


def _by_surface(posts: Sequence[EvaluatedPost], view: str, train_surfaces: Collection[str]) -> dict[str, Any]:
    known = {surface.casefold() for surface in train_surfaces}
    counts = {"seen": {"gold": 0, "correct": 0}, "unseen": {"gold": 0, "correct": 0}}
    for post in posts:
        for span in post.gold:
            try:
                surface = _surface(post.words, span)
            except ValueError as error:
                raise ValueError(f"post {post.id!r}: {error}") from error
            group = counts["seen" if surface in known else "unseen"]
            group["gold"] += 1
            group["correct"] += span in post.views[view]
    return {
        name: group | {"recall": group["correct"] / group["gold"] if group["gold"] else 0.0}
        for name, group in counts.items()
    }


def _agree(post: EvaluatedPost) -> bool:
    return post.views["T"].keys() == post.views["I+T"].keys()


def _totals(posts: Sequence[EvaluatedPost], view: str) -> dict[str, float]:
    gold = sum(len(post.gold) for post in posts)
    predicted = sum(len(post.views[view]) for post in posts)
    correct = sum(len(post.gold & post.views[view].keys()) for post in posts)
    f1 = 2 * correct / (gold + predicted) if correct else 0.0
    return {"gold": gold, "predicted": predicted, "correct": correct, "f1": f1}
