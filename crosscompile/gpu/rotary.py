"""Rotary embedding on a GPU, and what it leaves appended to the KV cache: a workgroup for each head of each row."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma, sin_cos
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32
from crosscompile.gpu.cache import Cache
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rotary import Turn
from crosscompile.spirv.capabilities import Gpu


def rope_table(name: str, gpu: Gpu, n: int, half: int, scaling: float) -> tirx.PrimFunc:
    """(positions (n,) int32, inv_freq (half,) f32) -> cosines, then sines, (n, 2 · half) f32."""

    def body(k: Builder) -> None:
        positions = k.buffer("positions", (n,), "int32")
        frequency = k.buffer("inv_freq", (half,), "float32")
        table = k.buffer("table", (n, 2 * half), "float32")
        threads = min(64, k.gpu.invocations)
        with k.launch((-(-n * half // threads),), threads) as (part, thread):
            unit = k.bind(part * threads + thread)
            with k.when(unit < i32(n * half)):
                m, c = k.bind(tirx.truncdiv(unit, i32(half))), k.bind(tirx.truncmod(unit, i32(half)))
                angle = k.bind(tirx.Cast("float32", positions[m]) * frequency[c])
                k.store(table, sin_cos(angle, lambda s, c: c) * f32(scaling), m, c)
                k.store(table, sin_cos(angle, lambda s, c: s) * f32(scaling), m, c + half)

    return gpu_kernel(name, gpu, body)


def supports(heads: Heads, turn: Turn) -> bool:
    """Whether `rope_append` can: caches in floats, and norms of a head by itself."""
    return heads.dtype in ("f16", "f32") and turn.over in ("", "head")


def rope_append(name: str, gpu: Gpu, n: int, heads: Heads, turn: Turn) -> tirx.PrimFunc:
    """As crosscompile.kernels.rotary.rope_append."""
    half = turn.dim // 2
    width = (heads.query + 2 * heads.kv) * heads.dim

    def body(k: Builder) -> None:
        qkv = k.buffer("qkv", (n, width), "float32")
        table: Any = k.buffer("table", (n, turn.dim), "float32") if turn.dim else None
        weights = []
        if turn.over:
            counts = zip("qk", (heads.query, heads.kv), strict=True)
            weights = [k.buffer(f"w{part}", (count * heads.dim,), "float32") for part, count in counts]
        cached = Cache.parameters(k, n, heads)
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        threads = min(64, k.gpu.invocations)
        total, shared = k.local(1), k.shared(threads) if turn.over else None
        with k.launch((heads.query + 2 * heads.kv, n), threads) as (head, m, thread):
            first = k.bind(head * heads.dim)

            def over_head(term: Any) -> Expr:
                k.store(total, f32(0.0), 0)
                with k.strided(thread, heads.dim) as d:
                    k.store(total, term(qkv[m, first + d], total[0]), 0)
                return k.reduce(thread, [total[0]], shared)[0]

            factor = mean = None
            if turn.over:
                dim = f32(float(heads.dim))
                mean = k.bind(over_head(lambda v, sum_: sum_ + v) / dim) if turn.centred else f32(0.0)
                square = over_head(lambda v, sum_: fma(v - mean, v - mean, sum_))
                factor = k.bind(f32(1.0) / tirx.sqrt(square / dim + f32(turn.epsilon)))

            def value(part: int, d: Expr) -> Expr:
                v = qkv[m, first + d]
                if factor is None:
                    return v
                own = first if part == 0 else first - heads.query * heads.dim
                return ((v - mean) * factor) * weights[part][own + d]

            def turned(part: int, put: Any) -> None:
                """Hands every dimension of a query or key, rotated, to `put`."""
                if half:
                    with k.strided(thread, half) as c:
                        cosine, sine = k.bind(table[m, c]), k.bind(table[m, c + half])
                        x, y = k.bind(value(part, c)), k.bind(value(part, c + half))
                        put(c, fma(x, cosine, f32(0.0) - y * sine))
                        put(c + half, fma(y, cosine, x * sine))
                if heads.dim > turn.dim:
                    with k.strided(thread, heads.dim - turn.dim) as c:
                        put(c + turn.dim, value(part, c + turn.dim))

            def query() -> None:
                turned(0, lambda d, v: k.store(q, v, m, first + d))

            def append() -> None:
                position = k.bind(cached.positions[m])
                with k.when(position >= i32(0)):
                    block, column = cached.place(k, m, position)

                    def key() -> None:
                        own = k.bind(head - heads.query)
                        turned(1, lambda d, v: cached.put_key(k, v, block, own, d, column))

                    def keep() -> None:
                        own = k.bind(head - (heads.query + heads.kv))
                        with k.strided(thread, heads.dim) as d:
                            cached.put_value(k, qkv[m, first + d], block, own, d, column)

                    k.choose(head < i32(heads.query + heads.kv), key, keep)

            k.choose(head < i32(heads.query), query, append)

    return gpu_kernel(name, gpu, body)
