"""One side of a product that a workgroup computes by tiles: how its rows lie in shared memory, and whose they are."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, lane, quotient, remainder

EDGE = 4
"""Of the squares of threads that are neighbors."""


class Side:
    """The rows of a tile on one side: `size`, of which `mine` are a thread's, and of `threads` others.

    In shared memory the rows of a word lie side by side, and so do a thread's, up to four of them: one load gives it
    those, and its neighbors' lie beside them. That is one line of a cache for a subgroup of 16 (Mali's shared memory is
    one), and no two threads want the same bank.
    """

    def __init__(self, k: Builder, size: int, mine: int, lanes: int = 4) -> None:
        """lanes: most rows that lie in a vector."""
        self.k, self.size, self.mine, self.threads = k, size, mine, size // mine
        self.lanes = next(count for count in (4, 2, 1) if count <= lanes and mine % count == 0)

    def array(self, dtype: str, words: int = 1) -> Any:
        """Shared memory for so many words of each row."""
        return self.k.shared(words * self.size // self.lanes, dtype if self.lanes == 1 else f"{dtype}x{self.lanes}")

    def row(self, thread: Expr, i: int) -> Expr:
        """Which row the i-th of a thread is."""
        return (thread + i // self.lanes * self.threads) * self.lanes + i % self.lanes

    def place(self, row: Expr) -> tuple[Expr, ...]:
        """Where a row lies, for `put`."""
        if self.lanes == 1:
            return (row,)
        return self.k.bind(quotient(row, self.lanes)), self.k.bind(remainder(row, self.lanes))

    def put(self, buffer: Any, value: Expr, place: tuple[Expr, ...], word: Any = 0) -> None:
        """A word of a row."""
        first, *lane_of = place
        at = first + word * (self.size // self.lanes)
        if lane_of:
            self.k.store_lane(buffer, value, at, *lane_of)
        else:
            self.k.store(buffer, value, at)

    def read(self, buffer: Any, thread: Expr, word: Any = 0) -> list[Expr]:
        """A word of each of a thread's rows."""
        k, each = self.k, self.lanes
        runs = [thread + (i * self.threads + word * (self.size // each)) for i in range(self.mine // each)]
        found = [k.bind(buffer[run]) for run in runs]
        return found if each == 1 else [k.bind(lane(vector, i)) for vector in found for i in range(each)]

    def write(self, buffer: Any, thread: Expr, values: list[Expr], word: Any = 0) -> None:
        """The reverse of `read`."""
        k, each = self.k, self.lanes
        for i in range(self.mine // each):
            at = thread + (i * self.threads + word * (self.size // each))
            own = values[i * each : (i + 1) * each]
            k.store(buffer, own[0] if each == 1 else tirx.Shuffle(own, list(range(each))), at)


def square(k: Builder, thread: Expr, across: Side, down: Side) -> tuple[Expr, Expr]:
    """(which of the threads of one side, and which of the other's) a thread is.

    Neighbors are squares of four by four, which read the same few rows, not sixteen of one side.
    """
    edge_a, edge_d = min(across.threads, EDGE), min(down.threads, EDGE)
    in_row = k.bind(quotient(thread, edge_a))
    which = k.bind(quotient(in_row, edge_d))
    wide = across.threads // edge_a
    a = remainder(which, wide) * edge_a + remainder(thread, edge_a)
    d = quotient(which, wide) * edge_d + remainder(in_row, edge_d)
    return k.bind(a), k.bind(d)
