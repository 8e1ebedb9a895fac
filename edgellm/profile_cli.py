"""Show where the time of a token goes on a board: every step of the plan, its bytes and its multiply-adds.

Runs with the clock between steps and without take turns, and both times are shown; the faster half of the runs counts,
because what disturbs a run makes it slower. Bytes and multiply-adds come from the plan. --trace writes a timeline that
ui.perfetto.dev shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgellm.files import write_atomically
from edgellm.profile_result import Phase, Profile, Timed, profile, rate, trace_events
from edgellm.selection import add_board, add_computing_device, add_model, selected_model
from edgellm.steps import Work
from edgellm.terminal import one_line, size

_OPTIONS = ("tokens", "depth", "runs", "threads", "threads_decode", "context", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgellm profile`."""
    parser.epilog = (
        "examples:\n  edgellm profile --board kitchen\n"
        "  edgellm profile --board kitchen --tokens 512 --depth 1024 --threads 2 --trace profile.json"
    )
    add_board(parser)
    add_model(parser)
    parser.add_argument("--tokens", type=_count(0), metavar="N", help="tokens of the prompt (default: 128; 0: none)")
    parser.add_argument("--depth", type=_count(0), metavar="N", help="positions before the token of decode (128)")
    parser.add_argument("--runs", type=_count(1), metavar="N", help="measurements (default: 20)")
    parser.add_argument("--threads", type=_count(1), metavar="N", help="threads (default: what was found fastest)")
    parser.add_argument("--threads-decode", type=_count(1), metavar="N", help="threads of decode, where that differs")
    parser.add_argument("--context", type=_count(1), metavar="N", help="positions to make room for")
    add_computing_device(parser, "the processor")
    parser.add_argument("--steps", action="store_true", help="a line per step instead of one per kernel")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a timeline for ui.perfetto.dev")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def _count(least: int) -> Any:
    def whole_number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    return whole_number


def main(args: argparse.Namespace) -> int:
    """Runs `edgellm profile`."""
    from edgellm.compile_cli import StageDisplay

    options = []
    for name in _OPTIONS:
        if (value := getattr(args, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    with selected_model(args) as model, StageDisplay(quiet=args.json) as display:
        display.update(f"measuring on {one_line(args.board, 40)}", 0, 0)
        result = profile(model, options)
        title = f"{model.name} on {model.remote.name}"
    if args.trace is not None:
        write_atomically(args.trace, json.dumps(trace_events(result)).encode())
    if args.json:
        print(json.dumps({"board": args.board, **as_json(result)}))
        return 0
    for phase in result.phases:
        show(title, result, phase, args.steps)
    if args.trace is not None:
        print(f"timeline: {args.trace}; open it at ui.perfetto.dev")
    return 0


def as_json(result: Profile) -> dict[str, Any]:
    """What --json prints. Times in ns, sizes in bytes, gb_s in 10⁹ bytes and gops in 10⁹ operations per second."""
    phases = {}
    for phase in result.phases:
        steps = []
        for timed in phase.steps:
            place = {"call": timed.call, "function": timed.function.role, "n": timed.function.n, "step": timed.index}
            about = {"kernel": timed.step.kernel, "tensor": timed.step.tensor}
            times = {"ns": timed.ns, "median_ns": timed.median_ns}
            steps.append({**place, **about, **times, **asdict(timed.work), **_rates(timed.work, timed.ns)})
        numbers = {"plain_ns": phase.plain_ns, "watched_ns": phase.watched_ns, "steps_ns": phase.steps_ns}
        about_phase = {"tokens": phase.tokens, "depth": phase.depth, "runs": phase.runs, "threads": phase.threads}
        phases[phase.name] = {**about_phase, **numbers, "share": round(phase.share, 4), "steps": steps}
    return {"model": result.model, "scheme": result.scheme, "tier": result.tier, "phases": phases}


def _rates(work: Work, ns: float) -> dict[str, float]:
    return {"gb_s": round(rate(work.n_bytes, ns), 3), "gops": round(rate(2 * work.multiply_adds, ns), 3)}


def grouped(phase: Phase) -> list[tuple[str, list[Timed]]]:
    """Launches of the same kernel on the same weight of any layer, the group that takes longest first."""
    groups: dict[str, list[Timed]] = {}
    for timed in phase.steps:
        step = timed.step
        groups.setdefault(f"{step.operation} {step.place}".strip(), []).append(timed)
    return sorted(groups.items(), key=lambda item: -sum(timed.ns for timed in item[1]))


def each(phase: Phase) -> list[tuple[str, list[Timed]]]:
    """Every launch by itself, the longest first."""
    rows = [(f"{t.function.role} {t.index} {t.step.operation} {t.step.tensor}".strip(), [t]) for t in phase.steps]
    return sorted(rows, key=lambda item: -item[1][0].ns)


def show(title: str, result: Profile, phase: Phase, every_step: bool) -> None:
    """Prints a phase's table, and what the steps add up to."""
    from rich.console import Console
    from rich.table import Table

    what = f"decode behind {phase.depth} positions" if phase.name == "decode" else f"prefill of {phase.tokens} tokens"
    heading = f"{title}, {result.scheme}, {result.tier}: {what}, {phase.threads} threads, {phase.runs} runs"
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("step" if every_step else "kernel", no_wrap=True, overflow="ellipsis")
    for name in ("launches", "time", "share", "weights", "activations", "KV", "GB/s", "GOPS"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, members in each(phase) if every_step else grouped(phase):
        table.add_row(one_line(name, 60), *_cells(members, phase))
    table.add_section()
    table.add_row("all steps", *_cells(phase.steps, phase))
    console = Console(highlight=False, markup=False)
    console.print(one_line(heading), soft_wrap=True)
    console.print(table)
    console.print(
        f"steps {time(phase.steps_ns)}, the whole {time(phase.watched_ns)} with the clock between steps and "
        f"{time(phase.plain_ns)} without: {phase.share:.1%} of it\n",
        soft_wrap=True,
    )


def _cells(members: Iterable[Timed], phase: Phase) -> list[str]:
    members = list(members)
    ns, work = sum(timed.ns for timed in members), sum((timed.work for timed in members), Work())
    amounts = (work.weight_bytes, work.activation_bytes, work.kv_bytes)
    operations = rate(2 * work.multiply_adds, ns)
    shares = [str(len(members)), time(ns), f"{ns / max(phase.steps_ns, 1):.1%}"]
    rates = [f"{rate(work.n_bytes, ns):.2f}", f"{operations:.2f}" if operations else ""]
    return shares + [size(amount) if amount else "" for amount in amounts] + rates


def time(ns: float) -> str:
    """A duration for people: "1.23 ms"."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= scale:
            return f"{ns / scale:.2f} {unit}"
    return f"{ns:.0f} ns"
