"""Aligners on checkpoints of transformers: which one it is, exactly, and when it is loaded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, PretrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Checkpoint:
    """A model with its processor, in evaluation mode on its device."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor


# Aligners that name the same checkpoint share it, as long as one of them holds it: Florence-2 makes three kinds.
_loaded: WeakValueDictionary[tuple[Any, ...], Checkpoint] = WeakValueDictionary()


class PretrainedAligner:
    """What the aligners on checkpoints share; subclasses add their settings and say how images become strings.

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository; None is its main branch. What it points at is looked up
            once, and that commit is what is loaded and what `identity` names.
        dtype: type of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`, the checkpoint's own.
        device: `"cpu"`, `"cuda:1"` …; None is an accelerator if there is one.

    Raises:
        ValueError: the dtype is unknown.
    """

    auto_class: Any
    processor_class: Any = AutoProcessor
    takes = "a checkpoint of another architecture"  # for the message when the checkpoint is of the wrong one

    def __init__(
        self, model: str, revision: str | None = None, dtype: str = "auto", device: str | torch.device | None = None
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r} (expected one of {', '.join(DTYPES)})")
        self.model = os.path.expanduser(model)
        self.revision = revision
        self.dtype = dtype
        self.device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide about the strings; device and batch size are none of them."""
        raise NotImplementedError

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """For every RGB image its strings with scores in [0, 1], best first."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """Model (of a folder its name), commit (of a folder a hash of its files) and settings."""
        is_folder = os.path.isdir(self.model)
        name = os.path.basename(os.path.abspath(self.model)) if is_folder else self.model
        return {"model": name, "revision": self.resolved_revision, "settings": {**self.settings, "dtype": self.dtype}}

    @property
    def recipe(self) -> dict[str, Any]:
        """The identity with the name under which the checkpoint is found again: of a folder its path."""
        return {**self.identity, "model": self.model}

    @cached_property
    def resolved_revision(self) -> str | None:
        """The commit that `revision` points at; if the Hub cannot be asked, `revision` itself."""
        if os.path.isdir(self.model):
            return _hash_of_files(Path(self.model))
        if self.revision and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", self.revision):
            return self.revision  # a commit, or what a folder had here that is at another place now
        try:
            file = cached_file(self.model, "config.json", revision=self.revision)
        except OSError:
            return self.revision
        return extract_commit_hash(file, None) or self.revision

    @cached_property
    def config(self) -> PretrainedConfig:
        """The checkpoint's configuration, which says what its architecture is.

        Raises:
            OSError: there is no such checkpoint, or it is neither on this machine nor to be downloaded.
            ValueError: transformers does not know its architecture.
        """
        try:
            return AutoConfig.from_pretrained(self.model, trust_remote_code=False, **self._place)
        except OSError as error:
            raise OSError(
                f"there is no checkpoint {self.model} (revision {self.revision or 'main'}): it is no local folder "
                f"with a config.json, not among the downloaded ones, and cannot be downloaded ({error})"
            ) from error

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Model and processor, loaded when they are first asked for.

        Raises:
            OSError: there is no such checkpoint, or it is neither on this machine nor to be downloaded.
            ValueError: its architecture is not one of those that the aligner takes.
        """
        if not self._can_use(self.config):
            raise ValueError(f"{self._what_it_is}: {self._what_it_takes}")
        key = (self.auto_class, self.model, self.resolved_revision, self.dtype, str(self.device))
        loaded = _loaded.get(key)
        if loaded is None:
            model = self.auto_class.from_pretrained(
                self.model, dtype=self.dtype, trust_remote_code=False, **self._place
            )
            processor = self.processor_class.from_pretrained(self.model, trust_remote_code=False, **self._place)
            _loaded[key] = loaded = Checkpoint(model.to(self.device), processor)
        return loaded

    def _can_use(self, config: PretrainedConfig) -> bool:
        return type(config) in self.auto_class._model_mapping

    @property
    def _place(self) -> dict[str, str]:
        return {} if os.path.isdir(self.model) else {"revision": self.resolved_revision or "main"}

    @property
    def _what_it_is(self) -> str:
        return f"{self.model} is a model of the type {self.config.model_type!r}"

    @property
    def _what_it_takes(self) -> str:
        return f"{type(self).__name__} needs {self.takes}; name such a checkpoint in model="

    def __getstate__(self) -> dict[str, Any]:
        """The settings without the checkpoint, which is loaded again when it is needed."""
        return {name: value for name, value in self.__dict__.items() if name != "checkpoint"}


def _hash_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
