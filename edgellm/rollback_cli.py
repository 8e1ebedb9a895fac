"""Go back to the version of a model that was in use before.

It is still on the board, so nothing is sent. It must prove itself again before it is switched to: its files are as they
were, and it answers its golden prompts. A second rollback goes forward again.
"""

from __future__ import annotations

import argparse
import json

from edgellm import fleet_cli, service
from edgellm.board_session import ask_once, count_of
from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.probe import home_of
from edgellm.remembered import recall
from edgellm.runtime_program import find_model
from edgellm.selection import add_board, add_model
from edgellm.service_cli import report_of, words
from edgellm.terminal import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  edgellm rollback --board kitchen\n  edgellm rollback --board kitchen --model assistant\n"
        "  edgellm rollback --fleet kitchens.toml --from 93f6c3a81b2e4d05"
    )
    add_board(parser, required=False)
    add_model(parser)
    fleets = fleet_cli.add_fleet(
        parser, "only boards that use the version --from go back, all of them at once; the others are left alone"
    )
    fleets.add_argument("--from", dest="from_version", metavar="VERSION", help="the version to leave")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    fleet_cli.check_place(args)
    if args.fleet is not None:
        return fleet_cli.rollback(args)
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        model = find_model(remote, args.model, recall(board.label).model)
        home = home_of(remote)
        answer = ask_once(remote, home, "rollback", model.name)
        healthy = report_of(remote, service.restart(remote, home, model.name), None)
    if args.json:
        print(json.dumps({"board": board.label, "model": model.name, **answer, **healthy}))
    else:
        promoted, previous = (one_line(str(answer.get(key)), 80) for key in ("promoted", "previous"))
        print(f"in use   {model.name} {promoted}, as before {previous}")
        n_golden = count_of(answer.get("golden"), "prompts")
        print(f"checked  {n_golden} golden prompts; a second rollback goes forward again")
        if healthy["service"]:
            print(f"service  {words(healthy)}")
    return 1 if healthy["healthy"] is False else 0
