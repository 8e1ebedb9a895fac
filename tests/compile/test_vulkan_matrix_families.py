"""Every family of which prompts are read on matrix units gives the processor's logits within the stated tolerance.

With `python -m tests.campaigns.matrices --all`, or `make test-full` where a driver has them. A prompt is computed in
calls of 128 rows, so that layers and attention are multiplied there. Where a logit is off by more, which rounding alone
does to some of 150 tokens (to one of ten in a mixture of experts, whose router decides by what lies within it), it is
compared with what such rounding does on the processor.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from crosscompile.runtime import build_runtime
from crosscompile.target import target_of_tier
from tests.compile.routing import RoundedRunner, deviations
from tests.compile.test_model import host_tiers
from tests.compile.test_vulkan_families import TOLERANCE, add_half, prepare
from tests.compile.test_vulkan_matrix import SIZES, opens
from tests.emulated.test_bits import make_bundle
from tests.oracle.family_configurations import FAMILIES
from tests.shaders import ELSEWHERE, build_runner, elsewhere

pytestmark = pytest.mark.oracle
N_ROWS = 150
"""Two calls, the second with what is left; both take matrices, of layers and of attention."""
N_ROUNDED = 8
"""Texts that are computed with rounding at random, to be compared with."""


@pytest.fixture(scope="module", params=SIZES)
def gpu(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("units")
    if not opens(SIZES[request.param], build_runner(), folder):
        pytest.skip(f"{ELSEWHERE}: no driver here multiplies {request.param} matrices of f16")
    return SIZES[request.param]


def logits(program: Path, bundle: Path, ids: list[int], device: str) -> np.ndarray:
    file = bundle.parent / "logits.f32"
    argv = [str(program), "run", str(bundle), "--tokens", ",".join(map(str, ids)), "--logits", str(file)]
    argv += ["--device", device, "--step", "128"]
    done = subprocess.run([*elsewhere(), *argv], capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return np.fromfile(file, np.float32).reshape(len(ids), -1)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a8 i8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_processors(name, scheme, gpu, tmp_path):
    tier = host_tiers()[-1]
    target = target_of_tier(tier).on_gpu(gpu)
    ids = prepare(tmp_path, name, N_ROWS)
    bundle = make_bundle(tmp_path / "bundle", tmp_path / "model", tier, scheme, short=True, stop_id=2)
    add_half(bundle, tmp_path / "model", target, scheme, (1, 128))
    program = build_runtime(target)
    expected, found = (logits(program, bundle, ids, device) for device in ("cpu", "vulkan"))
    tolerance, off = TOLERANCE[scheme.partition(" ")[0]], deviations(found, expected)
    if off.max() > tolerance:
        check_rounding(off, bundle, ids, expected, tolerance)


def check_rounding(off: np.ndarray, bundle: Path, ids: list[int], expected: np.ndarray, tolerance: float) -> None:
    """As many tokens are off, and as far, as the processor's are with its products rounded as f16 rounds them."""
    runner = RoundedRunner(bundle, expected.shape[1])
    rounded = np.array([deviations(runner.logits_with(ids, seed), expected) for seed in range(N_ROUNDED)])
    for measure in (lambda each: (each > tolerance).sum(), np.max, np.median):
        most = max(measure(each) for each in rounded)
        assert measure(off) <= 1.5 * most, f"{measure(off):.3g}, {most:.3g} by rounding"
