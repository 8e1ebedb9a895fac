"""The matrices of a subgroup (matrices.py) as GLSL."""

from __future__ import annotations

from collections.abc import Iterable

from crosscompile.spirv.matrices import BY_COLUMNS

EXTENSIONS = """\
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
"""
WORDS = {
    "ellm.add_halves": "packFloat2x16(unpackFloat2x16({}) + unpackFloat2x16({}))",
    "ellm.times_halves": "packFloat2x16(unpackFloat2x16({}) * unpackFloat2x16({}))",
    "ellm.two_halves": "packHalf2x16(vec2({}, {}))",
    "ellm.both_halves": "packHalf2x16(vec2({0}, {0}))",
}
_TYPES = {
    "a": "coopmat<float16_t, gl_ScopeSubgroup, {0}, {0}, gl_MatrixUseA>",
    "b": "coopmat<float16_t, gl_ScopeSubgroup, {0}, {0}, gl_MatrixUseB>",
    "r": "coopmat<float16_t, gl_ScopeSubgroup, {0}, {0}, gl_MatrixUseB>",
    "c": "coopmat<float, gl_ScopeSubgroup, {0}, {0}, gl_MatrixUseAccumulator>",
}


def declarations(names: Iterable[str], edge: int) -> list[str]:
    return [f"{_TYPES[name[0]].format(edge)} matrix_{name};" for name in names]


def statement(word: str, names: list[str], place: tuple[str, ...], edge: int) -> str:
    """One operation. place: of a load or a store, the array, the first element and the stride."""
    matrices = [f"matrix_{name}" for name in names]
    if word in ("load", "store"):
        layout = "ColumnMajor" if BY_COLUMNS[names[0][0]] else "RowMajor"
        where = ", ".join((matrices[0], *place, f"gl_CooperativeMatrixLayout{layout}"))
        return f"coopMat{word.capitalize()}({where});"
    if word == "clear":
        return f"{matrices[0]} = {_TYPES['c'].format(edge)}(0.0);"
    if word == "multiply":
        return f"{matrices[2]} = coopMatMulAdd({', '.join(matrices)});"
    return f"{matrices[0]} = {matrices[0]} {'*' if word == 'times' else '+'} {matrices[1]};"
