"""Flips single bits of a shard of a store: no wrong string is ever read, and what is lost is aligned again.

    python benchmarks/attacks/bit_flips.py
    python benchmarks/attacks/bit_flips.py --flips 200

Half of the flips come before the store is opened, half after it has seen the shard. An attempt holds if every look-up
gives what was written or nothing, the shard is named and set aside where it gives nothing, and the rows that are then
added are read by the next store.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs where the project is not installed

from dataset_scripts.contexts.context_store import ContextStore
from modeling_ita.context_builder import Alignment

IDENTITY = {"model": "reader", "revision": "1", "settings": {"min_score": 0.5}}
ROWS = 40


def rows() -> dict[str, Alignment]:
    """What an aligner has said of some images."""
    draw = random.Random(0)
    origin = {**IDENTITY, "date": "2026-01-02T03:04:05+00:00"}
    said = {}
    for number in range(ROWS):
        strings = [" ".join(draw.choices(["OPEN", "24 h", "ü", "a dog", "SALE"], k=4)) for _ in range(number % 4)]
        key = hashlib.sha256(str(number).encode()).hexdigest()
        said[key] = Alignment(strings, [round(draw.random(), 3) for _ in strings], origin)
    return said


def fault(folder: Path, position: int, is_seen: bool) -> str:
    """What goes wrong if this bit of a shard is flipped; empty if nothing does.

    Args:
        folder: an empty folder.
        position: the bit, taken modulo the size of the shard.
        is_seen: whether a store has seen the shard before.
    """
    written = rows()
    ContextStore(folder).add("ocr", written)
    (shard,) = folder.glob("*/*/*.parquet")
    store = ContextStore(folder)
    if is_seen and store.rows("ocr", IDENTITY) != len(written):
        return "the whole shard was not read"
    content = bytearray(shard.read_bytes())
    content[position // 8 % len(content)] ^= 1 << position % 8
    shard.write_bytes(content)
    try:
        read = {key: store.look_up(key, "ocr", IDENTITY) for key in written}
        wrong = [key for key, found in read.items() if found is not None and found != written[key]]
        lost = [key for key, found in read.items() if found is None]
        if wrong:
            return f"{read[wrong[0]]} was read for {written[wrong[0]]}"
        if lost and not (store.damaged and all(place.exists() for place in store.damaged) and not shard.exists()):
            return "rows are lost, and no shard is set aside"
        store.add("ocr", {key: written[key] for key in lost})
        again = ContextStore(folder)
        if {key: again.look_up(key, "ocr", IDENTITY) for key in written} != written or again.damaged:
            return "what was aligned again is not read"
        again.compact()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def attack(flips: int) -> list[str]:
    """The faults of so many flips, spread over the whole shard."""
    draw = random.Random(1)
    found = []
    for number in range(flips):
        with tempfile.TemporaryDirectory() as folder:
            position = draw.randrange(2**40)
            said = fault(Path(folder), position, bool(number % 2))
            found += [f"bit {position}: {said}"] if said else []
    return found


def main() -> int:
    """Prints the figures; returns 1 if an attempt failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000, help="how many (default: %(default)s)")
    args = parser.parse_args()
    logging.getLogger("dataset_scripts.contexts.context_store").setLevel(logging.ERROR)  # a warning for each
    found = attack(args.flips)
    print("\n".join(found[:20]))
    print(f"tried {args.flips}, held {args.flips - len(found)}, failed {len(found)}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
