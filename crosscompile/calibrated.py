"""Matrices that calibration rounded, on disk: one safetensors file for each, and what is known of them.

A directory holds matrix-NNN.safetensors with `q` (of w4 two to a byte, the first in the low half) and `scale`, and
calibration.json, written last: {"matrices": {parameter: {"file", "kind", "shape", "error"}}, …}.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.errors import CheckpointError
from crosscompile.kinds import KINDS
from crosscompile.rounding import Rounded
from crosscompile.safetensors_stream import ShardWriter, Slot, TensorInfo, read_header

INDEX = "calibration.json"
_AGAIN = "remove it and calibrate again"


@dataclass
class CalibrationWriter:
    """Writes what calibration makes, as it makes it, into a directory that exists."""

    directory: Path
    matrices: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, name: str, kind: str, rounded: Rounded) -> None:
        """Takes one matrix."""
        file = f"matrix-{len(self.matrices):03}.safetensors"
        q = rounded.q
        data = (q[:, ::2] & 15).astype(np.uint8) | (q[:, 1::2].astype(np.uint8) << 4) if _halves(kind) == 2 else q
        stored = {"q": data, "scale": rounded.scale}
        slots = {part: Slot(values.shape, values.dtype) for part, values in stored.items()}
        with ShardWriter(self.directory / file, slots, {"parameter": name, "kind": kind}) as writer:
            for part, values in stored.items():
                writer.write(part, 0, values)
        self.matrices[name] = {"file": file, "kind": kind, "shape": list(q.shape), "error": rounded.error}

    def finish(self, **facts: Any) -> None:
        """Writes the index, with facts about the calibration in it; without it the directory counts as nothing."""
        partial = self.directory / f".{INDEX}.partial"
        with partial.open("w", encoding="utf-8") as stream:
            json.dump({**facts, "matrices": self.matrices}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.directory / INDEX)


@dataclass(frozen=True)
class Matrix:
    """One rounded matrix. kind: one of KINDS; shape: (out, in); error: what part of its output is noise."""

    kind: str
    shape: tuple[int, int]
    error: float
    q: TensorInfo
    scale: TensorInfo

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """q (rows, in) of the kind's dtype and scale (rows, in / group) float16 of rows [start, stop)."""
        halves = _halves(self.kind)
        stored = np.dtype("u1") if halves == 2 else KINDS[self.kind].dtype
        data, scale = _part(self.q, stored, start, stop), _part(self.scale, np.dtype("<f2"), start, stop)
        if not np.isfinite(scale).all():
            raise CheckpointError(f"{self.scale.file}: a scale is not finite; {_AGAIN}")
        if halves == 1:
            return data, scale
        q = np.empty((len(data), 2 * data.shape[1]), np.int8)
        q[:, ::2], q[:, 1::2] = data << 4, data & 0xF0
        q >>= 4  # an arithmetic shift: the sign comes with it
        return q, scale


def _halves(kind: str) -> int:
    """How many integers of a kind are stored in a byte."""
    return 2 if KINDS[kind].base == "w4" else 1


def _part(info: TensorInfo, dtype: np.dtype[Any], start: int, stop: int) -> np.ndarray:
    width = info.shape[1]
    count = (stop - start) * width
    offset = info.offset_bytes + start * width * dtype.itemsize
    values = np.fromfile(info.file, dtype, count, offset=offset)
    if len(values) != count:
        raise CheckpointError(f"{info.file} is truncated; {_AGAIN}")
    return values.reshape(-1, width)


@dataclass(frozen=True)
class Calibrated:
    """A directory that CalibrationWriter finished. facts: what else its index says."""

    directory: Path
    matrices: dict[str, Matrix]
    facts: dict[str, Any]

    def matrix(self, name: str, kind: str, shape: tuple[int, ...]) -> Matrix | None:
        """The matrix of a parameter, if it was rounded to this kind. CheckpointError where its shape is another."""
        found = self.matrices.get(name)
        if found is None or found.kind != kind:
            return None
        if found.shape != tuple(shape):
            raise CheckpointError(
                f"{self.directory}: {name} has shape {list(found.shape)}, the model needs {list(shape)}; {_AGAIN}"
            )
        return found


def read(directory: Path) -> Calibrated:
    """Opens a finished calibration and checks it; integers are read later. CheckpointError names what is wrong."""
    file = directory / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        matrices = {name: _matrix(directory, name, entry) for name, entry in index.pop("matrices").items()}
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; {_AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is no index of a calibration ({error}); {_AGAIN}") from error
    return Calibrated(directory, matrices, index)


def _matrix(directory: Path, name: str, entry: dict[str, Any]) -> Matrix:
    kind, (out, columns), error = entry["kind"], entry["shape"], float(entry["error"])
    file = directory / Path(entry["file"]).name
    tensors, _ = read_header(file)
    how, halves = KINDS[kind], _halves(kind)
    stored = "U8" if halves == 2 else "I8" if how.dtype == np.int8 else "I16"
    wanted = {"q": (stored, (out, columns // halves)), "scale": ("F16", (out, columns // how.group))}
    for part, (dtype, shape) in wanted.items():
        info = tensors[part]
        if (info.dtype, info.shape) != (dtype, shape):
            raise CheckpointError(f"{file}: {part} of {name} is {info.dtype} {list(info.shape)}, not {dtype}; {_AGAIN}")
    return Matrix(kind, (out, columns), error, tensors["q"], tensors["scale"])
