"""Make the model on a board a service: it starts when the board does, and is started again when it fails.

With systemd it is a unit of its own user, without any capability, that may write nothing (with --keep: a folder of its
own) and take no more memory than the model's plan says; without, it is kept in the background by edgellm-rt itself. A
later deploy or rollback restarts it and says whether it is well.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from edgellm import service, serving
from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.errors import UsageError
from edgellm.probe import home_of
from edgellm.remembered import recall
from edgellm.remote import Remote
from edgellm.runtime_program import find_model
from edgellm.selection import add_board, add_model
from edgellm.serve_cli import add_server_options, server_argv
from edgellm.service_options import Wanted

_EPILOG = """\
examples:
  edgellm service install --board kitchen
  edgellm service status --board kitchen --json
  edgellm serve --board kitchen                  reaches it from here
  edgellm service remove --board kitchen
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("install", "remove", "status"), metavar="install|remove|status")
    add_board(parser)
    add_model(parser)
    add_server_options(parser, "the board's loopback")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="what was computed of conversations outlives the server, in a folder that nobody else reads; "
        "`remove` deletes it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    if args.port == 0:
        raise UsageError("--port 0: a service needs a port of its own, by which it is found again")
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        model = find_model(remote, args.model, recall(board.label).model)
        home = home_of(remote)
        if args.action == "remove":
            removed = service.remove(remote, home, model.name)
            if args.json:
                print(json.dumps({"board": board.label, "model": model.name, "removed": removed}))
            else:
                print(f"{model.name} is no service on {board.label}{' any more' if removed else ''}")
            return 0
        if args.action == "install":
            wanted = Wanted(args.port, tuple(server_argv(args)), args.keep)
            found: service.Service | None = service.install(model, home, wanted)
        else:
            found = service.find(remote, home, model.name)
        healthy = report_of(remote, found, None, wait=args.action == "install")
    if args.json:
        print(json.dumps({"board": board.label, "model": model.name, **healthy}))
    else:
        print(f"{model.name} on {board.label}: {words(healthy)}")
    return 0 if args.action == "status" or healthy["healthy"] else 1


def report_of(
    remote: Remote, found: service.Service | None, sha256: str | None, wait: bool = True
) -> dict[str, object]:
    """How a service is: {"service": …, "healthy": …, "health": …}. sha256: of the version that must answer."""
    if found is None:
        return {"service": None, "healthy": None}
    if found.port is None:
        return {"service": asdict(found), "healthy": False, "health": {"text": found.state}}
    well = serving.wait_for_health(remote, found.port, sha256, 60 if wait else 0)
    return {"service": asdict(found), "healthy": well.good, "health": asdict(well)}


def words(healthy: dict[str, object]) -> str:
    """The same in a line."""
    found, health = healthy["service"], healthy.get("health")
    if not isinstance(found, dict) or not isinstance(health, dict):
        return "no service; `edgellm service install` makes it one"
    how = "healthy" if healthy["healthy"] else f"NOT healthy: {health.get('text')}"
    boot = "starts with the board" if found["starts_at_boot"] else "does not start with the board"
    return f"{found['kind']} service, {found['state']}, port {found['port']} of its loopback; {how}; {boot}"
