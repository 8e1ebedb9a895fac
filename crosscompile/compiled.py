"""What compiling a configuration gives, as values that need no TVM and as JSON text that can be kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crosscompile.pieces import Piece, Source


@dataclass(frozen=True)
class Parameter:
    """One tensor of the bundle and where it comes from.

    sources   checkpoint tensors, or pieces of them, stacked along rows; empty for a constant
    shape     logical (out, in), before rows are padded; (length,) for vectors
    packing   runtime_c/FORMAT.md; "vec" is stored as it is, in float32
    shard     file below weights/, without the suffix
    value     a constant made at compile time
    part_of   (matrix, first row) where this is some rows of a matrix that no GPU binds whole
    """

    name: str
    sources: tuple[Source, ...]
    shape: tuple[int, ...]
    packing: str
    shard: str
    value: np.ndarray | None = None
    part_of: tuple[Parameter, int] | None = None


@dataclass(frozen=True)
class CompiledModel:
    """What compiling a configuration gives: code, plan, and which parameters to pack how.

    memory   arena_bytes, arena_unplanned_bytes, kv_bytes_per_token, state_bytes_per_session where there is such a state
    model    the manifest's `model` object, without its name
    seconds  per stage
    """

    kernels: bytes
    plan: dict[str, Any]
    parameters: tuple[Parameter, ...]
    memory: dict[str, int]
    model: dict[str, Any]
    seconds: dict[str, float]


def to_json(model: CompiledModel) -> str:
    """All of it but `seconds`, for from_json."""
    made = {
        "kernels": base64.b64encode(model.kernels).decode(),
        "plan": model.plan,
        "parameters": [_plain(parameter) for parameter in model.parameters],
        "memory": model.memory,
        "model": model.model,
    }
    return json.dumps(made, separators=(",", ":"))


def from_json(text: str) -> CompiledModel:
    """What to_json wrote, with no seconds. ValueError, KeyError or TypeError if it is anything else."""
    read = json.loads(text)
    parameters = tuple(_parameter(each) for each in read["parameters"])
    kernels = base64.b64decode(read["kernels"], validate=True)
    return CompiledModel(kernels, read["plan"], parameters, read["memory"], read["model"], {})


def _plain(parameter: Parameter) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": parameter.name,
        "sources": [asdict(source) if isinstance(source, Piece) else source for source in parameter.sources],
        "shape": parameter.shape,
        "packing": parameter.packing,
        "shard": parameter.shard,
    }
    if parameter.value is not None:
        data = base64.b64encode(np.ascontiguousarray(parameter.value).tobytes()).decode()
        made["value"] = [parameter.value.dtype.str, parameter.value.shape, data]
    if parameter.part_of is not None:
        made["part_of"] = [_plain(parameter.part_of[0]), parameter.part_of[1]]
    return made


def _parameter(plain: Mapping[str, Any]) -> Parameter:
    value = part_of = None
    if "value" in plain:
        dtype, shape, data = plain["value"]
        value = np.frombuffer(base64.b64decode(data, validate=True), dtype).reshape(shape)
    if "part_of" in plain:
        part_of = _parameter(plain["part_of"][0]), plain["part_of"][1]
    sources = tuple(_source(each) for each in plain["sources"])
    return Parameter(plain["name"], sources, tuple(plain["shape"]), plain["packing"], plain["shard"], value, part_of)


def _source(plain: str | Mapping[str, Any]) -> Source:
    if isinstance(plain, str):
        return plain
    return Piece(**{**plain, "ranges": tuple((first, count) for first, count in plain["ranges"])})
