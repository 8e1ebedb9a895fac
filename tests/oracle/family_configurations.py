"""Small configurations of every family, each with something odd: what a family has that Llama has not, turned on and off.

Names are FAMILY-WHAT. Sizes are as small as the kernels allow; windows and original contexts are shorter than the text.
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


Configuration = tuple[str, dict[str, Any]]
"""transformers' model type, and what differs from its defaults."""

FAMILIES: dict[str, Configuration] = {
    "mistral-window": ("mistral", {**SIZES, **UNTIED, "sliding_window": 40}),
    "mistral-tied": ("mistral", {**SIZES, **TIED, **ONE_KV, "sliding_window": None}),
    "mistral-one-block": ("mistral", {**SIZES, "sliding_window": 64, "num_key_value_heads": 6, "head_dim": 48}),
    "qwen2-tied": ("qwen2", {**SIZES, **TIED}),
    "qwen2-windows": (
        "qwen2",
        {**SIZES, **UNTIED, "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1},
    ),
    "qwen2-yarn": ("qwen2", {**SIZES, **UNTIED, "num_attention_heads": 3, "num_key_value_heads": 1, "rope_parameters": YARN}),
    "qwen3-tied": ("qwen3", {**SIZES, **TIED, "head_dim": 32}),
    "qwen3-biases": ("qwen3", {**SIZES, **ONE_KV, **UNTIED, "attention_bias": True}),
    "qwen3-yarn": ("qwen3", {**SIZES, **UNTIED, "head_dim": 16, "rope_parameters": YARN}),
    "smollm3-tied": ("smollm3", {**SIZES, **TIED, "num_hidden_layers": 5}),
    "smollm3-list": (
        "smollm3",
        {**SIZES, **UNTIED, "no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 50},
    ),
    "smollm3-biases": ("smollm3", {**SIZES, **ONE_KV, **TIED, "attention_bias": True, "mlp_bias": True, "no_rope_layer_interval": 2}),
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
    "olmo2-biases": ("olmo2", {**SIZES, **TIED, "num_attention_heads": 3, "num_key_value_heads": 1, "attention_bias": True}),
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
        {**SIZES, **UNTIED, "attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.5, "attention_multiplier": 0.25},
    ),
    "granite-llama3": ("granite", {**SIZES, **TIED, "logits_scaling": 3.0, "attention_multiplier": 0.2, "rope_parameters": LLAMA3}),
}
