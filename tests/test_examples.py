from __future__ import annotations

from collections import Counter

import pytest
import torch

from dataset_scripts.examples import epoch_batches


@pytest.mark.parametrize(("posts", "batch_size"), [(1, 4), (7, 4), (64, 16), (103, 16), (200, 3)])
def test_an_epoch_takes_every_post_once_in_batches_of_nearly_one_size(posts: int, batch_size: int) -> None:
    lengths = [(i * 37) % 50 for i in range(posts)]
    batches = epoch_batches(lengths, batch_size, seed=1, epoch=0)
    assert Counter(i for batch in batches for i in batch) == Counter(range(posts))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_batches_hold_posts_of_similar_length() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (2000,), generator=generator).tolist()
    batches = epoch_batches(lengths, 16, seed=1, epoch=0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = list(range(40))
    assert epoch_batches(lengths, 4, 1, 0) == epoch_batches(lengths, 4, 1, 0)
    assert epoch_batches(lengths, 4, 1, 0) != epoch_batches(lengths, 4, 1, 1)
    assert epoch_batches(lengths, 4, 1, 0) != epoch_batches(lengths, 4, 2, 0)
