"""The report of a run as one HTML page that needs no network: scores, plots, errors, and the posts themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hub_card.predictions.calibration_report import ViewCalibration
from hub_card.predictions.image_gate import ImageGate
from hub_card.report import report_posts, svg_charts
from hub_card.report.gate_text import gate_sentences, share_text
from hub_card.report.report import Report, complete_report, counts_of, format_f1, signatures_of, split_scores
from hub_card.report.svg_charts import Series, bar_chart, line_chart
from hub_card.scores.errors import ErrorAnalysis, EvaluatedPost
from hub_card.scores.intervals import bootstrap_difference
from hub_card.scores.signature import shared_lines
from hub_card.scores.views import IMAGE, SIDE_BY_SIDE, look, side_by_side, view_title
from modeling_ita.markup import html_page, html_text
from modeling_ita.tag_scheme import OUTSIDE
from modeling_ita.whole_files import write_text

_LOSSES = {
    "text_loss": ("T: text alone", "var(--blue)", ""),
    "cross_loss": ("I+T: image and text", "var(--vermillion)", "7 3"),
    "cva_loss": ("CVA: alignment of the two", "var(--green)", "2 3"),
    "main_loss": ("tags", "var(--vermillion)", ""),
    "aux_loss": ("spans (auxiliary)", "var(--green)", "2 3"),
}
_ABLATIONS = {False: "Context, one kind removed", True: "Image and context, one of them removed"}
_MISSING = "–"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #696969; }
* { box-sizing: border-box; } [hidden] { display: none; }
body { background: #fff; color: #1c1c1c; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; }
@media (prefers-color-scheme: dark) { :root { --soft: #a0a0a0; } body { background: #16181c; color: #e4e4e4; } }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-top: 1px solid var(--line); padding-top: .8rem; }
.soft, th, .grid small { color: var(--soft); } .lead { font-size: 1.1rem; margin: .8rem 0; }
.signature, .sha, pre { font: .72rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; margin: .2rem 0; }
pre { white-space: pre-wrap; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .2rem; }
td, th { padding: .2rem .9rem .2rem 0; text-align: right; vertical-align: baseline; }
td, th { font-weight: normal; white-space: nowrap; }
th:first-child, td.left { text-align: left; } thead th { border-bottom: 1px solid var(--line); }
td small { display: block; color: var(--soft); } caption, td.left { white-space: normal; }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
.columns thead th { color: inherit; font-weight: 600; }
.columns thead small { color: var(--soft); font-weight: normal; }
.columns small { display: block; } .columns tr.main td { font-size: 1.35rem; line-height: 1.3; }
.columns small { font-size: .8rem; } .columns td, .columns th { padding-right: 1.4rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.8rem 2rem; }
.grid + .grid { margin-top: 1.8rem; } .grid > * { min-width: 0; }
.matrix td { text-align: center; padding: .4rem .6rem; border: 1px solid var(--line); }
.matrix th { padding: .3rem .6rem; } .matrix thead th { text-align: center; border: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media (max-width: 40rem) {
  td, th, .matrix td, .matrix th { font-size: .8rem; padding: .2rem .45rem .2rem 0; } thead th { white-space: normal; }
  .matrix td, .matrix th { padding: .35rem .4rem; } th:first-child { white-space: normal; }
  .columns td, .columns th { padding-right: .35rem; } .columns small { font-size: .62rem; }
  .columns tr.main td { font-size: 1.1rem; }
}
"""


