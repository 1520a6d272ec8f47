"""Object tags: the objects that a detector finds in an image, with attributes ("red", "wooden") before the noun."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoModelForObjectDetection,
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    PretrainedConfig,
)

from .aligner_settings import FLAG, SHARE, WORDS, Setting, check_names, integer, one_of, read_recipe
from .generation import FAMILIES, florence_answer, generate
from .pretrained_aligner import DTYPE, PretrainedAligner

NO_LABELS = ("", "N/A")  # COCO's labels skip numbers, and some checkpoints fill the gaps
MIN_CROP = 8  # pixels; smaller crops show too little to tell an attribute
FLORENCE_TOKENS = 1024
ATTRIBUTES = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "golden",
    "wooden", "metal", "glass", "plastic", "leather", "stone", "brick", "paper", "furry",
    "striped", "spotted", "colorful", "shiny", "transparent",
    "large", "small", "tall", "long", "round",
    "young", "old", "new", "broken", "dirty", "wet", "open", "closed", "empty", "full",
    "smiling", "standing", "sitting", "running",
)  # fmt: skip
"""Colours, materials, shapes, ages, states and poses."""

ATTRIBUTE_MODELS = ("clip", "metaclip_2", "siglip", "siglip2")
MAX_BATCH = 64  # images compared at once


class AttributeTagger(PretrainedAligner):
    """Zero-shot attributes of an image (for `ObjectTagger`, of an object's crop), by CLIP or SigLIP.

    Each attribute becomes a sentence such as "a photo of a red car". CLIP's scores are a softmax over these sentences
    and the neutral "a photo of a car", which absorbs the probability that no attribute explains. SigLIP scores each
    sentence with a sigmoid.

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository; None is its main branch.
        attributes: the attributes to choose from. Default: `ATTRIBUTES`.
        max_attributes: maximum number of attributes per image.
        min_score: the score, in [0, 1], that an attribute must exceed. 0.2 suits CLIP with about forty attributes;
            SigLIP's scores are usually lower.
        dtype: type of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`, the checkpoint's own.
        device: `"cpu"`, `"cuda:1"` …. Default: an accelerator if there is one.

    Raises:
        ValueError: a setting violates `rules`.
    """

    auto_class = AutoModelForZeroShotImageClassification
    takes = "CLIP or SigLIP"
    rules = {"attributes": WORDS, "max_attributes": integer(0, 100), "min_score": SHARE, "dtype": DTYPE}
    attributes: list[str]
    max_attributes: int
    min_score: float

    def __init__(
        self,
        model: str = "openai/clip-vit-base-patch32",
        revision: str | None = None,
        attributes: Sequence[str] | None = None,
        max_attributes: int = 1,
        min_score: float = 0.2,
        dtype: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        attributes = ATTRIBUTES if attributes is None else attributes
        super().__init__(
            model, revision, dtype, device, attributes=attributes, max_attributes=max_attributes, min_score=min_score
        )
        self.attributes = _single_spaced(attributes)
        self._sentences: dict[str, torch.Tensor] = {}  # noun → (attributes + 1, width), the neutral sentence last

    def __call__(
        self, images: Sequence[Image.Image], nouns: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """Returns the attributes of every RGB image, best first, with scores in [0, 1].

        Args:
            images: the images.
            nouns: what each image shows. Default: "thing" for all.

        Raises:
            OSError: the checkpoint does not exist, or is not available locally and cannot be downloaded.
            ValueError: the checkpoint is neither CLIP nor SigLIP.
        """
        nouns = ["thing"] * len(images) if nouns is None else nouns
        found = []
        for start in range(0, len(images), MAX_BATCH):
            found += self._compare(images[start : start + MAX_BATCH], nouns[start : start + MAX_BATCH])
        return found

    def __getstate__(self) -> dict[str, Any]:
        """The settings, without the checkpoint and the cached sentence embeddings."""
        return {**super().__getstate__(), "_sentences": {}}

    def _can_use(self, config: PretrainedConfig) -> bool:
        return config.model_type in ATTRIBUTE_MODELS

    @torch.inference_mode()
    def _compare(self, images: Sequence[Image.Image], nouns: Sequence[str]) -> list[list[tuple[str, float]]]:
        model = self.checkpoint.model
        inputs = self.checkpoint.processor(images=list(images), return_tensors="pt").to(model.device, model.dtype)
        pictures = _directions(model.get_image_features(**inputs))  # (images, width)
        sentences = torch.stack([self._sentences_about(noun) for noun in nouns])  # (images, attributes + 1, width)
        logits = torch.einsum("iw,iaw->ia", pictures, sentences) * model.logit_scale.float().exp()
        is_siglip = hasattr(model, "logit_bias")
        scores = (logits + model.logit_bias.float()).sigmoid() if is_siglip else logits.softmax(-1)
        best = scores[:, :-1].sort(dim=-1, descending=True, stable=True)
        return [
            [
                (self.attributes[i], score)
                for i, score in zip(order[: self.max_attributes], row[: self.max_attributes], strict=True)
                if score > self.min_score
            ]
            for order, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _sentences_about(self, noun: str) -> torch.Tensor:
        if noun not in self._sentences:
            model = self.checkpoint.model
            things = [*(f"{attribute} {noun}" for attribute in self.attributes), noun]
            inputs = self.checkpoint.processor(
                text=[f"a photo of {'an' if thing[0] in 'aeiouAEIOU' else 'a'} {thing}" for thing in things],
                padding="max_length",  # as SigLIP was trained
                truncation=True,
                max_length=model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            self._sentences[noun] = _directions(model.get_text_features(**inputs.to(model.device)))
        return self._sentences[noun]


def _directions(features: Any) -> torch.Tensor:
    features = getattr(features, "pooler_output", features).float()
    return features / features.norm(dim=-1, keepdim=True)


def _single_spaced(words: Sequence[str]) -> list[str]:
    return [" ".join(word.split()) for word in words]


class DetectedObject(NamedTuple):
    """A detected object: label, score in [0, 1], and box in pixels, which may extend beyond the image."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


Objects: TypeAlias = list[list[DetectedObject]]


class ObjectTagger(PretrainedAligner):
    """Objects in an image (method §2, local alignment), most confident first.

    The checkpoint's architecture decides how it is used:

    - detectors with fixed classes (RT-DETR v2, D-FINE, DETR …) use the labels of the data they were trained on: 80
      classes for COCO, 365 for Objects365;
    - open-vocabulary detectors (OWLv2, OWL-ViT, Grounding DINO, MM Grounding DINO) look for `tags`;
    - Florence-2 generates the objects as text, without a confidence per box: all objects of an image get the score of
      the sequence and keep its order, and `min_score` has no effect.

    Args:
        model: a repository on the Hub, or a local folder.
        revision: branch, tag or commit of the repository; None is its main branch.
        min_score: the score, in [0, 1], that an object must exceed. The method's 0.2 is for VinVL; 0.3 suits RT-DETR,
            D-FINE and Grounding DINO. DETR's scores are higher (0.7), OWL's lower (0.15).
        max_objects: maximum number of tags per image.
        duplicates: whether to keep a tag once per detection; otherwise only its most confident detection is kept.
        tags: nouns that an open-vocabulary detector looks for; None for all other models.
        attributes: an `AttributeTagger`, or its dictionary `{"model": …, "revision": …, "settings": {…}}`. It runs on
            the same device and puts attributes before the noun ("red car"). Default: nouns only.
        task: Florence-2's task, `"<OD>"` or `"<DENSE_REGION_CAPTION>"`; None for all other models. Default: `"<OD>"`.
        dtype: type of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`, the checkpoint's own.
        device: `"cpu"`, `"cuda:1"` …. Default: an accelerator if there is one.

    Raises:
        ValueError: a setting, or one of the `attributes` tagger's, violates `rules`.
    """

    takes = (
        "a detector of fixed classes (RT-DETR v2, D-FINE, DETR …), an open-vocabulary detector (OWLv2, OWL-ViT, "
        "Grounding DINO, MM Grounding DINO) or Florence-2"
    )
    rules = {
        "min_score": SHARE,
        "max_objects": integer(1, 1000),
        "duplicates": FLAG,
        "tags": WORDS.or_none(),
        "attributes": Setting(
            "an AttributeTagger, or {'model': name, 'revision': …, 'settings': {…}}",
            lambda value: isinstance(value, (str, Mapping)) or hasattr(value, "identity"),
        ).or_none(),
        "task": one_of("<OD>", "<DENSE_REGION_CAPTION>").or_none(),
        "dtype": DTYPE,
    }
    min_score: float
    max_objects: int
    duplicates: bool
    tags: list[str] | None
    attributes: AttributeTagger | None
    task: str | None

    def __init__(
        self,
        model: str = "PekingU/rtdetr_v2_r18vd",
        revision: str | None = None,
        min_score: float = 0.3,
        max_objects: int = 10,
        duplicates: bool = False,
        tags: Sequence[str] | None = None,
        attributes: AttributeTagger | Mapping[str, Any] | str | None = None,
        task: str | None = None,
        dtype: str = "auto",
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            model,
            revision,
            dtype,
            device,
            min_score=min_score,
            max_objects=max_objects,
            duplicates=duplicates,
            tags=tags,
            attributes=attributes,
            task=task,
        )
        self.tags = None if tags is None else _single_spaced(tags)
        if isinstance(attributes, (str, Mapping)):
            try:
                recipe = read_recipe(attributes)
                check_names("AttributeTagger", recipe.settings, AttributeTagger.rules)
                self.attributes = AttributeTagger(recipe.model, recipe.revision, device=self.device, **recipe.settings)
            except ValueError as error:
                raise ValueError(f"attributes: {error}") from error

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect the strings, except the dtype. `attributes` is given by its identity."""
        return {**super().settings, "attributes": self.attributes and self.attributes.identity}

    @property
    def recipe(self) -> dict[str, Any]:
        """The identity, with the names or paths from which both checkpoints can be loaded again."""
        settings = {**self.identity["settings"], "attributes": self.attributes and self.attributes.recipe}
        return {**super().recipe, "settings": settings}

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """Returns the object tags of every RGB image with scores in [0, 1].

        Raises:
            OSError: the checkpoint does not exist, or is not available locally and cannot be downloaded.
            ValueError: the checkpoint's architecture is not supported, an open-vocabulary detector has no `tags` or
                more than its input holds, or another model has `tags`.
        """
        return [
            [(found.label, found.score) for found in self._choose(image, objects)]
            for image, objects in zip(images, self.detect(images), strict=True)
        ]

    def detect(self, images: Sequence[Image.Image]) -> Objects:
        """Returns all objects above `min_score` in every RGB image with their boxes, most confident first."""
        if not images:
            return []
        detector = self._detector
        if detector.open_vocabulary and not self.tags:
            raise ValueError(f"{self._what_it_is}, which finds what it is told to look for: pass tags=['person', …]")
        if self.tags and not detector.open_vocabulary:
            raise ValueError(
                f"{self._what_it_is}, which has labels of its own: leave tags= out, or name an open-vocabulary "
                "detector (OWLv2, Grounding DINO …) in model="
            )
        return detector.detect(self, images)

    @property
    def auto_class(self) -> Any:
        """The transformers class that loads the checkpoint."""
        return self._detector.auto_class

    @property
    def processor_class(self) -> Any:
        """The transformers class that loads the checkpoint's processor."""
        return self._detector.processor_class

    def _can_use(self, config: PretrainedConfig) -> bool:
        return config.model_type in OPEN_DETECTORS or type(config) in AutoModelForObjectDetection._model_mapping

    @property
    def _detector(self) -> Detector:
        if not self._can_use(self.config):
            raise ValueError(f"{self._what_it_is}: {self._what_it_takes}")
        return OPEN_DETECTORS.get(self.config.model_type, FIXED)

    def _choose(self, image: Image.Image, objects: list[DetectedObject]) -> list[DetectedObject]:
        """At most `max_objects` objects with their attributes, without duplicates unless `duplicates` is set."""
        if self.duplicates:
            return self._with_attributes(image, objects[: self.max_objects])
        chosen: dict[str, DetectedObject] = {}
        for found in self._with_attributes(image, objects):
            chosen.setdefault(found.label, found)
        return list(chosen.values())[: self.max_objects]

    def _with_attributes(self, image: Image.Image, objects: list[DetectedObject]) -> list[DetectedObject]:
        if self.attributes is None:
            return objects
        crops = {i: image.crop(box) for i, found in enumerate(objects) if (box := _crop_box(found, image.size))}
        attributes = self.attributes(list(crops.values()), [objects[i].label for i in crops])
        words = {i: [word for word, _ in of_one] for i, of_one in zip(crops, attributes, strict=True)}
        return [found._replace(label=" ".join([*words.get(i, []), found.label])) for i, found in enumerate(objects)]


def _crop_box(found: DetectedObject, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The box in whole pixels, clipped to the image; None if what remains is too small."""
    corners = (found.left, found.top, found.right, found.bottom)
    if not all(math.isfinite(corner) for corner in corners):
        return None
    width, height = size
    left, top = max(0, math.floor(found.left)), max(0, math.floor(found.top))
    right, bottom = min(width, math.ceil(found.right)), min(height, math.ceil(found.bottom))
    return (left, top, right, bottom) if right - left >= MIN_CROP and bottom - top >= MIN_CROP else None


class Detector(NamedTuple):
    """How one family of detectors is loaded and run."""

    auto_class: Any
    processor_class: Any
    open_vocabulary: bool
    detect: Callable[[ObjectTagger, Sequence[Image.Image]], Objects]


@torch.inference_mode()
def _run(
    tagger: ObjectTagger, images: Sequence[Image.Image], **text: Any
) -> Iterator[tuple[list[int], Any, Any, torch.Tensor]]:
    """Run the model on batches of equal-sized images: their indices, inputs, outputs and sizes (height, width).

    Some processors pad images to the largest in the batch, which would make detections depend on the other images.
    """
    model, processor = tagger.checkpoint.model, tagger.checkpoint.processor
    prepared = [processor(images=image, return_tensors="pt", **text) for image in images]
    same_size: dict[tuple[int, ...], list[int]] = {}
    for i, inputs in enumerate(prepared):
        same_size.setdefault(tuple(inputs["pixel_values"].shape), []).append(i)
    for places in same_size.values():
        inputs = {name: torch.cat([prepared[i][name] for i in places]).to(model.device) for name in prepared[0]}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        outputs = model(**inputs)
        # Half precision cannot represent every pixel coordinate of a large image.
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        yield places, inputs, outputs, torch.tensor([images[i].size[::-1] for i in places], device=model.device)


def _sorted_objects(labels: Sequence[str], scores: torch.Tensor, boxes: torch.Tensor) -> list[DetectedObject]:
    objects = [
        DetectedObject(" ".join(label.split()), score, *box)
        for label, score, box in zip(labels, scores.tolist(), boxes.tolist(), strict=True)
    ]
    objects.sort(key=lambda found: -found.score)
    return [found for found in objects if found.label not in NO_LABELS]


def _detect_fixed(tagger: ObjectTagger, images: Sequence[Image.Image]) -> Objects:
    names: Any = tagger.config.id2label
    found: Objects = [[] for _ in images]
    for places, _, outputs, sizes in _run(tagger, images):
        results = tagger.checkpoint.processor.post_process_object_detection(
            outputs, threshold=tagger.min_score, target_sizes=sizes
        )
        for i, of_one in zip(places, results, strict=True):
            labels = [names[label] for label in of_one["labels"].tolist()]
            found[i] = _sorted_objects(labels, of_one["scores"], of_one["boxes"])
    return found


def _detect_owl(tagger: ObjectTagger, images: Sequence[Image.Image]) -> Objects:
    tags = tagger.tags or []
    found: Objects = [[] for _ in images]
    text = [[f"a photo of a {tag}" for tag in tags]]
    for places, _, outputs, sizes in _run(tagger, images, text=text, truncation=True):
        results = tagger.checkpoint.processor.post_process_grounded_object_detection(
            outputs, threshold=tagger.min_score, target_sizes=sizes, text_labels=[tags] * len(places)
        )
        for i, of_one in zip(places, results, strict=True):
            found[i] = _sorted_objects(of_one["text_labels"], of_one["scores"], of_one["boxes"])
    return found


def _detect_grounding(tagger: ObjectTagger, images: Sequence[Image.Image]) -> Objects:
    tags = tagger.tags or []
    found: Objects = [[] for _ in images]
    text = " ".join(re.sub("[.?]", " ", tag.lower()) + "." for tag in tags)  # "." and "?" would end the tag
    processor, most = tagger.checkpoint.processor, tagger.config.max_text_len
    tokens = processor.tokenizer(text)["input_ids"]
    if len(tokens) > most:
        raise ValueError(
            f"{len(tags)} tags are {len(tokens)} tokens, {tagger.model} reads {most}: give fewer, or take OWLv2, "
            "which reads each by itself"
        )
    for places, inputs, outputs, sizes in _run(tagger, images, text=text):
        results = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], tagger.min_score, target_sizes=sizes
        )
        of_tokens = outputs.logits.sigmoid()  # (images, queries, tokens)
        best = _by_tag(of_tokens, tokens, processor.tokenizer.convert_tokens_to_ids(".")).argmax(-1)
        kept = of_tokens.amax(-1) > tagger.min_score  # as the processor keeps them
        for i, of_one, row, is_kept in zip(places, results, best, kept, strict=True):
            labels = [tags[tag] for tag in row[is_kept].tolist()]
            found[i] = _sorted_objects(labels, of_one["scores"], of_one["boxes"])
    return found


def _by_tag(of_tokens: torch.Tensor, tokens: list[int], stop: int) -> torch.Tensor:
    """Token scores (images, queries, tokens) → tag scores (images, queries, tags); a tag gets its best token's score.

    The processor's own labels consist of all tokens above a threshold: a low threshold mixes parts of several tags, a
    high one cuts tags in half.
    """
    stops = [i for i, token in enumerate(tokens) if token == stop]
    starts = [1, *(i + 1 for i in stops[:-1])]  # after [CLS]
    of_tags = [of_tokens[..., start:end].amax(-1) for start, end in zip(starts, stops, strict=True)]
    return torch.stack(of_tags, dim=-1)


def _detect_florence(tagger: ObjectTagger, images: Sequence[Image.Image]) -> Objects:
    task = tagger.task or "<OD>"
    most = min(FLORENCE_TOKENS, tagger.config.text_config.max_position_embeddings)
    found: Objects = []
    answers = generate(tagger.checkpoint, FAMILIES["florence2"], images, task, max_new_tokens=most)
    for image, [(tokens, score)] in zip(images, answers, strict=True):
        answer = florence_answer(tagger.checkpoint.processor, tokens, task, image)
        boxes = torch.tensor(answer["bboxes"]).reshape(-1, 4)
        # The processor labels a surplus box that has no name "loc_12>".
        names = ["" if re.match(r"loc_\d+>", name) else name for name in answer["labels"]]
        found.append(_sorted_objects(names, torch.full((len(boxes),), score), boxes))
    return found


FIXED = Detector(AutoModelForObjectDetection, AutoImageProcessor, False, _detect_fixed)
OWL = Detector(AutoModelForZeroShotObjectDetection, AutoProcessor, True, _detect_owl)
GROUNDING = Detector(AutoModelForZeroShotObjectDetection, AutoProcessor, True, _detect_grounding)
FLORENCE = Detector(AutoModelForImageTextToText, AutoProcessor, False, _detect_florence)
OPEN_DETECTORS = {
    "owlvit": OWL,
    "owlv2": OWL,
    "grounding-dino": GROUNDING,
    "mm-grounding-dino": GROUNDING,
    "florence2": FLORENCE,
}
