"""How long a token takes, and in how much memory: a model of the machine with few coefficients, each a physical one.

Reading weights and computing with them overlap; handing kernels to the threads does not:

    t = (memory^overlap + compute^overlap)^(1/overlap) + launches

    memory    bytes read, over the bandwidth that this number of threads measured
    compute   instructions of the inner loops over the rate of a core, and attention's products at their own cost
    launches  kernels, each at a fixed price, with a hand-over where there are several threads

Coefficients are fitted to measured runs (edgellm.fit); nobody writes them down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crosscompile.sketch import Matrix, Sketch

STEP_ROWS = 64
"""Rows of a full step of the prompt."""

TAIL_ROWS = (1, 2, 4, 8, 32, STEP_ROWS)
"""What a step of the prompt's end is padded to."""

BLOCK = 64
"""Positions per block of the KV cache."""

SHARD_BYTES = 65536
"""What a shard of weights holds before its data (runtime_c/FORMAT.md); there is one a layer, and three more."""

Table = Mapping[str, Mapping[str, float]]
"""Instructions per product of one tier: kind of weights -> rows ("1", "64") -> count."""


@dataclass(frozen=True)
class Coefficients:
    """What is fitted. Rates are of one core.

    instructions_per_s   of the inner loops
    attention_per_s      products of queries with keys, and of weights with values, in steps of the prompt
    attention_row_per_s  the same for one row, which nothing is shared with
    imbalance            share of its work that each further thread costs the others, who wait for the last
    launch_s             a kernel's price with one thread; handover_s comes on top of it with several
    overlap              exponent: 1, one after the other, to infinity, whatever is longer
    """

    instructions_per_s: float
    attention_per_s: float
    attention_row_per_s: float
    imbalance: float
    launch_s: float
    handover_s: float
    overlap: float


@dataclass(frozen=True)
class Memory:
    """The fitted part of memory.

    base_bytes       program, libraries, stacks
    bytes_per_entry  of the vocabulary: tokenizer, logits
    window_bytes     what the kernel maps around a byte that is looked up
    """

    base_bytes: float
    bytes_per_entry: float
    window_bytes: float


@dataclass(frozen=True)
class Work:
    """What a figure asks of a machine: bytes from memory, instructions, products of attention, kernels, tokens.

    attention: in steps of the prompt; attention_row: of single rows.
    """

    bytes: float
    instructions: float
    attention: float
    attention_row: float
    launches: float
    tokens: int

    def seconds(self, machine: Coefficients, threads: int, bandwidth_bytes_per_s: float) -> float:
        """For the whole figure, with `threads` threads that read at this bandwidth together."""
        memory = self.bytes / bandwidth_bytes_per_s
        compute = self.instructions / machine.instructions_per_s
        compute += self.attention / machine.attention_per_s + self.attention_row / machine.attention_row_per_s
        compute *= (1 + machine.imbalance * (threads - 1)) / threads
        longer, shorter = max(memory, compute), min(memory, compute)
        both: float = longer * (1 + (shorter / longer) ** machine.overlap) ** (1 / machine.overlap)
        return both + self.launches * (machine.launch_s + (machine.handover_s if threads > 1 else 0.0))


def decode_work(sketch: Sketch, table: Table, depth: float) -> Work:
    """One token with `depth` positions in the cache."""
    seen = min(depth, sketch.window) if sketch.window else depth
    matrices = (*sketch.body, *sketch.head)
    return Work(
        bytes=_bytes(matrices) + sketch.vector_bytes + sketch.kv_bytes_per_token * seen + 2 * sketch.state_bytes,
        instructions=_instructions(matrices, table, 1),
        attention=0.0,
        attention_row=2.0 * sketch.attention * seen,
        launches=_launches(sketch, "body 1") + _launches(sketch, "head 1"),
        tokens=1,
    )


def prefill_work(sketch: Sketch, table: Table, tokens: int) -> Work:
    """A prompt of `tokens` tokens into an empty cache, with the logits of its last."""
    full, rest = divmod(tokens, STEP_ROWS)
    tail = next(n for n in TAIL_ROWS if n >= rest) if rest else 0
    steps, rows = full + (1 if rest else 0), full * STEP_ROWS + tail
    seen = sum(min(position, sketch.window) if sketch.window else position for position in range(tokens))
    body = _instructions(sketch.body, table, STEP_ROWS)
    return Work(
        bytes=steps * (_bytes(sketch.body) + sketch.vector_bytes + 2 * sketch.state_bytes) + _bytes(sketch.head),
        instructions=rows * body + _instructions(sketch.head, table, 1),
        attention=2.0 * sketch.attention * seen,
        attention_row=0.0,
        launches=steps * _launches(sketch, f"body {STEP_ROWS}") + _launches(sketch, "head 1"),
        tokens=tokens,
    )


def kv_bytes(sketch: Sketch, positions: int) -> int:
    """What a session keeps: its KV cache, in whole blocks, and states of one size.

    Of blocks a window keeps no more than it sees and a step adds.
    """
    blocks = -(-positions // BLOCK)
    if sketch.window:
        blocks = min(blocks, (sketch.window + STEP_ROWS - 1 + BLOCK - 2) // BLOCK + 1)
    return blocks * BLOCK * sketch.kv_bytes_per_token + sketch.state_bytes


def resident_bytes(sketch: Sketch, memory: Memory, positions: int, looked_up: int | None = None) -> float:
    """Most memory in RAM, mapped weights included, after `positions` positions.

    looked_up: different tokens whose embedding was read, where it is not the head too; None: as many as positions.
    """
    read = sketch.weight_bytes - sketch.lookup_bytes + SHARD_BYTES * (sketch.n_layers + 3)
    windows = sketch.lookup_bytes / memory.window_bytes
    n = positions if looked_up is None else looked_up
    touched = sketch.lookup_bytes * (1 - (1 - 1 / windows) ** n) if windows > 1 else sketch.lookup_bytes
    fixed = memory.base_bytes + memory.bytes_per_entry * sketch.vocab_size
    return read + touched + sketch.arena_bytes + kv_bytes(sketch, positions) + fixed


def _bytes(matrices: tuple[Matrix, ...]) -> int:
    return sum(matrix.bytes for matrix in matrices)


def _instructions(matrices: tuple[Matrix, ...], table: Table, rows: int) -> float:
    """Of one row in a step of `rows`."""
    return sum(matrix.products * table[matrix.kind][str(rows)] for matrix in matrices)


def _launches(sketch: Sketch, function: str) -> int:
    return sketch.launches[function]
