"""The Space: a web page that labels a post alone and with its image, and lets you edit the image's context.

A standalone script: `python app.py --model FOLDER_OR_NAME`. Without `--model` it uses the model named in `model.json`
in the same folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import re
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

try:
    import spaces  # has to come before torch, which it changes
except ImportError:
    spaces = None

import gradio as gr
from transformers import pipeline

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "examples"
MODEL_FILE = "model.json"
MAX_CHARACTERS = 5_000  # of a post, and of all that is said of its image
MAX_IMAGES = 4  # of a post
MAX_FILE_SIZE = "20mb"
MAX_DATA_URL = 28_000_000  # characters, what such a file has in base64
MAX_WAITING = 64  # calls; whoever comes then is told that the page is busy
NO_IMAGE = ""  # the path of an image that was sent and is none
SAME_SCORE = 0.005  # scores are shown with two digits

KIND_NAMES = {"object_tags": "Object tags", "captions": "Captions", "ocr": "Text in the image"}
UNSEEN = {
    "missing": "The image is no longer available: please add it again.",
    "unreadable": "The image cannot be read: it is damaged, too large, or not a JPEG, PNG, WebP, GIF, BMP or TIFF.",
    "blank": "The image is blank: it has only one colour, or is too small.",
}
TYPE_NAMES = {"PER": "a person", "LOC": "a place", "ORG": "an organisation", "MISC": "a name of another kind"}
TYPE_COLOURS = {"PER": "#2563eb", "LOC": "#047857", "ORG": "#c2410c", "MISC": "#9333ea"}
MORE_COLOURS = ("#be185d", "#0e7490", "#a16207", "#4d7c0f", "#475569", "#b91c1c")

Entity = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])


class Refused(ValueError):
    """An input that the page does not accept; the message is shown on the page."""


class Labelled(NamedTuple):
    """A post, labelled in both views.

    Attributes:
        post: the post.
        alone: its entities without the image (the view T), as the pipeline returns them.
        together: its entities with the image or its context (the view I+T); None if there is neither.
        context: the image's context: strings by kind, and their provenance; None if there is none.
        notice: why an image is not used, or has no context; empty otherwise.
    """

    post: str
    alone: list[Entity]
    together: list[Entity] | None = None
    context: dict[str, Any] | None = None
    notice: str = ""


class Change(NamedTuple):
    """How the image changed one entity: `before` is the entity in the view T, `after` that in the view I+T."""

    what: Literal["new", "gone", "other type", "other words", "score", "same"]
    before: Entity | None
    after: Entity | None


def on_gpu(function: Function) -> Function:
    """The function, run on a ZeroGPU if the package `spaces` is installed; otherwise unchanged."""
    return function if spaces is None else spaces.GPU(function)


def model_of(folder: Path = HERE) -> tuple[str, str | None]:
    """The model and the revision in the `model.json` of a Space's folder.

    Raises:
        ValueError: the file is missing or names no model; the message says what to do.
    """
    file = folder / MODEL_FILE
    way_out = f'give --model FOLDER_OR_NAME, or write {{"model": "owner/name"}} into {file}'
    if not file.is_file():
        raise ValueError(f"no model is named: {way_out}")
    try:
        named = json.loads(file.read_text(encoding="utf-8"))
        return str(named["model"]), named.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} names no model ({type(error).__name__}: {error}): {way_out}") from error


def load(model: str, revision: str | None = None) -> Any:
    """The pipeline of a model, with the code that comes with it.

    Raises:
        OSError: the model cannot be found or downloaded.
        ValueError: the model cannot be loaded, or does not take visual contexts.
    """
    try:
        pipe: Any = pipeline("token-classification", model=model, revision=revision, trust_remote_code=True)
    except Exception as error:  # a damaged checkpoint has its readers raise what they like
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{model} cannot be loaded: {in_one_line(error)}") from error
    if not hasattr(pipe.processor, "context_kinds"):
        raise ValueError(f"{model} takes no visual context: it has no context_kinds in a processor_config.json")
    if spaces is not None and pipe.processor.context_builder:
        # A borrowed GPU's process begins as a copy of this one: what is not loaded here is loaded again at every call.
        try:
            for aligner in pipe.context_builder.aligners.values():
                getattr(aligner, "checkpoint", None)
        except (ImportError, OSError, ValueError):
            logger.exception("the aligners cannot be loaded; the page will say so")
    return pipe


def check(post: str | None, said: Sequence[str] = ()) -> None:
    """Refuses a post or context that cannot be labelled here.

    Raises:
        Refused: the post is empty, or the post or the context is too long.
    """
    if not post or not post.strip():
        raise Refused("The post is empty. Write a few words, or choose an example.")
    for name, length in (("The post", len(post)), ("The text about the image", sum(map(len, said)))):
        if length > MAX_CHARACTERS:
            raise Refused(f"{name} has {length:,} characters; the limit is {MAX_CHARACTERS:,}.")


def readable(text: Any) -> str:
    """A text from the page, made safe for the model, JSON and HTML; None becomes the empty string.

    Surrogate pairs are joined; unpaired surrogates and control characters become U+FFFD.

    Raises:
        Refused: it is not a string.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise Refused("This page accepts text only.")
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", joined)


