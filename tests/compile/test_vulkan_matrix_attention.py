"""Attention of prompts on matrix units: where it is chosen, always, and what it computes, where a driver has matrices.

EDGELLM_VULKAN_COMMAND (tests/shaders.py) runs the kernels where Vulkan has them, as in test_vulkan_matrix.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.codegen import SCALARS
from crosscompile.gpu.attention import merge_kernel, parts_kernel, splits_for
from crosscompile.gpu.attention_cuts import MatrixTile
from crosscompile.gpu.attention_matrix import matrix_kernel
from crosscompile.gpu.choose import flat
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.kv_cache import Heads
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import Shader, emit
from tests.compile.test_vulkan_attention import LONG, SEVERAL, TURNS, WINDOW, Pool, Rows, expected, made, prompt
from tests.compile.test_vulkan_matrix import CAPABILITY, LARGE, SIZES, UNSUITABLE, capabilities_of, opens
from tests.shaders import ELSEWHERE, elsewhere, run_shader

TOLERANCE = 2e-3
"""Of the largest result: queries, and weights of values, are f16."""
MIXED = [*SEVERAL, (1, 201), (1, 202)]
"""More rows than a few, of sessions that have one, several or none in a tile."""
SMALL = Heads(6, 2, 16, "f16", 50)


def shader_of(n: int, heads: Heads, gpu: Gpu, splits: int) -> Shader:
    """As it is chosen."""
    return emitted(parts_kernel("kernel", gpu, n, heads, splits), gpu)


def emitted(function: object, gpu: Gpu) -> Shader:
    shader = emit(flat("kernel", function), SCALARS)
    check("kernel", shader.needs, gpu)
    return shader


@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("per_kv", [1, 4, 7, 71])
def test_prompts_take_them(dim: int, per_kv: int) -> None:
    """Within the shared memory that the tile says, which is what the GPU has."""
    heads = Heads(2 * per_kv, 2, dim, "f16", 0)
    for gpu in (LARGE, SIZES["8x8"]):
        for n in (16, 33, 128):
            tile = MatrixTile.choose(n, heads, gpu)
            if tile is None:
                assert (gpu, dim) == (SIZES["8x8"], 256)  # which has 32 KiB
                continue
            assert tile.shared_bytes(heads) <= gpu.shared_bytes
            assert tile.rows * tile.heads <= tile.slots
    shader = shader_of(128, heads, LARGE, 2)
    tile = MatrixTile.choose(128, heads, LARGE)
    assert tile is not None
    assert CAPABILITY in capabilities_of(shader.code)
    assert shader.needs.shared_bytes == tile.shared_bytes(heads)


def test_other_rows_heads_and_gpus_do_not() -> None:
    heads = Heads(8, 2, 64, "f16", 0)
    for few in (2, 8, 32):
        assert CAPABILITY not in capabilities_of(shader_of(few, heads, LARGE, 2).code)
    for other in (replace(heads, dtype="f32"), replace(heads, dtype="i8"), replace(heads, dim=72)):
        assert MatrixTile.choose(32, other, LARGE) is None
    for name, gpu in UNSUITABLE.items():
        gpu = replace(gpu, shared_bytes=max(gpu.shared_bytes, Gpu.shared_bytes))
        assert CAPABILITY not in capabilities_of(shader_of(128, replace(heads, dim=128), gpu, 2).code), name


@pytest.fixture(scope="module")
def gpu(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    """The first GPU of those whose matrices the driver multiplies."""
    for sought in SIZES.values():
        if opens(sought, program, tmp_path_factory.mktemp("asked")):
            return sought
    pytest.skip(f"no VK_KHR_cooperative_matrix here; {ELSEWHERE} names a command that runs kernels where it is")


@pytest.mark.parametrize(
    ("heads", "rows", "splits", "scale"),
    [
        (SMALL, MIXED, None, 2.0),
        (SMALL, TURNS, 1, 2.0),
        (WINDOW, LONG, None, 2.0),
        (Heads(71, 1, 16, "f16", 0), TURNS, None, 2.0),
        *(
            pytest.param(*each, marks=pytest.mark.oracle)
            for each in (
                (Heads(8, 2, 64, "f16", 0), LONG, None, 2.0),
                (Heads(4, 2, 80, "f16", 0), MIXED, None, 2.0),
                (Heads(4, 4, 96, "f16", 0), LONG, None, 1e5),
                (Heads(4, 2, 128, "f16", 0), prompt(80, 200), 2, 2.0),
            )
        ),
    ],
)
def test_attention(
    heads: Heads, rows: Rows, splits: int | None, scale: float, gpu: Gpu, program: Path, tmp_path: Path
) -> None:
    """Against NumPy; scale: of queries, for which f16 must be no limit."""
    n, rng = len(rows), np.random.default_rng(len(rows))
    pool = Pool.random(heads, rows, rng)
    q = (scale * rng.standard_normal((n, heads.query, heads.dim))).astype(np.float32)
    splits = splits or splits_for(n, heads, SCHEDULES[gpu.schedule])
    slots = np.array([session for session, _ in rows], np.int32) * np.int32(pool.table.shape[1])
    positions = np.array([position for _, position in rows], np.int32)
    tile = MatrixTile.choose(n, heads, gpu)
    assert tile is not None
    first = emitted(matrix_kernel("kernel", gpu, n, heads, splits, tile), gpu)
    inputs = [q, positions, slots, pool.table, pool.stored_keys, pool.stored_values]
    shape = (n, heads.query, splits, heads.dim + 2)
    (raw,) = run_shader(program, tmp_path, first, inputs, [4 * int(np.prod(shape))], gpu, elsewhere())
    parts = np.frombuffer(raw, np.float32).reshape(shape).copy()
    parts[parts[..., -1] == 0] = np.nan  # those of no block are nobody's, whatever was there
    second = made(merge_kernel("kernel", gpu, n, heads, splits, None), gpu, tmp_path)
    (raw,) = run_shader(program, tmp_path, second, [parts, positions], [q.nbytes])
    right = expected(q, heads, rows, pool)
    found = np.frombuffer(raw, np.float32).reshape(q.shape)
    assert np.abs(found - right).max() <= TOLERANCE * np.abs(right).max()
