"""A canvas for drawing scenes: gradients, lettering that fits its box, and the figures that scenes share."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 640, 480
"""The surface in drawing units; the finished picture has half as many pixels each way, so that edges are smooth."""

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

WHITE: Colour = (250, 250, 248)
BLACK: Colour = (18, 18, 22)
SKIN: tuple[Colour, ...] = ((236, 196, 164), (201, 148, 110), (141, 92, 62), (96, 62, 44), (224, 176, 136))
HAIR: tuple[Colour, ...] = ((48, 34, 26), (112, 72, 38), (196, 150, 84), (30, 28, 34), (128, 124, 122))
CLOTHES: tuple[Colour, ...] = ((44, 74, 126), (148, 46, 58), (54, 106, 84), (92, 70, 122), (196, 124, 44))


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """The colour `share` (0 to 1) of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


class Canvas:
    """One picture while it is drawn.

    Args:
        name: seeds the picture's variations (colours, positions), which depend on nothing else.

    Attributes:
        image: the surface, RGB, `WIDTH` × `HEIGHT`.
        pen: PIL's drawing interface to the surface, in its pixels.
    """

    def __init__(self, name: str) -> None:
        self.image = Image.new("RGB", (WIDTH, HEIGHT), WHITE)
        self.pen = ImageDraw.Draw(self.image)
        self._name = name
        self._drawn = 0

    def number(self, low: int, high: int) -> int:
        """The next pseudo-random number of this picture, `low` ≤ number ≤ `high`."""
        self._drawn += 1
        return low + zlib.crc32(f"{self._name}/{self._drawn}".encode()) % (high - low + 1)

    def pick(self, colours: Sequence[Colour]) -> Colour:
        """Pick one of these colours with the picture's pseudo-random numbers."""
        return colours[self.number(0, len(colours) - 1)]

    def gradient(self, top: Colour, bottom: Colour, box: Box = (0, 0, WIDTH, HEIGHT)) -> None:
        """Fill a box with a gradient from one colour at the top to another at the bottom."""
        left, upper, right, lower = box
        for y in range(round(upper), round(lower)):
            self.pen.line((left, y, right, y), fill=blend(top, bottom, (y - upper) / (lower - upper)))

    def plate(self, box: Box, fill: Colour, edge: Colour, radius: int = 12, border: int = 6) -> None:
        """A board with rounded corners and an edge."""
        self.pen.rounded_rectangle(box, radius, fill=fill, outline=edge, width=border)

    def lettering(self, box: Box, lines: Sequence[str], fill: Colour, largest: int = 76, bold: int = 1) -> None:
        """Write the lines one below the other, centred, each as large as the box and `largest` allow."""
        left, upper, right, lower = box
        row = (lower - upper) / max(len(lines), 1)
        for i, line in enumerate(lines):
            size = min(largest, int(row * 0.74))
            while size > 12 and self._width(line, size, bold) > right - left:
                size -= 1
            centre = ((left + right) / 2, upper + row * (i + 0.5))
            font = ImageFont.load_default(size=size)
            self.pen.text(centre, line, font=font, fill=fill, anchor="mm", stroke_width=bold, stroke_fill=fill)

    def _width(self, line: str, size: int, bold: int) -> float:
        return self.pen.textlength(line, font=ImageFont.load_default(size=size)) + 2 * bold

    def clouds(self, count: int, fill: Colour = WHITE, lowest: int = 160) -> None:
        """White clouds in the upper part of the picture."""
        for _ in range(count):
            x, y, size = self.number(0, WIDTH), self.number(20, lowest), self.number(26, 52)
            for shift, scale in ((-1.2, 0.7), (0, 1), (1.2, 0.75), (2.1, 0.5)):
                r = size * scale
                self.pen.ellipse((x + shift * size - r, y - r * 0.7, x + shift * size + r, y + r * 0.7), fill=fill)

    def person(self, x: float, y: float, size: float, shirt: Colour | None = None) -> None:
        """Head and shoulders; `(x, y)` is the chin and `size` the height of the head."""
        skin, hair = self.pick(SKIN), self.pick(HAIR)
        shirt = shirt or self.pick(CLOTHES)
        long_hair = self.number(0, 1)
        head = (x - size * 0.36, y - size, x + size * 0.36, y)
        if long_hair:
            cape = (x - size * 0.52, y - size * 1.1, x + size * 0.52, y + size * 0.35)
            self.pen.rounded_rectangle(cape, round(size * 0.45), fill=hair)
        self.pen.rounded_rectangle(
            (x - size * 0.95, y + size * 0.22, x + size * 0.95, y + size * 2.4), round(size * 0.5), fill=shirt
        )
        self.pen.rectangle((x - size * 0.16, y - size * 0.15, x + size * 0.16, y + size * 0.34), fill=skin)
        self.pen.ellipse(head, fill=skin)
        self.pen.chord((head[0] - 3, head[1] - size * 0.1, head[2] + 3, y - size * 0.18), 180, 360, fill=hair)
        for side in (-1, 1):
            eye_x, eye_y, r = x + side * size * 0.15, y - size * 0.5, size * 0.045
            self.pen.ellipse((eye_x - r, eye_y - r, eye_x + r, eye_y + r), fill=BLACK)
        mouth = (x - size * 0.15, y - size * 0.36, x + size * 0.15, y - size * 0.16)
        self.pen.arc(mouth, 20, 160, fill=(150, 60, 60), width=max(2, round(size * 0.04)))

    def crowd(self, top: int, fill: Colour, head: int = 15) -> None:
        """Rows of dark heads from `top` to the lower edge."""
        for row, y in enumerate(range(top, HEIGHT + head, round(head * 1.5))):
            for x in range(-head + (row % 2) * head, WIDTH + head, head * 2):
                lift = self.number(0, head // 2)
                self.pen.ellipse((x - head * 0.7, y - lift, x + head * 0.7, y - lift + head * 1.5), fill=fill)
                self.pen.rectangle((x - head, y - lift + head * 1.3, x + head, HEIGHT + 3 * head), fill=fill)

    def windows(self, box: Box, lit: Colour, dark: Colour, step: int = 26) -> None:
        """A grid of windows on a wall, some of them lit."""
        left, upper, right, lower = (round(v) for v in box)
        for y in range(upper + 10, lower - 10, step):
            for x in range(left + 8, right - 12, step - 6):
                self.pen.rectangle((x, y, x + 9, y + 13), fill=lit if self.number(0, 2) else dark)

    def finish(self) -> Image.Image:
        """The finished picture at half the surface's size."""
        return self.image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.LANCZOS)
