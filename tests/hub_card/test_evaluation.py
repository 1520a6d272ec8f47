"""Entity scores against seqeval and by hand, the report of a run, and tables over several runs."""

from __future__ import annotations

import json
import random
import re
import socket
import statistics
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
from seqeval.scheme import IOB2, IOBES

from hub_card.evaluation import (
    MnerF1,
    format_mean_and_sd,
    format_table,
    installed_versions,
    main,
    make_report,
    mean_and_sd,
    read_entities,
    read_report,
    score_tags,
    score_views,
    shared_signatures,
    write_report,
)
from hub_card.report.report import Report, complete_report
from hub_card.scores.intervals import bootstrap_f1, post_counts
from modeling_ita.tag_scheme import Span

GOLD = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], [], ["B-ORG", "O", "B-PER"]]


def random_tags(seed: int, prefixes: str, posts: int = 60) -> list[list[str]]:
    rng = random.Random(seed)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC", "MY-TYPE"))]
    return [rng.choices(tags, k=rng.randint(0, 9)) for _ in range(posts)]


def same_lengths(tags: list[list[str]], other: list[list[str]]) -> list[list[str]]:
    """`tags` with about half of the words taken from `other`, so that some entities agree."""
    rng = random.Random(5)
    flat = [tag for post in other for tag in post]
    return [[tag if rng.random() < 0.6 else rng.choice(flat) for tag in post] for post in tags]


def report_of(
    name: str, f1: float, sha256: str = "a7d9", views: tuple[str, ...] = ("T", "I+T"), folder: str = "data"
) -> dict[str, Any]:
    scores = {"lenient": {"f1": f1}}
    data = {f"{folder}/test.txt": {"sha256": sha256}}
    return {"name": name, "data": data, "scores": {"test": dict.fromkeys(views, scores)}}


def signed(name: str, predictions: list[list[list[str]]], repaired: int = 0) -> dict[str, Any]:
    views = dict(zip(("T", "I+T"), predictions, strict=False))
    sha256 = "0123abcd" + 56 * "0"
    return make_report(
        name=name,
        scores={"test": score_views(GOLD, views)},
        counts={},
        data={"test.txt": {"sha256": sha256}},
        command="",
        history={},
        config={},
        gold={"test": {"sha256": sha256, "known_as": "unknown", "repaired": repaired}},
    )


@pytest.fixture
def metric(tmp_path: Path) -> MnerF1:
    return MnerF1(cache_dir=str(tmp_path))


# Scores


@pytest.mark.parametrize(("prefixes", "scheme"), [("BI", IOB2), ("BIES", IOBES)])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_seqeval(prefixes: str, scheme: type, seed: int) -> None:
    gold = random_tags(seed, prefixes)
    predicted = same_lengths(gold, random_tags(seed + 100, prefixes))
    scores = score_tags(gold, predicted)
    modes: dict[str, dict[str, Any]] = {"lenient": {}, "strict": {"mode": "strict", "scheme": scheme}}
    for scoring, arguments in modes.items():
        ours = scores[scoring]  # type: ignore[index]
        assert 0 < ours["correct"] < ours["gold"]
        for key in ("precision", "recall", "f1"):
            reference = getattr(seqeval.metrics, f"{key}_score")(gold, predicted, **arguments)
            assert ours[key] == pytest.approx(reference, abs=1e-12), (scoring, key)
        by_type = seqeval.metrics.classification_report(gold, predicted, output_dict=True, **arguments)
        assert list(ours["types"]) == ["LOC", "MY-TYPE", "PER"]
        for kind, of_type in ours["types"].items():
            assert of_type["precision"] == pytest.approx(by_type[kind]["precision"], abs=1e-12)
            assert of_type["recall"] == pytest.approx(by_type[kind]["recall"], abs=1e-12)
            assert of_type["f1"] == pytest.approx(by_type[kind]["f1-score"], abs=1e-12)
            assert of_type["gold"] == by_type[kind]["support"]


