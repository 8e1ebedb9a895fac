"""Many sessions with one agent: python -m tests.campaigns.rpc_sessions [--n 1000] [--sanitize]

Each uploads a library, loads it, calls it, times it and allocates; every tenth crashes in uploaded code, every tenth
breaks off in the middle of a frame. Afterwards the agent must have the processes, open files and memory that it had
after the first sessions, and its folder must be empty.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from pathlib import Path

from tests.agent import GREETING, Agent, c_library, call, frame, program, reply, sanitized_program, text

_WARM_UP = 20
_SLACK_KB = 256
_SOURCE = """
FUNCTION(good) { result->type = 1; result->v.i = 42; return 0; }
FUNCTION(bad) { *(volatile int *)8 = 0; return 0; }
"""


def session(agent: Agent, library: bytes, kind: int) -> None:
    """kind 0: crashes; 1: breaks off; others: everything goes well."""
    connection = agent.accepted()

    def ask(message: bytes) -> bytes:
        connection.sendall(message)
        code, payload = reply(connection)
        assert code == 4, payload
        return payload

    def function(name: str) -> int:
        return int(struct.unpack("<iiQ", ask(frame(9, struct.pack("<i", 1) + text(name))))[2])

    ask(frame(2, GREETING))
    upload, load, get = (function(f"tvm.rpc.server.{name}") for name in ("upload", "load_module", "ModuleGetFunction"))
    ask(call(upload, text("k.so"), struct.pack("<iQ", 9, len(library)) + library))
    module = struct.unpack("<iiqiQ", ask(call(load, text("k.so"))))[4]
    named = struct.pack("<iQ", 73, module) + text("bad" if kind == 0 else "good")
    kernel = struct.unpack("<iiqiQ", ask(call(get, named[:12], named[12:], struct.pack("<iq", 2, 0))))[4]
    ask(frame(13, struct.pack("<iiiiiqiq", 3, 6, 1, 0, 1, 1 << 20, 1, 64)))
    if kind == 0:
        connection.sendall(call(kernel))
        assert reply(connection)[0] == 5
    elif kind == 1:
        connection.sendall(call(kernel)[:-3])
    else:
        assert struct.unpack("<iiqiq", ask(call(kernel)))[4] == 42
        connection.sendall(frame(1))
    connection.close()
    agent.connections.clear()
    agent.line()


def resources(agent: Agent) -> tuple[int, int]:
    """(open files, anonymous memory in KB) of the agent, with no session running."""
    agent.wait_until_idle()
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return agent.open_files(), next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--sanitize", action="store_true", help="the agent under ASan and UBSan")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = c_library(Path(folder, "k.so"), _SOURCE).read_bytes()
        work = Path(folder, "work")
        work.mkdir()
        with Agent(sanitized_program() if args.sanitize else program(), work) as agent:
            for i in range(_WARM_UP):
                session(agent, library, i % 10)
            before = resources(agent)
            for i in range(args.n):
                session(agent, library, i % 10)
            after = resources(agent)
    print(f"{args.n} sessions: {before[0]} open files before and {after[0]} after, {before[1]} KB and {after[1]} KB")
    return int(after[0] != before[0] or after[1] > before[1] + _SLACK_KB)


if __name__ == "__main__":
    sys.exit(main())
