"""Embedding rows read out of the packed weight, on a GPU: a thread takes a group of 32 columns."""

from __future__ import annotations

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, f32, gpu_kernel, i32, lane
from crosscompile.kernels.tile import of_scale
from crosscompile.packing import GROUP, Packing
from crosscompile.spirv.capabilities import Gpu


def embed(
    name: str, gpu: Gpu, n: int, vocab: int, columns: int, packing: str, times: float, padded: bool
) -> tirx.PrimFunc:
    """(tokens (n,) int32, w, [scale,]) -> x (n, columns) f32; padded: rows of -1 take row 0."""
    form, blocks = Packing.parse(packing), columns // GROUP

    def body(k: Builder) -> None:
        tokens = k.buffer("tokens", (n,), "int32")
        like = form.about.like if form.quantized else form.kind
        bytes_ = {"w4": GROUP // 2, "w8": GROUP, "f16": 2 * GROUP, "f32": 4 * GROUP}[like]
        units = bytes_ // 16
        w = k.quads("w", vocab * blocks * bytes_, "float32" if form.kind == "f32" else "uint32")
        scales = k.buffer("scale", (vocab, columns // form.about.group), "float16") if form.quantized else None
        x = k.quads("x", n * columns * 4, "float32")
        threads = min(64, k.gpu.invocations)
        with k.launch((-(-n * blocks // threads),), threads) as (workgroup, thread):
            unit = k.bind(workgroup * threads + thread)
            with k.when(unit < i32(n * blocks)):
                m, b = k.bind(tirx.truncdiv(unit, i32(blocks))), k.bind(tirx.truncmod(unit, i32(blocks)))
                token = k.bind(tirx.Max(tokens[m], i32(0)) if padded else tokens[m])
                at = k.bind(token * blocks + b)
                words = [lane(k.bind(w[at * units + u]), i) for u in range(units) for i in range(4)]
                values = _values(k, like, words)
                if scales is not None:
                    scale = k.bind(tirx.Cast("float32", scales[token, of_scale(form, b)]))
                    values = [value * scale for value in values]
                if times != 1.0:
                    values = [value * f32(times) for value in values]
                for i in range(0, GROUP, 4):
                    k.store(x, tirx.Shuffle(values[i : i + 4], [0, 1, 2, 3]), unit * (GROUP // 4) + i // 4)

    return gpu_kernel(name, gpu, body)


def _values(k: Builder, kind: str, words: list[Expr]) -> list[Expr]:
    """The 32 values of a group from its words, before scaling."""
    if kind == "f32":
        return words
    if kind == "f16":
        return [v for word in words for v in k.halves(word)]
    signed = [k.bind(tirx.Cast("int32", word)) for word in words]
    if kind == "w8":
        return [tirx.Cast("float32", (v << i32(24 - 8 * byte)) >> i32(24)) for v in signed for byte in range(4)]
    low = [tirx.Cast("float32", (v << i32(28 - 8 * byte)) >> i32(28)) for v in signed for byte in range(4)]
    return low + [tirx.Cast("float32", (v << i32(24 - 8 * byte)) >> i32(28)) for v in signed for byte in range(4)]
