"""Deployments over adb that lose their device: a part of the fault campaign (tests.campaigns.faults)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm import virtual, virtual_namespace
from edgellm.adb import PLACE, AdbRemote
from edgellm.adb_client import AdbClient
from edgellm.address import AdbAddress
from edgellm.boards import load_board
from edgellm.bundle import Bundle
from edgellm.deployment import Deployment, deploy
from edgellm.fake import FakeProcess
from edgellm.remote import Process

if TYPE_CHECKING:
    from tests.campaigns.faults import Campaign

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


def over_adb(campaign: Campaign, n: dict[str, int], old: Bundle, new: Bundle) -> None:
    where = address()
    with AdbRemote(where) as remote:
        remote.script("rm -rf .edgellm template")
        deploy(old, remote)
        remote.script("mkdir template; cp -a .edgellm template")
    with CutRemote(where) as remote:
        deploy(new, remote)
        n_bytes = remote.n_bytes
    kinds = [kind for kind in ("adb", "adbd") for _ in range(n[kind])]
    for number, kind in enumerate(kinds):
        where = address()
        with AdbRemote(where) as remote:
            remote.script("rm -rf .edgellm; cp -a template/.edgellm .")
        at = campaign.random.randrange(n_bytes)

        def fault(kind: str = kind, where: AdbAddress = where, number: int = number) -> None:
            if kind == "adb":
                unplug(where)
            else:
                kill(server=number % 2 == 0)

        def go(at: int = at, where: AdbAddress = where, fault: Callable[[], None] = fault) -> Deployment:
            with CutRemote(where, at, fault) as remote:
                return deploy(new, remote)

        with campaign.noted(kind, f"byte {at}"):
            campaign.hurt(kind, f"byte {at} of {n_bytes}", go)
            with AdbRemote(address()) as remote:
                campaign.heal(kind, remote, HOME, old, new)
    with AdbRemote(address()) as remote:
        remote.script("rm -rf .edgellm template")
    virtual.stop(load_board(BOARD))
