"""A GGUF file as a Checkpoint: tensors under the names, and in the order of rows, that a Hugging Face one has.

Integers of blocks that our schemes can carry are handed on as they are (Checkpoint.integers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile import models
from crosscompile.checkpoint import Checkpoint
from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.gguf_families import GgufFamily, Metadata, config_of, family_of
from crosscompile.gguf_file import READABLE, TYPES_KEPT, GgufTensor, Value, integers, read_header, read_rows, values
from crosscompile.gguf_tokenizer import texts_of
from crosscompile.safetensors_stream import TensorInfo

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_LAYER = re.compile(r"blk\.(?P<layer>\d{1,6})\.(?P<module>\w+)\.(?P<kind>weight|bias)")
_ONE_EXPERT = re.compile(r"(?P<module>ffn_(?:gate|up|down))\.(?P<expert>\d{1,4})")
_NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_FAR_ROWS = 512
"""Rows that lie further apart than this are read one by one rather than with all between them."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint lies: rows from `first` on, in `order` (None: as they are).

    shape: in the checkpoint, of one dimension if the tensor is a single row. shift: what is taken off every value.
    """

    tensor: GgufTensor
    first: int
    shape: tuple[int, ...]
    order: np.ndarray | None = None
    shift: float = 0.0
    transposed: bool = False


@dataclass(frozen=True)
class GgufCheckpoint(Checkpoint):
    """A Checkpoint whose tensors are blocks of a GGUF file. path: the file, or the first of its parts."""

    places: dict[str, Place] = field(default_factory=dict, repr=False)

    @property
    def paths(self) -> list[Path]:
        return [self.path.parent / name for name in self.files]

    def info(self, name: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
        """The tensor's place. CheckpointError if it is missing, of a type that cannot be read, or not of this shape."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{self.path}: there is no tensor for {name!r}, which general.architecture "
                f"{self.config['architectures'][0]!r} needs; the file is incomplete: download it again"
            )
        if tensor.dtype not in READABLE:
            raise CheckpointError(
                f"{tensor.file}: tensor {self.places[name].tensor.name!r} has type {tensor.dtype}, which cannot be "
                f"read; quantize the model to another type"
            )
        if shape is not None and tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {self.places[name].tensor.name!r} has shape {list(tensor.shape)}, its metadata "
                f"implies {list(shape)}; one of the two belongs to another model"
            )
        return tensor

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Reads a tensor, or a slice of its first axis, as float32. Only the rows in it are read from the file."""
        self.info(name)
        place = self.places[name]
        start, stop, step = (rows or slice(None)).indices(place.shape[0])
        assert step == 1, "only contiguous rows"
        stop = max(stop, start)
        kind = place.tensor.type
        if len(place.shape) == 1:
            found = values(kind, read_rows(place.tensor, place.first, 1))[0]
            found = (found if place.order is None else found[place.order])[start:stop]
        else:
            found = values(kind, _rows(place, start, stop))
        return found - np.float32(place.shift) if place.shift else found

    def integers(self, name: str, rows: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """The integers of a slice of rows as they are stored, where our schemes can carry such."""
        place = self.places[name]
        kind = self.info(name).dtype
        if kind not in TYPES_KEPT or len(place.shape) != 2 or place.shift:
            return None
        start, stop, _ = rows.indices(place.shape[0])
        return integers(kind, _rows(place, start, stop))


def _rows(place: Place, start: int, stop: int) -> np.ndarray:
    """Stored bytes of rows [start, stop) of the checkpoint's tensor."""
    if place.order is None or start >= stop:
        return read_rows(place.tensor, place.first + start, max(stop - start, 0))
    index = place.order[start:stop]
    cuts = np.flatnonzero(np.abs(np.diff(index)) > _FAR_ROWS) + 1
    found = []
    for part in np.split(index, cuts):
        low, high = int(part.min()), int(part.max()) + 1
        found.append(read_rows(place.tensor, place.first + low, high - low)[part - low])
    return found[0] if len(found) == 1 else np.concatenate(found)


def read_gguf_config(file: Path) -> dict[str, Any]:
    """The config.json that a file's metadata stands for. Reads no weights."""
    return load_gguf(file).config


def load_gguf(file: Path) -> GgufCheckpoint:
    """Opens a file, with its other parts if it is split: reads headers, no tensor data but RoPE factors.

    Raises CheckpointError for damaged files, ConfigError for networks that are not supported, TokenizerError for
    tokenizers that are not.
    """
    parts = _parts(file)
    keys, tensors = _merged(parts)
    data = Metadata(file, keys, tensors)
    family, config = family_of(data), config_of(data)
    try:
        made = models.FAMILIES[config["architectures"][0]].design(config)
    except ConfigError as error:
        raise ConfigError(f"{file}: as a config.json its metadata says: {error}") from error
    places = dict(_places(data, family, config))
    texts = texts_of(file, keys, len(made.layers) and int(config["vocab_size"]))
    return GgufCheckpoint(
        path=file,
        config=config,
        generation_config=texts.generation_config,
        tokenizer_json=texts.tokenizer_json,
        tokenizer_config=texts.tokenizer_config,
        chat_template=texts.chat_template,
        tensors={name: _info(name, place) for name, place in places.items()},
        special_tokens=texts.special_tokens,
        files=tuple(part.name for part in (*parts, *texts.files)),
        places=places,
    )


def _info(name: str, place: Place) -> TensorInfo:
    tensor, rows = place.tensor, place.shape[0] if len(place.shape) > 1 else 1
    offset = tensor.offset_bytes + place.first * tensor.row_bytes
    return TensorInfo(
        name, tensor.file, tensor.type, place.shape, offset, rows * tensor.row_bytes, transposed=place.transposed
    )


