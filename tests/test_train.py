from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

import train
from hub_card.report.gate_text import gate_sentences
from modeling_ita.packaged_encoder import MINILM
from modeling_ita.whole_files import claimed_folder

ROOT = Path(train.__file__).parent
NAMES = ["Phoenix", "Paris", "London", "Chicago"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posts "NAME tonight" whose picture alone says whether NAME is a team or a place."""
    folder = tmp_path_factory.mktemp("corpus")
    contexts = []
    for split, posts in (("train", 22), ("valid", 8), ("test", 8)):
        lines = []
        for i in range(posts):
            tag, caption = (("ORG", "game"), ("LOC", "stadium sign"))[i % 2]
            words = [NAMES[i // 2 % 4], *["tonight"] * (1 + i // 2 % 3)]
            lines += [f"IMGID:{split}{i}", f"{words[0]}\tB-{tag}", *(f"{word}\tO" for word in words[1:]), ""]
            if i != 3:
                contexts.append({"id": f"{split}{i}", "captions": [caption]})
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "contexts.jsonl").write_text("\n".join(map(json.dumps, contexts)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def still_encoder(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny encoder without dropout, so that runs over other numbers of processes can be compared."""
    folder = tmp_path_factory.mktemp("still")
    config = AutoConfig.from_pretrained(tiny_encoder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    AutoModel.from_pretrained(tiny_encoder, config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def flags(corpus: Path, encoder: str, output: Path, *more: str) -> list[str]:
    return [
        *("--dataset", "conll", "--data_dir", str(corpus), "--context_files", str(corpus / "contexts.jsonl")),
        *("--encoder", encoder, "--output_dir", str(output)),
        *("--num_epochs", "2", "--batch_size", "4", "--logging_steps", "1"),
        *more,
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("scores", "history", "counts", "data")}


def test_a_run_leaves_model_report_and_picture(corpus: Path, tiny_encoder: str, tmp_path: Path) -> None:
    more = ["--num_epochs", "12", "--learning_rate", "3e-3", "--head_learning_rate", "1e-2", "--word_dropout", "0"]
    train.main(flags(corpus, tiny_encoder, tmp_path / "run", *more))
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert set(report["scores"]) == {"validation", "test"}
    assert set(report["scores"]["test"]) == {"T", "I+T", "wrong_image", "blank_image"}
    assert report["scores"]["test"]["I+T"]["lenient"]["gold"] == 8
    assert report["scores"]["test"]["I+T"]["lenient"]["f1"] > report["scores"]["test"]["T"]["lenient"]["f1"]
    evaluations = report["history"]["evaluations"]
    assert [entry["epoch"] for entry in evaluations] == list(range(1, 13))
    best = max(evaluations, key=lambda entry: entry["mean"])
    assert best["mean"] == report["scores"]["validation"]["T"]["lenient"]["f1"] / 2 + (
        report["scores"]["validation"]["I+T"]["lenient"]["f1"] / 2
    )
    assert all(len(file["sha256"]) == 64 for file in report["data"].values())
    checksum = report["data"][str(corpus / "test.txt")]["sha256"][:8]
    assert report["signatures"]["test"]["I+T"]["lenient"].startswith(
        f"ita-mner-f1|data:{checksum}|split:test|view:I+T|scheme:lenient|types:LOC,ORG|gold:8|posts:8|repair:0|lost:0|v:"
    )
    assert report["counts"]["corpus"]["splits"]["train"]["contexts"]["missing"] == 1
    assert report["command"].startswith("python train.py --dataset conll")
    assert {"config.json", "model.safetensors", "processor_config.json", "crf.py"} <= {
        path.name for path in (tmp_path / "run" / "model").iterdir()
    }
    assert (tmp_path / "run" / "report.png").stat().st_size > 5_000
    gates = report["image_gate"]
    assert gates.keys() == {"validation", "test"}
    assert gates["test"]["images"] == report["counts"]["corpus"]["splits"]["test"]["contexts"]["present"]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["image_gate"] == gates["validation"]["threshold"] == report["config"]["model"]["image_gate"]
    assert 0 <= config["image_gate"] < 1  # this model needs its contexts
    said = " ".join(gate_sentences(report))
    assert "Reading " in said and "(validation)" in said and "On test the same threshold reads " in said
    assert said in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert said in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("stop", "accumulate"), [("4", "1"), ("8", "1"), ("2", "2")])
def test_resuming_continues_exactly(
    corpus: Path, tiny_encoder: str, tmp_path: Path, stop: str, accumulate: str
) -> None:
    settings = ["--save_steps", "2", "--gradient_accumulation_steps", accumulate]
    whole = train.main(flags(corpus, tiny_encoder, tmp_path / "whole", *settings))
    assert train.main(flags(corpus, tiny_encoder, tmp_path / "parts", *settings, "--max_steps", stop)) == {}
    resumed = train.main(
        flags(corpus, tiny_encoder, tmp_path / "parts", *settings, "--resume_from_checkpoint", "last")
    )
    assert without_times(resumed) == without_times(whole)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "parts")[name]), name


