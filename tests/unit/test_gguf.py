"""GGUF files: the same network and weights as the checkpoint they were made of, integers kept, and bad files named."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from crosscompile import checkpoint, models
from crosscompile.errors import CheckpointError, CompileError, ConfigError, QuantizeError
from crosscompile.gguf_file import READABLE, TYPES_KEPT, integers, read_header, read_rows, values
from crosscompile.kinds import KINDS
from crosscompile.models.design import Design
from crosscompile.packing import dequantize, quantize
from crosscompile.pieces import Piece, piece_of
from crosscompile.quantize import write_weights
from tests.campaigns import gguf as campaign
from tests.gguf_writing import ROWS, raw_blocks, write_llama
from tests.oracle.gguf_checkpoints import DATA, write_pair
from tests.unit.test_quantize import tensor, unpack

NAMES = sorted(json.loads(DATA.read_text()))


def differences(ours: Design, theirs: Design) -> list[str]:
    """Fields in which two designs differ."""
    found = []
    for field in dataclasses.fields(Design):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "ropes":
            a, b = ([(r.inv_freq.tolist(), r.scaling, r.long is None, r.original) for r in ropes] for ropes in (a, b))
        if a != b:
            found.append(f"{field.name}: {a} and {b}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_llama_cpps_converter_is_the_checkpoint_it_was_made_of(tmp_path: Path, name: str) -> None:
    directory, file = write_pair(tmp_path, name)
    source, found = checkpoint.load(directory), checkpoint.load(file)
    ours, theirs = (models.FAMILIES[one.config["architectures"][0]].design(one.config) for one in (found, source))
    assert differences(ours, theirs) == []
    for name in source.tensors:
        expected = source.read(name)
        got = found.read(name)
        np.testing.assert_array_equal(got.T if found.tensors[name].transposed else got, expected, name)
        n = got.shape[0]
        for start, stop in ((0, 1), (n // 3, 2 * n // 3 + 1), (n - 1, n)):
            np.testing.assert_array_equal(found.read(name, slice(start, stop)), got[start:stop], name)


def test_matrices_that_the_checkpoint_has_transposed_are_read_by_rows(tmp_path: Path) -> None:
    directory, file = write_pair(tmp_path, "gpt2")
    from crosscompile.pieces import Rows

    name = Piece("transformer.h.1.attn.c_attn.weight", transposed=True)
    a, b = (Rows(checkpoint.load(path), name) for path in (directory, file))
    assert a.shape == b.shape == (96, 32)
    np.testing.assert_array_equal(a.read(5, 40), b.read(5, 40))
    assert a.whole is not None
    assert b.whole is None


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_is_read_as_gguf_reads_it(tmp_path: Path, kind: str) -> None:
    file, raw = tmp_path / "one.gguf", raw_blocks(kind, ROWS, 512, seed=3)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_tensor("t", raw, raw_dtype=GGMLQuantizationType[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    stored = gguf.GGUFReader(file).tensors[0]
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(stored.data, stored.tensor_type).astype(np.float32)
    tensor = read_header(file).tensors["t"]
    assert (tensor.type, tensor.shape) == (kind, (ROWS, 512))
    for first, count in ((0, ROWS), (0, 1), (3, 9), (ROWS - 1, 1)):
        found = values(kind, read_rows(tensor, first, count))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), expected[first : first + count].view(np.uint32))


@pytest.mark.parametrize("kind", [kind for kind in TYPES_KEPT if kind != "Q4_1"])
def test_integers_and_scales_are_those_in_the_file(kind: str) -> None:
    raw = raw_blocks(kind, ROWS, 512, seed=4)
    q, scale = integers(kind, raw)
    np.testing.assert_array_equal(dequantize(q, scale).view(np.uint32), values(kind, raw).view(np.uint32))
    blocks = raw.reshape(ROWS, 16, -1)
    np.testing.assert_array_equal(scale.view(np.uint8).reshape(ROWS, 16, 2), blocks[..., :2])
    if kind == "Q8_0":
        np.testing.assert_array_equal(q.view(np.uint8).reshape(ROWS, 16, 32), blocks[..., 2:])
    if kind == "Q4_0":
        nibbles = (q.reshape(ROWS, 16, 32) + 8).astype(np.uint8)
        np.testing.assert_array_equal(nibbles[..., :16] | nibbles[..., 16:] << 4, blocks[..., 2:])


def test_minima_that_are_whole_numbers_of_scales_are_zero_points() -> None:
    raw = raw_blocks("Q4_1", ROWS, 512, seed=4)
    assert integers("Q4_1", raw) is None  # minima of their own, as most files have them
    blocks = raw.reshape(-1, 20)
    scale = blocks[:, :2].copy().view("<f2")[:, 0]
    scale[:] = np.arange(1, len(scale) + 1, dtype=np.float16) / np.float16(2048)  # products with 0 to 15 fit float16
    scale[::2] *= np.float16(-1)
    scale %= np.float16(1)
    zero = np.arange(len(scale)) % 16
    least = (-zero * scale.astype(np.float32)).astype(np.float16)
    fits = -zero * scale.astype(np.float32) == least.astype(np.float32)
    scale[~fits], least[~fits] = np.float16(0), np.float16(0.37)  # equal weights: the minimum is all there is
    blocks[:, :2], blocks[:, 2:4] = scale[:, None].view(np.uint8), least[:, None].view(np.uint8)
    found = integers("Q4_1", raw)
    assert found is not None
    np.testing.assert_array_equal(dequantize(*found), values("Q4_1", raw))
    assert KINDS["u4"].fits(found[0])
    blocks[-1, 2:4] = np.full(1, np.nan, np.float16).view(np.uint8)
    assert integers("Q4_1", raw) is None


@pytest.mark.parametrize(
    ("kind", "packing", "kept"),
    [
        ("Q4_0", "w4.r16.k4", True),
        ("Q4_0", "w4.r16.k4.u", True),
        ("Q4_0", "w8.r8.k4", True),
        ("Q5_0", "w8.r8.k4.u", True),
        ("Q8_0", "w8.r8.k4", True),
        ("IQ4_NL", "w8.r8.k4", True),
        ("IQ4_NL", "n4.r16.k4.u", True),
        ("IQ4_NL", "n4.r4.k16", True),
        ("Q4_0", "u4.r8.k4", True),
        ("Q4_0", "n4.r8.k4", False),
        ("Q8_0", "w4.r16.k4", False),
        ("Q4_K", "w4.r16.k4", False),
        ("Q6_K", "w8.r8.k4", False),
    ],
)
def test_what_our_schemes_can_carry_is_not_quantized_again(tmp_path: Path, kind: str, packing: str, kept: bool) -> None:
    source = checkpoint.load(write_llama(tmp_path / "m.gguf", {"attn_q": kind, "attn_k": kind, "attn_v": "F16"}))
    names = tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")
    rows = [source.read(name) for name in names]
    total = np.concatenate(rows)
    parameter = tensor("p", names, total.shape, packing)
    written = write_weights(source, [parameter], tmp_path)
    quantized = rows[0].size + rows[1].size
    assert (written.n_kept, written.n_again) == ((quantized, 0) if kept else (0, quantized))
    stored = checkpoint.read_header(tmp_path / "layer.0.safetensors")[0]

    def load(name: str, dtype: str) -> np.ndarray:
        info = stored[name]
        raw = np.fromfile(info.file, dtype, offset=info.offset_bytes, count=int(np.prod(info.shape)))
        return raw.reshape(info.shape)

    zero = load("p.zero", "i4") if "p.zero" in stored else None
    found = unpack(packing, load("p", "u1"), load("p.scale", "f2"), *total.shape, zero=zero)
    as_kind = [dequantize(*quantize(packing[:2], part)) for part in rows]
    expected = [*rows[:2], as_kind[2]] if kept else as_kind
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_the_one_integer_that_kernels_do_not_take_is_quantized_again(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", {"attn_o": "Q8_0", "attn_output": "Q8_0"})
    place = checkpoint.load(file).tensors["model.layers.0.self_attn.o_proj.weight"]
    data = bytearray(file.read_bytes())
    data[place.offset_bytes + 2] = 0x80
    file.write_bytes(data)
    source = checkpoint.load(file)
    parameter = tensor("p", (place.name,), place.shape, "w8.r8.k4")
    assert write_weights(source, [parameter], tmp_path).n_again == place.shape[0] * place.shape[1]
    data[place.offset_bytes : place.offset_bytes + 3] = struct.pack("<eB", np.inf, 1)
    file.write_bytes(data)
    with pytest.raises(QuantizeError, match=r"o_proj.*holds an infinity in row 0"):
        write_weights(checkpoint.load(file), [parameter], tmp_path)


def test_parts_of_a_split_file_are_one(tmp_path: Path) -> None:
    whole = checkpoint.load(write_llama(tmp_path / "m.gguf", {}))
    first = write_llama(tmp_path / "m-00001-of-00002.gguf", {}, part=(0, 2))
    with pytest.raises(CheckpointError, match=r"is one of 2 parts, m-00002-of-00002\.gguf is not beside it"):
        checkpoint.load(first)
    second = write_llama(tmp_path / "m-00002-of-00002.gguf", {}, part=(1, 2))
    for part in (first, second):
        found = checkpoint.load(part)
        assert found.tensors.keys() == whole.tensors.keys()
        assert [path.name for path in found.paths] == [first.name, second.name]
        for name in whole.tensors:
            np.testing.assert_array_equal(found.read(name), whole.read(name))
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="is in another part too"):
        checkpoint.load(first)


def test_a_directory_with_a_gguf_file_says_to_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_llama(tmp_path / "m.gguf", {})
    with pytest.raises(CheckpointError, match=r"name the file itself: .*m\.gguf"):
        checkpoint.load(tmp_path)


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def number(key: str, value: int, code: str = "<I") -> Callable[[bytes], bytes]:
    """Puts another number under a key whose value is a uint32."""

    def change(data: bytes) -> bytes:
        at = data.index(key.encode()) + len(key) + 4
        return data[:at] + struct.pack(code, value) + data[at + struct.calcsize(code) :]

    return change


def entry(name: str, at: int, code: str, value: int) -> Callable[[bytes], bytes]:
    """Changes a field of a matrix' entry: at 4 its extents, at 20 its type, at 24 its offset."""

    def change(data: bytes) -> bytes:
        start = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + at
        return data[:start] + struct.pack(code, value) + data[start + struct.calcsize(code) :]

    return change


