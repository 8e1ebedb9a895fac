"""The model of a machine: its fit, its limits, published figures, and what is refused in its files."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from crosscompile.sketch import Matrix, Sketch
from edgellm import hub, measured, planning, published
from edgellm.boards import load_board
from edgellm.errors import BoardError, ModelError
from edgellm.fit import Peak, Sample, fit_memory, fit_speed
from edgellm.planning import basis_for, basis_of_manifest, choose, predict
from edgellm.precision import Options
from edgellm.prediction import Coefficients, Memory, Work, decode_work, kv_bytes, prefill_work, resident_bytes

TABLE = {"w4": {"1": 0.2, "64": 0.1}, "w8": {"1": 0.25, "64": 0.125}, "f16": {"1": 0.4, "64": 0.25}}


def sketch(hidden: int, layers: int, vocab: int, *, tied: bool = True, window: int = 0) -> Sketch:
    products, head = layers * 12 * hidden * hidden, vocab * hidden
    lookup = 0 if tied else head * 17 // 16
    body = Matrix("w4", products, products * 9 // 16)
    matrix = Matrix("w8", head, head * 17 // 16)
    launches = {"body 1": 10 * layers + 2, "body 64": 10 * layers + 2, "head 1": 3, "head 8": 3}
    kv = 4 * hidden * layers
    total = body.bytes + matrix.bytes + lookup
    return Sketch(
        "LlamaForCausalLM", products + head, total, lookup, 0, (body,), (matrix,), 1 << 21, kv, hidden * layers, window,
        launches, 8192, vocab, layers,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))


def test_a_fit_finds_the_machine_that_made_the_samples() -> None:
    truth = Coefficients(9e9, 1.5e10, 7e9, 0.05, 4e-6, 3e-6, 2.5)
    noise = np.random.default_rng(1)
    samples = []
    for shape, threads, depth in itertools.product(
        (sketch(576, 30, 49152), sketch(2048, 22, 32000)), (1, 2), (128, 512)
    ):
        for work in (decode_work(shape, TABLE, depth), prefill_work(shape, TABLE, depth)):
            seconds = work.seconds(truth, threads, threads * 2e10) * noise.uniform(0.98, 1.02)
            samples.append(Sample(work, threads, threads * 2e10, seconds))
    found = fit_speed(samples)
    for shape in (sketch(768, 12, 32000, tied=False), sketch(960, 32, 49152), sketch(2048, 16, 128256)):
        for threads, depth in itertools.product((1, 2), (64, 1024)):
            for work in (decode_work(shape, TABLE, depth), prefill_work(shape, TABLE, depth)):
                expected = work.seconds(truth, threads, threads * 3e10)
                assert work.seconds(found, threads, threads * 3e10) == pytest.approx(expected, rel=0.06)


def test_time_lies_between_the_longer_part_and_both_one_after_the_other() -> None:
    work = Work(1e9, 1e9, 0, 0, 0, 1)
    for overlap in (1, 1.5, 3, 8):
        seconds = work.seconds(Coefficients(1e9, 1, 1, 0, 0, 0, overlap), 1, 1e9)
        assert 1 < seconds <= 2
    assert work.seconds(Coefficients(1e9, 1, 1, 0, 0, 0, 1), 1, 1e9) == pytest.approx(2)
    assert work.seconds(Coefficients(1e9, 1, 1, 0, 0, 0, 8), 2, 1e9) < work.seconds(
        Coefficients(1e9, 1, 1, 0, 0, 0, 8), 1, 1e9
    )


def test_work_follows_the_prompt_and_the_cache() -> None:
    shape = sketch(576, 30, 49152)
    assert decode_work(shape, TABLE, 100).bytes - decode_work(shape, TABLE, 0).bytes == 100 * shape.kv_bytes_per_token
    one, two = prefill_work(shape, TABLE, 64), prefill_work(shape, TABLE, 128)
    assert two.launches - 3 == 2 * (one.launches - 3)
    assert two.attention > 3.9 * one.attention
    assert prefill_work(shape, TABLE, 65).instructions > one.instructions
    windowed = dataclasses.replace(shape, window=32)
    assert decode_work(windowed, TABLE, 1000).bytes == decode_work(shape, TABLE, 32).bytes
    assert kv_bytes(windowed, 8192) < kv_bytes(shape, 8192) / 40
    assert kv_bytes(shape, 65) == 128 * shape.kv_bytes_per_token


def test_memory_fit_tells_the_window_from_what_is_always_there() -> None:
    truth = Memory(3e6, 29.0, 262144.0)
    peaks = []
    for shape, positions in itertools.product(
        (sketch(576, 30, 49152), sketch(2048, 22, 32000, tied=False)), (176, 560)
    ):
        explained = resident_bytes(shape, Memory(0, 0, 1), positions, looked_up=0)
        peak = resident_bytes(shape, truth, positions)
        peaks.append(Peak(peak, explained, shape.vocab_size, shape.lookup_bytes, positions))
    found = fit_memory(peaks, 29.0)
    assert found.window_bytes == truth.window_bytes
    assert found.base_bytes == pytest.approx(truth.base_bytes)


@pytest.mark.parametrize(
    "run",
    [run for run in published.load().runs if run.figure == "decode"],
    ids=lambda run: f"{run.model}, {run.threads} threads, {run.tok_s}",
)
def test_published_decode_follows_from_bandwidth_and_file_size(run: published.PublishedRun) -> None:
    """The Pi 5's published bandwidth, the peer's own bytes, the shipped coefficients: within 20 %."""
    core = measured.read(measured.packaged_path()).cores["Cortex-A76"]
    board = load_board(run.board)
    machine = published.machine_of(core, board.target_section.clock_hz or 0)
    work = published.work_of(run, published.load().instructions[run.engine, "Cortex-A76"])
    rate = basis_of_manifest(board).bandwidth(run.threads)
    assert rate in (13.8e9, 12.7e9, 11.7e9, 10.7e9)
    assert 1 / work.seconds(machine, run.threads, rate) == pytest.approx(run.tok_s, rel=0.20)
    # bandwidth alone is the bound, and near
    assert run.tok_s < 1.05 * rate / run.bytes_per_token


def test_the_three_published_models_of_the_anchors_are_there() -> None:
    figures = {(run.model.split(" ")[0], run.tok_s) for run in published.load().runs if run.figure == "decode"}
    assert {("Qwen2.5-0.5B-Instruct", 34.2), ("Qwen2.5-1.5B-Instruct", 12.4), ("Amber", 2.57)} <= figures


def test_shipped_coefficients_are_those_that_the_published_figures_give() -> None:
    shipped = measured.read(measured.packaged_path()).cores
    fitted = published.fit_cores(published.load())
    assert shipped.keys() == fitted.keys()
    for name, core in fitted.items():
        assert shipped[name].instructions_per_cycle == pytest.approx(core.instructions_per_cycle, rel=1e-3)


def test_bandwidth_between_two_numbers_of_threads() -> None:
    basis = basis_of_manifest(load_board("rpi5"))
    assert [basis.bandwidth(n) for n in (1, 2, 3, 4, 8)] == [13.8e9, 12.7e9, 11.7e9, 10.7e9, 10.7e9]


def test_every_board_gets_what_can_be_said_about_it() -> None:
    known, boards = measured.load(), planning.hardware()
    kinds = {board.id: basis_for(board, known, boards).kind for board in boards}
    assert kinds["rpi5"] == kinds["rock5b"] == planning.PUBLISHED
    assert kinds["rpi4"] == kinds["rpi2"] == planning.ROUGH
    assert basis_for(load_board("android-arm64"), known, boards).coefficients is None
    rough = basis_for(load_board("rpi4"), known, boards)
    assert "Cortex-A72" in rough.note
    assert "decode" not in rough.errors
    assert rough.bandwidth(1) == pytest.approx(12.8e9 * 13.8 / 17.068)


def test_a_measured_machine_goes_before_anything_else() -> None:
    known = measured.load()
    machine = dataclasses.replace(known.machines[0], cpu=load_board("rpi4").cpu, n_cores=4)
    basis = basis_for(load_board("rpi4"), dataclasses.replace(known, machines=(machine, *known.machines)), [])
    assert basis.kind == planning.MEASURED
    assert basis.coefficients == machine.coefficients
    assert basis.errors == machine.errors


def test_prediction_of_a_board_and_the_best_scheme() -> None:
    known, board = measured.load(), load_board("rpi5")
    basis = basis_for(board, known, planning.hardware())
    small = dataclasses.replace(sketch(2048, 22, 32000), weight_bytes=700_000_000)
    large = dataclasses.replace(
        small, weight_bytes=1_300_000_000, body=(Matrix("w8", small.body[0].products, 1_200_000_000),)
    )
    huge = dataclasses.replace(small, weight_bytes=8_000_000_000)
    found = [
        predict(board, Options(name), shape, known, basis, 2048)
        for name, shape in (("w4a8", small), ("w8a8", large), ("f16", huge))
    ]
    assert [each.fits for each in found] == [True, True, False]
    assert found[0].decode is not None
    assert found[1].decode is not None
    assert found[0].decode.tok_s > found[1].decode.tok_s
    assert found[0].decode.threads < found[0].prefill.threads  # type: ignore[union-attr]
    assert found[2].longest_context == 0
    assert list(found[0].memory_bytes) == [512, 2048, 4096, 8192]
    assert list(found[0].memory_bytes.values()) == sorted(found[0].memory_bytes.values())
    assert choose(found, 1.0) is found[1]  # the most exact that is fast enough
    assert choose(found, found[1].decode.tok_s + 0.1) is found[0]
    assert choose(found, 1e9) is found[0]
    assert choose(found[2:], 1.0) is None
    shorter = predict(board, Options("w4a8"), small, known, basis, 99999)
    assert shorter.context == 8192  # no longer than the model's


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = measured.read(measured.packaged_path())
    measured.write(tmp_path / "copy.json", known)
    machine = known.machines[0]
    wild = dataclasses.replace(machine, coefficients=dataclasses.replace(machine.coefficients, overlap=4e20))
    with pytest.raises(BoardError, match=r"nothing sensible: 4e\+20 .*--rounds .*other\.json stays"):
        measured.write(tmp_path / "other.json", dataclasses.replace(known, machines=(wild,)))
    assert not (tmp_path / "other.json").exists()
    assert measured.read(tmp_path / "copy.json") == known


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("machines", 0, "coefficients", "overlap"), -1),
        (("machines", 0, "coefficients", "launch_s"), "fast"),
        (("machines", 0, "coefficients"), None),
        (("machines", 0, "runs", 0, "figure"), "sprint"),
        (("machines", 0, "runs", 0, "samples"), []),
        (("machines", 0, "runs", 0, "samples", 0), [1]),
        (("machines", 0, "bandwidth_bytes_per_s"), {"1": 0}),
        (("instructions",), 5),
        (("cores", "Cortex-A76", "instructions_per_cycle"), True),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, path: tuple[str | int, ...], value: object) -> None:
    document = json.loads(measured.packaged_path().read_text())
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(document))
    with pytest.raises(BoardError, match=r"measured\.json.*plan --fit"):
        measured.read(file)


def test_no_json_at_all(tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text("{")
    with pytest.raises(BoardError, match="plan --fit"):
        measured.read(tmp_path / "measured.json")


def test_ones_own_measurements_come_first() -> None:
    packaged = measured.read(measured.packaged_path())
    own = dataclasses.replace(packaged.machines[0], taken="2030-01-01T00:00:00+00:00")
    measured.write(measured.own_path(), dataclasses.replace(packaged, machines=(own,)))
    assert measured.load().machine(own.cpu, own.n_cores) == own


def test_a_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    file = tmp_path / "my-model" / "config.json"
    file.write_text('{"architectures": ["LlamaForCausalLM"]}')
    expected = ({"architectures": ["LlamaForCausalLM"]}, "my-model")
    assert hub.read_config(file) == hub.read_config(file.parent) == expected
    assert hub.read_config("random:tiny")[0]["hidden_size"] == 64
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json"):
        hub.read_config(tmp_path / "other.json")
    with pytest.raises(ModelError, match="does not exist"):
        hub.read_config("./nothing")


def test_of_the_hub_only_the_configuration_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.read_config("org/name@v1") == ({"a": 1}, "name")
    assert asked == [("org/name", "v1", ["config.json"])]
