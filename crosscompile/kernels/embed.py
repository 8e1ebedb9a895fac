"""Embedding rows read straight out of the packed weight, so that a tied head is stored once."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr, constant
from crosscompile.kernels.build import Builder, cast, kernel, kernel_maker
from crosscompile.kernels.tile import codes, level, of_scale, weight_shape, zero_point
from crosscompile.packing import GROUP, Packing


@kernel_maker
def embed(n: int, vocab: int, columns: int, packing: str, times: float = 1.0, padded: bool = False) -> tirx.PrimFunc:
    """(tokens (n,) int32, w[, scale[, high | zero]]) -> x (n, columns) f32: rows of w, multiplied by `times`.

    padded: there may be rows -1, which take row 0.
    """
    form = Packing.parse(packing)
    groups = form.padded_rows(vocab) // form.rows

    def place(k: Builder, token: Expr) -> tuple[Expr, Expr]:
        """Row group and row in it."""
        return k.divide(tirx.Max(token, tirx.const(0, "int32")) if padded else token, form.rows)

    def larger(value: Expr) -> Expr:
        return value if times == 1.0 else value * constant(times, 1)

    def floating(k: Builder) -> None:
        tokens = k.buffer("tokens", (n,), "int32")
        w = k.buffer("w", (groups, columns, form.rows), "float32" if form.kind == "f32" else "float16")
        x = k.buffer("x", (n, columns), "float32")
        with k.shared(n) as m:
            g, r = place(k, tokens[m])
            with k.loop(0, columns) as c:
                k.store(x, larger(cast("float32", w[g, c, r])), m, c)

    def quantized(k: Builder) -> None:
        chunks, rows, chunk = weight_shape(form)
        how, offset = form.about, 128 if form.unsigned else 0
        tokens = k.buffer("tokens", (n,), "int32")
        w = k.buffer("w", (groups, columns // GROUP, chunks, rows, chunk), form.dtype)
        stored = form.stored(vocab, columns)
        scale = k.buffer("scale", stored[".scale"][0], "float16")
        high: Any = k.buffer("high", stored[".high"][0], "uint8") if how.high_bits else None
        zero: Any = k.buffer("zero", stored[".zero"][0], "int32") if how.zero else None
        x = k.buffer("x", (n, columns), "float32")

        def put(m: Expr, column: Expr, q: Expr, s: Expr) -> None:
            k.store(x, larger(cast("float32", q) * s), m, column)

        with k.shared(n) as m:
            g, r = place(k, tokens[m])
            with k.loop(0, columns // GROUP) as b, k.loop(0, chunks) as c, k.loop(0, chunk) as i:
                s = k.bind(cast("float32", scale[g, of_scale(form, b), r]))
                byte = k.bind(cast("int32", w[g, b, c, r, i]))
                first = b * GROUP + c * (how.fields * chunk) + i
                if how.levels:
                    found = codes(form, byte, lambda at: high[g, b, at], (c * rows + r) * chunk + i)
                    values = [level(form, code) - offset for code in found]
                elif how.fields == 1:
                    values = [byte - offset]
                else:
                    values = [
                        nibble - 8 if form.unsigned else (nibble ^ 8) - 8 for nibble in (byte & 15, (byte >> 4) & 15)
                    ]
                if zero is not None:
                    values = [value + zero_point(form, zero, g, b, r) for value in values]
                for field, value in enumerate(values):
                    put(m, first + field * chunk, value, s)

    return kernel("embed", quantized if form.quantized else floating)
