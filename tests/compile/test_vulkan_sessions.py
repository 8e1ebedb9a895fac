"""Sessions and prefixes of a GPU (Mesa's lavapipe): saved, taken up and shipped as the processor's are, split bundles too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgellm.compile import build, compile_model
from edgellm.precision import Options
from tests.compile.test_sessions import asked, talk, told
from tests.compile.test_vulkan_faults import FAILED, LOST, NO_MEMORY, faulty_loader
from tests.server import MODEL, QUESTIONS, SYSTEM, Server
from tests.shaders import LAYERS, lavapipe

BOTH, SPLIT = "both", "split"
GPU = ("--device", "vulkan")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sessions")
    return {
        BOTH: compile_model(MODEL, "local", "w4a8", folder / BOTH, device="both").path,
        SPLIT: build(MODEL, "local", Options("f32"), folder / SPLIT, gpu_layers=2).bundle.path,
    }


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_loader(tmp_path_factory.mktemp("loader"))


def with_fault(loader: Path, fault: str = "", **more: str) -> dict[str, str]:
    """The environment in which lavapipe looks like a real GPU, and fails as told."""
    return {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": fault, **more}


@pytest.mark.parametrize("which", [BOTH, SPLIT])
def test_a_conversation_goes_on_without_being_computed_again(which: str, made: dict[str, Path], tmp_path: Path):
    """The validation layers would print to the standard output, which is read as JSON."""
    session, env = tmp_path / "work", {**lavapipe(), **LAYERS}
    whole = talk(made[which], None, asked(QUESTIONS[0]), asked(QUESTIONS[1]), options=GPU, env=lavapipe())
    first = talk(made[which], session, asked(QUESTIONS[0]), options=GPU, env=env)
    second = talk(made[which], session, asked(QUESTIONS[1]), options=GPU, env=env)
    assert told(first) + told(second) == told(whole)
    assert second[-1]["reused_tokens"] == whole[-1]["reused_tokens"] > 40
