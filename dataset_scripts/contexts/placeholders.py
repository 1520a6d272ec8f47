"""Finds placeholders: one image saved under many ids because an archive had no image for them (method §7).

Placeholders are images of mostly one colour, such as "no longer available" on grey. A captioner invents captions for
them, so they count as missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

COPIES = 10  # ids that share a plain picture before it counts as a placeholder
SAME = 0.2  # share of marked fields that may differ; copies differ by 0.02 to 0.1, other texts by 0.4 or more
NOISE = 6  # of 255; brightness noise from compression on an even background


def placeholder_groups(fingerprints: Sequence[str], copies: int = COPIES) -> list[list[int]]:
    """Group the images that are the same placeholder.

    Args:
        fingerprints: the `plain_fingerprint` of every id's image; empty if it has none.
        copies: the number of ids from which an image counts as a placeholder; 0: no image does.

    Returns:
        For each placeholder, the positions of its copies in order; the most frequent placeholder first.
    """
    if not copies:
        return []
    groups: dict[str, list[int]] = {}
    for place, fingerprint in enumerate(fingerprints):
        if fingerprint:
            groups.setdefault(fingerprint, []).append(place)
    # Group equal fingerprints, most frequent first, so that each near copy joins the group of its original.
    distinct = sorted(groups, key=lambda fingerprint: (-len(groups[fingerprint]), groups[fingerprint]))
    shapes = np.array([int(fingerprint[:2], 16) for fingerprint in distinct], dtype=np.int16)
    marks = np.array([_marks(fingerprint) for fingerprint in distinct]).reshape(-1, 1024)  # (pictures, 32 · 32)
    leaders: list[int] = []
    members: dict[int, list[int]] = {}
    for number in range(len(distinct)):
        similar = [leader for leader in leaders if abs(shapes[leader] - shapes[number]) <= 1]
        if similar:
            distance = np.abs(marks[similar] - marks[number]).sum(1)
            ink = (np.abs(marks[similar]).sum(1) + np.abs(marks[number]).sum()) / 2
            share = np.where(ink > 0, distance / np.maximum(ink, 1e-9), 0.0)
            best = int(share.argmin())
            if share[best] <= SAME:
                members[similar[best]].append(number)
                continue
        leaders.append(number)
        members[number] = [number]
    found = [sorted(place for n in members[leader] for place in groups[distinct[n]]) for leader in leaders]
    return sorted((group for group in found if len(group) >= copies), key=lambda group: (-len(group), group))


def _marks(fingerprint: str) -> np.ndarray:
    """How much brighter each of 32 × 32 fields is than the background; 0 where this may be noise."""
    fields = np.frombuffer(bytes.fromhex(fingerprint[2:]), dtype=np.uint8).astype(np.float32)
    depths = fields - np.median(fields)
    return np.where(np.abs(depths) > NOISE, depths, 0)
