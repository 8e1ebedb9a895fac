"""Kernels that only read, for `edgellm-rt bench --bandwidth --device vulkan`: how fast a GPU reads its memory.

They are within the floor of all drivers, and their modules are part of the runtime: `reading_header` is the text of
runtime_c/vulkan/reading_modules.h, which runtime_c/vulkan/reading_modules.py writes.
"""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Iterable

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, gpu_kernel, i32, lane
from crosscompile.spirv.capabilities import Gpu
from crosscompile.spirv.emit import Shader, emit

LOADS = (1, 4)
"""Loads of 16 bytes that a thread of each kernel has under way."""
THREADS = 256
"""Of a workgroup."""

_BYTES, _GROUPS = 128 << 20, 2048  # what extents say; the runtime starts as many workgroups as its buffer wants


def reading_kernel(loads: int) -> tirx.PrimFunc:
    """(data, sums): each thread adds up the words that it reads, modulo 2³², and leaves that in sums[thread].

    A workgroup reads `count` pieces of loads · 256 · 16 bytes. Those of workgroup w are w, w + step, w + 2 · step, …;
    where step is 1, w · count and the next ones.
    """

    def body(k: Builder) -> None:
        data = k.quads("data", _BYTES)
        sums = k.buffer("sums", (_GROUPS * THREADS,), "uint32")
        count, step = tirx.Var("count", "int32"), tirx.Var("step", "int32")
        with k.launch((_GROUPS,), THREADS) as (workgroup, thread):
            total = k.local(1, "uint32")
            k.store(total, tirx.const(0, "uint32"), 0)
            first = k.bind(tirx.Select(tirx.EQ(step, i32(1)), workgroup * count, workgroup))
            with k.loop(0, count) as turn:
                at = k.bind((first + turn * step) * (loads * THREADS) + thread)
                quads = [k.bind(data[at + i * THREADS]) for i in range(loads)]  # all of them are asked for first
                k.store(total, total[0] + _sum(lane(quad, i) for quad in quads for i in range(4)), 0)
            k.store(sums, total[0], workgroup * THREADS + thread)

    return gpu_kernel(f"read_x{loads}", Gpu(), body)


def _sum(values: Iterable[Expr]) -> Expr:
    return functools.reduce(operator.add, values)


def reading_module(loads: int) -> Shader:
    """The kernel's module; it takes count and step."""
    return emit(reading_kernel(loads), ("count", "step"))


def reading_header() -> str:
    """The modules as C, each word in as many bytes as it needs: LEB128, seven bits a byte, the lowest first.

    An instruction's length stands in bits 16 to 19 of its first word, and is put beside the number in bits 0 to 7.
    """
    lines = ["/* The modules of crosscompile/gpu/reading.py, as LEB128; reading_modules.py writes this file. */"]
    lines.append("/* clang-format off */")
    sizes = []
    for loads in LOADS:
        code = reading_module(loads).code
        words = struct.unpack(f"<{len(code) // 4}I", code)
        packed = b"".join(_leb128(_near(word)) for word in words)
        rows = [packed[at : at + 24] for at in range(0, len(packed), 24)]
        lines += [f"static const uint8_t read_x{loads}[] = {{"]
        lines += [f"    {', '.join(map(str, row))}," for row in rows]
        lines += ["};"]
        sizes.append(len(words))
    lines.append(f"enum {{ most_module_words = {max(sizes)} }};")
    return "\n".join(lines) + "\n"


def _near(word: int) -> int:
    """The word with bits 16 to 19 below bits 8 to 15."""
    return word & 0xFFF000FF | (word >> 16 & 0xF) << 8 | (word >> 8 & 0xFF) << 12


def _leb128(word: int) -> bytes:
    made = bytearray()
    while word > 0x7F:
        made.append(0x80 | word & 0x7F)
        word >>= 7
    return bytes([*made, word])
