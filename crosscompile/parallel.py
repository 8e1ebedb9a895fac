"""Work on large arrays in parts that fit a cache, on all cores: NumPy computes outside Python's lock."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PART = 1 << 16
"""Numbers that a thread takes at a time: as float32, with what is made of them, they fit the second cache."""


def in_parts(n: int, size: int, work: Callable[[slice], None]) -> None:
    """Calls `work` with slices of [0, n), of at most `size`, on as many threads as there are cores.

    The first error is raised. `work` must not call this itself.
    """
    parts = [slice(at, min(at + size, n)) for at in range(0, n, size)]
    if len(parts) > 1:
        list(_threads().map(work, parts))
    elif parts:
        work(parts[0])


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "parts")
