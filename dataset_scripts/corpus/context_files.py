"""Reads and writes visual context files: JSON lines or Parquet, one row per id."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from dataset_scripts.corpus.conll import CorpusFault, found, quote
from modeling_ita.plain_text import one_line
from modeling_ita.visual_context import VisualContext
from modeling_ita.whole_files import written_file

CONTEXT_FORMAT = '{"id": "…", "<kind>": ["…", …], …, "source": {"<kind>": "…"}}'
CONTEXT_SUFFIXES = (".jsonl", ".parquet")
HUB_CONFIGURATION = "visual_context"


def read_contexts(
    paths: Sequence[str | os.PathLike[str]], faults: list[CorpusFault] | None = None
) -> dict[str, VisualContext]:
    """Read the visual contexts of several files by id; the kinds that they give for one id are merged.

    Args:
        paths: JSON lines or Parquet.
        faults: list that collects all faults, whose rows are then skipped; None raises the first one.

    Raises:
        CorpusFault: a file holds no context, a row is malformed, or an id has the same kind twice.
        ValueError: a file does not exist, or its suffix is not that of one of the two formats.
    """
    contexts: dict[str, VisualContext] = {}
    for path in map(Path, paths):
        check_context_file(path)
        rows = list(_context_rows(path, faults))
        if not rows:
            found(CorpusFault(str(path), None, f"holds no context (expected rows {CONTEXT_FORMAT})"), faults)
        for number, unit, row in rows:
            try:
                _add(row, contexts)
            except (ValueError, RecursionError) as error:
                found(CorpusFault(str(path), number, _said(error), unit), faults, error)
    return contexts


def check_context_file(path: Path) -> None:
    """Raise a ValueError if the file does not exist, or its suffix is not that of one of the two formats."""
    if path.suffix not in CONTEXT_SUFFIXES:
        raise ValueError(f"the context file {path} is neither {' nor '.join(CONTEXT_SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"there is no context file {path}")


def check_suffix(path: Path) -> None:
    """Raise a ValueError if the suffix is not that of a context file."""
    if path.suffix not in CONTEXT_SUFFIXES:
        raise ValueError(f"{path}: the name ends in neither {' nor '.join(CONTEXT_SUFFIXES)}")


def join_contexts(first: VisualContext, second: VisualContext) -> VisualContext:
    """Merge two contexts; where both have a kind, the second takes precedence."""
    known = second.kinds.keys() | second.provenance.keys()
    kept = {kind: strings for kind, strings in first.kinds.items() if kind not in known}
    origins = {kind: origin for kind, origin in first.provenance.items() if kind not in known}
    return VisualContext({**kept, **second.kinds}, {**origins, **second.provenance})


def write_contexts(path: str | os.PathLike[str], contexts: Mapping[str, VisualContext]) -> bool:
    """Write the contexts by id, atomically. Returns False if the file already held exactly these.

    Raises:
        ValueError: the file's suffix is not that of one of the two formats.
    """
    path = Path(path)
    check_suffix(path)
    with written_file(path) as part:
        if path.suffix == ".parquet":
            context_dataset(contexts).to_parquet(part, write_page_checksum=True)
        else:
            with part.open("w", encoding="utf-8") as file:
                for key, context in contexts.items():
                    file.write(json.dumps({"id": key, **context.to_dict()}, ensure_ascii=False) + "\n")
        if path.exists() and path.read_bytes() == part.read_bytes():
            part.unlink()
            return False
    return True


def context_dataset(contexts: Mapping[str, VisualContext]) -> datasets.Dataset:
    """The contexts as a data set: `id`, a list of strings per kind, and `provenance` as JSON.

    It holds neither words nor tags of the posts.
    """
    kinds = list(dict.fromkeys(kind for c in contexts.values() for kind in (*c.kinds, *c.provenance)))
    text = datasets.Value("string")
    features = {"id": text, **dict.fromkeys(kinds, datasets.List(text)), "provenance": text}
    columns: dict[str, list[Any]] = {"id": list(contexts)}
    for kind in kinds:
        columns[kind] = [context.kinds.get(kind, []) for context in contexts.values()]
    columns["provenance"] = [json.dumps(context.provenance, ensure_ascii=False) for context in contexts.values()]
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def _context_rows(path: Path, faults: list[CorpusFault] | None) -> Iterator[tuple[int, str, Any]]:
    if path.suffix == ".parquet":
        try:
            with pyarrow.parquet.ParquetFile(
                pyarrow.BufferReader(path.read_bytes()), page_checksum_verification=True
            ) as file:
                rows = file.read().to_pylist()
        # Only the content can be wrong here, and Arrow raises many different errors for that.
        except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            found(CorpusFault(str(path), None, f"is not a Parquet file: {_said(error)}"), faults, error)
            return
        yield from ((number, "row", row) for number, row in enumerate(rows, start=1))
        return
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, "line", _json(line)
        except (ValueError, RecursionError) as error:
            found(CorpusFault(str(path), number, f"{_said(error)} (expected {CONTEXT_FORMAT})"), faults, error)


def _json(line: bytes) -> Any:
    row = json.loads(line.decode("utf-8"), object_pairs_hook=_without_twice)
    if rb"\ud" in line.lower():  # half of a surrogate pair, as left by a truncated emoji
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    return row


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"the key {quote(twice)} is there twice")
    return row


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "brackets are nested too deeply"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair is not a character"
    return one_line(error, 500)


def _add(row: Any, contexts: dict[str, VisualContext]) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row["id"]:
        raise ValueError(f"the row has no id that is a string (expected {CONTEXT_FORMAT})")
    try:
        added = VisualContext.from_dict(row)
    except ValueError as error:
        raise ValueError(f"{error} (expected {CONTEXT_FORMAT})") from error
    known = contexts.get(row["id"], VisualContext())
    twice = sorted(known.kinds.keys() & added.kinds.keys())
    if twice:
        raise ValueError(f"{row['id']!r} already has the kind {twice[0]!r} (expected every kind of an id once)")
    origins = {**known.provenance, **added.provenance}
    origins.update((kind, origin) for kind, origin in known.provenance.items() if kind in known.kinds)
    contexts[row["id"]] = VisualContext({**known.kinds, **added.kinds}, origins)
