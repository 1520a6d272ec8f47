"""Checks a checkpoint's files before they are loaded: a one-line error says which file is broken, and how.

Libraries trust the files that they load: a broken file can raise any exception, and a hostile one can make them fetch,
open or allocate what it names. So each file is read here first, within limits, and nothing in it may point outside the
folder.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import cached_file

from .plain_text import one_line

CONFIG, PROCESSOR = "config.json", "processor_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# The files that a tokenizer and an image processor are read from, if present.
PARTS = (
    TOKENIZER_CONFIG, TOKENIZER, "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "preprocessor_config.json", "chat_template.json",
)  # fmt: skip
_VOCABULARY = re.compile(
    r"(?!tokenizer_config).*(tokenizer|vocab|merges|spiece|sentencepiece|spm|bpe).*\.(json|txt|model|codes)"
)
_BYTEWISE = ("CanineTokenizer", "ByT5Tokenizer", "PerceiverTokenizer")  # which have no vocabulary
REACHING = ("audio_tokenizer_config.json",)  # files that make a processor load something from elsewhere
# The arguments of from_pretrained that say where a checkpoint's files are.
PLACE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

MAX_JSON = 256 * 2**20  # bytes of a JSON file; the largest tokenizers have 40 MB
MAX_HEADER = 100 * 2**20  # bytes of the header of a safetensors file, safetensors' own limit
MAX_LAYERS = 1_000
MAX_LABELS = 2_000
MAX_NUMBER = 2**31
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2,
    "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "auto")
_COUNTS = re.compile(r"(^|_)(layers?|depths?|blocks|stages|groups)$")


class Stored(NamedTuple):
    """A tensor in a weights file: its type as safetensors names it, its shape, and the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@contextmanager
def reading(place: str | os.PathLike[str], file: str = "") -> Iterator[None]:
    """Turns any exception raised while a checkpoint is read into a one-line error that names it.

    An `OSError` or `ImportError` keeps its type; any other exception becomes a `ValueError` with the original as its
    cause.

    Args:
        place: the checkpoint: a folder, or a name on the Hub.
        file: the file that is read. Errors that already name the checkpoint are not changed.
    """
    try:
        yield
    except Exception as error:
        said = str(error)
        kind = next((kind for kind in (OSError, ImportError) if isinstance(error, kind)), ValueError)
        if isinstance(error, (OSError, ImportError, ValueError)) and said and said == one_line(said):
            if os.fspath(place) in said:
                raise
        elif not isinstance(error, (OSError, ImportError, ValueError, RuntimeError)) or not said:
            said = f"{type(error).__name__}: {said}"
        named = "" if os.fspath(place) in said else f"{os.path.join(place, file) if file else place}: "
        raise kind(one_line(f"{named}{said}", 900)) from error


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, or does not hold a JSON object; the message names it.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder (expected a file)")
    size = os.stat(path).st_size
    if size > MAX_JSON:
        raise ValueError(f"{path} has {size:,} bytes (expected at most {MAX_JSON:,})")
    try:
        found = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        empty = "it is empty" if not size else one_line(error, 200)
        raise ValueError(f"{path} is not JSON: {empty}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} (expected a JSON object)")
    return found


