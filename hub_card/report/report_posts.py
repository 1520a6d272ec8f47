"""The posts of a split as cards of an HTML page: both views side by side, to sort and to search."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby

from hub_card.scores.errors import EvaluatedPost, match
from hub_card.scores.views import MAIN_VIEWS, view_title
from modeling_ita.markup import html_picture, html_text
from modeling_ita.tag_scheme import Span

STYLE = """
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; margin: .8rem 0; }
.controls input[type=search], .controls select { font: inherit; max-width: 100%; padding: .2rem .4rem; }
.key { font-size: .85rem; margin: .5rem 0; }
#posts { display: grid; gap: .8rem; }
.post { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; min-width: 0; }
.post { content-visibility: auto; contain-intrinsic-size: auto 12rem; } .post[hidden] { display: none; }
.post header { display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: baseline; }
.post h3 { font-size: .85rem; margin: 0; overflow-wrap: anywhere; } .post header span { font-size: .8rem; }
.body { display: flex; gap: 1rem; margin-top: .4rem; } .body > div { flex: 1; min-width: 0; }
.body img { width: 8rem; height: 8rem; object-fit: contain; background: #8882; border-radius: .3rem; flex: none; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .6rem 1.4rem; }
.views h4, .context dt { font-size: .75rem; font-weight: normal; color: var(--soft); margin: 0; }
.views p { margin: .1rem 0 0; line-height: 1.75; overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { color: inherit; border-radius: .25rem; padding: .1rem .25rem; box-decoration-break: clone; }
mark { -webkit-box-decoration-break: clone; }
mark.right { background: color-mix(in srgb, var(--green) 28%, transparent); }
mark.wrong { background: color-mix(in srgb, var(--vermillion) 30%, transparent); }
mark small, .missed { font-size: .72rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
mark small { opacity: .85; } .missed { border: 1px dashed var(--orange); border-radius: .25rem; padding: 0 .25rem; }
u { text-decoration: underline 2px var(--orange); text-underline-offset: .2em; }
.context { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .6rem 0 0; font-size: .85rem; }
.context { max-height: 11rem; overflow: auto; overflow-wrap: anywhere; } .context dd { margin: 0; }
@media (max-width: 40rem) { .body { flex-direction: column; gap: .5rem; } .body img { width: 6rem; height: 6rem; } }
"""

SCRIPT = """
const list = document.getElementById("posts"), cards = [...list.children];
const told = cards.map(card => card.textContent.toLowerCase());
const control = name => document.getElementById(name);
const orders = {
  errors: (a, b) => b.dataset.errors - a.dataset.errors,
  disagreement: (a, b) => b.dataset.disagreement - a.dataset.disagreement,
  score: (a, b) => a.dataset.score - b.dataset.score,
  id: (a, b) => a.dataset.id.localeCompare(b.dataset.id, "en", {numeric: true}),
};
function sort() { list.append(...[...cards].sort(orders[control("order").value])); }
function filter() {
  const wanted = control("search").value.trim().toLowerCase();
  let shown = 0;
  cards.forEach((card, i) => {
    card.hidden = (control("wrong").checked && card.dataset.errors === "0")
      || (control("differ").checked && card.dataset.differ === "0") || !told[i].includes(wanted);
    shown += !card.hidden;
  });
  control("shown").textContent = `${shown} of ${cards.length} shown`;
}
control("order").addEventListener("change", sort);
for (const name of ["wrong", "differ"]) control(name).addEventListener("change", filter);
control("search").addEventListener("input", filter);
sort(); filter();
"""


def post_cards(posts: Sequence[EvaluatedPost], limit: int) -> str:
    """The cards with their controls; `SCRIPT` makes these interactive.

    Args:
        posts: the posts, all with the same views. A post shows whichever of T and I+T it has, or its first two
            views if it has neither.
        limit: maximum number of cards. Posts with the most errors come first; ties keep their order.

    Returns:
        HTML.
    """
    views = shown_views(posts[0].views if posts else ())
    counted = sorted(((post, _errors(post, views)) for post in posts), key=lambda pair: -pair[1])
    kept, left = counted[:limit], counted[limit:]
    wrong = sum(errors > 0 for _, errors in left)
    rest = f" {len(left):,} more are not on this page; {wrong:,} of them have errors." if left else ""
    return f"""<p>{len(kept):,} of {len(posts):,} posts, those with errors first.{rest}</p>
<div class="controls">
<label>sort by <select id="order" autocomplete="off"><option value="errors">most errors</option>
<option value="disagreement">largest disagreement of the views</option><option value="score">lowest score</option>
<option value="id">id</option></select></label>
<label><input type="checkbox" id="wrong" autocomplete="off"> only with errors</label>
<label><input type="checkbox" id="differ" autocomplete="off"> only where the views differ</label>
<label>search <input type="search" id="search" autocomplete="off"></label> <span class="soft" id="shown"></span></div>
<p class="key"><mark class="right">predicted, correct <small>type score</small></mark> &nbsp;
<mark class="wrong">predicted, wrong <small>✗ type score</small></mark> &nbsp; <u>gold</u> &nbsp;
<u>gold, not found</u> <span class="missed">type missed</span></p>
<div id="posts">{"".join(_card(post, errors, views) for post, errors in kept)}</div>"""


def shown_views(views: Collection[str]) -> list[str]:
    """The two views to look at: T and I+T, or what there is of them, or the first two of others."""
    return [view for view in MAIN_VIEWS if view in views] or list(views)[:2]


def _card(post: EvaluatedPost, errors: int, views: Sequence[str]) -> str:
    predictions = [post.views.get(view, {}) for view in views]
    differ = any(set(found) != set(predictions[0]) for found in predictions)
    entities = {span for found in predictions for span in found}
    spread = sum(
        max(scores) - min(scores) for scores in ([found.get(e, 0.0) for found in predictions] for e in entities)
    )
    lowest = min((score for found in predictions for score in found.values()), default=2.0)
    data = f'data-errors="{errors}" data-differ="{int(differ)}" data-disagreement="{spread:.4f}"'
    notes = [f"{errors} error{'s' * (errors != 1)}" if errors else "no errors", *["views differ"] * differ]
    picture = ""
    if source := html_picture(post.thumbnail):
        picture = f'<img loading="lazy" alt="image of {html_text(post.id)}" src="{source}">'
    panes = "".join(f"<div><h4>{html_text(view_title(view))}</h4>{_pane(post, view)}</div>" for view in views)
    header = f"<h3>{html_text(post.id)}</h3>" + "".join(f'<span class="soft">{note}</span>' for note in notes)
    return (
        f'<article class="post" {data} data-score="{lowest:.4f}" data-id="{html_text(post.id)}">'
        f'<header>{header}</header><div class="body">{picture}<div><div class="views">{panes}</div>'
        f"{_context(post.context)}</div></div></article>"
    )


def _errors(post: EvaluatedPost, views: Sequence[str]) -> int:
    """The errors of the shown views; a gold and a predicted entity that `match` pairs are one error."""
    return sum(kind != "correct" for view in views for *_, kind in match(post.gold, post.views.get(view, {})))


def _pane(post: EvaluatedPost, view: str) -> str:
    predicted: Mapping[Span, float] = post.views.get(view, {})
    gold_at, predicted_at = (_at_each_word(spans, len(post.words)) for spans in (post.gold, predicted))
    pieces = []
    for entity, start, end in _runs(predicted_at, 0, len(post.words)):
        words = " ".join(
            _gold(post, gold, first, last, predicted, "missed" if entity is None else "in gold")
            for gold, first, last in _runs(gold_at, start, end)
        )
        pieces.append(words if entity is None else _mark(words, entity, predicted[entity], entity in post.gold))
    # Entities hidden by overlapping ones are appended.
    for entity in sorted(set(predicted) - set(predicted_at)):
        words = html_text(" ".join(post.words[entity.start : entity.end]))
        pieces.append(_mark(words, entity, predicted[entity], entity in post.gold))
    return f'<p dir="auto">{" ".join(pieces)}</p>'


def _gold(
    post: EvaluatedPost, gold: Span | None, first: int, last: int, predicted: Collection[Span], fate: str
) -> str:
    """Words within or outside one gold entity; `fate` is what became of it, if the view did not find it."""
    words = html_text(" ".join(post.words[first:last]))
    if gold is None:
        return words
    missed = f' <span class="missed">{html_text(gold.type)} {fate}</span>' if gold not in predicted else ""
    return f"<u>{words}</u>{missed if last == gold.end else ''}"


def _mark(words: str, entity: Span, score: float, right: bool) -> str:
    label = f"{'' if right else '✗ '}{html_text(entity.type)} {score:.2f}"
    return f'<mark class="{"right" if right else "wrong"}">{words} <small>{label}</small></mark>'


def _at_each_word(spans: Collection[Span], words: int) -> list[Span | None]:
    """The span that each word is in; of overlapping spans, the one that begins first."""
    at: list[Span | None] = [None] * words
    for span in sorted(spans, key=lambda span: (span.start, -span.end, span.type)):
        if all(owner is None for owner in at[span.start : span.end]):
            at[span.start : span.end] = [span] * len(at[span.start : span.end])
    return at


def _runs(at: Sequence[Span | None], start: int, end: int) -> Iterator[tuple[Span | None, int, int]]:
    for span, words in groupby(range(start, end), key=lambda i: at[i]):
        run = list(words)
        yield span, run[0], run[-1] + 1


def _context(context: Mapping[str, Sequence[str]]) -> str:
    kinds = "".join(
        f"<div><dt>{html_text(kind)}</dt>" + "".join(f'<dd dir="auto">{html_text(s)}</dd>' for s in strings) + "</div>"
        for kind, strings in context.items()
        if strings
    )
    return kinds and f'<dl class="context">{kinds}</dl>'
