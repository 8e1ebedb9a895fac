"""A conversation with `edgellm-rt board`, the program that keeps a board's store and slots (runtime_c/FORMAT.md).

It lies outside the slots, at ~/.edgellm/edgellm-rt, so that the program that judges a new model is not the new model's
own. A conversation holds the board's lock from its first word to its end, however it ends: the kernel lets go of it.
"""

from __future__ import annotations

import getpass
import json
import posixpath
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import CommandError, DiskFullError, EdgeError, LinkError, RuntimeFailedError, UnsuitableError
from edgellm.remote import FLUSH, PIECE_BYTES, Process, Progress, Remote, shell_argv
from edgellm.runtime_program import PROGRAM, failure
from edgellm.terminal import one_line

SILENCE_S = 120.0
"""The board speaks at least every few seconds while it works; a flush to a slow card may take longer."""

_LINE_CAP = 8 << 20
_AHEAD_BYTES = 768 << 10
"""So far the host runs ahead of what the board has written: the most that a connection that breaks loses on its way."""

Told = Callable[[str, int, int], None]
"""Called with what the board does now, how much of it is done, and of how much (0: nobody knows)."""


@dataclass(frozen=True)
class DeployedSlot:
    """One version of a model. manifest: SHA-256 of its manifest.json; broken: why it cannot be read, else None.

    verified: the weights are as they were when they were last hashed."""

    name: str
    manifest: str
    n_bytes: int
    verified: bool
    title: str
    scheme: str
    broken: str | None = None


@dataclass(frozen=True)
class DeployedModel:
    """A model on a board. current, previous: names of slots; None where there is none."""

    name: str
    current: str | None
    previous: str | None
    slots: dict[str, DeployedSlot]


@dataclass(frozen=True)
class Survey:
    """What a board has. store: bytes of each whole file by SHA-256; parts: likewise, of unfinished ones."""

    version: str
    arch: str
    free_bytes: int
    store: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    models: dict[str, DeployedModel] = field(default_factory=dict)


def root_of(home: str) -> str:
    """The folder of everything that is deployed for a user of a board."""
    return posixpath.join(home, ".edgellm")


def count_of(answer: Any, key: str) -> int:
    """A whole number that a board's answer must hold; 0 where it does not."""
    value = answer.get(key) if isinstance(answer, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0


def whoami() -> str:
    """What the board's record calls this side: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry in the user database, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def board_argv(home: str, *request: str) -> list[str]:
    """The command line of edgellm-rt board; by way of a shell, which says with 126 or 127 that there is none."""
    root = root_of(home)
    return shell_argv('exec "$@"', posixpath.join(root, PROGRAM), "board", root, "--as", whoami(), *request)


class BoardSession:
    """Use it as a context manager. Whatever the board refuses is a RuntimeFailedError, and ends the conversation.

    hard_links: whether the board's file system has them; without, each version costs its full size.
    """

    def __init__(self, remote: Remote, home: str, told: Told | None = None) -> None:
        self._remote, self._told = remote, told or (lambda what, done, total: None)
        self._buffer = bytearray()
        self._n_unheard = self._sent_bytes = self._got_bytes = 0
        self._process: Process = remote.start(board_argv(home), silence_s=SILENCE_S)
        try:
            hello = self._hear()
        except BaseException:
            self._process.close()
            raise
        self.hard_links = hello.get("hard_links") is not False

    def __enter__(self) -> BoardSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                self._process.close_input()
                while self._process.read(PIECE_BYTES):
                    pass
                self._process.wait()  # the lock is free again when the next command is sent
        finally:
            self._process.close()

    def survey(self) -> Survey:
        return read_survey(self.ask("survey"), self._remote.name)

    def blocks(self, sha256: str) -> list[str]:
        """SHA-256 of each MB of an unfinished file there, the last one as long as it is."""
        found = self.ask("blocks", sha256).get("blocks")
        return [str(digest) for digest in found] if isinstance(found, list) else []

    def send(self, file: Path, sha256: str, offset: int, executable: bool, progress: Progress | None) -> None:
        """Puts a file into the store, from byte `offset` on. What the board answers is for `collect` to read."""
        n_bytes = file.stat().st_size
        self._say(f"receive {sha256} {n_bytes} {offset}{' x' if executable else ''}")
        left = n_bytes - offset
        with file.open("rb") as source:
            source.seek(offset)
            while left:
                piece = source.read(min(PIECE_BYTES, left))
                if not piece:
                    raise EdgeError(f"{file} became shorter while it was sent; leave it alone and try again")
                self._write(piece)
                left -= len(piece)
                self._sent_bytes += len(piece)
                while self._sent_bytes - self._got_bytes > _AHEAD_BYTES:
                    self._listen()
                if progress is not None:
                    progress(len(piece))
        self._n_unheard += 1
        if self._n_unheard >= 64:  # small files; their answers would fill the pipe back
            self.collect()

    def collect(self) -> None:
        """Waits until everything that was sent is on the board's disk, and hashed there."""
        while self._n_unheard > 0:
            self._listen()

    def _listen(self) -> None:
        """Hears how many bytes arrived, or that a file is whole."""
        heard = self._hear()
        if isinstance(got := heard.get("got"), int):
            self._got_bytes = got
        elif "stored" in heard:
            self._n_unheard -= 1
        else:
            raise CommandError(f"{self._remote.name}: the board did not confirm a file")

    def ask(self, *words: str) -> dict[str, Any]:
        self.collect()
        self._say(" ".join(words))
        return self._hear()

    def _say(self, line: str) -> None:
        self._write(line.encode() + b"\n")

    def _write(self, data: bytes) -> None:
        try:
            self._process.write(data)
        except BrokenPipeError:
            while True:  # it ended; what it said last is its reason
                self._hear()

    def _hear(self) -> dict[str, Any]:
        while True:
            line = self._line()
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):
                answer = None
            if not isinstance(answer, dict):
                text = one_line(line.decode("utf-8", "replace"), 120)
                raise CommandError(f"{self._remote.name}: {PROGRAM} board said something unexpected: {text}")
            if "progress" not in answer:
                return answer
            done, total = answer.get("done"), answer.get("total")
            self._told(
                one_line(str(answer["progress"]), 60),
                done if isinstance(done, int) else 0,
                total if isinstance(total, int) else 0,
            )

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_CAP:
                raise CommandError(f"{self._remote.name}: {PROGRAM} board said a line without an end")
            piece = self._process.read(PIECE_BYTES)
            if not piece:
                raise _ended(self._remote, self._process)
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _ended(remote: Remote, process: Process) -> Exception:
    status, errors = process.wait(), process.errors()
    if status == 0:
        return LinkError(f"{remote.name}: {PROGRAM} board ended without an answer; try again")
    return refused(remote, f"{PROGRAM} board", status, errors)


