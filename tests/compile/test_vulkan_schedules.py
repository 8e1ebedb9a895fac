"""What classes of GPUs get their kernels without: unrolled loops and products written out, where registers are few."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from crosscompile.models.schemes import scheme_for
from crosscompile.program import Ladder, compile_model
from crosscompile.spirv.capabilities import CAPABILITIES, FLOOR, NARROW, Gpu
from crosscompile.target import Target, gpu_tier
from edgellm import shapes
from edgellm.boards import load_board
from edgellm.gpu_facts import DOT
from tests.campaigns.drivers import configurations, modules_in

CAPABILITY, LOOP_MERGE, DONT_UNROLL = 17, 246, 2
ROLLED = ("mali", "adreno", "v3d", "intel")
LADDER = Ladder((1, 32), (1,))


@cache
def tiny() -> dict[str, Any]:
    """A small model's config.json."""
    ((_, config),) = configurations([f"{shapes.PREFIX}tiny"], families=False)
    return config


@cache
def modules(schedule: str) -> dict[str, list[int]]:
    """Words of a small model's modules, by kernel."""
    gpu = Gpu(capabilities=(*FLOOR, *DOT), buffers=16, schedule=schedule)
    target = Target("aarch64", "linux", gpu_tier("aarch64", gpu), None, gpu)
    made = compile_model(tiny(), target, scheme_for("w4a8"), ladder=LADDER)
    return {name: list(memoryview(code).cast("I")) for name, code in modules_in(made.kernels).items()}


def loop_controls(words: list[int]) -> set[int]:
    """Of every loop of a module."""
    found, at = set(), 5
    while at < len(words):
        if words[at] & 0xFFFF == LOOP_MERGE:
            found.add(words[at + 3])
        at += words[at] >> 16
    return found


@pytest.mark.parametrize("schedule", [*ROLLED, "desktop", "processor"])
def test_drivers_that_run_out_of_registers_are_asked_to_keep_loops(schedule: str) -> None:
    found = set().union(*(loop_controls(words) for words in modules(schedule).values()))
    assert found == {DONT_UNROLL if schedule in ROLLED else 0}


def test_products_of_a_tile_are_a_loop_for_v3d_alone() -> None:
    sizes = {schedule: len(modules(schedule)["body32_linear_w4"]) for schedule in ("v3d", "mali", "adreno")}
    assert 3 * sizes["v3d"] < 2 * sizes["mali"] == 2 * sizes["adreno"]


@pytest.mark.parametrize(
    ("can", "expected"),
    [({}, {1, 2}), ({"bytes": False}, {2}), ({"bytes": False, "halves": False}, set())],
)
def test_what_a_gpu_cannot_access_alone_is_asked_of_none(can: dict[str, bool], expected: set[int]) -> None:
    """As with Mesa's drivers for Adreno 6xx and PowerVR."""
    board = load_board("orangepi5")
    assert board.vulkan is not None
    target = replace(board, vulkan=replace(board.vulkan, **can)).gpu_target()  # type: ignore[arg-type]
    made = compile_model(tiny(), target, scheme_for("w4a8", kv="i8"), ladder=LADDER)
    declared = set().union(*(capabilities(code) for code in modules_in(made.kernels).values()))
    assert {size for size, name in NARROW.items() if CAPABILITIES[name] in declared} == expected


def capabilities(module: bytes) -> set[int]:
    """Numbers of those that it declares, which come first."""
    words, found, at = memoryview(module).cast("I"), set(), 5
    while words[at] & 0xFFFF == CAPABILITY:
        found.add(words[at + 1])
        at += 2
    return found
