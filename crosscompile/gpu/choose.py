"""Which GPU kernel stands for each of a program's kernels, and their translation to SPIR-V.

A kernel that has no counterpart here, or one that a package brought, runs as it is: each unit of its shared range
becomes a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx.buffer import is_buffer_var

from crosscompile.codegen import SCALARS, Signature, lowering, placement, replace_range
from crosscompile.errors import CodegenError
from crosscompile.gpu import (
    attention,
    attention_whole,
    embed,
    experts,
    fused_kernels,
    norms,
    recurrent,
    rotary,
    rows,
    rwkv,
)
from crosscompile.gpu.experts_knobs import chosen_experts, expert_work
from crosscompile.gpu.fused_knobs import Fused, chosen_fused
from crosscompile.gpu.grouped import Grouped, group_rows_kernel
from crosscompile.gpu.grouped_linear import grouped_kernel
from crosscompile.gpu.knobs import chosen_knobs
from crosscompile.gpu.linear import Linear, linear_kernel
from crosscompile.gpu.picks import picking_kernel
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.build import ORIGIN, Origin, origin_of
from crosscompile.kernels.linear import KIND, Tuned
from crosscompile.packing import GROUP, KINDS, Packing
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.container import pack_modules
from crosscompile.spirv.emit import Shader, emit
from crosscompile.spirv.glsl import print_glsl
from crosscompile.target import Target

Maker = Callable[..., tirx.PrimFunc | None]
_MAKERS: dict[str, Maker] = {
    "act_quant": rows.act_quant,
    "activated": rows.activated,
    "gated": rows.gated,
    "rms_norm": rows.rms_norm,
    "layer_norm": rows.layer_norm,
    "gather": rows.gather,
    "gated_linear": fused_kernels.gated_kernel,
    "normed_linear": fused_kernels.normed_kernel,
    "scaled_linear": fused_kernels.scaled_kernel,
    "rotated_linear": fused_kernels.rotated_kernel,
    "embed": embed.embed,
    "embed_part": embed.embed,
    "attention_parts": attention.parts_kernel,
    "attention_row": attention_whole.whole_kernel,
    "clear_turns": attention_whole.clearing_kernel,
    "attention_merge": attention.merge_kernel,
    "rope_append_clear": rotary.clearing_kernel,
    "normalize_heads": rotary.normalize_heads,
    "route": experts.route,
    "group_rows": group_rows_kernel,
    "pick_experts": picking_kernel,
    "combine": experts.combine,
    "causal_conv": recurrent.causal_conv,
    "scan_states": recurrent.states_kernel,
    "scan_gate": recurrent.gate_kernel,
    "head_rates": recurrent.rates_kernel,
    "head_states": recurrent.heads_kernel,
    "gated_norm": norms.gated_norm,
    "narrow": norms.narrow,
    "token_shift": rwkv.token_shift,
    "shifted": rwkv.shifted,
    "squash": rwkv.squash,
    "value_blend": rwkv.value_blend,
    "rwkv_keys": rwkv.rwkv_keys,
    "delta_scan": rwkv.delta_scan,
    "head_bonus": rwkv.bonus_kernel,
    "head_out": rwkv.out_kernel,
}
"""Functions that take what the CPU's of the same name take. None: there is no kernel of the GPU's own for that."""


def _from_origin(name: str, origin: Origin, gpu: Gpu, tuned: Tuned) -> tirx.PrimFunc | None:
    """The GPU's kernel for one of ours; None where there is none."""
    arguments = origin.arguments
    fused, work = Fused.of(origin), expert_work(origin)
    if fused is not None:
        return _MAKERS[origin.name](name, gpu, **arguments, knobs=chosen_fused(fused, gpu, tuned))
    if isinstance(work, Grouped):
        return grouped_kernel(name, gpu, work, chosen_experts(work, gpu, tuned))
    if work is not None:
        return experts.expert_kernel(name, gpu, work, chosen_experts(work, gpu, tuned))
    if origin.name in _MAKERS:
        return _MAKERS[origin.name](name, gpu, **arguments)
    if origin.name in ("add", "add_bias"):
        return rows.added(name, gpu, arguments["n"], arguments["columns"], origin.name == "add_bias")
    if origin.name == "rope_table" and not arguments["original"]:
        return rotary.rope_table(name, gpu, arguments["n"], arguments["half"], arguments["scaling"])
    if origin.name == "rope_append" and rotary.supports(arguments["turn"]):
        return rotary.rope_append(name, gpu, **arguments)
    return None


def linear_of(name: str, function: tirx.PrimFunc, target: Target) -> Linear:
    """What a linear layer computes, with whatever additions FuseTIR put behind it."""
    kind = KIND.search(name)
    assert kind is not None
    sch = s_tir.Schedule(function)
    m, g, r, b = (int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock("sum")))
    names = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    behind = [each for each in names if each not in ("dot", "sum")]
    if any(not each.startswith("add") for each in behind):
        raise CodegenError(f"kernel {name}: {', '.join(behind)} behind a linear layer is not supported on a GPU")
    quantized = kind[1] in KINDS
    packing = target.tier.packing(kind[1])
    # activations, of quantized ones with scales, then all that is stored of the weight
    first = 2 + len(Packing.parse(packing).stored(g * r, b * GROUP)) if quantized else 2
    addends = function.params[first:-1]
    if len(addends) != len(behind):
        raise CodegenError(f"kernel {name}: {len(addends)} tensors for {len(behind)} additions; not supported on a GPU")
    biases = tuple(len(addend.ty.shape) == 1 for addend in addends)
    columns = b * GROUP if quantized else b
    return Linear(m, g * r, columns, packing, biases, 0, g * r)


