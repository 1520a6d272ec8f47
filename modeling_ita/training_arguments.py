"""The arguments of `train.py`: the data, the model and the optimization, given as flags or in a YAML file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from .packaged_encoder import MINILM
from .whole_files import write_text

# Settings that do not affect the trained weights; they may differ when a run is resumed.
NO_PART_OF_A_RUN = (
    "resume_from_checkpoint", "max_steps", "report_to", "eval_batch_size", "output_dir",
    "push_to_hub", "hub_model_id", "hub_private_repo",
)  # fmt: skip
FROM_SCRATCH = "from_scratch"
# Defaults of MGCMT that differ from ITA's (method §4); the head and the CRF use the encoder's learning rate.
MGCMT_DEFAULTS: dict[str, Any] = {
    "max_length": 64, "num_epochs": 75, "batch_size": 24, "learning_rate": 3e-5, "head_learning_rate": None,
    "crf_learning_rate": None, "warmup_ratio": 0.1, "weight_decay": 0.01, "seed": 32,
}  # fmt: skip


@dataclass
class DataArguments:
    """What to train on."""

    dataset: str = field(
        default="sample_posts",
        metadata={"help": "sample_posts (the embedded default), twitter2015, twitter2017, snap or conll"},
    )
    data_dir: str | None = field(default=None, metadata={"help": "folder with train.txt, valid.txt, test.txt"})
    images_dir: str | None = field(default=None, metadata={"help": "folder with <id>.jpg; default: text only"})
    context_files: list[str] = field(
        default_factory=list, metadata={"help": "visual contexts by post id, JSONL or Parquet, merged kind by kind"}
    )


@dataclass
class ModelArguments:
    """What to train, whatever the system."""

    model: Literal["ita", "mgcmt"] = field(
        default="ita",
        metadata={"help": "the system; other flags and defaults depend on it (see --model mgcmt --help)"},
    )
    encoder: str = field(
        default=MINILM,
        metadata={
            "help": f"text encoder: a Hub id, a folder, or {MINILM} (weights from the installed package of that name)"
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "window size in tokens, longer posts span several; default: the encoder's maximum"},
    )
    tag_scheme: Literal["bio", "bioes"] = field(default="bio", metadata={"help": "tagging scheme of the CRF"})
    constraints: Literal["none", "decode", "always"] = field(
        default="none", metadata={"help": "when transitions that break the scheme get zero probability"}
    )
    context_builder: Literal["contexts", "cpu", "gpu", "florence2", "none"] = field(
        default="contexts",
        metadata={
            "help": "how the finished model reads new images: with the aligners of its training contexts, "
            "with a profile, or not at all"
        },
    )


@dataclass
class ItaArguments(ModelArguments):
    """What to train of ITA."""

    word_dropout: float = field(default=0.1, metadata={"help": "probability that a word's vector is zeroed"})
    context_kinds: list[str] = field(
        default_factory=lambda: ["object_tags", "captions", "ocr"],
        metadata={"help": "kinds of context appended to the post, in this order"},
    )
    max_context_length: int | None = field(
        default=None, metadata={"help": "maximum number of context tokens; default: as many as fit in the window"}
    )
    views: Literal["text", "cross", "both"] = field(default="both", metadata={"help": "the views to train on"})
    cva: bool = field(default=True, metadata={"help": "align the two views (needs --views both)"})
    loss_preset: Literal["paper", "code"] = field(
        default="paper", metadata={"help": "loss weights and temperature: paper (1, 1, 1; 1) or code (1, .5, .5; 4)"}
    )
    text_loss_weight: float | None = field(default=None, metadata={"help": "weight of L_T; default: the preset's"})
    cross_loss_weight: float | None = field(default=None, metadata={"help": "weight of L_I+T; default: the preset's"})
    cva_loss_weight: float | None = field(default=None, metadata={"help": "weight of L_CVA; default: the preset's"})
    cva_temperature: float | None = field(
        default=None, metadata={"help": "temperature of L_CVA; default: the preset's"}
    )

    @property
    def chosen_on(self) -> list[str]:
        """The views whose mean validation F1 selects the best epoch: those trained on."""
        return {"text": ["T"], "cross": ["I+T"], "both": ["T", "I+T"]}[self.views]

    @property
    def sees_regions(self) -> bool:
        """Whether the model looks at the image itself. Never: it reads the image's context."""
        return False


