"""How far two devices may differ in what a kernel writes, and the types of its buffers."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from crosscompile.spirv.container import pack_modules
from crosscompile.spirv.module import Module
from edgellm.errors import BundleError
from edgellm.gpu_values import deviation, read_modules

RNG = np.random.default_rng(1)
ROWS = RNG.standard_normal((8, 96)).astype("<f4")


def off(kind: str, changed: np.ndarray, right: np.ndarray, **more: bool) -> str:
    found = deviation(kind, 8, changed.tobytes(), right.tobytes(), **more)
    return "" if found is None else str(found)


def test_floats_may_differ_by_a_ten_thousandth_of_their_neighbours() -> None:
    changed = ROWS.copy()
    assert not off("<f4", changed * np.float32(1.00005), ROWS)
    changed[3, 40] += 0.002
    assert off("<f4", changed, ROWS).startswith("1 of 768 elements differ, first element 328: ")


def test_a_large_number_does_not_hide_others() -> None:
    """Attention marks what it has not seen with -3e38, and rows have outliers."""
    rows = ROWS.copy()
    rows[:, 0], rows[2, 95] = -3e38, np.nan
    changed = rows.copy()
    assert not off("<f4", changed, rows)
    changed[5, 50] *= 1.5
    assert "1 of 768" in off("<f4", changed, rows)
    for place, value in (((5, 0), 1.0), ((5, 1), np.nan), ((5, 1), np.inf), ((2, 95), 0.0)):
        changed = rows.copy()
        changed[place] = value
        assert "1 of 768" in off("<f4", changed, rows)


def test_subnormals_may_be_flushed() -> None:
    assert not off("<f4", np.zeros(8, "<f4"), np.full(8, 1e-40, "<f4"))


def test_few_int8_may_be_off_by_one() -> None:
    right = RNG.integers(-127, 127, 640).astype("i1")
    changed = right.copy()
    changed[::50] += 1
    assert not off("i1", changed, right)
    changed[7] += 2
    assert "14 of 640" in off("i1", changed, right)
    assert "640 of 640" in off("i1", right + np.int8(1), right)


def test_scales_among_int8_are_floats() -> None:
    scales = np.abs(ROWS[0])
    near = scales * np.float32(1.00001)
    assert "differ" in off("i1", near, scales)
    assert not off("i1", near, scales, scaled=True)
    assert "differ" in off("i1", scales * np.float32(1.1), scales, scaled=True)


def test_a_router_may_choose_either_of_two_that_are_tied() -> None:
    right = RNG.integers(0, 4, 100).astype("<i4")
    changed = right.copy()
    changed[3] ^= 1
    assert off("<i4", changed, right)
    assert not off("<i4", changed, right, ties=True)
    assert off("<i4", right ^ 1, right, ties=True)


def test_types_come_from_the_modules() -> None:
    module = Module()
    for binding, (dtype, lanes) in enumerate((("float32", 1), ("uint32", 2), ("float16", 1), ("int32", 1))):
        module.storage_buffer(binding, dtype, lanes, written=True, coherent=False)
    code = struct.pack("<5I", 0x07230203, 0x10300, 0, 99, 0)
    code += struct.pack(f"<{len(module.decorations)}I", *module.decorations)
    code += struct.pack(f"<{len(module.declarations)}I", *module.declarations)
    found = read_modules(pack_modules({"kernel": code}), "here")["kernel"]
    assert [found.kind(i, 64, written=True) for i in range(4)] == ["<f4", "i1", "<f2", "<i4"]
    assert found.kind(1, 64, written=False) == "<u4"
    assert found.kind(0, 63, written=True) == "u1"


@pytest.mark.parametrize("data", [b"", b"ELLMSPV1", b"ELLMSPV1" + b"\xff" * 64, pack_modules({"a": b"\0" * 64})])
def test_damaged_modules_are_named(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"here: kernels\.spv is damaged"):
        read_modules(data, "here")
