"""Converts a checkpoint of MGCMT's released code: a table of names, and what becomes of every other weight.

python -m hub_card.convert_mgcmt pytorch_model.bin outputs/mgcmt --text_encoder bert-base-cased

`BLOCKS`, `BLOCK_LAYERS`, `MODULES` and `WEIGHTS` are the table. The specification fixes `bert.*`, the two text
self-attentions, `vismap2text`, the names of the shape trace (`txt2img` …) and what becomes of each block. All other
names are those that the released code gives its modules. They were checked against that code, and not against a file
of weights. A block may be called as in the code (`txt2img_attention.layer.0.…`) or as in the trace (`txt2img.…`).

Orientation, where it could go wrong unseen:

* The gates are parameters that the released code transposes before it multiplies, so W11 and W12 are [out, in] like
  the weight of a linear layer: side by side they are ours, in the order in which `RegionStream` and `ObjectStream`
  hand in the two streams (M3, M4; M6, M5).
* `fusion_w` is multiplied as it stands, [in, out], and is transposed here.
* Transitions are [from, to] in the released CRF, the package pytorch-crf, as they are here.
* The rows of the object table stay as they are: they go by the class ids of the detector it was trained with.

The released CRF runs over subwords, from [CLS] to [SEP]: sequences begin with the one and end with the other.
A first word's score is therefore the transition from [CLS], a last word's the one to [SEP]; the released start and end
scores are constants. Transitions from and to X, between words of several subwords, have no counterpart.

The released code holds the weights of every variant that it was tried with. Which of them was trained does not show in
the weights: it is taken to be the default one, and the weights of the others are left out by name and counted.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig
from transformers.utils import logging

from modeling_ita.checkpoint_files import read_header, reading
from modeling_ita.command_line import command, print_text, program
from modeling_ita.configuration_mgcmt import MgcmtConfig
from modeling_ita.entity_tagger import check_encoder
from modeling_ita.modeling_mgcmt import MgcmtForTokenClassification
from modeling_ita.plain_text import one_line
from modeling_ita.tag_scheme import OUTSIDE, TagScheme
from modeling_ita.whole_files import written_folder

# The released tag sets, in the order of their ids.
TAGS = ("PAD", "O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "X", "[CLS]", "[SEP]")
SPAN_TAGS = ("PAD", "O", "B", "I", "X", "[CLS]", "[SEP]")
PIECE_TAGS = frozenset({"PAD", "[PAD]", "X", "[CLS]", "[SEP]"})  # not word tags
FIRST, LAST = "[CLS]", "[SEP]"

BLOCKS = {
    "self_attention": "self_attention",
    "self_attention_v2": "self_attention_v2",
    "regions.self_attention": "img2img_attention",
    "regions.self_attention_v2": "img2img_attention_v2",
    "regions.txt2img": "txt2img_attention",
    "regions.img2txt": "img2txt_attention",
    "regions.txt2txt": "txt2txt_attention",
    "objects.self_attention": "obj2obj_attention",
    "objects.self_attention_v2": "obj2obj_attention_v2",
    "objects.txt2obj": "txt2obj_attention",
    "objects.obj2txt": "obj2txt_attention",
    "objects.txt2obj_v2": "txt2obj_attention_v2",
}
BLOCK_LAYERS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "dense": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
MODULES = {
    "augmentation.projection": "maug_linear",
    "regions.projection": "vismap2text",
    "regions.projection_v2": "vismap2text_v2",
    "objects.embedding": "object_embeddings",
    "visual_fusion": "fus3_linear",
    "classifier": "classifier",
    "crf": "crf",
    "aux_classifier": "aux_classifier",
    "aux_crf": "aux_crf",
}
WEIGHTS = {
    "augmentation.gate.weight": ("aug_w1", "aug_w2"),
    "augmentation.gate.bias": ("aug_bias",),
    "regions.gate.weight": ("fus1_w1", "fus1_w2"),
    "regions.gate.bias": ("fus1_bias",),
    "objects.gate.weight": ("fus2_w1", "fus2_w2"),
    "objects.gate.bias": ("fus2_bias",),
    "fusion.weight": ("fusion_w",),
    "fusion.bias": ("fusion_bias",),
}
# Weights that the default variant does not use, by name prefix.
UNUSED = {
    "the encoder's pooler": ("bert.pooler",),
    "positions that the model counts itself": ("bert.embeddings.position_ids",),
    "characters and augmentation below the encoder": (
        "bert.embeddings.char_cnn_model",
        "bert.embeddings.char_cnn_linear",
        "bert.embeddings.aug_linear",
    ),
    "the gate over the augmentation": ("aug_w1", "aug_w2", "aug_bias"),
    "other ways to fuse": (
        *("gate", "fus_cat_linear", "fus3_w1", "fus3_w2", "fus3_bias", "highway", "gmf", "filtration_gate", "gfg"),
        *("seq_w", "ali_w", "ati_w", "obj_w", "add_bias", "add_linear", "mlp_linear1", "mlp_linear2"),
    ),
    "further auxiliary classifiers": tuple(
        f"{stream}_aux_{part}"
        for stream in ("main", "seq", "img", "obj")
        for part in ("w", "bias", "classifier", "crf")
    ),
}


class LeftOut(NamedTuple):
    """A released weight that is not converted, or only in part.

    Attributes:
        name: its name in the checkpoint.
        parameters: how many of its numbers are left out.
        reason: why.
    """

    name: str
    parameters: int
    reason: str


class Conversion(NamedTuple):
    """A converted checkpoint.

    Attributes:
        config: of the model, from the shapes and the tags; without a vision encoder.
        state_dict: for `MgcmtForTokenClassification(config)`, in the checkpoint's dtypes.
        left_out: the weights that are not converted.
        missing: weights of the model that the checkpoint lacks, and that are newly initialized.
    """

    config: MgcmtConfig
    state_dict: dict[str, torch.Tensor]
    left_out: list[LeftOut]
    missing: list[str]


def convert_state_dict(
    released: Mapping[str, torch.Tensor],
    tags: Sequence[str] = TAGS,
    span_tags: Sequence[str] = SPAN_TAGS,
    text_config: BertConfig | None = None,
    num_attention_heads: int = 12,
    aug_fusion: Literal["add", "gate"] = "add",
) -> Conversion:
    """The weights of the released model under this model's names.

    Args:
        released: the weights as released.
        tags: the released tag set in the order of its ids. Tags of words are kept by name and in this order.
        span_tags: that of the auxiliary CRF; O, B and I are kept.
        text_config: configuration of the text encoder. Default: a BERT's, from the shapes.
        num_attention_heads: heads of the text encoder without a `text_config`: shapes do not reveal the number.
        aug_fusion: how the released model was augmented. Its own default is `"add"`.

    Raises:
        ValueError: a name is unknown, a shape is not what it should be, the tag set is not the released one, or the
            checkpoint lacks a weight of the text encoder or one that determines a size.
    """
    spelling = _spelling(released)
    weights = {name: released[spelled] for name, spelled in spelling.items()}
    _check_tags(weights, tags, span_tags)
    words = [tag for tag in tags if tag not in PIECE_TAGS]
    if text_config is None:
        text_config = _text_config(weights, num_attention_heads)
    config = _config(weights, words, text_config, aug_fusion)
    with torch.device("meta"):
        model = MgcmtForTokenClassification(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    left_out = _left_out(weights, {part for name in shapes for part in released_names(name)}, spelling)
    state_dict = {}
    for name, shape in shapes.items():
        expected = _released_shape(name, shape, len(tags), len(span_tags))
        parts = _parts(name, weights, spelling, expected)
        if parts:
            state_dict[name] = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    if "fusion.weight" in state_dict:
        state_dict["fusion.weight"] = state_dict["fusion.weight"].T.contiguous()
    left_out += _keep_tags(state_dict, "classifier", "crf", list(tags), words)
    left_out += _keep_tags(state_dict, "aux_classifier", "aux_crf", list(span_tags), [OUTSIDE, "B", "I"])
    return Conversion(config, state_dict, left_out, [name for name in shapes if name not in state_dict])


def released_names(name: str) -> tuple[str, ...]:
    """The released name of one of this model's weights: one name, or two if two halves are joined."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    module, _, kind = name.rpartition(".")
    if module in MODULES:
        return (f"{MODULES[module]}.{kind}",)
    block, _, layer = module.rpartition(".")
    if block in BLOCKS:
        return (f"{BLOCKS[block]}.layer.0.{BLOCK_LAYERS[layer]}.{kind}",)
    return (f"bert.{name.removeprefix('encoder.')}",)


