"""Layers that carry a state from token to token: causal convolution, and the selective scans of Mamba 1 and 2.

A state belongs to a session and has one size for ever: (sessions, channels / 16, …, 16), found by the row's slot. Rows
of a session are taken one after another, so that bits do not depend on how a text is cut into steps; the range that
threads share is groups of sixteen channels, which know nothing of each other. A row at position 0 begins with zeros,
whatever lies there; one at position -1 is padding and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, constant, exp, fma, silu, softplus, tree_sum
from crosscompile.kernels.build import Builder, cast, kernel, kernel_maker, span
from crosscompile.kernels.kv_cache import SESSIONS_CAP
from crosscompile.kernels.rows import Form, declare_rows, write_row


@dataclass(frozen=True)
class Recurrent:
    """A state of a layer, float32: rows of sixteen channels.

    name: as in plan.json; each: rows of sixteen that a channel group keeps.
    """

    name: str
    channels: int
    each: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The first dimension is a bound: how many sessions there are is decided at open."""
        return SESSIONS_CAP, self.channels // LANES, self.each, LANES

    @property
    def n_bytes(self) -> int:
        """Bytes per session."""
        return 4 * self.channels * self.each


@dataclass(frozen=True)
class Scan:
    """The rows that a state passes through, in order."""

    k: Builder
    n: int
    positions: Any
    slots: Any
    state: Any

    @classmethod
    def parameters(cls, k: Builder, n: int, channels: int, each: int) -> Scan:
        """Declares positions, slots and the state."""
        positions, slots = (k.buffer(name, (n,), "int32") for name in ("positions", "slots"))
        return cls(k, n, positions, slots, k.buffer("state", Recurrent("", channels, each).shape, "float32"))

    def rows(self, y: Any, channel: Expr, step: Callable[[Expr, Expr, Expr], Expr]) -> None:
        """y[m] = step(m, slot, fresh) for every row, in order; of padding, zeros. fresh: sixteen truth values."""
        k = self.k
        with k.loop(0, self.n) as m:

            def real(m: Expr = m) -> None:
                slot = k.bind(cast("int64", self.slots[m]))
                first = k.bind(cast("float32", self.positions[m]))
                fresh = tirx.Broadcast(first, LANES) < constant(0.5, LANES)
                k.store(y, step(m, slot, fresh), m, span(channel * LANES))

            k.when(
                self.positions[m] >= 0,
                real,
                lambda m=m: k.store(y, constant(0.0, LANES), m, span(channel * LANES)),  # type: ignore[misc]
            )

    def was(self, slot: Expr, channel: Expr, at: Any, fresh: Expr) -> Expr:
        """Sixteen numbers of the state, zeros at the beginning of a sequence."""
        return tirx.Select(fresh, constant(0.0, LANES), self.state[slot, channel, at, span(0)])

    def put(self, value: Expr, slot: Expr, channel: Expr, at: Any) -> None:
        self.k.store(self.state, value, slot, channel, at, span(0))


