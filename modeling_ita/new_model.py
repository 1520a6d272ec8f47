"""Makes a new model, with its processor and its collator, from the arguments of a training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, ConvNextImageProcessorPil, ResNetConfig

from .data_collator import ItaDataCollator, MgcmtDataCollator, MnerDataCollator, Splits
from .entity_tagger import EntityTagger
from .modeling_ita import ItaForTokenClassification
from .modeling_mgcmt import MgcmtForTokenClassification
from .packaged_encoder import encoder_folder
from .processing_ita import ItaProcessor
from .processing_mgcmt import MgcmtProcessor
from .tag_scheme import TagScheme
from .training_arguments import FROM_SCRATCH, ItaArguments, MgcmtArguments
from .visual_context import OBJECT_TAGS, VisualContext, recorded_aligners
from .word_neighbours import WordNeighbours

PROCESSOR_VIEWS: dict[str, Literal["T", "I+T", "both"]] = {"text": "T", "cross": "I+T", "both": "both"}
# Loss settings of ITA that take precedence over those of the preset.
LOSS_SETTINGS = ("text_loss_weight", "cross_loss_weight", "cva_loss_weight", "cva_temperature")


class NewModel(NamedTuple):
    """An untrained model on pretrained encoders, and what feeds it.

    Attributes:
        model: the model.
        processor: turns posts and images into its input.
        collator: turns examples into its training batches.
    """

    model: EntityTagger
    processor: ItaProcessor | MgcmtProcessor
    collator: MnerDataCollator


def new_model(
    arguments: ItaArguments | MgcmtArguments,
    scheme: TagScheme,
    splits: Splits,
    aligners: dict[str, Any],
) -> NewModel:
    """Makes the model that the arguments ask for. Its random weights depend on torch's random state.

    Args:
        arguments: the system and its settings.
        scheme: the tags it predicts.
        splits: the posts by split. MGCMT takes its object classes from `train`, and its words from all.
        aligners: how the finished model reads new images: an aligner, by name or settings, for each kind of context.

    Raises:
        ValueError: the settings do not fit together, or the vision encoder cannot be loaded.
        OSError: the text encoder or the table of word neighbours cannot be loaded.
    """
    try:
        if isinstance(arguments, MgcmtArguments):
            return _new_mgcmt(arguments, scheme, splits, aligners)
        return _new_ita(arguments, scheme, aligners)
    except OSError as error:
        error.add_note(f"--encoder is {arguments.encoder}")
        raise


def _new_ita(args: ItaArguments, scheme: TagScheme, aligners: dict[str, Any]) -> NewModel:
    folder = encoder_folder(args.encoder)
    loss = {name: getattr(args, name) for name in LOSS_SETTINGS if getattr(args, name) is not None}
    if not args.cva:
        loss["cva_loss_weight"] = 0.0
    model = ItaForTokenClassification.from_text_encoder(
        folder,
        scheme.labels,
        constraints=args.constraints,
        word_dropout=args.word_dropout,
        loss_preset=args.loss_preset,
        **loss,
    )
    processor = ItaProcessor(
        AutoTokenizer.from_pretrained(folder),
        context_kinds=args.context_kinds,
        max_length=args.max_length,
        max_context_length=args.max_context_length,
        context_builder={kind: aligner for kind, aligner in aligners.items() if kind in args.context_kinds} or None,
    )
    return NewModel(model, processor, ItaDataCollator(processor, PROCESSOR_VIEWS[args.views]))


def _new_mgcmt(args: MgcmtArguments, scheme: TagScheme, splits: Splits, aligners: dict[str, Any]) -> NewModel:
    folder = encoder_folder(args.encoder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = None if args.word_neighbours is None else WordNeighbours.from_pretrained(args.word_neighbours, tokenizer)
    vision, images = _vision_encoder(args)
    classes = object_classes([example.context for example in splits["train"]] if args.sees_objects else [])
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
    if table is not None:  # search once for the neighbours of all words of the corpus; they travel with the table
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
    if model.sees_images:  # how many regions an image has depends on the encoder and on the size of its input
        pixels = images(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            model.config.num_regions = model.eval().region_features(pixels).shape[1]
    return NewModel(model, processor, MgcmtDataCollator(processor))


def _vision_encoder(args: MgcmtArguments) -> tuple[str | ResNetConfig | None, Any]:
    """The vision encoder as `from_encoders` takes it, None for none, and its image processor."""
    if args.sees_regions and args.vision_encoder != FROM_SCRATCH:
        try:
            return args.vision_encoder, AutoImageProcessor.from_pretrained(args.vision_encoder, backend="pil")
        except OSError as error:
            raise ValueError(
                f"--vision_encoder {args.vision_encoder} cannot be loaded: {error} (--vision_encoder {FROM_SCRATCH} "
                "--train_vision true and --visual_fusion objects need no download)"
            ) from None
    small = ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 256], depths=[1, 1, 1], layer_type="basic")
    images = ConvNextImageProcessorPil(size={"shortest_edge": 112})  # 7 × 7 regions of the small ResNet
    return small if args.sees_regions else None, images


def object_classes(contexts: Sequence[VisualContext]) -> list[str]:
    """Classes of objects in contexts, most frequent first, without a tagger's attributes ("car" for "red car")."""
    tagger = recorded_aligners(contexts).get(OBJECT_TAGS, {}).get("settings") or {}
    attributes = ((tagger.get("attributes") or {}).get("settings") or {}).get("attributes") or ()
    classes: Counter[str] = Counter()
    for tag in (tag for context in contexts for tag in context.object_tags):
        words = tag.lower().split()
        while len(words) > 1 and words[0] in attributes:
            words = words[1:]
        classes[" ".join(words)] += 1
    return [name for name, _ in classes.most_common()]
