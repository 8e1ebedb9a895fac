"""Random kernels, as SPIR-V and as GLSL on a Vulkan device and as LLVM's machine code here: all must compute the same.

python -m tests.campaigns.shaders [--n 100] [--seed 1] [--swiftshader]

SPIR-V is made twice, also for GPUs that access nothing narrower than 32 bits; SwiftShader is one.

A kernel has buffers of several types, loops with sums, guards whose untaken side would read out of bounds, divisions of
negative numbers, conversions, vectors and breaks off; or a workgroup reduces rows, with subgroups and through shared
memory alone, which is another function than the processor's. Whole numbers must be equal, floats to 1e-5 of the
largest.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from crosscompile.arithmetic import Expr, exp, fma, silu
from crosscompile.codegen import compile_kernels
from crosscompile.gpu import build as gpu_build
from crosscompile.gpu.choose import as_threads, flat
from crosscompile.kernels.build import Builder, cast, kernel, span
from crosscompile.spirv.capabilities import NARROW, Gpu
from crosscompile.spirv.emit import emit
from crosscompile.spirv.glsl import print_glsl
from edgellm.golden import host_target
from tests.shaders import DESKTOP, WORDS, build_runner, compile_glsl, run_shader, swiftshader, validate

INPUTS = ("float32", "float16", "int32", "int8", "uint8", "uint32")
OUTPUTS = ("float32", "int32", "int8", "float16")
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}


@dataclass
class Sample:
    """A random kernel with its buffers. reduction: another function that gives the same, for a workgroup a row."""

    function: tirx.PrimFunc
    inputs: list[np.ndarray]
    out_dtype: str
    shape: tuple[int, int]
    reduction: Callable[[Gpu], tirx.PrimFunc] | None = None

    def on_gpus(self, name: str) -> Iterator[tirx.PrimFunc]:
        """The functions that a GPU runs: the same one, a unit a thread, or two reductions."""
        if self.reduction is None:
            yield as_threads(name, self.function, DESKTOP)
        else:
            for gpu in (DESKTOP, Gpu()):
                yield flat(name, self.reduction(gpu))


class Writer:
    """Writes random expressions over a kernel's buffers."""

    def __init__(self, rng: np.random.Generator, k: Builder, buffers: dict[str, Any], columns: int) -> None:
        self.rng, self.k, self.buffers, self.columns = rng, k, buffers, columns

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def integer(self, row: Expr, column: Expr, depth: int) -> Expr:
        """An int32 of moderate size."""
        if depth == 0:
            name = self.pick("int32", "int8", "uint8")
            leaves = (
                lambda: cast("int32", self.buffers[name][row, column]),
                lambda: cast("int32", column) - int(self.rng.integers(50)),
                lambda: tirx.const(int(self.rng.integers(-90, 90)), "int32"),
                lambda: cast("int32", self.buffers["uint32"][row, column] >> tirx.const(20, "uint32")),
            )
            return self.pick(*leaves)()
        a, b = self.integer(row, column, depth - 1), self.integer(row, column, depth - 1)
        divisor = self.pick(-7, -3, 2, 3, 5, 8, 13)
        makers: tuple[Callable[[], Expr], ...] = (
            lambda: a + b,
            lambda: a - b,
            lambda: (a % 127) * (b % 63),
            lambda: tirx.floordiv(a, tirx.const(divisor, "int32")),
            lambda: tirx.floormod(a, tirx.const(divisor, "int32")),
            lambda: tirx.truncdiv(a, tirx.const(divisor, "int32")),
            lambda: tirx.truncmod(a, tirx.const(divisor, "int32")),
            lambda: tirx.Min(a, b),
            lambda: tirx.Max(a, b),
            lambda: a & b,
            lambda: a | b,
            lambda: a ^ b,
            lambda: (a << tirx.const(3, "int32")) >> tirx.const(int(self.rng.integers(1, 6)), "int32"),
            lambda: tirx.Select(self.condition(row, column), a, b),
            lambda: self.guarded("int32", row, column, a),
            lambda: cast("int32", cast(self.pick("int8", "uint8", "int16"), a + self.buffers["int32"][row, column])),
        )
        return self.pick(*makers)()

    def condition(self, row: Expr, column: Expr) -> Expr:
        a, b = self.integer(row, column, 0), self.integer(row, column, 0)
        test = self.pick(lambda: a < b, lambda: a >= b, lambda: tirx.EQ(a % 2, b % 2), lambda: tirx.NE(a, b))()
        other = a > tirx.const(0, "int32")
        return self.pick(lambda: test, lambda: tirx.And(test, other), lambda: tirx.Or(test, tirx.Not(other)))()

    def guarded(self, dtype: str, row: Expr, column: Expr, otherwise: Expr) -> Expr:
        """An element to the left, which the first column does not have."""
        moved = column - int(self.rng.integers(1, 4))
        return tirx.if_then_else(moved >= 0, self.buffers[dtype][row, moved], otherwise)

    def real(self, row: Expr, column: Expr, depth: int) -> Expr:
        """A float32 of moderate size."""
        if depth == 0:
            leaves = (
                lambda: self.buffers["float32"][row, column],
                lambda: cast("float32", self.buffers["float16"][row, column]),
                lambda: cast("float32", self.buffers["int8"][row, column]) * tirx.const(0.01, "float32"),
                lambda: tirx.const(float(np.float32(self.rng.standard_normal())), "float32"),
            )
            return self.pick(*leaves)()
        a, b = self.real(row, column, depth - 1), self.real(row, column, depth - 1)
        half, one = tirx.const(0.5, "float32"), tirx.const(1.0, "float32")
        makers: tuple[Callable[[], Expr], ...] = (
            lambda: a + b,
            lambda: a - b,
            lambda: a * half,
            lambda: fma(a, half, b),
            lambda: tirx.Min(a, b),
            lambda: tirx.Max(a, b),
            lambda: a / (tirx.Max(b, half) + one),
            lambda: exp(tirx.Min(a, one)),
            lambda: silu(tirx.Max(a, tirx.const(-4.0, "float32"))),
            lambda: tirx.sqrt(tirx.Max(a, half)),
            lambda: tirx.Select(self.condition(row, column), a, b),
            lambda: self.guarded("float32", row, column, a),
            lambda: cast("float32", self.integer(row, column, 1) % 100) * tirx.const(0.02, "float32"),
        )
        return self.pick(*makers)()


