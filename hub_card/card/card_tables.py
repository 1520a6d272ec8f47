"""What a report says, as the Markdown of a model card: its results and how they were made.

Reports must be complete (`complete_report`). Every function returns the empty string if the report lacks its data.
Names and settings from a report are escaped; numbers are formatted by this module and are Markdown.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from hub_card.predictions.calibration_report import ViewCalibration
from hub_card.predictions.image_gate import GatePoint, point_at
from hub_card.report.comparison import compare_reports
from hub_card.report.gate_text import gate_sentences, share_text
from hub_card.report.report import Report, counts_of, format_f1, signatures_of, split_scores
from hub_card.scores.errors import KINDS
from hub_card.scores.intervals import bootstrap_difference
from hub_card.scores.signature import shared_lines
from hub_card.scores.views import IMAGE, MAIN_VIEWS, SEEN, view_title
from modeling_ita.markup import Markdown, code, md

_NONE = "–"

# Settings for output, resuming and monitoring, which do not affect how the model was trained.
_NOT_TRAINING = (
    "model", "output_dir", "resume_from_checkpoint", "max_steps", "report_to",
    "push_to_hub", "hub_model_id", "hub_private_repo",
)  # fmt: skip
_SHARES = (0, 0.1, 0.2, 0.3, 0.5, 0.75, 1)  # of images read, the rows of the gate's table
_PATHS = ("data_dir", "images_dir", "context_files")
# Names on the Hub, or folders.
_STARTED_FROM = ("encoder", "vision_encoder", "word_neighbours")

_NOISE = {
    "tags_repaired": "tags that were not well-formed, repaired",
    "posts_empty": "posts without a word, left out",
    "posts_without_id": "posts below no id, as a blank line inside a post makes them, numbered",
    "ids_repeated": "ids that occur twice, renamed",
    "words_invisible": "words that show nothing (joiners, control characters), kept",
    "carriage_returns": "carriage returns, dropped",
    "byte_order_marks": "byte order marks, dropped",
}
_IMAGES = {
    "present": "posts whose image is there",
    "missing": "image missing",
    "unreadable": "image unreadable",
    "blank": "image blank",
    "shared": "posts whose image is another post's too",
}
_CONTEXTS = {
    "present": "posts with a visual context",
    "empty": "context empty: no image, or nothing found in it",
    "missing": "no context at all",
}
_CUT = {
    "contexts_cut": "contexts cut to fit the window",
    "context_pieces_cut": "tokens of context cut",
    "windowed_posts": "posts longer than the window, read in parts",
    "shortened_words": "words shortened",
    "unknown_words": "words that the tokenizer does not know at all",
}
_UNAUGMENTED = {"unaugmented_words": "words without neighbours, to which nothing is added"}
_OBJECTS = {
    "unknown_objects": "objects of a class that the model does not know, left out",
    "objects_cut": "objects beyond as many as take part, left out",
}


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> Markdown:
    """A Markdown table: the first columns, those of `words`, flush left, all others flush right; empty without rows.

    Cells are escaped unless they are `Markdown`.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    if not cells:
        return Markdown()
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return Markdown(
        "\n".join("| " + " | ".join(row) + " |" for row in [[_cell(head) for head in heads], rule, *cells])
    )


def views_table(report: Report, split: str) -> Markdown:
    """Precision, recall, F1 with its interval, and strict F1 of every view."""
    rows = []
    for view, scored in split_scores(report, split).items():
        lenient = scored["lenient"]
        rows.append(
            [
                f"{view_title(view)}: {SEEN[view]}" if view in SEEN else view_title(view),
                _percent(lenient["precision"]),
                _percent(lenient["recall"]),
                Markdown(f"**{_f1(scored)}**") if view in MAIN_VIEWS else _f1(scored),
                _percent(scored["strict"]["f1"]),
            ]
        )
    return markdown_table(["what the model sees", "precision", "recall", "F1", "strict F1"], rows)


def signature_lines(report: Report, split: str) -> str:
    """The signatures of all scores of a split; the views that were measured alike share one."""
    return "\n".join(shared_lines(signatures_of(report, split)))


def sizes(report: Report, split: str) -> str:
    """The size of the evaluation data: `73 posts, 84 entities`."""
    scores = split_scores(report, split).values()
    return " / ".join(
        sorted({f"{scored['posts']:,} posts, {scored['lenient']['gold']:,} entities" for scored in scores})
    )


