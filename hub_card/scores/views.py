"""The views of a post that a model can be given: names, order, titles, colours and dash patterns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

VIEWS = ("T", "I+T", "wrong_image", "blank_image")
IMAGE = "image"  # in the ablation, the image itself, for models that take pictures
# What the model sees.
SEEN = {
    "T": "the post alone",
    "I+T": "the post and its own image",
    "wrong_image": "the post and another post's image",
    "blank_image": "the post and an empty image",
}
# The views available to users; the others are controls.
OF_USERS = {"T": "the post alone", "I+T": "the post with its image"}
MAIN_VIEWS = tuple(OF_USERS)
# Order of columns by image: the right image first, because the others are compared with it.
SIDE_BY_SIDE = {"I+T": "right image", "T": "no image", "wrong_image": "wrong image", "blank_image": "blank image"}
# Okabe and Ito's palette, which is safe for colour-blind readers.
PALETTE = {"blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "grey": "#7F7F7F", "orange": "#E69F00"}


class Look(NamedTuple):
    """How a view is drawn.

    Attributes:
        name: its colour in `PALETTE`.
        dashes: an SVG dash pattern; empty for a solid line.
        marker: the matplotlib marker.
    """

    name: str
    dashes: str
    marker: str

    @property
    def colour(self) -> str:
        """The colour, `#0072B2`."""
        return PALETTE[self.name]

    @property
    def css(self) -> str:
        """The CSS variable for the colour, which is lighter on a dark page."""
        return f"var(--{self.name})"


_LOOKS = {
    "T": Look("blue", "", "o"),
    "I+T": Look("vermillion", "", "s"),
    "wrong_image": Look("grey", "5 3", "^"),
    "blank_image": Look("green", "2 3", "D"),
}
_OTHER_LOOK = Look("orange", "8 3 2 3", "v")


def look(view: str) -> Look:
    """How a view is drawn; views of other systems all look the same."""
    return _LOOKS.get(view, _OTHER_LOOK)


def view_title(view: str) -> str:
    """A view's name as shown to readers: `"wrong_image"` → `"wrong image"`."""
    return view.replace("_", " ")


def side_by_side(views: Iterable[str]) -> list[str]:
    """The views in column order: those of `SIDE_BY_SIDE` first, then all others in their given order."""
    views = list(views)
    return [view for view in SIDE_BY_SIDE if view in views] + [view for view in views if view not in SIDE_BY_SIDE]
