"""What tensors of a mutated checkpoint should be read as: by the `safetensors` package, then number by number."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from crosscompile.checkpoint import Checkpoint
from tests.campaigns.importer_files import ADAPTER, Original

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ: which of eight outputs each nibble of a word, lowest first, holds."""


@dataclass
class Stored:
    """Files as the `safetensors` package opens them, each once; None for one with a dtype that it does not know."""

    files: dict[Path, Any] = field(default_factory=dict)

    def names(self, file: Path) -> set[str]:
        opened = self._opened(file)
        return set() if opened is None else set(opened.keys())

    def tensor(self, file: Path, name: str) -> np.ndarray | None:
        """None for what the package or NumPy has no type for."""
        opened = self._opened(file)
        try:
            found: np.ndarray | None = None if opened is None else opened.get_tensor(name)
        except TypeError:
            return None
        return found

    def _opened(self, file: Path) -> Any:
        if file not in self.files:
            try:
                self.files[file] = safe_open(file, "np").__enter__()
            except SafetensorError as error:
                if "unknown variant" not in str(error):
                    raise AssertionError(f"{file} was read, but the safetensors package says {error}") from error
                self.files[file] = None
        return self.files[file]


def expected_rows(folder: Path, original: Original, source: Checkpoint, name: str, known: Stored) -> np.ndarray | None:
    """The first two rows of a tensor, or all of a number, float32; None where that is not told here."""
    info = source.info(name)
    if info.dtype in ("AWQ", "GPTQ"):
        return _unpacked(folder, source, name, known)
    replaced = info.file.parent.name == ADAPTER
    if replaced:
        names = [each for each in known.names(info.file) if each.replace(".modules_to_save", "").endswith(name)]
        if len(names) != 1:
            return None
        stored = known.tensor(info.file, names[0])
    else:
        stored = known.tensor(info.file, name)
    if stored is None:
        return None
    values = stored.astype(np.float32)
    if original.adapter:
        return _merged(folder, values, name, known)
    return values[:2] if values.ndim else values


def _unpacked(folder: Path, source: Checkpoint, name: str, known: Stored) -> np.ndarray | None:
    """Two rows, number by number from the words' bits."""
    layer = name.removesuffix("weight")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    method = said["quant_method"]
    files = source.parts[name]  # type: ignore[attr-defined]  # a PackedCheckpoint
    found = {kind: known.tensor(info.file, f"{layer}{kind}") for kind, info in files.items()}
    if any(value is None for value in found.values()):
        return None
    q, zeros, scales = found["qweight"], found["qzeros"], found["scales"]
    rows, columns = source.info(name).shape
    g_idx = found.get("g_idx", np.arange(columns) // (columns // len(scales)))
    offset = 1 if method == "gptq" and said.get("checkpoint_format", "gptq") == "gptq" else 0
    made = np.zeros((min(rows, 2), columns), np.float32)
    for o in range(len(made)):
        nibble = o % 8 if method == "gptq" else ORDER.index(o % 8)
        for i in range(columns):
            g = int(g_idx[i])
            word = int(q[i // 8, o]) >> 4 * (i % 8) if method == "gptq" else int(q[i, o // 8]) >> 4 * nibble
            zero = ((int(zeros[g, o // 8]) >> 4 * nibble & 15) + offset) % 16
            made[o, i] = np.float32(scales[g, o]) * np.float32((word & 15) - zero)
    return made


def _merged(folder: Path, base: np.ndarray, name: str, known: Stored) -> np.ndarray | None:
    """Two rows with what a plain adapter adds; None where patterns or DoRA say more."""
    config = json.loads((folder / ADAPTER / "adapter_config.json").read_text())
    odd = any(config.get(key) for key in ("rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out"))
    module, file = name.removesuffix(".weight"), folder / ADAPTER / "adapter_model.safetensors"
    mine = [each for each in known.names(file) if each.startswith(f"base_model.model.{module}.lora")]
    if not mine:
        return base[:2] if base.ndim and known.names(file) else None
    pair = [f"base_model.model.{module}.lora_{part}.weight" for part in "AB"]
    a, b = (known.tensor(file, each) if each in mine else None for each in pair)
    if odd or set(mine) != set(pair) or base.ndim != 2 or a is None or b is None:
        return None
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    made: np.ndarray = (base[:2] + scale * (b[:2].astype(np.float64) @ a)).astype(np.float32)
    return made
