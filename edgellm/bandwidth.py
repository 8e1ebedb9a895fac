"""Read bandwidth of this machine's memory, by runtime_c/probe/bandwidth.c: the fastest of several loops."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from crosscompile.data import data_path
from crosscompile.runtime import compiler, run_compiler
from crosscompile.target import Target
from edgellm import cache
from edgellm.sample import run_once


@dataclass(frozen=True)
class Bandwidth:
    """One measurement. gb_s: 10^9 bytes per second of the fastest loop, whose name is `loop`."""

    threads: int
    gb_s: float
    loop: str


@dataclass(frozen=True)
class Probe:
    """The program that measures."""

    program: Path

    def measure(self, threads: int, mib: int = 256) -> Bandwidth:
        """Takes about a second with a buffer of 256 MiB. Raises PeerError."""
        answer = json.loads(run_once([str(self.program), str(threads), str(mib)]).out)
        return Bandwidth(threads, float(answer["gb_s"]), str(answer["fastest"]))


def build_probe(target: Target) -> Probe:
    """The probe for this machine, built with Zig's compiler if it is not in the cache. Raises CodegenError."""
    file = data_path("runtime_c") / "probe" / "bandwidth.c"
    key = hashlib.sha256(file.read_bytes() + target.arch.encode()).hexdigest()[:12]
    program = cache.root() / "peers" / f"bandwidth-{key}"
    if not program.is_file():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent, prefix=".building-") as name:
            command = [*compiler(target), "-std=c11", "-O3", "-DNDEBUG", "-pthread", str(file), "-o", "bandwidth"]
            run_compiler(command, Path(name))
            shutil.move(Path(name) / "bandwidth", program)
    return Probe(program)
