"""What tuning may look for better schedules of on a GPU: a model's kernels, and how each is called to be measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from crosscompile.gpu import attention
from crosscompile.gpu.attention_whole import attention_row, clear_turns
from crosscompile.gpu.choose import linear_work
from crosscompile.gpu.experts_knobs import ExpertWork, expert_candidates, expert_key, expert_work, in_tiles
from crosscompile.gpu.fused_knobs import Fused, fused_candidates
from crosscompile.gpu.grouped import Grouped, Groups, group_rows, grouped_linear
from crosscompile.gpu.knobs import attention_key, candidates, key_of, splits_of
from crosscompile.gpu.picks import Picks, pick_experts
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.gpu.split import split_large
from crosscompile.kernels.build import Origin, origin_of
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads, state_bytes
from crosscompile.kernels.rows import Form
from crosscompile.lower import lower
from crosscompile.models import architecture_for
from crosscompile.models.architecture import Scheme
from crosscompile.passes.lower_operators import Stored
from crosscompile.plan import Function, Kernels, Weights, aligned, read_function
from crosscompile.program import Ladder, place_parameter, trace
from crosscompile.target import Target

Knobs = dict[str, int]

POSITION = 1024
"""Where in its context a row of attention stands that is measured, if the model has as many positions."""


@dataclass(frozen=True)
class Step:
    """A call in a trial: a kernel, by its symbol in the program, and what it binds.

    bound: ("w", bytes of a weight), ("s", bytes of a state's block), ("i", input) or ("x", name of scratch memory, or
    (name, offset) in it).
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

    @property
    def turns(self) -> int:
        """Calls that read other parts of the same weights each."""
        return 1

    @abstractmethod
    def steps(self, knobs: Knobs, turn: int = 0) -> tuple[Step, ...]:
        """The calls that are measured, of the same kernels in each turn."""

    def before(self) -> tuple[Step, ...]:
        """Calls that are made once, before all of these."""
        return ()


@dataclass(frozen=True)
class TunableLinear(Tunable):
    """A linear layer with what is added to it, or with more around it (fused.py). step: as in the program."""

    step: Step

    def steps(self, knobs: Knobs, turn: int = 0) -> tuple[Step, ...]:
        return (self.step,)


@dataclass(frozen=True)
class TunableAttention(Tunable):
    """Attention: its parts and what merges them, or both in one. form: of the result, None for floats."""

    heads: Heads
    form: Form | None
    in_one: bool

    def before(self) -> tuple[Step, ...]:
        return (Step("clear_turns", clear_turns(self.heads), (("x", "turns"),)),) if self.in_one else ()

    def steps(self, knobs: Knobs, turn: int = 0) -> tuple[Step, ...]:
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


@dataclass(frozen=True)
class TunableExperts(Tunable):
    """A linear layer of a mixture's experts, of rows that are theirs by `picks`. step: as in the program."""

    step: Step
    work: ExpertWork
    picks: Picks

    @property
    def turns(self) -> int:
        return self.picks.turns

    def before(self) -> tuple[Step, ...]:
        pick = Step("pick_experts", pick_experts(self.picks), (("x", "ids"),))
        if not isinstance(self.work, Grouped):
            return (pick,)
        groups = self.work.groups
        return (pick, *(_sort(groups, self._ids(turn), _table(groups, turn)) for turn in range(self.turns)))

    def steps(self, knobs: Knobs, turn: int = 0) -> tuple[Step, ...]:
        """Where rows are in other tiles than the default's, sorting them is part of it: layers may differ in that."""
        if not isinstance(self.work, Grouped):
            return (_rebound(self.step, "ids", self._ids(turn)),)
        if knobs["tile"] == self.work.groups.tile:
            return (_rebound(self.step, "table", _table(self.work.groups, turn)),)
        work = in_tiles(self.work, knobs["tile"])
        step = replace(self.step, function=grouped_linear(work))
        return (_sort(work.groups, self._ids(turn), "own"), _rebound(step, "table", "own"))

    def _ids(self, turn: int) -> tuple[str, int]:
        return "ids", turn * 4 * self.picks.row_elements


def _sort(groups: Groups, ids: Any, table: Any) -> Step:
    return Step("group_rows", group_rows(groups), (("x", ids), ("x", table)))


def _table(groups: Groups, turn: int) -> tuple[str, int]:
    return "table", turn * aligned(4 * groups.size)


def _rebound(step: Step, name: str, place: Any) -> Step:
    """The step with other memory for what it binds by a name."""
    return replace(step, bound=tuple(("x", place) if each == ("x", name) else each for each in step.bound))


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
    fused, experts, work = Fused.of(origin), expert_work(origin), linear_work(symbol, kernel, target)
    knobs: Sequence[Any]
    if fused is not None:
        key, n, knobs = fused.key, 1, fused_candidates(fused, gpu)
    elif experts is not None:
        key, n, knobs = expert_key(experts), experts.n, expert_candidates(experts, gpu)
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
    options = tuple(map(asdict, knobs))
    if experts is None:
        return TunableLinear(key, n, 0, n_bytes, options, 0, step)
    rows, total = experts.shape
    picks = Picks(n, rows // n, total)
    return TunableExperts(key, n, 0, n_bytes * picks.distinct // total, options, 0, step, experts, picks)


def _of_trial(kind: str, value: Any, name: str, sizes: Sequence[int], origin: Origin | None) -> tuple[str, Any]:
    """What a trial binds for an argument of a program; sizes: of its weights, in bytes."""
    if kind == "w":
        return kind, sizes[value]
    if kind == "s":
        assert origin is not None
        return kind, state_bytes(origin.arguments["heads"])
    return (kind, value) if kind == "i" else ("x", name)