def write_page(
    report: Mapping[str, Any],
    posts: Mapping[str, Sequence[EvaluatedPost]],
    path: str | os.PathLike[str],
    split: str = "test",
    limit: int = 2000,
) -> None:
    """Write the page of a report; a reader of `path` sees the old page or the whole new one, never a part.

    The page holds its style, its script and its pictures, and forbids the browser to load anything else. The page
    omits what the report lacks, as reports of older versions do.

    Args:
        report: a report as `make_report` makes it, with `ablation`, `errors` and `calibration` if it
            was made by an evaluation.
        posts: by split, the posts with what was predicted; a split that is not there is shown without posts.
        path: the HTML file.
        split: the split that is shown.
        limit: how many posts the page shows at most, those with the most errors first; the others are counted.

    Raises:
        ValueError: the report has no scores on this split, or `limit` is negative.
    """
    if limit < 0:
        raise ValueError(f"limit is {limit} (expected the number of posts to show, 0 or more)")
    report, split_posts = complete_report(report), posts.get(split, ())
    sections = {
        "What an image is worth": _columns(report, split),
        _ABLATIONS[_of_image(report, split)]: _ablation(report, split),
        "How many pictures must be read": _image_gate(report, split),
        "Types": _types(report, split),
        "Training": _training(report),
        "Calibration": _calibration(report, split),
        "Errors": _errors(report, split),
        "Posts": report_posts.post_cards(split_posts, limit) if split_posts else "",
        "Provenance": _provenance(report),
    }
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections.items() if content)
    script = report_posts.SCRIPT if split_posts else ""
    created = f" · {html_text(report['created'])}" if report["created"] else ""
    head = f'<h1>{html_text(report["name"])}</h1><div class="soft">{html_text(split)}{created}</div>\n'
    style = svg_charts.STYLE + _STYLE + report_posts.STYLE
    write_text(path, html_page(f"{report['name']}: {split}", style, head + body, script))


def _columns(report: Report, split: str) -> str:
    scores: Mapping[str, Any] = split_scores(report, split)
    views = side_by_side(scores)
    heads = [f"{html_text(_head(v))}<small>{html_text(view_title(v))}</small>" for v in views]
    rows: list[tuple[str, list[str]]] = [("F1", [_with_small(format_f1(scores[view])) for view in views])]
    for key, name in (("precision", "P"), ("recall", "R")):
        rows.append((name, [_percent(scores[view]["lenient"][key]) for view in views]))
    rows.append(("strict F1", [_percent(scores[view]["strict"]["f1"]) for view in views]))
    lead = ""
    if "I+T" in scores and len(views) > 1:
        gaps = {view: _difference(scores["I+T"], scores[view]) for view in views if view != "I+T"}
        rows.append(("gap to I+T", [_with_small(gaps[view]) if view in gaps else _MISSING for view in views]))
        worth = [
            f"<b>{gap}</b> over {'the ' if view != 'T' else ''}{html_text(_head(view))}" for view, gap in gaps.items()
        ]
        lead = f'<p class="lead">In points of F1, the right image is worth {", ".join(worth)}.</p>'
    body = "".join(
        f"<tr{' class=main' if name == 'F1' else ''}><th>{name}</th>"
        + "".join(f"<td>{c}</td>" for c in cells)
        + "</tr>"
        for name, cells in rows
    )
    lost = "".join(
        f"<p>{html_text(view_title(view))}: {scores[view]['lost_words']:,} words with"
        f" {scores[view]['lost_entities']:,} entities were never seen by the model and count as missed.</p>"
        for view in views
        if scores[view].get("lost_words")
    )
    sizes = {f"{scored['posts']:,} posts, {scored['lenient']['gold']:,} entities" for scored in scores.values()}
    note = "In percent; [95 % of 10,000 draws of posts]."
    lines = shared_lines(signatures_of(report, split))
    signatures = "".join(f'<p class="signature soft">{html_text(line)}</p>' for line in lines)
    return (
        f'{lead}<div class="scroll"><table class="columns"><thead><tr><th></th>'
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="soft">{" / ".join(sorted(sizes))}. {note}</p>{lost}{signatures}'
    )


def _ablation(report: Report, split: str) -> str:
    removed = report["ablation"].get(split, {})
    if not removed.keys() - {IMAGE}:  # removing only the image leaves the view T
        return ""
    of_image = _of_image(report, split)
    whole = split_scores(report, split).get("I+T")
    rows = [["all" if of_image else "all kinds", format_f1(whole), ""]] if whole else []
    for kind, scored in removed.items():
        rows.append([f"without {kind}", format_f1(scored), _difference(scored, whole) if whole else ""])
    fractions = {
        row[0]: {"I+T": scored["lenient"]["f1"]}
        for row, scored in zip(rows, [*([whole] if whole else []), *removed.values()], strict=True)
    }
    table = _table("", ["I+T", "F1", "change"], rows)
    note = '<p class="soft">Without the image itself its context is still there, and the reverse.</p>' * of_image
    return f'<div class="grid">{table}{bar_chart("F1 of I+T", fractions, {"I+T": look("I+T").css})}</div>{note}'


