"""Calls in kernels: mathematics, and the words of crosscompile/gpu/build.py for subgroups and dot products."""

from __future__ import annotations

from collections.abc import Callable

from crosscompile.errors import CodegenError
from crosscompile.spirv.code import Code
from crosscompile.spirv.module import kind_of
from crosscompile.spirv.scalars import packed_halves, unpacked_halves

MATH = {
    "exp": 27,
    "log": 28,
    "exp2": 29,
    "log2": 30,
    "sqrt": 31,
    "rsqrt": 32,
    "pow": 26,
    "sin": 13,
    "cos": 14,
    "tan": 15,
    "tanh": 21,
    "fabs": 4,
    "floor": 8,
    "ceil": 9,
    "trunc": 3,
    "nearbyint": 2,  # half to even
    "fma": 50,
}
"""TIR's name of a float32 function -> its number in GLSL.std.450."""

_SUBGROUP_ID, _SUBGROUPS, _LANE = 40, 38, 41  # built-ins
_SUBGROUP_SCOPE, _REDUCE = 3, 0


def math(code: Code, name: str, dtype: str, operands: list[int]) -> int:
    """A function of one or more scalars."""
    if name == "fabs" and kind_of(dtype) == "i":
        return code.math(dtype, 5, *operands)
    if name not in MATH or kind_of(dtype) != "f":
        raise CodegenError(f"SPIR-V: function {name} of {dtype} is not supported")
    return code.math(dtype, MATH[name], *operands)


def _builtin(number: int) -> Callable[[Code, list[int]], int]:
    def read(code: Code, operands: list[int]) -> int:
        module = code.module
        module.need("GroupNonUniform")
        value = code.make(61, module.type("uint32"), module.builtin(number))
        return code.make(124, module.type("int32"), value)

    return read


def _reduce(opcode: int, dtype: str) -> Callable[[Code, list[int]], int]:
    def reduce(code: Code, operands: list[int]) -> int:
        code.module.need("GroupNonUniform", "GroupNonUniformArithmetic")
        scope = code.module.constant("uint32", _SUBGROUP_SCOPE)
        return code.make(opcode, code.module.type(dtype), scope, _REDUCE, *operands)

    return reduce


def _dot4(opcode: int) -> Callable[[Code, list[int]], int]:
    """a · b of four bytes in each of two words, uint32."""

    def compute(code: Code, operands: list[int]) -> int:
        code.module.need("DotProduct", "DotProductInput4x8BitPacked")
        return code.make(opcode, code.module.type("int32"), *operands, 0)

    return compute


def _half(which: int) -> Callable[[Code, list[int]], int]:
    """One of the two float16 in a word, uint32, as float32."""
    return lambda code, operands: unpacked_halves(code, operands[0], (which,))[0]


def _halves(opcode: int) -> Callable[[Code, list[int]], int]:
    """An operation on two float16 in a word, uint32, and two in another."""

    def compute(code: Code, operands: list[int]) -> int:
        module = code.module
        module.need("Float16")
        pair = module.vector("float16", 2)
        made = code.make(opcode, pair, *(code.make(124, pair, each) for each in operands))
        return code.make(124, module.type("uint32"), made)

    return compute


def _both_halves(code: Code, operands: list[int]) -> int:
    """A float32 as float16, twice in a word."""
    return packed_halves(code, operands * 2)


WORDS: dict[str, Callable[[Code, list[int]], int]] = {
    "ellm.subgroup_sum": _reduce(350, "float32"),
    "ellm.subgroup_max": _reduce(358, "float32"),
    "ellm.subgroup_index": _builtin(_SUBGROUP_ID),
    "ellm.subgroup_count": _builtin(_SUBGROUPS),
    "ellm.subgroup_lane": _builtin(_LANE),
    "ellm.dot4": _dot4(4450),  # signed bytes
    "ellm.dot4_mixed": _dot4(4452),  # signed ones and unsigned ones
    "ellm.half_low": _half(0),
    "ellm.half_high": _half(1),
    "ellm.add_halves": _halves(129),
    "ellm.times_halves": _halves(133),
    "ellm.two_halves": packed_halves,
    "ellm.both_halves": _both_halves,
}
"""External functions that stand for instructions."""
