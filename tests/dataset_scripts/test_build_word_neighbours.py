"""Files of word vectors in all formats, malformed ones by their line, and the table of a corpus with its coverage."""

from __future__ import annotations

import gzip
import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_scripts.build_word_neighbours import augmentation_table, coverage, coverage_text, main
from dataset_scripts.word_vectors import read_word_vectors
from modeling_ita.word_neighbours import WordNeighbours

WORDS = ["the", "London", "paris", ". . .", "café", "z"]
VECTORS = np.arange(-9, 9).reshape(6, 3).astype(np.float32) / 4


def text(words: list[str] = WORDS, vectors: np.ndarray = VECTORS, end: str = "") -> str:
    return "".join(f"{w} {' '.join(map(str, v.tolist()))}{end}\n" for w, v in zip(words, vectors, strict=True))


def binary(words: list[str], vectors: np.ndarray, newline: bytes = b"\n") -> bytes:
    rows = [w.encode() + b" " + v.astype("<f4").tobytes() + newline for w, v in zip(words, vectors, strict=True)]
    return f"{len(words)} {vectors.shape[1]}\n".encode() + b"".join(rows)


@pytest.mark.parametrize(
    "content",
    [
        text().encode(),
        b"6 3\n" + text().encode(),
        b"6 3\n" + text(end=" ").encode(),
        b"6 3\r\n" + text(end="\r").encode(),
        gzip.compress(text().encode()),
    ],
    ids=["glove", "word2vec", "fasttext", "carriage returns", "gzip"],
)
def test_text_formats_give_the_same(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vectors").write_bytes(content)
    read = read_word_vectors(tmp_path / "vectors")
    assert read.words == WORDS and np.array_equal(read.vectors, VECTORS) and read.read == 6 and not read.left_out


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_binary_format_of_word2vec(tmp_path: Path, newline: bytes) -> None:
    words = [f"w{i}" for i in range(3000)]  # over a megabyte, so that words lie across what is read at once
    vectors = np.random.default_rng(0).standard_normal((3000, 100)).astype(np.float16).astype(np.float32)
    (tmp_path / "vectors.bin").write_bytes(binary(words, vectors, newline))
    read = read_word_vectors(tmp_path / "vectors.bin")
    assert read.words == words and np.array_equal(read.vectors, vectors)


def test_binary_vector_that_begins_with_a_newline_byte(tmp_path: Path) -> None:
    vectors = np.frombuffer(b"\n\x00\x00\x3f" * 3 + b"\x00\x00\x80\x3f" * 3, "<f4").reshape(2, 3)
    (tmp_path / "vectors.bin").write_bytes(binary(["the", "of"], vectors))
    read = read_word_vectors(tmp_path / "vectors.bin")
    assert read.words == ["the", "of"] and np.allclose(read.vectors, vectors, atol=1e-3)


def test_fasttext_model(tmp_path: Path) -> None:
    fasttext = pytest.importorskip("gensim.models.fasttext")
    posts = [["paris", "london", "rome"], ["paris", "london"], ["paris"]]
    model = fasttext.FastText(posts, vector_size=8, min_count=1, bucket=20, epochs=1, workers=1, seed=0)
    fasttext.save_facebook_model(model, str(tmp_path / "model.bin"))
    read = read_word_vectors(tmp_path / "model.bin")
    assert read.words == ["paris", "london", "rome"]
    assert np.allclose(read.vectors[0], model.wv["paris"], atol=1e-3)


def test_fasttext_model_without_gensim_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.bin").write_bytes(b"\xba\x16\x4f\x2f\x0c\x00\x00\x00")
    monkeypatch.setitem(__import__("sys").modules, "gensim.models.fasttext", None)
    with pytest.raises(ImportError, match="pip install gensim"):
        read_word_vectors(tmp_path / "model.bin")


def test_wanted_words_are_taken_wherever_they_stand_and_of_others_the_first(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text(text(), encoding="utf-8")
    assert read_word_vectors(tmp_path / "vectors", {"z", "paris"}, 1).words == ["the", "paris", "z"]
    assert read_word_vectors(tmp_path / "vectors", {"z", "absent"}, 0).words == ["z"]
    assert read_word_vectors(tmp_path / "vectors", {"the"}, 2).words == ["the", "London", "paris"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    content = b"the 1 2\nthe 3 4\npad 0 0\n\xff\xfe 1 2\n 1 2\nof 5 6\n"
    (tmp_path / "vectors").write_bytes(content)
    read = read_word_vectors(tmp_path / "vectors")
    assert read.words == ["the", "of"] and read.vectors.tolist() == [[1, 2], [5, 6]] and read.read == 6
    assert read.left_out == {"repeated": 1, "zero": 1, "not_utf8": 1, "nameless": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: it is empty"),
        (b"3 4\n", "ends after 0 of the 3 words"),
        (b"a 1 2\nb 1\n", "line 2: 'b' has 1 numbers .expected 2"),
        (b"2 3\na 1 2 3\nb 5\n", "line 3: 'b' has 1 numbers .expected 3"),
        (b"2 3\na 1 2\nb 1 2\n", "line 2: 'a' has 2 numbers .expected 3"),
        (b"a 1 2\nb 1 2 3\n", "line 2: 'b 1' has 3 numbers .expected 2"),
        (b"a 1 2\nb 1 x\n", "line 2: could not convert"),
        (b"a 1 2\nb 1 nan\n", "line 2: 'b' has a number that is not finite"),
        (b"a 1 2\nb 1 70000\n", "line 2: 'b' has a number that is not finite, or above"),
        (b"3 2\na 1 2\nb 1 2\n", "ends after 2 of the 3 words"),
        (b"1 2\na 1 2\nb 1 2\n", "line 3: the header promises 1 words"),
        (b"0 2\n", "line 1: it promises 0 words"),
        (b"6.5 3\na 1 2 3\n", "line 1: '6.5 3' is not a header"),
        (b"words and no numbers\n", "line 1: expected the numbers of words"),
        (b"PK\x03\x04zip", "is a zip archive: unpack it"),
        (binary(["a", "b"], VECTORS[:2])[:-5], "ends within word 2 of 2"),
        (binary(["a", "b"], VECTORS[:2]) + b"more", "bytes follow the 2 words"),
        (b"3" + binary(["a", "b"], VECTORS[:2])[1:], "ends after 2 of the 3 words"),
        (binary(["a", "b"], np.array([[1, np.inf], [1, 2]])), "word 1: 'a' has a number that is not finite"),
        (b"2 2\n" + b"x" * 20_001 + b"\x00" * 9, "ends within word 1 of 2|no end of it is found"),
        (gzip.compress(text().encode() * 50)[:-9], "not a complete gzip file"),
    ],
)
def test_malformed_files_are_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vectors").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_word_vectors(tmp_path / "vectors")
    assert str(tmp_path / "vectors") in str(error.value)


def test_table_of_a_corpus_has_its_words_in_both_cases_and_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text(text(), encoding="utf-8")
    corpus = {"train": Counter({"Paris": 2, "London": 1}), "test": Counter({"café": 1, "Nowhere": 3})}
    table, read = augmentation_table(corpus, tmp_path / "vectors", 1, 2)
    assert table.words == ["the", "London", "paris", "café"]
    expected = WordNeighbours(["the", "London", "paris", "café"], torch.from_numpy(VECTORS[[0, 1, 2, 4]]), 2)
    assert torch.equal(table.look_up(["Paris", "the"]).mean, expected.look_up(["paris", "the"]).mean)
    report = coverage(corpus, table, read)
    assert report["splits"] == {
        "train": {
            "words": {"all": 2, "as_written": 1, "lower_cased": 1, "unknown": 0},
            "tokens": {"all": 3, "as_written": 1, "lower_cased": 2, "unknown": 0},
            "first_unknown": [],
        },
        "test": {
            "words": {"all": 2, "as_written": 1, "lower_cased": 0, "unknown": 1},
            "tokens": {"all": 4, "as_written": 1, "lower_cased": 0, "unknown": 3},
            "first_unknown": ["Nowhere"],
        },
    }
    assert report["table"] == {"words": 4, "size": 3, "neighbours": 2, "words_in_file": 6, "left_out": {}}
    assert "test, tokens                   4         1 ( 25.0%)" in coverage_text(report)
    assert "test, unknown: Nowhere" in coverage_text(report)
    with pytest.raises(ValueError, match="too few for 4 neighbours"):
        augmentation_table(corpus, tmp_path / "vectors", 0)


def test_command_line_writes_table_and_coverage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.txt").write_text("IMGID:1\nparis B-LOC\nTHE O\n\n".replace(" ", "\t"), encoding="utf-8")
    (corpus / "test.txt").write_text("IMGID:2\nunseen O\nLondon B-LOC\n\n".replace(" ", "\t"), encoding="utf-8")
    (tmp_path / "vectors").write_text(text(), encoding="utf-8")
    command = [str(corpus), "--vectors", str(tmp_path / "vectors"), "--output", str(tmp_path / "out")]
    assert main([*command, "--max_words", "2"]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "coverage.txt").read_text(encoding="utf-8") == printed
    report = json.loads((tmp_path / "out" / "coverage.json").read_text(encoding="utf-8"))
    assert report["splits"]["test"]["first_unknown"] == ["unseen"]
    assert report["splits"]["train"]["words"] == {"all": 2, "as_written": 1, "lower_cased": 1, "unknown": 0}
    table = WordNeighbours.from_pretrained(tmp_path / "out")
    assert table.words == ["the", "London", "paris", ". . .", "café"]
    assert table.look_up(["The", "CAFÉ", "unseen"]).unknown.tolist() == [False, False, True]


def test_command_line_takes_the_sample_posts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vectors").write_text(text(), encoding="utf-8")
    assert main(["sample_posts", "--vectors", str(tmp_path / "vectors"), "--output", str(tmp_path / "out")]) == 0
    assert "validation, tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample_posts", "--vectors", "nowhere.txt"], "nowhere.txt"),
        (["nowhere", "--vectors", "nowhere.txt"], "there is no folder nowhere"),
        (["nowhere", "--data_dir", "x", "--vectors", "v"], "give it or --data_dir, not both"),
        (["sample_posts", "--vectors", "v", "--max_words", "-1"], "--max_words is -1"),
    ],
)
def test_command_line_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"9" * 5_000 + b" 3\nthe 1 2 3\n", "line 1"),
        (b"1 " + b"9" * 5_000 + b"\n", "line 1"),
        (b"3 999999999\nthe 1 2 3\n", "999,999,999 numbers"),
        (b"-1 3\nthe 1 2 3\n", "line 1"),
        (b"the 1 2\nof 1 nan\n", "line 2"),
        (b"the 1 2\nof 1 1e99\n", "line 2"),
        (b"the 1 2\n" + b"x" * 2**21 + b" 1 2\n", "line 2"),
        (b"\x00" * 100, "line 1"),
        (b"\x1f\x8b" + b"\x00" * 30, "gzip"),
        (b"PK\x03\x04rest", "zip archive"),
    ],
)
def test_damaged_vectors_are_refused_by_their_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vectors").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_word_vectors(tmp_path / "vectors")
    assert str(tmp_path / "vectors") in str(caught.value) and len(str(caught.value)) < 400


def test_a_fasttext_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    pytest.importorskip("gensim.models.fasttext")
    header = struct.pack("<14i d 3i 2q", 793712314, 12, 300, *[5] * 7, 2**30, 3, 6, 100, 1e-4, 2**30, 2**30, 0, 9, 0)
    (tmp_path / "model.bin").write_bytes(header + bytes(100))
    with pytest.raises(ValueError, match="not a complete fastText model: it announces"):
        read_word_vectors(tmp_path / "model.bin")
