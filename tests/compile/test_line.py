"""The whole line on this machine: checkpoint to bundle to tokens, against transformers' stored answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from crosscompile import checkpoint, reference
from crosscompile.errors import CompileError, QuantizeError
from crosscompile.models.architecture import scheme_for
from edgellm import bundle as bundles
from edgellm.boards import load_board
from edgellm.compile import Compilation, build
from edgellm.errors import ModelError, UnsuitableError
from edgellm.evaluate import runtime_logits
from edgellm.golden import host_target
from edgellm.precision import Options
from tests.caches import own_cache
from tests.oracle.configurations import BASE, CONFIGURATIONS, weights, write_checkpoint

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "voice_assistant" / "model"
ANSWERS = json.loads((ROOT / "tests" / "data" / "demo.json").read_text())

pytestmark = pytest.mark.skipif(host_target() is None, reason="this machine's CPU has none of the tiers")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(own_cache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(cache))


def answer(bundle: Path, *arguments: str) -> dict:
    command = [str(bundle / "edgellm-rt"), "run", str(bundle), *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def compiled(scheme: str) -> Compilation:
    return build(DEMO, "local", Options(scheme))


def test_greedy_tokens_of_the_demo_model_equal_transformers() -> None:
    bundle = compiled("f32").bundle.path
    for entry in ANSWERS:
        ids = ",".join(map(str, entry["prompt"]))
        found = answer(bundle, "--tokens", ids, "-n", str(len(entry["tokens"])), "--temperature", "0")
        assert found["ids"] == entry["tokens"], entry["text"]


def test_f32_logits_of_the_demo_model_match_transformers() -> None:
    bundle = compiled("f32").bundle.path
    expected = np.load(ROOT / "tests" / "data" / "demo_logits.npz")["last"]
    for entry, last in zip(ANSWERS, expected, strict=True):
        found = runtime_logits(bundle, entry["prompt"], len(last))[-1]
        assert np.abs(found - last).max() <= 1e-4 * np.abs(last).max()


def test_prompts_become_transformers_tokens() -> None:
    bundle = compiled("f32").bundle.path
    for entry in ANSWERS:
        messages = entry["messages"]
        system = ["--system", messages[0]["content"]] if messages[0]["role"] == "system" else []
        if [message["role"] for message in messages[-1:]] == ["user"] and len(messages) == 1 + bool(system):
            found = answer(bundle, "-p", messages[-1]["content"], *system, "-n", "1", "--temperature", "0")
            assert found["prompt_ids"] == entry["prompt"]


def test_w4a8_logits_of_the_demo_model_equal_the_reference() -> None:
    bundle = compiled("w4a8").bundle.path
    ids = ANSWERS[0]["prompt"]
    expected = reference.logits(checkpoint.load(DEMO), ids, scheme_for("w4a8"))
    assert runtime_logits(bundle, ids, expected.shape[1]).tobytes() == expected.tobytes()


def test_a_bundle_is_complete_and_answers_its_golden_prompts(tmp_path: Path) -> None:
    made = build(DEMO, "local", Options("w4a8"), tmp_path / "bundle")
    bundle = bundles.verify(tmp_path / "bundle")
    assert bundle.name == "voice_assistant"
    assert {"kernels.so", "plan.json", "tokenizer.bin", "chat.bin", "edgellm-rt"} <= {f.path for f in bundle.files}
    assert len(bundle.manifest["golden"]) == 3
    assert all(entry["prompt"] and entry["tokens"] for entry in bundle.manifest["golden"])
    for command in ("verify", "golden", "info"):
        subprocess.run([bundle.path / "edgellm-rt", command, bundle.path], check=True, capture_output=True)
    memory = bundle.manifest["memory"]
    assert memory["arena_bytes"] < memory["arena_unplanned_bytes"]
    assert 4.5 <= made.report["statistics"]["bits_per_weight"] < 9
    assert os.listdir(tmp_path) == ["bundle"]


def test_the_second_time_comes_from_the_cache_without_tvm(tmp_path: Path, cache: Path) -> None:
    first = compiled("w4a8").bundle
    program = (
        "import sys, time; start = time.monotonic()\n"
        "from edgellm.compile import Options, build\n"
        "made = build(sys.argv[1], 'local', Options('w4a8'))\n"
        "assert made.cached and not any(name.split('.')[0].startswith('tvm') for name in sys.modules)\n"
        "print(made.bundle.sha256, time.monotonic() - start)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(DEMO)], cwd=ROOT, capture_output=True, check=True)
    digest, seconds = done.stdout.split()
    assert digest.decode() == first.sha256
    print(f"second compile: {float(seconds):.2f} s")


def test_a_damaged_cache_is_compiled_anew() -> None:
    made = compiled("w4a8")
    plan = made.bundle.path / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b"1", b"2", 1))
    again = compiled("w4a8")
    assert not again.cached
    assert again.bundle.sha256 == made.bundle.sha256  # compiling is reproducible
    bundles.verify(again.bundle.path)


def test_a_bundle_for_another_tier_carries_this_machine_s_answers(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", {**BASE, "num_hidden_layers": 1})
    here = build(directory, "local", Options("w4a8")).bundle
    there = build(directory, "rpi5", Options("w4a8")).bundle
    assert there.tier == "dotprod"
    assert there.manifest["golden"] == here.manifest["golden"]
    assert (there.path / "edgellm-rt").read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
    assert not [name for name in os.listdir(there.path) if name.startswith(".") and name != ".verified"]


def left_behind(cache: Path) -> list[str]:
    return [name for name in os.listdir(cache / "bundles") if name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"architectures": ["BloomForCausalLM"]}, "'BloomForCausalLM' is not supported"),
        ({"rope_scaling": {"rope_type": "odd", "factor": 2.0}}, "rope_type 'odd' is not supported"),
        ({"intermediate_size": 128}, "config.json implies"),
        ({"num_hidden_layers": 3}, "tensor 'model.layers.2"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ],
)
def test_configurations_that_cannot_be_compiled(tmp_path: Path, cache: Path, change: dict, text: str) -> None:
    directory = write_checkpoint(tmp_path / "model", CONFIGURATIONS["llama-linear"])
    (directory / "config.json").write_text(json.dumps({**CONFIGURATIONS["llama-linear"], **change}))
    with pytest.raises(CompileError) as error:
        build(directory, "local", Options("w4a8"), tmp_path / "out")
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["model"]
    assert left_behind(cache) == []


def test_texts_that_cannot_be_compiled(tmp_path: Path, cache: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", CONFIGURATIONS["llama-linear"])
    (directory / "chat_template.jinja").write_text("{% import 'x' as y %}")
    with pytest.raises(CompileError) as error:
        build(directory, "local", Options("w4a8"))
    assert "\n" not in str(error.value)
    (directory / "chat_template.jinja").unlink()
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json; make one with transformers"):
        build(directory, "local", Options("w4a8"))
    assert left_behind(cache) == []


def test_a_checkpoint_with_nan_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    config = {**CONFIGURATIONS["llama-linear"], "num_hidden_layers": 1}
    directory = write_checkpoint(tmp_path / "model", config)
    tensors = weights(config)
    tensors["model.layers.0.mlp.up_proj.weight"][17, 3] = np.nan
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(QuantizeError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' holds NaN in row 17"):
        build(directory, "local", Options("w4a8"), tmp_path / "out")
    assert os.listdir(tmp_path) == ["model"]
    assert left_behind(cache) == []


def test_a_model_that_does_not_fit_the_board(tmp_path: Path, cache: Path) -> None:
    board = load_board("local")
    small = replace(board, memory=replace(board.memory, ram_bytes=17_000_000, ram_options_bytes=()))
    with pytest.raises(UnsuitableError, match=r"the model needs .* MB \(weights .* use "):
        build(DEMO, small, Options("w4a8"), tmp_path / "out")
    assert os.listdir(tmp_path) == []
    assert left_behind(cache) == []
