"""`LinearChainCRF` against the package pytorch-crf, on one CPU thread.

Measured are the log-likelihood with its backward pass (gradients of emissions and of all scores) and decoding, on
random emissions, for batches in which every post has N words (these carry the bar) and for ragged ones, with lengths
drawn evenly from 1 to N. The two take turns of five runs in one process; a figure is the median CPU time of a run,
which other processes disturb less than the time on the wall. Before anything is timed, likelihoods, gradients and
decoded tags must agree.

    python benchmarks/crf.py --repeats 20

The exit status is 1 if a ratio is below its bar.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torchcrf

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs where the project is not installed

from modeling_ita.crf import LinearChainCRF


class Batch(NamedTuple):
    """Random posts: emissions `(B, N, C)`, tags `(B, N)`, mask `(B, N)`."""

    emissions: torch.Tensor
    tags: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def draw(cls, posts: int, words: int, tags: int, ragged: bool) -> Batch:
        """A batch of `posts` with up to (if `ragged`) or exactly `words` words."""
        lengths = torch.randint(1, words + 1, (posts,)) if ragged else torch.full((posts,), words)
        lengths[0] = words
        emissions = torch.randn(posts, words, tags, requires_grad=True)
        return cls(emissions, torch.randint(0, tags, (posts, words)), torch.arange(words) < lengths[:, None])


def median_times(*tasks: Callable[[], object], repeats: int) -> list[float]:
    """The median CPU time of every task in milliseconds, the tasks taking turns of five runs, `repeats` turns each."""
    times: list[list[float]] = [[] for _ in tasks]
    for turn in range(repeats + 1):
        for task, record in zip(tasks, times, strict=True):
            for _ in range(5):
                start = time.process_time()
                task()
                if turn:  # the first turn warms up
                    record.append(1000 * (time.process_time() - start))
    return [statistics.median(record) for record in times]


def compare_likelihood(theirs: torchcrf.CRF, ours: LinearChainCRF, batch: Batch, repeats: int) -> list[float]:
    """Times of log-likelihood and backward pass, theirs and ours."""

    def gradients(likelihood: torch.Tensor, module: torchcrf.CRF | LinearChainCRF) -> list[torch.Tensor]:
        inputs = [batch.emissions, module.transitions, module.start_transitions, module.end_transitions]
        return [likelihood.detach(), *torch.autograd.grad(likelihood, inputs)]

    def their_turn() -> list[torch.Tensor]:
        return gradients(theirs(*batch), theirs)

    def our_turn() -> list[torch.Tensor]:
        return gradients(ours.log_likelihood(*batch).sum(), ours)

    for expected, actual in zip(their_turn(), our_turn(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)
    return median_times(their_turn, our_turn, repeats=repeats)


@torch.no_grad()
def compare_decoding(theirs: torchcrf.CRF, ours: LinearChainCRF, batch: Batch, repeats: int) -> list[float]:
    """Times of decoding, theirs and ours."""
    emissions, _, mask = batch
    tags, _ = ours.decode(emissions, mask)
    if [row[row >= 0].tolist() for row in tags] != theirs.decode(emissions, mask):
        raise AssertionError("the decoded tags differ")
    return median_times(lambda: theirs.decode(emissions, mask), lambda: ours.decode(emissions, mask), repeats=repeats)


def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="turns of five timed runs for each task (default 20)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    rows = [  # task, (posts, words, tags), bar
        ("likelihood + backward", compare_likelihood, (32, 40, 21), 4.0),
        ("decode", compare_decoding, (32, 40, 21), 2.5),
        ("decode", compare_decoding, (256, 40, 9), 6.0),
    ]
    met = True
    print(f"{'task':<22} {'posts×words×tags':<17} {'lengths':<8} {'pytorch-crf':>12} {'ours':>9} {'ratio':>7}   bar")
    for task, compare, shape, bar in rows:
        theirs, ours = torchcrf.CRF(shape[2], batch_first=True), LinearChainCRF(shape[2])
        ours.load_state_dict(theirs.state_dict())
        for ragged in (False, True):
            slow, fast = compare(theirs, ours, Batch.draw(*shape, ragged=ragged), arguments.repeats)
            verdict = "" if ragged else f"{bar:g}× {'met' if slow / fast >= bar else 'NOT MET'}"
            met = met and "NOT" not in verdict
            size, lengths = "×".join(map(str, shape)), "ragged" if ragged else "full"
            print(f"{task:<22} {size:<17} {lengths:<8} {slow:9.2f} ms {fast:6.2f} ms {slow / fast:6.1f}×   {verdict}")
    print("the bar is met" if met else "the bar is NOT met")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
