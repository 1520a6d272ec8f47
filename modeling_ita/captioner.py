"""The caption aligner: captions, or answers to a prompt, by any image-to-text model of transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from .aligner_settings import text
from .generation import BEAMS, CHAT, FAMILIES, NEW_TOKENS, Family, florence_answer, generate
from .pretrained_aligner import DTYPE, PretrainedAligner


class Captioner(PretrainedAligner):
    """Captions by beam search (method §2, global alignment), or a model's answers to a prompt.

    The checkpoint's architecture decides how the model is prompted:

    - BLIP, GIT and BLIP-2: no prompt by default; `prompt`, if given, is the beginning of the caption (or, for BLIP-2,
      a question in the form `"Question: … Answer:"`);
    - InstructBLIP: `prompt` is the instruction, "A short image description." by default;
    - Florence-2: `prompt` is the task, `"<CAPTION>"` by default; `"<DETAILED_CAPTION>"`, `"<MORE_DETAILED_CAPTION>"`
      and `"<OCR>"` also generate text;
    - any other model that has a chat template (SmolVLM2, Qwen3-VL …): `prompt` is the instruction, `DESCRIBE` by
      default. Other instructions produce other kinds of context, such as knowledge about what is shown.

    The returned strings never include the prompt. A score is exp(log-probability of the tokens / number of tokens).

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository; None is its main branch.
        num_captions: captions per image, k in the paper. Empty captions and duplicates of a better caption of the same
            image are dropped, so there may be fewer.
        max_new_tokens: maximum caption length in tokens. Default: 20, as in the paper, for BLIP, GIT, BLIP-2 and
            InstructBLIP, 100 for Florence-2 and 64 for models with a chat template, which end their sentences
            themselves.
        num_beams: beam width; 1 is greedy decoding. Default: `num_captions`.
        prompt: the prompt. Default: that of the architecture.
        dtype: type of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`, the checkpoint's own.
        device: `"cpu"`, `"cuda:1"` …. Default: an accelerator if there is one.

    Raises:
        ValueError: a setting violates `rules`, or `num_beams` is less than `num_captions`.
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
        """Returns the captions of every RGB image, best first, with scores in [0, 1].

        Raises:
            OSError: the checkpoint does not exist, or is not available locally and cannot be downloaded.
            ValueError: the checkpoint's architecture is not supported, or the prompt is a Florence-2 task that does
                not generate text.
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
