"""A board over SSH.

No call waits for ever: a read has a limit of its own, and a watchdog cuts the connection when the other end stops
taking what is sent (paramiko would retry that without end, however the channel's timeout is set).
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import paramiko

from edgellm.address import SshAddress
from edgellm.errors import LinkError, RemoteError
from edgellm.remote import PIECE_BYTES, Process, Remote, Tunnel, command_line
from edgellm.ssh_config import route_to
from edgellm.ssh_login import HANDSHAKE_S, Ask, Login
from edgellm.terminal import one_line

_KEEPALIVE_S = 30
_ERRORS_CAP = 64 * 1024
_POLL_S = 0.5

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it would print what we report ourselves


class SshRemote(Remote):
    """A logged-in SSH connection.

    config_path      another file than ~/.ssh/config
    ask, ask_hidden  how to ask yes/no and for a password; by default on the terminal, if there is one
    Raises UnreachableError, HostKeyError or LoginError.
    """

    def __init__(
        self,
        address: SshAddress,
        name: str = "",
        *,
        config_path: Path | None = None,
        ask: Ask | None = None,
        ask_hidden: Ask | None = None,
    ) -> None:
        self.name = f"{name} ({address})" if name else str(address)
        if _somebody_is_there():
            ask, ask_hidden = ask or _ask_on_terminal, ask_hidden or getpass.getpass
        self._login = Login(self.name, ask, ask_hidden, config_path)
        try:
            self._transport = self._login.open(route_to(address, config_path))
        except BaseException:
            self._login.close()
            raise
        self._transport.set_keepalive(_KEEPALIVE_S)
        self._watchdog = Watchdog(self._transport.close)

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        with self._link(min(silence_s, HANDSHAKE_S), f"starting {argv[0]}"):
            channel = self._transport.open_session(timeout=HANDSHAKE_S)
            channel.settimeout(HANDSHAKE_S)
            channel.exec_command(command_line(argv))
        return SshProcess(self, channel, silence_s)

    def tunnel(self, port: int) -> Tunnel:
        there, here = ("127.0.0.1", port), ("127.0.0.1", 0)
        try:
            with self._watchdog.limit(HANDSHAKE_S):
                return self._transport.open_channel("direct-tcpip", there, here, timeout=HANDSHAKE_S)
        except paramiko.ChannelException as error:
            raise RemoteError(f"{self.name}: nothing answers on the board's port {port}: {error}") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise LinkError(f"{self.name}: the connection broke: {one_line(str(error))}; try again") from error

    def close(self) -> None:
        self._watchdog.stop()
        self._login.close()

    @contextmanager
    def _link(self, limit_s: float, what: str) -> Iterator[None]:
        """Turns a connection that breaks or stalls inside the block into a LinkError."""
        try:
            with self._watchdog.limit(limit_s):
                yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            if self._watchdog.expired or isinstance(error, TimeoutError):
                raise LinkError(
                    f"{self.name}: the connection stalled while {what}: nothing moved for {limit_s:.0f} s; "
                    "check the network and try again"
                ) from error
            if isinstance(error, BrokenPipeError):
                raise
            raise LinkError(
                f"{self.name}: the connection broke while {what}; check that the board is up, and try again"
            ) from error


class SshProcess(Process):
    """A command on an SSH channel."""

    def __init__(self, remote: SshRemote, channel: paramiko.Channel, silence_s: float) -> None:
        self._remote, self._channel, self._silence_s = remote, channel, silence_s
        self._errors = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            with self._remote._link(self._silence_s, "sending"):
                self._channel.settimeout(self._silence_s)
                try:
                    n_sent = self._channel.send(bytes(view[:PIECE_BYTES]))
                except OSError:
                    if self._channel.closed and self._remote._transport.is_active():
                        raise BrokenPipeError from None  # the command ended
                    raise
            view = view[n_sent:]

    def close_input(self) -> None:
        with self._remote._link(self._silence_s, "sending"):
            self._channel.shutdown_write()

    def read(self, n_bytes: int, timeout_s: float | None = None) -> bytes:
        limit_s = self._silence_s if timeout_s is None else timeout_s
        end = time.monotonic() + limit_s
        while True:
            self._channel.settimeout(max(0.001, min(_POLL_S, end - time.monotonic())))
            with self._remote._link(limit_s + HANDSHAKE_S, "reading"):  # reading sends, too: that there is room again
                self._collect_errors()
                try:
                    return self._channel.recv(n_bytes)
                except TimeoutError:
                    pass
            if time.monotonic() < end:
                continue
            if timeout_s is not None:
                raise TimeoutError
            raise LinkError(f"{self._remote.name}: no answer for {limit_s:.0f} s; check the board and the network")

    def wait(self) -> int:
        if not self._channel.status_event.wait(self._silence_s):
            raise LinkError(f"{self._remote.name}: no end after {self._silence_s:.0f} s; check the board")
        with self._remote._link(HANDSHAKE_S, "reading"):
            self._collect_errors()
        status = self._channel.recv_exit_status()
        if status < 0 and not self._remote._transport.is_active():
            raise LinkError(f"{self._remote.name}: the connection broke; check that the board is up, and try again")
        return status

    def errors(self) -> str:
        with contextlib.suppress(LinkError), self._remote._link(HANDSHAKE_S, "reading"):
            self._collect_errors()  # what came before the connection broke is the answer
        return self._errors.decode("utf-8", "replace")

    def close(self) -> None:
        with contextlib.suppress(LinkError, BrokenPipeError), self._remote._link(HANDSHAKE_S, "closing"):
            self._channel.close()  # a broken connection has nothing left to close

    def _collect_errors(self) -> None:
        while self._channel.recv_stderr_ready():
            self._errors += self._channel.recv_stderr(4096)
            del self._errors[:-_ERRORS_CAP]


class Watchdog:
    """Calls `cut` once if a block guarded by limit() takes longer than it may. One block at a time."""

    def __init__(self, cut: Callable[[], None]) -> None:
        self._cut = cut
        self._end: float | None = None
        self._stopped = threading.Event()
        self.expired = False
        threading.Thread(target=self._watch, name="edgellm-watchdog", daemon=True).start()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        self._end = time.monotonic() + seconds
        try:
            yield
        finally:
            self._end = None

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_S):
            end = self._end
            if end is not None and time.monotonic() > end:
                self.expired = True
                self._cut()
                return


def _somebody_is_there() -> bool:
    """Whether a question can be asked. A worker of Ansible has a standard input that is closed, or none."""
    streams = (sys.stdin, sys.stderr)
    return all(stream is not None and not stream.closed and stream.isatty() for stream in streams)


def _ask_on_terminal(question: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline()
