from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from seqeval.metrics import f1_score
from tiny_mgcmt import make_model, picture
from transformers import BertTokenizer, ConvNextImageProcessorPil

from hub_card import evaluation
from hub_card.hub.exported_folder import export_model
from hub_card.predictions.evaluate_model import (
    ReadSplit,
    evaluate_model,
    fit_score_temperature,
    shuffled,
    visuals_of_view,
    without_kind,
)
from hub_card.predictions.image_gate import fit_image_gate
from hub_card.predictions.prediction import Visual, decode, least_confidence, read_images, read_posts
from hub_card.report.gate_text import gate_sentences
from hub_card.report.report import read_report
from hub_card.scores.views import VIEWS
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, MgcmtProcessor
from modeling_ita.visual_context import VisualContext

POSTS = [
    ("Phoenix tonight", ["B-ORG", "O"], {"captions": ["a game"], "ocr": ["NBA"]}),
    ("in Phoenix", ["O", "B-LOC"], {"captions": ["the stadium"]}),
    ("Obama in Chicago", ["B-PER", "O", "B-LOC"], {}),
    ("the London Suns game", ["O", "B-ORG", "I-ORG", "O"], {"ocr": ["SUNS"]}),
    ("red car", ["O", "O"], {"captions": ["a red car"]}),
    ("Paris", ["B-PER"], {"ocr": ["dog"]}),
]


@dataclass
class Post:
    id: str
    words: list[str]
    tags: list[int]
    context: VisualContext
    image: Any = None


@pytest.fixture
def posts(tiny_model: ItaForTokenClassification) -> list[Post]:
    ids = tiny_model.config.tag_scheme.label2id
    return [
        Post(str(n), text.split(), [ids[tag] for tag in tags], VisualContext(kinds))
        for n, (text, tags, kinds) in enumerate(POSTS)
    ]


def test_every_view_and_ablation_is_scored(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, posts: list[Post]
) -> None:
    evaluation = evaluate_model(tiny_model, tiny_processor, {"train": posts[:2], "test": posts}, batch_size=4)
    scores = evaluation.fields["scores"]["test"]
    assert tuple(scores) == VIEWS and evaluation.temperature == 1.0
    gold = [tags for _, tags, _ in POSTS]
    for view in VIEWS:
        given = visuals_of_view(view, [Visual(post.context) for post in posts])
        emissions, _ = read_posts(tiny_model, tiny_processor, [post.words for post in posts], given)
        tags = [prediction.tags for prediction in decode(tiny_model, emissions)]
        assert scores[view]["lenient"]["f1"] == pytest.approx(f1_score(gold, tags))
    assert scores["blank_image"] == scores["T"]  # nothing stands behind the posts
    assert list(evaluation.fields["ablation"]["test"]) == ["captions", "ocr"]
    kinds = evaluation.fields["errors"]["test"]["T"]["kinds"]
    assert sum(kinds[kind] for kind in kinds if kind != "spurious") == scores["T"]["lenient"]["gold"]
    assert set(evaluation.fields["calibration"]["test"]["views"]) == set(VIEWS)
    assert [post.id for post in evaluation.posts["test"]] == [post.id for post in posts]
    assert evaluation.posts["test"][3].context == {"ocr": ["SUNS"]}
    json.dumps(evaluation.fields["errors"])


