"""Exported checkpoints that are broken or hostile, each in one way: what is done to them, and the file to blame."""

# ruff: noqa: E501 (lines of a table)

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

CONFIG, PROCESSOR, WEIGHTS = "config.json", "processor_config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TABLE, TABLE_WORDS = "word_neighbours.safetensors", "word_neighbours.json"
INDEX = "model.safetensors.index.json"
GONE = object()
SENTINEL = "outside"  # the folder beside the checkpoint's in which nobody has any business


class Harm(NamedTuple):
    """One way in which a checkpoint is not whole.

    Attributes:
        name: what it is called.
        do: does it to a folder.
        file: the file that an error has to name.
        system: of which model: "ita" or "mgcmt".
    """

    name: str
    do: Callable[[Path], Any]
    file: str
    system: str = "ita"


def edit(file: str, path: str, value: Any, folder: Path) -> None:
    """Sets one value in a JSON file, by the names that lead to it."""
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    place, names = content, path.split(".")
    for name in names[:-1]:
        place = place[name]
    if value is GONE:
        del place[names[-1]]
    else:
        place[names[-1]] = value
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


def write(file: str, content: bytes, folder: Path) -> None:
    """Puts other bytes into a file."""
    (folder / file).write_bytes(content)


def cut(file: str, share: float, folder: Path) -> None:
    """Keeps the beginning of a file only."""
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(share * len(content))])


def remove(file: str, folder: Path) -> None:
    """Removes a file."""
    (folder / file).unlink()


def as_folder(file: str, folder: Path) -> None:
    """Puts a folder into a file's place."""
    (folder / file).unlink()
    (folder / file).mkdir()


def header(change: Callable[[dict[str, Any]], Any], folder: Path, file: str = WEIGHTS) -> None:
    """Changes the header of a safetensors file, and nothing behind it."""
    content = (folder / file).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    found = json.loads(content[8 : 8 + length])
    raw = change(found) or json.dumps(found)
    encoded = raw.encode()
    (folder / file).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], folder: Path, file: str = WEIGHTS) -> None:
    """Changes the tensors of a safetensors file."""
    found = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(found)
    save_file(found, folder / file, metadata={"format": "pt"})


def _entry(name: str, **changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found[name].update(changed)


def _sharded(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    """The weights in two files with an index, which is changed."""
    found = load_file(folder / WEIGHTS)
    names = sorted(found)
    halves = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: found[name].clone() for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in halves.items() for name in held}}
    change(index)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    (folder / WEIGHTS).unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _link(file: str, folder: Path) -> None:
    outside = folder.parent / SENTINEL / file
    outside.parent.mkdir(exist_ok=True)
    outside.write_bytes((folder / file).read_bytes())
    (folder / file).unlink()
    (folder / file).symlink_to(os.path.relpath(outside, folder))