def _image_gate(report: Report, split: str) -> str:
    sentences = gate_sentences(report)
    if not sentences:
        return ""
    gates = report["image_gate"]
    charts = "".join(_gate_chart(name, gates[name]) for name in dict.fromkeys(("validation", split)) if name in gates)
    threshold = gates["validation"]["threshold"]
    how = (
        "The posts of which the view T is least sure come first; the shade is 95 % of 10,000 draws of posts. With"
        ' read_images="unsure" the pipeline reads the pictures of posts whose least confidence exceeds image_gate,'
        f" {threshold:.3g} as fitted on validation. Posts without a picture or context are always"
        " labelled alone and do not count."
    )
    return (
        f'<p>{html_text(" ".join(sentences))}</p><div class="grid">{charts}</div><p class="soft">{html_text(how)}</p>'
    )


def _gate_chart(split: str, gate: ImageGate) -> str:
    curve, chosen = gate["curve"], gate["chosen"]
    line = Series(
        "F1",
        [(100 * point["share"], 100 * point["f1"]) for point in curve],
        look("I+T").css,
        band=[
            (100 * point["share"], 100 * point["low"], 100 * point["high"])
            for point in curve
            if point["low"] is not None and point["high"] is not None
        ],
    )
    name = f"image_gate: {share_text(chosen['share'])} read"
    mark = Series(name, [(100 * chosen["share"], 100 * chosen["f1"])], look("T").css, radii=[5.0])
    title = f"F1 by the share of pictures read, {split}"
    return line_chart(title, [line, mark], "pictures read, %", "F1, %", x_range=(0, 100))


def _of_image(report: Report, split: str) -> bool:
    """Whether the model takes the image itself, which the ablation then removes like a kind of context."""
    return IMAGE in report["ablation"].get(split, {})


def _types(report: Report, split: str) -> str:
    scores: Mapping[str, Any] = split_scores(report, split)
    views = side_by_side(scores)
    types = sorted({kind for view in views for kind in scores[view]["lenient"].get("types", {})})
    bars = {
        kind: {
            view_title(view): scores[view]["lenient"]["types"][kind]["f1"]
            for view in views
            if kind in scores[view]["lenient"].get("types", {})
        }
        for kind in types
    }
    colours = {view_title(view): look(view).css for view in views}
    confusion = ""
    if found := _shown(report["errors"].get(split, {})):
        view = found[-1]
        confusion = _matrix(f"Gold and predicted types, {view_title(view)}", report["errors"][split][view])
    content = bar_chart("F1 by type", bars, colours) + confusion
    return content and f'<div class="grid">{content}</div>'


def _matrix(title: str, analysis: ErrorAnalysis) -> str:
    table = analysis["confusion"]
    if not table:
        return ""
    names = list(dict.fromkeys([*table, *(name for row in table.values() for name in row)]))
    names.sort(key=lambda name: name == OUTSIDE)
    rows = []
    for gold in names:
        counts = [table.get(gold, {}).get(predicted, 0) for predicted in names]
        cells = "".join(
            f'<td style="background: rgb(213 94 0 / {0.75 * n / max(sum(counts), 1):.2f})">{n:,}</td>'
            if predicted != gold
            else f'<td style="background: rgb(0 158 115 / {0.75 * n / max(sum(counts), 1):.2f})">'
            f"{f'{n:,}' if gold != OUTSIDE or n else ''}</td>"
            for predicted, n in zip(names, counts, strict=True)
        )
        rows.append(f"<tr><th>{html_text('spurious' if gold == OUTSIDE else gold)}</th>{cells}</tr>")
    heads = "".join(f"<th>{html_text('missed' if name == OUTSIDE else name)}</th>" for name in names)
    return (
        f'<div><div class="scroll"><table class="matrix"><caption>{html_text(title)}</caption><thead><tr>'
        f"<th>gold ↓ predicted →</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="soft">Entities; the shade is the share of the row.</p></div>'
    )


def _training(report: Report) -> str:
    steps, evaluations = report["history"]["steps"], report["history"]["evaluations"]
    losses = [
        Series(name, points, colour, dashes)
        for key, (name, colour, dashes) in _LOSSES.items()
        if (points := [(s["step"], s[key]) for s in steps if (s.get(key) or 0) > 0])
    ]
    views = [view for view in SIDE_BY_SIDE if any(row.get(view) is not None for row in evaluations)]
    lines = []
    for view in views:
        points = [(row["epoch"], 100 * row[view]) for row in evaluations if row.get(view) is not None]
        lines.append(Series(view_title(view), points, *_look(view), radii=[3.0] * len(points)))
    content = line_chart("Training losses", losses, "optimiser step", "nats per post, log scale", log=True)
    content += line_chart("F1 on valid", lines, "epoch", "F1, %")
    return content and f'<div class="grid">{content}</div>'


