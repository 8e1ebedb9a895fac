"""Random-weight Llama and Mistral checkpoints, drawn from a seed: small, and each with something special."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

SEED = 20240607
N_TOKENS = 150
"""More than two KV blocks."""
POSITIONS = (0, 1, 31, 63, 64, 127, N_TOKENS - 1)
"""Whose logits are stored."""

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama-one-group": {**BASE, "num_key_value_heads": 4, "torch_dtype": "bfloat16"},
    "llama-tied-1009": {**BASE, "tie_word_embeddings": True, "vocab_size": 1009, "torch_dtype": "float16"},
    "llama-wide-heads": {**BASE, "head_dim": 32, "num_key_value_heads": 1, "intermediate_size": 160},
    "llama-linear": {**BASE, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-dynamic": {**BASE, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama-llama3": {**BASE, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama-yarn": {**BASE, "rope_scaling": YARN},
    "llama-rope-parameters": {
        **{key: value for key, value in BASE.items() if key != "rope_theta"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
    },
    "llama-biases": {**BASE, "attention_bias": True, "mlp_bias": True},
    "mistral-window": {
        **BASE,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 40,
        "torch_dtype": "bfloat16",
    },
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama-family checkpoint."""
    hidden, intermediate, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    linears = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        found[f"{prefix}.input_layernorm.weight"] = found[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for name, shape in linears.items():
            found[f"{prefix}.{name}.weight"] = shape
            if config.get("attention_bias" if name.startswith("self_attn") else "mlp_bias"):
                found[f"{prefix}.{name}.bias"] = shape[:1]
    return found


def weights(config: dict[str, Any], seed: int = SEED) -> dict[str, np.ndarray]:
    """Tensors in the configuration's torch_dtype: normal with deviation 0.15, norms around 1."""
    dtype = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}.get(config.get("torch_dtype", ""), np.float32)
    generator = np.random.Generator(np.random.PCG64(seed))
    tensors = {}
    for name, shape in shapes(config).items():
        values = generator.standard_normal(shape, np.float32) * np.float32(0.15)
        tensors[name] = (values + (1 if "norm" in name else 0)).astype(dtype)
    return tensors


def tokens(config: dict[str, Any], n: int = N_TOKENS) -> list[int]:
    """A fixed pseudo-random token list."""
    return [int(t) for t in np.random.Generator(np.random.PCG64(7)).integers(0, config["vocab_size"], n)]


def byte_tokenizer() -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE without merges: 256 bytes, <s> 256, </s> 257."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    symbols = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256, "content": "<s>", **special}, {"id": 257, "content": "</s>", **special}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {symbols[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
)


def write_checkpoint(directory: Path, config: dict[str, Any], seed: int = SEED) -> Path:
    """A complete checkpoint directory with a byte-level tokenizer and a chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    (directory / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    tokenizer_config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    save_file(weights(config, seed), directory / "model.safetensors", metadata={"format": "pt"})
    return directory
