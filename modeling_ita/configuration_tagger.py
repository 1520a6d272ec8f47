"""Base class of both models' configurations."""

from __future__ import annotations

import math
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .checkpoint_files import CONFIG, check_labels, check_settings, reading

# Incremented when weights or settings of a checkpoint change their names or meaning.
CHECKPOINT_FORMAT = 1
DEFAULT_TYPES = ("PER", "LOC", "ORG", "MISC")


def check_format(found: int, known: int) -> None:
    """Refuses a checkpoint whose format is newer than this package.

    Raises:
        ValueError: the checkpoint's format is newer than the known one.
    """
    if found > known:
        raise ValueError(
            f"this checkpoint is of format {found}, and the installed ita-mner knows formats up to {known}: "
            "pip install --upgrade ita-mner, or uninstall it and load with trust_remote_code=True, which "
            "runs the checkpoint's own code"
        )


class CheckedConfig(PreTrainedConfig):
    """A configuration that validates the settings of a file before using them."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Reads a checkpoint's configuration; takes the same arguments as `PreTrainedConfig.from_pretrained`.

        Raises:
            OSError: the file is missing.
            ValueError: the settings are malformed; the message names the file.
        """
        with reading(pretrained_model_name_or_path, CONFIG):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Creates a configuration from settings in JSON form.

        Raises:
            ValueError: a setting has the wrong type, is out of range, or refers to code from elsewhere.
        """
        place = kwargs.get("name_or_path") or "the settings"  # the Auto classes pass it
        with reading(place, CONFIG if "name_or_path" in kwargs else ""):
            check_settings(config_dict)
            check_labels(config_dict.get("id2label"))
            return super().from_dict(config_dict, **kwargs)


def check_number(name: str, value: float, expected: str, is_right: bool) -> None:
    """Refuses a number of a configuration that is not finite or not as expected.

    Raises:
        ValueError: the number is refused; the message names the setting.
    """
    if not (math.isfinite(value) and is_right):
        raise ValueError(f"{name} is {value} (expected {expected})")


def check_gate(value: float | None) -> None:
    """Refuses an `image_gate` that is not a probability.

    Raises:
        ValueError: the value is refused.
    """
    if value is not None:
        check_number("image_gate", value, "a probability, or None", 0 <= value <= 1)
