"""What tuning may choose of a GPU's kernels: how a linear layer is cut into threads, into how many parts a context.

The defaults follow from the table of classes (schedules.py). What was found on a board comes as a mapping from a
kernel's key to its knobs; anything that is not among the kernel's candidates is an error, for it could be wrong code.
A row's fused layers (fused_knobs.py) and a mixture's experts (experts_knobs.py) have theirs elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from crosscompile.errors import CodegenError
from crosscompile.gpu.attention import splits_for
from crosscompile.gpu.attention_alone import RUN
from crosscompile.gpu.build import QUAD_BYTES, threads_for
from crosscompile.gpu.schedules import SCHEDULES, Schedule
from crosscompile.gpu.weights import group_bytes
from crosscompile.kernels.build import divisor
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.kernels.linear import Tuned
from crosscompile.packing import GROUP, Packing
from crosscompile.spirv.capabilities import Gpu

if TYPE_CHECKING:
    from crosscompile.gpu.linear import Linear

Knobs = TypeVar("Knobs", bound=Any)
"""A dataclass of whole numbers, one of those that a kind of kernels has."""

TEMPLATE_REVISION = 5
"""Raised with every change to the kernels, or to what is searched, that makes earlier results worth nothing."""

FEW_ROWS = 8
"""Rows of the activation that are kept in registers while weights pass by."""
SUMS = 32
"""A thread's, at most, where threads share the columns of a weight, or a tile."""
ALONE_SUMS = 512
_ENOUGH = 16
"""Workgroups that keep processors evenly busy."""


@dataclass(frozen=True)
class LinearKnobs:
    """How a linear layer is cut.

    threads  of a workgroup
    rows     of the weight: of a workgroup whose threads share the columns or a tile, or of a thread that is alone
    tile     rows of the activation that are computed together with them
    """

    threads: int
    rows: int
    tile: int


def way_of(work: Linear, gpu: Gpu) -> str:
    """Which kernel computes a linear layer: "few", "matrices", "tiles", "alone", "float" or "narrow"."""
    if Packing.parse(work.packing).quantized:
        if SCHEDULES[gpu.schedule].alone:
            return "alone"
        if work.n <= FEW_ROWS:
            return "few"
        return "matrices" if gpu.has_matrices and matrix_knobs(work, gpu) else "tiles"
    return "narrow" if work.columns % 8 else "float"


def at_once(work: Linear) -> int:
    """Groups of columns that a thread reads together, where threads share the columns."""
    return 2 if group_bytes(work.packing) < QUAD_BYTES and work.columns // GROUP % 2 == 0 else 1


