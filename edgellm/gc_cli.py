"""Remove from a board what no model needs: files of versions that are gone, and what an interrupted deployment left.

The version in use and the one before it always stay, of every model.
"""

from __future__ import annotations

import argparse
import json

from edgellm.board_session import ask_once, count_of
from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.probe import home_of
from edgellm.selection import add_board
from edgellm.terminal import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example:\n  edgellm gc --board kitchen"
    add_board(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        answer = ask_once(remote, home_of(remote), "gc")
    if args.json:
        print(json.dumps({"board": board.label, **answer}))
    else:
        print(f"removed {count_of(answer, 'removed')} files and folders, {size(count_of(answer, 'freed_bytes'))}")
    return 0
