"""Which tensors get 8 bits and which 4, so that a model takes at most so many bytes and the least is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscompile.errors import QuantizeError

STEPS = 1 << 13
"""Into how many parts the bytes that can be spent are cut; a tensor's are rounded up."""


@dataclass(frozen=True)
class Choice:
    """One tensor. n_bytes and loss by scheme: loss is what it adds to the model's error, in any unit that adds up."""

    name: str
    n_bytes: Mapping[str, int]
    loss: Mapping[str, float]


def solve(choices: Sequence[Choice], fixed_bytes: int, budget_bytes: int) -> dict[str, str]:
    """The scheme of each tensor: the least loss in all that `budget_bytes` hold, fixed_bytes being spent already.

    A knapsack, solved by dynamic programming over STEPS parts of what is left once every tensor has its smallest
    scheme. Raises QuantizeError where those do not fit, with what they take.
    """
    least = {choice.name: min(choice.n_bytes, key=lambda kind: choice.n_bytes[kind]) for choice in choices}
    smallest = fixed_bytes + sum(choice.n_bytes[least[choice.name]] for choice in choices)
    left = budget_bytes - smallest
    if left < 0:
        raise QuantizeError(
            f"a budget of {budget_bytes / 1e6:,.1f} MB is too small: with every tensor in its smallest scheme the "
            f"weights take {smallest / 1e6:,.1f} MB; allow that much, or take a smaller model"
        )
    unit = max(left / STEPS, 1.0)
    n = int(left / unit)
    gained = np.zeros(n + 1)
    taken: list[np.ndarray] = []
    kinds: list[tuple[str, ...]] = []
    for choice in choices:
        base = least[choice.name]
        own = tuple(choice.n_bytes)
        best, which = np.full(n + 1, -np.inf), np.zeros(n + 1, np.int16)
        for index, kind in enumerate(own):
            cost = int(np.ceil((choice.n_bytes[kind] - choice.n_bytes[base]) / unit))
            if cost > n:
                continue
            value = np.full(n + 1, -np.inf)
            value[cost:] = gained[: n + 1 - cost] + (choice.loss[base] - choice.loss[kind])
            better = value > best
            best[better], which[better] = value[better], index
        gained = best
        taken.append(which)
        kinds.append(own)
    found: dict[str, str] = {}
    at = int(np.argmax(gained))
    for choice, which, own in zip(reversed(choices), reversed(taken), reversed(kinds), strict=True):
        kind = own[int(which[at])]
        found[choice.name] = kind
        at -= int(np.ceil((choice.n_bytes[kind] - choice.n_bytes[least[choice.name]]) / unit))
    return {choice.name: found[choice.name] for choice in choices}
