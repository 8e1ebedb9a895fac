"""GGUF files: tensors of 32-weight blocks behind a header of typed keys, written piece by piece.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3), and block_q4_0 and block_q8_0 of
ggml's ggml-common.h. Their numbers are those of our w4 and w8: 32 weights share a float16 scale, with integers from
-8 to 7 and from -127 to 127.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosscompile.packing import GROUP, quantize
from edgellm.errors import UnsuitableError

TYPES = {"w4a8": "Q4_0", "w8a8": "Q8_0", "f16": "F16", "f32": "F32"}
"""GGUF's type for each of our schemes, bit for bit."""

ALIGNMENT = 32
"""Of each tensor, in bytes: the format's default."""

Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]

_GGML = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class TensorSlot:
    """A tensor that is about to be written. shape: (out, in), or (n,) of a vector; type: Q4_0, Q8_0, F16 or F32."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def n_bytes(self) -> int:
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return rows * row_bytes(self.type, self.shape[-1])


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row."""
    return {"Q4_0": columns // GROUP * 18, "Q8_0": columns // GROUP * 34, "F16": 2 * columns, "F32": 4 * columns}[kind]


def blocks(kind: str, weight: np.ndarray) -> np.ndarray:
    """A weight (out, in) float32 as the bytes of a GGUF tensor, (out, bytes of a row) uint8.

    kind: Q4_0, Q8_0, F16 or F32. Raises QuantizeError where a value does not fit.
    """
    if kind in ("F16", "F32"):
        return np.ascontiguousarray(weight, "<f2" if kind == "F16" else "<f4").view(np.uint8)
    return quantized_blocks(kind, *quantize("w4" if kind == "Q4_0" else "w8", weight))


def quantized_blocks(kind: str, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The same of integers: q (out, in) int8 and scale (out, in / 32) float16. kind: Q4_0 or Q8_0."""
    out, columns = q.shape
    groups = q.reshape(out, columns // GROUP, GROUP)
    if kind == "Q4_0":  # byte j: number j in the low nibble, number j + 16 in the high one
        shifted = (groups + 8).astype(np.uint8)
        data = shifted[..., : GROUP // 2] | shifted[..., GROUP // 2 :] << 4
    else:
        data = groups.view(np.uint8)
    head = np.ascontiguousarray(scale, "<f2").view(np.uint8).reshape(out, columns // GROUP, 2)
    return np.concatenate([head, data], -1).reshape(out, -1)


def write(
    file: Path,
    keys: Mapping[str, Value],
    slots: Sequence[TensorSlot],
    data: Iterable[np.ndarray],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a file, whole or not at all.

    data: the tensors' bytes in the order of the slots, in pieces that may end anywhere but belong to one tensor each.
    Raises UnsuitableError if the disk has no room.
    """
    total = sum(slot.n_bytes for slot in slots)
    if (free := shutil.disk_usage(file.parent).free) < total:
        raise UnsuitableError(
            f"{file.parent} has {free / 1e9:.1f} GB free, the file takes {total / 1e9:.1f} GB; free some space or set "
            f"EDGELLM_CACHE to another disk"
        )
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(_header(keys, slots))
            pieces, done = iter(data), 0
            for slot in slots:
                stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                end = done + slot.n_bytes
                while done < end:
                    piece = next(pieces)
                    stream.write(np.ascontiguousarray(piece).data)
                    done += piece.nbytes
                    if progress is not None:
                        progress(done, total)
                assert done == end, f"{slot.name}: a piece does not fit"
            stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _header(keys: Mapping[str, Value], slots: Sequence[TensorSlot]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(slots), len(keys))]
    for key, value in keys.items():
        kind, data = _value(value)
        parts += [_text(key), struct.pack("<I", kind), data]
    at = 0
    for slot in slots:
        extents = slot.shape[::-1]  # fastest first
        parts += [_text(slot.name), struct.pack(f"<I{len(extents)}Q", len(extents), *extents)]
        parts.append(struct.pack("<IQ", _GGML[slot.type], at))
        at += -(-slot.n_bytes // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> tuple[int, bytes]:
    """(type, bytes) of a value. Arrays are of one type, that of their first element."""
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return _UINT32, struct.pack("<I", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    assert value, "an empty array has no type"
    first, n = value[0], len(value)
    if isinstance(first, str):
        return _ARRAY, struct.pack("<IQ", _STRING, n) + b"".join(_text(str(text)) for text in value)
    kind, code = (_FLOAT32, "f") if isinstance(first, float) else (_INT32, "i")
    return _ARRAY, struct.pack(f"<IQ{n}{code}", kind, n, *value)
