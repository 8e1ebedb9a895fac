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
_OVERLAPS = (1.2, 2.0, 4.0)
_LIMITS = {"overlap": (1.0, 8.0)}
_START = {"instructions_per_s": 5e9, "attention_per_s": 5e9, "launch_s": 2e-6, "handover_s": 2e-6}


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

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        machine = _machine(names, logarithms, known)
        guesses = [s.work.seconds(machine, s.threads, s.bandwidth_bytes_per_s) for s in samples]
        return np.asarray(np.log(guesses) - measured)

    best: tuple[float, np.ndarray] | None = None
    for rate, overlap in itertools.product((1.0, 0.3), _OVERLAPS if "overlap" in names else (1.0,)):
        start = {name: value * rate for name, value in _START.items()} | {"overlap": overlap}
        found = minimize(residuals, np.log([start[name] for name in names]))
        cost = float(np.sum(residuals(found) ** 2))
        if best is None or cost < best[0]:
            best = (cost, found)
    assert best is not None
    return _machine(names, best[1], known)


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


def fit_memory(samples: Sequence[tuple[float, float, int]]) -> Memory:
    """samples: (measured peak, what weights, arena and cache explain of it, entries of the vocabulary), in bytes.

    Of runs with a single vocabulary, the price of an entry cannot be told and is 0.
    """
    left = np.array([measured - explained for measured, explained, _ in samples], float)
    entries = np.array([n for *_, n in samples], float)
    weight = 1 / np.array([measured for measured, *_ in samples], float)
    if np.ptp(entries) == 0:
        return Memory(float(max(np.average(left, weights=weight**2), 0)), 0.0)
    columns = np.stack([np.ones_like(entries), entries], axis=1) * weight[:, None]
    base, each = np.linalg.lstsq(columns, left * weight, rcond=None)[0]
    return Memory(float(max(base, 0)), float(max(each, 0)))
