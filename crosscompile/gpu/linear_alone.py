"""The quantized linear layer where threads share nothing: each has rows of the weight, times rows of the activation.

For what imitates a GPU (schedules.py). Products are floats, which are exact: a group sums to less than 2²⁴.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, i32, lane, signed_byte
from crosscompile.gpu.knobs import LinearKnobs
from crosscompile.gpu.linear import Linear, Output
from crosscompile.gpu.weights import Weights
from crosscompile.packing import GROUP

UNROLLED = 1
"""Rows of the activation that are no loop."""


def quantized_alone(k: Builder, work: Linear, knobs: LinearKnobs) -> None:
    """(a, scale_a, w, scale_w[, high_w | zero_w], then the addends) -> y."""
    blocks = work.columns // GROUP
    threads, each, tile = knobs.threads, knobs.rows, knobs.tile
    a = k.quads("a", work.n * work.columns)
    scale_a = k.buffer("scale_a", (work.n, blocks), "float32")
    w = Weights(k, work.rows, work.columns, work.packing)
    out = Output(k, work)
    strips = -(-work.rows // each)
    sums = k.local(tile * each)
    with k.launch((-(-strips // threads), work.n // tile), threads) as (group, part, thread):
        first_row = k.bind((group * threads + thread) * each)
        first = k.bind(part * tile)
        rows = [k.bind(tirx.Min(first_row + r, i32(work.rows - 1))) for r in range(each)]
        for i in range(tile * each):
            k.store(sums, f32(0.0), i)
        add_products(k, a, scale_a, w, blocks, rows, tile, lambda m: first + m, sums)
        with k.loop(0, tile) as m:
            for r in range(each):
                row = k.bind(first_row + r)
                with k.when(row < i32(work.rows)):
                    out.write(first + m, row, sums[m * each + r])


def add_products(
    k: Builder,
    a: Any,
    scale_a: Any,
    w: Weights,
    blocks: int,
    rows: list[Expr],
    count: Any,
    source: Callable[[Any], Expr],
    sums: Any,
    steps: Any = None,
) -> None:
    """Adds to sums, `count` times as many as there are rows, what rows of the weight give with rows source(m) of a.

    steps: groups of columns, where there may be none.
    """
    each = len(rows)
    with k.loop(0, blocks if steps is None else steps) as b:
        groups = [w.read(row, b)[0] for row in rows]
        weights = [group.floats() for group in groups]
        # an activation's scale has a sixteenth in it where the weights are nibbles
        scales = [k.bind(group.scale * f32(float(w.times))) for group in groups]
        shifts = [k.bind(tirx.Cast("float32", group.shift)) for group in groups if group.shift is not None]

        def multiply(m: Any) -> None:
            """Adds the products of one row of the activation."""
            at = source(m)
            quads = [k.bind(a[(at * blocks + b) * 2 + half]) for half in range(2)]
            values, scale = floats_of(k, quads), k.bind(scale_a[at, b])
            total = values[0]
            for value in values[1:] if w.shifted else ():
                total = total + value
            total = k.bind(total)
            for r in range(each):
                dot = weights[r][0] * values[0]
                for weight, value in zip(weights[r][1:], values[1:], strict=True):
                    dot = fma(weight, value, dot)
                if w.shifted:
                    dot = fma(dot, f32(float(w.step)), shifts[r] * total)
                k.store(sums, fma(dot, scales[r] * scale, sums[m * each + r]), m * each + r)

        if isinstance(count, int) and count <= UNROLLED:
            for m in range(count):
                multiply(m)
        else:
            with k.loop(0, count) as m:
                multiply(m)


def floats_of(k: Builder, quads: list[Expr]) -> list[Expr]:
    """The signed bytes of a group of activations as floats."""
    words = [k.bind(lane(quad, i)) for quad in quads for i in range(4)]
    return [k.bind(tirx.Cast("float32", signed_byte(word, byte))) for word in words for byte in range(4)]
