"""One SPIR-V module under construction: ids, types, constants and the sections that the format wants in order.

Numbers are those of the SPIR-V specification 1.3, "Binary Form".
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any

from crosscompile.spirv.capabilities import CAPABILITIES, EXTENSIONS, NARROW

MAGIC, VERSION = 0x07230203, 0x00010300

INPUT, UNIFORM_CONSTANT, WORKGROUP, FUNCTION, PUSH_CONSTANT, STORAGE_BUFFER = 1, 0, 4, 7, 9, 12
"""Storage classes."""

STORED_BYTES = {"float16": 2, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1}
"""Of elements that are narrower in a buffer than what is computed with."""


def kind_of(dtype: str) -> str:
    """f, i, u or b: float, signed, unsigned, bool."""
    if dtype == "bool":
        return "b"
    return {"f": "f", "u": "u", "i": "i"}[dtype[0]]


class Module:
    """Sections as lists of words. Types and constants are made once, by what they are."""

    def __init__(self, ordered: bool = False, packed: Collection[int] = ()) -> None:
        """ordered: Vulkan's memory model, in which each access says who sees it.

        packed: bytes of elements that lie in words of 32 bits, as the GPU cannot access them alone.
        """
        self.ordered, self.packed = ordered, packed
        self._next = 1
        self._known: dict[Any, int] = {}
        self.capabilities: dict[str, None] = {"Shader": None}
        self.decorations: list[int] = []
        self.declarations: list[int] = []
        self.interface: list[int] = []
        self.math = self.id()
        if ordered:
            self.need("VulkanMemoryModel")

    def id(self) -> int:
        self._next += 1
        return self._next - 1

    def need(self, *capabilities: str) -> None:
        """Declares capabilities."""
        for name in capabilities:
            self.capabilities[name] = None

    @staticmethod
    def instruction(into: list[int], opcode: int, *operands: int) -> None:
        into.append((len(operands) + 1) << 16 | opcode)
        into.extend(word & 0xFFFFFFFF for word in operands)

    def _once(self, key: Any, opcode: int, *operands: int, type_: int | None = None) -> int:
        """A type, or with `type_` a constant, declared the first time it is asked for."""
        if key not in self._known:
            made = self.id()
            self.instruction(self.declarations, opcode, *((type_, made) if type_ else (made,)), *operands)
            self._known[key] = made
        return self._known[key]

    def exact(self, value: int) -> None:
        """Rounds a result as it is written: a driver would turn (x + 1.5 · 2²³) - 1.5 · 2²³, which rounds, into x."""
        self.instruction(self.decorations, 71, value, 42)  # NoContraction

    # ---- types

    def type(self, dtype: str) -> int:
        """void, bool, or a number of 8, 16 or 32 bits."""
        if dtype == "void":
            return self._once("void", 19)
        if dtype == "bool":
            return self._once("bool", 20)
        bits = int(dtype.lstrip("floatuin"))
        if kind_of(dtype) == "f":
            return self._once(("number", dtype), 22, bits)
        return self._once(("number", dtype), 21, bits, int(kind_of(dtype) == "i"))

    def vector(self, dtype: str, lanes: int) -> int:
        return self._once(("vector", dtype, lanes), 23, self.type(dtype), lanes)

    def array(self, element: int, length: int) -> int:
        return self._once(("array", element, length), 28, element, self.constant("uint32", length))

    def pointer(self, storage: int, to: int) -> int:
        return self._once(("pointer", storage, to), 32, storage, to)

    def matrix(self, dtype: str, use: int, edge: int) -> int:
        """A square matrix of a subgroup. use: 0 and 1 for the factors, 2 for their product."""
        scope, size, what = (self.constant("uint32", each) for each in (3, edge, use))
        return self._once(("matrix", dtype, use), 4456, self.type(dtype), scope, size, size, what)

    def function_type(self) -> int:
        return self._once("function", 33, self.type("void"))

    def constant(self, dtype: str, value: float) -> int:
        """A scalar constant of bool, int32, uint32 or float32."""
        type_ = self.type(dtype)
        if dtype == "bool":
            return self._once(("constant", dtype, bool(value)), 41 if value else 42, type_=type_)
        word = struct.unpack("<I", struct.pack("<f", value))[0] if dtype == "float32" else int(value) & 0xFFFFFFFF
        return self._once(("constant", dtype, word), 43, word, type_=type_)

    # ---- variables

    def variable(self, storage: int, type_: int) -> int:
        """A variable outside of functions."""
        made = self.id()
        self.instruction(self.declarations, 59, self.pointer(storage, type_), made, storage)
        return made

    def builtin(self, number: int, dtype: str = "uint32", lanes: int = 1) -> int:
        """The input variable of a built-in value."""
        key = ("builtin", number)
        if key not in self._known:
            type_ = self.vector(dtype, lanes) if lanes > 1 else self.type(dtype)
            made = self.variable(INPUT, type_)
            self.instruction(self.decorations, 71, made, 11, number)
            self.interface.append(made)
            self._known[key] = made
        return self._known[key]

    def storage_buffer(self, binding: int, dtype: str, lanes: int, written: bool, coherent: bool) -> int:
        """The variable of a buffer of `dtype`, `lanes` of them an element, at set 0 and `binding`.

        coherent: workgroups see what others write.
        """
        size = STORED_BYTES.get(dtype, 4)
        if size < 4:
            self.need(NARROW[size])
        element = self.vector(dtype, lanes) if lanes > 1 else self.type(dtype)
        fresh = ("elements", dtype, lanes) not in self._known
        elements = self._once(("elements", dtype, lanes), 29, element)
        # a block of its own, since NonWritable and Coherent decorate the member
        key = ("block", dtype, lanes, written, coherent)
        is_new = key not in self._known
        block = self._once(key, 30, elements)
        if fresh:
            self.instruction(self.decorations, 71, elements, 6, size * lanes)  # ArrayStride
        if is_new:
            self.instruction(self.decorations, 71, block, 2)  # Block
            self.instruction(self.decorations, 72, block, 0, 35, 0)  # Offset
            if not written:
                self.instruction(self.decorations, 72, block, 0, 24)  # NonWritable
            if coherent:
                self.instruction(self.decorations, 72, block, 0, 23)  # Coherent
        made = self.variable(STORAGE_BUFFER, block)
        self.instruction(self.decorations, 71, made, 34, 0)  # DescriptorSet
        self.instruction(self.decorations, 71, made, 33, binding)
        return made

    def push_constants(self, count: int) -> int:
        """The variable of a block of `count` int32."""
        block = self._once("push", 30, *[self.type("int32")] * count)
        self.instruction(self.decorations, 71, block, 2)
        for i in range(count):
            self.instruction(self.decorations, 72, block, i, 35, 4 * i)
        return self.variable(PUSH_CONSTANT, block)

    # ---- the whole

    def assemble(self, local_size: tuple[int, int, int], variables: list[int], body: list[int]) -> bytes:
        """The module's bytes: one entry point, main. variables: those of the function; body: from behind its label."""
        void, function_type = self.type("void"), self.function_type()
        main, label = self.id(), self.id()
        words: list[int] = []
        for name in self.capabilities:
            self.instruction(words, 17, CAPABILITIES[name])
        for extension in sorted({EXTENSIONS[name] for name in self.capabilities if name in EXTENSIONS}):
            self.instruction(words, 10, *_text(extension))
        self.instruction(words, 11, self.math, *_text("GLSL.std.450"))
        self.instruction(words, 14, 0, 3 if self.ordered else 1)  # logical addressing; the model of Vulkan or GLSL450
        self.instruction(words, 15, 5, main, *_text("main"), *self.interface)
        self.instruction(words, 16, main, 17, *local_size)
        words += self.decorations + self.declarations
        self.instruction(words, 54, void, main, 0, function_type)
        self.instruction(words, 248, label)
        words += variables + body
        self.instruction(words, 253)
        self.instruction(words, 56)
        header = [MAGIC, VERSION, 0, self._next, 0]
        return struct.pack(f"<{len(header) + len(words)}I", *header, *words)


def _text(text: str) -> tuple[int, ...]:
    raw = text.encode() + b"\0"
    raw += b"\0" * (-len(raw) % 4)
    return struct.unpack(f"<{len(raw) // 4}I", raw)
