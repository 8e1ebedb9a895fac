"""What a step of a plan must write, as numbers that no tier changes, and as the bytes a tier makes of them.

    Rows        float32, one row per token
    Quantized   rows of whole numbers with a scale per group of 32; tiers differ in the scale's factor and in sums
    Blocks      keys or values of one layer as they lie in the cache, the same on every tier

Values come from the NumPy reference (`reference_values`), or are decoded from what another machine wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscompile import reference
from crosscompile.checkpoint import Checkpoint
from crosscompile.errors import ConfigError
from crosscompile.packing import GROUP
from crosscompile.reference import F32, KV_BLOCK
from crosscompile.target import Tier

_DTYPES = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}


@dataclass(frozen=True)
class Rows:
    """values: (rows, columns) float32. What a tier stores may have more columns, which are zero."""

    values: np.ndarray

    def part(self, first: int, rows: int) -> Rows:
        return Rows(self.values[first : first + rows])

    def encode(self, row_bytes: Sequence[int], tier: Tier, packing: str | None) -> list[np.ndarray]:
        """The arrays a kernel writes for these rows. row_bytes: of a row of each of them."""
        missing = row_bytes[0] // 4 - self.values.shape[1]
        return [np.pad(self.values, ((0, 0), (0, max(0, missing))))]


@dataclass(frozen=True)
class Quantized:
    """q: (rows, B, 32) int8; scale: (rows, B) float32, so that q · scale is the value."""

    q: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Quantized:
        """values: (rows, columns) float32."""
        q, scale = reference.act_quant(values)
        return cls(q.astype(np.int8), scale)

    def part(self, first: int, rows: int) -> Quantized:
        return Quantized(self.q[first : first + rows], self.scale[first : first + rows])

    def encode(self, row_bytes: Sequence[int], tier: Tier, packing: str | None) -> list[np.ndarray]:
        """q, scale and, where the weights of `packing` want it, the sum."""
        assert packing is not None
        sums, shrink, dtype = tier.activations(packing)
        made = [self.q.astype(dtype), self.scale * F32(shrink)]
        if sums:
            total = self.q.sum(-1, dtype=np.int32) * np.int32(8 if sums == "negated" else -8)
            made.append(total if sums == "wide" else total & np.int32(0xFFFF))
        return made


@dataclass(frozen=True)
class Blocks:
    """data: (blocks, bytes) uint8, of the blocks that the rows touch, in order of position."""

    data: np.ndarray

    def encode(self, row_bytes: Sequence[int], tier: Tier, packing: str | None) -> list[np.ndarray]:
        return [self.data]


Value = Rows | Quantized | Blocks


def decode(arrays: Sequence[bytes], rows: int, quantized: bool, tier: Tier, packing: str | None) -> Value:
    """What `encode` made the arrays of: the inverse, up to columns that are padding. quantized: q, scale[, sum]."""
    if not quantized:
        return Rows(np.frombuffer(arrays[0], "<f4").reshape(rows, -1))
    assert packing is not None
    _, shrink, dtype = tier.activations(packing)
    q = np.frombuffer(arrays[0], dtype).astype(np.int8).reshape(rows, -1, GROUP)
    scale = np.frombuffer(arrays[1], "<f4").reshape(rows, -1)
    return Quantized(q, scale / F32(shrink))


@dataclass(frozen=True)
class Cache:
    """Keys, or values, of all positions: numbers (n, Hkv, D) and scales (n, Hkv) as `reference.cached` gives them.

    dtype: f32, f16 or i8. transposed: keys lie as (D, 64) in a block, values as (64, D).
    """

    numbers: np.ndarray
    scales: np.ndarray
    dtype: str
    transposed: bool

    def blocks(self, first: int, rows: int) -> Blocks:
        """The blocks that hold positions [first, first + rows) once these are there; later ones are still zero."""
        return Blocks(np.stack([self._block(b, first + rows) for b in range(first // KV_BLOCK, _end(first, rows))]))

    def _block(self, index: int, end: int) -> np.ndarray:
        start = index * KV_BLOCK
        held = self.numbers[start : min(start + KV_BLOCK, end)]
        _, heads, dim = held.shape
        numbers = np.zeros((KV_BLOCK, heads, dim), F32)
        numbers[: len(held)] = held
        laid = numbers.transpose(1, 2, 0) if self.transposed else numbers.transpose(1, 0, 2)
        if self.dtype != "i8":
            return np.ascontiguousarray(laid.astype(_DTYPES[self.dtype])).view(np.uint8).reshape(-1)
        scales = np.zeros((KV_BLOCK, heads), F32)
        scales[: len(held)] = self.scales[start : start + len(held)]
        data = laid.reshape(heads, -1).astype(np.int8).view(np.uint8)
        return np.concatenate((data, np.ascontiguousarray(scales.T).view(np.uint8)), axis=1).reshape(-1)


def _end(first: int, rows: int) -> int:
    return (first + rows - 1) // KV_BLOCK + 1


@dataclass
class Noted:
    """One operation of the reference over all tokens. values: float32 rows, or (query, keys, values) of rope_append."""

    name: str
    values: tuple[np.ndarray | tuple[np.ndarray, np.ndarray], ...]


@dataclass
class Notes:
    """Everything the reference computed for a list of tokens, in order, and the scheme that it used."""

    scheme: reference.Scheme
    body: list[Noted] = field(default_factory=list)
    head: list[Noted] = field(default_factory=list)

    def value(self, role: str, index: int, quantized: bool, first: int, rows: int) -> list[Value]:
        """What rows [first, first + rows) of an operation are. quantized: as the next linear layer takes them."""
        noted = (self.body if role == "body" else self.head)[index]
        main = noted.values[0]
        assert isinstance(main, np.ndarray)
        part = main[first : first + rows]
        if noted.name != "rope_append":
            return [Quantized.of(part) if quantized else Rows(part)]
        made: list[Value] = []
        for pair, transposed in zip(noted.values[1:], (True, False), strict=True):
            assert isinstance(pair, tuple)
            numbers, scales = pair
            made.append(Cache(numbers, scales, self.scheme.kv, transposed).blocks(first, rows))
        return [*made, Rows(part)]


def reference_values(checkpoint: Checkpoint, tokens: Sequence[int], scheme: reference.Scheme) -> Notes:
    """Runs the NumPy reference (Llama and Mistral) and keeps what every operation computed.

    Raises ConfigError for other families, whose steps it would get wrong.
    """
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not set(names) <= {"LlamaForCausalLM", "MistralForCausalLM"}:
        raise ConfigError(
            f"config.json: the NumPy reference computes LlamaForCausalLM and MistralForCausalLM, not {names!r}; "
            f"compare with this machine's own run: --reference host"
        )
    notes = Notes(scheme)

    def note(name: str, *values: np.ndarray | tuple[np.ndarray, np.ndarray]) -> None:
        in_head = name == "gather" or bool(notes.head)
        (notes.head if in_head else notes.body).append(Noted(name, values))

    reference.Llama(checkpoint, scheme, note).logits(tokens)
    return notes
