"""Mixtures of experts: Mixtral, OLMoE, Qwen2-MoE and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.models import design
from crosscompile.models.design import Design, Experts, QueryKeyNorm, flag, integer, multiple
from crosscompile.models.families.llama import base, windowed, with_head_norm
from crosscompile.pieces import Sources

TOTAL_CAP = 256
"""Experts of a layer: what a kernel keeps on the stack."""


def _experts(config: Mapping[str, Any], total_key: str, width_key: str, normalized: bool, shared: int = 0) -> Experts:
    other = "num_local_experts" if config.get(total_key) is None else total_key  # as transformers 5 writes it
    total, used = integer(config, other), integer(config, "num_experts_per_tok", 2)
    if total >= TOTAL_CAP or used > total:
        raise ConfigError(
            f"config.json: {used} of {total} experts a token: at most all of {TOTAL_CAP - 1} are supported"
        )
    width = multiple(config, width_key, integer(config, width_key), 32)
    return Experts(total, used, width, normalized, shared)


def _mixed(made: Design, mixture: Experts, sparse: list[bool], name: Callable[[int, str], str], gate: str) -> Design:
    """The same with experts in some layers. name: of an expert's "gate", "up" or "down" below its layer."""
    layers = tuple(
        replace(layer, experts=mixture if mixed else None) for layer, mixed in zip(made.layers, sparse, strict=True)
    )
    sources: Sources = dict(made.sources)
    for prefix, mixed in zip(made.prefixes(), sparse, strict=True):
        if not mixed:
            continue
        del sources[f"{prefix}mlp.gate_up_proj.weight"]
        stacks = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
        for stack, kinds in stacks.items():
            names = (f"{prefix}{name(expert, kind)}.weight" for expert in range(mixture.total) for kind in kinds)
            sources[f"{prefix}mlp.experts.{stack}.weight"] = tuple(names)
        sources[f"{prefix}mlp.gate.weight"] = (f"{prefix}{gate}.weight",)
        if mixture.shared:
            shared = f"{prefix}mlp.shared_expert."
            sources[f"{shared}gate_up_proj.weight"] = (f"{shared}gate_proj.weight", f"{shared}up_proj.weight")
    return replace(made, layers=layers, sources=sources)


def _plain_name(expert: int, kind: str) -> str:
    return f"mlp.experts.{expert}.{kind}_proj"


def _sparse(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """Layers with experts: every decoder_sparse_step-th, but for mlp_only_layers."""
    step, without = integer(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(without, list):
        raise ConfigError(f"config.json: mlp_only_layers must be a list of layers, not {without!r}")
    return [index not in without and (index + 1) % step == 0 for index in range(n_layers)]


def mixtral(config: Mapping[str, Any]) -> Design:
    made = base(config, qkv_bias=False, theta=1e6, context=131072, epsilon=1e-5)
    made = windowed(made, design.window(config), [True] * len(made.layers))
    mixture = _experts(config, "num_local_experts", "intermediate_size", True)
    part = {"gate": "w1", "up": "w3", "down": "w2"}

    def name(expert: int, kind: str) -> str:
        return f"block_sparse_moe.experts.{expert}.{part[kind]}"

    return _mixed(made, mixture, [True] * len(made.layers), name, "block_sparse_moe.gate")


def olmoe(config: Mapping[str, Any]) -> Design:
    """Queries and keys are normalized over all heads together."""
    design.refuse(config, clip_qkv=None)
    made = base(config, context=4096, epsilon=1e-5)
    mixture = _experts(config, "num_experts", "intermediate_size", flag(config, "norm_topk_prob"))
    made = replace(made, qk_norm=QueryKeyNorm("row", made.norm))
    return _mixed(made, mixture, [True] * len(made.layers), _plain_name, "mlp.gate")


def qwen2_moe(config: Mapping[str, Any]) -> Design:
    """One expert more, which all tokens go to."""
    made = base(config, qkv_bias=flag(config, "qkv_bias", True), context=32768)
    shared = multiple(config, "shared_expert_intermediate_size", integer(config, "shared_expert_intermediate_size"), 32)
    normalized = flag(config, "norm_topk_prob")
    mixture = _experts(config, "num_experts", "moe_intermediate_size", normalized, shared)
    n, size = len(made.layers), design.window(config) if flag(config, "use_sliding_window") else 0
    last = integer(config, "max_window_layers", 28, 0)
    kinds = design.layer_kinds(config, n, [size > 0 and i % 2 == 0 and i < last for i in range(n)])
    return _mixed(windowed(made, size, kinds), mixture, _sparse(config, n), _plain_name, "mlp.gate")


def qwen3_moe(config: Mapping[str, Any]) -> Design:
    """Norms of queries and keys, as in Qwen3; a window holds for all layers or none."""
    made = with_head_norm(base(config, context=32768))
    size = design.window(config) if flag(config, "use_sliding_window") else 0
    mixture = _experts(config, "num_experts", "moe_intermediate_size", flag(config, "norm_topk_prob"))
    made = windowed(made, size, [size > 0] * len(made.layers))
    return _mixed(made, mixture, _sparse(config, len(made.layers)), _plain_name, "mlp.gate")
