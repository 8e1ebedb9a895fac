"""How many of a model's layers a GPU should have, by how fast the board's GPU and its processor were measured to be.

A token passes the devices one after the other, so that of an answer's time each layer takes what it takes on its
device; of a prompt they compute different rows at the same time, and the slower share counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgellm.errors import CommandError
from edgellm.runtime_program import InstalledModel, run_json

PROMPT, ANSWER = 256, 64
"""Tokens of the request whose time is to be short."""
_BENCH = ("--prompt", "128", "--generate", "16", "--repeat", "3", "--json")


@dataclass(frozen=True)
class Speed:
    """Of a whole model on one device, in tokens per second."""

    prefill: float
    decode: float

    def __str__(self) -> str:
        return f"{self.prefill:.4g} and {self.decode:.4g} tokens/s"


def measure(model: InstalledModel, device: str) -> Speed:
    """On the board, with a bundle for both. Raises CommandError for an answer that is none, RuntimeFailedError."""
    argv = model.argv("bench", "--device", device, *_BENCH)
    answer = run_json(model.remote, argv, f"measuring {device}")
    return Speed(*(_rate(answer, f"{name}_tok_s", model.remote.name) for name in ("prefill", "decode")))


def _rate(answer: dict[str, Any], key: str, where: str) -> float:
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise CommandError(f"{where}: edgellm-rt bench gave {key} {value!r}; update the board's program (deploy again)")
    return float(value)


def request_s(gpu_layers: int, n_layers: int, cpu: Speed, gpu: Speed) -> float:
    """Seconds of a prompt and its answer with so many layers on the GPU, from speeds of whole models."""
    share = gpu_layers / n_layers
    rest = 1.0 - share
    prompt = PROMPT * max(share / gpu.prefill, rest / cpu.prefill)
    return prompt + ANSWER * (share / gpu.decode + rest / cpu.decode)


def best(n_layers: int, cpu: Speed, gpu: Speed) -> int:
    """How many layers the GPU should have: 0 and n_layers are one device alone."""
    return min(range(n_layers + 1), key=lambda k: request_s(k, n_layers, cpu, gpu))


def choose(model: InstalledModel, n_layers: int, tell: Callable[[str], None]) -> int | None:
    """Measures a bundle for both and says what was found; None where one device alone is the fastest."""
    cpu, gpu = measure(model, "cpu"), measure(model, "vulkan")
    tell(f"of a prompt and its answer, the processor computes {cpu}, the GPU {gpu}")
    found = best(n_layers, cpu, gpu)
    seconds = [request_s(k, n_layers, cpu, gpu) for k in (0, n_layers, found)]
    alone = f"{PROMPT} tokens and {ANSWER} more take the processor {seconds[0]:.3g} s, the GPU {seconds[1]:.3g} s"
    if found in (0, n_layers):
        tell(f"{alone}; no split is faster")
        return None
    tell(f"{alone}; with {found} of {n_layers} layers on the GPU {seconds[2]:.3g} s")
    return found
