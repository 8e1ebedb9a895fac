"""Running single kernels on a Vulkan device: Mesa's lavapipe, a processor that is a GPU to everything above it."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from crosscompile.spirv.capabilities import FLOOR, Gpu
from crosscompile.spirv.container import pack_modules
from crosscompile.spirv.emit import Shader
from tests.runtime_make import build

DESKTOP = Gpu((*FLOOR, "GroupNonUniformArithmetic", "DotProduct", "DotProductInput4x8BitPacked"))
"""What desktop drivers, and lavapipe, can."""
LAYERS = {
    "VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation",
    "VK_LAYER_ENABLES": "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
}
"""Environment that turns the Khronos validation layers on; they print what they find to standard output."""


ELSEWHERE = "EDGELLM_VULKAN_COMMAND"
"""Environment: a command that runs a program where Vulkan has matrix units, as lavapipe has not before Mesa 26. `env`
takes whatever driver this machine has."""


def elsewhere() -> list[str]:
    """That command; nothing where there is none, which means lavapipe."""
    return shlex.split(os.environ.get(ELSEWHERE, ""))


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


def build_runner() -> Path:
    """The program that runs kernels (runtime_c/tests/run_shader.c)."""
    return build("plain/run_shader")


def run_shader(
    program: Path,
    folder: Path,
    shader: Shader,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[int],
    gpu: Gpu | None = None,
    through: Sequence[str] = (),
) -> list[bytes]:
    """What a kernel writes. Its parameters are `inputs`, then outputs of so many bytes. The others as below."""
    given = {f"in{i}": value for i, value in enumerate(inputs)}
    made = {f"out{i}": size for i, size in enumerate(outputs)}
    return list(run_shaders(program, folder, [(shader, [*given, *made])], given, made, gpu, through).values())


def run_shaders(
    program: Path,
    folder: Path,
    steps: Sequence[tuple[Shader, Sequence[str]]],
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, int],
    gpu: Gpu | None = None,
    through: Sequence[str] = (),
) -> dict[str, bytes]:
    """What some kernels, one after the other in one submission, leave in `outputs`, of so many bytes each.

    steps: kernels, and the names of what they bind, inputs, which none writes, or outputs, which all of them may.
    gpu: for whose matrix units they were made. through: a command that runs the program elsewhere than on lavapipe.
    """
    weights, bindings, offset, places = [], dict[str, tuple[dict[str, object], list[object]]](), 0, dict[str, int]()
    for i, (name, value) in enumerate(inputs.items()):
        raw = value.tobytes() + b"\0" * (-value.nbytes % 64)
        (folder / f"w{i}.bin").write_bytes(raw)
        weights.append({"tensor": f"w{i}", "bytes": len(raw)})
        bindings[name] = {"access": "r", "bytes": value.nbytes}, ["w", i]
    for name, size in outputs.items():
        bindings[name] = {"access": "rw" if len(steps) > 1 else "w", "bytes": size}, ["a", offset]
        places[name] = offset
        offset += -(-size // 64) * 64
    shaders = {id(shader): (shader, names) for shader, names in steps}
    kernels = [
        {
            "name": f"kernel{i}",
            "args": [bindings[name][0] for name in names],
            "scalars": list(shader.scalars),
            "grid": list(shader.grid),
        }
        for i, (shader, names) in enumerate(shaders.values())
    ]
    index = {key: i for i, key in enumerate(shaders)}
    calls = [{"kernel": index[id(shader)], "args": [bindings[name][1] for name in names]} for shader, names in steps]
    functions = [{"name": "body", "n": 1, "steps": []}, {"name": "head", "n": 1, "steps": calls}]
    plan = {
        "format": 1,
        "arena_bytes": offset + 64,
        "kv_block": 64,
        "weights": weights,
        "states": [],
        "kernels": kernels,
        "functions": functions,
        "hidden": {"arena": offset, "bytes_per_row": 64},
        "logits": {"arena": 0, "bytes_per_row": offset},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    modules = {f"kernel{i}": shader.code for i, (shader, _) in enumerate(shaders.values())}
    (folder / "kernels.spv").write_bytes(pack_modules(modules, gpu))
    command = [*through, str(program), str(folder)]
    env = dict(os.environ) if through else lavapipe()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    raw = (folder / "out.bin").read_bytes()
    return {name: raw[places[name] : places[name] + size] for name, size in outputs.items()}
