"""The picture of a run, from full, text-only and empty histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from hub_card.evaluation import score_views
from hub_card.report.training_figure import training_figure

GOLD = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
NOTHING = [["O", "O", "O"], ["O", "O"]]
BLUE, VERMILLION, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def run(losses: tuple[str, ...], views: dict[str, Any], steps: int = 50) -> dict[str, Any]:
    return {
        "name": "a run",
        "scores": {"test": score_views(GOLD, views)},
        "history": {
            "steps": [{"step": i + 1, **dict.fromkeys(losses, 9.0 / (i + 1))} for i in range(steps)],
            "evaluations": [
                {"epoch": e, **{view: 0.1 * e for view in views if view != "wrong_image"}, "best": e < 3}
                for e in range(1, 5)
            ],
        },
    }


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture - np.array(colour)).max(-1) <= 2).sum())


def test_full_run_shows_every_loss_and_view(tmp_path: Path) -> None:
    report = run(
        ("text_loss", "cross_loss", "cva_loss"), {"T": [GOLD[0], NOTHING[1]], "I+T": GOLD, "wrong_image": NOTHING}
    )
    path = tmp_path / "new" / "curves.png"
    training_figure(report, path)
    picture = pixels(path)
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1500
    # The bars fill areas; the loss of CVA has a line and a legend entry only.
    assert count(picture, VERMILLION) > 1.5 * count(picture, BLUE) > 10_000
    assert count(picture, GREEN) > 500


def test_text_only_run_leaves_out_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    training_figure(run(("text_loss",), {"T": GOLD}), path)
    picture = pixels(path)
    assert count(picture, BLUE) > 10_000
    assert count(picture, VERMILLION) == count(picture, GREEN) == 0


def test_bar_height_follows_the_score(tmp_path: Path) -> None:
    areas = []
    for name, predicted in (("half", [GOLD[0], NOTHING[1]]), ("all", GOLD)):
        report = run((), {"T": predicted})
        report["history"] = {}
        training_figure(report, tmp_path / f"{name}.png")
        areas.append(count(pixels(tmp_path / f"{name}.png"), BLUE))
    assert areas[0] / areas[1] == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize("loss", [None, float("nan"), 0.0])
def test_losses_without_a_place_on_the_axis_are_left_out(loss: float | None, tmp_path: Path) -> None:
    report = run(("text_loss",), {"T": NOTHING}, steps=3)
    for step in report["history"]["steps"]:
        step["text_loss"] = loss
    report["history"]["evaluations"] = []
    training_figure(report, tmp_path / "curves.png")
    assert count(pixels(tmp_path / "curves.png"), BLUE) == 0


def test_empty_report_still_gives_a_picture(tmp_path: Path) -> None:
    training_figure({"name": "a run", "scores": {}, "history": {}}, tmp_path / "curves.png")
    assert len(np.unique(pixels(tmp_path / "curves.png"))) > 10


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    open_figures, backend = pyplot.get_fignums(), matplotlib.get_backend()
    training_figure({"name": "a run", "scores": {}, "history": {}}, tmp_path / "curves.png")
    assert (pyplot.get_fignums(), matplotlib.get_backend()) == (open_figures, backend)
