"""A contact sheet of images and their contexts, as one HTML file that needs no network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modeling_ita.markup import html_page, html_picture, html_text
from modeling_ita.whole_files import write_text

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; font: 15px/1.4 system-ui, sans-serif; }
h1 { font-size: 1.3rem; } table { border-collapse: collapse; } .scroll { overflow-x: auto; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; } th { color: var(--soft); font-weight: normal; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
main { margin-top: 1rem; }
article { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
article img { display: block; width: 100%; height: 13rem; object-fit: contain; background: #8882; }
article div { padding: .6rem .8rem; overflow-wrap: anywhere; } h2 { font-size: .9rem; margin: 0 0 .3rem; }
h3 { font-size: .75rem; margin: .5rem 0 0; color: var(--soft); font-weight: normal; }
ul { margin: 0; padding: 0; list-style: none; } li { display: flex; justify-content: space-between; gap: .6rem; }
.score { font-variant-numeric: tabular-nums; } .none, .fault, .score { color: var(--soft); }
.fault { padding: 1.5rem 0; margin: 0; }
"""


class Card(NamedTuple):
    """One image on the sheet.

    Attributes:
        id: the image's id.
        thumbnail: a data URI; empty if the image could not be opened.
        fault: why it has no context; empty if it can have one.
        strings: by kind, the strings with their scores.
    """

    id: str
    thumbnail: str
    fault: str
    strings: Mapping[str, Sequence[tuple[str, float]]]


def write_preview(
    path: str | os.PathLike[str],
    cards: Sequence[Card],
    aligners: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, int],
) -> None:
    """Write the sheet. It forbids the browser to load or run anything.

    Args:
        path: the HTML file.
        cards: the images.
        aligners: by kind, the identity of its aligner.
        counts: the outcome counts of all images; the cards may show only the first few.
    """
    said = "".join(
        f"<tr><th>{html_text(kind)}</th><td>{html_text(who['model'])}</td>"
        f"<td>{html_text(who['revision'] or '')}</td></tr>"
        for kind, who in aligners.items()
    )
    numbers = "".join(f"<tr><th>{html_text(what)}</th><td>{count:,}</td></tr>" for what, count in counts.items())
    body = f"""<h1>Visual contexts: {len(cards):,} of {counts["images"]:,} images</h1>
<div class="scroll"><table>{said}</table></div>
<details><summary>What became of the images</summary><table>{numbers}</table></details>
<main>{"".join(map(_card, cards))}</main>"""
    write_text(path, html_page("Visual contexts", _STYLE, body))


def _card(card: Card) -> str:
    source = html_picture(card.thumbnail)
    picture = f'<img loading="lazy" alt="{html_text(card.id)}" src="{source}">' if source else ""
    kinds = "".join(f"<h3>{html_text(kind)}</h3>{_strings(strings)}" for kind, strings in card.strings.items())
    fault = card.fault and f'<p class="fault">{html_text(card.fault)}</p>'
    return f"<article>{picture}<div><h2>{html_text(card.id)}</h2>{fault}{kinds}</div></article>"


def _strings(strings: Sequence[tuple[str, float]]) -> str:
    if not strings:
        return '<span class="none">nothing found</span>'
    rows = (f'<li>{html_text(text)} <span class="score">{score:.2f}</span></li>' for text, score in strings)
    return f"<ul>{''.join(rows)}</ul>"
