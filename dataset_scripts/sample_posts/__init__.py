"""The embedded default corpus: about 300 short posts with drawn images, and the script that makes it.

`SAMPLE_POSTS` is the folder that `MnerDataset` reads: `train.txt`, `valid.txt`, `test.txt`, `images/` and
`scenes.jsonl`. All of it is generated from `posts.yaml`; `README.md` explains what it holds and why.
"""

from __future__ import annotations

from pathlib import Path

SAMPLE_POSTS = Path(__file__).resolve().parent
"""The folder with the corpus' files."""
