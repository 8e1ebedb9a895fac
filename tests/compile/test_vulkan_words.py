"""GPUs that access nothing narrower than 32 bits, and SwiftShader, a driver that is one and not of Mesa's making."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tvm import tirx

from crosscompile.errors import CodegenError
from crosscompile.gpu.build import Builder, gpu_kernel, i32
from crosscompile.gpu.choose import flat
from crosscompile.runtime import build_runtime
from crosscompile.spirv.capabilities import FLOOR, Gpu
from crosscompile.spirv.emit import emit
from crosscompile.target import target_of_tier
from edgellm import board_gpu, cache, gpu_facts
from edgellm import bundle as bundles
from edgellm.boards import load_board
from edgellm.gpu_facts import VulkanSection
from edgellm.local_remote import LocalRemote
from tests.campaigns.shaders import run
from tests.compile.test_model import host_tiers
from tests.compile.test_vulkan_families import check
from tests.shaders import WORDS, build_runner, lavapipe, run_shader, swiftshader, validate

STRIDE = 83
"""Between what neighboring threads write; it has no divisor in common with the number of elements."""
BITS = ("float16", "int16", "uint16", "int8", "uint8")


@pytest.fixture(scope="module")
def program() -> Path:
    return build_runner()


def reversing(dtype: str, lanes: int, n: int) -> tirx.PrimFunc:
    """Writes n elements in the opposite order but the first and last: a thread each, neighbors by distant threads."""
    element = dtype if lanes == 1 else f"{dtype}x{lanes}"

    def body(k: Builder) -> None:
        given, out = k.buffer("given", (n,), element), k.buffer("out", (n,), element)
        with k.launch((1,), n) as (_, thread):
            place = k.bind(thread * i32(STRIDE) % i32(n))
            with k.when(tirx.And(place > 0, place < n - 1)):
                k.store(out, given[i32(n - 1) - place], place)

    return flat("reversing", gpu_kernel("reversing", Gpu(), body))


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_elements_are_read_and_written_whatever_lies_beside_them(
    dtype: str, lanes: int, program: Path, tmp_path: Path
) -> None:
    n = 250
    values = np.random.default_rng(1).integers(0, 256, n * lanes * np.dtype(dtype).itemsize).astype(np.uint8)
    given = values.view(dtype).reshape(n, lanes)
    given = np.where(np.isfinite(given), given, np.float16(-0.0)) if dtype == "float16" else given
    shader = emit(reversing(dtype, lanes, n), packed=WORDS.packed)
    assert not {*FLOOR[2:]} & {*shader.needs.capabilities}
    validate(shader.code, dtype, tmp_path)
    for env in (lavapipe(), swiftshader()):
        (raw,) = run_shader(program, tmp_path, shader, [given], [given.nbytes], env=env)
        found = np.frombuffer(raw, dtype).reshape(given.shape)
        assert np.array_equal(found[1:-1], given[::-1][1:-1])  # what nobody writes is what was there before


def test_elements_that_are_no_whole_words_are_an_error() -> None:
    with pytest.raises(CodegenError, match="elements of 3 int8 are no whole words"):
        emit(reversing("int8", 3, 4), packed=WORDS.packed)


def test_random_kernels_compute_the_same_there(tmp_path: Path) -> None:
    assert run(4, 21, tmp_path, swiftshader()) == []


def test_such_a_driver_is_asked_and_kernels_are_made_for_it(tmp_path: Path) -> None:
    board, said = replace(load_board("local"), vulkan=VulkanSection("some GPU", schedule="desktop")), list[str]()
    remote = LocalRemote("kitchen", {**swiftshader(), "HOME": str(tmp_path)})
    assert board_gpu.ask(board, remote, "both", said.append) == board  # it is a program
    assert "Vulkan finds no GPU there (SwiftShader Device" in said[0]
    program = build_runtime(board.gpu_target(), cache=cache.root() / "runtime")
    (device,) = gpu_facts.read(remote.run([str(program), "gpus"]).text, "kitchen")
    section = gpu_facts.asked(board.gpu(), replace(device, kind="integrated"))
    assert "values of 8 and 16 bits in words" in gpu_facts.describe(section)
    made = replace(board, vulkan=section).gpu_target().gpu
    assert made is not None
    assert made.packed == {1, 2}
    assert {*made.capabilities} == {*WORDS.capabilities}


def test_a_family_with_a_cache_of_bytes_and_offsets_that_such_a_gpu_does_not_take(tmp_path: Path) -> None:
    check("olmo2-biases", "w4a8 i8", tmp_path, replace(WORDS, schedule="mali"), swiftshader())
    bundle = tmp_path / "bundle"
    plan = json.loads((bundle / "plan-vulkan.json").read_text())
    plan["logits"]["arena"] += 64  # a multiple of what other GPUs want
    plan["arena_bytes"] += 64
    arguments = [each for function in plan["functions"] for step in function["steps"] for each in step["args"]]
    for argument in arguments:
        if argument[0] == "a" and argument[1] > 0:
            argument[1] += 64
    (bundle / "plan-vulkan.json").write_text(json.dumps(plan))
    bundles.seal(bundle, {k: v for k, v in bundles.read(bundle).manifest.items() if k not in ("format", "files")})
    argv = [str(build_runtime(target_of_tier(host_tiers()[-1]).on_gpu(WORDS))), "run", str(bundle), "--tokens", "1"]
    done = subprocess.run([*argv, "--device", "vulkan"], capture_output=True, text=True, env=swiftshader(), check=False)
    assert "GPU_MISSING: kernel" in done.stderr
    assert "SwiftShader Device (Subzero) wants multiples of 256; compile the bundle anew" in done.stderr
