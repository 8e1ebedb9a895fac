"""Buffers of a kernel: storage buffers, shared and local arrays; loads and stores of their elements."""

from __future__ import annotations

from dataclasses import dataclass

from crosscompile.spirv.code import Code
from crosscompile.spirv.module import STORAGE_BUFFER
from crosscompile.spirv.scalars import loaded, stored


@dataclass(frozen=True)
class Memory:
    """Where a buffer lies. dtype and lanes are those of an element; storage: the SPIR-V storage class."""

    variable: int
    dtype: str
    lanes: int
    storage: int

    def _place(self, code: Code, index: int) -> int:
        module = code.module
        element = module.vector(self.dtype, self.lanes) if self.lanes > 1 else module.type(self.dtype)
        pointer = module.pointer(self.storage, element)
        if self.storage == STORAGE_BUFFER:
            return code.make(65, pointer, self.variable, module.constant("int32", 0), index)
        return code.make(65, pointer, self.variable, index)

    def load(self, code: Code, index: int) -> list[int]:
        """The lanes of one element, in their computed type."""
        module, place = code.module, self._place(code, index)
        if self.lanes == 1:
            return [loaded(code, self.dtype, code.make(61, module.type(self.dtype), place))]
        whole = code.make(61, module.vector(self.dtype, self.lanes), place)
        lanes = [code.make(81, module.type(self.dtype), whole, lane) for lane in range(self.lanes)]
        return [loaded(code, self.dtype, lane) for lane in lanes]

    def store(self, code: Code, index: int, values: list[int]) -> None:
        """Writes one element; values in their computed type."""
        narrow = [stored(code, self.dtype, value) for value in values]
        if self.lanes > 1:
            narrow = [code.make(80, code.module.vector(self.dtype, self.lanes), *narrow)]
        code.do(62, self._place(code, index), narrow[0])
