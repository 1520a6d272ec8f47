from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from dataset_scripts.corpus.examples import epoch_batches, read_examples
from dataset_scripts.mner import MnerDataset
from modeling_ita import TagScheme


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


def test_images_are_named_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(
        "IMGID:1\nParis\tB-LOC\n\nIMGID:2\nhi\tO\n\nIMGID:3\nhi\tO\n", encoding="utf-8"
    )
    (tmp_path / "images").mkdir()
    Image.effect_noise((40, 30), 80).save(tmp_path / "images" / "1.png")
    (tmp_path / "images" / "2.png").write_bytes(b"damaged")
    corpus = MnerDataset(
        cache_dir=str(tmp_path / "cache"), config_name="conll", data_dir=tmp_path, images_dir=tmp_path / "images"
    )
    corpus.download_and_prepare()
    rows = corpus.as_dataset()["train"]
    given = TagScheme(rows.features["tags"].feature.names)
    examples = read_examples(rows, given, TagScheme(["O", "S-LOC", "B-LOC", "I-LOC", "E-LOC"]), with_images=True)
    assert [example.image for example in examples] == [str(tmp_path / "images" / "1.png"), None, None]
    assert [example.tags for example in examples] == [[1], [0], [0]]
    assert all(example.image is None for example in read_examples(rows, given, given))
