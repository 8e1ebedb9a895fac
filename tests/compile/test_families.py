"""Every family, compiled: scheme f32 gives transformers' logits over a prompt and 64 tokens more, and embeddings."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.compile.plan_runner import PlanRunner
from tests.compile.test_model import host_tiers
from tests.oracle.family_checkpoints import EMBEDDINGS, LOGITS, WHOLE, sample, text, write_checkpoint
from tests.oracle.family_configurations import FAMILIES, N_PROMPT


def compiled(folder: Path, model: Path, tier: str) -> Path:
    """Kernels, plan and weights of scheme f32, with functions for one row and for eight."""
    from crosscompile import checkpoint
    from crosscompile.models.architecture import scheme_for
    from crosscompile.program import Ladder, compile_model
    from crosscompile.quantize import check_sources, write_weights
    from crosscompile.target import target_of_tier

    source = checkpoint.load(model)
    made = compile_model(source.config, target_of_tier(tier), scheme_for("f32"), ladder=Ladder((1, 8), (1,)))
    check_sources(source, made.parameters)
    (folder / "weights").mkdir(parents=True)
    write_weights(source, made.parameters, folder / "weights")
    (folder / "kernels.so").write_bytes(made.kernels)
    (folder / "plan.json").write_text(json.dumps(made.plan))
    return folder


@pytest.fixture(scope="module")
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """What is compiled for each chosen test, two at a time: fresh processes, because TVM does not survive a fork."""
    tiers, root = host_tiers(), tmp_path_factory.mktemp("families")
    if not tiers:
        pytest.skip("this machine's CPU has none of the tiers")
    names = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        jobs = {}
        for name in names:
            write_checkpoint(root / name / "model", name)
            jobs[name] = pool.submit(compiled, root / name / "compiled", root / name / "model", tiers[-1])
        yield jobs
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(LOGITS))


@pytest.fixture(scope="module")
def embeddings() -> dict[str, np.ndarray]:
    return dict(np.load(EMBEDDINGS))


@pytest.mark.parametrize("name", FAMILIES)
def test_f32_equals_transformers(
    name: str, work: dict[str, Future[Path]], expected: dict[str, np.ndarray], embeddings: dict[str, np.ndarray]
) -> None:
    folder = work[name].result()
    config = json.loads((folder.parent / "model" / "config.json").read_text())
    ids, vocab = text({"config": config}), config["vocab_size"]
    runner = PlanRunner(folder, len(ids))
    prompt = runner.logits(ids[:N_PROMPT], vocab, 8)
    steps = runner.logits(ids[N_PROMPT:], vocab, 1, N_PROMPT)
    found = np.concatenate((prompt, steps))
    some, whole = expected[f"{name}.some"], expected[f"{name}.whole"]
    most = 1e-4 * np.abs(whole).max()
    assert np.abs(found[list(WHOLE)] - whole).max() <= most
    assert np.abs(found[:, sample(vocab)] - some).max() <= most
    states = np.stack(runner.hidden)
    pooled = np.stack((states.mean(axis=0, dtype=np.float64), states[-1]))
    assert states.shape == (len(ids), config["hidden_size"] if "hidden_size" in config else config["n_embd"])
    # some families' final norms carry what logits are scaled by; embeddings have length 1, so it does not matter
    of_length_1, wanted = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (pooled, embeddings[name]))
    np.testing.assert_allclose(of_length_1, wanted, atol=1e-4 * np.abs(wanted).max())
