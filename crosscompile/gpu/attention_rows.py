"""Attention of one row by a workgroup: all query heads that share keys and values, read once for them.

Blocks of 64 positions, one after the other, with an online softmax; each block's keys are read by several threads a
position, and its values by several threads a dimension. Loads come in runs of independent ones: there are few
workgroups, and nothing else hides how long memory takes. So whatever does not depend on each other is asked for
together: the row's position, session and query; then where its first block lies; then keys, values and where the next
block lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, quotient, reduction_size, remainder
from crosscompile.gpu.cache import Cache
from crosscompile.gpu.schedules import SCHEDULES, Schedule
from crosscompile.kernels.build import divisor
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.spirv.capabilities import Gpu

RUN = 16
"""Loads that are under way together, where registers are scarce."""
THREADS = 256
"""Of a workgroup, where a GPU has as many."""
FLOATS = 4096
"""Of shared memory, which every GPU has for a workgroup."""
LOWEST = -1.0e30
"""The score of what a row does not see. Its exponential is 0 with every driver, as nothing on the way is infinite."""


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
        return flattened(value * f32(self.heads.scores), self.heads.cap)

    def first_block(self, k: Builder, first: Expr, split: Expr) -> Expr:
        """The first block of a part, from block `first` on: its number leaves `split` when divided by `splits`."""
        if self.splits == 1:
            return first
        return k.bind(first + remainder(split + i32(self.splits) - remainder(first, self.splits), self.splits))

    def turns(self, first: Expr, last: Expr) -> Expr:
        """How many blocks of a part there are from `first` on."""
        return tirx.truncdiv(last - first + i32(self.splits), i32(self.splits))


@dataclass(frozen=True)
class Room:
    """Shared memory for `count` query heads: their queries, the weights of a block, and a number of each thread.

    apart: room for reductions, which takes a barrier less; None where there is none, and `numbers` are that.
    """

    query: Any
    weights: Any
    numbers: Any
    apart: Any = None

    @staticmethod
    def sizes(count: int, dim: int, threads: int) -> tuple[int, int, int]:
        """Elements of the first three, in this order."""
        return count * dim, count * KV_BLOCK, count * reduction_size(threads)

    @classmethod
    def allocate(cls, k: Builder, count: int, dim: int, threads: int) -> Room:
        """All of a workgroup's."""
        sizes = cls.sizes(count, dim, threads)
        fits = sum(sizes) + sizes[2] <= FLOATS
        query, weights, numbers = (k.shared(size) for size in sizes)
        return cls(query, weights, numbers, k.reduction(count, threads) if fits else None)


@dataclass(frozen=True)
class Row:
    """What a part of a row's context begins with.

    position, slot  of the row; oldest: the oldest position that it sees
    first, last     block of the part, and of the row; blocks: how many of the part there are, 0 for a row of none
    asked           this thread's elements of the queries
    """

    position: Expr
    slot: Expr
    oldest: Expr
    first: Expr
    last: Expr
    blocks: Expr
    asked: list[Expr]

    @classmethod
    def read(cls, k: Builder, layer: Layer, m: Expr, head: Expr, count: int, split: Expr, thread: Expr) -> Row:
        """Of row m, for the query heads head to head + count − 1."""
        size = count * layer.heads.dim
        position, slot = k.bind(layer.cached.positions[m]), k.bind(layer.cached.slots[m])
        asked = []
        for first in range(0, size, k.threads):
            at = thread + first
            at = at if first + k.threads <= size else tirx.Min(at, i32(size - 1))
            asked.append(k.bind(layer.q[m, head * layer.heads.dim + at]))
        oldest = k.bind(oldest_of(position, layer.heads))
        begin, last = layer.first_block(k, block_of(oldest), split), k.bind(block_of(position))
        blocks = k.bind(tirx.Select(position >= i32(0), layer.turns(begin, last), i32(0)))
        return cls(position, slot, oldest, begin, last, blocks, asked)


