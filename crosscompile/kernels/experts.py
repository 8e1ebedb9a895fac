"""Mixture of experts: which experts a token goes to, linear layers of those alone, and their weighted sum.

All experts' weights of a layer are one parameter, expert after expert along its rows, which are whole row groups. A
token's experts are found in a buffer, so that memory is read of them alone. Rows at position -1 have no experts.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, constant, exp, fma, sigmoid, tree_max, tree_sum
from crosscompile.kernels.attention import LOWEST
from crosscompile.kernels.build import Builder, cast, kernel, kernel_maker, span
from crosscompile.kernels.dot import family, group_sum, to_float
from crosscompile.kernels.tile import Tile, of_scale, weight_shape, zero_point
from crosscompile.packing import GROUP, Packing
from crosscompile.target import GPU_TIER, Tier


@kernel_maker
def route(n: int, padded: int, total: int, used: int, normalized: bool) -> tirx.PrimFunc:
    """(logits (n, padded) f32, positions (n,) int32) -> ids (n · used,) int32, weights (n · used,) f32.

    The `used` largest of the first `total` logits, largest first, of equals the first, and their softmax: over all
    logits, or where it is normalized, over these.
    """
    vectors = -(-total // LANES)

    def body(k: Builder) -> None:
        logits = k.buffer("logits", (n, padded), "float32")
        positions = k.buffer("positions", (n,), "int32")
        ids = k.buffer("ids", (n * used,), "int32")
        weights = k.buffer("weights", (n * used,), "float32")
        left = k.local(vectors * LANES)  # logits that are not taken yet
        best, at, sums = k.local(1), k.local(1, "int32"), k.local(LANES)

        def visible(v: int) -> Expr:
            lane = tirx.Ramp(tirx.const(v * LANES, "int32"), tirx.const(1, "int32"), LANES)
            return lane < tirx.Broadcast(tirx.const(total, "int32"), LANES)

        def chosen(m: Expr) -> None:
            for v in range(vectors):
                if (v + 1) * LANES > padded:  # a vector would reach into the next row, and behind the last one
                    k.store(left, constant(LOWEST, LANES), span(v * LANES))
                    for e in range(v * LANES, total):
                        k.store(left, logits[m, e], e)
                    continue
                each = tirx.Select(visible(v), logits[m, span(v * LANES)], constant(LOWEST, LANES))
                k.store(left, each, span(v * LANES))
            largest = left[span(0)]
            for v in range(1, vectors):
                largest = tirx.Max(largest, left[span(v * LANES)])
            highest = k.bind(tree_max(largest))
            k.fill(sums, LANES)
            if not normalized:
                for v in range(vectors):
                    each = exp(left[span(v * LANES)] - tirx.Broadcast(highest, LANES))
                    each = tirx.Select(visible(v), each, constant(0.0, LANES))
                    k.store(sums, sums[span(0)] + each, span(0))
            total_ = k.bind(tree_sum(sums[span(0)]))
            k.store(sums, total_, 0)
            with k.loop(0, used) as j:
                k.store(best, constant(LOWEST, 1), 0)
                k.store(at, tirx.const(0, "int32"), 0)
                with k.loop(0, total) as e:
                    value = k.bind(left[e])

                    def better(e: Expr = e, value: Expr = value) -> None:
                        k.store(best, value, 0)
                        k.store(at, cast("int32", e), 0)

                    k.when(value > best[0], better)
                share = k.bind(exp(best[0] - highest))
                k.store(ids, at[0], m * used + j)
                k.store(weights, share, m * used + j)
                k.store(left, constant(LOWEST, 1), cast("int64", at[0]))
                if normalized:
                    k.store(sums, sums[0] + share, 0)
            whole = k.bind(sums[0])
            with k.loop(0, used) as j:
                k.store(weights, weights[m * used + j] / whole, m * used + j)

        def none(m: Expr) -> None:
            with k.loop(0, used) as j:
                k.store(ids, tirx.const(-1, "int32"), m * used + j)
                k.store(weights, constant(0.0, 1), m * used + j)

        with k.shared(n) as m:
            k.when(positions[m] >= 0, lambda: chosen(m), lambda: none(m))

    return kernel("route", body)


class _At:
    """A buffer as a tensor intrinsic sees it: from some place on."""

    def __init__(self, buffer: Any, *first: Expr) -> None:
        self.buffer, self.first, self.dtype = buffer, first, buffer.dtype

    def vload(self, index: list[Any], dtype: str) -> Expr:
        rest = index[len(self.first) :]
        return self.buffer.vload([*self.first, *rest], dtype=dtype)


@kernel_maker
def expert_linear(
    n: int, rows: int, each: int, out: int, total: int, columns: int, tier: Tier, packing: str
) -> tirx.PrimFunc:
    """(x, ids (rows,) int32, tokens (n,) int32, w[, scale_w]) -> y (rows, out) f32: row i of y is
    what expert ids[i] makes of row i / each of x.

    x: as a linear layer of this packing takes it, (rows / each, columns). w: of all experts, (total · out, columns).
    tokens: tells the runtime that rows of w are picked by token; it is not read. Sums go as in kernels/linear.py.
    """
    form = Packing.parse(packing)
    groups = out // form.rows
    sources = rows // each
    quantized = form.quantized

    def body(k: Builder) -> None:
        if quantized:
            blocks = columns // GROUP
            chunks, lanes, chunk = weight_shape(form)
            sums, _, dtype = tier.activations(packing)
            a = k.buffer("a", (sources, blocks, GROUP), dtype)
            scale_a = k.buffer("scale_a", (sources, blocks), "float32")
            sum_a: Any = k.buffer("sum_a", (sources, blocks), "int32") if sums else None
        else:
            x = k.buffer("x", (sources, columns), "float32")
        ids = k.buffer("ids", (rows,), "int32")
        k.buffer("tokens", (n,), "int32")
        if quantized:
            w = k.buffer("w", (total * groups, blocks, chunks, lanes, chunk), form.dtype)
            stored = form.stored(total * out, columns)
            scale_w = k.buffer("scale_w", stored[".scale"][0], "float16")
            high_w: Any = k.buffer("high_w", stored[".high"][0], "uint8") if form.about.high_bits else None
            zero_w: Any = k.buffer("zero_w", stored[".zero"][0], "int32") if form.about.zero else None
        else:
            lanes = form.rows
            w = k.buffer("w", (total * groups, columns, lanes), "float32" if form.kind == "f32" else "float16")
        y = k.buffer("y", (rows, out), "float32")
        if tier.name == GPU_TIER:  # what it takes and gives, for planning: crosscompile/gpu/experts.py has the kernel
            with k.shared(1) as unit:
                k.store(y, constant(0.0, 1), unit, 0)
            return
        total_ = k.local(lanes)

        def dot(group: Expr, source: Expr) -> None:
            with k.loop(0, blocks) as b:
                start = _At(sum_a, source, b) if form.unsigned else None
                high = None if high_w is None else _At(high_w, group, b)
                tile = Tile(tier, form, 1, 1, lanes, _At(w, group, b), _At(a, source, b), start, high)
                vectors = family(tier, form)(tile)[0][0]
                width = lanes // len(vectors)
                for i, vector in enumerate(vectors):
                    at = span(i * width, width)
                    if zero_w is not None:
                        lacking = k.bind(group_sum(tier, form, sum_a[source, b]))
                        vector = vector + zero_point(form, zero_w, group, b, at, width) * tirx.Broadcast(lacking, width)
                    scale = cast(f"float32x{width}", scale_w[group, of_scale(form, b), at]) * tirx.Broadcast(
                        scale_a[source, b], width
                    )
                    k.store(total_, fma(to_float(tier, vector), scale, total_[at]), at)

        def plain(group: Expr, source: Expr) -> None:
            with k.loop(0, columns) as c:
                value = tirx.Broadcast(x[source, c], lanes)
                weight = cast(f"float32x{lanes}", w[group, c, span(0, lanes)])
                k.store(total_, fma(weight, value, total_[span(0, lanes)]), span(0, lanes))

        with k.shared(groups) as g, k.loop(0, rows) as row:

            def compute(g: Expr = g, row: Expr = row) -> None:
                group = k.bind(cast("int64", ids[row]) * groups + g)
                source, _ = k.divide(row, each)
                k.store(total_, constant(0.0, lanes), span(0, lanes))
                (dot if quantized else plain)(group, source)
                k.store(y, total_[span(0, lanes)], row, span(g * lanes, lanes))

            def clear(g: Expr = g, row: Expr = row) -> None:
                k.store(y, constant(0.0, lanes), row, span(g * lanes, lanes))

            k.when(ids[row] >= 0, compute, clear)

    return kernel(f"experts_{form.kind}", body)


@kernel_maker
def combine(n: int, used: int, columns: int, gate_columns: int) -> tirx.PrimFunc:
    """(y (n · used, columns), weights (n · used,)[, shared (n, columns), gate (n, gate_columns)]) -> (n, columns) f32.

    Σ weights · y, in the order in which experts were chosen. shared: of an expert that all tokens go to, times the
    sigmoid of the first column of gate; gate_columns 0: there is none.
    """

    def body(k: Builder) -> None:
        y = k.buffer("y", (n * used, columns), "float32")
        weights = k.buffer("weights", (n * used,), "float32")
        if gate_columns:
            shared = k.buffer("shared", (n, columns), "float32")
            gate = k.buffer("gate", (n, gate_columns), "float32")
        out = k.buffer("out", (n, columns), "float32")
        with k.shared(n) as m:
            if gate_columns:
                open_ = k.bind(sigmoid(gate[m, 0]))
            with k.loop(0, columns // LANES) as c:
                at = span(c * LANES)
                first = shared[m, at] * tirx.Broadcast(open_, LANES) if gate_columns else constant(0.0, LANES)
                k.store(out, first, m, at)
                with k.loop(0, used) as j:
                    weight = tirx.Broadcast(weights[m * used + j], LANES)
                    k.store(out, fma(weight, y[m * used + j, at], out[m, at]), m, at)

    return kernel("combine", body)
