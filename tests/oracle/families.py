"""Writes families.json, families.npz and family_embeddings.npz to tests/data: checkpoints of every family as
transformers saves them, their logits, and what embeddings are made of.

Of a checkpoint, config.json and the names and shapes of its tensors are kept; values are drawn from a seed wherever
they are needed. Logits are computed in float32, the whole text at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from tests.oracle import rwkv
from tests.oracle.family_checkpoints import DATA, EMBEDDINGS, LOGITS, WHOLE, sample, text, write_tensors
from tests.oracle.family_configurations import FAMILIES


def saved(model_type: str, fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Saves a model of this configuration; {"config": …, "tensors": name -> shape} of what is there then."""
    if model_type == "rwkv7":
        document = rwkv.saved(fields)
        (folder / "config.json").write_text(json.dumps(document["config"]))
        return document
    config = AutoConfig.for_model(model_type, **fields)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        tensors = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    document = json.loads((folder / "config.json").read_text())
    document.pop("transformers_version")
    return {"config": document, "tensors": tensors}


def answer(folder: Path, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, vocab) and last hidden states (n, hidden), float32.

    AssertionError if transformers misses a tensor or finds one too many.
    """
    if json.loads((folder / "config.json").read_text())["model_type"] == "rwkv7":
        return rwkv.answer(folder, ids)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, wrong
    model.eval()
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
        hidden: np.ndarray = model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy()
    return logits, hidden


def main() -> None:
    """Regenerates both files, or those entries whose names begin with the arguments."""
    torch.manual_seed(0)
    wanted = tuple(sys.argv[1:]) or ("",)
    checkpoints = json.loads(DATA.read_text()) if DATA.exists() and sys.argv[1:] else {}
    expected = dict(np.load(LOGITS)) if LOGITS.exists() and sys.argv[1:] else {}
    embeddings = dict(np.load(EMBEDDINGS)) if EMBEDDINGS.exists() and sys.argv[1:] else {}
    for name, (model_type, fields) in FAMILIES.items():
        if not name.startswith(wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoints[name] = saved(model_type, fields, Path(folder))
            write_tensors(Path(folder), checkpoints[name])
            ids = text(checkpoints[name])
            found, hidden = answer(Path(folder), ids)
        assert np.isfinite(found).all()
        expected[f"{name}.some"] = found[:, sample(found.shape[1])]
        expected[f"{name}.whole"] = found[list(WHOLE)]
        embeddings[name] = np.stack((hidden.mean(axis=0, dtype=np.float64), hidden[-1])).astype(np.float32)
        print(f"{name}: largest logit {np.abs(found).max():.3f}, spread {found.std():.3f}")
    checkpoints = {name: checkpoints[name] for name in FAMILIES}
    DATA.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in checkpoints.items()) + "\n}\n")
    np.savez_compressed(
        LOGITS, **{key: expected[key] for name in FAMILIES for key in (f"{name}.some", f"{name}.whole")}
    )
    np.savez_compressed(EMBEDDINGS, **{name: embeddings[name] for name in FAMILIES})
    print(f"{DATA} {DATA.stat().st_size / 1e3:.0f} kB, {LOGITS} {LOGITS.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
