"""What kernels of a GPU write: the types of their buffers, out of their SPIR-V, and how far two devices may differ.

Both compute the same kernel from the same numbers, so they differ only by how a driver rounds: whether it contracts a
product and a sum, and what its exp, division and square root are worth. Tolerances are stated in docs/vulkan.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crosscompile.spirv.container import MAGIC
from edgellm.errors import BundleError
from edgellm.stepwise import Difference

TOLERANCE, ATTENTION, MATRICES = 1e-4, 1e-3, 2e-3
"""Of float32, relative to the largest of the NEIGHBOURS around, or a sixteenth of their row's largest if that is more.
Attention raises e to sums, so that what is 10⁻⁶ of a large score is more of a weight; matrix units add in ways of their
own."""
HALVES = 2e-3
"""Of float16, at least: its last place is 10⁻³."""
NEIGHBOURS = 32
ROUNDED_SHARE = 0.05
"""Of int8, which may be off by one."""
TIED_SHARE = 0.02
"""Of the experts' ids that a router writes beside their weights; it may choose either of two that are tied."""
HUGE = 1e30
"""From here on it is the mark of an attention that saw nothing, or an infinity: no number to be relative to."""
_TINY = 1e-33

_CAPABILITY, _MATRICES = 17, 6022
_BITS, _FLOAT, _VECTOR, _ARRAYS, _STRUCT, _POINTER = 21, 22, 23, (28, 29), 30, 32
_FUNCTION, _VARIABLE, _DECORATE, _BINDING = 54, 59, 71, 33
_STORED = {"u32": "<u4", "i32": "<i4", "u16": "<u2", "i16": "<i2", "u8": "u1", "i8": "i1", "f32": "<f4", "f16": "<f2"}
_WRITTEN = {**_STORED, "u32": "i1", "u8": "i1"}
"""Words that a kernel writes hold four int8."""


@dataclass(frozen=True)
class Module:
    """A kernel. elements: of its buffers, by binding: "f32", "u16"; on_matrices: it multiplies on matrix units."""

    code: bytes
    elements: Mapping[int, str]
    on_matrices: bool = False

    def tolerance(self, kernel: str) -> float:
        """Of the float32 that the kernel of this name writes."""
        if self.on_matrices:
            return MATRICES
        return ATTENTION if "attention" in kernel else TOLERANCE

    def kind(self, argument: int, n_bytes: int, written: bool) -> str:
        """NumPy's type of what lies in a buffer, which may be a part of it; bytes where that is not plain."""
        kind = (_WRITTEN if written else _STORED).get(self.elements.get(argument, ""), "u1")
        return kind if n_bytes % np.dtype(kind).itemsize == 0 else "u1"


def read_modules(data: bytes, where: str) -> dict[str, Module]:
    """The modules of kernels.spv, by name (runtime_c/FORMAT.md). Raises BundleError."""
    try:
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError
        count = struct.unpack_from("<I", data, len(MAGIC))[0]
        if count > len(data) // 16:
            raise ValueError
        found = {}
        for entry in range(count):
            name, n_name, start, size = struct.unpack_from("<4I", data, len(MAGIC) + 8 + 16 * entry)
            code = data[start : start + size]
            found[data[name : name + n_name].decode()] = Module(code, *_look(code))
        return found
    except (ValueError, struct.error, LookupError) as error:
        raise BundleError(f"{where}: kernels.spv is damaged; compile the model again") from error


