"""The pass list: from a traced network to planned calls of scheduled kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.relax import transform

from crosscompile.kernels import linear
from crosscompile.kernels.build import ORIGIN, RANGE
from crosscompile.passes.lower_operators import Stored, lower_operators
from crosscompile.target import Tier

FUNCTION = "forward"


Phase = tuple[str, Callable[[tvm.IRModule], tvm.IRModule]]
"""A pass by the name that a dump gives its result."""


@dataclass(frozen=True)
class Lowered:
    """One function after the pass list.

    module    `forward` with planned memory, and its kernels, scheduled
    inplace   kernel -> indices of the arguments it changes in place
    """

    module: tvm.IRModule
    inplace: Mapping[str, tuple[int, ...]]


def lower(
    traced: tvm.IRModule,
    names: Sequence[str],
    stored: Mapping[str, Stored],
    tier: Tier,
    dump: Path | None = None,
    tuned: linear.Tuned | None = None,
    schedule: bool = True,
) -> Lowered:
    """Runs the pass list over one traced function.

    names: the network's parameters in the order in which they follow the inputs. dump: a folder that gets the IR after
    each phase, as Python text. tuned: knobs that tuning found, by workload. schedule: for the CPU; a GPU's kernels are
    made from what they are without.
    """
    inplace: dict[str, tuple[int, ...]] = {}

    def note_inplace(module: tvm.IRModule) -> tvm.IRModule:
        inplace.update(_inplace_arguments(module))
        return module

    phases: list[Phase] = [
        *_until_fused(names, stored, tier, tuned),
        *([("schedule_kernels", lambda m: schedule_kernels(m, tier, tuned or {}))] if schedule else []),
        ("find_inplace_arguments", note_inplace),
        ("leave_dataflow", transform.ToNonDataflow()),
        ("remove_purity_checks", transform.RemovePurityChecking()),
        ("call_kernels", transform.CallTIRRewrite()),
        ("plan_memory", transform.StaticPlanBlockMemory()),
    ]
    module = traced
    if dump:
        dump.mkdir(parents=True, exist_ok=True)
    for index, (name, phase) in enumerate(phases):
        module = phase(module)
        if dump:
            (dump / f"{index:02}-{name}.py").write_text(module.script(), encoding="utf-8")
    return Lowered(module, inplace)


def _until_fused(
    names: Sequence[str], stored: Mapping[str, Stored], tier: Tier, tuned: linear.Tuned | None = None
) -> list[Phase]:
    """The phases up to kernels as they will be, but for their schedules."""
    return [
        ("traced", lambda m: m),
        ("lower_operators", lambda m: lower_operators(m, FUNCTION, names, stored, tier, tuned or {})),
        ("fold_constants", transform.FoldConstant()),
        ("eliminate_common_subexpressions", transform.EliminateCommonSubexpr()),
        ("eliminate_dead_code", transform.DeadCodeElimination([FUNCTION])),
        ("fuse_operators", transform.FuseOps()),
        ("fuse_kernels", transform.FuseTIR()),
        ("eliminate_unused_kernels", transform.DeadCodeElimination([FUNCTION])),
    ]


def linear_layers(
    traced: tvm.IRModule, names: Sequence[str], stored: Mapping[str, Stored], tier: Tier
) -> list[tuple[tirx.PrimFunc, str, int]]:
    """The linear layers of a traced function before they are scheduled: (function, packing, calls of it)."""
    module = traced
    for _, phase in _until_fused(names, stored, tier):
        module = phase(module)
    counts: dict[str, int] = {}
    for block in module[FUNCTION].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call) and binding.value.args:
                callee = getattr(binding.value.args[0], "name_hint", "")
                counts[callee] = counts.get(callee, 0) + 1
    found = []
    for symbol, function in module.functions.items():
        kind = linear.KIND.search(symbol.name_hint) if isinstance(function, tirx.PrimFunc) else None
        if kind:
            found.append((function, tier.packing(kind[1]), counts.get(symbol.name_hint, 0)))
    return found


def schedule_kernels(module: tvm.IRModule, tier: Tier, tuned: linear.Tuned) -> tvm.IRModule:
    """Gives every kernel its schedule: linear layers the tier's template, lone elementwise ones vectors of a row."""
    scheduled = {}
    for symbol, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            kind = linear.KIND.search(symbol.name_hint)
            if kind:
                packing = tier.packing(kind[1])
                knobs = linear.tuned_knobs(linear.workload(function, packing), tuned) if tuned else None
                function = linear.schedule(function, tier, packing, knobs)
            elif "add" in symbol.name_hint:
                function = _schedule_elementwise(function)
            function = function.without_attr(ORIGIN)
        scheduled[symbol] = function
    return tvm.IRModule(scheduled, attrs=module.attrs)


def _schedule_elementwise(function: tirx.PrimFunc) -> tirx.PrimFunc:
    sch = s_tir.Schedule(function)
    *inner, last = sch.get_child_blocks(sch.get_sblock("root"))
    for block in inner:
        sch.compute_inline(block)
    rows, columns = sch.get_loops(last)
    sch.annotate(rows, RANGE, 1)
    _, lanes = sch.split(columns, [None, 16])
    sch.vectorize(lanes)
    return sch.mod["main"]


def _inplace_arguments(module: tvm.IRModule) -> dict[str, tuple[int, ...]]:
    """Which arguments call_tir_inplace says each kernel changes."""
    found: dict[str, tuple[int, ...]] = {}
    for block in module[FUNCTION].body.blocks:
        for binding in block.bindings:
            call: Any = binding.value
            if isinstance(call, relax.Call) and getattr(call.op, "name", "") == "relax.call_tir_inplace":
                indices = tuple(int(i) for i in call.attrs.inplace_indices if int(i) >= 0)
                found[call.args[0].name_hint] = indices
    return found
