"""Random checkpoints in the shapes of published models, by name: MODEL is `random:SHAPE[:LAYERS]`.

Speed and memory do not depend on the values of the weights, so a benchmark needs neither a download nor a disk that
holds the model. All shapes are Llamas and have a synthetic byte-level tokenizer of the right vocabulary size.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscompile.checkpoint import RANDOM
from edgellm import cache
from edgellm.errors import ModelError

PREFIX = "random:"
_NAME = re.compile(r"random:(?P<shape>[\w.-]+)(:(?P<layers>[1-9]\d{0,2}))?")
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SEED = 0


@dataclass(frozen=True)
class Shape:
    """The fields of config.json that decide size and speed."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    tie_word_embeddings: bool


SHAPES: dict[str, Shape] = {
    "tiny": Shape(64, 2, 4, 2, 128, 512, 512, 1e4, True),
    "llama-160m": Shape(768, 12, 12, 12, 3072, 32000, 2048, 1e4, False),
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152, 8192, 1e5, True),
    "smollm2-360m": Shape(960, 32, 15, 5, 2560, 49152, 8192, 1e5, True),
    # Qwen2.5's sizes without its biases
    "qwen2.5-0.5b-like": Shape(896, 24, 14, 2, 4864, 151936, 32768, 1e6, True),
    "tinyllama-1.1b": Shape(2048, 22, 32, 4, 5632, 32000, 2048, 1e4, False),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 8192, 128256, 131072, 5e5, True),
    "llama-2-7b": Shape(4096, 32, 32, 32, 11008, 32000, 4096, 1e4, False),
}
"""From the models' config.json, Llama 3.2 without its RoPE scaling; `tiny` is nobody's."""


def is_random(model: object) -> bool:
    """Whether MODEL names a random checkpoint."""
    return str(model).startswith(PREFIX)


def make(model: str) -> tuple[Path, str]:
    """(checkpoint directory in the cache, name for people) of `random:SHAPE[:LAYERS]`. Raises ModelError."""
    match = _NAME.fullmatch(model)
    if not match or match["shape"] not in SHAPES:
        shapes = ", ".join(SHAPES)
        raise ModelError(f"{model} is no random checkpoint; write {PREFIX}SHAPE[:LAYERS] with a shape of: {shapes}")
    shape, name = SHAPES[match["shape"]], match["shape"]
    if match["layers"]:
        shape = Shape(**{**asdict(shape), "num_hidden_layers": int(match["layers"])})
        name += f"-{match['layers']}-layers"
    directory = cache.root() / "random" / name
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": _config(shape),
        "tokenizer.json": _tokenizer(shape.vocab_size),
        "tokenizer_config.json": {"bos_token": _SPECIAL[1], "eos_token": _SPECIAL[2], "add_bos_token": False},
        RANDOM: {"seed": _SEED, "tensors": {name: {"shape": s, "std": std} for name, s, std in _tensors(shape)}},
    }
    for file, content in files.items():
        _write(directory / file, json.dumps(content, ensure_ascii=False) + "\n")
    return directory, name


def _write(file: Path, text: str) -> None:
    """Leaves a file alone that says the same already: its hash is remembered by its time."""
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "head_dim": shape.hidden_size // shape.num_attention_heads,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **asdict(shape),
    }


def _tensors(shape: Shape) -> list[tuple[str, list[int], float | None]]:
    """(name, shape, standard deviation or None for a norm) of each tensor; activations keep their size."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    kv = hidden // shape.num_attention_heads * shape.num_key_value_heads
    narrow = float(hidden**-0.5)
    tensors: list[tuple[str, list[int], float | None]] = [
        ("model.embed_tokens.weight", [shape.vocab_size, hidden], 0.1)
    ]
    for index in range(shape.num_hidden_layers):
        layer = f"model.layers.{index}."
        tensors += [
            (layer + "input_layernorm.weight", [hidden], None),
            (layer + "self_attn.q_proj.weight", [hidden, hidden], narrow),
            (layer + "self_attn.k_proj.weight", [kv, hidden], narrow),
            (layer + "self_attn.v_proj.weight", [kv, hidden], narrow),
            (layer + "self_attn.o_proj.weight", [hidden, hidden], narrow),
            (layer + "post_attention_layernorm.weight", [hidden], None),
            (layer + "mlp.gate_proj.weight", [wide, hidden], narrow),
            (layer + "mlp.up_proj.weight", [wide, hidden], narrow),
            (layer + "mlp.down_proj.weight", [hidden, wide], float(wide**-0.5)),
        ]
    tensors.append(("model.norm.weight", [hidden], None))
    if not shape.tie_word_embeddings:
        tensors.append(("lm_head.weight", [shape.vocab_size, hidden], narrow))
    return tensors


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE as GPT-2's: every pair, triple, … of letters in order, until the vocabulary is full."""
    tokens = [*_SPECIAL, *_byte_characters()]
    merges: list[tuple[str, str]] = []
    stems = [*string.ascii_lowercase, "Ġ"]
    while len(tokens) < vocab_size:
        pairs = list(itertools.islice(itertools.product(stems, string.ascii_lowercase), vocab_size - len(tokens)))
        merges += pairs
        stems = [left + right for left, right in pairs]
        tokens += stems
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for i, text in enumerate(_SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def _byte_characters() -> list[str]:
    """GPT-2's character for each byte: itself where it is visible, else the next free one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = itertools.count(0x100)
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]
