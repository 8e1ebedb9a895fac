"""Attention of one row in one kernel: of the workgroups that have a part of a context, the last to finish merges all.

None waits for another. Each counts itself when its part is written, and the one that finds itself to be the last reads
what the others wrote. How many there are follows from the row's position: a workgroup without a block ends at once, and
does not count. The counters are zero when the kernel begins, for what appends to the cache clears them (`clear`), and
again when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.attention_merge import Merge, write_groups
from crosscompile.gpu.attention_rows import THREADS, Layer, Room, Row, attend_row, heads_at_once
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, quotient, remainder
from crosscompile.gpu.cache import Cache
from crosscompile.gpu.rows import Output
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import kernel, kernel_maker
from crosscompile.kernels.kv_cache import Cache as DeclaredCache
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

BUFFERS = 10
"""Of the kernel, where its result is quantized: more than every GPU binds."""


def in_one(n: int, heads: Heads, gpu: Gpu) -> bool:
    """Whether n rows' attention is one kernel, where it is any of these: heads are whole groups, to be quantized."""
    return n == 1 and heads.dim % GROUP == 0 and not SCHEDULES[gpu.schedule].alone and gpu.buffers >= BUFFERS


def counters(heads: Heads) -> int:
    """Elements of `turns`: one for each workgroup that has a part, and there are no more than heads."""
    return heads.query


def clear(k: Builder, turns: Any, workgroup: Expr, thread: Expr) -> None:
    """Sets the counters to zero, by the first workgroup of a kernel that runs before attention."""
    with k.when(tirx.EQ(workgroup, i32(0))), k.strided(thread, int(turns.shape[0])) as i:
        k.store(turns, i32(0), i)


@kernel_maker
def clear_turns(heads: Heads) -> tirx.PrimFunc:
    """A kernel that does nothing else, () -> turns: where attention is measured by itself."""

    def body(k: Declaration) -> None:
        turns = k.buffer("turns", (counters(heads),), "int32")
        with k.shared(1) as unit:
            k.store(turns, i32(0), unit)

    return kernel("clear_turns", body)


def clearing_kernel(name: str, gpu: Gpu, heads: Heads) -> tirx.PrimFunc:
    """The GPU's clear_turns."""

    def body(k: Builder) -> None:
        turns = k.buffer("turns", (counters(heads),), "int32")
        with k.launch((1,), min(64, gpu.invocations)) as (workgroup, thread):
            clear(k, turns, workgroup, thread)

    return gpu_kernel(name, gpu, body)


@kernel_maker
def attention_row(heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """What the kernel takes and gives, for planning; only GPUs have it.

    (query, positions, slots, block_table, k, v, turns) -> turns, in place, parts as attention_parts has them, and the
    row, f32 or quantized as `form` says. A row −1 gives zeros.
    """
    columns = heads.query * heads.dim

    def body(k: Declaration) -> None:
        k.buffer("query", (1, columns), "float32")
        DeclaredCache.parameters(k, 1, heads)
        k.buffer("turns", (counters(heads),), "int32")
        parts = k.buffer("parts", (1, heads.query, splits, heads.dim + 2), "float32")
        for each in [("o", (1, columns), "float32")] if form is None else form.outputs(1, columns):
            k.buffer(*each)
        with k.shared(1) as unit:
            k.store(parts, f32(0.0), unit, 0, 0, 0)

    return kernel("attention_row", body)


def whole_kernel(name: str, gpu: Gpu, heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """The GPU's attention_row."""
    threads, dim = min(THREADS, gpu.invocations), heads.dim
    count = heads_at_once(1, heads, SCHEDULES[gpu.schedule], threads)

    def body(k: Builder) -> None:
        query = k.buffer("query", (1, heads.query * dim), "float32")
        cached = Cache.parameters(k, 1, heads)
        turns = k.exchange("turns", (counters(heads),), "int32")
        parts = k.exchange("parts", (1, heads.query, splits, dim + 2), "float32")
        out = Output(k, 1, heads.query * dim, form)
        layer, m = Layer(heads, splits, query, cached, parts), i32(0)
        room = Room.allocate(k, count, dim, threads)
        with k.launch((heads.query // count, splits), threads) as (group, split, thread):
            head = k.bind(group * count)
            row = Row.read(k, layer, m, head, count, split, thread)
            with k.when(row.blocks > i32(0)):
                attend_row(k, layer, room, row, m, head, count, split, thread, k.schedule.loads)
                merge = Merge.of(k, parts, heads, splits, row.position)
                with _if_last(k, turns, room.weights, group, merge.count, thread):
                    with k.strided(thread, count * dim) as at:
                        own, d = quotient(at, dim), remainder(at, dim)
                        k.store(room.query, merge.value(k, m, k.bind(head + own), k.bind(d)), at)
                    k.barrier()
                    write_groups(k, out, room.query, m, head, count, dim, thread)
                    with k.when(tirx.EQ(thread, i32(0))):
                        k.store(turns, i32(0), group)
            groups = dim // GROUP
            nobody = tirx.And(row.position < i32(0), tirx.EQ(split, i32(0)))
            with k.when(tirx.And(nobody, thread < i32(count * groups))):
                out.write(m, k.bind(head * groups + thread), [f32(0.0)] * GROUP)

    return gpu_kernel(name, gpu, body)


@contextmanager
def _if_last(k: Builder, turns: Any, told: Any, group: Expr, count: Expr, thread: Expr) -> Iterator[None]:
    """What only the last of `count` workgroups to come here does: it sees what the others wrote before.

    told: shared memory, by which the thread that counts tells the others.
    """
    k.fence()
    k.barrier()
    with k.when(tirx.EQ(thread, i32(0))):
        before = k.add_at(turns, i32(1), group)
        k.store(told, tirx.Select(tirx.EQ(before, count - 1), f32(1.0), f32(0.0)), 0)
    k.barrier()
    with k.when(told[0] > f32(0.5)):
        k.fence()
        yield
