"""Every family and scheme on a GPU (Mesa's lavapipe) gives the processor's logits within a stated tolerance.

Each is one bundle for both, run on either. A sample runs always; with `make test-full`, every configuration in the
schemes that differ in more than how weights are unpacked, and two in all of those.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint
from crosscompile.kernels.linear import Tuned
from crosscompile.kinds import BASES
from crosscompile.runtime import build_runtime
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import Target, target_of_tier
from edgellm import bundle as bundles
from edgellm.worker import request_of
from tests.compile.routing import RoutedRunner, deviations, turn_ties
from tests.compile.test_model import host_tiers
from tests.compiling import compile_forked
from tests.emulated.test_bits import make_bundle
from tests.oracle.configurations import byte_tokenizer
from tests.oracle.family_checkpoints import text, write_checkpoint
from tests.oracle.family_configurations import FAMILIES
from tests.shaders import DESKTOP, lavapipe

KINDS_A8 = [f"{kind.name}a8" for kind in BASES]
TOLERANCE = {"f32": 1e-4, "f16": 5e-3} | dict.fromkeys(KINDS_A8, 5e-2)
"""Of the largest logit (docs/vulkan.md). In int8, one activation that rounds the other way grows to that, whatever the
weights: their products are exact in every kind (test_vulkan_kinds.py)."""
RECURRENT = ("mamba", "falcon-mamba", "rwkv7")
"""Families that keep a state instead of a KV cache."""
SAMPLE = (  # and a Mamba in test_vulkan_states.py
    ("qwen3-biases", "f32"),
    ("olmo2-biases", "f32"),
    ("gemma2-caps", "w4a8 i8"),
    ("phi3-long", "u4a8"),
    ("qwen2-moe-shared", "w4a8"),
    ("mixtral-tied", "f16"),
    ("rwkv7-many-heads", "w8a8"),
)
BINDING_BYTES = {"mixtral-tied": 40960}
"""What the GPU binds at once, where that is less than any does: matrices, experts among them, are cut."""
IN_ONE = ("qwen2-tied", "qwen3-biases", "olmo2-biases", "gemma2-caps", "phi3-long")
"""Those whose GPU binds enough buffers for attention of a row to be one kernel."""
MIXTURES = ("mixtral", "olmoe", "qwen2-moe", "qwen3-moe")
MOST_TIES = 4
"""Tokens that may go to other experts, where two are tied; they are compared with what those say (routing.py)."""
N_ROWS = 75
"""More than a block of the KV cache; eight rows at a time, then what is left."""


def prepare(folder: Path, name: str, n_rows: int = N_ROWS) -> list[int]:
    """Writes a checkpoint with a tokenizer below `folder`; returns a text's ids."""
    made = write_checkpoint(folder / "model", name)
    tokenizer, vocab = byte_tokenizer(), made["config"]["vocab_size"]
    tokenizer["added_tokens"] = []
    tokenizer["model"]["vocab"] = {symbol: i for symbol, i in tokenizer["model"]["vocab"].items() if i < vocab}
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    return text(made)[:n_rows]


def add_half(
    bundle: Path, model: Path, target: Target, scheme: str, rows: Sequence[int] = (), knobs: Tuned | None = None
) -> None:
    """What edgellm.gpu_half adds. rows: of its functions; few if none are named. knobs: what tuning has found."""
    name, _, kv = scheme.partition(" ")
    request = {**request_of(checkpoint.load(model), target), "output": str(bundle), "dump": None, "half": True}
    options = {"scheme": name, "embedding": None, "head": None, "kv": kv or None, "tensors": ()}
    compile_forked({**request, **options, "short": [*rows] or True, "knobs": knobs})
    manifest = {key: value for key, value in bundles.read(bundle).manifest.items() if key not in ("format", "files")}
    bundles.seal(bundle, {**manifest, "target": {**manifest["target"], "device": "both"}})


def logits(
    program: Path, bundle: Path, ids: list[int], device: str, env: Mapping[str, str] | None = None
) -> np.ndarray:
    file = bundle.parent / "logits.f32"
    argv = [str(program), "run", str(bundle), "--tokens", ",".join(map(str, ids)), "--logits", str(file)]
    argv += ["--device", device, "--step", "8"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, env=env or lavapipe(), check=False)
    assert done.returncode == 0, done.stderr
    assert "Validation Error" not in done.stdout, done.stdout[done.stdout.index("Validation Error") :]
    return np.fromfile(file, np.float32).reshape(len(ids), -1)


def check(name: str, scheme: str, folder: Path, of: Gpu = DESKTOP, env: Mapping[str, str] | None = None) -> None:
    """The largest difference of the logits, relative to the largest of them, is within the tolerance.

    of: what the GPU is like for which they are made; env: where Vulkan finds it, else lavapipe.
    """
    tier = host_tiers()[-1]
    buffers = 12 if name in IN_ONE else of.buffers
    gpu = replace(of, buffers=buffers, binding_bytes=BINDING_BYTES.get(name, of.binding_bytes))
    target = target_of_tier(tier).on_gpu(gpu)
    ids = prepare(folder, name)
    bundle = make_bundle(folder / "bundle", folder / "model", tier, scheme, short=True, stop_id=2)
    add_half(bundle, folder / "model", target, scheme)
    program = build_runtime(target)
    expected, found = (logits(program, bundle, ids, device, env) for device in ("cpu", "vulkan"))
    tolerance, ties = TOLERANCE[scheme.partition(" ")[0]], 0
    if name.startswith(MIXTURES) and deviations(found, expected).max() > tolerance:
        runner = RoutedRunner(bundle, folder / "model")
        assert np.array_equal(runner.logits_with(ids, set()), expected)
        expected = turn_ties(runner, ids, found, tolerance)
        ties = len({token for token, _ in runner.turned})
    off = deviations(found, expected).max()
    assert off <= tolerance, f"{name} {scheme}: off by {off:.2g} of the largest logit"
    assert ties <= MOST_TIES, f"{name} {scheme}: {ties} of {len(ids)} tokens go to other experts"


@pytest.mark.parametrize(("name", "scheme"), SAMPLE)
def test_a_sample_is_within_the_tolerance(name: str, scheme: str, tmp_path: Path) -> None:
    check(name, scheme, tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        (name, scheme)
        for name in FAMILIES
        for scheme in ("f32", "f16", "w8a8", "w4a8", *(() if name.startswith(RECURRENT) else ("w4a8 i8",)))
    ],
)
def test_every_family_is_within_the_tolerance(name: str, scheme: str, tmp_path: Path) -> None:
    check(name, scheme, tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize("scheme", sorted({*KINDS_A8} - {"w8a8", "w4a8"}))
@pytest.mark.parametrize("name", ["qwen3-tied", "gpt2-untied", "mixtral-tied"])
def test_every_kind_is_within_the_tolerance(name: str, scheme: str, tmp_path: Path) -> None:
    """Without biases, with all of them (as many buffers as every GPU binds), and of experts."""
    check(name, scheme, tmp_path)
