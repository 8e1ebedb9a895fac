"""A few words for writing GPU kernels as ordinary Python: workgroups, their shared memory, and reductions over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from crosscompile.arithmetic import Expr, constant
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.build import divisor
from crosscompile.spirv.capabilities import Gpu
from crosscompile.spirv.emit import COHERENT
from crosscompile.spirv.expressions import NAMED, dtype_of
from crosscompile.spirv.matrices import MATRIX_EDGE

WORD_BYTES, QUAD_BYTES = 4, 16
_LEFT = 4
"""Numbers of subgroups that are read together."""
PART_ROWS = 64
"""Of whose multiples parts of a matrix have rows (split.py): a tile of a linear layer."""


def gpu_kernel(name: str, gpu: Gpu, body: Callable[[Builder], None]) -> tirx.PrimFunc:
    """The function that `body` writes."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        k = Builder(gpu)
        body(k)
    function = builder.get()
    function = function.with_attr(MATRIX_EDGE, i32(gpu.matrix)) if k.has_matrices else function
    return function.with_attr(COHERENT, k.exchanged) if k.exchanged else function


def i32(value: int) -> Expr:
    return tirx.const(value, "int32")


def f32(value: float) -> Expr:
    return constant(value, 1)


class Builder:
    """What a GPU kernel's body may say. Indices are int32."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.schedule = SCHEDULES[gpu.schedule]
        self.threads = 1
        self.exchanged: list[str] = []
        self.has_matrices = False

    # ---- buffers

    def buffer(self, name: str, shape: Sequence[Any], dtype: str) -> Any:
        """The next parameter."""
        dims = tuple(i32(d) if isinstance(d, int) else d for d in shape)
        return T.arg(name, T.Buffer(dims, dtype))

    def exchange(self, name: str, shape: Sequence[Any], dtype: str) -> Any:
        """The next parameter, in which workgroups see what others wrote before a fence."""
        self.exchanged.append(name)
        return self.buffer(name, shape, dtype)

    def words(self, name: str, n_bytes: int) -> Any:
        """The next parameter, of whatever type, read as uint32."""
        return self.buffer(name, (_whole(name, n_bytes, WORD_BYTES),), "uint32")

    def vectors(self, name: str, n_bytes: int, lanes: int) -> Any:
        """The next parameter, of whatever type, read as so many uint32 at a time: 1, 2 or 4."""
        unit = WORD_BYTES * lanes
        return self.buffer(name, (_whole(name, n_bytes, unit),), "uint32" if lanes == 1 else f"uint32x{lanes}")

    def quads(self, name: str, n_bytes: int, dtype: str = "uint32") -> Any:
        """The next parameter, read 16 bytes at a time: uint32x4, or float32x4."""
        return self.buffer(name, (_whole(name, n_bytes, QUAD_BYTES),), f"{dtype}x4")

    def shared(self, size: int, dtype: str = "float32") -> Any:
        """Memory of a workgroup, 4 bytes an element."""
        return T.alloc_buffer((size,), dtype, scope="shared")

    def reduction(self, count: int, threads: int) -> Any:
        """Shared memory for `reduce` of up to `count` values of so many threads."""
        return self.shared(count * reduction_size(threads))

    def local(self, size: int, dtype: str = "float32") -> Any:
        """An array of one thread. Kept in registers where only constants index it."""
        return T.alloc_buffer((size,), dtype, scope="local")

    # ---- threads

    @contextmanager
    def launch(self, grid: Sequence[int], threads: int) -> Iterator[list[Any]]:
        """Workgroups in up to three dimensions, of `threads` threads: yields their indices, then the thread's."""
        if threads > self.gpu.invocations:
            raise AssertionError(f"{threads} threads, the GPU has {self.gpu.invocations}")
        self.threads = threads
        with ExitStack() as stack:
            indices = []
            for axis, extent in zip("xyz", grid, strict=False):
                indices.append(stack.enter_context(T.launch_thread(T.env_thread(f"blockIdx.{axis}"), extent)))
            indices.append(stack.enter_context(T.launch_thread(T.env_thread("threadIdx.x"), threads)))
            yield indices

    @contextmanager
    def each(self, n: int, columns: int) -> Iterator[tuple[Expr, Expr]]:
        """A thread of its own for every (row, column) of n rows, which it yields."""
        threads = min(64, self.gpu.invocations)
        with self.launch((-(-n * columns // threads),), threads) as (workgroup, thread):
            unit = self.bind(workgroup * threads + thread)
            with self.when(unit < i32(n * columns)):
                yield self.bind(quotient(unit, columns)), self.bind(remainder(unit, columns))

    def barrier(self) -> None:
        """Waits for the workgroup."""
        T.evaluate(T.call_intrin("void", "tirx.tvm_storage_sync", "shared"))

    def fence(self) -> None:
        """What this thread wrote to exchanged buffers is seen by whoever learns of what it writes next."""
        T.evaluate(tirx.call_extern("void", "ellm.fence"))

    def add_at(self, buffer: Any, value: Expr, *index: Any) -> Expr:
        """buffer[index] += value, of an exchanged buffer of int32, and what was there before: one thread at a time."""
        there = T.address_of(buffer[index if len(index) > 1 else index[0]])
        return self.bind(tirx.call_extern("int32", "ellm.atomic_add", there, value))

    # ---- matrices that a subgroup holds: "a0", "a1", … times "b0", … or "r0", …, added to "c0", … (spirv/matrices.py)

    def matrix_clear(self, c: str) -> None:
        self._matrix("clear", c)

    def matrix_load(self, name: str, buffer: Any, at: Any, stride: int) -> None:
        """Rows, of b columns, from buffer[at] on, each `stride` elements of the buffer behind the one before."""
        self._matrix("load", name, T.address_of(buffer[at]), i32(stride))

    def matrix_store(self, c: str, buffer: Any, at: Any, stride: int) -> None:
        self._matrix("store", c, T.address_of(buffer[at]), i32(stride))

    def matrix_multiply(self, a: str, b: str, c: str) -> None:
        """c += a · b."""
        self._matrix("multiply", a, b, c)

    def matrix_times(self, c: str, by: str) -> None:
        """c *= by, element by element, both sums."""
        self._matrix("times", c, by)

    def matrix_plus(self, c: str, by: str) -> None:
        self._matrix("plus", c, by)

    def _matrix(self, word: str, *args: Any) -> None:
        self.has_matrices = True
        T.evaluate(tirx.call_extern("void", f"ellm.matrix_{word}", *args))

    # ---- statements

    def bind(self, value: Expr) -> Expr:
        """Names a value. What is no index is hidden from TVM, which would put it where it is used and simplify that: as
        measured, most of the time that a GPU's kernels took to compile."""
        dtype = dtype_of(value)
        return T.bind(value if dtype == "int32" else tirx.call_extern(dtype, NAMED, value))

    def store(self, buffer: Any, value: Expr, *index: Any) -> None:
        T.buffer_store(buffer, value, list(index))

    def loop(self, start: Any, stop: Any) -> Any:
        """for start ≤ i < stop, in order."""
        first, last = (i32(v) if isinstance(v, int) else v for v in (start, stop))
        return T.serial(first, last)

    @contextmanager
    def strided(self, thread: Expr, size: Any) -> Iterator[Expr]:
        """for i in thread, thread + threads, …, below size."""
        if isinstance(size, int) and size <= self.threads:
            if size == self.threads:
                yield thread
                return
            with T.If(thread < i32(size)), T.Then():
                yield thread
            return
        rounds = -(-size // self.threads) if isinstance(size, int) else (size + self.threads - 1) // self.threads
        with self.loop(0, rounds) as turn:
            at = self.bind(turn * self.threads + thread)
            if isinstance(size, int) and size % self.threads == 0:
                yield at
                return
            with T.If(at < size), T.Then():
                yield at

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        with T.If(condition), T.Then():
            yield

    def choose(self, condition: Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        with T.If(condition):
            with T.Then():
                then()
            with T.Else():
                otherwise()

    # ---- reductions

    def reduce(
        self, thread: Expr, values: Sequence[Expr], shared: Any, largest: bool = False, apart: bool = False
    ) -> list[Expr]:
        """Sums of each of the values over the workgroup, or their maxima; every thread gets them.

        shared: what `reduction` gives. Begins and ends with what all threads see: no barrier is needed around it unless
        `shared` is used for something else. apart: it is not until there was another barrier.
        """
        if self.gpu.has("GroupNonUniformArithmetic") and self.threads >= _LEFT:
            return self._reduce_subgroups(thread, values, shared, largest, apart)
        return self._reduce_in_two(thread, values, shared, largest)

    def _reduce_in_two(self, thread: Expr, values: Sequence[Expr], shared: Any, largest: bool) -> list[Expr]:
        """Few threads join neighbors' numbers, and then every thread what these have left: two barriers, and loads of
        neighbors, of which drivers make vectors. Numbers and what is left of them are apart, so none follows.
        """
        count, joined = len(values), _joined(self.threads)
        each = self.threads // joined
        left = int(shared.shape[0]) - count * joined
        for i, value in enumerate(values):
            self.store(shared, value, thread + i * self.threads)
        self.barrier()
        with self.strided(thread, count * joined) as part:
            self.store(shared, self.join(shared, part * each, each, largest=largest), part + left)
        self.barrier()
        return [self.join(shared, i32(left + i * joined), joined, largest=largest) for i in range(count)]

    def join(self, buffer: Any, first: Any, count: int, stride: int = 1, largest: bool = False) -> Expr:
        """The sum, or the largest, of elements `stride` apart, by pairs."""
        values = [self.bind(buffer[first + i * stride]) for i in range(count)]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            rest = values[-1:] if len(values) % 2 else []
            values = [tirx.Max(a, b) if largest else a + b for a, b in pairs] + rest
        return self.bind(values[0])

    def _reduce_subgroups(
        self, thread: Expr, values: Sequence[Expr], shared: Any, largest: bool, apart: bool
    ) -> list[Expr]:
        """Subgroups join their own numbers, and every thread what they have left, some neighbors at a time."""
        word = "ellm.subgroup_max" if largest else "ellm.subgroup_sum"
        nothing, each = f32(-3.4e38 if largest else 0.0), reduction_size(self.threads)
        index, lane, groups = (
            self.bind(tirx.call_extern("int32", f"ellm.subgroup_{name}")) for name in ("index", "lane", "count")
        )
        parts = [self.bind(tirx.call_extern("float32", word, value)) for value in values]
        with self.when(tirx.EQ(lane, i32(0))):
            for i, part in enumerate(parts):
                self.store(shared, part, index + i * each)
        with self.when(thread < i32(_LEFT - 1)):
            for i in range(len(values)):
                self.store(shared, nothing, groups + thread + i * each)
        self.barrier()
        totals = self.local(len(values))
        for i in range(len(values)):
            self.store(totals, nothing, i)
        with self.loop(0, quotient(groups + (_LEFT - 1), _LEFT)) as turn:
            for i in range(len(values)):
                some = self.join(shared, turn * _LEFT + i * each, _LEFT, largest=largest)
                self.store(totals, tirx.Max(totals[i], some) if largest else totals[i] + some, i)
        results = [self.bind(totals[i]) for i in range(len(values))]
        if not apart:
            self.barrier()
        return results

    # ---- words

    def dot4(self, a: Expr, b: Expr) -> Expr:
        """Σ of the products of four bytes in a and of four signed ones in b, both uint32.

        Those of a are signed, too, but where GPUs want them to be unsigned (`unsigned_dots`).
        """
        if self.unsigned_dots:
            return tirx.call_pure_extern("int32", "ellm.dot4_mixed", b, a)
        if self._dots:
            return tirx.call_pure_extern("int32", "ellm.dot4", a, b)
        total = None
        for byte in range(4):
            product = signed_byte(a, byte) * signed_byte(b, byte)
            total = product if total is None else total + product
        return total

    def sum4(self, a: Expr) -> Expr:
        """Σ of the four signed bytes in a, uint32."""
        if self._dots:
            return self.dot4(tirx.const(0x01010101, "uint32"), a)
        return signed_byte(a, 0) + signed_byte(a, 1) + (signed_byte(a, 2) + signed_byte(a, 3))

    @property
    def unsigned_dots(self) -> bool:
        """Whether one side of its dot products is to have no sign, as on Adreno."""
        return self._dots and self.gpu.mixed and not self.schedule.alone

    @property
    def _dots(self) -> bool:
        """Whether the GPU multiplies four bytes at once."""
        return self.gpu.has("DotProduct", "DotProductInput4x8BitPacked")

    def both_halves(self, value: Expr) -> Expr:
        """A float32 as float16, twice in a uint32."""
        return self.bind(tirx.call_pure_extern("uint32", "ellm.both_halves", value))

    def two_halves(self, low: Expr, high: Expr) -> Expr:
        """Two float32 as float16 in a uint32."""
        return self.bind(tirx.call_pure_extern("uint32", "ellm.two_halves", low, high))

    def add_halves(self, a: Expr, b: Expr) -> Expr:
        """The sums of two float16 in a uint32 and two in another."""
        return tirx.call_pure_extern("uint32", "ellm.add_halves", a, b)

    def times_halves(self, a: Expr, b: Expr) -> Expr:
        return tirx.call_pure_extern("uint32", "ellm.times_halves", a, b)

    def halves(self, word: Expr) -> tuple[Expr, Expr]:
        """The two float16 in a uint32, as float32."""
        low, high = (tirx.call_pure_extern("float32", f"ellm.half_{part}", word) for part in ("low", "high"))
        return low, high


def quotient(value: Expr, by: int) -> Expr:
    """value // by, of what is not negative: compilers do not know that, and make much of a signed division."""
    if by & (by - 1) == 0:
        return value if by == 1 else value >> i32(by.bit_length() - 1)
    return _unsigned(tirx.truncdiv, value, by)


def remainder(value: Expr, by: int) -> Expr:
    """value % by, of what is not negative."""
    return value & i32(by - 1) if by & (by - 1) == 0 else _unsigned(tirx.truncmod, value, by)


def _unsigned(operator: Callable[[Expr, Expr], Expr], value: Expr, by: int) -> Expr:
    return tirx.Cast("int32", operator(tirx.Cast("uint32", value), tirx.const(by, "uint32")))


def signed_byte(word: Expr, byte: int) -> Expr:
    """One byte of a uint32, with its sign, as int32."""
    bits = tirx.Cast("int32", word)
    return (bits << i32(24 - 8 * byte)) >> i32(24)


def lane(vector: Expr, index: int) -> Expr:
    """One lane of a vector."""
    return tirx.Shuffle([vector], [index])


def packed(values: Sequence[Expr]) -> Expr:
    """Four int32 of −128 to 127 as the bytes of a uint32, the first one lowest."""
    word = tirx.Cast("uint32", values[0] & i32(255))
    for byte, value in enumerate(values[1:], 1):
        word = word | tirx.Cast("uint32", (value & i32(255)) << i32(8 * byte))
    return word


def _whole(name: str, n_bytes: int, unit: int) -> int:
    if n_bytes % unit:
        raise AssertionError(f"{name}: {n_bytes} bytes are no multiple of {unit}")
    return n_bytes // unit


def _joined(threads: int) -> int:
    """Threads that join a value's numbers, where subgroups do not."""
    return divisor(threads, 8 if threads <= 128 else 16)


def reduction_size(threads: int) -> int:
    """Elements of shared memory that `reduce` takes a value, with subgroups or without."""
    return threads + _joined(threads)


def threads_for(work: int, most: int, least: int = 32) -> int:
    """A power of two of threads, enough for `work` but at most `most`."""
    threads = least
    while threads < work and threads < most:
        threads *= 2
    return min(threads, most)
