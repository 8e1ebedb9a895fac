"""Ports of a board's loopback, reached from this machine's."""

from __future__ import annotations

import contextlib
import socket
import threading

from edgellm.errors import EdgeError, UsageError
from edgellm.remote import Remote, Tunnel

_PIECE_BYTES = 65536


class Forwarder:
    """A loopback port here whose connections come out at a port on the board's loopback. Use it as a context manager.

    port: here; 0: any that is free. Raises UsageError if it is taken.
    """

    def __init__(self, remote: Remote, to_port: int, port: int = 0) -> None:
        self._remote, self._to_port = remote, to_port
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(f"port {port} of this machine: {error.strerror}; --port chooses another one") from error
        self.port = int(self._listener.getsockname()[1])
        self._closing = threading.Event()
        self._open: dict[int, tuple[socket.socket, Tunnel]] = {}  # by the socket's id
        self._thread = threading.Thread(target=self._accept, name="edgellm-forward", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0 or self._closing.wait(0.1):
                    return
                continue  # too many files are open: the next connection may find room
            try:
                there = self._remote.tunnel(self._to_port)
            except EdgeError:
                client.close()  # the client then says that nobody answers
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open[id(client)] = (client, there)
            for source, sink in ((client, there), (there, client)):
                threading.Thread(target=self._copy, args=(source, sink, id(client)), daemon=True).start()

    def _copy(self, source: socket.socket | Tunnel, sink: socket.socket | Tunnel, key: int) -> None:
        """Bytes from one end to the other, until one of them ends; then both do."""
        try:
            while data := source.recv(_PIECE_BYTES):
                view = memoryview(data)
                while view:
                    view = view[sink.send(bytes(view)) :]
        except (OSError, EOFError):
            pass  # a connection that broke is one that ended
        finally:
            _close(source)
            _close(sink)
            self._open.pop(key, None)

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self._thread.join()
        for pair in list(self._open.values()):
            for end in pair:
                _close(end)


def _close(end: socket.socket | Tunnel) -> None:
    with contextlib.suppress(OSError):
        if isinstance(end, socket.socket):
            end.shutdown(socket.SHUT_RDWR)  # wakes whoever reads from it
    with contextlib.suppress(OSError, EOFError):
        end.close()
