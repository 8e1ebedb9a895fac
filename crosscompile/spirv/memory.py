"""Buffers of a kernel: storage buffers, shared and local arrays; loads and stores of their elements."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crosscompile.spirv.code import Code
from crosscompile.spirv.module import STORAGE_BUFFER, WORKGROUP
from crosscompile.spirv.scalars import loaded, stored


def stored_lanes(lanes: int) -> int:
    """Lanes of a vector that SPIR-V has; 1 where an element is as many scalars."""
    return lanes if lanes <= 4 else 1


_AVAILABLE, _VISIBLE, _NOT_PRIVATE = 0x8, 0x10, 0x20
_WORKGROUP_SCOPE = 2


def seen(code: Code, storage: int, written: bool) -> tuple[int, ...]:
    """Operands of an access: what a workgroup shares is seen behind the next barrier, which GLSL's model implies."""
    if not code.module.ordered or storage != WORKGROUP:
        return ()
    return _NOT_PRIVATE | (_AVAILABLE if written else _VISIBLE), code.module.constant("uint32", _WORKGROUP_SCOPE)


@dataclass(frozen=True)
class Memory:
    """Where a buffer lies. dtype and lanes are those of an element; storage: the SPIR-V storage class.

    Elements of more lanes than SPIR-V's vectors have are as many scalars.
    """

    variable: int
    dtype: str
    lanes: int
    storage: int

    @property
    def width(self) -> int:
        """Lanes of what is stored."""
        return stored_lanes(self.lanes)

    def pointer(self, code: Code, index: int) -> int:
        """Where an element lies."""
        module = code.module
        element = module.vector(self.dtype, self.width) if self.width > 1 else module.type(self.dtype)
        pointer = module.pointer(self.storage, element)
        if self.storage == STORAGE_BUFFER:
            return code.make(65, pointer, self.variable, module.constant("int32", 0), index)
        return code.make(65, pointer, self.variable, index)

    def _scalars(self, code: Code, index: int) -> list[int]:
        """Positions of the lanes of an element that is stored as scalars."""
        module = code.module
        first = code.make(132, module.type("int32"), index, module.constant("int32", self.lanes))
        return [
            code.make(128, module.type("int32"), first, module.constant("int32", lane)) for lane in range(self.lanes)
        ]

    def load(self, code: Code, index: int) -> list[int]:
        """The lanes of one element, in their computed type."""
        if self.width < self.lanes:
            scalar = replace(self, lanes=1)
            return [lane for place in self._scalars(code, index) for lane in scalar.load(code, place)]
        module, place = code.module, self.pointer(code, index)
        how = seen(code, self.storage, written=False)
        if self.lanes == 1:
            return [loaded(code, self.dtype, code.make(61, module.type(self.dtype), place, *how))]
        whole = code.make(61, module.vector(self.dtype, self.lanes), place, *how)
        lanes = [code.make(81, module.type(self.dtype), whole, lane) for lane in range(self.lanes)]
        return [loaded(code, self.dtype, lane) for lane in lanes]

    def store(self, code: Code, index: int, values: list[int]) -> None:
        """Writes one element; values in their computed type."""
        if self.width < self.lanes:
            for place, value in zip(self._scalars(code, index), values, strict=True):
                replace(self, lanes=1).store(code, place, [value])
            return
        narrow = [stored(code, self.dtype, value) for value in values]
        if self.lanes > 1:
            narrow = [code.make(80, code.module.vector(self.dtype, self.lanes), *narrow)]
        code.do(62, self.pointer(code, index), narrow[0], *seen(code, self.storage, written=True))
