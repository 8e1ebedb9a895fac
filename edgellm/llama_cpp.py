"""llama.cpp, to compare with: its source from the Python package's source distribution, built on this machine.

Everything lies in the cache, below `peers`. A build that exists can be used instead: a directory with llama-bench.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from crosscompile.checkpoint import Checkpoint
from crosscompile.data import data_path
from edgellm import cache, gguf_file, gguf_llama
from edgellm.bundle import Bundle
from edgellm.figure import FIGURES, Figure
from edgellm.gguf_file import TYPES
from edgellm.peer import PARTS, Peer, Progress, Run, given, run_tool, stripped_bytes, tool
from edgellm.sample import Sample, run_once
from edgellm.terminal import one_line

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""Of the source distribution; pip refuses any other."""

PACKAGED = {"package": f"{PACKAGE} {VERSION}"}

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


class LlamaCpp(Peer):
    """A build of llama.cpp. directory: where its programs and libraries lie."""

    name = "llama.cpp"
    weights = ("w4a8", "w8a8", "w4a8-head4")
    figures = FIGURES
    kinds = ("decode", "prefill", "first_token")
    emulated = True
    build_programs = ("llama-bench", "llama-completion")

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def find(cls, build: Path | None, progress: Progress) -> LlamaCpp:
        if build is not None:
            return cls(given(build, cls.build_programs))
        return cls(build_peer("native", _NATIVE, (*cls.build_programs, "llama"), progress) / "bin")

    def program(self, name: str) -> str:
        return str(self.directory / name)

    def about(self) -> dict[str, str]:
        sample = run_once([self.program("llama-completion"), "--version"])
        found = re.search(r"version: (.*)", sample.out + sample.err)
        return {**PACKAGED, "commit": one_line(found[1], 80) if found else "of an unknown version"}

    def prepare(self, source: Checkpoint, bundle: Bundle, figures: Sequence[Figure], progress: Progress) -> Path:
        """A GGUF file with the bundle's numbers, whatever the figures."""
        return gguf_of(source, bundle, progress)

    def types(self, scheme: Mapping[str, str]) -> dict[str, str]:
        return {part: TYPES[scheme[part]] for part in PARTS}

    def command(self, run: Run) -> list[str]:
        figure, model, threads = run.figure, str(run.model), str(run.threads)
        if figure.kind == "first_token":
            options = ["-f", str(run.prompt), "-n", "1", "-c", str(run.context), "-no-cnv", "--no-warmup"]
            return [self.program("llama-completion"), "-m", model, "-t", threads, *options, "--temp", "0"]
        what = ["-p", "0", "-n", str(figure.tokens), "-d", str(figure.depth)]
        if figure.kind == "prefill":
            what = ["-p", str(figure.tokens), "-n", "0"]
        return [self.program("llama-bench"), "-m", model, "-t", threads, "-r", "1", "-o", "json", *what]

    def value(self, run: Run, sample: Sample) -> float:
        if run.figure.kind == "first_token":
            return sample.wall_s * 1e3
        return float(json.loads(sample.out)[0]["avg_ts"])

    def program_bytes(self) -> int:
        """Its libraries alone."""
        return stripped_bytes([self.directory / name for name in LIBRARIES if (self.directory / name).is_file()])


def gguf_of(source: Checkpoint, bundle: Bundle, progress: Progress) -> Path:
    """The peer's file with the bundle's numbers, written if the cache does not have it."""
    scheme = {part: bundle.manifest["scheme"][part] for part in PARTS}
    writer = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (gguf_file, gguf_llama)]
    key = cache.key_of({"checkpoint": bundle.manifest["provenance"]["checkpoint"], "scheme": scheme, "writer": writer})
    file = cache.root() / "peers" / "gguf" / f"{bundle.name}-{key[:12]}.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)
    with cache.locked(key):
        if not file.is_file():
            gguf_llama.write_llama(source, bundle.name, scheme, file, progress)
    return file


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
            run_tool([*pip, "--require-hashes", "-r", str(wanted), "-d", name], "check the network and pip's index")
            progress("unpacking", 0, 0)
            archive = next(temporary.glob("*.tar.gz"))
            with tarfile.open(archive) as tar:
                if hasattr(tarfile, "data_filter"):
                    tar.extractall(temporary, filter="data")
                else:  # Python 3.10 before .12; the checksum is pinned
                    tar.extractall(temporary)
            next(temporary.glob("*/vendor/llama.cpp")).rename(folder)
    return folder


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
        build = ["-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        run_tool([cmake, "-S", str(origin), *build, *defined], "see its output")
        run_tool([cmake, "--build", str(folder), f"-j{os.cpu_count()}", "--target", *targets], "see its output")
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
        run_tool([cc, "-O2", *include, "-c", str(steps), "-o", item], "see its output")
        if flags.get("BUILD_SHARED_LIBS") == "OFF":
            parts = [str(path) for part in ("src", "ggml") for path in sorted((folder / part).rglob("*.a"))]
            link = ["-static", "-Wl,--start-group", *parts, "-Wl,--end-group"]
        else:
            link = [f"-L{place}", f"-Wl,-rpath,{place}", "-lllama", "-lggml", "-lggml-base", "-lggml-cpu"]
        run_tool([cxx, item, "-o", str(out), *link, "-lm", "-lpthread"], "see its output")
