"""The tensor intrinsic of each tier: R rows times one whole quantization group of 32 columns.

A whole group in one intrinsic keeps accumulators in registers and unpacks every weight byte once; intrinsics of one
instruction each cost half as many instructions again (measured, llvm-mca and executed counts).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from crosscompile.arithmetic import Expr
from crosscompile.packing import GROUP, Packing
from crosscompile.target import TIERS, Tier

Multiply = Callable[[Expr, Expr, Expr], Expr]
"""(accumulator int32xR·…, weights 8-bit vector, the activations of the same columns) -> accumulator."""


def _splat(x: Expr, lanes: int, dtype: str) -> Expr:
    """A scalar's bits repeated over `lanes` lanes, seen as a vector of `dtype`."""
    return T.reinterpret(dtype, T.broadcast(x, lanes))


def _call(dtype: str, name: str, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, name, *args)


def _widening_neon(tier: Tier) -> Multiply:
    """smull + sadalp: 8-bit products of two columns of four rows, pairs added into 32 bits."""
    arm = "llvm.arm.neon." if tier.arch == "armv7" else "llvm.aarch64.neon."
    multiply, pairwise = (
        (arm + "vmulls.v8i16", arm + "vpadals.v4i32.v8i16")
        if tier.arch == "armv7"
        else (arm + "smull.v8i16", arm + "saddlp.v4i32.v8i16")
    )

    def step(acc: Expr, weights: Expr, activations: Expr) -> Expr:
        product = _call("int16x8", multiply, weights, activations)
        if tier.arch == "armv7":
            return _call("int32x4", pairwise, acc, product)
        return acc + _call("int32x4", pairwise, product)

    return step


def _sdot(acc: Expr, weights: Expr, activations: Expr) -> Expr:
    return _call("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, weights, activations)


def _smmla(acc: Expr, weights: Expr, activations: Expr) -> Expr:
    return _call("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", acc, weights, activations)


def _vnni(rows: int) -> Multiply:
    name = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}[rows]

    def step(acc: Expr, weights: Expr, activations: Expr) -> Expr:
        return _call(f"int32x{rows}", name, acc, weights, activations)

    return step


