"""What a model will take on a tier: weights, memory, launches and multiplications (crosscompile.sketching)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Matrix:
    """Weights that a step reads whole, of one kind: how many products a row costs, and bytes with scales."""

    kind: str
    products: int
    bytes: int


@dataclass(frozen=True)
class Sketch:
    """A model on one tier.

    parameters       logical weights of the checkpoint
    weight_bytes     stored, all of them
    lookup_bytes     of these, tables of which a step reads one row a token
    vector_bytes     norms, biases and constants
    body, head       what each step reads whole, and of mixtures of experts what one token reads
    arena_bytes      intermediate values; kv_bytes_per_token: of the cache
    state_bytes      that a session keeps however long it is, read and written by every token
    attention        query heads × head dimension, over all layers: products with a position's key, and with its value
    window           positions that attention sees, 0 for all
    launches         of kernels, by function: "body 1", "body 64", "head 1"
    """

    architecture: str
    parameters: int
    weight_bytes: int
    lookup_bytes: int
    vector_bytes: int
    body: tuple[Matrix, ...]
    head: tuple[Matrix, ...]
    arena_bytes: int
    kv_bytes_per_token: int
    attention: int
    window: int
    launches: dict[str, int]
    context_length: int
    vocab_size: int
    n_layers: int
    state_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Sketch:
        matrices = {role: tuple(Matrix(**entry) for entry in document[role]) for role in ("body", "head")}
        return cls(**{**document, **matrices})
