"""Linear layers and embeddings of every kind of weights, kernel by kernel on lavapipe, against NumPy.

In `make test`, each kind in one way of cutting kernels; every group size and class of GPUs with `make test-full`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crosscompile import calibrated, checkpoint
from crosscompile.calibrated import CalibrationWriter
from crosscompile.compiled import Parameter
from crosscompile.errors import CheckpointError
from crosscompile.gpu.choose import flat, gpu_function
from crosscompile.gpu.knobs import LinearKnobs, candidates
from crosscompile.gpu.linear import Linear, linear_kernel
from crosscompile.gpu.split import split_parameters
from crosscompile.kernels.embed import embed
from crosscompile.kinds import BASES, KINDS
from crosscompile.models.design import EMBEDDING
from crosscompile.packing import GROUP, dequantize, pack_quantized, quantize
from crosscompile.quantize import check_sources, write_weights
from crosscompile.rounding import Rounded
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import emit
from crosscompile.target import Target, gpu_tier
from tests.shaders import DESKTOP, run_shader, validate

CLASSES = {
    "desktop": DESKTOP,
    "v3d": Gpu(schedule="v3d"),
    "processor": Gpu(DESKTOP.capabilities, schedule="processor"),
    "adreno": replace(DESKTOP, schedule="adreno", mixed=True),
}
"""With dot products and subgroups, with the least that drivers reach, where threads share nothing, and with dot
products of which one side has no sign."""
ROWS, COLUMNS = 10, 256
SAMPLE = [
    (kind.name, list(CLASSES)[i % 3], n) for i, kind in enumerate(BASES) for n in ((1, 12) if i % 3 < 2 else (3,))
]


def weights(
    kind: str, rng: np.random.Generator, rows: int = ROWS, columns: int = COLUMNS
) -> tuple[str, np.ndarray, np.ndarray, list[np.ndarray]]:
    """(packing, integers, scales, what a GPU reads) of a random weight whose groups do not lie around zero."""
    packing = gpu_tier("x86_64").packing(kind)
    middles = 1.5 * rng.standard_normal((rows, columns // GROUP)).repeat(GROUP, 1)
    shifted = rng.standard_normal((rows, columns)) + middles
    q, scale = quantize(kind, shifted.astype(np.float32))
    return packing, q, scale, list(pack_quantized(packing, q, scale).values())


def compare_linear(
    kind: str,
    gpu_class: str,
    n: int,
    program: Path,
    folder: Path,
    shape: tuple[int, int] = (ROWS, COLUMNS),
    knobs: LinearKnobs | None = None,
    before: int = 0,
    signed: bool = False,
) -> bytes:
    """A linear layer with a bias and what it is added to: as many buffers as every GPU binds. Returns its results.

    before: rows of a larger one that are another part's, as are a few behind these. signed: with dot products of which
    both sides have a sign, whatever the class has.
    """
    rng = np.random.default_rng(1)
    rows, columns = shape
    packing, q, scale, stored = weights(kind, rng, rows, columns)
    gpu = replace(CLASSES[gpu_class], mixed=CLASSES[gpu_class].mixed and not signed)
    whole = before + rows + 3 if before else rows
    function = linear_kernel("linear", gpu, Linear(n, rows, columns, packing, (True, False), before, whole), knobs)
    shader = emit(flat("linear", function))
    check("linear", shader.needs, gpu)
    validate(shader.code, kind, folder)
    a = rng.integers(-127, 128, (n, columns)).astype(np.int8)
    scale_a = rng.random((n, columns // GROUP)).astype(np.float32)
    _, shrink, _ = gpu_tier("x86_64").activations(packing)
    bias, rest = (rng.standard_normal(shape).astype(np.float32) for shape in ((whole,), (n, whole)))
    inputs = [a, scale_a * np.float32(shrink), *stored, bias, rest]
    (raw,) = run_shader(program, folder, shader, inputs, [n * whole * 4])
    found = np.frombuffer(raw, np.float32).reshape(n, whole)[:, before : before + rows]
    expected = (a * scale_a.repeat(GROUP, 1)).astype(np.float64) @ dequantize(q, scale).T.astype(np.float64)
    expected += (bias + rest)[:, before : before + rows]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    return raw


def compare_embedding(kind: str, program: Path, folder: Path) -> None:
    packing, q, scale, stored = weights(kind, np.random.default_rng(2))
    target = Target("x86_64", "linux", gpu_tier("x86_64"), gpu=DESKTOP)
    tokens = np.array([9, 0, 4], np.int32)
    function = embed(len(tokens), ROWS, COLUMNS, packing, times=1.5)
    shader = emit(gpu_function("embed", function, target, DESKTOP))
    validate(shader.code, kind, folder)
    (raw,) = run_shader(program, folder, shader, [tokens, *stored], [len(tokens) * COLUMNS * 4])
    expected = dequantize(q, scale)[tokens] * np.float32(1.5)
    assert raw == expected.tobytes()


@pytest.mark.parametrize(("kind", "gpu_class", "n"), SAMPLE)
def test_a_linear_layer_of_each_kind(kind: str, gpu_class: str, n: int, program: Path, tmp_path: Path) -> None:
    compare_linear(kind, gpu_class, n, program, tmp_path)


@pytest.mark.parametrize("n", [1, 12])
@pytest.mark.parametrize("kind", [kind.name for kind in BASES])
def test_dot_products_of_which_one_side_has_no_sign(kind: str, n: int, program: Path, tmp_path: Path) -> None:
    """The sums are the same integers, so the results are those of signed ones, bit for bit."""
    mixed, signed = (compare_linear(kind, "adreno", n, program, tmp_path, signed=each) for each in (False, True))
    assert mixed == signed


@pytest.mark.parametrize(("gpu_class", "n"), [("desktop", 1), ("v3d", 12), ("processor", 3)])
def test_a_part_of_a_linear_layer(gpu_class: str, n: int, program: Path, tmp_path: Path) -> None:
    compare_linear("w4", gpu_class, n, program, tmp_path, before=64)


@pytest.mark.parametrize("kind", [kind.name for kind in BASES])
def test_an_embedding_of_each_kind(kind: str, program: Path, tmp_path: Path) -> None:
    compare_embedding(kind, program, tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize("gpu_class", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_class(kind: str, gpu_class: str, program: Path, tmp_path: Path) -> None:
    for n in (1, 5, 12, 40):
        compare_linear(kind, gpu_class, n, program, tmp_path)
    compare_embedding(kind, program, tmp_path)


def searched(kind: str, gpu_class: str, n: int) -> tuple[tuple[int, int], tuple[LinearKnobs, ...]]:
    """(shape, candidates): rows that are no multiple of a tile; columns for as many threads as may share them."""
    rows, columns = 72, 4096 if n <= 8 else 256
    packing = gpu_tier("x86_64").packing(kind)
    return (rows, columns), candidates(Linear(n, rows, columns, packing, (True, False), 0, rows), CLASSES[gpu_class])


@pytest.mark.parametrize(
    ("kind", "gpu_class", "n"),
    [("w4", "v3d", 1), ("u4", "desktop", 8), ("w4", "desktop", 72), ("u4", "v3d", 72), ("w4", "processor", 64)],
)
def test_schedules_that_tuning_may_choose(kind: str, gpu_class: str, n: int, program: Path, tmp_path: Path) -> None:
    """A few of them."""
    shape, found = searched(kind, gpu_class, n)
    assert len(found) > 7
    for knobs in (*found[1::5], found[-1]):
        compare_linear(kind, gpu_class, n, program, tmp_path, shape, knobs)


@pytest.mark.oracle
@pytest.mark.parametrize("n", [1, 8, 32, 128])
@pytest.mark.parametrize("gpu_class", CLASSES)
def test_every_schedule_that_tuning_may_choose(gpu_class: str, n: int, program: Path, tmp_path: Path) -> None:
    shape, found = searched("w4", gpu_class, n)
    for knobs in found:
        compare_linear("w4", gpu_class, n, program, tmp_path, shape, knobs)


@pytest.mark.parametrize(("n", "kind"), [(1, "f16"), (12, "f32")])
def test_schedules_of_weights_in_floats(n: int, kind: str, program: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    work = Linear(n, 24, 64, gpu_tier("x86_64").packing(kind), (True,), 0, 24)
    x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, 64), (24, 64), (24,)))
    stored = w.astype(np.float16 if kind == "f16" else np.float32)
    expected = x @ stored.astype(np.float32).T + bias
    for knobs in candidates(work, DESKTOP)[::3]:
        shader = emit(flat("linear", linear_kernel("linear", DESKTOP, work, knobs)))
        (raw,) = run_shader(program, tmp_path, shader, [x, stored, bias], [n * 24 * 4])
        np.testing.assert_allclose(np.frombuffer(raw, np.float32).reshape(n, 24), expected, rtol=1e-4, atol=1e-4)


def test_parts_of_a_matrix_are_rows_of_the_whole(tmp_path: Path) -> None:
    """Rounded here or calibrated; and a table that has other rows than the model is noticed as it is without parts."""
    rng = np.random.default_rng(3)
    table = rng.standard_normal((200, 64)).astype(np.float32)
    save_file({"table": table}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    source = checkpoint.load(tmp_path)
    whole = Parameter(EMBEDDING, ("table",), (200, 64), gpu_tier("aarch64").packing("w4"), "embedding")
    parts = split_parameters([whole], Gpu(binding_bytes=3000))
    assert [part.shape for part in parts] == [(64, 64), (64, 64), (64, 64), (8, 64)]
    (tmp_path / "calibrated").mkdir()
    writer = CalibrationWriter(tmp_path / "calibrated")
    q, scale = quantize("w4", table[::-1])
    writer(EMBEDDING, "w4", Rounded(q, scale, 0.1))
    writer.finish()
    for rounded in (None, calibrated.read(tmp_path / "calibrated")):
        for name, parameters in (("whole", [whole]), ("parts", parts)):
            (tmp_path / name).mkdir(exist_ok=True)
            write_weights(source, parameters, tmp_path / name, calibrated=rounded)
        one, many = (load_file(tmp_path / name / "embedding.safetensors") for name in ("whole", "parts"))
        for suffix in ("", ".scale"):
            found = np.concatenate([many[part.name + suffix] for part in parts])
            np.testing.assert_array_equal(found, one[EMBEDDING + suffix])
    short = split_parameters([replace(whole, shape=(150, 64))], Gpu(binding_bytes=3000))
    with pytest.raises(CheckpointError, match=r"gives 200 rows, .* implies 150"):
        check_sources(source, short)
