"""The neighbours of words: exact whatever the blocks, the word itself left out, remembered, saved and read again."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertTokenizer, PreTrainedTokenizerFast

from modeling_ita.word_neighbours import WordNeighbours, nearest, whole_words

PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", ".", "!", "l", "##ing", "##s"),
    *("in", "london", "paris", "rome", "walk", "tonight", "2019"),
]
NAMES = ["in", "london", "paris", "rome", "walk", "tonight", "2019", "l"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(queries: torch.Tensor, vectors: torch.Tensor, count: int, excluded: torch.Tensor) -> torch.Tensor:
    unit = [torch.nn.functional.normalize(x.double()) for x in (queries, vectors)]
    cosines = (unit[0][:, None] * unit[1]).sum(2).float()
    cosines[torch.arange(len(queries)), excluded] = -2
    return cosines.sort(dim=1, descending=True, stable=True).indices[:, :count]


def small_table(count: int = 30, size: int = 8) -> WordNeighbours:
    return WordNeighbours([f"w{i}" for i in range(count)], draw(count, size), 4)


def wordpiece() -> BertTokenizer:
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)}, do_lower_case=True)


def byte_level() -> PreTrainedTokenizerFast:
    tokens = [
        "<s>",
        "</s>",
        "<unk>",
        *pre_tokenizers.ByteLevel.alphabet(),
        "in",
        "Ġi",
        "Ġin",
        "Ġr",
        "Ġro",
        "Ġrom",
        "Ġrome",
    ]
    merges = [("Ġ", "i"), ("Ġi", "n"), ("Ġ", "r"), ("Ġr", "o"), ("Ġro", "m"), ("Ġrom", "e"), ("i", "n")]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("blocks", [(4096, 2048), (7, 13), (50, 64), (3, 700), (64, 3), (1, 100)])
def test_blocks_of_any_size_give_what_brute_force_gives(blocks: tuple[int, int]) -> None:
    vectors = draw(700, 12).half()
    vectors[300:330] = vectors[5]  # ties among neighbours, and beyond a block's end
    vectors[640] = 2 * vectors[5]
    rows = torch.tensor([*range(20), *range(295, 320), 640, 699])
    found, cosines = nearest(vectors[rows].float(), vectors, 4, rows, query_block=blocks[0], word_block=blocks[1])
    assert torch.equal(found, brute_force(vectors[rows], vectors, 4, rows))
    expected = torch.nn.functional.cosine_similarity(vectors[rows].double()[:, None], vectors[found].double(), dim=2)
    torch.testing.assert_close(cosines.double(), expected, rtol=0, atol=1e-6)


def test_vectors_that_float32_cannot_tell_apart_are_ranked_as_in_float64() -> None:
    direction = torch.nn.functional.normalize(draw(1, 64).double())
    aside = torch.nn.functional.normalize(draw(200, 64, seed=1).double())
    vectors = direction + torch.linspace(0.03, 0.0301, 200).double()[:, None] * aside
    query, none = direction.float(), torch.tensor([-1])
    expected = brute_force(query, torch.cat([vectors, -vectors]), 9, torch.tensor([399]))
    found, _ = nearest(query, torch.cat([vectors, -vectors]), 9, none, word_block=70)
    assert torch.equal(found, expected)


def test_nearest_wants_more_words_than_neighbours() -> None:
    with pytest.raises(ValueError, match="4 neighbours were asked for among 4 words"):
        nearest(draw(1, 3), draw(4, 3), 4)


class Largest(TorchDispatchMode):
    """The most elements that any tensor made here has, views of others not counted."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            for tensor in made if isinstance(made, (list, tuple)) else [made]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("alike", [False, True])
def test_memory_does_not_grow_with_the_table(alike: bool) -> None:
    sizes = []
    for count in (2_000, 20_000):
        vectors = draw(count, 16) if not alike else draw(1, 16).expand(count, 16).contiguous()
        with Largest() as largest:
            nearest(vectors[:64], vectors, 4, torch.arange(64), query_block=64, word_block=128)
        sizes.append(largest.elements)
    assert sizes[1] <= max(sizes[0], 64 * 128 * 16)
    assert sizes[1] < 20_000 * 16