def read_header(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """Reads the tensors of a safetensors file, by name, from its header.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a complete safetensors file; the message names it.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(f"{path} cannot be read as safetensors: it has {size:,} bytes, and its header {length:,}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = [(name, _entry(entry)) for name, entry in header.items()]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = one_line(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{path} cannot be read as safetensors: its header is damaged ({why})") from error
    end = 0
    for name, (dtype, shape, first, last) in sorted(tensors, key=lambda tensor: tensor[1][2:]):
        if first != end or last - first != math.prod(shape) * _BYTES[dtype]:
            raise ValueError(
                f"{path} cannot be read as safetensors: {name[:100]!r}, {dtype} {shape}, has bytes {first} to {last}"
            )
        end = last
    if end != size - 8 - length:
        raise ValueError(f"{path} cannot be read as safetensors: {size - 8 - length:,} bytes of tensors, not {end:,}")
    return {name: Stored(dtype, shape, Path(path)) for name, (dtype, shape, *_) in tensors}


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first byte and end of a tensor."""
    dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BYTES:
        raise ValueError(f"the type {one_line(repr(dtype), 40)}")
    for number in (*shape, first, last):
        if type(number) is not int or not 0 <= number < 2**63:
            raise ValueError(f"the size {one_line(repr(number), 40)}")
    return dtype, tuple(shape), first, last


def read_weights(folder: str | os.PathLike[str], name: str | None = None) -> dict[str, Stored]:
    """Reads the tensors of a folder's weights, by name, from one file or several.

    Args:
        folder: the folder.
        name: the file. Default: `WEIGHTS`, or the files that `INDEX` names.

    Raises:
        OSError: there are no weights.
        ValueError: a file is damaged, lies outside the folder, or is a pickle; the message names it.
    """
    place = Path(folder)
    if name is None:
        name = next((file for file in (WEIGHTS, INDEX) if (place / file).is_file()), None)
    if name is None:
        pickled = [file for file in PICKLED if (place / file).is_file()]
        if pickled:
            raise ValueError(
                f"{place / pickled[0]} is a pickle, which is not read: save the weights as safetensors "
                "(torch.load(…, weights_only=True), then safetensors.torch.save_file)"
            )
        raise FileNotFoundError(f"{place} has no {WEIGHTS}")
    if not name.endswith(".index.json"):
        return read_header(inside(place, name))
    index = read_object(inside(place, name))
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()) or not shards:
        raise ValueError(f"{place / name} has no weight_map (expected the file of every weight)")
    stored: dict[str, Stored] = {}
    for file in sorted({*shards.values()}):
        if not (place / plain_name(file, place / name)).is_file():
            raise FileNotFoundError(f"{place} has no {file}, which {name} names")
        stored |= read_header(inside(place, file))
    lost = sorted(shards.keys() - stored.keys())
    if lost:
        raise ValueError(f"{place / name} names {len(lost)} weights that are in no file, such as {lost[0][:100]!r}")
    return stored


def plain_name(name: Any, where: str | os.PathLike[str]) -> str:
    """Returns the name if it is that of a file in the same folder.

    Raises:
        ValueError: the name points elsewhere; the message says `where` it was found.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.@+-][\w .@+-]{0,200}", name) or ".." in name:
        raise ValueError(f"{where} names the file {one_line(repr(name), 80)} (expected one in its own folder)")
    return name


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of a file in a folder.

    Raises:
        ValueError: it is a link out of the folder that does not point into the Hub's cache.
    """
    path, home = Path(folder, name), Path(folder).resolve()
    if path.is_symlink():
        target = path.resolve()
        kept = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        if not (target.is_relative_to(home) or target.is_relative_to(kept)):
            raise ValueError(f"{path} is a link out of its folder: put the file itself there")
    return path


def folder_of(name: Any, place: Mapping[str, Any], *files: str) -> Path | None:
    """The folder of a checkpoint; for a name on the Hub, the cache folder to which these files are downloaded.

    Returns None if the checkpoint is not available or the name is invalid: the loader that follows reports why.

    Args:
        name: a folder, or a name on the Hub.
        place: arguments of `from_pretrained`, including those that say where the files are.
        files: the files to download.

    Raises:
        ValueError: `name` is a file.
    """
    if not isinstance(name, (str, os.PathLike)):
        return None
    subfolder = place.get("subfolder") or ""
    if os.path.isdir(name):
        return Path(name, subfolder)
    if os.path.exists(name):
        raise ValueError(f"{os.fspath(name)} is a file (expected the folder of a checkpoint)")
    where = {key: place[key] for key in PLACE if place.get(key) is not None and key != "force_download"}
    found = None
    try:
        for file in files:
            resolved = cached_file(os.fspath(name), file, **where, _raise_exceptions_for_missing_entries=False)
            found = found or resolved
    except Exception:
        return None  # the loader that follows reports the error
    return None if found is None else Path(found).parent


