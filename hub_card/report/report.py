"""Builds, stores and prints the report of a run."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, NotRequired, TypedDict, cast

from hub_card.predictions.calibration_report import Calibration, ViewCalibration
from hub_card.predictions.image_gate import ImageGate
from hub_card.report.text_table import aligned
from hub_card.scores.errors import ErrorAnalysis
from hub_card.scores.intervals import Counts, bootstrap_f1
from hub_card.scores.scores import Scoring, ViewReport
from hub_card.scores.signature import Signature, shared_lines
from hub_card.scores.views import view_title
from modeling_ita.checkpoint_files import read_object, reading
from modeling_ita.whole_files import write_text

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


class GoldFile(TypedDict):
    """The gold file of a split, as its scores' signatures describe it.

    `known_as` names the matching published file, as in `twitter2017-umt test`, or is `unknown`. `repaired` counts the
    ill-formed tags that were repaired before scoring.
    """

    sha256: str
    known_as: NotRequired[str]
    repaired: int


class DataFile(TypedDict):
    """A file that scores were measured on, and what else is known of it."""

    sha256: str
    known_as: NotRequired[str]


class ReportCounts(TypedDict, total=False):
    """Everything lost or repaired.

    Attributes:
        corpus: as the data set counted it: `configuration`, `contexts_without_post`, and the counts of its `splits`.
        processor: by split and view, what the processor counted.
    """

    corpus: dict[str, Any]
    processor: dict[str, dict[str, dict[str, int]]]


class History(TypedDict, total=False):
    """How the training went.

    Attributes:
        steps: a dict for each logged training step: `step`, `epoch`, the losses, `lr`.
        evaluations: a dict for each evaluation on valid: `epoch`, `step`, a lenient F1 per view, `mean`, `best`.
    """

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


class Report(TypedDict, total=False):
    """The report of a run, `report.json`.

    `read_report` and `complete_report` return complete reports with every key: what a run or an older version did not
    write is empty, or None for `created` and `command`.

    Attributes:
        name: what the run is called; runs that differ in nothing but the seed share it.
        created: when the report was made, in UTC.
        command: the command line of the run.
        scores: by split and view.
        signatures: by split, view and scoring, the line of a `Signature`.
        counts: everything lost or repaired.
        data: what the scores were measured on, by file.
        versions: of Python and packages, None for a package that is not installed.
        config: the settings of the run.
        history: how the training went.
        ablation: by split, the scores of I+T without each kind of context, and without the image itself (`IMAGE`).
        errors: by split and view.
        calibration: by split.
        image_gate: by split, F1 by the share of images read, and the threshold, which was fitted on the validation
            split; empty if none was fitted.
        config_defaults: the default settings of a run.
        aligners: by kind of context, `{"model", "revision", "settings"}` of what made the training contexts.
    """

    name: str
    created: str | None
    command: str | None
    scores: dict[str, dict[str, ViewReport]]
    signatures: dict[str, dict[str, dict[str, str]]]
    counts: ReportCounts
    data: dict[str, DataFile]
    versions: dict[str, str | None]
    config: dict[str, Any]
    history: History
    ablation: dict[str, dict[str, ViewReport]]
    errors: dict[str, dict[str, ErrorAnalysis]]
    calibration: dict[str, Calibration]
    image_gate: dict[str, ImageGate]
    config_defaults: dict[str, Any]
    aligners: dict[str, dict[str, Any]]


# What a view's part of a complete report has at least.
_NO_ERRORS = ErrorAnalysis(kinds={}, by_type={}, confusion={}, surface={}, context={}, agreement={})
_NO_CALIBRATION = ViewCalibration(
    entities=0, ece=[], brier=[], reliability=[], risk_coverage={}, aurc=None, operating_points=[]
)


def complete_report(report: Mapping[str, Any]) -> Report:
    """Return a copy of a report with all missing fields filled in, such as those of older versions.

    Code that shows a report completes it first, and then need not check for missing fields.
    """
    empty: dict[str, Any] = {
        key: None if key in ("created", "command") else {}
        for key in Report.__annotations__
        if key != "name" and report.get(key) is None
    }
    whole = {**report, **empty}
    whole["history"] = {"steps": [], "evaluations": []} | _given(whole["history"])
    whole["ablation"] = {split: removed or {} for split, removed in whole["ablation"].items()}
    whole["errors"] = {
        split: {view: _NO_ERRORS | _given(analysis) for view, analysis in (views or {}).items()}
        for split, views in whole["errors"].items()
    }
    whole["calibration"] = {
        split: _complete_calibration(calibration or {}) for split, calibration in whole["calibration"].items()
    }
    whole["image_gate"] = _given(whole["image_gate"])
    return cast(Report, whole)


def _complete_calibration(calibration: Mapping[str, Any]) -> dict[str, Any]:
    whole = {"temperature": None, "views": {}, "disagreement": {}} | _given(calibration)
    whole["views"] = {view: _NO_CALIBRATION | _given(found) for view, found in whole["views"].items()}
    return whole


def _given(part: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (part or {}).items() if value is not None}


def gold_files(corpus: Mapping[str, Any], text_files: Mapping[str, str | os.PathLike[str]]) -> dict[str, GoldFile]:
    """By split, what the signature of its scores says of the gold tags.

    Args:
        corpus: the report of the data set: `data` (by file, `sha256` and `known_as`) and `splits` (`tags_repaired`).
        text_files: the file of every split.
    """
    return {
        split: GoldFile(
            sha256=corpus["data"][str(path)]["sha256"],
            known_as=corpus["data"][str(path)]["known_as"],
            repaired=corpus["splits"][split]["tags_repaired"],
        )
        for split, path in text_files.items()
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
    gold: Mapping[str, GoldFile] | None = None,
    **analyses: Any,
) -> Report:
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
        gold: per split the file with its gold tags; the scores of a split that is not named have no signature.
        analyses: further fields, such as `ablation`, `errors`, `calibration` and `image_gate` of `evaluate_model`.

    Returns:
        All arguments except `gold` under their own names, `signatures` (split → view → scoring → the line of a
        `Signature`), `versions` (`None` for a package that is not installed) and `created` (UTC), in plain JSON
        types. Numbers that are not finite, such as the loss of a diverged run, become `None`.

    Raises:
        TypeError: a value cannot be stored as JSON; the message gives its place in the report.
    """
    report = {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "scores": scores,
        "signatures": _make_signatures(scores, gold or {}),
        "counts": counts,
        "data": data,
        "versions": installed_versions(),
        "config": config,
        "history": history,
        **analyses,
    }
    return cast(Report, {key: _plain(value, key) for key, value in report.items()})


