"""Serve the model on a board to programs: OpenAI's API and Ollama's, at a port of this machine.

Without an action, the server runs until Ctrl-C, and localhost:PORT here is the board's. `start` leaves it running in
the background there; a later `edgellm serve` without an action then only makes the port.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from edgellm import serving
from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.errors import RemoteError
from edgellm.local_remote import LocalRemote
from edgellm.probe import home_of
from edgellm.remembered import recall
from edgellm.remote import Process, Remote
from edgellm.runtime_program import InstalledModel, failure, find_model
from edgellm.selection import add_board, add_model
from edgellm.terminal import printable

_EPILOG = """\
examples:
  edgellm serve --board kitchen
  curl localhost:11434/v1/chat/completions -d '{"messages":[{"role":"user","content":"Hello"}]}'
  edgellm serve start --board kitchen --sessions 8
  edgellm serve status --board kitchen

The board listens on its own loopback only; `edgellm-rt serve --help` there has what else a server can be told.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    actions = ("start", "stop", "restart", "status")
    parser.add_argument(
        "action", nargs="?", choices=actions, metavar="start|stop|restart|status", help="a server in the background"
    )
    add_board(parser)
    add_model(parser)
    add_server_options(parser, "this machine; with start, of the board's loopback")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def add_server_options(parser: argparse.ArgumentParser, whose_port: str) -> None:
    """--port, and the options that go to edgellm-rt serve as they are."""
    port_help = f"of {whose_port} (default: %(default)s)"
    parser.add_argument("--port", type=_port, default=serving.DEFAULT_PORT, metavar="N", help=port_help)
    parser.add_argument(
        "--sessions", type=_count, metavar="N", help="answers computed at a time (default: 4, if they fit)"
    )
    parser.add_argument("--waiting", type=_count, metavar="N", help="answers that may wait beyond those (default: 32)")
    parser.add_argument(
        "--context", type=_count, metavar="N", help="positions per answer (default: the model's, at most 4096)"
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="threads (default: as many as turn out fastest)")


def server_argv(args: argparse.Namespace) -> list[str]:
    given = ((name, getattr(args, name)) for name in ("sessions", "waiting", "context", "threads"))
    return [word for name, value in given if value is not None for word in (f"--{name}", str(value))]


def _port(text: str) -> int:
    if not 0 <= int(text) <= 65535:
        raise ValueError
    return int(text)


def _count(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


def main(args: argparse.Namespace) -> int:
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        model = find_model(remote, args.model, recall(board.label).model)
        home = home_of(remote)
        if args.action is None:
            return forward(args, model, home)
        if args.action == "start":
            found = serving.start(model, home, ["--port", str(args.port), *server_argv(args)])
        elif args.action == "stop":
            found = serving.stop(remote, home, model.name)
        elif args.action == "restart":
            found = serving.restart(remote, home, model.name)
        else:
            found = serving.status(remote, home, model.name)
        report(args, board.label, model, remote, found)
        return 0


def report(
    args: argparse.Namespace, label: str, model: InstalledModel, remote: Remote, found: serving.Background
) -> None:
    healthy = serving.health(remote, found.port) if found.running and found.port is not None else None
    if args.json:
        health = asdict(healthy) if healthy is not None else None
        print(json.dumps({"board": label, "model": model.name, **asdict(found), "health": health}))
    elif not found.running:
        print(f"{model.name} is not served on {label}")
    else:
        how = "healthy" if healthy and healthy.good else f"not healthy: {healthy.text if healthy else found.state}"
        print(f"{model.name} is served on {label}, port {found.port} of its loopback; {how}; {found.starts} start(s)")


def forward(args: argparse.Namespace, model: InstalledModel, home: str) -> int:
    """Makes the board's server localhost:PORT until Ctrl-C; starts one first unless one runs in the background."""
    found = serving.status(model.remote, home, model.name)
    if found.running and found.port is not None:
        with serving.reachable(model.remote, found.port, args.port) as port:
            say(args, model, port, "the server in the background")
            while serving.health(model.remote, found.port).good:
                time.sleep(5)
            raise RemoteError(f"{model.remote.name}: the server in the background does not answer any more")
    options = server_argv(args)
    if isinstance(model.remote, LocalRemote):  # nothing lies between: the server takes the port itself
        options += ["--port", str(args.port)]
    with (
        serving.attached(model, options) as (served, process),
        serving.reachable(model.remote, served.port, args.port) as port,
    ):
        say(args, model, port, f"{served.sessions} sessions of {served.context} positions")
        watch(model, process)
    return 0


def say(args: argparse.Namespace, model: InstalledModel, port: int, how: str) -> None:
    if args.json:
        print(json.dumps({"url": f"http://localhost:{port}", "port": port, "model": model.name}), flush=True)
    else:
        print(f"{model.name} on {model.remote.name} is http://localhost:{port} here: {how}; Ctrl-C ends it", flush=True)


def watch(model: InstalledModel, process: Process) -> None:
    """Waits until the server ends, which it should not do by itself."""
    while True:
        try:
            piece = process.read(4096, timeout_s=1.0)
        except TimeoutError:
            continue
        if not piece:
            raise failure(model.remote, "edgellm-rt serve", process.wait(), process.errors())
        print(printable(piece.decode("utf-8", "replace")), end="", file=sys.stderr, flush=True)
