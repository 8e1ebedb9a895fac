"""`edgellm-rt rpc` on a board, reached from this machine's loopback.

    with serve(board, remote) as agent:
        ...  # in another process: tvm.rpc.connect("127.0.0.1", agent.port, agent.key)

TVM's RPC runs whatever is sent, so the agent listens on the board's loopback only, and wants a random key that travels
through standard input. It is reached through the connection to the board, and ends when that does.

TVM's client must not run in the process that forwards: when an object of the board's is deleted, TVM waits for the
board's answer and keeps Python's lock meanwhile, so that nobody forwards it. On `local`, where nothing is forwarded,
one process will do.
"""

from __future__ import annotations

import contextlib
import posixpath
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crosscompile.runtime import build_runtime, has_agent
from edgellm import cache, side_program
from edgellm.boards import Board
from edgellm.errors import UnsuitableError
from edgellm.forward import Forwarder
from edgellm.local_remote import LocalRemote
from edgellm.remote import Remote
from edgellm.runtime_program import PROGRAM, announced, ended

_START_S = 30.0
_END_S = 5.0


@dataclass(frozen=True)
class Agent:
    """A running agent. port: on this machine's loopback; key: what clients must know."""

    name: str
    port: int
    key: str


@contextmanager
def serve(board: Board, remote: Remote, threads: int | None = None, device: str = "cpu") -> Iterator[Agent]:
    """Starts the agent on a connected board, brings it there first if need be, and ends it afterwards.

    device: "vulkan" for an agent that can measure on the board's GPU, too.

    Raises UnsuitableError where no agent can run, RemoteError or RuntimeFailedError where it does not start.
    """
    target = board.gpu_target() if device == "vulkan" else board.target()
    if not has_agent(target):
        raise UnsuitableError(f"{board.label} runs {board.os}: there the runtime is static and cannot load uploads")
    program = build_runtime(target, cache=cache.root() / "runtime")
    folder = side_program.install(remote, program)
    key = secrets.token_hex(16)
    options = ["--threads", str(threads)] if threads else []
    argv = [posixpath.join(folder, PROGRAM), "rpc", "--work", folder, *options]
    with remote.start(argv, silence_s=_START_S) as process:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its message says why
            process.write(f"{key}\n".encode())
        port = announced(remote, process, "edgellm-rt rpc")["port"]
        try:
            if isinstance(remote, LocalRemote):
                yield Agent(remote.name, port, key)
            else:
                with Forwarder(remote, port) as forwarder:
                    yield Agent(remote.name, forwarder.port, key)
        finally:
            ended(process, _END_S)
