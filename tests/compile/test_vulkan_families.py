"""Every family and scheme on a GPU (Mesa's lavapipe) gives the processor's logits within a stated tolerance.

Each is one bundle for both, run on either. A sample runs always; with `make test-full`, every configuration in every
scheme that GPUs have kernels for.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint
from crosscompile.errors import TargetError
from crosscompile.runtime import build_runtime
from crosscompile.target import Target, target_of_tier
from edgellm import bundle as bundles
from edgellm.worker import request_of, run_worker
from tests.compile.test_model import host_tiers
from tests.emulated.test_bits import make_bundle
from tests.oracle.configurations import byte_tokenizer
from tests.oracle.family_checkpoints import text, write_checkpoint
from tests.oracle.family_configurations import FAMILIES
from tests.shaders import DESKTOP, lavapipe

TOLERANCE = {"f32": 1e-4, "f16": 5e-3, "w8a8": 5e-2, "w4a8": 5e-2}
"""Of the largest logit (docs/vulkan.md). In int8, one activation that rounds the other way grows to that."""
RECURRENT = ("mamba", "falcon-mamba", "rwkv7")
"""Families that keep a state instead of a KV cache."""
SAMPLE = (  # and a Mamba in test_vulkan_states.py
    ("qwen3-biases", "f32"),
    ("olmo2-biases", "f32"),
    ("gemma2-caps", "w4a8"),
    ("phi3-long", "f16"),
    ("stablelm-parallel", "w8a8"),
    ("qwen2-moe-shared", "w4a8"),
    ("rwkv7-many-heads", "w8a8"),
)
N_ROWS = 75
"""More than a block of the KV cache; eight rows at a time, then what is left."""


def prepare(folder: Path, name: str) -> list[int]:
    """Writes a checkpoint with a tokenizer below `folder`; returns a text's ids."""
    made = write_checkpoint(folder / "model", name)
    tokenizer, vocab = byte_tokenizer(), made["config"]["vocab_size"]
    tokenizer["added_tokens"] = []
    tokenizer["model"]["vocab"] = {symbol: i for symbol, i in tokenizer["model"]["vocab"].items() if i < vocab}
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    return text(made)[:N_ROWS]


def add_half(bundle: Path, model: Path, target: Target, scheme: str) -> None:
    """What edgellm.gpu_half adds, with functions for few row counts."""
    name, _, kv = scheme.partition(" ")
    request = {**request_of(checkpoint.load(model), target), "output": str(bundle), "dump": None, "half": True}
    options = {"scheme": name, "embedding": None, "head": None, "kv": kv or None, "tensors": (), "short": True}
    run_worker({**request, **options}, None, lambda stage, done, total: None)
    manifest = {key: value for key, value in bundles.read(bundle).manifest.items() if key not in ("format", "files")}
    bundles.seal(bundle, {**manifest, "target": {**manifest["target"], "device": "both"}})


def logits(program: Path, bundle: Path, ids: list[int], device: str) -> np.ndarray:
    file = bundle.parent / "logits.f32"
    argv = [str(program), "run", str(bundle), "--tokens", ",".join(map(str, ids)), "--logits", str(file)]
    argv += ["--device", device, "--step", "8"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, env=lavapipe(), check=False)
    assert done.returncode == 0, done.stderr
    return np.fromfile(file, np.float32).reshape(len(ids), -1)


def compare(name: str, scheme: str, folder: Path) -> float:
    """The largest difference of the logits, relative to the largest of them."""
    tier = host_tiers()[-1]
    target = target_of_tier(tier).on_gpu(DESKTOP)
    ids = prepare(folder, name)
    bundle = make_bundle(folder / "bundle", folder / "model", tier, scheme, short=True, stop_id=2)
    add_half(bundle, folder / "model", target, scheme)
    program = build_runtime(target)
    expected, found = (logits(program, bundle, ids, device) for device in ("cpu", "vulkan"))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check(name: str, scheme: str, folder: Path) -> None:
    found = compare(name, scheme, folder)
    assert found <= TOLERANCE[scheme.partition(" ")[0]], f"{name} {scheme}: off by {found:.2g} of the largest logit"


@pytest.mark.parametrize(("name", "scheme"), SAMPLE)
def test_a_sample_is_within_the_tolerance(name: str, scheme: str, tmp_path: Path) -> None:
    check(name, scheme, tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, s) for name in FAMILIES for s in (*TOLERANCE, *(() if name.startswith(RECURRENT) else ("w4a8 i8",)))],
)
def test_every_family_is_within_the_tolerance(name: str, scheme: str, tmp_path: Path) -> None:
    check(name, scheme, tmp_path)


def test_a_kind_without_kernels_for_gpus_is_refused_by_name(tmp_path: Path) -> None:
    prepare(tmp_path, "qwen3-tied")
    bundle = make_bundle(tmp_path / "bundle", tmp_path / "model", host_tiers()[-1], "f32", short=True, stop_id=2)
    with pytest.raises(TargetError, match="scheme u4a8 has no kernels for GPUs yet; take w4a8"):
        add_half(bundle, tmp_path / "model", target_of_tier(host_tiers()[-1]).on_gpu(DESKTOP), "u4a8")
