"""Calibration's parts: rounding with error compensation, its files, the byte budget, and the forward pass under it."""

import itertools
import json

import numpy as np
import pytest

from crosscompile import calibrated, checkpoint
from crosscompile.budget import Choice, solve
from crosscompile.calibrate import calibrate, kinds_of
from crosscompile.errors import CheckpointError, QuantizeError
from crosscompile.forward import Values, logits
from crosscompile.kinds import KINDS
from crosscompile.models import FAMILIES, name_of
from crosscompile.models.schemes import scheme_for
from crosscompile.packing import dequantize, quantize
from crosscompile.rounding import damped, error_of, round_matrix
from edgellm.errors import UsageError
from edgellm.precision import parse_bytes
from tests.oracle.family_checkpoints import LOGITS, WHOLE, sample, text, write_checkpoint

SOME = ("mistral-window", "gemma2-caps", "gpt2-tied", "falcon-new", "phi3-long", "qwen2-moe-shared", "olmo2-biases")
"""Families of every arrangement, norm, activation and position; tests/compile/test_quality.py takes all."""


@pytest.fixture
def layer():
    """Weights (96, 128) and H of inputs that lean on each other, some much larger than others."""
    rng = np.random.default_rng(5)
    mixing = np.eye(128) + 0.2 * rng.standard_normal((128, 128))
    x = (rng.standard_normal((600, 128)) @ mixing * np.exp(rng.standard_normal(128))).astype(np.float32)
    weight = (0.05 * rng.standard_normal((96, 128))).astype(np.float32)
    return weight, damped(x.T @ x)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *(("w4", 0.5), ("w8", 0.6), ("n4", 0.7), ("u4", 0.7), ("w3", 0.7), ("w2", 0.7), ("u8", 0.7), ("w4g64", 0.5)),
        *(("w4g128", 0.5), ("u4g64", 0.6), ("w3g128", 0.6), ("u8g128", 0.7)),
    ],
)
def test_rounding_on_activations_beats_rounding_alone(layer, kind, part):
    weight, hessian = layer
    made = round_matrix(kind, weight, hessian)
    plain = error_of(weight, dequantize(*quantize(kind, weight)), hessian.astype(np.float32))
    assert made.q.dtype == (np.int16 if kind.startswith("u8") else np.int8)
    assert made.scale.shape == (96, 128 // KINDS[kind].group)
    assert made.scale.dtype == np.float16
    assert KINDS[kind].fits(made.q)
    assert made.error < part * plain
    assert made.error == pytest.approx(error_of(weight, dequantize(made.q, made.scale), hessian.astype(np.float32)))


def test_each_round_lowers_the_error(layer):
    errors = [round_matrix("w4", *layer, rounds).error for rounds in (0, 1, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_rounding_refuses(layer):
    with pytest.raises(QuantizeError, match="40 columns cannot be cut"):
        round_matrix("w4", np.ones((2, 40), np.float32), np.eye(40))
    with pytest.raises(QuantizeError, match="too large for a float16 scale"):
        round_matrix("w8", np.full((2, 32), 1e9, np.float32), np.eye(32))
    assert round_matrix("w4", np.zeros((2, 32), np.float32), np.eye(32)).error == 0


def test_a_budget_is_solved_and_never_exceeded():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes, losses = rng.integers(10, 1000, 8).tolist(), rng.random(8).tolist()
        choices = [
            Choice(str(i), {"w4a8": size, "w8a8": 2 * size}, {"w4a8": loss, "w8a8": loss / 100})
            for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))
        ]
        budget = 50 + sum(sizes) + int(rng.integers(0, sum(sizes)))

        def judge(kinds, choices=choices):
            pairs = list(zip(choices, kinds, strict=True))
            return 50 + sum(c.n_bytes[k] for c, k in pairs), sum(c.loss[k] for c, k in pairs)

        found = judge(list(solve(choices, 50, budget).values()))
        every = map(judge, itertools.product(("w4a8", "w8a8"), repeat=8))
        assert found[0] <= budget
        assert found[1] == pytest.approx(min(loss for size, loss in every if size <= budget))
    with pytest.raises(QuantizeError, match=r"smallest scheme the weights take 0\.\d MB; allow that much"):
        solve(choices, 50, 49 + sum(sizes))


def test_sizes_as_people_write_them():
    sizes = {"2.3GB": 2_300_000_000, "900 mb": 900_000_000, "1.5GiB": 1_610_612_736, "4096": 4096, "2k": 2000}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    for wrong in ("", "GB", "-1MB", "1e9", "3 apples"):
        with pytest.raises(UsageError, match="is no size"):
            parse_bytes(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_come_back_from_their_files(tmp_path, layer, kind):
    made = round_matrix(kind, *layer, 0)
    writer = calibrated.CalibrationWriter(tmp_path)
    writer("some.weight", kind, made)
    with pytest.raises(CheckpointError, match="cannot be read"):
        calibrated.read(tmp_path)  # it is not finished
    writer.finish(tokens=7)
    found = calibrated.read(tmp_path)
    assert found.facts == {"tokens": 7}
    matrix = found.matrix("some.weight", kind, (96, 128))
    q, scale = matrix.rows(3, 90)
    assert (q == made.q[3:90]).all()
    assert (scale == made.scale[3:90]).all()
    assert found.matrix("some.weight", "f16", (96, 128)) is None
    with pytest.raises(CheckpointError, match=r"has shape \[96, 128\], the model needs \[64, 128\]"):
        found.matrix("some.weight", kind, (64, 128))


def test_a_damaged_calibration_is_named(tmp_path, layer):
    writer = calibrated.CalibrationWriter(tmp_path)
    writer("some.weight", "w4", round_matrix("w4", *layer, 0))
    writer.finish()
    index, file = tmp_path / calibrated.INDEX, tmp_path / "matrix-000.safetensors"
    whole, data = index.read_text(), file.read_bytes()
    for wrong in (
        "{",
        "[]",
        "{}",
        whole.replace('"w4"', '"w5"'),
        whole.replace("96", "95"),
        whole.replace("kind", "k"),
    ):
        index.write_text(wrong)
        with pytest.raises(CheckpointError, match="calibrate again"):
            calibrated.read(tmp_path)
    index.write_text(whole)
    file.write_bytes(data[:-64])
    with pytest.raises(CheckpointError, match="truncated"):
        calibrated.read(tmp_path)


def opened(folder, name):
    write_checkpoint(folder, name)
    source = checkpoint.load(folder)
    return source, FAMILIES[name_of(source.config)].design(source.config)


@pytest.mark.parametrize("name", SOME)
def test_the_forward_pass_is_transformers(tmp_path, name):
    source, made = opened(tmp_path, name)
    found = logits(Values(source, made), text({"config": source.config}))
    expected = np.load(LOGITS)
    whole = expected[f"{name}.whole"]
    most = 1e-4 * np.abs(whole).max()
    assert np.abs(found[list(WHOLE)] - whole).max() <= most
    assert np.abs(found[:, sample(made.vocab)] - expected[f"{name}.some"]).max() <= most


@pytest.mark.parametrize("name", ["olmo2-biases", "gpt2-tied", "qwen2-moe-shared"])
def test_calibration_rounds_every_matrix(tmp_path, name):
    source, made = opened(tmp_path, name)
    values, kinds = Values(source, made), kinds_of(made, scheme_for("w4a8", "w4a8", "w4a8"))
    texts = np.random.default_rng(2).integers(0, made.vocab, (4, 80)).tolist()
    rounded = {}
    errors = calibrate(source, made, kinds, texts, lambda matrix, kind, found: rounded.update({matrix: found}))
    assert set(rounded) == set(kinds) == set(errors)
    for matrix, found in rounded.items():
        weight = values.read(matrix)
        assert found.q.shape == weight.shape
        assert np.abs(found.values - weight).mean() < 0.3 * np.abs(weight).mean(), matrix
    assert json.loads(json.dumps(errors)) == errors
