"""The figure of a model card: scores by view, calibration, and the training curve."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hub_card.report.report import complete_report, counts_of, split_scores
from hub_card.scores.intervals import bootstrap_f1
from hub_card.scores.views import MAIN_VIEWS, VIEWS, look, view_title
from modeling_ita.whole_files import written_file

_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold"}
_LEGEND: dict[str, Any] = {"fontsize": 9, "edgecolor": "none", "framealpha": 0.9}


def card_figure(report: Mapping[str, Any], path: str | os.PathLike[str], split: str = "test") -> None:
    """Draw the F1 of every view with its interval, the reliability of the scores, and F1 on valid by epoch.

    Args:
        report: a report of a run; a panel for which it has nothing is left out.
        path: where the picture goes; the suffix gives the format (`.png`).
        split: the split whose scores are shown.

    Raises:
        ValueError: the report has no scores on this split.
    """
    report = complete_report(report)
    scores, evaluations = split_scores(report, split), report["history"]["evaluations"]
    views = report["calibration"][split]["views"] if split in report["calibration"] else {}
    panels: list[Callable[[Axes], None]] = [lambda axes: _draw_views(axes, scores, split)]
    if any(row["entities"] for view in MAIN_VIEWS if view in views for row in views[view]["reliability"][1]):
        panels.append(lambda axes: _draw_reliability(axes, views, split))
    if evaluations:
        panels.append(lambda axes: _draw_epochs(axes, evaluations))
    with rc_context({"text.parse_math": False}):  # a dollar sign in a name does not start a formula
        figure = Figure(figsize=(4.2 * len(panels), 3.7), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes)
            axes.spines[["top", "right"]].set_visible(False)
        with written_file(path) as part:
            figure.savefig(part)


def _draw_views(axes: Axes, scores: Mapping[str, Any], split: str) -> None:
    axes.set_title(f"Entity F1 on {split}", **_TITLE)
    for row, (view, scored) in enumerate(scores.items()):
        f1, counts = 100 * scored["lenient"]["f1"], counts_of(scored)
        axes.barh(row, f1, color=look(view).colour, height=0.6)
        end = f1
        if counts is not None:
            low, high = (100 * bound for bound in bootstrap_f1(counts))
            axes.plot([low, high], [row, row], color="0.15", linewidth=1.6, marker="|", markersize=9)
            end = max(f1, high)
        axes.text(end + 2, row, f"{f1:.1f}", va="center", fontsize=11)
    axes.set_yticks(range(len(scores)), [view_title(view) for view in scores])
    axes.invert_yaxis()
    axes.set_xlim(0, 112)  # room for the number behind a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("F1, % (lenient), and 95 % of draws of posts")


def _draw_reliability(axes: Axes, views: Mapping[str, Any], split: str) -> None:
    axes.set_title(f"Scores and truth on {split}", **_TITLE)
    axes.plot([0, 100], [0, 100], color="0.6", linestyle=":", linewidth=1, label="a score of 70 % is right in 70 %")
    for view in (view for view in MAIN_VIEWS if view in views):
        filled = [row for row in views[view]["reliability"][1] if row["entities"]]
        total = sum(row["entities"] for row in filled)
        at, right = [100 * row["score"] for row in filled], [100 * row["accuracy"] for row in filled]
        axes.plot(at, right, color=look(view).colour, linewidth=1.6, label=view_title(view))
        sizes = [20 + 220 * row["entities"] / max(total, 1) for row in filled]
        axes.scatter(at, right, s=sizes, c=look(view).colour, marker=look(view).marker)
    axes.set_xlabel("mean score of entities, %")
    axes.set_ylabel("of them correct, %")
    axes.set_xlim(-4, 104)
    axes.set_ylim(-4, 104)
    axes.legend(**_LEGEND, loc="upper left")


def _draw_epochs(axes: Axes, evaluations: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("F1 on valid", **_TITLE)
    for view in VIEWS:
        points = [(row["epoch"], 100 * row[view]) for row in evaluations if row.get(view) is not None]
        if points:
            drawn: dict[str, Any] = {"color": look(view).colour, "marker": look(view).marker, "markersize": 5}
            axes.plot(*zip(*points, strict=True), **drawn, label=view_title(view))
    best = [row["epoch"] for row in evaluations if row.get("best")]
    if best:
        axes.axvline(best[-1], color="0.35", linestyle="--", linewidth=1, zorder=0, label=f"kept: epoch {best[-1]:g}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("F1, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="0.92")
    axes.legend(**_LEGEND, loc="lower right")
