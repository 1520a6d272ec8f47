from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, DebertaV2Config, ModernBertConfig, RobertaConfig, XLMRobertaConfig

from modeling_ita.configuration_ita import ItaConfig
from modeling_ita.modeling_ita import ItaForTokenClassification
from modeling_ita.processing_ita import ItaProcessor

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-MISC", "I-MISC"]
SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,  # large weights, so that a lost or leaked piece shows
    "pad_token_id": 1,
}
ENCODERS = {
    "bert": BertConfig(**{**SMALL, "pad_token_id": 0}),
    "roberta": RobertaConfig(**SMALL, max_position_embeddings=80),
    "xlm-roberta": XLMRobertaConfig(**SMALL, max_position_embeddings=80),
    "deberta-v3": DebertaV2Config(
        **SMALL,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        type_vocab_size=0,
    ),
    "modernbert": ModernBertConfig(
        **SMALL, global_attn_every_n_layers=2, local_attention=8, cls_token_id=2, sep_token_id=3
    ),
}


def make_model(encoder: str = "bert", **config: object) -> ItaForTokenClassification:
    torch.manual_seed(0)
    ids = {"cls_token_id": 2, "sep_token_id": 3}
    model = ItaForTokenClassification(ItaConfig(text_config=ENCODERS[encoder].to_dict(), **{**ids, **config}))
    return model.eval()


def make_batch(padding: int = 0) -> dict[str, torch.Tensor]:
    """Three posts of 5, 3 and 4 words; the second has no context."""
    generator = torch.Generator().manual_seed(1)
    posts = [torch.randint(10, 120, (n,), generator=generator).tolist() for n in (7, 4, 5)]
    positions = [[1, 2, 4, 5, 7], [1, 3, 4], [1, 2, 3, 5]]
    contexts = [torch.randint(10, 120, (n,), generator=generator).tolist() for n in (9, 0, 4)]
    text = [[2, *post, 3] for post in posts]
    cross = [[*row, *context, 3] if context else row for row, context in zip(text, contexts, strict=True)]

    def pad(rows: list[list[int]], fill: int) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    return {
        "input_ids": pad(text, padding),
        "attention_mask": pad([[1] * len(row) for row in text], 0),
        "cross_input_ids": pad(cross, padding),
        "cross_attention_mask": pad([[1] * len(row) for row in cross], 0),
        "word_positions": pad(positions, -1),
        "has_context": torch.tensor([True, False, True]),
        "labels": pad([[0, 1, 2, 0, 3], [0, 5, 6], [7, 8, 0, 0]], -100),
    }


