"""Tuning a GPU's kernels on lavapipe, through the agent: a search, what becomes of it, and what goes wrong."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crosscompile.errors import CodegenError
from edgellm import cli, hub, tune, tune_layer, tuned
from edgellm.boards import FOUND, Board, find_board, load_board
from edgellm.compile import compile_model
from edgellm.connection import connect
from edgellm.errors import UnsuitableError
from edgellm.precision import Options
from edgellm.remote import Remote
from edgellm.rpc import serve
from edgellm.tune import Journal, Outcome, Search
from edgellm.tune_builder import Builder, Knobs, Layer, Library
from tests.agent import c_library
from tests.compile.logits import CPU, GPU, Model, compare
from tests.compile.test_vulkan import modules, modules_of
from tests.compile.test_vulkan_families import prepare
from tests.compile.test_vulkan_faults import faulty_loader
from tests.shaders import lavapipe_alone


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lavapipe is the only GPU, nothing was tuned, and a comparison is of few pairs."""
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for module in (tune, tune_layer):
        monkeypatch.setattr(module, "N_PAIRS", 2)
    with lavapipe_alone():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest shape, with heads that GPUs have attention for."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    shutil.copytree(hub.resolve("random:tiny", lambda what, done, total: None)[0], folder)
    config = json.loads((folder / "config.json").read_text())
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    (folder / "config.json").write_text(json.dumps({**config, **heads}))
    return folder


def local(schedule: str, buffers: int = 8) -> Board:
    """This machine, with kernels for a class of GPUs that bind so many buffers."""
    board = find_board("local")
    assert board.vulkan is not None
    return replace(board, vulkan=replace(board.vulkan, schedule=schedule, storage_buffers=buffers))


def search(board: Board, builder: Builder, folder: Path) -> tuple[Outcome, int]:
    """What is found for the only layer, and how often the board was connected to."""
    connected = []

    def once_more() -> Remote:
        connected.append(board)
        return connect(find_board("local"), None)

    made = Search(board, once_more, builder, Journal(folder / "journal.jsonl"), device="vulkan", patience_s=20)
    (outcome,) = made.run()
    assert made.gpu is not None
    assert "llvmpipe" in made.gpu.name
    return outcome, len(connected)


def keep(builder: Builder, key: str, n_candidates: int) -> None:
    """Leaves one layer, with few candidates."""
    layer = next(layer for layer in builder.layers if re.search(key, layer.key))
    builder.layers = (replace(layer, candidates=(layer.candidates[0], *layer.candidates[1 - n_candidates :])),)


