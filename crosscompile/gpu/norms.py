"""Norms of parts of a row on a GPU: a workgroup for each part."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma, silu
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane, threads_for
from crosscompile.gpu.rows import Output
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu


def gated_norm(
    name: str, gpu: Gpu, n: int, columns: int, gated_columns: int, groups: int, epsilon: float, form: Form | None
) -> tirx.PrimFunc | None:
    """None where a part is no whole number of groups of 32 columns."""
    width = columns // groups
    if width % GROUP or gated_columns % 4:
        return None
    blocks = width // GROUP

    def body(k: Builder) -> None:
        x = k.quads("x", n * columns * 4, "float32")
        gated = k.quads("gated", n * gated_columns * 4, "float32")
        weight = k.quads("weight", columns * 4, "float32")
        out = Output(k, n, columns, form)
        threads = threads_for(blocks, min(256, k.gpu.invocations))
        shared, square = k.reduction(1, threads), k.local(1)
        with k.launch((groups, n), threads) as (part, m, thread):

            def values(b: Expr) -> list[Expr]:
                """x · silu(gate) of 32 columns."""
                read = (
                    _columns(k, x, m * (columns // 4) + b * 8),
                    _columns(k, gated, m * (gated_columns // 4) + b * 8),
                )
                return [k.bind(value * silu(gate)) for value, gate in zip(*read, strict=True)]

            k.store(square, f32(0.0), 0)
            with k.strided(thread, blocks) as b:
                sum_ = square[0]
                for value in values(k.bind(part * blocks + b)):
                    sum_ = fma(value, value, sum_)
                k.store(square, sum_, 0)
            (total,) = k.reduce(thread, [square[0]], shared)
            factor = k.bind(f32(1.0) / tirx.sqrt(total / f32(float(width)) + f32(epsilon)))
            with k.strided(thread, blocks) as b:
                at = k.bind(part * blocks + b)
                scaled = zip(values(at), _columns(k, weight, at * 8), strict=True)
                out.write(m, at, [k.bind((value * factor) * w) for value, w in scaled])

    return gpu_kernel(name, gpu, body)


def _columns(k: Builder, x: Any, first: Expr) -> list[Expr]:
    """32 values of a buffer of float32x4, from the quad `first` on."""
    quads = [k.bind(x[first + i]) for i in range(GROUP // 4)]
    return [lane(quad, i) for quad in quads for i in range(4)]


def narrow(name: str, gpu: Gpu, n: int, columns: int, count: int, groups: int, epsilon: float) -> tirx.PrimFunc:
    width = count // groups

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        y = k.buffer("y", (n, count), "float32")
        if not epsilon:
            with k.each(n, count) as (m, c):
                k.store(y, x[m, c], m, c)
            return
        threads = threads_for(width, min(256, k.gpu.invocations))
        shared, square = k.reduction(1, threads), k.local(1)
        with k.launch((groups, n), threads) as (part, m, thread):
            k.store(square, f32(0.0), 0)
            with k.strided(thread, width) as d:
                value = k.bind(x[m, part * i32(width) + d])
                k.store(square, fma(value, value, square[0]), 0)
            (total,) = k.reduce(thread, [square[0]], shared)
            factor = k.bind(f32(1.0) / tirx.sqrt(total / f32(float(width)) + f32(epsilon)))
            with k.strided(thread, width) as d:
                c = k.bind(part * i32(width) + d)
                k.store(y, x[m, c] * factor, m, c)

    return gpu_kernel(name, gpu, body)
