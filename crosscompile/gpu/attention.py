"""Attention on a GPU: a workgroup for each row and query head, a thread for each of some blocks' positions, then for each
dimension; online softmax over those blocks in turn.

Loads come in runs of independent ones: nothing else hides how long memory takes, since there are few workgroups.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from crosscompile.arithmetic import Expr, exp, fma, tanh
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32
from crosscompile.gpu.cache import Cache
from crosscompile.kernels.attention import LOWEST
from crosscompile.kernels.build import divisor
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.spirv.capabilities import Gpu

RUN = 16
"""Loads that are under way together."""


def supports(heads: Heads) -> bool:
    """Whether `attention` can: caches in floats."""
    return heads.dtype in ("f16", "f32")


def attention(name: str, gpu: Gpu, n: int, heads: Heads) -> tirx.PrimFunc:
    """As crosscompile.kernels.attention.attention."""
    per_kv = heads.query // heads.kv
    blocks = max(1, min(256, gpu.invocations) // KV_BLOCK)
    threads = blocks * KV_BLOCK
    sharers = divisor(KV_BLOCK, max(1, threads // heads.dim))  # threads that share a dimension's positions
    parts = -(-heads.dim // (threads // sharers))  # dimensions that a thread sums

    def body(k: Builder) -> None:
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        cached = Cache.parameters(k, n, heads)
        o = k.buffer("o", (n, heads.query * heads.dim), "float32")
        query, weights, shared = k.shared(heads.dim), k.shared(threads), k.shared(threads)
        sums, running, score = k.local(parts), k.local(2), k.local(1)
        with k.launch((heads.query, n), threads) as (head, m, thread):
            first = k.bind(head * heads.dim)
            kv_head = k.bind(tirx.truncdiv(head, i32(per_kv)))
            position = k.bind(cached.positions[m])
            across = threads // sharers
            sharer, column = k.bind(tirx.truncdiv(thread, i32(across))), k.bind(tirx.truncmod(thread, i32(across)))

            def clear() -> None:
                with k.strided(thread, heads.dim) as d:
                    k.store(o, f32(0.0), m, first + d)

            def seen(at: Expr) -> Expr:
                inside = at <= position
                return tirx.And(inside, at > position - i32(heads.window)) if heads.window else inside

            def score_of(start: Expr) -> None:
                k.store(score, f32(0.0), 0)
                run = divisor(heads.dim, RUN)
                with k.loop(0, heads.dim // run) as turn:
                    at = k.bind(start + turn * (run * KV_BLOCK))
                    keys = [k.bind(tirx.Cast("float32", cached.keys[at + i * KV_BLOCK])) for i in range(run)]
                    total = score[0]
                    for i, key in enumerate(keys):
                        total = fma(query[turn * run + i], key, total)
                    k.store(score, total, 0)
                scaled = score[0] * f32(heads.scores)
                if heads.cap:
                    scaled = tanh(scaled * f32(1.0 / heads.cap)) * f32(heads.cap)
                k.store(score, scaled, 0)

            def each_part(do: Callable[[int, Expr], None]) -> None:
                for part in range(parts):
                    d = k.bind(column + part * across)
                    with k.when(d < i32(heads.dim)):
                        do(part, d)

            def weigh(block: int, start: Expr) -> None:
                """Adds the values of a block, times their weights. What was never written may be no number."""
                each = KV_BLOCK // sharers
                run = divisor(each, RUN)

                def add(part: int, d: Expr) -> None:
                    with k.loop(0, each // run) as turn:
                        j = k.bind(sharer * each + turn * run)
                        at = k.bind(start + j * heads.dim + d)
                        values = [k.bind(tirx.Cast("float32", cached.values[at + i * heads.dim])) for i in range(run)]
                        total = sums[part]
                        for i, value in enumerate(values):
                            weight = k.bind(weights[block * KV_BLOCK + j + i])
                            total = fma(weight, tirx.Select(weight > f32(0.0), value, f32(0.0)), total)
                        k.store(sums, total, part)

                each_part(add)

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
                mine, lane = (k.bind(each(thread, i32(KV_BLOCK))) for each in (tirx.truncdiv, tirx.truncmod))
                k.barrier()
                turns = k.bind(tirx.truncdiv(last_block - first_block, i32(blocks)) + 1)
                with k.loop(0, turns) as turn:
                    base = k.bind(first_block + turn * blocks)
                    logical = k.bind(base + mine)
                    visible = k.bind(seen(logical * KV_BLOCK + lane))

                    def scored() -> None:
                        score_of(k.bind(cached.start(cached.table[slot, logical], kv_head) + lane))

                    k.choose(visible, scored, lambda: k.store(score, f32(LOWEST), 0))
                    (most,) = k.reduce(thread, [score[0]], shared, largest=True)
                    highest = k.bind(tirx.Max(running[0], most))
                    decay = k.bind(exp(running[0] - highest))
                    weight = k.bind(tirx.Select(visible, exp(score[0] - highest), f32(0.0)))
                    k.store(weights, weight, thread)
                    (total,) = k.reduce(thread, [weight], shared)  # and weights are there for all
                    k.store(running, highest, 0)
                    k.store(running, fma(running[1], decay, total), 1)
                    for part in range(parts):
                        k.store(sums, sums[part] * decay, part)
                    for block in range(blocks):
                        with k.when(base + block <= last_block):
                            weigh(block, k.bind(cached.start(cached.table[slot, base + block], kv_head)))
                    k.barrier()
                for part in range(parts):  # the sharers of a dimension, together
                    k.store(weights, sums[part], thread)
                    k.barrier()
                    d = k.bind(thread + part * across)
                    with k.when(tirx.And(thread < i32(across), d < i32(heads.dim))):
                        whole = weights[thread]
                        for other in range(1, sharers):
                            whole = whole + weights[thread + other * across]
                        k.store(o, whole / running[1], m, first + d)
                    k.barrier()

            k.choose(position >= i32(0), attend, clear)

    return gpu_kernel(name, gpu, body)