def in_one_line(error: BaseException, most: int = 600) -> str:
    """An error's message on one line, for a terminal; of a quoted traceback, only the last line."""
    said = str(error)
    quoted = re.findall(r"^[\w.]*Error: .*", said, re.MULTILINE) if "Traceback (most recent" in said else []
    line = " ".join(readable(quoted[-1] if quoted else said).split())
    return line if len(line) <= most else f"{line[:most]} …"


def looks(pipe: Any) -> bool:
    """Whether the model reads images itself, and not only their context."""
    # Checkpoints of version 0.1 bring code that has no `sees_images`.
    return getattr(pipe.model, "sees_images", getattr(pipe.model, "vision", None) is not None)


def kinds_of(pipe: Any) -> list[str]:
    """The kinds of context that the model takes; an MGCMT without objects takes none."""
    return [] if getattr(pipe.model, "objects", ...) is None else list(pipe.processor.context_kinds)


def why_unseen(pipe: Any, image: str | Path) -> str:
    """Why a model that reads images cannot use this one, as a text for the page; empty if it can."""
    counts: Counter[str] = Counter()
    pipe.processor.image_tensors([str(image)], counts)
    return next((notice for state, notice in UNSEEN.items() if counts[f"{state}_images"]), "")


def read_image(pipe: Any, image: str | Path) -> tuple[dict[str, Any] | None, str]:
    """The context that the model's aligners build for an image file, or None and the reason as a text for the page.

    A model that reads images itself gives no reason if it has no aligners.
    """
    if not kinds_of(pipe):
        return None, "" if looks(pipe) else "This model does not use images: it reads only the post."
    try:
        builder = pipe.context_builder
    except (ImportError, ValueError) as error:
        if pipe.processor.context_builder:
            return None, f"The image was not put into words: {error}"
        no_way = "This model has no aligners to read images. Describe the image in the boxes below."
        return None, "" if looks(pipe) else no_way
    try:
        examined = builder.examine(str(image))
        builder.align([examined])
    except Exception as error:  # engines and damaged files raise what they like; the post is labelled all the same
        logger.exception("an image was not read")
        return None, f"The image was not put into words: {error}"
    if examined.state != "readable":
        logger.warning("an image was not read: %s", examined.detail)
        return None, UNSEEN[examined.state]
    context = examined.context(pipe.processor.context_kinds)
    if not context:
        return None, "No context was found in the image."
    return context.to_dict(), ""


def takes_several(pipe: Any) -> bool:
    """Whether the model takes several images of a post: checkpoints of earlier versions bring code that does not."""
    return hasattr(_context_class(pipe), "joined")


