"""Many rows of a mixture of experts: sorted by expert, so that a tile of an expert's rows reads its weights once.

`group_rows` sorts on the device, in one workgroup. A plan's grids are fixed, so that there are workgroups for as many
tiles as there can be; those that are not needed end at once. Each row and slot has a row of the result of its own,
which `combine` adds in order: the same input gives the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, constant
from crosscompile.gpu.build import Builder, gpu_kernel, i32, lane, quotient, threads_for
from crosscompile.gpu.knobs import FEW_ROWS
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import kernel, kernel_maker
from crosscompile.packing import GROUP, Packing
from crosscompile.spirv.capabilities import Gpu

_SHARED, _SHARED_ALONE = 2, 4
"""Rows that each expert has on average, at least, where sorting pays: a guess, and, where threads share nothing,
measured (docs/vulkan.md)."""


@dataclass(frozen=True)
class Groups:
    """How rows are grouped: `rows` of them, by `total` experts or none, in tiles of up to `tile` rows of one expert.

    The table: each tile's expert, then each tile's number of rows, 0 where there is no such tile, then each tile's
    rows. Rows of no expert have tiles too, of expert -1: what they give is zeros.
    """

    rows: int
    total: int
    tile: int

    @property
    def tiles(self) -> int:
        """As many as there can be: of each expert one that is not full."""
        kinds = min(self.rows, self.total + 1)
        return kinds + (self.rows - kinds) // self.tile

    @property
    def size(self) -> int:
        return self.tiles * (2 + self.tile)


def groups_for(rows: int, total: int, packing: str, gpu_class: str) -> Groups | None:
    """How the rows of a linear layer of experts are grouped; None where each is computed by itself."""
    schedule = SCHEDULES[gpu_class]
    if rows < total * (_SHARED_ALONE if schedule.alone else _SHARED) or rows % 4:
        return None
    if schedule.alone:
        return Groups(rows, total, schedule.tile)
    if not Packing.parse(packing).quantized or rows < 8 * total:
        return Groups(rows, total, FEW_ROWS)
    return Groups(rows, total, 16 if rows < 32 * total else 32)


@dataclass(frozen=True)
class ExpertLayer(ABC):
    """A linear layer of a mixture's experts: row i of the result is what its expert makes of row i / each.

    out, columns   of one expert's weight; n: rows of the function
    first, held    rows of all experts' weights, one after another, that the tensor has (split.py)
    """

    n: int
    each: int
    out: int
    columns: int
    packing: str
    first: int
    held: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(rows, experts)."""

    @property
    def is_whole(self) -> bool:
        return self.held == self.shape[1] * self.out

    @property
    def reach(self) -> int:
        """The most rows of one expert's weight that the tensor has: workgroups are started for so many."""
        ends = range(self.out, self.shape[1] * self.out + 1, self.out)
        return max(min(end, self.first + self.held) - max(end - self.out, self.first) for end in ends)


@dataclass(frozen=True)
class Grouped(ExpertLayer):
    """Rows are grouped by expert."""

    groups: Groups

    @property
    def shape(self) -> tuple[int, int]:
        return self.groups.rows, self.groups.total


@kernel_maker
def group_rows(groups: Groups) -> tirx.PrimFunc:
    """(ids (rows,) int32) -> table (size,) int32, for planning; only GPUs have it."""

    def body(k: Declaration) -> None:
        k.buffer("ids", (groups.rows,), "int32")
        table = k.buffer("table", (groups.size,), "int32")
        with k.shared(1) as unit:
            k.store(table, tirx.const(0, "int32"), unit)

    return kernel("group_rows", body)


