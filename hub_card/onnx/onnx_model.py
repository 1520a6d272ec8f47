"""Runs an exported model on the CPU: encoder and emissions in ONNX Runtime, the CRF in numpy."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers.utils import cached_file

from hub_card.onnx.crf_numpy import NumpyCrf
from hub_card.onnx.onnx_files import external_data
from modeling_ita import ItaConfig, ItaOutput
from modeling_ita.checkpoint_files import inside, read_header, read_object
from modeling_ita.entity_tagger import NOT_FINITE, ScoredSpan, check_finite
from modeling_ita.plain_text import one_line
from modeling_ita.whole_files import written_file

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"  # beside the graph, for models too large for one file
CRF = "crf.safetensors"
MAKE_ONE = "make one with python -m hub_card.export onnx MODEL OUT"
MAX_GRAPH = 2**31  # bytes, the limit of the format
INPUTS = ("input_ids", "attention_mask", "word_positions", "word_rows", "token_type_ids")
"""The graph's inputs, int64; `token_type_ids` only for encoders that have segments. The output is `emissions`."""


def require(package: str) -> ModuleType:
    """Imports a package of the extra `onnx`.

    Raises:
        ImportError: it is not installed; the message gives the command.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(f"{package} is not installed: pip install 'ita-mner[onnx]'") from error


class OnnxItaForTokenClassification:
    """A drop-in model for `ItaPipeline` that runs a graph from `export_onnx` and the CRF's scores.

    `ItaPipeline(model=OnnxItaForTokenClassification.from_pretrained(folder), processor=…)`, or
    `pipeline("token-classification", model=…, processor=…, pipeline_class=ItaPipeline)`. It stays on the CPU, wherever
    the pipeline puts its tensors, and has no losses.

    Args:
        config: the configuration of the model that was exported.
        graph: the file of the graph, with its weights' file beside it if it has one.
        crf: the file of the CRF's scores.
        threads: CPU threads for the graph; default: as many as torch uses now.

    Raises:
        ImportError: onnxruntime is not installed; the message gives the command.
        ValueError: a file cannot be read, or does not fit the configuration; the message names it.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    input_modalities = ("text",)
    sees_images = False

    def __init__(self, config: ItaConfig, graph: Path, crf: Path, threads: int | None = None) -> None:
        self.config = config
        self._files = (graph, crf)
        self.crf = _read_crf(crf, config)
        self._session = _open_graph(graph, torch.get_num_threads() if threads is None else threads)
        self._inputs = [value.name for value in self._session.get_inputs()]
        shapes = {value.name: value.shape for value in self._session.get_outputs()}
        expected = [name for name in INPUTS if name != "token_type_ids" or name in self._inputs]
        if self._inputs != expected or shapes.get("emissions", [None])[-1] != self.crf.num_tags:
            raise ValueError(
                f"{graph} takes {', '.join(self._inputs)} and gives {shapes} (expected {', '.join(expected)}, and "
                f"emissions of {self.crf.num_tags} tags): it is not the graph of this folder's model; {MAKE_ONE}"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        threads: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> OnnxItaForTokenClassification:
        """Opens what `export_onnx` wrote.

        Args:
            folder: the folder, or a repository on the Hub that holds it.
            threads: CPU threads for the graph; default: as many as torch uses now.
            revision: revision of the Hub repository.
            token: token for a private repository.

        Raises:
            ImportError: onnxruntime is not installed; the message gives the command.
            FileNotFoundError: a file is missing from the folder; the message names it.
            OSError: there is no such repository.
            ValueError: a file cannot be read, or does not belong to the others; the message names it.
        """
        source = {"revision": revision, "token": token}
        config = _read_config(_find(folder, "config.json", source))
        _find(folder, WEIGHTS, source, optional=True)
        return cls(config, _find(folder, GRAPH, source), _find(folder, CRF, source), threads)

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        cross_input_ids: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
        cross_token_type_ids: torch.Tensor | None = None,
        word_positions: torch.Tensor | None = None,
        word_rows: torch.Tensor | None = None,
        has_context: torch.Tensor | None = None,
        emissions_only: bool = False,
    ) -> ItaOutput:
        """Scores the tags of B posts' words in the views that the batch holds, as `ItaForTokenClassification` does.

        Args:
            input_ids: `(R, L)`, textual view T: the post's tokens. R = B, unless posts are longer than the window.
            attention_mask: `(R, L)`, 1 on tokens, 0 on padding. Default: all ones.
            token_type_ids: `(R, L)`, for encoders that have them. Default: all zeros.
            cross_input_ids: `(R, L')`, cross-modal view I+T.
            cross_attention_mask: `(R, L')`.
            cross_token_type_ids: `(R, L')`.
            word_positions: `(B, N)`, position of each word's first subword in its row; −1 is padding.
            word_rows: `(B, N)`, the row of each word. Default: word (b, n) is in row b.
            has_context: ignored; accepted because the processor's batches contain it.
            emissions_only: whether to leave out the logits.

        Returns:
            `logits` and `emissions`, `(B, N, C)` float32 on the CPU, and with both views `cross_logits` and
            `cross_emissions`.

        Raises:
            ValueError: the batch holds no view or no `word_positions`.
        """
        if word_positions is None:
            raise ValueError("the batch holds no word_positions (ItaProcessor makes them)")
        views = [
            view
            for view in (
                (input_ids, attention_mask, token_type_ids),
                (cross_input_ids, cross_attention_mask, cross_token_type_ids),
            )
            if view[0] is not None
        ]
        if not views:
            raise ValueError("the batch holds no view (expected input_ids, cross_input_ids, or both)")
        positions = _array(word_positions)
        rows = np.arange(len(positions))[:, None] if word_rows is None else _array(word_rows)
        words = {"word_positions": positions, "word_rows": np.broadcast_to(rows, positions.shape)}
        emissions = [self._emissions(view, words) for view in views]
        outputs = ItaOutput(emissions=torch.from_numpy(emissions[0]))
        if len(views) == 2:
            outputs.cross_emissions = torch.from_numpy(emissions[1])
        if not emissions_only:
            logits = [torch.from_numpy(self.crf.log_marginals(scores, positions >= 0)) for scores in emissions]
            outputs.logits, outputs.cross_logits = (*logits, None)[:2]
        return outputs

    def decode_tags(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        """The best tag sequence of every post (Viterbi).

        Args:
            emissions: `(B, N, C)`, from `ItaOutput`.
            mask: `(B, N)`, boolean, true on words: `word_positions >= 0`.

        Raises:
            NotFiniteError: an emission is NaN or infinite.
        """
        check_finite(emissions, mask)
        is_word = _array(mask)
        tags, _ = self.crf.decode(_array(emissions), is_word)
        return [row[:length] for row, length in zip(tags.tolist(), is_word.sum(1).tolist(), strict=True)]

    def decode_scored_tags(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[list[tuple[int, float]]]:
        """The best tag sequence of every post, each tag with its posterior at its word; the arguments are the same.

        Raises:
            NotFiniteError: an emission is NaN or infinite.
        """
        tags = self.decode_tags(emissions, mask)
        marginals = np.exp(self.crf.log_marginals(_array(emissions), _array(mask))).clip(max=1)  # (B, N, C)
        return [
            list(zip(row, post[range(len(row)), row].tolist(), strict=True))
            for row, post in zip(tags, marginals, strict=True)
        ]

    def least_confidence(self, emissions: torch.Tensor, mask: torch.Tensor) -> list[float]:
        """How unsure the model is of every post: one minus the exact posterior of its best tag sequence.

        Raises:
            NotFiniteError: an emission or a posterior is NaN or infinite.
        """
        check_finite(emissions, mask)
        log_posterior = self.crf.best_log_posterior(_array(emissions), _array(mask))  # (B,)
        check_finite(emissions, mask, torch.from_numpy(log_posterior))
        return (-np.expm1(log_posterior)).clip(0, 1).tolist()

    def decode_entities(
        self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float | None = None
    ) -> list[list[ScoredSpan]]:
        """The entities of the best tag sequence of every post, each with its exact posterior.

        Args:
            emissions: `(B, N, C)`, from `ItaOutput`.
            mask: `(B, N)`, boolean, true on words: `word_positions >= 0`.
            temperature: temperature of the posterior. Default: the configuration's `score_temperature`.

        Raises:
            NotFiniteError: an emission or a posterior is NaN or infinite.
            ValueError: the temperature is not a number > 0.
        """
        temperature = self.config.score_temperature if temperature is None else temperature
        scheme = self.crf.scheme
        entities = [scheme.spans(tags) for tags in self.decode_tags(emissions, mask)]
        places = [(b, s.start, s.end, scheme.types.index(s.type)) for b, spans in enumerate(entities) for s in spans]
        spans = np.array(places, np.int64).reshape(-1, 4)
        probabilities = np.exp(self.crf.span_log_probability(_array(emissions), _array(mask), spans, temperature))
        check_finite(emissions, mask, torch.from_numpy(probabilities))
        scores = iter(probabilities.clip(max=1).tolist())  # (S,)
        return [[ScoredSpan(span, next(scores)) for span in row] for row in entities]

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Copies the graph, the CRF's scores and the configuration, for `from_pretrained`."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        graph, crf = self._files
        weights = graph.with_name(WEIGHTS)
        for file in (graph, crf, *([weights] if weights.exists() else [])):
            if not (target / file.name).exists() or not file.samefile(target / file.name):
                with written_file(target / file.name) as part:
                    shutil.copyfile(file, part)
        self.config.save_pretrained(target)

    def eval(self) -> OnnxItaForTokenClassification:
        """Return `self`: a graph has no training mode."""
        return self

    def to(self, *_: Any, **__: Any) -> OnnxItaForTokenClassification:
        """Return `self`: the model stays on the CPU, in its own dtype."""
        return self

    def can_generate(self) -> bool:
        """False, for pipelines that ask."""
        return False

    def is_remote_code(self) -> bool:
        """False: its code comes from the installed package."""
        return False

    def _emissions(self, view: tuple[torch.Tensor | None, ...], words: Mapping[str, np.ndarray]) -> np.ndarray:
        ids, mask, types = (None if tensor is None else _array(tensor) for tensor in view)
        assert ids is not None
        if not words["word_positions"].size:
            return np.zeros((*words["word_positions"].shape, self.crf.num_tags), np.float32)
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids) if mask is None else mask,
            "token_type_ids": np.zeros_like(ids) if types is None else types,
            **words,
        }
        feeds = {name: np.ascontiguousarray(given[name], np.int64) for name in self._inputs}
        return self._session.run(["emissions"], feeds)[0]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _find(folder: str | os.PathLike[str], name: str, source: dict[str, Any], optional: bool = False) -> Path:
    place = os.fspath(folder)
    if os.path.isdir(place):
        file = Path(place) / name
        if not optional and not file.is_file():
            raise FileNotFoundError(f"{folder} has no {name}, so it is not an exported ONNX model: {MAKE_ONE}")
        return file
    if os.path.exists(place):
        raise ValueError(f"{place} is a file (expected the folder of an exported ONNX model)")
    try:
        found = cached_file(place, name, **source, _raise_exceptions_for_missing_entries=not optional)
    except OSError as error:
        raise OSError(f"{place!r} is not a folder, and as a repository it did not give {name}: {error}") from error
    return Path(found or name)


