"""A machine that runs commands and takes files: over SSH, on this machine, or a fake in tests.

An implementation starts processes; everything else is expressed over that, so that a board needs nothing but a
POSIX shell with busybox's commands. Uploads go through `cat`, which is faster than sftp (no reply per block) and
also works where there is no sftp server; many files go as one tar stream.
"""

from __future__ import annotations

import shlex
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgellm.errors import CommandError, DiskFullError, EdgeError, LinkError
from edgellm.terminal import one_line

PIECE_BYTES = 128 * 1024
"""Bytes handed to a transport at once: larger pieces gain nothing, and paramiko copies what is left of them."""

Progress = Callable[[int], None]
"""Called with the number of bytes that were just sent."""


@dataclass(frozen=True)
class Result:
    """What a finished command left: exit status, standard output, standard error."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")


class Process(ABC):
    """A running command. Every call raises LinkError if the connection breaks, or nothing moves for too long."""

    @abstractmethod
    def write(self, data: bytes | memoryview) -> None:
        """Sends all of `data` to standard input. Raises BrokenPipeError if the command no longer reads."""

    @abstractmethod
    def close_input(self) -> None: ...

    @abstractmethod
    def read(self, n_bytes: int, timeout_s: float | None = None) -> bytes:
        """1 to `n_bytes` bytes of standard output as soon as there are any; b"" at its end.

        Raises TimeoutError if nothing came within timeout_s, LinkError after the process's own limit."""

    @abstractmethod
    def wait(self) -> int:
        """The exit status, once the command has ended."""

    @abstractmethod
    def errors(self) -> str:
        """What came on standard error so far, at most its last 64 KiB."""

    @abstractmethod
    def close(self) -> None:
        """Ends the process if it still runs. Can be called twice."""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Tunnel(Protocol):
    """A byte stream to a port of the board's loopback."""

    def send(self, data: bytes, /) -> int: ...
    def recv(self, n_bytes: int, /) -> bytes: ...
    def close(self) -> None: ...


