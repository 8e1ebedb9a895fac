"""`edgellm-rt rpc` as a process of a test, and the libraries that tests upload to it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosscompile.runtime import build_runtime
from edgellm import golden
from tests.runtime_make import build

MAGIC = 0xFF271
_DEADLINE_S = 60.0


def program() -> Path:
    """edgellm-rt for this machine, as boards get it."""
    host = golden.host_target()
    assert host is not None
    return build_runtime(host)


def sanitized_program() -> Path:
    """The same under ASan and UBSan."""
    return build("asan/edgellm-rt")


class Agent:
    """A running agent; leaving the block ends it by ending its input, and checks that it ended well."""

    def __init__(self, binary: Path, work: Path, *options: str, key: str | None = None) -> None:
        self.key = key or secrets.token_hex(16)
        self.work = work
        environment = {
            **os.environ,
            "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1:handle_segv=0:handle_sigfpe=0:handle_abort=0",
        }
        self.process = subprocess.Popen(
            [str(binary), "rpc", "--work", str(work), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdin is not None
        if "--tracker" not in options:
            self.process.stdin.write(f"{self.key}\n".encode())
            self.process.stdin.flush()
        self.connections: list[socket.socket] = []
        self.port = int(self.line()["port"])

    def line(self) -> dict[str, Any]:
        """The next line that the agent prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(f"the agent ended: {self.process.stderr.read().decode()}")
        message: dict[str, Any] = json.loads(line)
        return message

    def connect(self, timeout_s: float = 0) -> Any:
        """A session of TVM's stock client."""
        from tvm import rpc

        return rpc.connect("127.0.0.1", self.port, self.key, session_timeout=timeout_s)

    def raw(self, greeting: bytes | None = None) -> socket.socket:
        """A connection that has sent a greeting: the right one by default."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=_DEADLINE_S)
        self.connections.append(connection)
        text = f"client:{self.key}".encode()
        connection.sendall(struct.pack("<ii", MAGIC, len(text)) + text if greeting is None else greeting)
        return connection

    def accepted(self) -> socket.socket:
        """The same, with the answer read."""
        connection = self.raw()
        magic, n = struct.unpack("<ii", receive(connection, 8))
        assert magic == MAGIC
        assert receive(connection, n) == f"server:{self.key}".encode()
        return connection

    def children(self) -> list[int]:
        """Processes of sessions."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while self.children():
            assert time.monotonic() < deadline, "a session did not end"
            time.sleep(0.01)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self.connections:
            connection.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            status = self.process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
            errors = self.process.stderr.read().decode() if self.process.stderr else ""
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        assert (status, errors) == (0, "")
        assert not list(self.work.iterdir()), "something stayed in the work folder"


def receive(connection: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = connection.recv(n - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {n} bytes came")
        data += piece
    return data


def frame(code: int, payload: bytes = b"") -> bytes:
    return struct.pack("<Qi", len(payload) + 4, code) + payload


def reply(connection: socket.socket) -> tuple[int, bytes]:
    """(code, payload) of the next frame."""
    (n,) = struct.unpack("<Q", receive(connection, 8))
    data = receive(connection, n)
    return struct.unpack("<i", data[:4])[0], data[4:]


GREETING = struct.pack("<Q", 5) + b"0.8.0" + struct.pack("<i", 0)
"""The payload of InitServer."""


def c_library(path: Path, source: str, flags: Sequence[str] = ()) -> Path:
    """A shared library whose functions follow tvm-ffi's calling convention: FUNCTION(name) { … return 0; }."""
    text = """
#include <stdint.h>
#include <stdlib.h>
typedef struct { int32_t type; uint32_t zero; union { int64_t i; double f; void *p; } v; } any;
typedef struct { void *data; int32_t device[2], n_dims; uint32_t dtype; int64_t *shape, *strides;
                 uint64_t offset; } tensor;
#define FUNCTION(name) int32_t __tvm_ffi_##name(void *self, const any *args, int32_t n, any *result)
"""
    command = ["cc", "-x", "c", "-", "-O1", "-w", "-shared", "-fPIC", *flags, "-o", str(path)]
    done = subprocess.run(command, input=text + source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


RETURN, EXCEPTION = 4, 5


def text(value: str) -> bytes:
    return struct.pack("<iQ", 8, len(value)) + value.encode()


def call(function: int, *values: bytes) -> bytes:
    return frame(3, struct.pack("<Qi", function, len(values)) + b"".join(values))


class Client:
    """A session after the greeting, spoken by hand."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        assert self.ask(frame(2, GREETING)) == (RETURN, struct.pack("<ii", 1, 0))

    def ask(self, message: bytes) -> tuple[int, bytes]:
        self.connection.sendall(message)
        return reply(self.connection)

    def function(self, name: str) -> int:
        code, payload = self.ask(frame(9, struct.pack("<i", 1) + text(name)))
        assert code == RETURN
        return int(struct.unpack("<iiQ", payload)[2])

    def text(self, function: int) -> str:
        """What a function without arguments returns."""
        code, payload = self.ask(call(function))
        assert code == RETURN
        return payload[28:].decode()

    def load(self, library: Path) -> int:
        """The handle of an uploaded library's function `main`."""
        blob = library.read_bytes()
        upload, load, get = (
            self.function(f"tvm.rpc.server.{name}") for name in ("upload", "load_module", "ModuleGetFunction")
        )
        assert self.ask(call(upload, text("k.so"), struct.pack("<iQ", 9, len(blob)) + blob))[0] == RETURN
        module = self.handle(call(load, text("k.so")))
        return self.handle(call(get, struct.pack("<iQ", 73, module), text("main"), struct.pack("<iq", 2, 0)))

    def handle(self, message: bytes) -> int:
        code, payload = self.ask(message)
        assert code == RETURN, payload
        return int(struct.unpack("<iiqiQ", payload)[4])

    def close(self) -> None:
        self.connection.close()
