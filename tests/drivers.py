"""Mesa's drivers for boards' and phones' GPUs, of Debian 13 or sid, on stand-ins for the GPUs; and lavapipe.

Debian's package mesa-drm-shim has, for each kind of GPU, a library that plays the kernel's side and runs nothing
("noop"); for Intel's it has none, and runtime_c/probe/i915.c is ours. On it the driver that a board has compiles
kernels with the compiler that a board has, and says what came of it: whether it takes them, registers, what it
spilled. What kernels would compute, or how fast, it does not say.

Drivers for Mali and V3D are built for AArch64 alone, so they run under QEMU. Nothing is installed: packages are fetched
by this machine's apt, authenticated, and unpacked beside the other caches.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import cache as once
from pathlib import Path
from typing import Any

from edgellm import cache, virtual_parts

PACKAGES = ("mesa-vulkan-drivers", "mesa-drm-shim", "libvulkan1", "libstdc++6", "libgcc-s1")
_TRIPLETS = {"aarch64": "aarch64-linux-gnu", "x86_64": "x86_64-linux-gnu"}
_LOADERS = {"aarch64": "ld-linux-aarch64.so.1", "x86_64": "ld-linux-x86-64.so.2"}
_ROOT = Path(__file__).resolve().parents[1]

OURS = "i915"
"""The stand-in that is not mesa-drm-shim's."""


@dataclass(frozen=True)
class Chip:
    """A GPU. arch: of the programs that see it.

    driver: of Mesa's; shim: of mesa-drm-shim's or OURS, and variables: which of its GPUs; "": there is no need for one.
    """

    name: str
    arch: str
    driver: str
    shim: str = ""
    variables: dict[str, str] = field(default_factory=dict)


def _adreno(name: str) -> Chip:
    return Chip(f"adreno-{name}", "x86_64", "freedreno", "freedreno", {"FD_GPU_ID": name})


def _radeon(name: str) -> Chip:
    return Chip(f"radeon-{name}", "x86_64", "radeon", "amdgpu", {"AMDGPU_GPU_ID": name})


def _intel(name: str, id_: str) -> Chip:
    return Chip(f"intel-{name}", "x86_64", "intel", OURS, {"I915_GPU_ID": id_})


def _nvidia(name: str, chipset: str) -> Chip:
    return Chip(f"nvidia-{name}", "x86_64", "nouveau", "nouveau", {"NOUVEAU_CHIPSET": chipset})


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v3d-4.2", "aarch64", "broadcom", "v3d", {"V3D_GPU_ID": "42"}),  # Raspberry Pi 4
        Chip("v3d-7.1", "aarch64", "broadcom", "v3d", {"V3D_GPU_ID": "71"}),  # Raspberry Pi 5
        Chip("mali-g610", "aarch64", "panfrost", "panfrost", {"PAN_GPU_ID": "a867"}),  # Orange Pi 5, ROCK 5B
        Chip("mali-g310", "aarch64", "panfrost", "panfrost", {"PAN_GPU_ID": "ac04"}),
        # Snapdragon 730 and 845, which access nothing below 32 bits; 888, 8 Gen 1 to 3, 8 Elite
        *map(_adreno, ("618", "630", "660", "730", "740", "750", "830")),
        Chip("powervr-bxs", "aarch64", "powervr_mesa", "powervr"),  # as the AM62P and J722S have
        *map(_radeon, ("renoir", "navi21", "navi31", "gfx1201")),  # in Ryzens; RDNA 2; 3 and 4, with matrix units
        *(_nvidia(*each) for each in (("turing", "167"), ("ampere", "172"), ("orin", "17b"), ("ada", "192"))),
        Chip("apple-m1", "x86_64", "asahi", "asahi"),
        *(_intel(*each) for each in (("glk", "3185"), ("n100", "46d1"), ("tgl", "9a49"), ("mtl", "7d55"))),
        _intel("a770", "56a0"),  # of its own memory, with matrix units; before it: Gen9, Gen12 twice, 12.7
    )
}
LAVAPIPE = Chip("lavapipe", "x86_64", "lvp")
"""A processor that plays a GPU, with matrix units, which Debian 12's does not have."""


SUITES = ("sid", "trixie")
"""Mesa 26, and 25.0, which Debian 13 and Raspberry Pi OS of that time have."""


def there(chip: Chip, suite: str) -> Chip:
    """The chip, with programs of the architecture for which a suite has its driver."""
    return replace(chip, arch="aarch64") if suite != SUITES[0] and chip.driver in ("freedreno", "asahi") else chip