def _context_class(pipe: Any) -> Any:
    return importlib.import_module(".visual_context", type(pipe).__module__.rpartition(".")[0]).VisualContext


def read_images(pipe: Any, images: Sequence[str | Path]) -> tuple[dict[str, Any] | None, list[str]]:
    """The context of several images, joined, and for each image why it has none, see `read_image`."""
    read = [read_image(pipe, image) for image in images]
    made = [context for context, _ in read if context is not None]
    if len(made) > 1:
        named = _context_class(pipe)
        return named.joined([named.from_dict(context) for context in made]).to_dict(), [why for _, why in read]
    return made[0] if made else None, [why for _, why in read]


def in_one_notice(notices: Sequence[str]) -> str:
    """What is to be said of each image, as one text: once if it is true of all, otherwise with the image's number."""
    if len(set(notices)) <= 1:
        return notices[0] if notices else ""
    return " ".join(f"Image {number}: {notice}" for number, notice in enumerate(notices, start=1) if notice)


def images_of(image: str | None, more: Sequence[str] | None) -> str | list[str] | None:
    """The images of a post, from the two places on the page: None, one, or a list.

    Raises:
        Refused: these are too many.
    """
    given = [*([] if image is None else [image]), *(more or ())]
    if len(given) > MAX_IMAGES:
        raise Refused(f"The post has {len(given):,} images; the limit is {MAX_IMAGES}.")
    return given if len(given) > 1 else given[0] if given else None


def label(
    pipe: Any,
    post: str,
    image: str | Path | Sequence[str | Path] | None = None,
    context: Mapping[str, Sequence[str]] | None = None,
) -> Labelled:
    """Labels a post alone and, if it has a usable image or context, together with these.

    Args:
        pipe: the pipeline, see `load`.
        post: the post.
        image: its image file, or a list of several. The aligners build its context if none is given. A model that
            reads images uses the image in either case.
        context: the image's context: strings by kind, `{"captions": ["a dog"]}`. The aligners are not used then.
    """
    images: list[str | Path] = []
    if image is not None:
        images = [image] if isinstance(image, (str, Path)) else list(image)
    notices = [_why_unusable(pipe, one) for one in images]
    usable = [place for place, notice in enumerate(notices) if not notice]
    seen: dict[str, Any] = {}
    if usable and looks(pipe):
        shown = [str(images[place]) for place in usable]
        seen = {"image": shown if len(shown) > 1 else shown[0]}
    if usable and context is None:
        context, reasons = read_images(pipe, [images[place] for place in usable])
        for place, reason in zip(usable, reasons, strict=True):
            notices[place] = reason
    notice = in_one_notice(notices)
    if not context and not seen:
        return Labelled(post, pipe(post), notice=notice)
    # An empty context is a given one: what could not be put into words just now is not tried again.
    alone, together = pipe([post, {"text": post, "context": context or {}, **seen}], return_context=True)
    return Labelled(post, alone["entities"], together["entities"], together["context"] if context else None, notice)


def _why_unusable(pipe: Any, image: str | Path) -> str:
    """Why an image takes no part, whether or not it is put into words; empty if it does."""
    if image == NO_IMAGE:
        return UNSEEN["unreadable"]
    return why_unseen(pipe, image) if looks(pipe) else ""


def changes(alone: Sequence[Entity], together: Sequence[Entity]) -> list[Change]:
    """How each entity of the view T changed in the view I+T, and which entities are new, in the post's order."""
    found = []
    left = list(together)
    for before in alone:
        overlapping = [after for after in left if after["start"] < before["end"] and before["start"] < after["end"]]
        if not overlapping:
            found.append(Change("gone", before, None))
            continue
        after = max(overlapping, key=lambda after: (after["start"], after["end"]) == (before["start"], before["end"]))
        left.remove(after)
        found.append(Change(_what(before, after), before, after))
    found += [Change("new", None, after) for after in left]
    return sorted(found, key=lambda change: (change.after or change.before or {})["start"])


