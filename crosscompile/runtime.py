"""The runtime program for a target: runtime_c cross-compiled with zig's clang or Android's NDK, cached by content."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Literal

from crosscompile import bionic
from crosscompile.data import data_path
from crosscompile.errors import CodegenError
from crosscompile.ndk import find_ndk
from crosscompile.target import Target

Libc = Literal["gnu", "musl"]

_TRIPLES: dict[tuple[str, str], tuple[str, ...]] = {
    # glibc 2.28 (2018) is the oldest that supported distributions for these boards still carry.
    ("aarch64", "gnu"): ("-target", "aarch64-linux-gnu.2.28"),
    ("armv7", "gnu"): ("-target", "arm-linux-gnueabihf.2.28", "-mcpu=cortex_a7"),
    ("x86_64", "gnu"): ("-target", "x86_64-linux-gnu.2.28", "-mcpu=x86_64"),
    ("aarch64", "musl"): ("-target", "aarch64-linux-musl", "-static"),
    ("armv7", "musl"): ("-target", "arm-linux-musleabihf", "-mcpu=cortex_a7", "-static"),
    ("x86_64", "musl"): ("-target", "x86_64-linux-musl", "-mcpu=x86_64", "-static"),
}
COMPILE_FLAGS = (
    "-std=c11",
    "-Os",
    "-DNDEBUG",
    "-ffp-contract=off",
    "-fno-sanitize=undefined",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-ffunction-sections",
    "-fdata-sections",
    "-fPIE",
    "-fvisibility=hidden",
)
LINK_FLAGS = (
    "-pie",
    "-s",
    "-Wl,--gc-sections",
    "-Wl,--hash-style=gnu",
    "-Wl,-z,max-page-size=65536",  # Pi 5 kernels have 16 KB pages, some distributions 64 KB
    "-Wl,-z,noexecstack",
    "-Wl,-z,relro",
    "-Wl,-z,now",
)
SMALL_FLAGS = ("-Xclang", "-Oz", "-mllvm", "-machine-outliner-reruns=3")
"""Of code that runs a few times per request: see is_small. By way of -Xclang, for zig cc takes -Oz for -Os. What was
taken out of functions because it repeats is looked through for repetitions again."""
_SMALL = (
    *("bundle", "file", "grammar", "manifest", "object", "pattern", "plan", "region", "safetensors", "schema"),
    *("session", "signature", "state", "status", "template", "ways"),
)
"""What the names of such files in src begin with."""
AGENT_FLAGS = ("-DELLM_RPC",)
SERVER_FLAGS = ("-DELLM_SERVE",)
VULKAN_FLAGS = ("-DELLM_VULKAN",)
VULKAN_LINK_FLAGS = ("-ldl",)
AGENT_LINK_FLAGS = ("-rdynamic", "-ldl")
"""The RPC agent loads code that is linked against a few functions of the program: the visible ones are exported."""
_TIMEOUT_S = 900  # the first musl build compiles musl


def has_agent(target: Target, libc: Libc = "gnu") -> bool:
    """Whether the program gets the RPC agent. A static one cannot load what a host uploads."""
    return libc == "gnu" and target.os != "android"


def has_vulkan(target: Target, libc: Libc = "gnu") -> bool:
    """Whether the program can compute on a GPU: where a bundle does, and a driver can be loaded."""
    return target.gpu is not None and (target.os == "android" or libc == "gnu")


def sources(agent: bool = True, server: bool = True, vulkan: bool = False) -> list[Path]:
    """runtime_c's files that make the program: C sources and headers, in a fixed order."""
    root = data_path("runtime_c")
    optional = (*(("rpc",) if agent else ()), *(("serve",) if server else ()))
    gpu = ("vulkan", "third_party/vulkan/vulkan", "third_party/vulkan/vk_video") if vulkan else ()
    parts = ("include", "src", *optional, "cli", "third_party/monocypher", *gpu)
    return [path for part in parts for path in sorted((root / part).glob("*.[ch]"))]


def is_static(target: Target, libc: Libc = "gnu") -> bool:
    """Whether the program is linked with musl, which Zig compiles with the program's flags."""
    android = target.os == "android"
    return (libc == "musl" or android) and not bionic.is_used(target) and find_ndk(target) is None


def static_sources() -> list[Path]:
    """What such a program has instead of what Zig would link."""
    return sorted((data_path("runtime_c") / "static").glob("*.c"))


def compile_flags(target: Target) -> list[str]:
    """COMPILE_FLAGS, a guarded stack, and what makes programs of less than a megabyte smaller: on AArch64 every address
    is one `adr`."""
    guard = bionic.STACK_PROTECTOR if bionic.is_used(target) else ("-fstack-protector-strong",)
    return [*COMPILE_FLAGS, *guard, *(("-mcmodel=tiny",) if target.arch == "aarch64" else ())]


def is_small(path: Path) -> bool:
    """Whether a source is compiled for the least size: what stands around the library, and what reads texts once."""
    if path.parent.name in ("cli", "serve", "rpc", "vulkan"):
        return path.name != "bandwidth.c"  # measures
    return path.parent.name == "src" and path.stem.startswith(_SMALL)


def page_sources() -> tuple[Path, Path]:
    """The server's chat page, and the script that makes a C header of it."""
    folder = data_path("runtime_c") / "serve" / "page"
    return folder / "chat.html", folder / "embed.py"


