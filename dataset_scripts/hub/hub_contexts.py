"""Pushes contexts to the Hub as a separate configuration of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import datasets
from huggingface_hub import DatasetCard
from huggingface_hub.errors import HTTPError

from dataset_scripts.corpus.context_files import HUB_CONFIGURATION, context_dataset
from dataset_scripts.hub.dataset_card import CARD_TABLE, aligner_table
from modeling_ita.visual_context import VisualContext

CARD_TEXT = """# Visual contexts

What images say, as text: one row for every image, by the id of its post. There is nothing of the posts here, neither
words nor labels; join them by id.

{table}
Captions and tags are guesses of models: they invent, and they carry the biases of what they were trained on.
"""


def push_contexts(
    repository: str, contexts: Mapping[str, VisualContext], report: Mapping[str, Any], private: bool = False
) -> None:
    """Push the contexts to the Hub as Parquet, in a separate configuration, with a card.

    If the data set exists, all rows of this configuration are replaced, whatever kinds they had. Its other
    configurations are kept, and so is its card except for the table of aligners.

    Raises:
        OSError: the Hub cannot be reached or refuses the push.
    """
    table = aligner_table(report["kinds"])
    # As a DatasetDict: a Dataset alone would keep the columns that the card declares for the old rows.
    splits = datasets.DatasetDict({"train": context_dataset(contexts)})
    try:
        splits.push_to_hub(repository, HUB_CONFIGURATION, private=private)
        card = DatasetCard.load(repository)
        before = card.text
        if before.strip():
            card.text = re.sub(re.escape(CARD_TABLE) + r"(\|.*\n?)*", lambda _: table, before)
        else:
            card.text = CARD_TEXT.format(table=table)
        if card.text != before:
            card.push_to_hub(repository)
    except HTTPError as error:  # not an OSError if there is no connection
        raise OSError(
            f"the contexts could not be pushed to {repository} (all is in the store: run this again): {error}"
        ) from error
