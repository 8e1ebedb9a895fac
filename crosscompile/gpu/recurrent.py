"""What carries a state from token to token, on a GPU: causal convolution, and the scans of Mamba 1 and 2.

A thread has one channel, or some of the numbers that the channel keeps: sixteen channels are a workgroup then, whose
threads add up what each read, through shared memory. Rows are taken in order; the state stays where the CPU's kernels
have it (crosscompile/kernels/recurrent.py), and a thread reads and writes the same of its numbers at every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, exp, fma, silu, softplus
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, quotient, remainder
from crosscompile.gpu.rows import Output, each_group, read_group
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import divisor, kernel, kernel_maker
from crosscompile.kernels.recurrent import Recurrent, ScanHeads
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu


@dataclass(frozen=True)
class Scan:
    """The rows that a state passes through, and the threads of a workgroup: sixteen channels, `parts` for each."""

    k: Builder
    n: int
    channels: int
    each: int
    positions: Any
    slots: Any
    state: Any

    @classmethod
    def parameters(cls, k: Builder, n: int, channels: int, each: int) -> Scan:
        """Declares positions, slots and the state, of `each` numbers a channel."""
        positions, slots = (k.buffer(name, (n,), "int32") for name in ("positions", "slots"))
        return cls(k, n, channels, each, positions, slots, k.buffer("state", (1 << 30,), "float32"))

    def put(self, value: Expr, at: Expr) -> None:
        self.k.store(self.state, value, at)

    def channelwise(self, y: Any, step: Callable[[Expr, Expr, Callable[[int], Expr], Expr], Expr]) -> None:
        """A thread for each channel: y[m, c] = step(m, c, place, fresh) for every row in order, of padding zeros.

        place(j): of the channel's number j in the state. fresh: whether the sequence begins.
        """
        k = self.k
        threads = min(8 if k.schedule.alone else 64, k.gpu.invocations)
        with k.launch((-(-self.channels // threads),), threads) as (workgroup, thread):
            c = k.bind(workgroup * threads + thread)
            with k.when(c < i32(self.channels)), k.loop(0, self.n) as m:

                def real() -> None:
                    first = k.bind(self.start(m, quotient(c, LANES)) + remainder(c, LANES))
                    fresh = k.bind(tirx.EQ(self.positions[m], i32(0)))
                    k.store(y, step(m, c, lambda j: first + j * LANES, fresh), m, c)

                k.choose(self.positions[m] >= i32(0), real, lambda: k.store(y, f32(0.0), m, c))

    def start(self, m: Expr, group: Expr) -> Expr:
        """Where the numbers of sixteen channels of a row's session begin."""
        return (self.slots[m] * i32(self.channels // LANES) + group) * i32(self.each * LANES)

    @property
    def parts(self) -> int:
        """Threads that share a channel's numbers. On a processor that imitates a GPU, a barrier costs more."""
        return 1 if self.k.schedule.alone else divisor(self.each, self.k.gpu.invocations // LANES)

    def shared_out(self, body: Callable[[Threads], None]) -> None:
        """Runs `body` in a workgroup for every sixteen channels, or more where threads share nothing."""
        k, parts = self.k, self.parts
        shared = k.shared(2 * parts * LANES) if parts > 1 else None
        with k.launch((self.channels // LANES,), parts * LANES) as (group, thread):
            lane, part = k.bind(remainder(thread, LANES)), k.bind(quotient(thread, LANES))
            body(Threads(self, parts, group, lane, part, shared))


@dataclass(frozen=True)
class Threads:
    """A thread's place: channel `lane` of sixteen, and of its numbers every parts-th, from number `part` on."""

    scan: Scan
    parts: int
    group: Expr
    lane: Expr
    part: Expr
    shared: Any

    @property
    def channel(self) -> Expr:
        return self.group * i32(LANES) + self.lane

    @property
    def mine(self) -> int:
        """Numbers of a thread."""
        return self.scan.each // self.parts

    def number(self, i: Any) -> Expr:
        """Which number of the channel a thread's i-th is."""
        return self.part + i * i32(self.parts) if self.parts > 1 else i

    def place(self, start: Expr, number: Expr) -> Expr:
        return start + number * i32(LANES) + self.lane

    def total(self, value: Expr, turn: Expr) -> Expr:
        """The sum over a channel's threads. turn: 0 or 1, another one than that of the sum before."""
        if self.parts == 1:
            return value
        k = self.scan.k
        base = k.bind(turn * i32(self.parts * LANES) + self.lane)
        k.store(self.shared, value, base + self.part * i32(LANES))
        k.barrier()
        sum_ = self.shared[base]
        for other in range(1, self.parts):
            sum_ = sum_ + self.shared[base + other * LANES]
        return k.bind(sum_)

    def write(self, y: Any, value: Expr, *index: Expr) -> None:
        """What the first of a channel's threads writes."""
        with self.scan.k.when(tirx.EQ(self.part, i32(0))):
            self.scan.k.store(y, value, *index)


def causal_conv(
    name: str, gpu: Gpu, n: int, columns: int, first: int, channels: int, width: int, biased: bool
) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        w = k.buffer("w", (width, channels), "float32")
        bias = k.buffer("bias", (channels,), "float32") if biased else None
        scan = Scan.parameters(k, n, channels, width - 1)
        y = k.buffer("y", (n, channels), "float32")

        def step(m: Expr, c: Expr, place: Callable[[int], Expr], fresh: Expr) -> Expr:
            total = f32(0.0) if bias is None else bias[c]
            now = k.bind(x[m, c + i32(first)])
            for i in range(width - 1):
                old = k.bind(tirx.Select(fresh, f32(0.0), scan.state[place(i)]))
                total = k.bind(fma(old, w[i, c], total))
                if i:
                    scan.put(old, place(i - 1))
            scan.put(now, place(width - 2))
            return silu(k.bind(fma(now, w[width - 1, c], total)))

        scan.channelwise(y, step)

    return gpu_kernel(name, gpu, body)


# ---- Mamba 1: as many buffers as a GPU has, so that what is added and multiplied behind the scan is another kernel


@kernel_maker
def scan_states(n: int, channels: int, states: int) -> tirx.PrimFunc:
    """What the first kernel takes and gives, for planning; only GPUs have it.

    (x and dt (n, channels), bc (n, 2 · states), A (states, channels), positions, slots, state) -> C h (n, channels).
    """

    def body(k: Declaration) -> None:
        for name, shape in (("x", channels), ("dt", channels), ("bc", 2 * states)):
            k.buffer(name, (n, shape), "float32")
        k.buffer("a", (states, channels), "float32")
        declare_scan(k, n, channels, states)

    return kernel("scan_states", body)


def declare_scan(k: Declaration, n: int, channels: int, each: int) -> None:
    """What all scans end with: positions, slots, the state, and a result, which is as good as written."""
    for name in ("positions", "slots"):
        k.buffer(name, (n,), "int32")
    k.buffer("state", Recurrent("", channels, each).shape, "float32")
    y = k.buffer("y", (n, channels), "float32")
    with k.shared(1) as unit:
        k.store(y, f32(0.0), unit, 0)


@kernel_maker
def scan_gate(n: int, channels: int, form: Form | None) -> tirx.PrimFunc:
    """The second one: (C h, x, D (channels,), gated (n, 2 · channels)) -> (C h + D x) · silu(gate), or quantized."""

    def body(k: Declaration) -> None:
        for name, shape in (
            ("h", (n, channels)),
            ("x", (n, channels)),
            ("d", (channels,)),
            ("gated", (n, 2 * channels)),
        ):
            k.buffer(name, shape, "float32")
        declare_result(k, n, channels, form)

    return kernel("scan_gate", body)


def declare_result(k: Declaration, n: int, columns: int, form: Form | None) -> None:
    """Rows as floats, or quantized, as good as written."""
    declared = [("y", (n, columns), "float32")] if form is None else form.outputs(n, columns)
    out: list[Any] = [k.buffer(*each) for each in declared]
    with k.shared(1) as unit:
        zero = f32(0.0) if form is None else tirx.const(0, form.dtype)
        k.store(out[0], zero, unit, *([0] * (len(out[0].shape) - 1)))


def states_kernel(name: str, gpu: Gpu, n: int, channels: int, states: int) -> tirx.PrimFunc:
    """The GPU's scan_states."""

    def body(k: Builder) -> None:
        x, dt = (k.buffer(each, (n, channels), "float32") for each in ("x", "dt"))
        bc = k.buffer("bc", (n, 2 * states), "float32")
        a = k.buffer("a", (states, channels), "float32")
        scan = Scan.parameters(k, n, channels, states)
        y = k.buffer("y", (n, channels), "float32")
        total = k.local(1)

        def rows(t: Threads) -> None:
            c = k.bind(t.channel)
            with k.loop(0, n) as m:
                k.store(total, f32(0.0), 0)
                with k.when(scan.positions[m] >= i32(0)):
                    start = k.bind(scan.start(m, t.group))
                    fresh = k.bind(tirx.EQ(scan.positions[m], i32(0)))
                    delta = k.bind(softplus(dt[m, c]))
                    put = k.bind(delta * x[m, c])
                    with k.loop(0, t.mine) as i:
                        j = k.bind(t.number(i))
                        at = k.bind(t.place(start, j))
                        kept = tirx.Select(fresh, f32(0.0), scan.state[at])
                        state = k.bind(fma(put, bc[m, j], tirx.exp(delta * a[j, c]) * kept))
                        scan.put(state, at)
                        k.store(total, fma(state, bc[m, j + i32(states)], total[0]), 0)
                t.write(y, t.total(total[0], m & i32(1)), m, c)

        scan.shared_out(rows)

    return gpu_kernel(name, gpu, body)


def gate_kernel(name: str, gpu: Gpu, n: int, channels: int, form: Form | None) -> tirx.PrimFunc:
    """The GPU's scan_gate."""

    def body(k: Builder) -> None:
        h, x = (k.quads(each, n * channels * 4, "float32") for each in ("h", "x"))
        d = k.quads("d", channels * 4, "float32")
        gated = k.quads("gated", 2 * n * channels * 4, "float32")
        out = Output(k, n, channels, form)
        blocks = channels // GROUP

        def group(m: Expr, b: Expr) -> list[Expr]:
            places = ((h, m * blocks + b), (x, m * blocks + b), (d, b), (gated, m * (2 * blocks) + b + blocks))
            parts = zip(*(read_group(k, *each) for each in places), strict=True)
            return [fma(value, skip, read) * silu(gate) for read, value, skip, gate in parts]

        each_group(k, n, channels, out, group)

    return gpu_kernel(name, gpu, body)


# ---- Mamba 2: what depends on heads alone is computed before, once for each


@kernel_maker
def head_rates(n: int, shape: ScanHeads, biased: bool) -> tirx.PrimFunc:
    """(dt (n, heads)[, its bias], dt_bias, A (heads,)) -> Δ, then e^(Δ A): (n, 2 · heads) f32; only GPUs have it."""

    def body(k: Declaration) -> None:
        k.buffer("dt", (n, shape.heads), "float32")
        for name in (*(("first",) if biased else ()), "bias", "a"):
            k.buffer(name, (shape.heads,), "float32")
        declare_result(k, n, 2 * shape.heads, None)

    return kernel("head_rates", body)


@kernel_maker
def head_states(n: int, shape: ScanHeads) -> tirx.PrimFunc:
    """(xbc (n, convolved), rates (n, 2 · heads), D (heads,), positions, slots, state) -> y (n, channels)."""

    def body(k: Declaration) -> None:
        k.buffer("xbc", (n, shape.convolved), "float32")
        k.buffer("rates", (n, 2 * shape.heads), "float32")
        k.buffer("d", (shape.heads,), "float32")
        declare_scan(k, n, shape.channels, shape.states)

    return kernel("head_states", body)


def rates_kernel(name: str, gpu: Gpu, n: int, shape: ScanHeads, biased: bool) -> tirx.PrimFunc:
    """The GPU's head_rates."""
    heads, (low, high) = shape.heads, shape.limit

    def body(k: Builder) -> None:
        dt = k.buffer("dt", (n, heads), "float32")
        first = k.buffer("first", (heads,), "float32") if biased else None
        bias, a = (k.buffer(each, (heads,), "float32") for each in ("bias", "a"))
        y = k.buffer("y", (n, 2 * heads), "float32")
        with k.each(n, heads) as (m, head):
            given = dt[m, head] if first is None else dt[m, head] + first[head]
            delta = softplus(given + bias[head])
            if low > 0:
                delta = tirx.Max(delta, f32(low))
            if high < 3.0e38:
                delta = tirx.Min(delta, f32(high))
            delta = k.bind(delta)
            k.store(y, delta, m, head)
            k.store(y, exp(delta * a[head]), m, head + i32(heads))

    return gpu_kernel(name, gpu, body)


def heads_kernel(name: str, gpu: Gpu, n: int, shape: ScanHeads) -> tirx.PrimFunc:
    """The GPU's head_states."""
    states, heads = shape.states, shape.heads

    def body(k: Builder) -> None:
        xbc = k.buffer("xbc", (n, shape.convolved), "float32")
        rates = k.buffer("rates", (n, 2 * heads), "float32")
        d = k.buffer("d", (heads,), "float32")
        scan = Scan.parameters(k, n, shape.channels, states)
        y = k.buffer("y", (n, shape.channels), "float32")
        total = k.local(1)

        def rows(t: Threads) -> None:
            c = k.bind(t.channel)
            head = k.bind(quotient(t.group, shape.dim // LANES))
            shared_by = quotient(head, heads // shape.groups)
            begin = k.bind(shared_by * i32(states) + i32(shape.channels))
            with k.loop(0, n) as m:
                k.store(total, f32(0.0), 0)
                value = k.bind(xbc[m, c])
                with k.when(scan.positions[m] >= i32(0)):
                    start = k.bind(scan.start(m, t.group))
                    fresh = k.bind(tirx.EQ(scan.positions[m], i32(0)))
                    put, decay = k.bind(rates[m, head] * value), k.bind(rates[m, head + i32(heads)])
                    with k.loop(0, t.mine) as i:
                        j = k.bind(t.number(i))
                        at = k.bind(t.place(start, j))
                        kept = tirx.Select(fresh, f32(0.0), scan.state[at])
                        state = k.bind(fma(put, xbc[m, begin + j], decay * kept))
                        scan.put(state, at)
                        read = xbc[m, begin + j + i32(shape.groups * states)]
                        k.store(total, fma(state, read, total[0]), 0)
                whole = t.total(total[0], m & i32(1))
                t.write(y, fma(value, d[head], whole), m, c)

        scan.shared_out(rows)

    return gpu_kernel(name, gpu, body)
