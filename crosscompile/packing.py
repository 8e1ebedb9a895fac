"""Quantized weights laid out for a tier's vector units. The byte formats are specified in runtime_c/FORMAT.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import numpy as np

from crosscompile.errors import QuantizeError
from crosscompile.kinds import GROUP, KINDS, Kind, zero_points
from crosscompile.parallel import PART, in_parts
from crosscompile.scales import search

__all__ = ["GROUP", "KINDS", "Packing", "dequantize", "fits", "pack", "pack_quantized", "quantize", "row_group"]

_KINDS = "|".join(("f32", "f16", *KINDS))
_PACKING = re.compile(rf"(?P<kind>{_KINDS})\.r(?P<rows>\d+)(\.k(?P<chunk>\d+)(?P<unsigned>\.u)?)?|vec")


@dataclass(frozen=True)
class Packing:
    """A parsed packing string: kind (one of KINDS, f16, f32, vec), rows per row group, chunk of columns, offset."""

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
        if (match["kind"] in KINDS) != bool(chunk):
            raise QuantizeError(f"packing {text!r} is not one of runtime_c/FORMAT.md's")
        return cls(match["kind"], int(match["rows"]), chunk, bool(match["unsigned"]))

    @property
    def quantized(self) -> bool:
        """Whether weights are integers with scales."""
        return self.kind in KINDS

    @property
    def about(self) -> Kind:
        """What the table says of the kind, of quantized weights."""
        return KINDS[self.kind]

    @property
    def dtype(self) -> str:
        """The dtype kernels see the bytes of quantized weights in."""
        return "uint8" if self.unsigned or self.about.levels else "int8"

    def padded_rows(self, out: int) -> int:
        """Rows after padding to whole row groups."""
        return -(-out // self.rows) * self.rows

    def stored(self, out: int, columns: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each stored tensor, by suffix, of a logical (out, columns) weight."""
        groups, blocks = self.padded_rows(out) // self.rows, columns // GROUP
        if not self.quantized:
            return {"": ((groups, columns, self.rows), np.dtype("f4" if self.kind == "f32" else "f2"))}
        scales = columns // self.about.group
        data = (groups, blocks, GROUP // self.about.fields // self.chunk, self.rows, self.chunk)
        byte = np.dtype("u1")
        found: dict[str, tuple[tuple[int, ...], np.dtype]] = {"": (data, byte)}
        found[".scale"] = ((groups, scales, self.rows), np.dtype("f2"))
        if self.about.high_bits:
            found[".high"] = ((groups, blocks, self.about.high_bits * GROUP // 8 * self.rows), byte)
        if self.about.zero:
            found[".zero"] = ((groups, -(-scales * self.about.bits // 32), self.rows), np.dtype("i4"))
        return found


def row_group(packing: str) -> int:
    """Rows that are packed together; slices handed to `pack` start and end at multiples of it."""
    return Packing.parse(packing).rows


def quantize(kind: str, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize, one scale per group of columns: w4 and w8 by its extreme value, others by the best scale found.

    kind: one of KINDS. weight: (out, in) float32; `in` is a multiple of the kind's group.
    Returns q (out, in) of the kind's dtype and scale (out, in // group) float16; weights are q · scale of every kind.
    Raises QuantizeError if weight holds a value that float16 scales cannot carry.
    """
    out, columns = weight.shape
    if kind not in KINDS:
        raise QuantizeError(f"{kind!r} is not a quantized kind; {', '.join(KINDS)} are")
    how = KINDS[kind]
    if columns % how.group:
        raise QuantizeError(f"a weight of {columns} columns cannot be cut into groups of {how.group}")
    groups = np.ascontiguousarray(weight, np.float32).reshape(-1, how.group)
    q, scale = np.empty(groups.shape, how.dtype), np.empty(len(groups), np.float16)
    work = partial(_quantize if how.base in ("w4", "w8") else search, how)
    in_parts(len(groups), PART // how.group, lambda at: work(groups[at], q[at], scale[at]))
    if not np.isfinite(scale).all():
        row = int(np.argmin(np.isfinite(scale))) * how.group // columns
        raise QuantizeError(f"row {row} holds a value that is not finite or too large for a float16 scale")
    return q.reshape(out, columns), scale.reshape(out, columns // how.group)


def _quantize(kind: Kind, groups: np.ndarray, q: np.ndarray, scale: np.ndarray) -> None:
    """Writes q and scale of groups (n, columns), each of which is looked at while it is in the cache."""
    values = np.abs(groups)
    places = values.argmax(-1)  # of equals the first
    places += np.arange(0, groups.size, kind.group)
    extreme = groups.reshape(-1).take(places)
    extreme = extreme / np.float32(-8) if kind.base == "w4" else np.abs(extreme) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):  # found out by whoever calls
        scale[:] = extreme
        wide = scale.astype(np.float32)
        wide[wide == 0] = np.inf  # whatever is divided by it is 0
        np.divide(groups, wide[:, None], out=values)
        np.rint(values, out=values)
        np.clip(values, kind.low, kind.high, out=values)
        np.copyto(q, values, casting="unsafe")


def dequantize(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The float32 weights (out, in) that q (out, in) int8 or int16 and scale (out, in // group) float16 stand for."""
    out, columns = q.shape
    wide = q.reshape(*scale.shape, -1).astype(np.float32) * scale.astype(np.float32)[..., None]
    return wide.reshape(out, columns)


def pack(packing: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Quantize and lay out rows for a tier.

    weight: (out, in) float32; rows are padded with zeros to a multiple of the row group.
    Returns the stored tensors by suffix: "" and, of quantized kinds, ".scale", ".high" and ".zero".
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
    """Whether integers of a checkpoint, (rows, columns) int8, are among those of a kind."""
    return KINDS[kind].fits(q)


def regrouped(kind: str, scale: np.ndarray) -> np.ndarray | None:
    """Scales of 32 columns each as a kind stores them, (rows, columns / group); None where they differ in a group."""
    span = KINDS[kind].span
    cut = scale.reshape(len(scale), -1, span)
    return np.ascontiguousarray(cut[..., 0]) if (cut == cut[..., :1]).all() else None


def pack_quantized(packing: str, q: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """Lay out rows that are quantized already: q (out, in) that `fits`, scale (out, in // group) float16."""
    form = Packing.parse(packing)
    out, columns = q.shape
    groups, scales = form.padded_rows(out) // form.rows, columns // form.about.group
    if form.padded_rows(out) > out:
        padding = ((0, form.padded_rows(out) - out), (0, 0))
        q, scale = np.pad(q, padding), np.pad(scale, padding)
    how = form.about
    stored = {suffix: np.empty(shape, dtype) for suffix, (shape, dtype) in form.stored(out, columns).items()}
    stored[".scale"][:] = scale.reshape(groups, form.rows, scales).transpose(0, 2, 1)
    codes = q
    if how.zero:  # in 8 bits, whose sums wrap to where they belong
        zero = zero_points(q, how.group)
        shift = zero.astype(np.int8) - np.int8(1 << how.bits - 1 if how.bits < 8 else -128)
        codes = (q.astype(np.int8).reshape(*zero.shape, -1) + shift[..., None]).reshape(q.shape)
        stored[".zero"][:] = _words(zero.reshape(groups, form.rows, scales), how.bits).transpose(0, 2, 1)
    rows = np.ascontiguousarray(codes).view(np.uint8).reshape(groups, form.rows, columns)

    def lay_out(at: slice) -> None:
        part = how.codes(rows[at].view(np.int8)) if how.levels else rows[at]
        _lay_out(form, part, stored[""][at])
        if how.high_bits:
            _lay_out_high(form, part >> np.uint8(how.low_bits), stored[".high"][at])

    in_parts(groups, max(1, PART // (form.rows * columns)), lay_out)
    return stored


def _words(zero: np.ndarray, bits: int) -> np.ndarray:
    """Zero points of 32 / bits groups of columns in one number, the first lowest: (…, ⌈groups · bits / 32⌉) int32."""
    n = 32 // bits
    whole = np.pad(zero, ((0, 0), (0, 0), (0, -zero.shape[-1] % n))).astype(np.uint32)
    made: np.ndarray = sum((whole[..., i::n] << np.uint32(bits * i) for i in range(1, n)), start=whole[..., ::n])
    return made.view(np.int32)


def _lay_out(form: Packing, rows: np.ndarray, data: np.ndarray) -> None:
    """Fills data (groups, blocks, chunks, rows, chunk) from what is stored of q (groups, rows, columns), both as bytes.

    A chunk moves as one word, and fields are put together before it does.
    """
    word = np.dtype(f"<u{min(form.chunk, 8)}")
    how = form.about
    if how.fields == 1:
        words = (rows ^ np.uint8(0x80) if form.unsigned else rows).view(word)
    else:
        offset = np.uint8(8 if form.unsigned and not how.levels else 0)
        fields = (rows + offset) & np.uint8((1 << how.low_bits) - 1)
        words = _together(form, fields, how.low_bits)
    _move(form, words, data)


def _lay_out_high(form: Packing, bits: np.ndarray, data: np.ndarray) -> None:
    """Fills data (groups, blocks, bytes) from one bit of every weight (groups, rows, columns), as bytes.

    A nibble has the bits of the weights whose low bits share a byte: low nibbles, of the first half of those bytes.
    """
    chunks = GROUP // form.about.fields // form.chunk
    nibbles = np.empty((*data.shape[:2], chunks, form.rows, form.chunk), np.uint8)
    _move(form, _together(form, bits, 1), nibbles)
    halves = nibbles.reshape(*data.shape[:2], 2, -1)
    np.bitwise_or(halves[:, :, 0], halves[:, :, 1] << np.uint8(4), out=data)


def _together(form: Packing, fields: np.ndarray, width: int) -> np.ndarray:
    """Fields of `width` bits of columns a chunk apart in one byte, the first lowest: words (n, rows, …)."""
    word = np.dtype(f"<u{min(form.chunk, 8)}")
    shape = (fields.shape[0], form.rows, -1, form.about.fields, form.chunk // word.itemsize)
    parts = fields.view(word).reshape(shape)
    words: np.ndarray = parts[:, :, :, 0]
    for field in range(1, form.about.fields):
        words = words | (parts[:, :, :, field] << word.type(width * field))
    return words


def _move(form: Packing, words: np.ndarray, data: np.ndarray) -> None:
    """Words (n, rows, …) of chunks to their places in data (groups, blocks, chunks, rows, chunk)."""
    n, word = words.shape[0], words.dtype
    chunks = words.reshape(n, form.rows, -1, form.chunk // word.itemsize)
    data.view(word).reshape(n, chunks.shape[2], form.rows, chunks.shape[3])[:] = chunks.transpose(0, 2, 1, 3)
