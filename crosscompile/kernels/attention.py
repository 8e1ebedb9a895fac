"""Rotary embedding, KV cache and attention over a block table.

States: k (blocks, kv heads, head_dim, 64) and v (blocks, kv heads, 64, head_dim), so that neither the scores nor the
weighted sum needs a reduction across lanes. Rows carry (position, slot); block_table[slot, position / 64] names the
block. A row at position -1 is padding: it changes nothing and its output is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, constant, exp, fma, sin_cos, tree_max, tree_sum
from crosscompile.kernels.build import Builder, cast, kernel, span

KV_BLOCK = 64
"""Positions per block of the KV cache, and per step of the online softmax."""

BLOCKS_CAP, SESSIONS_CAP = 1 << 20, 1 << 12
"""Bounds that stand for sizes only the runtime knows. Nothing is allocated by them."""

LOWEST = -3.0e38


@dataclass(frozen=True)
class Heads:
    """Shape of an attention layer. kv: dtype of the cache. window: positions visible to a row, 0 for all."""

    query: int
    kv: int
    dim: int
    dtype: str
    window: int


def state_shapes(heads: Heads) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of k and v. The first dimension is a bound; how many blocks there are is decided at open."""
    return (BLOCKS_CAP, heads.kv, heads.dim, KV_BLOCK), (BLOCKS_CAP, heads.kv, KV_BLOCK, heads.dim)


def table_shape() -> tuple[Any, ...]:
    """Shape of the block table, (sessions, table_cap): the sessions a bound, table_cap a scalar of the kernel."""
    return SESSIONS_CAP, tirx.Var("table_cap", "int64")


def kv_dtype(name: str) -> str:
    """TVM's name of a cache dtype."""
    return {"f16": "float16", "f32": "float32"}[name]


