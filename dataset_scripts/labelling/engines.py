"""Where shards are labelled: in this process, in several processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from dataset_scripts.labelling.shards import Shard, ShardLabeller

Counts = dict[str, Any]
Progress = Callable[[int, int], None]
"""Takes the rows and the pictures that are done since the last call."""
ATTEMPTS = 2  # at a shard whose process died, before it is labelled row by row
MOST_DEATHS = 20  # of processes, at one shard
POLL = 0.5  # seconds
BLOCKS = 1000  # of Ray


def in_this_process(work: ShardLabeller, shards: Sequence[Shard], progress: Progress) -> Iterator[Counts]:
    """Labels shard after shard; yields the counts of each.

    Args:
        work: what is done with a shard.
        shards: the shards.
        progress: is told what is done.
    """
    work.watch = progress
    for shard in shards:
        yield work(shard)


def in_processes(work: ShardLabeller, shards: Sequence[Shard], progress: Progress, workers: int) -> Iterator[Counts]:
    """Labels shards in several processes, which share the threads of torch; yields the counts as they come.

    A process that dies, such as one that the system stops because memory runs out, is replaced, and its shard begun
    anew: alone, so that it is known which one it was, and the third time row by row, so that a row that kills its
    process costs that row.

    Args:
        work: what is done with a shard.
        shards: the shards.
        progress: is told what is done.
        workers: the number of processes.

    Raises:
        OSError: processes die without end.
    """
    context = _context()
    work.labeller.threads = work.labeller.threads or max(1, torch.get_num_threads() // workers)
    # Written without a lock, each process in places of its own: one that is killed holds nothing.
    done = context.RawArray("q", 2 * 1024)
    places = context.Value("i", 0)
    waiting, suspects, died = deque(shards), 0, 0  # the first ones of `waiting` may have killed a process
    careful: set[Shard] = set()
    told = [0, 0]

    def tell() -> None:
        now = [sum(done[side::2]) for side in (0, 1)]
        progress(now[0] - told[0], now[1] - told[1])
        told[:] = now

    while waiting:
        running: dict[Future[Counts], Shard] = {}
        with ProcessPoolExecutor(workers, context, _begin, (work, done, places)) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < (1 if suspects else workers + 1):
                        shard = waiting.popleft()
                        running[pool.submit(_label, shard, shard in careful)] = shard
                    finished, _ = wait(running, POLL, FIRST_COMPLETED)
                    tell()
                    for future in finished:
                        counts = future.result()
                        del running[future]
                        suspects, died = max(suspects - 1, 0), 0
                        yield counts
            except BrokenProcessPool:
                again = sorted(running.values())
                died += len(again) == 1
                if died >= ATTEMPTS:
                    careful.add(again[0])
                if died == MOST_DEATHS:
                    raise OSError(
                        f"the process that labels rows {again[0].start:,} to {again[0].stop:,} has died {died} times: "
                        "is there too little memory? (fewer --num_workers, a smaller --batch_size)"
                    ) from None
                suspects = max(suspects, len(again))
                waiting.extendleft(reversed(again))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(getattr(pool, "_processes", None) or {}.values()):
                    process.terminate()
                raise


def _context() -> Any:
    """How processes begin: as copies of one that has loaded the code and begun no thread, for a forked torch hangs."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def on_ray(
    work: ShardLabeller,
    shards: Sequence[Shard],
    progress: Progress,
    workers: int,
    address: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[Counts]:
    """Labels shards by Ray Data, with a pool of actors; yields the counts as they come.

    Every actor reads its shard, labels it and writes it: no row passes through the driver. Ray restarts an actor that
    dies, and has its shard labelled again.

    Args:
        work: what is done with a shard; source, output and store must be on file systems that all machines see.
        shards: the shards.
        progress: is told what is done.
        workers: the number of actors.
        address: the cluster, `"auto"` or `"ray://…"`. Default: the one of `RAY_ADDRESS`, or a new one on this machine.
        cpus: cores of an actor, and its threads.
        gpus: GPUs of an actor.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise ImportError(f'--engine ray needs Ray Data: pip install "ita-mner[ray]" ({error})') from error
    work.labeller.threads = work.labeller.threads or max(1, int(cpus))
    is_ours = not ray.is_initialized()
    if is_ours:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None and not os.environ.get("RAY_ADDRESS"):
            settings |= {"num_cpus": max(os.cpu_count() or 1, round(workers * cpus)), "include_dashboard": False}
        ray.init(address, **settings)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = ray.data.from_items([shard._asdict() for shard in shards], override_num_blocks=min(len(shards), BLOCKS))
        made = rows.map_batches(
            RayShards,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in made.iter_rows():
            counts = json.loads(row["counts"])
            progress(counts["rows"], counts["images_read"])
            yield counts
    finally:
        if is_ours:
            ray.shutdown()


class RayShards:
    """A `ShardLabeller` as an actor of Ray Data."""

    def __init__(self, work: ShardLabeller) -> None:
        transformers_logging.disable_progress_bar()
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The counts of the shards of a batch."""
        names = Shard._fields
        shards = [Shard(*map(int, values)) for values in zip(*(batch[name] for name in names), strict=True)]
        # One that is there was labelled before the actor died that had it among others.
        known = [self.work.output.read_counts(shard.number) for shard in shards]
        made = [self.work(shard) if there is None else there for shard, there in zip(shards, known, strict=True)]
        return {"counts": list(map(json.dumps, made))}


_work: ShardLabeller | None = None


def _begin(work: ShardLabeller, done: Any, places: Any) -> None:
    """Prepares a process."""
    global _work
    transformers_logging.disable_progress_bar()
    with places.get_lock():
        place = places.value % (len(done) // 2)
        places.value += 1

    def watch(rows: int, images: int) -> None:
        done[2 * place] += rows
        done[2 * place + 1] += images

    work.watch = watch
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        with suppress(Exception):
            parent.join()
        os._exit(1)


def _label(shard: Shard, careful: bool) -> Counts:
    assert _work is not None
    return _work(shard, careful)
