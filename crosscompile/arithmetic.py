"""Vector expressions of the arithmetic contract: the same bits on every tier.

Each function takes and returns TIR expressions of float32, scalar or vector. Nothing relies on the compiler
contracting a multiply and an add: where one rounding is meant, `fma` says so, and a product is never the operand of
a plain addition. Polynomials are Cephes' single-precision ones (expf.c, sinf.c, tanhf.c, ndtrf.c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

Expr = Any  # TVM's expression classes are created at run time; there is nothing narrower to name

LANES = 16
"""Width in which reductions are ordered and elementwise kernels written; LLVM splits it into what the tier has."""

MAGIC = 12582912.0
"""1.5 · 2²³: adding it rounds a float of magnitude below 2²² to an integer, half to even."""
MAGIC_BITS = 0x4B400000


def lanes_of(x: Expr) -> int:
    """Number of vector lanes of an expression."""
    dtype = str(x.ty.dtype if hasattr(x, "ty") and hasattr(x.ty, "dtype") else x.dtype)
    return int(dtype.rpartition("x")[2]) if "x" in dtype else 1


def wide(dtype: str, lanes: int) -> str:
    """The dtype of a vector."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def constant(value: float, lanes: int, dtype: str = "float32") -> Expr:
    """A constant in every lane."""
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a · b + c with one rounding."""
    return T.call_llvm_pure_intrin(wide("float32", lanes_of(a)), "llvm.fma", a, b, c)


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """Evaluates `value` once for an expression that uses it several times."""
    var = tirx.Var("t", value.ty if hasattr(value, "ty") else value.dtype)
    return tirx.Let(var, value, body(var))


def bits(x: Expr) -> Expr:
    """The float's bits as int32."""
    return T.reinterpret(wide("int32", lanes_of(x)), x)


def from_bits(x: Expr) -> Expr:
    """The float32 with these int32 bits."""
    return T.reinterpret(wide("float32", lanes_of(x)), x)


def integer_product(a: Expr, b: Expr) -> Expr:
    """a · b rounded to the nearest integer, half to even, as int32. |a · b| < 2²²."""
    n = lanes_of(a)
    return bits(fma(a, b, constant(MAGIC, n))) - constant(MAGIC_BITS, n, "int32")


def exp(x: Expr) -> Expr:
    """e^x, x clamped to [-87.3, 88]; within 2 ulp."""
    n = lanes_of(x)

    def c(value: float) -> Expr:
        return constant(value, n)

    def scaled(power: Expr, r: Expr) -> Expr:
        p = c(1.9875691500e-4)
        for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = fma(p, r, c(coefficient))
        y = fma(p, r * r, r) + c(1.0)
        exponent = (bits(power) - constant(MAGIC_BITS - 127, n, "int32")) << constant(23, n, "int32")
        return y * from_bits(exponent)

    def reduced(power: Expr, clamped: Expr) -> Expr:
        count = power - c(MAGIC)
        return let(
            count,
            lambda k: let(
                fma(k, c(2.12194440e-4), fma(k, c(-0.693359375), clamped)),
                lambda r: scaled(power, r),
            ),
        )

    low_high = tirx.Max(tirx.Min(x, c(88.0)), c(-87.3))
    return let(low_high, lambda v: let(fma(v, c(1.44269504), c(MAGIC)), lambda power: reduced(power, v)))


def silu(x: Expr) -> Expr:
    """x / (1 + e^-x)."""
    return x / (exp(constant(0.0, lanes_of(x)) - x) + constant(1.0, lanes_of(x)))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    one = constant(1.0, lanes_of(x))
    return one / (exp(constant(0.0, lanes_of(x)) - x) + one)


def softplus(x: Expr) -> Expr:
    """ln(1 + e^x), within 4 ulp: max(x, 0) + ln(1 + z) with z = e^-|x|, as 2 · atanh(z / (2 + z))."""
    n = lanes_of(x)

    def of(v: Expr, z: Expr) -> Expr:
        def series(s: Expr, q: Expr) -> Expr:
            return fma(s * constant(2.0, n), polynomial(q, ATANH), tirx.Max(v, constant(0.0, n)))

        return let(z / (z + constant(2.0, n)), lambda s: let(s * s, lambda q: series(s, q)))

    return let(x, lambda v: let(exp(constant(0.0, n) - magnitude(v)), lambda z: of(v, z)))


