"""Linear layers of experts whose rows are grouped (grouped.py): how each class of GPUs computes a tile of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane, quotient
from crosscompile.gpu.experts_knobs import default_experts
from crosscompile.gpu.grouped import Grouped
from crosscompile.gpu.knobs import LinearKnobs
from crosscompile.gpu.linear_alone import add_products
from crosscompile.gpu.linear_tiles import TileSums
from crosscompile.gpu.weights import Weights
from crosscompile.packing import GROUP, Packing
from crosscompile.spirv.capabilities import Gpu


def grouped_kernel(name: str, gpu: Gpu, work: Grouped, knobs: LinearKnobs | None = None) -> tirx.PrimFunc:
    """The GPU's grouped_linear. knobs: a candidate with the tile that rows are grouped in; None: the default."""
    alone = Builder(gpu).schedule.alone
    if Packing.parse(work.packing).quantized:
        writer = _quantized_alone if alone else _quantized_tiles
    else:
        writer = _floats_alone if alone else _floats
    chosen = knobs or default_experts(work, gpu)
    if chosen.tile != work.groups.tile:
        raise AssertionError(f"{name}: tiles of {chosen.tile} for rows that are grouped in {work.groups.tile}")
    return gpu_kernel(name, gpu, lambda k: writer(k, work, chosen))


class _Table:
    """The buffers table and tokens, and of one tile which rows it has and where the weights of its expert are."""

    def __init__(self, k: Builder, work: Grouped) -> None:
        self.k, self.work, self.groups = k, work, work.groups
        self.table = k.buffer("table", (work.groups.size,), "int32")
        k.buffer("tokens", (work.n,), "int32")

    @contextmanager
    def tile(self, t: Expr, row: Expr, steps: int) -> Iterator[None]:
        """Tile t, some rows of its expert's weight from `row` on; nothing where there is nothing to compute.

        row: of those that the tensor has. steps: along the columns. Rows of no expert have none, which leaves zeros; in
        parts, where the first expert's are computed.
        """
        k, work, tiles = self.k, self.work, self.groups.tiles
        expert, self.count = k.bind(self.table[t]), k.bind(self.table[tiles + t])
        self.places = k.bind(2 * tiles + t * self.groups.tile)
        self.row = k.bind(row)
        wanted = self.count > i32(0)
        if work.is_whole:
            self.weight = k.bind(expert * work.out + self.row - work.first)
        else:
            place = k.bind(tirx.Max(expert, i32(0)) * work.out - work.first)
            self.row = k.bind(tirx.Max(i32(0) - place, i32(0)) + self.row)
            self.weight = k.bind(place + self.row)
            wanted = tirx.And(wanted, tirx.And(self.weight < i32(work.held), self.row < i32(work.out)))
        self.steps = k.bind(tirx.Select(expert < i32(0), i32(0), i32(steps)))
        with k.when(wanted):
            yield

    def place(self, m: Any) -> Expr:
        """Row m of the tile, in the result; the last one for those behind it."""
        return self.k.bind(self.table[self.places + tirx.Min(m, self.count - 1)])

    def source(self, m: Any) -> Expr:
        """The same in the activation."""
        return self.k.bind(quotient(self.place(m), self.work.each))

    def weight_row(self, r: Any) -> Expr:
        """Row r of the tile in the weight, or another one that the tensor has."""
        return tirx.Max(tirx.Min(self.weight + r, i32(self.work.held - 1)), i32(0))

    def write(self, y: Any, place: Expr, r: Any, value: Expr) -> None:
        """What row r of the tile's weight gives, if it is the expert's and the tensor's."""
        inside = self.row + r < i32(self.work.out)
        if not self.work.is_whole:
            inside = tirx.And(inside, self.weight + r < i32(self.work.held))
        with self.k.when(inside):
            self.k.store(y, value, place, self.row + r)


def _quantized(k: Builder, work: Grouped) -> tuple[Any, Any, _Table, Weights, Any]:
    """(activation in units of 16 bytes, scales of it, table, weights, y)."""
    sources, blocks = work.groups.rows // work.each, work.columns // GROUP
    a = k.quads("a", sources * work.columns)
    scale_a = k.buffer("scale_a", (sources, blocks), "float32")
    table = _Table(k, work)
    w = Weights(k, work.held, work.columns, work.packing)
    return a, scale_a, table, w, k.buffer("y", (work.groups.rows, work.out), "float32")


