"""Semantic augmentation (method §2): the nearest neighbours of a word among pretrained word vectors."""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .checkpoint_files import read_header, read_object, reading
from .whole_files import written_file

TENSORS_FILE, WORDS_FILE = "word_neighbours.safetensors", "word_neighbours.json"
REMEMBERED = 100_000  # words outside the table whose neighbours are cached
QUERIES = 65_536  # words per search

_QUERY_BLOCK, _WORD_BLOCK = 4096, 2048
_CHUNK = 64  # words of which only the best score is checked at first
_CANDIDATES = 2**21  # scores that are checked individually in one step
_PRODUCTS = 2**20  # numbers multiplied in float64 in one step
_NONE, _EXCLUDED = -2.0, -4.0  # below every cosine


class Augmentation(NamedTuple):
    """The neighbours of n words (m neighbours per word, vectors of size a).

    Attributes:
        mean: `(n, a)` float32, the mean of the neighbours' vectors, weighted by the softmax of their cosines.
        vectors: `(n, m, a)` float32, the vectors themselves, nearest first.
        unknown: `(n,)` boolean, true for unknown words, whose vectors are zeros.
    """

    mean: torch.Tensor
    vectors: torch.Tensor
    unknown: torch.Tensor


class _Neighbours(NamedTuple):
    rows: tuple[int, ...]
    cosines: tuple[float, ...]


