"""RWKV-7's kernels (arXiv:2503.14456): a token's difference from the one before, and a state that a delta rule changes.

Of a head of D channels, a session keeps a matrix S (D values, D keys), which a token changes to

    S ← S · diag(w) - (S κ) (κ a)ᵀ + v kᵀ        and reads as        y = S r

w: what decays; κ: a key of length 1, whose value is taken out as far as a says; k, v: what is put in; r: what is asked.
Keys' columns lie one after another, sixteen values a row; crosscompile/kernels/recurrent.py says how rows pass a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, constant, exp, fma, sigmoid, tanh, tree_sum
from crosscompile.kernels.build import Builder, kernel, kernel_maker, span
from crosscompile.kernels.recurrent import Scan
from crosscompile.kernels.rows import Form, declare_rows, write_row

SLOWEST = -0.6065306597126334
"""-e^-½: a channel keeps at least e to the power of this from one token to the next."""

DECAY, REMOVED, LEARNED, KEY = range(4)
"""Columns of what `rwkv_keys` makes, in steps of all channels: w, κ, κ · a, k."""


@dataclass(frozen=True)
class KeyHeads:
    """heads of dim channels, dim a multiple of 16."""

    heads: int
    dim: int

    @property
    def channels(self) -> int:
        return self.heads * self.dim


@kernel_maker
def token_shift(n: int, channels: int, row: int) -> tirx.PrimFunc:
    """(x (n, channels) f32, positions, slots, state) -> the row before minus x, (n, channels) f32.

    The state, in place, is the last row; it is row `row` of two that a layer keeps.
    """

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, channels), "float32")
        scan = Scan.parameters(k, n, channels, 2)
        y = k.buffer("y", (n, channels), "float32")
        with k.shared(channels // LANES) as c:

            def step(m: Expr, slot: Expr, fresh: Expr) -> Expr:
                now = k.bind(x[m, span(c * LANES)])
                before = k.bind(scan.was(slot, c, row, fresh))
                scan.put(now, slot, c, row)
                return before - now

            scan.rows(y, c, step)

    return kernel(f"token_shift{row}", body)


@kernel_maker
def shifted(n: int, columns: int, flat: bool, form: Form | None) -> tirx.PrimFunc:
    """(x (n, columns), difference likewise, share), f32 -> x + difference · share, or q, scale[, sum].

    share: (columns,) where it is flat, else (1, 1, columns).
    """

    def body(k: Builder) -> None:
        x, difference = (k.buffer(name, (n, columns), "float32") for name in ("x", "difference"))
        share = k.buffer("share", (columns,) if flat else (1, 1, columns), "float32")
        out = declare_rows(k, n, columns, form)

        def value(m: Expr, c: Expr) -> Expr:
            return fma(difference[m, span(c)], share[span(c)] if flat else share[0, 0, span(c)], x[m, span(c)])

        with k.shared(n) as m:
            write_row(k, out, m, columns, value, form)

    return kernel("shifted_quant" if form else "shifted", body)


SQUASHED = {"tanh": tanh, "sigmoid": sigmoid}


@kernel_maker
def squash(n: int, columns: int, count: int, kind: str) -> tirx.PrimFunc:
    """(x (n, columns) f32) -> tanh or sigmoid of the first columns, (n, count) f32; others are padding."""
    lanes = gcd(count, LANES)

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        y = k.buffer("y", (n, count), "float32")
        with k.shared(n) as m, k.loop(0, count // lanes) as c:
            k.store(y, SQUASHED[kind](x[m, span(c * lanes, lanes)]), m, span(c * lanes, lanes))

    return kernel(kind, body)


@kernel_maker
def value_blend(n: int, columns: int) -> tirx.PrimFunc:
    """(v, first, gate: (n, columns) f32) -> v + (first - v) · sigmoid(gate): first are the first layer's values."""

    def body(k: Builder) -> None:
        v, first, gate = (k.buffer(name, (n, columns), "float32") for name in ("v", "first", "gate"))
        y = k.buffer("y", (n, columns), "float32")
        with k.shared(n) as m, k.loop(0, columns // LANES) as c:
            at = span(c * LANES)
            own = k.bind(v[m, at])
            k.store(y, fma(first[m, at] - own, sigmoid(gate[m, at]), own), m, at)

    return kernel("value_blend", body)


@kernel_maker
def rwkv_keys(n: int, shape: KeyHeads) -> tirx.PrimFunc:
    """(k, w, a: (n, channels), what they are removed by and learned with: (channels,)), f32 -> (n, 4 · channels) f32.

    w and a come before their sigmoids. What is made: e^(SLOWEST · sigmoid w); κ, k times the first vector, each head of
    length 1; κ · sigmoid a; k · (1 + (sigmoid a - 1) · the second vector).
    """
    channels, dim = shape.channels, shape.dim

    def body(b: Builder) -> None:
        key, w, a = (b.buffer(name, (n, channels), "float32") for name in ("k", "w", "a"))
        removed, learned = (b.buffer(name, (channels,), "float32") for name in ("removed", "learned"))
        y = b.buffer("y", (n, 4 * channels), "float32")
        squares = b.local(LANES)
        with b.shared(n * shape.heads) as unit:
            m, head = b.divide(unit, shape.heads)
            b.fill(squares, LANES)
            with b.loop(0, dim // LANES) as c:
                at = span(head * dim + c * LANES)
                v = b.bind(key[m, at] * removed[at])
                b.store(squares, fma(v, v, squares[span(0)]), span(0))
            length = tirx.Max(tirx.sqrt(tree_sum(squares[span(0)])), constant(1e-12, 1))
            scale = b.bind(tirx.Broadcast(constant(1.0, 1) / length, LANES))
            with b.loop(0, dim // LANES) as c:
                first = b.bind(head * dim + c * LANES)
                at = span(first)
                own, rate = b.bind(key[m, at]), b.bind(sigmoid(a[m, at]))
                unit_key = b.bind((own * removed[at]) * scale)
                added = fma(rate - constant(1.0, LANES), learned[at], constant(1.0, LANES))
                decay = exp(sigmoid(w[m, at]) * constant(SLOWEST, LANES))
                made = {DECAY: decay, REMOVED: unit_key, LEARNED: unit_key * rate, KEY: own * added}
                for place, value in made.items():
                    b.store(y, value, m, span(first + place * channels))

    return kernel("rwkv_keys", body)


@kernel_maker
def delta_scan(n: int, shape: KeyHeads) -> tirx.PrimFunc:
    """(r (n, channels), keys (n, 4 · channels) as `rwkv_keys` makes them, v (n, channels), positions, slots, state)

    -> y (n, channels), all f32: what the module says. The range that threads share is groups of sixteen values.
    """
    channels, dim = shape.channels, shape.dim

    def body(b: Builder) -> None:
        r = b.buffer("r", (n, channels), "float32")
        keys = b.buffer("keys", (n, 4 * channels), "float32")
        v = b.buffer("v", (n, channels), "float32")
        scan = Scan.parameters(b, n, channels, dim)
        y = b.buffer("y", (n, channels), "float32")
        total = b.local(LANES)
        with b.shared(channels // LANES) as c:
            head, _ = b.divide(c, dim // LANES)
            begin = b.bind(head * dim)

            def step(m: Expr, slot: Expr, fresh: Expr) -> Expr:
                def wide(place: int, j: Expr) -> Expr:
                    return tirx.Broadcast(keys[m, begin + j + place * channels], LANES)

                value = b.bind(v[m, span(c * LANES)])
                b.fill(total, LANES)
                with b.loop(0, dim) as j:
                    kept = scan.was(slot, c, j, fresh)
                    b.store(total, fma(kept, wide(REMOVED, j), total[span(0)]), span(0))
                out = b.bind(constant(0.0, LANES) - total[span(0)])
                b.fill(total, LANES)
                with b.loop(0, dim) as j:
                    kept = b.bind(scan.was(slot, c, j, fresh) * wide(DECAY, j))
                    without = b.bind(fma(out, wide(LEARNED, j), kept))
                    state = b.bind(fma(value, wide(KEY, j), without))
                    scan.put(state, slot, c, j)
                    b.store(total, fma(state, tirx.Broadcast(r[m, begin + j], LANES), total[span(0)]), span(0))
                return total[span(0)]

            scan.rows(y, c, step)

    return kernel("delta_scan", body)


@kernel_maker
def head_norm(n: int, shape: KeyHeads, epsilon: float, form: Form | None) -> Any:
    """What leaves a layer: y of each head normalized, plus v where the token itself has what it asks for, times a gate.

    (y, r (n, channels), keys (n, 4 · channels), v, gate (n, channels), bonus (heads, dim), weight, bias (channels,)),
    f32 -> (norm(y) · weight + bias + Σ (r · k · bonus) · v) · gate, (n, channels) f32, or q, scale[, sum].
    """
    channels, dim = shape.channels, shape.dim

    def body(b: Builder) -> None:
        y, r = (b.buffer(name, (n, channels), "float32") for name in ("x", "r"))
        keys = b.buffer("keys", (n, 4 * channels), "float32")
        v, gate = (b.buffer(name, (n, channels), "float32") for name in ("v", "gate"))
        bonus = b.buffer("bonus", (shape.heads, dim), "float32")
        weight, bias = (b.buffer(name, (channels,), "float32") for name in ("weight", "bias"))
        out = declare_rows(b, n, channels, form)
        padded = -(-shape.heads // LANES) * LANES
        sums, own = b.local(LANES), b.local(LANES)
        means, factors, asked = (b.local(padded) for _ in range(3))
        with b.shared(n) as m:
            with b.loop(0, shape.heads) as head:
                b.fill(sums, LANES)
                b.fill(own, LANES)
                with b.loop(0, dim // LANES) as c:
                    at = span(head * dim + c * LANES)
                    b.store(sums, sums[span(0)] + y[m, at], span(0))
                    key = keys[m, span(head * dim + c * LANES + KEY * channels)]
                    b.store(own, fma(r[m, at] * key, bonus[head, span(c * LANES)], own[span(0)]), span(0))
                mean = b.bind(tree_sum(sums[span(0)]) / constant(float(dim), 1))
                b.store(means, mean, head)
                b.store(asked, tree_sum(own[span(0)]), head)
                b.fill(sums, LANES)
                with b.loop(0, dim // LANES) as c:
                    d = b.bind(y[m, span(head * dim + c * LANES)] - tirx.Broadcast(mean, LANES))
                    b.store(sums, fma(d, d, sums[span(0)]), span(0))
                variance = tree_sum(sums[span(0)]) / constant(float(dim), 1)
                b.store(factors, constant(1.0, 1) / tirx.sqrt(variance + constant(epsilon, 1)), head)

            def value(m: Expr, c: Expr) -> Expr:
                head, _ = b.divide(c, dim)
                mean, factor, much = (tirx.Broadcast(each[head], LANES) for each in (means, factors, asked))
                centred = (y[m, span(c)] - mean) * factor
                normalized = fma(centred, weight[span(c)], bias[span(c)])
                return fma(much, v[m, span(c)], normalized) * gate[m, span(c)]

            write_row(b, out, m, channels, value, form)

    return kernel("head_norm_quant" if form else "head_norm", body)
