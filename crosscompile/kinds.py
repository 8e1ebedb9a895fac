"""The table of kinds: in how many bits a quantized weight is stored, and which integers may stand there.

A weight is integer · scale, with a float16 scale for every 32, 64 or 128 columns of a row. A new kind is a line of this
table; packing, kernels, rounding and reference follow from what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from crosscompile.errors import ConfigError

GROUP = 32
"""Columns that are multiplied before there is a scale: activations have one for each such group, weights at most."""
LARGER = (64, 128)
"""Columns that may share a scale of weights, besides."""

IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""ggml's kvalues_iq4nl: close together where most weights are."""


@dataclass(frozen=True)
class Kind:
    """How the weights of a kind are stored, and multiplied.

    bits        stored of a weight, besides what its group shares
    low, high   the least and the greatest integer: int8, or with 8 bits and a zero point int16
    like        "w4" or "w8": whose instructions multiply it, as nibbles or as bytes
    levels      the integers that the stored numbers, 0 and up, stand for, ascending; (): they stand for themselves
    zero        a group has a zero point of as many bits, which is what 0 is stored as
    narrowest   of the scale that just reaches a group's extreme value, the smallest part worth trying
    group       columns that share a scale, and a zero point
    """

    name: str
    bits: int
    low: int
    high: int
    like: str
    levels: tuple[int, ...] = ()
    zero: bool = False
    narrowest: float = 0.70
    group: int = GROUP

    @property
    def base(self) -> str:
        """The kind of the same integers in groups of 32."""
        return self.name.partition("g")[0]

    @property
    def span(self) -> int:
        """How many groups of 32 columns share a scale."""
        return self.group // GROUP

    @property
    def dtype(self) -> np.dtype:
        """Of the integers."""
        return np.dtype(np.int8 if self.high < 128 else np.int16)

    @property
    def top(self) -> int:
        """The greatest stored number, of kinds that have zero points."""
        return (1 << self.bits) - 1

    @property
    def stored_bits(self) -> float:
        """Bits of a weight with its part of what the group shares."""
        return self.bits + (16 + (self.bits if self.zero else 0)) / self.group

    @property
    def low_bits(self) -> int:
        """Bits of a weight in the bytes that hold those of several; of 3 the last one lies elsewhere."""
        return 2 if self.bits == 3 else self.bits

    @property
    def fields(self) -> int:
        """Weights whose low bits share a byte."""
        return 8 // self.low_bits

    @property
    def high_bits(self) -> int:
        """Bits of a weight that lie in bytes of their own, four weights' a nibble."""
        return self.bits - self.low_bits

    @cached_property
    def _nearest(self) -> np.ndarray:
        """The nearest level for each half, rounded down, from `low` on: levels meet at whole halves."""
        at = np.arange(2 * self.low, 2 * self.high + 1) + 0.5
        middles = np.add(self.levels[1:], self.levels[:-1])  # halves
        return np.array(self.levels, np.float32)[np.searchsorted(middles, at)]

    @cached_property
    def _codes(self) -> np.ndarray:
        """The stored number by integer + 128; 255 for integers that are no level."""
        made = np.full(256, 255, np.uint8)
        made[np.array(self.levels) + 128] = np.arange(len(self.levels))
        return made

    def whole(self, values: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """The kind's integers nearest to values, float32; values in the middle of two levels go up.

        zero: of kinds that have one, float32, broadcast against values. Values that are not finite give any integer.
        """
        if not self.levels:
            low, high = (self.low, self.high) if zero is None else (-zero, np.float32(self.top) - zero)
            made: np.ndarray = np.rint(values)
            return np.clip(made, low, high, out=made)
        inside = np.fmin(np.fmax(values, np.float32(self.low)), np.float32(self.high))  # of NaN, low
        at = np.floor(inside + inside).astype(np.intp)
        at -= 2 * self.low
        return self._nearest.take(at)

    def codes(self, q: np.ndarray) -> np.ndarray:
        """What is stored for the integers q of a kind with levels: uint8. Zeros of padding give any."""
        return self._codes[q.astype(np.intp) + 128] & np.uint8(len(self.levels) - 1)

    def fits(self, q: np.ndarray) -> bool:
        """Whether integers, (rows, columns) int8 or int16, are all among the kind's, in groups of its size."""
        if not q.size or q.shape[-1] % self.group:
            return False
        if self.levels:
            return bool(int(q.min()) >= -128 and int(q.max()) < 128) and bool(
                (self._codes[q.astype(np.intp) + 128] != 255).all()
            )
        if int(q.min()) < self.low or int(q.max()) > self.high:
            return False
        if not self.zero:
            return True
        groups = q.reshape(-1, self.group).astype(np.int16)
        return bool((np.maximum(groups.max(1), 0) - np.minimum(groups.min(1), 0) <= self.top).all())


def zero_points(q: np.ndarray, group: int = GROUP) -> np.ndarray:
    """The zero point of each group of q (…, columns), integers that fit a kind with zeros: (…, columns / group) uint8.

    The least with which all of the group is stored as 0 and up; weights do not depend on which it is.
    """
    groups = q.reshape(*q.shape[:-1], -1, group)
    found: np.ndarray = (-np.minimum(groups.min(-1), 0)).astype(np.uint8)
    return found


BASES = (
    Kind("w8", 8, -127, 127, "w8"),
    Kind("u8", 8, -255, 255, "w8", zero=True, narrowest=0.94),
    Kind("w4", 4, -8, 7, "w4"),
    Kind("n4", 4, IQ4_NL[0], IQ4_NL[-1], "w8", levels=IQ4_NL),
    Kind("u4", 4, -15, 15, "w4", zero=True),
    Kind("w3", 3, -7, 7, "w8", levels=tuple(range(-7, 8, 2)), narrowest=0.58),
    Kind("w2", 2, -3, 3, "w8", levels=tuple(range(-3, 4, 2)), narrowest=0.40),
)
"""In groups of 32. Integers of w3 and w2 are odd: levels on both sides of nothing, none of them wasted."""
KINDS: dict[str, Kind] = {kind.name: kind for kind in BASES} | {
    f"{kind.name}g{group}": replace(kind, name=f"{kind.name}g{group}", group=group)
    for kind in BASES
    for group in LARGER
}
"""By name, as packings have it: those in larger groups end in their size, as w4g128 does."""


def of_base(name: str) -> list[Kind]:
    """The kinds of the same integers, the largest groups first."""
    return sorted((kind for kind in KINDS.values() if kind.base == KINDS[name].base), key=lambda kind: -kind.group)


def check_columns(tensor: str, columns: int, kind: str) -> None:
    """ConfigError, with what to take instead, where a kind's groups do not divide a tensor's columns."""
    if columns % KINDS[kind].group == 0:
        return
    fitting = [f"{each.name}a8" for each in of_base(kind) if columns % each.group == 0]
    raise ConfigError(
        f"scheme {kind}a8: {tensor} has {columns} columns, which groups of {KINDS[kind].group} do not divide; "
        f"take {' or '.join(fitting or ['f16'])}"
    )
