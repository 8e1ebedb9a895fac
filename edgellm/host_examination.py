"""This machine's tools: what edgellm needs of it, in which version, and what is missing for which purpose."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgellm import cache
from edgellm.adb_client import find_adb
from edgellm.boards import list_boards
from edgellm.errors import EdgeError
from edgellm.findings import ERROR, NOTE, OK, WARNING, Finding
from edgellm.golden import host_target
from edgellm.instances import instances_path, read_instances
from edgellm.measured import load
from edgellm.terminal import one_line, size

PINNED = ("apache-tvm", "apache-tvm-ffi", "ziglang")
_OLDEST_PYTHON = (3, 10)
_TIGHT_CACHE, _FULL_CACHE = 10_000_000_000, 1_000_000_000
_TIMEOUT_S = 120.0
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)$")


def host_findings() -> list[Finding]:
    """Every finding about this machine."""
    return [finding for rule in RULES for finding in rule()]


def run(command: Sequence[str]) -> tuple[bool, str]:
    """(whether it succeeded, its last line): of a program that only says what it is."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, one_line(str(error), 160)
    text = (done.stdout or done.stderr).decode("utf-8", "replace").strip() or done.stderr.decode("utf-8", "replace")
    lines = text.strip().splitlines() or [f"exit code {done.returncode}"]
    return done.returncode == 0, one_line(lines[0] if done.returncode == 0 else lines[-1], 160)


def pins() -> dict[str, str]:
    """Distributions that must have exactly one version, as edgellm's own metadata say."""
    try:
        wanted = importlib.metadata.requires("edgellm") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = {match[1]: match[2] for text in wanted if (match := _PIN.match(text))}
    return {name: found[name] for name in PINNED if name in found}


def _python() -> list[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _OLDEST_PYTHON:
        return [Finding("Python", ERROR, text, "install Python 3.10 or newer")]
    if platform.system() != "Linux":
        return [Finding("Python", WARNING, text, "edgellm is made for Linux hosts: use one, or a container")]
    return [Finding("Python", OK, text)]


def _packages() -> list[Finding]:
    found = []
    for name, wanted in pins().items():
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, ERROR, "is not installed", f"pip install {name}=={wanted}"))
            continue
        if there != wanted:
            found.append(Finding(name, ERROR, f"{there}, must be {wanted}", f"pip install {name}=={wanted}"))
        else:
            found.append(Finding(name, OK, there))
    return found


def _compilers() -> list[Finding]:
    """Both compilers, started: what is installed may still not run."""
    found = []
    for subject, command in (
        ("TVM", [sys.executable, "-c", "import tvm; print(tvm.__version__)"]),
        ("Zig's C compiler", [sys.executable, "-m", "ziglang", "version"]),
    ):
        works, said = run(command)
        if works:
            found.append(Finding(subject, OK, f"starts, {said}"))
        else:
            found.append(Finding(subject, ERROR, f"does not start: {said}", "pip install --force-reinstall edgellm"))
    return found


def _golden() -> list[Finding]:
    target = host_target()
    if target is None:
        text = "no tier fits this processor: bundles get no golden prompts"
        return [Finding("processor", WARNING, text, "compile on a machine with AVX2, or on a 64-bit ARM board")]
    return [Finding("processor", OK, f"tier {target.tier.name}: golden prompts are computed here")]


def _cache() -> list[Finding]:
    try:
        path = cache.root()
        free = shutil.disk_usage(path).free
    except (EdgeError, OSError) as error:
        return [Finding("cache", ERROR, one_line(str(error)), "set EDGELLM_CACHE to a directory")]
    text = f"{path}: {size(free)} free"
    if not os.access(path, os.W_OK):
        return [Finding("cache", ERROR, f"{path} cannot be written to", "set EDGELLM_CACHE to a directory of yours")]
    if free < _FULL_CACHE:
        return [Finding("cache", ERROR, text, "remove files, or set EDGELLM_CACHE to another disk")]
    if free < _TIGHT_CACHE:
        return [
            Finding("cache", WARNING, text, "a 7B model needs 15 GB and its bundle 4 GB: removing the cache is safe")
        ]
    return [Finding("cache", OK, text)]


def _ssh() -> list[Finding]:
    try:
        version = importlib.metadata.version("paramiko")
    except importlib.metadata.PackageNotFoundError:
        return [Finding("SSH", ERROR, "paramiko is not installed", "pip install paramiko")]
    keys = sorted(path.stem for path in (Path.home() / ".ssh").glob("id_*.pub"))
    agent = bool(os.environ.get("SSH_AUTH_SOCK"))
    text = f"paramiko {version}; keys: {', '.join(keys) or 'none'}{', and an agent' if agent else ''}"
    if not keys and not agent:
        return [Finding("SSH", NOTE, text, "boards will ask for passwords: ssh-keygen, then ssh-copy-id user@board")]
    return [Finding("SSH", OK, text)]


def _virtual() -> list[Finding]:
    """Emulated boards: what each lacks."""
    from edgellm import virtual

    found = []
    for board in (each for each in list_boards() if each.virtual):
        reason = virtual.availability(board)
        if reason is None:
            found.append(Finding(board.id, OK, "can be started"))
        else:
            found.append(Finding(board.id, NOTE, "cannot run here", one_line(reason)))
    try:
        adb: str | None = str(find_adb())
    except EdgeError:
        adb = None
    for program, path, purpose in (
        ("qemu-aarch64", shutil.which("qemu-aarch64"), "virtual boards bring their own"),
        ("adb", adb, "needed for Android over USB: sudo apt-get install adb"),
    ):
        if path is None:
            found.append(Finding(program, NOTE, "is not installed", purpose))
        else:
            found.append(Finding(program, OK, run([path, "--version"])[1]))
    return found


def _boards() -> list[Finding]:
    try:
        names = read_instances()
        list_boards()
        load()
    except EdgeError as error:
        return [Finding("boards", ERROR, one_line(str(error)), f"mend or delete {instances_path()}")]
    if not names:
        return [Finding("boards", NOTE, "none of yours has a name", "edgellm boards add NAME TYPE user@host")]
    return [Finding("boards", OK, ", ".join(f"{name} ({each.type})" for name, each in names.items()))]


RULES: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _packages,
    _compilers,
    _golden,
    _cache,
    _ssh,
    _boards,
    _virtual,
)
