"""Weights on their way to a GPU that cannot have them where they are: through stages, or straight into its memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from crosscompile.gpu.choose import as_threads
from crosscompile.kernels.build import Builder, kernel
from crosscompile.spirv.emit import Shader, emit
from tests.compile.test_vulkan_faults import faulty_loader
from tests.shaders import DESKTOP, lavapipe, run_shaders

FAULTS = {"through stages": "apart:1:0", "into memory that both see": "vkGetMemoryHostPointerPropertiesEXT:1:-3"}
LARGE = 45 << 20  # more than all stages hold at once
SMALL = 200  # more weights than go at once, however small


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_loader(tmp_path_factory.mktemp("loader"))


def through(loader: Path, fault: str) -> list[str]:
    driver = {name: lavapipe()[name] for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES")}
    return ["env", *(f"{k}={v}" for k, v in {**driver, "LD_LIBRARY_PATH": str(loader), "FAULT": fault}.items())]


def copier(n_bytes: int) -> Shader:
    """A kernel that copies a weight."""
    rows = n_bytes // 64

    def body(k: Builder) -> None:
        x, y = k.buffer("x", (rows, 16), "int32"), k.buffer("y", (rows, 16), "int32")
        with k.shared(rows) as m, k.loop(0, 16) as c:
            k.store(y, x[m, c], m, c)

    return emit(as_threads("copy", kernel("copy", body), DESKTOP))


@pytest.mark.parametrize("way", FAULTS)
def test_every_weight_arrives_whole(way: str, program: Path, loader: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sizes = {**{f"w{i}": 64 for i in range(SMALL)}, "large": LARGE, "last": 64}
    weights = {name: rng.integers(0, 1 << 30, size // 4, np.int32) for name, size in sizes.items()}
    small, large = copier(64), copier(LARGE)
    steps = [(large if name == "large" else small, [name, f"{name}'"]) for name in weights]
    outputs = {f"{name}'": size for name, size in sizes.items()}
    found = run_shaders(program, tmp_path, steps, weights, outputs, through=through(loader, FAULTS[way]))
    for name, weight in weights.items():
        assert found[f"{name}'"] == weight.tobytes(), name


@pytest.mark.parametrize("way", FAULTS)
def test_a_file_that_becomes_shorter_is_an_error(way: str, program: Path, loader: Path, tmp_path: Path) -> None:
    """Where it was mapped and copied, the program was killed."""
    weight = {"w": np.zeros(1 << 20, np.int32)}
    run_shaders(program, tmp_path, [(copier(4 << 20), ["w", "y"])], weight, {"y": 4 << 20})
    command = [*through(loader, FAULTS[way]), str(program), str(tmp_path), "cut"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "reading weights: a file became shorter" in done.stderr
