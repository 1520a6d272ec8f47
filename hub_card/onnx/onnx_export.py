"""Exports a model for ONNX Runtime: encoder and emissions as one graph, fp32 or int8, checked against torch."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from hub_card.onnx.onnx_int8 import quantize_graph
from hub_card.onnx.onnx_model import CRF, GRAPH, INPUTS, WEIGHTS, OnnxItaForTokenClassification, require
from modeling_ita import ItaForTokenClassification, ItaProcessor
from modeling_ita.whole_files import written_folder

TOLERANCE = 1e-3  # between the emissions of the fp32 graph and torch's
ONE_FILE = 1_800_000_000  # bytes; ONNX files are limited to 2 GiB, so larger models store weights separately


class OnnxExport(NamedTuple):
    """What `export_onnx` wrote.

    Attributes:
        folder: the folder.
        fp32_bytes: size of the fp32 graph with its weights.
        fp32_difference: the largest difference of its emissions from torch's.
        int8_bytes: size of the int8 graph with its weights; None if none was made.
        int8_difference: the largest difference of its emissions from torch's; None if none was made.
    """

    folder: Path
    fp32_bytes: int
    fp32_difference: float
    int8_bytes: int | None = None
    int8_difference: float | None = None


def export_onnx(
    model: ItaForTokenClassification, processor: ItaProcessor, folder: str | Path, int8: bool = False
) -> OnnxExport:
    """Writes a folder that `OnnxItaForTokenClassification.from_pretrained` and `ItaProcessor.from_pretrained` read.

    It holds the graph (`model.onnx`: one view's tensors in, the emissions out, with rows, tokens, posts and words as
    dynamic dimensions), the CRF's scores, the configuration and the processor. The graph is exported in float32 on the
    CPU. The folder is written to a temporary place and moved only after the graph's emissions on ragged batches have
    been compared with torch's.

    Args:
        model: the model; it is not changed.
        processor: its processor.
        folder: where to write: a new or empty folder, or an earlier export of this kind, which is replaced.
        int8: whether to quantize the graph's linear layers to 8 bits (`onnx_int8`). Embeddings, attention and the
            classifier stay in fp32.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed; the message gives the command.
        FileExistsError: the folder exists and is not an earlier export of this kind, or holds other files too.
        ValueError: the encoder cannot be exported, or the graph's emissions differ from torch's by more than 1e-3.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    if getattr(model, "is_quantized", False):
        raise ValueError("the model is quantized: load it without quantization_config, and export with int8=True")
    with written_folder(folder, "ONNX export", lambda there: (there / GRAPH).is_file(), {WEIGHTS}) as staging:
        export = _write(model, processor, staging, int8)
    return export._replace(folder=Path(folder))


def onnx_command(model: str, folder: str, int8: bool = False) -> list[str]:
    """`python -m hub_card.export onnx MODEL OUT [--int8]`: exports a checkpoint and reports what was written.

    Args:
        model: an exported folder or a repository on the Hub.
        folder: where to write.
        int8: see `export_onnx`.

    Returns:
        The lines to print: the files' sizes, the differences from torch, and how to load the folder.

    Raises:
        OSError: there is no such checkpoint.
        ImportError, FileExistsError, ValueError: as `export_onnx`.
    """
    checkpoint: Any = ItaForTokenClassification.from_pretrained(model)
    processor = ItaProcessor.from_pretrained(model, trust_remote_code=False)  # reject remote code instead of asking
    export = export_onnx(checkpoint, processor, folder, int8)
    lines = [f"{GRAPH} fp32: {_megabytes(export.fp32_bytes)}, emissions within {export.fp32_difference:.1e} of torch"]
    if export.int8_bytes is not None:
        lines[0] += " (not kept)"
        lines.append(
            f"{GRAPH} int8: {_megabytes(export.int8_bytes)}, emissions within {export.int8_difference:.1e} of torch"
        )
    load = f"ItaPipeline(model=OnnxItaForTokenClassification.from_pretrained({folder!r}), "
    return [*lines, f"{load}processor=ItaProcessor.from_pretrained({folder!r}))"]


