"""GGUF files: a strict reader of their header, and of rows of their tensors.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. Sizes of blocks and what they
stand for are those of the `gguf` package; its own reader trusts the file, so the header is read here.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.errors import CheckpointError
from crosscompile.kinds import GROUP, IQ4_NL

READABLE = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
"""Types whose values can be read."""

TYPES_KEPT = {"Q4_0": "w4", "Q4_1": "u4", "Q5_0": "w8", "Q8_0": "w8", "IQ4_NL": "n4"}
"""Types whose blocks are 32 integers with a float16 scale, and the smallest kind of ours that holds them. Those of Q4_1
have a minimum too: where it is a whole number of scales, it is our zero point."""

MOST_TENSORS, MOST_KEYS, MOST_ITEMS = 1 << 17, 1 << 16, 1 << 23
NAME_CAP, TEXT_CAP = 512, 1 << 26
"""Bytes of a name; of any other text, of which a whole tokenizer.json is the longest."""

Value = bool | int | float | str | list[Any] | np.ndarray
"""What a key may hold. Arrays of numbers are NumPy's, others lists."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_AGAIN = "download it again"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. shape: slowest extent first, as NumPy has it; offset_bytes counts from the start of the file."""

    name: str
    file: Path
    type: str
    shape: tuple[int, ...]
    offset_bytes: int
    n_bytes: int

    @property
    def n_rows(self) -> int:
        """Rows of the last extent, whatever the others are."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.n_bytes // max(self.n_rows, 1)


@dataclass(frozen=True)
class Header:
    """What a file says before its data."""

    keys: dict[str, Value]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """A place in the mapped file. Every read is checked against its end."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.at, self.what = file, data, 0, "the header"

    def fail(self, why: str, remedy: str = _AGAIN) -> CheckpointError:
        return CheckpointError(f"{self.file}: {self.what} {why}; {remedy}")

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise self.fail(f"ends at byte {self.at + n}, the file at {len(self.data)}: it is truncated or damaged")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, cap: int) -> str:
        n = self.number("Q")
        if n > cap:
            raise self.fail(f"has a text of {n} bytes, at most {cap} are plausible")
        try:
            return self.take(n).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"has a text that is not UTF-8 (byte {error.start})") from error

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text(TEXT_CAP)
        if kind in _SCALARS:
            found: Value = self.number(_SCALARS[kind])
            return found
        if kind != _ARRAY:
            raise self.fail(f"has type {kind}, which GGUF does not define")
        item, n = self.number("I"), self.number("Q")
        if n > MOST_ITEMS:
            raise self.fail(f"is an array of {n} items, at most {MOST_ITEMS} are plausible")
        if item == _STRING:
            return [self.text(TEXT_CAP) for _ in range(n)]
        if item not in _SCALARS:
            raise self.fail(f"is an array of type {item}, of which no known key has one")
        code = np.dtype("<" + _SCALARS[item])
        return np.frombuffer(self.take(n * code.itemsize), code)


