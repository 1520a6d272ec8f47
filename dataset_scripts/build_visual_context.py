"""Images of a corpus → one row of visual context for every post, as JSON lines.

```
python -m dataset_scripts.build_visual_context CORPUS --ocr rapidocr --output contexts.jsonl
```

CORPUS is a folder with `train.txt`, `valid.txt`, `test.txt` and `images/`, or `sample_posts`. Run again, it reads only
the images that are new or have changed; killed, it goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm
from transformers import HfArgumentParser

from dataset_scripts.conll import read_posts
from dataset_scripts.mner import MnerConfig, MnerDataset
from modeling_ita.image_file import image_sha256
from modeling_ita.visual_context import VisualContext, VisualContextBuilder


@dataclass
class BuildArguments:
    """What is built, and into which file."""

    output: str = field(metadata={"help": "file to write, JSON lines: one row for every post id"})
    ocr: str = field(
        default="rapidocr",
        metadata={
            "help": "what reads the text in the images; easyocr downloads its weights at first use",
            "choices": ["rapidocr", "easyocr", "none"],
        },
    )
    merge: list[str] = field(
        default_factory=list,
        metadata={
            "help": "JSON lines with further kinds of context by post id, such as captions; default: the corpus' own"
        },
    )
    images_dir: str | None = field(default=None, metadata={"help": "folder of the images; default: CORPUS/images"})


def corpus_images(config: MnerConfig) -> dict[str, str | None]:
    """The image of every post of a corpus, by the id that the post has in its file; None where there is none.

    Raises:
        ValueError: a folder or all text files are missing, or a line is malformed.
    """
    by_id = {Path(path).stem: path for path in config.image_files()}
    posts = [post for path in config.text_files().values() for post in read_posts(path.read_bytes(), str(path))[0]]
    return {post.image_id: by_id.get(post.image_id) for post in posts}


def build_contexts(
    images: Mapping[str, str | None],
    output: str | os.PathLike[str],
    builder: VisualContextBuilder,
    merge: Iterable[str | os.PathLike[str]] = (),
) -> dict[str, int]:
    """Write the visual context of every post, and read no image twice for it.

    Images are told apart by their bytes: one that several posts share is read once. A context in `output` that the
    same aligners made of the same bytes is kept. Until all is done, what is new stands in `OUTPUT.partial`, so that a
    run that was killed loses the image at hand; then `output` is replaced as a whole, if it changes at all.

    Args:
        images: path of the image by post id; None if the post has none.
        output: JSON lines, `{"id": …, "<kind>": [str, …], …, "provenance": {…}}`.
        builder: makes the contexts; its `counts` go on counting.
        merge: JSON lines with contexts by post id. Their kinds are added to those that the builder makes.

    Returns:
        Counts: `posts`, of which `missing` have no image; different `images`, of which `kept` were read by an earlier
        run and the others are new and `built` (text found), `empty` (none found), `unreadable` or `blank`; `lines`
        read in the images; `merged` posts with a merged context, and `unmatched` merged rows that no post has; and
        `written`, 0 if the file was up to date.

    Raises:
        ValueError: a line of `output` or of a merged file is no row of context.
        ImportError: an aligner's package is not installed.
    """
    output = Path(output)
    partial = output.with_name(output.name + ".partial")
    merged = _merged(merge)
    earlier = [*_read_rows(output), *_read_rows(partial, may_be_cut=True)]
    contexts = _reusable((context for _, context in earlier), builder)
    before = dict(builder.counts)
    hashes: dict[str | None, str] = {}
    for post_id, image in tqdm(images.items(), "Reading images", unit="post", disable=None):
        if image is None or image in hashes:
            continue
        hashes[image] = sha256 = _sha256(image)
        if sha256 not in contexts:
            (contexts[sha256],) = builder([image])
            if contexts[sha256].provenance:  # a blank or unreadable image has none, and is looked at again
                _append(partial, _line(post_id, contexts[sha256]))
    nothing = VisualContext()
    rows = [
        _line(post_id, _joined(merged.get(post_id, nothing), contexts[hashes[image]] if image else nothing))
        for post_id, image in images.items()
    ]
    written = _replace(output, "".join(f"{row}\n" for row in rows))
    partial.unlink(missing_ok=True)
    new = {what: count - before[what] for what, count in builder.counts.items()}
    used = set(hashes.values())
    return {
        "posts": len(images),
        "missing": sum(image is None for image in images.values()),
        "images": len(used),
        "kept": len(used) - new["images"],
        **{what: new[what] for what in ("built", "empty", "unreadable", "blank")},
        "lines": sum(len(contexts[sha256].ocr) for sha256 in used),
        "merged": len(images.keys() & merged.keys()),
        "unmatched": len(merged.keys() - images.keys()),
        "written": int(written),
    }


def _sha256(image: str) -> str:
    try:
        return image_sha256(image)
    except OSError:  # the builder counts it as unreadable
        return image


def _reusable(contexts: Iterable[VisualContext], builder: VisualContextBuilder) -> dict[str, VisualContext]:
    """By the image's sha256, what these very aligners found in it."""
    identities = {aligner.kind: aligner.identity for aligner in builder.aligners}
    reusable = {}
    for context in contexts:
        origins = {kind: context.provenance.get(kind, {}) for kind in identities}
        hashes = {str(origin.get("image_sha256")) for origin in origins.values()}
        alike = all(identity.items() <= origins[kind].items() for kind, identity in identities.items())
        if alike and len(hashes) == 1:
            reusable[hashes.pop()] = VisualContext({kind: context.kinds.get(kind, []) for kind in identities}, origins)
    return reusable


