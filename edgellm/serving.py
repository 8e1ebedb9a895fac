"""A server on a board: `edgellm-rt serve`, for as long as a connection lasts or in the background.

In the background it is kept by `edgellm-rt supervise`, which lies outside the slots, and whose folder is
~/.edgellm/serve/MODEL on the board.
"""

from __future__ import annotations

import http.client
import json
import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgellm.board_session import root_of
from edgellm.errors import CommandError, EdgeError, RemoteError, RuntimeFailedError, UnsuitableError
from edgellm.forward import Forwarder
from edgellm.local_remote import LocalRemote
from edgellm.remote import Process, Remote, shell_argv
from edgellm.runtime_program import PROGRAM, InstalledModel, announced, ended, failure
from edgellm.terminal import one_line

DEFAULT_PORT = 11434
"""Ollama's, where its clients look."""

_START_S = 900.0  # weights may have to be hashed first
_END_S = 20.0


@dataclass(frozen=True)
class Served:
    """A running server. port: on the board's loopback; name: the model's, in the API."""

    port: int
    name: str
    sessions: int
    context: int


@dataclass(frozen=True)
class Background:
    """What the board's supervisor says. state: starting, running, waiting (between two starts) or stopped."""

    running: bool
    state: str = "stopped"
    port: int | None = None
    pid: int | None = None
    starts: int = 0


@contextmanager
def attached(model: InstalledModel, options: Sequence[str]) -> Iterator[tuple[Served, Process]]:
    """Serves until the end of the `with`, or of the connection, whichever comes first."""
    argv = model.argv("serve", "--attached", "--port", "0", *options)
    with model.remote.start(argv, silence_s=_START_S) as process:
        served = _ready(model.remote, process)
        try:
            yield served, process
        finally:
            ended(process, _END_S)


@contextmanager
def reachable(remote: Remote, board_port: int, port: int) -> Iterator[int]:
    """A port of this machine's loopback that comes out at the board's; `port`, or any free one for 0."""
    if isinstance(remote, LocalRemote) and port in (0, board_port):
        yield board_port
        return
    with Forwarder(remote, board_port, port) as forwarder:
        yield forwarder.port


def _ready(remote: Remote, process: Process) -> Served:
    said = announced(remote, process, "edgellm-rt serve")
    name, sessions, context = (said.get(key) for key in ("name", "sessions", "context"))
    if type(name) is not str or type(sessions) is not int or type(context) is not int:
        raise RemoteError(f"{remote.name}: edgellm-rt serve does not say what it serves: {one_line(str(said), 80)}")
    return Served(said["port"], one_line(name, 200), sessions, context)


# ---- in the background ----


def supervisor_argv(home: str, model: str, *request: str) -> list[str]:
    root = root_of(home)
    return [posixpath.join(root, PROGRAM), "supervise", posixpath.join(root, "serve", model), *request]


def _supervise(remote: Remote, home: str, model: str, *request: str) -> Background:
    # By way of a shell, which says with 126 or 127 that there is no program.
    argv = shell_argv('exec "$@"', *supervisor_argv(home, model, *request))
    result = remote.run(argv, silence_s=_START_S)
    if result.status in (126, 127):
        raise UnsuitableError(f"{remote.name} has no models yet; send one with `edgellm deploy MODEL --board …`")
    if result.status != 0:
        raise failure(remote, f"edgellm-rt supervise {request[0]}", result.status, result.stderr)
    return read_background(result.text, remote.name)


def read_background(text: str, name: str) -> Background:
    """Checks what the supervisor of a board called `name` says."""
    try:
        said: dict[str, Any] = json.loads(text)
        port, pid = said.get("port"), said.get("server")
        return Background(
            said["running"] is True,
            one_line(str(said.get("state", "stopped" if not said["running"] else "starting")), 20),
            int(port) if port is not None else None,
            int(pid) if pid is not None else None,
            int(said.get("starts", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CommandError(f"{name}: {PROGRAM} supervise said something unexpected: {one_line(text, 120)}") from error


def start(model: InstalledModel, home: str, options: Sequence[str]) -> Background:
    """Starts the server in the background. Raises RuntimeFailedError if it does not come up, or runs already."""
    return _supervise(model.remote, home, model.name, "start", model.path, *options)


def stop(remote: Remote, home: str, model: str) -> Background:
    return _supervise(remote, home, model, "stop")


def restart(remote: Remote, home: str, model: str) -> Background:
    return _supervise(remote, home, model, "restart")


def status(remote: Remote, home: str, model: str) -> Background:
    try:
        return _supervise(remote, home, model, "status")
    except RuntimeFailedError as error:
        if error.name == "USAGE":  # the program there is older than servers are
            return Background(False)
        raise


# ---- is it well? ----


@dataclass(frozen=True)
class Health:
    """What /health says. sha256: of the manifest of the version that answers; text: why it is not well."""

    good: bool
    sha256: str = ""
    text: str = ""


def health(remote: Remote, board_port: int, timeout_s: float = 10.0) -> Health:
    """Asks a server on the board's loopback how it is. Never raises for a server that is not well."""
    try:
        with reachable(remote, board_port, 0) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
            try:
                connection.request("GET", "/health")
                answer = connection.getresponse()
                said = json.loads(answer.read(1 << 16))
            finally:
                connection.close()
    except (OSError, http.client.HTTPException, ValueError, RecursionError, EdgeError) as error:
        return Health(False, text=one_line(str(error), 120) or type(error).__name__)
    if not isinstance(said, dict):
        return Health(False, text="its answer is no JSON object")
    state = one_line(str(said.get("status", "")), 40)
    return Health(answer.status == 200 and state == "ok", one_line(str(said.get("sha256", "")), 64), state)


def wait_for_health(remote: Remote, board_port: int, sha256: str | None, patience_s: float = 120.0) -> Health:
    """Waits until the server is well and, with `sha256`, answers from that version; what it was last if it never is."""
    give_up = time.monotonic() + patience_s
    while True:
        last = health(remote, board_port)
        if last.good and sha256 is not None and last.sha256 != sha256:
            last = Health(False, last.sha256, "it still answers from the version before")
        if last.good or time.monotonic() > give_up:
            return last
        time.sleep(0.5)
