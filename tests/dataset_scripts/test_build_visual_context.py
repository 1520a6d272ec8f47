from __future__ import annotations

import errno
import html
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from hostile_images import write_hostile_images
from PIL import Image, ImageDraw, ImageFont

from dataset_scripts import build_visual_context
from dataset_scripts.build_visual_context import main
from dataset_scripts.contexts.align_images import align_images
from dataset_scripts.contexts.build_report import report_text
from dataset_scripts.contexts.context_store import ContextStore
from dataset_scripts.contexts.image_sources import ImageSet, dataset_images, file_images
from dataset_scripts.corpus.context_files import read_contexts
from dataset_scripts.mner import MnerDataset
from modeling_ita.context_builder import VisualContextBuilder
from modeling_ita.image_file import image_sha256
from modeling_ita.visual_context import VisualContext

WIDTH_READER = '''
import os

class WidthReader:
    """Reads an image's width, writes down what it was shown, and may be stopped by a width."""

    def __init__(self, log, stop_at=None, score=0.5, model="width"):
        self.log, self.stop_at, self.score = log, stop_at, score
        self.identity = {"model": model, "revision": "1", "settings": {"log": log, "score": score}}

    def __call__(self, images):
        if any(image.width == self.stop_at for image in images):
            raise KeyboardInterrupt
        with open(self.log, "a") as file:
            file.write("".join(f"{os.getpid()} {image.width}\\n" for image in images))
        return [[(f"width {image.width}", self.score)] if image.width != 44 else [] for image in images]

def halves(images):
    return [f"half is {image.width // 2}" for image in images]
'''


