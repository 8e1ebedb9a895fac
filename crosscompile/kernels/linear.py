"""The linear layer: y[m, row] = Σ over groups of dot(w, a) · scale_w · scale_a, in S-TIR, and its schedule.

The function is plain: a block for the int32 dot of a group and one that accumulates groups; on some tiers one with what
dots start at, too (kernels/dot.py, BIASES). FuseOps and FuseTIR put epilogues behind it; `schedule` then tiles,
tensorizes and vectorizes whatever came out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import s_tir, tirx

from crosscompile.arithmetic import constant, fma
from crosscompile.kernels.build import OUT_EWISE_FUSABLE, RANGE, Builder, cast, divisor, kernel, kernel_maker
from crosscompile.kernels.dot import (
    BIASES,
    bias,
    group_sum,
    reads_bias,
    register_dot,
    scalar_dot,
    start_value,
    to_float,
)
from crosscompile.kernels.tile import of_scale, weight_shape, zero_point
from crosscompile.packing import GROUP, KINDS, Packing
from crosscompile.target import Tier

_OWN = ("starts", "dot", "sum")
"""The blocks of a linear layer; others are fused behind it."""

KIND = re.compile(rf"linear_({'|'.join(sorted((*KINDS, 'f16', 'f32'), key=len, reverse=True))})")
"""The kind of weights in the name of a linear layer's kernel, which numbers may follow."""

TEMPLATE_REVISION = 3
"""Raised with every change to the template that makes earlier tuning results worth nothing."""


@dataclass(frozen=True)
class LinearKnobs:
    """What tuning may search. Packing is not among them: it is fixed per tier.

    tokens   rows of the activation computed together, from registers
    groups   row groups of the weight computed together
    block    such tiles of row groups that a tile of tokens passes before the next one does: their weights should fit
             the first cache, and then activations are read that much less often
    parts    of a row group, which are computed one after another: of fewer rows, more tokens fit the registers
    ahead    how many column groups ahead weights are prefetched, into the last cache: the processor's own prefetching
             stops at the end of a 4 KB page, which is soon at this rate, and the first cache is too small for all that
             must be on its way. NEXT: as many as a tile's row groups have, so that the next tile's weights are there
             when the last tokens are done with these
    """

    NEXT: ClassVar[int] = -1

    tokens: int = 4
    groups: int = 1
    ahead: int = 0
    block: int = 1
    parts: int = 1