@kernel_maker
def causal_conv(n: int, columns: int, first: int, channels: int, width: int, biased: bool) -> tirx.PrimFunc:
    """(x (n, columns) f32, w (width, 1, channels) f32[, bias (channels,) f32], positions, slots, state)

    -> y (n, channels) f32: silu of Σ w · the last `width` rows of a channel, the oldest first. Channels begin at column
    `first` of x. The state, in place, is the last width - 1 rows.
    """

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        w = k.buffer("w", (width, 1, channels), "float32")
        bias = k.buffer("bias", (channels,), "float32") if biased else None
        scan = Scan.parameters(k, n, channels, width - 1)
        y = k.buffer("y", (n, channels), "float32")
        with k.shared(channels // LANES) as c:

            def step(m: Expr, slot: Expr, fresh: Expr) -> Expr:
                total = constant(0.0, LANES) if bias is None else bias[span(c * LANES)]
                now = k.bind(x[m, span(c * LANES + first)])
                for i in range(width - 1):
                    old = k.bind(scan.was(slot, c, i, fresh))
                    total = k.bind(fma(old, w[i, 0, span(c * LANES)], total))
                    if i:
                        scan.put(old, slot, c, i - 1)
                scan.put(now, slot, c, width - 2)
                return silu(k.bind(fma(now, w[width - 1, 0, span(c * LANES)], total)))

            scan.rows(y, c, step)

    return kernel("causal_conv", body)


@kernel_maker
def selective_scan(n: int, channels: int, states: int) -> tirx.PrimFunc:
    """(x (n, channels), gated (n, 2 · channels), dt (n, channels), bc (n, 2 · states), A (states, channels),
    D (channels,), positions, slots, state), all float32 -> y (n, channels) f32. Mamba 1 (arXiv:2312.00752).

    h = e^(Δ A) h + Δ B x; y = (C h + D x) · silu(gate), with Δ = softplus(dt); gates are the second half of `gated`.
    """

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, channels), "float32")
        gated = k.buffer("gated", (n, 2 * channels), "float32")
        dt = k.buffer("dt", (n, channels), "float32")
        bc = k.buffer("bc", (n, 2 * states), "float32")
        a = k.buffer("a", (states, channels), "float32")
        d = k.buffer("d", (channels,), "float32")
        scan = Scan.parameters(k, n, channels, states)
        y = k.buffer("y", (n, channels), "float32")
        total = k.local(LANES)
        with k.shared(channels // LANES) as c:
            at = span(c * LANES)

            def step(m: Expr, slot: Expr, fresh: Expr) -> Expr:
                delta = k.bind(softplus(dt[m, at]))
                value = k.bind(x[m, at])
                put = k.bind(delta * value)
                k.fill(total, LANES)
                with k.loop(0, states) as j:
                    kept = k.bind(exp(delta * a[j, at]) * scan.was(slot, c, j, fresh))
                    state = k.bind(fma(put, tirx.Broadcast(bc[m, j], LANES), kept))
                    scan.put(state, slot, c, j)
                    k.store(total, fma(state, tirx.Broadcast(bc[m, j + states], LANES), total[span(0)]), span(0))
                return fma(value, d[at], total[span(0)]) * silu(gated[m, span(c * LANES + channels)])

            scan.rows(y, c, step)

    return kernel("selective_scan", body)


@dataclass(frozen=True)
class ScanHeads:
    """Mamba 2's: heads of `dim` channels, `groups` of which share B and C, `states` numbers a channel. limit: of Δ."""

    heads: int
    dim: int
    groups: int
    states: int
    limit: tuple[float, float]

    @property
    def channels(self) -> int:
        return self.heads * self.dim

    @property
    def convolved(self) -> int:
        """Columns of x, B and C."""
        return self.channels + 2 * self.groups * self.states


@kernel_maker
def head_scan(n: int, shape: ScanHeads, biased: bool) -> tirx.PrimFunc:
    """(xbc (n, convolved), dt (n, heads)[, its bias], dt_bias, A, D (heads,), positions, slots, state), all float32

    -> y (n, channels) f32. Mamba 2 (arXiv:2405.21060): as `selective_scan`, with one Δ and one A for a head, not gated.
    """
    states, channels = shape.states, shape.channels
    low, high = shape.limit

    def body(k: Builder) -> None:
        xbc = k.buffer("xbc", (n, shape.convolved), "float32")
        dt = k.buffer("dt", (n, shape.heads), "float32")
        first = k.buffer("first", (shape.heads,), "float32") if biased else None
        bias, a, d = (k.buffer(name, (shape.heads,), "float32") for name in ("bias", "a", "d"))
        scan = Scan.parameters(k, n, channels, states)
        y = k.buffer("y", (n, channels), "float32")
        total = k.local(LANES)
        with k.shared(channels // LANES) as c:
            head, _ = k.divide(c, shape.dim // LANES)
            group, _ = k.divide(head, shape.heads // shape.groups)
            begin = k.bind(group * states + channels)

            def step(m: Expr, slot: Expr, fresh: Expr) -> Expr:
                given = dt[m, head] if first is None else dt[m, head] + first[head]
                delta = k.bind(softplus(given + bias[head]))
                if low > 0:
                    delta = tirx.Max(delta, constant(low, 1))
                if high < 3.0e38:
                    delta = tirx.Min(delta, constant(high, 1))
                delta = k.bind(delta)
                decay = k.bind(tirx.Broadcast(exp(delta * a[head]), LANES))
                value = k.bind(xbc[m, span(c * LANES)])
                put = k.bind(value * tirx.Broadcast(delta, LANES))
                k.fill(total, LANES)
                with k.loop(0, states) as j:
                    kept = k.bind(decay * scan.was(slot, c, j, fresh))
                    state = k.bind(fma(put, tirx.Broadcast(xbc[m, begin + j], LANES), kept))
                    scan.put(state, slot, c, j)
                    read = tirx.Broadcast(xbc[m, begin + j + shape.groups * states], LANES)
                    k.store(total, fma(state, read, total[span(0)]), span(0))
                return fma(value, tirx.Broadcast(d[head], LANES), total[span(0)])

            scan.rows(y, c, step)

    return kernel("head_scan", body)


@kernel_maker
def gated_norm(n: int, columns: int, gated_columns: int, groups: int, epsilon: float, form: Form | None) -> Any:
    """x · silu(the first columns of gated), RMS-normalized in `groups` equal parts.

    (x (n, columns), gated (n, gated_columns), weight (columns,)), float32 -> y (n, columns) f32, or q, scale[, sum].
    """
    width = columns // groups

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        gated = k.buffer("gated", (n, gated_columns), "float32")
        weight = k.buffer("weight", (columns,), "float32")
        out = declare_rows(k, n, columns, form)
        squares, factors = k.local(LANES), k.local(-(-groups // LANES) * LANES)

        def value(m: Expr, c: Expr) -> Expr:
            return x[m, span(c)] * silu(gated[m, span(c)])

        with k.shared(n) as m:
            with k.loop(0, groups) as g:
                k.fill(squares, LANES)
                with k.loop(0, width // LANES) as c:
                    v = k.bind(value(m, g * width + c * LANES))
                    k.store(squares, fma(v, v, squares[span(0)]), span(0))
                mean = tree_sum(squares[span(0)]) / constant(float(width), 1)
                k.store(factors, constant(1.0, 1) / tirx.sqrt(mean + constant(epsilon, 1)), g)

            def normalized(m: Expr, c: Expr) -> Expr:
                group, _ = k.divide(c, width)
                return (value(m, c) * tirx.Broadcast(factors[group], LANES)) * weight[span(c)]

            write_row(k, out, m, columns, normalized, form)

    return kernel("gated_norm_quant" if form else "gated_norm", body)


@kernel_maker
def narrow(n: int, columns: int, count: int, groups: int, epsilon: float) -> tirx.PrimFunc:
    """(x (n, columns) f32) -> y (n, count) f32: the first columns without padding rows' results.

    epsilon: where it is not 0, each of `groups` equal parts is RMS-normalized, without weights (Falcon Mamba).
    """
    width = count // groups

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        y = k.buffer("y", (n, count), "float32")
        squares = k.local(LANES)
        with k.shared(n) as m, k.loop(0, groups) as g:
            k.store(squares, constant(1.0, 1), 0)
            if epsilon:
                k.store(squares, constant(0.0, 1), 0)
                with k.loop(0, width) as c:
                    v = k.bind(x[m, g * width + c])
                    k.store(squares, fma(v, v, squares[0]), 0)
                mean = squares[0] / constant(float(width), 1)
                k.store(squares, constant(1.0, 1) / tirx.sqrt(mean + constant(epsilon, 1)), 0)
            with k.loop(0, width) as c:
                v = x[m, g * width + c]
                k.store(y, v * squares[0] if epsilon else v, m, g * width + c)

    return kernel("narrow", body)
