"""Tuning a GPU's kernels on lavapipe, through the agent: a search, what becomes of it, and what goes wrong on the way."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.errors import CodegenError
from edgellm import cli, tune, tune_layer, tuned
from edgellm.boards import Board, find_board, load_board
from edgellm.compile import compile_model
from edgellm.connection import connect
from edgellm.errors import UnsuitableError
from edgellm.precision import Options
from edgellm.rpc import serve
from edgellm.tune import Journal, Outcome, Search
from edgellm.tune_builder import Builder, Knobs, Layer, Library
from tests.agent import c_library
from tests.compile.logits import Model, compare
from tests.compile.test_vulkan import modules
from tests.compile.test_vulkan_faults import faulty_loader
from tests.server import MODEL
from tests.shaders import build_runner, lavapipe_alone


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lavapipe is the only GPU, nothing was tuned, and a comparison is of few pairs."""
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for module in (tune, tune_layer):
        monkeypatch.setattr(module, "N_PAIRS", 2)
    with lavapipe_alone():
        yield


def search(board: Board, builder: Builder, folder: Path) -> list[Outcome]:
    journal = Journal(folder / "journal.jsonl")
    made = Search(board, lambda: connect(board, None), builder, journal, device="vulkan", patience_s=20)
    found = list(made.run())
    assert made.gpu is not None
    assert "llvmpipe" in made.gpu.name
    return found


def keep(builder: Builder, key: str, n_candidates: int) -> None:
    """Leaves one layer, with few candidates."""
    builder.layers = tuple(
        replace(layer, candidates=(layer.candidates[0], *layer.candidates[1 - n_candidates :]))
        for layer in builder.layers
        if re.search(key, layer.key)
    )[:1]
    assert len(builder.layers) == 1


def test_the_command_searches_goes_on_and_the_next_bundle_has_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["tune", "--board", "local", "--device", "vulkan", str(MODEL), "--rows", "1", "--minutes", "0.02"]
    assert cli.main([*argv, "--json"]) == 0
    first = json.loads(capfd.readouterr().out)
    assert first["gpu"]["is_processor"] is True
    assert first["trials"] > 10
    assert len(first["kernels"]) == 1
    assert cli.main(argv) == 0
    shown = capfd.readouterr().out
    assert "says nothing of real ones" in " ".join(shown.split())
    known = tuned.lookup(load_board("local"), "vulkan")
    assert known[first["kernels"][0]["key"]] == first["kernels"][0]["knobs"]
    assert len(known) >= 2  # the first came from the journal, and took no time
    assert tuned.lookup(load_board("local")) == {}


@pytest.mark.parametrize(("schedule", "key"), [("desktop", "linear"), ("processor", "attention")])
def test_every_class_of_gpus_has_something_to_search(tmp_path: Path, schedule: str, key: str) -> None:
    board = find_board("local")
    assert board.vulkan is not None
    board = replace(board, vulkan=replace(board.vulkan, schedule=schedule))
    with Builder(MODEL, Options("w4a8"), board.gpu_target(), [8]) as builder:
        assert {layer.n for layer in builder.layers} == {1, 8}
        keep(builder, f"{key}.*n8", 3)
        (outcome,) = search(board, builder, tmp_path)
    assert outcome.knobs in outcome.layer.candidates
    assert 0 < outcome.best_us <= outcome.default_us < math.inf


def test_what_was_found_is_compiled_and_answers_stay_within_the_tolerance(bundle: Path, tmp_path: Path) -> None:
    """Every kernel gets its last candidate, which is none of the defaults."""
    board = find_board("local")
    default = compile_model(MODEL, "local", "w4a8", tmp_path / "default", device="vulkan").path
    with Builder(MODEL, Options("w4a8"), board.gpu_target(), [1, 8, 32, 128]) as builder:
        found = {layer.key: {"knobs": layer.candidates[-1]} for layer in builder.layers}
    store = tuned.user_folder() / "local.json"
    tuned.save(store, tuned.gpu_key_for(board), found)
    made = compile_model(MODEL, "local", "w4a8", tmp_path / "tuned", device="vulkan").path
    both = compile_model(MODEL, "local", "w4a8", tmp_path / "both", device="both").path
    assert (both / "kernels.spv").read_bytes() == (made / "kernels.spv").read_bytes()
    before, after = modules(default), modules(made)
    changed = [name for name in after if name in before and after[name] != before[name]]
    assert len(changed) >= len([key for key in found if key.startswith("linear")])
    assert any("attention" in name for name in changed)
    library = tmp_path / "libedgellm.so"
    build_runner(tmp_path, library.name)
    a, b = Model(library, bundle), Model(library, made)
    assert compare(a, b, [130, 1, 9]) < 0.05
    a.close()
    b.close()

    key = next(key for key in found if key.startswith("attention"))
    tuned.save(store, tuned.gpu_key_for(board), {key: {"knobs": {"splits": 3}}})
    with pytest.raises(CodegenError, match=r"attention.*'splits': 3.* is no schedule of this kernel; remove"):
        compile_model(MODEL, "local", "w4a8", tmp_path / "wrong", device="vulkan")