def check_model_files(folder: str | os.PathLike[str], has_weights: bool = True) -> dict[str, Stored]:
    """Checks a folder's configuration and weights; returns the tensors of the weights by name.

    Args:
        folder: the folder.
        has_weights: whether to check the weights.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or requests something that checkpoints may not; the message names it.
    """
    if not Path(folder, CONFIG).exists():
        raise FileNotFoundError(f"{folder} has no {CONFIG} (expected the folder of a checkpoint)")
    settings = read_object(inside(folder, CONFIG))
    with reading(folder, CONFIG):
        check_settings(settings)
    named = settings.get("transformers_weights")
    name = None if named is None else plain_name(named, Path(folder, CONFIG))
    return read_weights(folder, name) if has_weights else {}


def check_checkpoint(name: str | os.PathLike[str]) -> None:
    """Checks the settings of a checkpoint before the Auto classes, which trust them, read them.

    Raises:
        OSError: a file of settings is missing.
        ValueError: a file is damaged, or requests something that checkpoints may not; the message names it.
    """
    folder = folder_of(name, {})
    if folder is not None:
        check_model_files(folder, has_weights=False)
        if "model_type" not in read_object(folder / CONFIG):
            raise ValueError(f"{folder / CONFIG} names no model_type: it is not a checkpoint of this package")
        check_processor_files(folder)


def check_processor_files(folder: str | os.PathLike[str]) -> None:
    """Checks the files that a folder's processor is read from.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or refers to something outside the folder; the message names it.
    """
    place = Path(folder)
    if not (place / PROCESSOR).exists():
        raise FileNotFoundError(f"{folder} has no {PROCESSOR}")
    settings = read_object(inside(folder, PROCESSOR))
    named = settings.get("processor_class")
    if named is not None and not re.fullmatch(r"\w{0,60}Processor", str(named)):
        raise ValueError(
            f"{place / PROCESSOR}: processor_class is {one_line(repr(named), 80)} (expected a processor's)"
        )
    if "audio_tokenizer" in settings:
        raise ValueError(f"{place / PROCESSOR} names an audio_tokenizer, of which this processor has none")
    check_parts(folder)
    named = read_object(place / TOKENIZER_CONFIG) if (place / TOKENIZER_CONFIG).is_file() else {}
    has_vocabulary = any(_VOCABULARY.fullmatch(file.name) and file.is_file() for file in place.iterdir())
    if not has_vocabulary and named.get("tokenizer_class") not in _BYTEWISE:
        raise FileNotFoundError(f"{folder} has no {TOKENIZER}, and no vocabulary of another form")


def check_parts(folder: str | os.PathLike[str]) -> None:
    """Checks the files that a folder's tokenizer and image processor are read from.

    Raises:
        ValueError: a file is damaged, or refers to something outside the folder; the message names it.
    """
    place = Path(folder)
    for name in (*PARTS, *REACHING):
        if name in REACHING and (place / name).exists():
            raise ValueError(f"{place / name} names a model elsewhere: remove it")
        if (place / name).exists():
            read_object(inside(folder, name))


def check_settings(settings: Mapping[str, Any]) -> None:
    """Rejects a configuration whose settings exceed those of any real model, or refer to external code.

    Args:
        settings: the configuration, as parsed from JSON.

    Raises:
        ValueError: a setting is of the wrong type, too large, or refers to external code.
    """
    for name in ("text_config", "vision_config"):
        found = settings.get(name)
        if found is not None and not isinstance(found, Mapping) and not hasattr(found, "to_dict"):
            raise ValueError(f"{name} is a {type(found).__name__} (expected an object)")
    if not isinstance(settings.get("model_type", ""), str):
        raise ValueError(f"model_type is {settings['model_type']!r:.60} (expected a string)")
    _check_values(settings, "")


def check_labels(labels: Any) -> None:
    """Rejects an `id2label` that is valid JSON but not a tag set.

    Raises:
        ValueError: it is not an object of strings whose keys count from 0.
    """
    if labels is None:
        return
    numbers = set(map(str, labels)) if isinstance(labels, Mapping) else set()
    names = labels.values() if isinstance(labels, Mapping) else ()
    if not numbers or numbers != set(map(str, range(len(labels)))) or not all(isinstance(name, str) for name in names):
        raise ValueError('id2label is not {"0": "O", "1": "B-PER", …}, numbered from 0 without a gap')


