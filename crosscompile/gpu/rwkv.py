"""RWKV-7's kernels on a GPU (crosscompile/kernels/rwkv.py says what they compute)."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from crosscompile.arithmetic import Expr, exp, fma, sigmoid
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, quotient, threads_for
from crosscompile.gpu.recurrent import Scan, Threads, declare_result
from crosscompile.gpu.rows import Output, each_group, read_group
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import kernel, kernel_maker
from crosscompile.kernels.rows import Form
from crosscompile.kernels.rwkv import DECAY, KEY, LEARNED, REMOVED, SLOWEST, SQUASHED, KeyHeads
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

HALF = GROUP // 2
"""Columns of a head are multiples of it."""


def token_shift(name: str, gpu: Gpu, n: int, channels: int, row: int) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x = k.buffer("x", (n, channels), "float32")
        scan = Scan.parameters(k, n, channels, 2)
        y = k.buffer("y", (n, channels), "float32")

        def step(m: Expr, c: Expr, place: Callable[[int], Expr], fresh: Expr) -> Expr:
            now = k.bind(x[m, c])
            before = k.bind(tirx.Select(fresh, f32(0.0), scan.state[place(row)]))
            scan.put(now, place(row))
            return before - now

        scan.channelwise(y, step)

    return gpu_kernel(name, gpu, body)


def shifted(name: str, gpu: Gpu, n: int, columns: int, flat: bool, form: Form | None) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x, difference = (k.quads(each, n * columns * 4, "float32") for each in ("x", "difference"))
        share = k.quads("share", columns * 4, "float32")
        out = Output(k, n, columns, form)
        blocks = columns // GROUP

        def group(m: Expr, b: Expr) -> list[Expr]:
            at = k.bind(m * blocks + b)
            parts = zip(*(read_group(k, *each) for each in ((x, at), (difference, at), (share, b))), strict=True)
            return [fma(moved, part, own) for own, moved, part in parts]

        each_group(k, n, columns, out, group)

    return gpu_kernel(name, gpu, body)


def squash(name: str, gpu: Gpu, n: int, columns: int, count: int, kind: str) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        y = k.buffer("y", (n, count), "float32")
        with k.each(n, count) as (m, c):
            k.store(y, SQUASHED[kind](x[m, c]), m, c)

    return gpu_kernel(name, gpu, body)


def value_blend(name: str, gpu: Gpu, n: int, columns: int) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        v, first, gate = (k.buffer(each, (n, columns), "float32") for each in ("v", "first", "gate"))
        y = k.buffer("y", (n, columns), "float32")
        with k.each(n, columns) as (m, c):
            own = k.bind(v[m, c])
            k.store(y, fma(first[m, c] - own, sigmoid(gate[m, c]), own), m, c)

    return gpu_kernel(name, gpu, body)


def rwkv_keys(name: str, gpu: Gpu, n: int, shape: KeyHeads) -> tirx.PrimFunc:
    """A workgroup for each head of a row; alone, each thread sums the whole head."""
    channels, dim = shape.channels, shape.dim

    def body(k: Builder) -> None:
        key, w, a = (k.buffer(each, (n, channels), "float32") for each in ("k", "w", "a"))
        removed, learned = (k.buffer(each, (channels,), "float32") for each in ("removed", "learned"))
        y = k.buffer("y", (n, 4 * channels), "float32")
        alone = k.schedule.alone
        threads = min(8, k.gpu.invocations) if alone else threads_for(dim, min(256, k.gpu.invocations))
        shared, square = None if alone else k.reduction(1, threads), k.local(1)
        with k.launch((shape.heads, n), threads) as (head, m, thread):
            begin = k.bind(head * i32(dim))
            k.store(square, f32(0.0), 0)

            def add(d: Expr) -> None:
                v = k.bind(key[m, begin + d] * removed[begin + d])
                k.store(square, fma(v, v, square[0]), 0)

            if alone:
                with k.loop(0, dim) as d:
                    add(d)
            else:
                with k.strided(thread, dim) as d:
                    add(d)
            sum_ = square[0] if alone else k.reduce(thread, [square[0]], shared)[0]
            scale = k.bind(f32(1.0) / tirx.Max(tirx.sqrt(sum_), f32(1e-12)))
            with k.strided(thread, dim) as d:
                c = k.bind(begin + d)
                own, rate = k.bind(key[m, c]), k.bind(sigmoid(a[m, c]))
                unit = k.bind((own * removed[c]) * scale)
                made = {
                    DECAY: exp(sigmoid(w[m, c]) * f32(SLOWEST)),
                    REMOVED: unit,
                    LEARNED: unit * rate,
                    KEY: own * fma(rate - f32(1.0), learned[c], f32(1.0)),
                }
                for place, value in made.items():
                    k.store(y, value, m, c + i32(place * channels))

    return gpu_kernel(name, gpu, body)


def delta_scan(name: str, gpu: Gpu, n: int, shape: KeyHeads) -> tirx.PrimFunc:
    """A thread has some keys of a value's row of the matrix; what it read of them stays in registers for the update."""
    channels, dim = shape.channels, shape.dim

    def body(k: Builder) -> None:
        r = k.buffer("r", (n, channels), "float32")
        keys = k.buffer("keys", (n, 4 * channels), "float32")
        v = k.buffer("v", (n, channels), "float32")
        scan = Scan.parameters(k, n, channels, dim)
        y = k.buffer("y", (n, channels), "float32")
        total, kept = k.local(1), k.local(dim // scan.parts)

        def rows(t: Threads) -> None:
            c = k.bind(t.channel)
            begin = k.bind(quotient(c, dim) * i32(dim))
            with k.loop(0, n) as m:
                real = k.bind(scan.positions[m] >= i32(0))
                start = k.bind(scan.start(m, t.group))
                k.store(total, f32(0.0), 0)
                with k.when(real):
                    fresh = k.bind(tirx.EQ(scan.positions[m], i32(0)))
                    with k.loop(0, t.mine) as i:
                        j = k.bind(t.number(i))
                        k.store(kept, tirx.Select(fresh, f32(0.0), scan.state[t.place(start, j)]), i)
                        k.store(total, fma(kept[i], keys[m, begin + j + i32(REMOVED * channels)], total[0]), 0)
                taken = k.bind(f32(0.0) - t.total(total[0], i32(0)))
                k.store(total, f32(0.0), 0)
                with k.when(real):
                    value = k.bind(v[m, c])
                    with k.loop(0, t.mine) as i:
                        j = k.bind(t.number(i))
                        decay, learned, key = (
                            keys[m, begin + j + i32(place * channels)] for place in (DECAY, LEARNED, KEY)
                        )
                        without = k.bind(fma(taken, learned, kept[i] * decay))
                        state = k.bind(fma(value, key, without))
                        scan.put(state, t.place(start, j))
                        k.store(total, fma(state, r[m, begin + j], total[0]), 0)
                t.write(y, t.total(total[0], i32(1)), m, c)

        scan.shared_out(rows)

    return gpu_kernel(name, gpu, body)


# ---- what leaves a layer, in two kernels: a GPU binds few buffers


@kernel_maker
def head_bonus(n: int, shape: KeyHeads) -> tirx.PrimFunc:
    """(r (n, channels), keys (n, 4 · channels), bonus (heads, dim)) -> Σ r · k · bonus of each head, (n, heads) f32."""

    def body(k: Declaration) -> None:
        k.buffer("r", (n, shape.channels), "float32")
        k.buffer("keys", (n, 4 * shape.channels), "float32")
        k.buffer("bonus", (shape.heads, shape.dim), "float32")
        declare_result(k, n, shape.heads, None)

    return kernel("head_bonus", body)


@kernel_maker
def head_out(n: int, shape: KeyHeads, epsilon: float, form: Form | None) -> tirx.PrimFunc:
    """(y, asked (n, heads), v, gate, weight, bias) -> (norm(y) · weight + bias + asked · v) · gate, or quantized."""

    def body(k: Declaration) -> None:
        rows, flat = (n, shape.channels), (shape.channels,)
        for name, dims in (("x", rows), ("asked", (n, shape.heads)), ("v", rows), ("gate", rows)):
            k.buffer(name, dims, "float32")
        for name in ("weight", "bias"):
            k.buffer(name, flat, "float32")
        declare_result(k, n, shape.channels, form)

    return kernel("head_out", body)


def bonus_kernel(name: str, gpu: Gpu, n: int, shape: KeyHeads) -> tirx.PrimFunc:
    """The GPU's head_bonus: a thread for each head."""

    def body(k: Builder) -> None:
        r = k.buffer("r", (n, shape.channels), "float32")
        keys = k.buffer("keys", (n, 4 * shape.channels), "float32")
        bonus = k.buffer("bonus", (shape.heads, shape.dim), "float32")
        y = k.buffer("y", (n, shape.heads), "float32")
        total = k.local(1)
        with k.each(n, shape.heads) as (m, head):
            k.store(total, f32(0.0), 0)
            with k.loop(0, shape.dim) as d:
                c = k.bind(head * i32(shape.dim) + d)
                key = keys[m, c + i32(KEY * shape.channels)]
                k.store(total, fma(r[m, c] * key, bonus[head, d], total[0]), 0)
            k.store(y, total[0], m, head)

    return gpu_kernel(name, gpu, body)


def out_kernel(name: str, gpu: Gpu, n: int, shape: KeyHeads, epsilon: float, form: Form | None) -> tirx.PrimFunc:
    """The GPU's head_out: each thread sums the heads that its columns are in, which saves a barrier."""
    channels, dim = shape.channels, shape.dim

    def body(k: Builder) -> None:
        x = k.quads("x", n * channels * 4, "float32")
        asked = k.buffer("asked", (n, shape.heads), "float32")
        v, gate = (k.quads(each, n * channels * 4, "float32") for each in ("v", "gate"))
        weight, bias = (k.quads(each, channels * 4, "float32") for each in ("weight", "bias"))
        out = Output(k, n, channels, form)
        blocks, sums = channels // GROUP, k.local(1)

        def over(m: Expr, head: Expr, term: Callable[[Expr, Expr], Expr]) -> Expr:
            """Σ of a head's elements, folded by `term`."""
            k.store(sums, f32(0.0), 0)
            with k.loop(0, dim // 4) as q:
                quad = k.bind(x[m * i32(channels // 4) + head * i32(dim // 4) + q])
                sum_ = sums[0]
                for i in range(4):
                    sum_ = term(tirx.Shuffle([quad], [i]), sum_)
                k.store(sums, sum_, 0)
            return k.bind(sums[0])

        def about(m: Expr, head: Expr) -> tuple[Expr, Expr, Expr]:
            """(mean, 1 / deviation, what is asked of v)."""
            mean = k.bind(over(m, head, lambda value, sum_: sum_ + value) / f32(float(dim)))
            square = over(m, head, lambda value, sum_: fma(value - mean, value - mean, sum_))
            factor = k.bind(f32(1.0) / tirx.sqrt(square / f32(float(dim)) + f32(epsilon)))
            return mean, factor, k.bind(asked[m, head])

        def group(m: Expr, b: Expr) -> list[Expr]:
            heads = [k.bind(quotient(b * i32(GROUP) + i32(half), dim)) for half in (0, HALF)]
            found = [about(m, heads[0])]
            found.append(found[0] if dim % GROUP == 0 else about(m, heads[1]))
            at = k.bind(m * blocks + b)
            places = ((x, at), (v, at), (gate, at), (weight, b), (bias, b))
            made = []
            for i, (value, own, open_, w, c) in enumerate(zip(*(read_group(k, *p) for p in places), strict=True)):
                mean, factor, much = found[i // HALF]
                made.append(fma(much, own, fma((value - mean) * factor, w, c)) * open_)
            return made

        each_group(k, n, channels, out, group)

    return gpu_kernel(name, gpu, body)
