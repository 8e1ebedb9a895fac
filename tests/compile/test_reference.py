"""The NumPy reference against transformers, and its arithmetic against exact arithmetic."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint, reference
from crosscompile.models.architecture import scheme_for
from tests.oracle.configurations import CONFIGURATIONS, POSITIONS, tokens, write_checkpoint

EXPECTED = np.load(Path(__file__).parents[1] / "data" / "logits.npz")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_f32_logits_match_transformers(name, tmp_path):
    config = CONFIGURATIONS[name]
    source = checkpoint.load(write_checkpoint(tmp_path / name, config))
    found = reference.logits(source, tokens(config), scheme_for("f32"))[list(POSITIONS)]
    assert np.abs(found - EXPECTED[name]).max() <= 1e-4 * np.abs(EXPECTED[name]).max()


def test_later_tokens_change_no_earlier_logits(tmp_path):
    config = CONFIGURATIONS["llama-llama3"]
    source = checkpoint.load(write_checkpoint(tmp_path / "model", config))
    ids = tokens(config, 80)
    for scheme in ("f32", "w4a8"):
        model = reference.Llama(source, scheme_for(scheme))
        assert model.logits(ids[:50]).tobytes() == model.logits(ids)[:50].tobytes()


def test_fma_rounds_once():
    generator = np.random.Generator(np.random.PCG64(1))
    a, b = (generator.standard_normal(4000).astype(np.float32) for _ in range(2))
    c = (-(a.astype(np.float64) * b) * (1 + generator.standard_normal(4000) * 1e-7)).astype(np.float32)
    # a product that ends exactly halfway below the addend's last place, and a crumb that must tip it
    one, tiny = np.float32(1 + 2**-23), np.float32(2**-24)
    a = np.append(a, [tiny, -tiny, np.float32(2**-24 + 2**-47)])
    b = np.append(b, [np.float32(1 + 2**-23), np.float32(1 + 2**-23), np.float32(1 - 2**-24)])
    c = np.append(c, [one, one, np.float32(1)])
    found = reference.fma(a, b, c)
    for x, y, z, result in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(result)) - exact)
        for neighbour in (np.nextafter(result, np.float32(np.inf)), np.nextafter(result, np.float32(-np.inf))):
            assert error <= abs(Fraction(float(neighbour)) - exact)


def test_polynomials_are_accurate():
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(reference.exp(x) / exact - 1)) < 2.5e-7
    x = np.linspace(-30000, 30000, 200_001, dtype=np.float32)
    sine, cosine = reference.sin_cos(x)
    assert np.max(np.abs(sine - np.sin(x.astype(np.float64)))) < 2e-7
    assert np.max(np.abs(cosine - np.cos(x.astype(np.float64)))) < 2e-7
