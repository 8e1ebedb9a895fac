"""Writes tests/data/logits.npz: transformers' float32 logits of the random-weight configurations."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.oracle.configurations import CONFIGURATIONS, POSITIONS, tokens, write_checkpoint

OUTPUT = Path(__file__).parents[1] / "data" / "logits.npz"


def logits(directory: Path, ids: list[int]) -> np.ndarray:
    """(n, vocab) float32 by transformers, computed in float32 on the CPU."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].numpy()


def main() -> None:
    """Regenerates the file."""
    torch.manual_seed(0)
    expected = {}
    for name, config in CONFIGURATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            directory = write_checkpoint(Path(folder) / name, config)
            expected[name] = logits(directory, tokens(config))[list(POSITIONS)]
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **expected)
    print(f"{OUTPUT}: {len(expected)} configurations, {OUTPUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
