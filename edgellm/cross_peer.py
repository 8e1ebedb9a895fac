"""The peer for boards' processors: llama.cpp's library and llama_steps as one static program, built with Zig."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgellm import cache
from edgellm.llama_cpp import STEPS, build_peer

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Processor:
    """An emulated processor. tier: ours; emulator and cpu: QEMU's names; triple and mcpu: Zig's."""

    name: str
    tier: str
    emulator: str
    cpu: str
    triple: str
    mcpu: str


PROCESSORS: dict[str, Processor] = {
    processor.name: processor
    for processor in (
        Processor("cortex-a76", "dotprod", "qemu-aarch64", "cortex-a76", "aarch64-linux-musl", "cortex_a76"),
        Processor("cortex-a72", "armv8-neon", "qemu-aarch64", "cortex-a72", "aarch64-linux-musl", "cortex_a72"),
        Processor("cortex-a7", "armv7-neon", "qemu-arm", "cortex-a7", "arm-linux-musleabihf", "cortex_a7"),
        Processor("x86-64-v3", "avx2", "qemu-x86_64", "max", "x86_64-linux-musl", "x86_64_v3"),
    )
}
"""Raspberry Pi 5, Raspberry Pi 4, Raspberry Pi 2, and a PC with AVX2."""

_TOOLS = {"cc": "cc {flags}", "c++": "c++ {flags}", "ar": "ar", "ranlib": "ranlib"}
_FLAGS = "-target {triple} -mcpu={mcpu} -fno-sanitize=undefined"


def steps_program(processor: Processor, progress: Progress) -> Path:
    """llama_steps for a processor, built if need be, which takes minutes. Raises PeerError."""
    tools = _tools(processor)
    system = processor.triple.partition("-")[0]
    flags = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": {"arm": "armv7l"}.get(system, system),
        "CMAKE_C_COMPILER": str(tools / "cc"),
        "CMAKE_CXX_COMPILER": str(tools / "c++"),
        "CMAKE_AR": str(tools / "ar"),
        "CMAKE_RANLIB": str(tools / "ranlib"),
        "BUILD_SHARED_LIBS": "OFF",
        "GGML_NATIVE": "OFF",
        "GGML_OPENMP": "OFF",
    }
    return build_peer(processor.name, flags, ("llama",), progress) / "bin" / STEPS


def _tools(processor: Processor) -> Path:
    """A directory with cc, c++, ar and ranlib: CMake wants programs, not commands with arguments."""
    folder = cache.root() / "peers" / f"tools-{processor.name}"
    folder.mkdir(parents=True, exist_ok=True)
    flags = _FLAGS.format(triple=processor.triple, mcpu=processor.mcpu)
    for name, command in _TOOLS.items():
        text = f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {command.format(flags=flags)} "$@"\n'
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
    return folder
