"""A tile of weights and activations as vectors: what is stored unpacked to 8-bit weights, in registers.

The same for one weight at a time, int32: descriptions of intrinsics, and look-ups of embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from crosscompile.arithmetic import Expr
from crosscompile.kernels.build import bind
from crosscompile.packing import GROUP, Packing
from crosscompile.target import Tier


def call(dtype: str, name: str, *args: Expr) -> Expr:
    """An LLVM intrinsic without side effects."""
    return T.call_llvm_pure_intrin(dtype, name, *args)


def splat(x: Expr, lanes: int, dtype: str) -> Expr:
    """A scalar's bits repeated over `lanes` lanes, seen as a vector of `dtype`."""
    return T.reinterpret(dtype, T.broadcast(x, lanes))


def weight_shape(form: Packing) -> tuple[int, int, int]:
    """(chunks, R, I): the stored bytes of one group of columns of one row group."""
    return (GROUP // form.about.fields // form.chunk, form.rows, form.chunk)


class Tile:
    """What the instruction families see of one tile: its operands, and what it computes."""

    def __init__(
        self,
        tier: Tier,
        form: Packing,
        tokens: int,
        groups: int,
        rows: int,
        w: Any,
        a: Any,
        start: Any,
        high: Any = None,
    ) -> None:
        self.tier, self.form, self.tokens, self.groups, self.rows = tier, form, tokens, groups, rows
        self._w, self._a, self._start, self._high = w, a, start, high
        self._dtype = a.dtype
        self._rows: dict[tuple[int, int, int], Expr] = {}
        self._unpacked: dict[tuple[int, int, int], list[tuple[Expr, int]]] = {}

    def weights(self, group: int, chunk: int, row: int, lanes: int) -> Expr:
        """`lanes` stored bytes of a row group, from a chunk and row on."""
        return bind(self._w.vload([group, 0, chunk, row, 0], dtype=f"{self.form.dtype}x{lanes}"))

    def activations(self, token: int, column: int, lanes: int) -> Expr:
        """`lanes` columns of a token, loaded once."""
        key = (token, column, lanes)
        if key not in self._rows:
            self._rows[key] = bind(self._a.vload([token, 0, column], dtype=f"int8x{lanes}"))
        return self._rows[key]

    def repeated(self, token: int, column: int, lanes: int, repeat: int) -> Expr:
        """`lanes` columns of a token, `repeat` times over."""
        word = f"int{8 * lanes * (2 if self._dtype == 'int16' else 1)}"
        vector = self._a.vload([token, 0, column], dtype=f"{self._dtype}x{lanes}")
        return splat(T.reinterpret(word, vector), repeat, f"{self._dtype}x{repeat * lanes}")

    def start(self, token: int) -> Expr:
        """The group's word of `sum` of a token."""
        return self._start.vload([token, 0], dtype="int32")

    def biases(self, token: int, lanes: int) -> Expr | None:
        """What a token's sums start at, where that is read from a table."""
        return None if self._start is None else bind(self._start.vload([0, token, 0], dtype=f"int32x{lanes}"))

    def halves(self, vector: Expr, lanes: int) -> tuple[Expr, Expr]:
        """Low and high nibbles of bytes, as 0…15 (unsigned) or as 16 · q (signed: the top nibble of an int8)."""
        if self.form.dtype == "int8":
            return bind(vector << T.broadcast(T.int8(4), lanes)), bind(vector & T.broadcast(T.int8(-16), lanes))
        mask = T.broadcast(T.uint8(15), lanes)
        if self.tier.arch != "x86_64":
            return bind(vector & mask), bind(vector >> T.broadcast(T.uint8(4), lanes))
        # x86 shifts no bytes
        words = T.reinterpret(f"uint16x{lanes // 2}", vector) >> T.broadcast(T.uint16(4), lanes // 2)
        return bind(vector & mask), bind(T.reinterpret(f"uint8x{lanes}", words) & mask)

    def bits(self, vector: Expr, lanes: int, shift: int, mask: int) -> Expr:
        """Bytes shifted down by `shift`, up where it is negative, of which the bits of `mask` are left."""
        width, count = (16, lanes // 2) if self.tier.arch == "x86_64" else (8, lanes)  # x86 shifts no bytes
        words = T.reinterpret(f"uint{width}x{count}", vector)
        by = T.broadcast(T.Cast(f"uint{width}", T.uint8(abs(shift))), count)
        words = words if shift == 0 else words >> by if shift > 0 else words << by
        return T.reinterpret(f"uint8x{lanes}", words) & T.broadcast(T.uint8(mask), lanes)

    def parts(self, group: int, chunk: int, row: int, lanes: int) -> list[tuple[Expr, int]]:
        """A stored vector as 8-bit weights, each with its first column: one for every weight that shares a byte."""
        how, step = self.form.about, self.form.chunk
        if how.levels:
            key = (group, chunk, row)
            if key not in self._unpacked:
                self._unpacked[key] = self._levels(group, chunk, row, lanes)
            return self._unpacked[key]
        vector = self.weights(group, chunk, row, lanes)
        if how.fields == 1:
            return [(vector, chunk * step)]
        low, high = self.halves(vector, lanes)
        return [(low, 2 * chunk * step), (high, 2 * chunk * step + step)]

    def _levels(self, group: int, chunk: int, row: int, lanes: int) -> list[tuple[Expr, int]]:
        """The same of a kind with levels, looked up in the vector unit."""
        how, step = self.form.about, self.form.chunk
        vector = self.weights(group, chunk, row, lanes)
        first = how.fields * chunk * step
        if how.fields == 2:
            codes = list(self.halves(vector, lanes))
        else:
            mask = (1 << how.low_bits) - 1
            codes = [self.bits(vector, lanes, how.low_bits * field, mask) for field in range(how.fields)]
        if how.high_bits:
            at, nibble = high_place(self.form, (chunk * self.form.rows + row) * step)
            more = bind(self._high.vload([group, 0, at], dtype=f"uint8x{lanes}"))
            codes = [
                code | self.bits(more, lanes, 4 * nibble + field - how.low_bits, 1 << how.low_bits)
                for field, code in enumerate(codes)
            ]
        return [(bind(self._looked_up(bind(code), lanes)), first + field * step) for field, code in enumerate(codes)]

    def _looked_up(self, codes: Expr, lanes: int) -> Expr:
        """Levels by their numbers: one instruction of a vector's bytes on every architecture but ARMv7, where two."""
        dtype = f"{'uint8' if self.form.unsigned else 'int8'}x{lanes}"
        words = [tirx.const(word, "int32") for word in _table(self.form)]
        if self.tier.arch == "x86_64":
            name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}[lanes]
            table = T.reinterpret(f"int8x{lanes}", tirx.Shuffle(words * (lanes // 16), list(range(lanes // 4))))
            return T.reinterpret(dtype, call(f"int8x{lanes}", f"llvm.x86.{name}", table, codes))
        table = T.reinterpret("int8x16", tirx.Shuffle(words, list(range(4))))
        if self.tier.arch == "aarch64":
            return call(dtype, "llvm.aarch64.neon.tbl1.v16i8", table, codes)
        low, high = list(range(8)), list(range(8, 16))
        halves = [tirx.Shuffle([table], half) for half in (low, high)]
        found = [call("int8x8", "llvm.arm.neon.vtbl2", *halves, tirx.Shuffle([codes], half)) for half in (low, high)]
        return tirx.Shuffle(found, list(range(16)))


def high_place(form: Packing, place: Any) -> tuple[Any, Any]:
    """Where the high bits of the weights of a byte are, by its place among its group's: (byte, half of it)."""
    half = GROUP * form.rows // form.about.fields // 2
    if isinstance(place, int):
        return place % half, place // half
    return tirx.floormod(place, half), tirx.floordiv(place, half)


def _table(form: Packing) -> list[int]:
    """16 levels as they are multiplied, one after another and from the start again, in four signed words."""
    levels = form.about.levels
    offset = 128 if form.unsigned else 0
    data = bytes((levels[i % len(levels)] + offset) % 256 for i in range(16))
    return [int.from_bytes(data[at : at + 4], "little", signed=True) for at in range(0, 16, 4)]


def level(form: Packing, code: Expr) -> Expr:
    """The level of one number, int32, as it is multiplied."""
    a, b, c, d = (tirx.const(word, "int32") for word in _table(form))
    word = tirx.Select(code < 8, tirx.Select(code < 4, a, b), tirx.Select(code < 12, c, d))
    byte = word >> ((code & 3) << 3)
    return byte & 255 if form.unsigned else (byte << 24) >> 24


def codes(form: Packing, byte: Expr, high: Callable[[Any], Expr], place: Any) -> list[Expr]:
    """The numbers of the levels of the weights that share a stored byte, int32.

    high: the bytes of high bits, by place. place: of the stored byte among its group's.
    """
    how = form.about
    whole = T.Cast("int32", byte)
    found = [(whole >> how.low_bits * field) & ((1 << how.low_bits) - 1) for field in range(how.fields)]
    if how.high_bits:
        at, nibble = high_place(form, place)
        more = T.Cast("int32", T.Cast("int64", high(at)) >> (nibble * 4))  # a place is never cast: patterns must match
        found = [code | ((more >> field & 1) << how.low_bits) for field, code in enumerate(found)]
    return found


def of_scale(form: Packing, block: Any) -> Any:
    """Where the scale of a group of 32 columns is among those of its rows."""
    return block if form.about.span == 1 else tirx.floordiv(block, form.about.span)


def zero_point(form: Packing, zero: Any, group: Any, block: Any, row: Any, lanes: int = 1) -> Expr:
    """What 0 is multiplied as, less the zero point, of rows from `row` on in a group of 32 columns: what dots lack, as
    often as Σa."""
    bits = form.about.bits
    at = of_scale(form, T.Cast("int64", block))
    word = zero[group, tirx.floordiv(at, 32 // bits), row]
    shift = T.Cast("int32", tirx.floormod(at, 32 // bits)) * T.int32(bits)

    def every(value: Any) -> Any:
        return value if lanes == 1 else T.broadcast(value, lanes)

    return every(T.int32(1 << bits - 1)) - ((word >> every(shift)) & every(T.int32(form.about.top)))
