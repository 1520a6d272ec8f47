from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoTokenizer, HfArgumentParser

import train
from dataset_scripts import audit, build_visual_context, push_dataset
from hub_card import export
from hub_card.hub.exported_folder import export_model
from modeling_ita import ItaForTokenClassification, ItaProcessor, VisualContextBuilder, WordNeighbours

ROOT = Path(train.__file__).parent
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("[!_]*/**/*.md")))
}
TEXT = "\n".join(PAGES.values())


def blocks(language: str, text: str = TEXT) -> list[str]:
    # All fences are read, so that the end of one block is not taken for the beginning of another.
    found = re.findall(r"^```(.*?)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def headings(text: str) -> list[str]:
    return [re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]


def draw_arena(path: Path) -> None:
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).text((20, 90), "PHOENIX 98 : 91", font=ImageFont.load_default(32), fill="black")
    image.save(path)


def test_python_blocks_run_one_after_the_other(
    tiny_model: ItaForTokenClassification,
    tiny_encoder: str,
    tiny_vision_encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_arena(tmp_path / "arena.jpg")
    (tmp_path / "posts.csv").write_text("text,image\nPhoenix tonight!,arena.jpg\nNothing,\n", encoding="utf-8")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    processor = ItaProcessor(AutoTokenizer.from_pretrained(tiny_encoder), context_builder={"ocr": "rapidocr"})
    export_model(tiny_model, processor, tmp_path / "outputs" / "quickstart" / "model")
    [to_onnx] = set(re.findall(r"`python -m hub_card\.export (onnx [^`]*)`", TEXT))
    assert export.main(shlex.split(to_onnx)) == 0
    losses: set[str] = set()
    run = 0
    kept: dict[str, Any] = {}
    monkeypatch.syspath_prepend(str(tmp_path))
    for page, text in PAGES.items():
        namespace: dict[str, Any] = {}  # a page stands on its own
        for block in blocks("python", text):
            run += 1
            if block.startswith("# my_contexts.py"):
                (tmp_path / "my_contexts.py").write_text(block, encoding="utf-8")
                continue
            for name in ('"xlm-roberta-base"', '"bert-base-cased"'):
                block = block.replace(name, repr(tiny_encoder))
            code = block.replace('"microsoft/resnet-152"', repr(str(tiny_vision_encoder)))
            exec(compile(code, str(page), "exec"), namespace)
            losses |= {name for name in namespace.get("output", {}) if name.endswith("_loss")}
        if "contexts" in namespace:
            assert [text.replace(" ", "") for text in namespace["contexts"][0].ocr] == ["PHOENIX98:91"], page
        if "labeller" in namespace:
            labelled = namespace["posts"].with_format(None)
            assert labelled["image_state"][:] == ["read", "none"], page
            assert labelled["error"][:] == [None, None]
        if "brightness" in namespace:
            kept = namespace
    assert run >= 11
    assert losses == {"text_loss", "cross_loss", "cva_loss", "main_loss", "aux_loss"}
    said = kept["processor"].tokenizer.decode(kept["batch"]["cross_input_ids"][0])
    assert re.sub(r"\W", "", said).endswith("tonightSEPPHOENIX9891SEPabrightpictureSEP")


def test_training_commands_run(
    tiny_encoder: str,
    tiny_vision_encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", tmp_path / "home")
    images = tmp_path / "my_corpus" / "images"
    images.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        draw_arena(images / f"{split}0.jpg")
        posts = [f"IMGID:{split}{i}\nPhoenix\tB-ORG\n{split}{i}\tO\n" for i in range(4)]
        (tmp_path / "my_corpus" / f"{split}.txt").write_text("\n".join(posts), encoding="utf-8")
    vectors = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    WordNeighbours(list("abcdefgh"), vectors).save_pretrained("outputs/neighbours")
    commands = "".join(block for block in blocks("bash") if "my_corpus" in block).replace("\\\n", " ")
    for name in ("microsoft/deberta-v3-base", "bert-base-cased"):
        commands = commands.replace(name, tiny_encoder)
    commands = commands.replace("microsoft/resnet-152", tiny_vision_encoder)
    for command in dict.fromkeys(commands.strip().split("\n")):  # what stands on two pages runs once
        program, *arguments = shlex.split(command)
        assert program == "python"
        if arguments[0] == "-m":
            if arguments[1] == audit.__name__:
                assert audit.main(arguments[2:]) == 0
                continue
            assert arguments[1] == build_visual_context.__name__
            build_visual_context.main(arguments[2:])
        else:
            assert arguments[0] == "train.py"
            train.main([*arguments[1:], "--num_epochs", "1"])
    assert "12 images (1 different): 1 built, 2 from store, 9 missing" in capsys.readouterr().out
    for name in ("mine", "mgcmt-mine"):
        assert (tmp_path / "outputs" / name / "report.json").is_file()


def test_every_command_that_reads_images_names_aligners_that_exist() -> None:
    commands = re.findall(r"-m dataset_scripts\.build_visual_context ([^`\n]*)", TEXT)
    assert len(commands) >= 5
    for command in commands:
        arguments = [argument for argument in shlex.split(command.rstrip("\\")) if argument != "…"]
        parser = HfArgumentParser(build_visual_context.BuildArguments)  # type: ignore[arg-type]
        parser.add_argument("corpus", nargs="?")
        chosen, _ = parser.parse_args_into_dataclasses(arguments)
        VisualContextBuilder(**build_visual_context.recipes(chosen))


def test_every_command_of_the_hub_has_arguments_that_exist() -> None:
    commands = re.findall(r"python -m hub_card\.export ([^`\n]*)", TEXT)
    assert {shlex.split(command)[0] for command in commands} == {"push", "space", "onnx"}
    for command in commands:
        export.command_line().parse_args(shlex.split(command))
    commands = re.findall(r"python -m dataset_scripts\.push_dataset ([^`\n]*)", TEXT)
    assert len(commands) >= 3
    for command in commands:
        parser = HfArgumentParser(push_dataset.PushArguments)  # type: ignore[arg-type]
        parser.add_argument("corpus")
        parser.add_argument("repo_id")
        parser.parse_args_into_dataclasses(shlex.split(command))


def test_every_train_command_has_settings_that_exist() -> None:
    commands = re.findall(r"(?:python|_per_node \d+|_processes \d+) (train\.py [^`\n]*)", TEXT)
    assert commands
    for command in commands:
        arguments = [a for a in shlex.split(command.rstrip("\\"))[1:] if a not in ("…", "--help")]
        arguments = [str(ROOT / a) if a.endswith(".yaml") else a for a in arguments]
        train.parse_arguments([*arguments, "--output_dir", "x"])


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"`((?:modeling_ita|dataset_scripts|hub_card|benchmarks|tests)/[\w./]*|train\.py)`", TEXT):
        assert (ROOT / path).exists(), path
    for script in re.findall(r"python ((?:benchmarks|hub_card)/\S+?\.py)", TEXT):
        assert (ROOT / script).is_file(), script
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), (page, link)
            assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), (page, link)


