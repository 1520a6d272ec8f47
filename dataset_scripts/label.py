"""Labels a file of posts: every row of the input comes out again, in order, with the entities of its post.

```
python -m dataset_scripts.label posts.csv --model you/ita --output labelled
python -m dataset_scripts.label "posts/*.parquet" --model you/ita --output labelled --num_workers 4
python -m dataset_scripts.label --dataset me/posts --split train --model you/ita --output labelled --format jsonl
python -m dataset_scripts.label s3://bucket/posts --model you/ita --output s3://bucket/labelled --engine ray
cat posts.jsonl | python -m dataset_scripts.label - --model you/ita --output labelled
```

The output is a folder of shards of a fixed number of rows. A job that was stopped goes on with the same command, and
its output is, byte for byte, that of one that was not. A row that cannot be labelled says why in its column `error`;
it stops nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

from dataset_scripts.build_visual_context import default_store
from dataset_scripts.labelling.columns import PostColumns, choose_columns, has_bytes, without_bytes
from dataset_scripts.labelling.engines import in_processes, in_this_process, on_ray
from dataset_scripts.labelling.label_report import label_report, report_text
from dataset_scripts.labelling.labeller import PostLabeller
from dataset_scripts.labelling.rows import Source
from dataset_scripts.labelling.shards import (
    FORMATS,
    JOB,
    REPORT,
    ROWS_PER_SHARD,
    Output,
    Shard,
    ShardLabeller,
    check_job,
    model_fingerprint,
)
from dataset_scripts.labelling.sources import DatasetSource, FileSource, is_remote, open_files, spool
from hub_card.card.card_tables import read_operating_points
from modeling_ita.checkpoint_files import CONFIG, folder_of, read_object
from modeling_ita.command_line import FINDINGS, command, print_text, program
from modeling_ita.pipeline_ita import BATCH_SIZE, READ_IMAGES
from modeling_ita.plain_text import one_line
from modeling_ita.whole_files import claimed_folder, working_folder

__all__ = ["LabelArguments", "PostLabeller", "main", "run"]
STANDARD_INPUT = "-"


@dataclass
class LabelArguments:
    """What is labelled, by which model, and where the rows go."""

    model: str = field(metadata={"help": "an exported folder, or a repository on the Hub; none of its code runs"})
    output: str = field(metadata={"help": "the folder for the rows, on any file system that fsspec knows"})

    dataset: str | None = field(
        default=None, metadata={"help": "instead of files, a data set: a repository on the Hub or a folder; streamed"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "its configuration, if it has several"})
    split: str = field(default="train", metadata={"help": "its split"})
    encoding: str = field(default="utf-8", metadata={"help": "of CSV, TSV and JSON lines"})
    limit: int | None = field(default=None, metadata={"help": "label only the first LIMIT rows"})

    text_column: str | None = field(
        default=None, metadata={"help": "the posts, as strings or lists of words; default: guessed by its name"}
    )
    image_column: str | None = field(
        default=None,
        metadata={
            "help": "their pictures: paths, bytes, structs of both, or lists of these; default: guessed, or none"
        },
    )
    context_column: str | None = field(
        default=None, metadata={"help": "given visual contexts, as structs or JSON; default: guessed; or none"}
    )
    id_column: str | None = field(default=None, metadata={"help": "ids, for messages; default: guessed; or none"})
    images_dir: str | None = field(
        default=None,
        metadata={"help": "the folder of the pictures, which no path may leave; default: that of their file"},
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "the columns of the input to write; default: all, without the bytes of pictures"},
    )
    return_context: bool = field(default=False, metadata={"help": "write what was read in the pictures, too"})
    format: str = field(default="parquet", metadata={"help": "of the output", "choices": list(FORMATS)})
    rows_per_shard: int = field(
        default=ROWS_PER_SHARD, metadata={"help": "rows of a file of the output; 50,000 for a hundred million rows"}
    )
    overwrite: bool = field(default=False, metadata={"help": "remove the job that --output holds, and begin anew"})

    read_images: str = field(
        default="always",
        metadata={"help": "unsure: only where the post alone leaves the model unsure", "choices": list(READ_IMAGES)},
    )
    image_gate: float | None = field(
        default=None, metadata={"help": "how unsure, from 0 to 1; default: as fitted on the model's validation posts"}
    )
    min_score: float = field(default=0.0, metadata={"help": "leave out entities with a lower score"})
    store: str | None = field(
        default=None,
        metadata={
            "help": "folder that keeps what was read in pictures; default: one in the Hugging Face cache; or none"
        },
    )
    batch_size: int = field(default=BATCH_SIZE, metadata={"help": "posts in one pass through the encoder"})

    num_workers: int = field(default=1, metadata={"help": "processes, or actors of Ray"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda:0 …; default: an accelerator if available"})
    engine: str = field(default="local", metadata={"help": "local or ray", "choices": ["local", "ray"]})
    ray_address: str | None = field(
        default=None, metadata={"help": "a cluster, auto or ray://…; default: RAY_ADDRESS, or one begun here"}
    )
    cpus_per_worker: float = field(default=1, metadata={"help": "cores of an actor of Ray"})
    gpus_per_worker: float = field(default=0, metadata={"help": "GPUs of an actor of Ray"})


def run(inputs: Sequence[str], args: LabelArguments) -> dict[str, Any]:
    """Label what is not labelled yet; returns the report.

    Args:
        inputs: files, folders or patterns, or `-`; none if `args.dataset` names a data set.
        args: the arguments.

    Raises:
        ValueError: an input or a column is missing, or the folder holds another job.
        OSError: the model cannot be loaded, or the output cannot be written.
        ImportError: a package is not installed.
    """
    _check(inputs, args)
    output = Output(args.output, args.format)
    with ExitStack() as held:
        if not is_remote(args.output):
            held.enter_context(claimed_folder(args.output, "wait for it, or name another --output"))
        if args.overwrite:
            output.clear()
        source = _source(inputs, args, held)
        columns, guesses = choose_columns(
            source.schema, args.text_column, args.image_column, args.context_column, args.id_column
        )
        kept, with_bytes, dropped = _kept(source, columns, args)
        job = check_job(output, _job(source, columns, kept, args))
        for line in [*source.notes, *guesses, *dropped, *_about_gate(columns, args)]:
            print_text(line, file=sys.stderr)
        shards = [
            Shard(number, start, min(start + args.rows_per_shard, source.count))
            for number, start in enumerate(range(0, max(source.count, 1), args.rows_per_shard))
        ]
        finished = output.finished()
        waiting = [shard for shard in shards if shard.number not in finished]
        labeller = PostLabeller(
            args.model,
            text_column=columns.text,
            image_column=columns.image,
            context_column=columns.context,
            images_dir=args.images_dir,
            read_images=args.read_images,  # type: ignore[arg-type]
            image_gate=args.image_gate,
            min_score=args.min_score,
            return_context=args.return_context,
            store=None if args.store == "none" else args.store or default_store(),
            batch_size=args.batch_size,
            device=args.device,
            since=job["started"],
        )
        work = ShardLabeller(source, labeller, columns, kept, with_bytes, output)
        now = _label(work, waiting, source.count, args)
        known = output.read(REPORT)
        if not now and known is not None:
            return {**known, "labelled_now": 0}
        counts = [output.read(f"{JOB}/part-{shard.number:05d}.json") for shard in shards]
        report = label_report(counts, now)
        output.write(REPORT, report)
        return {**report, "labelled_now": sum(one["rows"] for one in now)}


def _label(work: ShardLabeller, waiting: list[Shard], count: int, args: LabelArguments) -> list[dict[str, Any]]:
    """Labels the shards that are waiting, and shows how it goes."""
    if not waiting:
        return []
    rows = sum(shard.stop - shard.start for shard in waiting)
    found = []
    started, images = time.monotonic(), 0
    pace = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file needs fewer lines
    with tqdm(total=count, initial=count - rows, desc="labelling", unit="post", mininterval=pace) as bar:

        def progress(more_rows: int, more_images: int) -> None:
            nonlocal images
            images += more_images
            if images:
                bar.set_postfix_str(f"{images / (time.monotonic() - started):.1f} images/s", refresh=False)
            bar.update(more_rows)

        engine: Iterator[dict[str, Any]]
        if args.engine == "ray":
            engine = on_ray(
                work, waiting, progress, args.num_workers, args.ray_address, args.cpus_per_worker, args.gpus_per_worker
            )
        elif args.num_workers > 1:
            engine = in_processes(work, waiting, progress, args.num_workers)
        else:
            engine = in_this_process(work, waiting, progress)
        found += list(engine)
        bar.n = max(bar.n, count)
    return found


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if a row could not be labelled."""
    parser = HfArgumentParser(LabelArguments, prog=program("dataset_scripts.label"))  # type: ignore[arg-type]
    parser.add_argument(
        "input",
        nargs="*",
        help="files, folders or patterns of CSV, TSV, JSON lines (.gz, .zst) or Parquet; or - for JSON lines from "
        "standard input",
    )
    args, positional = parser.parse_args_into_dataclasses(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    report = run(positional.input, args)
    print_text(report_text(report, _points(args.model)))
    if not report["labelled_now"]:
        print("nothing was left to do: all rows were labelled before")
    print_text(f"rows    {args.output}\nreport  {args.output.rstrip('/')}/{REPORT}")
    return FINDINGS if report["failed"] else 0


def _check(inputs: Sequence[str], args: LabelArguments) -> None:
    if bool(inputs) == (args.dataset is not None):
        raise ValueError("what is to be labelled? name files, or - for standard input, or a --dataset (one of them)")
    if STANDARD_INPUT in inputs and len(inputs) > 1:
        raise ValueError("- reads standard input, and no file beside it")
    for name in ("rows_per_shard", "batch_size", "num_workers", "limit"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ValueError(f"--{name} is {number} (expected 1 or more)")
    for name in ("min_score", "image_gate"):
        share = getattr(args, name)
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"--{name} is {share} (expected a probability)")
    if args.engine == "ray" and args.store not in (None, "none") and is_remote(str(args.store)):
        raise ValueError(f"--store {args.store} is not a folder that all machines see (expected a path, or none)")


def _source(inputs: Sequence[str], args: LabelArguments, held: ExitStack) -> Source:
    if args.dataset is not None:
        return DatasetSource(args.dataset, args.dataset_config, args.split, args.limit)
    if list(inputs) == [STANDARD_INPUT]:
        beside = tempfile.gettempdir() if is_remote(args.output) else args.output
        folder = held.enter_context(working_folder(Path(beside, "input")))
        spool(sys.stdin.buffer, folder / "standard_input.jsonl")
        source = open_files([str(folder / "standard_input.jsonl")], args.encoding, args.limit)
        for part in source.parts:
            part.base = os.getcwd()
        return source
    return open_files(inputs, args.encoding, args.limit)


def _kept(source: Source, columns: PostColumns, args: LabelArguments) -> tuple[list[str], list[str], list[str]]:
    """The columns that are written, those whose bytes are written too, and a line for each that is not.

    Raises:
        ValueError: a column does not exist, has the name of a new one, or cannot be written in this format.
    """
    types = dict(zip(source.schema.names, source.schema.types, strict=True))
    for name in args.columns or ():
        if name not in types:
            raise ValueError(
                f"--columns names {name!r}, which is no column (the columns are {', '.join(types):.1000})"
            )
    kept = list(dict.fromkeys(args.columns)) if args.columns is not None else list(types)
    with_bytes = [name for name in args.columns or () if has_bytes(types[name])]
    told = []
    for name in [name for name in kept if has_bytes(types[name]) and name not in with_bytes]:
        if without_bytes(source.schema.empty_table()[name]) is None:
            kept.remove(name)
            told.append(f"the column {name!r} holds the bytes of files and is not written (--columns names it)")
        else:
            told.append(f"of the column {name!r} the paths are written, and not the bytes (--columns names it)")
    if with_bytes and args.format == "jsonl":
        raise ValueError(f"JSON lines cannot hold the bytes of {with_bytes[0]!r} (--format parquet can)")
    new = ["entities", "image_state", "error", *(["context"] if args.return_context else [])]
    taken = [name for name in kept if name in new]
    if taken:
        raise ValueError(
            f"the input has a column {taken[0]!r} already, which is the name of a new one (--columns names those to "
            "write, without it)"
        )
    return kept, with_bytes, told


def _job(source: Source, columns: PostColumns, kept: list[str], args: LabelArguments) -> dict[str, Any]:
    """What decides about the output, as JSON values."""
    from_standard_input = isinstance(source, FileSource) and any(part.base is not None for part in source.parts)
    settings = {
        "columns": columns._asdict(),
        "written": kept,
        **{
            name: getattr(args, name)
            for name in (
                "encoding", "images_dir", "return_context", "format", "rows_per_shard", "read_images", "image_gate",
                "min_score", "batch_size", "limit",
            )
        },
    }  # fmt: skip
    found = {"standard input": source.digest()} if from_standard_input else source.fingerprint()  # type: ignore[attr-defined]
    return {
        "model": model_fingerprint(args.model),
        "input": found,
        "settings": settings,
        "started": int(time.time()),
    }


def _about_gate(columns: PostColumns, args: LabelArguments) -> list[str]:
    """Says so where reading pictures is worth nothing by the model's own validation."""
    folder = folder_of(args.model, {}, CONFIG)
    gate = read_object(folder / CONFIG).get("image_gate") if folder is not None else None
    if columns.image is None or args.read_images != "always" or gate is None:
        return []
    if gate >= 1:
        return [
            "on its validation posts this model is as good without the pictures (within 0.3 F1): --read_images never "
            "spares their cost"
        ]
    return [
        "--read_images unsure reads only the pictures that pay, by the gate fitted on the model's validation posts"
    ]


def _points(model: str) -> list[dict[str, str]]:
    """What a threshold is worth, from the model's card; nothing without one."""
    folder = folder_of(model, {}, CONFIG)
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return []
    text = card.read_text(encoding="utf-8", errors="replace")
    return [{one_line(k, 40): one_line(v, 40) for k, v in point.items()} for point in read_operating_points(text)]


if __name__ == "__main__":
    sys.exit(main())
