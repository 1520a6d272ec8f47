"""One function over many items in several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
    cost: Callable[[Item], float] | None = None,
) -> list[Result]:
    """Calls a function on every item, several at the same time, and returns the results in the order of the items.

    The threads end with the call, so that a process forked later has no part of them.

    Args:
        function: pays only if it releases the GIL, as decoders and numerical libraries do.
        items: its arguments.
        threads: how many items at a time; 1: no thread is started.
        cost: what an item takes, in any unit. The costliest start first, so that no thread ends long after the others.

    Raises:
        Exception: what `function` raised at the first item, in their order, at which it raised. Items that have not
            started by then are left out.
    """
    if threads < 2 or len(items) < 2:
        return [function(item) for item in items]
    order = list(range(len(items)))
    if cost is not None:
        costs = [cost(item) for item in items]
        order.sort(key=lambda n: -costs[n])
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        futures = {n: pool.submit(function, items[n]) for n in order}
        try:
            return [futures[n].result() for n in range(len(items))]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
