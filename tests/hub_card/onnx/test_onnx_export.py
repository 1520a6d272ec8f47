"""Export to ONNX and the model that runs it: the same answers as torch, through the same pipeline."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_ita import LABELS, WORDS
from transformers import BertTokenizer, XLMRobertaConfig, pipeline

from hub_card.onnx import onnx_export
from hub_card.onnx.onnx_export import OnnxExport, export_onnx, onnx_command
from hub_card.onnx.onnx_model import CRF, GRAPH, WEIGHTS, OnnxItaForTokenClassification
from modeling_ita import ItaConfig, ItaForTokenClassification, ItaPipeline, ItaProcessor

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

CONTEXT = {"captions": ["a man in the stadium"], "ocr": ["NBA"], "object_tags": ["car"]}


def draw_posts(count: int, longest: int = 12) -> list[Any]:
    """Random posts, every second with a context, some of one word, and an empty one."""
    draw = random.Random(0)
    posts = [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count - 1)]
    return ["", *({"text": post, "context": CONTEXT} if n % 2 else post for n, post in enumerate(posts))]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """The same entities, and scores that differ in rounding only."""
    assert any(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [{**e, "score": None} for e in ours] == [{**e, "score": None} for e in theirs]
        assert [e["score"] for e in ours] == pytest.approx([e["score"] for e in theirs], abs=1e-4)


@pytest.fixture(scope="module")
def export(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> OnnxExport:
    return export_onnx(tiny_model, tiny_processor, tmp_path_factory.mktemp("onnx") / "model")


@pytest.fixture(scope="module")
def onnx_model(export: OnnxExport) -> OnnxItaForTokenClassification:
    return OnnxItaForTokenClassification.from_pretrained(export.folder)


@pytest.fixture
def ready_graph(export: OnnxExport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter, which takes seconds, hands out the graph that `export` has made already."""

    class Program:
        def save(self, file: Path, external_data: bool) -> None:
            shutil.copyfile(export.folder / GRAPH, file)

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())


