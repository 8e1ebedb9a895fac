"""SHA-256 on emulated processors: the ARMv8 instructions are chosen where there are some, and agree with plain code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from crosscompile.runtime import compiler, run_compiler
from crosscompile.target import target_of_tier
from edgellm import virtual, virtual_parts
from edgellm.boards import load_board

RUNTIME_C = Path(__file__).resolve().parents[2] / "runtime_c"
SOURCES = ("tests/test_sha256.c", "src/sha256.c", "src/cpu.c")


@pytest.mark.parametrize(
    ("tier", "board_id", "processor", "used"),
    [
        ("armv8-neon", "virtual-rpi5", "cortex-a76", "SHA instructions"),
        ("armv7-neon", "virtual-rpi2", "cortex-a7", "portable"),
    ],
)
def test_instructions_are_used_where_there_are_some(
    tier: str, board_id: str, processor: str, used: str, tmp_path: Path
) -> None:
    if reason := virtual_parts.missing_tool():
        pytest.skip(f"no emulator: {reason}")
    files = [str(RUNTIME_C / name) for name in SOURCES]
    run_compiler([*compiler(target_of_tier(tier)), "-O2", "-std=c11", *files, "-o", "program"], tmp_path)
    root, emulator = virtual.fetch(load_board(board_id))
    command = [str(emulator), "-cpu", processor, "-L", str(root), str(tmp_path / "program"), "say"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, used + "\n", "")
