"""Read bandwidth of a machine's memory, or of its GPU's, by `edgellm-rt bench --bandwidth`: the fastest way."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscompile.runtime import build_runtime
from crosscompile.target import Target
from edgellm.errors import PeerError
from edgellm.sample import run_once
from edgellm.terminal import one_line


@dataclass(frozen=True)
class Bandwidth:
    """One measurement. gb_s: 10^9 bytes per second of the fastest loop, whose name is `loop`; low, high: its passes."""

    threads: int
    gb_s: float
    low_gb_s: float
    high_gb_s: float
    loop: str


def parse(answer: Any) -> Bandwidth:
    """What edgellm-rt answered with --json. Raises ValueError if it is something else."""
    if not isinstance(answer, dict):
        raise ValueError("no bandwidth")
    gb_s, low, high = (_rate(answer.get(key)) for key in ("gb_s", "low_gb_s", "high_gb_s"))
    threads, loop = answer.get("threads"), answer.get("fastest")
    if not isinstance(threads, int) or not isinstance(loop, str) or threads < 1:
        raise ValueError("no bandwidth")
    return Bandwidth(threads, gb_s, low, high, one_line(loop, 60))


@dataclass(frozen=True)
class GpuBandwidth:
    """One measurement of a GPU's memory, as Bandwidth.

    gpu             the device's name; is_processor: it is a program that imitates one
    one_memory      it is the processor's memory, too
    copy_gb_s       what the device copies from memory that the processor writes: the bound of uploads through stages
    """

    gpu: str
    is_processor: bool
    one_memory: bool
    gb_s: float
    low_gb_s: float
    high_gb_s: float
    loop: str
    copy_gb_s: float


class OlderError(ValueError):
    """A program that knows nothing of GPUs' memory has measured the processor's."""


def parse_gpu(answer: Any) -> GpuBandwidth:
    """What edgellm-rt answered with --json and --device vulkan. Raises OlderError, or ValueError for something else."""
    if not isinstance(answer, dict):
        raise ValueError("no bandwidth")
    if "device" not in answer and "threads" in answer:
        raise OlderError
    gb_s, low, high, copy = (_rate(answer.get(key)) for key in ("gb_s", "low_gb_s", "high_gb_s", "copy_gb_s"))
    texts = gpu, loop, device = [answer.get(key) for key in ("gpu", "fastest", "device")]
    flags = is_processor, one_memory = [answer.get(key) for key in ("is_processor", "one_memory")]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("no bandwidth")
    if device != "vulkan":
        raise ValueError("no bandwidth of a GPU")
    return GpuBandwidth(
        one_line(str(gpu), 100), bool(is_processor), bool(one_memory), gb_s, low, high, one_line(str(loop), 60), copy
    )


def _rate(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError("no bandwidth")
    return float(value)


@dataclass(frozen=True)
class Probe:
    """The program that measures this machine: edgellm-rt."""

    program: Path

    def measure(self, threads: int) -> Bandwidth:
        """Takes about a second. Raises PeerError."""
        sample = run_once([str(self.program), "bench", "--bandwidth", "--threads", str(threads), "--json"])
        try:
            return parse(json.loads(sample.out))
        except ValueError as error:
            raise PeerError(f"edgellm-rt bench --bandwidth gave no bandwidth: {sample.out[:80]!r}") from error


def build_probe(target: Target) -> Probe:
    """The probe for a machine, built if it is not in the cache. Raises CodegenError."""
    return Probe(build_runtime(target))