def test_the_pipeline_finds_the_same_entities(
    onnx_model: OnnxItaForTokenClassification, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    ours, theirs = (ItaPipeline(model=m, processor=tiny_processor, device="cpu") for m in (onnx_model, tiny_model))
    posts = draw_posts(120)
    assert_same(ours(posts, batch_size=16), theirs(posts, batch_size=16))
    by_word: dict[str, Any] = {"aggregation_strategy": "none", "ignore_labels": []}
    assert_same(ours(posts[:40], **by_word), theirs(posts[:40], **by_word))
    built = pipeline("token-classification", model=onnx_model, processor=tiny_processor, pipeline_class=ItaPipeline)
    assert_same([built(posts[5])], [theirs(posts[5])])
    assert "OnnxItaForTokenClassification" in repr(built)
    assert ours([]) == [] and ours(["", ""]) == [[], []]


def test_outputs_are_the_models(
    onnx_model: OnnxItaForTokenClassification, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    posts = ["Phoenix Suns tonight", "in", "the NBA game at the red stadium of Chicago"]
    batch = tiny_processor(posts, [CONTEXT, None, CONTEXT], views="both")
    is_word = batch["word_positions"] >= 0
    with torch.no_grad():
        expected = tiny_model(**batch)
    found = onnx_model(**batch)
    for name in ("emissions", "logits", "cross_emissions", "cross_logits"):
        torch.testing.assert_close(found[name][is_word], expected[name][is_word], atol=1e-4, rtol=1e-4)
    assert onnx_model.decode_tags(found.emissions, is_word) == tiny_model.decode_tags(expected.emissions, is_word)
    for temperature in (None, 3.0):
        ours, theirs = (
            model.decode_entities(outputs.emissions, is_word, temperature)
            for model, outputs in ((onnx_model, found), (tiny_model, expected))
        )
        assert [[e.span for e in row] for row in ours] == [[e.span for e in row] for row in theirs]
        assert [e.score for row in ours for e in row] == pytest.approx(
            [e.score for row in theirs for e in row], abs=1e-4
        )


def test_long_posts_and_segments(
    onnx_model: OnnxItaForTokenClassification, tiny_model: ItaForTokenClassification, tiny_encoder: str
) -> None:
    processor = ItaProcessor(
        BertTokenizer.from_pretrained(tiny_encoder), max_length=24, window_overlap=8, segment_ids=True
    )
    posts = draw_posts(30, longest=70)
    batch = processor([p if isinstance(p, str) else p["text"] for p in posts], [CONTEXT] * 30, views="both")
    assert batch.counts["windowed_posts"] > 5 and batch["cross_token_type_ids"].any()
    ours, theirs = (ItaPipeline(model=m, processor=processor, device="cpu") for m in (onnx_model, tiny_model))
    assert_same(ours(posts), theirs(posts))
    plain = onnx_model(**{n: t for n, t in batch.items() if n != "cross_token_type_ids"})
    assert not torch.allclose(plain.cross_emissions, onnx_model(**batch).cross_emissions, atol=1e-3)


@pytest.mark.parametrize("int8", [False, True])
def test_a_post_has_the_same_answer_in_any_batch(
    int8: bool, export: OnnxExport, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    folder = shutil.copytree(export.folder, tmp_path / "model")
    if int8:
        onnx_export.quantize_graph(folder / GRAPH)
    model = OnnxItaForTokenClassification.from_pretrained(folder, threads=1)
    posts = ["Phoenix Suns tonight", "in", "the NBA game at the red stadium of Chicago"]
    together = model(**tiny_processor(posts))
    for number, post in enumerate(posts):
        alone = model(**tiny_processor(post))
        words = len(post.split())
        torch.testing.assert_close(together.emissions[number, :words], alone.emissions[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.logits[number, :words], alone.logits[0], atol=1e-5, rtol=1e-5)


def test_batches_without_words_or_views(onnx_model: OnnxItaForTokenClassification) -> None:
    empty = torch.zeros(2, 0, dtype=torch.long)
    outputs = onnx_model(input_ids=torch.ones(2, 3, dtype=torch.long), word_positions=empty)
    assert outputs.emissions.shape == outputs.logits.shape == (2, 0, len(LABELS))
    assert onnx_model.decode_entities(outputs.emissions, empty >= 0) == [[], []]
    with pytest.raises(ValueError, match="holds no view"):
        onnx_model(word_positions=empty)
    with pytest.raises(ValueError, match="no word_positions"):
        onnx_model(input_ids=torch.ones(2, 3, dtype=torch.long))


def test_the_folder(export: OnnxExport, tiny_model: ItaForTokenClassification) -> None:
    expected = {GRAPH, CRF, "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(os.listdir(export.folder)) == expected
    assert export.fp32_bytes == (export.folder / GRAPH).stat().st_size
    assert export.fp32_difference < 1e-4 and export.int8_bytes is None
    assert ItaConfig.from_pretrained(export.folder).id2label == tiny_model.config.id2label
    assert ItaProcessor.from_pretrained(export.folder).max_length == 512


def test_saving_again(onnx_model: OnnxItaForTokenClassification, export: OnnxExport, tmp_path: Path) -> None:
    pipe = ItaPipeline(model=onnx_model, processor=ItaProcessor.from_pretrained(export.folder), device="cpu")
    for folder in (tmp_path / "copy", tmp_path / "copy"):
        pipe.save_pretrained(folder)
        copied = OnnxItaForTokenClassification.from_pretrained(folder)
        again = ItaPipeline(model=copied, processor=ItaProcessor.from_pretrained(folder), device="cpu")
        assert again("Phoenix Suns at the NBA game") == pipe("Phoenix Suns at the NBA game")
    copied.save_pretrained(folder)
    assert set(os.listdir(folder)) == set(os.listdir(export.folder))


def test_command(
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import onnx

    for part in (tiny_model, tiny_processor):
        part.save_pretrained(tmp_path / "checkpoint")
    settings = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "configuration_ita.ItaConfig"}, "custom_pipelines": {}}
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(settings | code))
    capfd.readouterr()
    lines = onnx_command(str(tmp_path / "checkpoint"), str(tmp_path / "out"), int8=True)
    said = "".join(capfd.readouterr())
    assert not [line for line in said.splitlines() if line and "Loading weights" not in line]
    assert lines[0].startswith("model.onnx fp32: 0.4 MB, emissions within ") and lines[0].endswith("(not kept)")
    size = (tmp_path / "out" / GRAPH).stat().st_size
    assert size < 310_000 and lines[1].startswith(f"model.onnx int8: {size / 1e6:.1f} MB, emissions within ")
    assert f"from_pretrained({str(tmp_path / 'out')!r})" in lines[2]

    assert json.loads((tmp_path / "out" / "config.json").read_text()) == settings
    nodes = [node.op_type for node in onnx.load(tmp_path / "out" / GRAPH).graph.node]
    linear = 6 * tiny_model.config.text_config.num_hidden_layers
    assert nodes.count("MatMulInteger") == linear
    assert nodes.count("MatMul") == linear // 3 + 1  # two of attention a layer, and the classifier
    outputs = OnnxItaForTokenClassification.from_pretrained(tmp_path / "out")
    batch = tiny_processor(["Phoenix Suns tonight", "the NBA game at the red stadium of Chicago"])
    with torch.no_grad():
        apart = (outputs(**batch).emissions - tiny_model(**batch).emissions)[batch["word_positions"] >= 0]
    assert 0 < apart.abs().max() < 0.3


def test_xlm_roberta_with_its_weights_in_a_file_of_their_own(
    tiny_processor: ItaProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = XLMRobertaConfig(
        vocab_size=len(tiny_processor.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=520, pad_token_id=tiny_processor.tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ItaForTokenClassification(ItaConfig(text_config=encoder, constraints="always")).to(torch.bfloat16)
        torch.nn.init.normal_(model.classifier.weight, std=0.7)
    attention = model.encoder.config._attn_implementation
    monkeypatch.setattr(onnx_export, "ONE_FILE", 0)
    export = export_onnx(model.train(), tiny_processor, tmp_path / "model", int8=True)
    assert (model.training, model.dtype, model.encoder.config._attn_implementation) == (
        True, torch.bfloat16, attention,
    )  # fmt: skip
    assert (tmp_path / "model" / WEIGHTS).stat().st_size > 1000
    assert export.fp32_difference < 1e-4 < export.int8_difference < 0.5
    loaded = OnnxItaForTokenClassification.from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "copy")
    batch = tiny_processor(["Phoenix Suns tonight", "in"])
    assert torch.equal(
        OnnxItaForTokenClassification.from_pretrained(tmp_path / "copy")(**batch).emissions, loaded(**batch).emissions
    )
    with torch.no_grad():
        expected = model.float().eval()(**batch).emissions
    is_word = batch["word_positions"] >= 0
    torch.testing.assert_close(loaded(**batch).emissions[is_word], expected[is_word], atol=0.5, rtol=0)


@pytest.mark.usefixtures("ready_graph")
def test_a_wrong_graph_is_refused(
    export: OnnxExport, tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.classifier.bias[0] += 0.5
    with pytest.raises(ValueError, match=r"encoder 'bert' is wrong: .* by 5.00e-01 \(expected at most 1e-03\)"):
        export_onnx(model, tiny_processor, tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("ready_graph")
def test_only_an_earlier_export_is_replaced(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="model exists and is no earlier ONNX export"):
        export_onnx(tiny_model, tiny_processor, folder)
    (folder / "thesis.tex").unlink()
    for _ in range(2):
        assert export_onnx(tiny_model, tiny_processor, folder).folder == folder
    (folder / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex besides an earlier ONNX export"):
        export_onnx(tiny_model, tiny_processor, folder)
    assert (folder / "thesis.tex").exists() and os.listdir(tmp_path) == ["model"]


def test_an_encoder_that_cannot_be_exported(
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand a page of advice")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        ValueError, match=r"encoder 'bert' cannot be exported to ONNX: RuntimeError: no such operator$"
    ):
        export_onnx(tiny_model, tiny_processor, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_a_quantized_model_is_refused(
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny_model, "is_quantized", True, raising=False)
    with pytest.raises(ValueError, match="load it without quantization_config"):
        export_onnx(tiny_model, tiny_processor, tmp_path / "model")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages(
    package: str,
    export: OnnxExport,
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed: pip install 'ita-mner\[onnx\]'"):
        export_onnx(tiny_model, tiny_processor, tmp_path / "model")
    if package == "onnxruntime":
        with pytest.raises(ImportError, match="onnxruntime is not installed"):
            OnnxItaForTokenClassification.from_pretrained(export.folder)


def test_bad_folders(export: OnnxExport, tmp_path: Path) -> None:
    for missing in (GRAPH, CRF, "config.json"):
        folder = shutil.copytree(export.folder, tmp_path / f"no-{missing}")
        (folder / missing).unlink()
        with pytest.raises(FileNotFoundError, match=f"no-{missing} has no {missing}, .* hub_card.export onnx"):
            OnnxItaForTokenClassification.from_pretrained(folder)
    for damaged in (GRAPH, CRF):
        folder = shutil.copytree(export.folder, tmp_path / f"damaged-{damaged}")
        (folder / damaged).write_bytes(b"not this")
        with pytest.raises(ValueError, match=rf"damaged-{damaged}/{damaged} cannot be (opened|read)"):
            OnnxItaForTokenClassification.from_pretrained(folder)
    folder = shutil.copytree(export.folder, tmp_path / "other")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"other/config.json is of a model of type 'bert' \(expected 'ita'\)"):
        OnnxItaForTokenClassification.from_pretrained(folder)
    labels = dict(enumerate(LABELS[:5]))
    (folder / "config.json").write_text(json.dumps(settings | {"id2label": labels}))
    with pytest.raises(ValueError, match=r"other/crf.safetensors does not fit the configuration: transitions are \(9"):
        OnnxItaForTokenClassification.from_pretrained(folder)
    with pytest.raises(OSError, match=r"'nowhere' is not a folder, and as a repository it did not give config.json"):
        OnnxItaForTokenClassification.from_pretrained("nowhere")


def test_a_crf_that_is_no_number_is_refused(export: OnnxExport, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(export.folder, folder)
    scores = load_file(folder / CRF)
    scores["transitions"][0, 0] = float("nan")
    save_file(scores, folder / CRF)
    with pytest.raises(ValueError, match=rf"{CRF} does not fit .* not finite numbers"):
        OnnxItaForTokenClassification.from_pretrained(folder)


def test_emissions_that_are_no_numbers_are_refused(
    onnx_model: OnnxItaForTokenClassification, tiny_processor: ItaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = ItaPipeline(model=onnx_model, processor=tiny_processor, device="cpu")
    run = onnx_model._session.run

    class Damaged:
        def run(self, names: Any, feeds: Any) -> Any:
            return [run(names, feeds)[0] * float("nan")]

    monkeypatch.setattr(onnx_model, "_session", Damaged())
    with pytest.raises(FloatingPointError, match="input 0: the model gave scores that are not finite"):
        pipe("Phoenix")
    with pytest.raises(FloatingPointError, match="post 0"):
        onnx_model.decode_entities(torch.full((1, 2, 9), float("nan")), torch.ones(1, 2, dtype=torch.bool))
