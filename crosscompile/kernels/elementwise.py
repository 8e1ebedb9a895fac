"""Elementwise operators as S-TIR blocks, which FuseOps and FuseTIR put behind a linear layer."""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.script import tirx as T

from crosscompile.kernels.build import ELEMENTWISE, i64


@cache
def add(n: int, columns: int) -> tirx.PrimFunc:
    """(a (n, columns) f32, b likewise) -> a + b. The residual connection."""
    M, N = i64(n), i64(columns)

    @T.prim_func(s_tir=True)
    def residual_add(
        a: T.Buffer((M, N), "float32"), b: T.Buffer((M, N), "float32"), y: T.Buffer((M, N), "float32")
    ) -> None:
        T.func_attr({"tirx.noalias": True, "op_pattern": ELEMENTWISE})
        for m, j in T.grid(M, N):
            with T.sblock("add"):
                vm, vj = T.axis.remap("SS", [m, j])
                y[vm, vj] = a[vm, vj] + b[vm, vj]

    return residual_add


@cache
def add_bias(n: int, columns: int) -> tirx.PrimFunc:
    """(a (n, columns) f32, bias (columns,) f32) -> a + bias."""
    M, N = i64(n), i64(columns)

    @T.prim_func(s_tir=True)
    def bias_add(a: T.Buffer((M, N), "float32"), b: T.Buffer((N,), "float32"), y: T.Buffer((M, N), "float32")) -> None:
        T.func_attr({"tirx.noalias": True, "op_pattern": ELEMENTWISE})
        for m, j in T.grid(M, N):
            with T.sblock("add"):
                vm, vj = T.axis.remap("SS", [m, j])
                y[vm, vj] = a[vm, vj] + b[vj]

    return bias_add
