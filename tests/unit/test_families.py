"""Families: what config.json files say, as they are found on the Hub, and what is refused by name. No TVM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from crosscompile import checkpoint, models
from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.models.design import EMBEDDING, HEAD, Design, Rwkv
from crosscompile.pieces import Piece, Rows
from crosscompile.quantize import check_sources
from edgellm import cli
from tests.oracle.family_checkpoints import DATA

BASE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}


def design_of(name: str, **fields: Any) -> Design:
    return models.FAMILIES[name].design({**BASE, "architectures": [name], **fields})


def test_the_table_needs_no_compiler() -> None:
    script = "import sys; from crosscompile import models; [f for f in models.FAMILIES]; print('tvm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_family_has_three_odd_configurations(name: str) -> None:
    configurations = [entry["config"] for entry in json.loads(DATA.read_text()).values()]
    mine = [config for config in configurations if config["architectures"] == [name]]
    assert len(mine) >= 3 or name == "LlamaForCausalLM"  # those are in tests/oracle/configurations.py
    for config in mine:
        made = models.FAMILIES[name].design(config)
        assert len(made.layers) == len(made.prefixes()) > 1


def test_qwen2_has_biases_and_no_window_unless_it_says_so() -> None:
    made = design_of("Qwen2ForCausalLM", use_sliding_window=False, sliding_window=512, max_window_layers=2)
    assert (made.qkv_bias, made.o_bias, {layer.window for layer in made.layers}) == (True, False, {0})
    made = design_of("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=512, max_window_layers=2)
    assert [layer.window for layer in made.layers] == [0, 0] + [512] * 6


def test_smollm3_does_not_rotate_every_fourth_layer() -> None:
    made = design_of("SmolLM3ForCausalLM", no_rope_layers=None)
    assert [layer.rope for layer in made.layers] == [0, 0, 0, None] * 2


def test_phi3_scales_by_length_and_a_window_as_wide_as_the_context_is_none() -> None:
    factors = {"short_factor": [1.0] * 64, "long_factor": [4.0] * 64}
    fields = {"rope_scaling": {"type": "su", **factors}, "original_max_position_embeddings": 2048}
    rope = design_of("Phi3ForCausalLM", **fields, sliding_window=8192).ropes[0]
    assert rope.original == 2048
    assert rope.long is not None
    assert np.allclose(rope.inv_freq, rope.long * 4)
    assert rope.scaling == pytest.approx((1 + np.log(4) / np.log(2048)) ** 0.5)
    assert design_of("Phi3ForCausalLM", sliding_window=8192).layers[0].window == 0
    assert design_of("Phi3ForCausalLM", sliding_window=2047).layers[0].window == 2047


def test_gemma3_has_two_ropes_in_either_form() -> None:
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    first, second = (
        design_of("Gemma3ForCausalLM", head_dim=128, sliding_window=512, sliding_window_pattern=4, **fields)
        for fields in (old, new)
    )
    assert [layer.rope for layer in first.layers] == [1, 1, 1, 0] * 2
    assert [layer.window for layer in first.layers] == [512, 512, 512, 0] * 2
    for a, b in zip(first.ropes, second.ropes, strict=True):
        assert np.array_equal(a.inv_freq, b.inv_freq)
    assert first.ropes[1].inv_freq[1] == np.float32(1) / np.float32(1e4 ** (2 / 128))


def test_gpt_neox_rotates_a_quarter_in_either_form() -> None:
    old = design_of("GPTNeoXForCausalLM", rotary_pct=0.25, rotary_emb_base=20000)
    parameters = {"rope_type": "default", "rope_theta": 20000, "partial_rotary_factor": 0.25}
    new = design_of("GPTNeoXForCausalLM", rope_parameters=parameters)
    assert np.array_equal(old.ropes[0].inv_freq, new.ropes[0].inv_freq)
    assert len(old.ropes[0].inv_freq) == 128 // 4 // 2


def test_a_gemma_hidden_act_of_gelu_means_the_approximation() -> None:
    assert design_of("GemmaForCausalLM", hidden_act="gelu").activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("FalconForCausalLM", {"alibi": True}, "alibi True is not supported"),
        ("OlmoeForCausalLM", {"clip_qkv": 8.0, "num_experts": 4}, "clip_qkv 8.0 is not supported"),
        ("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 5}, "5 of 4 experts a token"),
        ("MixtralForCausalLM", {}, "'num_local_experts' must be an integer"),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types must name sliding_attention or full"),
        (
            "Qwen3ForCausalLM",
            {"layer_types": [["full_attention"]] * 8},
            "layer_types must name sliding_attention or full",
        ),
        ("Gemma3ForCausalLM", {"rope_parameters": ["default"]}, "rope_parameters must be an object"),
        ("LlamaForCausalLM", {"num_hidden_layers": 10**9}, "'num_hidden_layers' must be an integer from 1 to 1024"),
        ("LlamaForCausalLM", {"rope_theta": 1e308}, "'rope_theta' must be a positive number"),
        ("RWKV7ForCausalLM", {"attn": {"layers": [1]}}, "attn describes layers of attention"),
        ("RWKV7ForCausalLM", {"head_dim": 48}, "must be 1 to 240 times head_dim, 48"),
        ("RWKV7ForCausalLM", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("RWKV7ForCausalLM", {"gate_low_rank_dim": 24}, "'gate_low_rank_dim' is 24; edgellm needs a multiple of 32"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 2]}, "no_rope_layers must hold a 0 or 1 for each of the 8"),
        ("Gemma2ForCausalLM", {"head_dim": 64, "hidden_activation": "relu"}, "hidden_activation 'relu'"),
        ("GraniteForCausalLM", {"logits_scaling": 0}, "'logits_scaling' must be a positive number"),
        ("StableLmForCausalLM", {"use_parallel_residual": "yes"}, "'use_parallel_residual' must be true or false"),
        ("GPTNeoXForCausalLM", {"rotary_pct": 1.5}, "partial_rotary_factor must lie between 0 and 1, not 1.5"),
        ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    ],
)
def test_what_is_not_built_is_named(name: str, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json") as error:
        design_of(name, **fields)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("MinistralForCausalLM", {}, "The nearest is MistralForCausalLM; its configuration has the same fields"),
        ("Cohere9ForCausalLM", {"logit_scale": 0.06, "use_qk_norm": True}, "it does not know logit_scale, use_qk_norm"),
        ("QwenNextMoeForCausalLM", {"num_experts": 8, "moe_intermediate_size": 64, "mtp": 2}, "does not know mtp"),
    ],
)
def test_an_unknown_one_is_told_the_nearest_and_what_differs(name: str, fields: dict[str, Any], text: str) -> None:
    assert text in str(models.unknown(name, {**BASE, **fields}))


def test_models_lists_and_examines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["architecture"] for entry in listed] == list(models.FAMILIES)
    assert cli.main(["models"]) == 0
    assert "Qwen3" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "architectures": ["Qwen3ForCausalLM"]}))
    assert cli.main(["models", str(tmp_path)]) == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "architectures": ["OtherForCausalLM"]}))
    assert cli.main(["models", str(tmp_path)]) == 1
    assert "The nearest is" in capsys.readouterr().err


def make(folder: Path, tensors: dict[str, np.ndarray]) -> checkpoint.Checkpoint:
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return checkpoint.load(folder)


def test_pieces_are_rows_rearranged_transposed_and_scaled(tmp_path: Path) -> None:
    w = np.arange(40, dtype=np.float32).reshape(10, 4)
    source = make(tmp_path, {"w": w})
    ranges = ((4, 2), (0, 3), (9, 1))
    expected = w[[4, 5, 0, 1, 2, 9]]
    rows = Rows(source, Piece("w", ranges=ranges))
    assert rows.shape == (6, 4)
    assert rows.fits
    for start in range(6):
        for stop in range(start + 1, 7):
            assert np.array_equal(rows.read(start, stop), expected[start:stop])
    assert np.array_equal(Rows(source, Piece("w", transposed=True)).read(1, 3), w.T[1:3])
    assert np.array_equal(Rows(source, Piece("w", times=2.0, plus=1.0)).read(0, 10), w * 2 + 1)
    assert not Rows(source, Piece("w", ranges=((8, 3),))).fits


def test_a_network_without_its_head_names_tensors_without_the_first_part(tmp_path: Path) -> None:
    source = make(tmp_path, {"wte.weight": np.ones((3, 2), np.float32), "h.0.ln_1.bias": np.zeros(2, np.float32)})
    assert source.read("transformer.wte.weight").shape == (3, 2)
    with pytest.raises(CheckpointError, match=r"'transformer\.wpe\.weight' is missing"):
        source.info("transformer.wpe.weight")


def test_shapes_that_do_not_fit_are_named_as_they_are_stored(tmp_path: Path) -> None:
    source = make(tmp_path, {"w": np.ones((6, 4), np.float32)})

    class Wanted:
        name, packing, shard, value, part_of, shape = "w", "f32.r16", "head", None, None, (4, 8)
        sources = (Piece("w", transposed=True),)

    with pytest.raises(CheckpointError, match=r"'w' has shape \[6, 4\], config.json implies \[8, n\]"):
        check_sources(source, [Wanted()])


def test_a_tied_head_is_the_embedding_under_any_name() -> None:
    made = models.FAMILIES["GPT2LMHeadModel"].design({"architectures": ["GPT2LMHeadModel"], "n_layer": 2})
    assert made.sources[HEAD] == made.sources[EMBEDDING] == ("transformer.wte.weight",)


def test_rwkv7_as_it_lies_on_the_hub() -> None:
    """num_heads says something else than head_dim there, which counts; ranks may be left out."""
    config = {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "head_dim": 64,
        "num_heads": 32,
        "hidden_ratio": 4.0,
        "intermediate_size": 3072,
        "vocab_size": 65536,
        "value_dim": [768] * 12,
        "attn": None,
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": 1e-5,
        "hidden_act": "sqrelu",
        "fuse_norm": False,
        "a_low_rank_dim": 64,
        "decay_low_rank_dim": None,
        "gate_low_rank_dim": 128,
        "v_low_rank_dim": 32,
    }
    made = models.FAMILIES["RWKV7ForCausalLM"].design(config)
    kinds = [layer.selective for layer in made.layers]
    assert [kind.value_rank for kind in kinds if isinstance(kind, Rwkv)] == [0] + [32] * 11
    assert isinstance(kinds[1], Rwkv)
    assert (kinds[1].head_dim, kinds[1].decay_rank, kinds[1].epsilon) == (64, 64, pytest.approx(64e-5))
    assert made.embedding_norm
    assert made.intermediate == 3072
    with pytest.raises(ConfigError, match=r"value_dim \[512\] is not supported"):
        models.FAMILIES["RWKV7ForCausalLM"].design({**config, "value_dim": [512]})
