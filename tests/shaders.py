"""Running single kernels on a Vulkan device: Mesa's lavapipe, a processor that is a GPU to everything above it.

Another one is SwiftShader.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from crosscompile.plan import ALIGNMENT
from crosscompile.spirv.capabilities import FLOOR, NARROW, Gpu
from crosscompile.spirv.container import pack_modules
from crosscompile.spirv.emit import Shader
from tests.runtime_make import build

DESKTOP = Gpu((*FLOOR, "GroupNonUniformArithmetic", "DotProduct", "DotProductInput4x8BitPacked"))
"""What desktop drivers, and lavapipe, can."""
WORDS = Gpu(tuple(name for name in DESKTOP.capabilities if name not in NARROW.values()))
"""What SwiftShader can: as much, but nothing narrower than 32 bits."""
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
    return {**os.environ, **only_lavapipe()}


def only_lavapipe() -> dict[str, str]:
    """What that environment has in addition to this process's."""
    found = glob.glob("/usr/share/vulkan/icd.d/lvp_icd*.json")
    if not found:
        raise AssertionError("Mesa's lavapipe is not installed; `.ci/setup test` does it (Debian: mesa-vulkan-drivers)")
    return {"VK_ICD_FILENAMES": found[0], "VK_DRIVER_FILES": found[0]}


def _of_chromium(library: str, name: str) -> tuple[Path, str]:
    """A file yet to be written, for the loader, and one of Chromium's libraries; skips the test if there is none."""
    found = glob.glob(f"/usr/lib/chromium*/{library}")
    if not found:
        pytest.skip(f"no {library}: it comes with Debian's Chromium, which `.ci/setup test` could not install")
    file = Path(tempfile.mkdtemp(prefix="edgellm-vulkan-")) / name
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    return file, found[0]


@functools.cache
def bounds_checked() -> dict[str, str]:
    """Lavapipe under Chromium's validation layers, which instrument kernels: accesses beyond what is bound are errors.

    They print what they find to standard output. Skips the test where there is no Chromium.
    """
    file, library = _of_chromium("libVkLayer_khronos_validation.so", "VkLayer_khronos_validation.json")
    layer = {
        "name": LAYERS["VK_INSTANCE_LAYERS"],
        "type": "GLOBAL",
        "library_path": library,
        "api_version": "1.4.0",
        "implementation_version": "1",
        "description": "Chromium's",
    }
    file.write_text(json.dumps({"file_format_version": "1.2.0", "layer": layer}))
    turned_on = {"VK_LAYER_GPUAV_ENABLE": "1", "VK_LAYER_VALIDATE_SYNC": "1"}
    layers = {"VK_INSTANCE_LAYERS": LAYERS["VK_INSTANCE_LAYERS"], "VK_LAYER_PATH": str(file.parent), **turned_on}
    return {**lavapipe(), **layers}


@functools.cache
def swiftshader() -> dict[str, str]:
    """The environment in which Vulkan finds SwiftShader alone: Chromium's program that imitates a GPU.

    It shares nothing with Mesa, and accesses no values of 8 or 16 bits. Skips the test where there is no Chromium.
    """
    file, library = _of_chromium("libvk_swiftshader.so", "icd.json")
    driver = {"library_path": library, "api_version": "1.1.0"}
    file.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": driver}))
    return {**os.environ, "VK_ICD_FILENAMES": str(file), "VK_DRIVER_FILES": str(file)}


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
    env: Mapping[str, str] | None = None,
) -> list[bytes]:
    """What a kernel writes. Its parameters are `inputs`, then outputs of so many bytes. The others as below."""
    given = {f"in{i}": value for i, value in enumerate(inputs)}
    made = {f"out{i}": size for i, size in enumerate(outputs)}
    return list(run_shaders(program, folder, [(shader, [*given, *made])], given, made, gpu, through, env).values())


def run_shaders(
    program: Path,
    folder: Path,
    steps: Sequence[tuple[Shader, Sequence[str]]],
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, int],
    gpu: Gpu | None = None,
    through: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """What some kernels, one after the other in one submission, leave in `outputs`, of so many bytes each.

    steps: kernels, and the names of what they bind, inputs, which none writes, or outputs, which all of them may.
    gpu: for whose matrix units they were made. through: a command that runs the program elsewhere than on lavapipe.
    env: instead of lavapipe's.
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
        offset += -(-size // ALIGNMENT) * ALIGNMENT
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
    env = env if env is not None else dict(os.environ) if through else lavapipe()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Validation Error" not in done.stdout, done.stdout
    raw = (folder / "out.bin").read_bytes()
    return {name: raw[places[name] : places[name] + size] for name, size in outputs.items()}
