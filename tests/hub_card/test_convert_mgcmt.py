"""The converter for MGCMT's released weights: against the released model written out, and on what it refuses."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, ResNetConfig, ResNetModel, RobertaConfig

from hub_card.convert_mgcmt import Conversion, convert_checkpoint, convert_state_dict, main
from modeling_ita.modeling_mgcmt import MgcmtForTokenClassification

Weights = dict[str, torch.Tensor]

TAGS = ["PAD", "O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "X", "[CLS]", "[SEP]"]
LABELS = TAGS[1:10]
SPAN_TAGS = ["PAD", "O", "B", "I", "X", "[CLS]", "[SEP]"]
BLOCKS = [
    *("self_attention", "self_attention_v2", "img2img_attention", "img2img_attention_v2", "txt2img_attention"),
    *("img2txt_attention", "txt2txt_attention", "obj2obj_attention", "obj2obj_attention_v2", "txt2obj_attention"),
    *("obj2txt_attention", "txt2obj_attention_v2"),
]
SIZES = {"d": 24, "layers": 2, "vocabulary": 30, "positions": 16, "regions": 10, "augmentation": 6, "objects": 9}
REFERENCE = {"d": 768, "layers": 12, "vocabulary": 28_996, "positions": 512, "regions": 2048} | {
    "augmentation": 200,
    "objects": 85,
}
HEADS = 2


def bert_layer(prefix: str, d: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        shapes |= linear(f"{prefix}attention.{name}", d, d)
    shapes |= linear(f"{prefix}intermediate.dense", 4 * d, d) | linear(f"{prefix}output.dense", d, 4 * d)
    for name in ("attention.output", "output"):
        shapes |= {f"{prefix}{name}.LayerNorm.{kind}": (d,) for kind in ("weight", "bias")}
    return shapes


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def crf(name: str, tags: int) -> dict[str, tuple[int, ...]]:
    borders = {f"{name}.{border}_transitions": (tags,) for border in ("start", "end")}
    return {f"{name}.transitions": (tags, tags)} | borders


def released_shapes(
    d: int, layers: int, vocabulary: int, positions: int, regions: int, augmentation: int, objects: int
) -> dict[str, tuple[int, ...]]:
    """The weights of the default variant, as the released code names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "object_embeddings.weight": (objects, d),
        "bert.embeddings.word_embeddings.weight": (vocabulary, d),
        "bert.embeddings.position_embeddings.weight": (positions, d),
        "bert.embeddings.token_type_embeddings.weight": (2, d),
        "bert.embeddings.LayerNorm.weight": (d,),
        "bert.embeddings.LayerNorm.bias": (d,),
        "fusion_w": (2 * d, d),
        "fusion_bias": (d,),
    }
    for gate in ("fus1", "fus2"):
        shapes |= {f"{gate}_w1": (d, d), f"{gate}_w2": (d, d), f"{gate}_bias": (d,)}
    for layer in range(layers):
        shapes |= bert_layer(f"bert.encoder.layer.{layer}.", d)
    for block in BLOCKS:
        shapes |= bert_layer(f"{block}.layer.0.", d)
    shapes |= linear("maug_linear", d, augmentation) | linear("fus3_linear", d, 2 * d)
    shapes |= linear("vismap2text", d, regions) | linear("vismap2text_v2", d, regions)
    shapes |= linear("classifier", len(TAGS), d) | linear("aux_classifier", len(SPAN_TAGS), d)
    return shapes | crf("crf", len(TAGS)) | crf("aux_crf", len(SPAN_TAGS))