@dataclass
class MgcmtArguments(ModelArguments):
    """What to train of MGCMT."""

    visual_fusion: Literal["both", "regions", "objects", "none"] = field(
        default="both", metadata={"help": "visual streams: regions of the image, objects in it"}
    )
    vision_encoder: str = field(
        default="microsoft/resnet-152",
        metadata={
            "help": f"encoder of the regions: a Hub id, a folder, or {FROM_SCRATCH} (a small, untrained ResNet)"
        },
    )
    train_vision: bool = field(
        default=False, metadata={"help": "fine-tune the vision encoder instead of freezing it (needs regions)"}
    )
    num_objects: int = field(
        default=5, metadata={"help": "maximum number of objects per image; the first ones are kept"}
    )
    aug_fusion: Literal["add", "gate", "attention", "none"] = field(
        default="add", metadata={"help": "how the vectors of a word's nearest neighbours are fused"}
    )
    word_neighbours: str | None = field(
        default=None,
        metadata={"help": "folder written by build_word_neighbours; default: the encoder's own embeddings"},
    )
    hidden_dropout: float = field(default=0.1, metadata={"help": "dropout above the encoders"})
    fusion_dropout: float = field(default=0.5, metadata={"help": "dropout before the visual streams are fused"})
    aux_loss_weight: float = field(default=0.5, metadata={"help": "weight of the auxiliary CRF over span tags"})

    @property
    def chosen_on(self) -> list[str]:
        """The views whose mean validation F1 selects the best epoch: training posts come with their images."""
        return ["I+T"]

    @property
    def sees_regions(self) -> bool:
        """Whether the model looks at the image itself."""
        return self.visual_fusion in ("both", "regions")

    @property
    def sees_objects(self) -> bool:
        """Whether the model reads the objects in the image."""
        return self.visual_fusion in ("both", "objects")


@dataclass
class OptimizationArguments:
    """How to train."""

    output_dir: str = field(metadata={"help": "folder for checkpoints, model and report; never emptied"})
    name: str | None = field(default=None, metadata={"help": "the run's name in reports; runs over seeds share one"})
    num_epochs: int = field(default=15, metadata={"help": "passes over the training posts"})
    batch_size: int = field(default=16, metadata={"help": "posts per forward pass, over all processes together"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per update"})
    learning_rate: float = field(default=1e-4, metadata={"help": "peak learning rate of the text encoder"})
    head_learning_rate: float | None = field(
        default=2e-3,
        metadata={"help": "peak learning rate of the layers between encoder and CRF (MGCMT: the encoder's)"},
    )
    crf_learning_rate: float | None = field(
        default=2e-3, metadata={"help": "peak learning rate of the CRF's transition scores (MGCMT: the encoder's)"}
    )
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the updates spent on warm-up"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay of AdamW; biases and norms are spared"})
    max_grad_norm: float = field(default=5.0, metadata={"help": "gradients with a larger norm are scaled down to it"})
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = field(
        default="auto", metadata={"help": "auto: bf16 on a GPU that supports it, else no; the CRF always runs in fp32"}
    )
    eval_batch_size: int = field(default=64, metadata={"help": "posts per forward pass in evaluation"})
    logging_steps: int = field(default=10, metadata={"help": "log the loss every so many updates"})
    save_steps: int | None = field(
        default=None, metadata={"help": "write a checkpoint every so many updates; default: after every epoch"}
    )
    save_total_limit: int = field(default=2, metadata={"help": "number of checkpoints kept, the newest ones"})
    max_steps: int | None = field(default=None, metadata={"help": "stop after this update, to resume later"})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "a checkpoint folder, or last: the newest intact one in output_dir, if any"},
    )
    seed: int = field(default=1, metadata={"help": "random seed of initial weights, order of posts and dropout"})
    report_to: str = field(default="none", metadata={"help": "tracker: tensorboard, wandb, mlflow, trackio … or none"})
    push_to_hub: bool = field(default=False, metadata={"help": "push the finished model to the Hub, in one commit"})
    hub_model_id: str | None = field(default=None, metadata={"help": "repository to push to, you/name"})
    hub_private_repo: bool = field(default=False, metadata={"help": "make it private if it is new"})


