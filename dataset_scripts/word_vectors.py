"""Reads pretrained word vectors: word2vec (text, binary), GloVe, fastText (`.vec`, `.bin`), plain or gzipped.

Text and word2vec's binary format are read here, row by row, rather than by gensim. gensim reads the whole file into
memory first, fills all dimensions of a line that has a single number with that number, ignores lines beyond the count
in the header, and does not name the line in its errors. fastText's binary format holds a whole model and is read by
gensim.
"""

from __future__ import annotations

import gzip
import importlib
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

FASTTEXT_MAGIC = 793712314  # the first four bytes of a fastText model
LONGEST_WORD = 10_000  # bytes; anything longer means a damaged file
LONGEST_LINE = 2**20  # bytes
MOST_NUMBERS = 20_000  # per word


class Row(NamedTuple):
    """A word of a file, its position (for errors), and its vector, not parsed yet."""

    place: str
    word: bytes
    numbers: bytes | list[bytes] | np.ndarray


@dataclass
class WordVectors:
    """The words taken from a file, in file order, and their vectors `(V, a)` in float32.

    Attributes:
        words: V words.
        vectors: `(V, a)`.
        read: number of words in the file.
        left_out: number of words that were skipped, by reason: `repeated`, `zero`, `not_utf8`, `nameless`.
    """

    words: list[str]
    vectors: np.ndarray
    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def read_word_vectors(path: str | Path, wanted: Collection[str] = (), max_words: int | None = None) -> WordVectors:
    """Read the vectors of the wanted words and of the first words of the file.

    Only the words taken are held in memory, except for fastText models, which are loaded whole.

    Args:
        path: the file, in any of the formats; the format is detected from its first bytes.
        wanted: words to take wherever they are in the file.
        max_words: how many other words to take, in file order (most frequent first); None takes all.

    Raises:
        ValueError: the file is malformed; the message names the line or the number of the word.
        OSError: the file does not exist.
        ImportError: it is a fastText model, and gensim is not installed.
    """
    path = Path(path)
    taken, left_out = Counter[str](), Counter[str]()
    words: dict[str, None] = {}
    vectors = bytearray()
    with _open(path) as file:
        with _gzip_named(path):
            size, rows = _rows(file, path)
        for row in _whole(rows, path):
            taken["read"] += 1
            try:
                word = row.word.decode("utf-8")
            except UnicodeDecodeError:
                left_out["not_utf8"] += 1
                continue
            if word in words or not word:
                left_out["repeated" if word else "nameless"] += 1
                continue
            if word not in wanted and max_words is not None and taken["others"] >= max_words:
                continue
            vector = _vector(row, path)
            if not vector.any():
                left_out["zero"] += 1
                continue
            taken["others"] += word not in wanted
            words[word] = None
            vectors += vector.tobytes()
    if not taken["read"]:
        raise ValueError(f"{path} has no vectors (expected a word and its numbers on every line)")
    return WordVectors(list(words), np.frombuffer(vectors, np.float32).reshape(-1, size), taken["read"], left_out)


def _whole(rows: Iterator[Row], path: Path) -> Iterator[Row]:
    with _gzip_named(path):
        yield from rows


@contextmanager
def _gzip_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}): get it again") from error


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PK\x03\x04":
        raise ValueError(f"{path} is a zip archive: unpack it and give the file in it")
    return cast(BinaryIO, gzip.open(path)) if magic[:2] == b"\x1f\x8b" else path.open("rb")


def _rows(file: BinaryIO, path: Path) -> tuple[int, Iterator[Row]]:
    """The vector size and all rows of a file."""
    start = file.read(4)
    if len(start) == 4 and struct.unpack("<i", start)[0] == FASTTEXT_MAGIC:
        return _fasttext_rows(path)
    file.seek(0)
    head = file.readline(LONGEST_LINE).split()
    if not head:
        raise ValueError(f"{path}, line 1: it is empty (expected the numbers of words and dimensions, or a word)")
    if len(head) == 2 and all(number.isdigit() for number in head):
        count, size = (int(number) if len(number) <= 12 else 10**12 for number in head)
        if not 0 < count < 10**12 or not 0 < size <= MOST_NUMBERS:
            raise ValueError(
                f"{path}, line 1: it promises {count:,} words of {size:,} numbers "
                f"(expected 1 or more, of at most {MOST_NUMBERS:,})"
            )
        here = file.tell()
        is_text = _is_text(file.readline(LONGEST_LINE), size)
        file.seek(here)
        return size, _promised(
            _text_rows(file, path, size, 2) if is_text else _binary_rows(file, path, count, size), count, path
        )
    if len(head) == 2 and _is_number(head[0]) and _is_number(head[1]):
        raise ValueError(f"{path}, line 1: {_name(b' '.join(head))} is not a header (expected two whole numbers)")
    if len(head) - 1 > MOST_NUMBERS:
        raise ValueError(f"{path}, line 1: it has {len(head) - 1:,} numbers (expected at most {MOST_NUMBERS:,})")
    if len(head) < 2 or not all(_is_number(number) for number in head[1:]):
        raise ValueError(f"{path}, line 1: expected the numbers of words and dimensions, or a word and its numbers")
    file.seek(0)
    return len(head) - 1, _text_rows(file, path, len(head) - 1, 1)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _name(word: bytes) -> str:
    return repr(word[:40].decode("utf-8", errors="replace"))