@kernel_maker
def quantized_linear(n: int, rows_padded: int, columns: int, tier: Tier, packing: str) -> tirx.PrimFunc:
    """(a (n, B, 32) int8 or int16, scale_a (n, B) f32, [sum_a (n, B) i32,] w, scale_w[, high_w | zero_w]) ->
    y (n, rows_padded) f32.

    The rows are quantized in the form that the weights ask for (kernels/rows.py, Form).
    """
    form = Packing.parse(packing)
    chunks, rows, chunk = weight_shape(form)
    groups, blocks = rows_padded // rows, columns // GROUP

    def body(k: Builder) -> None:
        sums, _, dtype = tier.activations(packing)
        a = k.buffer("a", (n, blocks, GROUP), dtype)
        scale_a = k.buffer("scale_a", (n, blocks), "float32")
        sum_a: Any = k.buffer("sum_a", (n, blocks), "int32") if sums else None
        w = k.buffer("w", (groups, blocks, chunks, rows, chunk), form.dtype)
        stored = form.stored(rows_padded, columns)
        scale_w = k.buffer("scale_w", stored[".scale"][0], "float16")
        high_w: Any = k.buffer("high_w", stored[".high"][0], "uint8") if form.about.high_bits else None
        zero_w: Any = k.buffer("zero_w", stored[".zero"][0], "int32") if form.about.zero else None
        y = k.buffer("y", (n, rows_padded), "float32")
        d = k.intermediate((n, groups, blocks, rows), "int32")
        table = reads_bias(tier, form, n)
        if table:
            starts = k.intermediate(BIASES, "int32")
            with k.block("starts", "SSS", BIASES) as place:
                k.store(starts, bias(tier), *place)

        with k.block("dot", "SSSSRR", (n, groups, blocks, rows, chunks, chunk)) as (m, g, b, r, c, i):
            if table:
                turns, tokens, lanes = BIASES
                first = starts[b % turns, m % tokens, r % lanes]
            else:
                first = start_value(tier, form, sum_a[m, b] if form.unsigned else None)
            k.start(d, first, m, g, b, r)
            place = ((c if chunks > 1 else 0) * rows + r) * chunk + i
            products = scalar_dot(
                form,
                lambda c, i: w[g, b, c, r, i],
                lambda column: a[m, b, column],
                c,
                i,
                lambda at: high_w[g, b, at],
                place,
            )
            k.store(d, d[m, g, b, r] + products, m, g, b, r)

        with k.block("sum", "SSSR", (n, groups, rows, blocks)) as (m, g, r, b):
            row = g * rows + r
            k.start(y, constant(0.0, 1), m, row)
            scale = cast("float32", scale_w[g, of_scale(form, b), r]) * scale_a[m, b]
            total = d[m, g, b, r]
            if zero_w is not None:
                word = sum_a[m, b] if sums else sum((a[m, b, i] for i in range(GROUP)), tirx.const(0, "int32")) * -8
                total = total + zero_point(form, zero_w, g, b, r) * group_sum(tier, form, word)
            k.store(y, fma(to_float(tier, total), scale, y[m, row]), m, row)

    return kernel(f"linear_{form.kind}", body, OUT_EWISE_FUSABLE)


@kernel_maker
def float_linear(n: int, rows_padded: int, columns: int, packing: str) -> tirx.PrimFunc:
    """(x (n, columns) f32, w (G, columns, R) f32 or f16) -> y (n, rows_padded) f32."""
    form = Packing.parse(packing)
    groups = rows_padded // form.rows

    def body(k: Builder) -> None:
        x = k.buffer("x", (n, columns), "float32")
        w = k.buffer("w", (groups, columns, form.rows), "float32" if form.kind == "f32" else "float16")
        y = k.buffer("y", (n, rows_padded), "float32")
        with k.block("sum", "SSSR", (n, groups, form.rows, columns)) as (m, g, r, c):
            row = g * form.rows + r
            k.start(y, constant(0.0, 1), m, row)
            k.store(y, fma(cast("float32", w[g, c, r]), x[m, c], y[m, row]), m, row)

    return kernel(f"linear_{form.kind}", body, OUT_EWISE_FUSABLE)


