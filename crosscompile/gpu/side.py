"""One side of a product that a workgroup computes by tiles: how its rows lie in shared memory, and whose they are."""

from __future__ import annotations

from typing import Any

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, quotient, remainder

EDGE = 4
"""Of the squares of threads that are neighbors."""


class Side:
    """The rows of a tile on one side: `size`, of which `mine` are a thread's, and of `threads` others.

    In shared memory the rows of a word lie side by side, and so do a thread's, up to four of them, which drivers make
    one load of; its neighbors' lie beside them. That is one line of a cache for a subgroup of 16 (Mali's shared memory
    is one), and no two threads want the same bank.
    """

    def __init__(self, k: Builder, size: int, mine: int) -> None:
        self.k, self.size, self.mine, self.threads = k, size, mine, size // mine
        self._run = next(count for count in (4, 2, 1) if mine % count == 0)

    def array(self, dtype: str = "float32", words: int = 1) -> Any:
        """Shared memory for so many words of each row, `word` · size + row."""
        return self.k.shared(words * self.size, dtype)

    def row(self, thread: Expr, i: int) -> Expr:
        """Which row the i-th of a thread is."""
        return (thread + i // self._run * self.threads) * self._run + i % self._run

    def read(self, buffer: Any, thread: Expr, word: Any = 0) -> list[Expr]:
        """A word of each of a thread's rows."""
        return [self.k.bind(buffer[self.row(thread, i) + word * self.size]) for i in range(self.mine)]

    def write(self, buffer: Any, thread: Expr, values: list[Expr], word: Any = 0) -> None:
        """The reverse of `read`."""
        for i, value in enumerate(values):
            self.k.store(buffer, value, self.row(thread, i) + word * self.size)


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
