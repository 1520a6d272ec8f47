"""The report of a labelling job: what was counted, what it cost, and what a score is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modeling_ita.pipeline_ita import IMAGE_STATES

EXAMPLES = 3
READ = ("read", "stored")


def label_report(counts: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The report of a job, as JSON values.

    Args:
        counts: those of every shard, as `ShardLabeller` returns them.
        now: those of the shards that were labelled just now.

    Returns:
        `rows`, `failed` (rows with an error), `rows_with_entities`, `entities` (by type), `image_states`,
        `images_read` (pictures that an aligner has read; not those that the model itself looks at), `share_read` (of
        the rows with a picture, those whose picture took part), `errors` and `faults` (examples of failed rows and of
        unreadable pictures), and
        `cost`: CPU seconds `per_post` and `per_image`, over the `rows` and `images` of this run; None without any.
    """
    entities: Counter[str] = Counter()
    states: Counter[str] = Counter()
    totals = dict.fromkeys(("rows", "failed", "rows_with_entities", "images_read"), 0)
    examples: dict[str, list[str]] = {"errors": [], "faults": []}
    for one in counts:
        entities.update(one["entities"])
        states.update(one["image_states"])
        for name in totals:
            totals[name] += one[name]
        for name, kept in examples.items():
            kept += list(one[name])[: EXAMPLES - len(kept)]
    with_image = sum(states.values()) - states["none"]
    return {
        **totals,
        "entities": dict(sorted(entities.items())),
        "image_states": {state: states[state] for state in IMAGE_STATES},
        "share_read": sum(states[state] for state in READ) / with_image if with_image else None,
        **examples,
        "cost": _cost(list(now)),
    }


def _cost(now: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows, images = sum(one["rows"] for one in now), sum(one["images_read"] for one in now)
    seconds = {name: sum(one["seconds"].get(name, 0.0) for one in now) for name in ("posts", "images")}
    return {
        "rows": rows,
        "images": images,
        "per_post": seconds["posts"] / rows if rows else None,
        "per_image": seconds["images"] / images if images else None,
    }


def report_text(report: Mapping[str, Any], points: Sequence[Mapping[str, str]] = ()) -> str:
    """The report as text.

    Args:
        report: see `label_report`.
        points: what a score threshold is worth, from the model's card.
    """
    lines = [f"{report['rows']:,} rows, {report['rows_with_entities']:,} of them with entities"]
    total = sum(report["entities"].values())
    by_type = ", ".join(f"{count:,} {kind}" for kind, count in report["entities"].items())
    lines.append(f"{total:,} entities{': ' if by_type else ''}{by_type}")
    states = {state: count for state, count in report["image_states"].items() if count}
    if set(states) - {"none"}:
        lines.append("pictures: " + ", ".join(f"{count:,} {_STATE.get(s, s)}" for s, count in states.items()))
        lines.append(f"{100 * report['share_read']:.1f} % of the posts with a picture were labelled with it")
    cost = report["cost"]
    if cost["per_post"] is not None:
        image = "" if cost["per_image"] is None else f", {cost['per_image']:.2f} an image read"
        lines.append(f"CPU seconds: {cost['per_post']:.4f} a post{image} (over {cost['rows']:,} rows)")
    if report["failed"]:
        lines.append(f"{report['failed']:,} rows were not labelled, their column error says why:")
        lines += [f"    {example}" for example in report["errors"]]
    if report["faults"]:
        lines.append("pictures that could not be used:")
        lines += [f"    {example}" for example in report["faults"]]
    if points:
        lines.append("what a threshold is worth (the model's card, on its validation posts):")
        lines += [f"    {', '.join(f'{name} {value}' for name, value in point.items())}" for point in points]
    return "\n".join(lines)


_STATE = {"none": "without", "stored": "from the store"}
