"""A labeller whose process dies at one post, as if memory had run out."""

from __future__ import annotations

import os
from typing import Any

from dataset_scripts.labelling.labeller import Labelled, PostLabeller


class DeadlyLabeller(PostLabeller):
    """Dies at the post `deadly`, unless that row is not to be labelled."""

    deadly = ""

    def label(
        self, posts: Any, images: Any = None, contexts: Any = None, faults: Any = None, folder: Any = None
    ) -> Labelled:
        """As the class above, but for the end."""
        for post, fault in zip(posts, faults, strict=True):
            if post == self.deadly and fault is None:
                os._exit(9)
        return super().label(posts, images, contexts, faults, folder)
