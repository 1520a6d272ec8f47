"""The snippets of a model card, and what they print.

Names and strings from a checkpoint enter a snippet only as Python literals, so a checkpoint cannot add code to a
snippet. The caller chooses what runs and where: `run_examples` runs
the snippets in this process, `hub_card.card.isolated_examples` in one of their own, and `unrun_examples` runs nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from modeling_ita.markup import Source, python_source
from modeling_ita.pipeline_ita import ItaPipeline
from modeling_ita.plain_text import plain_text
from modeling_ita.visual_context import OBJECT_TAGS

TEXT = """\
from transformers import pipeline

ner = pipeline(
    "token-classification",
    model={model_id},
    revision={revision},
    trust_remote_code=True,
)


def show(entities):
    for entity in entities:
        print(f"{{entity['entity_group']:<6}}{{entity['score']:.2f}}  {{entity['word']}}")
    if not entities:
        print("no entity")


show(ner("Landed in Phoenix, off to see the Suns tonight!"))
"""

IMAGE = """\
from PIL import Image, ImageDraw, ImageFont

image = Image.new("RGB", (480, 160), "white")
large = ImageFont.load_default(38)
ImageDraw.Draw(image).text((16, 60), "PHOENIX SUNS 98 : 91", font=large, fill="black")

show(ner("Phoenix tonight!"))
print("and with the picture:")
result = ner({{"text": "Phoenix tonight!", "image": image}}, return_context=True)
show(result["entities"])
del result["context"]["provenance"]
print("read in it:", result["context"])
"""

_BALL = """\
from PIL import Image, ImageDraw

image = Image.new("RGB", (480, 160), "white")
ImageDraw.Draw(image).ellipse((180, 20, 300, 140), fill="orange", outline="black", width=4)

show(ner("Phoenix tonight!"))
print("and with the picture:")
"""

# For models that take the picture itself.
LOOKING = (
    _BALL
    + """\
show(ner({{"text": "Phoenix tonight!", "image": image}}))
"""
)

# One that takes the objects in it, with an aligner that finds them.
FINDING = (
    _BALL
    + """\
result = ner({{"text": "Phoenix tonight!", "image": image}}, return_context=True)
show(result["entities"])
del result["context"]["provenance"]
print("found in it:", result["context"])
"""
)

OBJECTS = """\
for seen in {shown}:
    print("in the picture:", seen)
    show(ner({{"text": "Phoenix tonight!", "context": {{"object_tags": [seen]}}}}))
"""

CONTEXT = """\
captions = ["a basketball game in a full arena", "the skyline of phoenix", "phoenix smiles"]
for said in captions:
    print(said)
    show(ner({{"text": "Phoenix tonight!", "context": {{{kind}: [said]}}}}))
"""

BATCH = """\
posts = [
    "Phoenix tonight!",
{pictured}    "good morning",
]
for entities in ner(posts, batch_size=32, min_score=0.5):
    show(entities)
    print("---")
"""

WITHOUT_TRUST = """\
from modeling_ita import ItaPipeline
from transformers import pipeline

