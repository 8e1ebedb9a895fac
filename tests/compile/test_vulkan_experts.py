"""Linear layers of a mixture's experts, row by row or grouped by expert, kernel by kernel on lavapipe against NumPy."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.errors import CodegenError
from crosscompile.gpu.choose import flat
from crosscompile.gpu.experts import expert_kernel
from crosscompile.gpu.experts_knobs import (
    Experts,
    ExpertWork,
    chosen_experts,
    default_experts,
    expert_candidates,
    expert_key,
    in_tiles,
)
from crosscompile.gpu.grouped import Grouped, Groups, group_rows_kernel, groups_for
from crosscompile.gpu.grouped_linear import grouped_kernel
from crosscompile.gpu.knobs import LinearKnobs
from crosscompile.gpu.picks import Picks, picking_kernel
from crosscompile.packing import GROUP, dequantize, pack_quantized, quantize
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import emit
from crosscompile.target import gpu_tier
from tests.compile.test_vulkan_kinds import CLASSES
from tests.shaders import run_shader, run_shaders, validate

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


def work_of(kind: str, gpu: Gpu, rows: int, each: int, first: int = 0, held: int = TOTAL * OUT) -> ExpertWork:
    """A linear layer, grouped if there are enough rows."""
    packing = gpu_tier("x86_64").packing(kind)
    groups = groups_for(rows, TOTAL, packing, gpu.schedule)
    if groups is None:
        return Experts(rows // each, each, OUT, COLUMNS, packing, first, held, rows, TOTAL)
    return Grouped(rows // each, each, OUT, COLUMNS, packing, first, held, groups)


def compare(
    kind: str,
    gpu: Gpu,
    ids: np.ndarray,
    each: int,
    program: Path,
    folder: Path,
    most: int = TOTAL * OUT,
    knobs: LinearKnobs | None = None,
) -> None:
    """A linear layer whose weight is a tensor for every `most` rows."""
    rng, rows, packing = np.random.default_rng(5), len(ids), gpu_tier("x86_64").packing(kind)
    whole = work_of(kind, gpu, rows, each)
    if knobs is not None and isinstance(whole, Grouped):
        whole = in_tiles(whole, knobs.tile)
    w, stored = weights_of(kind, rng)
    if kind in ("f16", "f32"):
        x = rng.standard_normal((rows // each, COLUMNS)).astype(np.float32)
        given = [x]
    else:
        a = rng.integers(-127, 128, (rows // each, COLUMNS)).astype(np.int8)
        scale = rng.random((rows // each, COLUMNS // GROUP)).astype(np.float32)
        x, shrink = a * scale.repeat(GROUP, 1), gpu_tier("x86_64").activations(packing)[1]
        given = [a, scale * np.float32(shrink)]
    picked = table_of(ids, whole.groups) if isinstance(whole, Grouped) else ids
    expected = np.zeros((rows, OUT))
    for row, expert in enumerate(ids):
        if expert >= 0:
            expected[row] = w[expert * OUT : (expert + 1) * OUT] @ x[row // each].astype(np.float64)
    inputs = {f"given{i}": each for i, each in enumerate(given)}
    inputs |= {"picked": picked, "tokens": np.zeros(rows // each, np.int32)}
    names, steps = list(inputs), []
    for first in range(0, TOTAL * OUT, most):
        held = min(most, TOTAL * OUT - first)
        work = replace(whole, first=first, held=held)
        kernel = grouped_kernel if isinstance(work, Grouped) else expert_kernel
        shader = emit(flat("experts", kernel("experts", gpu, work, knobs)))
        check("experts", shader.needs, gpu)
        validate(shader.code, kind, folder)
        own = {
            f"w{first}_{i}": part[first * len(part) // len(w) : (first + held) * len(part) // len(w)]
            for i, part in enumerate(stored)
        }
        inputs |= own
        steps.append((shader, [*names, *own, "y"]))
    found = np.frombuffer(run_shaders(program, folder, steps, inputs, {"y": 4 * expected.size})["y"], np.float32)
    assert np.abs(found.reshape(expected.shape) - expected).max() < 1e-5 * np.abs(expected).max()


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
    """Parts end within an expert, and one of them has several. Each leaves alone what the others write."""
    for most in (64, 128) if rows == 28 else (128,):
        compare(kind, CLASSES[gpu_class], MIXED[9:15] if rows == 6 else MIXED, 2, program, tmp_path, most)


def test_a_part_starts_workgroups_for_no_more_rows_than_it_has_of_an_expert() -> None:
    """Of 96 rows: all, 64, 32 of each of two, 64, all."""
    gpu = CLASSES["desktop"]
    for rows, each in ((6, 2), (40, 64)):
        found = []
        for first, held in ((0, TOTAL * OUT), (0, 64), (64, 64), (128, 64), (64, 192)):
            work = work_of("w4", gpu, rows, 2, first, held)
            function = (grouped_kernel if isinstance(work, Grouped) else expert_kernel)("experts", gpu, work)
            found.append(emit(flat("experts", function)).grid[0])
        assert found == [-(-most // each) for most in (96, 64, 32, 64, 96)]


FEW = MIXED[:6]
"""Too few to be grouped."""
MANY = np.tile(MIXED, 2)
"""Enough for larger tiles."""
LAYERS = {
    ("w4", "desktop"): FEW,
    ("u4", "processor"): FEW,
    ("u4", "v3d"): MANY,
    ("f16", "processor"): MIXED,
}
MORE_LAYERS = {("f16", "desktop"): FEW, ("f32", "desktop"): MANY, ("w8", "processor"): MANY}


@pytest.mark.parametrize(
    ("kind", "gpu_class", "ids", "knobs"),
    [
        pytest.param(kind, gpu_class, ids, knobs, marks=pytest.mark.oracle if i or layers is MORE_LAYERS else ())
        for layers in (LAYERS, MORE_LAYERS)
        for (kind, gpu_class), ids in layers.items()
        for found in [expert_candidates(work_of(kind, CLASSES[gpu_class], len(ids), 2), CLASSES[gpu_class])]
        for i, knobs in enumerate(reversed(found))
    ],
)
def test_what_tuning_may_choose(
    kind: str, gpu_class: str, ids: np.ndarray, knobs: LinearKnobs, program: Path, tmp_path: Path
) -> None:
    compare(kind, CLASSES[gpu_class], ids, 2, program, tmp_path, knobs=knobs)


@pytest.mark.parametrize("gpu_class", CLASSES)
def test_candidates(gpu_class: str) -> None:
    """The default comes first, nothing twice; tiles of a matrix in parts are the default's; others are an error."""
    gpu = CLASSES[gpu_class]
    for kind in ("w4", "f32"):
        for rows in (6, 30, 40, 640):
            for held in (TOTAL * OUT, 128):
                work = work_of(kind, gpu, rows, 2, held=held)
                first, *others = expert_candidates(work, gpu)
                assert first == default_experts(work, gpu) == chosen_experts(work, gpu, {})
                assert others
                assert len({first, *others}) == 1 + len(others) <= 24
                tiles = {each.tile for each in (first, *others)}
                assert tiles == {first.tile} or (held == TOTAL * OUT and isinstance(work, Grouped))
                assert chosen_experts(work, gpu, {expert_key(work): asdict(others[-1])}) == others[-1]
                with pytest.raises(
                    CodegenError, match=re.escape(expert_key(work)) + r".* is no schedule of this kernel"
                ):
                    chosen_experts(work, gpu, {expert_key(work): {**asdict(first), "rows": 3}})


@pytest.mark.parametrize("picks", [Picks(1, 3, 17), Picks(32, 8, 128), Picks(8, 2, 8)], ids=str)
def test_experts_that_are_measured_are_as_many_as_a_router_would_choose(
    picks: Picks, program: Path, tmp_path: Path
) -> None:
    shader = emit(flat("pick", picking_kernel("pick", CLASSES["v3d"], picks)))
    (raw,) = run_shader(program, tmp_path, shader, [], [4 * picks.turns * picks.row_elements])
    found = np.frombuffer(raw, np.int32).reshape(picks.turns, -1)[:, : picks.n * picks.used]
    np.testing.assert_array_equal(found, [picks.of_turn(turn).reshape(-1) for turn in range(picks.turns)])
    assert ((found >= 0) & (found < picks.total)).all()
    tokens = found.reshape(-1, picks.used)
    assert all(len(set(token)) == picks.used for token in tokens.tolist())
    expected = picks.total * (1 - (1 - picks.used / picks.total) ** picks.n)
    assert picks.distinct == pytest.approx(expected, rel=0.15)
    if picks.n == 1:  # no expert has a second turn, and hardly one is left
        assert len(np.unique(found)) == found.size > picks.total - picks.used
