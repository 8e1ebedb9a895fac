"""A row's linear layers with what stands before and behind them, on lavapipe against NumPy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tvm import tirx

from crosscompile.codegen import SCALARS
from crosscompile.errors import CodegenError
from crosscompile.gpu.attention_whole import counters
from crosscompile.gpu.build import Builder, gpu_kernel
from crosscompile.gpu.choose import flat
from crosscompile.gpu.fused import Source, supports
from crosscompile.gpu.fused_kernels import gated_kernel, normed_kernel, rotated_kernel, scaled_kernel
from crosscompile.gpu.fused_knobs import Fused, FusedKnobs, chosen_fused, default_fused, fused_candidates
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.kernels.rows import Form
from crosscompile.kinds import KINDS
from crosscompile.packing import GROUP, dequantize, pack_quantized, quantize
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import Shader, emit
from crosscompile.target import gpu_tier
from tests.shaders import DESKTOP, run_shader, run_shaders, validate

CLASSES = {
    "desktop": replace(DESKTOP, invocations=1024, buffers=16),
    "v3d": Gpu(schedule="v3d", buffers=16),
    "small": Gpu(schedule="mali", invocations=128, buffers=16),
    "mali": Gpu(schedule="mali", invocations=384, buffers=16),
    "adreno": replace(DESKTOP, invocations=1024, buffers=16, schedule="adreno", mixed=True),
    "roomy": replace(DESKTOP, invocations=1024, buffers=16, shared_bytes=32768),
}
"""With as many threads as these kernels use, the floor's, the fewest that Vulkan allows, no power of two; dot products
of which one side has no sign; and memory for the widest teams."""
EPSILON = 0.25
"""Large enough to be seen in the result."""
BLOCKS, TABLE = 4, np.array([[2, 0], [3, 1]], np.int32)
"""Of the cache; and of two sessions, those of each."""


@dataclass
class Layer:
    """A linear layer of random weights. inputs: what kernels take of it; product: (rows,) float64, with the norm."""

    source: Source
    inputs: list[np.ndarray]
    product: np.ndarray

    @classmethod
    def random(cls, kind: str, rows: int, columns: int, epsilon: float | None = None) -> Layer:
        rng, tier = np.random.default_rng(rows + columns), gpu_tier("x86_64")
        packing, blocks = tier.packing(kind), columns // GROUP
        assert supports(rows, columns, packing)
        middles = 1.5 * rng.standard_normal((rows, blocks)).repeat(GROUP, 1)
        q, scale = quantize(kind, (rng.standard_normal((rows, columns)) + middles).astype(np.float32))
        a = rng.integers(-127, 128, (1, columns)).astype(np.int8)
        scale_a = (rng.random((1, blocks)) / (60 * np.sqrt(columns))).astype(np.float32)
        product = dequantize(q, scale).astype(np.float64) @ (a * scale_a.repeat(GROUP, 1)).astype(np.float64)[0]
        scales = scale_a * np.float32(Form.for_weights(tier, packing).shrink)
        if epsilon is not None:
            squares = (2 * GROUP * rng.random((1, blocks))).astype(np.float32)
            scales = np.concatenate([scales, squares], axis=1)
            product /= np.sqrt(squares.sum(dtype=np.float64) / columns + epsilon)
        stored = list(pack_quantized(packing, q, scale).values())
        return cls(Source(rows, columns, packing, epsilon), [a, scales, *stored], product)


def made(function: tirx.PrimFunc, gpu: Gpu, folder: Path) -> Shader:
    shader = emit(flat("kernel", function), SCALARS)
    check("kernel", shader.needs, gpu)
    validate(shader.code, "kernel", folder)
    return shader


def check_quantized(q: bytes, scale: np.ndarray, expected: np.ndarray, form: Form) -> None:
    """Integers and scales of groups against the values (columns,) that they stand for."""
    groups = expected.reshape(-1, GROUP)
    largest = np.abs(groups).max(1)
    np.testing.assert_allclose(scale, largest / 127 * form.shrink, rtol=1e-4)
    found = np.frombuffer(q, np.int8).reshape(groups.shape) * (scale / np.float32(form.shrink))[:, None]
    errors = np.abs(found - groups).max(1)
    assert (errors <= 0.51 * largest / 127 + 1e-5 * largest.max()).all()


class Case(NamedTuple):
    """A layer on a class of GPUs; epsilon: of the norm before it, if there is one."""

    kind: str
    gpu_class: str
    rows: int
    columns: int
    epsilon: float | None


Compare = Callable[[Case, Path, Path, FusedKnobs | None], None]


def of_case(case: Case) -> tuple[Gpu, Layer]:
    return CLASSES[case.gpu_class], Layer.random(case.kind, case.rows, case.columns, case.epsilon)


def compare_gated(case: Case, program: Path, folder: Path, knobs: FusedKnobs | None = None) -> None:
    gpu, layer = of_case(case)
    form, half = Form(shrink=1 / 16), case.rows // 2
    shader = made(gated_kernel("kernel", gpu, layer.source, "silu", form, knobs), gpu, folder)
    q, scale = run_shader(program, folder, shader, layer.inputs, [half, half // GROUP * 4])
    gate, up = layer.product[:half], layer.product[half:]
    check_quantized(q, np.frombuffer(scale, np.float32), gate / (1 + np.exp(-gate)) * up, form)


def compare_normed(case: Case, program: Path, folder: Path, knobs: FusedKnobs | None = None) -> None:
    gpu, layer = of_case(case)
    form, rng, rows = Form(), np.random.default_rng(5), case.rows
    residual = rng.standard_normal((1, rows)).astype(np.float32)
    weight = (1 + 0.3 * rng.standard_normal(rows)).astype(np.float32)
    shader = made(normed_kernel("kernel", gpu, layer.source, form, knobs), gpu, folder)
    inputs, blocks = [*layer.inputs, residual, weight], rows // GROUP
    raw, q, scales = run_shader(program, folder, shader, inputs, [rows * 4, rows, 2 * blocks * 4])
    total, expected = np.frombuffer(raw, np.float32), layer.product + residual[0]
    assert np.abs(total - expected).max() < 1e-5 * np.abs(expected).max()
    scale, squares = np.frombuffer(scales, np.float32).reshape(2, blocks)
    check_quantized(q, scale, expected * weight, form)
    np.testing.assert_allclose(squares, (expected**2).reshape(blocks, GROUP).sum(1), rtol=1e-4)


def compare_scaled(case: Case, program: Path, folder: Path, knobs: FusedKnobs | None = None) -> None:
    """With a bias and without."""
    (gpu, layer), rows = of_case(case), case.rows
    bias = np.linspace(-1, 2, rows, dtype=np.float32) * np.float32(np.abs(layer.product).max())
    for more in ((), (bias,)):
        shader = made(scaled_kernel("kernel", gpu, layer.source, bool(more), knobs), gpu, folder)
        (raw,) = run_shader(program, folder, shader, [*layer.inputs, *more], [rows * 4])
        errors = np.abs(np.frombuffer(raw, np.float32) - sum(more, layer.product))
        assert errors.max() < 1e-5 * np.abs(layer.product).max()


COMPARE: dict[str, Compare] = {"gated": compare_gated, "normed": compare_normed, "scaled": compare_scaled}


@pytest.mark.parametrize(
    ("what", "kind", "gpu_class", "rows", "columns", "epsilon"),
    [
        ("gated", "w4", "desktop", 128, 1056, EPSILON),
        ("gated", "w8", "v3d", 128, 64, None),
        ("normed", "w4", "v3d", 64, 1056, None),
        ("normed", "u4", "desktop", 96, 2048, EPSILON),
        ("scaled", "w8", "desktop", 96, 1056, EPSILON),
        ("scaled", "u4", "v3d", 64, 2112, EPSILON),
        ("gated", "w4", "mali", 128, 64, EPSILON),
    ],
)
def test_a_layer_and_what_is_behind_it(
    what: str, kind: str, gpu_class: str, rows: int, columns: int, epsilon: float | None, program: Path, tmp_path: Path
) -> None:
    COMPARE[what](Case(kind, gpu_class, rows, columns, epsilon), program, tmp_path, None)


@pytest.mark.oracle
@pytest.mark.parametrize("columns", [64, 1024, 1056, 4128, 9248])
@pytest.mark.parametrize("gpu_class", CLASSES)
@pytest.mark.parametrize("what", COMPARE)
def test_every_count_of_columns(what: str, gpu_class: str, columns: int, program: Path, tmp_path: Path) -> None:
    """Fewer groups than a team has threads, as many, one more, and more than are read at once."""
    for kind, epsilon in (("w4", EPSILON), ("w8", None)):
        COMPARE[what](Case(kind, gpu_class, 128, columns, epsilon), program, tmp_path, None)


PACKING = gpu_tier("x86_64").packing("w4")


@pytest.mark.parametrize(
    ("what", "kind", "columns", "knobs"),
    [
        ("gated", "w4", 2112, FusedKnobs(512, 64, 8)),
        ("normed", "u4", 1056, FusedKnobs(128, 16, 16)),
        ("scaled", "w8", 4128, FusedKnobs(1024, 64, 4)),
        *(
            pytest.param(what, kind, 4128, knobs, marks=pytest.mark.oracle)
            for what, kind in (("gated", "w8"), ("normed", "w4"), ("scaled", "u4"))
            for knobs in fused_candidates(Fused(f"{what}_linear", Source(64, 4128, PACKING)), CLASSES["roomy"])
        ),
    ],
)
def test_what_tuning_may_choose(
    what: str, kind: str, columns: int, knobs: FusedKnobs, program: Path, tmp_path: Path
) -> None:
    work = Fused(f"{what}_linear", Source(64, columns, gpu_tier("x86_64").packing(kind), EPSILON))
    assert knobs in fused_candidates(work, CLASSES["roomy"])
    COMPARE[what](Case(kind, "roomy", 64, columns, EPSILON), program, tmp_path, knobs)


@pytest.mark.parametrize("gpu_class", CLASSES)
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (12288, 4096), (16512, 96)])
def test_candidates(gpu_class: str, rows: int, columns: int) -> None:
    """The default comes first, nothing twice, and whatever else is found is an error."""
    gpu = CLASSES[gpu_class]
    for kind in ("gated_linear", "normed_linear", "scaled_linear", "rotated_linear"):
        work = Fused(kind, Source(rows, columns, PACKING, EPSILON), ("silu",))
        first, *others = fused_candidates(work, gpu)
        assert first == default_fused(work, gpu) == chosen_fused(work, gpu, {})
        assert others or (columns < 128 and gpu_class == "small")
        assert len({first, *others}) == 1 + len(others) <= 28
        last = [first, *others][-1]
        assert chosen_fused(work, gpu, {work.key: asdict(last)}) == last
        with pytest.raises(CodegenError, match=re.escape(work.key) + r".* is no schedule of this kernel; remove"):
            chosen_fused(work, gpu, {work.key: {**asdict(first), "threads": 2048}})


SUPPORTED = [kind for kind in KINDS if supports(64, 1152, gpu_tier("x86_64").packing(kind))]


def test_kinds_that_are_read_16_bytes_at_a_time() -> None:
    assert {"w4", "w8", "u4"} <= set(SUPPORTED)
    assert "w3" not in SUPPORTED


@pytest.mark.oracle
@pytest.mark.parametrize("kind", SUPPORTED)
def test_every_kind(kind: str, program: Path, tmp_path: Path) -> None:
    for gpu_class in ("desktop", "v3d"):
        compare_scaled(Case(kind, gpu_class, 64, 1152, EPSILON), program, tmp_path)
        compare_gated(Case(kind, gpu_class, 64, 1152, None), program, tmp_path)


@pytest.mark.oracle
def test_more_workgroups_than_have_many_threads(program: Path, tmp_path: Path) -> None:
    compare_normed(Case("w4", "desktop", 8256, 96, EPSILON), program, tmp_path)
    compare_gated(Case("w4", "desktop", 16512, 96, None), program, tmp_path)


def copying(gpu: Gpu, n_bytes: int) -> tirx.PrimFunc:
    """A kernel before -> after."""

    def body(k: Builder) -> None:
        before, after = k.words("before", n_bytes), k.words("after", n_bytes)
        with k.each(1, n_bytes // 4) as (_, i):
            k.store(after, before[i], i)

    return gpu_kernel("kernel", gpu, body)


def turned(heads: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Heads (n, dim), rotated."""
    low, high = np.split(heads, 2, axis=1)
    return np.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=1)


