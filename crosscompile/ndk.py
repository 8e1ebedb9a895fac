"""Android's NDK, where ANDROID_NDK_HOME names one: its clang builds edgellm-rt against the phone's own libc.

Layout as in "Use the NDK with other build systems" (developer.android.com): toolchains/llvm/prebuilt/<host>/ has clang
and a sysroot with one folder of libraries for each API level.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from crosscompile.errors import CodegenError
from crosscompile.target import Target

VARIABLE = "ANDROID_NDK_HOME"
_TRIPLES = {"aarch64": "aarch64-linux-android", "armv7": "armv7a-linux-androideabi", "x86_64": "x86_64-linux-android"}
_LIBRARIES = {"armv7": "arm-linux-androideabi"}
"""Where the sysroot calls an architecture by another name than clang does."""


@dataclass(frozen=True)
class Ndk:
    """An NDK that can build for one target. revision: of its source.properties, "27.2.12479018"."""

    clang: Path
    triple: str
    revision: str

    @property
    def command(self) -> list[str]:
        """The C compiler with its target."""
        return [str(self.clang), "-target", self.triple]

    @property
    def identity(self) -> str:
        """What decides what it builds; no path of this machine."""
        return f"ndk {self.revision} {self.triple}"


def find_ndk(target: Target) -> Ndk | None:
    """The NDK for an Android target; None if ANDROID_NDK_HOME is not set, or the target is no Android.

    Raises CodegenError, with the remedy, if ANDROID_NDK_HOME names something that cannot build for it.
    """
    home = os.environ.get(VARIABLE)
    if target.os != "android" or not home:
        return None
    root = Path(home)

    def broken(reason: str) -> CodegenError:
        return CodegenError(
            f"{VARIABLE} is {home}, but {reason}; point it at an unpacked NDK, or unset it: without one the program is "
            "built, too (docs/android.md)"
        )

    if not root.is_dir():
        raise broken("there is no such folder")
    try:
        properties = (root / "source.properties").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise broken("it has no source.properties, so it is no NDK") from None
    found = re.search(r"^Pkg\.Revision\s*=\s*(\d{1,4}(?:\.\d{1,12}){1,2})", properties, re.MULTILINE)
    if found is None:
        raise broken("its source.properties names no Pkg.Revision")
    toolchain = next(iter(sorted((root / "toolchains/llvm/prebuilt").glob("*/bin/clang"))), None)
    if toolchain is None or not os.access(toolchain, os.X_OK):
        raise broken("it has no program toolchains/llvm/prebuilt/*/bin/clang; it was unpacked in part")
    libraries = toolchain.parents[1] / "sysroot/usr/lib" / _LIBRARIES.get(target.arch, _TRIPLES[target.arch])
    levels = sorted(int(each.name) for each in libraries.glob("*") if each.name.isdigit())
    if target.android_api is None:
        raise CodegenError("the board's manifest has no target.android_api, which a build with the NDK needs")
    if not levels:
        raise broken(f"its sysroot has no libraries for {target.arch}")
    if target.android_api not in levels:
        raise broken(
            f"revision {found[1]} has libraries for API {levels[0]} to {levels[-1]}, and the board asks for "
            f"{target.android_api} (target.android_api of its manifest)"
        )
    return Ndk(toolchain, f"{_TRIPLES[target.arch]}{target.android_api}", found[1])
