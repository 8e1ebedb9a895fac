"""Remove a model from a board, with all of its versions. Files that other models share with it stay."""

from __future__ import annotations

import argparse
import json

from edgellm import service
from edgellm.board_session import ask_once, count_of
from edgellm.boards import find_board
from edgellm.connection import connect, model_name
from edgellm.probe import home_of
from edgellm.runtime_program import find_model
from edgellm.selection import add_board
from edgellm.terminal import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example:\n  edgellm undeploy --board kitchen --model assistant"
    add_board(parser)
    parser.add_argument("--model", metavar="NAME", help="which one; may be left out if there is only one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        # A model that never came into use is not found, but can be removed by its name.
        name = model_name(args.model) if args.model else find_model(remote).name
        home = home_of(remote)
        service.remove(remote, home, name)  # it could not start any more
        answer = ask_once(remote, home, "undeploy", name)
    if args.json:
        print(json.dumps({"board": board.label, **answer}))
    else:
        print(f"{name} is removed from {board.label}; {size(count_of(answer, 'freed_bytes'))} are free again")
    return 0
