"""The pictures of a post: none, one or several, and their tensors side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def pictures_of(image: Any) -> list[Any]:
    """The pictures of one post, given none (None), one, or several (a list or tuple).

    A picture of a list may itself be None; it keeps its place.
    """
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]


def side_by_side(posts: Sequence[Sequence[torch.Tensor | None]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pictures of B posts in one tensor, and which of them exist.

    Args:
        posts: by post, a tensor of the same shape for every picture, or None for one that cannot be used.

    Returns:
        If no post has more than one picture: whether a post has one `(B,)`, and the pictures `(B, …)`. Otherwise, with
        M pictures in the post that has most: which pictures exist `(B, M)`, and the pictures `(B, M, …)`. Zeros stand
        for pictures that do not exist. If none exists, the second tensor is None.
    """
    most = max([1, *map(len, posts)])
    rows = [[*post, *[None] * (most - len(post))] for post in posts]
    exists = torch.tensor([[one is not None for one in row] for row in rows], dtype=torch.bool).reshape(-1, most)
    shape = next((one.shape for row in rows for one in row if one is not None), None)
    if shape is None:
        return exists if most > 1 else exists[:, 0], None
    nothing = torch.zeros(shape)
    flat = torch.stack([nothing if one is None else one for row in rows for one in row])  # (B * M, …)
    return (exists, flat.unflatten(0, (-1, most))) if most > 1 else (exists[:, 0], flat)
