"""Llama, and what differs from it in a few fields: Mistral, Qwen2, Qwen3, SmolLM3, Phi-3, Granite, OLMo 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.models import design
from crosscompile.models.design import (
    EMBEDDING,
    HEAD,
    Design,
    Layer,
    Norm,
    QueryKeyNorm,
    flag,
    integer,
    multiple,
    number,
)
from crosscompile.models.rope import rope_of
from crosscompile.pieces import Piece, Source, Sources


def base(
    config: Mapping[str, Any],
    *,
    activation: str = "silu",
    theta: float = 10000.0,
    partial: bool = False,
    qkv_bias: bool | None = None,
    mlp_bias: bool = False,
    context: int = 2048,
    epsilon: float = 1e-6,
) -> Design:
    """What all of them share. The keywords are what a family does where config.json says nothing.

    partial: only some dimensions of a head may be rotated. qkv_bias: fixed by the family; None: attention_bias decides.
    """
    hidden = multiple(config, "hidden_size", integer(config, "hidden_size"), 32)
    heads, kv_heads, dim = design.head_sizes(config, hidden)
    biased = flag(config, "attention_bias") if qkv_bias is None else qkv_bias
    act = design.activation(config, "hidden_act", default=activation, known=(activation,))
    norm = Norm(design.epsilon(config, "rms_norm_eps", epsilon))
    made = Design(
        hidden=hidden,
        intermediate=multiple(config, "intermediate_size", integer(config, "intermediate_size"), 32),
        vocab=integer(config, "vocab_size"),
        context=integer(config, "max_position_embeddings", context),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        layers=(Layer(),) * integer(config, "num_hidden_layers"),
        norm=norm,
        ropes=(rope_of(config, theta=theta, partial=partial),),
        tied=flag(config, "tie_word_embeddings"),
        qkv_bias=biased,
        o_bias=biased and qkv_bias is None,
        mlp_bias=mlp_bias or flag(config, "mlp_bias"),
        activation=act,
    )
    return replace(made, sources=stacked(made))


def stacked(made: Design) -> Sources:
    """Queries, keys and values are one matrix, gate and up another; a tied head is the embedding."""
    sources: Sources = {}
    for prefix in made.prefixes():
        kinds = ("weight", "bias") if made.qkv_bias else ("weight",)
        names = tuple(f"self_attn.{part}_proj" for part in "qkv")
        sources.update(design.parts(prefix, kinds, names, "self_attn.qkv_proj"))
        kinds = ("weight", "bias") if made.mlp_bias else ("weight",)
        sources.update(design.parts(prefix, kinds, ("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj"))
    if made.tied:
        sources[HEAD] = (EMBEDDING,)
    return sources


def windowed(made: Design, size: int, kinds: list[bool]) -> Design:
    """The same with a window in the layers that `kinds` says; one as wide as the context is none."""
    size = size if size < made.context else 0
    layers = (replace(layer, window=size if limited else 0) for layer, limited in zip(made.layers, kinds, strict=True))
    return replace(made, layers=tuple(layers))


def llama(config: Mapping[str, Any]) -> Design:
    """Llama's configuration may name a window; the network never applies one."""
    design.window(config)
    return base(config)


def mistral(config: Mapping[str, Any]) -> Design:
    made = base(config, qkv_bias=False)
    return windowed(made, design.window(config), [True] * len(made.layers))


def qwen2(config: Mapping[str, Any]) -> Design:
    """Queries, keys and values have biases, whatever the configuration says."""
    return _qwen(config, base(config, qkv_bias=True, context=32768))


def _qwen(config: Mapping[str, Any], made: Design) -> Design:
    """The window, from a layer on, where use_sliding_window says so."""
    size = design.window(config) if flag(config, "use_sliding_window") else 0
    first = integer(config, "max_window_layers", 28, 0)
    kinds = [size > 0 and index >= first for index in range(len(made.layers))]
    return windowed(made, size, design.layer_kinds(config, len(made.layers), kinds))


def qwen3(config: Mapping[str, Any]) -> Design:
    """Each head's query and key is normalized; all heads share the weights of that."""
    made = _qwen(config, base(config, context=32768))
    return with_head_norm(made)


def with_head_norm(made: Design, plus: float = 0.0) -> Design:
    """RMS norms of queries and keys, one vector of weights for all heads. plus: what is added to those."""
    sources = dict(made.sources)
    for prefix in made.prefixes():
        for part, count in (("q", made.heads), ("k", made.kv_heads)):
            name = f"{prefix}self_attn.{part}_norm.weight"
            piece: Source = Piece(name, plus=plus) if plus else name
            sources[name] = (piece,) * count
    return replace(made, qk_norm=QueryKeyNorm("head", made.norm), sources=sources)


def smollm3(config: Mapping[str, Any]) -> Design:
    """Every fourth layer, or those that no_rope_layers has a 0 for, are not rotated."""
    made = base(config, theta=2000000.0, context=32768)
    n = len(made.layers)
    every = integer(config, "no_rope_layer_interval", 4)
    rotated = config.get("no_rope_layers")
    if rotated is None:
        rotated = [int((index + 1) % every != 0) for index in range(n)]
    if not isinstance(rotated, list) or len(rotated) < n or any(value not in (0, 1) for value in rotated):
        raise ConfigError(f"config.json: no_rope_layers must hold a 0 or 1 for each of the {n} layers, not {rotated!r}")
    layers = tuple(replace(layer, rope=0 if rotated[i] else None) for i, layer in enumerate(made.layers))
    size = design.window(config) if flag(config, "use_sliding_window") else 0
    kinds = [size > 0 and not rotated[index] for index in range(n)]
    return windowed(replace(made, layers=layers), size, design.layer_kinds(config, n, kinds))


def phi3(config: Mapping[str, Any]) -> Design:
    """Queries, keys and values come as one tensor, gate and up too. Some dimensions of a head may not be rotated."""
    made = base(config, partial=True, qkv_bias=False, context=4096, epsilon=1e-5)
    sources: Sources = {HEAD: (EMBEDDING,)} if made.tied else {}
    return windowed(replace(made, sources=sources), design.window(config), [True] * len(made.layers))


def granite(config: Mapping[str, Any]) -> Design:
    """Multipliers of embeddings, scores, residuals and logits. The last two are taken into the weights."""
    made = base(config)
    residual, logits = number(config, "residual_multiplier", 1.0), number(config, "logits_scaling", 1.0)
    sources = dict(made.sources)
    sources["model.norm.weight"] = (Piece("model.norm.weight", times=1.0 / logits),)
    for prefix in made.prefixes():
        for name, biased in (("self_attn.o_proj", made.o_bias), ("mlp.down_proj", made.mlp_bias)):
            for kind in ("weight", "bias") if biased else ("weight",):
                tensor = f"{prefix}{name}.{kind}"
                sources[tensor] = (Piece(tensor, times=residual),)
    return replace(
        made,
        embedding_scale=number(config, "embedding_multiplier", 1.0),
        scores=number(config, "attention_multiplier", 1.0),
        sources=sources,
    )


def olmo2(config: Mapping[str, Any]) -> Design:
    """Norms stand behind attention and feed-forward; queries and keys are normalized over all heads together."""
    design.refuse(config, clip_qkv=None)
    made = base(config, epsilon=1e-5)
    return replace(made, arrangement="after", qk_norm=QueryKeyNorm("row", made.norm))
