"""The embedded corpus: its files follow from its source, its splits share no name, its pictures can be read."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from dataset_scripts.sample_posts import SAMPLE_POSTS
from dataset_scripts.sample_posts.corpus import SPLITS, TYPES, SamplePost, read_posts, statistics, to_conll, to_scenes
from dataset_scripts.sample_posts.draw import draw_post, image_name, main, write_corpus
from dataset_scripts.sample_posts.scenes import BLANK_SCENES, PHOTOGRAPHS, SCENES

CORPUS = read_posts(SAMPLE_POSTS / "posts.yaml")
POSTS = [post for posts in CORPUS.values() for post in posts]
FUNCTION_WORDS = {"a", "in", "of", "the"}
VISUAL = ("ocr", "captions", "object_tags")


def names(split: str) -> set[str]:
    return {name.lower() for post in CORPUS[split] for name, _ in post.entities}


def source(tmp_path: Path, entry: str) -> Path:
    path = tmp_path / "posts.yaml"
    path.write_text(f"train:\n{entry}\nvalid: []\ntest: []\n", encoding="utf-8")
    return path


# The files and their source


@pytest.mark.parametrize("split", SPLITS)
def test_text_file_follows_from_source(split: str) -> None:
    assert (SAMPLE_POSTS / f"{split}.txt").read_text(encoding="utf-8") == to_conll(CORPUS[split])


def test_scenes_file_follows_from_source_and_leaves_the_reading_to_ocr() -> None:
    text = (SAMPLE_POSTS / "scenes.jsonl").read_text(encoding="utf-8")
    assert text == to_scenes(POSTS)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == [post.id for post in POSTS if post.scene]
    assert all(set(row) == {"id", "object_tags", "captions", "source"} for row in rows)
    assert all(row["captions"] for row in rows)


def test_text_files_parse_as_the_twitter_format() -> None:
    for split in SPLITS:
        blocks = (SAMPLE_POSTS / f"{split}.txt").read_text(encoding="utf-8").rstrip("\n").split("\n\n")
        assert len(blocks) == len(CORPUS[split])
        for block, post in zip(blocks, CORPUS[split], strict=True):
            head, *rows = block.split("\n")
            assert head == f"IMGID:{post.id}"
            assert [tuple(row.split("\t")) for row in rows] == list(zip(post.words, post.tags, strict=True))


def test_pictures_are_those_of_the_posts_with_a_scene() -> None:
    files = sorted((SAMPLE_POSTS / "images").iterdir())
    assert [path.name for path in files] == sorted(image_name(post) for post in POSTS if post.scene)
    assert {path.suffix for path in files} == {".png", ".jpg"}
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert (image.size, image.mode) == ((320, 240), "RGB")
            assert image.format == ("PNG" if path.suffix == ".png" else "JPEG")


@pytest.mark.parametrize("scene", SCENES)
def test_drawing_again_gives_the_picture_on_disk(scene: str) -> None:
    post = next(post for post in POSTS if post.scene == scene)
    with Image.open(SAMPLE_POSTS / "images" / image_name(post)) as stored:
        difference = ImageStat.Stat(ImageChops.difference(stored, draw_post(post)))
    # JPEG loses a little; a release of PIL may set type a little differently.
    assert max(difference.mean) < (6 if scene in PHOTOGRAPHS else 2)


def test_writing_twice_gives_the_same_bytes_and_removes_stale_pictures(tmp_path: Path) -> None:
    few = {split: posts[:3] for split, posts in CORPUS.items()}
    write_corpus(tmp_path, few)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    (tmp_path / "images" / "earlier.png").write_bytes(b"")
    write_corpus(tmp_path, few)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_readme_states_the_computed_figures(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--stats"])
    table = capsys.readouterr().out
    assert table == statistics(CORPUS, BLANK_SCENES)
    assert table in (SAMPLE_POSTS / "README.md").read_text(encoding="utf-8")


# What the corpus promises


def test_tags_are_well_formed_and_all_types_occur_in_every_split() -> None:
    for post in POSTS:
        for before, tag in zip(("O", *post.tags), post.tags, strict=False):
            assert tag == "O" or re.fullmatch(rf"[BI]-({'|'.join(TYPES)})", tag)
            assert tag[0] != "I" or before[1:] == tag[1:]
    for split in SPLITS:
        assert {entity_type for post in CORPUS[split] for _, entity_type in post.entities} == set(TYPES)


def test_words_hold_no_white_space_and_sigils_stand_alone() -> None:
    words = [word for post in POSTS for word in post.words]
    assert all(word and not re.search(r"\s", word) for word in words)
    assert all(word in "#@" for word in words if word[0] in "#@")


@pytest.mark.parametrize(("first", "second"), [("train", "valid"), ("train", "test"), ("valid", "test")])
def test_splits_share_no_word_of_a_name(first: str, second: str) -> None:
    words = [{word for name in names(split) for word in name.split()} - FUNCTION_WORDS for split in (first, second)]
    assert not words[0] & words[1]


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_name_no_name_of_another_split(split: str) -> None:
    shown = " ".join(" ".join((*p.lettering, *p.captions)).lower() for p in CORPUS[split])
    others = set().union(*(names(other) for other in SPLITS if other != split))
    assert [name for name in others if re.search(rf"\b{name}\b", shown)] == []


@pytest.mark.parametrize("split", SPLITS)
def test_names_that_the_picture_decides_are_ambiguous_within_the_split(split: str) -> None:
    readings = defaultdict(set)
    for post in CORPUS[split]:
        for name, entity_type in post.entities:
            readings[name.lower()].add(entity_type)
    for post in CORPUS[split]:
        if post.decided_by in VISUAL:
            assert post.scene not in (None, *BLANK_SCENES)
            assert any(len(readings[name.lower()]) > 1 for name, _ in post.entities)


def test_each_kind_of_context_decides_a_third_of_the_ambiguous_posts() -> None:
    for split in SPLITS:
        decided = [post.decided_by for post in CORPUS[split] if post.decided_by in VISUAL]
        for kind in VISUAL:
            assert decided.count(kind) / len(decided) == pytest.approx(1 / 3, abs=0.06)


def test_the_same_words_stand_with_different_types_in_train() -> None:
    readings: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for post in CORPUS["train"]:
        readings[" ".join(post.words).lower()].add(post.tags)
    assert sum(len(tags) > 1 for tags in readings.values()) >= 20


# The pixels can be read


def test_ocr_reads_the_lettering() -> None:
    rapidocr = pytest.importorskip("rapidocr")
    engine = rapidocr.RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,
            "Det.limit_side_len": 320,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        }
    )
    lettered = {post.scene: post for post in CORPUS["test"] if post.scene and post.lettering}
    sample = [lettered[scene] for scene in sorted(lettered)][:12]
    assert len(sample) == 12
    for post in sample:
        read = engine(str(SAMPLE_POSTS / "images" / image_name(post))).txts or ()
        letters = re.sub(r"[^A-Z0-9]", "", "".join(read).upper())
        for line in post.lettering:
            assert re.sub(r"[^A-Z0-9]", "", line) in letters, f"{post.id}: {post.lettering} was read as {read}"


# Bad entries


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('- {id: x, post: "[Ada]NAME", decided_by: post}', r"post 'x': \[Ada\] has the type 'NAME'"),
        ('- {id: x, post: "hi", decided_by: luck}', r"post 'x': decided_by is 'luck'"),
        ('- {id: x, post: "hi", decided_by: post, caption: hi}', r"post 'x': unknown key 'caption'"),
        ('- {id: x, post: "a", decided_by: post}\n- {id: x, post: "b", decided_by: post}', r"'x' stands 2 times"),
    ],
)
def test_bad_entries_are_refused_by_name(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_posts(source(tmp_path, entry))


def test_an_unknown_scene_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="post x: no scene 'moon'"):
        draw_post(SamplePost("x", ("hi",), ("O",), "post", scene="moon"))
