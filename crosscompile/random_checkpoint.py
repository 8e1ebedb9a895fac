"""A checkpoint of random weights: tensors are made when they are read, so that any size takes no disk.

Speed and memory of a model do not depend on the values of its weights. A directory with random.json instead of
safetensors is such a checkpoint:

    {"seed": 0, "tensors": {"model.norm.weight": {"shape": [576], "std": null}, …}}

std null: values about one, as the weights of a norm are. The content depends on the file alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.checkpoint import RANDOM, Checkpoint
from crosscompile.errors import CheckpointError
from crosscompile.safetensors_stream import TensorInfo

_POOL = 1 << 22
"""Normal values that every row is cut from, each at a place of its own: drawing each afresh would take minutes."""


class RandomCheckpoint(Checkpoint):
    """A Checkpoint whose tensors are computed."""

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The tensor, or a slice of its first axis, as float32. The values do not depend on the slicing."""
        tensor = self.info(name)
        seed, entry = self.recipe
        std = entry[name]["std"]
        start, stop, _ = (rows or slice(None)).indices(tensor.shape[0])
        columns = int(np.prod(tensor.shape[1:], dtype=np.int64))
        pool, first = _pool(seed), list(entry).index(name) * 7_368_787
        if len(tensor.shape) == 1:
            at = first % (_POOL - tensor.shape[0])
            values = pool[at + start : at + stop].copy()
        else:
            places = (first + np.arange(start, stop, dtype=np.int64) * 2_654_435_761) % (_POOL - columns)
            values = np.empty((stop - start, columns), np.float32)
            for row, place in zip(values, places, strict=True):
                row[:] = pool[place : place + columns]
            values = values.reshape(stop - start, *tensor.shape[1:])
        values *= np.float32(0.05 if std is None else std)
        return values + np.float32(1) if std is None else values

    @functools.cached_property
    def recipe(self) -> tuple[int, Mapping[str, Any]]:
        """(seed, what random.json says of each tensor)."""
        return read_recipe(self.path / RANDOM)


@functools.lru_cache(1)
def _pool(seed: int) -> np.ndarray:
    return np.random.Generator(np.random.SFC64(seed)).standard_normal(_POOL, dtype=np.float32)


def read_recipe(file: Path) -> tuple[int, Mapping[str, Any]]:
    """(seed, entry of each tensor), checked. Raises CheckpointError."""
    from crosscompile.checkpoint import read_object

    recipe = read_object(file, required=True)
    seed, tensors = recipe.get("seed"), recipe.get("tensors")
    if not isinstance(seed, int) or seed < 0 or not isinstance(tensors, dict):
        raise CheckpointError(f"{file}: an object with a seed and tensors is expected; make the checkpoint again")
    for name, entry in tensors.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        sizes = isinstance(shape, list) and all(isinstance(n, int) and 0 < n < _POOL for n in shape) and shape
        if not sizes or not isinstance(entry.get("std", 0), (int, float, type(None))):
            raise CheckpointError(f"{file}: tensor {name!r} needs a shape and a std; make the checkpoint again")
    return seed, tensors


def tensors_of(file: Path) -> dict[str, TensorInfo]:
    """Places of the tensors that random.json describes, as if they were stored as bfloat16."""
    _, entries = read_recipe(file)
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    return {
        name: TensorInfo(name, file, "BF16", shape, 0, 2 * int(np.prod(shape, dtype=np.int64)))
        for name, shape in shapes.items()
    }
