"""The KV cache as kernels see it: blocks of 64 positions, found through a block table.

States: k and v of a layer, each (blocks, kv heads, …): keys (dim, 64) and values (64, dim), so that neither the scores
nor the weighted sum needs a reduction across lanes. With int8, each key and value of a head is quantized alone, and the
64 scales, float32, follow the block's bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from crosscompile.arithmetic import LANES, Expr, constant, integer_product, magnitude, tree_max
from crosscompile.kernels.build import Builder, cast, prefetch, span

KV_BLOCK = 64
"""Positions per block of the KV cache, and per step of the online softmax."""

BLOCKS_CAP, SESSIONS_CAP = 1 << 20, 1 << 12
"""Bounds that stand for sizes only the runtime knows. Nothing is allocated by them."""

LINE_BYTES = 64
"""Of a cache line, on all boards."""

SCALE_BYTES = 4
"""Of one position of one head, where the cache is int8."""

_DTYPES = {"f32": "float32", "f16": "float16", "i8": "int8"}


@dataclass(frozen=True)
class Heads:
    """Shape of an attention layer.

    dtype    of the cache: f32, f16 or i8
    window   positions visible to a row, 0 for all
    factor   what scores are multiplied by; None: 1 / √dim
    cap      where tanh flattens scores, 0 for never
    """

    query: int
    kv: int
    dim: int
    dtype: str
    window: int
    factor: float | None = None
    cap: float = 0.0

    @property
    def scores(self) -> float:
        """What scores are multiplied by."""
        return self.dim**-0.5 if self.factor is None else self.factor


def state_shapes(heads: Heads) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of k and v. The first dimension is a bound; how many blocks there are is decided at open."""
    if heads.dtype == "i8":
        flat = (BLOCKS_CAP, heads.kv, KV_BLOCK * (heads.dim + SCALE_BYTES))
        return flat, flat
    return (BLOCKS_CAP, heads.kv, heads.dim, KV_BLOCK), (BLOCKS_CAP, heads.kv, KV_BLOCK, heads.dim)


def state_bytes(heads: Heads) -> int:
    """Bytes that k, and v, take per block."""
    return int(np.prod(state_shapes(heads)[0][1:])) * int(np.dtype(kv_dtype(heads.dtype)).itemsize)


def table_shape() -> tuple[Any, ...]:
    """Shape of the block table, (sessions, table_cap): the sessions a bound, table_cap a scalar of the kernel."""
    return SESSIONS_CAP, tirx.Var("table_cap", "int64")


def kv_dtype(name: str) -> str:
    """TVM's name of a cache dtype."""
    return _DTYPES[name]