def _calibration(report: Report, split: str) -> str:
    calibration = report["calibration"].get(split)
    if calibration is None or not calibration["views"]:
        return ""
    views = calibration["views"]
    order = side_by_side(views)
    parts = [_reliability(view, views[view]) for view in _shown(views)]
    curves = []
    for view in order:
        curve = views[view]["risk_coverage"]
        pairs = zip(curve.get("coverage", ()), curve.get("risk", ()), strict=True)
        curves.append(Series(view_title(view), [(100 * c, 100 * r) for c, r in pairs], *_look(view)))
    title = "Risk and coverage: wrong entities among the surest"
    drawn = [curve for curve in curves if curve.points]
    parts.append(line_chart(title, drawn, "entities kept, %", "of them wrong, %", x_range=(0, 100)))
    rows = []
    for view in order:
        row = views[view]
        changes = [" → ".join(map(_percent, errors)) for errors in (row["ece"], row["brier"])]
        rows.append([view_title(view), f"{row['entities']:,}", *changes, _percent(row["aurc"])])
    head = ["view", "entities", "ECE", "Brier", "AURC"]
    tables = [_table("Before → after the temperature, in percent", head, rows)]
    points = [
        [
            view_title(view),
            _percent(point["precision"]),
            _MISSING if (threshold := point["threshold"]) is None else f"{threshold:.3f}",
            _percent(point["recall_kept"]),
            _percent(point["coverage"]),
        ]
        for view in _shown(views)
        for point in views[view]["operating_points"]
    ]
    if points:
        head = ["view", "precision, %", "score ≥", "recall kept, %", "coverage, %"]
        # Tell the reader that thresholds are chosen and measured on the same posts.
        tables.append(_table(f"A threshold for a wanted precision, chosen on {split}", head, points))
    notes = []
    if calibration["temperature"] is not None:
        notes.append(f"Temperature {calibration['temperature']:.3f}, fitted on valid.")
    signal = calibration["disagreement"]
    if signal.get("auroc") is not None:
        notes.append(
            f"Disagreement of the views finds the errors of I+T with AUROC {_percent(signal['auroc'])} % over"
            f" {signal['entities']:,} entities (50 is chance)."
        )
    plots = f'<div class="grid">{"".join(parts)}</div>' if any(parts) else ""
    return f'<p>{" ".join(notes)}</p>{plots}<div class="grid wide">{"".join(tables)}</div>'


def _reliability(view: str, calibration: ViewCalibration) -> str:
    before_after, errors = calibration["reliability"], calibration["ece"]
    lines = []
    looks = (("before", "var(--grey)", "4 3"), ("after", look(view).css, ""))
    for (name, colour, dashes), bins, error in zip(looks, before_after, errors, strict=False):
        filled = [row for row in bins if row["score"] is not None and row["accuracy"] is not None]
        total = sum(row["entities"] for row in filled) or 1
        lines.append(
            Series(
                f"{name}, ECE {_percent(error)}",
                [(100 * row["score"], 100 * row["accuracy"]) for row in filled],
                colour,
                dashes,
                radii=[2 + 8 * (row["entities"] / total) ** 0.5 for row in filled],
                opacity=0.85,
            )
        )
    if not any(line.points for line in lines):
        return ""
    diagonal = Series("", [(0, 0), (100, 100)], "var(--soft)", "1 4")
    title = f"Reliability, {view_title(view)}"
    ends = (0.0, 100.0)
    return line_chart(title, [diagonal, *lines], "mean score, %", "correct, %", x_range=ends, y_range=ends)


