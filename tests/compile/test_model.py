"""Whole compiled models give the NumPy reference's bits, in every scheme and for any cut of the prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint, reference
from crosscompile.models.architecture import scheme_for
from crosscompile.target import TIERS
from edgellm.boards import load_board
from edgellm.worker import run_worker
from tests.compile.plan_runner import PlanRunner
from tests.oracle.configurations import CONFIGURATIONS, tokens, write_checkpoint

CASES = [
    ("llama-tied-1009", "f32"),
    ("llama-biases", "f16"),
    ("llama-wide-heads", "w8a8"),
    ("mistral-window", "w4a8"),
]


def host_tiers() -> list[str]:
    """Every tier that this machine can run."""
    local = load_board("local")
    return [t.name for t in TIERS.values() if t.arch == local.arch and set(t.requires) <= set(local.cpu_features)]


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_bits_equal_the_reference(tmp_path: Path, name: str, scheme: str) -> None:
    tiers = host_tiers()
    if not tiers:
        pytest.skip("this machine's CPU has none of the tiers")
    config = CONFIGURATIONS[name]
    directory = write_checkpoint(tmp_path / "model", config)
    ids = tokens(config)
    expected = reference.logits(checkpoint.load(directory), ids, scheme_for(scheme))
    for tier in (tiers[0], tiers[-1]) if scheme == "w4a8" and len(tiers) > 1 else tiers[-1:]:
        output = tmp_path / tier
        output.mkdir()
        request = {"checkpoint": str(directory), "output": str(output), "tier": tier, "os": "linux", "dump": None}
        options = {"scheme": scheme, "embedding": None, "head": None, "kv": None}
        run_worker({**request, **options}, None, lambda stage, done, total: None)
        for step in (1, 64):
            found = PlanRunner(output).logits(ids, config["vocab_size"], step)
            assert np.array_equal(found.view(np.int32), expected.view(np.int32)), f"{tier}, steps of {step}"
