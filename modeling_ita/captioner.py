"""Aligners on checkpoints of transformers, and the first of them: captions."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from .aligner_settings import MODEL, REVISION, Setting, check_settings, integer, one_of, text
from .plain_text import one_line

DTYPE = one_of("auto", "float32", "bfloat16", "float16")
DEVICE = Setting("a device such as 'cpu'", lambda value: isinstance(value, (str, int, torch.device)))
BEAMS = integer(1, 20)
NEW_TOKENS = integer(1, 2048)


class Checkpoint:
    """A model with its processor, in evaluation mode on its device."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor


# Aligners that name the same checkpoint share it, as long as one of them holds it: Florence-2 makes three kinds.
_loaded: WeakValueDictionary[tuple[Any, ...], Checkpoint] = WeakValueDictionary()


class PretrainedAligner:
    """What the aligners on checkpoints share; subclasses give their `rules` and say how images become strings.

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository; None is its main branch. What it points at is looked up
            once, and that commit is what is loaded and what `identity` names.
        dtype: type of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`, the checkpoint's own.
        device: `"cpu"`, `"cuda:1"` …; None is an accelerator if there is one.
        settings: what else the subclass takes; each becomes an attribute.

    Attributes:
        rules: by name, what the settings that affect the strings may be; a checkpoint saves these, and may name these.
        local: by name, what the settings that depend on the machine may be; a checkpoint never gives them.

    Raises:
        ValueError: a setting is not what `rules` say, or the model is neither a repository's name nor a folder.
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
        """Settings that affect the strings, but for the dtype. Excludes device and batch size."""
        return {name: getattr(self, name) for name in self.rules if name != "dtype"}

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
            ValueError: transformers does not know its architecture, or it wants code of someone's own to be run.
        """
        try:
            config = AutoConfig.from_pretrained(self.model, trust_remote_code=False, **self._place)
        except OSError as error:
            raise OSError(
                f"there is no checkpoint {self.model} (revision {self.revision or 'main'}): it is no local folder "
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


DESCRIBE = "Describe this image in one short sentence."


class Inputs(NamedTuple):
    """What a model is given for a batch of images, and how many tokens of its answer only repeat the prompt."""

    tensors: Mapping[str, Any]
    prompt_length: int


class Family(NamedTuple):
    """How models of one make are asked and read.

    `inputs(checkpoint, images, prompt)` prepares a batch; `prompt` and `max_new_tokens` are the defaults; `writer`
    names the part of the model that writes, if it is not the model itself.
    """

    inputs: Callable[[Any, Sequence[Image.Image], str], Inputs]
    prompt: str = ""
    max_new_tokens: int = 20
    writer: str | None = None


def _blip_inputs(checkpoint: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    tensors = checkpoint.processor(images=list(images), text=[prompt] * len(images), return_tensors="pt")
    # Of "[CLS] prompt [SEP]" BLIP leaves the last token out.
    return Inputs(tensors, tensors["input_ids"].shape[1] - 1)


def _git_inputs(checkpoint: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    tokenizer = checkpoint.processor.tokenizer
    start = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    tensors = checkpoint.processor(images=list(images), return_tensors="pt")
    tensors["input_ids"] = torch.tensor([start] * len(images))
    tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    return Inputs(tensors, len(start))


def _blip2_inputs(checkpoint: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    text = {"text": [prompt] * len(images)} if prompt else {}
    tensors = checkpoint.processor(images=list(images), return_tensors="pt", **text)
    config = checkpoint.model.config
    if config.is_encoder_decoder:
        return Inputs(tensors, 0)
    return Inputs(tensors, tensors["input_ids"].shape[1] if prompt else config.num_query_tokens + 1)


def _florence_inputs(checkpoint: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    tensors = checkpoint.processor(images=list(images), text=[prompt] * len(images), padding=True, return_tensors="pt")
    return Inputs(tensors, 0)


def _chat_inputs(checkpoint: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
        for image in images
    ]
    # Some models think aloud first, unless their template is told not to; the others know of no such setting.
    thinking = {"enable_thinking": False} if "enable_thinking" in str(checkpoint.processor.chat_template) else {}
    tensors = checkpoint.processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
        **thinking,
    )
    return Inputs(tensors, tensors["input_ids"].shape[1])


FAMILIES = {
    "blip": Family(_blip_inputs, writer="text_decoder"),
    "git": Family(_git_inputs),
    "blip-2": Family(_blip2_inputs, writer="language_model"),
    "instructblip": Family(_blip2_inputs, prompt="A short image description.", writer="language_model"),
    "florence2": Family(_florence_inputs, prompt="<CAPTION>", max_new_tokens=100),
}
CHAT = Family(_chat_inputs, prompt=DESCRIBE, max_new_tokens=64)


class Captioner(PretrainedAligner):
    """Captions by beam search (method §2, global alignment), or the answers of a model to a prompt.

    The checkpoint's architecture decides how it is asked:

    - BLIP and GIT, BLIP-2: nothing is asked; `prompt`, if given, is how the caption begins (or, for BLIP-2, a question
      in its own form, `"Question: … Answer:"`);
    - InstructBLIP: `prompt` is the instruction, "A short image description." by default;
    - Florence-2: `prompt` is the task, `"<CAPTION>"` by default; `"<DETAILED_CAPTION>"`, `"<MORE_DETAILED_CAPTION>"`
      and `"<OCR>"` write text too;
    - any other model that has a chat template (SmolVLM2, Qwen3-VL …): `prompt` is the instruction, `DESCRIBE` by
      default. With another instruction it makes contexts of other kinds, such as knowledge about what is shown.

    The prompt is never part of the strings. Scores are exp(log-probability of the tokens / their number).

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository; None is its main branch.
        num_captions: captions of an image, k in the paper. Captions that are empty, or equal to a better one of the
            same image, are left out, so there may be fewer.
        max_new_tokens: longest caption in tokens; None is 20, as in the paper, for BLIP, GIT, BLIP-2 and InstructBLIP,
            100 for Florence-2 and 64 for models with a chat template, which end their sentences themselves.
        num_beams: width of the beam; None is `num_captions`, 1 is greedy decoding.
        prompt: what the model is asked; None is its architecture's default.
        dtype: type of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`, the checkpoint's own.
        device: `"cpu"`, `"cuda:1"` …; None is an accelerator if there is one.

    Raises:
        ValueError: a setting is not what `rules` say, or `num_beams` is less than `num_captions`.
    """

    auto_class = AutoModelForImageTextToText
    takes = "BLIP, GIT, BLIP-2, InstructBLIP, Florence-2 or a vision-language model with a chat template"
    rules = {
        "num_captions": BEAMS,
        "max_new_tokens": NEW_TOKENS.or_none(),
        "num_beams": BEAMS.or_none(),
        "prompt": text(2000).or_none(),
        "dtype": DTYPE,
    }
    num_captions: int
    max_new_tokens: int | None
    num_beams: int
    prompt: str | None

    def __init__(
        self,
        model: str = "Salesforce/blip-image-captioning-base",
        revision: str | None = None,
        num_captions: int = 5,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        prompt: str | None = None,
        dtype: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            model,
            revision,
            dtype,
            device,
            num_captions=num_captions,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            prompt=prompt,
        )
        self.num_beams = num_captions if num_beams is None else num_beams
        if self.num_beams < num_captions:
            raise ValueError(f"{num_captions} captions need as many beams, got num_beams={num_beams}")

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """For every RGB image its captions, best first, with scores in [0, 1].

        Raises:
            OSError: there is no such checkpoint, or it is neither on this machine nor to be downloaded.
            ValueError: the checkpoint's architecture is none of those above, or the prompt is a task of Florence-2
                that writes no text.
        """
        if not images:
            return []
        family = self._family
        prompt = family.prompt if self.prompt is None else self.prompt
        answers = generate(
            self.checkpoint,
            family,
            images,
            prompt,
            max_new_tokens=self.max_new_tokens or family.max_new_tokens,
            num_beams=self.num_beams,
            num_answers=self.num_captions,
        )
        processor = self.checkpoint.processor
        captions = []
        for image, sequences in zip(images, answers, strict=True):
            best: dict[str, float] = {}
            for tokens, score in sequences:
                if family is FAMILIES["florence2"]:
                    text = florence_answer(processor, tokens, prompt, image)
                    if not isinstance(text, str):
                        raise ValueError(f"{prompt} is no task that writes text (for objects there is ObjectTagger)")
                else:
                    text = processor.tokenizer.decode(tokens, skip_special_tokens=True)
                best.setdefault(" ".join(text.split()), score)
            captions.append([(text, score) for text, score in best.items() if text])
        return captions

    @property
    def _family(self) -> Family:
        family = FAMILIES.get(self.config.model_type)
        if family is None:
            if not getattr(self.checkpoint.processor, "chat_template", None):
                raise ValueError(f"{self._what_it_is} without a chat template: {self._what_it_takes}")
            family = CHAT
        return family


class _TokenScores(LogitsProcessor):
    """Remembers the log-probability of the most probable token at every step, which greedy decoding takes."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(scores.float().log_softmax(-1).amax(-1))  # (batch,)
        return scores


@torch.inference_mode()
def generate(
    checkpoint: Any,
    family: Family,
    images: Sequence[Image.Image],
    prompt: str,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    num_answers: int = 1,
) -> list[list[tuple[list[int], float]]]:
    """For every image the `num_answers` best answers as (token ids without the prompt's, score in [0, 1])."""
    model = checkpoint.model
    tensors, prompt_length = family.inputs(checkpoint, images, prompt)
    greedy = _TokenScores()
    found = model.generate(
        **{name: _placed(value, model) for name, value in tensors.items()},
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_answers,
        max_new_tokens=max_new_tokens,
        length_penalty=1.0,
        return_dict_in_generate=True,
        output_scores=num_beams > 1,
        logits_processor=LogitsProcessorList([greedy] if num_beams == 1 else []),
    )
    sequences = found.sequences
    if num_beams > 1:
        scores = found.sequences_scores.float()  # (batch · answers,)
    else:
        scores = _mean_until_end(greedy.steps, sequences, _end_tokens(model, family))
    answers = list(zip(sequences[:, prompt_length:].tolist(), scores.exp().clamp(0, 1).tolist(), strict=True))
    return [answers[i : i + num_answers] for i in range(0, len(answers), num_answers)]


def _placed(value: Any, model: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def _end_tokens(model: Any, family: Family) -> list[int]:
    if family.writer == "text_decoder":  # BLIP ends with its separator, whatever its generation settings say
        return [model.config.text_config.sep_token_id]
    writer = getattr(model, family.writer) if family.writer else model
    end = writer.generation_config.eos_token_id
    return end if isinstance(end, list) else [end]


def _mean_until_end(steps: list[torch.Tensor], sequences: torch.Tensor, end_tokens: list[int]) -> torch.Tensor:
    log_probs = torch.stack(steps, dim=1)  # (batch, steps)
    is_end = torch.isin(sequences[:, -len(steps) :], torch.tensor(end_tokens, device=sequences.device))
    written = is_end.cumsum(1) - is_end.long() == 0  # the end itself is part of the sequence, what follows is padding
    return (log_probs * written).sum(1) / written.sum(1)


def florence_answer(processor: Any, tokens: list[int], prompt: str, image: Image.Image) -> Any:
    """What Florence-2 answers to a task: text, or a dictionary with `"bboxes"` (pixels) and `"labels"`."""
    tokenizer = processor.tokenizer
    text = tokenizer.decode([token for token in tokens if token != tokenizer.pad_token_id], skip_special_tokens=False)
    task = prompt[: prompt.find(">") + 1]
    return processor.post_process_generation(text=text, task=task, image_size=image.size)[task]