@kernel_maker
def grouped_linear(work: Grouped) -> tirx.PrimFunc:
    """(x, table, tokens (n,) int32, w[, scale_w[, high_w | zero_w]]) -> y (rows, out) f32, for planning.

    x: as a linear layer of this packing takes it. tokens: as of kernels/experts.py.
    """
    form = Packing.parse(work.packing)

    def body(k: Declaration) -> None:
        declare_activation(k, form, work.groups.rows // work.each, work.columns)
        k.buffer("table", (work.groups.size,), "int32")
        k.buffer("tokens", (work.n,), "int32")
        declare_weight(k, form, work.held, work.columns)
        y = k.buffer("y", (work.groups.rows, work.out), "float32")
        with k.shared(1) as unit:
            k.store(y, constant(0.0, 1), unit, 0)

    return kernel("grouped_linear", body)


def declare_activation(k: Declaration, form: Packing, rows: int, columns: int) -> None:
    """What a linear layer of a GPU takes, for planning."""
    if form.quantized:
        k.buffer("a", (rows, columns // GROUP, GROUP), "int8")
        k.buffer("scale_a", (rows, columns // GROUP), "float32")
    else:
        k.buffer("x", (rows, columns), "float32")


def declare_weight(k: Declaration, form: Packing, rows: int, columns: int) -> None:
    """All that is stored of a weight."""
    for suffix, (shape, dtype) in form.stored(rows, columns).items():
        own = form.dtype if form.quantized and not suffix else str(dtype)
        k.buffer(f"w{suffix.replace('.', '_')}", shape, own)


def group_rows_kernel(name: str, gpu: Gpu, groups: Groups) -> tirx.PrimFunc:
    """One workgroup, a thread for each expert: it counts its rows, and then notes them in order, tile by tile."""
    rows, tiles, tile, kinds = groups.rows, groups.tiles, groups.tile, groups.total + 1
    loads = 2 if rows % 8 == 0 else 1
    if rows % 4:
        raise AssertionError(f"{rows} rows are no multiple of four")

    def body(k: Builder) -> None:
        ids = k.quads("ids", rows * 4)
        table = k.buffer("table", (groups.size,), "int32")
        counts, found, first = k.shared(kinds, "int32"), k.local(1, "int32"), k.local(1, "int32")

        def expert_of(kind: Expr) -> Expr:
            """The last kind of rows are those of no expert."""
            return k.bind(tirx.Select(tirx.EQ(kind, i32(groups.total)), i32(-1), kind))

        def scan(expert: Expr) -> Any:
            """Yields what tells of a few rows at a time whether they are the expert's."""
            with k.loop(0, rows // (4 * loads)) as turn:
                quads = [k.bind(ids[turn * loads + i]) for i in range(loads)]
                for at, word in enumerate(lane(quad, i) for quad in quads for i in range(4)):
                    yield turn * (4 * loads) + at, tirx.EQ(tirx.Cast("int32", word), expert)

        def tiles_of(kind: Expr) -> Expr:
            return quotient(counts[kind] + (tile - 1), tile)

        with k.launch((1,), threads_for(kinds, gpu.invocations)) as (_, thread):
            with k.strided(thread, kinds) as kind:
                k.store(found, i32(0), 0)
                for _row, own in scan(expert_of(kind)):
                    k.store(found, found[0] + tirx.Select(own, i32(1), i32(0)), 0)
                k.store(counts, found[0], kind)
            k.barrier()
            with k.strided(thread, kinds) as kind:
                expert, count = expert_of(kind), k.bind(counts[kind])
                k.store(first, i32(0), 0)
                with k.loop(0, kind) as before:
                    k.store(first, first[0] + tiles_of(before), 0)
                k.store(found, 2 * tiles + first[0] * tile, 0)
                for row, own in scan(expert):
                    with k.when(own):
                        k.store(table, row, found[0])
                        k.store(found, found[0] + 1, 0)
                mine = k.bind(tiles_of(kind))
                with k.loop(0, mine) as t:
                    at = k.bind(first[0] + t)
                    k.store(table, expert, at)
                    k.store(table, tirx.Min(count - t * tile, i32(tile)), tiles + at)
                with k.when(tirx.EQ(kind, i32(kinds - 1))), k.loop(first[0] + mine, i32(tiles)) as rest:
                    k.store(table, i32(0), tiles + rest)

    return gpu_kernel(name, gpu, body)