def default_knobs(work: Linear, gpu: Gpu) -> LinearKnobs:
    """What the class of GPUs says."""
    schedule = SCHEDULES[gpu.schedule]
    way = way_of(work, gpu)
    if way == "few":
        threads = threads_for(_shared_columns(work, way), min(schedule.threads, gpu.invocations))
        return LinearKnobs(threads, divisor(work.rows, max(1, min(schedule.rows, schedule.sums // work.n))), work.n)
    if way == "tiles":
        return LinearKnobs(128, 64, 32)
    if way == "matrices":
        cuts = matrix_knobs(work, gpu)
        return next((cut for cut in cuts if _workgroups(work, cut) >= _BUSY), cuts[-1])
    if way == "alone":
        tile = divisor(work.n, schedule.tile)
        each = min(schedule.rows, ALONE_SUMS // tile)
        while each > 1 and work.rows * (work.n // tile) < _ENOUGH * each * schedule.threads:
            each //= 2
        return LinearKnobs(schedule.threads, each, tile)
    if way == "float":
        tile = divisor(work.n, FEW_ROWS)
        threads = threads_for(_shared_columns(work, way), min(128, gpu.invocations))
        return LinearKnobs(threads, divisor(work.rows, 4 if tile <= 2 else 2), tile)
    return LinearKnobs(min(64, gpu.invocations), 1, 1)


def _shared_columns(work: Linear, way: str) -> int:
    """Turns that the threads of a workgroup share."""
    return work.columns // 8 if way == "float" else work.columns // GROUP // at_once(work)


def candidates(work: Linear, gpu: Gpu) -> tuple[LinearKnobs, ...]:
    """What tuning tries: the default first, nothing twice."""
    default, way = default_knobs(work, gpu), way_of(work, gpu)
    found: list[LinearKnobs] = []
    if way in ("few", "float"):
        counts = {threads_for(_shared_columns(work, way), min(most, gpu.invocations)) for most in (32, 64, 128, 256)}
        found = [
            LinearKnobs(threads, rows, default.tile)
            for threads in sorted(counts)
            for rows in (1, 2, 4, 8)
            if work.rows % rows == 0 and rows * default.tile <= SUMS
        ]
    elif way == "tiles":
        found = [
            LinearKnobs(threads, rows, tile)
            for threads in (32, 64, 128, 256)
            for rows in (32, 64, 128)
            for tile in (16, 32, 64)
            if threads <= gpu.invocations
            and tile <= work.n
            and 8 * threads <= rows * tile <= SUMS * threads
            and tile_bytes(rows, tile) <= gpu.shared_bytes
        ]
    elif way == "matrices":
        found = matrix_knobs(work, gpu)
    elif way == "alone":
        found = [
            LinearKnobs(threads, rows, tile)
            for threads in ((8, 16) if work.n <= FEW_ROWS else (8,))
            for rows in (1, 2, 4, 8, 16)
            for tile in (1, 8, 16, 32, 64)
            if threads <= gpu.invocations
            and work.n % tile == 0
            and tile >= min(work.n, FEW_ROWS)
            and rows * tile <= ALONE_SUMS
        ]
    return tuple(dict.fromkeys([default, *found]))


def tile_bytes(rows: int, tile: int) -> int:
    """Shared memory of a tile: words, scales, sums of activations and zero points."""
    return 4 * ((rows + tile) * GROUP // 4 + rows + tile + 2 * tile + rows)


# ---- matrix units

_CUTS = ((128, 128, 8), (64, 128, 8), (64, 64, 4), (32, 64, 4), (32, 32, 4), (16, 32, 2))
"""(tile, rows, subgroups) of the matrix units' kernel, the largest first."""
_BUSY = 96
"""Workgroups that keep a large GPU busy."""


def matrix_knobs(work: Linear, gpu: Gpu) -> list[LinearKnobs]:
    """Tiles for the matrix units that fit a layer and the GPU, the largest first."""
    made = []
    for tile, rows, subgroups in _CUTS:
        knobs = LinearKnobs(subgroups * gpu.subgroup, rows, tile)
        least = matrix_bytes(knobs, gpu, 1)
        if knobs.threads <= gpu.invocations and tile <= max(work.n, 16) and least <= gpu.shared_bytes:
            made.append(knobs)
    return made


def _workgroups(work: Linear, knobs: LinearKnobs) -> int:
    return -(-work.rows // knobs.rows) * -(-work.n // knobs.tile)


def matrix_split(knobs: LinearKnobs, gpu: Gpu) -> tuple[int, int]:
    """Into how many parts subgroups cut a tile: rows of the activation, of the weight; as square as can be."""
    subgroups = knobs.threads // gpu.subgroup
    splits = [(1 << i, subgroups >> i) for i in range(subgroups.bit_length()) if (1 << i) <= subgroups]
    fitting = [
        (down, across)
        for down, across in splits
        if knobs.tile % (down * gpu.matrix) == 0 and knobs.rows % (across * gpu.matrix) == 0
    ]
    return min(fitting, key=lambda split: (knobs.tile // split[0] + knobs.rows // split[1], split))


def matrix_stride(groups: int) -> int:
    """Units of 16 bytes from one row to the next in shared memory: one more than it has spreads rows over the banks."""
    return 4 * groups + 1


def matrix_groups(work: Linear, knobs: LinearKnobs, gpu: Gpu) -> int:
    """Groups of columns that are multiplied between two barriers."""
    return 2 if work.columns // GROUP % 2 == 0 and matrix_bytes(knobs, gpu, 2) <= gpu.shared_bytes else 1


def matrix_bytes(knobs: LinearKnobs, gpu: Gpu, groups: int) -> int:
    """Shared memory: both tiles, a matrix of each subgroup on its way to memory, and two scales a row."""
    tiles = 16 * matrix_stride(groups) * (knobs.rows + knobs.tile)
    return tiles + 4 * knobs.threads // gpu.subgroup * gpu.matrix**2 + 8 * knobs.tile


def key_of(work: Linear) -> str:
    """The name that results of a linear layer are filed under."""
    behind = "+".join("bias" if bias else "add" for bias in work.addends)
    return f"linear.{work.packing}:n{work.n}:{work.rows}x{work.columns}:{behind}".rstrip(":")


def chosen_knobs(work: Linear, gpu: Gpu, tuned: Tuned) -> LinearKnobs:
    """What was found for a linear layer, or the default. CodegenError if that is no schedule of it."""
    return chosen(key_of(work), candidates(work, gpu), tuned)


def chosen(key: str, options: Sequence[Knobs], tuned: Tuned) -> Knobs:
    """What was found for a kernel, or the first of its candidates, the default. CodegenError if it is none of them."""
    found = tuned.get(key)
    if found is None:
        return options[0]
    for knobs in options:
        if asdict(knobs) == found:
            return knobs
    raise _foreign(key, found)


def _foreign(key: str, found: object) -> CodegenError:
    return CodegenError(
        f"tuning results: {key}: {found} is no schedule of this kernel; remove the board's file of results and tune "
        "again"
    )


# ---- attention

_PARTS = 256
"""Most parts of contexts, of all rows: each is scratch memory, and work for the kernel that merges them."""


def splits_of(n: int, heads: Heads, schedule: Schedule) -> tuple[int, ...]:
    """Into how many parts a context may be cut, for n rows: the default first."""
    most = KV_BLOCK // RUN if schedule.alone else 32
    found = [1 << i for i in range(most.bit_length()) if (1 << i) * n <= max(_PARTS, n)]
    return tuple(dict.fromkeys([splits_for(n, heads, schedule), *found]))


def attention_key(n: int, heads: Heads) -> str:
    """The name that results of attention are filed under."""
    window = f":window{heads.window}" if heads.window else ""
    return f"attention.{heads.dtype}:n{n}:{heads.query}x{heads.kv}x{heads.dim}{window}"


def chosen_splits(n: int, heads: Heads, schedule: Schedule, tuned: Tuned) -> int:
    """What was found for attention, or the default. CodegenError if that is none of splits_of."""
    found = tuned.get(attention_key(n, heads))
    if found is None:
        return splits_for(n, heads, schedule)
    for splits in splits_of(n, heads, schedule):
        if found == {"splits": splits}:
            return splits
    raise _foreign(attention_key(n, heads), found)
