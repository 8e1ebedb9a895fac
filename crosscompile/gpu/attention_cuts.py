"""Tiles of attention on matrix units (attention_matrix.py): which fit a GPU and heads, and the memory they take."""

from __future__ import annotations

from dataclasses import dataclass

from crosscompile.kernels.build import divisor
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.spirv.capabilities import Gpu

FEW = 32
"""So many rows, or fewer, are mostly single ones of several sessions, which tiles of threads know how to compute."""
WIDE = 128
"""Dimensions of 16 queries that a subgroup sums up in registers."""
LEADERS = 8
"""Workgroups of a tile: as many sessions are computed side by side."""
LINE = KV_BLOCK + 4
"""Words of a query in shared memory: scores, or weights and factors. Matrices' rows start in different banks."""
KEY_QUADS = KV_BLOCK // 8 + 1
"""From a dimension of keys to the next, in shared memory."""
CUTS = ((4, 1), (2, 2), (2, 1), (1, 2), (1, 1))
"""Subgroups of a tile, down and across: the first that fits counts."""


@dataclass(frozen=True)
class MatrixTile:
    """So many rows, times query heads of a KV head, by down × across subgroups.

    down    subgroups that share the queries; across: those that share the positions, and the dimensions
    """

    rows: int
    heads: int
    down: int
    across: int
    edge: int
    subgroup: int

    @classmethod
    def choose(cls, n: int, heads: Heads, gpu: Gpu) -> MatrixTile | None:
        """None where matrix units do not fit."""
        edge = gpu.matrix
        if (
            heads.dtype != "f16"
            or not gpu.has_matrices
            or heads.dim % max(edge, 16)
            or edge > KV_BLOCK // 2
            or KV_BLOCK % (2 * gpu.subgroup)
        ):
            return None
        for down, across in CUTS:
            share = divisor(heads.query // heads.kv, down * edge)
            tile = cls(min(n, down * edge // share), share, down, across, edge, gpu.subgroup)
            if (
                heads.dim % (across * edge) == 0
                and heads.dim <= across * WIDE
                and edge % across == 0
                and tile.threads <= gpu.invocations
                and tile.shared_bytes(heads) <= gpu.shared_bytes
            ):
                return tile
        return None

    @property
    def slots(self) -> int:
        """Queries that there is room for."""
        return self.down * self.edge

    @property
    def threads(self) -> int:
        return self.down * self.across * self.subgroup

    @property
    def leaders(self) -> int:
        """Workgroups of a tile, each for some of its sessions."""
        return divisor(self.rows, LEADERS)

    def chunk_quads(self, dim: int) -> int:
        """Of keys, or of values, or of two matrices of ones."""
        return max(dim * KEY_QUADS, KV_BLOCK * (dim // 8 + 1))

    def shared_bytes(self, heads: Heads) -> int:
        return 16 * self.chunk_quads(heads.dim) + 4 * self.slots * (LINE + 3)
