"""What an architecture's table entry says, and what it may use to build its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.relax.frontend import nn

from crosscompile.kernels.kv_cache import Heads
from crosscompile.kernels.recurrent import Recurrent
from crosscompile.models.schemes import SCHEMES, WEIGHT_KINDS, Scheme, scheme_for
from crosscompile.pieces import Source

__all__ = ["SCHEMES", "WEIGHT_KINDS", "Architecture", "Network", "Scheme", "constant", "scheme_for"]


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
    part          (first, end) -> the network of these layers alone (end None: to the last); its body takes hidden rows
                  (`arriving`) in place of tokens where layers come before it
    sources       bundle parameter -> what of the checkpoint is stacked along rows, where that is not its namesake
    heads         of every layer with a KV cache, in order
    shares        parameter -> how much of it one token reads, where that is not all
    recurrent     states of one size for ever, in the order in which they follow the KV caches
    n_layers      where not every one has a KV cache; 0: as many as heads
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
    recurrent: tuple[Recurrent, ...] = ()
    n_layers: int = 0
    norm: nn.Module | None = None
    part: Callable[[int, int | None], Network] | None = None

    @property
    def depth(self) -> int:
        """Layers."""
        return self.n_layers or len(self.heads)


def constant(value: np.ndarray) -> Any:
    """A value fixed at compile time, stored with the weights."""
    from tvm import relax

    return nn.Tensor(_expr=relax.const(value))
