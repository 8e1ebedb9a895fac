"""What transformers computes, operation by operation, in the order of a plan: for scheme f32, within a tolerance.

Needs torch and transformers, which edgellm itself does not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile import reference
from crosscompile.checkpoint import read_config
from crosscompile.reference_steps import Noted, Notes
from edgellm.errors import ModelError, UsageError


def transformers_values(checkpoint: Path, tokens: Sequence[int], scheme: reference.Scheme) -> Notes:
    """Runs the checkpoint in float32 on the CPU and keeps what every operation computed.

    Raises UsageError where torch is not installed, ModelError where the model is none of the Llama family.
    """
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"--reference transformers needs {' and '.join(missing)}: pip install torch transformers")
    known = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
    if set(read_config(checkpoint).get("architectures") or ()) - set(known):
        raise ModelError(f"--reference transformers knows {', '.join(known)}; compare with --reference host")
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    seen: dict[tuple[Any, str], np.ndarray] = {}

    def keep(module: Any, when: str, value: Any) -> None:
        tensors = value if isinstance(value, tuple) else (value,)
        seen[module, when] = np.concatenate([np.asarray(t.detach())[0] for t in tensors], -1)

    def watch(module: Any) -> None:
        module.register_forward_pre_hook(lambda m, inputs: keep(m, "in", inputs[0]) if inputs else None)
        module.register_forward_hook(lambda m, inputs, output: keep(m, "out", output))

    try:
        base, head = model.model, model.lm_head
        parts = [base.embed_tokens, base.rotary_emb, base.norm, head]
        for layer in base.layers:
            attention, mlp = layer.self_attn, layer.mlp
            parts += [layer, layer.input_layernorm, layer.post_attention_layernorm, attention.o_proj, mlp.down_proj]
            parts += [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    except AttributeError as error:
        raise ModelError(f"--reference transformers knows the Llama family only: {error}") from error
    for part in parts:
        watch(part)
    with torch.inference_mode():
        model(torch.tensor([list(tokens)]), use_cache=False)
    return _notes(model, seen, scheme)


def _notes(model: Any, seen: dict[tuple[Any, str], np.ndarray], scheme: reference.Scheme) -> Notes:
    base = model.model
    n = len(seen[base.embed_tokens, "out"])
    rotary = seen[base.rotary_emb, "out"]  # cosines of both halves, which are the same, then sines
    half = rotary.shape[1] // 4
    cosine, sine = rotary[:, :half], rotary[:, 2 * half : 3 * half]
    body = [
        Noted("rope_table", (np.concatenate((cosine, sine), -1),)),
        Noted("embed", (seen[base.embed_tokens, "out"],)),
    ]
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = (seen[module, "out"] for module in (attention.q_proj, attention.k_proj, attention.v_proj))
        heads = [x.reshape(n, -1, 2 * half) for x in (q, k, v)]
        query, keys = (reference.rotate(x, cosine, sine) for x in heads[:2])
        ones = np.ones(keys.shape[:2], np.float32)
        gate_up = np.concatenate((seen[mlp.gate_proj, "out"], seen[mlp.up_proj, "out"]), -1)
        body += [
            Noted("rms_norm", (seen[layer.input_layernorm, "out"],)),
            Noted("linear", (np.concatenate((q, k, v), -1),)),
            Noted("rope_append", (query.reshape(n, -1), (keys, ones), (heads[2], ones))),
            Noted("attention", (seen[attention.o_proj, "in"],)),
            Noted("linear", (seen[layer.post_attention_layernorm, "in"],)),
            Noted("rms_norm", (seen[layer.post_attention_layernorm, "out"],)),
            Noted("linear", (gate_up,)),
            Noted("silu_mul", (seen[mlp.down_proj, "in"],)),
            Noted("linear", (seen[layer, "out"],)),
        ]
    head = [
        Noted("gather", (seen[base.norm, "in"],)),
        Noted("rms_norm", (seen[base.norm, "out"],)),
        Noted("linear", (seen[model.lm_head, "out"],)),
    ]
    return Notes(scheme, body, head)
