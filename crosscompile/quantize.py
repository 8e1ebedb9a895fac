"""Write a model's weights: read rows of the checkpoint, quantize and pack them, stream them into shards.

The shards follow runtime_c/FORMAT.md. At no time is more than a slice of one tensor in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.calibrated import Calibrated
from crosscompile.checkpoint import Checkpoint
from crosscompile.compiled import Parameter
from crosscompile.errors import CheckpointError, QuantizeError
from crosscompile.packing import KINDS, Packing, fits, pack, pack_quantized, quantize, regrouped
from crosscompile.parallel import PART, in_parts
from crosscompile.pieces import Rows, piece_of
from crosscompile.safetensors_stream import ShardWriter, Slot

SLICE_ELEMENTS = 1 << 20
"""Weights handled at once: 4 MB of float32, small enough for a cache, large enough for NumPy."""

INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in total."""


@dataclass(frozen=True)
class Weights:
    """What was written. n_bytes: stored tensors with their scales and row padding, without alignment between them.

    n_parameters: logical weights taken from the checkpoint, before padding. n_kept: how many of them are the very
    integers that the checkpoint had; n_again: how many it had quantized and were quantized again; n_calibrated: how
    many calibration rounded. keeping: the kind of the fewest bits that holds all integers quantized again, "" for none.
    """

    n_bytes: int
    n_parameters: int
    n_kept: int = 0
    n_again: int = 0
    n_calibrated: int = 0
    keeping: str = ""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / max(self.n_parameters, 1)


def stored_slots(parameter: Parameter) -> dict[str, Slot]:
    """Stored tensors of a parameter by name: `name` and, if it is quantized, `name.scale` and more."""
    form = Packing.parse(parameter.packing)
    if form.kind == "vec":
        dtype = np.dtype("<f4") if parameter.value is None else parameter.value.dtype.newbyteorder("<")
        return {parameter.name: Slot(tuple(parameter.shape), dtype)}
    out, columns = parameter.shape
    stored = form.stored(out, columns)
    return {parameter.name + suffix: Slot(shape, dtype) for suffix, (shape, dtype) in stored.items()}


def is_shared(parameter: Parameter) -> bool:
    """Whether a tensor of a checkpoint is stored alike for every target, the processor's and a GPU's."""
    return parameter.packing == "vec" and parameter.value is None


def weight_bytes(parameters: Iterable[Parameter]) -> Weights:
    """Size of the weights before they are written."""
    n_bytes = n_parameters = 0
    for parameter in parameters:
        n_bytes += sum(slot.n_bytes for slot in stored_slots(parameter).values())
        n_parameters += int(np.prod(parameter.shape, dtype=np.int64)) if parameter.value is None else 0
    return Weights(n_bytes, n_parameters)


def check_sources(checkpoint: Checkpoint, parameters: Iterable[Parameter]) -> None:
    """CheckpointError if a tensor is missing or shapes do not stack to what the model needs. Reads no data."""
    for named in parameters:
        if named.value is not None:
            continue
        parameter = named if named.part_of is None else named.part_of[0]
        made = [Rows(checkpoint, source) for source in parameter.sources]
        rows, inner = parameter.shape[0], tuple(parameter.shape[1:])
        for each in made:
            if len(each.shape) != len(parameter.shape) or each.shape[1:] != inner or not each.fits:
                sizes_ = ["n", *map(str, inner)]
                wanted = ", ".join(reversed(sizes_) if each.piece.transposed else sizes_)
                raise CheckpointError(
                    f"{each.info.file}: tensor {each.info.name!r} has shape {list(each.info.shape)}, config.json "
                    f"implies [{wanted}]; one of the two belongs to another model"
                )
        total = sum(each.shape[0] for each in made)
        if total != rows:
            sizes = " + ".join(f"{each.info.name} {list(each.shape)}" for each in made)
            raise CheckpointError(
                f"{made[0].info.file}: {sizes} gives {total} rows, config.json implies {rows}; "
                f"one of the two belongs to another model"
            )


