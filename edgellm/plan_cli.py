"""Predict what boards make of a model: speed, memory, the best scheme and threads. Its config.json is enough.

MODEL is a checkpoint directory, a config.json, `random:SHAPE`, or a Hub id, of which only config.json is fetched.
Speed is a prompt of 128 tokens, and the answer behind it. "±" is the largest error seen where predictions of this kind
were compared with runs; "~" says that they never were, and a core that executes in order will be slower. "measured"
rests on runs of edgellm on that processor, "published" on other programs' figures for that core, "rough" on neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm.compile_cli import SCHEMES, StageDisplay
from edgellm.errors import UsageError
from edgellm.terminal import one_line, size

READING_TOK_S = 8.0
"""About twice as fast as people read: 250 words a minute, and 4 tokens for 3 words (default of --at-least)."""

_EPILOG = """\
examples:
  edgellm plan HuggingFaceTB/SmolLM2-360M-Instruct            every board
  edgellm plan ./MyModel --board rpi5                         every scheme and context length on one
  edgellm plan random:tinyllama-1.1b --board kitchen --context 8192

fit predictions to this machine or a board (measures for minutes; keep it quiet), with other models as the test:
  edgellm plan --fit random:smollm2-135m random:tinyllama-1.1b --check random:smollm2-360m
  edgellm plan --fit random:smollm2-135m random:smollm2-360m --board kitchen --threads 1,2,4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", metavar="MODEL", help="directory, config.json, random:SHAPE or Hub id")
    parser.add_argument("--board", metavar="BOARD", help="one board in detail; default: all, with their best scheme")
    parser.add_argument(
        "--scheme",
        choices=SCHEMES,
        metavar="SCHEME",
        help="only this one of those that `edgellm compile --help` lists; default: the best of several",
    )
    parser.add_argument("--context", type=int, metavar="N", help="positions that must fit (default: 4096)")
    parser.add_argument(
        "--at-least",
        type=float,
        default=READING_TOK_S,
        metavar="TOK_S",
        help="the best scheme is the most exact one that decodes so fast (default: %(default)g, twice reading speed)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    fitting = parser.add_argument_group(
        "fitting", "coefficients come from runs on this machine or on --board, not from anybody's head"
    )
    fitting.add_argument("--fit", nargs="*", metavar="MODEL", help="measure these and fit; none: fit to the runs in -o")
    fitting.add_argument("--check", nargs="+", default=[], metavar="MODEL", help="measure these too, as the test")
    fitting.add_argument("--rounds", type=int, default=3, metavar="N", help="samples of each figure (default: 3)")
    fitting.add_argument(
        "--threads", type=positive_numbers, default=[1, 2], metavar="N,…", help="to measure with (default: 1,2)"
    )
    fitting.add_argument(
        "--prompts", type=positive_numbers, default=[64, 128, 512], metavar="N,…", help="lengths (default: 64,128,512)"
    )
    fitting.add_argument(
        "--quiet-below",
        type=float,
        default=0.15,
        metavar="P",
        help="processors that others may use of those that a sample needs (default: %(default)s)",
    )
    fitting.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: measured.json beside boards.toml")


def positive_numbers(text: str) -> list[int]:
    """A type for argparse: "1,2"."""
    counts = sorted({int(part) for part in text.split(",")})
    if min(counts) < 1:
        raise ValueError
    return counts


def main(args: argparse.Namespace) -> int:
    if args.fit is not None:
        from edgellm import fit_cli

        return fit_cli.main(args)
    if args.model is None:
        raise UsageError("which model? a directory, a config.json, random:SHAPE or a Hub id")
    if args.context is not None and args.context < 1:
        raise UsageError("--context must be at least 1")
    with StageDisplay(quiet=args.json) as display:
        name, plans = plan(args, display.update)
    if args.json:
        print(
            json.dumps({"model": name, "boards": [as_json(found, best) for found, best in plans]}, ensure_ascii=False)
        )
    elif args.board:
        show_board(name, *plans[0])
    else:
        show_boards(name, plans)
    return 0


def plan(args: argparse.Namespace, progress: Any) -> tuple[str, list[tuple[list[Any], Any]]]:
    """(model's name, for each board its predictions and the best of them)."""
    from edgellm import hub, measured, planning
    from edgellm.boards import find_type
    from edgellm.precision import Options
    from edgellm.sketching import sketches

    boards = [find_type(args.board)] if args.board else planning.hardware()
    schemes = [Options(args.scheme)] if args.scheme else [*planning.CANDIDATES]
    known = measured.load()
    config, name = hub.read_config(args.model, progress)
    sketched = sketches(config, [board.target().tier.name for board in boards], schemes, progress)
    plans = []
    for board in boards:
        basis = planning.basis_for(board, known, planning.hardware())
        tier = board.target().tier.name
        found = [
            planning.predict(board, options, by_tier[tier], known, basis, args.context)
            for options, by_tier in zip(schemes, sketched, strict=True)
        ]
        plans.append((found, planning.choose(found, args.at_least)))
    return name, plans


