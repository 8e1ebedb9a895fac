"""What happens during a rollout, one JSON object a line, in a file that many processes append to.

Ansible's processes write it: the action plug-ins what a board is doing, the callback plug-in what came of it. The one
who started Ansible reads it while it grows, and it stays as the record of the rollout.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgellm.deployment import Reporter
from edgellm.errors import UsageError

VARIABLE = "EDGELLM_ROLLOUT_LOG"
"""Environment variable with the file's path; without it nothing is written."""

_EVERY_S = 0.5
_LINE_CAP = 4 << 20
_KEPT = 50


def write(event: str, **values: Any) -> None:
    """Appends an event. One write to a file opened for appending: lines of several processes do not mix."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    line = json.dumps({"at": round(time.time(), 3), "event": event, **values}, default=str) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def new_path() -> Path:
    """A file for a new rollout, in the user's state directory; the oldest of many are removed. Raises UsageError."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edgellm" / "rollouts"
    now_us = time.time_ns() // 1000  # a process may begin two in a second
    named = time.strftime("%Y%m%d-%H%M%S", time.localtime(now_us // 1_000_000))
    path = folder / f"{named}-{now_us % 1_000_000:06d}-{os.getpid()}.jsonl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.jsonl"))[:-_KEPT]:
            old.unlink(missing_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}; set XDG_STATE_HOME to a folder that can"
        ) from error
    return path


class Follower:
    """Reads the events of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""

    def events(self) -> Iterator[dict[str, Any]]:
        """Those that came since the last call. A line that makes no sense is passed over."""
        while data := self._file.read(1 << 20):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LINE_CAP:
                self._rest = b""
            for line in lines:
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(found, dict):
                    yield found

    def close(self) -> None:
        self._file.close()


class BoardReporter(Reporter):
    """Writes what one board is doing, the bytes of a transfer twice a second."""

    def __init__(self, board: str) -> None:
        self._board = board
        self._n_bytes = self._total_bytes = 0
        self._said_at = 0.0
        self._stage = ""

    def stage(self, text: str) -> None:
        stage = text.partition(":")[0]
        if stage != self._stage or time.monotonic() - self._said_at > _EVERY_S:
            self._stage, self._said_at = stage, time.monotonic()
            write("stage", board=self._board, text=text)

    def note(self, text: str) -> None:
        write("note", board=self._board, text=text)

    def transfer_begins(self, n_bytes: int) -> None:
        self._total_bytes += n_bytes
        self._say()

    def transferred(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        if time.monotonic() - self._said_at > _EVERY_S:
            self._say()

    def transfer_ends(self) -> None:
        self._say()

    def _say(self) -> None:
        self._said_at = time.monotonic()
        write("bytes", board=self._board, sent=self._n_bytes, total=self._total_bytes)
