"""A checkpoint written out in full, for programs that read nothing but a Hugging Face directory with safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from crosscompile.checkpoint import SINGLE, Checkpoint
from crosscompile.safetensors_stream import ShardWriter, Slot
from edgellm.errors import ModelError

Progress = Callable[[str, int, int], None]

_SLICE_ELEMENTS = 1 << 21
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_FLOAT = np.dtype("<f4")


def write_full(source: Checkpoint, folder: Path, progress: Progress) -> None:
    """Writes configuration, tokenizer and every tensor as float32 into an existing folder. Raises ModelError."""
    if source.tokenizer_json is None:
        raise ModelError(f"{source.path} has no tokenizer.json, which the program to compare with needs")
    # An exporter looks for the token that ends an answer here, and transformers here first if there is such a file.
    ids = {key: source.config[key] for key in _SPECIAL if key in source.config}
    documents = {
        "config.json": {**source.config, "torch_dtype": "float32"},
        "generation_config.json": {**ids, **source.generation_config},
        # Without a class, transformers looks for one by the model's type and wants a SentencePiece file.
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **source.tokenizer_config},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(source.tokenizer_json)
    slots = {name: Slot(info.shape, _FLOAT) for name, info in source.tensors.items()}
    total = sum(slot.n_bytes for slot in slots.values())
    done = 0
    with ShardWriter(folder / SINGLE, slots, {"format": "pt"}) as shard:
        for name, slot in slots.items():
            n_rows = slot.shape[0] if slot.shape else 1
            row_bytes = slot.n_bytes // n_rows
            step = max(_SLICE_ELEMENTS * _FLOAT.itemsize // row_bytes, 1)
            for at in range(0, n_rows, step):
                values = source.read(name, slice(at, at + step)).astype(_FLOAT, copy=False)
                shard.write(name, at * row_bytes, values)
                done += values.nbytes
                progress("writing the checkpoint out", done, total)