def unused_shapes(d: int, augmentation: int) -> dict[str, tuple[int, ...]]:
    """The weights of other variants, that are in the released checkpoint too."""
    shapes: dict[str, tuple[int, ...]] = {"aug_w1": (d, d), "aug_w2": (d, d), "aug_bias": (d,), "add_bias": (d,)}
    shapes |= {"fus3_w1": (d, d), "fus3_w2": (d, d), "fus3_bias": (d,)}
    shapes |= {f"{stream}_w": (d, d) for stream in ("seq", "ali", "ati", "obj")}
    shapes |= linear("bert.pooler.dense", d, d) | linear("bert.embeddings.aug_linear", d, augmentation)
    shapes |= linear("bert.embeddings.char_cnn_linear", d, 2 * d) | linear("gate", d, 2 * d)
    shapes |= linear("bert.embeddings.char_cnn_model.linear.3", d, 100)
    shapes |= linear("fus_cat_linear", d, 4 * d) | linear("gfg", d, 2 * d) | linear("add_linear", d, d)
    shapes |= linear("mlp_linear1", d, d) | linear("mlp_linear2", 1, d)
    for layer in (0, 1):
        for part in ("nonlinear", "linear", "gate"):
            shapes |= linear(f"highway.{part}.{layer}", d, d)
    shapes |= linear("gmf.text_linear", d, d) | linear("gmf.img_linear", d, d) | linear("gmf.gate_linear", 1, 2 * d)
    shapes |= linear("filtration_gate.multimodal_linear", d, d) | linear("filtration_gate.resv_linear", d, d)
    shapes |= {"filtration_gate.text_linear.weight": (d, d)} | linear("filtration_gate.gate_linear", 1, 2 * d)
    for stream in ("main", "seq", "img", "obj"):
        shapes |= {f"{stream}_aux_w": (d, d), f"{stream}_aux_bias": (d,)} | crf(f"{stream}_aux_crf", len(TAGS))
        shapes |= linear(f"{stream}_aux_classifier", len(TAGS), d)
    return shapes


def released_weights(**sizes: int) -> Weights:
    sizes = SIZES | sizes
    generator = torch.Generator().manual_seed(0)
    shapes = released_shapes(**sizes) | unused_shapes(sizes["d"], sizes["augmentation"])
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def convert(weights: Weights, **settings: object) -> Conversion:
    return convert_state_dict(weights, num_attention_heads=HEADS, **settings)  # type: ignore[arg-type]


def load(conversion: Conversion) -> MgcmtForTokenClassification:
    model = MgcmtForTokenClassification(conversion.config)
    assert not model.load_state_dict(conversion.state_dict, strict=False).unexpected_keys
    return model.eval()


# --- the released model, written out ---------------------------------------------------------------------------------


