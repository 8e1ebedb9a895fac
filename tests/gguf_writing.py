"""GGUF files for tests, written with the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

ROWS = 20
"""Rows of a test tensor: more than the sixteen that gguf-py decodes at once."""
HIDDEN, WIDE, HEADS, KV_HEADS, LAYERS = 256, 512, 4, 2, 2


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
    dim = HIDDEN // HEADS
    for layer in range(LAYERS):
        inner = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * dim, HIDDEN),
            "attn_k": (KV_HEADS * dim, HIDDEN),
            "attn_v": (KV_HEADS * dim, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
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
