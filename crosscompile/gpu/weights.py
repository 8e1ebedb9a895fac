"""Quantized weights as GPU kernels read them: groups of 32 columns of a row, as signed bytes or as floats.

All of it follows from what the table of kinds says (crosscompile/kinds.py). A product of a group is
step · Σ stored · a + shift · Σ a: kinds whose levels lie evenly are multiplied by their numbers, and those with a zero
point by what is stored, so that neither costs anything for each weight. Other levels are looked up in registers.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, i32, quotient, remainder, signed_byte
from crosscompile.kernels.tile import of_scale
from crosscompile.packing import GROUP, Packing

_ONES = 0x01010101
"""A word of four bytes that are 1."""
_SIGN = 128
"""What a byte counts more if its sign bit is turned and it is taken for unsigned."""
NIBBLES = 16
"""How often nibbles count that keep their place in the byte, and so their sign; activations' scales make up for it."""


def u32(value: int) -> Expr:
    return tirx.const(value & 0xFFFFFFFF, "uint32")


class Weights:
    """The parameters by which a kernel reaches a weight, and what they hold.

    at_once  groups that `read` takes together
    times    how often the words of a group count: NIBBLES or 1
    step     by what the sum of products with them is to be multiplied, besides
    shifted  whether groups have a shift: what Σ a counts
    summed   whether dot products need Σ a: for that or, with `unsigned` words, for what these are too large by
    """

    def __init__(self, k: Builder, rows: int, columns: int, packing: str, at_once: int = 1) -> None:
        form, how = Packing.parse(packing), Packing.parse(packing).about
        if (form.rows, form.unsigned) != (1, False) or form.chunk * how.fields != GROUP:
            raise AssertionError(f"packing {packing} is not a GPU's")
        self.k, self.form, self.how, self.blocks, self.at_once = k, form, how, columns // GROUP, at_once
        self._nibbles = how.fields == 2 and not how.levels
        self.times = NIBBLES if self._nibbles else 1
        steps = {b - a for a, b in zip(how.levels, how.levels[1:], strict=False)}
        even = len(steps) == 1
        self.step: int = steps.pop() if even else 1
        self._looked_up = bool(how.levels) and not even
        self.shifted = how.zero or even
        signed = self._nibbles or how.fields == 1 or self._looked_up
        self._excess = _SIGN if k.unsigned_dots and signed else 0
        self.summed = self.shifted or self._excess > 0
        stored = form.stored(rows, columns)
        self._data = _Stream(k, "w", rows * self.blocks, group_bytes(packing), at_once)
        self._scale = k.buffer("scale_w", stored[".scale"][0][:2], "float16")
        self._high, self._zero = None, None
        if how.high_bits:
            self._high = _Stream(k, "high_w", rows * self.blocks, GROUP * how.high_bits // 8, at_once)
        if how.zero:
            self._zero = k.buffer("zero_w", stored[".zero"][0][:2], "int32")

    def read(self, row: Expr, first: Expr) -> list[Group]:
        """`at_once` groups of a row, from group `first` on, a multiple of as many."""
        at = row * self.blocks + first
        data, high = self._data.read(at), self._high.read(at) if self._high is not None else []
        each, more = len(data) // self.at_once, len(high) // self.at_once
        return [
            Group(
                self,
                data[i * each : (i + 1) * each],
                high[i * more : (i + 1) * more],
                self.scale(row, first + i),
                self.shift(row, first + i) if self.shifted else None,
            )
            for i in range(self.at_once)
        ]

    @property
    def n_words(self) -> int:
        """Words that a group is stored in."""
        return (self._data.n_words + (self._high.n_words if self._high else 0)) // self.at_once

    def scale(self, row: Expr, group: Expr) -> Expr:
        return self.k.bind(tirx.Cast("float32", self._scale[row, of_scale(self.form, group)]))

    def shift(self, row: Expr, group: Expr) -> Expr:
        """What Σ a counts in a group, int32."""
        if self._zero is None:
            return i32(self.how.levels[0])
        each = 32 // self.how.bits
        at = of_scale(self.form, group)
        word = self._zero[row, quotient(at, each)]
        zero = (word >> (remainder(at, each) * self.how.bits)) & i32(self.how.top)
        return self.k.bind(i32(1 << self.how.bits - 1) - zero)

    def product(self, dot: Expr, shift: Expr | None, total: Expr | None) -> Expr:
        """`times` · Σ weight · a, from Σ factors · a and Σ a, int32 both."""
        if self._excess:
            dot = dot - total * i32(self._excess)
        dot = dot if self.step == 1 else dot * i32(self.step)
        return dot if shift is None else dot + shift * (total if self.times == 1 else total * i32(self.times))


class Group:
    """32 columns of a row, in registers. scale: float32. shift: int32, None where Σ a is not needed."""

    def __init__(self, weights: Weights, data: list[Expr], high: list[Expr], scale: Expr, shift: Expr | None) -> None:
        self._weights, self._data, self._high = weights, data, high
        self.scale, self.shift = scale, shift

    def stored(self) -> list[Expr]:
        """The words as they are in memory."""
        return [*self._data, *self._high]

    @classmethod
    def of(cls, weights: Weights, stored: list[Expr], scale: Expr, shift: Expr | None) -> Group:
        """The group with these words, scale and shift."""
        count = weights._data.n_words // weights.at_once
        return cls(weights, stored[:count], stored[count:], scale, shift)

    def factors(self) -> list[Expr]:
        """Four columns each, in order, as Builder.dot4 multiplies them."""
        bind = self._weights.k.bind
        if not self._weights._excess:
            return self.words()
        if self._weights._nibbles:
            turned = [bind(w ^ u32(8 * NIBBLES * _ONES + 8 * _ONES)) for w in self._data]
            return Group(self._weights, turned, [], self.scale, None).words()
        return [bind(word ^ u32(_SIGN * _ONES)) for word in self.words()]

    def words(self) -> list[Expr]:
        """Four columns each, as signed bytes, in order."""
        weights, bind = self._weights, self._weights.k.bind
        how = weights.how
        if how.fields == 1:
            return self._data
        if weights._nibbles:
            mask = u32(0xF0 * _ONES)
            return [bind(part & mask) for parts in ([w << u32(4) for w in self._data], self._data) for part in parts]
        found = []
        for field in range(how.fields):
            for j, word in enumerate(self._data):
                code = (word >> u32(how.low_bits * field)) & u32(((1 << how.low_bits) - 1) * _ONES)
                if self._high:
                    more = (self._high[0] >> u32(4 * j + field)) & u32(_ONES)
                    code = code | (more << u32(how.low_bits))
                found.append(bind(code))
        return [_look_up(weights.k, word, how.levels) for word in found] if weights._looked_up else found

    def floats(self) -> list[Expr]:
        """Each column's, to be multiplied by `step` and added to `shift`; nibbles count once."""
        bind = self._weights.k.bind
        if not self._weights._nibbles:
            return [bind(tirx.Cast("float32", signed_byte(word, byte))) for word in self.words() for byte in range(4)]
        signed = [bind(tirx.Cast("int32", word)) for word in self._data]
        places = [(word, shift - 8 * byte) for shift in (28, 24) for word in signed for byte in range(4)]
        return [bind(tirx.Cast("float32", (word << i32(shift)) >> i32(28))) for word, shift in places]


class _Stream:
    """Bytes of groups one after another, `at_once` of them in as few loads as possible."""

    def __init__(self, k: Builder, name: str, groups: int, each_bytes: int, at_once: int) -> None:
        self.k, self.n_words, self.at_once = k, each_bytes * at_once // 4, at_once
        self.lanes = next(lanes for lanes in (4, 2, 1) if self.n_words % lanes == 0)
        self.buffer: Any = k.vectors(name, groups * each_bytes, self.lanes)

    def read(self, group: Expr) -> list[Expr]:
        loads = self.n_words // self.lanes
        at = group if self.at_once == 1 else quotient(group, self.at_once)
        found = [self.k.bind(self.buffer[at * loads + i]) for i in range(loads)]
        if self.lanes == 1:
            return found
        return [self.k.bind(tirx.Shuffle([vector], [i])) for vector in found for i in range(self.lanes)]


def group_bytes(packing: str) -> int:
    """Of the tensor that holds a group's weights, or of 3 bits the lower two."""
    return GROUP // Packing.parse(packing).about.fields


def _look_up(k: Builder, codes: Expr, levels: tuple[int, ...]) -> Expr:
    """The levels of four numbers, all as bytes of a word: one bit after another decides between halves of the table."""
    found = [u32((level % 256) * _ONES) for level in levels]
    for bit in range((len(levels) - 1).bit_length()):
        ones = k.bind((codes >> u32(bit)) & u32(_ONES))
        mask = k.bind((ones << u32(8)) - ones)
        found = [k.bind(a ^ ((a ^ b) & mask)) for a, b in zip(found[::2], found[1::2], strict=True)]
    return found[0]
