"""The settings of aligners: the type and range of every setting, checked in one place, whatever its source.

A checkpoint names aligners and their settings, and it may be untrusted. None of its values can become an option of a
program, a path to write to, a URL, or hours of computation.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .plain_text import shown

MAX_PATH = 4096  # characters


@dataclass(frozen=True)
class Setting:
    """The allowed values of a setting.

    Attributes:
        expected: a description for error messages: `"an integer from 1 to 20"`.
        accepts: whether a value is allowed.
        is_list: whether the setting is a list of strings, so that a single string can stand for a list of one.
    """

    expected: str
    accepts: Callable[[Any], bool]
    is_list: bool = False

    def or_none(self) -> Setting:
        """The same setting, with None allowed."""
        return Setting(f"{self.expected}, or None", lambda value: value is None or self.accepts(value), self.is_list)


def integer(low: int, high: int) -> Setting:
    """An integer in a range, both ends included; booleans are rejected."""
    return Setting(f"an integer from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Setting:
    """A number in a range, both ends included; booleans and NaN are rejected."""
    return Setting(
        f"a number from {low} to {high}",
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high,
    )


def one_of(*choices: str) -> Setting:
    """One of the given strings."""
    return Setting(" or ".join(map(repr, choices)), lambda value: isinstance(value, str) and value in choices)


def text(most: int) -> Setting:
    """A string of at most `most` characters that can be encoded (no lone surrogates)."""
    return Setting(f"a string of at most {most:,} characters", lambda value: _is_text(value, most))


def texts(most: int, each: str, accepts: Callable[[str], Any]) -> Setting:
    """A list of 1 to `most` strings that `accepts` allows; `each` describes them in error messages."""
    return Setting(
        f"a list of 1 to {most} {each}",
        lambda value: (
            isinstance(value, (list, tuple))
            and 0 < len(value) <= most
            and all(isinstance(one, str) and accepts(one) for one in value)
        ),
        is_list=True,
    )


def _is_text(value: Any, most: int) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= most
        and not any(unicodedata.category(character) == "Cs" for character in value)
    )


def _is_word(value: str) -> bool:
    return _is_text(value, 100) and any(map(str.isalnum, value))


def _is_model(value: Any) -> bool:
    """Whether transformers would look for this in a local folder or on the Hub, and nowhere else.

    A folder must contain a `config.json`, so that hashing its files never walks a folder such as `/proc`.
    """
    if not _is_text(value, MAX_PATH) or any(unicodedata.category(character) == "Cc" for character in value):
        return False
    if re.match(r"[/\\]{2}", value):  # a network share, which Windows would log in to
        return False
    place = os.path.expanduser(value)
    if os.path.exists(place):
        return os.path.isfile(os.path.join(place, "config.json"))
    return bool(re.fullmatch(r"(?!.*(--|\.\.))([a-zA-Z0-9_][\w.-]*/)?[a-zA-Z0-9_][\w.-]*", value, re.ASCII))


def _is_revision(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"(?!.*\.\.)[a-zA-Z0-9_][\w./+-]{0,254}", value, re.ASCII))


FLAG = Setting("True or False", lambda value: isinstance(value, bool))
SHARE = number(0, 1)
WORDS = texts(500, "strings of at most 100 characters with letters in them", _is_word)
MODEL = Setting("a repository on the Hub such as 'owner/name', or a local folder with a config.json", _is_model)
REVISION = Setting("a branch, tag or commit", _is_revision)


def check_settings(settings: Mapping[str, Any], rules: Mapping[str, Setting]) -> None:
    """Rejects settings that violate the rules.

    Raises:
        ValueError: a setting violates them, as in `num_beams is 'x' (expected an integer from 1 to 20)`.
    """
    for name, value in settings.items():
        rule = rules[name]
        if not rule.accepts(value):
            hint = f": write [{shown(value)}]" if rule.is_list and isinstance(value, str) else ""
            raise ValueError(f"{name} is {shown(value)} (expected {rule.expected}{hint})")


def check_names(what: str, settings: Mapping[str, Any], names: Collection[str]) -> None:
    """Rejects unknown settings.

    Args:
        what: whose settings they are, for error messages.
        settings: the settings.
        names: the known names.

    Raises:
        ValueError: a setting is unknown.
    """
    for name in settings:
        if name not in names:
            raise ValueError(f"{what} has no setting {shown(name)} (it has {', '.join(names)})")


class Recipe(NamedTuple):
    """What is needed to create an aligner again: its name, its revision, and its settings by name."""

    model: str
    revision: Any
    settings: dict[str, Any]


def read_recipe(recipe: Any) -> Recipe:
    """Reads a recipe: a name, or `{"model": name, "revision": …, "settings": {…}}` with the last two optional.

    Only the form is checked here; the settings are checked when the aligner is created.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(recipe, str):
        recipe = {"model": recipe}
    if isinstance(recipe, Mapping) and recipe.keys() <= {*Recipe._fields}:
        model, settings = recipe.get("model"), recipe.get("settings") or {}
        named = isinstance(settings, Mapping) and all(isinstance(name, str) for name in settings)
        if isinstance(model, str) and model and named:
            return Recipe(model, recipe.get("revision"), dict(settings))
    raise ValueError(f"an aligner is {{'model': name, 'revision': …, 'settings': {{…}}}}, got {shown(recipe)}")
