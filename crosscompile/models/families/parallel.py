"""Layer norms, and mostly attention and feed-forward side by side: StableLM, GPT-NeoX, Falcon, GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.models import design
from crosscompile.models.design import (
    EMBEDDING,
    HEAD,
    POSITIONS,
    Design,
    Layer,
    Norm,
    QueryKeyNorm,
    flag,
    integer,
    multiple,
    with_fields,
)
from crosscompile.models.families.llama import stacked
from crosscompile.models.rope import Rope, rope_of
from crosscompile.pieces import Piece, Sources


def stablelm(config: Mapping[str, Any]) -> Design:
    """Llama with layer norms and partly rotated heads; with use_parallel_residual, one norm for both branches."""
    hidden = multiple(config, "hidden_size", integer(config, "hidden_size"), 32)
    heads, kv_heads, dim = design.head_sizes(config, hidden)
    norm = Norm(design.epsilon(config, "layer_norm_eps", 1e-5), "layer", bias=True)
    made = Design(
        hidden=hidden,
        intermediate=multiple(config, "intermediate_size", integer(config, "intermediate_size"), 32),
        vocab=integer(config, "vocab_size"),
        context=integer(config, "max_position_embeddings", 4096),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        layers=(Layer(),) * integer(config, "num_hidden_layers"),
        norm=norm,
        ropes=(rope_of(config, partial=True, part=0.25),),
        tied=flag(config, "tie_word_embeddings"),
        qkv_bias=flag(config, "use_qkv_bias"),
        arrangement="parallel shared" if flag(config, "use_parallel_residual") else "before",
        activation=design.activation(config, "hidden_act", default="silu"),
    )
    sources = stacked(made)
    if not flag(config, "qk_layernorm"):
        return replace(made, sources=sources)
    for prefix in made.prefixes():
        for part, count in (("q", heads), ("k", kv_heads)):
            names = (f"{prefix}self_attn.{part}_layernorm.norms.{index}.weight" for index in range(count))
            sources[f"{prefix}self_attn.{part}_norm.weight"] = tuple(names)
    return replace(made, sources=sources, qk_norm=QueryKeyNorm("head", Norm(norm.epsilon, "layer")))


def gpt_neox(config: Mapping[str, Any]) -> Design:
    """Queries, keys and values of a head lie together in one tensor."""
    hidden = multiple(config, "hidden_size", integer(config, "hidden_size"), 32)
    heads, _, dim = design.head_sizes({"num_attention_heads": config.get("num_attention_heads")}, hidden)
    biased = flag(config, "attention_bias", True)
    share = {} if _share_given(config) else {"partial_rotary_factor": config.get("rotary_pct", 0.25)}
    theta = config.get("rotary_emb_base") or 10000.0
    made = Design(
        hidden=hidden,
        intermediate=multiple(config, "intermediate_size", integer(config, "intermediate_size"), 32),
        vocab=integer(config, "vocab_size"),
        context=integer(config, "max_position_embeddings", 2048),
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        layers=(Layer(),) * integer(config, "num_hidden_layers"),
        norm=Norm(design.epsilon(config, "layer_norm_eps", 1e-5), "layer", bias=True),
        ropes=(rope_of(config, theta=theta, partial=True, override=share),),
        tied=flag(config, "tie_word_embeddings"),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=True,
        arrangement="parallel" if flag(config, "use_parallel_residual", True) else "before",
        gated=False,
        activation=design.activation(config, "hidden_act", default="gelu"),
    )
    names = {"self_attn.o_proj": "attention.dense", **_MLP}
    sources = _renamed(made, "gpt_neox.layers", {**names, **{norm: norm for norm in design.NORMS["parallel"]}})
    ranges = tuple((part * dim + 3 * dim * head, dim) for part in range(3) for head in range(heads))
    _fused(made, sources, "gpt_neox.layers", "attention.query_key_value", ranges)
    sources.update({EMBEDDING: ("gpt_neox.embed_in.weight",), HEAD: ("embed_out.weight",)})
    sources.update({f"model.norm.{kind}": (f"gpt_neox.final_layer_norm.{kind}",) for kind in ("weight", "bias")})
    if made.tied:
        sources[HEAD] = sources[EMBEDDING]
    return replace(made, sources=sources)


def _share_given(config: Mapping[str, Any]) -> bool:
    """Whether the RoPE parameters say themselves how many dimensions are rotated."""
    parameters = config.get("rope_parameters")
    return isinstance(parameters, dict) and parameters.get("partial_rotary_factor") is not None


def falcon(config: Mapping[str, Any]) -> Design:
    """Attention and feed-forward side by side, with one norm for both or one each."""
    design.refuse(config, alibi=False)
    hidden = multiple(config, "hidden_size", integer(config, "hidden_size"), 32)
    new = flag(config, "new_decoder_architecture")
    all_share = flag(config, "multi_query", True)
    heads = integer(config, "num_attention_heads")
    groups = integer(config, "num_kv_heads", heads) if new else 1 if all_share else heads
    sizes = {"num_attention_heads": heads, "num_key_value_heads": groups}
    heads, kv_heads, dim = design.head_sizes(sizes, hidden)
    parallel = flag(config, "parallel_attn", True)
    if new and not parallel:
        raise ConfigError("config.json: new_decoder_architecture without parallel_attn is not supported")
    norms = integer(config, "num_ln_in_parallel_attn", 2) if new else 1
    biased = flag(config, "bias")
    made = Design(
        hidden=hidden,
        intermediate=multiple(config, "ffn_hidden_size", integer(config, "ffn_hidden_size", 4 * hidden), 32),
        vocab=integer(config, "vocab_size"),
        context=integer(config, "max_position_embeddings", 2048),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        layers=(Layer(),) * integer(config, "num_hidden_layers"),
        norm=Norm(design.epsilon(config, "layer_norm_epsilon", 1e-5), "layer", bias=True),
        ropes=(rope_of(with_fields(config, **sizes)),),
        tied=flag(config, "tie_word_embeddings", True),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=biased,
        arrangement="before" if not parallel else "parallel" if norms == 2 else "parallel shared",
        gated=False,
        activation=design.activation(config, "activation", default="gelu"),
    )
    names = {"self_attn.o_proj": "self_attention.dense", **_MLP}
    if made.arrangement == "parallel":
        names.update({"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"})
    else:
        names.update({norm: norm for norm in design.NORMS[made.arrangement]})
    sources = _renamed(made, "transformer.h", names)
    shared = heads // kv_heads  # a group lies together: its queries, its key, its value
    step = (shared + 2) * dim
    queries = [(group * step, shared * dim) for group in range(kv_heads)]
    keys, values = ([(group * step + (shared + i) * dim, dim) for group in range(kv_heads)] for i in (0, 1))
    _fused(made, sources, "transformer.h", "self_attention.query_key_value", (*queries, *keys, *values))
    sources[EMBEDDING] = ("transformer.word_embeddings.weight",)
    sources.update({f"model.norm.{kind}": (f"transformer.ln_f.{kind}",) for kind in ("weight", "bias")})
    if made.tied:
        sources[HEAD] = sources[EMBEDDING]
    return replace(made, sources=sources)


def gpt2(config: Mapping[str, Any]) -> Design:
    """A table of positions; matrices are stored transposed."""
    design.refuse(config, add_cross_attention=False, scale_attn_by_inverse_layer_idx=False)
    hidden = multiple(config, "n_embd", integer(config, "n_embd", 768), 32)
    sizes = {"num_attention_heads": integer(config, "n_head", 12)}
    heads, _, dim = design.head_sizes(sizes, hidden)
    if heads * dim != hidden:
        raise ConfigError(f"config.json: n_head {heads} does not divide n_embd {hidden}")
    context = integer(config, "n_positions", 1024)
    no_ropes: tuple[Rope, ...] = ()
    made = Design(
        hidden=hidden,
        intermediate=multiple(config, "n_inner", integer(config, "n_inner", 4 * hidden), 32),
        vocab=integer(config, "vocab_size", 50257),
        context=context,
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        layers=(Layer(rope=None),) * integer(config, "n_layer", 12),
        norm=Norm(design.epsilon(config, "layer_norm_epsilon", 1e-5), "layer", bias=True),
        ropes=no_ropes,
        tied=flag(config, "tie_word_embeddings", True),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        scores=None if flag(config, "scale_attn_weights", True) else 1.0,
        gated=False,
        activation=design.activation(config, "activation_function", default="gelu_new"),
        positions=context,
    )
    norms = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
    sources = _renamed(made, "transformer.h", norms)
    matrices = {
        "self_attn.qkv_proj": "attn.c_attn",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    }
    for index, prefix in enumerate(made.prefixes()):
        for name, tensor in matrices.items():
            stored = f"transformer.h.{index}.{tensor}"
            sources[f"{prefix}{name}.weight"] = (Piece(f"{stored}.weight", transposed=True),)
            sources[f"{prefix}{name}.bias"] = (f"{stored}.bias",)
    sources.update({EMBEDDING: ("transformer.wte.weight",), POSITIONS: ("transformer.wpe.weight",)})
    sources.update({f"model.norm.{kind}": (f"transformer.ln_f.{kind}",) for kind in ("weight", "bias")})
    if made.tied:
        sources[HEAD] = sources[EMBEDDING]
    return replace(made, sources=sources)


_MLP = {"mlp.up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h"}


def _renamed(made: Design, layers: str, names: Mapping[str, str]) -> Sources:
    """Weights and biases of modules that the checkpoint calls something else. layers: how it begins their names."""
    return {
        f"{prefix}{name}.{kind}": (f"{layers}.{index}.{tensor}.{kind}",)
        for index, prefix in enumerate(made.prefixes())
        for name, tensor in names.items()
        for kind in ("weight", "bias")
    }


def _fused(made: Design, sources: Sources, layers: str, tensor: str, ranges: tuple[tuple[int, int], ...]) -> None:
    """Queries, keys and values as rows of one tensor in another order."""
    for index, prefix in enumerate(made.prefixes()):
        for kind in ("weight", "bias"):
            piece = Piece(f"{layers}.{index}.{tensor}.{kind}", ranges=ranges)
            sources[f"{prefix}self_attn.qkv_proj.{kind}"] = (piece,)