def nearest(
    queries: torch.Tensor,
    vectors: torch.Tensor,
    count: int,
    excluded: torch.Tensor | None = None,
    *,
    query_block: int = _QUERY_BLOCK,
    word_block: int = _WORD_BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the nearest vectors by cosine. The result is exact and does not depend on the block sizes.

    Blocks are multiplied in float32; candidates within its rounding error of the best so far are rescored in float64.
    Cosines that are equal in float32 are ties, which the first rows win. Memory, besides the queries in float32 and
    the result: one block of either side, their scores and at most 2²¹ candidates, about 0.3 GB for vectors of size 200
    however many rows there are.

    Args:
        queries: `(n, a)`, all nonzero.
        vectors: `(V, a)` of any floating type, all nonzero.
        count: m, less than V.
        excluded: `(n,)`, for each query a row that cannot be its neighbour, or -1.
        query_block: queries per matrix product.
        word_block: rows per matrix product.

    Returns:
        The rows `(n, m)` as int64 and their cosines `(n, m)` as float32, nearest first.

    Raises:
        ValueError: there are not more than `count` rows.
    """
    if not 0 < count < len(vectors):
        raise ValueError(f"{count} neighbours were asked for among {len(vectors)} words (expected fewer, at least 1)")
    n, size = queries.shape
    if excluded is None:
        excluded = torch.full((n,), -1)
    norms = _norms(queries, query_block)
    unit = queries.float() / norms.float()[:, None]
    rows, cosines = torch.full((n, count), -1), torch.full((n, count), _NONE)
    slack = 4 * (size + 8) * torch.finfo(torch.float32).eps  # more than twice the rounding error of a float32 cosine
    width = -(-min(word_block, len(vectors)) // _CHUNK) * _CHUNK
    scores = torch.empty(min(query_block, n), width)
    for start in range(0, len(vectors), word_block):
        words = vectors[start : start + word_block]  # (w, a)
        word_norms = _norms(words, word_block)
        padded = unit.new_zeros(width, size)
        padded[: len(words)] = words.float() / word_norms.float()[:, None]
        for first in range(0, n, query_block):
            part = slice(first, first + query_block)
            block = torch.mm(unit[part], padded.T, out=scores[: len(unit[part])])  # (q, width)
            block[:, len(words) :] = _EXCLUDED
            column = excluded[part] - start
            inside = ((column >= 0) & (column < len(words))).nonzero()[:, 0]
            block[inside, column[inside]] = _EXCLUDED
            chunks = block.view(len(block), -1, _CHUNK)  # (q, c, chunk)
            best = chunks.amax(2)  # (q, c)
            improved = (best.amax(1) >= cosines[part, -1] - slack).nonzero()[:, 0]
            for hit in improved.split(max(1, _CANDIDATES // width)):
                limit = cosines[part][hit, -1]
                if best.shape[1] >= count:  # the best of m chunks are m words
                    limit = torch.maximum(limit, best[hit].topk(count).values[:, -1])
                limit = limit - slack
                query, chunk = (best[hit] >= limit[:, None]).nonzero(as_tuple=True)
                pair, column = (chunks[hit[query], chunk] >= limit[query, None]).nonzero(as_tuple=True)
                query, column = hit[query[pair]] + first, chunk[pair] * _CHUNK + column
                exact = _dot(queries, words, query, column) / (norms[query] * word_norms[column])
                _merge(rows, cosines, hit + first, query, column + start, exact.float())
    return rows, cosines


def _norms(vectors: torch.Tensor, block: int) -> torch.Tensor:
    """The norms `(n,)` in float64."""
    return torch.cat([part.double().square().sum(1).sqrt() for part in vectors.split(block)])


def _dot(left: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The products `(p,)` of pairs of rows in float64, independent of a pair's position in a block."""
    step = max(1, _PRODUCTS // left.shape[1])
    pairs = zip(rows.split(step), others.split(step), strict=True)
    return torch.cat([(left[i].double() * right[j].double()).sum(1) for i, j in pairs])


def _merge(
    rows: torch.Tensor,
    cosines: torch.Tensor,
    hit: torch.Tensor,
    query: torch.Tensor,
    found: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Merge candidates, sorted by query `(p,)` and row, into the best so far of the queries `hit`, in place."""
    count = rows.shape[1]
    # The best so far have lower rows than the candidates, so stable sorts keep ties in row order.
    owner = torch.cat([hit.repeat_interleave(count), query])
    found = torch.cat([rows[hit].flatten(), found])
    scores = torch.cat([cosines[hit].flatten(), scores])
    order = scores.sort(descending=True, stable=True).indices
    order = order[owner[order].sort(stable=True).indices]
    _, sizes = owner[order].unique_consecutive(return_counts=True)
    best = order[(sizes.cumsum(0) - sizes)[:, None] + torch.arange(count)]  # (hit, m)
    rows[hit], cosines[hit] = found[best], scores[best]


_nearest_lock = threading.Lock()  # a row of neighbours and its cosines are written and read together


def _renew_lock() -> None:
    global _nearest_lock
    _nearest_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a process forked while another thread has it would wait for it forever
    os.register_at_fork(after_in_child=_renew_lock)


class WordNeighbours:
    """A table of words with vectors, which finds the nearest neighbours of any word.

    A word is looked up as written, then lower-cased. Its neighbours are the m entries with the highest cosine,
    excluding only the entry that was looked up. The result of a search is cached.

    Args:
        words: V distinct words, the most frequent first: earlier words win ties.
        vectors: `(V, a)`, kept in float16.
        neighbours: m, the number of neighbours per word.

    Raises:
        ValueError: a word is a duplicate, the numbers of vectors and words differ or do not exceed m, or a vector is
            zero, not finite or too large for float16.
    """

    def __init__(self, words: Sequence[str], vectors: torch.Tensor, neighbours: int = 4) -> None:
        self._set_table(words, vectors, neighbours)
        if len(self._vectors) != len(self.words):
            raise ValueError(f"{len(self.words)} words have {len(self._vectors)} vectors (expected as many)")

    def _set_table(self, words: Sequence[str], vectors: torch.Tensor, neighbours: int) -> None:
        self.words = list(words)
        self.neighbours = neighbours
        self._row = {word: row for row, word in enumerate(self.words)}
        if len(self._row) != len(self.words):
            twice = next(word for row, word in enumerate(self.words) if self._row[word] != row)
            raise ValueError(f"the word {twice!r} is in the table twice (expected distinct words)")
        if vectors.ndim != 2:
            raise ValueError(f"the vectors have the shape {tuple(vectors.shape)} (expected words × size)")
        if not 0 < neighbours < min(len(words), len(vectors)):
            raise ValueError(
                f"{neighbours} neighbours were asked for among {min(len(words), len(vectors))} words "
                "(expected fewer than words, at least 1)"
            )
        self._vectors = vectors.detach().to("cpu", torch.float16).contiguous()
        self.size = self._vectors.shape[1]
        # -1: the neighbours of an entry have not been searched yet.
        self._nearest = torch.full((len(words), neighbours), -1, dtype=torch.int32)
        self._nearest_cosines = torch.zeros(len(words), neighbours)
        self._remembered: dict[str, _Neighbours | None] = {}
        largest = torch.cat([part.float().abs().amax(1) for part in self._vectors.split(_QUERY_BLOCK)])
        for bad, why in ((~largest.isfinite(), "is not finite, or too large for float16"), (largest == 0, "is zero")):
            bad = bad[: len(words)] if why == "is zero" else bad  # zero vectors of subwords add nothing
            if bad.any():
                row = int(bad.nonzero()[0])
                name = repr(self.words[row]) if row < len(words) else f"piece {row}"
                raise ValueError(f"the vector of {name} {why}: leave the word out")

    @classmethod
    def from_encoder(cls, tokenizer: Any, embeddings: torch.Tensor, neighbours: int = 4) -> WordNeighbours:
        """Builds a table from an encoder's own input embeddings, for use without word vectors.

        Its words are the vocabulary entries that are whole words to the tokenizer: no special tokens, unused entries,
        punctuation or continuation subwords. Any other word gets the mean of its subwords' vectors, so that every word
        is augmented unless all its subwords are unknown.

        Args:
            tokenizer: the encoder's.
            embeddings: `(V', d)`, the vectors of the tokenizer's entries by id, as in `get_input_embeddings().weight`.
            neighbours: m, the number of neighbours per word.

        Raises:
            ValueError: there are fewer vectors than entries, a vector is not finite, or too few entries are words.
        """
        if embeddings.ndim != 2 or len(embeddings) < len(tokenizer):
            raise ValueError(
                f"the embeddings have the shape {tuple(embeddings.shape)}, the tokenizer {len(tokenizer)} entries: "
                "give the encoder's own"
            )
        entries = whole_words(tokenizer)
        has_direction = (embeddings.detach().to(torch.float16) != 0).any(1).tolist()
        entries = {entry: word for entry, word in entries.items() if has_direction[entry]}
        order = [*entries, *(entry for entry in range(len(embeddings)) if entry not in entries)]
        row_of_entry = torch.empty(len(order), dtype=torch.int32)
        row_of_entry[order] = torch.arange(len(order), dtype=torch.int32)
        vectors = embeddings.detach()[torch.tensor(order, device=embeddings.device)]
        return _EncoderNeighbours(list(entries.values()), vectors, neighbours, row_of_entry, tokenizer)

    def __contains__(self, word: str) -> bool:
        """Whether the table contains this word, exactly as written."""
        return word in self._row

    def look_up(self, words: Sequence[str]) -> Augmentation:
        """Returns the augmentation of words; equal words have equal rows.

        Args:
            words: n words, in any order, with repetitions.
        """
        found = self._find(list(dict.fromkeys(words)))
        known = [i for i, word in enumerate(words) if found[word] is not None]
        neighbours = [found[words[i]] for i in known]
        vectors = torch.zeros(len(words), self.neighbours, self.size)
        mean = torch.zeros(len(words), self.size)
        unknown = torch.ones(len(words), dtype=torch.bool)
        if known:
            unknown[known] = False
            rows = torch.tensor([n.rows for n in neighbours if n is not None])  # (k, m)
            weights = torch.tensor([n.cosines for n in neighbours if n is not None]).softmax(1)
            vectors[known] = self._vectors[rows].float()
            mean[known] = (weights[..., None] * vectors[known]).sum(1)
        return Augmentation(mean, vectors, unknown)

    def nearest_words(self, word: str) -> list[tuple[str, float]]:
        """The neighbours of a word with their cosines, nearest first; an empty list if the word is unknown."""
        found = self._find([word])[word]
        return [] if found is None else [(self.words[r], c) for r, c in zip(found.rows, found.cosines, strict=True)]

    def search(self, words: Sequence[str]) -> None:
        """Find the neighbours of words in advance, so that later look-ups need no search.

        `save_pretrained` saves those of the table's own words.
        """
        self._find(list(dict.fromkeys(words)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the table and the neighbours found so far: `word_neighbours.safetensors` and `….json`.

        Raises:
            OSError: the folder cannot be written; the message names the file.
        """
        folder = Path(folder)
        searched = (self._nearest[:, 0] >= 0).nonzero()[:, 0]
        tensors = {
            "vectors": self._vectors,
            "searched": searched.int(),
            "nearest": self._nearest[searched],
            "cosines": self._nearest_cosines[searched],
            **self._more_tensors(),
        }
        words = json.dumps({"neighbours": self.neighbours, "words": self.words}, ensure_ascii=False)
        # Both are complete before the first is moved into place, so that no table gets the words of another.
        with written_file(folder / WORDS_FILE) as words_file, written_file(folder / TENSORS_FILE) as tensors_file:
            words_file.write_text(words, encoding="utf-8")
            importlib.import_module("safetensors.torch").save_file(tensors, tensors_file)

    @staticmethod
    def from_pretrained(folder: str | Path, tokenizer: Any = None) -> WordNeighbours:
        """Read a table that `save_pretrained` wrote.

        Args:
            folder: the folder that contains it.
            tokenizer: the encoder's, for a table of its embeddings; other tables ignore it.

        Raises:
            FileNotFoundError: there is no table in the folder.
            ValueError: the table is damaged, or needs a tokenizer.
        """
        folder = Path(folder)
        for name in (TENSORS_FILE, WORDS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {name} (expected a folder that WordNeighbours.save_pretrained wrote)"
                )
        with reading(folder, WORDS_FILE):
            words, neighbours = _saved_words(read_object(folder / WORDS_FILE))
        with reading(folder, TENSORS_FILE):
            read_header(folder / TENSORS_FILE)
            tensors: Mapping[str, torch.Tensor] = importlib.import_module("safetensors.torch").load_file(
                folder / TENSORS_FILE
            )
            _check_tensors(tensors, len(words), neighbours)
        vectors = tensors["vectors"]
        searched, found, cosines = tensors["searched"].long(), tensors["nearest"], tensors["cosines"]
        if "row_of_entry" in tensors:
            if tokenizer is None:
                raise ValueError(f"{folder} holds an encoder's embeddings: give tokenizer=…, the encoder's own")
            if len(tokenizer) > len(tensors["row_of_entry"]):
                raise ValueError(
                    f"the tokenizer has {len(tokenizer)} entries, the embeddings in {folder} "
                    f"{len(tensors['row_of_entry'])}: give the encoder's own"
                )
            with reading(folder, TENSORS_FILE):
                table: WordNeighbours = _EncoderNeighbours(
                    words, vectors, neighbours, tensors["row_of_entry"], tokenizer
                )
        else:
            with reading(folder, TENSORS_FILE):
                table = WordNeighbours(words, vectors, neighbours)
        table._nearest[searched], table._nearest_cosines[searched] = found, cosines
        return table

    def _more_tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def _places(self, words: list[str]) -> list[int | torch.Tensor | None]:
        """For every word its row in the table; without a row, its vector `(a,)`; None for unknown words."""
        return [self._row.get(word, self._row.get(word.lower())) for word in words]

    def _find(self, words: list[str]) -> dict[str, _Neighbours | None]:
        """The neighbours of distinct words, None for unknown ones."""
        remembered = self._remembered
        found: dict[str, _Neighbours | None] = {w: remembered[w] for w in words if w in remembered}
        new = [word for word in words if word not in found]
        places = dict(zip(new, self._places(new), strict=True))
        rows = {word: place for word, place in places.items() if isinstance(place, int)}
        vectors = {word: place for word, place in places.items() if isinstance(place, torch.Tensor)}
        self._search_rows(sorted(set(rows.values())))
        own = torch.tensor(list(rows.values()), dtype=torch.long)
        with _nearest_lock:
            all_nearby, all_cosines = self._nearest[own].tolist(), self._nearest_cosines[own].tolist()
        for word, nearby, cosines in zip(rows, all_nearby, all_cosines, strict=True):
            found[word] = _Neighbours(tuple(nearby), tuple(cosines))
        others: dict[str, _Neighbours | None] = {word: None for word, place in places.items() if place is None}
        others |= self._search_vectors(vectors)
        found |= others
        self._remember(others)
        return found

    def _search_rows(self, rows: list[int]) -> None:
        own = torch.tensor(rows, dtype=torch.long)
        with _nearest_lock:
            new = own[self._nearest[own, 0] < 0]
        for part in new.split(QUERIES) if len(new) else ():
            table = self._vectors[: len(self.words)]
            found, cosines = nearest(self._vectors[part].float(), table, self.neighbours, part)
            with _nearest_lock:
                self._nearest[part], self._nearest_cosines[part] = found.int(), cosines

    def _search_vectors(self, vectors: dict[str, torch.Tensor]) -> dict[str, _Neighbours]:
        found: dict[str, _Neighbours] = {}
        words = list(vectors)
        for first in range(0, len(words), QUERIES):
            part = words[first : first + QUERIES]
            queries = torch.stack([vectors[word] for word in part])
            rows, cosines = nearest(queries, self._vectors[: len(self.words)], self.neighbours)
            for word, nearby, near in zip(part, rows.tolist(), cosines.tolist(), strict=True):
                found[word] = _Neighbours(tuple(nearby), tuple(near))
        return found

    def _remember(self, found: Mapping[str, _Neighbours | None]) -> None:
        if found:
            remembered = self._remembered | dict(found)  # a new dictionary: other threads may be reading the old one
            for word in list(remembered)[: max(0, len(remembered) - REMEMBERED)]:  # the oldest
                del remembered[word]
            self._remembered = remembered


class _EncoderNeighbours(WordNeighbours):
    """The table of an encoder's embeddings: the first V vectors are those of words, the others those of subwords."""

    def __init__(
        self,
        words: Sequence[str],
        vectors: torch.Tensor,
        neighbours: int,
        row_of_entry: torch.Tensor,
        tokenizer: Any,
    ) -> None:
        self._set_table(words, vectors, neighbours)
        self._row_of_entry = row_of_entry
        self._tokenizer = tokenizer

    def _more_tensors(self) -> dict[str, torch.Tensor]:
        return {"row_of_entry": self._row_of_entry}

    def _places(self, words: list[str]) -> list[int | torch.Tensor | None]:
        return [self._place(entries) for entries in _entries_of_words(self._tokenizer, words)]

    def _place(self, entries: list[int]) -> int | torch.Tensor | None:
        rows = self._row_of_entry[[entry for entry in entries if entry != self._tokenizer.unk_token_id]].long()
        if len(rows) == 1 and rows[0] < len(self.words):
            return int(rows[0])
        # In float64, so that the vector is the same whatever the order in which the subwords are summed.
        mean = self._vectors[rows].double().mean(0).float()
        return mean if len(rows) and mean.any() else None


def _saved_words(saved: Mapping[str, Any]) -> tuple[list[str], int]:
    """The words and the number of neighbours of a saved table."""
    words, neighbours = saved.get("words"), saved.get("neighbours")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words is not a list of strings")
    if type(neighbours) is not int or not 0 < neighbours < len(words):
        raise ValueError(f"neighbours is {neighbours!r:.60} (expected fewer than the {len(words):,} words)")
    return words, neighbours


def _check_tensors(tensors: Mapping[str, torch.Tensor], words: int, neighbours: int) -> None:
    """Rejects the tensors of a table if they do not fit the numbers of words and neighbours."""
    names = ("vectors", "searched", "nearest", "cosines")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"there is no {missing[0]} in it (expected {', '.join(names)})")
    vectors, searched, nearest, cosines = (tensors[name] for name in names)
    rows = len(searched) if searched.dim() == 1 else -1
    if vectors.dim() != 2 or len(vectors) < words or not vectors.is_floating_point():
        raise ValueError(
            f"vectors is {tuple(vectors.shape)}, {vectors.dtype} (expected one for each of {words:,} words)"
        )
    if not nearest.shape == cosines.shape == (rows, neighbours):
        raise ValueError(f"nearest is {tuple(nearest.shape)} (expected {neighbours} for each of {rows:,} words)")
    places = [("searched", searched, words), ("nearest", nearest, words)]
    if "row_of_entry" in tensors:
        places.append(("row_of_entry", tensors["row_of_entry"], len(vectors)))
    for name, rows_of, most in places:
        if rows_of.is_floating_point() or rows_of.dtype == torch.bool:
            raise ValueError(f"{name} is of {rows_of.dtype} (expected integers)")
        if rows_of.numel() and not (int(rows_of.min()) >= 0 and int(rows_of.max()) < most):
            raise ValueError(f"{name} holds rows that are not among the {most:,}")
    if not cosines.is_floating_point() or not cosines.isfinite().all():
        raise ValueError("cosines holds numbers that are not finite")


def whole_words(tokenizer: Any) -> dict[int, str]:
    """The vocabulary entries that are whole words, by id: the tokenizer encodes the word on its own as that one entry.

    Excludes special tokens, entries without a letter or digit, and subwords that occur only inside words. This holds
    for WordPiece and for byte-level BPE, where a word on its own begins with a space.
    """
    special = set(tokenizer.all_special_ids)
    entries = [entry for entry in range(len(tokenizer)) if entry not in special]
    texts = [text.strip() for text in tokenizer.batch_decode([[entry] for entry in entries])]
    words = [(e, text) for e, text in zip(entries, texts, strict=True) if any(c.isalnum() for c in text)]
    made = _entries_of_words(tokenizer, [text for _, text in words])
    return {entry: text for (entry, text), pieces in zip(words, made, strict=True) if pieces == [entry]}


def _entries_of_words(tokenizer: Any, words: list[str]) -> list[list[int]]:
    if not words:
        return []
    return tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
