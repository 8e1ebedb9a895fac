"""Small configurations of every family, each with something odd: what it has that Llama has not, on and off.

Names are FAMILY-WHAT. Sizes are small; windows and original contexts are shorter than the text.
"""

from __future__ import annotations

from typing import Any

N_PROMPT, N_STEPS = 86, 64
"""Tokens read at once, and then one by one: together more than two KV blocks."""
N_TOKENS = N_PROMPT + N_STEPS

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Groups of three query heads; rows of the head that no row group divides."""
ONE_KV = {"num_key_value_heads": 1, "head_dim": 32, "num_attention_heads": 5}
"""Five heads share one, and together they are wider than the hidden rows."""
THREE = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def longrope(half: int, **more: Any) -> dict[str, Any]:
    """LongRoPE with a factor of its own for each of `half` frequencies."""
    factors = {"short_factor": [1.0 + i / half for i in range(half)], "long_factor": [2.0 + i for i in range(half)]}
    return {"rope_type": "longrope", "rope_theta": 10000.0, **factors, **more}


GPT2: dict[str, Any] = {
    "n_embd": 96,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 256,
    **{key: SIZES[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")},
}
FALCON: dict[str, Any] = {
    "ffn_hidden_size": 160,
    "num_kv_heads": None,
    **{key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_key_value_heads")},
}

MAMBA: dict[str, Any] = {
    key: SIZES[key]
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
}
"""Time steps of six numbers, which no vector has."""
MAMBA2: dict[str, Any] = {**MAMBA, "num_heads": 6, "head_dim": 32, "n_groups": 2, "state_size": 24}

RWKV: dict[str, Any] = {
    "hidden_size": 192,
    "head_dim": 64,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "decay_low_rank_dim": 24,
    "a_low_rank_dim": 20,
    "v_low_rank_dim": 5,
    "gate_low_rank_dim": 32,
    "vocab_size": 131,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Three heads; ranks that no vector has."""

MOE = {"num_experts": 17, "num_experts_per_tok": 3, "moe_intermediate_size": 32}

Configuration = tuple[str, dict[str, Any]]
"""transformers' model type, or "rwkv7", and what differs from its defaults."""