def _quantized_tiles(k: Builder, work: Grouped, knobs: LinearKnobs) -> None:
    """A workgroup for a tile of the activation and rows of its expert's weight, through shared memory."""
    a, scale_a, table, w, y = _quantized(k, work)
    blocks = work.columns // GROUP
    sums = TileSums(k, knobs, blocks, a, scale_a, w)

    def put(m: Expr, r: Expr, value: Expr) -> None:
        with k.when(m < table.count):
            table.write(y, table.place(m), r, value)

    grid = (-(-work.reach // knobs.rows), work.groups.tiles)
    with k.launch(grid, sums.threads) as (strip, t, thread), table.tile(t, strip * knobs.rows, blocks):
        sums.multiply(thread, table.weight_row, table.source, table.steps)(put)


def _quantized_alone(k: Builder, work: Grouped, knobs: LinearKnobs) -> None:
    """A thread for a tile of the activation and some rows of its expert's weight."""
    a, scale_a, table, w, y = _quantized(k, work)

    def add(rows: list[Expr], sums: Any) -> None:
        add_products(k, a, scale_a, w, work.columns // GROUP, rows, table.count, table.source, sums, table.steps)

    _alone(k, work, knobs, table, work.columns // GROUP, add, y)


def _alone(k: Builder, work: Grouped, knobs: LinearKnobs, table: _Table, steps: int, add: Any, y: Any) -> None:
    """Sums of each thread's own, which add(rows of the weight, sums) adds to, m outermost."""
    each, threads = knobs.rows, knobs.threads
    strips = -(-work.reach // each)
    sums = k.local(work.groups.tile * each)
    with k.launch((-(-strips // threads), work.groups.tiles), threads) as (workgroup, t, thread):
        strip = k.bind(workgroup * threads + thread)
        with k.when(strip < i32(strips)), table.tile(t, strip * each, steps):
            with k.loop(0, table.count * each) as i:
                k.store(sums, f32(0.0), i)
            add([k.bind(table.weight_row(r)) for r in range(each)], sums)
            with k.loop(0, table.count) as m:
                place = table.place(m)
                for r in range(each):
                    table.write(y, place, r, sums[m * each + r])


class _Floats:
    """The buffers of a layer with weights in f16 or f32, which are read eight columns at a time."""

    def __init__(self, k: Builder, work: Grouped) -> None:
        self.k, self.eights = k, work.columns // 8
        self.half = Packing.parse(work.packing).kind == "f16"
        rows = work.groups.rows
        self.x = k.quads("x", rows // work.each * work.columns * 4, "float32")
        self.table = _Table(k, work)
        size = work.held * work.columns * (2 if self.half else 4)
        self.w = k.quads("w", size, "uint32" if self.half else "float32")
        self.y = k.buffer("y", (rows, work.out), "float32")

    def weights(self, row: Expr, c: Expr) -> list[Expr]:
        """Columns 8 · c and on of a row of the weight."""
        k, at, units = self.k, self.k.bind(row * self.eights + c), 1 if self.half else 2
        quads = [k.bind(self.w[at * units + u]) for u in range(units)]
        words = [lane(quad, i) for quad in quads for i in range(4)]
        return [k.bind(v) for word in words for v in k.halves(word)] if self.half else words

    def values(self, row: Expr, c: Expr) -> list[Expr]:
        """The same of the activation."""
        pair = [self.k.bind(self.x[(row * self.eights + c) * 2 + u]) for u in range(2)]
        return [lane(quad, i) for quad in pair for i in range(4)]


def _sum_of(weights: list[Expr], values: list[Expr], total: Expr) -> Expr:
    for weight, value in zip(weights, values, strict=True):
        total = fma(weight, value, total)
    return total


def _floats(k: Builder, work: Grouped, knobs: LinearKnobs) -> None:
    """A workgroup for a tile of the activation and a few rows of its expert's weight; its threads share the columns."""
    f = _Floats(k, work)
    table, tile, together, threads = f.table, knobs.tile, knobs.rows, knobs.threads
    sums, shared = k.local(tile * together), k.reduction(4, threads)
    grid = (-(-work.reach // together), work.groups.tiles)
    with k.launch(grid, threads) as (strip, t, thread), table.tile(t, strip * together, f.eights):
        for i in range(tile * together):
            k.store(sums, f32(0.0), i)
        with k.when(table.steps > i32(0)), k.strided(thread, f.eights) as c:
            weights = [f.weights(k.bind(table.weight_row(r)), c) for r in range(together)]
            for m in range(tile):
                with k.when(i32(m) < table.count):
                    values = f.values(table.source(i32(m)), c)
                    for r in range(together):
                        i = m * together + r
                        k.store(sums, _sum_of(weights[r], values, sums[i]), i)
        for start in range(0, tile * together, 4):
            some = range(start, min(start + 4, tile * together))
            for i, total in zip(some, k.reduce(thread, [sums[i] for i in some], shared), strict=True):
                m, r = divmod(i, together)
                with k.when(tirx.And(tirx.EQ(thread, i32(i % threads)), i32(m) < table.count)):
                    table.write(f.y, table.place(i32(m)), r, total)


def _floats_alone(k: Builder, work: Grouped, knobs: LinearKnobs) -> None:
    """As `_quantized_alone`."""
    f = _Floats(k, work)

    def add(rows: list[Expr], sums: Any) -> None:
        with k.loop(0, f.table.steps) as c:
            weights = [f.weights(row, c) for row in rows]
            with k.loop(0, f.table.count) as m:
                values = f.values(f.table.source(m), c)
                for r in range(len(rows)):
                    at = m * len(rows) + r
                    k.store(sums, _sum_of(weights[r], values, sums[at]), at)

    _alone(k, work, knobs, f.table, f.eights, add, f.y)