def one_view(batch: dict[str, torch.Tensor], view: str) -> dict[str, torch.Tensor]:
    dropped = (
        ("cross_input_ids", "cross_attention_mask", "has_context") if view == "T" else ("input_ids", "attention_mask")
    )
    return {name: tensor for name, tensor in batch.items() if name not in dropped}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_views_in_one_call_equal_each_view_alone(encoder: str, attention: str) -> None:
    model = make_model(encoder)
    if encoder == "deberta-v3" and attention == "sdpa":
        pytest.skip("transformers has no such attention for DeBERTa")
    model.set_attn_implementation(attention)
    batch = make_batch(padding=model.config.text_config.pad_token_id)
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    both = model(**batch)
    assert len(calls) == 1
    text, cross = model(**one_view(batch, "T")), model(**one_view(batch, "I+T"))
    mask = batch["word_positions"] >= 0
    torch.testing.assert_close(both.emissions[mask], text.emissions[mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(both.cross_emissions[mask], cross.emissions[mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(both.text_loss, text.text_loss)
    torch.testing.assert_close(both.cross_loss, cross.cross_loss)
    assert (both.emissions - both.cross_emissions)[mask].abs().max() > 1e-3  # the context does something


def test_a_post_without_context_is_the_same_in_both_views() -> None:
    output = make_model()(**make_batch())
    torch.testing.assert_close(output.logits[1, :3], output.cross_logits[1, :3], atol=1e-5, rtol=0)


def test_batch_equals_single_posts() -> None:
    model, batch = make_model(), make_batch()
    together = model(**batch)
    for b in range(3):
        alone = model(**{name: tensor[b : b + 1] for name, tensor in batch.items()})
        words = int((batch["word_positions"][b] >= 0).sum())
        torch.testing.assert_close(alone.logits[0, :words], together.logits[b, :words], atol=1e-5, rtol=0)


def test_losses_against_enumeration_of_all_tag_sequences() -> None:
    labels = {0: "O", 1: "B-X", 2: "I-X"}
    model = make_model(id2label=labels, loss_preset="code", cva_temperature=2.0)
    batch = make_batch()
    batch["labels"] = torch.where(batch["labels"] >= 0, batch["labels"] % 3, -100)
    output = model(**batch)

    def score(emissions: torch.Tensor, tags: tuple[int, ...]) -> float:
        crf = model.crf
        total = crf.start_transitions[tags[0]] + crf.end_transitions[tags[-1]]
        total = total + sum(emissions[i, tag] for i, tag in enumerate(tags))
        return (total + sum(crf.transitions[a, b] for a, b in itertools.pairwise(tags))).item()

    nll = {"text": 0.0, "cross": 0.0}
    alignment = 0.0
    for b, length in enumerate((5, 3, 4)):
        marginals = {}
        for view, emissions in (("text", output.emissions), ("cross", output.cross_emissions)):
            paths = list(itertools.product(range(3), repeat=length))
            scores = torch.tensor([score(emissions[b], path) for path in paths], dtype=torch.float64)
            gold = paths.index(tuple(batch["labels"][b, :length].tolist()))
            nll[view] += float(scores.logsumexp(0) - scores[gold]) / 3
            probabilities = scores.softmax(0)
            onehot = torch.nn.functional.one_hot(torch.tensor(paths), 3).double()  # (P, N, C)
            marginals[view] = (probabilities[:, None, None] * onehot).sum(0)
        if batch["has_context"][b]:
            p = marginals["cross"].pow(1 / 2.0)
            q = marginals["text"].pow(1 / 2.0)
            p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
            alignment += 2.0**2 * float((p * (p / q).log()).sum()) / 3
        torch.testing.assert_close(output.logits[b, :length].double().exp(), marginals["text"], atol=1e-5, rtol=0)
    assert output.text_loss.item() == pytest.approx(nll["text"], abs=1e-4)
    assert output.cross_loss.item() == pytest.approx(nll["cross"], abs=1e-4)
    assert output.cva_loss.item() == pytest.approx(alignment, abs=1e-5)
    assert output.loss.item() == pytest.approx(nll["text"] + 0.5 * nll["cross"] + 0.5 * alignment, abs=1e-4)


def test_alignment_teaches_the_text_view_only() -> None:
    model, batch = make_model(), make_batch()
    scores = []
    model.classifier.register_forward_hook(lambda _, inputs, output: scores.append(output))
    output = model(**batch)
    text, cross = torch.autograd.grad(output.cva_loss, scores)[0].chunk(2)
    assert text[0].abs().max() > 0
    assert text[1].abs().max() == 0  # no context, nothing to learn
    assert cross.abs().max() == 0


def test_alignment_is_zero_without_any_context() -> None:
    batch = make_batch() | {"has_context": torch.zeros(3, dtype=torch.bool)}
    assert make_model()(**batch).cva_loss == 0


def test_weights_of_zero_leave_the_alignment_out() -> None:
    output = make_model(cva_loss_weight=0.0)(**make_batch())
    assert output.cva_loss is None
    torch.testing.assert_close(output.loss, output.text_loss + output.cross_loss)


def test_logits_are_probabilities() -> None:
    batch = make_batch()
    output = make_model()(**batch)
    mask = batch["word_positions"] >= 0
    torch.testing.assert_close(output.logits[mask].exp().sum(-1), torch.ones(12), atol=1e-5, rtol=0)


def test_word_dropout_zeroes_whole_words_without_rescaling() -> None:
    model = make_model(word_dropout=0.5).train()
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    whole = make_model(word_dropout=0.0)
    whole.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(3)
    model(**one_view(make_batch(), "T"))
    whole(**one_view(make_batch(), "T"))
    dropped, words = seen
    zeroed = (dropped == 0).all(-1)
    assert 0 < zeroed.sum() < zeroed.numel()
    torch.testing.assert_close(dropped[~zeroed], words[~zeroed], atol=1e-5, rtol=0)


def test_works_from_input_ids_alone() -> None:
    model, batch = make_model(), make_batch()
    output = model(batch["cross_input_ids"])  # as one sequence: only what stands before the first separator is tagged
    assert output.logits.shape == (3, batch["cross_input_ids"].shape[1], 9)
    uniform = -math.log(9)
    torch.testing.assert_close(output.logits[0, 0], torch.full((9,), uniform))
    assert (output.logits[0, 1:8] - uniform).abs().max() > 1e-3
    torch.testing.assert_close(output.logits[0, 8:], torch.full_like(output.logits[0, 8:], uniform))


def test_labels_of_pieces_say_where_the_words_are() -> None:
    model, batch = make_model(), make_batch()
    by_word = model(**one_view(batch, "T"))
    labels = torch.full_like(batch["input_ids"], -100)
    for b, n in itertools.product(range(3), range(5)):
        if batch["word_positions"][b, n] >= 0:
            labels[b, batch["word_positions"][b, n]] = batch["labels"][b, n]
    by_piece = model(batch["input_ids"], batch["attention_mask"], labels=labels)
    torch.testing.assert_close(by_piece.loss, by_word.loss)
    torch.testing.assert_close(by_piece.logits[0, [1, 2, 4, 5, 7]], by_word.logits[0])


def test_input_ids_alone_need_a_known_separator() -> None:
    with pytest.raises(ValueError, match="sep_token_id"):
        make_model(sep_token_id=None)(make_batch()["input_ids"])


def test_a_batch_without_view_is_refused() -> None:
    with pytest.raises(ValueError, match="no view"):
        make_model()(word_positions=torch.zeros(1, 1, dtype=torch.long))


def test_cross_view_needs_word_positions() -> None:
    batch = one_view(make_batch(), "I+T")
    del batch["word_positions"], batch["labels"]
    with pytest.raises(ValueError, match="word_positions"):
        make_model()(**batch)


def test_decode_entities_scores_are_posteriors_of_the_best_reading() -> None:
    model, batch = make_model(), make_batch()
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    output, mask = model(**batch), batch["word_positions"] >= 0
    entities = model.decode_entities(output.emissions, mask)
    tags = model.decode_tags(output.emissions, mask)
    assert [len(row) for row in tags] == [5, 3, 4]
    scheme = model.config.tag_scheme
    assert [[entity.span for entity in row] for row in entities] == [scheme.spans(row) for row in tags]
    assert any(entities)
    assert all(isinstance(e.score, float) and 0 < e.score <= 1 for row in entities for e in row)


@pytest.mark.parametrize("constraints", ["none", "decode", "always"])
@torch.no_grad()
def test_least_confidence_against_enumeration_of_all_tag_sequences(constraints: str) -> None:
    model = make_model(constraints=constraints)
    scheme = model.config.tag_scheme
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(2, 3, len(scheme), generator=generator)
    mask = torch.tensor([[True] * 3, [True, False, False]])
    found = model.least_confidence(emissions, mask)
    crf = model.crf
    for post, length in enumerate((3, 1)):
        scores, is_allowed = [], []
        for path in itertools.product(range(len(scheme)), repeat=length):
            score = crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
            score = score + sum(emissions[post, n, tag] for n, tag in enumerate(path))
            scores.append(score + sum(crf.transitions[pair] for pair in itertools.pairwise(path)))
            is_allowed.append(all(itertools.starmap(scheme.allows, itertools.pairwise((None, *path, None)))))
        all_scores, allowed = torch.stack(scores), torch.tensor(is_allowed)
        best = all_scores[allowed] if constraints != "none" else all_scores
        whole = all_scores[allowed] if constraints == "always" else all_scores
        assert found[post] == pytest.approx(1 - float((best.max() - whole.logsumexp(0)).exp()), abs=1e-6)


def test_an_image_gate_is_a_probability() -> None:
    assert ItaConfig(image_gate=0.25).image_gate == 0.25
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"image_gate is .* \(expected a probability, or None\)"):
            ItaConfig(image_gate=wrong)


def test_save_load_save_is_the_identity(tmp_path: Path, tiny_encoder: str) -> None:
    model = ItaForTokenClassification.from_text_encoder(
        tiny_encoder, LABELS, loss_preset="code", constraints="decode", word_dropout=0.2
    ).eval()
    model.save_pretrained(tmp_path / "first")
    loaded, info = ItaForTokenClassification.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    loaded.save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    batch = make_batch()
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)
    assert list(loaded.buffers()) == [] or all(
        torch.equal(a, b) for a, b in zip(loaded.buffers(), model.buffers(), strict=True)
    )


def test_weights_that_a_checkpoint_lacks_are_refused_or_on_request_initialised(tmp_path: Path) -> None:
    model = make_model()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(("crf", "classifier"))}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 5 weights .* such as 'classifier.bias'.*from_text_encoder"):
        ItaForTokenClassification.from_pretrained(tmp_path)
    loaded, found = ItaForTokenClassification.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert "crf.transitions" in found["missing_keys"]
    assert loaded.crf.transitions.abs().max() <= 0.1
    assert loaded.crf.start_transitions.abs().max() <= 0.1
    assert 0.1 < loaded.classifier.weight.std() < 0.3
    assert (loaded.classifier.bias == 0).all()


def test_a_label_set_that_does_not_fit_the_checkpoint_is_refused(
    tmp_path: Path,
) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"classifier.*ignore_mismatched_sizes"):
        ItaForTokenClassification.from_pretrained(tmp_path, id2label={0: "O", 1: "B-X", 2: "I-X"})
    with pytest.raises(ValueError, match="tag set"):
        ItaForTokenClassification.from_pretrained(tmp_path, num_labels=3)
    other = ItaForTokenClassification.from_pretrained(
        tmp_path, id2label={0: "O", 1: "B-X", 2: "I-X"}, ignore_mismatched_sizes=True
    )
    assert other.config.label2id == {"O": 0, "B-X": 1, "I-X": 2}
    assert other.crf.transitions.shape == (3, 3) and other.crf.transitions.abs().max() <= 0.1


