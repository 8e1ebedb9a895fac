"""Arithmetic on scalars: TIR's operators and conversions as SPIR-V instructions.

Values are computed in 32 bits: narrower integers are widened when they are loaded, and int64, which TIR has for
indices, is 32 bits too, because no board GPU is sure to have more; a buffer has fewer than 2³¹ elements
(runtime_c checks it).
"""

from __future__ import annotations

from crosscompile.errors import CodegenError
from crosscompile.spirv.capabilities import NARROW
from crosscompile.spirv.code import Code
from crosscompile.spirv.module import kind_of

_COMPUTED = {
    "float16": "float32",
    "int8": "int32",
    "int16": "int32",
    "int64": "int32",
    "uint8": "uint32",
    "uint16": "uint32",
    "uint64": "uint32",
}
_SUPPORTED = ("bool", "float32", "int32", "uint32")


def computed(dtype: str) -> str:
    """The type that values of a TIR type are computed in. CodegenError if there is none."""
    found = _COMPUTED.get(dtype, dtype)
    if found not in _SUPPORTED:
        raise CodegenError(f"SPIR-V: values of type {dtype} are not supported")
    return found


def split(dtype: str) -> tuple[str, int]:
    """Element type and lanes of a TIR type."""
    base, _, lanes = dtype.partition("x")
    return base, int(lanes or 1)


_ARITHMETIC = {  # opcodes for float, signed, unsigned
    "Add": (129, 128, 128),
    "Sub": (131, 130, 130),
    "Mul": (133, 132, 132),
    "Div": (136, 135, 134),
    "Mod": (140, 138, 137),
}
_COMPARISONS = {
    "EQ": (180, 170, 170),
    "NE": (183, 171, 171),
    "GT": (186, 173, 172),
    "GE": (190, 175, 174),
    "LT": (184, 177, 176),
    "LE": (188, 179, 178),
}
_BITWISE = {"BitwiseAnd": 199, "BitwiseOr": 197, "BitwiseXor": 198, "LShift": 196}
_EXTREMES = {"Min": (37, 39, 38), "Max": (40, 42, 41)}  # of GLSL.std.450
_LOGICAL = {"And": 167, "Or": 166, "EQ": 164, "NE": 165}

BINARY = (*_ARITHMETIC, *_COMPARISONS, *_BITWISE, *_EXTREMES, "And", "Or", "RShift", "FloorDiv", "FloorMod")
"""The TIR operators that `binary` knows, by the names of their nodes."""


def binary(code: Code, operator: str, dtype: str, a: int, b: int) -> int:
    """a operator b, both of the computed type `dtype`."""
    kind = kind_of(dtype)
    type_, bool_ = code.module.type(dtype), code.module.type("bool")
    if kind == "b":
        if operator not in _LOGICAL:
            raise CodegenError(f"SPIR-V: operator {operator} on bool is not supported")
        return code.make(_LOGICAL[operator], bool_, a, b)
    index = "fiu".index(kind)
    if kind == "i" and operator in ("Mod", "FloorMod", "FloorDiv"):
        return _division(code, operator, a, b)
    if operator in _ARITHMETIC:
        made = code.make(_ARITHMETIC[operator][index], type_, a, b)
        if kind == "f":
            code.module.exact(made)
        return made
    if operator in _COMPARISONS:
        return code.make(_COMPARISONS[operator][index], bool_, a, b)
    if operator in _EXTREMES:
        return code.math(dtype, _EXTREMES[operator][index], a, b)
    if kind == "f":
        raise CodegenError(f"SPIR-V: operator {operator} on {dtype} is not supported")
    if operator in _BITWISE:
        return code.make(_BITWISE[operator], type_, a, b)
    if operator == "RShift":
        return code.make(195 if kind == "i" else 194, type_, a, b)
    if operator in ("FloorMod", "FloorDiv"):
        return code.make(137 if operator == "FloorMod" else 134, type_, a, b)
    raise CodegenError(f"SPIR-V: operator {operator} on {dtype} is not supported")


def _division(code: Code, operator: str, a: int, b: int) -> int:
    """The remainder of a / b, ⌊a / b⌋ or a - b · ⌊a / b⌋ of int32, from the quotient that is cut off.

    OpSRem and OpSMod are undefined for negative operands (Vulkan, "Precision and Operation of SPIR-V Instructions").
    Rounding down makes a difference where there is a remainder of another sign than the divisor.
    """
    int_, bool_ = code.module.type("int32"), code.module.type("bool")
    zero, one = code.module.constant("int32", 0), code.module.constant("int32", 1)
    quotient = code.make(135, int_, a, b)
    rest = code.make(130, int_, a, code.make(132, int_, quotient, b))
    if operator == "Mod":
        return rest
    differs = code.make(177, bool_, code.make(198, int_, rest, b), zero)
    inexact = code.make(171, bool_, rest, zero)
    is_lower = code.make(167, bool_, differs, inexact)
    if operator == "FloorMod":
        return code.make(128, int_, rest, code.make(169, int_, is_lower, b, zero))
    return code.make(130, int_, quotient, code.make(169, int_, is_lower, one, zero))


