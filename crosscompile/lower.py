"""The pass list: from a traced network to planned calls of scheduled kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.relax import transform

from crosscompile.kernels import linear
from crosscompile.kernels.build import RANGE
from crosscompile.passes.lower_operators import Stored, lower_operators
from crosscompile.target import Tier

FUNCTION = "forward"


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
) -> Lowered:
    """Runs the pass list over one traced function.

    names: the network's parameters in the order in which they follow the inputs. dump: a folder that gets the IR after
    each phase, as Python text.
    """
    inplace: dict[str, tuple[int, ...]] = {}

    def note_inplace(module: tvm.IRModule) -> tvm.IRModule:
        inplace.update(_inplace_arguments(module))
        return module

    phases: list[tuple[str, Callable[[tvm.IRModule], tvm.IRModule]]] = [
        ("traced", lambda m: m),
        ("lower_operators", lambda m: lower_operators(m, FUNCTION, names, stored, tier)),
        ("fold_constants", transform.FoldConstant()),
        ("eliminate_common_subexpressions", transform.EliminateCommonSubexpr()),
        ("eliminate_dead_code", transform.DeadCodeElimination([FUNCTION])),
        ("fuse_operators", transform.FuseOps()),
        ("fuse_kernels", transform.FuseTIR()),
        ("eliminate_unused_kernels", transform.DeadCodeElimination([FUNCTION])),
        ("schedule_kernels", lambda m: schedule_kernels(m, tier)),
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


def schedule_kernels(module: tvm.IRModule, tier: Tier) -> tvm.IRModule:
    """Gives every kernel its schedule: linear layers the tier's template, lone elementwise ones vectors of a row."""
    scheduled = {}
    for symbol, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            kind = re.search(r"linear_(w4|w8|f16|f32)", symbol.name_hint)
            if kind:
                function = linear.schedule(function, tier, tier.packing(kind[1]))
            elif "add" in symbol.name_hint:
                function = _schedule_elementwise(function)
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