def refused(remote: Remote, what: str, status: int, errors: str) -> Exception:
    """The error for an `edgellm-rt board` that ended with `status`; a full disk is one, whoever says so."""
    if "No space left on device" in errors or "Disk quota exceeded" in errors:
        return DiskFullError(f"{remote.name}: no space left: {one_line(errors)}")
    return failure(remote, what, status, errors)


def ask_once(remote: Remote, home: str, *request: str) -> dict[str, Any]:
    """One request without a conversation. Raises UnsuitableError if nothing was ever deployed to the board."""
    result = remote.run(board_argv(home, *request), silence_s=600)
    if result.status in (126, 127):
        raise UnsuitableError(f"{remote.name} has no models yet; send one with `edgellm deploy MODEL --board …`")
    if result.status != 0:
        raise refused(remote, f"{PROGRAM} board {request[0]}", result.status, result.stderr)
    for line in reversed(result.text.splitlines()):
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(answer, dict):
            return answer
    raise CommandError(f"{remote.name}: {PROGRAM} board said something unexpected: {one_line(result.text, 120)}")


def read_survey(answer: dict[str, Any], name: str) -> Survey:
    """Checks what a board called `name` says it has."""
    try:
        models = {str(key): _model(str(key), value) for key, value in answer["models"].items()}
        return Survey(
            str(answer["version"]),
            str(answer["arch"]),
            int(answer["free_bytes"]),
            {str(key): int(value) for key, value in answer["store"].items()},
            {str(key)[:64]: int(value) for key, value in answer["parts"].items()},
            models,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = one_line(str(error))
        raise CommandError(f"{name}: {PROGRAM} board does not say what is deployed there: {said}") from error


def _model(name: str, value: dict[str, Any]) -> DeployedModel:
    slots = {
        str(key): DeployedSlot(
            str(key),
            str(slot.get("manifest", "")),
            int(slot.get("bytes", 0)),
            slot.get("verified") is True,
            one_line(str(slot.get("name", ""))),
            one_line(str(slot.get("scheme", ""))),
            one_line(str(slot["broken"])) if "broken" in slot else None,
        )
        for key, slot in value["slots"].items()
    }
    links = [str(value[key]) if value[key] is not None else None for key in ("current", "previous")]
    current, previous = (link if link in slots else None for link in links)
    return DeployedModel(name, current, previous if previous != current else None, slots)


def installed(
    remote: Remote, home: str, program: Path, told: Told, say: Callable[[str], None], before: Callable[[], None]
) -> BoardSession:
    """Opens a conversation; puts `program`, an edgellm-rt, onto the board first if there is none that can talk.

    before: called before anything is written to a board that has none.
    """
    try:
        return BoardSession(remote, home, told)
    except UnsuitableError:
        before()  # there is none, or it does not start: a board that is new, or was updated
    except RuntimeFailedError as error:
        if error.name != "USAGE":
            raise
        say(f"the {PROGRAM} that was installed on {remote.name} is too old for this; it is replaced")
    except CommandError as error:
        if error.status < 128:
            raise
        say(f"the {PROGRAM} that was installed on {remote.name} does not run ({error}); it is replaced")
    install(remote, home, program)
    return BoardSession(remote, home, told)


def install(remote: Remote, home: str, program: Path) -> None:
    """Puts an edgellm-rt outside the slots, whole or not at all."""
    root = root_of(home)
    place = posixpath.join(root, PROGRAM)
    remote.script('mkdir -p "$1"', root)
    remote.put(program, f"{place}.new")
    move = 'chmod 755 "$1.new"; flush "$1.new"; mv -f "$1.new" "$1"; flush "$2"'
    remote.script(FLUSH + move, place, root, silence_s=300)


def proven_bytes(file: Path, blocks: Sequence[str], n_there: int, block_bytes: int = 1 << 20) -> int:
    """How many bytes of `file` an unfinished copy of n_there bytes surely has, by the SHA-256 of its blocks."""
    import hashlib

    proven = 0
    with file.open("rb") as source:
        for digest in blocks:
            piece = source.read(min(block_bytes, n_there - proven))
            if not piece or hashlib.sha256(piece).hexdigest() != digest:
                break
            proven += len(piece)
    return proven
