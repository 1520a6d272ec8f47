"""The report of a context build: counts, examples and faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dataset_scripts.contexts.align_images import Record
from dataset_scripts.contexts.context_preview import Card
from dataset_scripts.contexts.placeholders import placeholder_groups
from modeling_ita.context_builder import ExaminedImage, VisualContextBuilder

STATES = ("built", "stored", "missing", "unreadable", "blank", "placeholder")


def placeholders(records: Sequence[Record], copies: int) -> set[int]:
    """The numbers of the records whose image is a placeholder: see `dataset_scripts.contexts.placeholders`."""
    plain = [record for record in records if record.state == "readable" and record.detail]
    one_an_id = list({record.id: record for record in plain}.values())
    groups = placeholder_groups([record.detail for record in one_an_id], copies)
    ids = {one_an_id[place].id for group in groups for place in group}
    return {record.number for record in plain if record.id in ids}


def summary(records: Sequence[Record], builder: VisualContextBuilder, copies: int) -> tuple[dict[str, Any], list[str]]:
    """The final report, and for every record one of `STATES`.

    The report counts all `images`, and how many of them were `built` (processed by an aligner in this run), `stored`,
    `missing`, `unreadable`, `blank` and `placeholder`. It also has the number of `distinct` images by content;
    `ids_repeated` (the output holds the context of an id's last image); per kind, the images `with_text` and
    `without`, the number of `strings`, the aligner, and `examples`; and `faults`: id and reason for the first images
    without a context.
    """
    empty = placeholders(records, copies)
    states = [_state(record, empty) for record in records]
    built: set[str] = set()
    kinds: dict[str, Counter[str]] = {kind: Counter(with_text=0, without=0, strings=0) for kind in builder.aligners}
    examples: dict[str, list[str]] = {kind: [] for kind in builder.aligners}
    faults: list[str] = []
    for number, (record, state) in enumerate(zip(records, states, strict=True)):
        if state == "built" and record.sha256 in built:
            states[number] = "stored"  # its first copy was built
        built.add(record.sha256)
        image = _known(record, state, builder)
        if image is None:
            faults.append(f"{record.id}: {_fault(record, state)}")
            continue
        for kind, count in kinds.items():
            strings = image.alignments[kind].strings
            count.update(with_text=bool(strings), without=not strings, strings=len(strings))
            if strings and len(examples[kind]) < 3:
                examples[kind].append(f"{record.id}: {' | '.join(strings)}")
    report = {
        "images": len(records),
        **{state: states.count(state) for state in STATES},
        "distinct": len({record.sha256 for record in records if record.sha256}),
        "ids_repeated": len(records) - len({record.id for record in records}),
        "kinds": {
            kind: {**count, "aligner": builder.identities[kind], "examples": examples[kind]}
            for kind, count in kinds.items()
        },
        "faults": faults[:10],
    }
    return report, states


def report_text(report: Mapping[str, Any]) -> str:
    """Format the final report as text."""
    counts = ", ".join(f"{report[what]:,} {'from store' if what == 'stored' else what}" for what in STATES)
    lines = [f"{report['images']:,} images ({report['distinct']:,} different): {counts}"]
    if report["ids_repeated"]:
        lines.append(f"{report['ids_repeated']:,} images have the id of another: the last one's context is written")
    if report["placeholder"]:
        lines.append(
            f"{report['placeholder']:,} images are one plain picture under many ids and get no context "
            "(--placeholder_copies 0 keeps it)"
        )
    for kind, count in report["kinds"].items():
        lines.append(
            f"{kind}: {count['with_text']:,} images with text, {count['without']:,} without, "
            f"{count['strings']:,} strings, by {count['aligner']['model']}"
        )
        lines += [f"    {example}" for example in count["examples"]]
    if report["faults"]:
        lines += ["without a context:", *(f"    {fault}" for fault in report["faults"])]
    return "\n".join(lines)


def _state(record: Record, empty: set[int]) -> str:
    if record.state != "readable":
        return record.state
    return "placeholder" if record.number in empty else "built" if record.is_built else "stored"


def _known(record: Record, state: str, builder: VisualContextBuilder) -> ExaminedImage | None:
    return builder.stored(record.sha256) if state in ("built", "stored") else None


def _fault(record: Record, state: str) -> str:
    return f"{state}, {record.detail}" if state == "unreadable" else state


def _card(record: Record, state: str, builder: VisualContextBuilder) -> Card:
    image = _known(record, state, builder)
    if image is None:
        return Card(record.id, record.thumbnail, _fault(record, state), {})
    pairs = {kind: list(zip(a.strings, a.scores, strict=True)) for kind, a in image.alignments.items()}
    return Card(record.id, record.thumbnail, "", pairs)
