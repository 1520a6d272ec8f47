"""Finds the problems of a corpus before you spend a day training on it.

```
python -m dataset_scripts.audit CORPUS --context_files captions.jsonl --dataset twitter2017 --json audit.json
```

CORPUS is a folder with `train.txt`, `valid.txt`, `test.txt` and `images/`, or `sample_posts`. The exit code is 0 if
there is no finding at or above `--fail_on`, 1 otherwise, and 2 if there is nothing to audit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from dataset_scripts.audits.audit_corpus import SEVERITIES, Corpus, read_corpus
from dataset_scripts.audits.audit_images import image_findings
from dataset_scripts.audits.audit_text import text_findings
from dataset_scripts.corpus.corpus_config import CONFIGS, MnerConfig, file_sha256
from dataset_scripts.corpus.corpus_images import IMAGE_STATES
from modeling_ita.command_line import command, print_text, program
from modeling_ita.whole_files import write_text

EXAMPLE_KEYS = ("file", "line", "row", "places")


@dataclass
class AuditArguments:
    """What to audit, and how to report the findings."""

    dataset: str = field(
        default="conll",
        metadata={
            "help": "the corpus whose entity types and rules apply; conll takes the types from the training file",
            "choices": [name for name in CONFIGS if name != "sample_posts"],
        },
    )
    types: list[str] = field(default_factory=list, metadata={"help": "entity types; any other tag is an error"})
    images_dir: str | None = field(
        default=None, metadata={"help": "image folder, or none for text only; default: CORPUS/images"}
    )
    context_files: list[str] = field(
        default_factory=list, metadata={"help": "visual contexts by post id, JSONL or Parquet, merged kind by kind"}
    )
    json: str | None = field(
        default=None, metadata={"help": "JSON file for the report; - prints the JSON instead of the text"}
    )
    fail_on: str = field(
        default="error",
        metadata={
            "help": "exit with 1 if there is a finding of at least this severity",
            "choices": ["error", "warning", "never"],
        },
    )
    examples: int = field(default=5, metadata={"help": "examples per finding in the text; the JSON has all of them"})


def audit(config: MnerConfig) -> dict[str, Any]:
    """Examine a corpus.

    Args:
        config: the location of the corpus and how to read its tags. If no types are given, they are collected from
            the training file, or from all files if there is no training file.

    Returns:
        The report, as JSON values:

        - `corpus`, `dataset`, `types`, and `types_given` (whether they were given);
        - `files` by name, each with `split`, `path`, `sha256` and the published file that it is `known_as`;
        - `splits` by name, each with the counts of `MnerDataset.report`, `entities_lenient`, `entities_strict`,
          `images` and `contexts`; the last two are None if they were not examined;
        - `counts`: findings by severity;
        - `findings`, most severe first, each with `check`, `severity`, `count`, `message`, `advice`, `splits` and
          `examples`.

    Raises:
        ValueError: the folder does not exist or holds no split, or a context file does not exist.
    """
    corpus = read_corpus(config)
    findings = [*text_findings(corpus), *image_findings(corpus)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    files = {
        corpus.files[split]: {
            "split": split,
            "path": str(path),
            "sha256": file_sha256(path),
            "known_as": corpus.known_as[split],
        }
        for split, path in config.text_files().items()
    }
    return {
        "corpus": str(config.data_dir),
        "dataset": config.name,
        "types": list(corpus.scheme.types),
        "types_given": corpus.types_given,
        "files": files,
        "splits": {split: _split_counts(corpus, split) for split in corpus.files},
        "counts": {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES},
        "findings": [{**asdict(finding), "splits": list(finding.splits)} for finding in findings],
    }


def format_text(report: dict[str, Any], examples: int = 5) -> str:
    """Format the report as text: the splits, each finding with up to `examples` places and advice, and a verdict."""
    types = ", ".join(report["types"]) or "none"
    origin = "given" if report["types_given"] else "collected from the posts"
    lines = [f"{report['corpus']}: entity types {types} ({origin})", "", *_table(report), ""]
    for finding in report["findings"]:
        lines.append(f"{finding['severity'].upper()} {finding['check']}: {finding['message']}")
        lines += [f"    {_example(example)}" for example in finding["examples"][:examples]]
        if len(finding["examples"]) > examples:
            lines.append(f"    … and {len(finding['examples']) - examples:,} more (--json has them all)")
        lines += [f"  → {finding['advice']}", ""]
    counts = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in report["counts"].items())
    fit = "not fit for training" if report["counts"]["error"] else "fit for training"
    return "\n".join([*lines, f"{fit}: {counts}"])


def _split_counts(corpus: Corpus, split: str) -> dict[str, Any]:
    posts = corpus.posts[split]
    images, contexts = None, None
    if corpus.image_files is not None:
        states = [corpus.verdict(post.post).state for post in posts]
        images = {state: states.count(state) for state in IMAGE_STATES}
    if corpus.contexts is not None:
        known = corpus.contexts
        found = [[known[name] for name in corpus.names(post.post) if name in known] for post in posts]
        given = [any(contexts) for contexts in found if contexts]  # a post's contexts are joined
        present = sum(given)
        contexts = {"present": present, "empty": len(given) - present, "missing": len(posts) - len(given)}
    return {
        **corpus.counts[split],
        "entities_lenient": sum(len(post.entities) for post in posts),
        "entities_strict": sum(len(post.strict_entities) for post in posts),
        "images": images,
        "contexts": contexts,
    }


def _table(report: dict[str, Any]) -> Iterator[str]:
    """Yield the table of splits: one line per split, columns fitted to their content."""
    rows = [["file", "known as", "posts", "words", "entities", *report["types"]]]
    looked_at = [kind for kind in ("images", "contexts") if any(split[kind] for split in report["splits"].values())]
    rows[0] += ["with image"] * ("images" in looked_at) + ["with context"] * ("contexts" in looked_at)
    for name, file in report["files"].items():
        split = report["splits"][file["split"]]
        numbers = [split["posts"], split["words"], split["entities_lenient"], *split["entities"].values()]
        numbers += [split[kind]["present"] for kind in looked_at]
        rows.append([name, file["known_as"], *(f"{number:,}" for number in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        yield "  ".join([*names, *(c.rjust(w) for c, w in zip(row[2:], widths[2:], strict=True))])


def _example(example: dict[str, Any]) -> str:
    number = next((f"{unit} {example[unit]}" for unit in ("line", "row") if unit in example), "")
    place = ", ".join(part for part in (example.get("file", ""), number) if part)
    details = []
    for key, value in example.items():
        if key in ("problem", "text"):
            details.append(value)
        elif isinstance(value, list) and key not in EXAMPLE_KEYS:
            details.append(f"{key.replace('_', ' ')} {_shortened(value)}")
        elif key not in EXAMPLE_KEYS:
            details.append(f"{key.replace('_', ' ')} {value}")
    return ": ".join(part for part in (place, ", ".join(details)) if part)


def _shortened(values: Sequence[str], most: int = 3) -> str:
    more = [f"… ({len(values):,})"] if len(values) > most else []
    return " ".join([*values[:most], *more])


def _configuration(corpus: str, chosen: AuditArguments) -> MnerConfig:
    if corpus == "sample_posts":
        config = CONFIGS[corpus]
    else:
        config = copy(CONFIGS[chosen.dataset])
        config.data_dir, config.images_dir = corpus, str(Path(corpus, "images"))
    images_dir = None if chosen.images_dir == "none" else chosen.images_dir or config.images_dir
    types, context_files = chosen.types or config.types, chosen.context_files
    return replace(config, images_dir=images_dir, types=types, context_files=context_files)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = HfArgumentParser(AuditArguments, prog=program("dataset_scripts.audit"))  # type: ignore[arg-type]
    parser.add_argument("corpus", help="folder with train.txt, valid.txt, test.txt and images/; or sample_posts")
    chosen, positional = parser.parse_args_into_dataclasses(arguments)
    report = audit(_configuration(positional.corpus, chosen))
    as_json = json.dumps(report, indent=2, ensure_ascii=False)
    if chosen.json not in (None, "-"):
        write_text(chosen.json, as_json + "\n")
    print_text(as_json if chosen.json == "-" else format_text(report, chosen.examples))
    failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[chosen.fail_on]
    return int(any(report["counts"][severity] for severity in failing))


if __name__ == "__main__":
    sys.exit(main())
