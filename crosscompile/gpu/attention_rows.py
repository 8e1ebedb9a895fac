"""Attention of one row by a workgroup: all query heads that share keys and values, read once for them.

Blocks of 64 positions, one after the other, with an online softmax; each block's keys are read by several threads a
position, and its values by several threads a dimension. Loads come in runs of independent ones: there are few
workgroups, and nothing else hides how long memory takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, exp, fma, tanh
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32
from crosscompile.gpu.cache import Cache
from crosscompile.gpu.schedules import SCHEDULES, Schedule
from crosscompile.kernels.attention import LOWEST
from crosscompile.kernels.build import divisor
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.spirv.capabilities import Gpu

RUN = 16
"""Loads that are under way together."""
THREADS = 256
"""Of a workgroup, where a GPU has as many."""
FLOATS = 4096
"""Of shared memory, which every GPU has for a workgroup."""
TOGETHER = 8
"""Query heads at once: each has sums in registers."""


@dataclass(frozen=True)
class Layer:
    """What a kernel works on: queries (n, Hq · dim), the cache, and the parts that it writes."""

    heads: Heads
    splits: int
    q: Any
    cached: Cache
    parts: Any

    @classmethod
    def parameters(cls, k: Builder, n: int, heads: Heads, splits: int) -> Layer:
        """Declares them for n rows."""
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        cached = Cache.parameters(k, n, heads)
        return cls(heads, splits, q, cached, k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32"))

    def score(self, value: Expr) -> Expr:
        """What becomes of q · k."""
        scaled = value * f32(self.heads.scores)
        return tanh(scaled * f32(1.0 / self.heads.cap)) * f32(self.heads.cap) if self.heads.cap else scaled

    def first_block(self, k: Builder, first: Expr, split: Expr) -> Expr:
        """The first block of a part, from block `first` on: its number leaves `split` when divided by `splits`."""
        if self.splits == 1:
            return first
        return k.bind(
            first + tirx.truncmod(split + i32(self.splits) - tirx.truncmod(first, i32(self.splits)), i32(self.splits))
        )

    def turns(self, first: Expr, last: Expr) -> Expr:
        """How many blocks of a part there are from `first` on."""
        return tirx.truncdiv(last - first + i32(self.splits), i32(self.splits))


@dataclass(frozen=True)
class Room:
    """Shared memory for `count` query heads: their queries, the weights of a block, and a number of each thread."""

    query: Any
    weights: Any
    numbers: Any

    @staticmethod
    def sizes(count: int, dim: int, threads: int) -> tuple[int, int, int]:
        """Elements of each, in this order."""
        return count * dim, count * KV_BLOCK, count * threads


def oldest_of(position: Expr, heads: Heads) -> Expr:
    """The oldest position that a row sees."""
    return tirx.Max(position - i32(heads.window - 1), i32(0)) if heads.window else i32(0)


def block_of(position: Expr) -> Expr:
    """The number of a position's block in its session."""
    return tirx.truncdiv(position, i32(KV_BLOCK))


def heads_at_once(n: int, heads: Heads, schedule: Schedule, threads: int = THREADS) -> int:
    """Query heads of a KV head that a workgroup takes: it has room for them, and enough workgroups are left."""
    room = FLOATS // sum(Room.sizes(1, heads.dim, threads))
    spare = heads.query * n * schedule.splits // schedule.workgroups
    return divisor(heads.query // heads.kv, max(1, min(TOGETHER, room, spare)))


def rows_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int) -> tirx.PrimFunc:
    """crosscompile.gpu.attention.attention_parts, each row by workgroups of its own."""
    threads = min(THREADS, gpu.invocations)
    count = heads_at_once(n, heads, SCHEDULES[gpu.schedule], threads)

    def body(k: Builder) -> None:
        layer = Layer.parameters(k, n, heads, splits)
        room = Room(*(k.shared(size) for size in Room.sizes(count, heads.dim, threads)))
        grid = heads.query // count, n, splits
        with (
            k.launch(grid, threads) as (group, m, split, thread),
            k.when(layer.cached.positions[m] >= i32(0)),
        ):
            attend_row(k, layer, room, m, k.bind(group * count), count, split, thread)

    return gpu_kernel(name, gpu, body)


