"""The KV cache as GPU kernels see it: the CPU's layout (crosscompile/kernels/kv_cache.py), in f16, f32 or int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, i32, lane, quotient, remainder, signed_byte
from crosscompile.kernels.kv_cache import BLOCKS_CAP, KV_BLOCK, SCALE_BYTES, SESSIONS_CAP, Heads, kv_dtype


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
    def parameters(cls, k: Builder, n: int, heads: Heads, runs: bool = False) -> Cache:
        """Declares them for n rows. runs: keys and values are read eight at a time, by `run`."""
        positions, slots = k.buffer("positions", (n,), "int32"), k.buffer("slots", (n,), "int32")
        table = k.buffer("block_table", (SESSIONS_CAP, tirx.Var("table_cap", "int32")), "int32")
        size = BLOCKS_CAP // heads.kv // heads.dim * heads.kv * heads.dim * KV_BLOCK  # a bound that fits int32

        def state(name: str) -> Any:
            if not runs:
                return k.buffer(name, (size,), kv_dtype(heads.dtype))
            if heads.dtype == "i8":
                return k.vectors(name, size, 2)
            return k.quads(name, size * 4, "float32") if heads.dtype == "f32" else k.quads(name, size * 2)

        return cls(heads, positions, slots, table, state("k"), state("v"))

    def place(self, k: Builder, m: Expr, position: Expr) -> tuple[Expr, Expr]:
        """(block of the pool, column in it) of a row's position ≥ 0."""
        logical = quotient(position, KV_BLOCK)
        block = k.bind(self.table[self.slots[m], logical])
        return block, k.bind(remainder(position, KV_BLOCK))

    def start(self, block: Expr, head: Expr) -> Expr:
        """Where a head's part of a block begins, in keys and in values."""
        each = self.heads.dim + (SCALE_BYTES if self.quantized else 0)
        return (block * self.heads.kv + head) * (each * KV_BLOCK)

    @property
    def quantized(self) -> bool:
        """Whether elements are int8, each position's with a scale behind the block's."""
        return self.heads.dtype == "i8"

    def run(self, k: Builder, buffer: Any, at: Expr) -> list[Expr]:
        """Eight elements, from a multiple of eight on, of keys or values that are read so; int8 not yet scaled."""
        if self.heads.dtype == "f32":
            pair = [k.bind(buffer[quotient(at, 4) + i]) for i in range(2)]
            return [lane(quad, i) for quad in pair for i in range(4)]
        vector = k.bind(buffer[quotient(at, 8)])
        if self.heads.dtype == "f16":
            return [k.bind(value) for i in range(4) for value in k.halves(lane(vector, i))]
        words = [lane(vector, i) for i in range(2)]
        return [k.bind(tirx.Cast("float32", signed_byte(word, byte))) for word in words for byte in range(4)]

    def run_of_scales(self, k: Builder, buffer: Any, start: Expr, place: Expr) -> list[Expr]:
        """Scales of eight positions, from a multiple of eight on, of int8 that is read by runs."""
        first = k.bind(quotient(self._scale_place(start, place), 8))
        pairs = [k.bind(buffer[first + i]) for i in range(4)]
        return [k.bind(tirx.reinterpret("float32", lane(pair, i))) for pair in pairs for i in range(2)]

    def scale(self, k: Builder, buffer: Any, start: Expr, place: Expr) -> Expr:
        """The scale of one position, of int8 that is read byte by byte."""
        at = k.bind(self._scale_place(start, place))
        return k.bind(tirx.reinterpret("float32", tirx.Shuffle([buffer[at + i] for i in range(4)], [0, 1, 2, 3])))

    def put_key(self, k: Builder, value: Expr, block: Expr, head: Expr, d: Expr, column: Expr) -> None:
        k.store(self.keys, self._narrow(value), self.start(block, head) + d * KV_BLOCK + column)

    def put_value(self, k: Builder, value: Expr, block: Expr, head: Expr, d: Expr, column: Expr) -> None:
        k.store(self.values, self._narrow(value), self.start(block, head) + column * self.heads.dim + d)

    def put_scale(self, k: Builder, buffer: Any, scale: Expr, block: Expr, head: Expr, column: Expr) -> None:
        """Of the vector at a position, where elements are int8."""
        at = k.bind(self._scale_place(self.start(block, head), column))
        bits = k.bind(tirx.reinterpret("int32", scale))
        for byte in range(SCALE_BYTES):
            k.store(buffer, tirx.Cast("int8", bits >> i32(8 * byte)), at + byte)

    def _scale_place(self, start: Expr, column: Expr) -> Expr:
        return start + self.heads.dim * KV_BLOCK + column * SCALE_BYTES

    def _narrow(self, value: Expr) -> Expr:
        return value if self.heads.dtype == "f32" else tirx.Cast(kv_dtype(self.heads.dtype), value)
