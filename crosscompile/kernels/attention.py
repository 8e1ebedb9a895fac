"""Attention over the KV cache's block table (kernels/kv_cache.py), for tiles of rows and query heads.

Rows carry (position, slot); block_table[slot, position / 64] names the block. A row at position -1 is padding: its
output is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, constant, exp, fma, tanh, tree_max, tree_sum
from crosscompile.kernels.build import Builder, cast, divisor, kernel, kernel_maker, span
from crosscompile.kernels.kv_cache import KV_BLOCK, Cache, Heads

LOWEST = -3.0e38


@dataclass(frozen=True)
class Tile:
    """Queries computed together: `tokens` consecutive rows times `heads` query heads of one KV head.

    They share every key and value read. lanes: positions (or dimensions) that each query accumulates at a time.
    """

    tokens: int
    heads: int
    lanes: int

    @classmethod
    def choose(cls, n: int, per_kv: int, dim: int) -> Tile:
        """As many queries as leave registers for keys: 16 lanes are two of AVX2's 16 registers, four of NEON's 32.

        A sum kept in memory instead triples the time of a step. A lone query lets keys pass by, one after another.
        """
        heads = divisor(per_kv, 6)
        tokens = divisor(n, max(1, 6 // heads))
        queries = tokens * heads
        parts = 6 if queries == 1 else 7 // (queries + 1)
        return cls(tokens, heads, LANES * divisor(gcd(dim, KV_BLOCK) // LANES, max(1, parts)))


@kernel_maker
def attention(n: int, heads: Heads) -> tirx.PrimFunc:
    """(q (n, Hq · dim) f32, positions, slots, block_table, k, v) -> o (n, Hq · dim) f32.

    Blocks of 64 positions in ascending order, online softmax. The range that threads share is the tiles: rows
    outermost, then KV heads. Rows of a tile that are not consecutive positions of one session are computed one by one.
    Positions that one row of a tile sees and another does not have weight 0 for the other, which leaves its sums as
    they are, so the bits do not depend on the tile.
    """
    per_kv = heads.query // heads.kv
    tile = Tile.choose(n, per_kv, heads.dim)
    parts = per_kv // tile.heads

    def body(k: Builder) -> None:
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        cached = Cache.parameters(k, n, heads)
        o = k.buffer("o", (n, heads.query * heads.dim), "float32")
        layer = _Layer(heads, cached, q, o)
        with k.shared(n // tile.tokens * heads.kv * parts) as unit:
            group, part = k.divide(unit, parts)
            rows, kv_head = k.divide(group, heads.kv)
            first = k.bind(rows * tile.tokens)
            head = k.bind((kv_head * parts + part) * tile.heads)

            def alone(m: Expr) -> None:
                one = Tile(1, tile.heads, Tile.choose(1, tile.heads, heads.dim).lanes)
                k.when(cached.positions[m] >= 0, lambda: _attend(k, layer, one, m, kv_head, head), lambda: clear(m))

            def clear(m: Expr) -> None:
                with k.loop(0, tile.heads * heads.dim // LANES) as c:
                    k.store(o, constant(0.0, LANES), m, span(head * heads.dim + c * LANES))

            def one_by_one() -> None:
                with k.loop(0, tile.tokens) as t:
                    alone(k.bind(first + t))

            if tile.tokens == 1:
                alone(first)
                return
            together = cached.positions[first] >= 0
            for t in range(1, tile.tokens):
                together = tirx.And(together, tirx.EQ(cached.positions[first + t], cached.positions[first] + t))
                together = tirx.And(together, tirx.EQ(cached.slots[first + t], cached.slots[first]))
            k.when(together, lambda: _attend(k, layer, tile, first, kv_head, head), one_by_one)

    return kernel("attention", body)


@dataclass(frozen=True)
class _Layer:
    """What an attention kernel works on."""

    heads: Heads
    cache: Cache
    q: Any
    o: Any


def _attend(k: Builder, layer: _Layer, tile: Tile, row: Expr, kv_head: Expr, head: Expr) -> None:
    """Attention of the rows row, row + 1, … and the query heads head, head + 1, … of a tile."""
    heads, cache = layer.heads, layer.cache
    queries = [(t, h) for t in range(tile.tokens) for h in range(tile.heads)]
    scores = [k.local(KV_BLOCK) for _ in queries]
    running = [k.local(2) for _ in queries]  # largest score so far, sum of exponentials
    decay = [k.local(1) for _ in queries]
    sums = [k.local(tile.lanes) for _ in queries]
    parts = range(tile.lanes // LANES)

    def column(index: int) -> Expr:
        return (head + queries[index][1]) * heads.dim

    position = k.bind(cast("int64", cache.positions[row]))  # of the first row; the others follow it
    slot = k.bind(cast("int64", cache.slots[row]))
    oldest = tirx.const(0, "int64")
    if heads.window:
        oldest = k.bind(tirx.Max(position - (heads.window - 1), tirx.const(0, "int64")))
    for i, (t, _) in enumerate(queries):
        k.store(running[i], constant(LOWEST, 1), 0)
        k.store(running[i], constant(0.0, 1), 1)
        with k.loop(0, heads.dim // LANES) as c:
            k.store(layer.o, constant(0.0, LANES), row + t, span(column(i) + c * LANES))
    first_block, _ = k.divide(oldest, KV_BLOCK)
    last_block, _ = k.divide(position + (tile.tokens - 1), KV_BLOCK)

    def visible(v: Expr | int, t: int, base: Expr) -> Expr:
        """Which of 16 positions of a block, from v on, row t sees."""
        lane = tirx.Ramp(cast("int32", v), tirx.const(1, "int32"), LANES)
        last = k.bind(cast("int32", position + t - base))
        seen = lane <= tirx.Broadcast(last, LANES)
        if heads.window:
            low = k.bind(cast("int32", position + (t - heads.window + 1) - base))
            seen = tirx.And(seen, lane >= tirx.Broadcast(low, LANES))
        return seen

    def score(block: Expr, following: Expr, base: Expr, most: Expr) -> None:
        """scores = q · k · factor of positions base to base + most, rounded up to whole tiles; flattened by tanh."""
        for i in range(len(queries)):
            k.fill(scores[i], KV_BLOCK, LOWEST)
        chunks, _ = k.divide(most, tile.lanes)
        with k.loop(0, chunks + 1) as chunk:
            v = k.bind(chunk * tile.lanes)
            for i in range(len(queries)):
                k.fill(sums[i], tile.lanes)
            with k.loop(0, heads.dim) as d:
                if tile.tokens == 1:
                    cache.keys.ask(following, kv_head, chunk * heads.dim + d, heads.dim * (KV_BLOCK // tile.lanes))
                key = [k.bind(cache.keys.vector(block, kv_head, d, v + p * LANES)) for p in parts]
                for i, (t, _) in enumerate(queries):
                    query = k.bind(tirx.Broadcast(layer.q[row + t, column(i) + d], LANES))
                    for p in parts:
                        index = span(p * LANES)
                        k.store(sums[i], fma(query, key[p], sums[i][index]), index)
            scales = [cache.keys.scale(block, kv_head, v + p * LANES) for p in parts]
            bound = [None if scale is None else k.bind(scale) for scale in scales]
            for i, (t, _) in enumerate(queries):
                for p in parts:
                    sum_ = sums[i][span(p * LANES)]
                    scaled = (sum_ if bound[p] is None else sum_ * bound[p]) * constant(heads.scores, LANES)
                    if heads.cap:
                        scaled = tanh(scaled * constant(1.0 / heads.cap, LANES)) * constant(heads.cap, LANES)
                    seen = visible(v + p * LANES, t, base)
                    k.store(scores[i], tirx.Select(seen, scaled, constant(LOWEST, LANES)), span(v + p * LANES))

    def soften(i: int, block: Expr, base: Expr) -> None:
        """Scores to exponentials, relative to the largest score so far, times what values are to be scaled by."""
        vectors = range(KV_BLOCK // LANES)
        largest = scores[i][span(0)]
        for v in vectors[1:]:
            largest = tirx.Max(largest, scores[i][span(v * LANES)])
        highest = k.bind(tirx.Max(running[i][0], tree_max(largest)))
        alpha = k.bind(exp(running[i][0] - highest))
        for v in vectors:
            p = exp(scores[i][span(v * LANES)] - tirx.Broadcast(highest, LANES))
            seen = visible(v * LANES, queries[i][0], base)
            k.store(scores[i], tirx.Select(seen, p, constant(0.0, LANES)), span(v * LANES))
        total = k.bind(scores[i][span(0)])
        for v in vectors[1:]:
            total = k.bind(total + scores[i][span(v * LANES)])
        for v in vectors:
            scale = cache.values.scale(block, kv_head, v * LANES)
            if scale is not None:
                k.store(scores[i], scores[i][span(v * LANES)] * scale, span(v * LANES))
        k.store(running[i], highest, 0)
        k.store(running[i], fma(running[i][1], alpha, tree_sum(total)), 1)
        k.store(decay[i], alpha, 0)

    def weigh(block: Expr, following: Expr, first: Expr, most: Expr) -> None:
        """o = o · alpha + p · v."""
        with k.loop(0, heads.dim // tile.lanes) as c:
            for i, (t, _) in enumerate(queries):
                for p in parts:
                    old = layer.o[row + t, span(column(i) + c * tile.lanes + p * LANES)]
                    k.store(sums[i], old * tirx.Broadcast(decay[i][0], LANES), span(p * LANES))
            with k.loop(first, most + 1) as j:
                if tile.tokens == 1:
                    cache.values.ask(following, kv_head, c * KV_BLOCK + j, heads.dim // tile.lanes * KV_BLOCK)
                value = [k.bind(cache.values.vector(block, kv_head, c * tile.lanes + p * LANES, j)) for p in parts]
                for i in range(len(queries)):
                    weight = k.bind(tirx.Broadcast(scores[i][j], LANES))
                    for p in parts:
                        at = span(p * LANES)
                        k.store(sums[i], fma(weight, value[p], sums[i][at]), at)
            for i, (t, _) in enumerate(queries):
                for p in parts:
                    at = span(column(i) + c * tile.lanes + p * LANES)
                    k.store(layer.o, sums[i][span(p * LANES)], row + t, at)

    with k.loop(first_block, last_block + 1) as logical:
        base = k.bind(logical * KV_BLOCK)
        block = k.bind(cache.block(slot, logical))
        after = tirx.Min(logical + 1, last_block)  # one row reads so little of a block that memory must be asked ahead
        following = k.bind(cache.block(slot, after))
        first = k.bind(tirx.Max(oldest - base, tirx.const(0, "int64")))
        most = k.bind(tirx.Min(position + (tile.tokens - 1) - base, tirx.const(KV_BLOCK - 1, "int64")))
        score(block, following, base, most)
        for i in range(len(queries)):
            soften(i, block, base)
        weigh(block, following, first, most)
    for i, (t, _) in enumerate(queries):
        with k.loop(0, heads.dim // LANES) as c:
            at = span(column(i) + c * LANES)
            k.store(layer.o, layer.o[row + t, at] / tirx.Broadcast(running[i][1], LANES), row + t, at)