@cache
def rope_table(n: int, half: int, scaling: float) -> tirx.PrimFunc:
    """(positions (n,) int32, inv_freq (half,) f32) -> table (n, 2 · half) f32: cosines, then sines."""
    lanes = gcd(half, LANES)

    def body(k: Builder) -> None:
        positions = k.buffer("positions", (n,), "int32")
        frequency = k.buffer("inv_freq", (half,), "float32")
        table = k.buffer("table", (n, 2 * half), "float32")
        with k.shared(n) as m:
            position = k.bind(cast("float32", positions[m]))
            with k.loop(0, half // lanes) as c:
                angle = k.bind(tirx.Broadcast(position, lanes) * frequency[span(c * lanes, lanes)])
                factor = constant(scaling, lanes)
                k.store(table, sin_cos(angle, lambda s, c: c) * factor, m, span(c * lanes, lanes))
                k.store(table, sin_cos(angle, lambda s, c: s) * factor, m, span(half + c * lanes, lanes))

    return kernel("rope_table", body)


@cache
def rope_append(n: int, heads: Heads) -> tirx.PrimFunc:
    """(qkv (n, (Hq + 2 Hkv) · dim) f32, table, positions, slots, block_table, k, v) -> q (n, Hq · dim) f32.

    Rotates queries and keys and appends keys and values to the states, in place.
    """
    half, lanes = heads.dim // 2, gcd(heads.dim // 2, LANES)
    width = (heads.query + 2 * heads.kv) * heads.dim

    def body(k: Builder) -> None:
        qkv = k.buffer("qkv", (n, width), "float32")
        table = k.buffer("table", (n, heads.dim), "float32")
        positions = k.buffer("positions", (n,), "int32")
        slots = k.buffer("slots", (n,), "int32")
        block_table = k.buffer("block_table", table_shape(), "int32")
        k_shape, v_shape = state_shapes(heads)
        keys = k.buffer("k", k_shape, kv_dtype(heads.dtype))
        values = k.buffer("v", v_shape, kv_dtype(heads.dtype))
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")

        pair = k.local(2 * lanes)

        def rotated(m: Expr, head: Expr, c: Expr) -> tuple[Expr, Expr]:
            base = head * heads.dim + c * lanes
            cosine = k.bind(table[m, span(c * lanes, lanes)])
            sine = k.bind(table[m, span(half + c * lanes, lanes)])
            x = k.bind(qkv[m, span(base, lanes)])
            y = k.bind(qkv[m, span(base + half, lanes)])
            return fma(x, cosine, constant(0.0, lanes) - (y * sine)), fma(y, cosine, x * sine)

        with k.shared(n) as m:
            with k.loop(0, heads.query) as h, k.loop(0, half // lanes) as c:
                first, second = rotated(m, h, c)
                k.store(q, first, m, span(h * heads.dim + c * lanes, lanes))
                k.store(q, second, m, span(h * heads.dim + half + c * lanes, lanes))

            def append() -> None:
                logical, column = k.divide(positions[m], KV_BLOCK)
                block = k.bind(cast("int64", block_table[cast("int64", slots[m]), logical]))
                with k.loop(0, heads.kv) as h:
                    with k.loop(0, half // lanes) as c:
                        first, second = rotated(m, h + heads.query, c)
                        k.store(pair, first, span(0, lanes))
                        k.store(pair, second, span(lanes, lanes))
                        for i in k.unrolled(2 * lanes):
                            d = c * lanes + i if i < lanes else c * lanes + (half - lanes + i)
                            k.store(keys, cast(kv_dtype(heads.dtype), pair[i]), block, h, d, column)
                    with k.loop(0, heads.dim // LANES) as c:
                        source = (heads.query + heads.kv + h) * heads.dim + c * LANES
                        value = cast(f"{kv_dtype(heads.dtype)}x{LANES}", qkv[m, span(source)])
                        k.store(values, value, block, h, column, span(c * LANES))

            k.when(positions[m] >= 0, append)

    return kernel("rope_append", body)


@cache
def attention(n: int, heads: Heads) -> tirx.PrimFunc:
    """(q (n, Hq · dim) f32, positions, slots, block_table, k, v) -> o (n, Hq · dim) f32.

    Blocks of 64 positions in ascending order, online softmax. The range that threads share is (row, query head).
    """
    vectors = KV_BLOCK // LANES
    tile = gcd(heads.dim // LANES, 4)
    per_kv = heads.query // heads.kv

    def body(k: Builder) -> None:
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        positions = k.buffer("positions", (n,), "int32")
        slots = k.buffer("slots", (n,), "int32")
        block_table = k.buffer("block_table", table_shape(), "int32")
        k_shape, v_shape = state_shapes(heads)
        keys = k.buffer("k", k_shape, kv_dtype(heads.dtype))
        values = k.buffer("v", v_shape, kv_dtype(heads.dtype))
        o = k.buffer("o", (n, heads.query * heads.dim), "float32")
        scores = k.local(KV_BLOCK)
        sums = k.local(tile * LANES)
        running = k.local(2)  # largest score so far, sum of exponentials

        with k.shared(n * heads.query) as unit:
            m, head = k.divide(unit, heads.query)
            kv_head, _ = k.divide(head, per_kv)
            out = head * heads.dim
            with k.loop(0, heads.dim // LANES) as c:
                k.store(o, constant(0.0, LANES), m, span(out + c * LANES))

            def attend() -> None:
                position = k.bind(cast("int64", positions[m]))
                slot = k.bind(cast("int64", slots[m]))
                oldest = tirx.const(0, "int64")
                if heads.window:
                    oldest = k.bind(tirx.Max(position - (heads.window - 1), tirx.const(0, "int64")))
                k.store(running, constant(LOWEST, 1), 0)
                k.store(running, constant(0.0, 1), 1)
                first_block, _ = k.divide(oldest, KV_BLOCK)
                last_block, _ = k.divide(position, KV_BLOCK)
                with k.loop(first_block, last_block + 1) as logical:
                    block = k.bind(cast("int64", block_table[slot, logical]))
                    first = k.bind(tirx.Max(oldest - logical * KV_BLOCK, tirx.const(0, "int64")))
                    last = k.bind(tirx.Min(position - logical * KV_BLOCK, tirx.const(KV_BLOCK - 1, "int64")))
                    _scores(k, m, out, block, first, last)
                    _weigh(k, m, out, block, first, last)
                with k.loop(0, heads.dim // LANES) as c:
                    index = span(out + c * LANES)
                    k.store(o, o[m, index] / tirx.Broadcast(running[1], LANES), m, index)

            def _scores(k: Builder, m: Expr, out: Expr, block: Expr, first: Expr, last: Expr) -> None:
                k.fill(scores, KV_BLOCK)
                with k.loop(0, heads.dim) as d:
                    query = k.bind(tirx.Broadcast(q[m, out + d], LANES))
                    for v in k.unrolled(vectors):
                        key = cast(f"float32x{LANES}", keys[block, kv_head, d, span(v * LANES)])
                        k.store(scores, fma(query, key, scores[span(v * LANES)]), span(v * LANES))
                for v in k.unrolled(vectors):
                    scaled = scores[span(v * LANES)] * constant(heads.dim**-0.5, LANES)
                    visible = _between(v, first, last)
                    k.store(scores, tirx.Select(visible, scaled, constant(LOWEST, LANES)), span(v * LANES))

            def _between(v: int, first: Expr, last: Expr) -> Expr:
                lane = tirx.Ramp(tirx.const(v * LANES, "int32"), tirx.const(1, "int32"), LANES)
                low = lane >= tirx.Broadcast(cast("int32", first), LANES)
                high = lane <= tirx.Broadcast(cast("int32", last), LANES)
                return tirx.And(low, high)

            def _weigh(k: Builder, m: Expr, out: Expr, block: Expr, first: Expr, last: Expr) -> None:
                largest = scores[span(0)]
                for v in range(1, vectors):
                    largest = tirx.Max(largest, scores[span(v * LANES)])
                highest = k.bind(tirx.Max(running[0], tree_max(largest)))
                alpha = k.bind(exp(running[0] - highest))
                for v in k.unrolled(vectors):
                    p = exp(scores[span(v * LANES)] - tirx.Broadcast(highest, LANES))
                    k.store(scores, tirx.Select(_between(v, first, last), p, constant(0.0, LANES)), span(v * LANES))
                total = scores[span(0)]
                for v in range(1, vectors):
                    total = total + scores[span(v * LANES)]
                k.store(running, highest, 0)
                k.store(running, fma(running[1], alpha, tree_sum(total)), 1)
                with k.loop(0, heads.dim // (tile * LANES)) as c:
                    base = out + c * (tile * LANES)
                    for t in k.unrolled(tile):
                        decayed = o[m, span(base + t * LANES)] * tirx.Broadcast(alpha, LANES)
                        k.store(sums, decayed, span(t * LANES))
                    with k.loop(first, last + 1) as j:
                        p = k.bind(tirx.Broadcast(scores[j], LANES))
                        for t in k.unrolled(tile):
                            index = span(c * (tile * LANES) + t * LANES)
                            value = cast(f"float32x{LANES}", values[block, kv_head, j, index])
                            k.store(sums, fma(p, value, sums[span(t * LANES)]), span(t * LANES))
                    for t in k.unrolled(tile):
                        k.store(o, sums[span(t * LANES)], m, span(base + t * LANES))

            k.when(positions[m] >= 0, attend)

    return kernel("attention", body)
