"""Checkpoints: what is read, how lazily, and that every damaged one gets a one-line error with the remedy."""

import json
import shutil
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from crosscompile import checkpoint
from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.safetensors_stream import read_header

NAMED_TEMPLATES = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    generator = np.random.Generator(np.random.PCG64(1))
    values = generator.standard_normal((12, 8)).astype(np.float32)
    tensors = {"a": values, "b": values.astype(np.float16), "c": values.astype(ml_dtypes.bfloat16), "v": values[0]}
    save_file(tensors, directory / "model.safetensors")
    return directory


def rewrite(file, change):
    """Applies `change` to the header object of a safetensors file."""
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_reads_every_float_type(model):
    source = checkpoint.load(model)
    for name, dtype in (("a", np.float32), ("b", np.float16), ("c", ml_dtypes.bfloat16)):
        expected = source.read("a").astype(dtype).astype(np.float32)
        assert source.read(name).dtype == np.float32
        np.testing.assert_array_equal(source.read(name), expected)
        np.testing.assert_array_equal(source.read(name, slice(3, 7)), expected[3:7])
    assert source.read("v").shape == (8,)
    assert source.read("a", slice(12, 20)).shape == (0, 8)


def test_reads_shards_through_the_index(model):
    tensors = checkpoint.load(model)
    first, second = {"a": tensors.read("a")}, {"b": tensors.read("b"), "v": tensors.read("v")}
    (model / "model.safetensors").unlink()
    save_file(first, model / "model-00001-of-00002.safetensors")
    save_file(second, model / "model-00002-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 if name == 'a' else 2}-of-00002.safetensors" for name in "abv"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    source = checkpoint.load(model)
    np.testing.assert_array_equal(source.read("a"), first["a"])
    np.testing.assert_array_equal(source.read("b", slice(5)), second["b"][:5])
    assert "model-00002-of-00002.safetensors" in source.files

    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing.*download"):
        checkpoint.load(model)
    save_file({"b": second["b"]}, model / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks tensor 'v'.*download"):
        checkpoint.load(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    with pytest.raises(CheckpointError, match=r"'\.\./secret', not a file name"):
        checkpoint.load(model)


def test_every_16_bit_float_is_read_exactly(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    (tmp_path / "config.json").write_text("{}")
    tensors = {"half": bits.view(np.float16), "brain": bits.view(ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors")
    source = checkpoint.load(tmp_path)
    for name, values in tensors.items():
        expected, found = values.astype(np.float32), source.read(name)
        numbers = ~np.isnan(expected)
        assert (np.isnan(found) == ~numbers).all()
        assert found[numbers].tobytes() == expected[numbers].tobytes()


def test_a_slice_does_not_read_the_tensor(model):
    rows, columns = 40_000, 64
    save_file({"big": np.zeros((rows, columns), np.float16)}, model / "model.safetensors")
    source = checkpoint.load(model)
    tracemalloc.start()
    try:
        assert source.read("big", slice(39_000, 39_100)).shape == (100, columns)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "T"}}, "T"),
        ({"tokenizer_config.json": {"chat_template": NAMED_TEMPLATES}}, "D"),
        ({"tokenizer_config.json": {"chat_template": "T"}, "chat_template.json": {"chat_template": "J"}}, "J"),
        ({"tokenizer_config.json": {"chat_template": "T"}, "chat_template.jinja": "X"}, "X"),
        ({}, None),
    ],
)
def test_finds_the_chat_template(model, files, expected):
    for name, content in files.items():
        (model / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert checkpoint.load(model).chat_template == expected


def test_special_tokens_may_be_strings_or_objects(model):
    (model / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<b>"}, "eos_token": "<x>"}))
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<e>", "add_bos_token": True}))
    assert checkpoint.load(model).special_tokens == {"bos_token": "<b>", "eos_token": "<e>"}


def test_truncated_file(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(model)
    assert "model.safetensors is truncated" in message(error)
    assert "download or export it again" in message(error)


def test_truncated_anywhere_is_an_error_not_a_crash(model):
    file = model / "model.safetensors"
    raw = file.read_bytes()
    for n in (0, 1, 7, 8, 9, 50, len(raw) // 2, len(raw) - 1):
        file.write_bytes(raw[:n])
        with pytest.raises(CheckpointError):
            checkpoint.load(model)
    file.write_bytes(raw + b"x")
    with pytest.raises(CheckpointError, match="1 bytes follow the last tensor"):
        checkpoint.load(model)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer_config.json", '{"model_max_length": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": ["a"], "template": "x"}]}',
            "no template named 'default'",
        ),
        ("config.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_texts_that_python_chokes_on_are_named(model, name, text, said):
    (model / name).write_text(text)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(model)
    assert name in message(error)
    assert said in message(error)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800", "line\nbreak"])
def test_an_index_cannot_name_what_is_no_file_name(model, name):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a file name"):
        checkpoint.load(model)


def damage(name, **changes):
    def change(header):
        header[name].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (damage("a", data_offsets=[0, 1 << 40]), "is truncated: tensor 'a' ends"),
        (damage("a", data_offsets=[384, 0]), "run backwards"),
        (damage("a", data_offsets=[-1, 384]), "not a pair of offsets"),
        (damage("a", data_offsets=[0, True]), "not a pair of offsets"),
        (damage("a", shape=[12, 9]), "takes 432 bytes, data_offsets span 384"),
        (damage("a", shape=[1 << 62, 1 << 62]), "bytes, data_offsets span"),
        (damage("a", shape="x"), "shape is not a list"),
        (damage("a", dtype=7), "dtype is 7"),
        (lambda header: {**header, "z": dict(header["a"])}, "overlap"),
        (lambda header: {k: v for k, v in header.items() if k != "a"}, "unused"),
        (lambda header: [1], "header is not a JSON object"),
        (lambda header: {**header, "a": 3}, "tensor 'a' is not an object"),
        (lambda header: {**header, "__metadata__": {"x": 1}}, "__metadata__"),
    ],
)
def test_nonsense_headers(model, change, text):
    rewrite(model / "model.safetensors", change)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(model)
    assert text in message(error)
    assert "again" in message(error)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":1,"a":2}', b'{"\\ud800":1}'])