class Remote(ABC):
    """A machine commands can be run on. Use it as a context manager.

    name: what messages call it, e.g. "kitchen (pi@10.0.0.7)".
    """

    name: str

    @abstractmethod
    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        """Starts a command. silence_s: how long it may neither take nor give a byte."""

    @abstractmethod
    def tunnel(self, port: int) -> Tunnel:
        """Connects to a port on the board's loopback. Raises RemoteError if nothing listens there."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", silence_s: float = 60.0, limit_bytes: int = 16 << 20
    ) -> Result:
        """Runs a command to its end. Raises CommandError if it prints more than limit_bytes."""
        with self.start(argv, silence_s=silence_s) as process:
            try:
                if stdin:
                    process.write(stdin)
                process.close_input()
            except BrokenPipeError:
                pass  # it ended without reading everything; its status says whether that is an error
            chunks: list[bytes] = []
            total = 0
            while chunk := process.read(PIECE_BYTES):
                total += len(chunk)
                if total > limit_bytes:
                    raise CommandError(f"{self.name}: '{argv[0]}' printed more than {limit_bytes} bytes; stopped")
                chunks.append(chunk)
            return Result(process.wait(), b"".join(chunks), process.errors())

    def check(self, argv: Sequence[str], *, stdin: bytes = b"", silence_s: float = 60.0) -> Result:
        """Runs a command that must succeed. Raises DiskFullError or CommandError."""
        result = self.run(argv, stdin=stdin, silence_s=silence_s)
        if result.status != 0:
            raise self.failure(" ".join(argv[:1]), result.status, result.stderr)
        return result

    def script(self, text: str, *arguments: str, silence_s: float = 60.0) -> Result:
        """Runs a shell script that must succeed, with `arguments` as "$1", "$2", …"""
        return self.check(shell_argv(text, *arguments), silence_s=silence_s)

    def put(self, local: Path, remote: str, *, offset: int = 0, progress: Progress | None = None) -> None:
        """Writes the file `local` to the path `remote` and flushes it to the disk, from byte `offset` on.

        With an offset, the first `offset` bytes must lie there already. The name appears at once, so use a
        temporary one. Raises DiskFullError, CommandError or LinkError; what was written so far stays.
        """
        # A new inode: the old one may be a hard link into the slot in use.
        script = 'rm -f "$1"; cat >"$1"\n' if offset == 0 else 'cat >>"$1"\n'
        with local.open("rb") as file, self.start(shell_argv(script + FLUSH + 'flush_long "$1"', remote)) as process:
            file.seek(offset)
            try:
                while piece := file.read(PIECE_BYTES):
                    process.write(piece)
                    if progress is not None:
                        progress(len(piece))
                process.close_input()
            except BrokenPipeError:
                pass  # cat gave up; its message says why
            while process.read(PIECE_BYTES):
                pass
            if (status := process.wait()) != 0:
                raise self.failure(f"writing {remote}", status, process.errors())

    def put_all(self, files: Sequence[FileToSend], folder: str, *, progress: Progress | None = None) -> None:
        """Writes many files below the existing path `folder` in one stream, and flushes them to the disk.

        Existing files of these names must have been removed. Raises DiskFullError, CommandError or LinkError; what
        was written so far stays, each file but the last one whole.
        """
        script = 'cd "$1"; tar xmof -\n' + FLUSH + "find . -type f | flush_all\n"
        with self.start(shell_argv(script, folder)) as process:
            try:
                for piece, n_content in _tar(files):
                    process.write(piece)
                    if progress is not None:
                        progress(n_content)
                process.close_input()
            except BrokenPipeError:
                pass  # tar gave up; its message says why
            while process.read(PIECE_BYTES):
                pass
            if (status := process.wait()) != 0:
                raise self.failure(f"writing below {folder}", status, process.errors())

    def get(self, remote: str, local: Path, *, progress: Progress | None = None) -> None:
        """Reads the file at path `remote` into `local`. Raises CommandError or LinkError; `local` is then removed."""
        try:
            with local.open("wb") as file, self.start(["cat", remote]) as process:
                process.close_input()
                while piece := process.read(PIECE_BYTES):
                    file.write(piece)
                    if progress is not None:
                        progress(len(piece))
                if (status := process.wait()) != 0:
                    raise self.failure(f"reading {remote}", status, process.errors())
        except BaseException:
            local.unlink(missing_ok=True)
            raise

    def failure(self, what: str, status: int, stderr: str) -> CommandError | DiskFullError | LinkError:
        """The error for a command that ended with `status` and wrote `stderr`."""
        said = one_line(stderr)
        if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
            return DiskFullError(f"{self.name}: no space left while {what}")
        if status < 0:  # SSH reports no status when the command was killed or the connection closed under it
            return LinkError(f"{self.name}: the connection ended while {what}; try again")
        return CommandError(f"{self.name}: {what} failed with status {status}: {said or 'no message'}", status, said)


FLUSH = """\
flush() { sync "$@" 2>/dev/null || sync; }
flush_long() {
    (while sleep 5 </dev/null >/dev/null 2>&1; do echo; done) &
    ticks=$!
    flush "$@" || { kill "$ticks"; return 1; }
    kill "$ticks"
}
flush_all() { while IFS= read -r name; do set -- "$@" "$name"; done; flush_long "$@"; }
"""
"""Shell functions: fsync of the files or directories that are named as arguments, or on standard input line by line.
Older busybox cannot name them, so everything is flushed there. flush_long prints a line every 5 s: a memory card may
take minutes for what was sent in seconds, and that must not look like a connection that broke."""


@dataclass(frozen=True)
class FileToSend:
    """A file of this machine and the relative path it gets."""

    local: Path
    name: str
    executable: bool = False


def _tar(files: Sequence[FileToSend]) -> Iterator[tuple[bytes, int]]:
    """A tar archive in pieces of about PIECE_BYTES, and how much of the files' content is in each."""
    buffer, n_content = bytearray(), 0
    for file in files:
        header = tarfile.TarInfo(file.name)
        header.size = n_left = file.local.stat().st_size
        header.mode = 0o755 if file.executable else 0o644
        buffer += header.tobuf(tarfile.GNU_FORMAT)
        with file.local.open("rb") as source:
            while n_left:
                piece = source.read(min(n_left, PIECE_BYTES))
                if not piece:
                    raise EdgeError(f"{file.local} became shorter while it was sent; leave it alone and try again")
                buffer += piece
                n_content += len(piece)
                n_left -= len(piece)
                if len(buffer) >= PIECE_BYTES:
                    yield bytes(buffer), n_content
                    buffer, n_content = bytearray(), 0
        buffer += bytes(-header.size % tarfile.BLOCKSIZE)
    yield bytes(buffer + bytes(2 * tarfile.BLOCKSIZE)), n_content


def shell_argv(script: str, *arguments: str) -> list[str]:
    """The command that runs a shell script, stopping at the first failure, with `arguments` as "$1", "$2", …"""
    return ["sh", "-c", "set -e\n" + script, "edgellm", *arguments]


def command_line(argv: Sequence[str]) -> str:
    """argv as one line for a POSIX shell, which is what an SSH server runs."""
    return shlex.join(argv)
