"""What classes of GPUs get their kernels without: unrolled loops and products written out, where registers are few."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from crosscompile.errors import CodegenError
from crosscompile.models.schemes import scheme_for
from crosscompile.program import Ladder, compile_model
from crosscompile.spirv.capabilities import FLOOR, Gpu
from crosscompile.target import Target, gpu_tier
from edgellm import shapes
from edgellm.boards import load_board
from edgellm.gpu_facts import DOT
from tests.campaigns.drivers import configurations, modules_in

LOOP_MERGE, DONT_UNROLL = 246, 2
ROLLED = ("mali", "adreno", "v3d")
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


def test_without_single_bytes_only_caches_of_int8_are_refused() -> None:
    """As with Mesa's driver for Adreno 6xx."""
    board = load_board("orangepi5")
    assert board.vulkan is not None
    target = replace(board, vulkan=replace(board.vulkan, bytes=False)).gpu_target()
    assert compile_model(tiny(), target, scheme_for("w4a8"), ladder=LADDER).kernels
    with pytest.raises(CodegenError, match=r"kernel \w+ needs SPIR-V's StorageBuffer8BitAccess, which the board's GPU"):
        compile_model(tiny(), target, scheme_for("w4a8", kv="i8"), ladder=LADDER)
