from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attacks import attack

from dataset_scripts.corpus.conll import CorpusFault
from dataset_scripts.corpus.context_files import read_contexts, write_contexts
from dataset_scripts.corpus.examples import read_examples
from dataset_scripts.mner import MnerDataset
from modeling_ita import TagScheme
from modeling_ita.visual_context import VisualContext, named_aligners, recorded_aligners


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


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a", "ocr": ["SALE"]}\r\n')
    assert read_contexts([tmp_path / "c.jsonl"]) == {"a": VisualContext({"ocr": ["SALE"]})}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "b", "ocr": ' + "[" * 100_000, "brackets are nested too deeply"),
        ('{"id": "b", "provenance": ' + '{"a":' * 100_000 + "1" + "}" * 100_001, "brackets are nested too deeply"),
        (r'{"id": "b", "ocr": ["x \ud83d"]}', "half of a surrogate pair is not a character"),
        ('{"id": "b", "ocr": ["x"], "ocr": []}', 'the key "ocr" is there twice'),
        ('{"id": "b", "ocr": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ('{"id": "b", "ocr": "' + "x" * 5000 + '"}', "must be a list of strings"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "a", "ocr": ["SALE"]}\n\n' + line)
    with pytest.raises(CorpusFault, match=rf"c.jsonl, line 3: .*{problem}") as raised:
        read_contexts([tmp_path / "c.jsonl"])
    assert len(str(raised.value)) < 1000
    faults: list[CorpusFault] = []
    assert list(read_contexts([tmp_path / "c.jsonl"], faults)) == ["a"] and len(faults) == 1


def test_a_flipped_bit_in_parquet_is_no_other_string(tmp_path: Path) -> None:
    file = tmp_path / "c.parquet"
    write_contexts(file, {str(n): VisualContext({"ocr": [f"SALE {n}"]}) for n in range(50)})
    content = bytearray(file.read_bytes())
    content[content.index(b"SALE") + 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorpusFault, match=r"c.parquet is not a Parquet file: .*CRC"):
        read_contexts([file])


def test_mutated_corpora_and_contexts_load_or_are_refused() -> None:
    module = attack("corpora")
    assert module.attack_corpora(100, 1000) == []
    assert module.attack_contexts(40, 1000) == []


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_two_builds_with_one_output(tmp_path: Path, name: str) -> None:
    builds = [{f"{n}": VisualContext({"ocr": [f"{who} {n}"]}) for n in range(300 + who)} for who in range(2)]

    def write(turn: int) -> None:
        write_contexts(tmp_path / name, builds[turn % 2])
        assert read_contexts([tmp_path / name]) in builds

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(24)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
