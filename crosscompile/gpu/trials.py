"""What tuning measures on a GPU: a model's kernels, and plans in which each function is one kernel's one schedule.

A function calls its kernel many times, each time with weights of its own, as a layer's weights come from memory in use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from crosscompile.codegen import Signature
from crosscompile.gpu import attention
from crosscompile.gpu.attention_whole import attention_row, clear_turns
from crosscompile.gpu.choose import compile_shaders, linear_work
from crosscompile.gpu.fused_knobs import Fused, fused_candidates
from crosscompile.gpu.knobs import attention_key, candidates, key_of, splits_of
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.gpu.split import split_large
from crosscompile.kernels.build import Origin, origin_of
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads, state_bytes
from crosscompile.kernels.rows import Form
from crosscompile.lower import lower
from crosscompile.models import architecture_for
from crosscompile.models.architecture import Scheme
from crosscompile.passes.lower_operators import Stored
from crosscompile.plan import Function, Kernels, State, Weights, aligned, read_function, write_plan
from crosscompile.program import Ladder, place_parameter, trace
from crosscompile.spirv.container import pack_modules
from crosscompile.target import Target

Knobs = dict[str, int]

POSITION = 1024
"""Where in its context a row of attention stands that is measured, if the model has as many positions."""
_CALLS = 256
"""Most calls of a function for one row; of n rows as many less."""


@dataclass(frozen=True)
class Step:
    """A call in a trial: a kernel, by its symbol in the program, and what it binds.

    bound: ("w", bytes of a weight), ("s", bytes of a state's block), ("i", input) or ("x", name of scratch memory).
    changed: which of these the kernel reads and writes.
    """

    symbol: str
    function: Any
    bound: tuple[tuple[str, Any], ...]
    changed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tunable(ABC):
    """A kernel, or a few that belong together, that tuning can look for a better schedule of.

    calls       how often the network calls it for one pass over n rows
    n_bytes     that one call reads of what is not shared with the next: weights, or the cache at `position`
    candidates  knobs, the default first
    """

    key: str
    n: int
    calls: int
    n_bytes: int
    candidates: tuple[Knobs, ...]
    position: int

    @abstractmethod
    def steps(self, knobs: Knobs) -> tuple[Step, ...]:
        """The calls that are measured."""

    def before(self) -> tuple[Step, ...]:
        """Calls that are made once, before all of these."""
        return ()


@dataclass(frozen=True)
class TunableLinear(Tunable):
    """A linear layer with what is added to it, or with more around it (fused.py). step: as in the program."""

    step: Step

    def steps(self, knobs: Knobs) -> tuple[Step, ...]:
        return (self.step,)


@dataclass(frozen=True)
class TunableAttention(Tunable):
    """Attention: its parts and what merges them, or both in one. form: of the result, None for floats."""

    heads: Heads
    form: Form | None
    in_one: bool

    def before(self) -> tuple[Step, ...]:
        return (Step("clear_turns", clear_turns(self.heads), (("x", "turns"),)),) if self.in_one else ()

    def steps(self, knobs: Knobs) -> tuple[Step, ...]:
        if self.in_one:
            return (self._row(knobs["splits"]),)
        parts = attention.attention_parts(self.n, self.heads, knobs["splits"])
        merge = attention.attention_merge(self.n, self.heads, knobs["splits"], self.form)
        inputs = [("i", name) for name in ("positions", "slots", "block_table")]
        states = [("s", state_bytes(self.heads))] * 2
        outputs = [("x", f"out{i}") for i in range(len(merge.params) - 2)]
        return (
            Step("attention_parts", parts, (("x", "q"), *inputs, *states, ("x", "parts"))),
            Step("attention_merge", merge, (("x", "parts"), ("i", "positions"), *outputs)),
        )

    def _row(self, splits: int) -> Step:
        function = attention_row(self.heads, splits, self.form)
        inputs = [("i", name) for name in ("positions", "slots", "block_table")]
        states = [("s", state_bytes(self.heads))] * 2
        left = [("x", buffer.name) for buffer in function.params[6:]]
        return Step("attention_row", function, (("x", "query"), *inputs, *states, *left))


def tunables_of(config: Mapping[str, Any], target: Target, scheme: Scheme, ladder: Ladder) -> tuple[Tunable, ...]:
    """The kernels of a model that have several schedules, for every row count of the ladder. Raises ConfigError."""
    gpu = target.gpu
    assert gpu is not None
    network = architecture_for(config)[1].build(config, scheme.kv)
    stored: dict[str, Stored] = {}
    functions, kernels, weights = [], Kernels(), Weights()
    for role, counts in (("body", ladder.body), ("head", ladder.head)):
        for n in counts:
            traced, parameters = trace(network, role, n, max(ladder.body))
            for name, tensor in parameters:
                shape = tuple(int(extent) for extent in tensor.shape)
                stored[name] = place_parameter(name, shape, network, scheme, target)
            lowered = lower(traced, [name for name, _ in parameters], stored, target.tier, schedule=False)
            functions.append(read_function(role, n, lowered, kernels.add(role, n, lowered), weights))
    functions, weights = split_large(functions, kernels, weights, stored, target)
    sizes = list(weights.bytes_of.values())
    position = min(POSITION, network.context_length - max(ladder.body))
    found: dict[str, Tunable] = {}
    for function in functions:
        for i, (symbol, args) in enumerate(function.steps):
            made = _tunable(function, i, symbol, args, kernels, sizes, target, position)
            if made is not None and len(made.candidates) > 1:
                calls = found[made.key].calls if made.key in found else 0
                found[made.key] = replace(made, calls=calls + 1)
    return tuple(found.values())


def _tunable(
    function: Function,
    at: int,
    symbol: str,
    args: tuple[tuple[str, Any], ...],
    kernels: Kernels,
    sizes: Sequence[int],
    target: Target,
    position: int,
) -> Tunable | None:
    """What tuning may do with one step of a function."""
    gpu, kernel = target.gpu, kernels.functions[symbol]
    assert gpu is not None
    origin = origin_of(kernel)
    if origin is not None and origin.name in ("attention_parts", "attention_row"):
        in_one, heads = origin.name == "attention_row", origin.arguments["heads"]
        n = 1 if in_one else origin.arguments["n"]
        merge = origin if in_one else origin_of(kernels.functions[function.steps[at + 1][0]])
        if merge is None or merge.name not in ("attention_merge", "attention_row"):
            return None
        options = tuple({"splits": splits} for splits in splits_of(n, heads, SCHEDULES[gpu.schedule]))
        n_bytes = 2 * state_bytes(heads) * -(-max(position, 1) // KV_BLOCK)
        key, form = attention_key(n, heads), merge.arguments["form"]
        return TunableAttention(key, n, 0, n_bytes, options, max(position, 0), heads, form, in_one)
    fused, work = Fused.of(origin), linear_work(symbol, kernel, target)
    knobs: Sequence[Any]
    if fused is not None:
        key, n, knobs = fused.key, 1, fused_candidates(fused, gpu)
    elif work is not None:
        key, n, knobs = key_of(work), work.n, candidates(work, gpu)
    else:
        return None
    bound = tuple(
        _of_trial(kind, value, buffer.name, sizes, origin)
        for (kind, value), buffer in zip(args, kernel.params, strict=True)
    )
    n_bytes = sum(value for kind, value in bound if kind == "w")
    step = Step(symbol, kernel, bound, kernels.inplace.get(symbol, ()))
    return TunableLinear(key, n, 0, n_bytes, tuple(map(asdict, knobs)), 0, step)


def _of_trial(kind: str, value: Any, name: str, sizes: Sequence[int], origin: Origin | None) -> tuple[str, Any]:
    """What a trial binds for an argument of a program; sizes: of its weights, in bytes."""
    if kind == "w":
        return kind, sizes[value]
    if kind == "s":
        assert origin is not None
        return kind, state_bytes(origin.arguments["heads"])
    return (kind, value) if kind == "i" else ("x", name)


@dataclass(frozen=True)
class Trial:
    """A plan and its modules. Candidate i is the body's function i + 1, which calls the kernel n_calls times."""

    plan: dict[str, Any]
    modules: bytes
    n_calls: int


def build_trial(tunable: Tunable, knobs: Sequence[Knobs], target: Target, copies: int) -> Trial:
    """What measures these schedules, over so many copies of weights at most. Raises CodegenError."""
    n_calls = max(1, min(copies, max(4, _CALLS // tunable.n)))
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
            (name, _arguments(step, f"{step.symbol}.{copy}", offsets, weights, states))
            for copy in range(n_calls)
            for name, step in zip(named, steps, strict=True)
        ]
        # functions are told apart by their number of rows, which is at least what inputs must have
        functions.append(Function("body", tunable.n + 1 + i, (*first, *calls), scratch_bytes, 0))
    plan = write_plan(functions, kernels, signatures, weights, states, 4, 4)
    return Trial(plan, pack_modules(modules, target.gpu), n_calls)


def _scratch(steps: Sequence[Step]) -> tuple[dict[str, int], int]:
    """Offsets of scratch memory by name, enough for each of the steps, and its bytes."""
    sizes: dict[str, int] = {}
    for step in steps:
        for (kind, name), buffer in zip(step.bound, step.function.params, strict=True):
            if kind == "x":
                size = prod(int(extent) for extent in buffer.ty.shape) * np.dtype(str(buffer.ty.dtype)).itemsize
                sizes[name] = max(sizes.get(name, 0), aligned(size))
    ends = list(accumulate(sizes.values(), initial=0))
    return dict(zip(sizes, ends, strict=False)), ends[-1]


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
        else:
            made.append(("scratch", offsets[value]) if kind == "x" else (kind, value))
    return tuple(made)
