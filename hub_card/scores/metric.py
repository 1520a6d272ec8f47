"""Entity scores as a metric of the `evaluate` library."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from hub_card.scores.scores import TagSequences, TypeScores, accuracy, ratios, score_tags


class MnerF1(evaluate.Metric):
    """Entity precision, recall and F1, lenient and strict side by side, as a metric of the `evaluate` library.

    The keys are those of evaluate's own `seqeval` metric, plus the strict scores: `overall_precision`,
    `overall_recall`, `overall_f1`, `overall_accuracy`, `overall_strict_precision`, `overall_strict_recall`,
    `overall_strict_f1`, and per entity type a dict of `precision`, `recall`, `f1`, `number` (of gold entities),
    `strict_precision`, `strict_recall`, `strict_f1`, `strict_number`. Nothing is loaded from the network.

    Example:
        >>> scores = MnerF1().compute(predictions=[["O", "I-PER"]], references=[["O", "B-PER"]])
        >>> scores["overall_f1"], scores["overall_strict_f1"]
        (1.0, 0.0)
    """

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Entity precision, recall and F1 by seqeval, lenient (CoNLL) and strict (IOB2 or IOBES).",
            citation="",
            inputs_description="predictions, references: for each post the list of its tags, one per word.",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, *, predictions: TagSequences, references: TagSequences) -> dict[str, Any]:
        scores = score_tags(references, predictions)
        lenient, strict = scores["lenient"], scores["strict"]
        nothing = ratios(0, 0, 0)
        result: dict[str, Any] = {
            kind: _metric_keys(lenient["types"].get(kind, nothing))
            | {f"strict_{key}": value for key, value in _metric_keys(strict["types"].get(kind, nothing)).items()}
            for kind in sorted(lenient["types"].keys() | strict["types"].keys())
        }
        for prefix, overall in (("overall", lenient), ("overall_strict", strict)):
            for key in ("precision", "recall", "f1"):
                result[f"{prefix}_{key}"] = overall[key]
        return result | {"overall_accuracy": accuracy(references, predictions)}


def _metric_keys(scores: TypeScores) -> dict[str, float]:
    return {
        "precision": scores["precision"],
        "recall": scores["recall"],
        "f1": scores["f1"],
        "number": scores["gold"],
    }
