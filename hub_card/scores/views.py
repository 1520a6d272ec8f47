"""The views of a post: what a model is shown, and their names, order, titles and colours wherever they appear."""

from __future__ import annotations

from typing import NamedTuple

VIEWS = ("T", "I+T", "wrong_image", "blank_image")
IMAGE = "image"  # among the kinds of context that are left out one by one: the image itself, if the model sees images
SEEN = {
    "T": "the post alone",
    "I+T": "the post and its own image",
    "wrong_image": "the post and another post's image",
    "blank_image": "the post and an empty image",
}
"""What the model sees in each view."""
IMAGES = {"I+T": "right image", "T": "no image", "wrong_image": "wrong image", "blank_image": "blank image"}
"""The image of each view, in the order of a report's columns: the view that a model is used with comes first."""

# Okabe and Ito's palette, which any colour vision tells apart.
PALETTE = {"blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "grey": "#7F7F7F", "orange": "#E69F00"}


class Look(NamedTuple):
    """How a view is drawn: a name in `PALETTE`, a marker of matplotlib, and the dashes of a line in SVG."""

    name: str
    marker: str
    dash: str

    @property
    def colour(self) -> str:
        """The colour as `#RRGGBB`."""
        return PALETTE[self.name]

    @property
    def variable(self) -> str:
        """The colour as a variable of a page's style sheet, which has a second one for dark screens."""
        return f"var(--{self.name})"


LOOKS = {
    "T": Look("blue", "o", ""),
    "I+T": Look("vermillion", "s", ""),
    "wrong_image": Look("grey", "^", "5 3"),
    "blank_image": Look("green", "D", "2 3"),
}
_OTHER_LOOK = Look("orange", "v", "8 3 2 3")


def look_of(view: str) -> Look:
    """How a view is drawn; the views of other systems share one look."""
    return LOOKS.get(view, _OTHER_LOOK)


def view_title(view: str) -> str:
    """A view's name as it is shown to readers: `"wrong_image"` → `"wrong image"`."""
    return view.replace("_", " ")
