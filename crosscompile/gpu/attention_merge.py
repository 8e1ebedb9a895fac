"""All parts of a row's attention together: what is read of them, and the kernel where that is one of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, fma
from crosscompile.gpu.attention_rows import LOWEST, block_of, oldest_of
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, remainder
from crosscompile.gpu.rows import Output
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

AT_ONCE = 4
"""Parts that are read and added without asking whether there are as many."""


@dataclass(frozen=True)
class Merge:
    """What merges (n, Hq, splits, dim + 2) parts, a dimension at a time.

    splits   that contexts are cut into; room: for a number each of their largest scores, sums and values
    count    parts with a block that the row sees, 0 for a row −1, and the first of them
    """

    parts: Any
    heads: Heads
    splits: int
    room: tuple[Any, Any, Any, Any]
    count: Expr
    first: Expr

    @classmethod
    def of(cls, k: Builder, parts: Any, heads: Heads, splits: int, position: Expr) -> Merge:
        """For a row at a position."""
        first = k.bind(block_of(oldest_of(position, heads)))
        seen = tirx.Min(block_of(position) - first + 1, i32(splits))
        count = k.bind(tirx.Select(position >= i32(0), seen, i32(0)))
        room = k.local(splits), k.local(splits), k.local(splits), k.local(2)
        return cls(parts, heads, splits, room, count, k.bind(remainder(first, splits)))

    def value(self, k: Builder, m: Expr, head: Expr, d: Expr) -> Expr:
        """Dimension d of a head's result. What is read of all parts is asked for together."""
        most, sums, values, total = self.room
        dim, splits = self.heads.dim, self.splits

        def in_runs(use: Callable[[range], None]) -> None:
            """use(turns) for all that may have a part, AT_ONCE at a time."""
            for begin in range(0, splits, AT_ONCE):
                turns = range(begin, min(begin + AT_ONCE, splits))
                if begin == 0:
                    use(turns)
                    continue
                with k.when(self.count > i32(begin)):
                    use(turns)

        def load(turns: range) -> None:
            for turn in turns:
                known = tirx.Max(tirx.Min(i32(turn), self.count - 1), i32(0))
                part = k.bind(remainder(self.first + known, splits) if splits > 1 else known)
                k.store(most, self.parts[m, head, part, dim], turn)
                k.store(sums, self.parts[m, head, part, dim + 1], turn)
                k.store(values, self.parts[m, head, part, d], turn)

        def find_largest(turns: range) -> None:
            for turn in turns:
                k.store(total, tirx.Select(self.count > i32(turn), tirx.Max(total[0], most[turn]), total[0]), 0)

        def add(turns: range) -> None:
            for turn in turns:
                factor = k.bind(tirx.Select(self.count > i32(turn), tirx.exp(most[turn] - largest), f32(0.0)))
                k.store(total, fma(values[turn], factor, total[0]), 0)
                k.store(total, fma(sums[turn], factor, total[1]), 1)

        in_runs(load)
        k.store(total, f32(LOWEST), 0)
        in_runs(find_largest)
        largest = k.bind(total[0])
        for i in range(2):
            k.store(total, f32(0.0), i)
        in_runs(add)
        return k.bind(tirx.Select(self.count > i32(0), total[0] / tirx.Max(total[1], f32(1e-38)), f32(0.0)))


def write_groups(k: Builder, out: Output, merged: Any, m: Expr, head: Expr, count: int, dim: int, thread: Expr) -> None:
    """A thread for each group of 32 dimensions of the heads head to head + count − 1 that `merged` holds."""
    groups = dim // GROUP
    with k.when(thread < i32(count * groups)):
        values = [k.bind(merged[thread * GROUP + i]) for i in range(GROUP)]
        out.write(m, k.bind(head * groups + thread), values)


def merge_rows(name: str, gpu: Gpu, n: int, heads: Heads, splits: int, form: Form | None) -> tirx.PrimFunc:
    """crosscompile.gpu.attention.attention_merge, a workgroup for each row and head, a thread for each dimension.

    Heads that are no whole groups of 32 dimensions are not quantized here.
    """
    whole = heads.dim % GROUP == 0
    assert whole or form is None

    def body(k: Builder) -> None:
        parts = k.buffer("parts", (n, heads.query, splits, heads.dim + 2), "float32")
        positions = k.buffer("positions", (n,), "int32")
        if not whole:
            y = k.buffer("y", (n, heads.query * heads.dim), "float32")
            with k.launch((heads.query, n), min(heads.dim, gpu.invocations)) as (head, m, thread):
                merge = Merge.of(k, parts, heads, splits, k.bind(positions[m]))
                with k.strided(thread, heads.dim) as d:
                    k.store(y, merge.value(k, m, head, d), m, head * heads.dim + d)
            return
        out = Output(k, n, heads.query * heads.dim, form)
        merged = k.shared(heads.dim)
        with k.launch((heads.query, n), min(heads.dim, gpu.invocations)) as (head, m, thread):
            merge = Merge.of(k, parts, heads, splits, k.bind(positions[m]))
            with k.strided(thread, heads.dim) as d:
                k.store(merged, merge.value(k, m, head, d), d)
            k.barrier()
            write_groups(k, out, merged, m, head, 1, heads.dim, thread)

    return gpu_kernel(name, gpu, body)
