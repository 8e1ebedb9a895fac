"""Sketches say, without making code, what compiling then writes; and what the shipped measurements claim holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import crosscompile
from crosscompile.errors import ConfigError
from crosscompile.inner_loop import loop_of
from crosscompile.models.architecture import scheme_for
from crosscompile.quantize import weight_bytes
from crosscompile.sketch import Sketch
from crosscompile.sketching import sketch, sketches
from crosscompile.target import TIERS, target_of_tier
from edgellm import calibration, hub, measured
from edgellm.cli import main
from edgellm.precision import Options
from edgellm.prediction import Memory, resident_bytes
from edgellm.workbench import GENERATE, LocalWorkbench, RemoteWorkbench
from tests.caches import own_cache

TINY = dict(hub.read_config("random:tiny")[0])


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGELLM_CACHE", own_cache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("tier", "scheme", "changes"),
    [
        ("avx2", ("w4a8",), {}),
        ("dotprod", ("w8a8", "w4a8", "w4a8", "i8"), {}),
        *(
            pytest.param(*each, marks=pytest.mark.oracle)  # armv7 takes LLVM half a minute
            for each in (
                ("armv7-neon", ("w4a8",), {"tie_word_embeddings": False, "num_hidden_layers": 3}),
                ("avx2", ("f16",), {"architectures": ["MistralForCausalLM"], "sliding_window": 128}),
            )
        ),
    ],
)
def test_a_sketch_is_what_compiling_writes(tier, scheme, changes):
    config, target = {**TINY, **changes}, target_of_tier(tier)
    found = sketch(config, target, scheme_for(*scheme))
    compiled = crosscompile.compile_model(config, target, scheme_for(*scheme))
    assert found.weight_bytes == weight_bytes(compiled.parameters).n_bytes
    assert found.parameters == compiled.model["parameters"]
    assert found.kv_bytes_per_token == compiled.memory["kv_bytes_per_token"]
    assert found.arena_bytes == pytest.approx(compiled.memory["arena_bytes"], rel=0.03)
    assert (found.context_length, found.window) == (compiled.model["context_length"], compiled.model["sliding_window"])
    launches = {f"{f['name']} {f['n']}": len(f["steps"]) for f in compiled.plan["functions"]}
    assert found.launches.items() <= launches.items()
    # every weight is read whole, looked up, or a vector
    whole = sum(matrix.bytes for matrix in (*found.body, *found.head))
    assert whole + found.lookup_bytes + found.vector_bytes == found.weight_bytes
    assert bool(found.lookup_bytes) == (not config["tie_word_embeddings"])


def test_several_tiers_at_once_are_as_each_alone():
    targets = [target_of_tier(tier) for tier in TIERS]
    together = sketches(TINY, targets, scheme_for("w4a8"))
    for target in targets:
        alone = sketch(TINY, target, scheme_for("w4a8"))
        assert dataclasses.replace(together[target.tier.name], arena_bytes=0) == dataclasses.replace(
            alone, arena_bytes=0
        )
        assert together[target.tier.name].arena_bytes == pytest.approx(alone.arena_bytes, rel=0.02)
    found = together["dotprod"]
    assert Sketch.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_configuration_that_is_not_supported():
    with pytest.raises(ConfigError, match="'hidden_size' must be an integer"):
        sketch({**TINY, "hidden_size": "many"}, target_of_tier("avx2"), scheme_for("w4a8"))


def test_instructions_per_product_are_those_of_the_shipped_file():
    shipped = measured.read(measured.packaged_path()).instructions
    assert shipped.keys() == TIERS.keys()
    for tier, kind, n in (("dotprod", "w4", 1), ("avx2", "w8", 64), ("armv8-neon", "f16", 1)):
        loop = loop_of(TIERS[tier], kind, n)
        assert shipped[tier][kind][str(n)] == pytest.approx(len(loop.instructions) / loop.products, rel=1e-3)


def test_the_shipped_runs_are_predicted_as_well_as_is_claimed(monkeypatch):
    """Fitted on two shapes: decode within 15 %, prefill within 25 %, memory within 3 % on at least four others."""
    shipped = measured.read(measured.packaged_path())
    machine = shipped.machines[0]
    foreign = {run.model for run in machine.runs} - set(machine.fitted_on)
    assert len(machine.fitted_on) == 2
    assert len(foreign) >= 4
    sketched = calibration.looked_at(machine.runs, machine.tier, lambda *_: None)
    speeds = calibration.compare(machine.runs, machine.coefficients, shipped.instructions[machine.tier], sketched)
    peaks = calibration.compare_memory(machine.runs, machine.memory, sketched)
    assert calibration.errors_of(speeds, peaks, machine.fitted_on) == pytest.approx(machine.errors, abs=2e-3)
    for each in speeds:
        limit = 0.15 if each.run.figure == "decode" else 0.25
        assert abs(each.error) <= limit, (each.run.model, each.run.threads, each.run.figure, each.error)
    assert max(abs(each.error) for each in peaks) <= 0.03


def test_memory_is_as_measured_for_a_model_that_is_compiled_now(tmp_path, monkeypatch):
    """From config.json alone, against the peak of a real process, for a shape that nothing was fitted to."""
    from edgellm.boards import load_board
    from edgellm.compile import build
    from edgellm.sketching import sketches as sketch_of

    board, name = load_board("local"), "random:smollm2-135m:6"
    made = build(name, board, Options("w4a8")).bundle
    tier = board.target().tier.name
    found = sketch_of(hub.read_config(name)[0], [tier], [Options("w4a8")])[0][tier]
    shipped = measured.read(measured.packaged_path()).machines[0].memory
    bench = LocalWorkbench(board)
    bench.settle(made, 128)
    peak = bench.bench(made, 1, 128).peak_rss_bytes
    assert resident_bytes(found, shipped, 128 + GENERATE) == pytest.approx(peak, rel=0.03)
    assert resident_bytes(found, Memory(0, 0, 1), 0, looked_up=0) < peak


def test_the_command_for_every_board_and_for_one(capsys, tmp_path):
    folder = tmp_path / "a-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    assert main(["plan", str(folder / "config.json"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == "a-model"
    boards = {each["board"]: each for each in answer["boards"]}
    assert {"rpi5", "rpi4", "rpi2", "n100", "local", "android-arm64"} <= boards.keys()
    assert not any(each.startswith("virtual") for each in boards)
    schemes = boards["rpi5"]["schemes"]
    assert [each["scheme"] for each in schemes] == ["w4a8, embedding w4a8, head w4a8", "w4a8", "w8a8"]
    assert schemes[0]["decode"]["tok_s"] > 0
    assert boards["android-arm64"]["schemes"][0]["decode"] is None
    assert main(["plan", str(folder), "--board", "rpi5", "--context", "256"]) == 0
    out = capsys.readouterr().out
    assert "memory with 256 positions" in out
    assert "(best)" in out
    assert main(["plan", str(folder)]) == 0
    assert "longest" in capsys.readouterr().out


def test_fitting_to_a_real_run(capsys, tmp_path):
    file = tmp_path / "own.json"
    arguments = ["plan", "--fit", "random:tiny", "-o", str(file), "--rounds", "1", "--threads", "1", "--json"]
    arguments += ["--quiet-below", "1000", "--prompts", "64,256"]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["fitted_on"] == ["random:tiny"]
    own = measured.read(file)
    assert own.machines[0].coefficients.instructions_per_s > 1e7
    # again from the runs in the file, without measuring
    assert main(["plan", "--fit", "-o", str(file)]) == 0
    assert "fitted" in capsys.readouterr().out
    assert measured.read(file).machines[0].runs == own.machines[0].runs


def test_a_board_is_measured_over_its_connection_and_left_as_it_was(tmp_path):
    """A LocalRemote stands for the way to the board; deployment, probe and runs are real."""
    from edgellm.boards import load_board
    from edgellm.fake import FakeRemote

    board = load_board("local")
    model = calibration.prepare(["random:tiny"], [Options("w4a8")], board, lambda *_: None)
    home = tmp_path / "board"
    home.mkdir()
    with RemoteWorkbench(board, FakeRemote(home), others=1000) as bench:
        runs = calibration.measure(model, bench, [1], [64], 1, lambda *_: None)
        assert bench.bandwidth(1) > 1e8
        assert list((home / ".edgellm" / "models").iterdir())
    assert {run.figure for run in runs} == {"decode", "prefill"}
    assert list((home / ".edgellm" / "models").iterdir()) == []
    assert not (home / ".edgellm" / "bandwidth-probe").exists()
