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

from crosscompile.arithmetic import MAGIC, MAGIC_BITS, Expr, constant, from_bits, lanes_of, wide
from crosscompile.kernels.build import bind, prefetch
from crosscompile.kernels.tile import Tile, call, codes, high_place, level, splat, weight_shape
from crosscompile.packing import GROUP, Packing
from crosscompile.target import TIERS, Tier

Dots = list[list[list[Expr]]]
"""[token][row group] -> the dots of its rows and what they started at (`bias`), int32 vectors of as many rows as the
instructions have lanes."""
Family = Callable[[Tile], Dots]


Step = Callable[[Any, Expr, int, int], Expr]
"""(acc, weights, token, column) -> acc."""

_BIAS = MAGIC_BITS - (1 << 31)
_BIASED = ("dotprod",)
"""Tiers whose dots start at the bits of −1.5 · 2²³.

An integer added to the bits makes that float smaller by as much, so one subtraction makes floats of dots, exactly below
2²²: the largest are u8's, of at most 255 · 127 · 32. Of Cortex-A76's two vector units one can convert, and takes two
cycles; each can subtract, in one."""


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
    chunks, _, chunk = weight_shape(tile.form)
    rows = tile.rows
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
        return call("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, weights, lane)

    def start(token: int) -> Expr:
        biases = tile.biases(token, 4)
        return T.broadcast(bias(tile.tier), 4) if biases is None else biases

    return _by_rows(tile, 4, start, step)


def _smmla(tile: Tile) -> Dots:
    """smmla: 8 columns of two rows with two tokens. A lone token is both columns of the result."""
    first = T.broadcast(bias(tile.tier), 4)
    chunks, rows = weight_shape(tile.form)[0], tile.rows
    pairs = [(t, min(t + 1, tile.tokens - 1)) for t in range(0, tile.tokens, 2)]
    vectors = [(group, row) for group in range(tile.groups) for row in range(0, rows, 2)]
    sums = {(pair, vector): first for pair in pairs for vector in vectors}

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
                    sums[pair, vector] = bind(call("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", *args))
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
        return call(f"int32x{rows}", name, before, weights, tile.repeated(token, column, 4, rows))

    return _by_rows(tile, rows, start, step, 2 if tile.tokens == 1 else 1, lambda a, b: a + b)


def _subtract(a: Expr, b: Expr) -> Expr:
    """a − b of int16x16. A vector-predicated intrinsic, because plain instructions are reordered early."""
    return call("int16x16", "llvm.vp.sub.v16i16", a, b, T.broadcast(T.bool(True), 16), T.uint32(16))


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
        return bind(splat(tile.start(token), 8, "int16x16"))

    def add(a: Expr, b: Expr) -> Expr:
        return call("int16x16", "llvm.sadd.sat.v16i16", a, b)

    def step(acc: Expr | None, weights: Expr, token: int, column: int) -> Expr:
        pairs = call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", weights, tile.repeated(token, column, 4, 8))
        if lone:
            return pairs if acc is None else add(acc, pairs)
        return _subtract(acc, pairs)

    def total(token: int, sums: Expr) -> Expr:
        pairs, sign = (_subtract(sums, start(token)), 1) if lone else (sums, -1)
        return bind(call("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, T.broadcast(T.int16(sign), 16)))

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
        return acc + call("int32x8", "llvm.x86.avx2.pmadd.wd", wide[weights], tile.repeated(token, column, 2, 8))

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
        return call("int16x8", "llvm.arm.neon.vmulls.v8i16" if self.old else "llvm.aarch64.neon.smull.v8i16", a, b)

    def widen(self, a: Expr) -> Expr:
        """Sums of neighbours of int16x8, int32x4."""
        if self.old:
            return call("int32x4", "llvm.arm.neon.vpaddls.v4i32.v8i16", a)
        return call("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", a)

    def fold(self, rows: list[Expr], dtype: str, lanes: int) -> Expr:
        """Four vectors to one: neighbours added until lanes / 4 of each vector are left, side by side."""
        first, second = (bind(self.neighbours(rows[i], rows[i + 1], dtype, lanes)) for i in (0, 2))
        return bind(self.neighbours(first, second, dtype, lanes))

    def neighbours(self, a: Expr, b: Expr, dtype: str, lanes: int) -> Expr:
        """Sums of neighbours of a, then of b: as many lanes as one of them has."""
        kind = f"v{lanes}{'i16' if dtype == 'int16' else 'i32'}"
        if not self.old:
            return call(f"{dtype}x{lanes}", f"llvm.aarch64.neon.addp.{kind}", a, b)
        n = lanes // 2
        small = f"v{n}{'i16' if dtype == 'int16' else 'i32'}"
        low, high = list(range(n)), list(range(n, lanes))
        folded = [
            call(f"{dtype}x{n}", f"llvm.arm.neon.vpadd.{small}", tirx.Shuffle([x], low), tirx.Shuffle([x], high))
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
            start = bind(splat(tile.start(token), 4, "int16x8"))
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


def bias(tier: Tier) -> Expr:
    """What dots of weights without an offset start at."""
    return tirx.const(_BIAS if tier.name in _BIASED else 0, "int32")


BIASES = (2, 16, 4)
"""Of a table of biases: groups of columns that take turns, tokens, lanes.

Sums that start at what a register holds are copies of it, made by the vector units, which have most to do; units that
load have time. That groups take turns is for LLVM, which would read the same place once and copy registers."""


def reads_bias(tier: Tier, form: Packing, n: int) -> bool:
    """Whether the dots of n rows start at what they read from such a table, for which registers must be left."""
    return tier.name in _BIASED and n % 8 == 0 and form.quantized and form.about.base not in ("u4", "w3")


def to_float(tier: Tier, dots: Expr) -> Expr:
    """float32 of a group's dots, with whatever integers were added to them: a number, or a vector."""
    lanes = lanes_of(dots)
    if tier.name not in _BIASED:
        return T.Cast(wide("float32", lanes), dots)
    return constant(-MAGIC, lanes) - from_bits(dots)


def start_value(tier: Tier, form: Packing, word: Expr | None) -> Expr:
    """What a group's dot starts at, of weights with an offset as the intrinsics read it from the word of `sum`."""
    if word is None:
        return bias(tier)
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
    return total << T.int32(4) if form.about.like == "w4" and not form.unsigned else total


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
def register_dot(tier_name: str, packing: str, tokens: int, groups: int, ahead: int, parts: int, table: bool) -> str:
    """Registers a tier's dot intrinsic for a packing and a tile, and returns its name.

    ahead: column groups between the one that is computed and the one that is asked from memory, 0 for none. parts: of a
    row group, of which the tile has the rows of one. table: `start` is what BIASES describes, of one turn.
    """
    tier = TIERS[tier_name]
    form = Packing.parse(packing)
    chunks, rows, chunk = weight_shape(form)
    rows //= parts
    fields = form.about.fields
    name = f"ellm.dot.{tier.name}.{packing}.{tokens}x{groups}.{parts}.{ahead}.{table:d}"

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
            if table:
                assert start is None, "of weights with an offset, dots start at their words"
                start = operand("start", (1, tokens, BIASES[2]), "int32")
            d = operand("d", (tokens, groups, 1, rows), "int32")
            with B.sblock("root"):
                first = (
                    [] if start is None else [start[0:1, 0:tokens, 0 : BIASES[2]] if table else start[0:tokens, 0:1]]
                )
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
            word = [] if start is None else [start[0, t, r % BIASES[2]] if table else start[t, 0]]
            place = (c * rows + r) * chunk + i
            more = [] if high is None else [high[g, 0, high_place(form, place)[0]]]
            B.reads(d[t, g, 0, r], *word, w[g, 0, c, r, i], *more, a[t, 0, column : column + width])
            B.writes(d[t, g, 0, r])
            with B.init():
                first = word[0] if table else start_value(tier, form, *(word or [None]))
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
        dots = family(tier, form)(Tile(tier, form, tokens, groups, rows, w, a, start, high))
        for t in range(tokens):
            for g in range(groups):
                width = rows // len(dots[t][g])
                for i, vector in enumerate(dots[t][g]):
                    B.buffer_store(d, vector, [t, g, 0, B.ramp(i * width, 1, width)])

    TensorIntrin.register(name, function(described), function(implemented))
    return name