def read_header(file: Path) -> Header:
    """Keys and tensors of a file, in file order. Reads no tensor's data.

    Raises CheckpointError where the file is missing, truncated or malformed, names appear twice or tensors overlap.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Cursor(file, data))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:  # mmap's, of an empty file
        raise CheckpointError(f"{file} is empty; {_AGAIN}") from error


def _header(cursor: _Cursor) -> Header:
    if cursor.take(min(4, len(cursor.data))) != b"GGUF":
        raise CheckpointError(f"{cursor.file} is not a GGUF file: it does not begin with 'GGUF'; {_AGAIN}")
    version = cursor.number("I")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        raise CheckpointError(
            f"{cursor.file}: {'big-endian files are' if swapped else f'GGUF version {version} is'} not supported, "
            f"little-endian versions 2 and 3 are; convert the model again with a current llama.cpp"
        )
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    if n_tensors > MOST_TENSORS or n_keys > MOST_KEYS:
        raise cursor.fail(f"announces {n_tensors} tensors and {n_keys} keys, which is not plausible")
    keys: dict[str, Value] = {}
    for index in range(n_keys):
        cursor.what = f"key {index}"
        name = cursor.text(NAME_CAP)
        cursor.what = f"key {name!r}"
        if name in keys:
            raise cursor.fail("appears twice")
        keys[name] = cursor.value(cursor.number("I"))
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CheckpointError(f"{cursor.file}: general.alignment {alignment!r} is not a power of two; {_AGAIN}")
    found: dict[str, GgufTensor] = {}
    for index in range(n_tensors):
        cursor.what = f"tensor {index}"
        tensor = _tensor(cursor, alignment)
        if tensor.name in found:
            raise cursor.fail("appears twice")
        found[tensor.name] = tensor
    start = -(-cursor.at // alignment) * alignment
    return Header(keys, _placed(cursor, start, found))


def _tensor(cursor: _Cursor, alignment: int) -> GgufTensor:
    """A tensor's entry; its offset still counts from the start of the data."""
    name = cursor.text(NAME_CAP)
    cursor.what = f"tensor {name!r}"
    n_extents = cursor.number("I")
    if not 1 <= n_extents <= 4:
        raise cursor.fail(f"has {n_extents} dimensions, 1 to 4 are allowed")
    shape = tuple(cursor.number("Q") for _ in range(n_extents))[::-1]
    if 0 in shape or math.prod(shape) >= 1 << 48:
        raise cursor.fail(f"has shape {list(shape)}, which is not plausible")
    code, offset = cursor.number("I"), cursor.number("Q")
    kind, block, size = _type(code)
    if not block:
        raise cursor.fail(f"has type {kind or code}, which edgellm does not know", "quantize the model to another type")
    if shape[-1] % block:
        raise cursor.fail(f"of type {kind} has rows of {shape[-1]} values, which blocks of {block} do not divide")
    if offset % alignment:
        raise cursor.fail(f"begins at byte {offset} of the data, which is not a multiple of {alignment}")
    return GgufTensor(name, cursor.file, kind, shape, offset, math.prod(shape) // block * size)


def _type(code: int) -> tuple[str, int, int]:
    """(name, values of a block, bytes of a block) of a type. ("", 0, 0) for one that there is not."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        return "", 0, 0
    return (kind.name, *GGML_QUANT_SIZES.get(kind, (0, 0)))


def _placed(cursor: _Cursor, start: int, found: dict[str, GgufTensor]) -> dict[str, GgufTensor]:
    """The tensors with their places in the file. CheckpointError if they overlap or reach beyond its end."""
    end, last, size = 0, "the header", len(cursor.data)
    for tensor in sorted(found.values(), key=lambda tensor: tensor.offset_bytes):
        cursor.what = f"tensor {tensor.name!r}"
        if tensor.offset_bytes < end:
            raise cursor.fail(f"overlaps {last!r}")
        end, last = tensor.offset_bytes + tensor.n_bytes, tensor.name
        if start + end > size:
            raise cursor.fail(f"ends at byte {start + end}, the file at {size}: it is truncated")
    return {
        name: GgufTensor(name, t.file, t.type, t.shape, start + t.offset_bytes, t.n_bytes) for name, t in found.items()
    }


def read_rows(tensor: GgufTensor, first: int, count: int) -> np.ndarray:
    """The stored bytes of `count` rows, (count, bytes of a row) uint8."""
    raw = bytearray(count * tensor.row_bytes)
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset_bytes + first * tensor.row_bytes)
            n_read = stream.readinto(raw)
    except OSError as error:
        raise CheckpointError(f"{tensor.file} cannot be read: {error.strerror}") from error
    if n_read != len(raw):
        raise CheckpointError(f"{tensor.file} was truncated while it was read; {_AGAIN}")
    return np.frombuffer(raw, np.uint8).reshape(count, tensor.row_bytes)


def values(kind: str, raw: np.ndarray) -> np.ndarray:
    """What stored rows, (rows, bytes) uint8, stand for: (rows, columns) float32."""
    from gguf import GGMLQuantizationType, dequantize

    with np.errstate(all="ignore"):  # a damaged scale may be infinite; whoever uses the values checks them
        found: np.ndarray = dequantize(raw, GGMLQuantizationType[kind]).astype(np.float32, copy=False)
    return found


_IQ4_NL = np.array(IQ4_NL, np.int8)


def integers(kind: str, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The stored rows of a type of TYPES_KEPT as they are: q (rows, columns) int8, scale (rows, columns / 32) float16.

    q · scale is exactly what `values` gives. None where minima of Q4_1 are not whole numbers, 0 to 15, of −scales.
    """
    rows = raw.shape[0]
    size = {"Q4_0": 18, "Q4_1": 20, "IQ4_NL": 18, "Q5_0": 22, "Q8_0": 34}[kind]
    blocks = raw.reshape(rows, -1, size)
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
    if kind == "Q8_0":
        q = blocks[..., 2:].view(np.int8)
    else:
        packed = blocks[..., size - GROUP // 2 :]  # byte j: number j in the low nibble, number j + 16 in the high one
        nibbles = np.concatenate([packed & 15, packed >> 4], -1)
        if kind == "Q4_1":
            return _with_minima(nibbles, scale, np.ascontiguousarray(blocks[..., 2:4]).view("<f2")[..., 0])
        if kind == "IQ4_NL":
            q = _IQ4_NL[nibbles]
        elif kind == "Q4_0":
            q = nibbles.astype(np.int8) - np.int8(8)
        else:
            high = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little")
            q = (nibbles | high << 4).astype(np.int8) - np.int8(16)
    return np.ascontiguousarray(q).reshape(rows, -1), scale


def _with_minima(nibbles: np.ndarray, scale: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """scale · nibble + least as integers, nibbles (rows, blocks, 32); None where one is no whole number of scales."""
    flat = scale == 0  # of equal weights: the minimum is all there is
    scale = np.where(flat, least, scale)
    wide = scale.astype(np.float32)
    with np.errstate(all="ignore"):  # a damaged file's
        zero = np.rint(np.divide(-least.astype(np.float32), wide, out=np.zeros_like(wide), where=wide != 0))
        zero = np.where(flat, np.float32(-1), zero)
        if not ((zero >= -1) & (zero <= 15) & (-zero * wide == least.astype(np.float32))).all():
            return None
    q = np.where(flat[..., None], 0, nibbles).astype(np.int8) - zero.astype(np.int8)[..., None]
    return np.ascontiguousarray(q).reshape(len(q), -1), scale
