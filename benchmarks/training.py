"""What the CRF, the two views and the alignment cost in a training step.

    python benchmarks/training.py

A step of ITA (both views, L_T + L_I+T + L_CVA, forward and backward) against the bare encoder's forward and backward
over the same two batches, each padded to its own longest row. Both run in turn in one process on one thread; the
ratio is the median over the pairs. The bar is 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoTokenizer

from modeling_ita.modeling_ita import ItaForTokenClassification
from modeling_ita.packaged_encoder import MINILM, encoder_folder
from modeling_ita.processing_ita import ItaProcessor
from modeling_ita.tag_scheme import TagScheme

BAR = 1.15


def seconds(step: Callable[[], None]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> int:
    """Prints the ratio; returns 1 if it misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=MINILM, help="text encoder (default: %(default)s)")
    parser.add_argument("--posts", type=int, default=16, help="posts a batch (default: %(default)s)")
    parser.add_argument("--words", type=int, default=20, help="words of the longest post (default: %(default)s)")
    parser.add_argument("--context", type=int, default=15, help="words of context a post (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of steps (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    folder = encoder_folder(args.encoder)
    scheme = TagScheme.from_types(["PER", "LOC", "ORG", "MISC"])
    model = ItaForTokenClassification.from_text_encoder(folder, scheme.labels).train()
    processor = ItaProcessor(AutoTokenizer.from_pretrained(folder))
    lengths = [args.words - i % 5 for i in range(args.posts)]  # neighbours in length, as training batches are
    batch = processor(
        [["word"] * n for n in lengths],
        [{"captions": ["man " * args.context]}] * args.posts,
        views="both",
        is_split_into_words=True,
        labels=[[i % len(scheme) for i in range(n)] for n in lengths],
    )

    def ita() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()

    def bare_encoder() -> None:
        model.zero_grad(set_to_none=True)
        for view in ("", "cross_"):
            inputs = {"input_ids": batch[f"{view}input_ids"], "attention_mask": batch[f"{view}attention_mask"]}
            model.encoder(**inputs).last_hidden_state.sum().backward()

    for warm_up in (ita, bare_encoder):
        warm_up()
    pairs = [(seconds(ita), seconds(bare_encoder)) for _ in range(args.repeats)]
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    rows = batch["input_ids"].shape[1], batch["cross_input_ids"].shape[1]
    print(f"{args.posts} posts, {rows[0]} pieces in view T, {rows[1]} in view I+T, one thread")
    print(f"ITA step      {statistics.median(a for a, _ in pairs):.3f} s")
    print(f"bare encoder  {statistics.median(b for _, b in pairs):.3f} s")
    print(f"ratio         {ratio:.3f} (bar: at most {BAR})")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
