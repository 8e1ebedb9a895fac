"""Attention where threads share nothing: each takes some rows and heads, and reads keys and values once for all.

For what imitates a GPU (schedules.py). A thread goes through the blocks of its part of the context, some positions at a
time, with an online softmax for each of its queries. Rows of one thread may be of several sessions: it goes through
each session's blocks in turn.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.attention_rows import LOWEST, flattened
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane, quotient, remainder
from crosscompile.gpu.cache import Cache
from crosscompile.gpu.rows import Output
from crosscompile.gpu.schedules import SCHEDULES, Schedule
from crosscompile.kernels.build import divisor
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

RUN = 8
"""Positions that are looked at together, and dimensions."""


def _shared(n: int, heads: Heads, schedule: Schedule) -> tuple[int, int]:
    """(rows, heads) that are one thread's."""
    share = divisor(heads.query // heads.kv, schedule.queries)
    return divisor(n, max(1, schedule.queries // share)), share


def splits_alone(n: int, heads: Heads, schedule: Schedule) -> int:
    """Ranges that each block is cut into: enough to keep every thread of so many workgroups busy, if possible."""
    tile, share = _shared(n, heads, schedule)
    splits = 1
    while 2 * splits <= min(schedule.splits, KV_BLOCK // RUN) and (
        splits * (n // tile) * (heads.query // share) < schedule.workgroups * schedule.threads
    ):
        splits *= 2
    return splits


def parts_alone(name: str, gpu: Gpu, n: int, heads: Heads, splits: int) -> tirx.PrimFunc:
    """As crosscompile.gpu.attention.parts_kernel, but part s has the s-th of `splits` ranges of every block."""
    per_kv = heads.query // heads.kv
    tile, share = _shared(n, heads, SCHEDULES[gpu.schedule])
    groups, tiles, each = heads.query // share, n // tile, KV_BLOCK // splits
    work = groups * tiles * splits
    queries = [(m, h) for m in range(tile) for h in range(share)]

    def body(k: Builder) -> None:
        q = k.quads("q", n * heads.query * heads.dim * 4, "float32")
        cached = Cache.parameters(k, n, heads, runs=True)
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        threads = k.schedule.threads
        sums = k.local(len(queries) * heads.dim)
        scores, weights = k.local(len(queries) * RUN), k.local(len(queries) * RUN)
        highest, total = k.local(len(queries)), k.local(len(queries))
        newest, oldest = k.local(1, "int32"), k.local(1, "int32")
        with k.launch((-(-work // threads),), threads) as (group, thread):
            unit = k.bind(tirx.Min(group * threads + thread, i32(work - 1)))  # the last ones compute the same again
            split, rest = k.bind(remainder(unit, splits)), k.bind(quotient(unit, splits))
            first_row = k.bind(remainder(rest, tiles) * tile)
            first_head = k.bind(quotient(rest, tiles) * share)
            kv_head = k.bind(quotient(first_head, per_kv))
            positions = [k.bind(cached.positions[first_row + m]) for m in range(tile)]
            slots = [k.bind(cached.slots[first_row + m]) for m in range(tile)]
            for i in range(len(queries)):
                k.store(highest, f32(LOWEST), i)
                k.store(total, f32(0.0), i)
                for d in range(heads.dim):
                    k.store(sums, f32(0.0), i * heads.dim + d)

            def run_of(leader: int) -> None:
                """One session: that of the row `leader`, and all rows of it."""
                mine = [k.bind(tirx.And(tirx.EQ(slots[m], slots[leader]), positions[m] >= i32(0))) for m in range(tile)]
                k.store(newest, i32(-1), 0)
                k.store(oldest, i32(2**31 - 1), 0)
                for m in range(tile):
                    begin = tirx.Max(positions[m] - i32(heads.window - 1), i32(0)) if heads.window else i32(0)
                    k.store(newest, tirx.Select(mine[m], tirx.Max(newest[0], positions[m]), newest[0]), 0)
                    k.store(oldest, tirx.Select(mine[m], tirx.Min(oldest[0], begin), oldest[0]), 0)
                last = k.bind(quotient(newest[0] + i32(KV_BLOCK), KV_BLOCK))  # behind the newest block
                first = k.bind(quotient(tirx.Min(oldest[0], tirx.Max(newest[0], i32(0))), KV_BLOCK))
                runs = each // RUN
                with k.loop(first * runs, last * runs) as turn:
                    logical = k.bind(quotient(turn, runs))
                    place = k.bind(split * each + remainder(turn, runs) * RUN)
                    start = k.bind(cached.start(cached.table[slots[leader], logical], kv_head))
                    score(start, place)
                    scales: list[list[Expr]] = []
                    if cached.quantized:
                        scales = [cached.run_of_scales(k, part, start, place) for part in (cached.keys, cached.values)]
                    weigh(k.bind(logical * KV_BLOCK + place), mine, scales)
                    gather(start, place)

            def score(start: Expr, place: Expr) -> None:
                """q · k of every query with RUN positions."""
                for i in range(len(queries) * RUN):
                    k.store(scores, f32(0.0), i)
                with k.loop(0, heads.dim // 4) as d:
                    keys = [cached.run(k, cached.keys, start + (d * 4 + i) * KV_BLOCK + place) for i in range(4)]
                    for i, (m, h) in enumerate(queries):
                        at = ((first_row + m) * heads.query + first_head + h) * (heads.dim // 4) + d
                        query = k.bind(q[at])
                        for j in range(RUN):
                            sum_ = scores[i * RUN + j]
                            for c in range(4):
                                sum_ = fma(lane(query, c), keys[c][j], sum_)
                            k.store(scores, sum_, i * RUN + j)

            def weigh(at: Expr, mine: list[Expr], scales: list[list[Expr]]) -> None:
                """Scores to weights, and what was summed so far to the new largest score.

                scales: of keys and of values that are int8; the latter go into the weights.
                """
                for i, (m, _) in enumerate(queries):
                    visible, scaled = [], []
                    for j in range(RUN):
                        value = scores[i * RUN + j] * f32(heads.scores)
                        value = value * scales[0][j] if scales else value
                        value = flattened(value, heads.cap)
                        seen = tirx.And(mine[m], at + j <= positions[m])
                        if heads.window:
                            seen = tirx.And(seen, at + j > positions[m] - i32(heads.window))
                        visible.append(k.bind(seen))
                        scaled.append(k.bind(tirx.Select(visible[j], value, f32(LOWEST))))
                    most = highest[i]
                    for value in scaled:
                        most = tirx.Max(most, value)
                    most = k.bind(most)
                    decay = k.bind(tirx.exp(highest[i] - most))
                    k.store(highest, most, i)
                    sum_ = total[i] * decay
                    for j in range(RUN):
                        weight = k.bind(tirx.Select(visible[j], tirx.exp(scaled[j] - most), f32(0.0)))
                        scaled_weight = tirx.Select(visible[j], weight * scales[1][j], f32(0.0)) if scales else weight
                        k.store(weights, scaled_weight, i * RUN + j)
                        sum_ = sum_ + weight
                    k.store(total, sum_, i)
                    for d in range(heads.dim):
                        k.store(sums, sums[i * heads.dim + d] * decay, i * heads.dim + d)

            def gather(start: Expr, place: Expr) -> None:
                """Adds the values, times their weights. What was never written may be no number."""
                with k.loop(0, RUN) as j:
                    each_weight = [k.bind(weights[i * RUN + j]) for i in range(len(queries))]
                    anyone = each_weight[0]
                    for weight in each_weight[1:]:
                        anyone = tirx.Max(anyone, weight)
                    seen = k.bind(anyone > f32(0.0))
                    for d in range(0, heads.dim, RUN):
                        values = cached.run(k, cached.values, start + (place + j) * heads.dim + d)
                        for c, value in enumerate(values):
                            number = k.bind(tirx.Select(seen, value, f32(0.0)))
                            for i, weight in enumerate(each_weight):
                                at = i * heads.dim + d + c
                                k.store(sums, fma(weight, number, sums[at]), at)

            for leader in range(tile):
                leads = positions[leader] >= i32(0)
                for other in range(leader):
                    met = tirx.And(tirx.EQ(slots[other], slots[leader]), positions[other] >= i32(0))
                    leads = tirx.And(leads, tirx.Not(met))
                if leader == 0:
                    run_of(leader)
                else:
                    with k.when(leads):
                        run_of(leader)
            for i, (m, h) in enumerate(queries):
                for d in range(heads.dim):
                    k.store(parts, sums[i * heads.dim + d], first_row + m, first_head + h, split, d)
                k.store(parts, highest[i], first_row + m, first_head + h, split, heads.dim)
                k.store(parts, total[i], first_row + m, first_head + h, split, heads.dim + 1)

    return gpu_kernel(name, gpu, body)


def merge_alone(name: str, gpu: Gpu, n: int, heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """As crosscompile.gpu.attention.merge_kernel: a thread for each group of a row, or half of one."""
    width = gcd(heads.dim, GROUP)
    groups, per_head = heads.query * heads.dim // width, heads.dim // width
    assert width == GROUP or form is None

    def body(k: Builder) -> None:
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        positions = k.buffer("positions", (n,), "int32")
        if width == GROUP:
            out = Output(k, n, heads.query * heads.dim, form)
        else:
            y = k.buffer("y", (n, heads.query * heads.dim), "float32")
        merged, total, threads = k.local(width), k.local(1), k.schedule.threads
        with k.launch((-(-n * groups // threads),), threads) as (group, thread):
            unit = k.bind(tirx.Min(group * threads + thread, i32(n * groups - 1)))
            m, g = k.bind(quotient(unit, groups)), k.bind(remainder(unit, groups))
            head, first = k.bind(quotient(g, per_head)), k.bind(remainder(g, per_head) * width)
            highest: list[Any] = [k.bind(parts[m, head, s, heads.dim]) for s in range(splits)]
            most = highest[0]
            for value in highest[1:]:
                most = tirx.Max(most, value)
            most = k.bind(most)
            k.store(total, f32(0.0), 0)
            for i in range(width):
                k.store(merged, f32(0.0), i)
            for s in range(splits):
                factor = k.bind(tirx.exp(highest[s] - most)) if splits > 1 else f32(1.0)
                k.store(total, fma(parts[m, head, s, heads.dim + 1], factor, total[0]), 0)
                for i in range(width):
                    k.store(merged, fma(parts[m, head, s, first + i], factor, merged[i]), i)
            kept = k.bind(positions[m] >= i32(0))
            inverse = k.bind(f32(1.0) / tirx.Max(total[0], f32(1e-38)))
            values = [k.bind(tirx.Select(kept, merged[i] * inverse, f32(0.0))) for i in range(width)]
            if width == GROUP:
                out.write(m, g, values)
                return
            for i, value in enumerate(values):
                k.store(y, value, m, g * width + i)

    return gpu_kernel(name, gpu, body)