def image_worth(report: Report, split: str) -> Markdown:
    """What the image adds: the differences of I+T from the other views, paired over posts."""
    scores = split_scores(report, split)
    sentences = []
    for view, what in {"T": "the post alone", "wrong_image": "the wrong image"}.items():
        if view not in scores or "I+T" not in scores:
            continue
        found = compare_reports(report, report, split, ("I+T", view), force=True)
        if found.difference is None:
            continue
        interval = ""
        if found.interval is not None:
            low, high = (100 * end for end in found.interval)
            interval = f" [{low:+.1f}, {high:+.1f}]"
        sentences.append(f"**{100 * found.difference:+.1f}**{interval} over {what}")
    said = f"In points of F1, the right image is worth {', and '.join(sentences)}."
    return Markdown(said if sentences else "")


def types_table(report: Report, split: str) -> Markdown:
    """F1 by type and view, and precision and recall of I+T, or of the only view."""
    scores = split_scores(report, split)
    views = [view for view in MAIN_VIEWS if view in scores] or list(scores)[:1]
    heads = ["type", "entities", *(f"F1, {view_title(view)}" for view in views)]
    heads += [f"{score}, {view_title(views[-1])}" for score in ("precision", "recall")]
    rows = []
    for kind in sorted({kind for view in views for kind in scores[view]["lenient"]["types"]}):
        of_type = [scores[view]["lenient"]["types"].get(kind) for view in views]
        gold = next(found["gold"] for found in of_type if found)
        last = of_type[-1]
        rows.append(
            [
                kind,
                f"{gold:,}",
                *(_percent(found["f1"] if found else None) for found in of_type),
                *(_percent(last[score] if last else None) for score in ("precision", "recall")),
            ]
        )
    return markdown_table(heads, rows)


def ablation_table(report: Report, split: str) -> Markdown:
    """F1 of I+T without each kind of context or without the image (if the model takes it), and the paired change.

    A model that takes only the image needs no such table: without it, I+T is the view T.
    """
    whole = split_scores(report, split).get("I+T")
    removed = report["ablation"].get(split, {})
    if whole is None or not removed.keys() - {IMAGE}:
        return Markdown()
    rows = [["image and context" if IMAGE in removed else "all kinds", _f1(whole), ""]]
    for kind, scored in removed.items():
        name = "the image itself" if kind == IMAGE else kind
        rows.append([f"without {name}", _f1(scored), _change(scored, whole)])
    return markdown_table(["given" if IMAGE in removed else "context", "F1 of I+T", "change"], rows)


def calibration_table(report: Report, split: str) -> Markdown:
    """The calibration errors of both views, before and after the temperature."""
    views = _calibration(report, split)
    rows = [
        [view_title(view), f"{views[view]['entities']:,}"]
        + [" → ".join(map(_percent, errors)) for errors in (views[view]["ece"], views[view]["brier"])]
        for view in MAIN_VIEWS
        if view in views
    ]
    return markdown_table(["view", "entities", "ECE before → after", "Brier before → after"], rows)


def temperature_hurts(report: Report, split: str) -> bool:
    """Whether the calibration error of I+T, or of the only view, is larger after the temperature than before."""
    views = _calibration(report, split)
    before, after = next((views[view]["ece"] for view in reversed(MAIN_VIEWS) if view in views), (None, None))
    return before is not None and after is not None and after > before


def operating_points_table(report: Report) -> Markdown:
    """The thresholds for `min_score` that reach a target precision on the validation split."""
    views = _calibration(report, "validation")
    rows = []
    for view in (view for view in MAIN_VIEWS if view in views):
        for point in views[view]["operating_points"]:
            threshold = point["threshold"]
            # Rounded up: rounding down would admit entities that the measured precision excludes.
            shown = "not reached" if threshold is None else f"{math.ceil(1000 * threshold) / 1000:.3f}"
            kept = [_percent(point[share]) for share in ("recall_kept", "coverage")]
            rows.append([view_title(view), f"{100 * point['precision']:.0f} %", shown, *kept])
    heads = ["view", "wanted precision", code("min_score"), "correct entities kept, %", "entities kept, %"]
    return markdown_table(heads, rows)