ner = pipeline(
    "token-classification",
    model={model_id},
    revision={revision},
    pipeline_class=ItaPipeline,
)
show(ner("Landed in Phoenix, off to see the Suns tonight!"))
"""

# No code of its own runs on the site, so its examples come with their answers.
WIDGET_POSTS = ("Landed in Phoenix, off to see the Suns tonight!", "Phoenix tonight!")


class Example(NamedTuple):
    """A snippet of Python and what it printed.

    Attributes:
        code: the snippet, without the last newline.
        output: what it printed, without the last newline; None if it was not run.
        failed: whether it ended with an error; the output then ends with that error.
    """

    code: str
    output: str | None
    failed: bool


def run_examples(pipe: ItaPipeline, model_id: str, revision: str) -> dict[str, Example]:
    """Run the card's snippets in this process, in order; each sees the variables of the previous ones.

    For a model of the caller's own: this process has the caller's network and secrets, and aligners that the
    checkpoint names are loaded for a snippet with a picture, and downloaded if they are not there. Snippets of other
    people's models run in `hub_card.card.isolated_examples`, or do not run.

    Snippets for inputs that the model does not take (pictures, contexts) are omitted. The code that runs is the card's
    text, except that its `pipeline(…)` returns `pipe` and loads nothing. If a picture cannot be read, because the
    checkpoint names no aligner or the aligner's package or weights are missing, the output ends with the error.

    Args:
        pipe: the pipeline on the model, without settings of its own.
        model_id: the name that the snippets load the model by.
        revision: the revision that they pin.

    Returns:
        The examples by name: `text`, `image`, `context`, `batch` and `without_trust`.
    """
    names: dict[str, Any] = {"__builtins__": {**vars(builtins), "__import__": _import_with(pipe)}}
    examples = {}
    for name, code in snippets(pipe, model_id, revision).items():
        said, failed = io.StringIO(), False
        with contextlib.redirect_stdout(said):
            try:
                exec(code, names)
            except Exception as error:
                # Aligners are third-party models; whatever they raise must not prevent writing the card.
                if name != "image":
                    raise
                failed = True
                print(f"{type(error).__name__}: {error}")
        examples[name] = Example(code, plain_text(said.getvalue()).rstrip("\n"), failed)
    return examples


def unrun_examples(pipe: ItaPipeline, model_id: str, revision: str) -> dict[str, Example]:
    """The card's snippets without output; nothing is run."""
    return {name: Example(code, None, False) for name, code in snippets(pipe, model_id, revision).items()}


def kinds_taken(pipe: ItaPipeline) -> list[str]:
    """The kinds of context that the model takes; none for a model that takes objects but was built without them."""
    return list(pipe.processor.context_kinds) if getattr(pipe.model, "objects", True) is not None else []


def snippets(pipe: ItaPipeline, model_id: str, revision: str) -> dict[str, str]:
    """The snippets that fit the model, by name, without their last newlines."""
    kinds = kinds_taken(pipe)
    labels = getattr(pipe.processor, "object_labels", None)
    image, context = "", ""
    given: dict[str, Any] = {}
    if labels is None:
        kind = next((kind for kind in ("captions", "ocr") if kind in kinds), kinds[0] if kinds else "captions")
        image, context, shown = IMAGE, CONTEXT, ["a poster for the film phoenix"]
    else:
        kind, shown = OBJECT_TAGS, list(labels[:3])
        if pipe.model.sees_images:
            image, given = LOOKING, {"image": Source("image")}
        if kinds:
            context = OBJECTS
            image = FINDING if pipe.processor.context_builder else image
    if context:
        given["context"] = {kind: shown}
    pictured = Source(f"    {python_source({'text': WIDGET_POSTS[1], **given})},\n" if given else "")
    found = {
        "text": _filled(TEXT, model_id=model_id, revision=revision),
        "image": _filled(image),
        "context": _filled(context, kind=kind, shown=shown),
        "batch": _filled(BATCH, pictured=pictured),
        "without_trust": _filled(WITHOUT_TRUST, model_id=model_id, revision=revision),
    }
    return {name: code for name, code in found.items() if code}


def _filled(template: str, **values: Any) -> str:
    """Fill a template, with every value as a Python literal."""
    return template.format(**{name: python_source(value) for name, value in values.items()}).rstrip("\n")


def widget_examples(pipe: ItaPipeline, posts: Sequence[str] = WIDGET_POSTS) -> list[dict[str, Any]]:
    """Entries of the card's `widget`: posts with their entities, each a `label` such as `LOC: Phoenix` and a `score`.

    This is the form that the site knows for outputs with labels; a post without entities has no output.
    """
    entries = []
    for post, entities in zip(posts, pipe(list(posts)), strict=True):
        output = [
            {"label": f"{entity['entity_group']}: {entity['word']}", "score": round(entity["score"], 4)}
            for entity in entities
        ]
        entries.append({"text": post, **({"output": output} if output else {})})
    return entries


def _import_with(pipe: ItaPipeline) -> Any:
    """An `import` for the snippets, in which the `pipeline` of transformers gives this pipeline."""

    def give(name: str, *arguments: Any, **settings: Any) -> Any:
        if name == "transformers":
            return SimpleNamespace(pipeline=lambda *_, **__: pipe)
        return builtins.__import__(name, *arguments, **settings)

    return give
