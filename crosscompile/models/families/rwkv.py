"""RWKV-7 ("Goose", arXiv:2503.14456) as flash-linear-attention saves it. What it keeps has one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.models import design
from crosscompile.models.design import EMBEDDING, HEAD, Design, Layer, Norm, Rwkv, flag, integer, multiple
from crosscompile.models.families.recurrent import CONTEXT
from crosscompile.pieces import Sources

MOST_HEADS = 240
"""What a kernel keeps of each head of a row stays on the stack."""


def _rank(config: Mapping[str, Any], key: str, of: float, hidden: int, factor: float) -> int:
    """Of a low-rank projection: what config.json says, or what the authors recommend for the size."""
    recommended = max(32, round(of * hidden**0.5 * factor / 32) * 32)
    return integer(config, key, recommended)


def rwkv7(config: Mapping[str, Any]) -> Design:
    """RWKV7ForCausalLM."""
    hidden = multiple(config, "hidden_size", integer(config, "hidden_size"), 32)
    n_layers = integer(config, "num_hidden_layers")
    dim = _head_dim(config, hidden)
    values = config.get("value_dim")
    if values not in (None, hidden) and values != [hidden] * n_layers:
        raise ConfigError(f"config.json: value_dim {values!r} is not supported; only hidden_size for each layer is")
    if config.get("attn") is not None:
        raise ConfigError("config.json: attn describes layers of attention between RWKV's, which are not supported")
    design.activation(config, "hidden_act", default="sqrelu", known=("sqrelu",))
    width = config.get("intermediate_size")
    if width is None:
        width = -(-int(hidden * design.number(config, "hidden_ratio", 4)) // 32) * 32
    width = multiple(config, "intermediate_size", integer({"intermediate_size": width}, "intermediate_size"), 32)
    epsilon = design.epsilon(config, "norm_eps", 1e-5)
    made = Rwkv(
        head_dim=dim,
        decay_rank=_rank(config, "decay_low_rank_dim", 2.5, hidden, dim / 64),
        rate_rank=_rank(config, "a_low_rank_dim", 2.5, hidden, dim / 64),
        gate_rank=multiple(config, "gate_low_rank_dim", _rank(config, "gate_low_rank_dim", 5, hidden, 1), 32),
        value_rank=_rank(config, "v_low_rank_dim", 1.7, hidden, dim / 64),
        epsilon=dim * epsilon,
    )
    found = Design(
        hidden=hidden,
        intermediate=width,
        vocab=integer(config, "vocab_size"),
        context=CONTEXT,
        heads=0,
        kv_heads=0,
        head_dim=0,
        layers=tuple(Layer(rope=None, selective=made if i else made.first()) for i in range(n_layers)),
        norm=Norm(epsilon, "layer", flag(config, "norm_bias", True)),
        ropes=(),
        tied=flag(config, "tie_word_embeddings"),
        embedding_norm=flag(config, "norm_first", True),
    )
    _sources(found, found.sources)
    return found


def _head_dim(config: Mapping[str, Any], hidden: int) -> int:
    """Channels of a head: head_dim, and where that is null hidden_size / num_heads."""
    dim = config.get("head_dim", 64)
    if dim is None:
        dim = hidden // integer(config, "num_heads")
    dim = multiple(config, "head_dim", integer({"head_dim": dim}, "head_dim"), 16)
    if hidden % dim or hidden // dim > MOST_HEADS:
        raise ConfigError(f"config.json: hidden_size {hidden} must be 1 to {MOST_HEADS} times head_dim, {dim}")
    return dim


def _sources(made: Design, sources: Sources) -> None:
    """Where parameters come from."""
    kinds = ("weight", "bias") if made.norm.bias else ("weight",)
    embedding = "model.embeddings.weight"
    sources[EMBEDDING] = (embedding,)
    if made.tied:
        sources[HEAD] = (embedding,)
    if made.embedding_norm:
        for kind in kinds:
            sources[f"model.embed_norm.{kind}"] = (f"model.layers.0.pre_norm.{kind}",)
    for layer, prefix in zip(made.layers, made.prefixes(), strict=True):
        for kind in kinds:
            sources[f"{prefix}input_layernorm.{kind}"] = (f"{prefix}attn_norm.{kind}",)
            sources[f"{prefix}post_attention_layernorm.{kind}"] = (f"{prefix}ffn_norm.{kind}",)
        assert isinstance(layer.selective, Rwkv)
        here, there = f"{prefix}mixer.", f"{prefix}attn."
        for name in (*(f"x_{letter}" for letter in "rwkvag"), "k_k", "k_a", "r_k"):
            sources[f"{here}{name}"] = (f"{there}{name}",)
        for name in ("r_proj", "k_proj", "v_proj", "o_proj"):
            sources[f"{here}{name}.weight"] = (f"{there}{name}.weight",)
        for letter in "wavg" if layer.selective.value_rank else "wag":
            sources[f"{here}{letter}.down_proj.weight"] = (f"{there}{letter}_lora.lora.0.weight",)
            sources[f"{here}{letter}.up_proj.weight"] = (f"{there}{letter}_lora.lora.2.weight",)
            if letter != "g":
                sources[f"{here}{letter}.up_proj.bias"] = (f"{there}{letter}_lora.lora.2.bias",)
        sources[f"{here}norm.weight"] = (f"{there}g_norm.weight",)
        sources[f"{here}norm_bias"] = (f"{there}g_norm.bias",)
        sources[f"{prefix}mlp.x_k"] = (f"{prefix}ffn.x_k",)
        sources[f"{prefix}mlp.up_proj.weight"] = (f"{prefix}ffn.key.weight",)
        sources[f"{prefix}mlp.down_proj.weight"] = (f"{prefix}ffn.value.weight",)
