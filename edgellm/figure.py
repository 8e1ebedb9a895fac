"""What a comparison measures: how fast a prompt is read, how fast tokens are made, how soon the first one is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

BLOCK = 64
"""Positions per block of our KV cache."""


@dataclass(frozen=True)
class Figure:
    """Something that is measured. kind: decode, prefill or first_token; depth: positions in the cache before."""

    kind: str
    tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        if self.kind == "first_token":
            return f"first token of {self.tokens}"
        return f"decode {self.tokens} at {self.depth}" if self.kind == "decode" else f"prefill {self.tokens}"

    @property
    def positions(self) -> int:
        """Places in the KV cache that it takes."""
        return max(self.depth, 1) + self.tokens

    @property
    def unit(self) -> str:
        return "ms" if self.kind == "first_token" else "tok/s"


FIGURES = (
    Figure("decode", 64, 0),
    Figure("decode", 64, 128),
    Figure("decode", 64, 2048),
    Figure("prefill", 128),
    Figure("prefill", 512),
    Figure("first_token", 128),
)


def fit(figures: Sequence[Figure], context: int) -> tuple[Figure, ...]:
    """The figures, none deeper than the model's context allows; what does not fit at all is left out."""
    shallower = [replace(it, depth=min(it.depth, (context - it.tokens) // BLOCK * BLOCK)) for it in figures]
    return tuple(dict.fromkeys(it for it in shallower if it.depth >= 0 and it.tokens < context))
