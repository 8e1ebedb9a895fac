"""What is said of a device's logits of a mixture (routing.py): ties of experts are seen through, wrong experts not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compile.routing import RoutedRunner, deviations, turn_ties
from tests.compile.test_model import host_tiers
from tests.compiling import compile_forked
from tests.oracle.family_checkpoints import text, write_checkpoint

TOLERANCE = 0.05


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> RoutedRunner:
    """Of 17 experts each token goes to three; activations are int8."""
    folder = tmp_path_factory.mktemp("routing")
    write_checkpoint(folder / "model", "qwen3-moe-normalized")
    (folder / "compiled").mkdir()
    request = {"checkpoint": str(folder / "model"), "output": str(folder / "compiled"), "tier": host_tiers()[-1]}
    options = {"scheme": "w4a8", "embedding": None, "head": None, "kv": None, "short": True}
    compile_forked({**request, "os": "linux", "dump": None, **options})
    return RoutedRunner(folder / "compiled", folder / "model")


@pytest.fixture(scope="module")
def ids(runner: RoutedRunner) -> list[int]:
    return text({"config": {"vocab_size": runner.vocab}}, 75)


def test_a_token_that_goes_to_the_other_of_two_tied_experts_is_found(runner: RoutedRunner, ids: list[int]) -> None:
    """The two that lavapipe sends elsewhere: of their router logits, 0.008 and 0.002 decide."""
    turned = {(62, 2), (69, 1)}
    found = runner.logits_with(ids, turned)
    assert deviations(found, runner.logits_with(ids, set())).max() > 4 * TOLERANCE
    assert np.array_equal(turn_ties(runner, ids, found, TOLERANCE), found)
    assert runner.turned == turned


def test_a_decision_that_was_clear_is_no_tie(runner: RoutedRunner, ids: list[int]) -> None:
    runner.logits_with(ids, set())
    clear = max(runner.margins, key=lambda place: runner.margins[place])
    found = runner.logits_with(ids, {clear})
    assert deviations(found, turn_ties(runner, ids, found, TOLERANCE)).max() > TOLERANCE


@pytest.mark.parametrize("matrix", ["gate_up_proj", "down_proj"])
def test_an_expert_with_the_weights_of_another_is_no_tie(matrix: str, runner: RoutedRunner, ids: list[int]) -> None:
    names = [entry["tensor"] for entry in runner.plan["weights"]]
    experts = runner.weights[names.index(f"model.layers.1.mlp.experts.{matrix}.weight")].reshape(runner.total, -1)
    own = experts[4].copy()
    experts[4] = experts[3]
    found = runner.logits_with(ids, set())
    experts[4] = own
    assert deviations(found, turn_ties(runner, ids, found, TOLERANCE)).max() > TOLERANCE