def test_from_text_encoder_keeps_the_pretrained_weights(tiny_encoder: str) -> None:
    model = ItaForTokenClassification.from_text_encoder(tiny_encoder, LABELS, word_dropout=0.3)
    encoder = AutoModel.from_pretrained(tiny_encoder)
    for name, tensor in model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, encoder.state_dict()[name])
    assert not any("pooler" in name for name in model.state_dict())
    assert tiny_encoder not in model.config.to_json_string()
    assert model.config.word_dropout == 0.3
    assert [model.config.id2label[i] for i in range(9)] == LABELS
    assert (model.config.cls_token_id, model.config.sep_token_id) == (2, 3)


@pytest.mark.parametrize("labels", [["O", "B-X"], ["B-X", "I-X"], ["O", "PER"], ["O", "O", "B-X", "I-X"]])
def test_from_text_encoder_refuses_what_is_no_tag_set(tiny_encoder: str, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="tag"):
        ItaForTokenClassification.from_text_encoder(tiny_encoder, labels)


def test_dtype_keeps_the_crf_in_float32(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    half = ItaForTokenClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.classifier.weight.dtype == torch.bfloat16
    assert half.crf.transitions.dtype == torch.float32
    output = half(**make_batch())
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits, model(**make_batch()).logits, atol=0.05, rtol=0)


