"""A fake board for unit tests: a directory of this machine as its home, and faults on demand.

Commands really run, so that what the tests see is what a shell does; only the way to the board is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgellm.errors import LinkError
from edgellm.local_remote import LocalRemote
from edgellm.remote import Process


class FakeProcess(Process):
    """A process that reports what is written to it, so that its board can break the connection."""

    def __init__(self, inner: Process, sent: Callable[[int], None]) -> None:
        self._inner, self._sent = inner, sent

    def write(self, data: bytes | memoryview) -> None:
        self._sent(len(data))
        self._inner.write(data)

    def close_input(self) -> None:
        self._inner.close_input()

    def read(self, n_bytes: int, timeout_s: float | None = None) -> bytes:
        return self._inner.read(n_bytes, timeout_s)

    def wait(self) -> int:
        return self._inner.wait()

    def errors(self) -> str:
        return self._inner.errors()

    def close(self) -> None:
        self._inner.close()


class FakeRemote(LocalRemote):
    """A board whose home is `directory`.

    commands          every argv that was started, in order
    sent_bytes        bytes written to commands so far
    drop_at_command   the connection breaks when this command (counted from 0) is started, and stays broken
    drop_at_byte      the connection breaks before the byte with this number is sent, and stays broken
    fail_at_command   this command alone fails with status 1, the connection stays
    """

    def __init__(self, directory: Path) -> None:
        super().__init__("fake", {"HOME": str(directory)})
        self.home = directory
        self.commands: list[list[str]] = []
        self.sent_bytes = 0
        self.drop_at_command: int | None = None
        self.drop_at_byte: int | None = None
        self.fail_at_command: int | None = None
        self.dropped = False

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        index = len(self.commands)
        self.commands.append(list(argv))
        if self.drop_at_command is not None and index >= self.drop_at_command:
            self.dropped = True
        self._alive()
        if index == self.fail_at_command:
            argv = ["sh", "-c", "echo injected >&2; exit 1"]
        return FakeProcess(super().start(argv, silence_s=silence_s), self._send)

    def _send(self, n_bytes: int) -> None:
        if self.drop_at_byte is not None and self.sent_bytes + n_bytes > self.drop_at_byte:
            self.dropped = True
        self._alive()
        self.sent_bytes += n_bytes

    def _alive(self) -> None:
        if self.dropped:
            raise LinkError("fake: the connection broke; try again")