def polynomial(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """Horner's rule, highest power first."""
    n = lanes_of(x)
    value = constant(coefficients[0], n)
    for coefficient in coefficients[1:]:
        value = fma(value, x, constant(coefficient, n))
    return value


def with_sign(size: Expr, of: Expr) -> Expr:
    """A value ≥ 0 with the sign of another."""
    return from_bits(bits(size) | (bits(of) & constant(-0x80000000, lanes_of(of), "int32")))


ATANH = tuple(1.0 / k for k in range(17, 0, -2))
"""atanh x / x in x², for |x| ≤ 1/3: what is left out is below 2⁻²⁸ of it."""
TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
ERF = (
    7.853861353153693e-5,
    -8.010193625184903e-4,
    5.188327685732524e-3,
    -2.685381193529856e-2,
    1.128358514861418e-1,
    -3.761262582423300e-1,
    1.128379165726710,
)
"""erf x / x in x², for |x| ≤ 1."""
ERFC_NEAR = (
    2.326819970068386e-2,
    -1.387039388740657e-1,
    3.687424674597105e-1,
    -5.824733027278666e-1,
    6.210004621745983e-1,
    -4.944515323274145e-1,
    3.404879937665872e-1,
    -2.741127028184656e-1,
    5.638259427386472e-1,
)
ERFC_FAR = (
    -1.047766399936249e1,
    1.297719955372516e1,
    -7.495518717768503,
    2.921019019210786,
    -1.015265279202700,
    4.218463358204948e-1,
    -2.820767439740514e-1,
    5.641895067754075e-1,
)
"""x · e^(x²) · erfc x in 1 / x², for 1 < x < 2 and for x ≥ 2."""


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent, within 2 ulp: a polynomial up to 0.625, then 1 - 2 / (e^2|x| + 1)."""
    n = lanes_of(x)

    def of(v: Expr, z: Expr, size: Expr) -> Expr:
        near = fma(polynomial(z, TANH), z * v, v)
        far = constant(1.0, n) - constant(2.0, n) / (exp(size * constant(2.0, n)) + constant(1.0, n))
        return tirx.Select(size < constant(0.625, n), near, with_sign(far, v))

    return let(x, lambda v: let(v * v, lambda z: let(magnitude(v), lambda size: of(v, z, size))))


def erf(x: Expr) -> Expr:
    """The error function, within 2·10⁻⁷: a polynomial up to 1, then 1 - erfc |x|."""
    n = lanes_of(x)

    def of(v: Expr, z: Expr, size: Expr) -> Expr:
        near = polynomial(z, ERF) * v
        inverse = constant(1.0, n) / tirx.Max(size, constant(1.0, n))

        def tail(q: Expr, y: Expr) -> Expr:
            ratio = tirx.Select(size < constant(2.0, n), polynomial(y, ERFC_NEAR), polynomial(y, ERFC_FAR))
            return fma((exp(constant(0.0, n) - z) * q) * constant(-1.0, n), ratio, constant(1.0, n))

        far = let(inverse, lambda q: let(q * q, lambda y: tail(q, y)))
        return tirx.Select(size < constant(1.0, n), near, with_sign(far, v))

    return let(x, lambda v: let(v * v, lambda z: let(magnitude(v), lambda size: of(v, z, size))))


def gelu(x: Expr) -> Expr:
    """x · Φ(x) = x / 2 · (1 + erf(x / √2))."""
    n = lanes_of(x)
    half = x * constant(0.5, n)
    return half * (erf(x * constant(0.70710678118654752, n)) + constant(1.0, n))


def gelu_tanh(x: Expr) -> Expr:
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), as x / (1 + e^-2u)."""
    n = lanes_of(x)
    cubic = fma(x * x, constant(0.044715, n), constant(1.0, n))
    return x / (exp((x * cubic) * constant(-1.5957691216057308, n)) + constant(1.0, n))


def sin_cos(x: Expr, of: Callable[[Expr, Expr], Expr]) -> Expr:
    """`of(sin x, cos x)`, within 2 ulp for |x| < 10⁵.

    k = round(x · 2/π); r = x - k · π/2 in three parts, then minimax polynomials on [-π/4, π/4].
    """
    n = lanes_of(x)

    def c(value: float) -> Expr:
        return constant(value, n)

    def i(value: int) -> Expr:
        return constant(value, n, "int32")

    def polynomials(power: Expr, r: Expr, z: Expr) -> Expr:
        s = fma(fma(c(-1.9515295891e-4), z, c(8.3321608736e-3)), z, c(-1.6666654611e-1))
        s = fma(s, z * r, r)
        k = fma(fma(c(2.443315711809948e-5), z, c(-1.388731625493765e-3)), z, c(4.166664568298827e-2))
        k = fma(k, z * z, fma(c(-0.5), z, c(1.0)))

        def quadrant(sine: Expr, cosine: Expr) -> Expr:
            q = bits(power) & i(3)
            odd = tirx.NE(q & i(1), i(0))
            sin_sign = (q & i(2)) << i(30)
            cos_sign = ((q + i(1)) & i(2)) << i(30)
            swapped_sine = tirx.Select(odd, cosine, sine)
            swapped_cosine = tirx.Select(odd, sine, cosine)
            return of(from_bits(bits(swapped_sine) ^ sin_sign), from_bits(bits(swapped_cosine) ^ cos_sign))

        return let(s, lambda sine: let(k, lambda cosine: quadrant(sine, cosine)))

    def reduced(power: Expr) -> Expr:
        def parts(k: Expr) -> Expr:
            # π/2 in three pieces: 1.5703125 (7 bits), 4.837512969970703e-4 (11 bits), the rest
            r = fma(k, c(-1.5703125), x)
            r = fma(k, c(-4.837512969970703125e-4), r)
            return fma(k, c(-7.54978995489188216e-8), r)

        return let(
            power - c(MAGIC),
            lambda k: let(parts(k), lambda r: let(r * r, lambda z: polynomials(power, r, z))),
        )

    return let(fma(x, c(0.636619772367581343), c(MAGIC)), reduced)


def halves(x: Expr, op: Callable[[Expr, Expr], Expr]) -> Expr:
    """Folds a vector to a scalar with `op`: lanes l and l + n/2, then l + n/4, … (the contract's fixed tree)."""
    n = lanes_of(x)
    if n == 1:
        return x
    if n == 2:
        return let(x, lambda v: op(tirx.Shuffle([v], [0]), tirx.Shuffle([v], [1])))
    low, high = list(range(n // 2)), list(range(n // 2, n))
    return let(x, lambda v: halves(op(tirx.Shuffle([v], low), tirx.Shuffle([v], high)), op))


def tree_sum(x: Expr) -> Expr:
    """Sum of the lanes of a vector in the contract's order."""
    return halves(x, lambda a, b: a + b)


def tree_max(x: Expr) -> Expr:
    """Largest lane of a vector."""
    return halves(x, lambda a, b: tirx.Max(a, b))


def magnitude(x: Expr) -> Expr:
    """|x|."""
    return from_bits(bits(x) & constant(0x7FFFFFFF, lanes_of(x), "int32"))
