"""Attention of many rows on matrix units: a workgroup computes a tile of queries, a block of keys and values at a time.

Queries of a tile are rows times query heads that share a KV head, a matrix's rows of them for each row of subgroups.
Keys, then values, come through shared memory as f16. Scores go there as f32, for an online softmax by threads, and lie
in it as f16 weights afterwards. A query is divided by a power of two near its largest number, so that f16 does not
overflow. Sums of weights are a product with ones, so that they have the weights' own rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, magnitude
from crosscompile.gpu.attention_cuts import KEY_QUADS, LINE, MatrixTile
from crosscompile.gpu.attention_rows import LOWEST, Layer, block_of, oldest_of
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane, quotient, remainder
from crosscompile.gpu.cache import Cache
from crosscompile.gpu.weights import u32
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.spirv.capabilities import Gpu

TURNS = 8
"""Quads of keys or values that a thread has on their way together."""
FACTORS = KV_BLOCK // 2
"""Where the factors of a query begin, in its line of shared memory."""
_ROOM, _LEAST = 8 << 23, 0x0A000000
"""Of a query's largest number: the power of two by which it may exceed 1, and the least exponent that it counts as."""
_TOGETHER = 8
"""Queries whose scores a thread reads together."""


def matrix_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int, tile: MatrixTile) -> tirx.PrimFunc:
    """crosscompile.gpu.attention.attention_parts on matrix units."""

    def body(k: Builder) -> None:
        q = k.buffer("q", (n, heads.query * heads.dim), "float32")
        cached = Cache.parameters(k, n, heads, runs=True)
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        layer = Layer(heads, splits, q, cached, parts)
        work = _Tile(k, layer, n, tile)
        grid = (heads.query // tile.heads, -(-n // tile.rows) * tile.leaders, splits)
        with k.launch(grid, tile.threads) as (group, part, split, thread):
            first_row = k.bind(quotient(part, tile.leaders) * tile.rows)
            first = k.bind(remainder(part, tile.leaders))
            work.begin(k.bind(group * tile.heads), first_row, split, thread)
            with k.loop(0, tile.rows // tile.leaders) as turn:
                work.lead(k.bind(first + turn * tile.leaders))

    return gpu_kernel(name, gpu, body)


class _Tile:
    """What a workgroup computes.

    lines      (slots, LINE) words: queries as f16, scores, weights and factors, results
    chunk      keys as (dim, KEY_QUADS), values as (64, dim / 8 + 1), eight f16 each
    positions, largest, scales  of each query: −1 if it is not of the session; its largest score; what it was divided by
    """

    def __init__(self, k: Builder, layer: Layer, n: int, tile: MatrixTile) -> None:
        self.k, self.layer, self.n, self.tile = k, layer, n, tile
        self.heads, self.cached, self.dim, self.edge = layer.heads, layer.cached, layer.heads.dim, tile.edge
        self.lines = k.shared(tile.slots * LINE, "uint32")
        self.chunk = k.shared(tile.chunk_quads(self.dim), "uint32x4")
        self.positions = k.shared(tile.slots, "int32")
        self.largest, self.scales = k.shared(tile.slots), k.shared(tile.slots)
        self.quads = self.dim * KV_BLOCK // 8
        self.turns = min(TURNS, -(-self.quads // tile.threads))
        self.words = k.local(4 * self.turns, "uint32")
        self.found = k.local(3, "int32")  # newest and oldest position of the session's rows; how many before the leader
        self.scores = range(KV_BLOCK // self.edge // tile.across)
        self.wide = range(self.dim // self.edge // tile.across)

    def begin(self, head: Expr, first_row: Expr, split: Expr, thread: Expr) -> None:
        k, tile = self.k, self.tile
        self.head, self.first_row, self.split, self.thread = head, first_row, split, thread
        self.kv_head = k.bind(quotient(head, self.heads.query // self.heads.kv))
        subgroup = k.bind(tirx.call_extern("int32", "ellm.subgroup_index"))
        self.lane = k.bind(tirx.call_extern("int32", "ellm.subgroup_lane"))
        self.column = k.bind(remainder(subgroup, tile.across))
        self.my_query = k.bind(quotient(subgroup, tile.across) * self.edge)

    def lead(self, leader: Expr) -> None:
        """All rows of the session of a row of the tile, if it is the session's first one there."""
        k, cached = self.k, self.cached
        m = k.bind(tirx.Min(self.first_row + leader, i32(self.n - 1)))
        before = k.bind(tirx.Max(m - 1, i32(0)))
        slot = k.bind(cached.slots[m])
        follows = tirx.And(tirx.EQ(cached.slots[before], slot), cached.positions[before] >= i32(0))
        follows = k.bind(tirx.And(leader > i32(0), follows))
        is_row = tirx.And(self.first_row + leader < i32(self.n), cached.positions[m] >= i32(0))
        with k.when(tirx.And(is_row, tirx.Not(follows))):
            self._look_around(leader, slot)
            with k.when(tirx.EQ(self.found[2], i32(0))):
                self._attend(slot, k.bind(self.found[0]), k.bind(oldest_of(self.found[1], self.heads)))

    def _row(self, query: Expr) -> Expr:
        """The row of a query, which may lie behind the last one."""
        return self.first_row + quotient(query, self.tile.heads)

    def _query_head(self, query: Expr) -> Expr:
        return self.head + remainder(query, self.tile.heads)

    def _look_around(self, leader: Expr, slot: Expr) -> None:
        k, tile, cached = self.k, self.tile, self.cached
        k.barrier()
        with k.strided(self.thread, tile.slots) as query:
            row = k.bind(self._row(query))
            m = k.bind(tirx.Min(row, i32(self.n - 1)))
            inside = tirx.And(query < i32(tile.rows * tile.heads), row < i32(self.n))
            same = tirx.And(inside, tirx.EQ(cached.slots[m], slot))
            k.store(self.positions, tirx.Select(same, cached.positions[m], i32(-1)), query)
            k.store(self.largest, f32(LOWEST), query)
        k.barrier()
        for i, value in enumerate((-1, 2**31 - 1, 0)):
            k.store(self.found, i32(value), i)
        with k.loop(0, tile.slots // 8) as some:
            seen = [k.bind(self.positions[some * 8 + i]) for i in range(8)]
            for i, at in enumerate(seen):
                k.store(self.found, tirx.Max(self.found[0], at), 0)
                valid = at >= i32(0)
                k.store(self.found, tirx.Select(valid, tirx.Min(self.found[1], at), self.found[1]), 1)
                earlier = tirx.And(valid, some * 8 + i < leader * tile.heads)
                k.store(self.found, tirx.Select(earlier, i32(1), self.found[2]), 2)

    def _attend(self, slot: Expr, newest: Expr, oldest: Expr) -> None:
        """A part of the context of the session's rows. newest, oldest: positions that any of them sees."""
        k, layer, cached = self.k, self.layer, self.cached
        sums = len(self.wide)
        self._load_queries()
        self._load_ones()
        for i in range(sums + 1):
            k.matrix_clear(f"c{i}")
        first, last = layer.first_block(k, k.bind(block_of(oldest)), self.split), k.bind(block_of(newest))
        turns = k.bind(layer.turns(first, last))

        def start_of(turn: Expr) -> Expr:
            logical = k.bind(tirx.Min(first + turn * layer.splits, last))
            return k.bind(quotient(cached.start(cached.table[slot, logical], self.kv_head), 8))

        self._fetch(cached.keys, start_of(i32(0)))
        with k.loop(0, turns) as turn:
            base = k.bind((first + turn * layer.splits) * KV_BLOCK)
            start = start_of(turn)
            self._put_keys(start)
            k.barrier()
            self._fetch(cached.values, start)
            self._score()
            k.barrier()
            self._put_values(start, base, newest)
            self._fetch(cached.keys, start_of(turn + 1))
            self._soften(base)
            k.barrier()
            self._weigh()
            k.barrier()
        self._write()

    # ---- what comes from memory

    def _load_queries(self) -> None:
        """The queries, as matrices a0, a1, … of the subgroup."""
        k, tile, size = self.k, self.tile, self.tile.subgroup
        words = self.dim // 2
        mine = self.edge // tile.across  # queries that a subgroup converts
        most = k.local(1)

        def some(begin: int, end: int) -> Iterator[Expr]:
            """A lane's words of a query, of those from begin to end."""
            for step in range(begin, end, size):
                at = self.lane + step
                yield k.bind(at if step + size <= end else tirx.Min(at, i32(end - 1)))

        def read(query: Expr, word: Expr) -> list[Expr]:
            m = tirx.Min(self._row(query), i32(self.n - 1))
            place = k.bind(self._query_head(query) * self.dim + 2 * word)
            return [k.bind(self.layer.q[m, place + i]) for i in range(2)]

        with k.loop(0, mine) as i:
            query = k.bind(self.my_query + self.column * mine + i)
            k.store(most, f32(0.0), 0)
            for word in some(0, words):
                for value in read(query, word):
                    k.store(most, tirx.Max(most[0], magnitude(value)), 0)
            largest = k.bind(tirx.call_extern("float32", "ellm.subgroup_max", most[0]))
            bits = tirx.Max(tirx.reinterpret("uint32", largest) & u32(0x7F800000), u32(_LEAST))
            k.store(self.scales, tirx.reinterpret("float32", bits - u32(_ROOM)), query)
        for begin in range(0, words, KV_BLOCK):
            end = min(words, begin + KV_BLOCK)
            with k.loop(0, mine) as i:
                query = k.bind(self.my_query + self.column * mine + i)
                shrink = k.bind(f32(1.0) / self.scales[query])
                for word in some(begin, end):
                    low, high = read(query, word)
                    k.store(self.lines, k.two_halves(low * shrink, high * shrink), query * LINE + word - begin)
            k.barrier()
            for at in range(begin, end, self.edge // 2):
                place = self.my_query * LINE + (at - begin)
                k.matrix_load(f"a{at // (self.edge // 2)}", self.lines, place, LINE)
            k.barrier()

    def _load_ones(self) -> None:
        """A matrix of ones."""
        k, quads = self.k, self.edge * self.edge // 8
        one = u32(0x3C003C00)
        with k.strided(self.thread, quads) as at:
            k.store(self.chunk, tirx.Shuffle([one] * 4, [0, 1, 2, 3]), at)
        k.barrier()
        k.matrix_load("r0", self.chunk, 0, self.edge // 8)
        k.barrier()

    def _tasks(self) -> Iterator[tuple[int, Expr]]:
        """(turn, quad) of a thread that are on their way together."""
        for turn in range(self.turns):
            at = self.k.bind(self.thread + turn * self.tile.threads)
            if (turn + 1) * self.tile.threads <= self.quads:
                yield turn, at
            else:
                with self.k.when(at < i32(self.quads)):
                    yield turn, at

    def _fetch(self, buffer: Any, start: Expr) -> None:
        """Asks for as much of a block as a thread has room for."""
        for turn, at in self._tasks():
            quad = self.k.bind(buffer[start + at])
            for i in range(4):
                self.k.store(self.words, lane(quad, i), 4 * turn + i)

    def _put(self, buffer: Any, start: Expr, put: Any) -> None:
        """put(quad, its words) of a block: what was asked for, then the rest."""
        k, done = self.k, self.turns * self.tile.threads
        for turn, at in self._tasks():
            put(at, [k.bind(self.words[4 * turn + i]) for i in range(4)])
        if done < self.quads:
            with k.strided(self.thread, self.quads - done) as more:
                at = k.bind(more + done)
                quad = k.bind(buffer[start + at])
                put(at, [lane(quad, i) for i in range(4)])

    def _put_keys(self, start: Expr) -> None:
        def put(at: Expr, words: list[Expr]) -> None:
            place = quotient(at, KV_BLOCK // 8) * KEY_QUADS + remainder(at, KV_BLOCK // 8)
            self.k.store(self.chunk, tirx.Shuffle(words, [0, 1, 2, 3]), place)

        self._put(self.cached.keys, start, put)

    def _put_values(self, start: Expr, base: Expr, newest: Expr) -> None:
        """In the order of the weights (_soften). What was never written may be no number."""
        size, quads = self.tile.subgroup, self.dim // 8

        def put(at: Expr, words: list[Expr]) -> None:
            k = self.k
            position = k.bind(quotient(at, quads))
            which, of = k.bind(quotient(position, size)), k.bind(remainder(position, size))
            row = (quotient(which, 2) * size + of) * 2 + remainder(which, 2)
            written = k.bind(base + position <= newest)
            known = [tirx.Select(written, word, u32(0)) for word in words]
            place = row * (quads + 1) + remainder(at, quads)
            k.store(self.chunk, tirx.Shuffle(known, [0, 1, 2, 3]), place)

        self._put(self.cached.values, start, put)

    # ---- a block

    def _score(self) -> None:
        """Products of the queries and the keys, to lines."""
        k, edge, sums = self.k, self.edge, len(self.wide) + 1
        count = len(self.scores)
        for j in self.scores:
            k.matrix_clear(f"c{sums + j}")
        for d in range(self.dim // edge):
            for j in self.scores:
                column = self.column * (count * edge // 8) + j * edge // 8
                k.matrix_load(f"r{1 + j}", self.chunk, column + d * edge * KEY_QUADS, KEY_QUADS)
                k.matrix_multiply(f"a{d}", f"r{1 + j}", f"c{sums + j}")
        for j in self.scores:
            place = self.my_query * LINE + (self.column * count + j) * edge
            k.matrix_store(f"c{sums + j}", self.lines, place, LINE)

    def _soften(self, base: Expr) -> None:
        """Scores to weights, each lane those of positions a subgroup apart: a word has two of them."""
        k, tile, heads, size = self.k, self.tile, self.heads, self.tile.subgroup
        mine, apart = self.edge // tile.across, range(KV_BLOCK // size)
        first = k.bind(self.my_query + self.column * mine)
        places = [k.bind(base + self.lane + j * size) for j in apart]
        for begin in range(0, mine, _TOGETHER):
            queries = [k.bind(first + i) for i in range(begin, min(begin + _TOGETHER, mine))]
            read = [[k.bind(self.lines[query * LINE + self.lane + j * size]) for j in apart] for query in queries]
            ends = [k.bind(self.positions[query]) for query in queries]
            scales = [k.bind(self.scales[query]) for query in queries]
            running = [k.bind(self.largest[query]) for query in queries]
            scores, visible = [], []
            for words, end, scale in zip(read, ends, scales, strict=True):
                lowest = k.bind(oldest_of(end, heads))
                seen = [tirx.And(at >= lowest, at <= end) if heads.window else at <= end for at in places]
                visible.append([k.bind(each) for each in seen])
                values = [self.layer.score(tirx.reinterpret("float32", word) * scale) for word in words]
                scores.append(
                    [k.bind(tirx.Select(*each, f32(LOWEST))) for each in zip(visible[-1], values, strict=True)]
                )
            most = []
            for own, before in zip(scores, running, strict=True):
                highest = own[0]
                for value in own[1:]:
                    highest = tirx.Max(highest, value)
                found = k.bind(tirx.call_extern("float32", "ellm.subgroup_max", highest))
                most.append(k.bind(tirx.Max(before, found)))
            for query, own, seen, before, highest in zip(queries, scores, visible, running, most, strict=True):
                weights = [
                    k.bind(tirx.Select(is_seen, tirx.exp(value - highest), f32(0.0)))
                    for is_seen, value in zip(seen, own, strict=True)
                ]
                decay = k.bind(tirx.reinterpret("uint32", tirx.exp(before - highest)))
                for j in range(0, len(weights), 2):
                    k.store(self.lines, k.two_halves(*weights[j : j + 2]), query * LINE + self.lane + j // 2 * size)
                for step in range(0, self.edge, size):
                    with k.when(self.lane + step < i32(self.edge)):
                        k.store(self.lines, decay, query * LINE + FACTORS + self.lane + step)
                k.store(self.largest, highest, query)

    def _weigh(self) -> None:
        """Adds the values of a block, times their weights, and the weights, to what was summed so far."""
        k, edge, sums = self.k, self.edge, len(self.wide)
        by, stride, line = f"c{sums + 1}", self.dim // 8 + 1, self.my_query * LINE
        k.matrix_load(by, self.lines, line + FACTORS, LINE)
        for i in range(sums + 1):
            k.matrix_times(f"c{i}", by)
        for p in range(0, KV_BLOCK, edge):
            weights = f"a{self.dim // edge + p // edge}"
            k.matrix_load(weights, self.lines, line + p // 2, LINE)
            k.matrix_multiply(weights, "r0", f"c{sums}")
            for i in self.wide:
                column = self.column * (sums * edge // 8) + i * edge // 8
                k.matrix_load(f"r{1 + i}", self.chunk, column + p * stride, stride)
                k.matrix_multiply(weights, f"r{1 + i}", f"c{i}")

    def _write(self) -> None:
        """The sums to the parts, some matrices of each subgroup at a time."""
        k, tile, edge, sums = self.k, self.tile, self.edge, len(self.wide)
        parts, line = self.layer.parts, self.my_query * LINE
        each = KV_BLOCK // edge // tile.across
        for begin in range(0, sums, each):
            some = range(begin, min(begin + each, sums))
            width = len(some) * edge
            for u, i in enumerate(some):
                k.matrix_store(f"c{i}", self.lines, line + self.column * width + u * edge, LINE)
            k.barrier()
            with k.strided(self.thread, tile.slots * tile.across * width) as at:
                query, place = (k.bind(f(at, tile.across * width)) for f in (quotient, remainder))
                d = quotient(place, width) * (sums * edge) + begin * edge + remainder(place, width)
                value = tirx.reinterpret("float32", self.lines[query * LINE + place])
                with k.when(self.positions[query] >= i32(0)):
                    k.store(parts, value, self._row(query), self._query_head(query), self.split, d)
            k.barrier()
        k.matrix_store(f"c{sums}", self.lines, line, LINE)
        k.barrier()
        with k.strided(self.thread, tile.slots) as query, k.when(self.positions[query] >= i32(0)):
            m, head = k.bind(self._row(query)), k.bind(self._query_head(query))
            total = tirx.reinterpret("float32", self.lines[query * LINE])
            k.store(parts, self.largest[query], m, head, self.split, self.dim)
            k.store(parts, total, m, head, self.split, self.dim + 1)
