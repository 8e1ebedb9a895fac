"""Prompts on matrix units: how such modules are made, always, and what they compute, where a driver has matrices.

Debian's lavapipe does not, so that here it is what refuses them. EDGELLM_VULKAN_COMMAND (tests/shaders.py) runs the
kernels elsewhere; spirv-val of 2024 or later, if it is the first in PATH, says whether they are valid.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.gpu.choose import flat
from crosscompile.gpu.knobs import LinearKnobs, candidates, default_knobs, matrix_bytes, matrix_split, way_of
from crosscompile.gpu.linear import Linear, linear_kernel
from crosscompile.kinds import BASES
from crosscompile.packing import GROUP, dequantize
from crosscompile.spirv.capabilities import FLOOR, MATRIX_UNITS, Gpu, check
from crosscompile.spirv.container import pack_modules
from crosscompile.spirv.emit import Shader, emit
from crosscompile.target import gpu_tier
from edgellm import local_gpu
from edgellm.boards import find_board
from edgellm.compile import build
from edgellm.precision import Options
from tests.compile.test_vulkan import modules, run
from tests.compile.test_vulkan_kinds import weights
from tests.server import MODEL
from tests.shaders import DESKTOP, ELSEWHERE, elsewhere, lavapipe, run_shader, validate

CAPABILITY = 6022  # CooperativeMatrixKHR
EXTENSION = "GL_KHR_cooperative_matrix"
LACKING = "lacks the matrix units that the bundle is compiled for"
TOLERANCE = 2e-3
"""Of a row's largest result: a factor is an f16, rounded up to three times (scale, factor, scaled row)."""


def units(subgroup: int = 32, matrix: int = 16, shared_bytes: int = 48 << 10, invocations: int = 1024) -> Gpu:
    """A large GPU with matrix units; 48 KiB is the least that those have."""
    capabilities = (*DESKTOP.capabilities, *MATRIX_UNITS)
    return replace(
        DESKTOP,
        capabilities=capabilities,
        subgroup=subgroup,
        matrix=matrix,
        shared_bytes=shared_bytes,
        invocations=invocations,
    )


LARGE = units()
SIZES = {"16x16": LARGE, "8x8": units(8, 8, 32 << 10)}
"""What NVIDIA's drivers multiply, and lavapipe."""
UNSUITABLE = {
    "without": replace(LARGE, subgroup=0),
    "least": Gpu(),
    "threads share nothing": replace(LARGE, schedule="processor"),
    "subgroups too large": units(128, invocations=128),
    "little memory": units(shared_bytes=4096),
}


def layer(n: int, kind: str = "w4", rows: int = 256, columns: int = 256, addends: tuple[bool, ...] = ()) -> Linear:
    return Linear(n, rows, columns, gpu_tier("x86_64").packing(kind), addends, 0, rows)


def shader_of(work: Linear, gpu: Gpu, knobs: LinearKnobs | None = None) -> Shader:
    return emit(flat("linear", linear_kernel("linear", gpu, work, knobs)))