def test_the_command_searches_and_goes_on_where_it_stopped(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["tune", "--board", "local", "--device", "vulkan", str(model), "--rows", "1", "--minutes"]
    assert cli.main([*argv, "0.001", "--json"]) == 0  # enough to begin one kernel
    first = json.loads(capfd.readouterr().out)
    assert first["gpu"]["is_processor"] is True
    assert first["trials"] > 10
    assert len(first["kernels"]) == 1
    assert cli.main([*argv, "0.03"]) == 0
    shown = capfd.readouterr().out
    assert "says nothing of real ones" in " ".join(shown.split())
    known = tuned.lookup(load_board("local"), "vulkan")
    assert known[first["kernels"][0]["key"]] == first["kernels"][0]["knobs"]
    assert len(known) >= 2  # the first came from the journal, and took no time
    assert tuned.lookup(load_board("local")) == {}


@pytest.mark.parametrize(
    ("schedule", "buffers", "key", "calls"),
    [
        ("desktop", 8, "linear.*n8", "linear"),
        pytest.param("desktop", 9, "attention.*n1:", "attention_(parts|merge)", marks=pytest.mark.oracle),
        ("desktop", 10, "attention.*n1:", "attention_row|clear_turns"),
        ("desktop", 12, "rotated_linear.*scaled", "linear_w4_rope"),
        ("processor", 10, "attention.*n8", "attention_(parts|merge)"),
    ],
)
def test_every_class_of_gpus_has_something_to_search(
    model: Path, tmp_path: Path, schedule: str, buffers: int, key: str, calls: str
) -> None:
    """Where threads share, attention of a row is one kernel on GPUs that bind ten buffers, rotation fused on twelve."""
    board = local(schedule, buffers)
    with Builder(model, Options("w4a8"), board.gpu_target(), [1, 8]) as builder:
        assert {layer.n for layer in builder.layers} == {1, 8}
        keep(builder, key, 3)
        made = builder.build(builder.layers[0], [builder.layers[0].candidates[0]], 1)
        assert all(re.search(calls, name) for name in modules_of(made.data))
        outcome, _ = search(board, builder, tmp_path)
    assert outcome.knobs in outcome.layer.candidates
    assert 0 < outcome.best_us <= outcome.default_us < math.inf


def test_a_mixtures_experts_are_searched_too(tmp_path: Path) -> None:
    """The other candidate has rows in other tiles, for which they are sorted again."""
    prepare(tmp_path, "olmoe-biases")
    board = local("processor")
    with Builder(tmp_path / "model", Options("w4a8"), board.gpu_target(), [8]) as builder:
        keep(builder, "grouped", 2)
        default, other = builder.layers[0].candidates
        assert default["tile"] != other["tile"]
        outcome, _ = search(board, builder, tmp_path)
    assert outcome.knobs in (default, other)
    assert 0 < outcome.best_us <= outcome.default_us < math.inf


@pytest.mark.parametrize(
    ("schedule", "buffers", "rows", "lengths", "kinds"),
    [
        (FOUND, 8, [1, 8, 32, 128], [130, 1, 9], set()),
        pytest.param(
            *("desktop", 9, [1], [1, 6, 1, 1], {"gated_linear", "normed_linear", "scaled_linear"}),
            marks=pytest.mark.oracle,
        ),
        ("desktop", 12, [1], [1, 6, 1, 1], {"gated_linear", "normed_linear", "rotated_linear"}),
    ],
)
def test_what_was_measured_is_compiled_and_answers_stay_within_the_tolerance(
    model: Path, tmp_path: Path, schedule: str, buffers: int, rows: list[int], lengths: list[int], kinds: set[str]
) -> None:
    """Every kernel gets its last candidate, which is none of the defaults; the processor's half gets none of it.

    Not compiled is the kernel that clears the counters of attention that is measured.
    """
    board = local(schedule, buffers)
    with Builder(model, Options("w4a8"), board.gpu_target(), rows) as builder:
        assert {layer.key.split(".")[0] for layer in builder.layers} == kinds | {"linear", "attention"}
        found = {layer.key: layer.candidates[-1] for layer in builder.layers}

        def built(layers: Sequence[Layer], candidate: int) -> set[bytes]:
            """The modules that would be measured."""
            made = (builder.build(layer, [layer.candidates[candidate]], 1) for layer in layers)
            codes = (modules_of(each.data) for each in made)
            return {code for each in codes for name, code in each.items() if name != "clear_turns"}

        measured, default = built(builder.layers, -1), built(builder.layers[:3], 0)
    store = tuned.user_folder() / "local.json"
    tuned.save(store, tuned.gpu_key_for(board), {key: {"knobs": knobs} for key, knobs in found.items()})
    both = compile_model(model, board, "w4a8", tmp_path / "both", device="both").path
    compiled = set(modules(both).values())
    assert measured <= compiled
    assert not (default - measured) & compiled
    on_cpu, on_gpu = (Model(both, 512, device) for device in (CPU, GPU))
    assert compare(on_cpu, on_gpu, lengths) < 0.05
    on_cpu.close()
    on_gpu.close()

    key = next(key for key in found if key.startswith("attention"))
    tuned.save(store, tuned.gpu_key_for(board), {key: {"knobs": {"splits": 3}}})
    with pytest.raises(CodegenError, match=r"attention.*'splits': 3.* is no schedule of this kernel; remove"):
        compile_model(model, board, "w4a8", tmp_path / "wrong", device="vulkan")


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


def test_a_schedule_that_the_gpu_refuses_costs_its_own_trials(model: Path, tmp_path: Path) -> None:
    board = local("processor")
    with Corrupting(model, Options("w4a8"), board.gpu_target(), [1]) as builder:
        keep(builder, "linear.w8", 3)
        builder.bad = builder.layers[0].candidates[1]
        outcome, _ = search(board, builder, tmp_path)
        assert outcome.knobs != builder.bad
        assert outcome.best_us < math.inf
        assert set(Journal(tmp_path / "journal.jsonl").times(builder.layers[0], builder.bad)) == {math.inf}


class Brief(Builder):
    """Measures with a fixed number of submissions: four, the first of which warms up."""

    def measure(self, function: str, repeat: int = 3, min_repeat_ms: int = 0) -> dict[str, Any]:
        return super().measure(function, repeat, min_repeat_ms)


def test_a_gpu_that_is_lost_costs_one_trial(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each session, its fourteenth submission is the last: three trials, as many as one that is tainted may take."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(faulty_loader(tmp_path)))
    monkeypatch.setenv("FAULT", "vkQueueSubmit:14:-4")
    board = local("processor")
    with Brief(model, Options("w4a8"), board.gpu_target(), [1]) as builder:
        keep(builder, "linear.w4.*add", 2)
        outcome, n_connected = search(board, builder, tmp_path)
    assert outcome.best_us < math.inf
    assert outcome.n_trials >= 10
    assert n_connected >= 4  # ten trials, if the default is found to be the best, in sessions of three


def test_an_imitation_is_not_taken_for_a_boards_gpu(model: Path, tmp_path: Path) -> None:
    board = replace(local("processor"), id="n100")
    with Builder(model, Options("w4a8"), board.gpu_target(), [1]) as builder:
        keep(builder, "linear", 2)
        with pytest.raises(UnsuitableError, match=r"on n100 is llvmpipe.*imitates"):
            search(board, builder, tmp_path)


@pytest.mark.parametrize("lacking", ["a driver", "a clock"])
def test_without_a_gpu_that_can_be_timed_there_is_a_named_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    board = local("processor")
    if lacking == "a clock":
        monkeypatch.setenv("LD_LIBRARY_PATH", str(faulty_loader(tmp_path)))
        monkeypatch.setenv("FAULT", "clock:1:0")
    with Builder(model, Options("w4a8"), board.gpu_target(), [1]) as builder:
        if lacking == "a driver":
            for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
                monkeypatch.setenv(name, str(tmp_path / "none.json"))
        keep(builder, "linear", 2)
        says = "GPU_MISSING: it has no clock" if lacking == "a clock" else "GPU_MISSING"
        with pytest.raises(UnsuitableError, match=rf"local has no GPU that can be tuned.*{says}"):
            search(board, builder, tmp_path)


def test_the_agent_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    board = find_board("local")
    plan = '{"format": 1}'
    with connect(board, None) as remote, serve(board, remote, device="vulkan") as agent:
        from tvm import rpc

        session = rpc.connect("127.0.0.1", agent.port, agent.key)
        session.upload(bytearray(plan.encode()), "p.json")
        session.upload(bytearray(b"no modules"), "m.spv")
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
