"""Tiny random checkpoints of the architectures that make visual context, written with their processors to a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForZeroShotObjectDetection,
    BartConfig,
    BertConfig,
    BertModel,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    DFineConfig,
    DFineForObjectDetection,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GroundingDinoConfig,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    HGNetV2Config,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    MMGroundingDinoConfig,
    OPTConfig,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    ResNetConfig,
    RTDetrImageProcessorPil,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    SwinConfig,
)

WORDS = [
    "a", "an", "the", "photo", "of", "red", "blue", "wooden", "old", "car", "dog", "man", "traffic", "light", "sign",
    "tree", "cat", "on", "in", "street", "describe", "this", "image", "what", "is", "it", "grass", "two", "sky", "hat",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)


def pictures(count: int = 3) -> list[Image.Image]:
    """Noise of different sizes and colours, so that models see something else in every picture."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        width, height = [(48, 40), (64, 30), (36, 72), (50, 50)][i % 4]
        pixels = torch.rand(height, width, 3, generator=generator) * torch.rand(3, generator=generator)
        made.append(Image.frombytes("RGB", (width, height), bytes((pixels * 255).byte().flatten().tolist())))
    return made


def bert_tokenizer() -> BertTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=64)


def word_tokenizer(extra: Sequence[str] = (), named: dict[str, str] | None = None, **kwargs: Any) -> Any:
    """Whole words, decoded with the spaces before them; `<s>`, `</s>` and `<pad>` as BART has them."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*special, *(f"Ġ{word}" for word in WORDS), "Describe", *".?:"]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if kwargs.pop("add_bos", False):
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named or {},
        model_max_length=64,
        **kwargs,
    )
    fast.add_tokens(list(extra), special_tokens=True)
    return fast


def spread(model: torch.nn.Module, std: float = 0.2, seed: int = 0) -> None:
    """Give matrices weights that are large enough for the image to decide what comes out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, std, generator=generator)


def blip(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    text = {
        "vocab_size": len(tokenizer) + 1, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": len(tokenizer), "sep_token_id": 3,
        "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    spread(model)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def git(folder: Path, scale: float = 0.2) -> None:
    tokenizer = bert_tokenizer()
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    config = GitConfig(
        vision_config=vision, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=2, eos_token_id=3, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    model = GitForCausalLM(config)
    spread(model, scale)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, tokenizer).save_pretrained(folder)


def blip2(folder: Path, config_class: Any = Blip2Config) -> None:
    tokenizer = word_tokenizer(add_bos=True)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=0, eos_token_id=2, pad_token_id=1, max_position_embeddings=64, word_embed_proj_dim=32,
    )  # fmt: skip
    config = config_class(
        vision_config={**small, "image_size": 32, "patch_size": 16},
        qformer_config={**small, "vocab_size": len(tokenizer)},
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    is_blip2 = config_class is Blip2Config
    model = (Blip2ForConditionalGeneration if is_blip2 else InstructBlipForConditionalGeneration)(config)
    spread(model)
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    if is_blip2:
        Blip2Processor(images, tokenizer, num_query_tokens=4).save_pretrained(folder)
    else:
        InstructBlipProcessor(images, tokenizer, bert_tokenizer(), num_query_tokens=4).save_pretrained(folder)


def instructblip(folder: Path) -> None:
    blip2(folder, InstructBlipConfig)


def florence2(folder: Path, writes: str | None = None) -> None:
    """Florence-2; of locations it writes none, or nothing but `writes` (no token twice)."""
    places = [f"<loc_{i}>" for i in range(1000)]
    tokenizer = word_tokenizer(extra=places, named={"image_token": "<image>"})
    text = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    vision = {
        "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
        "patch_prenorm": (False, True), "embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2),
        "window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0,
    }  # fmt: skip
    config = Florence2Config(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    model = Florence2ForConditionalGeneration(config)
    spread(model)
    if writes is None:
        model.generation_config.suppress_tokens = tokenizer.convert_tokens_to_ids(places)
    else:
        chain = [2, *tokenizer(writes, add_special_tokens=False)["input_ids"], 2]
        pairs = [list(pair) for pair in pairwise(chain)]
        model.generation_config.sequence_bias = [[pair, 1000.0] for pair in pairs]
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 17
    Florence2Processor(
        images,
        tokenizer,
        post_processor_config={"pure_text": {}, "description_with_bboxes": {}},
    ).save_pretrained(folder)


def smolvlm(folder: Path) -> None:
    named = {
        "image_token": "<image>", "global_image_token": "<global-img>",
        "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    tiles = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
    tokenizer = word_tokenizer(extra=tiles, named=named)
    tokenizer.model_max_length = 512
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=1,
    )
    model = SmolVLMForConditionalGeneration(config)
    spread(model)
    model.save_pretrained(folder)
    images = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    video = SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = CHAT_TEMPLATE.replace("IMAGE", "<image>")
    SmolVLMProcessor(images, tokenizer, video, image_seq_len=4, chat_template=template).save_pretrained(folder)


def qwen3_vl(folder: Path) -> None:
    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }  # fmt: skip
    tokenizer = word_tokenizer(named=named)
    tokenizer.model_max_length = 512
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 8,
        "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config)
    spread(model)
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, eos_token_id=[2, 3])
    model.save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(patch_size=8, size=size)
    video = Qwen3VLVideoProcessor(patch_size=8)
    template = CHAT_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    Qwen3VLProcessor(images, tokenizer, video, chat_template=template).save_pretrained(folder)


CAPTIONERS: dict[str, Callable[[Path], None]] = {
    "blip": blip,
    "git": git,
    "blip2": blip2,
    "instructblip": instructblip,
    "florence2": florence2,
    "smolvlm": smolvlm,
    "qwen3_vl": qwen3_vl,
}


LABELS = {0: "car", 1: "N/A", 2: "traffic light", 3: "dog", 4: "hat"}


def _labels() -> dict[str, Any]:
    return {"id2label": LABELS, "label2id": {label: i for i, label in LABELS.items()}, "num_labels": len(LABELS)}


def rt_detr_v2(folder: Path) -> None:
    backbone = {
        "model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1],
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    config = RTDetrV2Config(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[16, 16, 16], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=10, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=2, decoder_attention_heads=2, decoder_n_points=2, **_labels(),
    )  # fmt: skip
    images = RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    _save_detector(RTDetrV2ForObjectDetection(config), images, folder)


def d_fine(folder: Path) -> None:
    backbone = HGNetV2Config(
        embedding_size=8, stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 16, 16],
        stage_mid_channels=[8, 8, 8, 8], stage_out_channels=[16, 16, 16, 16], stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1], hidden_sizes=[16, 16, 16, 16], depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = DFineConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[16, 16, 16], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=10, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=2, decoder_attention_heads=2, decoder_n_points=2, lqe_hidden_dim=8, **_labels(),
    )  # fmt: skip
    images = RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    _save_detector(DFineForObjectDetection(config), images, folder)