def test_accumulation_equals_one_large_batch(corpus: Path, still_encoder: str, tmp_path: Path) -> None:
    settings = ["--word_dropout", "0", "--num_epochs", "1"]
    large = train.main(flags(corpus, still_encoder, tmp_path / "large", *settings, "--batch_size", "22"))
    parts = train.main(
        flags(corpus, still_encoder, tmp_path / "parts", *settings, "--gradient_accumulation_steps", "6")
    )
    assert large["history"]["steps"][0]["loss"] == pytest.approx(parts["history"]["steps"][0]["loss"], rel=1e-4)
    for name, tensor in weights(tmp_path / "large").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "parts")[name], atol=2e-4, rtol=1e-3)


def test_two_processes_give_the_numbers_of_one(corpus: Path, still_encoder: str, tmp_path: Path) -> None:
    settings = ["--word_dropout", "0", "--learning_rate", "1e-3"]
    one = train.main(flags(corpus, still_encoder, tmp_path / "one", *settings))
    # What `accelerate launch` starts on several GPUs; on CPUs it would start mpirun, or one process without a word.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), *flags(corpus, still_encoder, tmp_path / "two", *settings)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    two = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    for a, b in zip(one["history"]["steps"], two["history"]["steps"], strict=True):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    assert two["scores"]["test"]["T"]["lenient"]["gold"] == 8  # every post once, not once a process
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "two")[name], atol=1e-3, rtol=1e-2)


def test_the_model_reads_images_as_its_contexts_were_made(corpus: Path, tiny_encoder: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (corpus / "contexts.jsonl").read_text(encoding="utf-8").splitlines()]
    reader = {"model": "rapidocr", "revision": "3.10.0", "settings": {"min_score": 0.25}}
    teller = {"model": "some/captioner", "revision": "0" * 40, "settings": {"num_captions": 1}}
    others = {"model": "some/other", "revision": "1" * 40, "settings": {}}
    for number, row in enumerate(rows):
        row["provenance"] = {
            "ocr": {**reader, "image_sha256": str(number), "date": str(number)},
            "captions": others if number == 0 else teller,
            "object_tags": {"model": "scene"},
            "unused": reader,
        }
    made = tmp_path / "contexts.jsonl"
    made.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for choice, expected in (("contexts", {"captions": teller, "ocr": reader}), ("none", None)):
        output = tmp_path / choice
        more = ["--context_files", str(made), "--context_builder", choice, "--num_epochs", "1"]
        train.main(flags(corpus, tiny_encoder, output, *more))
        processor = json.loads((output / "model" / "processor_config.json").read_text(encoding="utf-8"))
        assert processor["context_builder"] == expected


