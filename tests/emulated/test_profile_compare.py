"""`edgellm profile` and `edgellm compare` on the emulated Raspberry Pi 5, with a sound model and a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crosscompile.runtime import build_runtime
from crosscompile.target import target_of_tier
from edgellm import bundle as bundles
from edgellm.cli import main
from edgellm.deployment import deploy
from edgellm.ssh import SshRemote
from tests.compile.test_compare import CONFIG, FAULTY, change_scales
from tests.emulated.test_bits import make_bundle
from tests.oracle.configurations import write_checkpoint

BOARD = "virtual-rpi5"


@pytest.fixture(scope="module")
def model(start_board, tmp_path_factory) -> Path:
    """A checkpoint on the board as `sound` and, with one layer's scales changed, as `broken`."""
    folder = tmp_path_factory.mktemp("stepwise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        address = start_board(BOARD)
        path = write_checkpoint(folder / "model", CONFIG)
        bundle = make_bundle(folder / "bundle", path, "dotprod", "w4a8 ")
        shutil.copyfile(build_runtime(target_of_tier("dotprod")), bundle / "edgellm-rt")
        (bundle / "edgellm-rt").chmod(0o755)
        manifest = json.loads((bundle / "manifest.json").read_text())
        bundles.seal(bundle, {key: value for key, value in manifest.items() if key not in ("format", "files")})
        with SshRemote(address) as remote:
            deploy(bundle, remote, name="sound")
            change_scales(bundle, FAULTY)
            deploy(bundle, remote, name="broken")
        yield path


def test_profile_adds_up_on_the_board(model, tmp_path, capsys):
    timeline = tmp_path / "timeline.json"
    options = ["--tokens", "16", "--depth", "20", "--runs", "5", "--trace", str(timeline)]
    assert main(["profile", "--board", BOARD, "--model", "sound", *options, "--json"]) == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    for name, rows in (("decode", {1}), ("prefill", {1, 8})):
        phase = phases[name]
        assert phase["steps_ns"] <= phase["watched_ns"]
        assert sum(step["ns"] for step in phase["steps"]) == pytest.approx(phase["steps_ns"])
        assert {step["n"] for step in phase["steps"]} <= rows
        assert any(step["kv_bytes"] for step in phase["steps"])
    weights = sum(step["weight_bytes"] for step in phases["decode"]["steps"])
    assert weights > 40_000
    events = json.loads(timeline.read_text())["traceEvents"]
    shown = sum(event["dur"] for event in events if event["ph"] == "X" and event["tid"] == 2)
    assert shown == pytest.approx((phases["decode"]["steps_ns"] + phases["prefill"]["steps_ns"]) / 1e3, rel=1e-3)
    assert main(["profile", "--board", BOARD, "--model", "sound", "--tokens", "0", "--runs", "3"]) == 0
    table = capsys.readouterr().out
    assert "linear_w4 mlp.gate_up_proj" in table
    assert "all steps" in table


def test_the_board_agrees_and_a_broken_layer_is_named(model, tmp_path, capsys):
    assert main(["compare", str(model), "--board", BOARD, "--name", "sound", "--json"]) == 0
    here, board = json.loads(capsys.readouterr().out)["machines"]
    assert (board["tier"], board["steps"], board["step"]) == ("dotprod", here["steps"], "")

    where = tmp_path / "reproducer"
    command = ["compare", str(model), "--board", BOARD, "--name", "broken", "-o", str(where), "--json"]
    assert main(command) == 1
    _, board = json.loads(capsys.readouterr().out)["machines"]
    assert FAULTY in board["step"]
    assert board["cause"] == "weights"
    assert "elements differ" in board["alone"]
    assert main(["compare", "--replay", str(where), "--board", BOARD, "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["fails"]
    assert again["text"] == board["alone"]
    assert (where / "edgellm-rt").read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
