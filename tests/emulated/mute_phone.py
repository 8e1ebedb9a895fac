"""A phone that has not allowed this computer: `python mute_phone.py PORT`, inside a network name space of its own.

It speaks as much of adb's protocol (AOSP, packages/modules/adb/protocol.txt) as it takes to be "unauthorized": every
connection is asked for a signature, and none is accepted. Nothing can be done through it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading

_HEADER = struct.Struct("<6I")  # command, two arguments, length, sum of the bytes, command inverted
_AUTH, _TOKEN = 0x48545541, 1


def exactly(connection: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        piece = connection.recv(n_bytes - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def talk(connection: socket.socket) -> None:
    token = bytes(range(20))
    with contextlib.suppress(OSError, EOFError), connection:
        while True:
            length = _HEADER.unpack(exactly(connection, _HEADER.size))[3]
            exactly(connection, length)
            header = _HEADER.pack(_AUTH, _TOKEN, 0, len(token), sum(token), _AUTH ^ 0xFFFFFFFF)
            connection.sendall(header + token)


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
        print("listening", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=talk, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
