"""Weights as written: the bytes of runtime_c/FORMAT.md, decoded here by its text alone, and what is refused."""

import json
import os
import struct
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crosscompile import checkpoint
from crosscompile.errors import CheckpointError, QuantizeError
from crosscompile.packing import dequantize, quantize
from crosscompile.quantize import INDEX, weight_bytes, write_weights


@dataclass(frozen=True)
class Parameter:
    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    packing: str
    shard: str = "layer.0"
    value: np.ndarray | None = None


def make(directory: Path, **tensors: np.ndarray) -> checkpoint.Checkpoint:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    save_file(tensors, directory / "model.safetensors")
    return checkpoint.load(directory)


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


def unpack(packing: str, data: np.ndarray, scale: np.ndarray | None, rows: int, columns: int) -> np.ndarray:
    """The float32 weights that FORMAT.md says the stored bytes stand for, element by element."""
    kind, *rest = packing.split(".")
    R = int(rest[0][1:])
    out = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        g, r = divmod(row, R)
        if kind in ("f32", "f16"):
            out[row] = data[g, :, r]
            continue
        step = int(rest[1][1:])
        offset = {"w8": 128, "w4": 8}[kind] if rest[-1] == "u" else 0
        for k in range(columns):
            b, inner = divmod(k, 32)
            if kind == "w8":
                c, i = divmod(inner, step)
                q = int(data[g, b, c, r, i]) - offset if offset else int(data[g, b, c, r, i].view(np.int8))
            else:
                c, within = divmod(inner, 2 * step)
                high, i = divmod(within, step)
                nibble = (int(data[g, b, c, r, i]) >> (4 * high)) & 15
                q = nibble - offset if offset else (nibble ^ 8) - 8
            out[row, k] = np.float32(q) * np.float32(scale[g, b, r])
    return out


@pytest.mark.parametrize(
    "packing", ["w4.r4.k4", "w4.r8.k4.u", "w4.r4.k8", "w8.r4.k2", "w8.r16.k4.u", "f16.r16", "f32.r16"]
)
def test_stored_bytes_mean_the_weights(tmp_path, packing):
    q, k, v = random(10, 64), random(6, 64, seed=2), random(5, 64, seed=3)
    source = make(tmp_path / "model", q=q.astype(ml_dtypes.bfloat16), k=k.astype(np.float16), v=v)
    parameter = Parameter("qkv", ("q", "k", "v"), (21, 64), packing)
    write_weights(source, [parameter], tmp_path)
    stored = load_file(tmp_path / "layer.0.safetensors")
    stacked = np.concatenate([source.read(name) for name in "qkv"])
    found = unpack(packing, stored["qkv"], stored.get("qkv.scale"), 21, 64)
    if packing.startswith("w"):
        np.testing.assert_array_equal(found, dequantize(*quantize(packing[:2], stacked)))
        steps = np.abs(stacked).reshape(21, 2, 32).max(-1).repeat(32, 1) / (7 if packing[1] == "4" else 126)
        assert (np.abs(found - stacked) <= steps).all()
    else:
        np.testing.assert_array_equal(found, stacked.astype(np.float16) if packing.startswith("f16") else stacked)


