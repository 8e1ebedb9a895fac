"""Writes tests/data/rope.json: transformers' inverse frequencies and attention scaling of RoPE configurations."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

OUTPUT = Path(__file__).parents[1] / "data" / "rope.json"

BASE: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CASES: list[dict[str, Any]] = [
    BASE,
    {**BASE, "rope_theta": 500000.0},
    {**BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    {**BASE, "head_dim": 128, "rope_scaling": {"type": "linear", "factor": 2.5}},
    {**BASE, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {**BASE, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, **LLAMA3}},
    {**BASE, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, **LLAMA3}},
    {**BASE, "rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256}},
    {**BASE, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {
        **BASE,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.8,
            "mscale_all_dim": 0.4,
            "original_max_position_embeddings": 1024,
        },
    },
    {**BASE, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5, "truncate": False}},
]


def main() -> None:
    """Regenerates the file."""
    cases = []
    for case in CASES:
        rope = LlamaRotaryEmbedding(LlamaConfig(**copy.deepcopy(case)))
        frequencies = [float(f) for f in rope.inv_freq]
        cases.append({"config": case, "inv_freq": frequencies, "scaling": float(rope.attention_scaling)})
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(cases) + "\n")
    print(f"{OUTPUT}: {len(cases)} cases, {OUTPUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