class Corrupting(Builder):
    """Builds modules for one of the schedules that no driver gets to see."""

    bad: Knobs

    def _build(self, layer: Layer, knobs: list[Knobs], copies: int) -> Library:
        made = super()._build(layer, knobs, copies)
        if self.bad not in knobs:
            return made
        data = bytearray(made.data)
        name, size, code, _ = np.frombuffer(made.data, "<u4", 4, 16 + 16 * knobs.index(self.bad)).tolist()
        assert data[name : name + size].startswith(f"k{knobs.index(self.bad)}_".encode())
        data[code] ^= 0xFF  # SPIR-V's magic number
        return replace(made, data=bytes(data))


def test_a_schedule_that_the_gpu_refuses_costs_its_own_trials(tmp_path: Path) -> None:
    board = find_board("local")
    with Corrupting(MODEL, Options("w4a8"), board.gpu_target(), [1]) as builder:
        keep(builder, "linear.w8", 3)
        builder.bad = builder.layers[0].candidates[1]
        (outcome,) = search(board, builder, tmp_path)
        assert outcome.knobs != builder.bad
        assert outcome.best_us < math.inf
        assert Journal(tmp_path / "journal.jsonl").times(builder.layers[0], builder.bad) == [math.inf]


def test_a_gpu_that_is_lost_costs_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each session, its 300th submission is the last: of the third measurement or so."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(faulty_loader(tmp_path)))
    monkeypatch.setenv("FAULT", "vkQueueSubmit:300:-4")
    board = find_board("local")
    assert board.vulkan is not None
    board = replace(board, vulkan=replace(board.vulkan, schedule="processor"))
    with Builder(MODEL, Options("w4a8"), board.gpu_target(), [1]) as builder:
        keep(builder, "linear.w4.*add", 2)
        (outcome,) = search(board, builder, tmp_path)
    assert outcome.best_us < math.inf
    assert outcome.n_trials >= 14


def test_without_a_gpu_there_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = find_board("local")
    with Builder(MODEL, Options("w4a8"), board.gpu_target(), [1]) as builder:
        for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
            monkeypatch.setenv(name, str(tmp_path / "none.json"))
        with pytest.raises(UnsuitableError, match=r"local has no GPU that can be tuned.*GPU_MISSING"):
            search(board, builder, tmp_path)


def test_the_agent_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    board = find_board("local")
    plan = '{"format": 1}'
    with connect(board, None) as remote, serve(board, remote, device="vulkan") as agent:
        from tvm import rpc

        session = rpc.connect("127.0.0.1", agent.port, agent.key)
        session.upload(bytearray(plan.encode()), "p.json")
        open_, time = (session.get_function(f"edgellm.gpu_{name}") for name in ("open", "time"))
        for call, says in (
            (lambda: time(0, 1, 1), "no GPU was opened"),
            (lambda: time(0, 0, 1), "wants an index"),
            (lambda: open_("p.json", "../m.spv", 0), "two names of files"),
            (lambda: open_("p.json", "m.spv", -1), "a position"),
            (lambda: open_("none.json", "m.spv", 0), "none.json"),
            (lambda: open_("p.json", "m.spv", 0), "PLAN_INVALID"),
        ):
            with pytest.raises(Exception, match=says):
                call()
        library = c_library(tmp_path / "k.so", "FUNCTION(main) { result->type = 1; result->v.i = 42; return 0; }")
        session.upload(bytearray(library.read_bytes()), "k.so")
        assert session.load_module("k.so")["main"]() == 42  # it still serves
