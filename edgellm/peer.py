"""llama.cpp, to compare with: its source from the Python package's source distribution, built on this machine.

Everything lies in the cache, below `peers`. A build that exists can be used instead: a directory with llama-bench.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosscompile.data import data_path
from edgellm import cache
from edgellm.errors import PeerError
from edgellm.sample import run_once
from edgellm.terminal import one_line

NAMES = ("llama.cpp",)
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""Of the source distribution; pip refuses any other."""

TOOLS = ("llama-bench", "llama-completion")
STEPS = "llama_steps"
"""runtime_c/probe/llama_steps.c: the smallest client of its library."""

LIBRARIES = ("libggml-base.so", "libggml-cpu.so", "libggml.so", "libllama.so")
"""What any program on top of it needs."""

_FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_CCACHE": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_UI": "OFF",
}
_NATIVE = {"GGML_NATIVE": "ON"}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Peer:
    """A build of llama.cpp. directory: where its programs and libraries lie."""

    directory: Path

    def program(self, name: str) -> str:
        return str(self.directory / name)

    def commit(self) -> str:
        """What the build calls itself: version and commit."""
        sample = run_once([self.program("llama-completion"), "--version"])
        found = re.search(r"version: (.*)", sample.out + sample.err)
        return one_line(found[1], 80) if found else "of an unknown version"


def find(build: Path | None, progress: Progress) -> Peer:
    """The peer: in `build` if that is given, else from the cache, else fetched and built. Raises PeerError."""
    if build is not None:
        missing = [tool for tool in TOOLS if not (build / tool).is_file()]
        if missing:
            raise PeerError(f"{build} has no {missing[0]}; name the `bin` directory of a build of llama.cpp")
        return Peer(build.absolute())
    return Peer(build_peer("native", _NATIVE, (*TOOLS, "llama"), progress) / "bin")


def source(progress: Progress) -> Path:
    """The directory of llama.cpp's source, fetched with pip if need be. Raises PeerError."""
    folder = cache.root() / "peers" / f"source-{VERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as name:
            temporary = Path(name)
            progress(f"fetching {PACKAGE}", 0, 0)
            wanted = temporary / "requirements.txt"
            wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
            _run([*pip, "--require-hashes", "-r", str(wanted), "-d", name], "check the network and pip's index")
            progress("unpacking", 0, 0)
            archive = next(temporary.glob("*.tar.gz"))
            with tarfile.open(archive) as tar:
                if hasattr(tarfile, "data_filter"):
                    tar.extractall(temporary, filter="data")
                else:  # Python 3.10 before .12; the checksum is pinned
                    tar.extractall(temporary)
            next(temporary.glob("*/vendor/llama.cpp")).rename(folder)
    return folder


def tool(name: str, package: str | None = None) -> str:
    """A build tool: this Python's own (the extra `bench`), else the system's. Raises PeerError."""
    own = Path(sysconfig.get_path("scripts")) / name
    found = str(own) if own.is_file() else shutil.which(name)
    if not found:
        how = "pip install 'edgellm[bench]'" if package is None else f"install {package}"
        raise PeerError(f"building the peer needs {name}; {how}, or give --peer-build DIR")
    return found


def build_peer(name: str, flags: Mapping[str, str], targets: Sequence[str], progress: Progress) -> Path:
    """The build directory `name`, made if need be, which takes minutes. flags: CMake definitions besides _FLAGS."""
    flags = {**_FLAGS, **flags}
    steps = data_path("runtime_c") / "probe" / "llama_steps.c"
    key = hashlib.sha256(repr((VERSION, sorted(flags.items()), steps.read_text())).encode()).hexdigest()[:12]
    folder = cache.root() / "peers" / f"{name}-{key}"
    done = folder / ".built"
    if done.is_file():
        return folder
    cmake, ninja = tool("cmake"), tool("ninja")
    if "CMAKE_CXX_COMPILER" not in flags:
        tool("c++", "a C++ compiler (on Debian: g++)")
    origin = source(progress)
    progress("building llama.cpp (10 min)", 0, 0)
    defined = [f"-D{key}={value}" for key, value in flags.items()]
    with cache.locked(folder.name):
        _run([cmake, "-S", str(origin), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *defined],
             "see its output")  # fmt: skip
        _run([cmake, "--build", str(folder), f"-j{os.cpu_count()}", "--target", *targets], "see its output")
        _build_steps(origin, folder, steps, flags)
        done.touch()
    return folder


def _build_steps(origin: Path, folder: Path, steps: Path, flags: Mapping[str, str]) -> None:
    """llama_steps, linked with the libraries of the build: shared, or all that it needs within one static program."""
    cc = flags.get("CMAKE_C_COMPILER") or tool("cc", "a C compiler (on Debian: gcc)")
    cxx = flags.get("CMAKE_CXX_COMPILER") or tool("c++", "a C++ compiler (on Debian: g++)")
    include = [f"-I{origin / 'include'}", f"-I{origin / 'ggml' / 'include'}"]
    out, place = folder / "bin" / STEPS, folder / "bin"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        item = f"{name}/steps.o"
        _run([cc, "-O2", *include, "-c", str(steps), "-o", item], "see its output")
        if flags.get("BUILD_SHARED_LIBS") == "OFF":
            parts = [str(path) for part in ("src", "ggml") for path in sorted((folder / part).rglob("*.a"))]
            link = ["-static", "-Wl,--start-group", *parts, "-Wl,--end-group"]
        else:
            link = [f"-L{place}", f"-Wl,-rpath,{place}", "-lllama", "-lggml", "-lggml-base", "-lggml-cpu"]
        _run([cxx, item, "-o", str(out), *link, "-lm", "-lpthread"], "see its output")


def _run(command: Sequence[str], remedy: str) -> None:
    """Runs a tool. PeerError with its first error line."""
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise PeerError(f"{command[0]} cannot be started: {error.strerror}") from error
    if done.returncode:
        lines = (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()] or ["it said nothing"]
        first = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise PeerError(f"`{' '.join(command[:4])} …` failed: {one_line(first)}; {remedy}")


def stripped_bytes(files: Sequence[Path]) -> int:
    """Size of programs and libraries without their symbols."""
    total = 0
    strip = tool("strip", "binutils")
    with tempfile.TemporaryDirectory() as name:
        for file in files:
            _run([strip, "-o", f"{name}/stripped", str(file.resolve())], "is it a program of this machine?")
            total += (Path(name) / "stripped").stat().st_size
    return total
