"""What a trained model is worth: entity scores per view, the report of a run, and tables over several runs.

Everything here is a function of tag sequences; the predictions are made elsewhere. Entities are read from tags by
seqeval, in both readings that the literature mixes:

- **lenient** (CoNLL's scorer, seqeval's default; the figure of the papers): every tag sequence has a meaning, an
  `I-` with nothing before it begins an entity;
- **strict** (seqeval's `mode="strict"`): only well-formed IOB2 or IOBES entities count.

All scores are fractions in [0, 1]; tables print them as percentages. An undefined ratio (nothing predicted, nothing
to find) is 0.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypedDict

import datasets
import evaluate
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from modeling_ita.tag_scheme import OUTSIDE, Span

Scoring = Literal["lenient", "strict"]
TagSequences = Sequence[Sequence[str]]

PACKAGES = (
    "ita-mner",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "evaluate",
    "seqeval",
    "huggingface_hub",
)


class TypeScores(TypedDict):
    """Scores of the entities of one type: fractions in [0, 1], and the counts of entities that they come from."""

    precision: float
    recall: float
    f1: float
    gold: int
    predicted: int
    correct: int


class Scores(TypeScores):
    """Scores over all entities (micro average) and, in `types`, per entity type."""

    types: dict[str, TypeScores]


class ViewReport(TypedDict):
    """The scores of one view on one split.

    `accuracy` is the share of words with the right tag. `lost_words` counts the words that the model never saw;
    `lost_entities` the gold entities (lenient) with such a word. They are part of the gold and count as missed.
    """

    posts: int
    words: int
    lost_words: int
    lost_entities: int
    accuracy: float
    lenient: Scores
    strict: Scores


class Spread(TypedDict):
    """Mean and sample standard deviation (`None` for a single run) of a score over `n` runs."""

    mean: float
    sd: float | None
    n: int


def read_entities(tags: TagSequences, scoring: Scoring, bioes: bool = False) -> list[set[Span]]:
    """The entities that seqeval reads from tag sequences.

    Args:
        tags: the tags of every post, one per word.
        scoring: `"lenient"` or `"strict"`.
        bioes: strict reading in IOBES instead of IOB2; the lenient reading knows all prefixes at once.

    Returns:
        One set per post, of spans in words with an exclusive end.
    """
    if scoring == "lenient":  # seqeval's inclusive end
        return [{Span(kind, start, last + 1) for kind, start, last in get_entities(list(post))} for post in tags]
    posts = Entities([list(post) for post in tags], IOBES if bioes else IOB2).entities
    return [{Span(entity.tag, entity.start, entity.end) for entity in post} for post in posts]


def score_tags(references: TagSequences, predictions: TagSequences) -> dict[Scoring, Scores]:
    """Entity scores of predicted tags, lenient and strict.

    The strict scheme is IOBES if an `E-` or `S-` tag occurs on either side, else IOB2.

    Args:
        references: the gold tags of every post, one per word.
        predictions: the predicted tags, post by post and word by word like the references.

    Returns:
        The scores under the keys `"lenient"` and `"strict"`.

    Raises:
        ValueError: the number of posts or, in a post, of tags differs, or a tag is none; the post is named.
    """
    _check_tags(references, predictions)
    bioes = any(tag[0] in "ES" for post in chain(references, predictions) for tag in post)
    readings: tuple[Scoring, ...] = ("lenient", "strict")
    return {
        scoring: _score_entities(read_entities(references, scoring, bioes), read_entities(predictions, scoring, bioes))
        for scoring in readings
    }


def score_views(references: TagSequences, predictions: Mapping[str, TagSequences]) -> dict[str, ViewReport]:
    """The scores of every view on one split.

    Args:
        references: the gold tags of every post, all of its words included.
        predictions: for each view (`"T"`, `"I+T"`, `"wrong_image"`) the predicted tags of the same posts. A
            prediction may stop short of its post's end: the words after it were never seen by the model, count as
            `O`, and are reported as lost.

    Returns:
        A report for each view, in the order given.

    Raises:
        ValueError: the number of posts differs, a prediction is longer than its post, or a tag is none; the view
            and the post are named.
    """
    reports = {}
    for view, predicted in predictions.items():
        try:
            reports[view] = _score_view(references, predicted)
        except ValueError as error:
            raise ValueError(f"view {view!r}, {error}") from error
    return reports


def _score_view(references: TagSequences, predictions: TagSequences) -> ViewReport:
    _check_posts(references, predictions)
    pairs = list(zip(references, predictions, strict=True))
    # An overlong prediction stays as it is, for score_tags to refuse.
    padded = [[*predicted, *[OUTSIDE] * (len(gold) - len(predicted))] for gold, predicted in pairs]
    scores = score_tags(references, padded)
    entities = zip(read_entities(references, "lenient"), predictions, strict=True)
    return ViewReport(
        posts=len(references),
        words=sum(map(len, references)),
        lost_words=sum(len(gold) - len(predicted) for gold, predicted in pairs),
        lost_entities=sum(span.end > len(predicted) for spans, predicted in entities for span in spans),
        accuracy=_accuracy(references, padded),
        lenient=scores["lenient"],
        strict=scores["strict"],
    )


def _check_posts(references: TagSequences, predictions: TagSequences) -> None:
    if len(references) != len(predictions):
        raise ValueError(f"{len(predictions)} predicted posts for {len(references)} reference posts")


def _check_tags(references: TagSequences, predictions: TagSequences) -> None:
    _check_posts(references, predictions)
    for post, (gold, predicted) in enumerate(zip(references, predictions, strict=True)):
        if len(gold) != len(predicted):
            raise ValueError(f"post {post}: {len(predicted)} predicted tags for {len(gold)} words (expected one each)")
        for side, tags in (("reference", gold), ("prediction", predicted)):
            for word, tag in enumerate(tags):
                if tag != OUTSIDE and not (tag[:2] in ("B-", "I-", "E-", "S-") and tag[2:]):
                    raise ValueError(
                        f"post {post}, word {word}, {side}: {tag!r} is no tag (expected O, B-X, I-X, E-X or S-X)"
                    )


def _accuracy(references: TagSequences, predictions: TagSequences) -> float:
    gold, predicted = list(chain.from_iterable(references)), list(chain.from_iterable(predictions))
    return sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold) if gold else 0.0


def _score_entities(references: Sequence[set[Span]], predictions: Sequence[set[Span]]) -> Scores:
    gold = Counter(span.type for post in references for span in post)
    predicted = Counter(span.type for post in predictions for span in post)
    correct = Counter(span.type for g, p in zip(references, predictions, strict=True) for span in g & p)
    types = {t: _ratios(gold[t], predicted[t], correct[t]) for t in sorted(gold | predicted)}
    return Scores(**_ratios(gold.total(), predicted.total(), correct.total()), types=types)


def _ratios(gold: int, predicted: int, correct: int) -> TypeScores:
    return TypeScores(
        precision=correct / predicted if predicted else 0.0,
        recall=correct / gold if gold else 0.0,
        f1=2 * correct / (gold + predicted) if correct else 0.0,
        gold=gold,
        predicted=predicted,
        correct=correct,
    )


class MnerF1(evaluate.Metric):
    """Entity precision, recall and F1, lenient and strict side by side, as a metric of the `evaluate` library.

    The keys are those of evaluate's own `seqeval` metric, with the strict scores beside them: `overall_precision`,
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
        nothing = _ratios(0, 0, 0)
        result: dict[str, Any] = {
            kind: _metric_keys(lenient["types"].get(kind, nothing))
            | {f"strict_{key}": value for key, value in _metric_keys(strict["types"].get(kind, nothing)).items()}
            for kind in sorted(lenient["types"].keys() | strict["types"].keys())
        }
        for prefix, overall in (("overall", lenient), ("overall_strict", strict)):
            for key in ("precision", "recall", "f1"):
                result[f"{prefix}_{key}"] = overall[key]
        return result | {"overall_accuracy": _accuracy(references, predictions)}


