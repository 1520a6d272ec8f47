"""Pushes a corpus to the Hub: posts with images, visual contexts as a separate configuration, and a card.

```
python -m dataset_scripts.push_dataset my_corpus me/posts --context_files my_corpus/contexts.jsonl --private
python -m dataset_scripts.push_dataset twitter2017 me/twitter2017-checksums --data_dir twitter2017 --checksums_only
python -m dataset_scripts.push_dataset twitter2017 me/twitter2017-checksums --data_dir twitter2017 --verify
```

Everything is pushed in one commit, so a reader gets either the old rows or the new ones. An interrupted push changes
nothing; run it again, and files that were already uploaded are skipped.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from dataset_scripts.corpus.corpus_config import CONFIGS
from dataset_scripts.hub.checksums import Difference
from dataset_scripts.hub.hub_dataset import verify_corpus
from dataset_scripts.mner import MnerDataset
from modeling_ita.command_line import command, print_text, program

SHOWN = 20


@dataclass
class PushArguments:
    """Which corpus to push, and how."""

    data_dir: str | None = field(default=None, metadata={"help": "folder with train.txt, valid.txt, test.txt"})
    images_dir: str | None = field(
        default=None, metadata={"help": "image folder, or none for text only; default: DATA_DIR/images"}
    )
    context_files: list[str] = field(
        default_factory=list, metadata={"help": "visual contexts by post id, JSONL or Parquet, merged kind by kind"}
    )
    types: list[str] = field(
        default_factory=list, metadata={"help": "entity types; default: the corpus' own, or those in train.txt"}
    )
    private: bool = field(default=False, metadata={"help": "make a new data set private"})
    license: str | None = field(default=None, metadata={"help": "licence identifier of the Hub, such as cc-by-4.0"})
    language: str | None = field(default=None, metadata={"help": "language code of the posts, such as en"})
    revision: str | None = field(default=None, metadata={"help": "branch on the Hub; default: main"})
    i_have_the_rights: bool = field(
        default=False, metadata={"help": "push a corpus without a licence: you declare that you may redistribute it"}
    )
    checksums_only: bool = field(
        default=False, metadata={"help": "push only checksums of the posts and images: no text, no tags, no image"}
    )
    verify: bool = field(
        default=False, metadata={"help": "push nothing; list the differences from the checksums on the Hub"}
    )


def differences_text(differences: list[Difference], repo_id: str) -> str:
    """Format the differences as text: the count of each sort, and the first few of them."""
    if not differences:
        return f"the corpus is that of {repo_id}"
    counts = Counter(what.partition(" (")[0] for _, _, what in differences)
    lines = [f"{count:,} × {what}" for what, count in counts.most_common()]
    lines += [f"    {split}, {key}: {what}" for split, key, what in differences[:SHOWN]]
    more = [f"    … and {len(differences) - SHOWN:,} more"] if len(differences) > SHOWN else []
    return "\n".join([f"the corpus is not that of {repo_id}:", *lines, *more])


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 1 if `--verify` finds a difference."""
    parser = HfArgumentParser(PushArguments, prog=program("dataset_scripts.push_dataset"))  # type: ignore[arg-type]
    parser.add_argument("corpus", help=f"{', '.join(CONFIGS)}; or a folder in conll format, with images/")
    parser.add_argument("repo_id", help="you/name on the Hub")
    args, positional = parser.parse_args_into_dataclasses(arguments)
    builder = _builder(positional.corpus, args)
    if args.verify:
        differences = verify_corpus(builder, positional.repo_id, args.revision)
        print_text(differences_text(differences, positional.repo_id))
        return int(bool(differences))
    commit = builder.push_to_hub(
        positional.repo_id,
        args.private or None,
        license=args.license,
        language=args.language,
        i_have_the_rights=args.i_have_the_rights,
        checksums_only=args.checksums_only,
        revision=args.revision,
    )
    print_text(f"pushed: {commit.commit_url}")
    return 0


def _builder(corpus: str, args: PushArguments) -> MnerDataset:
    if corpus not in CONFIGS and args.data_dir is not None:
        known = ", ".join(CONFIGS)
        raise ValueError(f"{corpus!r} is not a known corpus ({known}): give it or --data_dir, not both")
    config = CONFIGS.get(corpus, CONFIGS["conll"])
    data_dir = args.data_dir or (config.data_dir if corpus in CONFIGS else corpus)
    images_dir = args.images_dir or config.images_dir or (data_dir and str(Path(data_dir, "images")))
    return MnerDataset(
        config_name=config.name,
        data_dir=data_dir,
        images_dir=None if images_dir == "none" else images_dir,
        context_files=args.context_files,
        types=args.types or config.types,
    )


if __name__ == "__main__":
    sys.exit(main())