def convert(code: Code, source: str, target: str, value: int) -> int:
    """A cast between TIR types, of a value in its computed type; the result fits the narrower type, as in memory."""
    a, b = computed(source), computed(target)
    value = _convert_computed(code, a, b, value)
    return _narrowed(code, target, value)


def _convert_computed(code: Code, a: str, b: str, value: int) -> int:
    """A conversion between computed types."""
    if a == b:
        return value
    module, kinds = code.module, kind_of(a) + kind_of(b)
    type_ = module.type(b)
    if kinds[1] == "b":
        return code.make(183 if kinds[0] == "f" else 171, type_, value, module.constant(a, 0))
    if kinds[0] == "b":
        return code.make(169, type_, value, module.constant(b, 1), module.constant(b, 0))
    opcodes = {"fi": 110, "fu": 109, "if": 111, "uf": 112, "iu": 124, "ui": 124}
    return code.make(opcodes[kinds], type_, value)


def _narrowed(code: Code, target: str, value: int) -> int:
    """A value as it is after a cast to a narrower type, still in its computed type."""
    bits = {"int8": 24, "uint8": 24, "int16": 16, "uint16": 16}.get(target)
    if bits is not None:
        dtype = computed(target)
        type_, by = code.module.type(dtype), code.module.constant("uint32", bits)
        high = code.make(196, type_, value, by)
        return code.make(195 if kind_of(dtype) == "i" else 194, type_, high, by)
    if target == "float16" and 2 in code.module.packed:
        return unpacked_halves(code, packed_halves(code, [value]))[0]
    if target == "float16":
        code.module.need(NARROW[2])
        half = code.make(115, code.module.type("float16"), value)
        return code.make(115, code.module.type("float32"), half)
    return value


def packed_halves(code: Code, values: list[int]) -> int:
    """One or two float32 as the float16 of a word, the first one low; 0 is the second where there is none."""
    module = code.module
    both = values if len(values) > 1 else [*values, module.constant("float32", 0.0)]
    pair = code.make(80, module.vector("float32", 2), *both)
    return code.make(12, module.type("uint32"), module.math, 58, pair)


def unpacked_halves(code: Code, word: int, which: tuple[int, ...] = (0, 1)) -> list[int]:
    """The two float16 of a word, or one of them, as float32."""
    module = code.module
    both = code.make(12, module.vector("float32", 2), module.math, 62, word)
    return [code.make(81, module.type("float32"), both, lane) for lane in which]


def stored(code: Code, dtype: str, value: int) -> int:
    """A computed value as an element of a buffer of `dtype`."""
    if dtype == "float16":
        return code.make(115, code.module.type(dtype), value)
    if dtype in ("int8", "int16"):
        return code.make(114, code.module.type(dtype), value)  # takes the low bits
    if dtype in ("uint8", "uint16"):
        return code.make(113, code.module.type(dtype), value)
    return value


def loaded(code: Code, dtype: str, value: int) -> int:
    """An element of a buffer of `dtype` as a computed value."""
    opcode = {"float16": 115, "int8": 114, "int16": 114, "uint8": 113, "uint16": 113}.get(dtype)
    return value if opcode is None else code.make(opcode, code.module.type(computed(dtype)), value)


def reinterpret(code: Code, source: str, target: str, values: list[int]) -> list[int]:
    """The same bits as another type: lane by lane, or bytes as words and back, lowest byte first."""
    a, b = computed(source), computed(target)
    if source == target:
        return values
    wide_a, wide_b = source in _SUPPORTED, target in _SUPPORTED
    if "bool" in (a, b) or (not wide_a and source not in ("int8", "uint8")):
        raise CodegenError(f"SPIR-V: the bits of {source} as {target} are not supported")
    module = code.module
    if wide_a and wide_b:
        return [value if a == b else code.make(124, module.type(b), value) for value in values]
    if wide_b:
        type_ = module.type("uint32")
        words = []
        for start in range(0, len(values), 4):
            word = 0
            for byte, value in enumerate(values[start : start + 4]):
                bits = value if a == "uint32" else code.make(124, type_, value)
                part = code.make(199, type_, bits, module.constant("uint32", 255))
                part = code.make(196, type_, part, module.constant("uint32", 8 * byte)) if byte else part
                word = code.make(197, type_, word, part) if byte else part
            words.append(word if b == "uint32" else code.make(124, module.type(b), word))
        return words
    if target not in ("int8", "uint8"):
        raise CodegenError(f"SPIR-V: the bits of {source} as {target} are not supported")
    type_ = module.type(b)
    bytes_ = []
    for value in values:
        bits = value if a == b else code.make(124, type_, value)
        for byte in range(4):
            shifted = code.make(194, type_, bits, module.constant("uint32", 8 * byte)) if byte else bits
            bytes_.append(_narrowed(code, target, shifted))
    return bytes_
