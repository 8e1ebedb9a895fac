"""A TCP proxy in front of a server that does something to the connection after an exact number of bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Literal


class Proxy:
    """Takes one connection. After at_byte bytes from the client it does `fault`:

    "cut"    both ends are told that the connection is gone
    "stall"  nothing moves any more in either direction, and nobody is told anything
    a call   is made, and the connection goes on
    n_bytes: what came from the client so far.
    """

    def __init__(
        self, to_port: int, at_byte: int | None = None, fault: Literal["cut", "stall"] | Callable[[], None] = "cut"
    ) -> None:
        self.n_bytes = 0
        self._to_port, self._at_byte, self._fault = to_port, at_byte, fault
        self._stalled, self._closed = threading.Event(), threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # closed before anybody came
        server = socket.create_connection(("127.0.0.1", self._to_port))
        self._sockets += [client, server]
        threading.Thread(target=self._back, args=(server, client), daemon=True).start()
        with contextlib.suppress(OSError):  # one end went away, which is what this is about; the other is told
            while data := client.recv(self._left()):
                server.sendall(data)
                self.n_bytes += len(data)
                if self.n_bytes == self._at_byte:
                    self._do()
        self._end()

    def _left(self) -> int:
        left = 65536 if self._at_byte is None else self._at_byte - self.n_bytes
        return min(65536, left) if left > 0 else 65536

    def _do(self) -> None:
        if self._fault == "cut":
            raise ConnectionResetError
        if self._fault == "stall":
            self._stalled.set()
            self._closed.wait()
        else:
            assert callable(self._fault)
            self._fault()

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self._stalled.is_set():
                    self._closed.wait()
                    return
                client.sendall(data)
        self._end()

    def _end(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends everything that is still open."""
        self._closed.set()
        self._listener.close()
        self._end()
        for each in self._sockets:
            each.close()