def test_the_image_gate_is_fitted_on_validation(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, posts: list[Post]
) -> None:
    posts.append(Post("blank", ["a", "dog"], [0, 0], VisualContext({}, {"ocr": {"model": "x"}})))  # read in vain
    posts.append(Post("other kind", ["a", "dog"], [0, 0], VisualContext({"mood": ["sad"]})))  # not read by the model
    splits = {"train": posts[:2], "validation": posts, "test": posts[::-1][:5]}
    evaluation = evaluate_model(tiny_model, tiny_processor, splits, batch_size=4)
    gates, scores = evaluation.fields["image_gate"], evaluation.fields["scores"]
    assert list(gates) == ["validation", "test"]
    for split, gate in gates.items():
        assert gate["threshold"] == gate["chosen"]["threshold"] == evaluation.image_gate
        assert gate["none"]["f1"] == scores[split]["T"]["lenient"]["f1"]
        assert gate["all"]["f1"] == scores[split]["I+T"]["lenient"]["f1"]
    assert (gates["validation"]["posts"], gates["validation"]["images"]) == (8, 6)
    assert (gates["test"]["posts"], gates["test"]["images"]) == (5, 4)
    json.dumps(gates, allow_nan=False)

    # The same from the emissions alone, as a benchmark has them.
    read = ReadSplit(tiny_model, tiny_processor, "validation", posts, batch_size=3)
    gated = read.gated_posts()
    assert fit_image_gate(gated) == pytest.approx(evaluation.image_gate, abs=1e-4)
    for row, unsure in zip(read.emissions["T"], gated.least_confidence, strict=True):
        [expected] = tiny_model.least_confidence(row[None], torch.ones(1, len(row)) > 0)
        assert unsure == pytest.approx(expected, abs=1e-5)
    is_read = gated.read_at(0.5)
    mixed = [read.emissions["I+T" if yes else "T"][n] for n, yes in enumerate(is_read)]
    tags = [prediction.tags for prediction in decode(tiny_model, mixed)]
    labels = tiny_model.config.tag_scheme.labels
    counts = gated.counts(is_read)
    f1 = f1_score([[labels[tag] for tag in post.tags] for post in posts], tags)
    assert 2 * counts.correct.sum() / (counts.gold + counts.predicted).sum() == pytest.approx(f1)

    without = evaluate_model(tiny_model, tiny_processor, {"test": posts})
    assert without.image_gate is None and without.fields["image_gate"] == {}
    none = [Post(post.id, post.words, post.tags, VisualContext()) for post in posts]
    without = evaluate_model(tiny_model, tiny_processor, {"validation": none, "test": posts})
    assert without.image_gate is None and without.fields["image_gate"] == {}


def test_a_post_without_words_is_not_unsure(tiny_model: ItaForTokenClassification) -> None:
    size = len(tiny_model.config.tag_scheme)
    found = least_confidence(tiny_model, [torch.empty(0, size), torch.zeros(2, size), torch.empty(0, size)])
    assert found[0] == found[2] == 0 < found[1]
    assert least_confidence(tiny_model, []) == []


def test_order_of_posts_and_size_of_batches_change_nothing(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, posts: list[Post]
) -> None:
    first = evaluate_model(tiny_model, tiny_processor, {"test": posts}, batch_size=2)
    again = evaluate_model(tiny_model, tiny_processor, {"test": posts[::-1]}, batch_size=32)
    for view in ("T", "I+T", "blank_image"):
        for scoring in ("lenient", "strict"):
            assert first.fields["scores"]["test"][view][scoring] == again.fields["scores"]["test"][view][scoring]
    assert first.fields["errors"]["test"]["I+T"] == again.fields["errors"]["test"]["I+T"]


def test_an_ablation_is_the_view_without_the_kind(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, posts: list[Post]
) -> None:
    whole = evaluate_model(tiny_model, tiny_processor, {"test": posts})
    reduced = [
        Post(post.id, post.words, post.tags, without_kind(Visual(post.context), "ocr").context) for post in posts
    ]
    again = evaluate_model(tiny_model, tiny_processor, {"test": reduced})
    assert whole.fields["ablation"]["test"]["ocr"] == again.fields["scores"]["test"]["I+T"]
    assert "ocr" not in again.fields["ablation"]["test"]


def test_the_temperature_makes_the_gold_tags_most_likely(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, posts: list[Post]
) -> None:
    emissions, _ = read_posts(tiny_model, tiny_processor, [post.words for post in posts], [Visual()] * len(posts))
    found = fit_score_temperature(tiny_model, emissions, [post.tags for post in posts])

    def nll(temperature: float) -> float:
        crf = copy.deepcopy(tiny_model.crf)
        with torch.no_grad():
            for scores in crf.parameters():
                scores /= temperature
            return -sum(
                float(
                    crf.log_likelihood(row[None] / temperature, torch.tensor([post.tags]), torch.ones(1, len(row)) > 0)
                )
                for row, post in zip(emissions, posts, strict=True)
            )

    grid = [0.25 * 32 ** (n / 200) for n in range(201)]
    best = min(grid, key=nll)
    assert found == pytest.approx(best, rel=0.02)
    assert nll(found) <= nll(1.0)


