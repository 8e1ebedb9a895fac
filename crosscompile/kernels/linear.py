"""The linear layer: y[m, row] = Σ over groups of dot(w, a) · scale_w · scale_a, in S-TIR, and its schedule.

The function is plain: a block for the int32 dot of a group and one that accumulates groups. FuseOps and FuseTIR put
epilogues behind it; `schedule` then tiles, tensorizes and vectorizes whatever came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm import s_tir, tirx

from crosscompile.arithmetic import constant, fma
from crosscompile.kernels.build import OUT_EWISE_FUSABLE, RANGE, Builder, cast, kernel
from crosscompile.kernels.dot import SIGNED_NIBBLE_SHIFT, register_dot, scalar_dot, weight_dtype, weight_shape
from crosscompile.packing import GROUP, Packing
from crosscompile.target import Tier


@dataclass(frozen=True)
class LinearKnobs:
    """What tuning may search. Packing is not among them: it is fixed per tier.

    token_tile   rows of the activation computed together, from registers
    """

    token_tile: int = 4


@cache
def quantized_linear(n: int, rows_padded: int, columns: int, packing: str) -> tirx.PrimFunc:
    """(a (n, B, 32) int8, scale_a (n, B) f32, [sum_a (n, B) i32,] w, scale_w) -> y (n, rows_padded) f32.

    sum_a, the sum of each group of a, is there for packings with an offset only.
    """
    form = Packing.parse(packing)
    chunks, rows, chunk = weight_shape(form)
    groups, blocks = rows_padded // rows, columns // GROUP
    offset = {"w4": 8, "w8": 128}[form.kind] if form.unsigned else 0
    shrink = 1.0 / SIGNED_NIBBLE_SHIFT if form.kind == "w4" and not form.unsigned else 1.0

    def body(k: Builder) -> None:
        a = k.buffer("a", (n, blocks, GROUP), "int8")
        scale_a = k.buffer("scale_a", (n, blocks), "float32")
        sum_a = k.buffer("sum_a", (n, blocks), "int32") if form.unsigned else None
        w = k.buffer("w", (groups, blocks, chunks, rows, chunk), weight_dtype(form))
        scale_w = k.buffer("scale_w", (groups, blocks, rows), "float16")
        y = k.buffer("y", (n, rows_padded), "float32")
        d = k.intermediate((n, groups, blocks, rows), "int32")

        with k.block("dot", "SSSSRR", (n, groups, blocks, rows, chunks, chunk)) as (m, g, b, r, c, i):
            k.start(d, tirx.const(0, "int32"), m, g, b, r)
            products = scalar_dot(form, lambda c, i: w[g, b, c, r, i], lambda column: a[m, b, column], c, i)
            k.store(d, d[m, g, b, r] + products, m, g, b, r)

        with k.block("sum", "SSSR", (n, groups, rows, blocks)) as (m, g, r, b):
            row = g * rows + r
            dot = d[m, g, b, r]
            if sum_a is not None:
                dot = dot - sum_a[m, b] * offset
            scale = scale_a[m, b] if shrink == 1.0 else scale_a[m, b] * constant(shrink, 1)
            k.start(y, constant(0.0, 1), m, row)
            scale = cast("float32", scale_w[g, b, r]) * scale
            k.store(y, fma(cast("float32", dot), scale, y[m, row]), m, row)

    return kernel(f"linear_{form.kind}", body, OUT_EWISE_FUSABLE)


@cache
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

    Loops become: row group (the range that threads share), token tile, column group, token of the tile, row lane.
    """
    knobs = knobs or LinearKnobs()
    sch = s_tir.Schedule(function)
    total = sch.get_sblock("sum")
    quantized = Packing.parse(packing).kind in ("w4", "w8")
    dot = sch.get_sblock("dot") if quantized else None
    names = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    epilogues = [sch.get_sblock(name) for name in names if name not in ("dot", "sum")]
    for block in epilogues[:-1]:
        sch.compute_inline(block)
    last = epilogues[-1] if epilogues else sch.cache_write(total, 0, "global")

    m, g, r, b = sch.get_loops(total)
    n = int(sch.get(m).extent)
    tile = min(n, knobs.token_tile)
    while n % tile:
        tile -= 1
    m_outer, m_inner = sch.split(m, [None, tile])
    sch.reorder(g, m_outer, b, m_inner, r)
    sch.annotate(g, RANGE, 1)

    m_last, column = sch.get_loops(last)[-2:]
    rows = int(sch.get(r).extent)
    g_last, r_last = sch.split(column, [None, rows])
    sch.reorder(g_last, m_last, r_last)
    sch.reverse_compute_at(last, m_outer, preserve_unit_loops=True)
    m_copy, r_copy = sch.get_loops(last)[-2:]
    sch.unroll(m_copy)
    sch.vectorize(r_copy)

    if dot is not None:
        sch.compute_at(dot, m_inner, preserve_unit_loops=True)
        row = sch.get_loops(dot)[-3]
        start = sch.decompose_reduction(dot, row)
        sch.vectorize(sch.get_loops(start)[-1])
        sch.tensorize(row, register_dot(tier.name, packing))
    sch.unroll(m_inner)
    sch.vectorize(r)
    start = sch.decompose_reduction(total, b)
    *_, m_start, r_start = sch.get_loops(start)
    sch.unroll(m_start)
    sch.vectorize(r_start)
    return sch.mod["main"]
