"""Networks without attention: Mamba 1, Falcon Mamba, Mamba 2. What they keep has one size, however long the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.models import design
from crosscompile.models.design import EMBEDDING, HEAD, Design, Layer, Norm, Selective, flag, integer, multiple
from crosscompile.pieces import Piece, Sources

CONTEXT = 1 << 20
"""Positions a session may have: nothing grows with them, so that the bound is one of counting only."""


def _network(config: Mapping[str, Any], selective: Selective, tied: bool) -> Design:
    """What all of them share: a block is a norm and a mixer."""
    made = Design(
        hidden=multiple(config, "hidden_size", integer(config, "hidden_size"), 32),
        intermediate=selective.inner,
        vocab=integer(config, "vocab_size"),
        context=CONTEXT,
        heads=0,
        kv_heads=0,
        head_dim=0,
        layers=(Layer(rope=None, selective=selective),) * integer(config, "num_hidden_layers"),
        norm=Norm(design.epsilon(config, "layer_norm_epsilon", 1e-5)),
        ropes=(),
        tied=flag(config, "tie_word_embeddings", tied),
        arrangement="mixer",
    )
    design.activation(config, "hidden_act", default="silu", known=("silu",))
    sources = made.sources
    embedding = "backbone.embeddings.weight"
    sources.update({EMBEDDING: (embedding,), "model.norm.weight": ("backbone.norm_f.weight",)})
    if made.tied:
        sources[HEAD] = (embedding,)
    for index, prefix in enumerate(made.prefixes()):
        there = f"backbone.layers.{index}."
        sources[f"{prefix}input_layernorm.weight"] = (f"{there}norm.weight",)
        _mixer(sources, selective, f"{prefix}mixer.", f"{there}mixer.")
    return made


def _mixer(sources: Sources, made: Selective, here: str, there: str) -> None:
    """Where a mixer's parameters come from."""
    sources[f"{here}conv.weight"] = (Piece(f"{there}conv1d.weight", transposed=True),)
    if made.conv_bias:
        sources[f"{here}conv.bias"] = (f"{there}conv1d.bias",)
    biased = ("weight", "bias") if made.bias else ("weight",)
    for kind in biased:
        sources[f"{here}out_proj.{kind}"] = (f"{there}out_proj.{kind}",)
    sources[f"{here}D"] = (f"{there}D",)
    if made.heads:
        most = 2 * made.inner + 2 * made.groups * made.states
        for kind in biased:
            name = f"{there}in_proj.{kind}"
            sources[f"{here}in_proj.{kind}"] = (Piece(name, ranges=((0, most),)),)
            steps = "dt_proj.weight" if kind == "weight" else "dt_proj_bias"
            sources[f"{here}{steps}"] = (Piece(name, ranges=((most, made.heads),)),)
        sources[f"{here}A"] = (Piece(f"{there}A_log", decays=True),)
        sources[f"{here}dt_bias"] = (f"{there}dt_bias",)
        sources[f"{here}norm.weight"] = (f"{there}norm.weight",)
        return
    for kind in biased:
        sources[f"{here}in_proj.{kind}"] = (f"{there}in_proj.{kind}",)
    x_proj = f"{there}x_proj.weight"
    sources[f"{here}dt_low.weight"] = (Piece(x_proj, ranges=((0, made.rank),)),)
    sources[f"{here}bc_proj.weight"] = (Piece(x_proj, ranges=((made.rank, 2 * made.states),)),)
    for kind in ("weight", "bias"):
        sources[f"{here}dt_proj.{kind}"] = (f"{there}dt_proj.{kind}",)
    sources[f"{here}A"] = (Piece(f"{there}A_log", transposed=True, decays=True),)


def _inner(config: Mapping[str, Any]) -> int:
    """Channels: config.json's intermediate_size, where it says that, is expand · hidden_size."""
    expand = design.number(config, "expand", 2)
    inner = int(expand * integer(config, "hidden_size"))
    given = integer(config, "intermediate_size", inner)
    if given != inner:
        raise ConfigError(f"config.json: intermediate_size {given} is not expand · hidden_size, {inner}")
    return multiple(config, "expand · hidden_size", inner, 32)


def _width(config: Mapping[str, Any]) -> int:
    """Of the convolution."""
    width = integer(config, "conv_kernel", 4, 2)
    if width > 16:
        raise ConfigError(f"config.json: conv_kernel {width} is larger than the 16 that edgellm supports")
    return width


def _limit(config: Mapping[str, Any]) -> tuple[float, float]:
    """Of time steps. transformers writes infinity as {"__float__": "Infinity"}, since JSON has none."""
    given: Any = config.get("time_step_limit")
    limit = [0.0, float("inf")] if given is None else given
    if isinstance(limit, list):
        limit = [float("inf") if each == {"__float__": "Infinity"} else each for each in limit]
    is_pair = isinstance(limit, list) and len(limit) == 2
    if not is_pair or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in limit):
        raise ConfigError(f"config.json: time_step_limit must be two numbers, not {given!r}")
    if not 0 <= limit[0] <= limit[1]:
        raise ConfigError(f"config.json: time_step_limit must ascend from 0, not {given!r}")
    return float(limit[0]), float(limit[1])


def mamba(config: Mapping[str, Any], epsilon: float = 0.0, tied: bool = True) -> Design:
    """Mamba 1 (arXiv:2312.00752)."""
    rank: Any = config.get("time_step_rank", "auto")
    if rank == "auto":
        rank = -(-integer(config, "hidden_size") // 16)
    selective = Selective(
        inner=_inner(config),
        states=integer(config, "state_size", 16),
        width=_width(config),
        rank=integer({"time_step_rank": rank}, "time_step_rank"),
        epsilon=epsilon,
        bias=flag(config, "use_bias"),
        conv_bias=flag(config, "use_conv_bias", True),
    )
    return _network(config, selective, tied)


def falcon_mamba(config: Mapping[str, Any]) -> Design:
    """Mamba 1 whose time steps, B and C are normalized."""
    return mamba(config, design.epsilon(config, "mixer_rms_eps", 1e-6))


def mamba2(config: Mapping[str, Any]) -> Design:
    """Mamba 2 (arXiv:2405.21060)."""
    inner, heads, dim = _inner(config), integer(config, "num_heads", 128), integer(config, "head_dim", 64)
    groups, states = integer(config, "n_groups", 8), integer(config, "state_size", 128)
    if heads * dim != inner or heads % groups:
        raise ConfigError(
            f"config.json: {heads} heads of {dim} in {groups} groups do not make expand · hidden_size, {inner}"
        )
    multiple(config, "head_dim", dim, 16)
    multiple(config, "n_groups * state_size", groups * states, 16)
    multiple(config, "expand · hidden_size / n_groups", inner // groups, 16)
    selective = Selective(
        inner=inner,
        states=states,
        width=_width(config),
        epsilon=design.epsilon(config, "layer_norm_epsilon", 1e-5),
        heads=heads,
        groups=groups,
        limit=_limit(config),
        bias=flag(config, "use_bias"),
        conv_bias=flag(config, "use_conv_bias", True),
    )
    return _network(config, selective, False)