BAD: dict[str, tuple[Callable[[bytes], bytes], type[CompileError], str]] = {
    "empty": (lambda data: b"", CheckpointError, "is empty"),
    "another format": (lambda data: b"PK\3\4" + data, CheckpointError, "is not a GGUF file"),
    "header cut off": (lambda data: data[:100], CheckpointError, "is truncated or damaged; download it again"),
    "data cut off": (lambda data: data[:-5000], CheckpointError, r"tensor '[\w.]+' ends at byte \d+, the file at"),
    "version 1": (lambda data: data[:4] + b"\1" + data[5:], CheckpointError, "GGUF version 1 is not supported"),
    "big-endian": (lambda data: data[:4] + b"\0\0\0\3" + data[8:], CheckpointError, "big-endian"),
    "many tensors": (
        lambda data: data[:8] + b"\xff" * 8 + data[16:],
        CheckpointError,
        "announces 18446744073709551615 tensors",
    ),
    "many keys": (lambda data: data[:16] + b"\xff" * 8 + data[24:], CheckpointError, "which is not plausible"),
    "long text": (
        lambda data: data[:24] + b"\xff" * 8 + data[32:],
        CheckpointError,
        "key 0 has a text of 18446744073709551615 bytes",
    ),
    "key twice": (
        swap(b"general.alignment", b"general.file_type"),
        CheckpointError,
        "'general.file_type' appears twice",
    ),
    "tensor twice": (swap(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), CheckpointError, "appears twice"),
    "a strange tensor": (
        swap(b"blk.0.attn_k.weight", b"blk.0.attn_K.weight"),
        ConfigError,
        "tensor 'blk.0.attn_K.weight' is not part of general.architecture 'llama'",
    ),
    "not UTF-8": (swap(b"general.architecture", b"general.architectur\xff"), CheckpointError, "not UTF-8"),
    "another network": (
        swap(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0lhama"),
        ConfigError,
        "general.architecture 'lhama' is not supported as GGUF; llama, qwen2",
    ),
    "unknown key type": (
        swap(b"llama.block_count\4", b"llama.block_count\x4d"),
        CheckpointError,
        "key 'llama.block_count' has type 77, which GGUF does not define",
    ),
    "a text for a number": (
        swap(b"llama.block_count\4\0\0\0\2", b"llama.block_count\6\0\0\0\2"),
        ConfigError,
        "llama.block_count must be an integer",
    ),
    "huge block count": (
        number("llama.block_count", 0xFFFFFFFF),
        ConfigError,
        "llama.block_count must be an integer from 1 to 16777216",
    ),
    "block count beyond tensors": (
        number("llama.block_count", 1 << 20),
        ConfigError,
        "llama.block_count is 1048576, but the file has no tensors of layer 1048575",
    ),
    "huge head count": (
        number("llama.attention.head_count", 1 << 23),
        ConfigError,
        "llama.attention.head_count is 8388608, which is not plausible",
    ),
    "wrong width": (number("llama.embedding_length", 96), CheckpointError, "embedding_length is 96"),
    "uneven heads": (number("llama.attention.head_count", 3), CompileError, "3"),
    "unknown type": (entry("output_norm.weight", 12, "<I", 99), CheckpointError, "has type 99, which edgellm does not"),
    "no rows": (entry("output_norm.weight", 4, "<Q", 0), CheckpointError, r"has shape \[0\], which is not plausible"),
    "huge extent": (entry("output_norm.weight", 4, "<Q", 1 << 62), CheckpointError, "which is not plausible"),
    "crooked offset": (entry("output_norm.weight", 16, "<Q", 1), CheckpointError, "is not a multiple of 32"),
    "overlap": (entry("output_norm.weight", 16, "<Q", 0), CheckpointError, "overlaps"),
    "beyond the end": (
        entry("output_norm.weight", 16, "<Q", 1 << 40),
        CheckpointError,
        r"'output_norm\.weight' ends at byte \d+, the file at \d+: it is truncated",
    ),
    "uneven blocks": (entry("blk.0.attn_q.weight", 4, "<Q", 33), CheckpointError, "which blocks of 32 do not divide"),
    "five dimensions": (entry("output_norm.weight", 0, "<I", 5), CheckpointError, "has 5 dimensions, 1 to 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_and_hostile_files_get_one_line_that_names_file_and_field(tmp_path: Path, case: str) -> None:
    change, kind, text = BAD[case]
    file = write_llama(tmp_path / "bad.gguf", {"attn_q": "Q8_0"})
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(kind, match=text) as error:
        checkpoint.load(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named_when_it_is_needed(tmp_path: Path) -> None:
    source = checkpoint.load(write_llama(tmp_path / "m.gguf", {}, leave_out=("blk.1.ffn_up.weight",)))
    with pytest.raises(CheckpointError, match=r"no tensor for 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        source.info("model.layers.1.mlp.up_proj.weight")


def test_a_slice_does_not_read_the_tensor(tmp_path: Path) -> None:
    import tracemalloc

    file = write_llama(tmp_path / "m.gguf", {"token_embd": "Q8_0"}, vocab=40_000)
    source = checkpoint.load(file)
    source.read("model.embed_tokens.weight", slice(0, 1))
    tracemalloc.start()
    try:
        assert source.read("model.embed_tokens.weight", slice(39_000, 39_100)).shape == (100, 256)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_all_sources_of_a_design_are_there(tmp_path: Path) -> None:
    source = checkpoint.load(write_llama(tmp_path / "m.gguf", {}))
    for sources in models.FAMILIES["LlamaForCausalLM"].design(source.config).sources.values():
        for one in sources:
            source.info(piece_of(one).tensor)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """A sample of tests.campaigns.gguf."""
    rng = random.Random(3)
    beginnings = campaign.originals(tmp_path)
    for _ in range(200):
        file = tmp_path / "fuzzed.gguf"
        file.write_bytes(campaign.mutated(rng.choice(beginnings), rng))
        campaign.judge(file)
