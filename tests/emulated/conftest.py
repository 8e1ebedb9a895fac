"""A real SSH server on a loopback port, run as this user with its own configuration and home directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgellm.address import SshAddress


@dataclass
class SshServer:
    """home: what the sessions' HOME is; address: with a key and known_hosts that fit."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def address(self) -> SshAddress:
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        return SshAddress("127.0.0.1", self.port, user, self.directory / "login", self.directory / "known_hosts")

    def kill_sessions(self) -> None:
        """Ends every process below the server, as a crash of the board would for the host."""
        listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        children: dict[int, list[int]] = {}
        for line in listing.splitlines():
            pid, parent = map(int, line.split())
            children.setdefault(parent, []).append(pid)
        waiting = [self.process.pid]
        while waiting:
            for pid in children.get(waiting.pop(), []):
                waiting.append(pid)
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path, passphrase: str = "") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with running_server(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@contextlib.contextmanager
def running_server(directory: Path, config: str = "") -> Iterator[SshServer]:
    """A server with its keys, its log and its home below `directory`. config: further lines of sshd_config."""
    (directory / "home").mkdir(exist_ok=True)
    for name in ("host_key", "login"):
        make_key(directory / name)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a privileged sshd locks its unprivileged half in
    port = free_port()
    (directory / "config").write_text(f"""\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/login.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
MaxStartups 100
SetEnv HOME={directory}/home
{config}""")  # no Subsystem line: there is no sftp here, and nothing needs it
    host_key = (directory / "host_key.pub").read_text()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    server = SshServer(directory, port, start_server(directory, port))
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def start_server(directory: Path, port: int) -> subprocess.Popen[bytes]:
    """Starts the server that is configured in `directory`, and waits until it listens."""
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen([sshd_path(), "-D", "-e", "-f", str(directory / "config")], stderr=log)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"sshd did not start: {(directory / 'log').read_text()}")
            time.sleep(0.02)
    return process


def sshd_path() -> str:
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        pytest.fail("these tests need sshd; `make test` installs openssh-server")
    return sshd


@dataclass
class Link:
    """A TCP proxy in front of a server. After `limit_bytes` from the client it stops reading, or calls `then`."""

    to_port: int
    limit_bytes: int | None = None
    then: Callable[[], None] | None = None
    port: int = 0
    n_bytes: int = 0
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # closed before anybody came
        server = socket.create_connection(("127.0.0.1", self.to_port))
        back = threading.Thread(target=self._copy, args=(server, client, False), daemon=True)
        back.start()
        self._copy(client, server, True)
        back.join()
        client.close()
        server.close()
        self._listener.close()

    def _copy(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(16384):
                sink.sendall(data)
                if not counted:
                    continue
                self.n_bytes += len(data)
                if self.limit_bytes is not None and self.n_bytes > self.limit_bytes:
                    if self.then is None:
                        self._released.wait()
                        break
                    self.then()
                    self.limit_bytes = None
        except OSError:
            pass  # one end went away, which is what some tests are about; the other is told
        finally:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._released.set()
        self._listener.close()
