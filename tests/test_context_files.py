from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_scripts.context_files import named_aligners, recorded_aligners
from dataset_scripts.examples import read_examples
from dataset_scripts.mner import MnerDataset
from modeling_ita import TagScheme


def test_aligners_are_named_with_the_very_settings_that_made_the_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    origin = {"model": "reader", "revision": "1.0", "settings": {"min_score": 0.6, "share": 0.3, "side": 320}}
    other = {**origin, "settings": {"min_score": 0.7}}
    sources = [origin, origin, other, {"model": "scene"}]
    ids = range(len(sources))
    (tmp_path / "train.txt").write_text("\n".join(f"IMGID:{n}\nParis\tB-LOC\n" for n in ids))
    rows = [
        {"id": str(n), "ocr": ["SALE"], "captions": ["x"], "provenance": {"ocr": sources[n], "captions": sources[-1]}}
        for n in ids
    ]
    (tmp_path / "contexts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = MnerDataset(config_name="conll", data_dir=str(tmp_path), context_files=[str(tmp_path / "contexts.jsonl")])
    corpus.download_and_prepare()
    scheme = TagScheme.from_types(["LOC"])
    posts = read_examples(corpus.as_dataset()["train"], scheme, scheme)
    recorded = recorded_aligners(post.context for post in posts)
    assert recorded == {"ocr": origin, "captions": {"model": "scene"}}
    assert named_aligners(recorded) == {"ocr": origin}
