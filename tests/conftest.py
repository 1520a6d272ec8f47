"""A tiny encoder, model and processor, made in memory and shared by all tests; a test that changes one copies it."""

from __future__ import annotations

import string

import pytest
import torch
from tiny_ita import LABELS, WORDS
from transformers import BertConfig, BertModel, BertTokenizer, ConvNextImageProcessorPil, ResNetConfig, ResNetModel

from modeling_ita.modeling_ita import ItaForTokenClassification
from modeling_ita.processing_ita import ItaProcessor


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random BERT (2 layers of 32, 512 positions) with a cased WordPiece vocabulary.

    The vocabulary holds every printable ASCII character, alone and inside a word, and the `WORDS` whole; any other
    character is unknown.
    """
    folder = tmp_path_factory.mktemp("encoder")
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
        *characters,
        *(f"##{c}" for c in characters),
        *WORDS,
    ]  # fmt: skip
    tokenizer = BertTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=False, model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_vision_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small random ResNet with its image processor, 2 × 2 regions of 12 channels."""
    folder = tmp_path_factory.mktemp("vision")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 16}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tiny_encoder: str) -> ItaForTokenClassification:
    """A random model over `tiny_encoder` with the tags `LABELS`, in evaluation mode.

    Its classifier is large enough that its posteriors are far from uniform and posts have entities.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ItaForTokenClassification.from_text_encoder(tiny_encoder, LABELS)
        torch.nn.init.normal_(model.classifier.weight, std=0.7)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_processor(tiny_encoder: str) -> ItaProcessor:
    """The processor of `tiny_model`; it knows no way to read an image (`context_builder` is None)."""
    return ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder))
