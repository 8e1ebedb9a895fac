"""Kernels over whole rows: RMSNorm, SiLU · up, gathering, and activation quantization alone or behind one of them.

The range that threads share is the rows. A quantized row comes as q (n, B, 32) int8, scale (n, B) f32 and, where the
tier's packing has an offset, sum (n, B) int32 of each group of q.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import (
    LANES,
    Expr,
    constant,
    fma,
    halves,
    integer_product,
    magnitude,
    silu,
    tree_max,
    tree_sum,
)
from crosscompile.kernels.build import Builder, cast, kernel, span
from crosscompile.packing import GROUP

Value = Callable[[Expr, Expr], Expr]
"""(row, first column) -> sixteen consecutive values of the row."""


def _outputs(k: Builder, n: int, columns: int, quantized: bool, sums: bool) -> tuple[Any, ...]:
    """Declares the output parameters of a row kernel."""
    if not quantized:
        return (k.buffer("y", (n, columns), "float32"),)
    blocks = columns // GROUP
    out = [k.buffer("q", (n, blocks, GROUP), "int8"), k.buffer("scale", (n, blocks), "float32")]
    if sums:
        out.append(k.buffer("sum", (n, blocks), "int32"))
    return tuple(out)


def _write_row(k: Builder, out: tuple[Any, ...], m: Expr, columns: int, value: Value) -> None:
    """Writes a row as floats, or quantized: scale = max|x| / 127, q = round(x · 127 / max|x|) per group."""
    if len(out) == 1:
        with k.loop(0, columns // LANES) as c:
            k.store(out[0], value(m, c * LANES), m, span(c * LANES))
        return
    with k.loop(0, columns // GROUP) as b:
        first = k.bind(value(m, b * GROUP))
        second = k.bind(value(m, b * GROUP + LANES))
        largest = k.bind(tree_max(tirx.Max(magnitude(first), magnitude(second))))
        positive = largest > constant(0.0, 1)
        inverse = k.bind(tirx.Select(positive, constant(127.0, 1) / largest, constant(0.0, 1)))
        k.store(out[1], largest * constant(1.0 / 127.0, 1), m, b)
        broadcast = tirx.Broadcast(inverse, LANES)
        low = k.bind(integer_product(first, broadcast))
        high = k.bind(integer_product(second, broadcast))
        k.store(out[0], cast(f"int8x{LANES}", low), m, b, span(0))
        k.store(out[0], cast(f"int8x{LANES}", high), m, b, span(LANES))
        if len(out) == 3:
            k.store(out[2], halves(low + high, lambda x, y: x + y), m, b)


@cache
def act_quant(n: int, columns: int, sums: bool) -> tirx.PrimFunc:
    """(x (n, columns) f32) -> q, scale[, sum]."""

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        out = _outputs(k, n, columns, True, sums)
        with k.shared(n) as m:
            _write_row(k, out, m, columns, lambda m, c: x[m, span(c)])

    return kernel("act_quant", body)


@cache
def rms_norm(n: int, columns: int, epsilon: float, quantized: bool, sums: bool) -> tirx.PrimFunc:
    """(x (n, columns) f32, weight (columns,) f32) -> y (n, columns) f32, or q, scale[, sum]."""

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        weight = k.buffer("weight", (columns,), "float32")
        out = _outputs(k, n, columns, quantized, sums)
        squares = k.local(LANES)
        with k.shared(n) as m:
            k.fill(squares, LANES)
            with k.loop(0, columns // LANES) as c:
                v = k.bind(x[m, span(c * LANES)])
                k.store(squares, fma(v, v, squares[span(0)]), span(0))
            mean = tree_sum(squares[span(0)]) / constant(float(columns), 1)
            factor = k.bind(constant(1.0, 1) / tirx.sqrt(mean + constant(epsilon, 1)))
            scaled = tirx.Broadcast(factor, LANES)
            _write_row(k, out, m, columns, lambda m, c: (x[m, span(c)] * scaled) * weight[span(c)])

    return kernel("rms_norm_quant" if quantized else "rms_norm", body)


@cache
def silu_mul(n: int, columns: int, quantized: bool, sums: bool) -> tirx.PrimFunc:
    """(gate_up (n, 2 · columns) f32, gate first) -> SiLU(gate) · up, (n, columns) f32, or q, scale[, sum]."""

    def body(k: Builder) -> None:
        x = k.buffer("gate_up", (n, 2 * columns), "float32")
        out = _outputs(k, n, columns, quantized, sums)
        with k.shared(n) as m:
            _write_row(k, out, m, columns, lambda m, c: silu(x[m, span(c)]) * x[m, span(c + columns)])

    return kernel("silu_mul_quant" if quantized else "silu_mul", body)


@cache
def gather(n: int, source_rows: int, columns: int) -> tirx.PrimFunc:
    """(x (source_rows, columns) f32, rows (n,) int32) -> y (n, columns) f32; row -1 is padding and takes row 0."""

    def body(k: Builder) -> None:
        x = k.buffer("x", (source_rows, columns), "float32")
        rows = k.buffer("rows", (n,), "int32")
        y = k.buffer("y", (n, columns), "float32")
        with k.shared(n) as m:
            row = k.bind(cast("int64", tirx.Max(rows[m], tirx.const(0, "int32"))))
            with k.loop(0, columns // LANES) as c:
                k.store(y, x[row, span(c * LANES)], m, span(c * LANES))

    return kernel("gather", body)
