"""Attention of many rows: a workgroup computes a tile of queries, and reads each block of keys and values once for all.

Queries of a tile are rows times query heads that share a KV head. Keys come through shared memory 16 dimensions at a
time, and values some positions at a time; each thread multiplies some queries with some positions, or dimensions, in
registers, with an online softmax. Each row of a tile has a workgroup, and that of a session's first one takes all of
the session's rows there, while the others end at once: so rows of one prompt share what is read, and rows of several
sessions, one of each, are computed side by side (attention_rows.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.attention_rows import (
    FLOATS,
    LOWEST,
    RUN,
    Layer,
    Room,
    Row,
    attend_row,
    block_of,
    oldest_of,
)
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, quotient, remainder
from crosscompile.gpu.schedules import SCHEDULES, Schedule
from crosscompile.gpu.side import Side, square
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
LOADS_A_HEAD = 8
"""Of a row alone in its tile: where it has few loads under way, it has few heads at once, so that registers are the
tile's."""
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
    is_tile = tile.rows > 1
    # a row alone has what memory the tiles leave
    taken = CHUNK + (ACROSS + KV_BLOCK) * tile.slots + 2 * KV_BLOCK if is_tile else 0
    left = min(gpu.shared_bytes // 4, 2 * FLOATS) - taken
    schedule = SCHEDULES[gpu.schedule]
    most = min(schedule.heads, schedule.loads // LOADS_A_HEAD, left // sum(Room.sizes(1, heads.dim, THREADS)))
    few = divisor(tile.heads, max(1, most))

    def body(k: Builder) -> None:
        layer = Layer.parameters(k, n, heads, splits)
        cached = layer.cached
        memory = _Memory.allocate(k, heads.dim, tile.slots, cached.quantized) if is_tile else None
        room = Room(*(k.shared(size) for size in Room.sizes(few, heads.dim, THREADS)))
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
                with k.loop(0, tile.heads // few) as part:
                    own = k.bind(head + part * few)
                    row = Row.read(k, layer, leader, own, few, split, thread)
                    with k.when(row.blocks > i32(0)):
                        loads = min(RUN, k.schedule.loads)
                        attend_row(k, layer, room, row, leader, own, few, split, thread, loads)

            def together() -> None:
                assert memory is not None
                seen = k.bind(found[0]), k.bind(oldest_of(found[1], heads))
                _attend(k, layer, tile, memory, _Place(first_row, n, head, slot, split, thread), seen)

            with k.when(position >= i32(0)):
                look_around()
                with k.when(tirx.EQ(found[3], i32(0))):
                    if is_tile:
                        k.choose(tirx.EQ(found[2], i32(1)), alone, together)
                    else:
                        alone()

    return gpu_kernel(name, gpu, body)


@dataclass(frozen=True)
class _Memory:
    """Shared memory of a workgroup, and how rows lie there.

    of_q, of_k, of_v  queries of a tile, positions of a block, dimensions of values
    chunk             keys, words of positions (16, 64), or values, words of dimensions (positions, dim)
    queries           (16, slots); between blocks, a number of each query and thread across it
    weights           (64, slots); scales: of keys and values that are int8, (2, 64)
    """

    of_q: Side
    of_k: Side
    of_v: Side
    chunk: Any
    queries: Any
    weights: Any
    scales: Any

    @classmethod
    def allocate(cls, k: Builder, dim: int, slots: int, quantized: bool) -> _Memory:
        of_q, of_k, of_v = (
            Side(k, size, size // threads) for size, threads in ((slots, DOWN), (KV_BLOCK, ACROSS), (dim, ACROSS))
        )
        queries, weights = of_q.array(words=ACROSS), of_q.array(words=KV_BLOCK)
        return cls(of_q, of_k, of_v, k.shared(CHUNK), queries, weights, k.shared(2 * KV_BLOCK) if quantized else None)


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
    heads, cached, dim = layer.heads, layer.cached, layer.heads.dim
    of_q, of_k, of_v, thread = memory.of_q, memory.of_k, memory.of_v, place.thread
    mine, wide, columns = range(of_q.mine), range(of_v.mine), range(of_k.mine)
    across, down = square(k, thread, of_k, of_q)
    newest, oldest = seen
    kv_head = k.bind(quotient(place.head, heads.query // heads.kv))
    sums, scores = k.local(len(mine) * len(wide)), k.local(len(mine) * len(columns))
    running, total, joined = (k.local(len(mine)) for _ in range(3))
    rows, query_heads, positions = [], [], []  # of this thread's queries
    for i in mine:
        query = k.bind(of_q.row(down, i))
        row = k.bind(place.first_row + quotient(query, tile.heads))
        inside = tirx.And(query < i32(tile.rows * tile.heads), row < i32(place.n))
        m = k.bind(tirx.Min(row, i32(place.n - 1)))
        same = tirx.And(inside, tirx.EQ(cached.slots[m], place.slot))
        rows.append(m)
        query_heads.append(k.bind(place.head + remainder(query, tile.heads)))
        positions.append(k.bind(tirx.Select(same, cached.positions[m], i32(-1))))
        k.store(running, f32(LOWEST / 2), i)  # above what is hidden, of which nothing is left then
        k.store(total, f32(0.0), i)
        for j in wide:
            k.store(sums, f32(0.0), i * len(wide) + j)

    def of_all(join: Callable[[Expr, Expr], Expr]) -> list[Expr]:
        """What the threads across this one's queries have left of each, joined."""
        for i, first in enumerate(of_q.read(memory.queries, down)):
            k.store(joined, first, i)
        with k.loop(1, ACROSS) as other:
            for i, more in enumerate(of_q.read(memory.queries, down, other)):
                k.store(joined, join(joined[i], more), i)
        return [k.bind(joined[i]) for i in mine]

    def score(start: Expr) -> None:
        """scores = q · k of this thread's queries and positions."""
        for i in range(len(mine) * len(columns)):
            k.store(scores, f32(0.0), i)
        with k.loop(0, dim // DEEP) as part:
            first = k.bind(part * DEEP)
            at = k.bind(start + first * KV_BLOCK + thread)
            keys = [k.bind(tirx.Cast("float32", cached.keys[at + u * THREADS])) for u in range(CHUNK // THREADS)]
            asked = [k.bind(layer.q[rows[i], query_heads[i] * dim + first + across]) for i in mine]
            # thread + u * THREADS, said so that Mali's and Intel's compilers need fewer registers
            column, word = k.bind(remainder(thread, KV_BLOCK)), k.bind(quotient(thread, KV_BLOCK))
            for u, key in enumerate(keys):
                k.store(memory.chunk, key, column + (word + u * (THREADS // KV_BLOCK)) * KV_BLOCK)
            of_q.write(memory.queries, down, asked, across)
            k.barrier()
            with k.loop(0, DEEP) as d:
                by_query, by_position = of_q.read(memory.queries, down, d), of_k.read(memory.chunk, across, d)
                for i, query in enumerate(by_query):
                    for j, key in enumerate(by_position):
                        c = i * len(columns) + j
                        k.store(scores, fma(query, key, scores[c]), c)
            k.barrier()

    def soften(base: Expr) -> None:
        """Scores to weights, and what was summed so far to the new largest score."""
        own_columns = [k.bind(of_k.row(across, j)) for j in columns]
        scales = [k.bind(memory.scales[column]) if cached.quantized else None for column in own_columns]
        largest = []
        for i in mine:
            lowest = k.bind(oldest_of(positions[i], heads))
            most = f32(LOWEST)
            for j in columns:
                c, at = i * len(columns) + j, base + own_columns[j]
                visible = tirx.And(at >= lowest, at <= positions[i]) if heads.window else at <= positions[i]
                value = layer.score(scores[c] if scales[j] is None else scores[c] * scales[j])
                own = k.bind(tirx.Select(visible, value, f32(LOWEST)))
                k.store(scores, own, c)
                most = tirx.Max(most, own)
            largest.append(k.bind(most))
        of_q.write(memory.queries, down, largest, across)
        k.barrier()
        highest_of = of_all(tirx.Max)
        for i in mine:
            highest = k.bind(tirx.Max(running[i], highest_of[i]))
            decay = k.bind(tirx.exp(running[i] - highest))
            k.store(running, highest, i)
            k.store(total, total[i] * decay, i)
            for j in wide:
                k.store(sums, sums[i * len(wide) + j] * decay, i * len(wide) + j)
        for j in columns:
            weights = []
            for i in mine:
                weight = k.bind(tirx.exp(scores[i * len(columns) + j] - running[i]))
                k.store(total, total[i] + weight, i)
                if cached.quantized:  # a scale that was never written may be no number
                    scaled = weight * memory.scales[own_columns[j] + KV_BLOCK]
                    weight = k.bind(tirx.Select(weight > f32(0.0), scaled, f32(0.0)))
                weights.append(weight)
            of_q.write(memory.weights, down, weights, own_columns[j])

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
                by_query, by_column = of_q.read(memory.weights, down, first + j), of_v.read(memory.chunk, across, j)
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
    of_q.write(memory.queries, down, [total[i] for i in mine], across)
    k.barrier()
    wholes = of_all(operator.add)
    for i in mine:
        with k.when(positions[i] >= i32(0)):
            for c in wide:
                value = sums[i * len(wide) + c]
                k.store(layer.parts, value, rows[i], query_heads[i], place.split, of_v.row(across, c))
            with k.when(tirx.EQ(across, i32(0))):
                k.store(layer.parts, running[i], rows[i], query_heads[i], place.split, dim)
                k.store(layer.parts, wholes[i], rows[i], query_heads[i], place.split, dim + 1)