def _what(before: Entity, after: Entity) -> Literal["other type", "other words", "score", "same"]:
    if (before["start"], before["end"]) != (after["start"], after["end"]):
        return "other words"
    if before["entity_group"] != after["entity_group"]:
        return "other type"
    return "score" if abs(before["score"] - after["score"]) >= SAME_SCORE else "same"


def in_words(change: Change) -> str:
    """A change as a sentence of HTML."""
    before, after = change.before, change.after
    if before is None or after is None:
        entity = after or before or {}
        if change.what == "new":
            return f"{_quoted(entity)} is <b>new</b>: {_named(entity)}, found only with the image."
        return f"{_quoted(entity)} is <b>gone</b>: without the image it was {_named(entity)}."
    if change.what == "other words":
        return f"{_quoted(before)}, {_named(before)}, <b>becomes</b> {_quoted(after)}, {_named(after)}."
    if change.what == "other type":
        return f"{_quoted(after)} is <b>{_named(after)}</b> with the image; without it, it was {_named(before)}."
    if change.what == "same":
        return f"{_quoted(after)} stays {_named(after)}, with the same score."
    way = "more confident" if after["score"] > before["score"] else "less confident"
    return f"{_quoted(after)} stays {_named(after)}; the model is <b>{way}</b>."


def _quoted(entity: Mapping[str, Any]) -> str:
    return f"“{escape(entity['word'])}”"


def _named(entity: Mapping[str, Any]) -> str:
    name = escape(entity["entity_group"])
    return f"{TYPE_NAMES[name]} ({name})" if name in TYPE_NAMES else f"of the type {name}"


def as_html(labelled: Labelled, colours: Mapping[str, str]) -> str:
    """What the image changed, in words and as a table of scores."""
    notice = f'<p class="notice">{escape(labelled.notice)}</p>' if labelled.notice else ""
    if labelled.together is None:
        advice = "" if notice else "<p>Add an image to see what it changes.</p>"
        compared = [Change("gone", entity, None) for entity in labelled.alone]
        return notice + advice + _table(compared, colours, ["Post alone"])
    compared = changes(labelled.alone, labelled.together)
    if not compared:
        return notice + "<p>No entities were found in this post, with or without the image.</p>"
    sentences = "".join(f'<li data-change="{change.what}">{in_words(change)}</li>' for change in compared)
    table = _table(compared, colours, ["Post alone", "With the image"])
    return f'{notice}<ul class="sentences">{sentences}</ul>{table}'


def _table(compared: Sequence[Change], colours: Mapping[str, str], views: Sequence[str]) -> str:
    if not compared:
        return "<p>No entities were found in the post alone.</p>"
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Words", *views))
    rows = []
    for change in compared:
        words = " → ".join(dict.fromkeys(escape(e["word"]) for e in (change.before, change.after) if e))
        cells = "".join(_score(entity, colours) for entity in (change.before, change.after)[: len(views)])
        rows.append(f'<tr><th scope="row">{words}</th>{cells}</tr>')
    return f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _score(entity: Entity | None, colours: Mapping[str, str]) -> str:
    if entity is None:
        return '<td class="none">no entity</td>'
    name, score = entity["entity_group"], entity["score"]
    return (
        f'<td style="--type: {colours.get(name, MORE_COLOURS[-1])}"><span class="type">{escape(name)}</span> '
        f'<span class="score">{score:.2f}</span><span class="bar" style="--score: {score:.3f}"></span></td>'
    )


def type_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each entity type among a model's tags (`B-PER`), the same for the same type in every model."""
    types = dict.fromkeys(tag.partition("-")[2] for tag in labels if "-" in tag)
    more = [name for name in types if name not in TYPE_COLOURS]
    spare = {name: MORE_COLOURS[n % len(MORE_COLOURS)] for n, name in enumerate(more)}
    return {name: TYPE_COLOURS.get(name) or spare[name] for name in types}


