"""Evaluation: scores, reports, and a command line for reports and for the output of other systems.

python -m hub_card.evaluation evaluate MODEL --dataset twitter2017 --data_dir DIR --output_dir OUT
python -m hub_card.evaluation table RUN/report.json …
python -m hub_card.evaluation score gold.txt predicted.txt
python -m hub_card.evaluation compare A/report.json B/report.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, AutoProcessor

from hub_card.report.comparison import compare_reports, format_comparison
from hub_card.report.gate_text import gate_sentences
from hub_card.report.report import format_table, gold_files, installed_versions, make_report, read_report, write_report
from hub_card.report.runs import Spread, format_mean_and_sd, mean_and_sd, shared_signatures
from hub_card.report.score_files import format_scores, score_files
from hub_card.scores.metric import MnerF1
from hub_card.scores.scores import (
    PostCounts,
    Scores,
    Scoring,
    TagSequences,
    TypeScores,
    ViewReport,
    read_entities,
    score_tags,
    score_views,
)
from hub_card.scores.signature import Signature
from hub_card.scores.views import view_title
from modeling_ita import TagScheme
from modeling_ita.checkpoint_files import CONFIG, check_checkpoint, read_object, reading
from modeling_ita.command_line import command, print_text, program
from modeling_ita.whole_files import write_text

__all__ = [
    "MnerF1",
    "PostCounts",
    "Scores",
    "Scoring",
    "Signature",
    "Spread",
    "TagSequences",
    "TypeScores",
    "ViewReport",
    "compare_reports",
    "format_comparison",
    "format_mean_and_sd",
    "format_scores",
    "format_table",
    "installed_versions",
    "main",
    "make_report",
    "mean_and_sd",
    "read_entities",
    "read_report",
    "score_files",
    "score_tags",
    "score_views",
    "shared_signatures",
    "view_title",
    "write_report",
]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, `python -m hub_card.evaluation evaluate | score | compare | table …`.

    It returns 1 if two reports are not comparable.
    """
    parser = argparse.ArgumentParser(
        prog=program("hub_card.evaluation"), description="Score tags, and compare the reports of runs."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    table = commands.add_parser("table", help="lenient F1 per view, mean ± sd (n) over the runs that share a name")
    table.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="a report.json, one per run")
    table.add_argument("--split", default="test", help="the split whose scores are shown (default: %(default)s)")
    table.set_defaults(run=_table)

    score = commands.add_parser("score", help="entity scores of predictions in CoNLL columns, of whatever system")
    score.add_argument("gold", type=Path, metavar="GOLD", help="words in the first column, gold tags in the last one")
    score.add_argument(
        "predicted", type=Path, metavar="PRED", help="the same words, predicted tags in the last column"
    )
    score.add_argument("--split", default="test", help="what the split is called (default: %(default)s)")
    score.add_argument("--view", default="predicted", help="what the predictions are called (default: %(default)s)")
    score.add_argument("--json", action="store_true", help="print a report, which `table` and `compare` read")
    score.set_defaults(run=_score)

    compare = commands.add_parser("compare", help="whether two scores are comparable, and their difference")
    compare.add_argument("reports", nargs=2, type=Path, metavar="REPORT", help="the report.json of A and of B")
    compare.add_argument("--split", default="test", help="the split whose scores are compared (default: %(default)s)")
    compare.add_argument(
        "--view", nargs="+", default=["I+T"], help="the view of both, or that of A and that of B (default: I+T)"
    )
    compare.add_argument("--force", action="store_true", help="show the difference of incomparable scores too")
    compare.set_defaults(run=_compare)

    evaluate = commands.add_parser("evaluate", help="the full report of a saved model on a corpus")
    evaluate.add_argument("model", metavar="MODEL", help="an exported folder, or a repository on the Hub")
    evaluate.add_argument("--dataset", default="sample_posts", help="a configuration of MnerDataset (%(default)s)")
    evaluate.add_argument("--data_dir", help="folder with train.txt, valid.txt, test.txt")
    evaluate.add_argument("--images_dir", help="folder with the images")
    evaluate.add_argument("--context_files", nargs="+", default=[], help="visual contexts, .jsonl or .parquet")
    evaluate.add_argument("--output_dir", type=Path, required=True, help="where report.json and report.html go")
    evaluate.add_argument("--batch_size", type=int, default=64, help="posts in a batch (default: %(default)s)")
    evaluate.add_argument("--device", help="cpu, cuda:0 …; default: an accelerator if there is one")
    evaluate.add_argument(
        "--update_config",
        action="store_true",
        help="write what was fitted on validation, score_temperature and image_gate, into the config.json of MODEL",
    )
    evaluate.set_defaults(run=_evaluate)

    options = parser.parse_args(arguments)
    return options.run(options)