def _errors(report: Report, split: str) -> str:
    analyses = report["errors"].get(split, {})
    if not analyses:
        return ""
    order = side_by_side(analyses)
    shown = [view for view in order if view in _shown(analyses)]
    kinds = {view: analyses[view]["kinds"] for view in order if analyses[view]["kinds"]}
    parts = [_kind_table("Kinds, by view", "view", {view_title(view): row for view, row in kinds.items()})]
    for view in shown:
        parts.append(_kind_table(f"Kinds, by type, {view_title(view)}", "type", analyses[view]["by_type"]))
    surface = {
        f"{name} in train": {view: analyses[view]["surface"].get(name) for view in shown}
        for name in ("seen", "unseen")
    }
    parts.append(_group_table("Recall, by whether the name occurs in train", shown, surface, "recall"))
    contexts = dict.fromkeys(kind for view in shown for kind in analyses[view]["context"])
    context = {
        f"{side} {kind}": {view: analyses[view]["context"].get(kind, {}).get(side) for view in shown}
        for kind in contexts
        for side in ("with", "without")
    }
    parts.append(_group_table("F1, by context of the post", shown, context, "f1"))
    agreement = {
        f"{name}": {view: analyses[view]["agreement"].get(name) for view in shown} for name in ("agree", "disagree")
    }
    parts.append(_group_table("F1, by whether T and I+T predict the same", shown, agreement, "f1"))
    return f'<div class="grid wide">{"".join(parts)}</div>'


def _kind_table(title: str, first: str, rows: Mapping[str, Mapping[str, int]]) -> str:
    if not rows:
        return ""
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    heads = [first, *(kind.replace("_", " ").replace("boundary and type", "both") for kind in kinds)]
    return _table(title, heads, [[name, *(f"{row.get(kind, 0):,}" for kind in kinds)] for name, row in rows.items()])


def _group_table(
    title: str, views: Sequence[str], groups: Mapping[str, Mapping[str, Mapping[str, Any] | None]], score: str
) -> str:
    """A row for each group of entities, a column for each view."""
    rows = []
    for name, by_view in groups.items():
        found = [group for view in views if (group := by_view[view]) is not None]
        if found:
            # No score without entities: a zero would read as all of them wrong.
            cells = [
                _percent(group[score])
                if (group := by_view[view]) and (group["gold"] or group.get("predicted"))
                else _MISSING
                for view in views
            ]
            rows.append([name, f"{found[0]['gold']:,}", *cells])
    return _table(title, ["", "entities", *map(view_title, views)], rows) if rows else ""


def _provenance(report: Report) -> str:
    parts = []
    if data := report["data"]:
        rows = "".join(
            f'<tr><th>{html_text(name)}</th><td class="left">{html_text(_known_as(file))}</td>'
            f'<td class="left sha">{html_text(file.get("sha256", _MISSING))}</td></tr>'
            for name, file in data.items()
        )
        parts.append(f'<div class="scroll"><table><caption>Data, sha256</caption>{rows}</table></div>')
    if versions := report["versions"]:
        said = " · ".join(f"{html_text(name)} {html_text(version)}" for name, version in versions.items() if version)
        parts.append(f'<p class="soft">{said}</p>')
    if command := report["command"]:
        parts.append(f"<pre>{html_text(command)}</pre>")
    for title, content in (("What was counted on the way", report["counts"]), ("Settings", report["config"])):
        if content:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            parts.append(f"<details><summary>{title}</summary><pre>{html_text(text)}</pre></details>")
    return "".join(parts)


def _known_as(file: Mapping[str, Any]) -> str:
    known = file.get("known_as")
    return "" if known in (None, "unknown") else str(known)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html_text(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr><th>{html_text(row[0])}</th>{''.join(f'<td>{_with_small(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    caption = f"<caption>{html_text(title)}</caption>" if title else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """F1 of the first minus that of the second in points, with its interval where the posts can be paired."""
    a, b = counts_of(first), counts_of(second)
    if a is None or b is None or first["post_counts"].get("sha256") != second["post_counts"].get("sha256"):
        return f"{100 * (first['lenient']['f1'] - second['lenient']['f1']):+.1f}"
    found = bootstrap_difference(a, b)
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _with_small(cell: str) -> str:
    """A cell with its interval under the number."""
    number, bracket, interval = cell.partition(" [")
    return f"{html_text(number)}<small>[{html_text(interval)}</small>" if bracket else html_text(cell)


def _percent(fraction: float | None) -> str:
    return _MISSING if fraction is None else f"{100 * fraction:.1f}"


def _shown(views: Mapping[str, Any]) -> list[str]:
    return report_posts.shown_views(views)


def _head(view: str) -> str:
    return SIDE_BY_SIDE.get(view, view_title(view))


def _look(view: str) -> tuple[str, str]:
    return look(view).css, look(view).dashes
