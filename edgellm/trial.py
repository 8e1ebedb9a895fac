"""One measurement of one kernel on a board: over what it rotates, whether it can be believed, whether it is another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.errors import RemoteError

UNKNOWN_CACHE_BYTES = 8 << 20
"""Taken for the last cache where a board does not say how large it is."""

FOREIGN_LOAD = 0.3
"""Share of one core that other programs may take; /proc/stat counts in ticks of 10 ms, which is coarse for a trial."""

SLOWEST_CLOCK = 0.9
"""Of the highest that the governor may choose, right after a trial."""

_NOW, _SINCE = 0xF, 0xF0000  # get_throttled's bits of the moment, and of all time since the board started


def copies(layer_bytes: int, model_bytes: int, cache_bytes: int, memory_bytes: int) -> int:
    """Copies of a layer's weights to rotate over: more than twice the last cache, but no more than the whole model.

    A model that fits the cache is read from there in use as well. At most a quarter of the board's memory.
    """
    wanted = min(2 * (cache_bytes or UNKNOWN_CACHE_BYTES) + layer_bytes, max(model_bytes, 2 * layer_bytes))
    return max(1, min(-(-wanted // layer_bytes), memory_bytes // 4 // layer_bytes))


def taint(before: Mapping[str, Any], after: Mapping[str, Any], n_cores: int, throttle_c: int | None) -> str | None:
    """Why a measurement between two states of the board (runtime_c/rpc/board.h) cannot be believed; None if it can."""
    throttled = after.get("throttled")
    if isinstance(throttled, int):
        fresh = throttled & ~int(before.get("throttled") or 0) & _SINCE
        if throttled & _NOW or fresh:
            return f"the firmware throttles, or the supply is weak (get_throttled {throttled:#x})"
    if after.get("throttle_count", 0) > before.get("throttle_count", 0):
        return "the processor throttled"
    hottest = max(after.get("temperature_mc") or [0]) / 1000
    if throttle_c is not None and hottest >= throttle_c:
        return f"{hottest:.0f} °C, it slows down at {throttle_c} °C"
    for now, most in zip(after.get("khz") or [], after.get("most_khz") or [], strict=False):
        if most and now < SLOWEST_CLOCK * most:
            return f"the clock was at {now / 1000:.0f} of {most / 1000:.0f} MHz"
    wall = after["wall_ns"] - before["wall_ns"]
    idle = after["idle_ns"] - before["idle_ns"]
    if after["idle_ns"] >= 0 and wall > 0:
        foreign = n_cores - (idle + after["own_ns"] - before["own_ns"]) / wall
        if foreign > FOREIGN_LOAD:
            return f"other programs took {foreign:.1f} cores"
    return None


@dataclass(frozen=True)
class Measurement:
    """seconds: per call, the median of several runs; tainted: why it cannot be believed."""

    seconds: float
    tainted: str | None

    @classmethod
    def of(cls, answer: Mapping[str, Any], n_cores: int, throttle_c: int | None) -> Measurement:
        """What edgellm.rpc_client measured. Raises RemoteError if the board's answer makes no sense."""
        try:
            seconds = [float(each) for each in answer["seconds"]]
            tainted = taint(answer["before"], answer["after"], n_cores, throttle_c)
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteError(f"the agent's answer is no measurement: {error!r}") from error
        if not seconds or not all(0 < each < math.inf for each in seconds):
            raise RemoteError(f"the agent's times make no sense: {seconds}")
        return cls(float(np.median(seconds)), tainted)


def p_value(differences: np.ndarray) -> float:
    """Two-sided exact sign-flip permutation test that paired differences, at most 16, have mean 0."""
    n = len(differences)
    signs = 1 - 2 * (np.arange(1 << n)[:, None] >> np.arange(n) & 1)
    means = np.abs((signs * differences).mean(axis=1))
    return float(np.mean(means >= abs(differences.mean()) - 1e-15))
