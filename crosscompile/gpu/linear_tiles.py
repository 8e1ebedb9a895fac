"""The quantized linear layer of many rows: tiles of the weight and of the activation through shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, i32, lane
from crosscompile.gpu.knobs import STRIDE, LinearKnobs
from crosscompile.gpu.linear import Linear, Output, group_sum
from crosscompile.gpu.weights import Weights
from crosscompile.packing import GROUP

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
        self.k, self.tile_r, self.tile_m, self.blocks = k, knobs.rows, knobs.tile, blocks
        self.a, self.scale_a, self.w = a, scale_a, w
        self.mine_r, self.mine_m = _mine(knobs)
        self.across, self.down = self.tile_r // self.mine_r, self.tile_m // self.mine_m
        self.a_tile, self.w_tile = k.shared(self.tile_m * STRIDE, "uint32"), k.shared(self.tile_r * STRIDE, "uint32")
        self.a_scales, self.w_scales = k.shared(self.tile_m), k.shared(self.tile_r)
        self.a_sums, self.shifts = (
            (k.shared(size, "int32") if w.summed else ()) for size in (2 * self.tile_m, self.tile_r)
        )
        count = self.mine_m * self.mine_r
        self.sums, self.dots = k.local(count), k.local(count, "int32")

    @property
    def threads(self) -> int:
        return self.across * self.down

    def multiply(
        self, thread: Expr, weight_row: Row, source_row: Row, steps: Any = None
    ) -> Callable[[Callable[..., None]], None]:
        """Computes the tile; returns what calls put(row of the activation's tile, of the weight's, value) for all.

        steps: groups of columns, where a tile may have none.
        """
        k = self.k
        my_r, my_m = k.bind(tirx.truncmod(thread, i32(self.across))), k.bind(tirx.truncdiv(thread, i32(self.across)))
        for i in range(self.mine_m * self.mine_r):
            k.store(self.sums, f32(0.0), i)
        with k.loop(0, self.blocks if steps is None else steps) as b:
            self._load(thread, b, weight_row, source_row)
            k.barrier()
            self._add(my_r, my_m)
            k.barrier()

        def each(put: Callable[..., None]) -> None:
            for m in range(self.mine_m):
                for r in range(self.mine_r):
                    put(my_m + m * self.down, my_r + r * self.across, self.sums[m * self.mine_r + r])

        return each

    def _load(self, thread: Expr, b: Expr, weight_row: Row, source_row: Row) -> None:
        """A group of columns of all rows, by all threads."""
        k, w = self.k, self.w
        with k.strided(thread, self.tile_r) as r:
            row = k.bind(weight_row(r))
            (group,) = w.read(row, b)
            for j, word in enumerate(group.words()):
                k.store(self.w_tile, word, r * STRIDE + j)
            k.store(self.w_scales, group.scale, r)
            if group.shift is not None:
                k.store(self.shifts, group.shift, r)
        with k.strided(thread, 2 * self.tile_m) as half:
            m, part = k.bind(tirx.truncdiv(half, i32(2))), k.bind(tirx.truncmod(half, i32(2)))
            source = k.bind(source_row(m))
            quad = k.bind(self.a[(source * self.blocks + b) * 2 + part])
            words = [lane(quad, i) for i in range(4)]
            for i, word in enumerate(words):
                k.store(self.a_tile, word, m * STRIDE + part * 4 + i)
            if w.summed:
                k.store(self.a_sums, group_sum(k, words), half)
            with k.when(tirx.EQ(part, i32(0))):
                k.store(self.a_scales, self.scale_a[source, b], m)

    def _add(self, my_r: Expr, my_m: Expr) -> None:
        """The products of a group of columns, of a thread's own rows."""
        k, w = self.k, self.w
        for i in range(self.mine_m * self.mine_r):
            k.store(self.dots, i32(0), i)
        if k.schedule.written:
            for word in range(8):
                self._multiply(my_r, my_m, word)
        else:
            with k.loop(0, 8) as word:
                self._multiply(my_r, my_m, word)
        row_scales = [k.bind(self.w_scales[my_r + i * self.across]) for i in range(self.mine_r)]
        row_shifts = [k.bind(self.shifts[my_r + i * self.across]) if w.summed else None for i in range(self.mine_r)]
        for m in range(self.mine_m):
            at = k.bind(my_m + m * self.down)
            scale = k.bind(self.a_scales[at])
            total = k.bind(self.a_sums[2 * at] + self.a_sums[2 * at + 1]) if w.summed else None
            for r in range(self.mine_r):
                i = m * self.mine_r + r
                dot = tirx.Cast("float32", w.product(self.dots[i], row_shifts[r], total))
                k.store(self.sums, fma(dot, row_scales[r] * scale, self.sums[i]), i)

    def _multiply(self, my_r: Expr, my_m: Expr, word: Any) -> None:
        """The products of four columns."""
        k = self.k
        weights = [k.bind(self.w_tile[(my_r + i * self.across) * STRIDE + word]) for i in range(self.mine_r)]
        values = [k.bind(self.a_tile[(my_m + i * self.down) * STRIDE + word]) for i in range(self.mine_m)]
        for m in range(self.mine_m):
            for r in range(self.mine_r):
                i = m * self.mine_r + r
                k.store(self.dots, self.dots[i] + k.dot4(weights[r], values[m]), i)


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
