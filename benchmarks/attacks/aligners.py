"""Hostile checkpoints that name aligners: what of a `context_builder` is taken, and what taking it does.

    python benchmarks/attacks/aligners.py
    python benchmarks/attacks/aligners.py --count 20000 --seed 7

Every case is a `context_builder` as version 0.1 writes it, spoiled in one to three places: values of another type, out
of range or of monstrous size; options of a program, paths and URLs where a word should be; settings that are no
checkpoint's business; code; names of no kind. Each goes two ways:

- `VisualContextBuilder.from_dict`;
- the `processor_config.json` of a folder, from which a processor is loaded; then `ItaPipeline.context_builder`.

A case holds if it is refused by one line (`ValueError`; `OSError` where the named checkpoint does not exist), or if
what is made is in its ranges, and reading an image hands on nothing else. The engines are stand-ins that record what
they are given: the command line of Tesseract as pytesseract puts it together, the arguments of EasyOCR and RapidOCR.
An audit hook sees to it that nothing is written or removed outside the folder of the case, no process is started, no
connection is opened, and nothing is imported that the checkpoint names. The figures stand in the last line; the exit
status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import random
import re
import shlex
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs where the project is not installed

from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils import logging

from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor, VisualContextBuilder

SECONDS = 5.0  # for one way of one case
CANARY = "canary_of_the_attack"  # a module that leaves a file where it is imported
HOSTILE_FILES = ("/var/attack_of_a_checkpoint", "C:\\attack")
KINDS = ("object_tags", "captions", "ocr", "knowledge")
VALID: list[tuple[str, dict[str, Any]]] = [
    (
        "ocr",
        {"model": "rapidocr", "revision": "3.4", "settings": {"min_score": 0.6, "min_side": 320, "max_side": 1280}},
    ),
    ("ocr", {"model": "easyocr", "revision": "1.7", "settings": {"languages": ["en"], "min_score": 0.4}}),
    (
        "ocr",
        {
            "model": "tesseract",
            "revision": None,
            "settings": {"languages": ["eng"], "min_score": 0.5, "layout": 11, "min_side": 960},
        },
    ),
    (
        "ocr",
        {
            "model": "pp-ocr",
            "settings": {"detector": "o/det", "detector_revision": "a" * 40, "min_score": 0.6, "dtype": "auto"},
        },
    ),
    (
        "ocr",
        {"model": "florence2", "settings": {"min_score": 0.3, "num_beams": 3, "max_new_tokens": 512, "dtype": "auto"}},
    ),
    (
        "captions",
        {
            "model": "o/blip",
            "revision": "b" * 40,
            "settings": {
                "num_captions": 5,
                "max_new_tokens": None,
                "num_beams": 5,
                "prompt": None,
                "dtype": "auto",
            },
        },
    ),
    (
        "object_tags",
        {
            "model": "o/detr",
            "revision": None,
            "settings": {
                "min_score": 0.3,
                "max_objects": 10,
                "duplicates": False,
                "tags": ["car"],
                "attributes": {
                    "model": "o/clip",
                    "revision": None,
                    "settings": {"attributes": ["red"], "max_attributes": 1, "min_score": 0.2, "dtype": "auto"},
                },
                "task": "<OD>",
                "dtype": "auto",
            },
        },
    ),
]
FOREIGN = (
    "device", "model_storage_directory", "gpu", "threads", "model", "revision", "settings", "self", "store", "kind",
    "trust_remote_code", "user_network_directory", "recog_network", "config", "nice", "tessdata_dir", "auto_class",
    "processor_class", "rules", "local", "name", "install", "_engine", "__class__", "__init__", "", "a b", "\x1b[2J",
)  # fmt: skip
STRINGS = [
    "x", "", " ", "5", "-1", "11 -c debug_file=" + HOSTILE_FILES[0], "eng -c debug_file=" + HOSTILE_FILES[0],
    "11\n-c\ndebug_file=" + HOSTILE_FILES[0], "eng+deu", "--tessdata-dir", "-c", "../../x", "script/../../x", "en\0",
    "script/Latin --psm 3", "/etc", "/etc/passwd", "/proc", "/proc/self", "/dev", "~/x", "..", ".", "https://o.test/m",
    "http://127.0.0.1:9/config.json", "file:///etc/passwd", "//host.test/share", "\\\\host.test\\share", "hf://o/m",
    f"{CANARY}:run", "os:system", "antigravity:main", "a.b.c:d.e", "o/m/n", "owner/--upload-pack=x", "owner/na me",
    "owner/name@main", "-x/y", "a..b/c", "o/m;rm", "$(touch x)", "`touch x`", "\ud800", "\x1b[31m", "\u202e", "<OD>",
    "<CAPTION>", "int8", "cuda", "easyocr", "rapidocr", "tesseract", "florence2", "pp-ocr", "none", "a" * 5000,
    "refs/pr/1", "--output", "main..evil", "{}", "null", "\u00e9\u00e9", "setup.cfg", "o/" + "n" * 300,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 14, 21, 100, 10**6, 10**12, 10**400, -(10**400), 0.0, 0.5, 1.0, 1.0000001, -0.1,
    1e308, math.nan, math.inf, -math.inf, [], {}, [[]], [None], [1], [""], ["x"] * 5000, ["x" * 101], [["en"]],
    {"model": "o/m"}, {"a": {"b": {}}}, {"__class__": "os.system"}, ["eng", "-c debug_file=x"], ["eng+osd"],
    json.loads("[" * 400 + "]" * 400), {str(n): n for n in range(2000)},
]  # fmt: skip


class Spoiler:
    """Spoils a `context_builder` by a random draw."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def case(self) -> Any:
        """One hostile `context_builder`, as JSON values."""
        chosen = self.draw.sample(VALID, self.draw.randint(1, 3))
        saved: dict[str, Any] = {kind: copy.deepcopy(recipe) for kind, recipe in chosen}
        saved["max_pixels"] = 50_000_000
        spoil = (
            *(self._value,) * 8,
            *(self._foreign,) * 3,
            *(self._model,) * 4,
            *(self._nested,) * 2,
            self._recipe,
            self._kind,
            self._pixels,
            self._many,
        )
        for _ in range(self.draw.choice((1, 1, 1, 2, 3))):
            self.draw.choice(spoil)(saved)
        return self.anything() if self.draw.random() < 0.01 else saved

    def anything(self) -> Any:
        """Any value or string of the pools."""
        return copy.deepcopy(self.draw.choice(self.draw.choice((VALUES, STRINGS))))

    def _settings(self, saved: dict[str, Any]) -> dict[str, Any]:
        found = [recipe["settings"] for recipe in saved.values() if _has_settings(recipe)]
        found += [s["attributes"]["settings"] for s in found if _has_settings(s.get("attributes"))]
        return self.draw.choice(found or [{}])

    def _value(self, saved: dict[str, Any]) -> None:
        settings = self._settings(saved)
        if settings:
            name = self.draw.choice([*settings])
            listed = isinstance(settings[name], list) and self.draw.random() < 0.5
            settings[name] = [self.anything(), *settings[name]] if listed else self.anything()

    def _foreign(self, saved: dict[str, Any]) -> None:
        self._settings(saved)[self.draw.choice(FOREIGN)] = self.anything()

    def _model(self, saved: dict[str, Any]) -> None:
        recipes = [recipe for recipe in saved.values() if isinstance(recipe, dict)]
        recipe = self.draw.choice(recipes or [{}])
        recipe[self.draw.choice(("model", "revision"))] = self.draw.choice((*STRINGS, *VALUES))

    def _nested(self, saved: dict[str, Any]) -> None:
        recipe = {"model": self.draw.choice(STRINGS), self.draw.choice(FOREIGN): self.anything()}
        recipe["settings"] = {self.draw.choice(FOREIGN): self.anything()}
        self._settings(saved)[self.draw.choice(("attributes", "detector", "model", "settings"))] = recipe

    def _recipe(self, saved: dict[str, Any]) -> None:
        saved[self.draw.choice(KINDS)] = self.anything()

    def _kind(self, saved: dict[str, Any]) -> None:
        kind = self.draw.choice((*STRINGS, *FOREIGN))
        saved[kind] = self.draw.choice((copy.deepcopy(VALID[5][1]), self.anything()))

    def _pixels(self, saved: dict[str, Any]) -> None:
        saved["max_pixels"] = self.anything()

    def _many(self, saved: dict[str, Any]) -> None:
        saved.update({f"kind{n}": "o/m" for n in range(self.draw.choice((3, 30, 3000)))})


