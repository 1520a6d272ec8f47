"""Builds visual contexts from images: object tags, captions, the text in the images, or any kind of your own.

```
python -m dataset_scripts.build_visual_context my_corpus --profile cpu --output my_corpus/contexts.jsonl
python -m dataset_scripts.build_visual_context --images photos --ocr rapidocr --preview contexts.html
python -m dataset_scripts.build_visual_context --dataset me/posts --captions microsoft/git-base --output c.parquet
accelerate launch --num_processes 8 -m dataset_scripts.build_visual_context my_corpus --profile gpu --output c.jsonl
```

Each aligner's output is saved to a store (`ContextStore`) as soon as its batch is done. An image shared by a thousand
posts is processed once, a killed run resumes where it stopped, changing the captioner keeps the OCR results, and
running the same command again does nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.utils import logging

from dataset_scripts.contexts.align_images import align_images
from dataset_scripts.contexts.build_report import STATES, _card, _known, report_text, summary
from dataset_scripts.contexts.context_preview import write_preview
from dataset_scripts.contexts.context_store import ContextStore
from dataset_scripts.contexts.image_sources import ImageSet, corpus_images, dataset_images, file_images
from dataset_scripts.contexts.placeholders import COPIES
from dataset_scripts.corpus.context_files import (
    HUB_CONFIGURATION,
    check_suffix,
    join_contexts,
    read_contexts,
    write_contexts,
)
from dataset_scripts.hub.hub_contexts import push_contexts
from modeling_ita.aligners import PROFILES
from modeling_ita.command_line import command, print_text, program
from modeling_ita.context_builder import NOT_ALIGNERS, VisualContextBuilder
from modeling_ita.visual_context import CAPTIONS, OBJECT_TAGS, OCR, VisualContext
from modeling_ita.whole_files import write_text


@dataclass
class BuildArguments:
    """Which images, which aligners, and where to write the contexts."""

    images: str | None = field(
        default=None,
        metadata={"help": "a folder, a pattern ('photos/*.jpg') or a list of files (.txt, one path per line)"},
    )
    dataset: str | None = field(
        default=None, metadata={"help": "any data set with an image column: a repository on the Hub or a folder"}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "the data set's configuration, if it has several"}
    )
    split: str = field(default="train", metadata={"help": "the data set's split"})
    image_column: str | None = field(
        default=None, metadata={"help": "the data set's image column; default: the only one"}
    )
    id_column: str | None = field(default=None, metadata={"help": "the data set's id column; default: row numbers"})
    images_dir: str | None = field(default=None, metadata={"help": "a corpus' image folder; default: CORPUS/images"})
    limit: int | None = field(default=None, metadata={"help": "process only the first LIMIT images"})

    profile: str | None = field(
        default=None,
        metadata={
            "help": "a predefined set of aligners; default: cpu, unless an aligner is named",
            "choices": [*PROFILES],
        },
    )
    ocr: str | None = field(
        default=None,
        metadata={"help": "rapidocr, easyocr, tesseract, pp-ocr, florence2, a checkpoint, or none"},
    )
    captions: str | None = field(default=None, metadata={"help": "checkpoint of a captioner or a VLM, or none"})
    object_tags: str | None = field(default=None, metadata={"help": "checkpoint of a detector, or none"})
    aligner: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "KIND=NAME: an aligner for any kind of context; NAME is a checkpoint, or module:name of a class "
            "or function",
        },
    )
    set: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "KIND.SETTING=VALUE, such as captions.num_captions=1, captions.revision=main or "
            'ocr.languages=\'["en", "fr"]\'',
        },
    )
    kinds: list[str] = field(
        default_factory=list,
        metadata={"help": "build only these kinds; a kind without a named aligner uses the profile's"},
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda:1 …; default: an accelerator if available"})
    batch_size: int = field(default=8, metadata={"help": "images per batch of an aligner"})
    workers: int | None = field(
        default=None, metadata={"help": "threads that open images; default: one per core, at most 4"}
    )

    store: str | None = field(
        default=None,
        metadata={"help": "folder that keeps all built contexts; default: a folder in the Hugging Face cache"},
    )
    output: str | None = field(
        default=None,
        metadata={"help": "file for the contexts by id, .jsonl or .parquet, for train.py and MnerDataset"},
    )
    merge: list[str] = field(
        default_factory=list,
        metadata={"help": "files with further kinds of context by id to add to --output; default: the corpus' own"},
    )
    placeholder_copies: int = field(
        default=COPIES,
        metadata={
            "help": "an image of mostly one colour with at least this many ids is a placeholder; 0: keep all images"
        },
    )
    preview: str | None = field(
        default=None, metadata={"help": "HTML contact sheet to write: images with their contexts"}
    )
    preview_images: int = field(default=200, metadata={"help": "show the first PREVIEW_IMAGES images on it"})
    report: str | None = field(default=None, metadata={"help": "JSON file for the final report"})
    push_to_hub: str | None = field(
        default=None,
        metadata={"help": f"data set on the Hub to push the contexts to, as configuration {HUB_CONFIGURATION}"},
    )
    private: bool = field(default=False, metadata={"help": "make a new data set on the Hub private"})


def recipes(args: BuildArguments) -> dict[str, dict[str, Any]]:
    """The aligner recipe for each kind that the arguments request.

    Raises:
        ValueError: a kind has no aligner, or `KIND=NAME` or `KIND.SETTING=VALUE` is malformed.
    """
    named: dict[str, str] = {
        kind: name
        for kind, name in ((OBJECT_TAGS, args.object_tags), (CAPTIONS, args.captions), (OCR, args.ocr))
        if name is not None
    }
    for pair in args.aligner:
        kind, equals, name = pair.partition("=")
        if not kind or not name or kind in NOT_ALIGNERS:
            raise ValueError(f"--aligner {pair}: expected KIND=NAME, such as captions=microsoft/git-base")
        named[kind] = name
    profile = PROFILES[args.profile or "cpu"]
    chosen = {kind: dict(recipe) for kind, recipe in profile.items()} if args.profile or not named else {}
    for kind in args.kinds:
        if kind not in named and kind not in chosen and kind in profile:
            chosen[kind] = dict(profile[kind])
    chosen |= {kind: {"model": name} for kind, name in named.items()}
    chosen = {kind: recipe for kind, recipe in chosen.items() if recipe["model"] != "none"}
    for kind in args.kinds:
        if kind not in chosen:
            raise ValueError(f"the kind {kind!r} has no aligner: name one with --aligner {kind}=NAME")
    if args.kinds:
        chosen = {kind: chosen[kind] for kind in args.kinds}
    for assignment in args.set:
        place, equals, value = assignment.partition("=")
        kind, _, setting = place.rpartition(".")  # the name of a kind may contain a dot
        if kind not in chosen or not setting or not equals:
            raise ValueError(
                f"--set {assignment}: expected KIND.SETTING=VALUE with KIND one of {', '.join(chosen) or 'none'}"
            )
        if setting == "revision":
            chosen[kind] = {**chosen[kind], "revision": value}
            continue
        settings = {**chosen[kind].get("settings", {}), setting: _value(value)}
        chosen[kind] = {**chosen[kind], "settings": settings}
    return chosen


def run(images: ImageSet, args: BuildArguments, process: PartialState | None = None) -> dict[str, Any]:
    """Build the missing contexts and write the requested outputs. Returns the final report, on the main process.

    Raises:
        ValueError: see `VisualContextBuilder`, `align_images` and `read_contexts`.
        ImportError: an aligner's package is not installed.
        OSError: a checkpoint cannot be loaded, or an output cannot be written.
    """
    started = time.monotonic()
    _check_outputs(args)
    merged = read_contexts(args.merge or images.context_files) if args.output or args.push_to_hub else {}
    store = ContextStore(args.store or default_store())
    aligners: dict[str, Any] = recipes(args)
    builder = VisualContextBuilder(store=store, device=args.device, **aligners)
    set_aside = store.set_aside()
    records = align_images(
        images,
        builder,
        store.folder,
        batch_size=args.batch_size,
        workers=args.workers,
        limit=args.limit,
        thumbnails=args.preview_images if args.preview else 0,
        process=process,
    )
    if process and not process.is_main_process:
        return {}
    store.compact()
    report, states = summary(records, builder, args.placeholder_copies)
    contexts = {}
    if args.output or args.push_to_hub:
        for record, state in zip(records, states, strict=True):
            image = _known(record, state, builder)
            built = VisualContext() if image is None else image.context(builder.aligners)
            contexts[record.id] = join_contexts(merged.get(record.id, VisualContext()), built)
    if merged:
        report["merged"] = len(merged.keys() & contexts.keys())
        report["merged_without_image"] = len(merged.keys() - contexts.keys())
    if args.output:
        report["output"] = "written" if write_contexts(args.output, contexts) else "up to date"
    if args.preview:
        cards = [_card(*pair, builder) for pair in zip(records[: args.preview_images], states, strict=False)]
        counts = {what: report[what] for what in ("images", *STATES)}
        write_preview(args.preview, cards, {kind: builder.identities[kind] for kind in builder.aligners}, counts)
    report["damaged_shards"] = sorted(map(str, store.set_aside() - set_aside))
    report["not_kept"] = store.not_kept
    report["aligned"] = sum(record.is_built for record in records)
    report["seconds"] = round(time.monotonic() - started, 2)
    report["images_per_second"] = round(len(records) / max(time.monotonic() - started, 1e-9), 1)
    if args.report:
        write_text(args.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if args.push_to_hub:
        push_contexts(args.push_to_hub, contexts, report, args.private)
    return report


def default_store() -> str:
    """The default path of the store."""
    return os.path.join(datasets.config.HF_CACHE_HOME, "ita_visual_contexts")


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = HfArgumentParser(BuildArguments, prog=program("dataset_scripts.build_visual_context"))  # type: ignore[arg-type]
    parser.add_argument(
        "corpus", nargs="?", help="folder with train.txt, valid.txt, test.txt and images/; or sample_posts"
    )
    args, positional = parser.parse_args_into_dataclasses(arguments)
    sources = [positional.corpus, args.images, args.dataset]
    if sum(source is not None for source in sources) != 1:
        parser.error("give the images as one of CORPUS, --images and --dataset")
    on_cpu = not torch.accelerator.is_available()
    process = PartialState(cpu=on_cpu, timeout=timedelta(days=7)) if "RANK" in os.environ else None
    logging.disable_progress_bar()
    _return_large_blocks()
    report = run(_images(positional.corpus, args), args, process)
    if report:
        print_text(report_text(report))
        if args.output:
            print_text(f"{args.output} {'written' if report['output'] == 'written' else 'is up to date'}")
        print(f"{report['aligned']:,} images aligned in {report['seconds']:.1f} s")
        if not report["aligned"]:
            print("nothing was left to do: all that can be read was in the store")
        for shard in report["damaged_shards"]:
            print_text(f"damaged and set aside, its images were read again: {shard}")
        if report["not_kept"]:
            print(f"{report['not_kept']:,} rows were not kept: the store cannot be written")


def _check_outputs(args: BuildArguments) -> None:
    """Check that the outputs can be written, before hours of work rather than after them."""
    if args.output:
        check_suffix(Path(args.output))
    for path in (args.output, args.preview, args.report):
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)


def _return_large_blocks() -> None:
    """Make glibc return the memory of decoded images; otherwise it keeps twice as much as is ever in use."""
    mmap_threshold = -3
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(mmap_threshold, 16_000_000)  # bytes: as Pillow's blocks


def _images(corpus: str | None, args: BuildArguments) -> ImageSet:
    if corpus is not None:
        return corpus_images(corpus, args.images_dir)
    if args.images is not None:
        return file_images(args.images)
    return dataset_images(str(args.dataset), args.dataset_config, args.split, args.image_column, args.id_column)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or a number or nesting that no setting has
        return text


if __name__ == "__main__":
    sys.exit(main())
