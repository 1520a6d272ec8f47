"""Text generation about images: inputs for each family of models, and answers with scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from .aligner_settings import integer

BEAMS = integer(1, 20)
NEW_TOKENS = integer(1, 2048)
DESCRIBE = "Describe this image in one short sentence."


class Inputs(NamedTuple):
    """The model inputs for a batch of images, and how many output tokens only repeat the prompt."""

    tensors: Mapping[str, Any]
    prompt_length: int


class Family(NamedTuple):
    """How one family of models is prompted and decoded.

    `inputs(checkpoint, images, prompt)` prepares a batch; `prompt` and `max_new_tokens` are the defaults; `writer`
    names the submodule that generates, if it is not the model itself.
    """

    inputs: Callable[[Any, Sequence[Image.Image], str], Inputs]
    prompt: str = ""
    max_new_tokens: int = 20
    writer: str | None = None


def _blip_inputs(checkpoint: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    tensors = checkpoint.processor(images=list(images), text=[prompt] * len(images), return_tensors="pt")
    # BLIP drops the last token of "[CLS] prompt [SEP]".
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
    # Turns off the reasoning that some models generate first; other templates ignore this setting.
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


class _TokenScores(LogitsProcessor):
    """Records the log-probability of the most probable token, the one greedy decoding picks, at every step."""

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
    """Returns the `num_answers` best answers for every image as (token ids without the prompt, score in [0, 1])."""
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
    if family.writer == "text_decoder":  # BLIP ends with its separator, whatever its generation config says
        return [model.config.text_config.sep_token_id]
    writer = getattr(model, family.writer) if family.writer else model
    end = writer.generation_config.eos_token_id
    return end if isinstance(end, list) else [end]


def _mean_until_end(steps: list[torch.Tensor], sequences: torch.Tensor, end_tokens: list[int]) -> torch.Tensor:
    log_probs = torch.stack(steps, dim=1)  # (batch, steps)
    is_end = torch.isin(sequences[:, -len(steps) :], torch.tensor(end_tokens, device=sequences.device))
    written = is_end.cumsum(1) - is_end.long() == 0  # the end token belongs to the sequence; what follows is padding
    return (log_probs * written).sum(1) / written.sum(1)


def florence_answer(processor: Any, tokens: list[int], prompt: str, image: Image.Image) -> Any:
    """Florence-2's answer to a task: text, or a dictionary with `"bboxes"` (pixels) and `"labels"`."""
    tokenizer = processor.tokenizer
    text = tokenizer.decode([token for token in tokens if token != tokenizer.pad_token_id], skip_special_tokens=False)
    task = prompt[: prompt.find(">") + 1]
    return processor.post_process_generation(text=text, task=task, image_size=image.size)[task]