def _parts(file: Path) -> list[Path]:
    """The file, or all parts of a split one. CheckpointError if one is missing."""
    match = _PART.fullmatch(file.name)
    if not match:
        return [file]
    count = int(match["count"])
    parts = [file.with_name(f"{match['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, min(count, 1000) + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(f"{file} is one of {count} parts, {missing[0]} is not beside it; download all parts")
    return parts


def _merged(parts: list[Path]) -> tuple[dict[str, Value], dict[str, GgufTensor]]:
    """Keys of the first part, tensors of all."""
    keys: dict[str, Value] = {}
    tensors: dict[str, GgufTensor] = {}
    for part in parts:
        header = read_header(part)
        keys = keys or header.keys
        if twice := tensors.keys() & header.tensors.keys():
            raise CheckpointError(f"{part}: tensor {min(twice)!r} is in another part too; download all parts again")
        tensors.update(header.tensors)
    expected = keys.get("split.count", 1)
    if expected not in (0, len(parts)):
        raise CheckpointError(
            f"{parts[0]}: split.count is {expected}, but {len(parts)} parts were found; keep the parts' original "
            f"names (NAME-00001-of-00003.gguf) in one directory"
        )
    return keys, tensors


def _places(data: Metadata, family: GgufFamily, config: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """Every tensor of the checkpoint by name. ConfigError for a tensor that the family does not have."""
    outer = {f"{there}.{kind}": f"{here}.{kind}" for there, here in family.outer.items() for kind in ("weight", "bias")}
    for name, tensor in data.tensors.items():
        match = _LAYER.fullmatch(name)
        single = _ONE_EXPERT.search(name)
        if name in _NOT_WEIGHTS:
            continue
        if name in outer:
            yield outer[name], _place(tensor, family, "", config, outer[name])
        elif match and match["module"] in family.modules:
            here = f"{family.layers}.{match['layer']}.{family.modules[match['module']]}.{match['kind']}"
            if config["architectures"] == ["MixtralForCausalLM"] and match["module"] in ("ffn_gate", "ffn_up"):
                raise _stranger(data, tensor)
            yield from _stacked(tensor, family, match["module"], config, here)
        elif single and f"{single['module']}_exps" in family.modules:  # as the first files of Mixtral have them
            layer = name.split(".")[1]
            here = family.modules[f"{single['module']}_exps"].replace("*", str(int(single["expert"])))
            yield f"{family.layers}.{layer}.{here}.weight", _place(tensor, family, "", config, here)
        else:
            raise _stranger(data, tensor)


def _stranger(data: Metadata, tensor: GgufTensor) -> ConfigError:
    return ConfigError(
        f"{tensor.file}: tensor {tensor.name!r} is not part of general.architecture {data.architecture!r} as edgellm "
        f"knows it, so that answers would differ; use the model's safetensors version"
    )


def _stacked(
    tensor: GgufTensor, family: GgufFamily, module: str, config: Mapping[str, Any], here: str
) -> Iterator[tuple[str, Place]]:
    """One tensor of the checkpoint, or one for each that this one stacks."""
    if "*" not in here:
        yield here, _place(tensor, family, module, config, here)
        return
    if len(tensor.shape) < 2 or tensor.shape[0] > 4096:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} has shape {list(tensor.shape)}; download it again"
        )
    rows = tensor.shape[1] if len(tensor.shape) == 3 else 1
    for index in range(tensor.shape[0]):
        yield here.replace("*", str(index)), Place(tensor, index * rows, tensor.shape[1:])


def _place(tensor: GgufTensor, family: GgufFamily, module: str, config: Mapping[str, Any], here: str) -> Place:
    shape = tensor.shape
    if module == "ffn_gate_inp_shexp" and len(shape) == 1:
        shape = (1, *shape)
    if len(shape) > 2:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r} has shape {list(shape)}; download it again")
    order = None
    if family.interleaved and module in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if module == "attn_q" else "num_key_value_heads"]
        order = _ordered(tensor, shape[0], (heads, -1, 2), 1)
    elif family.fused == "heads" and module == "attn_qkv":
        order = _ordered(tensor, shape[0], (3, config["num_attention_heads"], -1), 0)
    elif family.fused == "groups" and module == "attn_qkv":
        order = _groups(tensor, shape[0], config["num_attention_heads"], config["num_kv_heads"])
    shift = family.shifted if here.endswith("norm.weight") else 0.0
    return Place(tensor, 0, shape, order, shift, module in family.transposed and len(shape) == 2)


def _ordered(tensor: GgufTensor, rows: int, shape: tuple[int, int, int], axis: int) -> np.ndarray:
    """The rows as an array of `shape`, with two neighbouring axes swapped."""
    known = int(np.prod([extent for extent in shape if extent > 0]))
    if rows % known:
        raise _uneven(tensor, rows, known)
    return np.arange(rows).reshape(shape).swapaxes(axis, axis + 1).reshape(-1)


def _groups(tensor: GgufTensor, rows: int, heads: int, groups: int) -> np.ndarray:
    """Queries, keys and values one after another -> of each group together."""
    if rows % (heads + 2 * groups) or heads % groups:
        raise _uneven(tensor, rows, heads + 2 * groups)
    dim = rows // (heads + 2 * groups)
    ends = (heads * dim, (heads + groups) * dim)
    parts = [part.reshape(groups, -1) for part in np.split(np.arange(rows), ends)]
    return np.concatenate(parts, 1).reshape(-1)


def _uneven(tensor: GgufTensor, rows: int, heads: int) -> CheckpointError:
    return CheckpointError(
        f"{tensor.file}: tensor {tensor.name!r} has {rows} rows, which {heads} heads do not share evenly; one of the "
        f"two belongs to another model"
    )