def attend_row(
    k: Builder, layer: Layer, room: Room, m: Expr, head: Expr, count: int, split: Expr, thread: Expr
) -> None:
    """A part of row m's context, for the query heads head to head + count − 1, which share a KV head."""
    heads, cached, dim = layer.heads, layer.cached, layer.heads.dim
    threads, each_head = k.threads, range(count)
    readers = divisor(dim, max(1, threads // KV_BLOCK))  # threads for a position's key
    sharers = divisor(KV_BLOCK, max(1, threads // dim))  # threads for a dimension's values
    across = threads // sharers
    parts_of = -(-dim // across)  # dimensions that a thread sums
    sums, running, score = k.local(count * parts_of), k.local(2 * count), k.local(count)
    position, slot = k.bind(cached.positions[m]), k.bind(cached.slots[m])
    kv_head = k.bind(tirx.truncdiv(head, i32(heads.query // heads.kv)))
    reader, place = k.bind(tirx.truncdiv(thread, i32(KV_BLOCK))), k.bind(tirx.truncmod(thread, i32(KV_BLOCK)))
    sharer, column = k.bind(tirx.truncdiv(thread, i32(across))), k.bind(tirx.truncmod(thread, i32(across)))

    def key_parts(start: Expr) -> None:
        """This thread's dimensions of q · k for its position, to shared memory."""
        each = dim // readers
        run = divisor(each, RUN)
        for h in each_head:
            k.store(score, f32(0.0), h)
        with k.loop(0, each // run) as turn:
            d = k.bind(reader * each + turn * run)
            at = k.bind(start + d * KV_BLOCK + place)
            keys = [k.bind(tirx.Cast("float32", cached.keys[at + i * KV_BLOCK])) for i in range(run)]
            for h in each_head:
                total = score[h]
                for i, key in enumerate(keys):
                    total = fma(room.query[d + (h * dim + i)], key, total)
                k.store(score, total, h)
        for h in each_head:
            k.store(room.numbers, score[h], thread + h * threads)

    def weigh(start: Expr, base: Expr, decays: list[Expr]) -> None:
        """Adds the values of a block, times their weights. What was never written may be no number."""
        each = KV_BLOCK // sharers
        run = divisor(each, RUN)
        for part in range(parts_of):
            d = k.bind(column + part * across)
            with k.when(d < i32(dim)):
                for h in each_head:
                    k.store(sums, sums[h * parts_of + part] * decays[h], h * parts_of + part)
                with k.loop(0, each // run) as turn:
                    j = k.bind(sharer * each + turn * run)
                    at = k.bind(start + j * dim + d)
                    loaded = [k.bind(tirx.Cast("float32", cached.values[at + i * dim])) for i in range(run)]
                    values = [
                        k.bind(tirx.Select(base + (j + i) <= position, value, f32(0.0)))
                        for i, value in enumerate(loaded)
                    ]
                    for h in each_head:
                        total = sums[h * parts_of + part]
                        for i, value in enumerate(values):
                            total = fma(room.weights[j + (h * KV_BLOCK + i)], value, total)
                        k.store(sums, total, h * parts_of + part)

    with k.strided(thread, count * dim) as d:
        k.store(room.query, layer.q[m, head * dim + d], d)
    for h in each_head:
        k.store(running, f32(LOWEST), 2 * h)
        k.store(running, f32(0.0), 2 * h + 1)
        for part in range(parts_of):
            k.store(sums, f32(0.0), h * parts_of + part)
    oldest = k.bind(oldest_of(position, heads))
    first, last = layer.first_block(k, block_of(oldest), split), k.bind(block_of(position))
    k.barrier()
    with k.loop(0, layer.turns(first, last)) as turn:
        logical = k.bind(first + turn * layer.splits)
        base = k.bind(logical * KV_BLOCK)
        start = k.bind(cached.start(cached.table[slot, logical], kv_head))
        at = k.bind(base + place)
        visible = k.bind(tirx.And(at >= oldest, at <= position))
        key_parts(start)
        k.barrier()
        own = []
        scale = cached.scale(k, cached.keys, start, place) if cached.quantized else None
        for h in each_head:
            total = room.numbers[place + h * threads]
            for other in range(1, readers):
                total = total + room.numbers[place + (h * threads + other * KV_BLOCK)]
            scaled = layer.score(total if scale is None else total * scale)
            own.append(k.bind(tirx.Select(visible, scaled, f32(LOWEST))))
        k.barrier()
        most = k.reduce(thread, own, room.numbers, largest=True)
        highest = [k.bind(tirx.Max(running[2 * h], most[h])) for h in each_head]
        decays = [k.bind(exp(running[2 * h] - highest[h])) for h in each_head]
        weights = [k.bind(tirx.Select(visible, exp(own[h] - highest[h]), f32(0.0))) for h in each_head]
        leads = k.bind(tirx.EQ(reader, i32(0)))
        counted = [k.bind(tirx.Select(leads, weight, f32(0.0))) for weight in weights]
        with k.when(leads):
            scale = cached.scale(k, cached.values, start, place) if cached.quantized else None
            for h, weight in enumerate(weights):
                times = weight if scale is None else tirx.Select(visible, weight * scale, f32(0.0))
                k.store(room.weights, times, place + h * KV_BLOCK)
        totals = k.reduce(thread, counted, room.numbers)  # and weights are there for all
        for h in each_head:
            k.store(running, highest[h], 2 * h)
            k.store(running, fma(running[2 * h + 1], decays[h], totals[h]), 2 * h + 1)
        weigh(start, base, decays)
    for part in range(parts_of):  # the sharers of a dimension, together
        for h in each_head:
            k.store(room.numbers, sums[h * parts_of + part], thread + h * threads)
        k.barrier()
        d = k.bind(thread + part * across)
        with k.when(tirx.And(thread < i32(across), d < i32(dim))):
            for h in each_head:
                whole = room.numbers[thread + h * threads]
                for other in range(1, sharers):
                    whole = whole + room.numbers[thread + (h * threads + other * across)]
                k.store(layer.parts, whole, m, head + h, split, d)
        k.barrier()
    with k.when(tirx.EQ(thread, i32(0))):
        for h in each_head:
            k.store(layer.parts, running[2 * h], m, head + h, split, dim)
            k.store(layer.parts, running[2 * h + 1], m, head + h, split, dim + 1)
