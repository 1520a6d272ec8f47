"""What is said of the image gate, for every way in which a fit can end."""

from __future__ import annotations

from typing import Any

import pytest

from hub_card.report.gate_text import gate_sentences, share_text
from hub_card.report.report import complete_report


def gate(none: float, chosen: tuple[float, float], every: float, threshold: float = 0.5) -> dict[str, Any]:
    """A gate of which no image, a share of them with its F1, or all are read."""
    points = {"none": (0.0, none), "chosen": chosen, "all": (1.0, every)}
    made: dict[str, Any] = {
        name: {"share": share, "threshold": threshold, "f1": f1, "low": None, "high": None}
        for name, (share, f1) in points.items()
    }
    curve = [made["none"], made["all"]]
    return made | {"posts": 9, "images": 8, "threshold": threshold, "is_worth_it": every > none, "curve": curve}


def said(**gates: dict[str, Any]) -> list[str]:
    return gate_sentences(complete_report({"name": "a", "scores": {}, "data": {}, "image_gate": gates}))


VALIDATION = gate(0.841, (0.3, 0.850), 0.854)


def test_a_share_is_read() -> None:
    expected = "Reading 30 % of the pictures gives F1 85.0; reading all 85.4, none 84.1 (validation)."
    assert said(validation=VALIDATION) == [expected]
    assert said(validation=VALIDATION, test=gate(0.840, (0.281, 0.848), 0.851)) == [
        expected,
        "On test the same threshold reads 28 % and gives F1 84.8; all 85.1, none 84.0.",
    ]


def test_the_picture_is_worth_nothing() -> None:
    [sentence] = said(validation=gate(0.843, (0, 0.843), 0.838, 1.0))
    assert sentence.startswith("On validation the picture was worth nothing: T 84.3, I+T 83.8; ")
    assert "worth nothing" in said(validation=gate(0.8, (0, 0.8), 0.8, 1.0))[0]


def test_none_or_all_are_read() -> None:
    [sentence] = said(validation=gate(0.852, (0, 0.852), 0.854, 1.0))
    assert sentence.startswith("Reading none of the pictures gives F1 85.2; reading all 85.4 (validation): ")
    validation, test = said(validation=gate(0.5, (1, 0.7), 0.7, 0.0), test=gate(0.5, (1, 0.7), 0.7, 0.0))
    assert validation.startswith("Reading all of the pictures gives F1 70.0, none 50.0 (validation): ")
    assert test == "On test the same threshold reads all: F1 with all 70.0, with none 50.0."
    assert said(validation=VALIDATION, test=gate(0.5, (0, 0.5), 0.4))[1] == (
        "On test the same threshold reads none: F1 with all 40.0, with none 50.0."
    )


def test_without_a_fit_nothing_is_said() -> None:
    assert said() == [] == said(test=VALIDATION)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.001, "less than 1 %"), (0.3, "30 %"), (0.997, "more than 99 %"), (0.99, "99 %"), (1, "100 %")],
)
def test_only_none_is_nothing_and_only_all_is_everything(share: float, text: str) -> None:
    assert share_text(share) == text