def embed_page(directory: Path) -> None:
    """Writes the header with the chat page to `directory`, which must be among the compiler's include paths."""
    page, script = page_sources()
    command = [sys.executable, str(script), str(page)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise CodegenError(f"{script}: the chat page cannot be embedded: {error}; see what it prints") from error
    (directory / "page_data.h").write_text(done.stdout)


def compiler(target: Target, libc: Libc = "gnu") -> list[str]:
    """The command that compiles C for `target`, without files: zig cc, triple and include paths.

    Android gets static musl whatever `libc` says, or the phone's own libc: with the NDK's clang where ANDROID_NDK_HOME
    is set, else where a driver has to be loaded (crosscompile.bionic).
    """
    root = data_path("runtime_c")
    parts = ("include", "src", "rpc", "serve", "cli", "vulkan", "third_party/monocypher", "third_party/vulkan")
    includes = [f"-I{root / part}" for part in parts]
    ndk = find_ndk(target)
    if ndk is not None:
        return [*ndk.command, *includes]
    if bionic.is_used(target):
        return [*bionic.compiler(target), *includes]
    triple = _TRIPLES[target.arch, "musl" if target.os == "android" else libc]
    return [sys.executable, "-m", "ziglang", "cc", *triple, *includes]


def identity(target: Target) -> str | None:
    """What decides how the program is linked for Android; None where that is the target alone. No path of a machine."""
    ndk = find_ndk(target)
    return ndk.identity if ndk else "bionic" if bionic.is_used(target) else None


def run_compiler(command: list[str], directory: Path) -> None:
    """Runs a compiler in `directory`, where its own cache goes too. CodegenError with its first error line."""
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(directory / "zig-cache")}
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodegenError(f"the C compiler did not run: {error}; `{' '.join(command[:7])} …`") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        first = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit {done.returncode}")
        remedy = "; install ziglang" if "No module named" in first else ""
        raise CodegenError(f"the C compiler failed: {first.strip()}{remedy}; `{' '.join(command[:7])} …`")


def build_runtime(
    target: Target, libc: Libc = "gnu", cache: Path | None = None, agent: bool = True, server: bool = True
) -> Path:
    """Builds edgellm-rt for `target`, stripped, and returns its path inside the cache.

    libc: "gnu" links dynamically against glibc ≥ 2.28; "musl" links everything statically. agent: with `rpc`, where
    that is possible (has_agent). server: with `serve`.
    cache: defaults to ~/.cache/edgellm/runtime (EDGELLM_CACHE overrides ~/.cache/edgellm). Entries are keyed by the
    sources, the flags and the compiler's version, and appear whole or not at all. Raises CodegenError if the compiler
    fails, or ANDROID_NDK_HOME names no NDK that can build for `target`.
    """
    if cache is None:
        root = os.environ.get("EDGELLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "edgellm"
        cache = Path(root).expanduser() / "runtime"
    agent = agent and has_agent(target, libc)
    vulkan = has_vulkan(target, libc)
    files = [*sources(agent, server, vulkan), *(static_sources() if is_static(target, libc) else ())]
    content = [*files, *(page_sources() if server else ())]
    defines = [
        *(AGENT_FLAGS if agent else ()),
        *(SERVER_FLAGS if server else ()),
        *(VULKAN_FLAGS if vulkan else ()),
    ]
    command = [*compiler(target, libc), *compile_flags(target), *defines]
    link_flags = [*LINK_FLAGS, *(AGENT_LINK_FLAGS if agent else ()), *(VULKAN_LINK_FLAGS if vulkan else ())]
    ndk = find_ndk(target)
    stubs = bionic.stubs() if bionic.is_used(target) else {}
    if stubs:
        files, content = [*files, *bionic.sources()], [*content, *bionic.sources()]
        link_flags = [*LINK_FLAGS, *bionic.link_flags()]
    builder = [
        *([ndk.identity, *command[1:]] if ndk else [importlib.metadata.version("ziglang"), *command[4:]]),
        *link_flags,
        *SMALL_FLAGS,
        *stubs.values(),
    ]  # without the compiler's path
    if server:
        builder.append(f"zlib {zlib.ZLIB_RUNTIME_VERSION}")  # what it makes of the page, another one may not
    program = cache / _key(content, builder) / "edgellm-rt"
    if program.is_file():
        return program
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as name:
        work = Path(name)
        c_files = [path for path in files if path.suffix == ".c"]
        if server:
            embed_page(work)
            command.append("-I.")
        for library, assembly in stubs.items():
            (work / f"{library}.s").write_text(assembly)
            run_compiler(
                [*bionic.compiler(target), "-shared", f"-Wl,-soname,{library}", f"{library}.s", "-o", library], work
            )
        small = _compile_small(command, c_files, work)
        rest = [str(path) for path in c_files if not is_small(path)]
        threads = [] if ndk or stubs else ["-lpthread"]  # part of Android's libc
        run_compiler([*command, *link_flags, *rest, *small, *threads, "-o", "edgellm-rt"], work)
        entry = work / "entry"
        entry.mkdir()
        shutil.move(work / "edgellm-rt", entry / "edgellm-rt")
        (entry / "edgellm-rt").chmod(0o755)
        try:
            entry.rename(program.parent)
        except OSError:
            if not program.is_file():  # otherwise another process was faster, with the same content
                raise
    return program


def _compile_small(command: list[str], c_files: list[Path], work: Path) -> list[str]:
    """Compiles those of the files that are to be small; objects, in `work`. (With -c, zig cc keeps one of many.)"""
    names = [str(path) for path in c_files if is_small(path)]
    if not names:
        return []
    run_compiler([*command, *SMALL_FLAGS, "-r", *names, "-o", "small.o"], work)
    return ["small.o"]


def _key(files: list[Path], builder: list[str]) -> str:
    """Content hash of everything that decides what is built; paths of the machine stay out of it.

    builder: the compiler's version and its arguments.
    """
    digest = hashlib.sha256()
    digest.update("\0".join(part for part in builder if not part.startswith("-I")).encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"\0{path.parent.name}/{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]
