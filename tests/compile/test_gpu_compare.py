"""Steps of a GPU (Mesa's lavapipe) looked at one by one, and followed by another: which kernel is wrong is found.

Faults are real ones: modules with another instruction, other weights, a driver that leaves a dispatch out or dies.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgellm import bundle as bundles
from edgellm import cache, gpu_report
from edgellm.cli import main
from edgellm.errors import EdgeError, UsageError
from edgellm.gpu_compare import DEVICE, GpuBundle, Trial, judged, lavapipe, open_gpu_bundle, open_reference, same_bundle
from edgellm.launches import read_trace, run_trace, show_launch
from edgellm.local_remote import LocalRemote
from edgellm.machine import open_machine
from edgellm.precision import Options
from tests.compile.test_compare import change_weights, reseal
from tests.compile.test_vulkan import compile_for
from tests.compile.test_vulkan_faults import faulty_loader
from tests.server import MODEL
from tests.shader_faults import changed, modules_of, places, with_modules
from tests.shaders import lavapipe_alone

TOKENS, ROWS = [7, 1000, 3, 99, 512, 11, 640, 2, 77], 8
"""A function of eight rows, and then the one of a single row."""
WEIGHT = "model.layers.1.mlp.down_proj.weight.scale"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_for("processor", Options("w4a8"), tmp_path_factory.mktemp("gpu-compare") / "bundle")


@pytest.fixture(scope="module")
def reference(sound: Path) -> GpuBundle:
    return open_reference(sound)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_loader(tmp_path_factory.mktemp("loader"))


def board(bundle: Path, **environment: str) -> GpuBundle:
    return open_gpu_bundle(LocalRemote("board", {**lavapipe(), **environment}), "model", str(bundle))


@pytest.fixture(scope="module")
def traced(reference: GpuBundle) -> bytes:
    return run_trace(reference.model, reference.plan, TOKENS, ROWS, DEVICE, True)


def n_steps(gpu: GpuBundle) -> int:
    return sum(len(function.steps) for function in gpu.plan.functions.values())


def test_a_trace_that_follows_itself_says_the_same(reference: GpuBundle, traced: bytes, tmp_path: Path) -> None:
    assert json.loads(traced.partition(b"\n")[0])["gpu"].startswith("llvmpipe")
    (tmp_path / "trace").write_bytes(traced)
    following = (*DEVICE, "--follow", str(tmp_path / "trace"))
    assert run_trace(reference.model, reference.plan, TOKENS, ROWS, following, True) == traced


def test_a_step_is_shown_whole(reference: GpuBundle, sound: Path, traced: bytes) -> None:
    steps = list(read_trace(traced, "here", reference.plan, len(TOKENS), ROWS, data=True))
    launch, outputs = next(each for each in steps if each[0].step.tensor == WEIGHT.removesuffix(".scale"))
    whole = show_launch(reference.model, launch, TOKENS, ROWS, DEVICE)
    assert whole.after[outputs[0].argument] == outputs[0].data
    assert WEIGHT in whole.names
    read = whole.before[whole.names.index(WEIGHT)]
    assert any(read in shard.read_bytes() for shard in (sound / "weights").glob("*.safetensors"))


def mutant(sound: Path, kernel: str, to: Path) -> Path:
    """A bundle in whose module for a kernel the last addition or product is another one."""
    modules = modules_of(sound)
    word = [word for word, what in places(modules[kernel]) if what == "instruction"][-1]
    return with_modules(sound, {**modules, kernel: changed(modules[kernel], word, "instruction")}, to)


def test_the_kernel_that_is_wrong_is_named_and_written_down(reference: GpuBundle, sound: Path, tmp_path: Path) -> None:
    kernels = [step.kernel for step in reference.plan.functions["body", 8].steps]
    kernel = next(name for name in kernels if "rms_norm" in name)
    bad = board(mutant(sound, kernel, tmp_path / "bundle"))
    verdict, evidence = judged(Trial(bad, reference, TOKENS, ROWS))
    assert verdict.kernels == [kernel]  # no later one, though all of them read what it wrote
    assert len(verdict.wrong) == kernels.count(kernel)
    assert evidence is not None
    assert evidence.cause == "kernel"
    where = tmp_path / "report"
    gpu_report.write(reference, verdict, verdict.wrong[0], evidence, where)
    said = json.loads((where / "step.json").read_text())
    assert said["kernel"] == kernel
    assert (where / "kernel.spv").read_bytes() == modules_of(sound)[kernel]
    binding = said["bindings"][said["argument"]]
    expected, written = (np.load(where / binding[key]) for key in ("expected", "written"))
    assert np.count_nonzero(expected != written) >= verdict.wrong[0].difference.n_wrong > 0
    assert "llvmpipe" in (where / "README.md").read_text()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"miaow")
    with pytest.raises(UsageError, match="is no report of a GPU; choose another"):
        gpu_report.write(reference, verdict, verdict.wrong[0], evidence, tmp_path / "photos")


def test_weights_that_did_not_arrive_are_told_from_a_kernel(reference: GpuBundle, sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "bundle")
    change_weights(copy, WEIGHT, "<f2", 1.25)
    verdict, evidence = judged(Trial(board(copy), reference, TOKENS, ROWS))
    assert {wrong.launch.step.tensor for wrong in verdict.wrong} == {WEIGHT.removesuffix(".scale")}
    assert evidence is not None
    assert evidence.cause == "weights"
    assert WEIGHT in evidence.detail


@pytest.mark.oracle
def test_what_an_earlier_step_wrote_over_is_told_from_a_kernel(
    reference: GpuBundle, sound: Path, tmp_path: Path
) -> None:
    """The rotary table lies where the first layer's quantization writes its scales, in the board's plan."""
    copy = shutil.copytree(sound, tmp_path / "bundle")
    plan = json.loads((copy / "plan.json").read_text())
    for function in plan["functions"]:
        if (function["name"], function["n"]) == ("body", ROWS):
            steps = function["steps"]
            names = [plan["kernels"][step["kernel"]]["name"] for step in steps]
            table = next(step["args"][-1] for step, name in zip(steps, names, strict=True) if "rope_table" in name)
            place = next(i for i, name in enumerate(names) if "rms_norm_quant" in name)
            scales = steps[place]["args"][-1]
            steps[place]["args"][-1] = table
            steps[place + 1]["args"] = [table if place == scales else place for place in steps[place + 1]["args"]]
    (copy / "plan.json").write_text(json.dumps(plan))
    verdict, evidence = judged(Trial(board(reseal(copy)), reference, TOKENS, ROWS))
    assert "rope_append" in verdict.wrong[0].launch.step.kernel
    assert evidence is not None
    assert evidence.cause == "inputs"
    assert "was changed before it was read" in evidence.detail


def test_a_driver_that_dies_is_told_by_its_kernel(reference: GpuBundle, sound: Path, loader: Path) -> None:
    dying = board(sound, LD_LIBRARY_PATH=str(loader), FAULT="vkQueueSubmit:40:-4")
    with pytest.raises(EdgeError, match=r"GPU_LOST\); it ended in step \d+, body \d+: .* \(kernel body8_"):
        judged(Trial(dying, reference, TOKENS, ROWS))


def test_a_trace_that_cannot_be_followed_is_named(reference: GpuBundle, traced: bytes, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    for damaged, said in (
        (traced[:5000], "it ends within a step's bytes"),
        (traced.replace(b'"number":3,', b'"number":4,'), "of another bundle, of other tokens"),
        (b" " * 99999 + traced, "a line that is none"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(EdgeError, match=rf"--follow: .*{said}.*BUNDLE_FORMAT"):
            run_trace(reference.model, reference.plan, TOKENS, ROWS, (*DEVICE, "--follow", str(file)), True)


def test_bundles_are_told_apart(sound: Path, tmp_path: Path) -> None:
    digest = bundles.read(sound).sha256
    assert same_bundle(digest, sound, "board") == sound
    assert bundles.read(same_bundle(digest, None, "board")).sha256 == digest  # it was compiled here
    with pytest.raises(UsageError, match="is another bundle than the one on board"):
        same_bundle("0" * 64, sound, "board")
    with pytest.raises(UsageError, match="name its directory with --bundle DIR"):
        same_bundle("0" * 64, None, "board")


def test_compare_as_a_command(
    sound: Path, loader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(cache.root()))
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    slot, where = tmp_path / ".edgellm" / "models" / "ember", tmp_path / "out"
    slot.mkdir(parents=True)
    (slot / "current").symlink_to(sound)
    fault = f"wrong:{n_steps(board(sound)) + 20}:0"  # the 20th step that is traced; functions are recorded before
    faulty = {"LD_LIBRARY_PATH": str(loader), "FAULT": fault}
    command = ["compare", "--name", "ember", "--board", "local", "--device", "vulkan", "--rows", "8", "-o", str(where)]
    with lavapipe_alone():
        apart = {"LD_LIBRARY_PATH": str(loader), "FAULT": "apart:1:0"}  # memory that the processor does not see
        monkeypatch.setattr("edgellm.connection.connect", lambda *_: LocalRemote("kitchen", apart))
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "130 steps agree with llvmpipe" in said
        assert "lavapipe itself" in said
        monkeypatch.setattr("edgellm.connection.connect", lambda *_: LocalRemote("kitchen", faulty))
        assert main(command) == 1
        said = capsys.readouterr().out
        assert "kitchen (llvmpipe" in said
        assert "1 of 130 steps are wrong; the first:\n  step 19, body 19: " in said
        assert f"maintainers: {where}\n" in said
        assert (where / "kernel.spv").exists()


def test_requests_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["--reference", "host"], "a GPU is compared with lavapipe"),
        (["--bundle", str(tmp_path)], "--bundle goes with --board"),
        (["--board", "local", "--scheme", "w4a8"], "--scheme is for this machine alone"),
    ):
        assert main(["compare", str(MODEL), "--device", "vulkan", *argv]) == 1
        assert said in capsys.readouterr().err
    assert main(["compare", str(MODEL), "--bundle", str(tmp_path)]) == 1
    assert "--bundle goes with --device vulkan" in capsys.readouterr().err


def test_a_bundle_for_the_processor_says_so(bundle: Path) -> None:
    with pytest.raises(UsageError, match="is for the processor alone; deploy it with --device vulkan"):
        open_gpu_bundle(LocalRemote("board"), "ember", str(bundle))


def test_a_bundle_for_gpus_says_so(sound: Path) -> None:
    with pytest.raises(UsageError, match="is for a GPU alone; compare it with --device vulkan"):
        open_machine(LocalRemote("board"), "ember", str(sound))