def _look(code: bytes) -> tuple[dict[int, str], bool]:
    """Types by binding, and whether there are matrices.

    ValueError, struct.error or LookupError for what is no module.
    """
    words = struct.unpack(f"<{len(code) // 4}I", code)
    types: dict[int, str] = {}
    bindings: dict[int, int] = {}
    made, on_matrices = {}, False
    at = 5
    while at < len(words):
        n_words, opcode = words[at] >> 16, words[at] & 0xFFFF
        if n_words == 0:
            raise ValueError
        operands = words[at + 1 : at + n_words]
        at += n_words
        if opcode == _FUNCTION:
            break  # everything is declared before
        if opcode == _CAPABILITY:
            on_matrices = on_matrices or operands[0] == _MATRICES
        elif opcode == _BITS:
            types[operands[0]] = f"{'i' if operands[2] else 'u'}{operands[1]}"
        elif opcode == _FLOAT:
            types[operands[0]] = f"f{operands[1]}"
        elif opcode in (_VECTOR, *_ARRAYS, _STRUCT) and len(operands) > 1:
            types[operands[0]] = types.get(operands[1], "")
        elif opcode == _POINTER:
            types[operands[0]] = types.get(operands[2], "")
        elif opcode == _DECORATE and operands[1] == _BINDING:
            bindings[operands[0]] = operands[2]
        elif opcode == _VARIABLE and operands[1] in bindings:
            made[bindings[operands[1]]] = types[operands[0]]
    return made, on_matrices


def deviation(
    kind: str,
    n_rows: int,
    found: bytes,
    expected: bytes,
    argument: int = 0,
    *,
    tolerance: float = TOLERANCE,
    ties: bool = False,
    scaled: bool = False,
) -> Difference | None:
    """Where a kernel wrote something else than it should, beyond the tolerance; None if nowhere.

    n_rows: of its function; a buffer that has as many equal parts is taken to be rows. tolerance: of float32. ties:
    they are ids of experts. scaled: among int8 lie their scales, float32, as in a KV cache; words that are close as
    such are right.
    """
    a, b = (np.frombuffer(data, kind) for data in (found, expected))
    with np.errstate(invalid="ignore"):
        wide, wanted = a.astype(np.float64), b.astype(np.float64)
        distance = np.abs(wide - wanted)
    if kind in ("<f4", "<f2"):
        allowed = tolerance if kind == "<f4" else max(tolerance, HALVES)
        wrong = ~(distance <= allowed * _scale(wanted, n_rows))
        wrong &= ~((np.isnan(wide) & np.isnan(wanted)) | (wide == wanted))
    else:
        wrong = distance > 0
        if kind == "i1" and scaled:
            wrong &= ~_same_scales(found, expected)
        if kind == "i1" and distance[wrong].max(initial=0) <= 1:
            wrong &= not _few(wrong, ROUNDED_SHARE)
        elif ties:
            wrong &= not _few(wrong, TIED_SHARE)
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    finite = distance[wrong & np.isfinite(distance)]
    largest = float(finite.max()) if finite.size else float("nan")
    numbers = (float(wide[first]), float(wanted[first]))
    return Difference(argument, int(np.count_nonzero(wrong)), wrong.size, first, *numbers, largest)


def _same_scales(found: bytes, expected: bytes) -> np.ndarray:
    """(bytes,) whether the word around a byte is, as float32, within the tolerance."""
    with np.errstate(invalid="ignore"):
        a, b = (np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(np.float64) for data in (found, expected))
        same = np.abs(a - b) <= TOLERANCE * np.abs(b)
    return np.pad(same.repeat(4), (0, len(found) % 4))


def _few(wrong: np.ndarray, share: float) -> bool:
    return int(np.count_nonzero(wrong)) <= max(1, int(share * wrong.size))


def _scale(wanted: np.ndarray, n_rows: int) -> np.ndarray:
    """(elements,) what the tolerance of each is relative to. wanted: (elements,) float64."""
    sizes = np.abs(wanted)
    sizes = np.where(sizes < HUGE, sizes, 0.0)  # NaN is not less, either
    rows = sizes.reshape(n_rows if n_rows and wanted.size % n_rows == 0 else 1, -1)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % NEIGHBOURS)))
    near = padded.reshape(len(rows), -1, NEIGHBOURS).max(axis=2, initial=0.0).repeat(NEIGHBOURS, axis=1)
    scale = np.maximum(near[:, : rows.shape[1]], rows.max(axis=1, keepdims=True, initial=0.0) / 16)
    scale = np.maximum(scale.reshape(-1), _TINY)
    made: np.ndarray = np.where(np.abs(wanted) < HUGE, scale, np.abs(wanted))
    return made