def test_counts_and_ratios_by_hand() -> None:
    predicted = [["B-PER", "I-PER", "O"], ["B-LOC", "B-LOC"], [], ["B-PER", "O", "O"]]
    lenient = score_tags(GOLD, predicted)["lenient"]
    assert (lenient["gold"], lenient["predicted"], lenient["correct"]) == (4, 4, 2)
    assert (lenient["precision"], lenient["recall"], lenient["f1"]) == (0.5, 0.5, 0.5)
    assert lenient["types"] == {
        "LOC": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "gold": 1, "predicted": 2, "correct": 1},
        "ORG": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "gold": 1, "predicted": 0, "correct": 0},
        "PER": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "gold": 2, "predicted": 2, "correct": 1},
    }


def test_strict_and_lenient_differ_on_one_sequence() -> None:
    scores = score_tags([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "I-LOC"]])
    assert scores["lenient"]["f1"] == 1.0
    assert scores["strict"]["f1"] == pytest.approx(2 / 3)


def test_strict_bioes_takes_only_whole_entities() -> None:
    tags = [["B-PER", "E-PER", "S-LOC", "B-ORG", "O"]]
    assert read_entities(tags, "lenient") == [{Span("PER", 0, 2), Span("LOC", 2, 3), Span("ORG", 3, 4)}]
    assert read_entities(tags, "strict", bioes=True) == [{Span("PER", 0, 2), Span("LOC", 2, 3)}]


def test_entities_do_not_cross_posts() -> None:
    assert read_entities([["O", "B-PER"], ["I-PER"]], "lenient") == [{Span("PER", 1, 2)}, {Span("PER", 0, 1)}]


def test_order_of_posts_is_irrelevant_and_one_flipped_tag_is_not() -> None:
    gold = random_tags(1, "BI")
    predicted = same_lengths(gold, random_tags(2, "BI"))
    order = random.Random(0).sample(range(len(gold)), len(gold))
    scores = score_tags(gold, predicted)
    assert score_tags([gold[i] for i in order], [predicted[i] for i in order]) == scores
    flipped = [["O", *GOLD[0][1:]], *GOLD[1:]]
    assert score_tags(GOLD, GOLD)["lenient"]["f1"] == 1.0
    assert score_tags(GOLD, flipped)["lenient"]["f1"] == pytest.approx(0.75)
    assert score_tags(GOLD, flipped)["strict"]["f1"] == pytest.approx(6 / 7)


@pytest.mark.parametrize("tags", [[], [[]], [["O", "O"], []]])
def test_nothing_to_find_is_zero_without_warnings(tags: list[list[str]], metric: MnerF1) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score_tags(tags, tags)
        of_metric = metric.compute(predictions=tags, references=tags)
    for of_reading in scores.values():
        assert of_reading["f1"] == of_reading["precision"] == of_reading["recall"] == 0.0
        assert of_reading["types"] == {}
    assert of_metric["overall_f1"] == of_metric["overall_strict_f1"] == 0.0
    assert of_metric["overall_accuracy"] == (1.0 if any(tags) else 0.0)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ([*GOLD[:3], ["B-ORG", "O"]], r"post 3: 2 predicted tags for 3 words"),
        ([GOLD[0], ["O", "X-LOC"], *GOLD[2:]], r"post 1, word 1, prediction: 'X-LOC' is not a tag"),
        ([GOLD[0], ["O", "B-"], *GOLD[2:]], r"post 1, word 1, prediction: 'B-' is not a tag"),
        ([GOLD[0], ["", "O"], *GOLD[2:]], r"post 1, word 0, prediction: '' is not a tag"),
    ],
)
def test_bad_tags_are_refused_by_post(predicted: list[list[str]], message: str, metric: MnerF1) -> None:
    with pytest.raises(ValueError, match=message):
        score_tags(GOLD, predicted)
    with pytest.raises(ValueError, match=message):
        metric.compute(references=GOLD, predictions=predicted)


def test_bad_gold_and_missing_posts_are_refused() -> None:
    with pytest.raises(ValueError, match="post 0, word 0, reference: 'PER' is not a tag"):
        score_tags([["PER"]], [["O"]])
    with pytest.raises(ValueError, match="3 predicted posts for 4 reference posts"):
        score_tags(GOLD, GOLD[:3])


# The metric


