"""The linear layer on a GPU, quantized or not, with what is added behind it.

Few rows: workgroups take some rows of the weight each, and their threads share the columns; what is bound by memory
reads every weight once, 16 bytes at a time. Many rows: tiles through shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane
from crosscompile.gpu.knobs import LinearKnobs, at_once, default_knobs, way_of
from crosscompile.gpu.weights import Group, Weights
from crosscompile.packing import GROUP, Packing
from crosscompile.spirv.capabilities import Gpu


@dataclass(frozen=True)
class Linear:
    """A linear layer: n rows of the activation, (rows, columns) of the weight, its packing, and addends.

    addends: for each tensor that is added, whether it is a bias, (whole,), or else a tensor of (n, whole).
    first: the rows are those from there on of `whole` rows, which the result has (split.py).
    """

    n: int
    rows: int
    columns: int
    packing: str
    addends: tuple[bool, ...]
    first: int
    whole: int


def linear_kernel(name: str, gpu: Gpu, work: Linear, knobs: LinearKnobs | None = None) -> tirx.PrimFunc:
    """(a, scale_a, w, scale_w[, high_w | zero_w] | x, w, then the addends) -> y.

    knobs: one of the candidates (knobs.py); the default where nothing was tuned.
    """
    from crosscompile.gpu.linear_alone import quantized_alone
    from crosscompile.gpu.linear_matrix import quantized_matrices
    from crosscompile.gpu.linear_narrow import float_narrow
    from crosscompile.gpu.linear_tiles import quantized_tiles

    writers = {
        "few": _quantized_few,
        "matrices": quantized_matrices,
        "tiles": quantized_tiles,
        "alone": quantized_alone,
        "float": _float_few,
        "narrow": float_narrow,
    }
    writer, chosen = writers[way_of(work, gpu)], knobs or default_knobs(work, gpu)
    return gpu_kernel(name, gpu, lambda k: writer(k, work, chosen))


class Output:
    """The result, with what is added to it."""

    def __init__(self, k: Builder, work: Linear) -> None:
        self.k, self.work = k, work
        self.addends = [
            k.buffer(f"addend{i}", (work.whole,) if bias else (work.n, work.whole), "float32")
            for i, bias in enumerate(work.addends)
        ]
        self.y = k.buffer("y", (work.n, work.whole), "float32")

    def write(self, m: Any, row: Expr, value: Expr) -> None:
        row = row + self.work.first if self.work.first else row
        for bias, addend in zip(self.work.addends, self.addends, strict=True):
            value = value + (addend[row] if bias else addend[m, row])
        self.k.store(self.y, value, m, row)


def _reduced(k: Builder, thread: Expr, sums: Any, count: int, out: Output, first_row: Expr, together: int) -> None:
    """Sums over the workgroup, m outermost, to the result."""
    shared = k.reduction(min(count, 4), k.threads)
    for start in range(0, count, 4):
        part = list(range(start, min(start + 4, count)))
        totals = k.reduce(thread, [sums[i] for i in part], shared)
        for i, total in zip(part, totals, strict=True):
            m, r = divmod(i, together)
            with k.when(tirx.EQ(thread, i32(i % k.threads))):
                out.write(m, first_row + r, total)


def group_dot(k: Builder, weights: list[Expr], a: list[Expr]) -> Expr:
    """Σ of the products of a group's words."""
    total = k.dot4(weights[0], a[0])
    for word, value in zip(weights[1:], a[1:], strict=True):
        total = total + k.dot4(word, value)
    return total


def group_sum(k: Builder, a: list[Expr]) -> Expr:
    """Σ of the signed bytes of words."""
    total = k.sum4(a[0])
    for word in a[1:]:
        total = total + k.sum4(word)
    return total


def _quantized_few(k: Builder, work: Linear, knobs: LinearKnobs) -> None:
    blocks, together = work.columns // GROUP, knobs.rows
    a = k.quads("a", work.n * work.columns)
    scale_a = k.buffer("scale_a", (work.n, blocks), "float32")
    groups_read = at_once(work)
    w = Weights(k, work.rows, work.columns, work.packing, groups_read)
    out = Output(k, work)
    sums = k.local(work.n * together)

    def multiply(b: Expr, groups: list[Group]) -> None:
        """Adds the products of a group of each row."""
        unpacked = [group.factors() for group in groups]
        for m in range(work.n):
            words = [lane(k.bind(a[(m * blocks + b) * 2 + half]), i) for half in range(2) for i in range(4)]
            total = k.bind(group_sum(k, words)) if w.summed else None
            scale = k.bind(scale_a[m, b])
            for r, group in enumerate(groups):
                dot = tirx.Cast("float32", w.product(group_dot(k, unpacked[r], words), group.shift, total))
                i = m * together + r
                k.store(sums, fma(dot, group.scale * scale, sums[i]), i)

    with k.launch((work.rows // together,), knobs.threads) as (workgroup, thread):
        row = k.bind(workgroup * together)
        for i in range(work.n * together):
            k.store(sums, f32(0.0), i)
        with k.strided(thread, blocks // groups_read) as turn:
            first = k.bind(turn * groups_read)
            rows = [w.read(row + r, first) for r in range(together)]
            for i in range(groups_read):
                multiply(k.bind(first + i), [groups[i] for groups in rows])
        _reduced(k, thread, sums, work.n * together, out, row, together)


def _float_few(k: Builder, work: Linear, knobs: LinearKnobs) -> None:
    """Weights in f16 or f32, row by row; more than a few rows of the activation are several workgroups."""
    form = Packing.parse(work.packing)
    if form.rows != 1 or work.columns % 8:
        raise AssertionError(f"packing {work.packing} of {work.columns} columns is not a GPU's")
    n, together = knobs.tile, knobs.rows
    x = k.quads("x", work.n * work.columns * 4, "float32")
    half = form.kind == "f16"
    w = k.quads("w", work.rows * work.columns * (2 if half else 4), "uint32" if half else "float32")
    out = Output(k, work)
    eights = work.columns // 8
    sums = k.local(n * together)
    with k.launch((work.rows // together, work.n // n), knobs.threads) as (group, part, thread):
        row, first = k.bind(group * together), k.bind(part * n)
        for i in range(n * together):
            k.store(sums, f32(0.0), i)
        with k.strided(thread, eights) as c:
            weights = []
            for r in range(together):
                if half:
                    quad = k.bind(w[(row + r) * eights + c])
                    weights.append([k.bind(v) for i in range(4) for v in k.halves(lane(quad, i))])
                else:
                    pair = [k.bind(w[((row + r) * eights + c) * 2 + u]) for u in range(2)]
                    weights.append([lane(q, i) for q in pair for i in range(4)])
            for m in range(n):
                pair = [k.bind(x[((first + m) * eights + c) * 2 + u]) for u in range(2)]
                values = [lane(q, i) for q in pair for i in range(4)]
                for r in range(together):
                    total = sums[m * together + r]
                    for weight, value in zip(weights[r], values, strict=True):
                        total = fma(weight, value, total)
                    k.store(sums, total, m * together + r)
        shared = k.reduction(min(n * together, 4), k.threads)
        for start in range(0, n * together, 4):
            chosen = list(range(start, min(start + 4, n * together)))
            totals = k.reduce(thread, [sums[i] for i in chosen], shared)
            for i, total in zip(chosen, totals, strict=True):
                m, r = divmod(i, together)
                with k.when(tirx.EQ(thread, i32(i % k.threads))):
                    out.write(first + m, row + r, total)
