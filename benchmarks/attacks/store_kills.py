"""Kills a build of visual contexts by two processes with SIGKILL, again and again: nothing that was kept is lost.

    python benchmarks/attacks/store_kills.py
    python benchmarks/attacks/store_kills.py --kills 3 --images 60

The build is that of `benchmarks/visual_context.py --only kill`, smaller. It holds if the run after the last kill ends
with the contexts of all images, if no image was looked at twice but those in flight, if no shard is damaged, and if
nothing half written is left in the store or beside the output. Every kill counts as an attempt, and the final run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from visual_context import measure_kills


def main() -> int:
    """Prints the figures; returns 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--images", type=int, default=100, help="how many (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        found = measure_kills(scratch, args.kills, args.images, batch_size=2)
        half = [path for path in scratch.rglob(".*") if path.name.endswith((".tmp", ".lock"))]
        damaged = list(scratch.rglob("*.damaged"))
    print(", ".join(f"{what}: {figure}" for what, figure in found.items()))
    faults = [f"left behind: {path}" for path in half] + [f"damaged: {path}" for path in damaged]
    faults += [f"{what}: {found[what]}" for what in ("complete", "rows", "readable") if found[what] != args.images]
    if found["looked at twice"] > found["in flight at most"]:
        faults.append(f"looked at twice: {found['looked at twice']}")
    print("\n".join(faults))
    tried = args.kills + 1
    failed = min(len(faults), tried)
    print(f"tried {tried}, held {tried - failed}, failed {failed}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
