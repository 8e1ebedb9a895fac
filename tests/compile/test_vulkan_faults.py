"""A GPU that fails: each call of Vulkan that can, at its first and at a later time, ends in a named error, or in the
processor's answer and a line that says why. Nothing hangs, nothing crashes.

runtime_c/tests/faulty_vulkan.c stands before the real loader and lavapipe, which it also calls a real GPU.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from edgellm import cache
from edgellm.cli import main
from edgellm.compile import compile_model
from tests.runtime_make import RUNTIME_C
from tests.server import MODEL
from tests.shaders import LAYERS, lavapipe

LOST, NO_MEMORY, FAILED, TIMEOUT = -4, -2, -3, 2  # VkResult
AT_OPEN = (
    *("EnumeratePhysicalDevices", "CreateDevice", "CreateFence", "CreateBuffer", "AllocateMemory", "BindBufferMemory"),
    *("MapMemory", "CreateShaderModule", "CreateComputePipelines", "CreateDescriptorPool", "AllocateDescriptorSets"),
    *("CreateCommandPool", "AllocateCommandBuffers", "BeginCommandBuffer", "EndCommandBuffer"),
)
COMPUTING = ("QueueSubmit", "WaitForFences", "ResetFences")
NAMES = {LOST: "GPU_LOST", NO_MEMORY: "NO_MEMORY", FAILED: "GPU_MISSING", TIMEOUT: "GPU_LOST"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_model(MODEL, "local", "w4a8", tmp_path_factory.mktemp("faults") / "bundle", device="both").path


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_loader(tmp_path_factory.mktemp("loader"))


def faulty_loader(folder: Path) -> Path:
    """The folder of the loader that fails."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    real = next(line.rpartition("=> ")[2] for line in listed.splitlines() if line.strip().startswith("libvulkan.so.1 "))
    source, headers = RUNTIME_C / "tests" / "faulty_vulkan.c", RUNTIME_C / "third_party" / "vulkan"
    command = ["cc", "-std=c11", "-shared", "-fPIC", "-isystem", str(headers), f'-DREAL="{real}"', str(source)]
    subprocess.run([*command, "-o", str(folder / "libvulkan.so.1"), "-ldl"], check=True)
    return folder


