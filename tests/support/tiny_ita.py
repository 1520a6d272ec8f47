"""The tags and the vocabulary of the tiny model that all tests share."""

from __future__ import annotations

TYPES = ("PER", "LOC", "ORG", "MISC")
LABELS = ["O", *(f"{prefix}-{entity_type}" for entity_type in TYPES for prefix in "BI")]
WORDS = [
    "the", "in", "at", "of", "tonight", "game", "Phoenix", "Suns", "Chicago", "London", "Paris", "Obama", "NBA", "red",
    "car", "dog", "man", "stadium", "sign",
]  # fmt: skip
