"""Trains ITA or MGCMT, evaluates it in every view, and leaves a Hub-ready folder.

    python train.py --output_dir outputs/sample
    python train.py --model mgcmt --vision_encoder from_scratch --train_vision true --output_dir outputs/sample-mgcmt
    python train.py benchmarks/twitter2017.yaml --seed 2 --output_dir outputs/seed2
    accelerate launch --num_processes 2 train.py --output_dir outputs/sample

A run has three steps: `prepare`, `train`, `publish`. First comes the value they share and the training loop. The flags
are defined in `modeling_ita/training_arguments.py`; `modeling_ita/new_model.py` makes the new model.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast, send_to_device, set_seed
from tqdm.auto import tqdm
from transformers import AutoModelForTokenClassification, get_scheduler
from transformers.utils import logging as transformers_logging

from dataset_scripts.corpus.examples import epoch_batches, read_examples
from dataset_scripts.mner import MnerDataset
from hub_card.hub.exported_folder import export_model
from hub_card.hub.push import open_repository, push_model, push_text
from hub_card.predictions.evaluate_model import evaluate_model, visuals_of_view
from hub_card.predictions.prediction import Visual, predict_tags, read_images
from hub_card.report.report import Report, format_table, gold_files, make_report, write_report
from hub_card.report.report_page import write_page
from hub_card.report.training_figure import training_figure
from hub_card.scores.scores import score_views
from modeling_ita.aligners import PROFILES
from modeling_ita.command_line import command, print_text
from modeling_ita.data_collator import Splits
from modeling_ita.entity_tagger import EntityTagger
from modeling_ita.new_model import NewModel, new_model
from modeling_ita.tag_scheme import TagScheme
from modeling_ita.training_arguments import (
    Arguments,
    all_settings,
    check_settings,
    defaults,
    parse_arguments,
    write_settings,
)
from modeling_ita.training_checkpoints import Checkpoints, Progress, on_main_process, restore_best, written_model
from modeling_ita.visual_context import named_aligners, recorded_aligners
from modeling_ita.whole_files import claimed_folder

RESULTS = {"model": "model", "report": "report.json", "page": "report.html", "picture": "report.png"}
RECORD = "training_args.json"


class Prepared(NamedTuple):
    """All that a run trains with.

    Attributes:
        arguments: the data, the system and the training, as they were asked for.
        accelerator: devices, precision and trackers.
        checkpoints: where checkpoints are written.
        checkpoint: the one to resume from; None for a new run.
        corpus: the corpus, with its audit.
        splits: its posts by split, tagged in the model's scheme. Images are tensors if the model looks at images.
        aligners: what made the contexts of the training posts, by kind.
        new: the model, its processor and its collator.
    """

    arguments: Arguments
    accelerator: Accelerator
    checkpoints: Checkpoints
    checkpoint: Path | None
    corpus: MnerDataset
    splits: Splits
    aligners: dict[str, dict[str, Any]]
    new: NewModel

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.arguments[2].output_dir)

    @property
    def best(self) -> Path:
        """The folder of the best weights so far."""
        return self.output / "best"


# --- the training loop -----------------------------------------------------------------------------------------------


class Trainer:
    """The loop over epochs."""

    def __init__(self, prepared: Prepared) -> None:
        _, self.model_arguments, self.args = prepared.arguments
        self.accelerator, self.splits, (model, self.processor, self.collate) = (
            prepared.accelerator,
            prepared.splits,
            prepared.new,
        )
        self.checkpoints, self.best = prepared.checkpoints, prepared.best
        self.lengths = self._lengths()
        batches = -(-len(self.splits["train"]) // self.args.batch_size)
        self.steps_an_epoch = -(-batches // self.args.gradient_accumulation_steps)
        self.total_steps = self.steps_an_epoch * self.args.num_epochs
        if len(self.splits["train"]) // batches < self.accelerator.num_processes:
            raise ValueError(f"--batch_size {self.args.batch_size} leaves a process without a post: raise it")

        # Fused is one pass over the weights: on a CPU the unfused update costs a fifth of a step.
        optimizer = torch.optim.AdamW(self._parameter_groups(model), eps=1e-6, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Not prepared: it counts updates, whatever the number of processes.
        warmup = round(self.args.warmup_ratio * self.total_steps)
        self.scheduler = get_scheduler(
            "linear", optimizer, num_warmup_steps=warmup, num_training_steps=self.total_steps
        )
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.scheduler, self.progress)

    @property
    def plain_model(self) -> EntityTagger:
        """The model without what accelerate put around it."""
        return self.accelerator.unwrap_model(self.model)

    def resume(self, checkpoint: Path) -> None:
        """Resumes from a checkpoint, with the best weights as they were then."""
        self.checkpoints.load(self.accelerator, checkpoint)
        if self.progress.best >= 0 and self.accelerator.is_main_process:
            restore_best(checkpoint, self.best)
        self.accelerator.print(f"goes on from {checkpoint}, after step {self.progress.step}")

    def train(self) -> None:
        """Trains to the end, or to `--max_steps`; the best weights are left in `OUTPUT/best`."""
        end = min(self.total_steps, self.args.max_steps or self.total_steps)
        every, shown = self.args.save_steps or self.steps_an_epoch, self.accelerator.is_main_process
        with tqdm(total=end, initial=self.progress.step, desc="training", unit="step", disable=not shown) as bar:
            while self.progress.step < end:
                epoch, done = divmod(self.progress.step, self.steps_an_epoch)
                for step_batches in self._steps_of(epoch, done):
                    self._step(step_batches)
                    bar.update()
                    if self.progress.step % self.steps_an_epoch == 0:
                        bar.set_postfix_str(self._evaluate(epoch + 1))
                    if self.progress.step % every == 0 or self.progress.step == end:
                        self.checkpoints.save(self.accelerator, self.best if self.progress.best >= 0 else None)
                    if self.progress.step == end:
                        break

    def _parameter_groups(self, model: EntityTagger) -> list[dict[str, Any]]:
        """Trainable weights grouped by learning rate and weight decay; biases and norms are not decayed."""
        rates = {"encoder": None, "crf": self.args.crf_learning_rate, "aux_crf": self.args.crf_learning_rate}
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, weights in model.named_parameters():
            if weights.requires_grad:
                rate = rates.get(name.partition(".")[0], self.args.head_learning_rate)
                rate = self.args.learning_rate if rate is None else rate
                groups.setdefault((rate, self.args.weight_decay if weights.dim() > 1 else 0.0), []).append(weights)
        return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]

    def _lengths(self) -> list[int]:
        """Tokens of every training post, with its context if the model reads it."""
        lengths = []
        for example in self.splits["train"]:
            batch = self.collate([{**vars(example), "image": None}])
            lengths.append(int(batch.get("cross_attention_mask", batch.get("attention_mask")).sum()))  # type: ignore[union-attr]
        return lengths

    def _steps_of(self, epoch: int, done: int) -> Iterator[list[list[int]]]:
        batches = epoch_batches(self.lengths, self.args.batch_size, self.args.seed, epoch)
        accumulated = self.args.gradient_accumulation_steps
        for first in range(done * accumulated, len(batches), accumulated):
            yield batches[first : first + accumulated]

    def _step(self, batches: list[list[int]]) -> None:
        """One update on the mean loss over all its posts, however they are spread over passes and processes."""
        accelerator, progress = self.accelerator, self.progress
        self.model.train()
        posts = sum(map(len, batches))
        for number, indices in enumerate(batches):
            mine = [self.splits["train"][i] for i in indices[accelerator.process_index :: accelerator.num_processes]]
            batch = send_to_device(self.collate([vars(example) for example in mine]), accelerator.device)
            last = number == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                output = self.model(**batch)
                # Processes average their gradients: a process weighs as many posts as it has.
                accelerator.backward(output.loss * (len(mine) * accelerator.num_processes / posts))
            for name, value in output.items():
                if name.endswith("loss"):
                    progress.sums[name] = progress.sums.get(name, 0.0) + value.item() * len(mine) / posts
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
        sums = torch.tensor([progress.sums[name] for name in names], device=self.accelerator.device)
        sums = self.accelerator.reduce(sums, "sum")
        losses = {name: value / since for name, value in zip(names, sums.tolist(), strict=True)}
        progress.sums = {}
        epoch, rate = progress.step / self.steps_an_epoch, self.scheduler.get_last_lr()[0]
        entry = {"step": progress.step, "epoch": epoch, "lr": rate, **losses}
        progress.history["steps"].append(entry)
        self.accelerator.log(entry, step=progress.step)
        if not torch.isfinite(sums).all():
            kept = f"; {self.best} holds the best weights so far" if progress.best >= 0 else ""
            raise FloatingPointError(
                f"the loss is {losses['loss']} at step {progress.step}: lower --learning_rate or --crf_learning_rate"
                f"{kept}"
            )

    def _evaluate(self, epoch: int) -> str:
        """Validates in the views that select the epoch; keeps the weights if their mean lenient F1 is the best yet."""
        for buffer in self.plain_model.buffers():  # image statistics: those of the main process, whose model is saved
            buffer.copy_(broadcast(buffer))
        scores, _ = self.score("validation", self.model_arguments.chosen_on)
        f1 = {view: report["lenient"]["f1"] for view, report in scores.items()}
        mean = sum(f1.values()) / len(f1)
        is_best = mean > self.progress.best
        if is_best:
            self.progress.best = mean
            if self.accelerator.is_main_process:
                with written_model(self.best) as folder:
                    self.plain_model.save_pretrained(folder)
        entry = {"epoch": epoch, "step": self.progress.step, **f1, "mean": mean, "best": is_best}
        self.progress.history["evaluations"].append(entry)
        self.accelerator.log({f"valid/{k}": v for k, v in entry.items() if k != "best"}, step=self.progress.step)
        return ", ".join(f"{view} {100 * value:.1f}" for view, value in f1.items())

    def score(self, split: str, views: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
        """Scores a split in these views (see `VIEWS`); also returns what the processor counted in each."""
        examples = self.splits[split]
        words, visuals = [example.words for example in examples], [Visual(e.context, e.image) for e in examples]
        labels = self.plain_model.config.tag_scheme.labels
        predictions, counts = {}, {}
        for view in views:
            given = visuals_of_view(view, visuals)
            predictions[view], counted = predict_tags(
                self.accelerator, self.plain_model, self.processor, words, given, self.args.eval_batch_size
            )
            counts[view] = dict(counted)
        return score_views([[labels[tag] for tag in e.tags] for e in examples], predictions), counts


# --- the run: prepare, train, publish --------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> Report:
    """Trains and evaluates as the arguments say, and returns the report; an empty one if `--max_steps` ended it.

    Raises:
        ValueError: the arguments, the data or the checkpoint cannot be used.
        OSError: a file is missing, cannot be written, or another process is training in the output folder.
    """
    # One progress bar, not broken by a bar for every checkpoint.
    transformers_logging.disable_progress_bar()
    arguments = parse_arguments(argv)
    process = PartialState(cpu=not torch.accelerator.is_available())
    with ExitStack() as held:
        # One process claims the folder for all of them.
        checkpoints, checkpoint = on_main_process(process, lambda: claim_output(arguments, held))
        try:
            prepared = prepare(arguments, checkpoints, checkpoint)
            history = train(prepared)
            return {} if history is None else publish(prepared, history, argv)
        except (KeyboardInterrupt, OSError) as stop:
            if Path(arguments[2].output_dir, RECORD).exists():
                stop.add_note(f"--resume_from_checkpoint last {checkpoints.way_on()}")
            raise


def claim_output(arguments: Arguments, held: ExitStack) -> tuple[Checkpoints, Path | None]:
    """Claims the output folder for this process; returns its checkpoints and the one to resume from.

    Raises:
        ValueError: the folder holds another run, or the checkpoint is damaged.
        OSError: another process is training there, or there is no such checkpoint.
    """
    args = arguments[2]
    output = Path(args.output_dir)
    held.enter_context(claimed_folder(output, "wait for it, or name another --output_dir"))
    checkpoints = Checkpoints(output / "checkpoints", args.save_total_limit)
    if args.resume_from_checkpoint is None and (checkpoints.numbered() or (output / RECORD).exists()):
        raise ValueError(
            f"{output} holds a run already: go on with it (--resume_from_checkpoint last) or name another --output_dir"
        )
    check_settings(arguments, output / RECORD)
    return checkpoints, checkpoints.to_resume(args.resume_from_checkpoint or "last")


def prepare(arguments: Arguments, checkpoints: Checkpoints, checkpoint: Path | None) -> Prepared:
    """Reads the corpus, makes the new model, and reads the images if the model looks at images."""
    _, model_arguments, args = arguments
    accelerator = make_accelerator(arguments)
    if args.push_to_hub and accelerator.is_main_process:
        # Refused now rather than after the training.
        open_repository(str(args.hub_model_id), args.hub_private_repo or None)
    corpus, scheme, splits = read_corpus(arguments, accelerator)
    made_by = recorded_aligners(example.context for example in splits["train"])
    profile = PROFILES.get(model_arguments.context_builder, {})
    aligners = named_aligners(made_by) if model_arguments.context_builder == "contexts" else profile
    set_seed(args.seed)  # every process starts from the same weights …
    new = new_model(model_arguments, scheme, splits, aligners)
    set_seed(args.seed, device_specific=True)  # … and drops out others
    if new.model.sees_images:
        new.model.to(accelerator.device)
        splits = with_tensors(new, splits, args.eval_batch_size, accelerator.is_main_process)
    return Prepared(arguments, accelerator, checkpoints, checkpoint, corpus, splits, made_by, new)


def make_accelerator(arguments: Arguments) -> Accelerator:
    """Sets up devices, precision and trackers."""
    _, model_arguments, args = arguments
    precision, trains_vision = args.mixed_precision, getattr(model_arguments, "train_vision", False)
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(
        mixed_precision=precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir,
        # A vision encoder gets no gradients from a batch without an image.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=trains_vision)],
    )


def read_corpus(arguments: Arguments, accelerator: Accelerator) -> tuple[MnerDataset, TagScheme, Splits]:
    """The corpus, the tags that the model predicts, and the posts by split with these tags."""
    data, model_arguments, _ = arguments
    with accelerator.main_process_first():
        where = {"data_dir": data.data_dir, "images_dir": data.images_dir, "context_files": data.context_files}
        corpus = MnerDataset(config_name=data.dataset, **where)
        corpus.download_and_prepare()
    dataset = corpus.as_dataset()
    given = TagScheme(dataset["train"].features["tags"].feature.names)
    scheme = TagScheme.from_types(given.types, model_arguments.tag_scheme)
    with_images = model_arguments.sees_regions
    splits = {name: read_examples(rows, given, scheme, with_images=with_images) for name, rows in dataset.items()}
    if "validation" not in splits:
        raise ValueError(f"{data.dataset} has no validation split, on which the epoch is chosen: add valid.txt")
    if with_images and not any(example.image for example in splits["train"]):
        raise ValueError("no training post has an image: give --images_dir, or do without (--visual_fusion objects)")
    return corpus, scheme, splits


def with_tensors(new: NewModel, splits: Splits, batch_size: int, show: bool) -> Splits:
    """The posts with their images as tensors, so that no image is opened or encoded twice.

    The tensors are features if the vision encoder is frozen (400 KB an image with a ResNet-152), or pixels if it is
    fine-tuned (600 KB at 224 × 224).
    """
    regions, seen = not new.model.config.train_vision, {}
    for name, examples in splits.items():
        images, progress = [example.image for example in examples], f"{name}, images" if show else None
        made = read_images(new.model, new.processor, images, batch_size, regions=regions, progress=progress)
        seen[name] = [replace(example, image=tensor) for example, tensor in zip(examples, made, strict=True)]
    return seen


def train(prepared: Prepared) -> dict[str, Any] | None:
    """Trains from the start or from the checkpoint.

    Returns:
        The history of losses and evaluations; None if `--max_steps` ended the training early.
    """
    trainer = Trainer(prepared)
    if prepared.checkpoint is not None:
        trainer.resume(prepared.checkpoint)
    if prepared.accelerator.is_main_process:  # a start that failed has no settings: all is loaded now
        write_settings(prepared.arguments, prepared.output / RECORD)
    if prepared.arguments[2].report_to != "none":
        settings = {name: str(value) for name, value in all_settings(prepared.arguments).items()}
        prepared.accelerator.init_trackers("ita-mner", config=settings)
    trainer.train()
    if trainer.progress.step < trainer.total_steps:
        prepared.accelerator.print(
            f"stopped after {trainer.progress.step} of {trainer.total_steps} steps; "
            f"--resume_from_checkpoint last {prepared.checkpoints.way_on()}"
        )
        return None
    return trainer.progress.history


def publish(prepared: Prepared, history: dict[str, Any], argv: Sequence[str]) -> Report:
    """Evaluates the best weights, writes the report and the Hub-ready folder, and pushes the folder if asked.

    Returns:
        The report. Only the main process does the work; the others return an empty report.
    """
    accelerator, output, args = prepared.accelerator, prepared.output, prepared.arguments[2]
    accelerator.wait_for_everyone()
    report: Report = {}
    if accelerator.is_main_process:
        processor, audit = prepared.new.processor, prepared.corpus.report
        best = AutoModelForTokenClassification.from_pretrained(prepared.best).to(accelerator.device)
        evaluation = evaluate_model(best, processor, prepared.splits, args.eval_batch_size)
        best.config.score_temperature = evaluation.temperature
        best.config.image_gate = evaluation.image_gate
        best.config.name_or_path = ""  # where it lies says nothing of the run
        counts = evaluation.fields.pop("counts")
        report = make_report(
            name=args.name or output.name,
            **evaluation.fields,
            counts={"corpus": {k: v for k, v in audit.items() if k != "data"}, "processor": counts},
            data=audit["data"],
            command=shlex.join(["python", "train.py", *argv]),
            history=history,
            config=all_settings(prepared.arguments) | {"model": best.config.to_dict()},
            config_defaults=defaults(prepared.arguments),
            aligners=prepared.aligners,
            gold=gold_files(audit, prepared.corpus.config.text_files()),
        )
        write_report(report, output / RESULTS["report"])
        export_model(best, processor, output / RESULTS["model"], report, examples="here")
        training_figure(report, output / RESULTS["picture"])
        write_page(report, evaluation.posts, output / RESULTS["page"], shown := list(evaluation.posts)[-1])
        print_text(format_table(report, shown))
        print_text("".join(f"{what:<8}{output / file}\n" for what, file in RESULTS.items()), end="")
        if args.push_to_hub:
            pushed = push_model(output / RESULTS["model"], str(args.hub_model_id), args.hub_private_repo or None)
            print_text(push_text(pushed))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


@command
def run(arguments: Sequence[str] | None = None) -> None:
    """Trains from the command line. From Python call `main`, which returns the report."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler that stops the run is Ctrl-C
    main(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(run())
