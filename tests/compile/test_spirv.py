"""SPIR-V from TIR: random kernels against LLVM, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from crosscompile.errors import CodegenError
from crosscompile.gpu.build import Builder as GpuBuilder
from crosscompile.gpu.build import f32, gpu_kernel, i32
from crosscompile.gpu.choose import as_threads, flat, gpu_function
from crosscompile.kernels.build import Builder, cast, kernel
from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.rotary import Turn, rope_append
from crosscompile.kernels.rows import rms_norm
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import emit
from crosscompile.spirv.glsl import print_glsl
from crosscompile.target import Target, gpu_tier
from tests.campaigns import shaders
from tests.shaders import DESKTOP, compile_glsl, run_shaders, validate

TARGET = Target("aarch64", "linux", gpu_tier("aarch64"))


def test_random_kernels_compute_the_same_as_llvms(tmp_path: Path):
    assert shaders.run(8, 20, tmp_path) == []


def test_a_loop_that_is_always_left_is_valid(tmp_path: Path):
    """Code behind it is reached by nothing, and still has to lie within the loop."""

    def body(k: Builder) -> None:
        x, y = k.buffer("x", (4, 16), "float32"), k.buffer("y", (4, 16), "float32")
        with k.shared(4) as m, k.loop(0, 16) as c:
            T.evaluate(tirx.break_loop())
            k.store(y, x[m, c], m, c)

    validate(emit(as_threads("left", kernel("left", body), DESKTOP)).code, "left", tmp_path)


def _elementwise(value) -> tirx.PrimFunc:
    def body(k: Builder) -> None:
        x, y = k.buffer("x", (4, 16), "float32"), k.buffer("y", (4, 16), "float32")
        with k.shared(4) as m, k.loop(0, 16) as c:
            k.store(y, value(x[m, c]), m, c)

    return kernel("unusual", body)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda x: tirx.call_pure_extern("float32", "their_function", x), "their_function"),
        (lambda x: tirx.erf(x), "erf"),
        (lambda x: cast("float32", cast("float64", x)), "float64"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(value, named: str):
    with pytest.raises(CodegenError, match=rf"unusual.*{named}"):
        emit(as_threads("unusual", _elementwise(value), DESKTOP))


def test_kernels_without_a_counterpart_run_as_they_are(tmp_path: Path):
    """Norms over whole rows have no GPU kernel that rotates and appends, too."""
    function = rope_append(3, Heads(4, 2, 64, "f16", 0), Turn(32, "row", True, 1e-5))
    made = emit(gpu_function("rope_append", function, TARGET, DESKTOP), ("table_cap",))
    assert made.scalars == ("table_cap",)
    validate(made.code, "rope_append", tmp_path)


def test_a_gpu_without_subgroups_or_dot_products_gets_kernels_without(tmp_path: Path):
    least = Gpu()
    made = emit(gpu_function("rms_norm", rms_norm(2, 256, 1e-5, None), TARGET, least))
    check("rms_norm", made.needs, least)
    validate(made.code, "rms_norm", tmp_path)
    assert "GroupNonUniformArithmetic" not in made.needs.capabilities
    richer = emit(gpu_function("rms_norm", rms_norm(2, 256, 1e-5, None), TARGET, DESKTOP))
    with pytest.raises(CodegenError, match=r"rms_norm needs SPIR-V's GroupNonUniformArithmetic.*--device cpu"):
        check("rms_norm", richer.needs, least)


@pytest.mark.parametrize("as_glsl", [False, True])
def test_the_last_workgroup_sees_what_all_others_wrote(as_glsl: bool, program: Path, tmp_path: Path):
    """Each of 61 leaves a number in memory and counts itself; the last adds up, whichever it is, and sets back."""

    def clear(k: GpuBuilder) -> None:
        turns = k.buffer("turns", (3,), "int32")
        with k.launch((1,), 3) as (_, thread):
            k.store(turns, i32(0), thread)

    def body(k: GpuBuilder) -> None:
        turns, left = k.exchange("turns", (3,), "int32"), k.exchange("left", (61, 64), "float32")
        y, told = k.buffer("y", (64,), "float32"), k.shared(1)
        with k.launch((61,), 64) as (workgroup, thread):
            k.store(left, tirx.Cast("float32", workgroup * 64 + thread), workgroup, thread)
            k.fence()
            k.barrier()
            with k.when(tirx.EQ(thread, i32(0))):
                k.store(told, tirx.Cast("float32", k.add_at(turns, i32(1), i32(2))), 0)
            k.barrier()
            with k.when(told[0] > f32(59.5)):
                k.fence()
                sum_ = k.local(1)
                k.store(sum_, f32(0.0), 0)
                with k.loop(0, 61) as i:
                    k.store(sum_, sum_[0] + left[i, thread], 0)
                k.store(y, sum_[0], thread)
                with k.when(tirx.EQ(thread, i32(0))):
                    k.store(turns, i32(0), 2)

    shaders = []
    for each in (clear, body):
        function = flat("kernel", gpu_kernel("kernel", Gpu(), each))
        shader = emit(function)
        code = compile_glsl(print_glsl(function), "kernel", tmp_path) if as_glsl else shader.code
        validate(code, "kernel", tmp_path)
        shaders.append(replace(shader, code=code))
    sizes = {"turns": 12, "left": 61 * 256, "first": 256, "second": 256}
    steps = [(shaders[0], ["turns"]), *((shaders[1], ["turns", "left", y]) for y in ("first", "second"))]
    made = run_shaders(program, tmp_path, steps, {}, sizes)
    expected = (np.arange(61 * 64, dtype=np.float32).reshape(61, 64)).sum(0)
    for y in ("first", "second"):
        np.testing.assert_array_equal(np.frombuffer(made[y], np.float32), expected)
    assert not any(np.frombuffer(made["turns"], np.int32))


def test_limits_of_a_gpu_are_checked():
    made = emit(gpu_function("rms_norm", rms_norm(2, 8192, 1e-5, None), TARGET, DESKTOP))
    with pytest.raises(CodegenError, match="256 invocations in a workgroup, the board's GPU has 64"):
        check("rms_norm", made.needs, Gpu(DESKTOP.capabilities, invocations=64))
    with pytest.raises(CodegenError, match="3 storage buffers, the board's GPU has 2"):
        check("rms_norm", made.needs, Gpu(DESKTOP.capabilities, buffers=2))
