"""A board's own driver is asked what it allows, and bundles are compiled for that: with the runtime's program, Mesa's
lavapipe, and a loader before it that calls it a GPU of some maker's (runtime_c/tests/faulty_vulkan.c).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from crosscompile.spirv.capabilities import Gpu
from edgellm import board_gpu, deploy_cli, local_gpu
from edgellm.boards import Board, find_board, load_board
from edgellm.cli import main
from edgellm.compile import compile_model
from edgellm.errors import UnsuitableError
from edgellm.gpu_facts import DOT, FOUND, SUMS, VulkanSection
from edgellm.instances import Instance, add_instance
from edgellm.local_remote import LocalRemote
from edgellm.remembered import Remembered, recall, remember, state_path
from tests.compile.test_vulkan_faults import faulty_loader
from tests.server import MODEL
from tests.shaders import lavapipe

ADRENO, MALI = "vendor:1:20803,mixed:1:0", "vendor:1:5045"
LOCAL = VulkanSection("what Vulkan finds here", schedule=FOUND)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_loader(tmp_path_factory.mktemp("loader"))


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def machine(folder: Path, loader: Path, fault: str) -> LocalRemote:
    """A board at hand: this machine with another home, and this GPU."""
    return LocalRemote("kitchen", {**lavapipe(), "HOME": str(folder), "LD_LIBRARY_PATH": str(loader), "FAULT": fault})


def board_of(schedule: str = "desktop") -> Board:
    """This machine's processor, and a GPU of whose driver the manifest knows nothing."""
    return replace(load_board("local"), vulkan=VulkanSection("some GPU", schedule=schedule, times_slower=2))


