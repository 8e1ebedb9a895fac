"""Rotary embedding, and what it leaves appended to the KV cache."""

from __future__ import annotations

from functools import cache
from math import gcd

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, constant, fma, sin_cos
from crosscompile.kernels.build import Builder, cast, kernel, span
from crosscompile.kernels.kv_cache import KV_BLOCK, Cache, Heads


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
        cached = Cache.parameters(k, n, heads)
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")

        low, high, whole = k.local(half), k.local(half), [k.local(half), k.local(half)]

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
                logical, column = k.divide(cached.positions[m], KV_BLOCK)
                block = k.bind(cached.block(cast("int64", cached.slots[m]), logical))
                with k.loop(0, heads.kv) as h:
                    row = (block, h, column)
                    with k.loop(0, half // lanes) as c:
                        first, second = rotated(m, h + heads.query, c)
                        k.store(low, first, span(c * lanes, lanes))
                        k.store(high, second, span(c * lanes, lanes))
                    cached.keys.put(k, row, [(low, half, 0), (high, half, half)])
                    for part, buffer in enumerate(whole):
                        source = (heads.query + heads.kv + h) * heads.dim + part * half
                        with k.loop(0, half // lanes) as c:
                            k.store(buffer, qkv[m, span(source + c * lanes, lanes)], span(c * lanes, lanes))
                    cached.values.put(k, row, [(whole[0], half, 0), (whole[1], half, half)])

            k.when(cached.positions[m] >= 0, append)

    return kernel("rope_append", body)
