"""GGUF files for tests, written with the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from crosscompile.checkpoint import Checkpoint

ROWS = 20
"""Rows of a test tensor: more than the sixteen that gguf-py decodes at once."""
HIDDEN, WIDE, HEADS, KV_HEADS, DIM, LAYERS = 256, 256, 4, 2, 16, 2


def raw_blocks(kind: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """Random bytes of a type, (rows, bytes of a row) uint8; float types and scales that are one float16 are finite."""
    generator = np.random.Generator(np.random.PCG64(seed))
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if kind in ("F32", "F16", "BF16"):
        plain = generator.standard_normal((rows, columns)).astype(np.float32)
        if kind == "BF16":
            return np.ascontiguousarray((plain.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
        return plain.astype("<f4" if kind == "F32" else "<f2").view(np.uint8)
    raw = generator.integers(0, 256, (rows, columns // block, size), np.uint8)
    if kind in ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL"):
        scale = generator.standard_normal((rows, columns // block, 1)).astype("<f2")
        raw[..., :2] = scale.view(np.uint8)
        if kind == "Q8_0":
            raw[..., 2:][raw[..., 2:] == 0x80] = 0x81
    if kind.endswith("_K"):  # two float16, before or behind the rest
        at = {"Q2_K": size - 4, "Q3_K": size - 2, "Q4_K": 0, "Q5_K": 0, "Q6_K": size - 2}[kind]
        n = 2 if kind in ("Q3_K", "Q6_K") else 4
        raw[..., at : at + n] = generator.uniform(0.001, 0.1, (rows, columns // block, n // 2)).astype("<f2").view("u1")
    return raw.reshape(rows, -1)


def llama_tensors(vocab: int, tied: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a small Llama's tensors, under GGUF's names."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, HIDDEN)}
    for layer in range(LAYERS):
        inner = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * DIM, HIDDEN),
            "attn_k": (KV_HEADS * DIM, HIDDEN),
            "attn_v": (KV_HEADS * DIM, HIDDEN),
            "attn_output": (HIDDEN, HEADS * DIM),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (WIDE, HIDDEN),
            "ffn_up": (WIDE, HIDDEN),
            "ffn_down": (HIDDEN, WIDE),
        }
        shapes.update({f"blk.{layer}.{name}.weight": shape for name, shape in inner.items()})
    shapes["output_norm.weight"] = (HIDDEN,)
    return shapes if tied else {**shapes, "output.weight": (vocab, HIDDEN)}


def write_llama(
    file: Path,
    types: Mapping[str, str],
    vocab: int = 128,
    tied: bool = True,
    leave_out: Sequence[str] = (),
    part: tuple[int, int] | None = None,
) -> Path:
    """A small Llama of random weights. types: of a tensor by its bare name, F32 else; part: (number, count) of a
    split file."""
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(DIM)
    writer.add_value_length(DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_custom_alignment(32)
    writer.add_file_type(0)
    if part is not None:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
    for index, (name, shape) in enumerate(llama_tensors(vocab, tied).items()):
        if name in leave_out or (part is not None and index % part[1] != part[0]):
            continue
        kind = types.get(name.removesuffix(".weight").rpartition(".")[2], "F32")
        rows = shape[0] if len(shape) > 1 else 1
        raw = raw_blocks(kind, rows, shape[-1], seed=index)
        if kind == "F32":
            writer.add_tensor(name, raw.view("<f4").reshape(shape) * np.float32(0.1))
        else:
            writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file


def write_checkpoint(source: Checkpoint, file: Path, kind: str = "BF16") -> Path:
    """A Llama checkpoint as GGUF, its matrices as `kind`, with its whole tokenizer.json and its chat template."""
    config = source.config
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    assert source.tokenizer_json is not None
    document = json.loads(source.tokenizer_json)
    texts = {index: text for text, index in document["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in document["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([texts.get(index, f"<{index}>") for index in range(config["vocab_size"])])
    special = {token["id"] for token in document["added_tokens"] if token["special"]}
    writer.add_token_types([3 if index in special else 1 for index in range(config["vocab_size"])])
    writer.add_string("tokenizer.huggingface.json", source.tokenizer_json.decode())
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    assert source.chat_template is not None
    writer.add_chat_template(source.chat_template)
    for name in source.tensors:
        weight = source.read(name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # halves of a head -> pairs
            count = heads if "q_proj" in name else kv_heads
            weight = weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        type_ = GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), gguf.quantize(weight, type_), raw_dtype=type_)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file


def gguf_name(name: str) -> str:
    """gguf-py's own table of names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 100)
    found = names.get_name(name, try_suffixes=(".weight",))
    assert found is not None
    return str(found)


def write_vocabulary(file: Path, kind: str) -> Path:
    """A Llama of a hundred tokens with a vocabulary of its own. kind: gpt2 or llama, as GGUF calls them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<unk>", "<s>", "</s>", *letters, "▁", *(a + b for a in "abc" for b in letters[:20])]
    types = [2, 3, 3, *[1] * (len(tokens) - 3)]
    writer = gguf.GGUFWriter(str(file), "llama")
    for key, value in (
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges([f"{a} {b}" for a in "abc" for b in letters[:20]])
    else:
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_add_space_prefix(True)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    shapes = {
        "token_embd": (len(tokens), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (32, 32),
        "blk.0.ffn_up": (32, 32),
        "blk.0.ffn_down": (32, 32),
    }
    for index, (name, shape) in enumerate(shapes.items()):
        type_ = "Q4_0" if len(shape) == 2 else "F32"
        raw = raw_blocks(type_, shape[0] if len(shape) == 2 else 1, shape[-1], seed=index)
        if type_ == "F32":
            writer.add_tensor(f"{name}.weight", raw.view("<f4").reshape(shape).copy())
        else:
            writer.add_tensor(f"{name}.weight", raw, raw_dtype=GGMLQuantizationType[type_])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file
