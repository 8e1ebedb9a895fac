"""Weights as written: the bytes of runtime_c/FORMAT.md, decoded here by its text alone, and what is refused."""

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crosscompile import checkpoint, compiled
from crosscompile.errors import CheckpointError, QuantizeError
from crosscompile.kinds import BASES, KINDS, of_base, zero_points
from crosscompile.packing import dequantize, quantize, regrouped
from crosscompile.quantize import INDEX, weight_bytes, write_weights


def tensor(name: str, sources: tuple[str, ...], shape: tuple[int, ...], packing: str, *rest: Any) -> compiled.Parameter:
    return compiled.Parameter(name, sources, shape, packing, *(rest or ("layer.0",)))


def make(directory: Path, **tensors: np.ndarray) -> checkpoint.Checkpoint:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    save_file(tensors, directory / "model.safetensors")
    return checkpoint.load(directory)


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


LEVELS = {
    "n4": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    "w3": (-7, -5, -3, -1, 1, 3, 5, 7),
    "w2": (-3, -1, 1, 3),
}
QUANTIZED = (
    *("w4.r4.k4", "w4.r8.k4.u", "w4.r4.k8", "w8.r4.k2", "w8.r16.k4.u", "n4.r4.k16", "n4.r8.k2", "n4.r16.k4.u"),
    *("u4.r4.k16.u", "u4.r8.k4", "u4.r8.k8", "w3.r4.k8", "w3.r8.k2", "w3.r16.k4.u", "w2.r4.k8", "w2.r8.k4.u"),
    *("u8.r8.k2", "u8.r16.k4.u", "w4g64.r8.k4.u", "w4g128.r4.k8", "w8g64.r4.k2", "w8g128.r16.k4.u", "n4g128.r8.k2"),
    *("u4g64.r8.k4", "u4g128.r4.k16.u", "u8g64.r4.k16", "u8g128.r16.k4.u", "w3g64.r8.k2", "w2g128.r4.k8"),
)