def _read_config(file: Path) -> ItaConfig:
    settings = read_object(file)
    found = settings.get("model_type")
    if found != ItaConfig.model_type:
        raise ValueError(f"{file} is of a model of type {found!r} (expected {ItaConfig.model_type!r}); {MAKE_ONE}")
    return ItaConfig.from_pretrained(file)


def _read_crf(file: Path, config: ItaConfig) -> NumpyCrf:
    names = ("transitions", "start_transitions", "end_transitions")
    header = read_header(file)
    try:
        for name, stored in header.items():
            if stored.dtype not in ("F16", "F32", "F64"):
                raise ValueError(f"{name} is of type {stored.dtype}")
        scores = load_file(file)
        transitions, start, end = (scores[name] for name in names)
        if not all(np.isfinite(scores[name]).all() for name in names):
            raise ValueError(f"it would give {NOT_FINITE}")
        return NumpyCrf(transitions, start, end, config.tag_scheme, config.constraints)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}; {MAKE_ONE}") from error
    except KeyError as error:
        raise ValueError(f"{file} holds no {error} (expected {', '.join(names)}); {MAKE_ONE}") from error
    except ValueError as error:
        raise ValueError(f"{file} does not fit the configuration: {one_line(error, 400)}") from error


def _open_graph(file: Path, threads: int) -> Any:
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # log only fatal messages; errors are raised
    _check_graph(file)
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no other base class
        raise ValueError(f"{file} cannot be opened: {one_line(error, 300)}; {MAKE_ONE}") from error


