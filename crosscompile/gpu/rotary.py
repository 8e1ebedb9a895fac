"""Rotary embedding on a GPU, and what it leaves appended to the KV cache: a workgroup for each head of each row."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma, integer_product, magnitude, sin_cos
from crosscompile.gpu.attention_whole import clear, counters
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32
from crosscompile.gpu.cache import Cache
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import kernel, kernel_maker
from crosscompile.kernels.kv_cache import Cache as DeclaredCache
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rotary import Turn
from crosscompile.spirv.capabilities import Gpu


def rope_table(name: str, gpu: Gpu, n: int, half: int, scaling: float) -> tirx.PrimFunc:
    """(positions (n,) int32, inv_freq (half,) f32) -> cosines, then sines, (n, 2 · half) f32."""

    def body(k: Builder) -> None:
        positions = k.buffer("positions", (n,), "int32")
        frequency = k.buffer("inv_freq", (half,), "float32")
        table = k.buffer("table", (n, 2 * half), "float32")
        with k.each(n, half) as (m, c):
            angle = k.bind(tirx.Cast("float32", positions[m]) * frequency[c])
            k.store(table, sin_cos(angle, lambda s, c: c) * f32(scaling), m, c)
            k.store(table, sin_cos(angle, lambda s, c: s) * f32(scaling), m, c + half)

    return gpu_kernel(name, gpu, body)


def supports(turn: Turn) -> bool:
    """Whether `rope_append` can: norms apart from it (passes/for_gpus.py)."""
    return not turn.over


def normalize_heads(name: str, gpu: Gpu, n: int, heads: Heads, turn: Turn) -> tirx.PrimFunc:
    """As crosscompile.kernels.rotary.normalize_heads: a workgroup for each head of each row."""
    total, queries, keys = heads.query + 2 * heads.kv, heads.query * heads.dim, heads.kv * heads.dim

    def body(k: Builder) -> None:
        qkv = k.buffer("qkv", (n, total * heads.dim), "float32")
        wq, wk = k.buffer("wq", (queries,), "float32"), k.buffer("wk", (keys,), "float32")
        y = k.buffer("y", (n, total * heads.dim), "float32")
        threads = min(64, k.gpu.invocations)
        sum_, shared = k.local(1), k.reduction(1, threads)
        with k.launch((total, n), threads) as (head, m, thread):
            first, is_query = k.bind(head * heads.dim), head < i32(heads.query)
            start: Any = first
            size: Any = heads.dim
            if turn.over == "row":
                start = k.bind(tirx.Select(is_query, i32(0), i32(queries)))
                size = k.bind(tirx.Select(is_query, i32(queries), i32(keys)))
            count = f32(float(size)) if isinstance(size, int) else tirx.Cast("float32", size)

            def average(term: Any) -> Expr:
                k.store(sum_, f32(0.0), 0)
                with k.strided(thread, size) as d:
                    k.store(sum_, term(qkv[m, start + d], sum_[0]), 0)
                return k.bind(k.reduce(thread, [sum_[0]], shared)[0] / count)

            mean = average(lambda v, so_far: so_far + v) if turn.centred else f32(0.0)
            square = average(lambda v, so_far: fma(v - mean, v - mean, so_far))
            factor = k.bind(f32(1.0) / tirx.sqrt(square + f32(turn.epsilon)))

            def each(change: Any) -> None:
                with k.strided(thread, heads.dim) as d:
                    k.store(y, change(qkv[m, first + d], d), m, first + d)

            def query() -> None:
                each(lambda v, d: ((v - mean) * factor) * wq[first + d])

            def key() -> None:
                each(lambda v, d: ((v - mean) * factor) * wk[first - queries + d])

            def rest() -> None:
                k.choose(head < i32(heads.query + heads.kv), key, lambda: each(lambda v, d: v))

            k.choose(is_query, query, rest)

    return gpu_kernel(name, gpu, body)


@kernel_maker
def rope_append_clear(heads: Heads, turn: Turn) -> tirx.PrimFunc:
    """As crosscompile.kernels.rotary.rope_append of one row, without norms, for planning; only GPUs have it.

    Before q, it gives the counters of attention_whole.py, turns (Hq,) int32: zeros.
    """
    width = (heads.query + 2 * heads.kv) * heads.dim

    def body(k: Declaration) -> None:
        k.buffer("qkv", (1, width), "float32")
        if turn.dim:
            k.buffer("table", (1, turn.dim), "float32")
        DeclaredCache.parameters(k, 1, heads)
        turns = k.buffer("turns", (counters(heads),), "int32")
        k.buffer("q", (1, heads.query * heads.dim), "float32")
        with k.shared(1) as unit:
            k.store(turns, i32(0), unit)

    return kernel("rope_append", body)


def clearing_kernel(name: str, gpu: Gpu, heads: Heads, turn: Turn) -> tirx.PrimFunc:
    """The GPU's rope_append_clear."""
    return rope_append(name, gpu, 1, heads, turn, clears=True)


