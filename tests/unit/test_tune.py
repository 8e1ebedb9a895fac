"""Parts of tuning that need no board: trust in a measurement, copies to rotate over, the test, the journal."""

import numpy as np
import pytest

from edgellm import cli
from edgellm.errors import RemoteError
from edgellm.trial import Measurement, copies, p_value, taint
from edgellm.tune import Journal, Outcome
from edgellm.tune_builder import Layer
from edgellm.tune_layer import Gpu

CALM = {
    "governors": ["performance"],
    "khz": [2400000],
    "most_khz": [2400000],
    "temperature_mc": [55000, 61000],
    "throttled": 0,
    "throttle_count": 0,
    "wall_ns": 0,
    "own_ns": 0,
    "idle_ns": 0,
}
LATER = {**CALM, "wall_ns": 100_000_000, "own_ns": 390_000_000, "idle_ns": 10_000_000}
LAYER = Layer(
    "linear.w4:n1:8x32",
    1,
    2,
    1000,
    ({"tokens": 1, "groups": 1, "ahead": 0, "block": 1}, {"tokens": 1, "groups": 2, "ahead": 0, "block": 1}),
)


def test_an_undisturbed_measurement_is_believed():
    assert taint(CALM, LATER, 4, 80) is None
    assert taint({**CALM, "idle_ns": -1}, {**LATER, "own_ns": 0, "idle_ns": -1}, 4, 80) is None  # nobody knows
    assert taint({**CALM, "throttled": 0x50000}, {**LATER, "throttled": 0x50000}, 4, 80) is None  # long ago


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"throttled": 0x5}, "throttles"),
        ({"throttled": 0x10000}, "throttles"),
        ({"throttle_count": 1}, "throttled"),
        ({"temperature_mc": [81000]}, "81 °C"),
        ({"khz": [1500000]}, "1500 of 2400 MHz"),
        ({"own_ns": 200_000_000}, "other programs took 1.9 cores"),
    ],
)
def test_a_disturbed_measurement_says_why(change, says):
    assert says in (taint(CALM, {**LATER, **change}, 4, 80) or "")


def test_copies_are_more_than_the_cache_and_no_more_than_the_model():
    mb = 1 << 20
    assert copies(1 * mb, 1000 * mb, 32 * mb, 16384 * mb) == 65
    assert copies(1 * mb, 20 * mb, 32 * mb, 16384 * mb) == 20  # the model is in the cache when it runs, too
    assert copies(100 * mb, 4000 * mb, 2 * mb, 512 * mb) == 1
    assert copies(1 * mb, 1000 * mb, 0, 16384 * mb) == 17


def test_the_permutation_test_is_exact():
    assert p_value(np.ones(10)) == 2 / 1024
    assert p_value(np.array([1.0, -1.0])) == 1
    assert p_value(np.zeros(4)) == 1
    rng = np.random.default_rng(0)
    assert np.mean([p_value(rng.normal(size=8)) < 0.05 for _ in range(400)]) < 0.09


def test_the_journal_survives_what_was_cut_short(tmp_path):
    path = tmp_path / "state" / "board.jsonl"
    journal = Journal(path)
    one, two = LAYER.candidates
    journal.add(LAYER, one, Measurement(1e-5, None))
    journal.add(LAYER, one, Measurement(2e-5, "hot"))
    journal.add(LAYER, two, Measurement(float("inf"), "it crashes"))
    journal.conclude(Outcome(LAYER, two, 10.0, 8.0, 0.002, 3))
    with path.open("a") as file:
        file.write('{"layer": "linear.w4:n1:8x32", "knobs": {"tok')
    again = Journal(path)
    assert again.times(LAYER, one) == [1e-5, 2e-5]
    assert again.times(LAYER, two) == [float("inf")]
    assert again.outcome(LAYER) == Outcome(LAYER, two, 10.0, 8.0, 0.002, 0)
    path.write_text('{"layer": "linear.w4:n1:8x32", "outcome": {"knobs": {"tokens": 99}}}\n[1]\nnull\n')
    assert Journal(path).outcome(LAYER) is None
    again.forget()
    assert not path.exists()


def test_what_the_agent_says_of_a_gpu_is_checked():
    assert Gpu.of({"name": "Mali\n\x1b[31m", "is_processor": False}).name.isprintable()
    for answer in ({}, {"name": 1, "is_processor": False}, {"name": "Mali", "is_processor": "no"}):
        with pytest.raises(RemoteError, match="which GPU"):
            Gpu.of(answer)


@pytest.mark.parametrize(
    ("board", "arguments", "says"),
    [
        ("orangepi5", ["--device", "vulkan", "--rows", "256"], "row counts are of 1, 8, 32, 128\n"),
        ("rpi2", ["--rows", "128"], "row counts are of 1, 2, 4, 8, 32, 64"),
        ("rpi2", ["--device", "vulkan", "--threads", "2"], "--threads is for the processor"),
        ("rpi2", ["--device", "vulkan"], "rpi2 has no GPU that is known"),
        ("android-arm64", ["--device", "vulkan"], "no agent that could measure"),
    ],
)
def test_what_cannot_be_tuned_is_said_at_once(capsys, board, arguments, says):
    assert cli.main(["tune", "--board", board, "random:tiny", *arguments]) == 1
    assert says in capsys.readouterr().err
