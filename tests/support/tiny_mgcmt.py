"""A tiny random MGCMT over the vocabulary of `tiny_encoder`, and pictures for it to look at."""

from __future__ import annotations

import random
from typing import Any

import torch
from PIL import Image
from transformers import BertConfig, ResNetConfig

from modeling_ita import MgcmtConfig, MgcmtForTokenClassification

TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VISION: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [8, 12], "embedding_size": 4, "layer_type": "basic"}


def make_model(**settings: Any) -> MgcmtForTokenClassification:
    """Word vectors of 6 dimensions, 2 × 2 regions of 12 channels for images of 32 pixels; in evaluation mode.

    Its weights are large enough that what it sees of a post changes what it says.
    """
    made: dict[str, Any] = {
        "text_config": BertConfig(**TEXT, vocab_size=300),
        "vision_config": ResNetConfig(**VISION, downsample_in_first_stage=True),
        "augmentation_size": 6,
        "num_regions": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MgcmtForTokenClassification(MgcmtConfig(**made | settings))
        for weights in model.parameters():
            if weights.dim() > 1:
                torch.nn.init.normal_(weights, std=0.3)
    return model.eval()


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A picture of noise."""
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
