"""Quantized weights laid out for a tier's vector units. The byte formats are specified in runtime_c/FORMAT.md."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from crosscompile.errors import QuantizeError
from crosscompile.parallel import PART, in_parts

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
    if kind not in RANGES:
        raise QuantizeError(f"{kind!r} is not a quantized kind; w4 and w8 are")
    groups = np.ascontiguousarray(weight, np.float32).reshape(-1, GROUP)
    q, scale = np.empty(groups.shape, np.int8), np.empty(len(groups), np.float16)
    in_parts(len(groups), PART // GROUP, lambda at: _quantize(kind, groups[at], q[at], scale[at]))
    if not np.isfinite(scale).all():
        row = int(np.argmin(np.isfinite(scale))) * GROUP // columns
        raise QuantizeError(f"row {row} holds a value that is not finite or too large for a float16 scale")
    return q.reshape(out, columns), scale.reshape(out, columns // GROUP)


def _quantize(kind: str, groups: np.ndarray, q: np.ndarray, scale: np.ndarray) -> None:
    """Writes q and scale of groups (n, 32), each of which is looked at while it is in the cache."""
    low, high = RANGES[kind]
    values = np.abs(groups)
    places = values.argmax(-1)  # of equals the first
    places += np.arange(0, groups.size, GROUP)
    extreme = groups.reshape(-1).take(places)
    extreme = extreme / np.float32(-8) if kind == "w4" else np.abs(extreme) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):  # found out by whoever calls
        scale[:] = extreme
        wide = scale.astype(np.float32)
        wide[wide == 0] = np.inf  # whatever is divided by it is 0
        np.divide(groups, wide[:, None], out=values)
        np.rint(values, out=values)
        np.clip(values, low, high, out=values)
        np.copyto(q, values, casting="unsafe")


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
    groups, blocks = form.padded_rows(out) // form.rows, columns // GROUP
    if form.padded_rows(out) > out:
        padding = ((0, form.padded_rows(out) - out), (0, 0))
        q, scale = np.pad(q, padding), np.pad(scale, padding)
    shape, _ = form.stored(out, columns)[""]
    data = np.empty(shape, np.uint8)
    rows = np.ascontiguousarray(q).view(np.uint8).reshape(groups, form.rows, columns)
    in_parts(groups, max(1, PART // (form.rows * columns)), lambda at: _lay_out(form, rows[at], data[at]))
    scale = scale.reshape(groups, form.rows, blocks).transpose(0, 2, 1)
    return {"": data, ".scale": np.ascontiguousarray(scale)}


def _lay_out(form: Packing, rows: np.ndarray, data: np.ndarray) -> None:
    """Fills data (groups, blocks, chunks, rows, chunk) from q (groups, rows, columns), both as bytes.

    A chunk moves as one word, and its nibbles are put together before it does.
    """
    n = rows.shape[0]
    word = np.dtype(f"<u{min(form.chunk, 8)}")
    if form.kind == "w8":
        words = (rows ^ np.uint8(0x80) if form.unsigned else rows).view(word)
    else:
        nibbles = rows + np.uint8(8) if form.unsigned else rows & np.uint8(15)
        pairs = nibbles.view(word).reshape(n, form.rows, -1, 2, form.chunk // word.itemsize)
        words = pairs[:, :, :, 0] | (pairs[:, :, :, 1] << word.type(4))
    chunks = words.reshape(n, form.rows, -1, form.chunk // word.itemsize)
    data.view(word).reshape(n, chunks.shape[2], form.rows, chunks.shape[3])[:] = chunks.transpose(0, 2, 1, 3)
