"""A linear layer of few columns, whatever their number, with weights in floats: Mamba's and RWKV's ranks."""

from __future__ import annotations

from tvm import tirx

from crosscompile.arithmetic import fma
from crosscompile.gpu.build import Builder, f32, i32
from crosscompile.gpu.knobs import LinearKnobs
from crosscompile.gpu.linear import Linear, Output
from crosscompile.packing import Packing


def float_narrow(k: Builder, work: Linear, knobs: LinearKnobs) -> None:
    """(x, w, then the addends) -> y: a thread for each row of the weight and of the activation."""
    x = k.buffer("x", (work.n, work.columns), "float32")
    half = Packing.parse(work.packing).kind == "f16"
    w = k.buffer("w", (work.rows, work.columns), "float16" if half else "float32")
    out = Output(k, work)
    threads, total = knobs.threads, k.local(1)
    with k.launch((-(-work.rows // threads), work.n), threads) as (group, m, thread):
        row = k.bind(group * threads + thread)
        with k.when(row < i32(work.rows)):
            k.store(total, f32(0.0), 0)
            with k.loop(0, work.columns) as c:
                k.store(total, fma(tirx.Cast("float32", w[row, c]), x[m, c], total[0]), 0)
            out.write(m, row, total[0])
