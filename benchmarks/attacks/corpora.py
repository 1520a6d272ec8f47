"""Reads mutated corpora and context files: each loads, with what was repaired counted, or is refused by file and line.

    python benchmarks/attacks/corpora.py
    python benchmarks/attacks/corpora.py --corpora 200 --contexts 100

An attempt holds if reading gives posts whose number is told by the counts, or raises a `CorpusFault` (or a ValueError
that names the file); never another exception, and never more than ten seconds. Of what loads, every tenth is made a
data set of, row by row.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs where the project is not installed

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_scripts.corpus.conll import CorpusFault, entity_types, read_posts, read_tags
from dataset_scripts.corpus.context_files import read_contexts, write_contexts
from dataset_scripts.mner import MnerDataset
from modeling_ita.tag_scheme import TagScheme
from modeling_ita.visual_context import VisualContext

LIMIT = 10  # seconds
WORDS = ["Phoenix", "tonight", "!", "ü", "\u00a0", "😀", "Suns", "the"]
TAGS = ["O", "O", "O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-ORG"]


def corpus_text(draw: random.Random) -> bytes:
    """A text file of a dozen posts."""
    posts = []
    for number in range(12):
        words = [f"{draw.choice(WORDS)}\t{draw.choice(TAGS)}" for _ in range(draw.randrange(1, 9))]
        posts.append("\n".join([f"IMGID:{number}", *words]))
    return ("\n\n".join(posts) + "\n").encode()


def with_other_lines(change: Callable[[random.Random, list[bytes], int], None]) -> Callable[..., bytes]:
    """A mutation of a file that changes its lines, at a place that is drawn."""

    def mutate(draw: random.Random, content: bytes) -> bytes:
        lines = content.split(b"\n")
        for _ in range(draw.randrange(1, 4)):
            if lines:
                change(draw, lines, draw.randrange(len(lines)))
        return b"\n".join(lines)

    return mutate


def flip_bits(draw: random.Random, content: bytes) -> bytes:
    """Some flipped bits."""
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def insert_bytes(draw: random.Random, content: bytes) -> bytes:
    """Some bytes in the middle: NUL, half a character, separators that are no newline, an escape."""
    place = draw.randrange(len(content) + 1)
    odd = [
        b"\0",
        b"\xff",
        b"\xe2\x80",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b"\x0b",
        b"\x1b[2J",
        b"\r",
        b"\t",
        b"\xed\xa0\xbd",
    ]
    return content[:place] + draw.choice(odd) * draw.randrange(1, 4) + content[place:]


def truncate(draw: random.Random, content: bytes) -> bytes:
    """The first part of the file, or nothing."""
    return content[: draw.randrange(len(content))]


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    flip_bits,
    insert_bytes,
    truncate,
    with_other_lines(lambda draw, lines, place: lines.insert(place, b"")),
    with_other_lines(lambda draw, lines, place: lines.insert(place, draw.choice(lines))),
    with_other_lines(lambda draw, lines, place: lines.__delitem__(slice(place, place + draw.randrange(0, 3)))),
    with_other_lines(lambda draw, lines, place: lines.insert(place, b"IMGID:" + draw.choice([b"", b"3", b"x\ty"]))),
    with_other_lines(
        lambda draw, lines, place: lines.insert(place, b"x\t" + draw.choice([b"B-", b"Q", b"B-<b>", b""]))
    ),
    lambda draw, content: b"\xef\xbb\xbf" + content,
    lambda draw, content: content.decode("utf-8", "replace").encode(draw.choice(["utf-16", "utf-16-le", "utf-32"])),
    lambda draw, content: content.replace(b"\n", b"\r\n"),
    lambda draw, content: content.replace(b"\n", b"\r"),
    lambda draw, content: content.replace(b"\t", draw.choice([b" ", b"\t\t", b""])),
    lambda draw, content: content.replace(b"IMGID:", draw.choice([b"", b"imgid:", b"IMGID: "])),
    lambda draw, content: content * 2,
]


def deep(draw: random.Random, content: bytes) -> bytes:
    """A line of brackets in brackets."""
    depth = draw.choice([900, 1100, 100_000])
    middle = draw.choice([b'"x"', b"1", b""])
    nested = draw.choice([b"[" * depth + middle + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])
    key = draw.choice([b"captions", b"provenance", b"source", b"id"])
    return content + b'{"id": "deep", "' + key + b'": ' + nested + b"}\n"


def odd_value(draw: random.Random, content: bytes) -> bytes:
    """A row in which one value is of another sort."""
    values = ["1e999", "-1", "NaN", "1" + "0" * 400, "1" + "0" * 5000, "null", "[]", "{}", "[[1]]", '[null, "x"]']
    values += [r'"\ud83d"', r'["\ud83d\ude00"]', r'["\udc00\ud83d"]', '["\\u0000"]', '"[1"', '{"ocr": {"a": NaN}}']
    values += [
        '{"ocr": 3}',
        '{"ocr": {"n": 123456789012345678901234567890}}',
        '{"ocr": {"n": 1e999}}',
        '"{\\"ocr\\": 1}"',
    ]
    key = draw.choice(["id", "captions", "ocr", "source", "provenance", "", ".x", "a b", "<b>", "image", r"\ud83d"])
    twice = ', "ocr": []' if draw.random() < 0.3 else ""
    return content + f'{{"id": "odd", "{key}": {draw.choice(values)}{twice}}}\n'.encode()


CONTEXT_MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    *MUTATIONS[:6],
    *MUTATIONS[8:12],
    deep,
    deep,
    odd_value,
    odd_value,
    odd_value,
    odd_value,
]


def context_lines(draw: random.Random) -> bytes:
    """A file of contexts as JSON lines."""
    rows: list[dict[str, Any]] = []
    for number in range(12):
        origin = {"model": "reader", "revision": "1", "settings": {"min_score": 0.5}}
        rows.append({"id": str(number), "ocr": draw.choices(WORDS, k=number % 3), "provenance": {"ocr": origin}})
    return "".join(json.dumps(row, ensure_ascii=bool(number % 2)) + "\n" for number, row in enumerate(rows)).encode()


def parquet_of(draw: random.Random, folder: Path) -> bytes:
    """A file of contexts as Parquet: as it is written here, without checksums, or with columns of other types."""
    contexts = {
        str(n): VisualContext({"ocr": draw.choices(WORDS, k=n % 3)}, {"ocr": {"model": "x"}}) for n in range(12)
    }
    file = folder / "whole.parquet"
    write_contexts(file, contexts)
    content = file.read_bytes()
    file.unlink()
    if draw.random() < 0.3:
        return content
    table = pq.read_table(io.BytesIO(content))
    if draw.random() < 0.5:
        other = draw.choice(
            [
                pa.array(range(12)),
                pa.array([{"a": [1]}] * 12),
                pa.array([b"\xff"] * 12),
                pa.array([2**62] * 12, pa.timestamp("ns")),
                pa.array([[None]] * 12, pa.list_(pa.string())),
                pa.array(["[" * 100_000] * 12),
                pa.array([None] * 12, pa.string()),
                pa.array([{"ocr": {"n": 1.5}}] * 12),
            ]
        )
        place = draw.randrange(table.num_columns)
        table = table.set_column(place, table.schema.names[place], other)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer)
    return buffer.getvalue()


class TookTooLong(BaseException):
    """Not an Exception, so that nobody takes it for one of a library."""


def fault_of(read: Callable[[], str], file: Path) -> str:
    """What goes wrong when this is called: nothing, if it gives nothing or refuses the file by name."""

    def stop(*_: Any) -> None:
        raise TookTooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        return read()
    except TookTooLong:
        return f"more than {LIMIT} s"
    except CorpusFault as error:
        return "" if str(file) in str(error) and len(str(error)) < 3000 else f"the message names no file: {error}"
    except ValueError as error:
        return "" if str(file.parent) in str(error) or "context files" in str(error) else f"ValueError: {error!r:.300}"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.300}"
    finally:
        signal.alarm(0)


def read_corpus(file: Path) -> str:
    """Reads a text file in both ways; what its counts do not tell."""
    content = file.read_bytes()
    wrong = []
    for ids_required in (True, False):
        try:
            posts, counts = read_posts(content, str(file), ids_required=ids_required)
        except CorpusFault:
            if not ids_required:
                raise
            continue
        starts = sum(line.startswith(b"IMGID:") and b"\t" not in line for line in without_mark(content))
        if starts and starts != len(posts) + counts["posts_empty"] - counts["posts_without_id"]:
            wrong.append(f"{starts} ids, {len(posts)} posts, {dict(counts)}")
        words = sum(
            bool(line) and not (line.startswith(b"IMGID:") and b"\t" not in line) for line in without_mark(content)
        )
        if words != sum(len(post.words) for post in posts):
            wrong.append(f"{words} lines with words, {sum(len(post.words) for post in posts)} words")
        if len({post.id for post in posts}) < len(posts):
            wrong.append("two posts have one id")
        types = entity_types(posts, str(file))
        read_tags(posts, str(file), TagScheme.from_types(types or ["LOC"]))
    return "; ".join(wrong)


def without_mark(content: bytes) -> list[bytes]:
    """The lines of a file, without its byte order mark and the carriage returns at their ends."""
    return [line.removesuffix(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]


def make_dataset(folder: Path, contexts: Path | None = None) -> str:
    """Streams all rows of a corpus."""
    files = [str(contexts)] if contexts else []
    builder = MnerDataset(
        config_name="conll", data_dir=str(folder), context_files=files, cache_dir=str(folder / "cache")
    )
    builder.download_and_prepare()
    rows = sum(len(list(split)) for split in builder.as_dataset().values())
    told = sum(split["posts"] for split in builder.report["splits"].values())
    return "" if rows == told else f"{rows} rows, {told} posts"


def attack_corpora(count: int, datasets_of: int = 10) -> list[str]:
    """The faults of so many mutated text files; of every so manieth that loads a data set is made."""
    draw, faults = random.Random(0), []
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            folder = Path(name, str(number))
            folder.mkdir()
            file = folder / "train.txt"
            content = corpus_text(draw)
            for mutate in draw.choices(MUTATIONS, k=draw.randrange(1, 4)):
                content = mutate(draw, content) or b"\n"
            file.write_bytes(content)
            said = fault_of(lambda file=file: read_corpus(file), file)  # type: ignore[misc]
            if not said and number % datasets_of == 0:
                said = fault_of(lambda folder=folder: make_dataset(folder), file)  # type: ignore[misc]
            faults += [f"corpus {number}: {said}"] if said else []
    return faults


def attack_contexts(count: int, datasets_of: int = 10) -> list[str]:
    """The faults of so many mutated files of contexts; of every so manieth that loads a data set is made."""
    draw, faults = random.Random(1), []
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            folder = Path(name, str(number))
            folder.mkdir()
            (folder / "train.txt").write_text("".join(f"IMGID:{n}\nParis\tB-LOC\n\n" for n in range(12)))
            is_parquet = number % 3 == 0
            file = folder / ("contexts.parquet" if is_parquet else "contexts.jsonl")
            content = parquet_of(draw, folder) if is_parquet else context_lines(draw)
            mutations = [flip_bits, flip_bits, insert_bytes, truncate, None] if is_parquet else CONTEXT_MUTATIONS
            for mutate in draw.choices(mutations, k=draw.randrange(1, 3)):
                content = mutate(draw, content) if mutate and content else content
            file.write_bytes(content)
            said = fault_of(lambda file=file: again_the_same(file), file)  # type: ignore[misc]
            if not said and number % datasets_of == 0:
                said = fault_of(lambda folder=folder, file=file: make_dataset(folder, file), file)  # type: ignore[misc]
            faults += [f"contexts {number}: {said}"] if said else []
    return faults


def again_the_same(file: Path) -> str:
    """Reads a file of contexts, writes it in both formats and reads it again."""
    contexts = read_contexts([file])
    for suffix in (".jsonl", ".parquet"):
        copy = file.with_name(f"copy{suffix}")
        write_contexts(copy, contexts)
        read = read_contexts([copy])
        if {key: context.kinds for key, context in read.items()} != {k: c.kinds for k, c in contexts.items()}:
            return f"the contexts are others after {suffix}: {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
    return ""


def main() -> int:
    """Prints the figures; returns 1 if an attempt failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=int, default=2000, help="mutated corpora (default: %(default)s)")
    parser.add_argument("--contexts", type=int, default=1000, help="mutated context files (default: %(default)s)")
    args = parser.parse_args()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    datasets.disable_progress_bars()
    faults = [*attack_corpora(args.corpora, 20), *attack_contexts(args.contexts, 20)]
    tried = args.corpora + args.contexts
    print("\n".join(faults[:40]))
    print(f"tried {tried}, held {tried - len(faults)}, failed {len(faults)}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