def test_every_module_that_a_command_runs_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parsed(BaseException):
        """Beyond what `command` turns into a line of error."""

    def parsed(parse: Callable[..., Any]) -> Callable[..., Any]:
        def stop(*arguments: Any, **options: Any) -> None:
            parse(*arguments, **options)
            raise Parsed

        return stop

    for parser, name in ((argparse.ArgumentParser, "parse_args"), (HfArgumentParser, "parse_args_into_dataclasses")):
        monkeypatch.setattr(parser, name, parsed(getattr(parser, name)))
    shown = "".join(block.replace("\\\n", " ") for block in (*blocks(""), *blocks("bash")))
    commands = set(re.findall(r"-m ((?:dataset_scripts|hub_card)\.\S+ [^\n]*)", shown))
    commands |= set(re.findall(r"`(?:python|torchrun [^`]*?) -m ((?:dataset_scripts|hub_card)\.[^`\n]*)`", TEXT))
    modules = set()
    for command in sorted(commands):
        module, *arguments = [word for word in shlex.split(command) if word != "…"]
        modules.add(module)
        with pytest.raises(Parsed):
            importlib.import_module(module).main(arguments)
    assert {module.partition(".")[2] for module in modules} >= {
        *("audit", "build_visual_context", "build_word_neighbours", "label", "push_dataset"),
        *("convert_mgcmt", "evaluation", "export", "predict"),
    }


def test_the_front_page_is_short_and_leads_to_every_guide() -> None:
    front = PAGES[ROOT / "README.md"]
    assert len(front.splitlines()) <= 200
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for guide in (ROOT / "docs" / "guides").glob("*.md"):
        assert f"](docs/guides/{guide.name})" in front, guide
        assert f"guides/{guide.stem}\n" in index, guide
