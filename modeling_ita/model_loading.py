"""Loads a model for inference. Errors are one line that names the file; no code from the checkpoint runs."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForTokenClassification, AutoProcessor

from .checkpoint_files import check_checkpoint, reading
from .entity_tagger import EntityTagger
from .wordwise_processor import WordwiseProcessor


def load_model(name: str, device: Any = None) -> tuple[EntityTagger, WordwiseProcessor]:
    """Load model and processor from an exported folder or a Hub repository, with this package's code.

    Used instead of `transformers.pipeline`, whose errors quote whole tracebacks.

    Args:
        name: the folder, or the repository.
        device: device of the model. Default: the CPU.

    Raises:
        OSError: there is no such model, or a file is missing.
        ValueError: a file is broken, or the processor does not fit the model; the message names the file.
    """
    check_checkpoint(name)
    with reading(name):
        model = AutoModelForTokenClassification.from_pretrained(name, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        processor.check_model(model.config)
        return model if device is None else model.to(device), processor
