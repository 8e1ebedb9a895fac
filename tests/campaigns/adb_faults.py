"""Deployments over adb that lose their device: a part of the fault campaign (tests.campaigns.faults)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from edgellm import virtual, virtual_namespace
from edgellm.adb import PLACE, AdbRemote
from edgellm.adb_client import AdbClient
from edgellm.address import AdbAddress
from edgellm.boards import load_board
from edgellm.fake import FakeProcess
from edgellm.remote import Process

BOARD = "virtual-android"
HOME = f"{PLACE}/edgellm"


class CutProcess(FakeProcess):
    """A command during whose input something may happen."""

    def __init__(self, inner: Process, remote: CutRemote) -> None:
        super().__init__(inner, lambda n_bytes: None)
        self._remote = remote

    def write(self, data: bytes | memoryview) -> None:
        remote, view = self._remote, memoryview(data)
        before = remote.n_bytes
        if remote.at_byte is not None and before <= remote.at_byte < before + len(view):
            n_first = remote.at_byte - before
            self._inner.write(view[:n_first])
            remote.fault()
            view = view[n_first:]
        self._inner.write(view)
        remote.n_bytes = before + len(data)


class CutRemote(AdbRemote):
    """A device; before byte at_byte of what commands are given, counted from 0, `fault` is called."""

    def __init__(
        self, address: AdbAddress, at_byte: int | None = None, fault: Callable[[], None] = lambda: None
    ) -> None:
        self.n_bytes, self.at_byte, self.fault = 0, at_byte, fault
        super().__init__(address, BOARD)

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        return CutProcess(super().start(argv, silence_s=silence_s), self)


def address() -> AdbAddress:
    """The running device; started again if a fault ended it."""
    where = virtual.start(load_board(BOARD))
    assert isinstance(where, AdbAddress)
    return where


def unplug(where: AdbAddress) -> None:
    """What the host sees when the cable is pulled."""
    assert where.serial is not None
    AdbClient(where).run("disconnect", where.serial)


def kill(server: bool) -> None:
    """Ends adb's server, or adbd."""
    state = virtual.status(load_board(BOARD))
    assert state is not None
    members = virtual_namespace.members(state.pid)
    servers = [pid for pid in members if b"nodaemon" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(servers[0] if server else state.pid, signal.SIGKILL)
