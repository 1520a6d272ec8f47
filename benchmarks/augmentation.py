"""The search for word neighbours: the words of a corpus against a large table of word vectors, on two CPU threads.

Vectors and words are random, the words being rows of the table that stand anywhere in it. Measured are the CPU time of
a thread, which other processes disturb less than the time on the wall, its share of what the bare float32 product
reaches, and by how much the process grows while it runs. Some of the words are searched for again by brute force in
float64; all of these must agree.

    python benchmarks/augmentation.py

The exit status is 1 if a bar is not met.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs where the project is not installed

from modeling_ita.word_neighbours import nearest

SECONDS = 120.0  # for 40,000 words against 1.2 million vectors of 200
GROWTH = 512.0  # MiB


def product_speed(size: int) -> float:
    """What the bare product of two blocks of 4,096 and 2,048 vectors reaches here, in GFLOP/s: the best of ten."""
    a, b = torch.randn(4096, size), torch.randn(2048, size)
    out = torch.empty(4096, 2048)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b.T, out=out)
        times.append(time.perf_counter() - start)
    return 2 * out.numel() * size / min(times) / 1e9


def brute_force(queries: torch.Tensor, vectors: torch.Tensor, count: int, excluded: torch.Tensor) -> torch.Tensor:
    """The rows `(n, count)` of the nearest vectors, from all cosines at once in float64."""
    unit = torch.nn.functional.normalize(queries.double())
    parts = [unit @ torch.nn.functional.normalize(part.double()).T for part in vectors.split(2**16)]
    cosines = torch.cat(parts, 1).float()
    cosines[torch.arange(len(queries)), excluded] = -2
    return cosines.topk(count).indices


def main() -> int:
    """Print the figures and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, default=1_200_000, help="vectors in the table (default 1,200,000)")
    parser.add_argument("--words", type=int, default=40_000, help="words that are searched for (default 40,000)")
    parser.add_argument("--size", type=int, default=200, help="dimensions of a vector (default 200)")
    parser.add_argument("--neighbours", type=int, default=4, help="neighbours of a word (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    vectors = torch.empty(arguments.table, arguments.size, dtype=torch.float16)
    for part in vectors.split(2**16):
        part.copy_(torch.randn(part.shape))
    rows = torch.randperm(arguments.table)[: arguments.words]
    queries = vectors[rows].float()
    speed = product_speed(arguments.size)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    found, _ = nearest(queries, vectors, arguments.neighbours, rows)
    seconds, wall = (time.process_time() - cpu_start) / arguments.threads, time.perf_counter() - start
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    work = 2 * arguments.table * arguments.words * arguments.size / 1e9
    print(f"{arguments.words:,} words against {arguments.table:,} × {arguments.size}, {arguments.threads} threads")
    print(f"    CPU time   {seconds:8.1f} s      bar {SECONDS:g} s")
    print(f"    wall       {wall:8.1f} s")
    print(f"    speed      {work / seconds:8.1f} GFLOP/s, the bare product {speed:.1f}")
    print(f"    memory    +{growth:8.1f} MiB    bar {GROWTH:g} MiB")
    sample = torch.arange(0, len(rows), max(1, len(rows) // 100))
    same = torch.equal(found[sample], brute_force(queries[sample], vectors, arguments.neighbours, rows[sample]))
    print(f"    {len(sample)} words by brute force: {'the same' if same else 'NOT the same'}")
    met = seconds <= SECONDS and growth <= GROWTH and same
    print("the bar is met" if met else "the bar is NOT met")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
