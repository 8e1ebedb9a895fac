"""The part of `edgellm plan` that measures a machine and fits coefficients to it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgellm import calibration, measured, published
from edgellm.boards import LOCAL, Board, find_board, load_board
from edgellm.compile_cli import StageDisplay
from edgellm.connection import connect
from edgellm.errors import UsageError
from edgellm.measured import Measured
from edgellm.precision import Options
from edgellm.sketching import instruction_table
from edgellm.workbench import LocalWorkbench, RemoteWorkbench, Workbench


def main(args: argparse.Namespace) -> int:
    """Runs `edgellm plan --fit`."""
    board = find_board(args.board) if args.board else load_board(LOCAL)
    if board.virtual:
        raise UsageError(
            f"{board.id} is emulated: its speed says nothing of a board's; name hardware, or leave --board out"
        )
    path = args.output or measured.own_path()
    if args.rounds < 1:
        raise UsageError("--rounds must be at least 1")
    with StageDisplay(quiet=args.json) as display:
        known = measured.read(path) if path.is_file() else None
        if args.fit:
            models = list(dict.fromkeys([*args.fit, *args.check]))
            options = [Options(args.scheme or "w4a8")]
            prepared = calibration.prepare(models, options, board, display.update)
            threads = [n for n in args.threads if n <= board.n_cores]
            with _workbench(board, args.quiet_below) as bench:
                runs = calibration.measure(prepared, bench, threads, args.prompts, args.rounds, display.update)
            if not {run.model for run in runs} >= set(args.fit):
                raise UsageError(
                    "other programs took the cores of every sample of a model; end them, or raise --quiet-below"
                )
            fitted_on: Sequence[str] = args.fit
            per_entry = calibration.bytes_per_entry(prepared)
        else:
            machine = known.machine(board.cpu, board.n_cores) if known else None
            if machine is None:
                raise UsageError(f"{path} has no runs of {board.label}; name models to measure: --fit MODEL MODEL")
            runs, fitted_on, per_entry = list(machine.runs), machine.fitted_on, machine.memory.bytes_per_entry
        table = instruction_table(display.update)
        machine, speeds, peaks = calibration.fit_machine(
            board, runs, fitted_on, table[board.target().tier.name], per_entry, display.update
        )
        others = tuple(
            each
            for each in (known.machines if known else ())
            if (each.cpu, each.n_cores) != (machine.cpu, machine.n_cores)
        )
        cores = published.fit_cores(published.load())
        measured.write(path, Measured(table, cores, (machine, *others)))
    if args.json:
        import json

        print(json.dumps({"file": str(path), **replace(machine, runs=()).as_json()}, ensure_ascii=False))
    else:
        show(path, machine, speeds, peaks)
    return 0


def _workbench(board: Board, others: float) -> Workbench:
    if board.id == LOCAL and board.host is None:
        return LocalWorkbench(board, others)
    return RemoteWorkbench(board, connect(board), others)


def show(path: Any, machine: Any, speeds: Sequence[Any], peaks: Sequence[Any]) -> None:
    """Every run beside its prediction."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "scheme", "threads", "figure", "measured", "predicted", "error", ""):
        table.add_column(heading, justify="right" if heading in ("measured", "predicted", "error") else "left")
    for each in (*speeds, *peaks):
        run = each.run
        memory = each in peaks
        figure = f"memory of {run.context}" if memory else f"{run.figure} {run.depth or run.tokens}"
        scale, unit = (1e-6, " MB") if memory else (1.0, "")
        table.add_row(
            run.model,
            run.scheme[0],
            str(run.threads),
            figure,
            f"{each.measured * scale:.1f}{unit}",
            f"{each.predicted * scale:.1f}{unit}",
            f"{each.error:+.1%}",
            "fitted" if run.model in machine.fitted_on else "",
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    worst = ", ".join(f"{figure} {error:.1%}" for figure, error in machine.errors.items())
    foreign = any(run.model not in machine.fitted_on for run in machine.runs)
    console.print(f"largest error of runs that were {'not ' if foreign else ''}fitted to: {worst}", soft_wrap=True)
    console.print(f"written to {path}", soft_wrap=True)