def picture(width: int, text: str = "") -> Image.Image:
    image = Image.new("RGB", (width, width * 3 // 4), "white")
    ImageDraw.Draw(image).rectangle((0, 0, width // 2, width // 4), fill="navy")
    ImageDraw.Draw(image).text((10, width // 3), text, font=ImageFont.load_default(width // 8), fill="black")
    return image


POSTS = {"train": ["a", "b", "copy-of-a", "no-image"], "valid": ["blank", "broken"], "test": ["nothing-found", "z"]}
IDS = [post_id for ids in POSTS.values() for post_id in ids]


@pytest.fixture(autouse=True)
def width_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "width_reader.py").write_text(WIDTH_READER)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("width_reader", None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "images").mkdir(parents=True)
    for split, ids in POSTS.items():
        posts = [f"IMGID:{post_id}\nPhoenix\tB-LOC\n!\tO\n" for post_id in ids]
        (folder / f"{split}.txt").write_text("\n".join(posts), encoding="utf-8")
    for name, width in {"a.png": 40, "copy-of-a.png": 40, "b.jpg": 50, "nothing-found.png": 44, "z.webp": 60}.items():
        picture(width).save(folder / "images" / name)
    Image.new("RGB", (20, 20), "grey").save(folder / "images" / "blank.png")
    (folder / "images" / "broken.jpg").write_text("?")
    (folder / "images" / "of-no-post.txt").write_text("?")
    return folder


def build(root: Path, *arguments: str, aligner: str = "ocr=width_reader:WidthReader") -> dict[str, Any]:
    """Run the command with an aligner that reads the width; returns the end report."""
    assert main([*arguments, *fixed_arguments(root, aligner), "--report", str(root / "report.json")]) == 0
    return json.loads((root / "report.json").read_text())


def fixed_arguments(root: Path, aligner: str = "ocr=width_reader:WidthReader") -> list[str]:
    kind = aligner.partition("=")[0]
    return ["--aligner", aligner, "--set", f"{kind}.log={root / 'log'}", "--store", str(root / "store")]


def shown(root: Path) -> list[int]:
    """The widths of all images that the aligner was ever shown."""
    log = root / "log"
    return sorted(int(line.split()[1]) for line in log.read_text().splitlines()) if log.exists() else []


def rows_of(path: Path) -> dict[str, VisualContext]:
    return read_contexts([path])


def counts(report: dict[str, Any]) -> list[int]:
    return [report[what] for what in ("images", "built", "stored", "missing", "unreadable", "blank", "placeholder")]


def test_one_row_a_post(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "contexts.jsonl"
    report = build(tmp_path, str(corpus), "--output", str(output))
    rows = rows_of(output)
    assert list(rows) == IDS
    read = {key: context.ocr for key, context in rows.items() if context}
    assert read == {"a": ["width 40"], "b": ["width 50"], "copy-of-a": ["width 40"], "z": ["width 60"]}
    assert shown(tmp_path) == [40, 44, 50, 60]  # the copy was looked at once
    assert counts(report) == [8, 4, 1, 1, 1, 1, 0] and report["distinct"] == 6
    assert report["kinds"]["ocr"]["with_text"] == 4 and report["kinds"]["ocr"]["without"] == 1
    assert report["kinds"]["ocr"]["examples"][0] == "a: width 40"
    assert [fault.partition(",")[0] for fault in report["faults"]] == [
        "no-image: missing",
        "blank: blank",
        "broken: unreadable",
    ]
    origin = dict(rows["a"].provenance["ocr"])
    assert origin.pop("date") and origin.pop("image_sha256") == image_sha256(corpus / "images" / "a.png")
    assert origin == report["kinds"]["ocr"]["aligner"]
    assert "nothing-found" in rows and rows["nothing-found"].provenance["ocr"]["model"] == "width"


def test_the_second_run_does_nothing_and_says_so(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "contexts.jsonl"
    build(tmp_path, str(corpus), "--output", str(output))
    assert f"{output} written" in capsys.readouterr().out
    stamp, seen = output.stat().st_mtime_ns, shown(tmp_path)
    report = build(tmp_path, str(corpus), "--output", str(output))
    said = capsys.readouterr().out
    assert "8 images (6 different): 0 built, 5 from store, 1 missing, 1 unreadable, 1 blank" in said
    assert f"{output} is up to date" in said and "nothing was left to do" in said
    assert counts(report) == [8, 0, 5, 1, 1, 1, 0]
    assert output.stat().st_mtime_ns == stamp and shown(tmp_path) == seen


def test_changed_and_new_images_are_read(corpus: Path, tmp_path: Path) -> None:
    build(tmp_path, str(corpus))
    picture(70).save(corpus / "images" / "a.png")
    picture(80).save(corpus / "images" / "no-image.png")
    report = build(tmp_path, str(corpus))
    assert counts(report) == [8, 2, 4, 0, 1, 1, 0]
    assert shown(tmp_path) == [40, 44, 50, 60, 70, 80]


def test_another_aligner_or_setting_reads_again_and_the_first_is_kept(corpus: Path, tmp_path: Path) -> None:
    build(tmp_path, str(corpus))
    assert counts(build(tmp_path, str(corpus), "--set", "ocr.score=0.25"))[1] == 4
    assert counts(build(tmp_path, str(corpus)))[1:3] == [0, 5]
    store = ContextStore(tmp_path / "store")
    assert sorted(identity["settings"].get("score", 0) for kind, identity in store.aligners() if kind == "ocr") == [
        0.25,
        0.5,
    ]


def test_a_stopped_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    stopping = ["--set", "ocr.stop_at=60", "--batch_size", "1", "--workers", "1"]
    assert main([str(corpus), *fixed_arguments(tmp_path), *stopping]) == 130
    assert shown(tmp_path) == [40, 44, 50]
    report = build(tmp_path, str(corpus), "--batch_size", "1")
    assert shown(tmp_path) == [40, 44, 50, 60]
    assert counts(report) == [8, 1, 4, 1, 1, 1, 0]
    assert not list((tmp_path / "store").glob(".run-*/*.jsonl.tmp"))


def test_merged_kinds(corpus: Path, tmp_path: Path) -> None:
    scenes, knowledge = corpus / "scenes.jsonl", corpus / "knowledge.jsonl"
    scenes.write_text(
        '{"id": "a", "captions": ["a box"], "ocr": ["old"], "source": {"captions": "scene", "ocr": "old"}}\n'
        '{"id": "no-image", "captions": ["a sky"]}\n'
        '{"id": "nothing-found", "ocr": ["old"]}\n'
        '{"id": "of-no-post", "captions": ["?"]}\n'
    )
    knowledge.write_text('{"id": "a", "knowledge": ["Phoenix is a city"]}\n')
    output = tmp_path / "contexts.jsonl"
    report = build(tmp_path, str(corpus), "--output", str(output), "--merge", str(scenes), str(knowledge))
    rows = rows_of(output)
    assert rows["a"].kinds == {"captions": ["a box"], "ocr": ["width 40"], "knowledge": ["Phoenix is a city"]}
    assert rows["a"].provenance["captions"] == {"model": "scene"}
    assert rows["a"].provenance["ocr"]["model"] == "width"
    assert rows["no-image"].kinds == {"captions": ["a sky"]}
    assert rows["nothing-found"].kinds == {}
    assert (report["merged"], report["merged_without_image"]) == (3, 1)


@pytest.mark.parametrize("line", ['{"captions": ["x"]}', '{"id": "b", "captions": "x"}', '["b"]', "{"])
def test_malformed_rows_are_named(corpus: Path, tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = corpus / "scenes.jsonl"
    scenes.write_text(f'{{"id": "a", "captions": ["x"]}}\n{line}\n')
    output = str(tmp_path / "x.jsonl")
    assert main([str(corpus), *fixed_arguments(tmp_path), "--merge", str(scenes), "--output", output]) == 2
    assert re.match(r"error: .*scenes\.jsonl, line 2: ", capsys.readouterr().err)
    assert shown(tmp_path) == []


def test_parquet_is_read_as_json_lines_are(corpus: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "parquet"):
        output = str(tmp_path / f"contexts.{suffix}")
        build(tmp_path, str(corpus), "--output", output)
    assert build(tmp_path, str(corpus), "--output", output)["output"] == "up to date"
    rows = []
    for suffix in ("jsonl", "parquet"):
        files = {"data_dir": str(corpus), "images_dir": str(corpus / "images")}
        builder = MnerDataset(
            config_name="conll",
            **files,
            context_files=[str(tmp_path / f"contexts.{suffix}")],
            cache_dir=str(tmp_path / "cache"),
        )
        builder.download_and_prepare()
        rows.append([VisualContext.from_dict(row["context"]) for row in builder.as_dataset(split="train")])
    assert rows[0] == rows[1] and rows[0][0].ocr == ["width 40"] and rows[0][0].provenance["ocr"]["revision"] == "1"


def test_placeholders_count_as_missing(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    placeholder = Image.new("RGB", (300, 200), (200, 200, 200))
    ImageDraw.Draw(placeholder).text((110, 90), "no image", font=ImageFont.load_default(20), fill="dimgrey")
    for number in range(12):
        placeholder.save(folder / f"gone{number}.jpg", quality=60 + 3 * number)
    picture(90).save(folder / "real.png")
    output = tmp_path / "contexts.jsonl"
    report = build(tmp_path, "--images", str(folder), "--output", str(output))
    assert counts(report) == [13, 1, 0, 0, 0, 0, 12]
    assert [key for key, context in rows_of(output).items() if context] == ["real"]
    report = build(tmp_path, "--images", str(folder), "--output", str(output), "--placeholder_copies", "0")
    assert counts(report) == [13, 0, 13, 0, 0, 0, 0]


def test_sources_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, width in {"a.jpg": 40, "a.png": 50, "more/b.JPG": 60}.items():
        picture(width).save(folder / name)
    (folder / "notes.txt").write_text("?")
    assert [key for key, _ in file_images(str(folder)).pairs] == ["a.jpg", "a.png", "more/b.JPG"]
    assert [key for key, _ in file_images(f"{folder}/*.jpg").pairs] == ["a"]
    assert [key for key, _ in file_images(f"{folder}/**/*.[jJ][pP][gG]").pairs] == ["a", "more/b"]
    assert [key for key, _ in file_images(str(folder / "a.png")).pairs] == ["a"]
    (tmp_path / "list.txt").write_text("photos/a.png\n\nphotos/gone.png\n")
    listed = file_images(str(tmp_path / "list.txt"))
    assert listed.count == 2 and [key for key, _ in listed.pairs] == ["photos/a", "photos/gone"]
    report = build(tmp_path, "--images", str(tmp_path / "list.txt"))
    assert counts(report) == [2, 1, 0, 1, 0, 0, 0]
    for nothing in (tmp_path / "nowhere", tmp_path / "nowhere" / "*.jpg"):
        with pytest.raises(ValueError, match="there is no image"):
            file_images(str(nothing))


@pytest.fixture
def image_dataset(tmp_path: Path) -> str:
    rows = {"key": ["x", "y", "z"], "photo": [picture(40), None, picture(50)], "words": [["a"], ["b"], ["c"]]}
    features = datasets.Features(
        {
            "key": datasets.Value("string"),
            "photo": datasets.Image(),
            "words": datasets.List(datasets.Value("string")),
        }
    )
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "data" / "train.parquet")
    return str(tmp_path / "data")


def test_any_dataset_with_images(image_dataset: str, tmp_path: Path) -> None:
    output = tmp_path / "contexts.jsonl"
    report = build(tmp_path, "--dataset", image_dataset, "--id_column", "key", "--output", str(output))
    assert {key: context.ocr for key, context in rows_of(output).items()} == {
        "x": ["width 40"],
        "y": [],
        "z": ["width 50"],
    }
    assert counts(report) == [3, 2, 0, 1, 0, 0, 0]
    assert [key for key, _ in dataset_images(image_dataset).pairs] == ["0", "1", "2"]
    assert counts(build(tmp_path, "--dataset", image_dataset, "--limit", "1")) == [1, 0, 1, 0, 0, 0, 0]


def test_images_in_an_archive(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "train.zip", "w") as archive:
        for width in (40, 50):
            picture(width).save(tmp_path / f"{width}.png")
            archive.write(tmp_path / f"{width}.png", f"{width}.png")
    assert counts(build(tmp_path, "--dataset", str(tmp_path / "set"))) == [2, 2, 0, 0, 0, 0, 0]


def test_repeated_ids_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"key": ["x", "x"], "photo": [picture(40), picture(50)]}
    features = datasets.Features({"key": datasets.Value("string"), "photo": datasets.Image()})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "data" / "train.parquet")
    report = build(tmp_path, "--dataset", str(tmp_path / "data"), "--id_column", "key")
    assert report["ids_repeated"] == 1 and "1 images have the id of another" in capsys.readouterr().out


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"caf\xe8.png", b"caf\\xe9.png"]
    for number, name in enumerate(names):
        picture(40 + number).save(os.fsencode(tmp_path) + b"/" + name)
    output = tmp_path / "contexts.parquet"
    build(tmp_path, "--images", str(tmp_path), "--output", str(output), "--report", str(tmp_path / "report.json"))
    assert {key: context.ocr for key, context in rows_of(output).items()} == {
        r"caf\xe8": ["width 41"],
        r"caf\xe9": ["width 42"],
        r"caf\xe9#2": ["width 40"],
    }
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 3


def test_a_store_that_can_only_be_read(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, str(corpus), "--limit", "2")
    make = os.mkdir

    def refuse(path: Any, *others: Any, **options: Any) -> None:
        if str(tmp_path / "store") in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        make(path, *others, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    output = tmp_path / "contexts.jsonl"
    report = build(tmp_path, str(corpus), "--output", str(output))
    assert {key: context.ocr for key, context in rows_of(output).items() if context} == {
        "a": ["width 40"],
        "b": ["width 50"],
        "copy-of-a": ["width 40"],
        "z": ["width 60"],
    }
    assert report["not_kept"] and "were not kept: the store cannot be written" in capsys.readouterr().out


def test_a_damaged_shard_is_counted_and_its_images_are_read_again(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build(tmp_path, str(corpus))
    assert first["damaged_shards"] == []
    for shard in (tmp_path / "store" / "ocr").rglob("*.parquet"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    again = build(tmp_path, str(corpus))
    assert again["aligned"] == first["aligned"] and again["damaged_shards"] == [f"{shard}.damaged"]
    assert f"its images were read again: {shard}.damaged" in capsys.readouterr().out
    assert build(tmp_path, str(corpus))["aligned"] == 0


def test_a_store_that_is_not_shared_is_an_error(tmp_path: Path) -> None:
    class Alone:
        process_index, num_processes = 0, 2

        def wait_for_everyone(self) -> None:
            pass

    picture(40).save(tmp_path / "a.png")
    builder = VisualContextBuilder(store=ContextStore(tmp_path / "store"), ocr=lambda images: ["x"] * len(images))
    process: Any = Alone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset_scripts.contexts.align_images.broadcast_object_list", lambda names: names)
        with pytest.raises(OSError, match=r"lacks what the processes \[1\] of 2 did: the store must be one folder"):
            align_images(file_images(str(tmp_path / "a.png")), builder, tmp_path / "store", process=process)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_column": "words"}, "column 'words' of .* holds no images"),
        ({"image_column": "picture"}, "no column 'picture'"),
        ({"id_column": "number"}, "no column 'number'"),
        ({"split": "test"}, "cannot be read"),
    ],
)
def test_datasets_that_lack_something(image_dataset: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_images(image_dataset, **arguments)


def test_urls_are_counted_and_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("web", "https://example.org/a.jpg"), ("file", str(tmp_path / "a.png")), ("number", 3)]
    picture(40).save(tmp_path / "a.png")
    builder = VisualContextBuilder(store=ContextStore(tmp_path / "store"), ocr=lambda images: ["x"] * len(images))
    records = align_images(ImageSet(iter(pairs)), builder, tmp_path / "store")  # type: ignore[arg-type]
    assert [(record.id, record.state) for record in records] == [
        ("web", "unreadable"),
        ("file", "readable"),
        ("number", "unreadable"),
    ]
    assert "no URL is fetched" in records[0].detail


def test_a_stream_is_read_a_few_batches_ahead_only(tmp_path: Path) -> None:
    taken, ahead = 0, []

    def pairs() -> Any:
        nonlocal taken
        for number in range(200):
            taken += 1
            path = tmp_path / f"{number}.png"
            picture(40 + number).save(path)
            yield str(number), str(path)

    done = 0

    def widths(images: Sequence[Image.Image]) -> list[str]:
        nonlocal done
        assert len(images) <= 2
        done += len(images)
        ahead.append(taken - done)
        return [str(image.width) for image in images]

    builder = VisualContextBuilder(store=ContextStore(tmp_path / "store"), ocr=widths)
    records = align_images(ImageSet(pairs()), builder, tmp_path / "store", batch_size=2)
    assert [record.number for record in records] == list(range(200))
    assert max(ahead) <= 4 * 2 * 2


def test_large_images_are_not_held_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset_scripts.contexts.align_images.MAX_HELD_PIXELS", 100_000)
    for number in range(12):
        picture(300 + number).save(tmp_path / f"{number:02}.png")  # 67,500 pixels and more
    sizes: list[int] = []

    def count(images: Sequence[Image.Image]) -> list[str]:
        sizes.append(len(images))
        return ["x"] * len(images)

    builder = VisualContextBuilder(store=ContextStore(tmp_path / "store"), ocr=count)
    align_images(file_images(str(tmp_path)), builder, tmp_path / "store", batch_size=4, workers=1)
    assert sum(sizes) == 12 and max(sizes) < 4


def test_a_kind_of_ones_own(tmp_path: Path) -> None:
    picture(40).save(tmp_path / "a.png")
    output = tmp_path / "contexts.jsonl"
    arguments = ["--images", str(tmp_path / "a.png"), "--store", str(tmp_path / "store"), "--output", str(output)]
    main([*arguments, "--aligner", "halves=width_reader:halves"])
    assert rows_of(output)["a"].kinds == {"halves": ["half is 20"]}
    assert rows_of(output)["a"].provenance["halves"]["model"] == "width_reader:halves"


def test_preview(corpus: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "out" / "sheet.html"
    (corpus / "images" / "b.jpg").rename(corpus / "images" / "b.gif")
    ids = [key for key in IDS if key != "z"]
    build(tmp_path, str(corpus), "--preview", str(sheet), "--preview_images", "7")
    page = sheet.read_text(encoding="utf-8")
    assert [html.unescape(found) for found in re.findall("<h2>(.*?)</h2>", page)] == ids
    assert page.count('src="data:image/jpeg;base64,') == 4
    assert "width 40" in page and "0.50" in page and "nothing found" in page
    assert page.count('class="fault"') == 3
    assert not re.findall(r"https?://|<script|@import", page)


def test_previews_quote_what_they_show(tmp_path: Path) -> None:
    (tmp_path / "width_reader.py").write_text(
        "def evil(images):\n    return ['<script>alert(1)</script>&amp;\\ud83d']\n"
    )
    picture(40).save(tmp_path / "<b>.png")
    arguments = ["--images", str(tmp_path / "<b>.png"), "--store", str(tmp_path / "store")]
    main([*arguments, "--aligner", "x=width_reader:evil", "--preview", str(tmp_path / "sheet.html")])
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;?" in page and "<h2>&lt;b&gt;</h2>" in page


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ([], ["object_tags", "captions", "ocr"]),
        (["--profile", "gpu"], ["object_tags", "captions", "ocr"]),
        (["--ocr", "rapidocr"], ["ocr"]),
        (["--kinds", "ocr", "captions"], ["ocr", "captions"]),
        (["--profile", "cpu", "--captions", "none", "--aligner", "mood=a:b"], ["object_tags", "ocr", "mood"]),
        (["--kinds", "captions", "--ocr", "rapidocr"], ["captions"]),
        (["--ocr", "none"], []),
    ],
)
def test_which_aligners_are_chosen(arguments: list[str], kinds: list[str]) -> None:
    assert list(build_visual_context.recipes(parsed(arguments))) == kinds


def parsed(arguments: list[str]) -> Any:
    from transformers import HfArgumentParser

    return HfArgumentParser(build_visual_context.BuildArguments).parse_args_into_dataclasses(arguments)[0]


def test_settings_are_json_where_they_can_be() -> None:
    chosen = build_visual_context.recipes(
        parsed(
            [
                "--captions",
                "a/b",
                "--ocr",
                "easyocr",
                "--set",
                "captions.num_captions=1",
                "captions.prompt=a photo of",
                "--set",
                'ocr.languages=["en", "fr"]',
                "captions.revision=v1",
            ]
        )
    )
    assert chosen["captions"].pop("revision") == "v1"
    assert chosen["captions"] == {"model": "a/b", "settings": {"num_captions": 1, "prompt": "a photo of"}}
    assert chosen["ocr"]["settings"] == {"languages": ["en", "fr"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "mood"], "'mood' has no aligner: name one with --aligner mood=NAME"),
        (["--aligner", "mood"], "expected KIND=NAME"),
        (["--ocr", "rapidocr", "--set", "captions.x=1"], "KIND one of ocr"),
        (["--ocr", "rapidocr", "--set", "ocr.beams=1"], "ocr: .*beams"),
        (["--aligner", "mood=no_such_module_x:f"], "mood: no_such_module_x:f cannot be imported"),
        (["--ocr", "rapidocr", "--output", "contexts.csv"], r"contexts.csv: the name ends in neither .jsonl nor"),
        (["--ocr", "rapidocr", "--batch_size", "0"], "batch_size is 0"),
        (["--ocr", "rapidocr", "--limit", "-1"], "limit is -1"),
        (["--aligner", "store=width_reader:halves"], "expected KIND=NAME"),
        (["--aligner", "..=width_reader:halves"], "cannot be the name of a kind"),
        (["--captions", "a/b", "--device", "nowhere"], "captions: .*nowhere"),
    ],
)
def test_what_is_wrong_is_named(
    corpus: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(corpus), "--store", str(tmp_path / "store"), *arguments]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_images_come_from_one_place(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for sources in ([], [str(corpus), "--images", str(corpus / "images")]):
        with pytest.raises(SystemExit):
            main([*sources, "--ocr", "rapidocr"])
        assert "one of CORPUS, --images and --dataset" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), "--ocr", "rapidocr"]) == 2
    assert re.match(r"error: .*nowhere", capsys.readouterr().err)
    assert main([str(corpus), "--images_dir", str(tmp_path / "pictures"), "--ocr", "rapidocr"]) == 2
    assert re.match(r"error: images_dir: there is no folder .*pictures", capsys.readouterr().err)


def test_ocr_for_real(corpus: Path, tmp_path: Path) -> None:
    picture(320, "Lisbon").save(corpus / "images" / "a.png")
    output = tmp_path / "contexts.jsonl"
    main([str(corpus), "--ocr", "rapidocr", "--store", str(tmp_path / "store"), "--output", str(output)])
    assert rows_of(output)["a"].kinds == {"ocr": ["Lisbon"]}


def test_sample_posts_without_ocr(tmp_path: Path) -> None:
    output = tmp_path / "contexts.jsonl"
    main(["sample_posts", "--ocr", "none", "--store", str(tmp_path / "store"), "--output", str(output)])
    rows = rows_of(output)
    assert len(rows) > 100
    assert {kind for context in rows.values() for kind in context.kinds} == {"object_tags", "captions"}


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        picture(50 + number).save(folder / f"{number:02}.png")
    output = tmp_path / "contexts.jsonl"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["dataset_scripts.build_visual_context", "--images", str(folder), "--output", str(output)]
    command += ["--aligner", "ocr=width_reader:WidthReader", "--set", f"ocr.log={tmp_path / 'log'}"]
    command += ["--store", str(tmp_path / "store"), "--batch_size", "2"]
    root = str(Path(build_visual_context.__file__).parents[1])
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "30 images (30 different): 30 built" in done.stdout and done.stdout.count("different") == 1
    processes = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(processes) == 2 and shown(tmp_path) == list(range(50, 80))
    assert [context.ocr for context in rows_of(output).values()] == [[f"width {50 + n}"] for n in range(30)]


WATCHED = """
import sys, warnings
from dataset_scripts.build_visual_context import main
warnings.simplefilter("ignore")

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

idle = peak()
main(sys.argv[1:])
print("mebibytes", (peak() - idle) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_hostile_images_are_counted_in_bounded_memory(tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    expected = write_hostile_images(folder)
    assert len(expected) >= 100
    (tmp_path / "list.txt").write_text("".join(f"{folder / name}\n" for name in expected))
    arguments = ["--images", str(tmp_path / "list.txt"), "--store", str(tmp_path / "store"), "--workers", "2"]
    arguments += ["--aligner", "half=width_reader:halves", "--report", str(tmp_path / "report.json")]
    root = str(Path(build_visual_context.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, *arguments, "--preview", str(tmp_path / "sheet.html")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    states = Counter(expected.values())
    images, built, stored, missing, unreadable, blank, placeholder = counts(
        json.loads((tmp_path / "report.json").read_text())
    )
    assert images == len(expected) and placeholder == 0
    assert missing == 2  # links to nothing
    assert missing + unreadable == states["unreadable"]
    assert (built + stored, blank) == (states["readable"], states["blank"])
    assert float(done.stdout.split("mebibytes")[1]) < 1024


def test_report_for_people(tmp_path: Path) -> None:
    picture(40).save(tmp_path / "a.png")
    report = build(tmp_path, "--images", str(tmp_path / "a.png"))
    assert report_text(report).splitlines() == [
        "1 images (1 different): 1 built, 0 from store, 0 missing, 0 unreadable, 0 blank, 0 placeholder",
        "ocr: 1 images with text, 0 without, 1 strings, by width",
        "    a: width 40",
    ]
