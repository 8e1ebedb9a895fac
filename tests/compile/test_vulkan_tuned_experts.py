"""Tuning a mixture's experts on a GPU: what is measured, and what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from crosscompile import checkpoint
from crosscompile.gpu.trials import Trial, build_trial
from crosscompile.gpu.tunables import Knobs, Tunable, TunableExperts, tunables_of
from crosscompile.models.architecture import scheme_for
from crosscompile.program import SHORT_LADDER
from crosscompile.runtime import build_runtime
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import Target, target_of_tier
from tests.compile.test_model import host_tiers
from tests.compile.test_vulkan import modules, modules_of
from tests.compile.test_vulkan_families import TOLERANCE, add_half, deviations, logits, prepare
from tests.compile.test_vulkan_kinds import CLASSES
from tests.emulated.test_bits import make_bundle

MODEL = "olmoe-biases"
"""All of its experts are used, so that none is tied; eight rows are grouped, in tiles of one of two sizes."""


def target_of(gpu: Gpu) -> Target:
    return target_of_tier(host_tiers()[-1]).on_gpu(gpu)


def experts_of(model: Path, target: Target, scheme: str) -> list[TunableExperts]:
    config = checkpoint.load(model).config
    found = tunables_of(config, target, scheme_for(scheme, None, None, None), SHORT_LADDER)
    return [each for each in found if isinstance(each, TunableExperts)]


def another(tunable: Tunable) -> Knobs:
    """The last candidate, of those with other tiles than the default if there are any."""
    default, *others = tunable.candidates
    return ([each for each in others if each["tile"] != default["tile"]] or others)[-1]


@pytest.mark.parametrize(
    ("scheme", "gpu_class"),
    [
        ("w4a8", "desktop"),
        *(
            pytest.param(*each, marks=pytest.mark.oracle)
            for each in (("w8a8", "v3d"), ("f32", "desktop"), ("w4a8", "processor"), ("f16", "processor"))
        ),
    ],
)
def test_what_was_measured_is_compiled_and_answers_stay_within_the_tolerance(
    scheme: str, gpu_class: str, tmp_path: Path
) -> None:
    ids, target, model = prepare(tmp_path, MODEL), target_of(CLASSES[gpu_class]), tmp_path / "model"
    tunables = experts_of(model, target, scheme)
    assert {(each.key.split(".")[0], each.n) for each in tunables} == {("experts", 1), ("grouped", 8)}
    found = {each.key: another(each) for each in tunables}

    def built(each: Tunable, knobs: Knobs) -> set[bytes]:
        """The modules that would be measured, without those that run before them."""
        made = modules_of(build_trial(each, [knobs], target, 1).modules)
        return {code for name, code in made.items() if name.startswith("k0_")}

    measured = [built(each, found[each.key]) for each in tunables]
    default = [built(each, each.candidates[0]) for each in tunables]
    bundle = make_bundle(tmp_path / "bundle", model, host_tiers()[-1], scheme, short=True, stop_id=2)
    add_half(bundle, model, target, scheme, knobs=found)
    compiled = set(modules(bundle).values())
    for chosen, usual in zip(measured, default, strict=True):
        assert chosen <= compiled
        assert not usual & (compiled | chosen)
    program = build_runtime(target)
    on_cpu, on_gpu = (logits(program, bundle, ids, device) for device in ("cpu", "vulkan"))
    assert deviations(on_gpu, on_cpu).max() <= TOLERANCE[scheme]


def bound(trial: Trial, name: str) -> list[list[list[Any]]]:
    """What each call of a kernel in the first candidate's function binds, buffer by buffer."""
    (index,) = (i for i, kernel in enumerate(trial.plan["kernels"]) if re.search(f"^k0_.*{name}", kernel["name"]))
    steps = next(each["steps"] for each in trial.plan["functions"] if each["steps"])
    return [step["args"] for step in steps if step["kernel"] == index]


def test_calls_read_other_experts_each_and_then_other_weights(tmp_path: Path) -> None:
    """Ids are in the third buffer, the weight in the fifth."""
    prepare(tmp_path, "qwen3-moe-plain")
    target = target_of(CLASSES["desktop"])
    tunable = next(each for each in experts_of(tmp_path / "model", target, "w4a8") if each.n == 1)
    total, used = 17, 3
    assert tunable.turns == total // used
    trial = build_trial(tunable, [tunable.candidates[0]], target, 8)
    calls = bound(trial, "experts")
    assert len(calls) == trial.n_calls == 8
    ids, weights = [args[2] for args in calls], [args[4] for args in calls]
    assert [ids.index(each) for each in ids] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert [weights.index(each) for each in weights] == [0] * 5 + [5] * 3
    stored = sum(each["bytes"] for each in trial.plan["weights"]) // 2
    assert tunable.n_bytes == stored * used // total


def test_a_tile_that_only_one_layer_would_have_pays_for_its_sorting(tmp_path: Path) -> None:
    prepare(tmp_path, MODEL)
    target = target_of(CLASSES["desktop"])
    tunable = next(each for each in experts_of(tmp_path / "model", target, "w4a8") if each.n == 8)
    for knobs, n_sorts in ((tunable.candidates[0], 0), (another(tunable), 4)):
        trial = build_trial(tunable, [knobs], target, 4)
        names = [kernel["name"] for kernel in trial.plan["kernels"]]
        assert ("k0_group_rows" in names) == (n_sorts > 0)
        tables = [args[2] for args in bound(trial, "experts")]
        sorted_ = [args[1] for args in bound(trial, "group_rows")] if n_sorts else tables
        assert len(tables) == len(sorted_) == 4
        assert tables == sorted_


def test_candidates_are_kernels_of_their_own(tmp_path: Path) -> None:
    """Of those with the same tiles, too."""
    prepare(tmp_path, MODEL)
    target = target_of(CLASSES["desktop"])
    for tunable in experts_of(tmp_path / "model", target, "w4a8")[::2]:
        some = [each for each in tunable.candidates if each["tile"] == tunable.candidates[0]["tile"]][:3]
        codes = modules_of(build_trial(tunable, some, target, 1).modules)
        assert len({code for name, code in codes.items() if re.match("k[0-9]_", name)}) == len(some) > 1
