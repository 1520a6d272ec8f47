from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import pipeline

import modeling_ita.processing_mgcmt
import train
from hub_card import evaluation
from hub_card.report.gate_text import gate_sentences
from modeling_ita import ItaPipeline, MgcmtForTokenClassification, MgcmtProcessor, WordNeighbours

NAMES = ["Phoenix", "Paris", "London", "Chicago"]
VIEWS = {"T", "I+T", "wrong_image", "blank_image"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posts "NAME tonight" with a picture of a ball (a team) or of a tower (a place); one has a damaged picture."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    contexts = []
    tagger = {
        "model": "a/detector",
        "settings": {"attributes": {"model": "a/clip", "settings": {"attributes": ["red"]}}},
    }
    for split, posts in (("train", 18), ("valid", 6), ("test", 6)):
        lines = []
        for i in range(posts):
            tag = ("ORG", "LOC")[i % 2]
            lines += [f"IMGID:{split}{i}", f"{NAMES[i // 2 % 4]}\tB-{tag}", "tonight\tO", ""]
            picture = Image.new("RGB", (60, 40), (200, 220, 10 * i))
            pen = ImageDraw.Draw(picture)
            if tag == "ORG":
                pen.ellipse((15, 5, 45, 35), fill="red")
            else:
                pen.rectangle((25, 5, 35, 40), fill="blue")
            picture.save(folder / "images" / f"{split}{i}.png")
            tags = ["red Sports Ball" if i % 4 else "red car", "hot dog"]
            contexts.append({"id": f"{split}{i}", "object_tags": tags, "provenance": {"object_tags": tagger}})
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "images" / "train5.png").write_bytes(b"no picture")
    (folder / "contexts.jsonl").write_text("\n".join(map(json.dumps, contexts)), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def flags(corpus: Path, encoder: str, output: Path, *more: str) -> list[str]:
    return [
        *("--model", "mgcmt", "--dataset", "conll", "--data_dir", str(corpus), "--images_dir", str(corpus / "images")),
        *("--context_files", str(corpus / "contexts.jsonl"), "--encoder", encoder, "--output_dir", str(output)),
        *("--num_epochs", "2", "--batch_size", "6", "--logging_steps", "1"),
        *more,
    ]


def test_a_run_with_a_frozen_vision_encoder(
    corpus: Path, tiny_encoder: str, tiny_vision_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()
    open_image = modeling_ita.processing_mgcmt.open_image

    def counting(source: Any) -> Image.Image:
        opened[str(source)] += 1
        return open_image(source)

    with monkeypatch.context() as patch:
        patch.setattr("modeling_ita.processing_mgcmt.open_image", counting)
        report = train.main(flags(corpus, tiny_encoder, tmp_path / "run", "--vision_encoder", tiny_vision_encoder))
    of_corpus = {name: times for name, times in opened.items() if name.startswith(str(corpus))}
    assert len(of_corpus) == 29 and set(of_corpus.values()) == {1}  # of 30 images one is damaged
    assert {name for name in report["history"]["steps"][0] if name.endswith("loss")} == {
        "loss",
        "main_loss",
        "aux_loss",
    }
    step = report["history"]["steps"][0]
    assert step["loss"] == pytest.approx(step["main_loss"] + 0.5 * step["aux_loss"], rel=1e-4)
    assert set(report["scores"]["test"]) == VIEWS
    assert report["scores"]["test"]["T"] == report["scores"]["test"]["blank_image"]
    assert set(report["ablation"]["test"]) == {"object_tags", "image"}
    assert report["counts"]["corpus"]["splits"]["train"]["images"]["unreadable"] == 1
    assert report["counts"]["processor"]["test"]["I+T"]["images"] == 6
    assert report["counts"]["processor"]["test"]["T"].get("images", 0) == 0
    [best] = [max(row["mean"] for row in report["history"]["evaluations"])]
    assert best == report["scores"]["validation"]["I+T"]["lenient"]["f1"]

    model = MgcmtForTokenClassification.from_pretrained(tmp_path / "run" / "model")
    processor = MgcmtProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.object_labels == ["hot dog", "sports ball", "car"] and model.config.num_object_classes == 4
    assert processor.max_length == 64 and model.config.num_regions == 4
    before = load_file(Path(tiny_vision_encoder) / "model.safetensors")
    assert all(torch.equal(weights, before[name]) for name, weights in model.vision.state_dict().items())

    # What the command finds on the images themselves is what the run found on the features it kept.
    arguments = ["--dataset", "conll", "--data_dir", str(corpus), "--images_dir", str(corpus / "images")]
    more = ["--context_files", str(corpus / "contexts.jsonl"), "--output_dir", str(tmp_path / "again")]
    evaluation.main(["evaluate", str(tmp_path / "run" / "model"), *arguments, *more])
    again = json.loads((tmp_path / "again" / "report.json").read_text(encoding="utf-8"))
    assert again["scores"] == report["scores"] and again["ablation"] == report["ablation"]
    gates = report["image_gate"]
    assert gates.keys() == again["image_gate"].keys() == {"validation", "test"}
    assert model.config.image_gate == gates["validation"]["threshold"]
    for split, gate in gates.items():
        assert gate["images"] == again["image_gate"][split]["images"] > 0
        for point, view in (("none", "T"), ("all", "I+T")):
            assert gate[point]["f1"] == report["scores"][split][view]["lenient"]["f1"]
    assert " ".join(gate_sentences(report)) in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")

    pipe = pipeline("token-classification", model=str(tmp_path / "run" / "model"), pipeline_class=ItaPipeline)
    image = str(corpus / "images" / "test0.png")
    alone, seen = pipe(["Phoenix tonight", {"text": "Phoenix tonight", "image": image}], aggregation_strategy="none")
    assert alone != seen


def test_a_vision_encoder_from_scratch_is_trained_along_and_resumed_exactly(
    corpus: Path, tiny_encoder: str, tmp_path: Path
) -> None:
    more = ["--vision_encoder", "from_scratch", "--train_vision", "true", "--visual_fusion", "regions"]
    more += ["--save_steps", "1", "--num_epochs", "1"]
    whole = train.main(flags(corpus, tiny_encoder, tmp_path / "whole", *more))
    assert train.main(flags(corpus, tiny_encoder, tmp_path / "parts", *more, "--max_steps", "2")) == {}
    resumed = train.main(flags(corpus, tiny_encoder, tmp_path / "parts", *more, "--resume_from_checkpoint", "last"))
    for key in ("scores", "history"):
        assert whole[key] == resumed[key]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert set(whole["ablation"]["test"]) == {"image"}  # no object takes part
    statistics = [name for name in weights[0] if name.startswith("vision") and name.endswith("running_mean")]
    assert statistics and all(weights[0][name].abs().sum() > 0 for name in statistics)


def test_the_text_side_alone_with_a_table_of_ones_own(corpus: Path, tiny_encoder: str, tmp_path: Path) -> None:
    vectors = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    WordNeighbours([*NAMES, "tonight", "game", "city", "team"], vectors, 4).save_pretrained(tmp_path / "table")
    more = ["--visual_fusion", "none", "--aug_fusion", "attention", "--word_neighbours", str(tmp_path / "table")]
    report = train.main(flags(corpus, tiny_encoder, tmp_path / "run", *more, "--num_epochs", "1"))
    scores = report["scores"]["test"]
    assert scores["I+T"] == scores["T"] == scores["wrong_image"]
    model = MgcmtForTokenClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.image_gate is None and report["image_gate"] == {}  # no picture can be read
    assert model.vision is None and model.config.augmentation_size == 6
    processor = MgcmtProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.augmentation == "vectors" and "team" in processor.word_neighbours


def test_the_defaults_are_those_of_the_method() -> None:
    data, model, optimization = train.parse_arguments(["--model", "mgcmt", "--output_dir", "x"])
    assert (model.max_length, model.aux_loss_weight, model.hidden_dropout, model.fusion_dropout) == (64, 0.5, 0.1, 0.5)
    assert (optimization.num_epochs, optimization.batch_size, optimization.seed) == (75, 24, 32)
    assert (optimization.learning_rate, optimization.head_learning_rate, optimization.crf_learning_rate) == (
        3e-5, None, None,
    )  # fmt: skip
    assert (optimization.warmup_ratio, optimization.weight_decay) == (0.1, 0.01)
    given = train.defaults((data, model, optimization))
    assert given["num_epochs"] == 75 and given["model"] == "mgcmt" and "cva" not in given
    settings = ["--vision_encoder", "from_scratch", "--train_vision", "true", "--visual_fusion", "objects"]
    _, model, _ = train.parse_arguments(["--model", "mgcmt", "--output_dir", "x", *settings])
    assert not model.train_vision  # there is none
    _, ita, optimization = train.parse_arguments(["--output_dir", "x"])
    assert ita.model == "ita" and optimization.num_epochs == 15


def test_one_rate_falls_to_zero_and_norms_are_spared_the_decay(
    corpus: Path, tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    adam = torch.optim.AdamW

    def recording(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        made.append(adam(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("torch.optim.AdamW", recording)
    more = ["--visual_fusion", "objects", "--warmup_ratio", "0.5", "--num_epochs", "2"]
    report = train.main(flags(corpus, tiny_encoder, tmp_path / "run", *more))
    groups = made[0].param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.01]
    for group in groups:
        assert group["initial_lr"] == 3e-5 and group["eps"] == 1e-6
        assert all((weights.dim() > 1) == (group["weight_decay"] > 0) for weights in group["params"])
    rates = [step["lr"] for step in report["history"]["steps"]]
    assert max(rates) == pytest.approx(3e-5) and rates[-1] == 0.0 and min(rates) >= 0.0
    assert rates == [*sorted(rates[:3]), *sorted(rates[3:], reverse=True)]


def test_a_corpus_without_images_or_validation_is_refused(
    corpus: Path, tiny_encoder: str, tiny_vision_encoder: str, tmp_path: Path
) -> None:
    blind = flags(corpus, tiny_encoder, tmp_path / "run", "--vision_encoder", tiny_vision_encoder)
    at = blind.index("--images_dir")
    with pytest.raises(ValueError, match="no training post has an image: give --images_dir"):
        train.main(blind[:at] + blind[at + 2 :])
    (tmp_path / "half").mkdir()
    shutil.copy(corpus / "train.txt", tmp_path / "half" / "train.txt")
    arguments = ["--dataset", "conll", "--data_dir", str(tmp_path / "half"), "--encoder", tiny_encoder]
    with pytest.raises(ValueError, match=r"has no validation split.*valid\.txt"):
        train.main([*arguments, "--output_dir", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--vision_encoder", "from_scratch"], ValueError, "it needs --train_vision true"),
        (["--cva", "false"], ValueError, "--cva"),
        (["--vision_encoder", "nowhere"], ValueError, "nowhere cannot be loaded.*from_scratch --train_vision true"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    corpus: Path, tiny_encoder: str, tmp_path: Path, more: list[str], error: type[BaseException], message: str
) -> None:
    with pytest.raises(error, match=message):
        train.main(flags(corpus, tiny_encoder, tmp_path / "run", *more))
    with pytest.raises(ValueError, match="--aug_fusion"):
        train.parse_arguments(["--output_dir", "x", "--aug_fusion", "gate"])


@pytest.mark.parametrize("system", ["ita", "mgcmt"])
def test_a_corpus_of_posts_with_two_images(
    corpus: Path, tiny_encoder: str, tiny_vision_encoder: str, tmp_path: Path, system: str
) -> None:
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    for split in ("train", "valid", "test"):
        file = folder / f"{split}.txt"
        lines = file.read_text().splitlines()
        file.write_text("\n".join(f"{line} {split}0" if line.startswith("IMGID") else line for line in lines) + "\n")
    more = ["--model", system, "--num_epochs", "1"]
    more += ["--vision_encoder", tiny_vision_encoder] if system == "mgcmt" else []
    report = train.main(flags(folder, tiny_encoder, tmp_path / "run", *more))
    images = report["counts"]["corpus"]["splits"]["test"]["images"]
    assert images["several"] == 5 and images["pictures"] == 11  # test0 itself is named twice, and counts once
    counts = report["counts"]["processor"]["test"]["I+T"]
    model = str(tmp_path / "run" / "model")
    if system == "mgcmt":
        assert counts["images"] == 11 and counts["objects"] == 2 * 11
    else:
        assert counts["contexts"] == 6

    evaluated = ["--dataset", "conll", "--data_dir", str(folder), "--images_dir", str(folder / "images")]
    evaluated += ["--context_files", str(folder / "contexts.jsonl"), "--output_dir", str(tmp_path / "again")]
    evaluation.main(["evaluate", model, *evaluated])
    again = json.loads((tmp_path / "again" / "report.json").read_text(encoding="utf-8"))
    assert again["scores"] == report["scores"]
