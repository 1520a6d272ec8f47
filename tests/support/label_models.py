"""What tests of `PostLabeller` share: a model, a reader of pictures, and pictures that differ by their size."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_scripts.labelling.labeller import ENTITY
from hub_card.hub.exported_folder import export_model
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, VisualContextBuilder


class SizeReader:
    """Reads a picture as the size of it, and remembers the sizes."""

    identity: dict[str, Any] = {"model": "sizes", "revision": "1", "settings": {}}

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        self.seen += [image.width for image in images]
        if any(image.width == 66 for image in images):
            raise RuntimeError("the reader\nfailed")
        return [[(f"Obama {image.width} stadium", 1.0)] for image in images]


def use(reader: SizeReader, monkeypatch: pytest.MonkeyPatch) -> SizeReader:
    """Have every checkpoint that reads pictures read them by this reader."""

    def builder(settings: Any, store: Any = None, device: Any = None) -> VisualContextBuilder:
        return VisualContextBuilder(ocr=reader, store=store)

    monkeypatch.setattr(VisualContextBuilder, "from_dict", staticmethod(builder))
    return reader


def export_reading(model: ItaForTokenClassification, processor: ItaProcessor, folder: Path) -> str:
    """Export a model that names a way to read pictures."""
    reading = pickle.loads(pickle.dumps(processor))
    reading.context_builder = {"ocr": {"model": "rapidocr"}}
    return str(export_model(model, reading, folder))


def plain(pipe: ItaPipeline, posts: Sequence[Any], **settings: Any) -> list[list[tuple[Any, ...]]]:
    """What the pipeline finds, as `values` gives what a labeller found."""
    return [
        [(e["entity_group"], e["word"], e["start"], e["end"], pytest.approx(e["score"], abs=2e-5)) for e in row]
        for row in pipe(list(posts), **settings)
    ]


def values(rows: Any) -> list[list[tuple[Any, ...]]]:
    return [[tuple(entity[name] for name in ENTITY.names) for entity in row] for row in rows]


def sized(width: int, folder: Path | None = None) -> Any:
    """A picture that is not blank, as bytes or as a file."""
    image = Image.new("RGB", (width, 40), "white")
    image.paste("black", (4, 4, width // 2, 20))
    content = BytesIO()
    image.save(content, "PNG")
    if folder is None:
        return content.getvalue()
    (folder / f"{width}.png").write_bytes(content.getvalue())
    return f"{width}.png"
