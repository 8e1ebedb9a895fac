"""What a stored parameter is made of: tensors of the checkpoint, or rows of them, rearranged and scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from crosscompile.safetensors_stream import TensorInfo


@dataclass(frozen=True)
class Piece:
    """Rows of a parameter that are not simply a tensor of the checkpoint.

    transposed   the tensor is stored (in, out), as GPT-2's Conv1D has it
    ranges       (first, count) of the tensor's rows in the order in which they are wanted; () for all
    times, plus  what every value is multiplied by, and what is added then
    decays       the logarithm of a rate is stored, and -e^x of it is wanted
    """

    tensor: str
    transposed: bool = False
    ranges: tuple[tuple[int, int], ...] = ()
    times: float = 1.0
    plus: float = 0.0
    decays: bool = False


Source = str | Piece
Sources = dict[str, tuple[Source, ...]]
"""Parameter -> what it is made of, stacked along rows. Parameters that are missing are tensors of the same name."""


class Tensors(Protocol):
    """What is read from (crosscompile.checkpoint.Checkpoint)."""

    def info(self, name: str) -> TensorInfo: ...
    def read(self, name: str, rows: slice | None = None) -> np.ndarray: ...
    def integers(self, name: str, rows: slice) -> tuple[np.ndarray, np.ndarray] | None: ...


def piece_of(source: Source) -> Piece:
    """A plain name as a Piece."""
    return source if isinstance(source, Piece) else Piece(source)


class Rows:
    """One source, read a few rows at a time. A transposed tensor is read once, and held as a whole.

    shape: of what it contributes; () where the tensor has none. info: the tensor's place.
    """

    def __init__(self, tensors: Tensors, source: Source) -> None:
        self.piece = piece_of(source)
        self.tensors, self.info = tensors, tensors.info(self.piece.tensor)
        shape = self.info.shape
        self.transposed = self.piece.transposed != self.info.transposed
        stored = shape[::-1] if self.transposed else shape
        if stored and self.piece.ranges:
            stored = (sum(count for _, count in self.piece.ranges), *stored[1:])
        self.shape = stored
        self.whole: np.ndarray | None = None

    @property
    def fits(self) -> bool:
        """Whether the tensor has the rows that are wanted of it."""
        n = self.info.shape[-1 if self.transposed else 0] if self.info.shape else 0
        return all(first >= 0 and first + count <= n for first, count in self.piece.ranges)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of `shape`, float32."""
        found = [self._stored(low, high) for low, high in self._runs(start, stop)]
        return self._changed(found[0] if len(found) == 1 else np.concatenate(found))

    def integers(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows [start, stop) as the checkpoint quantized them: q (rows, columns) int8, scale (rows, columns / 32)
        float16. None where it did not, or where they are changed on the way."""
        if self.transposed or self.piece.times != 1.0 or self.piece.plus or self.piece.decays or len(self.shape) != 2:
            return None
        found = []
        for low, high in self._runs(start, stop):
            part = self.tensors.integers(self.piece.tensor, slice(low, high))
            if part is None:
                return None
            found.append(part)
        q, scale = zip(*found, strict=True)
        return np.concatenate(q), np.concatenate(scale)

    def _runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The stored rows (first, end) that rows [start, stop) of `shape` are."""
        if not self.piece.ranges:
            return [(start, stop)]
        found, at = [], 0
        for first, count in self.piece.ranges:
            low, high = max(start, at), min(stop, at + count)
            if low < high:
                found.append((first + low - at, first + high - at))
            at += count
        return found

    def _stored(self, start: int, stop: int) -> np.ndarray:
        if not self.transposed:
            return self.tensors.read(self.piece.tensor, slice(start, stop))
        if self.whole is None:
            self.whole = np.ascontiguousarray(self.tensors.read(self.piece.tensor).T)
        return self.whole[start:stop]

    def _changed(self, values: np.ndarray) -> np.ndarray:
        if self.piece.decays:  # in float64, whose rounding no CPU's vector units change
            values = (-np.exp(values.astype(np.float64))).astype(np.float32)
        if self.piece.times != 1.0:
            values = values * np.float32(self.piece.times)
        return values + np.float32(self.piece.plus) if self.piece.plus else values