def _rows(tensor: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        found[tensor] = found[tensor][:-1].contiguous()

    return change


def _set(tensor: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda found: found.update({tensor: value(found[tensor])})


CRF, WORDS = "crf.transitions", "encoder.embeddings.word_embeddings.weight"
DEEP = b"[" * 200_000


def broken() -> list[Harm]:
    """The checkpoints that are broken."""
    made = [
        Harm("the folder is empty", lambda folder: [os.remove(file) for file in folder.iterdir()], CONFIG),
        *(Harm(f"{file} is gone", partial(remove, file), file) for file in (CONFIG, PROCESSOR, WEIGHTS)),
        Harm("tokenizer.json is gone", partial(remove, TOKENIZER), "tokenizer"),
    ]
    for file in (CONFIG, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG):
        contents = {
            "empty": b"", "half of it": None, "a list": b"[1, 2]", "a string": b'"x"', "a number": b"7",
            "null": b"null", "no UTF-8": b'{"a": "\xff\xfe"}', "nested": DEEP, "binary": bytes(range(256)),
            "a number of 5,000 digits": b'{"max_length": ' + b"9" * 5_000 + b"}",
        }  # fmt: skip
        for name, content in contents.items():
            do = partial(cut, file, 0.5) if content is None else partial(write, file, content)
            made.append(Harm(f"{file} is {name}", do, file))
        made.append(Harm(f"{file} is a folder", partial(as_folder, file), "tokenizer" if "tok" in file else file))
    settings: list[tuple[str, str, Any]] = [
        (CONFIG, "id2label", ["O", "B-PER"]),
        (CONFIG, "id2label", {"0": "O", "2": "B-PER", "3": "I-PER"}),
        (CONFIG, "id2label", {"0": "O", "1": 7}),
        (CONFIG, "id2label", {"x": "O"}),
        (CONFIG, "id2label", "O"),
        (CONFIG, "id2label", {str(n): f"B-{n}" for n in range(5_000)}),
        (CONFIG, "num_labels", 10**9),
        (CONFIG, "score_temperature", "1.0"),
        (CONFIG, "score_temperature", float("nan")),
        (CONFIG, "score_temperature", 0),
        (CONFIG, "word_dropout", [0.1]),
        (CONFIG, "constraints", "sometimes"),
        (CONFIG, "loss_preset", {"a": 1}),
        (CONFIG, "checkpoint_format", "1"),
        (CONFIG, "checkpoint_format", 99),
        (CONFIG, "model_type", 7),
        (CONFIG, "model_type", GONE),
        (CONFIG, "text_config", "bert"),
        (CONFIG, "text_config", [1]),
        (CONFIG, "text_config.model_type", "unheard-of"),
        (CONFIG, "text_config.model_type", GONE),
        (CONFIG, "text_config.hidden_size", 10**9),
        (CONFIG, "text_config.hidden_size", 10**30),
        (CONFIG, "text_config.hidden_size", -32),
        (CONFIG, "text_config.hidden_size", "32"),
        (CONFIG, "text_config.hidden_size", 33),
        (CONFIG, "text_config.hidden_size", 64),
        (CONFIG, "text_config.num_hidden_layers", 10**9),
        (CONFIG, "text_config.num_hidden_layers", 3),
        (CONFIG, "text_config.num_attention_heads", 0),
        (CONFIG, "text_config.vocab_size", 10**9),
        (CONFIG, "text_config.vocab_size", 10),
        (CONFIG, "text_config.max_position_embeddings", 2 * 10**9),
        (CONFIG, "text_config.intermediate_size", 2**31 - 1),
        (CONFIG, "text_config.type_vocab_size", 10**9),
        (CONFIG, "text_config.num_labels", 10**9),
        (CONFIG, "text_config.hidden_act", "nothing"),
        (CONFIG, "dtype", "int8"),
        (CONFIG, "dtype", 7),
        (PROCESSOR, "max_length", "512"),
        (PROCESSOR, "max_length", -1),
        (PROCESSOR, "max_length", 512.5),
        (PROCESSOR, "max_length", [512]),
        (PROCESSOR, "window_overlap", -1),
        (PROCESSOR, "window_overlap", 1e9),
        (PROCESSOR, "window_overlap", True),
        (PROCESSOR, "window_overlap", None),
        (PROCESSOR, "context_kinds", "captions"),
        (PROCESSOR, "context_kinds", {"captions": 1}),
        (PROCESSOR, "context_kinds", [["captions"]]),
        (PROCESSOR, "context_kinds", None),
        (PROCESSOR, "separate_kinds", 3),
        (PROCESSOR, "segment_ids", "yes"),
        (PROCESSOR, "max_context_length", "many"),
        (PROCESSOR, "context_builder", "rapidocr"),
        (PROCESSOR, "context_builder", [1]),
        (TOKENIZER_CONFIG, "model_max_length", "512"),
        (TOKENIZER_CONFIG, "model_max_length", -5),
        (TOKENIZER_CONFIG, "sep_token", 7),
        (TOKENIZER_CONFIG, "sep_token", None),
        (TOKENIZER_CONFIG, "tokenizer_class", ["a"]),
        (TOKENIZER, "model", {}),
        (TOKENIZER, "model.vocab", {"a": -1}),
        (TOKENIZER, "model.vocab", ["a"]),
        (TOKENIZER, "model.type", "Unheard"),
        (TOKENIZER, "normalizer", {"type": "Unheard"}),
        (TOKENIZER, "added_tokens", "many"),
        (TOKENIZER, "model.vocab", {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "in": 100_000}),
    ]
    for file, path, value in settings:
        shown = "gone" if value is GONE else f"{value!r:.40}"
        blamed = "tokenizer" if file in (TOKENIZER, TOKENIZER_CONFIG) else file
        blamed = WEIGHTS if value == 3 and "layers" in path else blamed
        made.append(Harm(f"{file}: {path} is {shown}", partial(edit, file, path, value), blamed))
    huge = {"0": "O", "1": "B-PER", "2": "I-PER"}
    made += [
        Harm("fewer labels than the weights have", partial(edit, CONFIG, "id2label", huge), WEIGHTS),
        *(Harm(f"weights: {share:.0%} of the file", partial(cut, WEIGHTS, share), WEIGHTS) for share in (0, 0.01, 0.9)),
        Harm("weights: a pickle", partial(write, WEIGHTS, b"\x80\x04\x95" + bytes(400)), WEIGHTS),
        Harm("weights: a header of 2⁶³ bytes", partial(write, WEIGHTS, b"\xff" * 7 + b"\x7f{}"), WEIGHTS),
        Harm("weights: a header of 5,000 digits", partial(header, lambda h: '{"a": ' + "9" * 5_000 + "}"), WEIGHTS),
        Harm("weights: a header of digits", partial(write, WEIGHTS, b"9" * 5_000), WEIGHTS),
        Harm("weights: a nested header", partial(header, lambda h: DEEP.decode()), WEIGHTS),
        Harm("weights: the header is a list", partial(header, lambda h: "[1]"), WEIGHTS),
        Harm("weights: a negative size", partial(header, _entry(CRF, shape=[-9, -9])), WEIGHTS),
        Harm("weights: a huge size", partial(header, _entry(CRF, shape=[2**62, 2])), WEIGHTS),
        Harm("weights: a size that is a string", partial(header, _entry(CRF, shape=["9", 9])), WEIGHTS),
        Harm("weights: offsets beyond the end", partial(header, _entry(CRF, data_offsets=[0, 2**40])), WEIGHTS),
        Harm("weights: offsets backwards", partial(header, _entry(CRF, data_offsets=[99, 9])), WEIGHTS),
        Harm("weights: an unknown type", partial(header, _entry(CRF, dtype="F99")), WEIGHTS),
        Harm("weights: a type of another size", partial(header, _entry(CRF, dtype="F64")), WEIGHTS),
        Harm("weights: integers", partial(tensors, _set(CRF, lambda t: t.to(torch.int32))), WEIGHTS),
        Harm("weights: booleans", partial(tensors, _set(WORDS, lambda t: t > 0)), WEIGHTS),
        Harm("weights: a row less", partial(tensors, _rows("classifier.weight")), WEIGHTS),
        Harm("weights: another shape", partial(tensors, _set(WORDS, lambda t: t.T.contiguous())), WEIGHTS),
        Harm("weights: one is missing", partial(tensors, lambda t: t.pop(CRF)), WEIGHTS),
        Harm("weights: one more", partial(tensors, lambda t: t.update(more=torch.zeros(3))), WEIGHTS),
        Harm("weights: another model's", partial(tensors, lambda t: (t.clear(), t.update(a=torch.ones(2)))), WEIGHTS),
        Harm("weights: half precision", partial(tensors, lambda t: None), WEIGHTS),
        Harm("only a pickle", _pickled, "pytorch_model.bin"),
        Harm("two shards", partial(_sharded, lambda index: None), INDEX),
        Harm("shards: no map", partial(_sharded, lambda index: index.pop("weight_map")), INDEX),
        Harm("shards: the map is a list", partial(_sharded, lambda i: i.update(weight_map=["a"])), INDEX),
        Harm("shards: one is missing", partial(_sharded, lambda i: i["weight_map"].update(a="gone.safetensors")), INDEX),
        Harm("shards: a weight in no file", partial(_sharded, lambda i: i["weight_map"].update(a="model-00001.safetensors")), INDEX),
        Harm("shards: numbers", partial(_sharded, lambda i: i["weight_map"].update(a=7)), INDEX),
    ]  # fmt: skip
    table: list[tuple[str, Callable[[Path], Any], str]] = [
        ("half of the tensors", partial(cut, TABLE, 0.5), TABLE),
        ("no words", partial(write, TABLE_WORDS, b"{}"), TABLE_WORDS),
        ("the words are a list", partial(write, TABLE_WORDS, b"[]"), TABLE_WORDS),
        ("words that are numbers", partial(edit, TABLE_WORDS, "words", [1, 2, 3]), TABLE_WORDS),
        ("too many neighbours", partial(edit, TABLE_WORDS, "neighbours", 10**9), TABLE_WORDS),
        ("neighbours are a string", partial(edit, TABLE_WORDS, "neighbours", "2"), TABLE_WORDS),
        ("the words are gone", partial(remove, TABLE_WORDS), TABLE_WORDS),
        ("the tensors are gone", partial(remove, TABLE), TABLE),
        ("a row less", lambda folder: tensors(_rows("vectors"), folder, TABLE), TABLE),
        ("vectors not finite", lambda f: tensors(_set("vectors", lambda t: t * float("nan")), f, TABLE), TABLE),
        ("rows out of the table", lambda f: tensors(_set("nearest", lambda t: t + 10_000), f, TABLE), TABLE),
        ("another size of vectors", lambda f: tensors(_set("vectors", lambda t: t[:, :2].contiguous()), f, TABLE), ""),
        ("another name of the table", partial(edit, PROCESSOR, "word_neighbours", "../outside/x"), PROCESSOR),
        ("num_objects is a string", partial(edit, PROCESSOR, "num_objects", "5"), PROCESSOR),
        ("num_objects is huge", partial(edit, PROCESSOR, "num_objects", 10**9), PROCESSOR),
        ("object_labels is a string", partial(edit, PROCESSOR, "object_labels", "car"), PROCESSOR),
        ("object_labels holds numbers", partial(edit, PROCESSOR, "object_labels", [1]), PROCESSOR),
        ("no image processor", partial(edit, PROCESSOR, "image_processor", GONE), "processor"),
        ("image processor is a list", partial(edit, PROCESSOR, "image_processor", [1]), "processor"),
        ("vision depths", partial(edit, CONFIG, "vision_config.depths", [10**9, 1]), CONFIG),
        ("vision sizes", partial(edit, CONFIG, "vision_config.hidden_sizes", [10**6, 10**6]), CONFIG),
        ("object classes", partial(edit, CONFIG, "num_object_classes", 10**9), CONFIG),
        ("augmentation size", partial(edit, CONFIG, "augmentation_size", 10**9), CONFIG),
        ("heads that do not divide", partial(edit, CONFIG, "num_attention_heads", 7), CONFIG),
    ]
    return made + [Harm(f"MGCMT: {name}", do, file, "mgcmt") for name, do, file in table]


def hostile() -> list[Harm]:
    """The checkpoints that would run, fetch or read what is none of their business."""
    far = "owner/evil"
    kinds: list[tuple[str, Callable[[Path], Any], str]] = [
        (f"auto_map of another repository: {name}", partial(edit, CONFIG, f"auto_map.{name}", f"{far}--code.Class"), CONFIG)
        for name in ("AutoConfig", "AutoModelForTokenClassification", "AutoProcessor")
    ]  # fmt: skip
    custom = {"impl": f"{far}--pipe.Pipe", "pt": ["AutoModelForTokenClassification"]}
    outside = f"../{SENTINEL}/secret"
    kinds += [
        ("custom_pipelines", partial(edit, CONFIG, "custom_pipelines.token-classification", custom), CONFIG),
        ("custom_pipelines: os", partial(edit, CONFIG, "custom_pipelines.token-classification", {"impl": "os.system", "pt": ["AutoModel"]}), CONFIG),
        ("processor auto_map", partial(edit, PROCESSOR, "auto_map", {"AutoProcessor": f"{far}--code.Class"}), PROCESSOR),
        ("tokenizer auto_map", partial(edit, TOKENIZER_CONFIG, "auto_map", {"AutoTokenizer": [f"{far}--t.T", f"{far}--t.F"]}), "tokenizer"),
        ("tokenizer_class", partial(edit, TOKENIZER_CONFIG, "tokenizer_class", "os.system"), "tokenizer"),
        ("tokenizer_class: elsewhere", partial(edit, TOKENIZER_CONFIG, "tokenizer_class", f"{far}--t.T"), "tokenizer"),
        ("processor_class", partial(edit, PROCESSOR, "processor_class", "subprocess.Popen"), PROCESSOR),
        ("audio_tokenizer", partial(edit, PROCESSOR, "audio_tokenizer", {"audio_tokenizer_name_or_path": far, "audio_tokenizer_class": "DacModel"}), PROCESSOR),
        ("audio_tokenizer_config.json", partial(write, "audio_tokenizer_config.json", json.dumps({"audio_tokenizer_name_or_path": far, "audio_tokenizer_class": "DacModel"}).encode()), "audio_tokenizer_config.json"),
        ("attention from the Hub", partial(edit, CONFIG, "_attn_implementation", f"{far}:run"), CONFIG),
        ("attention from the Hub, by its public name", partial(edit, CONFIG, "attn_implementation", far), CONFIG),
        ("attention of the encoder", partial(edit, CONFIG, "text_config._attn_implementation", f"{far}@main:f"), CONFIG),
        ("attention by part", partial(edit, CONFIG, "attn_implementation", {"text_config": far}), CONFIG),
        ("experts from the Hub", partial(edit, CONFIG, "experts_implementation", far), CONFIG),
        ("quantization_config", partial(edit, CONFIG, "quantization_config", {"quant_method": "finegrained_fp8", "modules_to_not_convert": None}), CONFIG),
        ("quantization_config: unknown", partial(edit, CONFIG, "quantization_config", {"quant_method": far}), CONFIG),
        ("text_config.auto_map", partial(edit, CONFIG, "text_config.auto_map", {"AutoModel": f"{far}--m.M"}), CONFIG),
        ("trust in the settings", partial(edit, CONFIG, "trust_remote_code", True), CONFIG),
        ("trust in text_config", partial(edit, CONFIG, "text_config.trust_remote_code", True), CONFIG),
        ("_name_or_path", partial(edit, CONFIG, "_name_or_path", "http://127.0.0.1:9/x"), CONFIG),
        ("text_config._name_or_path", partial(edit, CONFIG, "text_config._name_or_path", far), CONFIG),
        ("chat template", partial(write, "chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"), "chat_template.jinja"),
        ("chat_template.json", partial(write, "chat_template.json", b'{"chat_template": "{{ cycler.__init__.__globals__.os.system(1) }}"}'), "chat_template.json"),
        ("chat_template.json is a list", partial(write, "chat_template.json", b"[]"), "chat_template.json"),
        ("dtype", partial(edit, CONFIG, "torch_dtype", "__class__"), CONFIG),
        ("dtype of the encoder", partial(edit, CONFIG, "text_config.dtype", "nn.Module"), CONFIG),
        ("generation_config.json", partial(write, "generation_config.json", b'{"custom_generate": "owner/evil"}'), "generation_config.json"),
        ("adapter_config.json", partial(write, "adapter_config.json", json.dumps({"base_model_name_or_path": far, "peft_type": "LORA"}).encode()), "adapter_config.json"),
        ("adapter without settings", lambda folder: (write("adapter_config.json", json.dumps({"base_model_name_or_path": far, "peft_type": "LORA"}).encode(), folder), remove(CONFIG, folder)), CONFIG),
        ("shards above", partial(_sharded, lambda i: i["weight_map"].update(a=f"{outside}.safetensors")), INDEX),
        ("shards anywhere", partial(_sharded, lambda i: i["weight_map"].update(a="/etc/passwd")), INDEX),
        ("transformers_weights", partial(edit, CONFIG, "transformers_weights", f"{outside}.safetensors"), CONFIG),
        ("fast_tokenizer_files", partial(edit, TOKENIZER_CONFIG, "fast_tokenizer_files", [f"tokenizer.4.0/{outside}.json"]), "tokenizer"),
        ("tokenizer_file", partial(edit, TOKENIZER_CONFIG, "tokenizer_file", f"{outside}.json"), "tokenizer"),
        ("special_tokens_map_file", partial(edit, TOKENIZER_CONFIG, "special_tokens_map_file", f"{outside}.json"), "tokenizer"),
        ("gguf_file", partial(edit, CONFIG, "gguf_file", f"{outside}.gguf"), CONFIG),
        *((f"{file} is a link", partial(_link, file), file) for file in (CONFIG, PROCESSOR, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG)),
    ]  # fmt: skip
    return [Harm(name, do, file) for name, do, file in kinds]
