"""The quantized linear layer of many rows: tiles of the weight and of the activation through shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, i32, lane, quotient, remainder
from crosscompile.gpu.knobs import LinearKnobs
from crosscompile.gpu.linear import Linear, Output, group_sum
from crosscompile.gpu.side import Side, square
from crosscompile.gpu.weights import Weights
from crosscompile.packing import GROUP

WORDS = GROUP // 4
"""Of a group of columns of a row: four columns each."""
Row = Callable[[Expr], Expr]
"""Row of a tile -> row of a buffer, one that there is."""


def _mine(knobs: LinearKnobs) -> tuple[int, int]:
    """(rows of the weight, rows of the activation) of a tile that are one thread's: as many, or twice as many."""
    each = knobs.rows * knobs.tile // knobs.threads
    mine_m = 1 << (each.bit_length() - 1) // 2
    return each // mine_m, mine_m


class TileSums:
    """A tile of weights times one of activations: what a workgroup has in shared memory, its threads in registers.

    a in units of 16 bytes, scale_a (rows, blocks).
    """

    def __init__(self, k: Builder, knobs: LinearKnobs, blocks: int, a: Any, scale_a: Any, w: Weights) -> None:
        self.k, self.blocks = k, blocks
        self.a, self.scale_a, self.w = a, scale_a, w
        mine_r, mine_m = _mine(knobs)
        self.of_w, self.of_a = Side(k, knobs.rows, mine_r), Side(k, knobs.tile, mine_m)
        self.w_words, self.w_scales = self.of_w.array("uint32", WORDS), self.of_w.array()
        self.a_words, self.a_scales = self.of_a.array("uint32", WORDS), self.of_a.array()
        self.a_sums = k.shared(2 * knobs.tile, "int32") if w.summed else ()
        self.shifts = self.of_w.array("int32") if w.shifted else ()
        self.sums, self.dots = k.local(mine_m * mine_r), k.local(mine_m * mine_r, "int32")

    @property
    def threads(self) -> int:
        return self.of_w.threads * self.of_a.threads

    def multiply(
        self, thread: Expr, weight_row: Row, source_row: Row, steps: Any = None
    ) -> Callable[[Callable[..., None]], None]:
        """Computes the tile; returns what calls put(row of the activation's tile, of the weight's, value) for all.

        steps: groups of columns, where a tile may have none.
        """
        k = self.k
        my_r, my_m = square(k, thread, self.of_w, self.of_a)
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
            for j, word in enumerate(group.factors()):
                k.store(self.w_words, word, r + j * of_w.size)
            k.store(self.w_scales, group.scale, r)
            if group.shift is not None:
                k.store(self.shifts, group.shift, r)
        busy = of_w.size % self.threads
        other = k.bind(remainder(thread + (self.threads - busy), self.threads)) if busy else thread
        with k.strided(other, 2 * of_a.size) as half:
            m, part = k.bind(quotient(half, 2)), k.bind(remainder(half, 2))
            source = k.bind(source_row(m))
            quad = k.bind(self.a[(source * self.blocks + b) * 2 + part])
            words = [lane(quad, i) for i in range(4)]
            for i, word in enumerate(words):
                k.store(self.a_words, word, m + (part * 4 + i) * of_a.size)
            if w.summed:
                k.store(self.a_sums, group_sum(k, words), half)
            with k.when(tirx.EQ(part, i32(0))):
                k.store(self.a_scales, self.scale_a[source, b], m)

    def _add(self, my_r: Expr, my_m: Expr) -> None:
        """The products of a group of columns, of a thread's own rows."""
        k, w, of_w, of_a = self.k, self.w, self.of_w, self.of_a
        for i in range(of_a.mine * of_w.mine):
            k.store(self.dots, i32(0), i)
        if k.schedule.written:
            for word in range(WORDS):
                self._multiply(my_r, my_m, word)
        else:
            with k.loop(0, WORDS) as word:
                self._multiply(my_r, my_m, word)
        row_scales, scales = of_w.read(self.w_scales, my_r), of_a.read(self.a_scales, my_m)
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
        weights, values = of_w.read(self.w_words, my_r, word), of_a.read(self.a_words, my_m, word)
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
