"""Each tier's tile intrinsic computes the integer dots it stands for, whatever CPU this machine has.

The TIR of an intrinsic is executed here in NumPy, with the instructions as their manuals define them. It catches what
running on one machine cannot: tiers that it lacks, and sums that only extreme values overflow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm.s_tir import TensorIntrin

from crosscompile.inner_loop import loop_of
from crosscompile.kernels.dot import register_dot
from crosscompile.kinds import BASES, zero_points
from crosscompile.packing import GROUP, Packing, pack, quantize
from crosscompile.target import TIERS

Array = Any


@dataclass(frozen=True)
class Ramp:
    start: int
    stride: int
    lanes: int


class Buffer:
    def __init__(self, data: Array) -> None:
        self.data = data

    def _flat(self, index: tuple[Any, ...]) -> Array:
        """Positions in memory; a ramp may run over the end of its own dimension, as in a contiguous buffer."""
        *outer, last = index if isinstance(index, tuple) else (index,)
        last = Ramp(last.start, 1, last.stop - last.start) if isinstance(last, slice) else last
        start = last.start if isinstance(last, Ramp) else last
        strides = [int(np.prod(self.data.shape[i + 1 :])) for i in range(self.data.ndim)]
        base = sum(int(i) * s for i, s in zip((*outer, start), strides, strict=True))
        return base + np.arange(last.lanes) * last.stride if isinstance(last, Ramp) else base

    def __getitem__(self, index: Any) -> Array:
        return self.data.reshape(-1)[self._flat(index)]

    def __setitem__(self, index: Any, value: Array) -> None:
        self.data.reshape(-1)[self._flat(index)] = value


def reinterpret(dtype: str, value: Array) -> Array:
    base, lanes = re.fullmatch(r"([a-z]+\d+?)(?:x(\d+))?", dtype).groups()
    found = np.atleast_1d(value).view(np.dtype(base))
    assert found.size == int(lanes or 1)
    return found if lanes else found[0]


def fours(x: Array, y: Array) -> Array:
    return (x.astype(np.int64).reshape(-1, 4) * y.astype(np.int64).reshape(-1, 4)).sum(1)


def pairs(x: Array) -> Array:
    return x.astype(np.int64).reshape(-1, 2).sum(1)


def saturated(x: Array) -> Array:
    return np.clip(x, -32768, 32767).astype(np.int16)


def smmla(acc: Array, x: Array, y: Array) -> Array:
    return acc + (x.astype(np.int32).reshape(2, 8) @ y.astype(np.int32).reshape(2, 8).T).reshape(-1)


def dot4(acc: Array, x: Array, y: Array) -> Array:
    return acc + fours(x, y).astype(np.int32)


def folded(x: Array, y: Array) -> Array:
    return pairs(np.concatenate([x, y])).astype(x.dtype)  # additions wrap


def widening(x: Array, y: Array) -> Array:
    return x.astype(np.int16) * y.astype(np.int16)


def looked_up(table: Array, at: Array) -> Array:
    at = at.view(np.uint8)
    return np.where(at < table.size, table[np.minimum(at, table.size - 1)], 0).astype(table.dtype)


def shuffled(table: Array, at: Array) -> Array:
    """Within 16 bytes; a byte whose top bit is set gives 0."""
    at = at.view(np.uint8)
    found = np.take_along_axis(table.reshape(-1, 16), (at & 15).reshape(-1, 16).astype(np.intp), 1).reshape(-1)
    return np.where(at & 128, 0, found).astype(table.dtype)


INSTRUCTIONS = {
    "llvm.aarch64.neon.sdot": dot4,
    "llvm.aarch64.neon.smmla": smmla,
    "llvm.x86.avx512.vpdpbusd": dot4,
    "llvm.x86.avx2.pmadd.ub.sw": lambda x, y: saturated(pairs(x.view(np.uint8).astype(np.int32) * y)),
    "llvm.x86.avx2.pmadd.wd": lambda x, y: pairs(x.astype(np.int64) * y).astype(np.int32),
    "llvm.x86.avx2.psign.b": lambda x, y: (x.astype(np.int16) * np.sign(y)).astype(np.int8),
    "llvm.vp.sub": lambda x, y, mask, lanes: (x - y) if mask.all() and lanes == x.size else None,
    "llvm.sadd.sat": lambda x, y: saturated(x.astype(np.int32) + y),
    "llvm.aarch64.neon.smull": widening,
    "llvm.arm.neon.vmulls": widening,
    "llvm.aarch64.neon.saddlp": lambda x: pairs(x).astype(np.int32),
    "llvm.arm.neon.vpaddls": lambda x: pairs(x).astype(np.int32),
    "llvm.aarch64.neon.addp": folded,
    "llvm.arm.neon.vpadd": folded,
    "llvm.x86.ssse3.pshuf.b.128": shuffled,
    "llvm.x86.avx2.pshuf.b": shuffled,
    "llvm.x86.avx512.pshuf.b.512": shuffled,
    "llvm.aarch64.neon.tbl1": looked_up,
    "llvm.arm.neon.vtbl2": lambda low, high, at: looked_up(np.concatenate([low, high]), at),
}
"""By name, without the types that some names end with."""


def instruction(dtype: str, name: str, *args: Array) -> Array:
    """The result of an instruction."""
    key = next(key for key in INSTRUCTIONS if name == key or name.startswith(f"{key}."))
    found = INSTRUCTIONS[key](*args)
    base, _, lanes = dtype.rpartition("x")
    assert found.size == int(lanes), name
    assert found.dtype.name in (base, f"u{base}", base[1:]), name  # bytes are bytes
    return found.view(base)


def typed(value: Any) -> Any:
    """A number without a type is an int32: so TVM prints them."""
    return np.int32(value) if isinstance(value, int) else value


T = SimpleNamespace(
    Ramp=Ramp,
    Broadcast=lambda value, lanes: np.repeat(typed(value), lanes),
    reinterpret=reinterpret,
    Shuffle=lambda vectors, indices: np.concatenate([np.atleast_1d(typed(each)) for each in vectors])[list(indices)],
    call_llvm_pure_intrin=instruction,
    **{name: getattr(np, name) for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")},
    bool=np.bool_,
    Cast=lambda dtype, value: value.astype(dtype.partition("x")[0]),
)


def execute(name: str, buffers: dict[str, Buffer]) -> None:
    """Runs the statements of a registered intrinsic."""
    text = str(TensorIntrin.get(name).impl.script())
    body = text[text.index("T.writes(") :].splitlines()[1:]
    lines = [re.sub(r"^(\w+): T\.let\[[^=]*\] = ", r"\1 = ", line.strip()) for line in body]
    exec("\n".join(lines), {"T": T, **buffers})


def operands(tier: str, kind: str, tokens: int, groups: int, extreme: bool) -> tuple[dict[str, Buffer], Array]:
    """The buffers of a tile, and the dots that it should find."""
    rng = np.random.default_rng(1)
    packing = TIERS[tier].packing(kind)
    form = Packing.parse(packing)
    rows = groups * form.rows
    weight = rng.standard_normal((rows, GROUP)).astype(np.float32)
    a = rng.integers(-127, 128, (tokens, 1, GROUP), np.int8)
    if extreme:
        signs = np.where(rng.random((rows, 1)) < 0.5, -1.0, 1.0)
        weight = np.repeat(signs, GROUP, 1).astype(np.float32)
        a = np.repeat(np.where(rng.random((tokens, 1, 1)) < 0.5, -127, 127), GROUP, 2).astype(np.int8)
    q = quantize(kind, weight)[0].astype(np.int64)
    total = -8 * a.astype(np.int64).sum(2)
    start = {"narrow": total & 0xFFFF, "negated": -total & 0xFFFF}.get(TIERS[tier].sums, total)
    stored = pack(packing, weight)
    if form.about.zero:  # which the intrinsic leaves to its caller
        q += np.repeat(zero_points(q), GROUP, 1).astype(np.int64) - (1 << form.about.bits - 1)
    buffers = {
        "w": Buffer(stored[""].view(form.dtype)),
        "a": Buffer(a.astype(TIERS[tier].activations(packing)[2])),
        "start": Buffer(start.astype(np.int32)),
        "d": Buffer(np.zeros((tokens, groups, 1, form.rows), np.int32)),
    }
    if ".high" in stored:
        buffers["high"] = Buffer(stored[".high"])
    nibbles = form.about.like == "w4" and not form.unsigned
    expected = a[:, 0].astype(np.int64) @ q.T * (16 if nibbles else 1)
    return buffers, expected.reshape(tokens, groups, 1, form.rows)


@pytest.mark.parametrize("extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize(
    ("kind", "tokens", "groups"),
    [
        (kind.name, *tile)
        for kind in BASES
        for tile in ([(1, 1), (2, 1), (3, 2), (4, 1)] if kind.name in ("w4", "w8") else [(3, 2)])
    ],
)
@pytest.mark.parametrize("tier", TIERS)
def test_a_tile_is_the_integer_dots_of_its_group(tier, kind, tokens, groups, extreme):
    buffers, expected = operands(tier, kind, tokens, groups, extreme)
    execute(register_dot(tier, TIERS[tier].packing(kind), tokens, groups, 0, 1, False), buffers)
    np.testing.assert_array_equal(integers(tier, buffers["d"].data), expected)


@pytest.mark.parametrize("extreme", [False, True], ids=["random", "extreme"])
@pytest.mark.parametrize("kind", [kind.name for kind in BASES if not kind.high_bits])
@pytest.mark.parametrize(("tier", "table"), [("dotprod", False), ("dotprod", True), ("i8mm", False)])
def test_parts_of_a_row_group_are_its_dots(tier, table, kind, extreme):
    buffers, expected = operands(tier, kind, 8, 1, extreme)
    if table:
        buffers["start"] = Buffer(np.full((1, 8, 4), np.float32(-12582912)).view(np.int32))
    name = register_dot(tier, TIERS[tier].packing(kind), 8, 1, 0, 2, table)
    found = []
    for w, d in zip(*(np.split(buffers[which].data, 2, 3) for which in "wd"), strict=True):
        part = {**buffers, "w": Buffer(w), "d": Buffer(np.ascontiguousarray(d))}
        execute(name, part)
        found.append(part["d"].data)
    np.testing.assert_array_equal(integers(tier, np.concatenate(found, 3)), expected)


def integers(tier: str, dots: Array) -> Array:
    """What dots are, of tiers that start them at the bits of a float."""
    return -12582912 - dots.view(np.float32).astype(np.int64) if tier == "dotprod" else dots


@pytest.mark.parametrize("kind", [kind.name for kind in BASES])
@pytest.mark.parametrize("tier", list(TIERS))
def test_inner_loops_keep_to_the_registers(tier: str, kind: str) -> None:
    for n in (1, 64) if kind in ("w4", "w8") else (64,):  # of the others, what fits many tokens fits one
        assert loop_of(TIERS[tier], kind, n).spills == 0, n