Quantized = tuple[np.ndarray, np.ndarray]
"""q (rows, columns) int8 or int16 and scale (rows, columns / group) float16."""


@dataclass
class _Slices:
    """The sources of a parameter stacked, some rows at a time. n_kept and the like: as in Weights, of rows handed out.

    kind: one of KINDS, for rows as Quantized; any other for float32. calibrated: has some parameters as integers.
    """

    checkpoint: Checkpoint
    parameter: Parameter
    kind: str
    calibrated: Calibrated | None = None
    n_kept: int = 0
    n_again: int = 0
    n_calibrated: int = 0
    keeping: set[str] = field(default_factory=lambda: set(KINDS))

    def of(self, rows: int) -> Iterator[tuple[int, np.ndarray | Quantized]]:
        """(first row, rows) of at most `rows` rows; all but the last have exactly `rows`."""
        shape = self.parameter.shape
        whole, start = self.parameter.part_of or (self.parameter, 0)
        found = self.calibrated.matrix(whole.name, self.kind, whole.shape) if self.calibrated is not None else None
        if found is not None:
            self.n_calibrated = shape[0] * shape[1]
            for first in range(0, shape[0], rows):
                yield first, found.rows(start + first, start + min(first + rows, shape[0]))
            return
        pending: list[Any] = []
        held = first = before = 0
        for source in whole.sources:
            stored = Rows(self.checkpoint, source)
            n = stored.shape[0]
            at, stop = max(start - before, 0), min(start + shape[0] - before, n)
            before += n
            while at < stop:
                take = min(rows - held, stop - at)
                pending.append(self._read(stored, at, at + take))
                held, at = held + take, at + take
                if held == rows:
                    yield first, _joined(pending)
                    first, held, pending = first + held, 0, []
        if pending:
            yield first, _joined(pending)

    def _read(self, stored: Rows, start: int, stop: int) -> np.ndarray | Quantized:
        """Integers as they are where they fit; for they are rows of one scheme each, quantizing what is left over
        apart from them gives the same as quantizing all together."""
        if self.kind not in KINDS:
            return _checked(stored, start, stop)
        found = stored.integers(start, stop)
        if (kept := _kept(self.kind, found)) is not None:
            if not np.isfinite(kept[1]).all():
                _check_finite(stored.piece.tensor, start, kept[1].astype(np.float32))
            self.n_kept += kept[0].size
            return kept
        values = _checked(stored, start, stop)
        if stored.info.quantized:
            self.n_again += values.size
            self.keeping &= {kind for kind in self.keeping if _kept(kind, found) is not None}
        try:
            return quantize(self.kind, values)
        except QuantizeError as error:
            raise QuantizeError(f"{stored.piece.tensor}, rows from {start} on: {error}") from error


def _kept(kind: str, found: Quantized | None) -> Quantized | None:
    """Integers and scales of groups of 32 columns as a kind stores them; None where it cannot."""
    if found is None or not fits(kind, found[0]):
        return None
    scale = regrouped(kind, found[1])
    return None if scale is None else (found[0], scale)


def _checked(stored: Rows, start: int, stop: int) -> np.ndarray:
    values = stored.read(start, stop)
    _check_finite(stored.piece.tensor, start, values)
    return values


def _joined(parts: list[Any]) -> np.ndarray | Quantized:
    if len(parts) == 1:
        made: np.ndarray | Quantized = parts[0]
        return made
    if isinstance(parts[0], tuple):
        q, scale = zip(*parts, strict=True)
        return np.concatenate(q), np.concatenate(scale)
    return np.concatenate(parts)


def _check_finite(name: str, first: int, values: np.ndarray) -> None:
    bad: list[int] = []
    flat = values.reshape(-1)
    in_parts(flat.size, PART, lambda at: None if np.isfinite(flat[at]).all() else bad.append(at.start))
    if bad:
        finite = np.isfinite(values)
        row = first + int(np.argwhere(~finite)[0][0])
        kind = "NaN" if np.isnan(values).any() else "an infinity"
        raise QuantizeError(
            f"tensor {name!r} holds {kind} in row {row}: the checkpoint is damaged or overflowed when it was saved; "
            f"download it again or export it as bfloat16"
        )


