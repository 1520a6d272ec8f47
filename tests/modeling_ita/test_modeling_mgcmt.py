"""MGCMT: its size, its masks, its losses, in every precision and under both attentions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, RobertaConfig, ViTConfig

from modeling_ita.configuration_mgcmt import MgcmtConfig
from modeling_ita.crf import LinearChainCRF
from modeling_ita.modeling_mgcmt import SPANS, AttentionBlock, MgcmtForTokenClassification

LABELS = ["O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC", "ORG", "MISC") for prefix in "BI")]
TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
VISION = {
    "depths": [1, 1],
    "hidden_sizes": [8, 12],
    "embedding_size": 4,
    "layer_type": "basic",
    "downsample_in_first_stage": True,
}


def make_config(**settings: Any) -> MgcmtConfig:
    made = {
        "text_config": BertConfig(**TINY),
        "vision_config": ResNetConfig(**VISION),
        "augmentation_size": 6,
        "num_object_classes": 9,
        "num_regions": 4,
        "id2label": dict(enumerate(LABELS)),
    }
    return MgcmtConfig(**made | settings)


def make_model(attention: str = "sdpa", **settings: Any) -> MgcmtForTokenClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MgcmtForTokenClassification._from_config(make_config(**settings), attn_implementation=attention)
        for weights in model.parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.2)
    return model.eval()


def make_batch(**changes: Any) -> dict[str, torch.Tensor]:
    """Three posts: with image and objects, with an image alone, with neither."""
    generator = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(5, 50, (3, 7), generator=generator),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3]),
        "word_positions": torch.tensor([[1, 2, 4, 5], [1, 3, -1, -1], [1, 2, -1, -1]]),
        "augmentation": torch.randn(3, 4, 6, generator=generator),
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
        "has_image": torch.tensor([True, True, False]),
        "object_ids": torch.tensor([[3, 3, 0], [0, 0, 0], [0, 0, 0]]),
        "labels": torch.tensor([[1, 2, 0, 5], [0, 3, -100, -100], [0, 0, -100, -100]]),
    }
    return batch | changes


def emissions(model: MgcmtForTokenClassification, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).emissions


# --- size ------------------------------------------------------------------------------------------------------------


def trained_parameters(model: torch.nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters() if weights.requires_grad)


def test_at_reference_size_the_parameters_are_those_of_the_original() -> None:
    bert = BertConfig(vocab_size=28_996)
    resnet = ResNetConfig(depths=[3, 8, 36, 3])  # ResNet-152
    with torch.device("meta"):
        model = MgcmtForTokenClassification(
            MgcmtConfig(text_config=bert, vision_config=resnet, id2label=dict(enumerate(LABELS)))
        )
    sizes = {name: trained_parameters(part) for name, part in model.named_children()}
    block = trained_parameters(model.self_attention)
    assert sizes["encoder"] == 107_719_680
    assert sizes["vision"] == 0
    assert 12 * block == 85_054_464
    assert sum(isinstance(part, AttentionBlock) for part in model.modules()) == 12
    assert sizes["augmentation"] == 154_368 and sizes["visual_fusion"] == sizes["fusion"] == 1_180_416
    assert model.regions is not None and model.objects is not None
    projections = [model.regions.projection, model.regions.projection_v2]
    assert sum(map(trained_parameters, projections)) == 3_147_264
    assert trained_parameters(model.regions.gate) + trained_parameters(model.objects.gate) == 2_360_832
    assert trained_parameters(model.objects.embedding) == 65_280

    def tagger(tags: int) -> int:
        """Classifier and CRF."""
        return 768 * tags + tags + tags * tags + 2 * tags

    # Clean: word tags instead of 13, with X, [CLS] and [SEP] among them; span tags O, B, I instead of 7.
    removed = tagger(13) - tagger(len(LABELS)) + tagger(7) - tagger(len(SPANS))
    assert trained_parameters(model) == 200_878_358 - removed
    assert removed == 6_296


@pytest.mark.parametrize(("fusion", "parts"), [("regions", 7), ("objects", 7), ("none", 2), ("both", 12)])
def test_ablations_leave_out_what_they_name(fusion: str, parts: int) -> None:
    model = make_model(visual_fusion=fusion)
    assert sum(isinstance(part, AttentionBlock) for part in model.modules()) == parts
    found = emissions(model, make_batch())
    other = emissions(model, make_batch(pixel_values=torch.ones(3, 3, 32, 32)))
    assert torch.equal(found, other) == (fusion in ("objects", "none"))
    other = emissions(model, make_batch(object_ids=torch.full((3, 3), 5)))
    assert torch.equal(found, other) == (fusion in ("regions", "none"))


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_masked_changes_nothing(attention: str) -> None:
    model = make_model(attention)
    before = emissions(model, make_batch())
    batch = make_batch()
    is_padding = batch["attention_mask"] == 0
    is_word = batch["word_positions"] >= 0
    batch["input_ids"] = batch["input_ids"].masked_fill(is_padding, 7)
    batch["augmentation"] = batch["augmentation"].masked_fill(~is_word[..., None], 3.0)
    batch["pixel_values"][2] = torch.nan  # no image: whatever stands there
    torch.testing.assert_close(emissions(model, batch)[is_word], before[is_word], atol=1e-5, rtol=0)
    fewer = make_batch(object_ids=torch.tensor([[3, 3], [0, 0], [0, 0]]))
    torch.testing.assert_close(emissions(model, fewer)[is_word], before[is_word], atol=1e-5, rtol=0)


def test_what_is_not_masked_counts() -> None:
    model, batch = make_model(), make_batch()
    before = emissions(model, batch)
    is_word = batch["word_positions"] >= 0
    changes: list[dict[str, Any]] = [
        {"object_ids": torch.tensor([[3, 4, 0], [0, 0, 0], [0, 0, 0]])},
        {"object_ids": torch.tensor([[3, 3, 4], [0, 0, 0], [0, 0, 0]])},
        {"pixel_values": batch["pixel_values"] * torch.tensor([2.0, 1, 1])[:, None, None, None]},
        {"has_image": torch.tensor([False, True, False])},
        {"augmentation": batch["augmentation"] * torch.tensor([2.0, 1, 1])[:, None, None]},
    ]
    for change in changes:
        after = emissions(model, make_batch(**change))
        assert not torch.allclose(after[0], before[0], atol=1e-4), change
        torch.testing.assert_close(after[1:][is_word[1:]], before[1:][is_word[1:]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fusion", ["add", "gate", "none"])
def test_a_batch_gives_what_its_posts_give_alone(attention: str, fusion: str) -> None:
    model, batch = make_model(attention, aug_fusion=fusion), make_batch()
    together = emissions(model, batch)
    for post in range(3):
        pieces, words = int(batch["attention_mask"][post].sum()), int((batch["word_positions"][post] >= 0).sum())
        alone = {name: tensor[post : post + 1] for name, tensor in batch.items()}
        alone["input_ids"], alone["attention_mask"] = (
            alone["input_ids"][:, :pieces],
            alone["attention_mask"][:, :pieces],
        )
        for name in ("word_positions", "augmentation", "labels"):
            alone[name] = alone[name][:, :words]
        torch.testing.assert_close(emissions(model, alone)[0], together[post, :words], atol=1e-5, rtol=1e-5)


def test_no_image_is_the_same_however_it_is_said() -> None:
    model = make_model()
    batch = make_batch(has_image=torch.tensor([False] * 3))
    without = {name: tensor for name, tensor in batch.items() if name not in ("pixel_values", "has_image")}
    torch.testing.assert_close(emissions(model, without), emissions(model, batch))
    none = {name: tensor for name, tensor in without.items() if name not in ("object_ids", "augmentation")}
    zeros = without | {"object_ids": torch.zeros(3, 2, dtype=torch.long), "augmentation": torch.zeros(3, 4, 6)}
    torch.testing.assert_close(emissions(model, none), emissions(model, zeros))


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16 autocast", "fp16"])
def test_no_image_and_no_object_give_finite_numbers(attention: str, precision: str) -> None:
    model = make_model(attention)
    batch = make_batch(has_image=torch.tensor([True, False, False]))
    if precision == "fp16":
        model.half()
        for part in (model.classifier, model.crf, model.aux_classifier, model.aux_crf):
            part.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16 autocast"):
        output = model(**batch)
    output.loss.backward()
    assert torch.isfinite(output.loss) and torch.isfinite(output.emissions).all()
    gradients = {name: weights.grad for name, weights in model.named_parameters() if weights.requires_grad}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients.values())


def test_the_loss_is_that_of_both_fields() -> None:
    model, batch = make_model(aux_loss_weight=0.25), make_batch()
    output = model(**batch)
    mask = batch["word_positions"] >= 0
    tags = batch["labels"].clamp(min=0)
    nll = -model.crf.log_likelihood(output.emissions, tags, mask).mean()
    torch.testing.assert_close(output.main_loss, nll)
    torch.testing.assert_close(output.loss, output.main_loss + 0.25 * output.aux_loss)
    spans = {"O": 0, "B": 1, "I": 2}
    aux_tags = torch.tensor([[spans[LABELS[tag][0]] for tag in row] for row in tags.tolist()])
    captured: list[torch.Tensor] = []
    hook = model.aux_classifier.register_forward_hook(lambda *call: captured.append(call[2]))
    model(**batch)
    hook.remove()
    aux = LinearChainCRF(3)
    aux.load_state_dict(model.aux_crf.state_dict())
    torch.testing.assert_close(output.aux_loss, -aux.log_likelihood(captured[0], aux_tags, mask).mean())


def test_attention_over_neighbours_is_theirs_alone() -> None:
    model = make_model(aug_fusion="attention")
    batch = make_batch(augmentation=torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(2)))
    batch["augmentation"][0, 0] = 0  # a word without neighbours
    batch["augmentation"][0, 1, 3:] = 0  # a word with three
    found = emissions(model, batch)
    assert torch.isfinite(found).all()
    shuffled = batch | {"augmentation": batch["augmentation"][:, :, [2, 0, 1, 3, 4]]}
    torch.testing.assert_close(emissions(model, shuffled), found, atol=1e-5, rtol=1e-5)
    missing = make_batch() | {"augmentation": None}
    torch.testing.assert_close(
        emissions(model, missing), emissions(model, missing | {"augmentation": torch.zeros(3, 4, 5, 6)})
    )


# --- vision ----------------------------------------------------------------------------------------------------------


def test_a_frozen_vision_encoder_stays_as_it_is() -> None:
    model, batch = make_model(), make_batch()
    assert model.vision is not None
    before = {name: tensor.clone() for name, tensor in model.vision.state_dict().items()}
    model.train()
    assert not model.vision.training and model.self_attention.training
    optimizer = torch.optim.SGD([weights for weights in model.parameters() if weights.requires_grad], lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    for name, tensor in model.vision.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_vision_encoder_is_trained_along_on_request() -> None:
    model, batch = make_model(train_vision=True).train(), make_batch()
    assert model.vision is not None and model.vision.training
    model(**batch).loss.backward()
    gradients = [weights.grad for weights in model.vision.parameters()]
    assert all(grad is not None for grad in gradients) and any(grad.abs().sum() > 0 for grad in gradients)


def test_region_features_stand_for_the_image() -> None:
    model, batch = make_model(), make_batch()
    assert model.vision is not None
    with torch.no_grad():
        regions = model.vision(batch["pixel_values"]).last_hidden_state.flatten(2).transpose(1, 2)
    features = {name: tensor for name, tensor in batch.items() if name != "pixel_values"} | {
        "region_features": regions
    }
    torch.testing.assert_close(emissions(model, features), emissions(model, batch))
    blind = make_model(vision_config=None, region_size=12)
    assert blind.vision is None
    blind.load_state_dict({n: w for n, w in model.state_dict().items() if not n.startswith("vision.")})
    torch.testing.assert_close(emissions(blind, features), emissions(model, batch))
    with pytest.raises(ValueError, match="without a vision encoder"):
        blind(**batch)


# --- the whole ------------------------------------------------------------------------------------------------------


def test_windows_of_a_long_post_share_its_image() -> None:
    model = make_model()
    batch = make_batch()
    rows = {name: batch[name][[0, 0, 1]] for name in ("input_ids", "attention_mask")}
    rows["input_ids"][1] = rows["input_ids"][1].flip(0)
    windows = {
        **rows,
        "word_positions": torch.tensor([[1, 2, 4, 1], [1, 3, -1, -1]]),
        "word_rows": torch.tensor([[0, 0, 0, 1], [2, 2, 0, 0]]),
        "row_posts": torch.tensor([0, 0, 1]),
    }
    windows |= {name: batch[name][:2] for name in ("pixel_values", "has_image", "object_ids", "augmentation")}
    found = emissions(model, windows)
    second = {name: tensor[1:2] for name, tensor in rows.items()} | {"word_positions": torch.tensor([[1]])}
    second |= {name: batch[name][:1] for name in ("pixel_values", "has_image", "object_ids")}
    second["augmentation"] = batch["augmentation"][:1, 3:]
    torch.testing.assert_close(emissions(model, second)[0, 0], found[0, 3], atol=1e-5, rtol=1e-5)


def test_any_text_encoder() -> None:
    roberta = RobertaConfig(**TINY, max_position_embeddings=40, pad_token_id=1)
    model = make_model(text_config=roberta)
    assert torch.isfinite(emissions(model, make_batch())).all()


def test_it_saves_and_loads(tmp_path: Path) -> None:
    model, batch = make_model(), make_batch()
    model.save_pretrained(tmp_path)
    loaded = MgcmtForTokenClassification.from_pretrained(tmp_path)
    assert torch.equal(emissions(loaded, batch), emissions(model, batch))
    is_word = batch["word_positions"] >= 0
    assert loaded.decode_entities(emissions(loaded, batch), is_word) == model.decode_entities(
        emissions(model, batch), is_word
    )


def test_it_learns_what_the_picture_says() -> None:
    torch.manual_seed(0)
    model = make_model(train_vision=True, hidden_dropout=0.0, fusion_dropout=0.0).train()
    pixels = torch.cat([torch.full((4, 3, 32, 32), value) for value in (-1.0, 1.0)])
    batch = {
        "input_ids": torch.tensor([[5, 9, 10, 6]] * 8),
        "word_positions": torch.tensor([[1, 2]] * 8),
        "pixel_values": pixels,
        "labels": torch.tensor([[1, 0]] * 4 + [[5, 0]] * 4),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = model.eval()(**batch)
    assert model.decode_tags(output.emissions, batch["word_positions"] >= 0) == batch["labels"].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 5}, "does not divide the hidden size 24"),
        ({"fusion_dropout": 1.0}, "expected 0 ≤ fusion_dropout < 1"),
        ({"num_object_classes": 0}, "expected 1 or more"),
        ({"train_vision": True, "vision_config": None}, "vision_config is None: there is no vision encoder to train"),
        ({"aux_loss_weight": -1.0}, "expected a number ≥ 0"),
        ({"checkpoint_format": 2}, "is of format 2"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_a_batch_without_word_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="word_positions are missing"):
        make_model()(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_it_starts_from_pretrained_encoders(tmp_path: Path) -> None:
    text, vision = BertModel(BertConfig(**TINY)), ResNetModel(ResNetConfig(**VISION))
    text.save_pretrained(tmp_path / "text")
    vision.save_pretrained(tmp_path / "vision")
    places = (str(tmp_path / "text"), LABELS)
    model = MgcmtForTokenClassification.from_encoders(*places, str(tmp_path / "vision"), augmentation_size=6)
    for part, origin in ((model.encoder, text), (model.vision, vision)):
        found, expected = part.state_dict(), origin.state_dict()
        assert all(torch.equal(weights, expected[name]) for name, weights in found.items())
    assert not any(weights.requires_grad for weights in model.vision.parameters())
    assert str(tmp_path) not in model.config.to_json_string()
    assert (model.config.region_size, model.config.hidden_size) == (12, 24)
    assert MgcmtForTokenClassification.from_encoders(*places).vision is None
    blind = MgcmtForTokenClassification.from_encoders(*places, str(tmp_path / "vision"), visual_fusion="objects")
    assert blind.vision is None
    new = MgcmtForTokenClassification.from_encoders(*places, ResNetConfig(**VISION), train_vision=True)
    assert all(weights.requires_grad for weights in new.vision.parameters())


def test_a_vision_encoder_without_a_feature_map_is_refused() -> None:
    vision = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    model = MgcmtForTokenClassification(make_config(vision_config=vision))
    with pytest.raises(ValueError, match=r"ViTModel gives \(2, 5, 8\) \(expected a feature map"):
        model.region_features(torch.zeros(2, 3, 32, 32))


def test_weights_that_a_checkpoint_lacks_are_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights of MgcmtForTokenClassification.*from_encoders"):
        MgcmtForTokenClassification.from_pretrained(tmp_path, config=make_config())


def test_what_stands_for_a_missing_image_reaches_no_statistics() -> None:
    model = make_model(train_vision=True).train()
    batch = make_batch()
    twins = [model, make_model(train_vision=True).train()]
    others = batch["pixel_values"].clone()
    others[2] = 1000.0
    for twin, pixels in zip(twins, (batch["pixel_values"], others), strict=True):
        twin(**batch | {"pixel_values": pixels})
    first, second = (twin.vision.state_dict() for twin in twins)
    assert any(weights.abs().sum() > 0 for name, weights in first.items() if name.endswith("running_mean"))
    assert all(torch.equal(weights, second[name]) for name, weights in first.items())
