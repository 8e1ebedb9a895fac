"""This machine as a Remote: `--board local`, and the base of the fake."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence

from edgellm.errors import LinkError, RemoteError
from edgellm.remote import Process, Remote, Tunnel

_ERRORS_CAP = 64 * 1024


class LocalProcess(Process):
    """A child process."""

    def __init__(self, child: subprocess.Popen[bytes], name: str, silence_s: float) -> None:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        self._child, self._name, self._silence_s = child, name, silence_s
        self._stdin, self._stdout, self._stderr = child.stdin, child.stdout, child.stderr
        self._errors = bytearray()
        self._drain = threading.Thread(target=self._collect_errors, daemon=True)
        self._drain.start()

    def _collect_errors(self) -> None:
        while chunk := os.read(self._stderr.fileno(), 4096):
            self._errors += chunk
            del self._errors[:-_ERRORS_CAP]

    def write(self, data: bytes | memoryview) -> None:
        self._stdin.write(data)
        self._stdin.flush()

    def close_input(self) -> None:
        self._stdin.close()

    def read(self, n_bytes: int, timeout_s: float | None = None) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            if not selector.select(self._silence_s if timeout_s is None else timeout_s):
                if timeout_s is not None:
                    raise TimeoutError
                raise LinkError(f"{self._name}: no answer for {self._silence_s:.0f} s; stopped waiting")
        return os.read(self._stdout.fileno(), n_bytes)

    def wait(self) -> int:
        try:
            status = self._child.wait(self._silence_s)
        except subprocess.TimeoutExpired:
            raise LinkError(f"{self._name}: no end after {self._silence_s:.0f} s; stopped waiting") from None
        self._drain.join(5)
        return status

    def errors(self) -> str:
        return self._errors.decode("utf-8", "replace")

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # what was still buffered for a process that has ended
            self._stdin.close()
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)  # it leads its own group: what it started ends too
            self._child.wait()
        self._drain.join(5)
        for pipe in (self._stdout, self._stderr):
            pipe.close()


class LocalRemote(Remote):
    """Runs commands on this machine. environment: overrides, e.g. another HOME."""

    def __init__(self, name: str = "local", environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._environment = {**os.environ, **(environment or {})}

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for edgellm, which tells the command what it wants
            )
        except OSError as error:
            raise RemoteError(f"{self.name}: cannot start {argv[0]}: {error.strerror}") from error
        return LocalProcess(child, self.name, silence_s)

    def tunnel(self, port: int) -> Tunnel:
        try:
            tunnel = socket.create_connection(("127.0.0.1", port), timeout=60)
        except OSError as error:
            raise RemoteError(f"{self.name}: nothing answers on port {port}: {error}") from error
        tunnel.settimeout(None)  # from here on it may be as silent as who talks through it
        return tunnel

    def close(self) -> None:
        """Nothing is held between commands."""
