"""The quantized linear layer of many rows: tiles of the weight and of the activation through shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, i32, lane, quotient, remainder
from crosscompile.gpu.knobs import LinearKnobs
from crosscompile.gpu.linear import Linear, Output, group_sum
from crosscompile.gpu.weights import Weights
from crosscompile.packing import GROUP

QUAD = 4
"""Rows of a thread that lie side by side in shared memory."""
Row = Callable[[Expr], Expr]
"""Row of a tile -> row of a buffer, one that there is."""


def _mine(knobs: LinearKnobs) -> tuple[int, int]:
    """(rows of the weight, rows of the activation) of a tile that are one thread's: as many, or twice as many."""
    each = knobs.rows * knobs.tile // knobs.threads
    mine_m = 1 << (each.bit_length() - 1) // 2
    return each // mine_m, mine_m


class _Side:
    """The rows of a tile on one side of the product: `size`, of which `mine` are a thread's, and of `threads` others.

    In shared memory the rows of a word lie side by side, and so do a thread's, four at a time: a load gives it those,
    and neighbors' lie beside them. That is one line of a cache for 16 threads (Mali's shared memory is one), and no two
    threads want the same bank.
    """

    def __init__(self, k: Builder, size: int, mine: int) -> None:
        self.k, self.size, self.mine, self.threads = k, size, mine, size // mine
        self._in_quads = mine % QUAD == 0
        self.words, self.scales = self.array("uint32", 8), self.array("float32")

    def array(self, dtype: str, words: int = 1) -> Any:
        """Shared memory for so many words of each row."""
        if self._in_quads:
            return self.k.shared(words * self.size // QUAD, f"{dtype}x{QUAD}")
        return self.k.shared(words * self.size, dtype)

    def row(self, thread: Expr, i: int) -> Expr:
        """Which row of the tile the i-th of a thread is."""
        if self._in_quads:
            return (thread + i // QUAD * self.threads) * QUAD + i % QUAD
        return thread + i * self.threads

    def place(self, row: Expr) -> tuple[Expr, ...]:
        """Where a row lies, for `put`."""
        if self._in_quads:
            return self.k.bind(quotient(row, QUAD)), self.k.bind(remainder(row, QUAD))
        return (row,)

    def put(self, buffer: Any, value: Expr, place: tuple[Expr, ...], word: Any = 0) -> None:
        """A word of a row."""
        first, *lane_of = place
        if lane_of:
            self.k.store_lane(buffer, value, first + word * (self.size // QUAD), *lane_of)
        else:
            self.k.store(buffer, value, first + word * self.size)

    def read(self, buffer: Any, thread: Expr, word: Any = 0) -> list[Expr]:
        """A word of each of a thread's rows."""
        k = self.k
        if not self._in_quads:
            return [k.bind(buffer[self.row(thread, i) + word * self.size]) for i in range(self.mine)]
        runs = [thread + (i * self.threads + word * (self.size // QUAD)) for i in range(self.mine // QUAD)]
        quads = [k.bind(buffer[run]) for run in runs]
        return [k.bind(lane(quad, i)) for quad in quads for i in range(QUAD)]


class TileSums:
    """A tile of weights times one of activations: what a workgroup has in shared memory, its threads in registers.

    a in units of 16 bytes, scale_a (rows, blocks).
    """

    def __init__(self, k: Builder, knobs: LinearKnobs, blocks: int, a: Any, scale_a: Any, w: Weights) -> None:
        self.k, self.blocks = k, blocks
        self.a, self.scale_a, self.w = a, scale_a, w
        mine_r, mine_m = _mine(knobs)
        self.of_w, self.of_a = _Side(k, knobs.rows, mine_r), _Side(k, knobs.tile, mine_m)
        self.a_sums = k.shared(2 * knobs.tile, "int32") if w.summed else ()
        self.shifts = self.of_w.array("int32") if w.shifted else ()
        self.sums, self.dots = k.local(mine_m * mine_r), k.local(mine_m * mine_r, "int32")

    @property
    def threads(self) -> int:
        return self.of_w.threads * self.of_a.threads

    def _square(self, thread: Expr) -> tuple[Expr, Expr]:
        """(which of the threads of the weight's rows, and of the activation's) a thread is.

        Neighbors are squares of four by four, which read the same few rows, not sixteen of one side.
        """
        k, across, down = self.k, self.of_w.threads, self.of_a.threads
        edge_r, edge_m = min(across, QUAD), min(down, QUAD)
        in_row = k.bind(quotient(thread, edge_r))
        square = k.bind(quotient(in_row, edge_m))
        wide = across // edge_r
        r = remainder(square, wide) * edge_r + remainder(thread, edge_r)
        m = quotient(square, wide) * edge_m + remainder(in_row, edge_m)
        return k.bind(r), k.bind(m)

    def multiply(
        self, thread: Expr, weight_row: Row, source_row: Row, steps: Any = None
    ) -> Callable[[Callable[..., None]], None]:
        """Computes the tile; returns what calls put(row of the activation's tile, of the weight's, value) for all.

        steps: groups of columns, where a tile may have none.
        """
        k = self.k
        my_r, my_m = self._square(thread)
        for i in range(self.of_a.mine * self.of_w.mine):
            k.store(self.sums, f32(0.0), i)
        with k.loop(0, self.blocks if steps is None else steps) as b:
            self._load(thread, b, weight_row, source_row)
            k.barrier()
            self._add(my_r, my_m)
            k.barrier()

        def each(put: Callable[..., None]) -> None:
            for m in range(self.of_a.mine):
                for r in range(self.of_w.mine):
                    put(self.of_a.row(my_m, m), self.of_w.row(my_r, r), self.sums[m * self.of_w.mine + r])

        return each

    def _load(self, thread: Expr, b: Expr, weight_row: Row, source_row: Row) -> None:
        """A group of columns of all rows, by all threads: the first ones' are of the weight."""
        k, w, of_w, of_a = self.k, self.w, self.of_w, self.of_a
        with k.strided(thread, of_w.size) as r:
            row = k.bind(weight_row(r))
            (group,) = w.read(row, b)
            place = of_w.place(r)
            for j, word in enumerate(group.factors()):
                of_w.put(of_w.words, word, place, j)
            of_w.put(of_w.scales, group.scale, place)
            if group.shift is not None:
                of_w.put(self.shifts, group.shift, place)
        busy = of_w.size % self.threads
        other = k.bind(remainder(thread + (self.threads - busy), self.threads)) if busy else thread
        with k.strided(other, 2 * of_a.size) as half:
            m, part = k.bind(quotient(half, 2)), k.bind(remainder(half, 2))
            source = k.bind(source_row(m))
            quad = k.bind(self.a[(source * self.blocks + b) * 2 + part])
            words, place = [lane(quad, i) for i in range(4)], of_a.place(m)
            for i, word in enumerate(words):
                of_a.put(of_a.words, word, place, part * 4 + i)
            if w.summed:
                k.store(self.a_sums, group_sum(k, words), half)
            with k.when(tirx.EQ(part, i32(0))):
                of_a.put(of_a.scales, self.scale_a[source, b], place)

    def _add(self, my_r: Expr, my_m: Expr) -> None:
        """The products of a group of columns, of a thread's own rows."""
        k, w, of_w, of_a = self.k, self.w, self.of_w, self.of_a
        for i in range(of_a.mine * of_w.mine):
            k.store(self.dots, i32(0), i)
        if k.schedule.written:
            for word in range(8):
                self._multiply(my_r, my_m, word)
        else:
            with k.loop(0, 8) as word:
                self._multiply(my_r, my_m, word)
        row_scales, scales = of_w.read(of_w.scales, my_r), of_a.read(of_a.scales, my_m)
        row_shifts = of_w.read(self.shifts, my_r) if w.shifted else [None] * of_w.mine
        for m, scale in enumerate(scales):
            at = of_a.row(my_m, m)
            total = k.bind(self.a_sums[2 * at] + self.a_sums[2 * at + 1]) if w.summed else None
            for r in range(of_w.mine):
                i = m * of_w.mine + r
                dot = tirx.Cast("float32", w.product(self.dots[i], row_shifts[r], total))
                k.store(self.sums, fma(dot, row_scales[r] * scale, self.sums[i]), i)

    def _multiply(self, my_r: Expr, my_m: Expr, word: Any) -> None:
        """The products of four columns."""
        k, of_w, of_a = self.k, self.of_w, self.of_a
        weights, values = of_w.read(of_w.words, my_r, word), of_a.read(of_a.words, my_m, word)
        for m, value in enumerate(values):
            for r, weight in enumerate(weights):
                i = m * of_w.mine + r
                k.store(self.dots, self.dots[i] + k.dot4(weight, value), i)


def quantized_tiles(k: Builder, work: Linear, knobs: LinearKnobs) -> None:
    """(a, scale_a, w, scale_w[, high_w | zero_w], then the addends) -> y."""
    blocks = work.columns // GROUP
    a = k.quads("a", work.n * work.columns)
    scale_a = k.buffer("scale_a", (work.n, blocks), "float32")
    w = Weights(k, work.rows, work.columns, work.packing)
    out = Output(k, work)
    tile = TileSums(k, knobs, blocks, a, scale_a, w)
    with k.launch((-(-work.rows // knobs.rows), -(-work.n // knobs.tile)), tile.threads) as (at_r, at_m, thread):
        first_row, first_m = k.bind(at_r * knobs.rows), k.bind(at_m * knobs.tile)
        each = tile.multiply(
            thread,
            lambda r: tirx.Min(first_row + r, i32(work.rows - 1)),
            lambda m: tirx.Min(first_m + m, i32(work.n - 1)),
        )

        def put(m: Expr, r: Expr, value: Expr) -> None:
            at, row = first_m + m, first_row + r
            inside = tirx.And(at < i32(work.n), row < i32(work.rows))
            with k.when(inside):
                out.write(k.bind(at), k.bind(row), value)

        each(put)
