"""The scores of a report in the formats that the Hub reads: `model-index` in the card, and `.eval_results`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hub_card.report.report import Report, complete_report, format_f1, signature_of, split_scores
from hub_card.scores.intervals import Score
from hub_card.scores.views import OF_USERS
from modeling_ita.markup import yaml_text
from modeling_ita.whole_files import write_text

EVAL_RESULTS_FILES = {system: f".eval_results/{system}.yaml" for system in ("ita", "mgcmt")}


# By the configuration's `model_type`.
TASK = "token-classification"
_METRICS: dict[Score, str] = {"f1": "F1", "precision": "precision", "recall": "recall"}


def corpus_name(report: Report, split: str) -> str:
    """The name of a split's data: the published name, or the configuration of the data set."""
    for view in report["signatures"].get(split, {}):
        signature = signature_of(report, split, view)
        if signature is not None and signature.known_as:
            return signature.known_as
    named = report["counts"].get("corpus", {}).get("configuration") or report["config"].get("dataset")
    return str(named or "unnamed corpus")


def eval_results(report: Mapping[str, Any], split: str, dataset_id: str | None = None) -> list[EvalResult]:
    """The scores for `model-index`: lenient precision, recall and F1, and strict F1, of every view a user can have.

    Args:
        report: a report of a run.
        split: the split whose scores are taken.
        dataset_id: the data set's name on the Hub, if it is there.

    Raises:
        ValueError: the report has no scores on this split.
    """
    report = complete_report(report)
    corpus = corpus_name(report, split)

    def result(metric: str, name: str, value: float) -> EvalResult:
        return EvalResult(
            task_type=TASK,
            task_name="Named Entity Recognition",
            dataset_type=dataset_id or corpus,
            dataset_name=corpus,
            dataset_split=split,
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, 4),
        )

    results = []
    for view, scored in split_scores(report, split).items():
        if view in OF_USERS:
            for metric, name in _METRICS.items():
                results.append(result(metric, f"{name}, {OF_USERS[view]} ({view})", scored["lenient"][metric]))
            results.append(result("f1", f"strict F1, {OF_USERS[view]} ({view})", scored["strict"]["f1"]))
    return results


def eval_result_entries(report: Mapping[str, Any], split: str, dataset_id: str | None = None) -> list[EvalResultEntry]:
    """The lenient F1 of every view a user can have for `.eval_results`, with interval and signature in the notes.

    A corpus that is not on the Hub appears under its own name, which matches no leaderboard.

    Raises:
        ValueError: the report has no scores on this split.
    """
    report = complete_report(report)
    created = report["created"]
    return [
        EvalResultEntry(
            dataset_id=dataset_id or corpus_name(report, split),
            task_id=TASK,
            value=round(scored["lenient"]["f1"], 4),
            date=None if created is None else str(created)[:10],
            notes=f"entity F1 of {OF_USERS[view]} ({view}), in percent {format_f1(scored)}; "
            f"{signature_of(report, split, view) or 'measured by a version that gave no signature'}",
        )
        for view, scored in split_scores(report, split).items()
        if view in OF_USERS
    ]


def write_eval_results(
    folder: str | os.PathLike[str], entries: Sequence[EvalResultEntry], system: str = "ita"
) -> Path:
    """Write `.eval_results/ita.yaml`, or that of another system, into a folder."""
    path = Path(folder) / EVAL_RESULTS_FILES[system]
    write_text(path, yaml_text(eval_result_entries_to_yaml(list(entries))))
    return path