def test_scores_at_a_temperature_are_those_of_a_scaled_model(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, posts: list[Post]
) -> None:
    emissions, _ = read_posts(tiny_model, tiny_processor, [post.words for post in posts], [Visual()] * len(posts))
    scaled = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for scores in scaled.crf.parameters():
            scores /= 2.0
    for at_two, plain in zip(
        decode(tiny_model, emissions, (1.0, 2.0)), decode(scaled, [row / 2 for row in emissions]), strict=True
    ):
        assert at_two.tags == plain.tags
        assert {s: p[1] for s, p in at_two.entities.items()} == pytest.approx(
            {s: p[0] for s, p in plain.entities.items()}
        )
    tuned = copy.deepcopy(tiny_model)
    tuned.config.score_temperature = 2.0
    mask = torch.ones(1, len(emissions[0])) > 0
    [row] = tuned.decode_entities(emissions[0][None], mask)
    [same] = tiny_model.decode_entities(emissions[0][None], mask, 2.0)
    assert row == same
    with pytest.raises(ValueError, match="temperature is 0"):
        tiny_model.decode_entities(emissions[0][None], mask, 0.0)


def test_wrong_images_are_those_of_other_posts() -> None:
    visuals = [Visual(VisualContext({"captions": [str(n)]}), f"{n}.png") for n in range(20)]
    others = shuffled(visuals, seed=0)
    assert sorted(v.image for v in others) == sorted(v.image for v in visuals)
    assert all(a != b and f"{a.context.captions[0]}.png" == a.image for a, b in zip(others, visuals, strict=True))
    with pytest.raises(ValueError, match="unknown view 'I'"):
        visuals_of_view("I", visuals)


def test_a_model_that_looks_is_shown_the_images(tiny_encoder: str, posts: list[Post], tmp_path: Path) -> None:
    model = make_model(num_object_classes=3)
    torch.nn.init.normal_(model.classifier.weight, std=2.0, generator=torch.Generator().manual_seed(0))
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    processor = MgcmtProcessor(BertTokenizer.from_pretrained(tiny_encoder), images, ["car", "dog"])
    files = [str(tmp_path / f"{n}.png") for n in range(3)]
    for n, file in enumerate(files):
        picture(n).save(file)
    shown = [files[0], picture(1), processor.image_tensors([picture(2)])["pixel_values"][0], None, files[0], files[1]]
    tags = [["car"], [], ["dog", "dog"], ["car"], [], []]
    for post, image, objects in zip(posts, shown, tags, strict=True):
        post.image, post.context = image, VisualContext({"object_tags": objects} if objects else {})
    found = evaluate_model(model, processor, {"test": posts}, batch_size=4)
    assert list(found.fields["ablation"]["test"]) == ["object_tags", "image"]
    assert (
        found.fields["counts"]["test"]["I+T"]["images"] == 5 and found.fields["counts"]["test"]["I+T"]["objects"] == 4
    )
    assert found.fields["counts"]["test"]["T"].get("images", 0) == 0
    fitted = evaluate_model(model, processor, {"validation": posts}, batch_size=4)
    gate, scores = fitted.fields["image_gate"]["validation"], fitted.fields["scores"]["validation"]
    assert gate["images"] == 6  # the fourth has objects alone
    assert gate["none"]["f1"] == scores["T"]["lenient"]["f1"] and gate["all"]["f1"] == scores["I+T"]["lenient"]["f1"]
    blind, objects = make_model(visual_fusion="regions"), [Post(p.id, p.words, p.tags, p.context) for p in posts]
    assert blind.objects is None  # its processor knows classes of objects all the same
    assert evaluate_model(blind, processor, {"validation": objects}).image_gate is None

    pipe = ItaPipeline(model=model, processor=processor)
    shown[2] = files[2]
    given = [
        {"words": post.words, "image": image, "context": {"object_tags": objects}}
        for post, image, objects in zip(posts, shown, tags, strict=True)
    ]
    alone = [{"words": post.words} for post in posts]
    for view, inputs in (("I+T", given), ("T", alone)):
        expected = pipe(inputs, is_split_into_words=True)
        for post, entities in zip(found.posts["test"], expected, strict=True):
            types = [span.type for span in sorted(post.views[view], key=lambda span: span.start)]
            assert types == [entity["entity_group"] for entity in entities]
            assert sorted(score for score in post.views[view].values()) == pytest.approx(
                sorted(entity["score"] for entity in entities), abs=1e-5
            )
    assert [post.views["I+T"] for post in found.posts["test"]] != [post.views["T"] for post in found.posts["test"]]

    regions = read_images(model, processor, shown, batch_size=2)
    assert regions[3] is None and regions[0] is regions[4]  # the same file
    expected = model.region_features(processor.image_tensors([picture(1)])["pixel_values"])[0]
    torch.testing.assert_close(regions[1], expected)
    torch.testing.assert_close(regions[5], expected)
    pixels = read_images(model, processor, shown, regions=False)
    assert pixels[0].shape == (3, 32, 32) and torch.equal(pixels[1], pixels[5])
    assert read_images(model, processor, [None, None]) == [None, None]


