from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from dataset_scripts.build_visual_context import build_contexts, corpus_images, main
from dataset_scripts.mner import MnerConfig
from modeling_ita.image_file import image_sha256
from modeling_ita.visual_context import VisualContext, VisualContextBuilder


class WidthReader:
    """An aligner that reads an image's width and keeps account of what it was shown; it may be stopped on the way."""

    def __init__(self, kind: str = "ocr", min_score: float = 0.5, stop_at: int | None = None) -> None:
        self.kind = kind
        self.identity = {"model": "width", "revision": "1", "settings": {"min_score": min_score}}
        self.stop_at = stop_at
        self.shown: list[int] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        if any(image.width == self.stop_at for image in images):
            raise KeyboardInterrupt
        self.shown += [image.width for image in images]
        return [[(f"width {image.width}", 1.0)] if image.width != 44 else [] for image in images]


def picture(width: int, text: str = "") -> Image.Image:
    image = Image.new("RGB", (width, width * 3 // 4), "white")
    ImageDraw.Draw(image).rectangle((0, 0, width // 2, width // 4), fill="navy")
    ImageDraw.Draw(image).text((10, width // 3), text, font=ImageFont.load_default(width // 8), fill="black")
    return image


POSTS = {"train": ["a", "b", "copy-of-a", "no-image"], "valid": ["blank", "broken"], "test": ["nothing-found", "z"]}
IDS = [post_id for ids in POSTS.values() for post_id in ids]


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


def images_of(corpus: Path) -> dict[str, str | None]:
    return corpus_images(MnerConfig(name="conll", data_dir=str(corpus), images_dir=str(corpus / "images")))


def build(corpus: Path, aligner: Any, merge: Sequence[Path] = ()) -> dict[str, int]:
    return build_contexts(images_of(corpus), output_of(corpus), VisualContextBuilder(aligner), merge)


def output_of(corpus: Path) -> Path:
    return corpus.parent / "out" / "contexts.jsonl"


def rows_of(path: Path) -> dict[str, VisualContext]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: VisualContext.from_dict(row) for row in rows}


def test_images_of_a_corpus(corpus: Path) -> None:
    images = images_of(corpus)
    assert list(images) == IDS
    assert images["no-image"] is None
    assert images["z"] == str(corpus / "images" / "z.webp")


def test_one_row_a_post(corpus: Path) -> None:
    aligner = WidthReader()
    counts = build(corpus, aligner)
    rows = rows_of(output_of(corpus))
    assert list(rows) == IDS
    assert [rows[post_id].ocr for post_id in ("a", "b", "copy-of-a", "z")] == [
        ["width 40"],
        ["width 50"],
        ["width 40"],
        ["width 60"],
    ]
    assert not any(rows[post_id] for post_id in ("no-image", "blank", "broken", "nothing-found"))
    assert sorted(aligner.shown) == [40, 44, 50, 60]
    assert counts == {
        "posts": 8,
        "missing": 1,
        "images": 6,
        "kept": 0,
        "built": 3,
        "empty": 1,
        "unreadable": 1,
        "blank": 1,
        "lines": 3,
        "merged": 0,
        "unmatched": 0,
        "written": 1,
    }
    origin = rows["b"].provenance["ocr"]
    assert origin.items() >= aligner.identity.items()
    assert origin["image_sha256"] == image_sha256(corpus / "images" / "b.jpg")
    assert rows["nothing-found"].provenance["ocr"]["model"] == "width"
    assert not rows["broken"].provenance
    assert [path.name for path in output_of(corpus).parent.iterdir()] == ["contexts.jsonl"]


def test_second_run_does_nothing(corpus: Path) -> None:
    build(corpus, WidthReader())
    before = output_of(corpus).read_bytes(), output_of(corpus).stat().st_mtime_ns
    aligner = WidthReader()
    counts = build(corpus, aligner)
    assert aligner.shown == []
    assert (counts["kept"], counts["built"], counts["written"]) == (4, 0, 0)
    assert (output_of(corpus).read_bytes(), output_of(corpus).stat().st_mtime_ns) == before


def test_changed_and_new_images_are_read(corpus: Path) -> None:
    build(corpus, WidthReader())
    picture(70).save(corpus / "images" / "b.jpg")
    picture(80).save(corpus / "images" / "no-image.png")
    (corpus / "images" / "z.webp").unlink()
    aligner = WidthReader()
    counts = build(corpus, aligner)
    rows = rows_of(output_of(corpus))
    assert sorted(aligner.shown) == [70, 80]
    assert (counts["kept"], counts["built"], counts["missing"], counts["written"]) == (2, 2, 1, 1)
    assert (rows["b"].ocr, rows["no-image"].ocr, rows["z"].ocr) == (["width 70"], ["width 80"], [])


def test_file_too_large_to_hash_is_unreadable(corpus: Path) -> None:
    with (corpus / "images" / "no-image.png").open("wb") as file:
        file.truncate(100 * 2**20 + 1)
    counts = build(corpus, WidthReader())
    assert (counts["images"], counts["unreadable"], counts["missing"]) == (7, 2, 0)


def test_another_aligner_reads_all_again(corpus: Path) -> None:
    build(corpus, WidthReader())
    aligner = WidthReader(min_score=0.9)
    assert build(corpus, aligner)["kept"] == 0
    assert len(aligner.shown) == 4
    assert rows_of(output_of(corpus))["a"].provenance["ocr"]["settings"] == {"min_score": 0.9}


@pytest.mark.parametrize("half_a_line", ["", '\n{"id": "b", "ocr": ["wid'])
def test_killed_run_goes_on(corpus: Path, half_a_line: str) -> None:
    partial = output_of(corpus).with_name("contexts.jsonl.partial")
    for stop_at, shown in ((44, [40, 50]), (60, [44])):
        stopped = WidthReader(stop_at=stop_at)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, stopped)
        assert stopped.shown == shown
        assert not output_of(corpus).exists()
        with partial.open("a") as file:
            file.write(half_a_line)
    aligner = WidthReader()
    counts = build(corpus, aligner)
    assert aligner.shown == [60]
    assert (counts["kept"], counts["built"]) == (3, 1)
    assert len(rows_of(output_of(corpus))) == len(IDS)
    assert not partial.exists()


def test_killed_update_leaves_the_old_file(corpus: Path) -> None:
    build(corpus, WidthReader())
    before = output_of(corpus).read_bytes()
    picture(70).save(corpus / "images" / "a.png")
    picture(80).save(corpus / "images" / "b.jpg")
    with pytest.raises(KeyboardInterrupt):
        build(corpus, WidthReader(stop_at=80))
    assert output_of(corpus).read_bytes() == before
    aligner = WidthReader()
    build(corpus, aligner)
    assert aligner.shown == [80]
    assert rows_of(output_of(corpus))["a"].ocr == ["width 70"]


def test_merged_kinds(corpus: Path) -> None:
    scenes, knowledge = corpus / "scenes.jsonl", corpus / "knowledge.jsonl"
    scenes.write_text(
        '{"id": "a", "captions": ["a box"], "ocr": ["old"], "source": {"captions": "scene", "ocr": "old"}}\n'
        '{"id": "no-image", "captions": ["a sky"]}\n'
        '{"id": "nothing-found", "ocr": ["old"]}\n'
        '{"id": "of-no-post", "captions": ["?"]}\n'
    )
    knowledge.write_text('{"id": "a", "knowledge": ["Phoenix is a city"]}\n')
    counts = build(corpus, WidthReader(), [scenes, knowledge])
    rows = rows_of(output_of(corpus))
    assert rows["a"].kinds == {"captions": ["a box"], "ocr": ["width 40"], "knowledge": ["Phoenix is a city"]}
    assert rows["a"].provenance["captions"] == {"model": "scene"}
    assert rows["a"].provenance["ocr"]["model"] == "width"
    assert rows["no-image"].kinds == {"captions": ["a sky"]}
    assert rows["nothing-found"].kinds == {}
    assert (counts["merged"], counts["unmatched"]) == (3, 1)
    aligner = WidthReader()
    assert build(corpus, aligner, [scenes, knowledge])["written"] == 0
    knowledge.write_text('{"id": "b", "knowledge": ["else"]}\n')
    assert build(corpus, aligner, [scenes, knowledge])["written"] == 1
    assert rows_of(output_of(corpus))["a"].kinds.keys() == {"captions", "ocr"}
    assert aligner.shown == []


@pytest.mark.parametrize("line", ['{"captions": ["x"]}', '{"id": "b", "captions": "x"}', '["b"]', "{"])
def test_malformed_rows_are_named(corpus: Path, line: str) -> None:
    scenes = corpus / "scenes.jsonl"
    scenes.write_text(f'{{"id": "a", "captions": ["x"]}}\n{line}\n')
    with pytest.raises(ValueError, match=r"scenes\.jsonl, line 2: no row of context \(expected"):
        build(corpus, WidthReader(), [scenes])
    with pytest.raises(ValueError, match=r"no file .*absent\.jsonl to merge"):
        build(corpus, WidthReader(), [corpus / "absent.jsonl"])


def test_command(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(320, "Lisbon").save(corpus / "images" / "a.png")
    scenes = corpus / "scenes.jsonl"
    scenes.write_text('{"id": "a", "captions": ["a box"], "source": {"captions": "scene"}}\n')
    output = corpus.parent / "contexts.jsonl"
    command = [str(corpus), "--ocr", "rapidocr", "--merge", str(scenes), "--output", str(output)]
    main(command)
    assert rows_of(output)["a"].kinds == {"captions": ["a box"], "ocr": ["Lisbon"]}
    report = capsys.readouterr().out
    assert "posts 8, missing 1, images 7, kept 0," in report
    assert f"{output} written" in report
    main(command)
    report = capsys.readouterr().out
    assert "kept 5, built 0, empty 0, unreadable 1, blank 1" in report
    assert f"{output} is up to date: nothing to do" in report


def test_command_names_what_is_wrong(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        main([str(tmp_path / "nowhere"), "--output", str(tmp_path / "x.jsonl")])
    with pytest.raises(SystemExit, match=r"error: images_dir: there is no folder .*pictures"):
        main([str(corpus), "--images_dir", str(tmp_path / "pictures"), "--output", str(tmp_path / "x.jsonl")])
    assert not (tmp_path / "x.jsonl").exists()


def test_sample_posts_without_ocr(tmp_path: Path) -> None:
    main(["sample_posts", "--ocr", "none", "--output", str(tmp_path / "contexts.jsonl")])
    rows = rows_of(tmp_path / "contexts.jsonl")
    assert len(rows) > 100
    assert {kind for context in rows.values() for kind in context.kinds} == {"object_tags", "captions"}
