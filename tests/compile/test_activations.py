"""Activations as kernels against float64: tanh, both GELUs, and the tail where erf runs out of digits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crosscompile.codegen import compile_kernels
from crosscompile.kernels.rows import activated, flatten
from crosscompile.target import target_of_tier
from tests.compile.plan_runner import aligned
from tests.compile.test_model import host_tiers

ROWS, COLUMNS = 64, 512
KERNELS = {name: activated(ROWS, COLUMNS, name, None) for name in ("gelu", "gelu_tanh")} | {
    "flatten": flatten(ROWS, COLUMNS, 1.0)
}
EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "flatten": np.tanh,
}


def test_activations_are_accurate(tmp_path: Path) -> None:
    tiers = host_tiers()
    if not tiers:
        pytest.skip("this machine's CPU has none of the tiers")
    code, signatures = compile_kernels(KERNELS, target_of_tier(tiers[-1]))
    (tmp_path / "kernels.so").write_bytes(code)
    library = ctypes.CDLL(str(tmp_path / "kernels.so"))
    values = np.linspace(-100, 100, ROWS * COLUMNS, dtype=np.float32)
    values[: values.size // 2] = np.linspace(-6, 6, values.size // 2, dtype=np.float32)
    x, y = aligned(values.nbytes), aligned(values.nbytes)
    x[:] = values.view(np.uint8)
    for name, exact in EXACT.items():
        signature = signatures[name]
        pointers = (ctypes.c_void_p(buffer.ctypes.data) for buffer in (x, y))
        range_ = (ctypes.c_int64(bound) for bound in (0, signature.groups))
        assert getattr(library, signature.name)(*pointers, *range_) == 0
        wanted = exact(values.astype(np.float64))
        error = np.abs(y.view(np.float32) - wanted) / np.maximum(np.abs(wanted), 1)
        assert error.max() < 3e-7, name