def test_the_command_writes_report_and_page(
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    export_model(tiny_model, tiny_processor, tmp_path / "model")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        lines = [
            f"IMGID:{split}{n}\n" + "".join(f"{word}\t{tag}\n" for word, tag in zip(text.split(), tags, strict=True))
            for n, (text, tags, _) in enumerate(POSTS)
        ]
        (corpus / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    contexts = [
        {"id": f"{split}{n}", **kinds} for split in ("train", "valid", "test") for n, (*_, kinds) in enumerate(POSTS)
    ]
    (corpus / "contexts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in contexts), encoding="utf-8")
    arguments = ["evaluate", str(tmp_path / "model"), "--dataset", "twitter2017", "--data_dir", str(corpus)]
    arguments += ["--context_files", str(corpus / "contexts.jsonl"), "--output_dir", str(tmp_path / "out")]
    evaluation.main([*arguments, "--device", "cpu"])
    report: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert tuple(report["scores"]["test"]) == VIEWS and report["signatures"]["test"]["I+T"]["lenient"]
    assert report["calibration"]["test"]["temperature"] == report["calibration"]["validation"]["temperature"] != 1
    assert report["ablation"]["test"].keys() == {"captions", "ocr"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 5_000
    said = capsys.readouterr().out
    assert "blank image" in said and "ita-mner-f1|" in said

    gate = report["image_gate"]["validation"]["threshold"]
    [line] = [line for line in said.splitlines() if line.startswith("images  ")]
    assert " ".join(gate_sentences(read_report(tmp_path / "out" / "report.json"))) in line
    assert f"(image_gate {gate:.3g}), once --update_config has written it" in line
    config = tmp_path / "model" / "config.json"
    before = json.loads(config.read_text(encoding="utf-8"))
    assert before["image_gate"] is None and before["score_temperature"] == 1
    assert evaluation.main([*arguments, "--device", "cpu", "--update_config"]) == 0
    after = json.loads(config.read_text(encoding="utf-8"))
    temperature = report["calibration"]["validation"]["temperature"]
    assert after == before | {"image_gate": gate, "score_temperature": temperature}
    assert f"(image_gate {gate:.3g}, written into {config})" in capsys.readouterr().out
    loaded = ItaForTokenClassification.from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "again")
    assert (loaded.config.image_gate, loaded.config.score_temperature) == (gate, temperature)

    # Posts without contexts have no gate: an earlier one stays, and the line does not appear.
    other = json.dumps({"id": "test0", "mood": ["sad"]}) + "\n"  # of a kind that the model does not take
    (corpus / "contexts.jsonl").write_text(other, encoding="utf-8")
    config.write_text(json.dumps(after | {"image_gate": 0.25, "score_temperature": 3.0}), encoding="utf-8")
    assert evaluation.main([*arguments, "--device", "cpu", "--update_config"]) == 0
    kept = json.loads(config.read_text(encoding="utf-8"))
    again = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert kept["image_gate"] == 0.25 and again["image_gate"] == {}
    assert kept["score_temperature"] == again["calibration"]["validation"]["temperature"] != 3
    assert "images  " not in capsys.readouterr().out

    # Without a validation split nothing is fitted, so that nothing may be written.
    (corpus / "valid.txt").unlink()
    written = config.read_bytes()
    assert evaluation.main([*arguments, "--device", "cpu", "--update_config"]) == 2
    assert "has no validation split to fit on" in capsys.readouterr().err
    assert evaluation.main([*arguments, "--device", "cpu"]) == 0
    assert config.read_bytes() == written


def test_what_was_fitted_is_not_written_to_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation.main(["evaluate", "you/model", "--output_dir", str(tmp_path / "out"), "--update_config"]) == 2
    assert "--update_config writes into a local folder, and you/model is none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
