"""A result of `edgellm bench` as a page that stands alone, or as its plots: inline SVG, nothing from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgellm import bench_show, plot
from edgellm.bench_result import Figure, figures_of, roofline
from edgellm.errors import UsageError

_PAGE_STYLE = """\
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; color: #24292f;
  background: #ffffff }
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 0.25rem 0.5rem; white-space: nowrap; border-bottom: 1px solid #d0d7de }
th:first-child, td:first-child { text-align: left } th { color: #57606a; font-weight: 500 }
dt { font-weight: 600 } dd { margin: 0 0 0.6rem } svg { max-width: 100%; height: auto }
.plots svg { display: block; min-width: 34rem } /* smaller, nobody can read the numbers: phones scroll */
.wide { overflow-x: auto } footer { color: #57606a; font-size: 0.9rem; margin-top: 2rem }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117 } th, footer { color: #9198a1 } th, td { border-color: #3d444d }
}
"""


def check_name(file: Path) -> None:
    """Raises UsageError unless a report can be written under this name: before an hour was spent on measuring."""
    if file.suffix.lower() not in (".html", ".svg"):
        raise UsageError(f"--report {file}: give it a name that ends in .html or .svg")
    if not file.parent.is_dir():
        raise UsageError(f"--report {file}: there is no directory {file.parent}; make it first")


def write(document: dict[str, Any], file: Path) -> None:
    """Raises UsageError if the file cannot be written."""
    text = plot.page(plots(document)) if file.suffix.lower() == ".svg" else html(document)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error


def html(document: dict[str, Any]) -> str:
    """The page, well-formed as XML too."""
    names, rows = bench_show.columns(document)
    model = document["model"]
    title = bench_show.title(document)
    parts = [
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width"/>',
        f"<title>{escape(title)}</title><style>{_PAGE_STYLE}{plot.STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}</h1>",
        '<div class="wide plots" tabindex="0" role="region" aria-label="Plots">',
        *plots(document),
        "</div>",
        "<h2>Figures</h2>",
        '<div class="wide" tabindex="0" role="region" aria-label="Figures">'
        f"<table><thead>{_row(('figure', *names[1:]), 'th')}</thead><tbody>",
        *(_row(row, "td") for row in rows),
        "</tbody></table></div>",
        "<h2>About them</h2><dl>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in bench_show.facts(document)),
        "</dl></main>",
        f"<footer>Medians of n samples; “of memory” is what decoding reads, weights and KV cache, as a share of what "
        f"the board's memory, or its GPU's, can be read at. edgellm {escape(document['edgellm'])}, "
        f"runtime {escape(model['runtime'])}, "
        f"{escape(document['taken'])}, manifest {escape(model['manifest_sha256'][:16])}.</footer>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"


def plots(document: dict[str, Any]) -> list[str]:
    """Every plot that the document has something for, as SVG elements without a style sheet."""
    return [*_speeds(document), *_curves(document), *_memory(document)]


def _speeds(document: dict[str, Any]) -> list[str]:
    figures = figures_of(document)
    found = []
    for kind, title, word in (
        ("prefill", "Prefill, by length of the prompt", "tokens"),
        ("decode", "Decode, by positions in the cache before", "positions"),
        ("first_token", "Time to first token, by length of the prompt", "tokens"),
    ):
        chosen = [figure for figure in figures if figure.kind == kind]
        if not chosen:
            continue
        sizes = sorted({_size(figure) for figure in chosen})
        counts = list(dict.fromkeys(figure.threads for figure in chosen))
        by_key = {(figure.threads, _size(figure)): figure for figure in chosen}
        series = [(_threads(count), [_bar(by_key.get((count, n)), document) for n in sizes]) for count in counts]
        found.append(plot.bars(title, chosen[0].unit, [f"{n} {word}" for n in sizes], series))
    return found


def _size(figure: Figure) -> int:
    return figure.depth if figure.kind == "decode" else figure.tokens


def _threads(count: int | None) -> str:
    return "threads as the runtime chose" if count is None else bench_show.plural(count, "thread")


def _bar(figure: Figure | None, document: dict[str, Any]) -> plot.Bar | None:
    if figure is None:
        return None
    line = roofline(figure, document)
    limit = line.limit_tok_s if line is not None and line.share <= 1 else None  # else the caches are what it reads
    return plot.Bar(figure.median, min(figure.values), max(figure.values), limit)


def _curves(document: dict[str, Any]) -> list[str]:
    """Speed, temperature, clock and power of the sustained runs, over the minutes since the first of them began."""
    runs = [run for run in document["sustained"] if len(run["windows"]) > 1]
    if not runs:
        return []
    begin = min(run["windows"][0]["at_s"] - run["windows"][0]["s"] for run in runs)
    end = max(run["windows"][-1]["at_s"] for run in runs)
    minutes = end - begin > 180
    scale, x_unit = (60.0, "minutes") if minutes else (1.0, "seconds")
    readings = [reading for reading in document["sensors"]["readings"] if begin <= reading["at_s"] <= end]
    shaded = _shaded(readings, begin, scale)
    speed = []
    for run in runs:
        points = [((w["at_s"] - begin) / scale, w["tokens"] / w["s"]) for w in run["windows"]]
        speed.append(plot.Curve(_threads(run["threads"]), tuple(points)))
    found = [plot.curves("Sustained decoding", "tok/s", x_unit, speed, zero=True, shaded=shaded)]
    for key, title, unit, factor, zero in (
        ("temp_c", "Temperature meanwhile", "°C", 1.0, False),
        ("clock_hz", "Clock meanwhile", "MHz", 1e-6, True),
        ("watts", "Power meanwhile", "W", 1.0, True),
    ):
        found_points = [((r["at_s"] - begin) / scale, r[key] * factor) for r in readings if r.get(key) is not None]
        if len(found_points) > 1:
            curve = plot.Curve("", tuple(found_points))
            found.append(plot.curves(title, unit, x_unit, [curve], zero=zero, shaded=shaded))
    return found


def _shaded(readings: Sequence[dict[str, Any]], begin: float, scale: float) -> list[tuple[float, float]]:
    """Ranges in which something slowed the processor down."""
    found: list[tuple[float, float]] = []
    for before, now in itertools.pairwise(readings):
        bits = (now.get("throttled") or 0) & 0xF
        if bits or now.get("cooling") or (now.get("count") or 0) > (before.get("count") or 0):
            first, last = (before["at_s"] - begin) / scale, (now["at_s"] - begin) / scale
            if found and found[-1][1] == first:
                first = found.pop()[0]
            found.append((first, last))
    return found


def _memory(document: dict[str, Any]) -> list[str]:
    model, memory = document["model"], document["memory"]
    peak, kv = memory["peak_rss_bytes"], memory["positions"] * model["kv_bytes_per_token"]
    rest = peak - model["weight_bytes"] - model["arena_bytes"] - kv
    if rest < 0:  # then not every planned byte was ever touched, and parts of the peak are not known
        return []
    parts = [
        ("weights", model["weight_bytes"] / 1e6),
        ("buffers", model["arena_bytes"] / 1e6),
        (f"KV cache, {memory['positions']} positions", kv / 1e6),
        ("program, tokenizer, C library", rest / 1e6),
    ]
    return [plot.stack(f"Peak memory: {peak / 1e6:.1f} MB", "MB", parts)]