def _is_text(line: bytes, size: int) -> bool:
    """Whether the line after a header is a word with numbers as text, even if there are too few of them."""
    fields = line.split()
    if len(fields) < 2:
        return not fields
    return b"\x00" not in line and all(_is_number(number) for number in fields[max(1, len(fields) - size) :])


def _promised(rows: Iterator[Row], count: int, path: Path) -> Iterator[Row]:
    read = 0
    for row in rows:
        read += 1
        if read > count:
            raise ValueError(f"{path}, {row.place}: the header promises {count:,} words, and there are more")
        yield row
    if read < count:
        raise ValueError(f"{path} ends after {read:,} of the {count:,} words that its header promises: get it again")


def _text_rows(file: BinaryIO, path: Path, size: int, first: int) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), first):
        if len(line) >= LONGEST_LINE:
            raise ValueError(f"{path}, line {number}: it has more than {LONGEST_LINE:,} bytes")
        fields = line.rstrip().rsplit(None, size)
        if not fields:
            continue
        if len(fields) == size and line[:1].isspace():
            yield Row(f"line {number}", b"", fields)
            continue
        # Some words contain spaces, but none ends in a number.
        surplus = sum(map(_is_number, fields[0].split()[1:])) if len(fields) > size else 0
        if len(fields) <= size or surplus:
            has = len(fields) - 1 + surplus
            raise ValueError(f"{path}, line {number}: {_name(fields[0])} has {has} numbers (expected {size})")
        yield Row(f"line {number}", fields[0].strip(), fields[1:])


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE):
        yield line


def _binary_rows(file: BinaryIO, path: Path, count: int, size: int) -> Iterator[Row]:
    chunk, start = b"", 0
    for number in range(1, count + 1):
        while (space := chunk.find(b" ", start)) < 0 or len(chunk) < space + 1 + 4 * size:
            if space > start + LONGEST_WORD or (space < 0 and len(chunk) > start + LONGEST_WORD):
                raise ValueError(f"{path}, word {number:,}: no end of it is found (expected {size} numbers a word)")
            more = file.read(2**20)
            if not more:
                if chunk[start:].strip(b"\n"):
                    raise ValueError(f"{path} ends within word {number:,} of {count:,}: get it again")
                return
            chunk, start = chunk[start:] + more, 0
        end = space + 1 + 4 * size
        yield Row(f"word {number:,}", chunk[start:space].lstrip(b"\n"), chunk[space + 1 : end])
        start = end
    left = len((chunk[start:] + file.read(2**20)).lstrip(b"\n"))
    if left:
        raise ValueError(f"{path}: bytes follow the {count:,} words of {size} numbers that its header promises")


def _fasttext_rows(path: Path) -> tuple[int, Iterator[Row]]:
    try:
        fasttext = importlib.import_module("gensim.models.fasttext")
    except ImportError as error:
        raise ImportError(
            f"{path} is a fastText model, to read which gensim is needed: pip install gensim; or give the .vec file"
        ) from error
    _check_fasttext(path)
    try:
        model = fasttext.load_facebook_vectors(str(path))
    except Exception as error:  # the type gensim raises depends on where the model is damaged
        raise ValueError(f"{path} is not a complete fastText model ({error}): get it again") from error
    rows = (Row(f"word {i:,}", w.encode(), model[w]) for i, w in enumerate(model.index_to_key, 1))
    return model.vector_size, rows


def _check_fasttext(path: Path) -> None:
    """Refuse a model whose header declares more numbers than its file holds; gensim would allocate memory for them."""
    header = struct.Struct("<14i d 3i 2q")  # magic, version, 12 settings, threshold; words and labels, tokens, pruned
    with path.open("rb") as file:
        raw = file.read(header.size)
    if len(raw) < header.size:
        raise ValueError(f"{path} is not a complete fastText model ({len(raw)} bytes): get it again")
    found = header.unpack(raw)
    size, buckets, words = found[2], found[10], found[16]
    if not 0 < size <= MOST_NUMBERS or min(buckets, words) < 0 or (words + buckets) * size * 4 > path.stat().st_size:
        raise ValueError(f"{path} is not a complete fastText model: it announces {words + buckets:,} times {size:,}")


def _vector(row: Row, path: Path) -> np.ndarray:
    if isinstance(row.numbers, list):
        try:
            with np.errstate(over="ignore"):  # refused below
                vector = np.array([float(number) for number in row.numbers], np.float32)
        except ValueError as error:
            raise ValueError(f"{path}, {row.place}: {error} (expected a word and its numbers)") from error
    elif isinstance(row.numbers, bytes):
        vector = np.frombuffer(row.numbers, "<f4")
    else:
        vector = np.asarray(row.numbers, np.float32)
    if not (np.abs(vector) <= np.finfo(np.float16).max).all():
        raise ValueError(f"{path}, {row.place}: {_name(row.word)} has a number that is not finite, or above 65,504")
    return vector.astype(np.float16).astype(np.float32)