def _has_settings(recipe: Any) -> bool:
    return isinstance(recipe, dict) and isinstance(recipe.get("settings"), dict)


class Watch:
    """Sees what is opened for writing, started, connected to and imported while it is on."""

    STARTS = (
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "socket.connect",
        "ctypes.dlopen",
    )
    CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.symlink", "os.link")

    def __init__(self, folder: str) -> None:
        self.folder, self.is_on = os.path.realpath(folder), False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[list[str]]:
        """What is seen in its body."""
        self.seen, self.is_on = [], True
        try:
            yield self.seen
        finally:
            self.is_on = False

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event in self.STARTS:
            self.seen.append(f"{event} {given!r:.200}")
        elif event == "import" and str(given[0]).partition(".")[0] in (CANARY, "antigravity"):
            self.seen.append(f"import {given[0]}")
        elif event == "open":
            path, mode, flags = given
            writes = any(c in str(mode or "") for c in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and not self._is_own(path):
                self.seen.append(f"opened {path!r:.200} for writing")
        elif event in self.CHANGES and not self._is_own(given[0]):
            self.seen.append(f"{event} {given[0]!r:.200}")

    def _is_own(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        name = os.path.realpath(os.fsdecode(path))
        return name.startswith(self.folder) or name.endswith(".pyc") or "__pycache__" in name or name == os.devnull


class Engines:
    """Stand-ins for the packages of the engines, which record what they are given."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.readers: list[tuple[Any, dict[str, Any]]] = []
        self.params: list[dict[str, Any]] = []
        tesseract = types.ModuleType("pytesseract")
        tesseract.get_tesseract_version = lambda: "5.3"  # type: ignore[attr-defined]
        tesseract.get_languages = lambda: ["eng", "osd"]  # type: ignore[attr-defined]
        tesseract.image_to_data = self._tesseract  # type: ignore[attr-defined]
        easyocr = types.ModuleType("easyocr")
        easyocr.Reader = self._easyocr  # type: ignore[attr-defined]
        rapidocr = types.ModuleType("rapidocr")
        rapidocr.RapidOCR = self._rapidocr  # type: ignore[attr-defined]
        sys.modules.update({module.__name__: module for module in (tesseract, easyocr, rapidocr)})
        sys.modules.setdefault("onnxruntime", types.ModuleType("onnxruntime"))

    def faults(self) -> list[str]:
        """What was handed on that no checkpoint may choose."""
        found = []
        for command in self.commands:
            language, psm = command[command.index("-l") + 1], command[command.index("-l") + 2 :]
            codes = language.split("+")
            if not all(re.fullmatch(r"[A-Za-z0-9_]+|script/[A-Za-z0-9_]+", code) for code in codes):
                found.append(f"language {language!r}")
            if len(psm) != 3 or psm[0] != "--psm" or not re.fullmatch(r"\d|1[0-3]", psm[1]):
                found.append(f"options {psm!r:.200}")
        for languages, options in self.readers:
            if options["model_storage_directory"] is not None or options["gpu"] is not False:
                found.append(f"easyocr {options!r:.200}")
            if not all(re.fullmatch("[a-z_]{2,20}", str(code)) for code in languages):
                found.append(f"easyocr {languages!r:.200}")
        for params in self.params:
            sizes = params["Global.max_side_len"], params["Det.limit_side_len"]
            if not all(type(size) is int and 0 < size <= 5000 for size in sizes):
                found.append(f"rapidocr {params!r:.300}")
            if not 0 < params["EngineConfig.onnxruntime.intra_op_num_threads"] <= (os.cpu_count() or 1):
                found.append(f"rapidocr {params!r:.300}")
        self.commands, self.readers, self.params = [], [], []
        return found

    def _tesseract(self, image: Image.Image, lang: str, config: str, output_type: str) -> dict[str, list[Any]]:
        self.commands.append(["tesseract", "in.png", "out", "-l", lang, *shlex.split(config), "tsv"])
        return {name: [] for name in ("block_num", "par_num", "line_num", "conf", "text")}

    def _easyocr(self, languages: Any, **options: Any) -> Any:
        self.readers.append((languages, options))
        return types.SimpleNamespace(readtext=lambda image: [])

    def _rapidocr(self, params: dict[str, Any]) -> Any:
        self.params.append(params)
        nothing = types.SimpleNamespace(boxes=None)
        return types.SimpleNamespace(
            detect_and_crop=None,
            load_img=lambda image: image,
            preprocess_img=lambda image: (image, {}),
            run_ocr_steps=lambda image, record: (nothing, None, None, None),
            recognize_txt=lambda pieces: None,
            text_det=types.SimpleNamespace(mean=[0.5], std=[0.5]),
        )


def _is(low: float, high: float, *kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds and low <= value <= high


def _words(value: Any) -> bool:
    return (
        isinstance(value, list) and 0 < len(value) <= 1000 and all(isinstance(w, str) and len(w) <= 200 for w in value)
    )


def _name(value: Any) -> bool:
    """A plain name or `owner/name`: all folders that the attack names are none with a checkpoint."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value, re.ASCII) is not None


# Written apart from the rules of the package: what is made may be no more than this, whatever the package thinks.
MAY_BE: dict[str, Callable[[Any], bool]] = {
    "min_score": _is(0, 1, int, float),
    "min_side": _is(1, 5000, int),
    "max_side": _is(1, 5000, int),
    "layout": _is(0, 13, int),
    "num_beams": _is(1, 50, int),
    "num_captions": _is(1, 50, int),
    "max_new_tokens": lambda value: value is None or _is(1, 5000, int)(value),
    "max_objects": _is(1, 5000, int),
    "max_attributes": _is(0, 1000, int),
    "duplicates": lambda value: isinstance(value, bool),
    "tags": lambda value: value is None or _words(value),
    "attributes": lambda value: value is None or _words(value) or type(value).__name__ == "AttributeTagger",
    "languages": _words,
    "prompt": lambda value: value is None or (isinstance(value, str) and len(value) <= 5000),
    "task": lambda value: value in (None, "<OD>", "<DENSE_REGION_CAPTION>", "<OCR_WITH_REGION>"),
    "dtype": lambda value: value in ("auto", "float32", "bfloat16", "float16"),
    "device": lambda value: str(value) == "cpu",
    "model": _name,
    "revision": lambda value: value is None or (isinstance(value, str) and bool(re.fullmatch(r"\w[\w./+-]*", value))),
    "model_storage_directory": lambda value: value is None,
    "gpu": lambda value: value is None,
    "threads": lambda value: value is None,
}


def faults_of(aligner: Any) -> list[str]:
    """The attributes of an aligner, and of those inside it, that are not what they may be."""
    found = []
    for name, value in vars(aligner).items():
        if name in ("detector", "attributes") and hasattr(type(value), "identity"):
            found += [f"{name}.{fault}" for fault in faults_of(value)]
        if name in MAY_BE and not MAY_BE[name](value):
            found.append(f"{type(aligner).__name__}.{name} = {str(value)!r:.200}")
    return found


class Target:
    """The two ways by which a checkpoint's aligners are made."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder) / "checkpoint"
        letters = [chr(code) for code in range(97, 123)]
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        tokenizer = BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=64)
        encoder = Path(folder) / "encoder"
        config = BertConfig(
            vocab_size=len(pieces),
            max_position_embeddings=64,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
        )
        BertModel(config).save_pretrained(encoder)
        self.model = ItaForTokenClassification.from_text_encoder(str(encoder), ["O", "B-PER", "I-PER"])
        ItaProcessor(tokenizer).save_pretrained(self.folder)
        self.config = json.loads((self.folder / "processor_config.json").read_text(encoding="utf-8"))

    def write(self, saved: Any) -> None:
        """Puts the case into the checkpoint."""
        text = json.dumps({**self.config, "context_builder": saved})
        (self.folder / "processor_config.json").write_text(text, encoding="utf-8")

    def by_dict(self, saved: Any) -> VisualContextBuilder:
        """By the builder itself."""
        return VisualContextBuilder.from_dict(saved, device="cpu")

    def by_checkpoint(self, saved: Any) -> VisualContextBuilder | None:
        """By a processor that is loaded from the folder, and the pipeline."""
        processor = ItaProcessor.from_pretrained(self.folder)
        if processor.context_builder is None:
            return None
        return ItaPipeline(model=self.model, processor=processor, device="cpu").context_builder


def outcome(
    make: Callable[[Any], VisualContextBuilder | None], saved: Any, watch: Watch, engines: Engines
) -> list[str]:
    """`"refused"` or `"made"`, and what went wrong one way of one case: nothing, if it held."""
    started, builder, found = time.monotonic(), None, []
    with watch() as seen:
        try:
            builder = make(saved)
        except (ValueError, OSError) as error:
            if "\n" in str(error) or len(str(error)) > 3000 or re.search(r"[\x00-\x1f\x7f]", str(error)):
                found.append(f"refused by more than one line: {str(error)[:200]!r}")
        except Exception as error:
            found.append(f"{type(error).__name__}: {str(error)[:200]!r}")
        if builder is not None:
            for aligner in builder.aligners.values():
                found += faults_of(aligner)
                if type(aligner).__name__ in ("RapidOcr", "EasyOcr", "Tesseract"):
                    try:
                        aligner([Image.new("RGB", (64, 48), "navy")])
                    except Exception as error:
                        if "tesseract has no language" not in str(error):
                            found.append(f"reading: {type(error).__name__}: {str(error)[:200]!r}")
            if not _is(1, 10**9, int)(builder.max_pixels):
                found.append(f"max_pixels = {builder.max_pixels!r}")
    if time.monotonic() - started > SECONDS:
        found.append(f"took {time.monotonic() - started:.1f} s")
    left = [file for file in HOSTILE_FILES if os.path.exists(file)]
    return ["refused" if builder is None else "made", *found, *seen, *engines.faults(), *left]


def attack(count: int, seed: int, folder: str) -> tuple[Counter[str], list[str]]:
    """How many cases by two ways were tried, refused and made, and what failed."""
    (Path(folder) / f"{CANARY}.py").write_text(
        f"import pathlib\npathlib.Path({HOSTILE_FILES[0]!r}).touch()\nrun = print\n", encoding="utf-8"
    )
    modules = {name: sys.modules.get(name) for name in ("pytesseract", "easyocr", "rapidocr", "onnxruntime")}
    sys.path.insert(0, folder)
    target, spoiler, engines = Target(folder), Spoiler(seed), Engines()
    watch = Watch(folder)
    counts: Counter[str] = Counter()
    failed = []
    issue = {"ocr": {"model": "tesseract", "settings": {"layout": STRINGS[5]}}}  # what version 0.1 fell for
    try:
        for number in range(count):
            saved = issue if number == 0 else spoiler.case()
            target.write(saved)
            for make in (target.by_dict, target.by_checkpoint):
                verdict, *found = outcome(make, saved, watch, engines)
                counts.update(["tried", verdict])
                if found:
                    counts["failed"] += 1
                    failed.append(f"case {number}, {make.__name__}: {'; '.join(found)}")
    finally:
        sys.path.remove(folder)
        for name, module in modules.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
    return counts, failed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=4000, help="hostile checkpoints, each by two ways")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("modeling_ita").setLevel("ERROR")  # the cases name other versions of the engines than are installed
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, failed = attack(args.count, args.seed, folder)
    for line in failed[:20]:
        print(line)
    print(f"{counts['refused']:,} refused, {counts['made']:,} made, {time.monotonic() - started:.0f} s")
    print(f"tried {counts['tried']}, held {counts['tried'] - counts['failed']}, failed {counts['failed']}")
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
