"""Quantized weights laid out for a tier's vector units. The byte formats are specified in runtime_c/FORMAT.md."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from crosscompile.errors import QuantizeError

GROUP = 32
"""Columns that share one scale."""

RANGES = {"w4": (-8, 7), "w8": (-127, 127)}
"""The least and the greatest integer of a kind."""

_PACKING = re.compile(r"(?P<kind>f32|f16|w8|w4)\.r(?P<rows>\d+)(\.k(?P<chunk>\d+)(?P<unsigned>\.u)?)?|vec")


@dataclass(frozen=True)
class Packing:
    """A parsed packing string: kind (w4, w8, f16, f32, vec), rows per row group, chunk of columns, offset."""

    kind: str
    rows: int
    chunk: int
    unsigned: bool

    @classmethod
    def parse(cls, text: str) -> Packing:
        match = _PACKING.fullmatch(text)
        if not match:
            raise QuantizeError(f"packing {text!r} is not one of runtime_c/FORMAT.md's")
        if text == "vec":
            return cls("vec", 1, 0, False)
        chunk = int(match["chunk"] or 0)
        if (match["kind"] in ("w4", "w8")) != bool(chunk):
            raise QuantizeError(f"packing {text!r} is not one of runtime_c/FORMAT.md's")
        return cls(match["kind"], int(match["rows"]), chunk, bool(match["unsigned"]))

    def padded_rows(self, out: int) -> int:
        """Rows after padding to whole row groups."""
        return -(-out // self.rows) * self.rows

    def stored(self, out: int, columns: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each stored tensor, by suffix, of a logical (out, columns) weight."""
        groups, blocks = self.padded_rows(out) // self.rows, columns // GROUP
        if self.kind in ("f32", "f16"):
            return {"": ((groups, columns, self.rows), np.dtype("f4" if self.kind == "f32" else "f2"))}
        halves = 2 if self.kind == "w4" else 1
        data = (groups, blocks, GROUP // halves // self.chunk, self.rows, self.chunk)
        return {"": (data, np.dtype("u1")), ".scale": ((groups, blocks, self.rows), np.dtype("f2"))}


def row_group(packing: str) -> int:
    """Rows that are packed together; slices handed to `pack` start and end at multiples of it."""
    return Packing.parse(packing).rows


def quantize(kind: str, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize symmetrically, one scale per group of 32 columns.

    kind: "w4" or "w8". weight: (out, in) float32; `in` is a multiple of 32.
    Returns q (out, in) int8 and scale (out, in // 32) float16.
    Raises QuantizeError if weight holds a value that float16 scales cannot carry.
    """
    out, columns = weight.shape
    if columns % GROUP:
        raise QuantizeError(f"a weight of {columns} columns cannot be cut into groups of {GROUP}")
    blocks = np.ascontiguousarray(weight, np.float32).reshape(out, columns // GROUP, GROUP)
    if kind not in RANGES:
        raise QuantizeError(f"{kind!r} is not a quantized kind; w4 and w8 are")
    low, high = RANGES[kind]
    if kind == "w4":
        index = np.abs(blocks).argmax(-1)[..., None]
        extreme = np.take_along_axis(blocks, index, -1)[..., 0] / np.float32(-8)
    else:
        extreme = np.abs(blocks).max(-1) / np.float32(127)
    with np.errstate(over="ignore"):
        scale = extreme.astype(np.float16)
    if not np.isfinite(scale).all():
        row = int(np.argwhere(~np.isfinite(scale))[0][0])
        raise QuantizeError(f"row {row} holds a value that is not finite or too large for a float16 scale")
    wide = scale.astype(np.float32)[..., None]
    q = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide != 0)
    return np.clip(np.rint(q), low, high).astype(np.int8).reshape(out, columns), scale


def dequantize(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The float32 weights (out, in) that q (out, in) int8 and scale (out, in // 32) float16 stand for."""
    out, columns = q.shape
    wide = q.reshape(out, columns // GROUP, GROUP).astype(np.float32) * scale.astype(np.float32)[..., None]
    return wide.reshape(out, columns)


def pack(packing: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Quantize and lay out rows for a tier.

    weight: (out, in) float32; rows are padded with zeros to a multiple of the row group.
    Returns the stored tensors by suffix: "" and, for w4 and w8, ".scale".
    """
    form = Packing.parse(packing)
    if form.kind == "vec":
        return {"": np.ascontiguousarray(weight)}
    out, columns = weight.shape
    padding = ((0, form.padded_rows(out) - out), (0, 0))
    groups = form.padded_rows(out) // form.rows
    if form.kind in ("f32", "f16"):
        with np.errstate(over="ignore"):
            plain = np.pad(weight, padding).astype("f4" if form.kind == "f32" else "f2")
        if not np.isfinite(plain).all():
            raise QuantizeError("a value is not finite or too large for float16; use scheme f32")
        return {"": np.ascontiguousarray(plain.reshape(groups, form.rows, columns).transpose(0, 2, 1))}
    return pack_quantized(packing, *quantize(form.kind, weight))


def fits(kind: str, q: np.ndarray) -> bool:
    """Whether integers of a checkpoint are among those that "w4" or "w8" kernels take."""
    low, high = RANGES[kind]
    return bool(q.size) and int(q.min()) >= low and int(q.max()) <= high


def pack_quantized(packing: str, q: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """Lay out rows that are quantized already: q (out, in) int8 that `fits`, scale (out, in // 32) float16."""
    form = Packing.parse(packing)
    out, columns = q.shape
    padding = ((0, form.padded_rows(out) - out), (0, 0))
    groups, blocks = form.padded_rows(out) // form.rows, columns // GROUP
    q, scale = np.pad(q, padding), np.pad(scale, padding)
    if form.kind == "w8":
        cells = q.reshape(groups, form.rows, blocks, GROUP // form.chunk, form.chunk).transpose(0, 2, 3, 1, 4)
        data = np.ascontiguousarray(cells).view(np.uint8)
        if form.unsigned:
            data = data ^ np.uint8(0x80)
    else:
        nibbles = ((q + 8 if form.unsigned else q) & 15).astype(np.uint8)
        shape = (groups, form.rows, blocks, GROUP // 2 // form.chunk, 2, form.chunk)
        cells = nibbles.reshape(shape).transpose(0, 2, 3, 4, 1, 5)
        data = np.ascontiguousarray(cells[:, :, :, 0] | (cells[:, :, :, 1] << 4))
    scale = scale.reshape(groups, form.rows, blocks).transpose(0, 2, 1)
    return {"": data, ".scale": np.ascontiguousarray(scale)}