@pytest.mark.parametrize("views", ["text", "cross"])
def test_one_view_alone_trains(corpus: Path, tiny_encoder: str, tmp_path: Path, views: str) -> None:
    report = train.main(flags(corpus, tiny_encoder, tmp_path / "run", "--views", views, "--num_epochs", "1"))
    losses = {"text": "text_loss", "cross": "cross_loss"}
    assert {name for name in report["history"]["steps"][0] if name.endswith("_loss")} == {losses[views]}
    assert set(report["scores"]["test"]) == {"T", "I+T", "wrong_image", "blank_image"}


def test_bioes_trains_and_scores_the_same_entities(corpus: Path, tiny_encoder: str, tmp_path: Path) -> None:
    settings = ["--tag_scheme", "bioes", "--constraints", "always", "--num_epochs", "1"]
    report = train.main(flags(corpus, tiny_encoder, tmp_path / "run", *settings))
    scores = report["scores"]["test"]["T"]
    assert scores["lenient"]["gold"] == scores["strict"]["gold"] == 8
    assert scores["lenient"]["f1"] == scores["strict"]["f1"]  # a constrained tagger makes no orphan tags


def test_an_output_folder_is_never_overwritten(corpus: Path, tiny_encoder: str, tmp_path: Path) -> None:
    arguments = flags(corpus, tiny_encoder, tmp_path / "run", "--max_steps", "1")
    train.main(arguments)
    with pytest.raises(ValueError, match="holds a run already"):
        train.main(arguments)
    with pytest.raises(ValueError, match="--seed 1 → 2"):
        train.main([*arguments, "--resume_from_checkpoint", "last", "--seed", "2"])


class Killed(BaseException):
    pass


