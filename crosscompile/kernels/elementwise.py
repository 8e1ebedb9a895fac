"""Elementwise operators as S-TIR blocks, which FuseOps and FuseTIR put behind a linear layer."""

from __future__ import annotations

from tvm import tirx

from crosscompile.kernels.build import ELEMENTWISE, Builder, kernel, kernel_maker


@kernel_maker
def add(n: int, columns: int) -> tirx.PrimFunc:
    """(a (n, columns) f32, b likewise) -> a + b. The residual connection."""

    def body(k: Builder) -> None:
        a, b, y = (k.buffer(name, (n, columns), "float32") for name in "aby")
        with k.block("add", "SS", (n, columns)) as (m, j):
            k.store(y, a[m, j] + b[m, j], m, j)

    return kernel("residual_add", body, ELEMENTWISE)


@kernel_maker
def add_bias(n: int, columns: int) -> tirx.PrimFunc:
    """(a (n, columns) f32, bias (columns,) f32) -> a + bias."""

    def body(k: Builder) -> None:
        a = k.buffer("a", (n, columns), "float32")
        bias = k.buffer("bias", (columns,), "float32")
        y = k.buffer("y", (n, columns), "float32")
        with k.block("add", "SS", (n, columns)) as (m, j):
            k.store(y, a[m, j] + bias[j], m, j)

    return kernel("bias_add", body, ELEMENTWISE)
