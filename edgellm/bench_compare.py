"""`edgellm bench --compare A B`: two results of `edgellm bench`, figure by figure, with what can be said of chance.

A and B are files of `--json FILE`, or BOARD[:MODEL], which are then measured in turn: a sample of each figure a round.

A figure counts as faster or slower if a permutation test on the ranks of the samples (Mann and Whitney's, exact where
there are few enough, with ties as they are) gives p < 0.05 after Benjamini and Hochberg's correction for the number
of figures: of ten figures of the same thing one would come out below 0.05 every other time. The interval is the
bootstrap's 95 % of the ratio of the medians. All three are thirty lines; scipy would be a dependency of 100 MB for
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm import bench_result, bench_show
from edgellm.bench_result import Figure, figures_of
from edgellm.errors import UsageError
from edgellm.terminal import one_line

LEVEL = 0.05
_EXACT = 20_000
"""Permutations up to which all are tried; beyond it as many are drawn."""
_RESAMPLES = 4000


@dataclass(frozen=True)
class Difference:
    """One figure of both results. ratio: how many times as fast B is as A; low, high: its interval; p: of the test
    alone; q: corrected for the number of figures."""

    figure: Figure
    before: float
    after: float
    ratio: float
    low: float
    high: float
    p: float | None
    q: float | None = None

    @property
    def verdict(self) -> str:
        if self.q is None:
            return "too few samples"
        if self.q >= LEVEL:
            return "no difference shown"
        return "faster" if self.ratio > 1 else "slower"

    def as_json(self) -> dict[str, Any]:
        numbers = {"a": self.before, "b": self.after, "ratio": self.ratio, "low": self.low, "high": self.high}
        kind, tokens, depth, threads = self.figure.key
        about = {"kind": kind, "tokens": tokens, "depth": depth, "threads": threads, "unit": self.figure.unit}
        return {**about, **numbers, "p": self.p, "q": self.q, "verdict": self.verdict}


def rank_test(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of the samples being of one kind; None if no samples of these numbers could ever show it."""
    n, total = len(a), len(a) + len(b)
    if n == 0 or n == total or 2 / math.comb(total, n) >= LEVEL:
        return None
    ordered = sorted([*a, *b])
    first = {value: ordered.index(value) for value in ordered}
    ranks = [first[value] + (ordered.count(value) + 1) / 2 for value in [*a, *b]]
    expected = n * (total + 1) / 2
    seen = abs(sum(ranks[:n]) - expected) - 1e-9
    if math.comb(total, n) <= _EXACT:
        sums = [sum(chosen) for chosen in itertools.combinations(ranks, n)]
        return sum(abs(value - expected) >= seen for value in sums) / len(sums)
    draw = random.Random(1)
    hits = sum(abs(sum(draw.sample(ranks, n)) - expected) >= seen for _ in range(_EXACT))
    return (hits + 1) / (_EXACT + 1)


def interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """95 % of the ratios of the medians, b's over a's, of samples drawn anew with replacement."""
    draw = random.Random(1)
    ratios = sorted(
        statistics.median(draw.choices(b, k=len(b))) / statistics.median(draw.choices(a, k=len(a)))
        for _ in range(_RESAMPLES)
    )
    return ratios[round(0.025 * (_RESAMPLES - 1))], ratios[round(0.975 * (_RESAMPLES - 1))]


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """Every figure that both results have, in A's order."""
    others = {figure.key: figure for figure in figures_of(b)}
    found = []
    for figure in figures_of(a):
        other = others.get(figure.key)
        if other is None:
            continue
        mine, theirs = figure.values, other.values
        if not figure.faster_is_more:  # of milliseconds fewer are faster
            mine, theirs = tuple(1 / value for value in mine), tuple(1 / value for value in theirs)
        low, high = interval(mine, theirs)
        ratio = statistics.median(theirs) / statistics.median(mine)
        found.append(Difference(figure, figure.median, other.median, ratio, low, high, rank_test(mine, theirs)))
    corrected = iter(correct([it.p for it in found if it.p is not None]))
    return [it if it.p is None else dataclasses.replace(it, q=next(corrected)) for it in found]


