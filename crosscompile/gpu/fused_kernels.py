"""The kernels of a single row's linear layers with what stands before and behind them (fused.py).

A workgroup has some rows of the weight, as a rule the 32 of the result that are a group of the next activation; a team
of its threads shares a row's columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma, integer_product, magnitude
from crosscompile.gpu.attention_whole import clear, counters
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane, packed, quotient, remainder
from crosscompile.gpu.cache import Cache
from crosscompile.gpu.fused import ROTATED_PAIRS, Source
from crosscompile.gpu.fused_knobs import Fused, FusedKnobs, default_fused, groups_at_once, rows_of, rows_of_a_team
from crosscompile.gpu.linear import group_dot, group_sum
from crosscompile.gpu.weights import Weights
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rows import ACTIVATIONS, Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu


class Rows:
    """`count` rows of a layer's source, for each workgroup, by all of its threads; their sums end in its first threads.

    team: threads that share a row's columns. together: rows of each team. at_once: groups of columns.
    """

    def __init__(self, k: Builder, work: Fused, knobs: FusedKnobs | None) -> None:
        self.k, self.source, self.count = k, work.source, rows_of(work.kind)
        chosen = knobs or default_fused(work, k.gpu)
        self.threads, self.team = chosen.threads, chosen.team
        self.together, self.at_once = rows_of_a_team(work, chosen), groups_at_once(work, chosen)
        source = work.source
        self.a = k.quads("a", source.columns)
        self.scale_a = k.buffer("scale_a", (1, source.scales), "float32")
        self.w = Weights(k, source.rows, source.columns, source.packing)

    def allocate(self) -> None:
        """What the parameters are followed by."""
        k, factored = self.k, self.source.epsilon is not None
        self.partial = k.shared((self.count + factored) * (self.team + 1))
        self.piece = k.shared(self.threads)
        self.sums = k.local(self.together + factored)

    def totals(self, thread: Expr, row_of: Callable[[Any], Expr]) -> Callable[[Any], Expr]:
        """Multiplies; row_of: which row of the weight row i of the workgroup is. Then gives row i's result."""
        k, source, members = self.k, self.source, self.team
        team, member = k.bind(quotient(thread, members)), k.bind(remainder(thread, members))
        factored = source.epsilon is not None
        for i in range(self.together + factored):
            k.store(self.sums, f32(0.0), i)
        rows = [k.bind(row_of(k.bind(team * self.together + r))) for r in range(self.together)]
        wide = members * self.at_once
        whole = source.blocks // wide
        if whole:
            with k.loop(0, whole) as turn:
                self._multiply(rows, k.bind(turn * wide + member), self.at_once, exact=True)
        if rest := source.blocks % wide:
            self._multiply(rows, k.bind(member + whole * wide), -(-rest // members), exact=rest % members == 0)
        for r in range(self.together):
            k.store(self.partial, self.sums[r], (team * self.together + r) * (members + 1) + member)
        if factored:
            with k.when(tirx.EQ(team, i32(0))):
                k.store(self.partial, self.sums[self.together], self.count * (members + 1) + member)
        k.barrier()
        pieces = self.threads // self.count  # threads that add up a row
        each = members // pieces
        row, piece = k.bind(quotient(thread, pieces)), k.bind(remainder(thread, pieces))
        k.store(self.piece, k.join(self.partial, row * (members + 1) + piece * each, each), piece * self.count + row)
        k.barrier()
        factor: Expr | None = None
        if source.epsilon is not None:
            squares = k.join(self.partial, i32(self.count * (members + 1)), members)
            mean = squares * f32(1.0 / source.columns)
            factor = k.bind(f32(1.0) / tirx.sqrt(mean + f32(source.epsilon)))

        def result(i: Any) -> Expr:
            total = k.join(self.piece, i, pieces, self.count)
            return k.bind(total if factor is None else total * factor)

        return result

    def _multiply(self, rows: list[Expr], first: Expr, count: int, exact: bool) -> None:
        """Adds the products of `count` groups of columns of each row, from `first` on, each a team's width apart.

        All weights are on their way before the first is used. Behind the last group, it is read again and counts
        nothing, unless the groups are `exact`.
        """
        k, source = self.k, self.source
        wanted = [k.bind(first + self.team * u) for u in range(count)]
        groups = [group if exact else k.bind(tirx.Min(group, i32(source.blocks - 1))) for group in wanted]
        read = [[self.w.read(row, group)[0] for row in rows] for group in groups]
        for at, group, of_rows in zip(wanted, groups, read, strict=True):
            words = [lane(k.bind(self.a[group * 2 + half]), i) for half in range(2) for i in range(4)]
            scale = k.bind(self.scale_a[0, group])
            squares = self.scale_a[0, group + source.blocks] if source.epsilon is not None else None
            if not exact:
                inside = k.bind(at < i32(source.blocks))
                scale = k.bind(tirx.Select(inside, scale, f32(0.0)))
                squares = None if squares is None else tirx.Select(inside, squares, f32(0.0))
            total = k.bind(group_sum(k, words)) if self.w.summed else None
            for r, weights in enumerate(of_rows):
                dot = tirx.Cast("float32", self.w.product(group_dot(k, weights.factors(), words), weights.shift, total))
                k.store(self.sums, fma(dot, weights.scale * scale, self.sums[r]), r)
            if squares is not None:
                at_end = len(rows)
                k.store(self.sums, self.sums[at_end] + squares, at_end)


class Group:
    """The 32 results of a workgroup, quantized: the next activation's group."""

    def __init__(self, k: Builder, columns: int, scales: int, form: Form) -> None:
        self.k, self.form, self.blocks = k, form, columns // GROUP
        if form.sums or form.dtype != "int8":
            raise AssertionError("activations of a GPU are int8 without sums")
        self.q = k.words("q", columns)
        self.scale = k.buffer("scale", (1, scales), "float32")

    def write(self, workgroup: Expr, thread: Expr, values: Any, squares: Any = None) -> None:
        """values: 32 in shared memory that all threads see. squares: of what, likewise, the sum is left."""
        k = self.k
        with k.when(thread < i32(GROUP // 4)):
            every = [k.bind(values[i]) for i in range(GROUP)]
            largest = magnitude(every[0])
            for value in every[1:]:
                largest = tirx.Max(largest, magnitude(value))
            largest = k.bind(largest)
            inverse = k.bind(tirx.Select(largest > f32(0.0), f32(127.0) / largest, f32(0.0)))
            own = [k.bind(integer_product(k.bind(values[thread * 4 + i]), inverse)) for i in range(4)]
            k.store(self.q, packed(own), workgroup * (GROUP // 4) + thread)
            with k.when(tirx.EQ(thread, i32(0))):
                k.store(self.scale, largest * f32(self.form.shrink / 127.0), 0, workgroup)
                if squares is not None:
                    total = squares[0]
                    for i in range(1, GROUP):
                        total = total + squares[i]
                    k.store(self.scale, total, 0, workgroup + self.blocks)


def gated_kernel(
    name: str, gpu: Gpu, source: Source, activation: str, form: Form, knobs: FusedKnobs | None = None
) -> tirx.PrimFunc:
    """The GPU's gated_linear."""
    act, half = ACTIVATIONS[activation], source.rows // 2

    def body(k: Builder) -> None:
        rows = Rows(k, Fused("gated_linear", source), knobs)
        out = Group(k, half, half // GROUP, form)
        rows.allocate()
        values = k.shared(GROUP)
        with k.launch((half // GROUP,), rows.threads) as (workgroup, thread):
            first = k.bind(workgroup * GROUP)
            up = i32(half - GROUP)
            result = rows.totals(thread, lambda i: first + i + tirx.Select(i < i32(GROUP), i32(0), up))
            with k.when(thread < i32(GROUP)):
                k.store(values, act(result(thread)) * result(thread + GROUP), thread)
            k.barrier()
            out.write(workgroup, thread, values)

    return gpu_kernel(name, gpu, body)


def normed_kernel(name: str, gpu: Gpu, source: Source, form: Form, knobs: FusedKnobs | None = None) -> tirx.PrimFunc:
    """The GPU's normed_linear."""

    def body(k: Builder) -> None:
        groups = source.rows // GROUP
        rows = Rows(k, Fused("normed_linear", source), knobs)
        residual = k.buffer("residual", (1, source.rows), "float32")
        weight = k.buffer("weight", (source.rows,), "float32")
        total = k.buffer("total", (1, source.rows), "float32")
        out = Group(k, source.rows, 2 * groups, form)
        rows.allocate()
        values, squares = k.shared(GROUP), k.shared(GROUP)
        with k.launch((groups,), rows.threads) as (workgroup, thread):
            first = k.bind(workgroup * GROUP)
            at = k.bind(first + tirx.Min(thread, i32(GROUP - 1)))
            before, times = k.bind(residual[0, at]), k.bind(weight[at])  # on their way while weights are read
            result = rows.totals(thread, lambda i: first + i)
            with k.when(thread < i32(GROUP)):
                value = k.bind(result(thread) + before)
                k.store(total, value, 0, at)
                k.store(values, value * times, thread)
                k.store(squares, value * value, thread)
            k.barrier()
            out.write(workgroup, thread, values, squares)

    return gpu_kernel(name, gpu, body)


def scaled_kernel(name: str, gpu: Gpu, source: Source, biased: bool, knobs: FusedKnobs | None = None) -> tirx.PrimFunc:
    """The GPU's scaled_linear."""

    def body(k: Builder) -> None:
        groups = source.rows // GROUP
        rows = Rows(k, Fused("scaled_linear", source), knobs)
        bias = k.buffer("bias", (source.rows,), "float32") if biased else None
        y = k.buffer("y", (1, source.rows), "float32")
        rows.allocate()
        with k.launch((groups,), rows.threads) as (workgroup, thread):
            first = k.bind(workgroup * GROUP)
            at = k.bind(first + tirx.Min(thread, i32(GROUP - 1)))
            more = k.bind(bias[at]) if bias is not None else None
            result = rows.totals(thread, lambda i: first + i)
            with k.when(thread < i32(GROUP)):
                k.store(y, result(thread) if more is None else result(thread) + more, 0, at)

    return gpu_kernel(name, gpu, body)


def rotated_kernel(
    name: str, gpu: Gpu, source: Source, heads: Heads, clears: bool, knobs: FusedKnobs | None = None
) -> tirx.PrimFunc:
    """The GPU's rotated_linear: a workgroup has some dimensions of a head and those that they are rotated with."""
    pairs, half = ROTATED_PAIRS, heads.dim // 2

    def body(k: Builder) -> None:
        rows = Rows(k, Fused("rotated_linear", source), knobs)
        table = k.buffer("table", (1, heads.dim), "float32")
        cached = Cache.parameters(k, 1, heads)
        turns = k.buffer("turns", (counters(heads),), "int32") if clears else None
        q = k.buffer("q", (1, heads.query * heads.dim), "float32")
        rows.allocate()
        with k.launch((source.rows // (2 * pairs),), rows.threads) as (workgroup, thread):
            if clears:
                clear(k, turns, workgroup, thread)
            each = half // pairs  # workgroups of a head
            head = k.bind(quotient(workgroup, each))
            column = k.bind(remainder(workgroup, each) * pairs)
            first = k.bind(head * heads.dim + column)
            # on their way while weights are read: what turns a pair, and where a key or a value goes
            c = k.bind(column + tirx.Min(thread, i32(pairs - 1)))
            cosine, sine = k.bind(table[0, c]), k.bind(table[0, c + half])
            position = k.bind(cached.positions[0])
            block, place = cached.place(k, i32(0), k.bind(tirx.Max(position, i32(0))))
            result = rows.totals(thread, lambda i: first + i + tirx.Select(i < i32(pairs), i32(0), i32(half - pairs)))
            with k.when(thread < i32(pairs)):
                low, high = result(thread), result(thread + pairs)
                turned = k.bind(fma(low, cosine, f32(0.0) - high * sine)), k.bind(fma(high, cosine, low * sine))

                def each_of(values: tuple[Expr, Expr], put: Callable[[Expr, Expr], None]) -> None:
                    for value, d in zip(values, (c, k.bind(c + half)), strict=True):
                        put(value, d)

                def append() -> None:
                    own = k.bind(head - heads.query)
                    value_head = k.bind(own - heads.kv)
                    with k.when(position >= i32(0)):
                        k.choose(
                            own < i32(heads.kv),
                            lambda: each_of(turned, lambda v, d: cached.put_key(k, v, block, own, d, place)),
                            lambda: each_of(
                                (low, high), lambda v, d: cached.put_value(k, v, block, value_head, d, place)
                            ),
                        )

                k.choose(
                    head < i32(heads.query),
                    lambda: each_of(turned, lambda v, d: k.store(q, v, 0, head * heads.dim + d)),
                    append,
                )

    return gpu_kernel(name, gpu, body)
