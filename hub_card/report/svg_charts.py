"""Plots as inline SVG for a self-contained page: text in the page's font, colours that follow light and dark.

A plot is 360 units wide, the width of a phone, and grows with its column. Colours are CSS: the page's style sheet
defines the variables of `STYLE`. All strings are plain text and are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modeling_ita.markup import html_text

WIDTH, HEIGHT = 360, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 18, 10, 38
_BAR, _BAR_GAP, _GROUP_GAP = 11, 2, 9
_LETTER = 7.4  # approximate width of a capital letter in the label font

# Okabe and Ito's palette, as in the figures of a run; on a dark page the blue is their light one.
STYLE = """
:root { --blue: #0072b2; --vermillion: #d55e00; --green: #009e73; --grey: #7f7f7f; --orange: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --blue: #56b4e9; --grey: #9a9a9a; } }
figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; max-width: 30rem; height: auto; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
svg text { font-family: inherit; font-size: 11px; fill: currentColor; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .4rem; font-size: .85rem; }
.legend svg { width: 22px; height: 10px; flex: none; }
"""


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: what the legend calls it; empty for a line that the legend leaves out.
        points: x and y, in the order in which they are joined.
        colour: a CSS colour.
        dashes: an SVG dash pattern; empty for a solid line.
        radii: the radius of the dot at each point, in units of the plot; empty for no dots.
        opacity: of line and dots.
        band: x and the two ends of an interval around y, in the order of x; shaded behind the line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashes: str = ""
    radii: Sequence[float] = ()
    opacity: float = 1.0
    band: Sequence[tuple[float, float, float]] = ()


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """A figure of lines over common axes, with its legend.

    Args:
        title: what it shows.
        series: the lines; on a logarithmic axis all y are positive.
        x_label: what x is.
        y_label: what y is; shown above the axis.
        x_range: the ends of the x axis; None for those of the points.
        y_range: the ends of the y axis; None for those of the points.
        log: whether the y axis is logarithmic.

    Returns:
        HTML; empty if there are no points.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points] + [
        end for line in series for _, *ends in line.band for end in ends
    ]
    if not xs:
        return ""
    x_low, x_high = _opened(*(x_range or (min(xs), max(xs))))
    y_low, y_high = _opened(*(y_range or (min(ys), max(ys))), factor=log)

    def place_x(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def place_y(y: float) -> float:
        scaled = math.log(y / y_low) / math.log(y_high / y_low) if log else (y - y_low) / (y_high - y_low)
        return HEIGHT - _BOTTOM - scaled * (HEIGHT - _TOP - 14 - _BOTTOM)

    floor = HEIGHT - _BOTTOM
    parts = [_label(4, _TOP + 2, y_label, "start")]
    for y in _log_ticks(y_low, y_high) if log else _ticks(y_low, y_high):
        at = place_y(y)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_label(_LEFT - 6, at + 4, f"{y:g}", "end"))
    for x in _ticks(x_low, x_high):
        parts.append(f'<path class="axis" d="M{place_x(x):.1f} {floor}v4"/>')
        parts.append(_label(place_x(x), floor + 16, f"{x:g}", "middle"))
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{WIDTH - _RIGHT}"/>')
    parts.append(_label((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    for line in series:
        if line.band:
            outline = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
            corners = "L".join(f"{place_x(x):.1f} {place_y(y):.1f}" for x, y in outline)
            parts.append(f'<path d="M{corners}Z" fill="{html_text(line.colour)}" opacity="0.15"/>')
        # Points at the same position on screen are drawn once.
        spots = list(dict.fromkeys(f"{place_x(x):.1f} {place_y(y):.1f}" for x, y in line.points))
        stroke = f'stroke="{html_text(line.colour)}" stroke-width="1.8" stroke-dasharray="{html_text(line.dashes)}"'
        if len(spots) > 1:
            parts.append(f'<path d="M{"L".join(spots)}" fill="none" opacity="{line.opacity:g}" {stroke}/>')
        radii = line.radii or ([3.0] if len(spots) == 1 else [])
        for (x, y), radius in zip(line.points, radii, strict=False):
            dot = f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="{radius:.1f}"'
            parts.append(f'{dot} fill="{html_text(line.colour)}" opacity="{line.opacity:g}"/>')
    return _figure(title, HEIGHT, parts, [line for line in series if line.name])


def bar_chart(title: str, rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> str:
    """A figure of horizontal bars from 0 to 100 %, in groups, with its legend.

    Args:
        title: what it shows.
        rows: for each group its bars: what the legend calls the bar, and a fraction in [0, 1].
        colours: the CSS colour of every name of the legend.

    Returns:
        HTML; empty if there are no bars.
    """
    if not any(rows.values()):
        return ""
    letters = min(max(map(len, rows)), 20)
    left = 10 + letters * _LETTER
    parts, top = [], 4.0
    for label, bars in rows.items():
        height = len(bars) * (_BAR + _BAR_GAP)
        shown = label if len(label) <= letters else label[: letters - 1] + "…"
        parts.append(_label(left - 8, top + height / 2 + 3, shown, "end"))
        for name, value in bars.items():
            length = value * (WIDTH - left - 38)
            tip = f"<title>{html_text(label)}, {html_text(name)}: {100 * value:.1f}</title>"
            shape = f'x="{left:.1f}" y="{top:.1f}" width="{length:.1f}" height="{_BAR}"'
            parts.append(f'<rect {shape} fill="{html_text(colours[name])}">{tip}</rect>')
            parts.append(_label(left + length + 4, top + _BAR - 2, f"{100 * value:.1f}", "start"))
            top += _BAR + _BAR_GAP
        top += _GROUP_GAP
    parts.append(f'<path class="axis" d="M{left:.1f} 0V{top - _GROUP_GAP + 2:.1f}"/>')
    names = dict.fromkeys(name for bars in rows.values() for name in bars)
    legend = [Series(name, (), colours[name]) for name in names] if len(names) > 1 else []
    return _figure(title, top, parts, legend, thick=True)


def _figure(title: str, height: float, parts: Iterable[str], legend: Sequence[Series], thick: bool = False) -> str:
    entries = "".join(
        f'<li><svg viewBox="0 0 22 10" aria-hidden="true"><path d="M0 5H22" stroke="{html_text(line.colour)}"'
        f' stroke-width="{9 if thick else 2}" stroke-dasharray="{html_text(line.dashes)}" opacity="{line.opacity:g}"/>'
        f"</svg>{html_text(line.name)}</li>"
        for line in legend
    )
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"><title>{html_text(title)}</title>{"".join(parts)}</svg>'
    )
    return f'<figure><figcaption>{html_text(title)}</figcaption>{picture}<ul class="legend">{entries}</ul></figure>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html_text(text)}</text>'


def _opened(low: float, high: float, factor: bool = False) -> tuple[float, float]:
    """The range of an axis, with some width even where all values are equal."""
    if low < high:
        return low, high
    return (low / 2, high * 2) if factor else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for units in ((1, 2, 5), (1,)):
        ticks = [unit * 10.0**power for power in decades for unit in units if low <= unit * 10.0**power <= high]
        if len(ticks) <= 8:
            break
    return ticks if len(ticks) > 1 else _ticks(low, high)
