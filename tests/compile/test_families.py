"""Every family, compiled: scheme f32 gives transformers' logits, over a prompt and 64 tokens after it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint
from crosscompile.models.architecture import scheme_for
from crosscompile.program import Ladder, compile_model
from crosscompile.quantize import check_sources, write_weights
from crosscompile.target import target_of_tier
from tests.compile.plan_runner import PlanRunner
from tests.compile.test_model import host_tiers
from tests.oracle.family_checkpoints import LOGITS, WHOLE, sample, text, write_checkpoint
from tests.oracle.family_configurations import FAMILIES, N_PROMPT

LADDER = Ladder((1, 8), (1,))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(LOGITS))


def compiled(folder: Path, model: Path, scheme: str) -> Path:
    """Kernels, plan and weights for this machine's best tier, in this process: f32 has no intrinsic to die of."""
    source = checkpoint.load(model)
    made = compile_model(source.config, target_of_tier(host_tiers()[-1]), scheme_for(scheme), ladder=LADDER)
    check_sources(source, made.parameters)
    (folder / "weights").mkdir(parents=True)
    write_weights(source, made.parameters, folder / "weights")
    (folder / "kernels.so").write_bytes(made.kernels)
    (folder / "plan.json").write_text(json.dumps(made.plan))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_f32_logits_equal_transformers(name: str, tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    made = write_checkpoint(tmp_path / "model", name)
    ids, vocab = text(made), made["config"]["vocab_size"]
    runner = PlanRunner(compiled(tmp_path / "compiled", tmp_path / "model", "f32"), len(ids))
    prompt = runner.logits(ids[:N_PROMPT], vocab, 8)
    steps = runner.logits(ids[N_PROMPT:], vocab, 1, N_PROMPT)
    found = np.concatenate((prompt, steps))
    some, whole = expected[f"{name}.some"], expected[f"{name}.whole"]
    most = 1e-4 * np.abs(whole).max()
    assert np.abs(found[list(WHOLE)] - whole).max() <= most
    assert np.abs(found[:, sample(vocab)] - some).max() <= most
