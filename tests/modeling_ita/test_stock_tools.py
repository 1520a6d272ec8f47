"""The tools that people have already: stock pipeline, evaluator, Trainer, compiler, quantizers, reduced precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
import torch
import transformers
from tiny_mgcmt import make_model, picture
from torch import nn
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    ConvNextImageProcessorPil,
    EvalPrediction,
    PreTrainedModel,
    TokenClassificationPipeline,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from hub_card.hub.exported_folder import export_model
from hub_card.scores.metric import MnerF1
from hub_card.scores.scores import score_tags
from modeling_ita import (
    ItaDataCollator,
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    MgcmtDataCollator,
    MgcmtProcessor,
)

POST = "Phoenix Suns tonight, Obama in Paris"
CONTEXT = {"captions": ["a man in the stadium"]}
POSTS = [  # the same words are another entity by the picture
    ("Phoenix tonight", "B-LOC O", "red car"),
    ("Phoenix tonight", "B-ORG O", "sign"),
    ("Obama in Paris", "B-PER O B-LOC", "man"),
    ("the Suns game", "O B-ORG O", "stadium"),
    ("Chicago at London", "B-ORG O B-LOC", "game"),
    ("the dog", "O O", "dog"),
    ("NBA game in Chicago", "B-MISC O O B-LOC", "game"),
    ("Paris at the NBA", "B-PER O O B-MISC", "man"),
]


@pytest.fixture(scope="module")
def exported(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return str(export_model(tiny_model, tiny_processor, tmp_path_factory.mktemp("hub") / "model"))


@pytest.fixture(scope="module")
def posts(tiny_model: ItaForTokenClassification) -> datasets.Dataset:
    names = list(tiny_model.config.tag_scheme.labels)
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "words": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=names)),
            "context": {"captions": datasets.List(datasets.Value("string"))},
        }
    )
    rows = [
        {"id": str(n), "words": words.split(), "tags": tags.split(), "context": {"captions": [caption]}}
        for n, (words, tags, caption) in enumerate(POSTS)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def batch_of(processor: ItaProcessor, *posts: str, views: Any = "both") -> dict[str, torch.Tensor]:
    return dict(processor(list(posts), [CONTEXT] * len(posts), views=views))


def posteriors(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits.exp()


# --- pipelines and evaluators ----------------------------------------------------------------------------------------


def test_the_stock_pipeline_reads_text(exported: str, tiny_processor: ItaProcessor) -> None:
    model = AutoModelForTokenClassification.from_pretrained(exported)
    stock = TokenClassificationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(exported), device="cpu")
    batch = batch_of(tiny_processor, POST, views="T")
    expected = posteriors(model, batch)[0]  # (N, C)
    ours = ItaPipeline(model=model, processor=tiny_processor, device="cpu")
    words = ours(POST, aggregation_strategy="none", ignore_labels=[])
    found = stock(POST, ignore_labels=[])
    assert [(row["word"], row["start"], row["end"]) for row in found] == [
        (word["word"], word["start"], word["end"]) for word in words
    ]  # each word is one piece
    assert [row["entity"] for row in found] == [model.config.id2label[n] for n in expected.argmax(-1).tolist()]
    assert [row["score"] for row in found] == pytest.approx(expected.amax(-1).tolist(), abs=1e-5)
    assert {row["entity_group"] for row in stock(POST, aggregation_strategy="simple")} <= set(
        model.config.tag_scheme.types
    )


def test_the_evaluator_scores_as_we_do(
    exported: str, posts: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # evaluate 0.4.6 asks whether it was given a TensorFlow model, and transformers 5 does not know what that is.
    monkeypatch.setattr(transformers, "TFPreTrainedModel", PreTrainedModel, raising=False)
    pipe: Any = pipeline(
        "token-classification",
        model=exported,
        pipeline_class=ItaPipeline,
        aggregation_strategy="none",  # the evaluator reads tags, word by word
        device="cpu",
    )
    found = evaluate.evaluator("token-classification").compute(
        pipe, data=posts, metric=MnerF1(), input_column="words", label_column="tags"
    )
    names = posts.features["tags"].feature.names
    gold = [[names[tag] for tag in tags] for tags in posts["tags"]]
    tagged = pipe(list(posts["words"]), is_split_into_words=True, ignore_labels=[])
    predicted = [[word["entity"] for word in row] for row in tagged]
    assert score_tags(gold, predicted)["lenient"]["predicted"] > 0
    for key, value in MnerF1().compute(predictions=predicted, references=gold).items():
        assert found[key] == value, key
    assert found["total_time_in_seconds"] > 0


# --- Trainer ---------------------------------------------------------------------------------------------------------


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "max_grad_norm": 5.0,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), remove_unused_columns=False, **(settings | given))


def accuracy(evaluation: EvalPrediction) -> dict[str, float]:
    """The share of words whose most probable tag is right; what else the model returns does not come here."""
    logits, labels = evaluation.predictions, evaluation.label_ids
    assert isinstance(logits, np.ndarray)
    assert isinstance(labels, np.ndarray)
    assert logits.shape[:2] == labels.shape
    return {"accuracy": float((logits.argmax(-1) == labels)[labels != -100].mean())}


def test_trainer_trains_a_model_that_looks(tiny_encoder: str, posts: datasets.Dataset, tmp_path: Path) -> None:
    pictures = {"image": [picture(n) if n % 3 else None for n in range(len(posts))]}
    looking = datasets.Dataset.from_dict(pictures, features=datasets.Features({"image": datasets.Image()}))
    looking = datasets.concatenate_datasets([posts, looking], axis=1)
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    processor = MgcmtProcessor(AutoTokenizer.from_pretrained(tiny_encoder), images, ["car", "dog"])
    trainer = Trainer(
        make_model(num_object_classes=3, train_vision=True),
        arguments(tmp_path, max_steps=12, per_device_eval_batch_size=3),
        data_collator=MgcmtDataCollator(processor),
        train_dataset=looking,
        eval_dataset=looking,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2


def test_trainer_learns_evaluates_and_resumes(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, posts: datasets.Dataset, tmp_path: Path
) -> None:
    def trainer(**given: Any) -> Any:
        return Trainer(
            copy.deepcopy(tiny_model),
            arguments(tmp_path / "run", max_steps=40, save_strategy="steps", save_steps=20, **given),
            data_collator=ItaDataCollator(tiny_processor),
            train_dataset=posts,
            eval_dataset=posts.select(range(5)),
            processing_class=tiny_processor,
            compute_metrics=accuracy,
        )

    whole = trainer(per_device_eval_batch_size=3)
    before = whole.evaluate()
    whole.train()
    after = whole.evaluate()
    assert after["eval_loss"] < before["eval_loss"] / 5
    # Two posts differ by their pictures only. The textual view, which is the first output, cannot tell them apart.
    assert after["eval_accuracy"] >= 11 / 12
    whole.data_collator = ItaDataCollator(tiny_processor, views="I+T")
    assert whole.evaluate()["eval_accuracy"] == 1
    predictions = whole.predict(posts.remove_columns("tags"))
    assert predictions.label_ids is None
    assert predictions.predictions.shape == (8, 4, 9)

    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-20"))
    assert resumed.state.global_step == 40
    for name, weights in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weights, rtol=0, atol=1e-6, msg=name)
    saved = ItaForTokenClassification.from_pretrained(tmp_path / "run" / "checkpoint-40")
    torch.testing.assert_close(saved.state_dict(), whole.model.state_dict())
    assert ItaProcessor.from_pretrained(tmp_path / "run" / "checkpoint-40").context_kinds


def test_a_batch_that_holds_long_posts_is_evaluated(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    processor = copy.copy(tiny_processor)
    processor.max_length, processor.window_overlap = 16, 4
    rows = [{"words": ["Phoenix", "in"] * n, "tags": [1, 0] * n} for n in (20, 1, 3)]
    trainer = Trainer(
        tiny_model,
        arguments(tmp_path, per_device_eval_batch_size=2),
        data_collator=ItaDataCollator(processor),
        eval_dataset=rows,
        compute_metrics=accuracy,
    )
    batches = [ItaDataCollator(processor)(rows[:2]), ItaDataCollator(processor)(rows[2:])]
    with torch.no_grad():
        first, last = (tiny_model(**batch).loss.item() for batch in batches)
    assert trainer.evaluate()["eval_loss"] == pytest.approx((2 * first + last) / 3, rel=1e-5)


# --- what changes the model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "of_classifier"), [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_reduced_precision(
    exported: str, tiny_processor: ItaProcessor, dtype: torch.dtype, of_classifier: torch.dtype
) -> None:
    batch = batch_of(tiny_processor, POST, "the dog")
    exact = AutoModelForTokenClassification.from_pretrained(exported).eval()
    loaded = AutoModelForTokenClassification.from_pretrained(exported, dtype=dtype).eval()
    assert loaded.dtype == dtype
    assert {weights.dtype for weights in loaded.encoder.parameters()} == {dtype}
    assert {weights.dtype for weights in loaded.classifier.parameters()} == {of_classifier}
    assert {weights.dtype for weights in loaded.crf.parameters()} == {torch.float32}
    cast = copy.deepcopy(exact).to(dtype)
    for model in (loaded, cast):
        torch.testing.assert_close(posteriors(model, batch), posteriors(exact, batch), rtol=0, atol=0.05)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_a_device_map(exported: str, tiny_processor: ItaProcessor, device_map: Any) -> None:
    batch = batch_of(tiny_processor, POST)
    exact = AutoModelForTokenClassification.from_pretrained(exported).eval()
    mapped = AutoModelForTokenClassification.from_pretrained(exported, device_map=device_map).eval()
    assert torch.equal(posteriors(mapped, batch), posteriors(exact, batch))
    assert "BertLayer" in mapped._no_split_modules  # the encoder's own, so that "auto" cuts between its layers


def test_a_compiled_model_gives_the_same_at_any_length(
    tiny_model: ItaForTokenClassification, tiny_processor: ItaProcessor
) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:  # traced; no kernels are built
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(tiny_model, backend=backend, dynamic=True)
    for post in (POST, f"{POST} at the game tonight", "Paris tonight"):
        batch = batch_of(tiny_processor, post, "the dog")
        torch.testing.assert_close(posteriors(compiled, batch), posteriors(tiny_model, batch))
    assert len(graphs) == 2  # before and after the CRF, which runs as it is
    torch.compiler.reset()


# --- quantizers ------------------------------------------------------------------------------------------------------


class SixBits(QuantizationConfigMixin):
    """The configuration of `SixBitsQuantizer`."""

    def __init__(self, modules_to_not_convert: list[str] | None = None, **given: Any) -> None:
        self.quant_method: Any = "six_bits"
        self.modules_to_not_convert = modules_to_not_convert


class SixBitsLinear(nn.Linear):
    """A linear layer whose weights are rounded to 63 steps when they are used."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        step = self.weight.abs().amax(1, keepdim=True) / 31
        return nn.functional.linear(given, (self.weight / step).round() * step, self.bias)


