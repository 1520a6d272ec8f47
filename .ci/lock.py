"""Turns what pip would install into a lock file: `pip install --dry-run --report - … | python .ci/lock.py > FILE`.

A line holds a package, its exact version and the sha256 of the one file that pip chose, a wheel for Linux on x86-64
and Python 3.11 or an archive of sources. Where the file comes from is pip's matter and stands nowhere.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

HEAD = "# Made by `make lock`: what CI installs, for Linux on x86-64 and Python 3.11. Do not edit."


def locked(report: dict[str, Any]) -> list[str]:
    """The lines of the lock file, in the order of the packages' names; the project itself is none of them."""
    lines = []
    for package in report["install"]:
        if "dir_info" in package["download_info"]:  # the project itself
            continue
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={package['metadata']['version']} --hash=sha256:{sha256}")
    return sorted(lines)


if __name__ == "__main__":
    print("\n".join([HEAD, *locked(json.load(sys.stdin))]))
