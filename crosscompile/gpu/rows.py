"""Kernels over rows on a GPU: norms, gates, quantization of activations; a thread takes a group of 32 columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma, integer_product, magnitude
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane, packed, remainder, threads_for
from crosscompile.kernels.rows import ACTIVATIONS, Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

Group = Callable[[Expr, Expr], list[Expr]]
"""(row, group) -> the 32 values of a group."""


class Output:
    """Rows as floats, or quantized as `form` says."""

    def __init__(self, k: Builder, n: int, columns: int, form: Form | None) -> None:
        self.k, self.blocks, self.form = k, columns // GROUP, form
        if form is None:
            self.y = k.quads("y", n * columns * 4, "float32")
            return
        if form.sums or form.dtype != "int8":
            raise AssertionError("activations of a GPU are int8 without sums")
        self.q = k.quads("q", n * columns)
        self.scale = k.buffer("scale", (n, self.blocks), "float32")

    def write(self, m: Expr, b: Expr, values: list[Expr]) -> None:
        k = self.k
        if self.form is None:
            for i in range(0, GROUP, 4):
                k.store(self.y, _together(values[i : i + 4]), (m * self.blocks + b) * (GROUP // 4) + i // 4)
            return
        largest = magnitude(values[0])
        for value in values[1:]:
            largest = tirx.Max(largest, magnitude(value))
        largest = k.bind(largest)
        positive = largest > f32(0.0)
        inverse = k.bind(tirx.Select(positive, f32(127.0) / largest, f32(0.0)))
        k.store(self.scale, largest * f32(self.form.shrink / 127.0), m, b)
        words = []
        for i in range(0, GROUP, 4):
            words.append(k.bind(packed([k.bind(integer_product(v, inverse)) for v in values[i : i + 4]])))
        for half in range(2):
            k.store(self.q, _together(words[half * 4 : half * 4 + 4]), (m * self.blocks + b) * 2 + half)


def _together(values: list[Expr]) -> Expr:
    return tirx.Shuffle(values, list(range(len(values))))


def read_group(k: Builder, x: Any, at: Expr) -> list[Expr]:
    """32 values from position 32 · at of a buffer of float32x4."""
    quads = [k.bind(x[at * (GROUP // 4) + i]) for i in range(GROUP // 4)]
    return [lane(quad, i) for quad in quads for i in range(4)]


def each_group(k: Builder, n: int, columns: int, out: Output, group: Group) -> None:
    """A thread for every group of every row."""
    with k.each(n, columns // GROUP) as (m, b):
        out.write(m, b, [k.bind(v) for v in group(m, b)])


def act_quant(name: str, gpu: Gpu, n: int, columns: int, form: Form) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x = k.quads("x", n * columns * 4, "float32")
        out = Output(k, n, columns, form)
        each_group(k, n, columns, out, lambda m, b: read_group(k, x, m * (columns // GROUP) + b))

    return gpu_kernel(name, gpu, body)


def activated(name: str, gpu: Gpu, n: int, columns: int, activation: str, form: Form | None) -> tirx.PrimFunc:
    act = ACTIVATIONS[activation]

    def body(k: Builder) -> None:
        x = k.quads("x", n * columns * 4, "float32")
        out = Output(k, n, columns, form)
        blocks = columns // GROUP
        each_group(k, n, columns, out, lambda m, b: [act(v) for v in read_group(k, x, m * blocks + b)])

    return gpu_kernel(name, gpu, body)


def gated(name: str, gpu: Gpu, n: int, columns: int, activation: str, form: Form | None) -> tirx.PrimFunc:
    act = ACTIVATIONS[activation]

    def body(k: Builder) -> None:
        x = k.quads("gate_up", 2 * n * columns * 4, "float32")
        out = Output(k, n, columns, form)
        blocks = columns // GROUP

        def group(m: Expr, b: Expr) -> list[Expr]:
            gate, up = read_group(k, x, m * (2 * blocks) + b), read_group(k, x, m * (2 * blocks) + b + blocks)
            return [act(g) * u for g, u in zip(gate, up, strict=True)]

        each_group(k, n, columns, out, group)

    return gpu_kernel(name, gpu, body)


def _row_threads(k: Builder, columns: int) -> int:
    return threads_for(columns // GROUP, min(256, k.gpu.invocations))


def rms_norm(name: str, gpu: Gpu, n: int, columns: int, epsilon: float, form: Form | None) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x = k.quads("x", n * columns * 4, "float32")
        weight = k.quads("weight", columns * 4, "float32")
        out = Output(k, n, columns, form)
        blocks, threads = columns // GROUP, _row_threads(k, columns)
        shared, square = k.reduction(1, threads), k.local(1)

        def whole_row(k: Builder, m: Expr, thread: Expr) -> None:
            """A thread for each group: the row is read once, and the weights while the sum is on its way."""
            b = k.bind(tirx.Min(thread, i32(blocks - 1)))
            values, weights = ([k.bind(v) for v in read_group(k, *each)] for each in ((x, m * blocks + b), (weight, b)))
            total = f32(0.0)
            for v in values:
                total = fma(v, v, total)
            (sum_,) = k.reduce(thread, [tirx.Select(thread < i32(blocks), total, f32(0.0))], shared)
            factor = k.bind(f32(1.0) / tirx.sqrt(sum_ / f32(float(columns)) + f32(epsilon)))
            with k.when(thread < i32(blocks)):
                out.write(m, b, [k.bind((v * factor) * w) for v, w in zip(values, weights, strict=True)])

        with k.launch((n,), threads) as (m, thread):
            if blocks <= threads:
                whole_row(k, m, thread)
                return
            k.store(square, f32(0.0), 0)
            with k.strided(thread, blocks) as b:
                total = square[0]
                for v in read_group(k, x, m * blocks + b):
                    total = fma(v, v, total)
                k.store(square, total, 0)
            (sum_,) = k.reduce(thread, [square[0]], shared)
            factor = k.bind(f32(1.0) / tirx.sqrt(sum_ / f32(float(columns)) + f32(epsilon)))
            with k.strided(thread, blocks) as b:
                values, weights = read_group(k, x, m * blocks + b), read_group(k, weight, b)
                out.write(m, b, [k.bind((v * factor) * w) for v, w in zip(values, weights, strict=True)])

    return gpu_kernel(name, gpu, body)


def layer_norm(name: str, gpu: Gpu, n: int, columns: int, epsilon: float, form: Form | None) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x = k.quads("x", n * columns * 4, "float32")
        weight, bias = (k.quads(each, columns * 4, "float32") for each in ("weight", "bias"))
        out = Output(k, n, columns, form)
        blocks, threads = columns // GROUP, _row_threads(k, columns)
        shared, total = k.reduction(1, threads), k.local(1)
        with k.launch((n,), threads) as (m, thread):

            def over_row(term: Callable[[Expr, Expr], Expr]) -> Expr:
                k.store(total, f32(0.0), 0)
                with k.strided(thread, blocks) as b:
                    sum_ = total[0]
                    for v in read_group(k, x, m * blocks + b):
                        sum_ = term(v, sum_)
                    k.store(total, sum_, 0)
                return k.reduce(thread, [total[0]], shared)[0]

            mean = k.bind(over_row(lambda v, sum_: sum_ + v) / f32(float(columns)))
            square = over_row(lambda v, sum_: fma(v - mean, v - mean, sum_))
            factor = k.bind(f32(1.0) / tirx.sqrt(square / f32(float(columns)) + f32(epsilon)))
            with k.strided(thread, blocks) as b:
                parts = zip(
                    *(read_group(k, *each) for each in ((x, m * blocks + b), (weight, b), (bias, b))), strict=True
                )
                out.write(m, b, [k.bind(fma((v - mean) * factor, w, c)) for v, w, c in parts])

    return gpu_kernel(name, gpu, body)


def gather(name: str, gpu: Gpu, n: int, source_rows: int, columns: int) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        quads, threads = columns // 4, min(64, k.gpu.invocations)
        x = k.quads("x", source_rows * columns * 4, "float32")
        rows = k.buffer("rows", (n,), "int32")
        y = k.quads("y", n * columns * 4, "float32")
        with k.launch((-(-quads // threads), n), threads) as (part, m, thread):
            c = k.bind(part * threads + thread)
            with k.when(c < i32(quads)):
                row = k.bind(tirx.Max(rows[m], i32(0)))
                k.store(y, x[row * quads + c], m * quads + c)

    return gpu_kernel(name, gpu, body)


def added(name: str, gpu: Gpu, n: int, columns: int, bias: bool) -> tirx.PrimFunc:
    """The residual connection, or a bias, where no linear layer takes it in."""

    def body(k: Builder) -> None:
        threads = min(64, k.gpu.invocations)
        a = k.buffer("a", (n * columns,), "float32")
        b = k.buffer("b", (columns if bias else n * columns,), "float32")
        y = k.buffer("y", (n * columns,), "float32")
        with k.launch((-(-n * columns // threads),), threads) as (part, thread):
            at = k.bind(part * threads + thread)
            with k.when(at < i32(n * columns)):
                k.store(y, a[at] + (b[remainder(at, columns)] if bias else b[at]), at)

    return gpu_kernel(name, gpu, body)
