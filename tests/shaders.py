"""Running single kernels on a Vulkan device: Mesa's lavapipe, a processor that is a GPU to everything above it."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from crosscompile.spirv.capabilities import FLOOR, Gpu
from crosscompile.spirv.container import pack_modules
from crosscompile.spirv.emit import Shader

RUNTIME_C = Path(__file__).resolve().parents[1] / "runtime_c"
DESKTOP = Gpu((*FLOOR, "GroupNonUniformArithmetic", "DotProduct", "DotProductInput4x8BitPacked"))
"""What desktop drivers, and lavapipe, can."""
LAYERS = {
    "VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation",
    "VK_LAYER_ENABLES": "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
}
"""Environment that turns the Khronos validation layers on; they print what they find to standard output."""


def lavapipe() -> dict[str, str]:
    """The environment in which Vulkan finds lavapipe and no other driver."""
    found = glob.glob("/usr/share/vulkan/icd.d/lvp_icd*.json")
    if not found:
        raise AssertionError("Mesa's lavapipe is not installed; `.ci/setup test` does it (Debian: mesa-vulkan-drivers)")
    driver = {"VK_ICD_FILENAMES": found[0], "VK_DRIVER_FILES": found[0]}
    return {**os.environ, **driver}


@contextlib.contextmanager
def lavapipe_alone() -> Iterator[None]:
    """Vulkan finds lavapipe alone in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
            patch.setenv(name, lavapipe()[name])
        yield


def validate(module: bytes, name: str, folder: Path) -> None:
    """AssertionError with spirv-val's words if it refuses a module."""
    file = folder / "module.spv"
    file.write_bytes(module)
    command = ["spirv-val", "--target-env", "vulkan1.1", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def compile_glsl(text: str, name: str, folder: Path) -> bytes:
    """What Khronos's own compiler makes of a kernel's GLSL. AssertionError with its words if it refuses it."""
    source, module = folder / "kernel.comp", folder / "kernel.spv"
    source.write_text(text)
    command = ["glslangValidator", "-V", "--quiet", "--target-env", "vulkan1.1", "-o", str(module), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    return module.read_bytes()


def build_runner(folder: Path, name: str = "plain/run_shader") -> Path:
    """The program that runs one kernel (runtime_c/tests/run_shader.c), or another target of runtime_c/Makefile."""
    program = folder / name
    command = ["make", "--silent", "--no-print-directory", "-C", str(RUNTIME_C), f"BUILD={folder}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return program


def run_shader(
    program: Path, folder: Path, shader: Shader, inputs: Sequence[np.ndarray], outputs: Sequence[int]
) -> list[bytes]:
    """What a kernel writes. Its parameters are `inputs`, then outputs of so many bytes."""
    weights, arguments, bound, offset, places = [], [], [], 0, []
    for i, value in enumerate(inputs):
        raw = value.tobytes() + b"\0" * (-value.nbytes % 64)
        (folder / f"w{i}.bin").write_bytes(raw)
        weights.append({"tensor": f"w{i}", "bytes": len(raw)})
        arguments.append({"access": "r", "bytes": value.nbytes})
        bound.append(["w", i])
    for size in outputs:
        arguments.append({"access": "w", "bytes": size})
        bound.append(["a", offset])
        places.append(offset)
        offset += -(-size // 64) * 64
    kernel = {"name": "kernel", "args": arguments, "scalars": list(shader.scalars), "grid": list(shader.grid)}
    functions = [
        {"name": "body", "n": 1, "steps": []},
        {"name": "head", "n": 1, "steps": [{"kernel": 0, "args": bound}]},
    ]
    plan = {
        "format": 1,
        "arena_bytes": offset + 64,
        "kv_block": 64,
        "weights": weights,
        "states": [],
        "kernels": [kernel],
        "functions": functions,
        "hidden": {"arena": offset, "bytes_per_row": 64},
        "logits": {"arena": 0, "bytes_per_row": offset},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "kernels.spv").write_bytes(pack_modules({"kernel": shader.code}))
    command = [str(program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=lavapipe())
    assert done.returncode == 0, done.stdout + done.stderr
    raw = (folder / "out.bin").read_bytes()
    return [raw[place : place + size] for place, size in zip(places, outputs, strict=True)]