def as_json(found: Sequence[Any], best: Any) -> dict[str, Any]:
    """One board. Sizes in bytes, speeds in tokens per second, errors relative; null: unknown."""
    from edgellm.sketching import label

    first = found[0]
    return {
        "board": first.board.label,
        "name": first.board.name,
        "memory_bytes": first.board.memory_bytes,
        "basis": first.basis.kind,
        "note": first.basis.note,
        "best": label(best.options) if best else None,
        "schemes": [
            {
                "scheme": label(each.options),
                "weight_bytes": each.sketch.weight_bytes,
                "decode": _speed_json(each.decode),
                "prefill": _speed_json(each.prefill),
                "context": each.context,
                "needed_bytes": round(each.needed_bytes),
                "memory_error": each.basis.errors.get("memory"),
                "fits": each.fits,
                "memory_by_context": {str(n): round(value) for n, value in each.memory_bytes.items()},
                "longest_context": each.longest_context,
            }
            for each in found
        ],
    }


def _speed_json(speed: Any) -> dict[str, Any] | None:
    return {"tok_s": round(speed.tok_s, 2), "threads": speed.threads, "error": speed.error} if speed else None


def _speed(speed: Any) -> str:
    if speed is None:
        return "?"
    digits = 0 if speed.tok_s >= 99.5 else 1 if speed.tok_s >= 9.95 else 2
    if speed.error is None:
        return f"~{speed.tok_s:.{digits}f}"
    return f"{speed.tok_s:.{digits}f} ±{speed.error:.0%}"


def _threads(each: Any) -> str:
    return f"{each.decode.threads} / {each.prefill.threads}" if each.decode and each.prefill else ""


def show_boards(name: str, plans: Sequence[tuple[list[Any], Any]]) -> None:
    """One line a board: its best scheme."""
    from rich.console import Console
    from rich.table import Table

    from edgellm.sketching import label

    table = Table(box=None, pad_edge=False)
    for heading in (
        "board",
        "scheme",
        "decode tok/s",
        "prefill tok/s",
        "threads",
        "memory",
        "of",
        "longest context",
        "basis",
    ):
        table.add_column(heading, justify="left" if heading in ("board", "scheme", "basis") else "right")
    for found, best in plans:
        each = best or min(found, key=lambda one: one.needed_bytes)
        ram = size(each.board.memory_bytes)
        if best is None:
            table.add_row(each.board.label, "none fits", "", "", "", size(each.needed_bytes), ram, "0", "", style="red")
            continue
        table.add_row(
            each.board.label,
            label(each.options),
            _speed(each.decode),
            _speed(each.prefill),
            _threads(each),
            size(each.needed_bytes),
            ram,
            str(each.longest_context),
            each.basis.kind,
        )
    context = max(each.context for found, _ in plans for each in found)
    console = Console(highlight=False, markup=False)
    console.print(f"{one_line(name)}, {context} positions", soft_wrap=True)
    console.print(table)
    console.print("threads: decode / prefill; --board BOARD shows every scheme and context length", style="dim")


def show_board(name: str, found: Sequence[Any], best: Any) -> None:
    """Every scheme of one board, and memory by context."""
    from rich.console import Console
    from rich.table import Table

    from edgellm.sketching import label

    first = found[0]
    contexts = list(first.memory_bytes)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for each in found:
        mark = " (best)" if each is best else ""
        table.add_column(label(each.options) + mark, justify="right", style="bold" if each is best else "")
    rows: list[tuple[str, list[str]]] = [
        ("decode, tok/s", [_speed(each.decode) for each in found]),
        ("prefill, tok/s", [_speed(each.prefill) for each in found]),
        ("threads, decode / prefill", [_threads(each) for each in found]),
        ("weights", [size(each.sketch.weight_bytes) for each in found]),
        ("KV cache, per position", [size(each.sketch.kv_bytes_per_token) for each in found]),
    ]
    if first.sketch.state_bytes:
        rows.append(("state, however long the text", [size(each.sketch.state_bytes) for each in found]))
    error = first.basis.errors.get("memory")
    for n in contexts:
        cells = []
        for each in found:
            too_much = each.memory_bytes[n] > each.board.memory_bytes
            cells.append(size(each.memory_bytes[n]) + (" ✗" if too_much else ""))
        rows.append((f"memory with {n} positions", cells))
    rows.append(("longest context that fits", [str(each.longest_context) for each in found]))
    for heading, cells in rows:
        table.add_row(heading, *cells)
    console = Console(highlight=False, markup=False)
    console.print(f"{one_line(name)} on {first.board.name}, {size(first.board.memory_bytes)}", soft_wrap=True)
    console.print(table)
    accuracy = f"; memory ±{error:.1%}" if error is not None else ""
    console.print(f"{first.basis.kind}: {first.basis.note}{accuracy}", style="dim", soft_wrap=True)
    if best is None:
        console.print("no scheme fits: use a smaller model, a shorter --context or another board", style="red")