@dataclass(frozen=True)
class Half:
    """One of a layer's two states. transposed: it holds keys, (dim, 64), else values, (64, dim)."""

    heads: Heads
    state: Any
    transposed: bool

    def vector(self, block: Expr, head: Expr, dimension: Any, position: Any) -> Expr:
        """16 elements as float32, not yet scaled: positions of a dimension, or dimensions of a position."""
        place = self._place(dimension, position, span)
        return cast(f"float32x{LANES}", self.state[(block, head) + tuple(place)])

    def ask(self, block: Expr, head: Expr, step: Expr, steps: int) -> None:
        """Prefetches what belongs to one of `steps` steps, if a head's part of a block is asked for evenly.

        Into the second cache: the first is no larger than this block and that one.
        """
        inner = self.state.shape[2:]
        elements = int(np.prod([int(size) for size in inner]))
        line = LINE_BYTES // int(np.dtype(kv_dtype(self.heads.dtype)).itemsize)
        for start in range(0, max(1, elements // steps), line):
            at = step * elements // steps + start
            place = (at,) if len(inner) == 1 else (at // inner[1], at % inner[1])
            prefetch(self.state[(block, head) + place], level=2)

    def _place(self, dimension: Any, position: Any, last: Callable[[Any], Any]) -> list[Any]:
        """Indices of an element within a head's part of a block; `last` is applied to the innermost."""
        if self.heads.dtype == "i8":
            return [last(self._flat(dimension, position))]
        return [dimension, last(position)] if self.transposed else [position, last(dimension)]

    def _flat(self, dimension: Any, position: Any) -> Any:
        return dimension * KV_BLOCK + position if self.transposed else position * self.heads.dim + dimension

    def scale(self, block: Expr, head: Expr, position: Any) -> Expr | None:
        """Scales of 16 positions, where there are any."""
        if self.heads.dtype != "i8":
            return None
        at = self.heads.dim * KV_BLOCK + position * SCALE_BYTES
        stored = self.state.vload([block, head, at], dtype=f"int8x{LANES * SCALE_BYTES}")
        return T.reinterpret(f"float32x{LANES}", stored)

    def put(self, k: Builder, row: tuple[Expr, Expr, Expr], parts: list[tuple[Any, int, Any]]) -> None:
        """Stores a head's vector at row = (block, head, position).

        parts: buffers with their length and the dimension that they begin at; together the whole vector.
        """
        block, head, position = row
        dtype = kv_dtype(self.heads.dtype)
        inverse = self._put_scale(k, row, parts) if self.heads.dtype == "i8" else None
        for buffer, length, dimension in parts:
            lanes = gcd(length, LANES)
            with k.loop(0, length // lanes) as c:
                value = buffer[span(c * lanes, lanes)]
                if inverse is not None:
                    value = k.bind(integer_product(value, tirx.Broadcast(inverse, lanes)))
                if not self.transposed:
                    place = self._place(dimension + c * lanes, position, lambda start: span(start, lanes))
                    k.store(self.state, cast(f"{dtype}x{lanes}", value), block, head, *place)
                    continue
                for i in k.unrolled(lanes):
                    d = dimension + c * lanes + i
                    one = buffer[c * lanes + i] if inverse is None else tirx.Shuffle([value], [i])
                    k.store(self.state, cast(dtype, one), block, head, *self._place(d, position, lambda at: at))

    def _put_scale(self, k: Builder, row: tuple[Expr, Expr, Expr], parts: list[tuple[Any, int, Any]]) -> Expr:
        """Stores max|x| / 127 of a vector and returns 127 / max|x|, 0 for a vector of zeros."""
        block, head, position = row
        largest = k.local(LANES)
        k.fill(largest, LANES)
        for buffer, length, _ in parts:
            lanes = gcd(length, LANES)
            with k.loop(0, length // lanes) as c:
                wider = tirx.Max(largest[span(0, lanes)], magnitude(buffer[span(c * lanes, lanes)]))
                k.store(largest, wider, span(0, lanes))
        most = k.bind(tree_max(largest[span(0)]))
        scale = T.reinterpret(f"int8x{SCALE_BYTES}", most * constant(1.0 / 127.0, 1))
        k.store(self.state, scale, block, head, span(self.heads.dim * KV_BLOCK + position * SCALE_BYTES, SCALE_BYTES))
        return k.bind(tirx.Select(most > constant(0.0, 1), constant(127.0, 1) / most, constant(0.0, 1)))


@dataclass(frozen=True)
class Cache:
    """The parameters by which a kernel reaches a layer's cache, in the order of its signature."""

    positions: Any
    slots: Any
    block_table: Any
    keys: Half
    values: Half

    @classmethod
    def parameters(cls, k: Builder, n: int, heads: Heads) -> Cache:
        """Declares them for n rows."""
        positions, slots = k.buffer("positions", (n,), "int32"), k.buffer("slots", (n,), "int32")
        block_table = k.buffer("block_table", table_shape(), "int32")
        states = [
            k.buffer(name, shape, kv_dtype(heads.dtype)) for name, shape in zip("kv", state_shapes(heads), strict=True)
        ]
        return cls(positions, slots, block_table, Half(heads, states[0], True), Half(heads, states[1], False))

    def block(self, slot: Expr, logical: Expr) -> Expr:
        """The pool's block that holds a session's positions from 64 · logical on."""
        return cast("int64", self.block_table[slot, logical])
