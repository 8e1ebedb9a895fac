"""AWQ and GPTQ checkpoints: 4-bit weights in int32 words, read as a Checkpoint of plain matrices.

Of a linear layer with `in` inputs and `out` outputs there are, in place of its weight,

    qweight  int32   GPTQ (in / 8, out), eight inputs a word; AWQ (in, out / 8), eight outputs a word in the order ORDER
    qzeros   int32   (groups, out / 8), packed along out, as qweight of AWQ or in plain order; GPTQ's first format has
                     each less by one, modulo 16
    scales   float16 (groups, out)
    g_idx    int32   (in,), GPTQ only: the group of each input, in any order if quantized by activation order

and weight[o, i] = scales[g, o] · (q[i, o] - zero[g, o]), which float32 holds exactly. Sources: AutoGPTQ's
qlinear_cuda_old.py and AutoAWQ's packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crosscompile.checkpoint import FLOATS, Checkpoint
from crosscompile.errors import CheckpointError, ConfigError
from crosscompile.packing import GROUP
from crosscompile.safetensors_stream import TensorInfo

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ: which of eight outputs each nibble of a word, lowest first, holds."""
PER_WORD = 8
METHODS = {"awq": "AWQ", "gptq": "GPTQ"}
_WORDS: dict[str, np.dtype[Any]] = {**FLOATS, "I32": np.dtype("<i4")}
_AGAIN = "download it again"


@dataclass(frozen=True)
class Form:
    """What config.json's quantization_config says. group: inputs that share a scale, 0 for all; offset: on zeros."""

    method: str
    group: int
    offset: int = 0


def form_of(config: Mapping[str, Any], file: object = "config.json") -> Form:
    """The form of a checkpoint. ConfigError for one that is not read; file: what the message begins with."""
    said = config["quantization_config"]
    method = said.get("quant_method") if isinstance(said, dict) else None
    where = f"{file}: quantization_config"
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"{where} says the weights are already quantized ({method!r}); only awq and gptq are read so: "
            f"use the original bfloat16 or float16 checkpoint, edgellm quantizes it itself"
        )
    bits, group = said.get("bits", said.get("w_bit")), said.get("group_size", said.get("q_group_size"))
    if bits != 4:
        raise ConfigError(f"{where}.bits is {bits!r}, only 4 is read; use the original checkpoint")
    if isinstance(group, bool) or not isinstance(group, int) or (group != -1 and group < 1):
        raise ConfigError(f"{where}.group_size must be a number of inputs, or -1 for all, not {group!r}")
    if config.get("architectures") == ["GPT2LMHeadModel"]:
        raise ConfigError(f"{where}: GPT-2's transposed matrices are not read from {METHODS[method]}; use the original")
    version = str(said.get("version", "gemm")).lower()
    if method == "awq":
        if version != "gemm":
            raise ConfigError(f"{where}.version {version!r} is not read, only 'gemm' is; use the original checkpoint")
        return Form("awq", max(group, 0))
    kind = said.get("checkpoint_format", "gptq")
    if kind not in ("gptq", "gptq_v2"):
        raise ConfigError(f"{where}.checkpoint_format {kind!r} is not read, gptq and gptq_v2 are; use the original")
    return Form("gptq", max(group, 0), offset=1 if kind == "gptq" else 0)


