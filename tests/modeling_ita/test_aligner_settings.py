"""What an aligner can be told, and what of it a checkpoint may say: types, ranges, and nothing that runs or writes."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_scripts.build_visual_context import BuildArguments, recipes
from modeling_ita import AttributeTagger, Captioner, ItaPipeline, ItaProcessor, ObjectTagger, VisualContextBuilder
from modeling_ita.aligner_settings import read_recipe
from modeling_ita.aligners import make_aligner
from modeling_ita.context_builder import check_recipes
from modeling_ita.ocr import EasyOcr, RapidOcr, Tesseract
from modeling_ita.ocr_checkpoints import Florence2Ocr, PpOcr
from modeling_ita.plain_text import shown

COMMIT = "c0ffee0123" * 4
DETECTED = {
    "min_score": 0.3, "max_objects": 10, "duplicates": False, "tags": None, "attributes": None, "task": None,
    "dtype": "auto",
}  # fmt: skip
COLOURS = {"attributes": ["red", "old"], "max_attributes": 1, "min_score": 0.2, "dtype": "auto"}
WRITTEN: list[dict[str, Any]] = [  # by version 0.1
    {
        "object_tags": {
            "model": "PekingU/rtdetr_v2_r18vd",
            "revision": COMMIT,
            "settings": {
                **DETECTED,
                "attributes": {"model": "openai/clip-vit-base-patch32", "revision": COMMIT, "settings": COLOURS},
            },
        },
        "captions": {
            "model": "Salesforce/blip-image-captioning-base",
            "revision": COMMIT,
            "settings": {
                "num_captions": 5, "max_new_tokens": None, "num_beams": 5, "prompt": None, "dtype": "auto",
            },
        },
        "knowledge": {
            "model": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            "revision": COMMIT,
            "settings": {
                "num_captions": 1, "max_new_tokens": 64, "num_beams": 1, "prompt": "Why?", "dtype": "bfloat16",
            },
        },
    },
    {"ocr": {"model": "rapidocr", "settings": {"min_score": 0.6, "min_side": 320, "max_side": 1280}}},
    {"ocr": {"model": "easyocr", "settings": {"languages": ["en", "ch_sim", "rs_cyrillic"], "min_score": 0.4}}},
    {
        "ocr": {
            "model": "tesseract",
            "settings": {
                "languages": ["eng", "chi_sim_vert", "script/Latin"], "min_score": 0.5, "layout": 11, "min_side": 960,
            },
        }
    },
    {
        "ocr": {
            "model": "PaddlePaddle/PP-OCRv6_small_rec_safetensors",
            "revision": COMMIT,
            "settings": {
                "detector": "PaddlePaddle/PP-OCRv6_small_det_safetensors", "detector_revision": COMMIT,
                "min_score": 0.6, "dtype": "auto",
            },
        }
    },
    {
        "ocr": {
            "model": "florence-community/Florence-2-base",
            "revision": COMMIT,
            "settings": {"min_score": 0.3, "num_beams": 3, "max_new_tokens": 512, "dtype": "auto"},
        }
    },
]  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The configurations of two checkpoints that read text, as they were downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, model_type in (
        ("PaddlePaddle/PP-OCRv6_small_rec_safetensors", "pp_ocrv6_small_rec"),
        ("florence-community/Florence-2-base", "florence2"),
    ):
        folder = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: next(iter(written.values()))["model"])
def test_what_was_written_is_read(written: dict[str, Any]) -> None:
    check_recipes(written)
    again = VisualContextBuilder.from_dict({**written, "max_pixels": 10**6}).to_dict()
    assert again.pop("max_pixels") == 10**6
    for kind, recipe in again.items():
        if "revision" not in written[kind]:
            recipe.pop("revision")  # the version of the package that is installed here
    assert again == written


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("captions", "o/m", {"num_beams": "x"}, r"num_beams is 'x' \(expected an integer from 1 to 20, or None\)"),
    ("captions", "o/m", {"num_beams": True}, "num_beams is True"),
    ("captions", "o/m", {"num_beams": 5.0}, "num_beams is 5.0"),
    ("captions", "o/m", {"num_beams": 10**5000}, "num_beams is a value of the type int"),
    ("captions", "o/m", {"prompt": "\ud800"}, "prompt is "),
    ("captions", "o/m", {"max_new_tokens": 10**6}, "max_new_tokens is 1000000"),
    ("knowledge", "o/m", {"prompt": ["why"]}, r"prompt is \['why'\]"),
    ("object_tags", "o/m", {"min_score": float("nan")}, r"min_score is nan \(expected a number from 0 to 1\)"),
    ("object_tags", "o/m", {"min_score": float("-inf")}, "min_score is -inf"),
    ("object_tags", "o/m", {"max_objects": 10**9}, "max_objects is 1000000000"),
    ("object_tags", "o/m", {"tags": ["a"] * 501}, r"tags is \['a', 'a', .*\] \(expected a list of 1 to 500"),
    ("object_tags", "o/m", {"attributes": {"model": "https://o.test/m"}}, "attributes: model is 'https://o.test/m'"),
    ("object_tags", "o/m", {"attributes": {"model": "os:system"}}, "attributes: model is 'os:system'"),
    ("object_tags", "o/m", {"attributes": {"model": "m", "code": 1}}, "attributes: an aligner is"),
    ("ocr", "rapidocr", {"max_side": 10**5}, r"max_side is 100000 \(expected an integer from 1 to 4,096\)"),
    ("ocr", "rapidocr", {"min_side": 0}, "min_side is 0"),
    ("ocr", "easyocr", {"languages": "en"}, r"languages is 'en' \(expected .*: write \['en'\]\)"),
    ("ocr", "easyocr", {"languages": ["../x"]}, "languages is "),
    ("ocr", "tesseract", {"layout": "11 -c debug_file=x"}, r"layout is .* \(expected an integer from 0 to 13\)"),
    ("ocr", "tesseract", {"layout": 14}, "layout is 14"),
    ("ocr", "tesseract", {"languages": ["eng+deu"]}, r"languages is \['eng\+deu'\] \(expected a list of 1 to 10 of T"),
    ("ocr", "tesseract", {"languages": ["-c"]}, "languages is"),
    ("ocr", "tesseract", {"languages": ["eng --psm 0"]}, "languages is"),
    ("ocr", "tesseract", {"languages": ["script/../../x"]}, "languages is"),
    ("ocr", "pp-ocr", {"detector": "https://o.test/m"}, "detector is 'https://o.test/m'"),
    ("ocr", "pp-ocr", {"detector_revision": "--output"}, "detector_revision is '--output'"),
    ("ocr", "florence2", {"num_beams": 10**4}, "num_beams is 10000"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "model", "settings", "message"), REFUSED)
def test_settings_out_of_type_or_range_are_refused(
    kind: str, model: str, settings: dict[str, Any], message: str
) -> None:
    recipe = {"model": model, "settings": settings}
    for make in (lambda: make_aligner(kind, recipe), lambda: VisualContextBuilder.from_dict({kind: recipe})):
        with pytest.raises(ValueError, match=f"^{kind}: {message}") as caught:
            make()
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("captions.num_beams=x", "captions: num_beams is 'x'"),
        ("captions.num_beams=" + "9" * 5000, "captions: num_beams is '999"),
        ("captions.num_captions=" + "[" * 100_000, "captions: num_captions is "),
        ("captions.beams=3", "captions: Captioner has no setting 'beams'"),
        ("captions.revision=../main", "captions: revision is '../main'"),
        ("ocr.languages=eng", "ocr: RapidOcr has no setting 'languages'"),
        ("my.kind.num_beams=x", "my.kind: num_beams is 'x'"),
    ],
)
def test_the_command_line_is_checked_alike(assignment: str, message: str) -> None:
    arguments = BuildArguments(captions="o/m", ocr="rapidocr", aligner=["my.kind=o/m"], set=[assignment])
    with pytest.raises(ValueError, match=f"^{message}"):
        VisualContextBuilder(**recipes(arguments))


@pytest.mark.parametrize(
    ("kind", "model", "setting", "value"),
    [
        ("ocr", "easyocr", "model_storage_directory", "/tmp"),
        ("ocr", "easyocr", "gpu", True),
        ("ocr", "rapidocr", "threads", 4),
        ("ocr", "pp-ocr", "model", "o/m"),
        ("ocr", "tesseract", "__class__", "os"),
        ("captions", "o/m", "device", "cpu"),
        ("captions", "o/m", "self", 1),
        ("object_tags", "o/m", "trust_remote_code", True),
    ],
)
def test_what_is_not_saved_is_never_taken_from_a_checkpoint(kind: str, model: str, setting: str, value: Any) -> None:
    saved = {kind: {"model": model, "settings": {setting: value}}}
    message = rf"^{kind}: a checkpoint cannot give the setting '{setting}' .*from_dict\(…, {kind}=\w+\(…\)\)$"
    with pytest.raises(ValueError, match=message):
        VisualContextBuilder.from_dict(saved)
    own = EasyOcr(model_storage_directory="weights")
    assert VisualContextBuilder.from_dict(saved, **{kind: own}).aligners[kind] is own


def test_the_callers_own_settings_stay_possible() -> None:
    settings = {"model_storage_directory": "weights", "gpu": False}
    builder = VisualContextBuilder(ocr={"model": "easyocr", "settings": settings}, captions="o/m", device="cpu")
    assert builder.aligners["ocr"].model_storage_directory == "weights"  # type: ignore[attr-defined]
    saved = builder.to_dict()
    assert saved["ocr"]["settings"].keys() == {"languages", "min_score"}
    again = VisualContextBuilder.from_dict(saved, device="meta")
    assert again.aligners["captions"].device.type == "meta"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "aligner", [RapidOcr, EasyOcr, Tesseract, PpOcr, Florence2Ocr, Captioner, ObjectTagger, AttributeTagger]
)
def test_every_setting_has_a_rule(aligner: Any) -> None:
    parameters = inspect.signature(aligner).parameters.keys() - {"model", "revision"}
    assert parameters == aligner.rules.keys() | aligner.local.keys()
    assert not aligner.rules.keys() & aligner.local.keys()


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "https://o.test/m", "file:///etc/passwd", "hf://o/m", "o/m@main", "a/b/c", "a..b", "-m", "o/-m",
        "o/m ", "o/m\n", "o/m\0", "\ud800", "//host.test/share", "\\\\host.test\\share", "/proc/self", "/etc/hosts",
        "x" * 5000, "ö/m", "o/m;x",
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^captions: (model is .*a local folder with a config\.json|an aligner is)"):
        VisualContextBuilder.from_dict({"captions": name})


def test_local_folders_are_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my model" / "é"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"model is .*a local folder with a config\.json"):
        Captioner(str(folder))
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(folder), folder, "~/my model/é"):
        assert Captioner(name).model == str(folder)  # type: ignore[arg-type]
    (tmp_path / "m.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model is 'm\.json'"):
        Captioner("m.json")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (3, r"context_builder is 3 \(expected \{kind: "),
        ([], r"context_builder is \[\]"),
        ({"ocr": 3}, r"ocr: an aligner is \{'model': name, .*got 3"),
        ({"ocr": None}, "ocr: an aligner is"),
        ({"ocr": {}}, "ocr: an aligner is"),
        ({"ocr": {"model": {"model": "x"}}}, "ocr: an aligner is"),
        ({"ocr": {"model": "x", "settings": "y"}}, "ocr: an aligner is"),
        ({"ocr": {"model": "x", "code": "y"}}, "ocr: an aligner is"),
        ({'a":[],**(__import__("os")),"b': "x"}, "cannot be the name of a kind"),
        ({"device": "cpu"}, "'device' is not a kind"),
        ({"max_pixels": 10**12}, r"max_pixels is 1000000000000 \(expected an integer from 1 to 200,000,000\)"),
        ({"max_pixels": True}, "max_pixels is True"),
        ({f"kind{n}": "x" for n in range(21)}, "names 21 aligners"),
    ],
)
def test_a_processor_refuses_what_is_no_set_of_recipes(
    saved: Any, message: str, tiny_processor: ItaProcessor, tmp_path: Path
) -> None:
    tiny_processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "context_builder": saved}))
    with pytest.raises(ValueError, match=message):
        ItaProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        VisualContextBuilder.from_dict(saved)


def test_names_of_parameters_are_kinds_too() -> None:
    saved = {"self": "o/m", "saved": "o/m", "cls": "o/m"}
    assert [*VisualContextBuilder.from_dict(saved).aligners] == [*saved]


def test_a_checkpoint_passes_no_options_to_a_program(
    tiny_model: Any, tiny_processor: ItaProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    package = types.ModuleType("pytesseract")
    package.get_tesseract_version = lambda: "5.3"  # type: ignore[attr-defined]
    package.get_languages = lambda: ["eng"]  # type: ignore[attr-defined]
    nothing: dict[str, list[Any]] = {"block_num": [], "par_num": [], "line_num": []}
    package.image_to_data = lambda image, **options: asked.append(options) or nothing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytesseract", package)
    tiny_processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    config = json.loads(path.read_text())
    for layout in (f"11 -c debug_file={tmp_path / 'written'}", 6):
        saved = {"ocr": {"model": "tesseract", "settings": {"layout": layout}}}
        path.write_text(json.dumps({**config, "context_builder": saved}))
        processor = ItaProcessor.from_pretrained(tmp_path)
        pipe: Any = ItaPipeline(model=tiny_model, processor=processor, device="cpu")
        image = Image.new("RGB", (64, 48), "navy")
        image.paste("gold", (8, 8, 40, 40))
        if layout == 6:
            pipe({"text": "Obama", "image": image})
        else:
            with pytest.raises(ValueError, match=r"^ocr: layout is '11 -c debug_file=.*\(expected an integer"):
                pipe({"text": "Obama", "image": image})
    assert asked == [{"lang": "eng", "config": "--psm 6", "output_type": "dict"}]


def test_hostile_checkpoints_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack of benchmarks/attacks/aligners.py, small."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = Path(__file__).parents[2] / "benchmarks" / "attacks" / "aligners.py"
    spec = importlib.util.spec_from_file_location("attack_on_aligners", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)
    counts, failed = module.attack(150, 1, str(tmp_path))
    assert failed == []
    assert counts["tried"] == 300 and counts["made"] > 5 and counts["refused"] > 200


def test_recipes_and_values_are_shown_short() -> None:
    assert read_recipe("rapidocr") == ("rapidocr", None, {})
    assert read_recipe({"model": "x", "settings": None}) == ("x", None, {})
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, 10**5000, "x" * 10**6, {str(n): [n] * 100 for n in range(1000)}):
        assert len(shown(value)) < 200