def rope_append(name: str, gpu: Gpu, n: int, heads: Heads, turn: Turn, clears: bool = False) -> tirx.PrimFunc:
    """As crosscompile.kernels.rotary.rope_append, or `rope_append_clear`."""
    half = turn.dim // 2
    width = (heads.query + 2 * heads.kv) * heads.dim

    def body(k: Builder) -> None:
        qkv = k.buffer("qkv", (n, width), "float32")
        table: Any = k.buffer("table", (n, turn.dim), "float32") if turn.dim else None
        cached = Cache.parameters(k, n, heads)
        turns = k.buffer("turns", (counters(heads),), "int32") if clears else None
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        threads = min(64, k.gpu.invocations)
        if cached.quantized:
            vector, scratch, most = k.shared(heads.dim), k.reduction(1, threads), k.local(1)
        with k.launch((heads.query + 2 * heads.kv, n), threads) as (head, m, thread):
            first = k.bind(head * heads.dim)
            if clears:
                clear(k, turns, head, thread)

            def turned(put: Any) -> None:
                """Hands every dimension of a query or key, rotated, to `put`."""
                if half:
                    with k.strided(thread, half) as c:
                        cosine, sine = k.bind(table[m, c]), k.bind(table[m, c + half])
                        x, y = k.bind(qkv[m, first + c]), k.bind(qkv[m, first + c + half])
                        put(c, fma(x, cosine, f32(0.0) - y * sine))
                        put(c + half, fma(y, cosine, x * sine))
                if heads.dim > turn.dim:
                    with k.strided(thread, heads.dim - turn.dim) as c:
                        put(c + turn.dim, qkv[m, first + c + turn.dim])

            def query() -> None:
                turned(lambda d, v: k.store(q, v, m, first + d))

            is_key = head < i32(heads.query + heads.kv)

            def keys_or_values(key: Any, value: Any) -> None:
                """One of two, each with its head of the cache."""
                own = k.bind(head - heads.query)
                k.choose(is_key, lambda: key(own), lambda: value(k.bind(own - heads.kv)))

            def passed(put: Any) -> None:
                """Hands every dimension of a value to `put`."""
                with k.strided(thread, heads.dim) as d:
                    put(d, qkv[m, first + d])

            def append() -> None:
                position = k.bind(cached.positions[m])
                with k.when(position >= i32(0)):
                    block, column = cached.place(k, m, position)
                    if cached.quantized:
                        quantized(block, column)
                        return
                    keys_or_values(
                        lambda own: turned(lambda d, v: cached.put_key(k, v, block, own, d, column)),
                        lambda own: passed(lambda d, v: cached.put_value(k, v, block, own, d, column)),
                    )

            def quantized(block: Expr, column: Expr) -> None:
                """The vector into shared memory, then its largest element, and with that what is stored."""

                def keep(d: Expr, v: Expr) -> None:
                    k.store(vector, v, d)

                k.choose(is_key, lambda: turned(keep), lambda: passed(keep))
                k.barrier()
                k.store(most, f32(0.0), 0)
                with k.strided(thread, heads.dim) as d:
                    k.store(most, tirx.Max(most[0], magnitude(vector[d])), 0)
                (largest,) = k.reduce(thread, [most[0]], scratch, largest=True)
                inverse = k.bind(tirx.Select(largest > f32(0.0), f32(127.0) / largest, f32(0.0)))
                scale = k.bind(largest * f32(1.0 / 127.0))

                def store(state: Any, put: Any, own: Expr) -> None:
                    with k.strided(thread, heads.dim) as d:
                        put(k, integer_product(vector[d], inverse), block, own, d, column)
                    with k.when(tirx.EQ(thread, i32(0))):
                        cached.put_scale(k, state, scale, block, own, column)

                keys_or_values(
                    lambda own: store(cached.keys, cached.put_key, own),
                    lambda own: store(cached.values, cached.put_value, own),
                )

            k.choose(head < i32(heads.query), query, append)

    return gpu_kernel(name, gpu, body)
