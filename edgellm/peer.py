"""What a program to compare with must be able to do. edgellm.comparison has the table of those there are."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from crosscompile.checkpoint import Checkpoint
from edgellm.bundle import Bundle
from edgellm.errors import PeerError
from edgellm.figure import Figure
from edgellm.sample import Sample
from edgellm.terminal import one_line

Progress = Callable[[str, int, int], None]

PARTS = ("body", "embedding", "head")
"""Of a scheme, as in a bundle's manifest."""


@dataclass(frozen=True)
class Run:
    """One sample that a peer is to take. model: what its `prepare` made; context: positions that must fit, in blocks.

    prompt: a text file, for the figures that start with text.
    """

    model: Path
    figure: Figure
    threads: int
    context: int
    prompt: Path


class Peer(ABC):
    """A program to compare with, on this machine and ready to run."""

    name: ClassVar[str]
    note: ClassVar[str] = ""
    """What a reader of its figures must know, in whole sentences; empty if nothing."""

    weights: ClassVar[tuple[str, ...]]
    """Names of the matches (edgellm.comparison) that are compared unless others are asked for."""

    figures: ClassVar[tuple[Figure, ...]]
    """What is measured unless other figures are asked for."""

    kinds: ClassVar[tuple[str, ...]]
    """Kinds of figures that it can be measured with."""

    emulated: ClassVar[bool] = False
    """Whether its instructions can be counted on boards' processors."""

    build_programs: ClassVar[tuple[str, ...]]
    """Programs that a directory given with --peer-build must have."""

    @classmethod
    @abstractmethod
    def find(cls, build: Path | None, progress: Progress) -> Peer:
        """The peer: in `build` if that is given, else from the cache, else fetched. Raises PeerError."""

    @abstractmethod
    def about(self) -> dict[str, str]:
        """package, and what the program calls itself: commit or version."""

    @abstractmethod
    def prepare(self, source: Checkpoint, bundle: Bundle, figures: Sequence[Figure], progress: Progress) -> Path:
        """Its own form of the checkpoint, made if the cache does not have it, fit for the figures. Raises PeerError."""

    @abstractmethod
    def types(self, scheme: Mapping[str, str]) -> dict[str, str]:
        """Its types of body, embedding and head where ours are those of a bundle's manifest."""

    def bytes_per_token(self, ours: int | None) -> int | None:
        """Bytes that it reads per decoded token where we read `ours`; None if nobody knows."""
        return ours

    @abstractmethod
    def command(self, run: Run) -> list[str]:
        """The command line of one sample."""

    @abstractmethod
    def value(self, run: Run, sample: Sample) -> float:
        """What a sample says in the figure's unit. May raise ValueError, LookupError or TypeError for other answers."""

    @abstractmethod
    def program_bytes(self) -> int:
        """Size of its code without symbols: what any program on top of it needs."""


def given(build: Path, programs: Sequence[str]) -> Path:
    """A directory named by --peer-build, absolute. Raises PeerError where it lacks a program."""
    missing = [name for name in programs if not (build / name).is_file()]
    if missing:
        raise PeerError(f"{build} has no {missing[0]}; --peer-build names the directory that has {', '.join(programs)}")
    return build.absolute()


def tool(name: str, package: str | None = None) -> str:
    """A build tool: this Python's own (the extra `bench`), else the system's. Raises PeerError."""
    own = Path(sysconfig.get_path("scripts")) / name
    found = str(own) if own.is_file() else shutil.which(name)
    if not found:
        how = "pip install 'edgellm[bench]'" if package is None else f"install {package}"
        raise PeerError(f"building the peer needs {name}; {how}, or give --peer-build DIR")
    return found


def run_tool(command: Sequence[str], remedy: str) -> None:
    """Runs a tool to its end. PeerError with its first error line."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
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
            run_tool([strip, "-o", f"{name}/stripped", str(file.resolve())], "is it a program of this machine?")
            total += (Path(name) / "stripped").stat().st_size
    return total
