"""What an architecture's table entry says, and what it may use to build its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.relax.frontend import nn

from crosscompile.errors import ConfigError
from crosscompile.kernels.kv_cache import Heads
from crosscompile.pieces import Source


@dataclass(frozen=True)
class Scheme:
    """How weights and cache are stored: f32, f16, w8a8 or w4a8 for body, embedding and head; f32 or f16 for kv."""

    name: str
    body: str
    embedding: str
    head: str
    kv: str


SCHEMES: dict[str, Scheme] = {
    "f32": Scheme("f32", "f32", "f32", "f32", "f32"),
    "f16": Scheme("f16", "f16", "f16", "f16", "f16"),
    "w8a8": Scheme("w8a8", "w8a8", "w8a8", "w8a8", "f16"),
    "w4a8": Scheme("w4a8", "w4a8", "w8a8", "w8a8", "f16"),
}
KV_TYPES = ("f16", "i8", "f32")
WEIGHT_KINDS = {"f32": "f32", "f16": "f16", "w8a8": "w8", "w4a8": "w4"}
"""The stored kind of weights under each scheme."""


def scheme_for(name: str, embedding: str | None = None, head: str | None = None, kv: str | None = None) -> Scheme:
    """A scheme by name, with embedding, head and cache chosen separately where given. ConfigError on unknown names."""
    for what, value, known in (
        ("scheme", name, SCHEMES),
        ("embedding scheme", embedding or name, SCHEMES),
        ("head scheme", head or name, SCHEMES),
        ("kv type", kv or "f16", KV_TYPES),
    ):
        if value not in known:
            raise ConfigError(f"{what} {value!r} does not exist; there are {', '.join(known)}")
    base = SCHEMES[name]
    return Scheme(name, base.body, embedding or base.embedding, head or base.head, kv or base.kv)


@dataclass(frozen=True)
class Architecture:
    """One entry of the table.

    build   (config.json, kv dtype) -> Network
    """

    build: Callable[[Mapping[str, Any], str], Network]


@dataclass(frozen=True)
class Network:
    """A network ready to be traced for any number of rows.

    body          forward(tokens, positions, slots, block_table, *states) -> (hidden, *states), an nn.Module
    head          forward(hidden, rows) -> logits, an nn.Module
    norm          forward(hidden, rows) -> the rows behind the final norm, an nn.Module; None: no embeddings
    sources       bundle parameter -> what of the checkpoint is stacked along rows, where that is not its namesake
    heads         of every layer with a KV cache, in order
    shares        parameter -> how much of it one token reads, where that is not all
    """

    body: nn.Module
    head: nn.Module
    sources: Mapping[str, tuple[Source, ...]]
    heads: tuple[Heads, ...]
    vocab_size: int
    hidden_size: int
    context_length: int
    tied: bool
    shares: Mapping[str, float] = field(default_factory=dict)
    norm: nn.Module | None = None


def constant(value: np.ndarray) -> Any:
    """A value fixed at compile time, stored with the weights."""
    from tvm import relax

    return nn.Tensor(_expr=relax.const(value))
