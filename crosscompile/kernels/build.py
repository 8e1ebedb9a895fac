"""A few words for writing TIR functions as ordinary Python, on TVM's IR builder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from inspect import signature
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from crosscompile.arithmetic import LANES, Expr, constant

OUT_EWISE_FUSABLE, ELEMENTWISE, OPAQUE = 4, 0, 8
"""Relax's op_pattern kinds, as AnnotateTIROpPattern numbers them."""

RANGE = "ellm.range"
"""Marks the loop over [0, groups) that threads share; codegen turns it into [g0, g1)."""

ORIGIN = "ellm.origin"
"""Attribute of a kernel: the key of what made it. Not there any more when code is generated."""


@dataclass(frozen=True)
class Origin:
    """What made a kernel: the function's name and its arguments. A GPU has a kernel of its own for many of them."""

    name: str
    arguments: dict[str, Any]


_origins: dict[str, Origin] = {}


def kernel_maker(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes kernels: called once for the same arguments, and its kernels know where they are from."""

    @wraps(function)
    def make(*positional: Any, **named: Any) -> Any:
        given = signature(function).bind(*positional, **named)
        given.apply_defaults()
        key = f"{function.__name__}{tuple(given.arguments.values())}"
        _origins[key] = Origin(function.__name__, dict(given.arguments))
        return function(*positional, **named).with_attr(ORIGIN, key)

    return cache(make)


def origin_of(function: tirx.PrimFunc) -> Origin | None:
    """Where a kernel is from; None for those from installed packages, and for fused ones."""
    key = function.attrs.get(ORIGIN) if function.attrs else None
    return _origins.get(str(key)) if key is not None else None


def i64(value: int) -> Expr:
    """A dimension. FuseTIR takes int64 ones only."""
    return tirx.IntImm("int64", value)


def divisor(of: int, most: int) -> int:
    """The largest divisor of `of` that is at most `most`: a tile that leaves no remainder."""
    return next(d for d in range(min(of, most), 0, -1) if of % d == 0)


def bind(value: Expr) -> Expr:
    """A name for a value, computed once, where the function being built stands."""
    return T.bind(value)


def prefetch(there: Expr, level: int = 1) -> None:
    """Asks for the cache line of an element, which may lie behind a buffer's end: nothing is read.

    level: the cache that it is wanted in, 1 to 3.
    """
    hints = (tirx.const(v, "int32") for v in (0, 4 - level, 1))  # to read; how local; data
    T.evaluate(T.call_intrin("void", "tirx.prefetch", T.address_of(there), *hints))


def kernel(name: str, body: Callable[[Builder], None], pattern: int = OPAQUE) -> tirx.PrimFunc:
    """The function that `body` writes. pattern: what operator fusion may do with it."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "op_pattern": pattern})
        body(Builder())
    return builder.get()


class Builder:
    """What a kernel's body may say."""

    def buffer(self, name: str, shape: tuple[Any, ...], dtype: str) -> Any:
        """The next parameter. Dimensions: ints or symbolic variables."""
        dims = tuple(i64(d) if isinstance(d, int) else d for d in shape)
        return T.arg(name, T.Buffer(dims, dtype))

    def local(self, size: int, dtype: str = "float32") -> Any:
        """A buffer on the stack: under 1 KB, or TVM would call an allocator."""
        if size * 4 >= 1024:
            raise AssertionError(f"a local buffer of {size} elements does not stay on the stack")
        return T.alloc_buffer((size,), dtype)

    def intermediate(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A buffer between two blocks; the schedule decides how little of it exists at a time."""
        return T.sblock_alloc_buffer(tuple(i64(d) for d in shape), dtype)

    @contextmanager
    def block(self, name: str, kinds: str, extents: tuple[int, ...]) -> Iterator[list[Expr]]:
        """A schedulable block under a loop per extent; kinds: S for spatial axes, R for reduced ones."""
        with T.grid(*(i64(extent) for extent in extents)) as loops, T.sblock(name):
            yield T.axis.remap(kinds, list(loops))

    def start(self, buffer: Any, value: Expr, *index: Any) -> None:
        """What a block's output holds before its reduction begins."""
        with T.init():
            T.buffer_store(buffer, value, list(index))

    def shared(self, extent: int) -> AbstractContextManager[Expr]:
        """The loop that threads share: the outermost one."""
        frame: AbstractContextManager[Expr] = T.serial(i64(0), i64(extent), annotations={RANGE: 1})
        return frame

    def loop(self, start: Any, stop: Any) -> AbstractContextManager[Expr]:
        """for start ≤ i < stop, in order."""
        first, last = (i64(v) if isinstance(v, int) else v for v in (start, stop))
        frame: AbstractContextManager[Expr] = T.serial(first, last)
        return frame

    def unrolled(self, stop: int) -> range:
        """A loop unrolled while the kernel is written."""
        return range(stop)

    def bind(self, value: Expr) -> Expr:
        """A name for a value, computed once, here."""
        return bind(value)

    def divide(self, value: Expr, by: int) -> tuple[Expr, Expr]:
        """Quotient and remainder of a value ≥ 0, in 32 bits: armv7 divides 64 only in a library."""
        narrow = T.bind(T.Cast("int32", value))
        divisor = tirx.const(by, "int32")
        quotient, remainder = tirx.truncdiv(narrow, divisor), tirx.truncmod(narrow, divisor)
        return T.bind(T.Cast("int64", quotient)), T.bind(T.Cast("int64", remainder))

    def store(self, buffer: Any, value: Expr, *index: Any) -> None:
        """buffer[index] = value. A ramp in the index stores a vector."""
        T.buffer_store(buffer, value, list(index))

    def fill(self, buffer: Any, size: int, value: float = 0.0, dtype: str = "float32") -> None:
        """Sets `size` elements, a multiple of 16, of a local buffer."""
        for lane in range(0, size, LANES):
            T.buffer_store(buffer, constant(value, LANES, dtype), [T.ramp(lane, 1, LANES)])

    def when(self, condition: Expr, then: Callable[[], None], otherwise: Callable[[], None] | None = None) -> None:
        """if condition: then() else: otherwise()."""
        with T.If(condition):
            with T.Then():
                then()
            if otherwise is not None:
                with T.Else():
                    otherwise()


def span(start: Any, lanes: int = LANES) -> Expr:
    """The index of `lanes` consecutive elements."""
    return T.ramp(start, 1, lanes)


def cast(dtype: str, value: Expr) -> Expr:
    """value converted to dtype."""
    return T.Cast(dtype, value)