def in_words_only(function: Function) -> Function:
    """The function, with its exceptions reported on the page in general terms, and logged without the post."""

    @wraps(function)
    def guarded(*given: Any) -> Any:
        try:
            return function(*given)
        except gr.Error:
            raise
        except Exception as error:
            trace = "".join(traceback.format_tb(error.__traceback__))
            logger.error("a post was not labelled: %s\n%s", type(error).__name__, trace)
            raise gr.Error(
                "The post could not be labelled: an internal error occurred.", print_exception=False
            ) from None

    return guarded  # type: ignore[return-value]


def image_file(**settings: Any) -> gr.Image:
    """An image component that passes on the uploaded file unchanged, even if it is damaged.

    The model or its aligners open it; if they cannot, the page continues without it. Gradio would refuse the call.
    """
    image = gr.Image(type="filepath", **settings)
    decoded = image.preprocess

    def path_of(payload: Any) -> Any:
        if payload and payload.path:
            return payload.path
        try:
            if payload and len(payload.url or "") > MAX_DATA_URL:
                return NO_IMAGE
            return decoded(payload)
        except Exception:  # a data: URL that holds no image, or no base64
            return NO_IMAGE

    image.preprocess = path_of  # type: ignore[method-assign]  # a subclass would have Gradio write a stub beside it
    return image


