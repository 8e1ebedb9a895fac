"""kernels.spv: the modules of all kernels in one file (runtime_c/FORMAT.md)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from crosscompile.spirv.capabilities import Gpu

MAGIC = b"ELLMSPV1"


def pack_modules(modules: Mapping[str, bytes], gpu: Gpu | None = None) -> bytes:
    """The file's bytes. modules: SPIR-V by the kernel's name; equal ones are stored once.

    gpu: for whose subgroups and matrices they were made, if they depend on them.
    """
    head = len(MAGIC) + 8 + 16 * len(modules)
    names, table, code = b"", [], b""
    places: dict[bytes, int] = {}
    names_size = sum(len(name.encode()) for name in modules)
    start = -(-(head + names_size) // 4) * 4
    for name, module in modules.items():
        if module not in places:
            places[module] = start + len(code)
            code += module
        raw = name.encode()
        table.append((head + len(names), len(raw), places[module], len(module)))
        names += raw
    matrices = gpu.subgroup | gpu.matrix << 8 if gpu is not None and gpu.subgroup else 0
    entries = b"".join(struct.pack("<4I", *entry) for entry in table)
    body = MAGIC + struct.pack("<2I", len(modules), matrices) + entries + names
    return body + b"\0" * (start - len(body)) + code