def as_threads(name: str, function: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc:
    """A kernel of the CPU with a thread for each unit of its shared range, flat."""
    module = tvm.IRModule({name: function.without_attr(ORIGIN).with_attr("global_symbol", name)})
    module = tvm.ir.transform.Sequential(placement())(module)
    threads = min(32, gpu.invocations)
    module = tvm.IRModule({name: _thread_range(module[name], threads)})
    return tvm.ir.transform.Sequential(lowering())(module)[name]


def _thread_range(function: tirx.PrimFunc, threads: int) -> tirx.PrimFunc:
    """Turns the loop marked RANGE into a thread axis of the grid."""

    def spread(loop: tirx.For) -> Any:
        extent = int(loop.extent)
        axes = [
            (tirx.IterVar(None, tirx.Var(tag.replace(".", "_"), "int32"), tirx.IterVar.ThreadIndex, tag), count)
            for tag, count in (("blockIdx.x", -(-extent // threads)), ("threadIdx.x", threads))
        ]
        unit = tirx.Cast("int64", axes[0][0].var * threads + axes[1][0].var)
        inside = unit < tirx.IntImm("int64", extent)
        body: Any = tirx.IfThenElse(inside, tirx.SeqStmt([tirx.Bind(loop.loop_var, unit), loop.body]), None)
        for axis, count in reversed(axes):
            body = tirx.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", count), body)
        return body

    return replace_range(function, spread)[0]


def linear_work(name: str, function: tirx.PrimFunc, target: Target) -> Linear | None:
    """What a kernel of a program computes if it is a linear layer, or a part of one (split.py)."""
    origin = origin_of(function)
    if origin is not None and origin.name == "linear_part":
        work: Linear = origin.arguments["work"]
        return work
    if origin is not None and (origin.name in _MAKERS or expert_work(origin) is not None):
        return None
    return linear_of(name, function, target) if KIND.search(name) else None


def gpu_function(
    name: str, function: tirx.PrimFunc, target: Target, gpu: Gpu, tuned: Tuned | None = None
) -> tirx.PrimFunc:
    """The GPU's function for one kernel of a program, with flat buffers. tuned: knobs by kernel (knobs.py)."""
    origin = origin_of(function)
    made = _from_origin(name, origin, gpu, tuned or {}) if origin is not None else None
    work = linear_work(name, function, target) if made is None else None
    if work is not None:
        made = linear_kernel(name, gpu, work, chosen_knobs(work, gpu, tuned or {}))
    if made is None:
        return as_threads(name, function, gpu)
    return flat(name, made)


def flat(name: str, function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Flat buffers, and nothing else: TVM's simplifier would put what is bound to a name back where it is used."""
    return tirx.transform.FlattenBuffer()(tvm.IRModule({name: function.with_attr("global_symbol", name)}))[name]


def glsl_of(name: str, function: tirx.PrimFunc, target: Target, tuned: Tuned | None = None) -> str:
    """One kernel of a program as GLSL, to be read."""
    assert target.gpu is not None
    return print_glsl(gpu_function(name, function, target, target.gpu, tuned), SCALARS)


def check_sizes(weights: Mapping[str, int], gpu: Gpu) -> None:
    """CodegenError if a tensor, of so many bytes, is more than the GPU can bind, and none that is cut (split.py)."""
    for name, size in weights.items():
        if size > gpu.binding_bytes:
            raise CodegenError(
                f"{name} has {size / 1e6:,.0f} MB, the board's GPU binds {gpu.binding_bytes / 1e6:,.0f} MB at once "
                "([vulkan] binding_bytes), and it cannot be cut any smaller; use --device cpu"
            )


def compile_shaders(
    kernels: Mapping[str, tirx.PrimFunc], target: Target, tuned: Tuned | None = None
) -> tuple[bytes, dict[str, Signature], dict[str, Shader]]:
    """kernels.spv, how each kernel is called, and their modules by symbol. CodegenError where the GPU cannot."""
    gpu = target.gpu
    assert gpu is not None
    shaders: dict[str, Shader] = {}
    signatures = {}
    for name, function in kernels.items():
        rolled = SCHEDULES[gpu.schedule].rolled
        shader = emit(gpu_function(name, function, target, gpu, tuned), SCALARS, rolled, gpu.packed)
        expected = len([p for p in function.params if is_buffer_var(p)])
        if len(shader.buffers) != expected:
            raise CodegenError(f"kernel {name}: {len(shader.buffers)} buffers on the GPU for {expected}")
        check(name, shader.needs, gpu)
        shaders[name] = shader
        signatures[name] = Signature(name, shader.buffers, shader.scalars, 1, shader.grid)
    return pack_modules({name: shader.code for name, shader in shaders.items()}, gpu), signatures, shaders
