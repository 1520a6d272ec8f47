"""What a model is shown: the views of a post, their names, order, titles and colours."""

from __future__ import annotations

VIEWS = ("T", "I+T", "wrong_image", "blank_image")
IMAGE = "image"  # among the kinds that are left out one by one: the image itself, of a model that looks
_SEEN = {
    "T": "the post alone",
    "I+T": "the post and its own image",
    "wrong_image": "the post and another post's image",
    "blank_image": "the post and an empty image",
}


def view_title(view: str) -> str:
    """A view's name as it is shown to readers: `"wrong_image"` → `"wrong image"`."""
    return view.replace("_", " ")
