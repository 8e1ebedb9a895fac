"""Rows of a mixture of experts that are grouped by expert, kernel by kernel on lavapipe, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crosscompile.gpu.choose import flat
from crosscompile.gpu.experts import expert_part
from crosscompile.gpu.grouped import Grouped, Groups, group_rows_kernel, groups_for
from crosscompile.gpu.grouped_linear import grouped_kernel
from crosscompile.packing import GROUP, dequantize, pack_quantized, quantize
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import emit
from crosscompile.target import gpu_tier
from tests.compile.test_vulkan_kinds import CLASSES
from tests.shaders import run_shader, validate

TOTAL, OUT, COLUMNS = 5, 96, 64


def table_of(ids: np.ndarray, groups: Groups) -> np.ndarray:
    """What the sorting kernel should write, where it writes anything."""
    experts, counts = np.zeros(groups.tiles, np.int32), np.zeros(groups.tiles, np.int32)
    places, t = np.full((groups.tiles, groups.tile), -7, np.int32), 0
    for expert in (*range(groups.total), -1):
        own = np.flatnonzero(ids == expert)
        for first in range(0, len(own), groups.tile):
            some = own[first : first + groups.tile]
            experts[t], counts[t], places[t, : len(some)] = expert, len(some), some
            t += 1
    return np.concatenate([experts, counts, places.reshape(-1)])


ROWS = {
    "one expert's": lambda n: np.full(n, 3),
    "another one's each": lambda n: np.arange(n) % TOTAL,
    "not all experts'": lambda n: np.where(np.arange(n) % 3 == 0, 4, 1),
    "some of none": lambda n: np.where(np.arange(n) < n // 2, np.arange(n) % TOTAL, -1),
    "none of any": lambda n: np.full(n, -1),
    "as many as there are tiles for": lambda n: np.concatenate([np.arange(-1, TOTAL), np.full(n - TOTAL - 1, 2)]),
}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize(("n", "gpu_class"), [(24, "desktop"), (20, "processor")])
def test_rows_are_sorted_by_expert(case: str, n: int, gpu_class: str, program: Path, tmp_path: Path) -> None:
    groups, gpu = Groups(n, TOTAL, 8), CLASSES[gpu_class]
    ids = ROWS[case](n).astype(np.int32)
    shader = emit(flat("group", group_rows_kernel("group", gpu, groups)))
    validate(shader.code, "group", tmp_path)
    (raw,) = run_shader(program, tmp_path, shader, [ids], [4 * groups.size])
    found, expected = np.frombuffer(raw, np.int32), table_of(ids, groups)
    used = expected[groups.tiles : 2 * groups.tiles] > 0
    np.testing.assert_array_equal(found[groups.tiles : 2 * groups.tiles], expected[groups.tiles : 2 * groups.tiles])
    np.testing.assert_array_equal(found[: groups.tiles][used], expected[: groups.tiles][used])
    places, known = found[2 * groups.tiles :], expected[2 * groups.tiles :]
    np.testing.assert_array_equal(places[known >= 0], known[known >= 0])


def weights_of(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """(all experts' weights, what a GPU reads)."""
    w = rng.standard_normal((TOTAL * OUT, COLUMNS)).astype(np.float32)
    if kind in ("f16", "f32"):
        stored = w.astype(np.float16 if kind == "f16" else np.float32)
        return stored.astype(np.float64), [stored]
    q, scale = quantize(kind, w)
    return dequantize(q, scale).astype(np.float64), list(
        pack_quantized(gpu_tier("x86_64").packing(kind), q, scale).values()
    )


def compare(
    kind: str, gpu: Gpu, ids: np.ndarray, each: int, program: Path, folder: Path, most: int = TOTAL * OUT
) -> None:
    """A linear layer, grouped if there are enough rows; its weight is a tensor for every `most` rows."""
    rng, rows, packing = np.random.default_rng(5), len(ids), gpu_tier("x86_64").packing(kind)
    groups = groups_for(rows, TOTAL, packing, gpu.schedule)
    w, stored = weights_of(kind, rng)
    if kind in ("f16", "f32"):
        x = rng.standard_normal((rows // each, COLUMNS)).astype(np.float32)
        given = [x]
    else:
        a = rng.integers(-127, 128, (rows // each, COLUMNS)).astype(np.int8)
        scale = rng.random((rows // each, COLUMNS // GROUP)).astype(np.float32)
        x, shrink = a * scale.repeat(GROUP, 1), gpu_tier("x86_64").activations(packing)[1]
        given = [a, scale * np.float32(shrink)]
    picked = ids if groups is None else table_of(ids, groups)
    expected = np.zeros((rows, OUT))
    for row, expert in enumerate(ids):
        if expert >= 0:
            expected[row] = w[expert * OUT : (expert + 1) * OUT] @ x[row // each].astype(np.float64)
    # where each value of the result is from, among all experts' rows; zeros of no expert are the first part's
    place = np.maximum(ids, 0)[:, None] * OUT + np.where(ids[:, None] >= 0, np.arange(OUT), 0)
    for first in range(0, TOTAL * OUT, most):
        held = min(most, TOTAL * OUT - first)
        if groups is None:
            function = expert_part("experts", gpu, rows // each, rows, each, OUT, TOTAL, COLUMNS, packing, first, held)
        else:
            work = Grouped(rows // each, groups, each, OUT, COLUMNS, packing, first, held)
            function = grouped_kernel("experts", gpu, work)
        shader = emit(flat("experts", function))
        check("experts", shader.needs, gpu)
        validate(shader.code, kind, folder)
        some = [part[first * len(part) // len(w) : (first + held) * len(part) // len(w)] for part in stored]
        inputs = [*given, picked, np.zeros(rows // each, np.int32), *some]
        (raw,) = run_shader(program, folder, shader, inputs, [4 * expected.size])
        found = np.frombuffer(raw, np.float32).reshape(expected.shape)
        own = (place >= first) & (place < first + held)
        assert np.abs(found - expected)[own].max(initial=0) < 1e-5 * np.abs(expected).max()


MIXED = np.array([1, 4, 1, 1, -1, 0, 1, 1, 1, 4, 2, 1, -1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, -1, -1, 1, 1], np.int32)
"""No row is expert 3's; expert 1's are more than a tile."""


@pytest.mark.parametrize(
    ("kind", "gpu_class"),
    [
        pytest.param(kind, gpu_class, marks=() if i % 3 == j else pytest.mark.oracle)
        for i, kind in enumerate(("f32", "w8", "w4", "f16", "u4", "n4"))
        for j, gpu_class in enumerate(CLASSES)
    ],
)
def test_a_tile_reads_its_experts_weights_once(kind: str, gpu_class: str, program: Path, tmp_path: Path) -> None:
    for each in (1, 2):
        compare(kind, CLASSES[gpu_class], MIXED, each, program, tmp_path)


@pytest.mark.parametrize("rows", [6, 28])
@pytest.mark.parametrize(("kind", "gpu_class"), [("w4", "desktop"), ("f32", "v3d"), ("u4", "processor")])
def test_experts_that_are_larger_than_a_gpu_binds(
    kind: str, gpu_class: str, rows: int, program: Path, tmp_path: Path
) -> None:
    """Parts end within an expert, and one of them has several."""
    for most in (64, 128) if rows == 28 else (128,):
        compare(kind, CLASSES[gpu_class], MIXED[:rows], 2, program, tmp_path, most)
