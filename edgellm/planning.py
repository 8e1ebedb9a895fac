"""What a board will make of a model: speed with the best number of threads, memory, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crosscompile.errors import TargetError
from crosscompile.sketch import Sketch
from edgellm.boards import Board, list_boards
from edgellm.compile import DEFAULT_CONTEXT
from edgellm.measured import Core, Machine, Measured
from edgellm.precision import Options
from edgellm.prediction import Coefficients, Memory, decode_work, prefill_work, resident_bytes

PROMPT_TOKENS = 128
CANDIDATES = (Options("w4a8", embedding="w4a8", head="w4a8"), Options("w4a8"), Options("w8a8"))
"""Schemes that are compared where none is asked for. Of f16, w8a8 loses next to nothing, at half the bytes."""

CONTEXTS = (512, 2048, 4096, 8192, 16384, 32768)

MEASURED, PUBLISHED, ROUGH = "measured", "published", "rough"
"""Where coefficients come from: runs of edgellm on this processor; others' figures on this core; neither."""


@dataclass(frozen=True)
class Basis:
    """What a board's predictions rest on.

    read       bytes per second by number of threads; empty: nobody knows
    errors     largest relative error seen on this basis, by figure; empty: it was never compared with a run
    """

    kind: str
    coefficients: Coefficients | None
    read: Mapping[int, float]
    memory: Memory
    errors: Mapping[str, float]
    note: str

    def bandwidth(self, threads: int) -> float:
        """Between two numbers of threads in a straight line, beyond them as at the nearest."""
        known = sorted(self.read)
        below = max((n for n in known if n <= threads), default=known[0])
        above = min((n for n in known if n >= threads), default=known[-1])
        if above == below:
            return self.read[below]
        share = (threads - below) / (above - below)
        return self.read[below] * (1 - share) + self.read[above] * share


@dataclass(frozen=True)
class Speed:
    """tok_s with `threads` threads; error: relative, None if unknown."""

    tok_s: float
    threads: int
    error: float | None


@dataclass(frozen=True)
class Prediction:
    """One model in one scheme on one board. memory_bytes: by context length; fits: with the context asked for."""

    board: Board
    options: Options
    sketch: Sketch
    basis: Basis
    context: int
    decode: Speed | None
    prefill: Speed | None
    memory_bytes: Mapping[int, float]
    longest_context: int

    @property
    def needed_bytes(self) -> float:
        return self.memory_bytes[self.context]

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.board.memory_bytes


def basis_for(board: Board, measured: Measured, boards: Sequence[Board]) -> Basis:
    """The best there is for a board. boards: all types, for the share of its peak that a memory is read with."""
    reference = measured.machines[0]
    exact = measured.machine(board.cpu, board.n_cores)
    if exact is not None:
        read = exact.bandwidth_bytes_per_s
        note = f"runs of {len(exact.runs)} figures on this processor, {exact.taken[:10]}"
        return Basis(MEASURED, exact.coefficients, read, exact.memory, exact.errors, note)
    section, read = board.target_section, _read(board, boards)
    errors = {"memory": reference.errors["memory"]} if "memory" in reference.errors else {}
    if section.core is None or section.clock_hz is None or not read:
        return Basis(ROUGH, None, read, reference.memory, errors, "its manifest has no core, clock or bandwidth")
    core = measured.cores.get(section.core)
    if core is not None:
        scaled = _scaled(core, section.clock_hz, reference)
        return Basis(
            PUBLISHED, scaled, read, reference.memory, {**core.errors, **errors}, f"published runs on {section.core}"
        )
    slowest = min(measured.cores.values(), key=lambda each: each.instructions_per_cycle)
    scaled = _scaled(slowest, section.clock_hz, reference)
    return Basis(ROUGH, scaled, read, reference.memory, errors, f"no run on {section.core}; as the slowest known core")