def test_stopped_in_every_phase_a_run_goes_on_to_the_same_report(
    corpus: Path, tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run that is stopped again and again, with one checkpoint kept, against one that is not."""
    settings = ["--name", "a run", "--resume_from_checkpoint", "last", "--save_total_limit", "1"]
    whole = train.main(flags(corpus, tiny_encoder, tmp_path / "whole" / "run", *settings))
    parts = tmp_path / "parts" / "run"

    def stopped_at(place: str, call: int, done: bool) -> None:
        owner, _, name = place.rpartition(".")
        module, _, cls = owner.partition(":")
        target = importlib.import_module(module)
        target = getattr(target, cls) if cls else target
        function, calls = getattr(target, name), iter(range(1, 1000))

        def stopping(*args: Any, **kwargs: Any) -> Any:
            last = next(calls) == call
            if last and not done:
                raise Killed
            made = function(*args, **kwargs)
            if last:
                raise Killed
            return made

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(target, name, stopping)
            train.main(flags(corpus, tiny_encoder, parts, *settings))

    stopped_at("train:Trainer._step", 3, False)
    assert not (parts / "checkpoints").exists() and (parts / "training_args.json").is_file()
    stopped_at("train:Trainer._evaluate", 1, True)  # the best weights are there, and no checkpoint that knows them
    assert (parts / "best").is_dir() and not (parts / "checkpoints").exists()
    stopped_at("accelerate:Accelerator.save_state", 2, True)
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["checkpoint_0"]
    stopped_at("modeling_ita.training_checkpoints:Checkpoints._remove_old", 1, False)
    stopped_at("train.write_report", 1, True)
    stopped_at("hub_card.hub.exported_folder._write", 1, True)
    assert not (parts / "model").exists()
    resumed = train.main(flags(corpus, tiny_encoder, parts, *settings))
    again = train.main(flags(corpus, tiny_encoder, parts, *settings))  # all is done: evaluated and written once more
    for report in (whole, resumed, again):
        report["created"] = None
        report["config"]["output_dir"] = None
        report["command"] = None
    assert resumed == whole and again == whole
    for name, tensor in weights(tmp_path / "whole" / "run").items():
        assert torch.equal(tensor, weights(parts)[name]), name
    files = ["best", "checkpoints", "model", "report.html", "report.json", "report.png", "training_args.json"]
    assert sorted(path.name for path in parts.iterdir()) == files
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["checkpoint_1"]
    assert (parts / "best" / "model.safetensors").stat().st_mode == (parts / "report.json").stat().st_mode


def test_best_weights_of_a_later_epoch_do_not_leak_into_a_resumed_run(
    corpus: Path, tiny_encoder: str, tmp_path: Path
) -> None:
    train.main(flags(corpus, tiny_encoder, tmp_path / "run", "--save_steps", "3", "--max_steps", "9"))
    best, checkpoints = tmp_path / "run" / "best" / "model.safetensors", tmp_path / "run" / "checkpoints"
    of_first_epoch = load_file(best)
    best.unlink()
    save_file({name: tensor + 1 for name, tensor in of_first_epoch.items()}, best)
    more = ["--max_steps", "7", "--resume_from_checkpoint", str(checkpoints / "checkpoint_1")]
    assert train.main(flags(corpus, tiny_encoder, tmp_path / "run", "--save_steps", "3", *more)) == {}
    now = load_file(best)
    assert all(torch.equal(tensor, now[name]) for name, tensor in of_first_epoch.items())
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint_1", "checkpoint_3"]


def test_a_second_run_in_a_folder_is_refused(corpus: Path, tiny_encoder: str, tmp_path: Path) -> None:
    with claimed_folder(tmp_path / "run", "wait"):
        for more in ([], ["--resume_from_checkpoint", "last"]):
            with pytest.raises(BlockingIOError, match=r"another process is at work in .*run: wait for it"):
                train.main(flags(corpus, tiny_encoder, tmp_path / "run", *more))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert not (tmp_path / "run").exists()


def test_a_start_that_fails_leaves_no_folder(
    corpus: Path, tiny_encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs" / "one"
    for more, said in (
        (["--encoder", "nowhere"], "nowhere"),
        (["--data_dir", str(tmp_path)], "train.txt"),
        (["--resume_from_checkpoint", "nowhere"], "error: --resume_from_checkpoint nowhere is not a folder"),
        (["--save_total_limit", "0"], "error: --save_total_limit is below 1"),
    ):
        assert train.run(flags(corpus, tiny_encoder, output, *more)) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()


def test_ctrl_c_says_how_to_go_on(
    corpus: Path,
    tiny_encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step, stop = train.Trainer._step, {1: signal.SIGINT, 7: signal.SIGTERM}

    def interrupted(trainer: train.Trainer, batches: list[list[int]]) -> None:
        if trainer.progress.step in stop:
            os.kill(os.getpid(), stop.pop(trainer.progress.step))
        step(trainer, batches)

    monkeypatch.setattr(train.Trainer, "_step", interrupted)
    arguments = flags(corpus, tiny_encoder, tmp_path / "run", "--resume_from_checkpoint", "last")
    first = tmp_path / "run" / "checkpoints" / "checkpoint_0"
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for said in ("starts again: there is no checkpoint yet", f"goes on from {first}"):
            assert train.run(arguments) == 130
            last = capsys.readouterr().err.strip().split("\n")[-1]
            assert last == f"interrupted; --resume_from_checkpoint last {said}"
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_a_diverged_loss_stops_the_run_and_says_where(corpus: Path, tiny_encoder: str, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"at step \d+: lower --learning_rate"):
        train.main(flags(corpus, tiny_encoder, tmp_path / "run", "--learning_rate", "1e30"))


def test_a_yaml_file_gives_arguments_and_flags_override_it(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"seed": 7, "cva": False, "context_kinds": ["ocr", "captions"], "data_dir": None}))
    data, model, optimization = train.parse_arguments([str(file), "--seed", "9", "--output_dir", "x"])
    assert (optimization.seed, model.cva, model.context_kinds, data.data_dir) == (9, False, ["ocr", "captions"], None)
    (tmp_path / "bad.yaml").write_text("leaning_rate: 1")
    with pytest.raises(ValueError, match="leaning_rate"):
        train.parse_arguments([str(tmp_path / "bad.yaml"), "--output_dir", "x"])


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_settings_file_is_read(file: Path) -> None:
    _, model, _ = train.parse_arguments([str(file), "--output_dir", "x"])
    assert model.encoder == MINILM
