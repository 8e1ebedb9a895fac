"""What a board has recorded: which models were put into use, by whom, and what went wrong.

Times are the board's own; one that has no battery may not know the time when it starts, so the seconds since it
started are recorded too (--json).
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from edgellm.board_session import board_argv, refused
from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.errors import UsageError
from edgellm.probe import home_of
from edgellm.remote import Remote
from edgellm.selection import add_board
from edgellm.terminal import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "examples:\n  edgellm logs --board kitchen\n  edgellm logs --board kitchen -n 1000 --failed --json"
    add_board(parser)
    parser.add_argument("-n", type=int, default=30, metavar="N", help="the last N entries (default 30)")
    parser.add_argument("--failed", action="store_true", help="of these only what went wrong")
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def main(args: argparse.Namespace) -> int:
    if not 0 < args.n <= 100_000:
        raise UsageError(f"-n {args.n}: a number from 1 to 100000")
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        entries = [entry for entry in read_log(remote, args.n) if not (args.failed and entry.get("ok"))]
    if args.json:
        print(json.dumps(entries, indent=1))
    else:
        show(board.label, entries)
    return 0


def read_log(remote: Remote, n: int) -> list[dict[str, Any]]:
    """The last n entries of a board's record, the newest last. What a power cut tore is left out."""
    result = remote.run(board_argv(home_of(remote), "log", str(n)))
    if result.status in (126, 127):
        return []  # nothing was ever deployed there
    if result.status != 0:
        raise refused(remote, "edgellm-rt board log", result.status, result.stderr)
    entries = []
    for line in result.text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def show(label: str, entries: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not entries:
        print(f"{label} has recorded nothing")
        return
    table = Table("when", "what", "model", "version", "by", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for entry in entries:
        moment = entry.get("time")
        is_time = type(moment) is int and 0 <= moment < 1 << 37  # until the year 6325
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if is_time else "?"
        words = [one_line(str(entry.get(key, ""))) for key in ("what", "model", "slot", "by", "text")]
        style = "" if entry.get("ok") else "red"
        table.add_row(when, *(Text(word, style) for word in words))
    Console().print(table)
