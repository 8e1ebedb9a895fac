"""Bundles whose first layers are a GPU's (Mesa's lavapipe here) and whose others are the processor's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint
from crosscompile.runtime import build_runtime
from crosscompile.target import target_of_tier
from edgellm import bundle as bundles
from edgellm import cache, layer_split
from edgellm.cli import main
from edgellm.compile import build
from edgellm.layer_split import Speed, best, request_s
from edgellm.precision import Options
from edgellm.worker import request_of
from tests.compile.test_device_both import PROMPT, call, changed, ids, without_a_driver
from tests.compile.test_model import host_tiers
from tests.compile.test_vulkan_families import logits as run_on
from tests.compile.test_vulkan_families import prepare
from tests.compile.test_vulkan_faults import faulty_loader
from tests.compiling import compile_forked
from tests.emulated.test_bits import make_bundle
from tests.oracle.family_configurations import FAMILIES
from tests.server import MODEL
from tests.shaders import DESKTOP, lavapipe

N_LAYERS, ON_GPU = 6, 2
TOKENS = [(i * 37 + 11) % 1500 for i in range(150)]
"""More than two calls of the largest functions: the GPU is a call ahead."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    return build(MODEL, "local", Options("f32"), folder / "bundle", gpu_layers=ON_GPU).bundle.path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(MODEL, "local", Options("f32"), tmp_path_factory.mktemp("plain") / "bundle").bundle.path


def logits(bundle: Path, folder: Path, *options: str) -> np.ndarray:
    file = folder / "logits.f32"
    done = call(bundle, "run", "--tokens", ",".join(map(str, TOKENS)), "--logits", str(file), *options)
    assert done.returncode == 0, done.stderr
    return np.fromfile(file, np.float32).reshape(len(TOKENS), -1)


def test_logits_are_those_of_the_processor(split: Path, plain: Path, tmp_path: Path):
    expected = logits(plain, tmp_path)
    for options in ((), ("--step", "1")):
        found = logits(split, tmp_path, *options)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_answers_are_those_of_the_processor(split: Path, plain: Path):
    assert ids(call(split, "run", *PROMPT)) == ids(call(plain, "run", *PROMPT))
    shown = call(split, "bench", "--json", "--prompt", "8", "--generate", "2", "--repeat", "1")
    assert "llvmpipe" in json.loads(shown.stdout)["gpu"]["name"]


def test_what_a_token_reads_is_of_both_devices(split: Path, plain: Path):
    """`edgellm bench` makes the share of both memories of it."""
    opened = []
    for bundle in (split, plain):
        said = call(bundle, "bench", "--jsonl", "--prompt", "8", "--depth", "0", "--generate", "1", "--repeat", "1")
        lines = [json.loads(line) for line in said.stdout.splitlines()]
        opened += [line for line in lines if line["type"] == "open"]
    both, one = opened
    assert both["step_bytes"] == pytest.approx(one["step_bytes"], rel=0.05)
    assert 0.1 * both["step_bytes"] < both["gpu"]["step_bytes"] < 0.5 * both["step_bytes"]
    assert both["gpu"]["kv_bytes_per_token"] * N_LAYERS == both["kv_bytes_per_token"] * ON_GPU


def test_its_gpu_proves_itself_by_the_processors_logits(split: Path):
    done = call(split, "golden", "--json")
    assert done.returncode == 0, done.stderr
    proven = json.loads(done.stdout)
    assert proven["same"] == proven["tokens"] > 60
    assert proven["farthest"] < 1e-4


def test_it_is_whole(split: Path, plain: Path):
    assert call(split, "verify").returncode == 0
    assert f"a GPU for the first {ON_GPU} layers" in call(split, "info").stdout
    found, whole = bundles.read(split).manifest, bundles.read(plain).manifest
    assert found["target"]["device"] == "split"
    assert {**found["model"], "name": ""} == {**whole["model"], "name": ""}
    assert found["memory"]["kv_bytes_per_token"] == whole["memory"]["kv_bytes_per_token"]
    names = [
        set(json.loads((split / "weights" / f"{half}model.safetensors.index.json").read_text())["weight_map"])
        for half in ("vulkan-", "")
    ]
    for layer in range(N_LAYERS):
        norm = f"model.layers.{layer}.input_layernorm.weight"
        assert [norm in each for each in names] == [layer < ON_GPU, layer >= ON_GPU]


def test_conversations_that_begin_alike_share_what_both_devices_keep(split: Path, plain: Path):
    prompts = [f"Turn on the light in the kitchen, and then {what}." for what in ("wait", "the one outside", "wait")]

    def answers(which: Path) -> list[str]:
        chat = call(which, "chat", "--temperature", "0", "-n", "12", stdin="\n".join(prompts))
        assert chat.returncode == 0, chat.stderr
        return chat.stdout.splitlines()

    assert answers(split) == answers(plain)