def test_a_driver_decides_class_and_limits_and_kernels_are_made_for_them(own_home: Path, loader: Path):
    said: list[str] = []
    remote = machine(own_home, loader, ADRENO)
    old, recent = (own_home / ".edgellm" / "agents" / name for name in ("old", "recent"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    board = board_gpu.ask(board_of(), remote, "vulkan", said.append)
    assert recent.exists()
    assert not old.exists()  # a program of an earlier version
    assert board.vulkan is not None
    assert board.vulkan.schedule == "adreno"
    assert board.vulkan.storage_buffers > 8
    assert board.vulkan.invocations > 256
    assert set(board.vulkan.capabilities) == {*SUMS, *DOT}
    assert board.vulkan.mixed
    assert board.vulkan.times_slower == 2
    assert "llvmpipe" in said[0]
    assert "class adreno: 32 buffers, 1024 threads" in said[0]
    bundle = compile_model(MODEL, board, "w4a8", own_home / "bundle", device="both").path
    ids = []
    for device in ("cpu", "vulkan"):
        argv = [str(bundle / "edgellm-rt"), "run", str(bundle), "-p", "turn on the light", "-n", "8", "--json"]
        done = remote.run([*argv, "--temperature", "0", "--device", device])
        assert done.status == 0, done.stderr
        ids.append(json.loads(done.text)["ids"])
    assert ids[0] == ids[1]


def test_a_deployment_asks_compiles_and_tries(own_home: Path, loader: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """All but the way to the board is as it is for a real one."""
    board = board_of()
    monkeypatch.setattr(deploy_cli, "find_board", lambda name, host: board)
    monkeypatch.setattr(deploy_cli, "connect", lambda board, host: machine(own_home, loader, MALI))
    arguments = ["deploy", str(MODEL), "--board", "local", "--device", "vulkan", "--scheme", "w4a8"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "class mali: 32 buffers" in said
    assert "tokens/s on the GPU" in said
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"]


def test_a_gpu_that_lacks_what_all_need_is_named_before_anything_is_compiled(own_home: Path, loader: Path):
    said: list[str] = []
    remote, board = machine(own_home, loader, "api:1:0"), board_of()
    with pytest.raises(UnsuitableError, match="kitchen has no GPU that could compute: llvmpipe"):
        board_gpu.ask(board, remote, "vulkan", said.append)
    assert board_gpu.ask(board, remote, "both", said.append) == board
    assert "lacks Vulkan 1.1; until its driver is updated the processor computes" in said[0]


def test_where_no_gpu_answers_the_manifest_counts_and_a_line_says_so(own_home: Path):
    said: list[str] = []
    board = board_of("mali")
    imitation = LocalRemote("kitchen", {**lavapipe(), "HOME": str(own_home)})
    assert board_gpu.ask(board, imitation, "vulkan", said.append) == board
    assert said.pop().startswith("Vulkan finds no GPU there (llvmpipe")
    nothing = dict.fromkeys(("VK_ICD_FILENAMES", "VK_DRIVER_FILES"), str(own_home / "none.json"))
    bare = LocalRemote("kitchen", {"HOME": str(own_home), **nothing})
    assert board_gpu.ask(board, bare, "vulkan", said.append) == board
    assert "its driver could not be asked (edgellm-rt: GPU_MISSING: Vulkan finds no driver here" in said[0]
    assert "kernels are made for what boards/local.toml says" in said[0]


def test_a_board_with_a_name_keeps_what_its_driver_said(own_home: Path, loader: Path):
    add_instance(Instance.at("kitchen", "orangepi5", "pi@kitchen.local"))
    assert find_board("kitchen").gpu().schedule == "mali"
    there = find_board("kitchen")
    named = replace(board_of(), id=there.id, instance="kitchen", host=there.host, port=there.port)
    remember("kitchen", Remembered("pi@kitchen.local", "assistant"))
    asked = board_gpu.ask(named, machine(own_home, loader, ADRENO), "both", lambda text: None)
    found = find_board("kitchen")
    slower = found.gpu().times_slower  # what is no driver's to say is the manifest's
    assert replace(found.gpu(), times_slower=2) == asked.gpu()
    assert slower == load_board("orangepi5").gpu().times_slower
    assert found.gpu_target().gpu is not None
    assert recall("kitchen").model == "assistant"
    remember("kitchen", Remembered("pi@kitchen.local", "other"))
    assert find_board("kitchen").gpu() == found.gpu()
    assert load_board("orangepi5").gpu().schedule == "mali"  # the type is what its manifest says
    known = json.loads(state_path().read_text())
    whole = known["kitchen"]["gpu"]
    for nonsense in (
        *("adreno", {"device": 3}, {"device": "x", "invocations": "many"}, {"device": "x", "more": 1}),
        *({**whole, "schedule": "none"}, {**whole, "invocations": -1}, {**whole, "capabilities": ["Magic"]}),
    ):
        state_path().write_text(json.dumps({**known, "kitchen": {**known["kitchen"], "gpu": nonsense}}))
        assert find_board("kitchen").gpu().schedule == "mali"
    state_path().write_text(json.dumps(known))
    assert find_board("kitchen").gpu().schedule == "adreno"
    add_instance(Instance.at("kitchen", "orangepi5", "pi@other.local"), replace=True)
    assert find_board("kitchen").gpu().schedule == "mali"  # another board of that name


def test_this_machines_driver_is_asked_alike(loader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = load_board("local").target().on_gpu(Gpu())
    for name, value in lavapipe().items():
        monkeypatch.setenv(name, value)
    section = local_gpu.found(LOCAL, target)
    assert section.schedule == "processor"
    assert "llvmpipe" in section.device
    assert set(section.capabilities) == {*SUMS, *DOT}
    monkeypatch.setenv("LD_LIBRARY_PATH", str(loader))
    monkeypatch.setenv("FAULT", MALI)
    assert local_gpu.found(LOCAL, target).schedule == "mali"
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, str(tmp_path / "none.json"))
    assert local_gpu.found(LOCAL, target) == replace(LOCAL, device="nothing", schedule="desktop")


def test_the_program_says_what_another_one_does():
    """Khronos's own."""
    program = local_gpu.program(load_board("local").target().on_gpu(Gpu()))
    ours = json.loads(subprocess.run([program, "gpus"], env=lavapipe(), capture_output=True, check=True).stdout)
    text = subprocess.run(["vulkaninfo"], env=lavapipe(), capture_output=True, text=True, check=True).stdout
    values = dict(line.split("=", 1) for line in text.replace("\t", "").replace(" ", "").splitlines() if "=" in line)
    assert values["maxComputeSharedMemorySize"] == str(ours["shared_bytes"])
    assert values["maxPerStageDescriptorStorageBuffers"] == str(ours["storage_buffers"])
    assert values["maxStorageBufferRange"] == str(ours["binding_bytes"])
    assert values["maxComputeWorkGroupInvocations"] == str(ours["invocations"])
    assert values["shaderIntegerDotProduct"] == str(ours["dot"]).lower()
    packed = "integerDotProduct4x8BitPacked"
    accelerated = [values[f"{packed}{how}Accelerated"] == "true" for how in ("Signed", "MixedSignedness")]
    assert ours["mixed"] == (accelerated == [False, True])
    assert values["subgroupSize"] == str(ours["subgroup"])
    assert f"0x{ours['vendor']:x}" in (values["vendorID"], f"0x{int(values['vendorID'], 0):x}")
