"""A checkpoint under ONNX Runtime, fp32 and int8, against torch: the same entities, and how fast.

    python benchmarks/onnx.py MODEL

MODEL is an exported checkpoint, trained on the sample posts (`python train.py` makes one). Each of the sample corpus's
353 posts is labelled alone and with what its picture shows and says, 706 inputs in all, by `ItaPipeline` over three
models: the checkpoint, and its exports to ONNX in fp32 and int8, made here. All run on one CPU thread and take turns
in one process, every 128 posts, so that whatever slows the machine down slows all of them down. A figure is the median
of the CPU times of the rounds, a ratio the median of the rounds' ratios.

`other` counts the inputs whose entities are not torch's, words and types; `score` is the largest difference of a score
where they are. F1 is against the corpus's own tags, most of which the model was trained on: read the differences only.
The exit status is 1 if fp32 finds any other entity, or if int8's F1 is 0.5 points or more from torch's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs where the project is not installed
sys.path.sort(key=str(Path(__file__).parent).__eq__)  # its own folder last: there this file hides the package onnx

from dataset_scripts.sample_posts import SAMPLE_POSTS
from dataset_scripts.sample_posts.corpus import TYPES, SamplePost, read_posts
from hub_card.onnx.onnx_export import export_onnx
from hub_card.onnx.onnx_model import OnnxItaForTokenClassification
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, TagScheme

BAR = 0.5  # points of F1
TURN = 128  # posts


def read_inputs() -> tuple[list[dict[str, Any]], list[set[tuple[str, int, int]]]]:
    """Every sample post alone, then with its picture's context; and the gold entities of each, as characters."""
    posts = [post for split in read_posts(SAMPLE_POSTS / "posts.yaml").values() for post in split]
    alone = [{"words": list(post.words)} for post in posts]
    return [*alone, *({"words": list(post.words), "context": _context(post)} for post in posts)], [
        _gold(post) for post in [*posts, *posts]
    ]


def _context(post: SamplePost) -> dict[str, list[str]]:
    kinds = {"object_tags": post.object_tags, "captions": post.captions, "ocr": post.lettering}
    return {kind: list(strings) for kind, strings in kinds.items()}


def _gold(post: SamplePost) -> set[tuple[str, int, int]]:
    scheme = TagScheme.from_types(TYPES)
    starts = [len(" ".join([*post.words[:n], ""])) for n in range(len(post.words))]
    ends = [start + len(word) for start, word in zip(starts, post.words, strict=True)]
    spans = scheme.spans([scheme.label2id[tag] for tag in post.tags])
    return {(span.type, starts[span.start], ends[span.end - 1]) for span in spans}


def found(entities: Sequence[dict[str, Any]]) -> dict[tuple[str, int, int], float]:
    """The scores of a result's entities by type and characters."""
    return {(e["entity_group"], e["start"], e["end"]): e["score"] for e in entities}


def f1(results: list[dict[tuple[str, int, int], float]], gold: list[set[tuple[str, int, int]]]) -> float:
    """F1 in points."""
    correct = sum(len(g & r.keys()) for r, g in zip(results, gold, strict=True))
    return 200 * correct / (sum(map(len, results)) + sum(map(len, gold)))


def seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of one call, and what it returned."""
    start = time.process_time()
    result = task()
    return time.process_time() - start, result


def main() -> int:
    """Prints the table; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an exported checkpoint")
    parser.add_argument("--batch_size", type=int, default=32, help="posts a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    inputs, gold = read_inputs()
    model: Any = ItaForTokenClassification.from_pretrained(args.model)
    processor = ItaProcessor.from_pretrained(args.model)
    pipes: dict[str, Any] = {"torch": ItaPipeline(model=model, processor=processor, device="cpu")}
    megabytes = {"torch": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("fp32", "int8"):
            export = export_onnx(model, processor, Path(folder) / name, int8=name == "int8")
            megabytes[f"onnx {name}"] = (export.int8_bytes or export.fp32_bytes) / 1e6
            onnx_model = OnnxItaForTokenClassification.from_pretrained(export.folder)
            pipes[f"onnx {name}"] = ItaPipeline(model=onnx_model, processor=processor, device="cpu")

        turns = [inputs[start : start + TURN] for start in range(0, len(inputs), TURN)]
        times: dict[str, list[float]] = {name: [] for name in pipes}
        for number in range(args.rounds + 1):
            spent = dict.fromkeys(pipes, 0.0)
            results: dict[str, list[Any]] = {name: [] for name in pipes}
            for turn in turns:
                for name, pipe in pipes.items():
                    taken, entities = seconds(
                        partial(pipe, turn, is_split_into_words=True, batch_size=args.batch_size)
                    )
                    spent[name] += taken
                    results[name] += map(found, entities)
            if number:  # the first round warms up
                for name in pipes:
                    times[name].append(spent[name])

    print(f"{len(inputs)} inputs, batches of {args.batch_size}, one CPU thread, median of {args.rounds} rounds\n")
    print(f"{'':<10} {'MB':>6} {'posts/s':>8} {'of torch':>9} {'F1':>6} {'other':>6} {'score':>8}")
    others: dict[str, int] = {}
    points = {name: f1(rows, gold) for name, rows in results.items()}
    for name, rows in results.items():
        ratio = statistics.median(a / b for a, b in zip(times["torch"], times[name], strict=True))
        pairs = list(zip(results["torch"], rows, strict=True))
        others[name] = sum(a.keys() != b.keys() for a, b in pairs)
        apart = max((abs(a[key] - b[key]) for a, b in pairs for key in a.keys() & b.keys()), default=0.0)
        speed = len(inputs) / statistics.median(times[name])
        print(
            f"{name:<10} {megabytes[name]:6.1f} {speed:8.0f} {ratio:9.2f} {points[name]:6.2f} {others[name]:6d} "
            f"{apart:8.1e}"
        )
    gap = abs(points["onnx int8"] - points["torch"])
    reached = not others["onnx fp32"] and gap < BAR
    print(
        f"\nfp32 differs in {others['onnx fp32']} of {len(inputs)} inputs (bar: 0), int8's F1 by {gap:.2f} points "
        f"(bar: below {BAR}): {'met' if reached else 'NOT met'}"
    )
    return int(not reached)


if __name__ == "__main__":
    sys.exit(main())
