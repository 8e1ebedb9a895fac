"""Records a session of TVM's stock client with TVM's own server, byte for byte: tests/data/rpc_capture.txt.

The library that is uploaded is plain C for x86-64, so that the capture can be replayed against any agent there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from tests.agent import c_library

DATA = Path(__file__).resolve().parents[1] / "data" / "rpc_capture.txt"
KEY = "capture-0123456789abcdef"
SOURCE = """
FUNCTION(answer) { result->type = 1; result->v.i = 42; return 0; }
FUNCTION(half) { result->type = 3; result->v.f = 0.5; return 0; }
FUNCTION(main) {
    if (n != 2 || args[0].type != 7) return -1;
    tensor *a = args[0].v.p, *b = args[1].v.p;
    for (int64_t i = 0; i < a->shape[0]; i++) {
        ((float *)((char *)b->data + b->offset))[i] = ((float *)((char *)a->data + a->offset))[i] + 1;
    }
    return 0;
}
"""


def conversation(session: Any, library: bytes) -> None:
    """What a tuner and a person at a prompt do."""
    from tvm import runtime

    session.upload(bytearray(b"hi!"), "h.txt")
    assert session.download("h.txt") == b"hi!"
    session.remove("h.txt")
    session.upload(bytearray(library), "k.so")
    module = session.load_module("k.so")
    device = session.cpu(0)
    assert device.exist
    a = runtime.tensor(np.arange(16, dtype="float32"), device)
    b = runtime.tensor(np.zeros(16, dtype="float32"), device)
    module["main"](a, b)
    np.testing.assert_equal(b.numpy(), np.arange(16) + 1)
    a.copyto(b)
    np.testing.assert_equal(b.numpy(), np.arange(16))
    assert module["answer"]() == 42
    assert module["half"]() == 0.5
    with contextlib.suppress(AttributeError):
        module["absent"]
    evaluator = module.time_evaluator("main", device, number=2, repeat=3)
    assert len(evaluator(a, b).results) == 3
    session.get_function("tvm.contrib.random.random_fill_for_measure")
    device.sync()


class Recorder:
    """A loopback port that forwards one connection to another, and writes down each direction's bytes in order."""

    def __init__(self, to_port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lines: list[tuple[str, bytes]] = []
        self._to_port = to_port
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(("127.0.0.1", self._to_port))
        threading.Thread(target=self._copy, args=(server, client, "S"), daemon=True).start()
        self._copy(client, server, "C")

    def _copy(self, source: socket.socket, sink: socket.socket, who: str) -> None:
        while data := source.recv(1 << 16):
            with self._lock:
                if self.lines and self.lines[-1][0] == who:
                    self.lines[-1] = (who, self.lines[-1][1] + data)
                else:
                    self.lines.append((who, data))
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def main() -> None:
    if len(sys.argv) == 3:
        from tvm import rpc

        conversation(rpc.connect("127.0.0.1", int(sys.argv[1]), KEY), Path(sys.argv[2]).read_bytes())
        return
    where = ["--host", "127.0.0.1", "--port", "29300", "--port-end", "29400"]
    command = [sys.executable, "-m", "tvm.exec.rpc_server", *where]
    server = subprocess.Popen([*command, "--key", KEY], start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    port = None
    while port is None:
        found = re.search(r"bind to 127\.0\.0\.1:(\d+)", line := server.stderr.readline())
        assert line, "TVM's server ended"
        port = int(found[1]) if found else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = c_library(Path(folder, "k.so"), SOURCE, ["-s", "-nostdlib"])
            recorder = Recorder(port)
            client = [sys.executable, "-m", "tests.oracle.rpc", str(recorder.port), str(library)]
            subprocess.run(client, check=True)  # TVM's client keeps Python's lock while it waits for the recorder
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it has a child that would hold the port
        server.wait()
    DATA.write_text("".join(f"{who} {data.hex()}\n" for who, data in recorder.lines))
    print(f"{DATA}: {len(recorder.lines)} messages")


if __name__ == "__main__":
    main()
