"""Whose bundles a board takes.

A board without pinned keys takes any bundle. Once a key is pinned, by the first `edgellm deploy --require-signature` or
here, the runtime on the board opens only bundles that a pinned key has signed.
"""

from __future__ import annotations

import argparse
import json

from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.errors import UsageError
from edgellm.probe import home_of
from edgellm.selection import add_board

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgellm trust --board kitchen\n"
        "  edgellm trust --board kitchen --pin alice.pub\n"
        "  edgellm trust --board kitchen --unpin 1f2e3d4c    the first digits of a key; all: take any bundle again"
    )
    add_board(parser)
    parser.add_argument("--pin", action="append", default=[], metavar="KEY", help="a public key: its .pub file or name")
    parser.add_argument("--unpin", action="append", default=[], metavar="DIGITS", help="first digits of a key, or: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    from edgellm import signing, trust

    new = [signing.load_public(text) for text in args.pin]
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        home = home_of(remote)
        before = [] if ALL in args.unpin else trust.pinned(remote, home)
        kept = list(before)
        for digits in args.unpin:
            matching = [key for key in kept if len(digits) >= 4 and key.hex.startswith(digits.lower())]
            if digits != ALL and len(matching) != 1:
                raise UsageError(f"{board.label} has {len(matching)} pinned keys that begin with '{digits}'; name one")
            kept = [key for key in kept if key not in matching]
        kept += [key for key in new if key.hex not in {other.hex for other in kept}]
        if args.pin or args.unpin:
            trust.pin(remote, home, kept)
    if args.json:
        keys = [{"key": key.hex, "name": key.name} for key in kept]
        print(json.dumps({"board": board.label, "pinned": keys}))
        return 0
    if not kept:
        print(f"{board.label} takes any bundle; pin a key: edgellm trust --board {board.label} --pin KEY")
        return 0
    print(f"{board.label} takes bundles signed by")
    for key in kept:
        print(f"  {key.hex}  {key.name}".rstrip())
    return 0
