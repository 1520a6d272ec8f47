"""What `ItaPipeline` costs beside its encoder: posts per second on text alone, against the bare encoder.

    python benchmarks/pipeline.py

All contenders label, or only encode, the same short posts on one CPU thread. They take turns in one process, every 16
batches, so that whatever slows the machine down slows all of them down:

- `bare encoder`: its forward pass alone, called on batches sorted by length that were tokenized before the clock ran;
- `ItaPipeline`: everything from the strings to the entities with their posteriors;
- `stock pipeline`: transformers' `TokenClassificationPipeline` on the same encoder with a linear head, for comparison.

The posts are random draws from the sample corpus, the encoder is MiniLM-L6, all heads are random. A figure is the
median of the CPU times of the rounds, a ratio the median of the rounds' ratios. The second table adds the time to load
model and tokenizer. The exit status is 1 if `ItaPipeline` is below 0.85 of the bare encoder.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, BertForTokenClassification, TokenClassificationPipeline, pipeline
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs where the project is not installed

from dataset_scripts.sample_posts import SAMPLE_POSTS
from dataset_scripts.sample_posts.corpus import read_posts
from hub_card.hub.exported_folder import export_model
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, TagScheme
from modeling_ita.packaged_encoder import MINILM, encoder_folder
from modeling_ita.pipeline_ita import LOOK_AHEAD

BAR = 0.85
LABELS = TagScheme.from_types(["PER", "LOC", "ORG", "MISC"]).labels


def draw_posts(count: int) -> list[str]:
    """Random draws from the sample corpus, one or two of its posts each."""
    corpus = [" ".join(post.words) for split in read_posts(SAMPLE_POSTS / "posts.yaml").values() for post in split]
    draw = random.Random(0)
    return [" ".join(draw.choices(corpus, k=draw.choice((1, 2)))) for _ in range(count)]


def load_bare_encoder(encoder: str, posts: list[str], batch_size: int) -> list[Callable[[], Any]]:
    """The forward pass of the encoder, and nothing else, over batches of similar length."""
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    posts = sorted(posts, key=lambda post: len(tokenizer(post)["input_ids"]), reverse=True)
    batches = [tokenizer(chunk, padding=True, return_tensors="pt") for chunk in _chunks(posts, batch_size)]

    @torch.inference_mode()
    def run(batches: list[Any]) -> None:
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    return [partial(run, turn) for turn in _chunks(batches, LOOK_AHEAD)]


def load_ita(folder: Path, posts: list[str], batch_size: int) -> list[Callable[[], Any]]:
    """`ItaPipeline` over the posts as a list of strings."""
    pipe = pipeline("token-classification", model=str(folder), pipeline_class=ItaPipeline, device="cpu")
    return [partial(pipe, turn, batch_size=batch_size) for turn in _chunks(posts, LOOK_AHEAD * batch_size)]


def load_stock(encoder: str, posts: list[str], batch_size: int) -> list[Callable[[], Any]]:
    """The built-in pipeline over the posts as a list of strings, grouped."""
    model = BertForTokenClassification.from_pretrained(
        encoder, num_labels=len(LABELS), id2label=dict(enumerate(LABELS))
    )
    pipe = TokenClassificationPipeline(
        model=model, tokenizer=AutoTokenizer.from_pretrained(encoder), aggregation_strategy="simple", device="cpu"
    )
    return [partial(pipe, turn, batch_size=batch_size) for turn in _chunks(posts, LOOK_AHEAD * batch_size)]


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of one call, and what it returned."""
    start = time.process_time()
    result = task()
    return time.process_time() - start, result


def main() -> int:
    """Prints both tables; returns 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=MINILM, help="text encoder, of BERT's family (default: %(default)s)")
    parser.add_argument("--posts", type=int, default=1500, help="number of posts (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="posts a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    encoder, posts = encoder_folder(args.encoder), draw_posts(args.posts)
    with tempfile.TemporaryDirectory() as folder:
        model = ItaForTokenClassification.from_text_encoder(encoder, LABELS)
        checkpoint = export_model(model, ItaProcessor(AutoTokenizer.from_pretrained(encoder)), Path(folder) / "model")
        loaded = {
            "bare encoder": seconds(lambda: load_bare_encoder(encoder, posts, args.batch_size)),
            "ItaPipeline": seconds(lambda: load_ita(checkpoint, posts, args.batch_size)),
            "stock pipeline": seconds(lambda: load_stock(encoder, posts, args.batch_size)),
        }
    times: dict[str, list[float]] = {name: [] for name in loaded}
    for number in range(args.rounds + 1):
        spent = dict.fromkeys(loaded, 0.0)
        for turns in zip(*(turns for _, turns in loaded.values()), strict=True):
            for name, turn in zip(loaded, turns, strict=True):
                spent[name] += seconds(turn)[0]
        if number:  # the first round warms up
            for name in loaded:
                times[name].append(spent[name])

    print(f"{args.posts} posts, batches of {args.batch_size}, one CPU thread, median of {args.rounds} rounds")
    for title, extra in (("", 0), ("loading included", 1)):
        print(f"\n{title:<16} {'posts/s':>8} {'of the bare encoder':>20}")
        totals = {name: [extra * loaded[name][0] + spent for spent in rounds] for name, rounds in times.items()}
        for name, rounds in totals.items():
            ratio = statistics.median(b / t for b, t in zip(totals["bare encoder"], rounds, strict=True))
            print(f"{name:<16} {args.posts / statistics.median(rounds):8.0f} {ratio:20.2f}")
    reached = statistics.median(b / t for b, t in zip(times["bare encoder"], times["ItaPipeline"], strict=True))
    verdict = "met" if reached >= BAR else "NOT met"
    print(f"\nItaPipeline reaches {reached:.2f} of the bare encoder (bar: {BAR}): {verdict}")
    return int(reached < BAR)


if __name__ == "__main__":
    sys.exit(main())
