"""Elements of 8 and 16 bits in buffers of 32-bit words, for GPUs that can access nothing narrower.

Whole words are written as such. A narrower element is written by two atomic operations on its word, one that clears
its bits and one that sets them, as another invocation may be writing its neighbor; nobody writes the same element.
Without StorageBuffer16BitAccess a module has no type of 16 bits, so float16 are made by GLSL.std.450's packing.
"""

from __future__ import annotations

from dataclasses import dataclass

from crosscompile.errors import CodegenError
from crosscompile.spirv.code import DEVICE, Code
from crosscompile.spirv.memory import Memory, stored_lanes
from crosscompile.spirv.module import STORAGE_BUFFER, STORED_BYTES, Module, kind_of
from crosscompile.spirv.scalars import computed, packed_halves, unpacked_halves

WORD_BYTES = 4
_AND, _OR = 240, 241
_SIGNED_PART, _PART, _INSERT = 202, 203, 201
_RELAXED = 0


@dataclass(frozen=True)
class Packed(Memory):
    """A storage buffer whose variable is one of words; dtype and lanes are those of an element, as a kernel sees it."""

    @property
    def _bits(self) -> int:
        """Of a lane."""
        return 8 * STORED_BYTES[self.dtype]

    @property
    def _whole(self) -> Memory:
        """The buffer as the words of its elements; of those that are less, as words."""
        return Memory(self.variable, "uint32", words_of(self.dtype, self.lanes) or 1, self.storage)

    def pointer(self, code: Code, index: int) -> int:
        raise CodegenError(f"SPIR-V: an element of {self.dtype} has no place of its own on this GPU")

    def load(self, code: Code, index: int) -> list[int]:
        if words_of(self.dtype, self.lanes):
            a_word = 32 // self._bits
            words = self._whole.load(code, index)
            return [lane for word in words for lane in self._taken(code, word, a_word)]
        place, shift = self._within(code, index)
        (word,) = self._whole.load(code, place)
        return self._taken(code, code.make(194, code.module.type("uint32"), word, shift), self.lanes)

    def store(self, code: Code, index: int, values: list[int]) -> None:
        module, a_word = code.module, 32 // self._bits
        uint = module.type("uint32")
        if words_of(self.dtype, self.lanes):
            words = [self._put(code, values[i : i + a_word]) for i in range(0, self.lanes, a_word)]
            self._whole.store(code, index, words)
            return
        place, shift = self._within(code, index)
        mask = module.constant("uint32", (1 << self._bits * self.lanes) - 1)
        others = code.make(200, uint, code.make(196, uint, mask, shift))
        mine = code.make(196, uint, self._put(code, values), shift)
        pointer = self._whole.pointer(code, place)
        scope, semantics = (module.constant("uint32", each) for each in (DEVICE, _RELAXED))
        code.make(_AND, uint, pointer, scope, semantics, others)
        code.make(_OR, uint, pointer, scope, semantics, mine)

    def _within(self, code: Code, index: int) -> tuple[int, int]:
        """The word that an element of less lies in, and its first bit there."""
        module, bits = code.module, self._bits * self.lanes
        int_, uint = module.type("int32"), module.type("uint32")
        in_word = 32 // bits
        place = code.make(195, int_, index, module.constant("uint32", in_word.bit_length() - 1))
        rest = code.make(199, uint, code.make(124, uint, index), module.constant("uint32", in_word - 1))
        return place, code.make(132, uint, rest, module.constant("uint32", bits))

    def _taken(self, code: Code, word: int, lanes: int) -> list[int]:
        """The first lanes of a word, in their computed type."""
        module = code.module
        if self.dtype == "float16":
            return unpacked_halves(code, word, tuple(range(lanes)))
        dtype = computed(self.dtype)
        is_signed = kind_of(dtype) == "i"
        base = code.make(124, module.type(dtype), word) if is_signed else word
        width = module.constant("uint32", self._bits)
        firsts = [module.constant("uint32", lane * self._bits) for lane in range(lanes)]
        opcode = _SIGNED_PART if is_signed else _PART
        return [code.make(opcode, module.type(dtype), base, first, width) for first in firsts]

    def _put(self, code: Code, values: list[int]) -> int:
        """A word of lanes from computed values; the bits above them are 0."""
        module = code.module
        uint, zero = module.type("uint32"), module.constant("uint32", 0)
        if self.dtype == "float16":
            return packed_halves(code, values)
        word, width = zero, module.constant("uint32", self._bits)
        for lane, value in enumerate(values):
            part = value if kind_of(computed(self.dtype)) == "u" else code.make(124, uint, value)
            word = code.make(_INSERT, uint, word, part, module.constant("uint32", lane * self._bits), width)
        return word


def words_of(dtype: str, lanes: int) -> int:
    """32-bit words of an element; 0 if it is a half or a quarter of one. CodegenError if it is neither."""
    words, rest = divmod(lanes * STORED_BYTES[dtype], WORD_BYTES)
    if rest and (words or lanes == 3):
        raise CodegenError(f"SPIR-V: elements of {lanes} {dtype} are no whole words")
    return words


def bound(module: Module, binding: int, dtype: str, lanes: int, written: bool, coherent: bool) -> Memory:
    """The buffer at set 0 and `binding`: of its elements, or of words where the GPU needs them."""
    if STORED_BYTES.get(dtype) not in module.packed:
        variable = module.storage_buffer(binding, dtype, stored_lanes(lanes), written, coherent)
        return Memory(variable, dtype, lanes, STORAGE_BUFFER)
    words = stored_lanes(words_of(dtype, lanes) or 1)
    variable = module.storage_buffer(binding, "uint32", words, written, coherent)
    return Packed(variable, dtype, lanes, STORAGE_BUFFER)
