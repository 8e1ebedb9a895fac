"""Matrices that a subgroup holds together and multiplies (SPV_KHR_cooperative_matrix): f16 factors, f32 products.

A kernel names them by a letter and a number, "a0" or "b3" the factors and "c5" the sums; "r1" is a second factor, as b,
that lies in memory row by row. Each is a variable of the function, which drivers keep in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crosscompile.spirv.code import Code
from crosscompile.spirv.memory import Memory, seen

MATRIX_EDGE = "ellm.matrix_edge"
"""Attribute of a function that has matrices: their rows and columns."""

_DTYPES = {"a": "float16", "b": "float16", "r": "float16", "c": "float32"}
_USES = {"a": 0, "b": 1, "r": 1, "c": 2}
BY_COLUMNS = {"a": 0, "b": 1, "r": 0, "c": 0}
"""Whether a matrix lies in memory column by column: of a and b, sums run along what is contiguous."""

Reach = Callable[[Any], tuple[Memory, int]]
"""The address of an element -> its buffer and place there."""


class Matrices:
    """The matrices of one function."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self._variables: dict[str, int] = {}

    def _type(self, name: str) -> int:
        self.code.module.need("Float16", "CooperativeMatrixKHR")
        return self.code.module.matrix(_DTYPES[name[0]], _USES[name[0]], self.code.edge)

    def _variable(self, name: str) -> int:
        if name not in self._variables:
            self._variables[name] = self.code.local(self._type(name))
        return self._variables[name]

    def _value(self, name: str) -> int:
        return self.code.make(61, self._type(name), self._variable(name))

    def clear(self, name: str) -> None:
        zero = self.code.module.constant("float32", 0.0)
        self.code.do(62, self._variable(name), self.code.make(80, self._type(name), zero))

    def load(self, name: str, memory: Memory, place: int, stride: int) -> None:
        """stride: from one row, of b one column, to the next, in elements of the buffer."""
        pointer, layout = memory.pointer(self.code, place), self._layout(name)
        how = seen(self.code, memory.storage, written=False)
        loaded = self.code.make(4457, self._type(name), pointer, layout, stride, *how)
        self.code.do(62, self._variable(name), loaded)

    def store(self, name: str, memory: Memory, place: int, stride: int) -> None:
        pointer, value = memory.pointer(self.code, place), self._value(name)
        how = seen(self.code, memory.storage, written=True)
        self.code.do(4458, pointer, value, self._layout(name), stride, *how)

    def multiply(self, a: str, b: str, c: str) -> None:
        """c += a · b."""
        made = self.code.make(4459, self._type(c), self._value(a), self._value(b), self._value(c))
        self.code.do(62, self._variable(c), made)

    def times(self, c: str, by: str) -> None:
        """c *= by, element by element."""
        self._elements(133, c, by)

    def plus(self, c: str, by: str) -> None:
        """c += by."""
        self._elements(129, c, by)

    def _elements(self, opcode: int, c: str, by: str) -> None:
        made = self.code.make(opcode, self._type(c), self._value(c), self._value(by))
        self.code.do(62, self._variable(c), made)

    def _layout(self, name: str) -> int:
        return self.code.module.constant("uint32", BY_COLUMNS[name[0]])
