"""The quantized linear layer where threads share nothing: each has rows of the weight, times rows of the activation.

For what imitates a GPU (schedules.py). Products are floats, which are exact: a group sums to less than 2²⁴.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, i32, lane, signed_byte
from crosscompile.gpu.linear import Linear, Output, weight_buffers
from crosscompile.kernels.build import divisor
from crosscompile.kernels.tile import of_scale
from crosscompile.packing import GROUP, Packing

_KEPT = 512
"""Sums that a thread has at most."""
UNROLLED = 1
"""Rows of the activation that are no loop."""
_ENOUGH = 16
"""Workgroups that keep processors evenly busy."""


def quantized_alone(k: Builder, work: Linear) -> None:
    """(a, scale_a, w, scale_w, then the addends) -> y."""
    form, blocks, schedule = Packing.parse(work.packing), work.columns // GROUP, k.schedule
    a = k.quads("a", work.n * work.columns)
    scale_a = k.buffer("scale_a", (work.n, blocks), "float32")
    w, scale_w, units = weight_buffers(k, work, form)
    out = Output(k, work)
    tile, threads = divisor(work.n, schedule.tile), schedule.threads
    each = min(schedule.rows, _KEPT // tile)
    while each > 1 and work.rows * (work.n // tile) < _ENOUGH * each * threads:
        each //= 2
    strips = -(-work.rows // each)
    sums = k.local(tile * each)
    with k.launch((-(-strips // threads), work.n // tile), threads) as (group, part, thread):
        first_row = k.bind((group * threads + thread) * each)
        first = k.bind(part * tile)
        rows = [k.bind(tirx.Min(first_row + r, i32(work.rows - 1))) for r in range(each)]
        for i in range(tile * each):
            k.store(sums, f32(0.0), i)
        with k.loop(0, blocks) as b:
            weights, scales = [], []
            for row in rows:
                quads = [k.bind(w[(row * blocks + b) * units + u]) for u in range(units)]
                weights.append(_bytes(k, quads) if form.about.like == "w8" else _nibbles(k, quads))
                # an activation's scale has a sixteenth in it where the weights are nibbles
                factor = f32(1.0 if form.about.like == "w8" else 16.0)
                scales.append(k.bind(tirx.Cast("float32", scale_w[row, of_scale(form, b)]) * factor))

            def multiply(m: Any) -> None:
                """Adds the products of one row of the activation."""
                quads = [k.bind(a[((first + m) * blocks + b) * 2 + half]) for half in range(2)]
                values, scale = _bytes(k, quads), k.bind(scale_a[first + m, b])
                for r in range(each):
                    dot = weights[r][0] * values[0]
                    for weight, value in zip(weights[r][1:], values[1:], strict=True):
                        dot = fma(weight, value, dot)
                    k.store(sums, fma(dot, scales[r] * scale, sums[m * each + r]), m * each + r)

            if tile <= UNROLLED:
                for m in range(tile):
                    multiply(m)
            else:
                with k.loop(0, tile) as m:
                    multiply(m)
        with k.loop(0, tile) as m:
            for r in range(each):
                row = k.bind(first_row + r)
                with k.when(row < i32(work.rows)):
                    out.write(first + m, row, sums[m * each + r])


def _bytes(k: Builder, quads: list[Expr]) -> list[Expr]:
    """The signed bytes of a group as floats."""
    words = [k.bind(lane(quad, i)) for quad in quads for i in range(4)]
    return [k.bind(tirx.Cast("float32", signed_byte(word, byte))) for word in words for byte in range(4)]


def _nibbles(k: Builder, quads: list[Expr]) -> list[Expr]:
    """The signed nibbles of a group as floats: the low ones are its first half."""
    words = [k.bind(tirx.Cast("int32", lane(quad, i))) for quad in quads for i in range(4)]
    places = [(word, shift - 8 * byte) for shift in (28, 24) for word in words for byte in range(4)]
    return [k.bind(tirx.Cast("float32", (word << i32(shift)) >> i32(28))) for word, shift in places]
