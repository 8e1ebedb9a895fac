"""List, show, add and remove boards."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from typing import Any

from crosscompile.errors import TargetError
from edgellm.boards import Board, Chooser, find_board, list_boards, load_board
from edgellm.errors import BoardError
from edgellm.gpu_facts import FOUND
from edgellm.instances import Instance, add_instance, read_instances, remove_instance

_EPILOG = """\
examples:
  edgellm boards                                 every type, and your own boards
  edgellm boards show rpi5
  edgellm boards add kitchen rpi5 pi@kitchen.local
  edgellm boards add phone android-arm64 adb:R58M123ABC
  edgellm boards remove kitchen
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    json_flag = argparse.ArgumentParser(add_help=False)
    json_flag.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="list|show|add|remove")
    actions.add_parser("list", parents=[json_flag], help="every type, and your own boards (the default)")
    show = actions.add_parser("show", parents=[json_flag], help="everything known about one board")
    show.add_argument("board", help="a type's id or your board's name")
    add = actions.add_parser("add", parents=[json_flag], help="give a board of yours a name")
    add.add_argument("name", help="what you will call it")
    add.add_argument("type", help="its type, as `edgellm boards` lists them")
    add.add_argument(
        "address", metavar="ADDRESS", help="user@host[:port] for SSH; adb:SERIAL for a device that `adb devices` lists"
    )
    add.add_argument("--replace", action="store_true", help="if the name is taken, take it over")
    remove = actions.add_parser("remove", parents=[json_flag], help="forget a board of yours")
    remove.add_argument("name", help="its name")


def main(args: argparse.Namespace) -> int:
    if args.action == "show":
        _show(find_board(args.board, choose=lambda candidates: load_board(candidates[0].id)), args.json)
    elif args.action == "add":
        _add(args)
    elif args.action == "remove":
        removed = remove_instance(args.name)
        _say({"removed": removed.name}, f"{removed.name} ({removed.type} at {removed.address}) is forgotten", args.json)
    else:
        _list(args.json)
    return 0


def chooser() -> Chooser | None:
    """Asks the person at the terminal which board is meant; None if nobody is there to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def choose(candidates: list[Board]) -> Board:
        for number, board in enumerate(candidates, 1):
            print(f"  {number}  {board.instance}  {board.host}", file=sys.stderr)
        print("which board? ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline().strip()
        for number, board in enumerate(candidates, 1):
            if answer in (str(number), board.instance):
                return board
        raise BoardError(f"{answer!r} is none of them")

    return choose


def _say(value: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(value) if as_json else text)


def _add(args: argparse.Namespace) -> None:
    board = load_board(args.type)
    if board.virtual or board.id == "local":
        raise BoardError(f"{board.id} runs on this machine and needs no address; use --board {board.id}")
    instance = Instance.at(args.name, board.id, args.address, board.os == "android")
    add_instance(instance, replace=args.replace)
    _say(
        {"added": instance.name, "type": instance.type, "host": instance.host, "port": instance.port},
        f"{instance.name} is a {board.name} at {instance.address}; try `edgellm deploy --board {instance.name} MODEL`",
        args.json,
    )


def _list(as_json: bool) -> None:
    boards, instances = list_boards(), read_instances()
    if as_json:
        own = [
            {"name": each.name, "type": each.type, "host": each.host, "port": each.port} for each in instances.values()
        ]
        print(json.dumps({"boards": [describe(board) for board in boards], "instances": own}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("board", "processor", "tier", "memory"):
        table.add_column(column, no_wrap=column != "processor")
    for board in boards:
        table.add_row(board.id, _cores(board), _tier(board), _memory(board))
    console.print(table)
    if instances:
        own_table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("your board", "type", "address"):
            own_table.add_column(column)
        for each in instances.values():
            own_table.add_row(each.name, each.type, each.address)
        console.print()
        console.print(own_table)
    else:
        console.print("\nname one of your own with `edgellm boards add NAME TYPE user@host`", style="dim")


def _cores(board: Board) -> str:
    """The cores without clocks and SoC, which `show` has: "4× Cortex-A76 + 4× Cortex-A55"."""
    emulated = ", emulated" if board.virtual_section and board.virtual_section.qemu else ""
    return re.sub(r" \(.*\)| [\d.–]+ (G|M)Hz", "", board.cpu) + emulated


def _tier(board: Board) -> str:
    try:
        return board.target().tier.name
    except TargetError:  # `local` on a processor that no tier fits; the rest of the list is still worth having
        return "none"


def _memory(board: Board) -> str:
    sizes = board.memory.ram_options_bytes or (board.memory_bytes,)
    return "/".join(f"{size / 2**30:.3g}" for size in sizes) + " GiB"


def describe(board: Board) -> dict[str, Any]:
    """A board as plain values, sections under their names in the manifest."""
    sections = {
        "target": {**dataclasses.asdict(board.target_section), "tier": _tier(board)},
        "memory": dataclasses.asdict(board.memory),
        "runtime": dataclasses.asdict(board.runtime),
        "vulkan": dataclasses.asdict(board.vulkan) if board.vulkan else None,
        "thermal": dataclasses.asdict(board.thermal) if board.thermal else None,
        "virtual": dataclasses.asdict(board.virtual_section) if board.virtual_section else None,
    }
    head: dict[str, Any] = {"id": board.id, "name": board.name}
    if board.host:
        head |= {"instance": board.label, "host": board.host, "port": board.port}
    return {**head, **{name: section for name, section in sections.items() if section}}


def _show(board: Board, as_json: bool) -> None:
    if board.vulkan is not None and board.vulkan.schedule == FOUND:
        board = dataclasses.replace(board, vulkan=board.gpu())
    values = describe(board)
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for key, value in values.items():
        if isinstance(value, dict):
            print(f"\n[{key}]")
            for name, item in value.items():
                if item not in (None, (), ""):
                    print(f"  {name:<22} {_text(name, item)}")
        else:
            print(f"{key:<24} {value}")


def _text(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(name, item) for item in value) if name.endswith("_bytes") else " ".join(map(str, value))
    if name.endswith("_bytes"):
        return f"{value / 2**30:.3g} GiB" if value >= 2**27 else f"{value // 1024} KiB"
    if name.endswith("_bytes_per_s"):
        return f"{value / 1e9:.1f} GB/s"
    return str(value)
