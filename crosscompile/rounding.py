"""Rounding a matrix to integers so that what it computes changes least on the activations it was seen to get.

For a layer y = W x with H = Σ x xᵀ, the error of a rounded W' is tr (W - W') H (W - W')ᵀ. Columns are rounded one after
another, and each one's error is spread over those still to come (GPTQ, Frantar et al. 2022); then scales are fitted by
least squares and integers changed one by one while the error falls (QuantEase, Behdin et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from crosscompile.errors import QuantizeError
from crosscompile.kinds import KINDS, Kind
from crosscompile.scales import Grid, best_grid, halved, whole

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: directions that the texts never took stay as they are."""
N_ROUNDS = 3
"""How often scales are fitted and integers changed after the first rounding."""
SLICE_ELEMENTS = 1 << 22
"""Of a matrix, handled at once: rows do not depend on each other."""


@dataclass(frozen=True)
class Rounded:
    """q (out, in) int8 or int16 and scale (out, in / group) float16.

    error    tr (W - W') H (W - W')ᵀ / tr W H Wᵀ: what part of the layer's output is noise now
    """

    q: np.ndarray
    scale: np.ndarray
    error: float

    @property
    def values(self) -> np.ndarray:
        """The weights that it stands for, (out, in) float32."""
        return _values(self.q, self.scale)


def _values(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    made: np.ndarray = q * np.repeat(scale.astype(np.float32), q.shape[1] // scale.shape[1], axis=1)
    return made


def damped(hessian: np.ndarray, part: float = DAMPING) -> np.ndarray:
    """H with part of the mean of its diagonal added to it, float64."""
    made = hessian.astype(np.float64)
    mean = float(np.trace(made)) / len(made)
    made[np.diag_indices_from(made)] += part * mean if mean > 0 else 1.0
    return made


def spreading(hessian: np.ndarray) -> np.ndarray:
    """The upper triangular U with H⁻¹ = Uᵀ U, float32: how the error of a column is spread over those behind it."""
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    made: np.ndarray = np.triu(np.linalg.inv(lower[::-1, ::-1])).astype(np.float32)
    return made


def _spread(weight: np.ndarray, upper: np.ndarray, kind: Kind) -> tuple[np.ndarray, list[Grid]]:
    """GPTQ of some rows: q (out, in) float32, and the grid of every group of columns."""
    left = weight.copy()
    q, grids = np.zeros_like(left), []
    importance = (1 / np.square(np.diagonal(upper))).astype(np.float32)
    for at in range(0, left.shape[1], kind.group):
        columns = slice(at, at + kind.group)
        block, local = left[:, columns].T.copy(), upper[columns, columns]
        grid = best_grid(kind, left[:, columns], importance[columns])
        errors = np.empty_like(block)
        for j in range(kind.group):
            integers = whole(kind, block[j], grid)
            q[:, at + j] = integers
            errors[j] = (block[j] - integers * grid.scale) / local[j, j]
            block[j + 1 :] -= local[j, j + 1 :, None] * errors[j]
        grids.append(grid)
        left[:, at + kind.group :] -= errors.T @ upper[columns, at + kind.group :]
    return q, grids


def _fit_scales(weight: np.ndarray, q: np.ndarray, scales: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Scales (out, groups) with the least error for given integers: a linear system for each row."""
    out, columns = q.shape
    groups = scales.shape[1]
    size = columns // groups
    normal = np.empty((out, groups, groups), np.float32)
    cut = q.reshape(out, groups, size)
    for group in range(groups):
        part = cut[:, group] @ hessian[group * size : (group + 1) * size]  # (out, in)
        normal[:, group] = np.einsum("rgc,rgc->rg", part.reshape(out, groups, size), cut)
    wanted = np.einsum("rgc,rgc->rg", (weight @ hessian).reshape(out, groups, size), cut)
    diagonal = np.einsum("rgg->rg", normal)
    diagonal += np.float32(1e-4) * diagonal.mean(1, keepdims=True) + np.float32(1e-30)
    fitted = np.linalg.solve(normal.astype(np.float64), wanted.astype(np.float64)[..., None])[..., 0]
    sound = np.isfinite(fitted) & (np.abs(fitted) < 6e4)
    return halved(np.where(sound, fitted, scales))


def _descend(weight: np.ndarray, q: np.ndarray, grids: list[Grid], hessian: np.ndarray, kind: Kind) -> None:
    """Changes each integer, column by column, to the one with the least error for all others as they are."""
    difference = weight - q * np.repeat(np.stack([grid.scale for grid in grids], 1), kind.group, axis=1)
    for grid, at in zip(grids, range(0, weight.shape[1], kind.group), strict=True):
        columns = slice(at, at + kind.group)
        slopes = (difference @ hessian[:, columns]).T.copy()  # (group, out)
        local, scale = hessian[columns, columns], grid.scale
        for j in range(kind.group):
            wanted = q[:, at + j] * scale + slopes[j] / local[j, j]
            integers = whole(kind, wanted, grid)
            change = (integers - q[:, at + j]) * scale
            if change.any():
                q[:, at + j] = integers
                difference[:, at + j] -= change
                slopes -= local[j][:, None] * change


def error_of(weight: np.ndarray, values: np.ndarray, hessian: np.ndarray) -> float:
    """tr (W - W') H (W - W')ᵀ / tr W H Wᵀ."""
    difference = weight - values
    whole = float(np.sum((weight @ hessian) * weight, dtype=np.float64))
    return float(np.sum((difference @ hessian) * difference, dtype=np.float64)) / whole if whole > 0 else 0.0


def round_matrix(kind: str, weight: np.ndarray, hessian: np.ndarray, rounds: int = N_ROUNDS) -> Rounded:
    """Rounds a matrix (out, in) float32 to one of KINDS. hessian: (in, in), H, damped already.

    Raises QuantizeError where columns are no multiple of the kind's group or a scale does not fit float16.
    """
    out, columns = weight.shape
    how = KINDS[kind]
    if columns % how.group:
        raise QuantizeError(f"a weight of {columns} columns cannot be cut into groups of {how.group}")
    upper, narrow = spreading(hessian), hessian.astype(np.float32)
    q = np.empty((out, columns), how.dtype)
    scale = np.empty((out, columns // how.group), np.float16)
    step = max(SLICE_ELEMENTS // columns, 1)
    for at in range(0, out, step):
        rows = np.ascontiguousarray(weight[at : at + step], np.float32)
        integers, grids = _spread(rows, upper, how)
        for _ in range(rounds):
            fitted = _fit_scales(rows, integers, np.stack([grid.scale for grid in grids], 1), narrow)
            grids = [replace(grid, scale=fitted[:, group]) for group, grid in enumerate(grids)]
            _descend(rows, integers, grids, narrow, how)
        q[at : at + step], scale[at : at + step] = integers, np.stack([grid.scale for grid in grids], 1)
    return Rounded(q, scale, error_of(weight, _values(q, scale), narrow))