def _evaluate(options: argparse.Namespace) -> int:
    # The only place in this package that knows the corpora, because it is an entry point like train.py.
    from dataset_scripts.corpus.examples import read_examples
    from dataset_scripts.mner import MnerDataset
    from hub_card.predictions.evaluate_model import evaluate_model
    from hub_card.report.report_page import write_page

    if options.update_config and not Path(options.model).is_dir():
        raise ValueError(
            f"--update_config writes into a local folder, and {options.model} is none: download or export the model,"
            " and name its folder"
        )
    corpus = MnerDataset(
        config_name=options.dataset,
        context_files=options.context_files,
        **{name: getattr(options, name) for name in ("data_dir", "images_dir") if getattr(options, name)},
    )
    corpus.download_and_prepare()
    dataset = corpus.as_dataset()
    if options.update_config and "validation" not in dataset:
        raise ValueError(f"--update_config: {options.dataset} has no validation split to fit on: add valid.txt")
    device = options.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    check_checkpoint(options.model)
    with reading(options.model):
        model = AutoModelForTokenClassification.from_pretrained(options.model, trust_remote_code=False).to(device)
        processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=False)
        processor.check_model(model.config)
    given = TagScheme(dataset["train" if "train" in dataset else next(iter(dataset))].features["tags"].feature.names)
    scheme = model.config.tag_scheme
    splits = {
        name: read_examples(rows, given, scheme, with_images=model.sees_images) for name, rows in dataset.items()
    }
    if model.sees_images and not any(post.image for posts in splits.values() for post in posts):
        print("the model looks at images, and no post has one: --images_dir names their folder", file=sys.stderr)
    evaluation = evaluate_model(model, processor, splits, options.batch_size)
    counts = {"corpus": {k: v for k, v in corpus.report.items() if k != "data"}}
    counts["processor"] = evaluation.fields.pop("counts")
    report = make_report(
        name=options.output_dir.name,
        **evaluation.fields,
        counts=counts,
        data=corpus.report["data"],
        command=shlex.join(["python", "-m", "hub_card.evaluation", *sys.argv[1:]]),
        history={},
        config={"model": model.config.to_dict()},
        gold=gold_files(corpus.report, corpus.config.text_files()),
    )
    write_report(report, options.output_dir / "report.json")
    split = list(evaluation.posts)[-1]
    write_page(report, evaluation.posts, options.output_dir / "report.html", split)
    print_text(format_table(report, split))
    if options.update_config:
        _update_config(options.model, evaluation.temperature, evaluation.image_gate)
    if sentences := gate_sentences(report):
        print_text(f"images  {' '.join(sentences)} {_gate_use(options, evaluation.image_gate)}")
    print_text(f"report  {options.output_dir / 'report.json'}\npage    {options.output_dir / 'report.html'}")
    return 0


def _update_config(folder: str, temperature: float, image_gate: float | None) -> None:
    """Writes what was fitted on validation into a model's `config.json`, completely or not at all.

    Without a fitted gate, where no post had an image or context, an earlier `image_gate` is kept.
    """
    path = Path(folder) / CONFIG
    config = read_object(path) | {"score_temperature": temperature}
    if image_gate is not None:
        config["image_gate"] = image_gate
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")  # in the format of transformers


def _gate_use(options: argparse.Namespace, threshold: float | None) -> str:
    """How to use the fitted gate."""
    use = f'read_images="unsure" uses it (image_gate {threshold:.3g}'
    if options.update_config:
        return f"{use}, written into {Path(options.model) / CONFIG})."
    return f"{use}), once --update_config has written it into the config.json of the model's folder."


def _table(options: argparse.Namespace) -> int:
    twice = [str(path) for path, n in Counter(path.resolve() for path in options.reports).items() if n > 1]
    if twice:
        raise ValueError(f"given more than once: {', '.join(twice)}")
    reports = [read_report(path) for path in options.reports]
    print_text(format_mean_and_sd(mean_and_sd(reports, options.split)))
    signatures = shared_signatures(reports, options.split)
    if signatures:
        print_text("\n".join(["", *signatures]))
    return 0


def _score(options: argparse.Namespace) -> int:
    report = score_files(options.gold, options.predicted, options.split, options.view)
    if options.json:
        print_text(json.dumps(report, ensure_ascii=False))
    else:
        print_text(format_scores(report, options.split, options.view))
    return 0


def _compare(options: argparse.Namespace) -> int:
    if len(options.view) > 2:
        raise ValueError(f"--view has {len(options.view)} views (expected one, or that of A and that of B)")
    first, second = (read_report(path) for path in options.reports)
    views = (options.view[0], options.view[-1])
    comparison = compare_reports(first, second, options.split, views, options.force)
    print_text(format_comparison(comparison))
    return 1 if comparison.incomparable else 0


if __name__ == "__main__":
    sys.exit(main())
