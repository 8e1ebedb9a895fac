"""How linear layers of a mixture's experts are cut, and what tuning may choose of them.

Rows that go to their experts one by one (experts.py), and rows that are grouped by expert (grouped.py). The defaults
follow from the table of classes; a result that is none of a layer's candidates is an error, as in knobs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from crosscompile.gpu.build import PART_ROWS, threads_for
from crosscompile.gpu.grouped import ExpertLayer, Grouped
from crosscompile.gpu.knobs import ALONE_SUMS, SUMS, LinearKnobs, chosen, tile_bytes
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.build import Origin, divisor
from crosscompile.kernels.linear import Tuned
from crosscompile.packing import GROUP, Packing
from crosscompile.spirv.capabilities import Gpu

_THREADS = (32, 64, 128, 256)
_TILES = (8, 16, 32)


@dataclass(frozen=True)
class Experts(ExpertLayer):
    """Each row is by itself."""

    rows: int
    total: int

    @property
    def sources(self) -> int:
        """Rows of the activation."""
        return self.rows // self.each

    @property
    def blocks(self) -> int:
        """Groups of columns."""
        return self.columns // GROUP

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.total


ExpertWork = Experts | Grouped


def expert_work(origin: Origin | None) -> ExpertWork | None:
    """The layer that a kernel is; None if it is another kernel."""
    if origin is None or origin.name not in ("expert_linear", "expert_part", "grouped_linear"):
        return None
    given = dict(origin.arguments)
    if origin.name == "grouped_linear":
        work: Grouped = given["work"]
        return work
    given.pop("tier", None)
    return Experts(**{"first": 0, "held": given["total"] * given["out"], **given})


def expert_key(work: ExpertWork) -> str:
    """The name that results are filed under; parts of a matrix that have as many rows share them."""
    kind = "grouped" if isinstance(work, Grouped) else "experts"
    part = "" if work.is_whole else f":part{work.held}"
    rows, total = work.shape
    shape = f"{rows // work.n}of{total}:{work.out}x{work.columns}"
    return f"{kind}.{work.packing}:n{work.n}:{shape}:each{work.each}{part}"


def expert_candidates(work: ExpertWork, gpu: Gpu) -> tuple[LinearKnobs, ...]:
    """What tuning tries: the default first, nothing twice. tile: 1 where each row is by itself."""
    found = _grouped(work, gpu) if isinstance(work, Grouped) else _single(work, gpu)
    return tuple(dict.fromkeys([default_experts(work, gpu), *found]))


def default_experts(work: ExpertWork, gpu: Gpu) -> LinearKnobs:
    """What counts where nothing was tuned; of grouped rows, in tiles of as many as they are grouped in."""
    schedule, quantized = SCHEDULES[gpu.schedule], Packing.parse(work.packing).quantized
    if isinstance(work, Grouped):
        tile = work.groups.tile
        if schedule.alone:
            return LinearKnobs(schedule.threads, divisor(work.out, schedule.rows), tile)
        if quantized:
            return LinearKnobs(128, 64, tile)
        return LinearKnobs(threads_for(work.columns // 8, min(128, gpu.invocations)), divisor(work.out, 2), tile)
    together = gcd(work.out, PART_ROWS)  # rows of a weight none of which is in another part than the others
    if not quantized:
        return LinearKnobs(threads_for(work.columns // 8, min(128, gpu.invocations)), divisor(together, 4), 1)
    if schedule.alone:
        return LinearKnobs(schedule.threads, divisor(together, schedule.rows), 1)
    threads = threads_for(work.blocks, min(schedule.threads, gpu.invocations))
    return LinearKnobs(threads, divisor(together, schedule.rows), 1)


def _single(work: Experts, gpu: Gpu) -> Sequence[LinearKnobs]:
    """Candidates where each row is by itself."""
    quantized, most = Packing.parse(work.packing).quantized, gcd(work.out, PART_ROWS)
    if quantized and SCHEDULES[gpu.schedule].alone:
        return [LinearKnobs(threads, rows, 1) for threads in (8, 16) for rows in (1, 2, 4, 8, 16) if most % rows == 0]
    shared = work.blocks if quantized else work.columns // 8
    counts = {threads_for(shared, min(threads, gpu.invocations)) for threads in _THREADS}
    return [LinearKnobs(threads, rows, 1) for threads in sorted(counts) for rows in (1, 2, 4, 8) if most % rows == 0]


def _grouped(work: Grouped, gpu: Gpu) -> Sequence[LinearKnobs]:
    """Candidates where rows are grouped. Parts keep the default's tile: rows are grouped once, for all of them."""
    quantized, alone = Packing.parse(work.packing).quantized, SCHEDULES[gpu.schedule].alone
    rows, total = work.groups.rows, work.groups.total
    tiles = [tile for tile in _TILES if tile == _TILES[0] or 2 * rows >= tile * total]
    tiles = tiles if work.is_whole else [work.groups.tile]
    if alone:
        return [
            LinearKnobs(SCHEDULES[gpu.schedule].threads, each, tile)
            for each in (1, 2, 4, 8, 16)
            for tile in tiles
            if work.out % each == 0 and each * tile <= ALONE_SUMS
        ]
    if quantized:
        return [
            LinearKnobs(threads, each, tile)
            for threads in _THREADS[1:]
            for each in (32, 64, 128)
            for tile in tiles
            if threads <= gpu.invocations
            and 4 * threads <= each * tile <= SUMS * threads
            and tile_bytes(each, tile) <= gpu.shared_bytes
        ]
    counts = {threads_for(work.columns // 8, min(threads, gpu.invocations)) for threads in _THREADS}
    return [
        LinearKnobs(threads, each, tile)
        for threads in sorted(counts)
        for each in (1, 2, 4)
        for tile in tiles
        if work.out % each == 0 and each * tile <= SUMS
    ]


def chosen_experts(work: ExpertWork, gpu: Gpu, tuned: Tuned) -> LinearKnobs:
    """What was found for a layer of experts, or the default. CodegenError if that is no schedule of it."""
    return chosen(expert_key(work), expert_candidates(work, gpu), tuned)


def in_tiles(work: Grouped, tile: int) -> Grouped:
    """The same layer with rows in tiles of up to so many."""
    return replace(work, groups=replace(work.groups, tile=tile))


def chosen_tiles(work: Grouped, gpu: Gpu, tuned: Tuned) -> Grouped:
    """The layer with its rows in tiles as tuning found them best. CodegenError as chosen_experts."""
    return in_tiles(work, chosen_experts(work, gpu, tuned).tile)
