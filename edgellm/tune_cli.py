"""Search faster schedules for a model's kernels on a board; every later compile for that kind of board uses them.

MODEL is what `edgellm compile` takes. Only speed changes, never an answer (on a GPU sums may be ordered differently).
What was found is kept below your data directory, by type of board; a search that was interrupted, or whose board went
away, goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscompile.runtime import has_agent
from crosscompile.target import Target
from edgellm import board_gpu, cache, hub, tuned
from edgellm.boards import Board, find_board
from edgellm.compile_cli import add_scheme_arguments, options_of
from edgellm.connection import connect
from edgellm.errors import UnsuitableError, UsageError
from edgellm.selection import add_board
from edgellm.tune import Journal, Outcome, Search, Step
from edgellm.tune_builder import Builder

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LADDERS = {"cpu": (1, 2, 4, 8, 32, 64), "vulkan": (1, 8, 32, 128)}
"""By device: FULL_LADDER.body and GPU_LADDER.body of crosscompile.program."""
MATRIX_ROWS = 512
"""Besides, of a GPU with matrix units: MATRIX_LADDER's."""

ROWS = {"cpu": (1, 8, 32, 64), "vulkan": (1, 8, 32, 128)}
"""What is tuned where nobody says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgellm tune --board rpi5 ./MyModel\n"
        "  edgellm tune --board orangepi5 --device vulkan ./MyModel\n"
        "  edgellm tune --board local random:smollm2-135m --rows 1 --minutes 5"
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory, Hub id, or random:SHAPE")
    add_board(parser)
    add_scheme_arguments(parser)
    parser.add_argument(
        "--device", choices=tuple(LADDERS), default="cpu", help="whose kernels: the processor's, or the GPU's"
    )
    parser.add_argument("--rows", type=_rows, metavar="N,…", help="row counts to tune: 1 is decoding")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of the board's processor (default: all that are useful)"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no kernel after M minutes")
    parser.add_argument("--ship", action="store_true", help="keep the results in boards/tuned/ of this checkout")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _rows(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def rows_of(args: argparse.Namespace, target: Target, perhaps: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The row counts to tune. Raises UsageError for one that the plans of the board's device do not have.

    perhaps: counts that they may have, which is not known yet.
    """
    more = (MATRIX_ROWS,) if target.gpu is not None and target.gpu.has_matrices else ()
    rows: tuple[int, ...] = args.rows or (*ROWS[args.device], *more)
    known = (*LADDERS[args.device], *more)
    if set(rows) - {*known, *perhaps}:
        raise UsageError(f"--rows: with --device {args.device}, row counts are of {', '.join(map(str, known))}")
    return rows


def main(args: argparse.Namespace) -> int:
    if args.device != "cpu" and args.threads is not None:
        raise UsageError("--threads is for the processor; leave it out with --device vulkan")
    board = find_board(args.board, args.host)
    if args.device == "vulkan":
        rows_of(args, board.gpu_target(), (MATRIX_ROWS,))
        if not has_agent(board.gpu_target()):
            raise UnsuitableError(f"{board.label} runs {board.os}: no agent that could measure runs there")
        with connect(board, args.host) as remote:
            board_gpu.check(remote, args.device)
            board = board_gpu.ask(board, remote, args.device, lambda text: print(f"GPU: {text}", file=sys.stderr))
    target = board.gpu_target() if args.device == "vulkan" else board.target()
    rows = rows_of(args, target)
    path, name = hub.resolve(args.model, lambda stage, done, total: None)
    journal = Journal(_journal_path(board, args, path))
    outcomes: list[Outcome] = []
    with (
        _Display(args.json) as display,
        Builder(path, options_of(args), target, list(rows)) as builder,
    ):
        search = Search(
            board, lambda: connect(board, args.host), builder, journal, args.threads, args.device, display.step
        )
        deadline_s = args.minutes * 60 if args.minutes is not None else None
        for outcome in search.run(deadline_s):
            outcomes.append(outcome)
            _keep(board, args, search, outcome)
        finished = len(outcomes) == len(builder.layers)
    if finished:
        journal.forget()
    if args.json:
        print(json.dumps(as_json(board, name, search, outcomes)))
    else:
        show(board, name, search, outcomes)
    return 0