def read_operating_points(card: str) -> list[dict[str, str]]:
    """The rows of the `operating_points_table` of a card, by column; none if the card has no such table."""
    lines = card.splitlines()
    head = f"| view | wanted precision | {code('min_score')} |"
    start = next((n for n, line in enumerate(lines) if line.startswith(head)), len(lines))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=False)) for row in rows[2:]]


def image_gate_text(report: Report) -> Markdown:
    """What reading images is worth, and what the fitted gate makes of it, in a few sentences."""
    return Markdown(" ".join(gate_sentences(report)))


def image_gate_table(report: Report, split: str) -> Markdown:
    """F1 with its interval by the share of images read, and with the fitted gate."""
    if split not in report["image_gate"]:
        return Markdown()
    gate = report["image_gate"][split]
    points = {point["share"]: point for point in (point_at(gate["curve"], share) for share in _SHARES)}
    rows = [(share_text(point["share"]), point) for point in points.values()]
    rows.append((f"{share_text(gate['chosen']['share'])}, by the gate", gate["chosen"]))
    return markdown_table(["pictures read", "F1"], [[said, _f1_of(point)] for said, point in rows])


def errors_table(report: Report, split: str) -> Markdown:
    """How often each kind of error occurs in each view."""
    analyses = report["errors"].get(split, {})
    kinds = [kind for kind in KINDS if any(kind in analysis["kinds"] for analysis in analyses.values())]
    rows = [
        [view_title(view), *(f"{analysis['kinds'].get(kind, 0):,}" for kind in kinds)]
        for view, analysis in analyses.items()
    ]
    return markdown_table(["view", *(kind.replace("_", " ") for kind in kinds)], rows)


def error_groups_table(report: Report, split: str) -> Markdown:
    """Where the errors are: by names seen in training or not, and by agreement of the views."""
    analyses = report["errors"].get(split, {})
    views = [view for view in MAIN_VIEWS if view in analyses]
    surface = [analyses[view]["surface"] for view in views]
    agreement = [analyses[view]["agreement"] for view in views]
    groups = {
        "recall of names that occur in train": (surface, "seen", "recall"),
        "recall of names that do not occur in train": (surface, "unseen", "recall"),
        "F1 where both views say the same": (agreement, "agree", "f1"),
        "F1 where they differ": (agreement, "disagree", "f1"),
    }
    rows = []
    for title, (parts, group, score) in groups.items():
        found = [part.get(group) for part in parts]
        if any(part and part["gold"] for part in found):
            gold = next(part["gold"] for part in found if part)
            rows.append([title, f"{gold:,}", *(_percent(part[score] if part else None) for part in found)])
    return markdown_table(["", "entities", *map(view_title, views)], rows)


def data_table(report: Report, *, contexts: bool = True) -> Markdown:
    """Posts, words, entities, images and contexts of every split, and the problems found in them.

    Args:
        report: the report.
        contexts: whether the model takes contexts; if not, they are omitted.
    """
    counts = report["counts"]
    splits = counts.get("corpus", {}).get("splits") or {}
    if not splits:
        return Markdown()
    rows = [[what, *(f"{split.get(what, 0):,}" for split in splits.values())] for what in ("posts", "words")]
    types = list(dict.fromkeys(kind for split in splits.values() for kind in split.get("entities", {})))
    for kind in types:
        rows.append([f"entities {kind}", *(f"{split['entities'].get(kind, 0):,}" for split in splits.values())])
    rows += _count_rows(_NOISE, list(splits.values()), always=("tags_repaired", "words_invisible"))
    for part, titles in (("images", _IMAGES), ("contexts", _CONTEXTS if contexts else {})):
        rows += _count_rows(titles, [split.get(part) or {} for split in splits.values()], always=tuple(titles))
    processed = [(counts.get("processor") or {}).get(split, {}).get("I+T") or {} for split in splits]
    rows += _count_rows(_CUT, processed)
    rows += _count_rows(_UNAUGMENTED | (_OBJECTS if contexts else {}), processed, uncounted=_NONE)
    return markdown_table(["", *splits], rows)


def files_table(report: Report) -> Markdown:
    """The files that the run read, by name and sha256, and the published file that each of them is."""
    rows = [
        [
            os.path.basename(path),
            _NONE if file.get("known_as") in (None, "unknown") else file["known_as"],
            code(f"{file['sha256'][:16]}…"),
        ]
        for path, file in report["data"].items()
    ]
    return markdown_table(["file", "known as", "sha256"], rows, words=3)