def _merged(paths: Iterable[str | os.PathLike[str]]) -> dict[str, VisualContext]:
    merged: dict[str, VisualContext] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"there is no file {path} to merge")
        for post_id, context in _read_rows(path):
            merged[post_id] = _joined(merged.get(post_id, VisualContext()), context)
    return merged


def _joined(first: VisualContext, second: VisualContext) -> VisualContext:
    """Both contexts in one; a kind that the second one looked for, even in vain, is the second one's."""
    kept = {kind: strings for kind, strings in first.kinds.items() if kind not in second.provenance}
    return VisualContext({**kept, **second.kinds}, {**first.provenance, **second.provenance})


def _read_rows(path: Path, may_be_cut: bool = False) -> Iterator[tuple[str, VisualContext]]:
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield str(row["id"]), VisualContext.from_dict(row)
        except (ValueError, KeyError, TypeError) as error:
            if may_be_cut and isinstance(error, json.JSONDecodeError):
                continue
            raise ValueError(
                f'{path}, line {number}: no row of context (expected {{"id": …, "<kind>": [str, …]}}; {error})'
            ) from error


def _line(post_id: str, context: VisualContext) -> str:
    return json.dumps({"id": post_id, **context.to_dict()}, ensure_ascii=False)


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}")  # the newline goes first: it ends what a killed run may have left half written


def _replace(path: Path, text: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return True


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = HfArgumentParser(BuildArguments)  # type: ignore[arg-type]
    parser.add_argument("corpus", help="folder with train.txt, valid.txt, test.txt and images/; or sample_posts")
    chosen, positional = parser.parse_args_into_dataclasses(arguments)
    try:
        config = _configuration(positional.corpus, chosen.images_dir)
        builder = VisualContextBuilder(ocr=None if chosen.ocr == "none" else chosen.ocr)
        counts = build_contexts(corpus_images(config), chosen.output, builder, chosen.merge or config.context_paths())
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{what} {count}" for what, count in counts.items() if what != "written"))
    print(f"{chosen.output} {'written' if counts['written'] else 'is up to date: nothing to do'}")


def _configuration(corpus: str, images_dir: str | None) -> MnerConfig:
    if corpus == "sample_posts":
        sample = next(config for config in MnerDataset.BUILDER_CONFIGS if config.name == corpus)
        return replace(sample, images_dir=images_dir or sample.images_dir)
    return MnerConfig(name="conll", data_dir=corpus, images_dir=images_dir or str(Path(corpus, "images")))


if __name__ == "__main__":
    main()
