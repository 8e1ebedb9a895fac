"""Plans that tuning measures on a GPU, in which each function is one kernel's one schedule.

A function calls its kernel many times, each time with weights of its own, as a layer's weights come from memory in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from crosscompile.codegen import Signature
from crosscompile.gpu.choose import compile_shaders
from crosscompile.gpu.tunables import Knobs, Step, Tunable
from crosscompile.plan import Function, Kernels, State, Weights, aligned, write_plan
from crosscompile.spirv.container import pack_modules
from crosscompile.target import Target

_CALLS = 256
"""Most calls of a function for one row; of n rows as many less."""


@dataclass(frozen=True)
class Trial:
    """A plan and its modules. Candidate i is the body's function i + 1, which calls the kernel n_calls times."""

    plan: dict[str, Any]
    modules: bytes
    n_calls: int


def build_trial(tunable: Tunable, knobs: Sequence[Knobs], target: Target, copies: int) -> Trial:
    """What measures these schedules, over so many copies of weights at most. Raises CodegenError."""
    n_calls = max(tunable.turns, min(copies, max(4, _CALLS // tunable.n)))
    steps_of, before = [tunable.steps(each) for each in knobs], tunable.before()
    offsets, scratch_bytes = _scratch([*before, *(step for steps in steps_of for step in steps)])
    kernels, weights, states = Kernels(), Weights(), list[State]()
    signatures: dict[str, Signature] = {}
    modules: dict[str, bytes] = {}
    functions = [Function("body", 1, (), 0, 0), Function("head", 1, (), 0, 0)]

    def compiled(named: dict[str, Any], found: dict[str, Knobs]) -> None:
        _, signed, shaders = compile_shaders(named, target, found)
        kernels.functions.update(named)
        signatures.update(signed)
        modules.update({name: shader.code for name, shader in shaders.items()})

    compiled({step.symbol: step.function for step in before}, {})
    first = [(step.symbol, _arguments(step, step.symbol, offsets, weights, states)) for step in before]
    for i, (each, steps) in enumerate(zip(knobs, steps_of, strict=True)):
        named = {f"k{i}_{step.symbol}": step.function for step in steps}
        kernels.inplace.update({name: step.changed for name, step in zip(named, steps, strict=True)})
        compiled(named, {tunable.key: each})
        calls = [
            (name, _arguments(step, f"{step.symbol}.{call // tunable.turns}", offsets, weights, states))
            for call in range(n_calls)
            for name, step in zip(named, tunable.steps(each, call % tunable.turns), strict=True)
        ]
        # functions are told apart by their number of rows, which is at least what inputs must have
        functions.append(Function("body", tunable.n + 1 + i, (*first, *calls), scratch_bytes, 0))
    plan = write_plan(functions, kernels, signatures, weights, states, 4, 4)
    return Trial(plan, pack_modules(modules, target.gpu), n_calls)


def _scratch(steps: Sequence[Step]) -> tuple[dict[str, int], int]:
    """Offsets of scratch memory by name, enough for each of the steps, and its bytes."""
    sizes: dict[str, int] = {}
    for step in steps:
        for (kind, value), buffer in zip(step.bound, step.function.params, strict=True):
            if kind == "x":
                name, first = _place(value)
                size = prod(int(extent) for extent in buffer.ty.shape) * np.dtype(str(buffer.ty.dtype)).itemsize
                sizes[name] = max(sizes.get(name, 0), aligned(first + size))
    ends = list(accumulate(sizes.values(), initial=0))
    return dict(zip(sizes, ends, strict=False)), ends[-1]


def _place(value: str | tuple[str, int]) -> tuple[str, int]:
    """(name of scratch memory, offset in it)."""
    return (value, 0) if isinstance(value, str) else value


def _arguments(
    step: Step, name: str, offsets: Mapping[str, int], weights: Weights, states: list[State]
) -> tuple[tuple[str, Any], ...]:
    """What a call binds, in terms of the plan; its weights and states, of that name, are added."""
    made: list[tuple[str, Any]] = []
    for i, (kind, value) in enumerate(step.bound):
        if kind == "w":
            made.append(("w", weights.index(f"{name}.{i}", value)))
        elif kind == "s":
            state = State(f"{name}.{i}", value)
            states += [] if state in states else [state]
            made.append(("s", states.index(state)))
        elif kind == "x":
            scratch, first = _place(value)
            made.append(("scratch", offsets[scratch] + first))
        else:
            made.append((kind, value))
    return tuple(made)
