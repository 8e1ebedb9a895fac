"""RWKV-7's answers: from its authors' package (`rwkv`, float32) where that takes the configuration, and from the
equations of the paper (arXiv:2503.14456) in float64, which must agree with it there.

transformers has no RWKV-7; checkpoints are named as flash-linear-attention saves them.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

LAYER = {
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn.g_norm": "att.ln_x",
    "attn.r_proj": "att.receptance",
    "attn.k_proj": "att.key",
    "attn.v_proj": "att.value",
    "attn.o_proj": "att.output",
    "ffn.key": "ffn.key",
    "ffn.value": "ffn.value",
}
"""Of a layer: names here -> the authors'."""


def shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """The tensors of a checkpoint by name."""
    hidden, dim, width, vocab = (config[k] for k in ("hidden_size", "head_dim", "intermediate_size", "vocab_size"))
    kinds = ("weight", "bias") if config["norm_bias"] else ("weight",)
    ranks = {
        letter: config[f"{name}_low_rank_dim"] for letter, name in zip("wvag", ("decay", "v", "a", "gate"), strict=True)
    }
    made: dict[str, list[int]] = {"model.embeddings.weight": [vocab, hidden]}
    norms = ["model.norm", *(["model.layers.0.pre_norm"] if config["norm_first"] else [])]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        norms += [f"{at}attn_norm", f"{at}ffn_norm"]
        made |= {f"{at}attn.x_{letter}": [1, 1, hidden] for letter in "rwkvag"}
        made |= {f"{at}attn.k_k": [hidden], f"{at}attn.k_a": [hidden], f"{at}attn.r_k": [hidden // dim, dim]}
        made |= {f"{at}attn.{letter}_proj.weight": [hidden, hidden] for letter in "rkvo"}
        made |= {f"{at}attn.g_norm.{kind}": [hidden] for kind in ("weight", "bias")}
        for letter, rank in ranks.items():
            if layer or letter != "v":
                made[f"{at}attn.{letter}_lora.lora.0.weight"] = [rank, hidden]
                made[f"{at}attn.{letter}_lora.lora.2.weight"] = [hidden, rank]
                if letter != "g":
                    made[f"{at}attn.{letter}_lora.lora.2.bias"] = [hidden]
        made |= {f"{at}ffn.x_k": [hidden], f"{at}ffn.key.weight": [width, hidden]}
        made[f"{at}ffn.value.weight"] = [hidden, width]
    made |= {f"{norm}.{kind}": [hidden] for norm in norms for kind in kinds}
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = [vocab, hidden]
    return dict(sorted(made.items()))


def saved(fields: dict[str, Any]) -> dict[str, Any]:
    """{"config": …, "tensors": name -> shape} of a configuration."""
    config = {"architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "hidden_act": "sqrelu", **fields}
    full = {"norm_bias": True, "norm_first": True, "tie_word_embeddings": False, "norm_eps": 1e-5} | config
    return {"config": config, "tensors": shapes(full)}


def answer(folder: Path, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, vocab) and last hidden states (n, hidden), float32."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    logits, hidden = equations(config, tensors, ids)
    if config["head_dim"] == 64 and config.get("norm_first", True) and config.get("norm_bias", True):
        theirs = official(tensors, ids)
        worst = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(theirs, (logits, hidden), strict=True)]
        print(f"the authors' package against the equations in float64: {max(worst):.1e}")
        assert max(worst) < 1e-5
        return theirs
    return logits.astype(np.float32), hidden.astype(np.float32)


def official(tensors: dict[str, np.ndarray], ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What the authors' package computes: a prompt at once, then token by token. It has epsilons of its own, 1e-5, and
    heads of 64."""
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
    import torch
    from rwkv.model import RWKV

    head = tensors.get("lm_head.weight", tensors["model.embeddings.weight"])
    made = []
    for last in (head, np.eye(head.shape[1], dtype=np.float32)):
        with tempfile.TemporaryDirectory() as folder:
            weights = {name: torch.from_numpy(value.copy()) for name, value in _theirs(tensors, last).items()}
            torch.save(weights, f"{folder}/model.pth")
            model: Any = RWKV(model=f"{folder}/model", strategy="cpu fp32")
        half = len(ids) // 2
        first, state = model.forward(ids[:half], None, full_output=True)
        rows = [first.numpy()]
        for token in ids[half:]:
            row, state = model.forward([token], state)
            rows.append(row.numpy()[None])
        made.append(np.concatenate(rows))
    return made[0], made[1]


def _theirs(tensors: dict[str, np.ndarray], head: np.ndarray) -> dict[str, np.ndarray]:
    """The authors' names and layouts. `emb.weight` first: they read the sizes from it."""
    made = {"emb.weight": tensors["model.embeddings.weight"], "head.weight": head}
    for kind in ("weight", "bias"):
        made[f"ln_out.{kind}"] = tensors[f"model.norm.{kind}"]
        made[f"blocks.0.ln0.{kind}"] = tensors[f"model.layers.0.pre_norm.{kind}"]
    for name, value in tensors.items():
        if not name.startswith("model.layers.") or "pre_norm" in name:
            continue
        _, _, layer, rest = name.split(".", 3)
        stem, _, kind = rest.rpartition(".")
        if "_lora" in rest:
            letter, which = rest[5], {"lora.0.weight": 1, "lora.2.weight": 2, "lora.2.bias": 0}[rest[12:]]
            made[f"blocks.{layer}.att.{letter}{which}"] = value.T if which else value
        elif stem in LAYER:
            made[f"blocks.{layer}.{LAYER[stem]}.{kind}"] = value
        else:
            made[f"blocks.{layer}.{rest.replace('attn.', 'att.')}"] = value
    return made


def equations(config: dict[str, Any], tensors: dict[str, np.ndarray], ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, vocab) and last hidden states (n, hidden) in float64, token by token."""
    weights = {name: value.astype(np.float64).squeeze() for name, value in tensors.items()}
    epsilon, dim = config.get("norm_eps", 1e-5), config["head_dim"]
    heads = config["hidden_size"] // dim

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean()
        return x / np.sqrt((x * x).mean() + epsilon) * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    def low_rank(x: np.ndarray, at: str, squash: Any) -> np.ndarray:
        y = weights[f"{at}.lora.2.weight"] @ squash(weights[f"{at}.lora.0.weight"] @ x)
        return y + weights.get(f"{at}.lora.2.bias", 0.0)

    def same(x: np.ndarray) -> np.ndarray:
        return x

    zeros = np.zeros(config["hidden_size"])
    before = {(layer, half): zeros for layer in range(config["num_hidden_layers"]) for half in "af"}
    states = [np.zeros((heads, dim, dim)) for _ in range(config["num_hidden_layers"])]
    rows = []
    for token in ids:
        x = weights["model.embeddings.weight"][token]
        if config.get("norm_first", True):
            x = norm(x, "model.layers.0.pre_norm")
        first = zeros
        for layer, state in enumerate(states):
            at, attn = f"model.layers.{layer}", f"model.layers.{layer}.attn"
            h = norm(x, f"{at}.attn_norm")
            move, before[layer, "a"] = before[layer, "a"] - h, h
            r, w, k, v, a, g = (h + move * weights[f"{attn}.x_{letter}"] for letter in "rwkvag")
            value = weights[f"{attn}.v_proj.weight"] @ v
            if layer:
                value = value + (first - value) * sigmoid(low_rank(v, f"{attn}.v_lora", same))
            else:
                first = value
            r = weights[f"{attn}.r_proj.weight"] @ r
            k = weights[f"{attn}.k_proj.weight"] @ k
            decay = np.exp(-np.exp(-0.5) * sigmoid(low_rank(w, f"{attn}.w_lora", np.tanh)))
            a = sigmoid(low_rank(a, f"{attn}.a_lora", same))
            g = low_rank(g, f"{attn}.g_lora", sigmoid)
            removed = (k * weights[f"{attn}.k_k"]).reshape(heads, dim)
            removed = removed / np.linalg.norm(removed, axis=1, keepdims=True)
            k = k * (1 + (a - 1) * weights[f"{attn}.k_a"])
            r, k, decay, a, value_ = (each.reshape(heads, dim) for each in (r, k, decay, a, value))
            taken = np.einsum("hij,hj->hi", state, removed)
            state[:] = (
                state * decay[:, None] - taken[:, :, None] * (removed * a)[:, None] + value_[:, :, None] * k[:, None]
            )
            y = np.einsum("hij,hj->hi", state, r)
            y = y - y.mean(axis=1, keepdims=True)
            y = (y / np.sqrt((y * y).mean(axis=1, keepdims=True) + dim * epsilon)).reshape(-1)
            y = y * weights[f"{attn}.g_norm.weight"] + weights[f"{attn}.g_norm.bias"]
            bonus = (r * k * weights[f"{attn}.r_k"].reshape(heads, dim)).sum(axis=1, keepdims=True) * value_
            x = x + weights[f"{attn}.o_proj.weight"] @ ((y + bonus.reshape(-1)) * g)
            h = norm(x, f"{at}.ffn_norm")
            move, before[layer, "f"] = before[layer, "f"] - h, h
            h = weights[f"{at}.ffn.key.weight"] @ (h + move * weights[f"{at}.ffn.x_k"])
            x = x + weights[f"{at}.ffn.value.weight"] @ np.maximum(h, 0) ** 2
        rows.append(norm(x, "model.norm"))
    hidden = np.stack(rows)
    return hidden @ weights.get("lm_head.weight", weights["model.embeddings.weight"]).T, hidden
