"""Measure the model on a board: prefill and decode speed, time to first token, load time, peak memory.

With --peer, models are measured on this machine instead, in turn with another program that runs them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from edgellm import peer_cli
from edgellm.errors import CommandError, UsageError
from edgellm.runtime_program import run_json
from edgellm.selection import add_board, add_model, selected_model
from edgellm.terminal import one_line, size

_BENCH_S = 1800.0

ROWS = (
    ("prefill", "prefill_tok_s", "tok/s"),
    ("decode", "decode_tok_s", "tok/s"),
    ("time to first token", "ttft_ms", "ms"),
    ("load", "load_ms", "ms"),
    ("peak memory", "peak_rss_bytes", "bytes"),
    ("threads", "threads", ""),
)
"""(what it is called, its key in edgellm-rt's answer, unit)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  edgellm bench --board kitchen --prompt 256 --generate 64 --json\n"
        "  edgellm bench --peer llama.cpp random:smollm2-135m random:llama-2-7b -o docs\n"
        "  edgellm bench --peer litert-lm random:smollm2-135m --threads 1,2"
    )
    add_board(parser, required=False)
    add_model(parser)
    parser.add_argument("--prompt", type=int, metavar="N", help="length of the prompt in tokens")
    parser.add_argument("--generate", type=int, metavar="N", help="tokens to generate")
    parser.add_argument("--repeat", type=int, metavar="N", help="measurements; the median counts")
    parser.add_argument("--threads", type=thread_counts, metavar="N[,N…]", help="threads; with --peer several (1,2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    peer_cli.add_arguments(parser)


def thread_counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError
    return counts


def main(args: argparse.Namespace) -> int:
    if args.peer is not None:
        return peer_cli.main(args)
    if args.board is None:
        raise UsageError("which board? --board BOARD, see `edgellm boards`; or --peer llama.cpp on this machine")
    if args.models or (args.threads and len(args.threads) > 1):
        raise UsageError("a MODEL and several thread counts go with --peer; a board has its model: --model NAME")
    options: list[str] = []
    for name in ("prompt", "generate", "repeat"):
        value = getattr(args, name)
        if value is not None:
            options += [f"--{name}", str(value)]
    if args.threads:
        options += ["--threads", str(args.threads[0])]
    with selected_model(args) as model:
        measured = run_json(model.remote, model.argv("bench", *options), "edgellm-rt bench", _BENCH_S)
        title = f"{model.name} on {model.remote.name}"
    if args.json:
        print(json.dumps({"board": args.board, "model": model.name, **measured}))
    else:
        show(title, measured)
    return 0


def show(title: str, measured: dict[str, Any]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for label, key, unit in ROWS:
        if key in measured:
            table.add_row(label, cell(measured[key], unit))
    if not table.row_count:
        raise CommandError(f"{title}: edgellm-rt bench measured nothing that is known here: {one_line(str(measured))}")
    console = Console(highlight=False, markup=False)
    console.print(one_line(title), soft_wrap=True)
    console.print(table)


def cell(value: object, unit: str) -> str:
    """A measured value with its unit; whatever else a board sends is shown harmlessly."""
    if not isinstance(value, int | float):
        return one_line(str(value), 40)
    if unit == "bytes":
        return size(value)
    return f"{value:.1f} {unit}" if unit else f"{value:g}"
