"""Every family of which prompts are read on matrix units gives the processor's logits within the stated tolerance.

With `make test-full`, where EDGELLM_VULKAN_COMMAND (tests/shaders.py) has such a driver. A prompt is computed in calls
of 128 rows, so that layers and attention are multiplied there. A mixture's router decides by what lies within rounding
(one token of ten goes elsewhere in Qwen2-MoE, on the processor too if its products are off by as much): that is what it
is compared with.
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
from tests.compile.test_vulkan_families import MIXTURES, TOLERANCE, add_half, prepare
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
    if name.startswith(MIXTURES) and off.max() > tolerance:
        check_mixture(off, bundle, ids, expected, tolerance)
    else:
        assert off.max() <= tolerance, f"{name} {scheme}: off by {off.max():.2g} of the largest logit"


def check_mixture(off: np.ndarray, bundle: Path, ids: list[int], expected: np.ndarray, tolerance: float) -> None:
    """As many tokens go to other experts, and all others are as far off, as the processor's are by such rounding."""
    runner = RoundedRunner(bundle, expected.shape[1])
    rounded = [deviations(runner.logits_with(ids, seed), expected) for seed in range(N_ROUNDED)]
    most = max(int((each > tolerance).sum()) for each in rounded)
    farthest = max(float(np.median(each)) for each in rounded)
    assert (off > tolerance).sum() <= 1.5 * most, f"{(off > tolerance).sum()} tokens are off, {most} by rounding"
    assert np.median(off) <= 1.5 * farthest, f"half of all tokens are off by {np.median(off):.2g}, {farthest:.2g}"
