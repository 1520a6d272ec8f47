"""What the configurations of both models share."""

from __future__ import annotations

import math
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .checkpoint_files import CONFIG, check_labels, check_settings, reading

# Raised by one when the weights or settings of a checkpoint change their names or their meaning.
CHECKPOINT_FORMAT = 1
DEFAULT_TYPES = ("PER", "LOC", "ORG", "MISC")


def check_format(found: int, known: int) -> None:
    """Refuses a checkpoint whose names or meanings this version does not know.

    Raises:
        ValueError: the checkpoint's format is later than the known one.
    """
    if found > known:
        raise ValueError(
            f"this checkpoint is of format {found}, and the installed ita-mner knows formats up to {known}: "
            "pip install --upgrade ita-mner, or leave the package out and load with trust_remote_code=True, which "
            "takes the checkpoint's own code"
        )


class CheckedConfig(PreTrainedConfig):
    """A configuration that looks at the settings in a file before anything is made of them."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Reads a checkpoint's settings; the arguments are those of `PreTrainedConfig.from_pretrained`.

        Raises:
            OSError: there are none.
            ValueError: they are malformed; the message names the file.
        """
        with reading(pretrained_model_name_or_path, CONFIG):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Makes a configuration of settings as JSON has them.

        Raises:
            ValueError: a setting is of the wrong type or out of range, or asks for code from elsewhere.
        """
        place = kwargs.get("name_or_path") or "the settings"  # the Auto classes tell it
        with reading(place, CONFIG if "name_or_path" in kwargs else ""):
            check_settings(config_dict)
            check_labels(config_dict.get("id2label"))
            return super().from_dict(config_dict, **kwargs)


def check_number(name: str, value: float, expected: str, is_right: bool) -> None:
    """Refuses a number of a configuration that is not finite or not what is expected of it.

    Raises:
        ValueError: it is not; the message names it.
    """
    if not (math.isfinite(value) and is_right):
        raise ValueError(f"{name} is {value} (expected {expected})")
