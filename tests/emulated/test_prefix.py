"""The state that a bundle ships is what an emulated ARM board would compute, and its answers are the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgellm import bundle as bundles
from edgellm import prefix, virtual, virtual_parts
from edgellm.boards import load_board
from edgellm.compile import build
from edgellm.precision import Options
from edgellm.prefix import Prefix
from tests.server import MODEL, QUESTIONS, SYSTEM


def tensors(file: Path) -> bytes:
    """The file's data without its checksum."""
    data = file.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    return data[head + 64 :]


@pytest.mark.parametrize(("board_id", "cpu"), [("virtual-rpi5", "cortex-a76"), ("virtual-rpi2", "cortex-a7")])
def test_the_board_would_compute_the_same(board_id: str, cpu: str, tmp_path: Path) -> None:
    if reason := virtual_parts.missing_tool():
        pytest.skip(f"no emulator: {reason}")
    board = load_board(board_id)
    root, emulator = virtual.fetch(board)
    plain = build(MODEL, board, Options("w4a8")).bundle.path
    shipped = build(MODEL, board, Options("w4a8"), prefix=Prefix(SYSTEM)).bundle.path

    def on_board(bundle: Path, command: str, *arguments: str) -> bytes:
        argv = [str(emulator), "-cpu", cpu, "-L", str(root), str(bundle / "edgellm-rt"), command, str(bundle)]
        return subprocess.run([*argv, *arguments], capture_output=True, check=True, timeout=300).stdout

    own = tmp_path / "own.safetensors"
    on_board(plain, "prefix", "--system", SYSTEM, "--threads", "2", "-o", str(own))
    assert tensors(own) == tensors(shipped / prefix.FILE)
    n_tokens = bundles.read(shipped).manifest["prefix"]["tokens"]
    for question in QUESTIONS[:2]:
        asked = ("-p", question, "--system", SYSTEM, "--temperature", "0", "-n", "12", "--json")
        before, after = (json.loads(on_board(bundle, "run", *asked)) for bundle in (plain, shipped))
        assert after["ids"] == before["ids"]
        assert (before["reused_tokens"], after["reused_tokens"]) == (0, n_tokens)
    assert json.loads(on_board(shipped, "golden", "--json"))["prompts"] == 4
