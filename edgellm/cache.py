"""The compilation cache: finished bundles by what they were made from, compiled kernels by the configuration alone, and
content hashes of checkpoint files.

It lies in ~/.cache/edgellm, or where EDGELLM_CACHE says. Removing it is always safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import crosscompile
from crosscompile.data import data_path
from edgellm.bundle import sha256_of
from edgellm.errors import ModelError

PACKAGES = ("apache-tvm", "apache-tvm-ffi", "ziglang", "numpy", "jinja2")
"""Distributions whose version can change what is compiled."""

PLUGIN_GROUPS = ("edgellm.architectures", "edgellm.operators")
"""Entry points through which other distributions take part in compiling."""


def root() -> Path:
    """The cache directory, created if need be."""
    path = Path(os.environ.get("EDGELLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "edgellm")
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cache {path} cannot be made: {error.strerror}; set EDGELLM_CACHE to a directory") from error
    return path


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def versions() -> dict[str, str]:
    """Version of every distribution that takes part in compiling, plug-ins included."""
    found = {name: _version(name) for name in PACKAGES}
    for group in PLUGIN_GROUPS:
        for entry in importlib.metadata.entry_points(group=group):
            if entry.dist is not None:
                found[entry.dist.name] = entry.dist.version
    return found


def sources_digest() -> str:
    """SHA-256 over the compiler's and the runtime's sources."""
    return _digest(bundle_sources())


def bundle_sources() -> list[tuple[str, Path]]:
    """What a bundle is made by, with names that do not depend on the machine."""
    runtime = data_path("runtime_c")
    files = _compiler_sources()
    for folder in ("src", "include", "rpc", "serve", "cli", "vulkan", "bionic", "static", "third_party"):
        files += [(f"runtime_c/{f.relative_to(runtime)}", f) for f in (runtime / folder).rglob("*") if f.is_file()]
    files += [(f"edgellm/{f.name}", f) for f in Path(__file__).parent.glob("compile*.py")]
    return files


def compiler_digest() -> str:
    """SHA-256 over the compiler's sources alone."""
    return _digest(_compiler_sources())


def _compiler_sources() -> list[tuple[str, Path]]:
    compiler = Path(crosscompile.__file__).parent
    return [(f"crosscompile/{f.relative_to(compiler)}", f) for end in ("py", "c") for f in compiler.rglob(f"*.{end}")]


def _digest(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def content_hashes(files: Iterable[Path], progress: Callable[[int], None] | None = None) -> dict[Path, str]:
    """SHA-256 of each file. A file whose path, inode, size and mtime are remembered is not read again."""
    memory = root() / "hashes.json"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}  # no memory yet, or one that a crash cut short: hash again
    if not isinstance(known, dict):
        known = {}
    hashes: dict[Path, str] = {}
    changed = False
    for file in files:
        status = file.stat()
        place = str(file.resolve())
        identity = [status.st_ino, status.st_size, status.st_mtime_ns]
        entry = known.get(place)
        if not (isinstance(entry, list) and len(entry) == 4 and entry[:3] == identity):
            entry = [*identity, sha256_of(file, progress)]
            known[place], changed = entry, True
        hashes[file] = str(entry[3])
    if changed:
        partial = memory.with_name(f"{memory.name}.{os.getpid()}")
        partial.write_text(json.dumps(known))
        partial.replace(memory)
    return hashes


def key_of(parts: Mapping[str, Any]) -> str:
    """The name of what was made from `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def keep(folder: str, key: str, text: str) -> None:
    """Keeps what was made, for kept(). That there is no room for it, or no right, costs time alone."""
    place = root() / folder
    with contextlib.suppress(OSError):
        place.mkdir(exist_ok=True)
        partial = place / f"{key}.{os.getpid()}"
        try:
            partial.write_bytes(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
            partial.replace(place / key)
        finally:
            partial.unlink(missing_ok=True)


def kept(folder: str, key: str) -> str | None:
    """What keep() was given; None if it never was, or is damaged."""
    try:
        digest, _, text = (root() / folder / key).read_bytes().partition(b"\n")
    except OSError:
        return None
    return text.decode() if hashlib.sha256(text).hexdigest().encode() == digest else None


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Keeps other processes from making the same thing at the same time; they wait and then find it made."""
    folder = root() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / key).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
