"""The layer that counts what a program has a Vulkan device do: runtime_c/probe/vulkan_count.c."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.runtime_make import RUNTIME_C
from tests.shaders import lavapipe

NAME = "VK_LAYER_EDGELLM_count"


@dataclass(frozen=True)
class Counts:
    """Submissions, and dispatches and barriers in them; dispatches as they were recorded; bytes of device memory."""

    submits: int
    dispatches: int
    barriers: int
    recorded: int
    allocated: int


def build_layer(folder: Path) -> Path:
    """A folder with the layer and what tells the loader about it."""
    layer = folder / "layer"
    layer.mkdir(parents=True, exist_ok=True)
    library = layer / "libvulkan_count.so"
    source = RUNTIME_C / "probe" / "vulkan_count.c"
    headers = RUNTIME_C / "third_party" / "vulkan"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", f"-I{headers}", str(source), "-o", str(library)], check=True)
    about = {"name": NAME, "type": "GLOBAL", "library_path": str(library), "api_version": "1.3.0"}
    about |= {"implementation_version": "1", "description": "counts what a program submits"}
    (layer / "count.json").write_text(json.dumps({"file_format_version": "1.0.0", "layer": about}))
    return layer


def count(layer: Path, command: Sequence[str], **environment: str) -> Counts:
    """Runs a program on lavapipe. layer: of build_layer."""
    file = layer / "count.out"
    watched = {"VULKAN_COUNT": str(file), "VK_LAYER_PATH": str(layer), "VK_INSTANCE_LAYERS": NAME}
    env = {**lavapipe(), **environment, **watched}
    subprocess.run(command, capture_output=True, env=env, check=True)
    return Counts(**json.loads(file.read_text()))
