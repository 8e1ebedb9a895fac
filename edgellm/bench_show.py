"""A result of `edgellm bench` for the terminal."""

from __future__ import annotations

import statistics
from typing import Any

from edgellm.bench_result import GPU, UNITS, Figure, figures_of, roofline
from edgellm.terminal import one_line, size


def title(document: dict[str, Any]) -> str:
    model, board = document["model"], document["board"]
    where = board["name"] if board["name"] == board["type"] else f"{board['name']} ({board['type']})"
    return one_line(
        f"{model['name']}, {model['scheme']}, tier {model['tier']} on {where}: {board.get('gpu') or board['cpu']}"
    )


def number(value: float) -> str:
    """A few digits that count."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def columns(document: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Names of the columns, and a row of text per figure; the first column is text, the others are numbers."""
    rows: list[tuple[str, ...]] = []
    order = list(UNITS)
    for figure in sorted(figures_of(document), key=lambda it: (order.index(it.kind), it.tokens, it.depth)):
        line = roofline(figure, document)
        rows.append(
            (
                figure.name,
                threads(figure),
                f"{number(figure.median)} {figure.unit}",
                f"{number(min(figure.values))} – {number(max(figure.values))}" if len(figure.values) > 1 else "",
                str(len(figure.values)),
                "" if line is None else f"{line.share:.0%}",
            )
        )
    return ("", "threads", "median", "from – to", "n", "of memory"), rows


def plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def threads(figure: Figure) -> str:
    if figure.threads is not None:
        return str(figure.threads)
    return "" if figure.used is None else f"auto, {figure.used}"


def facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What is said in a sentence rather than in a table: (name, text)."""
    return [
        *_starts(document),
        *_memory(document),
        *_cold(document),
        *_bandwidth(document),
        *_sustained(document),
        *_sensors(document),
    ]


def _starts(document: dict[str, Any]) -> list[tuple[str, str]]:
    tokens = {figure.tokens for figure in figures_of(document) if figure.kind == "start"}
    return [("start", f"from nothing to the first token of a prompt of {n}") for n in sorted(tokens)]


def _memory(document: dict[str, Any]) -> list[tuple[str, str]]:
    memory = document["memory"]
    peak, planned = memory["peak_rss_bytes"], memory["planned_bytes"]
    plan = f"planned for weights, buffers and {memory['positions']} positions: {size(planned)}"
    rest = f"; program, tokenizer and C library: {size(peak - planned)}" if peak > planned else ""
    return [("peak memory", f"{size(peak)}; {plan}{rest}")] if peak else [("peak memory", "the system does not say")]


def _cold(document: dict[str, Any]) -> list[tuple[str, str]]:
    cold = document["cold"]
    if cold is None:
        return []
    if cold["left_bytes"] > cold["bytes"] // 20:
        text = (
            f"{size(cold['left_bytes'])} of {size(cold['bytes'])} stayed in memory (in use by another program, or on a "
            "file system without a disk): the cold start is warmer than a real one"
        )
    else:
        text = f"{size(cold['bytes'])} were dropped from the page cache before"
    return [("cold start", text)]


def _bandwidth(document: dict[str, Any]) -> list[tuple[str, str]]:
    both = document["board"].get("gpu") is not None
    rates = [
        _rate(it) + (" of the processor" if both and it.get("device") != GPU else "") for it in document["bandwidth"]
    ]
    if not rates:
        return []
    needed = f"a token reads {size(document['model']['step_bytes'])} of weights"
    lines = [line for figure in figures_of(document) if (line := roofline(figure, document)) is not None]
    cached = "; they stay in the caches here, which are faster" if any(line.share > 1 for line in lines) else ""
    return [("memory reads", f"{', '.join(rates)}; {needed}{cached}")]


def _rate(it: dict[str, Any]) -> str:
    if it.get("device") != GPU:
        return f"{it['gb_s']:.1f} GB/s with {plural(it['threads'], 'thread')}"
    copies = it.get("copy_gb_s")
    return f"{it['gb_s']:.1f} GB/s by {it.get('gpu') or 'the GPU'}" + (
        f", which copies {copies:.1f} GB/s to it" if copies else ""
    )


def _sustained(document: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for run in document["sustained"]:
        rates = [window["tokens"] / window["s"] for window in run["windows"]]
        if len(rates) < 2:
            continue
        tenth = max(1, len(rates) // 10)
        first, last = statistics.median(rates[:tenth]), statistics.median(rates[-tenth:])
        seconds = sum(window["s"] for window in run["windows"])
        name = "sustained" if run["threads"] is None else f"sustained, {plural(run['threads'], 'thread')}"
        found.append(
            (
                name,
                f"{number(first)} tok/s at first, {number(last)} at the end of {seconds:.0f} s "
                f"({last / first - 1:+.0%}); "
                f"lowest second {number(min(rates))}",
            )
        )
    return found


def _sensors(document: dict[str, Any]) -> list[tuple[str, str]]:
    sensors = document["sensors"]
    readings = sensors["readings"]
    found = []
    heat = [reading["temp_c"] for reading in readings if reading["temp_c"] is not None]
    found.append(
        (
            "temperature",
            f"{heat[0]:.0f} °C before, {heat[-1]:.0f} after, {max(heat):.0f} at most" if heat else "no sensor",
        )
    )
    if clocks := [reading["clock_hz"] / 1e6 for reading in readings if reading["clock_hz"]]:
        governor = f", governor {one_line(sensors['governor'], 40)}" if sensors.get("governor") else ""
        found.append(("clock", f"{min(clocks):.0f} to {max(clocks):.0f} MHz{governor}"))
    if sensors["slowed_down"]:
        slow = ", ".join(one_line(what, 60) for what in sensors["slowed_down"])
        found.append(
            ("slowed down", f"{slow}; figures taken then say what heat or power allowed, not what the board can do")
        )
    power = sensors["power"]
    if power is None:
        found.append(("energy", one_line(str(sensors.get("why_no_power") or "no sensor"), 300)))
    else:
        found.append(("energy", f"measured by {one_line(power, 200)}"))
    return found


def print_whole(table: Any) -> None:
    """Prints a table of numbers; on a terminal that is too narrow its lines wrap, but no number is cut off."""
    from rich.console import Console

    needed = Console(width=1000).measure(table).maximum
    Console(highlight=False, markup=False, width=max(Console().width, needed)).print(table)


def show(document: dict[str, Any]) -> None:
    """Prints the table and what is to be said about it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names, rows = columns(document)
    used = [index for index in range(len(names)) if any(row[index] for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index in used:
        table.add_column(names[index], justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[index] for index in used))
    about = Table.grid(padding=(0, 2))
    for name, text in facts(document):
        about.add_row(Text(name, style="bold"), Text(text))
    console = Console(highlight=False)
    console.print(f"{title(document)}\n", markup=False, style="bold")
    print_whole(table)
    console.print()
    console.print(about)