def _scaled(core: Core, clock_hz: int, reference: Machine) -> Coefficients:
    """Published figures tell the rate of instructions; the rest is the reference machine's at that rate."""
    rate = core.instructions_per_cycle * clock_hz
    slower = reference.coefficients.instructions_per_s / rate
    return replace(
        reference.coefficients,
        instructions_per_s=rate,
        attention_per_s=reference.coefficients.attention_per_s / slower,
        attention_row_per_s=reference.coefficients.attention_row_per_s / slower,
        launch_s=reference.coefficients.launch_s * slower,
        handover_s=reference.coefficients.handover_s * slower,
        imbalance=core.imbalance,
        overlap=core.overlap,
    )


def basis_of_manifest(board: Board) -> Basis:
    """A board's bandwidth alone, as its own manifest has it."""
    return Basis(ROUGH, None, _read(board, [board]), Memory(0, 0, 1), {}, "")


def _read(board: Board, boards: Sequence[Board]) -> dict[int, float]:
    """Bandwidth by threads: as seen, else the peak's share that boards reach where both are known."""
    memory = board.memory
    if memory.read_bytes_per_s:
        return dict(zip(memory.read_threads, map(float, memory.read_bytes_per_s), strict=True))
    shares = [
        max(each.memory.read_bytes_per_s) / each.memory.bandwidth_bytes_per_s
        for each in boards
        if each.memory.read_bytes_per_s and each.memory.bandwidth_bytes_per_s and not each.virtual
    ]
    if memory.bandwidth_bytes_per_s is None or not shares:
        return {}
    return {1: memory.bandwidth_bytes_per_s * sum(shares) / len(shares)}


def predict(
    board: Board, options: Options, sketch: Sketch, measured: Measured, basis: Basis, context: int | None
) -> Prediction:
    """Speed at an empty cache's first tokens (prompt of 128, answer behind it), and memory by context."""
    asked = min(context or DEFAULT_CONTEXT, sketch.context_length)
    contexts = sorted({asked, *(n for n in CONTEXTS if n <= sketch.context_length)})
    tier = board.target().tier.name
    decode = prefill = None
    if basis.coefficients is not None and basis.read:
        table = measured.instructions[tier]
        prompt = min(PROMPT_TOKENS, asked)
        counts = range(1, (board.target_section.n_fast_cores or board.n_cores) + 1)
        decode = _best(decode_work(sketch, table, prompt), basis, counts, "decode")
        prefill = _best(prefill_work(sketch, table, prompt), basis, counts, "prefill")
    memory = {n: resident_bytes(sketch, basis.memory, n) for n in contexts}
    return Prediction(
        board, options, sketch, basis, asked, decode, prefill, memory, _longest(board, sketch, basis.memory)
    )


def _best(work: Any, basis: Basis, counts: Sequence[int], figure: str) -> Speed:
    """The fewest threads that are not slower than any other number."""
    assert basis.coefficients is not None
    seconds = {n: work.seconds(basis.coefficients, n, basis.bandwidth(n)) for n in counts}
    threads = min(seconds, key=lambda n: (seconds[n], n))
    return Speed(work.tokens / seconds[threads], threads, basis.errors.get(figure))


def _longest(board: Board, sketch: Sketch, memory: Memory) -> int:
    """The longest context in whole blocks that fits the board; 0: none."""
    low, high = 0, -(-sketch.context_length // 64)
    while low < high:
        middle = (low + high + 1) // 2
        if resident_bytes(sketch, memory, middle * 64) <= board.memory_bytes:
            low = middle
        else:
            high = middle - 1
    return min(low * 64, sketch.context_length)


def choose(predictions: Sequence[Prediction], at_least_tok_s: float) -> Prediction | None:
    """The scheme with the most bits of those that fit and decode so fast; else the fastest that fits; None: none fits.

    Where no speed is known, the one with the fewest bits.
    """
    fitting = sorted((each for each in predictions if each.fits), key=lambda each: each.sketch.weight_bytes)
    fast = [each for each in fitting if each.decode is not None and each.decode.tok_s >= at_least_tok_s]
    return fast[-1] if fast else fitting[0] if fitting else None


def hardware() -> list[Board]:
    """Every type of board that is not emulated, this machine included if it can run bundles."""
    return [board for board in list_boards() if not board.virtual and _has_tier(board)]


def _has_tier(board: Board) -> bool:
    try:
        board.target()
    except TargetError:
        return False
    return True