def _metric_keys(scores: TypeScores) -> dict[str, float]:
    return {
        "precision": scores["precision"],
        "recall": scores["recall"],
        "f1": scores["f1"],
        "number": scores["gold"],
    }


def make_report(
    *,
    name: str,
    scores: Mapping[str, Mapping[str, ViewReport]],
    counts: Mapping[str, Any],
    data: Mapping[str, Any],
    command: str,
    history: Mapping[str, Sequence[Mapping[str, Any]]],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """The report of a run: its scores, and all that is needed to judge and to repeat them.

    Args:
        name: what the run is called; runs that differ in nothing but the seed share it.
        scores: per split (`"valid"`, `"test"`) the result of `score_views`.
        counts: everything lost or repaired, as the data set and the processor counted it.
        data: what the scores were measured on: for every file `{"sha256": …}` and what else is known of it.
        command: the command line of the run.
        history: `{"steps": [...], "evaluations": [...]}`, a dict for each logged training step (`step`, `epoch`,
            `loss`, `text_loss`, `cross_loss`, `cva_loss`, `lr`) and for each evaluation on valid (`epoch`, `step`,
            a lenient F1 per view, `mean`, `best`).
        config: the settings of the run.

    Returns:
        The arguments under their own names, `versions` (`None` for a package that is not installed) and `created`
        (UTC), in plain JSON types. Numbers that are not finite, such as the loss of a diverged run, become `None`.

    Raises:
        TypeError: a value has no JSON form; its place in the report is named.
    """
    report = {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "scores": scores,
        "counts": counts,
        "data": data,
        "versions": installed_versions(),
        "config": config,
        "history": history,
    }
    return {key: _plain(value, key) for key, value in report.items()}


def installed_versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that a run depends on, `None` for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if getattr(value, "shape", None) == ():  # a number of numpy or torch
        return _plain(value.item(), place)
    raise TypeError(f"{place} of the report is a {type(value).__name__} (expected numbers, strings, lists and dicts)")


def write_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a report as JSON; a reader of `path` sees the old file or the whole new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a report that `write_report` wrote.

    Raises:
        ValueError: the file is no report; what is wrong with it is named.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(report, dict) or not {"name", "scores", "data"} <= report.keys():
        raise ValueError(f"{path} is no report of a run (expected an object with name, scores and data)")
    return report


def view_title(view: str) -> str:
    """A view's name as it is shown to readers: `"wrong_image"` → `"wrong image"`."""
    return view.replace("_", " ")


def format_table(report: Mapping[str, Any], split: str = "test") -> str:
    """A report's scores on one split as a text table, a row for each view.

    Raises:
        ValueError: the report has no scores on this split.
    """
    views: Mapping[str, ViewReport] = _split_scores(report, split)
    rows = [["view", "P", "R", "F1", "strict P", "strict R", "strict F1"]]
    for view, scored in views.items():
        cells = [
            f"{100 * score:.1f}"
            for s in (scored["lenient"], scored["strict"])
            for score in (s["precision"], s["recall"], s["f1"])
        ]
        rows.append([view_title(view), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    lost = [
        f"{view_title(view)}: {scored['lost_words']:,} words with {scored['lost_entities']:,} entities were never seen"
        " by the model and count as missed"
        for view, scored in views.items()
        if scored["lost_words"]
    ]
    sizes = {f"{scored['posts']:,} posts, {scored['lenient']['gold']:,} entities" for scored in views.values()}
    return "\n".join([f"{split}, in percent: {' / '.join(sorted(sizes))}", *lines, *lost])


def _split_scores(report: Mapping[str, Any], split: str) -> Mapping[str, ViewReport]:
    if split not in report["scores"]:
        held = ", ".join(report["scores"]) or "none"
        raise ValueError(f"the report {report['name']!r} has no scores on {split!r} (it has: {held})")
    return report["scores"][split]


def mean_and_sd(reports: Iterable[Mapping[str, Any]], split: str = "test") -> dict[str, dict[str, Spread]]:
    """Lenient F1 over the runs that share a name.

    Args:
        reports: the reports of all runs, in any order; names keep the order of their first report.
        split: the split whose scores are taken.

    Returns:
        For each name and view the mean, the sample standard deviation and the number of runs.

    Raises:
        ValueError: a report has no scores on this split, or runs of one name were measured on different data.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        runs.setdefault(report["name"], []).append(report)
    table: dict[str, dict[str, Spread]] = {}
    for name, group in runs.items():
        if any(_checksums(report) != _checksums(group[0]) for report in group):
            raise ValueError(f"the runs named {name!r} were measured on different data: their scores have no mean")
        f1s: dict[str, list[float]] = {}
        for report in group:
            for view, scored in _split_scores(report, split).items():
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


def _checksums(report: Mapping[str, Any]) -> list[str]:
    """What a run was measured on: the same files are the same data wherever they lie."""
    return sorted(file["sha256"] for file in report["data"].values())


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: `python -m hub_card.evaluation table RUN/report.json …`."""
    parser = argparse.ArgumentParser(prog="python -m hub_card.evaluation", description="Compare the reports of runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="lenient F1 per view, mean ± sd (n) over the runs that share a name")
    table.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="a report.json, one per run")
    table.add_argument("--split", default="test", help="the split whose scores are shown (default: %(default)s)")
    options = parser.parse_args(arguments)
    twice = [str(path) for path, n in Counter(path.resolve() for path in options.reports).items() if n > 1]
    if twice:
        table.error(f"given more than once: {', '.join(twice)}")
    try:
        rows = mean_and_sd(map(read_report, options.reports), options.split)
    except (OSError, ValueError) as error:
        table.error(str(error))
    print(format_mean_and_sd(rows))


if __name__ == "__main__":
    main()
