"""Safetensors files: a strict header reader, and a writer that fills tensors piece by piece.

Format: https://github.com/huggingface/safetensors. The writer adds runtime_c/FORMAT.md's promises about alignment.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from crosscompile.errors import CheckpointError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element of the dtypes whose size can be checked."""

HEADER_LIMIT_BYTES = 100_000_000
DATA_ALIGNMENT = 65536
TENSOR_ALIGNMENT = 64

_AGAIN = "download or export it again"
_SURROGATE = re.compile(rb"\\u[dD]")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file, or what stands for one in another format.

    offset_bytes counts from the start of the file. transposed: its rows and columns are the other way round here than
    in the format that its name comes from.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    n_bytes: int
    transposed: bool = False

    @property
    def quantized(self) -> bool:
        """Whether its values were rounded to few bits already."""
        return self.dtype not in ("F32", "F16", "BF16")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a name appears twice")
    return keys


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tensor(file: Path, name: str, entry: object, data_start: int, data_bytes: int) -> TensorInfo:
    where = f"{file}: header of tensor {name!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is not an object; {_AGAIN}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise CheckpointError(f"{where}: dtype is {dtype!r}, not a string; {_AGAIN}")
    if not isinstance(shape, list) or not all(_is_count(extent) for extent in shape):
        raise CheckpointError(f"{where}: shape is not a list of sizes; {_AGAIN}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise CheckpointError(f"{where}: data_offsets is not a pair of offsets; {_AGAIN}")
    begin, end = offsets
    if begin > end:
        raise CheckpointError(f"{where}: data_offsets run backwards ({begin} to {end}); {_AGAIN}")
    if end > data_bytes:
        raise CheckpointError(
            f"{file} is truncated: tensor {name!r} ends at byte {data_start + end}, "
            f"the file at {data_start + data_bytes}; {_AGAIN}"
        )
    expected = math.prod(shape) * ITEM_BYTES[dtype] if dtype in ITEM_BYTES else end - begin
    if end - begin != expected:
        raise CheckpointError(
            f"{where}: shape {shape} of {dtype} takes {expected} bytes, data_offsets span {end - begin}; {_AGAIN}"
        )
    return TensorInfo(name, file, dtype, tuple(shape), data_start + begin, end - begin)


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors by name, in file order, and the `__metadata__` of a safetensors file.

    Raises CheckpointError where the file is missing, truncated or malformed, tensors overlap or bytes belong to none.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{file} is truncated or not a safetensors file: its header takes {length} bytes, "
                    f"the file has {size}; {_AGAIN}"
                )
            if length > HEADER_LIMIT_BYTES:
                raise CheckpointError(f"{file}: a header of {length} bytes is not plausible; {_AGAIN}")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; check the path or {_AGAIN}") from error
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        if _SURROGATE.search(text):  # half of a pair alone is no text
            json.dumps(header, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not JSON ({error}); {_AGAIN}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the header is not a JSON object; {_AGAIN}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ is not an object of strings; {_AGAIN}")
    start = 8 + length
    tensors = [_tensor(file, name, entry, start, size - start) for name, entry in header.items()]
    end, last = start, "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset_bytes, tensor.n_bytes)):
        if tensor.offset_bytes < end:
            raise CheckpointError(f"{file}: tensors {last!r} and {tensor.name!r} overlap; {_AGAIN}")
        if tensor.offset_bytes > end:
            raise CheckpointError(f"{file}: {tensor.offset_bytes - end} bytes before {tensor.name!r} unused; {_AGAIN}")
        end, last = tensor.offset_bytes + tensor.n_bytes, tensor.name
    if end != size:
        raise CheckpointError(f"{file}: {size - end} bytes follow the last tensor; {_AGAIN}")
    return {tensor.name: tensor for tensor in tensors}, metadata


_NAMES = {"f4": "F32", "f2": "F16", "u1": "U8", "i4": "I32", "i1": "I8", "i2": "I16"}


@dataclass(frozen=True)
class Slot:
    """A tensor that is about to be written: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes one shard under a temporary name; the file appears when the context ends without an error.

    slots: tensors in file order. Data starts at a multiple of 65,536 bytes, every tensor at a multiple of 64;
    `__pad.N` tensors fill what is left over. Bytes that are never written stay zero.
    """

    def __init__(self, file: Path, slots: Mapping[str, Slot], metadata: Mapping[str, str]) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        self._file, self._partial = file, file.with_name(f".{file.name}.partial")
        self._offsets: dict[str, tuple[int, int]] = {}
        position = pads = 0
        for name, slot in slots.items():
            code = _NAMES[slot.dtype.str[1:]]
            end = position + slot.n_bytes
            header[name] = {"dtype": code, "shape": list(slot.shape), "data_offsets": [position, end]}
            self._offsets[name] = (position, end)
            position = -(-end // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
            if position > end:
                pad = {"dtype": "U8", "shape": [position - end], "data_offsets": [end, position]}
                header[f"__pad.{pads}"] = pad
                pads += 1
        text = json.dumps(header, separators=(",", ":")).encode()
        self._start = -(-(8 + len(text)) // DATA_ALIGNMENT) * DATA_ALIGNMENT
        self._head = (self._start - 8).to_bytes(8, "little") + text.ljust(self._start - 8)
        self.n_bytes = self._start + position

    def __enter__(self) -> ShardWriter:
        self._stream = self._partial.open("wb")
        try:
            self._stream.truncate(self.n_bytes)
            self._stream.write(self._head)
        except OSError:
            self._stream.close()
            self._partial.unlink(missing_ok=True)
            raise
        return self

    def write(self, name: str, at_bytes: int, values: np.ndarray) -> None:
        """Writes contiguous `values` at byte `at_bytes` of tensor `name`."""
        begin, end = self._offsets[name]
        assert begin + at_bytes + values.nbytes <= end, f"{name}: a piece does not fit"
        self._stream.seek(self._start + begin + at_bytes)
        self._stream.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self._stream.close()
            if kind is None:
                self._partial.replace(self._file)
        finally:
            self._stream.close()
            self._partial.unlink(missing_ok=True)
