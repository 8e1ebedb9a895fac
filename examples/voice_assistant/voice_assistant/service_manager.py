"""What systemd is told (sd_notify(3)): that the assistant listens, and then again and again that it still does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

from voice_assistant.streams import Halfway, Source

_EVERY_S = 10.0


def notify(state: str) -> None:
    """Sends a line such as READY=1; nothing where no service manager wants it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


class Watched:
    """A source whose frames keep the watchdog quiet: a microphone that hangs gets the program started again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.patient = source.patient

    @property
    def halfway(self) -> Halfway | None:
        return self._source.halfway

    @halfway.setter
    def halfway(self, told: Halfway | None) -> None:
        self._source.halfway = told

    def frames(self) -> Iterator[tuple[bytes, float]]:
        due = 0.0
        for frame in self._source.frames():
            if time.monotonic() >= due:
                # The first frame is the proof that the microphone works.
                notify("WATCHDOG=1" if due else "READY=1")
                due = time.monotonic() + _EVERY_S
            yield frame

    def close(self) -> None:
        self._source.close()
