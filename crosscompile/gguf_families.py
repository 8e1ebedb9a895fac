"""From a GGUF file's metadata to a config.json: what llama.cpp's converter wrote, read backwards.

Key names are gguf-py's (constants.py); where a family's converter writes nothing, the value is what llama.cpp's loader
assumes. Nothing is allocated for a count before the file's tensors have been seen to agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.gguf_file import GgufTensor, Value, read_rows, values

COUNT_CAP = 1 << 24
"""More than any size of a model is."""


@dataclass(frozen=True)
class Metadata:
    """The keys and tensors of a file (all parts of it), for one architecture."""

    file: Path
    keys: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        found = self.keys.get("general.architecture")
        if not isinstance(found, str):
            raise ConfigError(f"{self.file}: general.architecture is missing, so that nothing tells what network it is")
        return found

    def get(self, name: str) -> Value | None:
        """A key of the architecture."""
        return self.keys.get(f"{self.architecture}.{name}")

    def fail(self, name: str, why: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.architecture}.{name} {why}; convert the model to GGUF again")

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A count. An array with one value per layer must hold the same for all."""
        found = self.get(name)
        if isinstance(found, np.ndarray):
            if found.size == 0 or (found != found[0]).any():
                raise self.fail(name, f"differs between layers ({found[:4].tolist()}…), which is not supported")
            found = found[0].item()
        found = default if found is None else found
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= COUNT_CAP:
            raise self.fail(name, f"must be an integer from {least} to {COUNT_CAP}, not {found!r}")
        return found

    def number(self, name: str, default: float | None = None) -> float:
        found = self.get(name)
        found = default if found is None else found
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise self.fail(name, f"must be a number, not {found!r}")
        # Keys are float32: the shortest decimal that gives it is what the original configuration had.
        return float(str(np.float32(found)))

    def flag(self, name: str, default: bool) -> bool:
        found = self.get(name)
        found = default if found is None else found
        if not isinstance(found, bool):
            raise self.fail(name, f"must be true or false, not {found!r}")
        return found

    def has(self, name: str) -> bool:
        """Whether a tensor of the first layer, or one outside the layers, is there."""
        return name in self.tensors or f"blk.0.{name}" in self.tensors

    def vector(self, name: str) -> list[float] | None:
        """A small tensor's values; None where there is none."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        if len(tensor.shape) != 1 or tensor.shape[0] > 4096 or tensor.type not in ("F32", "F16"):
            raise CheckpointError(f"{tensor.file}: tensor {name!r} must be a short F32 vector; download it again")
        return [float(value) for value in values(tensor.type, read_rows(tensor, 0, 1))[0]]


Config = dict[str, Any]


def _sizes(data: Metadata) -> Config:
    """What all families have."""
    hidden, heads = data.integer("embedding_length"), data.integer("attention.head_count")
    layers = data.integer("block_count")
    if f"blk.{layers - 1}.attn_norm.weight" not in data.tensors and not data.has("post_attention_norm.weight"):
        raise data.fail("block_count", f"is {layers}, but the file has no tensors of layer {layers - 1}")
    if layers > len(data.tensors):
        raise data.fail("block_count", f"is {layers}, but the file has {len(data.tensors)} tensors")
    embedding = data.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        raise CheckpointError(
            f"{data.file}: tensor 'token_embd.weight' "
            + ("is missing" if embedding is None else f"has shape {list(embedding.shape)}")
            + f", embedding_length is {hidden}; download it again"
        )
    dim = data.integer("attention.key_length", max(hidden // heads, 1))
    if data.integer("attention.value_length", dim) != dim:
        raise data.fail("attention.value_length", "differs from key_length, which is not supported")
    if heads * dim > COUNT_CAP or heads > 4096:
        raise data.fail("attention.head_count", f"is {heads}, which is not plausible")
    return {
        "hidden_size": hidden,
        "intermediate_size": data.integer("feed_forward_length", 4 * hidden),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": data.integer("attention.head_count_kv", heads),
        "head_dim": dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": data.integer("context_length"),
        "tie_word_embeddings": not data.has("output.weight"),
        **_tokens(data),
    }


def _tokens(data: Metadata) -> Config:
    ids = {name: data.keys.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id")}
    return {name: value for name, value in ids.items() if isinstance(value, int)}


def _rope(data: Metadata, default: float = 10000.0) -> Config:
    """rope_theta and rope_scaling."""
    made: Config = {"rope_theta": data.number("rope.freq_base", default)}
    kind = data.get("rope.scaling.type")
    factors = data.vector("rope_freqs.weight")
    if factors is not None:
        made["rope_scaling"] = _llama3(factors, made["rope_theta"]) or {"rope_type": "factors", "factors": factors}
    elif kind in ("linear", "yarn"):
        scaling: Config = {"rope_type": kind, "factor": data.number("rope.scaling.factor")}
        names = {
            "original_max_position_embeddings": "original_context_length",
            "attention_factor": "yarn_attn_factor",
            "beta_fast": "yarn_beta_fast",
            "beta_slow": "yarn_beta_slow",
        }
        for name, key in names.items():
            if kind == "yarn" and data.get(f"rope.scaling.{key}") is not None:
                found = data.number(f"rope.scaling.{key}")
                scaling[name] = int(found) if name.startswith("original") else found
        made["rope_scaling"] = scaling
    elif data.get("rope.scale_linear") is not None and data.number("rope.scale_linear") != 1:
        made["rope_scaling"] = {"rope_type": "linear", "factor": data.number("rope.scale_linear")}
    elif kind not in (None, "none", "longrope"):
        raise data.fail("rope.scaling.type", f"{kind!r} is not supported; none, linear, yarn and longrope are")
    return made


def _llama3(factors: list[float], theta: float) -> Config | None:
    """Llama 3.1's parameters, if they give these factors: the converter stored only what they come to."""
    scaling = {"factor": max(factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original, dim = 8192, 2 * len(factors)
    waves = 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)
    smooth = np.clip((original / waves - 1.0) / 3.0, 0, 1)
    if not np.allclose(1 / ((1 - smooth) / scaling["factor"] + smooth), factors, rtol=1e-4):
        return None
    return {"rope_type": "llama3", **scaling, "original_max_position_embeddings": original}


def _base(data: Metadata) -> Config:
    """Llama and what differs from it in a few fields. Biases are there or not."""
    return {
        **_sizes(data),
        **_rope(data),
        "rms_norm_eps": data.number("attention.layer_norm_rms_epsilon"),
        "attention_bias": data.has("attn_q.bias"),
    }


def _llama(data: Metadata) -> Config:
    """Llama, Mistral and Mixtral are one architecture there."""
    made = {**_base(data), "mlp_bias": data.has("ffn_gate.bias")}
    if data.get("expert_count"):
        made.update(_experts(data), architectures=["MixtralForCausalLM"])
        made["num_local_experts"] = made.pop("num_experts")
    return made


def _experts(data: Metadata) -> Config:
    return {"num_experts": data.integer("expert_count"), "num_experts_per_tok": data.integer("expert_used_count")}


def _qwen2(data: Metadata) -> Config:
    return {**_base(data), "use_sliding_window": False}


def _qwen2_moe(data: Metadata) -> Config:
    made = {**_qwen2(data), **_experts(data), "norm_topk_prob": False, "qkv_bias": data.has("attn_q.bias")}
    width = data.tensors.get("blk.0.ffn_gate_exps.weight")
    shared = data.tensors.get("blk.0.ffn_gate_shexp.weight")
    for key, name, tensor in (
        ("moe_intermediate_size", "expert_feed_forward_length", width),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length", shared),
    ):
        if tensor is not None or data.get(name) is not None:
            made[key] = data.integer(name, tensor.shape[-2] if tensor is not None and len(tensor.shape) > 1 else None)
    made["mlp_only_layers"] = [
        index for index in range(made["num_hidden_layers"]) if f"blk.{index}.ffn_gate_inp.weight" not in data.tensors
    ]
    return made


def _qwen3_moe(data: Metadata) -> Config:
    return {**_qwen2_moe(data), "norm_topk_prob": True}


def _olmoe(data: Metadata) -> Config:
    return {**_base(data), **_experts(data), "norm_topk_prob": False}


def _gemma(data: Metadata) -> Config:
    return {**_base(data), "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(data: Metadata) -> Config:
    made = {**_gemma(data), "sliding_window": data.integer("attention.sliding_window", 4096)}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        made[name] = data.number(name) if data.get(name) else None
    return {**made, **_scores(data, made, largest=46)}


def _scores(data: Metadata, made: Config, largest: int) -> Config:
    """The scale of scores, which the file does not say: the largest model's differs."""
    wide = made["num_hidden_layers"] == largest
    scalar = made["hidden_size"] // made["num_attention_heads"] if wide else made["head_dim"]
    return {"query_pre_attn_scalar": scalar}


def _gemma3(data: Metadata) -> Config:
    """Every sixth layer sees all; scaling of RoPE is for those alone."""
    made = {**_gemma(data), **_rope(data, 1e6), "rope_local_base_freq": data.number("rope.freq_base_swa", 1e4)}
    n = made["num_hidden_layers"]
    pattern = data.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if pattern.size != n:
            raise data.fail("attention.sliding_window_pattern", f"has {pattern.size} values, there are {n} layers")
        limited = [bool(value) for value in pattern]
    else:
        every = data.integer("attention.sliding_window_pattern", 6)
        limited = [(index + 1) % every != 0 for index in range(n)]
    size = data.integer("attention.sliding_window", 0, least=0)
    made["layer_types"] = ["sliding_attention" if one and size else "full_attention" for one in limited]
    cap = data.get("final_logit_softcapping")
    made.update(sliding_window=size, final_logit_softcapping=data.number("final_logit_softcapping") if cap else None)
    return {**made, **_scores(data, made, largest=62)}


def _phi3(data: Metadata) -> Config:
    made = {**_base(data), "sliding_window": data.integer("attention.sliding_window", 0, least=0) or None}
    rotated = data.integer("rope.dimension_count", made["head_dim"])
    made["partial_rotary_factor"] = rotated / made["head_dim"]
    short, long = data.vector("rope_factors_short.weight"), data.vector("rope_factors_long.weight")
    if short is not None or long is not None:
        made["rope_scaling"] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        made["original_max_position_embeddings"] = data.integer("rope.scaling.original_context_length")
    return made


def _olmo2(data: Metadata) -> Config:
    if data.get("attention.sliding_window") is not None:
        raise data.fail("attention.sliding_window", "makes it OLMo 3, which is not supported")
    return _base(data)


def _granite(data: Metadata) -> Config:
    return {
        **_base(data),
        "mlp_bias": data.has("ffn_gate.bias"),
        "attention_multiplier": data.number("attention.scale", 1.0),
        "embedding_multiplier": data.number("embedding_scale", 1.0),
        "residual_multiplier": data.number("residual_scale", 1.0),
        "logits_scaling": data.number("logit_scale", 1.0),
    }


def _smollm3(data: Metadata) -> Config:
    return {**_base(data), "mlp_bias": data.has("ffn_gate.bias"), "no_rope_layer_interval": 4}


def _layer_norms(data: Metadata) -> Config:
    made = {**_sizes(data), **_rope(data), "layer_norm_eps": data.number("attention.layer_norm_epsilon")}
    made["partial_rotary_factor"] = data.integer("rope.dimension_count", made["head_dim"]) / made["head_dim"]
    return made


def _stablelm(data: Metadata) -> Config:
    return {
        **_layer_norms(data),
        "use_parallel_residual": not data.has("ffn_norm.weight"),
        "use_qkv_bias": data.has("attn_q.bias"),
        "qk_layernorm": data.has("attn_q_norm.weight"),
    }


def _gpt_neox(data: Metadata) -> Config:
    made = _layer_norms(data)
    return {
        **made,
        "rotary_pct": made.pop("partial_rotary_factor"),
        "rotary_emb_base": made["rope_theta"],
        "use_parallel_residual": data.flag("use_parallel_residual", True),
        "attention_bias": data.has("attn_qkv.bias"),
    }


def _falcon(data: Metadata) -> Config:
    """One or two norms before a block, and groups of queries where there is more than one key."""
    made = {**_sizes(data), **_rope(data), "layer_norm_epsilon": data.number("attention.layer_norm_epsilon")}
    two = data.has("attn_norm_2.weight")
    kv_heads = made["num_key_value_heads"]
    return {
        **made,
        "ffn_hidden_size": _rows(data, "ffn_up.weight") or made["intermediate_size"],  # the key is wrong there
        "num_kv_heads": kv_heads,
        "new_decoder_architecture": two or kv_heads > 1,
        "num_ln_in_parallel_attn": 2 if two else 1,
        "multi_query": kv_heads == 1,
        "bias": data.has("attn_qkv.bias"),
    }


def _rows(data: Metadata, name: str) -> int:
    """Rows of a tensor of the first layer, 0 where there is none."""
    tensor = data.tensors.get(f"blk.0.{name}")
    return tensor.n_rows if tensor is not None and len(tensor.shape) == 2 else 0


def _gpt2(data: Metadata) -> Config:
    made = _sizes(data)
    return {
        "n_embd": made["hidden_size"],
        "n_inner": made["intermediate_size"],
        "n_layer": made["num_hidden_layers"],
        "n_head": made["num_attention_heads"],
        "n_positions": made["max_position_embeddings"],
        "layer_norm_epsilon": data.number("attention.layer_norm_epsilon"),
        **{
            key: made[key]
            for key in ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")
            if key in made
        },
    }


LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Modules of a layer: there -> in the checkpoint."""
_PER_HEAD = {f"attn_{part}_norm": f"self_attn.{part}_layernorm.norms.*" for part in "qk"}
_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_AROUND = {**LLAMA, **_BEHIND, "ffn_norm": "pre_feedforward_layernorm"}
_EXPERTS = {f"ffn_{part}_exps": f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")}
_SHARED = {f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
_MIXED = {**LLAMA, **_EXPERTS, **_SHARED, "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate"}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
}
_WIDE = {"ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}
_GPT2 = {
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_NEOX = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    **_WIDE,
}
_FALCON = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    **_WIDE,
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class GgufFamily:
    """How one of llama.cpp's architectures is read.

    architecture   config.json's name of it; fields: the rest of config.json
    modules        of a layer, there -> in the checkpoint; * counts what one tensor stacks
    outer, layers  modules outside the layers, and how names of layers begin
    interleaved    a head's two rotary halves lie in pairs there: rows of queries and keys change places
    shifted        what was added to the weights of norms
    fused          queries, keys and values of one tensor: "heads" or "groups" have them together in the checkpoint
    transposed     modules whose weights the checkpoint stores (in, out)
    """

    architecture: str
    fields: Callable[[Metadata], Config]
    modules: Mapping[str, str] = field(default_factory=lambda: LLAMA)
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    layers: str = "model.layers"
    interleaved: bool = False
    shifted: float = 0.0
    fused: str = ""
    transposed: tuple[str, ...] = ()


GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("LlamaForCausalLM", _llama, {**LLAMA, **_MIXTRAL}, interleaved=True),
    "qwen2": GgufFamily("Qwen2ForCausalLM", _qwen2),
    "qwen3": GgufFamily("Qwen3ForCausalLM", _qwen2),
    "smollm3": GgufFamily("SmolLM3ForCausalLM", _smollm3, interleaved=True),
    "phi3": GgufFamily(
        "Phi3ForCausalLM", _phi3, {**LLAMA, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
    ),
    "granite": GgufFamily("GraniteForCausalLM", _granite, interleaved=True),
    "olmo2": GgufFamily("Olmo2ForCausalLM", _olmo2, {**LLAMA, **_BEHIND}),
    "gemma": GgufFamily("GemmaForCausalLM", _gemma, shifted=1.0),
    "gemma2": GgufFamily("Gemma2ForCausalLM", _gemma2, _AROUND, shifted=1.0),
    "gemma3": GgufFamily("Gemma3ForCausalLM", _gemma3, _AROUND, shifted=1.0),
    "stablelm": GgufFamily("StableLmForCausalLM", _stablelm, {**LLAMA, **_PER_HEAD}),
    "gpt2": GgufFamily(
        "GPT2LMHeadModel",
        _gpt2,
        _GPT2,
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    "gptneox": GgufFamily(
        "GPTNeoXForCausalLM",
        _gpt_neox,
        _NEOX,
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        "gpt_neox.layers",
        fused="heads",
    ),
    "falcon": GgufFamily(
        "FalconForCausalLM",
        _falcon,
        _FALCON,
        {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"},
        "transformer.h",
        fused="groups",
    ),
    "olmoe": GgufFamily("OlmoeForCausalLM", _olmoe, _MIXED),
    "qwen2moe": GgufFamily("Qwen2MoeForCausalLM", _qwen2_moe, _MIXED),
    "qwen3moe": GgufFamily("Qwen3MoeForCausalLM", _qwen3_moe, _MIXED),
}
"""llama.cpp's general.architecture -> family."""


def family_of(data: Metadata) -> GgufFamily:
    """The family of a file. ConfigError names those that there are."""
    if data.architecture not in GGUF_FAMILIES:
        raise ConfigError(
            f"{data.file}: general.architecture {data.architecture!r} is not supported as GGUF; "
            f"{', '.join(GGUF_FAMILIES)} are. Other families of `edgellm models` are read from safetensors"
        )
    family = GGUF_FAMILIES[data.architecture]
    if data.architecture == "falcon" and data.has("attn_norm_2.weight"):
        return replace(family, modules={**_FALCON, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"})
    return family


def config_of(data: Metadata) -> Config:
    """The config.json of a file. Raises ConfigError or CheckpointError."""
    family = family_of(data)
    return {"architectures": [family.architecture], **family.fields(data)}
