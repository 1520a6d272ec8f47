"""What version 0.1 wrote still loads: an exported model by both routes, and a store of contexts."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from stranger import run_stranger
from transformers import AutoModelForTokenClassification, AutoProcessor

from dataset_scripts.contexts.context_store import ContextStore
from modeling_ita import ItaPipeline

ARCHIVE = Path(__file__).parent / "fixtures" / "version_0_1.zip"

STRANGER = """
import json, sys
from transformers import pipeline

pipe = pipeline("token-classification", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(pipe(json.load(open(sys.argv[2]))["posts"]), default=float))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version_0_1")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def assert_expected(written: Path, found: list[list[dict[str, Any]]]) -> None:
    expected = json.loads((written / "expected.json").read_text())["entities"]
    for entities, wanted in zip(found, expected, strict=True):
        assert [{**e, "score": 0} for e in entities] == [{**e, "score": 0} for e in wanted]
        assert [e["score"] for e in entities] == pytest.approx([e["score"] for e in wanted], abs=1e-4)


def test_a_model_loads_with_this_code(written: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(written / "model", trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(written / "model", trust_remote_code=False)
    pipe = ItaPipeline(model=model, processor=processor)
    assert_expected(written, pipe(json.loads((written / "expected.json").read_text())["posts"]))


def test_a_model_loads_with_its_own_code(written: Path, tmp_path: Path) -> None:
    said = run_stranger(STRANGER, [written / "model", written / "expected.json"], folder=tmp_path)
    assert_expected(written, json.loads(said.strip().splitlines()[-1]))


def test_a_store_is_read(written: Path) -> None:
    store = ContextStore(written / "store", read_only=True)
    identity = {"model": "reader", "revision": "1", "settings": {"min_score": 0.5}}
    found = store.look_up(hashlib.sha256(b"1").hexdigest(), "ocr", identity)
    assert found is not None and found.strings == ["OPEN", "24 h"] and found.scores == pytest.approx([0.9, 0.5])
