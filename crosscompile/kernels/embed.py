"""Embedding rows read straight out of the packed weight, so that a tied head is stored once."""

from __future__ import annotations

from tvm import tirx

from crosscompile.arithmetic import Expr, constant
from crosscompile.kernels.build import Builder, cast, kernel, kernel_maker
from crosscompile.kernels.dot import weight_dtype, weight_shape
from crosscompile.packing import GROUP, Packing


@kernel_maker
def embed(n: int, vocab: int, columns: int, packing: str, times: float = 1.0, padded: bool = False) -> tirx.PrimFunc:
    """(tokens (n,) int32, w, [scale,]) -> x (n, columns) f32: rows of w, multiplied by `times`.

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
        dtype = weight_dtype(form)
        tokens = k.buffer("tokens", (n,), "int32")
        w = k.buffer("w", (groups, columns // GROUP, chunks, rows, chunk), dtype)
        scale = k.buffer("scale", (groups, columns // GROUP, rows), "float16")
        x = k.buffer("x", (n, columns), "float32")

        def put(m: Expr, column: Expr, q: Expr, s: Expr) -> None:
            k.store(x, larger(cast("float32", q) * s), m, column)

        with k.shared(n) as m:
            g, r = place(k, tokens[m])
            with k.loop(0, columns // GROUP) as b, k.loop(0, chunks) as c, k.loop(0, chunk) as i:
                s = k.bind(cast("float32", scale[g, b, r]))
                byte = k.bind(cast("int32", w[g, b, c, r, i]))
                if form.kind == "w8":
                    put(m, b * GROUP + c * chunk + i, byte - (128 if form.unsigned else 0), s)
                else:
                    first = b * GROUP + c * (2 * chunk) + i
                    for column, nibble in ((first, byte & 15), (first + chunk, (byte >> 4) & 15)):
                        put(m, column, nibble - 8 if form.unsigned else (nibble ^ 8) - 8, s)

    return kernel("embed", quantized if form.kind in ("w4", "w8") else floating)