def test_metric_has_the_keys_of_evaluates_seqeval_and_the_strict_ones(metric: MnerF1) -> None:
    assert metric.compute(predictions=[["O", "I-PER", "I-PER"]], references=[["O", "B-PER", "I-PER"]]) == {
        "PER": {
            "precision": 1.0,
            "recall": 1.0,
            "f1": 1.0,
            "number": 1,
            "strict_precision": 0.0,
            "strict_recall": 0.0,
            "strict_f1": 0.0,
            "strict_number": 1,
        },
        "overall_precision": 1.0,
        "overall_recall": 1.0,
        "overall_f1": 1.0,
        "overall_strict_precision": 0.0,
        "overall_strict_recall": 0.0,
        "overall_strict_f1": 0.0,
        "overall_accuracy": pytest.approx(2 / 3),
    }


def test_metric_in_batches_equals_seqeval_over_all(metric: MnerF1) -> None:
    gold = random_tags(7, "BI")
    predicted = same_lengths(gold, random_tags(8, "BI"))
    for start in range(0, 50, 10):
        metric.add_batch(predictions=predicted[start : start + 10], references=gold[start : start + 10])
    for prediction, reference in zip(predicted[50:], gold[50:], strict=True):
        metric.add(prediction=prediction, reference=reference)
    scores = metric.compute()
    assert scores["overall_f1"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted))
    strict = seqeval.metrics.f1_score(gold, predicted, mode="strict", scheme=IOB2)
    assert scores["overall_strict_f1"] == pytest.approx(strict)
    assert scores["overall_accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(gold, predicted))


def test_metric_works_again_after_a_refusal(metric: MnerF1) -> None:
    with pytest.raises(ValueError, match="post 0"):
        metric.compute(predictions=[["O"]], references=[["B-PER", "O"]])
    assert metric.compute(predictions=[["B-PER"]], references=[["B-PER"]])["overall_f1"] == 1.0


def test_metric_needs_no_network(metric: MnerF1, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert metric.compute(predictions=[["B-PER"]], references=[["B-PER"]])["overall_f1"] == 1.0


# Views


def test_words_that_the_model_never_saw_count_as_missed() -> None:
    seen = [GOLD[0][:1], GOLD[1], [], GOLD[3][:1]]
    views = score_views(GOLD, {"T": GOLD, "I+T": seen})
    assert list(views) == ["T", "I+T"]
    assert (views["T"]["lost_words"], views["T"]["lost_entities"], views["T"]["lenient"]["f1"]) == (0, 0, 1.0)
    cut = views["I+T"]
    assert (cut["posts"], cut["words"], cut["lost_words"], cut["lost_entities"]) == (4, 8, 4, 2)
    assert (cut["lenient"]["gold"], cut["lenient"]["predicted"], cut["lenient"]["correct"]) == (4, 3, 2)
    assert cut["accuracy"] == pytest.approx(6 / 8)
    padded = [[*tags, *["O"] * (len(gold) - len(tags))] for gold, tags in zip(GOLD, seen, strict=True)]
    assert {key: cut[key] for key in ("lenient", "strict")} == score_tags(GOLD, padded)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ([[*GOLD[0], "O"], *GOLD[1:]], "view 'I[+]T', post 0: 4 predicted tags for 3 words"),
        (GOLD[:3], "view 'I[+]T', 3 predicted posts for 4 reference posts"),
        ([*GOLD, ["O"]], "view 'I[+]T', 5 predicted posts for 4 reference posts"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_by_view(predicted: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_views(GOLD, {"T": GOLD, "I+T": predicted})


# The report


@pytest.fixture
def report() -> dict[str, Any]:
    worse = [["O", "O", "O"], *GOLD[1:]]
    test = score_views(GOLD, {"T": worse, "I+T": GOLD, "wrong_image": [["O"], *GOLD[1:]]})
    return make_report(
        name="both views, CVA",
        scores={"valid": score_views(GOLD, {"T": GOLD}), "test": test},
        counts={"dataset": {"missing_images": 3}, "processor": {"words_lost": np.int64(2)}},
        data={"test.txt": {"sha256": "a7d9"}},
        command="python train.py --seed 1",
        history={"steps": [{"step": 1, "loss": float("nan")}], "evaluations": [{"epoch": 1, "T": 0.5, "best": True}]},
        config={"output_dir": Path("runs/1"), "learning_rate": np.float32(0.5), "views": ("T", "I+T")},
        gold={"test": {"sha256": "a7d9e172" + 56 * "0", "known_as": "twitter2017-umt test", "repaired": 1}},
    )


def test_report_survives_json(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.json"
    write_report(report, path)
    assert json.loads(path.read_text(encoding="utf-8")) == report
    assert read_report(path) == complete_report(report)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]
    assert report["scores"]["test"]["I+T"]["lenient"]["f1"] == 1.0
    assert report["counts"] == {"dataset": {"missing_images": 3}, "processor": {"words_lost": 2}}
    assert report["config"] == {"output_dir": "runs/1", "learning_rate": 0.5, "views": ["T", "I+T"]}
    assert report["history"]["steps"] == [{"step": 1, "loss": None}]
    assert report["command"] == "python train.py --seed 1"


def test_a_report_of_an_older_version_is_completed(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    old = {"name": "old", "scores": {"test": report["scores"]["test"]}, "data": {}, "config": None}
    old |= {"calibration": {"test": {"views": {"T": {"entities": 3}}}}, "errors": {"test": {"T": {"kinds": {}}}}}
    write_report(old, path)
    whole = read_report(path)
    assert whole.keys() == Report.__annotations__.keys()
    assert whole["history"] == {"steps": [], "evaluations": []} and whole["config"] == {} == whole["signatures"]
    assert whole["calibration"]["test"]["temperature"] is None
    assert whole["calibration"]["test"]["views"]["T"]["entities"] == 3
    assert whole["calibration"]["test"]["views"]["T"]["operating_points"] == []
    assert whole["errors"]["test"]["T"]["agreement"] == {}
    assert complete_report(whole) == whole and "history" not in old


GATE_POINT = {"share": 0.5, "threshold": None, "f1": 0.5, "low": 0.25, "high": 0.75}
GATE = {"posts": 4, "images": 2, "threshold": 1.0, "is_worth_it": False}
GATE |= {"none": GATE_POINT, "chosen": GATE_POINT, "all": GATE_POINT, "curve": [GATE_POINT]}


def test_an_image_gate_survives_json(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(report | {"image_gate": {"validation": GATE, "test": None}}, path)
    assert read_report(path)["image_gate"] == {"validation": GATE}
    for without in ({}, {"image_gate": None}, {"image_gate": {}}):
        write_report(report | without, path)
        assert read_report(path)["image_gate"] == {}


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ([], "image_gate.validation is not an object"),
        (GATE | {"chosen": 3}, "image_gate.validation.chosen is not an object"),
        ({**GATE, "all": {}}, "image_gate.validation.all.share is not a number from 0 to 1"),
        (GATE | {"threshold": "high"}, "image_gate.validation.threshold is not a number from 0 to 1"),
        (GATE | {"is_worth_it": 1}, "image_gate.validation.is_worth_it is not true or false"),
        (GATE | {"curve": []}, "image_gate.validation.curve is not a list of points"),
        (
            GATE | {"curve": [GATE_POINT, GATE_POINT | {"f1": 85.0}]},
            "image_gate.validation.curve[1].f1 is not a number from 0 to 1",
        ),
        (GATE | {"none": GATE_POINT | {"low": None}}, "image_gate.validation.none.low is not a number from 0 to 1"),
    ],
)
def test_an_image_gate_of_another_form_is_refused(
    gate: Any, message: str, report: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    write_report(report | {"image_gate": {"validation": gate}}, path)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_report(path)


def test_a_failed_write_leaves_the_old_report(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(report, path)
    with pytest.raises(TypeError):
        write_report({"name": object()}, path)
    assert read_report(path) == complete_report(report)
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_without_json_form_is_named(report: dict[str, Any]) -> None:
    keys = ("name", "scores", "counts", "data", "command", "history")
    arguments = {key: report[key] for key in keys}
    with pytest.raises(TypeError, match=r"config\.seeds\[1\] of the report is a set"):
        make_report(**arguments, config={"seeds": [1, {2}]})


def test_versions_name_every_package(report: dict[str, Any]) -> None:
    versions = installed_versions()
    assert report["versions"] == versions
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["torch"] == metadata.version("torch")
    named = {"ita-mner", "transformers", "datasets", "accelerate", "evaluate", "seqeval", "huggingface_hub"}
    assert set(versions) == named | {"python", "torch"}


def test_table_shows_views_percentages_and_losses(report: dict[str, Any]) -> None:
    lines = format_table(report).split("\n")
    assert lines[0] == "test, in percent: 4 posts, 4 entities"
    assert lines[1].split() == ["view", "P", "R", "F1", "strict", "P", "strict", "R", "strict", "F1"]
    low, high = (f"{100 * end:.1f}" for end in bootstrap_f1(post_counts(GOLD, [["O", "O", "O"], *GOLD[1:]])))
    assert float(low) < 85.7 < float(high)
    assert lines[3].split() == ["T", "100.0", "75.0", "85.7", f"[{low},", f"{high}]", "100.0", "75.0", "85.7"]
    whole = bootstrap_f1(post_counts(GOLD, GOLD))
    assert whole.high == 1.0
    assert lines[4].split() == ["I+T", *["100.0"] * 3, f"[{100 * whole.low:.1f},", "100.0]", *["100.0"] * 3]
    assert lines[5].split()[:2] == ["wrong", "image"]
    assert lines[6] == "wrong image: 2 words with 1 entities were never seen by the model and count as missed"
    assert len({len(line) for line in lines[1:6]}) == 1
    assert len(format_table(report, "valid").split("\n")) == 4
    with pytest.raises(ValueError, match=r"'both views, CVA' has no scores on 'dev' \(it has: valid, test\)"):
        format_table(report, "dev")


def test_counts_of_posts_are_short_lists_that_add_up(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert text.count('"gold": [1, 1, 0, 2],\n') == 4  # on one line, in every view of every split
    for views in report["scores"].values():
        for scored in views.values():
            for key in ("gold", "predicted", "correct"):
                assert sum(scored["post_counts"][key]) == scored["lenient"][key]
    assert report["scores"]["test"]["T"]["post_counts"]["correct"] == [0, 1, 0, 2]
    assert report["scores"]["test"]["wrong_image"]["post_counts"]["predicted"] == [0, 1, 0, 2]


def test_checksum_of_posts_moves_with_gold_lengths_and_order_only() -> None:
    def checksum(gold: list[list[str]], predicted: list[list[str]]) -> str:
        return score_views(gold, {"T": predicted})["T"]["post_counts"]["sha256"]

    assert checksum(GOLD, GOLD) == checksum(GOLD, [[] for _ in GOLD])
    bioes = [["B-PER", "E-PER", "O"], ["O", "S-LOC"], [], ["S-ORG", "O", "S-PER"]]
    assert checksum(bioes, bioes) == checksum(GOLD, GOLD)
    others = [GOLD[::-1], GOLD[1:], [*GOLD[:3], ["B-ORG", "O", "B-LOC"]], [[*GOLD[0], "O"], *GOLD[1:]]]
    assert len({checksum(posts, posts) for posts in [GOLD, *others]}) == 5


def test_scores_of_a_known_file_have_signatures(report: dict[str, Any]) -> None:
    line = (
        "ita-mner-f1|data:twitter2017-umt@a7d9e172|split:test|view:I+T|scheme:lenient|types:LOC,ORG,PER|gold:4|posts:4"
        f"|repair:1|lost:0|v:{metadata.version('ita-mner')}"
    )
    assert list(report["signatures"]) == ["test"]
    assert report["signatures"]["test"]["I+T"] == {"lenient": line, "strict": line.replace("lenient", "strict")}
    assert report["signatures"]["test"]["wrong_image"]["lenient"] == line.replace("I+T", "wrong_image").replace(
        "lost:0", "lost:1"
    )
    assert format_table(report).split("\n")[7] == report["signatures"]["test"]["T"]["lenient"]
    del report["scores"]["test"]["wrong_image"]  # what is left lost the same
    assert format_table(report).split("\n")[5:] == [
        line.replace("|view:I+T", ""),
        line.replace("|view:I+T", "").replace("lenient", "strict"),
    ]


def test_data_that_are_not_known_are_named_by_checksum() -> None:
    report = signed("mine", [GOLD])
    assert report["signatures"]["test"]["T"]["lenient"].startswith("ita-mner-f1|data:0123abcd|split:test|view:T|")
    del report["signatures"], report["scores"]["test"]["T"]["post_counts"]  # a report of an older version
    lines = format_table(report).split("\n")
    assert len(lines) == 4
    assert lines[3].split() == ["T", *["100.0"] * 6]


# Several runs


def test_mean_and_sd_of_three_seeds() -> None:
    f1s = [0.80, 0.82, 0.87]
    reports = [report_of("CVA", f1) for f1 in f1s]
    reports.insert(1, report_of("text only", 0.5, views=("T",)))
    table = mean_and_sd(reports)
    assert list(table) == ["CVA", "text only"]
    assert table["CVA"]["I+T"] == {
        "mean": pytest.approx(0.83),
        "sd": pytest.approx(statistics.stdev(f1s)),
        "n": 3,
    }
    assert table["text only"] == {"T": {"mean": 0.5, "sd": None, "n": 1}}
    assert format_mean_and_sd(table).split("\n") == [
        "| run | T | I+T |",
        "|---|---|---|",
        "| CVA | 83.0 ± 3.6 (3) | 83.0 ± 3.6 (3) |",
        "| text only | 50.0 (1) | - |",
    ]


def test_runs_on_different_data_have_no_mean() -> None:
    with pytest.raises(ValueError, match="'CVA' were measured on different data"):
        mean_and_sd([report_of("CVA", 0.8), report_of("CVA", 0.8, sha256="ffff")])
    assert mean_and_sd([report_of("CVA", 0.8), report_of("CVA", 0.9, folder="copy")])["CVA"]["T"]["n"] == 2
    assert len(mean_and_sd([report_of("CVA", 0.8), report_of("CVA on snap", 0.8, sha256="ffff")])) == 2


def test_command_line_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / f"{seed}.json") for seed in range(2)]
    for path, f1 in zip(paths, (0.8, 0.9), strict=True):
        write_report(report_of("CVA", f1), path)
    main(["table", *paths])
    assert capsys.readouterr().out == "| run | T | I+T |\n|---|---|---|\n| CVA | 85.0 ± 7.1 (2) | 85.0 ± 7.1 (2) |\n"


def test_table_of_runs_measured_alike_has_one_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = [["O", "O", "O"], *GOLD[1:]]
    seeds = [signed("CVA", [GOLD, GOLD]), signed("CVA", [worse, GOLD]), signed("text", [worse])]
    shared = (
        "ita-mner-f1|data:0123abcd|split:test|scheme:lenient|types:LOC,ORG,PER|gold:4|posts:4|repair:0|lost:0"
        f"|v:{metadata.version('ita-mner')}"
    )
    assert shared_signatures(seeds) == [shared]
    other = signed("repaired", [GOLD, GOLD], repaired=2)
    assert shared_signatures([*seeds[:2], other]) == [
        f"CVA: {shared}",
        f"repaired: {shared.replace('repair:0', 'repair:2')}",
    ]
    unsigned = report_of("old", 0.8)
    assert shared_signatures([unsigned]) == []
    assert shared_signatures([unsigned, *seeds[:2]]) == [f"CVA: {shared}"]
    paths = [str(tmp_path / f"{number}.json") for number in range(3)]
    for path, report in zip(paths, seeds, strict=True):
        write_report(report, path)
    main(["table", *paths])
    assert capsys.readouterr().out.splitlines()[-2:] == ["", shared]


def test_runs_not_measured_alike_have_no_mean() -> None:
    with pytest.raises(ValueError, match=r"'CVA' were not measured alike in view T \(.*repaired gold tags: 0 and 2"):
        mean_and_sd([signed("CVA", [GOLD]), signed("CVA", [GOLD], repaired=2)])


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "No such file"),
        ("{", [], "is not JSON"),
        ("[]", [], "holds a list"),
        (json.dumps(report_of("CVA", 0.8)), ["--split", "dev"], "has no scores on 'dev'"),
        (json.dumps(report_of("CVA", 0.8)), ["{path}"], "given more than once"),
    ],
)
def test_command_line_refuses_by_name(
    content: str | None,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert main(["table", str(path), *(argument.format(path=path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "report" in error
