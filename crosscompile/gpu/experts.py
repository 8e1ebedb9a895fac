"""Mixtures of experts on a GPU: which experts a row goes to, linear layers of those alone, and their weighted sum.

What `route` finds stays on the device: a workgroup reads its expert's number, and then that expert's weights and no
others, so that a token is one submission. Rows without experts, at position -1, read none and give zeros.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, exp, fma, sigmoid
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane, quotient, threads_for
from crosscompile.gpu.experts_knobs import Experts, default_experts
from crosscompile.gpu.knobs import LinearKnobs
from crosscompile.gpu.linear import group_dot, group_sum
from crosscompile.gpu.linear_alone import floats_of
from crosscompile.gpu.weights import Weights
from crosscompile.kernels.attention import LOWEST
from crosscompile.packing import Packing
from crosscompile.spirv.capabilities import Gpu


def route(name: str, gpu: Gpu, n: int, padded: int, total: int, used: int, normalized: bool) -> tirx.PrimFunc | None:
    """A workgroup for each row, a thread for each expert; None where one thread for each row is quicker."""
    if total > gpu.invocations:
        return None
    threads = threads_for(total, gpu.invocations)

    def body(k: Builder) -> None:
        logits = k.buffer("logits", (n, padded), "float32")
        positions = k.buffer("positions", (n,), "int32")
        ids = k.buffer("ids", (n * used,), "int32")
        weights = k.buffer("weights", (n * used,), "float32")
        shared, left, sums, shares = k.reduction(1, threads), k.local(1), k.local(1), k.local(used)
        with k.launch((n,), threads) as (m, thread):
            inside = k.bind(thread < i32(total))
            mine = k.bind(tirx.Select(inside, logits[m, tirx.Min(thread, i32(total - 1))], f32(LOWEST)))
            k.store(left, mine, 0)
            number = k.bind(tirx.Cast("float32", thread))
            (highest,) = k.reduce(thread, [mine], shared, largest=True)
            k.store(sums, f32(0.0), 0)
            if not normalized:
                each = tirx.Select(inside, exp(mine - highest), f32(0.0))
                k.store(sums, k.reduce(thread, [k.bind(each)], shared)[0], 0)
            real = k.bind(positions[m] >= i32(0))
            for j in range(used):
                best = highest if j == 0 else k.reduce(thread, [left[0]], shared, largest=True)[0]
                first = tirx.Select(tirx.EQ(left[0], best), f32(0.0) - number, f32(LOWEST))
                (found,) = k.reduce(thread, [k.bind(first)], shared, largest=True)
                at = k.bind(tirx.Cast("int32", f32(0.0) - found))
                with k.when(tirx.EQ(thread, at)):
                    k.store(left, f32(LOWEST), 0)
                k.store(shares, exp(best - highest), j)
                if normalized:
                    k.store(sums, sums[0] + shares[j], 0)
                with k.when(tirx.EQ(thread, i32(0))):
                    k.store(ids, tirx.Select(real, at, i32(-1)), m * i32(used) + i32(j))
            with k.when(tirx.EQ(thread, i32(0))):
                for j in range(used):
                    k.store(weights, tirx.Select(real, shares[j] / sums[0], f32(0.0)), m * i32(used) + i32(j))

    return None if Builder(gpu).schedule.alone else gpu_kernel(name, gpu, body)


def expert_kernel(name: str, gpu: Gpu, work: Experts, knobs: LinearKnobs | None = None) -> tirx.PrimFunc:
    """knobs: one of the candidates (experts_knobs.py); the default where nothing was tuned."""
    quantized = _quantized_alone if Builder(gpu).schedule.alone else _quantized
    writer = quantized if Packing.parse(work.packing).quantized else _floats
    chosen = knobs or default_experts(work, gpu)
    return gpu_kernel(name, gpu, lambda k: writer(k, work, chosen))


def _quantized_buffers(k: Builder, work: Experts) -> tuple[Any, Any, Any, Weights, Any]:
    """(activation in units of 16 bytes, scales of it, ids, weights, y), as declared for planning."""
    a = k.quads("a", work.sources * work.columns)
    scale_a = k.buffer("scale_a", (work.sources, work.blocks), "float32")
    ids = _ids(k, work)
    w = Weights(k, work.held, work.columns, work.packing)
    return a, scale_a, ids, w, k.buffer("y", (work.rows, work.out), "float32")


def _float_buffers(k: Builder, work: Experts, half: bool) -> tuple[Any, Any, Any, Any]:
    """(activation, ids, weights, y), the first and third in units of 16 bytes. half: weights are float16."""
    a = k.quads("a", work.sources * work.columns * 4, "float32")
    ids = _ids(k, work)
    w = k.quads("w", work.held * work.columns * (2 if half else 4), "uint32" if half else "float32")
    return a, ids, w, k.buffer("y", (work.rows, work.out), "float32")


def _ids(k: Builder, work: Experts) -> Any:
    ids = k.buffer("ids", (work.rows,), "int32")
    k.buffer("tokens", (work.n,), "int32")
    return ids


class _Strip:
    """Some rows of the weight of the expert that a row goes to, and empty sums for them.

    first   of an expert's rows; weight: where that is in the tensor; source: row of the activation
    held    whether there is something to compute: an expert, whose rows the tensor has
    """

    def __init__(self, k: Builder, work: Experts, ids: Any, strip: Expr, row: Expr, sums: Any, together: int) -> None:
        for r in range(together):
            k.store(sums, f32(0.0), r)
        self.k, self.work, self.row = k, work, row
        self.first, expert = k.bind(strip * together), k.bind(ids[row])
        self._written = None
        if not work.is_whole:  # zeros of rows of no expert are written where the first expert's are computed
            place = k.bind(tirx.Max(expert, i32(0)) * work.out - work.first)
            self.first = k.bind(tirx.Max(i32(0) - place, i32(0)) + self.first)
            self.weight = k.bind(place + self.first)
            self._written = tirx.And(self.weight < i32(work.held), self.first < i32(work.out))
        else:
            self.weight = k.bind(expert * work.out + self.first - work.first)
        self.source = k.bind(quotient(row, work.each))
        self.held = expert >= i32(0)
        if self._written is not None:
            self.held = tirx.And(self.held, self._written)

    def write(self, y: Any, r: int, value: Expr) -> None:
        """The result of row r of the strip."""
        with nullcontext() if self._written is None else self.k.when(self._written):
            self.k.store(y, value, self.row, self.first + i32(r))

    def write_shared(self, thread: Expr, sums: Any, together: int, y: Any) -> None:
        """Sums over the workgroup."""
        k = self.k
        totals = k.reduce(thread, [sums[r] for r in range(together)], k.reduction(together, k.threads))
        for r, total in enumerate(totals):
            with k.when(tirx.EQ(thread, i32(r % k.threads))):
                self.write(y, r, total)


def _quantized(k: Builder, work: Experts, knobs: LinearKnobs) -> None:
    """A workgroup for some rows of one expert's weights; its threads share the columns."""
    a, scale_a, ids, w, y = _quantized_buffers(k, work)
    blocks, together, threads = work.blocks, knobs.rows, knobs.threads
    sums = k.local(together)
    with k.launch((work.reach // together, work.rows), threads) as (at, row, thread):
        strip = _Strip(k, work, ids, at, row, sums, together)
        with k.when(strip.held), k.strided(thread, blocks) as b:
            source = strip.source
            words = [lane(k.bind(a[(source * blocks + b) * 2 + half]), i) for half in range(2) for i in range(4)]
            total = k.bind(group_sum(k, words)) if w.summed else None
            scale = k.bind(scale_a[source, b])
            for r in range(together):
                (group,) = w.read(k.bind(strip.weight + i32(r)), b)
                product = tirx.Cast("float32", w.product(group_dot(k, group.factors(), words), group.shift, total))
                k.store(sums, fma(product, group.scale * scale, sums[r]), r)
        strip.write_shared(thread, sums, together, y)


def _quantized_alone(k: Builder, work: Experts, knobs: LinearKnobs) -> None:
    """A thread for some rows of one expert's weights, in floats (crosscompile/gpu/linear_alone.py)."""
    a, scale_a, ids, w, y = _quantized_buffers(k, work)
    blocks, together, threads = work.blocks, knobs.rows, knobs.threads
    strips = work.reach // together
    sums = k.local(together)
    with k.launch((-(-strips // threads), work.rows), threads) as (workgroup, row, thread):
        at = k.bind(workgroup * threads + thread)
        strip = _Strip(k, work, ids, at, row, sums, together)
        with k.when(at < i32(strips)):
            with k.when(strip.held), k.loop(0, blocks) as b:
                values = floats_of(k, [k.bind(a[(strip.source * blocks + b) * 2 + half]) for half in range(2)])
                total = k.bind(sum(values[1:], values[0])) if w.shifted else None
                scale = k.bind(scale_a[strip.source, b] * f32(float(w.times)))
                for r in range(together):
                    (group,) = w.read(k.bind(strip.weight + i32(r)), b)
                    dot = f32(0.0)
                    for weight, value in zip(group.floats(), values, strict=True):
                        dot = fma(weight, value, dot)
                    if total is not None:
                        dot = fma(dot, f32(float(w.step)), tirx.Cast("float32", group.shift) * total)
                    k.store(sums, fma(dot, group.scale * scale, sums[r]), r)
            for r in range(together):
                strip.write(y, r, sums[r])


def _floats(k: Builder, work: Experts, knobs: LinearKnobs) -> None:
    """As `_quantized`, of weights in f16 or f32."""
    half, eights = Packing.parse(work.packing).kind == "f16", work.columns // 8
    a, ids, w, y = _float_buffers(k, work, half)
    units, together, threads = 1 if half else 2, knobs.rows, knobs.threads
    sums = k.local(together)
    with k.launch((work.reach // together, work.rows), threads) as (at, row, thread):
        strip = _Strip(k, work, ids, at, row, sums, together)
        with k.when(strip.held), k.strided(thread, eights) as c:
            pair = [k.bind(a[(strip.source * eights + c) * 2 + u]) for u in range(2)]
            values = [lane(quad, i) for quad in pair for i in range(4)]
            for r in range(together):
                place = k.bind((strip.weight + i32(r)) * i32(eights) + c)
                quads = [k.bind(w[place * units + u]) for u in range(units)]
                lanes = [lane(quad, i) for quad in quads for i in range(4)]
                weights = [k.bind(v) for word in lanes for v in k.halves(word)] if half else lanes
                total = sums[r]
                for weight, value in zip(weights, values, strict=True):
                    total = fma(weight, value, total)
                k.store(sums, total, r)
        strip.write_shared(thread, sums, together, y)


def combine(name: str, gpu: Gpu, n: int, used: int, columns: int, gate_columns: int) -> tirx.PrimFunc:
    """A thread for four columns."""

    def body(k: Builder) -> None:
        quads, threads = columns // 4, min(64, k.gpu.invocations)
        y = k.quads("y", n * used * columns * 4, "float32")
        weights = k.buffer("weights", (n * used,), "float32")
        if gate_columns:
            shared = k.quads("shared", n * columns * 4, "float32")
            gate = k.buffer("gate", (n, gate_columns), "float32")
        out = k.quads("out", n * columns * 4, "float32")
        with k.launch((-(-quads // threads), n), threads) as (part, m, thread):
            c = k.bind(part * threads + thread)
            with k.when(c < i32(quads)):
                sums = [f32(0.0)] * 4
                if gate_columns:
                    open_, quad = k.bind(sigmoid(gate[m, 0])), k.bind(shared[m * quads + c])
                    sums = [k.bind(lane(quad, i) * open_) for i in range(4)]
                for j in range(used):
                    row = k.bind(m * used + j)
                    weight, quad = k.bind(weights[row]), k.bind(y[row * quads + c])
                    sums = [k.bind(fma(weight, lane(quad, i), sums[i])) for i in range(4)]
                k.store(out, tirx.Shuffle(sums, [0, 1, 2, 3]), m * quads + c)

    return gpu_kernel(name, gpu, body)