def schedule(function: tirx.PrimFunc, tier: Tier, packing: str, knobs: LinearKnobs | None = None) -> tirx.PrimFunc:
    """Schedules a linear layer with whatever elementwise epilogue FuseTIR put behind it.

    Loops become: tile of row groups (the range that threads share), tile of tokens, part of a row group, group of
    columns, and inside the tile, unrolled: token, row group, row lane.
    """
    sch = s_tir.Schedule(function)
    total = sch.get_sblock("sum")
    quantized = Packing.parse(packing).quantized
    dot = sch.get_sblock("dot") if quantized else None
    names = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    epilogues = [sch.get_sblock(name) for name in names if name not in _OWN]
    for block in epilogues[:-1]:
        sch.compute_inline(block)
    last = epilogues[-1] if epilogues else sch.cache_write(total, 0, "global")

    m, g, r, b = sch.get_loops(total)
    n, n_groups, rows = (int(sch.get(loop).extent) for loop in (m, g, r))
    knobs = knobs or default_knobs(tier, packing, n)
    knobs = effective(knobs, tier, packing, n, n_groups)
    tokens, groups = knobs.tokens, knobs.groups
    m_outer, m_inner = sch.split(m, [None, tokens])
    g_outer, g_block, g_inner = sch.split(g, [None, knobs.block, groups])
    part, r = sch.split(r, [knobs.parts, None])
    sch.reorder(g_outer, m_outer, g_block, part, b, m_inner, g_inner, r)
    sch.annotate(g_outer, RANGE, 1)

    m_last, column = sch.get_loops(last)[-2:]
    g_last, c_last, r_last = sch.split(column, [None, groups, rows])
    sch.reorder(g_last, m_last, c_last, r_last)
    sch.reverse_compute_at(last, g_block, preserve_unit_loops=True)
    _, _, *tile_loops, r_copy = sch.get_loops(last)
    for loop in tile_loops:
        sch.unroll(loop)
    sch.vectorize(r_copy)

    if dot is not None:
        sch.compute_at(dot, b, preserve_unit_loops=True)
        if "starts" in names:
            starts = sch.get_sblock("starts")
            sch.compute_at(starts, g_outer)
            sch.vectorize(sch.fuse(*sch.get_loops(starts)[1:]))
        tile, g_tile, unit, *_ = sch.get_loops(dot)[-6:]
        sch.reorder(unit, tile, g_tile)
        ahead = groups * int(sch.get(b).extent) if knobs.ahead == LinearKnobs.NEXT else knobs.ahead
        sch.tensorize(tile, register_dot(tier.name, packing, tokens, groups, ahead, knobs.parts, "starts" in names))
    sch.unroll(m_inner)
    sch.unroll(g_inner)
    sch.vectorize(r)
    start = sch.decompose_reduction(total, b)
    *_, m_start, g_start, r_start = sch.get_loops(start)
    sch.unroll(m_start)
    sch.unroll(g_start)
    sch.vectorize(r_start)
    return sch.mod["main"]


_TILES = {
    ("avx512-vnni", "w4"): (8, 1),
    ("avx512-vnni", "w8"): (8, 1),
    ("avx-vnni", "w4"): (2, 2),
    ("avx-vnni", "w8"): (2, 2),
    ("armv8-neon", "w8"): (2, 1),
    ("armv7-neon", "w4"): (2, 1),
    ("armv7-neon", "w8"): (2, 1),
    ("dotprod", "w3"): (2, 1),
    ("i8mm", "u4"): (2, 1),
    ("i8mm", "w3"): (2, 1),
    ("i8mm", "w2"): (2, 1),
    ("avx2", "n4"): (2, 1),
    ("avx2", "u4"): (2, 1),
    ("avx2", "w3"): (1, 1),
    ("avx2", "w2"): (2, 1),
    ("avx-vnni", "u4"): (4, 1),
    ("avx-vnni", "w3"): (1, 1),
    ("armv7-neon", "u4"): (1, 1),
    ("armv7-neon", "w3"): (1, 1),
    ("armv7-neon", "u8"): (1, 1),
    ("avx-vnni", "u8"): (2, 1),
    ("avx512-vnni", "u8"): (4, 1),
}
"""Tokens and row groups of a tile that fit the registers, where it is neither four and one nor what the kind has that a
kind is like: `python -m tests.campaigns.inner_loops` shows it. Without broadcasts from memory inside an instruction
(avx-vnni), two row groups that share them beat four tokens that share unpacked weights."""


def _parts(tier: Tier, form: Packing) -> tuple[int, ...]:
    """Into how many parts a row group can be cut: with whole vectors of rows, and bits of their own."""
    return (1, 2) if tier.name in ("dotprod", "i8mm") and form.quantized and not form.about.high_bits else (1,)


