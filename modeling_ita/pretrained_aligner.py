"""The base class of aligners that run a checkpoint of transformers, including how it is loaded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, PretrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from .aligner_settings import MODEL, REVISION, Setting, check_settings, one_of
from .plain_text import one_line

DTYPE = one_of("auto", "float32", "bfloat16", "float16")
DEVICE = Setting("a device such as 'cpu'", lambda value: isinstance(value, (str, int, torch.device)))


class Checkpoint:
    """A model with its processor, in evaluation mode on its device."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor


class PretrainedAligner:
    """Base class of the aligners that run a checkpoint. Subclasses define `rules` and turn images into strings.

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository; None is its main branch. It is resolved to a commit once;
            that commit is loaded and appears in `identity`.
        dtype: type of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`, the checkpoint's own.
        device: `"cpu"`, `"cuda:1"` …. Default: an accelerator if there is one.
        settings: the subclass's other settings; each becomes an attribute.

    Attributes:
        rules: by name, the allowed values of settings that affect the strings. Checkpoints save and may set these.
        local: by name, the allowed values of settings that depend on the machine. Checkpoints never set these.

    Raises:
        ValueError: a setting violates `rules`, or the model is neither a repository name nor a folder.
    """

    auto_class: Any
    processor_class: Any = AutoProcessor
    takes = "a checkpoint of another architecture"  # for the message when the checkpoint is of the wrong one
    rules: Mapping[str, Setting] = {"dtype": DTYPE}
    local: Mapping[str, Setting] = {"device": DEVICE.or_none()}

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> None:
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        check_settings(
            {"model": model, "revision": revision, "dtype": dtype, "device": device, **settings},
            {"model": MODEL, "revision": REVISION.or_none(), **self.rules, **self.local},
        )
        self.model = os.path.expanduser(model)
        self.revision = revision
        self.dtype = dtype
        self.device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
        vars(self).update(settings)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect the strings, except the dtype. Excludes device and batch size."""
        return {name: getattr(self, name) for name in self.rules if name != "dtype"}

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """Returns the strings for every RGB image with scores in [0, 1], best first."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """Model, commit and settings. For a local folder: its name, and a hash of its files instead of a commit."""
        is_folder = os.path.isdir(self.model)
        name = os.path.basename(os.path.abspath(self.model)) if is_folder else self.model
        return {"model": name, "revision": self.resolved_revision, "settings": {**self.settings, "dtype": self.dtype}}

    @property
    def recipe(self) -> dict[str, Any]:
        """The identity, with the name from which the checkpoint can be loaded again; for a local folder, its path."""
        return {**self.identity, "model": self.model}

    @cached_property
    def resolved_revision(self) -> str | None:
        """The commit that `revision` points at, or `revision` itself if the Hub cannot be reached."""
        if os.path.isdir(self.model):
            return _hash_of_files(Path(self.model))
        if self.revision and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", self.revision):
            return self.revision  # a commit, or the file hash of a folder that is now elsewhere
        try:
            file = cached_file(self.model, "config.json", revision=self.revision)
        except OSError:
            return self.revision
        return extract_commit_hash(file, None) or self.revision

    @cached_property
    def config(self) -> PretrainedConfig:
        """The checkpoint's configuration, which names its architecture.

        Raises:
            OSError: the checkpoint does not exist, or is not available locally and cannot be downloaded.
            ValueError: transformers does not know the architecture, or the checkpoint requires custom code.
        """
        try:
            config = AutoConfig.from_pretrained(self.model, trust_remote_code=False, **self._place)
        except OSError as error:
            raise OSError(
                f"there is no checkpoint {self.model} (revision {self.revision or 'main'}): it is not a local folder "
                f"with a config.json, not among the downloaded ones, and cannot be downloaded ({one_line(error)})"
            ) from error
        for part in _configs(config):
            if "/" in str(part._attn_implementation):  # a repository of compiled kernels
                raise ValueError(
                    f"the config.json of {self.model} asks for the code of {part._attn_implementation} "
                    "(attn_implementation): no code is run because a checkpoint says so"
                )
        return config

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Model and processor, loaded on first access.

        Raises:
            OSError: the checkpoint does not exist, or is not available locally and cannot be downloaded.
            ValueError: the aligner does not support the architecture.
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
        """The settings without the checkpoint, which is reloaded when needed."""
        return {name: value for name, value in self.__dict__.items() if name != "checkpoint"}


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield from _configs(part)


def _hash_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


# Aligners with the same checkpoint share it while any of them holds it: Florence-2 serves three kinds of context.
_loaded: WeakValueDictionary[tuple[Any, ...], Checkpoint] = WeakValueDictionary()
