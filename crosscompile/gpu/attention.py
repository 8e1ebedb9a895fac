"""Attention on a GPU: a workgroup for each row and query head, blocks of 64 positions in turn, online softmax."""

from __future__ import annotations

from tvm import tirx

from crosscompile.arithmetic import Expr, exp, fma, tanh
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32
from crosscompile.gpu.cache import Cache
from crosscompile.kernels.attention import LOWEST
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.spirv.capabilities import Gpu


def supports(heads: Heads) -> bool:
    """Whether `attention` can: caches in floats."""
    return heads.dtype in ("f16", "f32")


def attention(name: str, gpu: Gpu, n: int, heads: Heads) -> tirx.PrimFunc:
    """As crosscompile.kernels.attention.attention."""
    per_kv = heads.query // heads.kv
    parts = -(-heads.dim // KV_BLOCK)  # dimensions that a thread sums

    def body(k: Builder) -> None:
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        cached = Cache.parameters(k, n, heads)
        o = k.buffer("o", (n, heads.query * heads.dim), "float32")
        query, weights, shared = k.shared(heads.dim), k.shared(KV_BLOCK), k.shared(KV_BLOCK)
        sums, running, score = k.local(parts), k.local(2), k.local(1)
        with k.launch((heads.query, n), KV_BLOCK) as (head, m, thread):
            first = k.bind(head * heads.dim)
            kv_head = k.bind(tirx.truncdiv(head, i32(per_kv)))
            position = k.bind(cached.positions[m])

            def each_dimension(do: object) -> None:
                for part in range(parts):
                    d = thread + part * KV_BLOCK
                    if (part + 1) * KV_BLOCK <= heads.dim:
                        do(part, d)  # type: ignore[operator]
                    else:
                        with k.when(d < i32(heads.dim)):
                            do(part, d)  # type: ignore[operator]

            def clear() -> None:
                each_dimension(lambda part, d: k.store(o, f32(0.0), m, first + d))

            def seen(at: Expr) -> Expr:
                inside = at <= position
                return tirx.And(inside, at > position - i32(heads.window)) if heads.window else inside

            def score_of(start: Expr, at: Expr) -> None:
                k.store(score, f32(0.0), 0)
                with k.loop(0, heads.dim) as d:
                    key = tirx.Cast("float32", cached.keys[start + d * KV_BLOCK + thread])
                    k.store(score, fma(query[d], key, score[0]), 0)
                scaled = score[0] * f32(heads.scores)
                if heads.cap:
                    scaled = tanh(scaled * f32(1.0 / heads.cap)) * f32(heads.cap)
                k.store(score, scaled, 0)

            def attend() -> None:
                with k.strided(thread, heads.dim) as d:
                    k.store(query, q[m, first + d], d)
                k.store(running, f32(LOWEST), 0)
                k.store(running, f32(0.0), 1)
                for part in range(parts):
                    k.store(sums, f32(0.0), part)
                oldest = i32(0)
                if heads.window:
                    oldest = k.bind(tirx.Max(position - i32(heads.window - 1), i32(0)))
                first_block = k.bind(tirx.truncdiv(oldest, i32(KV_BLOCK)))
                last_block = k.bind(tirx.truncdiv(position, i32(KV_BLOCK)))
                slot = k.bind(cached.slots[m])
                k.barrier()
                with k.loop(0, last_block - first_block + 1) as turn:
                    logical = k.bind(first_block + turn)
                    start = k.bind(cached.start(cached.table[slot, logical], kv_head))
                    at = k.bind(logical * KV_BLOCK + thread)
                    visible = k.bind(seen(at))
                    k.choose(visible, lambda: score_of(start, at), lambda: k.store(score, f32(LOWEST), 0))
                    (most,) = k.reduce(thread, [score[0]], shared, largest=True)
                    highest = k.bind(tirx.Max(running[0], most))
                    decay = k.bind(exp(running[0] - highest))
                    weight = k.bind(tirx.Select(visible, exp(score[0] - highest), f32(0.0)))
                    k.store(weights, weight, thread)
                    (total,) = k.reduce(thread, [weight], shared)  # and weights are there for all
                    k.store(running, highest, 0)
                    k.store(running, fma(running[1], decay, total), 1)
                    begin = k.bind(tirx.Max(oldest - logical * KV_BLOCK, i32(0)))
                    end = k.bind(tirx.Min(position - logical * KV_BLOCK, i32(KV_BLOCK - 1)) + 1)

                    def weigh(part: int, d: Expr) -> None:
                        k.store(sums, sums[part] * decay, part)
                        with k.loop(0, end - begin) as j:
                            row = k.bind(begin + j)
                            value = tirx.Cast("float32", cached.values[start + row * heads.dim + d])
                            k.store(sums, fma(weights[row], value, sums[part]), part)

                    each_dimension(weigh)
                    k.barrier()
                each_dimension(lambda part, d: k.store(o, sums[part] / running[1], m, first + d))

            k.choose(position >= i32(0), attend, clear)

    return gpu_kernel(name, gpu, body)
