from __future__ import annotations

import threading
import time

import pytest

from modeling_ita.image_file import in_threads


def test_results_are_in_the_order_of_the_items() -> None:
    both = threading.Barrier(2, timeout=20)  # passes only if two items are processed at the same time

    def meet(item: int) -> int:
        both.wait()
        return item * item

    assert in_threads(meet, [3, 1, 2, 5], 2) == [9, 1, 4, 25]
    assert in_threads(meet, [3, 1, 2, 5], 2, cost=float) == [9, 1, 4, 25]
    assert in_threads(meet, [], 2) == []


def test_the_costliest_start_first() -> None:
    started = []
    first = threading.Event()

    def start(item: int) -> int:
        started.append(item)
        if item == 9:
            first.wait(20)
        elif item == 1:
            first.set()
        return item

    assert in_threads(start, [1, 9, 4, 6], 2, cost=float) == [1, 9, 4, 6]
    assert started[0] == 9 and started[1:] == [6, 4, 1]


@pytest.mark.parametrize(("items", "threads"), [([1, 2, 3], 1), ([1], 8)])
def test_no_thread_is_started_for_one_thread_or_item(items: list[int], threads: int) -> None:
    assert set(in_threads(lambda item: threading.get_ident(), items, threads)) == {threading.get_ident()}


def test_the_first_error_is_raised_and_the_rest_is_left_out() -> None:
    done = []
    before = threading.active_count()

    def fail(item: int) -> None:
        done.append(item)
        if item > 3:
            time.sleep(0.01)
        if item >= 2:
            raise ValueError(f"item {item}")

    for threads in (1, 3):
        with pytest.raises(ValueError, match=r"^item 2$"):
            in_threads(fail, list(range(1, 1000)), threads)
    assert done[:2] == [1, 2]
    assert len(done) < 500
    assert threading.active_count() == before
