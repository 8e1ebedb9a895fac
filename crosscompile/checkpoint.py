"""A Hugging Face checkpoint directory: configuration, tokenizer files, and tensors read lazily from safetensors.

A GGUF file is opened here too (crosscompile.gguf_checkpoint).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.parallel import PART, in_parts
from crosscompile.safetensors_stream import TensorInfo, read_header

__all__ = ["Checkpoint", "TensorInfo", "load"]

FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
"""Stored types that can be read. NumPy has no bfloat16: its bits are the upper half of a float32."""

GGUF = ".gguf"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
RANDOM = "random.json"
"""Stands in for the weights of a random checkpoint (crosscompile.random_checkpoint)."""
_ADAPTER = "{} holds an adapter, not a model; name the model it is for, and this directory with --lora"
POOLING = "1_Pooling/config.json"
"""Of sentence-transformers: how an embedding is made."""
WORLD = "rwkv_vocab_v*.txt"
"""RWKV's vocabulary, which stands for a tokenizer.json (crosscompile.world_vocabulary)."""
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    POOLING,
)
"""Every file besides the tensors that can change what is compiled."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Tensors stay in their files until `read`.

    special_tokens: name -> text ("bos_token" -> "<s>"), from tokenizer_config.json and special_tokens_map.json.
    files: everything that was read or that `read` may read, relative to `path`. adapter: directory of one that is
    merged into it (crosscompile.lora).
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer_json: bytes | None
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    tensors: dict[str, TensorInfo] = field(repr=False)
    special_tokens: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    adapter: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """`files` as they can be opened."""
        return [self.path / name for name in self.files]

    @property
    def pooling(self) -> str | None:
        """How an embedding is made of a text's tokens: "mean", also where sentence-transformers is not told, or "last".

        None: in another way, which no bundle has. Raises CheckpointError for a malformed 1_Pooling/config.json.
        """
        if POOLING not in self.files:
            return "mean"
        said = read_object(self.path / POOLING)
        modes = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
        return known.get(modes[0]) if len(modes) == 1 else None

    def info(self, name: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
        """The tensor's place. CheckpointError if it is missing, not a float type, or not of this shape.

        A checkpoint of the network without its head, such as GPT-2's, names its tensors without the first part.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            prefix, dot, bare = name.partition(".")
            if dot and not any(other.startswith(prefix + dot) for other in self.tensors):
                tensor = self.tensors.get(bare)
        if tensor is None:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is missing, which config.json implies; the checkpoint is incomplete "
                f"or config.json belongs to another model"
            )
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} has dtype {tensor.dtype!r}; only {', '.join(FLOATS)} can be compiled: "
                f"use the unquantized checkpoint or save it as bfloat16"
            )
        if shape is not None and tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}, config.json implies {list(shape)}; "
                f"one of the two belongs to another model"
            )
        return tensor

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Reads a tensor, or a slice of its first axis, as float32. Only the slice is read from the file."""
        return read_values(self.info(name), rows)

    def integers(self, name: str, rows: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows of a matrix as the checkpoint quantized them, if it did so in a way that our schemes can carry.

        Returns q (rows, columns) int8 and scale (rows, columns / 32) float16, whose product is exactly what `read`
        gives; None for all else.
        """
        return None


def read_values(tensor: TensorInfo, rows: slice | None = None) -> np.ndarray:
    """A tensor of floats, or a slice of its first axis, as float32. Only the slice is read from the file."""
    start, stop, step = (rows or slice(None)).indices(tensor.shape[0] if tensor.shape else 1)
    assert step == 1, "only contiguous rows"
    stored = FLOATS[tensor.dtype]
    inner = tensor.shape[1:]
    width = int(np.prod(inner, dtype=np.int64)) * stored.itemsize
    raw = np.empty(max(stop - start, 0) * width, np.uint8)
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset_bytes + start * width)
            n_read = stream.readinto(raw.data)
    except OSError as error:
        raise CheckpointError(f"{tensor.file} cannot be read: {error.strerror}") from error
    if n_read != len(raw):
        raise CheckpointError(f"{tensor.file} was truncated while it was read; download or export it again")
    values = raw.view(stored)
    if stored.itemsize == 2:
        made = np.empty(values.shape, np.float32)
        in_parts(len(values), PART, lambda at: _widen(values[at], made[at], tensor.dtype == "BF16"))
        values = made
    return values.reshape((max(stop - start, 0), *inner) if tensor.shape else ()).astype(np.float32, copy=False)