def flattened(score: Expr, cap: float) -> Expr:
    """cap · tanh(score / cap); no cap: 0. Drivers' own tanh may be no number where its exponentials are infinite."""
    if not cap:
        return score
    return f32(cap) - f32(2.0 * cap) / (tirx.exp(tirx.Min(score * f32(2.0 / cap), f32(30.0))) + f32(1.0))


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
    return divisor(heads.query // heads.kv, max(1, min(schedule.heads, room, spare)))


def rows_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int) -> tirx.PrimFunc:
    """crosscompile.gpu.attention.attention_parts, each row by workgroups of its own."""
    threads = min(THREADS, gpu.invocations)
    count = heads_at_once(n, heads, SCHEDULES[gpu.schedule], threads)

    def body(k: Builder) -> None:
        layer = Layer.parameters(k, n, heads, splits)
        room = Room.allocate(k, count, heads.dim, threads)
        with k.launch((heads.query // count, n, splits), threads) as (group, m, split, thread):
            head = k.bind(group * count)
            row = Row.read(k, layer, m, head, count, split, thread)
            with k.when(row.blocks > i32(0)):
                attend_row(k, layer, room, row, m, head, count, split, thread, k.schedule.loads)

    return gpu_kernel(name, gpu, body)


def attend_row(
    k: Builder,
    layer: Layer,
    room: Room,
    row: Row,
    m: Expr,
    head: Expr,
    count: int,
    split: Expr,
    thread: Expr,
    loads: int = RUN,
) -> None:
    """A part of row m's context, of a block or more, for the query heads head to head + count − 1 of a KV head.

    loads: how many numbers of the cache a thread has on their way together.
    """
    heads, cached, dim = layer.heads, layer.cached, layer.heads.dim
    threads, each_head = k.threads, range(count)
    readers = divisor(dim, max(1, threads // KV_BLOCK))  # threads for a position's key
    sharers = divisor(KV_BLOCK, max(1, threads // dim))  # threads for a dimension's values
    across = threads // sharers
    parts_of = -(-dim // across)  # dimensions that a thread sums
    keys_each, values_each = dim // readers, KV_BLOCK // sharers
    early = keys_each + values_each * parts_of <= loads  # values are loaded with the keys
    sums, score = k.local(count * parts_of), k.local(count)
    running = k.local(2 * count)  # of each head the largest score, and the sum of this thread's exponentials
    for_all = room.numbers if room.apart is None else room.apart
    block = k.local(1, "int32")
    kv_head = k.bind(quotient(head, heads.query // heads.kv))
    reader, place = k.bind(quotient(thread, KV_BLOCK)), k.bind(remainder(thread, KV_BLOCK))
    sharer, column = k.bind(quotient(thread, across)), k.bind(remainder(thread, across))
    first_d, first_j = k.bind(reader * keys_each), k.bind(sharer * values_each)

    def load_keys(start: Expr, d: Expr, run: int) -> list[Expr]:
        """Dimensions d to d + run − 1 of the key at this thread's position."""
        at = k.bind(start + d * KV_BLOCK + place)
        return [k.bind(tirx.Cast("float32", cached.keys[at + i * KV_BLOCK])) for i in range(run)]

    def load_values(start: Expr, j: Expr, part: int, run: int) -> list[Expr]:
        """One of this thread's dimensions of the values at positions j to j + run − 1 of the block."""
        d = column + part * across
        d = tirx.Min(d, i32(dim - 1)) if (part + 1) * across > dim else d
        at = k.bind(start + j * dim + d)
        return [k.bind(tirx.Cast("float32", cached.values[at + i * dim])) for i in range(run)]

    def multiply(keys: list[Expr], d: Expr) -> None:
        """Adds dimensions from d on of q · k to the scores of this thread's position."""
        for h in each_head:
            total = score[h]
            for i, key in enumerate(keys):
                total = fma(room.query[d + (h * dim + i)], key, total)
            k.store(score, total, h)

    def add(values: list[Expr], base: Expr, j: Expr, part: int) -> None:
        """Adds values from position j on, times their weights. What was never written may be no number."""
        seen = [k.bind(tirx.Select(base + (j + i) <= row.position, value, f32(0.0))) for i, value in enumerate(values)]
        for h in each_head:
            total = sums[h * parts_of + part]
            for i, value in enumerate(seen):
                total = fma(room.weights[j + (h * KV_BLOCK + i)], value, total)
            k.store(sums, total, h * parts_of + part)

    def score_block(start: Expr, keys: list[Expr]) -> None:
        """This thread's dimensions of q · k for its position. keys: as far as they are loaded."""
        for h in each_head:
            k.store(score, f32(0.0), h)
        if keys:
            multiply(keys, first_d)
            return
        run = divisor(keys_each, loads)
        with k.loop(0, keys_each // run) as turn:
            d = k.bind(first_d + turn * run)
            multiply(load_keys(start, d, run), d)

    def weigh(start: Expr, base: Expr, decays: list[Expr], values: list[list[Expr]]) -> None:
        """Adds this thread's share of the block's values. values: as far as they are loaded."""
        run = divisor(values_each, loads)
        for part in range(parts_of):
            for h in each_head:
                k.store(sums, sums[h * parts_of + part] * decays[h], h * parts_of + part)
            if values:
                add(values[part], base, first_j, part)
                continue
            with k.loop(0, values_each // run) as turn:
                j = k.bind(first_j + turn * run)
                add(load_values(start, j, part, run), base, j, part)

    k.store(block, cached.table[row.slot, row.first], 0)
    for i, asked in enumerate(row.asked):
        at = k.bind(thread + i * threads)
        with k.when(at < i32(count * dim)):
            k.store(room.query, asked, at)
    for h in each_head:
        k.store(running, f32(LOWEST), 2 * h)
        k.store(running, f32(0.0), 2 * h + 1)
        for part in range(parts_of):
            k.store(sums, f32(0.0), h * parts_of + part)
    k.barrier()
    with k.loop(0, row.blocks) as turn:
        logical = k.bind(row.first + turn * layer.splits)
        base = k.bind(logical * KV_BLOCK)
        start = k.bind(cached.start(block[0], kv_head))
        at = k.bind(base + place)
        visible = k.bind(tirx.And(at >= row.oldest, at <= row.position))
        scales = [
            cached.scale(k, buffer, start, place) if cached.quantized else None
            for buffer in (cached.keys, cached.values)
        ]
        keys = load_keys(start, first_d, keys_each) if early else []
        values = [load_values(start, first_j, part, values_each) for part in range(parts_of)] if early else []
        k.store(block, cached.table[row.slot, tirx.Min(logical + layer.splits, row.last)], 0)
        score_block(start, keys)
        for h in each_head:
            k.store(room.numbers, score[h], thread + h * threads)
        k.barrier()
        own = []
        for h in each_head:
            total = room.numbers[place + h * threads]
            for other in range(1, readers):
                total = total + room.numbers[place + (h * threads + other * KV_BLOCK)]
            scaled = layer.score(total if scales[0] is None else total * scales[0])
            own.append(k.bind(tirx.Select(visible, scaled, f32(LOWEST))))
        if room.apart is None:
            k.barrier()
        most = k.reduce(thread, own, for_all, largest=True, apart=room.apart is not None)
        highest = [k.bind(tirx.Max(running[2 * h], most[h])) for h in each_head]
        decays = [k.bind(tirx.exp(running[2 * h] - highest[h])) for h in each_head]
        weights = [k.bind(tirx.Select(visible, tirx.exp(own[h] - highest[h]), f32(0.0))) for h in each_head]
        leads = k.bind(tirx.EQ(reader, i32(0)))
        with k.when(leads):
            for h, weight in enumerate(weights):
                times = weight if scales[1] is None else tirx.Select(visible, weight * scales[1], f32(0.0))
                k.store(room.weights, times, place + h * KV_BLOCK)
        for h, weight in enumerate(weights):
            counted = tirx.Select(leads, weight, f32(0.0))
            k.store(running, highest[h], 2 * h)
            k.store(running, fma(running[2 * h + 1], decays[h], counted), 2 * h + 1)
        k.barrier()
        weigh(start, base, decays, values)
    totals = k.reduce(thread, [running[2 * h + 1] for h in each_head], for_all, apart=room.apart is not None)
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
        if part + 1 < parts_of:
            k.barrier()
    with k.when(tirx.EQ(thread, i32(0))):
        for h in each_head:
            k.store(layer.parts, running[2 * h], m, head + h, split, dim)
            k.store(layer.parts, totals[h], m, head + h, split, dim + 1)
