"""The KV cache as GPU kernels see it: the CPU's layout (crosscompile/kernels/kv_cache.py), in f16 or f32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, i32, lane
from crosscompile.kernels.kv_cache import BLOCKS_CAP, KV_BLOCK, SESSIONS_CAP, Heads, kv_dtype

_QUADS = {"f16": "uint32", "f32": "float32"}


@dataclass(frozen=True)
class Cache:
    """The parameters by which a kernel reaches a layer's cache, in the order of its signature."""

    heads: Heads
    positions: Any
    slots: Any
    table: Any
    keys: Any
    values: Any

    @classmethod
    def parameters(cls, k: Builder, n: int, heads: Heads, quads: bool = False) -> Cache:
        """Declares them for n rows. quads: keys and values are read 16 bytes at a time, by `run`."""
        positions, slots = k.buffer("positions", (n,), "int32"), k.buffer("slots", (n,), "int32")
        table = k.buffer("block_table", (SESSIONS_CAP, tirx.Var("table_cap", "int32")), "int32")
        size = BLOCKS_CAP // heads.kv // heads.dim * heads.kv * heads.dim * KV_BLOCK  # a bound that fits int32
        if quads:
            keys, values = (
                k.quads(name, size * (2 if heads.dtype == "f16" else 4), _QUADS[heads.dtype]) for name in "kv"
            )
        else:
            keys, values = (k.buffer(name, (size,), kv_dtype(heads.dtype)) for name in "kv")
        return cls(heads, positions, slots, table, keys, values)

    def place(self, k: Builder, m: Expr, position: Expr) -> tuple[Expr, Expr]:
        """(block of the pool, column in it) of a row's position ≥ 0."""
        logical = tirx.truncdiv(position, i32(KV_BLOCK))
        block = k.bind(self.table[self.slots[m], logical])
        return block, k.bind(tirx.truncmod(position, i32(KV_BLOCK)))

    def start(self, block: Expr, head: Expr) -> Expr:
        """Where a head's part of a block begins, in keys and in values."""
        return (block * self.heads.kv + head) * (self.heads.dim * KV_BLOCK)

    def run(self, k: Builder, buffer: Any, at: Expr) -> list[Expr]:
        """Eight elements, from a multiple of eight on, of keys or values that are read 16 bytes at a time."""
        if self.heads.dtype == "f16":
            quad = k.bind(buffer[tirx.truncdiv(at, i32(8))])
            return [k.bind(value) for i in range(4) for value in k.halves(lane(quad, i))]
        pair = [k.bind(buffer[tirx.truncdiv(at, i32(4)) + i]) for i in range(2)]
        return [lane(quad, i) for quad in pair for i in range(4)]

    def put_key(self, k: Builder, value: Expr, block: Expr, head: Expr, d: Expr, column: Expr) -> None:
        k.store(self.keys, self._narrow(value), self.start(block, head) + d * KV_BLOCK + column)

    def put_value(self, k: Builder, value: Expr, block: Expr, head: Expr, d: Expr, column: Expr) -> None:
        k.store(self.values, self._narrow(value), self.start(block, head) + column * self.heads.dim + d)

    def _narrow(self, value: Expr) -> Expr:
        return tirx.Cast("float16", value) if self.heads.dtype == "f16" else value
