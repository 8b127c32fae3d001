"""Charts as SVG, without a library: bars and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = {
    "reference": "#8b8f98",
    "one-shot": "#e0a030",
    "engine": "#2a7fba",
    "floor": "#55a868",
    "netavark": "#9a5fb4",
}
_FONT = "font-family='system-ui,sans-serif' font-size='12'"
_BAR, _GAP, _LEFT, _WIDTH, _TOP = 13, 14, 300, 860, 60


def bars(title: str, groups: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> str:
    """Return a chart of horizontal bars: for each group its values by column, from zero."""
    longest = max((value for _, values in groups for value in values.values()), default=1.0)
    scale = (_WIDTH - _LEFT - 70) / longest
    parts: list[str] = []
    y = _TOP
    for name, values in groups:
        middle = y + len(values) * _BAR / 2 + 4
        parts.append(_text(_LEFT - 8, middle, name, "end"))
        for column, value in values.items():
            length = value * scale
            parts.append(
                f"<rect x='{_LEFT}' y='{y:.1f}' width='{length:.1f}' height='{_BAR - 2}'"
                f" fill='{COLOURS[column]}'/>"
            )
            parts.append(_text(_LEFT + length + 4, y + 10, number(value)))
            y += _BAR
        y += _GAP
    columns = list(dict.fromkeys(column for _, values in groups for column in values))
    return _document(f"{title} ({unit})", columns, parts, y)


def curve(title: str, xs: Sequence[int], lines: Mapping[str, Sequence[float]], unit: str) -> str:
    """Return a chart of lines over evenly spaced `xs`, on a logarithmic scale."""
    values = [value for line in lines.values() for value in line if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    bottom, left, right = 360, 80, _WIDTH - 90
    high = max(high, low + 1)

    def y_of(value: float) -> float:
        return bottom - (math.log10(value) - low) / (high - low) * (bottom - _TOP)

    def x_of(place: int) -> float:
        return left + place * (right - left) / max(len(xs) - 1, 1)

    parts = []
    for power in range(low, high + 1):
        y = y_of(10.0**power)
        parts.append(f"<line x1='{left}' y1='{y:.1f}' x2='{right}' y2='{y:.1f}' stroke='#ddd'/>")
        parts.append(_text(left - 8, y + 4, f"{10.0**power:g}", "end"))
    parts += [_text(x_of(place), bottom + 20, f"{x:,}", "middle") for place, x in enumerate(xs)]
    for column, line in lines.items():
        points = [(x_of(place), y_of(value)) for place, value in enumerate(line) if value > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        colour = COLOURS[column]
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in points]
        if points:
            parts.append(_text(points[-1][0] + 8, points[-1][1] + 4, number(line[-1])))
    return _document(f"{title} ({unit}, logarithmic)", list(lines), parts, bottom + 40)


def number(value: float) -> str:
    """Return a figure with its significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def _document(title: str, columns: Sequence[str], parts: Sequence[str], height: float) -> str:
    legend = []
    for place, column in enumerate(columns):
        x = 20 + 110 * place
        legend.append(f"<rect x='{x}' y='32' width='12' height='12' fill='{COLOURS[column]}'/>")
        legend.append(_text(x + 18, 42, column))
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height:.0f}'"
        f" viewBox='0 0 {_WIDTH} {height:.0f}' {_FONT} fill='#222'>"
    )
    background = "<rect width='100%' height='100%' fill='white'/>"
    heading = f"<text x='20' y='20' font-weight='bold'>{escape(title)}</text>"
    return "\n".join([head, background, heading, *legend, *parts, "</svg>"]) + "\n"