FAMILIES: dict[str, Configuration] = {
    "mistral-window": ("mistral", {**SIZES, **UNTIED, "sliding_window": 40}),
    "mistral-tied": ("mistral", {**SIZES, **TIED, **ONE_KV, "sliding_window": None}),
    "mistral-one-block": ("mistral", {**SIZES, "sliding_window": 64, "num_key_value_heads": 6, "head_dim": 48}),
    "qwen2-tied": ("qwen2", {**SIZES, **TIED}),
    "qwen2-windows": (
        "qwen2",
        {**SIZES, **UNTIED, "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1},
    ),
    "qwen2-yarn": (
        "qwen2",
        {**SIZES, **UNTIED, "num_attention_heads": 3, "num_key_value_heads": 1, "rope_parameters": YARN},
    ),
    "qwen3-tied": ("qwen3", {**SIZES, **TIED, "head_dim": 32}),
    "qwen3-biases": ("qwen3", {**SIZES, **ONE_KV, **UNTIED, "attention_bias": True}),
    "qwen3-yarn": ("qwen3", {**SIZES, **UNTIED, "head_dim": 16, "rope_parameters": YARN}),
    "smollm3-tied": ("smollm3", {**SIZES, **TIED, "num_hidden_layers": 5}),
    "smollm3-list": (
        "smollm3",
        {**SIZES, **UNTIED, "no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 50},
    ),
    "smollm3-biases": (
        "smollm3",
        {**SIZES, **ONE_KV, **TIED, "attention_bias": True, "mlp_bias": True, "no_rope_layer_interval": 2},
    ),
    "phi3-plain": ("phi3", {**SIZES, **UNTIED, "sliding_window": 40}),
    "phi3-long": (
        "phi3",
        {**SIZES, **UNTIED, "original_max_position_embeddings": 64, "rope_parameters": longrope(8)},
    ),
    "phi3-short": (
        "phi3",
        {
            **SIZES,
            **TIED,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 192,
            "rope_parameters": longrope(12, partial_rotary_factor=0.75),
        },
    ),
    "olmo2-plain": ("olmo2", {**SIZES, **UNTIED}),
    "olmo2-biases": (
        "olmo2",
        {**SIZES, **TIED, "num_attention_heads": 3, "num_key_value_heads": 1, "attention_bias": True},
    ),
    "olmo2-linear": ("olmo2", {**SIZES, **UNTIED, "num_key_value_heads": 6, "rope_parameters": LINEAR}),
    "granite-tied": (
        "granite",
        {
            **SIZES,
            **TIED,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "granite-biases": (
        "granite",
        {
            **SIZES,
            **UNTIED,
            "attention_bias": True,
            "mlp_bias": True,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
        },
    ),
    "granite-llama3": (
        "granite",
        {**SIZES, **TIED, "logits_scaling": 3.0, "attention_multiplier": 0.2, "rope_parameters": LLAMA3},
    ),
    "gemma-tied": ("gemma", {**SIZES, "head_dim": 32}),
    "gemma-untied": ("gemma", {**SIZES, **ONE_KV, **UNTIED, "attention_bias": True}),
    "gemma-wide": ("gemma", {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256}),
    "gemma2-windows": ("gemma2", {**SIZES, "head_dim": 32, "sliding_window": 40, "query_pre_attn_scalar": 24}),
    "gemma2-caps": (
        "gemma2",
        {**SIZES, **THREE, "sliding_window": 70, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma2-no-caps": (
        "gemma2",
        {
            **SIZES,
            **UNTIED,
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "sliding_window": 33,
        },
    ),
    "gemma3-pattern": ("gemma3_text", {**SIZES, "num_hidden_layers": 7, "head_dim": 32, "sliding_window": 40}),
    "gemma3-scaled": (
        "gemma3_text",
        {
            **SIZES,
            **THREE,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 64,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
    ),
    "gemma3-caps": (
        "gemma3_text",
        {
            **SIZES,
            **UNTIED,
            "head_dim": 48,
            "sliding_window": 30,
            "final_logit_softcapping": 4.0,
            "attention_bias": True,
        },
    ),
    "stablelm-plain": ("stablelm", {**SIZES, **UNTIED, "num_key_value_heads": 6, "head_dim": None}),
    "stablelm-biases": (
        "stablelm",
        {**SIZES, **TIED, "use_qkv_bias": True, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "stablelm-parallel": (
        "stablelm",
        {
            **SIZES,
            **UNTIED,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gpt2-tied": ("gpt2", {**GPT2}),
    "gpt2-untied": ("gpt2", {**GPT2, **UNTIED, "n_head": 3, "n_inner": 160, "activation_function": "gelu"}),
    "gpt2-unscaled": ("gpt2", {**GPT2, "n_head": 2, "scale_attn_weights": False, "n_positions": 150}),
    "gpt-neox-parallel": ("gpt_neox", {**SIZES, "num_attention_heads": 3}),
    "gpt-neox-sequential": ("gpt_neox", {**SIZES, "use_parallel_residual": False, "attention_bias": False}),
    "gpt-neox-tied": (
        "gpt_neox",
        {
            **SIZES,
            **TIED,
            "hidden_act": "gelu_new",
            "num_attention_heads": 2,
            "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5},
        },
    ),
    "falcon-multi-query": ("falcon", {**FALCON}),
    "falcon-new": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-one-norm": (
        "falcon",
        {**FALCON, **UNTIED, "new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-sequential": ("falcon", {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True}),
    "mixtral-window": ("mixtral", {**SIZES, **UNTIED, "num_local_experts": 5, "sliding_window": 40}),
    "mixtral-tied": ("mixtral", {**SIZES, **TIED, "num_local_experts": 4, "num_experts_per_tok": 3}),
    "mixtral-one": ("mixtral", {**SIZES, **ONE_KV, "num_local_experts": 3, "num_experts_per_tok": 1}),
    "olmoe-plain": ("olmoe", {**SIZES, **UNTIED, "num_experts": 18, "num_experts_per_tok": 4}),
    "olmoe-normalized": (
        "olmoe",
        {**SIZES, **TIED, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "olmoe-biases": ("olmoe", {**SIZES, **UNTIED, "num_experts": 4, "num_experts_per_tok": 4, "attention_bias": True}),
    "qwen2-moe-shared": ("qwen2_moe", {**SIZES, **UNTIED, **MOE, "shared_expert_intermediate_size": 64}),
    "qwen2-moe-some": (
        "qwen2_moe",
        {
            **SIZES,
            **TIED,
            **MOE,
            "shared_expert_intermediate_size": 96,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen2-moe-windows": (
        "qwen2_moe",
        {
            **SIZES,
            **MOE,
            "num_hidden_layers": 4,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 40,
            "max_window_layers": 3,
        },
    ),
    "qwen3-moe-plain": ("qwen3_moe", {**SIZES, **UNTIED, **MOE, "head_dim": 32}),
    "qwen3-moe-normalized": (
        "qwen3_moe",
        {**SIZES, **TIED, **MOE, **THREE, "norm_topk_prob": True, "attention_bias": True},
    ),
    "qwen3-moe-some": ("qwen3_moe", {**SIZES, **UNTIED, **MOE, "head_dim": 16, "decoder_sparse_step": 2}),
    "mamba-tied": ("mamba", {**MAMBA, "state_size": 16}),
    "mamba-untied": ("mamba", {**MAMBA, **UNTIED, "state_size": 5, "use_bias": True, "time_step_rank": 32}),
    "mamba-narrow": (
        "mamba",
        {
            **MAMBA,
            "expand": 1,
            "conv_kernel": 3,
            "use_conv_bias": False,
            "time_step_rank": 7,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "falcon-mamba-tied": ("falcon_mamba", {**MAMBA, "mixer_rms_eps": 1e-3}),
    "falcon-mamba-untied": ("falcon_mamba", {**MAMBA, **UNTIED, "state_size": 11, "use_bias": True}),
    "falcon-mamba-wide": ("falcon_mamba", {**MAMBA, "expand": 3, "conv_kernel": 2, "time_step_rank": 16}),
    "mamba2-groups": ("mamba2", {**MAMBA2, "use_bias": True}),
    "mamba2-tied": ("mamba2", {**MAMBA2, **TIED, "num_heads": 12, "head_dim": 16, "n_groups": 1, "state_size": 16}),
    "mamba2-limits": (
        "mamba2",
        {
            **MAMBA2,
            "num_heads": 4,
            "head_dim": 48,
            "n_groups": 4,
            "conv_kernel": 5,
            "use_conv_bias": False,
            "time_step_limit": [0.05, 0.3],
            "chunk_size": 32,
        },
    ),
    "rwkv7-plain": ("rwkv7", RWKV),
    "rwkv7-one-head": (
        "rwkv7",
        {**RWKV, **TIED, "hidden_size": 64, "num_hidden_layers": 5, "intermediate_size": 96, "gate_low_rank_dim": 96},
    ),
    "rwkv7-narrow": (
        "rwkv7",
        {**RWKV, "hidden_size": 96, "head_dim": 32, "norm_eps": 1e-3, "norm_bias": False, "norm_first": False},
    ),
    "rwkv7-many-heads": ("rwkv7", {**RWKV, "head_dim": 16, "norm_eps": 1e-4, "num_hidden_layers": 2}),
}