def _make_signatures(
    scores: Mapping[str, Mapping[str, ViewReport]], gold: Mapping[str, GoldFile]
) -> dict[str, dict[str, dict[str, str]]]:
    version = installed_versions()["ita-mner"] or "unknown"
    readings: tuple[Scoring, ...] = ("lenient", "strict")
    signatures: dict[str, dict[str, dict[str, str]]] = {}
    for split in scores.keys() & gold.keys():
        file = gold[split]
        # The published files are known as "corpus split", and the split has a field of its own.
        corpus = file.get("known_as", "unknown").rpartition(" ")[0] or None
        for view, scored in scores[split].items():
            signatures.setdefault(split, {})[view] = {
                scoring: str(
                    Signature(
                        checksum=file["sha256"][:8],
                        known_as=corpus,
                        split=split,
                        view=view,
                        scheme=scoring,
                        types=tuple(sorted(t for t, s in scored[scoring]["types"].items() if s["gold"])),
                        gold=scored[scoring]["gold"],
                        posts=scored["posts"],
                        repairs=file["repaired"],
                        lost=scored["lost_entities"],
                        version=version,
                    )
                )
                for scoring in readings
            }
    return {split: signatures[split] for split in scores if split in signatures}


def signature_of(report: Report, split: str, view: str, scoring: Scoring = "lenient") -> Signature | None:
    """The signature of a score in a report; None if it has none, as in the reports of older versions.

    Raises:
        ValueError: the stored signature is invalid.
    """
    line = report.get("signatures", {}).get(split, {}).get(view, {}).get(scoring)
    return None if line is None else Signature.parse(line)