@pytest.mark.parametrize(
    ("kind", "gpu_class", "heads", "columns", "epsilon", "clears", "knobs"),
    [
        ("w4", "desktop", Heads(8, 2, 64, "f16", 0), 1056, EPSILON, True, None),
        ("u4", "v3d", Heads(4, 1, 128, "f32", 0), 64, None, False, None),
        ("w4", "roomy", Heads(2, 1, 64, "f16", 0), 2112, EPSILON, True, FusedKnobs(1024, 64, 4)),
        *(
            pytest.param(*each, None, marks=pytest.mark.oracle)
            for each in (
                ("w8", "v3d", Heads(8, 2, 128, "f16", 0), 2112, EPSILON, True),
                ("w8", "desktop", Heads(8, 2, 64, "f32", 0), 64, None, True),
                ("w4", "small", Heads(3, 3, 96, "f16", 0), 1056, EPSILON, True),
                ("w4", "v3d", Heads(8, 2, 32, "f32", 0), 4128, None, False),
                ("w4", "desktop", Heads(40, 8, 128, "f16", 0), 9248, EPSILON, True),
            )
        ),
        *(
            pytest.param("w8", "roomy", Heads(2, 1, 64, "f16", 0), 4128, EPSILON, True, each, marks=pytest.mark.oracle)
            for each in fused_candidates(Fused("rotated_linear", Source(256, 4128, PACKING)), CLASSES["roomy"])
        ),
    ],
)
def test_queries_keys_and_values(
    kind: str,
    gpu_class: str,
    heads: Heads,
    columns: int,
    epsilon: float | None,
    clears: bool,
    knobs: FusedKnobs | None,
    program: Path,
    tmp_path: Path,
) -> None:
    """A key and a value are where they belong, and all else in the cache is as it was. Position −1: of no row."""
    gpu, rng, dim = CLASSES[gpu_class], np.random.default_rng(6), heads.dim
    layer = Layer.random(kind, (heads.query + 2 * heads.kv) * dim, columns, epsilon)
    angles = rng.uniform(-np.pi, np.pi, dim // 2)
    table = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)[None]
    dtype = np.float16 if heads.dtype == "f16" else np.float32
    shapes = {"k": (BLOCKS, heads.kv, dim, KV_BLOCK), "v": (BLOCKS, heads.kv, KV_BLOCK, dim)}
    before = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    before["turns"] = np.full(counters(heads), 7, np.int32)
    kernel = made(rotated_kernel("kernel", gpu, layer.source, heads, clears, knobs), gpu, tmp_path)
    copies = {name: made(copying(gpu, each.nbytes), gpu, tmp_path) for name, each in before.items()}

    calls = [(1, 70), (0, 63), (0, -1)]
    inputs = {f"layer{i}": each for i, each in enumerate(layer.inputs)} | {"table": table, "blocks": TABLE}
    inputs |= {f"{name}_before": each for name, each in before.items()}
    steps: list[tuple[Shader, list[str]]] = []
    outputs: dict[str, int] = {}
    for i, (session, position) in enumerate(calls):
        inputs[f"position{i}"] = np.array([position], np.int32)
        inputs[f"slot{i}"] = np.array([session * TABLE.shape[1]], np.int32)  # the runner's tables have one column
        outputs |= {f"{name}{i}": each.nbytes for name, each in before.items()} | {f"q{i}": heads.query * dim * 4}
        steps += [(copies[name], [f"{name}_before", f"{name}{i}"]) for name in before]
        given = [*(f"layer{j}" for j in range(len(layer.inputs))), "table", f"position{i}", f"slot{i}", "blocks"]
        turns = [f"turns{i}"] if clears else []
        steps += [(kernel, [*given, f"k{i}", f"v{i}", *turns, f"q{i}"])]
    found = run_shaders(program, tmp_path, steps, inputs, outputs)

    query, key, value = np.split(layer.product.reshape(-1, dim), [heads.query, heads.query + heads.kv])
    query, key = (turned(each, table[0, : dim // 2], table[0, dim // 2 :]) for each in (query, key))
    error = 1e-5 * np.abs(layer.product).max()
    narrowing = 1e-3 if heads.dtype == "f16" else 0
    for i, (session, position) in enumerate(calls):
        q = np.frombuffer(found[f"q{i}"], np.float32).reshape(query.shape)
        np.testing.assert_allclose(q, query, rtol=0, atol=error)
        k, v = (np.frombuffer(found[f"{name}{i}"], dtype).reshape(shapes[name]).copy() for name in shapes)
        if position >= 0:
            block, column = TABLE[session, position // KV_BLOCK], position % KV_BLOCK
            np.testing.assert_allclose(k[block, :, :, column], key, rtol=narrowing, atol=error)
            np.testing.assert_allclose(v[block, :, column], value, rtol=narrowing, atol=error)
            k[block, :, :, column] = before["k"][block, :, :, column]
            v[block, :, column] = before["v"][block, :, column]
        np.testing.assert_array_equal(k, before["k"])
        np.testing.assert_array_equal(v, before["v"])
        assert set(np.frombuffer(found[f"turns{i}"], np.int32)) == {0 if clears else 7}