def check_integer(name: str, value: Any, least: int, unit: str = "") -> None:
    """Rejects a setting that is not an integer, or is too small; booleans are not integers.

    Raises:
        ValueError: the setting is rejected; the message names it.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least:
        expected = " ".join(filter(None, ["an integer, at least", str(least), unit]))
        raise ValueError(f"{name} is {value!r:.60} (expected {expected})")


def check_list(name: str, value: Any) -> list[Any]:
    """Returns a setting that must be a list; a string is rejected.

    Raises:
        ValueError: the setting is not a list; the message names it.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {value!r:.60} (expected a list)")
    return list(value)


def _check_values(value: Any, name: str, depth: int = 0) -> None:
    key, shown = name.rpartition(".")[2], one_line(name, 100)
    if depth > 20:
        raise ValueError(f"{shown} is nested too deeply")
    if isinstance(value, Mapping):
        if key == "id2label" and len(value) > MAX_LABELS:
            raise ValueError(f"{shown} has {len(value):,} labels (expected at most {MAX_LABELS:,})")
        for inner, item in value.items():
            _check_values(item, f"{name}.{inner}".lstrip("."), depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_values(item, name, depth + 1)
    elif key in ("dtype", "torch_dtype") and isinstance(value, (bool, int, float)):
        raise ValueError(f"{shown} is {value!r:.60} (expected {', '.join(_DTYPES[:4])})")
    elif isinstance(value, int) and not isinstance(value, bool):
        most = MAX_LABELS if key == "num_labels" else MAX_LAYERS if _COUNTS.search(key) else MAX_NUMBER
        if not -MAX_NUMBER <= value <= most:
            raise ValueError(f"{shown} is {one_line(value, 40)} (expected at most {most:,})")
    elif isinstance(value, str):
        # "owner/name" would download a kernel from there and run it.
        if "attn_implementation" in name and not re.fullmatch(r"[\w|]{1,60}", value):
            raise ValueError(f"{shown} is {one_line(repr(value), 80)} (expected 'sdpa', 'eager' …)")
        if key in ("dtype", "torch_dtype") and value.removeprefix("torch.") not in _DTYPES:
            raise ValueError(f"{shown} is {one_line(repr(value), 80)} (expected {', '.join(_DTYPES[:4])})")


def check_weights(model_class: Any, config: Any, stored: Mapping[str, Stored], where: str) -> None:
    """Rejects weights that do not fit the model of a configuration, before memory is allocated for it.

    Args:
        model_class: the class of the model.
        config: its configuration.
        stored: the weights, by name.
        where: the checkpoint, for error messages.

    Raises:
        ValueError: the configuration gives no valid model, the model has far more weights than the files, or a
            weight has another shape or type.
    """
    with reading(where, CONFIG), torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    expected = model.state_dict()
    is_quantized = getattr(config, "quantization_config", None) is not None
    for name, tensor in expected.items():
        found = stored.get(name)
        if found is None or is_quantized:
            continue
        if found.shape != tuple(tensor.shape):
            raise ValueError(
                f"{found.file}: {name} is {found.shape}, and {CONFIG} makes it {tuple(tensor.shape)}: the two do not "
                "belong together (ignore_mismatched_sizes=True starts such weights anew)"
            )
        if tensor.is_floating_point() and found.dtype not in _FLOATS:
            raise ValueError(f"{found.file}: {name} is of type {found.dtype} (expected {', '.join(_FLOATS)})")
    made = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])
    if not is_quantized and made > 2 * sum(math.prod(one.shape) for one in stored.values()) + 10**7:
        missing = [name for name in expected if name not in stored]
        raise ValueError(
            f"{where}: {WEIGHTS} lacks {len(missing)} weights of {model_class.__name__}, such as {missing[0]!r}"
            if missing
            else f"{os.path.join(where, CONFIG)} makes a model of {made:,} numbers, and the weights are fewer"
        )


def broken_part(folder: str | os.PathLike[str]) -> str:
    """The file that prevents a folder's tokenizer from loading."""
    try:
        importlib.import_module("tokenizers").Tokenizer.from_file(os.path.join(folder, TOKENIZER))
    except Exception:  # tokenizers has no exception class of its own
        return TOKENIZER
    return TOKENIZER_CONFIG
