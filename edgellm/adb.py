"""A board over adb: Android phones, and boards whose system has adbd.

A command runs as `adb shell -T`, which keeps its two outputs apart and carries bytes unchanged. When the device goes
away, adb ends such a command as if it had succeeded; so the shell on the device says the status itself, after the
command, and where that is missing the connection broke.

Android's shell has no home, so commands get one in /data/local/tmp, the place where it may write and run programs.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgellm.adb_client import AdbClient, said
from edgellm.address import AdbAddress
from edgellm.errors import EdgeError, LinkError, RemoteError, UnsuitableError
from edgellm.local_remote import LocalProcess
from edgellm.remote import PIECE_BYTES, Process, Remote, Tunnel, command_line
from edgellm.terminal import one_line

PLACE = "/data/local/tmp"
_TUNNEL_S = 60.0
_SOCKET_PATH_CAP = 100  # sun_path has 108 bytes (unix(7))

_HOME = f"""\
home=$HOME; if [ -d {PLACE} ] && [ -w {PLACE} ]; then home={PLACE}/edgellm; fi
umask 077; mkdir -p "$home" && printf %s "$home"
"""


class AdbRemote(Remote):
    """A device that adb reaches. Raises RemoteError, and UsageError if it is not clear which device is meant."""

    def __init__(self, address: AdbAddress, name: str = "") -> None:
        self._client = AdbClient(address)
        self._serial = self._client.choose(address.serial)
        where = f"adb:{self._serial}"
        self.name = f"{name} ({where})" if name else where
        self._folder: Path | None = None
        self._forwarded: dict[int, Path] = {}
        self._environment = ""
        if "shell_v2" not in self._ask("features").split():
            raise UnsuitableError(
                f"{self.name} has an adbd that does not tell how a command ended; use Android 7 or newer"
            )
        home = self.script(_HOME).text
        if not home.startswith("/"):
            raise RemoteError(f"{self.name}: the device does not say where files can be put: {one_line(home, 80)}")
        quoted = command_line([home])
        # adbd hands on its own umask, which is 0.
        self._environment = f'umask 022; export HOME={quoted} TMPDIR={quoted}; cd "$HOME"; '

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        mark = f"edgellm-{secrets.token_hex(8)}"
        line = f"{self._environment}{command_line(argv)}; printf '\\n%s %d\\n' {mark} $? >&2"
        try:
            child = subprocess.Popen(
                [str(self._client.program), "-s", self._serial, "shell", "-T", line],
                bufsize=0,
                env=self._client.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for edgellm, which tells the command what it wants
            )
        except OSError as error:
            raise RemoteError(f"{self.name}: cannot start {self._client.program}: {error.strerror}") from error
        return AdbProcess(child, self.name, silence_s, mark)

    def tunnel(self, port: int) -> Tunnel:
        if not self._listens(port):
            raise RemoteError(f"{self.name}: nothing answers on the board's port {port}")
        if port not in self._forwarded:
            self._forwarded[port] = self._forward(port)
        tunnel = socket.socket(socket.AF_UNIX)
        tunnel.settimeout(_TUNNEL_S)
        try:
            tunnel.connect(str(self._forwarded[port]))
        except OSError as error:
            tunnel.close()
            del self._forwarded[port]
            raise LinkError(
                f"{self.name}: the forward to port {port} is gone: {error.strerror}; adb's server must run on this "
                "machine; try again"
            ) from error
        tunnel.settimeout(None)  # from here on a tunnel may be as silent as who talks through it
        return tunnel

    def close(self) -> None:
        for path in self._forwarded.values():
            with contextlib.suppress(EdgeError):  # a device that is gone has taken its forwards along
                self._client.run("-s", self._serial, "forward", "--remove", f"localfilesystem:{path}")
        self._forwarded = {}
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _forward(self, port: int) -> Path:
        """Forwards a socket that only this user can open; a port of the loopback would be everybody's."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="edgellm-adb-"))
            if len(str(self._folder)) > _SOCKET_PATH_CAP - len("/65535"):
                self._folder.rmdir()
                self._folder = Path(tempfile.mkdtemp(prefix="edgellm-adb-", dir="/tmp"))
        path = self._folder / str(port)
        self._ask("forward", f"localfilesystem:{path}", f"tcp:{port}")
        return path

    def _listens(self, port: int) -> bool:
        """Whether a program listens there; True where the device does not say (proc(5), /proc/net/tcp).

        adb takes connections before it knows whether there is anybody at the other end."""
        lines = self.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).text.splitlines()
        fields = [line.split() for line in lines]
        local = [each[1] for each in fields if len(each) > 3 and each[3] == "0A"]
        return not fields or any(address.endswith(f":{port:04X}") for address in local)

    def _ask(self, *arguments: str) -> str:
        done = self._client.run("-s", self._serial, *arguments)
        if done.returncode:
            raise LinkError(f"{self.name}: adb {arguments[0]}: {said(done)}; check that the device is connected")
        return done.stdout


class AdbProcess(LocalProcess):
    """A command on a device. mark: what precedes its status at the end of its standard error."""

    def __init__(self, child: subprocess.Popen[bytes], name: str, silence_s: float, mark: str) -> None:
        super().__init__(child, name, silence_s)
        self._end = re.compile(rb"\n" + mark.encode() + rb" (\d{1,3})\r?\n")
        os.set_blocking(self._stdin.fileno(), False)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            while view:
                if not selector.select(self._silence_s):
                    raise LinkError(
                        f"{self._name}: the connection stalled while sending: nothing moved for {self._silence_s:.0f} "
                        "s; check the cable or the network and try again"
                    )
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(self._stdin.fileno(), view[:PIECE_BYTES]) :]

    def wait(self) -> int:
        """The status that the device's shell said; adb's own is 0 even when the device was unplugged."""
        super().wait()
        ended = self._end.search(self._errors)
        if ended is None:
            reason = one_line(super().errors(), 200).removeprefix("adb: ").removeprefix("error: ")
            raise LinkError(
                f"{self._name}: the connection broke{f': {reason}' if reason else ''}; check that the device is "
                "connected and awake, and try again"
            )
        return int(ended[1])

    def errors(self) -> str:
        return self._end.sub(b"", bytes(self._errors)).decode("utf-8", "replace")
