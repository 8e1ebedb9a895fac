"""What is deployed on a board: models and their versions, what is in use, and what it takes on the disk.

`current` answers; `previous` is what `edgellm rollback` goes back to. Versions share the files they have in common, so
two of them cost one copy of those. "verified" means that no weight file has changed since it was last hashed there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from edgellm import fleet_cli
from edgellm.board_session import DeployedModel, DeployedSlot, Survey, ask_once, read_survey
from edgellm.boards import find_board
from edgellm.connection import connect
from edgellm.errors import UnsuitableError
from edgellm.probe import home_of
from edgellm.selection import add_board
from edgellm.terminal import one_line, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  edgellm status --board kitchen\n  edgellm status --board kitchen --json | jq .models\n"
    )
    parser.epilog += "  edgellm status --fleet kitchens.toml"
    add_board(parser, required=False)
    fleet_cli.add_fleet(parser, "what each board of a fleet uses")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    fleet_cli.check_place(args)
    if args.fleet is not None:
        return fleet_cli.status(args)
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        try:
            survey = read_survey(ask_once(remote, home_of(remote), "survey"), remote.name)
        except UnsuitableError:
            survey = Survey("", "", 0)  # nothing was ever deployed there
    if args.json:
        print(json.dumps({"board": board.label, **asdict(survey), "files_bytes": sum(survey.store.values())}))
    else:
        show(board.label, survey)
    return 0


def show(label: str, survey: Survey) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not survey.models:
        console.print(f"{label} has no models; send one with `edgellm deploy MODEL --board {label}`", highlight=False)
    else:
        table = Table("model", "version", "", "scheme", "size", "weights", box=box.SIMPLE_HEAD, pad_edge=False)
        for model in survey.models.values():
            for slot in sorted(model.slots.values(), key=lambda slot: (slot.name != model.current, slot.name)):
                state = slot.broken or ("verified" if slot.verified else "changed: hashed at the next start")
                words = (model.name, slot.name, role(model, slot), slot.scheme, size(slot.n_bytes), state)
                table.add_row(*(Text(one_line(word)) for word in words))
            if model.current is None:
                table.add_row(Text(one_line(model.name)), "–", "nothing in use", "", "", "")
        console.print(table)
    if not survey.version:
        return
    stored = f"{len(survey.store)} files, {size(sum(survey.store.values()))}"
    unfinished = f"; unfinished: {len(survey.parts)}, {size(sum(survey.parts.values()))}" if survey.parts else ""
    console.print(f"stored    {stored}{unfinished}", highlight=False)
    console.print(f"free      {size(survey.free_bytes)}", highlight=False)
    runtime = one_line(f"runtime   edgellm-rt {survey.version}, {survey.arch}")
    console.print(runtime, highlight=False, markup=False)


def role(model: DeployedModel, slot: DeployedSlot) -> str:
    return "current" if slot.name == model.current else "previous" if slot.name == model.previous else "unused"
