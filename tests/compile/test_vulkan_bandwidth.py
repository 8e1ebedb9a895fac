"""How fast a GPU's memory is: what `edgellm-rt bench --bandwidth --device vulkan` measures with, says, and survives."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from crosscompile.gpu.reading import LOADS, reading_header, reading_module
from crosscompile.spirv.capabilities import Gpu, check
from edgellm import bandwidth
from tests.campaigns import gpu, gpu_run
from tests.compile.test_vulkan_faults import AT_OPEN, COMPUTING, LOST, NAMES, NO_MEMORY, TIMEOUT, faulty_loader
from tests.runtime_make import RUNTIME_C, build
from tests.shaders import LAYERS, lavapipe, validate


@pytest.fixture(scope="module")
def program() -> Path:
    return build("plain/edgellm-rt")


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_loader(tmp_path_factory.mktemp("loader"))


def measure(program: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [str(program), "bench", "--bandwidth", "--device", "vulkan", *options]
    env = {**lavapipe(), **environment}
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=False)


def faulty(program: Path, loader: Path, fault: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return measure(program, "--json", LD_LIBRARY_PATH=str(loader), FAULT=fault, **environment)


def test_the_programs_modules_are_the_emitters_and_every_driver_takes_them(tmp_path: Path):
    header = RUNTIME_C / "vulkan" / "reading_modules.h"
    assert header.read_text() == reading_header(), "run runtime_c/vulkan/reading_modules.py"
    for loads in LOADS:
        shader = reading_module(loads)
        validate(shader.code, f"read_x{loads}", tmp_path)
        check(f"read_x{loads}", shader.needs, Gpu())


def test_what_is_measured_is_said_to_people_and_to_programs(program: Path):
    said = measure(program)
    assert said.returncode == 0, said.stderr
    assert "llvmpipe" in said.stdout
    assert "whose memory is the processor's" in said.stdout
    found = json.loads(measure(program, "--json").stdout)
    rate = bandwidth.parse_gpu(found)
    assert rate.is_processor
    assert rate.one_memory
    assert 0 < rate.low_gb_s <= rate.gb_s <= rate.high_gb_s
    assert rate.gb_s == max(found["loops_gb_s"].values()) == found["loops_gb_s"][rate.loop]


@pytest.mark.parametrize("fault", ["", "apart:1:0", "clock:1:0"])
def test_validation_layers_find_nothing(fault: str, program: Path, loader: Path):
    """On a GPU of one memory with the processor, on one with its own, and on one without a clock."""
    done = faulty(program, loader, fault, **LAYERS)
    assert done.returncode == 0, done.stderr
    assert "VUID" not in done.stdout + done.stderr
    assert "SYNC-HAZARD" not in done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["one_memory"] == (fault != "apart:1:0")
    assert found["gpu_clock"] == (fault != "clock:1:0")
    assert (found["write_gb_s"] > 0) == (fault != "apart:1:0")
    assert bandwidth.parse_gpu(found).gb_s > 0


@pytest.mark.parametrize("name", [*AT_OPEN, *COMPUTING])
def test_what_fails_is_named(name: str, program: Path, loader: Path):
    for code, nth in ((NO_MEMORY, 1), (LOST, 2)) if name in COMPUTING else ((NO_MEMORY, 1),):
        done = faulty(program, loader, f"vk{name}:{nth}:{code}")
        assert f"edgellm-rt: {NAMES[code]}: " in done.stderr, f"{name} {code}: {done.stdout}{done.stderr}"
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""


def test_a_gpu_that_does_not_answer_or_does_not_read_is_named(program: Path, loader: Path):
    assert "GPU_LOST: llvmpipe" in faulty(program, loader, f"vkWaitForFences:9:{TIMEOUT}").stderr
    for nth in (7, 12):  # behind those that are recorded without times
        lazy = faulty(program, loader, f"wrong:{nth}:0")
        assert "KERNEL_FAILED: llvmpipe" in lazy.stderr, nth
        assert "did not read what was written" in lazy.stderr
    assert "--device is cpu, vulkan or auto" in measure(program, "--device", "gpu").stderr


def test_weights_that_were_left_out_are_made_again_of_their_first_rows(tmp_path: Path):
    """What `tests.campaigns.gpu --stage` carries to a machine with a GPU."""
    rows, row_bytes, small = 1000, 96, b"norm"
    head = json.dumps({
        "w": {"dtype": "U8", "shape": [rows, row_bytes], "data_offsets": [0, rows * row_bytes]},
        "norm": {"dtype": "F32", "shape": [1], "data_offsets": [rows * row_bytes, rows * row_bytes + 4]},
    }).encode()  # fmt: skip
    weight = b"".join(struct.pack("<I", i) * (row_bytes // 4) for i in range(rows))
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "layer.safetensors"
    file.write_bytes(struct.pack("<Q", len(head)) + head + weight + small)
    recipe = gpu.write_recipe(file, file, gpu.safetensors_parts(file), tmp_path)
    patterns = file.with_name(file.name + ".patterns")
    assert patterns.stat().st_size < file.stat().st_size / 4
    whole = file.read_bytes()
    file.unlink()
    gpu_run.fill_all(tmp_path, {"bundle": ".", "recipes": []})  # nothing is to be made
    gpu_run.fill(file, json.loads(json.dumps(recipe)), patterns)
    made = file.read_bytes()
    kept = gpu.PATTERN_BYTES // row_bytes * row_bytes
    start = 8 + len(head)
    assert len(made) == len(whole)
    assert made[: start + kept] == whole[: start + kept]
    assert made[start + kept : start + 2 * kept] == whole[start : start + kept]
    assert made.endswith(small)