def _widen(values: np.ndarray, made: np.ndarray, bfloat: bool) -> None:
    """Fills made (n,) float32 from the bits of 16-bit floats. NumPy's own conversion from float16 is slow."""
    bits = made.view(np.uint32)
    if bfloat:
        np.left_shift(values, np.uint32(16), out=bits, dtype=np.uint32, casting="unsafe")
        return
    half = values.view(np.uint16)
    np.left_shift(half & np.uint16(0x7FFF), np.uint32(13), out=bits, dtype=np.uint32, casting="unsafe")
    special = np.flatnonzero(bits >= np.uint32(0x7C00 << 13))  # infinities, NaN
    np.multiply(made, np.float32(2.0**112), out=made)  # exact: exponents begin elsewhere
    bits |= (half & np.uint16(0x8000)).astype(np.uint32) << np.uint32(16)
    if len(special):
        made[special] = values[special]


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def _read_text(file: Path) -> str:
    try:
        return _read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 (byte {error.start}); download or export it again") from error


def read_object(file: Path, required: bool = False) -> dict[str, Any]:
    """A JSON object; {} if the file does not exist and is not required."""
    if not file.exists() and not required:
        return {}
    try:
        value = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file}: line {error.lineno}: {error.msg}; download or export it again") from error
    except RecursionError as error:
        raise CheckpointError(f"{file}: nested too deeply; download or export it again") from error
    except ValueError as error:  # a number of thousands of digits
        raise CheckpointError(f"{file}: {error}; download or export it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: a JSON object is expected, not {type(value).__name__}")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory, or what the metadata of a GGUF file says instead.

    ConfigError if it is missing or its weights are quantized in a form that is not read.
    """
    if path.suffix == GGUF and path.is_file():
        from crosscompile.gguf_checkpoint import load_gguf

        return load_gguf(path).config
    file = path / "config.json"
    if not file.is_file() and (path / "adapter_config.json").is_file():
        raise ConfigError(_ADAPTER.format(path))
    if not file.is_file():
        raise ConfigError(f"{path} has no config.json: it is not a Hugging Face checkpoint directory")
    config = read_object(file, required=True)
    if config.get("quantization_config"):
        from crosscompile.packed_checkpoint import form_of

        form_of(config, file)
    return config


def _shards(path: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """Safetensors files with the tensors that the index expects in each (None: whatever it holds)."""
    if (path / SINGLE).is_file():
        yield path / SINGLE, None
        return
    index = path / INDEX
    if not index.is_file():
        raise CheckpointError(_no_weights(path))
    weight_map = read_object(index, required=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty; download it again")
    by_file: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name.isprintable() and 0 < len(name.encode()) < 250
        if not plain or os.path.basename(name) != name or name in (".", ".."):
            raise CheckpointError(f"{index}: weight_map of {tensor!r} is {name!r}, not a file name; download it again")
        by_file.setdefault(name, set()).add(tensor)
    for name, tensors in sorted(by_file.items()):
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing, {INDEX} lists it; download the checkpoint again")
        yield path / name, tensors


def _no_weights(path: Path) -> str:
    """Why a directory without model.safetensors cannot be loaded, and what to do."""
    names = sorted(entry.name for entry in path.iterdir())
    pickles = [name for name in names if name.startswith("pytorch_model") and name.endswith((".bin", ".json"))]
    if pickles:
        return (
            f"{path} holds its weights as pickle ({pickles[0]}), which can run code when read; convert it once with "
            f"transformers: AutoModelForCausalLM.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
        )
    ggufs = [name for name in names if name.endswith(GGUF)]
    if ggufs:
        return f"{path} holds GGUF weights; name the file itself: {path / ggufs[0]}"
    for suffix, text in ((".pth", "original PyTorch"), (".h5", "TensorFlow"), (".msgpack", "Flax")):
        found = [name for name in names if name.endswith(suffix)]
        if found:
            return f"{path} holds {text} weights ({found[0]}); use the model's safetensors version"
    if "adapter_config.json" in names:
        return _ADAPTER.format(path)
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (
            f"{path} has {others[0]} but neither {SINGLE} nor {INDEX}; a whole model is needed, not adapters or parts"
        )
    return f"{path} has neither {SINGLE} nor {INDEX}; download or export the checkpoint again"


def _read_tensors(path: Path) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file, expected in _shards(path):
        found, _ = read_header(file)
        if expected is not None:
            missing = sorted(expected - found.keys())
            if missing:
                raise CheckpointError(f"{file} lacks tensor {missing[0]!r}, {INDEX} lists it there; download it again")
            found = {name: found[name] for name in found if name in expected}
        tensors.update(found)
    return tensors


def _chat_template(path: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The template in order of precedence: chat_template.jinja, chat_template.json, tokenizer_config.json."""
    if (path / "chat_template.jinja").is_file():
        return _read_text(path / "chat_template.jinja")
    file = path / "chat_template.json"
    template = read_object(file).get("chat_template")
    if template is None:
        file, template = path / "tokenizer_config.json", tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, dict)}
        if not named:
            return None
        if "default" not in named:
            raise CheckpointError(
                f"{file}: chat_template has no template named 'default' (it has {sorted(named)}); add one"
            )
        template = named["default"]
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file}: chat_template must be a string or a list, not {type(template).__name__}")
    return template


