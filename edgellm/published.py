"""Figures that others have published for boards (boards/published.json), and what they say of a core."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosscompile.data import data_path
from edgellm.boards import load_board
from edgellm.errors import BoardError
from edgellm.fit import Sample, fit_speed
from edgellm.measured import Core, read_json
from edgellm.planning import basis_of_manifest
from edgellm.prediction import STEP_ROWS, Coefficients, Work

_NEGLIGIBLE = {"attention_per_s": 1e15, "attention_row_per_s": 1e15, "launch_s": 1e-15, "handover_s": 1e-15}
"""What no published figure tells apart from the rest is in the rate of instructions."""


@dataclass(frozen=True)
class PublishedRun:
    """One figure. bytes_per_token: weights that a token reads: what was published, else the file's size."""

    board: str
    engine: str
    model: str
    bytes_per_token: float
    products: float
    threads: int
    figure: str
    tokens: int
    tok_s: float
    source: str


@dataclass(frozen=True)
class Published:
    """The whole file. instructions: per product, of an engine on a core, by figure."""

    instructions: dict[tuple[str, str], dict[str, float]]
    runs: tuple[PublishedRun, ...]


def load() -> Published:
    """Raises BoardError if the file is not as it should be."""
    path = data_path("boards") / "published.json"
    document = read_json(path)
    try:
        instructions = {
            (engine, core): {figure: entry[figure] / entry["products"] for figure in ("decode", "prefill")}
            for engine, cores in document["instructions"].items()
            for core, entry in cores.items()
            if core != "source"
        }
        return Published(instructions, tuple(_run(entry) for entry in document["runs"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BoardError(
            f"{path}: {type(error).__name__}: {error}: a field is missing or has the wrong type"
        ) from error


def _run(entry: dict[str, Any]) -> PublishedRun:
    return PublishedRun(
        board=str(entry["board"]),
        engine=str(entry["engine"]),
        model=str(entry["model"]),
        bytes_per_token=float(entry["read_bytes"] or entry["file_bytes"]),
        products=float(entry["products"]),
        threads=int(entry["threads"]),
        figure=str(entry["figure"]),
        tokens=int(entry["tokens"]),
        tok_s=float(entry["tok_s"]),
        source=str(entry["source"]),
    )


def work_of(run: PublishedRun, instructions: dict[str, float]) -> Work:
    """A published figure as work; its KV cache is small beside its weights and left out."""
    steps = 1 if run.figure == "decode" else -(-run.tokens // STEP_ROWS)
    tokens = 1 if run.figure == "decode" else run.tokens
    return Work(steps * run.bytes_per_token, tokens * run.products * instructions[run.figure], 0.0, 0.0, 0.0, tokens)


def fit_cores(published: Published) -> dict[str, Core]:
    """Each core that was published about: instructions per cycle, overlap, and the largest errors of the fit."""
    by_core: dict[str, list[tuple[PublishedRun, Sample]]] = defaultdict(list)
    clocks: dict[str, int] = {}
    for run in published.runs:
        board = load_board(run.board)
        core, clock = board.target_section.core, board.target_section.clock_hz
        if core is None or clock is None or (run.engine, core) not in published.instructions:
            raise BoardError(
                f"boards/published.json: {run.board}: its core, clock or {run.engine}'s instructions are unknown"
            )
        clocks[core] = clock
        work = work_of(run, published.instructions[run.engine, core])
        rate = basis_of_manifest(board).bandwidth(run.threads)
        by_core[core].append((run, Sample(work, run.threads, rate, work.tokens / run.tok_s)))
    return {core: _core(entries, clocks[core]) for core, entries in by_core.items()}


def _core(entries: Sequence[tuple[PublishedRun, Sample]], clock_hz: int) -> Core:
    machine = fit_speed([sample for _, sample in entries], _NEGLIGIBLE)
    errors: dict[str, float] = {}
    for run, sample in entries:
        error = abs(sample.seconds / seconds_of(sample, machine) - 1)
        errors[run.figure] = round(max(error, errors.get(run.figure, 0.0)), 4)
    sources = tuple(dict.fromkeys(run.source for run, _ in entries))
    return Core(machine.instructions_per_s / clock_hz, machine.imbalance, machine.overlap, errors, sources)


def seconds_of(sample: Sample, machine: Coefficients) -> float:
    return sample.work.seconds(machine, sample.threads, sample.bandwidth_bytes_per_s)


def machine_of(core: Core, clock_hz: int) -> Coefficients:
    """A core's coefficients for published figures."""
    return Coefficients(
        core.instructions_per_cycle * clock_hz, imbalance=core.imbalance, overlap=core.overlap, **_NEGLIGIBLE
    )
