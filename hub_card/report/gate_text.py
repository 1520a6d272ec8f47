"""What a report says of the image gate, in plain sentences for the page, the card and the terminal."""

from __future__ import annotations

from hub_card.predictions.image_gate import READS_NONE, TOLERANCE, ImageGate
from hub_card.report.report import Report


def gate_sentences(report: Report) -> list[str]:
    """What reading images is worth on the validation split, and what the fitted threshold gives on the test split.

    Returns:
        Sentences of letters, digits and punctuation that mean nothing in HTML or Markdown; none if the report has no
        gate.
    """
    gates = report["image_gate"]
    if "validation" not in gates:
        return []
    sentences = [_fitted(gates["validation"])]
    if "test" in gates:
        sentences.append(_measured(gates["test"]))
    return sentences


def share_text(share: float) -> str:
    """A share of images, `30 %`; only none is 0 % and only all are 100 %."""
    percent = round(100 * share)
    if share > 0 and percent == 0:
        return "less than 1 %"
    if share < 1 and percent == 100:
        return "more than 99 %"
    return f"{percent} %"


def _fitted(gate: ImageGate) -> str:
    none, chosen, all_read = (_f1(gate[point]["f1"]) for point in ("none", "chosen", "all"))
    if not gate["is_worth_it"]:
        return (
            f"On validation the picture was worth nothing: T {none}, I+T {all_read}; the post alone is labelled at"
            " least as well, and no picture needs to be read."
        )
    worth = f"{100 * TOLERANCE:.1f} points"
    share = gate["chosen"]["share"]
    if gate["threshold"] >= READS_NONE:
        return (
            f"Reading none of the pictures gives F1 {none}; reading all {all_read} (validation): no more than {worth}"
            " apart, so no picture needs to be read."
        )
    if share == 1:
        return (
            f"Reading all of the pictures gives F1 {all_read}, none {none} (validation): fewer cost more than {worth}."
        )
    return (
        f"Reading {share_text(share)} of the pictures gives F1 {chosen}; reading all {all_read}, none {none}"
        " (validation)."
    )


def _measured(gate: ImageGate) -> str:
    none, chosen, all_read = (_f1(gate[point]["f1"]) for point in ("none", "chosen", "all"))
    if gate["chosen"]["share"] in (0, 1):
        read = "none" if gate["chosen"]["share"] == 0 else "all"
        return f"On test the same threshold reads {read}: F1 with all {all_read}, with none {none}."
    share = share_text(gate["chosen"]["share"])
    return f"On test the same threshold reads {share} and gives F1 {chosen}; all {all_read}, none {none}."


def _f1(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