def test_mean_is_weighted_by_the_softmax_of_the_cosines() -> None:
    vectors = torch.tensor([[1.0, 0], [3, 1], [0, 2], [-1, 0]])
    found = WordNeighbours(["a", "b", "c", "d"], vectors, 2).look_up(["a"])
    cosines = torch.tensor([3 / 10**0.5, 0.0])
    assert torch.equal(found.vectors[0], vectors[1:3])
    torch.testing.assert_close(found.mean[0], cosines.softmax(0) @ vectors[1:3])
    assert found.mean.dtype == torch.float32 and found.mean.shape == (1, 2) and found.vectors.shape == (1, 2, 2)


def test_a_word_is_looked_up_as_written_then_lower_cased_and_only_that_entry_is_left_out() -> None:
    vectors = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0]])
    table = WordNeighbours(["apple", "Apple", "pear", "Pear's", "x"], vectors, 1)
    assert table.nearest_words("Apple")[0][0] == "apple"
    assert table.nearest_words("apple")[0][0] == "Apple"
    assert table.nearest_words("APPLE") == table.nearest_words("apple")
    assert table.nearest_words("PEAR")[0][0] == "Pear's"
    assert "Apple" in table and "APPLE" not in table


def test_unknown_words_are_zeros_and_named_as_such() -> None:
    table = small_table()
    found = table.look_up(["w1", "nowhere", "W2", "w1", "nowhere"])
    assert found.unknown.tolist() == [False, True, False, False, True]
    assert not found.mean[found.unknown].any() and not found.vectors[found.unknown].any()
    assert torch.equal(found.mean[0], found.mean[3]) and found.mean[0].any()
    empty = table.look_up([])
    assert empty.mean.shape == (0, 8) and empty.vectors.shape == (0, 4, 8) and empty.unknown.shape == (0,)
    assert table.nearest_words("nowhere") == []


def test_what_is_looked_up_does_not_depend_on_what_was_before() -> None:
    together = small_table().look_up([f"w{i}" for i in range(30)])
    table = small_table()
    for i in (17, 3, 29, 3, 0):
        alone = table.look_up([f"W{i}"])
        assert torch.equal(alone.mean[0], together.mean[i]) and torch.equal(alone.vectors[0], together.vectors[i])


def test_a_table_that_is_saved_and_read_again_gives_the_same(tmp_path: Path) -> None:
    table = small_table()
    words = ["w1", "W7", "nowhere", "w29"]
    table.search(words[:2])
    table.save_pretrained(tmp_path)
    again = WordNeighbours.from_pretrained(tmp_path)
    assert again.words == table.words and (again.size, again.neighbours) == (8, 4)
    for ours, theirs in zip(table.look_up(words), again.look_up(words), strict=True):
        assert torch.equal(ours, theirs)


