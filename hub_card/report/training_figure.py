"""The figure of a run: its training curves, and the scores of each view."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from hub_card.report.report import complete_report
from hub_card.report.runs import shared_signatures
from hub_card.scores.views import PALETTE, VIEWS, look, view_title
from modeling_ita.whole_files import written_file

# Each loss has the colour of the view that it trains.
_LOSSES = {
    "text_loss": ("T: text alone", look("T").colour),
    "cross_loss": ("I+T: image and text", look("I+T").colour),
    "cva_loss": ("CVA: alignment of the two", PALETTE["green"]),
    "main_loss": ("tags", PALETTE["vermillion"]),
    "aux_loss": ("spans (auxiliary)", PALETTE["green"]),
}
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold"}
_LEGEND: dict[str, Any] = {"fontsize": 9, "edgecolor": "none", "framealpha": 0.9}
_SMOOTHED_FROM = 30  # Fewer points are drawn as they are.


def training_figure(report: Mapping[str, Any], path: str | os.PathLike[str], split: str = "test") -> None:
    """Draw a run's losses, its F1 on valid by epoch, and its F1 on a split by view with the signature of the scores.

    Args:
        report: a report as `hub_card.evaluation.make_report` makes it. Losses and views that a run does not have
            are left out; a panel with nothing to show says so.
        path: where the picture goes; the suffix gives the format (`.png`).
        split: the split whose scores the bars show.
    """
    report = complete_report(report)
    figure = Figure(figsize=(13, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    losses, valid, bars = figure.subplots(1, 3, width_ratios=(1.25, 1.1, 1.0))
    _draw_losses(losses, report["history"]["steps"])
    _draw_valid(valid, report["history"]["evaluations"])
    _draw_bars(bars, report["scores"].get(split, {}), split)
    for axes in (losses, valid, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(report["name"], x=0.01, ha="left", fontsize=13)
    if split in report["scores"]:
        figure.supxlabel("\n".join(shared_signatures([report], split)), fontsize=7, family="monospace", color="0.35")
    with written_file(path) as part:
        figure.savefig(part)


def _draw_losses(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Training losses", **_TITLE)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats per post, log scale)")
    for name, (label, colour) in _LOSSES.items():
        points = [(step["step"], step[name]) for step in steps if _positive(step.get(name))]
        if not points:
            continue
        at, values = zip(*points, strict=True)
        smooth = len(values) >= _SMOOTHED_FROM
        axes.plot(at, values, color=colour, alpha=0.25 if smooth else 1.0, linewidth=0.8 if smooth else 1.8)
        axes.plot(at, _running_mean(values) if smooth else values, color=colour, linewidth=1.8, label=label)
    if not axes.lines:
        _say(axes, "no losses recorded")
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="0.92")
    axes.legend(**_LEGEND)


def _draw_valid(axes: Axes, evaluations: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("F1 on valid", **_TITLE)
    axes.set_xlabel("epoch")
    axes.set_ylabel("entity F1 (%, lenient)")
    for view in VIEWS:
        points = [(row["epoch"], 100 * row[view]) for row in evaluations if row.get(view) is not None]
        if points:
            drawn: dict[str, Any] = {"color": look(view).colour, "marker": look(view).marker, "markersize": 5}
            axes.plot(*zip(*points, strict=True), **drawn, label=view_title(view))
    if not axes.lines:
        _say(axes, "no evaluations recorded")
        return
    best = [row["epoch"] for row in evaluations if row.get("best")]
    if best:
        axes.axvline(best[-1], color="0.35", linestyle="--", linewidth=1, zorder=0, label=f"kept: epoch {best[-1]:g}")
    epochs = [row["epoch"] for row in evaluations]
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="0.92")
    axes.legend(**_LEGEND, loc="lower right")


def _draw_bars(axes: Axes, scores: Mapping[str, Any], split: str) -> None:
    axes.set_title(f"F1 on {split} by view", **_TITLE)
    axes.set_ylabel("entity F1 (%, lenient)")
    if not scores:
        _say(axes, f"no scores on {split}")
        return
    bars = axes.bar(
        [view_title(view).replace(" ", "\n") for view in scores],
        [100 * view["lenient"]["f1"] for view in scores.values()],
        color=[look(view).colour for view in scores],
        width=0.6,
    )
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=11)
    axes.set_ylim(0, 108)  # room for the label over a full bar
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.6, max(len(scores), 3) - 0.4)  # so that a single bar does not fill the panel
    entities = max(view["lenient"]["gold"] for view in scores.values())
    axes.set_xlabel(f"what the model sees ({entities:,} entities to find)")


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours, over a tenth of the curve and less at its ends."""
    reach = max(1, len(values) // 20)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _say(axes: Axes, message: str) -> None:
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set_xticks([])
    axes.set_yticks([])