def _tokenizer(path: Path) -> bytes | None:
    """tokenizer.json, or what RWKV's vocabulary means."""
    if (path / "tokenizer.json").is_file():
        return _read_bytes(path / "tokenizer.json")
    for file in sorted(path.glob(WORLD)):
        from crosscompile.world_vocabulary import world_tokenizer

        return world_tokenizer(file)
    return None


def _special_tokens(path: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    special: dict[str, str] = {}
    for source in (read_object(path / "special_tokens_map.json"), tokenizer_config):
        for key, value in source.items():
            if key.endswith("_token"):
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    special[key] = text
    return special


def load(path: str | Path, lora: str | Path | None = None) -> Checkpoint:
    """Opens a checkpoint directory or a GGUF file: reads JSON files and tensor headers, no tensor data.

    lora: directory of a PEFT adapter that is merged into what is read.
    Raises CheckpointError for missing, truncated or malformed files, ConfigError for a missing or unusable config.json.
    """
    path = Path(path)
    if lora is not None:
        from crosscompile.lora import merge

        return merge(load(path), Path(lora))
    if path.is_file():
        if path.suffix == GGUF:
            from crosscompile.gguf_checkpoint import load_gguf

            return load_gguf(path)
        if path.suffix in PICKLES:
            from crosscompile.lora import CONVERT

            raise CheckpointError(
                f"{path} is a pickle, which can run code when read; convert it once: "
                f"{CONVERT.format(path, path.with_name(SINGLE))}, and name its directory"
            )
        raise CheckpointError(f"{path} is a file; name the checkpoint directory with its config.json, or a .gguf file")
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; name a checkpoint directory")
    config = read_config(path)
    tokenizer_config = read_object(path / "tokenizer_config.json")
    kind: type[Checkpoint] = Checkpoint
    is_random = (path / RANDOM).is_file()
    if is_random:
        from crosscompile.random_checkpoint import RandomCheckpoint, tensors_of

        kind = RandomCheckpoint
    tensors = tensors_of(path / RANDOM) if is_random else _read_tensors(path)
    texts = [name for name in TEXT_FILES if (path / name).is_file()]
    if "tokenizer.json" not in texts:
        texts += [file.name for file in sorted(path.glob(WORLD))[:1]]
    shards = sorted({tensor.file.name for tensor in tensors.values()})
    source = kind(
        path=path,
        config=config,
        generation_config=read_object(path / "generation_config.json"),
        tokenizer_json=_tokenizer(path),
        tokenizer_config=tokenizer_config,
        chat_template=_chat_template(path, tokenizer_config),
        tensors=tensors,
        special_tokens=_special_tokens(path, tokenizer_config),
        files=(*texts, *shards),
    )
    if not config.get("quantization_config"):
        return source
    from crosscompile.packed_checkpoint import unpacking

    return unpacking(source)