def test_headers_that_are_not_json(model, text):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="header is not JSON"):
        checkpoint.load(model)


def test_every_flipped_header_byte_is_an_error_or_harmless(model):
    file = model / "model.safetensors"
    raw = bytearray(file.read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    for at in range(8 + length):
        raw[at] ^= 0x11
        file.write_bytes(raw)
        try:
            for tensor in read_header(file)[0].values():
                assert tensor.offset_bytes + tensor.n_bytes <= len(raw)
        except CheckpointError:
            pass
        raw[at] ^= 0x11


def test_missing_wrong_and_unreadable_tensors(model):
    save_file({"q": np.zeros((4, 4), np.int8), "w": np.zeros((4, 4), np.float32)}, model / "model.safetensors")
    source = checkpoint.load(model)
    with pytest.raises(CheckpointError, match=r"tensor 'nope' is missing.*config\.json") as error:
        source.read("nope")
    message(error)
    with pytest.raises(CheckpointError, match=r"'q' has dtype 'I8'; only F32, F16, BF16"):
        source.read("q")
    with pytest.raises(CheckpointError, match=r"'w' has shape \[4, 4\], config\.json implies \[4, 8\]"):
        source.info("w", (4, 8))
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-70])
    with pytest.raises(CheckpointError, match="truncated while it was read"):
        source.read("w")


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["pytorch_model.bin"], "as pickle (pytorch_model.bin), which can run code"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "as pickle"),
        (["model-q4.gguf"], "GGUF weights; name the file itself: "),
        (["adapter_model.safetensors"], "adapter_model.safetensors but neither"),
        ([], "has neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_other_kinds_of_weights_are_named(model, files, text):
    (model / "model.safetensors").unlink()
    for name in files:
        (model / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(model)
    assert text in message(error)


def test_configuration_errors(model):
    (model / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(
        ConfigError, match=r"already quantized \('fp8'\); only awq and gptq are read so: use the original"
    ):
        checkpoint.load(model)
    (model / "config.json").write_text('{\n "a": }')
    with pytest.raises(CheckpointError, match=r"config\.json: line 2"):
        checkpoint.load(model)
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        checkpoint.load(model)
    with pytest.raises(CheckpointError, match=r"is a file; name the checkpoint directory"):
        checkpoint.load(model / "tokenizer.json")
    shutil.rmtree(model)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(model)


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (None, "mean"),
        (["mean_tokens"], "mean"),
        (["lasttoken"], "last"),
        (["cls_token"], None),
        (["mean_tokens", "max_tokens"], None),
        ([], None),
    ],
)
def test_pooling_is_what_sentence_transformers_says(model, modes, expected):
    if modes is not None:
        names = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
        said = {f"pooling_mode_{name}": name in modes for name in names} | {"word_embedding_dimension": 64}
        (model / "1_Pooling").mkdir()
        (model / "1_Pooling" / "config.json").write_text(json.dumps(said))
    source = checkpoint.load(model)
    assert source.pooling == expected
    assert ("1_Pooling/config.json" in source.files) == (modes is not None)
