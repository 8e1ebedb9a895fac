"""Write a Llama-family checkpoint as a GGUF file whose tensors hold the very numbers a bundle of edgellm's holds.

w4 is Q4_0 and w8 is Q8_0: 32 weights that share a float16 scale, with integers from -8 to 7 and -127 to 127. Rows are
read, quantized and written piece by piece; nothing in full precision touches the disk. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and block_q4_0, block_q8_0 of ggml's ggml-common.h.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.checkpoint import Checkpoint
from crosscompile.packing import GROUP, quantize
from edgellm.errors import PeerError

TYPES = {"w4a8": "Q4_0", "w8a8": "Q8_0", "f16": "F16", "f32": "F32"}
"""The peer's type for each of our schemes, bit for bit."""

_SLICE_ELEMENTS = 1 << 22
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Entry:
    """One tensor: its names here and there, its type, and for q and k the heads whose rotary halves interleave."""

    source: str
    name: str
    type: str
    heads: int | None = None


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


def blocks(kind: str, weight: np.ndarray) -> np.ndarray:
    """A weight (out, in) float32 as the bytes of a GGUF tensor, (out, bytes of a row) uint8.

    kind: Q4_0, Q8_0, F16 or F32. Raises QuantizeError where a value does not fit.
    """
    out, columns = weight.shape
    if kind in ("F16", "F32"):
        return np.ascontiguousarray(weight, "<f2" if kind == "F16" else "<f4").view(np.uint8)
    q, scale = quantize("w4" if kind == "Q4_0" else "w8", weight)
    groups = q.reshape(out, columns // GROUP, GROUP)
    if kind == "Q4_0":  # byte j: number j in the low nibble, number j + 16 in the high one
        shifted = (groups + 8).astype(np.uint8)
        data = shifted[..., : GROUP // 2] | shifted[..., GROUP // 2 :] << 4
    else:
        data = groups.view(np.uint8)
    head = np.ascontiguousarray(scale, "<f2").view(np.uint8).reshape(out, columns // GROUP, 2)
    return np.concatenate([head, data], -1).reshape(out, -1)


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row."""
    return {"Q4_0": columns // GROUP * 18, "Q8_0": columns // GROUP * 34, "F16": 2 * columns, "F32": 4 * columns}[kind]


def interleave(rows: np.ndarray) -> np.ndarray:
    """One head's rows, (dim, in): Hugging Face keeps its rotary halves apart, llama.cpp wants the pairs together."""
    dim, columns = rows.shape
    return rows.reshape(2, dim // 2, columns).swapaxes(0, 1).reshape(dim, columns)


def write(
    source: Checkpoint, name: str, scheme: Mapping[str, str], file: Path, progress: Progress | None = None
) -> None:
    """Writes the file, whole or not at all. Raises PeerError for what llama.cpp has another form for."""
    gguf = package()
    config = source.config
    if config.get("architectures") != ["LlamaForCausalLM"] or config.get("rope_scaling"):
        raise PeerError(f"{name}: only LlamaForCausalLM without rope_scaling is written as GGUF here; use another model")
    plan = entries(config, scheme)
    partial = file.with_name(f".{file.name}.partial")
    out = gguf.GGUFWriter(str(partial), "llama")
    try:
        _header(out, gguf, source, name)
        total = done = 0
        for entry in plan:
            shape = source.info(entry.source).shape
            n_bytes = row_bytes(entry.type, shape[-1]) * (shape[0] if len(shape) > 1 else 1)
            total += n_bytes
            out.add_tensor_info(entry.name, shape, np.dtype("f4"), n_bytes, gguf.GGMLQuantizationType[entry.type])
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_ti_data_to_file()
        for entry in plan:
            data = np.concatenate(list(_pieces(source, entry)))
            out.write_tensor_data(data)
            done += data.nbytes
            if progress is not None:
                progress("writing the peer's file", done, total)
        out.close()
        partial.replace(file)
    finally:
        out.close()
        partial.unlink(missing_ok=True)


def _pieces(source: Checkpoint, entry: Entry) -> Iterator[np.ndarray]:
    """The tensor's bytes, some rows at a time: whole heads where their rows change places."""
    shape = source.info(entry.source).shape
    if len(shape) == 1:
        yield blocks(entry.type, source.read(entry.source)[None])
        return
    step = shape[0] // entry.heads if entry.heads else max(_SLICE_ELEMENTS // shape[1], 1)
    for at in range(0, shape[0], step):
        rows = source.read(entry.source, slice(at, at + step))
        yield blocks(entry.type, interleave(rows) if entry.heads else rows)


def _header(out: Any, gguf: Any, source: Checkpoint, name: str) -> None:
    config = source.config
    heads = int(config["num_attention_heads"])
    dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    out.add_name(name)
    out.add_context_length(int(config.get("max_position_embeddings", 2048)))
    out.add_embedding_length(int(config["hidden_size"]))
    out.add_block_count(int(config["num_hidden_layers"]))
    out.add_feed_forward_length(int(config["intermediate_size"]))
    out.add_head_count(heads)
    out.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    out.add_key_length(dim)
    out.add_value_length(dim)
    out.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    out.add_rope_dimension_count(dim)
    out.add_rope_freq_base(float(config.get("rope_theta", 1e4)))
    out.add_vocab_size(int(config["vocab_size"]))
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _vocabulary(out, source)


def _vocabulary(out: Any, source: Checkpoint) -> None:
    """Tokens and merges. What splits text into words is llama.cpp's own affair; it decides no speed measured here."""
    if source.tokenizer_json is None:
        raise PeerError(f"{source.path} has no tokenizer.json, which a GGUF file needs; save the tokenizer there")
    document = json.loads(source.tokenizer_json)
    model, added = document["model"], document.get("added_tokens", [])
    vocabulary = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    size = int(source.config["vocab_size"])
    texts = {index: text for text, index in vocabulary.items()}
    tokens = [texts.get(index, f"<unused {index}>") for index in range(size)]
    special = {token["content"] for token in added if token.get("special")}
    if model.get("byte_fallback"):
        out.add_tokenizer_model("llama")
        types = [_type(text, special, model.get("unk_token")) for text in tokens]
        out.add_token_scores([-float(index) if kind == _NORMAL else 0.0 for index, kind in enumerate(types)])
    else:
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("gpt-2")
        types = [_CONTROL if text in special else _NORMAL for text in tokens]
        out.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    out.add_token_list(tokens)
    out.add_token_types(types)
    for key, add in (("bos_token_id", out.add_bos_token_id), ("eos_token_id", out.add_eos_token_id)):
        value = source.config.get(key)
        if isinstance(value, int):
            add(value)
    out.add_add_bos_token(bool(source.tokenizer_config.get("add_bos_token")))


def _type(text: str, special: set[str], unknown: object) -> int:
    if text == unknown:
        return _UNKNOWN
    if text in special:
        return _CONTROL
    return _BYTE if len(text) == 6 and text.startswith("<0x") else _NORMAL


def package() -> Any:
    """The gguf distribution, of the extra `bench`."""
    try:
        import gguf
    except ImportError as error:
        raise PeerError("writing the peer's file needs the package gguf; pip install 'edgellm[bench]'") from error
    return gguf