def test_what_was_searched_ahead_is_no_search_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = small_table()
    table.search(["w1", "w2"])
    table.save_pretrained(tmp_path)
    again = WordNeighbours.from_pretrained(tmp_path)

    def refuse(queries: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError(f"{len(queries)} words were searched for")

    monkeypatch.setattr("modeling_ita.word_neighbours.nearest", refuse)
    assert again.look_up(["W1", "w2", "nowhere"]).unknown.tolist() == [False, False, True]
    with pytest.raises(AssertionError, match="1 words were searched for"):
        again.look_up(["w1", "w3"])


@pytest.mark.parametrize(
    ("words", "vectors", "message"),
    [
        (["a", "b", "a"], draw(3, 2), "'a' is in the table twice"),
        (["a", "b", "c"], draw(4, 2), "3 words have 4 vectors"),
        (["a", "b"], draw(2, 2), "2 neighbours were asked for among 2 words"),
        (["a", "b", "c"], draw(3), "expected words × size"),
        (["a", "b", "c"], torch.tensor([[1.0, 0], [0, 0], [1, 1]]), "'b' is zero"),
        (["a", "b", "c"], torch.tensor([[1.0, 0], [1, 0], [1, torch.nan]]), "'c' is not finite"),
        (["a", "b", "c"], torch.tensor([[1e6, 0], [1, 0], [1, 1]]), "'a' is not finite, or too large"),
    ],
)
def test_a_table_that_is_none_is_refused(words: list[str], vectors: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordNeighbours(words, vectors, 2)


def test_a_folder_without_or_with_a_damaged_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no word_neighbours\.safetensors"):
        WordNeighbours.from_pretrained(tmp_path)
    small_table().save_pretrained(tmp_path)
    file = tmp_path / "word_neighbours.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"word_neighbours\.safetensors cannot be read"):
        WordNeighbours.from_pretrained(tmp_path)


def test_whole_words_of_wordpiece_and_of_byte_level_bpe() -> None:
    assert set(whole_words(wordpiece()).values()) == set(NAMES)
    words = whole_words(byte_level())
    assert set(words.values()) == {"in", "i", "r", "ro", "rom", "rome"}
    assert all(byte_level().convert_ids_to_tokens(entry).startswith("Ġ") for entry in words)


@pytest.mark.parametrize("make", [wordpiece, byte_level])
def test_neighbours_from_an_encoder_are_whole_words_but_the_word_itself(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tokenizer = make()
    embeddings = draw(len(tokenizer), 6).half().float()
    table = WordNeighbours.from_encoder(tokenizer, embeddings, 3)
    entries = whole_words(tokenizer)
    assert set(table.words) == set(entries.values()) and table.size == 6
    unit = torch.nn.functional.normalize(embeddings)
    for word in ("rome", "in", "rin", "ini", "!"):
        pieces = [p for p in tokenizer.encode(f" {word}", add_special_tokens=False) if p != tokenizer.unk_token_id]
        if not pieces:
            continue
        others = [entry for entry in entries if [entry] != pieces]
        cosines = unit[others] @ torch.nn.functional.normalize(embeddings[pieces].mean(0), dim=0)
        expected = [entries[others[int(i)]] for i in cosines.topk(3).indices]
        assert [name for name, _ in table.nearest_words(word)] == expected
    words = ["rome", "rin", "!", "in"]
    table.save_pretrained(tmp_path)
    again = WordNeighbours.from_pretrained(tmp_path, tokenizer)
    for ours, theirs in zip(table.look_up(words), again.look_up(words), strict=True):
        assert torch.equal(ours, theirs)


def test_a_word_of_pieces_is_augmented_and_one_of_unknown_pieces_is_not() -> None:
    table = WordNeighbours.from_encoder(wordpiece(), draw(len(PIECES), 6), 3)
    found = table.look_up(["Walking", "LONDON", "london", "日本", "walks"])
    assert found.unknown.tolist() == [False, False, False, True, False]
    assert torch.equal(found.mean[1], found.mean[2])  # the tokenizer lower-cases
    assert not found.mean[3].any()


def test_words_of_pieces_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    table = WordNeighbours.from_encoder(wordpiece(), draw(len(PIECES), 6), 3)
    searched: list[int] = []

    def count(queries: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        searched.append(len(queries))
        return nearest(queries, *args, **kwargs)

    monkeypatch.setattr("modeling_ita.word_neighbours.nearest", count)
    monkeypatch.setattr("modeling_ita.word_neighbours.REMEMBERED", 2)
    before = table.look_up(["walking", "walks", "romes"])
    assert searched == [3]
    table.look_up(["walks", "romes"])
    assert searched == [3]
    assert torch.equal(table.look_up(["walking"]).mean[0], before.mean[0])
    assert searched == [3, 1]


def test_embeddings_of_another_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the encoder's own"):
        WordNeighbours.from_encoder(wordpiece(), draw(5, 6))
    WordNeighbours.from_encoder(wordpiece(), draw(len(PIECES), 6)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give tokenizer="):
        WordNeighbours.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give the encoder's own"):
        WordNeighbours.from_pretrained(tmp_path, byte_level())


def test_threads_share_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_ita.word_neighbours.REMEMBERED", 5)
    words = [f"w{n}" for n in range(50)]
    asked = [[words[n % 50], f"unknown{n % 40}", words[(n * 7) % 50].upper()] for n in range(200)]
    alone = WordNeighbours(words, draw(50, 8))
    expected = [alone.look_up(row).mean for row in asked]
    table = WordNeighbours(words, draw(50, 8))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda row: table.look_up(row).mean, asked))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_table_is_written_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WordNeighbours(["a", "b", "c"], draw(3, 4), 1).save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match=r"word_neighbours.safetensors cannot be written: .*No space left"):
            WordNeighbours(["d", "e", "f"], draw(3, 4), 1).save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}