def _journal_path(board: Board, args: argparse.Namespace, model: Path) -> Path:
    """One journal for what decides a measurement: board, processor, threads, compiler, checkpoint's shape, scheme."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edgellm" / "tuning"
    config = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    parts: dict[str, Any] = {
        "board": board.label,
        "key": asdict(_key(board, args, args.threads or 0)),
        "config": config,
        "options": asdict(options_of(args)),
        "versions": cache.versions(),
        "sources": cache.sources_digest(),
    }
    return base / f"{board.label}-{cache.key_of(parts)}.jsonl"


def _key(board: Board, args: argparse.Namespace, threads: int) -> tuned.AnyKey:
    return tuned.gpu_key_for(board) if args.device == "vulkan" else tuned.key_for(board, threads)


def _keep(board: Board, args: argparse.Namespace, search: Search, outcome: Outcome) -> None:
    """Saves a result as soon as there is one. Defaults that won are kept too: they were looked at."""
    folder = tuned.shipped_folder() if args.ship else tuned.user_folder()
    threads = args.threads or int(search.info["threads"])
    entry = {
        "knobs": outcome.knobs,
        "default_us": round(outcome.default_us, 3),
        "best_us": round(outcome.best_us, 3),
        "p": round(outcome.p, 4),
    }
    tuned.save(folder / f"{board.id}.json", _key(board, args, threads), {outcome.layer.key: entry})


def gains(outcomes: Sequence[Outcome]) -> dict[int, tuple[float, float]]:
    """Milliseconds of a pass over n rows in the tuned kernels, by n: with the defaults, with what was found."""
    found: dict[int, tuple[float, float]] = {}
    for outcome in outcomes:
        before, after = found.get(outcome.layer.n, (0.0, 0.0))
        calls = outcome.layer.calls / 1000
        found[outcome.layer.n] = (before + calls * outcome.default_us, after + calls * outcome.best_us)
    return found


def as_json(board: Board, name: str, search: Search, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What --json prints."""
    return {
        "board": board.label,
        "model": name,
        "device": search.device,
        **({"gpu": asdict(search.gpu)} if search.gpu is not None else {}),
        "trials": search.n_trials,
        "tainted": search.n_tainted,
        "passes": [
            {"n": n, "default_ms": before, "tuned_ms": after} for n, (before, after) in sorted(gains(outcomes).items())
        ],
        "kernels": [
            {"key": o.layer.key, "knobs": o.knobs, "default_us": o.default_us, "best_us": o.best_us, "p": o.p}
            for o in outcomes
        ],
    }


def show(board: Board, name: str, search: Search, outcomes: Sequence[Outcome]) -> None:
    """Prints the table of kernels, and what it means for a pass."""
    from rich.console import Console
    from rich.table import Table

    if not outcomes:
        raise UsageError("no kernel was tuned in this time; give it more --minutes")
    table = Table("kernel", "default", "tuned", "faster", "p", "schedule")
    for outcome in outcomes:
        gain = outcome.default_us / outcome.best_us - 1
        knobs = ", ".join(f"{key} {value}" for key, value in outcome.knobs.items())
        better = outcome.is_better
        table.add_row(
            outcome.layer.key,
            f"{outcome.default_us:,.1f} µs",
            f"{outcome.best_us:,.1f} µs" if better else "",
            f"{gain:+.1%}" if better else "–",
            f"{outcome.p:.3f}" if better else "",
            knobs if better else "default",
        )
    console = Console(highlight=False)
    console.print(table)
    kernels = "linear layers" if search.device == "cpu" else "these kernels"
    for n, (before, after) in sorted(gains(outcomes).items()):
        what = "a token" if n == 1 else f"{n} tokens of a prompt"
        console.print(f"{kernels} of {what}: {before:.2f} ms before, {after:.2f} ms now ({before / after - 1:+.1%})")
    note = f"; {search.n_tainted} could not be measured undisturbed" if search.n_tainted else ""
    console.print(f"{name} on {board.label}: {search.n_trials} trials{note}. The next `edgellm compile` uses it.")
    if search.gpu is not None:
        imitated = ", a program that imitates a GPU: what was found says nothing of real ones"
        console.print(f"measured on {search.gpu.name}{imitated if search.gpu.is_processor else ''}")


class _Display:
    """A bar with the kernel, the best time so far and the time left; lines where the output is no terminal."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._quiet = quiet
        self._tty = sys.stderr.isatty()
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total} trials"),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not self._tty,
        )
        self._task: TaskID = self._progress.add_task("looking at the model", total=None, state="")
        self._last = ""

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: Step) -> None:
        gain = step.default_us / step.best_us - 1
        left = f", {step.left_s / 60:.0f} min left" if step.left_s is not None else ""
        state = f"best {step.best_us:,.1f} µs, {gain:+.0%}{left}"
        self._progress.update(
            self._task, description=step.layer.key, completed=step.n_done, total=step.n_total, state=state
        )
        if not self._tty and not self._quiet and step.layer.key != self._last:
            self._last = step.layer.key
            print(f"{step.n_done}/{step.n_total} trials, {step.layer.key}{left}", file=sys.stderr, flush=True)
