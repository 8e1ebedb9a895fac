"""Faults in kernels.spv, as a driver that compiles wrongly makes them: one instruction is another, or one constant."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from crosscompile.spirv.container import pack_modules
from edgellm import bundle as bundles
from edgellm.gpu_values import read_modules

OTHERS = {
    128: 130,  # OpIAdd: OpISub
    129: 133,  # OpFAdd: OpFMul
    131: 129,  # OpFSub: OpFAdd
    133: 129,  # OpFMul: OpFAdd
    184: 188,  # OpFOrdLessThan: OpFOrdLessThanEqual would hardly show, so: OpFOrdGreaterThanEqual
    186: 190,  # OpFOrdGreaterThan: OpFOrdGreaterThanEqual likewise
}
OTHERS[184], OTHERS[186] = 190, 188
_CONSTANT, _FLOAT = 43, 22


def places(code: bytes) -> list[tuple[int, str]]:
    """What can be changed in a module: (word, "instruction" or "constant"), whether or not it matters."""
    words = struct.unpack(f"<{len(code) // 4}I", code)
    found, floats, at = [], set(), 5
    while at < len(words):
        n_words, opcode = words[at] >> 16, words[at] & 0xFFFF
        if opcode == _FLOAT and words[at + 2] == 32:
            floats.add(words[at + 1])
        elif opcode == _CONSTANT and words[at + 1] in floats and words[at + 3] not in (0, 0x3F800000):
            found.append((at + 3, "constant"))
        elif opcode in OTHERS:
            found.append((at, "instruction"))
        at += n_words
    return found


def changed(code: bytes, word: int, what: str, factor: float = 2.0) -> bytes:
    """A module with another instruction there, or a constant that is `factor` times what it was."""
    made = bytearray(code)
    value = struct.unpack_from("<I", code, 4 * word)[0]
    if what == "instruction":
        struct.pack_into("<I", made, 4 * word, value & 0xFFFF0000 | OTHERS[value & 0xFFFF])
    else:
        struct.pack_into("<f", made, 4 * word, struct.unpack_from("<f", code, 4 * word)[0] * factor)
    return bytes(made)


def modules_of(bundle: Path) -> dict[str, bytes]:
    found = read_modules((bundle / "kernels.spv").read_bytes(), str(bundle))
    return {name: module.code for name, module in found.items()}


def with_modules(sound: Path, modules: Mapping[str, bytes], to: Path) -> Path:
    """A copy of a bundle with other modules."""
    shutil.copytree(sound, to, copy_function=_link)
    (to / "kernels.spv").unlink()
    (to / "kernels.spv").write_bytes(pack_modules(modules))
    manifest = json.loads((sound / "manifest.json").read_text())
    for name in ("manifest.json", "manifest.sha256"):
        (to / name).unlink()
    bundles.seal(to, {key: value for key, value in manifest.items() if key not in ("format", "files")})
    return to


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def fault(bundle: Path, rng: random.Random) -> tuple[str, bytes, str]:
    """(kernel, its module with one fault, what the fault is)."""
    modules = modules_of(bundle)
    while True:
        name = rng.choice(sorted(modules))
        if found := places(modules[name]):
            word, what = rng.choice(found)
            factor = rng.choice((1.1, 2.0))
            return name, changed(modules[name], word, what, factor), f"{what} {word}"
