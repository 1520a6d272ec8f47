"""Scores any system's tags in CoNLL columns, as a report."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path

from hub_card.report.report import (
    Report,
    format_f1,
    make_report,
    split_scores,
)
from hub_card.report.text_table import aligned
from hub_card.scores.conll_columns import read_pair
from hub_card.scores.scores import Scores, Scoring, score_views


def score_files(
    gold: str | os.PathLike[str],
    predicted: str | os.PathLike[str],
    split: str = "test",
    view: str = "predicted",
) -> Report:
    """Score the output of any system, in CoNLL columns, as it is: no tag is repaired.

    Lenient scores match both seqeval and conlleval, except in BIOES, where they match seqeval only, because conlleval
    does not support `S-`. Strict scores match seqeval.

    Args:
        gold: the file with the gold tags, in columns as `hub_card.scores.conll_columns` reads them.
        predicted: the file with the same words and the predicted tags.
        split: what the split is called in the report.
        view: what the predictions are called in the report: what the system saw, as in `I+T`.

    Returns:
        A report as `make_report` makes it, for `format_table`, `mean_and_sd` and `compare_reports`.

    Raises:
        ValueError: a line is malformed, or the files do not hold the same posts; the message names file and line.
        OSError: a file cannot be read.
    """
    tags, predictions = read_pair(gold, predicted)
    sha256 = hashlib.sha256(Path(gold).read_bytes()).hexdigest()
    options = ["--split", split, "--view", view]
    return make_report(
        name=os.fspath(predicted),
        scores={split: score_views(tags, {view: predictions})},
        counts={},
        data={os.fspath(gold): {"sha256": sha256}},
        command=shlex.join(
            ["python", "-m", "hub_card.evaluation", "score", os.fspath(gold), os.fspath(predicted), *options]
        ),
        history={},
        config={"predicted": {"sha256": hashlib.sha256(Path(predicted).read_bytes()).hexdigest()}},
        gold={split: {"sha256": sha256, "repaired": 0}},
    )


def format_scores(report: Report, split: str, view: str) -> str:
    """The scores of one view as text, lenient and strict, over all entities and by type, with their signatures."""
    scored = split_scores(report, split)[view]
    lines = [
        f"{scored['posts']:,} posts, {scored['words']:,} words; {100 * scored['accuracy']:.2f} % of the tags right"
    ]
    readings: tuple[tuple[Scoring, Scores], ...] = (("lenient", scored["lenient"]), ("strict", scored["strict"]))
    for scoring, scores in readings:
        rows = [[scoring, "P", "R", "F1", "gold", "predicted", "correct"]]
        for kind, s in [("all", scores), *scores["types"].items()]:
            ratios = [f"{100 * ratio:.2f}" for ratio in (s["precision"], s["recall"], s["f1"])]
            rows.append([kind, *ratios, *(f"{number:,}" for number in (s["gold"], s["predicted"], s["correct"]))])
        lines += ["", *aligned(rows)]
        if scoring == "lenient":
            lines.append(f"F1 with its interval over posts: {format_f1(scored)}")
        lines.append(report["signatures"][split][view][scoring])
    return "\n".join(lines)