def _check_graph(file: Path) -> None:
    """Rejects a graph that reads any file but its weight file, which must be beside it and large enough.

    Raises:
        ValueError: the graph is damaged, or reads another file; the message names it.
    """
    if file.stat().st_size > MAX_GRAPH:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes (expected at most {MAX_GRAPH:,}); {MAKE_ONE}")
    try:
        places = list(external_data(file.read_bytes()))
    except (ValueError, IndexError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as a graph of ONNX: {error}; {MAKE_ONE}") from error
    for place in places:
        if place.get("location") != WEIGHTS:
            named = one_line(repr(place.get("location")), 80)
            raise ValueError(f"{file} reads the file {named} (expected {WEIGHTS}, and no other); {MAKE_ONE}")
        if not inside(file.parent, WEIGHTS).is_file():
            raise FileNotFoundError(f"{file.parent} has no {WEIGHTS}, which {file.name} reads; {MAKE_ONE}")
        size = file.with_name(WEIGHTS).stat().st_size
        first, length = (place.get(key, "0") for key in ("offset", "length"))
        if not (first + length).isdigit() or len(first + length) > 30 or int(first) + int(length) > size:
            raise ValueError(f"{file.with_name(WEIGHTS)} ends before what {file.name} reads of it; {MAKE_ONE}")
