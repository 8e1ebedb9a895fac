"""Which experts rows go to where a mixture's layers are measured by themselves: as many as a router would choose.

No router runs there, and inputs come from memory that nobody has filled: a kernel writes the ids of all turns first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from tvm import tirx

from crosscompile.gpu.build import Builder, gpu_kernel, i32
from crosscompile.kernels.build import Builder as Declaration
from crosscompile.kernels.build import kernel, kernel_maker
from crosscompile.plan import aligned
from crosscompile.spirv.capabilities import Gpu

_MOST_TURNS, _MASK = 256, 0x7FFF


@dataclass(frozen=True)
class Picks:
    """`used` different ones of `total` experts for each of n tokens; other ones in each turn, until all had theirs.

    Tokens of one turn are as likely to share an expert as if each had chosen at random.
    """

    n: int
    used: int
    total: int

    def of_turn(self, turn: int) -> np.ndarray:
        """(n, used) int32."""
        scattered = _scattered(np.arange(self.n)[:, None], lambda value: value)
        return ((turn * self.used + np.arange(self.used)) * self.stride + scattered).astype(np.int32) % self.total

    @property
    def distinct(self) -> int:
        """Experts of a turn that have rows."""
        return len(np.unique(self.of_turn(0)))

    @property
    def turns(self) -> int:
        """Turns until experts repeat, about."""
        return min(max(self.total // self.distinct, 1), _MOST_TURNS)

    @property
    def stride(self) -> int:
        """From one expert of a token to its next: neighbours in memory are no neighbours here."""
        return next(each for each in range(self.total * 3 // 8 + 1, 2 * self.total) if gcd(each, self.total) == 1)

    @property
    def row_elements(self) -> int:
        """Of a turn: its ids, and what lies between them and the next."""
        return aligned(4 * self.n * self.used) // 4


def _scattered(m: Any, bind: Callable[[Any], Any]) -> Any:
    """A number for a token, of fewer than 2¹⁵: 0 for the first, as if at random for others. Nothing exceeds 31 bits."""
    first = bind((m * 12653) & _MASK)
    second = bind(((first * first) >> 5) & _MASK)
    third = bind((second * 25931) & _MASK)
    return bind(((third * third) >> 9) & _MASK)


@kernel_maker
def pick_experts(picks: Picks) -> tirx.PrimFunc:
    """() -> ids (turns, row_elements) int32, for planning; only GPUs have it."""

    def body(k: Declaration) -> None:
        ids = k.buffer("ids", (picks.turns, picks.row_elements), "int32")
        with k.shared(1) as unit:
            k.store(ids, tirx.const(0, "int32"), unit, 0)

    return kernel("pick_experts", body)


def picking_kernel(name: str, gpu: Gpu, picks: Picks) -> tirx.PrimFunc:
    """The GPU's pick_experts: a thread for each id."""
    used, total = picks.used, picks.total

    def body(k: Builder) -> None:
        ids = k.buffer("ids", (picks.turns, picks.row_elements), "int32")
        with k.each(picks.turns, picks.n * used) as (turn, at):
            m, j = k.bind(tirx.truncdiv(at, i32(used))), k.bind(tirx.truncmod(at, i32(used)))
            k.store(ids, tirx.truncmod((turn * used + j) * picks.stride + _scattered(m, k.bind), i32(total)), turn, at)

    return gpu_kernel(name, gpu, body)
