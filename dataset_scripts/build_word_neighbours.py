"""Builds the table of word neighbours that MGCMT uses for augmentation (method §2), from a corpus and word vectors.

```
python -m dataset_scripts.build_word_neighbours my_corpus --vectors glove.twitter.27B.200d.txt --output neighbours
python -m dataset_scripts.build_word_neighbours twitter2017 --data_dir twitter2017 --vectors v.bin --output neighbours
```

The table holds the words of the corpus that have a vector, as written and lower-cased. It also holds the most frequent
other words of the vector file, so that words first seen at prediction time are augmented too. Neighbours are always
words of the table; those of the corpus words are precomputed here. `coverage.txt` and `coverage.json`, written beside
the table, report how many words were found.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from dataset_scripts.corpus.corpus_config import CONFIGS
from dataset_scripts.mner import MnerDataset
from dataset_scripts.word_vectors import WordVectors, read_word_vectors
from modeling_ita.command_line import command, print_text, program
from modeling_ita.whole_files import write_text
from modeling_ita.word_neighbours import WordNeighbours

FOUND = ("as_written", "lower_cased", "unknown")
REPORT = "coverage"
SHOWN = 20


@dataclass
class AugmentationArguments:
    """Which corpus and vectors to use, and the size of the table."""

    vectors: str = field(
        metadata={"help": "word vectors: a word2vec (text or binary), GloVe or fastText file, plain or .gz"}
    )
    output: str = field(metadata={"help": "folder for the table and the coverage report"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with train.txt, valid.txt, test.txt"})
    max_words: int = field(
        default=200_000, metadata={"help": "how many of the file's most frequent words to add to the corpus' own"}
    )
    neighbours: int = field(default=4, metadata={"help": "neighbours per word"})


def corpus_words(builder: MnerDataset) -> dict[str, Counter[str]]:
    """Count how often each word occurs, per split.

    Raises:
        ValueError: a file of the corpus is missing or malformed.
    """
    splits = builder.as_streaming_dataset()
    return {
        str(split): Counter(word for row in rows.select_columns("words") for word in row["words"])
        for split, rows in splits.items()
    }


def augmentation_table(
    words: Mapping[str, Counter[str]], vectors: str | Path, max_words: int | None = 200_000, neighbours: int = 4
) -> tuple[WordNeighbours, WordVectors]:
    """Build the neighbour table of a corpus. Returns the table and the word vectors that were read.

    Args:
        words: how often each word occurs, per split.
        vectors: the file of word vectors.
        max_words: how many words to add that are not in the corpus; None adds all.
        neighbours: number of neighbours per word, m.

    Raises:
        ValueError: the file is malformed, or has too few words.
    """
    distinct = dict.fromkeys(word for split in words.values() for word in split)
    wanted = {form for word in distinct for form in (word, word.lower())}
    read = read_word_vectors(vectors, wanted, max_words)
    if len(read.words) <= neighbours:
        raise ValueError(
            f"{vectors} gives the table {len(read.words)} words, too few for {neighbours} neighbours "
            "(expected a larger file, or a larger --max_words)"
        )
    table = WordNeighbours(read.words, torch.from_numpy(read.vectors), neighbours)
    table.search(list(distinct))
    return table, read


def coverage(words: Mapping[str, Counter[str]], table: WordNeighbours, read: WordVectors) -> dict[str, Any]:
    """How much of a corpus the table covers, as JSON values.

    `table` describes what the table is made from. `splits` has, per split, counts for the distinct `words` and for all
    `tokens`: the total (`all`), those found `as_written`, those found only `lower_cased`, and the `unknown` ones. It
    also lists the most frequent unknown words (`first_unknown`).
    """
    splits = {}
    for split, counts in words.items():
        found = {word: _found(word, table) for word in counts}
        by_words = Counter(found.values())
        by_tokens = Counter[str]()
        for word, count in counts.items():
            by_tokens[found[word]] += count
        splits[split] = {
            "words": {"all": len(counts), **{how: by_words[how] for how in FOUND}},
            "tokens": {"all": counts.total(), **{how: by_tokens[how] for how in FOUND}},
            "first_unknown": [word for word, _ in counts.most_common() if found[word] == "unknown"][:SHOWN],
        }
    made = {
        "words": len(table.words),
        "size": table.size,
        "neighbours": table.neighbours,
        "words_in_file": read.read,
        "left_out": dict(read.left_out),
    }
    return {"table": made, "splits": splits}


def coverage_text(report: Mapping[str, Any]) -> str:
    """Format the coverage report as text."""
    table = report["table"]
    lines = [
        f"table: {table['words']:,} of the file's {table['words_in_file']:,} words, vectors of {table['size']}, "
        f"{table['neighbours']} neighbours a word"
    ]
    lines += [f"    left out as {reason}: {count:,}" for reason, count in table["left_out"].items()]
    lines.append(f"{'':<22} {'all':>9} " + " ".join(f"{how.replace('_', ' '):>18}" for how in FOUND))
    for split, counts in report["splits"].items():
        for kind in ("words", "tokens"):
            c = counts[kind]
            shares = " ".join(f"{c[how]:>9,} ({c[how] / max(1, c['all']):6.1%})" for how in FOUND)
            lines.append(f"{split + ', ' + kind:<22} {c['all']:>9,} {shares}")
    for split, counts in report["splits"].items():
        if counts["first_unknown"]:
            lines.append(f"{split}, unknown: {' '.join(counts['first_unknown'])}")
    return "\n".join(lines)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = HfArgumentParser(AugmentationArguments, prog=program("dataset_scripts.build_word_neighbours"))  # type: ignore[arg-type]
    parser.add_argument("corpus", help=f"{', '.join(CONFIGS)}; or a folder in conll format")
    args, positional = parser.parse_args_into_dataclasses(arguments)
    if args.max_words < 0:
        raise ValueError(f"--max_words is {args.max_words} (expected 0 or more)")
    words = corpus_words(_builder(positional.corpus, args.data_dir))
    table, read = augmentation_table(words, args.vectors, args.max_words, args.neighbours)
    report = coverage(words, table, read)
    table.save_pretrained(args.output)
    text = coverage_text(report)
    write_text(Path(args.output, f"{REPORT}.txt"), text + "\n")
    write_text(Path(args.output, f"{REPORT}.json"), json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    print_text(text)
    return 0


def _found(word: str, table: WordNeighbours) -> str:
    if word in table:
        return "as_written"
    return "lower_cased" if word.lower() in table else "unknown"


def _builder(corpus: str, data_dir: str | None) -> MnerDataset:
    if corpus not in CONFIGS and data_dir is not None:
        known = ", ".join(CONFIGS)
        raise ValueError(f"{corpus!r} is not a known corpus ({known}): give it or --data_dir, not both")
    config = CONFIGS.get(corpus, CONFIGS["conll"])
    data_dir = data_dir or (config.data_dir if corpus in CONFIGS else corpus)
    return MnerDataset(config_name=config.name, data_dir=data_dir, images_dir=None, types=config.types)


if __name__ == "__main__":
    sys.exit(main())