def _root(arch: str, suite: str) -> Path:
    """The drivers and what they need; fetched if they are not here. Raises VirtualBoardError."""
    root = cache.root() / f"drivers-{suite}-{arch}"
    if (root / "complete").exists():
        return root
    print(f"fetching drivers of Debian {suite} for {arch} (100 MB)", flush=True)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    with virtual_parts._private_apt(virtual_parts.DEBIAN_ARCHES[arch], [suite], lambda what, fraction: None) as apt:
        apt._apt(["install", "--download-only", "--no-install-recommends", *PACKAGES], "fetching drivers")
        for package in sorted((apt._folder / "cache" / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    (root / "complete").touch()
    return root


def command(chip: Chip, suite: str = SUITES[0]) -> Path:
    """A command that runs a program, which is given with its arguments, where the chip is the only GPU."""
    root = _root(chip.arch, suite)
    libraries = root / "usr" / "lib" / _TRIPLETS[chip.arch]
    icd = root / f"{chip.name}.json"
    driver = {"api_version": "1.1.0", "library_path": str(libraries / f"libvulkan_{chip.driver}.so")}
    icd.write_text(json.dumps({"file_format_version": "1.0.1", "ICD": driver}))
    variables = {
        **chip.variables,
        "VK_DRIVER_FILES": str(icd),
        "VK_ICD_FILENAMES": str(icd),
        "VK_LOADER_LAYERS_DISABLE": "~implicit~",
        "MESA_SHADER_CACHE_DISABLE": "true",
        "PAN_I_WANT_A_BROKEN_VULKAN_DRIVER": "1",
    }
    words = [str(libraries / _LOADERS[chip.arch]), "--library-path", str(libraries)]
    if chip.shim:
        theirs = libraries / f"lib{chip.shim}_noop_drm_shim.so"
        words += ["--preload", str(_built(OURS, chip.arch, suite) if chip.shim == OURS else theirs)]
    if chip.arch != platform.machine():
        folder = cache.root() / "virtual" / "parts"
        words.insert(0, str(virtual_parts.ensure_emulator(f"qemu-{chip.arch}", folder, lambda what, fraction: None)))
    made = root / f"{chip.name}.sh"
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    made.write_text(f'#!/bin/sh\nexec env {exports} {shlex.join(words)} "$@"\n')
    made.chmod(0o755)
    return made


@once
def _built(name: str, arch: str, suite: str) -> Path:
    """runtime_c/probe/NAME.c: "pipelines", a program that has a driver compile kernels, or the library OURS."""
    made = _root(arch, suite) / name
    build(name, arch, made)
    return made


def build(name: str, arch: str, made: Path) -> None:
    """Compiles what _built is asked for, if it is not there, or older than its source."""
    source = _ROOT / "runtime_c" / "probe" / f"{name}.c"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-gnu.2.28", "-O2", "-std=c11"]
        runtime = _ROOT / "runtime_c"
        include = [f"-I{runtime / each}" for each in ("third_party/vulkan", "vulkan", "include", "src")]
        kind = ["-shared", "-fPIC"] if name == OURS else ["-ldl"]
        subprocess.run([*zig, "-D_GNU_SOURCE", *include, str(source), *kind, "-o", str(made)], check=True)


@dataclass(frozen=True)
class Compiled:
    """What a driver made of a kernel. result: Vulkan's, 0 is success, None if it ended the program.

    statistics: numbers by the driver's names for them (VK_KHR_pipeline_executable_properties).
    """

    kernel: str
    result: int | None
    ms: float = 0.0
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def spills(self) -> int:
        """Times that a register is written to memory, or read from there, for want of registers."""
        return int(sum(self.statistics.get(name, 0) for name in _SPILLS))


_SPILLS = ("Spills", "Fills", "TMU Spills", "TMU Fills", "STP Count", "LDP Count", "Spilled SGPRs", "Spilled VGPRs")
"""Mali's and Intel's, V3D's, Adreno's, AMD's."""


def compiled(chip: Chip, modules: Path, suite: str = SUITES[0], timeout: float = 3600) -> list[Compiled]:
    """What the chip's driver makes of each module of a kernels.spv, once for kernels that share one."""
    found: list[Compiled] = []
    skip: list[str] = []
    while True:
        done = subprocess.run(
            [str(command(chip, suite)), str(_built("pipelines", chip.arch, suite)), str(modules), *skip],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            if "result" in line:
                found.append(Compiled(line["kernel"], line["result"], line["ms"], line["statistics"]))
        if done.returncode == 0:
            return found
        if not lines or "compiling" not in lines[-1]:
            raise RuntimeError(f"{chip.name}: {done.stderr.strip()[-500:] or done.returncode}")
        found.append(Compiled(lines[-1]["kernel"], None))
        skip = ["--behind", lines[-1]["kernel"]]
