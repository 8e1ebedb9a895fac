"""Rounding a matrix to integers so that what it computes changes least on the activations it was seen to get.

For a layer y = W x with H = Σ x xᵀ, the error of a rounded W' is tr (W - W') H (W - W')ᵀ. Columns are rounded one after
another, and each one's error is spread over those still to come (GPTQ, Frantar et al. 2022); then scales are fitted by
least squares and integers changed one by one while the error falls (QuantEase, Behdin et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosscompile.errors import QuantizeError
from crosscompile.packing import GROUP, RANGES

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: directions that the texts never took stay as they are."""
N_ROUNDS = 3
"""How often scales are fitted and integers changed after the first rounding."""
FACTORS = np.arange(70, 107, 3, dtype=np.float32) / np.float32(100)
"""Of the scale that just reaches a group's extreme value: the ones that are tried, 1 among them."""
SLICE_ELEMENTS = 1 << 22
"""Of a matrix, handled at once: rows do not depend on each other."""


@dataclass(frozen=True)
class Rounded:
    """q (out, in) int8 and scale (out, in / 32) float16.

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
    made: np.ndarray = q * np.repeat(scale.astype(np.float32), GROUP, axis=1)
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


def _candidates(block: np.ndarray, kind: str) -> np.ndarray:
    """Scales to try for each row of a group (out, 32): (candidates, out) float32, rounded to float16."""
    low, high = RANGES[kind]
    least, most = block.min(1), block.max(1)
    if kind == "w8":
        ends = [np.maximum(np.abs(least), np.abs(most)) / np.float32(high)]
    else:  # -8 is only on one side: the scale's sign decides which
        ends = [
            np.maximum(least / np.float32(low), most / np.float32(high)),
            -np.maximum(most / np.float32(-low), -least / np.float32(high)),
        ]
    made = np.concatenate([end[None] * FACTORS[:, None] for end in ends])
    with np.errstate(over="ignore"):
        rounded = made.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise QuantizeError("a value is too large for a float16 scale; use scheme f32 for this model")
    return rounded.astype(np.float32)


def _quotient(values: np.ndarray, scale: np.ndarray, kind: str) -> np.ndarray:
    """values / scale as integers of the kind, float32."""
    low, high = RANGES[kind]
    made: np.ndarray = np.rint(np.divide(values, scale, out=np.zeros_like(values), where=scale != 0))
    return np.clip(made, low, high, out=made)


def best_scales(block: np.ndarray, weights: np.ndarray, kind: str) -> np.ndarray:
    """The scale of each row (out, 32) with the least error, columns weighted by weights (32,): (out,) float32."""
    best = np.full(len(block), np.inf, np.float32)
    chosen = np.zeros(len(block), np.float32)
    for scale in _candidates(block, kind):
        q = _quotient(block, np.broadcast_to(scale[:, None], block.shape), kind)
        error = np.square(block - q * scale[:, None]) @ weights
        better = error < best
        best[better], chosen[better] = error[better], scale[better]
    return chosen


def _spread(weight: np.ndarray, upper: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """GPTQ of some rows: q (out, in) float32 and scale (out, groups) float32."""
    left = weight.copy()
    q, scales = np.zeros_like(left), np.zeros((len(left), left.shape[1] // GROUP), np.float32)
    importance = (1 / np.square(np.diagonal(upper))).astype(np.float32)
    for group, at in enumerate(range(0, left.shape[1], GROUP)):
        columns = slice(at, at + GROUP)
        block, local = left[:, columns].T.copy(), upper[columns, columns]
        scale = best_scales(left[:, columns], importance[columns], kind)
        errors = np.empty_like(block)
        for j in range(GROUP):
            whole = _quotient(block[j], scale, kind)
            q[:, at + j] = whole
            errors[j] = (block[j] - whole * scale) / local[j, j]
            block[j + 1 :] -= local[j, j + 1 :, None] * errors[j]
        scales[:, group] = scale
        left[:, at + GROUP :] -= errors.T @ upper[columns, at + GROUP :]
    return q, scales


def _fit_scales(weight: np.ndarray, q: np.ndarray, scales: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Scales (out, groups) with the least error for given integers: a linear system for each row."""
    out, columns = q.shape
    groups = columns // GROUP
    normal = np.empty((out, groups, groups), np.float32)
    cut = q.reshape(out, groups, GROUP)
    for group in range(groups):
        part = cut[:, group] @ hessian[group * GROUP : (group + 1) * GROUP]  # (out, in)
        normal[:, group] = np.einsum("rgc,rgc->rg", part.reshape(out, groups, GROUP), cut)
    wanted = np.einsum("rgc,rgc->rg", (weight @ hessian).reshape(out, groups, GROUP), cut)
    diagonal = np.einsum("rgg->rg", normal)
    diagonal += np.float32(1e-4) * diagonal.mean(1, keepdims=True) + np.float32(1e-30)
    fitted = np.linalg.solve(normal.astype(np.float64), wanted.astype(np.float64)[..., None])[..., 0]
    sound = np.isfinite(fitted) & (np.abs(fitted) < 6e4)
    made: np.ndarray = np.where(sound, fitted, scales).astype(np.float16).astype(np.float32)
    return made


def _descend(weight: np.ndarray, q: np.ndarray, scales: np.ndarray, hessian: np.ndarray, kind: str) -> None:
    """Changes each integer, column by column, to the one with the least error for all others as they are."""
    difference = weight - q * np.repeat(scales, GROUP, axis=1)
    for group, at in enumerate(range(0, weight.shape[1], GROUP)):
        columns = slice(at, at + GROUP)
        slopes = (difference @ hessian[:, columns]).T.copy()  # (32, out)
        local, scale = hessian[columns, columns], scales[:, group]
        for j in range(GROUP):
            wanted = q[:, at + j] * scale + slopes[j] / local[j, j]
            whole = _quotient(wanted, scale, kind)
            change = (whole - q[:, at + j]) * scale
            if change.any():
                q[:, at + j] = whole
                difference[:, at + j] -= change
                slopes -= local[j][:, None] * change


def error_of(weight: np.ndarray, values: np.ndarray, hessian: np.ndarray) -> float:
    """tr (W - W') H (W - W')ᵀ / tr W H Wᵀ."""
    difference = weight - values
    whole = float(np.sum((weight @ hessian) * weight, dtype=np.float64))
    return float(np.sum((difference @ hessian) * difference, dtype=np.float64)) / whole if whole > 0 else 0.0


def round_matrix(kind: str, weight: np.ndarray, hessian: np.ndarray, rounds: int = N_ROUNDS) -> Rounded:
    """Rounds a matrix (out, in) float32 to kind "w4" or "w8". hessian: (in, in), H, damped already.

    Raises QuantizeError where columns are no multiple of 32 or a scale does not fit float16.
    """
    out, columns = weight.shape
    if columns % GROUP:
        raise QuantizeError(f"a weight of {columns} columns cannot be cut into groups of {GROUP}")
    upper, narrow = spreading(hessian), hessian.astype(np.float32)
    q = np.empty((out, columns), np.int8)
    scale = np.empty((out, columns // GROUP), np.float16)
    step = max(SLICE_ELEMENTS // columns, 1)
    for at in range(0, out, step):
        rows = np.ascontiguousarray(weight[at : at + step], np.float32)
        whole, scales = _spread(rows, upper, kind)
        for _ in range(rounds):
            scales = _fit_scales(rows, whole, scales, narrow)
            _descend(rows, whole, scales, narrow, kind)
        q[at : at + step], scale[at : at + step] = whole, scales
    return Rounded(q, scale, error_of(weight, _values(q, scale), narrow))
