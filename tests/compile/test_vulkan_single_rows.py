"""Where a row's linear layers take in what stands around them, for GPUs that bind more buffers or fewer."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crosscompile.models.architecture import scheme_for
from crosscompile.program import Ladder, compile_model
from edgellm import golden
from edgellm.precision import Options
from tests.compile.logits import Model, compare
from tests.compile.test_vulkan import compile_for, run
from tests.compile.test_vulkan_fused import CLASSES
from tests.shaders import LAYERS, lavapipe_alone

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def steps(**limits: Any) -> list[str]:
    """What computes a row in the layers, without numbers, for a GPU with these limits."""
    host = golden.host_target()
    assert host is not None
    target = host.on_gpu(replace(CLASSES["desktop"], **limits))
    plan = compile_model(CONFIG, target, scheme_for("w4a8"), ladder=Ladder((1,), (1,))).plan
    (body,) = (each for each in plan["functions"] if (each["name"], each["n"]) == ("body", 1))
    names = [plan["kernels"][step["kernel"]]["name"].removeprefix("body1_") for step in body["steps"]]
    names = [re.sub(r"\d+$", "", re.sub(r"w4\d*", "*", name)) for name in names]
    return names[names.index("rope_table") + 1 :]


def test_a_layer_is_five_steps() -> None:
    """Before the first there is a norm that nothing adds to; what follows the last one is another function's."""
    layer = ["linear_*_rope", "attention_row_quant", "linear_*_add_norm", "linear_*_silu", "linear_*_add_norm"]
    assert steps() == ["rms_norm_quant", *layer, *layer[:4], "fused_linear_*_residual_add"]


def test_gpus_that_bind_few_buffers() -> None:
    """Rotation and norms are kernels of their own: theirs would bind 12 and 9, or 10 with zero points."""
    normed = ["fused_linear_*_residual_add", "rms_norm_quant", "linear_*_silu", "fused_linear_*_residual_add"]
    layer = ["rms_norm_quant", "linear_*", "rope_append", "attention_parts", "attention_merge_quant", *normed]
    assert steps(buffers=8) == 2 * layer
    joined = ["linear_*_add_norm", "linear_*_silu", "linear_*_add_norm"]
    row = ["linear_*_scaled", "rope_append", "attention_row_quant", *joined]
    assert steps(buffers=11) == ["rms_norm_quant", "linear_*", *row[1:], *row[:-1], "fused_linear_*_residual_add"]


def test_a_matrix_in_parts_is_not_fused() -> None:
    """Nor is a norm before it, for it would not know of the sums of squares. Here, gate and up."""
    apart = ["fused_linear_*_residual_add", "rms_norm_quant", "linear_*_part", "linear_*_part", "silu_mul_quant"]
    layer = ["linear_*_rope", "attention_row_quant", *apart]
    end = ["linear_*_add_norm", "fused_linear_*_residual_add"]
    assert steps(binding_bytes=20_000) == ["rms_norm_quant", *layer, end[0], *layer, end[1]]


@pytest.mark.oracle
def test_the_demo_model_answers_as_on_the_processor(bundle: Path, tmp_path: Path) -> None:
    """Token by token, behind prompts of one session and of two."""
    made = compile_for("desktop", Options("w4a8"), tmp_path / "bundle", buffers=16)
    names = {kernel["name"] for kernel in json.loads((made / "plan.json").read_text())["kernels"]}
    assert {"body1_linear_w4_rope", "body1_linear_w4_add_norm", "body1_linear_w4_silu"} <= names
    with lavapipe_alone():
        a, b = Model(bundle), Model(made)
        assert compare(a, b, [1, 1, 70, 1, 1, 1]) < 0.05
        tokens = np.random.default_rng(7).integers(3, a.vocab - 4, 26)
        first, second = a.mixed(tokens), b.mixed(tokens)
        assert np.abs(first - second).max() < 0.05 * np.abs(first).max()
        a.close()
        b.close()
    watched = run(made, "run", str(made), "-p", "Hello!", "-n", "3", "--temperature", "0", **LAYERS)
    assert watched.returncode == 0
    assert "Validation" not in watched.stdout + watched.stderr
    assert "VUID" not in watched.stdout + watched.stderr
