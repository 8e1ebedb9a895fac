"""Models for a GPU on emulated boards: one whose GPU a program plays, and one that has no driver.

What is compiled for both and runs on an emulated imitation takes minutes: that is for `make test-full`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.compile import compile_model
from edgellm.ssh import SshRemote
from tests.server import MODEL

BOARD, BARE = "virtual-orangepi5", "virtual-rpi5"
TOKENS = "1,5,9,2"


@pytest.fixture(autouse=True, scope="module")
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered about boards lies in temporary folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="module")
def both(start_board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with SshRemote(start_board(BOARD)) as remote:
        remote.script('rm -rf "$HOME/.edgellm"')
    return compile_model(MODEL, BOARD, "w4a8", tmp_path_factory.mktemp("both") / "bundle", device="both").path


@pytest.mark.oracle
def test_a_deployed_model_runs_on_the_boards_gpu_with_the_processors_tokens(both: Path, start_board, capsys):
    assert main(["deploy", str(both), "--board", BOARD, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["proof"]["golden"]["prompts"] == 3
    assert "the only GPU that Vulkan finds is llvmpipe" in done["proof"]["gpu"]["error"]
    with SshRemote(start_board(BOARD)) as remote:
        slot = done["path"]
        command = [f"{slot}/edgellm-rt", "run", slot, "--tokens", TOKENS, "-n", "6", "--temperature", "0", "--json"]
        on = {name: remote.run([*command, "--device", name], silence_s=300) for name in ("cpu", "vulkan")}
        assert all(done.status == 0 for done in on.values()), on["vulkan"].stderr
        assert json.loads(on["cpu"].text)["ids"] == json.loads(on["vulkan"].text)["ids"]
        assert "llvmpipe" in on["vulkan"].stderr
        free = remote.run(command, silence_s=300)
        assert "the processor computes: the only GPU that Vulkan finds is llvmpipe" in free.stderr
    assert main(["run", "--board", BOARD, "-p", "turn on the kitchen light"]) == 0
    assert '"turn_on"' in capsys.readouterr().out


@pytest.mark.oracle
def test_a_board_without_a_driver_gets_the_processor_and_a_line_that_says_so(both: Path, start_board, capsys):
    start_board(BARE)
    assert main(["deploy", str(both), "--board", BARE, "--name", "other"]) == 0
    out = capsys.readouterr().out
    assert "no Vulkan driver; Debian: sudo apt install mesa-vulkan-drivers; " in out
    assert "; until then the processor computes" in out
    assert "the processor computes: " in out


def test_a_model_for_the_gpu_alone_is_refused_before_it_is_compiled(start_board, capsys):
    start_board(BARE)
    assert main(["deploy", str(MODEL), "--board", BARE, "--device", "vulkan"]) == 1
    assert "no GPU that could compute: no Vulkan driver" in capsys.readouterr().err