Arguments = tuple[DataArguments, ItaArguments | MgcmtArguments, OptimizationArguments]


def make_parser(flags: Sequence[str] = ()) -> HfArgumentParser:
    """The parser for the system that `--model` names among these flags, with its defaults."""
    system = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    system.add_argument("--model", default="ita")
    is_mgcmt = system.parse_known_args(list(flags))[0].model == "mgcmt"
    parts: Any = (DataArguments, MgcmtArguments if is_mgcmt else ItaArguments, OptimizationArguments)
    parser = HfArgumentParser(parts, allow_abbrev=False)
    if is_mgcmt:
        parser.set_defaults(**MGCMT_DEFAULTS)
    return parser


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parses flags, or a YAML file with the same names followed by flags that take precedence."""
    flags = list(argv)
    if flags and flags[0].endswith((".yaml", ".yml")):
        settings = yaml.safe_load(Path(flags[0]).read_text(encoding="utf-8")) or {}
        from_file: list[str] = []
        for key, value in settings.items():
            if value is not None:
                values = value if isinstance(value, list) else [value]
                from_file += [f"--{key}", *map(str, values)]
        flags = from_file + flags[1:]
    data, model, optimization = make_parser(flags).parse_args_into_dataclasses(flags)
    if isinstance(model, ItaArguments) and model.views != "both":
        model.cva = False
    if isinstance(model, MgcmtArguments):
        model.train_vision = model.train_vision and model.sees_regions
        if model.sees_regions and model.vision_encoder == FROM_SCRATCH and not model.train_vision:
            raise ValueError(f"--vision_encoder {FROM_SCRATCH} knows nothing yet: it needs --train_vision true")
    if optimization.push_to_hub and not optimization.hub_model_id:
        raise ValueError("--push_to_hub needs --hub_model_id you/name")
    if optimization.max_steps is not None and optimization.max_steps < 1:
        raise ValueError("--max_steps is below 1: leave it out to train through")
    if optimization.save_total_limit < 1:
        raise ValueError("--save_total_limit is below 1: the newest checkpoint is always kept")
    return data, model, optimization


def all_settings(arguments: Arguments) -> dict[str, Any]:
    """Every setting by the name of its flag."""
    return {name: value for part in arguments for name, value in asdict(part).items()}


def defaults(arguments: Arguments) -> dict[str, Any]:
    """The default of every setting that has one."""
    flags = [flag for part in arguments for flag in fields(part)]
    made = {flag.name: flag.default_factory() for flag in flags if flag.default_factory is not MISSING}
    plain = {**{flag.name: flag.default for flag in flags if flag.default is not MISSING}, **made}
    return {**plain, **(MGCMT_DEFAULTS if arguments[1].model == "mgcmt" else {}), "model": arguments[1].model}


def write_settings(arguments: Arguments, record: Path) -> None:
    """Records the settings that a resumed run has to keep."""
    write_text(record, json.dumps(_kept(arguments), indent=2) + "\n")


def check_settings(arguments: Arguments, record: Path) -> None:
    """Checks that a run is resumed with the settings it was started with; without a record nothing is checked.

    Raises:
        ValueError: the settings differ, or the record is damaged.
    """
    if not record.exists():
        return
    try:
        before = dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{record} is damaged, remove it to go on without it: {error}") from error
    differing = [f"--{k} {before.get(k)} → {v}" for k, v in _kept(arguments).items() if before.get(k) != v]
    if differing:
        raise ValueError(
            f"{record.parent} holds a run with other settings ({'; '.join(differing)}): give it the same ones, "
            "or name another --output_dir"
        )


def _kept(arguments: Arguments) -> dict[str, Any]:
    return {key: value for key, value in all_settings(arguments).items() if key not in NO_PART_OF_A_RUN}
