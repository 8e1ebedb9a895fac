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
from crosscompile.errors import CheckpointError
from crosscompile.gpu.choose import flat, gpu_function
from crosscompile.gpu.linear import Linear, linear_kernel
from crosscompile.gpu.split import split_parameters
from crosscompile.kernels.embed import embed
from crosscompile.kinds import BASES, KINDS
from crosscompile.models.design import EMBEDDING
from crosscompile.packing import GROUP, dequantize, pack_quantized, quantize
from crosscompile.program import Parameter
from crosscompile.quantize import check_sources, write_weights
from crosscompile.rounding import Rounded
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import emit
from crosscompile.target import Target, gpu_tier
from tests.shaders import DESKTOP, build_runner, run_shader, validate

CLASSES = {
    "desktop": DESKTOP,
    "v3d": Gpu(schedule="v3d"),
    "processor": Gpu(DESKTOP.capabilities, schedule="processor"),
}
"""With dot products and subgroups, with the least that drivers reach, and where threads share nothing."""
ROWS, COLUMNS = 10, 256
SAMPLE = [
    (kind.name, list(CLASSES)[i % 3], n) for i, kind in enumerate(BASES) for n in ((1, 12) if i % 3 < 2 else (3,))
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_runner(tmp_path_factory.mktemp("runner"))


def weights(kind: str, rng: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray, list[np.ndarray]]:
    """(packing, integers, scales, what a GPU reads) of a random weight whose groups do not lie around zero."""
    packing = gpu_tier("x86_64").packing(kind)
    middles = 1.5 * rng.standard_normal((ROWS, COLUMNS // GROUP)).repeat(GROUP, 1)
    shifted = rng.standard_normal((ROWS, COLUMNS)) + middles
    q, scale = quantize(kind, shifted.astype(np.float32))
    return packing, q, scale, list(pack_quantized(packing, q, scale).values())


def compare_linear(kind: str, gpu_class: str, n: int, program: Path, folder: Path) -> None:
    """A linear layer with a bias and what it is added to: as many buffers as every GPU binds."""
    rng = np.random.default_rng(1)
    packing, q, scale, stored = weights(kind, rng)
    gpu = CLASSES[gpu_class]
    function = linear_kernel("linear", gpu, Linear(n, ROWS, COLUMNS, packing, (True, False), 0, ROWS))
    shader = emit(flat("linear", function))
    check("linear", shader.needs, gpu)
    validate(shader.code, kind, folder)
    a = rng.integers(-127, 128, (n, COLUMNS)).astype(np.int8)
    scale_a = rng.random((n, COLUMNS // GROUP)).astype(np.float32)
    _, shrink, _ = gpu_tier("x86_64").activations(packing)
    bias, rest = (rng.standard_normal(shape).astype(np.float32) for shape in ((ROWS,), (n, ROWS)))
    inputs = [a, scale_a * np.float32(shrink), *stored, bias, rest]
    (raw,) = run_shader(program, folder, shader, inputs, [n * ROWS * 4])
    found = np.frombuffer(raw, np.float32).reshape(n, ROWS)
    expected = (a * scale_a.repeat(GROUP, 1)).astype(np.float64) @ dequantize(q, scale).T.astype(np.float64)
    expected += bias + rest
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


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