def test_without_its_gpu_it_does_not_run(split: Path, tmp_path: Path):
    done = call(split, "run", *PROMPT, **without_a_driver(tmp_path))
    assert done.returncode == 80
    assert "Vulkan finds no driver here" in done.stderr
    assert "for GPUs only" in call(split, "run", *PROMPT, "--device", "cpu").stderr
    for command in (("trace", "--tokens", "1,2,3"), ("profile",)):
        assert "cannot be watched yet" in call(split, *command).stderr


@pytest.mark.parametrize(
    ("damage", "error"),
    [("no rows arrive", "PLAN_INVALID"), ("other rows", "PLAN_INVALID"), ("no second plan", "BUNDLE_FORMAT")],
)
def test_halves_that_do_not_fit_are_refused(split: Path, tmp_path: Path, damage: str, error: str):
    copy = shutil.copytree(split, tmp_path / "copy")
    file = copy / ("plan.json" if damage == "no rows arrive" else "plan-vulkan.json")
    plan = json.loads(file.read_text())
    if damage == "no rows arrive":
        del plan["arriving"]
    elif damage == "other rows":
        plan["functions"] = [each for each in plan["functions"] if each["n"] != 8]
    file.write_text(json.dumps(plan))
    if damage == "no second plan":
        file.unlink()
    done = call(changed(copy, tmp_path / "sealed"), "run", *PROMPT)
    assert done.returncode != 0
    assert f"edgellm-rt: {error}: " in done.stderr
    assert "plan-vulkan.json" in done.stderr


def test_what_cannot_be_split_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["compile", str(MODEL), "--board", "local", "-o", str(tmp_path / "b")]
    for options, reason in (
        (["--gpu-layers", "6"], "of 6 layers, 1 to 5 can go to the GPU"),
        (["--gpu-layers", "auto"], "it goes to `edgellm deploy --board`"),
        (["--gpu-layers", "2", "--device", "both"], "leave out --device both"),
    ):
        assert main([*command, *options]) != 0
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def check_family(name: str, folder: Path) -> None:
    """A small random network, cut behind its first layer, in f32."""
    tier = host_tiers()[-1]
    target, text = target_of_tier(tier).on_gpu(DESKTOP), prepare(folder, name)
    plain = make_bundle(folder / "plain", folder / "model", tier, "f32", short=True, stop_id=2)
    halves = make_bundle(folder / "split", folder / "model", tier, "f32", short=True, stop_id=2, layers=(1, None))
    request = {**request_of(checkpoint.load(folder / "model"), target), "output": str(halves), "dump": None}
    options = {"scheme": "f32", "embedding": None, "head": None, "kv": None, "tensors": (), "short": True}
    compile_forked({**request, **options, "half": True, "layers": (0, 1)})
    manifest = {key: value for key, value in bundles.read(halves).manifest.items() if key not in ("format", "files")}
    window = bundles.read(plain).manifest["model"]["sliding_window"]
    manifest["model"] = {**manifest["model"], "sliding_window": window}
    bundles.seal(halves, {**manifest, "target": {**manifest["target"], "device": "split"}})
    program = build_runtime(target)
    expected, found = run_on(program, plain, text, "cpu"), run_on(program, halves, text, "vulkan")
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert off <= 1e-4, f"{name}: off by {off:.2g} of the largest logit"


@pytest.mark.parametrize("name", ["gemma2-caps", "mamba-narrow", "mixtral-tied"])
def test_other_families_are_split_alike(name: str, tmp_path: Path):
    check_family(name, tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("rwkv")])
def test_every_family_is_split_alike(name: str, tmp_path: Path):
    check_family(name, tmp_path)


def test_deploying_measures_both_devices_and_takes_the_split(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "loader").mkdir()
    real = {"LD_LIBRARY_PATH": str(faulty_loader(tmp_path / "loader"))}  # a program that imitates a GPU gets no layers
    for name, value in {**lavapipe(), **real, "EDGELLM_CACHE": str(cache.root()), "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(layer_split, "best", lambda n_layers, cpu, gpu: ON_GPU)  # lavapipe would never get a layer
    assert main(["deploy", "--board", "local", "--gpu-layers", "auto", "--scheme", "f32", str(MODEL)]) == 0
    said = capsys.readouterr().out
    assert f"with {ON_GPU} of {N_LAYERS} layers on the GPU" in said
    (slot,) = (tmp_path / ".edgellm" / "models").glob("*/current")
    assert bundles.read(slot).manifest["target"]["device"] == "split"


def test_the_number_of_layers_follows_from_what_was_measured():
    cpu, fast, slow = Speed(100, 10), Speed(1000, 40), Speed(10, 1)
    assert best(24, cpu, fast) == 24
    assert best(24, cpu, slow) == 0
    alike = Speed(100, 10)
    assert best(24, cpu, alike) == 12  # a prompt's rows are on both at once
    assert request_s(12, 24, cpu, alike) < min(request_s(0, 24, cpu, alike), request_s(24, 24, cpu, alike))
