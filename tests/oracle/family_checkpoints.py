"""The random checkpoints of tests/data/families.json, and what is kept of their logits. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.oracle.family_configurations import N_PROMPT, N_TOKENS

DATA = Path(__file__).parents[1] / "data" / "families.json"
LOGITS = Path(__file__).parents[1] / "data" / "families.npz"
EMBEDDINGS = Path(__file__).parents[1] / "data" / "family_embeddings.npz"
"""Of each family (2, hidden): the mean of the last hidden states over the text, and the last token's."""
SEED = 20261126
WHOLE = (0, N_PROMPT - 1, N_TOKENS - 1)
"""Positions of which every logit is kept; of all others, those of the ids in `sample`."""


def sample(vocab: int) -> np.ndarray:
    """Sixteen ids, the last among them."""
    return np.linspace(0, vocab - 1, 16).astype(np.int64)


def text(checkpoint: dict[str, Any], n: int = N_TOKENS) -> list[int]:
    """A fixed pseudo-random token list."""
    vocab = checkpoint["config"]["vocab_size"]
    return [int(t) for t in np.random.Generator(np.random.PCG64(7)).integers(0, vocab, n)]


def tensors(checkpoint: dict[str, Any]) -> dict[str, np.ndarray]:
    """Normal values, so that rows keep their size through a layer; weights of norms lie around what they add to."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    zero_centred = checkpoint["config"]["model_type"].startswith("gemma")
    made = {}
    for name, shape in sorted(checkpoint["tensors"].items()):
        values = generator.standard_normal(shape, np.float32)
        if name.endswith(("A_log", "dt_bias", "dt_proj.bias")):  # rates and time steps as networks have them
            values = values * np.float32(0.5) + np.float32(0.5 if name.endswith("A_log") else -2.0)
        elif name.endswith(("w_lora.lora.2.bias", ".x_r", ".x_w", ".x_k", ".x_v", ".x_a", ".x_g", ".k_k", ".k_a")):
            # decays that let a text be remembered, shares between 0 and 1, keys that keep their size
            low, wide = (-4.0, 2.0) if name.endswith("bias") else (0.8, 0.2) if ".k_" in name else (0.5, 0.25)
            values = values * np.float32(wide) + np.float32(low)
        elif len(shape) == 1:
            is_norm = name.endswith("weight")
            values = values * np.float32(0.15) + np.float32(is_norm and not zero_centred)
        else:
            values = values * np.float32(0.3 if "emb" in name or "wte" in name else 1.3 / shape[-1] ** 0.5)
        made[name] = values.astype(np.float32)
    return made


def write_tensors(folder: Path, checkpoint: dict[str, Any]) -> None:
    save_file(tensors(checkpoint), folder / "model.safetensors", metadata={"format": "pt"})


def write_checkpoint(folder: Path, name: str) -> dict[str, Any]:
    """A checkpoint directory of tests/data/families.json, without a tokenizer. Returns its entry."""
    checkpoint: dict[str, Any] = json.loads(DATA.read_text())[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint["config"]))
    write_tensors(folder, checkpoint)
    return checkpoint
