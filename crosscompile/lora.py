"""A checkpoint with a PEFT adapter merged into it while it is read: LoRA, rank-stabilized LoRA and DoRA.

A directory with adapter_config.json and adapter_model.safetensors. Of a matrix W (out, in) there are lora_A (r, in) and
lora_B (out, r): W + scale · B A, where scale is alpha / r, or alpha / √r (use_rslora). DoRA divides each row of that by
its length and multiplies it by the magnitude that is stored. Modules that were trained whole (modules_to_save), and
embeddings that are kept beside their adapter (base_layer), replace those of the checkpoint. Source: PEFT's
tuners/lora/layer.py and save_and_load.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.checkpoint import FLOATS, Checkpoint, read_object, read_values
from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.safetensors_stream import TensorInfo, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?"
)
CONVERT = (
    'python -c "import sys, torch, safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in torch.load('
    'sys.argv[1], weights_only=True).items()}}, sys.argv[2])" {} {}'
)
"""The command that turns a pickle of tensors into safetensors; both names are to be filled in."""


@dataclass(frozen=True)
class Delta:
    """What is added to one matrix. a (r, in), b (out, r) float32; magnitude (out,) of DoRA.

    transposed: the checkpoint has the matrix as (in, out).
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None
    transposed: bool = False

    def added_to(self, values: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of the checkpoint's matrix, merged."""
        scale = np.float32(self.scale)
        if self.transposed:
            return values + (self.a[:, start:stop].T @ self.b.T) * scale
        made: np.ndarray = values + (self.b[start:stop] @ self.a) * scale
        if self.magnitude is not None:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # found out when it is stored
                made = made * (self.magnitude[start:stop] / np.linalg.norm(made, axis=1))[:, None]
        return made


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A Checkpoint whose matrices are another's with something added, or are replaced."""

    base: Checkpoint | None = None
    deltas: dict[str, Delta] = field(default_factory=dict, repr=False)
    replaced: dict[str, TensorInfo] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> Checkpoint:
        assert self.base is not None
        return self.base

    @property
    def paths(self) -> list[Path]:
        assert self.adapter is not None
        return [*self.source.paths, self.adapter / CONFIG, self.adapter / WEIGHTS]

    def info(self, name: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
        """The tensor's place, in the adapter if that replaces it."""
        found = self.source.info(name, shape)
        return self.replaced.get(found.name, found)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        info = self.info(name)
        values = read_values(info, rows) if info.name in self.replaced else self.source.read(name, rows)
        delta = self.deltas.get(info.name)
        if delta is None:
            return values
        start, stop, _ = (rows or slice(None)).indices(info.shape[0])
        return delta.added_to(values, start, max(start, stop))

    def integers(self, name: str, rows: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """Those of matrices that nothing is added to."""
        own = self.info(name).name
        return None if own in self.deltas or own in self.replaced else self.source.integers(name, rows)


def merge(source: Checkpoint, directory: Path) -> MergedCheckpoint:
    """The checkpoint with an adapter. Reads the adapter, and nothing of the checkpoint's weights.

    Raises ConfigError for an adapter of another kind, CheckpointError where it does not fit the checkpoint.
    """
    config = _config(directory)
    found, _ = read_header(directory / WEIGHTS)
    modules: dict[str, dict[str, TensorInfo]] = {}
    replaced = {}
    for name, info in found.items():
        if info.dtype not in FLOATS:
            raise CheckpointError(f"{info.file}: tensor {name!r} is {info.dtype!r}, not {', '.join(FLOATS)}")
        if name.startswith(_PREFIX) and (match := _PART.fullmatch(name.removeprefix(_PREFIX))):
            modules.setdefault(match["module"], {})[match["kind"]] = info
        else:
            own = re.sub(r"\.(modules_to_save|base_layer)\b", "", name.removeprefix(_PREFIX))
            base = _base(source, own, info)
            if base.shape != info.shape or base.transposed:
                raise _unfit(info, f"has shape {list(info.shape)}, the checkpoint's {own!r} {list(base.shape)}")
            replaced[base.name] = replace(info, name=base.name)
    deltas = {}
    for module, parts in modules.items():
        base = _base(source, f"{module}.weight", next(iter(parts.values())))
        deltas[base.name] = _delta(config, module, parts, base)
    if not deltas and not replaced:
        raise CheckpointError(f"{directory / WEIGHTS} holds no adapter; name the directory that PEFT saved")
    plain = {name: getattr(source, name) for name in Checkpoint.__dataclass_fields__}
    return MergedCheckpoint(
        **{**plain, "tensors": {**source.tensors, **replaced}, "adapter": directory},
        base=source,
        deltas=deltas,
        replaced=replaced,
    )


def _config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG
    if not file.is_file():
        raise ConfigError(f"{directory} has no {CONFIG}: it is not an adapter that PEFT saved; name its directory")
    config = read_object(file, required=True)
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{file}: peft_type {config.get('peft_type')!r} cannot be merged, only 'LORA' can")
    if config.get("bias", "none") != "none":
        raise ConfigError(f"{file}: bias {config['bias']!r} is not supported, only 'none' is; merge it with PEFT")
    if not (directory / WEIGHTS).is_file():
        pickle = directory / "adapter_model.bin"
        if pickle.is_file():
            raise CheckpointError(
                f"{pickle} is a pickle, which can run code when read; convert it once: "
                f"{CONVERT.format(pickle, directory / WEIGHTS)}"
            )
        raise CheckpointError(f"{directory} has no {WEIGHTS}; download or save the adapter again")
    return config


def _unfit(info: TensorInfo, why: str) -> CheckpointError:
    return CheckpointError(f"{info.file}: tensor {info.name!r} {why}; the adapter belongs to another model")


def _base(source: Checkpoint, name: str, info: TensorInfo) -> TensorInfo:
    """The checkpoint's tensor of that name, or of that name without its first part."""
    for known in (name, name.partition(".")[2]):
        if known in source.tensors:
            return source.tensors[known]
    raise _unfit(info, f"is for {name!r}, which the checkpoint does not have")


_MUCH = re.compile(r"\)[*+?{]|([*+?{][^*+?{]*){3}")
"""A repeated group, or three repetitions: what takes for ever on some names. PEFT's own patterns are names."""


def _ends(ending: str, pattern: str, module: str) -> bool:
    """Whether a module's name, or its end behind a dot, is what an expression of rank_pattern or alpha_pattern says."""
    if len(ending) > 300 or _MUCH.search(ending):
        raise ConfigError(f"{CONFIG}: {pattern} has {ending[:60]!r}, which is too involved; name modules one by one")
    try:
        return re.fullmatch(rf"(.*\.)?({ending})", module) is not None
    except re.error as error:
        raise ConfigError(f"{CONFIG}: {pattern} has {ending!r}, which is no regular expression: {error}") from error


def _number(config: Mapping[str, Any], key: str, pattern: str, module: str) -> float:
    """r or lora_alpha of a module: the pattern's whose key ends its name, else the one for all."""
    value = config.get(key)
    patterns = config.get(pattern) or {}
    if isinstance(patterns, dict):
        for ending, own in patterns.items():
            if _ends(ending, pattern, module):
                value = own
                break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ConfigError(f"{CONFIG}: {key} must be a positive number for {module}, not {value!r}")
    return float(value)


def _delta(config: Mapping[str, Any], module: str, parts: Mapping[str, TensorInfo], base: TensorInfo) -> Delta:
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    some = next(iter(parts.values()))
    if any(kind not in parts for kind in kinds):
        raise CheckpointError(f"{some.file}: {module} has {', '.join(parts)}, not both {' and '.join(kinds)}")
    a_info, b_info = (parts[kind] for kind in kinds)
    rank = int(_number(config, "r", "rank_pattern", module))
    transposed = embedding or bool(config.get("fan_in_fan_out")) != base.transposed
    out, columns = base.shape[::-1] if transposed else base.shape
    for info, shape in ((a_info, (rank, columns)), (b_info, (out, rank))):
        if info.shape != shape:
            raise _unfit(info, f"has shape {list(info.shape)}; rank {rank} on {list(base.shape)} needs {list(shape)}")
    magnitude = None
    if "lora_magnitude_vector" in parts:
        info = parts["lora_magnitude_vector"]
        magnitude = read_values(info).reshape(-1)
        if transposed or magnitude.shape != (out,):
            raise _unfit(info, f"has shape {list(info.shape)}, {module} needs [{out}]")
    elif config.get("use_dora"):
        raise CheckpointError(f"{some.file}: {module} has no lora_magnitude_vector, which use_dora implies")
    alpha = _number(config, "lora_alpha", "alpha_pattern", module)
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Delta(read_values(a_info), read_values(b_info), scale, magnitude, transposed)
