"""The tensor intrinsic of each tier: T tokens times G row groups times one whole quantization group of 32 columns.

A whole group in one intrinsic keeps accumulators in registers and unpacks every weight byte once for all tokens;
intrinsics of one instruction each cost half as many instructions again (measured, llvm-mca and executed counts).
Inside a tile the order is: stored weight vector of each row group, its half, token, row group, so that no more than
the unpacked halves of one vector a row group live beside the accumulators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from crosscompile.arithmetic import Expr
from crosscompile.kernels.build import bind, prefetch
from crosscompile.packing import GROUP, Packing
from crosscompile.target import TIERS, Tier


def _call(dtype: str, name: str, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, name, *args)


def _splat(x: Expr, lanes: int, dtype: str) -> Expr:
    """A scalar's bits repeated over `lanes` lanes, seen as a vector of `dtype`."""
    return T.reinterpret(dtype, T.broadcast(x, lanes))


def weight_shape(form: Packing) -> tuple[int, int, int]:
    """(chunks, R, I): the stored bytes of one group of columns of one row group."""
    return (GROUP // form.about.fields // form.chunk, form.rows, form.chunk)


class Tile:
    """What the instruction families see of one tile: its operands, and what it computes."""

    def __init__(
        self, tier: Tier, form: Packing, tokens: int, groups: int, w: Any, a: Any, start: Any, high: Any = None
    ) -> None:
        self.tier, self.form, self.tokens, self.groups = tier, form, tokens, groups
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
        return _splat(T.reinterpret(word, vector), repeat, f"{self._dtype}x{repeat * lanes}")

    def start(self, token: int) -> Expr:
        """The group's word of `sum` of a token."""
        return self._start.vload([token, 0], dtype="int32")

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
            return T.reinterpret(dtype, _call(f"int8x{lanes}", f"llvm.x86.{name}", table, codes))
        table = T.reinterpret("int8x16", tirx.Shuffle(words, list(range(4))))
        if self.tier.arch == "aarch64":
            return _call(dtype, "llvm.aarch64.neon.tbl1.v16i8", table, codes)
        low, high = list(range(8)), list(range(8, 16))
        halves = [tirx.Shuffle([table], half) for half in (low, high)]
        found = [_call("int8x8", "llvm.arm.neon.vtbl2", *halves, tirx.Shuffle([codes], half)) for half in (low, high)]
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


Dots = list[list[list[Expr]]]
"""[token][row group] -> the dots of its R rows, int32 vectors of as many rows as the instructions have lanes."""
Family = Callable[[Tile], Dots]


Step = Callable[[Any, Expr, int, int], Expr]
"""(acc, weights, token, column) -> acc."""


def _by_rows(
    tile: Tile,
    width: int,
    start: Callable[[int], Expr | None],
    step: Step,
    ways: int = 1,
    join: Callable[[Expr, Expr], Expr] | None = None,
) -> Dots:
    """Packings whose vectors hold a chunk of columns of `width` rows.

    ways: sums kept side by side for every vector of results and joined at the end, so that one token's few results do
    not wait for each other. The first starts at start(token), the others, and it too where that is None, at 0.
    """
    chunks, rows, chunk = weight_shape(tile.form)
    vectors = [(group, row) for group in range(tile.groups) for row in range(0, rows, width)]
    first = [start(token) for token in range(tile.tokens)]
    sums: dict[tuple[int, int, int, int], Expr] = {}
    at = 0
    for c in range(chunks):
        parts = {(group, row): tile.parts(group, c, row, width * chunk) for group, row in vectors}
        for half in range(len(parts[0, 0])):
            for token in range(tile.tokens):
                for vector in vectors:
                    part, column = parts[vector][half]
                    key = (token, *vector, at % ways)
                    before = sums.get(key, first[token] if key[3] == 0 else None)
                    sums[key] = bind(step(before, part, token, column))
            at += 1

    def joined(token: int, group: int, row: int) -> Expr:
        parts = [sums[token, group, row, way] for way in range(ways)]
        while len(parts) > 1:
            assert join is not None
            parts = [bind(join(*parts[i : i + 2])) for i in range(0, len(parts), 2)]
        return parts[0]

    return [
        [[joined(token, group, row) for row in range(0, rows, width)] for group in range(tile.groups)]
        for token in range(tile.tokens)
    ]


def _sdot(tile: Tile) -> Dots:
    """sdot by element: four columns of four rows with a lane that holds four columns of the token."""

    def step(acc: Expr, weights: Expr, token: int, column: int) -> Expr:
        words = T.reinterpret("int32x4", tile.activations(token, column // 16 * 16, 16))
        lane = T.reinterpret("int8x16", tirx.Shuffle([words], [column % 16 // 4] * 4))
        return _call("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, weights, lane)

    return _by_rows(tile, 4, lambda token: T.broadcast(T.int32(0), 4), step)


def _smmla(tile: Tile) -> Dots:
    """smmla: 8 columns of two rows with two tokens. A lone token is both columns of the result."""
    zero = T.broadcast(T.int32(0), 4)
    chunks, rows, _ = weight_shape(tile.form)
    pairs = [(t, min(t + 1, tile.tokens - 1)) for t in range(0, tile.tokens, 2)]
    vectors = [(group, row) for group in range(tile.groups) for row in range(0, rows, 2)]
    sums = {(pair, vector): zero for pair in pairs for vector in vectors}

    def columns(pair: tuple[int, int], column: int) -> Expr:
        if pair[0] == pair[1]:
            return tile.repeated(pair[0], column, 8, 2)
        first, second = (T.reinterpret("int64x2", tile.activations(t, column // 16 * 16, 16)) for t in pair)
        lane = column % 16 // 8
        return T.reinterpret("int8x16", tirx.Shuffle([first, second], [lane, 2 + lane]))

    width = GROUP // chunks  # columns of a chunk: the two halves of a vector's bytes, or one
    for c in range(chunks):
        places = range(c * width, (c + 1) * width, 8)
        operands = {(pair, column): bind(columns(pair, column)) for pair in pairs for column in places}
        for vector in vectors:  # outermost, or the unpacked halves of all of them would be alive at once
            for weights, column in tile.parts(vector[0], c, vector[1], 16):
                for pair in pairs:
                    args = (sums[pair, vector], weights, operands[pair, column])
                    sums[pair, vector] = bind(_call("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", *args))
    dots: Dots = [[[] for _ in range(tile.groups)] for _ in range(tile.tokens)]
    for pair in pairs:
        for group in range(tile.groups):
            for row in range(0, rows, 4):
                four = [sums[pair, (group, row)], sums[pair, (group, row + 2)]]
                for lane, token in enumerate(dict.fromkeys(pair)):
                    dots[token][group].append(bind(tirx.Shuffle(four, [lane, 2 + lane, 4 + lane, 6 + lane])))
    return dots


def _vnni(tile: Tile) -> Dots:
    """vpdpbusd: four unsigned columns of every row with four signed ones. It starts at the group's −offset · Σa."""
    rows = tile.form.rows
    name = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}[rows]
    factor = WIDE_OFFSET[tile.form.about.like]

    def start(token: int) -> Expr:
        word = tile.start(token)
        return bind(T.broadcast(word if factor == 1 else word * T.int32(factor), rows))

    def step(acc: Expr | None, weights: Expr, token: int, column: int) -> Expr:
        before = T.broadcast(T.int32(0), rows) if acc is None else acc
        return _call(f"int32x{rows}", name, before, weights, tile.repeated(token, column, 4, rows))

    return _by_rows(tile, rows, start, step, 2 if tile.tokens == 1 else 1, lambda a, b: a + b)


def _subtract(a: Expr, b: Expr) -> Expr:
    """a − b of int16x16. A vector-predicated intrinsic, because plain instructions are reordered early."""
    return _call("int16x16", "llvm.vp.sub.v16i16", a, b, T.broadcast(T.bool(True), 16), T.uint32(16))


def _maddubs(tile: Tile) -> Dots:
    """vpmaddubsw of nibbles, summed in 16 bits, and one vpmaddwd for the group.

    Several tokens: accumulators start at (8 · Σa, 0) in each pair of lanes, products are subtracted, and vpmaddwd with
    −1 turns the sign. Every partial sum is Σ (8 − u)a of what is done and 8 · Σa of what is not: at most
    32 · 8 · 127 = 32,512. Subtracted because LLVM reorders additions until they no longer fit the registers; saturating
    additions, which it leaves alone, compete with the multiplications (a tile took 14 ns instead of 11 on Zen 4).

    One token: four sums of products side by side, and 8 · Σa is subtracted from their sum.
    """
    lone = tile.tokens == 1

    def start(token: int) -> Expr:
        return bind(_splat(tile.start(token), 8, "int16x16"))

    def add(a: Expr, b: Expr) -> Expr:
        return _call("int16x16", "llvm.sadd.sat.v16i16", a, b)

    def step(acc: Expr | None, weights: Expr, token: int, column: int) -> Expr:
        pairs = _call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", weights, tile.repeated(token, column, 4, 8))
        if lone:
            return pairs if acc is None else add(acc, pairs)
        return _subtract(acc, pairs)

    def total(token: int, sums: Expr) -> Expr:
        pairs, sign = (_subtract(sums, start(token)), 1) if lone else (sums, -1)
        return bind(_call("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, T.broadcast(T.int16(sign), 16)))

    dots = _by_rows(tile, 8, (lambda _: None) if lone else start, step, 4 if lone else 1, add)
    return [[[total(token, sums) for sums in group] for group in groups] for token, groups in enumerate(dots)]


def _widened(tile: Tile) -> Dots:
    """vpmaddwd of weights widened to 16 bits, two columns of every row, with activations that are stored so.

    vpmaddubsw needs its unsigned operand made by vpsignb, and its sums widened: three instructions of the units that
    multiply where this has two.
    """
    wide: dict[Any, Expr] = {}

    def step(acc: Expr, weights: Expr, token: int, column: int) -> Expr:
        if weights not in wide:
            wide[weights] = bind(T.Cast("int16x16", weights))
        return acc + _call("int32x8", "llvm.x86.avx2.pmadd.wd", wide[weights], tile.repeated(token, column, 2, 8))

    return _by_rows(tile, 8, lambda token: T.broadcast(T.int32(0), 8), step)


class _Neon:
    """Widening multiplications of NEON before dot products; the names differ between its two architectures."""

    def __init__(self, tier: Tier) -> None:
        self.old = tier.arch == "armv7"

    def half(self, vector: Expr, which: int) -> Expr:
        """Low or high 8 of 16 bytes."""
        return tirx.Shuffle([vector], list(range(8 * which, 8 * which + 8)))

    def multiply(self, a: Expr, b: Expr) -> Expr:
        """8 products of bytes, int16x8."""
        return _call("int16x8", "llvm.arm.neon.vmulls.v8i16" if self.old else "llvm.aarch64.neon.smull.v8i16", a, b)

    def widen(self, a: Expr) -> Expr:
        """Sums of neighbours of int16x8, int32x4."""
        if self.old:
            return _call("int32x4", "llvm.arm.neon.vpaddls.v4i32.v8i16", a)
        return _call("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", a)

    def fold(self, rows: list[Expr], dtype: str, lanes: int) -> Expr:
        """Four vectors to one: neighbours added until lanes / 4 of each vector are left, side by side."""
        first, second = (bind(self.neighbours(rows[i], rows[i + 1], dtype, lanes)) for i in (0, 2))
        return bind(self.neighbours(first, second, dtype, lanes))

    def neighbours(self, a: Expr, b: Expr, dtype: str, lanes: int) -> Expr:
        """Sums of neighbours of a, then of b: as many lanes as one of them has."""
        kind = f"v{lanes}{'i16' if dtype == 'int16' else 'i32'}"
        if not self.old:
            return _call(f"{dtype}x{lanes}", f"llvm.aarch64.neon.addp.{kind}", a, b)
        n = lanes // 2
        small = f"v{n}{'i16' if dtype == 'int16' else 'i32'}"
        low, high = list(range(n)), list(range(n, lanes))
        folded = [
            _call(f"{dtype}x{n}", f"llvm.arm.neon.vpadd.{small}", tirx.Shuffle([x], low), tirx.Shuffle([x], high))
            for x in (a, b)
        ]
        return tirx.Shuffle(folded, list(range(lanes)))


def _smlal(tier: Tier) -> Family:
    """smull and smlal of 16 columns of one row; four rows are folded into one vector at the end of the group.

    Nibbles are 0…15: a lane sums four products, and the whole group's dot with −8 · Σa fits 16 bits, so rows are
    folded there, each into two neighbours, and one of them gets −8 · Σa (additions wrap, only the end must fit).
    Bytes make 32,258 in two products and are widened after them.
    """
    neon = _Neon(tier)

    def nibbles(tile: Tile) -> Dots:
        dots: Dots = []
        rows = [[tile.parts(g, 0, r, 16) for r in range(4)] for g in range(tile.groups)]
        for token in range(tile.tokens):
            start = bind(_splat(tile.start(token), 4, "int16x8"))
            dots.append([])
            for group in range(tile.groups):
                sums = []
                for r in range(4):
                    acc = None
                    for part, column in rows[group][r]:
                        signed = T.reinterpret("int8x16", part)
                        for which in range(2):
                            a = neon.half(tile.activations(token, column, 16), which)
                            product = neon.multiply(neon.half(signed, which), a)
                            acc = bind(product if acc is None else acc + product)
                    sums.append(acc)
                dots[-1].append([bind(neon.widen(neon.fold(sums, "int16", 8) + start))])
        return dots

    def eights(tile: Tile, token: int, group: int, row: int) -> Iterator[tuple[Expr, Expr]]:
        """Eight columns of a row at a time, with the token's: vectors hold 16 of a row, or 8 of two."""
        chunks, _, chunk = weight_shape(tile.form)
        together = 16 // chunk
        for c in range(chunks):
            for part, column in tile.parts(group, c, row // together * together, 16):
                if together == 2:
                    half = row % 2
                    yield neon.half(part, half), neon.half(tile.repeated(token, column, 8, 2), half)
                    continue
                a = tile.activations(token, column, 16)
                for half in range(2):
                    yield neon.half(part, half), neon.half(a, half)

    def bytes_(tile: Tile) -> Dots:
        dots: Dots = []
        for token in range(tile.tokens):
            dots.append([])
            for group in range(tile.groups):
                sums = []
                for r in range(4):
                    total = None
                    products = (neon.multiply(w, a) for w, a in eights(tile, token, group, r))
                    for first in products:
                        wide = neon.widen(bind(first + next(products)))
                        total = bind(wide if total is None else total + wide)
                    sums.append(total)
                dots[-1].append([neon.fold(sums, "int32", 4)])
        return dots

    return lambda tile: nibbles(tile) if tile.form.about.like == "w4" else bytes_(tile)


def family(tier: Tier, form: Packing) -> Family:
    """The instructions that a tier computes a packing's dots with."""
    if tier.name in ("armv7-neon", "armv8-neon"):
        return _smlal(tier)
    if tier.name == "avx2":
        return _maddubs if form.unsigned else _widened
    return {"dotprod": _sdot, "i8mm": _smmla}.get(tier.name, _vnni)


WIDE_OFFSET = {"w4": 1, "w8": 16}
"""What a wide sum, −8 · Σa, is multiplied by to give −offset · Σa."""


def start_value(tier: Tier, form: Packing, word: Expr) -> Expr:
    """What a group's dot starts at, as the intrinsics read it from the word of `sum`."""
    if tier.sums in ("narrow", "negated"):
        low = (word << T.int32(16)) >> T.int32(16)
        return low if tier.sums == "narrow" else T.int32(0) - low
    return word * T.int32(WIDE_OFFSET[form.about.like])


def group_sum(tier: Tier, form: Packing, word: Expr) -> Expr:
    """Σa of a group, as often as the integers of its dots are too large, from the word of `sum`."""
    if not form.unsigned or tier.sums == "wide":
        total = T.int32(0) - (word >> T.int32(3))
    else:
        low = (word << T.int32(16)) >> T.int32(19)
        total = low if tier.sums == "negated" else T.int32(0) - low
    return total if form.unsigned else total << T.int32(4)


def zero_point(zero: Any, group: Any, block: Any, row: Any, lanes: int = 1) -> Expr:
    """8 − the zero point of rows, from `row` on, of a row group in a group of columns: what dots lack times Σa."""
    block = T.Cast("int64", block)
    eight = zero[group, tirx.floordiv(block, 8), row]
    shift = T.Cast("int32", tirx.floormod(block, 8)) * T.int32(4)

    def every(value: Any) -> Any:
        return value if lanes == 1 else T.broadcast(value, lanes)

    return every(T.int32(8)) - ((eight >> every(shift)) & every(T.int32(15)))


def scalar_dot(
    form: Packing,
    weights: Callable[..., Expr],
    activations: Callable[[Any], Expr],
    c: Any,
    i: Any,
    high: Callable[[Any], Expr],
    place: Any,
) -> Expr:
    """What the intrinsic computes for one stored byte: the products of the columns that share it."""
    chunk = form.chunk
    byte = weights(c, i)
    fields = form.about.fields
    if fields == 1:
        return T.Cast("int32", byte) * T.Cast("int32", activations(c * chunk + i))
    if form.about.levels:
        values = [level(form, code) for code in codes(form, byte, high, place)]
    elif form.unsigned:
        values = [byte & T.uint8(15), byte >> T.uint8(4)]
    else:
        values = [byte << T.int8(4), byte & T.int8(-16)]
    products = [
        T.Cast("int32", value) * T.Cast("int32", activations(c * (fields * chunk) + field * chunk + i))
        for field, value in enumerate(values)
    ]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total


@cache
def register_dot(tier_name: str, packing: str, tokens: int, groups: int, ahead: int) -> str:
    """Registers a tier's dot intrinsic for a packing and a tile, and returns its name.

    ahead: column groups between the one that is computed and the one that is asked from memory, 0 for none.
    """
    tier = TIERS[tier_name]
    form = Packing.parse(packing)
    chunks, rows, chunk = weight_shape(form)
    fields = form.about.fields
    name = f"ellm.dot.{tier.name}.{packing}.{tokens}x{groups}.{ahead}"

    def operand(label: str, shape: Sequence[int], dtype: str) -> Any:
        strides = [tirx.Var(f"{label}_s{i}", "int64") for i in range(len(shape) - 1)]
        dims = [tirx.IntImm("int64", d) for d in shape]
        return B.arg(label, B.Buffer(dims, dtype, strides=[*strides, tirx.IntImm("int64", 1)], offset_factor=1))

    high_bytes = form.about.high_bits * GROUP // 8 * rows

    def function(body: Callable[[Any, Any, Any, Any, Any], None]) -> tirx.PrimFunc:
        with IRBuilder() as builder, B.prim_func(s_tir=True):
            B.func_name("dot")
            w = operand("w", (groups, 1, chunks, rows, chunk), form.dtype)
            high = operand("high", (groups, 1, high_bytes), "uint8") if high_bytes else None
            a = operand("a", (tokens, 1, GROUP), tier.activations(packing)[2])
            start = operand("start", (tokens, 1), "int32") if form.unsigned else None
            d = operand("d", (tokens, groups, 1, rows), "int32")
            with B.sblock("root"):
                first = [] if start is None else [start[0:tokens, 0:1]]
                more = [] if high is None else [high[0:groups, 0:1, 0:high_bytes]]
                B.reads(*first, w[0:groups, 0:1, 0:chunks, 0:rows, 0:chunk], *more, a[0:tokens, 0:1, 0:GROUP])
                B.writes(d[0:tokens, 0:groups, 0:1, 0:rows])
                body(w, a, start, d, high)
        return builder.get()

    def described(w: Any, a: Any, start: Any, d: Any, high: Any) -> None:
        # blockize leaves no axis for a loop that runs once
        extents = (tokens, groups, rows, chunks, chunk)
        with B.grid(*(tirx.IntImm("int64", e) for e in extents)) as loops, B.sblock("dot"):
            real = [j for j, extent in enumerate(extents) if extent > 1]
            axes = B.axis.remap("".join("SSSRR"[j] for j in real), [loops[j] for j in real])
            named = dict(zip(real, axes, strict=True))
            t, g, r, c, i = (named.get(j, tirx.IntImm("int64", 0)) for j in range(5))
            column = c * (fields * chunk) + i
            width = (fields - 1) * chunk + 1
            word = [] if start is None else [start[t, 0]]
            place = (c * rows + r) * chunk + i
            more = [] if high is None else [high[g, 0, high_place(form, place)[0]]]
            B.reads(d[t, g, 0, r], *word, w[g, 0, c, r, i], *more, a[t, 0, column : column + width])
            B.writes(d[t, g, 0, r])
            with B.init():
                first = start_value(tier, form, start[t, 0]) if start is not None else tirx.const(0, "int32")
                B.buffer_store(d, first, [t, g, 0, r])
            products = scalar_dot(
                form, lambda c, i: w[g, 0, c, r, i], lambda k: a[t, 0, k], c, i, lambda at: high[g, 0, at], place
            )
            B.buffer_store(d, d[t, g, 0, r] + products, [t, g, 0, r])

    def implemented(w: Any, a: Any, start: Any, d: Any, high: Any) -> None:
        for group in range(groups if ahead else 0):
            for line in range(0, chunks * rows * chunk, 64):
                prefetch(w[group, ahead, 0, 0, line], level=3)
            for line in range(0, high_bytes, 64):
                prefetch(high[group, ahead, line], level=3)
        dots = family(tier, form)(Tile(tier, form, tokens, groups, w, a, start, high))
        for t in range(tokens):
            for g in range(groups):
                width = rows // len(dots[t][g])
                for i, vector in enumerate(dots[t][g]):
                    B.buffer_store(d, vector, [t, g, 0, B.ramp(i * width, 1, width)])

    TensorIntrin.register(name, function(described), function(implemented))
    return name
