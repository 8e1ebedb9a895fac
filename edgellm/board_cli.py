"""Start, stop and look at a virtual board; fetch brings what a start needs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edgellm import virtual
from edgellm.address import AdbAddress
from edgellm.boards import Board, list_boards, load_board
from edgellm.errors import BoardError
from edgellm.virtual_parts import Progress

_EPILOG = """\
examples:
  edgellm board start virtual-rpi5    (deploy, run and chat start it by themselves)
  edgellm board status
  edgellm board stop
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("start", "stop", "status", "fetch"), metavar="start|stop|status|fetch")
    parser.add_argument(
        "board", nargs="?", metavar="ID", help="which virtual board; start: virtual-rpi5; the others: all"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    if args.action == "start":
        _start(_virtual_board(args.board or "virtual-rpi5"), args.json)
        return 0
    boards = [_virtual_board(args.board)] if args.board else [board for board in list_boards() if board.virtual]
    if args.action == "fetch":
        _fetch(boards, args.json)
    elif args.action == "stop":
        stopped = [board.id for board in boards if virtual.stop(board)]
        text = "\n".join(f"{board_id} is stopped; what was deployed on it stays" for board_id in stopped)
        print(json.dumps({"stopped": stopped}) if args.json else text or "no virtual board was running")
    else:
        _status(boards, args.json)
    return 0


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Progress of a virtual board's first start on standard error: a bar on a terminal, else a line per step."""
    if not sys.stderr.isatty():
        said: set[str] = set()

        def say(what: str, fraction: float) -> None:
            if what not in said:
                said.add(what)
                print(f"virtual board: {what}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("virtual board: {task.description}"), BarColumn(bar_width=20), TaskProgressColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=1.0, visible=False)

        def draw(what: str, fraction: float) -> None:
            bars.update(task, description=what, completed=fraction, visible=True)

        yield draw


def _virtual_board(board_id: str) -> Board:
    board = load_board(board_id)
    if not board.virtual:
        known = ", ".join(each.id for each in list_boards() if each.virtual)
        raise BoardError(f"{board_id} is hardware; virtual boards are {known}")
    return board


def _start(board: Board, as_json: bool) -> None:
    with shown_progress() as progress:
        where = virtual.start(board, progress)
    if as_json:
        print(json.dumps({"board": board.id, **_login(board)}))
    elif isinstance(where, AdbAddress):
        print(f"{board.id} runs; reach it with:\n  {_adb_command(where)} shell")
    else:
        login = f"ssh -i {where.key_path} -o UserKnownHostsFile={where.known_hosts_path} -p {where.port}"
        print(f"{board.id} runs; log in with:\n  {login} {where.user}@{where.host}")


def _fetch(boards: list[Board], as_json: bool) -> None:
    """Bring the parts here that a later start needs; a board that cannot run on this machine needs none."""
    reasons = {board.id: virtual.availability(board) for board in boards}
    with shown_progress() as progress:
        for board in boards:
            if reasons[board.id] is None:
                virtual.fetch(board, progress)
    if as_json:
        print(json.dumps(reasons))
        return
    for board_id, reason in reasons.items():
        print(f"{board_id} is ready" if reason is None else f"{board_id} cannot run on this machine: {reason}")


def _adb_command(where: AdbAddress) -> str:
    return f"ADB_SERVER_SOCKET={where.server} {where.program} -s {where.serial}"


def _login(board: Board) -> dict[str, str | int | None]:
    where = virtual.address(board)
    if where is None:
        return {}
    if isinstance(where, AdbAddress):
        return {"serial": where.serial, "adb": str(where.program), "server": where.server}
    return {
        "host": where.host,
        "port": where.port,
        "user": where.user,
        "key": str(where.key_path),
        "known_hosts": str(where.known_hosts_path),
    }


def _status(boards: list[Board], as_json: bool) -> None:
    rows = []
    for board in boards:
        login = _login(board)
        reason = None if login else virtual.availability(board)
        rows.append({"board": board.id, "running": bool(login), "unavailable": reason, **login})
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        place = str(row["serial"]) if "serial" in row else f"{row.get('user')}@{row.get('host')}:{row.get('port')}"
        state = f"runs at {place}" if row["running"] else row["unavailable"]
        print(f"{row['board']:<16} {state or 'stopped'}")