@dataclass(frozen=True)
class PackedCheckpoint(Checkpoint):
    """A Checkpoint of which some matrices are packed. parts: what each of those is made of."""

    form: Form = Form("gptq", 0)
    parts: dict[str, dict[str, TensorInfo]] = field(default_factory=dict, repr=False)
    last: dict[str, _Layer] = field(default_factory=dict, repr=False, compare=False)

    def info(self, name: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
        """The tensor's place; that of a packed one is its qweight's."""
        tensor = self.tensors.get(name)
        if tensor is None or name not in self.parts:
            return super().info(name, shape)
        if shape is not None and tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} unpacks to shape {list(tensor.shape)}, config.json implies "
                f"{list(shape)}; one of the two belongs to another model"
            )
        return tensor

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Rows as float32. A packed matrix is unpacked as a whole, and kept until another one is asked for."""
        if name not in self.parts:
            return super().read(name, rows)
        layer, (start, stop) = self._layer(name), self._range(name, rows)
        scale = layer.scale[start:stop, layer.groups].astype(np.float32)
        return layer.q[start:stop].astype(np.float32) * scale

    def integers(self, name: str, rows: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """q - zero and scales, where every 32 inputs share a group."""
        if name not in self.parts:
            return None
        layer, (start, stop) = self._layer(name), self._range(name, rows)
        if not layer.in_order:
            return None
        return layer.q[start:stop], np.ascontiguousarray(layer.scale[start:stop, layer.groups[::GROUP]])

    def _range(self, name: str, rows: slice | None) -> tuple[int, int]:
        start, stop, _ = (rows or slice(None)).indices(self.tensors[name].shape[0])
        return start, max(start, stop)

    def _layer(self, name: str) -> _Layer:
        if name not in self.last:
            self.last.clear()
            self.last[name] = _unpack(self, name)
        return self.last[name]


@dataclass(frozen=True)
class _Layer:
    """One matrix. q (out, in) int8, less its zero; scale (out, groups) float16; groups (in,): of each input.

    in_order: 32 inputs that follow each other always share a group.
    """

    q: np.ndarray
    scale: np.ndarray
    groups: np.ndarray
    in_order: bool


def unpacking(source: Checkpoint) -> PackedCheckpoint:
    """The same checkpoint with packed matrices under the names of their weights. Reads no data.

    Raises ConfigError for a form that is not read, CheckpointError for parts that are missing or do not fit.
    """
    form = form_of(source.config, source.path / "config.json")
    tensors, parts = dict(source.tensors), {}
    for name, info in source.tensors.items():
        if not name.endswith(".qweight"):
            continue
        layer = name.removesuffix("qweight")
        kinds = ("qweight", "qzeros", "scales") + (("g_idx",) if form.method == "gptq" else ())
        found = {}
        for kind in kinds:
            part = tensors.pop(layer + kind, None)
            if part is not None:
                found[kind] = part
            elif kind != "g_idx":
                raise CheckpointError(f"{info.file}: tensor {layer + kind!r} is missing beside {name!r}; {_AGAIN}")
        shape = _check(form, found)
        parts[f"{layer}weight"] = found
        tensors[f"{layer}weight"] = replace(
            info, name=f"{layer}weight", dtype=METHODS[form.method], shape=shape, n_bytes=info.n_bytes
        )
    if not parts:
        raise CheckpointError(
            f"{source.path}: quantization_config says {form.method}, but no tensor is packed; remove it from "
            f"config.json if the weights are plain, or {_AGAIN}"
        )
    plain = {name: getattr(source, name) for name in Checkpoint.__dataclass_fields__}
    return PackedCheckpoint(**{**plain, "tensors": tensors}, form=form, parts=parts)


def _check(form: Form, parts: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """(out, in) of a matrix, if all its parts fit together."""
    q, zeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]

    def fail(part: TensorInfo, why: str) -> CheckpointError:
        return CheckpointError(f"{part.file}: tensor {part.name!r} {why}; {_AGAIN}")

    for part in parts.values():
        wanted = ("F16", "BF16", "F32") if part is scales else ("I32",)
        if part.dtype not in wanted or len(part.shape) != (1 if part is parts.get("g_idx") else 2):
            raise fail(part, f"is {part.dtype!r} of shape {list(part.shape)}, not {wanted[0]} as {form.method} has it")
    along_in = form.method == "gptq"
    columns, rows = q.shape[0] * (PER_WORD if along_in else 1), q.shape[1] * (1 if along_in else PER_WORD)
    group = form.group or columns
    if not rows or not columns or columns % group:
        raise fail(q, f"unpacks to {rows} x {columns}, which groups of {group} inputs do not divide")
    groups = columns // group
    for part, shape in ((zeros, (groups, -(-rows // PER_WORD))), (scales, (groups, rows))):
        if part.shape != shape:
            raise fail(
                part, f"has shape {list(part.shape)}; {rows} x {columns} in groups of {group} need {list(shape)}"
            )
    if "g_idx" in parts and parts["g_idx"].shape != (columns,):
        raise fail(parts["g_idx"], f"has {parts['g_idx'].shape[0]} entries, there are {columns} inputs")
    return rows, columns


def _stored(info: TensorInfo) -> np.ndarray:
    """A whole tensor as it lies in its file."""
    dtype = _WORDS[info.dtype]
    try:
        found = np.fromfile(info.file, dtype, offset=info.offset_bytes, count=info.n_bytes // dtype.itemsize)
    except OSError as error:
        raise CheckpointError(f"{info.file} cannot be read: {error.strerror}") from error
    if found.nbytes != info.n_bytes:
        raise CheckpointError(f"{info.file} was truncated while it was read; {_AGAIN}")
    return found.reshape(info.shape)


def _nibbles(words: np.ndarray, axis: int, order: tuple[int, ...] = tuple(range(PER_WORD))) -> np.ndarray:
    """Each word's eight numbers along `axis`, uint8."""
    unsigned = words.view("<u4")
    found = np.empty((*words.shape, PER_WORD), np.uint8)
    for nibble, place in enumerate(order):
        found[..., place] = unsigned >> np.uint32(4 * nibble) & np.uint32(15)
    if axis == 0:
        found = found.transpose(0, 2, 1)
        return np.ascontiguousarray(found).reshape(-1, words.shape[1])
    return found.reshape(words.shape[0], -1)


def _unpack(source: PackedCheckpoint, name: str) -> _Layer:
    form, parts = source.form, source.parts[name]
    rows, columns = source.tensors[name].shape
    order = ORDER if form.method == "awq" else tuple(range(PER_WORD))
    q = _nibbles(_stored(parts["qweight"]), 0 if form.method == "gptq" else 1, order)
    zeros = _nibbles(_stored(parts["qzeros"]), 1, order)[:, :rows]
    zeros = zeros + np.uint8(form.offset) & np.uint8(15)
    scale = _half(parts["scales"])
    groups = np.arange(columns) // (form.group or columns)
    if "g_idx" in parts:
        groups = _stored(parts["g_idx"]).astype(np.int64)
        if groups.min() < 0 or groups.max() >= len(scale):
            raise CheckpointError(
                f"{parts['g_idx'].file}: tensor {parts['g_idx'].name!r} names group {groups.max()} or {groups.min()}, "
                f"there are {len(scale)}; {_AGAIN}"
            )
    signed = q.T.astype(np.int8) - zeros.T.astype(np.int8)[:, groups]
    in_order = columns % GROUP == 0 and bool((groups.reshape(-1, GROUP) == groups[::GROUP, None]).all())
    return _Layer(np.ascontiguousarray(signed), np.ascontiguousarray(scale.T), groups, in_order)


def _half(info: TensorInfo) -> np.ndarray:
    """Scales as float16, in which nearly all are stored. CheckpointError where one has no equal there."""
    stored = _stored(info)
    if info.dtype == "F16":
        return stored
    wide = (stored.astype(np.uint32) << 16).view(np.float32) if info.dtype == "BF16" else stored
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    if (narrow.astype(np.float32) != wide).any():
        raise CheckpointError(f"{info.file}: scales {info.name!r} do not fit float16; use the original checkpoint")
    return narrow