class _OneView(nn.Module):
    """Encoder and classifier for one view: the module that is exported."""

    def __init__(self, model: ItaForTokenClassification) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.classifier = model.classifier
        # RoBERTa's forward takes segments, but there is only one of them
        takes = inspect.signature(self.encoder.forward).parameters
        has_segments = "token_type_ids" in takes and getattr(self.encoder.config, "type_vocab_size", 0) > 1
        self.inputs = [name for name in INPUTS if has_segments or name != "token_type_ids"]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        word_positions: torch.Tensor,
        word_rows: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state
        return self.classifier(hidden[word_rows, word_positions.clamp(min=0)])  # (B, N, C)


def _write(model: ItaForTokenClassification, processor: ItaProcessor, folder: Path, int8: bool) -> OnnxExport:
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    _drop_code(folder)
    save_file({name: scores.detach().float().cpu() for name, scores in model.crf.state_dict().items()}, folder / CRF)
    model = copy.deepcopy(model).float().cpu().eval()
    model.set_attn_implementation("eager")  # every encoder supports it, and it can be exported
    with _quiet():
        _write_graph(model, folder / GRAPH)
    fp32_bytes, fp32_difference = _size(folder), _difference(model, processor, folder)
    if not fp32_difference <= TOLERANCE:
        raise ValueError(
            f"the graph of the encoder {model.encoder.config.model_type!r} is wrong: its emissions differ from "
            f"torch's by {fp32_difference:.2e} (expected at most {TOLERANCE:.0e}); nothing was written"
        )
    if not int8:
        return OnnxExport(folder, fp32_bytes, fp32_difference)
    with _quiet():
        quantize_graph(folder / GRAPH)
    return OnnxExport(folder, fp32_bytes, fp32_difference, _size(folder), _difference(model, processor, folder))


def _drop_code(folder: Path) -> None:
    """Removes references to the checkpoint's own code: the installed package runs the export."""
    for code in folder.glob("*.py"):
        code.unlink()
    for file in folder.glob("*config.json"):
        settings = json.loads(file.read_text(encoding="utf-8"))
        kept = {name: value for name, value in settings.items() if name not in ("auto_map", "custom_pipelines")}
        file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_graph(model: ItaForTokenClassification, file: Path) -> None:
    view = _OneView(model).eval()
    # Every dimension is at least two, because the exporter treats one as a constant. Every input is a separate tensor,
    # because the exporter merges inputs that share one.
    of_words = [name.startswith("word_") for name in view.inputs]
    inputs = tuple(torch.ones((2, 5) if of else (3, 7), dtype=torch.long) for of in of_words)
    rows_and_pieces, posts_and_words = (
        {axis: torch.export.Dim(name) for axis, name in enumerate(names)}
        for names in (("rows", "pieces"), ("posts", "words"))
    )
    try:
        program = torch.onnx.export(
            view,
            inputs,
            dynamic_shapes=[posts_and_words if of else rows_and_pieces for of in of_words],
            input_names=view.inputs,
            output_names=["emissions"],
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # whatever the exporter meets in an encoder's code
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the encoder {model.encoder.config.model_type!r} cannot be exported to ONNX: {type(error).__name__}: "
            f"{reason}"
        ) from error
    assert program is not None
    program.save(file, external_data=_weights_bytes(model) > ONE_FILE)


@torch.no_grad()
def _difference(model: ItaForTokenClassification, processor: ItaProcessor, folder: Path) -> float:
    """The largest difference of the graph's emissions from torch's over ragged batches; NaN if any is."""
    exported = OnnxItaForTokenClassification.from_pretrained(folder)
    posts = ["Phoenix tonight !", "in", "go Suns @ the stadium in Phoenix , see you at 7 :)"]
    seen = [{"captions": ["a man in a red car"], "ocr": ["SALE", "50 %"]}, None, {"object_tags": ["dog"]}]
    batches = [
        processor(posts[:1], views="T"),
        processor(posts, seen, views="both"),
        processor([*posts, "words and more words " * (processor.max_length // 3)], views="T"),  # windows
    ]
    largest = []
    for batch in batches:
        is_word = batch["word_positions"] >= 0
        expected, found = model(**batch), exported(**batch)
        for name in ("emissions", "cross_emissions"):
            if name in expected:
                largest.append(float((expected[name] - found[name])[is_word].abs().max()))
    return float(np.max(largest))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the output of the exporter and the quantizer; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _weights_bytes(model: nn.Module) -> int:
    return sum(weights.numel() * weights.element_size() for weights in model.parameters())


def _size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in (GRAPH, WEIGHTS) if (folder / name).exists())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