def instructions(module: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(opcode, operands)."""
    words, at = struct.unpack(f"<{len(module) // 4}I", module), 5
    while at < len(words):
        yield words[at] & 0xFFFF, words[at + 1 : at + (words[at] >> 16)]
        at += words[at] >> 16


def capabilities_of(module: bytes) -> set[int]:
    return {operands[0] for opcode, operands in instructions(module) if opcode == 17}


def matrices_of(file: bytes) -> int:
    """Byte 12 of kernels.spv."""
    return int(struct.unpack_from("<I", file, 12)[0])


# ---- which layers, and how their modules are made


@pytest.mark.parametrize("kind", [kind.name for kind in BASES])
def test_quantized_layers_of_many_rows_take_them(kind: str) -> None:
    assert way_of(layer(8, kind), LARGE) == "few"
    for n in (9, 32, 128):
        assert way_of(layer(n, kind), LARGE) == "matrices"
        for name, gpu in UNSUITABLE.items():
            assert way_of(layer(n, kind), gpu) in ("tiles", "alone"), name


def test_layers_in_floats_do_not() -> None:
    assert way_of(layer(128, "f16"), LARGE) == way_of(layer(128, "f32"), LARGE) == "float"


def test_a_module_declares_what_it_needs() -> None:
    for addends in ((False,), (True, False)):
        shader = shader_of(layer(128, addends=addends), LARGE)
        check("linear", shader.needs, LARGE)
        found = list(instructions(shader.code))
        assert {9, 5345, CAPABILITY} <= capabilities_of(shader.code)
        assert [operands for opcode, operands in found if opcode == 14] == [(0, 3)]  # the Vulkan memory model
        assert [operands[2:] for opcode, operands in found if opcode == 16] == [(shader.needs.invocations, 1, 1)]
        for name in ("cooperative_matrix", "vulkan_memory_model"):
            assert f"SPV_KHR_{name}\0".encode() in shader.code
        assert {4457, 4458, 4459} <= {opcode for opcode, _ in found}  # matrices are read, multiplied and written


@pytest.mark.parametrize("name", UNSUITABLE)
def test_no_other_gpu_gets_matrices(name: str) -> None:
    gpu = UNSUITABLE[name]
    shader = shader_of(layer(32), gpu)
    check("linear", shader.needs, gpu)
    assert not {9, 5345, CAPABILITY} & capabilities_of(shader.code)
    assert [operands for opcode, operands in instructions(shader.code) if opcode == 14] == [(0, 1)]


def test_kernels_spv_says_for_which_matrices() -> None:
    code = {"linear": b"\0" * 20}
    assert matrices_of(pack_modules(code, LARGE)) == 32 | 16 << 8
    assert matrices_of(pack_modules(code, SIZES["8x8"])) == 8 | 8 << 8
    assert matrices_of(pack_modules(code, DESKTOP)) == matrices_of(pack_modules(code)) == 0


@pytest.mark.parametrize("gpu", [LARGE, units(64), units(16, 16, 16 << 10, 256), SIZES["8x8"]])
def test_every_cut_fits_the_gpu(gpu: Gpu) -> None:
    """Shared memory, threads, and parts of tiles that are whole matrices; the largest kernels are those with all."""
    for columns in (96, 256):
        work = layer(512, "u4", 4096, columns, (True, False))
        cuts = candidates(work, gpu)
        assert len(cuts) >= 3
        for knobs in cuts:
            down, across = matrix_split(knobs, gpu)
            assert down * across * gpu.subgroup == knobs.threads <= gpu.invocations
            assert knobs.tile % (down * gpu.matrix) == knobs.rows % (across * gpu.matrix) == 0
            assert matrix_bytes(knobs, gpu, 1) <= gpu.shared_bytes
            check("linear", shader_of(work, gpu, knobs).needs, gpu)


def test_many_workgroups_get_large_tiles_and_few_small_ones() -> None:
    large = default_knobs(layer(512, rows=11008), LARGE)
    small = default_knobs(layer(16, rows=256), LARGE)
    assert large.rows * large.tile > small.rows * small.tile
    assert small.tile == 16


def told(through: list[str], env: dict[str, str] | None) -> set[int]:
    """Subgroups that multiply 16 x 16 matrices, as the runtime says that drivers do."""
    command = [*through, str(local_gpu.program(find_board("local").target().on_gpu(LARGE))), "gpus"]
    lines = subprocess.run(command, capture_output=True, check=True, env=env).stdout.splitlines()
    return {gpu["subgroup"] for gpu in map(json.loads, lines) if gpu["matrices"]}


# ---- a bundle for a GPU that has them, where the only GPU has none


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, what was dumped) of the demo model."""
    folder, board = tmp_path_factory.mktemp("matrix"), find_board("local")
    assert board.vulkan is not None
    limits = {"subgroup": 32, "shared_bytes": 48 << 10, "invocations": 1024, "storage_buffers": 12}
    capabilities = tuple(name for name in DESKTOP.capabilities if name not in FLOOR)
    section = replace(board.vulkan, schedule="desktop", capabilities=capabilities, **limits)
    board, dump = replace(board, vulkan=section), folder / "dump"
    made = build(MODEL, board, Options("w4a8"), folder / "bundle", device="vulkan", dump=dump).bundle
    return made.path, dump


def test_a_bundles_prompts_take_them_and_dumps_say_so(made: tuple[Path, Path]) -> None:
    bundle, dump = made
    assert matrices_of((bundle / "kernels.spv").read_bytes()) == 32 | 16 << 8
    found = {name: CAPABILITY in capabilities_of(module) for name, module in modules(bundle).items()}
    assert 0 < sum(found.values()) < len(found)
    for name, has_matrices in found.items():
        text = (dump / f"{name}.comp").read_text()
        assert (f"#extension {EXTENSION} : require" in text) == has_matrices
        assert ("coopMatMulAdd" in text) == has_matrices


def test_a_driver_without_them_is_named(made: tuple[Path, Path]) -> None:
    if 32 in told([], lavapipe()):
        pytest.skip("this lavapipe multiplies matrices of 16 x 16: nothing here refuses them")
    done = run(made[0], "run", str(made[0]), "-p", "Hello!", "-n", "1")
    assert done.returncode != 0
    assert "GPU_MISSING" in done.stderr or "no GPU here can run the bundle" in done.stderr
    assert LACKING in done.stderr
    assert "update its driver, or compile with --device cpu" in done.stderr


# ---- what a driver says and computes


def compute(
    program: Path,
    folder: Path,
    gpu: Gpu,
    work: Linear,
    kind: str,
    knobs: LinearKnobs | None = None,
    named: Gpu | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(result, what NumPy says). Rows of the activation are of sizes from 1e-8 to 1e8, and one is nothing.

    named: whose matrices kernels.spv says that it has.
    """
    rng = np.random.default_rng(1)
    _, q, scale, stored = weights(kind, rng, work.rows, work.columns)
    shader = shader_of(work, gpu, knobs)
    check("linear", shader.needs, gpu)
    assert CAPABILITY in capabilities_of(shader.code)
    sizes = (10.0 ** rng.uniform(-8, 8, (work.n, 1))).astype(np.float32)
    sizes[work.n // 2] = 0
    a = rng.integers(-127, 128, (work.n, work.columns)).astype(np.int8)
    scale_a = rng.random((work.n, work.columns // GROUP)).astype(np.float32) * sizes
    added = [
        rng.standard_normal((work.whole,) if bias else (work.n, work.whole)).astype(np.float32) * (1 if bias else sizes)
        for bias in work.addends
    ]
    _, shrink, _ = gpu_tier("x86_64").activations(work.packing)
    inputs = [a, scale_a * np.float32(shrink), *stored, *added]
    (raw,) = run_shader(program, folder, shader, inputs, [work.n * work.whole * 4], named or gpu, elsewhere())
    part = slice(work.first, work.first + work.rows)
    found = np.frombuffer(raw, np.float32).reshape(work.n, work.whole)[:, part]
    expected = (a * scale_a.repeat(GROUP, 1)).astype(np.float64) @ dequantize(q, scale).T.astype(np.float64)
    return found, expected + sum((each[..., part] for each in added), np.zeros(()))


@pytest.fixture(scope="module", params=SIZES)
def gpu(request: pytest.FixtureRequest, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    """A GPU whose matrices the driver multiplies, asked of the runtime."""
    sought = SIZES[request.param]
    if opens(sought, program, tmp_path_factory.mktemp("asked")):
        return sought
    pytest.skip(
        f"VK_KHR_cooperative_matrix with {request.param} f16 matrices, summed in f32, in subgroups of "
        f"{sought.subgroup} is missing here; {ELSEWHERE} names a command that runs kernels where it is (8x8: `make "
        "matrices`)"
    )


def opens(gpu: Gpu, program: Path, folder: Path) -> bool:
    try:
        compute(program, folder, gpu, layer(16, rows=32, columns=32), "w4")
    except AssertionError as error:
        if LACKING not in str(error):
            raise
        return False
    return True


def compare(
    program: Path, folder: Path, gpu: Gpu, work: Linear, kind: str = "w4", knobs: LinearKnobs | None = None
) -> None:
    found, expected = compute(program, folder, gpu, work, kind, knobs)
    largest = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(found - expected) <= TOLERANCE * largest).all(), f"{work} {knobs}"


@pytest.mark.parametrize("kind", [kind.name for kind in BASES])
def test_matrices_of_each_kind(kind: str, gpu: Gpu, program: Path, tmp_path: Path) -> None:
    """Parts of tiles, with all addends; whole ones, with a residual."""
    compare(program, tmp_path, gpu, layer(21, kind, 40, 96, (True, False)), kind)
    compare(program, tmp_path, gpu, layer(32, kind, 64, 128, (False,)), kind)


@pytest.mark.parametrize(("n", "rows", "addends"), [(128, 128, ()), (131, 136, (False,))])
def test_matrices_in_every_cut(
    n: int, rows: int, addends: tuple[bool, ...], gpu: Gpu, program: Path, tmp_path: Path
) -> None:
    """Whole tiles and parts. Those of more than 64 matrices, all of 8 x 8, take lavapipe minutes to compile."""
    work = layer(n, "w4", rows, 192, addends)
    cuts = [knobs for knobs in candidates(work, gpu) if knobs.rows * knobs.tile <= 64 * gpu.matrix**2]
    assert len(cuts) >= 4
    for knobs in cuts:
        compare(program, tmp_path, gpu, work, knobs=knobs)


def test_a_part_of_a_matrix(gpu: Gpu, program: Path, tmp_path: Path) -> None:
    """Rows of a larger one, the others another kernel's."""
    for n, rows in ((21, 40), (32, 64)):
        work = replace(layer(n, "w4", rows, 128, (False,)), first=64, whole=64 + rows + 16)
        compare(program, tmp_path, gpu, work)


def test_the_same_bits_twice(gpu: Gpu, program: Path, tmp_path: Path) -> None:
    first, second = (compute(program, tmp_path, gpu, layer(128, "w4", 256, 256), "w4")[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("subgroup", "matrix"), [(0, 8), (8, 0), (8, 4), (8, 255), (8, 4096), (16, 8), (24, 8), (64, 8), (255, 255)]
)
def test_other_numbers_in_kernels_spv_are_refused(subgroup: int, matrix: int, program: Path, tmp_path: Path) -> None:
    """Byte 12 is anyone's, and so may be no size that a driver has: an error, no crash."""
    named = replace(SIZES["8x8"], subgroup=subgroup, matrix=matrix)
    with pytest.raises(AssertionError, match=f"{LACKING}|kernels.spv"):
        compute(program, tmp_path, SIZES["8x8"], layer(16, rows=32, columns=32), "w4", named=named)


def test_what_is_told_of_a_driver_is_what_opens(program: Path, tmp_path: Path) -> None:
    """Subgroups that multiply 16 x 16 matrices, of each device: what kernels for them, opened, say too."""
    found = told(elsewhere(), None if elsewhere() else lavapipe())
    for subgroup in (8, 16, 32, 64):
        assert (subgroup in found) == opens(replace(LARGE, subgroup=subgroup), program, tmp_path)


@pytest.mark.parametrize("size", SIZES)
def test_modules_are_valid(size: str, tmp_path: Path) -> None:
    """In spirv-val's eyes, of every cut and kind."""
    gpu = SIZES[size]
    for kind in (kind.name for kind in BASES):
        for addends in ((), (True, False)):
            work = layer(128, kind, 256, 256, addends)
            for knobs in candidates(work, gpu)[:: 1 if kind == "w4" else 3]:
                try:
                    validate(shader_of(work, gpu, knobs).code, f"{kind} {knobs}", tmp_path)
                except AssertionError as error:
                    if "Invalid capability operand" in str(error):
                        pytest.skip("this spirv-val is older than SPV_KHR_cooperative_matrix; one of 2024 knows it")
                    raise
