"""Sums and maxima over a workgroup, with subgroups and without, on lavapipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.gpu.build import Builder, gpu_kernel
from crosscompile.gpu.choose import flat
from crosscompile.spirv.capabilities import Gpu
from crosscompile.spirv.emit import Shader, emit
from tests.shaders import DESKTOP, run_shader, validate

ROUNDS = (1, 4, 3)
"""Values of one reduction after the other, in the same shared memory."""


def reducing(gpu: Gpu, threads: int) -> Shader:
    """(x (8, threads)) -> y (threads, 16): what each thread gets of each value's sum, and of its maximum."""

    def body(k: Builder) -> None:
        x = k.buffer("x", (sum(ROUNDS), threads), "float32")
        y = k.buffer("y", (threads, 2 * sum(ROUNDS)), "float32")
        with k.launch((1,), threads) as (_, thread):
            shared = k.reduction(max(ROUNDS), threads)
            first = 0
            for count in ROUNDS:
                values = [k.bind(x[first + i, thread]) for i in range(count)]
                for j, largest in enumerate((False, True)):
                    for i, total in enumerate(k.reduce(thread, values, shared, largest=largest)):
                        k.store(y, total, thread, 2 * (first + i) + j)
                first += count

    return emit(flat("reducing", gpu_kernel("reducing", gpu, body)))


@pytest.mark.parametrize("threads", [1, 2, 32, 48, 64, 96, 128, 256, 512])
@pytest.mark.parametrize("gpu", [Gpu(invocations=512), replace(DESKTOP, invocations=512)], ids=["alone", "subgroups"])
def test_every_thread_gets_all_of_them(gpu: Gpu, threads: int, program: Path, tmp_path: Path) -> None:
    shader = reducing(gpu, threads)
    validate(shader.code, "reducing", tmp_path)
    # below zero, so that what is read beyond a value's numbers, or left of another reduction, is no harmless maximum
    x = np.random.default_rng(threads).integers(-1000, 0, (sum(ROUNDS), threads)).astype(np.float32)
    (raw,) = run_shader(program, tmp_path, shader, [x], [8 * threads * sum(ROUNDS)])
    found = np.frombuffer(raw, np.float32).reshape(threads, sum(ROUNDS), 2)
    np.testing.assert_array_equal(found, np.broadcast_to(np.stack([x.sum(1), x.max(1)], 1), found.shape))
