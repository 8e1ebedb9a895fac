"""Writes tests/data/gguf.json and tests/data/gguf/: small checkpoints, as llama.cpp's own converter makes GGUF of them.

    python -m tests.oracle.gguf LLAMA_CPP      a checkout of llama.cpp; needs torch, transformers and gguf

Of a checkpoint, config.json and shapes are kept; values are drawn from a seed wherever they are needed. The vocabulary
in the files is a placeholder: what is checked here is names, order of rows, and metadata.
"""

from __future__ import annotations

import json
import lzma
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.oracle.families import saved
from tests.oracle.family_configurations import FALCON, GPT2, LINEAR, SIZES, TIED, UNTIED, YARN, Configuration, longrope
from tests.oracle.gguf_checkpoints import DATA, FILES, write_rounded

SMALL: dict[str, Any] = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
}
ONE_DIM = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Where a head is as wide as hidden rows divided by heads."""
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": False}
WIDE_FALCON = {**FALCON, "hidden_size": 64, "vocab_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 2048}
CHECKPOINTS: dict[str, Configuration] = {
    "llama-untied": ("llama", {**SMALL, **UNTIED, "attention_bias": True, "mlp_bias": True}),
    "llama-yarn": ("llama", {**SMALL, **TIED, "rope_parameters": YARN}),
    "llama3": (
        "llama",
        {
            **SMALL,
            **TIED,
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "mistral": ("mistral", {**SMALL, **UNTIED, "sliding_window": None}),
    "mixtral": ("mixtral", {**SMALL, **UNTIED, "num_local_experts": 3, "sliding_window": None}),
    "qwen2": ("qwen2", {**SMALL, **ONE_DIM, **TIED, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {**SMALL, **UNTIED}),
    "qwen2-moe": ("qwen2_moe", {**SMALL, **ONE_DIM, **UNTIED, **MOE, "shared_expert_intermediate_size": 64}),
    "qwen3-moe": ("qwen3_moe", {**SMALL, **UNTIED, **MOE, "norm_topk_prob": True}),
    "olmoe": ("olmoe", {**SMALL, **ONE_DIM, **UNTIED, "num_experts": 3, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", {**SMALL, **ONE_DIM, **TIED, "num_hidden_layers": 5}),
    "phi3": ("phi3", {**SMALL, **ONE_DIM, **UNTIED, "sliding_window": 40}),
    "phi3-long": (
        "phi3",
        {
            **SMALL,
            **ONE_DIM,
            **TIED,
            "sliding_window": None,
            "original_max_position_embeddings": 64,
            "rope_parameters": longrope(6, partial_rotary_factor=0.75),
        },
    ),
    "granite": (
        "granite",
        {
            **SMALL,
            **ONE_DIM,
            **TIED,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "olmo2": ("olmo2", {**SMALL, **ONE_DIM, **UNTIED, "rope_parameters": LINEAR}),
    "gemma": ("gemma", {**SMALL}),
    "gemma2": ("gemma2", {**SMALL, "sliding_window": 40, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {**SMALL, "num_hidden_layers": 7, "sliding_window": 40, "query_pre_attn_scalar": 16}),
    "stablelm": ("stablelm", {**SMALL, **ONE_DIM, **UNTIED, "head_dim": None, "use_qkv_bias": True}),
    "stablelm-parallel": (
        "stablelm",
        {**SMALL, **ONE_DIM, **UNTIED, "head_dim": None, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "gpt2": ("gpt2", {**GPT2, "n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 96}),
    "gpt-neox": ("gpt_neox", {**SMALL, "num_attention_heads": 2}),
    "falcon": ("falcon", {**WIDE_FALCON, "num_attention_heads": 4, "ffn_hidden_size": 256}),
    "falcon-new": (
        "falcon",
        {
            **WIDE_FALCON,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "ffn_hidden_size": 256,
            "new_decoder_architecture": True,
        },
    ),
}


def convert(folder: Path, file: Path) -> None:
    """Runs llama.cpp's converter, with a placeholder for the vocabulary and what transformers 5 renamed."""
    import gguf
    from conversion import ModelBase, get_model_class

    config = ModelBase.load_hparams(folder, False)
    config |= {"n_ctx": config.get("n_positions"), "rotary_pct": 0.25}
    if config["model_type"] == "falcon" and not config["new_decoder_architecture"]:
        config["num_kv_heads"] = 1
    original = get_model_class(config["architectures"][0])

    class Converter(original):  # type: ignore[misc, valid-type]
        model_arch = original.model_arch

        def set_vocab(self) -> None:
            n = config["vocab_size"]
            self.gguf_writer.add_tokenizer_model("gpt2")
            self.gguf_writer.add_tokenizer_pre("gpt-2")
            self.gguf_writer.add_token_list([chr(0x21 + index) for index in range(n - 2)] + ["Ġ", "AB"])
            self.gguf_writer.add_token_types([1] * n)
            self.gguf_writer.add_token_merges(["A B"])

        def _stack_qk_norm(self, *args: Any) -> Any:  # a generator there, whose caller throws it away
            return list(original._stack_qk_norm(self, *args))

        def modify_tensors(self, data: Any, name: str, layer: int | None) -> Iterator[Any]:
            if "_layernorm.norms." not in name:
                yield from original.modify_tensors(self, data, name, layer)
                return
            generator = original.modify_tensors(self, data, name, layer)
            try:
                while True:
                    yield next(generator)
            except StopIteration as stop:
                yield from stop.value or ()

    n_tokens = {f"t{i}": i for i in range(config["vocab_size"])}  # Gemma 3's converter counts them
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": n_tokens}, "added_tokens": []}))
    with torch.inference_mode():
        Converter(folder, gguf.LlamaFileType.MOSTLY_F16, file, eager=True, hparams=config).write()


def main() -> None:
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    torch.manual_seed(0)
    FILES.mkdir(exist_ok=True)
    checkpoints = {}
    for name, (model_type, fields) in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as work:
            folder, file = Path(work) / "model", Path(work) / "model.gguf"
            checkpoints[name] = saved(model_type, fields, folder)
            write_rounded(folder, checkpoints[name])
            convert(folder, file)
            packed = lzma.compress(file.read_bytes(), preset=9)
        (FILES / f"{name}.gguf.xz").write_bytes(packed)
        print(f"{name}: {len(packed)} bytes")
    DATA.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in checkpoints.items()) + "\n}\n")


if __name__ == "__main__":
    main()
