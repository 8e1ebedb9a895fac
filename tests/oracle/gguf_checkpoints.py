"""The checkpoints of tests/data/gguf.json, and the GGUF files that llama.cpp made of them. Needs no torch."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.oracle.family_checkpoints import tensors

DATA = Path(__file__).parents[1] / "data" / "gguf.json"
FILES = DATA.with_suffix("")


def rounded(checkpoint: dict[str, Any]) -> dict[str, np.ndarray]:
    """Values that float16 holds exactly, few enough that files of them compress well."""
    return {name: np.clip(np.rint(8 * v), -15, 15) / np.float32(8) for name, v in tensors(checkpoint).items()}


def write_rounded(folder: Path, checkpoint: dict[str, Any]) -> None:
    """A checkpoint directory, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint["config"]))
    save_file(rounded(checkpoint), folder / "model.safetensors", metadata={"format": "pt"})


def write_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """(checkpoint directory, GGUF file) of one entry."""
    write_rounded(folder / name, json.loads(DATA.read_text())[name])
    file = folder / f"{name}.gguf"
    file.write_bytes(lzma.decompress((FILES / f"{name}.gguf.xz").read_bytes()))
    return folder / name, file
