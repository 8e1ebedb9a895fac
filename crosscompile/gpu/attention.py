"""Attention on a GPU in two kernels: parts of the context by workgroups of their own, then all parts of a row together.

The first one is by tiles of queries, on matrix units where a GPU has them (attention_matrix.py), else by threads that
share what they read (attention_tiles.py); for a single row by its heads (attention_rows.py), and where threads share
nothing by threads (attention_alone.py). A single row's is one kernel where a GPU binds enough buffers
(attention_whole.py).
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.gpu.attention_alone import merge_alone, parts_alone, splits_alone
from crosscompile.gpu.attention_cuts import FEW, MatrixTile
from crosscompile.gpu.attention_matrix import matrix_kernel
from crosscompile.gpu.attention_merge import merge_rows
from crosscompile.gpu.attention_rows import heads_at_once, rows_kernel
from crosscompile.gpu.attention_tiles import Tile, tiles_kernel
from crosscompile.gpu.build import f32
from crosscompile.gpu.schedules import SCHEDULES, Schedule
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import kernel, kernel_maker
from crosscompile.kernels.kv_cache import Cache as DeclaredCache
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

PARTS = 256
"""Most of a query head, of all rows together: they pass through memory."""


def supports(heads: Heads) -> bool:
    """Whether these kernels can. A tile's threads share a block's values evenly (attention_tiles.py)."""
    return heads.dim <= 256 and heads.dim % (16 if heads.dim <= 128 else GROUP) == 0


def splits_for(n: int, heads: Heads, schedule: Schedule) -> int:
    """Parts that a context is cut into, for n rows."""
    if schedule.alone:
        return splits_alone(n, heads, schedule)
    groups = (
        heads.query // heads_at_once(n, heads, schedule) if n == 1 else Tile.choose(n, heads, schedule).groups(n, heads)
    )
    return max(1, min(schedule.splits, schedule.workgroups // groups, PARTS // n))


@kernel_maker
def attention_parts(n: int, heads: Heads, splits: int) -> tirx.PrimFunc:
    """What attention's first kernel takes and gives, for planning; only GPUs have it.

    (q, positions, slots, block_table, k, v) -> parts (n, Hq, splits, dim + 2) f32: sums of values, not yet divided, the
    largest score, and the sum of exponentials. Part s has the blocks whose number leaves s when divided by splits; what
    a row sees no block of may be left unwritten.
    """

    def body(k: Declaration) -> None:
        k.buffer("q", (n, heads.query * heads.dim), "float32")
        DeclaredCache.parameters(k, n, heads)
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        with k.shared(1) as unit:
            k.store(parts, f32(0.0), unit, 0, 0, 0)

    return kernel("attention_parts", body)


@kernel_maker
def attention_merge(n: int, heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """The second one: (parts, positions) -> o (n, Hq · dim) f32, or quantized as `form` says. A row -1 gives zeros."""
    columns = heads.query * heads.dim

    def body(k: Declaration) -> None:
        k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        k.buffer("positions", (n,), "int32")
        declared = [("o", (n, columns), "float32")] if form is None else form.outputs(n, columns)
        out: list[Any] = [k.buffer(*each) for each in declared]
        with k.shared(1) as unit:
            zero = f32(0.0) if form is None else tirx.const(0, form.dtype)
            k.store(out[0], zero, unit, *([0] * (len(out[0].shape) - 1)))

    return kernel("attention_merge", body)


def parts_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int) -> tirx.PrimFunc:
    """The GPU's attention_parts."""
    schedule = SCHEDULES[gpu.schedule]
    if schedule.alone:
        return parts_alone(name, gpu, n, heads, splits)
    if n == 1:
        return rows_kernel(name, gpu, n, heads, splits)
    if n > FEW and (matrix := MatrixTile.choose(n, heads, gpu)):
        return matrix_kernel(name, gpu, n, heads, splits, matrix)
    return tiles_kernel(name, gpu, n, heads, splits, Tile.choose(n, heads, schedule))


def merge_kernel(name: str, gpu: Gpu, n: int, heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """The GPU's attention_merge."""
    if SCHEDULES[gpu.schedule].alone:
        return merge_alone(name, gpu, n, heads, splits, form)
    return merge_rows(name, gpu, n, heads, splits, form)
