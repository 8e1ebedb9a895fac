"""Attention of many rows: a workgroup computes a tile of queries, and reads each block of keys and values once for all.

Queries of a tile are rows times query heads that share a KV head. Keys come through shared memory 16 dimensions at a
time, and values some positions at a time; each thread multiplies some queries with some positions, or dimensions, in
registers, with an online softmax. Each row of a tile has a workgroup, and that of a session's first one takes all of
the session's rows there, while the others end at once: so rows of one prompt share what is read, and rows of several
sessions, one of each, are computed side by side (attention_rows.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, exp, fma
from crosscompile.gpu.attention_rows import (
    FLOATS,
    RUN,
    TOGETHER,
    Layer,
    Room,
    Row,
    attend_row,
    block_of,
    oldest_of,
)
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, quotient, remainder
from crosscompile.gpu.schedules import Schedule
from crosscompile.kernels.attention import LOWEST
from crosscompile.kernels.build import divisor
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.spirv.capabilities import Gpu

ACROSS, DOWN = 16, 8
"""Threads that share the positions, or dimensions, of a block, and those that share the queries."""
THREADS = ACROSS * DOWN
CHUNK = 1024
"""Elements of keys or values in shared memory at once."""
DEEP = CHUNK // KV_BLOCK
"""Dimensions of keys that these are."""
SUMS = 4096
"""Numbers that a workgroup sums up in registers: 32 of each thread."""


@dataclass(frozen=True)
class Tile:
    """So many rows, times query heads of a KV head. slots: room for so many queries, a multiple of DOWN."""

    rows: int
    heads: int
    slots: int

    @classmethod
    def choose(cls, n: int, heads: Heads, schedule: Schedule) -> Tile:
        most = max(DOWN, min(schedule.queries, SUMS // heads.dim) // DOWN * DOWN)
        share = divisor(heads.query // heads.kv, most)
        rows = min(n, most // share)
        return cls(rows, share, -(-rows * share // DOWN) * DOWN)

    def groups(self, n: int, heads: Heads) -> int:
        """Workgroups that n rows of one session keep busy, each part of the context."""
        return -(-n // self.rows) * (heads.query // self.heads)


def tiles_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int, tile: Tile) -> tirx.PrimFunc:
    """crosscompile.gpu.attention.attention_parts by tiles."""
    queries, weights = max(tile.slots * (ACROSS + 1), DEEP * (tile.slots + 1)), KV_BLOCK * (tile.slots + 1)
    # a row alone has the same memory: its queries in what the rest leaves, its numbers where keys and values are
    few = divisor(tile.heads, max(1, min(TOGETHER, (FLOATS - CHUNK - weights - 2 * KV_BLOCK) // heads.dim)))
    for_row, for_weights, numbers = Room.sizes(few, heads.dim, THREADS)

    def body(k: Builder) -> None:
        layer = Layer.parameters(k, n, heads, splits)
        cached = layer.cached
        memory = _Memory(
            k.shared(max(CHUNK, numbers)),
            k.shared(max(queries, for_row)),
            k.shared(max(weights, for_weights)),
            k.shared(2 * KV_BLOCK) if cached.quantized else None,
        )
        found = k.local(4, "int32")  # newest and oldest position of the session's rows, how many, how many before
        with k.launch((heads.query // tile.heads, n, splits), THREADS) as (group, leader, split, thread):
            head = k.bind(group * tile.heads)
            first_row = k.bind(quotient(leader, tile.rows) * tile.rows)
            position, slot = k.bind(cached.positions[leader]), k.bind(cached.slots[leader])

            def look_around() -> None:
                for i, value in enumerate((-1, 2**31 - 1, 0, 0)):
                    k.store(found, i32(value), i)
                with k.loop(0, tirx.Min(i32(tile.rows), i32(n) - first_row)) as row:
                    m = k.bind(first_row + row)
                    at = k.bind(cached.positions[m])
                    with k.when(tirx.And(at >= i32(0), tirx.EQ(cached.slots[m], slot))):
                        k.store(found, tirx.Max(found[0], at), 0)
                        k.store(found, tirx.Min(found[1], at), 1)
                        k.store(found, found[2] + 1, 2)
                        with k.when(m < leader):
                            k.store(found, found[3] + 1, 3)

            def alone() -> None:
                room = Room(memory.queries, memory.weights, memory.chunk)
                with k.loop(0, tile.heads // few) as part:
                    own = k.bind(head + part * few)
                    row = Row.read(k, layer, leader, own, few, split, thread)
                    with k.when(row.blocks > i32(0)):
                        loads = min(RUN, k.schedule.loads)
                        attend_row(k, layer, room, row, leader, own, few, split, thread, loads)

            def together() -> None:
                seen = k.bind(found[0]), k.bind(oldest_of(found[1], heads))
                _attend(k, layer, tile, memory, _Place(first_row, n, head, slot, split, thread), seen)

            with k.when(position >= i32(0)):
                look_around()
                with k.when(tirx.EQ(found[3], i32(0))):
                    if tile.rows == 1:
                        alone()
                    else:
                        k.choose(tirx.EQ(found[2], i32(1)), alone, together)

    return gpu_kernel(name, gpu, body)


@dataclass(frozen=True)
class _Memory:
    """Shared memory of a workgroup.

    chunk    keys (16, 64) or values (positions, dim)
    queries  (16, slots + 1); between blocks, a number of each query and thread across it, (slots, 17)
    weights  (64, slots + 1); scales: of keys and values that are int8, (2, 64)
    """

    chunk: Any
    queries: Any
    weights: Any
    scales: Any


@dataclass(frozen=True)
class _Place:
    """Which tile a workgroup has, of n rows, and whose: the session `slot`."""

    first_row: Expr
    n: int
    head: Expr
    slot: Expr
    split: Expr
    thread: Expr


def _attend(k: Builder, layer: Layer, tile: Tile, memory: _Memory, place: _Place, seen: tuple[Expr, Expr]) -> None:
    """A part of the context of a tile's rows that are of the session. seen: (newest, oldest) position that any sees."""
    heads, cached, dim, slots = layer.heads, layer.cached, layer.heads.dim, tile.slots
    mine, wide, thread = range(slots // DOWN), range(dim // ACROSS), place.thread
    columns = range(KV_BLOCK // ACROSS)
    down, across = k.bind(quotient(thread, ACROSS)), k.bind(remainder(thread, ACROSS))
    newest, oldest = seen
    kv_head = k.bind(quotient(place.head, heads.query // heads.kv))
    sums, scores = k.local(len(mine) * len(wide)), k.local(len(mine) * len(columns))
    running, total = k.local(len(mine)), k.local(len(mine))
    rows, query_heads, positions = [], [], []  # of this thread's queries
    for i in mine:
        query = k.bind(down + i * DOWN)
        row = k.bind(place.first_row + quotient(query, tile.heads))
        inside = tirx.And(query < i32(tile.rows * tile.heads), row < i32(place.n))
        m = k.bind(tirx.Min(row, i32(place.n - 1)))
        same = tirx.And(inside, tirx.EQ(cached.slots[m], place.slot))
        rows.append(m)
        query_heads.append(k.bind(place.head + remainder(query, tile.heads)))
        positions.append(k.bind(tirx.Select(same, cached.positions[m], i32(-1))))
        k.store(running, f32(LOWEST), i)
        k.store(total, f32(0.0), i)
        for j in wide:
            k.store(sums, f32(0.0), i * len(wide) + j)

    def score(start: Expr) -> None:
        """scores = q · k of this thread's queries and positions."""
        for i in range(len(mine) * len(columns)):
            k.store(scores, f32(0.0), i)
        with k.loop(0, dim // DEEP) as part:
            first = k.bind(part * DEEP)
            at = k.bind(start + first * KV_BLOCK + thread)
            keys = [k.bind(tirx.Cast("float32", cached.keys[at + u * THREADS])) for u in range(CHUNK // THREADS)]
            asked = [k.bind(layer.q[rows[i], query_heads[i] * dim + first + across]) for i in mine]
            for u, key in enumerate(keys):
                k.store(memory.chunk, key, thread + u * THREADS)
            for i, value in enumerate(asked):
                k.store(memory.queries, value, across * (slots + 1) + down + i * DOWN)
            k.barrier()
            with k.loop(0, DEEP) as d:
                by_query = [k.bind(memory.queries[d * (slots + 1) + down + i * DOWN]) for i in mine]
                by_position = [k.bind(memory.chunk[d * KV_BLOCK + across + j * ACROSS]) for j in columns]
                for i, query in enumerate(by_query):
                    for j, key in enumerate(by_position):
                        c = i * len(columns) + j
                        k.store(scores, fma(query, key, scores[c]), c)
            k.barrier()

    def soften(base: Expr) -> None:
        """Scores to weights, and what was summed so far to the new largest score."""
        scales = [k.bind(memory.scales[across + j * ACROSS]) if cached.quantized else None for j in columns]
        visible = []
        for i in mine:
            lowest = k.bind(oldest_of(positions[i], heads))
            most = f32(LOWEST)
            for j in columns:
                c, at = i * len(columns) + j, base + (across + j * ACROSS)
                seen = tirx.And(at >= lowest, at <= positions[i]) if heads.window else at <= positions[i]
                visible.append(k.bind(seen))
                value = layer.score(scores[c] if scales[j] is None else scores[c] * scales[j])
                own = k.bind(tirx.Select(visible[c], value, f32(LOWEST)))
                k.store(scores, own, c)
                most = tirx.Max(most, own)
            k.store(memory.queries, most, (down + i * DOWN) * (ACROSS + 1) + across)
        k.barrier()
        for i in mine:
            most = running[i]
            for other in range(ACROSS):
                most = tirx.Max(most, memory.queries[(down + i * DOWN) * (ACROSS + 1) + other])
            highest = k.bind(most)
            decay = k.bind(exp(running[i] - highest))
            k.store(running, highest, i)
            sum_ = total[i] * decay
            for j in columns:
                c, column = i * len(columns) + j, across + j * ACROSS
                weight = k.bind(tirx.Select(visible[c], exp(scores[c] - highest), f32(0.0)))
                sum_ = sum_ + weight
                if cached.quantized:
                    weight = tirx.Select(visible[c], weight * memory.scales[column + KV_BLOCK], f32(0.0))
                k.store(memory.weights, weight, column * (slots + 1) + down + i * DOWN)
            k.store(total, sum_, i)
            for j in wide:
                k.store(sums, sums[i * len(wide) + j] * decay, i * len(wide) + j)

    def weigh(start: Expr, base: Expr) -> None:
        """Adds the values of a block, times their weights. What was never written may be no number."""
        deep = 1 << ((CHUNK // dim).bit_length() - 1)  # positions at once
        with k.loop(0, KV_BLOCK // deep) as part:
            first = k.bind(part * deep)
            at = k.bind(start + first * dim + thread)
            steps = range(deep * dim // THREADS)
            values = [k.bind(tirx.Cast("float32", cached.values[at + u * THREADS])) for u in steps]
            for u, value in enumerate(values):
                there = base + first + quotient(thread + u * THREADS, dim)
                k.store(memory.chunk, tirx.Select(there <= newest, value, f32(0.0)), thread + u * THREADS)
            k.barrier()
            with k.loop(0, deep) as j:
                by_query = [k.bind(memory.weights[(first + j) * (slots + 1) + down + i * DOWN]) for i in mine]
                by_column = [k.bind(memory.chunk[j * dim + across + c * ACROSS]) for c in wide]
                for i, weight in enumerate(by_query):
                    for c, value in enumerate(by_column):
                        at_sum = i * len(wide) + c
                        k.store(sums, fma(weight, value, sums[at_sum]), at_sum)
            k.barrier()

    first, last = layer.first_block(k, k.bind(block_of(oldest)), place.split), k.bind(block_of(newest))
    with k.loop(0, layer.turns(first, last)) as turn:
        logical = k.bind(first + turn * layer.splits)
        base = k.bind(logical * KV_BLOCK)
        start = k.bind(cached.start(cached.table[place.slot, logical], kv_head))
        if cached.quantized:
            for half, buffer in enumerate((cached.keys, cached.values)):
                with k.when(tirx.EQ(quotient(thread, KV_BLOCK), i32(half))):
                    scale = cached.scale(k, buffer, start, k.bind(remainder(thread, KV_BLOCK)))
                    k.store(memory.scales, scale, thread)
        score(start)
        soften(base)
        weigh(start, base)
    for i in mine:
        k.store(memory.queries, total[i], (down + i * DOWN) * (ACROSS + 1) + across)
    k.barrier()
    for i in mine:
        with k.when(positions[i] >= i32(0)):
            for c in wide:
                value = sums[i * len(wide) + c]
                k.store(layer.parts, value, rows[i], query_heads[i], place.split, across + c * ACROSS)
            with k.when(tirx.EQ(across, i32(0))):
                whole = total[i]
                for other in range(1, ACROSS):
                    whole = whole + memory.queries[(down + i * DOWN) * (ACROSS + 1) + other]
                k.store(layer.parts, running[i], rows[i], query_heads[i], place.split, dim)
                k.store(layer.parts, whole, rows[i], query_heads[i], place.split, dim + 1)