class SixBitsQuantizer(HfQuantizer):
    """Replaces layers as the quantizer of bitsandbytes does: all linear ones but those that it is told to leave."""

    quantization_config: SixBits

    def _process_model_before_weight_loading(self, model: Any, **given: Any) -> None:
        left = self.get_modules_to_not_convert(
            model, self.quantization_config.modules_to_not_convert, model._keep_in_fp32_modules
        )
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and should_convert_module(name, left):
                with torch.device("meta"):
                    new = SixBitsLinear(module.in_features, module.out_features)
                model.set_submodule(name, new)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture
def six_bits() -> Iterator[None]:
    register_quantization_config("six_bits")(SixBits)
    register_quantizer("six_bits")(SixBitsQuantizer)
    yield
    del AUTO_QUANTIZATION_CONFIG_MAPPING["six_bits"], AUTO_QUANTIZER_MAPPING["six_bits"]


@pytest.mark.parametrize("skipped", [None, ["encoder.layer.0"]])
def test_a_quantizer_takes_the_encoder_and_leaves_the_head(
    exported: str, tiny_processor: ItaProcessor, tmp_path: Path, six_bits: None, skipped: list[str] | None
) -> None:
    exact = AutoModelForTokenClassification.from_pretrained(exported).eval()
    config = SixBits(modules_to_not_convert=skipped)
    quantized = AutoModelForTokenClassification.from_pretrained(exported, quantization_config=config).eval()
    replaced = {name for name, module in quantized.named_modules() if isinstance(module, SixBitsLinear)}
    linear = {name for name, module in exact.named_modules() if isinstance(module, nn.Linear)}
    assert replaced == {name for name in linear if not name.startswith(("classifier", *(skipped or ())))} != set()
    assert torch.equal(quantized.classifier.weight, exact.classifier.weight)
    assert torch.equal(quantized.crf.transitions, exact.crf.transitions)

    batch = batch_of(tiny_processor, POST, "the dog")
    found = posteriors(quantized, batch)
    assert not torch.equal(found, posteriors(exact, batch))
    torch.testing.assert_close(found, posteriors(exact, batch), rtol=0, atol=0.1)
    quantized.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(posteriors(again, batch), found)
    pipe = ItaPipeline(model=quantized, processor=tiny_processor, device="cpu")
    assert pipe(POST)


def test_a_quantized_model_in_half_precision(exported: str, tiny_processor: ItaProcessor, six_bits: None) -> None:
    quantized = AutoModelForTokenClassification.from_pretrained(
        exported, quantization_config=SixBits(), dtype=torch.bfloat16
    ).eval()
    exact = AutoModelForTokenClassification.from_pretrained(exported).eval()
    batch = batch_of(tiny_processor, POST)
    torch.testing.assert_close(posteriors(quantized, batch), posteriors(exact, batch), rtol=0, atol=0.1)
