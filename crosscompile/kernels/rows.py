"""Kernels over whole rows: norms, activations, gathering, and activation quantization alone or behind one of them.

The range that threads share is the rows. A quantized row comes as q (n, B, 32) int8 or int16, scale (n, B) f32 and,
where the weights that it meets have an offset, sum (n, B) int32: −8 · Σ q of each group, in the form that `Form` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import (
    LANES,
    Expr,
    constant,
    fma,
    gelu,
    gelu_tanh,
    halves,
    integer_product,
    lanes_of,
    let,
    magnitude,
    silu,
    tanh,
    tree_max,
    tree_sum,
)
from crosscompile.kernels.build import Builder, cast, kernel, kernel_maker, span
from crosscompile.packing import GROUP
from crosscompile.target import Tier


@dataclass(frozen=True)
class Form:
    """What quantized rows look like to the weights that they are multiplied with.

    sums     "" for none, "wide", "narrow" or "negated" (crosscompile/target.py)
    shrink   a power of two that scale is multiplied by, because the integers of the dot are too large by its inverse
    dtype    what the integers, −127 to 127, are stored as
    """

    sums: str = ""
    shrink: float = 1.0
    dtype: str = "int8"

    @classmethod
    def for_weights(cls, tier: Tier, packing: str) -> Form:
        return cls(*tier.activations(packing))

    def outputs(self, n: int, columns: int) -> list[tuple[str, tuple[int, ...], str]]:
        """(name, shape, dtype) of the buffers of n rows."""
        blocks = columns // GROUP
        made = [("q", (n, blocks, GROUP), self.dtype), ("scale", (n, blocks), "float32")]
        return [*made, ("sum", (n, blocks), "int32")] if self.sums else made


Value = Callable[[Expr, Expr], Expr]
"""(row, first column) -> sixteen consecutive values of the row."""


def declare_rows(k: Builder, n: int, columns: int, form: Form | None) -> tuple[Any, ...]:
    """Declares the output parameters of a row kernel: float32 rows, or quantized ones."""
    declared = [("y", (n, columns), "float32")] if form is None else form.outputs(n, columns)
    return tuple(k.buffer(*each) for each in declared)


def write_row(k: Builder, out: tuple[Any, ...], m: Expr, columns: int, value: Value, form: Form | None) -> None:
    """Writes a row as floats, or quantized: scale = max|x| / 127, q = round(x · 127 / max|x|) per group."""
    if form is None:
        with k.loop(0, columns // LANES) as c:
            k.store(out[0], value(m, c * LANES), m, span(c * LANES))
        return
    with k.loop(0, columns // GROUP) as b:
        first = k.bind(value(m, b * GROUP))
        second = k.bind(value(m, b * GROUP + LANES))
        largest = k.bind(tree_max(tirx.Max(magnitude(first), magnitude(second))))
        positive = largest > constant(0.0, 1)
        inverse = k.bind(tirx.Select(positive, constant(127.0, 1) / largest, constant(0.0, 1)))
        scale = largest * constant(1.0 / 127.0, 1)
        k.store(out[1], scale if form.shrink == 1.0 else scale * constant(form.shrink, 1), m, b)
        broadcast = tirx.Broadcast(inverse, LANES)
        low = k.bind(integer_product(first, broadcast))
        high = k.bind(integer_product(second, broadcast))
        k.store(out[0], cast(f"{form.dtype}x{LANES}", low), m, b, span(0))
        k.store(out[0], cast(f"{form.dtype}x{LANES}", high), m, b, span(LANES))
        if form.sums:
            factor = 8 if form.sums == "negated" else -8
            total = halves(low + high, lambda x, y: x + y) * tirx.const(factor, "int32")
            k.store(out[2], total if form.sums == "wide" else total & tirx.const(0xFFFF, "int32"), m, b)


@kernel_maker
def act_quant(n: int, columns: int, form: Form) -> tirx.PrimFunc:
    """(x (n, columns) f32) -> q, scale[, sum]."""

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        out = declare_rows(k, n, columns, form)
        with k.shared(n) as m:
            write_row(k, out, m, columns, lambda m, c: x[m, span(c)], form)

    return kernel("act_quant", body)


@kernel_maker
def rms_norm(n: int, columns: int, epsilon: float, form: Form | None) -> tirx.PrimFunc:
    """(x (n, columns) f32, weight (columns,) f32) -> y (n, columns) f32, or q, scale[, sum]."""

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        weight = k.buffer("weight", (columns,), "float32")
        out = declare_rows(k, n, columns, form)
        squares = k.local(LANES)
        with k.shared(n) as m:
            k.fill(squares, LANES)
            with k.loop(0, columns // LANES) as c:
                v = k.bind(x[m, span(c * LANES)])
                k.store(squares, fma(v, v, squares[span(0)]), span(0))
            mean = tree_sum(squares[span(0)]) / constant(float(columns), 1)
            factor = k.bind(constant(1.0, 1) / tirx.sqrt(mean + constant(epsilon, 1)))
            scaled = tirx.Broadcast(factor, LANES)
            write_row(k, out, m, columns, lambda m, c: (x[m, span(c)] * scaled) * weight[span(c)], form)

    return kernel("rms_norm_quant" if form else "rms_norm", body)


@kernel_maker
def layer_norm(n: int, columns: int, epsilon: float, form: Form | None) -> tirx.PrimFunc:
    """(x (n, columns) f32, weight (columns,) f32, bias likewise) -> y (n, columns) f32, or q, scale[, sum]."""

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        weight, bias = (k.buffer(name, (columns,), "float32") for name in ("weight", "bias"))
        out = declare_rows(k, n, columns, form)
        sums = k.local(LANES)
        with k.shared(n) as m:
            k.fill(sums, LANES)
            with k.loop(0, columns // LANES) as c:
                k.store(sums, sums[span(0)] + x[m, span(c * LANES)], span(0))
            mean = tirx.Broadcast(k.bind(tree_sum(sums[span(0)]) / constant(float(columns), 1)), LANES)
            k.fill(sums, LANES)
            with k.loop(0, columns // LANES) as c:
                v = k.bind(x[m, span(c * LANES)] - mean)
                k.store(sums, fma(v, v, sums[span(0)]), span(0))
            variance = tree_sum(sums[span(0)]) / constant(float(columns), 1)
            factor = k.bind(constant(1.0, 1) / tirx.sqrt(variance + constant(epsilon, 1)))
            scaled = tirx.Broadcast(factor, LANES)

            def value(m: Expr, c: Expr) -> Expr:
                return fma((x[m, span(c)] - mean) * scaled, weight[span(c)], bias[span(c)])

            write_row(k, out, m, columns, value, form)

    return kernel("layer_norm_quant" if form else "layer_norm", body)


def relu2(x: Expr) -> Expr:
    """max(x, 0)²."""
    return let(tirx.Max(x, constant(0.0, lanes_of(x))), lambda v: v * v)


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu2": relu2,
}


@kernel_maker
def gated(n: int, columns: int, activation: str, form: Form | None) -> tirx.PrimFunc:
    """(gate_up (n, 2 · columns) f32, gate first) -> activation(gate) · up, (n, columns) f32, or q, scale[, sum]."""
    act = ACTIVATIONS[activation]

    def body(k: Builder) -> None:
        x = k.buffer("gate_up", (n, 2 * columns), "float32")
        out = declare_rows(k, n, columns, form)
        with k.shared(n) as m:
            write_row(k, out, m, columns, lambda m, c: act(x[m, span(c)]) * x[m, span(c + columns)], form)

    return kernel(f"{activation}_mul_quant" if form else f"{activation}_mul", body)


@kernel_maker
def activated(n: int, columns: int, activation: str, form: Form | None) -> tirx.PrimFunc:
    """(x (n, columns) f32) -> activation(x), (n, columns) f32, or q, scale[, sum]."""
    act = ACTIVATIONS[activation]

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        out = declare_rows(k, n, columns, form)
        with k.shared(n) as m:
            write_row(k, out, m, columns, lambda m, c: act(x[m, span(c)]), form)

    return kernel(f"{activation}_quant" if form else activation, body)


@kernel_maker
def flatten(n: int, columns: int, cap: float) -> tirx.PrimFunc:
    """(x (n, columns) f32) -> cap · tanh x. The range that threads share is vectors, as rows are few and long."""
    lanes = gcd(columns, LANES)  # the rows of a vocabulary are padded to the tier's row group, which may be less
    vectors = columns // lanes

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        y = k.buffer("y", (n, columns), "float32")
        with k.shared(n * vectors) as unit:
            m, c = k.divide(unit, vectors)
            at = span(c * lanes, lanes) if lanes > 1 else c
            k.store(y, tanh(x[m, at]) * constant(cap, lanes), m, at)

    return kernel("flatten", body)


@kernel_maker
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
