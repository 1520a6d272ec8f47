"""Broken and hostile checkpoints: one line names the file; benchmarks/attacks/checkpoints.py tries them all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_checkpoints import Harm, broken, edit, hostile
from stranger import run_stranger
from tiny_mgcmt import make_model
from transformers import BertTokenizer, ConvNextImageProcessorPil

from hub_card import predict
from hub_card.convert_mgcmt import read_checkpoint
from hub_card.hub.exported_folder import export_model
from modeling_ita import (
    ItaForTokenClassification,
    ItaPipeline,
    ItaProcessor,
    MgcmtForTokenClassification,
    MgcmtProcessor,
    WordNeighbours,
)

POST = "Phoenix Suns tonight, Obama in Paris"
SAMPLE = [*broken()[::3], *hostile()]


@pytest.fixture(scope="module")
def intact(
    tiny_model: ItaForTokenClassification,
    tiny_processor: ItaProcessor,
    tiny_encoder: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("intact")
    table = WordNeighbours(["Phoenix", "Suns", "Obama", "Paris"], torch.randn(4, 6), 2)
    table.search(table.words)
    images = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    processor = MgcmtProcessor(BertTokenizer.from_pretrained(tiny_encoder), images, ["car"], word_neighbours=table)
    return {
        "ita": export_model(tiny_model, tiny_processor, root / "ita"),
        "mgcmt": export_model(make_model(), processor, root / "mgcmt"),
    }


def labels(folder: Path, system: str) -> list[dict[str, Any]]:
    model: Any = MgcmtForTokenClassification if system == "mgcmt" else ItaForTokenClassification
    processor: Any = MgcmtProcessor if system == "mgcmt" else ItaProcessor
    pipe: Any = ItaPipeline(
        model=model.from_pretrained(folder), processor=processor.from_pretrained(folder), device="cpu"
    )
    return [{**entity, "score": round(entity["score"], 4)} for entity in pipe(POST)]


@pytest.mark.parametrize("harm", SAMPLE, ids=[harm.name for harm in SAMPLE])
def test_one_line_names_the_file_or_the_labels_are_the_intact_ones(
    harm: Harm, intact: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(intact[harm.system], tmp_path / "checkpoint"))
    harm.do(folder)
    try:
        found = labels(folder, harm.system)
    except (OSError, ValueError, ImportError) as error:
        assert harm.file in str(error)
        assert len(str(error)) <= 1000 and "\n" not in str(error)
    else:
        assert found == labels(intact[harm.system], harm.system)


@pytest.mark.parametrize("name", ["tokenizer.json is half of it", "config.json is a list", "weights: 90% of the file"])
def test_the_command_ends_with_one_line(
    name: str, intact: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm = next(harm for harm in broken() if harm.name == name)
    folder = Path(shutil.copytree(intact["ita"], tmp_path / "checkpoint"))
    harm.do(folder)
    capsys.readouterr()
    assert predict.main([str(folder), POST, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and harm.file in said[0]


def test_a_stranger_is_told_the_same(intact: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(intact["ita"], tmp_path / "checkpoint"))
    edit("processor_config.json", "max_length", "512", folder)
    said = run_stranger(
        "from transformers import pipeline\n"
        "try:\n    pipeline('token-classification', model=sys.argv[1], trust_remote_code=True)\n"
        "except ValueError as error:\n    print(error)\n",
        [folder],
    )
    assert said.strip().endswith(
        "checkpoint/processor_config.json: max_length is '512' (expected an integer, at least 8 tokens)"
    )


def test_what_a_released_file_holds_is_weights_by_name(tmp_path: Path) -> None:
    held: dict[str, Any] = {
        "integer keys": {1: torch.ones(2)},
        "nested": {"state_dict": {"a": torch.ones(2)}},
        "no tensors": {"a": [1.0]},
        "a list": [torch.ones(2)],
    }
    for name, content in held.items():
        torch.save(content, tmp_path / f"{name}.bin")
    (tmp_path / "text.bin").write_text("no weights")
    (tmp_path / "digits.safetensors").write_bytes(b"9" * 5_000)
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=file.name) as caught:
            read_checkpoint(file)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