def unpack(
    packing: str,
    data: np.ndarray,
    scale: np.ndarray | None,
    rows: int,
    columns: int,
    high: np.ndarray | None = None,
    zero: np.ndarray | None = None,
) -> np.ndarray:
    """The float32 weights that FORMAT.md says the stored bytes stand for, element by element."""
    name, *rest = packing.split(".")
    kind, _, size = name.partition("g")
    shared = int(size or 32) // 32  # groups of 32 columns that share a scale
    R = int(rest[0][1:])
    out = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        g, r = divmod(row, R)
        if kind in ("f32", "f16"):
            out[row] = data[g, :, r]
            continue
        step = int(rest[1][1:])
        offset = {"w8": 128, "u8": 128, "w4": 8, "u4": 8}.get(kind, 0) if rest[-1] == "u" else 0
        for k in range(columns):
            b, inner = divmod(k, 32)
            if kind in ("w8", "u8"):
                c, i = divmod(inner, step)
                q = int(data[g, b, c, r, i]) - offset if offset else int(data[g, b, c, r, i].view(np.int8))
            elif kind in ("w3", "w2"):
                c, within = divmod(inner, 4 * step)
                j, i = divmod(within, step)
                code = int(data[g, b, c, r, i]) >> 2 * j & 3
                if kind == "w3":
                    half, byte = divmod((c * R + r) * step + i, 4 * R)
                    code |= (int(high[g, b, byte]) >> (4 * half + j) & 1) << 2
                q = LEVELS[kind][code]
            else:
                c, within = divmod(inner, 2 * step)
                high, i = divmod(within, step)
                nibble = (int(data[g, b, c, r, i]) >> (4 * high)) & 15
                q = nibble - offset if offset else (nibble ^ 8) - 8
                if kind == "n4":
                    q = LEVELS[kind][nibble]
            if kind in ("u4", "u8"):
                bits = int(kind[1])
                word, place = divmod(b // shared, 32 // bits)
                q += (1 << bits - 1) - (int(zero[g, word, r]) >> bits * place & (1 << bits) - 1)
            out[row, k] = np.float32(q) * np.float32(scale[g, b // shared, r])
    return out


@pytest.mark.parametrize("packing", [*QUANTIZED, "f16.r16", "f32.r16"])
def test_stored_bytes_mean_the_weights(tmp_path, packing):
    columns = 1280 if packing.startswith("u") else 128  # zero points in more words than one
    q, k, v = random(10, columns), random(6, columns, seed=2), random(5, columns, seed=3)
    source = make(tmp_path / "model", q=q.astype(ml_dtypes.bfloat16), k=k.astype(np.float16), v=v)
    parameter = tensor("qkv", ("q", "k", "v"), (21, columns), packing)
    write_weights(source, [parameter], tmp_path)
    stored = load_file(tmp_path / "layer.0.safetensors")
    stacked = np.concatenate([source.read(name) for name in "qkv"])
    more = [stored.get(f"qkv.{part}") for part in ("scale", "high", "zero")]
    found = unpack(packing, stored["qkv"], more[0], 21, columns, *more[1:])
    if packing in QUANTIZED:
        np.testing.assert_array_equal(found, dequantize(*quantize(kind := packing.split(".")[0], stacked)))
        part = {"w8": 1 / 126, "u8": 1 / 120, "w4": 1 / 7, "n4": 1 / 6, "u4": 1 / 6, "w3": 0.4, "w2": 0.8}[kind[:2]]
        size = KINDS[kind].group
        steps = np.abs(stacked).reshape(21, -1, size).max(-1).repeat(size, 1) * np.float32(
            part if size == 32 else 2 * part
        )
        assert (np.abs(found - stacked) <= steps).all()
    else:
        np.testing.assert_array_equal(found, stacked.astype(np.float16) if packing.startswith("f16") else stacked)


def test_layout_of_a_shard(tmp_path):
    source = make(tmp_path / "model", w=random(20, 32), n=random(5), e=random(40, 32))
    constants = tensor("angles", (), (3,), "vec", "constants", np.array([1, 2, 3], np.int32))
    parameters = [
        tensor("n", ("n",), (5,), "vec"),
        tensor("w", ("w",), (20, 32), "w4.r16.k4"),
        tensor("e", ("e",), (40, 32), "f16.r16", "embedding"),
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
    parameter = tensor("ab", ("a", "b"), (81, 64), "w4.r8.k4.u")
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


SEARCHED = ("n4", "u4", "w3", "w2")


@pytest.mark.parametrize("kind", SEARCHED)
def test_a_search_finds_what_a_plain_scale_does_not(kind):
    """Whatever the group, to the nearest number of the kind, and on the whole better than at the extreme value."""
    how, weight = KINDS[kind], random(64, 96, seed=3)
    weight[10:20] = np.abs(weight[10:20])  # of one sign
    weight[20:30] -= np.float32(3)
    weight[30] = 0
    weight[31] = 0.25
    weight[32] = np.where(np.arange(96) == 40, 100, 1e-3)
    q, scale = quantize(kind, weight)
    assert how.fits(q)
    made = dequantize(q, scale)
    np.testing.assert_array_equal(made[30], 0)
    np.testing.assert_allclose(made[31], 0.25, rtol=1e-3)
    groups, whole = weight.reshape(-1, 32), q.reshape(-1, 32).astype(np.int16)
    for group, integers, factor in zip(groups, whole, scale.reshape(-1).astype(np.float32), strict=True):
        zero = max(0, -integers.min()) if how.zero else 0
        numbers = np.array(how.levels) if how.levels else np.arange(16) - zero
        if factor and not how.zero:  # of several zero points that fit, the one in use cannot be told
            best = np.abs(group[:, None] - numbers * factor).min(1)
            np.testing.assert_allclose(np.abs(group - integers * factor), best, atol=2e-6 * np.abs(group).max())
    plain = 2 * np.abs(weight).max() / (2**how.bits - 1)
    assert np.square(made - weight).sum(1)[:10].mean() < np.square(plain / 2) * 96 / 3
    least = {"n4": 0.085, "u4": 0.085, "w3": 0.19, "w2": 0.36}[kind]
    assert np.sqrt(np.square(made - weight)[:10].mean() / np.square(weight[:10]).mean()) < least


def test_a_codebook_is_nearer_than_even_numbers_of_the_same_bits():
    weight = random(128, 256)
    errors = {kind: np.square(dequantize(*quantize(kind, weight)) - weight).mean() for kind in KINDS}
    for kind in BASES:
        small, larger, largest = (errors[each.name] for each in reversed(of_base(kind.name)))
        assert small < larger < largest < 1.8 * small, kind.name
    assert errors["n4"] < 0.8 * errors["w4"]
    assert errors["u4"] < 0.9 * errors["w4"]
    assert errors["w8"] < errors["n4"] < errors["w3"] < errors["w2"]
    lopsided = weight + np.float32(3)  # what a zero point is for
    errors = {kind: np.square(dequantize(*quantize(kind, lopsided)) - lopsided).mean() for kind in ("w4", "u4")}
    assert errors["u4"] < 0.9 * errors["w4"]


@pytest.mark.parametrize("kind", SEARCHED)
def test_a_search_of_values_at_the_ends_of_float16(kind):
    for factor in (1e-12, 1e-9, 1e-7, 1e-5, 1e3, 6e4):
        weight = random(8, 64) * np.float32(factor)
        q, scale = quantize(kind, weight)
        assert np.isfinite(scale).all()
        assert KINDS[kind].fits(q)
        if factor >= 1e-5:
            assert np.abs(dequantize(q, scale) - weight).max() < np.abs(weight).max()
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        weight = random(8, 64)
        weight[3, 40] = bad
        with pytest.raises(QuantizeError, match="row 3 holds a value that is not finite or too large"):
            quantize(kind, weight)


@pytest.mark.parametrize("kind", ["n4", "w3", "w2"])
def test_the_nearest_level_is_the_nearest(kind):
    levels = np.array(LEVELS[kind], np.float32)
    values = np.linspace(-140, 140, 40321, dtype=np.float32)
    found = KINDS[kind].whole(values)
    nearest = np.abs(values[:, None] - levels).min(1)
    np.testing.assert_array_equal(np.abs(values - found), nearest)
    middles = (levels[1:] + levels[:-1]) / 2
    np.testing.assert_array_equal(KINDS[kind].whole(middles), levels[1:])


def test_what_fits_a_kind():
    q = np.zeros((2, 64), np.int8)
    q[:, ::2] = 7
    names = [kind.name for kind in BASES]
    assert [kind for kind in names if KINDS[kind].fits(q)] == ["w8", "u8", "w4", "u4"]
    q[1, 3] = -9
    assert [kind for kind in names if KINDS[kind].fits(q)] == [
        "w8",
        "u8",
    ]  # 16 apart: one more than a zero point bridges
    q[1, 3] = -8
    q[0] += 8
    assert [kind for kind in names if KINDS[kind].fits(q)] == ["w8", "u8", "u4"]
    assert not any(kind.fits(q[:0]) for kind in KINDS.values())
    assert [kind for kind in names if KINDS[kind].fits(np.full((1, 32), -127, np.int8))] == ["w8", "u8", "n4"]
    np.testing.assert_array_equal(zero_points(q), [[0, 0], [8, 0]])
    np.testing.assert_array_equal(zero_points(q, 64), [[0], [8]])
    q = np.repeat(np.array([[0, -8]], np.int8), 32, 1)
    q[0, 40:] = 7
    fitting = ["w4", "u4", "w4g64", "u4g64"]
    assert [
        kind for kind in KINDS if kind[1] == "4" and KINDS[kind].fits(q)
    ] == fitting  # 64 columns have no group of 128
    q[0, 0] = 15  # each half bridged by a zero point, not both by one
    assert [kind for kind in KINDS if kind[1] == "4" and KINDS[kind].fits(q)] == ["u4"]


def test_scales_of_larger_groups():
    scale = np.array([[1, 1, 2, 2], [3, 3, 4, 4]], np.float16)
    np.testing.assert_array_equal(regrouped("w4g64", scale), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(regrouped("w4", scale), scale)
    assert regrouped("w4g128", scale) is None
    assert regrouped("w4g64", np.array([[1, 1, 2, 1]], np.float16)) is None


def test_parts_do_not_show():
    weight = random(300, 512)  # more than a thread takes at a time
    for found, expected in zip(quantize("w4", weight), plainly("w4", weight), strict=True):
        assert found.tobytes() == expected.tobytes()


def test_memory_stays_at_a_slice(tmp_path):
    rows = 30_000
    source = make(tmp_path / "model", big=np.ones((rows, 1024), np.float16))
    parameter = tensor("big", ("big",), (rows, 1024), "w4.r4.k4")
    tracemalloc.start()
    try:
        write_weights(source, [parameter], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000  # the tensor is 123 MB as float32
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "an infinity"), (-np.inf, "an infinity")])
@pytest.mark.parametrize("packing", ["w4.r4.k4", "w8.r4.k4", "n4.r4.k4", "u4.r4.k4", "w3.r4.k4", "f16.r16", "f32.r16"])
def test_values_that_are_not_finite(tmp_path, value, kind, packing):
    bad = random(40, 32)
    bad[33, 5] = value
    source = make(tmp_path / "model", good=random(8, 32), bad=bad)
    with pytest.raises(QuantizeError, match=f"tensor 'bad' holds {kind} in row 33.*download it again") as error:
        write_weights(source, [tensor("w", ("good", "bad"), (48, 32), packing)], tmp_path)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["model"]


@pytest.mark.parametrize("packing", ["f16.r16", "w8.r4.k4"])
def test_values_beyond_float16(tmp_path, packing):
    bad = random(40, 32)
    bad[33, 5] = 1e30
    source = make(tmp_path / "model", bad=bad)
    with pytest.raises(QuantizeError, match=r"bad, rows from 0 on: .*too large"):
        write_weights(source, [tensor("w", ("bad",), (40, 32), packing)], tmp_path)
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
        write_weights(source, [tensor("w", sources, shape, "w4.r4.k4")], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_a_full_disk_leaves_nothing(tmp_path):
    source = make(tmp_path / "model", a=random(64, 32))
    (tmp_path / "weights").mkdir()

    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_weights(source, [tensor("w", ("a",), (64, 32), "w4.r4.k4")], tmp_path / "weights", full)
    assert os.listdir(tmp_path / "weights") == []