def aligners_table(aligners: Mapping[str, Mapping[str, Any] | str]) -> Markdown:
    """By kind of context, the aligner that makes it: its name, its revision, its settings."""
    rows = []
    for kind, named in aligners.items():
        aligner: Mapping[str, Any] = {"model": named} if isinstance(named, str) else named
        settings = ", ".join(f"{name} = {_rounded(value)}" for name, value in (aligner.get("settings") or {}).items())
        model = str(aligner["model"])
        shown = os.path.basename(model.rstrip("/")) if is_local(model) else model
        rows.append([kind, code(shown), str(aligner.get("revision") or _NONE), settings or _NONE])
    return markdown_table(["kind", "made by", "revision", "settings"], rows, words=4)


def is_local(model: str) -> bool:
    """Whether a model is named by a local folder, which means nothing on another machine."""
    return model.startswith(("/", "./", "../", "~")) or os.path.isdir(model)


def training_settings(report: Report) -> dict[str, Any]:
    """The settings of the training run that are set, with paths shortened to their last part."""
    config = report["config"]
    if "encoder" not in config:
        return {}
    kept = {name: value for name, value in config.items() if name not in _NOT_TRAINING and value not in (None, [])}
    system = (config.get("model") or {}).get("model_type", "ita")  # the flag; the report has the whole configuration
    kept = {"model": system, **kept}
    for name in _PATHS:
        if name in kept:
            value = kept[name]
            kept[name] = list(map(_last_part, value)) if isinstance(value, list) else _last_part(value)
    for name in _STARTED_FROM:
        if name in kept and is_local(kept[name]):
            kept[name] = _last_part(kept[name])
    return kept


def training_yaml(report: Report) -> str:
    """The training configuration as the YAML that `train.py` takes."""
    settings = training_settings(report)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None) if settings else ""


def changed_settings_table(report: Report) -> Markdown:
    """The settings of the training run that are not the defaults, which the report has as `config_defaults`."""
    defaults = report["config_defaults"]
    rows = [
        [code(name), _setting(value), _setting(defaults[name])]
        for name, value in training_settings(report).items()
        if name in defaults and value != defaults[name] and name not in _PATHS
    ]
    return markdown_table(["setting", "here", "default"], rows, words=3)


def _calibration(report: Report, split: str) -> Mapping[str, ViewCalibration]:
    return report["calibration"][split]["views"] if split in report["calibration"] else {}


def _f1(scored: Mapping[str, Any]) -> Markdown:
    return Markdown(format_f1(scored))


def _f1_of(point: GatePoint) -> Markdown:
    interval = ""
    if point["low"] is not None and point["high"] is not None:
        interval = f" [{100 * point['low']:.1f}, {100 * point['high']:.1f}]"
    return Markdown(f"{100 * point['f1']:.1f}{interval}")


def _change(first: Mapping[str, Any], second: Mapping[str, Any]) -> Markdown:
    a, b = counts_of(first), counts_of(second)
    if a is None or b is None:
        return Markdown(f"{100 * (first['lenient']['f1'] - second['lenient']['f1']):+.1f}")
    found = bootstrap_difference(a, b)
    return Markdown(f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]")


def _count_rows(
    titles: Mapping[str, str],
    columns: Sequence[Mapping[str, int]],
    always: Sequence[str] = (),
    uncounted: str = "0",
) -> list[list[str]]:
    """A row for each count that is not zero everywhere, or that is always shown."""
    return [
        [title, *(f"{column.get(name, 0):,}" if column else uncounted for column in columns)]
        for name, title in titles.items()
        if any(column.get(name) for column in columns) or (name in always and any(name in c for c in columns))
    ]


def _last_part(path: Any) -> str:
    return os.path.basename(str(path).rstrip("/"))


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or _NONE
    return _NONE if value is None else str(_rounded(value))


def _rounded(value: Any) -> Any:
    """A number without rounding artefacts: 0.6 for 0.6000000000000001."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _percent(fraction: float | None) -> str:
    return _NONE if fraction is None else f"{100 * fraction:.1f}"


def _cell(text: str) -> str:
    # A number and its interval stay on one line.
    return re.sub(r" (?=\[)|(?<=,) (?=[-+\d.]+\])", "\N{NO-BREAK SPACE}", md(text))