def apply(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attend(
    weights: Weights, block: str, stream: torch.Tensor, other: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """One BERT layer on streams `(length, d)`: query and residual of the first, key and value of the second."""
    at = f"{block}.layer.0."
    q, k, v = (
        apply(weights, f"{at}attention.self.{name}", x).view(len(x), HEADS, -1).transpose(0, 1)
        for name, x in (("query", stream), ("key", other), ("value", other))
    )
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + (1 - mask.float()) * -10000
    attended = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    stream = norm(weights, f"{at}attention.output", apply(weights, f"{at}attention.output.dense", attended) + stream)
    wide = F.gelu(apply(weights, f"{at}intermediate.dense", stream))
    return norm(weights, f"{at}output", apply(weights, f"{at}output.dense", wide) + stream)


def norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"], 1e-12)


def gate(weights: Weights, name: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    w1, w2, bias = (weights[f"{name}_{part}"] for part in ("w1", "w2", "bias"))
    share = torch.sigmoid(first @ w1.t() + second @ w2.t() + bias)
    return share * first + (1 - share) * second


def released_forward(
    weights: Weights, post: dict[str, torch.Tensor], gated: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Emissions of one post's pieces, `(L, 13)`, and those of the auxiliary CRF, `(L, 7)`."""
    config = BertConfig(
        vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=96
    )
    config.max_position_embeddings = 16
    bert = BertModel(config).eval()
    parts = {name.removeprefix("bert."): weight for name, weight in weights.items() if name.startswith("bert.")}
    assert not bert.load_state_dict(parts, strict=False).missing_keys
    hidden = bert(input_ids=post["input_ids"]).last_hidden_state[0]
    augmentation = torch.zeros(len(hidden), 6)
    augmentation[post["word_positions"][0]] = post["augmentation"][0]
    augmentation = apply(weights, "maug_linear", augmentation)
    hidden = gate(weights, "aug", hidden, augmentation) if gated else hidden + augmentation

    is_piece, is_region = torch.ones(len(hidden)), torch.ones(post["region_features"].shape[1])
    is_object = post["object_ids"][0] != 0
    spans = attend(weights, "self_attention", hidden, hidden, is_piece)
    text = attend(weights, "self_attention_v2", hidden, hidden, is_piece)
    regions = [apply(weights, name, post["region_features"][0]) for name in ("vismap2text", "vismap2text_v2")]
    v1 = attend(weights, "img2img_attention", regions[0], regions[0], is_region)
    v2 = attend(weights, "img2img_attention_v2", regions[1], regions[1], is_region)
    m3 = attend(weights, "txt2img_attention", text, v1, is_region)
    told = attend(weights, "img2txt_attention", v2, text, is_piece)
    m4 = attend(weights, "txt2txt_attention", text, told, is_region)
    objects = weights["object_embeddings.weight"][post["object_ids"][0]]
    o1 = attend(weights, "obj2obj_attention", objects, objects, is_object)
    o2 = attend(weights, "obj2obj_attention_v2", objects, objects, is_object)
    m5 = attend(weights, "txt2obj_attention", text, o1, is_object)
    m6 = attend(
        weights, "txt2obj_attention_v2", text, attend(weights, "obj2txt_attention", o2, text, is_piece), is_object
    )

    visual = torch.cat([gate(weights, "fus1", m3, m4), gate(weights, "fus2", m6, m5)], -1)
    visual = apply(weights, "fus3_linear", visual).relu()
    fused = torch.cat([text, visual], -1) @ weights["fusion_w"] + weights["fusion_bias"]
    return apply(weights, "classifier", fused), apply(weights, "aux_classifier", spans)


def path_score(weights: Weights, crf: str, emissions: torch.Tensor, path: list[int]) -> torch.Tensor:
    """The score of a sequence of tags over all pieces, by the released CRF."""
    score = weights[f"{crf}.start_transitions"][path[0]] + weights[f"{crf}.end_transitions"][path[-1]]
    score = score + emissions[torch.arange(len(path)), path].sum()
    return score + sum(weights[f"{crf}.transitions"][a, b] for a, b in itertools.pairwise(path))


@pytest.fixture
def post() -> dict[str, torch.Tensor]:
    """[CLS], three words of one piece each, [SEP]; an image; two objects."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([[2, 9, 14, 21, 3]]),
        "word_positions": torch.tensor([[1, 2, 3]]),
        "augmentation": torch.randn(1, 3, 6, generator=generator),
        "region_features": torch.randn(1, 49, 10, generator=generator),
        "object_ids": torch.tensor([[4, 7, 0]]),
    }


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_the_converted_model_computes_what_the_released_one_does(post: dict[str, torch.Tensor], gated: bool) -> None:
    weights = released_weights()
    conversion = convert(weights, aug_fusion="gate" if gated else "add")
    assert not conversion.missing
    model = load(conversion)
    emissions, span_emissions = released_forward(weights, post, gated)
    assert emissions.std() > 0.1 and span_emissions.std() > 0.1
    torch.testing.assert_close(model(**post).emissions[0], emissions[1:4, 1:10], atol=1e-4, rtol=1e-4)

    # The two CRFs agree on how much likelier one sequence is than another: emissions, transitions, both borders.
    losses, scores = [], []
    for labels in (["B-PER", "I-PER", "O"], ["O", "B-LOC", "B-MISC"], ["I-ORG", "O", "I-LOC"]):
        found = model(**post, labels=torch.tensor([[LABELS.index(label) for label in labels]]))
        losses.append(torch.stack([found.main_loss, found.aux_loss]))
        path = [TAGS.index(tag) for tag in ("[CLS]", *labels, "[SEP]")]
        span_path = [SPAN_TAGS.index(tag) for tag in ("[CLS]", *(label[0] for label in labels), "[SEP]")]
        by_tag = path_score(weights, "crf", emissions, path)
        by_span = path_score(weights, "aux_crf", span_emissions, span_path)
        scores.append(torch.stack([by_tag, by_span]))
    for other in (1, 2):
        found, expected = losses[0] - losses[other], scores[other] - scores[0]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
        assert (expected.abs() > 0.01).all()


# --- what is taken over and what is not ------------------------------------------------------------------------------


def test_at_reference_size_nothing_is_lost_but_what_is_reported() -> None:
    live = {name: torch.empty(shape, device="meta") for name, shape in released_shapes(**REFERENCE).items()}
    dead = {name: torch.empty(shape, device="meta") for name, shape in unused_shapes(768, 200).items()}
    assert sum(weight.numel() for weight in live.values()) == 200_878_358
    conversion = convert_state_dict(live | dead)
    assert sum(weight.numel() for weight in conversion.state_dict.values()) == 200_878_358 - 6_296
    left_out = {weight.name: weight.parameters for weight in conversion.left_out}
    assert {name: left_out[name] for name in dead} == {name: weight.numel() for name, weight in dead.items()}
    assert 21.5e6 < sum(left_out[name] for name in dead) < 21.7e6
    # Of the CRFs 9 × 9 and 3 × 3 transitions stay, and 2 × 9 and 2 × 3 more become start and end scores.
    assert left_out["crf.transitions"] == 169 - 81 - 18 and left_out["aux_crf.transitions"] == 49 - 9 - 6
    assert left_out["crf.start_transitions"] == left_out["crf.end_transitions"] == 13
    assert left_out["classifier.weight"] == 4 * 768 and left_out["aux_classifier.bias"] == 4
    assert not conversion.missing


def test_the_configuration_comes_from_the_shapes() -> None:
    config = convert(released_weights()).config
    text = config.text_config
    assert isinstance(text, BertConfig)
    assert (text.vocab_size, text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (30, 24, 2, 96)
    assert (text.max_position_embeddings, text.type_vocab_size, text.num_attention_heads) == (16, 2, 2)
    assert (config.augmentation_size, config.region_size, config.num_object_classes) == (6, 10, 9)
    assert config.num_attention_heads == 2 and config.vision_config is None
    assert list(config.tag_scheme.labels) == LABELS


def test_tags_are_kept_by_name_whatever_their_order() -> None:
    weights = released_weights()
    order = torch.randperm(len(TAGS), generator=torch.Generator().manual_seed(2))
    moved = dict(weights)
    for name in ("classifier.weight", "classifier.bias", "crf.transitions"):
        moved[name] = weights[name][order]
    moved["crf.transitions"] = moved["crf.transitions"][:, order]
    conversion, expected = convert(moved, tags=[TAGS[i] for i in order]), convert(weights)
    labels = conversion.config.tag_scheme.labels
    assert labels != tuple(LABELS) and sorted(labels) == sorted(LABELS)
    place = [LABELS.index(label) for label in labels]
    for name in ("classifier.weight", "classifier.bias", "crf.start_transitions", "crf.end_transitions"):
        assert torch.equal(conversion.state_dict[name], expected.state_dict[name][place])
    assert torch.equal(
        conversion.state_dict["crf.transitions"], expected.state_dict["crf.transitions"][place][:, place]
    )


def test_a_crf_over_words_keeps_its_own_borders() -> None:
    weights = released_weights()
    words = {
        "classifier.weight": weights["classifier.weight"][:9],
        "classifier.bias": weights["classifier.bias"][:9],
        "crf.transitions": weights["crf.transitions"][:9, :9],
        "crf.start_transitions": weights["crf.start_transitions"][:9],
        "crf.end_transitions": weights["crf.end_transitions"][:9],
    }
    conversion = convert(weights | words, tags=LABELS)
    assert {name for name in words if not torch.equal(conversion.state_dict[name], words[name])} == set()
    assert not {weight.name for weight in conversion.left_out} & set(words)


def test_what_is_missing_is_reported_and_starts_anew() -> None:
    weights = released_weights()
    for name in ("fus3_linear.weight", "txt2obj_attention.layer.0.attention.self.key.bias", "crf.start_transitions"):
        del weights[name]
    conversion = convert(weights)
    assert conversion.missing == ["objects.txt2obj.key.bias", "visual_fusion.weight"]  # start scores: from [CLS]
    assert set(load(conversion).state_dict()) == set(conversion.state_dict) | set(conversion.missing)


def test_the_names_of_the_shape_trace_are_understood() -> None:
    weights = released_weights()
    short = {}
    for name, weight in weights.items():
        head, _, rest = name.partition(".")
        if head in BLOCKS and head.startswith(("txt2", "img2txt", "obj2txt")):
            head, rest = head.replace("_attention", ""), rest.removeprefix("layer.0.")
        short[f"{head}.{rest}" if rest else head] = weight
    assert "txt2obj_v2.attention.self.query.weight" in short
    found, expected = convert(short).state_dict, convert(weights).state_dict
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    twice = weights | {"txt2img.output.dense.bias": torch.zeros(24)}
    with pytest.raises(ValueError, match=r"txt2img_attention\.layer\.0\.output\.dense\.bias and txt2img\.output"):
        convert(twice)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_nearest_known_ones() -> None:
    weights = released_weights()
    weights["vismap3text.weight"] = torch.zeros(24, 10)
    weights["txt2img_attention.layer.1.output.dense.bias"] = torch.zeros(24)  # a second layer in a block
    with pytest.raises(ValueError, match=r"vismap3text\.weight \(nearest: vismap2text\.weight") as error:
        convert(weights)
    assert "txt2img_attention.layer.1.output.dense.bias (nearest: txt2img_attention.layer.0" in str(error.value)


def test_the_beginning_of_an_unused_name_does_not_excuse_another() -> None:
    with pytest.raises(ValueError, match=r"gate2\.weight"):
        convert(released_weights() | {"gate2.weight": torch.zeros(24, 48)})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fusion_w", (24, 48), r"fusion_w is \(24, 48\) \(expected \(48, 24\), for fusion\.weight"),
        ("fus2_w2", (24, 20), r"fus2_w2 is \(24, 20\) \(expected \(24, 24\), for objects\.gate\.weight"),
        ("crf.transitions", (13, 9), r"crf\.transitions is \(13, 9\) \(expected \(13, 13\)"),
        ("aux_crf.end_transitions", (3,), r"aux_crf\.end_transitions is \(3,\) \(expected \(7,\)"),
        (
            "self_attention.layer.0.intermediate.dense.weight",
            (48, 24),
            r"self_attention\.layer\.0\.intermediate\.dense\.weight is \(48, 24\) \(expected \(96, 24\)",
        ),
        ("vismap2text_v2.weight", (24, 11), r"vismap2text_v2\.weight is \(24, 11\) \(expected \(24, 10\)"),
        ("vismap2text.weight", (24,), r"vismap2text\.weight is \(24,\) \(expected 2 dimensions"),
        ("classifier.weight", (12, 24), r"classifier\.weight has 12 rows, and the tags are 13: PAD, O.*expected tags"),
        ("aux_classifier.weight", (3, 24), r"aux_classifier\.weight has 3 rows, .* 7: .*expected span_tags"),
    ],
)
def test_wrong_shapes_are_refused_by_name(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(released_weights() | {name: torch.zeros(shape)})


def test_half_a_gate_or_half_an_encoder_is_refused() -> None:
    weights = released_weights()
    with pytest.raises(ValueError, match=r"fus1_w1, and no fus1_w2, the other half of regions\.gate\.weight"):
        convert({name: weight for name, weight in weights.items() if name != "fus1_w2"})
    with pytest.raises(ValueError, match=r"no bert\.encoder\.layer\.1\.output\.dense\.bias"):
        convert({name: weight for name, weight in weights.items() if name != "bert.encoder.layer.1.output.dense.bias"})
    with pytest.raises(ValueError, match=r"no classifier\.weight: is it one of MGCMT.*It has roberta\.x"):
        convert({"roberta.x": torch.zeros(2)})


def test_settings_that_do_not_fit_are_refused() -> None:
    weights = released_weights()
    with pytest.raises(ValueError, match="num_attention_heads is 5, which does not divide the hidden size 24"):
        convert_state_dict(weights, num_attention_heads=5)
    with pytest.raises(ValueError, match="expected O, B and I among them"):
        convert(weights, span_tags=["PAD", "O", "B", "E", "X", "[CLS]", "[SEP]"])
    with pytest.raises(ValueError, match="the text encoder is a roberta, and the checkpoint's is a BERT"):
        convert(weights, text_config=RobertaConfig())
    with pytest.raises(ValueError, match="lacks I-MISC"):
        convert(weights, tags=["PAD", "O", "B-MISC", "X", *TAGS[4:]])


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_the_command_writes_a_checkpoint_that_loads(
    tmp_path: Path, post: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str], file: str
) -> None:
    weights = released_weights()
    save_file(weights, tmp_path / file) if file.endswith("safetensors") else torch.save(weights, tmp_path / file)
    out = tmp_path / "mgcmt"
    assert main([str(tmp_path / file), str(out), "--num_attention_heads", str(HEADS)]) == 0
    model = MgcmtForTokenClassification.from_pretrained(out)
    expected = convert(weights).state_dict
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(**post).emissions, load(convert(weights))(**post).emissions)
    said = capsys.readouterr().out
    taken = sum(weight.numel() for weight in expected.values())
    assert f"taken over: {len(expected)} weights, {taken:,} parameters" in said
    assert "left out, the encoder's pooler: 600 parameters of bert.pooler.dense" in said
    assert "left out, tags of no word: PAD, X, [CLS], [SEP]" in said and "start anew" not in said
    assert main([str(tmp_path / file), str(out), "--num_attention_heads", str(HEADS)]) == 2  # nothing is replaced
    assert "exists" in capsys.readouterr().err


def test_encoders_of_text_and_images_come_along(tiny_encoder: str, tmp_path: Path) -> None:
    text = AutoModel.from_pretrained(tiny_encoder)
    sizes = {"d": 32, "vocabulary": text.config.vocab_size, "positions": 512, "regions": 12}
    weights = released_weights(**sizes)
    for name, weight in text.state_dict().items():
        weights[f"bert.{name}"] = weight.clone()
    torch.save(weights, tmp_path / "released.bin")
    torch.manual_seed(0)
    vision = ResNetModel(
        ResNetConfig(depths=[1, 1], hidden_sizes=[8, 12], embedding_size=4, layer_type="basic", num_channels=3)
    )
    vision.save_pretrained(tmp_path / "vision")
    folder = tmp_path / "mgcmt"
    conversion = convert_checkpoint(tmp_path / "released.bin", folder, tiny_encoder, str(tmp_path / "vision"))
    assert not conversion.missing
    model = MgcmtForTokenClassification.from_pretrained(folder)
    assert model.config.num_attention_heads == text.config.num_attention_heads
    assert AutoTokenizer.from_pretrained(folder).tokenize("Phoenix") == ["Phoenix"]
    assert model.vision is not None
    assert all(torch.equal(weight, vision.state_dict()[name]) for name, weight in model.vision.state_dict().items())

    weights = released_weights(**sizes | {"regions": 10})
    torch.save(weights | {f"bert.{name}": w for name, w in text.state_dict().items()}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="gives regions of 12, the checkpoint takes 10"):
        convert_checkpoint(tmp_path / "other.bin", tmp_path / "new", tiny_encoder, str(tmp_path / "vision"))
    torch.save(released_weights(), tmp_path / "other.bin")
    with pytest.raises(ValueError, match=r"bert\.embeddings\.word_embeddings\.weight is .* for encoder"):
        convert_checkpoint(tmp_path / "other.bin", tmp_path / "new", tiny_encoder)
    assert not (tmp_path / "new").exists()


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("code.bin").write_bytes(pickle.dumps({"w": Code()}, protocol=2))
    torch.save({"state_dict": released_weights(), "epoch": 3}, "trainer.bin")
    torch.save([torch.zeros(2)], "list.bin")
    Path("broken.safetensors").write_bytes(b"{}")
    for file, message in {
        "code.bin": "cannot be read as",
        "trainer.bin": "'state_dict' (dict), 'epoch' (int) (expected weights by name, and nothing else)",
        "list.bin": "holds a list",
        "broken.safetensors": "cannot be read as",
        "absent.bin": "No such file",
    }.items():
        assert main([file, "out"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and file in said and message in said, file
    assert not Path("executed").exists() and not Path("out").exists()
