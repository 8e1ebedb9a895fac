"""Coefficients from measured runs: least squares of the relative error, by Levenberg and Marquardt's method.

(D. W. Marquardt, An algorithm for least-squares estimation of nonlinear parameters, 1963.) Coefficients are positive:
their logarithms are what is searched, and an error of 10 % weighs the same for a fast figure as for a slow one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.prediction import Coefficients, Memory, Work

_STEPS = 200
_SOFT = 0.1
_OVERLAPS = (1.2, 2.0, 4.0)
_LIMITS = {"overlap": (1.0, 8.0)}
_START = {
    "instructions_per_s": 5e9,
    "attention_per_s": 5e9,
    "attention_row_per_s": 5e9,
    "imbalance": 0.05,
    "launch_s": 2e-6,
    "handover_s": 2e-6,
}
_PRIOR = 0.01
"""What it costs a coefficient to leave its start by a factor of e: what samples cannot tell stays where it began."""


@dataclass(frozen=True)
class Sample:
    """One measured figure: what it asked for, and how long it took at the bandwidth of that minute."""

    work: Work
    threads: int
    bandwidth_bytes_per_s: float
    seconds: float


def fit_speed(samples: Sequence[Sample], known: dict[str, float] | None = None) -> Coefficients:
    """The Coefficients that explain the samples best. known: those that the samples cannot tell, kept as they are."""
    known = known or {}
    names = [name for name in (*_START, "overlap") if name not in known]
    measured = np.log([sample.seconds for sample in samples])

    usual = np.log([_START.get(name, _OVERLAPS[1]) for name in names])

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        machine = _machine(names, logarithms, known)
        guesses = [s.work.seconds(machine, s.threads, s.bandwidth_bytes_per_s) for s in samples]
        return np.concatenate([softened(np.log(guesses) - measured), _PRIOR * (logarithms - usual)])

    best: tuple[float, np.ndarray] | None = None
    for rate, overlap in itertools.product((1.0, 0.3), _OVERLAPS if "overlap" in names else (1.0,)):
        start = {name: value * rate for name, value in _START.items()} | {"overlap": overlap}
        found = minimize(residuals, np.log([start[name] for name in names]))
        cost = float(np.sum(residuals(found) ** 2))
        if best is None or cost < best[0]:
            best = (cost, found)
    assert best is not None
    return _machine(names, best[1], known)


def softened(errors: np.ndarray) -> np.ndarray:
    """Errors whose squares are pseudo-Huber's loss: beyond a tenth they count by their size, not its square.

    What else a machine does makes some samples slow, and none fast.
    """
    return np.asarray(np.sign(errors) * _SOFT * np.sqrt(2 * (np.sqrt(1 + (errors / _SOFT) ** 2) - 1)))


def _machine(names: Sequence[str], logarithms: np.ndarray, known: dict[str, float]) -> Coefficients:
    values = dict(zip(names, np.exp(np.clip(logarithms, -60, 60)).tolist(), strict=True)) | known
    for name, (low, high) in _LIMITS.items():
        values[name] = min(max(values[name], low), high)
    return Coefficients(**values)


def minimize(residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """Where the sum of squared residuals is least, from `start` on."""
    x, damping = np.array(start, float), 1e-2
    r = residuals(x)
    for _ in range(_STEPS):
        jacobian = np.stack([(residuals(x + step) - r) / 1e-5 for step in 1e-5 * np.eye(len(x))], axis=1)
        normal = jacobian.T @ jacobian
        step = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal) + 1e-9), -jacobian.T @ r, rcond=None)[0]
        step = np.clip(step, -2, 2)
        tried = residuals(x + step)
        if tried @ tried < r @ r:
            done = r @ r - tried @ tried < 1e-10 * (r @ r)
            x, r, damping = x + step, tried, max(damping / 3, 1e-9)
            if done:
                break
        else:
            damping *= 4
            if damping > 1e9:
                break
    return x


@dataclass(frozen=True)
class Peak:
    """A measured peak, and what it is made of but for what is fitted.

    looked_up: random rows that were read of an embedding of lookup_bytes.
    """

    measured_bytes: float
    explained_bytes: float
    entries: int
    lookup_bytes: int
    looked_up: int


_WINDOWS = tuple(4096 << i for i in range(12))


def fit_memory(peaks: Sequence[Peak], bytes_per_entry: float) -> Memory:
    """base_bytes and window_bytes by least squares; bytes_per_entry is known from the bundles' tokenizers.

    Windows are powers of two of pages, so each is tried.
    """
    best: tuple[float, Memory] | None = None
    weight = 1 / np.array([peak.measured_bytes for peak in peaks])
    for window in _WINDOWS:
        touched = np.array([_touched(peak, window) for peak in peaks])
        known = np.array([peak.explained_bytes + bytes_per_entry * peak.entries for peak in peaks]) + touched
        left = np.array([peak.measured_bytes for peak in peaks]) - known
        base = max(float(np.average(left, weights=weight**2)), 0.0)
        cost = float(np.sum(((left - base) * weight) ** 2))
        if best is None or cost < best[0]:
            best = (cost, Memory(base, bytes_per_entry, float(window)))
    assert best is not None
    return best[1]


def _touched(peak: Peak, window: float) -> float:
    """Bytes of the embedding that are mapped after looking up random rows."""
    windows = max(peak.lookup_bytes / window, 1.0)
    return peak.lookup_bytes * (1 - (1 - 1 / windows) ** peak.looked_up)