def _avx2(unsigned: bool) -> Multiply:
    """vpmaddubsw + vpmaddwd. It cannot saturate: nibbles are below 16, and |q|, |a| ≤ 127 give at most 32,258."""

    def step(acc: Expr, weights: Expr, activations: Expr) -> Expr:
        if not unsigned:
            activations = _call("int8x32", "llvm.x86.avx2.psign.b", activations, weights)
            weights = _call("int8x32", "llvm.x86.avx2.psign.b", weights, weights)
        pairs = _call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", weights, activations)
        ones = T.broadcast(T.int16(1), 16)
        return acc + _call("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, ones)

    return step


def _bytes(buffer: Any, index: list[Any], lanes: int, dtype: str) -> Expr:
    return buffer.vload(index, dtype=f"{dtype}x{lanes}")


def _nibbles(vector: Expr, lanes: int, unsigned: bool) -> tuple[Expr, Expr]:
    """Low and high nibbles of bytes, as 0…15 (unsigned) or as 16 · q (signed: the top nibble of an int8)."""
    if unsigned:
        words = T.reinterpret(f"uint16x{lanes // 2}", vector) >> T.broadcast(T.uint16(4), lanes // 2)
        mask = T.broadcast(T.uint8(15), lanes)
        return vector & mask, T.reinterpret(f"uint8x{lanes}", words) & mask
    return vector << T.broadcast(T.int8(4), lanes), vector & T.broadcast(T.int8(-16), lanes)


def weight_dtype(form: Packing) -> str:
    """The dtype kernels see weight bytes in."""
    return "uint8" if form.unsigned else "int8"


def weight_shape(form: Packing) -> tuple[int, int, int]:
    """(chunks, R, I): the stored bytes of one group of columns of one row group."""
    return (GROUP // (2 if form.kind == "w4" else 1) // form.chunk, form.rows, form.chunk)


SIGNED_NIBBLE_SHIFT = 16
"""Signed nibbles are multiplied in place as 16 · q; the kernel divides the group's dot by it, exactly."""


def _columns(form: Packing, vector: Expr, lanes: int, chunk_index: int) -> list[tuple[Expr, int]]:
    """A stored vector as 8-bit weights, each with its first column: once for w8, low and high nibbles for w4."""
    if form.kind == "w8":
        return [(vector, chunk_index * form.chunk)]
    low, high = _nibbles(vector, lanes, form.unsigned)
    first = 2 * chunk_index * form.chunk
    return [(low, first), (high, first + form.chunk)]


def _group_dot(tier: Tier, form: Packing, weights: Any, activations: Any, start: Expr) -> Expr:
    """start + the int32 dot of R rows with one group (times 16 for signed nibbles)."""
    chunks, rows, chunk = weight_shape(form)
    lanes, dtype = rows * chunk, weight_dtype(form)
    word = {2: "int16", 4: "int32", 8: "int64"}[chunk]

    def activation(column: int, repeat: int) -> Expr:
        vector = activations.vload([column], dtype=f"int8x{chunk}")
        return _splat(T.reinterpret(word, vector), repeat, f"int8x{repeat * chunk}")

    if tier.name == "i8mm":
        # rows 0,1 and rows 2,3 lie in two vectors of 2 x 8; both columns of smmla's 2 x 2 result are the same token
        pair = [T.broadcast(T.int32(0), 4), T.broadcast(T.int32(0), 4)]
        for c in range(chunks):
            for half in range(2):
                vector = _bytes(weights, [c, 2 * half, 0], 16, dtype)
                for part, column in _columns(form, vector, 16, c):
                    pair[half] = _smmla(pair[half], part, activation(column, 2))
        return start + tirx.Shuffle(pair, [0, 2, 4, 6])
    if tier.name in ("armv7-neon", "armv8-neon"):
        multiply, width = _widening_neon(tier), 8
    elif tier.name == "dotprod":
        multiply, width = _sdot, 16
    elif tier.name == "avx2":
        multiply, width = _avx2(form.unsigned), 32
    else:
        multiply, width = _vnni(rows), 4 * rows
    acc = start
    for c in range(chunks):
        vector = _bytes(weights, [c, 0, 0], lanes, dtype)
        for part, column in _columns(form, vector, lanes, c):
            if width != lanes:
                raise AssertionError((tier.name, width, lanes))
            acc = multiply(acc, part, activation(column, rows))
    return acc


def scalar_dot(form: Packing, weights: Callable[..., Expr], activations: Callable[[Any], Expr], c: Any, i: Any) -> Expr:
    """What the intrinsic computes for one stored byte: the products of its column or two columns."""
    chunk = form.chunk
    byte = weights(c, i)
    if form.kind == "w8":
        return T.Cast("int32", byte) * T.Cast("int32", activations(c * chunk + i))
    if form.unsigned:
        low, high = byte & T.uint8(15), byte >> T.uint8(4)
    else:
        low, high = byte << T.int8(4), byte & T.int8(-16)
    return T.Cast("int32", low) * T.Cast("int32", activations(c * (2 * chunk) + i)) + T.Cast("int32", high) * T.Cast(
        "int32", activations(c * (2 * chunk) + chunk + i)
    )


@cache
def register_dot(tier_name: str, packing: str) -> str:
    """Registers a tier's group-dot intrinsic for a packing and returns its name."""
    tier = TIERS[tier_name]
    form = Packing.parse(packing)
    chunks, rows, chunk = weight_shape(form)
    dtype = weight_dtype(form)
    name = f"ellm.dot.{tier.name}.{packing}"

    @T.prim_func(s_tir=True)
    def described(
        W: T.Buffer((chunks, rows, chunk), dtype, offset_factor=1),
        A: T.Buffer((GROUP,), "int8", offset_factor=1),
        D: T.Buffer((rows,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(D[0:rows], W[0:chunks, 0:rows, 0:chunk], A[0:GROUP])
            T.writes(D[0:rows])
            for r, c, i in T.grid(rows, chunks, chunk):
                with T.sblock("dot"):
                    vr, vc, vi = T.axis.remap("SRR", [r, c, i])
                    D[vr] = D[vr] + scalar_dot(form, lambda c, i: W[c, vr, i], lambda k: A[k], vc, vi)

    @T.prim_func(s_tir=True)
    def implemented(
        W: T.Buffer((chunks, rows, chunk), dtype, offset_factor=1),
        A: T.Buffer((GROUP,), "int8", offset_factor=1),
        D: T.Buffer((rows,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(D[0:rows], W[0:chunks, 0:rows, 0:chunk], A[0:GROUP])
            T.writes(D[0:rows])
            D[T.ramp(0, 1, rows)] = _group_dot(tier, form, W, A, D.vload([0], dtype=f"int32x{rows}"))

    TensorIntrin.register(name, described, implemented)
    return name
