"""A comparison for people: tables for the terminal and for Markdown, and the generated part of docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import UsageError
from edgellm.peer_result import COUNTED, NEAR_BANDWIDTH, Statistics, figure_name, key_of, statistics_of
from edgellm.terminal import size

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
"""What lies between these lines of a document is replaced by `edgellm bench --peer`."""


@dataclass(frozen=True)
class Table:
    """A heading, column names, and cells as text. The first n_left columns are text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_left: int


def tables(document: dict[str, Any]) -> list[Table]:
    """Every table that the document has rows for."""
    found = []
    for peer in document["peers"]:
        rows = [(row, statistics_of(row)) for row in document["rows"] if row["peer"] == peer]
        found += [_speed(rows, peer), _depth(rows, peer), _memory(rows, peer)]
    found += [_sizes(document["sizes"], list(document["peers"])), _instructions(document["instructions"], COUNTED)]
    return [table for table in found if table.rows]


def _speed(rows: Sequence[tuple[dict[str, Any], Statistics]], peer: str) -> Table:
    columns = ("model", "weights", "threads", "figure", "edgellm", peer, "ratio", "in single rounds", "MB/token",
               "GB/s", "share", f"{peer}'s", "others' CPU")  # fmt: skip
    cells = []
    for row, numbers in rows:
        n_bytes = row["bytes_per_token"]
        cells.append(
            (
                row["model"],
                row["match"],
                str(row["threads"]),
                f"{figure_name(row['figure'])}, {row['unit']}",
                f"{numbers.ours:.1f}",
                f"{numbers.peer:.1f}",
                f"{numbers.ratio:.2f}",
                f"{numbers.ratio_low:.2f}–{numbers.ratio_high:.2f}",
                f"{n_bytes / 1e6:.1f}" if n_bytes else "",
                "" if numbers.gb_s is None else f"{numbers.gb_s:.1f} of {numbers.bandwidth_gb_s:.1f}",
                _percent(numbers.share),
                _percent(numbers.peer_share),
                f"{numbers.other_cpu:.2f}",
            )
        )
    return Table(f"Speed beside {peer}", columns, tuple(cells), 4)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" + (" bound" if share >= NEAR_BANDWIDTH else "")


def _depth(rows: Sequence[tuple[dict[str, Any], Statistics]], peer: str) -> Table:
    """Decoding with the longest cache against decoding with 128 positions."""
    decode: dict[tuple[str, str, int], dict[int, Statistics]] = {}
    for row, numbers in rows:
        if row["figure"]["kind"] == "decode":
            decode.setdefault((row["model"], row["match"], row["threads"]), {})[row["figure"]["depth"]] = numbers
    cells = []
    for (model, match, threads), by_depth in decode.items():
        deepest = max(by_depth)
        if 128 in by_depth and deepest > 128:
            near, far = by_depth[128], by_depth[deepest]
            kept = (f"{far.ours / near.ours:.0%}", f"{far.peer / near.peer:.0%}")
            cells.append((model, match, str(threads), str(deepest), *kept))
    return Table(f"Decoding speed kept from a cache of 128 to a long one, beside {peer}",
                 ("model", "weights", "threads", "cache", "edgellm", peer), tuple(cells), 2)  # fmt: skip


def _memory(rows: Sequence[tuple[dict[str, Any], Statistics]], peer: str) -> Table:
    cells = [
        (
            row["model"],
            row["match"],
            str(row["threads"]),
            figure_name(row["figure"]),
            size(numbers.peak),
            size(row["limit_bytes"]),
            "yes" if numbers.peak <= row["limit_bytes"] else "no",
            size(numbers.peer_peak),
        )
        for row, numbers in rows
        if row["figure"]["kind"] == "decode" and row["figure"]["depth"] >= 128
    ]
    columns = ("model", "weights", "threads", "figure", "edgellm", "limit", "kept", peer)
    return Table(f"Peak resident memory beside {peer}; limit: weights, KV cache and 16 MB", columns, tuple(cells), 2)


def _sizes(sizes: dict[str, dict[str, int]], peers: Sequence[str]) -> Table:
    cells = [
        (model, *(size(n_bytes[side]) if side in n_bytes else "" for side in ("edgellm", *peers)))
        for model, n_bytes in sizes.items()
    ]
    title = (
        "Program code, stripped: kernels and all of edgellm-rt, server and all; a peer's libraries without any program"
    )
    return Table(title, ("model, weights", "edgellm", *peers), tuple(cells), 1)


