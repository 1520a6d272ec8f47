"""A new model, its processor and its collator, from the arguments of a training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    ConvNextImageProcessorPil,
    ResNetConfig,
)

from modeling_ita.data_collator import Example, ItaDataCollator, MgcmtDataCollator, MnerDataCollator
from modeling_ita.entity_tagger import EntityTagger
from modeling_ita.modeling_ita import ItaForTokenClassification
from modeling_ita.modeling_mgcmt import MgcmtForTokenClassification
from modeling_ita.packaged_encoder import encoder_folder
from modeling_ita.processing_ita import ItaProcessor
from modeling_ita.processing_mgcmt import MgcmtProcessor
from modeling_ita.tag_scheme import TagScheme
from modeling_ita.training_arguments import (
    FROM_SCRATCH,
    ItaArguments,
    MgcmtArguments,
)
from modeling_ita.visual_context import OBJECT_TAGS, VisualContext, recorded_aligners
from modeling_ita.word_neighbours import WordNeighbours
from modeling_ita.wordwise_processor import WordwiseProcessor

PROCESSOR_VIEWS: dict[str, Literal["T", "I+T", "both"]] = {"text": "T", "cross": "I+T", "both": "both"}
Built = tuple[EntityTagger, WordwiseProcessor, MnerDataCollator]


def build_ita(
    args: ItaArguments, scheme: TagScheme, splits: dict[str, list[Example]], aligners: dict[str, Any]
) -> Built:
    """ITA on its pretrained encoder."""
    folder = encoder_folder(args.encoder)
    weights = {
        name: getattr(args, name)
        for name in ("text_loss_weight", "cross_loss_weight", "cva_loss_weight", "cva_temperature")
        if getattr(args, name) is not None
    }
    if not args.cva:
        weights["cva_loss_weight"] = 0.0
    model = ItaForTokenClassification.from_text_encoder(
        folder,
        scheme.labels,
        constraints=args.constraints,
        word_dropout=args.word_dropout,
        loss_preset=args.loss_preset,
        **weights,
    )
    processor = ItaProcessor(
        AutoTokenizer.from_pretrained(folder),
        context_kinds=args.context_kinds,
        max_length=args.max_length,
        max_context_length=args.max_context_length,
        context_builder={kind: aligner for kind, aligner in aligners.items() if kind in args.context_kinds} or None,
    )
    return model, processor, ItaDataCollator(processor, PROCESSOR_VIEWS[args.views])


def build_mgcmt(
    args: MgcmtArguments, scheme: TagScheme, splits: dict[str, list[Example]], aligners: dict[str, Any]
) -> Built:
    """MGCMT on its pretrained encoders; it knows the classes of objects that the training contexts name."""
    folder = encoder_folder(args.encoder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = None if args.word_neighbours is None else WordNeighbours.from_pretrained(args.word_neighbours, tokenizer)
    images: Any = ConvNextImageProcessorPil(size={"shortest_edge": 112})  # 7 × 7 regions of the small ResNet
    vision: Any = None
    if args.sees_regions and args.vision_encoder == FROM_SCRATCH:
        vision = ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 256], depths=[1, 1, 1], layer_type="basic")
    elif args.sees_regions:
        vision = args.vision_encoder
        try:
            images = AutoImageProcessor.from_pretrained(vision, backend="pil")
        except OSError as error:
            way_out = (
                f"--vision_encoder {FROM_SCRATCH} --train_vision true and --visual_fusion objects need no download"
            )
            raise ValueError(f"--vision_encoder {vision} cannot be loaded: {error} ({way_out})") from None
    contexts = [example.context for example in splits["train"]] if args.sees_objects else []
    classes = object_classes(contexts)
    size: Any = {} if table is None else {"augmentation_size": table.size}
    model = MgcmtForTokenClassification.from_encoders(
        folder,
        scheme.labels,
        vision,
        constraints=args.constraints,
        visual_fusion=args.visual_fusion,
        aug_fusion=args.aug_fusion,
        num_object_classes=len(classes) + 1,
        train_vision=args.train_vision,
        hidden_dropout=args.hidden_dropout,
        fusion_dropout=args.fusion_dropout,
        aux_loss_weight=args.aux_loss_weight,
        **size,
    )
    if table is None and args.aug_fusion != "none":
        embeddings: Any = model.get_input_embeddings()
        table = WordNeighbours.from_encoder(tokenizer, embeddings.weight)
    if table is not None:  # the neighbours of the corpus' words are searched for once, and travel with the table
        table.search([word for examples in splits.values() for example in examples for word in example.words])
    processor = MgcmtProcessor(
        tokenizer,
        images,
        classes,
        num_objects=args.num_objects,
        word_neighbours=table,
        augmentation="vectors" if args.aug_fusion == "attention" else "mean",
        max_length=args.max_length,
        context_builder={OBJECT_TAGS: aligners[OBJECT_TAGS]} if classes and OBJECT_TAGS in aligners else None,
    )
    processor.check_model(model.config)
    if model.sees_images:
        pixels = images(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            model.config.num_regions = model.eval().region_features(pixels).shape[1]
    return model, processor, MgcmtDataCollator(processor)


def object_classes(contexts: Sequence[VisualContext]) -> list[str]:
    """The classes of objects in contexts, the most frequent first; a tagger's attributes ("red car") are left out."""
    tagger = recorded_aligners(contexts).get(OBJECT_TAGS, {}).get("settings") or {}
    attributes = ((tagger.get("attributes") or {}).get("settings") or {}).get("attributes") or ()
    classes: Counter[str] = Counter()
    for tag in (tag for context in contexts for tag in context.object_tags):
        words = tag.lower().split()
        while len(words) > 1 and words[0] in attributes:
            words = words[1:]
        classes[" ".join(words)] += 1
    return [name for name, _ in classes.most_common()]