def run(bundle: Path, loader: Path, fault: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    argv = [str(bundle / "edgellm-rt"), "run", str(bundle), "--tokens", "1,5,9", "-n", "3", "--temperature", "0"]
    env = {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": fault, **more}
    return subprocess.run([*argv, "--json", *options], capture_output=True, text=True, env=env, timeout=60, check=False)


@pytest.fixture(scope="module")
def counts(both: Path, loader: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often a run that nothing disturbs makes each call."""
    file = tmp_path_factory.mktemp("counts") / "counts"
    done = run(both, loader, "", FAULT_COUNTS=str(file))
    assert done.returncode == 0, done.stderr
    assert "the processor computes" not in done.stderr  # a real GPU, as far as anybody can tell
    return {name.removeprefix("vk"): int(n) for name, n in (line.split() for line in file.read_text().splitlines())}


def test_a_device_without_a_feature_is_named_with_it(both: Path, loader: Path, counts: dict[str, int]):
    forced = run(both, loader, "features:1:0", "--device", "vulkan")
    assert forced.returncode == 80
    assert "lacks 16-bit storage" in forced.stderr
    free = run(both, loader, "features:1:0")
    assert free.returncode == 0
    assert "the processor computes: no GPU here can run the bundle" in free.stderr


@pytest.mark.parametrize("name", AT_OPEN)
def test_what_fails_while_opening_is_named_and_the_processor_computes(
    name: str, both: Path, loader: Path, counts: dict[str, int]
):
    expected = json.loads(run(both, loader, "", "--device", "cpu").stdout)["ids"]
    assert counts[name] > 0
    for code, nth in ((NO_MEMORY, 1), (LOST, max(counts[name] // 2, 1)), (FAILED, 1)):
        fault = f"vk{name}:{nth}:{code}"
        forced = run(both, loader, fault, "--device", "vulkan")
        assert forced.returncode > 0, fault
        assert f"edgellm-rt: {NAMES[code]}: " in forced.stderr, fault
        assert len(forced.stderr.splitlines()) == 1, fault
        free = run(both, loader, fault)
        assert free.returncode == 0, f"{fault}: {free.stderr}"
        assert json.loads(free.stdout)["ids"] == expected
        assert "note: the processor computes: " in free.stderr, fault
        if (name, code) == ("CreateComputePipelines", FAILED):
            assert re.search(r"while compiling kernel body\d+_\w+; update the GPU's driver", forced.stderr)


def test_weights_that_the_driver_does_not_take_where_they_are_are_copied(both: Path, loader: Path):
    tokens = json.loads(run(both, loader, "", "--device", "cpu").stdout)["ids"]
    bundle_bytes = sum(file.stat().st_size for file in (both / "weights").iterdir())
    refused = f"vkGetMemoryHostPointerPropertiesEXT:1:{FAILED}"
    for fault, imports in (("", True), (refused, False), ("pages:1:0", False)):
        done = run(both, loader, fault, "--device", "vulkan")
        assert json.loads(done.stdout)["ids"] == tokens, fault
        argv = [str(both / "edgellm-rt"), "bench", str(both), "--prompt", "8", "--generate", "2", "--repeat", "1"]
        env = {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": fault}
        argv += ["--device", "vulkan", "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=True)
        gpu = json.loads(done.stdout)["gpu"]
        if imports:
            assert gpu["weight_bytes"] <= gpu["imported_bytes"] <= bundle_bytes + (1 << 16)
        else:
            assert gpu["imported_bytes"] == 0


def test_a_device_whose_memory_the_processor_does_not_see_answers_the_same(both: Path, loader: Path):
    """Weights and inputs are copied to it, and logits from it, under the validation layers, too."""
    for prompt in ("1,5,9", ",".join(map(str, range(3, 80)))):
        argv = [
            str(both / "edgellm-rt"),
            "run",
            str(both),
            "--tokens",
            prompt,
            "-n",
            "6",
            "--temperature",
            "0",
            "--json",
        ]
        env = {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": "apart:1:0"}
        answers = []
        for device, more in (("cpu", {}), ("vulkan", {}), ("vulkan", LAYERS)):
            given = [*argv, "--device", device]
            done = subprocess.run(given, capture_output=True, text=True, env={**env, **more}, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            assert "VUID" not in done.stdout + done.stderr
            assert "SYNC-HAZARD" not in done.stdout + done.stderr
            answers.append(json.loads(done.stdout.splitlines()[-1])["ids"])
        assert answers[0] == answers[1] == answers[2]


def test_bench_says_what_of_the_gpus_memory_decoding_and_the_upload_reach(both: Path, loader: Path):
    argv = [str(both / "edgellm-rt"), "bench", str(both), "--prompt", "8", "--generate", "2", "--repeat", "1"]
    env = {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": "apart:1:0"}
    argv += ["--device", "vulkan"]
    said = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=True).stdout
    assert re.search(r"its memory +[\d.]+ GB/s are read; decoding reads [\d.]+, \d+ % of that", said)
    assert re.search(r"its copies +[\d.]+ GB/s; copying the weights reached \d+ % of that", said)


@pytest.mark.parametrize("name", COMPUTING)
def test_what_fails_in_the_middle_of_an_answer_is_named(name: str, both: Path, loader: Path, counts: dict[str, int]):
    for code in (LOST, NO_MEMORY, *((TIMEOUT,) if name == "WaitForFences" else ())):
        done = run(both, loader, f"vk{name}:{counts[name]}:{code}")
        assert done.returncode > 0, done.stderr
        assert f"edgellm-rt: {NAMES[code]}: while computing" in done.stderr


WRONG = {"one row": 20, "32 rows": 140, "128 rows": 200, "rows of a head": 253}
"""Dispatches of the demo model's plan, in the order in which functions are recorded; each is left out alone."""


def golden(bundle: Path, loader: Path, fault: str, device: str = "vulkan") -> subprocess.CompletedProcess[str]:
    argv = [str(bundle / "edgellm-rt"), "golden", str(bundle), "--device", device, "--json"]
    env = {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": fault}
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120, check=False)


def test_a_gpu_that_computes_wrongly_is_found_out_and_not_used_until_it_proves_itself(both: Path, loader: Path):
    note, expected = both / ".gpu", json.loads(run(both, loader, "", "--device", "cpu").stdout)["ids"]
    for what, nth in WRONG.items():
        found = golden(both, loader, f"wrong:{nth}:0")
        assert found.returncode == 27, what
        assert "edgellm-rt: KERNEL_FAILED: llvmpipe" in found.stderr
        assert "computes wrongly" in found.stderr
        assert "update its driver" in found.stderr
    assert "computes wrongly" in note.read_text()
    free = run(both, loader, "")
    assert json.loads(free.stdout)["ids"] == expected
    assert "note: the processor computes: llvmpipe" in free.stderr
    assert "golden DIR --device vulkan` tries it again" in free.stderr
    assert "processor computes" not in run(both, loader, "", "--device", "vulkan").stderr
    lost = golden(both, loader, f"vkQueueSubmit:3:{LOST}")
    assert lost.returncode == 81
    assert "the GPU" in note.read_text()
    imitation = golden(both, Path("none"), "", "auto")
    assert imitation.returncode == 80
    assert "the only GPU that Vulkan finds is llvmpipe" in note.read_text()
    done = golden(both, loader, "", "auto")
    assert done.returncode == 0, done.stderr
    proven = json.loads(done.stdout)
    assert proven["same"] == proven["tokens"] > 60
    assert proven["farthest"] < 0.05
    assert not note.exists()
    assert "the processor computes" not in run(both, loader, "").stderr


@pytest.fixture
def fresh(both: Path, tmp_path: Path) -> Path:
    """A copy that nobody has tried."""
    return shutil.copytree(both, tmp_path / "fresh", ignore=shutil.ignore_patterns(".*"))


def test_who_interrupts_the_proof_changes_nothing_and_a_crash_leaves_its_note(fresh: Path, loader: Path):
    note = fresh / ".gpu"
    stopped = golden(fresh, loader, f"vkQueueSubmit:4:{1000 + signal.SIGTERM}")
    assert stopped.returncode == 43, stopped.stderr
    assert not note.exists()
    assert not (fresh / ".proven").exists()
    killed = golden(fresh, loader, f"vkCreateDevice:1:{1000 + signal.SIGKILL}")
    assert killed.returncode == -signal.SIGKILL
    assert "nobody heard how that ended" in (before := note.read_text())
    assert golden(fresh, loader, f"vkCreateDevice:1:{1000 + signal.SIGINT}").returncode == 43
    assert note.read_text() == before
    assert "note: the processor computes: the GPU was tried" in run(fresh, loader, "").stderr


OTHER = "the GPU or its driver is another one than the one that has proven itself here"


def test_behind_another_driver_the_gpu_proves_itself_again_before_it_computes(fresh: Path, loader: Path):
    assert run(fresh, loader, "").stderr == ""  # as older programs have left it: nobody is asked
    manifest = (fresh / "manifest.sha256").read_text().split()[0]
    (fresh / ".proven").write_text(f"edgellm-proven 1 {manifest}\n00000001:00000002:00000003:{16 * '04'}\n")
    forced = run(fresh, loader, "", "--device", "vulkan")
    assert forced.stderr == f"edgellm-rt: note: {OTHER}; `edgellm-rt golden DIR --device vulkan` tries it\n"
    free = run(fresh, loader, "")
    assert free.stderr == f"edgellm-rt: note: {OTHER}; it does so again, which can take two minutes\n"
    assert run(fresh, loader, "").stderr == ""  # now this one has
    served = [str(fresh / "edgellm-rt"), "serve", str(fresh), "--port", "0", "--attached"]
    env = {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": f"driver:1:7,vkQueueSubmit:4:{1000 + signal.SIGTERM}"}
    assert subprocess.run(served, stdin=subprocess.DEVNULL, env=env, timeout=60, check=False).returncode == 43
    assert not (fresh / ".gpu").exists()
    (fresh / ".gpu.new").mkdir()  # where the note would be written; works for root, whom no mode stops
    assert "the processor computes: its driver is another one" in run(fresh, loader, "driver:1:7").stderr
    (fresh / ".gpu.new").rmdir()
    failed = run(fresh, loader, f"driver:1:7,vkCreateComputePipelines:3:{NO_MEMORY}")
    assert json.loads(failed.stdout)["ids"] == json.loads(free.stdout)["ids"]
    assert f"{OTHER}; it does so again" in failed.stderr
    assert "note: the processor computes: the GPU has no memory left" in failed.stderr
    later = run(fresh, loader, "driver:1:7").stderr
    assert "no memory left" in later
    assert OTHER not in later


def test_a_note_of_another_manifest_or_none_at_all_is_not_heeded_and_no_terminal_obeys_it(both: Path, loader: Path):
    note, first = both / ".gpu", "edgellm-gpu 1 " + (both / "manifest.sha256").read_text().split()[0]
    try:
        for text in (
            "",
            "edgellm-gpu 1",
            first,
            f"edgellm-gpu 1 {'0' * 64}\nwhy\n",
            first.replace(" 1 ", " 2 ") + "\n",
        ):
            note.write_text(text)
            assert "the processor computes" not in run(both, loader, "").stderr, text
        note.write_bytes(first.encode() + b"\n\x1b[2J \xff" + b"x" * 5000)
        said = run(both, loader, "").stderr
        assert "the processor computes: ?[2J ?xxx" in said
        assert len(said) < 800
    finally:
        note.unlink()


def test_a_deployment_finds_a_wrong_gpu_out_and_the_next_one_clears_it(
    both: Path, loader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    known = {"EDGELLM_CACHE": str(cache.root()), "HOME": str(tmp_path), "LD_LIBRARY_PATH": str(loader)}
    for name, value in {**lavapipe(), **known, "FAULT": "wrong:20:0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    command = ["deploy", "--board", "local", str(both)]
    assert main(command) == 0
    assert "the processor computes: llvmpipe" in (said := capsys.readouterr().out)
    assert "computes wrongly" in said
    (slot,) = (tmp_path / ".edgellm" / "models").glob("*/current")
    assert (slot / ".gpu").exists()
    assert "note: the processor computes: llvmpipe" in run(slot, loader, "").stderr
    monkeypatch.setenv("FAULT", "")
    assert main([*command, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    gpu = done["proof"]["gpu"]
    assert gpu["same"] == gpu["tokens"]
    assert gpu["decode_tok_s"] > 0
    assert gpu["cpu_decode_tok_s"] > 0
    assert not (slot / ".gpu").exists()
    assert "the processor computes" not in run(slot, loader, "").stderr
    assert main(command) == 0
    assert "on local already" in capsys.readouterr().out
