"""Linear layers of a single row together with what stands before and behind them, for GPUs whose threads share.

A token's kernels depend on one another, and each costs a launch and a barrier. So a linear layer takes in what follows:
the gate of an MLP, the residual connection with the next norm, the rotary embedding with the KV cache. This is what
planning sees of them; the kernels are in fused_kernels.py, how these are cut in fused_knobs.py.

A norm needs its whole row. What stands behind the residual connection multiplies by the norm's weight and quantizes,
neither of which cares for the row's size, and leaves each group's sum of squares behind the scales; the next linear
layer adds these up while it reads its weights, and multiplies its results instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import constant
from crosscompile.gpu.attention_whole import counters
from crosscompile.gpu.grouped import declare_weight
from crosscompile.gpu.weights import group_bytes
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import kernel, kernel_maker
from crosscompile.kernels.kv_cache import Cache as DeclaredCache
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP, Packing

ROTATED_PAIRS = 8
"""Of a workgroup: dimensions that are rotated, each with another one."""


@dataclass(frozen=True)
class Source:
    """A linear layer of one row.

    rows, columns   of the weight; packing: of it
    epsilon         of the norm before it, whose sums of squares stand behind the activation's scales; None: of none
    """

    rows: int
    columns: int
    packing: str
    epsilon: float | None = None

    @property
    def blocks(self) -> int:
        return self.columns // GROUP

    @property
    def scales(self) -> int:
        """Numbers in the buffer of the activation's scales."""
        return self.blocks * (1 if self.epsilon is None else 2)


def supports(rows: int, columns: int, packing: str) -> bool:
    """Whether these kernels can: whole groups of rows, of weights that are read 16 bytes at a time."""
    form = Packing.parse(packing)
    return form.quantized and rows % GROUP == 0 and columns % GROUP == 0 and group_bytes(packing) >= 16


def rotates(heads: Heads) -> bool:
    """Whether rotated_linear can: halves of a head that are whole halves of a workgroup's rows."""
    return heads.dim % (2 * ROTATED_PAIRS) == 0 and heads.dtype != "i8"


def _declare_source(k: Declaration, source: Source) -> None:
    k.buffer("a", (1, source.blocks, GROUP), "int8")
    k.buffer("scale_a", (1, source.scales), "float32")
    declare_weight(k, Packing.parse(source.packing), source.rows, source.columns)


def _declare_quantized(k: Declaration, columns: int, scales: int) -> Any:
    q = k.buffer("q", (1, columns // GROUP, GROUP), "int8")
    k.buffer("scale", (1, scales), "float32")
    return q


@kernel_maker
def gated_linear(source: Source, activation: str, form: Form) -> tirx.PrimFunc:
    """(a, scale_a, w …) -> q, scale of activation(first half of the rows) · second half, for planning."""

    def body(k: Declaration) -> None:
        _declare_source(k, source)
        q = _declare_quantized(k, source.rows // 2, source.rows // 2 // GROUP)
        with k.shared(1) as unit:
            k.store(q, tirx.const(0, "int8"), unit, 0, 0)

    return kernel("gated_linear", body)


@kernel_maker
def normed_linear(source: Source, form: Form) -> tirx.PrimFunc:
    """(a, scale_a, w …, residual (1, rows), weight (rows,)) -> total, q, scale, for planning.

    total: the residual plus the product. q: of that times the norm's weight; scale: with sums of its squares behind.
    """

    def body(k: Declaration) -> None:
        _declare_source(k, source)
        k.buffer("residual", (1, source.rows), "float32")
        k.buffer("weight", (source.rows,), "float32")
        total = k.buffer("total", (1, source.rows), "float32")
        _declare_quantized(k, source.rows, 2 * (source.rows // GROUP))
        with k.shared(1) as unit:
            k.store(total, constant(0.0, 1), unit, 0)

    return kernel("normed_linear", body)


@kernel_maker
def scaled_linear(source: Source, biased: bool) -> tirx.PrimFunc:
    """(a, scale_a, w …[, bias (rows,)]) -> y (1, rows) f32, for planning: a plain linear layer behind a norm."""

    def body(k: Declaration) -> None:
        _declare_source(k, source)
        if biased:
            k.buffer("bias", (source.rows,), "float32")
        y = k.buffer("y", (1, source.rows), "float32")
        with k.shared(1) as unit:
            k.store(y, constant(0.0, 1), unit, 0)

    return kernel("scaled_linear", body)


@kernel_maker
def rotated_linear(source: Source, heads: Heads, clears: bool) -> tirx.PrimFunc:
    """(a, scale_a, w …, table, positions, slots, block_table, k, v) -> [turns,] q (1, Hq · dim) f32, for planning.

    Queries, keys and values of a row, rotated; keys and values appended to the states, in place. turns: attention's
    counters, cleared (attention_whole.py).
    """

    def body(k: Declaration) -> None:
        _declare_source(k, source)
        k.buffer("table", (1, heads.dim), "float32")
        DeclaredCache.parameters(k, 1, heads)
        if clears:
            k.buffer("turns", (counters(heads),), "int32")
        q = k.buffer("q", (1, heads.query * heads.dim), "float32")
        with k.shared(1) as unit:
            k.store(q, constant(0.0, 1), unit, 0)

    return kernel("rotated_linear", body)
