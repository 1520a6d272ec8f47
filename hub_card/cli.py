"""`ita-mner`: every command of the project as one word.

A word names a module, which is imported when the word is called and not before: `ita-mner --help` imports nothing.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """What a word runs: `function` of `module`, whose first argument may be the `word` itself."""

    module: str
    help: str
    function: str = "main"
    is_subcommand: bool = False


COMMANDS = {
    "train": Command(
        "ita_mner.train", "train ITA or MGCMT on a corpus, evaluate it, write a folder for the Hub", "run"
    ),
    "audit": Command("dataset_scripts.audit", "look for faults in a corpus before you train on it"),
    "contexts": Command("dataset_scripts.build_visual_context", "read images: captions, object tags, text in them"),
    "neighbours": Command("dataset_scripts.build_word_neighbours", "make MGCMT's table of nearest words"),
    "evaluate": Command("hub_card.evaluation", "the full report of a model on a corpus", is_subcommand=True),
    "score": Command("hub_card.evaluation", "score the tags of any system, from CoNLL columns", is_subcommand=True),
    "compare": Command("hub_card.evaluation", "the difference of two reports, with its interval", is_subcommand=True),
    "table": Command("hub_card.evaluation", "mean and standard deviation over the runs of a name", is_subcommand=True),
    "label": Command("dataset_scripts.label", "find the entities of a file of posts, of any length"),
    "predict": Command("hub_card.predict", "find the entities of a post, with or without its images"),
    "push": Command("hub_card.export", "put an exported folder on the Hub, in one commit", is_subcommand=True),
    "push-dataset": Command("dataset_scripts.push_dataset", "put a corpus on the Hub, or its checksums"),
    "space": Command("hub_card.export", "write a Space, a page to try a model on", is_subcommand=True),
    "export": Command("hub_card.export", "write a model as a folder that loads anywhere", is_subcommand=True),
    "onnx": Command("hub_card.export", "write a model for ONNX Runtime", is_subcommand=True),
    "convert-mgcmt": Command("hub_card.convert_mgcmt", "convert a checkpoint of MGCMT's released code"),
}


def usage() -> str:
    """All words, each with a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {word:<{width}}  {command.help}" for word, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ita-mner COMMAND …",
            "",
            "Named entities in posts that come with a picture.",
            "",
            *lines,
            "",
            "`ita-mner COMMAND --help` tells what a command takes. Exit status: 0 done, 1 finished with findings,",
            "2 misuse or an input that cannot be read, 130 interrupted.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    if given[0] == "--version":
        print(f"ita-mner {importlib.import_module('importlib.metadata').version('ita-mner')}")
        return 0
    word, rest = given[0], given[1:]
    if word not in COMMANDS:
        near = difflib.get_close_matches(word, COMMANDS, 1)
        way_out = f"did you mean {near[0]}?" if near else "`ita-mner --help` lists them"
        print(f"error: there is no command {word[:60]!r} ({way_out})", file=sys.stderr)
        return 2
    command = COMMANDS[word]
    # A parser that is given no name takes this one.
    sys.argv = ["ita-mner" if command.is_subcommand else f"ita-mner {word}", *rest]
    try:
        run = getattr(importlib.import_module(command.module), command.function)
        return int(run([word, *rest] if command.is_subcommand else rest) or 0)
    except KeyboardInterrupt:  # before the command itself has begun
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
