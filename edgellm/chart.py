"""A comparison as one SVG: a bar per figure, how many times as fast as the peer; readable on light and dark pages."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from edgellm.peer_result import figure_name, statistics_of
from edgellm.plot import style

_LEFT, _BAR, _RIGHT, _ROW, _TOP = 250, 330, 190, 20, 64
_SHOWN = {("decode", 128), ("prefill", 0), ("first_token", 0)}
"""(kind, depth) of the figures that get a bar; the tables have all."""

_STYLE = style(
    """\
.group { font-weight: 600 }
.better { fill: #1a7f37 }
.worse { fill: #bc4c00 }
.one { stroke: #24292f; stroke-width: 1.5 }
""",
    """\
  .better { fill: #3fb950 }
  .worse { fill: #db6d28 }
  .one { stroke: #e6edf3 }
""",
)


def chart(document: dict[str, Any]) -> str:
    """The SVG. Bars start at 0, the line marks 1: as fast as the peer. Grouped by model and peer."""
    peers = " and ".join(document["peers"])
    groups: dict[str, list[tuple[str, float, str]]] = {}
    for row in document["rows"]:
        if (row["figure"]["kind"], row["figure"]["depth"]) not in _SHOWN:
            continue
        numbers = statistics_of(row)
        threads = f"{row['threads']} thread" + ("s" if row["threads"] > 1 else "")
        label = f"{figure_name(row['figure'])}, {threads}"
        values = f"{_short(numbers.ours)} / {_short(numbers.peer)} {row['unit']}"
        group = f"{row['model']}, {row['match']}, beside {row['peer']}"
        groups.setdefault(group, []).append((label, numbers.ratio, values))
    most = max([1.0, *(ratio for bars in groups.values() for _, ratio, _ in bars)])
    scale_end = math.ceil(most * 2) / 2
    n_rows = sum(len(bars) + 1.5 for bars in groups.values())
    width, height = _LEFT + _BAR + _RIGHT, round(_TOP + n_rows * _ROW + 12)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="edgellm against {escape(peers)}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="12" y="22">edgellm: how many times as fast as {escape(peers)}</text>',
    ]
    bottom = height - 8
    step = 0.5 if scale_end <= 4 else 1.0
    for tick in range(round(scale_end / step) + 1):
        x = _LEFT + tick * step / scale_end * _BAR
        kind = "one" if tick * step == 1 else "grid"
        lines.append(f'<line class="{kind}" x1="{x:.1f}" y1="{_TOP - 12}" x2="{x:.1f}" y2="{bottom}"/>')
        lines.append(f'<text class="quiet" x="{x:.1f}" y="{_TOP - 18}" text-anchor="middle">{tick * step:g}×</text>')
    y = float(_TOP)
    for title, bars in groups.items():
        y += _ROW
        lines.append(f'<text class="group" x="12" y="{y - 6:.1f}">{escape(title)}</text>')
        for label, ratio, values in bars:
            y += _ROW
            length = ratio / scale_end * _BAR
            kind = "better" if ratio >= 1 else "worse"
            lines += [
                f'<text x="24" y="{y - 6:.1f}">{escape(label)}</text>',
                f'<rect class="{kind}" x="{_LEFT}" y="{y - 16:.1f}" width="{length:.1f}" height="12" rx="2"/>',
                f'<text x="{_LEFT + length + 6:.1f}" y="{y - 6:.1f}">{ratio:.2f}'
                f'<tspan class="quiet" dx="8">{escape(values)}</tspan></text>',
            ]
        y += _ROW / 2
    return "\n".join([*lines, "</svg>", ""])


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