def test_layout_of_a_shard(tmp_path):
    source = make(tmp_path / "model", w=random(20, 32), n=random(5), e=random(40, 32))
    constants = Parameter("angles", (), (3,), "vec", "constants", np.array([1, 2, 3], np.int32))
    parameters = [
        Parameter("n", ("n",), (5,), "vec"),
        Parameter("w", ("w",), (20, 32), "w4.r16.k4"),
        Parameter("e", ("e",), (40, 32), "f16.r16", "embedding"),
        constants,
    ]
    seen = []
    weights = write_weights(source, parameters, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (weights.n_bytes, weights.n_bytes)
    assert weights == weight_bytes(parameters)
    assert weights.n_parameters == 20 * 32 + 5 + 40 * 32
    assert weights.n_bytes == 5 * 4 + 32 * 16 + 32 * 2 + 48 * 32 * 2 + 12
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {
        "n": "layer.0.safetensors",
        "w": "layer.0.safetensors",
        "w.scale": "layer.0.safetensors",
        "e": "embedding.safetensors",
        "angles": "constants.safetensors",
    }
    for file in tmp_path.glob("*.safetensors"):
        raw = file.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        assert (8 + length) % 65536 == 0
        header = json.loads(raw[8 : 8 + length])
        metadata = header.pop("__metadata__")
        end = 0
        for name, entry in header.items():
            assert entry["data_offsets"][0] == end
            if not name.startswith("__pad."):
                assert end % 64 == 0
                if not name.endswith(".scale"):
                    assert metadata[f"packing:{name}"] == next(p.packing for p in parameters if p.name == name)
            end = entry["data_offsets"][1]
        assert end % 64 == 0
        assert len(raw) == 8 + length + end
    assert load_file(tmp_path / "constants.safetensors")["angles"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(load_file(tmp_path / "layer.0.safetensors")["n"], source.read("n"))


def test_slices_do_not_show(tmp_path, monkeypatch):
    source = make(tmp_path / "model", a=random(50, 64), b=random(31, 64, seed=2))
    parameter = Parameter("ab", ("a", "b"), (81, 64), "w4.r8.k4.u")
    write_weights(source, [parameter], tmp_path)
    whole = (tmp_path / "layer.0.safetensors").read_bytes()
    monkeypatch.setattr("crosscompile.quantize.SLICE_ELEMENTS", 16 * 64)
    write_weights(source, [parameter], tmp_path)
    assert (tmp_path / "layer.0.safetensors").read_bytes() == whole


def plainly(kind: str, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `quantize` does, group by group."""
    groups = weight.reshape(-1, 32)
    q, scale = np.zeros(groups.shape, np.int8), np.zeros(len(groups), np.float16)
    for i, group in enumerate(groups):
        largest = group[np.abs(group).argmax()]
        scale[i] = largest / np.float32(-8) if kind == "w4" else np.abs(largest) / np.float32(127)
        if scale[i] != 0:
            low, high = (-8, 7) if kind == "w4" else (-127, 127)
            q[i] = np.clip(np.rint(group / np.float32(scale[i])), low, high)
    return q.reshape(weight.shape), scale.reshape(len(weight), -1)


@pytest.mark.parametrize("kind", ["w4", "w8"])
def test_quantize_is_the_plain_rule_bit_for_bit(kind):
    generator = np.random.Generator(np.random.PCG64(9))
    for exponent in range(-9, 4):  # scales from nothing through float16's subnormals to its end
        weight = random(40, 96, seed=exponent + 20) * np.float32(10.0**exponent)
        weight[:10] = np.round(weight[:10] / np.abs(weight).max() * 3)  # many of equal size, of both signs
        weight[10:20][generator.random((10, 96)) < 0.9] = 0
        weight[20] = np.where(generator.random(96) < 0.5, -0.0, 0.0)
        for found, expected in zip(quantize(kind, weight), plainly(kind, weight), strict=True):
            assert found.dtype == expected.dtype
            assert found.tobytes() == expected.tobytes()


def test_parts_do_not_show():
    weight = random(300, 512)  # more than a thread takes at a time
    for found, expected in zip(quantize("w4", weight), plainly("w4", weight), strict=True):
        assert found.tobytes() == expected.tobytes()


def test_memory_stays_at_a_slice(tmp_path):
    rows = 30_000
    source = make(tmp_path / "model", big=np.ones((rows, 1024), np.float16))
    parameter = Parameter("big", ("big",), (rows, 1024), "w4.r4.k4")
    tracemalloc.start()
    try:
        write_weights(source, [parameter], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000  # the tensor is 123 MB as float32
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "an infinity"), (-np.inf, "an infinity")])
@pytest.mark.parametrize("packing", ["w4.r4.k4", "w8.r4.k4", "f16.r16", "f32.r16"])
def test_values_that_are_not_finite(tmp_path, value, kind, packing):
    bad = random(40, 32)
    bad[33, 5] = value
    source = make(tmp_path / "model", good=random(8, 32), bad=bad)
    with pytest.raises(QuantizeError, match=f"tensor 'bad' holds {kind} in row 33.*download it again") as error:
        write_weights(source, [Parameter("w", ("good", "bad"), (48, 32), packing)], tmp_path)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["model"]


@pytest.mark.parametrize("packing", ["f16.r16", "w8.r4.k4"])
def test_values_beyond_float16(tmp_path, packing):
    bad = random(40, 32)
    bad[33, 5] = 1e30
    source = make(tmp_path / "model", bad=bad)
    with pytest.raises(QuantizeError, match=r"bad, rows from 0 on: .*too large"):
        write_weights(source, [Parameter("w", ("bad",), (40, 32), packing)], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model"]


@pytest.mark.parametrize(
    ("sources", "shape", "text"),
    [
        (("a", "nope"), (16, 32), "tensor 'nope' is missing"),
        (("a",), (16, 32), "gives 8 rows, config.json implies 16"),
        (("a",), (8, 64), r"has shape \[8, 32\], config.json implies \[n, 64\]"),
        (("n",), (8, 32), r"has shape \[8\], config.json implies \[n, 32\]"),
    ],
)
def test_shapes_are_checked_before_anything_is_written(tmp_path, sources, shape, text):
    source = make(tmp_path / "model", a=random(8, 32), n=random(8))
    with pytest.raises(CheckpointError, match=text):
        write_weights(source, [Parameter("w", sources, shape, "w4.r4.k4")], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_a_full_disk_leaves_nothing(tmp_path):
    source = make(tmp_path / "model", a=random(64, 32))
    (tmp_path / "weights").mkdir()

    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_weights(source, [Parameter("w", ("a",), (64, 32), "w4.r4.k4")], tmp_path / "weights", full)
    assert os.listdir(tmp_path / "weights") == []