def detr(folder: Path) -> None:
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
        num_queries=10, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, decoder_layers=1,
        decoder_ffn_dim=16, decoder_attention_heads=2, d_model=16, **_labels(),
    )  # fmt: skip
    size = {"shortest_edge": 48, "longest_edge": 80}
    _save_detector(DetrForObjectDetection(config), DetrImageProcessorPil(size=size), folder)


def owlv2(folder: Path, version: int = 2) -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 16
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = (Owlv2Config if version == 2 else OwlViTConfig)(
        text_config={**small, "vocab_size": len(tokenizer), "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    size = {"height": 32, "width": 32}
    if version == 2:
        processor = Owlv2Processor(Owlv2ImageProcessorPil(size=size), tokenizer)
        _save_detector(Owlv2ForObjectDetection(config), processor, folder)
    else:
        processor = OwlViTProcessor(OwlViTImageProcessorPil(size=size, crop_size=size), tokenizer)
        _save_detector(OwlViTForObjectDetection(config), processor, folder)


def owlvit(folder: Path) -> None:
    owlv2(folder, version=1)


def grounding_dino(folder: Path, config_class: Any = GroundingDinoConfig) -> None:
    tokenizer = bert_tokenizer()
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = {
        "model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    config = config_class(
        backbone_config=backbone, text_config=text, num_queries=10, encoder_layers=1, encoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2, d_model=32,
        max_text_len=24, encoder_n_points=2, decoder_n_points=2, disable_custom_kernels=True,
    )  # fmt: skip
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 80, "longest_edge": 160})
    model = AutoModelForZeroShotObjectDetection.from_config(config)
    _save_detector(model, GroundingDinoProcessor(images, tokenizer), folder, 0.1)


def mm_grounding_dino(folder: Path) -> None:
    grounding_dino(folder, MMGroundingDinoConfig)


def _save_detector(model: Any, processor: Any, folder: Path, std: float = 0.2) -> None:
    spread(model, std)
    for name, parameter in model.named_parameters():
        if "class" in name and parameter.dim() == 2:  # labels that differ, with scores that do
            torch.nn.init.normal_(parameter, 0, 0.8, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def clip(folder: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 16
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = CLIPConfig(
        text_config={**text, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    _save_detector(CLIPModel(config), CLIPProcessor(images, tokenizer), folder)


def siglip(folder: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 16
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={
            **small, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32,
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
    )  # fmt: skip
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    _save_detector(SiglipModel(config), SiglipProcessor(images, tokenizer), folder)


DETECTORS: dict[str, Callable[[Path], None]] = {
    "rt_detr_v2": rt_detr_v2,
    "d_fine": d_fine,
    "detr": detr,
    "owlv2": owlv2,
    "owlvit": owlvit,
    "grounding_dino": grounding_dino,
    "mm_grounding_dino": mm_grounding_dino,
}
ATTRIBUTE_MODELS: dict[str, Callable[[Path], None]] = {"clip": clip, "siglip": siglip}


def text_model(folder: Path) -> None:
    """A model that sees nothing."""
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


BUILDERS: dict[str, Callable[..., None]] = {
    **CAPTIONERS,
    **DETECTORS,
    **ATTRIBUTE_MODELS,
    "text_model": text_model,
}


class TinyCheckpoints:
    """The folder of a tiny checkpoint by its name, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, folder: str = "", seed: int = 0, **kwargs: Any) -> str:
        path = self.folder / (folder or name)
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                BUILDERS[name](path, **kwargs)
        return str(path)
