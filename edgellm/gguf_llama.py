"""A Llama-family checkpoint as a GGUF file with the very numbers that a bundle of edgellm's holds.

Rows are read, quantized and written some at a time; nothing in full precision touches the disk. Names and keys are
llama.cpp's (gguf-py's constants.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.calibrated import Calibrated, Matrix
from crosscompile.checkpoint import Checkpoint
from crosscompile.models import FAMILIES
from crosscompile.pieces import piece_of
from edgellm.errors import PeerError
from edgellm.gguf_file import TYPES, TensorSlot, Value, blocks, quantized_blocks, write

_SLICE_ELEMENTS = 1 << 21
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Entry:
    """One tensor: its names here and there, its type, and for q and k the heads whose rotary halves interleave.

    matrix: the integers that calibration made of the parameter it is part of, from row `first` on.
    """

    source: str
    name: str
    type: str
    heads: int | None = None
    matrix: Matrix | None = None
    first: int = 0


def entries(config: Mapping[str, Any], scheme: Mapping[str, str]) -> list[Entry]:
    """Tensors in file order. scheme: body, embedding and head, as in a bundle's manifest."""
    heads = int(config["num_attention_heads"])
    kv = int(config.get("num_key_value_heads") or heads)
    body, tied = TYPES[scheme["body"]], bool(config.get("tie_word_embeddings", False))
    embedding = TYPES[scheme["head" if tied else "embedding"]]
    found = [Entry("model.embed_tokens.weight", "token_embd.weight", embedding)]
    for index in range(int(config["num_hidden_layers"])):
        ours, theirs = f"model.layers.{index}.", f"blk.{index}."
        found += [
            Entry(ours + "input_layernorm.weight", theirs + "attn_norm.weight", "F32"),
            Entry(ours + "self_attn.q_proj.weight", theirs + "attn_q.weight", body, heads),
            Entry(ours + "self_attn.k_proj.weight", theirs + "attn_k.weight", body, kv),
            Entry(ours + "self_attn.v_proj.weight", theirs + "attn_v.weight", body),
            Entry(ours + "self_attn.o_proj.weight", theirs + "attn_output.weight", body),
            Entry(ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight", "F32"),
            Entry(ours + "mlp.gate_proj.weight", theirs + "ffn_gate.weight", body),
            Entry(ours + "mlp.up_proj.weight", theirs + "ffn_up.weight", body),
            Entry(ours + "mlp.down_proj.weight", theirs + "ffn_down.weight", body),
        ]
    found.append(Entry("model.norm.weight", "output_norm.weight", "F32"))
    if not tied:
        found.append(Entry("lm_head.weight", "output.weight", TYPES[scheme["head"]]))
    return found


def interleave(rows: np.ndarray) -> np.ndarray:
    """One head's rows, (dim, in): Hugging Face keeps its rotary halves apart, llama.cpp wants the pairs together."""
    dim, columns = rows.shape
    return np.ascontiguousarray(rows.reshape(2, dim // 2, columns).swapaxes(0, 1)).reshape(dim, columns)


def write_llama(
    source: Checkpoint,
    name: str,
    scheme: Mapping[str, str],
    file: Path,
    progress: Progress | None = None,
    calibrated: Calibrated | None = None,
) -> None:
    """Writes the file, whole or not at all. calibrated: integers that take the place of the scheme's.

    Raises PeerError for models that are stored in another way.
    """
    config = source.config
    biased = config.get("attention_bias") or config.get("mlp_bias")
    if config.get("architectures") != ["LlamaForCausalLM"] or config.get("rope_scaling") or biased:
        raise PeerError(f"{name}: only a LlamaForCausalLM without rope_scaling and biases is written; use another")
    plan = [_with_integers(source, entry, calibrated) for entry in entries(config, scheme)]
    slots = [TensorSlot(entry.name, source.info(entry.source).shape, entry.type) for entry in plan]
    pieces = (piece for entry in plan for piece in _pieces(source, entry))

    def show(done: int, total: int) -> None:
        if progress is not None:
            progress("writing the peer's file", done, total)

    write(file, _keys(source, name), slots, pieces, show)


def _with_integers(source: Checkpoint, entry: Entry, calibrated: Calibrated | None) -> Entry:
    """The entry with its part of a calibrated parameter, where there is one."""
    if calibrated is None:
        return entry
    sources = FAMILIES["LlamaForCausalLM"].design(source.config).sources
    for name, matrix in calibrated.matrices.items():
        first = 0
        for part in sources.get(name, (name,)):
            if part == entry.source:
                kind = {"w4": "Q4_0", "w8": "Q8_0"}[matrix.kind]
                return replace(entry, type=kind, matrix=matrix, first=first)
            first += source.info(piece_of(part).tensor).shape[0]
    return entry


def _pieces(source: Checkpoint, entry: Entry) -> Iterator[np.ndarray]:
    """The tensor's bytes, some rows at a time: whole heads where their rows change places."""
    shape = source.info(entry.source).shape
    if len(shape) == 1:
        yield blocks(entry.type, source.read(entry.source)[None])
        return
    step = shape[0] // entry.heads if entry.heads else max(_SLICE_ELEMENTS // shape[1], 1)
    for at in range(0, shape[0], step):
        if entry.matrix is not None:
            last = entry.first + min(at + step, shape[0])
            q, scale = entry.matrix.rows(entry.first + at, last)
            yield quantized_blocks(entry.type, *((interleave(q), interleave(scale)) if entry.heads else (q, scale)))
            continue
        rows = source.read(entry.source, slice(at, at + step))
        yield blocks(entry.type, interleave(rows) if entry.heads else rows)


def _keys(source: Checkpoint, name: str) -> dict[str, Value]:
    config = source.config
    heads = int(config["num_attention_heads"])
    dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.quantization_version": 2,
        "llama.context_length": int(config.get("max_position_embeddings", 2048)),
        "llama.embedding_length": int(config["hidden_size"]),
        "llama.block_count": int(config["num_hidden_layers"]),
        "llama.feed_forward_length": int(config["intermediate_size"]),
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "llama.attention.key_length": dim,
        "llama.attention.value_length": dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "llama.rope.dimension_count": dim,
        "llama.rope.freq_base": float(config.get("rope_theta", 1e4)),
        "llama.vocab_size": int(config["vocab_size"]),
        **_vocabulary(source),
    }


def _vocabulary(source: Checkpoint) -> dict[str, Value]:
    """Tokens and merges. What splits text into words is llama.cpp's own affair; it decides no speed measured here."""
    if source.tokenizer_json is None:
        raise PeerError(f"{source.path} has no tokenizer.json, which a GGUF file needs; save the tokenizer there")
    document = json.loads(source.tokenizer_json)
    model, added = document["model"], document.get("added_tokens", [])
    texts = {index: text for text, index in model["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in added}
    tokens = [texts.get(index, f"<unused {index}>") for index in range(int(source.config["vocab_size"]))]
    special = {token["content"] for token in added if token.get("special")}
    keys: dict[str, Value] = {}
    if model.get("byte_fallback"):
        types = [_type(text, special, model.get("unk_token")) for text in tokens]
        scores = [-float(index) if kind == _NORMAL else 0.0 for index, kind in enumerate(types)]
        keys |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
    else:
        types = [_CONTROL if text in special else _NORMAL for text in tokens]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        keys |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": merges}
    keys |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    for key in ("bos_token_id", "eos_token_id"):
        if isinstance(value := source.config.get(key), int):
            keys[f"tokenizer.ggml.{key}"] = value
    return {**keys, "tokenizer.ggml.add_bos_token": bool(source.tokenizer_config.get("add_bos_token"))}


def _type(text: str, special: set[str], unknown: object) -> int:
    if text == unknown:
        return _UNKNOWN
    if text in special:
        return _CONTROL
    return _BYTE if len(text) == 6 and text.startswith("<0x") else _NORMAL
