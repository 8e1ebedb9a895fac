"""Adapters: what is read is the checkpoint's weight with theirs, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from crosscompile import checkpoint
from crosscompile.errors import CheckpointError, CompileError, ConfigError
from crosscompile.packing import dequantize
from crosscompile.quantize import write_weights
from tests.gguf_writing import write_llama
from tests.unit.test_quantize import tensor

Q, UP, EMBED, NORM = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.embed_tokens",
    "model.norm",
)
OUT, IN, VOCAB, RANK = 48, 32, 40, 4


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    shapes = {Q: (OUT, IN), UP: (OUT, IN), EMBED: (VOCAB, IN), NORM: (IN,)}
    tensors = {f"{name}.weight": random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    save_file(tensors, folder / "model.safetensors")
    return folder


def adapter(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def pair(module: str = Q, rank: int = RANK, seed: int = 9, out: int = OUT, columns: int = IN) -> dict[str, np.ndarray]:
    a, b = random(rank, columns, seed=seed), random(out, rank, seed=seed + 1)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def product(tensors: dict[str, np.ndarray], module: str = Q) -> np.ndarray:
    a, b = (tensors[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    made: np.ndarray = b @ a
    return made


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 6 / 4),
        ({"use_rslora": True}, 6 / 2),
        ({"alpha_pattern": {"q_proj": 10}}, 10 / 4),
        ({"alpha_pattern": {"k_proj": 10}}, 6 / 4),
    ],
)
def test_a_matrix_is_read_with_what_the_adapter_adds(
    model: Path, tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    tensors = pair()
    plain, merged = checkpoint.load(model), checkpoint.load(model, adapter(tmp_path / "a", tensors, **config))
    name = f"{Q}.weight"
    expected = plain.read(name).astype(np.float64) + scale * product(tensors)
    np.testing.assert_allclose(merged.read(name), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(merged.read(name, slice(7, 30)), merged.read(name)[7:30])
    np.testing.assert_array_equal(merged.read(f"{UP}.weight"), plain.read(f"{UP}.weight"))
    assert {path.name for path in merged.paths} == {
        "config.json",
        "model.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_ranks_may_differ_by_module(model: Path, tmp_path: Path) -> None:
    tensors = {**pair(), **pair(UP, rank=2, seed=20)}
    merged = checkpoint.load(model, adapter(tmp_path / "a", tensors, rank_pattern={"mlp.up_proj": 2}))
    base = checkpoint.load(model).read(f"{UP}.weight")
    np.testing.assert_allclose(merged.read(f"{UP}.weight"), base + 3.0 * product(tensors, UP), atol=1e-5)


def test_embeddings_and_whole_modules(model: Path, tmp_path: Path) -> None:
    a, b = random(RANK, VOCAB, seed=3), random(IN, RANK, seed=4)
    kept = random(VOCAB, IN, seed=7)
    tensors = {f"{EMBED}.lora_embedding_A": a, f"{EMBED}.lora_embedding_B": b, f"{EMBED}.base_layer.weight": kept}
    tensors[f"{NORM}.weight"] = random(IN, seed=5)
    merged = checkpoint.load(model, adapter(tmp_path / "a", tensors))
    expected = kept + 1.5 * (b.astype(np.float64) @ a).T
    np.testing.assert_allclose(merged.read(f"{EMBED}.weight"), expected, atol=1e-5)
    np.testing.assert_array_equal(merged.read(f"{EMBED}.weight", slice(3, 9)), merged.read(f"{EMBED}.weight")[3:9])
    np.testing.assert_array_equal(merged.read(f"{NORM}.weight"), tensors[f"{NORM}.weight"])


def test_dora_keeps_the_length_of_rows(model: Path, tmp_path: Path) -> None:
    magnitude = np.abs(random(OUT, seed=6)) + 1
    tensors = {**pair(), f"{Q}.lora_magnitude_vector.weight": magnitude}
    merged = checkpoint.load(model, adapter(tmp_path / "a", tensors, use_dora=True))
    whole = checkpoint.load(model).read(f"{Q}.weight").astype(np.float64) + 1.5 * product(tensors)
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True) * magnitude[:, None]
    np.testing.assert_allclose(merged.read(f"{Q}.weight"), expected, atol=1e-5)
    np.testing.assert_allclose(merged.read(f"{Q}.weight", slice(11, 12)), expected[11:12], atol=1e-5)


def test_matrices_that_are_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's, of which PEFT says fan_in_fan_out."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    save_file({"h.0.attn.c_attn.weight": random(IN, OUT, seed=1)}, folder / "model.safetensors")
    tensors = pair("transformer.h.0.attn.c_attn")
    merged = checkpoint.load(folder, adapter(tmp_path / "a", tensors, fan_in_fan_out=True))
    expected = random(IN, OUT, seed=1) + 1.5 * product(tensors, "transformer.h.0.attn.c_attn").T
    np.testing.assert_allclose(merged.read("transformer.h.0.attn.c_attn.weight"), expected, atol=1e-5)


def test_an_adapter_on_a_quantized_file_quantizes_only_what_it_changes_again(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", {"attn_q": "Q4_0", "attn_k": "Q4_0"})
    plain = checkpoint.load(file)
    names = tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk")
    rows, columns = plain.info(names[0]).shape
    tensors = pair(out=rows, columns=columns)
    merged = checkpoint.load(file, adapter(tmp_path / "a", tensors))
    expected = plain.read(names[0]) + 1.5 * product(tensors)
    np.testing.assert_allclose(merged.read(names[0]), expected, atol=1e-4)
    total = rows + plain.info(names[1]).shape[0]
    written = write_weights(merged, [tensor("p", names, (total, columns), "w4.r16.k4")], tmp_path)
    assert (written.n_kept, written.n_again) == ((total - rows) * columns, rows * columns)
    kept = merged.integers(names[1], slice(None))
    assert kept is not None
    np.testing.assert_array_equal(dequantize(*kept), plain.read(names[1]))


BAD: list[tuple[dict[str, Any], dict[str, np.ndarray], type[CompileError], str]] = [
    ({"peft_type": "IA3"}, {}, ConfigError, "peft_type 'IA3' cannot be merged, only 'LORA' can"),
    ({"bias": "all"}, {}, ConfigError, "bias 'all' is not supported"),
    ({"r": 0}, {}, ConfigError, "r must be a positive number for .*q_proj, not 0"),
    ({"lora_alpha": "x"}, {}, ConfigError, "lora_alpha must be a positive number"),
    ({"r": 8}, {}, CheckpointError, r"lora_A.*has shape \[4, 32\]; rank 8 on \[48, 32\] needs \[8, 32\]"),
    ({"use_dora": True}, {}, CheckpointError, "has no lora_magnitude_vector, which use_dora implies"),
    ({}, pair("model.layers.9.mlp.up_proj"), CheckpointError, "is for 'model.layers.9.mlp.up_proj.weight', which the"),
    ({}, {f"{UP}.lora_A.weight": np.ones((4, IN), np.float32)}, CheckpointError, "not both lora_A and lora_B"),
    ({}, {f"{NORM}.weight": np.ones(3, np.float32)}, CheckpointError, r"has shape \[3\], the checkpoint's .* \[32\]"),
    ({"rank_pattern": {"[": 2}}, {}, ConfigError, r"rank_pattern has '\[', which is no regular expression"),
    ({"alpha_pattern": {"(.*)*x": 2}}, {}, ConfigError, "alpha_pattern has .* too involved"),
    ({"alpha_pattern": {".*.*.*q": 2}}, {}, ConfigError, "alpha_pattern has .* too involved"),
    ({}, {f"{UP}.lora_A.weight": np.ones((4, IN), np.int32)}, CheckpointError, "is 'I32', not F32, F16, BF16"),
]


@pytest.mark.parametrize(("config", "more", "kind", "text"), BAD)
def test_adapters_that_do_not_fit_are_named(
    model: Path, tmp_path: Path, config: dict, more: dict, kind: type[CompileError], text: str
) -> None:
    folder = adapter(tmp_path / "a", {**pair(), **more}, **config)
    with pytest.raises(kind, match=text) as error:
        checkpoint.load(model, folder)
    assert "\n" not in str(error.value)


def test_what_is_no_adapter_or_a_pickle_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json"):
        checkpoint.load(model, model)
    folder = adapter(tmp_path / "a", pair())
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        checkpoint.load(model, folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a pickle, .* python -c .*weights_only=True.*adapter_model\.bin"):
        checkpoint.load(model, folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"holds an adapter, not a model; name the model it is for, and this directory with --lora",
    ):
        checkpoint.load(folder)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a pickle, which can run code when read; convert it once: python -c"):
        checkpoint.load(file)
