"""Two reports side by side: whether their scores may be compared, and by how much they differ."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hub_card.report.report import Report, counts_of, format_f1, signature_of, split_scores
from hub_card.report.text_table import aligned
from hub_card.scores.intervals import Interval, bootstrap_difference
from hub_card.scores.scores import ViewReport
from hub_card.scores.signature import Signature, shared_lines
from hub_card.scores.views import view_title


@dataclass(frozen=True)
class Comparison:
    """The comparison of two lenient F1 scores, A and B.

    Attributes:
        names: the names of the two runs.
        views: the view of each.
        f1: each F1 in percent with its interval over posts, `67.8 [58.9, 76.0]`.
        signatures: what each was measured on; None for a report of an older version.
        incomparable: why they do not measure the same thing, in words; empty if they are comparable.
        different: what else differs, in words.
        posts: how many posts they are paired over; None if they cannot be paired.
        difference: F1 of A minus that of B, a fraction; None if they are not comparable and `force` was not set.
        interval: of the difference, 95 % of 10,000 draws of posts; None without a pairing.
        p_value: probability of a difference this large from the choice of posts alone; None without a pairing.
    """

    names: tuple[str, str]
    views: tuple[str, str]
    f1: tuple[str, str]
    signatures: tuple[Signature | None, Signature | None]
    incomparable: list[str]
    different: list[str]
    posts: int | None = None
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None


def compare_reports(
    first: Report,
    second: Report,
    split: str = "test",
    views: tuple[str, str] = ("I+T", "I+T"),
    force: bool = False,
) -> Comparison:
    """Compare the lenient F1 of two runs, or of two views of one, on the same posts.

    Args:
        first: the report of A.
        second: the report of B.
        split: the split whose scores are compared.
        views: the view of A and that of B.
        force: whether to compute the difference even if the scores are not comparable.

    Returns:
        The comparison. A difference has an interval only if both reports count the entities of the same posts.

    Raises:
        ValueError: a report has no scores on this split in this view, or holds a broken signature.
    """
    reports = (first, second)
    scored = [_scored(report, split, view) for report, view in zip(reports, views, strict=True)]
    a, b = (signature_of(report, split, view) for report, view in zip(reports, views, strict=True))
    incomparable, different = a.differences(b) if a and b else ([], [])
    for report, signature in zip(reports, (a, b), strict=True):
        if signature is None:
            incomparable.append(f"the report {report['name']!r} has no signature: measure it again with this version")
    counts = [counts_of(view) for view in scored]
    same_posts = len({view["post_counts"]["sha256"] for view in scored if "post_counts" in view}) == 1
    if None not in counts and not same_posts and not incomparable:
        incomparable.append("other posts, another order of them or other gold entities (their checksums differ)")
    comparison = Comparison(
        names=(first["name"], second["name"]),
        views=views,
        f1=(format_f1(scored[0]), format_f1(scored[1])),
        signatures=(a, b),
        incomparable=incomparable,
        different=different,
    )
    if incomparable and not force:
        return comparison
    if counts[0] is None or counts[1] is None or not same_posts:
        difference = scored[0]["lenient"]["f1"] - scored[1]["lenient"]["f1"]
        return replace(comparison, difference=difference)
    difference, low, high, p_value = bootstrap_difference(counts[0], counts[1])
    return replace(
        comparison,
        posts=len(counts[0]),
        difference=difference,
        interval=Interval(low, high),
        p_value=p_value,
    )


def format_comparison(comparison: Comparison) -> str:
    """A comparison as text: both scores, the verdict with its reasons, the difference, the signatures."""
    rows = [["", "view", "F1"]]
    for letter, name, view, f1 in zip("AB", comparison.names, comparison.views, comparison.f1, strict=True):
        rows.append([f"{letter}  {name}", view_title(view), f1])
    lines = [*aligned(rows), "not comparable:" if comparison.incomparable else "comparable"]
    lines += [f"- {reason}" for reason in comparison.incomparable]
    if comparison.different:
        lines.append("what differs: " + "; ".join(comparison.different))
    if comparison.difference is not None:
        lines.append(_format_difference(comparison))
    a, b = comparison.signatures
    shared = shared_lines([a, b]) if a and b else []
    if len(shared) == 1:
        return "\n".join([*lines, *shared])
    return "\n".join([*lines, f"A: {a or 'no signature'}", f"B: {b or 'no signature'}"])


def _scored(report: Report, split: str, view: str) -> ViewReport:
    views = split_scores(report, split)
    if view not in views:
        held = ", ".join(views) or "none"
        raise ValueError(f"the report {report['name']!r} has no scores on {split!r} in view {view!r} (it has: {held})")
    return views[view]


def _format_difference(comparison: Comparison) -> str:
    text = f"A − B: {100 * (comparison.difference or 0.0):+.1f}"
    if comparison.interval is None or comparison.p_value is None:
        return f"{text}, no interval: the two cannot be paired post by post"
    low, high = (100 * end for end in comparison.interval)
    p = "p < 0.001" if comparison.p_value < 0.001 else f"p = {comparison.p_value:.3f}"
    return f"{text} [{low:+.1f}, {high:+.1f}], paired over {comparison.posts:,} posts, {p}"
