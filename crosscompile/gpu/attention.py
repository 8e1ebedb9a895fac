"""Attention on a GPU in two kernels: parts of the context by workgroups of their own, then all parts of a row together.

A workgroup takes blocks of 64 positions of one row and query head, one after the other, with an online softmax; each
block's keys are read by several threads a position, and its values by several threads a dimension. Loads come in runs
of independent ones: there are few workgroups, and nothing else hides how long memory takes.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, exp, fma, tanh
from crosscompile.gpu.attention_alone import merge_alone, parts_alone, splits_alone
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32
from crosscompile.gpu.cache import Cache
from crosscompile.gpu.rows import Output
from crosscompile.gpu.schedules import SCHEDULES, Schedule
from crosscompile.kernels.attention import LOWEST
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import divisor, kernel, kernel_maker
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.kernels.kv_cache import Cache as DeclaredCache
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

RUN = 16
"""Loads that are under way together."""


def supports(heads: Heads) -> bool:
    """Whether these kernels can: heads that are whole groups."""
    return heads.dim % GROUP == 0 and heads.dim <= 256


def splits_for(n: int, heads: Heads, schedule: Schedule) -> int:
    """Parts that a context is cut into, for n rows."""
    if schedule.alone:
        return splits_alone(n, heads, schedule)
    return max(1, min(schedule.splits, schedule.workgroups // (n * heads.query)))


@kernel_maker
def attention_parts(n: int, heads: Heads, splits: int) -> tirx.PrimFunc:
    """What attention's first kernel takes and gives, for planning; only GPUs have it.

    (q, positions, slots, block_table, k, v) -> parts (n, Hq, splits, dim + 2) f32: sums of values, not yet divided, the
    largest score, and the sum of exponentials. Part s has every splits-th block, from the s-th that a row sees on;
    parts without a block hold nothing.
    """

    def body(k: Declaration) -> None:
        k.buffer("q", (n, heads.query * heads.dim), "float32")
        DeclaredCache.parameters(k, n, heads)
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        with k.shared(1) as unit:
            k.store(parts, f32(0.0), unit, 0, 0, 0)

    return kernel("attention_parts", body)


@kernel_maker
def attention_merge(n: int, heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """The second one: (parts, positions) -> o (n, Hq · dim) f32, or quantized as `form` says. A row -1 gives zeros."""
    columns = heads.query * heads.dim

    def body(k: Declaration) -> None:
        k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        k.buffer("positions", (n,), "int32")
        declared = [("o", (n, columns), "float32")] if form is None else form.outputs(n, columns)
        out: list[Any] = [k.buffer(*each) for each in declared]
        with k.shared(1) as unit:
            zero = f32(0.0) if form is None else tirx.const(0, form.dtype)
            k.store(out[0], zero, unit, *([0] * (len(out[0].shape) - 1)))

    return kernel("attention_merge", body)


def _visible_blocks(k: Builder, heads: Heads, position: Expr) -> tuple[Expr, Expr, Expr]:
    """(oldest position, its block, the newest one's block) that a row sees."""
    oldest = i32(0)
    if heads.window:
        oldest = k.bind(tirx.Max(position - i32(heads.window - 1), i32(0)))
    first = k.bind(tirx.truncdiv(oldest, i32(KV_BLOCK)))
    return oldest, first, k.bind(tirx.truncdiv(position, i32(KV_BLOCK)))


def parts_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int) -> tirx.PrimFunc:
    """The GPU's attention_parts."""
    if SCHEDULES[gpu.schedule].alone:
        return parts_alone(name, gpu, n, heads, splits)
    per_kv = heads.query // heads.kv
    readers = divisor(heads.dim, max(1, min(256, gpu.invocations) // KV_BLOCK))  # threads for a position's key
    threads = readers * KV_BLOCK
    sharers = divisor(KV_BLOCK, max(1, threads // heads.dim))  # threads for a dimension's values
    across = threads // sharers
    parts_of = -(-heads.dim // across)  # dimensions that a thread sums

    def body(k: Builder) -> None:
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        cached = Cache.parameters(k, n, heads)
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        query, weights, shared = k.shared(heads.dim), k.shared(KV_BLOCK), k.shared(threads)
        sums, running, score = k.local(parts_of), k.local(2), k.local(1)

        with k.launch((heads.query, n, splits), threads) as (head, m, split, thread):
            kv_head = k.bind(tirx.truncdiv(head, i32(per_kv)))
            position = k.bind(cached.positions[m])
            reader, place = k.bind(tirx.truncdiv(thread, i32(KV_BLOCK))), k.bind(tirx.truncmod(thread, i32(KV_BLOCK)))
            sharer, column = k.bind(tirx.truncdiv(thread, i32(across))), k.bind(tirx.truncmod(thread, i32(across)))

            def key_part(start: Expr) -> None:
                """This thread's dimensions of q · k for its position, to shared memory."""
                each = heads.dim // readers
                run = divisor(each, RUN)
                k.store(score, f32(0.0), 0)
                with k.loop(0, each // run) as turn:
                    d = k.bind(reader * each + turn * run)
                    at = k.bind(start + d * KV_BLOCK + place)
                    keys = [k.bind(tirx.Cast("float32", cached.keys[at + i * KV_BLOCK])) for i in range(run)]
                    total = score[0]
                    for i, key in enumerate(keys):
                        total = fma(query[d + i], key, total)
                    k.store(score, total, 0)
                k.store(shared, score[0], thread)

            def weigh(start: Expr, decay: Expr) -> None:
                """Adds the values of a block, times their weights. What was never written may be no number."""
                each = KV_BLOCK // sharers
                run = divisor(each, RUN)
                for part in range(parts_of):
                    d = k.bind(column + part * across)
                    with k.when(d < i32(heads.dim)):
                        k.store(sums, sums[part] * decay, part)
                        with k.loop(0, each // run) as turn:
                            j = k.bind(sharer * each + turn * run)
                            at = k.bind(start + j * heads.dim + d)
                            values = [
                                k.bind(tirx.Cast("float32", cached.values[at + i * heads.dim])) for i in range(run)
                            ]
                            total = sums[part]
                            for i, value in enumerate(values):
                                weight = k.bind(weights[j + i])
                                total = fma(weight, tirx.Select(weight > f32(0.0), value, f32(0.0)), total)
                            k.store(sums, total, part)

            def attend() -> None:
                with k.strided(thread, heads.dim) as d:
                    k.store(query, q[m, head * heads.dim + d], d)
                k.store(running, f32(LOWEST), 0)
                k.store(running, f32(0.0), 1)
                for part in range(parts_of):
                    k.store(sums, f32(0.0), part)
                oldest, first, last = _visible_blocks(k, heads, position)
                slot = k.bind(cached.slots[m])
                k.barrier()
                with k.loop(0, tirx.truncdiv(last - first - split + splits, i32(splits))) as turn:
                    logical = k.bind(first + split + turn * splits)
                    start = k.bind(cached.start(cached.table[slot, logical], kv_head))
                    at = k.bind(logical * KV_BLOCK + place)
                    key_part(start)
                    k.barrier()
                    total = shared[place]
                    for other in range(1, readers):
                        total = total + shared[place + other * KV_BLOCK]
                    scaled = total * f32(heads.scores)
                    if cached.quantized:
                        scaled = scaled * cached.scale(k, cached.keys, start, place)
                    if heads.cap:
                        scaled = tanh(scaled * f32(1.0 / heads.cap)) * f32(heads.cap)
                    visible = k.bind(tirx.And(at >= oldest, at <= position))
                    own = k.bind(tirx.Select(visible, scaled, f32(LOWEST)))
                    k.barrier()
                    (most,) = k.reduce(thread, [own], shared, largest=True)
                    highest = k.bind(tirx.Max(running[0], most))
                    decay = k.bind(exp(running[0] - highest))
                    weight = k.bind(tirx.Select(visible, exp(own - highest), f32(0.0)))
                    counted = k.bind(tirx.Select(tirx.EQ(reader, i32(0)), weight, f32(0.0)))
                    with k.when(tirx.EQ(reader, i32(0))):
                        if cached.quantized:
                            scale = cached.scale(k, cached.values, start, place)
                            weight = tirx.Select(visible, weight * scale, f32(0.0))
                        k.store(weights, weight, place)
                    (sum_,) = k.reduce(thread, [counted], shared)  # and weights are there for all
                    k.store(running, highest, 0)
                    k.store(running, fma(running[1], decay, sum_), 1)
                    weigh(start, decay)
                for part in range(parts_of):  # the sharers of a dimension, together
                    k.store(shared, sums[part], thread)
                    k.barrier()
                    d = k.bind(thread + part * across)
                    with k.when(tirx.And(thread < i32(across), d < i32(heads.dim))):
                        whole = shared[thread]
                        for other in range(1, sharers):
                            whole = whole + shared[thread + other * across]
                        k.store(parts, whole, m, head, split, d)
                    k.barrier()
                with k.when(tirx.EQ(thread, i32(0))):
                    k.store(parts, running[0], m, head, split, heads.dim)
                    k.store(parts, running[1], m, head, split, heads.dim + 1)

            with k.when(position >= i32(0)):
                attend()

    return gpu_kernel(name, gpu, body)


def merge_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """The GPU's attention_merge: a workgroup for each row and head, a thread for each dimension, then each group."""
    if SCHEDULES[gpu.schedule].alone:
        return merge_alone(name, gpu, n, heads, splits, form)

    def body(k: Builder) -> None:
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        positions = k.buffer("positions", (n,), "int32")
        out = Output(k, n, heads.query * heads.dim, form)
        merged, total = k.shared(heads.dim), k.local(2)
        groups = heads.dim // GROUP
        with k.launch((heads.query, n), min(heads.dim, gpu.invocations)) as (head, m, thread):
            position = k.bind(positions[m])
            used = k.local(1, "int32")
            k.store(used, i32(0), 0)
            with k.when(position >= i32(0)):
                _, first, last = _visible_blocks(k, heads, position)
                k.store(used, tirx.Min(last - first + 1, i32(splits)), 0)
            n_used = k.bind(used[0])
            with k.strided(thread, heads.dim) as d:
                k.store(total, f32(LOWEST), 0)
                with k.loop(0, n_used) as s:
                    k.store(total, tirx.Max(total[0], parts[m, head, s, heads.dim]), 0)
                most = k.bind(total[0])
                k.store(total, f32(0.0), 0)
                k.store(total, f32(0.0), 1)
                with k.loop(0, n_used) as s:
                    factor = k.bind(exp(parts[m, head, s, heads.dim] - most))
                    k.store(total, fma(parts[m, head, s, d], factor, total[0]), 0)
                    k.store(total, fma(parts[m, head, s, heads.dim + 1], factor, total[1]), 1)
                k.store(merged, tirx.Select(n_used > i32(0), total[0] / tirx.Max(total[1], f32(1e-38)), f32(0.0)), d)
            k.barrier()
            with k.when(thread < i32(groups)):
                values = [k.bind(merged[thread * GROUP + i]) for i in range(GROUP)]
                out.write(m, k.bind(head * groups + thread), values)

    return gpu_kernel(name, gpu, body)