def default_knobs(tier: Tier, packing: str, n: int) -> LinearKnobs:
    """The tile for n rows where nothing was tuned."""
    near, far = (LinearKnobs.NEXT, 256) if tier.arch == "x86_64" else (0, 0)
    if n == 1:
        return LinearKnobs(tokens=1, ahead=far)
    form = Packing.parse(packing)
    like, base = (form.about.like, form.about.base) if form.quantized else (form.kind, form.kind)
    if tier.name == "dotprod" and n % 8 == 0 and 2 in _parts(tier, form):
        return LinearKnobs(8, 1, near, parts=2)
    tokens, groups = _TILES.get((tier.name, base), _TILES.get((tier.name, like), (4, 1)))
    return LinearKnobs(min(n, tokens), groups, near)


@dataclass(frozen=True)
class Workload:
    """A linear layer as tuning names it: rows, padded rows and columns of the weight, packing, what is fused behind.

    key: the name results are filed under.
    """

    n: int
    rows_padded: int
    columns: int
    packing: str
    epilogues: tuple[str, ...]

    @property
    def key(self) -> str:
        return ":".join(
            [f"linear.{self.packing}", f"n{self.n}", f"{self.rows_padded}x{self.columns}", "+".join(self.epilogues)]
        ).rstrip(":")


def workload(function: tirx.PrimFunc, packing: str) -> Workload:
    """The workload of a linear layer that is not scheduled yet, with whatever FuseTIR put behind it."""
    sch = s_tir.Schedule(function)
    m, g, r, b = (int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock("sum")))
    names = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    columns = b * GROUP if Packing.parse(packing).quantized else b
    return Workload(m, g * r, columns, packing, tuple(name for name in names if name not in _OWN))


_SEARCHED_TOKENS, _SEARCHED_GROUPS, _SEARCHED_AHEAD = (1, 2, 4, 8, 16), (1, 2, 4), (0, 16, 64, 256)
_SEARCHED_BLOCK = (1, 2, 4, 8, 16)
_STACK_BYTES = 1023
"""Most bytes of a tile's sums: TVM asks a runtime, which boards do not have, for buffers that are larger."""


def candidates(tier: Tier, packing: str, n: int, n_groups: int) -> tuple[LinearKnobs, ...]:
    """What tuning tries for n rows and n_groups row groups: the default first, nothing twice."""
    form = Packing.parse(packing)
    quantized, most = form.quantized, min(16, _STACK_BYTES // (4 * form.rows))
    searched = [
        LinearKnobs(tokens, groups, ahead, block, parts)
        for tokens in _SEARCHED_TOKENS
        for groups in _SEARCHED_GROUPS
        for parts in (_parts(tier, form) if tokens >= 8 and groups == 1 else (1,))
        for ahead in (_SEARCHED_AHEAD if n == 1 and quantized else (default_knobs(tier, packing, n).ahead,))
        for block in (_SEARCHED_BLOCK if n > tokens else (1,))
        if n % tokens == 0 and n_groups % (groups * block) == 0 and tokens * groups <= most and groups * block <= 16
    ]
    return tuple(dict.fromkeys([effective(default_knobs(tier, packing, n), tier, packing, n, n_groups), *searched]))


def effective(knobs: LinearKnobs, tier: Tier, packing: str, n: int, n_groups: int) -> LinearKnobs:
    """The knobs as `schedule` applies them: tiles leave no remainder, not of a table of biases either."""
    form = Packing.parse(packing)
    groups = divisor(n_groups, knobs.groups)
    block = divisor(n_groups // groups, knobs.block)
    tokens = divisor(math.gcd(n, BIASES[1]) if reads_bias(tier, form, n) else n, knobs.tokens)
    return LinearKnobs(tokens, groups, knobs.ahead, block, min(knobs.parts, max(_parts(tier, form))))


Tuned = Mapping[str, Mapping[str, int]]
"""Knobs by workload key, as they are filed."""


def tuned_knobs(work: Workload, tuned: Tuned) -> LinearKnobs | None:
    """What was found for a workload; None where nothing was."""
    found: Any = tuned.get(work.key)
    return LinearKnobs(**found) if found else None
