"""The linear layer: y[m, row] = Σ over groups of dot(w, a) · scale_w · scale_a, in S-TIR, and its schedule.

The function is plain: a block for the int32 dot of a group and one that accumulates groups. FuseOps and FuseTIR put
epilogues behind it; `schedule` then tiles, tensorizes and vectorizes whatever came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm import s_tir, tirx
from tvm.script import tirx as T

from crosscompile.arithmetic import fma
from crosscompile.kernels.build import OUT_EWISE_FUSABLE, RANGE, i64
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
    chunks, R, chunk = weight_shape(form)
    G, B, N, M, R_ = i64(rows_padded // R), i64(columns // GROUP), i64(rows_padded), i64(n), i64(R)
    C, I = i64(chunks), i64(chunk)
    dtype = weight_dtype(form)
    offset = {"w4": 8, "w8": 128}[form.kind]
    shrink = 1.0 / SIGNED_NIBBLE_SHIFT if form.kind == "w4" and not form.unsigned else 1.0

    if form.unsigned:

        @T.prim_func(s_tir=True)
        def unsigned_linear(
            a: T.Buffer((M, B, i64(GROUP)), "int8"),
            scale_a: T.Buffer((M, B), "float32"),
            sum_a: T.Buffer((M, B), "int32"),
            w: T.Buffer((G, B, C, R_, I), dtype),
            scale_w: T.Buffer((G, B, R_), "float16"),
            y: T.Buffer((M, N), "float32"),
        ) -> None:
            T.func_attr({"tirx.noalias": True, "op_pattern": OUT_EWISE_FUSABLE})
            d = T.sblock_alloc_buffer((M, G, B, R_), "int32")
            for m, g, b, r, c, i in T.grid(M, G, B, R_, C, I):
                with T.sblock("dot"):
                    vm, vg, vb, vr, vc, vi = T.axis.remap("SSSSRR", [m, g, b, r, c, i])
                    with T.init():
                        d[vm, vg, vb, vr] = 0
                    d[vm, vg, vb, vr] = d[vm, vg, vb, vr] + scalar_dot(
                        form, lambda c, i: w[vg, vb, c, vr, i], lambda k: a[vm, vb, k], vc, vi
                    )
            for m, g, r, b in T.grid(M, G, R_, B):
                with T.sblock("sum"):
                    vm, vg, vr, vb = T.axis.remap("SSSR", [m, g, r, b])
                    with T.init():
                        y[vm, vg * R_ + vr] = T.float32(0)
                    y[vm, vg * R_ + vr] = fma(
                        T.Cast("float32", d[vm, vg, vb, vr] - sum_a[vm, vb] * offset),
                        T.Cast("float32", scale_w[vg, vb, vr]) * scale_a[vm, vb],
                        y[vm, vg * R_ + vr],
                    )

        return unsigned_linear

    @T.prim_func(s_tir=True)
    def signed_linear(
        a: T.Buffer((M, B, i64(GROUP)), "int8"),
        scale_a: T.Buffer((M, B), "float32"),
        w: T.Buffer((G, B, C, R_, I), dtype),
        scale_w: T.Buffer((G, B, R_), "float16"),
        y: T.Buffer((M, N), "float32"),
    ) -> None:
        T.func_attr({"tirx.noalias": True, "op_pattern": OUT_EWISE_FUSABLE})
        d = T.sblock_alloc_buffer((M, G, B, R_), "int32")
        for m, g, b, r, c, i in T.grid(M, G, B, R_, C, I):
            with T.sblock("dot"):
                vm, vg, vb, vr, vc, vi = T.axis.remap("SSSSRR", [m, g, b, r, c, i])
                with T.init():
                    d[vm, vg, vb, vr] = 0
                d[vm, vg, vb, vr] = d[vm, vg, vb, vr] + scalar_dot(
                    form, lambda c, i: w[vg, vb, c, vr, i], lambda k: a[vm, vb, k], vc, vi
                )
        for m, g, r, b in T.grid(M, G, R_, B):
            with T.sblock("sum"):
                vm, vg, vr, vb = T.axis.remap("SSSR", [m, g, r, b])
                with T.init():
                    y[vm, vg * R_ + vr] = T.float32(0)
                y[vm, vg * R_ + vr] = fma(
                    T.Cast("float32", d[vm, vg, vb, vr]),
                    T.Cast("float32", scale_w[vg, vb, vr]) * (scale_a[vm, vb] * T.float32(shrink)),
                    y[vm, vg * R_ + vr],
                )

    return signed_linear


@cache
def float_linear(n: int, rows_padded: int, columns: int, packing: str) -> tirx.PrimFunc:
    """(x (n, columns) f32, w (G, columns, R) f32 or f16) -> y (n, rows_padded) f32."""
    form = Packing.parse(packing)
    G, K, N, M, R_ = (i64(v) for v in (rows_padded // form.rows, columns, rows_padded, n, form.rows))
    dtype = "float32" if form.kind == "f32" else "float16"

    @T.prim_func(s_tir=True)
    def plain_linear(
        x: T.Buffer((M, K), "float32"), w: T.Buffer((G, K, R_), dtype), y: T.Buffer((M, N), "float32")
    ) -> None:
        T.func_attr({"tirx.noalias": True, "op_pattern": OUT_EWISE_FUSABLE})
        for m, g, r, k in T.grid(M, G, R_, K):
            with T.sblock("sum"):
                vm, vg, vr, vk = T.axis.remap("SSSR", [m, g, r, k])
                with T.init():
                    y[vm, vg * R_ + vr] = T.float32(0)
                y[vm, vg * R_ + vr] = fma(T.Cast("float32", w[vg, vk, vr]), x[vm, vk], y[vm, vg * R_ + vr])

    return plain_linear


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
        row, c, i = sch.get_loops(dot)[-3:]
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
