"""Rotary embedding, and what it leaves appended to the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import LANES, Expr, constant, fma, sin_cos, tree_sum
from crosscompile.kernels.build import Builder, cast, kernel, kernel_maker, span
from crosscompile.kernels.kv_cache import KV_BLOCK, Cache, Heads, table_shape


@kernel_maker
def rope_table(n: int, half: int, scaling: float, original: int = 0) -> tirx.PrimFunc:
    """(positions (n,) int32, inv_freq (half,) f32[, long (half,) f32, block_table]) -> table (n, 2 · half) f32.

    The table holds cosines, then sines. original: where it is not 0, sessions that have room for more positions than
    that take `long`, whatever they hold: a cached key could not be turned again.
    """
    lanes = gcd(half, LANES)

    def body(k: Builder) -> None:
        positions = k.buffer("positions", (n,), "int32")
        frequency = k.buffer("inv_freq", (half,), "float32")
        if original:
            long = k.buffer("long", (half,), "float32")
            block_table = k.buffer("block_table", table_shape(), "int32")
            roomy = block_table.shape[1] * KV_BLOCK > original
        table = k.buffer("table", (n, 2 * half), "float32")
        with k.shared(n) as m:
            position = k.bind(cast("float32", positions[m]))
            with k.loop(0, half // lanes) as c:
                each = frequency[span(c * lanes, lanes)]
                if original:
                    longer = tirx.Broadcast(k.bind(cast("float32", roomy)), lanes)
                    each = k.bind(tirx.Select(longer > constant(0.5, lanes), long[span(c * lanes, lanes)], each))
                angle = k.bind(tirx.Broadcast(position, lanes) * each)
                factor = constant(scaling, lanes)
                k.store(table, sin_cos(angle, lambda s, c: c) * factor, m, span(c * lanes, lanes))
                k.store(table, sin_cos(angle, lambda s, c: s) * factor, m, span(half + c * lanes, lanes))

    return kernel("rope_table", body)


@dataclass(frozen=True)
class Turn:
    """What becomes of queries and keys before they are used.

    dim       dimensions of a head that are rotated, the first ones; 0 for none
    over      normalized before: "head", each by itself, or "row", all together; "" for not at all
    centred   the norm subtracts the mean; epsilon: what it adds to the mean square
    """

    dim: int
    over: str = ""
    centred: bool = False
    epsilon: float = 0.0


@kernel_maker
def rope_append(n: int, heads: Heads, turn: Turn) -> tirx.PrimFunc:
    """(qkv (n, (Hq + 2 Hkv) · dim) f32, [table,] [wq (Hq · dim), wk (Hkv · dim),] positions, slots, block_table, k, v)

    -> q (n, Hq · dim) f32. Normalizes by the weights wq and wk, and rotates, queries and keys, as `turn` says, and
    appends keys and values to the states, in place.
    """
    half, lanes = turn.dim // 2, gcd(turn.dim // 2, LANES)
    rest, rest_lanes = heads.dim - turn.dim, gcd(heads.dim - turn.dim, LANES)
    width = (heads.query + 2 * heads.kv) * heads.dim

    def body(k: Builder) -> None:
        qkv = k.buffer("qkv", (n, width), "float32")
        table: Any = k.buffer("table", (n, turn.dim), "float32") if turn.dim else None
        weights = []
        if turn.over:
            weights = [
                k.buffer(f"w{part}", (h * heads.dim,), "float32")
                for part, h in zip("qk", (heads.query, heads.kv), strict=True)
            ]
        cached = Cache.parameters(k, n, heads)
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")

        low, high = (k.local(half), k.local(half)) if half else (None, None)
        passed = [k.local(size) for size in _halves(rest)]
        whole = [k.local(heads.dim // 2), k.local(heads.dim // 2)]

        def normalizer(m: Expr, first: Expr | int, count: int) -> tuple[Expr, Expr | None]:
            """(factor, mean) of `count` elements from column `first` on."""
            sums = k.local(LANES)
            mean = None
            if turn.centred:
                k.fill(sums, LANES)
                with k.loop(0, count // LANES) as c:
                    k.store(sums, sums[span(0)] + qkv[m, span(first + c * LANES)], span(0))
                mean = k.bind(tree_sum(sums[span(0)]) / constant(float(count), 1))
            k.fill(sums, LANES)
            with k.loop(0, count // LANES) as c:
                v = qkv[m, span(first + c * LANES)]
                v = k.bind(v if mean is None else v - tirx.Broadcast(mean, LANES))
                k.store(sums, fma(v, v, sums[span(0)]), span(0))
            square = tree_sum(sums[span(0)]) / constant(float(count), 1)
            return k.bind(constant(1.0, 1) / tirx.sqrt(square + constant(turn.epsilon, 1))), mean

        def heads_of(m: Expr, part: int) -> tuple[Any, Any]:
            """(first head among all, norm of the row) of queries, 0, or keys, 1."""
            first, count = ((0, heads.query), (heads.query, heads.kv))[part]
            if turn.over != "row":
                return first, None
            return first, normalizer(m, first * heads.dim, count * heads.dim)

        def value(m: Expr, part: int, head: Expr, norm: Any, at: Any, size: int) -> Expr:
            """`size` dimensions of a head from `at` on, normalized."""
            first = heads.query if part else 0
            base = (head + first) * heads.dim + at if part else head * heads.dim + at
            v = qkv[m, span(base, size)]
            if norm is None:
                return v
            factor, mean = norm
            v = v if mean is None else v - tirx.Broadcast(mean, size)
            return (v * tirx.Broadcast(factor, size)) * weights[part][span(head * heads.dim + at, size)]

        def rotated(m: Expr, part: int, head: Expr, norm: Any, c: Expr) -> tuple[Expr, Expr]:
            cosine = k.bind(table[m, span(c * lanes, lanes)])
            sine = k.bind(table[m, span(half + c * lanes, lanes)])
            x = k.bind(value(m, part, head, norm, c * lanes, lanes))
            y = k.bind(value(m, part, head, norm, c * lanes + half, lanes))
            return fma(x, cosine, constant(0.0, lanes) - (y * sine)), fma(y, cosine, x * sine)

        def of_head(m: Expr, part: int, head: Expr, norm: Any) -> Any:
            if turn.over != "head":
                return norm
            first = (head + heads.query) * heads.dim if part else head * heads.dim
            return normalizer(m, first, heads.dim)

        with k.shared(n) as m:
            _, row_norm = heads_of(m, 0)
            with k.loop(0, heads.query) as h:
                norm = of_head(m, 0, h, row_norm)
                if half:
                    with k.loop(0, half // lanes) as c:
                        first, second = rotated(m, 0, h, norm, c)
                        k.store(q, first, m, span(h * heads.dim + c * lanes, lanes))
                        k.store(q, second, m, span(h * heads.dim + half + c * lanes, lanes))
                if rest:
                    with k.loop(0, rest // rest_lanes) as c:
                        at = turn.dim + c * rest_lanes
                        k.store(q, value(m, 0, h, norm, at, rest_lanes), m, span(h * heads.dim + at, rest_lanes))

            def append() -> None:
                logical, column = k.divide(cached.positions[m], KV_BLOCK)
                block = k.bind(cached.block(cast("int64", cached.slots[m]), logical))
                _, row_norm = heads_of(m, 1)
                with k.loop(0, heads.kv) as h:
                    norm = of_head(m, 1, h, row_norm)
                    row = (block, h, column)
                    parts: list[tuple[Any, int, Any]] = []
                    if half:
                        with k.loop(0, half // lanes) as c:
                            first, second = rotated(m, 1, h, norm, c)
                            k.store(low, first, span(c * lanes, lanes))
                            k.store(high, second, span(c * lanes, lanes))
                        parts += [(low, half, 0), (high, half, half)]
                    at = turn.dim
                    for buffer, size in zip(passed, _halves(rest), strict=True):
                        step = gcd(size, LANES)
                        with k.loop(0, size // step) as c:
                            k.store(buffer, value(m, 1, h, norm, at + c * step, step), span(c * step, step))
                        parts.append((buffer, size, at))
                        at += size
                    cached.keys.put(k, row, parts)
                    size = heads.dim // 2
                    step = gcd(size, LANES)
                    for part, buffer in enumerate(whole):
                        source = (heads.query + heads.kv + h) * heads.dim + part * size
                        with k.loop(0, size // step) as c:
                            k.store(buffer, qkv[m, span(source + c * step, step)], span(c * step, step))
                    cached.values.put(k, row, [(whole[0], size, 0), (whole[1], size, size)])

            k.when(cached.positions[m] >= 0, append)

    return kernel("rope_append", body)


@kernel_maker
def normalize_heads(n: int, heads: Heads, turn: Turn) -> tirx.PrimFunc:
    """(qkv (n, (Hq + 2 Hkv) · dim) f32, wq (Hq · dim), wk (Hkv · dim)) -> the same with queries and keys normalized.

    What rope_append does first, apart from it: together they take more buffers than every GPU binds.
    """
    total = heads.query + 2 * heads.kv

    def body(k: Builder) -> None:
        qkv = k.buffer("qkv", (n, total * heads.dim), "float32")
        counts = (heads.query, heads.kv)
        weights = [k.buffer(f"w{p}", (h * heads.dim,), "float32") for p, h in zip("qk", counts, strict=True)]
        y = k.buffer("y", (n, total * heads.dim), "float32")
        sums = k.local(LANES)

        with k.shared(n * total) as unit:
            m, head = k.divide(unit, total)

            def each(change: Callable[[Expr, Expr], Expr]) -> None:
                with k.loop(0, heads.dim // LANES) as c:
                    at = head * heads.dim + c * LANES
                    k.store(y, change(qkv[m, span(at)], at), m, span(at))

            def normalized(part: int) -> None:
                before = part * heads.query * heads.dim
                first = before if turn.over == "row" else head * heads.dim
                count = (counts[part] if turn.over == "row" else 1) * heads.dim
                mean = constant(0.0, LANES)
                for centring in (True, False) if turn.centred else (False,):
                    k.fill(sums, LANES)
                    with k.loop(0, count // LANES) as c:
                        v = k.bind(qkv[m, span(first + c * LANES)] - mean)
                        k.store(sums, sums[span(0)] + v if centring else fma(v, v, sums[span(0)]), span(0))
                    average = k.bind(tree_sum(sums[span(0)]) / constant(float(count), 1))
                    mean = tirx.Broadcast(average, LANES) if centring else mean
                factor = k.bind(constant(1.0, 1) / tirx.sqrt(average + constant(turn.epsilon, 1)))
                wide = tirx.Broadcast(factor, LANES)
                each(lambda v, at: ((v - mean) * wide) * weights[part][span(at - before)])

            def rest() -> None:
                k.when(head < heads.query + heads.kv, lambda: normalized(1), lambda: each(lambda v, at: v))

            k.when(head < heads.query, lambda: normalized(0), rest)

    return kernel("normalize_heads", body)


def _halves(size: int) -> list[int]:
    """A vector's length as one or two buffers, of which each is small enough for the stack."""
    return [size // 2, size // 2] if size > 128 and size % 32 == 0 else [size] if size else []
