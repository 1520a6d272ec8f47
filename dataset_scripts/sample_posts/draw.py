"""Make the sample corpus' files from `posts.yaml`.

`python -m dataset_scripts.sample_posts.draw` writes `train.txt`, `valid.txt`, `test.txt`, `scenes.jsonl` and
`images/`; with `--stats` it writes nothing and prints the table of README.md. The same source gives the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from modeling_ita.command_line import command
from modeling_ita.whole_files import write_text, written_file

from . import SAMPLE_POSTS
from .canvas import Canvas
from .corpus import SamplePost, read_posts, statistics, to_conll, to_scenes
from .scenes import BLANK_SCENES, PHOTOGRAPHS, SCENES


def draw_post(post: SamplePost) -> Image.Image:
    """The picture of a post, 320 × 240 pixels.

    Raises:
        ValueError: the post has no scene, or one that is not in `SCENES`.
    """
    if post.scene not in SCENES:
        raise ValueError(f"post {post.id}: no scene {post.scene!r} (there are {', '.join(SCENES)})")
    canvas = Canvas(post.id)
    SCENES[post.scene](canvas, post.lettering)
    return canvas.finish()


def image_name(post: SamplePost) -> str:
    """The picture's file name: JPEG where a camera would have made it, PNG where a drawing program would."""
    return f"{post.id}.{'jpg' if post.scene in PHOTOGRAPHS else 'png'}"


def write_corpus(folder: Path, corpus: dict[str, list[SamplePost]]) -> None:
    """Write the text files, the scenes and the pictures. Removes pictures of posts that no longer exist."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    posts = [post for split in corpus.values() for post in split]
    for split, members in corpus.items():
        write_text(folder / f"{split}.txt", to_conll(members))
    write_text(folder / "scenes.jsonl", to_scenes(posts))
    drawn = {image_name(post): post for post in posts if post.scene}
    for path in images.iterdir():
        if path.name not in drawn:
            path.unlink()
    for name, post in drawn.items():
        settings = {"quality": 74} if name.endswith(".jpg") else {"optimize": True}
        with written_file(images / name) as part:
            draw_post(post).save(part, **settings)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: make the files, or print the table of figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stats", action="store_true", help="print the statistics table and write nothing")
    parser.add_argument("--folder", type=Path, default=SAMPLE_POSTS, help="where to write (default: this package)")
    options = parser.parse_args(arguments)
    corpus = read_posts(SAMPLE_POSTS / "posts.yaml")
    if options.stats:
        print(statistics(corpus, BLANK_SCENES), end="")
    else:
        write_corpus(options.folder, corpus)


if __name__ == "__main__":
    sys.exit(main())