def _random_input(rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    if dtype == "int32":
        return rng.integers(-1000, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def make_reduction(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> Sample:
    """Sums, or maxima, of the rows of a random float32 expression."""
    rows, columns = shape
    seed, depth, largest = int(rng.integers(1 << 30)), int(rng.integers(1, 4)), bool(rng.integers(2))
    threads = int(rng.choice([1, 3, 32, 48, 64, 250]))

    def at(k: Any, buffers: dict[str, Any], row: Expr, column: Expr) -> Expr:
        """The same expression each time."""
        return Writer(np.random.default_rng(seed), k, buffers, columns).real(row, column, depth)

    def body(k: Builder) -> None:
        buffers = {dtype: k.buffer(dtype, shape, dtype) for dtype in INPUTS}
        out, total = k.buffer("out", (rows, 1), "float32"), k.local(1, "float32")
        with k.shared(rows) as row:
            k.store(total, tirx.const(-3e38 if largest else 0.0, "float32"), 0)
            with k.loop(0, columns) as c:
                value = at(k, buffers, row, c)
                k.store(total, tirx.Max(total[0], value) if largest else total[0] + value, 0)
            k.store(out, total[0], row, 0)

    def gpu_body(k: gpu_build.Builder) -> None:
        buffers = {dtype: k.buffer(dtype, shape, dtype) for dtype in INPUTS}
        out = k.buffer("out", (rows, 1), "float32")
        with k.launch((rows,), threads) as (row, thread):
            shared, total = k.shared(threads), k.local(1)
            k.store(total, tirx.const(-3e38 if largest else 0.0, "float32"), 0)
            with k.strided(thread, columns) as c:
                value = at(k, buffers, row, c)
                k.store(total, tirx.Max(total[0], value) if largest else total[0] + value, 0)
            (whole,) = k.reduce(thread, [total[0]], shared, largest)
            with k.when(tirx.EQ(thread, gpu_build.i32(0))):
                k.store(out, whole, row, 0)

    inputs = [_random_input(rng, dtype, shape) for dtype in INPUTS]
    return Sample(
        kernel(name, body), inputs, "float32", (rows, 1), lambda gpu: gpu_build.gpu_kernel(name, gpu, gpu_body)
    )


def make(rng: np.random.Generator, name: str) -> Sample:
    """A random kernel: elementwise, with a sum over columns, or over vectors of sixteen."""
    shape = (int(rng.integers(1, 70)), 16 * int(rng.integers(1, 5)))
    out_dtype = OUTPUTS[int(rng.integers(len(OUTPUTS)))]
    form = ("elementwise", "sum", "vector", "search", "reduce")[int(rng.integers(5))]
    if form == "reduce":
        return make_reduction(rng, name, shape)
    rows, columns = shape
    is_real = out_dtype.startswith("float")
    depth = int(rng.integers(1, 4))

    def body(k: Builder) -> None:
        buffers = {dtype: k.buffer(dtype, shape, dtype) for dtype in INPUTS}
        out = k.buffer("out", shape, out_dtype)
        write = Writer(rng, k, buffers, columns)
        total = k.local(1, "float32" if is_real else "int32")
        zero = tirx.const(0, "float32" if is_real else "int32")

        def value(row: Expr, column: Expr) -> Expr:
            return write.real(row, column, depth) if is_real else write.integer(row, column, depth)

        with k.shared(rows) as row:
            if form == "vector":
                with k.loop(0, columns // 16) as c:
                    first, second = (buffers["float32"][row, span(c * 16)] for _ in range(2))
                    number = cast(
                        "float32x16", buffers["int8"][row, span(c * 16)] >> tirx.Broadcast(tirx.const(2, "int8"), 16)
                    )
                    both = k.bind(fma(first, tirx.Broadcast(tirx.const(0.5, "float32"), 16), number) - second)
                    kept = tirx.Select(both > tirx.Broadcast(tirx.const(0.0, "float32"), 16), both, second)
                    k.store(out, cast(f"{out_dtype}x16", kept), row, span(c * 16))
                return
            if form == "search":  # columns up to the first whose value is too large
                k.store(total, zero, 0)
                with k.loop(0, columns) as c:
                    at = value(row, c)
                    with T.If(at > tirx.const(40, "float32" if is_real else "int32")), T.Then():
                        T.evaluate(tirx.break_loop())
                    k.store(total, total[0] + (at if is_real else at % 50), 0)
                with k.loop(0, columns) as c:
                    k.store(out, cast(out_dtype, total[0]), row, c)
                return
            with k.loop(0, columns) as column:
                if form == "elementwise":
                    k.store(out, cast(out_dtype, value(row, column)), row, column)
                else:
                    k.store(total, zero, 0)
                    with k.loop(0, column + 1) as c:
                        at = value(row, c)
                        k.store(total, total[0] + (at if is_real else at % 50), 0)
                    k.store(out, cast(out_dtype, total[0]), row, column)

    inputs = [_random_input(rng, dtype, shape) for dtype in INPUTS]
    return Sample(kernel(name, body), inputs, out_dtype, shape)


def on_host(library: ctypes.CDLL, name: str, sample: Sample) -> np.ndarray:
    """What LLVM's code computes."""
    out = np.zeros(sample.shape, sample.out_dtype)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*sample.inputs, out)]
    status = library[name](*pointers, ctypes.c_int64(0), ctypes.c_int64(sample.shape[0]))
    assert status == 0
    return out


def difference(expected: np.ndarray, found: np.ndarray) -> str | None:
    """What is wrong with a result, if anything."""
    if expected.dtype.kind != "f":
        wrong = int((expected != found).sum())
        return f"{wrong} of {expected.size} whole numbers differ" if wrong else None
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return "not all numbers are finite in both"
    finite = np.isfinite(a)
    largest = float(np.abs(a[finite]).max(initial=1e-30))
    off = float(np.abs(a - b)[finite].max(initial=0.0)) / largest
    return f"off by {off:.2g} of the largest" if off > TOLERANCE[str(expected.dtype)] else None


def run(n: int, seed: int, folder: Path, other: Mapping[str, str] | None = None) -> list[str]:
    """Compares n kernels; returns what is wrong, one line each. other: SwiftShader's environment."""
    target = host_target()
    assert target is not None, "this machine has no tier"
    rng = np.random.default_rng(seed)
    samples = {f"kernel{i}": make(rng, f"kernel{i}") for i in range(n)}
    code, signatures = compile_kernels({name: sample.function for name, sample in samples.items()}, target)
    (folder / "kernels.so").write_bytes(code)
    library, program = ctypes.CDLL(str(folder / "kernels.so")), build_runner()
    problems = []
    for name, sample in samples.items():
        expected = on_host(library, signatures[name].name, sample)  # equal code is there once
        for function in sample.on_gpus(name):
            shader = emit(function)
            validate(shader.code, name, folder)
            in_words = emit(function, packed=WORDS.packed)
            validate(in_words.code, name, folder)
            assert not {*NARROW.values()} & {*in_words.needs.capabilities}
            printed = replace(shader, code=compile_glsl(print_glsl(function), name, folder))
            ways = [("SPIR-V", shader, None), ("GLSL", printed, None), ("SPIR-V in words", in_words, None)]
            for way, made, env in (*ways, *([("SwiftShader", in_words, other)] if other is not None else [])):
                (raw,) = run_shader(program, folder, made, sample.inputs, [expected.nbytes], env=env)
                wrong = difference(expected, np.frombuffer(raw, expected.dtype).reshape(sample.shape))
                if wrong is not None:
                    problems.append(f"{name}, {way}: {wrong}\n{function.script()}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Random kernels: SPIR-V, GLSL and LLVM agree.")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--swiftshader", action="store_true", help="on Chromium's imitation of a GPU, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgellm-shaders-") as name:
        try:
            other = swiftshader() if arguments.swiftshader else None
        except pytest.skip.Exception as error:
            parser.error(str(error))
        problems = run(arguments.n, arguments.seed, Path(name), other)
    print(*problems, sep="\n\n")
    print(f"{arguments.n} kernels from seed {arguments.seed}: {len(problems)} differ")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
