"""Scales of groups, and zero points, by trying: what reaches the extreme value exactly is seldom what errs least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosscompile.errors import QuantizeError
from crosscompile.kinds import Kind

WIDEST, STEP = 1.06, 0.03
"""Of the scale that just reaches a group's extreme value: the largest part that is tried, and from one to the next."""


def factors(kind: Kind, step: float = STEP) -> np.ndarray:
    """The parts that are tried, float32, ascending; 1 is among them."""
    first = round((1 - kind.narrowest) / step)
    last = round((WIDEST - 1) / step)
    made: np.ndarray = np.round(1 + np.arange(-first, last + 1) * step, 2).astype(np.float32)
    return made


@dataclass(frozen=True)
class Grid:
    """The values that each of n groups can have: scale (n,) float32, and zero (n,) float32 of kinds that have one."""

    scale: np.ndarray
    zero: np.ndarray | None = None

    def rows(self, at: slice) -> Grid:
        return Grid(self.scale[at], None if self.zero is None else self.zero[at])

    def take(self, other: Grid, where: np.ndarray) -> None:
        """Becomes the other one where it says so."""
        self.scale[where] = other.scale[where]
        if self.zero is not None and other.zero is not None:
            self.zero[where] = other.zero[where]


def candidates(kind: Kind, groups: np.ndarray, parts: np.ndarray) -> list[Grid]:
    """Grids to try for each of the groups (n, columns), scales not rounded yet, in the order of `parts`."""
    low, high = np.float32(kind.low), np.float32(kind.high)
    least, most = groups.min(1), groups.max(1)
    if kind.zero:
        return [_with_zero(kind, np.minimum(least, 0) * part, np.maximum(most, 0) * part) for part in parts]
    ends = [np.maximum(least / low, most / high)]
    if -low != high:  # one side reaches further than the other: the scale's sign decides which
        ends.append(-np.maximum(most / -low, -least / high))
    return [Grid(end * part) for end in ends for part in parts]


def _with_zero(kind: Kind, least: np.ndarray, most: np.ndarray) -> Grid:
    scale = (most - least) / np.float32(kind.top)
    zero = np.rint(np.divide(-least, scale, out=np.zeros_like(least), where=scale > 0))
    return Grid(scale, np.clip(zero, 0, kind.top))


def halved(scale: np.ndarray) -> np.ndarray:
    """Scales rounded to float16, as float32; infinite where they are too large."""
    with np.errstate(over="ignore"):
        return scale.astype(np.float16).astype(np.float32)


def whole(kind: Kind, values: np.ndarray, grid: Grid) -> np.ndarray:
    """The integers, float32, nearest to values (n, …) of n groups: nearest to 0 where the scale is 0."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    scale = np.broadcast_to(grid.scale.reshape(shape), values.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # a scale of float16's least: clipped, as what is too large is
        quotient = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
    return kind.whole(quotient, None if grid.zero is None else grid.zero.reshape(shape))


def _total(values: np.ndarray) -> np.ndarray:
    """Sums over a group's columns, always in the same order: a bundle is the same whatever processor makes it."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


def search(kind: Kind, groups: np.ndarray, q: np.ndarray, scale: np.ndarray) -> None:
    """Writes q (n, columns) and scale (n,) float16 with a small square error for groups (n, columns) float32.

    Of each candidate's integers the best scale is known, Σ wq / Σ q², and so is what it leaves, Σ w² − (Σ wq)² / Σ q².
    """
    best = np.full(len(groups), -1, np.float32)
    chosen: Grid | None = None
    with np.errstate(over="ignore", invalid="ignore"):  # found out by whoever calls
        for grid in candidates(kind, groups, factors(kind, 2 * STEP)):
            integers = whole(kind, groups, grid)
            product = _total(groups * integers)
            square = np.maximum(_total(integers * integers), 1)
            gained = product * product / square
            better = gained > best
            best[better] = gained[better]
            grid = Grid(product / square, grid.zero)
            if chosen is None:
                chosen = grid
            chosen.take(grid, better)
        assert chosen is not None
        scale[:] = chosen.scale
        np.copyto(q, whole(kind, groups, Grid(scale.astype(np.float32), chosen.zero)), casting="unsafe")


def best_grid(kind: Kind, block: np.ndarray, weights: np.ndarray) -> Grid:
    """The grid of each row (n, columns) with the least error, columns weighted by weights; its scales fit float16."""
    best = np.full(len(block), np.inf, np.float32)
    chosen: Grid | None = None
    for found in candidates(kind, block, factors(kind)):
        grid = Grid(halved(found.scale), found.zero)
        if not np.isfinite(grid.scale).all():
            raise QuantizeError("a value is too large for a float16 scale; use scheme f32 for this model")
        error = np.square(block - whole(kind, block, grid) * grid.scale[:, None]) @ weights
        if chosen is None:
            chosen = Grid(np.zeros_like(grid.scale), None if grid.zero is None else np.zeros_like(grid.zero))
        better = error < best
        best[better] = error[better]
        chosen.take(grid, better)
    assert chosen is not None
    return chosen