def _instructions(counts: Sequence[dict[str, Any]], peer: str) -> Table:
    sides: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for count in counts:
        sides.setdefault((count["model"], count["match"], count["cpu"]), {})[count["side"]] = count
    cells = []
    for (model, match, cpu), found in sides.items():
        ours, theirs = found.get("edgellm"), found.get("peer")
        values = [model, match, cpu]
        for key in ("decode", "prefill"):
            mine = ours and ours[key]
            other = theirs and theirs[key]
            values += [f"{mine / 1e6:.2f} M" if mine else "", f"{other / 1e6:.2f} M" if other else ""]
            values.append(f"{other / mine:.2f}" if mine and other else "")
        per_byte = [f"{side['decode'] / side['weight_bytes_per_token']:.2f}" if side else "" for side in (ours, theirs)]
        cells.append((*values, *per_byte))
    columns = (
        "model",
        "weights",
        "processor",
        "decode",
        peer,
        "ratio",
        "prefill",
        peer,
        "ratio",
        "decode per byte",
        peer,
    )
    return Table("Emulated instructions per token", columns, tuple(cells), 3)


def markdown(document: dict[str, Any], command: str) -> str:
    """Everything that was measured, as Markdown; the chart lies beside it."""
    machine, peers = document["machine"], document["peers"]
    rounds = sorted({len({s["round"] for s in row["samples"]}) for row in document["rows"]})
    lines = [
        f"The latest rows come from `{command}`, others from earlier runs; every sample is in "
        "[performance.json](performance.json).",
        "",
        f"{machine['cpu']}, {machine['n_cores']} processors, tier {machine['tier']}, Linux {machine['kernel']}. "
        + " ".join(f"{_introduced(name, about)}." for name, about in peers.items()),
        f"Medians of {' to '.join(map(str, rounds)) or 'no'} interleaved rounds. “Share” is of the fastest of several "
        "read loops, measured right before and after a sample. “Others' CPU” is what everything else took meanwhile, "
        "in processors: figures with more than 0.1 there are not to be trusted.",
        "",
        "![How many times as fast as the peer.](performance.svg)",
    ]
    for name, about in peers.items():
        if "note" in about:
            lines += ["", f"**{name}**: {about['note']}"]
    for table in tables(document):
        align = [":--" if i < table.n_left else "--:" for i in range(len(table.columns))]
        lines += ["", f"**{table.title}**", "", _line(table.columns), _line(align), *map(_line, table.rows)]
    return "\n".join(lines) + "\n"


def _introduced(name: str, about: dict[str, str]) -> str:
    """A peer's name, version and package."""
    return f"{name} {about.get('commit', '')}".rstrip() + f", from {about['package']}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def fill(text: str, generated: str) -> str:
    """The document with its generated part replaced. Raises UsageError if it has no place for one."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the document has no lines {BEGIN} and {END}; put them where the figures belong")
    return f"{head}{BEGIN}\n\n{generated}\n{END}{tail}"


def write_files(document: dict[str, Any], directory: Path, command: str) -> None:
    """performance.svg beside performance.json, and the generated part of performance.md, which is begun if need be."""
    from edgellm.chart import chart

    (directory / "performance.svg").write_text(chart(document), encoding="utf-8")
    file = directory / "performance.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else f"# Performance\n\n{BEGIN}\n{END}\n"
    file.write_text(fill(text, markdown(document, command)), encoding="utf-8")


def show(document: dict[str, Any], keys: set[tuple[Any, ...]] | None = None) -> None:
    """Prints the tables; keys: only these rows (edgellm.peer_result.key_of)."""
    from rich.console import Console
    from rich.table import Table as RichTable

    chosen = document
    if keys is not None:
        chosen = {**document, "rows": [row for row in document["rows"] if key_of(row) in keys]}
    console = Console(highlight=False, markup=False)
    for table in tables(chosen):
        shown = RichTable(title=table.title, title_justify="left", title_style="bold")
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index < table.n_left else "right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*row)
        needed = Console(width=1000).measure(shown).maximum  # numbers that are cut off would be of no use
        Console(highlight=False, markup=False, width=max(console.width, needed)).print(shown)
    for name, about in chosen["peers"].items():
        if "note" in about:
            console.print(f"{name}: {about['note']}")
