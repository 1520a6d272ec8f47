"""A file of posts with pictures, jobs that label it, and what they wrote."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from tiny_ita import WORDS

from dataset_scripts import label
from hub_card.hub.exported_folder import export_model
from modeling_ita import ItaProcessor


def make_model(folder: Path, model: Any, processor: ItaProcessor) -> str:
    """A tiny model, exported, that reads what is written in pictures."""
    reading = ItaProcessor(processor.tokenizer, context_builder={"ocr": {"model": "rapidocr"}})
    return str(export_model(model, reading, folder, examples="none"))


def make_posts(folder: Path) -> Path:
    """A CSV of 60 posts, five of them with a picture, two pictures are the same file."""
    for n in range(4):
        image = Image.new("RGB", (160, 48), "white")
        ImageDraw.Draw(image).text((10, 10), f"{WORDS[n + 6]} {n}", fill="black", font_size=24)
        image.save(folder / f"{n}.png")
    draw = random.Random(0)
    pictures = {3: "0.png", 17: "1.png", 18: "2.png", 40: "0.png", 59: "3.png"}
    with (folder / "posts.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "image", "stars"])
        for n in range(60):
            rows.writerow([f"p{n}", " ".join(draw.choices(WORDS, k=n % 9)), pictures.get(n, ""), n])
    return folder / "posts.csv"


def run(*arguments: Any) -> int:
    """The exit status of the command."""
    return label.main([str(argument) for argument in arguments])


def job(posts: Path, model: str, tmp_path: Path, name: str = "out", *more: Any) -> list[Any]:
    """The arguments of a job of eight shards, with a store of its own."""
    folders = ["--output", tmp_path / name, "--store", tmp_path / f"{name}-store"]
    return [posts, "--model", model, *folders, "--rows_per_shard", 8, *more]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of an output, in order."""
    return [row for file in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]


def content(folder: Path) -> dict[str, bytes]:
    """The files of an output, byte for byte."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("part-*"))}