def counts_of(scored: Mapping[str, Any]) -> Counts | None:
    """The lenient entities of every post, from the scores of one view; None if they are not in the report.

    Raises:
        ValueError: the counts cannot be those of posts.
    """
    counts = scored.get("post_counts")
    return None if counts is None else Counts(counts["gold"], counts["predicted"], counts["correct"])


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


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as JSON; a reader of `path` sees the old file or the whole new one, never a part."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    # Lists of integers, such as the counts of every post, on one line each; no string of JSON holds a newline.
    text = re.sub(r"\[\n\s+(\d+(?:,\n\s+\d+)*)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(path, text + "\n")


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a report that `write_report` wrote, of this version or an older one, and complete it.

    Raises:
        ValueError: the file is not a report; the message says what is wrong.
    """
    report = read_object(path)
    if not {"name", "scores", "data"} <= report.keys():
        raise ValueError(f"{path} is not the report of a run (expected an object with name, scores and data)")
    with reading(path):
        _check_form(report)
        return complete_report(report)


def _check_form(report: Mapping[str, Any]) -> None:
    """Rejects a report whose scores and analyses do not have the expected structure."""
    if not isinstance(report["name"], str):
        raise ValueError("name is not a string")
    for name in ("data", "signatures"):
        _object(name, report.get(name, {}))
    for name in ("history", "ablation", "errors", "calibration"):
        _object(name, report.get(name) or {})
    for split, views in _object("scores", report["scores"]).items():
        for view, scored in _object(f"scores.{split}", views).items():
            for scoring in {"lenient", "strict"} & _object(f"scores.{split}.{view}", scored).keys():
                _object(f"scores.{split}.{view}.{scoring}", scored[scoring])
    for split, gate in _given(_object("image_gate", report.get("image_gate") or {})).items():
        _check_gate(f"image_gate.{split}", gate)


def _check_gate(name: str, gate: Any) -> None:
    for point in ("none", "chosen", "all"):
        _check_point(f"{name}.{point}", _object(name, gate).get(point))
    if not isinstance(curve := gate.get("curve"), list) or not curve:
        raise ValueError(f"{name}.curve is not a list of points")
    for number, point in enumerate(curve):
        _check_point(f"{name}.curve[{number}]", point)
    _number(f"{name}.threshold", gate.get("threshold"))
    if not isinstance(gate.get("is_worth_it"), bool):
        raise ValueError(f"{name}.is_worth_it is not true or false")


def _check_point(name: str, point: Any) -> None:
    for key in ("share", "f1"):
        _number(f"{name}.{key}", _object(name, point).get(key))
    ends = [point.get(key) for key in ("low", "high")]
    if ends != [None, None]:
        for key, end in zip(("low", "high"), ends, strict=True):
            _number(f"{name}.{key}", end)


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} is not a number from 0 to 1")


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is not an object")
    return value


def format_table(report: Report, split: str = "test") -> str:
    """A report's scores on one split as a text table, a row for each view, and the signatures of the scores below.

    The lenient F1 is followed by its 95 % interval from 10,000 draws of posts; reports of older versions have none.

    Raises:
        ValueError: the report has no scores on this split.
    """
    views = split_scores(report, split)
    rows = [["view", "P", "R", "F1", "strict P", "strict R", "strict F1"]]
    for view, scored in views.items():
        lenient, strict = (
            [f"{100 * s['precision']:.1f}", f"{100 * s['recall']:.1f}", f"{100 * s['f1']:.1f}"]
            for s in (scored["lenient"], scored["strict"])
        )
        rows.append([view_title(view), *lenient[:2], format_f1(scored), *strict])
    lines = aligned(rows)
    lost = [
        f"{view_title(view)}: {scored['lost_words']:,} words with {scored['lost_entities']:,} entities were never seen"
        " by the model and count as missed"
        for view, scored in views.items()
        if scored["lost_words"]
    ]
    sizes = {f"{scored['posts']:,} posts, {scored['lenient']['gold']:,} entities" for scored in views.values()}
    title = f"{split}, in percent: {' / '.join(sorted(sizes))}"
    return "\n".join([title, *lines, *lost, *shared_lines(signatures_of(report, split))])


def format_f1(scored: Mapping[str, Any]) -> str:
    """A view's lenient F1 in percent with its interval over posts, `67.8 [58.9, 76.0]`, or without, if it has none."""
    counts = counts_of(scored)
    interval = "" if counts is None else " [{:.1f}, {:.1f}]".format(*(100 * end for end in bootstrap_f1(counts)))
    return f"{100 * scored['lenient']['f1']:.1f}{interval}"


def signatures_of(report: Report, split: str, readings: Sequence[Scoring] = ("lenient", "strict")) -> list[Signature]:
    """The signatures of all views of a split, reading by reading; scores without one are left out."""
    found = [signature_of(report, split, view, scoring) for scoring in readings for view in report["scores"][split]]
    return [signature for signature in found if signature is not None]


def split_scores(report: Report, split: str) -> Mapping[str, ViewReport]:
    """The scores of a report on one split, by view.

    Raises:
        ValueError: the report has no scores on this split; the message lists the splits that it has.
    """
    if split not in report["scores"]:
        held = ", ".join(report["scores"]) or "none"
        raise ValueError(f"the report {report['name']!r} has no scores on {split!r} (it has: {held})")
    return report["scores"][split]
