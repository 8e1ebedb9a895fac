"""Embedding rows read out of the packed weight, on a GPU: a thread takes a group of 32 columns."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import QUAD_BYTES, Builder, f32, gpu_kernel, i32, lane
from crosscompile.gpu.weights import Weights
from crosscompile.packing import GROUP, Packing
from crosscompile.spirv.capabilities import Gpu


def embed(
    name: str,
    gpu: Gpu,
    n: int,
    vocab: int,
    columns: int,
    packing: str,
    times: float,
    padded: bool,
    first: int | None = None,
) -> tirx.PrimFunc:
    """(tokens (n,) int32, w[, scale[, high | zero]]) -> x (n, columns) f32; padded: rows of -1 take row 0.

    first: only tokens from there on that the table has; rows of x of all others stay as they are.
    """
    form, blocks = Packing.parse(packing), columns // GROUP

    def body(k: Builder) -> None:
        tokens = k.buffer("tokens", (n,), "int32")
        if form.quantized:
            values_of = _quantized(k, Weights(k, vocab, columns, packing))
        else:
            values_of = _plain(k, vocab, blocks, form.kind)
        x = k.quads("x", n * columns * 4, "float32")

        def put(m: Expr, row: Expr, b: Expr) -> None:
            values = values_of(row, b)
            if times != 1.0:
                values = [value * f32(times) for value in values]
            for i in range(0, GROUP, 4):
                k.store(x, tirx.Shuffle(values[i : i + 4], [0, 1, 2, 3]), (m * blocks + b) * (GROUP // 4) + i // 4)

        with k.each(n, blocks) as (m, b):
            token = k.bind(tirx.Max(tokens[m], i32(0)) if padded else tokens[m])
            if first is None:
                put(m, token, b)
                return
            own = k.bind(token - first)
            with k.when(tirx.And(own >= i32(0), own < i32(vocab))):
                put(m, own, b)

    return gpu_kernel(name, gpu, body)


def _quantized(k: Builder, weights: Weights) -> Callable[[Expr, Expr], list[Expr]]:
    """(row, group) -> its 32 values."""

    def values(row: Expr, b: Expr) -> list[Expr]:
        (group,) = weights.read(row, b)
        found = group.floats()
        if group.shift is not None:
            shift = k.bind(tirx.Cast("float32", group.shift))
            found = [fma(value, f32(float(weights.step)), shift) for value in found]
        return [value * group.scale for value in found]

    return values


def _plain(k: Builder, rows: int, blocks: int, kind: str) -> Callable[[Expr, Expr], list[Expr]]:
    """The same of weights in floats."""
    bytes_ = GROUP * (4 if kind == "f32" else 2)
    units = bytes_ // QUAD_BYTES
    w = k.quads("w", rows * blocks * bytes_, "float32" if kind == "f32" else "uint32")

    def values(row: Expr, b: Expr) -> list[Expr]:
        at = k.bind(row * blocks + b)
        words = [lane(k.bind(w[at * units + u]), i) for u in range(units) for i in range(4)]
        return words if kind == "f32" else [v for word in words for v in k.halves(word)]

    return values
