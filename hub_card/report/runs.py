"""The runs that share a name: mean and standard deviation over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from hub_card.report.report import Report, signature_of, signatures_of, split_scores
from hub_card.scores.signature import Signature, shared_lines
from hub_card.scores.views import view_title


class Spread(TypedDict):
    """Mean and sample standard deviation (`None` for a single run) of a score over `n` runs."""

    mean: float
    sd: float | None
    n: int


def mean_and_sd(reports: Iterable[Report], split: str = "test") -> dict[str, dict[str, Spread]]:
    """Lenient F1 over the runs that share a name.

    Args:
        reports: the reports of all runs, in any order; names keep the order of their first report.
        split: the split whose scores are taken.

    Returns:
        For each name and view the mean, the sample standard deviation and the number of runs.

    Raises:
        ValueError: a report has no scores on this split, or runs of one name were measured on different data, or not
            alike, as their signatures say.
    """
    runs: dict[str, list[Report]] = {}
    for report in reports:
        runs.setdefault(report["name"], []).append(report)
    table: dict[str, dict[str, Spread]] = {}
    for name, group in runs.items():
        if any(_checksums(report) != _checksums(group[0]) for report in group):
            raise ValueError(f"the runs named {name!r} were measured on different data: their scores have no mean")
        _check_alike(name, group, split)
        f1s: dict[str, list[float]] = {}
        for report in group:
            for view, scored in split_scores(report, split).items():
                f1s.setdefault(view, []).append(scored["lenient"]["f1"])
        table[name] = {
            view: Spread(
                mean=statistics.fmean(values),
                sd=statistics.stdev(values) if len(values) > 1 else None,
                n=len(values),
            )
            for view, values in f1s.items()
        }
    return table


def _checksums(report: Report) -> list[str]:
    """The checksums of a run's data: the same files are the same data wherever they are stored."""
    return sorted(file["sha256"] for file in report["data"].values())


def _check_alike(name: str, group: Sequence[Report], split: str) -> None:
    for view in dict.fromkeys(view for report in group for view in split_scores(report, split)):
        signatures = [s for report in group if (s := signature_of(report, split, view)) is not None]
        for signature in signatures[1:]:
            if reasons := signatures[0].differences(signature).incomparable:
                problem = f"were not measured alike in view {view} ({'; '.join(reasons)})"
                raise ValueError(f"the runs named {name!r} {problem}: their scores have no mean")


def shared_signatures(reports: Iterable[Report], split: str = "test") -> list[str]:
    """The lines to print under a table of lenient F1 over several runs.

    Returns:
        One line if all runs were measured in the same way; otherwise the lines of each name, prefixed by that name.
        Nothing for reports without signatures.

    Raises:
        ValueError: a report has no scores on this split.
    """
    runs: dict[str, list[Signature]] = {}
    for report in reports:
        split_scores(report, split)
        runs.setdefault(report["name"], []).extend(signatures_of(report, split, ("lenient",)))
    of_all = shared_lines(signature for signatures in runs.values() for signature in signatures)
    if len(of_all) < 2 and all(runs.values()):
        return of_all
    return [f"{name}: {line}" for name, signatures in runs.items() for line in shared_lines(signatures)]


def format_mean_and_sd(table: Mapping[str, Mapping[str, Spread]]) -> str:
    """The result of `mean_and_sd` as a Markdown table: a row for each name, `mean ± sd (n)` in percent per view."""
    views = list(dict.fromkeys(view for row in table.values() for view in row))
    lines = [
        "| run | " + " | ".join(map(view_title, views)) + " |",
        "|---|" + "---|" * len(views),
    ]
    for name, row in table.items():
        cells = [_format_spread(row[view]) if view in row else "-" for view in views]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _format_spread(spread: Spread) -> str:
    deviation = "" if spread["sd"] is None else f" ± {100 * spread['sd']:.1f}"
    return f"{100 * spread['mean']:.1f}{deviation} ({spread['n']})"
