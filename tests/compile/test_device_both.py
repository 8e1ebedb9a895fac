"""Bundles for both: the GPU (Mesa's lavapipe here) where it works and is faster, else the processor, which says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgellm import bundle as bundles
from edgellm import cache
from edgellm.cli import main
from edgellm.compile import compile_model
from tests.server import MODEL
from tests.shaders import lavapipe

PROMPT = ("-p", "Turn on the light in the kitchen.", "-n", "24", "--temperature", "0", "--json")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_model(MODEL, "local", "w4a8", tmp_path_factory.mktemp("both") / "bundle", device="both").path


def call(
    bundle: Path, command: str, *arguments: str, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    argv = [str(bundle / "edgellm-rt"), command, str(bundle), *arguments]
    env = {**lavapipe(), **environment}
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, env=env, timeout=600, check=False)


def ids(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)["ids"]
    return found


def notes(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "the processor computes" in line]


def without_a_driver(folder: Path) -> dict[str, str]:
    missing = str(folder / "none.json")
    return {"VK_ICD_FILENAMES": missing, "VK_DRIVER_FILES": missing}


def changed(bundle: Path, to: Path, **manifest: object) -> Path:
    """A copy with other keys in its manifest."""
    copy = shutil.copytree(bundle, to)
    old = bundles.read(copy).manifest
    bundles.seal(copy, {**{key: value for key, value in old.items() if key not in ("format", "files")}, **manifest})
    return copy


def test_both_devices_give_the_same_tokens(both: Path, bundle: Path):
    expected = ids(call(bundle, "run", *PROMPT))
    for device in ("cpu", "vulkan"):
        assert ids(call(both, "run", *PROMPT, "--device", device)) == expected
    gpu = call(both, "bench", "--device", "vulkan", "--json", "--prompt", "8", "--generate", "2", "--repeat", "1")
    assert "llvmpipe" in json.loads(gpu.stdout)["gpu"]["name"]


def test_a_gpu_that_is_the_processor_is_not_taken_unless_asked_for(both: Path):
    done = call(both, "run", *PROMPT)
    assert ids(done) == ids(call(both, "run", *PROMPT, "--device", "cpu"))
    assert len(notes(done)) == 1
    assert "llvmpipe" in notes(done)[0]
    forced = call(both, "run", *PROMPT, "--device", "vulkan")
    assert not notes(forced)
    assert "--device cpu is faster" in forced.stderr


def test_without_a_driver_the_processor_computes_and_says_why(both: Path, bundle: Path, tmp_path: Path):
    missing = without_a_driver(tmp_path)
    done = call(both, "run", *PROMPT, **missing)
    assert ids(done) == ids(call(bundle, "run", *PROMPT))
    assert len(notes(done)) == 1
    assert "Vulkan finds no driver here" in notes(done)[0]
    forced = call(both, "run", *PROMPT, "--device", "vulkan", **missing)
    assert forced.returncode == 80
    assert "GPU_MISSING" in forced.stderr


def test_a_board_whose_gpu_is_slower_says_by_how_much_and_does_not_open_it(both: Path, tmp_path: Path):
    slow = changed(both, tmp_path / "slow", vulkan={"times_slower": 10})
    done = call(slow, "run", *PROMPT)
    assert ids(done) == ids(call(both, "run", *PROMPT, "--device", "cpu"))
    assert "takes about 10 times as long" in notes(done)[0]
    assert "llvmpipe" not in done.stderr
    assert not notes(call(slow, "run", *PROMPT, "--device", "vulkan"))
    untried = call(slow, "golden", "--device", "auto")
    assert "takes about 10 times as long, and was not tried" in untried.stderr
    assert not (slow / ".gpu").exists()


def test_what_only_the_processor_can_takes_it_without_a_word(both: Path, tmp_path: Path):
    golden = call(both, "golden")
    assert golden.returncode == 0
    assert golden.stderr == ""
    trace = call(both, "trace", "--tokens", "1,2,3")
    assert trace.returncode == 0
    assert trace.stderr == ""


def test_both_halves_are_checked_and_what_they_share_is_there_once(both: Path, tmp_path: Path):
    assert call(both, "verify").returncode == 0
    assert "the processor, or a GPU" in call(both, "info").stdout
    indices = [both / "weights" / f"{prefix}model.safetensors.index.json" for prefix in ("", "vulkan-")]
    cpu, gpu = (set(json.loads(index.read_text())["weight_map"]) for index in indices)
    norm = "model.layers.0.input_layernorm.weight"
    assert norm in cpu
    assert norm not in gpu
    plan = json.loads((both / "plan-vulkan.json").read_text())
    assert {weight["tensor"] for weight in plan["weights"]} <= cpu | gpu
    copy = shutil.copytree(both, tmp_path / "copy")
    (copy / "plan-vulkan.json").write_text("{}")
    assert call(copy, "info").returncode == 21
    whole = changed(copy, tmp_path / "sealed")
    assert call(whole, "run", *PROMPT, "--device", "cpu").returncode == 0
    assert "plan-vulkan.json" not in call(whole, "run", *PROMPT, "--device", "cpu").stderr
    assert call(whole, "info").returncode in (25, 26)


def test_a_device_that_a_bundle_is_not_for_is_refused(both: Path, bundle: Path):
    done = call(bundle, "run", *PROMPT, "--device", "vulkan")
    assert "USAGE" in done.stderr
    assert "compile it with --device vulkan, or both" in done.stderr
    assert "--device is cpu, vulkan or auto, not 'gpu'" in call(both, "run", *PROMPT, "--device", "gpu").stderr


def test_a_server_for_both_says_who_computes(both: Path, tmp_path: Path):
    argv = [str(both / "edgellm-rt"), "serve", str(both), "--port", "0", "--attached"]
    env = {**os.environ, **without_a_driver(tmp_path)}
    done = subprocess.run(
        argv, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"type":"ready"' in done.stdout
    assert len(notes(done)) == 1


def test_commands_of_the_host_say_what_is_to_compute(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("EDGELLM_CACHE", str(cache.root()))
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name, value in lavapipe().items():
        monkeypatch.setenv(name, value)

    def said(command: str, *arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([command, "--board", "local", *arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert main(["deploy", "--board", "local", str(both)]) == 0
    few = ("-n", "4", "--temperature", "0", "-p", "Turn on the light in the kitchen.")
    assert said("run", "--device", "vulkan", *few)["ids"] == said("run", "--device", "cpu", *few)["ids"]
    bench = ("--prompt", "8", "--depth", "0", "--generate", "2", "--repeat", "1")
    found = {device: said("bench", "--device", device, *bench) for device in ("cpu", "vulkan")}
    assert found["cpu"]["board"]["gpu"] is None
    assert [it["threads"] > 0 for it in found["cpu"]["bandwidth"]] == [True]
    assert "llvmpipe" in found["vulkan"]["board"]["gpu"]
    assert [it["device"] for it in found["vulkan"]["bandwidth"]] == ["vulkan"]  # of what computed
    assert found["vulkan"]["model"]["gpu_step_bytes"] == found["vulkan"]["model"]["step_bytes"] > 0
    for device in ("cpu", "vulkan"):  # steps are those of the plan that computes
        assert said("profile", "--device", device, "--tokens", "8", "--depth", "0", "--runs", "1")["phases"]