def build_page(pipe: Any, model: str = "") -> gr.Blocks:
    """The page for a pipeline.

    Its API has `/label` (post, image) and `/relabel` (post, the image if the model reads images, and one string per
    kind of context that the model takes, with one context string per line). `/label` takes those strings too. It acts
    as `/relabel` if no context is built: there is no image, or a model that reads images has no aligners.
    `/label_several` and `/relabel_several` are the same for posts with several images; their last argument is the list
    of the further image files.

    Args:
        pipe: the pipeline, see `load`.
        model: the model's name, shown on the page.
    """
    sees, kinds = looks(pipe), kinds_of(pipe)
    by_hand = sees and not (kinds and pipe.processor.context_builder)  # only people say anything of an image
    examples = _examples()
    gr.set_static_paths([EXAMPLES])
    colours = type_colours(list(pipe.model.config.id2label.values()))
    run = on_gpu(lambda post, image, context: label(pipe, post, image, context))
    several = takes_several(pipe)

    def show(labelled: Labelled) -> list[Any]:
        views = [labelled.alone, labelled.together]
        return [
            *(None if view is None else _highlighted(labelled.post, view) for view in views),
            as_html(labelled, colours),
            {
                "text": labelled.post,
                "alone": labelled.alone,
                "with_image": labelled.together,
                "context": labelled.context,
            },
        ]

    def from_image(post: Any, image: str | None, known: tuple[Any, Any], *said: Any) -> list[Any]:
        return from_images(post, image, known, *said, None)

    def from_images(post: Any, image: str | None, known: tuple[Any, Any], *others: Any) -> list[Any]:
        said, more = others[:-1], others[-1]
        try:
            post, said = readable(post), tuple(map(readable, said))
            check(post, said)
            images = images_of(image, more)
        except Refused as refusal:
            raise gr.Error(str(refusal), print_exception=False) from None
        if images is None or by_hand:
            return [*again(post, image, more, known, said), *said]
        labelled = run(post, images, None)
        said = tuple("\n".join((labelled.context or {}).get(kind, ())) for kind in kinds)
        return [*show(labelled), ((post, images if sees else None, said), labelled), *said]

    def from_context(post: Any, known: tuple[Any, Any], *said: Any) -> list[Any]:
        return again(post, None, None, known, said)

    def from_seen(post: Any, image: str | None, known: tuple[Any, Any], *said: Any) -> list[Any]:
        return again(post, image, None, known, said)

    def from_all_seen(post: Any, image: str | None, known: tuple[Any, Any], *others: Any) -> list[Any]:
        return again(post, image, others[-1], known, others[:-1])

    def again(post: Any, image: Any, more: Any, known: tuple[Any, Any], said: tuple[Any, ...]) -> list[Any]:
        try:
            post, said = readable(post), tuple(map(readable, said))
            check(post, said)
            images = images_of(image, more)
        except Refused as refusal:  # told in its place, and not once for every key
            return [None, None, f'<p class="notice">{escape(str(refusal))}</p>', None, (None, None)]
        before, labelled = known
        now = (post, images, said)
        if now != before:  # boxes that an image filled have changed, too
            lines = {kind: text.splitlines() for kind, text in zip(kinds, said, strict=True)}
            context = {kind: [line for line in lines[kind] if line.strip()] for kind in kinds}
            context = {kind: strings for kind, strings in context.items() if strings}
            labelled = run(post, images, context)
        return [*show(labelled), (now, labelled)]

    def choose(chosen: gr.SelectData) -> list[Any]:
        number = chosen.index
        row = examples[number if isinstance(number, int) and 0 <= number < len(examples) else 0]
        return [row["post"], row["image"], *[None] * several, *[""] * len(written)]

    with gr.Blocks(title="Names in posts with a picture", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        named = f'<p class="model">Model: <code>{escape(model)}</code></p>' if model else ""
        gr.HTML(HEADER + named, elem_id="header", padding=False)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320):
                post = gr.Textbox(
                    label="Post", lines=2, max_lines=8, placeholder="my whole feed is Alexandria rn", elem_id="post"
                )
                image = image_file(label="Image", sources=["upload", "clipboard"], height=260)
                if several:
                    more = gr.File(
                        label=f"More images of the same post (up to {MAX_IMAGES - 1})",
                        file_count="multiple",
                        file_types=["image"],
                        height=110,
                        elem_id="more",
                    )
                button = gr.Button("Find the names", variant="primary", size="lg", elem_id="submit")
                gr.HTML("<h2>Or try one of these</h2>", elem_classes="heading", padding=False)
                gallery = gr.Gallery(
                    [(row["image"], f"“{row['post']}”") for row in examples],
                    label="Examples",
                    show_label=False,
                    columns=2,
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
            with gr.Column(scale=7, min_width=320):
                with gr.Row():
                    alone, together = (
                        gr.HighlightedText(label=name, color_map=colours, min_width=240, elem_id=place)
                        for name, place in (("Post alone", "alone"), ("Post with its image", "together"))
                    )
                gr.HTML("<h2>What the image changed</h2>", elem_classes="heading", padding=False)
                changed = gr.HTML(EMPTY, elem_id="changed", padding=False)
                gr.HTML(about_context(pipe), visible=bool(kinds), elem_classes="heading", padding=False)
                boxes = [
                    gr.Textbox(
                        label=KIND_NAMES.get(kind, kind.replace("_", " ").capitalize()),
                        lines=1,
                        max_lines=6,
                        interactive=True,
                        elem_id=f"kind-{kind}",
                    )
                    for kind in kinds
                ]
                with gr.Accordion("JSON", open=False):
                    result = gr.JSON(show_label=False, elem_id="json")

        known = gr.State((None, None))
        written = boxes if by_hand else []  # what was said of another image
        shown = [alone, together, changed, result, known]
        others = [more] if several else []
        # One at a time: a tokenizer is not made for several threads.
        page.queue(max_size=MAX_WAITING)
        one_by_one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        reading: dict[str, Any] = {
            "fn": in_words_only(from_images if several else from_image),
            "inputs": [post, image, known, *boxes, *others],
            "outputs": [*shown, *boxes],
            "show_progress_on": [alone, together],
            **one_by_one,
        }
        gr.on([button.click, post.submit], **reading, api_name="label_several" if several else "label")
        chosen = gallery.select(
            choose, None, [post, image, *others, *written], show_progress="hidden", api_visibility="private"
        )
        chosen.then(**reading, api_visibility="private")
        gr.on([button.click, post.submit, gallery.select], js=SHOW_VIEWS)
        image.clear(lambda: dict.fromkeys(boxes, ""), None, boxes, show_progress="hidden", api_visibility="private")
        # A borrowed GPU is not borrowed for every key.
        edited = [box.blur if spaces else box.change for box in boxes]
        gr.on(
            [*edited, image.clear] if sees else edited,
            in_words_only((from_all_seen if several else from_seen) if sees else from_context),
            [post, image, known, *boxes, *others] if sees else [post, known, *boxes],
            shown,
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="relabel_several" if sees and several else "relabel",
            **one_by_one,
        )
        if several:  # the calls for one image, which programs make; the page itself makes those for several
            one = {"fn": in_words_only(from_image), "inputs": [post, image, known, *boxes]}
            gr.Button(visible=False).click(**reading | one, api_name="label")
            if sees:
                gr.Button(visible=False).click(
                    in_words_only(from_seen),
                    [post, image, known, *boxes],
                    shown,
                    show_progress="hidden",
                    api_name="relabel",
                    **one_by_one,
                )
    return page


def about_context(pipe: Any) -> str:
    """The explanation above the context boxes, as HTML."""
    if not hasattr(pipe.processor, "object_labels"):
        return CONTEXT
    what = "The model reads the image itself and uses these objects in addition"
    if looks(pipe):
        then = (
            ""
            if pipe.processor.context_builder
            else "; this model does not detect objects itself, so write what you see"
        )
    else:
        what, then = "These are all that the model knows about it", "; the image is not read again"
    classes = escape(", ".join(pipe.processor.object_labels))
    return OBJECTS.format(what=what, most=pipe.processor.num_objects, then=then, classes=classes)


def _highlighted(post: str, entities: Sequence[Entity]) -> dict[str, Any]:
    spans = [{"entity": e["entity_group"], "start": e["start"], "end": e["end"]} for e in entities]
    return {"text": post, "entities": spans}


def _examples() -> list[dict[str, str]]:
    rows = json.loads((EXAMPLES / "posts.json").read_text(encoding="utf-8"))
    return [{"post": row["post"], "image": str(EXAMPLES / row["image"])} for row in rows]


HEADER = """
<h1>The picture decides</h1>
<p>“Alexandria” is a dentist on a name plate, a film on a poster, a city on a map. This model finds the people, places
and organisations in a post, first from its words alone and then with its image.</p>
"""

# Below the form on a phone.
SHOW_VIEWS = """() => {
  const views = document.getElementById("alone");
  if (views.getBoundingClientRect().top > innerHeight - 150) views.scrollIntoView({behavior: "smooth"});
}"""

CONTEXT = """
<h2>What the image says</h2>
<p>This is all that the model knows about it, one string per line. Edit it and the post is labelled again; the image is
not read again.</p>
"""

OBJECTS = """
<h2>Objects in the image</h2>
<p>{what}: up to {most}, one per line, the most confident first. Edit them and the post is labelled again{then}.</p>
<details><summary>Known classes; any other word has no effect</summary><p>{classes}</p></details>
"""

EMPTY = "<p>Write a post and add its image, or choose an example, to see what the image changes.</p>"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves the page until it is stopped."""
    parser = argparse.ArgumentParser(description="Serves a page that labels posts alone and with their images.")
    parser.add_argument("--model", help=f"model folder, or name on the Hub (default: the model in {MODEL_FILE})")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--host", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    given = parser.parse_args(arguments)
    try:
        model, revision = (given.model, given.revision) if given.model else model_of()
        pipe = load(model, revision)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(2, f"error: {in_one_line(error)}\n")
    font = ["system-ui", "sans-serif"]
    build_page(pipe, model).launch(
        server_name=given.host,
        server_port=given.port,
        theme=gr.themes.Base(
            primary_hue="indigo", neutral_hue="slate", font=font, font_mono=["ui-monospace", "monospace"]
        ),
        css_paths=HERE / "style.css",
        footer_links=["api"],
        max_file_size=MAX_FILE_SIZE,
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
