"""Labels one post, alone and with each image, and shows what each image changes.

python -m hub_card.predict MODEL "Phoenix tonight!" --image suns.png --image skyline.jpg
python -m hub_card.predict MODEL "Phoenix tonight!" --context '{"captions": ["a basketball game"]}'
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transformers.utils import logging

from hub_card.report.text_table import flush_left
from modeling_ita import ItaPipeline
from modeling_ita.command_line import command, print_text, program
from modeling_ita.model_loading import load_model
from modeling_ita.plain_text import one_line

ALONE = "the post alone"


class View(NamedTuple):
    """What one view of the post gave.

    Attributes:
        name: `ALONE`, the image's path, or "context" and its number.
        entities: the pipeline's entities.
        context: the context that took part, None in the post alone.
    """

    name: str
    entities: list[dict[str, Any]]
    context: dict[str, Any] | None


def load(name: str, device: str | None = None) -> ItaPipeline:
    """The pipeline of an exported folder or a repository on the Hub; no code of theirs runs.

    Args:
        name: the folder, or the repository.
        device: where it runs; default: an accelerator if there is one.

    Raises:
        OSError: there is no such model, or a file is missing.
        ValueError: a file is broken; the message names it.
    """
    model, processor = load_model(name)
    return ItaPipeline(model=model, processor=processor, device=device)


def label(pipe: ItaPipeline, post: str, images: Sequence[str] = (), contexts: Sequence[Any] = ()) -> list[View]:
    """The post alone, with each image, and with each given context.

    Args:
        pipe: the pipeline.
        post: the post.
        images: paths of images.
        contexts: visual contexts, as dictionaries of lists of strings.

    Raises:
        FileNotFoundError: there is no such image.
        ImportError: the package that reads images is not installed.
        ValueError: a context is malformed, or the checkpoint names no way to read images.
    """
    names = [ALONE, *images, *(f"context {n}" for n in range(1, len(contexts) + 1))]
    inputs = [{}, *({"image": image} for image in images), *({"context": context} for context in contexts)]
    results = pipe([{"text": post, **extra} for extra in inputs], return_context=True)
    return [View(name, **result) for name, result in zip(names, results, strict=True)]


def report(post: str, views: Sequence[View]) -> str:
    """The views as a table of entities, each held against the post alone, and what the images say."""
    rows = [("view", "entity", "type", "score", "against the post alone")]
    for view in views:
        rows += [(view.name, *cells) for cells in _compared(view, views[0])] or [(view.name, "(none)", "", "", "")]
    said = [(view.name, text) for view in views[1:] for text in _said(view.context)]
    sections = [post, "\n".join(flush_left(rows))]
    if said:
        sections.append("\n".join(["what the images say", *flush_left(said)]))
    return "\n\n".join(sections)


def _compared(view: View, alone: View) -> Iterator[tuple[str, str, str, str]]:
    """Entity, type, score, and what the same words are in the post alone; then the entities that are gone."""
    before = {(entity["start"], entity["end"]): entity for entity in alone.entities}
    for entity in view.entities:
        kind, was = entity["entity_group"], before.pop((entity["start"], entity["end"]), {}).get("entity_group")
        change = "" if view is alone else "new" if was is None else "same" if was == kind else f"was {was}"
        yield entity["word"], kind, f"{entity['score']:.3f}", change
    for entity in before.values():
        yield entity["word"], "–", "", f"was {entity['entity_group']}"


def _said(context: dict[str, Any] | None) -> list[str]:
    strings = {kind: strings for kind, strings in (context or {}).items() if kind != "provenance"}
    return [f"{kind}: {' | '.join(texts)}" for kind, texts in strings.items()] or ["(nothing)"]


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=program("hub_card.predict"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="an exported folder, or a repository on the Hub")
    parser.add_argument("post", help="the text of the post")
    parser.add_argument("--image", action="append", default=[], metavar="PATH", help="an image; may be repeated")
    parser.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="JSON",
        help='a visual context instead of an image, such as {"captions": ["a dog"], "ocr": ["SALE"]}; may be repeated',
    )
    parser.add_argument("--device", help='"cpu", "cuda:0", …; default: an accelerator if available')
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        contexts = [json.loads(context) for context in args.context]
    except (ValueError, RecursionError) as error:
        shown = one_line(repr(getattr(error, "doc", "what is given")), 80)
        parser.error(f'--context takes JSON such as {{"captions": ["a dog"]}}, and {shown} is none: {error}')
    pipe = load(args.model, args.device)
    print_text(report(args.post, label(pipe, args.post, args.image, contexts)))


if __name__ == "__main__":
    sys.exit(main())