def correct(ps: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p, in the order of `ps`: at a level, that share of verdicts may be wrong."""
    corrected = [1.0] * len(ps)
    least = 1.0
    for rank, index in sorted(enumerate(sorted(range(len(ps)), key=lambda i: ps[i]), 1), reverse=True):
        least = corrected[index] = min(least, ps[index] * len(ps) / rank)
    return corrected


def check_alike(a: dict[str, Any], b: dict[str, Any], force: bool) -> list[str]:
    """What keeps the two from being alike, as warnings. Raises UsageError if model or scheme differ, unless forced."""
    for key, what in (("name", "models"), ("scheme", "schemes")):
        mine, theirs = (one_line(document["model"][key], 60) for document in (a, b))
        if mine != theirs and not force:
            raise UsageError(f"A and B are different {what}, {mine} and {theirs}; --force compares them all the same")
    warnings = []
    if a["board"] != b["board"]:
        mine, theirs = (one_line(f"{it['board']['name']} ({it['board']['cpu']})", 80) for it in (a, b))
        warnings.append(f"the boards differ: {mine} and {theirs}")
    if a["model"]["tier"] != b["model"]["tier"]:
        warnings.append(f"the tiers differ: {one_line(a['model']['tier'], 40)} and {one_line(b['model']['tier'], 40)}")
    counts = [{figure.threads for figure in figures_of(document)} for document in (a, b)]
    if counts[0] != counts[1]:
        texts = [
            ", ".join("auto" if n is None else str(n) for n in sorted(each, key=lambda n: n or 0)) for each in counts
        ]
        warnings.append(
            f"the thread counts differ: {texts[0]} and {texts[1]}; only figures with equal ones are compared"
        )
    others = {figure.key: figure for figure in figures_of(b)}
    for figure in figures_of(a):
        other = others.get(figure.key)
        if other is not None and figure.threads is None and figure.used != other.used:
            warnings.append(f"{figure.name}: the runtime chose {figure.used} threads for A, {other.used} for B")
    for name, document in (("A", a), ("B", b)):
        if document["sensors"]["slowed_down"]:
            slow = ", ".join(one_line(what, 60) for what in document["sensors"]["slowed_down"])
            warnings.append(f"{name} was slowed down while it was measured: {slow}")
    return warnings


def main(args: argparse.Namespace) -> int:
    names = list(args.compare)
    files = [Path(name).is_file() or name.endswith(".json") for name in names]
    if any(files) and not all(files):
        raise UsageError("--compare takes two files, or two boards (BOARD or BOARD:MODEL), not one of each")
    if args.board is not None or args.host is not None or args.model is not None or args.report is not None:
        raise UsageError(
            "--board, --host, --model and --report do not go with --compare, which names both sides itself"
        )
    if all(files):
        a, b = (bench_result.read(Path(name)) for name in names)
        in_turn = False
    else:
        a, b = _measured_in_turn(args, names)
        in_turn = True
    warnings = check_alike(a, b, args.force)
    found = differences(a, b)
    if not found:
        raise UsageError("A and B have no figure in common; measure them with the same --prompt, --depth and --threads")
    if not in_turn:
        warnings.append(
            "these are two runs at different times: a difference may also come from heat, or what else the board did; "
            "BOARD:MODEL twice measures them in turn"
        )
    if args.json is not None:
        answer = {"a": a, "b": b, "in_turn": in_turn, "warnings": warnings, "figures": [it.as_json() for it in found]}
        if args.json == Path("-"):
            print(json.dumps(answer))
            return 0
        bench_result.write(answer, args.json)
    show((a, b), found, warnings)
    return 0


def _measured_in_turn(args: argparse.Namespace, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One sample of each figure a round, sides changing places, so that heat and other programs meet both alike."""
    from contextlib import ExitStack

    from edgellm import bench, bench_run
    from edgellm.boards import find_board
    from edgellm.compile_cli import StageDisplay
    from edgellm.connection import connect
    from edgellm.remembered import recall
    from edgellm.runtime_program import find_model

    wanted = dataclasses.replace(bench.wanted(args), repeat=1, bandwidth=False, energy=False, sustained_s=0)
    if args.sustained:
        raise UsageError("--sustained does not go with boards that are measured in turn; compare two files of --json")
    rounds = args.repeat or bench_run.REPEAT
    taken: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    with ExitStack() as stack:
        sides = []
        for name in names:
            where, _, model = name.partition(":")
            board = find_board(where)
            remote = stack.enter_context(connect(board))
            sides.append((find_model(remote, model or None, recall(board.label).model), board))
        display = stack.enter_context(StageDisplay(quiet=args.json == Path("-")))
        for round_ in range(rounds):
            for side in (0, 1) if round_ % 2 == 0 else (1, 0):
                display.update(f"round {round_ + 1} of {rounds}: {'AB'[side]}", 2 * round_, 2 * rounds)
                taken[side].append(bench_run.measure(*sides[side], wanted, lambda *_: None))
            if round_ == 0:
                check_alike(taken[0][0], taken[1][0], args.force)  # before the rest of the time is spent
    return bench_result.merge(taken[0]), bench_result.merge(taken[1])


def show(sides: tuple[dict[str, Any], dict[str, Any]], found: Sequence[Difference], warnings: Sequence[str]) -> None:
    """Prints the table, a line per figure."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    for name, document in zip("AB", sides, strict=True):
        console.print(f"{name}: {bench_show.title(document)}, {one_line(document['taken'], 40)}", style="bold")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "A", "B", "B : A", "95 %", "B is"):
        table.add_column(name, justify="left" if name in ("", "B is") else "right", no_wrap=True)
    number = bench_show.number
    for it in found:
        threads = it.figure.threads
        name = it.figure.name if threads is None else f"{it.figure.name}, {bench_show.plural(threads, 'thread')}"
        values = (number(it.before), f"{number(it.after)} {it.figure.unit}")
        colour = {"faster": "green", "slower": "red"}.get(it.verdict, "")
        table.add_row(name, *values, f"{it.ratio:.3f}", f"{it.low:.2f}–{it.high:.2f}", it.verdict, style=colour)
    console.print()
    bench_show.print_whole(table)
    legend = "B : A is how many times as fast B is, with the bootstrap's 95 %; faster and slower: corrected p < 0.05"
    console.print(f"\n{legend}", style="dim")
    for warning in warnings:
        console.print(f"note: {warning}")
