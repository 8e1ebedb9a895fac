"""Kernels that Khronos's validation layers have instrumented: none reads or writes beyond what it binds.

In `make test`, two small networks; all families with `python -m tests.campaigns.gpu_families bounds`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.gpu.build import Builder, gpu_kernel, i32
from crosscompile.gpu.choose import flat
from crosscompile.spirv.capabilities import Gpu
from crosscompile.spirv.emit import Shader, emit
from tests.compile.test_vulkan_families import check
from tests.shaders import DESKTOP, bounds_checked, build_runner, run_shader


def copying(n: int) -> Shader:
    """Copies n float32, a thread each."""

    def body(k: Builder) -> None:
        given, out = k.buffer("given", (n,), "float32"), k.buffer("out", (n,), "float32")
        with k.launch((1,), n) as (_, thread):
            k.store(out, given[thread + i32(0)], thread)

    return emit(flat("copying", gpu_kernel("copying", Gpu(), body)))


def test_an_access_beyond_what_is_bound_is_found(tmp_path: Path) -> None:
    given, program = np.arange(64, dtype=np.float32), build_runner()
    (whole,) = run_shader(program, tmp_path, copying(64), [given], [256], env=bounds_checked())
    assert whole == given.tobytes()
    for n_given, n_made in ((63, 64), (64, 63)):
        with pytest.raises(AssertionError, match="252 bytes were bound, and the highest out of bounds access was at"):
            run_shader(program, tmp_path, copying(64), [given[:n_given]], [4 * n_made], env=bounds_checked())


@pytest.mark.parametrize(("name", "schedule"), [("olmo2-biases", "mali"), ("olmoe-biases", "processor")])
def test_a_network_stays_within_what_it_binds(name: str, schedule: str, tmp_path: Path) -> None:
    check(name, "w4a8 i8", tmp_path, replace(DESKTOP, schedule=schedule), bounds_checked())
