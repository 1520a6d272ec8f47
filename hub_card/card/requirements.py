"""The packages needed to run a model: torch, transformers, and those of its aligners."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modeling_ita.aligners import OWN_CODE

BASE = ("torch>=2.6,<3", "transformers>=5.0,<6", "pillow>=10.3")
# By engine name, as in the package's extras.
OF_ENGINES = {
    "rapidocr": ("rapidocr>=3.10,<4", "onnxruntime>=1.24.1,<2"),
    "easyocr": ("easyocr>=1.7.2,<2", "torchvision"),
    "tesseract": ("pytesseract>=0.3.13",),
    "pp-ocr": ("torchvision", "opencv-python-headless>=4.10"),
}
VERSIONED = ("rapidocr", "easyocr")  # packages whose own version is the engine's revision
# A version, and nothing that pip could read as an option, a URL or a marker.
_VERSION = re.compile(r"[0-9]{1,4}(?:\.[0-9A-Za-z]{1,12}){0,5}")
OF_CHECKPOINTS = ("num2words>=0.5.13", "torchvision")
SYSTEM_PACKAGES = {"tesseract": ("tesseract-ocr",)}


def recipes(context_builder: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The aligners of a processor's `context_builder`, `{"model", "revision", "settings"}` or less.

    Aligners with user code are omitted, because checkpoints never run them.

    Raises:
        ValueError: it does not have this form.
    """
    if not isinstance(context_builder or {}, Mapping):
        raise ValueError(f"context_builder is {context_builder!r:.80} (expected a dictionary by kind)")
    made = {kind: recipe for kind, recipe in (context_builder or {}).items() if kind != "max_pixels"}
    found = [{"model": recipe} if isinstance(recipe, str) else recipe for recipe in made.values()]
    for recipe in found:
        if not isinstance(recipe, Mapping) or not isinstance(recipe.get("model"), str):
            raise ValueError(
                f"context_builder names the aligner {recipe!r:.80} (expected its name, or {{'model': …}})"
            )
    return [dict(recipe) for recipe in found if not OWN_CODE.fullmatch(recipe["model"])]


def requirements(context_builder: Mapping[str, Any] | None) -> list[str]:
    """The lines of `requirements.txt`; engines are pinned to the version that read the training images, if known."""
    lines = list(BASE)
    for recipe in recipes(context_builder):
        name, revision = recipe["model"], recipe.get("revision")
        first, *others = OF_ENGINES.get(name, OF_CHECKPOINTS)
        is_version = name in VERSIONED and isinstance(revision, str) and _VERSION.fullmatch(revision)
        lines += [f"{name}=={revision}" if is_version else first, *others]
    return list(dict.fromkeys(lines))


def system_packages(context_builder: Mapping[str, Any] | None) -> list[str]:
    """The required system programs, by Debian package name."""
    return [package for recipe in recipes(context_builder) for package in SYSTEM_PACKAGES.get(recipe["model"], ())]