def test_autocast_trains() -> None:
    model, batch = make_model().train(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_resize_token_embeddings(tmp_path: Path) -> None:
    model = make_model()
    model.resize_token_embeddings(130)
    assert model.get_input_embeddings().weight.shape == (130, 32)
    assert model.config.text_config.vocab_size == 130
    model.save_pretrained(tmp_path)
    assert ItaForTokenClassification.from_pretrained(tmp_path).get_input_embeddings().weight.shape == (130, 32)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(word_dropout=0.0).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model(**make_batch()).loss.backward()
        gradients.append(model.encoder.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_hidden_states_come_back_if_asked_for() -> None:
    output = make_model()(**one_view(make_batch(), "T"), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert isinstance(make_model()(**one_view(make_batch(), "T"), return_dict=False), tuple)


def test_memorises_eight_posts(tiny_processor: ItaProcessor, tiny_encoder: str) -> None:
    torch.manual_seed(0)
    model = ItaForTokenClassification.from_text_encoder(tiny_encoder, LABELS, word_dropout=0.0).eval()
    posts = [f"{name} tonight" for name in ("Phoenix", "Chicago", "London", "Paris")] * 2
    contexts = [{"captions": ["game" if i < 4 else "stadium sign"]} for i in range(8)]
    tags = [[5, 0] if i < 4 else [3, 0] for i in range(8)]  # the picture decides: ORG or LOC
    batch = tiny_processor(posts, contexts, views="both", labels=tags)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = model(**batch)
    assert model.decode_tags(output.cross_emissions, batch["word_positions"] >= 0) == tags
    assert (
        model.decode_tags(output.emissions, batch["word_positions"] >= 0)[:4]
        == model.decode_tags(output.emissions, batch["word_positions"] >= 0)[4:]
    )  # without the picture both halves read the same


def test_config_round_trip_and_presets() -> None:
    config = ItaConfig(loss_preset="code", cva_temperature=2.0, id2label={0: "O", 1: "B-X", 2: "I-X"})
    assert (config.text_loss_weight, config.cross_loss_weight, config.cva_loss_weight) == (1.0, 0.5, 0.5)
    assert config.cva_temperature == 2.0
    assert ItaConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert config.label2id == {"O": 0, "B-X": 1, "I-X": 2}
    paper = ItaConfig()
    assert (paper.cross_loss_weight, paper.cva_loss_weight, paper.cva_temperature) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"word_dropout": 1.0}, "word_dropout"),
        ({"cva_temperature": 0.0}, "cva_temperature"),
        ({"cva_loss_weight": -1.0}, "cva_loss_weight"),
        ({"num_labels": 5}, "LABEL_0"),
    ],
)
def test_config_refuses_numbers_out_of_range(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItaConfig(**setting)


def test_golden_signature() -> None:
    model = make_model()
    names = sorted(name for name in model.state_dict() if not name.startswith("encoder."))
    assert names == [
        "classifier.bias",
        "classifier.weight",
        "crf.end_transitions",
        "crf.start_transitions",
        "crf.transitions",
    ]
    assert model.crf.transitions.shape == (9, 9)
