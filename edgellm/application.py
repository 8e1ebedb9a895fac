"""An application that is installed beside a model: what its app.toml says, and its files, collected on this machine.

The board needs python3 and nothing else, no network either: wheels for its processor and its Python, and Debian's
packages for programs that it lacks, are fetched and unpacked here, and sent as files.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscompile.data import data_path
from edgellm import cache, virtual_parts
from edgellm.errors import UnsuitableError, UsageError
from edgellm.remote import FileToSend
from edgellm.terminal import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = "app.toml"
NAME = re.compile(r"[a-z][a-z0-9_]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_PLATFORMS = {"aarch64": "aarch64", "armv7": "armv7l", "x86_64": "x86_64"}
_GLIBC = ((2, 39), (2, 36), (2, 35), (2, 34), (2, 31), (2, 28), (2, 27), (2, 24), (2, 17))
"""Versions of glibc that wheels are built for: a board takes those that are not newer than its own."""


@dataclass(frozen=True)
class Application:
    """An app.toml. folder: where it lies; wheels: requirements as pip reads them; programs: to Debian's packages;
    notifies: it tells systemd when it is ready, and at least once a minute that it still is (sd_notify(3))."""

    folder: Path
    name: str
    module: str
    config: str
    model: str
    python: tuple[int, int]
    wheels: tuple[str, ...]
    programs: Mapping[str, tuple[str, ...]]
    notifies: bool = False


@dataclass(frozen=True)
class BoardPython:
    """What the board runs Python with. version: of python3; glibc: of its C library; lacks: programs it has not got."""

    arch: str
    version: tuple[int, int]
    glibc: tuple[int, int]
    lacks: tuple[str, ...]


def find(name: str) -> Application:
    """The application in the folder `name`, or the example of that name. Raises UsageError."""
    folder = Path(name)
    if not (folder / MANIFEST).is_file():
        try:
            folder = data_path("examples") / name
        except FileNotFoundError as error:
            raise UsageError(f"--app {name}: {error}") from error
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"--app {name}: there is no {MANIFEST} in that folder, and no application of that name")
    return read(folder)


def read(folder: Path) -> Application:
    """Reads and checks an app.toml. Raises UsageError with the file, the key and the remedy."""
    path = folder / MANIFEST
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {one_line(str(error))}") from error
    known = ("name", "module", "config", "model", "python", "wheels", "programs", "notifies")
    if unknown := sorted(set(table) - set(known)):
        raise UsageError(f"{path}: unknown key '{unknown[0]}'; known are {', '.join(known)}")

    def word(key: str, pattern: re.Pattern[str] = NAME) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise UsageError(f"{path}: '{key}' must be a name such as \"voice_assistant\"")
        return value

    programs = table.get("programs", {})
    if not isinstance(programs, dict):
        raise UsageError(f"{path}: 'programs' must be a table of lists of Debian's packages")
    version = re.fullmatch(r"3\.(\d{1,2})", str(table.get("python", "")))
    if not version:
        raise UsageError(f"{path}: 'python' must be the oldest version that it runs with, such as \"3.10\"")
    if not isinstance(table.get("notifies", False), bool):
        raise UsageError(f"{path}: 'notifies' must be true or false")
    application = Application(
        folder,
        word("name"),
        word("module"),
        word("config", re.compile(r"[a-z][a-z0-9_]*\.toml")),
        str(table.get("model", "")),
        (3, int(version[1])),
        _texts(path, "wheels", table.get("wheels", [])),
        {name: _texts(path, f"programs.{name}", packages, _PACKAGE) for name, packages in programs.items()},
        table.get("notifies", False),
    )
    for needed in (application.config, application.module):
        if not (folder / needed).exists():
            raise UsageError(f"{path}: names '{needed}', which is not in {folder}")
    return application


def _texts(path: Path, key: str, value: Any, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and not one.startswith("-") for one in value):
        raise UsageError(f"{path}: '{key}' must be a list of texts")
    for one in value:
        if pattern is not None and not pattern.fullmatch(one):
            raise UsageError(f"{path}: '{key}': '{one}' is no name of a package")
    return tuple(value)


def collect(application: Application, board: BoardPython, progress: Callable[[str], None]) -> list[FileToSend]:
    """Every file that goes to the board, fetched if need be. Raises UnsuitableError if something cannot be had."""
    files = [
        FileToSend(path, f"app/{path.relative_to(application.folder).as_posix()}")
        for path in sorted((application.folder / application.module).rglob("*.py"))
    ]
    if application.wheels:
        progress("fetching wheels for the board")
        files += _below(_wheels(application, board), "site")
    packages = sorted({package for name in board.lacks for package in application.programs[name]})
    if packages:
        progress(f"fetching {len(packages)} Debian packages for the board")
        files += _below(_packages(application, board, packages), "root")
    return files


def digest(files: Sequence[FileToSend]) -> str:
    """A name for exactly these files: the first 16 digits of a SHA-256 over their names and contents."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda one: one.name):
        total.update(f"{file.name} {file.executable} {sha256(file.local)}\n".encode())
    return total.hexdigest()[:16]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wheels(application: Application, board: BoardPython) -> Path:
    """A folder with the wheels unpacked, as pip would install them on the board."""
    machine = _PLATFORMS.get(board.arch, board.arch)
    version = f"{board.version[0]}.{board.version[1]}"
    platforms = [f"manylinux_{major}_{minor}_{machine}" for major, minor in _GLIBC if (major, minor) <= board.glibc]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    argv += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for platform in [*platforms, f"manylinux2014_{machine}"]:
        argv += ["--platform", platform]

    def make(folder: Path, _: virtual_parts.Progress) -> None:
        done = subprocess.run(
            [*argv, "--target", str(folder), *application.wheels],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr]
            raise UnsuitableError(
                f"{application.name}: no wheels for {board.arch} and Python {version}: {one_line(errors[-1], 300)}"
            )

    recipe = (*application.wheels, version, *platforms)
    return virtual_parts.ensure_part(cache.root() / "apps", f"{application.name}-wheels", recipe, _quiet, make)


def _packages(application: Application, board: BoardPython, packages: Sequence[str]) -> Path:
    if reason := virtual_parts.missing_tool():
        raise UnsuitableError(
            f"the board lacks {', '.join(board.lacks)}, and this machine cannot fetch them: {reason}; or install them "
            f"on the board: sudo apt-get install {' '.join(application.programs[name][0] for name in board.lacks)}"
        )
    return virtual_parts.ensure_packages(
        cache.root() / "apps",
        f"{application.name}-{board.arch}",
        packages,
        "fetching Debian packages",
        _quiet,
        arch=virtual_parts.DEBIAN_ARCHES[board.arch],
    )


def _quiet(_: str, __: float) -> None:
    pass


_NOT_NEEDED = re.compile(r"(^|/)(tests?|__pycache__|include|bin)/|\.pyi$")


def _below(folder: Path, name: str) -> Iterator[FileToSend]:
    """The files below a folder, links as what they point to; what only links point to is left out."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    pointed_to = {path.resolve() for path in paths if path.is_symlink()}
    for path in paths:
        inside = path.relative_to(folder).as_posix()
        if (not path.is_symlink() and path in pointed_to) or (name == "site" and _NOT_NEEDED.search(inside)):
            continue
        if path.resolve().is_relative_to(folder.resolve()):
            yield FileToSend(path.resolve(), f"{name}/{inside}", bool(path.stat().st_mode & 0o100))