def _spelling(released: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Maps the weight names of the released code to those in the checkpoint."""
    short = {name.replace("_attention", ""): name for name in BLOCKS.values() if not name.startswith("self")}
    spelling: dict[str, str] = {}
    for spelled in released:
        head, _, rest = spelled.partition(".")
        head = short.get(head, head)
        if head in BLOCKS.values() and not rest.startswith("layer."):
            rest = f"layer.0.{rest}"
        name = f"{head}.{rest}" if rest else head
        if name in spelling:
            raise ValueError(f"the checkpoint has {spelling[name]} and {spelled}, which are the same weight")
        spelling[name] = spelled
    return spelling


def _shape(weights: Mapping[str, torch.Tensor], name: str, dimensions: int = 2) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(f"the checkpoint has no {name}: is it one of MGCMT's released code? It has {_first(weights)}")
    if weights[name].dim() != dimensions:
        raise ValueError(f"{name} is {tuple(weights[name].shape)} (expected {dimensions} dimensions)")
    return tuple(weights[name].shape)


def _check_tags(weights: Mapping[str, torch.Tensor], tags: Sequence[str], span_tags: Sequence[str]) -> None:
    for classifier, given, argument in (("classifier", tags, "tags"), ("aux_classifier", span_tags, "span_tags")):
        rows = _shape(weights, f"{classifier}.weight")[0]
        if rows != len(given):
            raise ValueError(
                f"{classifier}.weight has {rows} rows, and the tags are {len(given)}: {', '.join(given)} "
                f"(expected {argument}: the released tags in the order of their ids, those of no word among them)"
            )
    if not {OUTSIDE, "B", "I"} <= {*span_tags}:
        raise ValueError(f"span_tags are {', '.join(span_tags)} (expected O, B and I among them)")


def _text_config(weights: Mapping[str, torch.Tensor], heads: int) -> BertConfig:
    vocabulary, d = _shape(weights, "bert.embeddings.word_embeddings.weight")
    layers = {name.split(".")[3] for name in weights if name.startswith("bert.encoder.layer.")}
    if heads < 1 or d % heads:
        raise ValueError(
            f"num_attention_heads is {heads}, which does not divide the hidden size {d} of the checkpoint"
        )
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        intermediate_size=_shape(weights, "bert.encoder.layer.0.intermediate.dense.weight")[0],
        max_position_embeddings=_shape(weights, "bert.embeddings.position_embeddings.weight")[0],
        type_vocab_size=_shape(weights, "bert.embeddings.token_type_embeddings.weight")[0],
    )


def _config(
    weights: Mapping[str, torch.Tensor],
    words: Sequence[str],
    text_config: BertConfig,
    aug_fusion: Literal["add", "gate"],
) -> MgcmtConfig:
    if text_config.model_type != "bert":
        raise ValueError(f"the text encoder is a {text_config.model_type}, and the checkpoint's is a BERT")
    return MgcmtConfig(
        text_config=text_config,
        id2label=dict(enumerate(TagScheme(words).labels)),
        aug_fusion=aug_fusion,
        augmentation_size=_shape(weights, "maug_linear.weight")[1],
        region_size=_shape(weights, "vismap2text.weight")[1],
        num_object_classes=_shape(weights, "object_embeddings.weight")[0],
    )


def _left_out(weights: Mapping[str, torch.Tensor], known: set[str], spelling: Mapping[str, str]) -> list[LeftOut]:
    left_out, unknown = [], []
    for name, weight in weights.items():
        if name in known:
            continue
        reasons = [why for why, parts in UNUSED.items() if any(f"{name}.".startswith(f"{part}.") for part in parts)]
        if reasons:
            left_out.append(LeftOut(spelling[name], weight.numel(), reasons[0]))
        else:
            near = difflib.get_close_matches(name, sorted(known), n=2)
            unknown.append(f"{spelling[name]} (nearest: {' or '.join(near) or 'none'})")
    if unknown:
        raise ValueError(f"the checkpoint has weights that MGCMT does not: {_first(unknown)}")
    return left_out


def _parts(
    name: str, weights: Mapping[str, torch.Tensor], spelling: Mapping[str, str], expected: tuple[int, ...]
) -> list[torch.Tensor]:
    """The released weight that becomes this one, or its two halves; none where the checkpoint has none."""
    names = released_names(name)
    present = [part for part in names if part in weights]
    absent = _first(part for part in names if part not in weights)
    if absent and name.startswith("encoder."):
        raise ValueError(f"the checkpoint has no {absent}: give the text encoder that it was trained from, or none")
    if absent and present:
        raise ValueError(f"the checkpoint has {_first(present)}, and no {absent}, the other half of {name}")
    for part in present:
        if tuple(weights[part].shape) != expected:
            raise ValueError(f"{spelling[part]} is {tuple(weights[part].shape)} (expected {expected}, for {name})")
    return [weights[part] for part in present]


def _released_shape(name: str, shape: tuple[int, ...], tags: int, span_tags: int) -> tuple[int, ...]:
    """The shape of a weight's source, or of each of its two halves."""
    if name == "fusion.weight":
        return shape[::-1]
    module = name.partition(".")[0]
    number = span_tags if module.startswith("aux_") else tags
    if module in ("crf", "aux_crf"):
        return (number,) * len(shape)
    if module in ("classifier", "aux_classifier"):
        return (number, *shape[1:])
    return shape if len(released_names(name)) == 1 else (shape[0], shape[1] // 2)


def _keep_tags(
    state_dict: dict[str, torch.Tensor], classifier: str, crf: str, tags: list[str], words: Sequence[str]
) -> list[LeftOut]:
    """Keeps the rows and columns of the words' tags, in place; what goes is returned."""
    kept = torch.tensor([tags.index(tag) for tag in words])
    names = [f"{classifier}.weight", f"{classifier}.bias"]
    names += [f"{crf}.transitions", f"{crf}.start_transitions", f"{crf}.end_transitions"]
    before = {name: state_dict[name] for name in names if name in state_dict}
    used = {name: len(kept) * weight[0].numel() for name, weight in before.items()}
    state_dict.update({name: weight[kept] for name, weight in before.items()})
    transitions = f"{crf}.transitions"
    if transitions in before:
        state_dict[transitions] = before[transitions][kept][:, kept]
        used[transitions] = len(kept) ** 2
        borders = {"start": before[transitions].T, "end": before[transitions]}
        for (border, scores), tag in zip(borders.items(), (FIRST, LAST), strict=True):
            if tag in tags:
                state_dict[f"{crf}.{border}_transitions"] = scores[kept, tags.index(tag)]
                used[transitions] += len(kept)
                used[f"{crf}.{border}_transitions"] = 0
    gone = ", ".join(tag for tag in tags if tag not in words)
    return [
        LeftOut(name, weight.numel() - used[name], f"tags of no word: {gone}")
        for name, weight in before.items()
        if weight.numel() > used[name]
    ]


def _first(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def read_checkpoint(file: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights from a PyTorch or safetensors file without running code in it.

    Raises:
        OSError: the file does not exist, or cannot be read.
        ValueError: the file has another format, or holds anything but named weights.
    """
    if Path(file).suffix == ".safetensors":
        read_header(file)
        with reading(file):
            return load_file(file)
    with Path(file).open("rb") as content:  # raises for a folder or a missing file
        is_archive = content.read(2) == b"PK"
    if is_archive:
        _check_archive(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's exception depends on where the file is damaged
        why = one_line(str(error).partition("\n")[0], 200) if isinstance(error, RuntimeError) else ""
        raise ValueError(
            f"{file} cannot be read as weights alone ({type(error).__name__}{': ' * bool(why)}{why}): "
            "save model.state_dict() by torch.save, or as *.safetensors"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{file} holds a {type(found).__name__} (expected weights by name)")
    others = [
        f"{one_line(repr(name), 60)} ({type(value).__name__})"
        for name, value in found.items()
        if not torch.is_tensor(value) or not isinstance(name, str)
    ]
    if others:
        raise ValueError(f"{file} holds {_first(others, 3)} (expected weights by name, and nothing else)")
    for name, weight in found.items():
        if weight.layout != torch.strided or weight.is_quantized or weight.device.type != "cpu":
            raise ValueError(f"{file}: {one_line(name, 60)} is not a plain tensor ({weight.layout})")
        if weight.untyped_storage().nbytes() < weight.numel() * weight.element_size() and all(weight.stride()):
            raise ValueError(f"{file}: {one_line(name, 60)} is larger than what is stored of it")
    return dict(found)


def _check_archive(file: str | Path) -> None:
    """Rejects an archive whose contents are larger than itself: PyTorch does not compress them."""
    try:
        with zipfile.ZipFile(file) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{file} is not a complete file of weights ({one_line(error, 100)}): get it again") from error
    if total > 2 * Path(file).stat().st_size:
        raise ValueError(f"{file} would unpack to {total:,} bytes, and is not a file that torch.save wrote")


def convert_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    text_encoder: str | None = None,
    vision_encoder: str | None = None,
    **settings: Any,
) -> Conversion:
    """Writes the converted checkpoint, which `MgcmtForTokenClassification.from_pretrained(folder)` loads.

    Args:
        checkpoint: the released file of weights, PyTorch's or safetensors'.
        folder: where to write: a new or empty folder.
        text_encoder: the encoder that the released model was trained from: its configuration is used, and its
            tokenizer is copied. Default: a BERT inferred from the shapes, and no tokenizer.
        vision_encoder: an encoder for the images with its weights, which the released file does not hold. Default:
            none; the model takes region features.
        **settings: as for `convert_state_dict`.

    Raises:
        OSError: a file or an encoder is missing, or the folder is not empty.
        ValueError: as `convert_state_dict` and `read_checkpoint`; or the vision encoder gives other regions.
    """
    text_config = None
    if text_encoder is not None:
        with reading(text_encoder):
            check_encoder(text_encoder, {})
            text_config = AutoConfig.from_pretrained(text_encoder)
    conversion = convert_state_dict(read_checkpoint(checkpoint), text_config=text_config, **settings)
    config, state_dict = conversion.config, conversion.state_dict
    if vision_encoder is not None:
        with reading(vision_encoder):
            check_encoder(vision_encoder, {})
            vision = AutoModel.from_pretrained(vision_encoder)
        channels = MgcmtConfig(vision_config=vision.config).region_size
        if channels != config.region_size:
            raise ValueError(
                f"{vision_encoder} gives regions of {channels}, the checkpoint takes {config.region_size}"
            )
        config.vision_config = vision.config
        state_dict = state_dict | {f"vision.{name}": weight for name, weight in vision.state_dict().items()}
    model = MgcmtForTokenClassification(config)
    model.load_state_dict(state_dict, strict=False)
    with written_folder(folder, "conversion", lambda _: False) as staging:
        model.save_pretrained(staging)
        if text_encoder is not None:
            with reading(text_encoder, "tokenizer.json"):
                tokenizer = AutoTokenizer.from_pretrained(text_encoder)
            tokenizer.save_pretrained(staging)
    return conversion


def conversion_text(conversion: Conversion) -> str:
    """A readable summary of the conversion."""
    taken = sum(weight.numel() for weight in conversion.state_dict.values())
    lines = [f"taken over: {len(conversion.state_dict)} weights, {taken:,} parameters"]
    reasons: dict[str, list[LeftOut]] = {}
    for weight in conversion.left_out:
        reasons.setdefault(weight.reason, []).append(weight)
    for reason, weights in reasons.items():
        parameters = sum(weight.parameters for weight in weights)
        lines.append(f"left out, {reason}: {parameters:,} parameters of {_first(w.name for w in weights)}")
    if conversion.missing:
        lines.append(f"missing, start anew: {_first(conversion.missing)}")
    return "\n".join(lines)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=program("hub_card.convert_mgcmt"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="the released weights: a PyTorch file or *.safetensors")
    parser.add_argument("output", help="the folder to write")
    parser.add_argument(
        "--text_encoder", help="the pretrained text encoder; default: a BERT configuration inferred from the shapes"
    )
    parser.add_argument(
        "--vision_encoder", help="pretrained image encoder; default: none (the model takes region features)"
    )
    parser.add_argument("--tags", nargs="+", default=TAGS, metavar="TAG", help="the released tags, in id order")
    parser.add_argument(
        "--span_tags", nargs="+", default=SPAN_TAGS, metavar="TAG", help="the auxiliary CRF's tags, in id order"
    )
    parser.add_argument(
        "--num_attention_heads",
        type=int,
        default=12,
        help="the text encoder's attention heads, if --text_encoder is not given",
    )
    parser.add_argument(
        "--aug_fusion", choices=("add", "gate"), default="add", help="how the released model fused the augmentation"
    )
    args = vars(parser.parse_args(arguments))
    logging.disable_progress_bar()
    print_text(conversion_text(convert_checkpoint(args.pop("checkpoint"), args.pop("output"), **args)))


if __name__ == "__main__":
    sys.exit(main())
