"""Plots as SVG, readable on light and dark pages without anything from elsewhere.

Bars in groups, and curves over time. Every mark carries its number in a <title>, which browsers show under the mouse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 62, 40
_SERIES = 6

_LIGHT = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#bf3989")
_DARK = ("#4493f8", "#db6d28", "#3fb950", "#ab7df8", "#d29922", "#db61a2")


def style(light: str = "", dark: str = "") -> str:
    """The style sheet of every SVG here, with further rules for light pages and for dark ones."""
    return f"""\
text {{ font: 12px system-ui, sans-serif; fill: #24292f }}
.title {{ font-weight: 600; font-size: 14px }}
.quiet {{ fill: #57606a }}
.grid {{ stroke: #d0d7de }}
{light}@media (prefers-color-scheme: dark) {{
  text {{ fill: #e6edf3 }}
  .quiet {{ fill: #9198a1 }}
  .grid {{ stroke: #3d444d }}
{dark}}}"""


def _series_rules(colours: Sequence[str], indent: str) -> str:
    rules = [f"{indent}.s{i} {{ fill: {c} }} .l{i} {{ stroke: {c}; fill: none }}" for i, c in enumerate(colours)]
    return "\n".join(rules) + "\n"


STYLE = style(
    _series_rules(_LIGHT, "")
    + ".whisker { stroke: #24292f; stroke-width: 1.5 }\n.limit { stroke: #24292f; stroke-dasharray: 5 3; fill: none }\n"
    + ".band { fill: #bc4c00; opacity: 0.15 }\n",
    _series_rules(_DARK, "  ")
    + "  .whisker { stroke: #e6edf3 }\n  .limit { stroke: #e6edf3 }\n  .band { fill: #db6d28; opacity: 0.3 }\n",
)


@dataclass(frozen=True)
class Bar:
    """A value with its spread; limit: what it could at most be, drawn as a dashed line across the bar."""

    value: float
    low: float
    high: float
    limit: float | None = None


@dataclass(frozen=True)
class Curve:
    """Points (x, y) joined by a line, in the order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`, `most` of them or fewer."""
    span = max(high - low, 1e-9 * max(abs(high), 1.0))
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most - 1)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def bars(title: str, unit: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[Bar | None]]]) -> str:
    """A bar for each group and series, from 0; whiskers show the spread. A missing bar is None.

    Limits that would leave the bars tiny are given in words instead, above the bar.
    """
    found = [bar for _, row in series for bar in row if bar is not None]
    top = max(bar.high for bar in found)
    shown = [bar.limit for bar in found if bar.limit is not None and bar.limit <= 2.5 * top]
    scale = ticks(0, max([top, *shown]))
    height = 300
    parts = [_begin(title, height), _axis(scale, height, unit)]
    room = (WIDTH - _LEFT - _RIGHT) / len(groups)
    width = min(56.0, 0.8 * room / len(series))
    for g, group in enumerate(groups):
        middle = _LEFT + (g + 0.5) * room
        parts.append(
            f'<text class="quiet" x="{middle:.1f}" y="{height - 18}" text-anchor="middle">{escape(group)}</text>'
        )
        for s, (name, row) in enumerate(series):
            if (bar := row[g]) is not None:
                left = middle + (s - len(series) / 2) * width
                parts += _bar(bar, left, width, s % _SERIES, scale, height, f"{name}, {group}".strip(", "), unit)
    legend = [(name, f"s{i % _SERIES}") for i, (name, _) in enumerate(series) if name]
    if shown:
        legend.append(("limit of the memory", "limit"))
    return "\n".join([*parts, _legend(legend), "</svg>"])


def _bar(
    bar: Bar, left: float, width: float, index: int, scale: Sequence[float], height: int, name: str, unit: str
) -> list[str]:
    def y(value: float) -> float:
        return _y(value, scale, height)

    middle = left + width / 2
    limit = "" if bar.limit is None else f", limit of the memory {label(round(bar.limit, 1))}"
    spread = f" ({bar.low:.6g} to {bar.high:.6g})" if bar.high > bar.low else ""
    parts = [
        f'<rect class="s{index}" x="{left + 1:.1f}" y="{y(bar.value):.1f}" width="{width - 2:.1f}" '
        f'height="{y(0) - y(bar.value):.1f}" rx="2"><title>{escape(name)}: {bar.value:.6g} {escape(unit)}{spread}'
        f"{limit}</title></rect>"
    ]
    if bar.high > bar.low:
        ends = f'y1="{y(bar.low):.1f}" y2="{y(bar.high):.1f}"'
        parts.append(f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" {ends}/>')
    if bar.limit is not None and bar.limit <= scale[-1]:
        ends = f'x1="{left - 3:.1f}" x2="{left + width + 3:.1f}"'
        parts.append(f'<line class="limit" {ends} y1="{y(bar.limit):.1f}" y2="{y(bar.limit):.1f}"/>')
    above = y(max(bar.high, bar.value)) - 5
    text = f"{bar.value:,.0f}" if bar.value >= 100 else f"{bar.value:.1f}"
    parts.append(f'<text x="{middle:.1f}" y="{above:.1f}" text-anchor="middle">{text}</text>')
    return parts


def curves(
    title: str,
    unit: str,
    x_unit: str,
    lines: Sequence[Curve],
    *,
    zero: bool,
    shaded: Sequence[tuple[float, float]] = (),
) -> str:
    """Curves over a common x axis from 0. zero: the y axis starts there; shaded: ranges of x that are marked."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    height = 240
    scale, x_scale = ticks(0 if zero else min(ys), max(ys)), ticks(0, max(xs), 9)
    end = max(xs) or 1.0

    def at(x: float) -> float:
        return _LEFT + min(max(x, 0.0), end) / end * (WIDTH - _LEFT - _RIGHT)

    parts = [_begin(title, height)]
    for first, last in shaded:
        wide = max(at(last) - at(first), 2.0)
        parts.append(
            f'<rect class="band" x="{at(first):.1f}" y="{_TOP}" width="{wide:.1f}" height="{height - _TOP - _BOTTOM}">'
            "<title>slowed down</title></rect>"
        )
    parts.append(_axis(scale, height, unit))
    for x in x_scale:
        if x <= end:
            parts.append(
                f'<text class="quiet" x="{at(x):.1f}" y="{height - 22}" text-anchor="middle">{label(x)}</text>'
            )
    parts.append(f'<text class="quiet" x="{WIDTH - _RIGHT}" y="{height - 6}" text-anchor="end">{escape(x_unit)}</text>')
    for i, line in enumerate(lines):
        points = " ".join(f"{at(x):.1f},{_y(y, scale, height):.1f}" for x, y in line.points)
        values = [y for _, y in line.points]
        about = f"{line.name}: {min(values):.6g} to {max(values):.6g} {unit}".removeprefix(": ")
        mark = f'<polyline class="l{i % _SERIES}" stroke-width="1.8" points="{points}">'
        parts.append(f"{mark}<title>{escape(about)}</title></polyline>")
    legend = [(line.name, f"s{i % _SERIES}") for i, line in enumerate(lines) if line.name]
    if shaded:
        legend.append(("slowed down", "band"))
    return "\n".join([*parts, _legend(legend), "</svg>"])


def stack(title: str, unit: str, parts: Sequence[tuple[str, float]]) -> str:
    """One bar across, of parts laid end to end, with their names below."""
    total = sum(value for _, value in parts) or 1.0
    lines = []
    x, text_x, text_y = 12.0, 12.0, 82
    for i, (name, value) in enumerate(parts):
        width = value / total * (WIDTH - 24)
        lines.append(
            f'<rect class="s{i % _SERIES}" x="{x:.1f}" y="40" width="{max(width - 1, 0.5):.1f}" height="28" rx="2">'
            f"<title>{escape(name)}: {value:.6g} {escape(unit)}</title></rect>"
        )
        text = f"{name} {value:.1f} {unit}"
        if text_x > 12 and text_x + 15 + 6.6 * len(text) > WIDTH:
            text_x, text_y = 12.0, text_y + 20
        lines.append(f'<rect class="s{i % _SERIES}" x="{text_x:.1f}" y="{text_y}" width="10" height="10" rx="2"/>')
        lines.append(f'<text x="{text_x + 15:.1f}" y="{text_y + 9}">{escape(text)}</text>')
        x, text_x = x + width, text_x + 36 + 6.6 * len(text)
    return "\n".join([_begin(title, text_y + 30), *lines, "</svg>"])


def page(plots: Sequence[str]) -> str:
    """One SVG of several plots, one below the other, with the style sheet."""
    heights = [int(plot.split('height="', 1)[1].split('"', 1)[0]) for plot in plots]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {sum(heights)}" width="{WIDTH}" '
        f'height="{sum(heights)}" role="img">',
        f"<style>{STYLE}</style>",
    ]
    y = 0
    for plot, height in zip(plots, heights, strict=True):
        lines.append(plot.replace("<svg ", f'<svg y="{y}" ', 1))
        y += height
    return "\n".join([*lines, "</svg>", ""])


def _begin(title: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<text class="title" x="12" y="22">{escape(title)}</text>'
    )


def _y(value: float, scale: Sequence[float], height: int) -> float:
    return height - _BOTTOM - (value - scale[0]) / (scale[-1] - scale[0]) * (height - _TOP - _BOTTOM)


def _axis(scale: Sequence[float], height: int, unit: str) -> str:
    lines = [f'<text class="quiet" x="{_LEFT - 8}" y="{_TOP - 12}" text-anchor="end">{escape(unit)}</text>']
    for value in scale:
        y = _y(value, scale, height)
        lines.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        lines.append(f'<text class="quiet" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>')
    return "\n".join(lines)


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    lines, x = [], float(_LEFT)
    for name, kind in entries:
        if kind == "limit":
            lines.append(f'<line class="limit" x1="{x:.1f}" x2="{x + 16:.1f}" y1="38" y2="38"/>')
        else:
            lines.append(f'<rect class="{kind}" x="{x:.1f}" y="33" width="10" height="10" rx="2"/>')
        lines.append(f'<text class="quiet" x="{x + 20:.1f}" y="42">{escape(name)}</text>')
        x += 40 + 6.6 * len(name)
    return "\n".join(lines)