def _write_parameter(
    checkpoint: Checkpoint,
    parameter: Parameter,
    writer: ShardWriter,
    done: Callable[[int], None],
    calibrated: Calibrated | None,
) -> tuple[tuple[int, int, int], set[str]]:
    """Writes one parameter; returns (n_kept, n_again, n_calibrated) of Weights, and which kinds hold what was
    quantized again."""
    if parameter.value is not None:
        writer.write(parameter.name, 0, parameter.value)
        done(parameter.value.nbytes)
        return (0, 0, 0), set(KINDS)
    form = Packing.parse(parameter.packing)
    columns = int(np.prod(parameter.shape[1:], dtype=np.int64))
    rows = max(SLICE_ELEMENTS // max(columns, 1) // form.rows, 1) * form.rows
    positions: dict[str, int] = {}
    slices = _Slices(checkpoint, parameter, form.kind, calibrated)
    for first, part in slices.of(rows):
        try:
            pieces = (
                pack_quantized(parameter.packing, *part) if isinstance(part, tuple) else pack(parameter.packing, part)
            )
        except QuantizeError as error:
            raise QuantizeError(
                f"{' + '.join(piece_of(s).tensor for s in parameter.sources)}, rows from {first} on: {error}"
            ) from error
        for suffix, piece in pieces.items():
            at = positions.get(suffix, 0)
            writer.write(parameter.name + suffix, at, piece)
            positions[suffix] = at + piece.nbytes
            done(piece.nbytes)
    return (slices.n_kept, slices.n_again, slices.n_calibrated), slices.keeping


def write_weights(
    checkpoint: Checkpoint,
    parameters: Iterable[Parameter],
    directory: Path,
    progress: Progress | None = None,
    calibrated: Calibrated | None = None,
    prefix: str = "",
) -> Weights:
    """Writes one safetensors shard per `Parameter.shard` and the index into `directory`, which must exist.

    prefix: what the files' names begin with, where others lie there already.
    calibrated: the integers of the matrices that it has in the kind they are stored in; all others are rounded here.
    Each file appears under its name only when it is complete. Raises QuantizeError for NaN, infinities and values
    beyond a scheme's range (naming tensor and row), CheckpointError for missing tensors and wrong shapes.
    """
    parameters = tuple(parameters)
    check_sources(checkpoint, parameters)
    size = weight_bytes(parameters)
    written = 0

    def done(n_bytes: int) -> None:
        nonlocal written
        written += n_bytes
        if progress is not None:
            progress(written, size.n_bytes)

    shards: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        shards.setdefault(parameter.shard, []).append(parameter)
    weight_map: dict[str, str] = {}
    total = 0
    counts, keeping = np.zeros(3, np.int64), set(KINDS)
    for shard, members in shards.items():
        slots: dict[str, Slot] = {}
        for parameter in members:
            slots.update(stored_slots(parameter))
        metadata = {f"packing:{parameter.name}": parameter.packing for parameter in members}
        file = directory / f"{prefix}{shard}.safetensors"
        with ShardWriter(file, slots, metadata) as writer:
            for parameter in members:
                found, holding = _write_parameter(checkpoint, parameter, writer, done, calibrated)
                counts += found
                keeping &= holding
        weight_map.update(dict.fromkeys(slots, file.name))
        total += sum(slot.n_bytes for slot in slots.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    partial = directory / f".{prefix}{INDEX}.partial"
    with partial.open("w") as stream:
        json.dump(index, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(directory / f"{prefix}{INDEX}")
    kept, again, given = (int(count) for count in counts)
    fewest = min(keeping, key=lambda kind: KINDS[kind].stored_bits, default="") if again else ""
    return replace(size, n_kept=kept, n_again=again, n_calibrated=given, keeping=fewest)
