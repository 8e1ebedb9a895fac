"""AWQ and GPTQ checkpoints: unpacked as their formats say, integers kept, and what does not fit named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crosscompile import checkpoint
from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.packing import dequantize, quantize
from crosscompile.quantize import write_weights
from tests.unit.test_quantize import tensor, unpack

OUT, IN = 24, 256
NAME = "model.layers.0.mlp.up_proj"


def packed(method: str, group: int, order: str = "plain", symmetric: bool = False, seed: int = 1) -> dict[str, Any]:
    """Tensors of one layer of random words. order: of the groups of inputs, "plain", "shuffled" or "blocks" of 32."""
    generator = np.random.Generator(np.random.PCG64(seed))
    size = group if group > 0 else IN
    n_groups = IN // size
    shape = (IN // 8, OUT) if method == "gptq" else (IN, OUT // 8)
    tensors = {
        "qweight": generator.integers(-(1 << 31), 1 << 31, shape, np.int64).astype(np.int32),
        "qzeros": generator.integers(-(1 << 31), 1 << 31, (n_groups, OUT // 8), np.int64).astype(np.int32),
        "scales": generator.uniform(0.01, 0.1, (n_groups, OUT)).astype(np.float16),
    }
    if symmetric:
        tensors["qzeros"][:] = np.uint32(0x77777777 if method == "gptq" else 0x88888888).astype(np.int32)
    if method == "gptq":
        g_idx = np.arange(IN, dtype=np.int32) // size
        if order == "shuffled":
            g_idx = generator.permutation(g_idx)
        elif order == "blocks":
            g_idx = generator.permutation(g_idx.reshape(-1, 32), axis=0).reshape(-1)
        tensors["g_idx"] = np.ascontiguousarray(g_idx)
    return {f"{NAME}.{kind}": value for kind, value in tensors.items()}


def reference(method: str, tensors: dict[str, Any], group: int, offset: int) -> np.ndarray:
    """The weight, number by number from the words' bits."""
    part = {kind: tensors[f"{NAME}.{kind}"] for kind in ("qweight", "qzeros", "scales")}
    size = group if group > 0 else IN
    place = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}  # AWQ: output within eight -> nibble
    found = np.zeros((OUT, IN), np.float32)
    for i in range(IN):
        g = int(tensors[f"{NAME}.g_idx"][i]) if method == "gptq" else i // size
        for o in range(OUT):
            if method == "gptq":
                q = int(part["qweight"][i // 8, o]) >> (4 * (i % 8)) & 15
                zero = ((int(part["qzeros"][g, o // 8]) >> (4 * (o % 8)) & 15) + offset) % 16
            else:
                q = int(part["qweight"][i, o // 8]) >> (4 * place[o % 8]) & 15
                zero = int(part["qzeros"][g, o // 8]) >> (4 * place[o % 8]) & 15
            found[o, i] = np.float32(part["scales"][g, o]) * np.float32(q - zero)
    return found


def write(folder: Path, tensors: dict[str, Any], said: dict[str, Any], **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"bits": 4, **said}, **more}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({**tensors, "plain.weight": np.ones((4, 8), np.float16)}, folder / "model.safetensors")
    return folder


CASES = [
    ("awq", 32, "plain", 0),
    ("awq", 64, "plain", 0),
    ("awq", 128, "plain", 0),
    ("awq", -1, "plain", 0),
    ("gptq", 32, "plain", 1),
    ("gptq", 64, "plain", 0),
    ("gptq", 128, "plain", 1),
    ("gptq", -1, "plain", 1),
    ("gptq", 32, "shuffled", 1),
    ("gptq", 64, "shuffled", 0),
    ("gptq", 128, "shuffled", 1),
    ("gptq", 64, "blocks", 1),
]


@pytest.mark.parametrize(("method", "group", "order", "offset"), CASES)
def test_weights_equal_an_independent_unpacking(
    tmp_path: Path, method: str, group: int, order: str, offset: int
) -> None:
    tensors = packed(method, group, order)
    said = {"quant_method": method, "group_size": group}
    if method == "gptq" and offset == 0:
        said["checkpoint_format"] = "gptq_v2"
    source = checkpoint.load(write(tmp_path, tensors, said))
    expected = reference(method, tensors, group, offset)
    name = f"{NAME}.weight"
    assert source.info(name, (OUT, IN)).shape == (OUT, IN)
    np.testing.assert_array_equal(source.read(name), expected)
    np.testing.assert_array_equal(source.read(name, slice(5, 17)), expected[5:17])
    np.testing.assert_array_equal(source.read("plain.weight"), np.ones((4, 8)))
    kept = source.integers(name, slice(3, 20))
    if order == "shuffled":
        assert kept is None
    else:
        assert kept is not None
        np.testing.assert_array_equal(dequantize(*kept), expected[3:20])


@pytest.mark.parametrize(
    ("method", "order", "symmetric", "packing", "kept"),
    [
        ("awq", "plain", True, "w4.r16.k4", True),
        ("gptq", "plain", True, "w4.r16.k4.u", True),
        ("awq", "plain", False, "w8.r8.k4", True),
        ("gptq", "blocks", False, "w8.r8.k4", True),
        ("awq", "plain", False, "w4.r16.k4", False),
        ("gptq", "shuffled", True, "w8.r8.k4", False),
        ("awq", "plain", False, "u4.r16.k4.u", True),
        ("gptq", "plain", False, "u4.r8.k4", True),
        ("gptq", "blocks", False, "u4.r4.k16.u", True),
        ("gptq", "shuffled", False, "u4.r8.k4", False),
        ("awq", "plain", False, "u4g64.r8.k4", True),
        ("gptq", "blocks", False, "u4g64.r4.k16.u", False),
        ("gptq", "plain", True, "w4g64.r4.k8", True),
        ("gptq", "plain", True, "w4g128.r4.k8", False),
    ],
)
def test_integers_go_into_a_bundle_where_a_scheme_carries_them(
    tmp_path: Path, method: str, order: str, symmetric: bool, packing: str, kept: bool
) -> None:
    tensors = packed(method, 64, order, symmetric)
    source = checkpoint.load(write(tmp_path / "m", tensors, {"quant_method": method, "group_size": 64}))
    parameter = tensor("p", (f"{NAME}.weight",), (OUT, IN), packing)
    written = write_weights(source, [parameter], tmp_path)
    assert (written.n_kept, written.n_again) == ((OUT * IN, 0) if kept else (0, OUT * IN))
    holding = {"plain": "w4g64" if symmetric else "u4g64", "blocks": "u4", "shuffled": ""}[order]
    assert written.keeping == ("" if kept else holding)
    stored = load_file(tmp_path / "layer.0.safetensors")
    exact = reference(method, tensors, 64, 1 if method == "gptq" else 0)
    expected = exact if kept else dequantize(*quantize(packing.split(".")[0], exact))
    np.testing.assert_array_equal(
        unpack(packing, stored["p"], stored["p.scale"], OUT, IN, zero=stored.get("p.zero")), expected
    )


@pytest.mark.parametrize(
    ("said", "more", "text"),
    [
        ({"quant_method": "bitsandbytes"}, {}, r"already quantized \('bitsandbytes'\); only awq and gptq are read"),
        ({"quant_method": ["awq"]}, {}, r"already quantized \(\['awq'\]\); only awq and gptq are read"),
        ({"quant_method": "awq", "bits": 8}, {}, r"quantization_config\.bits is 8, only 4 is read"),
        ({"quant_method": "awq", "group_size": "x"}, {}, "group_size must be a number of inputs, or -1 for all"),
        ({"quant_method": "awq", "group_size": 0}, {}, "group_size must be a number of inputs"),
        ({"quant_method": "awq", "group_size": 64, "version": "gemv"}, {}, "version 'gemv' is not read, only 'gemm'"),
        ({"quant_method": "gptq", "group_size": 64, "checkpoint_format": "marlin"}, {}, "'marlin' is not read"),
        (
            {"quant_method": "gptq", "group_size": 64},
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT-2's transposed matrices are not read from GPTQ",
        ),
    ],
)
def test_forms_that_are_not_read_are_named(tmp_path: Path, said: dict, more: dict, text: str) -> None:
    folder = write(tmp_path, packed("awq", 64), said, **more)
    with pytest.raises(ConfigError, match=text) as error:
        checkpoint.load(folder)
    assert str(folder / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("scales", None, r"'model.*scales' is missing beside '.*qweight'"),
        ("qzeros", None, r"'model.*qzeros' is missing beside '.*qweight'"),
        ("scales", np.zeros((3, OUT), np.float16), r"has shape \[3, 24\]; 24 x 256 in groups of 64 need \[4, 24\]"),
        ("qzeros", np.zeros((4, 2), np.int32), r"has shape \[4, 2\]; .* need \[4, 3\]"),
        ("qweight", np.zeros((IN // 8 - 1, OUT), np.int32), "which groups of 64 inputs do not divide"),
        ("qweight", np.zeros((IN // 8, OUT), np.float32), "is 'F32' of shape"),
        ("g_idx", np.zeros(IN - 1, np.int32), "has 255 entries, there are 256 inputs"),
        ("g_idx", np.full(IN, 4, np.int32), "names group 4 or 4, there are 4"),
        ("g_idx", np.full(IN, -1, np.int32), "names group -1 or -1, there are 4"),
        ("scales", np.full((4, OUT), 1e6, np.float32), "scales .* do not fit float16"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path: Path, kind: str, value: Any, text: str) -> None:
    tensors = packed("gptq", 64)
    if value is None:
        del tensors[f"{NAME}.{kind}"]
    else:
        tensors[f"{NAME}.{kind}"] = value
    folder = write(tmp_path, tensors, {"quant_method": "gptq", "group_size": 64})
    with pytest.raises(CheckpointError, match=text) as error:
        checkpoint.load(folder).read(f"{NAME}.weight")
    assert str(folder / "model.safetensors") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_only_says_it_is_packed_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor is packed"):
        checkpoint.load(write(tmp_path, {}, {"quant_method": "awq", "group_size": 64}))
