"""Gemma 1, 2 and 3, text only: weights of norms count from one, embeddings are scaled, GELU gates, tied heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crosscompile.models import design
from crosscompile.models.design import Design, Layer, Norm, flag, integer, multiple, number, with_fields
from crosscompile.models.families.llama import stacked, windowed, with_head_norm
from crosscompile.models.rope import Rope, rope_of
from crosscompile.pieces import Piece

LOCAL_THETA, GLOBAL_THETA = 1e4, 1e6


def _base(config: Mapping[str, Any], ropes: tuple[Rope, ...], context: int, arrangement: str) -> Design:
    hidden = multiple(config, "hidden_size", integer(config, "hidden_size"), 32)
    heads, kv_heads, dim = design.head_sizes(_with_head_dim(config), hidden)
    biased = flag(config, "attention_bias")
    design.refuse(config, use_bidirectional_attention=False)
    made = Design(
        hidden=hidden,
        intermediate=multiple(config, "intermediate_size", integer(config, "intermediate_size"), 32),
        vocab=integer(config, "vocab_size"),
        context=integer(config, "max_position_embeddings", context),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        layers=(Layer(),) * integer(config, "num_hidden_layers"),
        norm=Norm(design.epsilon(config, "rms_norm_eps", 1e-6)),
        ropes=ropes,
        tied=flag(config, "tie_word_embeddings", True),
        qkv_bias=biased,
        o_bias=biased,
        arrangement=arrangement,
        activation=design.activation(
            config, "hidden_activation", "hidden_act", default="gelu_pytorch_tanh", known=("gelu_pytorch_tanh", "gelu")
        ),
        embedding_scale=float(np.sqrt(np.float32(hidden))),
    )
    sources = stacked(made)
    from_one = [f"{prefix}{name}.weight" for prefix in made.prefixes() for name in design.NORMS[arrangement]]
    for name in [*from_one, "model.norm.weight"]:
        sources[name] = (Piece(name, plus=1.0),)
    return replace(made, sources=sources)


def _with_head_dim(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return with_fields(config, head_dim=config.get("head_dim") or 256)


def gemma(config: Mapping[str, Any]) -> Design:
    """hidden_act was wrong in the first checkpoints: whatever it says, the tanh approximation is meant."""
    fields = with_fields(config, hidden_act=None)
    return _base(fields, (rope_of(_with_head_dim(config)),), 8192, "before")


def gemma2(config: Mapping[str, Any]) -> Design:
    """Norms around attention and feed-forward; every other layer sees a window; tanh flattens scores and logits."""
    made = _base(config, (rope_of(_with_head_dim(config)),), 8192, "around")
    made = replace(made, scores_cap=_cap(config, "attn_logit_softcapping", 50.0))
    made = _capped(config, made, 30.0)
    n = len(made.layers)
    kinds = design.layer_kinds(config, n, [index % 2 == 0 for index in range(n)])
    return windowed(made, _window(config), kinds)


def gemma3(config: Mapping[str, Any]) -> Design:
    """Gemma 2 with norms of queries and keys in place of the first cap; windowed layers have a RoPE of their own."""
    whole = _with_head_dim(config)
    kinds = ("full_attention", "sliding_attention")
    parameters = whole.get("rope_parameters")
    if isinstance(parameters, dict) and any(isinstance(entry, dict) for entry in parameters.values()):
        ropes = tuple(
            rope_of(whole, kind, theta) for kind, theta in zip(kinds, (GLOBAL_THETA, LOCAL_THETA), strict=True)
        )
    else:
        theta = number(config, "rope_local_base_freq", LOCAL_THETA)
        local = with_fields(whole, rope_scaling=None, rope_parameters=None, rope_theta=theta)
        ropes = (rope_of(whole, theta=GLOBAL_THETA), rope_of(local))
    made = _base(config, ropes, 131072, "around")
    made = with_head_norm(replace(made, scores_cap=_cap(config, "attn_logit_softcapping", 0.0)), plus=1.0)
    made = _capped(config, made, 0.0)
    n, every = len(made.layers), integer(config, "sliding_window_pattern", 6)
    limited = design.layer_kinds(config, n, [(index + 1) % every != 0 for index in range(n)])
    made = replace(made, layers=tuple(Layer(rope=1 if one else 0) for one in limited))
    return windowed(made, _window(config), limited)


def _window(config: Mapping[str, Any]) -> int:
    return design.window(with_fields(config, sliding_window=config.get("sliding_window", 4096)))


def _cap(config: Mapping[str, Any], key: str, default: float) -> float:
    """A cap; null turns it off."""
    if key in config and config[key] is None:
        return 0.0
    return number(config, key, default) if key in config or default else 0.0


def _capped(config: Mapping[str, Any], made: Design, default: float) -> Design:
    """The cap of logits, whose inverse is taken into the weights of the last norm, and the scale of scores."""
    sources, cap = dict(made.sources), _cap(config, "final_logit_softcapping", default)
    if cap:
        sources["model.norm.weight"] = (Piece("model.norm.weight", plus=1.0 / cap, times=1.0 / cap),)
    scalar = number(config, "query_pre_attn_scalar", 256.0)
    return replace(made, sources=sources, logits_cap=cap, scores=scalar**-0.5)
